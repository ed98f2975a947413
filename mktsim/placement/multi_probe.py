"""Multi-probe consistent hashing (Appleton & O'Reilly 2015): the balance of a large ring from a small one.

Rules
-----
A key is hashed to several places of a ring; of the tokens that follow them clockwise the nearest has it. Where a key
lands depends on ids, weights and the number of probes. Adding a node moves keys to it only; removing one moves only its
own, each to the node that `get_nodes` names second.

Theory of operation
-------------------
Nodes have one token each, or ``round(weight x virtual_nodes)``, from :class:`ConsistentHashRing`. A node's chance is
no longer its arc: a long arc attracts many probes, few of which are nearest. With 21 probes the fullest of 100 nodes
has about 1.09 times the mean, for which a ring needs about a thousand tokens a node; the look-up is longer instead, and
nodes whose arcs are short stay emptier than on such a ring.
Of probes at equal distance the first counts.

What this does not do
---------------------
Weights are kept to the precision of one token: raise `virtual_nodes` for weights that are no whole numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.placement.base import GOLDEN, Hashes, mix, mix_one
from mktsim.placement.nodes import NodePlacement, whole
from mktsim.placement.ring import ConsistentHashRing, Table

_MASK: Final = (1 << 64) - 1
_CHUNK: Final = 16_384
_MAX_PROBES: Final = 10_000


class MultiProbeHash(NodePlacement):
    """Place keys by several probes of a ring.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        The first nodes, all of weight 1 or with the weights given.
    probes : int
        How many places of the ring a key is hashed to.
    virtual_nodes : int
        Tokens of a node of weight 1.

    Examples
    --------
    >>> placed = MultiProbeHash(["shard-0", "shard-1", "shard-2"])
    >>> placed.assign(["acme", "widgets", "gadgets"]).tolist()
    [0, 2, 2]
    """

    kind = "multi-probe"
    noun = "multi-probe ring"

    def __init__(
        self, nodes: Iterable[str] | Mapping[str, float] = (), *, probes: int = 21, virtual_nodes: int = 1
    ) -> None:
        self._probes = whole("probes", probes, 1, _MAX_PROBES)
        self._ring = ConsistentHashRing(virtual_nodes=virtual_nodes)
        super().__init__(nodes)

    @property
    def probes(self) -> int:
        """How many places of the ring a key is hashed to."""
        return self._probes

    @property
    def nbytes(self) -> int:
        """Bytes of the ring's table."""
        self._able()
        return self._ring.nbytes

    def _adding(self, id: str, weight: float) -> None:
        self._ring.add_node(id, weight)

    def _removing(self, id: str) -> None:
        self._ring.remove_node(id)

    def _parameters(self) -> dict[str, Any]:
        return {"probes": self._probes, "virtual_nodes": self._ring.virtual_nodes}

    def _changed(self) -> None:
        pass

    def _table(self) -> Table:
        self._able()
        return self._ring.table()

    def _places(self, place: int) -> list[int]:
        return [mix_one((place + i * GOLDEN) & _MASK) for i in range(self._probes)]

    def _one(self, place: int) -> int:
        table = self._table()
        search, tokens, best, owner = table.search, len(table.tokens), 1 << 64, 0
        for probe in self._places(place):
            at = bisect_left(search, probe)
            distance = (search[at if at < tokens else 0] - probe) & _MASK
            if distance < best:
                best, owner = distance, int(table.owners[at])
        return owner

    def _many(self, hashes: Hashes) -> NDArray[np.intp]:
        table = self._table()
        closed = np.append(table.tokens, table.tokens[:1])
        found = np.empty(len(hashes), dtype=np.intp)
        for start in range(0, len(hashes), _CHUNK):
            keys = hashes[start : start + _CHUNK]
            best = np.full(len(keys), _MASK, dtype=np.uint64)
            token = np.zeros(len(keys), dtype=np.intp)
            for i in range(self._probes):
                probe = mix(keys + np.uint64(i * GOLDEN & _MASK))
                at = np.searchsorted(table.tokens, probe)
                distance = closed[at] - probe
                nearer = distance < best if i else np.ones(len(keys), dtype=bool)
                np.copyto(best, distance, where=nearer)
                np.copyto(token, at, where=nearer)
            found[start : start + _CHUNK] = table.owners[token]
        return found

    def _ranked(self, place: int, n: int) -> list[int]:
        table, places = self._table(), self._places(place)
        count, reach = len(table.tokens), 1
        while True:
            reach = min(2 * reach, count)
            seen = []
            complete = 1 << 64  # distance up to which all tokens after all probes have been seen
            for i, probe in enumerate(places):
                at = bisect_left(table.search, probe)
                steps = [(at + step) % count for step in range(reach)]
                distances = [(table.search[step] - probe) & _MASK for step in steps]
                owners = table.owners[steps].tolist()
                seen += [
                    (far, i, order, owner) for order, (far, owner) in enumerate(zip(distances, owners, strict=True))
                ]
                complete = min(complete, distances[-1]) if reach < count else complete
            found = list(dict.fromkeys(owner for far, _, _, owner in sorted(seen) if far <= complete))
            if len(found) >= n:
                return found[:n]
