"""Vendor stores: a SQLite database for each vendor, in memory, in a folder of files, or packed into shard files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mktsim.errors import InvalidArgumentError
from mktsim.sql.schema import Schema
from mktsim.storage.base import Answer, Row, Setup, Statement, Tables, VendorStore
from mktsim.storage.directory import DirectoryStore
from mktsim.storage.guards import MAX_VENDOR_ID_CHARACTERS
from mktsim.storage.memory import MemoryStore
from mktsim.storage.migrate import Migration
from mktsim.storage.packed import PackedStore, ShardScanner, close_scanners, open_scanner

__all__ = [
    "MAX_VENDOR_ID_CHARACTERS",
    "Answer",
    "DirectoryStore",
    "MemoryStore",
    "Migration",
    "PackedStore",
    "Row",
    "Setup",
    "ShardScanner",
    "Statement",
    "Tables",
    "VendorStore",
    "close_scanners",
    "open_scanner",
    "open_store",
]


def open_store(
    kind: str,
    path: str | Path | None,
    schema: Schema,
    *,
    shards: Sequence[str],
    locate: Callable[[str], str],
    setup: Setup | None = None,
    migration: Migration | None = None,
) -> VendorStore:
    """Open a store, or make it where there is none.

    Parameters
    ----------
    kind : {"memory", "directory", "packed"}
        Connections in this process; a file a vendor; or a file a shard.
    path : str or Path or None
        The folder; None for memory.
    schema : Schema
        What every vendor database is created from.
    shards : sequence of str
        Names of the shards.
    locate : callable
        Vendor id to shard name.
    setup : callable, optional
        Called once on every connection that runs scans or is lent for reading.
    migration : Migration, optional
        The version of the schema, and the way there from earlier ones.

    Returns
    -------
    VendorStore

    Raises
    ------
    InvalidArgumentError
    SchemaMismatchError
        The store was made for another schema.
    StorageError
        The folder cannot be used.

    Examples
    --------
    >>> schema = Schema(("CREATE TABLE products(id, rating)",))
    >>> with open_store("memory", None, schema, shards=["s0"], locate=lambda vendor_id: "s0") as store:
    ...     store.create("acme", {"products": [("p1", 4.5), ("p2", 3.0)]})
    ...     with store.transaction("acme") as connection:
    ...         _ = connection.execute("DELETE FROM products WHERE rating < 4")
    ...     print(list(store.scan("s0", [("SELECT COUNT(*) FROM products", ())])), store.version("acme"))
    [('acme', ([(1,)],))] 2
    """
    if kind == "memory":
        if path is not None:
            raise InvalidArgumentError(f"a memory store has no path, got {str(path)[:200]!r}")
        return MemoryStore(schema, shards=shards, locate=locate, setup=setup, migration=migration)
    if kind not in ("directory", "packed"):
        raise InvalidArgumentError(f"a store is 'memory', 'directory' or 'packed', not {str(kind)[:80]!r}")
    if path is None:
        raise InvalidArgumentError(f"a {kind} store needs a path: the folder that holds it")
    if "\0" in str(path):
        raise InvalidArgumentError("the path of a store cannot hold NUL")
    store: type[DirectoryStore | PackedStore] = DirectoryStore if kind == "directory" else PackedStore
    return store(path, schema, shards=shards, locate=locate, setup=setup, migration=migration)
