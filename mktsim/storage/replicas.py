"""Copies of shard files, filled by following their changes, to be read when the shard itself is slow or gone.

Rules
-----
* A copy is written by its shard's changes and nothing else; whoever would write to a vendor of it is refused by name.
* A copy answers for exactly the vendors that its shard had at one change, or for some of them as of a later one; it
  answers only if it was once complete under the present arrangement of vendors, and while no vendor moves.
* How far it is behind is said with each answer: the vendors changed since, and seconds.
* What a copy holds is never thrown away because its shard's file is gone, or is another: that is an error by name.

Theory of operation
-------------------
A shard file numbers its changes (`mktsim.storage.summaries`): each vendor's row has the number of its last one. A copy
notes the place in that order up to which it has followed, in the transaction that writes what was found there, so that
a crash at any point loses nothing and repeats at most a batch. A batch reads the changes after that place from one
snapshot of the shard's file, some at a time; of a vendor changed a hundred times meanwhile it takes the last state. A
vendor whose version is the one that is there is not copied again.

*Worked example.* The shard's changes are acme 1, bolt 2, core 3; the copy has followed up to 3. Then acme is written
and bolt deleted: acme 4, bolt 5. The copy is 2 behind. The next batch finds 4 and 5, writes acme, deletes bolt and
notes 5.

*Vendors that move* are in two files, and each of these alone may say too much or too little. So copies rest while a
store moves vendors: they neither follow nor answer. Each notes the arrangement of vendors (any text that names it)
under which it was last complete, and forgets it before it follows under another: between the end of a move and the
moment at which it has caught up it does not answer, and no vendor can be found twice, or not at all, in a shard's own
answer beside another's copy.

*Which file* a copy follows is told by a token that the file is given when it is first followed. One of the same name
that was made anew has another: a copy made under another arrangement then begins anew, and otherwise refuses.

What this does not do
---------------------
Nobody writes to a copy once its shard is lost: it keeps answering queries, and has to be made the shard by hand. A
shard file put back from a backup is known by its token; where it is behind its copy, the copy refuses to follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

from mktsim.errors import ReadOnlyError, StorageError
from mktsim.sql.topk import TopKRequest
from mktsim.sql.ungrouped import Folding
from mktsim.sqlite import BusyError, Connection, Error, transaction
from mktsim.storage.base import Answer, Statement, Tables, VendorStore
from mktsim.storage.folder import file_name, open_file
from mktsim.storage.guards import named_errors, shown, unknown
from mktsim.storage.images import checked
from mktsim.storage.moves import MOVES_TABLE, Epochs
from mktsim.storage.packed import PackedStore
from mktsim.storage.scanner import ShardScanner
from mktsim.storage.sparse import Bases, of_vendor

#: Below the store's folder, so that whoever searches that for what was deleted searches the copies too.
FOLDER: Final = "replicas"
_VENDORS: Final = (
    "CREATE TABLE IF NOT EXISTS vendors(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "
    "schema_digest TEXT NOT NULL, version INTEGER NOT NULL, image BLOB NOT NULL) STRICT"
)
_FOLLOWED: Final = (
    "CREATE TABLE IF NOT EXISTS followed(one INTEGER PRIMARY KEY CHECK(one = 1), token TEXT, seq INTEGER NOT NULL, "
    "number INTEGER NOT NULL, arrangement TEXT, current_s REAL) STRICT"
)
#: The table of moves stays empty: by it a scan of a copy is a scan of a shard file.
_LAYOUT: Final = (
    _VENDORS,
    MOVES_TABLE,
    _FOLLOWED,
    "INSERT OR IGNORE INTO followed VALUES(1, NULL, 0, 0, NULL, NULL)",
)
_CHANGES: Final = (
    "SELECT s.seq, s.number, s.id, v.version FROM summaries AS s LEFT JOIN vendors AS v ON v.id = s.id "
    "WHERE (s.seq, s.number) > (?, ?) ORDER BY s.seq, s.number LIMIT ?"
)
_BEHIND: Final = "SELECT COUNT(*) FROM summaries WHERE (seq, number) > (?, ?)"
_BATCH_VENDORS: Final = 64
_BATCH_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Staleness:
    """How far behind copies are, or were when they answered.

    Attributes
    ----------
    changes : int
        Vendors of one shard that were written, made or deleted and not copied since, as far as is known; at most.
    seconds : float
        Everything older than that has been copied; infinite where that cannot be said, after a restart for instance.
    vendors : int
        For how many vendors copies answered.

    Examples
    --------
    >>> Staleness.worst([None, Staleness(2, 0.5, 10), Staleness(0, 0.0, 5)])
    Staleness(changes=2, seconds=0.5, vendors=15)
    """

    changes: int
    seconds: float
    vendors: int = 0

    @classmethod
    def worst(cls, several: Iterable[Staleness | None]) -> Staleness | None:
        """Return the most of each, and how many vendors there are together; None where there is nothing."""
        found = [each for each in several if each is not None]
        if not found:
            return None
        return cls(
            max(each.changes for each in found),
            max(each.seconds for each in found),
            sum(each.vendors for each in found),
        )


class Replica:
    """One copy of one shard's file.

    Parameters
    ----------
    source : PackedStore
        Which the shard belongs to.
    shard : str
    home : str
        The shard beside which the copy lies.
    now : callable
        Seconds, by which staleness is told.
    lasting : bool
        Whether another process would tell the same time, so that it is of use to write it down.

    Attributes
    ----------
    arrangement : str or None
        The arrangement of vendors under which it was last complete.
    failure : StorageError or None
        Why it could not follow last time.
    """

    def __init__(self, source: PackedStore, shard: str, home: str, now: Callable[[], float], lasting: bool) -> None:
        self.source = source
        self.shard = shard
        self.home = home
        self.path = path_of(source, shard, home)
        self.failure: StorageError | None = None
        self._now = now
        self._lasting = lasting
        self._feed: Connection | None = None
        self._seen: tuple[int, str] | None = None  # the feed's data_version, and the arrangement, when all was followed
        self._behind = 0
        self._behind_of: tuple[int, int, int] | None = None
        self._is_claimed = False
        self._token: str | None = None
        self._place = 0, 0
        self._current_s = -inf
        self._bases: Bases | None = None
        self._known_bases: set[bytes] = set()
        self._scanner: ShardScanner | None = None
        with named_errors(f"replica {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_file(self.path)
            try:
                self._file.set_busy_timeout(0)  # Whoever else follows into the same file is not waited for.
                self._file.execute("PRAGMA synchronous = NORMAL")  # What the power takes is copied again.
                with transaction(self._file):
                    for statement in _LAYOUT:
                        self._file.execute(statement)
                self._read_place()
                if lasting:
                    self._current_s = float(self._file.execute("SELECT COALESCE(current_s, -1e999) FROM followed").get)
            except BaseException:
                self._file.close(True)
                raise

    def close(self) -> None:
        """Close the files, and write down until when the copy was current."""
        self._note_time()
        if self._scanner is not None:
            self._scanner.close()
        if self._feed is not None:
            self._feed.close(True)
        self._file.close(True)

    def drop(self) -> None:
        """Close and delete the copy, which belongs elsewhere."""
        self.close()
        remove(self.path)

    @property
    def scanner(self) -> ShardScanner:
        """What reads the copy."""
        if self._scanner is None:
            self._scanner = ShardScanner(self.path, self.source.setup)
        return self._scanner

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of one statement on the copy's file."""
        with named_errors(f"replica {self.path}"):
            return self._file.execute(sql, values).fetchall()

    # -- how far it is ------------------------------------------------------------------------------------------

    def staleness(self) -> Staleness:
        """Return how far behind the copy is now; of a shard that cannot be read, how far it is known to be."""
        now_s = self._now()
        with suppress(Error, OSError):  # What was known before is better than nothing: for this, copies are kept.
            feed = self._opened()
            version = int(feed.execute("PRAGMA data_version").get)
            if self._behind_of != (version, *self._place):
                self._behind = int(feed.execute(_BEHIND, self._place).get)
                self._behind_of = version, *self._place
            if not self._behind and self._is_claimed:
                self._current_s = now_s
        return Staleness(self._behind, max(0.0, now_s - self._current_s))

    def _read_place(self) -> None:
        """Read where the copy is: another process may follow too."""
        read = self._file.execute("SELECT token, seq, number, arrangement FROM followed")
        found: tuple[Any, ...] = read.fetchall()[0]
        self._token, self._place, self.arrangement = found[0], (int(found[1]), int(found[2])), found[3]

    def _note_time(self) -> None:
        if self._lasting and self._current_s > -inf:
            with suppress(Error):  # Else it will be told as older than it is.
                self._file.execute("UPDATE followed SET current_s = ?", (self._current_s,))

    # -- following ----------------------------------------------------------------------------------------------

    def step(self, arrangement: str) -> bool:
        """Follow a batch of changes; return whether that was all. No vendor may be on the move.

        Raises
        ------
        StorageError
            The shard's file, or the copy's, cannot be read or written, or the shard's file is another than it was.
        """
        with named_errors(f"replica {self.path}"):
            try:
                return self._step(arrangement)
            except BusyError:
                self._read_place()
                return True  # Another process is at it.

    def _step(self, arrangement: str) -> bool:
        if self._token is None:
            self.source.token(self.shard)  # which makes the file of a shard that has no vendor yet
        feed, now_s = self._opened(), self._now()
        version = int(feed.execute("PRAGMA data_version").get)
        if self._seen == (version, arrangement):
            return True
        is_present = not self.source.outdated(self.shard)  # Images of an earlier schema are no answer.
        with transaction(self._file):
            self._read_place()
            if not self._is_claimed:
                self._claim(arrangement)
            complete = arrangement if self.arrangement == arrangement else None
            feed.execute("BEGIN")
            try:
                if feed.execute("SELECT EXISTS(SELECT 1 FROM moves)").get:
                    return True
                changes = feed.execute(_CHANGES, (*self._place, _BATCH_VENDORS)).fetchall()
                place = self._apply(feed, changes)
            finally:
                feed.execute("ROLLBACK")
            is_all = len(changes) < _BATCH_VENDORS and (not changes or place == changes[-1][:2])
            if is_all and is_present:
                complete = arrangement
            self._file.execute(
                "UPDATE followed SET token = ?, seq = ?, number = ?, arrangement = ?",
                (self._token, *place, complete),
            )
        self._is_claimed = True
        self._place, self.arrangement = place, complete
        if is_all:
            self._seen = version, arrangement  # The number was read first: what came since is seen the next time.
            self._behind, self._behind_of = 0, (version, *place)
            self._current_s = now_s
        return is_all

    def _claim(self, arrangement: str) -> None:
        """See to it that the file followed is the one of which this is a copy."""
        token = self.source.token(self.shard)
        if self._token is not None and self._token != token:
            if self.arrangement == arrangement:
                raise StorageError(
                    f"{self.path} is a copy of another file than the present one of shard {self.shard!r}: if that was "
                    "lost, put it back from a backup; else delete the copy"
                )
            self._file.execute("DELETE FROM vendors")
            self._place = 0, 0
        last = self._opened().execute("SELECT COALESCE(MAX(seq), 0) FROM summaries").get
        if last < self._place[0]:
            raise StorageError(
                f"{self.path} has followed shard {self.shard!r} to change {self._place[0]:,}, and its file ends at "
                f"{last:,}: an older one was put back; delete the copy if that was meant"
            )
        self._token = token

    def _apply(self, feed: Connection, changes: list[tuple[Any, ...]]) -> tuple[int, int]:
        """Write what changes say; return the place up to which that was done."""
        place, size = self._place, 0
        for seq, number, vendor_id, version in changes:
            if version is None or vendor_id is None:
                self._file.execute("DELETE FROM vendors WHERE number = ?", (number,))
            elif not self._has(number, vendor_id, version):
                row = feed.execute("SELECT schema_digest, version, image FROM vendors WHERE id = ?", (vendor_id,))
                found: tuple[Any, ...] = row.fetchall()[0]
                self._take_base(found[2])
                self._file.execute("INSERT OR REPLACE INTO vendors VALUES(?, ?, ?, ?, ?)", (number, vendor_id, *found))
                size += len(found[2])
            place = seq, number
            if size >= _BATCH_BYTES:
                break
        return place

    def _has(self, number: int, vendor_id: str, version: int) -> bool:
        sql = "SELECT 1 FROM vendors WHERE number = ? AND id = ? AND version = ?"
        return bool(self._file.execute(sql, (number, vendor_id, version)).fetchall())

    def _take_base(self, stored: bytes) -> None:
        """Have what an image lacks (see `mktsim.storage.sparse`) beside the copy before the image names it."""
        if self._bases is None:
            self._bases = Bases(self.source.path)
            self._bases.take_from(self._opened())
        layout = self._bases.layout(stored)
        if layout.pages is not None and layout.base not in self._known_bases:
            Bases(self.path.parent).add(layout.base)
            self._known_bases.add(layout.base)

    def _opened(self) -> Connection:
        """Return the connection that reads the shard's file."""
        if self._feed is None:
            path = self.source.path / file_name(self.shard)
            with named_errors(f"shard file {path}"):
                self._feed = open_file(path, writable=False)
        return self._feed

    # -- deleted vendors ----------------------------------------------------------------------------------------

    def forget(self, vendor_id: str) -> None:
        """Delete a vendor that its shard is about to delete, whether or not copies follow just now."""
        with named_errors(f"replica {self.path}"):
            self._file.execute("DELETE FROM vendors WHERE id = ?", (vendor_id,))

    def scrub(self) -> None:
        """See to it that what was deleted leaves no bytes behind."""
        with named_errors(f"replica {self.path}"):
            self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def path_of(source: PackedStore, shard: str, home: str) -> Path:
    """Return where the copy of a shard lies that is beside another."""
    return source.path / FOLDER / quote(home, safe="") / file_name(shard)


def remove(path: Path) -> None:
    """Delete a database file and what SQLite keeps beside it."""
    with named_errors(f"replica {path}"):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


class ReplicaStore(VendorStore):
    """One copy of each shard of a packed store, read as that store is; its writing methods refuse by name.

    Parameters
    ----------
    source : PackedStore
    now : callable
        Seconds, by which staleness is told.
    lasting : bool
        Whether another process would tell the same time.

    Attributes
    ----------
    copies : dict of str to Replica
        By shard.
    homes : dict of str to str
        By shard, beside which other its copy lies.
    failures : dict of str to StorageError
        By shard, why there is no copy.

    Examples
    --------
    >>> import tempfile
    >>> from mktsim.sql.schema import Schema
    >>> folder = tempfile.TemporaryDirectory()
    >>> schema = Schema(("CREATE TABLE products(id, rating)",))
    >>> store = PackedStore(folder.name, schema, shards=["s0", "s1"], locate=lambda vendor_id: "s0")
    >>> store.create("acme", {"products": [("p1", 4.5)]})
    >>> replicas = ReplicaStore(store, now=lambda: 0.0)
    >>> replicas.arrange({"s0": "s1", "s1": "s0"})
    >>> replicas.copies["s0"].staleness(), replicas.copies["s0"].step("s0, s1"), replicas.copies["s0"].staleness()
    (Staleness(changes=1, seconds=inf, vendors=0), True, Staleness(changes=0, seconds=0.0, vendors=0))
    >>> list(replicas.scan("s0", [("SELECT id FROM products", ())]))
    [('acme', ([('p1',)],))]
    >>> replicas.close(), store.close(), folder.cleanup()
    (None, None, None)
    """

    def __init__(self, source: PackedStore, *, now: Callable[[], float], lasting: bool = False) -> None:
        super().__init__(
            source.schema,
            shards=source.shards,
            locate=source.shard_of,
            setup=source.setup,
            migration=source.migration,
        )
        self._source = source
        self._now = now
        self._lasting = lasting
        self.copies: dict[str, Replica] = {}
        self.homes: dict[str, str] = {}
        self.failures: dict[str, StorageError] = {}
        source.followers.append(self)

    def arrange(self, homes: Mapping[str, str]) -> None:
        """Have a copy of each of these shards, beside the shard that it maps to; other copies are deleted."""
        for shard, copy in list(self.copies.items()):
            if homes.get(shard) != copy.home:
                del self.copies[shard]
                copy.drop()
        self.failures, self.homes = {}, dict(homes)
        for shard, home in homes.items():
            if shard not in self.copies:
                try:
                    self.copies[shard] = Replica(self._source, shard, home, self._now, self._lasting)
                except StorageError as error:
                    self.failures[shard] = error
        if homes:
            self._set_shards(tuple(homes))

    # -- following deletions, called by the store that is copied --------------------------------------------------

    def forget(self, vendor_id: str) -> None:
        """Delete a vendor that has been deleted, without waiting for the change to be followed."""
        for copy in self.copies.values():
            copy.forget(vendor_id)

    def scrub(self) -> None:
        for copy in self.copies.values():
            copy.scrub()

    # -- reading --------------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> Epochs | None:
        """Those of the store that is copied: a copy has no vendor on the move."""
        return self._source.epochs

    def shard_path(self, shard: str) -> Path:
        """Return the file of a copy, for :func:`~mktsim.storage.open_scanner` in a worker process."""
        return self._copy(shard).path

    def path_of(self, shard: str) -> Path:
        """Return where a shard's copy is, or would be."""
        return path_of(self._source, shard, self.homes[shard])

    def _copy(self, shard: str) -> Replica:
        self._check_open()
        self._check_shard(shard)
        copy = self.copies.get(shard)
        if copy is None:
            raise self.failures.get(shard) or StorageError(f"there is no copy of shard {shard!r}")
        return copy

    def _row(self, vendor_id: str, columns: str) -> tuple[Any, ...]:
        found = self._copy(self.shard_of(vendor_id)).rows(f"SELECT {columns} FROM vendors WHERE id = ?", (vendor_id,))
        if not found:
            raise unknown(vendor_id)
        return found[0]

    def vendor_ids(self, shard: str | None = None) -> list[str]:
        if shard is None:
            return sorted(vendor_id for each in self.shards for vendor_id in self.vendor_ids(each))
        return [str(row[0]) for row in self._copy(shard).rows("SELECT id FROM vendors ORDER BY id")]

    def __contains__(self, vendor_id: object) -> bool:
        copy = self._copy(self.shard_of(vendor_id))  # type: ignore[arg-type]  # it is checked there
        return bool(copy.rows("SELECT 1 FROM vendors WHERE id = ?", (vendor_id,)))

    def count(self, shard: str | None = None) -> int:
        if shard is None:
            return sum(map(self.count, self.shards))
        return int(self._copy(shard).rows("SELECT COUNT(*) FROM vendors")[0][0])

    def version(self, vendor_id: str) -> int:
        return int(self._row(vendor_id, "version")[0])

    def image(self, vendor_id: str) -> bytes:
        (stored,) = self._row(vendor_id, "image")
        with of_vendor(vendor_id):
            return checked(self._copy(self.shard_of(vendor_id)).scanner.bases.unpacked(stored), vendor_id)

    def read(self, vendor_id: str) -> AbstractContextManager[Connection]:
        return self._copy(self.shard_of(vendor_id)).scanner.read(vendor_id)

    def _scan(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
    ) -> Iterator[Answer]:
        return self._copy(shard).scanner.scan(statements, vendor_ids=vendor_ids, top=top, as_of=as_of)

    def _collect(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
        folding: Folding | None,
    ) -> tuple[list[Answer], int]:
        options: dict[str, Any] = {"vendor_ids": vendor_ids, "top": top, "as_of": as_of, "folding": folding}
        return self._copy(shard).scanner.collect(statements, **options)

    def _close(self) -> None:
        self._source.followers.remove(self)
        for copy in self.copies.values():
            copy.close()

    # -- no writing -----------------------------------------------------------------------------------------------

    def create_many(self, vendors: Iterable[tuple[str, Tables]]) -> int:
        _refuse("vendors are created")

    def creating(self, vendor_id: str, tables: Tables | None = None) -> NoReturn:
        _refuse("vendors are created", vendor_id)

    def _store_new(self, vendor_id: str, image: bytes) -> None:
        _refuse("vendors are created", vendor_id)

    def transaction(self, vendor_id: str) -> AbstractContextManager[Connection]:
        _refuse("a vendor is written to", vendor_id)

    def delete(self, vendor_id: str) -> None:
        _refuse("a vendor is deleted", vendor_id)

    def restore(self, vendor_id: str, image: bytes) -> None:
        _refuse("a vendor is restored", vendor_id)


def _refuse(what: str, vendor_id: str = "") -> NoReturn:
    where = f" (vendor {shown(vendor_id)})" if vendor_id else ""
    raise ReadOnlyError(f"a replica only follows its shard: {what}{where} in the store that it is a copy of")
