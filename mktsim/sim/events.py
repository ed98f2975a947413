"""The event engine without a coordinator: a scatter by done-callbacks over the simulated network.

This is what the array engine is held against: the same question as
:func:`mktsim.sim.vectorised.vectorised_sojourn_times`, answered by real asyncio futures that travel through
:class:`~mktsim.sim.network.SimNetwork`. The study runs the real coordinator over that network; this module has none of
its planning and merging, so it measures and tests the simulated world alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.vectorised import Hosts, check_scatter
from mktsim.sim.world import LEAF, TICK_S, World, tree_levels
from mktsim.streams import Streams


def event_sojourn_times(
    world: World,
    streams: Streams,
    *,
    leaves: int,
    requests: Sequence[int] = (0,),
    width: int | None = None,
    hosts: Hosts | None = None,
) -> NDArray[np.float64]:
    """Simulate how long requests that scatter over all leaves take, one request after another.

    Parameters, result and errors are those of :func:`~mktsim.sim.vectorised.vectorised_sojourn_times`; no policy is
    refused. O(n log n) a request, about 10 us a leaf.
    """
    check_scatter(world, streams, leaves=leaves, requests=requests, width=width, hosts=hosts)

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        network = SimNetwork(loop, world, streams)
        levels = [[f"{level}/{i}" for i in range(count)] for level, count in enumerate(tree_levels(leaves, width))]
        network.add_hosts(LEAF, levels[0], hosts=None if hosts is None else hosts.tolist())
        network.register("0/", lambda target, message: None)
        for level, nodes in enumerate(levels[1:], start=1):
            network.add_hosts(f"aggregator/{level}", nodes)
            network.register(f"{level}/", _aggregator(network, levels[level - 1], width or leaves))
        times = []
        for request in requests:
            start = loop.time()
            base = world.base_ticks(streams, request)
            if base:
                await asyncio.sleep(base * TICK_S)
            with request_number(request):
                await scatter(network, "root", levels[-1])
            times.append(loop.time() - start)
        return times

    return np.array(sim_run(run()))


def _aggregator(network: SimNetwork, below: Sequence[str], width: int) -> Any:
    def handle(target: str, message: Any) -> asyncio.Future[None]:
        first = int(target.partition("/")[2]) * width
        return scatter(network, target, below[first : first + width])

    return handle


def scatter(network: SimNetwork, source: str, targets: Sequence[str]) -> asyncio.Future[None]:
    """Call every target from `source` and return the future that is done when all have answered."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    missing = len(targets)

    def count(answer: asyncio.Future[Any]) -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            done.set_result(None)

    for target in targets:
        network.call(source, target, None).add_done_callback(count)
    return done
