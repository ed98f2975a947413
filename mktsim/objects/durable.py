"""Durable objects: an id, a database of its own, and one request at a time.

Subclass :class:`DurableObject`; its public methods are then open to callers through a stub. A method may be plain or
a coroutine. All that one request does to the database is one transaction: it is all there or nothing of it is.

Examples
--------
>>> from mktsim.objects import DurableObject, noun
>>> Note = noun("Note", {"text": "TEXT NOT NULL"})
>>> class Notebook(DurableObject):
...     nouns = (Note,)
...     def write(self, text: str) -> str:
...         return self.things.create(Note, {"text": text})["id"]
...     def count(self) -> int:
...         return self.sql.execute("SELECT COUNT(*) FROM notes")[0][0]
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from mktsim.errors import InvalidArgumentError
from mktsim.objects.calls import Receiver
from mktsim.objects.noun import Noun
from mktsim.objects.sql import Sql
from mktsim.objects.things import Things

#: An event's name: a noun, a full stop, what happened to it.
EVENT_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9_]{0,62}\.[A-Za-z][A-Za-z0-9_]{0,62}")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Sent:
    """An event on its way into the outbox."""

    seq: int
    event: str
    data: str


class DurableObject(Receiver):
    """An object that outlives its process; subclass it and declare public methods.

    Attributes
    ----------
    nouns : tuple of Noun
        Class attribute: the kinds of thing its database holds.
    creators : frozenset of str
        Class attribute: the methods that bring an object into being when called on an id that nobody has.

    Notes
    -----
    What a method keeps in attributes of `self` is a cache: it is gone when the object is evicted or the process ends,
    and it is not undone when a request fails. What must last belongs in the database.
    """

    nouns: ClassVar[tuple[Noun, ...]] = ()
    creators: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, id: str) -> None:
        self._id = id
        self._sql = Sql(id)
        self._things = Things(self)
        self._sent: list[Sent] = []
        self._now_s = 0.0

    @property
    def id(self) -> str:
        """The object's id."""
        return self._id

    @property
    def sql(self) -> Sql:
        """The object's own database, as SQL."""
        return self._sql

    @property
    def things(self) -> Things:
        """The object's own database, as dicts."""
        return self._things

    def now(self) -> str:
        """Return when this request began, as ISO 8601 in UTC."""
        return (_EPOCH + timedelta(seconds=self._now_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def next_serial(self) -> int:
        """Return a number that this object never gave out before and, if the request commits, never will again."""
        return int(self._sql.platform("UPDATE _vendor SET serial = serial + 1 RETURNING serial")[0][0])  # type: ignore[arg-type]

    def send(self, event: str, data: Mapping[str, Any]) -> int:
        """Announce that something happened: durable if this request commits, nothing at all if it does not.

        Parameters
        ----------
        event : str
            ``"Order.placed"``.
        data : mapping
            What JSON can hold. Events with the same `vendorId` in it are delivered in the order of sending.

        Returns
        -------
        int
            The event's number at this object.

        Raises
        ------
        InvalidArgumentError
            If the name is no event's or the data is not JSON.
        """
        if not isinstance(event, str) or EVENT_NAME.fullmatch(event) is None:
            raise InvalidArgumentError(f"an event is named like 'Order.placed', not {event!r:.80}")
        if not isinstance(data, Mapping):
            raise InvalidArgumentError(f"the data of {event} must be a mapping, not {type(data).__name__}")
        try:
            text = json.dumps(dict(data), allow_nan=False, ensure_ascii=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"the data of {event} must be JSON: {error}") from None
        sent = Sent(self.next_serial(), event, text)
        self._sent.append(sent)
        return sent.seq


DurableObject.reserved = frozenset(dir(DurableObject))
