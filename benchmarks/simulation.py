"""A simulated request against plain SimPy, one process a leaf.

Both take their durations from :meth:`mktsim.sim.World.hops`, each round those of another request, so that sojourn times
must agree to the last bit. The peer is what one writes with SimPy alone: a process a leaf, a `Resource` for the
coordinator's processor, three timeouts for link, service and link. The subject without processor costs spares it the
resource: SimPy at its best. Where SQL is executed, its processes run the same statement on the same databases, and the
rows are merged in Python.

Where our time goes is stated with the figures: a profile by module of one further request, which is not timed.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import simpy

from benchmarks.measure import Contender, Sizes, Subject
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sim import SimLoop, SimNetwork, World, load_preset, request_number, vectorised_sojourn_times
from mktsim.sim.world import LEAF, TICK_S
from mktsim.sqlite import Connection
from mktsim.streams import Streams
from mktsim.study import Scenario
from mktsim.study.coordinated import SCHEMA, fleet, vendor_ids

Row = tuple[Any, ...]
Answer = tuple[float, list[Row]]
#: Rated, in Python: what the peer merges by.
_STATEMENT = "SELECT rating, id FROM products WHERE category = ? ORDER BY rating DESC, id LIMIT 10"
_PARAMS = ("electronics",)


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield a request with SQL, two of timing alone, and one in arrays."""
    streams = Streams(seed)
    world = load_preset("same-zone").world
    with ExitStack() as stack:
        databases = fleet(Scenario(vendors=sizes.leaves), streams)
        for database in databases.values():
            stack.callback(database.close)
        scanners = [Scanner.from_connection(vendor_id, database) for vendor_id, database in databases.items()]
        yield Subject(
            f"simulated request, {sizes.leaves:,} leaves, SQL executed",
            "leaf",
            sizes.leaves,
            Contender("QueryCoordinator on SimLoop", _coordinated(stack, world, streams, scanners)),
            (Contender("SimPy, a process a leaf", _plain(world, streams, sizes.leaves, list(databases.values()))),),
        )
    leaves = sizes.event_leaves
    for name, costs in (("", world), (", no processor costs", world.replace(fan_out_ms=0.0, fan_in_ms=0.0))):
        with ExitStack() as stack:
            spent = _profile(_coordinated(stack, costs, streams, _silent(leaves)))
            yield Subject(
                f"simulated request, {leaves:,} leaves, timing only{name}",
                "leaf",
                leaves,
                Contender("QueryCoordinator on SimLoop", _coordinated(stack, costs, streams, _silent(leaves))),
                (Contender("SimPy, a process a leaf", _plain(costs, streams, leaves), at_most=2.0),),
                note=f"own time by module, profiled: {spent}",
            )
    leaves = sizes.array_leaves
    yield Subject(
        f"simulated request, {leaves:,} leaves, in arrays",
        "leaf",
        leaves,
        Contender("vectorised_sojourn_times", _vectorised(world, streams, leaves)),
        (Contender("SimPy, a process a leaf", _plain(world, streams, leaves)),),
        least_rounds=1,  # So many processes are slow; the ratio is in the hundreds or more.
    )


def _silent(leaves: int) -> list[Scanner]:
    """Make vendors that have no row: what is timed is the scatter itself."""
    return [Scanner(vendor_id, lambda _sql, _params: []) for vendor_id in vendor_ids(leaves)]


def _coordinated(stack: ExitStack, world: World, streams: Streams, scanners: list[Scanner]) -> Callable[[], Answer]:
    """Return one request by the real coordinator in simulated time; each call is the next request."""
    runner = stack.enter_context(asyncio.Runner(loop_factory=SimLoop))
    loop = runner.get_loop()
    assert isinstance(loop, SimLoop)
    network = SimNetwork(loop, world, streams)
    network.add_hosts(LEAF, [scanner.address for scanner in scanners])
    coordinator = QueryCoordinator(scanners, schema=SCHEMA, network=network)
    stack.callback(coordinator.close)
    requests = count()

    async def query() -> Answer:
        start_s = loop.time()
        request = next(requests)
        await asyncio.sleep(world.base_ticks(streams, request) * TICK_S)
        with request_number(request):
            result = await coordinator.query(_STATEMENT, _PARAMS)
        return loop.time() - start_s, result.rows

    return lambda: runner.run(query())


def _profile(run: Callable[[], object], *, most: int = 8) -> str:
    """Tell which modules one run spends its time in: shares of own time as cProfile, which slows calls, sees them."""
    run()  # Plans and tables are made once.
    profiler = cProfile.Profile()
    profiler.runcall(run)
    shares: Counter[str] = Counter()
    for (file, _, _), (_, _, own_s, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        shares["/".join(Path(file).parts[-2:]) if file != "~" else "built-in functions"] += own_s
    total = sum(shares.values())
    return ", ".join(f"{name} {100 * own_s / total:.0f} %" for name, own_s in shares.most_common(most))


def _plain(
    world: World, streams: Streams, leaves: int, databases: list[Connection] | None = None
) -> Callable[[], Answer]:
    """Return one request by SimPy alone; each call is the next request."""
    requests = count()
    fan_out_s, fan_in_s = world.fan_out_ticks * TICK_S, world.fan_in_ticks * TICK_S

    def run() -> Answer:
        request = next(requests)
        environment = simpy.Environment(world.base_ticks(streams, request) * TICK_S)
        processor = simpy.Resource(environment)
        rows: list[Row] = []

        def leaf(number: int, out_s: float, service_s: float, back_s: float) -> Any:
            if fan_out_s:
                with processor.request() as turn:
                    yield turn
                    yield environment.timeout(fan_out_s)
            yield environment.timeout(out_s)
            yield environment.timeout(service_s)
            if databases is not None:
                rows.extend(databases[number].execute(_STATEMENT, _PARAMS).fetchall())
            yield environment.timeout(back_s)
            if fan_in_s:
                with processor.request() as turn:
                    yield turn
                    yield environment.timeout(fan_in_s)

        hops = ((ticks * TICK_S).tolist() for ticks in world.hops(streams, LEAF, request, leaves))
        for number, durations in enumerate(zip(*hops, strict=True)):
            environment.process(leaf(number, *durations))
        environment.run()
        rated = sorted(rows, key=lambda row: (row[0] is None, -(row[0] or 0.0), row[1]))
        return environment.now, rated[:10]

    return run


def _vectorised(world: World, streams: Streams, leaves: int) -> Callable[[], Answer]:
    requests = count()
    return lambda: (
        float(vectorised_sojourn_times(world, streams, leaves=leaves, requests=(next(requests),))[0]),
        [],
    )
