"""Hedged and tied scatters as array operators.

Rules
-----
The end is the event engine's, bit for bit. A second copy is drawn only where it can matter: draws are looked up by
vendor, so leaving some out changes none of the others.

Theory of operation
-------------------
Up to the delay d all is as without hedges. Answers that are back by d have their turns at the processor, the last of
which ends at B. If B is after d, the processor was busy from d on, and so ceil((B - d) / f) of them had not been taken
in at d; they were the last by order of arrival. What was not taken in at d is asked again, in the order of the leaves,
from max(d, B) on. Then answers of both copies are taken in by order of arrival.

A leaf's answer is the earlier of its two, and turns rise with arrivals: the k-th leaf is done at the turn of M, the
k-th smallest of the earlier arrivals, which is found without sorting. The turn of M counts what arrives before it.

A copy that leaves after every first answer has arrived comes after M, whatever it takes: none need be drawn from the
first such copy on. Without fan-in cost copies have no turns that others wait for, and a leaf that answers before the
end without its copy needs none: the copies of the slowest leaves give an end that few others can pass.

Worked example, f = 0, d = 2, first answers back at 1, 5, 9 and copies after 4, 8, 2: copies leave at 2 for the second
and third leaf, back at 10 and 4; the leaves are done at 1, 5 and 4.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mktsim.sim.operators import add_departures, taken_in
from mktsim.sim.world import LEAF, Chosen, Ticks, World, ms_to_ticks
from mktsim.streams import Streams

_NEVER: Final = 1 << 62
#: Leaves whose durations are drawn at a time, so that what is at work stays in the processor's cache.
_BLOCK: Final = 1 << 16
#: Copies of the slowest leaves that are drawn first.
_SLOWEST: Final = 1 << 10

Indices = NDArray[np.intp]


def trips(
    world: World, streams: Streams, group: str, request: int, n: int, *, sources: Indices | None = None,
    attempt: int = 0, only: Indices | None = None,
) -> Ticks:  # fmt: skip
    """Draw what calls to `n` hosts, or to the chosen ones, take from their departure until their answer is back."""
    size = n if only is None else len(only)
    total = np.empty(size, np.int64)
    for start in range(0, size, _BLOCK):
        stop = min(size, start + _BLOCK)
        chosen: Chosen = slice(start, stop) if only is None else only[start:stop]
        out, service, back = world.hops(streams, group, request, n, attempt=attempt, sources=sources, only=chosen)
        np.add(out, service, out=out)
        np.add(out, back, out=total[start:stop])
    return total


class Hedge:
    """One flat scatter over `n` leaves whose unanswered calls are made again after a delay."""

    def __init__(self, world: World, streams: Streams, request: int, n: int, delay: int, tied: bool) -> None:
        self._draws = world, streams, request, n
        self._delay = delay
        self._tied = tied
        self._cancel = ms_to_ticks(world.cancel_ms)
        self._fan_out, self._fan_in = world.fan_out_ticks, world.fan_in_ticks

    def end_ticks(self, wanted: int) -> int:
        """Return when so many leaves have been answered."""
        world, streams, request, n = self._draws
        fan_out, fan_in, delay = self._fan_out, self._fan_in, self._delay
        arrivals = trips(world, streams, LEAF, request, n)
        add_departures(arrivals, fan_out)
        again = arrivals > delay
        in_time = n - int(np.count_nonzero(again))
        busy = n * fan_out
        if wanted <= in_time:
            return taken_in(arrivals, wanted, busy, fan_in)
        if in_time and fan_in:
            early = arrivals[~again]
            busy = taken_in(early.copy(), in_time, busy, fan_in)
            self._add_waiting(again, arrivals, early, busy)
        elif busy > delay:
            again[:] = True
        asked = np.flatnonzero(again)
        first = arrivals[asked]
        del arrivals, again
        start = max(busy, delay)
        busy = start + fan_out * len(asked)
        if not fan_in and wanted == n:
            return self._slowest(asked, first, start, busy)
        return self._turn(asked, first, start, busy, wanted - in_time)

    def _add_waiting(self, again: NDArray[np.bool_], arrivals: Ticks, early: Ticks, busy: int) -> None:
        """Mark those who were back at the delay and not yet taken in."""
        taken = len(early) - max(0, -((self._delay - busy) // self._fan_in))
        if taken <= 0:
            again[:] = True
        elif taken < len(early):
            last = int(np.partition(early, taken - 1)[taken - 1])
            again |= arrivals > last
            equal = np.flatnonzero(arrivals == last)
            again[equal[taken - int(np.count_nonzero(early < last)) :]] = True

    def _pair(self, asked: Indices, first: Ticks, start: int, places: Indices) -> tuple[Ticks, Ticks]:
        """Return when both copies of the leaves at some places are back, never where one cancels the other."""
        world, streams, request, n = self._draws
        leaves, own = asked[places], first[places]
        sent = start + self._fan_out * (places + 1)
        copies = trips(world, streams, LEAF, request, n, attempt=1, only=leaves)
        copies += sent
        if self._tied:
            begun = self._begun(leaves)
            twins = world.begins(streams, request, n, attempt=1, only=leaves)
            twins += sent
            # At one instant the first copy begins first. An answer on its way by the delay is past being cancelled:
            # it began before its twin left.
            own[(twins < begun) & (begun >= twins + self._cancel)] = _NEVER
            copies[(begun <= twins) & (twins >= begun + self._cancel)] = _NEVER
        return own, copies

    def _begun(self, leaves: Indices) -> Ticks:
        """Return when the first copies of some leaves begin to be served."""
        world, streams, request, n = self._draws
        begun = world.begins(streams, request, n, attempt=0, only=leaves)
        return begun + self._fan_out * (leaves + 1) if self._fan_out else begun

    def _slowest(self, asked: Indices, first: Ticks, start: int, busy: int) -> int:
        """Return the largest of `busy` and the late leaves' answers, without fan-in cost; see the module's text."""

        def latest(places: Indices) -> int:
            return int(np.minimum(*self._pair(asked, first, start, places)).max(initial=busy))

        bounded = np.ones(len(asked), bool)
        if self._tied:
            # A first copy that may be cancelled is no bound of its leaf's answer.
            bounded = self._begun(asked) < start + self._cancel
            busy = latest(np.flatnonzero(~bounded))
        slow = np.flatnonzero(bounded & (first > busy))
        if len(slow) > _SLOWEST:
            mark = np.partition(first[slow], -_SLOWEST)[-_SLOWEST]
            busy = latest(slow[first[slow] >= mark][:_SLOWEST])
            slow = slow[first[slow] > busy]
        return latest(slow)

    def _turn(self, asked: Indices, first: Ticks, start: int, busy: int, wanted: int) -> int:
        """Return the turn at which so many of the late leaves have been answered."""
        late, horizon = first > self._delay, int(first.max())
        sent = self._sent_by(horizon, start, len(asked))
        first[:sent], copies = self._pair(asked, first, start, np.arange(sent))
        answers = first.copy()
        np.minimum(answers[:sent], copies, out=answers[:sent])
        answers = answers[late]
        # The k-th by order of arrival; at one instant first copies come before second ones, and each by its leaf.
        answers.partition(wanted - 1)
        last = int(answers[wanted - 1])
        if not self._fan_in:
            return max(busy, last)
        if last > horizon:  # Copies that leave after the last first answer count as well, if they are back by then.
            more = np.arange(sent, self._sent_by(last, start, len(asked)))
            copies = np.concatenate((copies, self._pair(asked, first, start, more)[1]))
        rest = wanted - int(np.count_nonzero(answers < last))
        of_first = np.flatnonzero(late & (first == last))
        of_copy = np.flatnonzero(copies == last)
        counts = np.concatenate((_at(copies, of_first) >= last, late[of_copy] & (first[of_copy] > last)))
        ahead = int(np.flatnonzero(counts)[rest - 1]) + 1
        pool = np.concatenate((first[late & (first < last)], copies[copies < last], np.full(ahead, last)))
        return taken_in(pool, len(pool), busy, self._fan_in)

    def _sent_by(self, when: int, start: int, most: int) -> int:
        """Return how many copies have left by an instant."""
        if when < start:
            return 0
        return most if not self._fan_out else min(most, (when - start) // self._fan_out)


def _at(copies: Ticks, places: Indices) -> Ticks:
    """Return copies at some places, those not drawn as never back."""
    found = np.full(len(places), _NEVER)
    drawn = places < len(copies)
    found[drawn] = copies[places[drawn]]
    return found
