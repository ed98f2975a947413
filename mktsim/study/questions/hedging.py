"""What does hedging buy per extra load? Time against second copies, when everybody hedges.

Rules
-----
All delays, plain and tied, meet the same draws, replication by replication. Extra load is counted on those very draws:
second copies sent, and those that are served beside their twin (*extra work*). Other clients hedge as this one does:
their extra work adds to the utilisation of the machines, so that a copy too many costs what it costs in a fleet.

Theory of operation
-------------------
A leaf finds the work of others before it (a host busy a share u of the time, see `Background`), then serves; its time
has survival S. Hedged after d it survives t with S(t) S(t - d), so a request over n leaves has distribution
(1 - S(t) S(t - d))^n: the analytic lines. A copy is sent with probability S(d). A loser that is not cancelled works
for nothing, so the utilisation is the fixed point of u = u0 (1 + S_u(d)). Tied copies are served both only where they
begin within the time that a cancellation takes: nearly nothing, and so nearly no feedback.

The best delay has the least mean of the replications' p99; its regret holds for all delays at once, and so does the
interval of what it saves: that of the one delay which did best would hold its true saving too seldom, for part of what
made it the best is luck.

What this does not do
---------------------
Requests do not queue behind each other: what others keep the machines busy with is drawn, not simulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.fanout.policy import ScatterPolicy
from mktsim.sim.conditions import Background
from mktsim.sim.latency import Constant, Latency, LogNormal
from mktsim.sim.world import LEAF, World, ms_to_ticks
from mktsim.streams import check_seed
from mktsim.study import analytic, charts
from mktsim.study.jobs import Job, Submits, check_executor, completed, computed
from mktsim.study.optimisation import best_of, interval_of_one_among
from mktsim.study.points import Point, tidy
from mktsim.study.replications import check_replications
from mktsim.study.result import StudyResult
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, mean_interval, quantile_interval, samples_for_quantile

QUESTION: Final = "What does hedging buy per extra load?"
LEAVES: Final = (1, 100, 1_000)
#: Leaf's quantiles after which a second copy is sent; 0 is at once, 1 never.
DELAYS: Final = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
_P: Final = (0.5, 0.99, 0.999)
#: Backlogs are summed over so many cells, up to so many times their mean.
_CELLS: Final = 4_000
_REACH: Final = 40.0
_LINK_MS: Final = 0.2
_CANCEL_MS: Final = 0.2
#: Requests of a replication on which copies are counted.
_COUNTED: Final = 20


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf as a random variable: constant links, the work of others, the service.

    Examples
    --------
    >>> leaf = Leaf(Constant(1.0), 0.0, 1.0)
    >>> leaf.survival(1.0), leaf.survival(1.5), round(leaf.quantile(0.5), 6)
    (1.0, 0.0, 1.4)
    """

    service: Latency
    utilisation: float
    service_ms: float

    @property
    def world(self) -> World:
        """The world that has such leaves, each on two machines."""
        busy = Background(self.utilisation, self.service_ms) if self.utilisation else None
        link = Constant(_LINK_MS)
        return World(
            service=self.service, background=busy, link_out=link, link_back=link, replicas=2, cancel_ms=_CANCEL_MS
        )

    def survival(self, t_ms: float) -> float:
        """P(the leaf takes longer than `t_ms`)."""
        waits, chances = self._waits()
        below = float(np.sum(chances * self.service.cdf(t_ms - 2 * _LINK_MS - waits)))
        return min(1.0, max(0.0, 1.0 - below))

    def quantile(self, p: float) -> float:
        """The time that the leaf keeps with probability `p`, ms; 0 at 0 and infinity at 1."""
        if p in (0.0, 1.0):
            return 0.0 if p == 0.0 else math.inf
        return _solved(lambda t: self.survival(t) - (1 - p))

    def hedged_quantile(self, p: float, leaves: int, delay_ms: float) -> float:
        """The request's quantile `p` in ms when each of its leaves is hedged after `delay_ms`."""
        rare = analytic.exceedance(p, leaves)
        return _solved(lambda t: analytic.hedged_survival(self.survival, t, delay_ms) - rare)

    def both_served(self, delay_ms: float) -> float:
        """P(tied copies are both served): they begin within the time of a cancellation, and no answer is back."""
        waits, chances = self._waits()
        late = 1 - np.asarray(self.service.cdf(delay_ms - 2 * _LINK_MS - waits), float)
        # The twin's wait must fall within a cancellation's time of what is left of the first copy's.
        left = waits - delay_ms
        near = self._waits_below(left + _CANCEL_MS) - self._waits_below(np.nextafter(left - _CANCEL_MS, math.inf))
        return float(np.sum(chances * late * near))

    def _waits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return backlogs and their chances: none, or exponential, in cells for which their middles stand."""
        if not self.utilisation:
            return np.zeros(1), np.ones(1)
        mean_ms = self.service_ms / (1 - self.utilisation)
        edges = np.linspace(0.0, _REACH, _CELLS + 1)
        busy = self.utilisation * -np.diff(np.exp(-edges))
        return np.append(0.0, mean_ms * (edges[:-1] + edges[1:]) / 2), np.append(1 - self.utilisation, busy)

    def _waits_below(self, w_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(a backlog is below `w_ms`), by its law."""
        mean_ms = self.service_ms / (1 - self.utilisation)
        return np.where(w_ms > 0, 1 - self.utilisation * np.exp(-np.maximum(w_ms, 0.0) / mean_ms), 0.0)


def _solved(excess: Any) -> float:
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 1e9:
            raise InvalidArgumentError("a leaf's tail is too long for its quantiles to be found")
    return float(brentq(excess, 0.0, high, xtol=1e-9)) if excess(0.0) > 0 else 0.0


def hedging(
    service: Latency | None = None,
    *,
    utilisation: float = 0.3,
    leaves: Sequence[int] = LEAVES,
    delays: Sequence[float] = DELAYS,
    requests: int = 300,
    replications: int = 20,
    seed: int,
    executor: Submits | None = None,
    progress: bool = False,
) -> StudyResult:
    """Simulate scatters hedged after several delays, plain and tied, and set what they gain beside what they cost.

    Parameters
    ----------
    service : Latency, optional
        Of a leaf; lognormal with a median of 1 ms and a p99 of 10 ms when absent.
    utilisation : float
        Share of the time that others keep each machine busy before anybody hedges, from 0 to below 0.5.
    leaves : sequence of int
        How many leaves a request waits for.
    delays : sequence of float
        Quantiles of the leaf after which its second copy is sent: from 0, at once, to below 1. No hedge is always
        simulated beside them.
    requests : int
        In each replication; at least 299, for the p99 of each.
    replications : int
        At least 10.
    seed : int
        Decides every draw.
    executor, progress
        See :func:`~mktsim.study.sweeps.sweep`.

    Returns
    -------
    StudyResult
        Its frame has p50, p99 and p99.9 in ms by ``group`` (``100 leaves``) and ``series`` (``no hedge``, ``hedged``,
        ``tied``) against ``x``, the share of leaves unanswered after the delay in %; simulated and, but for tied ones,
        analytic. Of every delay ``sent`` and ``extra work`` in % of the calls, and the ``utilisation`` that comes of
        it. Of each number of leaves ``best delay`` in ms with its ``regret`` in ms and ``p99 saved`` in ms, both with
        intervals that hold for all delays at once.

    Raises
    ------
    InvalidArgumentError
        Before any work, if a number is out of range.

    Examples
    --------
    >>> found = hedging(leaves=[10], delays=[0.9], replications=10, seed=1).frame
    >>> p99 = found[(found["statistic"] == "p99") & (found["kind"] == "simulated")].set_index("series")["estimate"]
    >>> bool(p99["hedged"] < 0.7 * p99["no hedge"])
    True
    """
    service = LogNormal(1.0, 10.0) if service is None else service
    if not isinstance(service, Latency):
        raise InvalidArgumentError(f"service must be a Latency, not {service!r:.80}")
    seed = check_seed(seed)
    check_executor(executor, None)
    check_replications(replications)
    least = samples_for_quantile(0.99)
    if not isinstance(requests, int) or isinstance(requests, bool) or requests < least:
        raise InvalidArgumentError(
            f"requests must be at least {least}, for the p99 of a replication, not {requests!r:.80}"
        )
    if not isinstance(utilisation, int | float) or isinstance(utilisation, bool) or not 0 <= utilisation < 0.5:
        raise InvalidArgumentError(
            f"utilisation must be from 0 to below 0.5, for hedging may double it, not {utilisation!r:.80}"
        )
    for name, values in (("leaves", leaves), ("delays", delays)):
        if not isinstance(values, list | tuple | range) or not values or len(set(values)) < len(values):
            raise InvalidArgumentError(f"{name} must be a sequence of different numbers, not {values!r:.80}")
    for p in delays:
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 <= p < 1:
            raise InvalidArgumentError(f"delays are quantiles of the leaf, from 0 to below 1, not {p!r:.80}")
    own = Leaf(service, float(utilisation), service.mean_ms)
    arms = [_Arm("no hedge", 1.0, math.inf, own)]
    for p in sorted(map(float, delays)):
        delay_ms = own.quantile(p)
        arms += [_Arm(name, p, delay_ms, _with_everybody(own, delay_ms, name == "tied")) for name in ("hedged", "tied")]
    plan = [(n, arm, Scenario(vendors=n, world=arm.leaf.world, policy=arm.policy)) for n in leaves for arm in arms]
    for _, _, one in plan:
        if one.uncovered() is not None:  # A policy that the arrays do not cover would be another study.
            raise InvalidArgumentError(f"the question needs a world that the arrays cover, not {one.uncovered()}")
    jobs = [Job(one, seed, r, requests, "vectorised") for _, _, one in plan for r in range(replications)]
    counts = [
        (Job(one, seed, r, requests), arm.delay_ms, arm.name == "tied")
        for n, arm, one in plan if n == max(leaves) and arm.name != "no hedge" for r in range(replications)
    ]  # fmt: skip
    samples: dict[int, NDArray[np.float64]] = {}
    counted: dict[int, tuple[float, float]] = {}
    with tqdm(total=len(jobs) + len(counts), desc="hedging", unit=" replications", disable=not progress) as bar:
        for place, (_, times_ms) in completed(jobs, executor=executor):
            samples[place] = times_ms
            bar.update()
        for place, shares in computed(_count, counts, executor=executor):
            counted[place] = shares
            bar.update()
    times = [np.stack([samples[i * replications + r] for r in range(replications)]) for i in range(len(plan))]
    common: dict[str, Any] = {"study": "hedging", "seed": seed, "axis": "leaves unanswered after the delay, %"}
    points, answers = [], []
    for (n, arm, _), mine in zip(plan, times, strict=True):
        where = {"series": arm.name, "x": arm.unanswered, "group": _leaves(n), "unit": "ms", **common}
        for p in _P:
            if mine.size >= samples_for_quantile(p):
                found = quantile_interval(mine.ravel(), p)
                points.append(
                    Point.of(found, kind="simulated", statistic=f"p{100 * p:g}", engine="vectorised", **where)
                )
            if arm.name != "tied":
                bound = arm.leaf.hedged_quantile(p, n, arm.delay_ms)
                points.append(Point(kind="analytic", statistic=f"p{100 * p:g}", estimate=bound, **where))
    hedges = [arm for arm in arms if arm.name != "no hedge"]
    for place, arm in enumerate(hedges):
        copies = np.array([counted[place * replications + r] for r in range(replications)])
        where = {"series": arm.name, "x": arm.unanswered, **common}
        law = {"sent": analytic.hedge_extra_load(arm.leaf.survival, arm.delay_ms), "extra work": arm.extra_work}
        for column, (statistic, expected) in enumerate(law.items()):
            found = mean_interval(100 * copies[:, column])
            points += [
                Point.of(found, kind="simulated", statistic=statistic, unit="%", engine="vectorised", **where),
                Point(kind="analytic", statistic=statistic, unit="%", estimate=100 * expected, **where),
            ]
        points.append(
            Point(kind="analytic", statistic="utilisation", unit="share", estimate=arm.leaf.utilisation, **where)
        )
    extra = {arm: float(np.mean([counted[place * replications + r][1] for r in range(replications)]))
             for place, arm in enumerate(hedges)}  # fmt: skip
    for n in leaves:
        rows = [
            (arm, np.quantile(mine, 0.99, axis=1))
            for (size, arm, _), mine in zip(plan, times, strict=True)
            if size == n
        ]
        for name in ("hedged", "tied"):
            chosen = [(arm, values) for arm, values in rows if arm.name in ("no hedge", name)]
            best = best_of([values for _, values in chosen], [f"{arm.p:g}" for arm, _ in chosen], seed=seed)
            arm, p99s = next(pair for pair in chosen if f"{pair[0].p:g}" == best.best)
            saved = interval_of_one_among(len(chosen) - 1, rows[0][1] - p99s)
            could = ", ".join("never" if p == "1" else f"p{100 * float(p):g}" for p in best.could_be_best)
            where = {
                "series": name, "kind": "simulated", "x": arm.unanswered, "engine": "vectorised", "unit": "ms", **common
            }  # fmt: skip
            points += [
                Point(statistic="best delay", group=_leaves(n), estimate=arm.delay_ms, n=replications, **where),
                Point.of(best.regret, statistic="regret", group=_leaves(n), **where),
                Point.of(saved, statistic="p99 saved", group=_leaves(n), **where),
            ]
            answers.append(_told(n, name, arm, saved, rows[0][1], best.regret, could, extra.get(arm, 0.0)))
    date = f"leaf {service!r}, machines busy {100 * utilisation:g} % of the time before anybody hedges"
    caption = (
        f"Simulated, array engine, a world of the study's own: {date}, links of {_LINK_MS:g} ms, cancellation "
        f"{_CANCEL_MS:g} ms; n = {replications * requests:,} requests a point in {replications} replications under "
        f"common random numbers, seed {seed}; 95 % intervals, those of what the best delays save and of their regrets "
        "for all delays at once. Everybody hedges alike, and extra work adds to the load."
    )
    parameters = {
        "service": service.to_dict(), "utilisation": utilisation, "leaves": list(leaves), "delays": list(delays),
        "requests": requests, "replications": replications,
    }  # fmt: skip
    return StudyResult(
        question=QUESTION, frame=tidy(points),
        answer=f"Least p99, simulated, intervals for all delays at once: {'; '.join(answers)}.",
        parameters=parameters, seed=seed, caption=caption,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Arm:
    """One way to hedge, and the leaves that it finds when everybody does so."""

    name: str
    p: float
    delay_ms: float
    leaf: Leaf

    @property
    def policy(self) -> ScatterPolicy | None:
        if self.name == "no hedge":
            return None
        return ScatterPolicy(hedge_after_s=self.delay_ms / 1e3, tied=self.name == "tied")

    @property
    def unanswered(self) -> float:
        """Share of an unloaded fleet's leaves that are unanswered after the delay, %."""
        return 100 * (1 - self.p)

    @property
    def extra_work(self) -> float:
        return self.leaf.both_served(self.delay_ms) if self.name == "tied" else self.leaf.survival(self.delay_ms)


def _with_everybody(own: Leaf, delay_ms: float, tied: bool) -> Leaf:
    """Return the leaf under the load of a fleet that hedges so: the fixed point of its utilisation, from below."""

    def leaf(utilisation: float) -> Leaf:
        return Leaf(own.service, utilisation, own.service_ms)

    if not own.utilisation:
        return own
    u = own.utilisation
    for _ in range(200):
        found = leaf(u)
        work = found.both_served(delay_ms) if tied else found.survival(delay_ms)
        u, before = own.utilisation * (1 + work), u
        if abs(u - before) < 1e-9:
            break
    return leaf(u)


def _count(item: tuple[Job, float, bool]) -> tuple[float, float]:
    """Return the shares of a replication's calls that are sent a second time, and that are served twice."""
    job, delay_ms, tied = item
    world, n, delay = job.scenario.world, job.scenario.vendors, ms_to_ticks(delay_ms)
    sent = twice = 0
    for request in range(_COUNTED):
        late = np.sum(world.hops(job.streams, LEAF, request, n), axis=0) > delay
        sent += int(late.sum())
        if tied:
            begun = (world.begins(job.streams, request, n, attempt=a) for a in (0, 1))
            apart = np.subtract(*begun) - delay
            late &= np.abs(apart) < ms_to_ticks(world.cancel_ms)
        twice += int(late.sum())
    return sent / (n * _COUNTED), twice / (n * _COUNTED)


def _leaves(n: int) -> str:
    return f"{n:,} leaves" if n > 1 else "1 leaf"


def _told(
    n: int,
    name: str,
    arm: _Arm,
    saved: Interval,
    without: NDArray[np.float64],
    regret: Interval,
    could: str,
    extra: float,
) -> str:
    if arm.name == "no hedge":
        return f"{_leaves(n)}, {name}: not to hedge (regret at most {regret.high:.3g} ms; could be best: {could})"
    share = f"{100 * extra:.3g} % more work"
    return (
        f"{_leaves(n)}, {name}: after p{100 * arm.p:g} of the leaf ({arm.delay_ms:.3g} ms), which saves "
        f"{saved.estimate:.3g} [{saved.low:.3g}, {saved.high:.3g}] of {without.mean():.3g} ms for {share} (regret at "
        f"most {regret.high:.3g} ms; could be best: {could})"
    )


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Answer for the command line, with charts as PNG by file name."""
    size: dict[str, Any] = {"leaves": (10, 100), "delays": (0.0, 0.8, 0.95), "replications": 10} if quick else {}
    result = hedging(seed=seed, executor=executor, progress=progress, **size)
    pictures = {}
    for name, axes in charts.hedging_charts(result.frame).items():
        charts.annotate(axes, title=QUESTION, caption=result.caption)
        pictures[f"{name}.png"] = (QUESTION, charts.png(axes[0]))
    return result, pictures
