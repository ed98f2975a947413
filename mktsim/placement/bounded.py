"""Consistent hashing with bounded loads (Mirrokni, Thorup & Zadimoghaddam 2016): no node above (1 + eps) of its share.

Rules
-----
With m keys over n nodes of equal weight no node holds more than ceil((1 + eps) m / n); with weights a node's part of
1 + eps is weight / sum of weights; with loads, a node takes keys while its load is below its part, so it ends at most
one key above. The bound is computed in whole numbers and fractions: it holds exactly. Keys that come together are
placed as a set, whatever their order. When nodes change, all keys are placed anew as one set: nodes, keys and loads
alone then decide where each is.

Theory of operation
-------------------
A key belongs to the first node clockwise on a ring that has room. The heaviest keys choose first, those of one load in
the order of a second hash, which spreads the overflow; places that are full are skipped by remembering, for each token
passed in vain, where the walk ended, so that a token is passed about once.

What this does not do
---------------------
A change of nodes moves more than 1/(n+1) of the keys, for overflow follows: within a constant factor that the paper
bounds by O(1/eps^2), and that `mktsim study virtual-nodes` measures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import ceil, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.placement.base import Hashes, shown
from mktsim.placement.remembering import RememberingPlacement
from mktsim.placement.ring import walk


class BoundedLoadHash(RememberingPlacement):
    """Place keys on a ring whose nodes have bounded room.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        The first nodes, all of weight 1 or with the weights given.
    epsilon : float
        How far above its share a node may be filled, above 0: 0.25 lets each hold a quarter more than the mean.
    virtual_nodes : int
        Tokens of a node of weight 1.

    Examples
    --------
    >>> placed = BoundedLoadHash(["shard-0", "shard-1", "shard-2"], epsilon=0.1)
    >>> _ = placed.assign([f"vendor-{i}" for i in range(300)])
    >>> placed.loads().max() <= placed.capacities().max() == 110
    np.True_
    """

    kind = "bounded-loads"
    noun = "bounded-load ring"

    def __init__(
        self, nodes: Iterable[str] | Mapping[str, float] = (), *, epsilon: float = 0.25, virtual_nodes: int = 150
    ) -> None:
        if not isinstance(epsilon, int | float | np.integer | np.floating) or not isfinite(epsilon) or epsilon <= 0:
            raise InvalidArgumentError(f"epsilon must be a finite number above 0, not {shown(epsilon)}")
        self._epsilon = float(epsilon)
        super().__init__(nodes, virtual_nodes=virtual_nodes)

    @property
    def epsilon(self) -> float:
        """How far above its share a node may be filled."""
        return self._epsilon

    def capacities(self) -> NDArray[np.int64]:
        """Return the load below which each node takes another key, in the order of :attr:`nodes`."""
        self._settle()
        return np.array(self._capacities(int(self._key_loads.sum())), dtype=np.int64)

    def _capacities(self, total: int) -> list[int]:
        # The decimal that is written, not the nearest binary fraction to it: (1 + 0.1) x 100 / 10 is 11, not above.
        room = (1 + Fraction(repr(self._epsilon))) * max(total, 1)
        weights = list(self._weights.values())
        whole = sum(map(Fraction, weights))
        each = {weight: ceil(room * Fraction(weight) / whole) if whole else 0 for weight in set(weights)}
        return [each[weight] for weight in weights]

    def _parameters(self) -> dict[str, Any]:
        return {"epsilon": self._epsilon, **super()._parameters()}

    def _ranked(self, place: int, n: int) -> list[int]:
        """Return the node that has the key, then those that follow on the ring."""
        owner = self._one(place)
        table = self._ring.table()
        following = walk(table.owners[:-1], bisect_left(table.search, place), len(self._able()))
        return [owner, *(node for node in following if node != owner)][:n]

    def _keep(self, owners: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.zeros(len(owners), dtype=bool)

    def _fill(self, hashes: Hashes, loads: list[int], used: list[int], total: int) -> list[int]:
        table = self._ring.table()
        capacity = self._capacities(total)
        owners, count = memoryview(table.owners.data), len(table.tokens)
        onward: dict[int, int] = {}
        chosen = []
        for place, load in zip(np.searchsorted(table.tokens, hashes).tolist(), loads, strict=True):
            passed = []
            while used[owner := owners[place]] >= capacity[owner]:
                passed.append(place)
                place = onward.get(place, place + 1)
                if place >= count:
                    place = 0
            for each in passed:
                onward[each] = place
            used[owner] += load
            chosen.append(owner)
        return chosen
