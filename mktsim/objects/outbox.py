"""The outbox pump: delivers what objects have sent, until it is delivered or dead.

Rules
-----
An event leaves its sender's outbox only after the hub has acknowledged it. Each lane, a sender and a `vendorId`, is
delivered in order; lanes do not wait for each other. After `max_attempts` failures an event becomes a dead letter: it
stays in the outbox with its error, and its lane goes on.

Theory of operation
-------------------
A request that commits hands its events over; those of an earlier process are read from the outbox before the first
request is served, for what is settled, and the order of a lane, can be told only by who knows all that is not.
Attempts are counted in memory only: a write per failure would cost more than trying anew after a restart.
Acknowledged events are deleted by the sender's next transaction, whatever it is about, or in one of their own if there
is none in time: a deletion then costs a row, and seldom a commit. A crash before the deletion means another delivery,
whose calls the receivers' inboxes answer; so that they can, an event counts as settled only when its deletion is on
disk. A dead letter is written at once.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from mktsim.network import Network
from mktsim.objects.context import detached
from mktsim.objects.durable import Sent
from mktsim.objects.events import EventMessage
from mktsim.streams import Streams

_log = logging.getLogger("mktsim.objects")

#: What became of events: number to None (delivered) or to an error (dead).
Fates = dict[int, str | None]
#: Runs a transaction of a sender that writes their fates: see :meth:`Pump.take`.
Settle = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often an event is tried.

    Attributes
    ----------
    max_attempts : int
        Deliveries before it is a dead letter.
    base_s, cap_s : float
        Attempt n is followed by ``min(cap_s, base_s * 2**(n - 1))`` seconds, times a random factor from 0.5 to 1.5.
    timeout_s : float
        How long the hub may take to acknowledge.
    settle_s : float
        How long a delivered event may stay in its outbox where its sender has no other transaction.

    Examples
    --------
    Seven waits, doubled each time up to the cap, between eight deliveries: at least half of this in all.

    >>> policy = RetryPolicy()
    >>> waits_s = [min(policy.cap_s, policy.base_s * 2**n) for n in range(policy.max_attempts - 1)]
    >>> waits_s[0], waits_s[-1], round(sum(waits_s), 2)
    (0.05, 3.2, 6.35)
    """

    max_attempts: int = 8
    base_s: float = 0.05
    cap_s: float = 10.0
    timeout_s: float = 60.0
    settle_s: float = 1.0


@dataclass(slots=True)
class _Sender:
    lanes: dict[str, deque[Sent]] = field(default_factory=dict)
    unsettled: set[int] = field(default_factory=set)
    lowest: list[int] = field(default_factory=list)  # a heap of them; those that are settled leave it when they surface
    fates: Fates = field(default_factory=dict)  # to be written
    timer: asyncio.TimerHandle | None = None
    writing: bool = False

    def add(self, seq: int) -> None:
        if seq not in self.unsettled:
            self.unsettled.add(seq)
            heapq.heappush(self.lowest, seq)

    def lowest_unsettled(self) -> int:
        while self.lowest[0] not in self.unsettled:
            heapq.heappop(self.lowest)
        return self.lowest[0]


class Pump:
    """Delivers the events of all objects of one host.

    Parameters
    ----------
    network : Network
    hub : str
        The address that events go to.
    address_of : callable
        Object id to address.
    settle : callable
        See :data:`Settle`.
    streams : Streams
        Where the jitter comes from, keyed by sender, event and attempt.
    policy : RetryPolicy
    on_dead : callable, optional
        Told the id of the sender, the event and its error when an event dies.
    """

    def __init__(
        self,
        network: Network,
        hub: str,
        *,
        address_of: Callable[[str], str],
        settle: Settle,
        streams: Streams,
        policy: RetryPolicy,
        on_dead: Callable[[str, Sent, Exception], None] | None = None,
    ) -> None:
        self._network = network
        self._hub: Final = hub
        self._address_of = address_of
        self._settle = settle
        self._streams = streams.child("outbox")
        self._policy = policy
        self._on_dead = on_dead
        self._senders: dict[str, _Sender] = {}
        self._due: dict[str, _Sender] = {}
        self._held = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.delivered = 0
        self.failed_attempts = 0

    def push(self, id: str, events: Iterable[Sent], *, dead: Iterable[int] = ()) -> None:
        """Take over committed events of a sender in their order; numbers of dead letters hold back what is settled."""
        sender = self._senders.setdefault(id, _Sender())
        for seq in dead:
            sender.add(seq)
        for event in events:
            sender.add(event.seq)
            lane = event.lane
            queue = sender.lanes.get(lane)
            if queue is None:
                sender.lanes[lane] = queue = deque()
                if not self._held:
                    self._start(self._run_lane(id, sender, lane, queue))
            queue.append(event)

    def hold(self) -> None:
        """Deliver nothing until :meth:`begin`."""
        self._held = True

    def begin(self) -> None:
        """Deliver what was pushed since :meth:`hold`."""
        if self._held:
            self._held = False
            for id, sender in self._senders.items():
                for lane, queue in sender.lanes.items():
                    self._start(self._run_lane(id, sender, lane, queue))

    def take(self, id: str) -> Fates:
        """Return what the sender's outbox has still to be told, to be written by the transaction that asks.

        It then calls :meth:`wrote` once it is on disk, or :meth:`put_back`.
        """
        sender = self._due.pop(id, None)
        if sender is None:
            return {}
        if sender.timer is not None:
            sender.timer.cancel()
            sender.timer = None
        fates, sender.fates = sender.fates, {}
        return fates

    def wrote(self, id: str, fates: Fates) -> None:
        """Hear that fates are on disk."""
        self._senders[id].unsettled.difference_update(seq for seq, error in fates.items() if error is None)

    def put_back(self, id: str, fates: Fates) -> None:
        """Hear that fates were not written after all."""
        if fates:
            self._tell(id, self._senders[id], fates)

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, or has still to be written."""
        return bool(self._tasks or self._due)

    async def idle(self) -> None:
        """Wait until nothing is on its way, delivered or dead, and all of it is written."""
        while self.busy:
            for id, sender in list(self._due.items()):
                if sender.timer is not None:
                    sender.timer.cancel()
                self._write_now(id, sender)
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Stop delivering, and write what was delivered; what is not delivered stays in the outboxes."""
        await self.stop()
        for id in list(self._due):
            try:
                await self._settle(id)
            except Exception as error:
                _log.error("the outbox of %s could not be settled: what was delivered will be again: %s", id, error)
        for id in list(self._due):
            self.take(id)

    async def stop(self) -> None:
        """Stop at once, as a crash would."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sender in self._due.values():
            if sender.timer is not None:
                sender.timer.cancel()
                sender.timer = None
        self._stopped = True

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=detached())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_lane(self, id: str, sender: _Sender, lane: str, queue: deque[Sent]) -> None:
        while queue:
            event = queue[0]
            error = await self._deliver(id, sender, event)
            queue.popleft()
            if error is None:
                self.delivered += 1
            elif self._on_dead is not None:
                self._on_dead(id, event, error)
            self._tell(id, sender, {event.seq: None if error is None else f"{type(error).__name__}: {error}"[:1_000]})
        del sender.lanes[lane]

    async def _deliver(self, id: str, sender: _Sender, event: Sent) -> Exception | None:
        address = self._address_of(id)
        failure: Exception | None = None
        loop = asyncio.get_running_loop()
        for attempt in range(self._policy.max_attempts):
            deadline_s = loop.time() + self._policy.timeout_s
            message = EventMessage(address, event.seq, event.event, event.data, sender.lowest_unsettled(), deadline_s)
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._network.call(address, self._hub, message)
                return None
            except Exception as error:
                failure = error
                self.failed_attempts += 1
            if attempt + 1 < self._policy.max_attempts:
                await asyncio.sleep(self.pause_s(address, event.seq, attempt))
        return failure

    def pause_s(self, address: str, seq: int, attempt: int) -> float:
        """Return how long to wait after a failed attempt, counted from 0."""
        policy = self._policy
        factor = 0.5 + self._streams.uniform_at(address, seq, attempt)
        return float(min(policy.cap_s, policy.base_s * 2.0**attempt) * factor)

    def _tell(self, id: str, sender: _Sender, fates: Fates) -> None:
        """Have fates written: those of dead letters now, others in time."""
        sender.fates |= fates
        self._due[id] = sender
        if self._stopped:
            return
        if any(error is not None for error in fates.values()):
            self._write_now(id, sender)
        elif sender.timer is None:
            loop = asyncio.get_running_loop()
            sender.timer = loop.call_later(self._policy.settle_s, self._write_now, id, sender)

    def _write_now(self, id: str, sender: _Sender) -> None:
        sender.timer = None
        if not sender.writing:
            sender.writing = True
            self._start(self._write(id, sender))

    async def _write(self, id: str, sender: _Sender) -> None:
        failures = 0
        try:
            while id in self._due:
                try:
                    await self._settle(id)
                except Exception as error:
                    _log.error("the outbox of %s cannot be settled, trying again: %s", id, error)
                    await asyncio.sleep(self.pause_s(self._address_of(id), 0, min(failures, 20)))
                    failures += 1
        finally:
            sender.writing = False
