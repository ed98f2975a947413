"""The array engine: when does a scatter end, computed in numpy instead of simulated event by event.

Rules
-----
For the policies it covers, the result equals the event engine's **bit for bit** (a Hypothesis test holds it to that);
what it does not cover it refuses by name and never approximates. Both engines take their durations from
:meth:`mktsim.sim.world.World.hops`; here they stay whole ticks in int64, so nothing is ever rounded.

Theory of operation
-------------------
Flat, all sent at once: leaf j leaves at (j+1) o (o the fan-out cost), is back at A = (j+1) o + d, and the processor
takes answers in by order of arrival: D_k = max(A_(k), D_(k-1)) + f, from D_0 = n o. Unrolled, D_n is the largest of
n o + n f and all A_(k) + (n-k+1) f: a sort and a maximum. Without fan-in cost, a maximum.

Window c: the calls form a list schedule on c connections; that recursion is sequential, so it is a heap loop, the one
part that runs leaf by leaf in Python (about 0.1 s per million leaves without processor costs, 1 s with).

Tree: what passes below a node does not depend on when the node was called, only on durations; so durations are rolled
up from the leaves, one array operation a level.

Shared hosts, one worker each: leaves sorted by (host, arrival) and, in every host, end_k = C_k + max over j <= k of
(a_j - C_(j-1)), C being the running sum of service times: one segmented running maximum.

What this does not do
---------------------
A window together with shared hosts, and a tree over shared hosts, feed back into the order of arrivals: refused.
Requests are independent, as they are for one client that sends the next when it has the last answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.sim.world import LEAF, TICK_S, Ticks, World, tree_levels
from mktsim.streams import Streams

Hosts = NDArray[np.intp]


def unsupported(world: World, *, leaves: int, width: int | None = None, hosts: Hosts | None = None) -> str | None:
    """Say why the array engine cannot compute this scatter, or None where it can."""
    if hosts is None:
        return None
    if width is not None and width < leaves:
        return "a tree over shared hosts"
    if world.window is not None and world.window < leaves:
        return f"a window of {world.window} with shared hosts"
    return None


def vectorised_sojourn_times(
    world: World,
    streams: Streams,
    *,
    leaves: int,
    requests: Sequence[int] = (0,),
    width: int | None = None,
    hosts: Hosts | None = None,
) -> NDArray[np.float64]:
    """Compute how long requests that scatter over all leaves take, from the client and back.

    Parameters
    ----------
    world : World
        Durations and limits.
    streams : Streams
        Where durations are drawn.
    leaves : int
        How many, at least 1.
    requests : sequence of int
        The numbers of the requests; each has its own draws.
    width : int, optional
        Fan-out width of an aggregator tree; None means flat.
    hosts : ndarray of int, shape (leaves,), optional
        The machine of each leaf; by default each has its own.

    Returns
    -------
    ndarray of float64, shape (len(requests),)
        Sojourn times in seconds.

    Raises
    ------
    InvalidArgumentError
        If a number is out of range, or the policy is one this engine does not cover.
    SimulationError
        If a duration beyond 12 days is drawn.

    Notes
    -----
    O(n log n) a request; flat, one million leaves: tens of milliseconds, most of it the drawing.
    """
    check_scatter(world, streams, leaves=leaves, requests=requests, width=width, hosts=hosts)
    reason = unsupported(world, leaves=leaves, width=width, hosts=hosts)
    if reason is not None:
        raise InvalidArgumentError(f"the vectorised engine does not cover {reason}; use engine='event'")
    return np.array([_sojourn_ticks(world, streams, leaves, r, width, hosts) for r in requests], float) * TICK_S


def check_scatter(
    world: World, streams: Streams, *, leaves: int, requests: Sequence[int], width: int | None, hosts: Hosts | None
) -> None:
    """Check the arguments that both engines share."""
    if not isinstance(world, World) or not isinstance(streams, Streams):
        raise InvalidArgumentError(f"needs a World and Streams, not {world!r:.80} and {streams!r:.80}")
    if not isinstance(leaves, int) or isinstance(leaves, bool) or not 1 <= leaves < 1 << 32:
        raise InvalidArgumentError(f"leaves must be a whole number from 1 to 2**32 - 1, not {leaves!r:.80}")
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 2):
        raise InvalidArgumentError(f"width must be a whole number of at least 2, or None for flat, not {width!r:.80}")
    if hosts is not None and (len(hosts) != leaves or np.asarray(hosts).min() < 0):
        raise InvalidArgumentError(f"hosts must name one host from 0 up for each of {leaves} leaves")
    for request in requests:
        if not isinstance(request, int) or not 0 <= request < 1 << 64:
            raise InvalidArgumentError(f"a request's number is from 0 to 2**64 - 1, not {request!r:.80}")


def _sojourn_ticks(
    world: World, streams: Streams, leaves: int, request: int, width: int | None, hosts: Hosts | None
) -> int:
    base = world.base_ticks(streams, request)
    out, service, back = world.hops(streams, LEAF, request, leaves)
    if hosts is not None:
        departures = world.fan_out_ticks * np.arange(1, leaves + 1, dtype=np.int64)
        out += departures
        durations = _host_queues(out, service, hosts, world.workers)
        durations += back
        durations -= departures
    else:
        durations = out
        durations += service
        durations += back
    for level in range(1, len(tree_levels(leaves, width))):
        assert width is not None
        whole, rest = divmod(len(durations), width)
        parts = [scatter_ticks(durations[: whole * width].reshape(whole, width), world)] if whole else []
        if rest:
            parts.append(scatter_ticks(durations[whole * width :].reshape(1, rest), world))
        below = np.concatenate(parts)
        out, service, back = world.hops(streams, f"aggregator/{level}", request, len(below))
        durations = out + service + below + back
    return base + int(scatter_ticks(durations.reshape(1, -1), world)[0])


def scatter_ticks(durations: Ticks, world: World) -> Ticks:
    """Compute how long senders take over their scatters, one a row.

    Parameters
    ----------
    durations : ndarray of int64, shape (senders, calls)
        What each call takes from its departure until its answer is back, in ticks. May be overwritten.
    world : World
        Gives the window and the sender's costs.

    Returns
    -------
    ndarray of int64, shape (senders,)
    """
    calls = durations.shape[1]
    fan_out, fan_in = world.fan_out_ticks, world.fan_in_ticks
    if world.window is not None and world.window < calls:
        return np.array([_windowed(row.tolist(), world.window, fan_out, fan_in) for row in durations], np.int64)
    if fan_out:
        durations += fan_out * np.arange(1, calls + 1, dtype=np.int64)
    if not fan_in:
        return np.asarray(durations.max(axis=1), np.int64)
    least = calls * (fan_out + fan_in)
    if len(durations) == 1:
        # An answer with every other behind it still ends by arrival + calls * fan_in: most cannot be the last, and
        # need no sorting. Guarded by the figure for a million leaves.
        least = max(least, int(durations.max()) + fan_in)
        durations = durations[durations > least - calls * fan_in].reshape(1, -1)
    durations.sort(axis=1)
    durations += fan_in * np.arange(durations.shape[1], 0, -1, dtype=np.int64)
    return np.asarray(durations.max(axis=1, initial=least), np.int64)


def _windowed(durations: list[int], window: int, fan_out: int, fan_in: int) -> int:
    """Run the recursion of a capped sender: at one instant, answers are taken in before calls are sent."""
    calls = len(durations)
    if not fan_out and not fan_in:
        # The next call leaves when the first answer is back, so the heap of answers is all there is.
        answers = durations[:window]
        heapify(answers)
        for duration in durations[window:]:
            heapreplace(answers, answers[0] + duration)
        return max(answers)
    busy, sent = 0, window
    answers = []
    for duration in durations[:window]:
        busy += fan_out
        answers.append(busy + duration)
    heapify(answers)
    released: deque[int] = deque()  # When each freed connection asked the processor for its next call; never falling.
    while answers or released:
        if answers and (not released or answers[0] <= released[0]):
            busy = max(busy, heappop(answers)) + fan_in
            if sent + len(released) < calls:
                released.append(busy)
        else:
            busy = max(busy, released.popleft()) + fan_out
            heappush(answers, busy + durations[sent])
            sent += 1
    return busy


def _host_queues(arrivals: Ticks, service: Ticks, hosts: Hosts, workers: int) -> Ticks:
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
