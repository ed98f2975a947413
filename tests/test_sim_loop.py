"""SimLoop: asyncio unchanged, on SimPy's clock."""

from __future__ import annotations

import asyncio
import gc
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.sim.loop import SimLoop, sim_run


def loop() -> SimLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, SimLoop)
    return running


def test_sleep_moves_the_clock_exactly_and_takes_no_wall_time() -> None:
    """time() is env.now, from 0; a year of sleep is one event."""

    async def main() -> list[float]:
        seen = [loop().time()]
        for delay in (0.25, 0, 31_536_000.0):
            await asyncio.sleep(delay)
            seen.append(loop().time())
        assert loop().environment.now == loop().time()
        return seen

    assert sim_run(main()) == [0.0, 0.25, 0.25, 31_536_000.25]


def test_gather_taskgroup_timeout_and_wait_for_work_unchanged() -> None:
    """What asyncio promises holds in simulated time: order of results, cancellation of siblings, time-outs."""

    async def after(delay: float, value: str) -> str:
        await asyncio.sleep(delay)
        return value

    async def main() -> None:
        assert await asyncio.gather(after(2, "slow"), after(1, "fast")) == ["slow", "fast"]
        assert loop().time() == 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.sleep(100)
        assert loop().time() == 2.5
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(after(100, ""), 0.5)
        assert loop().time() == 3
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(after(d, str(d))) for d in (3, 1)]
        assert [task.result() for task in tasks] == ["3", "1"]
        try:
            async with asyncio.TaskGroup() as group:
                sibling = group.create_task(after(1e6, ""))
                group.create_task(asyncio.wait_for(asyncio.Event().wait(), 1))
        except* TimeoutError:
            pass
        assert sibling.cancelled()
        assert loop().time() == 7

    sim_run(main())


def test_a_coroutine_queues_for_a_simpy_resource_beside_simpy_processes() -> None:
    """One clock and one queue: first come, first served, whoever comes."""
    environment = simpy.Environment()
    desk = simpy.Resource(environment, capacity=1)
    log: list[tuple[str, float]] = []

    def process(name: str, hold: float):  # type: ignore[no-untyped-def]
        with desk.request() as turn:
            yield turn
            yield environment.timeout(hold)
            log.append((name, environment.now))

    async def coroutine(name: str, hold: float) -> None:
        with desk.request() as turn:
            await loop().wait(turn)
            await asyncio.sleep(hold)
            log.append((name, loop().time()))

    async def main() -> None:
        environment.process(process("process 1", 3))
        await asyncio.sleep(1)
        quitter = asyncio.create_task(coroutine("quitter", 9))
        await asyncio.sleep(0)
        task = asyncio.create_task(coroutine("coroutine", 2))
        await asyncio.sleep(0)
        environment.process(process("process 2", 4))
        quitter.cancel()
        await task
        assert await loop().wait(environment.timeout(10, value="late")) == "late"

    sim_run(main(), environment=environment)
    assert log == [("process 1", 3), ("coroutine", 5), ("process 2", 9)]


def test_a_failed_event_raises_in_who_waits_and_an_old_event_answers_at_once() -> None:
    """The exception goes to the waiter and does not crash the environment."""

    async def main() -> None:
        environment = loop().environment
        bad = environment.event()
        waiting = loop().wait(bad)
        bad.fail(KeyError("gone"))
        with pytest.raises(KeyError, match="gone"):
            await waiting
        done = environment.timeout(1, value=5)
        await asyncio.sleep(2)
        assert await loop().wait(done) == 5
        assert loop().time() == 2
        with pytest.raises(InvalidArgumentError):
            loop().wait(simpy.Environment().event())
        with pytest.raises(InvalidArgumentError):
            loop().wait(None)  # type: ignore[arg-type]

    sim_run(main())


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    """Nothing scheduled and the main coroutine not done: the run ends instead of hanging."""

    async def main() -> None:
        asyncio.current_task().set_name("the main task")  # type: ignore[union-attr]
        loop().call_later(5, lambda: None)
        loop().call_later(math.inf, lambda: None)
        await asyncio.Event().wait()

    with pytest.raises(SimulationError, match=r"deadlock at 5 s.*the main task"):
        sim_run(main())


def test_a_cancelled_timer_neither_moves_the_clock_nor_stays() -> None:
    """Ten thousand time-outs that never fire leave at most a few hundred entries, and no hour passes."""

    async def main() -> float:
        for _ in range(10_000):
            async with asyncio.timeout(3600):
                await asyncio.sleep(0.001)
        assert len(loop()._queue) < 500
        return loop().time()

    assert sim_run(main()) == pytest.approx(10.0)

    async def only_cancelled() -> None:
        loop().call_later(3600, lambda: None).cancel()
        await asyncio.Event().wait()

    with pytest.raises(SimulationError, match="deadlock at 0 s"):
        sim_run(only_cancelled())


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=300))
def test_timers_fire_in_order_of_time_then_of_scheduling(timers: list[tuple[float, bool]]) -> None:
    """The order is that of a stable sort by time, cancelled ones left out, whatever was rebuilt in between."""
    fired: list[int] = []

    async def main() -> None:
        handles = [loop().call_at(when, fired.append, i) for i, (when, _) in enumerate(timers)]
        for handle, (_, keep) in zip(handles, timers, strict=True):
            if not keep:
                handle.cancel()
        await asyncio.sleep(200)

    sim_run(main())
    kept = [i for i, (_, keep) in enumerate(timers) if keep]
    assert fired == sorted(kept, key=lambda i: timers[i][0])
    assert all(timers[a][0] <= timers[b][0] for a, b in pairwise(fired))


def test_timers_keep_their_order_when_most_are_cancelled() -> None:
    """Dropping cancelled timers rebuilds the queue as a heap: ten thousand at random times, nine in ten cancelled."""
    times = np.random.default_rng(1).random(10_000).tolist()
    fired: list[float] = []

    async def main() -> None:
        handles = [loop().call_at(when, fired.append, when) for when in times]
        for handle in handles[:9000]:
            handle.cancel()
        assert len(loop()._queue) < 3000
        await asyncio.sleep(2)

    sim_run(main())
    assert fired == sorted(times[9000:])


def test_threads_and_sockets_are_refused_by_name() -> None:
    """Nothing that answers in wall time may run under simulated time."""

    async def main() -> None:
        with pytest.raises(SimulationError, match=r"run_in_executor\(print\)"):
            await loop().run_in_executor(None, print)
        with pytest.raises(SimulationError):
            await asyncio.to_thread(print)
        with pytest.raises((NotImplementedError, SimulationError)):
            await asyncio.open_connection("localhost", 1)

    sim_run(main())


def test_bad_arguments_are_named_errors() -> None:
    """A time that is no number, an environment that is none, a coroutine that is none."""

    async def main() -> None:
        with pytest.raises(InvalidArgumentError, match="nan"):
            loop().call_at(math.nan, print)
        await asyncio.sleep(-1)
        assert loop().time() == 0

    sim_run(main())
    with pytest.raises(InvalidArgumentError):
        SimLoop(environment=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        sim_run(main)  # type: ignore[arg-type]


def test_sim_run_works_inside_a_running_loop() -> None:
    """As in a notebook: the outer loop waits, its clock is another, and errors come through."""

    async def inner() -> float:
        await asyncio.sleep(1000)
        return loop().time()

    async def fails() -> None:
        await asyncio.sleep(1)
        raise KeyError("inner")

    async def outer() -> float:
        with pytest.raises(KeyError, match="inner"):
            sim_run(fails())
        return sim_run(inner())

    assert asyncio.run(outer()) == 1000


def test_a_run_leaves_nothing_behind() -> None:
    """Tasks left over are cancelled, the loop is closed, and nothing warns."""
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append("background")

    async def main() -> SimLoop:
        ended.append("main")
        main.task = asyncio.create_task(background())  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        return loop()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed = sim_run(main())
        del main.task  # type: ignore[attr-defined]
        gc.collect()
    assert ended == ["main", "background"]
    assert closed.is_closed()
    assert not closed._queue
    with pytest.raises(RuntimeError, match="closed"):
        closed.call_later(1, print)
