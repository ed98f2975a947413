"""What SQLite itself says of a schema and of a statement: the planner's ground truth.

Theory of operation
-------------------
Nothing here parses SQL. A schema-only database prepares the statement: the authorizer tells which tables, columns and
functions it reads, EXPLAIN gives its program and EXPLAIN QUERY PLAN the order in which it would visit rows. Two texts
that compile to the same program mean the same, which is how the planner trusts a parser that is not SQLite's.

Where the schema has a shard column, keys are unique within a vendor and not over all of them, so the database that
stands for "all rows in one table" (`whole`) declares those tables without their keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mktsim.errors import InvalidArgumentError, ReadOnlyError, SQLSyntaxError, UnsupportedQueryError, cause
from mktsim.sql import lexer
from mktsim.sql.exact import register
from mktsim.sql.lexer import PREFIX, Statement
from mktsim.sql.schema import Schema
from mktsim.sqlite import (
    SQLITE_DENY,
    SQLITE_FUNCTION,
    SQLITE_OK,
    SQLITE_READ,
    SQLITE_RECURSIVE,
    SQLITE_SELECT,
    AuthError,
    Connection,
    Cursor,
    Error,
    ExecTraceAbort,
    connect,
    driver,
    quote,
    rows,
)

ROWID_NAMES = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its declared type and collation; `shown` is false where ``*`` leaves it out."""

    name: str
    type: str
    collation: str
    shown: bool

    def definition(self) -> str:
        """Return the column's definition with type and collation only."""
        collate = f" COLLATE {quote(self.collation)}" if self.collation.upper() != "BINARY" else ""
        return f"{quote(self.name)} {self.type}{collate}"


@dataclass(frozen=True, slots=True)
class IndexTerm:
    """One term of an index; `column` is None for an expression."""

    column: str | None
    descending: bool
    collation: str


@dataclass(frozen=True, slots=True)
class Index:
    """An index; `origin` is ``c`` (CREATE INDEX), ``u`` (UNIQUE) or ``pk``."""

    name: str
    terms: tuple[IndexTerm, ...]
    origin: str
    partial: bool

    @property
    def on_expression(self) -> bool:
        """Whether a term is an expression."""
        return any(term.column is None for term in self.terms)


@dataclass(frozen=True, slots=True)
class Table:
    """A table, view or virtual table of the schema."""

    name: str
    kind: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    without_rowid: bool
    strict: bool
    indexes: tuple[Index, ...]

    def column(self, name: str) -> Column | None:
        """Return the column of that name, whatever its case."""
        folded = name.lower()
        return next((column for column in self.columns if column.name.lower() == folded), None)

    @property
    def rowid(self) -> str | None:
        """A name by which the rowid can be asked for, or None."""
        if self.kind != "table" or self.without_rowid:
            return None
        return next((name for name in ROWID_NAMES if self.column(name) is None), None)

    @property
    def rowid_alias(self) -> str | None:
        """The INTEGER PRIMARY KEY column, which is the rowid, or None."""
        if self.without_rowid or len(self.key) != 1 or any(index.origin == "pk" for index in self.indexes):
            return None
        return self.key[0]

    def ddl(self, *, keys: bool) -> str:
        """Return DDL for a copy that takes any row: same names, types, collations; keys only where asked for."""
        untyped = " ANY" if self.strict else ""
        parts = [column.definition() + ("" if column.type else untyped) for column in self.columns if column.shown]
        options = []
        if keys:
            by_origin = [index for index in self.indexes if index.origin in ("u", "pk")]
            if self.key and not any(index.origin == "pk" for index in by_origin):
                parts.append(f"PRIMARY KEY({', '.join(map(quote, self.key))})")
            for index in by_origin:
                terms = index.terms[: len(self.key)] if index.origin == "pk" else index.terms
                listed = ", ".join(
                    f"{quote(term.column or '')} COLLATE {quote(term.collation)}{' DESC' if term.descending else ''}"
                    for term in terms
                )
                parts.append(f"{'PRIMARY KEY' if index.origin == 'pk' else 'UNIQUE'}({listed})")
            if self.without_rowid:
                options.append("WITHOUT ROWID")
        if self.strict:
            options.append("STRICT")
        return f"CREATE TABLE {quote(self.name)}({', '.join(parts)}) {', '.join(options)}".rstrip()


@dataclass(frozen=True, slots=True)
class Facts:
    """What SQLite says of one statement.

    Attributes
    ----------
    columns : tuple of str
        Result column names.
    reads : dict
        Table name in lower case -> names of the columns it reads (as declared).
    functions : frozenset of str
        Functions called, in lower case.
    steps : tuple of str
        The lines of EXPLAIN QUERY PLAN.
    reverse : bool
        Whether the program walks a table or index backwards.
    opened : frozenset of str
        Tables and indexes the program opens, in lower case: NATURAL or USING reads columns unreported.
    compares_silently : bool
        Whether the statement, or a view it reads, has NATURAL or USING.
    """

    columns: tuple[str, ...]
    reads: dict[str, frozenset[str]]
    functions: frozenset[str]
    steps: tuple[str, ...]
    reverse: bool
    opened: frozenset[str]
    compares_silently: bool


class Catalog:
    """A schema, introspected once, with databases to prepare statements on.

    Parameters
    ----------
    schema : Schema
        The DDL every vendor database shares.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.vendor = schema.database()
        self.tables = {table.name.lower(): table for table in _introspect(self.vendor)}
        self.aggregates = frozenset(
            str(name).lower()
            for name, kind in self.vendor.execute("SELECT name, type FROM pragma_function_list")
            if kind in ("a", "w")
        ) - {"min", "max"}
        register(self.vendor)
        #: Tables whose keys hold within a vendor only.
        self.relaxed = frozenset(name for name in self.tables if self._is_sharded(name))
        self.whole = self.vendor
        if any(self.tables[name].key or self.tables[name].indexes for name in self.relaxed):
            self.whole = connect()
            register(self.whole)
            for statement in self.statements(relaxed=self.relaxed):
                self.whole.execute(statement)

        self._roots = {
            page: (str(name).lower(), str(table).lower())
            for page, name, table in self.whole.execute(
                "SELECT rootpage, name, tbl_name FROM sqlite_schema WHERE rootpage > 0"
            )
        }
        self._view_words = {
            str(name).lower(): set(lexer.read(str(sql)).words)
            for name, sql in self.whole.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'view'")
        }

    def _is_sharded(self, name: str) -> bool:
        column = self.schema.shard_column
        return column is not None and self.tables[name].column(column) is not None

    def statements(self, *, relaxed: Iterable[str]) -> tuple[str, ...]:
        """Return DDL of a database that takes rows of many vendors; tables named in `relaxed` lose their keys."""
        free = set(relaxed)
        made = [
            table.ddl(keys=table.name.lower() not in free) for table in self.tables.values() if table.kind == "table"
        ]
        for statement in self.schema.statements:
            head = statement.split(None, 3)[:3]
            kind = next((word.upper() for word in head[1:3] if word.upper() in ("INDEX", "VIEW", "VIRTUAL")), None)
            if kind == "INDEX" and head[1].upper() == "UNIQUE":
                statement = re.sub(r"(?i)\bUNIQUE\b", "", statement, count=1)
            if kind is not None:
                made.append(statement)
        return tuple(made)

    # -- statements -----------------------------------------------------------------------------------------------

    def facts(self, statement: Statement) -> Facts:
        """Prepare a statement and return what SQLite says of it; nothing is run.

        Raises
        ------
        SQLSyntaxError, ReadOnlyError, UnsupportedQueryError
            In SQLite's own words where it cannot be prepared; where it would write; where it is no SELECT.
        """
        bindings = {f"{PREFIX}{number}": None for number in range(1, len(statement.parameters) + 1)}
        events: list[tuple[int, str | None, str | None, str | None, str | None]] = []
        denied: list[str] = []

        def authorize(code: int, first: str | None, second: str | None, third: str | None, by: str | None) -> int:
            if code not in (SQLITE_SELECT, SQLITE_READ, SQLITE_FUNCTION, SQLITE_RECURSIVE):
                denied.append(_action(code))
                return SQLITE_DENY
            events.append((code, first, second, third, by))
            return SQLITE_OK

        cursor = self.whole.cursor()
        columns: list[str] = []
        ran: list[bool] = []

        def look(inner: Cursor, _sql: str, _bindings: object) -> bool:
            columns.extend(str(entry[0]) for entry in inner.get_description())
            ran.append(True)
            return False

        cursor.exec_trace = look
        self.whole.authorizer = authorize
        try:
            # The original text: names of result columns and offsets of errors are the caller's.
            cursor.execute(statement.sql, (None,) * len(statement.parameters), can_cache=False)
        except ExecTraceAbort:
            pass
        except Error as error:
            raise self._refusal(statement, error, denied) from cause(error)
        finally:
            self.whole.authorizer = None
        if not ran or not columns:
            raise ReadOnlyError("query only reads, and this statement returns no rows", sql=statement.sql)
        if statement.words[:1] not in (("SELECT",), ("WITH",), ("VALUES",)):
            raise UnsupportedQueryError(
                f"{statement.words[0] if statement.words else 'this'} is not a SELECT: use explain() for plans, "
                "and the vendor's own stub for anything else",
                sql=statement.sql,
            )
        reads: dict[str, set[str]] = {}
        for code, first, second, _third, _by in events:
            if code == SQLITE_READ and first is not None:
                reads.setdefault(first.lower(), set()).update([second] if second else [])
        steps = tuple(str(row[3]) for row in self.whole.execute(statement.normal, bindings, explain=2))
        try:
            program = self.program(statement.normal, bindings)
        except UnicodeDecodeError:  # A blob that is no text stands in the program.
            program = []
        if program:
            opened = {name for row in program if row[1] == "OpenRead" for name in self._roots.get(row[3], ())}
        else:
            opened = {name for names in self._roots.values() for name in names}
        texts = [set(statement.words), *(words for name, words in self._view_words.items() if name in reads)]
        return Facts(
            columns=tuple(columns),
            reads={name: frozenset(names) for name, names in reads.items()},
            functions=frozenset(str(second).lower() for code, _, second, _, _ in events if code == SQLITE_FUNCTION),
            steps=steps,
            reverse=_walks_backwards(program),
            opened=frozenset(opened),
            compares_silently=any(words & {"NATURAL", "USING"} for words in texts),
        )

    def program(
        self, sql: str, bindings: dict[str, None] | None = None, *, on: Connection | None = None
    ) -> list[tuple[object, ...]]:
        """Return the program SQLite compiles `sql` to, without comments."""
        rows = (on or self.whole).execute(sql, bindings, explain=1, can_cache=False)
        return [tuple(row[:7]) for row in rows]

    def vendor_steps(self, sql: str, parameters: int) -> list[str]:
        """Return the lines of EXPLAIN QUERY PLAN at a vendor, for a text with plain ``?`` placeholders."""
        return [str(row[3]) for row in self.vendor.execute(sql, (None,) * parameters, explain=2)]

    def _refusal(self, statement: Statement, error: Exception, denied: list[str]) -> Exception:
        text = str(error)
        if denied or isinstance(error, AuthError):
            action = denied[0] if denied else "writing"
            return ReadOnlyError(f"query only reads, and this statement asks for {action}", sql=statement.sql)
        offset = getattr(error, "error_offset", -1)
        position = len(statement.sql.encode()[:offset].decode(errors="ignore")) if offset >= 0 else None
        return SQLSyntaxError(text, sql=statement.sql, position=position)


def _walks_backwards(program: list[tuple[object, ...]]) -> bool:
    stored = {row[2] for row in program if row[1] == "OpenRead"}
    return any(row[1] in ("Last", "Prev", "SeekLT", "SeekLE") and row[2] in stored for row in program)


def _action(code: int) -> str:
    names = driver.mapping_authorizer_function
    return str(names.get(code, f"action {code}")).removeprefix("SQLITE_").replace("_", " ").lower()


def _introspect(connection: Connection) -> list[Table]:
    tables = []
    listed = rows(
        connection,
        "SELECT name, type, wr, strict FROM pragma_table_list "
        "WHERE schema = 'main' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND type <> 'shadow'",
    )
    order = {
        name: place for place, (name,) in enumerate(rows(connection, "SELECT name FROM sqlite_schema ORDER BY rowid"))
    }
    for name, kind, without_rowid, strict in sorted(listed, key=lambda row: order.get(row[0], len(order))):
        try:
            info = rows(connection, "SELECT name, type, pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid", (name,))
        except Error as error:
            raise InvalidArgumentError(f"table {name!r} cannot be read: {error}") from error
        columns = []
        for column, declared, _pk, hidden in info:
            collation = connection.column_metadata("main", name, column)[1] if kind == "table" else "BINARY"
            # In a STRICT table ANY means no affinity; elsewhere it would be NUMERIC.
            kept = "" if strict and declared.upper() == "ANY" else _type(declared)
            columns.append(Column(column, kept, collation, hidden != 1))
        key = tuple(row[0] for row in sorted((row for row in info if row[2]), key=lambda row: int(row[2])))
        indexes = tuple(_index(connection, name))
        tables.append(Table(name, kind, tuple(columns), key, bool(without_rowid), bool(strict), indexes))
    return tables


def _index(connection: Connection, table: str) -> Iterator[Index]:
    listed = rows(connection, "SELECT name, origin, partial FROM pragma_index_list(?) ORDER BY seq DESC", (table,))
    for name, origin, partial in listed:
        terms = rows(
            connection, "SELECT name, desc, coll, cid FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno", (name,)
        )
        # A rowid in an index (cid -1) has no name to ship it by, like an expression (cid -2).
        made = tuple(IndexTerm(term if cid >= 0 else None, bool(desc), coll) for term, desc, coll, cid in terms)
        yield Index(name, made, origin, bool(partial))


def _type(declared: str) -> str:
    """Return a declared type that can be written back; an odd one is replaced by its affinity's name."""
    if re.fullmatch(r"\s*[A-Za-z_][\w ]*(\(\s*[-+]?\w+\s*(,\s*[-+]?\w+\s*)?\))?\s*", declared or ""):
        return declared.strip() if not (set(declared.upper().split()) & _RESERVED) else affinity(declared)
    return affinity(declared) if declared else ""


_RESERVED = {
    "PRIMARY", "KEY", "UNIQUE", "NOT", "NULL", "DEFAULT", "CHECK", "COLLATE", "REFERENCES", "GENERATED", "AS",
    "CONSTRAINT", "FOREIGN", "ALWAYS",
}  # fmt: skip


def affinity(declared: str) -> str:
    """Return the affinity SQLite derives from a declared type.

    Source: SQLite documentation, "Datatypes In SQLite", section 3.1.

    Examples
    --------
    >>> affinity("VARCHAR(20)"), affinity("BIGINT"), affinity("DOUBLE"), affinity("DECIMAL(10,2)"), affinity("")
    ('TEXT', 'INTEGER', 'REAL', 'NUMERIC', 'BLOB')
    """
    upper = (declared or "").upper()
    if "INT" in upper:
        return "INTEGER"
    if any(mark in upper for mark in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if not upper or "BLOB" in upper:
        return "BLOB"
    if any(mark in upper for mark in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"
