"""What ``Marketplace.open`` returns: to be awaited, or used by ``async with``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mktsim.market.marketplace import Marketplace


class Opening:
    """A marketplace about to be opened: ``await`` it, or use it by ``async with``."""

    __slots__ = ("_make", "_market")

    def __init__(self, make: Callable[[], Marketplace]) -> None:
        self._make = make
        self._market: Marketplace | None = None

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
