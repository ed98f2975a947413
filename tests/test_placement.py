"""Consistent hashing: where a key lands, what moves, how even the shares are."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import DuplicateError, EmptyFleetError, InvalidArgumentError, UnknownNodeError
from mktsim.placement import ConsistentHashRing, Placement, hash_key, hash_keys, moved
from mktsim.placement import ring as ring_module
from mktsim.placement.nodes import NodePlacement
from mktsim.placement.remembering import RememberingPlacement

KEYS = [f"vendor-{number:07d}" for number in range(20_000)]
ODD_KEYS = ["", "\0", "é", "店", "\ud800", "'; DROP TABLE", "x" * 1_000_000, "a\nb", "🛒"]
NAMES = st.text(min_size=1, max_size=6)


def shards(n: int) -> list[str]:
    """Return the ids of n shards."""
    return [f"shard-{number}" for number in range(n)]


def test_hashes_equal_the_golden_vectors() -> None:
    """A key hashes to the same 64 bits in every later version: stored placements depend on it."""
    expected = [13466845281110880840, 17862311464836218381, 7863068522205576217]
    assert [hash_key(key) for key in ("acme", "", "é\0")] == expected
    assert hash_keys(["acme", "", "é\0"]).tolist() == expected


def test_the_ring_equals_the_golden_vectors() -> None:
    """Ids and virtual nodes alone decide where a key lands, in every later version."""
    ring = ConsistentHashRing(["shard-0", "shard-1", "shard-2"])
    assert ring.table().tokens[:3].tolist() == [6305670111342987, 46268848319373778, 54363733273812341]
    assert ring.assign(KEYS[:20]).tolist() == [1, 0, 0, 1, 0, 2, 2, 2, 0, 0, 2, 0, 2, 0, 0, 2, 2, 0, 0, 1]
    assert ring.get_nodes("acme", 3) == ("shard-2", "shard-0", "shard-1")


def test_another_process_with_another_hash_seed_places_the_same() -> None:
    """Python's own hash has no part in it."""
    code = (
        "from mktsim.placement import ConsistentHashRing as R;"
        "print(R([f'shard-{i}' for i in range(9)]).assign([f'vendor-{i:07d}' for i in range(50)]).tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{ConsistentHashRing(shards(9)).assign(KEYS[:50]).tolist()}\n"}


@settings(max_examples=50)
@given(
    st.dictionaries(NAMES, st.sampled_from([0, 0.3, 1, 2]), min_size=1, max_size=8),
    st.integers(1, 20),
    st.lists(st.text(), max_size=20),
)
def test_every_look_up_equals_a_walk_over_all_tokens(weights: dict[str, float], virtual: int, keys: list[str]) -> None:
    """assign, get_node and get_nodes agree with the definition, carried out token by token."""
    ring = ConsistentHashRing(weights, virtual_nodes=virtual)
    pairs = []
    for node, weight in weights.items():
        count = max(1, round(weight * virtual)) if weight else 0
        pairs += [(int(t), node) for t in ring_module._tokens([node], np.array([count]))]
    if not pairs:
        with pytest.raises(EmptyFleetError):
            ring.get_node("x")
        return
    able = len({node for _, node in pairs})
    for key, position in zip(keys, ring.assign(keys), strict=True):
        place = hash_key(key)
        clockwise = dict.fromkeys(node for _, node in sorted(pairs, key=lambda pair: ((pair[0] - place) % 2**64, pair)))
        assert ring.nodes[position] == ring.get_node(key) == next(iter(clockwise))
        for n in (0, 1, able):
            assert ring.get_nodes(key, n) == tuple(clockwise)[:n]


def test_odd_keys_are_placed_like_any_other() -> None:
    """Non-ASCII, NUL, lone surrogates, the empty string and a million characters are keys."""
    ring = ConsistentHashRing(shards(10))
    assert ring.assign(ODD_KEYS).tolist() == [ring.nodes.index(ring.get_node(key)) for key in ODD_KEYS]
    assert len(set(hash_keys(ODD_KEYS).tolist())) == len(ODD_KEYS)


def test_keys_may_come_as_any_iterable() -> None:
    """Lists, tuples, generators, ndarrays of both kinds, Series and Index place alike, across chunk borders."""
    ring = ConsistentHashRing(shards(7))
    keys = [f"v{number}" for number in range(70_000)]
    expected = ring.assign(keys)
    assert expected.dtype == np.intp
    for same in (
        tuple(keys),
        (key for key in keys),
        np.array(keys),
        np.array(keys, dtype=object),
        pd.Series(keys),
        pd.Index(keys),
    ):
        assert (ring.assign(same) == expected).all()
    assert ring.assign([]).tolist() == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("acme", "not one"),
        (b"acme", "not one"),
        (["a", None], "None .at position 1"),
        (["a", "b", float("nan")], "nan .at position 2"),
        (["\ud800", b"b"], "b'b' .at position 1"),
        ([1], "must be a string"),
        ([10**6000], "2..256"),
        (7, "iterable of strings"),
        (np.array("a"), "one dimension"),
        (np.array([["a"]]), "one dimension"),
        (pd.DataFrame({"a": ["b"]}), "one dimension"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value,
)
def test_what_is_no_key_is_refused_by_name(keys: object, message: str) -> None:
    """The message names the value and where it stands."""
    with pytest.raises(InvalidArgumentError, match=message):
        ConsistentHashRing(["a"]).assign(keys)  # type: ignore[arg-type]


# Lamping & Veach 2014, the table for rings: points a node, standard error, 99 % interval of a node's load.
JUMP_PAPER = [(10, 0.3152, 0.37, 1.98), (100, 0.0997, 0.76, 1.28), (1000, 0.0316, 0.92, 1.09)]


@pytest.mark.parametrize(("points", "published", "low", "high"), JUMP_PAPER)
def test_shares_follow_the_published_table_and_the_exact_law(
    points: int, published: float, low: float, high: float
) -> None:
    """4 rings of 1,000 nodes: the shares spread as the paper and Beta(v, (n-1)v) say, within 4 errors."""
    n, rings = 1000, 4
    loads = np.concatenate(
        [ConsistentHashRing([f"{r}/{i}" for i in range(n)], virtual_nodes=points).shares() * n for r in range(rings)]
    )
    exact = np.sqrt((n - 1) / (n * points + 1))
    spread = loads.std()
    # The standard error of a standard deviation, with the gamma-like kurtosis 3 + 6 / points.
    error = exact * np.sqrt((2 + 6 / points) / (4 * n * rings))
    assert abs(spread - exact) < 4 * error
    assert abs(spread - published) < 4 * error
    inside = np.mean((loads > low) & (loads < high))
    assert abs(inside - 0.99) < 0.006


def test_keys_spread_as_the_shares_say() -> None:
    """The count of keys on each node fits its exact share: chi-square within 4.5 sigma."""
    ring = ConsistentHashRing(shards(50))
    counts = np.bincount(ring.assign(KEYS), minlength=50)
    expected = ring.shares() * len(KEYS)
    assert ring.shares().sum() == pytest.approx(1, abs=1e-12)
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 49) < 4.5 * np.sqrt(2 * 49)


@pytest.mark.parametrize("n", [1, 10, 100])
def test_a_new_node_takes_its_share_and_nothing_else_moves(n: int) -> None:
    """n -> n + 1 moves 1/(n+1) within binomial and ring error, all of it to the new node."""
    before = ConsistentHashRing(shards(n))
    after = before.copy()
    after.add_node("new")
    mask = moved(before, after, KEYS)
    assert mask.tolist() == [before.get_node(key) != after.get_node(key) for key in KEYS]
    assert set(after.assign(np.array(KEYS)[mask]).tolist()) == {n}
    share = after.shares()[n]
    assert abs(mask.mean() - share) < 4.5 * np.sqrt(share * (1 - share) / len(KEYS))
    spread = np.sqrt(n / ((n + 1) * 150 + 1)) / (n + 1)
    assert abs(share - 1 / (n + 1)) < 4.5 * spread


def test_removing_a_node_moves_only_its_keys_each_to_its_first_replica() -> None:
    """Removal is the reverse of adding, and get_nodes tells beforehand where each key goes."""
    before = ConsistentHashRing(shards(12))
    after = before.copy()
    after.remove_node("shard-5")
    mask = ConsistentHashRing.moved(before, after, KEYS)
    assert mask.any()
    assert (mask == (before.assign(KEYS) == 5)).all()
    for key in np.array(KEYS)[mask][:300].tolist():
        assert (before.get_nodes(key, 2)) == ("shard-5", after.get_node(key))


def test_moved_compares_ids_and_not_positions() -> None:
    """The same nodes in another order move nothing; other nodes move everything."""
    ring = ConsistentHashRing(shards(5))
    assert not moved(ring, ConsistentHashRing(shards(5)[::-1]), KEYS).any()
    assert moved(ring, ConsistentHashRing(["other"]), iter(KEYS[:9])).all()


def test_weights_give_proportional_shares() -> None:
    """A node of weight w has w times the mean share, within 4.5 sigma of the Beta law; weight 0 has none."""
    weights = {"a": 1, "b": 2, "c": 0.5, "none": 0, "d": 4}
    ring = ConsistentHashRing(weights, virtual_nodes=2000)
    total = sum(weights.values())
    for share, weight in zip(ring.shares(), weights.values(), strict=True):
        mean = weight / total
        assert abs(share - mean) <= 4.5 * np.sqrt(mean * (1 - mean) / (total * 2000 + 1))
    assert "none" in ring
    assert 3 not in ring.assign(KEYS)
    assert ConsistentHashRing({"a": 1e-9, "b": 1}).shares()[0] > 0


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False), st.integers(1, 8))
def test_shared_tokens_belong_to_the_first_id_whatever_the_order(names: list[str], random: object, bits: int) -> None:
    """With tokens cut to a few bits nearly all collide; the order of changes still does not matter."""
    whole = ring_module._tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ring_module,
            "_tokens",
            lambda ids, counts: whole(ids, counts) >> np.uint64(64 - bits) << np.uint64(64 - bits),
        )
        keys = KEYS[:50]
        ring = ConsistentHashRing(names, virtual_nodes=10)
        owners = [ring.get_node(key) for key in keys]
        shuffled = names.copy()
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        other = ConsistentHashRing(["\U0010ffff leaves", *shuffled], virtual_nodes=10)
        other.get_node("x")
        other.remove_node("\U0010ffff leaves")
        assert [other.get_node(key) for key in keys] == owners
        assert ring.shares().sum() == pytest.approx(1)
        assert [ring.nodes[i] for i in ring.assign(keys)] == owners


def test_one_node_holds_everything_and_an_empty_ring_says_so() -> None:
    """The last node may go; then every look-up is a named error, except that of no keys."""
    ring = ConsistentHashRing(["only"], virtual_nodes=1)
    assert ring.shares().tolist() == [1.0]
    assert set(ring.assign(KEYS).tolist()) == {0}
    ring.remove_node("only")
    assert (len(ring), ring.nodes, "only" in ring) == (0, (), False)
    for ask in (lambda: ring.get_node("a"), lambda: ring.get_nodes("a", 0), lambda: ring.assign(["a"]), ring.shares):
        with pytest.raises(EmptyFleetError, match="no nodes"):
            ask()
    assert ring.assign([]).tolist() == []
    ring.add_node("idle", 0)
    with pytest.raises(EmptyFleetError, match="weight 0"):
        ring.get_node("a")
    ring.add_node("back")
    assert ring.get_node("a") == "back"


def test_unknown_and_taken_ids_are_named_errors() -> None:
    """Removing what is not there and adding what is there change nothing."""
    ring = ConsistentHashRing(["a", "b"])
    for unknown in ("c", None, ["a"], "x" * 1_000_000):
        with pytest.raises(UnknownNodeError, match="no node") as caught:
            ring.remove_node(unknown)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 500
    with pytest.raises(DuplicateError, match="'a'"):
        ring.add_node("a", 2)
    with pytest.raises(DuplicateError):
        ConsistentHashRing(["a", "a"])
    assert ring.weights == {"a": 1, "b": 1}


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "1", None, 1e9, pytest.param(10**6000, id="huge")])
def test_bad_weights_are_refused_by_name(weight: object) -> None:
    """A weight is a finite number from 0 on, and the tokens it asks for are bounded."""
    ring = ConsistentHashRing()
    with pytest.raises(InvalidArgumentError, match="weight of node 'a'"):
        ring.add_node("a", weight)  # type: ignore[arg-type]
    assert len(ring) == 0


@pytest.mark.parametrize("nodes", [3, None, 2.5, object()])
@pytest.mark.parametrize("kind", NodePlacement.__subclasses__() + RememberingPlacement.__subclasses__())
def test_nodes_are_many_ids_whatever_the_placement(kind: type[NodePlacement], nodes: Any) -> None:
    """Neither a number nor nothing is a list of them."""
    if not inspect.isabstract(kind):
        with pytest.raises(InvalidArgumentError, match="nodes must be ids"):
            kind(nodes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConsistentHashRing("shard"),
        lambda: ConsistentHashRing([""]),
        lambda: ConsistentHashRing([7]),  # type: ignore[list-item]
        lambda: ConsistentHashRing(virtual_nodes=0),
        lambda: ConsistentHashRing(virtual_nodes=1.5),  # type: ignore[arg-type]
        lambda: ConsistentHashRing(virtual_nodes=10**6000),
        lambda: ConsistentHashRing(["a"]).get_nodes("k", 2),
        lambda: ConsistentHashRing(["a"]).get_nodes("k", -1),
        lambda: ConsistentHashRing(["a"]).get_nodes("k", 1.0),  # type: ignore[arg-type]
        lambda: ConsistentHashRing(["a"]).get_node(None),  # type: ignore[arg-type]
        lambda: ConsistentHashRing.from_dict({}),
        lambda: ConsistentHashRing.from_dict({"placement": "jump", "virtual_nodes": 1, "nodes": []}),
        lambda: ConsistentHashRing.from_dict({"placement": "ring", "virtual_nodes": 1, "nodes": [["a"]]}),
        lambda: ConsistentHashRing.from_dict([]),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused_by_name(make: object) -> None:
    """Each is an InvalidArgumentError, never an error of numpy's or Python's own."""
    with pytest.raises(InvalidArgumentError):
        make()  # type: ignore[operator]


def test_a_ring_survives_json_pickle_and_copies() -> None:
    """All of it is in its dict; a copy then lives its own life."""
    ring = ConsistentHashRing({"a": 1, "é": 2.5, "b": 0}, virtual_nodes=40)
    for same in (
        ConsistentHashRing.from_dict(json.loads(json.dumps(ring.to_dict()))),
        pickle.loads(pickle.dumps(ring)),
        copy.deepcopy(ring),
        ring.copy(),
    ):
        assert same.to_dict() == ring.to_dict()
        assert (same.assign(KEYS[:100]) == ring.assign(KEYS[:100])).all()
        same.remove_node("a")
    assert "a" in ring


def test_a_ring_shows_itself_as_a_table() -> None:
    """The table escapes ids, stays short, and works for an empty ring."""
    ring = ConsistentHashRing(["<script>", *shards(100)])
    html = ring._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "and 81 more" in html
    assert len(html) < 5000
    assert "0 nodes" in ConsistentHashRing()._repr_html_()
    assert repr(ring) == "<ConsistentHashRing of 101 nodes x 150 virtual nodes>"


def test_the_ring_is_a_placement() -> None:
    """The protocol names what other rooms may call."""
    assert isinstance(ConsistentHashRing(), Placement)
