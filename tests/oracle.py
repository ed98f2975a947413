"""ONE SQLite that holds every vendor's rows, and ways to split it: helpers beside `mktsim.testing`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mktsim.fanout import QueryCoordinator, QueryResult, Scanner, store_scanners
from mktsim.sql import register
from mktsim.sqlite import Connection, connect, quote
from mktsim.storage import PackedStore
from mktsim.testing import Case

_ORDINARY = "sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"


def split(connection: Connection, vendors: int, *, how: str = "contiguous", empty: bool = True) -> list[Connection]:
    """Spread the rows of one database over several, each with its DDL; one more stays empty if asked for."""
    fleet = [connect() for _ in range(vendors + empty)]
    for (sql,) in connection.execute(f"SELECT sql FROM sqlite_schema WHERE {_ORDINARY} ORDER BY rowid").fetchall():
        for database in fleet:
            database.execute(sql)
    tables = connection.execute(
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite%'"
    ).fetchall()
    for table, without_rowid in tables:
        columns = connection.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid", (table,))
        listed = ", ".join(quote(name) for (name,) in columns.fetchall())
        order = "" if without_rowid else "ORDER BY rowid"
        rows = connection.execute(f"SELECT {listed} FROM {quote(table)} NOT INDEXED {order}").fetchall()
        for place, row in enumerate(rows):
            chosen = place * vendors // len(rows) if how == "contiguous" else zlib.crc32(repr(row).encode()) % vendors
            marks = ", ".join("?" * len(row))
            fleet[chosen].execute(f"INSERT INTO {quote(table)}({listed}) VALUES ({marks})", row)
    return fleet


@contextmanager
def coordinator(fleet: Sequence[Connection], **options: Any) -> Iterator[QueryCoordinator]:
    """Make a coordinator over open databases, and close it."""
    made = QueryCoordinator(
        [Scanner.from_connection(f"v{place:03d}", database) for place, database in enumerate(fleet)], **options
    )
    try:
        yield made
    finally:
        made.close()


@contextmanager
def packed_coordinator(case: Case, folder: Path, shards: Sequence[str] = ("a", "b", "c")) -> Iterator[QueryCoordinator]:
    """Pack a case's vendors into shard files, and make a coordinator over them."""

    def locate(vendor_id: str) -> str:
        return shards[zlib.crc32(vendor_id.encode()) % len(shards)]

    store = PackedStore(folder, case.schema, shards=shards, locate=locate, setup=register)
    with store:
        tables: dict[str, dict[str, list[Any]]] = {f"v{vendor:03d}": {} for vendor in range(case.vendors)}
        for table in case.tables:
            owners = case.owners.get(table.name, (0,) * len(table.rows))
            for owner, row in zip(owners, table.rows, strict=True):
                tables[f"v{owner:03d}"].setdefault(table.name, []).append(row)
        store.create_many(tables.items())
        made = QueryCoordinator(store_scanners(store), schema=case.schema)
        try:
            yield made
        finally:
            made.close()


def ask(made: QueryCoordinator, sql: str, params: Any = (), **options: Any) -> QueryResult:
    """Run one query to its end."""
    return asyncio.run(made.query(sql, params, **options))
