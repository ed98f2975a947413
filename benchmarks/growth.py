"""How times grow with the number of vendors: generating, asking, scanning, pruning, ordering; and their slopes.

On log axes a time that is a power of the number of vendors is a straight line, and its slope is the power: 1 where
twice the vendors take twice as long, 0 where their number does not matter. The slope that is stated is that of the
larger half of the fleets, by least squares over medians; what is paid once bends the line where fleets are small.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.fanout import TOP_TEN, VISIT_ALL
from benchmarks.measure import Sizes
from benchmarks.million import BEST
from mktsim.market import Cart, Marketplace, generate
from mktsim.study import charts
from mktsim.study.points import Point, tidy
from mktsim.study.statistics import quantile_interval

REPEATS = 9
ORDERS = 100
#: What is timed, by its name in table and chart.
GENERATE, SCAN, WHOLE, PRUNE, ORDER, POINT = (
    "generate the market",
    "top 10, all scanned by a process a core",
    "top 10, all scanned by one process",
    "top 10, pruned by summaries",
    "an order, durable",
    "a query by shard key",
)


def run(sizes: Sizes, seed: int) -> pd.DataFrame:
    """Measure markets of every size.

    Returns
    -------
    DataFrame
        Tidy points: median times in ms, `x` vendors, `series` what was timed, with order-statistic intervals where
        there are enough measurements.
    """
    points: list[Point] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context) as pool:
        for vendors in sizes.growth:
            with TemporaryDirectory(prefix="mktsim-benchmark-") as temporary:
                folder = Path(temporary) / "market"
                started = perf_counter()
                generate(folder, vendors=vendors, products=sizes.products, seed=seed)
                times = {GENERATE: [1e3 * (perf_counter() - started)]}
                times |= asyncio.run(_asked(folder, pool))
            points += [_point(name, vendors, values, seed) for name, values in times.items()]
    return tidy(points)


def _point(name: str, vendors: int, times_ms: list[float], seed: int) -> Point:
    common: dict[str, Any] = {"study": "growth", "series": name, "kind": "measured", "axis": "vendors", "x": vendors,
                              "statistic": "p50", "unit": "ms", "seed": seed, "engine": "live"}  # fmt: skip
    if len(times_ms) < REPEATS:
        return Point(estimate=float(np.median(times_ms)), n=len(times_ms), **common)
    return Point.of(quantile_interval(times_ms, 0.5), **common)


async def _asked(folder: Path, pool: ProcessPoolExecutor) -> dict[str, list[float]]:
    """Time what a market is asked, warm."""
    found: dict[str, list[float]] = {}

    async def timed(name: str, times: int, call: Callable[[int], Awaitable[object]]) -> None:
        await call(0)
        found[name] = []
        for number in range(1, times + 1):
            started = perf_counter()
            await call(number)
            found[name].append(1e3 * (perf_counter() - started))

    async with Marketplace.open(folder) as alone:
        await timed(WHOLE, REPEATS, lambda _: alone.query(TOP_TEN.sql, TOP_TEN.params, policy=VISIT_ALL))
    async with Marketplace.open(folder, executor=pool) as market:
        await timed(SCAN, REPEATS, lambda _: market.query(TOP_TEN.sql, TOP_TEN.params, policy=VISIT_ALL))
        await timed(PRUNE, REPEATS, lambda _: market.query(BEST))
        ids = market.store.vendor_ids()
        step = max(1, len(ids) // ORDERS)
        some = [ids[number * step % len(ids)] for number in range(ORDERS + 1)]
        await timed(POINT, ORDERS, lambda number: market.query(BEST, shard_key=some[number]))
        for vendor_id in dict.fromkeys(some):
            await market.vendor(vendor_id).create_product(
                {"name": "Thing", "sku": "growth", "price": 1.5, "stock": 1_000}
            )
        await timed(
            ORDER,
            ORDERS,
            lambda number: market.place_order(Cart("zoe", [{"vendorId": some[number], "sku": "growth"}])),
        )
    return found


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the slope on log axes of each series over the larger half of its sizes, with its 95 % interval.

    Examples
    --------
    >>> frame = pd.DataFrame({"series": "scan", "x": [1, 10, 100, 1000, 10000, 100000],
    ...                       "estimate": [5.0, 5.0, 6.0, 10.0, 100.0, 1000.0]})
    >>> row = slopes(frame).iloc[0]
    >>> row["from"], round(row["slope"], 3), round(row["low"], 3)
    (1000, 1.0, 1.0)
    """
    rows = []
    for name, part in frame.groupby("series", sort=False):
        chosen = part.sort_values("x").iloc[len(part) // 2 :]
        x, y = np.log10(chosen["x"].to_numpy(float)), np.log10(chosen["estimate"].to_numpy(float))
        low = high = np.nan
        if len(chosen) > 2:
            line = stats.linregress(x, y)
            margin = stats.t(len(chosen) - 2).ppf(0.975) * line.stderr
            slope, low, high = line.slope, line.slope - margin, line.slope + margin
        else:
            slope = (y[-1] - y[0]) / (x[-1] - x[0]) if len(chosen) > 1 else np.nan
        ends = int(chosen["x"].iloc[0]), int(chosen["x"].iloc[-1])
        last = float(chosen["estimate"].iloc[-1])
        rows.append({"what": name, "from": ends[0], "to": ends[1], "slope": float(slope), "low": low, "high": high,
                     "ms at the largest": last})  # fmt: skip
    return pd.DataFrame(rows)


def chart(frame: pd.DataFrame, caption: str) -> bytes:
    """Draw the times against vendors, as PNG."""
    axes = charts.line_chart(frame, x_label="vendors", y_label="median time, ms")
    charts.annotate([axes], title="How times grow with the number of vendors", caption=caption)
    return charts.png(axes)
