"""What a query takes, fitted to measurements: a sum of costs, its noise, its stalls, and how good the fit is.

Theory of operation
-------------------
A query's time is a sum of costs, once, a shard, a vendor and a row, each from the phase of the query in which it arises
(least squares of relative errors, no cost negative, on medians over rounds), times a noise factor of a fitted family.
What stalls some queries, a collection or the system, is told apart where a family alone does not fit: as often a
millisecond of work, and as long, whatever the query.

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
from mktsim.study.statistics import Interval

#: Rounds, below which no family of noise is told from another.
LEAST_ROUNDS: Final = 30
_BOOTSTRAPS: Final = 200
#: Kolmogorov's distance of n samples from their own law times the root of n, which chance exceeds once in a hundred.
_BY_CHANCE: Final = 1.63
_NOISES: Final = ("lognormal", "gamma", "exponential")
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


def fit_service(
    measured: pd.DataFrame, statement: Statement, tolerance: float, streams: Streams
) -> tuple[ServiceFit, pd.DataFrame]:
    """Fit one statement; return the fit, and one row a fleet: its median, and what the fit says of it.

    Raises
    ------
    InvalidArgumentError
        If the table does not hold every fleet in every round.
    CalibrationError
        If no sum of costs, or no family of noise, is near.
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
        if len(rest) >= LEAST_ROUNDS and len(tail) >= 5 and np.ptp(rest) > 0 and cut > 1:
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
