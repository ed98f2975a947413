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

Hedge at delay d: up to d all is as without. Answers that are back by then have their turn at the processor, so the
copies of what is unanswered leave one by one from max(d, the processor's last turn) on; from then on the processor
takes in answers of both copies by order of arrival, and a leaf's answer is the earlier of its two. Tied: of two copies
the one whose service begins first cancels the other, unless that begins within `cancel_ms` of it; a cancelled copy
never arrives. The first k of n: the k-th smallest instead of the largest.

What this does not do
---------------------
What feeds back into the order of arrivals is refused: a window together with shared hosts or hedges, a tree over shared
hosts or with hedges, hedges that find the machine of the first copy, and whatever depends on the instant at which a
call arrives (faults, request limits, pauses, hosts that grow cold with time).
Requests are independent, as they are for one client that sends the next when it has the last answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.sim import plain
from mktsim.sim.world import LEAF, TICK_S, Ticks, World, ms_to_ticks, tree_levels, zones_of
from mktsim.streams import Streams

Hosts = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a scatter deals with stragglers.

    Parameters
    ----------
    hedge_ms : float or None
        After so long, every call that is unanswered is made a second time, to another replica; the first answer counts.
    tied : bool
        The copy that is served first cancels its twin, where it still waits (`World.cancel_ms` later).
    quorum : int or None
        How many answers are enough; all when None.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range, or requests are tied without a second copy.
    """

    hedge_ms: float | None = None
    tied: bool = False
    quorum: int | None = None

    def __post_init__(self) -> None:
        if self.hedge_ms is not None:
            plain.number(self, "hedge_ms")
        plain.whole(self, "quorum", optional=True)
        if not isinstance(self.tied, bool) or (self.tied and self.hedge_ms is None):
            raise InvalidArgumentError("tied requests need hedge_ms, when the second copy is sent; 0 means at once")


WAIT_FOR_ALL: Final = Policy()


def unsupported(
    world: World,
    *,
    leaves: int,
    width: int | None = None,
    hosts: Hosts | None = None,
    policy: Policy = WAIT_FOR_ALL,
) -> str | None:
    """Say why the array engine cannot compute this scatter, or None where it can."""
    tree = width is not None and width < leaves
    windowed = world.window is not None and world.window < leaves
    shared = hosts is not None or (world.machines is not None and (tree or world.machines < leaves))
    cold = world.cold_start is not None and world.cold_start.idle_ms is not None
    reasons = {
        "faults": bool(world.faults),
        "request limits": world.limit is not None,
        "hiccups": world.hiccups is not None,
        "hosts that grow cold with time": cold,
        "a tree over shared hosts": shared and tree,
        f"a window of {world.window} with shared hosts": shared and windowed,
    }
    if policy.hedge_ms is not None:
        reasons |= {
            "hedges in a tree": tree,
            "hedges over shared hosts": shared,
            f"hedges under a window of {world.window}": windowed,
            "hedges without a second replica": world.replicas < 2,
        }
    return next((reason for reason, holds in reasons.items() if holds), None)


def vectorised_sojourn_times(
    world: World,
    streams: Streams,
    *,
    leaves: int,
    requests: Sequence[int] = (0,),
    width: int | None = None,
    hosts: Hosts | None = None,
    policy: Policy = WAIT_FOR_ALL,
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
        The machine of each leaf; by default each has its own, or what the world's `machines` say.
    policy : Policy
        Hedges, ties and quorum of the root's scatter.

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
    check_scatter(world, streams, leaves=leaves, requests=requests, width=width, hosts=hosts, policy=policy)
    reason = unsupported(world, leaves=leaves, width=width, hosts=hosts, policy=policy)
    if reason is not None:
        raise InvalidArgumentError(f"the vectorised engine does not cover {reason}; use engine='event'")
    if hosts is None and world.machines is not None and world.machines < leaves:
        hosts = np.arange(leaves, dtype=np.intp) % world.machines
    return np.array([_sojourn_ticks(world, streams, leaves, r, width, hosts, policy) for r in requests], float) * TICK_S


def check_scatter(
    world: World,
    streams: Streams,
    *,
    leaves: int,
    requests: Sequence[int],
    width: int | None,
    hosts: Hosts | None,
    policy: Policy = WAIT_FOR_ALL,
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
    if not isinstance(policy, Policy):
        raise InvalidArgumentError(f"policy must be a Policy, not {policy!r:.80}")
    calls = tree_levels(leaves, width)[-1]
    if policy.quorum is not None and policy.quorum > calls:
        raise InvalidArgumentError(f"a quorum of {policy.quorum} cannot answer: the root makes {calls} calls")
    if policy.hedge_ms is not None and calls < leaves:
        raise InvalidArgumentError("hedges in a tree: a second copy would ask a whole subtree again; use width=None")
    for request in requests:
        if not isinstance(request, int) or not 0 <= request < 1 << 64:
            raise InvalidArgumentError(f"a request's number is from 0 to 2**64 - 1, not {request!r:.80}")


def _sojourn_ticks(
    world: World, streams: Streams, leaves: int, request: int, width: int | None, hosts: Hosts | None, policy: Policy
) -> int:
    base = world.base_ticks(streams, request)
    levels = tree_levels(leaves, width)

    def hops(level: int) -> tuple[Ticks, Ticks, Ticks]:
        group, size = _group(level), levels[level]
        if world.geography is None or level == len(levels) - 1:
            return world.hops(streams, group, request, size)
        assert width is not None
        above = zones_of(world.geography, streams, _group(level + 1), levels[level + 1])
        return world.hops(streams, group, request, size, sources=np.repeat(above, width)[:size])

    out, service, back = hops(0)
    if policy.hedge_ms is not None:
        return base + _hedged(world, streams, request, (out, service, back), policy)
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
    for level in range(1, len(levels)):
        assert width is not None
        whole, rest = divmod(len(durations), width)
        parts = [scatter_ticks(durations[: whole * width].reshape(whole, width), world)] if whole else []
        if rest:
            parts.append(scatter_ticks(durations[whole * width :].reshape(1, rest), world))
        below = np.concatenate(parts)
        out, service, back = hops(level)
        durations = out + service + below + back
    return base + int(scatter_ticks(durations.reshape(1, -1), world, quorum=policy.quorum)[0])


def _group(level: int) -> str:
    return LEAF if level == 0 else f"aggregator/{level}"


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
        return np.array([_windowed(row.tolist(), world.window, fan_out, fan_in, last) for row in durations], np.int64)
    if fan_out:
        durations += fan_out * np.arange(1, calls + 1, dtype=np.int64)
    if last < calls:
        durations.partition(last - 1, axis=1)
        durations = durations[:, :last]
    least = calls * fan_out + last * fan_in
    if not fan_in:
        return np.asarray(durations.max(axis=1, initial=least), np.int64)
    if len(durations) == 1:
        # An answer with every other behind it still ends by arrival + calls * fan_in: most cannot be the last, and
        # need no sorting. Guarded by the figure for a million leaves.
        least = max(least, int(durations.max()) + fan_in)
        durations = durations[durations > least - last * fan_in].reshape(1, -1)
    durations.sort(axis=1)
    durations += fan_in * np.arange(durations.shape[1], 0, -1, dtype=np.int64)
    return np.asarray(durations.max(axis=1, initial=least), np.int64)


_NEVER: Final = 1 << 62


def _hedged(world: World, streams: Streams, request: int, first: tuple[Ticks, Ticks, Ticks], policy: Policy) -> int:
    """Compute the end of a flat scatter whose unanswered calls are made again at `hedge_ms`; see the module's text."""
    assert policy.hedge_ms is not None
    n, delay = len(first[0]), ms_to_ticks(policy.hedge_ms)
    fan_out, fan_in = world.fan_out_ticks, world.fan_in_ticks
    departed = fan_out * np.arange(1, n + 1, dtype=np.int64)
    arrivals = departed + first[0] + first[1] + first[2]
    early = np.flatnonzero(arrivals <= delay)
    early = early[np.argsort(arrivals[early], kind="stable")]
    turns, busy = _taken_in(arrivals[early], fan_in, n * fan_out)
    answered = np.full(n, _NEVER)
    answered[early] = turns
    again = np.flatnonzero(answered > delay)
    if len(again):
        second = world.hops(streams, LEAF, request, n, attempt=1)
        sent = max(busy, delay) + fan_out * np.arange(1, len(again) + 1, dtype=np.int64)
        copies = sent + sum(hop[again] for hop in second)
        if policy.tied:
            waits = [world.backlog(streams, LEAF, request, n, attempt=attempt)[again] for attempt in (0, 1)]
            begun = departed[again] + first[0][again] + waits[0], sent + second[0][again] + waits[1]
            cancel = ms_to_ticks(world.cancel_ms)
            # At one instant the first copy begins first. An answer on its way by `delay` is past being cancelled.
            loses = (begun[1] < begun[0]) & (begun[0] >= begun[1] + cancel)
            arrivals[again[loses]] = _NEVER
            copies[(begun[0] <= begun[1]) & (begun[1] >= begun[0] + cancel)] = _NEVER
        late = again[(arrivals[again] > delay)]
        who = np.concatenate((late, again))
        when = np.concatenate((arrivals[late], copies))
        order = np.argsort(when, kind="stable")
        order = order[when[order] < _NEVER]
        turns, _ = _taken_in(when[order], fan_in, int(sent[-1]))
        np.minimum.at(answered, who[order], turns)
    last = (n if policy.quorum is None else policy.quorum) - 1
    return int(np.partition(answered, last)[last])


def _taken_in(arrivals: Ticks, fan_in: int, busy: int) -> tuple[Ticks, int]:
    """Return when a processor that is busy until `busy` has taken in answers, which are in order, and is free again."""
    if not len(arrivals):
        return arrivals, busy
    steps = fan_in * np.arange(len(arrivals), dtype=np.int64)
    turns = np.maximum(np.maximum.accumulate(arrivals - steps), busy) + steps + fan_in
    return turns, int(turns[-1])


def _windowed(durations: list[int], window: int, fan_out: int, fan_in: int, last: int) -> int:
    """Run the recursion of a capped sender: at one instant, answers are taken in before calls are sent."""
    calls = len(durations)
    if not fan_out and not fan_in:
        # The next call leaves when the first answer is back, so the heap of answers is all there is.
        answers = durations[:window]
        heapify(answers)
        early = [heapreplace(answers, answers[0] + duration) for duration in durations[window:]]
        return max(answers) if last == calls else sorted(early + answers)[last - 1]
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
