"""A fixed piece of work tells how fast the machine is; its paces by the clock are played again."""

from __future__ import annotations

import asyncio
import sqlite3
from time import perf_counter, sleep

import numpy as np
import pytest

from mktsim.errors import InvalidArgumentError
from mktsim.sim.loop import sim_run
from mktsim.study.yardstick import PaceTrace, SqliteYardstick, as_paces, paces_of


def test_a_yardstick_takes_time_and_reads_the_given_clock() -> None:
    """Its work is seen by a real clock, is timed once of twice, and takes no simulated time."""
    yardstick = SqliteYardstick()
    start = perf_counter()
    times = [yardstick.time_ms() for _ in range(20)]
    whole_ms = 1e3 * (perf_counter() - start)
    assert min(times) > 0.05
    assert sum(times) < whole_ms
    assert asyncio.run(yardstick()) > 0
    assert sim_run(yardstick()) == 0
    yardstick.close()
    with pytest.raises(sqlite3.ProgrammingError):
        yardstick.time_ms()


def test_a_clock_that_is_held_up_shows_in_the_pace() -> None:
    """What slows the timed run alone makes its pace larger; what happens between timings does not."""
    yardstick = SqliteYardstick()
    usual = float(np.median([yardstick.time_ms() for _ in range(9)]))
    calls = 0

    def held_up() -> float:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            sleep(0.05)
        return perf_counter()

    (pace,) = paces_of([yardstick.time_ms(held_up)], usual)
    assert pace > 1 + 40 / usual
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
