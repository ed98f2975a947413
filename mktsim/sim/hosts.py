"""Hosts under conditions: what becomes of a call that arrives, and of a message on its way.

Rules
-----
Nothing here schedules an event or keeps a clock: each method says what happens to a message or a call from the instant
on that it is told. All chances are looked up by the call's key, in :class:`~mktsim.streams.Streams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from heapq import heapreplace
from math import floor, inf
from typing import Any, Final

import numpy as np

from mktsim.sim.faults import Crash, Duplication, Fault, Loss, Partition, Reordering, SlowDisk
from mktsim.sim.latency import Latency
from mktsim.sim.world import TICK_S, World, ms_to_ticks, to_ticks
from mktsim.streams import Streams

_LOST: Final = inf


class Machine:
    """One machine's workers: when each is free, and what is known of the calls on their way to it."""

    __slots__ = (
        "asked_s",
        "busy_until_s",
        "expected",
        "free_s",
        "key",
        "load",
        "phase_s",
        "planned",
        "quota_s",
        "shared",
    )

    def __init__(self, workers: int, key: tuple[str, int]) -> None:
        self.free_s = [0.0] * workers  # A heap.
        self.planned: Any = None  # A call whose service was planned when it was sent; see `mktsim.sim.network`.
        self.expected = 0  # Calls on their way whose service was not.
        self.load = 0  # Calls waiting or served; kept under conditions only.
        self.busy_until_s = -inf  # End of the last service; kept under conditions only.
        self.asked_s = -inf  # When it was last called; kept under conditions only.
        self.quota_s = 0.0  # Until when its rate limit is used up.
        self.phase_s: float | None = None
        self.key = key
        self.shared = False


@dataclass(slots=True)
class Group:
    """Hosts that are numbered together."""

    name: str
    size: int


@dataclass(slots=True)
class Address:
    """Where an address stands: its group and index, its replicas' machines, and the faults that hit it."""

    name: str
    group: Group
    index: int
    machines: tuple[Machine, ...]
    faults: tuple[tuple[int, Fault], ...]
    #: Whether a call's way depends on the instant of its arrival, so that it cannot be planned when it is sent.
    eventful: bool


@lru_cache(maxsize=64)
def _snapped_s(ms: float) -> float:
    return ms_to_ticks(ms) * TICK_S if ms < inf else inf


def _sample_s(latency: Latency, u: float) -> float:
    return int(to_ticks(latency.sample(np.array([u])))[0]) * TICK_S


class Conditions:
    """The world's faults, limits and pauses, as they meet one run's calls."""

    def __init__(self, world: World, streams: Streams) -> None:
        self._world = world
        self._streams = streams
        cold = world.cold_start
        self.everywhere = bool(world.limit or world.hiccups or (cold is not None and cold.idle_ms is not None))

    def faults_of(self, address: str, group: str, index: int) -> tuple[tuple[int, Fault], ...]:
        """Return the faults that hit a host, each with its number in the schedule."""
        return tuple(
            (k, fault)
            for k, fault in enumerate(self._world.faults)
            if fault.matches(address)
            and (fault.share >= 1.0 or self._streams.uniform_at(f"fault {k}/{group}", 0, index) < fault.share)
        )

    # -- messages -----------------------------------------------------------------------------------------------------

    def way_s(
        self, sender_faults: tuple[tuple[int, Fault], ...], call: Any, *, back: bool, departure_s: float, way_s: float
    ) -> float:
        """Return how long a message is on its way, infinity where it is lost."""
        faults = call.host.faults
        for k, fault in (*faults, *sender_faults):
            if isinstance(fault, Partition) and ((k, fault) in faults) != ((k, fault) in sender_faults):
                start, end = _snapped_s(fault.start_ms), _snapped_s(fault.end_ms)
                if departure_s < end and departure_s + way_s >= start:
                    return _LOST
        for k, fault in faults:
            if not isinstance(fault, Loss | Reordering) or not _active(fault, departure_s):
                continue
            if self._chance(k, call, "back" if back else "out") < fault.probability:
                if isinstance(fault, Loss):
                    return _LOST
                way_s += _sample_s(fault.delay, self._chance(k, call, "back delay" if back else "out delay"))
        return way_s

    def duplicate_after_s(self, call: Any, departure_s: float) -> float | None:
        """Return how long after a request its duplicate arrives, None where there is none."""
        for k, fault in call.host.faults:
            if not isinstance(fault, Duplication) or not _active(fault, departure_s):
                continue
            if self._chance(k, call, "twice") < fault.probability:
                return _sample_s(fault.delay, self._chance(k, call, "delay"))
        return None

    def _chance(self, fault: int, call: Any, what: str) -> float:
        stream = f"fault {fault}/{call.host.group.name}/attempt {call.attempt}/{what}"
        return self._streams.uniform_at(stream, call.request, call.host.index)

    # -- hosts --------------------------------------------------------------------------------------------------------

    def crash_between(self, host: Address, since_s: float, until_s: float) -> Crash | None:
        """Return the first crash of a host that holds anywhere from `since_s` to `until_s`, both included."""
        crashes = [
            fault
            for _, fault in host.faults
            if isinstance(fault, Crash) and _snapped_s(fault.start_ms) <= until_s and since_s < _snapped_s(fault.end_ms)
        ]
        return min(crashes, key=lambda fault: fault.start_ms, default=None)

    def overloaded(self, machine: Machine, now_s: float) -> str | None:
        """Say why a machine sheds a call that arrives now; count it where it does not."""
        limit = self._world.limit
        if limit is None:
            return None
        if limit.queue is not None and machine.load >= self._world.workers + limit.queue:
            return f"{machine.load} calls wait or are served, {self._world.workers} + {limit.queue} may"
        if limit.rate_per_s is not None:
            interval_s = _snapped_s(1e3 / limit.rate_per_s)
            used = max(machine.quota_s, now_s)
            if used - now_s > (limit.burst - 1) * interval_s:
                return f"it takes on {limit.rate_per_s:g} calls a second, {limit.burst} at once"
            machine.quota_s = used + interval_s
        return None

    def serve(self, call: Any, machine: Machine, now_s: float) -> float:
        """Queue a call at a machine now and return when its service ends, whatever slows it."""
        service_s = call.answer
        slowed = 1.0
        for _, fault in call.host.faults:
            if isinstance(fault, SlowDisk) and _active(fault, now_s):
                slowed *= fault.factor
                service_s += _snapped_s(fault.added_ms)
        if slowed > 1.0:
            service_s += round(call.answer * (slowed - 1.0) / TICK_S) * TICK_S
        if not machine.shared and self._restarts(call.host, machine.asked_s, now_s):
            machine.free_s[:] = [0.0] * len(machine.free_s)  # What it was doing is gone.
        if self._cold(call.host, machine, now_s):
            ticks = self._world.cold_ticks(
                self._streams, call.host.group.name, call.request, call.host.index + 1, call.attempt
            )
            service_s += int(ticks[-1]) * TICK_S
        start_s = max(machine.free_s[0], now_s)
        end_s = self._stretched(machine, start_s, service_s)
        heapreplace(machine.free_s, end_s)
        machine.busy_until_s = max(machine.busy_until_s, end_s)
        machine.asked_s = now_s
        return end_s

    def _restarts(self, host: Address, since_s: float, until_s: float) -> bool:
        """Whether the host came back from a crash after `since_s`, up to `until_s`."""
        return any(
            isinstance(fault, Crash) and since_s < _snapped_s(fault.end_ms) <= until_s for _, fault in host.faults
        )

    def _cold(self, host: Address, machine: Machine, now_s: float) -> bool:
        cold = self._world.cold_start
        if cold is None:
            return False
        idle = cold.idle_ms is not None and now_s - machine.busy_until_s >= _snapped_s(cold.idle_ms)
        return idle or self._restarts(host, machine.asked_s, now_s)

    def _stretched(self, machine: Machine, start_s: float, work_s: float) -> float:
        """Return when work that begins at `start_s` ends, pauses of the host included."""
        pauses = self._world.hiccups
        if pauses is None:
            return start_s + work_s
        every_s = max(_snapped_s(pauses.every_ms), 2 * TICK_S)
        group, index = machine.key
        if machine.phase_s is None:
            share = self._streams.uniform_at(f"{group}/hiccup phase", 0, index)
            machine.phase_s = round(share * every_s / TICK_S) * TICK_S
        now_s, k = start_s, floor((start_s - machine.phase_s) / every_s)
        while True:
            if k >= 0:
                u = self._streams.uniform_at(f"{group}/hiccup", k, index)
                length_s = min(_sample_s(pauses.latency, u), round(every_s / 2 / TICK_S) * TICK_S)
                now_s = max(now_s, machine.phase_s + k * every_s + length_s)
            k += 1
            next_s = machine.phase_s + k * every_s
            if now_s + work_s <= next_s:
                return now_s + work_s
            work_s -= next_s - now_s
            now_s = next_s


def _active(fault: Fault, now_s: float) -> bool:
    return _snapped_s(fault.start_ms) <= now_s < _snapped_s(fault.end_ms)
