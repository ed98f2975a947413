"""Predict a live market by simulation after calibration, and hold the prediction against fresh measurements.

Rules
-----
A prediction comes from the simulator, never from the fitted line. It is made before the measurement that it is held
against, at a size and load that no fit has seen; the error is what it is, and stands in the table beside both.

Theory of operation
-------------------
Simulated and measured requests are meant to begin at the same instants (common random numbers), so that the luck of one
arrival process is not taken for an error. Many replications, each with noise of its own, tell the p50 and the p99 that
*one run of so many requests* would show: the prediction is their median. A further run is as likely to be any of R + 1
in their order, so that it lies between the r-th lowest and the r-th highest of R with a chance of 1 - 2 r / (R + 1):
39 replications are the fewest of which the lowest and the highest hold it with 95 %, and that is the interval. (The
central 95 % of 20 hold it with 87 %.)

A measured quantile of requests that do not meet has the interval of its order statistics. Under load requests depend on
each other; busy cycles do not (regenerative method, Crane and Iglehart 1974). The p quantile is where the cycles'
sums of 1(time <= t) - p have the mean 0: the interval holds each t at which the observed mean is not too far from 0,
by Student's statistic. The sums are skewed to the left, for few cycles are long, so that the statistic is corrected for
skewness (Hall, Journal of the Royal Statistical Society B 54, 1992); without that, 300 requests at a load of 0.5 cover
the p90 with 82 %, with it with 94 %. What too few cycles reach beyond is refused: a p99 of 300 requests is one bad
moment of the queue.

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

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

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
#: Fewer replications have no interval that holds one run more with 95 %.
LEAST_REPLICATIONS: Final = 39
_WHY_SO_MANY: Final = ": one run more lies between the lowest and the highest of 39 with 95 %, of fewer more seldom"
#: Busy cycles beyond a quantile, below which there is no interval for it.
LEAST_CYCLES: Final = 30
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
    >>> found = predict(calibration, vendors=1000, statement="all", requests=5)
    >>> found.times_ms.shape, f"{found.p99.estimate:.2f}", f"{found.on_slower(1.1).p99.estimate:.2f}"
    ((39, 5), '20.50', '22.55')
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
        """Return the quantile that a run shows: the median of the replications', in the interval of one run more.

        The interval is one of prediction, at the level that its ``confidence`` says: with the 39 replications that
        :func:`predict` makes at least, 95 %, between their lowest and their highest. It does not narrow with more.
        """
        each = np.sort(np.quantile(self.times_ms, p, axis=1))
        runs = len(each)
        rank = max(1, (runs + 1) // (LEAST_REPLICATIONS + 1))
        return Interval(
            float(np.median(each)), float(each[rank - 1]), float(each[runs - rank]), self.times_ms.size,
            1 - 2 * rank / (runs + 1),
        )  # fmt: skip

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
            f"p99 {self.p99} ms, intervals of one run more at {100 * self.p50.confidence:.3g} %; "
            f"{len(self.times_ms)} replications of {self.requests:,} requests, seed {self.seed}"
            f"{'' if self.slower == 1 else f'; machine {self.slower:.3g} times as slow'}>"
        )


def load_name(load: float) -> str:
    """Name a load.

    Parameters
    ----------
    load : float
        Utilisation of the loop; 0 where the next request is sent when the last is answered.

    Returns
    -------
    str

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
    replications: int = LEAST_REPLICATIONS,
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
        In each run, and how many runs: at least 39, of which a further one lies between the lowest and the highest with
        95 %.
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
    >>> asked = {"vendors": 400, "statement": "all", "requests": 100}
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
    whole = (("requests", requests, 2, ""), ("replications", replications, LEAST_REPLICATIONS, _WHY_SO_MANY))
    for name, value, least, why in whole:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r:.80}{why}")
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

    Parameters
    ----------
    prediction : Prediction
        Of the requests that are to be run.
    calibration : Calibration
        It was made of.
    market : Marketplace or Fleet
        Which is asked.

    Returns
    -------
    ndarray of float64, shape (requests,)
        Sojourn times in ms, from the intended start on.

    Raises
    ------
    InvalidArgumentError
        If the market is not of the size that was predicted.

    Examples
    --------
    A market that takes 0.5 ms and 0.02 ms a vendor, and always as long, is foretold to the microsecond.

    >>> import asyncio
    >>> from types import SimpleNamespace
    >>> from mktsim.sim.loop import sim_run
    >>> from mktsim.study.live import calibrate
    >>> from mktsim.study.measuring import STATEMENTS
    >>> class Market:
    ...     def __init__(self, vendors):
    ...         self.vendors, self.turn = vendors, asyncio.Lock()
    ...     async def query(self, sql, params=()):
    ...         work_s = (0.5 + 0.02 * self.vendors) / 1e3
    ...         async with self.turn:
    ...             await asyncio.sleep(work_s)
    ...         stats = SimpleNamespace(vendors_asked=self.vendors, rows_shipped=0, wall_s={"scatter": work_s})
    ...         return SimpleNamespace(stats=stats)
    >>> fleets = [Fleet(vendors, 1, Market(vendors)) for vendors in (30, 100, 300)]
    >>> calibration = sim_run(calibrate(*fleets, statements=STATEMENTS[:1]))
    >>> prediction = predict(calibration, vendors=1_000, statement="top-k", requests=5)
    >>> times_ms = sim_run(measure(prediction, calibration, Fleet(1_000, 1, Market(1_000))))
    >>> times_ms.round(3), round(prediction.p50.estimate, 3)
    (array([20.5, 20.5, 20.5, 20.5, 20.5]), 20.5)
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
    """Estimate a measured quantile with its 95 % interval; None where there are too few requests, or busy cycles.

    Parameters
    ----------
    prediction : Prediction
        Of the same requests: it knows when they began.
    times_ms : ndarray of float64, shape (requests,)
        Of :func:`measure`.
    p : float
        Inside (0, 1).

    Returns
    -------
    Interval or None
        In ms.

    Examples
    --------
    >>> alone = Prediction("all", 100, 1, 50, 0.0, None, np.ones((39, 50)), "event", 1, 1.0, calibration=None)
    >>> times_ms = np.arange(1.0, 51.0)
    >>> print(measured_quantile(alone, times_ms, 0.5), measured_quantile(alone, times_ms, 0.99))
    25.5 [18, 33] None
    """
    if prediction.arrival_ms is not None:
        cycles = _busy_cycles(prediction.arrival_ms, times_ms)
        enough = _cycles_beyond(cycles, times_ms, p) >= LEAST_CYCLES
        return cycle_interval(prediction.arrival_ms, times_ms, p) if enough else None
    return quantile_interval(times_ms, p) if len(times_ms) >= samples_for_quantile(p) else None


def cycle_interval(arrival_ms: ArrayLike, sojourn_ms: ArrayLike, p: float, *, confidence: float = 0.95) -> Interval:
    """Estimate a quantile of the sojourn times of one queue under load, from its busy cycles, which are independent.

    A cycle begins with a request that finds nobody before it. See the module's text; of queues at a load of 0.5 the
    interval covers as it says within 3 percentage points, at 0.8 within 5.

    Parameters
    ----------
    arrival_ms, sojourn_ms : array of float, shape (requests,)
        In the order of arrival.
    p : float
        Inside (0, 1).
    confidence : float

    Raises
    ------
    InvalidArgumentError
        If fewer than 30 cycles have a request beyond the quantile (for p below 1/2: before it); the message names about
        how many requests would do. If arrivals fall, or the arrays are not numbers of one length.

    Examples
    --------
    Requests come every 2 ms; each takes 1.4 ms, but every third 2.4 ms, so that the next one finds it.

    >>> arrivals, service = 2.0 * np.arange(300), np.tile([1.4, 1.4, 2.4], 100)
    >>> waits = np.tile([0.4, 0.0, 0.0], 100)
    >>> waits[0] = 0.0
    >>> print(cycle_interval(arrivals, service + waits, 0.5))
    1.8 [1.8, 1.8]
    >>> cycle_interval(arrivals[:30], (service + waits)[:30], 0.5)
    Traceback (most recent call last):
        ...
    mktsim.errors.InvalidArgumentError: 10 busy cycles of 30 requests reach beyond the 0.5 quantile, and an interval \
needs 30: measure about 90 requests
    """
    arrivals, times = np.asarray(arrival_ms, float), np.asarray(sojourn_ms, float)
    good = arrivals.ndim == 1 and arrivals.shape == times.shape and len(arrivals) > 0
    if not good or not np.isfinite([arrivals, times]).all() or (np.diff(arrivals) < 0).any():
        raise InvalidArgumentError(
            f"arrivals, never falling, and sojourn times must be finite and as many, not of shapes {arrivals.shape} "
            f"and {times.shape}"
        )
    for name, share in (("p", p), ("confidence", confidence)):
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise InvalidArgumentError(f"{name} must be inside (0, 1), not {share!r:.80}")
    cycle = _busy_cycles(arrivals, times)
    beyond = _cycles_beyond(cycle, times, p)
    if beyond < LEAST_CYCLES:
        needed = math.ceil(LEAST_CYCLES / max(beyond, 1) * len(times))
        raise InvalidArgumentError(
            f"{beyond} busy cycles of {len(times):,} requests reach beyond the {p:g} quantile, and an interval needs "
            f"{LEAST_CYCLES}: measure about {needed:,} requests"
        )
    statistic = _cycle_statistic(cycle, times, p)
    critical = float(stats.t.ppf((1 + confidence) / 2, cycle[-1]))
    inside, above = np.flatnonzero(statistic >= -critical), np.flatnonzero(statistic > critical)
    ordered, estimate = np.sort(times), float(np.quantile(times, p))
    low = ordered[inside[0]] if len(inside) else -np.inf
    high = ordered[above[0]] if len(above) else np.inf
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), len(times), confidence)


def _busy_cycles(arrival_ms: Times, sojourn_ms: Times) -> NDArray[np.intp]:
    """Number the busy cycle of each request, from 0 up."""
    ends = np.maximum.accumulate(arrival_ms + sojourn_ms)
    begins = np.concatenate(([False], arrival_ms[1:] >= ends[:-1]))
    return np.cumsum(begins)


def _cycles_beyond(cycle: NDArray[np.intp], sojourn_ms: Times, p: float) -> int:
    """Count the cycles that have a request on the rarer side of a quantile."""
    quantile = np.quantile(sojourn_ms, p)
    return len(np.unique(cycle[sojourn_ms > quantile if p >= 0.5 else sojourn_ms < quantile]))


def _cycle_statistic(cycle: NDArray[np.intp], sojourn_ms: Times, p: float) -> Times:
    """Return, at each sojourn time in their order, how far the share of those up to it is above `p`.

    In standard errors of the cycles' sums of 1(time <= t) - p, corrected for their skewness.
    """
    sums = (-p * np.bincount(cycle)).tolist()
    count = len(sums)
    moments = [math.fsum(each**power for each in sums) for power in (1, 2, 3)]
    found = np.empty((3, len(sojourn_ms)))
    for place, at in enumerate(cycle[np.argsort(sojourn_ms, kind="stable")].tolist()):
        was = sums[at]
        sums[at] = now = was + 1
        for power in range(3):
            moments[power] += now ** (power + 1) - was ** (power + 1)
            found[power, place] = moments[power]
    mean, square, cube = found / count
    variance = np.maximum(square - mean**2, 1e-12)
    skewness = (cube - 3 * mean * square + 2 * mean**3) / variance**1.5
    w = mean / np.sqrt(variance)
    hall = w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * count)
    return np.asarray(math.sqrt(max(count - 1, 1)) * hall)


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

    Returns
    -------
    ndarray of float64, shape (rounds,)
        1 where nothing has changed.

    Raises
    ------
    InvalidArgumentError
        If a fleet, or the statement, was not calibrated.

    Examples
    --------
    Since it was calibrated the market has become a quarter slower.

    >>> import asyncio
    >>> from types import SimpleNamespace
    >>> from mktsim.sim.loop import sim_run
    >>> from mktsim.study.live import calibrate
    >>> from mktsim.study.measuring import STATEMENTS
    >>> class Market:
    ...     def __init__(self, vendors, slower=1.0):
    ...         self.vendors, self.slower, self.turn = vendors, slower, asyncio.Lock()
    ...     async def query(self, sql, params=()):
    ...         work_s = self.slower * (0.5 + 0.02 * self.vendors) / 1e3
    ...         async with self.turn:
    ...             await asyncio.sleep(work_s)
    ...         stats = SimpleNamespace(vendors_asked=self.vendors, rows_shipped=0, wall_s={"scatter": work_s})
    ...         return SimpleNamespace(stats=stats)
    >>> then, now = ([Fleet(n, 1, Market(n, slower)) for n in (30, 100, 300)] for slower in (1.0, 1.25))
    >>> calibration = sim_run(calibrate(*then, statements=STATEMENTS[:1]))
    >>> sim_run(drift(calibration, "top-k", now, streams=Streams(1), rounds=3)).round(3)
    array([1.25, 1.25, 1.25])
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
        In ms ``p50`` and ``p99``, measured and simulated; measured ones have nan for an interval where there are too
        few requests, or busy cycles, for one. In % ``error of p50`` and ``error of p99``: simulated over measured,
        less 1. With `drifts` also ``drift``, how much slower the machine was than when calibrated, and
        ``error of p50, drift taken out``, likewise of the p99: that of the requests simulated on a machine so slow. Its
        interval holds the measurement's and the drift's, each at 95 %, so that it errs on the wide side.

    Examples
    --------
    Foretold were 10 ms, and 8 ms were measured: the prediction is 25 % too long.

    >>> foretold = Prediction("all", 100, 1, 50, 0.0, None, np.full((39, 50), 10.0), "event", 1, 1.0, calibration=None)
    >>> for point in compared(foretold, np.full(50, 8.0))[:3]:
    ...     print(point.kind, point.statistic, point.estimate, point.unit)
    measured p50 8.0 ms
    simulated p50 10.0 ms
    simulated error of p50 25.0 %
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

    Parameters
    ----------
    frame : DataFrame
        Of the points: :func:`mktsim.study.points.tidy`.

    Returns
    -------
    DataFrame
        Columns ``vendors``, ``load``, ``statement``, and one for each statistic, in %.

    Examples
    --------
    >>> from mktsim.study.points import tidy
    >>> foretold = Prediction("all", 100, 1, 50, 0.0, None, np.full((39, 50), 10.0), "event", 1, 1.0, calibration=None)
    >>> error_table(tidy(compared(foretold, np.full(50, 8.0)))).to_dict("records")
    [{'vendors': 100, 'load': 'one at a time', 'statement': 'all', 'error of p50': 25.0, 'error of p99': 25.0}]
    """
    chosen = frame[frame["unit"] == "%"]
    table = chosen.pivot_table(index=["x", "group", "series"], columns="statistic", values="estimate")
    table = table[list(dict.fromkeys(chosen["statistic"]))]
    return table.reset_index().rename(columns={"x": "vendors", "group": "load", "series": "statement"})
