"""Group the rows of many vendors at once, in place of grouping each vendor's.

Rules
-----
* The partials are those that the grouped statement's would merge to, bit for bit: a row is a group of one.
* Only what merges without SQL is grouped here (`mktsim.sql.merge`): keys under BINARY, counts, exact sums, extremes.
  Extremes of mixed types stay rows side by side, and SQL decides.
* A vendor with more than `_MOST` rows is asked for its groups, so that memory is bounded by vendors, not by rows.

Theory of operation
-------------------
``SELECT category, AVG(price) FROM products GROUP BY category`` makes SQLite sort ten rows of a vendor and call back
into Python for each of six groups, to hand up six partials that are merged with thousands of others. The ten rows as
they are cost less than the sort; some thousands of them are grouped by one dictionary and summed in C at once. So a
vendor is asked for what the statement would group, at most `_MOST` + 1 rows; one that has more is asked again, for its
groups, and where several in turn had more the rest are asked for groups at once.

*Worked example.* Two vendors send ``(a, 1.0), (b, 2.0)`` and ``(a, 3.0)``: the scan hands up ``(a, sum 4.0, count 2)``
and ``(b, sum 2.0, count 1)``.

*Measured* (`benchmarks/`, fan-out): COUNT and AVG by category of ten products a vendor takes 0.7 of the time.

What this does not do
---------------------
Statements without an exact sum stay as they are: SQLite counts faster than rows travel.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from mktsim.sql.exact import partial_sum
from mktsim.sql.merge import GroupFold, Undecided, extreme
from mktsim.sql.plan import Binder, Plan, positional
from mktsim.sqlite import Value

Row = tuple[Any, ...]
#: Rows of one vendor that travel ungrouped.
_MOST: Final = 256
#: Rows that are held before they are grouped: enough for groups of some size, and within a processor's cache.
_HELD: Final = 8_192
#: So many vendors more with many rows than with few, and all are asked for groups.
_PERSISTENT: Final = 4

#: What makes a partial's column of a group's values, by the name under which :class:`Ungrouped` has it.
MAKES: Final[dict[str, Callable[[Sequence[Any]], Value]]] = {
    "COUNT(*)": len,
    "COUNT": lambda values: len(values) - values.count(None),
    "MIN": extreme(min),
    "MAX": extreme(max),
    "mktsim_sum": lambda values: partial_sum(list(values)),
}
#: The same of a group of one.
_ALONE: Final[dict[str, Callable[[Any], Value]]] = {
    "COUNT(*)": lambda value: 1,
    "COUNT": lambda value: int(value is not None),
    "MIN": lambda value: value,
    "MAX": lambda value: value,
    "mktsim_sum": lambda value: partial_sum([value]),
}


@dataclass(frozen=True, slots=True)
class Ungrouped:
    """How a vendor is asked for the rows that a scatter statement would group.

    Attributes
    ----------
    sql, binders : str, tuple
        Keys first, then the arguments of aggregates.
    keys : int
        How many keys.
    makes : tuple of (str, int)
        For each column of the partial how it is made, a name in :data:`MAKES` or the empty string for a key, and of
        which column of a row.
    """

    sql: str
    binders: tuple[Binder, ...]
    keys: int
    makes: tuple[tuple[str, int], ...]

    @classmethod
    def build(cls, columns: Sequence[tuple[str, str]], source: str, condition: str) -> Ungrouped | None:
        """Make it from normalised text, or return None where it would not pay.

        Parameters
        ----------
        columns : sequence of (how, expression)
            For each column of the partial.
        source, condition : str
            What follows FROM, and WHERE with what follows it.
        """
        if not any(how == "mktsim_sum" for how, _ in columns):
            return None
        keys = [shown for how, shown in columns if not how]
        arguments = list(dict.fromkeys(shown for how, shown in columns if how and shown))
        places = {("", shown): place for place, shown in enumerate(keys)}
        places |= {("value", shown): len(keys) + place for place, shown in enumerate(arguments)}
        makes = tuple((how, places.get(("value" if how else "", shown), 0)) for how, shown in columns)
        text = f"SELECT {', '.join(keys + arguments)} FROM {source}{condition} LIMIT {_MOST + 1}"
        return cls(*positional(text), len(keys), makes)

    def bind(self, bind: Callable[[tuple[Binder, ...]], tuple[Value, ...]]) -> UngroupedRequest:
        """Return what a scan is asked."""
        return UngroupedRequest((self.sql, bind(self.binders)), self.keys, self.makes)


@dataclass(frozen=True, slots=True)
class UngroupedRequest:
    """An :class:`Ungrouped` with values bound: what travels with a scatter request."""

    statement: tuple[str, tuple[Value, ...]]
    keys: int
    makes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Folding:
    """What a scan does with the rows of the one statement as they come: merge them, and perhaps group them first.

    Attributes
    ----------
    merges : tuple of str
        How partials merge: see `mktsim.sql.merge`.
    ungrouped : UngroupedRequest or None
        Where each vendor need not group.
    every : int
        After so many vendors that have rows a new partial begins; 0 for one partial of all.
    ends : tuple of str
        After each of these vendors a new partial begins; ascending.

    Examples
    --------
    >>> fold = Folding(("", "SUM"), every=2).begin(("", ()))
    >>> for vendor_id in ("acme", "bolt", "core"):
    ...     fold.append((vendor_id, ([("a", 1)],)))
    >>> fold.result()
    [('acme', ([('a', 2)],)), ('core', ([('a', 1)],))]
    """

    merges: tuple[str, ...]
    ungrouped: UngroupedRequest | None = None
    every: int = 0
    ends: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, bind: Callable[[tuple[Binder, ...]], tuple[Value, ...]]) -> Folding | None:
        """Return what a plan allows, None where SQL alone merges its partials."""
        if plan.combine is None or not plan.combine.merges:
            return None
        return cls(plan.combine.merges, None if plan.ungrouped is None else plan.ungrouped.bind(bind))

    def begin(self, statement: tuple[str, Sequence[Value]]) -> GroupFold | RowFold | BlockFold:
        """Return what takes the rows of one scan in."""
        fold: GroupFold | RowFold = GroupFold(self.merges)
        if self.ungrouped is not None:
            fold = RowFold(self.ungrouped, statement, self.merges)
        return BlockFold(fold, self.every, self.ends) if self.every or self.ends else fold


class RowFold:
    """Groups rows as they come, and merges what they make.

    Parameters
    ----------
    request : UngroupedRequest
        What is asked of a vendor that has few rows.
    statement : (str, values)
        The grouped statement, for one that has many.
    merges : sequence of str
        How partials merge: see `mktsim.sql.merge`.

    Examples
    --------
    >>> request = UngroupedRequest(("SELECT k, x FROM t", ()), 1, (("", 0), ("mktsim_sum", 1), ("COUNT", 1)))
    >>> fold = RowFold(request, ("SELECT k, mktsim_sum(x), COUNT(x) FROM t GROUP BY k", ()),
    ...                ("", "mktsim_sum_merge", "SUM"))
    >>> fold.append(("acme", ([("a", 1.5), ("b", 2.0)],)))
    >>> fold.append(("bolt", ([("a", None), ("a", 2.5)],)))
    >>> fold.result()
    [('acme', ([('a', 4.0, 2), ('b', 2.0, 1)],))]
    """

    __slots__ = ("_grouped", "_is_grouped", "_keys", "_makes", "_many", "_partials", "_place", "_rows",
                 "done", "sql", "values")  # fmt: skip

    def __init__(
        self, request: UngroupedRequest, statement: tuple[str, Sequence[Value]], merges: Sequence[str]
    ) -> None:
        self.sql, self.values = request.statement
        self._grouped = statement
        self._partials = GroupFold(merges)
        self._keys = request.keys
        self._makes = request.makes
        self._rows: list[Row] = []
        self._place: Any = None
        self._is_grouped = False  # what the vendor asked last has sent
        self._many = 0
        #: Whether no later vendor has anything to add: never.
        self.done = False

    @property
    def decided(self) -> bool:
        """Whether every group was merged to one row; where not, several rows of it stand side by side."""
        return self._partials.decided

    def ask(self, execute: Callable[[str, Sequence[Value]], Any]) -> list[Row]:
        """Ask the next vendor, whose statements `execute` runs; what it returns is to be appended."""
        rows: list[Row] = execute(self.sql, self.values).fetchall()
        if self._many >= _PERSISTENT:
            return rows
        self._is_grouped = len(rows) > _MOST
        if self._is_grouped:
            self._many += 1
            rows = execute(*self._grouped).fetchall()
            if self._many == _PERSISTENT:
                self.sql, self.values = self._grouped[0], tuple(self._grouped[1])
        elif self._many:
            self._many -= 1
        return rows

    def append(self, segment: tuple[Any, Sequence[list[Row]]]) -> None:
        """Take in what one vendor has sent: a place, and the rows."""
        place, (rows, *_) = segment
        if self._place is None:
            self._place = place
        if self._is_grouped:
            self._partials.append((self._place, (rows,)))
            return
        self._rows.extend(rows)
        if len(self._rows) > _HELD:
            self._make()

    def _make(self) -> None:
        """Make partials of the rows that are held."""
        rows, self._rows = self._rows, []
        keys, makes = self._keys, self._makes
        groups: defaultdict[Any, list[Any]] = defaultdict(list)
        made: list[Row] = []
        if keys == 1 and rows and len(rows[0]) == 2:
            for key, value in rows:
                groups[key].append(value)
            for key, values in groups.items():
                try:
                    made.append(tuple([MAKES[how](values) if how else key for how, _ in makes]))
                except Undecided:
                    made += [tuple([_ALONE[how](value) if how else key for how, _ in makes]) for value in values]
        else:
            key_of: Callable[[Row], Any] = itemgetter(*range(keys)) if keys else lambda row: ()
            for row in rows:
                groups[key_of(row)].append(row)
            for group in groups.values():
                first, columns = group[0], list(zip(*group, strict=True))
                try:
                    made.append(tuple([MAKES[how](columns[at]) if how else first[at] for how, at in makes]))
                except Undecided:
                    made += [tuple([_ALONE[how](row[at]) if how else row[at] for how, at in makes]) for row in group]
        if made:
            self._partials.append((self._place, (made,)))

    def result(self) -> list[Any]:
        """Return what has been taken in as one segment of partials, at the first place; nothing where no row was."""
        self._make()
        return self._partials.result()

    def take(self) -> list[Any]:
        """Return what :meth:`result` does, and begin anew."""
        self._make()
        self._place = None
        return self._partials.take()


class BlockFold:
    """Folds vendors block by block.

    Parameters
    ----------
    fold : GroupFold or RowFold
        What folds one block.
    every, ends
        Where blocks end: see :class:`Folding`.
    """

    __slots__ = ("_count", "_done", "_ends", "_every", "_fold", "_passed")

    def __init__(self, fold: GroupFold | RowFold, every: int, ends: Sequence[str]) -> None:
        self._fold = fold
        self._every = every or sys.maxsize
        self._ends = ends
        self._passed = 0
        self._count = 0
        self._done: list[Any] = []

    @property
    def rows(self) -> RowFold | None:
        """What asks vendors for ungrouped rows, if they are to be asked so."""
        return self._fold if isinstance(self._fold, RowFold) else None

    def append(self, segment: tuple[Any, Sequence[list[Row]]]) -> None:
        """Take in one segment."""
        ends, passed = self._ends, self._passed
        while passed < len(ends) and segment[0] > ends[passed]:
            passed += 1
        if passed > self._passed or self._count == self._every:
            self._passed = passed
            self._count = 0
            self._done += self._fold.take()
        self._fold.append(segment)
        self._count += 1

    def result(self) -> list[Any]:
        """Return the partials of all blocks that had rows, each at the place of its first."""
        self._done += self._fold.take()
        return self._done
