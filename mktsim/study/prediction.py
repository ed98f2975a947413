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

The machine is not equally fast at all times (`mktsim.study.yardstick`). A prediction cannot know its pace to come: each
replication plays a stretch of the calibration's again. What it was in fact is measured beside each request, and beside
the error as it is stands the one of the same requests, at the same instants, simulated anew at the paces they met
(:meth:`Prediction.at_paces`): the first is that of a forecast, of model and machine together, the second the model's.
Under load that is no scaling, for a slower machine is also a busier one. The yardstick itself takes time: under load it
is part of each request, measured and simulated.

What this does not do
---------------------
It does not predict what stands in `mktsim.study.live` as not modelled: paces that the calibration never met,
overflowing caches, collections. What it is wrong by one at a time it is wrong by more under load: at a utilisation of
rho the mean wait for a loop that takes always as long grows (2 - rho) / (1 - rho) times as fast as its service,
threefold at 0.5 (Pollaczek, Khinchine). An error at known paces is a diagnosis, not a prediction: they are known only
after the measurement, and between two timings of the yardstick they are guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams
from mktsim.study.arrivals import Poisson, TraceDriven
from mktsim.study.live import Calibration, timing
from mktsim.study.load import simulate_load
from mktsim.study.measuring import (
    Fleet,
    Times,
    frozen_collector,
    one_at_a_time,
    open_loop,
    timed,
)
from mktsim.study.points import Point
from mktsim.study.replication import simulate
from mktsim.study.statistics import Interval, quantile_interval, samples_for_quantile
from mktsim.study.yardstick import PACE_KNOWN, RUNS, Yardstick, as_paces, paces_of

STATISTICS: Final = {"p50": 0.5, "p99": 0.99}
#: Fewer replications have no interval that holds one run more with 95 %.
LEAST_REPLICATIONS: Final = 39
_WHY_SO_MANY: Final = ": one run more lies between the lowest and the highest of 39 with 95 %, of fewer more seldom"
#: Busy cycles beyond a quantile, below which there is no interval for it.
LEAST_CYCLES: Final = 30
#: Quantiles of the requests' paces that a table shows.
_PACES: Final = (0.05, 0.5, 0.95)


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
    paces : ndarray of float64, shape (requests,), or None
        How many times as long as calibrated the machine is taken to need for each request. None in a true prediction:
        each replication has a stretch of the calibration's paces.
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
    >>> found.times_ms.shape, f"{found.p99.estimate:.2f}", f"{found.at_paces([1.1] * 5).p99.estimate:.2f}"
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
    paces: Times | None
    calibration: Calibration

    def at_paces(self, paces: ArrayLike) -> Prediction:
        """Return what the same requests would show where each takes so many times as long as calibrated.

        They are simulated anew, with the same noise: those of an open loop come at the same instants, and find a loop
        that is busier where the machine is slower.

        Parameters
        ----------
        paces : array of float, shape (requests,)

        Raises
        ------
        InvalidArgumentError
            If they are not so many positive, finite numbers.
        """
        return predict(
            self.calibration, vendors=self.vendors, statement=self.statement, load=self.load, requests=self.requests,
            replications=len(self.times_ms), shards=self.shards, seed=self.seed, paces=paces,
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
            f"{'' if self.paces is None else f'; at paces known, {np.median(self.paces):.3g} in the median'}>"
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
    paces: ArrayLike | None = None,
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
    paces : array of float, shape (requests,), optional
        How many times as long as calibrated the machine needs for each request; requests come at the instants at which
        they would come without. When absent each replication plays a stretch of the calibration's paces.

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
    >>> slower = busy.at_paces(np.full(100, 1.1))
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
    known = None if paces is None else as_paces(paces, requests)
    streams, trace = Streams(seed), calibration.paces
    # Under load the yardstick is part of each request, as it is when that is measured.
    about: dict[str, Any] = {"vendors": vendors, "statement": statement, "shards": shards, "timers": load > 0,
                             "beside_ms": RUNS * calibration.yardstick_ms if load else 0.0}  # fmt: skip
    calibration.scenario(**about)  # For its errors.
    fit = calibration.fit(statement)
    query_ms = fit.query_ms(vendors, shards)
    mean_ms = (query_ms + about["beside_ms"]) * fit.noise(query_ms).mean_ms
    mean_ms *= 1.0 if trace is None else float(trace.pace.mean())
    arrival_ms, engine, times = None, "", []
    if load:
        arrival_ms = Poisson(1e3 * load / mean_ms).times_ms(streams, requests)
    begins_ms = np.arange(requests) * mean_ms if arrival_ms is None else arrival_ms
    for replication in range(replications):
        noise = int(streams.generator("noise", replication).integers(1 << 62))
        met = known
        if met is None and trace is not None:
            start_ms = float(streams.uniform("pace", replication, 1)[0]) * trace.span_ms
            met = trace.stretch(start_ms, begins_ms)
        scenario = calibration.scenario(**about, pace_trace=() if met is None else met.tolist())
        if arrival_ms is None:
            alone = simulate(scenario, requests=requests, seed=noise)
            times.append(alone.sojourn_time_ms)
            engine = alone.engine
        else:
            loaded = simulate_load(scenario, TraceDriven(tuple(arrival_ms)), requests=requests, seed=noise)
            times.append(loaded.sojourn_time_ms)
            engine = loaded.engine
    return Prediction(
        statement, vendors, shards, requests, float(load), arrival_ms, np.stack(times), engine, seed, known,
        calibration,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one run of requests took, and how fast the machine was meanwhile.

    Attributes
    ----------
    times_ms : ndarray of float64, shape (requests,)
        Sojourn times.
    paces : ndarray of float64, shape (requests,)
        How many times as long as when it was calibrated the machine needed; 1 where no yardstick was timed.

    Examples
    --------
    >>> Measured(np.array([12.0, 18.0]), np.array([1.0, 1.5]))
    <Measured 2 requests: p50 15 ms; paces 1 to 1.5>
    """

    times_ms: Times
    paces: Times

    def __repr__(self) -> str:
        low, high = self.paces.min(), self.paces.max()
        return (
            f"<Measured {len(self.times_ms):,} requests: p50 {np.median(self.times_ms):.4g} ms; paces {low:.3g} to "
            f"{high:.3g}>"
        )


async def measure(
    prediction: Prediction, calibration: Calibration, market: Any, *, yardstick: Yardstick | None = None
) -> Measured:
    """Run the predicted requests over the live market, at the instants for which they were predicted.

    Parameters
    ----------
    prediction : Prediction
        Of the requests that are to be run.
    calibration : Calibration
        It was made of.
    market : Marketplace or Fleet
        Which is asked.
    yardstick : Yardstick, optional
        Timed beside each request: the calibration's kind. A :class:`~mktsim.study.yardstick.SqliteYardstick` when
        absent.

    Returns
    -------
    Measured
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
    >>> found = sim_run(measure(prediction, calibration, Fleet(1_000, 1, Market(1_000))))
    >>> found.times_ms.round(3), round(prediction.p50.estimate, 3)
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
    with timing(yardstick) as stick, frozen_collector():
        if prediction.arrival_ms is None:
            times_ms, sticks_ms = await one_at_a_time(
                fleet, statement, requests=prediction.requests, streams=streams, yardstick=stick
            )
        else:
            times_ms, sticks_ms = await open_loop(
                fleet, statement, prediction.arrival_ms, streams=streams, yardstick=stick
            )
    return Measured(times_ms, paces_of(sticks_ms, calibration.yardstick_ms))


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
    >>> alone = Prediction("all", 100, 1, 50, 0.0, None, np.ones((39, 50)), "event", 1, None, calibration=None)
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


def compared(
    prediction: Prediction, times_ms: Times, *, paces: ArrayLike | None = None, study: str = "live vs simulated"
) -> list[Point]:
    """Return measured and simulated quantiles and the error of the second, as points of a tidy table.

    Parameters
    ----------
    prediction : Prediction
        A true one, which knew no paces.
    times_ms : ndarray of float64
        What was measured.
    paces : array of float, shape (requests,), optional
        The machine's paces meanwhile; without, errors stand as they are.
    study : str

    Returns
    -------
    list of Point
        In ms ``p50`` and ``p99``, measured and simulated; measured ones have nan for an interval where there are too
        few requests, or busy cycles, for one. In % ``error of p50`` and ``error of p99``: simulated over measured,
        less 1; the interval is that of the measurement. With `paces` also ``p50, pace known``, of the same requests
        simulated at those, its error, likewise of the p99; and ``pace``, how much longer than when it was calibrated
        the machine took, in the median of the requests: low and high hold nine tenths of them.

    Examples
    --------
    Foretold were 10 ms, and 8 ms were measured: the prediction is 25 % too long.

    >>> foretold = Prediction("all", 100, 1, 50, 0.0, None, np.full((39, 50), 10.0), "event", 1, None, calibration=None)
    >>> for point in compared(foretold, np.full(50, 8.0))[:3]:
    ...     print(point.kind, point.statistic, point.estimate, point.unit)
    measured p50 8.0 ms
    simulated p50 10.0 ms
    simulated error of p50 25.0 %
    """
    common: dict[str, Any] = {"study": study, "axis": "vendors", "x": prediction.vendors, "seed": prediction.seed,
                              "group": load_name(prediction.load), "series": prediction.statement}  # fmt: skip
    points = []
    runs = {"": prediction} if paces is None else {"": prediction, PACE_KNOWN: prediction.at_paces(paces)}
    for suffix, run in runs.items():
        for name, p in STATISTICS.items():
            real = measured_quantile(prediction, times_ms, p) or Interval(
                float(np.quantile(times_ms, p)), np.nan, np.nan, len(times_ms)
            )
            said = run.quantile(p)
            if not suffix:
                points.append(Point.of(real, kind="measured", statistic=name, unit="ms", **common))
            points.append(Point.of(said, kind="simulated", statistic=name + suffix, unit="ms", engine=run.engine,
                                   **common))  # fmt: skip
            points.append(
                Point(kind="simulated", statistic=f"error of {name}{suffix}", unit="%", n=len(times_ms),
                      estimate=_percent(said.estimate / real.estimate), low=_percent(said.estimate / real.high),
                      high=_percent(said.estimate / real.low), **common)
            )  # fmt: skip
    if paces is not None:
        low, middle, high = np.quantile(np.asarray(paces, float), _PACES).tolist()
        points.append(Point(kind="measured", statistic="pace", unit="%", estimate=_percent(middle), low=_percent(low),
                            high=_percent(high), n=len(times_ms), **common))  # fmt: skip
    return points


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def error_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the errors and the paces of a table of :func:`compared`, one row a size, load and statement, in %.

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
    >>> foretold = Prediction("all", 100, 1, 50, 0.0, None, np.full((39, 50), 10.0), "event", 1, None, calibration=None)
    >>> error_table(tidy(compared(foretold, np.full(50, 8.0)))).to_dict("records")
    [{'vendors': 100, 'load': 'one at a time', 'statement': 'all', 'error of p50': 25.0, 'error of p99': 25.0}]
    """
    chosen = frame[frame["unit"] == "%"]
    table = chosen.pivot_table(index=["x", "group", "series"], columns="statistic", values="estimate")
    table = table[list(dict.fromkeys(chosen["statistic"]))]
    return table.reset_index().rename(columns={"x": "vendors", "group": "load", "series": "statement"})
