"""Scatters as array operators: when the last answer, or the k-th, has been taken in.

Rules
-----
Whole ticks in, whole ticks out: nothing is rounded. What the operators agree on with the event engine: at one instant
answers are taken in before calls are sent, and equal arrivals go by the order of their calls.

Theory of operation
-------------------
A processor takes answers in by order of arrival: D_k = max(A_(k), D_(k-1)) + f, from D_0 = when it has sent its calls.
Unrolled, D_k is the largest of D_0 + k f and all A_(i) + (k-i+1) f with i <= k. Most answers cannot be the largest
and need no sorting: those that any answer behind them would outlast, and, where answers queue, all but the first.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mktsim.sim.world import Ticks, World

Hosts = NDArray[np.intp]
#: Fewer than so many are sorted without ado.
_FEW: Final = 1 << 15


def taken_in(arrivals: Ticks, k: int, busy: int, fan_in: int) -> int:
    """Return when a processor that is busy until `busy` has taken in the first `k` of these answers.

    Parameters
    ----------
    arrivals : ndarray of int64, shape (n,)
        In any order; its elements may be moved.
    k : int
        From 1 to n.
    busy, fan_in : int
        Ticks.

    Examples
    --------
    >>> taken_in(np.array([7, 3, 4]), 3, busy=0, fan_in=2)
    9
    """
    if k < len(arrivals):
        arrivals.partition(k - 1)
        arrivals = arrivals[:k]
    highest = int(arrivals.max())
    if not fan_in:
        return max(busy, highest)
    least = max(busy + k * fan_in, highest + fan_in, int(arrivals.min()) + k * fan_in)
    # An answer with all others behind it ends by arrival + k * fan_in: those that cannot be the last need no sorting.
    arrivals = arrivals[arrivals > least - k * fan_in]
    dropped = k - len(arrivals)
    while len(arrivals) > _FEW:
        # Of those from a mark on none ends later than the last one with all of them behind it.
        mark = int(np.sort(arrivals[:: max(1, len(arrivals) // 256)])[8])
        below = arrivals[arrivals < mark]
        if highest + fan_in * (k - dropped - len(below)) > least:
            break
        arrivals, highest = below, mark
    if not len(arrivals):
        return least
    arrivals.sort()
    ends = arrivals + fan_in * np.arange(k - dropped, k - dropped - len(arrivals), -1, dtype=np.int64)
    return max(least, int(ends.max()))


def add_departures(durations: Ticks, fan_out: int) -> None:
    """Add to the calls of each row when they leave: one after another, from `fan_out` on."""
    if fan_out:
        for start in range(0, durations.shape[-1], _FEW):
            block = durations[..., start : start + _FEW]
            block += np.arange(start + 1, start + 1 + block.shape[-1], dtype=np.int64) * fan_out


def scatter_ticks(durations: Ticks, world: World, *, quorum: int | None = None) -> Ticks:
    """Compute how long senders take over their scatters, one a row.

    Parameters
    ----------
    durations : ndarray of int64, shape (senders, calls)
        What each call takes from its departure until its answer is back, in ticks. May be overwritten.
    world : World
        Gives the window and the sender's costs.
    quorum : int, optional
        How many answers end a scatter; all when absent.

    Returns
    -------
    ndarray of int64, shape (senders,)
    """
    calls = durations.shape[1]
    last = calls if quorum is None else quorum
    fan_out, fan_in = world.fan_out_ticks, world.fan_in_ticks
    if world.window is not None and world.window < calls:
        return np.array([_windowed(row, world.window, fan_out, fan_in, last) for row in durations], np.int64)
    add_departures(durations, fan_out)
    if len(durations) == 1:
        return np.array([taken_in(durations[0], last, calls * fan_out, fan_in)])
    if last < calls:
        durations.partition(last - 1, axis=1)
        durations = durations[:, :last]
    least = calls * fan_out + last * fan_in
    if fan_in:
        durations.sort(axis=1)
        durations += fan_in * np.arange(last, 0, -1, dtype=np.int64)
    return np.asarray(durations.max(axis=1, initial=least), np.int64)


def _windowed(row: Ticks, window: int, fan_out: int, fan_in: int, last: int) -> int:
    """Run the recursion of a capped sender: at one instant, answers are taken in before calls are sent."""
    calls = len(row)
    if not fan_out and not fan_in:
        # The next call leaves when the first answer is back, so the heap of answers is all there is, and they leave it
        # in their order.
        answers: list[int] = row[:window].tolist()
        heapify(answers)
        end = min(calls, window + last - 1)
        for start in range(window, end, _FEW):
            for duration in row[start : min(start + _FEW, end)].tolist():
                heapreplace(answers, answers[0] + duration)
        return sorted(answers)[last - 1 - (end - window)]
    durations: list[int] = row.tolist()
    busy, sent, taken_in = 0, window, 0
    answers = []
    for duration in durations[:window]:
        busy += fan_out
        answers.append(busy + duration)
    heapify(answers)
    released: deque[int] = deque()  # When each freed connection asked the processor for its next call; never falling.
    while answers or released:
        if answers and (not released or answers[0] <= released[0]):
            busy = max(busy, heappop(answers)) + fan_in
            taken_in += 1
            if taken_in == last:
                break
            if sent + len(released) < calls:
                released.append(busy)
        else:
            busy = max(busy, released.popleft()) + fan_out
            heappush(answers, busy + durations[sent])
            sent += 1
    return busy


def host_queues(arrivals: Ticks, service: Ticks, hosts: Hosts, workers: int) -> Ticks:
    """Compute when each leaf's service ends where several leaves queue for the workers of one host.

    Leaves that arrive at one instant are served in the order of their indices, in which they were sent.
    """
    order = np.lexsort((arrivals, hosts))
    a, s, h = arrivals[order], service[order], np.asarray(hosts)[order]
    first = np.concatenate(([True], h[1:] != h[:-1]))
    ends = np.empty_like(arrivals)
    rank = np.cumsum(first) - 1
    running = np.cumsum(s)
    running -= (running - s)[first][rank]  # The running sum within each host.
    slack = a - (running - s)
    span = int(slack.max()) - int(slack.min()) + 1
    if workers == 1 and span * (int(rank[-1]) + 1) < 1 << 62:
        # Lifting each host's numbers above those of the host before keeps one running maximum within its host.
        lift = rank * span
        ends[order] = np.maximum.accumulate(slack + lift) - lift + running
        return ends
    served: list[int] = []
    free: list[int] = []
    for new_host, arrival, duration in zip(first.tolist(), a.tolist(), s.tolist(), strict=True):
        if new_host:
            free = [0] * workers
        end = max(arrival, free[0]) + duration
        heapreplace(free, end)
        served.append(end)
    ends[order] = served
    return ends
