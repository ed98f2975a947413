"""Two engines, one answer: events and arrays agree bit for bit, and closed forms agree with both."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError
from mktsim.sim import hedged, operators
from mktsim.sim.conditions import Background, ColdStart, Geography, Hiccups, RequestLimit, Route, Zone
from mktsim.sim.events import event_sojourn_times
from mktsim.sim.faults import Loss
from mktsim.sim.latency import (
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Latency,
    LogNormal,
    Mixture,
    Pareto,
    Shifted,
    Uniform,
)
from mktsim.sim.vectorised import WAIT_FOR_ALL, Policy, unsupported, vectorised_sojourn_times
from mktsim.sim.world import World, tree_levels
from mktsim.streams import Streams

# Whole milliseconds, so that many things happen at one instant: ties are where two engines part.
_tied = st.one_of(
    st.builds(Constant, st.integers(0, 3)), st.just(Empirical((0.0, 1.0, 2.0))), st.just(Empirical((1.0, 5.0)))
)
_smooth: st.SearchStrategy[Latency] = st.one_of(
    st.builds(Exponential, st.floats(0.01, 100)),
    st.builds(lambda m, f: LogNormal(m, m * f), st.floats(0.01, 100), st.floats(1.01, 50)),
    st.builds(Uniform, st.floats(0, 1), st.floats(1.5, 10)),
    st.builds(Gamma, st.floats(0.2, 5), st.floats(0.1, 10)),
    st.builds(Pareto, st.floats(0.01, 5), st.floats(1.1, 5)),
    st.just(Mixture((0.95, 0.05), (Exponential(2.0), Shifted(100.0, Exponential(20.0))))),
)
_latencies = st.one_of(_tied, _smooth)
_costs = st.one_of(st.just(0.0), st.integers(1, 2), st.floats(0, 0.5))
_worlds = st.builds(
    World,
    base=_latencies,
    pace=st.one_of(st.just(Constant(1.0)), st.just(LogNormal(1.0, 2.0))),
    pace_trace=st.sampled_from([(), (1.5,), (1.0, 2.0, 0.5)]),
    link_out=_latencies,
    link_back=_latencies,
    service=_latencies,
    aggregator_service=_latencies,
    workers=st.integers(1, 3),
    fan_out_ms=_costs,
    fan_in_ms=_costs,
    window=st.one_of(st.none(), st.integers(1, 40)),
    cold_start=st.one_of(st.none(), st.builds(ColdStart, _latencies, st.floats(0, 1))),
    background=st.one_of(st.none(), st.builds(Background, st.floats(0, 0.9), st.floats(0.1, 10))),
    geography=st.one_of(
        st.none(),
        st.builds(
            lambda near, far, mbps, share: Geography(
                (Zone("a", "eu"), Zone("b", "eu", share), Zone("c", "us", 2.0)),
                (Route(("eu", "eu"), near), Route(("us", "us"), near, mbps), Route(("eu", "us"), far, mbps)),
                home="b",
            ),
            _latencies,
            _latencies,
            st.one_of(st.none(), st.floats(0.1, 1e4)),
            st.floats(0, 3),
        ),
    ),
    bandwidth_mbps=st.one_of(st.none(), st.floats(0.1, 1e4)),
    request_bytes=st.integers(0, 5000),
    answer_bytes=st.integers(0, 5000),
    replicas=st.integers(2, 3),
    cancel_ms=_costs,
)


_tied_worlds = st.builds(
    World,
    link_out=_tied,
    service=_tied,
    fan_out_ms=st.integers(0, 2),
    fan_in_ms=st.integers(0, 2),
    window=st.integers(1, 5),
    replicas=st.just(2),
    background=st.one_of(st.none(), st.just(Background(0.5, 1.0))),
    cancel_ms=st.integers(0, 2),
)


@st.composite
def scatters(draw: st.DrawFn) -> tuple[World, dict[str, Any]]:
    """A world and a scatter that both engines cover."""
    world = draw(st.one_of(_worlds, _tied_worlds))
    leaves = draw(st.one_of(st.integers(1, 60), st.integers(61, 600)))
    shape = draw(st.sampled_from(("flat", "tree", "hosts", "machines", "hedged", "hedged")))
    arguments: dict[str, Any] = {"leaves": leaves, "requests": range(draw(st.integers(1, 3)))}
    if shape == "tree":
        arguments["width"] = draw(st.integers(2, 20))
    elif shape == "hosts":
        world = world.replace(window=None)
        random_hosts = np.random.default_rng(draw(st.integers(0, 1 << 32)))
        arguments["hosts"] = random_hosts.integers(0, draw(st.integers(1, leaves)), leaves)
    elif shape == "machines":
        world = world.replace(window=None, machines=draw(st.integers(1, leaves)))
    policy: dict[str, Any] = {}
    if shape == "hedged":
        world = world.replace(window=None)
        policy = {"hedge_ms": draw(st.one_of(st.integers(0, 12), st.floats(0, 60))), "tied": draw(st.booleans())}
    if draw(st.booleans()):
        policy["quorum"] = draw(st.integers(1, tree_levels(leaves, arguments.get("width"))[-1]))
    arguments["policy"] = Policy(**policy)
    return world, arguments


@settings(max_examples=1000, deadline=None)
@given(scatters(), st.integers(0, 1 << 40))
def test_events_equal_vectors_bit_for_bit(scatter: tuple[World, dict[str, Any]], seed: int) -> None:
    """Windows, costs, trees, shared hosts, ties: the same seed gives the same times to the last bit."""
    world, arguments = scatter
    events = event_sojourn_times(world, Streams(seed), **arguments)
    vectors = vectorised_sojourn_times(world, Streams(seed), **arguments)
    assert events.tobytes() == vectors.tobytes()


@settings(max_examples=300, deadline=None)
@given(scatters(), st.integers(0, 1 << 40))
def test_events_equal_vectors_where_large_arrays_take_short_cuts(
    scatter: tuple[World, dict[str, Any]], seed: int
) -> None:
    """What is left out of sorting and drawing from 1,000 or 30,000 leaves on, tried from a handful on."""
    world, arguments = scatter
    events = event_sojourn_times(world, Streams(seed), **arguments)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in ((operators, "_FEW", 9), (hedged, "_SLOWEST", 3), (hedged, "_BLOCK", 50)):
            patch.setattr(module, name, value)
        vectors = vectorised_sojourn_times(world, Streams(seed), **arguments)
    assert events.tobytes() == vectors.tobytes()


def test_a_traced_pace_belongs_to_the_number_of_a_request_and_begins_anew() -> None:
    """On top of the drawn pace, in both engines; it survives TOML, and what is no list of positive numbers is named."""
    drawn = World(service=Constant(10.0), pace=LogNormal(1.0, 2.0))
    traced = drawn.replace(pace_trace=[1, 2.0, 0.5])
    assert World.from_toml(traced.to_toml()) == traced
    assert traced.has_pace
    assert not World(pace_trace=(1.0, 1.0)).has_pace
    assert traced.mean_pace == pytest.approx(drawn.mean_pace * 3.5 / 3)
    for engine in (event_sojourn_times, vectorised_sojourn_times):
        plain, found = (engine(world, Streams(5), leaves=3, requests=range(7)) for world in (drawn, traced))
        assert found / plain == pytest.approx([1, 2, 0.5, 1, 2, 0.5, 1], rel=1e-6)
    for wrong in ((0.0,), (-1.0,), (float("nan"),), (float("inf"),), (True,), ("1",), 1.0, "1"):
        with pytest.raises(InvalidArgumentError, match="pace_trace must be a sequence of finite numbers above 0"):
            World(pace_trace=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("fan_in", [0, 1, 30, 1000, 100_000])
@pytest.mark.parametrize("k", [1, 30_000, 99_990, 100_000])
def test_the_turn_of_an_answer_is_that_of_the_recursion(fan_in: int, k: int) -> None:
    """100,000 answers in all regimes, from a processor that waits for each to one that is overrun."""
    arrivals = np.random.default_rng(5).gamma(2.0, 1e6, 100_000).astype(np.int64)
    for busy in (0, 4_000_000):
        turn = busy
        for arrival in np.sort(arrivals)[:k].tolist():
            turn = max(arrival, turn) + fan_in
        assert operators.taken_in(arrivals.copy(), k, busy, fan_in) == turn


@pytest.mark.parametrize("policy", [WAIT_FOR_ALL, Policy(hedge_ms=0.37), Policy(hedge_ms=0.37, tied=True)])
@pytest.mark.parametrize("fan_in_ms", [0.0, 1e-5])
def test_a_million_leaves_take_the_memory_of_a_few_numbers_each(policy: Policy, fan_in_ms: float) -> None:
    """Below 80 MB, of the 200 MB allowed, however they are asked."""
    world = World(
        link_out=Uniform(0.1, 0.2), link_back=Uniform(0.1, 0.2), service=LogNormal(0.009, 0.014),
        fan_in_ms=fan_in_ms, replicas=2,
    )  # fmt: skip
    tracemalloc.start()
    try:
        vectorised_sojourn_times(world, Streams(1), leaves=1_000_000, policy=policy)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80e6


def test_at_one_instant_answers_are_taken_in_before_calls_are_sent() -> None:
    """By hand: sent at 1 and 2, back at 6 and 7; the first is taken in at 7, just when the second is back.

    The second goes first, 7 to 8; so the third is sent at 9, back at 14, taken in at 15. The other order gives 14.
    """
    world = World(link_out=Constant(5), fan_out_ms=1, fan_in_ms=1, window=2)
    for engine in (event_sojourn_times, vectorised_sojourn_times):
        assert engine(world, Streams(1), leaves=3)[0] == pytest.approx(0.015)


@dataclass(frozen=True)
class Scripted(World):
    """A world in which the seconds of each attempt's ways out and services are written down."""

    out_s: Any = ()
    service_s: Any = ()

    def hops(self, streams: Streams, group: str, request: int, n: int, **rest: Any) -> Any:
        attempt, only = rest.get("attempt", 0), rest.get("only")
        out, service = (np.array(seconds[attempt], np.int64) << 30 for seconds in (self.out_s, self.service_s))
        chosen = slice(None) if only is None else only
        return out[chosen], service[chosen], out[chosen] * 0

    def begins(self, streams: Streams, request: int, n: int, **rest: Any) -> Any:
        return self.hops(streams, "leaf", request, n, **rest)[0]


def scripted_s(policy: Policy, **values: Any) -> float:
    """Simulate one request of a scripted world in both engines; its times are in seconds."""
    world = Scripted(replicas=2, **values)
    leaves = len(values["out_s"][0])
    events, vectors = (
        engine(world, Streams(1), leaves=leaves, policy=policy)[0]
        for engine in (event_sojourn_times, vectorised_sojourn_times)
    )
    assert events == vectors
    return float(events)


def test_an_answer_at_the_instant_of_the_hedge_is_in_time() -> None:
    """By hand, in s: sent at 1 and 2, the first back at 5; at 5 only the second is sent again, at 6, back at 9."""
    policy = Policy(hedge_ms=5000)
    ways = {"out_s": ((4, 100), (50, 3)), "service_s": ((0, 0), (0, 0))}
    assert scripted_s(policy, fan_out_ms=1000, **ways) == 9


def test_copies_of_a_tied_request_that_begin_at_once_are_decided_by_who_was_sent_first() -> None:
    """By hand, in s: both begin at 5, the first takes 10 and the second 1; told at once the second is cancelled."""
    policy = Policy(hedge_ms=2000, tied=True)
    ways = {"out_s": ((5,), (3,)), "service_s": ((10,), (1,))}
    assert scripted_s(policy, **ways) == 15
    assert scripted_s(policy, cancel_ms=1, **ways) == 6
    late = {"out_s": ((5,), (2,)), "service_s": ((10,), (7,))}
    assert scripted_s(policy, **late) == 11
    assert scripted_s(policy, cancel_ms=1001, **late) == 11
    assert scripted_s(policy, cancel_ms=1001, out_s=((5,), (2,)), service_s=((3,), (7,))) == 8


@pytest.mark.parametrize("width", [None, 71])
@pytest.mark.parametrize("window", [None, 6])
def test_events_equal_vectors_at_five_thousand_leaves(width: int | None, window: int | None) -> None:
    """As above, at the size that a figure in the documentation speaks of."""
    world = World(
        link_out=LogNormal(1, 5),
        link_back=Uniform(0.1, 0.2),
        service=Exponential(1.0),
        fan_out_ms=0.003,
        fan_in_ms=0.01,
        window=window,
    )
    events = event_sojourn_times(world, Streams(11), leaves=5000, width=width)
    vectors = vectorised_sojourn_times(world, Streams(11), leaves=5000, width=width)
    assert events.tobytes() == vectors.tobytes()


@pytest.mark.parametrize("policy", [Policy(hedge_ms=3), Policy(hedge_ms=1, tied=True), Policy(quorum=4000)])
@pytest.mark.parametrize("costs", [0.0, 0.003])
def test_events_equal_vectors_at_five_thousand_leaves_whatever_the_policy(policy: Policy, costs: float) -> None:
    """Hedged, tied and the first k of n, with and without processor costs, cold starts and a backlog."""
    world = World(
        link_out=LogNormal(1, 5),
        service=Exponential(1.0),
        fan_out_ms=costs,
        fan_in_ms=costs,
        cold_start=ColdStart(Constant(1200), 0.001),
        background=Background(0.4, 2.0),
        replicas=2,
        cancel_ms=0.2,
    )
    events = event_sojourn_times(world, Streams(12), leaves=5000, policy=policy, requests=(0, 1))
    vectors = vectorised_sojourn_times(world, Streams(12), leaves=5000, policy=policy, requests=(0, 1))
    assert events.tobytes() == vectors.tobytes()


def test_a_hedge_keyed_by_the_order_of_sending_breaks_the_equality(monkeypatch: pytest.MonkeyPatch) -> None:
    """The equality test can fail: number the second copies as they are sent, not by their vendor, and it is seen."""
    world = World(link_out=LogNormal(1, 50), replicas=2)
    arguments: dict[str, Any] = {"leaves": 200, "policy": Policy(hedge_ms=2)}
    vectors = vectorised_sojourn_times(world, Streams(3), **arguments)
    assert event_sojourn_times(world, Streams(3), **arguments).tobytes() == vectors.tobytes()
    keyed = World.hops
    sent = iter(range(1, 1000))

    def by_order(self: World, streams: Streams, group: str, request: int, n: int, **rest: Any) -> Any:
        moved = next(sent) if rest.get("attempt") else 0
        return tuple(np.roll(hop, moved) for hop in keyed(self, streams, group, request, n, **rest))

    monkeypatch.setattr(World, "hops", by_order)
    broken = event_sojourn_times(world, Streams(3), **arguments)
    assert broken.tobytes() != vectors.tobytes()


def test_draws_made_in_the_order_of_use_break_the_equality() -> None:
    """The equality test can fail: a generator that remembers gives two engines two answers."""

    class Remembering(World):
        """Draws each call's durations from a shared generator, as most simulators do."""

        def hops(self, *args: Any, **kwargs: Any) -> Any:
            out, service, back = super().hops(*args, **kwargs)
            return (out * state.random()).astype(np.int64), service, back

    state = random.Random(1)
    world = Remembering(link_out=LogNormal(5, 50))
    events = event_sojourn_times(world, Streams(1), leaves=50)
    assert events.tobytes() != vectorised_sojourn_times(world, Streams(1), leaves=50).tobytes()


def test_the_same_seed_gives_the_same_times_in_another_process() -> None:
    """Neither the process nor its hash seed has a say."""
    program = (
        "from mktsim.sim.events import event_sojourn_times as e; from mktsim.sim.world import *;"
        "from mktsim.streams import Streams; w = load_preset('cloudflare-2026').world;"
        "print(e(w, Streams(5), leaves=300, requests=range(3), width=20).tobytes().hex())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(runs) == 1


def test_what_the_array_engine_does_not_cover_it_refuses_by_name() -> None:
    """Feedback between queues and sending is never approximated."""
    hosts = np.zeros(10, np.intp)
    for world, width, reason in (
        (World(window=3), None, "window of 3 with shared hosts"),
        (World(), 4, "tree over shared hosts"),
    ):
        with pytest.raises(InvalidArgumentError, match=reason):
            vectorised_sojourn_times(world, Streams(1), leaves=10, width=width, hosts=hosts)
        assert event_sojourn_times(world, Streams(1), leaves=10, width=width, hosts=hosts)[0] == 0
    assert unsupported(World(window=10), leaves=10, hosts=hosts) is None
    own = World(replicas=2, service=Constant(1))
    hedge = Policy(hedge_ms=0.5)
    for world, arguments, reason in (
        (own.replace(faults=(Loss(targets="nobody"),)), {}, "faults"),
        (own.replace(limit=RequestLimit(queue=5)), {}, "request limits"),
        (own.replace(hiccups=Hiccups(1e9, Constant(0))), {}, "hiccups"),
        (own.replace(cold_start=ColdStart(Constant(0), idle_ms=1)), {}, "grow cold"),
        (own.replace(machines=3), {"width": 4}, "tree over shared hosts"),
        (own.replace(machines=3, window=2), {}, "window of 2 with shared hosts"),
        (own.replace(window=3), {"policy": hedge}, "hedges under a window of 3"),
        (own, {"policy": hedge, "hosts": hosts}, "hedges over shared hosts"),
        (own.replace(replicas=1), {"policy": hedge}, "without a second replica"),
    ):
        with pytest.raises(InvalidArgumentError, match=reason):
            vectorised_sojourn_times(world, Streams(1), leaves=10, **arguments)
        assert event_sojourn_times(world, Streams(1), leaves=10, **arguments)[0] >= 0.001


@pytest.mark.parametrize(
    "arguments",
    [
        {"leaves": 0},
        {"leaves": True},
        {"leaves": 5, "width": 1},
        {"leaves": 5, "requests": [-1]},
        {"leaves": 5, "hosts": np.array([0, 1])},
        {"leaves": 2, "hosts": np.array([0, -1])},
        {"leaves": 2, "policy": Policy(quorum=3)},
        {"leaves": 9, "width": 2, "policy": Policy(hedge_ms=1)},
        {"leaves": 2, "policy": None},
    ],
)
def test_bad_scatters_are_named_errors(arguments: dict[str, Any]) -> None:
    """Both engines check alike, before any work."""
    for engine in (event_sojourn_times, vectorised_sojourn_times):
        with pytest.raises(InvalidArgumentError):
            engine(World(), Streams(1), **arguments)


def test_a_million_leaves_take_tens_of_milliseconds() -> None:
    """A loose bound of 400 ms guards against a loop per leaf; the documented figure is below 40 ms."""
    world = World(link_out=Uniform(0.1, 0.2), service=LogNormal(0.009, 0.014), fan_in_ms=0.003)
    walls = []
    for _ in range(3):
        start = perf_counter()
        vectorised_sojourn_times(world, Streams(1), leaves=1_000_000)
        walls.append(perf_counter() - start)
    assert min(walls) < 0.4


def test_the_event_engine_runs_within_a_third_of_plain_simpy() -> None:
    """Leaves a second against one SimPy process a leaf, same machine, best of three: at least a third."""
    world = World(link_out=Exponential(1.0))
    delays = Exponential(1.0).sample(Streams(1).uniform("d", 0, 5000)).tolist()

    def plain() -> None:
        environment = simpy.Environment()

        def leaf(delay: float):  # type: ignore[no-untyped-def]
            yield environment.timeout(delay)

        environment.run(simpy.AllOf(environment, [environment.process(leaf(delay)) for delay in delays]))

    def best(run: Any) -> float:
        walls = []
        for _ in range(3):
            start = perf_counter()
            run()
            walls.append(perf_counter() - start)
        return min(walls)

    assert best(lambda: event_sojourn_times(world, Streams(1), leaves=5000)) < 3 * best(plain)
