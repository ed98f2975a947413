"""Many scenarios, each replicated: a tidy table with an interval in every row.

Replication r of every scenario draws from the same keyed family (common random numbers), so differences between rows
are differences between scenarios. Its key depends on the seed and r alone, never on the order or the process in which
it runs: an executor changes the wall time and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, as_completed
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams
from mktsim.study.replication import Engine, _check, run
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import mean_interval, pooled, quantile_interval, samples_for_quantile


def sweep(
    scenario: Scenario,
    *,
    replications: int,
    seed: int,
    executor: Executor | None = None,
    requests: int = 100,
    engine: Engine = "auto",
    quantiles: Sequence[float] = (0.5, 0.99),
    progress: bool = True,
    **axes: Iterable[Any],
) -> pd.DataFrame:
    """Simulate every combination of the axes' values, `replications` times each.

    Parameters
    ----------
    scenario : Scenario
        What the axes do not name.
    replications : int
        At least 2; 10 or more for an honest interval of a mean.
    seed : int
        Decides every draw.
    executor : concurrent.futures.Executor, optional
        Runs the replications, e.g. a ProcessPoolExecutor or a Dask client's; the result does not depend on it.
    requests : int
        In each replication.
    engine : "auto", "event" or "vectorised"
        See :func:`~mktsim.study.replication.simulate`.
    quantiles : sequence of float
        Estimated from the requests of all replications together, which are independent.
    progress : bool
        Show a progress bar.
    **axes : iterable
        Values of fields of :class:`~mktsim.study.scenario.Scenario`, by name.

    Returns
    -------
    DataFrame
        One row a scenario, metric and statistic: ``scenario`` (its number), one column an axis, ``metric``
        (``sojourn_time_ms``), ``statistic`` (``mean``, ``p50``, ...), ``estimate``, ``low``, ``high`` (95 %), ``n``
        (replications behind a mean, requests behind a quantile), ``replications``, ``requests``, ``seed``, ``engine``,
        ``preset_date``.

    Raises
    ------
    InvalidArgumentError
        Before any work, if an axis is no field, a value is out of range, or the samples cannot bear a quantile.
    """
    if not isinstance(replications, int) or isinstance(replications, bool) or replications < 2:
        raise InvalidArgumentError(f"replications must be a whole number of at least 2, not {replications!r:.80}")
    _check(scenario, requests, engine)
    Streams(seed)
    for p in quantiles:
        needed = samples_for_quantile(p)
        if replications * requests < needed:
            raise InvalidArgumentError(
                f"a {p:g} quantile needs {needed:,} requests, not {replications} replications of {requests}; "
                "raise one, or leave it out of quantiles"
            )
    grid = {name: _axis(name, values) for name, values in axes.items()}
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    scenarios = [scenario.replace(**point) for point in points]

    jobs = [(i, r) for i in range(len(scenarios)) for r in range(replications)]
    results: dict[tuple[int, int], tuple[str, NDArray[np.float64]]] = {}
    with tqdm(total=len(jobs), desc="sweep", unit="replication", disable=not progress) as bar:
        if executor is None:
            for i, r in jobs:
                results[i, r] = replicate_once(scenarios[i], seed, r, requests, engine)
                bar.update()
        else:
            pending: dict[Future[Any], tuple[int, int]] = {
                executor.submit(replicate_once, scenarios[i], seed, r, requests, engine): (i, r) for i, r in jobs
            }
            try:
                for done in as_completed(pending):
                    results[pending[done]] = done.result()
                    bar.update()
            finally:
                for future in pending:
                    future.cancel()

    rows: list[dict[str, Any]] = []
    for i, (point, one) in enumerate(zip(points, scenarios, strict=True)):
        samples = [results[i, r][1] for r in range(replications)]
        estimates = [("mean", mean_interval([part.mean() for part in samples]))]
        estimates += [(f"p{100 * p:.10g}", quantile_interval(pooled(samples), p)) for p in quantiles]
        for statistic, interval in estimates:
            rows.append(
                {
                    "scenario": i,
                    **point,
                    "metric": "sojourn_time_ms",
                    "statistic": statistic,
                    "estimate": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "n": interval.n,
                    "replications": replications,
                    "requests": requests,
                    "seed": seed,
                    "engine": results[i, 0][0],
                    "preset_date": one.load_preset().date,
                }
            )
    return pd.DataFrame(rows)


def _axis(name: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidArgumentError(f"axis {name} needs an iterable of values, not {values!r:.80}")
    # Numbers of numpy become Python's, which a Scenario takes.
    listed = [value.item() if isinstance(value, np.generic) else value for value in values]
    if not listed:
        raise InvalidArgumentError(f"axis {name} has no values")
    return listed


def replicate_once(
    scenario: Scenario, seed: int, replication: int, requests: int, engine: Engine
) -> tuple[str, NDArray[np.float64]]:
    """Run one replication in its own keyed family; return the engine and the sojourn times in ms."""
    name, times_ms, _ = run(scenario, Streams(seed).child(f"replication {replication}"), requests, engine=engine)
    return name, times_ms
