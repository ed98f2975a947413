"""Partials kept between queries, so that a repeated aggregate visits only what was written since.

Rules
-----
* A kept partial speaks of the state at one change of a shard (`ShardSummaries.seq`); what changed later is visited.
* Only what merges in Python, exactly and in any order of vendors, is kept: see `mktsim.sql.merge`.
* What is kept is bounded in bytes; the answer of longest ago goes first.

Theory of operation
-------------------
Partials cannot be taken out of a sum again, for a minimum is no group. So the vendors of a shard, in the order of their
ids, are cut into blocks of `BLOCK`; the partials of a block are merged to one, sixteen of those to one of the next
level, and so on up to one for the shard. A vendor that was written, made, deleted or moved makes its block stale: the
block's vendors are visited, and the partials above it merged anew. With V vendors and c changed ones that is 16 c
visits and 16 c log16(V / 16) merges, and of the rest one partial a shard.

*Measured*, 100,000 vendors of ten products grouped by category, 100 of them changed, one process: blocks of 8, 16, 32
and 64 vendors take 11.8, 8.5, 5.5 and 3.0 MB, and 107, 127, 170 and 239 ms of processor time, where the first answer
took 3 s. Sixteen is a compromise.

What this does not do
---------------------
Two queries of one statement at a time do not share: the second finds nothing kept.
"""

from __future__ import annotations

import marshal
import sys
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mktsim.sql.merge import merge_groups
from mktsim.sqlite import Value

Row = tuple[Any, ...]
Segment = tuple[Any, Sequence[list[Row]]]

#: Vendors that have rows, in one block.
BLOCK: Final = 16
_FAN: Final = 16
#: Bytes of partials that a coordinator keeps.
KEPT_BYTES: Final = 192 << 20


#: Bytes of a statement and its values, past which nothing is kept of it.
_MOST_KEY_BYTES: Final = 16 << 10


class Unmergeable(Exception):
    """These partials are SQL's to merge."""


@dataclass(slots=True)
class Blocks:
    """The partials of one shard, by blocks of its vendors.

    Attributes
    ----------
    starts : list of str
        The id from which each block goes; the first goes from the empty one.
    levels : list of list of bytes
        Partials of blocks, of sixteen blocks, and so on; the last level has one.
    merges : tuple of str
        How columns merge; see `mktsim.sql.merge`.

    Examples
    --------
    >>> blocks = Blocks.build([("acme", ([("a", 1)],)), ("bolt", ([("a", 2), ("b", 5)],))], ("", "SUM"), 1_000)
    >>> blocks.total()
    [('a', 3), ('b', 5)]
    >>> blocks.replace({0: [("acme", ([("a", 7)],))]})
    >>> blocks.total()
    [('a', 7)]
    """

    starts: list[str]
    levels: list[list[bytes]]
    merges: tuple[str, ...]

    @classmethod
    def build(
        cls, segments: Sequence[Segment], merges: tuple[str, ...], most_bytes: int, *, is_folded: bool = False
    ) -> Blocks | None:
        """Return the blocks of what a shard's vendors sent, in their order; None where that is not to be kept.

        With `is_folded` each segment is a block already.
        """
        starts, level, held = [""], [], 0
        size = 1 if is_folded else BLOCK
        try:
            for first in range(0, max(1, len(segments)), size):
                if first:
                    starts.append(segments[first][0])
                level.append(_merged(segments[first : first + size], merges))
                held += len(level[-1])
                if held > most_bytes:
                    return None
            levels = [level]
            while len(levels[-1]) > 1:
                below = levels[-1]
                levels.append([_merged(_read(below[at : at + _FAN]), merges) for at in range(0, len(below), _FAN)])
        except Unmergeable:
            return None
        return cls(starts, levels, merges)

    def block_of(self, vendor_id: str) -> int:
        """Return the block that a vendor is in, or would be in."""
        return bisect_right(self.starts, vendor_id) - 1

    def vendors(self, block: int, ids: Sequence[str]) -> Sequence[str]:
        """Return those of a shard's sorted ids that are in a block."""
        first = bisect_left(ids, self.starts[block])
        last = bisect_left(ids, self.starts[block + 1]) if block + 1 < len(self.starts) else len(ids)
        return ids[first:last]

    def replace(self, blocks: dict[int, list[Segment]]) -> None:
        """Merge some blocks anew from what their vendors sent.

        Raises
        ------
        Unmergeable
            These blocks are then of no use any more.
        """
        for block, segments in blocks.items():
            self.levels[0][block] = _merged(segments, self.merges)
        stale = set(blocks)
        for below, level in zip(self.levels, self.levels[1:], strict=False):
            stale = {place // _FAN for place in stale}
            for place in stale:
                level[place] = _merged(_read(below[place * _FAN : (place + 1) * _FAN]), self.merges)

    def total(self) -> list[Row]:
        """Return the partial of the whole shard."""
        rows: list[Row] = marshal.loads(self.levels[-1][0])
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes held, about."""
        return sum(sum(map(len, level)) + 41 * len(level) for level in self.levels) + 80 * len(self.starts)


def _merged(segments: Iterable[Segment], merges: tuple[str, ...]) -> bytes:
    merged = merge_groups(segments, merges)
    if merged is None:
        raise Unmergeable
    return marshal.dumps([row for _, parts in merged for row in parts[0]])


def _read(partials: Iterable[bytes]) -> list[Segment]:
    return [(place, (marshal.loads(partial),)) for place, partial in enumerate(partials)]


@dataclass(slots=True)
class Kept:
    """The partials of one statement with its values.

    Attributes
    ----------
    shards : dict of str to (object, int, Blocks)
        By shard: the identity of its summaries, the change up to which it was seen, and its partials. The name alone
        does not tell a shard from one that was dropped and made anew.
    """

    shards: dict[str, tuple[object, int, Blocks]]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(blocks.nbytes for _, _, blocks in self.shards.values())


def _key_bytes(key: Any) -> int:
    sql, values = key
    return sys.getsizeof(sql) + sum(sys.getsizeof(value) for _, value, _ in values)


class PartialCache:
    """The partials of the statements asked last.

    Parameters
    ----------
    most_bytes : int
        How much it holds.

    Examples
    --------
    >>> cache = PartialCache()
    >>> cache.give(("q", ()), Kept({}))
    >>> cache.take(("q", ())), cache.take(("q", ()))
    (Kept(shards={}), None)
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.most_bytes = most_bytes
        self.nbytes = 0
        self._kept: OrderedDict[Any, Kept] = OrderedDict()
        self._sizes: dict[Any, int] = {}
        self._unfit: OrderedDict[Any, None] = OrderedDict()

    @staticmethod
    def key(sql: str, values: Sequence[Value]) -> Any:
        """Return the key of a statement with values, which tells 1 from 1.0, and 0.0 from -0.0."""
        return sql, tuple((type(value), value, repr(value) if isinstance(value, float) else "") for value in values)

    def take(self, key: Any) -> Kept | None:
        """Take what is kept of a statement out: whoever brings it up to date gives it back."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.nbytes -= self._sizes.pop(key)
        return kept

    def give(self, key: Any, kept: Kept) -> None:
        """Keep it, and forget others to make room."""
        self.take(key)
        size = kept.nbytes + _key_bytes(key)
        if size > self.most_bytes:
            self.is_unfit(key)
            return
        self._kept[key], self._sizes[key] = kept, size
        self.nbytes += size
        while self.nbytes > self.most_bytes:
            oldest = next(iter(self._kept))
            self.take(oldest)

    def is_unfit(self, key: Any) -> None:
        """Remember that the partials of a statement are too many, or not to be merged here."""
        self._unfit[key] = None
        while len(self._unfit) > 1_000:
            self._unfit.popitem(last=False)

    def fits(self, key: Any) -> bool:
        """Whether it may be worth while to keep the partials of a statement: none of very long values."""
        return _key_bytes(key) <= _MOST_KEY_BYTES and key not in self._unfit

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._sizes.clear()
        self._unfit.clear()
        self.nbytes = 0
