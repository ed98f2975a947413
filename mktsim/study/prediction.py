"""Predict a live market by simulation after calibration, and hold the prediction against fresh measurements.

Rules
-----
A prediction comes from the simulator, never from the fitted line. It is made before the measurement that it is held
against, at a size and load that no fit has seen; the error is what it is, and stands in the table beside both.

Theory of operation
-------------------
Simulated and measured requests are meant to begin at the same instants (common random numbers), so that the luck of one
arrival process is not taken for an error. Many replications, each with noise of its own, tell the p50 and the p99 that
*one run of so many requests* would show: the prediction is their median, its interval the central 95 % of them.

A measured quantile of requests that do not meet has the interval of its order statistics. Under load requests depend on
each other; busy cycles do not: the interval is a bootstrap over them (regenerative method, Crane and Iglehart 1974).

The machine may have become slower or faster since it was calibrated. Queries over the largest calibrated fleet, asked
before and after each measurement, tell by how much: *drift*, shown beside the error and not taken out of it.

What this does not do
---------------------
It does not predict what stands in `mktsim.study.live` as not modelled: slow minutes, overflowing caches, collections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
import pandas as pd

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams
from mktsim.study.arrivals import Poisson, TraceDriven
from mktsim.study.live import Calibration
from mktsim.study.load import simulate_load
from mktsim.study.measuring import Fleet, Times, frozen_collector, one_at_a_time, open_loop, timed
from mktsim.study.points import Point
from mktsim.study.replication import simulate
from mktsim.study.statistics import Interval, quantile_interval, samples_for_quantile

STATISTICS: Final = {"p50": 0.5, "p99": 0.99}
_BOOTSTRAPS: Final = 1000
_REFERENCES: Final = 9


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What one run of requests over a live market should show.

    Attributes
    ----------
    statement : str
    vendors, shards, requests : int
    load : float
        Utilisation of the one loop by requests that come by a Poisson process; 0: one at a time.
    arrival_ms : ndarray or None
        When requests are meant to begin; None one at a time.
    times_ms : ndarray of float64, shape (replications, requests)
        Simulated sojourn times.
    engine : str
    seed : int
    """

    statement: str
    vendors: int
    shards: int
    requests: int
    load: float
    arrival_ms: Times | None
    times_ms: Times
    engine: str
    seed: int

    def quantile(self, p: float) -> Interval:
        """Return the quantile that a run shows: the median of the replications', between their central 95 %."""
        each = np.quantile(self.times_ms, p, axis=1)
        low, middle, high = np.quantile(each, (0.025, 0.5, 0.975)).tolist()
        return Interval(middle, low, high, self.times_ms.size)

    @property
    def p50(self) -> Interval:
        """The median."""
        return self.quantile(0.5)

    @property
    def p99(self) -> Interval:
        """The 99th percentile."""
        return self.quantile(0.99)

    def __repr__(self) -> str:
        return (
            f"<Prediction {self.statement} over {self.vendors:,} vendors, {load_name(self.load)}: p50 {self.p50} ms, "
            f"p99 {self.p99} ms; {len(self.times_ms)} replications of {self.requests:,} requests, seed {self.seed}>"
        )


def load_name(load: float) -> str:
    """Name a load.

    Examples
    --------
    >>> load_name(0), load_name(0.5)
    ('one at a time', 'open loop at 0.5')
    """
    return "one at a time" if load == 0 else f"open loop at {load:g}"


def predict(
    calibration: Calibration,
    *,
    vendors: int,
    statement: str,
    load: float = 0.0,
    requests: int = 300,
    replications: int = 20,
    shards: int | None = None,
    seed: int = 0,
) -> Prediction:
    """Simulate runs of requests in the calibrated world.

    Parameters
    ----------
    calibration : Calibration
        From :func:`mktsim.study.live.calibrate`.
    vendors : int
        Of the market that is predicted.
    statement : str
        One that was calibrated.
    load : float
        Utilisation of the loop, below 1; 0 sends the next request when the last is answered.
    requests, replications : int
        In each run, and how many runs.
    shards : int, optional
        Those of the largest calibrated fleet when absent.
    seed : int
        Decides arrivals and noise.

    Raises
    ------
    InvalidArgumentError
        If the statement was not calibrated, or a number is out of range.
    """
    number = isinstance(load, int | float) and not isinstance(load, bool)
    if not number or not 0 <= load < 1:
        raise InvalidArgumentError(f"load is a utilisation from 0 to below 1, not {load!r:.80}")
    for name, value, least in (("requests", requests, 2), ("replications", replications, 10)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    shards = calibration.shards if shards is None else shards
    scenario = calibration.scenario(vendors=vendors, statement=statement, shards=shards, timers=load > 0)
    streams = Streams(seed)
    arrival_ms, engine, times = None, "", []
    if load:
        fit = calibration.fit(statement)
        mean_ms = fit.query_ms(vendors, shards)
        mean_ms *= fit.noise(mean_ms).mean_ms
        arrival_ms = Poisson(1e3 * load / mean_ms).times_ms(streams, requests)
    for replication in range(replications):
        noise = int(streams.generator("noise", replication).integers(1 << 62))
        if arrival_ms is None:
            alone = simulate(scenario, requests=requests, seed=noise)
            times.append(alone.sojourn_time_ms)
            engine = alone.engine
        else:
            loaded = simulate_load(scenario, TraceDriven(tuple(arrival_ms)), requests=requests, seed=noise)
            times.append(loaded.sojourn_time_ms)
            engine = loaded.engine
    return Prediction(statement, vendors, shards, requests, float(load), arrival_ms, np.stack(times), engine, seed)


async def measure(prediction: Prediction, calibration: Calibration, market: Any) -> Times:
    """Run the predicted requests over the live market, at the instants for which they were predicted; ms each.

    Raises
    ------
    InvalidArgumentError
        If the market is not of the size that was predicted.
    """
    fleet = Fleet.of(market)
    if (fleet.vendors, fleet.shards) != (prediction.vendors, prediction.shards):
        raise InvalidArgumentError(
            f"predicted were {prediction.vendors:,} vendors in {prediction.shards} shards; the market has "
            f"{fleet.vendors:,} in {fleet.shards}"
        )
    statement = calibration.fit(prediction.statement).statement
    # No parameter may come twice to one market, or its answer would be taken from a kept one.
    streams = Streams(prediction.seed).child("measured").child(load_name(prediction.load))
    for value in streams.uniform("warm up", 0, 2).tolist():
        await timed(fleet, statement, value)
    with frozen_collector():
        if prediction.arrival_ms is None:
            return await one_at_a_time(fleet, statement, requests=prediction.requests, streams=streams)
        return await open_loop(fleet, statement, prediction.arrival_ms, streams=streams)


def measured_quantile(prediction: Prediction, times_ms: Times, p: float) -> Interval | None:
    """Estimate a measured quantile with its interval; None where there are too few requests for one."""
    if prediction.arrival_ms is not None:
        return cycle_interval(prediction.arrival_ms, times_ms, p, seed=prediction.seed)
    return quantile_interval(times_ms, p) if len(times_ms) >= samples_for_quantile(p) else None


def cycle_interval(arrival_ms: Times, sojourn_ms: Times, p: float, *, seed: int) -> Interval:
    """Estimate a quantile under load, its interval by a bootstrap over busy cycles, which are independent.

    A cycle begins with a request that finds nobody before it.

    Examples
    --------
    >>> print(cycle_interval(np.array([0.0, 1.0, 9.0]), np.array([2.0, 3.0, 2.0]), 0.5, seed=1))
    2 [2, 2.5]
    """
    ends = np.maximum.accumulate(arrival_ms + sojourn_ms)
    begins = np.flatnonzero(np.concatenate(([True], arrival_ms[1:] >= ends[:-1])))
    cycles = np.split(sojourn_ms, begins[1:])
    drawn = []
    for turn in range(_BOOTSTRAPS):
        chosen = (Streams(seed).uniform("cycles", turn, len(cycles)) * len(cycles)).astype(int)
        drawn.append(np.quantile(np.concatenate([cycles[place] for place in chosen]), p))
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    estimate = float(np.quantile(sojourn_ms, p))
    return Interval(estimate, min(low, estimate), max(high, estimate), len(sojourn_ms))


async def drift(calibration: Calibration, statement: str, reference: Any, *, streams: Streams) -> float:
    """Return by which factor a calibrated fleet now takes longer than when it was calibrated; streams, never twice."""
    fleet = Fleet.of(reference)
    cells = calibration.cells
    mine = cells[(cells["statement"] == statement) & (cells["vendors"] == fleet.vendors)]
    mine = mine[mine["shards"] == fleet.shards]
    if mine.empty:
        raise InvalidArgumentError(f"no fleet of {fleet.vendors:,} vendors in {fleet.shards} shards was calibrated")
    found = calibration.fit(statement).statement
    drawn = streams.uniform("drift", 0, _REFERENCES).tolist()
    times = [(await timed(fleet, found, value))[0] for value in drawn]
    return float(median(times) / mine["measured_ms"].iloc[0])


def compared(
    prediction: Prediction, times_ms: Times, *, drifts: Sequence[float] = (), study: str = "live vs simulated"
) -> list[Point]:
    """Return measured and simulated quantiles and the error of the second, as points of a tidy table.

    The error is simulated over measured less 1, in %; `drift` how much slower the machine was than when calibrated.
    """
    common: dict[str, Any] = {"study": study, "axis": "vendors", "x": prediction.vendors, "seed": prediction.seed,
                              "group": load_name(prediction.load), "series": prediction.statement}  # fmt: skip
    points = []
    for statistic, p in STATISTICS.items():
        simulated, measured = prediction.quantile(p), measured_quantile(prediction, times_ms, p)
        value = float(np.quantile(times_ms, p))
        if measured is None:
            points.append(
                Point(kind="measured", statistic=statistic, unit="ms", estimate=value, n=len(times_ms), **common)
            )
        else:
            points.append(Point.of(measured, kind="measured", statistic=statistic, unit="ms", **common))
        points.append(
            Point.of(simulated, kind="simulated", statistic=statistic, unit="ms", engine=prediction.engine, **common)
        )
        low = 100 * (simulated.estimate / measured.high - 1) if measured is not None else np.nan
        high = 100 * (simulated.estimate / measured.low - 1) if measured is not None else np.nan
        error = 100 * (simulated.estimate / value - 1)
        points.append(
            Point(kind="simulated", statistic=f"error of {statistic}", unit="%", estimate=error, low=low, high=high,
                  n=len(times_ms), **common)
        )  # fmt: skip
    if drifts:
        slower = 100 * (float(np.mean(drifts)) - 1)
        low, high = (100 * (end - 1) for end in (min(drifts), max(drifts)))
        points.append(Point(kind="measured", statistic="drift", unit="%", estimate=slower, low=low, high=high,
                            n=_REFERENCES * len(drifts), **common))  # fmt: skip
    return points


def error_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the errors and the drift of a table of :func:`compared`, one row a size, load and statement, in %."""
    chosen = frame[frame["unit"] == "%"]
    table = chosen.pivot_table(index=["x", "group", "series"], columns="statistic", values="estimate")
    return table.reset_index().rename(columns={"x": "vendors", "group": "load", "series": "statement"})
