"""Group commit: many requests wait for the disk together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from mktsim.errors import StorageError
from mktsim.storage import VendorStore


class Ledger(Protocol):
    """Remembers which objects may have something in their outbox, or an alarm."""

    def mark(self, ids: Iterable[str]) -> None:
        """Add ids, durably; called before the commit that gives cause."""

    def clear(self, id: str) -> None:
        """Remove an id."""

    def ids(self) -> list[str]:
        """Return all ids."""


@dataclass(slots=True)
class _Joined:
    id: str
    marked: bool
    done: Callable[[], None]
    undone: Callable[[], None]
    waiter: asyncio.Future[None]


class GroupCommit:
    """Flushes a store at the loop's next tick, and tells everybody who joined what became of it.

    Requests that await nothing run through within a tick, and so join together, those of one object too. Where the
    store makes no groups, a request is on disk when it joins.
    """

    def __init__(self, store: VendorStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._joined: list[_Joined] = []

    def before_commit(self, id: str, marked: bool, *, joining: bool) -> None:
        """Enter an object into the ledger now where its commit will not wait for a flush."""
        if marked and not (joining and self._store.groups):
            self._ledger.mark((id,))

    def join(
        self, id: str, marked: bool, changed: bool, done: Callable[[], None], undone: Callable[[], None]
    ) -> asyncio.Future[None] | None:
        """Call `done` once a commit is on disk, or `undone` if it is lost; the future ends when that is known.

        Parameters
        ----------
        id : str
            Whose commit.
        marked : bool
            Whether the ledger must know of it.
        changed : bool
            Whether anything was written.
        done, undone : callable
        """
        if not self._store.groups or not (changed or any(each.id == id for each in self._joined)):
            done()
            return None
        loop = asyncio.get_running_loop()
        if not self._joined:
            loop.call_soon(self.flush)
        joined = _Joined(id, marked, done, undone, loop.create_future())
        self._joined.append(joined)
        return joined.waiter

    def flush(self) -> None:
        """Bring everything that joined to disk."""
        joined, self._joined = self._joined, []
        if not joined:
            return
        failure: StorageError | None = None
        lost: dict[str, StorageError] = {}
        try:
            self._ledger.mark({each.id for each in joined if each.marked})
            lost = self._store.flush()
        except Exception as error:  # whatever it is, nobody may be left waiting
            failure = error if isinstance(error, StorageError) else StorageError(f"a commit failed: {error!r:.200}")
            self._store.discard()
        for each in joined:
            reason = failure or lost.get(each.id)
            if reason is None:
                each.done()
            else:
                each.undone()
            if each.waiter.done():
                continue
            if reason is None:
                each.waiter.set_result(None)
            else:
                each.waiter.set_exception(reason)

    def discard(self) -> None:
        """Forget what joined, as a crash would."""
        self._joined.clear()
        self._store.discard()
