"""What ``Marketplace.open`` returns: to be awaited, or used by ``async with``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from mktsim.errors import NotOpenError

if TYPE_CHECKING:
    from mktsim.market.marketplace import Marketplace


_WAY_OUT: Final = "write `await Marketplace.open(...)`, or `async with Marketplace.open(...) as market:`"


class Opening:
    """A marketplace about to be opened: ``await`` it, or use it by ``async with``.

    Examples
    --------
    >>> from mktsim import Marketplace
    >>> Marketplace.open().query("SELECT 1")
    Traceback (most recent call last):
    mktsim.errors.NotOpenError: the marketplace is not open yet, and so has no 'query': write `await \
Marketplace.open(...)`, or `async with Marketplace.open(...) as market:`
    """

    __slots__ = ("_make", "_market")

    def __init__(self, make: Callable[[], Marketplace]) -> None:
        self._make = make
        self._market: Marketplace | None = None

    def __repr__(self) -> str:
        return f"<a marketplace that is not open yet: {_WAY_OUT}>"

    def __getattr__(self, name: str) -> Any:
        """Say what is missing where somebody takes this for the marketplace; it has every attribute it can have."""
        if name.startswith("_"):  # Copying, pickling and displays look for theirs, and have to find nothing.
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        raise NotOpenError(f"the marketplace is not open yet, and so has no {name!r:.80}: {_WAY_OUT}")

    def __await__(self) -> Generator[Any, None, Marketplace]:
        return self._open().__await__()

    async def __aenter__(self) -> Marketplace:
        self._market = await self._open()
        return self._market

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._market is not None:
            await self._market.close()

    async def _open(self) -> Marketplace:
        market = self._make()
        try:
            await market._begin()
        except BaseException:
            await market.close()
            raise
        return market
