"""One scenario simulated: sojourn times with their intervals, and where they come from."""

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
from mktsim.sim.operators import Hosts
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sqlite import Value
from mktsim.streams import Streams
from mktsim.study.coordinated import check_statement, coordinated_sojourn_times, vendor_ids
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
        From the client and back to it, one a request, independent.
    rows : list of tuple, or None
        The query's answer, where the event engine executed it.
    versions : mapping of str to str
        Of the programs that took part.
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
            If there are too few requests; the message names the number needed.
        """
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
        """Mean sojourn time in ms; needs 2 requests."""
        return mean_interval(self.sojourn_time_ms)

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
        """Tabulate mean, p50, p90 and p99 in ms; what has too few requests is NaN and says what it needs."""
        n = len(self.sojourn_time_ms)
        rows = []
        for name, p in (("mean", None), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            needed = 2 if p is None else samples_for_quantile(p)
            if n < needed:
                rows.append((name, np.nan, np.nan, np.nan, n, f"needs {needed} requests"))
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


def run(
    scenario: Scenario, streams: Streams, requests: int, *, engine: Engine, execute: bool = True
) -> tuple[str, NDArray[np.float64], list[tuple[Value, ...]] | None]:
    """Run requests 0 to `requests` - 1 and return the engine that ran, the sojourn times in ms and the rows."""
    check_statement(scenario)
    hosts, world = place(scenario), scenario.world
    uncovered = scenario.uncovered(hosts)
    if engine == "event" or (engine == "auto" and uncovered is not None):
        times, rows = coordinated_sojourn_times(
            scenario, streams, requests=range(requests), hosts=hosts, execute=execute
        )
        return "event", times * 1e3, rows
    if uncovered is not None:
        raise InvalidArgumentError(f"the vectorised engine does not cover {uncovered}; use engine='event'")
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
    """Whether no request of a replication leaves anything behind that the next one meets."""
    world = scenario.world
    cold = world.cold_start is not None and world.cold_start.idle_ms is not None
    learns = scenario.policy is not None and scenario.policy.hedge_quantile is not None
    return not (world.faults or world.limit or world.hiccups or cold or learns)


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
    if not requests_are_independent(scenario):
        needed = observations_for_section(p)
        if requests < needed:
            raise InvalidArgumentError(
                f"{statistic} of requests that depend on each other (faults, limits, pauses) needs {needed:,} requests "
                f"a replication, not {requests:,}"
            )
        return
    needed = samples_for_quantile(p)
    if replications * requests < needed:
        raise InvalidArgumentError(
            f"a {p:g} quantile needs {needed:,} requests, not {replications} replications of {requests}; "
            "raise one, or leave it out of quantiles"
        )
