"""The real coordinator, its policy and its tree, over the simulated network: what arrays say it takes, it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.fanout.policy import Breaker, ScatterPolicy
from mktsim.sim import SimLoop, SimNetwork, World, sim_run
from mktsim.sim.conditions import Background, RequestLimit
from mktsim.sim.faults import Loss
from mktsim.sim.latency import Constant, Exponential, LogNormal
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sql.schema import Schema
from mktsim.streams import Streams
from mktsim.study import simulate
from mktsim.study.coordinated import coordinated_sojourn_times
from mktsim.study.scenario import Scenario
from tests.test_sim_engines import _tied_worlds, _worlds

_delays_s = st.one_of(st.integers(0, 12).map(lambda ms: ms / 1000), st.floats(0, 0.06))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A scenario whose policy and tree both engines cover."""
    world = draw(st.one_of(_worlds, _tied_worlds))
    vendors = draw(st.integers(1, 120))
    shape = draw(st.sampled_from(("plain", "tree", "hedged", "hedged")))
    changes: dict[str, Any] = {"vendors": vendors, "products": 1}
    # What has no say where nothing fails, but makes the coordinator take the way of its policies.
    policy: dict[str, Any] = {"retries": draw(st.integers(0, 2)), "breaker": draw(st.sampled_from((None, Breaker())))}
    if shape == "tree":
        changes["fanout"] = draw(st.integers(2, 20))
    elif shape == "hedged":
        world = world.replace(window=None)
        policy |= {"hedge_after_s": draw(_delays_s), "tied": draw(st.booleans())}
    choices = (ScatterPolicy(**policy),) if shape == "hedged" else (None, ScatterPolicy(**policy))
    return Scenario(**changes, world=world, policy=draw(st.sampled_from(choices)))


@settings(max_examples=300, deadline=None)
@given(scenarios(), st.integers(0, 1 << 40), st.integers(1, 3))
def test_the_real_coordinator_takes_the_times_of_the_arrays_bit_for_bit(
    scenario: Scenario, seed: int, requests: int
) -> None:
    """Hedged, tied, in a tree, with retries that nothing needs: the planner, scatter and merge that answer live."""
    assert scenario.uncovered() is None
    events, _ = coordinated_sojourn_times(scenario, Streams(seed), requests=range(requests), hosts=None, execute=False)
    arrays = vectorised_sojourn_times(
        scenario.world, Streams(seed), leaves=scenario.vendors, requests=range(requests), width=scenario.width,
        policy=scenario.array_policy,
    )  # fmt: skip
    assert events.tobytes() == arrays.tobytes()


def test_a_scenario_of_its_own_world_and_policy_round_trips_through_toml() -> None:
    """Faults, geography, breaker and all; and what is changed afterwards is changed."""
    world = World(
        service=LogNormal(1, 5), replicas=2, background=Background(0.3, 1.0), faults=(Loss(targets="vendor/v*"),)
    )
    policy = ScatterPolicy(retries=2, hedge_quantile=0.95, breaker=Breaker(failures=3), attempt_timeout_s=0.2)
    scenario = Scenario(vendors=7, world=world, policy=policy, window=3)
    assert scenario.world == world.replace(window=3)
    assert Scenario.from_toml(scenario.to_toml()) == scenario
    assert scenario.replace(window=None).world == world
    assert scenario.replace(vendors=8).world.faults == world.faults
    assert scenario.replace(preset="cloudflare-2026") == Scenario(
        vendors=7, preset="cloudflare-2026", policy=policy, window=3
    )
    assert scenario.replace(world=None).preset == "same-zone"
    assert Scenario(world="cloudflare-2026") == Scenario(preset="cloudflare-2026")
    assert Scenario(preset="cloudflare-2026").replace(world=World()).preset == "own"
    assert Scenario(preset="cloudflare-2026").live_policy.window == 6
    assert scenario.replace(policy=policy.replace(window=9)).live_policy.window == 9
    assert hash(scenario.policy) == hash(policy)


@pytest.mark.parametrize(
    "changes",
    [
        {"world": 5},
        {"world": "nowhere"},
        {"world": World(), "preset": "same-zone"},
        {"world": "same-zone", "preset": "same-region"},
        {"policy": {"retries": 1}},
        {"preset": "own"},
        {"preset": 7},
    ],
)
def test_scenarios_without_sense_are_named_errors(changes: dict[str, Any]) -> None:
    """Before any work."""
    with pytest.raises(InvalidArgumentError):
        Scenario(**changes)
    for text in ("policy = { retries = -1 }", "policy = { magic = 1 }", "policy = 3", "world = { workers = 0 }"):
        with pytest.raises(InvalidArgumentError):
            Scenario.from_toml(text)


@pytest.mark.parametrize(
    ("policy", "world", "reason"),
    [
        (ScatterPolicy(deadline_s=1.0), World(), "a deadline"),
        (ScatterPolicy(attempt_timeout_s=1.0), World(), "a time-out of attempts"),
        (ScatterPolicy(hedge_quantile=0.9), World(replicas=2), "an observed quantile"),
        (ScatterPolicy(window=3), World(), "window of 3"),
        (ScatterPolicy(hedge_after_s=0.001), World(), "without a second replica"),
        (None, World(faults=(Loss(targets="nobody"),)), "faults"),
        (ScatterPolicy(retries=3), World(limit=RequestLimit(queue=5)), "request limits"),
    ],
)
def test_what_arrays_cannot_compute_of_a_policy_the_coordinator_simulates(
    policy: ScatterPolicy | None, world: World, reason: str
) -> None:
    """By name where the arrays were asked for; "auto" goes to the events."""
    scenario = Scenario(vendors=10, products=1, world=world, policy=policy)
    with pytest.raises(InvalidArgumentError, match=reason):
        simulate(scenario, requests=1, seed=1, engine="vectorised")
    assert simulate(scenario, requests=2, seed=1).engine == "event"


def test_a_tree_answers_as_the_flat_scatter_does_and_at_another_time() -> None:
    """Rows merged at every node of a tree of width 3 over 40 vendors are the flat answer's."""
    flat = Scenario(vendors=40, world=World(service=Exponential(1.0), aggregator_service=Constant(2), fan_in_ms=0.1))
    tree = flat.replace(fanout=3)
    one, other = (simulate(each, requests=2, seed=4, engine="event") for each in (flat, tree))
    assert one.rows == other.rows
    assert one.rows
    assert (one.sojourn_time_ms != other.sojourn_time_ms).all()
    assert simulate(tree, requests=2, seed=4).sojourn_time_ms.tobytes() == other.sojourn_time_ms.tobytes()


def test_a_twin_that_is_withdrawn_counts_once_and_is_no_failure() -> None:
    """Of 50 tied pairs those that queue behind others' work are cancelled; no breaker opens, every row is there."""
    world = World(link_out=Exponential(1.0), background=Background(0.6, 5.0), replicas=2, cancel_ms=0.1)

    async def run() -> tuple[int, Any, list[Any]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        network = SimNetwork(loop, world, Streams(3))
        scanners = [Scanner(f"v{i}", lambda _sql, _params: [(1,)]) for i in range(50)]
        network.add_hosts("leaf", [scanner.address for scanner in scanners])
        made = QueryCoordinator(
            scanners,
            schema=Schema(("CREATE TABLE t(a)",)),
            network=network,
            replicas={scanner.id: [scanner.address] for scanner in scanners},
            policy=ScatterPolicy(hedge_after_s=0.001, tied=True, breaker=Breaker(failures=1)),
        )
        result = await made.query("SELECT a FROM t")
        await network.idle()
        made.close()
        return network.incidents["cancelled"], made._node.circuits.open, result.rows

    cancelled, opened, rows = sim_run(run())
    assert cancelled > 10
    assert not opened
    assert rows == [(1,)] * 50


def test_durations_of_some_hosts_are_those_of_all() -> None:
    """A slice, a few far apart, many: what is drawn for a host does not depend on whom else is drawn for."""
    world = World(
        link_out=LogNormal(1, 50), link_back=Exponential(2.0), service=LogNormal(3, 4),
        background=Background(0.5, 1.0), pace=LogNormal(1, 2),
    )  # fmt: skip
    streams, n = Streams(6), 70_001
    whole = world.hops(streams, "leaf", 2, n, attempt=1)
    chance = np.random.default_rng(1)
    for only in (
        slice(3, 40_002),
        np.array([], int),
        np.array([n - 1]),
        np.array([0, 16_383, 16_384, 16_385, n - 1]),
        np.sort(chance.choice(n, 1000, replace=False)),
        np.sort(chance.choice(n, 30_000, replace=False)),
    ):
        for some, every in zip(world.hops(streams, "leaf", 2, n, attempt=1, only=only), whole, strict=True):
            assert some.tobytes() == every[only].tobytes()
