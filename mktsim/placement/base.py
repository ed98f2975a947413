"""What every placement offers, and the one hash that all of them place keys by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError

_CHUNK: Final = 65_536  # keys hashed at a time: bounds the memory that their digests take
_KEY_HASH: Final = hashlib.blake2b(digest_size=8, person=b"mktsim.key")
_copy: Final = _KEY_HASH.copy  # copying a state costs half of what making one does

Hashes = NDArray[np.uint64]
GOLDEN: Final = 0x9E3779B97F4A7C15
_FACTORS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK: Final = (1 << 64) - 1


@runtime_checkable
class Placement(Protocol):
    """Decides which node holds a key. Nodes and keys are strings.

    ``get_node(key)`` and ``assign([key])`` always agree. What they answer depends on the nodes, their weights and, for
    the placements that look at load, on what was placed before; never on the process, the platform or the version.

    Examples
    --------
    Any class with these methods will do; those of this room have them.

    >>> from mktsim.placement import ConsistentHashRing
    >>> ring: Placement = ConsistentHashRing(["s0", "s1", "s2"])
    >>> ring.get_node("acme"), ring.get_nodes("acme", 2)
    ('s0', ('s0', 's1'))
    >>> [ring.nodes[position] for position in ring.assign(["acme", "bolt"])]
    ['s0', 's0']
    """

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes in the order in which they were added."""

    def get_node(self, key: str) -> str:
        """Return the node that holds `key`."""

    def get_nodes(self, key: str, n: int) -> tuple[str, ...]:
        """Return the `n` distinct nodes that hold `key` and its replicas, the owner first."""

    def assign(self, keys: Iterable[str]) -> NDArray[np.intp]:
        """Return, for each key, the position in :attr:`nodes` of the node that holds it."""

    def add_node(self, id: str, weight: float = 1) -> None:
        """Add a node."""

    def remove_node(self, id: str) -> None:
        """Remove a node."""

    @staticmethod
    def moved(before: Placement, after: Placement, keys: Iterable[str]) -> NDArray[np.bool_]:
        """Tell which keys `after` puts on another node than `before`."""


def shown(value: object) -> str:
    """Return the start of a value's repr for a message; whole numbers of thousands of digits have none in Python."""
    return f"{value!r:.80}" if not isinstance(value, int) or abs(value) < 1 << 256 else "a number above 2**256"


def hash_key(key: str) -> int:
    """Hash one key to 64 bits: BLAKE2b of its UTF-8 form, lone surrogates included.

    Parameters
    ----------
    key : str
        Any text.

    Returns
    -------
    int
        From 0 to ``2**64 - 1``; the same in every process, on every platform.

    Raises
    ------
    InvalidArgumentError
        If `key` is not a string.

    Examples
    --------
    >>> hash_key("acme")
    13466845281110880840
    """
    if not isinstance(key, str):
        raise InvalidArgumentError(f"a key must be a string, not {shown(key)}")
    state = _copy()
    state.update(key.encode("utf-8", "surrogatepass"))
    return int.from_bytes(state.digest(), "little")


def hash_keys(keys: Iterable[str]) -> NDArray[np.uint64]:
    """Hash many keys: ``hash_key`` of each, at about a quarter of a microsecond.

    Parameters
    ----------
    keys : iterable of str
        A list, an ndarray, a pandas Series or Index, or any other iterable of strings.

    Returns
    -------
    ndarray of uint64, shape (number of keys,)

    Raises
    ------
    InvalidArgumentError
        If `keys` is one string, or any element is none (None and NaN included); the message says which.

    Examples
    --------
    >>> hash_keys(["acme", "bolt"]).dtype, int(hash_keys(["acme"])[0]) == hash_key("acme")
    (dtype('uint64'), True)
    """
    listed = _as_list(keys)
    hashes = np.empty(len(listed), dtype=np.uint64)
    for start in range(0, len(listed), _CHUNK):
        chunk = listed[start : start + _CHUNK]
        digests = []
        try:
            for key in chunk:  # Hot: the ring's benchmark guards it.
                state = _copy()
                state.update(key.encode())
                digests.append(state.digest())
        except (UnicodeEncodeError, AttributeError):
            hashes[start : start + len(chunk)] = [_hash_at(start + i, key) for i, key in enumerate(chunk)]
        else:
            hashes[start : start + len(chunk)] = np.frombuffer(b"".join(digests), dtype="<u8")
    return hashes


def _as_list(keys: Iterable[str]) -> list[str]:
    if isinstance(keys, str | bytes):
        raise InvalidArgumentError(f"keys must be many strings, not one: put {keys!r:.80} into a list")
    if getattr(keys, "ndim", 1) != 1:
        raise InvalidArgumentError(f"keys must have one dimension: the {type(keys).__name__} given has another number")
    # numpy and pandas make a list of Python strings much faster than iteration does.
    to_list = getattr(keys, "tolist", None)
    try:
        return to_list() if to_list is not None else list(keys)
    except TypeError:
        raise InvalidArgumentError(f"keys must be an iterable of strings, not {keys!r:.80}") from None


def _hash_at(position: int, key: str) -> int:
    try:
        return hash_key(key)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{error} (at position {position} of keys)") from None


def mix(z: Hashes) -> Hashes:
    """Scramble 64-bit words, one to one, in their own memory: the finaliser of SplitMix64 (Steele et al. 2014)."""
    first, second = _FACTORS
    z ^= z >> np.uint64(30)
    z *= np.uint64(first)
    z ^= z >> np.uint64(27)
    z *= np.uint64(second)
    z ^= z >> np.uint64(31)
    return z


def mix_one(z: int) -> int:
    """Scramble one 64-bit word as :func:`mix` does.

    Examples
    --------
    >>> mix_one(1) == int(mix(np.array([1], np.uint64))[0])
    True
    """
    first, second = _FACTORS
    z = (z ^ z >> 30) * first & _MASK
    z = (z ^ z >> 27) * second & _MASK
    return z ^ z >> 31


def node_seeds(ids: Iterable[str]) -> Hashes:
    """Hash the ids of nodes to 64 bits each: BLAKE2b of their UTF-8 form, in a domain apart from that of keys."""
    digests = b"".join(
        hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"mktsim.node").digest()
        for id in ids
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def moved(before: Placement, after: Placement, keys: Iterable[str]) -> NDArray[np.bool_]:
    """Tell which keys another placement puts on another node.

    Parameters
    ----------
    before, after : Placement
        The two placements; nodes are the same where their ids are.
    keys : iterable of str
        The keys to compare.

    Returns
    -------
    ndarray of bool, shape (number of keys,)

    Raises
    ------
    InvalidArgumentError
        If a key is no string.
    EmptyFleetError
        If there are keys and a placement has no node to hold them.

    Examples
    --------
    A fifth node takes about a fifth of the keys from the four, and no key moves between these.

    >>> from mktsim.placement import ConsistentHashRing
    >>> four, five = (ConsistentHashRing([f"s{i}" for i in range(n)], virtual_nodes=1_000) for n in (4, 5))
    >>> keys = [f"vendor-{i}" for i in range(10_000)]
    >>> changed = moved(four, five, keys)
    >>> round(float(changed.mean()), 2)
    0.19
    >>> {five.get_node(key) for key, has_moved in zip(keys, changed) if has_moved}
    {'s4'}
    """
    listed = _as_list(keys)
    old, new = before.assign(listed), after.assign(listed)
    position = {node: i for i, node in enumerate(after.nodes)}
    renumbered = np.array([position.get(node, -1) for node in before.nodes], dtype=np.intp)
    return np.asarray(renumbered[old] != new)
