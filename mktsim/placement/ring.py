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

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from operator import index as as_integer
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import DuplicateError, EmptyFleetError, InvalidArgumentError, UnknownNodeError
from mktsim.placement.base import hash_key, hash_keys, moved, shown

MAX_TOKENS_PER_NODE: Final = 1 << 24
_SHOWN_NODES: Final = 20


@dataclass(frozen=True, slots=True)
class _Table:
    """The sorted tokens and, for each, the position of its owner in `ids`; one owner more closes the ring."""

    ids: tuple[str, ...]
    able: int  # nodes that own any token
    tokens: NDArray[np.uint64]
    owners: NDArray[np.int32]
    search: memoryview[int]  # of `tokens`: indexing it makes a Python int, which is what bisect compares fastest


class ConsistentHashRing:
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

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = (), *, virtual_nodes: int = 150) -> None:
        try:
            self._virtual_nodes = as_integer(virtual_nodes)
        except TypeError:
            raise InvalidArgumentError(f"virtual_nodes must be a whole number, not {shown(virtual_nodes)}") from None
        if not 1 <= self._virtual_nodes <= MAX_TOKENS_PER_NODE:
            raise InvalidArgumentError(
                f"virtual_nodes must be from 1 to {MAX_TOKENS_PER_NODE}, not {shown(virtual_nodes)}"
            )
        if isinstance(nodes, str | bytes):
            raise InvalidArgumentError(f"nodes must be many ids, not one string: put {nodes!r:.80} into a list")
        self._weights: dict[str, float] = {}
        self._table: _Table | None = None
        for id, weight in nodes.items() if isinstance(nodes, Mapping) else ((id, 1) for id in nodes):
            self.add_node(id, weight)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The ids in the order in which they were added."""
        return tuple(self._weights)

    @property
    def weights(self) -> dict[str, float]:
        """A copy of the weight of each node, in the order of :attr:`nodes`."""
        return dict(self._weights)

    @property
    def virtual_nodes(self) -> int:
        """Tokens of a node of weight 1."""
        return self._virtual_nodes

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and id in self._weights

    def add_node(self, id: str, weight: float = 1) -> None:
        """Add a node; the keys it takes are all that move.

        Parameters
        ----------
        id : str
            Any string but the empty one.
        weight : float
            Its share relative to a node of weight 1, to the precision of one token: ``round(weight * virtual_nodes)``
            tokens, though at least one. A node of weight 0 is known to the ring and holds nothing.

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
            raise DuplicateError(f"the ring already has a node {id!r:.80}")
        if not isinstance(weight, int | float | np.integer | np.floating) or not 0 <= weight < math.inf:
            raise InvalidArgumentError(f"weight of node {id!r:.80} must be 0 or a positive number, not {shown(weight)}")
        if weight > MAX_TOKENS_PER_NODE / self._virtual_nodes:
            raise InvalidArgumentError(
                f"weight of node {id!r:.80} times virtual_nodes must be at most {MAX_TOKENS_PER_NODE}: "
                f"scale all weights down, or use fewer virtual nodes than {self._virtual_nodes}"
            )
        self._weights[id] = float(weight) if isinstance(weight, float | np.floating) else int(weight)
        self._table = None

    def remove_node(self, id: str) -> None:
        """Remove a node; only its own keys move. The last one may go too: the ring is empty then.

        Raises
        ------
        UnknownNodeError
            If there is no such node.
        """
        if id not in self:
            raise UnknownNodeError(f"the ring has no node {id!r:.80}; it has {len(self)}: {self.nodes[:5]!r:.200}")
        del self._weights[id]
        self._table = None

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
        table = self._built()
        return table.ids[int(table.owners[bisect_left(table.search, place)])]

    def get_nodes(self, key: str, n: int) -> tuple[str, ...]:
        """Return the first `n` distinct nodes clockwise of `key`: its owner, then where its replicas belong.

        When the owner leaves, its keys go to the second of them.

        Raises
        ------
        InvalidArgumentError
            If `n` is negative or above the number of nodes that can hold keys, or `key` is no string.
        EmptyFleetError
            If no node has a weight above 0.
        """
        place = hash_key(key)
        table = self._built()
        if not isinstance(n, int | np.integer) or not 0 <= n <= table.able:
            raise InvalidArgumentError(
                f"n must be from 0 to {table.able}, the number of nodes that can hold keys, not {shown(n)}"
            )
        owners = table.owners[:-1]
        start, reach = bisect_left(table.search, place), 4 * int(n)
        while True:
            # Most keys find n nodes within the first few tokens; the reach doubles for those that do not.
            walk = owners[start : start + reach].tolist() + owners[: max(0, start + reach - len(owners))].tolist()
            found = list(dict.fromkeys(walk))
            if len(found) >= n:
                return tuple(table.ids[owner] for owner in found[:n])
            reach *= 2

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

        Notes
        -----
        About 0.3 us a key over 150,000 tokens, nearly all of it the hash.
        """
        hashes = hash_keys(keys)
        if not len(hashes):
            return np.empty(0, dtype=np.intp)
        table = self._built()
        return table.owners[np.searchsorted(table.tokens, hashes)].astype(np.intp)

    def shares(self) -> NDArray[np.float64]:
        """Return the exact share of the hash space each node owns, in the order of :attr:`nodes`; they add to 1."""
        table = self._built()
        arcs = (table.tokens - np.roll(table.tokens, 1)) / 2.0**64
        if not arcs[0]:  # All tokens are one: its arc is the whole ring, which is 0 modulo 2**64.
            arcs[0] = 1.0
        return np.bincount(table.owners[:-1], weights=arcs, minlength=len(self)).astype(np.float64, copy=False)

    moved = staticmethod(moved)

    def copy(self) -> ConsistentHashRing:
        """Return an equal ring that changes on its own: the usual `before` of :func:`moved`."""
        return ConsistentHashRing(self._weights, virtual_nodes=self._virtual_nodes)

    def to_dict(self) -> dict[str, Any]:
        """Return all that makes the ring, ready for JSON."""
        return {"placement": "ring", "virtual_nodes": self._virtual_nodes, "nodes": list(self._weights.items())}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConsistentHashRing:
        """Restore what :meth:`to_dict` returned.

        Raises
        ------
        InvalidArgumentError
            If `data` is not of that form.
        """
        try:
            if data["placement"] != "ring":
                raise InvalidArgumentError(f"data describe the placement {data['placement']!r:.80}, not a ring")
            ring = cls(virtual_nodes=data["virtual_nodes"])
            for id, weight in data["nodes"]:
                ring.add_node(id, weight)
        except InvalidArgumentError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(f"data do not describe a ring: {type(error).__name__}: {error}") from None
        return ring

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)  # The table is cheaper to make again than to send.

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

    def _built(self) -> _Table:
        if self._table is None:
            ids = self.nodes
            # Sorting by id first and by token with a stable sort gives a shared token to the id that sorts first.
            order = sorted(range(len(ids)), key=ids.__getitem__)
            counts = np.array([self._count(self._weights[ids[i]]) for i in order], dtype=np.intp)
            tokens = _tokens([ids[i] for i in order], counts)
            sorting = np.argsort(tokens, kind="stable")
            tokens = tokens[sorting]
            owners = np.repeat(np.array(order, dtype=np.int32), counts)[sorting]
            able = int(np.count_nonzero(counts))
            self._table = _Table(ids, able, tokens, np.append(owners, owners[:1]), memoryview(tokens.data))
        if not len(self._table.tokens):
            reason = "all its nodes have weight 0" if self._weights else "it has no nodes"
            raise EmptyFleetError(f"the ring cannot place a key: {reason}; add_node(id) first")
        return self._table

    def _count(self, weight: float) -> int:
        return max(1, round(weight * self._virtual_nodes)) if weight else 0


def _tokens(ids: list[str], counts: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Return ``counts[i]`` tokens of each id, node after node: SplitMix64 (Steele et al. 2014) from a digest on."""
    digests = b"".join(
        blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"mktsim.node").digest() for id in ids
    )
    seeds = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    firsts = np.cumsum(counts) - counts
    steps = (np.arange(1, counts.sum() + 1) - np.repeat(firsts, counts)).astype(np.uint64)
    z = np.repeat(seeds, counts) + steps * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    tokens: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return tokens
