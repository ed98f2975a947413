"""Ledgers of the objects that may have events to deliver or an alarm to ring; see `mktsim.objects.host`."""

from __future__ import annotations

from collections.abc import Iterable

from mktsim.storage import VendorStore

#: The table that a database needs to be a :class:`StoreLedger`.
LEDGER_TABLE = "CREATE TABLE _pending(id TEXT PRIMARY KEY) WITHOUT ROWID"


class FixedLedger:
    """A ledger of a few objects that are always looked at."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = list(ids)

    def mark(self, ids: Iterable[str]) -> None:
        """Do nothing: the ids are among them."""

    def clear(self, id: str) -> None:
        """Do nothing: the id stays."""

    def ids(self) -> list[str]:
        """Return the ids."""
        return list(self._ids)


class StoreLedger:
    """A ledger in a database of a store; `id` names the database, made if there is none.

    An id is written once per process, not once per event; one that turns out to have nothing is cleared when the
    next process starts.
    """

    def __init__(self, store: VendorStore, id: str) -> None:
        self._store = store
        self._id = id
        if id not in store:
            store.create(id)
        with store.read(id) as connection:
            self._known: set[str] = {str(row[0]) for row in connection.execute("SELECT id FROM _pending")}

    def mark(self, ids: Iterable[str]) -> None:
        """Add ids and commit."""
        new = set(ids) - self._known
        if new:
            with self._store.transaction(self._id) as connection:
                connection.executemany("INSERT OR IGNORE INTO _pending VALUES(?)", [(id,) for id in sorted(new)])
            self._known |= new

    def clear(self, id: str) -> None:
        """Remove an id and commit."""
        if id in self._known:
            with self._store.transaction(self._id) as connection:
                connection.execute("DELETE FROM _pending WHERE id = ?", (id,))
            self._known.discard(id)

    def ids(self) -> list[str]:
        """Return the ids, sorted."""
        return sorted(self._known)
