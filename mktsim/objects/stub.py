"""Stubs: what another object looks like from outside, with calls that are promises.

Rules
-----
Calling a stub's method records the call and returns a promise at once. At the running loop's next tick everything
recorded is sent, **one message per destination**, whether or not anybody awaits it. A promise may be called further,
indexed, or be an argument of another call; what can be resolved at the receiver is, so that a chain of calls costs one
round trip. The error of a call that nobody awaits is counted and logged.

Theory of operation
-------------------
Each promise has a node in the graph of calls. A flush numbers the nodes that go to one destination, parents first, and
turns edges between them into :class:`Ref`. An edge to a node of an earlier message or of another destination waits for
that node's answer: data becomes a literal; an object that stayed with its receiver is asked for again by repeating the
call that returned it, so that ``inventory = vendor.inventory()`` can be kept and used.

An answer is sent back only if its promise is still referenced when the message leaves: ``v.list_products()[0]`` ships
one product, for nobody holds the promise of the list.

Worked example
--------------
``await market.vendor("acme").inventory().available("SKU-123")`` makes two nodes and one message with the steps
``0: self.inventory()`` and ``1: [0].available("SKU-123")``, of which only the second is wanted.

What this does not do
---------------------
A call whose message was lost is not sent again: what must not be lost is an event (`mktsim.objects.events`).
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

from mktsim.errors import InvalidArgumentError, NotCallableError, ObjectError
from mktsim.network import Network
from mktsim.objects.calls import SELF, CallMessage, Key, Outcome, Ref, Step, apply

_MAX_DEPTH: Final = 100
_log = logging.getLogger("mktsim.objects")

#: The addresses whose requests wait for the calls made now.
current_chain: ContextVar[tuple[str, ...]] = ContextVar("mktsim_chain", default=())


@dataclass(slots=True)
class Delivery:
    """The delivery of one event, within which calls are given idempotency keys in the order of their messages."""

    sender: str
    seq: int
    settled: int
    prefix: str
    messages: int = 0

    def next_key(self) -> Key:
        """Return the key of the next message."""
        self.messages += 1
        return Key(self.sender, self.seq, f"{self.prefix}.{self.messages}", self.settled)


#: The delivery that the running handler belongs to.
current_delivery: ContextVar[Delivery | None] = ContextVar("mktsim_delivery", default=None)


class _Node:
    """One step of the call graph; strong references point to parents only, so that dropped promises are freed."""

    __slots__ = (
        "__weakref__", "address", "args", "awaited", "caller", "chain", "consumed", "delivery", "depth", "kind",
        "kwargs", "name", "outcome", "parent", "sent", "stub", "waiters",
    )  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        address: str,
        kind: Literal["root", "call", "get", "item"],
        *,
        parent: _Node | None = None,
        name: Any = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.caller = caller
        self.address = address
        self.kind = kind
        self.parent = parent
        self.name = name
        self.args = args
        self.kwargs = kwargs or {}
        self.consumed = False
        self.awaited = False
        self.sent = False
        self.outcome: Outcome | None = None
        self.waiters: list[asyncio.Future[Outcome]] = []
        self.stub: weakref.ref[Stub] | None = None
        self.chain = current_chain.get()
        self.delivery = current_delivery.get()
        self.depth: int = 1 + max((node.depth for node in self.builds_on()), default=0)
        if self.depth > _MAX_DEPTH:
            raise InvalidArgumentError(f"a chain of more than {_MAX_DEPTH} calls: await one of them in between")

    def builds_on(self) -> list[_Node]:
        """Return the parent and the promises among the arguments."""
        return ([self.parent] if self.parent else []) + _promises((self.args, self.kwargs))

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the answer or holds the promise of it."""
        return bool(self.waiters) or (self.stub is not None and self.stub() is not None)

    def on_outcome(self) -> asyncio.Future[Outcome]:
        """Return a new future of the outcome."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self.outcome is not None:
            future.set_result(self.outcome)
        else:
            self.waiters.append(future)
        return future

    def settle(self, outcome: Outcome) -> None:
        """Record the outcome, wake who waits for it, and report an error that nobody will ask for."""
        self.outcome = outcome
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(outcome)
        self.waiters.clear()
        if self.stub is None or self.stub() is None:
            self.report()

    def report(self, _dead: object = None) -> None:
        """Count and log the error of a call whose promise is gone without having been awaited."""
        error = self.outcome.error if self.outcome is not None else None
        if error is not None and self.kind == "call" and not self.awaited and not self.consumed:
            self.awaited = True  # once is enough
            self.caller.count_lost(self.address, str(self.name), error)


class Stub:
    """Another object, or the promise of an answer; made by :meth:`Caller.stub` and by calling one."""

    __slots__ = ("__weakref__", "_node")

    def __init__(self, node: _Node) -> None:
        self._node = node
        node.stub = weakref.ref(self, node.report)

    def __getattr__(self, name: str) -> Stub:
        if name.startswith("_"):
            raise NotCallableError(f"{name!r:.80} starts with an underscore: it is never open to callers")
        return self._node.caller.extend(self._node, "get", name)

    def __getitem__(self, key: int | str) -> Stub:
        return self._node.caller.extend(self._node, "item", key)

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        node = self._node
        if node.kind != "get" or node.parent is None:
            raise NotCallableError("only a method can be called: name one first, as in vendor.list_products()")
        node.consumed = True
        return node.caller.extend(node.parent, "call", node.name, args, kwargs)

    def __iter__(self) -> Any:
        raise NotCallableError("a promise cannot be iterated over: await it first")

    def __await__(self) -> Generator[Any, None, Any]:
        return self._node.caller.answer(self._node).__await__()

    def __repr__(self) -> str:
        node: _Node | None = self._node
        path = ""
        while node is not None and node.kind != "root":
            path = {"call": f".{node.name}(...)", "get": f".{node.name}"}.get(node.kind, f"[{node.name!r}]") + path
            node = node.parent
        return f"<stub {self._node.address!r}{path}>"


class Caller:
    """Sends the calls that one host makes.

    Parameters
    ----------
    network : Network
        What carries them.
    source : str
        The address of this host.

    Attributes
    ----------
    lost_errors : int
        Calls that nobody awaited and that failed.
    last_lost : deque of (str, str, Exception)
        Address, method and error of the last hundred of them.
    """

    def __init__(self, network: Network, source: str) -> None:
        self._network = network
        self._source = source
        self._recorded: list[_Node] = []
        self._in_flight: set[asyncio.Future[Any]] = set()
        self.lost_errors = 0
        self.last_lost: deque[tuple[str, str, Exception]] = deque(maxlen=100)

    def stub(self, address: str) -> Stub:
        """Return the stub of the object at an address; nothing is sent."""
        return Stub(_Node(self, address, "root"))

    def extend(
        self,
        parent: _Node,
        kind: Literal["call", "get", "item"],
        name: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Stub:
        """Record one more step after `parent`."""
        made = _Node(self, parent.address, kind, parent=parent, name=name, args=args, kwargs=kwargs)
        stub = Stub(made)
        if kind == "call":
            parent.consumed = True
            for promise in _promises((args, made.kwargs)):
                if promise.kind == "root":
                    raise InvalidArgumentError("an object itself cannot be an argument: pass its id")
                promise.consumed = True
        if kind == "call" or (parent.kind != "root" and not parent.sent):
            self._record(made)
        return stub

    async def answer(self, node: _Node) -> Any:
        """Return the answer of a step, or raise its error."""
        if node.kind == "root":
            raise NotCallableError("an object itself cannot be awaited: await a call of one of its methods")
        node.awaited = True
        if node.outcome is None and not node.sent:
            self._record(node)
        outcome = await node.on_outcome()
        if outcome.error is not None:
            raise outcome.error
        if outcome.capability:
            raise ObjectError(
                f"{node.name!r} is an object that stays with {node.address!r}: call its methods in the same expression"
            )
        return outcome.value

    async def drain(self) -> None:
        """Wait until everything recorded has been sent and answered."""
        while self._recorded or self._in_flight:
            if self._in_flight:
                await asyncio.wait(self._in_flight)
            await asyncio.sleep(0)

    def count_lost(self, address: str, name: str, error: Exception) -> None:
        """Count and log an error that nobody awaited."""
        self.lost_errors += 1
        self.last_lost.append((address, name, error))
        _log.error("nobody awaited %s of %s, which failed: %s: %s", name, address, type(error).__name__, error)

    def _record(self, node: _Node) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ObjectError(
                "calls are sent by a running event loop: call from a coroutine, or from a notebook"
            ) from None
        if not self._recorded:
            loop.call_soon(self._flush)
        self._recorded.append(node)

    def _flush(self) -> None:
        recorded, self._recorded = self._recorded, []
        batches: dict[tuple[str, tuple[str, ...], int], _Batch] = {}
        for node in recorded:
            if node.sent or node.outcome is not None or (node.kind == "get" and node.consumed and not node.awaited):
                continue
            key = (node.address, node.chain, id(node.delivery))
            batches.setdefault(key, _Batch(node)).add(node)
        for batch in batches.values():
            if batch.steps:
                self._send(batch)

    def _send(self, batch: _Batch) -> None:
        nodes = batch.nodes
        key = batch.delivery.next_key() if batch.delivery is not None else None
        # Nobody waits for a call whose promise is gone, so such a call may come back to where it started.
        chain = batch.chain if any(step.wanted for step in batch.steps) else ()
        future = self._network.call(self._source, batch.address, CallMessage(tuple(batch.steps), chain, key))
        self._in_flight.add(future)

        def answered(done: asyncio.Future[Any]) -> None:
            self._in_flight.discard(done)
            if done.cancelled():
                outcomes = [Outcome(error=ObjectError(f"the call of {batch.address!r} was cancelled"))] * len(nodes)
            elif (error := done.exception()) is not None:
                if not isinstance(error, Exception):
                    raise error
                outcomes = [Outcome(error=error)] * len(nodes)
            else:
                outcomes = done.result()
            for node, outcome in zip(nodes, outcomes, strict=True):
                if node.outcome is None:
                    node.settle(outcome)

        future.add_done_callback(answered)


class _Batch:
    """The steps of one message, numbered parents first."""

    def __init__(self, first: _Node) -> None:
        self.address = first.address
        self.chain = first.chain
        self.delivery = first.delivery
        self.steps: list[Step] = []
        self.nodes: list[_Node] = []
        self._numbers: dict[int, int] = {}

    def add(self, node: _Node) -> None:
        """Add a node and what it builds on, or put it off until what it builds on is known."""
        needed: list[_Node] = []
        blocked = self._blocker(node, needed)
        if blocked is None:
            for each in needed:
                self._number(each)
        else:
            if not blocked.sent:
                blocked.awaited = True  # a mere attribute is sent only if somebody asks for it
                blocked.caller._record(blocked)
            blocked.on_outcome().add_done_callback(lambda _done: node.caller._record(node))

    def _blocker(self, node: _Node, needed: list[_Node]) -> _Node | None:
        """Collect the steps to send for `node`, parents first; return the first that must be answered before."""
        if id(node) in self._numbers or node in needed:
            return None
        for other in node.builds_on():
            if other.kind == "root":
                continue
            if other.outcome is None:
                if id(other) not in self._numbers and (
                    other.sent or other.address != self.address or other.delivery is not self.delivery
                ):
                    return other
            elif other.outcome.error is not None or not other.outcome.capability:
                continue
            blocked = self._blocker(other, needed)
            if blocked is not None:
                return blocked
        failed = next((other.outcome for other in node.builds_on() if other.outcome and other.outcome.error), None)
        parent = node.parent
        if failed is not None:
            node.settle(Outcome(error=failed.error))
        elif parent is not None and parent.outcome is not None and not parent.outcome.capability:
            node.settle(_locally(node, parent.outcome.value))
        else:
            needed.append(node)
        return None

    def _number(self, node: _Node) -> None:
        if id(node) in self._numbers:
            return
        parent = node.parent
        target = SELF if parent is None or parent.kind == "root" else self._numbers[id(parent)]
        args = tuple(self._encoded(each) for each in node.args)
        kwargs = {name: self._encoded(each) for name, each in node.kwargs.items()}
        assert node.kind != "root"
        self._numbers[id(node)] = len(self.steps)
        self.steps.append(Step(node.kind, target, node.name, args, kwargs, node.wanted))
        self.nodes.append(node)
        node.sent = True

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Stub):
            node = value._node
            if node.outcome is not None and not node.outcome.capability:
                return node.outcome.value
            return Ref(self._numbers[id(node)])
        if isinstance(value, list | tuple):
            return type(value)(self._encoded(each) for each in value)
        if isinstance(value, dict):
            return {key: self._encoded(each) for key, each in value.items()}
        return value


def _locally(node: _Node, value: Any) -> Outcome:
    """Apply a step to an answer that has already arrived."""
    assert node.kind != "root"
    try:
        return Outcome(apply(Step(node.kind, SELF, node.name), value, node.args, node.kwargs))
    except Exception as error:
        return Outcome(error=error)


def _promises(value: Any) -> list[_Node]:
    """Return the nodes of the promises in nested lists, tuples and dicts."""
    if isinstance(value, Stub):
        return [value._node]
    if isinstance(value, list | tuple):
        return [node for each in value for node in _promises(each)]
    if isinstance(value, dict):
        return [node for each in value.values() for node in _promises(each)]
    return []
