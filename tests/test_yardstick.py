"""A fixed piece of work tells how fast the machine is; its paces by the clock are played again."""

from __future__ import annotations

import asyncio
from time import perf_counter

import apsw
import numpy as np
import pytest

from mktsim.errors import InvalidArgumentError
from mktsim.sim.loop import sim_run
from mktsim.study.yardstick import PaceTrace, SqliteYardstick, as_paces, paces_of


def test_a_yardstick_takes_time_and_reads_the_given_clock() -> None:
    """Its work is seen by a real clock, not all of it is counted, and it takes no simulated time."""
    yardstick = SqliteYardstick()
    start = perf_counter()
    times = [yardstick.time_ms() for _ in range(20)]
    whole_ms = 1e3 * (perf_counter() - start)
    assert min(times) > 0.05
    assert sum(times) < whole_ms
    assert asyncio.run(yardstick()) > 0
    assert sim_run(yardstick()) == 0
    yardstick.close()
    with pytest.raises(apsw.ConnectionClosedError):
        yardstick.time_ms()


def test_one_stop_of_the_machine_is_not_its_pace() -> None:
    """Where one of three timed runs is held up the median hides it; where two are the pace shows it."""

    def held_up(*turns: int) -> float:
        ends = iter(range(3))
        now_s = 0.0
        begun = False

        def clock() -> float:
            nonlocal now_s, begun
            begun = not begun
            if not begun:
                now_s += 0.05 if next(ends) in turns else 0.001
            return now_s

        return yardstick.time_ms(clock)

    yardstick = SqliteYardstick()
    assert held_up() == pytest.approx(1.0)
    for turn in range(3):
        assert held_up(turn) == pytest.approx(1.0)
    assert held_up(0, 2) == pytest.approx(50.0)
    yardstick.close()


def test_paces_are_over_a_reference_and_one_where_no_time_passed() -> None:
    """Of any shape; 0 ms, or no reference, tells nothing."""
    assert paces_of([2.0, 3.0, 0.0], 2.0).tolist() == [1.0, 1.5, 1.0]
    assert paces_of([[2.0], [3.0]], 0.0).tolist() == [[1.0], [1.0]]
    assert paces_of([], 1.0).shape == (0,)


def test_a_trace_holds_each_pace_until_the_next_and_begins_anew() -> None:
    """Counted from its first instant, whatever the clock said there; a trace of one instant holds for ever."""
    trace = PaceTrace(np.array([100.0, 110.0, 130.0]), np.array([1.0, 2.0, 3.0]))
    assert trace.span_ms == 30.0
    assert trace.stretch(0.0, [0, 9.9, 10, 29.9, 30, 60, 75]).tolist() == [1, 1, 2, 2, 1, 1, 2]
    assert trace.stretch(25.0, [0, 5]).tolist() == [2, 1]
    assert trace.quantile(0.5) == 2.0
    assert repr(trace).startswith("<PaceTrace of 3 in 0.03 s: 90 % from 1.1")
    assert PaceTrace(np.array([5.0]), np.array([1.5])).stretch(7.0, [0, 1e9]).tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("at_ms", "pace"),
    [([], []), ([0.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0]), ([0.0], [0.0]), ([0.0], [np.nan]), ([np.inf], [1.0]),
     ([[0.0]], [[1.0]])],
)  # fmt: skip
def test_a_trace_without_sense_is_refused(at_ms: list[float], pace: list[float]) -> None:
    """None, unequal, falling, not positive, not finite, not one row."""
    with pytest.raises(InvalidArgumentError, match="a trace needs"):
        PaceTrace(np.array(at_ms), np.array(pace))


@pytest.mark.parametrize("wrong", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], ["a", "b"], None, [[1.0, 1.0]]])
def test_paces_that_are_none_are_refused(wrong: object) -> None:
    """One positive, finite number a request."""
    with pytest.raises(InvalidArgumentError, match="paces must be 2 positive"):
        as_paces(wrong, 2)
