"""What all placements of this room share: named nodes with weights, the hashing of keys, dicts to store them in.

A placement says how its nodes hold a hash (`_one` for one, `_many` for an array) and gets the rest from here. Tables
are made when they are first needed after a change, so adding n nodes one by one makes one table, not n.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from operator import index as as_integer
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import DuplicateError, EmptyFleetError, InvalidArgumentError, UnknownNodeError
from mktsim.placement.base import Hashes, Placement, hash_key, hash_keys, moved, shown

VERSION = 1  # of the stored form; what an older one holds is read for ever


def whole(name: str, value: int, low: int, high: int) -> int:
    """Check a whole number given as an argument."""
    try:
        number = as_integer(value)
    except TypeError:
        raise InvalidArgumentError(f"{name} must be a whole number, not {shown(value)}") from None
    if not low <= number <= high:
        raise InvalidArgumentError(f"{name} must be from {low} to {high}, not {shown(value)}")
    return number


class NodePlacement(ABC):
    """A placement over named nodes with weights.

    Parameters
    ----------
    nodes : iterable of str, or mapping of str to float
        The first nodes, all of weight 1 or with the weights given.

    Raises
    ------
    InvalidArgumentError
        If an id is no string or empty, or a weight cannot be used.
    DuplicateError
        If an id comes twice.

    Examples
    --------
    >>> from mktsim.placement import RendezvousHash
    >>> placement = RendezvousHash({"small": 1, "large": 3})
    >>> keys = [f"vendor-{i}" for i in range(10_000)]
    >>> np.bincount(placement.assign(keys)).tolist()
    [2594, 7406]
    >>> placement.remove_node("large")
    >>> placement.nodes
    ('small',)
    """

    kind: ClassVar[str]  # how a stored placement names its class
    noun: ClassVar[str]  # how messages name it

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = ()) -> None:
        if isinstance(nodes, str | bytes):
            raise InvalidArgumentError(f"nodes must be many ids, not one string: put {nodes!r:.80} into a list")
        if not isinstance(nodes, Iterable):
            raise InvalidArgumentError(f"nodes must be ids in a list, or weights by id, not {shown(nodes)}")
        self._weights: dict[str, float] = {}
        self._ids: tuple[str, ...] | None = None
        self._sorted: list[int] | None = None
        for id, weight in nodes.items() if isinstance(nodes, Mapping) else ((id, 1) for id in nodes):
            self.add_node(id, weight)

    # -- what a placement adds ------------------------------------------------------------------------------------

    @abstractmethod
    def _one(self, place: int) -> int:
        """Return the position of the node that holds the key of this hash."""

    @abstractmethod
    def _many(self, hashes: Hashes) -> NDArray[np.intp]:
        """Return what `_one` returns for each of at least one hash."""

    @abstractmethod
    def _ranked(self, place: int, n: int) -> list[int]:
        """Return the positions of the first `n` distinct nodes for a hash, `n` at least 1."""

    @abstractmethod
    def _changed(self) -> None:
        """Forget the tables: the nodes are no longer those that they were made of."""

    def _parameters(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal placement, and the state that :meth:`_restore` takes."""
        return {}

    def _restore(self, data: dict[str, Any]) -> None:  # noqa: B027
        """Take back state that is no argument."""

    def _adding(self, id: str, weight: float) -> None:  # noqa: B027
        """Hear of a node before it is there, its id and weight checked; may refuse it."""

    def _removing(self, id: str) -> None:  # noqa: B027
        """Hear of a removal before it is done; may refuse it."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the arrays that look-ups read; they are made if they are not there yet."""

    # -- nodes ----------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[str, ...]:
        """The ids in the order in which they were added."""
        if self._ids is None:
            self._ids = tuple(self._weights)
        return self._ids

    @property
    def weights(self) -> dict[str, float]:
        """A copy of the weight of each node, in the order of :attr:`nodes`."""
        return dict(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and id in self._weights

    def add_node(self, id: str, weight: float = 1) -> None:
        """Add a node.

        Parameters
        ----------
        id : str
            Any string but the empty one.
        weight : float
            Its share relative to a node of weight 1. A node of weight 0 is known and holds nothing.

        Raises
        ------
        InvalidArgumentError
            If the id or the weight cannot be used.
        DuplicateError
            If the node is already there; to change a weight, remove the node and add it again.
        """
        if not isinstance(id, str) or not id:
            raise InvalidArgumentError(f"a node's id must be a string that is not empty, not {shown(id)}")
        if id in self._weights:
            raise DuplicateError(f"the {self.noun} already has a node {id!r:.80}")
        if not isinstance(weight, int | float | np.integer | np.floating) or not 0 <= weight < math.inf:
            raise InvalidArgumentError(f"weight of node {id!r:.80} must be 0 or a positive number, not {shown(weight)}")
        if weight and not 1e-300 <= weight <= 1e300:
            raise InvalidArgumentError(
                f"weight of node {id!r:.80} must be 0 or from 1e-300 to 1e300: scale all weights"
            )
        self._adding(id, weight)
        self._weights[id] = float(weight) if isinstance(weight, float | np.floating) else int(weight)
        self._ids = self._sorted = None
        self._changed()

    def remove_node(self, id: str) -> None:
        """Remove a node. The last one may go too: the placement is empty then, and its look-ups say so.

        Raises
        ------
        UnknownNodeError
            If there is no such node.
        """
        if id not in self:
            raise UnknownNodeError(
                f"the {self.noun} has no node {id!r:.80}; it has {len(self)}: {self.nodes[:5]!r:.200}"
            )
        self._removing(id)
        del self._weights[id]
        self._ids = self._sorted = None
        self._changed()

    def _able(self) -> list[int]:
        """Return the positions of the nodes that can hold keys, sorted by id; raise if there is none."""
        if self._sorted is None:
            ids = self.nodes
            self._sorted = sorted((i for i, weight in enumerate(self._weights.values()) if weight), key=ids.__getitem__)
        if not self._sorted:
            reason = "all its nodes have weight 0" if self._weights else "it has no nodes"
            raise EmptyFleetError(f"the {self.noun} cannot place a key: {reason}; add_node(id) first")
        return self._sorted

    # -- look-ups -------------------------------------------------------------------------------------------------

    def get_node(self, key: str) -> str:
        """Return the node that holds `key`.

        Raises
        ------
        InvalidArgumentError
            If `key` is no string; any string, the empty one too, is a key.
        EmptyFleetError
            If no node has a weight above 0.
        """
        place = hash_key(key)
        return self.nodes[self._one(place)]

    def get_nodes(self, key: str, n: int) -> tuple[str, ...]:
        """Return `n` distinct nodes for `key`: its owner, then where its replicas belong.

        Raises
        ------
        InvalidArgumentError
            If `n` is negative or above the number of nodes that can hold keys, or `key` is no string.
        EmptyFleetError
            If no node has a weight above 0.
        """
        place = hash_key(key)
        able = len(self._able())
        if not isinstance(n, int | np.integer) or not 0 <= n <= able:
            raise InvalidArgumentError(
                f"n must be from 0 to {able}, the number of nodes that can hold keys, not {shown(n)}"
            )
        ids = self.nodes
        return tuple(ids[position] for position in self._ranked(place, int(n))) if n else ()

    def assign(self, keys: Iterable[str]) -> NDArray[np.intp]:
        """Return the position in :attr:`nodes` of the node of each key, as :meth:`get_node` would find it.

        Parameters
        ----------
        keys : iterable of str
            A list, an ndarray, a pandas Series or Index, or any other iterable of strings.

        Returns
        -------
        ndarray of intp, shape (number of keys,)

        Raises
        ------
        InvalidArgumentError
            If any key is no string; the message says which.
        EmptyFleetError
            If there are keys and no node has a weight above 0.
        """
        return self.assign_hashes(hash_keys(keys))

    def assign_hashes(self, hashes: Hashes) -> NDArray[np.intp]:
        """Return what :meth:`assign` returns for the keys of these hashes: for who places the same keys many times.

        Parameters
        ----------
        hashes : ndarray of uint64
            From :func:`~mktsim.placement.hash_keys`.

        Raises
        ------
        InvalidArgumentError
            If it is no such array.
        EmptyFleetError
            If there are keys and no node has a weight above 0.
        """
        if not isinstance(hashes, np.ndarray) or hashes.dtype != np.uint64 or hashes.ndim != 1:
            raise InvalidArgumentError(f"hashes must be an array of uint64 from hash_keys, not {shown(hashes)}")
        return self._many(hashes) if len(hashes) else np.empty(0, dtype=np.intp)

    @staticmethod
    def moved(before: Placement, after: Placement, keys: Iterable[str]) -> NDArray[np.bool_]:
        """Return which keys have another owner: see :func:`mktsim.placement.moved`."""
        return moved(before, after, keys)

    # -- copies ---------------------------------------------------------------------------------------------------

    def copy(self) -> Self:
        """Return an equal placement that changes on its own: the usual `before` of :func:`moved`."""
        return type(self).from_dict(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return all that makes the placement, ready for JSON."""
        nodes = [list(item) for item in self._weights.items()]
        return {"placement": self.kind, "version": VERSION, **self._parameters(), "nodes": nodes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Restore what :meth:`to_dict` returned, in this version or an older one.

        Raises
        ------
        InvalidArgumentError
            If `data` is not of that form, or of a later version.
        """
        try:
            rest = dict(data)
            kind, version = rest.pop("placement"), rest.pop("version", 1)
            if kind != cls.kind:
                raise InvalidArgumentError(f"data describe the placement {kind!r:.80}, not a {cls.noun}")
            if version != VERSION:
                raise InvalidArgumentError(
                    f"data are of version {shown(version)} and this program reads version {VERSION}: update it"
                )
            nodes, state = rest.pop("nodes"), rest.pop("state", {})
            made = cls(**rest)
            for id, weight in nodes:
                made.add_node(id, weight)
            made._restore(dict(state))
        except InvalidArgumentError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArgumentError(
                f"data do not describe a {cls.noun}: {type(error).__name__}: {error!s:.200}"
            ) from None
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)  # Tables are cheaper to make again than to send.

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} nodes>"
