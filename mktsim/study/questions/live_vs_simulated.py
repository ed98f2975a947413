"""Does the simulator, calibrated on small live fleets, foretell the p50 and p99 of larger ones?

Rules
-----
What is predicted was not seen: sizes beyond those of the calibration, and requests that queue for the one loop, where
the calibration asked one query at a time. Each prediction is made before its measurement. Errors are shown as they are,
and first; the pace of the machine meanwhile, measured beside each request, stands beside them, and the error of the
same requests simulated at those paces.

What this does not do
---------------------
It measures this machine: run it where nothing else runs. Shards scanned by worker processes are not calibrated.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pandas as pd
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.market import Marketplace, generate
from mktsim.study import charts
from mktsim.study.jobs import Submits
from mktsim.study.live import Calibration, calibrate
from mktsim.study.measuring import STATEMENTS, Statement
from mktsim.study.points import Point, tidy
from mktsim.study.prediction import (
    LEAST_CYCLES,
    LEAST_REPLICATIONS,
    STATISTICS,
    compared,
    load_name,
    measure,
    predict,
)
from mktsim.study.result import StudyResult
from mktsim.study.yardstick import PACE_KNOWN

QUESTION: Final = "Does the simulator, calibrated on small live fleets, foretell the p50 and p99 of larger ones?"
#: Fleets of the calibration: vendors and shards. Two numbers of shards tell what a shard costs; the first fifty vendors
#: of a shard take up to a third longer than those after them, which the model does not have.
FITTED: Final = ((250, 4), (500, 4), (1_000, 4), (1_000, 8), (2_000, 8))
PREDICTED: Final = (3_000, 10_000)
LOADS: Final = (0.0, 0.5)
#: Errors above this are explained, or named, %.
TARGET: Final = 15.0


async def live_vs_simulated(
    *,
    fitted: Sequence[tuple[int, int]] = FITTED,
    predicted: Sequence[int] = PREDICTED,
    loads: Sequence[float] = LOADS,
    statements: Sequence[Statement] = STATEMENTS,
    rounds: int = 60,
    requests: int = 300,
    replications: int = LEAST_REPLICATIONS,
    tolerance: float = 0.15,
    seed: int,
    progress: bool = False,
) -> tuple[StudyResult, Calibration]:
    """Generate markets, calibrate on the small ones, predict the large ones, and measure those.

    Parameters
    ----------
    fitted : sequence of (int, int)
        Vendors and shards of the markets that are calibrated on.
    predicted : sequence of int
        Vendors of the markets that are predicted; none among those.
    loads : sequence of float
        0 for one query at a time, else the utilisation of the loop.
    statements : sequence of Statement
    rounds, tolerance
        See :func:`~mktsim.study.live.calibrate`.
    requests, replications
        See :func:`~mktsim.study.prediction.predict`; one at a time a measured p99 has an interval from 299
        requests on, under load from about 10,000, of which 30 busy cycles reach beyond it.
    seed : int
        Decides catalogues, parameters, arrivals and noise.
    progress : bool
        Show progress bars.

    Returns
    -------
    StudyResult
        Points of :func:`~mktsim.study.prediction.compared`: ``p50`` and ``p99`` in ms, measured, simulated, and
        simulated at the paces that were measured; the errors of both, and ``pace``, in %; ``x`` vendors, `series` the
        statement, `group` the load.
    Calibration

    Raises
    ------
    InvalidArgumentError
        If a size is both fitted and predicted, or a number is out of range.
    CalibrationError
        If the machine or the market does not follow the model.
    """
    known = {vendors for vendors, _ in fitted}
    if not predicted or not known.isdisjoint(predicted):
        raise InvalidArgumentError(f"predict sizes that are not fitted, at least one, not {predicted!r:.80}")
    points: list[Point] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mktsim-live-")))

        async def opened(vendors: int, shards: int) -> Marketplace:
            path = folder / f"{vendors}-{shards}"
            generate(path, vendors=vendors, products=10, seed=seed, shards=shards, progress=False)
            return await stack.enter_async_context(Marketplace.open(path))

        small = [await opened(*each) for each in fitted]
        shards = len(max(small, key=lambda market: len(market.vendors)).store.shards)
        calibration = await calibrate(
            *small, statements=statements, rounds=rounds, tolerance=tolerance, seed=seed, progress=progress
        )
        points += _seen(calibration, statements, shards=shards, rounds=rounds, seed=seed)
        plan = [(vendors, load, statement.name) for vendors in predicted for load in loads for statement in statements]
        large: dict[int, Marketplace] = {}
        for vendors, load, name in tqdm(plan, desc="live vs simulated", unit=" runs", disable=not progress):
            if vendors not in large:
                large[vendors] = await opened(vendors, shards)
            foretold = predict(
                calibration, vendors=vendors, statement=name, load=load, requests=requests, shards=shards,
                replications=replications, seed=seed,
            )  # fmt: skip
            found = await measure(foretold, calibration, large[vendors])
            points += compared(foretold, found.times_ms, paces=found.paces)
    frame = tidy(points)
    parameters = {
        "fitted": [list(each) for each in fitted], "predicted": list(predicted), "loads": list(loads),
        "statements": [each.sql for each in statements], "rounds": rounds, "requests": requests,
        "replications": replications,
    }  # fmt: skip
    sizes = ", ".join(f"{vendors:,}" for vendors in sorted(known))
    names = [statistic + suffix for suffix in ("", PACE_KNOWN) for statistic in STATISTICS]
    counts = "; ".join(f"{name}: {_within(frame[frame['statistic'] == f'error of {name}'])}" for name in names)
    caption = (
        f"Measured on {calibration.machine}, {calibration.date}; calibrated on {sizes} vendors, {rounds} rounds, "
        "times there at the median pace; "
        f"n = {requests} requests a point, the same instants measured and simulated; simulated: {replications} "
        f"replications, intervals that hold one run more with 95 %; measured: 95 % intervals, none where fewer than "
        f"{LEAST_CYCLES} busy cycles reach beyond a quantile; seed {seed}. "
        f"Within {TARGET:.0f} %: {counts}."
    )
    answer = in_words(frame)
    result = StudyResult(
        question=QUESTION, answer=answer, frame=frame, parameters=parameters, seed=seed, caption=caption
    )
    return result, calibration


def _seen(
    calibration: Calibration, statements: Sequence[Statement], *, shards: int, rounds: int, seed: int
) -> list[Point]:
    """Return the medians that were fitted, at the median pace, and what the simulator makes of them."""
    points = []
    for row in calibration.cells[calibration.cells["shards"] == shards].to_dict("records"):
        common: dict[str, Any] = {"study": "calibration", "axis": "vendors", "x": row["vendors"], "seed": seed,
                                  "group": load_name(0), "series": row["statement"], "statistic": "p50",
                                  "unit": "ms"}  # fmt: skip
        again = predict(
            calibration, vendors=row["vendors"], statement=row["statement"], requests=rounds, shards=shards,
            seed=seed, paces=[1.0] * rounds,
        )  # fmt: skip
        points.append(Point(kind="measured", estimate=row["measured_ms"], n=rounds, **common))
        points.append(Point.of(again.p50, kind="simulated", engine=again.engine, **common))
    return points


def in_words(frame: pd.DataFrame) -> str:
    """Say how large the errors are, which pace the machine had, what is left at that pace, and where it lies."""
    texts = [_errors_in_words(frame, statistic) for statistic in STATISTICS]
    paces = frame[frame["statistic"] == "pace"]
    if len(paces):
        other = (paces["estimate"].abs() > TARGET).any()
        told = ": errors as they are then tell of the machine, not of the model" if other else ""
        texts.append(
            f"Beside the requests a yardstick took {paces['estimate'].min():+.3g} to {paces['estimate'].max():+.3g} % "
            f"more than during calibration (medians of the cases; 90 % of all between {paces['low'].min():+.3g} and "
            f"{paces['high'].max():+.3g} %){told}."
        )
        texts += [_errors_in_words(frame, statistic + PACE_KNOWN) for statistic in STATISTICS]
    texts += _missing(frame, "p50" + (PACE_KNOWN if len(paces) else ""))
    return " ".join(texts)


def _errors_in_words(frame: pd.DataFrame, name: str) -> str:
    """Say how many errors of a name are within the target, how large they are, and which is the worst."""
    errors = frame[frame["statistic"] == f"error of {name}"]
    worst = max(errors.to_dict("records"), key=lambda row: abs(row["estimate"]))
    return (
        f"The {name}{',' if ',' in name else ''} is within {TARGET:.0f} % in {_within(errors)} cases; it is "
        f"{errors['estimate'].abs().median():.2g} % off in the median and {worst['estimate']:+.3g} % at worst "
        f"({worst['series']}, {worst['x']:,.0f} vendors, {worst['group']})."
    )


def _within(errors: pd.DataFrame) -> str:
    return f"{int((errors['estimate'].abs() <= TARGET).sum())} of {len(errors)}"


def _missing(frame: pd.DataFrame, name: str) -> list[str]:
    """Say what the model lacks, as far as the errors of a name show it: by the size of the fleet, and under load."""
    errors = frame[frame["statistic"] == f"error of {name}"]
    alone, busy = (errors[(errors["group"] == load_name(0)) == one] for one in (True, False))
    texts = []
    small, large = (alone[alone["x"] == x].set_index("series") for x in (alone["x"].min(), alone["x"].max()))
    fallen = small["low"] - large["high"] > 0  # Beyond both intervals.
    if 2 * fallen.sum() > len(fallen):
        points = (small["estimate"] - large["estimate"])[fallen]
        texts.append(
            f"In {fallen.sum()} of {len(fallen)} statements the error falls from {alone['x'].min():,.0f} to "
            f"{alone['x'].max():,.0f} vendors, by {points.min():.2g} to {points.max():.2g} points: a vendor of a "
            "larger fleet takes longer, for which the model has no term (the processor's caches hold a small fleet, "
            "and not a large one)."
        )
    pairs = busy.merge(alone, on=["x", "series"], suffixes=("", "_alone"))
    lower = pairs["estimate"] - pairs["estimate_alone"]
    if 2 * (lower < 0).sum() > len(pairs):
        texts.append(
            f"In {(lower < 0).sum()} of {len(pairs)} cases the error under load lies below that of one query at a "
            f"time, by {-lower[lower < 0].median():.2g} points in the median: a query among others takes longer than "
            "one after the other, and a queue magnifies what its service is wrong by."
        )
    return texts


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Answer for the command line, with charts as PNG by file name; nothing is handed to the executor."""
    del executor  # A busy core would be measured.
    size: dict[str, Any] = {}
    if quick:
        fitted = ((150, 2), (300, 2), (400, 4), (400, 2))
        size = {"fitted": fitted, "predicted": (1_000,), "rounds": 30, "requests": 60, "tolerance": 0.5}
    result, calibration = asyncio.run(live_vs_simulated(seed=seed, progress=progress, **size))
    print(calibration.summary().T.to_string(), file=sys.stderr)
    axes = charts.live_vs_simulated_chart(result.frame)
    charts.annotate(axes, title=QUESTION, caption=result.caption)
    return result, {"live-vs-simulated.png": (QUESTION, charts.png(axes[0]))}
