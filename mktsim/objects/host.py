"""The host of durable objects: takes calls from the network, runs them one at a time per object, each in a transaction.

Rules
-----
A message is one request: it waits until its object is free (or is refused where too many wait), runs in one transaction
of the object's database, and is answered after the commit is on disk. Events that the request sent are in the outbox by
the same commit. An object's database is touched by nobody else while a request runs, a coroutine's awaits included.

Theory of operation
-------------------
Objects are made when first called and forgotten when idle, least recently used first; they hold no connection, the
store lends one per request. A request that would wait for itself (A awaits B, which awaits A) is refused: each message
carries the chain of addresses that wait for it. Which objects may have events to deliver or an alarm to ring is kept in
a `Ledger`: an id enters it before the commit that gives it cause, so that after a crash only those few are opened.

A request leaves its transaction with the store and frees its object; at the loop's next tick everything that joined is
flushed, and only then answered (`mktsim.objects.group`). A later request may thus read what an earlier one has not yet
on disk, but both are in the same flush: neither is answered if it fails.

A request that runs on behalf of an event passes the event's key on to the calls that it makes itself, one level
deeper, so that a redelivery repeats none of them either.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mktsim.errors import (
    InvalidArgumentError,
    ObjectError,
    OverloadedError,
    StorageError,
    UnknownVendorError,
    VendorTimeoutError,
)
from mktsim.network import Network
from mktsim.objects.alarms import Alarms
from mktsim.objects.calls import SELF, CallMessage, Outcome
from mktsim.objects.context import Delivery, current_chain, current_deadline, current_delivery
from mktsim.objects.durable import DurableObject, Sent
from mktsim.objects.group import GroupCommit, Ledger
from mktsim.objects.outbox import Fates, Pump, RetryPolicy
from mktsim.objects.request import UndoneError, answer
from mktsim.sqlite import Connection
from mktsim.storage import VendorStore
from mktsim.streams import Streams

_log = logging.getLogger("mktsim.objects")

Work = Callable[[DurableObject, Connection], Awaitable[list[Outcome]]]


@dataclass(slots=True)
class _Activation:
    object: DurableObject
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class ObjectHost:
    """Serves the objects whose databases one store holds.

    Parameters
    ----------
    store : VendorStore
        Its schema must hold the internal tables: see :func:`mktsim.objects.noun.object_schema`.
    network : Network
        Calls arrive by it; the host registers `prefix`.
    factory : callable
        Makes the object of an id.
    prefix : str
        The objects' addresses are this and their id; ends in ``/``.
    hub : str
        The address that events are sent to.
    streams : Streams
        Randomness of the retries.
    ledger : Ledger
    clock : callable, optional
        Seconds since 1970-01-01 UTC, for `now()` and alarms; the loop's own time when absent, by which an alarm is
        found again only while the loop's time goes on.
    queue_limit : int
        How many requests may be at one object, the running one included.
    active_limit : int
        How many idle objects are kept.
    policy : RetryPolicy
        Of event deliveries, and of alarms that fail.
    on_dead : callable, optional
        Told when an event becomes a dead letter.
    first_serial : callable, optional
        The serial number after which a new object of an id begins; above what one of that id, deleted since, gave out.

    Examples
    --------
    Two objects with a database each; what one request raises, it has not done.

    >>> from mktsim.network import InProcessNetwork
    >>> from mktsim.objects import Caller, noun, object_schema
    >>> from mktsim.objects.ledger import FixedLedger
    >>> from mktsim.storage import open_store
    >>> class Notebook(DurableObject):
    ...     nouns = (noun("Note", {"text": "TEXT NOT NULL"}),)
    ...     creators = frozenset({"write"})
    ...
    ...     def write(self, text):
    ...         self.things.create("Note", text=text)
    ...         assert text != "nonsense"
    ...
    ...     def texts(self):
    ...         return [note["text"] for note in self.things.list("Note")]
    >>> async def story():
    ...     network, schema = InProcessNetwork(), object_schema(*Notebook.nouns)
    ...     with open_store("memory", None, schema, shards=["s0"], locate=lambda id: "s0") as store:
    ...         settings = {"hub": "hub", "streams": Streams(1), "ledger": FixedLedger(())}
    ...         host = ObjectHost(store, network, factory=Notebook, prefix="book/", **settings)
    ...         mine, yours = map(Caller(network, "reader").stub, ("book/mine", "book/yours"))
    ...         await asyncio.gather(mine.write("milk"), yours.write("eggs"))
    ...         failed = await asyncio.gather(mine.write("nonsense"), return_exceptions=True)
    ...         texts = await mine.texts(), await yours.texts()
    ...         await host.close()
    ...     return texts
    >>> asyncio.run(story())
    (['milk'], ['eggs'])
    """

    def __init__(
        self,
        store: VendorStore,
        network: Network,
        *,
        factory: Callable[[str], DurableObject],
        prefix: str,
        hub: str,
        streams: Streams,
        ledger: Ledger,
        clock: Callable[[], float] | None = None,
        queue_limit: int = 1_000,
        active_limit: int = 10_000,
        policy: RetryPolicy | None = None,
        on_dead: Callable[[str, Sent, Exception], None] | None = None,
        first_serial: Callable[[str], int] = lambda _id: 0,
    ) -> None:
        self.store = store
        self._first_serial = first_serial
        self._network = network
        self._factory = factory
        self._prefix = prefix
        self._ledger = ledger
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._queue_limit = queue_limit
        self._active_limit = active_limit
        self._active: OrderedDict[str, _Activation] = OrderedDict()
        self._group = GroupCommit(store, ledger)
        self._rings: dict[str, int] = {}  # alarms in a row that failed
        self._left_s: dict[str, float | None] | None = None
        self._found = 0
        self._closed = False
        self.pump = Pump(
            network,
            hub,
            address_of=prefix.__add__,
            settle=self._settle,
            streams=streams,
            policy=policy or RetryPolicy(),
            on_dead=on_dead,
        )
        self.alarms = Alarms(self._ring, self._clock)
        network.register(prefix, self._serve)

    def recover(self) -> None:
        """Read what earlier processes left in the outboxes, and deliver nothing before :meth:`resume`.

        To be called before the first request arrives, where one may: a late copy from before a crash, for instance.
        """
        assert self._left_s is None, "what was left is recovered once"
        self._left_s = {}
        self.pump.hold()
        for id in self._ledger.ids():
            try:
                rows, alarm_s = self._left(id) if id in self.store else ([], None)
            except StorageError as error:  # a damaged object must not stand in the others' way
                _log.error("what %s has still to deliver waits until its database can be read: %s", id, error)
                continue
            if not rows and alarm_s is None:
                self._ledger.clear(id)
                continue
            alive = [Sent.read(seq, event, data) for seq, event, data, error in rows if error is None]
            self.pump.push(id, alive, dead=[row[0] for row in rows if row[3] is not None])
            self._left_s[id] = alarm_s
            self._found += len(alive)

    def resume(self) -> int:
        """Deliver what earlier processes left in the outboxes and set their alarms; return how many events that is."""
        if self._left_s is None:
            self.recover()
        assert self._left_s is not None
        self.pump.begin()
        for id, alarm_s in self._left_s.items():
            if alarm_s is not None and not self.alarms.knows(id):
                self.alarms.set(id, alarm_s)
        return self._found

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the events whose attempts are used up: sender, seq, event, data and error of each."""
        return [
            {"sender": id, "seq": seq, "event": event, "data": json.loads(data), "error": error}
            for id in self._ledger.ids()
            if id in self.store
            for seq, event, data, error in self._left(id)[0]
            if error is not None
        ]

    async def replay(self, id: str, seq: int) -> None:
        """Try a dead letter again.

        Raises
        ------
        InvalidArgumentError
            The sender has no dead letter of that number.
        """
        activation = self._activate(id)
        async with activation.lock:
            with self.store.transaction(id) as connection:
                statement = (
                    "UPDATE _outbox SET error = NULL WHERE seq = ? AND error IS NOT NULL RETURNING seq, event, data"
                )
                rows: list[tuple[Any, ...]] = connection.execute(statement, (seq,)).fetchall()
        if not rows:
            raise InvalidArgumentError(f"{id!r:.80} has no dead letter {seq!r:.80}: dead_letters() lists them")
        self.pump.push(id, [Sent.read(*row) for row in rows])

    @asynccontextmanager
    async def quiesced(self, id: str) -> AsyncIterator[None]:
        """Hold an object between two requests, all that it has answered on disk; those that come meanwhile wait."""
        activation = self._activate(id)
        activation.waiting += 1  # so that it is not forgotten
        try:
            async with activation.lock:
                self.flush()
                yield
        finally:
            activation.waiting -= 1

    def flush(self) -> None:
        """Bring to disk now what has joined the next flush, and answer it."""
        self._group.flush()

    def adopt(self, id: str) -> None:
        """Take over an object whose database has just been put into the store: deliver its events, set its alarm."""
        rows, alarm_s = self._left(id)
        if rows or alarm_s is not None:
            self._ledger.mark((id,))
            alive = [Sent.read(seq, event, data) for seq, event, data, error in rows if error is None]
            self.pump.push(id, alive, dead=[row[0] for row in rows if row[3] is not None])
            self.alarms.set(id, alarm_s)

    async def retire(self, id: str, check: Callable[[Connection], None]) -> None:
        """Drop what is kept of an object, whose database is to be deleted, unless `check` raises."""
        activation = self._activate(id)
        async with activation.lock:
            with self.store.read(id) as connection:
                check(connection)
            self._active.pop(id, None)
            self.pump.take(id)
            self.alarms.set(id, None)
            self._ledger.clear(id)

    async def crash(self) -> None:
        """Stop as a killed process would: what is not on disk is gone. For simulations."""
        self._closed = True
        self._network.unregister(self._prefix)
        self._group.discard()
        await self.alarms.close()
        await self.pump.stop()

    async def close(self) -> None:
        """Take no more requests, wait for the running ones, stop delivering."""
        self._closed = True
        self._network.unregister(self._prefix)
        await self.alarms.close()
        await self.pump.close()
        for activation in list(self._active.values()):
            async with activation.lock:
                pass
        self._group.flush()

    # -- requests -----------------------------------------------------------------------------------------------

    async def _serve(self, address: str, message: Any) -> list[Outcome]:
        if not isinstance(message, CallMessage):
            raise InvalidArgumentError(f"{address!r:.80} takes calls, not {type(message).__name__}")
        if self._closed:
            raise ObjectError(f"{address!r:.80} is closed: open the marketplace again")
        if address in message.chain:
            raise ObjectError(f"{address!r:.80} would wait for itself: {' -> '.join((*message.chain, address))[:300]}")
        id = address[len(self._prefix) :]
        key = message.key
        tokens = (
            current_chain.set((*message.chain, address)),
            current_delivery.set(Delivery(key.sender, key.seq, key.settled, key.part) if key is not None else None),
            current_deadline.set(message.deadline_s),
        )
        try:
            async with asyncio.timeout_at(message.deadline_s):
                outcomes, durable = await self._in_turn(id, lambda activation: self._request(id, activation, message))
        except TimeoutError:
            raise VendorTimeoutError(f"the deadline of a request passed; {id!r:.80} undid it", vendor_id=id) from None
        finally:
            current_chain.reset(tokens[0])
            current_delivery.reset(tokens[1])
            current_deadline.reset(tokens[2])
        if durable is not None:
            await durable
        answered: list[Outcome] = outcomes
        return answered

    async def _in_turn(self, id: str, work: Callable[[_Activation], Awaitable[Any]]) -> Any:
        """Run `work` once the object is free."""
        activation = self._activate(id)
        if activation.waiting >= self._queue_limit:
            raise OverloadedError(f"{id!r:.80} has {activation.waiting} requests waiting: retry later", vendor_id=id)
        activation.waiting += 1
        try:
            async with activation.lock:
                return await work(activation)
        finally:
            activation.waiting -= 1

    def _activate(self, id: str) -> _Activation:
        activation = self._active.pop(id, None)
        if activation is None:
            activation = _Activation(self._factory(id))
            for old in list(self._active)[: max(0, len(self._active) + 1 - self._active_limit)]:
                if not self._active[old].waiting and not self._active[old].lock.locked():
                    del self._active[old]
        self._active[id] = activation
        return activation

    async def _request(
        self, id: str, activation: _Activation, message: CallMessage
    ) -> tuple[list[Outcome], asyncio.Future[None] | None]:
        first = message.steps[0]
        creates = first.target == SELF and first.kind == "call" and first.name in activation.object.creators
        created = creates and id not in self.store

        async def work(target: DurableObject, connection: Connection) -> list[Outcome]:
            outcomes = await answer(target, connection, message)
            if created and outcomes[0].error is not None:
                raise UndoneError(outcomes)
            return outcomes

        try:
            return await self._transaction(id, activation, work, creating=created)
        except UndoneError as undone:
            return undone.outcomes, None
        except UnknownVendorError:
            if id in self.store:  # then it is the request's own error
                raise
            raise UnknownVendorError(
                f"no vendor {id!r:.80}: onboard it with initialize(), or check the spelling"
            ) from None

    async def _transaction(
        self, id: str, activation: _Activation, work: Work, *, settling: bool = False, creating: bool = False
    ) -> tuple[list[Outcome], asyncio.Future[None] | None]:
        """Run `work` in a transaction that joins the next flush; the future is done when it is on disk.

        One that writes, or is `settling`, also writes what became of the events that the object sent before.
        """
        target = activation.object
        target._begin(self._clock())
        committed = False
        alarm_s: float | None = None
        fates: Fates = {}
        try:
            with self._new(id) if creating else self.store.join(id) as connection:
                before = connection.total_changes()
                outcomes = await work(target, connection)
                if target._serial is not None:
                    connection.execute("UPDATE _vendor SET serial = ?", (target._serial,))
                for each in target._sent:
                    connection.execute("INSERT INTO _outbox VALUES(?, ?, ?, NULL)", (each.seq, each.event, each.data))
                if settling or connection.total_changes() != before:
                    fates = self.pump.take(id)
                    _write(fates, connection)
                sent, alarm_changed = target._sent, target._alarm_changed
                if alarm_changed:
                    alarm_s = connection.execute("SELECT alarm FROM _vendor").get
                marked = bool(sent) or alarm_changed
                self._group.before_commit(id, marked, joining=not creating)
                changed = connection.total_changes() != before
            committed = True
        finally:
            if not committed:
                activation.object = self._factory(id)  # what the old one remembers may have been undone
                self.pump.put_back(id, fates)

        def done() -> None:
            if fates:
                self.pump.wrote(id, fates)
            if sent:
                self.pump.push(id, sent)
            if alarm_changed:
                self.alarms.set(id, alarm_s)

        def undone() -> None:
            activation.object = self._factory(id)
            self.pump.put_back(id, fates)

        if creating:
            done()
            return outcomes, None
        return outcomes, self._group.join(id, marked, changed, done, undone)

    def _new(self, id: str) -> AbstractContextManager[Connection]:
        return self.store.creating(id, {"_vendor": [(id, self._first_serial(id))]})

    # -- alarms and outbox --------------------------------------------------------------------------------------

    async def _ring(self, id: str) -> None:
        """Call an object's alarm; the alarm is gone by the same commit, or rings again."""

        async def work(target: DurableObject, connection: Connection) -> list[Outcome]:
            at_s = connection.execute("SELECT alarm FROM _vendor").get
            if at_s is None or at_s > target._now_s:
                target._alarm_changed = True  # it was set anew meanwhile
                return []
            connection.execute("UPDATE _vendor SET alarm = NULL")
            target._alarm_changed = True
            with target.sql.bound(connection):
                result = target.alarm()
                if asyncio.iscoroutine(result):
                    await result
            return []

        try:
            _, durable = await self._in_turn(id, lambda activation: self._transaction(id, activation, work))
            if durable is not None:
                await durable
            self._rings.pop(id, None)
        except Exception as error:
            failures = self._rings[id] = self._rings.get(id, 0) + 1
            _log.error("the alarm of %s failed, ringing again: %s: %s", id, type(error).__name__, error)
            if id in self.store:
                self.alarms.set(id, self._clock() + self.pump.pause_s(self._prefix + id, 0, min(failures - 1, 20)))

    def _left(self, id: str) -> tuple[list[tuple[Any, ...]], float | None]:
        """Return the rows of an outbox, and the alarm."""
        with self.store.read(id) as connection:
            rows = connection.execute("SELECT seq, event, data, error FROM _outbox ORDER BY seq").fetchall()
            return rows, connection.execute("SELECT alarm FROM _vendor").get

    async def _settle(self, id: str) -> None:
        async def nothing(_target: DurableObject, _connection: Connection) -> list[Outcome]:
            return []

        activation = self._activate(id)
        async with activation.lock:
            _, durable = await self._transaction(id, activation, nothing, settling=True)
        if durable is not None:
            await durable


def _write(fates: Fates, connection: Connection) -> None:
    """Delete delivered events from the outbox, and give dead letters their errors."""
    for seq, error in fates.items():
        if error is None:
            connection.execute("DELETE FROM _outbox WHERE seq = ?", (seq,))
        else:
            connection.execute("UPDATE _outbox SET error = ? WHERE seq = ?", (error, seq))
