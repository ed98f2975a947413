"""A vendor: its profile, its customers' reviews, its numbers, in its own database. Subclass it to say more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mktsim.errors import DuplicateError, InvalidArgumentError, OrderError
from mktsim.market.nouns import Entry, Product, Review, Vendor
from mktsim.market.orders import Orders
from mktsim.market.stock import Inventory, Thing
from mktsim.market.values import mapping, minor_units, number
from mktsim.objects.sql import Parameters
from mktsim.sqlite import Value

__all__ = ["Inventory", "VendorObject", "minor_units"]


class VendorObject(Orders):
    """One vendor; made by the host. All public methods are open to callers through ``market.vendor(id)``.

    Parameters
    ----------
    id : str
        The vendor's id.

    Examples
    --------
    A subclass says more than every vendor does.

    >>> import asyncio
    >>> from mktsim import Marketplace
    >>> class Florist(VendorObject):
    ...     def water(self) -> int:
    ...         return len(self.things.list("Product"))
    >>> async def story():
    ...     async with Marketplace.open(vendor_class=Florist) as market:
    ...         rose = market.vendor("rose")
    ...         await rose.initialize(name="Rose & Daughters")
    ...         await rose.create_product(name="Fern")
    ...         return (await rose.profile())["name"], await rose.water()
    >>> asyncio.run(story())
    ('Rose & Daughters', 1)
    """

    def initialize(self, profile: Mapping[str, Any] | None = None, **fields: Any) -> Thing:
        """Onboard the vendor and return its profile; the one method that may be called on an id nobody has.

        Raises
        ------
        DuplicateError
            The vendor is there already.
        """
        if self.things.get(Vendor, self.id) is not None:
            raise DuplicateError(f"vendor {self.id!r:.80} is onboarded already: choose another id")
        given = {**mapping("a profile", profile), **fields}
        for fixed in ("id", "status"):
            if fixed in given:
                raise InvalidArgumentError(f"the {fixed} of a new vendor is not yours to choose: leave it out")
        return self.things.create(Vendor, {"name": self.id, **given, "status": "active", "id": self.id})

    def profile(self) -> Thing:
        """Return the vendor's own row."""
        found = self.things.get(Vendor, self.id)
        if found is None:
            raise InvalidArgumentError(f"vendor {self.id!r:.80} is not onboarded: call initialize()")
        return found

    def update_profile(self, data: Mapping[str, Any] | None = None, **fields: Any) -> Thing:
        """Change the profile and return it; `status` moves by `suspend`, `resume` and `close` alone."""
        given = {**mapping("a profile", data), **fields}
        if "status" in given or "createdAt" in given:
            raise InvalidArgumentError("status moves by suspend(), resume() and close(); createdAt never")
        return self.things.update(Vendor, self.id, given)

    def suspend(self) -> Thing:
        """Take no new orders until `resume`; orders in flight go on."""
        return self._become("suspended", ("active",))

    def resume(self) -> Thing:
        """Take orders again after `suspend`."""
        return self._become("active", ("suspended",))

    def close(self) -> Thing:
        """Take no new orders or products ever again; orders in flight finish."""
        return self._become("closed", ("active", "suspended"))

    def review_product(self, customer: str, product_id: str, stars: int, body: str | None = None) -> Thing:
        """Add a buyer's review and return it; the product's rating becomes the mean of its stars.

        Raises
        ------
        OrderError
            The customer has not bought the product.
        DuplicateError
            The customer has reviewed it already.
        InvalidArgumentError
            `stars` is no whole number from 1 to 5, or there is no such product.
        """
        if isinstance(stars, bool) or not isinstance(stars, int) or not 1 <= stars <= 5:
            raise InvalidArgumentError(f"stars are a whole number from 1 to 5, not {stars!r:.80}")
        if not isinstance(customer, str) or not customer:
            raise InvalidArgumentError(f"a review is by a customer, not {customer!r:.80}")
        product = self.product(product_id)
        bought = self.sql.execute(
            "SELECT 1 FROM orders, json_each(orders.items) AS item WHERE customer = ? "
            "AND status IN ('accepted', 'shipped', 'delivered') "
            "AND (item.value ->> 'productId' = ? OR item.value ->> 'sku' = ?) LIMIT 1",
            (customer, product_id, product["sku"]),
        )
        if not bought:
            raise OrderError(
                f"{customer!r:.80} has not bought {product_id!r:.80} of {self.id!r:.80}: only buyers review"
            )
        if self.things.find(Review, productId=product_id, customer=customer):
            raise DuplicateError(f"{customer!r:.80} has reviewed {product_id!r:.80} already: one review each")
        review = self.things.create(Review, productId=product_id, customer=customer, stars=stars, body=body)
        rows = self.sql.execute("SELECT SUM(stars), COUNT(*) FROM reviews WHERE productId = ?", (product_id,))
        self.things.update(Product, product_id, rating=number(rows[0][0]) / number(rows[0][1]))
        return review

    def reviews(self, product_id: str) -> list[Thing]:
        """Return a product's reviews, oldest first."""
        return self.things.find(Review, productId=product_id)

    def notify(self, message: Any) -> None:
        """Tell the vendor something: kept, and sent as the event ``Vendor.notified``, which subscribers hear."""
        self.send("Vendor.notified", {"vendorId": self.id, "message": message})
        self._journal("notice", self.id, detail=json.dumps(message, ensure_ascii=False))

    def notifications(self) -> list[Any]:
        """Return what the vendor was told, oldest first."""
        return [json.loads(str(entry["detail"])) for entry in self.things.find(Entry, kind="notice")]

    def statistics(self) -> dict[str, Any]:
        """Return the vendor's numbers: products, units in stock and held, reviews, orders by status, balances."""
        count = self.sql.execute(
            "SELECT (SELECT COUNT(*) FROM products), (SELECT COALESCE(SUM(stock), 0) FROM products), "
            "(SELECT COALESCE(SUM(amount), 0) FROM entries WHERE kind = 'hold'), (SELECT COUNT(*) FROM reviews)"
        )[0]
        orders = self.sql.execute("SELECT status, COUNT(*) FROM orders GROUP BY status ORDER BY status")
        return {
            "products": count[0],
            "unitsInStock": count[1],
            "unitsReserved": count[2],
            "reviews": count[3],
            "orders": {str(status): number(how_many) for status, how_many in orders},
            "balances": self.balances(),
        }

    def query(self, sql: str, params: Parameters = ()) -> list[tuple[Value, ...]]:
        """Run one statement that only reads, on this vendor's own database, and return its rows.

        Raises
        ------
        ReadOnlyError, IsolationError, SQLSyntaxError, ParameterError, QueryTooLargeError
        """
        return self.sql.query(sql, params)

    def _become(self, status: str, allowed: tuple[str, ...]) -> Thing:
        before = self.profile()["status"]
        if before not in allowed:
            raise OrderError(f"vendor {self.id!r:.80} is {before!s} and cannot become {status}")
        self.send("Vendor.changed", {"vendorId": self.id, "status": status})
        return self.things.update(Vendor, self.id, status=status)
