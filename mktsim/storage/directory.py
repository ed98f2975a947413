"""Vendors in a folder, one SQLite file each: the plain form, which any SQLite tool can open.

Rules
-----
* A vendor exists when the catalogue lists it. Its file is complete before it is listed and stays as long as it is
  listed, so that a crash leaves at most a file that nobody lists, which the next opening of the store removes.
* A file of a listed vendor that is lost, or a lost catalogue, is an error by name when the store is opened.
* A vendor's version is the application id in its file's header, and so changes in the transaction that it counts.

Theory of operation
-------------------
A file's name is a digest of the vendor's id, for ids may hold slashes, quotes and NUL, and be longer than any file
name. Files are in WAL mode: readers see the last commit while a writer is at work. The most recently used stay open.

*Group commit*: transactions of one vendor that join leave that file's transaction open until `flush`, and so wait for
the disk once. Vendors do not share a file, so that each costs a wait of its own: many vendors in one commit is what a
packed store is for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from mktsim.errors import DuplicateError, StorageError
from mktsim.limits import check_descriptors
from mktsim.sql.schema import Schema
from mktsim.sql.topk import TopKRequest
from mktsim.sqlite import Connection, ConstraintError, Error, driver
from mktsim.sqlite import transaction as file_transaction
from mktsim.storage.base import Answer, Setup, Statement, Tables, VendorStore, run_statements
from mktsim.storage.connections import Cache, Writer
from mktsim.storage.folder import (
    MADE_ANEW,
    claim,
    is_lost,
    lost,
    made_in,
    note_made,
    open_file,
    replace_file,
    sync_folder,
)
from mktsim.storage.guards import allow_only_reading, check_vendor_id, named_errors, shown, unknown, vendor_errors
from mktsim.storage.images import checked, with_application_id, with_journal
from mktsim.storage.migrate import Migration

_BATCH_VENDORS: Final = 256
_FILE_DESCRIPTORS: Final = 3  # a database, its log and the memory that connections share
_MOST_JOINED: Final = 64  # vendors whose transactions are open at a time, three file descriptors each
_CATALOGUE: Final = """
CREATE TABLE IF NOT EXISTS vendors(
    id TEXT NOT NULL PRIMARY KEY, shard TEXT NOT NULL, deleting INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX IF NOT EXISTS vendors_by_shard ON vendors(shard, id);
"""


class _Opened:
    """A connection to a vendor's file, and which file (inode) that was when it was opened."""

    __slots__ = ("connection", "inode", "writer")

    def __init__(self, connection: Connection, inode: int, writer: Writer | None = None) -> None:
        self.connection = connection
        self.inode = inode
        self.writer = writer

    def close(self) -> None:
        self.connection.close(True)


class _Joined:
    """A vendor's connection while transactions join, and whether they have changed anything."""

    __slots__ = ("changed", "opened", "writer")

    def __init__(self, opened: _Opened) -> None:
        assert opened.writer is not None
        self.opened = opened
        self.writer = opened.writer
        self.changed = False


class DirectoryStore(VendorStore):
    """A :class:`VendorStore` of one file a vendor, for up to some ten thousand.

    Parameters
    ----------
    path : str or Path
        The folder.
    schema, shards, locate, setup, migration
        As of every store; see :class:`VendorStore`.
    open_vendors : int
        How many vendors stay open for reading, three file descriptors each; a quarter as many for writing.

    Raises
    ------
    LostFileError
        The catalogue, or the file of a vendor that it lists, is missing or empty.
    ResourceLimitError
        The vendors that there are may need more file descriptors than there can be; also where they become so many.

    Examples
    --------
    Any program that reads SQLite reads a vendor's file.

    >>> import sqlite3
    >>> from tempfile import TemporaryDirectory
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> with TemporaryDirectory() as folder:
    ...     with DirectoryStore(folder, schema, shards=["s0"], locate=lambda vendor_id: "s0") as store:
    ...         store.create("acme", {"products": [("mouse",)]})
    ...     print(sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()))
    ['82/822b33ad87c148a0a20a5ba7cd5ebcaa68d36a18.sqlite', 'catalogue.sqlite', 'store.json']
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
        open_vendors: int = 96,
    ) -> None:
        super().__init__(schema, shards=shards, locate=locate, setup=setup, migration=migration)
        self._open_vendors = open_vendors
        self._has_room = False
        self._readers: Cache[_Opened] = Cache(open_vendors)
        self._writers: Cache[_Opened] = Cache(max(1, open_vendors // 4))
        self._catalogue: Connection | None = None
        self._joined: dict[str, _Joined] = {}
        self._lost: dict[str, StorageError] = {}
        try:
            self.path = claim(path, "directory", schema, self.shards, version=self.migration.version)
            with named_errors(f"store {self.path}"):
                self._catalogue = self._open_catalogue(self.path / "catalogue.sqlite")
                for (vendor_id,) in self._catalogue.execute("SELECT id FROM vendors WHERE deleting").fetchall():
                    self._finish_deletion(str(vendor_id))
                self._sweep()
            self._check_room(self.count())
        except BaseException:
            self.close()
            raise

    # -- files --------------------------------------------------------------------------------------------------

    @property
    def most_descriptors(self) -> int:
        """How many file descriptors this store may have open at a time, however many vendors there are."""
        return self._most_descriptors(self._open_vendors + _MOST_JOINED)

    def _most_descriptors(self, vendors: int) -> int:
        written = max(1, self._open_vendors // 4) + _MOST_JOINED
        return _FILE_DESCRIPTORS * (1 + min(vendors, self._open_vendors) + min(vendors, written))

    def _check_room(self, vendors: int) -> None:
        """Raise unless there are descriptors for as many files as may be open at a time with so many vendors."""
        if not self._has_room:
            most = self._most_descriptors(vendors)
            held = _FILE_DESCRIPTORS * (1 + len(self._readers) + len(self._writers) + len(self._joined))
            check_descriptors(
                max(0, most - held),
                f"a directory store of {vendors:,} vendors",
                way_out="choose a packed store, or fewer open_vendors",
            )
            self._has_room = most == self.most_descriptors

    def vendor_path(self, vendor_id: str) -> Path:
        """Return the file of a vendor."""
        name = hashlib.sha256(check_vendor_id(vendor_id).encode()).hexdigest()[:40]
        return self.path / name[:2] / f"{name}.sqlite"

    def _open_catalogue(self, path: Path) -> Connection:
        is_made = path.name in made_in(self.path)
        there = self._files()  # Looked for first: another process that makes the store has a catalogue before vendors.
        way_out = f"; beside it are the files of {len(there):,} vendors" if there else MADE_ANEW
        if is_made and is_lost(path):
            raise lost(path, way_out, what="catalogue")
        catalogue = open_file(path)
        try:
            if (is_made or there) and not catalogue.table_exists("main", "vendors"):
                raise lost(path, way_out, what="catalogue")
            catalogue.execute(_CATALOGUE).fetchall()
            if not is_made:
                note_made(self.path, [path.name])
        except BaseException:
            catalogue.close(True)
            raise
        return catalogue

    @contextmanager
    def _listed(self, vendor_id: str = "") -> Iterator[Connection]:
        """Lend the catalogue; raise where it does not list `vendor_id`."""
        self._check_open()
        assert self._catalogue is not None
        with named_errors(f"store {self.path}, vendor {shown(vendor_id)}", vendor_id):
            if vendor_id and vendor_id not in self:
                raise unknown(vendor_id)
            yield self._catalogue

    @contextmanager
    def _opened(self, vendor_id: str, *, writable: bool) -> Iterator[_Opened]:
        """Lend a connection to a vendor's file; one whose use failed is closed."""
        path = self.vendor_path(vendor_id)
        cache = self._writers if writable else self._readers
        with self._listed(vendor_id):
            opened = cache.take(vendor_id)
            status = os.stat(path)
            if not status.st_size:
                raise lost(path, what=f"vendor {shown(vendor_id)}:")
            inode = status.st_ino
            if opened is not None and opened.inode != inode:  # Another process has made the vendor anew.
                opened.close()
                opened = None
            if opened is None:
                opened = self._open(path, inode, writable=writable)
        try:
            yield opened
        except BaseException:
            opened.close()
            raise
        if opened.connection.txn_state("main") == driver.SQLITE_TXN_NONE:
            cache.give(vendor_id, opened)
        else:  # A statement still runs, and would hold an old snapshot.
            opened.close()

    def _open(self, path: Path, inode: int, *, writable: bool) -> _Opened:
        # Readers are opened for writing too, though they may not: the last connection to a file folds its write-ahead
        # log into it, which one opened for reading cannot.
        connection = open_file(path)
        if self.migration.version > 1 and int(connection.pragma("user_version")) < self.migration.version:
            try:
                self._replace(connection, self._migrated(with_journal(connection.serialize("main"), 1), path.name))
            except BaseException:
                connection.close(True)
                raise
        if writable:
            self._mark(connection)  # a crash may have come between a backup and this
            return _Opened(connection, inode, Writer(connection, self.template.cookie))
        self.setup(connection)
        connection.execute("PRAGMA query_only = 1")
        connection.authorizer = allow_only_reading
        return _Opened(connection, inode)

    def _finish_deletion(self, vendor_id: str) -> None:
        assert self._catalogue is not None
        _remove(self.vendor_path(vendor_id), "", "-wal", "-shm")
        self._catalogue.execute("DELETE FROM vendors WHERE id = ? AND deleting", (vendor_id,))

    def _sweep(self) -> None:
        """Remove what a crash left of vendors that were never listed; raise where a file of those listed is lost."""
        assert self._catalogue is not None
        if any(self._compared()):
            with file_transaction(self._catalogue):  # nobody creates or deletes a vendor meanwhile
                strays, missing = self._compared()
                if missing:
                    text = missing[0].replace("'", "''")
                    strike = f"DELETE FROM vendors WHERE id = '{text[:60]}'"
                    way_out = f"; or strike the vendor from catalogue.sqlite, {strike}, to go on without it"
                    raise lost(
                        self.vendor_path(missing[0]), way_out, len(missing) - 1, what=f"vendor {shown(missing[0])}:"
                    )
                for path in strays:
                    _remove(path, "", "-wal", "-shm")

    def _compared(self) -> tuple[list[Path], list[str]]:
        """Return the files that belong to no listed vendor, and the listed vendors whose file is missing or empty."""
        assert self._catalogue is not None
        files = self._files()
        listed = self._catalogue.execute("SELECT id, deleting FROM vendors ORDER BY id").fetchall()
        paths = {
            str(self.vendor_path(str(vendor_id))): None if deleting else vendor_id for vendor_id, deleting in listed
        }
        missing = [str(found) for path, found in paths.items() if found is not None and not files.get(path)]
        return [Path(path) for path in files if path not in paths], missing

    def _files(self) -> dict[str, int]:
        """Return the size of each vendor's file, drafts included."""
        found = {}
        with os.scandir(self.path) as folders:
            for folder in folders:
                if folder.is_dir():
                    with os.scandir(folder) as entries:
                        for entry in entries:
                            if entry.name.endswith((".sqlite", ".new")):
                                with suppress(FileNotFoundError):  # somebody is deleting it
                                    found[entry.path] = entry.stat().st_size
        return found

    # -- vendors ------------------------------------------------------------------------------------------------

    def vendor_ids(self, shard: str | None = None) -> list[str]:
        with self._listed() as catalogue:
            if shard is None:
                rows = catalogue.execute("SELECT id FROM vendors WHERE NOT deleting ORDER BY id")
            else:
                self._check_shard(shard)
                rows = catalogue.execute(
                    "SELECT id FROM vendors WHERE shard = ? AND NOT deleting ORDER BY id", (shard,)
                )
            return [str(row[0]) for row in rows]

    def __contains__(self, vendor_id: object) -> bool:
        check_vendor_id(vendor_id)
        with self._listed() as catalogue:
            found = catalogue.execute("SELECT 1 FROM vendors WHERE id = ? AND NOT deleting", (vendor_id,))
            return found.fetchone() is not None

    def count(self, shard: str | None = None) -> int:
        with self._listed() as catalogue:
            if shard is None:
                return int(catalogue.execute("SELECT COUNT(*) FROM vendors WHERE NOT deleting").get)
            self._check_shard(shard)
            return int(catalogue.execute("SELECT COUNT(*) FROM vendors WHERE shard = ? AND NOT deleting", (shard,)).get)

    def create_many(self, vendors: Iterable[tuple[str, Tables]]) -> int:
        self._check_open()
        count = 0
        waiting: list[tuple[str, str, bytes]] = []
        for vendor_id, tables in vendors:
            waiting.append((vendor_id, self.shard_of(vendor_id), self.template.fill(vendor_id, tables)))
            count += 1
            if len(waiting) == _BATCH_VENDORS:
                self._add(waiting)
                waiting.clear()
        self._add(waiting)
        return count

    def _add(self, vendors: list[tuple[str, str, bytes]]) -> None:
        """Write the files of new vendors, and list them in one transaction of the catalogue."""
        if not self._has_room:
            self._check_room(self.count() + len(vendors))
        folders: set[Path] = set()
        with self._listed() as catalogue, file_transaction(catalogue):
            for vendor_id, shard, image in vendors:
                if catalogue.execute("SELECT deleting FROM vendors WHERE id = ?", (vendor_id,)).fetchone() == (1,):
                    self._finish_deletion(vendor_id)
                try:
                    catalogue.execute("INSERT INTO vendors(id, shard) VALUES(?, ?)", (vendor_id, shard))
                except ConstraintError as error:
                    raise DuplicateError(f"vendor {shown(vendor_id)} exists already") from error
                path = self.vendor_path(vendor_id)
                if not path.parent.exists():
                    path.parent.mkdir(exist_ok=True)
                    folders.add(self.path)
                _remove(path, "-wal", "-shm")  # A log that a crash left would be taken for the new vendor's.
                replace_file(path, with_journal(with_application_id(image, 1), 2), path.with_suffix(".new"))
                folders.add(path.parent)
            for folder in folders:  # A listed vendor has a file, even if the power fails.
                sync_folder(folder)

    def _store_new(self, vendor_id: str, image: bytes) -> None:
        self._add([(vendor_id, self.shard_of(vendor_id), image)])

    @contextmanager
    def transaction(self, vendor_id: str) -> Iterator[Connection]:
        self._flush(vendor_id)
        with self._exclusively(vendor_id), self._opened(vendor_id, writable=True) as opened:
            assert opened.writer is not None
            with vendor_errors(vendor_id), opened.writer.transaction(_count_version) as connection:
                yield connection

    @contextmanager
    def join(self, vendor_id: str) -> Iterator[Connection]:
        with self._exclusively(vendor_id):
            joined = self._joined.get(vendor_id)
            if joined is None:
                joined = self._begin(vendor_id)
            try:
                with vendor_errors(vendor_id), joined.writer.joining(_count_version) as connection:
                    yield connection
                joined.changed = joined.changed or joined.writer.changed
            except BaseException as error:
                # SQLite may have given all of it up, a full disk for instance; or nothing was joined before.
                if joined.writer.connection.get_autocommit() or not joined.changed:
                    self._lose(vendor_id, error)
                raise
            if not joined.changed:  # then nobody will flush it
                self._flush(vendor_id)

    def _begin(self, vendor_id: str) -> _Joined:
        """Take a vendor's connection out of the cache for those who join."""
        if len(self._joined) >= _MOST_JOINED:
            for other in list(self._joined):
                self._flush(other)
        with self._opened(vendor_id, writable=True) as opened:
            pass
        self._writers.take(vendor_id)
        joined = self._joined[vendor_id] = _Joined(opened)
        return joined

    def _flush(self, vendor_id: str) -> None:
        joined = self._joined.get(vendor_id)
        if joined is None:
            return
        try:
            joined.writer.commit()
        except Error as error:
            self._lose(vendor_id, error)
            return
        del self._joined[vendor_id]
        self._writers.give(vendor_id, joined.opened)

    def _lose(self, vendor_id: str, error: BaseException) -> None:
        joined = self._joined.pop(vendor_id)
        joined.writer.rollback()
        joined.opened.close()
        if joined.changed:
            message = f"vendor {shown(vendor_id)}: its last changes could not be stored: {error}"
            self._lost[vendor_id] = StorageError(message)

    def flush(self) -> dict[str, StorageError]:
        for vendor_id in list(self._joined):
            self._flush(vendor_id)
        lost, self._lost = self._lost, {}
        return lost

    def discard(self) -> None:
        for vendor_id in list(self._joined):
            self._lose(vendor_id, StorageError("discarded"))
        self._lost.clear()

    @contextmanager
    def read(self, vendor_id: str) -> Iterator[Connection]:
        with self._opened(vendor_id, writable=False) as opened, vendor_errors(vendor_id):
            yield opened.connection

    def delete(self, vendor_id: str) -> None:
        self._flush(vendor_id)
        with self._exclusively(vendor_id), self._listed(vendor_id) as catalogue:
            catalogue.execute("UPDATE vendors SET deleting = 1 WHERE id = ?", (vendor_id,))
            self._readers.drop(vendor_id)
            self._writers.drop(vendor_id)
            self._finish_deletion(vendor_id)

    def scrub(self) -> None:
        with self._listed() as catalogue:
            catalogue.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def version(self, vendor_id: str) -> int:
        with self.read(vendor_id) as connection:
            return int(connection.pragma("application_id"))

    def image(self, vendor_id: str) -> bytes:
        with self.read(vendor_id) as connection, named_errors(f"vendor {shown(vendor_id)}", vendor_id):
            return checked(with_application_id(with_journal(connection.serialize("main"), 1), 0), vendor_id)

    def restore(self, vendor_id: str, image: bytes) -> None:
        self._check_open()
        shard = self.shard_of(vendor_id)
        adopted = self.template.adopt(image, vendor_id)
        self._flush(vendor_id)
        with self._exclusively(vendor_id):
            if vendor_id not in self:
                self._add([(vendor_id, shard, adopted)])
                return
            with self._opened(vendor_id, writable=True) as opened:
                self._replace(opened.connection, adopted)
            with closing(open_file(self.vendor_path(vendor_id))) as connection:  # one whose commits nobody judges
                self._mark(connection)

    def _replace(self, connection: Connection, image: bytes) -> None:
        """Replace a database by an image, in one transaction, and count the version."""
        version = int(connection.pragma("application_id"))
        source = self.template.connection(with_application_id(image, version + 1))
        with closing(source), connection.backup("main", source, "main") as backup:
            backup.step()

    def _mark(self, connection: Connection) -> None:
        """Give a database of this schema its cookie: SQLite's backup leaves another in what it has overwritten."""
        if connection.pragma("schema_version") != self.template.cookie and self.template.fits(connection):
            connection.execute(f"PRAGMA schema_version = {self.template.cookie}")

    def outdated(self, shard: str | None = None) -> list[str]:
        if self.migration.version == 1:
            return []
        return [
            vendor_id for vendor_id in self.vendor_ids(shard) if self._version_of(vendor_id) < self.migration.version
        ]

    def _version_of(self, vendor_id: str) -> int:
        with closing(open_file(self.vendor_path(vendor_id))) as connection:
            return int(connection.pragma("user_version"))

    def _migrate(self, vendor_id: str) -> None:
        with self._exclusively(vendor_id), self._opened(vendor_id, writable=True):
            pass  # opening it migrates it

    def _scan(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
    ) -> Iterator[Answer]:
        for vendor_id in self.vendor_ids(shard) if vendor_ids is None else vendor_ids:
            if vendor_ids is not None and self.shard_of(vendor_id) != shard:
                raise unknown(vendor_id)
            with self._opened(vendor_id, writable=False) as opened:
                if len(statements) > 1:  # One statement is a snapshot of its own.
                    opened.connection.execute("BEGIN")
                rows = run_statements(opened.connection, vendor_id, statements)
                if len(statements) > 1:
                    opened.connection.execute("COMMIT")
            yield vendor_id, rows

    def _close(self) -> None:
        for vendor_id in list(self._joined):
            self._flush(vendor_id)
        self._readers.close()
        self._writers.close()
        if self._catalogue is not None:
            self._catalogue.close(True)


def _count_version(connection: Connection) -> None:
    connection.execute(f"PRAGMA application_id = {int(connection.pragma('application_id')) + 1}")


def _remove(path: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
