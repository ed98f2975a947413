"""The ring against uhashring.

uhashring hashes otherwise than we do, so that it would place keys elsewhere. The peers named *with our hash* are given
our hash and our tokens, and then must place every key where we do; the peers *as it comes* are compared by what any
ring must satisfy: as many tokens, every key placed, and shares as even as ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from uhashring import HashRing

from benchmarks.measure import Contender, Sizes, Subject
from mktsim.placement import ConsistentHashRing
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
            Contender("uhashring as it comes", _build(nodes, sizes), lambda ring: ring.size),
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
            Contender("uhashring as it comes", look_up(other), lambda names: np.array([place[n] for n in names])),
            Contender("uhashring with our hash", look_up(same), lambda names: _Exact([place[n] for n in names])),
        ),
        _equal,
    )


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
