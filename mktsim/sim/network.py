"""Messages on simulated time: the network that the marketplace's own code runs over in simulation.

Rules
-----
It is a :class:`mktsim.network.Network`, so coordinator, objects and stubs do not know it from the real one. Handlers
really run, SQLite included, at the instant their service ends, and take no simulated time beyond it.
How long a call takes is drawn from (seed, host group, request, attempt, host index), never in the order of arrival.
At one instant, calls go in the order in which they were made; answers are taken in before a connection that they free
is used again. The vectorised engine has the same rules.

Theory of operation
-------------------
A call is one small object that travels through the SimPy queue from stage to stage, itself the event of its next hop:
sent -> arrived at the host -> served -> back at the sender -> taken in. `call` costs a future and an object, no task
and no process. Two queues are kept without events of their own, because first come first served has a closed form: a
processor is free at ``max(now, free) + cost``; a host of c workers starts a call at ``max(now, earliest free worker)``,
which is what a `simpy.Resource` of that capacity does.

Most calls skip the stage of arrival: where no other call is on its way to the machine, the end of the service is known
when the call is sent, and *planned*. Should another call be sent there before the planned one arrives, the plan becomes
an arrival after all. A stage passed over saves a tenth of a scatter's time. A traced call is never planned, so that its
arrival is on record; the times are the same.

Worked example, fan_out 1, link 2 out and 3 back, service 4, fan_in 1 (ms), two vendors: sent at 1 and 2, arrived at 3
and 4, served at 7 and 8, back at 10 and 11, taken in at 11 and 12.

Faults, limits and pauses (`mktsim.sim.hosts`) meet a call when it is sent, when it arrives and when its answer leaves.
A lost message is silent: the caller's future stays open, and its connection taken, until the caller gives up.

What this does not do
---------------------
A call that its caller cancels still travels, is served, and holds its connection until it is back. An asynchronous
handler starts when its service ends, and holds no worker while it waits.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappush, heapreplace
from itertools import count
from math import inf
from typing import Any, Final, cast
from weakref import WeakValueDictionary

from mktsim.errors import InvalidArgumentError, OverloadedError, SimulationError, VendorDownError
from mktsim.fanout.messages import Withdrawn
from mktsim.network import Directory, Handler, NetworkStats
from mktsim.sim.calls import Call, Draws, Event, Sender, Stage, Tie
from mktsim.sim.conditions import Geography
from mktsim.sim.hosts import Address, Conditions, Group, Machine
from mktsim.sim.loop import SimLoop
from mktsim.sim.trace import Trace
from mktsim.sim.world import HORIZON_S, TICK_S, World, ms_to_ticks, transfer_ticks, zones_of
from mktsim.streams import Streams

_REQUEST: Final[contextvars.ContextVar[int]] = contextvars.ContextVar("mktsim_request", default=0)
_REMEMBERED_REQUESTS: Final = 64
_NORMAL: Final = 1  # SimPy's priority of all that is not urgent.
_LATE: Final = 2  # After all that at the same instant.


@contextmanager
def request_number(number: int) -> Iterator[None]:
    """Give all calls made in the block, and by the handlers that they reach, this request's draws.

    Parameters
    ----------
    number : int
        Of the request, at least 0.

    Yields
    ------
    None

    Examples
    --------
    The same request has the same luck again, in another run too; another has its own.

    >>> from mktsim.sim import Exponential, sim_run
    >>> async def call(number):
    ...     loop = asyncio.get_running_loop()
    ...     network = SimNetwork(loop, World(service=Exponential(10)), Streams(1))
    ...     network.add_hosts("leaf", ["vendor/acme"])
    ...     network.register("vendor/acme", lambda target, message: None)
    ...     with request_number(number):
    ...         await network.call("coordinator", "vendor/acme", None)
    ...     return round(loop.time() * 1e3, 3)
    >>> [sim_run(call(number)) for number in (7, 8, 7)]
    [15.066, 10.961, 15.066]
    """
    token = _REQUEST.set(number)
    try:
        yield
    finally:
        _REQUEST.reset(token)


class SimNetwork:
    """A network whose messages take simulated time.

    Parameters
    ----------
    loop : SimLoop
        The clock.
    world : World
        Durations, limits and faults.
    streams : Streams
        Where durations are drawn.
    trace : Trace, optional
        Records every step of every call.
    sizes : callable, optional
        ``sizes(message) -> bytes``, of requests and answers; without it they have the world's sizes.

    Attributes
    ----------
    stats : NetworkStats
        Calls sent and calls that ended in an exception.
    incidents : Counter
        How often the world interfered: ``lost``, ``refused``, ``shed``, ``duplicated``, ``cancelled``.

    Raises
    ------
    InvalidArgumentError
        The loop is no :class:`SimLoop`, the world no :class:`World`, or the streams no :class:`Streams`.

    Examples
    --------
    Out 3 ms, two services of 2 ms one after the other at the one worker, back 3 ms.

    >>> from mktsim.sim import Constant, sim_run
    >>> async def story():
    ...     loop = asyncio.get_running_loop()
    ...     world = World(link_out=Constant(3), service=Constant(2), link_back=Constant(3))
    ...     network = SimNetwork(loop, world, Streams(1))
    ...     network.add_hosts("leaf", ["vendor/acme"])
    ...     network.register("vendor/acme", lambda target, message: message.upper())
    ...     calls = [network.call("coordinator", "vendor/acme", each) for each in ("mouse", "lamp")]
    ...     return await asyncio.gather(*calls), round(loop.time(), 6)
    >>> sim_run(story())
    (['MOUSE', 'LAMP'], 0.01)
    """

    def __init__(
        self,
        loop: SimLoop,
        world: World,
        streams: Streams,
        *,
        trace: Trace | None = None,
        sizes: Callable[[Any], float] | None = None,
    ) -> None:
        if not isinstance(loop, SimLoop):
            raise InvalidArgumentError(f"SimNetwork needs a SimLoop, not {loop!r:.80}; run inside sim_run()")
        if not isinstance(world, World) or not isinstance(streams, Streams):
            raise InvalidArgumentError(f"SimNetwork needs a World and Streams, not {world!r:.80} and {streams!r:.80}")
        self.stats = NetworkStats()
        self.incidents: Counter[str] = Counter()
        self.world = world
        self._loop = loop
        self._environment = cast(Any, loop.environment)
        self._queue: list[Any] = self._environment._queue
        self._numbers: count[int] = (
            self._environment._eid
        )  # SimPy's own, so that all that is scheduled is in one order.
        self.streams = streams
        self._trace = trace
        self._sizes = sizes
        self._directory = Directory()
        self._addresses: dict[str, Address] = {}
        self._groups: set[str] = set()
        self._shared: list[list[Machine]] = []
        self._senders: dict[str, Sender] = {}
        self._draws: dict[tuple[str, int], Draws] = {}
        self._conditions = Conditions(world, streams)
        self._zones = len(world.geography.zones) if world.geography is not None else 1
        self._outstanding = 0
        self._idle: asyncio.Future[None] | None = None
        self._ties: WeakValueDictionary[tuple[Any, ...], Tie] = WeakValueDictionary()  # While a copy is under way.
        self._fan_out_s = world.fan_out_ticks * TICK_S
        self._fan_in_s = world.fan_in_ticks * TICK_S
        self._cancel_s = ms_to_ticks(world.cancel_ms) * TICK_S
        self._window = world.window if world.window is not None else inf
        # One tuple a stage, shared by all calls: SimPy only iterates over it.
        self._on_arrived = (self._arrived,)
        self._on_unplanned = (self._unplanned,)
        self._on_begun = (self._begun,)
        self._on_served = (self._served,)
        self._on_crashed = (self._crashed,)
        self._on_back = (self._back,)
        self._on_taken_in = (self._taken_in,)
        self._on_released = (self._released,)

    def register(self, address: str, handler: Handler) -> None:
        """Serve `address`; see :meth:`mktsim.network.Network.register`."""
        self._directory.register(address, handler)

    def unregister(self, address: str) -> None:
        """Stop serving `address`."""
        self._directory.unregister(address)

    def add_hosts(self, group: str, addresses: Sequence[str], *, hosts: Sequence[int] | None = None) -> None:
        """Declare a group of addresses; the i-th takes its draws as host i of the group.

        Parameters
        ----------
        group : str
            Name of the group; ``"leaf"`` takes the world's `service`, every other its `aggregator_service`.
        addresses : sequence of str
            In the order of their indices.
        hosts : sequence of int, optional
            Which machine each address stands on: those of one number queue for the same workers. By default each
            address is a machine of its own, unless the world says how many machines there are.

        Raises
        ------
        InvalidArgumentError
            If a group or an address is declared twice, or the lengths differ.

        Notes
        -----
        An address that is called without having been declared is a group of its own, named as itself.
        """
        if hosts is not None and len(hosts) != len(addresses):
            raise InvalidArgumentError(f"{len(addresses)} addresses stand on as many hosts, not {len(hosts)}")
        new = set(addresses)
        if group in self._groups or len(new) != len(addresses) or not new.isdisjoint(self._addresses):
            raise InvalidArgumentError(f"group {group!r:.80} is declared already, or one of its addresses is")
        self._groups.add(group)
        numbered = Group(group, len(addresses))
        machines: dict[int, tuple[Machine, ...]] = {}
        replicas, workers, faulty = self.world.replicas, self.world.workers, bool(self.world.faults)
        for index, address in enumerate(addresses):
            if hosts is None and self.world.machines is not None:
                mine = self._machine(index % self.world.machines)
            else:
                number = index if hosts is None else int(hosts[index])
                known = machines.get(number)
                if known is None:
                    keys = [group if not r else f"{group}/replica {r}" for r in range(replicas)]
                    known = machines[number] = tuple(Machine(workers, (key, number)) for key in keys)
                    for machine in known:
                        machine.shared = hosts is not None
                mine = known
            faults = self._conditions.faults_of(address, group, index) if faulty else ()
            eventful = faulty or self._conditions.everywhere
            self._addresses[address] = Address(address, numbered, index, mine, faults, eventful)

    def _machine(self, number: int) -> tuple[Machine, ...]:
        while len(self._shared) <= number:
            keys = ["machine" if not r else f"machine/replica {r}" for r in range(self.world.replicas)]
            made = [Machine(self.world.workers, (key, len(self._shared))) for key in keys]
            for machine in made:
                machine.shared = True
            self._shared.append(made)
        return tuple(self._shared[number])

    def call(self, source: str, target: str, message: Any, *, tie: Tie | None = None) -> asyncio.Future[Any]:
        """Send `message` on its way and return the future of the answer. Hot: see ``benchmarks``.

        Calls that share a `tie` are one request made twice: the first to be served cancels the other, whose future is
        then cancelled, once it has heard of it (`World.cancel_ms`). A coordinator's message may carry a tie of its own
        (:class:`mktsim.fanout.messages.Tie`): it is honoured here, between the hosts' queues, and not by the hosts.
        """
        if tie is None and getattr(message, "tie", None) is not None:
            tie, message = self._tied(message)
        self.stats.round_trips += 1
        self._outstanding += 1
        host = self._addresses.get(target)
        if host is None:
            self.add_hosts(target, (target,))
            host = self._addresses[target]
        sender = self._senders.get(source)
        if sender is None:
            sender = self._sender(source)
        future = self._loop.create_future()
        call = Call(future, sender, host, target, message, _REQUEST.get(), next(self._numbers), tie)
        if sender.in_flight >= self._window or sender.waiting:
            sender.waiting.append(call)
            if self._trace is not None:
                self._note("waits", call)
        else:
            self._send(call)
        return future

    def _tied(self, message: Any) -> tuple[Tie, Any]:
        """Return the tie of both copies of a coordinator's request, and the request without it."""
        tie = self._ties.get(message.tie.key)
        if tie is None:
            tie = self._ties[message.tie.key] = Tie(Withdrawn())
        return tie, message.replace(tie=None)

    async def idle(self) -> None:
        """Wait until nothing is on its way: what nobody waits for any more has come to its end as well.

        A call whose message was lost ends when its caller gives it up.
        """
        while self._outstanding:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    # -- stages of a call ---------------------------------------------------------------------------------------------

    def _sender(self, source: str) -> Sender:
        geography, host = self.world.geography, self._addresses.get(source)
        zone = 0
        if geography is not None:
            zone = geography.home_index if host is None else self._zone(geography, host, 0)
        faults = host.faults if host is not None else ()
        sender = self._senders[source] = Sender(source, zone, faults)
        return sender

    def _zone(self, geography: Geography, host: Address, attempt: int) -> int:
        replica = attempt % self.world.replicas
        return int(zones_of(geography, self.streams, host.group.name, host.group.size, replica)[host.index])

    def _send(self, call: Call) -> None:
        sender, now, host = call.sender, self._environment._now, call.host
        sender.in_flight += 1
        departure = sender.busy_until_s
        if departure < now:
            departure = now
        sender.busy_until_s = departure = departure + self._fan_out_s
        draws = self._draws.get((host.group.name, call.request))
        if draws is None:
            draws = self._draw(host.group, call.request)
        index = host.index
        attempt = draws.attempts[index]
        draws.attempts[index] = attempt + 1
        draws.in_flight += 1
        hops = draws.hops.get(attempt * self._zones + sender.zone)
        if hops is None:
            hops = self._hops(draws, host.group, call.request, attempt, sender.zone)
        call.draws = draws
        call.attempt = attempt
        machines = host.machines
        machine = call.machine = machines[0] if len(machines) == 1 else machines[attempt % len(machines)]
        # Until it is served the call carries its service time where its answer will be.
        call.answer = hops[1][index]
        call.back_s = hops[2][index]
        out_s = hops[0][index]
        if self._sizes is not None:
            out_s += self._transfer_s(call, call.message)
        if self._trace is not None:
            self._trace.add(departure, "sent", call.number, call.request, attempt, sender.address, call.target)
        if host.eventful or sender.faults:
            out_s = self._conditions.way_s(sender.faults, call, back=False, departure_s=departure, way_s=out_s)
            if out_s == inf:
                self._lose(call)
                return
            later = self._conditions.duplicate_after_s(call, departure)
            if later is not None:
                self._duplicate(call, departure + out_s + later)
        call.arrival_s = arrival = departure + out_s
        planned = machine.planned
        if planned is not None:
            machine.planned = None
            if planned.arrival_s <= now:
                heapreplace(machine.free_s, planned.end_s)
            else:
                machine.expected += 1
                stage = Event(planned, self._on_unplanned)
                heappush(self._queue, (planned.arrival_s, _NORMAL, planned.number - 0.5, stage))
        if machine.expected or host.eventful or call.tie is not None or self._trace is not None:
            machine.expected += 1
            self._schedule(call, self._on_arrived, arrival)
            return
        machine.planned = call
        start = machine.free_s[0]
        call.end_s = end = (arrival if start < arrival else start) + call.answer
        call.callbacks = self._on_served
        heappush(self._queue, (end, _NORMAL, call.number, call))

    def _unplanned(self, event: Event) -> None:
        """Queue a call that had been planned, now that others are on their way to its machine."""
        call = event.what
        call.machine.expected -= 1
        call.end_s = self._queued(call)

    def _queued(self, call: Call) -> float:
        now, free = self._environment._now, call.machine.free_s
        start = free[0]
        end: float = (now if start < now else start) + call.answer
        heapreplace(free, end)
        return end

    def _arrived(self, call: Call) -> None:
        now, machine = self._environment._now, call.machine
        machine.expected -= 1
        if self._trace is not None:
            self._note("arrived", call)
        if call.host.eventful:
            if not self._admit(call):
                return
        else:
            call.end_s = self._queued(call)
        if call.tie is not None:
            backlog = self.world.backlog(
                self.streams, call.host.group.name, call.request, call.host.index + 1, attempt=call.attempt
            )
            begin = call.end_s - call.answer + int(backlog[-1]) * TICK_S
            self._schedule(call, self._on_begun, begin)
        elif call.end_s > now:
            self._schedule(call, self._on_served, call.end_s)
        else:
            self._served(call)

    def _admit(self, call: Call) -> bool:
        """Queue a call under conditions; return False where its end is another than to be served."""
        now, machine, conditions = self._environment._now, call.machine, self._conditions
        crash = conditions.crash_between(call.host, now, now)
        if crash is not None:
            self._refuse(call, crash.silent, now, f"{call.target!r} is down")
            return False
        reason = conditions.overloaded(machine, now)
        if reason is not None:
            self.incidents["shed"] += 1
            call.error = OverloadedError(f"{call.target!r} sheds: {reason}; back off and retry", vendor_id=call.target)
            if self._trace is not None:
                self._note("shed", call)
            self._answer(call)
            return False
        call.end_s = conditions.serve(call, machine, now)
        machine.load += 1
        crash = conditions.crash_between(call.host, now, call.end_s)
        if crash is not None:
            self._schedule(call, self._on_crashed, ms_to_ticks(crash.start_ms) * TICK_S)
            return False
        return True

    def _crashed(self, call: Call) -> None:
        now = self._environment._now
        call.machine.load -= 1
        crash = self._conditions.crash_between(call.host, now, now)
        self._refuse(call, crash is not None and crash.silent, now, f"{call.target!r} went down during the call")

    def _refuse(self, call: Call, silent: bool, now: float, why: str) -> None:
        if silent:
            self._lose(call)
            return
        self.incidents["refused"] += 1
        call.error = VendorDownError(f"{why} at {now:g} s", vendor_id=call.target)
        if self._trace is not None:
            self._note("refused", call)
        self._answer(call)

    def _begun(self, call: Call) -> None:
        """Begin a tied call's own service, unless its twin did and it has heard of that."""
        now, tie = self._environment._now, call.tie
        assert tie is not None
        if tie.began_s is None:
            tie.began_s = now
        elif now >= tie.began_s + self._cancel_s:
            self.incidents["cancelled"] += 1
            if self._trace is not None:
                self._note("cancelled", call)
            if call.host.eventful:
                call.machine.load -= 1
            free = call.machine.free_s
            if free[0] == call.end_s:
                heapreplace(free, now)  # The worker is free now; those who queue behind keep their times.
            if tie.answer is None:
                call.error = asyncio.CancelledError()
            call.answer = tie.answer
            self._finish(call)
            return
        self._schedule(call, self._on_served, call.end_s)

    def _served(self, call: Call) -> None:
        now, machine = self._environment._now, call.machine
        if machine.planned is call:
            machine.planned = None
            heapreplace(machine.free_s, call.end_s)
        elif call.end_s > now:  # It was planned, and others came before it.
            self._schedule(call, self._on_served, call.end_s)
            return
        if call.host.eventful:
            machine.load -= 1
        if self._trace is not None:
            self._note("served", call)
        token = _REQUEST.set(call.request)
        try:
            answer = self._directory.find(call.target)(call.target, call.message)
            if asyncio.iscoroutine(answer):
                answer = self._loop.create_task(answer)
        except Exception as error:
            call.error = error
        else:
            if asyncio.isfuture(answer):
                answer.add_done_callback(lambda done: self._handled(call, done))
                return
            call.answer = answer
        finally:
            _REQUEST.reset(token)
        self._answer(call)

    def _handled(self, call: Call, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            call.error = asyncio.CancelledError()
        else:
            call.error = answer.exception()
            if call.error is None:
                call.answer = answer.result()
        if call.host.eventful:
            now = self._environment._now
            crash = self._conditions.crash_between(call.host, call.end_s, now)
            if crash is not None:
                self._refuse(call, crash.silent, now, f"{call.target!r} went down during the call")
                return
        self._answer(call)

    def _answer(self, call: Call) -> None:
        """Send the answer, or the refusal, on its way back."""
        now, back_s = self._environment._now, call.back_s
        if self._sizes is not None and call.error is None:
            back_s += self._transfer_s(call, call.answer)
        if call.host.eventful or call.sender.faults:
            back_s = self._conditions.way_s(call.sender.faults, call, back=True, departure_s=now, way_s=back_s)
            if back_s == inf:
                self._lose(call)
                return
        call.callbacks = self._on_back
        heappush(self._queue, (now + back_s, _NORMAL, call.number, call))

    def _back(self, call: Call) -> None:
        sender, now = call.sender, self._environment._now
        end = sender.busy_until_s
        if end < now:
            end = now
        sender.busy_until_s = end = end + self._fan_in_s
        if self._trace is not None:
            self._note("back", call)
        if end > now:
            call.callbacks = self._on_taken_in
            heappush(self._queue, (end, _NORMAL, call.number, call))
        else:
            self._taken_in(call)

    def _taken_in(self, call: Call) -> None:
        if self._trace is not None:
            self._note("taken in" if call.error is None else "failed", call)
        self._finish(call)

    def _finish(self, call: Call) -> None:
        """End a call: free its connection, settle its future unless it is settled."""
        self._outstanding -= 1
        call.draws.in_flight -= 1
        if not call.ghost:
            sender = call.sender
            sender.in_flight -= 1
            if sender.waiting:
                released = Event(sender, self._on_released)
                heappush(self._queue, (self._environment._now, _LATE, next(self._numbers), released))
        future, error = call.future, call.error
        if isinstance(error, asyncio.CancelledError):
            future.cancel()
        elif error is not None:
            self.stats.failures += 1
            if not future.done():
                future.set_exception(error)
        elif not future.done():
            future.set_result(call.answer)
        if not self._outstanding and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _released(self, event: Event) -> None:
        sender = event.what
        waiting = sender.waiting
        while waiting and sender.in_flight < self._window:
            call = waiting.popleft()
            if call.future.done():  # A call that was given up before it was sent is never sent.
                self._outstanding -= 1
            else:
                self._send(call)

    def _schedule(self, call: Call, callbacks: Stage, when_s: float) -> None:
        call.callbacks = callbacks
        heappush(self._queue, (when_s, _NORMAL, call.number, call))

    # -- what is not every call's -------------------------------------------------------------------------------------

    def _lose(self, call: Call) -> None:
        """Lose a message: the call stays open until its caller gives it up."""
        self.incidents["lost"] += 1
        if self._trace is not None:
            self._note("lost", call)
        if call.ghost:
            self._outstanding -= 1
            call.draws.in_flight -= 1
            return
        call.error = asyncio.CancelledError()
        call.future.add_done_callback(lambda _: self._finish(call))

    def _duplicate(self, call: Call, arrival_s: float) -> None:
        self.incidents["duplicated"] += 1
        ghost = Call(
            call.future, call.sender, call.host, call.target, call.message, call.request, call.number + 0.25, None
        )
        ghost.ghost = True
        ghost.attempt, ghost.machine, ghost.draws = call.attempt, call.machine, call.draws
        ghost.answer, ghost.back_s, ghost.arrival_s = call.answer, call.back_s, arrival_s
        self._outstanding += 1
        call.draws.in_flight += 1
        call.machine.expected += 1
        if self._trace is not None:
            self._note("duplicated", ghost)
        self._schedule(ghost, self._on_arrived, arrival_s)

    def _note(self, what: str, call: Call) -> None:
        assert self._trace is not None
        attempt = getattr(call, "attempt", 0)
        self._trace.add(
            self._environment._now, what, call.number, call.request, attempt, call.sender.address, call.target
        )

    def _transfer_s(self, call: Call, message: Any) -> float:
        assert self._sizes is not None
        mbps, geography = self.world.bandwidth_mbps, self.world.geography
        if geography is not None:
            there = self._zone(geography, call.host, call.attempt)
            mbps = geography.route(call.sender.zone, there).bandwidth_mbps
        return transfer_ticks(self._sizes(message), mbps) * TICK_S

    def _hops(
        self, draws: Draws, group: Group, request: int, attempt: int, zone: int
    ) -> tuple[list[float], list[float], list[float]]:
        options: dict[str, Any] = {"attempt": attempt}
        if self.world.geography is not None:
            options["sources"] = zone
        if self._sizes is not None:
            options["transfer"] = False
        drawn = self.world.hops(self.streams, group.name, request, group.size, **options)
        out, service, back = ((ticks * TICK_S).tolist() for ticks in drawn)
        hops = draws.hops[attempt * self._zones + zone] = (out, service, back)
        return hops

    def _draw(self, group: Group, request: int) -> Draws:
        if self._environment._now > HORIZON_S:
            raise SimulationError(f"simulated time passed {HORIZON_S:g} s, beyond which its arithmetic is not exact")
        if len(self._draws) >= _REMEMBERED_REQUESTS:
            # What is in flight is still needed; an idle request could be drawn again, were it not for its attempts.
            for key in [key for key, draws in self._draws.items() if not draws.in_flight]:
                if len(self._draws) < _REMEMBERED_REQUESTS:
                    break
                del self._draws[key]
        draws = self._draws[group.name, request] = Draws({}, [0] * group.size)
        return draws
