"""The event engine without a coordinator: a scatter by done-callbacks over the simulated network.

This is what the array engine is held against: the same question as
:func:`mktsim.sim.vectorised.vectorised_sojourn_times`, answered by real asyncio futures that travel through
:class:`~mktsim.sim.network.SimNetwork`. The study runs the real coordinator over that network; this module has none of
its planning and merging, so it measures and tests the simulated world alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mktsim.sim.calls import Tie
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.operators import Hosts
from mktsim.sim.trace import Trace
from mktsim.sim.vectorised import WAIT_FOR_ALL, Policy, check_scatter
from mktsim.sim.world import LEAF, TICK_S, World, ms_to_ticks, tree_levels
from mktsim.streams import Streams


def event_sojourn_times(
    world: World,
    streams: Streams,
    *,
    leaves: int,
    requests: Sequence[int] = (0,),
    width: int | None = None,
    hosts: Hosts | None = None,
    policy: Policy = WAIT_FOR_ALL,
    trace: Trace | None = None,
) -> NDArray[np.float64]:
    """Simulate how long requests that scatter over all leaves take, one request after another.

    Each begins when nothing of the last is on its way any more. Parameters, result and errors are those of
    :func:`~mktsim.sim.vectorised.vectorised_sojourn_times`, and a `trace` to record into; no world is refused, and of
    policies only hedges in a tree. O(n log n) a request, about 10 us a leaf.
    """
    check_scatter(world, streams, leaves=leaves, requests=requests, width=width, hosts=hosts, policy=policy)

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        network = SimNetwork(loop, world, streams, trace=trace)
        return await scatters(network, leaves=leaves, requests=requests, width=width, hosts=hosts, policy=policy)

    return np.array(sim_run(run()))


async def scatters(
    network: SimNetwork,
    *,
    leaves: int,
    requests: Sequence[int] = (0,),
    width: int | None = None,
    hosts: Hosts | None = None,
    policy: Policy = WAIT_FOR_ALL,
) -> list[float]:
    """Build the tree over a network and scatter over it; see :func:`event_sojourn_times`."""
    loop, world, streams = asyncio.get_running_loop(), network.world, network.streams
    levels = [[f"leaf/{i}" for i in range(leaves)]]
    network.add_hosts(LEAF, levels[0], hosts=None if hosts is None else hosts.tolist())
    network.register("leaf/", lambda target, message: None)
    for level, count in enumerate(tree_levels(leaves, width)[1:], start=1):
        nodes = [f"aggregator {level}/{i}" for i in range(count)]
        network.add_hosts(f"aggregator/{level}", nodes)
        network.register(f"aggregator {level}/", _aggregator(network, levels[-1], width or leaves))
        levels.append(nodes)
    times = []
    for request in requests:
        start = loop.time()
        base = world.base_ticks(streams, request)
        if base:
            await asyncio.sleep(base * TICK_S)
        with request_number(request):
            await scatter(network, "root", levels[-1], policy)
        times.append(loop.time() - start)
        await network.idle()
    return times


def _aggregator(network: SimNetwork, below: Sequence[str], width: int) -> Any:
    def handle(target: str, message: Any) -> asyncio.Future[None]:
        first = int(target.partition("/")[2]) * width
        return scatter(network, target, below[first : first + width])

    return handle


def scatter(
    network: SimNetwork, source: str, targets: Sequence[str], policy: Policy = WAIT_FOR_ALL
) -> asyncio.Future[None]:
    """Call every target from `source` and return the future that is done when enough of them have answered."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    missing = len(targets) if policy.quorum is None else policy.quorum
    timer: asyncio.TimerHandle | None = None

    def count(answer: asyncio.Future[Any]) -> None:
        nonlocal missing
        missing -= 1
        error = None if answer.cancelled() else answer.exception()
        if done.done() or (missing and error is None):
            return
        if timer is not None:
            timer.cancel()
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    if policy.hedge_ms is None:
        for target in targets:
            network.call(source, target, None).add_done_callback(count)
        return done

    answered = [False] * len(targets)
    ties = [Tie() if policy.tied else None for _ in targets]

    def count_once(number: int, answer: asyncio.Future[Any]) -> None:
        # Of two copies one answers first; a tied one that was cancelled does not answer at all.
        if not answered[number] and not answer.cancelled():
            answered[number] = True
            count(answer)

    def hedge() -> None:
        for number, target in enumerate(targets):
            if not answered[number]:
                copy = network.call(source, target, None, tie=ties[number])
                copy.add_done_callback(partial(count_once, number))

    for number, target in enumerate(targets):
        network.call(source, target, None, tie=ties[number]).add_done_callback(partial(count_once, number))
    timer = loop.call_later(ms_to_ticks(policy.hedge_ms) * TICK_S, hedge)
    return done
