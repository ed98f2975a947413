"""What travels with a call without being written in it: who waits for it, until when, and on behalf of which event."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Final

from mktsim.errors import InvalidArgumentError
from mktsim.objects.calls import Key

#: The addresses whose requests wait for the calls made now.
current_chain: ContextVar[tuple[str, ...]] = ContextVar("mktsim_chain", default=())

#: When the calls made now must be answered, in the loop's seconds; None for whenever.
current_deadline: ContextVar[float | None] = ContextVar("mktsim_deadline", default=None)


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


def detached() -> Context:
    """Return a copy of the present context for work that nobody waits for and that acts on behalf of no event."""
    context = copy_context()
    context.run(current_chain.set, ())
    context.run(current_delivery.set, None)
    context.run(current_deadline.set, None)
    return context


_LONGEST_S: Final = 1e9


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let the calls made in the block, and all that they call in turn, end within `seconds` from now.

    A call that is not answered by then raises :class:`~mktsim.errors.VendorTimeoutError`; what it had begun and not yet
    committed is undone. An inner deadline can only be earlier than the outer one.

    Parameters
    ----------
    seconds : float
        Of the running loop's clock, above 0.

    Yields
    ------
    None

    Raises
    ------
    InvalidArgumentError
        If `seconds` is no positive number.

    Examples
    --------
    >>> from mktsim import Marketplace, VendorObject
    >>> class Sleeper(VendorObject):
    ...     async def think(self):
    ...         await asyncio.sleep(60)
    >>> async def story():
    ...     async with Marketplace.open(vendor_class=Sleeper) as market:
    ...         acme = market.vendor("acme")
    ...         await acme.initialize()
    ...         with deadline(0.01):
    ...             await acme.think()
    >>> from mktsim.errors import VendorTimeoutError
    >>> try:
    ...     asyncio.run(story())
    ... except VendorTimeoutError as error:
    ...     print(error.vendor_id, error)
    vendor/acme 'vendor/acme' did not answer 'think' before the deadline: allow more time
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST_S:
        raise InvalidArgumentError(f"a deadline is a number of seconds above 0, not {seconds!r:.80}")
    with deadline_at(asyncio.get_running_loop().time() + seconds):
        yield


@contextmanager
def deadline_at(when_s: float | None) -> Iterator[None]:
    """Let the calls made in the block end by a time of the loop, or by the present deadline where that is earlier."""
    outer = current_deadline.get()
    earliest = min(math.inf if when_s is None else when_s, math.inf if outer is None else outer)
    token = current_deadline.set(None if earliest == math.inf else earliest)
    try:
        yield
    finally:
        current_deadline.reset(token)
