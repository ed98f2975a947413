"""The scaling study: what grows with the number of vendors, measured, simulated and by theory.

Four measurements, each a list of :class:`~mktsim.study.points.Point`, each with its intervals: `measure_live`,
`simulate_fan_out`, `measure_ring` here, and :func:`mktsim.study.correctness.measure_merges`. `run_study` makes all.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import betabinom
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError, MktsimError
from mktsim.fanout import ScatterPolicy
from mktsim.market import Marketplace
from mktsim.market.catalogue import catalogue
from mktsim.market.nouns import Product
from mktsim.placement import ConsistentHashRing
from mktsim.sim.latency import Constant
from mktsim.sim.world import TICK_S, World, load_preset
from mktsim.sqlite import Connection, connect, quote
from mktsim.streams import check_seed
from mktsim.study import analytic
from mktsim.study.correctness import measure_merges
from mktsim.study.fleets import ensure_fleet
from mktsim.study.points import Point
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import mean_interval, quantile_interval, samples_for_quantile
from mktsim.study.sweeps import sweep
from mktsim.testing import run_oracle, typed

#: What is measured is a scan of all vendors, which is what is simulated beside it.
EVERYBODY: Final = ScatterPolicy(visit_all=True)
#: The brief's top-10 and its aggregates: name, statement, parameters.
STATEMENTS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    (
        "top-10 by rating in a category",
        "SELECT vendorId, name, price, rating FROM products WHERE category = ? ORDER BY rating DESC LIMIT 10",
        ("electronics",),
    ),
    ("COUNT, AVG by category", "SELECT category, COUNT(*) AS count, AVG(price) FROM products GROUP BY category", ()),
)
#: Presets of the simulated part, and how many children an inner node of their trees has: where a node calls at most six
#: others at a time, a wider tree would keep most of its calls waiting.
PRESETS: Final[dict[str, int]] = {"same-zone": 100, "cloudflare-2026": 6}
#: N, p50 and p99 in ms of one deployed Durable Object calling N others in a loop, as a public project measured it in
#: 2026 (data/presets/cloudflare-2026.toml); the table states neither n nor intervals.
PUBLISHED: Final = ((10, 61.0, 77.0), (50, 96.0, 151.0), (100, 142.0, 243.0), (250, 296.0, 522.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySize:
    """How much the scaling study does; :data:`FULL` and :data:`QUICK` are the two that the command line has.

    Attributes
    ----------
    live_vendors : tuple of int
        Fleets on disk.
    repeats : int
        Timed repetitions of each statement, at least 6.
    sim_vendors : tuple of int
        Simulated fleets.
    requests : int
        Simulated requests a fleet, a multiple of 10.
    calls : int
        Simulated calls a fleet: large fleets get fewer requests where these would be more, though at least 10.
    window_calls : int
        The same for a flat scatter through a window, whose calls are scheduled one by one: several times the work.
    rings, keys : int
        Rings a number of virtual nodes, at least 6, and keys placed on each.
    statements : int
        Random statements for the merges.
    products : int
        Mean number of products of a vendor on disk.
    """

    live_vendors: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    repeats: int = 20
    sim_vendors: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    requests: int = 300
    calls: int = 300_000_000
    window_calls: int = 30_000_000
    rings: int = 40
    keys: int = 100_000
    statements: int = 3_000
    products: int = 10


FULL: Final = StudySize()
QUICK: Final = StudySize(repeats=10, calls=3_000_000, window_calls=3_000_000, rings=10, keys=100_000, statements=600)


def run_study(
    size: StudySize,
    *,
    seed: int,
    fleets: Path,
    progress: bool = False,
    executor: Executor | None = None,
    announce: Callable[[str], object] = lambda _: None,
) -> list[Point]:
    """Make the four measurements of the scaling study.

    It runs an event loop of its own: in a notebook, ``await asyncio.to_thread(run_study, ...)``.

    Parameters
    ----------
    size : StudySize
    seed : int
        From 0 to 2**128 - 1.
    fleets : Path
        Where generated fleets are kept.
    progress : bool
        Show progress bars.
    executor : Executor, optional
        Runs the simulations.
    announce : callable
        Told what comes next.
    """
    seed = check_seed(seed)
    announce("1/4 live: exact answers over vendors on disk")
    points = asyncio.run(
        measure_live(
            fleets, sizes=size.live_vendors, products=size.products, repeats=size.repeats, seed=seed, progress=progress
        )
    )
    announce("2/4 simulated: fan-out to a million vendors")
    points += simulate_fan_out(size, seed=seed, executor=executor, progress=progress)
    announce("3/4 ring: balance against virtual nodes")
    points += measure_ring(rings=size.rings, keys=size.keys, seed=seed, progress=progress)
    announce("4/4 merge: random statements, exact and naive, against one SQLite")
    return points + measure_merges(
        statements=size.statements, vendors=5, rows=30, seed=seed, progress=progress, mismatch=announce
    )


# -- live ---------------------------------------------------------------------------------------------------------


async def measure_live(
    fleets: Path, *, sizes: Sequence[int], products: int, repeats: int, seed: int, progress: bool = False
) -> list[Point]:
    """Time the two statements over packed fleets on disk, warm, in this process, after checking their answers.

    Returns
    -------
    list of Point
        The median wall time in ms with its order-statistic interval.

    Raises
    ------
    MktsimError
        If an answer differs from that of one SQLite holding all rows.
    """
    points = []
    with tqdm(total=len(sizes) * len(STATEMENTS) * (repeats + 1), desc="live", disable=not progress) as bar:
        for vendors in sizes:
            path = ensure_fleet(fleets, vendors=vendors, products=products, seed=seed, progress=False)
            oracle = _one_sqlite(vendors, products, seed)
            try:
                async with Marketplace.open(path) as market:
                    for name, sql, params in STATEMENTS:
                        answer = await market.query(sql, params, policy=EVERYBODY)  # Also warms the caches.
                        if typed(answer.rows) != typed(run_oracle(oracle, sql, params)[1]):
                            raise MktsimError(
                                f"{name} over {path} differs from one SQLite: delete that fleet, and report it"
                            )
                        bar.update()
                        times_ms = []
                        for _ in range(repeats):
                            started = perf_counter()
                            await market.query(sql, params, policy=EVERYBODY)
                            times_ms.append(1e3 * (perf_counter() - started))
                            bar.update()
                        points.append(
                            Point.of(
                                quantile_interval(times_ms, 0.5),
                                study="live", series=name, kind="measured", axis="vendors", x=vendors,
                                statistic="p50", unit="ms", seed=seed, engine="live",
                            )
                        )  # fmt: skip
            finally:
                oracle.close()
    return points


def _one_sqlite(vendors: int, products: int, seed: int) -> Connection:
    """Return one database with the products of all vendors, in the order of vendors."""
    # Ids are unique within a vendor only, so that the one table has no key.
    declared = ", ".join(f"{quote(name)} {kind.split()[0]}" for name, kind in Product.columns)
    oracle = connect()
    with oracle:
        oracle.execute(f"CREATE TABLE products({declared})")
        insert = f"INSERT INTO products VALUES ({', '.join('?' * len(Product.columns))})"
        for _, rows in catalogue(vendors=vendors, products=products, seed=seed):
            oracle.executemany(insert, rows["products"])
    return oracle


# -- simulated ----------------------------------------------------------------------------------------------------


def simulate_fan_out(
    size: StudySize, *, seed: int, executor: Executor | None = None, progress: bool = False
) -> list[Point]:
    """Simulate the top-10 over fleets of growing size, flat and by a tree, and set theory beside it.

    Quantiles appear where there are requests enough for their interval.
    """
    batch = 5  # Requests a replication: few, so that processes share the work evenly and stop soon.
    plan = []
    for preset, width in PRESETS.items():
        windowed = load_preset(preset).world.window is not None
        for vendors in size.sim_vendors:
            fanouts: list[int | Literal["flat"]] = ["flat", width] if width < vendors else ["flat"]
            for fanout in fanouts:
                calls = size.window_calls if windowed and fanout == "flat" else size.calls
                requests = max(2 * batch, min(size.requests, calls // vendors) // batch * batch)
                plan.append((Scenario(vendors=vendors, preset=preset, fanout=fanout), requests))
    points: list[Point] = []
    total = sum(scenario.vendors * requests for scenario, requests in plan)
    with tqdm(total=total, desc="simulated", unit=" calls", unit_scale=True, disable=not progress) as bar:
        for scenario, requests in plan:
            frame = sweep(
                scenario,
                replications=requests // batch,
                requests=batch,
                seed=seed,
                executor=None if executor is None else _Counting(executor, bar, scenario.vendors * batch),
                quantiles=[p for p in (0.5, 0.99) if requests >= samples_for_quantile(p)],
                mean=False,
                progress=False,
            )
            if executor is None:
                bar.update(scenario.vendors * requests)
            points += [
                Point(
                    study="fan-out",
                    series="flat" if scenario.fanout == "flat" else f"tree of width {scenario.fanout}",
                    kind="simulated",
                    axis="vendors",
                    x=scenario.vendors,
                    unit="ms",
                    seed=seed,
                    preset=f"{scenario.preset} of {row['preset_date']}",
                    **{name: row[name] for name in ("statistic", "estimate", "low", "high", "n", "engine")},
                )
                for row in frame.to_dict("records")
            ]
    return points + [point for preset in PRESETS for point in _theory(preset, size.sim_vendors, seed)]


class _Counting(Executor):
    """Hands tasks on to another executor and moves a progress bar as they end."""

    def __init__(self, executor: Executor, bar: Any, amount: int) -> None:
        self._executor, self._bar, self._amount = executor, bar, amount
        self._lock = threading.Lock()  # Callbacks come from the executor's thread.

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._executor.submit(fn, *args, **kwargs)
        future.add_done_callback(self._count)
        return future

    def _count(self, _future: Future[Any]) -> None:
        with self._lock:
            self._bar.update(self._amount)


def _theory(preset: str, sizes: Sequence[int], seed: int) -> list[Point]:
    """Return what is known of the flat scatter without simulating it, and what others measured of it."""
    loaded = load_preset(preset)
    points = []
    common: dict[str, Any] = {"study": "fan-out", "axis": "vendors", "unit": "ms", "seed": seed}
    common["preset"] = f"{preset} of {loaded.date}"
    for p, statistic in ((0.5, "p50"), (0.99, "p99")):
        for n in sizes:
            if loaded.world.window is None:
                low, high = flat_bounds_ms(loaded.world, n, p)
                for series, bound in (("flat, lower bound", low), ("flat, upper bound", high)):
                    points.append(
                        Point(series=series, kind="analytic", x=n, statistic=statistic, estimate=bound, **common)
                    )
            else:
                limit = windowed_limit_ms(loaded.world, n, p)
                points.append(
                    Point(series="flat, limit of many vendors", kind="analytic", x=n, statistic=statistic,
                          estimate=limit, **common)
                )  # fmt: skip
    if preset == "cloudflare-2026":
        for n, p50, p99 in PUBLISHED:
            for statistic, value in (("p50", p50), ("p99", p99)):
                points.append(
                    Point(series="flat, published 2026", kind="measured", x=n, statistic=statistic, estimate=value,
                          engine="published", **common)
                )  # fmt: skip
    return points


def flat_bounds_ms(world: World, n: int, p: float) -> tuple[float, float]:
    """Return bounds of the quantile `p` of a flat scatter to `n` vendors, all sent at once.

    The last of n answers is in no sooner than the processor has sent n messages and taken n in, nor sooner than the
    slowest vendor; and no later than both one after the other. The slowest of n has the leaf's quantile p^(1/n).
    Exact laws, no simulation; the bounds close in on each other where either part dominates.

    Raises
    ------
    InvalidArgumentError
        For a world with a window, a varying pace, a base that is not 0, or links with tails too long to integrate.
    """
    plain = world.window is None and not world.has_pace and world.base == Constant(0.0)
    if not plain or not math.isfinite(float(world.link_out.sample(np.array([1.0 - 1e-16]))[0])):
        raise InvalidArgumentError("these bounds need a world without window, pace and base")
    coordinator_ms = n * (world.fan_out_ticks + world.fan_in_ticks) * TICK_S * 1e3  # As a world counts time.
    slowest_ms = _leaf_quantile_ms(world, -math.expm1(math.log(p) / n))
    return max(coordinator_ms, slowest_ms), coordinator_ms + slowest_ms


def _leaf_quantile_ms(world: World, tail: float) -> float:
    """Return the time that a call to one vendor exceeds with probability `tail`, by quadrature over its two links."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    u, w = (nodes + 1) / 2, weights / 2
    links = np.add.outer(world.link_out.sample(u), world.link_back.sample(u))
    weight = np.multiply.outer(w, w)

    def excess(t: float) -> float:
        return float(np.sum(weight * (1.0 - world.service.cdf(t - links)))) - tail

    return float(brentq(excess, float(links.min()), float(links.max()) + world.service.quantile(1 - 1e-12), xtol=1e-9))


def windowed_limit_ms(world: World, n: int, p: float) -> float:
    """Return what the quantile `p` of a flat scatter with a window tends to as `n` grows.

    With c calls in flight, n independent calls take n/c times their mean, by the law of large numbers; a pace common to
    all calls of a request stretches the whole, so its quantile passes through: base + n/c * mean * Q_pace(p).
    """
    worked = world.fan_out_ms or world.fan_in_ms
    if world.window is None or not isinstance(world.base, Constant) or world.pace_trace or worked:
        raise InvalidArgumentError(
            "this limit needs a window, a constant base, no traced pace and a coordinator without work of its own"
        )
    mean_ms = world.link_out.mean_ms + world.service.mean_ms + world.link_back.mean_ms
    return world.base.ms + n / min(world.window, n) * mean_ms * world.pace.quantile(p)


@contextmanager
def simulation_processes(workers: int | None = None) -> Iterator[Executor]:
    """Start processes for simulations. Ctrl-C reaches this process alone, which then stops them."""
    count = workers or min(os.cpu_count() or 1, 8)
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
    # A process started while the signal is ignored ignores it from its first instruction on.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        pool.submit(os.getpid)
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# -- ring ---------------------------------------------------------------------------------------------------------


def measure_ring(
    *,
    rings: int,
    keys: int,
    seed: int,
    nodes: int = 100,
    virtual_nodes: Sequence[int] = (1, 3, 10, 30, 100, 150, 300, 1_000),
    progress: bool = False,
) -> list[Point]:
    """Place keys on rings of `nodes` shards and measure how unevenly they fall, with the exact laws beside it.

    Returns
    -------
    list of Point
        For each number of virtual nodes the coefficient of variation of the shards' loads (root mean square over
        rings) and the fullest shard's load over the mean (median over rings). Analytic are the Beta law of the shares
        of the ring, and the beta-binomial law of `keys` keys thrown on such shares.
    """
    names = [f"vendor-{number:07d}" for number in range(keys)]
    points = []
    common: dict[str, Any] = {"study": "ring", "axis": "virtual nodes", "unit": "ratio", "seed": seed}
    with tqdm(total=len(virtual_nodes) * rings, desc="ring", unit=" rings", disable=not progress) as bar:
        for v in virtual_nodes:
            squares, fullest = [], []
            for ring in range(rings):
                placed = ConsistentHashRing((f"{seed}/{ring}/{node}" for node in range(nodes)), virtual_nodes=v)
                loads = np.bincount(placed.assign(names), minlength=nodes) * (nodes / keys)
                squares.append(float(loads.var()))
                fullest.append(float(loads.max()))
                bar.update()
            square = mean_interval(squares)
            law = betabinom(keys, v, (nodes - 1) * v)
            p = analytic.leaf_quantile(0.5, nodes)
            values = {"kind": "measured", "series": f"{keys:,} keys placed", "engine": "live", "x": v, **common}
            points += [
                Point(
                    statistic="variation", estimate=math.sqrt(square.estimate), low=math.sqrt(max(0.0, square.low)),
                    high=math.sqrt(square.high), n=rings, **values,
                ),
                Point.of(quantile_interval(fullest, 0.5), statistic="fullest over mean", **values),
            ]  # fmt: skip
            for series, variation, most in (
                (
                    "shares of the ring (Beta)",
                    analytic.ring_load_variation(nodes, v),
                    analytic.ring_max_over_mean(nodes, v),
                ),
                (f"{keys:,} keys (beta-binomial)", law.std() * nodes / keys, law.ppf(p) * nodes / keys),
            ):
                for statistic, value in (("variation", variation), ("fullest over mean", most)):
                    points.append(
                        Point(series=series, kind="analytic", x=v, statistic=statistic, estimate=float(value), **common)
                    )
    return points
