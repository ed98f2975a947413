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
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from mktsim.errors import InvalidArgumentError
from mktsim.objects.calls import Receiver
from mktsim.objects.noun import Noun
from mktsim.objects.sql import Limits, Sql
from mktsim.objects.things import Things

#: An event's name: a noun, a full stop, what happened to it.
EVENT_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9_]{0,62}\.[A-Za-z][A-Za-z0-9_]{0,62}")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Sent:
    """An event on its way into the outbox.

    Attributes
    ----------
    lane : str
        The `vendorId` in its data: events of one lane are delivered in order.
    """

    seq: int
    event: str
    data: str
    lane: str

    @classmethod
    def read(cls, seq: int, event: str, data: str) -> Sent:
        """Return an event as the outbox keeps it."""
        return cls(seq, event, data, _lane(json.loads(data)))


def _lane(data: Mapping[str, Any]) -> str:
    return str(data.get("vendorId", ""))


class DurableObject(Receiver):
    """An object that outlives its process; subclass it and declare public methods. It is made by its host alone.

    Parameters
    ----------
    id : str
        The object's id, which names its database.

    Attributes
    ----------
    nouns : tuple of Noun
        Class attribute: the kinds of thing its database holds.
    creators : frozenset of str
        Class attribute: the methods that bring an object into being when called on an id that nobody has.
    version : int
        Class attribute: which version of its nouns this is.
    migrations : mapping of int to sequence of str
        Class attribute: what is run in each database on arriving at a version; see `mktsim.storage.migrate`.
    limits : Limits
        Class attribute: what one statement may cost.

    Notes
    -----
    What a method keeps in attributes of `self` is a cache: it is gone when the object is evicted or the process ends,
    and it is not undone when a request fails. What must last belongs in the database.

    Examples
    --------
    A shop that counts its notes: the second note finds the first in the shop's own database.

    >>> import asyncio
    >>> from mktsim.network import InProcessNetwork
    >>> from mktsim.objects import Caller, ObjectHost, noun, object_schema
    >>> from mktsim.objects.ledger import FixedLedger
    >>> from mktsim.storage import open_store
    >>> from mktsim.streams import Streams
    >>> class Shop(DurableObject):
    ...     nouns = (noun("Note", {"text": "TEXT"}),)
    ...     creators = frozenset({"note"})
    ...
    ...     def note(self, text):
    ...         self.things.create("Note", text=text)
    ...         return self.sql.execute("SELECT COUNT(*) FROM notes")[0][0]
    >>> async def story():
    ...     network, schema = InProcessNetwork(), object_schema(*Shop.nouns)
    ...     with open_store("memory", None, schema, shards=["s0"], locate=lambda id: "s0") as store:
    ...         settings = {"hub": "hub", "streams": Streams(1), "ledger": FixedLedger(())}
    ...         host = ObjectHost(store, network, factory=Shop, prefix="shop/", **settings)
    ...         acme = Caller(network, "reader").stub("shop/acme")
    ...         counts = [await acme.note("milk"), await acme.note("eggs")]
    ...         await host.close()
    ...     return counts
    >>> asyncio.run(story())
    [1, 2]
    """

    nouns: ClassVar[tuple[Noun, ...]] = ()
    creators: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    migrations: ClassVar[Mapping[int, Sequence[str]]] = {}
    limits: ClassVar[Limits] = Limits()

    def __init__(self, id: str) -> None:
        self._id = id
        self._sql = Sql(id, self.limits)
        self._things = Things(self)
        self._sent: list[Sent] = []
        self._alarm_changed = False
        self._now_s = 0.0
        self._now = ""
        self._serial: int | None = None

    def _begin(self, now_s: float) -> None:
        """Forget the request before; the host calls this at the start of each."""
        self._now_s = now_s
        self._now = ""
        self._sent = []
        self._alarm_changed = False
        self._serial = None

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

    @property
    def now_s(self) -> float:
        """When this request began, in seconds of the host's clock."""
        return self._now_s

    def now(self) -> str:
        """Return when this request began, as ISO 8601 in UTC."""
        if not self._now:
            self._now = (_EPOCH + timedelta(seconds=self._now_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return self._now

    def set_alarm(self, at_s: float | None) -> None:
        """Have :meth:`alarm` called at a time of the host's clock, or not at all; it replaces the alarm set before.

        The alarm is part of this request's transaction and outlives the process.

        Raises
        ------
        InvalidArgumentError
            If `at_s` is no finite number.
        """
        if at_s is not None and (
            isinstance(at_s, bool) or not isinstance(at_s, int | float) or not math.isfinite(at_s)
        ):
            raise InvalidArgumentError(f"an alarm rings at a number of seconds, or None for never, not {at_s!r:.80}")
        self._sql.platform("UPDATE _vendor SET alarm = ?", (at_s,))
        self._alarm_changed = True

    def alarm_at_s(self) -> float | None:
        """Return when the alarm will ring, or None."""
        at_s = self._sql.platform("SELECT alarm FROM _vendor")[0][0]
        return float(at_s) if at_s is not None else None

    def alarm(self) -> Any:
        """Called when the alarm rings, as one request; override it. If it fails it is called again, later each time."""

    def next_serial(self) -> int:
        """Return a number that this object never gave out before and, if the request commits, never will again."""
        if self._serial is None:  # the host writes it back at the end of the request
            self._serial = int(self._sql.platform("SELECT serial FROM _vendor")[0][0])  # type: ignore[arg-type]
        self._serial += 1
        return self._serial

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
        sent = Sent(self.next_serial(), event, text, _lane(data))
        self._sent.append(sent)
        return sent.seq


DurableObject.reserved = frozenset(dir(DurableObject))
