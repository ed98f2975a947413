"""What does pipelining save, by distance? A stock look-up at several vendors, spoken in four ways.

Rules
-----
Marketplace, stubs and vendors are the real ones; the network alone is simulated, and metered: round trips and bytes are
counted, not computed. All ways meet the same draws, request by request.

Theory of operation
-------------------
To look up what is in stock of each vendor's cheapest product takes two calls, the second of which needs the answer of
the first. Spoken *one by one*, m vendors are 2 m round trips after each other; *gathered*, 2 m round trips, of which 2
are after each other; *pipelined*, the promise of the first call is an argument of the second: m messages, 1 after
another. So where a round trip takes R in the mean, one by one takes 2 m R and pipelined one by one m R, exactly in the
mean. Gathered the caller waits for the slowest of m, and for connections where the world has a window: 2 R and R are
lower bounds, which the charts show as such.

What this does not do
---------------------
Vendors do not queue for the machine that they share; the caller's own work is what the preset says.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.market import Marketplace
from mktsim.network import Metered
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.world import LEAF, World, load_preset
from mktsim.streams import Streams, check_seed
from mktsim.study import charts
from mktsim.study.jobs import Submits, check_executor, computed
from mktsim.study.points import Point, tidy
from mktsim.study.replications import check_replications
from mktsim.study.result import StudyResult
from mktsim.study.statistics import mean_interval

QUESTION: Final = "What does pipelining save, by distance?"
PRESETS: Final = ("same-zone", "same-region", "cloudflare-2026", "multi-region")


async def _look_up(market: Marketplace, vendor_id: str) -> int:
    """Look up step by step: the sku is fetched, and then asked for."""
    inventory = market.vendor(vendor_id).inventory()
    sku = await inventory.cheapest()
    return int(await inventory.available(sku))


async def _look_up_pipelined(market: Marketplace, vendor_id: str) -> int:
    """Look up in one message: the promise of the sku is an argument."""
    inventory = market.vendor(vendor_id).inventory()
    return int(await inventory.available(inventory.cheapest()))


async def one_by_one(market: Marketplace, vendor_ids: Sequence[str]) -> list[int]:
    """Await every call before the next."""
    return [await _look_up(market, vendor_id) for vendor_id in vendor_ids]


async def gathered(market: Marketplace, vendor_ids: Sequence[str]) -> list[int]:
    """Ask all vendors at the same time, each step by step."""
    return list(await asyncio.gather(*(_look_up(market, vendor_id) for vendor_id in vendor_ids)))


async def pipelined_one_by_one(market: Marketplace, vendor_ids: Sequence[str]) -> list[int]:
    """One message a vendor, one vendor after the other."""
    return [await _look_up_pipelined(market, vendor_id) for vendor_id in vendor_ids]


async def pipelined(market: Marketplace, vendor_ids: Sequence[str]) -> list[int]:
    """One message a vendor, all at the same time."""
    return list(await asyncio.gather(*(_look_up_pipelined(market, vendor_id) for vendor_id in vendor_ids)))


Way = Callable[[Marketplace, Sequence[str]], Awaitable[list[int]]]
#: The ways, and how many round trips each has after each other for m vendors.
WAYS: Final[Mapping[str, tuple[Way, Callable[[int], int]]]] = {
    "one by one": (one_by_one, lambda m: 2 * m),
    "pipelined, one by one": (pipelined_one_by_one, lambda m: m),
    "gathered": (gathered, lambda m: 2),
    "pipelined": (pipelined, lambda m: 1),
}


@dataclass(frozen=True, slots=True)
class _Journey:
    world: World
    vendors: int
    requests: int
    seed: int
    number: int


def pipelining(
    worlds: Mapping[str, World] | Sequence[str] = PRESETS,
    *,
    vendors: int = 10,
    requests: int = 20,
    replications: int = 20,
    seed: int,
    executor: Submits | None = None,
    progress: bool = False,
) -> StudyResult:
    """Look up stock at several vendors in four ways, over networks of growing distance.

    Parameters
    ----------
    worlds : sequence of str, or mapping of str to World
        Names of presets, or worlds of your own by name.
    vendors : int
        At how many, from 1 to 1,000.
    requests : int
        Look-ups in each replication.
    replications : int
        At least 10.
    seed : int
        Decides every draw.
    executor, progress
        See :func:`~mktsim.study.sweeps.sweep`.

    Returns
    -------
    StudyResult
        Its frame has, by ``series`` (the way), ``preset`` and ``x``, the mean round trip there in ms: ``time`` in ms,
        simulated, beside the analytic round trips after each other times their mean; and ``round trips``, ``bytes``.

    Raises
    ------
    InvalidArgumentError
        Before any work, if a number is out of range or there is no such preset.

    Examples
    --------
    >>> found = pipelining(["same-zone"], vendors=3, requests=1, replications=10, seed=1).frame
    >>> found[found["statistic"] == "round trips"].set_index("series")["estimate"].astype(int).to_dict()
    {'one by one': 6, 'pipelined, one by one': 3, 'gathered': 6, 'pipelined': 3}
    """
    if isinstance(worlds, str) or not isinstance(worlds, Mapping | Sequence) or not worlds:
        raise InvalidArgumentError(f"worlds must be names of presets, or Worlds by name, not {worlds!r:.80}")
    if isinstance(worlds, Mapping):
        where = dict(worlds)
    else:
        loaded = [load_preset(name) for name in worlds]
        where = {f"{preset.name} {preset.date}": preset.world for preset in loaded}
    for name, world in where.items():
        if not isinstance(name, str) or not isinstance(world, World):
            raise InvalidArgumentError(f"worlds must be Worlds by name, not {name!r:.40}: {world!r:.40}")
        if world.faults or world.limit is not None:
            raise InvalidArgumentError(f"world {name!r:.80} has faults or limits: a look-up may then never be answered")
    seed = check_seed(seed)
    check_executor(executor, None)
    check_replications(replications)
    for name, number, most in (("vendors", vendors, 1_000), ("requests", requests, 100_000)):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
            raise InvalidArgumentError(f"{name} must be a whole number from 1 to {most:,}, not {number!r:.80}")
    jobs = [_Journey(world, vendors, requests, seed, r) for world in where.values() for r in range(replications)]
    rows: dict[int, list[tuple[str, float, float, float]]] = {}
    with tqdm(total=len(jobs), desc="pipelining", unit=" replications", disable=not progress) as bar:
        for place, found in computed(_travel, jobs, executor=executor):
            rows[place] = found
            bar.update()
    points, times = [], {}
    for number, (preset, world) in enumerate(where.items()):
        mine = [rows[number * replications + r] for r in range(replications)]
        trip_ms = mean_round_trip_ms(world)
        common: dict[str, Any] = {
            "study": "pipelining", "seed": seed, "axis": "mean round trip, ms", "x": trip_ms, "preset": preset,
        }  # fmt: skip
        for way, (_, depth) in WAYS.items():
            table = np.array([[row[1:] for row in part if row[0] == way] for part in mine])
            for column, (statistic, unit) in enumerate((("time", "ms"), ("round trips", "calls"), ("bytes", "bytes"))):
                # Of each replication the mean, for its look-ups share a market.
                found_here = mean_interval(table[:, :, column].mean(axis=1))
                kind = "simulated" if statistic == "time" else "measured"
                points.append(
                    Point.of(
                        found_here, series=way, kind=kind, statistic=statistic, unit=unit, engine="event", **common
                    )
                )
                if statistic == "time":
                    times[preset, way] = found_here
            points.append(
                Point(
                    series=f"{depth(vendors)} x round trip", kind="analytic", group=way, statistic="time", unit="ms",
                    estimate=depth(vendors) * trip_ms, **common,
                )
            )  # fmt: skip
    frame = tidy(points)
    counted = (
        frame[frame["statistic"].isin(["round trips", "bytes"])].groupby(["series", "statistic"])["estimate"].mean()
    )
    told = []
    for preset, world in where.items():
        first, last = times[preset, "one by one"], times[preset, "pipelined"]
        ratio = f" ({first.estimate / last.estimate:.3g} times)" if last.estimate else ""
        told.append(
            f"{preset} (round trip {mean_round_trip_ms(world):.3g} ms): from {first} ms one by one and "
            f"{times[preset, 'gathered']} ms gathered to {last} ms{ratio}"
        )
    answer = (
        f"Of {vendors} vendors, two dependent calls each: pipelining halves the round trips, measured, from "
        f"{counted['gathered', 'round trips']:.3g} to {counted['pipelined', 'round trips']:.3g}, and the bytes from "
        f"{counted['gathered', 'bytes']:,.0f} to {counted['pipelined', 'bytes']:,.0f}. Time, simulated: "
        f"{'; '.join(told)}."
    )
    caption = (
        f"Simulated network, real stubs and vendors; presets {', '.join(where)}; {vendors} vendors; n = {replications} "
        f"replications of {requests} look-ups a point, seed {seed}; 95 % intervals of the mean. Analytic: round trips "
        "after each other times the mean round trip, exact one by one and a lower bound where calls go together."
    )
    parameters = {
        "worlds": {name: world.to_dict() for name, world in where.items()}, "vendors": vendors, "requests": requests,
        "replications": replications,
    }  # fmt: skip
    return StudyResult(question=QUESTION, answer=answer, frame=frame, parameters=parameters, seed=seed, caption=caption)


def mean_round_trip_ms(world: World) -> float:
    """Mean of what one call there takes: both links, the service, and the caller's work on its two messages.

    Raises
    ------
    InvalidArgumentError
        If the world has a geography, whose ways are not all alike.

    Examples
    --------
    >>> mean_round_trip_ms(World(fan_out_ms=0.5))
    0.5
    """
    if world.geography is not None:
        raise InvalidArgumentError("a world with a geography has no single mean round trip: give its ways as links")
    moved = world.mean_pace * (world.link_out.mean_ms + world.service.mean_ms + world.link_back.mean_ms)
    if world.background is not None:
        moved += world.background.utilisation * world.background.service_ms / (1 - world.background.utilisation)
    if not math.isfinite(moved):
        raise InvalidArgumentError("a world whose round trips have no mean cannot be compared by it")
    return moved + world.fan_out_ms + world.fan_in_ms


def _travel(job: _Journey) -> list[tuple[str, float, float, float]]:
    """Run one replication: rows of way, ms, round trips of the caller, bytes."""
    streams = Streams(job.seed).child(f"replication {job.number}")
    return sim_run(_journey(job, streams))


async def _journey(job: _Journey, streams: Streams) -> list[tuple[str, float, float, float]]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    travels = SimNetwork(loop, job.world, streams)
    vendor_ids = [f"vendor-{number}" for number in range(job.vendors)]
    travels.add_hosts(LEAF, [f"vendor/{vendor_id}" for vendor_id in vendor_ids])
    network, table = Metered(travels), []
    async with Marketplace.open(network=network) as market:
        for number, vendor_id in enumerate(vendor_ids):
            vendor = market.vendor(vendor_id)
            await vendor.initialize()
            await vendor.create_product(sku=f"S-{number}", name="Lamp", price=5.0, stock=1_000 + number)
        await market.idle()
        await travels.idle()
        stats = network.stats
        for request in range(job.requests):
            for name, (way, _) in WAYS.items():
                with request_number(request + 1):
                    start_s, trips = loop.time(), stats.round_trips
                    sent = stats.request_bytes + stats.answer_bytes
                    stocks = await way(market, vendor_ids)
                    end_s = loop.time()
                    await travels.idle()
                if stocks != [1_000 + number for number in range(job.vendors)]:
                    raise SimulationError(
                        f"{name} looked up {stocks!r:.80}, which is not what the vendors have: report it"
                    )
                moved = stats.request_bytes + stats.answer_bytes - sent
                table.append((name, 1e3 * (end_s - start_s), float(stats.round_trips - trips), float(moved)))
    return table


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Answer for the command line, with charts as PNG by file name."""
    size: dict[str, Any] = {"requests": 2, "replications": 10} if quick else {}
    result = pipelining(seed=seed, executor=executor, progress=progress, **size)
    axes = charts.pipelining_chart(result.frame)
    charts.annotate(axes, title=QUESTION, caption=result.caption)
    return result, {"pipelining.png": (QUESTION, charts.png(axes[0]))}
