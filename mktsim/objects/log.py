"""The log of events: what subscribers that come late can still hear.

Rules
-----
Each event has one offset, from 1 upwards in the order in which the hub first heard of it; a redelivery keeps it. An
event is in the log, on disk, before any handler runs.

What this does not do
---------------------
It keeps the last `limit` events, and of each sender the last one, by which :meth:`last` knows what number it had come
to even when it is gone. A subscriber that comes later than that has missed something.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from mktsim.objects.events import Event, EventMessage
from mktsim.storage import VendorStore

#: The table that a database needs to hold a log.
LOG_TABLE: Final = (
    "CREATE TABLE _log(place INTEGER PRIMARY KEY AUTOINCREMENT, sender TEXT, seq INT, name TEXT, data TEXT, "
    "UNIQUE(sender, seq))"
)


class EventLog:
    """A log in a database of a store; `id` names the database, made if there is none."""

    def __init__(self, store: VendorStore, id: str, *, limit: int = 100_000) -> None:
        self._store = store
        self._id = id
        self._limit = limit
        self._waiting: list[tuple[EventMessage, asyncio.Future[int]]] = []
        if id not in store:
            store.create(id)

    def append(self, message: EventMessage) -> asyncio.Future[int]:
        """Add an event unless it is there already; the future is its offset, once on disk."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        future: asyncio.Future[int] = loop.create_future()
        self._waiting.append((message, future))
        return future

    def last(self, sender: str) -> int:
        """Return the highest number of a sender's events, or 0."""
        with self._store.read(self._id) as connection:
            return int(connection.execute("SELECT COALESCE(MAX(seq), 0) FROM _log WHERE sender = ?", (sender,)).get)

    def read(self, *, after: int = 0, name: str | None = None, limit: int = 500) -> list[Event]:
        """Return events of higher offsets in order, of one name or of all."""
        with self._store.read(self._id) as connection:
            rows: list[tuple[Any, ...]] = connection.execute(
                "SELECT place, sender, seq, name, data FROM _log WHERE place > ? AND (?2 IS NULL OR name = ?2) "
                "ORDER BY place LIMIT ?3",
                (after, name, limit),
            ).fetchall()
        return [
            Event(f"{sender}#{seq}", name, json.loads(data), sender, place) for place, sender, seq, name, data in rows
        ]

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        offsets: list[int] = []
        try:
            with self._store.transaction(self._id) as connection:
                for message, _ in waiting:
                    row: tuple[Any, ...] = (message.sender, message.seq, message.name, message.data)
                    found = connection.execute(
                        "INSERT OR IGNORE INTO _log(sender, seq, name, data) VALUES(?, ?, ?, ?) RETURNING place", row
                    ).fetchone()
                    if found is None:
                        known = "SELECT place FROM _log WHERE sender = ? AND seq = ?"
                        found = (connection.execute(known, row[:2]).get,)
                    offsets.append(int(found[0]))
                connection.execute(
                    "DELETE FROM _log WHERE place <= ? AND EXISTS "
                    "(SELECT 1 FROM _log AS later WHERE later.sender = _log.sender AND later.seq > _log.seq)",
                    (max(offsets) - self._limit,),
                )
        except Exception as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), offset in zip(waiting, offsets, strict=True):
            if not future.done():
                future.set_result(offset)
