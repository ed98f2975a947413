"""A machine that uses the whole public market in any order, beside a model in plain Python."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mktsim.errors import DuplicateError, InvalidArgumentError, MktsimError, OrderError, OutOfStockError
from mktsim.market import Cart, Marketplace
from mktsim.market.orders import MOVES, commission_of

VENDORS = ("acme", "bolt", "it's")
SKUS = ("A", "B")
CUSTOMERS = ("zoe", "yan")
BP = 333

vendors = st.sampled_from(VENDORS)
skus = st.sampled_from(SKUS)
items = st.lists(st.tuples(st.sampled_from((*VENDORS[:2], *VENDORS)), skus, st.integers(1, 3)), min_size=1, max_size=3)


class Later:
    """A call that is made once the loop runs."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __getattr__(self, name: str) -> Later:
        return Later(lambda: getattr(self.make(), name))

    def __call__(self, *args: Any, **kwargs: Any) -> Later:
        return Later(lambda: self.make()(*args, **kwargs))


class MarketMachine(RuleBasedStateMachine):
    """Every rule does the same to the market and to the model, and compares the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now_s = 1_000.0
        self.market: Marketplace = self.run(self._open())
        self.status: dict[str, str] = {}
        self.products: dict[tuple[str, str], dict[str, Any]] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.holds: dict[str, tuple[str, str, int, float | None]] = {}
        self.reviews: dict[tuple[str, str], dict[str, int]] = {}
        self.paid: dict[str, int] = {}
        self.carts: dict[str, tuple[Any, list[str]]] = {}

    async def _open(self) -> Marketplace:
        return await Marketplace.open(shards=2, commission_bp=BP, clock=lambda: self.now_s)

    def run(self, work: Any) -> Any:
        async def awaited() -> Any:
            return await (work.make() if isinstance(work, Later) else work)

        return self.runner.run(awaited())

    def refused(self, error: type[Exception], work: Any) -> None:
        try:
            self.run(work)
        except error:
            return
        raise AssertionError(f"{error.__name__} was due")

    def call(self, vendor_id: str) -> Any:
        return Later(lambda: self.market.vendor(vendor_id))

    # -- vendors and products -----------------------------------------------------------------------------------

    @initialize()
    def one_is_there(self) -> None:
        for vendor_id in VENDORS[:2]:
            self.onboard(vendor_id)
            self.create(vendor_id, "A", 250, 6)
        self.create("acme", "B", 199, 6)

    @rule(vendor_id=vendors)
    def onboard(self, vendor_id: str) -> None:
        if vendor_id in self.status:
            self.refused(DuplicateError, self.call(vendor_id).initialize())
        else:
            assert self.run(self.call(vendor_id).initialize(name="N"))["status"] == "active"
            self.status[vendor_id] = "active"

    @rule(vendor_id=vendors, verb=st.sampled_from(("suspend", "resume", "close")))
    def change(self, vendor_id: str, verb: str) -> None:
        to, allowed = {
            "suspend": ("suspended", {"active"}),
            "resume": ("active", {"suspended"}),
            "close": ("closed", {"active", "suspended"}),
        }[verb]
        if vendor_id == "acme" and verb == "close":
            return  # somebody must go on selling
        call = getattr(self.call(vendor_id), verb)()
        if self.status.get(vendor_id) in allowed:
            assert self.run(call)["status"] == to
            self.status[vendor_id] = to
        else:
            self.refused(MktsimError, call)

    @rule(vendor_id=vendors, sku=skus, price=st.integers(0, 999), stock=st.integers(0, 6))
    def create(self, vendor_id: str, sku: str, price: int, stock: int) -> None:
        call = self.call(vendor_id).create_product(name=f"Thing {sku}", sku=sku, id=sku, price=price / 100, stock=stock)
        if self.status.get(vendor_id, "closed") == "closed" or (vendor_id, sku) in self.products:
            self.refused(MktsimError, call)
        else:
            self.run(call)
            self.products[vendor_id, sku] = {"price": price, "stock": stock, "prices": [], "category": None}

    @rule(vendor_id=vendors, sku=skus, price=st.integers(0, 999), stock=st.integers(-1, 6))
    def update(self, vendor_id: str, sku: str, price: int, stock: int) -> None:
        call = self.call(vendor_id).update_product(sku, price=price / 100, stock=stock)
        product = self.products.get((vendor_id, sku))
        if product is None or stock < 0:
            self.refused(InvalidArgumentError, call)
            return
        self.run(call)
        if price != product["price"]:
            product["prices"].append(price)
        product.update(price=price, stock=stock)
        history = self.run(self.call(vendor_id).price_history(sku))
        assert [entry["amount"] for entry in history] == product["prices"]

    @rule(vendor_id=vendors, sku=skus, quantity=st.integers(1, 4), expires_s=st.none() | st.integers(1, 50))
    def reserve(self, vendor_id: str, sku: str, quantity: int, expires_s: int | None) -> None:
        call = self.call(vendor_id).inventory().reserve(sku, quantity, expires_s=expires_s)
        product = self.products.get((vendor_id, sku))
        if product is None:
            self.refused(InvalidArgumentError, call)
        elif product["stock"] < quantity:
            self.refused(OutOfStockError, call)
        else:
            answer = self.run(call)
            product["stock"] -= quantity
            assert answer["stock"] == product["stock"]
            at_s = None if expires_s is None else self.now_s + expires_s
            self.holds[f"{vendor_id} {answer['reservationId']}"] = (vendor_id, sku, quantity, at_s)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.holds)))
        vendor_id, sku, quantity, _ = self.holds.pop(name)
        call = self.call(vendor_id).inventory().release(name.partition(" ")[2])
        self.products[vendor_id, sku]["stock"] += quantity
        assert self.run(call)["stock"] == self.products[vendor_id, sku]["stock"]
        self.refused(InvalidArgumentError, self.call(vendor_id).release(name.partition(" ")[2]))

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds
        for name, (vendor_id, sku, quantity, at_s) in list(self.holds.items()):
            if at_s is not None and at_s <= self.now_s:
                self.products[vendor_id, sku]["stock"] += quantity
                del self.holds[name]

        async def ring() -> None:
            alarms = self.market._host.alarms
            alarms._look()
            while alarms.ringing:
                await asyncio.sleep(0)
            await self.market.idle()

        self.run(ring())

    # -- orders -------------------------------------------------------------------------------------------------

    @rule(
        customer=st.sampled_from(CUSTOMERS),
        wanted=items,
        all_or_nothing=st.booleans(),
        key=st.none() | st.sampled_from(("k1", "k2", "k3")),
    )
    def buy(self, customer: str, wanted: list[Any], all_or_nothing: bool, key: str | None) -> None:
        cart = Cart(customer, [{"vendorId": v, "sku": s, "quantity": n} for v, s, n in wanted], key=key)
        call = self.market.place_order(cart, all_or_nothing=all_or_nothing)
        by_vendor: dict[str, list[tuple[str, int]]] = {}
        for vendor_id, sku, quantity in wanted:
            by_vendor.setdefault(vendor_id, []).append((sku, quantity))
        if not set(by_vendor) <= set(self.status):
            self.refused(InvalidArgumentError, call)
            return
        if key in self.carts:
            before, order_ids = self.carts[key]
            if before != (customer, wanted, all_or_nothing):
                self.refused(DuplicateError, call)
            else:
                again = self.run(call)
                assert [order["orderId"] for order in again] == order_ids
                assert [order["status"] for order in again] == [self.orders[each]["status"] for each in order_ids]
            return
        answers = self.run(call)
        assert [answer["vendorId"] for answer in answers] == list(by_vendor)
        fits = {}
        for vendor_id, lines in by_vendor.items():
            need: dict[str, int] = {}
            for sku, quantity in lines:
                need[sku] = need.get(sku, 0) + quantity
            fits[vendor_id] = self.status[vendor_id] == "active" and all(
                (vendor_id, sku) in self.products and self.products[vendor_id, sku]["stock"] >= quantity
                for sku, quantity in need.items()
            )
        for answer in answers:
            vendor_id = answer["vendorId"]
            due = "accepted" if fits[vendor_id] else "rejected"
            if due == "accepted" and all_or_nothing and not all(fits.values()):
                due = "cancelled"
            assert answer["status"] == due, (answer, due)
            total = 0
            for sku, quantity in by_vendor[vendor_id]:
                product = self.products.get((vendor_id, sku))
                total += 0 if product is None else product["price"] * quantity
                if due == "accepted" and product is not None:
                    product["stock"] -= quantity
            assert answer["totalMinor"] == total
            self.orders[answer["orderId"]] = {
                "vendor": vendor_id,
                "customer": customer,
                "status": due,
                "total": total,
                "lines": by_vendor[vendor_id],
                "charged": due == "accepted",
            }
        if key is not None:
            self.carts[key] = ((customer, wanted, all_or_nothing), [answer["orderId"] for answer in answers])

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), to=st.sampled_from(("shipped", "delivered", "cancelled", "refunded")))
    def move(self, data: st.DataObject, to: str) -> None:
        order_id = data.draw(st.sampled_from(sorted(self.orders)))
        order = self.orders[order_id]
        verb = {"shipped": "ship", "delivered": "deliver", "cancelled": "cancel", "refunded": "refund"}[to]
        call = getattr(self.call(order["vendor"]), f"{verb}_order")(order_id)
        if to not in MOVES[order["status"]]:
            self.refused(OrderError, call)
            return
        assert self.run(call)["status"] == to
        order["status"] = to
        if to in ("cancelled", "refunded"):
            order["charged"] = False
        if to == "cancelled":
            for sku, quantity in order["lines"]:
                self.products[order["vendor"], sku]["stock"] += quantity

    @rule(vendor_id=vendors)
    def pay_out(self, vendor_id: str) -> None:
        if vendor_id not in self.status:
            self.refused(InvalidArgumentError, self.call(vendor_id).pay_out())
            return
        owed = self.payable(vendor_id)
        assert self.run(self.call(vendor_id).pay_out()) == max(0, owed)
        self.paid[vendor_id] = self.paid.get(vendor_id, 0) + max(0, owed)

    @rule(customer=st.sampled_from(CUSTOMERS), vendor_id=vendors, sku=skus, stars=st.integers(0, 6))
    def review(self, customer: str, vendor_id: str, sku: str, stars: int) -> None:
        call = self.call(vendor_id).review_product(customer, sku, stars)
        bought = any(
            order["vendor"] == vendor_id
            and order["customer"] == customer
            and order["status"] in ("accepted", "shipped", "delivered")
            and sku in dict(order["lines"])
            for order in self.orders.values()
        )
        given = self.reviews.setdefault((vendor_id, sku), {})
        if not 1 <= stars <= 5 or not bought or customer in given:
            self.refused(MktsimError, call)
        else:
            self.run(call)
            given[customer] = stars

    def payable(self, vendor_id: str) -> int:
        earned = sum(
            order["total"] - commission_of(order["total"], BP)
            for order in self.orders.values()
            if order["vendor"] == vendor_id and order["charged"]
        )
        return earned - self.paid.get(vendor_id, 0)

    # -- what must always hold ----------------------------------------------------------------------------------

    @invariant()
    def the_market_is_as_the_model(self) -> None:
        async def rows(sql: str) -> list[tuple[Any, ...]]:
            return list((await self.market.query(sql)).rows)

        self.run(self.market.idle())
        assert dict(self.run(rows("SELECT id, status FROM vendors"))) == self.status
        products = {
            (vendor_id, sku): (price, stock, rating)
            for vendor_id, sku, price, stock, rating in self.run(
                rows("SELECT vendorId, sku, price, stock, rating FROM products")
            )
        }
        due = {}
        for key, product in self.products.items():
            stars = list(self.reviews.get(key, {}).values())
            rating = float(Fraction(sum(stars), len(stars))) if stars else None
            due[key] = (product["price"] / 100, product["stock"], rating)
        assert products == due
        orders = {
            order_id: (vendor_id, customer, total, status, json.loads(lines))
            for vendor_id, order_id, customer, total, status, lines in self.run(
                rows("SELECT vendorId, orderId, customer, totalMinor, status, items FROM orders")
            )
        }
        assert orders == {
            order_id: (
                *(order["vendor"], order["customer"], order["total"], order["status"]),
                [{"sku": sku, "quantity": quantity} for sku, quantity in order["lines"]],
            )
            for order_id, order in self.orders.items()
        }
        balances = self.run(self.market.balances())
        assert sum(balances.values()) == 0
        assert balances.get("payable", 0) == sum(map(self.payable, self.status))
        assert balances.get("paid", 0) == sum(self.paid.values())
        page, found = None, []
        while True:
            result = self.run(self.market.search("thing", sort="price", page=page, page_size=2))
            found += [(row["price"], row["vendorId"], row["id"]) for row in result]
            page = result.next
            if page is None:
                break
        assert found == sorted(
            (product["price"] / 100, vendor_id, sku)
            for (vendor_id, sku), product in self.products.items()
            if self.status[vendor_id] == "active"
        )

    def teardown(self) -> None:
        self.run(self.market.close())
        self.runner.close()


TestMarket = MarketMachine.TestCase
TestMarket.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
