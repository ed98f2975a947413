"""Which shard a vendor belongs to: a ring of nodes, of which each may be sliced.

Rules
-----
Where a vendor belongs depends on its id and the map alone. Changing the nodes moves what the ring says and no more;
splitting a shard moves half of its vendors to the new one and no other vendor; merging moves the vendors of one shard
to another and no other vendor.

Theory of operation
-------------------
The ring gives a vendor its node. A node that was never split or merged is a shard by itself. Else it has 2**k slices,
each of which belongs to a shard, and a second hash of the id says which slice it is (extendible hashing): to split a
shard, the slices of its nodes are doubled, and of each pair the new shard gets one.

Worked example: node n0 is sliced (n0). Splitting n0 makes it (n0, a): ids of an odd second hash go to a. Splitting a
makes it (n0, a, n0, b): those of hash 3 modulo 4 go to b. Merging b into a and a into n0 makes it (n0) again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mktsim.errors import DuplicateError, InvalidArgumentError, UnknownNodeError
from mktsim.placement import ConsistentHashRing, hash_key

_MOST_SLICES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Nodes of a ring, and the shards that have their slices.

    Parameters
    ----------
    nodes : tuple of str
        On the ring, each with as many tokens.
    virtual_nodes : int
        Tokens of a node.
    slices : mapping of str to tuple of str
        Node to the shards of its slices, for nodes that are not simply the shard of their name.

    Examples
    --------
    >>> before = ShardMap(("s0", "s1"), 150)
    >>> after = before.split("s0", "s2")
    >>> after.shards, f"{before.moved_share(after) / before.ring.shares()[0]:.6f}"
    (('s0', 's2', 's1'), '0.500000')
    >>> after.merge("s2", "s0") == before
    True
    """

    nodes: tuple[str, ...]
    virtual_nodes: int
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ring: ConsistentHashRing = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ring", ConsistentHashRing(self.nodes, virtual_nodes=self.virtual_nodes))
        for node, shards in self.slices.items():
            count = len(shards)
            if node not in self.ring or not 0 < count <= _MOST_SLICES or count & (count - 1):
                raise InvalidArgumentError(f"node {node!r:.80} has a power of 2 of slices, not {count}")

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` takes, as JSON can hold it."""
        slices = {node: list(shards) for node, shards in self.slices.items()}
        return {"nodes": list(self.nodes), "virtual_nodes": self.virtual_nodes, "slices": slices}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ShardMap:
        """Restore a map."""
        slices = {str(node): tuple(map(str, shards)) for node, shards in data["slices"].items()}
        return cls(tuple(map(str, data["nodes"])), int(data["virtual_nodes"]), slices)

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards, in the order of the nodes."""
        return tuple(dict.fromkeys(shard for node in self.nodes for shard in self.shards_of_node(node)))

    def shards_of_node(self, node: str) -> tuple[str, ...]:
        """Return the shards of a node's slices."""
        return self.slices.get(node, (node,))

    def shard_of(self, vendor_id: str) -> str:
        """Return the shard that a vendor belongs to."""
        node = self.ring.get_node(vendor_id)
        return self._slice(node, vendor_id) if self.slices else node

    def split(self, shard: str, new: str) -> ShardMap:
        """Return the map in which half of the vendors of a shard belong to a new one.

        Raises
        ------
        UnknownNodeError, DuplicateError, InvalidArgumentError
        """
        self._known(shard)
        if new in self.shards:
            raise DuplicateError(f"there is a shard {new!r:.80} already")
        slices = dict(self.slices)
        for node in self.nodes:
            before = self.shards_of_node(node)
            if shard in before:
                slices[node] = before + tuple(new if each == shard else each for each in before)
        return ShardMap(self.nodes, self.virtual_nodes, slices)

    def merge(self, shard: str, into: str) -> ShardMap:
        """Return the map in which the vendors of one shard belong to another.

        Raises
        ------
        UnknownNodeError, InvalidArgumentError
        """
        self._known(shard)
        self._known(into)
        if shard == into:
            raise InvalidArgumentError(f"a shard is merged into another, not {shard!r:.80} into itself")
        slices = {}
        for node in self.nodes:
            merged = tuple(into if each == shard else each for each in self.shards_of_node(node))
            while len(merged) > 1 and merged[: len(merged) // 2] == merged[len(merged) // 2 :]:
                merged = merged[: len(merged) // 2]
            if merged != (node,):
                slices[node] = merged
        return ShardMap(self.nodes, self.virtual_nodes, slices)

    def moved_share(self, after: ShardMap) -> float:
        """Return the exact share of all possible ids that belong elsewhere in another map."""
        mine, theirs = self.ring.table(), after.ring.table()
        ends = np.union1d(mine.tokens, theirs.tokens)
        arcs = (ends - np.roll(ends, 1)) / 2.0**64 if len(ends) > 1 else np.ones(1)
        pairs = mine.owners[np.searchsorted(mine.tokens, ends)].astype(np.int64) * len(after.nodes)
        pairs += theirs.owners[np.searchsorted(theirs.tokens, ends)]
        share = 0.0
        for pair, arc in enumerate(np.bincount(pairs, weights=arcs).tolist()):
            if arc:
                old, new = self.nodes[pair // len(after.nodes)], after.nodes[pair % len(after.nodes)]
                share += arc * _differing(self.shards_of_node(old), after.shards_of_node(new))
        return share

    def _slice(self, node: str, vendor_id: str) -> str:
        shards = self.slices.get(node)
        return node if shards is None else shards[hash_key(f"slice of {vendor_id}") & (len(shards) - 1)]

    def _known(self, shard: str) -> None:
        if shard not in self.shards:
            raise UnknownNodeError(f"there is no shard {shard!r:.80}; there are {', '.join(self.shards[:5])!s:.200}")


def numbered(count: int, *, named: Iterable[str] = ()) -> tuple[str, ...]:
    """Return names of shards: the first of those that there are, then the lowest numbers that are free.

    Examples
    --------
    >>> numbered(3), numbered(3, named=["shard-1", "eu"])
    (('shard-0', 'shard-1', 'shard-2'), ('shard-1', 'eu', 'shard-0'))
    """
    names = list(named)[:count]
    taken = set(names)
    number = 0
    while len(names) < count:
        if f"shard-{number}" not in taken:
            names.append(f"shard-{number}")
        number += 1
    return tuple(names)


def _differing(before: tuple[str, ...], after: tuple[str, ...]) -> float:
    """Return the share of second hashes that two sequences of slices send to different shards."""
    count = max(len(before), len(after))
    return sum(before[i % len(before)] != after[i % len(after)] for i in range(count)) / count
