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

The machine may have become slower or faster since it was calibrated. *Drift* tells by how much: all calibrated fleets,
asked all calibrated statements in the calibration's own order, before and after each measurement. The order matters:
one fleet asked again and again answers faster than among others, for the processor's caches hold it. The error stands
as it is; beside it stands the one that is left when the drift is taken out, which is the model's and not the machine's.
Under load that is no scaling, for a slower machine is also a busier one: the same requests, at the same instants, are
simulated anew on the slower machine (:meth:`Prediction.on_slower`).

What this does not do
---------------------
It does not predict what stands in `mktsim.study.live` as not modelled: slow minutes, overflowing caches, collections.
What it is wrong by one at a time it is wrong by more under load: at a utilisation of rho the mean wait for a loop that
takes always as long grows (2 - rho) / (1 - rho) times as fast as its service, threefold at 0.5 (Pollaczek, Khinchine).
With drift taken out an error is a diagnosis, not a prediction: the drift is known only after the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams
from mktsim.study.arrivals import Poisson, TraceDriven
from mktsim.study.live import Calibration, check_slower
from mktsim.study.load import simulate_load
from mktsim.study.measuring import (
    Fleet,
    Times,
    frozen_collector,
    measure_services,
    one_at_a_time,
    open_loop,
    timed,
)
from mktsim.study.points import Point
from mktsim.study.replication import simulate
from mktsim.study.statistics import Interval, quantile_interval, samples_for_quantile

STATISTICS: Final = {"p50": 0.5, "p99": 0.99}
_BOOTSTRAPS: Final = 1000
#: Rounds over the calibrated fleets before a measurement, and after it: together enough for a median's interval.
_DRIFT_ROUNDS: Final = 5
#: What follows the name of an error that the machine has no part in.
DRIFT_TAKEN_OUT: Final = ", drift taken out"


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
    slower : float
        How many times as long as when it was calibrated the machine was taken to need; 1 in a true prediction.
    calibration : Calibration
        Which the prediction was made of.

    Examples
    --------
    :func:`predict` makes it; here of a market without noise, which takes 0.5 ms and 0.02 ms a vendor.

    >>> from mktsim.study.live import fit_calibration
    >>> from mktsim.study.measuring import Statement
    >>> sizes = np.repeat([30, 100, 300], 30)
    >>> times = 0.5 + 0.02 * sizes
    >>> table = pd.DataFrame({"statement": "all", "vendors": sizes, "shards": 1, "round": np.tile(range(30), 3),
    ...                       "rows": 0, "scatter_ms": times, "gather_ms": 0.0, "rest_ms": 0.0, "total_ms": times})
    >>> calibration = fit_calibration(table, statements=[Statement("all", "SELECT ?", 0, 1)])
    >>> found = predict(calibration, vendors=1000, statement="all", requests=5, replications=10)
    >>> found.times_ms.shape, f"{found.p99.estimate:.2f}", f"{found.on_slower(1.1).p99.estimate:.2f}"
    ((10, 5), '20.50', '22.55')
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
    slower: float
    calibration: Calibration

    def on_slower(self, slower: float) -> Prediction:
        """Return what the same requests would show where each query takes so many times as long as calibrated.

        Under load they are simulated anew, for they come at the same instants and find a busier loop; one at a time
        all times are that factor longer.

        Raises
        ------
        InvalidArgumentError
            If the factor is not positive and finite.
        """
        if self.arrival_ms is None:
            return replace(self, times_ms=self.times_ms * (check_slower(slower) / self.slower), slower=float(slower))
        return predict(
            self.calibration, vendors=self.vendors, statement=self.statement, load=self.load, requests=self.requests,
            replications=len(self.times_ms), shards=self.shards, seed=self.seed, slower=slower,
        )  # fmt: skip

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
            f"p99 {self.p99} ms; {len(self.times_ms)} replications of {self.requests:,} requests, seed {self.seed}"
            f"{'' if self.slower == 1 else f'; machine {self.slower:.3g} times as slow'}>"
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
    slower: float = 1.0,
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
    slower : float
        How many times as long as when it was calibrated the machine needs; requests come at the instants at which they
        would come to the calibrated one.

    Raises
    ------
    InvalidArgumentError
        If the statement was not calibrated, or a number is out of range.

    Examples
    --------
    A market that takes 0.5 ms and 0.02 ms a vendor, with noise, was measured at three sizes; a fourth is foretold.

    >>> from mktsim.sim.latency import LogNormal
    >>> from mktsim.study.live import fit_calibration
    >>> from mktsim.study.measuring import Statement
    >>> sizes, u = np.repeat([30, 100, 300], 50), Streams(1).uniform("noise", 0, 150)
    >>> times = (0.5 + 0.02 * sizes) * LogNormal(1.0, 1.2).sample(u)
    >>> table = pd.DataFrame({"statement": "all", "vendors": sizes, "shards": 1, "round": np.tile(range(50), 3),
    ...                       "rows": 0, "scatter_ms": times, "gather_ms": 0.0, "rest_ms": 0.0, "total_ms": times})
    >>> calibration = fit_calibration(table, statements=[Statement("all", "SELECT ?", 0, 1)])
    >>> asked = {"vendors": 400, "statement": "all", "requests": 100, "replications": 10}
    >>> alone, busy = (predict(calibration, **asked, load=load, seed=1) for load in (0, 0.5))
    >>> round(alone.p50.estimate, 1)
    8.6
    >>> alone.p50.estimate < busy.p50.estimate < busy.p99.estimate
    True
    >>> slower = busy.on_slower(1.1)
    >>> slower.p99.estimate > 1.1 * busy.p99.estimate  # A slower machine is a busier one.
    True
    """
    number = isinstance(load, int | float) and not isinstance(load, bool)
    if not number or not 0 <= load < 1:
        raise InvalidArgumentError(f"load is a utilisation from 0 to below 1, not {load!r:.80}")
    for name, value, least in (("requests", requests, 2), ("replications", replications, 10)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    shards = calibration.shards if shards is None else shards
    scenario = calibration.scenario(vendors=vendors, statement=statement, shards=shards, timers=load > 0, slower=slower)
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
    return Prediction(
        statement, vendors, shards, requests, float(load), arrival_ms, np.stack(times), engine, seed, float(slower),
        calibration,
    )  # fmt: skip


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


async def drift(
    calibration: Calibration, statement: str, fleets: Sequence[Any], *, streams: Streams, rounds: int = _DRIFT_ROUNDS
) -> Times:
    """Measure by which factor a statement now takes longer than when it was calibrated: one number a round.

    A round asks all fleets all statements, in the calibration's order, after two rounds that are not counted; its
    factor is the median over the fleets.

    Parameters
    ----------
    calibration : Calibration
    statement : str
        Whose factors are returned.
    fleets : sequence of Marketplace or Fleet
        Those that were calibrated, in their order.
    streams : Streams
        Of the parameters, never twice the same.
    rounds : int

    Raises
    ------
    InvalidArgumentError
        If a fleet, or the statement, was not calibrated.
    """
    fit, found = calibration.fit(statement), [Fleet.of(each) for each in fleets]
    keys = ["vendors", "shards"]
    then = calibration.cells[calibration.cells["statement"] == fit.statement.name].set_index(keys)["measured_ms"]
    for fleet in found:
        if (fleet.vendors, fleet.shards) not in then.index:
            raise InvalidArgumentError(f"no fleet of {fleet.vendors:,} vendors in {fleet.shards} shards was calibrated")
    if not found:
        raise InvalidArgumentError("drift needs the calibrated fleets, at least one")
    statements = [each.statement for each in calibration.fits.values()]
    with frozen_collector():
        table = await measure_services(found, statements, rounds=rounds, streams=streams)
    mine = table[table["statement"] == fit.statement.name].set_index(keys)
    factors = mine["total_ms"] / then.reindex(mine.index)
    return factors.groupby(mine["round"].to_numpy()).median().to_numpy(float)


def compared(
    prediction: Prediction, times_ms: Times, *, drifts: ArrayLike = (), study: str = "live vs simulated"
) -> list[Point]:
    """Return measured and simulated quantiles and the error of the second, as points of a tidy table.

    Parameters
    ----------
    prediction : Prediction
    times_ms : ndarray of float64
        What was measured.
    drifts : array of float
        Of :func:`drift` before and after, together at least 6; without, errors stand as they are.
    study : str

    Returns
    -------
    list of Point
        In ms ``p50`` and ``p99``, measured and simulated. In % ``error of p50`` and ``error of p99``: simulated over
        measured, less 1. With `drifts` also ``drift``, how much slower the machine was than when calibrated, and
        ``error of p50, drift taken out``, likewise of the p99: that of the requests simulated on a machine so slow. Its
        interval holds the measurement's and the drift's.
    """
    common: dict[str, Any] = {"study": study, "axis": "vendors", "x": prediction.vendors, "seed": prediction.seed,
                              "group": load_name(prediction.load), "series": prediction.statement}  # fmt: skip
    measured = {
        statistic: measured_quantile(prediction, times_ms, p)
        or Interval(float(np.quantile(times_ms, p)), np.nan, np.nan, len(times_ms))
        for statistic, p in STATISTICS.items()
    }

    def error(statistic: str, low: Prediction, middle: Prediction, high: Prediction, suffix: str = "") -> Point:
        p, real = STATISTICS[statistic], measured[statistic]
        off = _percent(middle.quantile(p).estimate / real.estimate)
        ends = (_percent(low.quantile(p).estimate / real.high), _percent(high.quantile(p).estimate / real.low))
        return Point(kind="simulated", statistic=f"error of {statistic}{suffix}", unit="%", estimate=off, low=ends[0],
                     high=ends[1], n=len(times_ms), **common)  # fmt: skip

    points = []
    for statistic, p in STATISTICS.items():
        points.append(Point.of(measured[statistic], kind="measured", statistic=statistic, unit="ms", **common))
        points.append(Point.of(prediction.quantile(p), kind="simulated", statistic=statistic, unit="ms",
                               engine=prediction.engine, **common))  # fmt: skip
        points.append(error(statistic, prediction, prediction, prediction))
    if np.size(drifts):
        now = quantile_interval(drifts, 0.5)
        low, middle, high = (prediction.on_slower(factor) for factor in (now.low, now.estimate, now.high))
        points += [error(statistic, low, middle, high, DRIFT_TAKEN_OUT) for statistic in STATISTICS]
        points.append(Point(kind="measured", statistic="drift", unit="%", estimate=_percent(now.estimate),
                            low=_percent(now.low), high=_percent(now.high), n=now.n, **common))  # fmt: skip
    return points


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def error_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the errors and the drift of a table of :func:`compared`, one row a size, load and statement, in %.

    The errors as they are come first.
    """
    chosen = frame[frame["unit"] == "%"]
    table = chosen.pivot_table(index=["x", "group", "series"], columns="statistic", values="estimate")
    table = table[list(dict.fromkeys(chosen["statistic"]))]
    return table.reset_index().rename(columns={"x": "vendors", "group": "load", "series": "statement"})
