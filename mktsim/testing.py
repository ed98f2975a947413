"""Check statements against ONE SQLite that holds every vendor's rows: for this package's tests, and for yours.

Rules
-----
The answer of a coordinator over any split of the rows equals, value for value, type for type, in order and in column
names, the answer of one SQLite that holds the rows in (vendor, rowid) order. Where SQLite's own compensated float sum
misses the correctly rounded sum, the correctly rounded sum (`fractions`) is the oracle.

Theory of operation
-------------------
`Grammar` writes random tables and random SELECTs over them (filters, ordering, DISTINCT, aggregates, groups, top-k,
joins on and off the shard column, windows, sub-queries, common table expressions, set operations, dates, JSON,
full-text search). It draws from anything with the interface of
`random.Random`: a seeded one for long runs, Hypothesis' own for shrinking. `check_statement` compares, and raises
:class:`Mismatch`, whose text is a program that shows the difference.

What this does not do
---------------------
It does not judge order that SQL leaves open differently from SQLite: such order must agree with SQLite's as well.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, Protocol, TypeVar

from mktsim.errors import EvaluationError, InvalidArgumentError, QueryError
from mktsim.fanout import QueryCoordinator, QueryResult, Scanner
from mktsim.sql import Schema
from mktsim.sqlite import Connection, Cursor, Error, Value, connect, quote

Row = tuple[Any, ...]
T = TypeVar("T")


class Random(Protocol):
    """What the grammar draws from: `random.Random` has it, and Hypothesis' own, which shrinks.

    Examples
    --------
    Anything will do that has the three methods; this one always draws the least.

    >>> class Least:
    ...     def random(self):
    ...         return 0.0
    ...     def randrange(self, stop):
    ...         return 0
    ...     def choice(self, seq):
    ...         return seq[0]
    >>> grammar = Grammar(Least())
    >>> print(grammar.statement(grammar.case())[0])
    SELECT title, body FROM words WHERE words MATCH 'lamp'
    """

    def random(self) -> float:
        """Return a number from 0 to below 1."""

    def randrange(self, stop: int, /) -> int:
        """Return a whole number from 0 to below `stop`."""

    def choice(self, seq: Sequence[T], /) -> T:
        """Return one of a sequence that is not empty."""


@dataclass(frozen=True, slots=True)
class TableData:
    """One table and its rows.

    Attributes
    ----------
    name : str
        Its name.
    columns : tuple of str
        Column definitions: ``"price REAL"``.
    rows : tuple of tuple
        Rows in order.
    extra : tuple of str
        Further DDL: indexes.
    virtual : str
        The module of a virtual table: ``fts5``.

    Examples
    --------
    >>> table = TableData("products", ("name TEXT", "price REAL"), (("mouse", 19.99),))
    >>> table.ddl
    ('CREATE TABLE "products"(name TEXT, price REAL)',)
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    extra: tuple[str, ...] = ()
    virtual: str = ""

    @property
    def ddl(self) -> tuple[str, ...]:
        """The statements that make the table."""
        if self.virtual:
            return (f"CREATE VIRTUAL TABLE {quote(self.name)} USING {self.virtual}({', '.join(self.columns)})",)
        return (f"CREATE TABLE {quote(self.name)}({', '.join(self.columns)})", *self.extra)


class Mismatch(AssertionError):
    """A coordinator's answer differs from the oracle's: run the message, which is a program that shows it."""


@dataclass(frozen=True, slots=True)
class Case:
    """Tables, and for each row of each table the vendor that has it.

    Attributes
    ----------
    tables : tuple of TableData
        The tables.
    vendors : int
        How many vendors there are; some may have no row.
    owners : mapping
        Table name to one vendor number per row.
    shard_column : str, optional
        A column that holds each row's vendor: ``v000`` for number 0.

    Examples
    --------
    Two vendors: the first has the mouse, the second the lamp and the desk.

    >>> rows = (("mouse",), ("lamp",), ("desk",))
    >>> case = Case((TableData("products", ("name TEXT",), rows),), vendors=2, owners={"products": (0, 1, 1)})
    >>> fleet = case.fleet()
    >>> [database.execute("SELECT name FROM products").fetchall() for database in fleet]
    [[('mouse',)], [('lamp',), ('desk',)]]
    >>> for database in fleet:
    ...     database.close()
    """

    tables: tuple[TableData, ...]
    vendors: int
    owners: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shard_column: str | None = None

    @property
    def schema(self) -> Schema:
        """The schema each vendor has."""
        statements = tuple(statement for table in self.tables for statement in table.ddl)
        return Schema(statements, shard_column=self.shard_column)

    def oracle(self) -> Connection:
        """Return one database that holds all rows, by vendor, then in order."""
        return self._filled(range(self.vendors))

    def fleet(self) -> list[Connection]:
        """Return one database per vendor."""
        return [self._filled([vendor]) for vendor in range(self.vendors)]

    def _filled(self, vendors: Sequence[int]) -> Connection:
        connection = self.schema.database()
        for table in self.tables:
            owners = self.owners.get(table.name, (0,) * len(table.rows))
            if len(owners) != len(table.rows):
                raise InvalidArgumentError(f"table {table.name!r} has {len(table.rows)} rows, {len(owners)} owners")
            marks = ", ".join("?" * len(table.columns))
            rows = [row for vendor in vendors for row, owner in zip(table.rows, owners, strict=True) if owner == vendor]
            connection.executemany(f"INSERT INTO {quote(table.name)} VALUES ({marks})", rows)
        return connection


def typed(rows: Sequence[Sequence[Any]]) -> list[tuple[tuple[str, Any], ...]]:
    """Return rows with each value's type, floats by their bits, so that 1 and 1.0, 0.0 and -0.0 differ.

    Parameters
    ----------
    rows : sequence of sequence
        Rows of an answer.

    Returns
    -------
    list of tuple of (str, value)
        To be compared with ``==``; NaN equals itself.

    Examples
    --------
    >>> typed([(1, 1.0)])
    [(('int', 1), ('float', '0x1.0000000000000p+0'))]
    """
    return [tuple((type(v).__name__, v.hex() if isinstance(v, float) else v) for v in row) for row in rows]


def run_oracle(connection: Connection, sql: str, params: Any = ()) -> tuple[tuple[str, ...], list[Row]]:
    """Run a statement on one database and return its column names and rows.

    Parameters
    ----------
    connection : Connection
        That of :meth:`Case.oracle`, say.
    sql : str
        The statement.
    params : sequence or mapping
        Values of its placeholders.

    Returns
    -------
    tuple of str
        Names of the columns as SQLite gives them.
    list of tuple
        Rows; empty where the statement has none.

    Raises
    ------
    mktsim.sqlite.Error
        SQLite refuses the statement.

    Examples
    --------
    >>> with closing(Case((TableData("products", ("name TEXT",), (("mouse",),)),), vendors=1).oracle()) as database:
    ...     run_oracle(database, "SELECT name, COUNT(*) FROM products WHERE name = ?", ["mouse"])
    (('name', 'COUNT(*)'), [('mouse', 1)])
    """
    names: list[str] = []

    def look(cursor: Cursor, _sql: str, _bindings: Any) -> bool:
        names.extend(str(entry[0]) for entry in cursor.get_description())
        return True

    cursor = connection.cursor()
    cursor.exec_trace = look
    rows = cursor.execute(sql, params).fetchall()
    return tuple(names), rows


class _RationalSum:
    """SUM, TOTAL and AVG by exact rational arithmetic, written apart from the code under test."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.values: list[int | float] = []

    def step(self, *arguments: Any) -> None:
        (value,) = arguments
        if value is None:
            return
        if isinstance(value, str | bytes):  # SQLite reads it as a number, and a sum of one value is not rounded.
            with closing(connect()) as reader:
                value = reader.execute("SELECT SUM(?)", (value,)).get
        self.values.append(value)

    def final(self) -> int | float | None:
        if not self.values:
            return 0.0 if self.kind == "total" else None
        special = [v for v in self.values if isinstance(v, float) and not math.isfinite(v)]
        if special:
            total: int | float = sum(special)
            if math.isnan(total):
                return None
        else:
            exact = sum(map(Fraction, self.values), Fraction(0))
            if self.kind == "sum" and all(isinstance(v, int) for v in self.values):
                return int(exact)
            try:
                total = exact.numerator / exact.denominator + 0.0
            except OverflowError:
                total = math.inf if exact > 0 else -math.inf
        return total / len(self.values) if self.kind == "avg" else total


def _teach_rational_sums(connection: Connection) -> None:
    for kind in ("sum", "total", "avg"):
        connection.create_aggregate_function(kind, partial(_RationalSum, kind), 1)


def check_statement(
    sql: str, case: Case, params: Sequence[Value] = (), *, coordinator: Any = None
) -> QueryResult | None:
    """Compare a coordinator's answer with the oracle's.

    It runs an event loop of its own: in a notebook, ``await asyncio.to_thread(check_statement, ...)``.

    Parameters
    ----------
    sql : str
        The statement.
    case : Case
        Tables and their split.
    params : sequence
        Values of its placeholders.
    coordinator : QueryCoordinator, optional
        One over ``case.fleet()``, to spare making it anew.

    Returns
    -------
    QueryResult or None
        The answer; None where both refuse the statement.

    Raises
    ------
    Mismatch
        The answers differ, or only one of them is an error.

    Examples
    --------
    Is the answer of your statement the same, however its rows are spread?

    >>> prices = ((1.5,), (2.5,), (None,), (1e300,), (-1e300,))
    >>> case = Case((TableData("products", ("price REAL",), prices),), vendors=3, owners={"products": (0, 1, 1, 2, 0)})
    >>> check_statement("SELECT COUNT(*), SUM(price) FROM products", case).rows
    [(5, 4.0)]
    """
    oracle = case.oracle()
    fleet: list[Connection] = []
    made = coordinator
    try:
        if made is None:
            fleet = case.fleet()
            made = make_coordinator(case, fleet)
        expected: Any
        try:
            expected = run_oracle(oracle, sql, tuple(params))
        except Error as error:
            expected = error
        try:
            answer: QueryResult | Exception = asyncio.run(made.query(sql, tuple(params)))
        except QueryError as error:
            answer = error
        if _agree(expected, answer):
            return answer if isinstance(answer, QueryResult) else None
        _teach_rational_sums(oracle)
        try:
            if _agree(run_oracle(oracle, sql, tuple(params)), answer):
                return answer if isinstance(answer, QueryResult) else None
        except Error:
            pass
        raise Mismatch(_reproducer(sql, case, params, expected, answer, made))
    finally:
        oracle.close()
        if coordinator is None and made is not None:
            made.close()
        for connection in fleet:
            connection.close()


def make_coordinator(case: Case, fleet: Sequence[Connection]) -> QueryCoordinator:
    """Return a coordinator over a case's fleet; the caller closes both.

    Parameters
    ----------
    case : Case
        What the fleet was made of.
    fleet : sequence of Connection
        One database a vendor: ``case.fleet()``.

    Returns
    -------
    QueryCoordinator
        Its vendors are ``v000``, ``v001`` and so on.

    Examples
    --------
    >>> case = Case((TableData("products", ("name TEXT",), (("mouse",), ("lamp",))),), 2, {"products": (0, 1)})
    >>> fleet = case.fleet()
    >>> coordinator = make_coordinator(case, fleet)
    >>> check_statement("SELECT MIN(name) FROM products", case, coordinator=coordinator).rows
    [('lamp',)]
    >>> coordinator.explain("SELECT MIN(name) FROM products").vendors
    2
    >>> for each in (coordinator, *fleet):
    ...     each.close()
    """
    scanners = [Scanner.from_connection(f"v{vendor:03d}", connection) for vendor, connection in enumerate(fleet)]
    return QueryCoordinator(scanners, schema=case.schema)


def _agree(expected: Any, answer: QueryResult | Exception) -> bool:
    if isinstance(expected, Exception) or isinstance(answer, Exception):
        # SQLite fails on an intermediate overflow; the coordinator only where the total overflows.
        if isinstance(expected, Exception) and "overflow" in str(expected):
            return True
        return isinstance(expected, Exception) and isinstance(answer, EvaluationError | QueryError)
    names, rows = expected
    return tuple(answer.columns) == names and typed(answer.rows) == typed(rows)


def _reproducer(
    sql: str, case: Case, params: Sequence[Value], expected: Any, answer: Any, made: QueryCoordinator
) -> str:
    try:
        plan = str(made.explain(sql))
    except QueryError as error:
        plan = str(error)
    shown = answer if isinstance(answer, Exception) else (answer.columns, answer.rows)
    lines = [
        "the coordinator and one SQLite disagree; to reproduce:",
        "",
        "from math import inf",
        "from mktsim.testing import Case, TableData, check_statement",
        f"case = {case!r}",
        f"check_statement({sql!r}, case, {tuple(params)!r})",
        "",
        f"expected {expected!r}",
        f"answer   {shown!r}",
        plan,
    ]
    return "\n".join(lines)


_TYPES = (
    "INTEGER", "REAL", "TEXT", "TEXT COLLATE NOCASE", "NUMERIC", "", "TEXT COLLATE RTRIM", "BLOB",
)  # fmt: skip
_TEXTS = ("", "a", "A", "ab", "aB", "b", "B ", "b", "é", "É", "1", "1.0", "10", "9", "x y", "%a", "it's", "日本", "a ")
_INTEGERS = (0, 1, 1, 2, 3, 5, -1, -7, 10, 100, 2**31, 2**53 + 1)
_BIG = (2**63 - 1, -(2**63), 2**62)
_FLOATS = (0.0, 0.1, 0.2, 0.3, 1.0, 1.5, -2.5, 3.25, 1e-9, 12345.678, 1e15, 99.99)
_ODD_FLOATS = (-0.0, math.inf, -math.inf, 1e300, -1e300, 5e-324)


_WORDS = ("lamp", "desk", "red", "blue", "old", "new")


class Grammar:
    """Writes random cases and random statements over them.

    Parameters
    ----------
    random : Random
        What it draws from.

    Examples
    --------
    >>> import random
    >>> grammar = Grammar(random.Random(15))
    >>> case = grammar.case()
    >>> sql, params = grammar.statement(case)
    >>> print(sql)
    SELECT * FROM t ORDER BY vendorId, c LIMIT 5
    >>> check_statement(sql, case, params)
    QueryResult(5 rows x 4 columns, two-phase, 6 of 6 vendors, 0 pruned)
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._params: list[Value] = []

    # -- small draws ----------------------------------------------------------------------------------------------

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _pick(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def value(self, type_: str) -> Value:
        """Return a value for a column of a declared type, NULL one time in six."""
        draw = self._random.random()
        if draw < 0.16:
            return None
        if draw < 0.21:
            type_ = self._pick(_TYPES)
        base = type_.split()[0] if type_ else self._pick(("INTEGER", "REAL", "TEXT"))
        if base == "NUMERIC":
            base = self._pick(("INTEGER", "REAL"))
        if base == "INTEGER":
            return self._pick(_BIG) if self._chance(0.02) else self._pick(_INTEGERS)
        if base == "REAL":
            return self._pick(_ODD_FLOATS) if self._chance(0.05) else self._pick(_FLOATS)
        if base == "BLOB":
            return self._pick((b"", b"a", b"\x00\x01", b"A", b"12"))
        return self._pick(_TEXTS)

    # -- tables ---------------------------------------------------------------------------------------------------

    def case(self, *, vendors: int | None = None, rows: int = 12) -> Case:
        """Return one to two tables split over 0 to 20 vendors, some of them empty.

        In one case of three the tables have a shard column, in one of eight there is a full-text table as well.
        """
        count = self._random.randrange(21) if vendors is None else vendors
        sharded = self._chance(0.33)
        tables = []
        owners = {}
        for name in ("t", "u")[: 1 + self._random.randrange(2)]:
            types = [self._pick(_TYPES) for _ in range(2 + self._random.randrange(4))]
            columns = [f"{'abcdef'[place]} {type_}".strip() for place, type_ in enumerate(types)]
            size = self._random.randrange(rows + 1) if count else 0
            data = [tuple(self.value(type_) for type_ in types) for _ in range(size)]
            owners[name] = tuple(self._random.randrange(count) for _ in range(size)) if count else ()
            if sharded:
                columns.append("vendorId TEXT")
                data = [(*row, f"v{owner:03d}") for row, owner in zip(data, owners[name], strict=True)]
            extra = []
            if self._chance(0.3):
                direction = self._pick(("", " DESC"))
                indexed = ["abcdef"[self._random.randrange(len(types))]]
                indexed += [other for other in "abcdef"[: len(types)] if other not in indexed and self._chance(0.3)]
                extra.append(f"CREATE INDEX {name}_index ON {name}({', '.join(c + direction for c in indexed)})")
            tables.append(TableData(name, tuple(columns), tuple(data), tuple(extra)))
        if self._chance(0.125):
            size = self._random.randrange(rows + 1) if count else 0
            texts = [(self._text(), self._text()) for _ in range(size)]
            owners["words"] = tuple(self._random.randrange(count) for _ in range(size)) if count else ()
            tables.append(TableData("words", ("title", "body"), tuple(texts), virtual="fts5"))
        return Case(tuple(tables), count, owners, "vendorId" if sharded else None)

    def _text(self) -> str:
        return " ".join(self._pick(_WORDS) for _ in range(self._random.randrange(6)))

    # -- statements -----------------------------------------------------------------------------------------------

    def statement(self, case: Case) -> tuple[str, tuple[Value, ...]]:
        """Return a SELECT over a case's tables, and the values of its placeholders."""
        self._params = []
        tables = {
            table.name: [column.split()[0] for column in table.columns] for table in case.tables if not table.virtual
        }
        draw = self._random.random()
        if len(tables) < len(case.tables) and self._chance(0.5):
            sql = self._searched()
        elif case.shard_column is not None and self._chance(0.3):
            sql = self._colocated(tables, case.shard_column)
        elif draw < 0.26:
            sql = self._plain(tables)
        elif draw < 0.30:
            sql = self._json(tables)
        elif draw < 0.64:
            sql = self._grouped(tables)
        elif draw < 0.70:
            sql = self._top(tables)
        elif draw < 0.78:
            sql = self._window(tables)
        elif draw < 0.86:
            sql = self._compound(tables)
        elif draw < 0.94:
            sql = self._joined(tables)
        else:
            sql = self._with(tables)
        values: list[Value] = []

        def number(match: re.Match[str]) -> str:
            values.append(self._params[int(match.group(1))])
            return "?"

        # Only now is it known which of the drawn parameters the statement has, and in which order.
        return re.sub("\x01(\\d+)\x01", number, sql), tuple(values)

    def _parameter(self, value: Value) -> str:
        self._params.append(value)
        return f"\x01{len(self._params) - 1}\x01"

    def _literal(self) -> str:
        value = self.value(self._pick(("INTEGER", "REAL", "TEXT")))
        if self._chance(0.2):
            return self._parameter(value)
        if value is None:
            return "NULL"
        if isinstance(value, bytes):
            return f"x'{value.hex()}'"
        if isinstance(value, float):
            return "9e999" if value == math.inf else "-9e999" if value == -math.inf else repr(value)
        if isinstance(value, str):
            return "'" + value.replace("'", "''") + "'"
        return str(value)

    def _scalar(self, columns: Sequence[str], depth: int = 2) -> str:
        """Return an expression over columns."""
        if depth <= 0 or self._chance(0.45):
            return self._pick(columns) if self._chance(0.8) else self._literal()
        one = self._scalar(columns, depth - 1)
        two = self._scalar(columns, depth - 1)
        forms = (
            f"({one} + {two})", f"({one} * {two})", f"({one} || {two})", f"lower({one})", f"length({one})",
            f"coalesce({one}, {two})", f"typeof({one})", f"abs(length({one}))", f"(-{one})", f"({one} % 3)",
            f"CASE WHEN {self._predicate(columns, depth - 1)} THEN {one} ELSE {two} END", f"CAST({one} AS INTEGER)",
            f"CAST({one} AS TEXT)", f"ifnull({one}, {two})", f"({one} COLLATE NOCASE)", f"({one} IS {two})",
            f"nullif({one}, {two})", f"substr({one}, 1, 2)", f"min({one}, {two})", f"({one} - {two})",
            f"({one} = {two})", f"date('2024-02-{self._pick(('01', '28', '29'))}', length({one}) || ' days')",
            f"strftime('%Y-%j', {self._pick((20000, 0.5, -1))} + length({one}))", f"julianday({one})",
            f"json_quote(typeof({one}))", f"json_valid({one})",
        )  # fmt: skip
        return self._pick(forms)

    def _predicate(self, columns: Sequence[str], depth: int = 1) -> str:
        one = self._scalar(columns, depth)
        two = self._scalar(columns, depth)
        operator = self._pick(("=", "<>", "<", "<=", ">", ">=", "IS", "IS NOT"))
        forms = [
            f"{one} {operator} {two}", f"{one} IS NOT NULL", f"{one} BETWEEN {two} AND {self._literal()}",
            f"{one} IN ({two}, {self._literal()})", f"{one} LIKE '%a%'", f"{one} {operator} {self._literal()}",
            f"{one} NOT IN ({self._literal()}, {two})", f"{one}",
        ]  # fmt: skip
        if depth > 0:
            forms.append(f"({self._predicate(columns, 0)}) {self._pick(('AND', 'OR'))} ({self._predicate(columns, 0)})")
            forms.append(f"NOT ({self._predicate(columns, 0)})")
        return self._pick(forms)

    def _where(self, columns: Sequence[str]) -> str:
        return f" WHERE {self._predicate(columns)}" if self._chance(0.5) else ""

    def _order(self, terms: Sequence[str], share: float = 0.6) -> str:
        if not terms or not self._chance(share):
            return ""
        chosen = [
            f"{self._pick(terms)}{self._pick(('', '', ' COLLATE NOCASE'))}{self._pick(('', ' DESC', ' ASC'))}"
            f"{self._pick(('', '', ' NULLS LAST', ' NULLS FIRST'))}"
            for _ in range(1 + self._random.randrange(2))
        ]
        return " ORDER BY " + ", ".join(chosen)

    def _limit(self) -> str:
        if not self._chance(0.4):
            return ""
        limit = self._pick(("1", "3", "5", "-1", "0", "2 + 1", "?"))
        if limit == "?":
            limit = self._parameter(self._pick((0, 2, 4)))
        if self._chance(0.4):
            return f" LIMIT {limit} OFFSET {self._pick(('0', '1', '2', '-1'))}"
        return f" LIMIT {limit}"

    def _table(self, tables: Mapping[str, Sequence[str]]) -> tuple[str, list[str], str]:
        name = self._pick(list(tables))
        columns = list(tables[name])
        if self._chance(0.2):
            return f"{name} AS x", [f"x.{column}" if self._chance(0.5) else column for column in columns], "x"
        return name, columns, name

    def _plain(self, tables: Mapping[str, Sequence[str]]) -> str:
        source, columns, _ = self._table(tables)
        items = [self._scalar(columns) for _ in range(1 + self._random.randrange(3))]
        distinct = "DISTINCT " if self._chance(0.3) else ""
        terms = [*(items if distinct and self._chance(0.7) else columns), *map(str, range(1, len(items) + 1))]
        if self._chance(0.25):
            items, terms = ["*"], list(columns)
        elif self._chance(0.3):
            items[0] += f" AS {self._pick(('a', 'b', 'k'))}"
        where = self._where(columns)
        return f"SELECT {distinct}{', '.join(items)} FROM {source}{where}{self._order(terms)}{self._limit()}"

    def _aggregate(self, columns: Sequence[str]) -> str:
        one = self._scalar(columns, 1)
        number = self._pick(columns)
        distinct = "DISTINCT " if self._chance(0.15) else ""
        call = self._pick(
            ("COUNT(*)", f"COUNT({distinct}{one})", f"SUM({distinct}{number})", f"AVG({number})", f"TOTAL({number})",
             f"MIN({one})", f"MAX({one})", f"SUM({one})", f"MIN({number})", f"MAX({number})",
             f"GROUP_CONCAT({number})", f"SUM({number} * 2)", f"AVG({distinct}{one})")
        )  # fmt: skip
        if self._chance(0.12):
            call += f" FILTER (WHERE {self._predicate(columns, 0)})"
        return call

    def _grouped(self, tables: Mapping[str, Sequence[str]]) -> str:
        source, columns, _ = self._table(tables)
        keys = [self._scalar(columns, 1) if self._chance(0.3) else self._pick(columns)]
        keys += [self._pick(columns)] if self._chance(0.3) else []
        if self._chance(0.35):
            keys = []
        calls = [self._aggregate(columns) for _ in range(1 + self._random.randrange(3))]
        where = self._where(columns)
        items = [*keys, *calls]
        if self._chance(0.15):
            items.append(self._pick(columns))
        if self._chance(0.2):
            items.append(f"{calls[0]} + 1")
        aliased = [f"{item} AS k{place}" if self._chance(0.2) else item for place, item in enumerate(items)]
        sql = f"SELECT {', '.join(aliased)} FROM {source}{where}"
        if keys:
            listed = [str(place + 1) if self._chance(0.2) else key for place, key in enumerate(keys)]
            listed = [str(place + 1) if _is_literal(key) else key for place, key in enumerate(listed)]
            sql += f" GROUP BY {', '.join(listed)}"
        if keys and self._chance(0.3):
            sql += f" HAVING {self._aggregate(columns)} {self._pick(('>', '<', '=', 'IS NOT'))} {self._literal()}"
        terms = [*(str(place + 1) for place in range(len(items))), *(key for key in keys if not _is_literal(key))]
        return sql + self._order(terms, 0.5 if keys else 0.1) + self._limit()

    def _window(self, tables: Mapping[str, Sequence[str]]) -> str:
        source, columns, _ = self._table(tables)
        function = self._pick(
            ("ROW_NUMBER()", "RANK()", f"SUM(length({self._pick(columns)}))", f"MAX({self._pick(columns)})")
        )
        partition = f"PARTITION BY {self._pick(columns)} " if self._chance(0.6) else ""
        over = f"{function} OVER ({partition}ORDER BY {self._pick(columns)}, {self._pick(columns)})"
        rest = f"{self._where(columns)}{self._order(['1', '2'])}{self._limit()}"
        return f"SELECT {self._pick(columns)}, {over} FROM {source}{rest}"

    def _compound(self, tables: Mapping[str, Sequence[str]]) -> str:
        parts = []
        for _ in range(2 + self._random.randrange(2)):
            source, columns, _ = self._table(tables)
            parts.append(
                f"SELECT {self._pick(columns)} AS k, {self._scalar(columns, 1)} FROM {source}{self._where(columns)}"
            )
        operator = self._pick((" UNION ", " UNION ALL ", " INTERSECT ", " EXCEPT "))
        return operator.join(parts) + self._order(["1", "2", "k"]) + self._limit()

    def _joined(self, tables: Mapping[str, Sequence[str]]) -> str:
        left, right = self._pick(list(tables)), self._pick(list(tables))
        columns = [f"l.{name}" for name in tables[left]] + [f"r.{name}" for name in tables[right]]
        join = self._pick(("JOIN", "LEFT JOIN", "CROSS JOIN", ","))
        on = (
            f" ON l.{self._pick(tables[left])} = r.{self._pick(tables[right])}" if join in ("JOIN", "LEFT JOIN") else ""
        )
        items = [self._pick(columns), self._scalar(columns, 1)]
        if self._chance(0.3):
            items = [self._pick(columns), f"COUNT({self._pick(columns)})"]
            group = f" GROUP BY {items[0]}"
            return f"SELECT {', '.join(items)} FROM {left} AS l {join} {right} AS r{on}{self._where(columns)}{group}"
        rest = f"{self._where(columns)}{self._order([*items, '1'])}{self._limit()}"
        return f"SELECT {', '.join(items)} FROM {left} AS l {join} {right} AS r{on}{rest}"

    def _top(self, tables: Mapping[str, Sequence[str]]) -> str:
        """Return the first groups by a count or sum: what a threshold algorithm may answer."""
        source, columns, _ = self._table(tables)
        keys = [self._pick(columns)] + ([self._pick(columns)] if self._chance(0.2) else [])
        number = self._pick(columns)
        call = self._pick(
            ("COUNT(*)", f"COUNT({number})", f"SUM({number})", f"TOTAL({number})", f"SUM(length({number}))")
        )
        more = f", {self._aggregate(columns)}" if self._chance(0.4) else ""
        then = self._pick(("", f", {keys[0]}", f", {keys[0]} DESC"))
        limit = f" LIMIT {self._pick((1, 2, 3))}" + (" OFFSET 1" if self._chance(0.3) else "")
        groups = ", ".join(keys)
        where = self._where(columns)
        return f"SELECT {groups}, {call} AS k{more} FROM {source}{where} GROUP BY {groups} ORDER BY k DESC{then}{limit}"

    def _colocated(self, tables: Mapping[str, Sequence[str]], shard: str) -> str:
        """Return a statement over a join on the shard column."""
        left, right = self._pick(list(tables)), self._pick(list(tables))
        columns = [f"l.{name}" for name in tables[left]] + [f"r.{name}" for name in tables[right]]
        join = self._pick(("JOIN", "LEFT JOIN", "JOIN", ",", "CROSS JOIN"))
        equal = f"l.{shard} = r.{shard}"
        if self._chance(0.6):
            equal += (
                f" AND l.{self._pick(tables[left])} {self._pick(('=', '=', '<', 'IS'))} r.{self._pick(tables[right])}"
            )
        on = f" ON {equal}"
        if join in ("JOIN", "LEFT JOIN"):
            on = f" USING ({shard})" if self._chance(0.2) else on
            where = self._where(columns)
        else:
            on, where = "", f" WHERE {equal}" + (f" AND {self._predicate(columns)}" if self._chance(0.4) else "")
        source = f"{left} AS l {join} {right} AS r{on}{where}"
        if self._chance(0.4):
            keys = [self._pick(columns)]
            calls = [self._aggregate(columns) for _ in range(1 + self._random.randrange(2))]
            having = f" HAVING COUNT(*) > {self._pick((0, 1))}" if self._chance(0.2) else ""
            group = f" GROUP BY {keys[0]}{having}" if self._chance(0.8) else ""
            return (
                f"SELECT {', '.join([*keys, *calls])} FROM {source}{group}{self._order(['1', '2'], 0.4)}{self._limit()}"
            )
        items = [self._pick(columns), self._scalar(columns, 1)]
        distinct = "DISTINCT " if self._chance(0.25) else ""
        listed = "*" if not distinct and "USING" not in on and self._chance(0.2) else ", ".join(items)
        return (
            f"SELECT {distinct}{listed} FROM {source}{self._order(items if listed != '*' else columns)}{self._limit()}"
        )

    def _searched(self) -> str:
        """Return a full-text search."""
        word = self._pick(_WORDS)
        query = self._pick(
            (word, f"{word} OR {self._pick(_WORDS)}", f"title:{word}", f"{word} NOT {self._pick(_WORDS)}")
        )
        match = f"words MATCH '{query}'"
        return self._pick(
            (f"SELECT title, body FROM words WHERE {match}",
             f"SELECT title, bm25(words) FROM words WHERE {match} ORDER BY bm25(words), title",
             f"SELECT title FROM words WHERE {match} ORDER BY rank LIMIT 3",
             f"SELECT COUNT(*), MAX(length(body)) FROM words WHERE {match}",
             f"SELECT snippet(words, 1, '[', ']', '…', 4) FROM words WHERE {match}{self._limit()}",
             "SELECT title, COUNT(*) FROM words GROUP BY title ORDER BY 2 DESC, 1")
        )  # fmt: skip

    def _json(self, tables: Mapping[str, Sequence[str]]) -> str:
        """Return a statement that makes or reads JSON."""
        source, columns, _ = self._table(tables)
        one, where = self._pick(columns), self._where(columns)
        document = f"json_array(typeof({one}), length({one}), 'x')"
        each = f"{source}, json_each({document}) AS j{where}"
        path = f"$[{self._pick((0, 1, 5))}]"
        return self._pick(
            (f"SELECT json_group_array(length({one})) FROM {source}{where}",
             f"SELECT json_extract({document}, '{path}') AS k FROM {source}{where}{self._order(['k'])}",
             f"SELECT j.key, j.value FROM {each}",
             f"SELECT j.value, COUNT(*) FROM {each} GROUP BY j.value ORDER BY 2, 1",
             f"SELECT typeof({one}), json_group_array(length({one})) FROM {source}{where} GROUP BY 1",
             f"SELECT {document} -> 1, {document} ->> 0 FROM {source}{where}{self._limit()}",
             f"SELECT json_object('k', length({one})) FROM {source}{where}")
        )  # fmt: skip

    def _with(self, tables: Mapping[str, Sequence[str]]) -> str:
        source, columns, alias = self._table(tables)
        other = self._pick(list(tables))
        theirs = self._pick(tables[other])
        mine = self._pick(columns)
        outer = mine if "." in mine else f"{alias}.{mine}"
        return self._pick(
            (f"WITH c(k, n) AS (SELECT {mine}, COUNT(*) FROM {source} GROUP BY 1) SELECT * FROM c WHERE n ORDER BY 1",
             f"SELECT {mine} FROM {source} WHERE {mine} IN (SELECT o.{theirs} FROM {other} AS o)",
             f"SELECT {mine}, (SELECT COUNT(*) FROM {other} AS o WHERE o.{theirs} = {outer}) FROM {source}",
             f"SELECT {mine} FROM {source} WHERE EXISTS (SELECT 1 FROM {other} AS o WHERE o.{theirs} < {outer})",
             f"SELECT COUNT(*), MAX(k) FROM (SELECT {mine} AS k FROM {source} ORDER BY 1 LIMIT 4)")
        )  # fmt: skip


def _is_literal(text: str) -> bool:
    """Return whether a GROUP BY or ORDER BY term would be read as a position or a constant."""
    return re.match(r"-?[\d.]+(e[-+]?\d+)?\Z|'|x'|NULL\Z|\x01", text) is not None
