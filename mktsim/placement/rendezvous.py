"""Rendezvous hashing with weights (Thaler & Ravishankar 1996; the logarithmic method, Schindelhauer & Schomaker 2005).

Rules
-----
Each node runs a race for each key, and the fastest holds it. Where a key lands depends on ids and weights alone. Adding
a node moves keys to it only; removing one moves its own only, each to the runner-up that `get_nodes` names; a change of
weight moves keys only to or from that node. Shares are exactly proportional to weights.

Theory of operation
-------------------
Key and node are hashed to 64 bits, of which the upper 48 make a number u in (0, 1). The node's time is -ln(u) / weight,
exponential with rate `weight`; of independent exponential times each is the least with probability rate over sum of
rates. Equal times are decided by the whole hash, equal hashes by the id that sorts first.

The logarithm is made here of additions, multiplications and divisions, which IEEE 754 fixes to the last bit: the
libraries' own differ in the last place between platforms. It is off by at most 3 units in the last place while
neighbouring u are 32 apart, so it is strictly monotone, and among nodes of one weight the largest hash is the fastest.
A look-up for many keys therefore takes the logarithm of one candidate a weight, not of each node.

What this does not do
---------------------
It looks at every node for every key: n hashes, about 3 ns each in bulk. For thousands of nodes take the ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mktsim.placement.base import Hashes, mix, node_seeds
from mktsim.placement.nodes import NodePlacement

_LN2: Final = 0.6931471805599453
_TERMS: Final = tuple(2.0 / odd for odd in range(35, 0, -2))
_CHUNK: Final = 8_192  # keys that are hashed with one node after another: their words stay in the cache
#: For each weight: itself, the positions of its nodes and their seeds, sorted by id.
_Groups = list[tuple[float, NDArray[np.intp], Hashes]]


class RendezvousHash(NodePlacement):
    """Place each key on the node that wins its race.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        Ids, or ids and their weights.

    Examples
    --------
    >>> rendezvous = RendezvousHash({"shard-0": 1, "shard-1": 1, "big": 2.5})
    >>> rendezvous.assign(["acme", "widgets", "gadgets"]).tolist()
    [0, 2, 0]
    """

    kind = "rendezvous"
    noun = "rendezvous hash"

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = ()) -> None:
        self._groups: _Groups | None = None
        super().__init__(nodes)

    @property
    def nbytes(self) -> int:
        """Bytes of the nodes' seeds and positions."""
        return sum(positions.nbytes + seeds.nbytes for _, positions, seeds in self._made())

    def _changed(self) -> None:
        self._groups = None

    def _made(self) -> _Groups:
        if self._groups is None:
            able, ids, weights = self._able(), self.nodes, list(self._weights.values())
            by_weight = groupby(sorted(able, key=weights.__getitem__), key=weights.__getitem__)  # by id within, stable
            self._groups = [
                (float(weight), np.array(members, dtype=np.intp), node_seeds(ids[i] for i in members))
                for weight, members in ((weight, list(members)) for weight, members in by_weight)
            ]
        return self._groups

    def _one(self, place: int) -> int:
        return self._ranked(place, 1)[0]

    def _ranked(self, place: int, n: int) -> list[int]:
        runners = [
            (float(time), -int(hash), self.nodes[position], int(position))
            for weight, positions, seeds in self._made()
            for hashes in (mix(seeds ^ np.uint64(place)),)
            for time, hash, position in _fastest(minus_log(hashes) / weight, hashes, positions, n)
        ]
        return [position for *_, position in sorted(runners)[:n]]

    def _many(self, hashes: Hashes) -> NDArray[np.intp]:
        groups = self._made()
        owners = np.empty(len(hashes), dtype=np.intp)
        for start in range(0, len(hashes), _CHUNK):
            keys, best = hashes[start : start + _CHUNK], None
            for weight, positions, seeds in groups:
                hash, owner = _largest(keys, positions, seeds)
                if len(groups) == 1:
                    best = (np.empty(0), hash, owner)
                    break
                time = minus_log(hash) / weight
                if best is None:
                    best = (time, hash, owner)
                    continue
                wins = (time < best[0]) | ((time == best[0]) & (hash > best[1]))
                for row in np.flatnonzero((time == best[0]) & (hash == best[1])).tolist():
                    wins[row] = self.nodes[owner[row]] < self.nodes[best[2][row]]
                for kept, new in zip(best, (time, hash, owner), strict=True):
                    np.copyto(kept, new, where=wins)
            assert best is not None, "there is a node of some weight"
            owners[start : start + _CHUNK] = best[2]
        return owners


def minus_log(hashes: Hashes) -> NDArray[np.float64]:
    """Return -ln(u) of the number u in (0, 1) that the upper 48 bits of each hash make, the same on every platform.

    Examples
    --------
    >>> minus_log(np.array([0, 1 << 63, (1 << 64) - 1], dtype=np.uint64)).tolist()
    [33.96421184743732, 0.6931471805599418, 1.776356839400252e-15]
    """
    u = ((hashes >> np.uint64(16)).astype(np.float64) + 0.5) * 2.0**-48
    mantissa, exponent = np.frexp(u)
    # -ln(m) is 2 artanh(s) for s = (1 - m)/(1 + m), at most 1/3; both terms of the sum are positive: nothing cancels.
    s = (1.0 - mantissa) / (1.0 + mantissa)
    square, series = s * s, np.full(len(s), _TERMS[0])
    for term in _TERMS[1:]:
        series *= square
        series += term
    return np.asarray(series * s - exponent * _LN2)


def _fastest(
    times: NDArray[np.float64], hashes: Hashes, positions: NDArray[np.intp], n: int
) -> Iterable[tuple[float, int, int]]:
    """Return the first `n` of one weight; positions are sorted by id and the sort is stable."""
    order = np.argsort(~hashes, kind="stable")[:n]
    return zip(times[order], hashes[order], positions[order], strict=True)


def _largest(keys: Hashes, positions: NDArray[np.intp], seeds: Hashes) -> tuple[Hashes, NDArray[np.intp]]:
    """Return, for each key, the largest hash with any of the nodes and the first node that has it.

    Hot: `benchmarks.placement` guards it.
    """
    best, number = mix(keys ^ seeds[0]), np.zeros(len(keys), dtype=np.intp)
    word, shifted, more = np.empty_like(keys), np.empty_like(keys), np.empty(len(keys), dtype=bool)
    for i in range(1, len(seeds)):
        np.bitwise_xor(keys, seeds[i], out=word)
        _mix_within(word, shifted)
        np.greater(word, best, out=more)
        np.maximum(best, word, out=best)
        np.putmask(number, more, i)
    return best, positions[number]


def _mix_within(z: Hashes, room: Hashes) -> None:
    """Do what `mix` does, without the memory that its steps would ask for."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0)):
        np.right_shift(z, np.uint64(shift), out=room)
        np.bitwise_xor(z, room, out=z)
        if factor:
            np.multiply(z, np.uint64(factor), out=z)
