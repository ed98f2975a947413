"""Vendors packed into shard files: a file is an SQLite database with one row a vendor, its whole database in it.

Rules
-----
* A vendor's image, version and schema digest are one row; a commit of a vendor is one transaction of its shard file.
* A commit compares the version it started from: two processes cannot overwrite each other's change.
* Commits that join a group are in one transaction of the shard file: all of them last, or none does.

Theory of operation
-------------------
A million vendors cannot be a million files, nor a million connections (41 KB of memory each). *Reading* serves images
to one connection (`mktsim.storage.scanner`, `mktsim.storage.vfs`). *Writing* activates the vendor: its image is loaded
into an in-memory connection, which is kept among the most recently used; the transaction runs there, and once it has
committed the new image goes to the shard file with the version one higher. If that fails, the connection is discarded
and nothing has happened. *Creating* in bulk fills the template and rolls it back, vendor after vendor. *Group commit*:
waiting for the disk costs milliseconds and everything else microseconds, so that a commit that joins leaves the shard
file's transaction open until `flush`; who asked for it must not be answered before.

What this does not do
---------------------
A commit writes the whole image: fit for vendors of up to some megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mktsim.errors import DuplicateError, SchemaMismatchError, StorageError
from mktsim.sql.schema import Schema
from mktsim.sqlite import Connection, ConstraintError, Error
from mktsim.sqlite import transaction as file_transaction
from mktsim.storage.base import Answer, Setup, Statement, Tables, VendorStore
from mktsim.storage.connections import Cache, Writer
from mktsim.storage.folder import claim, file_name, open_file
from mktsim.storage.guards import check_vendor_id, named_errors, shown, unknown, vendor_errors
from mktsim.storage.images import checked, open_quickly
from mktsim.storage.migrate import Migration
from mktsim.storage.scanner import ShardScanner, close_scanners, open_scanner

__all__ = ["PackedStore", "ShardScanner", "close_scanners", "open_scanner"]

_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS vendors("
    "id TEXT NOT NULL PRIMARY KEY, schema_digest TEXT NOT NULL, version INTEGER NOT NULL, image BLOB NOT NULL) STRICT"
)
_INSERT: Final = "INSERT INTO vendors(id, schema_digest, version, image) VALUES(?, ?, ?, ?)"
_UPDATE: Final = "UPDATE vendors SET image = ?, version = ? WHERE id = ? AND version = ?"
_BATCH_VENDORS: Final = 256
_BATCH_BYTES: Final = 16 << 20


class _Active:
    """A vendor whose database is loaded, and the version it was loaded at."""

    __slots__ = ("version", "writer")

    def __init__(self, writer: Writer, version: int) -> None:
        self.writer = writer
        self.version = version

    def close(self) -> None:
        self.writer.connection.close(True)


class PackedStore(VendorStore):
    """A :class:`VendorStore` of one file a shard, for one vendor to a million.

    Parameters
    ----------
    path : str or Path
        The folder.
    active_vendors : int
        How many vendors stay loaded for writing, about 60 KB each.
    """

    groups = True

    def __init__(
        self,
        path: str | Path,
        schema: Schema,
        *,
        shards: Sequence[str],
        locate: Callable[[str], str],
        setup: Setup | None = None,
        migration: Migration | None = None,
        active_vendors: int = 256,
    ) -> None:
        super().__init__(schema, shards=shards, locate=locate, setup=setup, migration=migration)
        self._current: set[str] = set() if migration is not None else set(shards)
        self._files: dict[str, Connection] = {}
        self._scanners: dict[str, ShardScanner] = {}
        self._active: Cache[_Active] = Cache(active_vendors)
        self._joined: dict[str, set[str]] = {}  # by shard: whose changes its open transaction holds
        self._lost: dict[str, StorageError] = {}
        try:
            self.path = claim(path, "packed", schema, self.shards, version=self.migration.version)
        except BaseException:
            self.close()
            raise

    # -- shard files --------------------------------------------------------------------------------------------

    def shard_path(self, shard: str) -> Path:
        """Return the file of a shard, for :func:`open_scanner` in a worker process."""
        self._file(shard)
        return self.path / file_name(shard)

    def _file(self, shard: str) -> Connection:
        """Return this store's connection for writing to a shard file, which is made on first use."""
        self._check_open()
        connection = self._files.get(shard)
        if connection is None:
            self._check_shard(shard)
            path = self.path / file_name(shard)
            with named_errors(f"shard file {path}"):
                connection = open_file(path)
                self._files[shard] = connection
                connection.execute(_CREATE)
        return connection

    def _scanner(self, shard: str) -> ShardScanner:
        scanner = self._scanners.get(shard)
        if scanner is None:
            scanner = self._scanners[shard] = ShardScanner(self.shard_path(shard), self.setup)
        return scanner

    @contextmanager
    def _file_of(self, vendor_id: str) -> Iterator[Connection]:
        shard = self.shard_of(vendor_id)
        file = self._file(shard)
        with named_errors(f"shard file {self.path / file_name(shard)}, vendor {shown(vendor_id)}"):
            yield file

    # -- vendors ------------------------------------------------------------------------------------------------

    def vendor_ids(self, shard: str | None = None) -> list[str]:
        if shard is None:
            return sorted(vendor_id for shard in self.shards for vendor_id in self.vendor_ids(shard))
        with named_errors(f"shard {shard!r}"):
            return [str(row[0]) for row in self._file(shard).execute("SELECT id FROM vendors ORDER BY id")]

    def __contains__(self, vendor_id: object) -> bool:
        with self._file_of(check_vendor_id(vendor_id)) as file:
            return file.execute("SELECT 1 FROM vendors WHERE id = ?", (vendor_id,)).fetchone() is not None

    def count(self, shard: str | None = None) -> int:
        if shard is None:
            return sum(map(self.count, self.shards))
        with named_errors(f"shard {shard!r}"):
            return int(self._file(shard).execute("SELECT COUNT(*) FROM vendors").get)

    def create_many(self, vendors: Iterable[tuple[str, Tables]]) -> int:
        self._check_open()
        waiting: dict[str, list[tuple[str, str, int, bytes]]] = {}
        waiting_bytes = count = 0
        for vendor_id, tables in vendors:
            rows = waiting.setdefault(self.shard_of(vendor_id), [])
            image = self.template.fill(vendor_id, tables)
            rows.append((vendor_id, self.schema.digest, 1, image))
            waiting_bytes += len(image)
            count += 1
            if len(rows) >= _BATCH_VENDORS:
                waiting_bytes -= self._insert(rows)
            elif waiting_bytes >= _BATCH_BYTES:
                waiting_bytes -= sum(map(self._insert, waiting.values()))
        for rows in waiting.values():
            self._insert(rows)
        return count

    def _insert(self, rows: list[tuple[str, str, int, bytes]]) -> int:
        """Insert a batch of one shard in one transaction, empty the list, and return how many bytes it held."""
        if not rows:
            return 0
        rows.sort()
        self._flush(self.shard_of(rows[0][0]))
        with self._file_of(rows[0][0]) as file:
            try:
                with file_transaction(file):
                    file.executemany(_INSERT, rows)
            except ConstraintError as error:
                taken = next((row[0] for row in rows if row[0] in self), rows[0][0])
                raise DuplicateError(f"vendor {shown(taken)} exists already") from error
        size = sum(len(row[3]) for row in rows)
        rows.clear()
        return size

    @contextmanager
    def transaction(self, vendor_id: str) -> Iterator[Connection]:
        with self.join(vendor_id) as connection:
            yield connection
        lost = self._flush(self.shard_of(vendor_id)).get(vendor_id)
        if lost is not None:
            raise lost

    @contextmanager
    def join(self, vendor_id: str) -> Iterator[Connection]:
        with self._exclusively(vendor_id):
            with self._file_of(vendor_id) as file:
                active = self._activate(file, vendor_id)
            try:
                with vendor_errors(vendor_id), active.writer.transaction() as connection:
                    yield connection
                if active.writer.changed:
                    image = connection.serialize("main")
                    with self._file_of(vendor_id) as file, self._in_group(file, vendor_id):
                        self._store(file, vendor_id, active.version, image)
                    active.version += 1
            except BaseException:
                active.close()  # What is loaded may be ahead of what is stored.
                raise
            self._active.give(vendor_id, active)

    @contextmanager
    def _in_group(self, file: Connection, vendor_id: str) -> Iterator[None]:
        """Make the block part of the shard file's open transaction, which is begun if there is none."""
        shard = self.shard_of(vendor_id)
        if shard not in self._joined:
            file.execute("BEGIN IMMEDIATE")
            self._joined[shard] = set()
        try:
            yield
        except Error as error:
            if file.get_autocommit():  # SQLite gave the whole transaction up, a full disk for instance.
                self._lose(shard, error)
            raise
        self._joined[shard].add(vendor_id)

    def _lose(self, shard: str, error: Exception) -> dict[str, StorageError]:
        lost: dict[str, StorageError] = {}
        for vendor_id in self._joined.pop(shard):
            self._active.drop(vendor_id)
            lost[vendor_id] = StorageError(f"vendor {shown(vendor_id)}: its last changes could not be stored: {error}")
        self._lost |= lost
        return lost

    def _flush(self, shard: str) -> dict[str, StorageError]:
        if shard not in self._joined:
            return {}
        file = self._files[shard]
        try:
            file.execute("COMMIT")
        except Error as error:
            if not file.get_autocommit():
                file.execute("ROLLBACK")
            return self._lose(shard, error)
        del self._joined[shard]
        return {}

    def flush(self) -> dict[str, StorageError]:
        for shard in list(self._joined):
            self._flush(shard)
        lost, self._lost = self._lost, {}
        return lost

    def discard(self) -> None:
        for shard in list(self._joined):
            self._files[shard].execute("ROLLBACK")
            self._lose(shard, StorageError("discarded"))
        self._lost.clear()

    def _activate(self, file: Connection, vendor_id: str) -> _Active:
        """Return the vendor's database loaded at its present version."""
        version = self._version(file, vendor_id)
        active = self._active.take(vendor_id)
        if active is not None:
            if active.version == version:
                return active
            active.close()  # Another process has written the vendor since.
        row = file.execute("SELECT version, schema_digest, image FROM vendors WHERE id = ?", (vendor_id,)).fetchone()
        if row is None:
            raise unknown(vendor_id)
        version, digest, image = row
        if digest != self.schema.digest:
            if self.migration.version == 1:
                raise SchemaMismatchError(
                    f"vendor {shown(vendor_id)} has the schema {digest[:12]}..., no version of this"
                )
            image = self._migrated(image, vendor_id)
            file.execute(
                "UPDATE vendors SET image = ?, schema_digest = ?, version = ? WHERE id = ? AND version = ?",
                (image, self.schema.digest, version + 1, vendor_id, version),
            )
            if not file.changes():
                raise StorageError(f"vendor {shown(vendor_id)} was written by another process meanwhile: retry")
            version += 1
        return _Active(Writer(open_quickly(image, vendor_id), self.template.cookie), version)

    def _store(self, file: Connection, vendor_id: str, version: int, image: bytes) -> None:
        file.execute(_UPDATE, (image, version + 1, vendor_id, version))
        if not file.changes():
            raise StorageError(
                f"vendor {shown(vendor_id)} was written by another process meanwhile; this transaction is undone: retry"
            )

    def _version(self, file: Connection, vendor_id: str) -> int:
        row = file.execute("SELECT version FROM vendors WHERE id = ?", (vendor_id,)).fetchone()
        if row is None:
            raise unknown(vendor_id)
        return int(row[0])

    @contextmanager
    def read(self, vendor_id: str) -> Iterator[Connection]:
        self._check_open()
        if self.shard_of(vendor_id) not in self._current and vendor_id in self.outdated(self.shard_of(vendor_id)):
            self._migrate(vendor_id)
        with vendor_errors(vendor_id), self._scanner(self.shard_of(vendor_id)).read(vendor_id) as connection:
            yield connection

    def delete(self, vendor_id: str) -> None:
        with self._file_of(vendor_id) as file, self._exclusively(vendor_id):
            self._flush(self.shard_of(vendor_id))
            self._active.drop(vendor_id)
            file.execute("DELETE FROM vendors WHERE id = ?", (vendor_id,))
            if not file.changes():
                raise unknown(vendor_id)

    def scrub(self) -> None:
        self.flush()
        for shard, file in self._files.items():
            with named_errors(f"shard {shard!r}"):
                file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def version(self, vendor_id: str) -> int:
        with self._file_of(vendor_id) as file:
            return self._version(file, vendor_id)

    def image(self, vendor_id: str) -> bytes:
        with self._file_of(vendor_id) as file:
            row = file.execute("SELECT image FROM vendors WHERE id = ?", (vendor_id,)).fetchone()
            if row is None:
                raise unknown(vendor_id)
            return checked(row[0], vendor_id)

    def restore(self, vendor_id: str, image: bytes) -> None:
        with self._file_of(vendor_id) as file, self._exclusively(vendor_id):
            adopted = self.template.adopt(image, vendor_id)
            self._flush(self.shard_of(vendor_id))
            self._active.drop(vendor_id)
            file.execute(
                f"{_INSERT} ON CONFLICT(id) DO UPDATE SET schema_digest = excluded.schema_digest, "
                "version = version + 1, image = excluded.image",
                (vendor_id, self.schema.digest, 1, adopted),
            )

    def outdated(self, shard: str | None = None) -> list[str]:
        if shard is None:
            return [vendor_id for each in self.shards for vendor_id in self.outdated(each)]
        if shard in self._current:
            return []
        with named_errors(f"shard {shard!r}"):
            sql = "SELECT id FROM vendors WHERE schema_digest <> ? ORDER BY id"
            found = [str(row[0]) for row in self._file(shard).execute(sql, (self.schema.digest,))]
        if not found:
            self._current.add(shard)
        return found

    def _migrate(self, vendor_id: str) -> None:
        with self._exclusively(vendor_id), self._file_of(vendor_id) as file:
            self._activate(file, vendor_id).close()

    def _scan(self, shard: str, statements: list[Statement], vendor_ids: list[str] | None) -> Iterator[Answer]:
        self.migrate(shard=shard)
        return self._scanner(shard).scan(statements, vendor_ids=vendor_ids)

    def _close(self) -> None:
        self.flush()
        # The files' own connections come last: the last one of a file folds its write-ahead log into it.
        self._active.close()
        for scanner in self._scanners.values():
            scanner.close()
        for file in self._files.values():
            file.close(True)
