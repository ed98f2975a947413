"""Alarms: one per object, kept in its database; here is only when the next one rings."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from typing import Any, Final

from mktsim.objects.context import detached

#: The clock may jump, so that a far alarm is looked at anew this often.
_LOOK_S: Final = 60.0
#: A wait shorter than the clock resolves would never end.
_SHORTEST_S: Final = 0.001


class Alarms:
    """Calls `ring` with an object's id when its time has come.

    Parameters
    ----------
    ring : callable
        A coroutine function of the id.
    clock : callable
        What alarms are set by, in seconds.
    """

    def __init__(self, ring: Callable[[str], Coroutine[Any, Any, None]], clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def set(self, id: str, at_s: float | None) -> None:
        """Ring for an object at a time of the clock, or not at all."""
        if at_s is None:
            self._at.pop(id, None)
        else:
            self._at[id] = at_s
            heapq.heappush(self._heap, (at_s, id))
        self._arm()

    def knows(self, id: str) -> bool:
        """Whether an alarm of this object is set."""
        return id in self._at

    @property
    def ringing(self) -> bool:
        """Whether an alarm is ringing now."""
        return bool(self._tasks)

    def next_s(self) -> float | None:
        """Return when the next alarm rings, or None."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    async def close(self) -> None:
        """Ring no more, and wait for what is ringing."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _arm(self) -> None:
        next_s = self.next_s()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if next_s is not None and not self._closed:
            wait_s = min(max(_SHORTEST_S, next_s - self._clock()), _LOOK_S)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._clock()
        while (next_s := self.next_s()) is not None and next_s <= now_s:
            id = heapq.heappop(self._heap)[1]
            del self._at[id]
            task = asyncio.get_running_loop().create_task(self._ring(id), context=detached())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._arm()
