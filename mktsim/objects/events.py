"""Events: subscriptions, and the hub that hands an event to its handlers.

Rules
-----
An event is delivered at least once: until every handler has run without an error, or the attempts are used up and it
becomes a dead letter. Its *effect* happens exactly once as far as handlers work through stubs: the calls that a handler
makes carry idempotency keys made of the event and their order, and a receiver that has applied a key answers from its
inbox instead of acting again. Events of one sender with the same `vendorId` are delivered in the order they were sent.

What this does not do
---------------------
What a handler does by other means than stubs happens again at each delivery. What it calls without awaiting may still
be on its way when the event is settled: await what must not be lost. A handler must make its calls in the same order
each time, and handlers must be registered in the same order each time a marketplace is opened.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mktsim.errors import InvalidArgumentError
from mktsim.objects.context import Delivery, current_delivery, deadline_at
from mktsim.objects.durable import EVENT_NAME


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes
    ----------
    id : str
        Unique among all events: the sender's address and its number there.
    name : str
        ``"Order.placed"``.
    data : dict
        What the sender said about it.
    sender : str
        The sender's address.
    offset : int
        Its place in the market's log of events, from 1; 0 where there is none.

    Examples
    --------
    A handler is handed the event once the request that sent it has committed.

    >>> import asyncio
    >>> from mktsim import Marketplace
    >>> async def story():
    ...     seen = []
    ...     async with Marketplace.open() as market:
    ...         market.on.Vendor.changed(seen.append)
    ...         await market.vendor("acme").initialize()
    ...         await market.vendor("acme").suspend()
    ...         await market.idle()
    ...     return seen
    >>> [event] = asyncio.run(story())
    >>> event.name, event.sender, event.data["status"]
    ('Vendor.changed', 'vendor/acme', 'suspended')
    """

    id: str
    name: str
    data: dict[str, Any]
    sender: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class EventMessage:
    """An event on its way to the hub.

    Attributes
    ----------
    settled : int
        The lowest number that its sender has not settled yet.
    deadline_s : float or None
        When its sender will give this attempt up, in the loop's seconds.
    """

    sender: str
    seq: int
    name: str
    data: str
    settled: int
    deadline_s: float | None = None

    def content(self) -> dict[str, Any]:
        """Return the data, or raise :class:`InvalidArgumentError` where it is no JSON object."""
        try:
            data = json.loads(self.data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"event {self.seq!r:.40} of {self.sender!r:.80} is malformed: {error}") from None
        if not isinstance(data, dict):
            raise InvalidArgumentError(f"event {self.seq!r:.40} of {self.sender!r:.80} is malformed: no JSON object")
        return data


EventHandler = Callable[[Event], Any]


class NounEvents:
    """The events of one noun: ``on.Order``."""

    __slots__ = ("_noun", "_subscriptions")

    def __init__(self, subscriptions: Subscriptions, noun: str) -> None:
        self._subscriptions = subscriptions
        self._noun = noun

    def __getattr__(self, verb: str) -> Callable[[EventHandler], EventHandler]:
        if verb.startswith("_"):
            raise AttributeError(verb)
        return lambda handler: self._subscriptions.add(f"{self._noun}.{verb}", handler)


class Subscriptions:
    """Who wants to hear of which event; ``on.Order.placed(handler)`` adds one and returns it.

    Examples
    --------
    >>> on = Subscriptions()
    >>> @on.Order.placed
    ... async def tell(event): ...
    >>> len(on.handlers("Order.placed"))
    1
    """

    __slots__ = ("_handlers",)

    def __init__(self) -> None:
        self._handlers: dict[str, list[EventHandler]] = {}

    def __getattr__(self, noun: str) -> NounEvents:
        if noun.startswith("_"):
            raise AttributeError(noun)
        return NounEvents(self, noun)

    def add(self, name: str, handler: EventHandler) -> EventHandler:
        """Subscribe a function or coroutine function of one argument, the :class:`Event`."""
        if EVENT_NAME.fullmatch(name) is None:
            raise InvalidArgumentError(f"an event is named like 'Order.placed', not {name!r:.80}")
        if not callable(handler):
            raise InvalidArgumentError(f"a handler of {name} must be callable, not {handler!r:.80}")
        self._handlers.setdefault(name, []).append(handler)
        return handler

    def handlers(self, name: str) -> tuple[EventHandler, ...]:
        """Return the handlers of an event in the order in which they subscribed."""
        return tuple(self._handlers.get(name, ()))

    async def deliver(self, message: EventMessage, offset: int = 0, content: dict[str, Any] | None = None) -> None:
        """Run every handler of an event, one after the other; an error of one stops the delivery.

        `content` is the message's own, where the caller has read it already.

        Raises
        ------
        InvalidArgumentError
            The event is malformed.
        """
        data = message.content() if content is None else content
        event = Event(f"{message.sender}#{message.seq}", message.name, data, message.sender, offset)
        with deadline_at(message.deadline_s):
            for number, handler in enumerate(self.handlers(message.name)):
                await self.run(handler, event, Delivery(message.sender, message.seq, message.settled, str(number)))

    async def run(self, handler: EventHandler, event: Event, delivery: Delivery) -> None:
        """Run one handler; the calls it makes carry the keys of `delivery`."""
        token = current_delivery.set(delivery)
        try:
            result = handler(event)
            if inspect.isawaitable(result):
                await result
        finally:
            current_delivery.reset(token)
