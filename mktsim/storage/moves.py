"""Move vendors from one shard file to another while both are read and written.

Rules
-----
* A vendor is in exactly one shard at any time, whatever fails: the file it moves *from* decides.
* A query sees each vendor exactly once, where it was when the query began, however late it comes to a shard's file.
* What is not needed any more is deleted, and no earlier.

Theory of operation
-------------------
Two files cannot commit at once, so that the steps of a move are ordered such that each prefix of them is a state from
which the move can be finished or undone by looking at the two files. A vendor whose row has a negative version is not
*there*: its row is a copy that is not yet, or no longer, the vendor. The table ``moves`` says which.

====  ===========  ==========================================================  ====================================
step  file         what its transaction does                                   after a crash
====  ===========  ==========================================================  ====================================
1     destination  **copy**: the image under ``-version``, noted ``staged``    the copy is discarded
2     destination  **catch up**: again, if the vendor was written meanwhile    the copy is discarded
3     source       **switch**: ``version`` to ``-version`` if it is still the  the rest is done: the note forwards to
                   one that was copied; noted ``out``, with the destination    the destination
4     destination  **arrive**: ``-version`` to ``version``, noted ``in``       the rest is done
5     source       **clean**: the row and its note go                          the rest is done
6     destination  **clean**: the note goes                                    the note goes
====  ===========  ==========================================================  ====================================

Step 3 is the one that counts. It compares the version, so that no commit of the vendor can fall between copy and
switch; and until step 4 has followed, in the same tick of the loop, nobody is told that anything changed.

*Queries.* `Epochs` counts the moves that are done. Steps 3 and 4 note the number of the move, e. A query is answered
as of the number E that stood when it began: it skips ``staged`` rows, ``out`` rows with e <= E and ``in`` rows with
e > E. So one that began before the move finds the vendor at its source, in the state of the switch, even if it reads
that file long after; one that began after it finds it at its destination; and none finds it twice or not at all. Step
5 waits until every query that began before the move has ended. It holds for queries of one process, its worker
processes included: the request carries E.

*Worked example.* ``acme`` is the first to move, from s0 to s1. Q1 (E = 0) reads s1 first: at most a staged row, which
it skips. The move happens: e = 1. Q1 now reads s0: an ``out`` row with 1 > 0, which it takes: acme once. Q2 (E = 1)
skips that row and takes the ``in`` row of s1: acme once. When Q1 has ended, s0 forgets acme.

What this does not do
---------------------
While vendors move, the folder belongs to one process and its workers: another that writes to a vendor which has left
fails by name, but its queries know nothing of this one's epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from mktsim.errors import StorageError
from mktsim.sqlite import Connection, rows
from mktsim.storage.guards import named_errors, shown

#: Part of a shard file's layout: the vendors that come or go, and when.
MOVES_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS moves("
    "id TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL, epoch INTEGER NOT NULL, peer TEXT NOT NULL) STRICT"
)
#: The ids of rows that are not to be seen, as of an epoch that is bound twice.
UNSEEN: Final = (
    "SELECT id FROM moves WHERE state = 'staged' OR (state = 'out' AND epoch <= ?) OR (state = 'in' AND epoch > ?)"
)
#: The ids of rows that are not to be seen now.
ABSENT: Final = "SELECT id FROM moves WHERE state <> 'in'"
#: An epoch past all.
LATEST: Final = 2**62

#: Makes a copy the vendor.
_TURN: Final = "UPDATE vendors SET version = -version WHERE id = ? AND version < 0"
_STAGE: Final = (
    "INSERT INTO vendors(id, schema_digest, version, image) VALUES(?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET "
    "schema_digest = excluded.schema_digest, version = excluded.version, image = excluded.image WHERE version < 0"
)


class Epochs:
    """Counts the moves that are done, and knows which queries began before which.

    Attributes
    ----------
    now : int
        How many moves are done.

    Examples
    --------
    >>> epochs = Epochs()
    >>> with epochs.pinned() as first:
    ...     epochs.now += 1
    ...     with epochs.pinned() as second:
    ...         print(first, second, epochs.oldest)
    0 1 0
    >>> epochs.oldest
    1
    """

    __slots__ = ("_pins", "_waiting", "now")

    def __init__(self) -> None:
        self.now = 0
        self._pins: dict[int, int] = {}
        self._waiting: list[tuple[int, Callable[[], None]]] = []

    @contextmanager
    def pinned(self) -> Iterator[int]:
        """Keep what a query that begins now may read, for the time of the block; yield the epoch it reads as of."""
        epoch = self.now
        self._pins[epoch] = self._pins.get(epoch, 0) + 1
        try:
            yield epoch
        finally:
            self._pins[epoch] -= 1
            if not self._pins[epoch]:
                del self._pins[epoch]
                self._tell()

    @property
    def oldest(self) -> int:
        """The epoch of the oldest query that still runs; the present one where none does."""
        return min(self._pins, default=self.now)

    def when_past(self, epoch: int, call: Callable[[], None]) -> None:
        """Call once no query runs that began before `epoch`: now, if that is so."""
        self._waiting.append((epoch, call))
        self._tell()

    def _tell(self) -> None:
        oldest = self.oldest
        ready = [each for each in self._waiting if each[0] <= oldest]
        self._waiting = [each for each in self._waiting if each[0] > oldest]
        for _, call in ready:
            call()


class Moves:
    """The vendors of a packed store that move, and the steps of their moves.

    Parameters
    ----------
    file : callable
        Shard to its connection for writing.
    flush : callable
        Commits what has joined the open transaction of a shard's file.

    Attributes
    ----------
    epochs : Epochs
    strays : dict of str to str
        The vendors that are not yet where they belong, and the shards where they are.
    failure : StorageError or None
        Why a move could be neither finished nor undone: the store must be opened anew before it is used again.
    """

    def __init__(self, file: Callable[[str], Connection], flush: Callable[[str], object]) -> None:
        self._file = file
        self._flush = flush
        self.epochs = Epochs()
        self.strays: dict[str, str] = {}
        self.failure: StorageError | None = None
        self._staged: dict[str, tuple[str, int]] = {}  # to which shard, at which version
        self._left: dict[str, tuple[int, str, str]] = {}  # epoch, from, to: until old queries have ended

    def find(self, shards: Collection[str], locate: Callable[[str], str]) -> None:
        """Find the vendors that are elsewhere than `locate` has them.

        Raises
        ------
        StorageError
            A vendor is in two shards.
        """
        found: dict[str, str] = {}
        proper: set[str] = set()
        for shard in shards:
            for (vendor_id,) in rows(
                self._file(shard), f"SELECT id FROM vendors WHERE id NOT IN ({ABSENT}) ORDER BY id"
            ):
                if locate(vendor_id) == shard:
                    proper.add(vendor_id)
                elif found.setdefault(vendor_id, shard) != shard:
                    raise _in_two_shards(vendor_id, found[vendor_id], shard)
        for vendor_id in found.keys() & proper:
            raise _in_two_shards(vendor_id, found[vendor_id], locate(vendor_id))
        self.strays = found

    # -- the steps ----------------------------------------------------------------------------------------------

    def stage(self, vendor_id: str, to: str) -> int:
        """Copy a stray to its destination, unseen; return how many bytes. Steps 1 and 2."""
        source = self.strays[vendor_id]
        self._flush(source)  # What has only joined may still be lost, and its version be given to another commit.
        row = self._there(source, vendor_id)
        if row is None:
            raise StorageError(f"vendor {shown(vendor_id)} has left shard {source!r}: another process took it away")
        version, digest, image = row
        with self._transaction(to, vendor_id) as file:
            file.execute(_STAGE, (vendor_id, digest, -version, image))
            if not file.changes():
                raise _in_two_shards(vendor_id, source, to)
            file.execute("INSERT OR REPLACE INTO moves VALUES(?, 'staged', 0, ?)", (vendor_id, source))
        self._staged[vendor_id] = to, version
        return len(image)

    def switch(self, vendor_id: str) -> bool:
        """Make a staged vendor's destination its home: steps 2 to 4, in one go. Nobody may be writing to the vendor.

        Returns
        -------
        bool
            Whether it had been written since it was copied, so that it was copied again.
        """
        source = self.strays[vendor_id]
        self._flush(source)
        to, staged = self._staged[vendor_id]
        row = self._there(source, vendor_id, "version")
        is_behind = row is not None and row[0] != staged
        if is_behind:
            self.stage(vendor_id, to)
            staged = self._staged[vendor_id][1]
        epoch = self.epochs.now + 1
        with self._transaction(source, vendor_id) as file:
            file.execute("UPDATE vendors SET version = -version WHERE id = ? AND version = ?", (vendor_id, staged))
            if not file.changes():
                raise StorageError(f"vendor {shown(vendor_id)} was written by another process while it moved: retry")
            file.execute("INSERT INTO moves VALUES(?, 'out', ?, ?)", (vendor_id, epoch, to))
        try:
            with self._transaction(to, vendor_id) as file:
                file.execute(_TURN, (vendor_id,))
                file.execute("UPDATE moves SET state = 'in', epoch = ? WHERE id = ?", (epoch, vendor_id))
        except BaseException as error:
            if self._there(to, vendor_id, "version") is None:  # else it has arrived, whatever was said of the commit
                self._undo(vendor_id, source, error)
                raise
        del self._staged[vendor_id], self.strays[vendor_id]
        self._left[vendor_id] = epoch, source, to
        self.epochs.now = epoch
        return is_behind

    def _undo(self, vendor_id: str, source: str, error: BaseException) -> None:
        """Take a switch back that was not followed by an arrival."""
        try:
            with self._transaction(source, vendor_id) as file:
                file.execute(_TURN, (vendor_id,))
                file.execute("DELETE FROM moves WHERE id = ?", (vendor_id,))
        except BaseException:
            self.failure = StorageError(f"vendor {shown(vendor_id)} is half moved ({error}): open the store again")
            raise

    def clean(self) -> int:
        """Delete what no query can need any more, and return how many vendors' rows are still kept. Steps 5 and 6."""
        oldest = self.epochs.oldest
        done = {vendor_id: each for vendor_id, each in self._left.items() if each[0] <= oldest}
        self._clear([(source, vendor_id) for vendor_id, (_, source, _) in done.items()], row=True)
        self._clear([(to, vendor_id) for vendor_id, (_, _, to) in done.items()], row=False)
        for vendor_id in done:
            del self._left[vendor_id]
        return len(self._left)

    def forget(self, vendor_id: str) -> None:
        """Delete every copy of a vendor but the vendor itself, which is about to be deleted."""
        staged, left = self._staged.pop(vendor_id, None), self._left.pop(vendor_id, None)
        if staged is not None:
            self._clear([(staged[0], vendor_id)], row=True)
        if left is not None:
            self._clear([(left[1], vendor_id)], row=True)
            self._clear([(left[2], vendor_id)], row=False)

    # -- opening ------------------------------------------------------------------------------------------------

    def recover(self, shards: Collection[str]) -> None:
        """Finish or undo what a crash interrupted; doing it again, after a crash within it, does the same.

        Raises
        ------
        StorageError
            A file cannot be read or written.
        """
        for source, vendor_id, to in self._noted(shards, "out"):
            if to in shards and self._arrive_late(to, vendor_id):
                self._clear([(source, vendor_id)], row=True)
            else:  # The destination is gone: this copy is the only one.
                self._undo(vendor_id, source, StorageError(f"shard {to!r} has no copy of it"))
        self._clear([(shard, vendor_id) for shard, vendor_id, _ in self._noted(shards, "staged")], row=True)
        self._clear([(shard, vendor_id) for shard, vendor_id, _ in self._noted(shards, "in")], row=False)

    def _noted(self, shards: Collection[str], state: str) -> list[tuple[str, str, str]]:
        sql = "SELECT id, peer FROM moves WHERE state = ? ORDER BY id"
        return [(shard, *found) for shard in shards for found in rows(self._file(shard), sql, (state,))]

    def _arrive_late(self, to: str, vendor_id: str) -> bool:
        """Have a vendor arrive whose source says that it has left; return whether it is there."""
        with self._transaction(to, vendor_id) as file:
            file.execute(_TURN, (vendor_id,))
            file.execute("DELETE FROM moves WHERE id = ?", (vendor_id,))
        return self._there(to, vendor_id, "version") is not None

    # -- rows ---------------------------------------------------------------------------------------------------

    def _there(self, shard: str, vendor_id: str, columns: str = "version, schema_digest, image") -> Any:
        """Return the row of a vendor that is in a shard, or None."""
        with _named(shard, vendor_id):
            sql = f"SELECT {columns} FROM vendors WHERE id = ? AND version > 0"
            return self._file(shard).execute(sql, (vendor_id,)).fetchone()

    @contextmanager
    def _transaction(self, shard: str, vendor_id: str) -> Iterator[Connection]:
        """Run one step: the block is on disk at its end, or nothing of it is."""
        self._flush(shard)
        file = self._file(shard)
        with _named(shard, vendor_id):
            file.execute("BEGIN IMMEDIATE")
            try:
                yield file
                file.execute("COMMIT")
            except BaseException:
                if not file.get_autocommit():
                    file.execute("ROLLBACK")
                raise

    def _clear(self, places: list[tuple[str, str]], *, row: bool) -> None:
        """Delete the notes of vendors, a shard at a time, and their rows where those are mere copies."""
        for shard in sorted({shard for shard, _ in places}):
            ids = [(vendor_id,) for each, vendor_id in places if each == shard]
            with self._transaction(shard, ids[0][0]) as file:
                if row:
                    file.executemany("DELETE FROM vendors WHERE id = ? AND version < 0", ids)
                file.executemany("DELETE FROM moves WHERE id = ?", ids)


def _named(shard: str, vendor_id: str) -> AbstractContextManager[None]:
    return named_errors(f"shard {shard!r}, vendor {shown(vendor_id)}")


def _in_two_shards(vendor_id: str, one: str, other: str) -> StorageError:
    return StorageError(f"vendor {shown(vendor_id)} is in shard {one!r} and in {other!r}: delete one of them")
