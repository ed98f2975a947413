"""Placements that look at load, and weights that follow from it."""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import EmptyFleetError, InvalidArgumentError
from mktsim.placement import (
    BoundedLoadHash,
    ConsistentHashRing,
    JumpHash,
    RendezvousHash,
    TwoChoicesHash,
    hash_key,
    hash_keys,
    moved,
    shard_report,
    weights_from_load,
)
from mktsim.placement.base import GOLDEN, mix_one

KEYS = [f"vendor-{number:07d}" for number in range(20_000)]
NAMES = st.text(min_size=1, max_size=6)
LOADS = st.lists(st.tuples(st.text(max_size=8), st.integers(0, 50)), max_size=60, unique_by=lambda pair: pair[0])
both = pytest.mark.parametrize("kind", [BoundedLoadHash, TwoChoicesHash], ids=lambda kind: kind.kind)


def shards(n: int) -> list[str]:
    """Return the ids of n shards."""
    return [f"shard-{number}" for number in range(n)]


def in_order(keys: dict[str, int]) -> list[str]:
    """The heaviest first, those of one load by a second hash."""
    return sorted(keys, key=lambda key: (-keys[key], mix_one(hash_key(key))))


# -- bounded loads ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, st.sampled_from([0, 0.5, 1, 1, 3]), min_size=1, max_size=7).filter(
        lambda w: any(w.values())
    ),
    LOADS,
    st.sampled_from([0.01, 0.1, 0.25, 2.0]),
    st.integers(1, 12),
)
def test_bounded_loads_are_a_walk_to_the_first_node_with_room(
    weights: dict[str, float], pairs: list[tuple[str, int]], epsilon: float, virtual: int
) -> None:
    """The definition, key by key without any skipping; and no node ends above its bound."""
    keys = dict(pairs)
    placed = BoundedLoadHash(weights, epsilon=epsilon, virtual_nodes=virtual)
    owners = dict(zip(keys, placed.assign(list(keys), list(keys.values())).tolist(), strict=True))
    table = ConsistentHashRing(weights, virtual_nodes=virtual).table()
    whole = sum(map(Fraction, weights.values()))
    room = (1 + Fraction(str(epsilon))) * max(1, sum(keys.values()))
    capacity = [math.ceil(room * Fraction(weight) / whole) for weight in weights.values()]
    used = [0] * len(weights)
    for key in in_order(keys):
        at = bisect_left(table.search, hash_key(key))
        while used[owner := int(table.owners[at % len(table.tokens)])] >= capacity[owner]:
            at += 1
        used[owner] += keys[key]
        assert owners[key] == owner
    assert placed.loads().tolist() == used
    heaviest = max(keys.values(), default=1)
    assert all(load <= most + max(0, heaviest - 1) for load, most in zip(used, capacity, strict=True))
    assert placed.capacities().tolist() == capacity


@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.1, 0.25, 1])
@pytest.mark.parametrize("n", [2, 7, 50])
def test_no_node_is_above_its_bound_and_the_bound_is_reached(epsilon: float, n: int) -> None:
    """ceil((1 + eps) m / n) in exact arithmetic; for a small eps the fullest node sits on it."""
    placed = BoundedLoadHash(shards(n), epsilon=epsilon)
    placed.assign(KEYS)
    bound = math.ceil((1 + Fraction(str(epsilon))) * len(KEYS) / n)
    assert placed.loads().sum() == len(KEYS)
    assert placed.loads().max() <= bound
    if epsilon < 0.1 and n == 50:
        assert placed.loads().max() == bound


def test_the_bound_holds_while_keys_come_one_by_one_and_nodes_change() -> None:
    """After every key, and after a node came or went."""
    placed = BoundedLoadHash(shards(5), epsilon=0.1)
    for number, key in enumerate(KEYS[:300], 1):
        placed.get_node(key)
        if number == 100:
            placed.add_node("shard-5", 2)
        if number == 200:
            placed.remove_node("shard-0")
        bound = [math.ceil(Fraction("1.1") * number * w / Fraction(sum(placed.weights.values()))) for w in
                 placed.weights.values()]  # fmt: skip
        assert (placed.loads() <= bound).all()
        assert placed.loads().sum() == placed.keys_placed == number


@both
def test_keys_stay_where_they_were_put_whatever_comes_later(kind: type[BoundedLoadHash]) -> None:
    """A placed key has one node until the nodes change; the order of keys that come together has no effect."""
    placed = kind(shards(6))
    first = placed.assign(KEYS[:3_000])
    placed.assign(KEYS[3_000:9_000])
    assert placed.assign(KEYS[:3_000]).tolist() == first.tolist()
    assert [placed.nodes.index(placed.get_node(key)) for key in KEYS[:200]] == first[:200].tolist()
    backwards = kind(shards(6))
    assert backwards.assign(KEYS[:3_000][::-1])[::-1].tolist() == first.tolist()
    assert kind(shards(6)).assign(KEYS[:50] * 3).tolist() == kind(shards(6)).assign(KEYS[:50]).tolist() * 3


@both
def test_forgotten_keys_count_no_longer(kind: type[BoundedLoadHash]) -> None:
    """Vendors that left make room."""
    placed = kind(shards(4))
    placed.assign(KEYS[:1_000], np.full(1_000, 3))
    assert placed.forget([*KEYS[:400], "never seen"]) == 400
    assert placed.loads().sum() == 3 * 600
    assert placed.keys_placed == 600
    assert placed.forget([]) == 0


def test_when_nodes_change_bounded_loads_depend_on_nodes_and_keys_alone() -> None:
    """However the nodes came about, the same keys over the same nodes lie the same, as one set."""
    straight = BoundedLoadHash(shards(8), epsilon=0.05)
    expected = straight.assign(KEYS)
    detour = BoundedLoadHash([*shards(7), "gone"], epsilon=0.05)
    detour.assign(KEYS[:5_000])
    detour.assign(KEYS[5_000:])
    detour.add_node("shard-7")
    detour.remove_node("gone")
    assert [detour.nodes[i] for i in detour.assign(KEYS)] == [straight.nodes[i] for i in expected]


def test_bounded_loads_move_more_than_the_ideal_and_not_much_more() -> None:
    """8 to 9 nodes: over ten fleets 1 to 5 times 1/9 for a bound of 5 %, while the unbounded ring moves 1/9."""
    shares = []
    for fleet in range(10):
        before = BoundedLoadHash([f"{fleet}/{i}" for i in range(8)], epsilon=0.05)
        before.assign(KEYS)
        after = before.copy()
        after.add_node("new")
        shares.append(moved(before, after, KEYS).mean() * 9)
    assert 1 < np.mean(shares) < 5


# -- two choices --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, st.sampled_from([0, 0.5, 1, 3]), min_size=1, max_size=7).filter(lambda w: any(w.values())),
    LOADS,
)
def test_two_choices_take_the_less_loaded_of_two_nodes(weights: dict[str, float], pairs: list[tuple[str, int]]) -> None:
    """The definition, key by key; at a tie the first."""
    keys = dict(pairs)
    placed, ring = TwoChoicesHash(weights), ConsistentHashRing(weights)
    owners = dict(zip(keys, placed.assign(list(keys), list(keys.values())).tolist(), strict=True))
    used, weight, table = [0] * len(weights), list(weights.values()), ring.table()
    for key in in_order(keys):
        places = (hash_key(key), mix_one((hash_key(key) + GOLDEN) % 2**64))
        a, b = (int(table.owners[bisect_left(table.search, place)]) for place in places)
        owner = a if used[a] / weight[a] <= used[b] / weight[b] else b
        used[owner] += keys[key]
        assert owners[key] == owner


def test_two_choices_leave_the_fullest_node_a_few_keys_above_the_mean() -> None:
    """Against one choice, which leaves it hundreds above: 20,000 keys over 100 nodes, the mean being 200."""
    two, one = TwoChoicesHash(shards(100)), JumpHash(shards(100))
    assert np.bincount(two.assign(KEYS)).max() <= 204
    assert np.bincount(one.assign(KEYS)).max() > 225


def test_a_removed_node_gives_up_its_keys_and_nobody_else_does() -> None:
    """Two choices: what stays is where it was."""
    placed = TwoChoicesHash(shards(9))
    before = placed.assign(KEYS)
    placed.remove_node("shard-8")
    after = placed.assign(KEYS)
    stays = before != 8
    # One whose second candidate was the removed node keeps its place too.
    assert (after[stays] == before[stays]).all()


# -- arguments ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "loads", [[1], [1, -1], [1.5, 2], ["a", "b"], [[1, 2]], [1, 2**41], [True, False]], ids=lambda loads: str(loads)
)
def test_loads_are_whole_numbers_one_a_key(kind: type[BoundedLoadHash], loads: list[object]) -> None:
    """Refused before any key is placed."""
    placed = kind(["a", "b"])
    with pytest.raises(InvalidArgumentError, match="loads"):
        placed.assign(["x", "y"], loads)  # type: ignore[arg-type]
    assert placed.keys_placed == 0


@both
@pytest.mark.parametrize(
    "state",
    [
        {"hashes": "AAAA", "owners": "", "loads": ""},
        {"hashes": "!", "owners": "", "loads": ""},
        {"hashes": "AAAAAAAAAAA=", "owners": "BQAAAA==", "loads": "AQAAAAAAAAA="},
        {"hashes": "AAAAAAAAAAA=", "owners": "AAAAAA==", "loads": ""},
        {"owners": ""},
        7,
    ],
)
def test_a_damaged_state_is_refused(kind: type[BoundedLoadHash], state: object) -> None:
    """Neither half-read nor read past the nodes that there are."""
    with pytest.raises(InvalidArgumentError):
        kind.from_dict(kind(["a", "b"]).to_dict() | {"state": state})


@both
def test_keys_outlive_the_last_node(kind: type[BoundedLoadHash]) -> None:
    """They wait, through a copy too, and are placed when a node comes."""
    placed = kind(["only"])
    placed.assign(KEYS[:10])
    placed.remove_node("only")
    copied = placed.copy()
    for each in (placed, copied):
        with pytest.raises(EmptyFleetError):
            each.get_node(KEYS[0])
        each.add_node("next")
        assert each.get_node(KEYS[0]) == "next"
        assert each.loads().tolist() == [10]


# -- hot vendors --------------------------------------------------------------------------------------------------


def hot_market() -> tuple[list[str], np.ndarray]:
    """5,000 vendors, one of them with a hundred times the median load, one with fifty."""
    loads = np.full(5_000, 2.0)
    loads[[17, 400]] = 200.0, 100.0
    return KEYS[:5_000], loads


@pytest.mark.parametrize("make", [ConsistentHashRing, RendezvousHash], ids=lambda make: make.kind)
def test_weights_from_load_bring_the_fullest_shard_near_the_mean(make: type[ConsistentHashRing]) -> None:
    """The shard with the hot vendor gets fewer others: never fuller than before, and within 8 % of the mean here."""
    keys, loads = hot_market()
    before = make(shards(20))
    weights = weights_from_load(before, keys, loads)
    after = make(weights)
    full = [float(shard_report(each, keys, loads)["load"].max()) / (loads.sum() / 20) for each in (before, after)]
    assert full[1] < 1.08 < full[0]
    assert sum(weights.values()) == pytest.approx(20)
    assert before.weights == dict.fromkeys(shards(20), 1)
    assert weights_from_load(before, keys, loads, rounds=0) == before.weights
    fullest = [
        shard_report(make(weights_from_load(before, keys, loads, rounds=rounds)), keys, loads)["load"].max()
        for rounds in range(12)
    ]
    assert fullest == sorted(fullest, reverse=True)


def test_a_vendor_hotter_than_a_shard_is_left_alone_by_bounded_loads_and_relieved_by_weights() -> None:
    """One vendor with twice a shard's part: weights take others off its shard, loads handed in take all of them."""
    keys, loads = hot_market()
    loads[17] = 1_144
    ring = RendezvousHash(shards(20))
    full = [
        shard_report(each, keys, loads).iloc[0] for each in (ring, RendezvousHash(weights_from_load(ring, keys, loads)))
    ]
    assert full[0]["hottest"] == full[1]["hottest"] == keys[17]
    assert loads[17] < full[1]["load"] < 0.85 * full[0]["load"]
    bounded = BoundedLoadHash(shards(20), epsilon=0.1)
    bounded.assign(keys, loads.astype(int))
    alone = shard_report(bounded, keys, loads).iloc[0]
    assert (alone["hottest"], alone["vendors"], alone["load"]) == (keys[17], 1, 1_144)


def test_the_report_of_the_fullest_shard_adds_up() -> None:
    """Vendors, load and hottest vendor of each node, the fullest first; nodes of weight 0 and empty ones too."""
    keys, loads = hot_market()
    ring = ConsistentHashRing({"a": 1, "b": 2, "none": 0})
    report = shard_report(ring, keys, loads)
    assert report["load"].is_monotonic_decreasing
    assert report["load"].sum() == loads.sum()
    assert report["vendors"].sum() == 5_000
    assert report["share"].sum() == pytest.approx(1)
    owner = ring.get_node(keys[17])
    row = report.set_index("node").loc[owner]
    assert (row["hottest"], row["hottest_load"]) == (keys[17], 200.0)
    idle = report.set_index("node").loc["none"]
    assert (idle["vendors"], idle["load"], idle["hottest"], idle["hottest_load"]) == (0, 0, "", 0)
    assert np.isnan(idle["over_fair"])
    assert report.set_index("node").loc["a", "over_fair"] == pytest.approx(
        report.set_index("node").loc["a", "load"] / (loads.sum() / 3)
    )
    assert isinstance(report, pd.DataFrame)


def test_bounded_loads_take_loads_themselves() -> None:
    """With loads and weights no node carries more than its part of 1 + eps and one vendor."""
    keys, loads = hot_market()
    placed = BoundedLoadHash({"a": 1, "b": 2, "c": 1, "d": 4}, epsilon=0.1)
    placed.assign(keys, loads.astype(int))
    assert (placed.loads() <= placed.capacities() + int(loads.max()) - 1).all()
    over = shard_report(placed, keys, loads)["over_fair"]
    assert over.max() < 1.1 + 200 / (loads.sum() / 8)


@pytest.mark.parametrize(
    ("keys", "loads", "error"),
    [
        ([], [], EmptyFleetError),
        ("abc", [1, 2, 3], InvalidArgumentError),
        (["a"], [1, 2], InvalidArgumentError),
        (["a"], [float("nan")], InvalidArgumentError),
        (["a"], [-1.0], InvalidArgumentError),
        (["a"], ["x"], InvalidArgumentError),
        ([None], [1], InvalidArgumentError),
    ],
)
def test_bad_loads_are_refused_by_name(keys: object, loads: object, error: type[Exception]) -> None:
    """By the report and by the weights alike."""
    ring = ConsistentHashRing(["a"])
    for ask in (shard_report, weights_from_load):
        with pytest.raises(error):
            ask(ring, keys, loads)  # type: ignore[operator]
    with pytest.raises(InvalidArgumentError, match="remembers nothing"):
        weights_from_load(TwoChoicesHash(["a"]), ["a"], [1])
    with pytest.raises(InvalidArgumentError, match="rounds"):
        weights_from_load(ring, ["a"], [1], rounds=-1)
    assert hash_keys(["a"]).shape == (1,)
