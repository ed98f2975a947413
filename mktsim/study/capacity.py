"""How much load an installation bears: sojourn time against utilisation, and the rate at which a limit is reached.

Rules
-----
Every number is over replications, each with its own arrivals and draws, which all rates share: a replication's requests
come in the same pattern, only faster. The first requests of each, before the queues have filled, are dropped: in a
curve as many as MSER-5 finds for the average of all replications.

Theory of operation
-------------------
Where requests come closer together, no request of a first-come-first-served system ends sooner relative to its own
arrival; so under common random numbers each replication's statistic only grows with the rate, and the rate at which it
reaches the limit is found by bisection. Each replication has its own such rate; their mean has Student's interval.
Worked example, M/M/1 of service rate 1 a ms and a limit of 5 ms for the mean: 1 - 1/5 = 0.8 a ms.

What this does not do
---------------------
A run is finite, so beyond the capacity its sojourn time is long, not infinite. Rates are those of requests, each of
which asks all vendors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.streams import Streams, check_seed
from mktsim.study.arrivals import Arrivals, check_arrivals
from mktsim.study.jobs import Submits, check_executor, computed
from mktsim.study.load import Drawn, LoadEngine, draw_calls, run_load, uncovered
from mktsim.study.points import Point, tidy
from mktsim.study.replication import _check
from mktsim.study.replications import LEAST_REPLICATIONS, check_replications
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import (
    Interval,
    mean_interval,
    mser5,
    observations_for_section,
    probability_of,
    sectioned_quantile_interval,
)

_MAX_STEPS: Final = 60


@dataclass(frozen=True, slots=True)
class _Run:
    """One replication at one rate, or in search of one."""

    scenario: Scenario
    arrivals: Arrivals
    seed: int
    number: int
    requests: int
    engine: LoadEngine
    limit_ms: float = math.inf
    statistic: str = "mean"
    warm_up: int = 0

    @property
    def streams(self) -> Streams:
        return Streams(self.seed).child(f"replication {self.number}")

    def at(self, factor: float, drawn: Drawn | None = None) -> tuple[NDArray[np.float64], float]:
        found = run_load(
            self.scenario, self.arrivals.scaled(factor), self.streams, requests=self.requests, engine=self.engine,
            drawn=drawn,
        )  # fmt: skip
        return found.sojourn_time_ms, found.utilisation


def _simulate(task: tuple[_Run, float]) -> tuple[NDArray[np.float64], float]:
    run, factor = task
    return run.at(factor)


def _checked(
    scenario: Scenario, arrivals: Arrivals, statistics: Sequence[str], requests: int, replications: int, seed: int,
    executor: Submits | None,
) -> None:  # fmt: skip
    _check(scenario, requests, "auto")
    check_arrivals(arrivals)
    check_replications(replications)
    check_executor(executor, None)
    check_seed(seed)
    if scenario.width is not None:
        raise InvalidArgumentError(f"concurrent requests are not covered with fanout={scenario.fanout}; use 'flat'")
    for statistic in statistics:
        p = probability_of(statistic)
        # Half of a run may go as warm-up.
        needed = max(20, 2 * observations_for_section(p) if p is not None else 20)
        if requests < needed:
            raise InvalidArgumentError(
                f"{statistic} needs at least {needed:,} requests a replication, not {requests:,}"
            )


def load_curve(
    scenario: Scenario,
    arrivals: Arrivals,
    rates_per_s: Sequence[float],
    *,
    statistics: Sequence[str] = ("mean", "p99"),
    requests: int = 2000,
    replications: int = LEAST_REPLICATIONS,
    seed: int,
    engine: LoadEngine = "auto",
    executor: Submits | None = None,
) -> pd.DataFrame:
    """Simulate sojourn time against load.

    Parameters
    ----------
    scenario : Scenario
        Flat.
    arrivals : Arrivals
        The pattern; it is sped up or slowed down to each rate.
    rates_per_s : sequence of float
        Mean rates of requests.
    statistics : sequence of str
        ``mean``, ``p99``, ...
    requests : int
        In each replication, warm-up included.
    replications, seed, executor
        See :func:`~mktsim.study.replications.replicate`.
    engine
        See :func:`~mktsim.study.load.simulate_load`.

    Returns
    -------
    DataFrame
        See :class:`~mktsim.study.points.Point`; ``x`` is the rate a second, and the statistic ``utilisation`` has its
        own rows.

    Examples
    --------
    >>> from mktsim.sim import Exponential, World
    >>> from mktsim.study.arrivals import Poisson
    >>> queue = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    >>> frame = load_curve(queue, Poisson(1.0), [100, 500], statistics=("mean",), requests=500, seed=1)
    >>> frame[frame["statistic"] == "mean"]["estimate"].is_monotonic_increasing
    True
    """
    _checked(scenario, arrivals, statistics, requests, replications, seed, executor)
    for rate in rates_per_s:
        if not isinstance(rate, int | float | np.floating | np.integer) or not 0 < rate < math.inf:
            raise InvalidArgumentError(f"a rate must be positive and finite, not {rate!r:.80}")
    run = _Run(scenario, arrivals, seed, 0, requests, engine)
    tasks = [
        (_Run(scenario, arrivals, seed, r, requests, engine), float(rate) / arrivals.mean_rate_per_s)
        for rate in rates_per_s
        for r in range(replications)
    ]
    results = dict(computed(_simulate, tasks, executor=executor))
    points = []
    for i, rate in enumerate(rates_per_s):
        mine = [results[i * replications + r] for r in range(replications)]
        samples = np.stack([times for times, _ in mine])
        cut = mser5(samples.mean(axis=0))
        kept = samples[:, cut:]
        found = {"utilisation": (mean_interval([used for _, used in mine]), "share")}
        for statistic in statistics:
            p = probability_of(statistic)
            means = kept.mean(axis=1)
            found[statistic] = (mean_interval(means) if p is None else sectioned_quantile_interval(kept, p)), "ms"
        points += [
            Point.of(
                interval, study="load", series=type(arrivals).__name__, kind="simulated", axis="requests a second",
                x=float(rate), group=f"warm-up {cut}", statistic=statistic, unit=unit, seed=seed, engine=run.engine,
                preset=scenario.preset,
            )
            for statistic, (interval, unit) in found.items()
        ]  # fmt: skip
    return tidy(points)


def saturation_point(
    scenario: Scenario,
    arrivals: Arrivals,
    *,
    limit_ms: float,
    statistic: str = "p99",
    requests: int = 2000,
    replications: int = LEAST_REPLICATIONS,
    warm_up: float = 0.2,
    tolerance: float = 1e-3,
    seed: int,
    engine: LoadEngine = "auto",
    executor: Submits | None = None,
) -> Interval:
    """Find the rate of requests at which a statistic of the sojourn time reaches a limit.

    Parameters
    ----------
    limit_ms : float
        What the statistic may be at most.
    statistic : str
        ``mean`` or a quantile.
    warm_up : float
        Share of each run that is dropped at its begin.
    tolerance : float
        Relative, of the bisection; far below the interval.

    The others are those of :func:`load_curve`.

    Returns
    -------
    Interval
        Requests a second, over replications.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range.
    SimulationError
        If even a lone request exceeds the limit, or no rate reaches it.

    Examples
    --------
    >>> from mktsim.sim import Exponential, World
    >>> from mktsim.study.arrivals import Poisson
    >>> queue = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    >>> found = saturation_point(queue, Poisson(1.0), limit_ms=2.0, statistic="mean", requests=1000, seed=1)
    >>> 500 in found  # M/M/1: 1 / (1 - 0.5) = 2 ms
    True
    """
    _checked(scenario, arrivals, [statistic], requests, replications, seed, executor)
    for name, value in (("limit_ms", limit_ms), ("tolerance", tolerance)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise InvalidArgumentError(f"{name} must be positive and finite, not {value!r:.80}")
    if not isinstance(warm_up, int | float) or not 0 <= warm_up <= 0.5:
        raise InvalidArgumentError(f"warm_up must be a share from 0 to 0.5, not {warm_up!r:.80}")
    dropped = int(warm_up * requests)
    tasks = [
        (_Run(scenario, arrivals, seed, r, requests, engine, float(limit_ms), statistic, dropped), tolerance)
        for r in range(replications)
    ]
    rates = dict(computed(_saturation, tasks, executor=executor))
    return mean_interval([rates[r] * arrivals.mean_rate_per_s for r in range(replications)])


def _saturation(task: tuple[_Run, float]) -> float:
    """Bisect one replication's factor, in logarithms."""
    run, tolerance = task
    p = probability_of(run.statistic)
    # What requests take by themselves does not depend on the rate: drawn once, and not for each step.
    arrays = run.engine in ("auto", "vectorised") and uncovered(run.scenario) is None
    drawn = draw_calls(run.scenario, run.streams, run.requests) if arrays else None

    def exceeds(factor: float) -> bool:
        times, _ = run.at(factor, drawn)
        kept = times[run.warm_up :]
        return float(kept.mean() if p is None else np.quantile(kept, p)) > run.limit_ms

    # From one request a minute, which meets nobody, up to where the limit is passed.
    low = 1 / 60 / run.arrivals.mean_rate_per_s
    if exceeds(low):
        raise SimulationError(
            f"even a lone request takes longer than {run.limit_ms:g} ms ({run.statistic}): raise the limit"
        )
    high = max(low, 1 / run.arrivals.mean_rate_per_s)
    for _ in range(_MAX_STEPS):
        if exceeds(high):
            break
        low, high = high, 4 * high
    else:
        raise SimulationError(f"no rate reaches {run.limit_ms:g} ms ({run.statistic}): nothing queues in this world")
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    return math.sqrt(low * high)
