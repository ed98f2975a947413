"""Jump consistent hashing (Lamping & Veach 2014): perfect balance, no tables, nodes in a fixed order.

Rules
-----
Nodes are numbered in the order in which they were added; only the last can be removed, for the numbers of all others
must stay. All nodes count alike: a weight other than 1 is refused. Adding a node moves 1/(n+1) of the keys, all to it.

Theory of operation
-------------------
A key jumps through the numbers 0, 1, 2, ... of nodes: having landed on b it stays there until the number of nodes
reaches j > b, where P(j > i) = (b + 1)/(i + 1) decides with one draw of a generator seeded by the key; the last landing
below n holds it. That takes about ln n steps. The paper's arithmetic on float64 is kept, whose operations IEEE 754
fixes to the last bit, so that Python and numpy agree.

Replicas are drawn without replacement: the i-th is a jump over the n - i nodes that are left, with a hash of its own;
the last of them then stands in for the one drawn (a Fisher-Yates shuffle).

What this does not do
---------------------
It cannot lose a node in the middle: use rendezvous hashing or a ring where nodes fail.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.placement.base import GOLDEN, Hashes, mix_one, shown
from mktsim.placement.nodes import NodePlacement

_FACTOR: Final = 2862933555777941757
_MASK: Final = (1 << 64) - 1
_CHUNK: Final = 16_384  # keys that jump together: what they need stays in the processor's cache


class JumpHash(NodePlacement):
    """Place keys on numbered nodes without any table.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        Ids; a mapping's weights must be equal, for jump takes none.

    Examples
    --------
    >>> jump = JumpHash(["shard-0", "shard-1", "shard-2"])
    >>> jump.assign(["acme", "widgets", "gadgets"]).tolist()
    [0, 0, 1]
    """

    kind = "jump"
    noun = "jump hash"

    @property
    def nbytes(self) -> int:
        """Bytes of tables: none."""
        return 0

    def _adding(self, id: str, weight: float) -> None:
        if weight != 1:
            raise InvalidArgumentError(
                f"weight of node {id!r:.80} must be 1 in a jump hash, not {shown(weight)}: "
                "rendezvous hashing and the ring take weights"
            )

    def _removing(self, id: str) -> None:
        last = next(reversed(self._weights))
        if id != last:
            raise InvalidArgumentError(
                f"a jump hash can only lose its last node, {last!r:.80}, not {id!r:.80}: "
                "rendezvous hashing and the ring can lose any"
            )

    def _changed(self) -> None:
        pass

    def _one(self, place: int) -> int:
        self._able()
        return jump(place, len(self))

    def _many(self, hashes: Hashes) -> NDArray[np.intp]:
        self._able()
        found = np.empty(len(hashes), dtype=np.intp)
        for start in range(0, len(hashes), _CHUNK):
            _jump_all(hashes[start : start + _CHUNK], len(self), found[start : start + _CHUNK])
        return found

    def _ranked(self, place: int, n: int) -> list[int]:
        stand_in: dict[int, int] = {}
        found = []
        for i, left in enumerate(range(len(self), len(self) - n, -1)):
            drawn = jump(place if not i else mix_one((place + i * GOLDEN) & _MASK), left)
            found.append(stand_in.get(drawn, drawn))
            stand_in[drawn] = stand_in.get(left - 1, left - 1)
        return found


def jump(key: int, buckets: int) -> int:
    """Return the bucket, from 0 to `buckets` - 1, of a 64-bit key: the paper's function.

    Source: Lamping & Veach, A Fast, Minimal Memory, Consistent Hash Algorithm, arXiv:1406.2294, figure 1.

    Examples
    --------
    >>> [jump(key, buckets) for key, buckets in ((1, 1), (42, 57), (0xDEAD10CC, 666), (256, 1024))]
    [0, 43, 361, 520]
    """
    landed, ahead = -1, 0
    while ahead < buckets:
        landed = ahead
        key = (key * _FACTOR + 1) & _MASK
        ahead = int((landed + 1) * (2147483648.0 / ((key >> 33) + 1)))
    return landed


def _jump_all(hashes: Hashes, buckets: int, found: NDArray[np.intp]) -> None:
    """Write into `found` what :func:`jump` returns for each hash."""
    keys, landed = hashes.copy(), np.zeros(len(hashes), dtype=np.int64)
    rows = np.arange(len(hashes))
    while len(rows):
        keys *= np.uint64(_FACTOR)
        keys += np.uint64(1)
        ahead = ((landed + 1) * (2147483648.0 / ((keys >> np.uint64(33)) + np.uint64(1)))).astype(np.int64)
        stays = ahead >= buckets
        found[rows[stays]] = landed[stays]
        goes = ~stays
        rows, keys, landed = rows[goes], keys[goes], ahead[goes]
