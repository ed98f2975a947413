"""Vendors packed into shard files: a file is an SQLite database with one row a vendor, its whole database in it.

Rules
-----
* A vendor's image, version and schema digest are one row; a commit of a vendor is one transaction of its shard file.
* A commit compares the version it started from: two processes cannot overwrite each other's change.
* Commits that join a group are in one transaction of the shard file: all of them last, or none does.
* A row with a negative version is a copy on the move, and not there: see `mktsim.storage.moves`.
* A shard file is made once, when its shard is new: one that has been made and is lost is an error by name (see
  `mktsim.storage.folder`).

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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from mktsim.errors import (
    CorruptImageError,
    DuplicateError,
    EvaluationError,
    MktsimError,
    SchemaMismatchError,
    StorageError,
    UnknownVendorError,
)
from mktsim.limits import check_descriptors
from mktsim.sql.schema import Schema
from mktsim.sql.topk import TopKRequest
from mktsim.sql.ungrouped import Folding
from mktsim.sqlite import BusyError, Connection, ConstraintError, Error
from mktsim.sqlite import transaction as file_transaction
from mktsim.storage.base import Answer, Setup, Statement, Tables, VendorStore
from mktsim.storage.connections import Cache, Writer
from mktsim.storage.folder import (
    BUSY_TIMEOUT_MS,
    MADE_ANEW,
    claim,
    file_name,
    is_lost,
    lost,
    made_in,
    moving_in,
    note_made,
    note_shards,
    open_file,
)
from mktsim.storage.guards import check_vendor_id, named_errors, shown, unknown, vendor_errors
from mktsim.storage.images import checked, open_quickly
from mktsim.storage.migrate import Migration
from mktsim.storage.moves import ABSENT, LATEST, MOVES_TABLE, UNSEEN, Epochs, Moves
from mktsim.storage.scanner import ShardScanner, close_scanners, open_scanner
from mktsim.storage.sparse import BASES_TABLE, Bases, of_vendor, packed
from mktsim.storage.summaries import (
    INSERT,
    SUMMARY_TABLES,
    SWEPT_TABLE,
    UPDATE,
    Group,
    Labels,
    ShardSummaries,
    Summariser,
)
from mktsim.storage.vfs import ReaderPool

__all__ = ["PackedStore", "ShardScanner", "close_scanners", "open_scanner"]

_VENDORS_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS vendors("
    "id TEXT NOT NULL PRIMARY KEY, schema_digest TEXT NOT NULL, version INTEGER NOT NULL, image BLOB NOT NULL) STRICT"
)
#: What a shard file holds. Its ``user_version`` counts how many of these it has; an older file gets the rest.
_LAYOUT: Final = (_VENDORS_TABLE, MOVES_TABLE, *SUMMARY_TABLES, BASES_TABLE, SWEPT_TABLE)
_INSERT: Final = "INSERT INTO vendors(id, schema_digest, version, image) VALUES(?, ?, ?, ?)"
_MADE: Final = "(SELECT number FROM summaries WHERE summaries.id = vendors.id)"
_UPDATE: Final = f"UPDATE vendors SET image = ?, version = ? WHERE id = ? AND version = ? AND {_MADE} IS ?"
#: File descriptors that a shard may take, or a replica of one: its file and log, for writing, for scanning and for
#: summaries, and the memory that these share.
SHARD_DESCRIPTORS: Final = 7
_BATCH_VENDORS: Final = 256
_BATCH_BYTES: Final = 16 << 20
#: Summaries that a query makes, of vendors that have none, in each shard.
_MADE_LATE: Final = 4_096
#: A row of ``vendors``, and what its summary is made of.
_New = tuple[str, str, int, bytes, list[list[Group]] | None]


class _Active:
    """A vendor whose database is loaded, the version it was loaded at, and which of that id it is."""

    __slots__ = ("made", "version", "writer")

    def __init__(self, writer: Writer, version: int, made: int | None) -> None:
        self.writer = writer
        self.version = version
        #: The number under which it was made: of one made anew after a deletion it is another.
        self.made = made

    def close(self) -> None:
        self.writer.connection.close(True)


class Follower(Protocol):
    """Who keeps copies of vendors; see `mktsim.storage.replicas`."""

    def forget(self, vendor_id: str) -> None:
        """Delete a vendor that has been deleted."""

    def scrub(self) -> None:
        """See to it that deleted vendors leave no bytes behind."""


class PackedStore(VendorStore):
    """A :class:`VendorStore` of one file a shard, for one vendor to a million.

    Parameters
    ----------
    path : str or Path
        The folder.
    schema, shards, locate, setup, migration
        As of every store; see :class:`VendorStore`.
    active_vendors : int
        How many vendors stay loaded for writing, about 60 KB each.
    may_lack_files : bool
        Open although files of shards are lost: whoever uses one of these is refused.

    Attributes
    ----------
    moves : Moves
        The steps by which a vendor moves.
    moving : mapping or None
        What :meth:`begin_moving` was told, while vendors move.
    followers : list of Follower
        Who else keeps what is in the shard files, and is told of what is deleted.

    Raises
    ------
    LostFileError
        A shard's file has been made and is missing or empty.

    Examples
    --------
    Six vendors in two files; a store that is opened again finds them.

    >>> from tempfile import TemporaryDirectory
    >>> where = {"shards": ["s0", "s1"], "locate": lambda vendor_id: f"s{int(vendor_id[1:]) % 2}"}
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> with TemporaryDirectory() as folder:
    ...     with PackedStore(folder, schema, **where) as store:
    ...         for number in range(6):
    ...             store.create(f"v{number}", {"products": [("mouse",)]})
    ...     with PackedStore(folder, schema, **where) as store:
    ...         print(len(store), store.count("s1"), store.shard_path("s1").name)
    6 3 s1.sqlite
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
        may_lack_files: bool = False,
    ) -> None:
        super().__init__(schema, shards=shards, locate=locate, setup=setup, migration=migration)
        self._made: set[str] = set()  # names of files
        self._current: set[str] = set() if migration is not None else set(shards)
        self._files: dict[str, Connection] = {}
        self._scanners: dict[str, ShardScanner] = {}
        self._readers = ReaderPool(self.setup)
        self._active: Cache[_Active] = Cache(active_vendors)
        self._summaries: dict[str, ShardSummaries] = {}
        self._unsummarised: set[str] = set()  # what cannot be read
        self._joined: dict[str, set[str]] = {}  # by shard: whose changes its open transaction holds
        self._lost: dict[str, StorageError] = {}
        self.moves = Moves(self._file, self._flush)
        self.moving: Mapping[str, Any] | None = None
        self.followers: list[Follower] = []
        try:
            self._summariser = Summariser(schema)
            self.path = claim(path, "packed", schema, self.shards, version=self.migration.version)
            self._bases = Bases(self.path)
            self._base = self._bases.add(self.template.image)
            found = moving_in(self.path)
            if found is not None:
                self._add_shards(found[0])
            self._made |= made_in(self.path)
            missing = [path for path in map(self._path, self.shards) if path.name in self._made and is_lost(path)]
            if missing and not may_lack_files:
                raise lost(missing[0], MADE_ANEW, len(missing) - 1)
            if self._make_files():
                note_made(self.path, self._made)
            if found is not None:
                self._resume_moving(found[1])
        except BaseException:
            self.close()
            raise

    # -- shard files --------------------------------------------------------------------------------------------

    def shard_path(self, shard: str) -> Path:
        """Return the file of a shard, for :func:`open_scanner` in a worker process."""
        self._file(shard)
        return self._path(shard)

    def _path(self, shard: str) -> Path:
        return self.path / file_name(shard)

    def _make_files(self) -> bool:
        """Make the files of shards that have none yet; return whether there are new ones, still to be noted."""
        new = [shard for shard in self.shards if file_name(shard) not in self._made]
        for shard in new:
            self._file(shard)
        self._made.update(map(file_name, new))
        return bool(new)

    def token(self, shard: str) -> str:
        """Return what tells the shard's file from any other that has had, or will have, its name."""
        self._flush(shard)
        file = self._file(shard)
        with named_errors(f"shard {shard!r}"), file_transaction(file):
            file.execute("CREATE TABLE IF NOT EXISTS token(value TEXT NOT NULL) STRICT")
            file.execute("INSERT INTO token SELECT HEX(RANDOMBLOB(16)) WHERE NOT EXISTS (SELECT 1 FROM token)")
            return str(file.execute("SELECT value FROM token").get)

    def _file(self, shard: str) -> Connection:
        """Return this store's connection for writing to a shard file, which is opened on first use."""
        self._check_open()
        connection = self._files.get(shard)
        if connection is None:
            self._check_shard(shard)
            path = self._path(shard)
            with named_errors(f"shard file {path}"):
                if path.name in self._made and is_lost(path):
                    raise lost(path, MADE_ANEW)
                connection = open_file(path)
                try:
                    if path.name in self._made and not connection.table_exists("main", "vendors"):
                        raise lost(path, MADE_ANEW)
                    _lay_out(connection, path)
                    self._bases.put_into(connection, self._base)
                except BaseException:
                    connection.close(True)
                    raise
                self._files[shard] = connection
        return connection

    def _scanner(self, shard: str) -> ShardScanner:
        scanner = self._scanners.get(shard)
        if scanner is None:
            scanner = self._scanners[shard] = ShardScanner(self.shard_path(shard), readers=self._readers)
        return scanner

    @contextmanager
    def _file_of(self, vendor_id: str) -> Iterator[Connection]:
        shard = self.shard_of(vendor_id)
        file = self._file(shard)
        with named_errors("the shard file of", vendor_id, self.path):
            yield file

    # -- moving vendors -----------------------------------------------------------------------------------------

    @property
    def epochs(self) -> Epochs:
        """By which queries and moves are kept apart."""
        return self.moves.epochs

    def _check_open(self) -> None:
        super()._check_open()
        if self.moves.failure is not None:
            raise self.moves.failure

    def shard_of(self, vendor_id: str) -> str:
        where = self.moves.strays.get(vendor_id)
        return where if where is not None else super().shard_of(vendor_id)

    def begin_moving(self, shards: Sequence[str], note: Mapping[str, Any]) -> None:
        """Add shards, and write down that vendors are about to move; :meth:`relocate` says where to.

        Parameters
        ----------
        shards : sequence of str
            All that there will be; those that there are stay until :meth:`end_moving`.
        note : mapping
            What :attr:`moving` is to be, in this process and the next, until the move has ended.

        Raises
        ------
        StorageError
            Vendors are on the move already, or a file cannot be written: there are the shards that there were.
        """
        self._check_open()
        if self.moving is not None:
            raise StorageError("vendors are on the move already: let that end first")
        count = len(self._known_shards.union(shards))
        check_descriptors(
            (count - len(self.shards)) * SHARD_DESCRIPTORS * (1 + len(self.followers)),
            f"{count:,} shards",
            way_out="have fewer",
        )
        self.migrate()  # An image is moved as it is, and must be one that its new shard's scans expect.
        before = self.shards
        self._add_shards(shards)
        try:
            # The note comes first: were the files first, a crash in between would leave some that no shard has.
            note_shards(self.path, self.shards, note, self._made)
            if self._make_files():
                note_made(self.path, self._made)
        except BaseException:
            with suppress(StorageError):  # else the note stands, and the next process drops the shards by it
                self._drop_shards(before)
            self._set_shards(before)
            raise
        self.moving = note

    def relocate(self, locate: Callable[[str], str]) -> None:
        """Have vendors elsewhere from now on: new ones go there, the others are strays until they are moved."""
        self.moves.find(self.shards, locate)
        self._locate = locate

    @property
    def busy(self) -> Set[str]:
        """The vendors that have a transaction open."""
        return self._in_transaction

    def stage(self, vendor_id: str) -> int:
        """Copy a stray to where it belongs, unseen, while it is read and written; return how many bytes."""
        return self.moves.stage(vendor_id, self._locate(vendor_id))

    def switch(self, vendor_id: str) -> bool:
        """Make the shard to which a stray was copied its home; return whether it had to be copied again.

        Raises
        ------
        StorageError
            It has a transaction open, or a file cannot be written: it is where it was.
        """
        with self._exclusively(vendor_id):
            return self.moves.switch(vendor_id)

    def end_moving(self, shards: Sequence[str]) -> None:
        """Drop the shards that are not among these, which no query may ask for any more, and forget the move.

        Raises
        ------
        StorageError
            A vendor is not yet where it belongs, or a shard to be dropped still holds one.
        """
        self.flush()
        dropped = [shard for shard in self.shards if shard not in shards]
        if self.moves.strays or self.moves.clean() or any(map(self.count, dropped)):
            raise StorageError(f"{len(self.moves.strays)} vendors have still to move: end that first")
        self._drop_shards(shards)
        self.moving = None

    def _drop_shards(self, kept: Sequence[str]) -> None:
        """Drop the shards that are not among these, and the note that vendors move; none of those holds a vendor."""
        dropped = [shard for shard in self.shards if shard not in kept]
        if dropped:  # On disk before the files go: a crash in between would have them missed.
            self._made.difference_update(map(file_name, dropped))
            note_made(self.path, self._made)
        for shard in dropped:
            self._drop(shard)
        self._set_shards(kept)
        note_shards(self.path, self.shards, None)

    def _resume_moving(self, note: Mapping[str, Any]) -> None:
        """Finish the steps that a crash interrupted, and find the vendors that have still to move."""
        self.moving = note
        self.moves.recover(self.shards)
        self.moves.find(self.shards, self._locate)

    def _add_shards(self, shards: Sequence[str]) -> None:
        self._set_shards((*self.shards, *(shard for shard in shards if shard not in self._known_shards)))

    def _drop(self, shard: str) -> None:
        scanner, file = self._scanners.pop(shard, None), self._files.pop(shard, None)
        summaries = self._summaries.pop(shard, None)
        path = self._path(shard)
        with named_errors(f"shard file {path}"):
            if summaries is not None:
                summaries.close()
            if scanner is not None:
                scanner.close()
            if file is not None:
                file.close(True)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)

    # -- vendors ------------------------------------------------------------------------------------------------

    def vendor_ids(self, shard: str | None = None) -> list[str]:
        if shard is None:
            return sorted(vendor_id for shard in self.shards for vendor_id in self.vendor_ids(shard))
        return self._ids(shard, ABSENT)

    def last_vendor_id(self, shard: str) -> str:
        """Return the largest id of a shard's vendors; the empty string where it has none."""
        with named_errors(f"shard {shard!r}"):
            return str(self._file(shard).execute("SELECT COALESCE(MAX(id), '') FROM vendors").get)

    def vendor_ids_as_of(self, shard: str, as_of: int | None) -> list[str]:
        epoch = LATEST if as_of is None else as_of
        return self._ids(shard, UNSEEN, (epoch, epoch))

    def _ids(self, shard: str, without: str, epochs: tuple[int, ...] = ()) -> list[str]:
        with named_errors(f"shard {shard!r}"):
            sql = f"SELECT id FROM vendors WHERE id NOT IN ({without}) ORDER BY id"
            return [str(row[0]) for row in self._file(shard).execute(sql, epochs)]

    def __contains__(self, vendor_id: object) -> bool:
        with self._file_of(check_vendor_id(vendor_id)) as file:
            sql = "SELECT 1 FROM vendors WHERE id = ? AND version > 0"
            return file.execute(sql, (vendor_id,)).fetchone() is not None

    def count(self, shard: str | None = None) -> int:
        if shard is None:
            return sum(map(self.count, self.shards))
        with named_errors(f"shard {shard!r}"):
            return self._watched(shard).count()

    def _watched(self, shard: str) -> ShardSummaries:
        self._check_open()
        found = self._summaries.get(shard)
        if found is None:
            found = self._summaries[shard] = ShardSummaries(self.shard_path(shard), self._summariser)
        return found

    def summaries(self, shard: str) -> ShardSummaries | None:
        if not self.schema.summarised:
            return None
        found = self._watched(shard)
        found.refresh()
        missing = [vendor_id for vendor_id in found.missing(_MADE_LATE) if vendor_id not in self._unsummarised]
        if missing and found.settled and self._summarise(shard, missing):
            found.refresh()
        return found

    def _summarise(self, shard: str, vendor_ids: list[str]) -> bool:
        """Make summaries of vendors that have none, unless others are writing; return whether there are new ones."""
        file = self._file(shard)
        if shard in self._joined:
            return False
        file.set_busy_timeout(0)
        try:
            with file_transaction(file):
                label = Labels(file, self._summariser)
                wanted = sorted(vendor_ids)
                while wanted:
                    made = 0
                    answers = self._scanner(shard).scan(list(self._summariser.statements), vendor_ids=wanted)
                    try:
                        for vendor_id, groups in answers:
                            summary = self._summariser.encoded(groups, label)
                            file.execute(UPDATE, (self._summariser.form, summary, vendor_id))
                            made += 1
                    except UnknownVendorError:  # Another process has deleted it meanwhile.
                        pass
                    except (CorruptImageError, EvaluationError):  # It is named when a query visits the vendor.
                        self._unsummarised.add(wanted[made])
                    except MktsimError:  # No vendor's own: the rest waits for another query.
                        break
                    finally:
                        answers.close()  # type: ignore[attr-defined]
                    wanted = wanted[made + 1 :]
        except BusyError:
            return False
        finally:
            file.set_busy_timeout(BUSY_TIMEOUT_MS)
        return True

    def create_many(self, vendors: Iterable[tuple[str, Tables]]) -> int:
        self._check_open()
        waiting: dict[str, list[_New]] = {}
        read = self._summariser.read
        waiting_bytes = count = 0
        for vendor_id, tables in vendors:
            rows = waiting.setdefault(self.shard_of(vendor_id), [])
            seen: list[list[list[Group]] | None] = []
            image = self.template.fill(vendor_id, tables, lambda filled, seen=seen: seen.append(read(filled)))  # type: ignore[misc]
            stored = self._packed(image)
            rows.append((vendor_id, self.schema.digest, 1, stored, seen[0]))
            waiting_bytes += len(stored)
            count += 1
            if len(rows) >= _BATCH_VENDORS:
                waiting_bytes -= self._insert(rows)
            elif waiting_bytes >= _BATCH_BYTES:
                waiting_bytes -= sum(map(self._insert, waiting.values()))
        for rows in waiting.values():
            self._insert(rows)
        return count

    def _packed(self, image: bytes) -> bytes:
        return packed(image, self.template.image, self._base)

    def _unpacked(self, vendor_id: str, stored: bytes) -> bytes:
        with of_vendor(vendor_id):
            return self._bases.unpacked(stored)

    def _store_new(self, vendor_id: str, image: bytes) -> None:
        with closing(self.template.connection(image)) as connection:
            groups = self._summariser.read(connection)
        self._insert([(vendor_id, self.schema.digest, 1, self._packed(image), groups)])

    def _insert(self, rows: list[_New]) -> int:
        """Insert a batch of one shard in one transaction, empty the list, and return how many bytes it held."""
        if not rows:
            return 0
        rows.sort()
        self._flush(self.shard_of(rows[0][0]))
        form, encoded = self._summariser.form, self._summariser.encoded
        with self._file_of(rows[0][0]) as file:
            try:
                with file_transaction(file):
                    label = Labels(file, self._summariser)
                    file.executemany(INSERT, [(row[0], form, encoded(row[4], label)) for row in rows])
                    file.executemany(_INSERT, [row[:4] for row in rows])
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
                        self._store(file, vendor_id, active, self._packed(image))
                        if self._summariser.tables:
                            label = Labels(file, self._summariser)
                            summary = self._summariser.encoded(self._summariser.read(connection), label)
                            file.execute(UPDATE, (self._summariser.form, summary, vendor_id))
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
        version, made = self._version(file, vendor_id)
        active = self._active.take(vendor_id)
        if active is not None:
            if (active.version, active.made) == (version, made):
                return active
            active.close()  # Another process has written the vendor since.
        sql = f"SELECT version, {_MADE}, schema_digest, image FROM vendors WHERE id = ?"
        row = file.execute(sql, (vendor_id,)).fetchone()
        if row is None:
            raise unknown(vendor_id)
        version, made, digest, image = row[0], row[1], row[2], self._unpacked(vendor_id, row[3])
        if digest != self.schema.digest:
            if self.migration.version == 1:
                raise SchemaMismatchError(
                    f"vendor {shown(vendor_id)} has the schema {digest[:12]}..., no version of this"
                )
            image = self._migrated(image, vendor_id)
            file.execute(
                "UPDATE vendors SET image = ?, schema_digest = ?, version = ? WHERE id = ? AND version = ?",
                (self._packed(image), self.schema.digest, version + 1, vendor_id, version),
            )
            if not file.changes():
                raise StorageError(f"vendor {shown(vendor_id)} was written by another process meanwhile: retry")
            version += 1
        return _Active(Writer(open_quickly(image, vendor_id), self.template.cookie), version, made)

    def _store(self, file: Connection, vendor_id: str, active: _Active, image: bytes) -> None:
        file.execute(_UPDATE, (image, active.version + 1, vendor_id, active.version, active.made))
        if not file.changes():
            raise StorageError(
                f"vendor {shown(vendor_id)} was written by another process meanwhile; this transaction is undone: retry"
            )

    def _version(self, file: Connection, vendor_id: str) -> tuple[int, int | None]:
        """Return the vendor's version, and the number under which it was made."""
        sql = f"SELECT version, {_MADE} FROM vendors WHERE id = ? AND version > 0"
        row = file.execute(sql, (vendor_id,)).fetchone()
        if row is None:
            raise unknown(vendor_id)
        return int(row[0]), row[1]

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
            self.moves.forget(vendor_id)
            file.execute("DELETE FROM vendors WHERE id = ? AND version > 0", (vendor_id,))
            if not file.changes():
                raise unknown(vendor_id)
            self.moves.strays.pop(vendor_id, None)
        for follower in self.followers:
            follower.forget(vendor_id)

    def scrub(self) -> None:
        self.flush()
        for shard, file in self._files.items():
            with named_errors(f"shard {shard!r}"):
                if self._summariser.tables:  # A label may be what only a deleted vendor said.
                    with file_transaction(file):
                        labels = Labels(file, self._summariser)
                        if not labels.swept:
                            labels.sweep()
                file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for follower in self.followers:
            follower.scrub()

    def version(self, vendor_id: str) -> int:
        with self._file_of(vendor_id) as file:
            return self._version(file, vendor_id)[0]

    def image(self, vendor_id: str) -> bytes:
        with self._file_of(vendor_id) as file:
            row = file.execute("SELECT image FROM vendors WHERE id = ? AND version > 0", (vendor_id,)).fetchone()
            if row is None:
                raise unknown(vendor_id)
            return checked(self._unpacked(vendor_id, row[0]), vendor_id)

    def restore(self, vendor_id: str, image: bytes) -> None:
        with self._file_of(vendor_id) as file, self._exclusively(vendor_id):
            adopted = self.template.adopt(image, vendor_id)
            self._flush(self.shard_of(vendor_id))
            self._active.drop(vendor_id)
            file.execute(
                f"{_INSERT} ON CONFLICT(id) DO UPDATE SET schema_digest = excluded.schema_digest, "
                "version = version + 1, image = excluded.image",
                (vendor_id, self.schema.digest, 1, self._packed(adopted)),
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

    def _scan(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
    ) -> Iterator[Answer]:
        self.migrate(shard=shard)
        return self._scanner(shard).scan(statements, vendor_ids=vendor_ids, top=top, as_of=as_of)

    def _collect(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
        folding: Folding | None,
    ) -> tuple[list[Answer], int]:
        self.migrate(shard=shard)
        options: dict[str, Any] = {"vendor_ids": vendor_ids, "top": top, "as_of": as_of, "folding": folding}
        return self._scanner(shard).collect(statements, **options)

    def _close(self) -> None:
        self.flush()
        # The files' own connections come last: the last one of a file folds its write-ahead log into it.
        self._active.close()
        for summaries in self._summaries.values():
            summaries.close()
        for scanner in self._scanners.values():
            scanner.close()
        self._readers.close()
        for file in self._files.values():
            file.close(True)


def _lay_out(file: Connection, path: Path) -> None:
    """Bring a shard file to the present layout."""
    found = int(file.pragma("user_version"))
    if found > len(_LAYOUT):
        raise StorageError(f"shard file {path} is of layout {found}, this program of {len(_LAYOUT)}: update it")
    if found < len(_LAYOUT):
        with file_transaction(file):
            for statement in _LAYOUT:
                file.execute(statement)
            file.execute(f"PRAGMA user_version = {len(_LAYOUT)}")
