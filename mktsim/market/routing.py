"""Order routing: from a cart to its vendors and back to who waits for the answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

from mktsim.errors import InvalidArgumentError, UnknownVendorError
from mktsim.market.cart import Cart
from mktsim.objects import Event, Stub, Subscriptions
from mktsim.objects.durable import Sent
from mktsim.storage import VendorStore

_LONGEST_HOLD_S: Final = 86_400.0
Answer = dict[str, Any]


class OrderRouter:
    """Places carts and hands their orders to vendors.

    Parameters
    ----------
    own : Stub
        The marketplace's own object.
    vendor : callable
        Returns the stub of a vendor.
    vendors : VendorStore
    on : Subscriptions
        The router is the first subscriber of the events of placing.
    commission_bp : int
        What the marketplace keeps of an order, in hundredths of a percent.
    """

    def __init__(
        self,
        own: Stub,
        vendor: Callable[[str], Stub],
        vendors: VendorStore,
        on: Subscriptions,
        *,
        commission_bp: int,
    ) -> None:
        self._own = own
        self._vendor = vendor
        self._vendors = vendors
        self._commission_bp = commission_bp
        self._waiting: dict[str, asyncio.Future[Answer | None]] = {}
        self._orders = 0
        self.run = 0
        on.Order.placed(self._hand_over)
        on.Order.confirmed(self._confirm)
        on.Order.released(self._release)

    async def place(self, cart: Cart, *, all_or_nothing: bool, hold_s: float) -> list[Answer]:
        """See :meth:`mktsim.market.Marketplace.place_order`."""
        if not isinstance(cart, Cart):
            raise InvalidArgumentError(f"place_order takes a Cart, not {type(cart).__name__}")
        if isinstance(hold_s, bool) or not isinstance(hold_s, int | float) or not 0 < hold_s <= _LONGEST_HOLD_S:
            raise InvalidArgumentError(
                f"hold_s is a number of seconds from 0 to {_LONGEST_HOLD_S:g}, not {hold_s!r:.80}"
            )
        groups = cart.by_vendor()
        unknown = [vendor_id for vendor_id in groups if vendor_id not in self._vendors]
        if unknown:
            raise UnknownVendorError(
                f"no vendor {', '.join(f'{each!r:.80}' for each in unknown[:10])}; nothing was ordered"
            )
        orders: list[Answer] = []
        for vendor_id, items in groups.items():
            self._orders += 1
            orders.append(
                {
                    "orderId": f"order-{self.run}-{self._orders}",
                    "vendorId": vendor_id,
                    "customer": cart.customer,
                    "items": items,
                    "commissionBp": self._commission_bp,
                }
            )
        loop = asyncio.get_running_loop()
        waiting = {order["orderId"]: loop.create_future() for order in orders}
        self._waiting |= waiting
        digest = "" if cart.key is None else _digest(cart, all_or_nothing)
        try:
            before = await self._own.place(orders, cart.key, digest, float(hold_s) if all_or_nothing else None)
            if before is not None:
                return [await self._state_of(order) for order in before]
            answers = await asyncio.gather(*waiting.values())
        finally:
            for order_id in waiting:
                self._waiting.pop(order_id, None)
        return [_placed(order) if answer is None else answer for order, answer in zip(orders, answers, strict=True)]

    def give_up(self) -> None:
        """Tell everybody who waits that the answer will come later."""
        for order_id in list(self._waiting):
            self._answered(order_id, None)

    def is_dead(self, _sender: str, event: Sent, _error: Exception) -> None:
        """Hear that an event could not be delivered."""
        order_id = json.loads(event.data).get("orderId")
        if isinstance(order_id, str):
            self._answered(order_id, None)

    async def _state_of(self, order: Answer) -> Answer:
        """Return how an order that was placed before stands."""
        waiting = self._waiting.get(order["orderId"])
        if waiting is not None:
            answer = await asyncio.shield(waiting)
            return _placed(order) if answer is None else answer
        row = await self._vendor(order["vendorId"]).order(order["orderId"])
        return _placed(order) if row is None else {**row, "reason": None}

    async def _hand_over(self, event: Event) -> None:
        data = event.data
        missing = [name for name in ("orderId", "vendorId", "customer", "items") if data.get(name) is None]
        if missing:
            raise InvalidArgumentError(f"{event.name} {event.id!r:.80} lacks {', '.join(missing)}")
        try:
            answer = await self._vendor(data["vendorId"]).handle_order(data)
            if data.get("cart") is not None:
                await self._own.heard(data["cart"], data["orderId"], answer["status"])
        except Exception:
            self._answered(data["orderId"], None)
            raise
        if answer["status"] != "placed":
            self._answered(data["orderId"], answer)

    async def _confirm(self, event: Event) -> None:
        data = event.data
        row = await self._vendor(data["vendorId"]).confirm_order(data["orderId"], data["commissionBp"])
        self._answered(data["orderId"], {**row, "reason": None})

    async def _release(self, event: Event) -> None:
        data = event.data
        row = await self._vendor(data["vendorId"]).release_order(data["orderId"])
        self._answered(data["orderId"], {**row, "reason": "another vendor of the cart did not accept"})

    def _answered(self, order_id: str, answer: Answer | None) -> None:
        future = self._waiting.get(order_id)
        if future is not None and not future.done():
            future.set_result(answer)


def _placed(order: Answer) -> Answer:
    shown = {name: value for name, value in order.items() if name != "commissionBp"}
    return {**shown, "status": "placed", "reason": None}


def _digest(cart: Cart, all_or_nothing: bool) -> str:
    text = json.dumps([cart.customer, cart.items, all_or_nothing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
