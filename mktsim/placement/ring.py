"""Consistent hashing on a ring of tokens.

Rules
-----
A key belongs to the node of the first token at or clockwise of the key's hash. Where a key lands depends on the ids
and weights of the nodes and on nothing else: not on the order in which they were added, the process or the platform.
Adding a node moves keys to that node only; removing one moves that node's keys only.

Theory of operation
-------------------
A node of weight w owns w x virtual_nodes tokens (virtual nodes), drawn from SplitMix64 in counter mode over one 64-bit
digest of its id, so a thousand nodes cost a thousand digests and the tokens come from a few array operations. The
tokens of all nodes lie sorted in one uint64 array; a look-up is a binary search in it. The table is made when it is
first needed after a change, hence adding n nodes one by one costs one sort, not n. Where two nodes share a token, the
node whose id sorts first has it; the other one's lies behind it and takes over when that node leaves.

The share of one of n nodes of equal weight with v tokens each is distributed Beta(v, (n - 1) v): mean 1/n, coefficient
of variation sqrt((n - 1) / (n v + 1)), 8 % at 150 virtual nodes.

What this does not do
---------------------
It does not look at load: a node's share of the *keys* is what is balanced, not of the work they bring. A ring under
change must not be used by another thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.placement.base import GOLDEN, Hashes, mix, node_seeds
from mktsim.placement.nodes import NodePlacement, whole

MAX_TOKENS_PER_NODE: Final = 1 << 24
_SHOWN_NODES: Final = 20


@dataclass(frozen=True, slots=True)
class Table:
    """The sorted tokens and, for each, the position of its owner among the nodes; one owner more closes the ring."""

    tokens: Hashes
    owners: NDArray[np.int32]
    search: memoryview[int]  # of `tokens`: indexing it makes a Python int, which is what bisect compares fastest


class ConsistentHashRing(NodePlacement):
    """Place keys on nodes so that a change of nodes moves few keys.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        The first nodes, all of weight 1 or with the weights given.
    virtual_nodes : int
        Tokens of a node of weight 1.

    Raises
    ------
    InvalidArgumentError
        If an id is no string or empty, or a number is out of range.
    DuplicateError
        If an id comes twice.

    Examples
    --------
    >>> ring = ConsistentHashRing(["shard-0", "shard-1", "shard-2"])
    >>> ring.get_node("acme")
    'shard-2'
    >>> ring.assign(["acme", "widgets", "gadgets"]).tolist()
    [2, 2, 1]
    """

    kind = "ring"
    noun = "ring"

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = (), *, virtual_nodes: int = 150) -> None:
        self._virtual_nodes = whole("virtual_nodes", virtual_nodes, 1, MAX_TOKENS_PER_NODE)
        self._table: Table | None = None
        super().__init__(nodes)

    @property
    def virtual_nodes(self) -> int:
        """Tokens of a node of weight 1."""
        return self._virtual_nodes

    @property
    def nbytes(self) -> int:
        """Bytes of the table that look-ups read: 12 a token."""
        table = self.table()
        return table.tokens.nbytes + table.owners.nbytes

    def _adding(self, id: str, weight: float) -> None:
        # A weight w is kept to the precision of one token, so that a node of any weight above 0 has at least one.
        if weight > MAX_TOKENS_PER_NODE / self._virtual_nodes:
            raise InvalidArgumentError(
                f"weight of node {id!r:.80} times virtual_nodes must be at most {MAX_TOKENS_PER_NODE}: "
                f"scale all weights down, or use fewer virtual nodes than {self._virtual_nodes}"
            )

    def _parameters(self) -> dict[str, Any]:
        return {"virtual_nodes": self._virtual_nodes}

    def _changed(self) -> None:
        self._table = None

    def _one(self, place: int) -> int:
        table = self.table()
        return int(table.owners[bisect_left(table.search, place)])

    def _many(self, hashes: Hashes) -> NDArray[np.intp]:
        table = self.table()  # About 0.3 us a key over 150,000 tokens, nearly all of it the hash.
        return table.owners[np.searchsorted(table.tokens, hashes)].astype(np.intp)

    def _ranked(self, place: int, n: int) -> list[int]:
        """Walk clockwise: when the owner leaves, its keys go to the second."""
        table = self.table()
        return walk(table.owners[:-1], bisect_left(table.search, place), n)

    def shares(self) -> NDArray[np.float64]:
        """Return the exact share of the hash space each node owns, in the order of :attr:`nodes`; they add to 1."""
        table = self.table()
        arcs = (table.tokens - np.roll(table.tokens, 1)) / 2.0**64
        if not arcs[0]:  # All tokens are one: its arc is the whole ring, which is 0 modulo 2**64.
            arcs[0] = 1.0
        return np.bincount(table.owners[:-1], weights=arcs, minlength=len(self)).astype(np.float64, copy=False)

    def __repr__(self) -> str:
        return f"<ConsistentHashRing of {len(self)} nodes x {self._virtual_nodes} virtual nodes>"

    def _repr_html_(self) -> str:
        shares = self.shares() if any(self._weights.values()) else np.zeros(len(self))
        total = sum(self._weights.values()) or 1.0
        rows = "".join(
            f"<tr><td>{escape(id[:80])}</td><td>{weight:g}</td><td>{share:.3%}</td><td>{weight / total:.3%}</td></tr>"
            for (id, weight), share in list(zip(self._weights.items(), shares, strict=True))[:_SHOWN_NODES]
        )
        more = len(self) - _SHOWN_NODES
        return (
            f"<table><caption>{escape(repr(self)[1:-1])}</caption>"
            "<tr><th>node</th><th>weight</th><th>share of the ring</th><th>by weight</th></tr>"
            f"{rows}</table>" + (f"<p>and {more} more</p>" if more > 0 else "")
        )

    def table(self) -> Table:
        """Return the tokens, made when they are first needed after a change.

        Raises
        ------
        EmptyFleetError
            If no node has a weight above 0.
        """
        if self._table is None:
            able, ids, weights = self._able(), self.nodes, list(self._weights.values())
            counts = np.array([max(1, round(weights[i] * self._virtual_nodes)) for i in able], dtype=np.intp)
            tokens = _tokens([ids[i] for i in able], counts)
            sorting = np.argsort(tokens)
            if (np.diff(tokens[sorting]) == 0).any():  # A stable sort gives a shared token to the id that sorts first,
                sorting = np.argsort(tokens, kind="stable")  # at twice the time, and tokens are hardly ever shared.
            tokens = tokens[sorting]
            owners = np.repeat(np.array(able, dtype=np.int32), counts)[sorting]
            self._table = Table(tokens, np.append(owners, owners[:1]), memoryview(tokens.data))
        return self._table


def walk(owners: NDArray[np.int32], start: int, n: int) -> list[int]:
    """Return the first `n` distinct owners from a place in a circle of owners on."""
    reach = 4 * n
    while True:
        # Most keys find n nodes within the first few places; the reach doubles for those that do not.
        seen = owners[start : start + reach].tolist() + owners[: max(0, start + reach - len(owners))].tolist()
        found = list(dict.fromkeys(seen))
        if len(found) >= n:
            return found[:n]
        reach *= 2


def _tokens(ids: list[str], counts: NDArray[np.intp]) -> Hashes:
    """Return ``counts[i]`` tokens of each id, node after node: SplitMix64 (Steele et al. 2014) from a digest on."""
    firsts = np.cumsum(counts) - counts
    steps = (np.arange(1, counts.sum() + 1) - np.repeat(firsts, counts)).astype(np.uint64)
    steps *= np.uint64(GOLDEN)
    steps += np.repeat(node_seeds(ids), counts)
    return mix(steps)
