"""The power of two choices (Mitzenmacher 2001): each key picks the less loaded of two nodes.

Rules
-----
A key's two candidates are where two hashes of it fall on a ring; it goes to the one with the smaller load for its
weight, at a tie to the first. When nodes change, a key stays while its node is still one of its two; so a node that
joins draws about 1/(n+1) of the keys, and hardly any moves between others (one whose node was replaced among its two by
the new one, and who then prefers the other).

Theory of operation
-------------------
With one choice the fullest of n nodes is above the mean by about sqrt(2 (m/n) ln n) keys; with two, by about
log2(ln n) keys, however many keys there are (Berenbrink et al. 2000).

What this does not do
---------------------
It promises no bound, and the keys that come first shape the choice of those that come later: keys that come together
are placed as a set, the heaviest first.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from mktsim.placement.base import GOLDEN, Hashes, mix
from mktsim.placement.remembering import NOBODY, RememberingPlacement
from mktsim.placement.ring import walk


class TwoChoicesHash(RememberingPlacement):
    """Place each key on the less loaded of two nodes of a ring.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        The first nodes, all of weight 1 or with the weights given.
    virtual_nodes : int
        Tokens of a node of weight 1.

    Examples
    --------
    >>> placed = TwoChoicesHash(["shard-0", "shard-1", "shard-2"])
    >>> np.bincount(placed.assign([f"vendor-{i}" for i in range(300)])).tolist()
    [100, 100, 100]
    """

    kind = "two-choices"
    noun = "two-choices ring"

    def _candidates(self, hashes: Hashes) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        table = self._ring.table()
        second = mix(hashes + np.uint64(GOLDEN))
        return table.owners[np.searchsorted(table.tokens, hashes)], table.owners[np.searchsorted(table.tokens, second)]

    def _ranked(self, place: int, n: int) -> list[int]:
        """Return the node that has the key, its other candidate, then those that follow on the ring."""
        owner, table = self._one(place), self._ring.table()
        hashes = np.array([place], dtype=np.uint64)
        pair = [int(candidate[0]) for candidate in self._candidates(hashes)]
        following = walk(table.owners[:-1], bisect_left(table.search, place), len(self._able()))
        return list(dict.fromkeys([owner, *pair, *following]))[:n]

    def _keep(self, owners: NDArray[np.int32]) -> NDArray[np.bool_]:
        first, second = self._candidates(self._hashes)
        return np.asarray((owners != NOBODY) & ((owners == first) | (owners == second)))

    def _fill(self, hashes: Hashes, loads: list[int], used: list[int], total: int) -> list[int]:
        firsts, seconds = self._candidates(hashes)
        weights = [float(weight) for weight in self._weights.values()]
        chosen = []
        for first, second, load in zip(firsts.tolist(), seconds.tolist(), loads, strict=True):
            owner = first if used[first] * weights[second] <= used[second] * weights[first] else second
            used[owner] += load
            chosen.append(owner)
        return chosen
