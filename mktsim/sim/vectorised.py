"""The array engine: when does a scatter end, computed in numpy instead of simulated event by event.

Rules
-----
For the policies it covers, the result equals the event engine's **bit for bit** (a Hypothesis test holds it to that);
what it does not cover it refuses by name and never approximates. Both engines take their durations from
:meth:`mktsim.sim.world.World.hops`; here they stay whole ticks in int64, so nothing is ever rounded.

Theory of operation
-------------------
Flat, all sent at once: leaf j leaves at (j+1) o (o the fan-out cost) and is back at A = (j+1) o + d; the processor
takes answers in by order of arrival (`mktsim.sim.operators`). Without fan-in cost, a maximum. The first k of n: the
k-th smallest instead of the largest. Durations are drawn and added up in blocks, so that a million leaves take the
memory of one number each.

Window c: the calls form a list schedule on c connections; that recursion is sequential, so it is a heap loop, the one
part that runs leaf by leaf in Python (about 0.1 s per million leaves without processor costs, 0.7 s with).

Tree: what passes below a node does not depend on when the node was called, only on durations; so durations are rolled
up from the leaves, one array operation a level.

Shared hosts, one worker each: leaves sorted by (host, arrival) and, in every host, end_k = C_k + max over j <= k of
(a_j - C_(j-1)), C being the running sum of service times: one segmented running maximum.

Hedged and tied: `mktsim.sim.hedged`.

What this does not do
---------------------
What feeds back into the order of arrivals is refused: a window together with shared hosts or hedges, a tree over shared
hosts or with hedges, hedges that find the machine of the first copy, and whatever depends on the instant at which a
call arrives (faults, request limits, pauses, hosts that grow cold with time).
Requests are independent, as they are for one client that sends the next when it has the last answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.sim import plain
from mktsim.sim.hedged import Hedge, trips
from mktsim.sim.operators import Hosts as Hosts
from mktsim.sim.operators import host_queues, scatter_ticks
from mktsim.sim.world import LEAF, TICK_S, World, ms_to_ticks, tree_levels, zones_of
from mktsim.streams import Streams


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

    Examples
    --------
    One call in a hundred takes 100 ms. Of a hundred calls one usually does; a second copy after 10 ms cuts that off.

    >>> from mktsim.sim.latency import Constant, Mixture
    >>> world = World(service=Mixture((99, 1), (Constant(5), Constant(100))), replicas=2)
    >>> for policy in (Policy(), Policy(hedge_ms=10), Policy(quorum=95)):
    ...     times_s = vectorised_sojourn_times(world, Streams(1), leaves=100, requests=range(50), policy=policy)
    ...     print(policy.hedge_ms, policy.quorum, times_s.mean().round(3))
    None None 0.073
    10.0 None 0.012
    None 95 0.005
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
    O(n log n) a request. Measured, one million leaves, three draws each: 36 ms and 11 MB, most of it the drawing;
    hedged at the 95th percentile 40 ms, tied 47 ms; hedged with processor costs 60 ms and 40 MB.

    Examples
    --------
    The mean of the slowest of 100 exponential services of 10 ms is ``H_100``, 5.19, times 10 ms: here up to chance.

    >>> from mktsim.sim.latency import Exponential
    >>> world = World(service=Exponential(10))
    >>> times_s = vectorised_sojourn_times(world, Streams(1), leaves=100, requests=range(400))
    >>> times_s.shape, round(float(times_s.mean()), 4)
    ((400,), 0.051)
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
    if policy.hedge_ms is not None:
        quorum = leaves if policy.quorum is None else policy.quorum
        hedge = Hedge(world, streams, request, leaves, ms_to_ticks(policy.hedge_ms), policy.tied)
        return base + hedge.end_ticks(quorum)

    def sources(level: int) -> Hosts | None:
        if world.geography is None or level == len(levels) - 1:
            return None
        assert width is not None
        above = zones_of(world.geography, streams, _group(level + 1), levels[level + 1])
        return np.repeat(above, width)[: levels[level]]

    if hosts is not None:
        departures = world.fan_out_ticks * np.arange(1, leaves + 1, dtype=np.int64)
        out, service, back = world.hops(streams, LEAF, request, leaves)
        out += departures
        durations = host_queues(out, service, hosts, world.workers)
        durations += back
        durations -= departures
    else:
        durations = trips(world, streams, LEAF, request, leaves, sources=sources(0))
    for level in range(1, len(levels)):
        assert width is not None
        whole, rest = divmod(len(durations), width)
        parts = [scatter_ticks(durations[: whole * width].reshape(whole, width), world)] if whole else []
        if rest:
            parts.append(scatter_ticks(durations[whole * width :].reshape(1, rest), world))
        durations = np.concatenate(parts)
        durations += trips(world, streams, _group(level), request, levels[level], sources=sources(level))
    return base + int(scatter_ticks(durations.reshape(1, -1), world, quorum=policy.quorum)[0])


def _group(level: int) -> str:
    return LEAF if level == 0 else f"aggregator/{level}"
