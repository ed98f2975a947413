"""Many scenarios, each replicated: a tidy table with an interval in every row.

Replication r of every scenario draws from the same keyed family (common random numbers), so differences between rows
are differences between scenarios. Its key depends on the seed and r alone, never on the order or the process in which
it runs: an executor changes the wall time and nothing else. With a cache, what was once simulated is not simulated
again, and a sweep that was killed goes on from there; the table is made of whole replications only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError, UndercoverageWarning
from mktsim.streams import check_seed
from mktsim.study.coordinated import check_statement
from mktsim.study.jobs import Job, Submits, check_executor, completed
from mktsim.study.replication import (
    Engine,
    _check,
    check_engine,
    check_statistic,
    requests_are_independent,
    starts_steady,
)
from mktsim.study.replications import LEAST_REPLICATIONS
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import coverage_deficit, estimate_statistic, probability_of, undercoverage

#: Scenarios that a warning names by their numbers.
_NAMED: Final = 10
#: What an interval may cover less than it says without a warning, a share.
_DEFICIT: Final = 0.01


def sweep(
    scenario: Scenario | Sequence[Scenario],
    *,
    replications: int,
    seed: int,
    executor: Submits | None = None,
    requests: int = 100,
    engine: Engine = "auto",
    quantiles: Sequence[float] = (0.5, 0.99),
    mean: bool = True,
    cache: str | Path | None = None,
    progress: bool = True,
    **axes: Iterable[Any],
) -> pd.DataFrame:
    """Simulate every combination of the axes' values, `replications` times each.

    Parameters
    ----------
    scenario : Scenario, or sequence of Scenario
        What the axes do not name; of several scenarios each is combined with all axes.
    replications : int
        At least 2; 10 or more for an honest interval of a mean.
    seed : int
        Decides every draw.
    executor : concurrent.futures.Executor, optional
        Runs the replications, e.g. a ProcessPoolExecutor, a Dask client or its executor; anything with a ``submit``
        whose futures have ``add_done_callback``. The result does not depend on it.
    requests : int
        In each replication.
    engine : "auto", "event" or "vectorised"
        See :func:`~mktsim.study.replication.simulate`.
    quantiles : sequence of float
        Estimated from the requests of all replications together, where these are independent.
    mean : bool
        Whether the mean is estimated too; not, where quantiles are all that is asked for.
    cache : path, optional
        A folder in which replications are kept, by scenario, seed, number and version: a sweep that was killed takes up
        where it was, and one with more scenarios computes the new ones only.
    progress : bool
        Show a progress bar.
    **axes : iterable
        Values of fields of :class:`~mktsim.study.scenario.Scenario`, by name.

    Returns
    -------
    DataFrame
        One row a scenario, metric and statistic: ``scenario`` (its number), one column an axis or a field in which the
        given scenarios differ, ``metric`` (``sojourn_time_ms``), ``statistic`` (``mean``, ``p50``, ...), ``estimate``,
        ``low``, ``high`` (95 %), ``n`` (replications behind a mean, requests behind a quantile), ``replications``,
        ``requests``, ``seed``, ``engine``, ``preset_date``.

    Raises
    ------
    InvalidArgumentError
        Before any work, if an axis is no field, a value is out of range, the engine does not cover a scenario, or the
        samples cannot bear a quantile.
    StorageError
        If the cache cannot be used.

    Warns
    -----
    UndercoverageWarning
        Once for the whole sweep, with the numbers of the scenarios, if intervals of their means are likely to cover a
        percentage point less than they say.

    Examples
    --------
    >>> size = {"replications": 10, "quantiles": (0.5,), "progress": False}
    >>> frame = sweep(Scenario(vendors=10), seed=1, **size, fanout=["flat", 3])
    >>> frame[["fanout", "statistic", "n"]].values.tolist()
    [['flat', 'mean', 10], ['flat', 'p50', 1000], [3, 'mean', 10], [3, 'p50', 1000]]
    """
    if not isinstance(replications, int) or isinstance(replications, bool) or replications < 2:
        raise InvalidArgumentError(f"replications must be a whole number of at least 2, not {replications!r:.80}")
    given = [scenario] if isinstance(scenario, Scenario) else _listed("scenario", scenario)
    for one in given:
        _check(one, requests, engine)
    seed = check_seed(seed)
    check_executor(executor, cache)
    grid = {name: _listed(f"axis {name}", values) for name, values in axes.items()}
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    scenarios = [one.replace(**point) for one in given for point in points]
    names = _quantile_names(quantiles)
    if not isinstance(mean, bool) or not (mean or names):
        raise InvalidArgumentError(f"mean must be True, or False where there are quantiles, not {mean!r:.80}")
    statistics = [*["mean"] * mean, *names]
    for one in scenarios:
        check_statement(one)
        check_engine(one, engine)
        for statistic in statistics:
            check_statistic(one, statistic, replications=replications, requests=requests)

    jobs = [Job(one, seed, r, requests, engine) for one in scenarios for r in range(replications)]
    parts: dict[int, dict[int, NDArray[np.float64]]] = {}
    rows: dict[int, list[dict[str, Any]]] = {}
    doubts: dict[int, str] = {}
    with tqdm(total=len(jobs), desc="sweep", unit="replication", disable=not progress) as bar:
        for place, (name, times_ms) in completed(jobs, executor=executor, cache=cache):
            bar.update()
            i, r = divmod(place, replications)
            parts.setdefault(i, {})[r] = times_ms
            if len(parts[i]) < replications:
                continue
            # A scenario that has all its replications becomes rows, and its samples are let go.
            done = parts.pop(i)
            samples = np.stack([done[number] for number in range(replications)])
            independent = requests_are_independent(scenarios[i])
            doubt = _doubt(samples, starts_steady(scenarios[i])) if mean else None
            if doubt is not None:
                doubts[i] = doubt
            rows[i] = [
                {
                    "scenario": i,
                    **_varied(given, i // len(points)),
                    **points[i % len(points)],
                    "metric": "sojourn_time_ms",
                    "statistic": statistic,
                    "estimate": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "n": interval.n,
                    "replications": replications,
                    "requests": requests,
                    "seed": seed,
                    "engine": name,
                    "preset_date": scenarios[i].load_preset().date,
                }
                for statistic in statistics
                for interval in [estimate_statistic(samples, statistic, independent=independent)]
            ]
    if doubts:
        warnings.warn(_doubted(doubts, len(scenarios), replications, requests), UndercoverageWarning, stacklevel=2)
    return pd.DataFrame([row for i in range(len(scenarios)) for row in rows[i]])


def _doubt(samples: NDArray[np.float64], is_steady: bool) -> str | None:
    """Say why the interval of a scenario's mean is likely to deceive, or None.

    Under ten replications say little about what one request leaves to the next, and Student's interval is so wide that
    skewness costs it less than to first order: R / (R + 10) of that, as intervals of R exponentials (5 observations a
    mean, or 1) lose for R = 3 to 40, within a half.
    """
    replications = len(samples)
    if not is_steady or replications >= LEAST_REPLICATIONS:
        return undercoverage(samples, is_steady=is_steady)
    deficit = coverage_deficit(samples) * replications / (replications + 10)
    if deficit <= _DEFICIT:
        return None
    return (
        f"they are few for so skewed a mean: an interval said to be of 95% covers about {100 * deficit:.2g} points "
        f"less; take more, at least {LEAST_REPLICATIONS}, or longer ones"
    )


def _doubted(doubts: dict[int, str], scenarios: int, replications: int, requests: int) -> str:
    """Say which scenarios' intervals of the mean deceive, and why the first one's does."""
    numbers = sorted(doubts)
    listed = ", ".join(map(str, numbers[:_NAMED])) + (", ..." if len(numbers) > _NAMED else "")
    which = "the scenario's mean is" if scenarios == 1 else (
        f"the means of {len(numbers)} of {scenarios} scenarios (numbers {listed}) are"
    )  # fmt: skip
    return (
        f"{which} likely to be covered less often than the intervals say; in scenario {numbers[0]} there are "
        f"{replications} replications of {requests:,} requests: {doubts[numbers[0]]}"
    )


def _varied(given: Sequence[Scenario], number: int) -> dict[str, Any]:
    """Return the fields in which the given scenarios differ, with the values of one of them."""
    plain = [one.to_dict() for one in given]
    names = dict.fromkeys(name for one in plain for name in one)
    mine = plain[number]
    return {name: mine.get(name) for name in names if any(one.get(name) != mine.get(name) for one in plain)}


def _quantile_names(quantiles: Any) -> list[str]:
    """Name the quantiles as statistics: 0.999 is ``p99.9``."""
    if isinstance(quantiles, str) or not isinstance(quantiles, Iterable):
        raise InvalidArgumentError(f"quantiles needs numbers inside (0, 1), one or several, not {quantiles!r:.80}")
    names = [f"p{100 * _number(p):.12g}" for p in quantiles]
    for name in names:
        probability_of(name)  # Some are so near to 0 or 1 that no name tells them from it.
    if len(set(names)) < len(names):
        raise InvalidArgumentError(f"quantiles names one twice: {', '.join(names):.80}")
    return names


def _number(p: Any) -> float:
    if not isinstance(p, int | float | np.floating) or not 0.0 < p < 1.0:
        raise InvalidArgumentError(f"p must be inside (0, 1), not {p!r:.80}")
    return float(p)


def _listed(name: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidArgumentError(f"{name} needs an iterable of values, not {values!r:.80}")
    # Numbers of numpy become Python's, which a Scenario takes.
    listed = [value.item() if isinstance(value, np.generic) else value for value in values]
    if not listed:
        raise InvalidArgumentError(f"{name} has no values")
    return listed
