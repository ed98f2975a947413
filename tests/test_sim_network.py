"""Latency models, presets and the simulated network."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from mktsim.errors import InvalidArgumentError, SimulationError, VendorDownError
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
    latency_from_dict,
)
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.world import TICK_S, Preset, World, load_preset, preset_names, to_ticks, tree_levels
from mktsim.streams import Streams

KINDS: list[Latency] = [
    Constant(3.0),
    Uniform(1.0, 4.0),
    Exponential(2.5),
    LogNormal(8.0, 30.0),
    Gamma(2.5, 7.0),
    Pareto(1.0, 3.5),
    Shifted(40.0, Exponential(5.0)),
    Mixture((0.9, 0.1), (Exponential(2.0), Shifted(50.0, Exponential(5.0)))),
    Empirical((4.0, 1.0, 2.0, 2.0)),
]


@pytest.mark.parametrize("latency", KINDS, ids=lambda latency: latency.kind)
def test_samples_follow_the_stated_law(latency: Latency) -> None:
    """Mean and CDF of a sample of 200,000 keyed uniforms are those the object states."""
    sample = latency.sample(Streams(1).uniform("law", 0, 200_000))
    assert sample.mean() == pytest.approx(latency.mean_ms, rel=0.02)
    for t in np.quantile(sample, (0.05, 0.5, 0.9, 0.99)):
        assert (sample <= t).mean() == pytest.approx(float(latency.cdf(t)), abs=0.004)
    if not isinstance(latency, Constant | Empirical):
        for p in (0.01, 0.5, 0.99):
            assert float(latency.cdf(latency.quantile(p))) == pytest.approx(p, abs=1e-9)
        survival = integrate.quad(lambda t: 1 - float(latency.cdf(t)), 0, np.inf, limit=500)[0]
        assert survival == pytest.approx(latency.mean_ms, rel=1e-3)


@pytest.mark.parametrize("latency", KINDS, ids=lambda latency: latency.kind)
def test_latencies_round_trip_through_plain_data_and_stay_finite(latency: Latency) -> None:
    """to_dict and latency_from_dict are inverse; the extreme uniforms give finite durations."""
    assert latency_from_dict(latency.to_dict()) == latency
    extreme = latency.sample(np.array([2.0**-53, 1 - 2.0**-53]))
    assert np.isfinite(extreme).all()
    assert (extreme >= 0).all()


def test_lognormal_is_given_by_median_and_p99_or_by_mean_and_sigma() -> None:
    """Both forms name the same law."""
    latency = LogNormal(10.0, 40.0)
    assert latency.quantile(0.5) == pytest.approx(10)
    assert latency.quantile(0.99) == pytest.approx(40)
    other = latency_from_dict({"kind": "lognormal", "mean_ms": latency.mean_ms, "sigma": latency.sigma})
    assert other.quantile(0.99) == pytest.approx(40)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1),
        lambda: Constant(math.nan),
        lambda: Constant(True),
        lambda: Exponential(0),
        lambda: Exponential("5"),  # type: ignore[arg-type]
        lambda: Uniform(2, 1),
        lambda: LogNormal(5, 5),
        lambda: LogNormal.from_mean_sigma(math.nan, 1),
        lambda: Gamma(math.inf, 1),
        lambda: Pareto(0, 1),
        lambda: Shifted(1, 5),  # type: ignore[arg-type]
        lambda: Mixture((), ()),
        lambda: Mixture((1, -1), (Constant(1), Constant(2))),
        lambda: Empirical(()),
        lambda: Empirical((1.0, math.inf)),
        lambda: latency_from_dict({"kind": "'; DROP TABLE"}),
        lambda: latency_from_dict({"kind": "constant", "ms": 1, "s": 2}),
        lambda: latency_from_dict(5),  # type: ignore[arg-type]
        lambda: Constant(1).quantile(1.0),
        lambda: World(window=0),
        lambda: World(workers=2.5),  # type: ignore[arg-type]
        lambda: World(fan_in_ms=math.nan),
        lambda: World(service=3),  # type: ignore[arg-type]
        lambda: load_preset("../../etc/passwd"),
        lambda: load_preset("x" * 1_000_000),
    ],
)
def test_bad_values_are_named_errors(make: Any) -> None:
    """NaN, negative, of another kind, unknown: refused when made, in a short message."""
    with pytest.raises(InvalidArgumentError) as caught:
        make()
    assert len(str(caught.value)) < 500


def test_every_preset_says_where_each_value_comes_from() -> None:
    """Source, date and kind for every value that differs from the world's default."""
    assert set(preset_names()) >= {"cloudflare-2026", "same-zone", "same-region", "multi-region"}
    for name in preset_names():
        preset = load_preset(name)
        assert isinstance(preset, Preset)
        default = World()
        changed = {f for f in World.__dataclass_fields__ if getattr(preset.world, f) != getattr(default, f)}
        assert changed <= preset.sources.keys()
        assert all(source.text and source.date for source in preset.sources.values())


@pytest.mark.parametrize("missing", ["source", "date", "kind", "value"])
def test_a_preset_value_without_its_source_is_refused(tmp_path: Path, missing: str) -> None:
    """One entry that lacks what it must say, and the whole file is refused by name."""
    entry = {"value": "3", "source": '"x"', "date": '"2026"', "kind": '"assumed"'}
    del entry[missing]
    body = "\n".join(f"{key} = {value}" for key, value in entry.items())
    path = tmp_path / "mine.toml"
    path.write_text(f'date = 2026-11-22\ndescription = "d"\n[values.window]\n{body}\n')
    with pytest.raises(InvalidArgumentError, match=r"mine\.toml: window"):
        load_preset(path)


def test_ticks_add_exactly_in_any_order() -> None:
    """The sum of durations on the grid does not depend on the order of addition: what bit equality rests on."""
    ticks = to_ticks(LogNormal(50, 5000).sample(Streams(1).uniform("t", 0, 5000)))
    seconds = (ticks * TICK_S).tolist()
    total = int(ticks.sum()) * TICK_S
    assert sum(seconds) == sum(reversed(seconds)) == sum(sorted(seconds)) == total
    for bad in (math.nan, -1.0, math.inf, 1e12):
        with pytest.raises(SimulationError):
            to_ticks(np.array([1.0, bad]))


@given(st.integers(1, 10_000), st.integers(2, 50))
def test_a_tree_has_every_node_under_one_parent(leaves: int, width: int) -> None:
    """Each level is the ceiling of the one below over the width; the root has at most `width`."""
    levels = tree_levels(leaves, width)
    assert levels[0] == leaves
    assert levels[-1] <= width
    assert all(above == math.ceil(below / width) for below, above in pairwise(levels))


# --- the network ---------------------------------------------------------------------------------------------------


def on_network(world: World, body: Any, *, seed: int = 1) -> Any:
    async def main() -> Any:
        running = asyncio.get_running_loop()
        assert isinstance(running, SimLoop)
        return await body(SimNetwork(running, world, Streams(seed)), running)

    return sim_run(main())


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 5)


def test_the_worked_example_of_the_module_holds() -> None:
    """fan_out 1, link 2 and 3, service 4, fan_in 1: taken in at 11 and 12 ms, handlers run at 7 and 8."""
    world = World(link_out=Constant(2), link_back=Constant(3), service=Constant(4), fan_out_ms=1, fan_in_ms=1)

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        network.add_hosts("leaf", ["vendor/a", "vendor/b"])
        served: list[float] = []
        network.register("vendor/", lambda target, message: served.append(ms(loop.time())) or (target, message))
        answers = [network.call("me", f"vendor/{v}", 7) for v in "ab"]
        assert await answers[0] == ("vendor/a", 7)
        assert ms(loop.time()) == 11
        assert await answers[1] == ("vendor/b", 7)
        assert ms(loop.time()) == 12
        assert served == [7, 8]
        assert network.stats.round_trips == 2

    on_network(world, body)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), min_size=1, max_size=25),
)
def test_a_host_serves_as_a_simpy_resource_of_its_workers_does(workers: int, calls: list[tuple[int, int]]) -> None:
    """Service ends are those of a FIFO `simpy.Resource`, arrival for arrival."""
    environment = simpy.Environment()
    desk = simpy.Resource(environment, workers)
    expected: list[float] = []

    def customer(arrival: int, service: int):  # type: ignore[no-untyped-def]
        yield environment.timeout(arrival)
        with desk.request() as turn:
            yield turn
            yield environment.timeout(service)
            expected.append(environment.now)

    for call in calls:
        environment.process(customer(*call))
    environment.run()

    class Script(World):
        """A world whose draws are written down."""

        def hops(self, *args: Any, **kwargs: Any) -> Any:
            out, service = (np.array(column, np.int64) << 30 for column in zip(*calls, strict=True))
            return out, service, out * 0

    async def body(network: SimNetwork, loop: SimLoop) -> list[float]:
        served: list[float] = []
        addresses = [f"v/{i}" for i in range(len(calls))]
        network.add_hosts("leaf", addresses, hosts=[0] * len(calls))
        network.register("v/", lambda target, message: served.append(loop.time()))
        await asyncio.gather(*(network.call("me", address, None) for address in addresses))
        return served

    assert sorted(on_network(Script(workers=workers), body)) == sorted(expected)


def test_draws_do_not_depend_on_who_else_is_called() -> None:
    """The same vendor of the same request takes the same time alone, in reverse order and in a larger fleet."""
    world = World(link_out=LogNormal(5, 50), service=Exponential(3), link_back=Uniform(1, 2))

    def times(order: list[int], fleet: int, request: int = 3) -> dict[int, float]:
        async def body(network: SimNetwork, loop: SimLoop) -> dict[int, float]:
            network.add_hosts("leaf", [f"v/{i}" for i in range(fleet)])
            network.register("v/", lambda target, message: None)
            found: dict[int, float] = {}
            with request_number(request):
                for i in order:
                    network.call("me", f"v/{i}", None).add_done_callback(
                        lambda _, i=i: found.__setitem__(i, loop.time())
                    )
            await asyncio.sleep(1e4)
            return found

        return on_network(world, body)

    alone = times([7], 8)
    assert times(list(range(100)), 100)[7] == times(list(range(99, -1, -1)), 100)[7] == alone[7]
    assert times([7], 8, request=4)[7] != alone[7]


def test_every_hop_of_every_request_group_attempt_and_seed_is_a_draw_of_its_own() -> None:
    """No two keys share a draw; a longer fleet begins with the shorter one."""
    world = World(**dict.fromkeys(("link_out", "service", "link_back", "aggregator_service"), Exponential(5)))  # type: ignore[arg-type]
    keys = [
        (seed, group, request, attempt)
        for seed in (1, 2)
        for group in ("leaf", "aggregator/1")
        for request in (0, 1)
        for attempt in (0, 1)
    ]
    draws = [
        hop
        for seed, group, request, attempt in keys
        for hop in world.hops(Streams(seed), group, request, 20, attempt=attempt)
    ]
    assert len({hop.tobytes() for hop in draws}) == len(draws) == 48
    for short, long in zip(world.hops(Streams(1), "leaf", 0, 20), world.hops(Streams(1), "leaf", 0, 3001), strict=True):
        assert (short == long[:20]).all()


def test_a_second_call_of_one_request_draws_anew_and_repeats_by_seed() -> None:
    """A hedge or retry is another attempt: its own duration, the same in every run."""
    world = World(link_out=LogNormal(5, 50))

    async def body(network: SimNetwork, loop: SimLoop) -> list[float]:
        network.register("v", lambda target, message: None)
        found = []
        for _ in range(3):
            start = loop.time()
            await network.call("me", "v", None)
            found.append(loop.time() - start)
        return found

    first, again, other = on_network(world, body), on_network(world, body), on_network(world, body, seed=2)
    assert first == again
    assert len({*first, *other}) == 6


def test_a_window_caps_the_calls_in_flight_and_skips_what_was_given_up() -> None:
    """At most two in flight from one sender; a call cancelled while it waits is never sent; other senders are free."""
    world = World(service=Constant(10), window=2)

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        served: list[tuple[str, float]] = []
        network.register("v/", lambda target, message: served.append((target, ms(loop.time()))))
        calls = [network.call("me", f"v/{i}", None) for i in range(5)]
        other = network.call("you", "v/other", None)
        calls[2].cancel()
        await asyncio.gather(*calls, other, return_exceptions=True)
        assert served == [("v/0", 10), ("v/1", 10), ("v/other", 10), ("v/3", 20), ("v/4", 20)]

    on_network(World.replace(world, service=Constant(0), aggregator_service=Constant(10)), body)


def test_failures_travel_back_in_time_and_are_counted() -> None:
    """A handler's exception, an unknown address and a handler's cancellation reach the caller after the way back."""
    world = World(link_out=Constant(2), link_back=Constant(3))

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        def broken(target: str, message: Any) -> None:
            raise ValueError("broken")

        async def slow(target: str, message: Any) -> str:
            await asyncio.sleep(0.010)
            if message:
                raise KeyError(message)
            return "slow"

        network.register("broken", broken)
        network.register("slow", slow)
        with pytest.raises(ValueError, match="broken"):
            await network.call("me", "broken", None)
        assert ms(loop.time()) == 5
        with pytest.raises(VendorDownError, match="nobody"):
            await network.call("me", "nobody", None)
        assert ms(loop.time()) == 10
        assert await network.call("me", "slow", None) == "slow"
        assert ms(loop.time()) == 25
        with pytest.raises(KeyError, match="why"):
            await network.call("me", "slow", "why")
        assert network.stats.round_trips == 4
        assert network.stats.failures == 3
        late = network.call("me", "slow", None)
        late.cancel()
        await asyncio.sleep(1)
        assert late.cancelled()

    on_network(world, body)


def test_declaring_hosts_twice_is_refused() -> None:
    """An address has one place, or its draws would be two vendors'."""

    async def body(network: SimNetwork, loop: SimLoop) -> None:
        network.add_hosts("leaf", ["a", "b"])
        for group, addresses, hosts in (
            ("leaf", ["c"], None),
            ("other", ["b"], None),
            ("other", ["c", "c"], None),
            ("other", ["c"], [1, 2]),
        ):
            with pytest.raises(InvalidArgumentError):
                network.add_hosts(group, addresses, hosts=hosts)

    on_network(World(), body)
    with pytest.raises(InvalidArgumentError):
        SimNetwork(None, World(), Streams(1))  # type: ignore[arg-type]
