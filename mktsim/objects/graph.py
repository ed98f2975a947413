"""The graph of recorded calls: its nodes, and how those for one destination become one message.

Theory of operation
-------------------
Each promise has a node. A flush numbers the nodes that go to one destination, parents first, and turns edges between
them into :class:`~mktsim.objects.calls.Ref`. An edge to a node of an earlier message or of another destination waits
for that node's answer. Strong references point to parents only, so that a promise nobody holds is freed at once; that
is how a flush knows which answers are wanted.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from mktsim.errors import InvalidArgumentError
from mktsim.objects.calls import SELF, Outcome, Ref, Step, apply
from mktsim.objects.context import current_chain, current_deadline, current_delivery

if TYPE_CHECKING:
    from mktsim.objects.stub import Caller

_MAX_DEPTH: Final = 100


@dataclass(slots=True, eq=False)
class Flight:
    """A message on its way and the nodes it carries."""

    future: asyncio.Future[Any]
    nodes: list[Node] = field(default_factory=list)

    def give_up_if_unwanted(self) -> None:
        """Cancel the call once nobody waits for any of its answers and none of them was sent to be forgotten."""
        if not any(node.alive for node in self.nodes):
            self.future.cancel()


class Promise:
    """Base of :class:`~mktsim.objects.stub.Stub`: what holds a node."""

    __slots__ = ("__weakref__", "_node")
    _node: Node


class Node:
    """One step of the call graph; strong references point to parents only, so that dropped promises are freed."""

    __slots__ = (
        "__weakref__",
        "abandoned",
        "address",
        "args",
        "awaited",
        "builds_on",
        "caller",
        "chain",
        "consumed",
        "deadline_s",
        "delivery",
        "depth",
        "flight",
        "kind",
        "kwargs",
        "name",
        "outcome",
        "parent",
        "sent",
        "stub",
        "waiters",
    )  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        address: str,
        kind: Literal["root", "call", "get", "item"],
        *,
        parent: Node | None = None,
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
        self.abandoned = False
        self.flight: Flight | None = None
        self.outcome: Outcome | None = None
        self.waiters: list[asyncio.Future[Outcome]] = []
        self.stub: weakref.ref[Promise] | None = None
        self.chain = current_chain.get()
        self.delivery = current_delivery.get()
        self.deadline_s = current_deadline.get()
        #: The parent and the promises among the arguments.
        self.builds_on: list[Node] = [] if parent is None else [parent]
        if args or kwargs:
            self.builds_on += promises_in((args, self.kwargs))
        self.depth: int = 1 + max((node.depth for node in self.builds_on), default=0)
        if self.depth > _MAX_DEPTH:
            raise InvalidArgumentError(f"a chain of more than {_MAX_DEPTH} calls: await one of them in between")

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the answer or holds the promise of it."""
        return bool(self.waiters) or (self.stub is not None and self.stub() is not None)

    @property
    def alive(self) -> bool:
        """Whether somebody waits for the answer, or nobody ever meant to."""
        if any(not waiter.done() for waiter in self.waiters):
            return True
        return self.kind == "call" and not self.consumed and not self.abandoned

    def abandon(self) -> None:
        """Give up waiting; the call itself is cancelled if nothing else depends on its message."""
        self.abandoned = True
        if self.flight is not None and self.outcome is None:
            self.flight.give_up_if_unwanted()

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
        self.flight = None
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


class Batch:
    """The steps of one message, numbered parents first."""

    def __init__(self, first: Node) -> None:
        self.address = first.address
        self.deadline_s = first.deadline_s
        self.chain = first.chain
        self.delivery = first.delivery
        self.steps: list[Step] = []
        self.nodes: list[Node] = []
        self._numbers: dict[int, int] = {}

    def add(self, node: Node) -> None:
        """Add a node and what it builds on, or put it off until what it builds on is known."""
        needed: list[Node] = []
        blocked = self._blocker(node, needed)
        if blocked is None:
            for each in needed:
                self._number(each)
        else:
            if not blocked.sent:
                blocked.awaited = True  # a mere attribute is sent only if somebody asks for it
                blocked.caller.record(blocked)
            blocked.on_outcome().add_done_callback(lambda _done: node.caller.record(node))

    def _blocker(self, node: Node, needed: list[Node]) -> Node | None:
        """Collect the steps to send for `node`, parents first; return the first that must be answered before."""
        if id(node) in self._numbers or node in needed:
            return None
        for other in node.builds_on:
            if other.kind == "root":
                continue
            if other.outcome is None:
                if id(other) not in self._numbers and (
                    other.sent
                    or other.address != self.address
                    or other.delivery is not self.delivery
                    or other.deadline_s != self.deadline_s
                ):
                    return other
            elif other.outcome.error is not None or not other.outcome.capability:
                continue
            blocked = self._blocker(other, needed)
            if blocked is not None:
                return blocked
        failed = next((other.outcome for other in node.builds_on if other.outcome and other.outcome.error), None)
        parent = node.parent
        if failed is not None:
            node.settle(Outcome(error=failed.error))
        elif parent is not None and parent.outcome is not None and not parent.outcome.capability:
            node.settle(_locally(node, parent.outcome.value))
        else:
            needed.append(node)
        return None

    def _number(self, node: Node) -> None:
        if id(node) in self._numbers:
            return
        parent = node.parent
        target = SELF if parent is None or parent.kind == "root" else self._numbers[id(parent)]
        args, kwargs = node.args, node.kwargs
        if len(node.builds_on) > 1:
            args = tuple(self._encoded(each) for each in args)
            kwargs = {name: self._encoded(each) for name, each in kwargs.items()}
        assert node.kind != "root"
        self._numbers[id(node)] = len(self.steps)
        self.steps.append(Step(node.kind, target, node.name, args, kwargs, node.wanted))
        self.nodes.append(node)
        node.sent = True

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Promise):
            node = value._node
            if node.outcome is not None and not node.outcome.capability:
                return node.outcome.value
            return Ref(self._numbers[id(node)])
        if isinstance(value, list | tuple):
            return type(value)(self._encoded(each) for each in value)
        if isinstance(value, dict):
            return {key: self._encoded(each) for key, each in value.items()}
        return value


def _locally(node: Node, value: Any) -> Outcome:
    """Apply a step to an answer that has already arrived."""
    assert node.kind != "root"
    try:
        return Outcome(apply(Step(node.kind, SELF, node.name), value, node.args, node.kwargs))
    except Exception as error:
        return Outcome(error=error)


def promises_in(value: Any) -> list[Node]:
    """Return the nodes of the promises in nested lists, tuples and dicts."""
    found: list[Node] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Node]) -> None:
    if isinstance(value, str):  # what most arguments are
        return
    if isinstance(value, Promise):
        found.append(value._node)
    elif isinstance(value, list | tuple):
        for each in value:
            _collect(each, found)
    elif isinstance(value, dict):
        for each in value.values():
            _collect(each, found)
