"""What summaries of vendors can say about a statement: which vendors it need not visit, and what it need not ask.

Rules
-----
1. A condition bounds nothing unless it stands alone or joined by AND at the top of WHERE, and compares a summarised
   column itself, uncollated, with literals or parameters. All others are left to SQLite, at the vendors visited.
2. A vendor is left out only where no row of it can pass WHERE; or can come before the k-th found, in ORDER BY … LIMIT.
3. A partial comes from a summary only where every column of it does, and where each row of the vendor passes WHERE or
   none does, as far as the summary tells.
4. Nothing that could fail for a row left out may stand in the statement: its functions are of a short list, and its
   patterns short.

Theory of operation
-------------------
Summaries have bounds of numbers, in columns of numeric affinity. Against a number such a column compares as numbers do,
whatever it holds: text and blobs are greater than all numbers, and make the column's bounds unknown. Against text the
affinity of the column is applied to the text first; that is not imitated here. The grouping column is TEXT and
compares by its bytes, as a dictionary does, with text. See `mktsim.storage.summaries` for what a summary holds, and
`mktsim.fanout.prune` for the use of all this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlglot
from sqlglot import exp

from mktsim.sql.catalog import Column
from mktsim.sql.lexer import PREFIX
from mktsim.sql.plan import Plan
from mktsim.sql.syntax import Node, aggregate_name, conjuncts, is_value, text, unwrap
from mktsim.sql.threshold import never_fails
from mktsim.sqlite import Connection, Error, Value, rows

if TYPE_CHECKING:
    from mktsim.sql.twophase import _Builder

Operator = Literal["=", "<", "<=", ">", ">=", "in", "null", "not null"]
#: The place of the grouping column, where a summarised column is named by its place.
GROUP: Final = -1

_COMPARISONS: Final[dict[type, tuple[Operator, Operator]]] = {  # as written, and with the sides exchanged
    exp.EQ: ("=", "="),
    exp.LT: ("<", ">"),
    exp.LTE: ("<=", ">="),
    exp.GT: (">", "<"),
    exp.GTE: (">=", "<="),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one summarised column.

    Attributes
    ----------
    column : int
        Its place in :attr:`Summarised.columns`, or :data:`GROUP`.
    operator : str
    values : tuple of str
        SQL of what it is compared with.
    """

    column: int
    operator: Operator
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leading:
    """The first term of ORDER BY, where it is a summarised column.

    Attributes
    ----------
    column : int
        Its place in :attr:`Summarised.columns`.
    place : int
        Its place in a partial's rows.
    descending, nulls_first : bool
    by_vendor : bool
        Whether rows of equal keys are ordered by vendor, upwards.
    """

    column: int
    place: int
    descending: bool
    nulls_first: bool
    by_vendor: bool


#: Where a partial's column comes from: the group's value, COUNT(*), or COUNT, MIN or MAX of a summarised column.
Source = tuple[Literal["group", "rows", "present", "low", "high"], int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a plan can do with summaries.

    Attributes
    ----------
    table : int
        Which of :attr:`Schema.summarised`.
    conditions : tuple of Condition
        What WHERE says of summarised columns.
    exhaustive : bool
        Whether that is all that it says.
    leading : Leading or None
        How the first rows are found.
    sources : tuple of Source or None
        How a partial is made from a summary.
    grouped : bool
        Whether the partial is one for each value of the grouping column.
    """

    table: int
    conditions: tuple[Condition, ...]
    exhaustive: bool
    leading: Leading | None
    sources: tuple[Source, ...] | None
    grouped: bool

    def bind(self, scratch: Connection, values: tuple[Value, ...]) -> tuple[list[tuple[int, Operator, Any]], bool]:
        """Return the conditions with these values, without those that bound nothing, and whether none was left out.

        Numbers are returned as floats that equal them.
        """
        wanted = [sql for condition in self.conditions for sql in condition.values]
        found: list[Any] = []
        if wanted:
            bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
            try:
                found = list(rows(scratch, f"SELECT {', '.join(f'({sql})' for sql in wanted)}", bindings)[0])
            except Error:
                return [], False
        bound: list[tuple[int, Operator, Any]] = []
        for condition in self.conditions:
            listed, found = found[: len(condition.values)], found[len(condition.values) :]
            if condition.column == GROUP:
                usable = all(isinstance(value, str) for value in listed)
            else:
                usable = all(isinstance(value, int | float) and _exactly(value) for value in listed)
                listed = [float(value) for value in listed] if usable else []
            if usable:
                bound.append((condition.column, condition.operator, listed))
        return bound, self.exhaustive and len(bound) == len(self.conditions)


def _exactly(value: float) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def with_bounds(builder: _Builder, plan: Plan) -> Plan:
    """Return the plan with what summaries say about it, where the schema declares any."""
    name = builder.select.table.name.lower()
    for table, each in enumerate(builder.catalog.schema.summarised):
        if each.table.lower() == name and never_fails(builder) and len(plan.scatter) == 1:
            places = {column.lower(): place for place, column in enumerate(each.columns)}
            if each.by is not None:
                places[each.by.lower()] = GROUP
            return replace(plan, bounds=_Analysis(builder, plan, places).bounds(table))
    return plan


class _Analysis:
    """Of one statement over a summarised table."""

    def __init__(self, builder: _Builder, plan: Plan, places: dict[str, int]) -> None:
        self.builder = builder
        self.plan = plan
        self.places = places

    def bounds(self, table: int) -> Bounds | None:
        where = self.builder.where
        conditions: list[Condition] = []
        exhaustive = True
        for conjunct in conjuncts(self.builder.select.resolve(where.this)) if where is not None else ():
            read = self._condition(conjunct)
            conditions += read
            exhaustive &= bool(read)
        sources = self._sources()
        made = Bounds(table, tuple(conditions), exhaustive, self._leading(), sources, bool(self.builder.keys))
        return made if conditions or made.leading is not None or sources is not None else None

    def _place(self, node: Node) -> int | None:
        column = self._column(node)
        return None if column is None else self.places.get(column.name.lower())

    def _column(self, node: Node) -> Column | None:
        return self.builder.select.column(unwrap(node))

    def _condition(self, node: Node) -> list[Condition]:
        """Return the conditions that a conjunct amounts to; none where summaries have no bound for it."""
        if isinstance(node, exp.Binary) and type(node) in _COMPARISONS:
            for this, other, operator in zip(
                (node.left, node.right), (node.right, node.left), _COMPARISONS[type(node)], strict=True
            ):
                place = self._place(this)
                if place is not None and _is_constant(other) and (place != GROUP or operator == "="):
                    return [Condition(place, operator, (text(other),))]
            return []
        place = self._place(node.this) if isinstance(node.this, exp.Expr) else None
        if isinstance(node, exp.Not):
            inner = unwrap(node.this)
            if isinstance(inner, exp.Is) and _is_null(inner.expression):
                place = self._place(inner.this)
                return [] if place is None else [Condition(place, "not null", ())]
            return []
        if place is None:
            return []
        if isinstance(node, exp.Is) and _is_null(node.expression):
            return [Condition(place, "null", ())]
        if isinstance(node, exp.Between) and place != GROUP:
            low, high = node.args["low"], node.args["high"]
            if _is_constant(low) and _is_constant(high) and not node.args.get("symmetric"):
                return [Condition(place, ">=", (text(low),)), Condition(place, "<=", (text(high),))]
        if isinstance(node, exp.In) and node.expressions and all(map(_is_constant, node.expressions)):
            return [Condition(place, "in", tuple(map(text, node.expressions)))]
        return []

    def _leading(self) -> Leading | None:
        builder = self.builder
        if self.plan.limit is None or self.plan.backwards or builder.keys or builder.calls or builder.distinct:
            return None
        if not builder.order:
            return None
        node, term = builder.order[0]
        column, place = self._column(node), self._place(node)
        if column is None or place is None or place == GROUP:
            return None
        by_vendor = builder.scan.by_rowid
        if by_vendor and len(builder.order) > 1:
            second, how = builder.order[1]
            found = self._column(second)
            shard_column = (builder.catalog.schema.shard_column or "").lower()
            by_vendor = found is not None and found.name.lower() == shard_column and not how.args.get("desc")
            by_vendor = by_vendor and found is not None and found.collation.upper() == "BINARY"
        return Leading(
            place,
            list(builder.partial.shipped).index(column.name.lower()),
            bool(term.args.get("desc")),
            bool(term.args.get("nulls_first")),
            by_vendor,
        )

    def _sources(self) -> tuple[Source, ...] | None:
        """Return where each column of the partial comes from, or None where one comes from no summary."""
        builder, partial = self.builder, self.builder.partial
        if self.plan.combine is None or self.plan.backwards or partial.keys or not (builder.calls or builder.keys):
            return None
        if [self._place(key) for key in builder.keys] not in ([], [GROUP]):
            return None
        sources: list[Source] = []
        for name in partial.shipped:
            if self.places.get(name) != GROUP or not builder.keys:
                return None
            sources.append(("group", GROUP))
        for expression in partial.computed:
            source = self._source(sqlglot.parse_one(expression, dialect="sqlite"))
            if source is None:
                return None
            sources.append(source)
        return tuple(sources)

    def _source(self, call: Any) -> Source | None:
        name = aggregate_name(call, self.builder.catalog.aggregates)
        if name not in ("count", "min", "max") or call.expressions:
            return None
        if name == "count" and isinstance(call.this, exp.Star):
            return "rows", GROUP
        place = self._place(call.this) if isinstance(call.this, exp.Expr) else None
        if place is None or place == GROUP:
            return None
        return ("present", place) if name == "count" else ("low", place) if name == "min" else ("high", place)


def _is_constant(node: Node) -> bool:
    node = unwrap(node)
    return is_value(node) or (isinstance(node, exp.Neg) and is_value(node.this))


def _is_null(node: Any) -> bool:
    return isinstance(unwrap(node), exp.Null)
