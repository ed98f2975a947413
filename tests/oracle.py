"""ONE SQLite that holds every vendor's rows: the answer each merge must equal."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from mktsim.fanout import QueryCoordinator, QueryResult, Scanner
from mktsim.sqlite import Connection, connect, quote

Row = tuple[Any, ...]


def typed(rows: Iterable[Sequence[Any]]) -> list[list[tuple[str, Any]]]:
    """Return rows as (type, value), floats by their bits, so that 1 and 1.0, 0.0 and -0.0 differ."""
    return [[(type(v).__name__, v.hex() if isinstance(v, float) and math.isfinite(v) else v) for v in r] for r in rows]


def answer(connection: Connection, sql: str, params: Any = ()) -> tuple[tuple[str, ...], list[Row]]:
    """Run a statement on one database: column names and rows."""
    cursor = connection.cursor()
    names: list[str] = []

    def look(inner: Any, _sql: str, _bindings: Any) -> bool:
        names.extend(entry[0] for entry in inner.get_description())
        return True

    cursor.exec_trace = look
    rows = cursor.execute(sql, params).fetchall()
    return tuple(names), rows


def tables_of(connection: Connection) -> list[str]:
    """Return the ordinary tables of a database, in the order in which they were made."""
    return [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
        )
    ]


def columns_of(connection: Connection, table: str) -> list[str]:
    """Return a table's stored columns (generated ones are left out)."""
    return [
        row[0]
        for row in connection.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid", (table,))
    ]


def split(connection: Connection, vendors: int, *, how: str = "contiguous", empty: bool = True) -> list[Connection]:
    """Spread the rows of one database over several, each with its DDL; the last one stays empty if asked for."""
    ddl = [
        sql
        for (sql,) in connection.execute(
            "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
        )
    ]
    fleet = [connect() for _ in range(vendors + empty)]
    for database in fleet:
        for sql in ddl:
            database.execute(sql)
    for table in tables_of(connection):
        listed = ", ".join(map(quote, columns_of(connection, table)))
        without_rowid = connection.execute("SELECT wr FROM pragma_table_list WHERE name = ?", (table,)).fetchone()[0]
        order = "" if without_rowid else "ORDER BY rowid"
        rows = connection.execute(f"SELECT {listed} FROM {quote(table)} NOT INDEXED {order}").fetchall()
        for place, row in enumerate(rows):
            vendor = place * vendors // len(rows) if how == "contiguous" else zlib.crc32(repr(row).encode()) % vendors
            marks = ", ".join("?" * len(row))
            fleet[vendor].execute(f"INSERT INTO {quote(table)}({listed}) VALUES ({marks})", row)
    return fleet


@contextmanager
def coordinator(fleet: Sequence[Connection], **options: Any) -> Any:
    """Make a coordinator over open databases."""
    made = QueryCoordinator(
        [Scanner.from_connection(f"v{place:03d}", database) for place, database in enumerate(fleet)], **options
    )
    try:
        yield made
    finally:
        made.close()


def ask(made: QueryCoordinator, sql: str, params: Any = (), **options: Any) -> QueryResult:
    """Run one query to its end."""
    return asyncio.run(made.query(sql, params, **options))
