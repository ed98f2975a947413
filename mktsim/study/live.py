"""A live market calibrated: what a query takes, measured over markets of several sizes, fitted, and made a scenario.

Rules
-----
What does not follow the model is refused by name, never fitted all the same. A result says how good it is, where and
when it was measured, and by which programs.

Theory of operation
-------------------
A live market is one server: the loop, which answers one query after another; `mktsim.study.service` says what one
takes. The model's two claims are measured, not assumed: that times are a sum of costs over fleets of several sizes, and
that queries asked at once end one query's time apart. Both engines run what comes of it: vendors on one machine, a
query's noise the common pace of its calls.

The machine is not always equally fast. A yardstick, timed beside every query, tells its pace, and what is fitted are
times at one pace, its median: a fleet that was asked in slow moments would else seem a slow fleet. What the pace did
meanwhile is kept by the clock, for predictions to play again.

What this does not do
---------------------
It has no processor caches: one core's hold the images of a small fleet and not of a large one, so that a vendor of a
larger fleet takes longer; and a fleet that is asked again and again answers faster, by up to a tenth, than one that is
asked between others, as the calibration does. The pace of an hour that is yet to come it does not know. Under load the
queue magnifies what the service is wrong by. Collections that only larger answers trigger are not in it.
`mktsim.study.prediction` measures what all that amounts to.
"""

from __future__ import annotations

import datetime as dt
import html
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mktsim.errors import CalibrationError, InvalidArgumentError
from mktsim.sim.latency import Constant, Empirical, Latency
from mktsim.sim.world import World
from mktsim.streams import Streams
from mktsim.study.calibration import this_machine
from mktsim.study.measuring import (
    STATEMENTS,
    Fleet,
    Statement,
    burst,
    frozen_collector,
    lateness,
    measure_services,
    timed,
)
from mktsim.study.provenance import program_versions
from mktsim.study.scenario import Scenario
from mktsim.study.service import LEAST_ROUNDS, ServiceFit, fit_service
from mktsim.study.statistics import Interval, mean_interval
from mktsim.study.yardstick import PaceTrace, SqliteYardstick, Yardstick, paces_of

_BURST: Final = 6
#: How far from one loop's queue the answers of a burst may be.
_QUEUEING: Final = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A live system measured and fitted; :meth:`scenario` makes of it what the simulator runs.

    Attributes
    ----------
    fits : mapping of str to ServiceFit
        By name of the statement.
    cells : DataFrame
        Medians of what was measured: one row a statement and fleet, beside what the fit says of it.
    shards : int
        Of the largest fleet, which predictions take for theirs.
    serial : Interval or None
        Time between the answers of queries asked at once, over that of one alone: 1 where one loop answers one after
        another. None where it was not measured.
    late : Latency or None
        How late the idle loop's timers are, ms. None where it was not measured.
    yardstick_ms : float
        What the yardstick took in the median: the pace at which fits hold. 0 where none was timed, or the clock stood
        still.
    paces : PaceTrace or None
        What the machine's pace did meanwhile, in units of that; None where no yardstick was timed.
    seed : int
    machine, date : str
    versions : mapping of str to str

    Examples
    --------
    A market that takes 0.5 ms, and 0.02 ms a vendor, with noise, as a table of what was measured.

    >>> from mktsim.sim.latency import LogNormal
    >>> sizes, u = np.repeat([30, 100, 300], 50), Streams(1).uniform("noise", 0, 150)
    >>> times = (0.5 + 0.02 * sizes) * LogNormal(1.0, 1.2).sample(u)
    >>> table = pd.DataFrame({"statement": "all", "vendors": sizes, "shards": 1, "round": np.tile(range(50), 3),
    ...                       "rows": 0, "scatter_ms": times, "gather_ms": 0.0, "rest_ms": 0.0, "total_ms": times})
    >>> found = fit_calibration(table, statements=[Statement("all", "SELECT ?", 0, 1)])
    >>> found.summary()[["statement", "n"]].values.tolist()
    [['all', 150]]
    >>> scenario = found.scenario(vendors=1000, statement="all")
    >>> scenario.vendors, scenario.world.machines, round(1000 * scenario.world.service.mean_ms)
    (1000, 1, 21)
    """

    fits: Mapping[str, ServiceFit]
    cells: pd.DataFrame
    shards: int
    serial: Interval | None
    late: Latency | None
    yardstick_ms: float
    paces: PaceTrace | None
    seed: int
    machine: str
    date: str
    versions: Mapping[str, str] = field(default_factory=program_versions)

    def fit(self, statement: str) -> ServiceFit:
        """Look a statement's fit up by its name.

        Raises
        ------
        InvalidArgumentError
            If it was not measured.
        """
        try:
            return self.fits[statement]
        except (KeyError, TypeError):
            known = ", ".join(self.fits)
            raise InvalidArgumentError(f"no statement {statement!r:.80} was measured; there are {known}") from None

    def world(
        self,
        *,
        vendors: int,
        statement: str,
        shards: int | None = None,
        timers: bool = False,
        beside_ms: float = 0.0,
        pace_trace: Sequence[float] = (),
    ) -> World:
        """Return the world of one loop that answers this statement over so many vendors.

        All vendors stand on one machine that serves one call at a time, as the loop does; a query's whole time is
        divided among its calls, and its noise is their common pace.

        Parameters
        ----------
        vendors, shards : int
            Of the market; shards those of the largest calibrated fleet when absent.
        statement : str
        timers : bool
            Whether a request begins as late as the loop's timers are, which is what an open loop adds.
        beside_ms : float
            What the loop does besides, once a query.
        pace_trace : sequence of float
            How many times as long as calibrated the machine takes, one factor a request.
        """
        fit = self.fit(statement)
        whole = fit.query_ms(vendors, self.shards if shards is None else shards)
        late = self.late if timers and self.late is not None else Constant(0.0)
        service = Constant((whole + beside_ms) / vendors)
        return World(base=late, pace=fit.noise(whole), pace_trace=tuple(pace_trace), service=service, machines=1)

    def scenario(self, *, vendors: int, statement: str, shards: int | None = None, **world: Any) -> Scenario:
        """Return the scenario that the simulator runs; arguments are those of :meth:`world`.

        Raises
        ------
        InvalidArgumentError
            If the statement was not measured, or a number is out of range.
        """
        Scenario(vendors=vendors)  # For its errors.
        fit = self.fit(statement)
        if shards is not None and (not isinstance(shards, int) or isinstance(shards, bool) or shards < 1):
            raise InvalidArgumentError(f"shards must be a whole number of at least 1, not {shards!r:.80}")
        made = self.world(vendors=vendors, statement=statement, shards=shards, **world)
        middle = fit.statement.params(0.5)
        return Scenario(vendors=vendors, world=made, statement=fit.statement.sql, params=middle).planned_elsewhere()

    def summary(self) -> pd.DataFrame:
        """Return one row a statement: its terms, its noise and how good the fit is."""
        rows = []
        for name, fit in self.fits.items():
            terms = (("fixed, us", fit.fixed_ms), ("a shard, us", fit.shard_ms), ("a vendor, us", fit.vendor_ms),
                     ("a row, us", fit.row_ms))  # fmt: skip
            texts = {title: f"{1e3 * t.estimate:.4g} [{1e3 * t.low:.4g}, {1e3 * t.high:.4g}]" for title, t in terms}
            noise = fit.noise(fit.reference_ms)
            p99 = noise.quantile(0.99) / noise.quantile(0.5)
            seen = {"p99 / p50, measured": fit.tails[-1].measured.estimate if fit.tails else 1.0}
            rows.append(
                {"statement": name, **texts, "R²": fit.r_squared, "worst fleet": fit.worst, "noise": fit.family,
                 "p99 / p50": p99, **seen, "KS distance": fit.distance, "n": fit.n}
            )  # fmt: skip
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        terms = "; ".join(
            f"{name} {1e3 * fit.vendor_ms.estimate:.3g} us a vendor (worst fleet {100 * fit.worst:.2g} % off"
            f"{''.join(f'; {tail}' for tail in fit.tails)})"
            for name, fit in self.fits.items()
        )
        pace = "" if self.paces is None else f"; {self.paces}"
        return f"<Calibration of {self.date}, seed {self.seed}: {terms}{pace}>"

    def _repr_html_(self) -> str:
        table = self.summary().to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}", escape=True)
        serial = "" if self.serial is None else f"; queries asked at once, one after another: {self.serial} times alone"
        late = "" if self.late is None else f"; timers late by {self.late.quantile(0.5):.2g} ms (median)"
        pace = ""
        if self.paces is not None:
            low, high = self.paces.quantile(0.05), self.paces.quantile(0.95)
            pace = f"; the machine's pace from {low:.2f} to {high:.2f} (90 %), times at 1"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        note = (
            f"Measured {self.date} on {self.machine}; seed {self.seed}{serial}{late}{pace}; {versions}; 95 % intervals"
        )
        return f"<h3>Calibration</h3>{table}<p><small>{html.escape(note)}</small></p>"


async def calibrate(
    markets: Any,
    *more: Any,
    statements: Sequence[Statement] = STATEMENTS,
    rounds: int = 40,
    tolerance: float = 0.15,
    seed: int = 0,
    yardstick: Yardstick | None = None,
    progress: bool = False,
) -> Calibration:
    """Measure live marketplaces of several sizes, in interleaved rounds, and fit what a query takes.

    Parameters
    ----------
    markets, *more : Marketplace or Fleet
        At least three sizes; two numbers of shards tell what a shard costs from what is paid once.
    statements : sequence of Statement
        Each of one class, with a parameter that changes from query to query.
    rounds : int
        Queries of each statement over each market, at least 30.
    tolerance : float
        Relative error of a market's median, and distance of the noise's distribution, beyond which a fit is refused.
    seed : int
        Decides the parameters and the bootstrap.
    yardstick : Yardstick, optional
        Timed beside every query; a :class:`~mktsim.study.yardstick.SqliteYardstick` when absent.
    progress : bool
        Show a progress bar.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range; nothing was measured.
    CalibrationError
        If what was measured does not follow the model: a statement that spares vendors, times that are no sum of
        costs, noise of no known family, or queries that do not wait for each other.

    Examples
    --------
    Whatever answers one query after another is measured like a :class:`mktsim.Marketplace`: here on simulated time.

    >>> import asyncio
    >>> from types import SimpleNamespace
    >>> from mktsim.sim.loop import sim_run
    >>> class Market:
    ...     def __init__(self, vendors):
    ...         self.vendors, self.turn = vendors, asyncio.Lock()
    ...     async def query(self, sql, params=()):
    ...         work_s = (0.5 + 0.02 * self.vendors) / 1e3
    ...         async with self.turn:
    ...             await asyncio.sleep(work_s)
    ...         stats = SimpleNamespace(vendors_asked=self.vendors, rows_shipped=0, wall_s={"scatter": work_s})
    ...         return SimpleNamespace(stats=stats)
    >>> found = sim_run(calibrate(*(Fleet(n, 1, Market(n)) for n in (30, 100, 300)), statements=STATEMENTS[:1]))
    >>> round(found.fit("top-k").query_ms(1000, 1), 3)
    20.5
    """
    fleets = [Fleet.of(market) for market in (markets, *more)]
    _check_plan(fleets, statements, rounds, tolerance)
    streams = Streams(seed)
    largest = max(fleets, key=lambda fleet: fleet.vendors)
    with timing(yardstick) as stick, frozen_collector():
        measured = await measure_services(
            fleets, statements, rounds=rounds, streams=streams, yardstick=stick, progress=progress
        )
        serial = [await _serial(largest, statement, streams.child(f"burst/{turn}"))
                  for turn in range(4) for statement in statements]  # fmt: skip
        late_ms = await lateness()
    return fit_calibration(
        measured, statements=statements, tolerance=tolerance, seed=seed, serial=serial, late_ms=late_ms
    )


def timing(yardstick: Yardstick | None) -> AbstractContextManager[Yardstick]:
    """Return the yardstick for a block: the given one, or one that is made for it and closed after it.

    Parameters
    ----------
    yardstick : Yardstick or None

    Returns
    -------
    context manager

    Examples
    --------
    >>> with timing(None) as stick:
    ...     stick.time_ms() > 0
    True
    """
    return closing(SqliteYardstick()) if yardstick is None else nullcontext(yardstick)


def _check_plan(fleets: Sequence[Fleet], statements: Sequence[Statement], rounds: int, tolerance: float) -> None:
    if len({fleet.vendors for fleet in fleets}) < 3:
        sizes = sorted({fleet.vendors for fleet in fleets})
        raise InvalidArgumentError(f"a line needs at least three sizes to be seen as one; the markets have {sizes}")
    if not statements or not all(isinstance(each, Statement) for each in statements):
        raise InvalidArgumentError(f"statements must be Statements, at least one, not {statements!r:.80}")
    if len({each.name for each in statements}) < len(statements):
        raise InvalidArgumentError("two statements have one name")
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < LEAST_ROUNDS:
        raise InvalidArgumentError(f"rounds must be a whole number of at least {LEAST_ROUNDS}, not {rounds!r:.80}")
    if not isinstance(tolerance, int | float) or not 0 < tolerance <= 1:
        raise InvalidArgumentError(f"tolerance must be a share above 0, not {tolerance!r:.80}")


async def _serial(fleet: Fleet, statement: Statement, streams: Streams) -> float:
    """Return the median time between the answers of queries asked at once, over that of one alone."""
    u = streams.uniform("params", 0, _BURST + 3)
    alone = [(await timed(fleet, statement, float(value)))[0] for value in u[_BURST:]]
    ends_ms = await burst(fleet, statement, queries=_BURST, u=u.tolist())
    return float(np.median(np.diff(ends_ms)) / median(alone))


def fit_calibration(
    measured: pd.DataFrame,
    *,
    statements: Sequence[Statement],
    tolerance: float = 0.15,
    seed: int = 0,
    serial: Sequence[float] = (),
    late_ms: ArrayLike = (),
) -> Calibration:
    """Fit what :func:`~mktsim.study.measuring.measure_services` measured, wherever it comes from.

    Parameters
    ----------
    measured : DataFrame
        Its columns; each round must hold every fleet and statement once. Without ``began_ms`` and ``yardstick_ms`` the
        machine is taken to have been equally fast throughout.
    statements, tolerance, seed
        As of :func:`calibrate`.
    serial : sequence of float
        Times between the answers of queries asked at once, over that of one alone.
    late_ms : array of float
        How late timers were.

    Raises
    ------
    CalibrationError
        If the measurements do not follow the model.

    Examples
    --------
    >>> from mktsim.sim.latency import LogNormal
    >>> u = Streams(1).uniform("noise", 0, 150)
    >>> sizes = np.repeat([30, 100, 300], 50)
    >>> times = (0.5 + 0.02 * sizes) * LogNormal(1.0, 1.2).sample(u)
    >>> table = pd.DataFrame({"statement": "all", "vendors": sizes, "shards": 1, "round": np.tile(range(50), 3),
    ...                       "rows": 0, "scatter_ms": times, "gather_ms": 0.0, "rest_ms": 0.0, "total_ms": times})
    >>> found = fit_calibration(table, statements=[Statement("all", "SELECT ?", 0, 1)])
    >>> 0.02 in found.fit("all").vendor_ms, round(found.fit("all").query_ms(1000, 1))
    (True, 21)
    """
    fits, cells = {}, []
    measured, yardstick_ms, paces = _at_one_pace(measured)
    for statement in statements:
        mine = measured[measured["statement"] == statement.name]
        found, table = fit_service(mine, statement, tolerance, Streams(seed).child(f"bootstrap/{statement.name}"))
        fits[statement.name] = found
        cells.append(table)
    between = mean_interval(serial) if len(serial) > 1 else None
    if between is not None and abs(between.estimate - 1) > max(_QUEUEING, tolerance):
        raise CalibrationError(
            f"queries asked at once are answered {between} times one query's time apart, not 1: they are not "
            "answered by one loop one after another, which the model has; measure a market without an executor"
        )
    late = np.asarray(late_ms, float)
    shards = int(measured["shards"].to_numpy()[measured["vendors"].to_numpy().argmax()])
    return Calibration(
        fits, pd.concat(cells, ignore_index=True), shards, between,
        Empirical(tuple(late)) if len(late) else None, yardstick_ms, paces,
        seed, this_machine(), dt.datetime.now(dt.UTC).date().isoformat(),
    )  # fmt: skip


def _at_one_pace(measured: pd.DataFrame) -> tuple[pd.DataFrame, float, PaceTrace | None]:
    """Return what would have been measured at the median pace, what the yardstick took there, and the paces."""
    if not {"began_ms", "yardstick_ms"} <= set(measured) or not (measured["yardstick_ms"] > 0).all():
        return measured, 0.0, None
    ordered = measured.sort_values("began_ms", kind="stable")
    yardstick_ms = float(ordered["yardstick_ms"].median())
    paces = paces_of(ordered["yardstick_ms"], yardstick_ms)
    times = ["scatter_ms", "gather_ms", "rest_ms", "total_ms"]
    return (
        ordered.assign(**ordered[times].div(paces, axis=0)),
        yardstick_ms,
        PaceTrace(ordered["began_ms"].to_numpy(float), paces),
    )
