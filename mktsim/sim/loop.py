"""asyncio on SimPy's clock: the same coroutines, in simulated time.

Rules
-----
`time()` is `environment.now`, in seconds from 0. It moves only when no callback is ready, and then to the next event
of the SimPy queue; a computation takes no simulated time, however long it runs. Equal inputs give equal runs: there is
one queue, ordered by (time, priority, order of scheduling), and nothing else that could decide.

Theory of operation
-------------------
`asyncio.BaseEventLoop` leaves to its subclasses how to wait. Elsewhere that is a selector's time-out; here it is
`environment.step()`. `call_at` puts a SimPy event into the environment's queue, whose callback makes the handle ready,
so `sleep`, `wait_for`, `timeout`, `gather` and `TaskGroup` work unchanged, and SimPy processes and resources live on
the same clock: ``await loop.wait(event)`` waits for any SimPy event. Worked example: one coroutine sleeps 2 s, another
queues for a `simpy.Resource` that a SimPy process holds for 3 s; the queue then is [(2, sleep), (3, process)], so the
first wakes at 2.0 and the second at 3.0, whatever the machine was doing.

A cancelled timer neither moves the clock nor stays for long: it is dropped when it comes to the head of the queue, and
the queue is rebuilt once more than half of it is cancelled, as asyncio does with its own.

What this does not do
---------------------
There are no sockets, pipes, signals or threads here: their answers would arrive in wall time. `run_in_executor` is
refused by name. When nothing is scheduled and the main coroutine still waits, the run ends in
:class:`~mktsim.errors.SimulationError` instead of waiting for ever. A coroutine that spins on ``sleep(0)`` stops time.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Final, NoReturn, TypeVar, cast

import simpy

from mktsim.errors import InvalidArgumentError, SimulationError

T = TypeVar("T")
#: Allocations between two collections during a run; some 20 MB of futures and calls.
_GC_THRESHOLD: Final = 100_000


class _Timer:
    """A SimPy event that makes one asyncio handle ready."""

    __slots__ = ("callbacks", "handle")
    _ok = True  # SimPy asks every event whether it failed.

    def __init__(self, handle: asyncio.TimerHandle, callbacks: tuple[Callable[[Any], None], ...]) -> None:
        self.handle = handle
        self.callbacks = callbacks


class SimLoop(asyncio.BaseEventLoop):
    """An asyncio event loop whose clock is a SimPy environment's.

    Parameters
    ----------
    environment : simpy.Environment, optional
        The clock and its queue; a new one starting at 0 when absent. Processes already in it run along.

    Raises
    ------
    InvalidArgumentError
        If `environment` is no `simpy.Environment`.

    Examples
    --------
    >>> async def nap():
    ...     await asyncio.sleep(3600)
    ...     return asyncio.get_running_loop().time()
    >>> sim_run(nap())
    3600.0
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool
    _clock_resolution: float

    def __init__(self, environment: simpy.Environment | None = None) -> None:
        super().__init__()
        if environment is not None and not isinstance(environment, simpy.Environment):
            super().close()  # type: ignore[unreachable]  # A loop begun and not closed would warn.
            raise InvalidArgumentError(f"environment must be a simpy.Environment, not {environment!r:.80}")
        self._clock_resolution = 0.0
        self.environment = simpy.Environment() if environment is None else environment
        # The queue is SimPy's; it is read here to look at its head and to drop timers that were cancelled.
        self._queue: list[tuple[float, int, int, Any]] = cast(Any, self.environment)._queue
        self._fire_callbacks = (self._fire,)
        self._cancelled_timers = 0
        self._single = False  # Whether to return after one event.

    def time(self) -> float:
        """Return the simulated time in seconds."""
        return float(self.environment.now)

    def unix_time(self) -> float:
        """Return what simulated hosts take for the time of day: seconds since 1970 began, when the clock was at 0."""
        return self.time()

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` at the simulated time `when`; a time gone by means now, infinity never.

        Raises
        ------
        InvalidArgumentError
            If `when` is not a number.
        """
        self._check_closed()  # type: ignore[attr-defined]
        now = self.environment.now
        delay = when - now
        if delay != delay:
            raise InvalidArgumentError(f"a timer needs a time, not {when!r}")
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        handle._scheduled = True  # type: ignore[attr-defined]
        self.environment.schedule(cast(Any, _Timer(handle, self._fire_callbacks)), delay=delay if delay > 0.0 else 0.0)
        return handle

    def wait(self, event: simpy.Event) -> asyncio.Future[Any]:
        """Return a future of a SimPy event: its value, or the exception it failed with.

        Raises
        ------
        InvalidArgumentError
            If `event` belongs to another environment or is no SimPy event.

        Notes
        -----
        Cancelling the future leaves the event alone. To wait for a resource write
        ``with resource.request() as request: await loop.wait(request)``, which gives up its place on every way out.
        """
        if getattr(event, "env", None) is not self.environment:
            raise InvalidArgumentError(f"wait() takes an event of this loop's environment, not {event!r:.80}")
        future = self.create_future()
        if event.processed:
            _settle(future, event)
        else:
            event.callbacks.append(lambda done: _settle(future, done))
        return future

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]
        """Refuse: simulated time would pass, or stand still, while a thread works.

        Raises
        ------
        SimulationError
            Always.
        """
        name = getattr(func, "__qualname__", repr(func))
        raise SimulationError(
            f"run_in_executor({name:.80}) under SimLoop: work in threads has no simulated time; call it directly"
        )

    def close(self) -> None:
        """Drop what is still scheduled and close."""
        self._queue.clear()
        super().close()

    # --- what BaseEventLoop leaves to its subclasses -----------------------------------------------------------------

    def _run_once(self) -> None:
        ready = self._ready
        if not ready:
            self._advance()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
        if self._single and not ready:
            self._stopping = True

    def _advance(self) -> None:
        """Step the environment until a callback is ready. Hot: a scatter spends its time here.

        The body of the loop is `simpy.Environment.step`, written out: its calls cost a tenth of a simulated scatter.
        """
        ready, queue, environment = self._ready, self._queue, cast(Any, self.environment)
        while not ready and not self._stopping:
            if not queue or queue[0][0] == inf:
                self._drop_cancelled()
                if not queue or queue[0][0] == inf:
                    raise SimulationError(self._deadlock())
            when, _, _, event = heappop(queue)
            if type(event) is _Timer:
                if event.handle._cancelled:
                    self._cancelled_timers -= 1
                    continue
                environment._now = when
                event.handle._scheduled = False  # type: ignore[attr-defined]
                ready.append(event.handle)
                continue
            environment._now = when
            callbacks, event.callbacks = event.callbacks, None
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value
            if self._single:
                return

    def _drop_cancelled(self) -> None:
        """Take cancelled timers off the head, which may wait for ever."""
        queue = self._queue
        while queue and type(queue[0][3]) is _Timer and queue[0][3].handle._cancelled:
            heappop(queue)
            self._cancelled_timers -= 1

    def run_one(self) -> bool:
        """Process the next event and everything that follows from it at once; return False where there is none.

        For a debugger of simulations: see :class:`mktsim.sim.simulation.Simulation`.
        """
        self._drop_cancelled()
        if not self._ready and (not self._queue or self._queue[0][0] == inf):
            return False
        self._single = True
        try:
            self.run_forever()
        finally:
            self._single = False
        return True

    def run_until(self, when_s: float) -> None:
        """Process all events up to and at `when_s`, where the clock then stands, unless something stops the loop."""
        if not self.environment.now <= when_s < inf:
            raise InvalidArgumentError(
                f"the clock stands at {self.environment.now:g} s and cannot go to {when_s!r:.80}"
            )
        mark = self.environment.event()
        mark._ok, mark._value = True, None
        mark.callbacks.append(lambda _: self.stop())
        # Last at its instant, and without a number of SimPy's, so that the numbers of all else are as without it.
        heappush(self._queue, (when_s, 1 << 30, -1, mark))
        self.run_forever()

    def _fire(self, timer: _Timer) -> None:
        timer.handle._scheduled = False  # type: ignore[attr-defined]
        self._ready.append(timer.handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if not handle._scheduled:  # type: ignore[attr-defined]
            return
        self._cancelled_timers += 1
        if self._cancelled_timers > 100 and self._cancelled_timers * 2 > len(self._queue):
            # In place, for SimPy holds the same list. The order of what stays is in its keys.
            self._queue[:] = [
                item for item in self._queue if not (type(item[3]) is _Timer and item[3].handle._cancelled)
            ]
            heapify(self._queue)
            self._cancelled_timers = 1  # This handle is marked cancelled only after this call.

    def _deadlock(self) -> str:
        waiting = sorted(task.get_name() for task in asyncio.all_tasks(self))
        shown = ", ".join(waiting[:5]) + (", ..." if len(waiting) > 5 else "")
        return (
            f"deadlock at {self.time():g} s: nothing is scheduled and {len(waiting)} task(s) wait for ever ({shown}); "
            "something they await is never set"
        )

    def _process_events(self, event_list: Any) -> None:
        """No selector, no events."""

    def _write_to_self(self) -> None:
        """No selector to wake."""


def _settle(future: asyncio.Future[Any], event: simpy.Event) -> None:
    if not event.ok:
        event.defused = True  # The exception goes to who waits, not to whoever steps the environment.
    if future.done():
        return
    if event.ok:
        future.set_result(event.value)
    else:
        future.set_exception(cast(BaseException, event.value))


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Spare the run most of the cyclic collector's work: a scatter allocates much and leaves hardly a cycle.

    What exists already is not looked through again and again, and collections are rarer; a third of the time of a
    scatter over 20,000 leaves. All is as before at the end. Where the collector is off or frozen by others, or by a
    simulation around this one, it is left alone.
    """
    if not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(thresholds[0], _GC_THRESHOLD), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def sim_run(coroutine: Coroutine[Any, Any, T], *, environment: simpy.Environment | None = None) -> T:
    """Run `coroutine` to its end in simulated time and return its result.

    Parameters
    ----------
    coroutine : coroutine
        The main task; what it leaves behind is cancelled.
    environment : simpy.Environment, optional
        See :class:`SimLoop`.

    Returns
    -------
    object
        What the coroutine returned.

    Raises
    ------
    SimulationError
        If it can never end: nothing is scheduled any more.

    Notes
    -----
    Works inside a running loop as well, as in a notebook: asyncio allows one loop a thread, so the run then gets a
    thread of its own and this call waits for it, as for any computation.

    Examples
    --------
    An hour passes at once, to the tick.

    >>> async def hour():
    ...     await asyncio.sleep(3_600)
    ...     return asyncio.get_running_loop().time()
    >>> sim_run(hour())
    3600.0
    >>> async def waits_for_nobody():
    ...     await asyncio.get_running_loop().create_future()
    >>> try:
    ...     sim_run(waits_for_nobody())
    ... except SimulationError as error:
    ...     print(str(error).partition(":")[0])
    deadlock at 0 s
    """
    if not asyncio.iscoroutine(coroutine):
        raise InvalidArgumentError(f"sim_run() takes a coroutine, not {coroutine!r:.80}")

    def run() -> T:
        try:
            with quiet_collector(), asyncio.Runner(loop_factory=lambda: SimLoop(environment)) as runner:
                return runner.run(coroutine)
        finally:
            coroutine.close()  # Of use only where it never started.

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    with ThreadPoolExecutor(1, thread_name_prefix="sim_run") as thread:
        return thread.submit(contextvars.copy_context().run, run).result()
