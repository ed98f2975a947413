"""How much load an installation bears: sojourn time against utilisation, and the rate at which a limit is reached.

Rules
-----
Every number is over replications, each with its own arrivals and draws, which all rates share: a replication's requests
come in the same pattern, only faster. The first requests of each, before the queues have filled, are dropped: in a
curve as many as MSER-5 finds for the average of all replications. Nothing is said of a steady state that was not seen:
where the machines get more work than they can do, or a run is too short to tell, a curve has no interval and warns, and
a saturation point is refused.

Theory of operation
-------------------
Where requests come closer together, no request of a first-come-first-served system ends sooner relative to its own
arrival; so under common random numbers each replication's excess only grows with the rate: its mean less the limit, or
its share of requests beyond the limit less the share that may be. The rate sought is where the mean excess over all
replications is 0, and its interval holds the rates at which Student's interval of the excess holds 0. The mean of the
replications' own rates would be too high, for the sojourn time is anything but linear in the rate: 1.3 % for M/M/1 at
0.9 by runs of 2,000 requests, 3 % at 0.95. Worked example, M/M/1 of service rate 1 a ms and a limit of 5 ms for the
mean: 1 - 1/5 = 0.8 a ms.

A run of any length reaches any limit at some rate, beyond the capacity if it is short. So the rate found is tried: the
machines must have less work than they can do, beyond doubt; a run must hold several times what a request leaves to
later ones (`statistics.memory`); and its second half must not take longer than its first.

What this does not do
---------------------
It does not lengthen runs by itself: what a limit near the capacity needs grows with the square of the limit. Rates are
those of requests, each of which asks all vendors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError, SimulationError, UndercoverageWarning
from mktsim.sim.world import HORIZON_S
from mktsim.streams import Streams, check_seed
from mktsim.study.arrivals import Arrivals, check_arrivals
from mktsim.study.jobs import Submits, check_executor, computed
from mktsim.study.load import Drawn, LoadEngine, LoadResult, check_load_engine, draw_calls, run_load, uncovered
from mktsim.study.points import Point, tidy
from mktsim.study.replication import _check
from mktsim.study.replications import LEAST_REPLICATIONS, check_replications
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import (
    Interval,
    mean_interval,
    memory,
    mser5,
    observations_for_section,
    probability_of,
    sectioned_quantile_interval,
    undercoverage,
    warm_up_is_known,
)

_MAX_STEPS: Final = 60
#: Rates at which all replications are tried in one round of the search for one of its three numbers.
_AT_ONCE: Final = 7
#: So many times what a request leaves to later ones a run must hold, or its mean is nearly that of one request.
_LEAST_MEMORIES: Final = 4
#: Calls whose draws are kept between rounds, over all replications; more are drawn anew.
_KEPT_CALLS: Final = 5_000_000


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
    drawn: Drawn | None = None

    @property
    def streams(self) -> Streams:
        return Streams(self.seed).child(f"replication {self.number}")

    def at(self, factor: float) -> LoadResult:
        return run_load(
            self.scenario, self.arrivals.scaled(factor), self.streams, requests=self.requests, engine=self.engine,
            drawn=self.drawn,
        )  # fmt: skip

    def with_draws(self) -> _Run:
        """Draw what requests take by themselves, which does not depend on the rate: once, and not for each step."""
        is_array = self.engine in ("auto", "vectorised") and uncovered(self.scenario) is None
        if self.drawn is not None or not is_array:
            return self
        return replace(self, drawn=draw_calls(self.scenario, self.streams, self.requests))

    def excess(self, factor: float) -> float:
        """By how much the limit is passed: ms of the mean, or the share of requests beyond it less what may be."""
        kept = self.at(factor).sojourn_time_ms[self.warm_up :]
        p = probability_of(self.statistic)
        return float(kept.mean() - self.limit_ms if p is None else (kept > self.limit_ms).mean() - (1 - p))


def _simulate(task: tuple[_Run, float]) -> tuple[NDArray[np.float64], float, str]:
    run, factor = task
    found = run.at(factor)
    return found.sojourn_time_ms, found.utilisation, found.engine


def _excesses(task: tuple[_Run, tuple[float, ...]]) -> list[float]:
    run, factors = task[0].with_draws(), task[1]
    return [run.excess(factor) for factor in factors]


def _checked(
    scenario: Scenario, arrivals: Arrivals, statistics: Sequence[str], requests: int, replications: int, seed: int,
    executor: Submits | None, engine: str,
) -> int:  # fmt: skip
    """Check arguments whole and return the seed as a Python integer."""
    _check(scenario, requests, "auto")
    check_arrivals(arrivals)
    check_replications(replications)
    check_executor(executor, None)
    seed = check_seed(seed)
    check_load_engine(scenario, engine, requests=requests)
    if isinstance(statistics, str) or not isinstance(statistics, Sequence) or not statistics:
        raise InvalidArgumentError(f"statistics names one or several, as ('mean', 'p99'), not {statistics!r:.80}")
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
    return seed


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
        own rows. Where a rate has no steady state, or none within reach of the run, ``low`` and ``high`` are NaN.

    Raises
    ------
    InvalidArgumentError
        Before any work, if an argument is out of range or the engine does not cover the scenario.

    Warns
    -----
    UndercoverageWarning
        Once for the whole curve, with the rates, if there is no steady state or intervals are likely to cover less than
        they say.

    Examples
    --------
    >>> from mktsim.sim import Exponential, World
    >>> from mktsim.study.arrivals import Poisson
    >>> queue = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    >>> frame = load_curve(queue, Poisson(1.0), [100, 500], statistics=("mean",), requests=500, seed=1)
    >>> frame[frame["statistic"] == "mean"]["estimate"].is_monotonic_increasing
    True
    """
    seed = _checked(scenario, arrivals, statistics, requests, replications, seed, executor, engine)
    rates = _listed(rates_per_s)
    tasks = [
        (_Run(scenario, arrivals, seed, r, requests, engine), rate / arrivals.mean_rate_per_s)
        for rate in rates
        for r in range(replications)
    ]
    results = dict(computed(_simulate, tasks, executor=executor))
    points: list[Point] = []
    doubts: dict[float, str] = {}
    for i, rate in enumerate(rates):
        mine = [results[i * replications + r] for r in range(replications)]
        samples = np.stack([times for times, _, _ in mine])
        average = samples.mean(axis=0)
        cut = mser5(average)
        kept = samples[:, cut:]
        used = mean_interval([share for _, share, _ in mine])
        unsteady = _unsteady(kept, used)
        if unsteady is None and not warm_up_is_known(average):
            unsteady = f"MSER-5 finds no end of the warm-up among {requests // 2:,} first requests: take longer runs"
        found = {"utilisation": (used, "share")}
        for statistic in statistics:
            p = probability_of(statistic)
            interval = mean_interval(kept.mean(axis=1)) if p is None else sectioned_quantile_interval(kept, p)
            if unsteady is None:
                doubt = undercoverage(_judged(kept, p, interval.estimate))
                if doubt is not None:
                    doubts.setdefault(rate, f"{statistic}: {doubt}")
            else:
                doubts.setdefault(rate, unsteady)
                interval = replace(interval, low=math.nan, high=math.nan)
            found[statistic] = interval, "ms"
        points += [
            Point.of(
                interval, study="load", series=type(arrivals).__name__, kind="simulated", axis="requests a second",
                x=rate, group=f"warm-up {cut}", statistic=statistic, unit=unit, seed=seed, engine=mine[0][2],
                preset=scenario.preset,
            )
            for statistic, (interval, unit) in found.items()
        ]  # fmt: skip
    if doubts:
        listed = "; ".join(f"at {rate:g} a second {doubt}" for rate, doubt in doubts.items())
        said = f"{replications} replications of {requests:,} requests cover less than they say, or nothing: {listed}"
        warnings.warn(said, UndercoverageWarning, stacklevel=2)
    return tidy(points)


def _listed(rates_per_s: Any) -> list[float]:
    if isinstance(rates_per_s, str) or not isinstance(rates_per_s, Iterable):
        raise InvalidArgumentError(f"rates_per_s needs rates, one or several, not {rates_per_s!r:.80}")
    rates = list(rates_per_s)
    if not rates:
        raise InvalidArgumentError("rates_per_s has no rates")
    for rate in rates:
        is_number = isinstance(rate, int | float | np.floating | np.integer) and not isinstance(rate, bool)
        if not is_number or not 0 < rate < math.inf:
            raise InvalidArgumentError(f"a rate must be positive and finite, not {rate!r:.80}")
    return [float(rate) for rate in rates]


def _judged(kept: NDArray[np.float64], p: float | None, value_ms: float) -> NDArray[np.float64]:
    """Return the observations whose mean is what an interval is of: times, or whether they are beyond a quantile."""
    return kept if p is None else (kept > value_ms).astype(float)


def _unsteady(kept: NDArray[np.float64], utilisation: Interval) -> str | None:
    """Say why runs have no steady state, or are too short to show one; or None."""
    if utilisation.high >= 1:
        return (
            f"the machines have {utilisation} of the work that they can do: there is no steady state, or these runs "
            "cannot tell"
        )
    length = kept.shape[1]
    early, late = kept[:, : length // 2].mean(axis=1), kept[:, length // 2 :].mean(axis=1)
    growth = mean_interval(late - early, confidence=0.999)
    if growth.low > 0.1 * early.mean():
        return (
            f"the second half of the runs takes {late.mean():.4g} ms, longer than the first with {early.mean():.4g}: "
            "queues grow without end, or the runs are too short to see it"
        )
    remembered = memory(kept)
    if remembered > length / _LEAST_MEMORIES and remembered > _LEAST_MEMORIES:
        return (
            f"a request is remembered over {remembered:,.0f} later ones and runs hold {length:,}: take longer ones, of "
            f"{int(25 * remembered):,} requests or more"
        )
    return None


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
        Requests a second, from so many replications.

    Raises
    ------
    InvalidArgumentError
        Before any work, if an argument is out of range or the engine does not cover the scenario.
    SimulationError
        If even a lone request exceeds the limit, or no rate reaches it; if the rate that reaches it in runs so short
        has no steady state, or none that they could show. The message says what would.

    Warns
    -----
    UndercoverageWarning
        If the interval is likely to cover less than it says.

    Examples
    --------
    >>> from mktsim.sim import Exponential, World
    >>> from mktsim.study.arrivals import Poisson
    >>> queue = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    >>> found = saturation_point(queue, Poisson(1.0), limit_ms=2.0, statistic="mean", requests=1000, seed=1)
    >>> 500 in found  # M/M/1: 1 / (1 - 0.5) = 2 ms
    True
    """
    seed = _checked(scenario, arrivals, [statistic], requests, replications, seed, executor, engine)
    for name, value in (("limit_ms", limit_ms), ("tolerance", tolerance)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise InvalidArgumentError(f"{name} must be positive and finite, not {value!r:.80}")
    if not isinstance(warm_up, int | float) or isinstance(warm_up, bool) or not 0 <= warm_up <= 0.5:
        raise InvalidArgumentError(f"warm_up must be a share from 0 to 0.5, not {warm_up!r:.80}")
    dropped = int(warm_up * requests)
    runs = [
        _Run(scenario, arrivals, seed, r, requests, engine, float(limit_ms), statistic, dropped)
        for r in range(replications)
    ]
    if executor is None and replications * requests * scenario.vendors <= _KEPT_CALLS:
        runs = [run.with_draws() for run in runs]
    factors = _reached(runs, float(tolerance), executor)
    tried = dict(computed(_simulate, [(run, factors[0]) for run in runs], executor=executor))
    kept = np.stack([tried[r][0][dropped:] for r in range(replications)])
    rates = [factor * arrivals.mean_rate_per_s for factor in factors]
    p = probability_of(statistic)
    reason = _unsteady(kept, mean_interval([tried[r][1] for r in range(replications)]))
    if reason is not None:
        raise SimulationError(
            f"a {statistic} of {limit_ms:g} ms is reached at {rates[0]:.4g} requests a second by runs of {requests:,}, "
            f"but {reason}; raise requests, or ask for a lower limit"
        )
    doubt = undercoverage(_judged(kept, p, float(limit_ms)))
    if doubt is not None:
        said = f"{replications} runs of {requests:,} requests at {rates[0]:.4g} a second: {doubt}"
        warnings.warn(said, UndercoverageWarning, stacklevel=2)
    return Interval(rates[0], rates[1], rates[2], replications)


def _reached(runs: Sequence[_Run], tolerance: float, executor: Submits | None) -> tuple[float, float, float]:
    """Return the factors at which the excess is 0: its mean, the upper and the lower end of its interval."""
    known: dict[float, Interval] = {}

    def tried(factors: Iterable[float]) -> None:
        """Run all replications at the factors that are new: each draws its requests once for all of them."""
        new = tuple(sorted(set(factors) - known.keys()))
        rows = dict(computed(_excesses, [(run, new) for run in runs] if new else [], executor=executor))
        known.update((factor, mean_interval([rows[r][i] for r in rows])) for i, factor in enumerate(new))

    # From one request a minute, which meets nobody (more of many, so that simulated time holds them), up to where the
    # limit is passed beyond doubt.
    rate_per_s, limit = runs[0].arrivals.mean_rate_per_s, f"{runs[0].limit_ms:g} ms ({runs[0].statistic})"
    lowest = max(1 / 60, 16 * runs[0].requests / HORIZON_S) / rate_per_s
    tried([lowest])
    if known[lowest].estimate > 0:
        raise SimulationError(f"even a lone request takes longer than {limit}: raise the limit")
    high = max(lowest, 1 / rate_per_s)
    for _ in range(_MAX_STEPS):
        tried([high])
        if known[high].low > 0:
            break
        high *= 4
    else:
        raise SimulationError(f"no rate reaches {limit}: nothing queues in this world")
    ends = [_Search(end, lowest, high) for end in ("estimate", "high", "low")]
    for search in ends:
        search.narrow(known)
    while any(search.high / search.low > 1 + tolerance for search in ends):
        tried(factor for search in ends for factor in search.between(tolerance))
        for search in ends:
            search.narrow(known)
    middle, low, high = (math.sqrt(search.low * search.high) for search in ends)
    return middle, min(low, middle), max(high, middle)


@dataclass(slots=True)
class _Search:
    """Two factors between which one number of the excess's interval passes 0."""

    end: str
    low: float
    high: float

    def between(self, tolerance: float) -> list[float]:
        """Return factors that cut the stretch into equal parts, in logarithms; none where it is short enough."""
        if self.high / self.low <= 1 + tolerance:
            return []
        steps = np.linspace(0.0, 1.0, _AT_ONCE + 2)[1:-1]
        return [float(self.low * (self.high / self.low) ** step) for step in steps]

    def narrow(self, known: Mapping[float, Interval]) -> None:
        """Take the first stretch, from below, whose upper end is beyond 0."""
        inside = sorted(factor for factor in known if self.low <= factor <= self.high)
        beyond = [getattr(known[factor], self.end) > 0 for factor in inside]
        first = beyond.index(True) if any(beyond) else len(inside) - 1
        if first:
            self.low, self.high = inside[first - 1], inside[first]
        else:  # Even a lone request is not below the limit beyond doubt.
            self.high = self.low
