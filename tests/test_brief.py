"""The brief's code samples, in Python, on SQLite files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import IsolationError
from mktsim.market import Cart, Marketplace, VendorObject
from mktsim.objects import Event
from mktsim.placement import ConsistentHashRing

VENDORS = ("acme", "widgets", "gadgets")


class ShoutingVendor(VendorObject):
    """A user's own vendor, as the brief has it: one that adds a method and uses `self.things` and `self.sql`."""

    def create_electronics(self, name: str) -> dict[str, Any]:
        return dict(self.things.create("Product", vendorId=self.id, name=name.upper(), category="electronics", stock=1))

    def list_electronics(self) -> list[dict[str, Any]]:
        return self.sql.rows("SELECT * FROM products WHERE category = ?", ["electronics"])


@pytest.fixture(params=["directory", "packed"])
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Run a coroutine in a marketplace of three vendors on files."""

    def run(test: Callable[[Marketplace], Awaitable[None]]) -> None:
        async def body() -> None:
            async with Marketplace.open(tmp_path / "m", store=request.param, vendor_class=ShoutingVendor) as market:
                for number, vendor_id in enumerate(VENDORS):
                    await market.vendor(vendor_id).initialize({"name": f"{vendor_id.title()} Electronics"})
                    for sku in range(number + 1):
                        await market.vendor(vendor_id).create_product(
                            name=f"Wireless thing {sku} of {vendor_id}",
                            sku=f"SKU-{sku}",
                            category="electronics" if sku % 2 == 0 else "toys",
                            price=10.5 + sku,
                            rating=5 - sku / 2 - number / 10,
                            stock=5,
                        )
                await market.vendor("acme").create_product(name="Corded phone", sku="SKU-123", price=7.25, stock=3)
                await test(market)

        asyncio.run(body())

    return run


def test_each_vendor_has_a_database_that_no_other_vendor_can_reach(story: Callable[..., None]) -> None:
    """Sample 1, vendor isolation: what a vendor creates, it alone lists."""

    async def test(market: Marketplace) -> None:
        made = await market.vendor("acme").create_electronics("lamp")
        assert (made["vendorId"], made["name"]) == ("acme", "LAMP")
        for vendor_id in VENDORS:
            listed = await market.vendor(vendor_id).list_electronics()
            assert listed == await market.vendor(vendor_id).list_products("electronics")
            assert {row["vendorId"] for row in listed} == {vendor_id}
            assert (made in listed) == (vendor_id == "acme")
        with pytest.raises(IsolationError):
            await market.vendor("acme").query("SELECT * FROM pragma_database_list")

    story(test)


def test_a_search_covers_the_products_of_all_vendors(story: Callable[..., None]) -> None:
    """Sample 2, fan-out: LIKE '%wireless%' over every vendor, and a global top ten."""

    async def test(market: Marketplace) -> None:
        found = await market.query("SELECT * FROM products WHERE name LIKE ?", ["%wireless%"])
        assert sorted(row["name"] for row in found) == sorted(
            f"Wireless thing {sku} of {vendor_id}" for n, vendor_id in enumerate(VENDORS) for sku in range(n + 1)
        )
        top = await market.query(
            "SELECT * FROM products WHERE category = ? ORDER BY rating DESC LIMIT 10", ["electronics"]
        )
        assert [row["rating"] for row in top] == [5.0, 4.9, 4.8, 3.8]

    story(test)


def test_aggregates_are_merged_into_one_answer(story: Callable[..., None]) -> None:
    """Sample 3: COUNT(*) AS count, and the others beside it."""

    async def test(market: Marketplace) -> None:
        stats = await market.query("SELECT COUNT(*) AS count FROM products")
        assert list(stats) == [{"count": 7}]
        row = (await market.query("SELECT SUM(price), AVG(price), MIN(price), MAX(price) FROM products")).rows[0]
        prices = [10.5, 10.5, 11.5, 10.5, 11.5, 12.5, 7.25]
        assert row == (sum(prices), sum(prices) / 7, 7.25, 12.5)

    story(test)


def test_an_order_is_routed_to_its_vendor_with_its_customer(story: Callable[..., None]) -> None:
    """Sample 4, order routing: one order a vendor, by the event Order.placed, and the customer kept."""

    async def test(market: Marketplace) -> None:
        heard: list[Event] = []

        @market.on.Order.placed
        async def route(event: Event) -> None:
            # The brief's own handler; the vendor has the order already, and handling it again changes nothing.
            heard.append(event)
            order = {name: event.data[name] for name in ("orderId", "items", "customer")}
            await market.vendor(event.data["vendorId"]).handle_order(order)

        cart = Cart(
            "zoe",
            [
                {"vendorId": "acme", "sku": "SKU-123", "quantity": 2},
                {"vendorId": "gadgets", "sku": "SKU-1"},
                {"vendorId": "acme", "sku": "SKU-0"},
            ],
        )
        orders = await market.place_order(cart)
        await market.idle()
        assert [(order["vendorId"], order["status"], order["totalMinor"]) for order in orders] == [
            ("acme", "accepted", 2 * 725 + 1050),
            ("gadgets", "accepted", 1150),
        ]
        assert [event.data["vendorId"] for event in heard] == ["acme", "gadgets"]
        stored = await market.query("SELECT vendorId, orderId, customer, items FROM orders ORDER BY orderId")
        assert [row["vendorId"] for row in stored] == ["acme", "gadgets"]
        assert {row["customer"] for row in stored} == {"zoe"}
        assert json.loads(stored.rows[0][3]) == [{"sku": "SKU-123", "quantity": 2}, {"sku": "SKU-0", "quantity": 1}]
        assert await market.vendor("acme").inventory().available("SKU-123") == 1

    story(test)


def test_the_ring_routes_a_vendor_to_its_shard(story: Callable[..., None]) -> None:
    """Sample 5, sharding: the ring of 150 virtual nodes is the one that places vendors."""

    async def test(market: Marketplace) -> None:
        ring = ConsistentHashRing(virtual_nodes=150)
        for shard in market.store.shards:
            ring.add_node(shard)
        for vendor_id in VENDORS:
            assert vendor_id in market.store.vendor_ids(ring.get_node(vendor_id))

    story(test)


def test_a_shard_key_sends_the_query_to_one_vendor(story: Callable[..., None]) -> None:
    """Sample 6, shard key: one vendor is asked, with the key given or found in WHERE."""

    async def test(market: Marketplace) -> None:
        sql = "SELECT * FROM products WHERE vendorId = ?"
        given = await market.query(sql, ["gadgets"], shard_key="gadgets")
        found = await market.query(sql, ["gadgets"])
        assert given.rows == found.rows
        assert len(given.rows) == 3
        assert given.stats.vendors_asked == found.stats.vendors_asked == 1
        assert given.stats.tier == "route"

    story(test)


def test_a_pipelined_stock_look_up_is_one_round_trip(story: Callable[..., None]) -> None:
    """Sample 7, pipelining: N sequential round trips, none waited for, or one."""

    async def test(market: Marketplace) -> None:
        stats = market.network.stats
        before = stats.round_trips
        for vendor_id in VENDORS:
            await market.vendor(vendor_id).list_products()
        assert stats.round_trips == before + len(VENDORS)

        before = stats.round_trips
        stock = await market.vendor("acme").inventory().available("SKU-123")
        assert (stock, stats.round_trips) == (3, before + 1)

        vendor = market.vendor("gadgets")
        before = stats.round_trips
        reserved = await vendor.reserve(vendor.inventory().cheapest())
        assert (reserved["sku"], reserved["stock"], stats.round_trips) == ("SKU-0", 4, before + 1)

        notified: list[Any] = []
        market.on.Vendor.notified(lambda event: notified.append((event.data["vendorId"], event.data["message"])))
        for vendor_id in VENDORS:
            market.vendor(vendor_id).notify({"orderId": "o1"})
        await market.idle()
        assert sorted(notified) == sorted((vendor_id, {"orderId": "o1"}) for vendor_id in VENDORS)

    story(test)
