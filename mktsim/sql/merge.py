"""Merge the groups of many partials without SQL: the hot half of combine.

Theory of operation
-------------------
A partial of a grouped statement has key columns and, for each aggregate, columns that merge by SUM, MIN, MAX or an
exact sum. SQLite's GROUP BY under the collation BINARY puts together what Python's dictionaries put together: integers
and floats by value, text by its characters, blobs by their bytes, NULL with NULL. So rows are gathered in a dictionary,
at a tenth of what inserting, sorting and stepping an aggregate of ours costs, and each group is merged by functions
that run in C. Groups come out in the order in which they were first seen.

What this does not do
---------------------
Collations other than BINARY, and extremes of mixed types: it says so, and SQL does the work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from mktsim.sql.exact import merge_partials
from mktsim.sqlite import Value

Row = tuple[Any, ...]
_NUMBERS: Final = {int, float}
#: Rows that are held before they are merged: as many as stay in a processor's cache.
_HELD: Final = 4_096


class Undecided(Exception):
    """These values are SQL's to compare."""


def extreme(choose: Callable[[Iterable[Any]], Any]) -> Callable[[Sequence[Value]], Value]:
    """Return what merges by `min` or `max` and raises :class:`Undecided` where types are mixed."""

    def merged(values: Sequence[Value]) -> Value:
        present = [value for value in values if value is not None]
        kinds = set(map(type, present))
        if not kinds <= _NUMBERS and kinds != {str}:
            raise Undecided
        return choose(present) if present else None

    return merged


#: How a column merges, by the name under which a :class:`~mktsim.sql.plan.Combine` has it.
MERGES: Final[dict[str, Callable[[Sequence[Any]], Value]]] = {
    "SUM": sum,
    "MIN": extreme(min),
    "MAX": extreme(max),
    "mktsim_sum_merge": merge_partials,
}


class GroupFold:
    """Merges the rows of partials as they come, so that few are held, and those while they are in a processor's cache.

    Parameters
    ----------
    merges : sequence of str
        For each column a name in :data:`MERGES`, or the empty string for a key.

    Examples
    --------
    >>> fold = GroupFold(("", "SUM"))
    >>> fold.append(("acme", ([("a", 1), ("b", 2)],)))
    >>> fold.append(("widgets", ([("a", 5)],)))
    >>> fold.result()
    [('acme', ([('a', 6), ('b', 2)],))]
    """

    __slots__ = ("_groups", "_held", "_key_of", "_most", "_place", "_steps", "decided")

    def __init__(self, merges: Sequence[str]) -> None:
        keys = [place for place, merge in enumerate(merges) if not merge]
        self._key_of: Callable[[Row], Any] = itemgetter(*keys) if keys else lambda row: ()
        self._steps = [MERGES[merge] if merge else itemgetter(0) for merge in merges]
        self._groups: defaultdict[Any, list[Row]] = defaultdict(list)
        self._place: Any = None
        self._held = 0
        self._most = _HELD
        #: Whether every group was merged to one row; where not, several rows of it stand side by side.
        self.decided = True

    def append(self, segment: tuple[Any, Sequence[list[Row]]]) -> None:
        """Take in one segment: a place, and the rows of one statement."""
        place, (rows, *_) = segment
        if self._place is None:
            self._place = place
        groups, key_of = self._groups, self._key_of
        for row in rows:
            groups[key_of(row)].append(row)
        self._held += len(rows)
        if self._held > self._most:
            self._merge()

    def _merge(self) -> None:
        """Merge each group to one row, where that can be decided here."""
        held = 0
        for group in self._groups.values():
            if len(group) > 1:
                columns = zip(*group, strict=True)
                try:
                    group[:] = [tuple([step(column) for step, column in zip(self._steps, columns, strict=True)])]
                except Undecided:
                    self.decided = False
            held += len(group)
        self._held = held
        self._most = max(_HELD, 2 * held)  # All groups are gone through: not more often than they double.

    def result(self) -> list[Any]:
        """Return what has been taken in as one segment, at the first place; nothing where there was no row."""
        self._merge()
        rows = [row for group in self._groups.values() for row in group]
        return [(self._place, (rows,))] if rows else []

    def take(self) -> list[Any]:
        """Return what :meth:`result` does, and begin anew."""
        taken = self.result()
        self._groups.clear()
        self._place = None
        self._held = 0
        self._most = _HELD
        return taken


def merge_groups(segments: Iterable[tuple[Any, Sequence[list[Row]]]], merges: Sequence[str]) -> list[Any] | None:
    """Merge the rows of segments that agree in their keys, or return None where that is SQL's to do.

    Parameters
    ----------
    segments : iterable of (place, rows for one statement)
        In the order of vendors.
    merges : sequence of str
        For each column a name in :data:`MERGES`, or the empty string for a key.

    Returns
    -------
    list of (place, (rows,))
        All groups at the first place.

    Examples
    --------
    >>> merge_groups([("acme", ([("a", 1), ("b", 2)],)), ("widgets", ([("a", 5)],))], ("", "SUM"))
    [('acme', ([('a', 6), ('b', 2)],))]
    """
    fold = GroupFold(merges)
    for segment in segments:
        fold.append(segment)
    merged = fold.result()
    return merged if fold.decided else None
