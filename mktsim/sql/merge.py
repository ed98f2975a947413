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
Collations other than BINARY, and extremes of mixed types: :func:`merge_groups` says so, and SQL does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from mktsim.sql.exact import merge_partials
from mktsim.sqlite import Value

Row = tuple[Any, ...]
_NUMBERS: Final = {int, float}


class _Undecided(Exception):
    """These values are SQL's to compare."""


def _extreme(choose: Callable[[Iterable[Any]], Any]) -> Callable[[Sequence[Value]], Value]:
    def merged(values: Sequence[Value]) -> Value:
        present = [value for value in values if value is not None]
        kinds = set(map(type, present))
        if not kinds <= _NUMBERS and kinds != {str}:
            raise _Undecided
        return choose(present) if present else None

    return merged


#: How a column merges, by the name under which a :class:`~mktsim.sql.plan.Combine` has it.
MERGES: Final[dict[str, Callable[[Sequence[Any]], Value]]] = {
    "SUM": sum,
    "MIN": _extreme(min),
    "MAX": _extreme(max),
    "mktsim_sum_merge": merge_partials,
}


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
        Each group at the place where it was first seen.

    Examples
    --------
    >>> merge_groups([("acme", ([("a", 1), ("b", 2)],)), ("widgets", ([("a", 5)],))], ("", "SUM"))
    [('acme', ([('a', 6), ('b', 2)],))]
    """
    keys = [place for place, merge in enumerate(merges) if not merge]
    key_of: Callable[[Row], Any] = itemgetter(*keys) if keys else lambda row: ()
    groups: dict[Any, list[Row]] = {}
    first: list[Any] = []
    for place, parts in segments:
        for row in parts[0]:
            key = key_of(row)
            group = groups.get(key)
            if group is None:
                groups[key] = [row]
                first.append(place)
            else:
                group.append(row)
    steps = [MERGES[merge] if merge else itemgetter(0) for merge in merges]
    merged: dict[Any, list[Row]] = {}
    try:
        for place, group in zip(first, groups.values(), strict=True):
            row = group[0]
            if len(group) > 1:
                row = tuple([step(column) for step, column in zip(steps, zip(*group, strict=True), strict=True)])
            merged.setdefault(place, []).append(row)
    except _Undecided:
        return None
    return [(place, (rows,)) for place, rows in merged.items()]
