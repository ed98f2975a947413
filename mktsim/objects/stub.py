"""Stubs: what another object looks like from outside, with calls that are promises.

Rules
-----
Calling a stub's method records the call and returns a promise at once. At the running loop's next tick everything
recorded is sent, **one message per destination**, whether or not anybody awaits it. A promise may be called further,
indexed, or be an argument of another call; what can be resolved at the receiver is, so that a chain of calls costs one
round trip. The error of a call that nobody awaits is counted and logged.

Theory of operation
-------------------
Each promise has a node in the graph of calls (`mktsim.objects.graph`), of which a flush makes messages. What an
earlier message answered becomes a literal; an object that stayed with its receiver is asked for again by repeating the
call that returned it, so that ``inventory = vendor.inventory()`` can be kept and used. A deadline set by
:func:`~mktsim.objects.context.deadline` travels along; when it passes, or when who awaits is cancelled, a message that
nobody else depends on is cancelled too, and its receiver undoes what it had begun.

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
from typing import Any, Literal

from mktsim.errors import InvalidArgumentError, NotCallableError, ObjectError, VendorTimeoutError
from mktsim.network import Network
from mktsim.objects.calls import CallMessage, Outcome
from mktsim.objects.graph import Batch, Flight, Node, Promise

_log = logging.getLogger("mktsim.objects")


class Stub(Promise):
    """Another object, or the promise of an answer; made by :meth:`Caller.stub` and by calling one.

    Parameters
    ----------
    node : Node
        Its place in the graph of calls.

    Examples
    --------
    A chain of calls is one message, and of a list of products only what was asked for travels back.

    >>> from mktsim import Marketplace
    >>> async def story():
    ...     async with Marketplace.open() as market:
    ...         acme = market.vendor("acme")
    ...         await acme.initialize()
    ...         await acme.create_product(name="Mouse", sku="SKU-1", stock=3)
    ...         before = market.network.stats.round_trips
    ...         units = await acme.inventory().available("SKU-1")
    ...         name = await acme.list_products()[0]["name"]
    ...         return units, name, market.network.stats.round_trips - before
    >>> asyncio.run(story())
    (3, 'Mouse', 2)
    """

    __slots__ = ()

    def __init__(self, node: Node) -> None:
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
        node: Node | None = self._node
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

    Examples
    --------
    >>> from mktsim.network import InProcessNetwork
    >>> caller = Caller(InProcessNetwork(), "reader")
    >>> acme = caller.stub("vendor/acme")
    >>> acme.inventory
    <stub 'vendor/acme'.inventory>
    >>> acme.list_products()
    Traceback (most recent call last):
    mktsim.errors.ObjectError: calls are sent by a running event loop: call from a coroutine, or from a notebook
    """

    def __init__(self, network: Network, source: str) -> None:
        self._network = network
        self._source = source
        self._recorded: list[Node] = []
        self._in_flight: set[asyncio.Future[Any]] = set()
        self.lost_errors = 0
        self.last_lost: deque[tuple[str, str, Exception]] = deque(maxlen=100)

    def stub(self, address: str) -> Stub:
        """Return the stub of the object at an address; nothing is sent."""
        return Stub(self.root(address))

    def root(self, address: str) -> Node:
        """Return the node that a stub of the object at an address holds."""
        return Node(self, address, "root")

    def extend(
        self,
        parent: Node,
        kind: Literal["call", "get", "item"],
        name: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Stub:
        """Record one more step after `parent`."""
        made = Node(self, parent.address, kind, parent=parent, name=name, args=args, kwargs=kwargs)
        stub = Stub(made)
        if kind == "call":
            parent.consumed = True
            for promise in made.builds_on[1:]:
                if promise.kind == "root":
                    raise InvalidArgumentError("an object itself cannot be an argument: pass its id")
                promise.consumed = True
        if kind == "call" or (parent.kind != "root" and not parent.sent):
            self.record(made)
        return stub

    async def answer(self, node: Node) -> Any:
        """Return the answer of a step, or raise its error."""
        if node.kind == "root":
            raise NotCallableError("an object itself cannot be awaited: await a call of one of its methods")
        node.awaited = True
        if node.outcome is None and not node.sent:
            self.record(node)
        waiter = node.on_outcome()
        try:
            async with asyncio.timeout_at(node.deadline_s):
                outcome = await waiter
        except TimeoutError:
            node.abandon()
            raise VendorTimeoutError(
                f"{node.address!r:.80} did not answer {node.name!r:.80} before the deadline: allow more time",
                vendor_id=node.address,
            ) from None
        except asyncio.CancelledError:
            node.abandon()
            raise
        if outcome.error is not None:
            raise outcome.error
        if outcome.capability:
            raise ObjectError(
                f"{node.name!r} is an object that stays with {node.address!r}: call its methods in the same expression"
            )
        return outcome.value

    @property
    def busy(self) -> bool:
        """Whether anything is recorded or not answered yet."""
        return bool(self._recorded or self._in_flight)

    async def drain(self) -> None:
        """Wait until everything recorded has been sent and answered."""
        while self.busy:
            if self._in_flight:
                await asyncio.wait(self._in_flight)
            await asyncio.sleep(0)

    def count_lost(self, address: str, name: str, error: Exception) -> None:
        """Count and log an error that nobody awaited."""
        self.lost_errors += 1
        self.last_lost.append((address, name, error))
        _log.error("nobody awaited %s of %s, which failed: %s: %s", name, address, type(error).__name__, error)

    def record(self, node: Node) -> None:
        """Send a node at the loop's next tick."""
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
        batches: dict[tuple[str, tuple[str, ...], int, float | None], Batch] = {}
        for node in recorded:
            if node.sent or node.outcome is not None or (node.kind == "get" and node.consumed and not node.awaited):
                continue
            key = (node.address, node.chain, id(node.delivery), node.deadline_s)
            batches.setdefault(key, Batch(node)).add(node)
        for batch in batches.values():
            if batch.steps:
                self._send(batch)

    def _send(self, batch: Batch) -> None:
        nodes = batch.nodes
        key = batch.delivery.next_key() if batch.delivery is not None else None
        # Nobody waits for a call whose promise is gone, so such a call may come back to where it started.
        chain = batch.chain if any(step.wanted for step in batch.steps) else ()
        message = CallMessage(tuple(batch.steps), chain, key, batch.deadline_s)
        future = self._network.call(self._source, batch.address, message)
        self._in_flight.add(future)
        flight = Flight(future, nodes)
        for node in nodes:
            node.flight = flight

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
