"""What a query takes, fitted to measurements: a sum of costs, its noise, its stalls, and how good the fit is.

Theory of operation
-------------------
A query's time is a sum of costs, once, a shard, a vendor and a row, each from the phase of the query in which it arises
(least squares of relative errors, no cost negative, on medians over rounds), times a noise factor of a fitted family.
What stalls some queries, a collection or the system, is told apart where a family alone does not fit: as often a
millisecond of work, and as long, whatever the query.

A family fits if chance may have made its distance from the measurements (Kolmogorov's), and if its p95 and p99 lie
within the order-statistic intervals (99 %) of the measured ones: the distance does not see the one query of a hundred
that decides a p99. Where the simplest families do not, that one is taken which is nearest in both, stalls included. It
is refused where its p95 or p99 is outside the measured interval and further off than the tolerance. A hundred queries
bound a p99 from below only, and then a wrong one cannot be refused: so the fitted and the measured one stand side by
side in whatever shows a fit.

What this does not do
---------------------
Noise is independent from query to query, where a real machine is slow for a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import nnls

from mktsim.errors import CalibrationError, InvalidArgumentError
from mktsim.sim.latency import Constant, Gamma, Latency, Mixture, Shifted
from mktsim.streams import Streams
from mktsim.study.calibration import fit_latency
from mktsim.study.measuring import Statement
from mktsim.study.statistics import Interval, quantile_ranks, samples_for_quantile

#: Rounds, below which no family of noise is told from another.
LEAST_ROUNDS: Final = 30
_BOOTSTRAPS: Final = 200
#: Kolmogorov's distance of n samples from their own law times the root of n, which chance exceeds once in a hundred.
_BY_CHANCE: Final = 1.63
_NOISES: Final = ("lognormal", "gamma", "exponential")
#: Quantiles at which the noise's tail is compared, and how sure the measured ones' intervals are.
_TAIL: Final = (0.95, 0.99)
_SURE: Final = 0.99
#: Shares of the queries that may have been stalled, and how many it takes to say how long.
_STALLED: Final = (0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
_LEAST_STALLS: Final = 4
#: Phases of a query, and what each is a sum of.
_PHASES: Final = {
    "scatter_ms": ("once", "shards", "vendors"),
    "gather_ms": ("once", "rows"),
    "rest_ms": ("once", "shards"),
}


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
class Tail:
    """A quantile of the noise, fitted and measured, each over its median.

    Attributes
    ----------
    p : float
    fitted : float
    measured : Interval
        By order statistics, at 99 %; open above (infinite) where there are too few queries.

    Examples
    --------
    >>> tail = Tail(0.99, 2.0, Interval(1.6, 1.5, 1.8, 1000, 0.99))
    >>> round(tail.gap, 2), tail.is_off(0.15), print(tail)
    p99 2 times the median, measured 1.6: 25 % more than measured
    (0.25, True, None)
    """

    p: float
    fitted: float
    measured: Interval

    @property
    def gap(self) -> float:
        """How much more, relative to it, the fitted one is than the measured one."""
        return self.fitted / self.measured.estimate - 1

    def is_off(self, tolerance: float) -> bool:
        """Whether the fitted one is outside the measured one's interval, and further off than the tolerance."""
        return self.fitted not in self.measured and abs(self.gap) > tolerance

    def __str__(self) -> str:
        off = f"{abs(100 * self.gap):.2g} % {'more' if self.gap > 0 else 'less'} than measured"
        return f"p{100 * self.p:g} {self.fitted:.3g} times the median, measured {self.measured.estimate:.3g}: {off}"


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
    tails : tuple of Tail
        The p95 and p99 of the noise, fitted and measured.
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
    tails: tuple[Tail, ...]
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


def fit_service(
    measured: pd.DataFrame, statement: Statement, tolerance: float, streams: Streams
) -> tuple[ServiceFit, pd.DataFrame]:
    """Fit one statement; return the fit, and one row a fleet: its median, and what the fit says of it.

    Raises
    ------
    InvalidArgumentError
        If the table does not hold every fleet in every round.
    CalibrationError
        If no sum of costs, or no family of noise, is near, or the nearest family's p95 or p99 is not the measured one.
    """
    keys = ["vendors", "shards"]
    groups = {key: part.sort_values("round") for key, part in measured.groupby(keys)}
    rounds = {len(part) for part in groups.values()}
    if len(groups) < 3 or len(rounds) != 1 or min(rounds) < LEAST_ROUNDS:
        raise InvalidArgumentError(
            f"{statement.name!r:.80} needs at least three fleets of {LEAST_ROUNDS} rounds each, as many of each, not "
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
    apart = middle[:, -2] / fitted - 1
    weights = middle[:, -2] ** -2.0
    mean = np.average(middle[:, -2], weights=weights)
    r_squared = 1 - float(
        np.sum(weights * (middle[:, -2] - fitted) ** 2) / np.sum(weights * (middle[:, -2] - mean) ** 2)
    )
    worst = float(np.abs(apart).max())
    if worst > tolerance:
        at = int(np.abs(apart).argmax())
        raise CalibrationError(
            f"{statement.name!r:.80}: a query over {vendors[at]:,.0f} vendors takes {middle[at, -2]:.3g} ms where a "
            f"sum of costs says {fitted[at]:.3g} ms, {100 * worst:.0f} % off (tolerance {100 * tolerance:.0f} %): the "
            "time is no sum of a cost once, a shard, a vendor and a row, or the machine was not quiet"
        )
    # The noise that counts is the largest fleets': each against its own median, so that the line's error is not in it.
    large = vendors >= vendors.max() / 2
    reference_ms = float(middle[large, -2].mean())
    noise = _fit_noise((times[large, :, -2] / middle[large, -2:-1]).ravel(), reference_ms, tolerance)
    family, body, stalls, distance, tails = noise.family, noise.body, noise.stalls, noise.distance, noise.tails
    if distance > max(tolerance, _BY_CHANCE / float(np.sqrt(count * large.sum()))):
        raise CalibrationError(
            f"{statement.name!r:.80}: the noise of its times is {distance:.2f} from the best family ({family}), more "
            f"than {tolerance:g}: something else ran on the machine, or two kinds of queries are mixed"
        )
    off = [tail for tail in tails if tail.is_off(tolerance)]
    if off:
        raise CalibrationError(
            f"{statement.name!r:.80}: the tail of the noise of its times is that of no family; the nearest ({family}) "
            f"has a {'; a '.join(map(str, off))} (99 % interval {off[0].measured.low:.3g} to "
            f"{off[0].measured.high:.3g}, tolerance {100 * tolerance:.0f} %): something else ran on the machine, or "
            "two kinds of queries are mixed"
        )

    def interval(name: str) -> Interval:
        low, high = np.quantile([each[name] for each in drawn], (0.025, 0.975)).tolist()
        return Interval(terms[name], min(low, terms[name]), max(high, terms[name]), count)

    fit = ServiceFit(
        statement, interval("once"), interval("shards"), interval("vendors"), interval("rows"), float(by_shard),
        float(by_vendor), body, stalls, reference_ms, family, distance, tails, r_squared, worst, times.shape[0] * count,
    )  # fmt: skip
    table = pd.DataFrame(
        {"statement": statement.name, "vendors": vendors.astype(int), "shards": shards.astype(int),
         "rows": middle[:, -1], "measured_ms": middle[:, -2], "fitted_ms": fitted, "us_a_vendor":
         1e3 * middle[:, 0] / vendors, "error": -apart / (1 + apart)}
    )  # fmt: skip
    return fit, table


@dataclass(frozen=True, slots=True)
class _Noise:
    """One way to describe the noise, and how near it is."""

    family: str
    body: Latency
    stalls: Stalls | None
    distance: float
    tails: tuple[Tail, ...]

    def apart(self, tolerance: float, n: int) -> float:
        """How far it is from the measurements, body and tail, in what is allowed of either."""
        return max(self.distance * float(np.sqrt(n)) / _BY_CHANCE, *(abs(tail.gap) / tolerance for tail in self.tails))


def _fit_noise(factors: NDArray[np.float64], query_ms: float, tolerance: float) -> _Noise:
    """Fit factors around 1: a family, one above a floor, or, where neither does, one with stalls.

    No luck makes a query faster than its floor.
    """
    if np.ptp(factors) < 1e-9:
        return _Noise("none", Constant(1.0), None, 0.0, ())
    measured = {p: _tail_interval(factors, p) for p in _TAIL}

    def near(family: str, body: Latency, stalls: Stalls | None = None) -> _Noise:
        noise = body if stalls is None else stalls.with_body(body, query_ms)
        distance = float(stats.kstest(factors, cast(Any, noise.cdf)).statistic)
        middle = noise.quantile(0.5)
        tails = tuple(Tail(p, noise.quantile(p) / middle, interval) for p, interval in measured.items())
        return _Noise(family, body, stalls, distance, tails)

    plain = fit_latency(factors, families=_NOISES[:2])[0]
    above, criterion = _above_floor(factors)
    # The floor is one more parameter.
    simple = near(plain.family, plain.latency) if plain.criterion <= criterion + 2 else near(*above)
    if simple.distance * np.sqrt(len(factors)) <= 1 and all(tail.fitted in tail.measured for tail in simple.tails):
        return simple
    found = [simple, near(*above)]
    # Where nothing is between those that were stalled and the others, the gap tells how many they were.
    upper = np.log(np.sort(factors)[len(factors) // 2 :])
    for share in (*_STALLED, (len(upper) - 1 - int(np.diff(upper).argmax())) / len(factors)):
        cut = float(np.quantile(factors, 1 - share))
        slow, rest = factors[factors > cut], factors[factors <= cut]
        if len(rest) >= LEAST_ROUNDS and len(slow) >= _LEAST_STALLS and np.ptp(rest) > 0 and cut > 1:
            # By moments: an exponential excess has a standard deviation as large as its mean.
            least = max(cut, float(slow.mean() - slow.std(ddof=1)))
            stalls = Stalls(
                -float(np.log1p(-share)) / query_ms, (least - 1) * query_ms, float(slow.mean() - least) * query_ms
            )
            whole = fit_latency(rest, families=_NOISES[:2])[0]
            found += [
                near(f"{family}, {100 * share:.2g} % stalled", body, stalls)
                for family, body in ((whole.family, whole.latency), _above_floor(rest)[0])
            ]
    return min(found, key=lambda each: each.apart(tolerance, len(factors)))


def _tail_interval(factors: NDArray[np.float64], p: float) -> Interval:
    """Return a quantile of the factors over their median, between order statistics; open above where there are few."""
    x = np.sort(factors) / np.median(factors)
    n = len(x)
    estimate = float(np.quantile(x, p))
    if n >= samples_for_quantile(p, confidence=_SURE):
        lower, upper = quantile_ranks(n, p, confidence=_SURE)
        return Interval(estimate, float(x[lower - 1]), float(x[upper - 1]), n, _SURE)
    lower = int(stats.binom(n, p).ppf((1 - _SURE) / 2))
    return Interval(estimate, float(x[max(lower, 1) - 1]), np.inf, n, _SURE)


def _above_floor(factors: NDArray[np.float64]) -> tuple[tuple[str, Latency], float]:
    """Return the family that fits best above a floor a little below the least factor, and Akaike's criterion of it."""
    least = float(factors.min())
    floor = max(0.0, least - (float(np.median(factors)) - least) / len(factors) - 1e-9)
    fit = fit_latency(factors - floor, families=_NOISES)[0]
    return (f"{fit.family} above {floor:.3f}", Shifted(floor, fit.latency)), fit.criterion
