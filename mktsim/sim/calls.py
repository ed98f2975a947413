"""What travels over the simulated network, and what stands at its ends: plain records, kept small for their number."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mktsim.sim.hosts import Address, Machine

#: What SimPy calls when an event comes to the head of its queue.
Stage = tuple[Callable[[Any], None], ...]


class Tie:
    """What two calls share of which the one that is served first cancels the other.

    Parameters
    ----------
    answer : object
        What the other is answered with; its future is cancelled where there is none.
    """

    __slots__ = ("__weakref__", "answer", "began_s")

    def __init__(self, answer: Any = None) -> None:
        self.began_s: float | None = None
        self.answer = answer


class Sender:
    """A host as the origin of calls: its processor and its connections."""

    __slots__ = ("address", "busy_until_s", "faults", "in_flight", "waiting", "zone")

    def __init__(self, address: str, zone: int, faults: Any) -> None:
        self.address = address
        self.zone = zone
        self.faults = faults
        self.busy_until_s = 0.0
        self.in_flight = 0
        self.waiting: deque[Call] = deque()


class Call:
    """One call on its way; the SimPy event of its next hop. `answer` is its service time until it is served."""

    __slots__ = (
        "answer",
        "arrival_s",
        "attempt",
        "back_s",
        "callbacks",
        "draws",
        "end_s",
        "error",
        "future",
        "ghost",
        "host",
        "machine",
        "message",
        "number",
        "request",
        "sender",
        "target",
        "tie",
    )
    _ok = True  # What SimPy asks an event: it did not fail. How the call ended is in `error`.
    callbacks: Stage
    answer: Any
    arrival_s: float
    attempt: int
    back_s: float
    draws: Draws
    end_s: float
    machine: Machine

    def __init__(
        self,
        future: asyncio.Future[Any],
        sender: Sender,
        host: Address,
        target: str,
        message: Any,
        request: int,
        number: float,
        tie: Tie | None,
    ) -> None:
        self.future = future
        self.sender = sender
        self.host = host
        self.target = target
        self.message = message
        self.request = request
        self.number = number
        self.tie = tie
        self.error: BaseException | None = None
        self.ghost = False  # Whether it is a duplicate, made by the network.


class Event:
    """A SimPy event of the network's own that carries one thing."""

    __slots__ = ("callbacks", "what")
    _ok = True

    def __init__(self, what: Any, callbacks: Stage) -> None:
        self.what = what
        self.callbacks = callbacks


@dataclass(slots=True)
class Draws:
    """What one request's calls to a group take, in seconds, and how often each host was called."""

    hops: dict[int, tuple[list[float], list[float], list[float]]]  # by attempt and zone
    attempts: list[int]
    in_flight: int = 0
