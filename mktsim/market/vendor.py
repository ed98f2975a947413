"""A vendor: its products, its stock and its orders, in its own database. Subclass it to say more."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mktsim.errors import DuplicateError, InvalidArgumentError, OutOfStockError
from mktsim.market.cart import check_quantity
from mktsim.market.nouns import Order, Product, Review, Vendor
from mktsim.objects import DurableObject, exposed
from mktsim.objects.sql import Parameters
from mktsim.sqlite import Value


class VendorObject(DurableObject):
    """One vendor. All public methods are open to callers through ``market.vendor(id)``.

    Examples
    --------
    >>> class Florist(VendorObject):
    ...     def water(self) -> int:
    ...         return len(self.things.list("Product"))
    """

    nouns = (Vendor, Product, Review, Order)
    creators = frozenset({"initialize"})

    def initialize(self, profile: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Value]:
        """Onboard the vendor and return its profile; the one method that may be called on an id nobody has.

        Raises
        ------
        DuplicateError
            The vendor is there already.
        """
        if self.things.get(Vendor, self.id) is not None:
            raise DuplicateError(f"vendor {self.id!r:.80} is onboarded already: choose another id")
        given = {**_mapping("a profile", profile), **fields}
        if "id" in given:
            raise InvalidArgumentError("a vendor's id is the one it is addressed by: leave it out of the profile")
        return self.things.create(Vendor, {"name": self.id, "status": "active", **given, "id": self.id})

    def create_product(self, data: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Value]:
        """Add a product and return it.

        Raises
        ------
        InvalidArgumentError
            No name, a negative price or one with fractions of the minor unit, a negative stock, a rating beyond 5.
        DuplicateError
            The id or the sku is taken.
        """
        given = {**_mapping("a product", data), **fields}
        if not isinstance(given.get("name"), str) or not given["name"].strip():
            raise InvalidArgumentError(f"a product needs a name, not {given.get('name')!r:.80}")
        if given.get("price") is not None:
            minor_units(given["price"])
        stock = given.setdefault("stock", 0)
        if isinstance(stock, bool) or not isinstance(stock, int) or stock < 0:
            raise InvalidArgumentError(f"stock is a whole number from 0, not {stock!r:.80}")
        rating = given.get("rating")
        if rating is not None and not (isinstance(rating, int | float) and 0 <= rating <= 5):
            raise InvalidArgumentError(f"a rating is a number from 0 to 5, not {rating!r:.80}")
        if given.get("sku") is not None and self.things.find(Product, sku=given["sku"]):
            raise DuplicateError(f"vendor {self.id!r:.80} has a product with the sku {given['sku']!r:.80} already")
        return self.things.create(Product, given)

    def list_products(self, category: str | None = None) -> list[dict[str, Value]]:
        """Return the products, of one category or all, in the order in which they were added."""
        return self.things.list(Product) if category is None else self.things.find(Product, category=category)

    def query(self, sql: str, params: Parameters = ()) -> list[tuple[Value, ...]]:
        """Run one statement that only reads, on this vendor's own database, and return its rows.

        Raises
        ------
        ReadOnlyError, IsolationError, SQLSyntaxError, ParameterError
        """
        return self.sql.query(sql, params)

    def inventory(self) -> Inventory:
        """Return the vendor's stock; ask it in the same expression, as in ``vendor.inventory().available(sku)``."""
        return Inventory(self)

    def reserve(self, sku: str, quantity: int = 1) -> dict[str, Value]:
        """Take products out of stock and return the product as it then is.

        Raises
        ------
        OutOfStockError
            Less is in stock.
        """
        check_quantity("reserve", quantity)
        product = self._product({"sku": sku})
        if product is None:
            raise InvalidArgumentError(f"vendor {self.id!r:.80} has no product with the sku {sku!r:.80}")
        stock = _number(product["stock"])
        if stock < quantity:
            raise OutOfStockError(f"vendor {self.id!r:.80} has {stock} of {sku!r:.80}, not {quantity}")
        return self.things.update(Product, str(product["id"]), stock=stock - quantity)

    def handle_order(self, order: Mapping[str, Any]) -> dict[str, Value]:
        """Accept or reject an order and return it; an order that was handled before is returned as it is.

        Parameters
        ----------
        order : mapping
            `orderId`, `customer` and `items`, each item with `productId` or `sku`, and `quantity`.

        Returns
        -------
        dict
            The order's row, and under `reason` why it was rejected, else None. It is accepted if everything is in
            stock, which is then taken; else nothing is.
        """
        given = _mapping("an order", order)
        missing = [name for name in ("orderId", "customer", "items") if given.get(name) is None]
        if missing or not isinstance(given["items"], list | tuple) or not given["items"]:
            raise InvalidArgumentError(
                f"an order has orderId, customer and items; missing: {', '.join(missing) or 'items'}"
            )
        known = self.things.get(Order, given["orderId"])
        if known is not None:
            return {**known, "reason": None}
        total_minor = 0
        reason: str | None = None
        wanted: dict[str, int] = {}
        for item in given["items"]:
            quantity = check_quantity(f"order {given['orderId']!r:.80}", _mapping("an item", item).get("quantity", 1))
            product = self._product(item)
            named = item.get("productId") or item.get("sku")
            if product is None or product["price"] is None:
                reason = reason or f"{named!r:.80} is not for sale"
                continue
            key = str(product["id"])
            wanted[key] = wanted.get(key, 0) + quantity
            if wanted[key] > _number(product["stock"]):
                reason = reason or f"{_number(product['stock'])} of {named!r:.80} in stock, {wanted[key]} wanted"
            total_minor += quantity * minor_units(product["price"])
        if reason is None:
            for key, quantity in wanted.items():
                self.sql.execute("UPDATE products SET stock = stock - ? WHERE id = ?", (quantity, key))
        row = self.things.create(
            Order,
            {
                "id": given["orderId"],
                "orderId": given["orderId"],
                "customer": given["customer"],
                "items": json.dumps(list(given["items"]), ensure_ascii=False),
                "totalMinor": total_minor,
                "status": "accepted" if reason is None else "rejected",
            },
        )
        return {**row, "reason": reason}

    def notify(self, message: Any) -> None:
        """Tell the vendor something: sends the event ``Vendor.notified``, which subscribers hear."""
        self.send("Vendor.notified", {"vendorId": self.id, "message": message})

    def _product(self, item: Mapping[str, Any]) -> dict[str, Value] | None:
        column = "id" if item.get("productId") is not None else "sku"
        found = self.things.find(Product, **{column: item.get("productId") if column == "id" else item.get("sku")})
        return found[0] if found and item.get("productId", item.get("sku")) is not None else None


class Inventory:
    """What a vendor has in stock; lives where the vendor lives."""

    def __init__(self, vendor: VendorObject) -> None:
        self._vendor = vendor

    @exposed
    def available(self, sku: str) -> int:
        """Return how many of a product are in stock.

        Raises
        ------
        InvalidArgumentError
            The vendor has no such product.
        """
        product = self._vendor._product({"sku": sku})
        if product is None:
            raise InvalidArgumentError(f"vendor {self._vendor.id!r:.80} has no product with the sku {sku!r:.80}")
        return _number(product["stock"])

    @exposed
    def cheapest(self, category: str | None = None) -> str:
        """Return the sku of the cheapest product in stock, of one category or of all; of equals the one added first.

        Raises
        ------
        OutOfStockError
            Nothing is in stock.
        """
        rows = self._vendor.sql.execute(
            "SELECT sku FROM products WHERE stock > 0 AND price IS NOT NULL AND sku IS NOT NULL "
            "AND (?1 IS NULL OR category = ?1) ORDER BY price, rowid LIMIT 1",
            (category,),
        )
        if not rows:
            raise OutOfStockError(f"vendor {self._vendor.id!r:.80} has nothing in stock")
        return str(rows[0][0])

    @exposed
    def reserve(self, sku: str, quantity: int = 1) -> dict[str, Value]:
        """Take products out of stock; see :meth:`VendorObject.reserve`."""
        return self._vendor.reserve(sku, quantity)


def minor_units(price: Any) -> int:
    """Return a price in minor units of money.

    Raises
    ------
    InvalidArgumentError
        If it is negative, not finite, or no whole number of minor units.

    Examples
    --------
    >>> minor_units(19.99)
    1999
    """
    if (
        isinstance(price, bool)
        or not isinstance(price, int | float)
        or not math.isfinite(price)
        or not 0 <= price < 1e13
    ):
        raise InvalidArgumentError(f"a price is a number from 0 in major units, not {price!r:.80}")
    minor = round(price * 100)
    if minor / 100 != price:
        raise InvalidArgumentError(f"a price has at most two decimals, not {price!r:.80}")
    return minor


def _mapping(what: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{what} must be a mapping, not {type(value).__name__}")
    return dict(value or {})


def _number(value: Value) -> int:
    return value if isinstance(value, int) else 0
