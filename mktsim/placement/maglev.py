"""Maglev hashing (Eisenbud et al., NSDI 2016): one table of fixed size, one look-up, even shares.

Rules
-----
Nodes of equal weight have tables entries that differ by at most 1; a node of weight w about w times as many. Where a
key lands depends on ids, weights and the size of the table. Adding a node moves 1/(n+1) of the keys to it
and, since the table is filled anew, about half a per cent of all keys between others (100 and 1,000 nodes, 65,537
entries, measured): the price of the even shares.

Theory of operation
-------------------
Each node prefers the entries of the table in an order of its own, offset + j x skip modulo the size, a prime. The nodes
take turns, sorted by id; who has the turn takes the entry that it prefers most among those still free. A node of weight
w sits out so many rounds that it has the turn in w of as many rounds as the heaviest has it in its weight.

Of many nodes the turns of one round are made together: all propose, an entry proposed to by several keeps the first in
order, the others propose further on. When nobody is turned down any more, each has what it would have got in turn
(this is Gale and Shapley's deferred acceptance, whose outcome does not depend on the order of proposals, and where all
entries rank the proposers alike it is the serial one).

What this does not do
---------------------
It does not grow: choose a table of at least 100 entries a node, for shares are even to one entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.placement.base import GOLDEN, Hashes, mix, node_seeds
from mktsim.placement.nodes import NodePlacement, whole
from mktsim.placement.ring import walk

MAX_TABLE: Final = 1 << 27
_PROBES: Final = 4_096  # entries looked at in one step, by all who propose together
_FEW: Final = 64  # nodes; the turns of fewer are taken one by one, for a round then has too few to gain by


class MaglevHash(NodePlacement):
    """Place keys by one table look-up.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        The first nodes, all of weight 1 or with the weights given.
    table_size : int
        A prime; the paper uses 65,537 and 655,373.

    Raises
    ------
    InvalidArgumentError
        If the size is no prime, or an id or a weight cannot be used.

    Examples
    --------
    >>> maglev = MaglevHash(["shard-0", "shard-1", "shard-2"], table_size=101)
    >>> maglev.entries().tolist()
    [34, 34, 33]
    """

    kind = "maglev"
    noun = "Maglev table"

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = (), *, table_size: int = 65_537) -> None:
        self._size = whole("table_size", table_size, 2, MAX_TABLE)
        if any(self._size % factor == 0 for factor in range(2, isqrt(self._size) + 1)):
            raise InvalidArgumentError(f"table_size must be a prime, such as 65537 or 655373, not {table_size}")
        self._table: NDArray[np.int32] | None = None
        super().__init__(nodes)

    @property
    def table_size(self) -> int:
        """Entries of the table."""
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of the table: 4 an entry."""
        return self._made().nbytes

    def entries(self) -> NDArray[np.intp]:
        """Return how many entries of the table each node has, in the order of :attr:`nodes`."""
        return np.bincount(self._made(), minlength=len(self)).astype(np.intp)

    def _adding(self, id: str, weight: float) -> None:
        if weight and len(self) >= self._size:
            raise InvalidArgumentError(
                f"node {id!r:.80} finds no entry in a table of {self._size}: make a larger one, 100 entries a node"
            )

    def _parameters(self) -> dict[str, Any]:
        return {"table_size": self._size}

    def _changed(self) -> None:
        self._table = None

    def _one(self, place: int) -> int:
        return int(self._made()[place % self._size])

    def _many(self, hashes: Hashes) -> NDArray[np.intp]:
        return self._made()[(hashes % np.uint64(self._size)).astype(np.intp)].astype(np.intp)

    def _ranked(self, place: int, n: int) -> list[int]:
        table = self._made()
        found = walk(table, place % self._size, min(n, int(np.count_nonzero(self.entries()))))
        # A weight too small for any entry still makes a replica, after those that have some.
        return found + [i for i in self._able() if i not in found][: n - len(found)]

    def _made(self) -> NDArray[np.int32]:
        if self._table is None:
            able, ids, weights = self._able(), self.nodes, list(self._weights.values())
            seeds = node_seeds(ids[i] for i in able)
            offset = (seeds % np.uint64(self._size)).astype(np.int64)
            # Of a table of 2 entries the only skip is 1.
            skip = (mix(seeds + np.uint64(GOLDEN)) % np.uint64(max(1, self._size - 1))).astype(np.int64) + 1
            weight = np.array([float(weights[i]) for i in able])
            fill = _fill_in_turn if len(able) < _FEW else _fill_in_rounds
            self._table = np.array(able, dtype=np.int32)[fill(offset, skip, weight / weight.max(), self._size)]
        return self._table


def _fill_in_turn(
    offset: NDArray[np.int64], skip: NDArray[np.int64], weight: NDArray[np.float64], size: int
) -> NDArray[np.int32]:
    """Return, for each entry, the number of the node that takes it; the largest weight is 1."""
    steps, parts, table = skip.tolist(), weight.tolist(), [-1] * size
    ahead = offset.tolist()  # the entry that a node looks at next
    left, turn = size, 0
    while left:
        turn += 1
        for node, part in enumerate(parts):
            if part != 1.0 and int(turn * part) == int((turn - 1) * part):
                continue
            entry, step = ahead[node], steps[node]
            while table[entry] >= 0:
                entry += step
                if entry >= size:
                    entry -= size
            table[entry] = node
            ahead[node] = entry
            left -= 1
            if not left:
                break
    return np.array(table, dtype=np.int32)


def _fill_in_rounds(
    offset: NDArray[np.int64], skip: NDArray[np.int64], weight: NDArray[np.float64], size: int
) -> NDArray[np.int32]:
    """Return what :func:`_fill_in_turn` does, for many nodes much sooner."""
    nobody = np.int32(len(offset))
    table = np.full(size, nobody, dtype=np.int32)
    tried = np.zeros(len(offset), dtype=np.int64)  # how many of its preferences a node has gone past
    left, turn = size, 0
    while left:
        turn += 1
        active = np.flatnonzero(np.floor(turn * weight) > np.floor((turn - 1) * weight))[:left].astype(np.int32)
        left -= len(active)
        proposed = []
        while len(active):
            # Each looks at the next few it prefers; few proposers look further at a time, so that steps stay few.
            reach = max(1, _PROBES // len(active))
            steps = tried[active, None] + np.arange(reach)
            wanted = (offset[active, None] + steps % size * skip[active, None]) % size
            open_to = table[wanted] > active[:, None]
            finds = open_to.any(axis=1)
            first = open_to.argmax(axis=1)
            tried[active] += np.where(finds, first, reach)
            who, entry = active[finds], wanted[np.arange(len(active)), first][finds]
            # Of several who propose to one entry the first in order has it; whom it held before is turned down too.
            order = np.lexsort((who, entry))
            who, entry = who[order], entry[order]
            leads = np.ones(len(entry), dtype=bool)
            leads[1:] = entry[1:] != entry[:-1]
            proposed.append(entry[leads])
            evicted = table[entry[leads]]
            table[entry[leads]] = who[leads]
            active = np.concatenate([active[~finds], who[~leads], evicted[evicted != nobody]])
        entry = np.concatenate(proposed)
        table[entry] = ~table[entry]  # Settled: being negative, it is below every proposer from now on.
    return ~table
