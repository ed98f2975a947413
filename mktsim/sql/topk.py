"""The first k rows of a scan, without every vendor sorting and sending k of its own.

Rules
-----
A row is left out only where k rows that the same scan has already found stand before it in the answer's order. What a
scan hands in therefore holds every row of its vendors that may be among the first k, each vendor's rows by rowid.

Theory of operation
-------------------
``ORDER BY rating DESC LIMIT 10`` travels as limit + offset = k. Most vendors have few rows that pass WHERE, so that
they are asked for them unsorted and at most k + 1; only one that has more is asked again, for the sorted first k. Once
k keys are known, the k-th best of them is a threshold: later vendors are asked only for rows that beat it. A scan goes
through its vendors in the answer's order, so that where the key is the only term of ORDER BY a row that merely equals
the threshold comes too late, and has to beat it strictly.

The threshold compares as ORDER BY does: the column stands behind a unary plus, which takes its affinity and leaves its
collation. Keys are compared in Python while the threshold is found: numbers with numbers and text with text, for which
Python's order is SQLite's; a scan that meets both, or a blob, goes on without threshold.

Without ORDER BY the first k rows are those that a scan meets first: once it has them, no later vendor is asked.

What this does not do
---------------------
A threshold is never carried from one scan into another: a scan may be repeated, hedged or given up, and its rows would
count twice or for nothing.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mktsim.sql.plan import Binder, positional
from mktsim.sqlite import Value

Row = tuple[Any, ...]
#: Past so many rows the threshold comes late and its upkeep costs more than it spares.
_MOST: Final = 1_000


@dataclass(frozen=True, slots=True)
class TopK:
    """How vendors are asked for rows that may be among the first k.

    Attributes
    ----------
    unsorted, unsorted_binders : str, tuple
        The scatter statement without ORDER BY, limited to k + 1 rows.
    bounded, bounded_binders : str, tuple
        The same with a condition on the threshold; empty where none can be had.
    key : int
        The column of the partial that ORDER BY's first term names.
    descending : bool
        Whether large keys come first.
    first_come : bool
        Whether the first k rows met are the answer's: nothing is ordered, and `unsorted` is limited to k.
    """

    unsorted: str
    unsorted_binders: tuple[Binder, ...]
    bounded: str = ""
    bounded_binders: tuple[Binder, ...] = ()
    key: int = -1
    descending: bool = False
    first_come: bool = False

    @classmethod
    def build(
        cls, unsorted: str, bounded: str = "", *, key: int = -1, descending: bool = False, first_come: bool = False
    ) -> TopK:
        """Make it from normalised text."""
        bound = positional(bounded) if bounded else ("", ())
        return cls(*positional(unsorted), *bound, key, descending, first_come)

    def bind(self, k: int, bind: Callable[[tuple[Binder, ...]], tuple[Value, ...]]) -> TopKRequest | None:
        """Return what a scan is asked, or None where k is too large for this to pay."""
        if not 0 < k <= _MOST:
            return None
        place = self.bounded_binders.index("bound") if self.bounded else -1
        return TopKRequest(
            k, (self.unsorted, bind(self.unsorted_binders)), (self.bounded, bind(self.bounded_binders)), place,
            self.key, self.descending, self.first_come,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TopKRequest:
    """A :class:`TopK` with values bound: what travels with a scatter request.

    Attributes
    ----------
    k : int
        Rows that matter.
    unsorted, bounded : (str, values)
        Statements; `bounded` has an empty text where there is no threshold.
    place : int
        Where among the values of `bounded` the threshold stands.
    key, descending, first_come : int, bool, bool
        As in :class:`TopK`.
    """

    k: int
    unsorted: tuple[str, tuple[Value, ...]]
    bounded: tuple[str, tuple[Value, ...]]
    place: int
    key: int
    descending: bool
    first_come: bool = False


class RunningTopK:
    """The threshold of one scan, as it rises.

    Parameters
    ----------
    request : TopKRequest
        What is asked.
    statement : (str, values)
        The sorted statement, for a vendor that has more rows than matter.

    Attributes
    ----------
    sql, values : str, tuple
        What to ask the next vendor.
    done : bool
        Whether no later vendor has anything to add.

    Examples
    --------
    >>> request = TopKRequest(2, ("SELECT x FROM t LIMIT 3", ()), ("SELECT x FROM t WHERE +x > ? LIMIT 3", (None,)),
    ...                       0, 0, True)
    >>> top = RunningTopK(request, ("SELECT x FROM t ORDER BY x DESC LIMIT 2", ()))
    >>> top.add([(5,), (1,)])
    >>> top.add([(3,)])
    >>> top.sql, top.values
    ('SELECT x FROM t WHERE +x > ? LIMIT 3', (3,))
    """

    __slots__ = ("_best", "_found", "_kind", "_request", "done", "k", "sorted", "sql", "values")

    def __init__(self, request: TopKRequest, statement: tuple[str, Sequence[Value]]) -> None:
        self._request = request
        self._best: list[Any] = []  # ascending
        self._kind: object = None if request.bounded[0] else "no threshold"
        self.k = request.k
        self._found = 0
        self.done = False
        self.sorted = statement
        self.sql, self.values = request.unsorted

    def ask(self, execute: Callable[[str, Sequence[Value]], Any]) -> list[Row]:
        """Ask the next vendor, whose statements `execute` runs, and learn from its rows."""
        rows: list[Row] = execute(self.sql, self.values).fetchall()
        if rows:
            if len(rows) > self.k:
                rows = execute(*self.sorted).fetchall()
            self.add(rows)
        return rows

    def add(self, rows: Sequence[Row]) -> None:
        """Learn from a vendor's rows."""
        request, best = self._request, self._best
        if request.first_come:
            self._found += len(rows)
            self.done = self._found >= self.k
            return
        worst = 0 if request.descending else -1
        for row in rows:
            value = row[request.key]
            if value is None:
                continue  # It counts for nothing: at worst the threshold is lower than it could be.
            kind = float if type(value) is int else type(value)
            if kind is not self._kind:
                if self._kind is not None or kind is bytes:
                    self._kind = "no threshold"
                    self.sql, self.values = request.unsorted
                    return
                self._kind = kind
            insort(best, value)
            if len(best) > self.k:
                del best[worst]
        if len(best) == self.k:
            sql, values = request.bounded
            self.sql = sql
            self.values = (*values[: request.place], best[worst], *values[request.place + 1 :])
