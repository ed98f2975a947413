"""A vendor as others see it: what can be called, and what can be heard of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mktsim.objects import Event, Stub, Subscriptions
from mktsim.objects.events import EventHandler


class VendorStub(Stub):
    """The stub of a vendor; see :class:`~mktsim.objects.Stub` for how it is called."""

    __slots__ = ("_subscriptions",)
    _subscriptions: Subscriptions

    def on(self, name: str) -> Callable[[EventHandler], EventHandler]:
        """Subscribe to the events of a name that concern this vendor: those it sends, and those with its `vendorId`.

        Examples
        --------
        ::

            @market.vendor("acme").on("Order.shipped")
            async def tell(event): ...
        """
        address = self._node.address
        vendor_id = address.partition("/")[2]

        def subscribe(handler: EventHandler) -> EventHandler:
            def concerned(event: Event) -> Any:
                if event.sender == address or event.data.get("vendorId") == vendor_id:
                    return handler(event)
                return None

            self._subscriptions.add(name, concerned if callable(handler) else handler)  # which refuses what is none
            return handler

        return subscribe
