"""Messages on simulated time: the network that the marketplace's own code runs over in simulation.

Rules
-----
It is a :class:`mktsim.network.Network`, so coordinator, objects and stubs do not know it from the real one. Handlers
really run, SQLite included, at the instant their service ends, and take no simulated time beyond it.
How long a call takes is drawn from (seed, host group, request, attempt, host index), never in the order of arrival.

Theory of operation
-------------------
A call is one small object that travels through the SimPy queue from stage to stage, itself the event of its next hop:
sent -> arrived at the host -> served -> back at the sender -> taken in. `call` costs a future and an object, no task
and no process. Two queues are kept without events of their own, because first come first served has a closed form: a
processor is free at ``max(now, free) + cost``; a host of c workers starts a call at ``max(now, earliest free worker)``,
which is what a `simpy.Resource` of that capacity does. At one instant, answers are taken in before a connection that
they free is used again; the vectorised engine has the same rule.

Worked example, fan_out 1, link 2 out and 3 back, service 4, fan_in 1 (ms), two vendors: sent at 1 and 2, arrived at 3
and 4, served at 7 and 8, back at 10 and 11, taken in at 11 and 12.

What this does not do
---------------------
No loss, duplication or bandwidth. A call that its caller cancels still travels, is served, and holds its connection
until it is back. An asynchronous handler starts when its service ends, and holds no worker while it waits.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any, Final

import simpy

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.network import Directory, Handler, NetworkStats
from mktsim.sim.loop import SimLoop
from mktsim.sim.world import HORIZON_S, TICK_S, World
from mktsim.streams import Streams

_REQUEST: Final[contextvars.ContextVar[int]] = contextvars.ContextVar("mktsim_request", default=0)
_REMEMBERED_REQUESTS: Final = 64
_LATE: Final = simpy.events.EventPriority(2)  # After all that SimPy calls normal at the same instant.


@contextmanager
def request_number(number: int) -> Iterator[None]:
    """Give all calls made in the block, and by the handlers that they reach, this request's draws."""
    token = _REQUEST.set(number)
    try:
        yield
    finally:
        _REQUEST.reset(token)


class _Call:
    """One call on its way; the SimPy event of its next hop."""

    __slots__ = ("answer", "back_s", "callbacks", "error", "future", "host", "message", "request", "sender", "target")
    _ok = True  # What SimPy asks an event: it did not fail. How the call ended is in `error`.
    callbacks: tuple[Callable[[Any], None], ...]
    answer: Any
    error: BaseException | None
    back_s: float

    def __init__(
        self, future: asyncio.Future[Any], sender: _Sender, host: _Address, target: str, message: Any, request: int
    ) -> None:
        self.future = future
        self.sender = sender
        self.host = host
        self.target = target
        self.message = message
        self.request = request
        self.error = None


class _Sender:
    """A host as the origin of calls: its processor and its connections."""

    __slots__ = ("busy_until_s", "in_flight", "waiting")

    def __init__(self) -> None:
        self.busy_until_s = 0.0
        self.in_flight = 0
        self.waiting: deque[_Call] = deque()


class _Release:
    """A freed connection, as a SimPy event."""

    __slots__ = ("callbacks", "sender")
    _ok = True

    def __init__(self, sender: _Sender, callbacks: tuple[Callable[[Any], None], ...]) -> None:
        self.sender = sender
        self.callbacks = callbacks


@dataclass(slots=True)
class _Address:
    """Where an address stands: its group and index, and when each worker of its host is free (a heap, shared)."""

    group: _Group
    index: int
    free_s: list[float]


@dataclass(slots=True)
class _Group:
    name: str
    size: int


@dataclass(slots=True)
class _Draws:
    """What one request's calls to a group take, in seconds, and how often each host was called."""

    hops: list[tuple[list[float], list[float], list[float]]]  # by attempt
    attempts: list[int]
    in_flight: int = 0


class SimNetwork:
    """A network whose messages take simulated time.

    Parameters
    ----------
    loop : SimLoop
        The clock.
    world : World
        Durations and limits.
    streams : Streams
        Where durations are drawn.

    Attributes
    ----------
    stats : NetworkStats
        Calls sent and calls that ended in an exception.
    """

    def __init__(self, loop: SimLoop, world: World, streams: Streams) -> None:
        if not isinstance(loop, SimLoop):
            raise InvalidArgumentError(f"SimNetwork needs a SimLoop, not {loop!r:.80}; run inside sim_run()")
        if not isinstance(world, World) or not isinstance(streams, Streams):
            raise InvalidArgumentError(f"SimNetwork needs a World and Streams, not {world!r:.80} and {streams!r:.80}")
        self.stats = NetworkStats()
        self.world = world
        self._loop = loop
        self._environment: simpy.Environment = loop.environment
        self._streams = streams
        self._directory = Directory()
        self._addresses: dict[str, _Address] = {}
        self._groups: set[str] = set()
        self._senders: dict[str, _Sender] = {}
        self._draws: dict[tuple[str, int], _Draws] = {}
        self._fan_out_s = world.fan_out_ticks * TICK_S
        self._fan_in_s = world.fan_in_ticks * TICK_S
        self._window = world.window if world.window is not None else float("inf")
        # One tuple a stage, shared by all calls: SimPy only iterates over it.
        self._on_arrived = (self._arrived,)
        self._on_served = (self._served,)
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
            address is a machine of its own.

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
        shared = _Group(group, len(addresses))
        machines: dict[int, list[float]] = {}
        for index, address in enumerate(addresses):
            machine = index if hosts is None else int(hosts[index])
            free = machines.setdefault(machine, [])
            if not free:
                free.extend([0.0] * self.world.workers)
            self._addresses[address] = _Address(shared, index, free)

    def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
        """Send `message` on its way and return the future of the answer. Hot: see ``benchmarks``."""
        self.stats.round_trips += 1
        host = self._addresses.get(target)
        if host is None:
            self.add_hosts(target, (target,))
            host = self._addresses[target]
        sender = self._senders.get(source)
        if sender is None:
            sender = self._senders[source] = _Sender()
        future = self._loop.create_future()
        call = _Call(future, sender, host, target, message, _REQUEST.get())
        if sender.in_flight >= self._window or sender.waiting:
            sender.waiting.append(call)
        else:
            self._send(call)
        return future

    def _send(self, call: _Call) -> None:
        sender, now = call.sender, self._environment.now
        sender.in_flight += 1
        departure = sender.busy_until_s
        if departure < now:
            departure = now
        sender.busy_until_s = departure = departure + self._fan_out_s
        host = call.host
        draws = self._draws.get((host.group.name, call.request))
        if draws is None:
            draws = self._draw(host.group, call.request)
        attempt = draws.attempts[host.index]
        draws.attempts[host.index] = attempt + 1
        draws.in_flight += 1
        if attempt == len(draws.hops):
            draws.hops.append(self._hops(host.group, call.request, attempt))
        out, service, back = draws.hops[attempt]
        # Until its arrival the call carries its service time where its answer will be.
        call.answer = service[host.index]
        call.back_s = back[host.index]
        self._schedule(call, self._on_arrived, departure + out[host.index] - now)

    def _arrived(self, call: _Call) -> None:
        now, free = self._environment.now, call.host.free_s
        start = free[0]
        if start < now:
            start = now
        end = start + call.answer
        heapreplace(free, end)
        if end > now:
            self._schedule(call, self._on_served, end - now)
        else:
            self._served(call)

    def _served(self, call: _Call) -> None:
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
        self._schedule(call, self._on_back, call.back_s)

    def _handled(self, call: _Call, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            call.error = asyncio.CancelledError()
        else:
            call.error = answer.exception()
            if call.error is None:
                call.answer = answer.result()
        self._schedule(call, self._on_back, call.back_s)

    def _back(self, call: _Call) -> None:
        sender, now = call.sender, self._environment.now
        end = sender.busy_until_s
        if end < now:
            end = now
        sender.busy_until_s = end = end + self._fan_in_s
        if end > now:
            self._schedule(call, self._on_taken_in, end - now)
        else:
            self._taken_in(call)

    def _taken_in(self, call: _Call) -> None:
        sender = call.sender
        sender.in_flight -= 1
        if sender.waiting:
            self._environment.schedule(_Release(sender, self._on_released), _LATE)  # type: ignore[arg-type]
        self._draws[call.host.group.name, call.request].in_flight -= 1
        future, error = call.future, call.error
        if error is not None:
            self.stats.failures += 1
            if not future.done():
                if isinstance(error, asyncio.CancelledError):
                    future.cancel()
                else:
                    future.set_exception(error)
        elif not future.done():
            future.set_result(call.answer)

    def _released(self, release: _Release) -> None:
        waiting = release.sender.waiting
        while waiting and release.sender.in_flight < self._window:
            call = waiting.popleft()
            if not call.future.done():  # A call that was given up before it was sent is never sent.
                self._send(call)

    def _schedule(self, call: _Call, callbacks: tuple[Callable[[Any], None], ...], delay_s: float) -> None:
        call.callbacks = callbacks
        self._environment.schedule(call, delay=delay_s)  # type: ignore[arg-type]

    def _hops(self, group: _Group, request: int, attempt: int) -> tuple[list[float], list[float], list[float]]:
        out, service, back = (
            (ticks * TICK_S).tolist()
            for ticks in self.world.hops(self._streams, group.name, request, group.size, attempt=attempt)
        )
        return out, service, back

    def _draw(self, group: _Group, request: int) -> _Draws:
        if self._environment.now > HORIZON_S:
            raise SimulationError(f"simulated time passed {HORIZON_S:g} s, beyond which its arithmetic is not exact")
        if len(self._draws) >= _REMEMBERED_REQUESTS:
            # What is in flight is still needed; an idle request could be drawn again, were it not for its attempts.
            for key in [key for key, draws in self._draws.items() if not draws.in_flight]:
                if len(self._draws) < _REMEMBERED_REQUESTS:
                    break
                del self._draws[key]
        draws = self._draws[group.name, request] = _Draws([], [0] * group.size)
        return draws
