"""The host of durable objects: takes calls from the network, runs them one at a time per object, each in a transaction.

Rules
-----
A message is one request: it waits until its object is free (or is refused where too many wait), runs in one transaction
of the object's database, and is answered after the commit. Events that the request sent are in the outbox by the same
commit. An object's database is touched by nobody else while a request runs, a coroutine's awaits included.

Theory of operation
-------------------
Objects are made when first called and forgotten when idle, least recently used first; they hold no connection, the
store lends one per request. A request that would wait for itself (A awaits B, which awaits A) is refused: each message
carries the chain of addresses that wait for it. Which objects may have events to deliver is kept in a `Ledger`: an id
enters it before the first commit that fills its outbox, so that after a crash only those few are opened.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from mktsim.errors import InvalidArgumentError, ObjectError, OverloadedError, StorageError, UnknownVendorError
from mktsim.network import Network
from mktsim.objects.calls import SELF, CallMessage, Key, Outcome, Ref, apply, travelling
from mktsim.objects.durable import DurableObject, Sent
from mktsim.objects.outbox import Pump, RetryPolicy
from mktsim.objects.stub import current_chain, current_delivery
from mktsim.sqlite import Connection
from mktsim.storage import VendorStore
from mktsim.streams import Streams

#: The number under which the inbox keeps, per sender, below which number all events are settled.
_FLOOR: Final = -1


class Ledger(Protocol):
    """Remembers which objects may have something in their outbox."""

    def mark(self, id: str) -> None:
        """Add an id, durably; called before each commit that adds to its outbox."""

    def clear(self, id: str) -> None:
        """Remove an id."""

    def ids(self) -> list[str]:
        """Return all ids."""


@dataclass(slots=True)
class _Activation:
    object: DurableObject
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class _UndoneError(Exception):
    """Rolls a request back and carries its outcomes past the transaction."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes


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
        Seconds since 1970-01-01 UTC, for `now()`; the loop's own time when absent.
    queue_limit : int
        How many requests may be at one object, the running one included.
    active_limit : int
        How many idle objects are kept.
    policy : RetryPolicy
        Of event deliveries.
    on_dead : callable, optional
        Told when an event becomes a dead letter.
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
    ) -> None:
        self.store = store
        self._network = network
        self._factory = factory
        self._prefix = prefix
        self._ledger = ledger
        self._clock = clock
        self._queue_limit = queue_limit
        self._active_limit = active_limit
        self._active: OrderedDict[str, _Activation] = OrderedDict()
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
        network.register(prefix, self._serve)

    def resume(self) -> int:
        """Deliver what earlier processes left in the outboxes; return how many events that is."""
        found = 0
        for id in self._ledger.ids():
            rows = self._outbox(id) if id in self.store else []
            if not rows:
                self._ledger.clear(id)
                continue
            alive = [Sent(seq, event, data) for seq, event, data, error in rows if error is None]
            self.pump.push(id, alive, dead=[row[0] for row in rows if row[3] is not None])
            found += len(alive)
        return found

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the events whose attempts are used up: sender, seq, event, data and error of each."""
        return [
            {"sender": id, "seq": seq, "event": event, "data": json.loads(data), "error": error}
            for id in self._ledger.ids()
            if id in self.store
            for seq, event, data, error in self._outbox(id)
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
        self.pump.push(id, [Sent(*row) for row in rows])

    async def close(self) -> None:
        """Take no more requests, wait for the running ones, stop delivering."""
        self._closed = True
        self._network.unregister(self._prefix)
        await self.pump.close()
        for activation in list(self._active.values()):
            async with activation.lock:
                pass

    # -- requests -----------------------------------------------------------------------------------------------

    async def _serve(self, address: str, message: Any) -> list[Outcome]:
        if not isinstance(message, CallMessage):
            raise InvalidArgumentError(f"{address!r:.80} takes calls, not {type(message).__name__}")
        if self._closed:
            raise ObjectError(f"{address!r:.80} is closed: open the marketplace again")
        if address in message.chain:
            raise ObjectError(f"{address!r:.80} would wait for itself: {' -> '.join((*message.chain, address))[:300]}")
        id = address[len(self._prefix) :]
        activation = self._activate(id)
        if activation.waiting >= self._queue_limit:
            raise OverloadedError(f"{id!r:.80} has {activation.waiting} requests waiting: retry later", vendor_id=id)
        activation.waiting += 1
        try:
            async with activation.lock:
                return await self._request(id, activation, message)
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

    async def _request(self, id: str, activation: _Activation, message: CallMessage) -> list[Outcome]:
        target = activation.object
        created = id not in self.store
        if created:
            first = message.steps[0]
            if first.target != SELF or first.kind != "call" or first.name not in target.creators:
                raise UnknownVendorError(f"no vendor {id!r:.80}: onboard it with initialize(), or check the spelling")
            self.store.create(id, {"_vendor": [(id, 0)]})
        target._now_s = self._clock() if self._clock is not None else asyncio.get_running_loop().time()
        target._sent = []
        tokens = current_chain.set((*message.chain, self._prefix + id)), current_delivery.set(None)
        committed = False
        try:
            with self.store.transaction(id) as connection:
                outcomes = await self._in_transaction(target, connection, message)
                if created and outcomes[0].error is not None:
                    raise _UndoneError(outcomes)
                for sent in target._sent:
                    connection.execute("INSERT INTO _outbox VALUES(?, ?, ?, NULL)", (sent.seq, sent.event, sent.data))
                if target._sent:
                    self._ledger.mark(id)
            committed = True
        except _UndoneError as undone:
            return undone.outcomes
        finally:
            current_chain.reset(tokens[0])
            current_delivery.reset(tokens[1])
            if not committed and created:
                self.store.delete(id)
            if not committed:
                activation.object = self._factory(id)  # what the old one remembers may have been undone
        if target._sent:
            self.pump.push(id, target._sent)
        return outcomes

    async def _in_transaction(
        self, target: DurableObject, connection: Connection, message: CallMessage
    ) -> list[Outcome]:
        key = message.key
        if key is not None:
            known = _recall(connection, key)
            if known is not None:
                return known
        with target.sql.bound(connection):
            outcomes = await self._run(target, connection, message)
        if key is not None:
            failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
            if failed is not None:
                raise _UndoneError([Outcome(error=failed)] * len(outcomes))
            _remember(connection, key, outcomes)
        return outcomes

    async def _run(self, target: DurableObject, connection: Connection, message: CallMessage) -> list[Outcome]:
        results: list[Any] = []
        outcomes: list[Outcome] = []
        # One step, or a message that is atomic as a whole, needs no savepoints.
        separate = len(message.steps) > 1 and message.key is None

        def resolved(value: Any) -> Any:
            if isinstance(value, Ref):
                return earlier(value.step)
            if isinstance(value, list | tuple):
                return type(value)(resolved(each) for each in value)
            if isinstance(value, dict):
                return {name: resolved(each) for name, each in value.items()}
            return value

        def earlier(number: int) -> Any:
            error = outcomes[number].error
            if error is not None:
                raise error
            return results[number]

        for step in message.steps:
            sent = len(target._sent)
            guarded = separate and step.kind == "call"
            if guarded:
                target.sql.platform("SAVEPOINT step")
            result: Any = None
            try:
                on = target if step.target == SELF else earlier(step.target)
                result = apply(step, on, resolved(step.args), resolved(step.kwargs))
                if inspect.isawaitable(result):
                    result = await result
                outcome = travelling(result, step)
            except Exception as error:
                if connection.get_autocommit():
                    raise StorageError(f"SQLite gave the whole request of {target.id!r:.80} up: {error}") from error
                outcome = Outcome(error=error)
            if outcome.error is not None and not guarded and step.kind == "call":
                raise _UndoneError([*outcomes, outcome, *[outcome] * (len(message.steps) - len(outcomes) - 1)])
            if guarded:
                if outcome.error is not None:
                    target.sql.platform("ROLLBACK TO step")
                    del target._sent[sent:]
                target.sql.platform("RELEASE step")
            results.append(result)
            outcomes.append(outcome)
        return outcomes

    # -- outbox -------------------------------------------------------------------------------------------------

    def _outbox(self, id: str) -> list[tuple[Any, ...]]:
        with self.store.read(id) as connection:
            return connection.execute("SELECT seq, event, data, error FROM _outbox ORDER BY seq").fetchall()

    async def _settle(self, id: str, results: dict[int, str | None]) -> None:
        activation = self._activate(id)
        async with activation.lock:
            with self.store.transaction(id) as connection:
                for seq, error in results.items():
                    if error is None:
                        connection.execute("DELETE FROM _outbox WHERE seq = ?", (seq,))
                    else:
                        connection.execute("UPDATE _outbox SET error = ? WHERE seq = ?", (error, seq))


def _recall(connection: Connection, key: Key) -> list[Outcome] | None:
    """Return the outcomes of a message that was applied before, and forget keys that will not come again."""
    row = connection.execute("SELECT answer FROM _inbox WHERE sender = ? AND seq = ?", (key.sender, _FLOOR)).fetchone()
    floor = int(row[0]) if row else 0
    if key.seq < floor:
        raise ObjectError(f"event {key.seq} of {key.sender!r:.80} was settled long ago: this copy of it is dropped")
    row = connection.execute(
        "SELECT answer FROM _inbox WHERE sender = ? AND seq = ? AND part = ?", (key.sender, key.seq, key.part)
    ).fetchone()
    if row is not None:
        return [Outcome(value, None, capability) for value, capability in json.loads(row[0])]
    if connection.execute(
        "DELETE FROM _inbox WHERE sender = ? AND seq BETWEEN 0 AND ? RETURNING seq", (key.sender, key.settled - 1)
    ).fetchall():
        connection.execute("INSERT OR REPLACE INTO _inbox VALUES(?, ?, '', ?)", (key.sender, _FLOOR, key.settled))
    return None


def _remember(connection: Connection, key: Key, outcomes: list[Outcome]) -> None:
    """Record a message as applied, with its answers."""
    try:
        answer = json.dumps([[outcome.value, outcome.capability] for outcome in outcomes])
    except (TypeError, ValueError) as error:
        raise ObjectError(f"what a call within a delivery returns is kept as JSON: {error}") from error
    connection.execute("INSERT INTO _inbox VALUES(?, ?, ?, ?)", (key.sender, key.seq, key.part, answer))
