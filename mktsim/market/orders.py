"""A vendor's orders: their lifecycle, and the money that moves with it.

Rules
-----
An order moves along `MOVES` and no other way. *placed*: held for a cart that is all or nothing, its stock taken;
*accepted*: sold; *rejected*: nothing was taken. A cancelled order gives its stock back, a refunded one does not.

Money is counted in minor units, in entries that have an `account`; those of one order, of one payout, and so of all,
add up to zero. Acceptance books ``customers -total``, ``commission +c`` and ``payable +(total - c)``; cancelling or
refunding books the opposite; a payout books ``payable -p`` and ``paid +p``. The commission is the total times the rate
in hundredths of a percent, halves rounded to even, computed in whole numbers.

Worked example: 1999 at 500 (5 %) are 99.95, so commission 100, payable 1899, customers -1999: together 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from mktsim.errors import InvalidArgumentError, OrderError
from mktsim.market.cart import check_quantity
from mktsim.market.nouns import Entry, Order, Product
from mktsim.market.stock import Stock, Thing
from mktsim.market.values import mapping, minor_units, number

#: From each status of an order, those it may move to.
MOVES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "placed": ("accepted", "cancelled"),
        "accepted": ("shipped", "cancelled"),
        "shipped": ("delivered", "refunded"),
        "delivered": ("refunded",),
        "rejected": (),
        "cancelled": (),
        "refunded": (),
    }
)


def commission_of(total_minor: int, commission_bp: int) -> int:
    """Return the commission on a total, in minor units, at a rate in hundredths of a percent.

    Examples
    --------
    >>> commission_of(1999, 500), commission_of(10, 500), commission_of(30, 500)
    (100, 0, 2)
    """
    commission_bp = checked_rate(commission_bp)
    whole, rest = divmod(total_minor * commission_bp, 10_000)
    return whole + (rest > 5_000 or (rest == 5_000 and whole % 2 == 1))


class Orders(Stock):
    """What a vendor has sold. The second of the three layers of a `VendorObject`."""

    def handle_order(self, order: Mapping[str, Any]) -> Thing:
        """Accept or reject an order and return it; an order that was handled before is returned as it is.

        Parameters
        ----------
        order : mapping
            `orderId`, `customer` and `items`, each item with `productId` or `sku`, and `quantity`; `commissionBp`, 0
            when absent; `hold`, whether the order is to wait, *placed*, for `confirm_order` or `release_order`.

        Returns
        -------
        dict
            The order's row, and under `reason` why it was rejected, else None. It is accepted if everything is in
            stock, which is then taken; else nothing is.
        """
        given = mapping("an order", order)
        missing = [name for name in ("orderId", "customer", "items") if given.get(name) is None]
        if missing or not isinstance(given["items"], list | tuple) or not given["items"]:
            raise InvalidArgumentError(
                f"an order has orderId, customer and items; missing: {', '.join(missing) or 'items'}"
            )
        commission_bp = checked_rate(given.get("commissionBp", 0))
        known = self.things.get(Order, given["orderId"])
        if known is not None:
            return {**known, "reason": None}
        total_minor, wanted, reason = self._priced(given["orderId"], given["items"])
        vendor_status = self.status()
        if vendor_status != "active":
            reason = f"the vendor is {vendor_status!s}"
        if reason is None:
            for product_id, quantity in wanted.items():
                self._take(product_id, quantity)
        status = "rejected" if reason is not None else "placed" if given.get("hold") else "accepted"
        row = self.things.create(
            Order,
            {
                "id": given["orderId"],
                "orderId": given["orderId"],
                "customer": given["customer"],
                "items": json.dumps(list(given["items"]), ensure_ascii=False),
                "totalMinor": total_minor,
                "status": status,
            },
        )
        if status == "accepted":
            self._charge(row, commission_bp)
        if status != "placed":
            self._announce(row)
        return {**row, "reason": reason}

    def order(self, order_id: str) -> Thing | None:
        """Return an order, or None."""
        return self.things.get(Order, order_id)

    def confirm_order(self, order_id: str, commission_bp: int = 0) -> Thing:
        """Accept an order that was held; one that is accepted already stays so."""
        row = self._order(order_id)
        if row["status"] in ("accepted", "shipped", "delivered"):
            return row
        row = self._move(order_id, "accepted")
        self._charge(row, checked_rate(commission_bp))
        return row

    def release_order(self, order_id: str) -> Thing:
        """Give up an order that was held, and what it holds; if it has not come yet, it never will."""
        row = self.things.get(Order, order_id)
        if row is None:
            row = self.things.create(
                Order, id=order_id, orderId=order_id, customer="", items="[]", totalMinor=0, status="cancelled"
            )
        elif row["status"] == "placed":
            row = self._move(order_id, "cancelled")
            self._restore(row)
        return row

    def ship_order(self, order_id: str) -> Thing:
        """Send an accepted order on its way.

        Raises
        ------
        OrderError
            The order's status forbids it; the message names both. So do the other moves.
        """
        return self._move(order_id, "shipped")

    def deliver_order(self, order_id: str) -> Thing:
        """Record that an order has arrived."""
        return self._move(order_id, "delivered")

    def cancel_order(self, order_id: str) -> Thing:
        """Call off an order that is not shipped: its stock and its money go back."""
        if self._order(order_id)["status"] == "placed":
            raise OrderError(f"order {order_id!r:.80} is held for a cart that is all or nothing, and decided with it")
        row = self._move(order_id, "cancelled")
        self._restore(row)
        self._reverse(row)
        return row

    def refund_order(self, order_id: str) -> Thing:
        """Give the money of a shipped or delivered order back."""
        row = self._move(order_id, "refunded")
        self._reverse(row)
        return row

    def pay_out(self) -> int:
        """Pay the vendor what it is owed and return how much that was, in minor units; 0 if it owes itself."""
        owed = self.balances().get("payable", 0)
        if owed <= 0:
            return 0
        payout = f"payout-{self.next_serial()}"
        self._book(payout, "payout", {"payable": -owed, "paid": owed})
        self.send("Vendor.paid", {"vendorId": self.id, "payoutId": payout, "amountMinor": owed})
        return owed

    def balances(self) -> dict[str, int]:
        """Return the balance of every account in minor units; together they are 0."""
        rows = self.sql.execute(
            "SELECT account, SUM(amount) FROM entries WHERE account IS NOT NULL GROUP BY account ORDER BY account"
        )
        return {str(account): number(amount) for account, amount in rows}

    def entries(self, subject: str) -> list[Thing]:
        """Return what the journal says of an order or a product, oldest first."""
        return self.things.find(Entry, subject=subject)

    def _priced(self, order_id: str, items: Sequence[Any]) -> tuple[int, dict[str, int], str | None]:
        """Return the total, the units of each product, and why they cannot be sold, if so."""
        total_minor = 0
        reason: str | None = None
        wanted: dict[str, int] = {}
        for item in items:
            quantity = check_quantity(f"order {order_id!r:.80}", mapping("an item", item).get("quantity", 1))
            product = self.product_of(item)
            named = item.get("productId") or item.get("sku")
            if product is None or product["price"] is None:
                reason = reason or f"{named!r:.80} is not for sale"
                continue
            product_id = str(product["id"])
            wanted[product_id] = wanted.get(product_id, 0) + quantity
            if not self._is_there(product, wanted[product_id]):
                there = number(product["stock"])
                reason = reason or f"{there} of {named!r:.80} in stock, {wanted[product_id]} wanted"
            total_minor += quantity * minor_units(product["price"])
        return total_minor, wanted, reason

    def _is_there(self, product: Thing, quantity: int) -> bool:
        return quantity <= number(product["stock"])

    def _take(self, product_id: str, quantity: int) -> None:
        self.sql.execute("UPDATE products SET stock = stock - ? WHERE id = ?", (quantity, product_id))

    def _restore(self, row: Thing) -> None:
        """Put the units of an order back into stock."""
        for item in json.loads(str(row["items"])):
            product = self.product_of(item)
            assert product is not None, "products are never deleted, nor their skus changed"
            self.things.update(
                Product, str(product["id"]), stock=number(product["stock"]) + int(item.get("quantity", 1))
            )

    def _order(self, order_id: str) -> Thing:
        row = self.things.get(Order, order_id)
        if row is None:
            raise OrderError(f"vendor {self.id!r:.80} has no order {order_id!r:.80}")
        return row

    def _move(self, order_id: str, to: str) -> Thing:
        before = str(self._order(order_id)["status"])
        if to not in MOVES.get(before, ()):
            allowed = " or ".join(MOVES.get(before, ())) or "nothing else any more"
            raise OrderError(f"order {order_id!r:.80} is {before} and cannot be {to}: it may become {allowed}")
        row = self.things.update(Order, order_id, status=to)
        self._announce(row)
        return row

    def _announce(self, row: Thing) -> None:
        """Send ``Order.accepted`` and the like."""
        order = {name: row[name] for name in ("vendorId", "orderId", "customer", "totalMinor")}
        self.send(f"Order.{row['status']!s}", order)

    def _charge(self, row: Thing, commission_bp: int) -> None:
        total = number(row["totalMinor"])
        commission = commission_of(total, commission_bp)
        self._book(
            str(row["orderId"]),
            "charge",
            {"customers": -total, "commission": commission, "payable": total - commission},
        )

    def _reverse(self, row: Thing) -> None:
        order_id = str(row["orderId"])
        booked = self.things.find(Entry, kind="charge", subject=order_id)
        self._book(order_id, "reversal", {str(entry["account"]): -number(entry["amount"]) for entry in booked})

    def _book(self, subject: str, kind: str, amounts: Mapping[str, int]) -> None:
        assert sum(amounts.values()) == 0, f"{kind} of {subject} does not balance: {dict(amounts)}"
        moved = [(account, amount) for account, amount in amounts.items() if amount]
        self.things.create_many(
            Entry,
            [{"kind": kind, "subject": subject, "account": account, "amount": amount} for account, amount in moved],
        )


def checked_rate(commission_bp: Any) -> int:
    """Return a commission's rate, or raise :class:`InvalidArgumentError`."""
    if isinstance(commission_bp, bool) or not isinstance(commission_bp, int) or not 0 <= commission_bp <= 10_000:
        raise InvalidArgumentError(
            f"a commission is from 0 to 10000 hundredths of a percent, not {commission_bp!r:.80}"
        )
    return commission_bp
