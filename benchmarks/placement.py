"""The ring against uhashring, and all our placements against the ring.

uhashring hashes otherwise than we do, so that it would place keys elsewhere. The peers named *with our hash* are given
our hash and our tokens, and then must place every key where we do; the peers *as it comes* are compared by what any
ring must satisfy: as many tokens, every key placed, and shares as even as ours. The other placements answer otherwise
by design: they are held to placing every key on a node, none above twice the mean by more than chance allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from uhashring import HashRing

from benchmarks.measure import Contender, Sizes, Subject
from mktsim.placement import (
    BoundedLoadHash,
    ConsistentHashRing,
    JumpHash,
    MaglevHash,
    MultiProbeHash,
    NodePlacement,
    RendezvousHash,
    TwoChoicesHash,
)
from mktsim.placement.base import hash_key


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield the building of the ring and the placing of many keys."""
    nodes = [f"shard-{number}" for number in range(sizes.nodes)]
    tokens = sizes.nodes * sizes.virtual_nodes
    known = _token_of_label(nodes, sizes.virtual_nodes)

    def our_hash(label: str) -> int:
        token = known.get(label)
        return hash_key(label) if token is None else token

    def build_ours() -> ConsistentHashRing:
        ring = ConsistentHashRing(nodes, virtual_nodes=sizes.virtual_nodes)
        ring.get_node("")  # The table is made when it is first needed.
        return ring

    yield Subject(
        f"ring of {sizes.nodes:,} nodes x {sizes.virtual_nodes} virtual nodes, build",
        "token",
        tokens,
        Contender("ConsistentHashRing", build_ours, lambda ring: len(ring) * ring.virtual_nodes),
        (
            Contender("uhashring as it comes", _build(nodes, sizes), lambda ring: ring.size, at_most=1.0),
            Contender("uhashring with our hash", _build(nodes, sizes, our_hash), lambda ring: ring.size),
        ),
    )

    # A prefix that depends on the seed gives other keys; a key that spells a token's label would not be hashed.
    keys = [f"{seed}/vendor/{number}" for number in range(sizes.keys)]
    ours, same, other = build_ours(), _build(nodes, sizes, our_hash)(), _build(nodes, sizes)()
    place = {node: position for position, node in enumerate(nodes)}

    def look_up(ring: Any) -> Callable[[], list[str]]:
        return lambda: [ring.get_node(key) for key in keys]

    yield Subject(
        f"assign {sizes.keys:,} keys to {sizes.nodes:,} nodes",
        "key",
        sizes.keys,
        Contender("ConsistentHashRing.assign", lambda: ours.assign(keys)),
        (
            Contender(
                "uhashring as it comes", look_up(other), lambda names: np.array([place[n] for n in names]),
                at_most=1 / 3,
            ),
            Contender("uhashring with our hash", look_up(same), lambda names: _Exact([place[n] for n in names])),
        ),
        _equal,
        f"the ring's table takes {ours.nbytes / 2**20:.2f} MiB",
    )  # fmt: skip
    yield from _large(sizes)
    yield from _others(ours, nodes, keys)


def _large(sizes: Sizes) -> Iterator[Subject]:
    """Yield the building of a ring of ten times the nodes, held against the sort that no build can do without."""
    nodes = [f"shard-{number}" for number in range(10 * sizes.nodes)]
    tokens = len(nodes) * sizes.virtual_nodes

    def build() -> ConsistentHashRing:
        ring = ConsistentHashRing(nodes, virtual_nodes=sizes.virtual_nodes)
        ring.get_node("")
        return ring

    words = np.random.default_rng(1).integers(0, 1 << 64, tokens, dtype=np.uint64)
    yield Subject(
        f"ring of {len(nodes):,} nodes x {sizes.virtual_nodes} virtual nodes, build",
        "token",
        tokens,
        Contender("ConsistentHashRing", build, lambda ring: len(ring) * ring.virtual_nodes),
        (Contender("numpy argsort of as many words", lambda: np.argsort(words), len),),
        note=f"its table takes {build().nbytes / 2**20:.1f} MiB",
    )


def _others(ring: ConsistentHashRing, nodes: list[str], keys: list[str]) -> Iterator[Subject]:
    """Yield the placing of many keys by the ring and by all other placements."""
    table = next(size for size in (65_537, 655_373, 1_000_003) if size >= 50 * len(nodes) or size == 1_000_003)
    made: dict[str, NodePlacement] = {
        "JumpHash": JumpHash(nodes),
        "RendezvousHash": RendezvousHash(nodes),
        f"MaglevHash, {table:,} entries": MaglevHash(nodes, table_size=table),
        "MultiProbeHash, 21 probes": MultiProbeHash(nodes),
    }
    for placed in made.values():
        placed.get_node("")  # Tables are made when they are first needed.
    runs: dict[str, Callable[[], Any]] = {name: partial(placed.assign, keys) for name, placed in made.items()}
    # What remembers keys is made anew for each run, else it would only look up what it placed in the last.
    runs["BoundedLoadHash, 1.25, new keys"] = lambda: BoundedLoadHash(nodes).assign(keys)
    runs["TwoChoicesHash, new keys"] = lambda: TwoChoicesHash(nodes).assign(keys)
    memory = ", ".join(f"{name.split(',')[0]} {placed.nbytes / 2**20:.2f}" for name, placed in made.items())
    yield Subject(
        f"assign {len(keys):,} keys to {len(nodes):,} nodes, all placements",
        "key",
        len(keys),
        Contender("ConsistentHashRing.assign", lambda: ring.assign(keys)),
        tuple(Contender(name, run) for name, run in runs.items()),
        lambda ours, theirs: len(ours) == len(theirs) and _spread(theirs, len(nodes)),
        f"MiB of tables: ConsistentHashRing {ring.nbytes / 2**20:.2f}, {memory}; the last two 20 bytes a key beside",
    )


def _spread(positions: np.ndarray[Any, Any], nodes: int) -> bool:
    mean = len(positions) / nodes
    return bool(np.bincount(positions, minlength=nodes).max() <= 2 * mean + 6 * mean**0.5)


class _Exact(list[int]):
    """Positions that must be ours, key by key."""


def _equal(ours: np.ndarray[Any, Any], theirs: Any) -> bool:
    if isinstance(theirs, _Exact):
        return np.array_equal(ours, theirs)
    nodes = int(max(ours.max(), theirs.max())) + 1
    uneven = [float(np.bincount(positions, minlength=nodes).std()) for positions in (ours, theirs)]
    return len(ours) == len(theirs) and 0.5 < uneven[0] / uneven[1] < 2.0


def _build(nodes: list[str], sizes: Sizes, hash_fn: Any = None) -> Callable[[], Any]:
    return lambda: HashRing(nodes, vnodes=sizes.virtual_nodes, hash_fn=hash_fn)


def _token_of_label(nodes: list[str], virtual_nodes: int) -> dict[str, int]:
    """Return our tokens under the labels that uhashring hashes for them."""
    table = ConsistentHashRing(nodes, virtual_nodes=virtual_nodes).table()
    seen = [0] * len(nodes)
    tokens = {}
    for token, owner in zip(table.tokens.tolist(), table.owners.tolist(), strict=False):
        tokens[f"{nodes[owner]}-{seen[owner]}"] = token
        seen[owner] += 1
    return tokens
