"""A live market calibrated: what a query takes, measured over markets of several sizes, fitted, and made a scenario.

Rules
-----
What does not follow the model is refused by name, never fitted all the same. A result says how good it is, where and
when it was measured, and by which programs.

Theory of operation
-------------------
A live market is one server: the loop, which answers one query after another. A query's time is a sum of costs, once, a
shard, a vendor and a row, each from the phase of the query in which it arises (least squares of relative errors, no
cost negative, on medians over rounds), times a noise factor of a fitted family. What stalls some queries, a collection
or the system, is told apart where a family alone does not fit: as often a millisecond of work, and as long, whatever
the query. The model's two claims are measured, not assumed: that times are such a sum over fleets of several sizes, and
that queries asked at once end one query's time apart.

What this does not do
---------------------
Noise is independent from query to query, where a real machine is slow for a while; caches that only larger fleets
overflow, and collections that only their answers trigger, are not in it: `mktsim.study.prediction` measures what that
amounts to.
"""

from __future__ import annotations

import datetime as dt
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import nnls

from mktsim.errors import CalibrationError, InvalidArgumentError
from mktsim.sim.latency import Constant, Empirical, Gamma, Latency, Mixture, Shifted
from mktsim.sim.world import World
from mktsim.streams import Streams
from mktsim.study.calibration import fit_latency, this_machine
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
from mktsim.study.statistics import Interval, mean_interval

#: Rounds, below which no family of noise is told from another.
_LEAST: Final = 30
_BURST: Final = 6
_BOOTSTRAPS: Final = 200
#: How far from one loop's queue the answers of a burst may be.
_QUEUEING: Final = 0.3
#: Kolmogorov's distance of n samples from their own law times the root of n, which chance exceeds once in a hundred.
_BY_CHANCE: Final = 1.63
_NOISES: Final = ("lognormal", "gamma", "exponential")


@dataclass(frozen=True, slots=True)
class Stalls:
    """Pauses of the loop: as many a millisecond of work whatever the query, so that a long one meets several.

    Attributes
    ----------
    per_ms : float
        How many, on average, in a millisecond of work.
    least_ms, mean_excess_ms : float
        Each takes at least so long, and so much more on average, exponentially distributed.
    """

    per_ms: float
    least_ms: float
    mean_excess_ms: float

    def with_body(self, body: Latency, query_ms: float) -> Latency:
        """Return the factor on a query's time that the body and the stalls make together.

        Examples
        --------
        >>> noise = Stalls(0.01, 1.0, 1.0).with_body(Constant(1.0), 10.0)
        >>> round(noise.mean_ms, 3), noise.quantile(0.5)  # A tenth of a stall of 2 ms in 10 ms.
        (1.02, 1.0)
        """
        count = stats.poisson(self.per_ms * query_ms)
        most = max(1, int(count.isf(1e-6)))
        parts = [body] + [
            Shifted(1 + j * self.least_ms / query_ms, Gamma(float(j), j * self.mean_excess_ms / query_ms))
            for j in range(1, most + 1)
        ]
        return Mixture(tuple(float(count.pmf(j)) for j in range(most + 1)), tuple(parts))


@dataclass(frozen=True, slots=True)
class ServiceFit:
    """What one query of a statement takes, fitted to measurements, and how well.

    Attributes
    ----------
    statement : Statement
    fixed_ms, shard_ms, vendor_ms, row_ms : Interval
        A query's time is their sum: once, a shard asked, a vendor scanned, a row shipped and gathered. Intervals by a
        bootstrap over rounds.
    rows_per_shard, rows_per_vendor : float
        How many rows are shipped.
    body : Latency
        Factor, without unit, by which a query that nothing stalls takes more or less than that.
    stalls : Stalls or None
        Pauses that some queries meet, where they are told from the body.
    reference_ms : float
        The query over the largest fleets, of which the noise was taken.
    family : str
        Of the noise.
    distance : float
        Largest difference of the noise's distribution function from that of the measurements, from 0 to 1.
    r_squared : float
        Share of the variance between fleets that the sum explains, weighted by relative error.
    worst : float
        Largest relative error of a fleet's median.
    n : int
        Queries.
    """

    statement: Statement
    fixed_ms: Interval
    shard_ms: Interval
    vendor_ms: Interval
    row_ms: Interval
    rows_per_shard: float
    rows_per_vendor: float
    body: Latency
    stalls: Stalls | None
    reference_ms: float
    family: str
    distance: float
    r_squared: float
    worst: float
    n: int

    def query_ms(self, vendors: int, shards: int) -> float:
        """Return what a query takes, without noise, ms."""
        rows = self.rows_per_shard * shards + self.rows_per_vendor * vendors
        parts = (1, self.fixed_ms), (shards, self.shard_ms), (vendors, self.vendor_ms), (rows, self.row_ms)
        return sum(count * term.estimate for count, term in parts)

    def noise(self, query_ms: float) -> Latency:
        """Return the factor, without unit, by which a query of so many ms takes more or less."""
        return self.body if self.stalls is None else self.stalls.with_body(self.body, query_ms)


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
    seed : int
    machine, date : str
    versions : mapping of str to str
    """

    fits: Mapping[str, ServiceFit]
    cells: pd.DataFrame
    shards: int
    serial: Interval | None
    late: Latency | None
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

    def world(self, *, vendors: int, statement: str, shards: int | None = None, timers: bool = False) -> World:
        """Return the world of one loop that answers this statement over so many vendors.

        All vendors stand on one machine that serves one call at a time, as the loop does; a query's whole time is
        divided among its calls, and its noise is their common pace. With `timers` a request begins as late as the
        loop's timers are, which is what an open loop adds.
        """
        fit = self.fit(statement)
        whole = fit.query_ms(vendors, self.shards if shards is None else shards)
        late = self.late if timers and self.late is not None else Constant(0.0)
        return World(base=late, pace=fit.noise(whole), service=Constant(whole / vendors), machines=1)

    def scenario(self, *, vendors: int, statement: str, shards: int | None = None, timers: bool = False) -> Scenario:
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
        world = self.world(vendors=vendors, statement=statement, shards=shards, timers=timers)
        middle = fit.statement.params(0.5)
        return Scenario(vendors=vendors, world=world, statement=fit.statement.sql, params=middle)

    def summary(self) -> pd.DataFrame:
        """Return one row a statement: its terms, its noise and how good the fit is."""
        rows = []
        for name, fit in self.fits.items():
            terms = (("fixed, us", fit.fixed_ms), ("a shard, us", fit.shard_ms), ("a vendor, us", fit.vendor_ms),
                     ("a row, us", fit.row_ms))  # fmt: skip
            texts = {title: f"{1e3 * t.estimate:.4g} [{1e3 * t.low:.4g}, {1e3 * t.high:.4g}]" for title, t in terms}
            noise = fit.noise(fit.reference_ms)
            p99 = noise.quantile(0.99) / noise.quantile(0.5)
            rows.append(
                {"statement": name, **texts, "R²": fit.r_squared, "worst fleet": fit.worst, "noise": fit.family,
                 "p99 / p50": p99, "KS distance": fit.distance, "n": fit.n}
            )  # fmt: skip
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        terms = "; ".join(
            f"{name} {1e3 * fit.vendor_ms.estimate:.3g} us a vendor (worst fleet {100 * fit.worst:.2g} % off)"
            for name, fit in self.fits.items()
        )
        return f"<Calibration of {self.date}, seed {self.seed}: {terms}>"

    def _repr_html_(self) -> str:
        table = self.summary().to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}", escape=True)
        serial = "" if self.serial is None else f"; queries asked at once, one after another: {self.serial} times alone"
        late = "" if self.late is None else f"; timers late by {self.late.quantile(0.5):.2g} ms (median)"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        note = f"Measured {self.date} on {self.machine}; seed {self.seed}{serial}{late}; {versions}; 95 % intervals"
        return f"<h3>Calibration</h3>{table}<p><small>{html.escape(note)}</small></p>"


async def calibrate(
    markets: Any,
    *more: Any,
    statements: Sequence[Statement] = STATEMENTS,
    rounds: int = 40,
    tolerance: float = 0.15,
    seed: int = 0,
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
    progress : bool
        Show a progress bar.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range; nothing was measured.
    CalibrationError
        If what was measured does not follow the model: a statement that spares vendors, times that are no sum of
        costs, noise of no known family, or queries that do not wait for each other.
    """
    fleets = [Fleet.of(market) for market in (markets, *more)]
    _check_plan(fleets, statements, rounds, tolerance)
    streams = Streams(seed)
    largest = max(fleets, key=lambda fleet: fleet.vendors)
    with frozen_collector():
        measured = await measure_services(fleets, statements, rounds=rounds, streams=streams, progress=progress)
        serial = [await _serial(largest, statement, streams.child(f"burst/{turn}"))
                  for turn in range(4) for statement in statements]  # fmt: skip
        late_ms = await lateness()
    return fit_calibration(
        measured, statements=statements, tolerance=tolerance, seed=seed, serial=serial, late_ms=late_ms
    )


def _check_plan(fleets: Sequence[Fleet], statements: Sequence[Statement], rounds: int, tolerance: float) -> None:
    if len({fleet.vendors for fleet in fleets}) < 3:
        sizes = sorted({fleet.vendors for fleet in fleets})
        raise InvalidArgumentError(f"a line needs at least three sizes to be seen as one; the markets have {sizes}")
    if not statements or not all(isinstance(each, Statement) for each in statements):
        raise InvalidArgumentError(f"statements must be Statements, at least one, not {statements!r:.80}")
    if len({each.name for each in statements}) < len(statements):
        raise InvalidArgumentError("two statements have one name")
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < _LEAST:
        raise InvalidArgumentError(f"rounds must be a whole number of at least {_LEAST}, not {rounds!r:.80}")
    if not isinstance(tolerance, int | float) or not 0 < tolerance <= 1:
        raise InvalidArgumentError(f"tolerance must be a share above 0, not {tolerance!r:.80}")


async def _serial(fleet: Fleet, statement: Statement, streams: Streams) -> float:
    """Return the median time between the answers of queries asked at once, over that of one alone."""
    u = streams.uniform("params", 0, _BURST + 3)
    alone = [(await timed(fleet, statement, float(value)))[0] for value in u[_BURST:]]
    ends_ms = await burst(fleet, statement, queries=_BURST, u=u.tolist())
    return float(np.median(np.diff(ends_ms)) / median(alone))


#: Phases of a query, and what each is a sum of.
_PHASES: Final = {
    "scatter_ms": ("once", "shards", "vendors"),
    "gather_ms": ("once", "rows"),
    "rest_ms": ("once", "shards"),
}


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
        Its columns; each round must hold every fleet and statement once.
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
    for statement in statements:
        mine = measured[measured["statement"] == statement.name]
        found, table = _fit_service(mine, statement, tolerance, Streams(seed).child(f"bootstrap/{statement.name}"))
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
        Empirical(tuple(late)) if len(late) else None,
        seed, this_machine(), dt.datetime.now(dt.UTC).date().isoformat(),
    )  # fmt: skip


def _fit_service(
    measured: pd.DataFrame, statement: Statement, tolerance: float, streams: Streams
) -> tuple[ServiceFit, pd.DataFrame]:
    keys = ["vendors", "shards"]
    groups = {key: part.sort_values("round") for key, part in measured.groupby(keys)}
    rounds = {len(part) for part in groups.values()}
    if len(groups) < 3 or len(rounds) != 1 or min(rounds) < _LEAST:
        raise InvalidArgumentError(
            f"{statement.name!r:.80} needs at least three fleets of {_LEAST} rounds each, as many of each, not "
            f"{len(groups)} of {sorted(rounds)}"
        )
    count = rounds.pop()
    vendors, shards = (np.array(column, float) for column in zip(*groups, strict=True))
    columns = [*_PHASES, "total_ms", "rows"]
    times = np.stack([part[columns].to_numpy(float) for part in groups.values()])  # Fleets x rounds x columns.

    def terms_of(sample: NDArray[np.float64]) -> dict[str, float]:
        middle = np.median(sample, axis=1)
        counts = {"once": np.ones_like(vendors), "shards": shards, "vendors": vendors, "rows": middle[:, -1]}
        terms = dict.fromkeys(counts, 0.0)
        weights = 1 / middle[:, -2]  # Relative errors count, small fleets as much as large ones.
        for place, names in enumerate(_PHASES.values()):
            used = [name for name in names if name == "once" or np.ptp(counts[name]) > 0]
            design = np.stack([counts[name] for name in used], axis=1) * weights[:, None]
            for name, value in zip(used, nnls(design, middle[:, place] * weights)[0], strict=True):
                terms[name] += float(value)
        return terms

    terms = terms_of(times)
    drawn = [terms_of(times[:, (streams.uniform("rounds", turn, count) * count).astype(int)])
             for turn in range(_BOOTSTRAPS)]  # fmt: skip
    middle = np.median(times, axis=1)
    by_shard, by_vendor = nnls(np.stack([shards, vendors], axis=1) / middle[:, -2:-1], middle[:, -1] / middle[:, -2])[0]
    fitted = terms["once"] + terms["shards"] * shards + terms["vendors"] * vendors + terms["rows"] * middle[:, -1]
    off = middle[:, -2] / fitted - 1
    weights = middle[:, -2] ** -2.0
    mean = np.average(middle[:, -2], weights=weights)
    r_squared = 1 - float(
        np.sum(weights * (middle[:, -2] - fitted) ** 2) / np.sum(weights * (middle[:, -2] - mean) ** 2)
    )
    worst = float(np.abs(off).max())
    if worst > tolerance:
        at = int(np.abs(off).argmax())
        raise CalibrationError(
            f"{statement.name!r:.80}: a query over {vendors[at]:,.0f} vendors takes {middle[at, -2]:.3g} ms where a "
            f"sum of costs says {fitted[at]:.3g} ms, {100 * worst:.0f} % off (tolerance {100 * tolerance:.0f} %): the "
            "time is no sum of a cost once, a shard, a vendor and a row, or the machine was not quiet"
        )
    # The noise that counts is the largest fleets': each against its own median, so that the line's error is not in it.
    large = vendors >= vendors.max() / 2
    reference_ms = float(middle[large, -2].mean())
    family, body, stalls, distance = _fit_noise((times[large, :, -2] / middle[large, -2:-1]).ravel(), reference_ms)
    if distance > max(tolerance, _BY_CHANCE / float(np.sqrt(count * large.sum()))):
        raise CalibrationError(
            f"{statement.name!r:.80}: the noise of its times is {distance:.2f} from the best family ({family}), more "
            f"than {tolerance:g}: something else ran on the machine, or two kinds of queries are mixed"
        )

    def interval(name: str) -> Interval:
        low, high = np.quantile([each[name] for each in drawn], (0.025, 0.975)).tolist()
        return Interval(terms[name], min(low, terms[name]), max(high, terms[name]), count)

    fit = ServiceFit(
        statement, interval("once"), interval("shards"), interval("vendors"), interval("rows"), float(by_shard),
        float(by_vendor), body, stalls, reference_ms, family, distance, r_squared, worst, times.shape[0] * count,
    )  # fmt: skip
    table = pd.DataFrame(
        {"statement": statement.name, "vendors": vendors.astype(int), "shards": shards.astype(int),
         "rows": middle[:, -1], "measured_ms": middle[:, -2], "fitted_ms": fitted, "us_a_vendor":
         1e3 * middle[:, 0] / vendors, "error": -off / (1 + off)}
    )  # fmt: skip
    return fit, table


def _fit_noise(factors: NDArray[np.float64], query_ms: float) -> tuple[str, Latency, Stalls | None, float]:
    """Fit factors around 1: a family, one above a floor, or, where neither does, one with stalls.

    No luck makes a query faster than its floor.
    """
    if np.ptp(factors) < 1e-9:
        return "none", Constant(1.0), None, 0.0

    def distance(noise: Latency) -> float:
        return float(stats.kstest(factors, cast(Any, noise.cdf)).statistic)

    plain = fit_latency(factors, families=_NOISES[:2])[0]
    above, criterion = _above_floor(factors)
    # The floor is one more parameter.
    family, body = (plain.family, plain.latency) if plain.criterion <= criterion + 2 else above
    found: tuple[str, Latency, Stalls | None, float] = family, body, None, distance(body)
    if found[3] * np.sqrt(len(factors)) <= 1:
        return found
    for share in (0.2, 0.1, 0.05):
        cut = float(np.quantile(factors, 1 - share))
        tail = factors[factors > cut] - cut
        rest = factors[factors <= cut]
        if len(rest) >= _LEAST and len(tail) >= 5 and np.ptp(rest) > 0 and cut > 1:
            (family, body), _ = _above_floor(rest)
            stalls = Stalls(-float(np.log1p(-share)) / query_ms, (cut - 1) * query_ms, float(tail.mean()) * query_ms)
            name = f"{family}, {100 * share:.0f} % stalled"
            found = min(found, (name, body, stalls, distance(stalls.with_body(body, query_ms))), key=lambda one: one[3])
    return found


def _above_floor(factors: NDArray[np.float64]) -> tuple[tuple[str, Latency], float]:
    """Return the family that fits best above a floor a little below the least factor, and Akaike's criterion of it."""
    least = float(factors.min())
    floor = max(0.0, least - (float(np.median(factors)) - least) / len(factors) - 1e-9)
    fit = fit_latency(factors - floor, families=_NOISES)[0]
    return (f"{fit.family} above {floor:.3f}", Shifted(floor, fit.latency)), fit.criterion
