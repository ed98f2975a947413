"""A vendor's products: made, changed, priced, reserved; with a journal of every price and of every change of stock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mktsim.errors import DuplicateError, InvalidArgumentError, OrderError, OutOfStockError
from mktsim.market.cart import check_quantity
from mktsim.market.nouns import NOUNS, Entry, Product, Vendor
from mktsim.market.values import mapping, minor_units, number
from mktsim.objects import DurableObject, exposed
from mktsim.sqlite import Value

Thing = dict[str, Value]

_MOST_SECONDS: Final = 10 * 366 * 86_400


class Stock(DurableObject):
    """What a vendor sells. The first of the three layers of a `VendorObject`."""

    nouns = NOUNS
    creators = frozenset({"initialize"})

    def create_product(self, data: Mapping[str, Any] | None = None, **fields: Any) -> Thing:
        """Add a product and return it.

        Raises
        ------
        InvalidArgumentError
            No name, a negative price or one with fractions of the minor unit, a negative stock, a rating beyond 5.
        DuplicateError
            The id or the sku is taken.
        OrderError
            The vendor is closed.
        """
        given = {**mapping("a product", data), **fields}
        if self.status() == "closed":
            raise OrderError(f"vendor {self.id!r:.80} is closed: it takes no new products")
        given.setdefault("stock", 0)
        _check_product(given, new=True)
        if given.get("sku") is not None and self.things.find(Product, sku=given["sku"]):
            raise DuplicateError(f"vendor {self.id!r:.80} has a product with the sku {given['sku']!r:.80} already")
        return self.things.create(Product, given)

    def update_product(self, product_id: str, data: Mapping[str, Any] | None = None, **fields: Any) -> Thing:
        """Change a product and return it; a change of price or stock is journalled.

        Raises
        ------
        InvalidArgumentError
            There is no such product, a value does not fit, or `sku` or `rating` is among them: a sku names a product
            for good, and its rating is what its reviews make it.
        """
        given = {**mapping("changes", data), **fields}
        for fixed in ("sku", "rating", "createdAt"):
            if fixed in given:
                raise InvalidArgumentError(f"the {fixed} of a product cannot be changed: leave it out")
        _check_product(given, new=False)
        before = self.product(product_id)
        after = self.things.update(Product, product_id, given)
        if after["price"] != before["price"]:
            price = None if after["price"] is None else minor_units(after["price"])
            self._journal("price", product_id, amount=price)
        self._moved(product_id, number(after["stock"]) - number(before["stock"]), "set")
        return after

    def restock(self, product_id: str, quantity: int) -> Thing:
        """Add units to a product's stock and return it."""
        check_quantity("restock", quantity)
        before = self.product(product_id)
        self._moved(product_id, quantity, "restock")
        return self.things.update(Product, product_id, stock=number(before["stock"]) + quantity)

    def product(self, product_id: str) -> Thing:
        """Return a product, or raise :class:`InvalidArgumentError` where there is none."""
        found = self.things.get(Product, product_id)
        if found is None:
            raise InvalidArgumentError(f"vendor {self.id!r:.80} has no product {product_id!r:.80}")
        return found

    def list_products(self, category: str | None = None) -> list[Thing]:
        """Return the products, of one category or all, in the order in which they were added."""
        return self.things.list(Product) if category is None else self.things.find(Product, category=category)

    def price_history(self, product_id: str) -> list[Thing]:
        """Return the prices that a product was changed to, oldest first: `amount` in minor units, and when."""
        return self.things.find(Entry, kind="price", subject=product_id)

    def stock_history(self, product_id: str) -> list[Thing]:
        """Return how a product's stock was changed by other than orders, oldest first: `amount` in units, and why."""
        return self.things.find(Entry, kind="stock", subject=product_id)

    def inventory(self) -> Inventory:
        """Return the vendor's stock; ask it in the same expression, as in ``vendor.inventory().available(sku)``."""
        return Inventory(self)

    def reserve(self, sku: str, quantity: int = 1, *, expires_s: float | None = None) -> Thing:
        """Take products out of stock and return the product as it then is, with a `reservationId`.

        Parameters
        ----------
        sku : str
        quantity : int
        expires_s : float, optional
            After how many seconds the units go back into stock by themselves; never when absent.

        Raises
        ------
        OutOfStockError
            Less is in stock.
        """
        check_quantity("reserve", quantity)
        if expires_s is not None and (
            isinstance(expires_s, bool) or not isinstance(expires_s, int | float) or not 0 < expires_s <= _MOST_SECONDS
        ):
            raise InvalidArgumentError(
                f"a reservation expires after a number of seconds above 0, not {expires_s!r:.80}"
            )
        product = self.product_of({"sku": sku})
        if product is None:
            raise InvalidArgumentError(f"vendor {self.id!r:.80} has no product with the sku {sku!r:.80}")
        stock = number(product["stock"])
        if stock < quantity:
            raise OutOfStockError(f"vendor {self.id!r:.80} has {stock} of {sku!r:.80}, not {quantity}")
        expires_at_s = None if expires_s is None else self.now_s + expires_s
        product_id = str(product["id"])
        hold = self._journal(
            "hold", product_id, amount=quantity, detail=None if expires_at_s is None else repr(expires_at_s)
        )
        if expires_at_s is not None:
            alarm_s = self.alarm_at_s()
            self.set_alarm(expires_at_s if alarm_s is None else min(alarm_s, expires_at_s))
        return {**self.things.update(Product, product_id, stock=stock - quantity), "reservationId": hold["id"]}

    def release(self, reservation_id: str) -> Thing:
        """Put reserved products back into stock and return the product.

        Raises
        ------
        InvalidArgumentError
            There is no such reservation, or it has expired.
        """
        hold = self.things.get(Entry, reservation_id)
        if hold is None or hold["kind"] != "hold":
            raise InvalidArgumentError(f"vendor {self.id!r:.80} holds no reservation {reservation_id!r:.80}")
        self.things.delete(Entry, reservation_id)
        product = self.product(str(hold["subject"]))
        return self.things.update(Product, str(product["id"]), stock=number(product["stock"]) + number(hold["amount"]))

    def alarm(self) -> None:
        """Release reservations that have expired. A subclass with alarms of its own calls this too."""
        holds = [(float(str(hold["detail"])), str(hold["id"])) for hold in self._holds()]
        for at_s, hold_id in holds:
            if at_s <= self.now_s:
                self.release(hold_id)
        self.set_alarm(min((at_s for at_s, _ in holds if at_s > self.now_s), default=None))

    def status(self) -> Value:
        """Return ``"active"``, ``"suspended"`` or ``"closed"``."""
        found = self.things.get(Vendor, self.id)
        return None if found is None else found["status"]

    def product_of(self, item: Mapping[str, Any]) -> Thing | None:
        """Return the product that an item's `productId` or `sku` names, or None."""
        column = "id" if item.get("productId") is not None else "sku"
        wanted = item.get("productId") if column == "id" else item.get("sku")
        found = self.things.find(Product, **{column: wanted}) if wanted is not None else []
        return found[0] if found else None

    def _holds(self) -> list[Thing]:
        return self.sql.rows("SELECT * FROM entries WHERE kind = 'hold' AND detail IS NOT NULL ORDER BY id")

    def _moved(self, product_id: str, units: int, why: str) -> None:
        if units:
            self._journal("stock", product_id, amount=units, detail=why)

    def _journal(
        self,
        kind: str,
        subject: str,
        *,
        amount: int | None = None,
        account: str | None = None,
        detail: str | None = None,
    ) -> Thing:
        return self.things.create(Entry, kind=kind, subject=subject, account=account, amount=amount, detail=detail)


class Inventory:
    """What a vendor has in stock; made by ``vendor.inventory()``, and it stays where the vendor lives.

    Parameters
    ----------
    vendor : Stock
        Whose stock it is.

    Examples
    --------
    >>> import asyncio
    >>> from mktsim import Marketplace
    >>> async def story():
    ...     async with Marketplace.open() as market:
    ...         acme = market.vendor("acme")
    ...         await acme.initialize()
    ...         await acme.create_product(name="Mouse", sku="SKU-1", price=19.99, stock=3)
    ...         await acme.create_product(name="Lamp", sku="SKU-2", price=12.50, stock=1)
    ...         held = await acme.inventory().reserve("SKU-1", 2)
    ...         left = await acme.inventory().available("SKU-1")
    ...         await acme.inventory().release(held["reservationId"])
    ...         return left, await acme.inventory().available("SKU-1"), await acme.inventory().cheapest()
    >>> asyncio.run(story())
    (1, 3, 'SKU-2')
    """

    def __init__(self, vendor: Stock) -> None:
        self._vendor = vendor

    @exposed
    def available(self, sku: str) -> int:
        """Return how many of a product are in stock.

        Raises
        ------
        InvalidArgumentError
            The vendor has no such product.
        """
        product = self._vendor.product_of({"sku": sku})
        if product is None:
            raise InvalidArgumentError(f"vendor {self._vendor.id!r:.80} has no product with the sku {sku!r:.80}")
        return number(product["stock"])

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
    def reserve(self, sku: str, quantity: int = 1, *, expires_s: float | None = None) -> dict[str, Value]:
        """Take products out of stock; see :meth:`Stock.reserve`."""
        return self._vendor.reserve(sku, quantity, expires_s=expires_s)

    @exposed
    def release(self, reservation_id: str) -> dict[str, Value]:
        """Put reserved products back; see :meth:`Stock.release`."""
        return self._vendor.release(reservation_id)


def _check_product(given: Mapping[str, Any], *, new: bool) -> None:
    """Check what is given of a product."""
    if (new or "name" in given) and (not isinstance(given.get("name"), str) or not given["name"].strip()):
        raise InvalidArgumentError(f"a product needs a name, not {given.get('name')!r:.80}")
    if given.get("price") is not None:
        minor_units(given["price"])
    if "stock" in given:
        stock = given["stock"]
        if isinstance(stock, bool) or not isinstance(stock, int) or not 0 <= stock <= 10**12:
            raise InvalidArgumentError(f"stock is a whole number from 0 to 10**12, not {stock!r:.80}")
    rating = given.get("rating")
    if rating is not None and (isinstance(rating, bool) or not (isinstance(rating, int | float) and 0 <= rating <= 5)):
        raise InvalidArgumentError(f"a rating is a number from 0 to 5, not {rating!r:.80}")
