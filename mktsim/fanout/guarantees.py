"""What an answer still guarantees although vendors are missing.

Rules
-----
A guarantee is a theorem about every database the missing vendors might hold, never a likelihood. What is not proven
here is "none". Nothing is claimed of statements over several tables, sub-queries, windows or set operations, nor where
random numbers or the clock take part.

Theory of operation
-------------------
Let A be the rows of the vendors that answered, and F all rows: A is part of F.

* Rows that a WHERE clause passes in A are passed in F. Without LIMIT they are in the full answer, all of them.
* A group of A is a group of F, with as many rows or more. So COUNT only grows, MIN only falls, MAX only rises, and SUM
  and TOTAL only grow if nothing missing is negative: certain for ``length(x)``, ``abs(x)`` and numbers, else a
  condition that the caller must judge. AVG may go anywhere. A sum is rounded once, and rounding keeps order.
* HAVING may pass a group in A and not in F. Nothing is claimed.
* LIMIT without ORDER BY takes rows in the order of vendors: those of vendors before the first missing one stay.
* LIMIT with ORDER BY: a missing row may precede all rows of A, so that no row is certain to be among the first. But a
  row of A that is not among the first of A is not among the first of F.

Worked example: three vendors with 2, 3 and 4 products, the second missing. COUNT(*) is 6, a lower bound of 9. Of
``LIMIT 5`` the first 2 rows are certain. Of ``ORDER BY price LIMIT 5`` none is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mktsim.sql import Plan, Planner
from mktsim.sql.catalog import affinity
from mktsim.sql.lexer import PREFIX, read
from mktsim.sql.syntax import Node, Select, Undecided, aggregate_name, is_star, parse, single_select, text, unwrap
from mktsim.sqlite import Error, Value
from mktsim.sqlite import rows as run

#: How a value of the answer stands to the full answer's: the same; equal by its collation, but perhaps spelt otherwise
#: ('a' and 'A'); not above it; not above it if no missing value is negative; not below it; or anything.
Bound = Literal["exact", "equal", "lower bound", "lower bound if none is negative", "upper bound", "none"]

_VOLATILE: Final = frozenset(
    ("random", "randomblob", "current_timestamp", "current_date", "current_time", "date", "time", "datetime")
) | {"julianday", "unixepoch", "strftime", "timediff"}


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What an answer guarantees.

    Attributes
    ----------
    rows : str
        ``all``: the answer is complete. ``subset``: each row belongs to one row of the full answer, to which its
        columns stand as `columns` says. ``none``: rows of the answer need not be in the full one.
    columns : tuple of str
        One :data:`Bound` a column, NULLs excepted (no value at all, which bounds nothing); empty where complete. Where
        `rows` is ``none``, of aggregates of a group: they hold for that group, be it in the full answer or not.
    certain_rows : int
        How many rows from the first on belong to the full answer for certain.
    text : str
        The same in words.

    Examples
    --------
    One of two vendors is down; whatever it holds, there are no fewer products than were counted.

    >>> import asyncio
    >>> from mktsim.fanout import QueryCoordinator, Scanner
    >>> from mktsim.sql import Schema
    >>> def down(sql, params):
    ...     raise ConnectionError("no route to host")
    >>> scanners = [Scanner("acme", lambda sql, params: [(6,)]), Scanner("bolt", down)]
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> coordinator = QueryCoordinator(scanners, schema=schema)
    >>> result = asyncio.run(coordinator.query("SELECT COUNT(*) FROM products", allow_partial=True))
    >>> coordinator.close()
    >>> result.rows, result.guarantees.columns, str(result.guarantees)
    ([(6,)], ('lower bound',), 'COUNT(*) lower bound')
    """

    rows: Literal["all", "subset", "none"]
    columns: tuple[Bound, ...]
    certain_rows: int
    text: str

    def __str__(self) -> str:
        return self.text


COMPLETE: Final = Guarantees("all", (), -1, "complete: every vendor that was asked has answered")


def _none(columns: int, reason: str) -> Guarantees:
    nothing: Bound = "none"
    return Guarantees("none", (nothing,) * columns, 0, f"no guarantee: {reason}")


def guarantees(
    planner: Planner,
    plan: Plan,
    values: Sequence[Value],
    *,
    rows: Sequence[Any],
    rows_before: int,
    routed: bool,
) -> Guarantees:
    """Tell what the answer of an incomplete scatter guarantees.

    Parameters
    ----------
    planner, plan, values
        How the statement was planned, and its parameters.
    rows : sequence
        The answer.
    rows_before : int
        Rows sent by the vendors that precede, in the order of vendors, all that are missing.
    routed : bool
        Whether one vendor alone was asked.
    """
    width = len(plan.columns)
    if routed:
        return _none(width, "the one vendor that was asked did not answer")
    catalog = planner.catalog
    if catalog.facts(plan.statement).functions & _VOLATILE:
        return _none(width, "random numbers or the clock take part")
    tree = parse(plan.statement, catalog)
    if isinstance(tree, str):
        return _none(width, tree)
    try:
        select = single_select(tree, catalog)
        return Shape(select, catalog.aggregates).judge(planner, plan, values, len(rows), rows_before)
    except Undecided as undecided:
        return _none(width, str(undecided))


class Shape:
    """What one SELECT over one table is made of, and what that guarantees."""

    def __init__(self, select: Select, known: frozenset[str]) -> None:
        self.select = select
        self.known = known
        args = select.node.args
        self.limited = args.get("limit") is not None
        self.ordered = args.get("order") is not None
        self.distinct = args.get("distinct") is not None
        self.having = args.get("having") is not None
        self.keys = select.group_keys()
        parts = [*select.items, *(key for key, _ in select.order_terms())]
        self.grouped = bool(self.keys) or self.having or any(self._calls(part) for part in parts)

    def judge(self, planner: Planner, plan: Plan, values: Sequence[Value], count: int, before: int) -> Guarantees:
        columns = self._columns(len(plan.columns))
        if self.having:
            return _none(len(columns), "HAVING may pass other groups once all rows are there")
        if self.grouped and self.distinct:
            return _none(len(columns), "DISTINCT is taken over aggregates that may change")
        if self.grouped:
            shown = ", ".join(f"{name} {bound}" for name, bound in zip(plan.columns, columns, strict=True))
            if self.limited:
                return Guarantees("none", columns, 0, f"which groups are among the first is open; of a group: {shown}")
            if not self.keys:
                return Guarantees("subset", columns, count, shown)
            return Guarantees("subset", columns, count, f"every group is one of the full answer's, of which: {shown}")
        if not self.limited:
            return Guarantees("subset", columns, count, "every row is one of the full answer; rows may be missing")
        unordered = not self.ordered and not self.distinct and plan.tier == "two-phase" and not plan.backwards
        if unordered and "ORDER" not in read(plan.gather).words:
            certain = min(count, max(0, before - self._offset(planner, plan, values)))
            return Guarantees(
                "none",
                columns,
                certain,
                f"the first {certain} rows are the full answer's: their vendors precede all that are missing; "
                "the others may have to give way",
            )
        if self.distinct:
            return _none(len(columns), "missing vendors' rows may come before all of these")
        return Guarantees(
            "none",
            columns,
            0,
            "no row is certain to be among the first: missing vendors' rows may come before all of these; "
            "but no row of a vendor that answered is among the first of all if it is not among these",
        )

    def _offset(self, planner: Planner, plan: Plan, values: Sequence[Value]) -> int:
        skipped = plan.limit.offset if plan.limit is not None else None
        if skipped is None:
            return 0
        bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
        try:
            offset = run(planner.catalog.vendor, f"SELECT ({skipped})", bindings)[0][0]
        except Error:
            return 1 << 62
        return max(0, offset) if isinstance(offset, int) else 1 << 62

    def _columns(self, width: int) -> tuple[Bound, ...]:
        if self.select.has_star:
            exact: Bound = "none" if self.grouped else "equal" if self.distinct else "exact"
            return (exact,) * width
        return tuple(self._bound(unwrap(item)) for item in self.select.items)

    def _bound(self, item: Node) -> Bound:
        if not self.grouped:
            return self._spelling(item) if self.distinct else "exact"
        if item.key == "literal":
            return "exact"
        if text(item) in {text(unwrap(key)) for key in self.keys}:
            return self._spelling(item)
        call = unwrap(item.this) if item.key == "filter" else item
        name = aggregate_name(call, self.known)
        if name in ("count", "max"):
            return "lower bound"
        if name == "min":
            return "upper bound"
        if name in ("sum", "total"):
            argument = call.expressions[0] if call.expressions else call.this  # TOTAL is a function like any other.
            if argument.key == "distinct":
                argument = argument.expressions[0]
            return "lower bound" if _is_never_negative(argument) else "lower bound if none is negative"
        return "none"

    def _spelling(self, item: Node) -> Bound:
        """Values that compare equal are one value here; which of them stands for all may change."""
        column = self.select.column(item)
        plain = column is not None and column.collation.upper() == "BINARY" and affinity(column.type) != "BLOB"
        return "exact" if plain else "equal"

    def _calls(self, node: Node) -> bool:
        return any(not is_star(inner) and aggregate_name(inner, self.known) is not None for inner in node.walk())


def _is_never_negative(node: Node) -> bool:
    node = unwrap(node)
    if node.key in ("mul", "add"):
        return all(_is_never_negative(node.args[side]) for side in ("this", "expression"))
    return node.key in ("length", "abs") or (node.key == "literal" and not node.is_string)
