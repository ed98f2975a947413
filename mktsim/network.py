"""Addresses and messages between hosts: the seam that simulation swaps.

Rules
-----
Whatever one host asks of another travels through :meth:`Network.call`: scatter requests, stub calls, events. A message
is a plain picklable object; an answer is the handler's return value or its exception.

Theory of operation
-------------------
A host registers a handler for an address (``"coordinator"``) or for a prefix (``"vendor/"``, which then serves every
address below it, so that a million vendors need no million registrations). `call` returns a future, not a task: a
scatter over many leaves then costs a callback each, not a coroutine each. The in-process network runs a plain handler
at once; a coroutine handler becomes a task. `mktsim.sim` has the other implementation, in which both directions take
simulated time and may fail.

Bytes are counted by :class:`Metered`, a network around another, live or simulated: it encodes each message by the codec
of :func:`encoded` to learn its size, and hands on the message itself.

What this does not do
---------------------
It does not serialise: in one process the receiver gets the sender's object, and must not change it.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Final, Protocol

from mktsim.errors import InvalidArgumentError, VendorDownError

#: Answers one message sent to `target`: returns the answer or an awaitable of it, or raises.
Handler = Callable[[str, Any], Any | Awaitable[Any]]


@dataclass(slots=True)
class NetworkStats:
    """What travelled since the network was made.

    Attributes
    ----------
    round_trips : int
        Calls sent; each is one message there and one back.
    failures : int
        Calls that ended in an exception.
    request_bytes, answer_bytes : int
        What the requests and their answers have on the wire, errors included; 0 unless the network is `Metered`.
    """

    round_trips: int = 0
    failures: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0


class Network(Protocol):
    """How a host reaches another. Implemented in process here, and on simulated time in `mktsim.sim`."""

    stats: NetworkStats

    def register(self, address: str, handler: Handler) -> None:
        """Serve `address`; one that ends in ``/`` serves every address that starts with it."""

    def unregister(self, address: str) -> None:
        """Stop serving `address`."""

    def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
        """Send `message` from `source` to `target` and return the future of the answer."""


class Directory:
    """Which handler serves an address: exact first, then the longest registered prefix."""

    def __init__(self) -> None:
        self._exact: dict[str, Handler] = {}
        self._prefixes: dict[str, Handler] = {}

    def register(self, address: str, handler: Handler) -> None:
        """Serve `address`, or everything below it where it ends in ``/``."""
        if not address:
            raise InvalidArgumentError("an address must not be empty")
        table = self._prefixes if address.endswith("/") else self._exact
        if address in table:
            raise InvalidArgumentError(f"address {address!r} is already served")
        table[address] = handler

    def unregister(self, address: str) -> None:
        """Stop serving `address`; unknown addresses are ignored."""
        self._exact.pop(address, None)
        self._prefixes.pop(address, None)

    def find(self, address: str) -> Handler:
        """Return the handler of `address`, or raise :class:`VendorDownError` where nobody serves it."""
        handler = self._exact.get(address)
        if handler is not None:
            return handler
        cut = address.rfind("/")
        while cut >= 0:
            handler = self._prefixes.get(address[: cut + 1])
            if handler is not None:
                return handler
            cut = address.rfind("/", 0, cut)
        raise VendorDownError(f"nobody serves the address {address!r}", vendor_id=address)


class InProcessNetwork:
    """All hosts in this process and no time between them.

    Examples
    --------
    >>> async def demo():
    ...     network = InProcessNetwork()
    ...     network.register("echo", lambda target, message: message * 2)
    ...     return await network.call("me", "echo", 21)
    >>> asyncio.run(demo())
    42
    """

    def __init__(self) -> None:
        self.stats = NetworkStats()
        self._directory = Directory()

    def register(self, address: str, handler: Handler) -> None:
        """Serve `address`; see :meth:`Network.register`."""
        self._directory.register(address, handler)

    def unregister(self, address: str) -> None:
        """Stop serving `address`."""
        self._directory.unregister(address)

    def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
        """Run the target's handler now; the future is done on return unless the handler is a coroutine."""
        self.stats.round_trips += 1
        future: asyncio.Future[Any]
        try:
            answer = self._directory.find(target)(target, message)
        except Exception as error:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error)
        else:
            if asyncio.isfuture(answer):
                future = answer
            elif asyncio.iscoroutine(answer):
                future = asyncio.ensure_future(answer)
            else:
                future = asyncio.get_running_loop().create_future()
                future.set_result(answer)
                return future
        future.add_done_callback(self._count_failure)
        return future

    def _count_failure(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self.stats.failures += 1


#: What goes before each message on the wire: its length and the number of its call, four bytes each.
FRAME_BYTES: Final = 8


class Metered:
    """Another network, whose `stats` it makes count bytes beside round trips; a message costs its encoding.

    Parameters
    ----------
    network : Network
        What carries the messages.

    Raises
    ------
    InvalidArgumentError
        It is no network.

    Examples
    --------
    >>> async def demo():
    ...     network = Metered(InProcessNetwork())
    ...     network.register("echo", lambda target, message: message * 2)
    ...     await network.call("me", "echo", "ab")  # ["echo","ab"] and ["abab"], each in a frame
    ...     return network.stats.round_trips, network.stats.request_bytes, network.stats.answer_bytes
    >>> asyncio.run(demo())
    (1, 21, 16)
    """

    def __init__(self, network: Network) -> None:
        if not all(hasattr(network, name) for name in ("stats", "register", "unregister", "call")):
            raise InvalidArgumentError(f"Metered is put around a Network, not around {network!r:.80}")
        self.stats = network.stats
        self._network = network

    def register(self, address: str, handler: Handler) -> None:
        """Serve `address`; see :meth:`Network.register`."""
        self._network.register(address, handler)

    def unregister(self, address: str) -> None:
        """Stop serving `address`."""
        self._network.unregister(address)

    def call(self, source: str, target: str, message: Any) -> asyncio.Future[Any]:
        """Send `message` and count it; its answer is counted when it has come, one that never comes is not."""
        self.stats.request_bytes += FRAME_BYTES + len(encoded([target, message]))
        future = self._network.call(source, target, message)
        if future.done():
            self._count_answer(future)
        else:
            future.add_done_callback(self._count_answer)
        return future

    def _count_answer(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            error = future.exception()
            answer = [future.result()] if error is None else [None, error]
            self.stats.answer_bytes += FRAME_BYTES + len(encoded(answer))


def encoded(message: Any) -> bytes:
    """Return a message as the wire would carry it: compact JSON in UTF-8, or pickled where JSON cannot say it.

    A dataclass is an object of its class's name under ``$`` and its fields, without those that have their defaults;
    an exception its class's name and its text; bytes are in base64. The same message has the same bytes everywhere.

    Raises
    ------
    InvalidArgumentError
        It cannot even be pickled.

    Examples
    --------
    >>> encoded({"sku": "S", "prices": (1, 2.5, None), "image": b"\\0"}).decode()
    '{"sku":"S","prices":[1,2.5,null],"image":{"$":"bytes","base64":"AA=="}}'
    """
    try:
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return pickle.dumps(message, protocol=5)
    except Exception as error:
        raise InvalidArgumentError(f"a {type(message).__name__} cannot travel: {error}") from error


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value it does not know."""
    name = type(value).__name__
    if isinstance(value, bytes):
        return {"$": "bytes", "base64": b64encode(value).decode()}
    if isinstance(value, BaseException):
        return {"$": name, "text": str(value)}
    if is_dataclass(value):
        given = ((each, getattr(value, each.name)) for each in fields(value))
        return {"$": name} | {each.name: found for each, found in given if not _is_default(each, found)}
    raise TypeError(name)


def _is_default(declared: Any, value: Any) -> bool:
    if declared.default_factory is not MISSING:
        return bool(value == declared.default_factory())
    return declared.default is not MISSING and type(value) is type(declared.default) and value == declared.default
