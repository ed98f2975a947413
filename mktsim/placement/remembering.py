"""What placements that look at load share: they remember where each key is, for a hash alone no longer tells.

A key is remembered by its 64-bit hash: two keys of one hash, which a million keys have with probability 3e-8, share a
node. Twenty bytes a key. A key that is looked up for the first time is placed then and there; from then on it stays
until the nodes change. After a change all is settled when it is next asked for, so that many changes cost one settling.
"""

from __future__ import annotations

from abc import abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.placement.base import Hashes, hash_keys, mix, shown
from mktsim.placement.nodes import NodePlacement
from mktsim.placement.ring import ConsistentHashRing

_MAX_LOAD: Final = 1 << 40  # of one key: sums over any number of keys that fits into memory stay exact
NOBODY: Final = -1


class RememberingPlacement(NodePlacement):
    """A placement that depends on what was placed before, over the tokens of a ring."""

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = (), *, virtual_nodes: int = 150) -> None:
        self._ring = ConsistentHashRing(virtual_nodes=virtual_nodes)
        self._hashes: Hashes = np.empty(0, dtype=np.uint64)  # sorted
        self._owners: NDArray[np.int32] = np.empty(0, dtype=np.int32)  # positions in `_settled`
        self._key_loads: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._settled: tuple[str, ...] = ()  # the nodes when all was last settled; "" for one that has gone since
        super().__init__(nodes)

    # -- what a placement adds ------------------------------------------------------------------------------------

    @abstractmethod
    def _fill(self, hashes: Hashes, loads: list[int], used: list[int], total: int) -> list[int]:
        """Return the node of each key, in this order.

        Parameters
        ----------
        hashes, loads
            The keys, the heaviest first and those of one load in an order that only their hashes decide.
        used
            The load of each node so far, which is kept up to date.
        total
            The load of all keys, these included.
        """

    @abstractmethod
    def _keep(self, owners: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Tell which keys may stay where they are now that the nodes have changed."""

    # -- keys -----------------------------------------------------------------------------------------------------

    @property
    def virtual_nodes(self) -> int:
        """Tokens of a node of weight 1."""
        return self._ring.virtual_nodes

    @property
    def keys_placed(self) -> int:
        """How many keys are remembered."""
        return len(self._hashes)

    @property
    def nbytes(self) -> int:
        """Bytes of the ring's table and of what is remembered."""
        self._able()
        return self._ring.nbytes + self._hashes.nbytes + self._owners.nbytes + self._key_loads.nbytes

    def loads(self) -> NDArray[np.int64]:
        """Return the load of each node, in the order of :attr:`nodes`: sums of the keys' loads, 1 each if not given."""
        self._settle()
        return np.array(self._used(), dtype=np.int64)

    def assign(self, keys: Iterable[str], loads: ArrayLike | None = None) -> NDArray[np.intp]:
        """Place the keys that are new, all of them together, and return the position in :attr:`nodes` of each.

        Parameters
        ----------
        keys : iterable of str
            A list, an ndarray, a pandas Series or Index, or any other iterable of strings. Their order has no effect.
        loads : array of int, optional
            What each key brings, in whole numbers (requests, rows, bytes), so that sums are exact; 1 each when absent.
            A key that was placed before keeps the load that it had.

        Returns
        -------
        ndarray of intp, shape (number of keys,)

        Raises
        ------
        InvalidArgumentError
            If any key is no string, or the loads are no whole numbers from 0 to 2**40, one a key.
        EmptyFleetError
            If there are keys and no node has a weight above 0.

        Notes
        -----
        About 1 us a new key, 0.5 us a known one.
        """
        hashes = hash_keys(keys)
        return self._placed(hashes, None if loads is None else _whole_loads(loads, len(hashes)))

    def forget(self, keys: Iterable[str]) -> int:
        """Forget keys that are gone, so that they count no longer; return how many were known."""
        hashes = hash_keys(keys)
        known = np.isin(self._hashes, hashes)
        for name in ("_hashes", "_owners", "_key_loads"):
            setattr(self, name, getattr(self, name)[~known])
        return int(known.sum())

    def _one(self, place: int) -> int:
        return int(self._placed(np.array([place], dtype=np.uint64), None)[0])

    def _many(self, hashes: Hashes) -> NDArray[np.intp]:
        return self._placed(hashes, None)

    def _placed(self, hashes: Hashes, loads: NDArray[np.int64] | None) -> NDArray[np.intp]:
        if not len(hashes):
            return np.empty(0, dtype=np.intp)
        self._able()
        self._settle()
        found = np.searchsorted(self._hashes, hashes)
        known = found < len(self._hashes)
        known[known] = self._hashes[found[known]] == hashes[known]
        if not known.all():
            new, first = np.unique(hashes[~known], return_index=True)
            weights = np.ones(len(new), dtype=np.int64) if loads is None else loads[~known][first]
            owners = self._distribute(new, weights, self._used())
            at = np.searchsorted(self._hashes, new)
            self._hashes = np.insert(self._hashes, at, new)
            self._owners = np.insert(self._owners, at, owners)
            self._key_loads = np.insert(self._key_loads, at, weights)
            found = np.searchsorted(self._hashes, hashes)
        return self._owners[found].astype(np.intp)

    def _distribute(self, hashes: Hashes, loads: NDArray[np.int64], used: list[int]) -> NDArray[np.int32]:
        order = np.lexsort((mix(hashes.copy()), -loads))
        total = sum(used) + int(loads.sum())
        owners = np.empty(len(hashes), dtype=np.int32)
        owners[order] = self._fill(hashes[order], loads[order].tolist(), used, total)
        return owners

    def _used(self) -> list[int]:
        placed = self._owners != NOBODY
        sums = np.zeros(len(self), dtype=np.int64)
        np.add.at(sums, self._owners[placed], self._key_loads[placed])
        return [int(load) for load in sums]

    def _settle(self) -> None:
        """Give every key that must not stay, or whose node is gone, a node among those of now."""
        if self._settled is self.nodes or not any(self._weights.values()):
            return
        if len(self._hashes):
            position = {id: i for i, id in enumerate(self.nodes)}
            now = np.array([*(position.get(id, NOBODY) for id in self._settled), NOBODY], dtype=np.int32)
            self._owners = now[self._owners]  # NOBODY, -1, is the last of them
            self._owners[~self._keep(self._owners)] = NOBODY
            away = self._owners == NOBODY
            self._owners[away] = self._distribute(self._hashes[away], self._key_loads[away], self._used())
        self._settled = self.nodes

    # -- nodes and copies -----------------------------------------------------------------------------------------

    def _adding(self, id: str, weight: float) -> None:
        self._ring.add_node(id, weight)

    def _removing(self, id: str) -> None:
        # A node that leaves and comes back between two look-ups is another one: its keys have no node meanwhile.
        if id in self._settled:
            self._owners[self._owners == self._settled.index(id)] = NOBODY
            self._settled = tuple("" if each == id else each for each in self._settled)
        self._ring.remove_node(id)

    def _changed(self) -> None:
        pass

    def _parameters(self) -> dict[str, Any]:
        self._settle()
        state = {
            "hashes": _pack(self._hashes.astype("<u8")),
            "owners": _pack(self._owners.astype("<i4")),
            "loads": _pack(self._key_loads.astype("<i8")),
        }
        return {"virtual_nodes": self._ring.virtual_nodes, **({"state": state} if len(self._hashes) else {})}

    def _restore(self, data: dict[str, Any]) -> None:
        if not data:
            return
        hashes = np.frombuffer(b64decode(data["hashes"], validate=True), dtype="<u8").astype(np.uint64)
        owners = np.frombuffer(b64decode(data["owners"], validate=True), dtype="<i4").astype(np.int32)
        loads = np.frombuffer(b64decode(data["loads"], validate=True), dtype="<i8").astype(np.int64)
        lengths = {len(hashes), len(owners), len(loads)}
        if len(lengths) > 1 or (hashes[1:] <= hashes[:-1]).any() or (loads < 0).any():
            raise InvalidArgumentError(f"data do not describe a {self.noun}: the keys that it remembers do not fit")
        if ((owners < NOBODY) | (owners >= len(self))).any():
            raise InvalidArgumentError(f"data do not describe a {self.noun}: a key is on a node that is not there")
        self._hashes, self._owners, self._key_loads = hashes, owners, loads
        self._settled = self.nodes if (owners != NOBODY).all() else (*self.nodes, "")


def _whole_loads(loads: ArrayLike, keys: int) -> NDArray[np.int64]:
    given = np.asarray(loads)
    if given.shape != (keys,) or (keys and given.dtype.kind not in "iu"):
        raise InvalidArgumentError(
            f"loads must be whole numbers, one for each of {keys} keys, not {given.dtype} of shape {given.shape}"
        )
    if keys and (int(given.min()) < 0 or int(given.max()) > _MAX_LOAD):
        wrong = int(given.min()) if int(given.min()) < 0 else int(given.max())
        raise InvalidArgumentError(f"loads must be from 0 to 2**40, not {shown(wrong)}: count in a larger unit")
    return given.astype(np.int64)


def _pack(array: NDArray[Any]) -> str:
    return b64encode(array.tobytes()).decode()
