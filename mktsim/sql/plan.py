"""What a plan is: the statements a query becomes, and how values are bound to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from mktsim.sql import lexer
from mktsim.sql.lexer import PREFIX, Statement
from mktsim.sqlite import Connection, Error, Value, rows

if TYPE_CHECKING:
    from mktsim.sql.bounds import Bounds
    from mktsim.sql.threshold import Rounds
    from mktsim.sql.topk import TopK
    from mktsim.sql.ungrouped import Ungrouped

Tier = Literal["route", "two-phase", "collect", "local"]

#: What a placeholder is bound to: a parameter number, the pushed-down limit, one row more, or a scan's threshold.
Binder = int | Literal["limit", "more", "bound"]
_NAMED: dict[str, Binder] = {":mktsim_limit": "limit", ":mktsim_more": "more", ":mktsim_bound": "bound"}


def positional(text: str) -> tuple[str, tuple[Binder, ...]]:
    """Rewrite normalised text with plain ``?`` placeholders, which every driver takes.

    Examples
    --------
    >>> positional("SELECT a FROM t WHERE b = :mktsim_p2 LIMIT :mktsim_limit")
    ('SELECT a FROM t WHERE b = ? LIMIT ?', (2, 'limit'))
    """
    binders: list[Binder] = []
    pieces: list[str] = []
    for kind, piece in lexer.tokens(text):
        if kind == "parameter" and piece.startswith(f":{PREFIX}"):
            binders.append(int(piece[len(PREFIX) + 1 :]))
            piece = "?"
        elif kind == "parameter":
            binders.append(_NAMED[piece])
            piece = "?"
        pieces.append(piece)
    return "".join(pieces), tuple(binders)


@dataclass(frozen=True, slots=True)
class ScatterStatement:
    """One statement every vendor runs.

    Attributes
    ----------
    sql : str
        Text with ``?`` placeholders.
    binders : tuple
        What each placeholder is bound to.
    insert : str
        The statement that puts one of its rows into the gather.
    width : int
        Columns per row.
    placed : str
        The same insertion with the row's rowid before its values; empty where the gather's table has none to name.

    Examples
    --------
    Each vendor is asked for its own first three, of which the first three of all are.

    >>> from mktsim.sql import Planner, Schema
    >>> planner = Planner(Schema(["CREATE TABLE products(name TEXT, price REAL)"]))
    >>> [scatter] = planner.plan("SELECT name FROM products ORDER BY price LIMIT 3").scatter
    >>> print(scatter.sql)
    SELECT "products"."name", "products"."price" FROM "products" ORDER BY price LIMIT ?
    >>> scatter.binders, scatter.width
    (('limit',), 2)
    """

    sql: str
    binders: tuple[Binder, ...]
    insert: str
    width: int
    placed: str = ""

    @classmethod
    def build(cls, text: str, table: str, columns: Sequence[str], *, rowid: str | None = None) -> ScatterStatement:
        """Make the statement and its insertion from normalised text."""
        sql, binders = positional(text)
        made = [_insertion(table, columns)]
        if rowid is not None:
            made.append(_insertion(table, [rowid, *columns]))
        return cls(sql, binders, made[0], len(columns), *made[1:])


def _insertion(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table}({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


@dataclass(frozen=True, slots=True)
class Limit:
    """A LIMIT and OFFSET as text; evaluated once per execution, at the coordinator."""

    limit: str
    offset: str | None

    def reach(self, scratch: Connection, values: Sequence[Value]) -> int:
        """Return how many leading rows may matter: limit + offset, or -1 for all of them.

        A value SQLite would refuse is left for the gather to refuse, in SQLite's own words.
        """
        bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
        try:
            row = rows(scratch, f"SELECT ({self.limit}), ({self.offset or '0'})", bindings)[0]
        except Error:
            return -1
        if not all(isinstance(value, int) for value in row) or row[0] < 0:
            return -1
        return min(int(row[0]) + max(int(row[1]), 0), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Combine:
    """Maps partials to fewer partials of the same shape.

    Attributes
    ----------
    table : str
        DDL of the working table: an ordinal column, then the partial's columns.
    insert, sql : str
        How rows enter it and leave it: ordinal first both times. Placeholders of `sql` are bound by `binders`.
    merges : tuple of str
        The same for `mktsim.sql.merge`: how each column merges, or nothing for a key; empty where SQL must do it.
    """

    table: str
    insert: str
    sql: str
    binders: tuple[Binder, ...]
    merges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """How one statement is answered over many vendor databases.

    Attributes
    ----------
    statement : Statement
        The statement as read.
    columns : tuple of str
        Result column names, as SQLite names them.
    tier : str
        ``two-phase``, ``collect`` or ``local`` (no table is read). ``route`` is decided when values are bound.
    scatter : tuple of ScatterStatement
        What each vendor runs, all in one snapshot of its database.
    combine : Combine or None
        What an inner node may do with partials; None where they must travel as they are.
    gather : str
        What runs over the collected rows, in an in-memory SQLite.
    tables : tuple of str
        DDL of the gather's tables.
    relaxed_tables : tuple of str
        The same without keys, for rows whose keys collide between vendors.
    backwards : bool
        Whether rows enter the gather from the last vendor to the first.
    limit : Limit or None
        The limit pushed down to vendors.
    shard_values : tuple of str or None
        SQL of the values the shard column may have; None where all vendors matter.
    single_table : bool
        Whether the statement reads one base table only, so that one vendor can answer it alone.
    rules : tuple of str
        Push-downs, each with the rule that allows it.
    reason : str
        Why a better tier was not possible; empty for two-phase.
    needs_functions : bool
        Whether vendors must know the aggregates of `mktsim.sql.register`.
    top : TopK or None
        How a scan finds the first rows without a sort at each vendor.
    ungrouped : Ungrouped or None
        How a scan groups the rows of many vendors at once.
    rounds : Rounds or None
        How the first groups by a non-negative aggregate are found without shipping every group.
    bounds : Bounds or None
        What summaries of vendors can say about the statement.
    steps : tuple of str
        SQLite's query plan where bound values may change it, and with it an order that SQL leaves open; else empty.

    Examples
    --------
    An average is gathered from a sum and a count of each vendor; a median needs all values.

    >>> from mktsim.sql import Planner, Schema
    >>> planner = Planner(Schema(["CREATE TABLE products(name TEXT, price REAL)"]))
    >>> plan = planner.plan("SELECT AVG(price) FROM products")
    >>> plan.tier, plan.scatter[0].width, plan.travels(1_000)
    ('two-phase', 2, 'at most 1,000: one row a vendor')
    >>> planner.plan("SELECT a.name FROM products AS a JOIN products AS b ON a.price = b.price").tier
    'collect'
    """

    statement: Statement
    columns: tuple[str, ...]
    tier: Tier
    scatter: tuple[ScatterStatement, ...]
    gather: str
    tables: tuple[str, ...]
    relaxed_tables: tuple[str, ...] = ()
    combine: Combine | None = None
    backwards: bool = False
    limit: Limit | None = None
    shard_values: tuple[str, ...] | None = None
    single_table: bool = False
    rules: tuple[str, ...] = field(default=())
    reason: str = ""
    needs_functions: bool = False
    top: TopK | None = None
    ungrouped: Ungrouped | None = None
    rounds: Rounds | None = None
    bounds: Bounds | None = None
    steps: tuple[str, ...] = ()

    def travels(self, vendors: int) -> str:
        """Tell how many rows reach the coordinator from so many vendors, as far as the plan itself bounds it."""
        if not self.scatter or not vendors:
            return "no row"
        if self.limit is not None:
            return f"at most LIMIT + OFFSET rows from each of {vendors:,} vendors"
        if any(statement.sql.endswith((" HAVING COUNT(*) > 0", " LIMIT 1")) for statement in self.scatter):
            return f"at most {vendors:,}: one row a vendor"
        if self.rounds is not None:
            return f"the first groups of each of {vendors:,} vendors; of those with many, further ones that may count"
        if self.tier == "two-phase" and " GROUP BY " in self.scatter[0].sql:
            return f"a row for each group of each of {vendors:,} vendors"
        return f"every row of {vendors:,} vendors that passes the scatter's conditions"

    def _lines(self) -> list[tuple[str, str]]:
        """Return what a reader wants to know, a name and a text each."""
        lines = [("tier", self.tier + (f" ({self.reason})" if self.reason else ""))]
        lines += [("scatter", statement.sql) for statement in self.scatter]
        lines += [("combine", self.combine.sql)] if self.combine else []
        lines += [("gather", self.gather), ("columns", ", ".join(self.columns))]
        return lines + [("rule", rule) for rule in self.rules]

    def __str__(self) -> str:
        return "\n".join(f"{name:<8} {value}" for name, value in self._lines())

    def __repr__(self) -> str:
        """Return one line; `print` shows the statements and the rules, as IPython does."""
        return f"<Plan {self.tier}, {len(self.columns)} columns: {self.statement.sql!r:.80}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self) if cycle else str(self))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td><code>{escape(value)}</code></td></tr>" for name, value in self._lines()
        )
        return f"<table>{rows}</table>"
