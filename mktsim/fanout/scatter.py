"""One scatter: calls to many scanners, under a policy, until all have answered or are given up.

Rules
-----
A scanner's answer counts once, whichever of its copies brings it and however often. What fails ends in `failures` by
name. When a scatter is over, none of its calls, timers or callbacks is left.

Theory of operation
-------------------
Calls are futures and what follows from them are callbacks: a scatter over many leaves has no task. A call that is
answered at once, as in one process, is settled on the spot. Where the policy asks everybody once, that is all there is
(`_ask_once`, the hot path; guarded by ``benchmarks/fanout.py``). Otherwise each leaf passes through::

    waiting for the window -> in flight -> answered
              ^                 |  \\-> hedged or tied: one copy more in flight
              \\-- backing off <-/ failed, retries left

Delays that are the same for all leaves (hedge, attempt time-out) end in the order in which they began, so that each
kind is one queue with one timer. Random shares of back-off are keyed by (seed, "retry", query, leaf's place).

What this does not do
---------------------
A call that is given up is cancelled by cancelling its future; whether its work stops is the network's to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from mktsim.errors import (
    InvalidArgumentError,
    MktsimError,
    QueryError,
    SchemaMismatchError,
    VendorDownError,
    VendorError,
    VendorTimeoutError,
)
from mktsim.fanout.messages import Partial, ScatterRequest, Tie, Withdrawn
from mktsim.fanout.policy import Circuits, Histogram, RetryBudget, ScatterPolicy
from mktsim.network import Network
from mktsim.streams import Streams

#: Observations below which a quantile is not yet one, besides enough to have some past it.
_LEAST_OBSERVED = 20
_PLAIN = ScatterPolicy()


class Addressed(Protocol):
    """What a scatter needs of a scanner."""

    id: str
    address: str


Target = tuple[Any, tuple[str, ...] | None]


class Node:
    """What scatters: a coordinator or an aggregator, and what it remembers between scatters.

    Parameters
    ----------
    network : Network
    address : str
        From where it calls.
    replicas : mapping, optional
        Scanner id to the addresses of its replicas, which answer as it does.
    streams : Streams, optional
        Where back-off is drawn.

    Attributes
    ----------
    observed : Histogram
        How long calls to leaves took that a policy other than the plain one ruled.
    """

    def __init__(
        self,
        network: Network,
        address: str,
        *,
        replicas: Mapping[str, Sequence[str]] | None = None,
        streams: Streams | None = None,
    ) -> None:
        self.network = network
        self.address = address
        self.replicas = {id_: tuple(addresses) for id_, addresses in (replicas or {}).items()}
        self.streams = streams if streams is not None else Streams(0).child(address)
        self.observed = Histogram()
        self.budget = RetryBudget()
        self.circuits = Circuits()
        self.queries = 0

    def scatter(
        self,
        targets: Iterable[Target],
        request: ScatterRequest,
        policy: ScatterPolicy = _PLAIN,
        on_end: Callable[[], None] | None = None,
        take_in: Callable[[str, Partial], Partial] | None = None,
    ) -> Scatter:
        """Begin a scatter; see :class:`Scatter`. What `take_in` makes of a scanner's partial stands in its place."""
        self.queries += 1
        made = Scatter(self, request, policy, on_end, take_in)
        made.begin(targets)
        return made


class _Leaf:
    """One scanner of a scatter that a policy rules."""

    __slots__ = ("addresses", "attempt", "copies", "done", "error", "id", "is_inner", "place", "request", "timer")

    def __init__(self, id_: str, place: int, addresses: tuple[str, ...], request: ScatterRequest, inner: bool) -> None:
        self.id = id_
        self.place = place
        self.addresses = addresses
        self.request = request
        self.is_inner = inner
        self.attempt = 0
        self.copies: dict[asyncio.Future[Any], tuple[str, float]] = {}
        self.error: Exception | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.done = False


class _Delays:
    """Equal delays, first begun first over: one queue, one timer."""

    __slots__ = ("_delay_s", "_loop", "_over", "_queue", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float, over: Callable[[_Leaf, Any], None]) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._over = over
        self._queue: deque[tuple[float, _Leaf, Any]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, now_s: float, leaf: _Leaf, copy: Any) -> None:
        self._queue.append((now_s + self._delay_s, leaf, copy))

    def arm(self) -> None:
        """Set the timer, once all that is sent now has been: what is answered at its instant is then in time."""
        if self._queue and self._timer is None:
            self._timer = self._loop.call_at(self._queue[0][0], self._fire)

    def _fire(self) -> None:
        assert self._timer is not None
        now_s = max(self._loop.time(), self._timer.when())
        queue = self._queue
        while queue and (queue[0][0] <= now_s or queue[0][2] not in queue[0][1].copies):
            _, leaf, copy = queue.popleft()
            if copy in leaf.copies:
                self._over(leaf, copy)
        self._timer = None  # Not before: what is sent meanwhile must not set one for those still in this loop.
        self.arm()

    def stop(self) -> None:
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Scatter:
    """One scatter under way.

    Attributes
    ----------
    partials : dict of str to Partial
        By id of the scanner.
    failures : dict of str to Exception
        Who did not answer, and why: scanners, and those behind them.
    is_over : bool
        Whether nothing is waited for any more.
    calls : int
        Calls sent, further attempts and copies included.
    """

    def __init__(
        self,
        node: Node,
        request: ScatterRequest,
        policy: ScatterPolicy,
        on_end: Callable[[], None] | None,
        take_in: Callable[[str, Partial], Partial] | None = None,
    ) -> None:
        self.partials: dict[str, Partial] = {}
        self.failures: dict[str, Exception] = {}
        self.is_over = False
        self.calls = 0
        self._node = node
        self._number = node.queries
        self._request = request
        self._policy = policy
        self._on_end = on_end
        self._take_in = take_in
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._open = 0
        # Plain scatters: future -> id. Others: the leaves, those that wait for the window, and their delays.
        self._asked: dict[asyncio.Future[Any], str] = {}
        self._leaves: list[_Leaf] = []
        self._line: deque[tuple[_Leaf, bool]] = deque()
        self._in_flight = 0
        self._pumping = False
        self._hedges: _Delays | None = None
        self._timeouts: _Delays | None = None

    def begin(self, targets: Iterable[Target]) -> None:
        """Send what may be sent at once."""
        try:
            if self._policy.asks_once:
                self._ask_once(targets)
            else:
                self._ask(list(targets))
        except BaseException:
            self.cancel()
            raise
        if self._open == 0:
            self._end()
        elif not self.is_over and self._request.deadline_s is not None:
            self._expiry = self._loop.call_at(self._request.deadline_s, self._expire)

    async def wait(self) -> None:
        """Wait until the scatter is over; cancel it where the waiting is cancelled."""
        if self.is_over:
            return
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give everything up; does nothing to a scatter that is over."""
        if not self.is_over:
            self._on_end = None
            self._end()

    # -- everybody once -------------------------------------------------------------------------------------------

    def _ask_once(self, targets: Iterable[Target]) -> None:
        node, request, asked = self._node, self._request, self._asked
        call, source, deadline_s, clock = node.network.call, node.address, request.deadline_s, self._loop.time
        for scanner, only in targets:
            if deadline_s is not None and clock() >= deadline_s:
                # Scanners of this process answer within the call, and so use up the time of those after them.
                self.failures[scanner.id] = _late(scanner.id)
                continue
            self.calls += 1
            future = call(source, scanner.address, request if only is None else request.replace(vendor_ids=only))
            if future.done():
                self._take(scanner.id, future)
            else:
                asked[future] = scanner.id
        self._open = len(asked)
        for future in asked:
            future.add_done_callback(self._answered_once)

    def _answered_once(self, future: asyncio.Future[Any]) -> None:
        if self.is_over:
            if not future.cancelled():
                future.exception()  # Nobody else will look at it.
            return
        self._take(self._asked.pop(future), future)
        self._open -= 1
        if not self._open:
            self._end()

    def _take(self, id_: str, future: asyncio.Future[Any]) -> None:
        error = _failure(id_, future)
        if error is not None:
            self.failures[id_] = error
        else:
            self._accept(id_, future.result())

    def _accept(self, id_: str, partial: Partial) -> None:
        if self._take_in is not None:
            try:
                partial = self._take_in(id_, partial)
            except MktsimError as error:
                self.failures[id_] = error
                return
        self.partials[id_] = partial
        if partial.failures:
            self.failures.update(partial.failures)

    # -- under a policy -------------------------------------------------------------------------------------------

    def _ask(self, targets: list[Target]) -> None:
        node, policy, request = self._node, self._policy, self._request
        hedge_after_s = policy.hedge_after_s
        quantile = policy.hedge_quantile
        if (
            quantile is not None
            and node.observed.count * (1.0 - quantile) >= 1
            and (node.observed.count >= _LEAST_OBSERVED)
        ):
            hedge_after_s = node.observed.quantile(quantile)
        if hedge_after_s is not None:
            self._hedges = _Delays(self._loop, hedge_after_s, self._hedge)
        if policy.attempt_timeout_s is not None:
            self._timeouts = _Delays(self._loop, policy.attempt_timeout_s, self._time_out)
        for place, (scanner, only) in enumerate(targets):
            replicas = node.replicas.get(scanner.id, ()) if policy.max_staleness_s != 0 else ()
            addresses = (scanner.address, *replicas)
            asked = request if only is None else request.replace(vendor_ids=only)
            leaf = _Leaf(scanner.id, place, addresses, asked, bool(getattr(scanner, "is_inner", False)))
            self._leaves.append(leaf)
            self._line.append((leaf, False))
        node.budget.deposit(len(targets), policy.retry_budget)
        self._open = len(targets)
        self._pump()

    def _pump(self) -> None:
        """Send as many of those in line as the window lets; a call answered at once ends within."""
        if self._pumping:
            return
        self._pumping = True
        window = self._policy.window
        line = self._line
        try:
            while line and not self.is_over and (window is None or self._in_flight < window):
                leaf, is_copy = line.popleft()
                if not leaf.done and (bool(leaf.copies) == is_copy):
                    self._send(leaf, is_copy)
        finally:
            self._pumping = False
        if not self._open:
            self._end()
        elif not self.is_over:
            for delays in (self._hedges, self._timeouts):
                if delays is not None:
                    delays.arm()

    def _send(self, leaf: _Leaf, is_copy: bool) -> None:
        now_s, request, node, breaker = self._loop.time(), leaf.request, self._node, self._policy.breaker
        if request.deadline_s is not None and now_s >= request.deadline_s:
            self._fail(leaf, _late(leaf.id))
            return
        # Attempts take the addresses in turn, and a second copy the one after its first.
        turn = leaf.attempt + is_copy
        order = [leaf.addresses[(turn + step) % len(leaf.addresses)] for step in range(len(leaf.addresses))]
        if breaker is not None:
            admitted = next((each for each in order if node.circuits.admit(each, breaker, now_s)), None)
            if admitted is None:
                if not is_copy:
                    self._fail(leaf, _open_circuit(leaf, node.circuits))
                return
            order = [admitted]
        address = order[0]
        if self._policy.tied and not leaf.is_inner and len(leaf.addresses) > 1:
            first = leaf.addresses[leaf.attempt % len(leaf.addresses)]
            second = leaf.addresses[(leaf.attempt + 1) % len(leaf.addresses)]
            if address in (first, second):
                key = (node.address, self._number, leaf.id, leaf.attempt)
                request = request.replace(tie=Tie(key, second if address == first else first))
        self.calls += 1
        self._in_flight += 1
        future = node.network.call(node.address, address, request)
        leaf.copies[future] = (address, now_s)
        if future.done():
            self._answered(leaf, future)
            return
        future.add_done_callback(lambda done: self._answered(leaf, done))
        if self._timeouts is not None:
            self._timeouts.begin(now_s, leaf, future)
        may_hedge = not is_copy and not leaf.is_inner and (not self._policy.tied or len(leaf.addresses) > 1)
        if self._hedges is not None and may_hedge:
            self._hedges.begin(now_s, leaf, future)

    def _answered(self, leaf: _Leaf, future: asyncio.Future[Any]) -> None:
        copy = leaf.copies.pop(future, None)
        if self.is_over or copy is None:
            if not future.cancelled():
                future.exception()  # Nobody else will look at it.
            return
        self._in_flight -= 1
        address, sent_s = copy
        node, breaker = self._node, self._policy.breaker
        if not future.cancelled() and future.exception() is None and type(future.result()) is Withdrawn:
            node.circuits.given_up(address)
            if not leaf.copies:
                self._failed(
                    leaf, leaf.error or VendorDownError(f"{leaf.id!r}: no copy was started", vendor_id=leaf.id)
                )
            self._pump()
            return
        error = _failure(leaf.id, future)
        if error is None:
            if breaker is not None:
                node.circuits.succeeded(address)
            if not leaf.is_inner:
                node.observed.add(self._loop.time() - sent_s)
            self._accept(leaf.id, future.result())
            self._settle(leaf)
        else:
            if breaker is not None:
                if isinstance(error, VendorError):
                    node.circuits.failed(address, breaker, self._loop.time())
                else:
                    node.circuits.given_up(address)
            if not _is_worth_retrying(error):
                self._fail(leaf, error)
                if isinstance(error, QueryError) or not isinstance(error, MktsimError):
                    self._end()  # It fails wherever it runs.
                    return
            elif leaf.copies:
                leaf.error = error  # Another copy may still answer.
            else:
                self._failed(leaf, error)
        self._pump()

    def _failed(self, leaf: _Leaf, error: Exception) -> None:
        """Try again if anything is left to try with, or fail."""
        leaf.error = error
        policy, node = self._policy, self._node
        if leaf.attempt >= policy.retries or not node.budget.take():
            self._fail(leaf, error)
            return
        most_s = min(policy.backoff_cap_s, policy.backoff_s * 2.0 ** min(leaf.attempt, 1000))
        share = node.streams.uniform_at(f"retry/{leaf.attempt}", self._number, leaf.place) if most_s else 0.0
        leaf.attempt += 1
        resume_s = self._loop.time() + share * most_s
        if leaf.request.deadline_s is not None and resume_s >= leaf.request.deadline_s:
            self._fail(leaf, error)
            return
        leaf.timer = self._loop.call_at(resume_s, self._resume, leaf)

    def _resume(self, leaf: _Leaf) -> None:
        leaf.timer = None
        self._line.appendleft((leaf, False))
        self._pump()

    def _hedge(self, leaf: _Leaf, _first: asyncio.Future[Any]) -> None:
        if not leaf.done and len(leaf.copies) == 1:
            self._line.appendleft((leaf, True))
            self._pump()

    def _time_out(self, leaf: _Leaf, copy: asyncio.Future[Any]) -> None:
        """Take one attempt for failed."""
        address, _ = leaf.copies.pop(copy)
        self._in_flight -= 1
        copy.cancel()
        error = VendorTimeoutError(
            f"{leaf.id!r} did not answer an attempt within {self._policy.attempt_timeout_s:g} s", vendor_id=leaf.id
        )
        if self._policy.breaker is not None:
            self._node.circuits.failed(address, self._policy.breaker, self._loop.time())
        if leaf.copies:
            leaf.error = error
        elif not leaf.done:
            self._failed(leaf, error)
        self._pump()

    def _fail(self, leaf: _Leaf, error: Exception) -> None:
        self.failures[leaf.id] = error
        self._settle(leaf)

    def _settle(self, leaf: _Leaf) -> None:
        leaf.done = True
        self._drop(leaf)
        self._open -= 1
        if not self._open and not self._pumping:
            self._end()

    def _drop(self, leaf: _Leaf) -> None:
        """Give up what a leaf has under way."""
        if leaf.timer is not None:
            leaf.timer.cancel()
            leaf.timer = None
        copies, leaf.copies = leaf.copies, {}
        self._in_flight -= len(copies)
        for copy, (address, _) in copies.items():
            self._node.circuits.given_up(address)
            copy.cancel()

    # -- the end --------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        for id_ in self._asked.values():
            self.failures[id_] = _late(id_)
        breaker, now_s = self._policy.breaker, self._loop.time()
        for leaf in self._leaves:
            if not leaf.done:
                self.failures[leaf.id] = late = _late(leaf.id)
                late.__cause__ = leaf.error
                for address, _ in leaf.copies.values():
                    if breaker is not None:
                        self._node.circuits.failed(address, breaker, now_s)
        self._end()

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        if self._expiry is not None:
            self._expiry.cancel()
        for delays in (self._hedges, self._timeouts):
            if delays is not None:
                delays.stop()
        asked, self._asked = self._asked, {}
        for future in asked:
            future.cancel()
        for leaf in self._leaves:
            if not leaf.done:
                self._drop(leaf)
        self._line.clear()
        self._leaves.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._on_end is not None:
            self._on_end()


def _failure(id_: str, future: asyncio.Future[Any]) -> Exception | None:
    """Return why a finished call brought no partial, or None where it did."""
    if future.cancelled():
        return VendorTimeoutError(f"{id_!r} did not answer before the deadline", vendor_id=id_)
    error = future.exception()
    if error is None:
        answer = future.result()
        if type(answer) is Partial:
            return None
        return VendorError(f"{id_!r} answered with {type(answer).__name__}, which is no partial", vendor_id=id_)
    if isinstance(error, Exception):
        return error
    raise error


def _is_worth_retrying(error: Exception) -> bool:
    return isinstance(error, MktsimError) and not isinstance(
        error, QueryError | InvalidArgumentError | SchemaMismatchError
    )


def _late(id_: str) -> VendorTimeoutError:
    return VendorTimeoutError(f"{id_!r} did not answer before the deadline", vendor_id=id_)


def _open_circuit(leaf: _Leaf, circuits: Circuits) -> Exception:
    until_s = min(circuits.open.get(address, 0.0) for address in leaf.addresses)
    down = VendorDownError(
        f"{leaf.id!r} failed again and again and is not asked until {until_s:.3f} s on the loop's clock",
        vendor_id=leaf.id,
    )
    down.__cause__ = leaf.error
    return down
