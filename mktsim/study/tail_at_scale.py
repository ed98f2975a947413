"""Published measurements of fan-out, and how far this package's models reproduce them.

Rules
-----
A number of a model is marked by what it is: an *input* (published, and used as it is), *fitted* (to the numbers beside
it) or *predicted* (from inputs and fits of other rows). Where no model of a class can have the published numbers, the
answer is a named verdict with the inequality that is violated, not a fit.

Sources: Dean & Barroso, The Tail at Scale, CACM 56(2), 2013, tables 1 and 2 and the text; the platform's table from a
public project's measurements of deployed Durable Objects, 2026.

Theory of operation
-------------------
Let n leaves answer, and T be when a share s of them has: T >= t means that at least m = n - ceil(s n) + 1 leaves take t
or longer. So 1 - p <= P(T >= t) <= n P(leaf >= t) / m by Markov's inequality, however the leaves depend on each other;
and for independent leaves P(leaf >= t) is at least the q at which a binomial(n, q) reaches m with probability 1 - p.
What the leaf's own quantiles allow must not be less.

Worked example, table 1: 95 % of the leaves take 12 ms or longer in half of the requests, so P(leaf >= 12 ms) is at
least 2.5 %. But one leaf's 99th percentile is 10 ms: at most 1 %. So something besides the leaves must take time:
the coordinator.

What this does not do
---------------------
Table 1 does not say how many leaves there are; the fit finds a number, which is an assumption that happens to work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import betaincinv, ndtr, ndtri
from scipy.stats import multivariate_normal

from mktsim.errors import InvalidArgumentError
from mktsim.sim.events import event_sojourn_times
from mktsim.sim.latency import Empirical, LogNormal
from mktsim.sim.vectorised import Policy, vectorised_sojourn_times
from mktsim.sim.world import LEAF, TICK_S, World, load_preset
from mktsim.streams import Streams
from mktsim.study.analytic import slow_share

Array = NDArray[np.float64]
Quantiles = Mapping[float, float]

#: Table 1, ms by quantile: one random leaf, 95 % of all leaves, all leaves.
TABLE_1: Final[Mapping[str, Quantiles]] = {
    "one leaf": {0.5: 1, 0.95: 5, 0.99: 10},
    "95 % of leaves": {0.5: 12, 0.95: 32, 0.99: 70},
    "all leaves": {0.5: 40, 0.95: 87, 0.99: 140},
}
#: Table 2, ms by quantile: one read, and tied reads after 1 ms, on an idle cluster and beside a sort job.
TABLE_2: Final[Mapping[str, tuple[Quantiles, Quantiles]]] = {
    "idle": ({0.5: 19, 0.9: 38, 0.99: 67, 0.999: 98}, {0.5: 16, 0.9: 29, 0.99: 42, 0.999: 61}),
    "sort job": ({0.5: 24, 0.9: 56, 0.99: 108, 0.999: 159}, {0.5: 19, 0.9: 38, 0.99: 67, 0.999: 108}),
}
#: One object calling N others, (p50, p99) in ms: flat, and by a program that goes over to a tree of branch 6 from
#: N > 100 on, and is a flat loop below.
PLATFORM: Final[Mapping[int, tuple[tuple[float, float], tuple[float, float]]]] = {
    10: ((61, 77), (47, 58)),
    50: ((96, 151), (101, 153)),
    100: ((142, 243), (151, 254)),
    250: ((296, 522), (317, 590)),
}
_TREE_ABOVE: Final = 100


# --- feasibility -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inequality:
    """What a row of a table requires of one leaf, against what the leaf's own quantiles allow."""

    row: str
    quantile: float
    t_ms: float
    required: float
    allowed: float
    rule: str

    def __str__(self) -> str:
        return (
            f"{self.row}, p{100 * self.quantile:g} = {self.t_ms:g} ms requires P(leaf >= {self.t_ms:g} ms) >= "
            f"{self.required:.4g} ({self.rule}); the leaf's quantiles allow {self.allowed:.4g}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether leaves alone can have the table's numbers.

    Attributes
    ----------
    name : str
        ``feasible``, ``infeasible for independent leaves``, or ``infeasible for leaves however dependent``.
    violated : tuple of Inequality
        Those that do not hold.
    """

    name: str
    violated: tuple[Inequality, ...]

    @property
    def feasible(self) -> bool:
        """Whether no inequality is violated; it is no proof that a distribution exists."""
        return not self.violated

    def __str__(self) -> str:
        return "; ".join([self.name, *map(str, self.violated)])


def leaves_alone(leaf: Quantiles, rows: Mapping[str, tuple[float, Quantiles]], *, leaves: int | None = None) -> Verdict:
    """Judge whether requests can wait as long as a table says, for nothing but their leaves.

    Parameters
    ----------
    leaf : mapping
        One leaf's times in ms by quantile.
    rows : mapping
        By name: the share of the leaves that is waited for, and the request's times by quantile.
    leaves : int, optional
        How many; when absent, what holds however many there are.

    Raises
    ------
    InvalidArgumentError
        If a quantile or a share is out of range, or quantiles fall.

    Examples
    --------
    >>> table = {"95 % of leaves": (0.95, {0.5: 12})}
    >>> print(leaves_alone({0.5: 1, 0.95: 5, 0.99: 10}, table).violated[0])
    95 % of leaves, p50 = 12 ms requires P(leaf >= 12 ms) >= 0.025 (Markov); the leaf's quantiles allow 0.01
    >>> leaves_alone({0.99: 10}, {"95 % of leaves": (0.95, {0.5: 9})}, leaves=100).feasible
    True
    """
    _check_quantiles("leaf", leaf)
    if leaves is not None and (not isinstance(leaves, int) or isinstance(leaves, bool) or leaves < 1):
        raise InvalidArgumentError(f"leaves must be a whole number of at least 1, not {leaves!r:.80}")
    violated: list[Inequality] = []
    for name, (share, quantiles) in rows.items():
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise InvalidArgumentError(f"the share of row {name!r:.80} must be inside (0, 1], not {share!r:.80}")
        _check_quantiles(name, quantiles)
        for p, t_ms in quantiles.items():
            allowed = min((1 - q for q, ms in leaf.items() if ms < t_ms), default=1.0)
            if leaves is None:
                bounds = {"Markov": (1 - p) * (1 - share)}
            else:
                late = leaves - math.ceil(share * leaves - 1e-9) + 1
                bounds = {
                    "Markov": (1 - p) * late / leaves,
                    "independent leaves": float(betaincinv(late, leaves - late + 1, 1 - p)),
                }
            violated += [
                Inequality(name, p, t_ms, bound, allowed, rule) for rule, bound in bounds.items() if bound > allowed
            ]
    if not violated:
        return Verdict("feasible", ())
    any_dependence = any(inequality.rule == "Markov" for inequality in violated)
    kind = "leaves however dependent" if any_dependence else "independent leaves"
    return Verdict(f"infeasible for {kind}", tuple(violated))


def _check_quantiles(name: str, quantiles: Quantiles) -> None:
    values = sorted(quantiles.items())
    good = bool(values) and all(0 < p < 1 and 0 <= ms < math.inf for p, ms in values)
    if not good or any(b[1] < a[1] for a, b in pairwise(values)):
        raise InvalidArgumentError(f"{name} needs times in ms by quantile, rising, not {quantiles!r:.80}")


# --- table 1 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """A world fitted to table 1, and why leaves alone do not do.

    Attributes
    ----------
    verdict : Verdict
        On leaves alone.
    world : World
        Leaves (`service`), what a request's leaves have in common (`pace`), what the coordinator costs besides
        (`base`) and for each answer (`fan_in_ms`).
    leaves : int
        How many; fitted, for the paper does not say.
    """

    verdict: Verdict
    world: World
    leaves: int


def calibrate_table_1(*, samples: int = 1000, seed: int = 1) -> Calibration:
    """Fit the leaves, a request effect and a coordinator's costs to table 1; the verdict says why they are needed.

    The leaf is lognormal, which its three quantiles are within 2 %. The other parameters minimise the squared
    logarithms of model over published in the rows of many leaves.
    """
    leaf = TABLE_1["one leaf"]
    rows = {"95 % of leaves": (0.95, TABLE_1["95 % of leaves"]), "all leaves": (1.0, TABLE_1["all leaves"])}
    verdict = leaves_alone(leaf, rows)
    sigma = float(np.mean([math.log(leaf[p]) / ndtri(p) for p in (0.95, 0.99)]))
    streams = Streams(seed)
    # One in each of as many equal strata, in three independent orders: quantiles of the model are then smooth.
    strata = (np.arange(samples) + 0.5) / samples
    u = {name: strata[np.argsort(streams.uniform(name, 0, samples))] for name in ("pace", "base", "order")}
    z = {name: ndtri(values) for name, values in u.items()}
    published = np.log([ms for _, quantiles in rows.values() for ms in quantiles.values()])

    grid = (np.arange(40) + 0.5) / 40

    def times(x: Array) -> list[Array]:
        # Of many leaves the share q has answered at the leaf's quantile q, but for the last few. The coordinator takes
        # answers in one after another, c in all, while others are on their way: the share s is taken in at the largest
        # of quantile(q) + (s - q) c, and all no earlier than the slowest leaf, which is drawn.
        share, leaves, c = 1 / (1 + math.exp(-x[0])), math.exp(x[4]), math.exp(x[3])
        pace = np.exp(sigma * math.sqrt(share) * z["pace"])
        base = np.exp(x[1] + abs(x[2]) * z["base"])
        own = sigma * math.sqrt(1 - share)
        found = []
        for part, _ in rows.values():
            q = grid * part
            answered = np.append(np.exp(own * ndtri(q)), np.exp(own * ndtri(part)) if part < 1 else 0.0)
            waits = np.append((part - q) * c, 0.0)
            taken_in = (pace[:, None] * answered + waits).max(axis=1)
            if part == 1:
                taken_in = np.maximum(taken_in, pace * np.exp(own * ndtri(u["order"] ** (1 / leaves))))
            found.append(base + taken_in)
        return found

    def loss(x: Array) -> float:
        if not (-8 < x[0] < 8 and -3 < x[1] < 4 and abs(x[2]) < 3 and -3 < x[3] < 4 and 3 < x[4] < 10):
            return 1e6
        model = [np.quantile(row, p) for row in times(x) for p in (0.5, 0.95, 0.99)]
        return float(np.sum((np.log(model) - published) ** 2))

    # The valley is long: descents from several sides, of which the deepest counts.
    starts = [(share, 0.5, 1.0, 2.0, leaves) for share in (-2.0, 0.0) for leaves in (6.0, 9.0)]
    descents = [minimize(loss, start, method="Nelder-Mead", options={"maxiter": 600}) for start in starts]
    best = min(descents, key=lambda descent: float(descent.fun)).x
    share = 1 / (1 + math.exp(-best[0]))
    world = World(
        pace=_lognormal(1.0, sigma * math.sqrt(share)),
        service=_lognormal(leaf[0.5], sigma * math.sqrt(1 - share)),
        base=_lognormal(math.exp(best[1]), abs(best[2])),
        fan_in_ms=math.exp(best[3] - best[4]),
    )
    return Calibration(verdict, world, round(math.exp(best[4])))


def _lognormal(median: float, sigma: float) -> LogNormal:
    return LogNormal(median, median * math.exp(max(sigma, 1e-6) * float(ndtri(0.99))))


def reproduce_table_1(calibration: Calibration, *, requests: int = 2000, seed: int = 2) -> pd.DataFrame:
    """Simulate table 1 in the calibrated world, by the array engine; other draws than those of the fit.

    Returns
    -------
    DataFrame
        ``table``, ``row``, ``quantile``, ``published_ms``, ``model_ms``, ``error`` (relative), ``kind``.
    """
    times = table_1_times(calibration, requests=requests, streams=Streams(seed))
    return _frame(
        ("table 1", row, p, ms, float(np.quantile(times[row], p)), "fitted")
        for row, quantiles in TABLE_1.items()
        for p, ms in quantiles.items()
    )


def table_1_times(calibration: Calibration, *, requests: int, streams: Streams) -> dict[str, Array]:
    """Simulate the rows of table 1 in the calibrated world, ms, by the array engine; the leaf's are 8 a request.

    A request's leaves have its pace in common, so of a leaf's times only every eighth is independent.
    """
    world, n = calibration.world, calibration.leaves
    leaf = [world.hops(streams, LEAF, r, 8)[1] * (TICK_S * 1e3) for r in range(requests)]
    times = {"one leaf": np.concatenate(leaf)}
    for row, quorum in (("95 % of leaves", math.ceil(0.95 * n)), ("all leaves", n)):
        policy = Policy(quorum=quorum)
        times[row] = 1e3 * vectorised_sojourn_times(world, streams, leaves=n, requests=range(requests), policy=policy)
    return times


def _frame(rows: Any) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["table", "row", "quantile", "published_ms", "model_ms", "kind"])
    frame.insert(5, "error", frame["model_ms"] / frame["published_ms"] - 1)
    return frame


# --- slow leaves, hedges, ties ---------------------------------------------------------------------------------------


def slow_requests() -> pd.DataFrame:
    """Compare the paper's shares of slow requests with the closed form: no time, so ``published`` is a share."""
    cases = ((100, 0.01, 0.63), (2000, 1e-4, 0.18))
    return pd.DataFrame(
        [(n, leaf, share, slow_share(n, leaf)) for n, leaf, share in cases],
        columns=["leaves", "slow_leaf_share", "published", "exact"],
    )


def hedged_reads() -> pd.DataFrame:
    """Predict the BigTable benchmark's p99.9 with hedges from what it states without.

    Stated: 1,000 keys in tables on 100 servers, hedges after 10 ms are 2 % more requests, p99.9 of all keys 1,800 ms
    without. A read is then P(> 10 ms) = 2 %, and its 1 - 0.999^(1/n) quantile 1,800 ms; the family in between is not
    stated, nor whether a key or a server is a request: all four are shown. With an independent replica S(t) S(t - 10).
    """
    rows = []
    for n, what in ((1000, "a request a key"), (100, "a request a server")):
        end, sigma = _hedged_end(n)
        alpha = math.log(0.02 / end) / math.log(180)
        survivals = {
            "lognormal": lambda t, s=sigma: float(ndtr(-(math.log(t / 10) / s + ndtri(0.98)))),
            "Pareto": lambda t, a=alpha: min(1.0, 0.02 * (t / 10) ** -a),
        }
        for family, survival in survivals.items():
            hedged = brentq(lambda t, s=survival, e=end: math.log(s(t) * s(t - 10) / e), 10.001, 1800)
            rows.append(("hedged reads", f"{what}, {family}", 0.999, 74.0, float(hedged), "predicted"))
    return _frame(rows)


def _hedged_end(reads: int) -> tuple[float, float]:
    """How rarely one of so many reads may be late, and the spread of a lognormal's logarithm that has both numbers."""
    end = -math.expm1(math.log(0.999) / reads)
    return end, math.log(180) / float(ndtri(1 - end) - ndtri(0.98))


def hedged_read(reads: int = 1000) -> LogNormal:
    """Return the lognormal law of one read of the BigTable benchmark, ms; see :func:`hedged_reads`.

    Examples
    --------
    >>> read = hedged_read()
    >>> round(read.quantile(0.98), 3), round(read.quantile(0.999 ** (1 / 1000)))
    (10.0, 1800)
    """
    _, sigma = _hedged_end(reads)
    return _lognormal(10 * math.exp(-sigma * float(ndtri(0.98))), sigma)


def single_read(cluster: str, *, values: int = 4000) -> Empirical:
    """Return the law of one read of table 2, ms: lognormal from one published quantile to the next, and on beyond them.

    As many equally likely values; `cluster` is ``idle`` or ``sort job``.

    Examples
    --------
    >>> read = single_read("idle")
    >>> [round(read.quantile(p)) for p in (0.5, 0.9, 0.99)]
    [19, 38, 67]
    """
    single = TABLE_2[cluster][0]
    scores, logs = ndtri(np.array(list(single))), np.log(list(single.values()))
    z = ndtri((np.arange(values) + 0.5) / values)
    i = np.clip(np.searchsorted(scores, z), 1, len(scores) - 1)
    slope = (logs[i] - logs[i - 1]) / (scores[i] - scores[i - 1])
    return Empirical(tuple(np.exp(logs[i - 1] + slope * (z - scores[i - 1])).tolist()))


def tied_reads() -> pd.DataFrame:
    """Predict table 2's tied reads from its single reads.

    A second copy leaves after 1 ms and the first answer counts. Rows with correlation 0 are a prediction without any
    fit. What the copies have in common (the block's size, the network) is not stated: one correlation of the
    logarithms is fitted to the idle cluster and predicts the one beside a sort job.
    """
    fitted = float(brentq(lambda rho: _tied_bias("idle", rho), 0.0, 0.95))
    rows = []
    for cluster, (_, tied) in TABLE_2.items():
        for rho, kind in ((0.0, "predicted"), (fitted, "fitted" if cluster == "idle" else "predicted")):
            name = f"{cluster}, correlation {rho:.2f}"
            rows += [("table 2", name, p, ms, _tied_quantile(cluster, p, rho), kind) for p, ms in tied.items()]
    return _frame(rows)


def _tied_bias(cluster: str, rho: float) -> float:
    tied = TABLE_2[cluster][1]
    return math.fsum(math.log(_tied_quantile(cluster, p, rho) / ms) for p, ms in tied.items())


def _tied_quantile(cluster: str, p: float, rho: float) -> float:
    """Quantile of the earlier of two reads, the second 1 ms later, whose normal scores have correlation `rho`."""
    single = TABLE_2[cluster][0]
    scores, logs = ndtri(np.array(list(single))), np.log(list(single.values()))

    def score(t_ms: float) -> float:
        """The normal score of a single read's time: linear between the published quantiles, and on beyond them."""
        x = math.log(max(t_ms, 1e-3))
        i = int(np.clip(np.searchsorted(logs, x), 1, len(logs) - 1))
        slope = (scores[i] - scores[i - 1]) / (logs[i] - logs[i - 1])
        return float(scores[i - 1] + slope * (x - logs[i - 1]))

    joint = multivariate_normal([0, 0], [[1, rho], [rho, 1]])

    def late(t_ms: float) -> float:
        return float(joint.cdf([-score(t_ms), -score(t_ms - 1)])) - (1 - p)

    return float(brentq(late, 1.5, 400, xtol=1e-3))


# --- the platform ----------------------------------------------------------------------------------------------------


#: Presets, and which of the table's columns each was fitted to.
_PLATFORM_FITS: Final[Mapping[str, str]] = {
    "cloudflare-2026": "flat",
    "cloudflare-2026-one-thread": "flat",
    "cloudflare-2026-tree": "tree",
}


@dataclass(frozen=True, slots=True, eq=False)
class PlatformRun:
    """One cell pair of the platform's table, simulated.

    Attributes
    ----------
    preset, shape : str
        `shape` is the column, ``flat`` or ``tree``.
    objects : int
    ran : str
        What was simulated: ``flat``, or ``tree``.
    engine : str
        By which it was.
    kind : str
        ``fitted`` where the preset was fitted to that column, else ``predicted``.
    published_ms : (float, float)
        Median and 99th percentile.
    times_ms : ndarray of float64, shape (requests,)
    """

    preset: str
    shape: str
    objects: int
    ran: str
    engine: str
    kind: Literal["fitted", "predicted"]
    published_ms: tuple[float, float]
    times_ms: Array


def platform_runs(*, requests: int, streams: Streams) -> Iterator[PlatformRun]:
    """Simulate the platform's table in its presets, one cell pair after another."""
    for preset, fitted in _PLATFORM_FITS.items():
        world = load_preset(preset).world
        for n, columns in PLATFORM.items():
            flat = vectorised_sojourn_times(world, streams, leaves=n, requests=range(requests))
            for shape, published in zip(("flat", "tree"), columns, strict=True):
                if fitted == "tree" and shape == "flat":
                    continue
                times, ran, engine = flat, "flat", "vectorised"
                if shape == "tree" and n > _TREE_ABOVE:
                    # Objects of one thread share it, inner nodes as well, which the array engine does not cover.
                    ran, engine = "tree", "vectorised" if world.machines is None else "event"
                    simulated = vectorised_sojourn_times if world.machines is None else event_sojourn_times
                    times = simulated(world, streams, leaves=n, requests=range(requests), width=6)
                kind: Literal["fitted", "predicted"] = "fitted" if shape == fitted else "predicted"
                yield PlatformRun(preset, shape, n, ran, engine, kind, published, times * 1e3)


def platform_table(*, requests: int = 600, seed: int = 1) -> pd.DataFrame:
    """Simulate the platform's table in its presets, flat and as a tree.

    The tree was used from N > 100. Below, the second column is the flat loop as well, of another program: at N = 10 it
    took 47 and 58 ms where the first took 61 and 77. A model of the loop that is right for both to better than 13 % is
    therefore impossible: 2 x 61 x 47 / (61 + 47) = 53 ms is 13 % off either. So there are two readings. Fitted to the
    first column alone, a model predicts the second, which is 34 % off at N = 10 and tells what a window of six and
    one thread have to say of trees. Fitted to the second column by itself (`cloudflare-2026-tree`), it tells how well
    one thread describes that program.

    Returns
    -------
    DataFrame
        ``preset``, ``shape`` (the column), ``objects``, ``as`` (what was simulated), ``quantile``, ``published_ms``,
        ``model_ms``, ``error`` (relative), ``kind``: ``fitted`` where the preset was fitted to that column, else
        ``predicted``.
    """
    rows = []
    for run in platform_runs(requests=requests, streams=Streams(seed)):
        for p, ms in zip((0.5, 0.99), run.published_ms, strict=True):
            model = float(np.quantile(run.times_ms, p))
            rows.append((run.preset, run.shape, run.objects, run.ran, p, ms, model, model / ms - 1, run.kind))
    names = ["preset", "shape", "objects", "as", "quantile", "published_ms", "model_ms", "error", "kind"]
    return pd.DataFrame(rows, columns=names)
