"""A simulated run that can be stepped: one event at a time, up to an instant, or to its end, and begun anew.

Rules
-----
Stopping decides nothing: however a run is cut into steps, its trace is the same. A handler's error is raised by
`result`, not by the step in which it happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.sim.loop import SimLoop, quiet_collector
from mktsim.sim.network import SimNetwork
from mktsim.sim.trace import Step, Trace
from mktsim.sim.world import World
from mktsim.streams import Streams

#: What is simulated: makes, of a network, the coroutine of the main task.
Program = Callable[[SimNetwork], Coroutine[Any, Any, Any]]


class Simulation:
    """One run of a program in a world.

    Parameters
    ----------
    program : callable
        Called with the run's network; returns the coroutine to run. Called again at each :meth:`reset`.
    world : World
        Durations, limits and faults.
    streams : Streams
        Where they are drawn.

    Attributes
    ----------
    trace : Trace
        Every step so far.
    network : SimNetwork
        The run's.

    Notes
    -----
    asyncio allows one running loop a thread: from a notebook's cell, which runs in one, call it in another thread.

    Examples
    --------
    >>> from mktsim.sim.events import scatters
    >>> from mktsim.sim.latency import Constant
    >>> run = Simulation(lambda network: scatters(network, leaves=2), World(link_out=Constant(3)), Streams(1))
    >>> [step.what for step in run.step()]
    ['sent', 'sent']
    >>> run.run_until(0.002), run.now_s
    ([], 0.002)
    >>> round(run.run()[0], 6), run.done
    (0.003, True)
    >>> run.close()
    """

    def __init__(self, program: Program, world: World, streams: Streams) -> None:
        if not callable(program):
            raise InvalidArgumentError(f"program must be callable, not {program!r:.80}")
        self._arguments = program, world, streams
        self._loop: SimLoop | None = None
        self._start()

    def _start(self) -> None:
        program, world, streams = self._arguments
        loop = SimLoop()
        self.trace = Trace()
        try:
            self.network = SimNetwork(loop, world, streams, trace=self.trace)
            coroutine = program(self.network)
            if not asyncio.iscoroutine(coroutine):
                raise InvalidArgumentError(f"program must return a coroutine, not {coroutine!r:.80}")
        except BaseException:
            loop.close()
            raise
        self._loop = loop
        self._task = loop.create_task(coroutine, name="simulation")

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._loop is None else "done" if self.done else "running"
        return f"<Simulation {state}, {len(self.trace)} steps>"

    @property
    def now_s(self) -> float:
        """The simulated time."""
        return self._running().time()

    @property
    def done(self) -> bool:
        """Whether the program has ended; messages may still be on their way."""
        return self._task.done()

    @property
    def result(self) -> Any:
        """What the program returned, or the error that it raised.

        Raises
        ------
        SimulationError
            If it has not ended.
        """
        if not self.done:
            raise SimulationError("the simulation has not ended: run() it")
        return self._task.result()

    def step(self) -> list[Step]:
        """Process events until something is recorded or nothing is left; return what was recorded."""
        before, loop = len(self.trace), self._running()
        while len(self.trace) == before and loop.run_one():
            pass
        return self.trace.steps[before:]

    def run_until(self, when_s: float) -> list[Step]:
        """Process all events up to and at an instant; return what was recorded.

        Raises
        ------
        InvalidArgumentError
            If the instant has passed or is not finite.
        """
        before = len(self.trace)
        with quiet_collector():
            self._running().run_until(when_s)
        return self.trace.steps[before:]

    def run(self) -> Any:
        """Run to the program's end and return its result.

        Raises
        ------
        SimulationError
            If it can never end: nothing is scheduled any more.
        """
        with quiet_collector():
            return self._running().run_until_complete(self._task)

    def reset(self) -> None:
        """Begin anew, from time 0 and with an empty trace."""
        self.close()
        self._start()

    def close(self) -> None:
        """Cancel what is unfinished and free the loop; the trace stays."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            if self._task.done() and not self._task.cancelled():
                self._task.exception()  # Seen: it would be reported as lost otherwise.
        finally:
            loop.close()

    def _running(self) -> SimLoop:
        if self._loop is None:
            raise SimulationError("the simulation is closed: reset() begins anew")
        return self._loop
