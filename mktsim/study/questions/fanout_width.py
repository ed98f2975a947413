"""How does the p99 grow with the fan-out, flat or by a tree, and which width is best for how many vendors?

Rules
-----
Flat and every width meet the same draws (common random numbers), replication by replication, so that the best width is
found among differences and not among luck. The choice comes with its regret: by how much the width that was chosen may
be worse than the truly best one, all candidates considered at once (`mktsim.study.optimisation`). It is made by the p99
of each replication, for that is what is asked, where a replication has the 299 requests of which a p99 is known; else
by the mean, which says less of the tail. The answer tells which.

Theory of operation
-------------------
A sender works on N messages one after another: that grows like N, and with a window of c connections so do N / c round
trips. A tree of width w has log N / log w levels, each with w messages and the slowest of w subtrees. Small widths pay
in levels, large ones in messages. Were there neither cost nor window, flat would be best and the p99 would grow as the
leaf's quantile at 0.99^(1/N): for N leaves of exponential tail like ln N. That lower bound is shown beside the rest.

What this does not do
---------------------
Requests do not meet each other (see `mktsim.study.load`), and inner nodes are machines of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.sim.world import World
from mktsim.streams import check_seed
from mktsim.study import analytic, charts
from mktsim.study.jobs import Job, Submits, check_executor, completed
from mktsim.study.optimisation import best_of
from mktsim.study.points import Point, tidy
from mktsim.study.replications import check_replications, values_of
from mktsim.study.result import StudyResult
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import quantile_interval, samples_for_quantile

QUESTION: Final = "How does the p99 grow with the fan-out, flat or by a tree, and which width is best?"
SIZES: Final = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
WIDTHS: Final = (4, 6, 10, 32, 100, 316, 1_000)


def fanout_width(
    scenario: Scenario | None = None,
    *,
    vendors: Sequence[int] = SIZES,
    widths: Sequence[int] = WIDTHS,
    requests: int = 400,
    replications: int = 20,
    calls: int = 300_000_000,
    seed: int,
    executor: Submits | None = None,
    progress: bool = False,
) -> StudyResult:
    """Simulate flat scatters and trees of several widths over fleets of growing size, and choose the best width.

    Parameters
    ----------
    scenario : Scenario, optional
        The world and the query; its vendors and fan-out are varied. The preset ``same-zone`` when absent.
    vendors, widths : sequence of int
        Fleets, and widths of trees; a width counts for fleets larger than it.
    requests : int
        For each fleet and width, in all.
    replications : int
        Into which these are divided, at least 10.
    calls : int
        Fleets for which all requests would be more calls than this get fewer requests, though two a replication; a
        quantile is left out where they are too few for its interval.
    seed : int
        Decides every draw.
    executor, progress
        See :func:`~mktsim.study.sweeps.sweep`.

    Returns
    -------
    StudyResult
        Its frame has the columns of :class:`~mktsim.study.points.Point`: p50, p90 and p99 in ms by series, ``flat`` or
        ``width 32``, against ``x`` vendors; and for each fleet the statistics ``best width``, by the p99 where each
        replication has 299 requests and by the mean sojourn time elsewhere, and ``regret`` in ms, with the widths that
        could be best in ``group``.

    Raises
    ------
    InvalidArgumentError
        Before any work, if a number is out of range.

    Examples
    --------
    >>> where = Scenario(preset="cloudflare-2026")
    >>> found = fanout_width(where, vendors=[10, 100], widths=[6, 30], requests=100, seed=1)
    >>> best = found.frame[found.frame["statistic"] == "best width"]
    >>> best[["x", "series"]].values.tolist()
    [[10, 'flat'], [100, 'width 6']]
    """
    base = Scenario(preset="same-zone") if scenario is None else scenario
    if not isinstance(base, Scenario):
        raise InvalidArgumentError(f"needs a Scenario, not {base!r:.80}")
    seed = check_seed(seed)
    check_executor(executor, None)
    check_replications(replications)
    if not isinstance(requests, int) or isinstance(requests, bool) or requests < 2 * replications:
        raise InvalidArgumentError(f"requests must be at least {2 * replications}, two a replication, not {requests!r}")
    for name, values in (("vendors", vendors), ("widths", widths)):
        if not isinstance(values, list | tuple | range) or not values or len(set(values)) < len(values):
            raise InvalidArgumentError(f"{name} must be a sequence of different whole numbers, not {values!r:.80}")
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 1:
        raise InvalidArgumentError(f"calls must be a whole number of at least 1, not {calls!r:.80}")
    for n, w in product(vendors, widths):
        base.replace(vendors=n, fanout=w)  # For its errors.
    plan: list[tuple[Scenario, str, int]] = []
    for n in vendors:
        shape: dict[str, Any] = {"flat": "flat"} | {f"width {width}": width for width in widths if width < n}
        # At least two a replication, whatever the fleet: a mean, and an interval over replications.
        count = max(2, min(requests, calls // n) // replications)
        plan += [(base.replace(vendors=n, fanout=fanout), name, count) for name, fanout in shape.items()]
    jobs = [Job(one, seed, r, count, "vectorised") for one, _, count in plan for r in range(replications)]
    for one, _, _ in plan:
        if one.uncovered() is not None:
            raise InvalidArgumentError(f"the question needs a world that the arrays cover, not {one.uncovered()}")
    samples: dict[int, NDArray[np.float64]] = {}
    total = sum(job.scenario.vendors * job.requests for job in jobs)
    with tqdm(total=total, desc="fan-out width", unit=" calls", unit_scale=True, disable=not progress) as bar:
        for place, (_, times_ms) in completed(jobs, executor=executor):
            samples[place] = times_ms
            bar.update(jobs[place].scenario.vendors * jobs[place].requests)
    preset = f"{base.preset} {base.load_preset().date}".strip()
    common: dict[str, Any] = {"study": "fan-out width", "axis": "vendors", "seed": seed, "preset": preset}
    points, answers = [], []
    pooled: dict[tuple[int, str], NDArray[np.float64]] = {}
    for n in vendors:
        names: list[str] = []
        observed: list[NDArray[np.float64]] = []
        for i, (one, name, _) in enumerate(plan):
            if one.vendors != n:
                continue
            mine = np.stack([samples[i * replications + r] for r in range(replications)])
            pooled[n, name] = mine.ravel()
            names.append(name)
            observed.append(mine)
            points += [
                Point.of(
                    quantile_interval(mine.ravel(), p), series=name, kind="simulated", x=n,
                    statistic=f"p{100 * p:g}", unit="ms", engine="vectorised", **common,
                )
                for p in (0.5, 0.9, 0.99)
                if mine.size >= samples_for_quantile(p)
            ]  # fmt: skip
        points += [
            Point(series="slowest leaf (lower bound)", kind="analytic", x=n, statistic=f"p{100 * p:g}", unit="ms",
                  estimate=bound, **common)
            for p in (0.5, 0.9, 0.99)
            if (bound := _slowest_leaf_ms(base.world, n, p)) is not None
        ]  # fmt: skip
        if len(names) < 2:
            continue
        judged = "p99" if observed[0].shape[1] >= samples_for_quantile(0.99) else "mean"
        scores = [values_of(mine, judged) for mine in observed]
        parts = observed if judged == "mean" else None
        chosen = best_of(scores, names, observations=parts, objective=judged, seed=seed)
        could = ", ".join(chosen.could_be_best)
        found = {"series": chosen.best, "kind": "simulated", "x": n, "group": could, "engine": "vectorised"}
        width = math.nan if chosen.best == "flat" else float(chosen.best.split()[1])
        points += [
            Point(statistic="best width", unit="children", estimate=width, n=replications, **found, **common),
            Point.of(chosen.regret, statistic="regret", unit="ms", **found, **common),
        ]
        answers.append(
            f"{n:,}: {chosen.best} by the {judged} (regret at most {chosen.regret.high:.3g} ms; could be best: {could})"
        )
    frame = tidy(points)
    answer = _growth(frame, pooled)
    if answers:
        answer += f" Best width, vendors by vendors: {'; '.join(answers)}."
    counts = frame.loc[frame["statistic"] == "p50", "n"]
    parameters = {
        "scenario": base.to_dict(), "vendors": list(vendors), "widths": list(widths), "requests": requests,
        "replications": replications, "calls": calls,
    }  # fmt: skip
    caption = (
        f"Simulated, array engine, preset {preset}; n = {counts[counts > 0].min()} to {counts.max()} requests a point "
        f"in {replications} replications under common random numbers, seed {seed}; 95 % intervals. p99 only where n is "
        "enough. Best width by the p99 where each replication has 299 requests, else by the mean; regret simultaneous "
        "over widths."
    )
    return StudyResult(question=QUESTION, answer=answer, frame=frame, parameters=parameters, seed=seed, caption=caption)


def _slowest_leaf_ms(world: World, n: int, p: float) -> float | None:
    """Return a lower bound of the quantile, however the scatter is done, where all ways have one distribution.

    The slowest way out, and no less than the shortest service and way back after it.
    """
    if world.geography is not None or world.has_pace:
        return None
    least = 2.0**-53
    rest = world.service.quantile(least) + world.link_back.quantile(least)
    return world.link_out.quantile(analytic.leaf_quantile(p, n)) + rest


def _growth(frame: pd.DataFrame, pooled: dict[tuple[int, str], NDArray[np.float64]]) -> str:
    """Say how the farthest quantile that is known grows from the smallest fleet to the largest.

    The tree that did best among several gets an interval that holds for all of them at once (Bonferroni), where there
    are requests enough for one: its own would hold too seldom, for part of what made it the best is luck.
    """
    known = frame[(frame["kind"] == "simulated") & frame["statistic"].str.fullmatch(r"p\d+")]
    least, most = known["x"].min(), known["x"].max()
    last = known[known["x"] == most]
    statistic = max(last["statistic"], key=lambda name: float(name[1:]))
    last = last[last["statistic"] == statistic].sort_values("estimate")
    trees = last[last["series"] != "flat"]
    texts = []
    for row in pd.concat([last[last["series"] == "flat"], trees.head(1)]).to_dict("records"):
        # A width has no point for fleets that it makes no tree of: it begins with the flat one.
        begun = known[(known["statistic"] == statistic) & (known["x"] == least)]
        first = begun[begun["series"].isin([row["series"], "flat"])].iloc[-1]
        interval = f"[{row['low']:.4g}, {row['high']:.4g}]"
        if row["series"] != "flat" and len(trees) > 1:
            interval = _among(len(trees), pooled[int(most), row["series"]], float(statistic[1:]) / 100)
        texts.append(
            f"{row['series']} from {first['estimate']:.4g} ms at {least:,.0f} vendors to {row['estimate']:.4g} "
            f"{interval} ms at {most:,.0f}"
        )
    return f"The {statistic} grows {', '.join(texts)}."


def _among(several: int, times_ms: NDArray[np.float64], p: float) -> str:
    """Return the interval of the quantile of one width that was picked among several, or say what it lacks."""
    confidence = 1 - 0.05 / several
    needed = samples_for_quantile(p, confidence=confidence)
    if len(times_ms) < needed:
        return f"(best of {several} widths, whose interval needs {needed:,} requests, not {len(times_ms):,})"
    found = quantile_interval(times_ms, p, confidence=confidence)
    return f"[{found.low:.4g}, {found.high:.4g}, for all {several} widths at once]"


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Answer for the command line, with charts as PNG by file name."""
    size: dict[str, Any] = {"vendors": SIZES[:4], "calls": 2_000_000} if quick else {}
    result = fanout_width(seed=seed, executor=executor, progress=progress, **size)
    axes = charts.fanout_width_chart(result.frame)
    charts.annotate(axes, title=QUESTION, caption=result.caption)
    return result, {"fan-out-width.png": (QUESTION, charts.png(axes[0]))}
