"""One scenario simulated: sojourn times with their intervals, and where they come from.

Rules
-----
An interval of one run takes its requests for independent. Where they are not, the run has estimates and no intervals:
:func:`~mktsim.study.replications.replicate` gives those, from runs that share nothing. Requests depend on each other
where one leaves something behind for the next, or where something was drawn once for all of them. Neither shows in the
times of one run: a run in which no vendor stands far away looks like one of a world where none ever does.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.placement import ConsistentHashRing
from mktsim.sim.conditions import Geography
from mktsim.sim.operators import Hosts
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sqlite import Value
from mktsim.streams import Streams
from mktsim.study.coordinated import check_databases, check_statement, coordinated_sojourn_times, vendor_ids
from mktsim.study.provenance import program_versions as program_versions
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import (
    Interval,
    mean_interval,
    observations_for_section,
    probability_of,
    quantile_interval,
    samples_for_quantile,
)

Engine = Literal["auto", "event", "vectorised"]
_MAX_REQUESTS: Final = 10_000_000


@dataclass(frozen=True, slots=True, eq=False)
class SimulationResult:
    """What a simulation gave, with all that is needed to repeat it.

    Attributes
    ----------
    scenario : Scenario
    seed : int
    engine : "event" or "vectorised"
        The one that ran.
    preset_date : str
        Of the scenario's preset.
    sojourn_time_ms : ndarray of float64, shape (requests,)
        From the client and back to it, one a request.
    rows : list of tuple, or None
        The query's answer, where the event engine executed it.
    versions : mapping of str to str
        Of the programs that took part.

    Examples
    --------
    A median is known from a few requests, a p99 from 299.

    >>> from mktsim.study import simulate
    >>> result = simulate(Scenario(vendors=100, preset="same-zone"), requests=50, seed=1)
    >>> result.sojourn_time_ms.shape, result.p50.low < result.p50.estimate < result.p50.high
    ((50,), True)
    >>> result.p99
    Traceback (most recent call last):
    mktsim.errors.InvalidArgumentError: a 0.99 quantile with a 0.95 interval needs at least 299 independent...
    >>> result.provenance["seed"], result.provenance["preset"]
    (1, 'same-zone')
    """

    scenario: Scenario
    seed: int
    engine: str
    preset_date: str
    sojourn_time_ms: NDArray[np.float64]
    rows: list[tuple[Value, ...]] | None = None
    versions: Mapping[str, str] = field(default_factory=program_versions)

    def quantile(self, p: float, *, confidence: float = 0.95) -> Interval:
        """Estimate a quantile of the sojourn time in ms, with its order-statistic interval.

        Raises
        ------
        InvalidArgumentError
            If there are too few requests; the message names the number needed. If requests depend on each other, so
            that one run has no interval; the message says how, and what has.
        """
        self._check_independence(f"{100 * p:g} % quantile" if isinstance(p, int | float | np.floating) else "quantile")
        return quantile_interval(self.sojourn_time_ms, p, confidence=confidence)

    @property
    def p50(self) -> Interval:
        """Median sojourn time in ms; see :meth:`quantile`."""
        return self.quantile(0.5)

    @property
    def p99(self) -> Interval:
        """99th percentile of the sojourn time in ms; see :meth:`quantile`. Needs 299 requests."""
        return self.quantile(0.99)

    @property
    def mean(self) -> Interval:
        """Mean sojourn time in ms; needs 2 requests, independent as those of :meth:`quantile`."""
        self._check_independence("mean")
        return mean_interval(self.sojourn_time_ms)

    def _check_independence(self, statistic: str) -> None:
        reason = dependence(self.scenario)
        if reason is not None:
            raise InvalidArgumentError(
                f"one run gives the {statistic} no interval, for its requests depend on each other by {reason}: ask "
                "replicate(scenario, seed=...).estimate(...), or take the estimate alone from sojourn_time_ms"
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """Seed, engine, preset and its date, versions and parameters: what a chart's caption needs."""
        return {
            "seed": self.seed,
            "engine": self.engine,
            "preset": self.scenario.preset,
            "preset_date": self.preset_date,
            "requests": len(self.sojourn_time_ms),
            "versions": dict(self.versions),
            "scenario": self.scenario.to_dict(),
        }

    def summary(self) -> pd.DataFrame:
        """Tabulate mean, p50, p90 and p99 in ms; what has too few requests is NaN and says what it needs.

        Where requests depend on each other, the estimates have no intervals, and the note says where there are some.
        """
        n, reason = len(self.sojourn_time_ms), dependence(self.scenario)
        rows: list[tuple[str, float, float, float, int, str]] = []
        for name, p in (("mean", None), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            needed = 2 if p is None else samples_for_quantile(p)
            if n < needed:
                rows.append((name, np.nan, np.nan, np.nan, n, f"needs {needed} requests"))
            elif reason is not None:
                times = self.sojourn_time_ms
                estimate = float(times.mean() if p is None else np.quantile(times, p))
                rows.append((name, estimate, np.nan, np.nan, n, f"replicate() for an interval: {reason}"))
            else:
                interval = self.mean if p is None else self.quantile(p)
                rows.append((name, interval.estimate, interval.low, interval.high, n, ""))
        return pd.DataFrame(rows, columns=["statistic", "estimate_ms", "low_ms", "high_ms", "n", "note"])

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a request: its number and its sojourn time in ms."""
        return pd.DataFrame({"request": np.arange(len(self.sojourn_time_ms)), "sojourn_time_ms": self.sojourn_time_ms})

    @property
    def _how(self) -> str:
        return f"{self.engine} engine" + ("" if self.engine == "event" else ", times alone: no SQL ran")

    def __repr__(self) -> str:
        return (
            f"<SimulationResult {len(self.sojourn_time_ms)} requests over {self.scenario.vendors:,} vendors "
            f"({self._how}), seed {self.seed}: median {np.median(self.sojourn_time_ms):.4g} ms>"
        )

    def _repr_html_(self) -> str:
        caption = (
            f"simulated ({self._how}), {self.scenario.vendors:,} vendors, preset {self.scenario.preset} of "
            f"{self.preset_date}, seed {self.seed}"
        )
        table: str = self.summary().to_html(index=False, float_format=lambda x: f"{x:.4g}", na_rep="")
        return f"<div>{html.escape(caption)}</div>{table}"


def simulate(
    scenario: Scenario, *, requests: int, seed: int, engine: Engine = "auto", execute: bool = True
) -> SimulationResult:
    """Simulate requests of one client that sends the next when it has the last answer.

    Parameters
    ----------
    scenario : Scenario
        What is asked, of whom, in which world.
    requests : int
        How many.
    seed : int
        Decides every draw: same seed, same result, in either engine.
    engine : "auto", "event" or "vectorised"
        The event engine runs the real coordinator over real SQLite databases in simulated time and keeps the answer's
        rows; the vectorised one computes the same times, bit for bit, as arrays. "auto" takes the vectorised one
        wherever it covers the scenario.
    execute : bool
        False lets the event engine answer for every vendor with one vendor's partial: right times, no rows.

    Returns
    -------
    SimulationResult

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range or the engine does not cover the scenario.
    QueryError
        If the statement or its parameters are at fault, whichever engine runs.

    Examples
    --------
    >>> result = simulate(Scenario(vendors=100, preset="cloudflare-2026"), requests=400, seed=1)
    >>> 130 < result.p50.estimate < 160
    True
    """
    _check(scenario, requests, engine)
    if not isinstance(execute, bool):
        raise InvalidArgumentError(f"execute must be True or False, not {execute!r:.80}")
    check_engine(scenario, engine, execute=execute)
    streams = Streams(seed)
    name, times_ms, rows = run(scenario, streams, requests, engine=engine, execute=execute)
    return SimulationResult(scenario, streams.seed, name, scenario.load_preset().date, times_ms, rows)


def _check(scenario: Scenario, requests: int, engine: str) -> None:
    if not isinstance(scenario, Scenario):
        raise InvalidArgumentError(f"needs a Scenario, not {scenario!r:.80}")
    if not isinstance(requests, int) or isinstance(requests, bool) or not 1 <= requests <= _MAX_REQUESTS:
        raise InvalidArgumentError(f"requests must be a whole number from 1 to {_MAX_REQUESTS:,}, not {requests!r:.80}")
    if engine not in ("auto", "event", "vectorised"):
        raise InvalidArgumentError(f'engine must be "auto", "event" or "vectorised", not {engine!r:.80}')
    check_statement(scenario)


def place(scenario: Scenario) -> Hosts | None:
    """Return the machine of each vendor by the scenario's ring, or None where each has its own."""
    if scenario.shards is None:
        return None
    ring = ConsistentHashRing([f"s{i:07d}" for i in range(scenario.shards)], virtual_nodes=scenario.virtual_nodes)
    return np.asarray(ring.assign(vendor_ids(scenario.vendors)), np.intp)


#: Stands for any placement on shared machines: whether arrays cover it does not depend on which is where.
_SOMEWHERE: Final[Hosts] = np.zeros(1, np.intp)


def check_engine(scenario: Scenario, engine: str, *, execute: bool = True) -> None:
    """Check, before any work, that an engine can simulate a scenario.

    Raises
    ------
    InvalidArgumentError
        If the arrays do not cover it, or the coordinator would need more databases than fit in memory.

    Examples
    --------
    >>> check_engine(Scenario(vendors=40, shards=4, window=3), "vectorised")
    Traceback (most recent call last):
    mktsim.errors.InvalidArgumentError: the vectorised engine does not cover a window of 3 with shared hosts; \
use engine='event'
    """
    uncovered = scenario.uncovered(None if scenario.shards is None else _SOMEWHERE)
    if engine == "event" or (engine == "auto" and uncovered is not None):
        check_databases(scenario, execute=execute)
    elif uncovered is not None:
        raise InvalidArgumentError(f"the vectorised engine does not cover {uncovered}; use engine='event'")


def run(
    scenario: Scenario, streams: Streams, requests: int, *, engine: Engine, execute: bool = True
) -> tuple[str, NDArray[np.float64], list[tuple[Value, ...]] | None]:
    """Run requests 0 to `requests` - 1 and return the engine that ran, the sojourn times in ms and the rows."""
    check_statement(scenario)
    check_engine(scenario, engine, execute=execute)
    hosts, world = place(scenario), scenario.world
    if engine == "event" or (engine == "auto" and scenario.uncovered(hosts) is not None):
        times, rows = coordinated_sojourn_times(
            scenario, streams, requests=range(requests), hosts=hosts, execute=execute
        )
        return "event", times * 1e3, rows
    times = vectorised_sojourn_times(
        world,
        streams,
        leaves=scenario.vendors,
        requests=range(requests),
        width=scenario.width,
        hosts=hosts,
        policy=scenario.array_policy,
    )
    return "vectorised", times * 1e3, None


def requests_are_independent(scenario: Scenario) -> bool:
    """Whether the times of one replication's requests are independent of each other.

    Examples
    --------
    >>> from mktsim.sim import Constant, Hiccups, World
    >>> paused = World(hiccups=Hiccups(100, Constant(10)))
    >>> requests_are_independent(Scenario()), requests_are_independent(Scenario(world=paused))
    (True, False)
    """
    return dependence(scenario) is None


def dependence(scenario: Scenario) -> str | None:
    """Say by what the requests of one replication depend on each other, or None where they are independent.

    Examples
    --------
    >>> from mktsim.fanout.policy import ScatterPolicy
    >>> dependence(Scenario(policy=ScatterPolicy(hedge_quantile=0.95)))
    'the times that a node has observed, after which it hedges'
    """
    return carried(scenario) or drawn_once(scenario)


def carried(scenario: Scenario) -> str | None:
    """Say what a request leaves behind, or the clock brings on, that the next one meets; None where that is nothing.

    What is drawn for a request or a call has its number in its key and is drawn anew: pace, links, services, backlogs,
    the cold starts of a share. Machines are at rest between the requests of a closed client.
    """
    world, policy = scenario.world, scenario.policy
    times_out = policy is not None and policy.attempt_timeout_s is not None
    reasons = {
        "faults, which come and go": bool(world.faults),
        "request limits, which earlier calls use up": world.limit is not None,
        "pauses, which the clock brings on": world.hiccups is not None,
        "hosts that grow cold with time": world.cold_start is not None and world.cold_start.idle_ms is not None,
        "the times that a node has observed, after which it hedges": policy is not None
        and policy.hedge_quantile is not None,
        # Where nothing fails but by a time-out: what else fails is a fault or a limit.
        "a retry budget, which earlier calls use up": times_out and policy is not None and policy.retries > 0,
        "a breaker, which earlier calls open": times_out and policy is not None and policy.breaker is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def drawn_once(scenario: Scenario) -> str | None:
    """Say what is drawn once for all requests of a replication and shared by them, or None where that is nothing.

    The ring and the turns in which vendors are spread over machines are not drawn: they are the same in every
    replication.

    Examples
    --------
    >>> from mktsim.sim import Constant, Exponential, Geography, Route, World, Zone
    >>> near, far = Route(("a", "a"), Constant(1)), Route(("a", "b"), Constant(40))
    >>> routes = (near, far, Route(("b", "b"), Constant(1)))
    >>> for shares in ((1, 1), (1, 0)):
    ...     zones = (Zone("a", "a", shares[0]), Zone("b", "b", shares[1]))
    ...     drawn_once(Scenario(world=World(geography=Geography(zones, routes, home="a"))))
    "the vendors' zones, drawn once for all requests"
    """
    world = scenario.world
    reasons = {
        "the vendors' zones, drawn once for all requests": world.geography is not None
        and _zones_differ(world.geography, in_tree=scenario.width is not None),
        "which hosts a fault hits, drawn once for all requests": any(0 < fault.share < 1 for fault in world.faults),
        # The pauses of one host only shift in time; where there are several, how they overlap stays.
        "the phases of the hosts' pauses, drawn once for all requests": world.hiccups is not None
        and scenario.vendors > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def starts_steady(scenario: Scenario) -> bool:
    """Whether no request of a replication is unlike its first: what they share was drawn before all of them.

    Where it is so, a short replication is as good as a long one, and only their number counts.
    """
    return carried(scenario) is None


def _zones_differ(geography: Geography, *, in_tree: bool) -> bool:
    """Whether it matters in which zone a host stands: there are several, and the ways to them are not all alike."""
    standing = [place for place, zone in enumerate(geography.zones) if zone.share]
    if len(standing) == 1:
        return False
    callers = {geography.home_index, *(standing if in_tree else ())}
    ways = {(way.latency, way.bandwidth_mbps) for a in callers for b in standing for way in [geography.route(a, b)]}
    return len(ways) > 1


def check_statistic(scenario: Scenario, statistic: str, *, replications: int, requests: int) -> None:
    """Check, before any work, that so many samples can bear a statistic.

    Raises
    ------
    InvalidArgumentError
        If they cannot; the message names the number needed.
    """
    p = probability_of(statistic)
    if p is None:
        return
    reason = dependence(scenario)
    if reason is not None:
        needed = observations_for_section(p)
        if requests < needed:
            raise InvalidArgumentError(
                f"{statistic} of requests that depend on each other (by {reason}) needs {needed:,} requests a "
                f"replication, not {requests:,}"
            )
        return
    needed = samples_for_quantile(p)
    if replications * requests < needed:
        raise InvalidArgumentError(
            f"a {p:g} quantile needs {needed:,} requests, not {replications} replications of {requests}; "
            "raise one, or leave it out of quantiles"
        )
