"""Where requests arrive for one scanner: the queue before it, and the tied requests that are withdrawn from it.

Theory of operation
-------------------
Tied requests are two copies of one call at two hosts. The copy that is started first sends the other's host a
:class:`Cancel`; if the other still waits in line, or arrives later, it is dropped and answered with
:class:`Withdrawn`. A copy that runs is never withdrawn: otherwise two that start at the same moment would withdraw
each other, and nobody would answer. Source: Dean and Barroso, The Tail at Scale, CACM 56(2), 2013.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import Any, Final

from mktsim.fanout.messages import Cancel, ScatterRequest, Withdrawn
from mktsim.network import Network

#: Withdrawals that are remembered for copies still under way.
_REMEMBERED: Final = 10_000
_WITHDRAWN: Final = Withdrawn()


class Station:
    """The handler that a network calls at a scanner's address.

    Parameters
    ----------
    scanner : ScatterTarget
        Who answers.
    network : Network
        By which twins are withdrawn.
    """

    __slots__ = ("_busy", "_line", "_network", "_scanner", "_withdrawn", "_workers")

    def __init__(self, scanner: Any, network: Network) -> None:
        self._scanner = scanner
        self._network = network
        self._workers: int | None = getattr(scanner, "workers", None)
        self._busy = 0
        self._line: deque[tuple[asyncio.Future[Any], ScatterRequest]] = deque()
        self._withdrawn: OrderedDict[tuple[Any, ...], None] = OrderedDict()

    def __call__(self, _target: str, message: Any) -> Any:
        """Answer a request, now or when its turn comes, or withdraw one."""
        if type(message) is Cancel:
            return self._withdraw(message.key)
        if message.tie is None and self._workers is None:
            return self._scanner.scan(message)
        if message.tie is not None and message.tie.key in self._withdrawn:
            return _WITHDRAWN
        if self._workers is not None and self._busy >= self._workers:
            future = asyncio.get_running_loop().create_future()
            self._line.append((future, message))
            return future
        return self._start(message)

    def _withdraw(self, key: tuple[Any, ...]) -> None:
        self._withdrawn[key] = None
        if len(self._withdrawn) > _REMEMBERED:
            self._withdrawn.popitem(last=False)
        for future, message in self._line:
            if message.tie is not None and message.tie.key == key and not future.done():
                future.set_result(_WITHDRAWN)

    def _start(self, message: ScatterRequest) -> Any:
        if message.tie is not None:
            told = self._network.call(self._scanner.address, message.tie.twin, Cancel(message.tie.key))
            told.add_done_callback(_ignore)
        answer = self._scanner.scan(message)
        if asyncio.iscoroutine(answer):
            answer = asyncio.ensure_future(answer)
        if self._workers is not None and asyncio.isfuture(answer):
            self._busy += 1
            answer.add_done_callback(self._next)
        return answer

    def _next(self, _done: asyncio.Future[Any]) -> None:
        self._busy -= 1
        while self._line and self._busy < (self._workers or 1):
            future, message = self._line.popleft()
            if future.done():
                continue  # Withdrawn, or given up by its caller.
            try:
                answer = self._start(message)
            except Exception as error:
                future.set_exception(error)
                continue
            if asyncio.isfuture(answer):
                _follow(answer, future)
            else:
                future.set_result(answer)


def _ignore(future: asyncio.Future[Any]) -> None:
    """Take the outcome of a message that nobody waits for: a twin that cannot be told runs as well, no more."""
    if not future.cancelled():
        future.exception()


def _follow(inner: asyncio.Future[Any], outer: asyncio.Future[Any]) -> None:
    """Let `outer` end as `inner` does, and cancel `inner` where `outer` is cancelled."""

    def ended(done: asyncio.Future[Any]) -> None:
        if done.cancelled():
            outer.cancel()
        elif (error := done.exception()) is not None:
            if not outer.done():
                outer.set_exception(error)
        elif not outer.done():
            outer.set_result(done.result())

    def given_up(done: asyncio.Future[Any]) -> None:
        if done.cancelled():
            inner.cancel()

    inner.add_done_callback(ended)
    outer.add_done_callback(given_up)
