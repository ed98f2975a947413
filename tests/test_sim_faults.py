"""Faults and conditions: each declared, each met by the call it is keyed to, none silently wrong."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError, OverloadedError, VendorDownError
from mktsim.sim import (
    Background,
    ColdStart,
    Constant,
    Crash,
    Duplication,
    Exponential,
    Fault,
    Geography,
    Hiccups,
    LogNormal,
    Loss,
    Partition,
    Reordering,
    RequestLimit,
    Route,
    SimLoop,
    SimNetwork,
    SlowDisk,
    Trace,
    Uniform,
    World,
    Zone,
    fault_from_dict,
    request_number,
    sim_run,
)
from mktsim.sim.events import event_sojourn_times
from mktsim.streams import Streams

GEOGRAPHY = Geography(
    (Zone("fra-1", "eu", 2), Zone("fra-2", "eu"), Zone("nyc", "us", 0.5)),
    (
        Route(("eu", "eu"), Constant(1)),
        Route(("fra-1", "fra-1"), Constant(0.25)),
        Route(("us", "us"), Constant(1)),
        Route(("eu", "us"), Constant(45), bandwidth_mbps=80),
    ),
    home="fra-1",
)


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def run(world: World, body: Any, *, seed: int = 1, **options: Any) -> Any:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        network = SimNetwork(loop, world, Streams(seed), **options)
        network.register("v/", lambda target, message: (target, message))
        return await body(network, loop)

    return sim_run(main())


async def outcome(network: SimNetwork, target: str, *, patience_s: float = 10.0) -> tuple[float, str]:
    """Call once; return when it ended in ms and how."""
    loop = asyncio.get_running_loop()
    try:
        await asyncio.wait_for(network.call("me", target, None), patience_s)
    except (VendorDownError, OverloadedError, TimeoutError) as error:
        return ms(loop.time()), type(error).__name__
    return ms(loop.time()), "answered"


# --- declared ------------------------------------------------------------------------------------------------------

_when = st.fixed_dictionaries(
    {
        "targets": st.text(min_size=1, max_size=20).filter(lambda s: not any("\ud800" <= c <= "\udfff" for c in s)),
        "share": st.floats(0, 1),
        "start_ms": st.floats(0, 1e6),
        "end_ms": st.one_of(st.just(math.inf), st.floats(1.1e6, 1e9)),
    }
)
_faults = st.one_of(
    st.builds(lambda w, silent: Crash(silent=silent, **w), _when, st.booleans()),
    st.builds(lambda w: Partition(**w), _when),
    st.builds(lambda w, f: SlowDisk(factor=f, added_ms=f, **w), _when, st.floats(1, 100)),
    st.builds(lambda w, p: Loss(probability=p, **w), _when, st.floats(0, 1)),
    st.builds(lambda w, p: Duplication(probability=p, delay=Exponential(3), **w), _when, st.floats(0, 1)),
    st.builds(lambda w, p: Reordering(probability=p, delay=LogNormal(1, 9), **w), _when, st.floats(0, 1)),
)


@settings(deadline=None)
@given(
    st.builds(
        World,
        service=st.just(LogNormal(2, 20)),
        replicas=st.integers(1, 3),
        geography=st.sampled_from((None, GEOGRAPHY)),
        cold_start=st.sampled_from((None, ColdStart(Constant(1200), 0.1, 70_000))),
        hiccups=st.sampled_from((None, Hiccups(500, Exponential(20)))),
        background=st.sampled_from((None, Background(0.4, 3))),
        limit=st.sampled_from((None, RequestLimit(10, 1000, 5), RequestLimit(rate_per_s=3))),
        bandwidth_mbps=st.one_of(st.none(), st.floats(0.1, 1e5)),
        faults=st.lists(_faults, max_size=4),
    )
)
def test_a_world_round_trips_through_toml(world: World) -> None:
    """With all its conditions and faults, whatever their patterns hold."""
    assert World.from_toml(world.to_toml()) == world


@pytest.mark.parametrize(
    "make",
    [
        lambda: Crash(start_ms=5, end_ms=5),
        lambda: Crash(targets=""),
        lambda: Crash(share=1.5),
        lambda: Crash(start_ms=math.nan),
        lambda: Loss(probability=-0.1),
        lambda: SlowDisk(factor=0.5),
        lambda: Reordering(delay=5),  # type: ignore[arg-type]
        lambda: fault_from_dict({"kind": "meteor"}),
        lambda: fault_from_dict({"kind": "loss", "start_s": 1}),
        lambda: fault_from_dict("crash"),
        lambda: RequestLimit(),
        lambda: RequestLimit(queue=-1),
        lambda: Background(1.0, 5),
        lambda: ColdStart(Constant(1), share=2),
        lambda: Hiccups(0, Constant(1)),
        lambda: Geography((), (), "x"),
        lambda: Geography((Zone("a", "r"),), (), "a"),
        lambda: Geography((Zone("a", "r"),), (Route(("r", "r"), Constant(1)),), "b"),
        lambda: Geography((Zone("a", "r"),), (Route(("r", "moon"), Constant(1)),), "a"),
        lambda: Geography((Zone("a", "r", 0.0),), (Route(("r", "r"), Constant(1)),), "a"),
        lambda: Route(("a",), Constant(1)),  # type: ignore[arg-type]
        lambda: World(faults=("crash",)),  # type: ignore[arg-type]
        lambda: World(limit=5),  # type: ignore[arg-type]
        lambda: World(replicas=0),
        lambda: World(cancel_ms=math.inf),
        lambda: World.from_toml("window = "),
        lambda: World.from_toml("windows = 6"),
        lambda: World.from_toml("faults = 3"),
        lambda: World.from_toml("limit = { queues = 1 }"),
        lambda: World.from_dict({"background": {"utilisation": 0.1}}),
    ],
)
def test_bad_declarations_are_named_errors(make: Any) -> None:
    """Refused when made, in a short message."""
    with pytest.raises(InvalidArgumentError) as caught:
        make()
    assert len(str(caught.value)) < 500


# --- faults --------------------------------------------------------------------------------------------------------


def test_a_crash_refuses_kills_what_was_begun_and_ends() -> None:
    """Down from 10 to 30 ms; link 2 each way, service 5: refused at 4 after the call, reset at 10, served after 30."""
    world = World(
        link_out=Constant(2), service=Constant(5), aggregator_service=Constant(5), link_back=Constant(2),
        faults=(Crash(targets="v/a", start_ms=10, end_ms=30),),
    )  # fmt: skip

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        assert await outcome(network, "v/a") == (9, "answered")
        died, other = await asyncio.gather(outcome(network, "v/a"), outcome(network, "v/b"))
        assert died == (12 + 1, "VendorDownError")  # It arrived at 11, while the host was down.
        assert other == (18, "answered")
        assert await outcome(network, "v/a") == (22, "VendorDownError")
        await asyncio.sleep(0.010)
        assert await outcome(network, "v/a") == (41, "answered")
        assert network.incidents == {"refused": 2}

    run(world, body)

    async def during(network: SimNetwork, loop: SimLoop) -> None:
        await asyncio.sleep(0.005)
        assert await outcome(network, "v/a") == (12, "VendorDownError")  # It was being served when the host went down.

    run(world, during)


def test_a_silent_crash_answers_nobody_and_gives_the_connection_back_when_the_caller_does() -> None:
    """The caller's time-out is all that ends it; then the next call has the only connection."""
    world = World(window=1, faults=(Crash(targets="v/a", silent=True),))

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        lost = asyncio.ensure_future(outcome(network, "v/a", patience_s=0.5))
        await asyncio.sleep(0)
        assert await outcome(network, "v/b") == (500, "answered")
        assert await lost == (500, "TimeoutError")
        await network.idle()
        assert network.incidents == {"lost": 1}

    run(world, body)


def test_a_restart_is_cold_and_empty() -> None:
    """The queue before the crash is gone; the first call after it pays the cold start, the second does not."""
    world = World(
        aggregator_service=Constant(100),
        cold_start=ColdStart(Constant(1200)),
        faults=(Crash(targets="v/a", start_ms=10, end_ms=20),),
    )

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        doomed = [asyncio.ensure_future(outcome(network, "v/a")) for _ in range(3)]
        await asyncio.sleep(0.020)
        assert {await call for call in doomed} == {(10, "VendorDownError")}
        assert await outcome(network, "v/a") == (20 + 1200 + 100, "answered")
        assert await outcome(network, "v/a") == (1420, "answered")

    run(world, body)


def test_a_partition_separates_those_inside_from_those_outside_only() -> None:
    """Calls across are lost, both ways; among the separated and among the rest they arrive."""
    world = World(link_out=Constant(1), link_back=Constant(1), faults=(Partition(targets="v/in*", end_ms=100),))

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        network.add_hosts("leaf", ["v/in1", "v/in2", "v/out"])
        assert await outcome(network, "v/out") == (2, "answered")
        assert await network.call("v/in1", "v/in2", 5) == ("v/in2", 5)
        assert await outcome(network, "v/in1", patience_s=0.01) == (14, "TimeoutError")
        inward = network.call("v/in1", "v/out", 5)
        await asyncio.sleep(0.1)
        assert not inward.done()
        inward.cancel()
        assert (await outcome(network, "v/in1"))[1] == "answered"

    run(world, body)


def test_an_answer_is_lost_when_the_partition_begins_under_way() -> None:
    """The handler has run: at least once is not at most once."""
    world = World(link_out=Constant(1), link_back=Constant(5), faults=(Partition(targets="v/a", start_ms=3),))
    served: list[str] = []

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        network.register("v/a", lambda target, message: served.append(target))
        assert (await outcome(network, "v/a", patience_s=1))[1] == "TimeoutError"

    run(world, body)
    assert served == ["v/a"]


def test_a_slow_disk_slows_what_begins_while_it_is_slow() -> None:
    """Ten times and 5 ms more, from 10 to 20 ms."""
    world = World(aggregator_service=Constant(3), faults=(SlowDisk(factor=10, added_ms=5, start_ms=10, end_ms=20),))

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        assert await outcome(network, "v/a") == (3, "answered")
        await asyncio.sleep(0.008)
        assert await outcome(network, "v/a") == (46, "answered")
        assert await outcome(network, "v/a") == (49, "answered")

    run(world, body)


def test_lost_duplicated_and_held_up_messages_come_as_often_as_declared() -> None:
    """Of 4,000 calls, within four standard deviations; a duplicate runs the handler twice and answers once."""
    n = 4000
    names = [f"v/{i}" for i in range(n)]
    world = World(
        link_out=Constant(1),
        link_back=Constant(1),
        faults=(
            Loss(probability=0.1),
            Duplication(probability=0.2, delay=Constant(50)),
            Reordering(probability=0.3, delay=Constant(7)),
        ),
    )
    served: list[str] = []

    async def body(network: SimNetwork, loop: SimLoop) -> list[float]:
        network.add_hosts("leaf", names)
        for name in names:
            network.register(name, lambda target, message: served.append(target))
        ended: dict[str, list[float]] = {name: [] for name in names}
        calls = [network.call("me", name, None) for name in names]
        for name, call in zip(names, calls, strict=True):
            call.add_done_callback(lambda _, name=name: ended[name].append(ms(loop.time())))
        await asyncio.sleep(1)
        lost = sum(not call.done() for call in calls)
        for call in calls:
            call.cancel()
        await network.idle()
        assert lost == pytest.approx(n * (1 - 0.81), abs=4 * math.sqrt(n * 0.81 * 0.19) + n * 0.2 * 0.1)
        return [times[0] for times in ended.values() if len(times) == 1 and times[0] < 1000]

    times = np.array(run(world, body))
    twice = len(served) - len(set(served))
    assert twice == pytest.approx(n * 0.9 * 0.2, abs=4 * math.sqrt(n * 0.18 * 0.82))
    assert set(np.unique(times)) <= {2, 9, 16, 52, 59, 66}
    assert np.mean(times == 2) == pytest.approx(0.49, abs=0.05)


def test_the_same_faults_hit_the_same_calls_whoever_else_is_called() -> None:
    """Keyed by request, attempt and host: alone, in another order, in a larger fleet."""
    world = World(link_out=Constant(1), faults=(Loss(probability=0.5, share=0.7), Crash(share=0.2)))

    def fates(order: list[int], fleet: int) -> dict[int, str]:
        async def body(network: SimNetwork, loop: SimLoop) -> dict[int, str]:
            network.add_hosts("leaf", [f"v/{i}" for i in range(fleet)])
            with request_number(4):
                calls = {i: network.call("me", f"v/{i}", None) for i in order}
            await asyncio.sleep(1)
            fate = {}
            for i, call in calls.items():
                fate[i] = "lost" if not call.done() else "down" if call.exception() else "answered"
                call.cancel()
            return fate

        return run(world, body)

    whole = fates(list(range(50)), 50)
    assert set(whole.values()) == {"lost", "down", "answered"}
    assert fates(list(range(49, -1, -1)), 80) == whole
    assert fates([17], 18) == {17: whole[17]}


def test_a_second_attempt_has_a_fate_of_its_own() -> None:
    """Half of the calls are lost; of those, half of the second calls arrive: or no retry could help."""
    world = World(faults=(Loss(probability=0.5),))

    async def body(network: SimNetwork, loop: SimLoop) -> list[bool]:
        network.add_hosts("leaf", [f"v/{i}" for i in range(400)])
        fates = []
        for _ in range(2):
            calls = [network.call("me", f"v/{i}", None) for i in range(400)]
            await asyncio.sleep(1)
            fates.append([call.done() for call in calls])
            for call in calls:
                call.cancel()
        return [second for first, second in zip(*fates, strict=True) if not first]

    again = run(world, body)
    assert len(again) == pytest.approx(300, abs=40)  # Lost on the way out or back.
    assert sum(again) == pytest.approx(len(again) / 4, abs=35)


def test_a_fault_that_hits_nobody_changes_nothing() -> None:
    """The same times to the last bit, on the stage-by-stage way as on the planned one."""
    world = World(link_out=LogNormal(1, 9), service=Exponential(2), link_back=Uniform(1, 2), workers=2, fan_in_ms=0.1)
    hosts = np.arange(300) % 7
    idle = world.replace(faults=(Crash(targets="nobody"), Loss(probability=0.0)), limit=RequestLimit(queue=10_000))
    for arguments in ({}, {"width": 9}, {"hosts": hosts}):
        plain, through, traced = (
            event_sojourn_times(w, Streams(2), leaves=300, requests=range(3), trace=trace, **arguments).tobytes()
            for w, trace in ((world, None), (idle, None), (world, Trace()))
        )
        assert plain == through == traced


# --- conditions ----------------------------------------------------------------------------------------------------


def test_a_full_queue_sheds_by_name() -> None:
    """One served, two wait, the fourth is told at once; when there is room again it is taken on."""
    world = World(aggregator_service=Constant(10), limit=RequestLimit(queue=2))

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        ends = await asyncio.gather(*(outcome(network, "v/a") for _ in range(5)))
        assert ends == [
            (10, "answered"), (20, "answered"), (30, "answered"), (0, "OverloadedError"), (0, "OverloadedError")
        ]  # fmt: skip
        assert await outcome(network, "v/a") == (40, "answered")
        assert network.incidents == {"shed": 2}

    run(world, body)


def test_a_rate_limit_takes_on_its_burst_and_then_its_rate() -> None:
    """1,000 a second, bursts of 3, offered one every 0.25 ms for a second: 1,000 and the burst are taken on."""
    world = World(limit=RequestLimit(rate_per_s=1000, burst=3))

    async def body(network: SimNetwork, loop: SimLoop) -> list[str]:
        found = []
        for _ in range(4000):
            found.append((await outcome(network, "v/a"))[1])
            await asyncio.sleep(0.00025)
        return found

    found = run(world, body)
    assert found[:3] == ["answered"] * 3
    assert found[3:6].count("OverloadedError") >= 2
    assert found.count("answered") == pytest.approx(1002, abs=1)


def test_hosts_pause_and_what_was_begun_stands_still() -> None:
    """Pauses of 4 ms every 10: a service of 6 ms takes 6 or 10, one of 60 ms takes 100 within a pause."""

    async def body(network: SimNetwork, loop: SimLoop) -> list[float]:
        network.add_hosts("leaf", [f"v/{i}" for i in range(200)])
        await asyncio.sleep(1)
        ends = await asyncio.gather(*(outcome(network, f"v/{i}") for i in range(200)))
        return [end - 1000 for end, _ in ends]

    pauses = Hiccups(10, Constant(4))
    short = np.array(run(World(service=Constant(3), hiccups=pauses), body))
    assert (short >= 3 - 1e-9).all()
    assert (short <= 7 + 1e-9).all()
    # Free of a pause are those that begin in the first 3 of 6 ms between pauses.
    assert np.mean(short < 3 + 1e-9) == pytest.approx(0.3, abs=0.12)
    long = np.array(run(World(service=Constant(60), hiccups=pauses), body))
    assert (np.abs(long - 98) <= 6).all()


def test_a_host_grows_cold_with_time() -> None:
    """Cold at its first call and after 70 s without one; warm in between."""
    world = World(aggregator_service=Constant(8), cold_start=ColdStart(Constant(1200), idle_ms=70_000))

    async def body(network: SimNetwork, loop: SimLoop) -> list[float]:
        took = []
        for pause in (0, 69, 71):
            await asyncio.sleep(pause)
            start = loop.time()
            await network.call("me", "v/a", None)
            took.append(ms(loop.time() - start))
        return took

    assert run(world, body) == [1208, 8, 1208]


def test_zones_bandwidth_and_sizes_decide_the_way() -> None:
    """80 Mbit/s carry 10,000 bytes in 1 ms; the nearer route counts; hosts keep their zone."""
    n = 3000
    zones = GEOGRAPHY.place(Streams(1), "leaf", n)
    assert np.bincount(zones) / n == pytest.approx([2 / 3.5, 1 / 3.5, 0.5 / 3.5], abs=0.04)
    world = World(geography=GEOGRAPHY, request_bytes=10_000)
    expected = np.array([0.5, 2, 91])[zones]

    def times(**options: Any) -> Any:
        async def body(network: SimNetwork, loop: SimLoop) -> list[float]:
            network.add_hosts("leaf", [f"v/{i}" for i in range(n)])
            return [end for end, _ in await asyncio.gather(*(outcome(network, f"v/{i}") for i in range(n)))]

        return np.array(run(world, body, **options))

    assert times() == pytest.approx(expected)
    measured = np.array([0.5, 2, 90 + 2 + 4])[zones]
    assert times(sizes=lambda message: 20_000 if message is None else 40_000) == pytest.approx(measured)


def test_a_backlog_is_that_of_an_mm1_queue() -> None:
    """Idle with probability 1 - rho; the mean wait is rho s / (1 - rho) (Pollaczek and Khinchine)."""
    waits = World(background=Background(0.6, 5)).backlog(Streams(3), "leaf", 0, 200_000) * 2.0**-30 * 1e3
    assert np.mean(waits == 0) == pytest.approx(0.4, abs=0.005)
    assert waits.mean() == pytest.approx(0.6 * 5 / 0.4, rel=0.02)
    assert np.quantile(waits, 0.99) == pytest.approx(math.log(0.6 / 0.01) * 5 / 0.4, rel=0.03)


def test_every_kind_of_fault_is_named_in_toml() -> None:
    """By its kind, and no two share one."""
    kinds = {cls.kind for cls in Fault.__subclasses__()}
    assert kinds == {"crash", "partition", "slow_disk", "loss", "duplication", "reordering"}
    assert all(fault_from_dict({"kind": kind}).kind == kind for kind in kinds)
