"""One scenario replicated: independently seeded runs, so that every estimate has an interval that means something.

Rules
-----
A replication's draws are keyed by the seed and its number; under common random numbers that is all, so two scenarios
meet the same luck and differ by what differs between them. Without, the scenario is part of the key. Fewer than 10
replications are refused: Student's interval is then mostly the quantile of its own small sample.

Theory of operation
-------------------
Sequential stopping looks after 10 replications and then after as many more as the spread so far asks for, at most twice
as many as before. It stops at a relative half-width of w / (1 + w), which bounds the error relative to the *true* value
by w (Law, Simulation Modeling and Analysis, 5th ed., 9.4.1). Few looks keep the interval near its nominal coverage,
which looking after every replication would cost. Where it looks depends on the samples alone, not on the executor.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.streams import check_seed
from mktsim.study.jobs import Job, Submits, check_executor, completed
from mktsim.study.provenance import program_versions
from mktsim.study.replication import (
    Engine,
    _check,
    check_engine,
    check_statistic,
    requests_are_independent,
    starts_steady,
)
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import (
    Interval,
    estimate_statistic,
    observations_for_section,
    probability_of,
    replication_interval,
    samples_for_quantile,
)

#: Fewer give no interval worth its name.
LEAST_REPLICATIONS: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Replications:
    """What the replications of one scenario gave.

    Attributes
    ----------
    scenario : Scenario
    seed : int
    engine : "event" or "vectorised"
    sojourn_time_ms : ndarray of float64, shape (replications, requests)
    common_random_numbers : bool
        Whether the draws are those of every other scenario of this seed.
    versions : mapping of str to str

    Examples
    --------
    >>> found = replicate(Scenario(vendors=100, preset="same-zone"), replications=10, requests=50, seed=1)
    >>> found.sojourn_time_ms.shape, found.values("p50").shape
    ((10, 50), (10,))
    >>> mean = found.estimate("mean")
    >>> mean.n, mean.estimate == float(found.values("mean").mean())
    (10, True)
    """

    scenario: Scenario
    seed: int
    engine: str
    sojourn_time_ms: NDArray[np.float64]
    common_random_numbers: bool = True
    versions: Any = field(default_factory=program_versions)

    def __len__(self) -> int:
        return len(self.sojourn_time_ms)

    def estimate(self, statistic: str = "mean", *, confidence: float = 0.95) -> Interval:
        """Estimate ``mean``, ``p50``, ``p99``, ... of the sojourn time in ms.

        Raises
        ------
        InvalidArgumentError
            If there are too few requests; the message names the number needed.
        """
        independent = requests_are_independent(self.scenario)
        return estimate_statistic(self.sojourn_time_ms, statistic, independent=independent, confidence=confidence)

    def values(self, statistic: str = "mean") -> NDArray[np.float64]:
        """Return the statistic of each replication, in ms."""
        return values_of(self.sojourn_time_ms, statistic)

    def summary(self) -> pd.DataFrame:
        """Tabulate mean, p50, p90, p99 and p99.9 in ms, as far as there are requests enough."""
        rows = []
        for statistic in ("mean", "p50", "p90", "p99", "p99.9"):
            try:
                interval = self.estimate(statistic)
            except InvalidArgumentError:
                continue
            rows.append((statistic, interval.estimate, interval.low, interval.high, interval.n))
        return pd.DataFrame(rows, columns=["statistic", "estimate_ms", "low_ms", "high_ms", "n"])

    def __repr__(self) -> str:
        count, requests = self.sojourn_time_ms.shape
        return (
            f"<Replications {count} of {requests} requests over {self.scenario.vendors:,} vendors, {self.engine} "
            f"engine, seed {self.seed}: mean {self.estimate()} ms>"
        )

    def _repr_html_(self) -> str:
        count, requests = self.sojourn_time_ms.shape
        caption = (
            f"simulated ({self.engine} engine), {self.scenario.vendors:,} vendors, preset {self.scenario.preset}, "
            f"{count} replications of {requests} requests, seed {self.seed}; 95 % intervals"
        )
        table: str = self.summary().to_html(index=False, float_format=lambda x: f"{x:.4g}")
        return f"<div>{html.escape(caption)}</div>{table}"


def replicate(
    scenario: Scenario,
    *,
    replications: int = LEAST_REPLICATIONS,
    until_relative_half_width: float | None = None,
    statistic: str = "mean",
    seed: int,
    common_random_numbers: bool = True,
    requests: int = 100,
    max_replications: int = 10_000,
    engine: Engine = "auto",
    executor: Submits | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> Replications:
    """Simulate a scenario several times, independently: so many times, or until a statistic is known well enough.

    Parameters
    ----------
    scenario : Scenario
    replications : int
        How many, at least 10; with `until_relative_half_width` the first look.
    until_relative_half_width : float, optional
        Go on until the interval of `statistic` is known to this share of the true value.
    statistic : str
        ``mean``, ``p50``, ``p99``, ...: what the stopping rule looks at.
    seed : int
        Decides every draw.
    common_random_numbers : bool
        Whether replication r of every scenario draws the same; False makes scenarios independent.
    requests : int
        In each replication.
    max_replications : int
        Where sequential stopping gives up.
    engine, executor, cache, progress
        See :func:`~mktsim.study.sweeps.sweep`.

    Raises
    ------
    InvalidArgumentError
        Before any work, if an argument is out of range.
    SimulationError
        If `max_replications` do not reach the width; the message says how far they came.

    Warns
    -----
    UndercoverageWarning
        If the interval of the mean is likely to cover less than it says.

    Examples
    --------
    >>> scenario = Scenario(vendors=10, preset="cloudflare-2026")
    >>> len(replicate(scenario, seed=1))
    10
    >>> known = replicate(scenario, seed=1, until_relative_half_width=0.01)
    >>> len(known) > 10, known.estimate().relative_half_width < 0.01
    (True, True)
    """
    found = replicate_quietly(
        scenario, replications=replications, until_relative_half_width=until_relative_half_width, statistic=statistic,
        seed=seed, common_random_numbers=common_random_numbers, requests=requests, max_replications=max_replications,
        engine=engine, executor=executor, cache=cache, progress=progress,
    )  # fmt: skip
    if statistic == "mean":
        # For its warning.
        replication_interval(found.sojourn_time_ms, is_steady=starts_steady(scenario), stacklevel=3)
    return found


def replicate_quietly(
    scenario: Scenario,
    *,
    replications: int,
    until_relative_half_width: float | None = None,
    statistic: str,
    seed: int,
    common_random_numbers: bool,
    requests: int,
    max_replications: int = 10_000,
    engine: Engine,
    executor: Submits | None,
    cache: str | Path | None,
    progress: bool = False,
) -> Replications:
    """Do what :func:`replicate` does, for those who judge the samples in another way: without its warning."""
    _check(scenario, requests, engine)
    check_engine(scenario, engine)
    seed = check_seed(seed)
    check_executor(executor, cache)
    check_replications(replications)
    if not isinstance(common_random_numbers, bool):
        raise InvalidArgumentError(f"common_random_numbers must be True or False, not {common_random_numbers!r:.80}")
    p = probability_of(statistic)
    width = until_relative_half_width
    if width is None:
        check_statistic(scenario, statistic, replications=replications, requests=requests)
        max_replications = replications
    elif not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < 1:
        raise InvalidArgumentError(f"until_relative_half_width must be inside (0, 1), not {width!r:.80}")
    elif not isinstance(max_replications, int) or max_replications < replications:
        raise InvalidArgumentError(f"max_replications must be at least {replications}, not {max_replications!r:.80}")
    elif p is not None and requests_are_independent(scenario):
        replications = max(replications, -(-samples_for_quantile(p) // requests))
    elif p is not None and requests < observations_for_section(p):
        check_statistic(scenario, statistic, replications=replications, requests=requests)
    if replications > max_replications:
        raise InvalidArgumentError(
            f"{statistic} needs {replications:,} replications of {requests:,} requests, above max_replications = "
            f"{max_replications:,}"
        )
    independent = requests_are_independent(scenario)
    parts: list[NDArray[np.float64]] = []
    engine_ran = ""
    with tqdm(desc="replicate", unit="replication", disable=not progress) as bar:
        while True:
            start = len(parts)
            jobs = [Job(scenario, seed, r, requests, engine, common_random_numbers) for r in range(start, replications)]
            parts += [np.empty(0)] * len(jobs)
            for place, (name, times_ms) in completed(jobs, executor=executor, cache=cache):
                parts[start + place], engine_ran = times_ms, name
                bar.update()
            samples = np.stack(parts)
            if width is None:
                break
            interval = estimate_statistic(samples, statistic, independent=independent)
            if interval.relative_half_width <= width / (1 + width):
                break
            if replications >= max_replications:
                raise SimulationError(
                    f"after {replications:,} replications of {requests:,} requests the {statistic} is known to "
                    f"{interval.relative_half_width:.2%}, not {width / (1 + width):.2%}; raise max_replications or "
                    "requests, or ask for less"
                )
            asked = replications * (interval.relative_half_width * (1 + width) / width) ** 2
            replications = min(max_replications, 2 * replications, max(replications + 1, int(asked) + 1))
    return Replications(scenario, seed, engine_ran, samples, common_random_numbers)


def check_replications(replications: int) -> None:
    """Refuse what is no whole number of at least 10."""
    if not isinstance(replications, int) or isinstance(replications, bool) or replications < LEAST_REPLICATIONS:
        raise InvalidArgumentError(
            f"replications must be a whole number of at least {LEAST_REPLICATIONS}, not {replications!r:.80}"
        )


def check_values(statistic: str, *, requests: int) -> None:
    """Check, before any work, that each replication by itself bears a statistic.

    Raises
    ------
    InvalidArgumentError
        If a replication has too few requests; the message names the number needed.

    Examples
    --------
    >>> check_values("p99", requests=100)
    Traceback (most recent call last):
    mktsim.errors.InvalidArgumentError: p99 of each replication needs 299 requests in it, not 100; raise requests
    """
    p = probability_of(statistic)
    needed = 1 if p is None else samples_for_quantile(p)
    if requests < needed:
        raise InvalidArgumentError(
            f"{statistic} of each replication needs {needed:,} requests in it, not {requests:,}; raise requests"
        )


def values_of(samples: NDArray[np.float64], statistic: str) -> NDArray[np.float64]:
    """Return the statistic of each replication; a quantile needs so many requests that it has an interval in each.

    Raises
    ------
    InvalidArgumentError
        If a replication has too few requests; the message names the number needed.
    """
    p = probability_of(statistic)
    if p is None:
        return np.asarray(samples.mean(axis=1), float)
    check_values(statistic, requests=samples.shape[1])
    return np.asarray(np.quantile(samples, p, axis=1), float)
