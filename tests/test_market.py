"""The marketplace: opening, onboarding, orders, frames, generated fleets, and bad input of every kind."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mktsim.errors import (
    DuplicateError,
    InvalidArgumentError,
    MktsimError,
    NotCallableError,
    NotOpenError,
    OrderError,
    OutOfStockError,
    ParameterError,
    QueryError,
    ReadOnlyError,
    SchemaMismatchError,
    SQLSyntaxError,
    StorageError,
    UnknownVendorError,
)
from mktsim.market import Cart, Marketplace, VendorObject, generate
from mktsim.market.nouns import SCHEMA, Order, Product, Review, Vendor
from mktsim.market.vendor import minor_units
from mktsim.objects import noun
from mktsim.objects.calls import CallMessage
from mktsim.sim import sim_run
from mktsim.storage import open_store


def run(test: Callable[[Marketplace], Awaitable[None]], *arguments: Any, **options: Any) -> None:
    """Run a coroutine in a marketplace."""

    async def body() -> None:
        async with Marketplace.open(*arguments, **options) as market:
            await test(market)

    asyncio.run(body())


async def onboard(market: Marketplace, *ids: str, stock: int = 3) -> None:
    """Onboard vendors with one product each."""
    for vendor_id in ids:
        await market.vendor(vendor_id).initialize(name=vendor_id)
        await market.vendor(vendor_id).create_product(name="Lamp", sku="L", price=1.1, stock=stock, id="lamp")


def test_the_nouns_have_the_columns_that_others_rely_on() -> None:
    """Names, types and order are part of the interface."""
    assert Vendor.names == ("id", "vendorId", "name", "country", "rating", "status", "createdAt")
    assert Product.names == (
        *("id", "vendorId", "sku", "name", "description", "category"),
        *("price", "rating", "stock", "createdAt"),
    )
    assert Review.names == ("id", "vendorId", "productId", "customer", "stars", "body", "createdAt")
    assert Order.names == ("id", "vendorId", "orderId", "customer", "items", "totalMinor", "status", "createdAt")
    assert dict(Product.columns)["price"] == "REAL"
    assert SCHEMA.shard_column == "vendorId"


def test_a_vendor_of_ten_products_takes_less_than_twelve_kilobytes() -> None:
    """The price of isolation in bytes, all nouns and internal tables included."""
    with open_store("memory", None, SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        text = "Wireless headphones with a case and a cable"
        stamp = "2026-01-01T00:00:00Z"
        products = [
            (f"p-{n}", "vendor-0000042", f"SKU-{n}", "Wireless headphones", text, "electronics", 19.99, 4.5, 12, stamp)
            for n in range(10)
        ]
        store.create("vendor-0000042", {"_vendor": [("vendor-0000042", 0)], "products": products})
        assert len(store.image("vendor-0000042")) <= 12_000


@pytest.mark.parametrize("store", ["directory", "packed"])
def test_a_marketplace_is_found_again_as_it_was(tmp_path: Path, store: str) -> None:
    """Vendors, rows, kind and shards come from the folder; another kind or number is refused by name."""

    async def first(market: Marketplace) -> None:
        await onboard(market, "acme", 'it\'s "odd"/é')

    async def again(market: Marketplace) -> None:
        assert market.vendors == ["acme", 'it\'s "odd"/é']
        assert len(market.store.shards) == 3
        assert await market.vendor("acme").inventory().available("L") == 3

    run(first, tmp_path / "m", store=store, shards=3)
    run(again, tmp_path / "m")
    other = "packed" if store == "directory" else "directory"
    for options in ({"store": other}, {"shards": 4}, {"virtual_nodes": 10}):
        with pytest.raises(SchemaMismatchError):
            run(again, tmp_path / "m", **options)


def test_a_marketplace_can_be_awaited_and_closed_twice() -> None:
    """Without `async with`, and closing is idempotent; a closed one says so."""

    async def body() -> None:
        market = await Marketplace.open()
        await onboard(market, "acme")
        assert repr(market) == "<Marketplace 1 vendors, 8 shards, memory>"
        await market.close()
        await market.close()
        assert repr(market) == "<Marketplace closed>"
        with pytest.raises(MktsimError):
            await market.vendor("acme").list_products()

    asyncio.run(body())


def test_a_marketplace_that_was_not_awaited_says_so(tmp_path: Path) -> None:
    """Whatever is asked of it; what copies, pickles, inspects or shows it finds nothing that is not there."""
    opening = Marketplace.open(tmp_path / "m")
    for use in (lambda: opening.query("SELECT 1"), lambda: opening.vendor("acme"), lambda: opening.close):
        with pytest.raises(NotOpenError, match=r"write `await Marketplace.open\(...\)`, or `async with"):
            use()
    assert "await Marketplace.open(...)" in repr(opening)
    assert not hasattr(opening, "query")
    for name in ("__deepcopy__", "_repr_html_", "_ipython_display_"):
        with pytest.raises(AttributeError) as caught:
            getattr(opening, name)
        assert not isinstance(caught.value, MktsimError)
    assert asyncio.run(_vendors_of(copy.copy(opening))) == 0
    assert "query" not in dir(opening)
    assert [name for name, _ in inspect.getmembers(opening) if not name.startswith("_")] == []
    assert issubclass(NotOpenError, AttributeError)


async def _vendors_of(opening: Any) -> int:
    async with opening as market:
        return len(market.vendors)


def test_a_path_or_statement_of_a_million_characters_makes_no_such_message(tmp_path: Path) -> None:
    """What SQLite and the system quote is cut, in the message as in what a traceback shows of its cause."""

    async def ask(market: Marketplace) -> None:
        for sql in ("x" * 1_000_000, "SELECT " + "y" * 900_000, "SELECT json_extract('1', '" + "z" * 900_000 + "')"):
            with pytest.raises(QueryError) as caught:
                await market.query(sql)
            assert len("".join(traceback.format_exception(caught.value))) < 20_000
            assert len(str(caught.value)) < 700

    run(ask)
    with pytest.raises(StorageError) as caught:
        run(ask, "x" * 1_000_000)
    assert len("".join(traceback.format_exception(caught.value))) < 20_000
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {"store": "floppy"}),
        ((), {"store": "packed"}),
        (("m",), {"store": "memory"}),
        ((), {"shards": 0}),
        ((), {"shards": 2.5}),
        ((), {"virtual_nodes": -1}),
        ((), {"vendor_class": dict}),
        ((5,), {}),
        ((), {"seed": -1}),
    ],
)
def test_a_marketplace_that_cannot_be_is_refused(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Arguments are checked before a file is made."""

    async def never(_market: Marketplace) -> None:
        raise AssertionError

    with pytest.raises(InvalidArgumentError):
        run(never, *arguments, **options)
    assert not Path("m").exists()


def test_a_folder_that_is_none_of_ours_is_left_alone(tmp_path: Path) -> None:
    """Other files there, a damaged market.json, a file instead of a folder: a storage error each."""

    async def never(_market: Marketplace) -> None:
        raise AssertionError

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "market.json").write_text("{")
    (tmp_path / "c").write_text("")
    for name in "abc":
        with pytest.raises(StorageError):
            run(never, tmp_path / name)
    for text, lacking in (("{}", "'store'"), ('{"store": "packed"}', "'shards'")):
        (tmp_path / "b" / "market.json").write_text(text)
        with pytest.raises(StorageError, match=f"lacks the entry {lacking}"):
            run(never, tmp_path / "b")
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["thesis.txt"]


def test_only_initialize_brings_a_vendor_into_being() -> None:
    """Everything else on an unknown id is UnknownVendorError, and a second initialize a duplicate."""

    async def test(market: Marketplace) -> None:
        for call in (
            market.vendor("ghost").list_products(),
            market.vendor("ghost").create_product(name="x"),
            market.vendor("ghost").inventory().available("x"),
            market.vendor("ghost").query("SELECT 1"),
        ):
            with pytest.raises(UnknownVendorError):
                await call
        assert market.vendors == []
        profile = await market.vendor("acme").initialize({"name": "Acme", "country": "DE"}, rating=4.5)
        assert (profile["id"], profile["vendorId"], profile["name"], profile["status"]) == (
            "acme",
            "acme",
            "Acme",
            "active",
        )
        with pytest.raises(DuplicateError):
            await market.vendor("acme").initialize()
        for bad in ({"colour": "red"}, {"rating": float("nan")}, {"id": "other"}, {"vendorId": "other"}):
            with pytest.raises(InvalidArgumentError):
                await market.vendor("bad").initialize(bad)
        assert market.vendors == ["acme"]

    run(test)


def test_created_at_comes_from_the_clock_that_was_handed_in() -> None:
    """Nothing below reads a wall clock."""

    async def test(market: Marketplace) -> None:
        profile = await market.vendor("acme").initialize()
        assert profile["createdAt"] == "2026-11-22T00:00:00.500000Z"

    run(test, clock=lambda: 1795305600.5)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": ""},
        {"name": 5},
        {"name": "a" * 1_000_000},
        {"name": "a\0"},
        {"name": "a", "price": -1},
        {"name": "a", "price": float("nan")},
        {"name": "a", "price": float("inf")},
        {"name": "a", "price": 0.001},
        {"name": "a", "price": "9.99"},
        {"name": "a", "price": True},
        {"name": "a", "stock": -1},
        {"name": "a", "stock": 1.5},
        {"name": "a", "stock": None},
        {"name": "a", "rating": 6},
        {"name": "a", "rating": float("nan")},
        {"name": "a", "sku": "L"},
        {"name": "a", "id": "lamp"},
        {"name": "a", "vendorId": "other"},
        {"name": "a", "colour": "red"},
        "a product",
    ],
)
def test_a_product_that_makes_no_sense_is_refused(data: Any) -> None:
    """Prices are whole minor units, stock is a count, ids and skus are taken once."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme")
        with pytest.raises(InvalidArgumentError):
            await market.vendor("acme").create_product(data)
        assert len(await market.vendor("acme").list_products()) == 1

    run(test)


def test_prices_turn_into_minor_units_exactly() -> None:
    """Every amount of cents survives the way through a float."""
    assert all(minor_units(cents / 100) == cents for cents in range(0, 1_000_000, 7))
    assert minor_units(3) == 300


@pytest.mark.parametrize(
    "items",
    [
        [],
        None,
        "acme",
        {"vendorId": "acme", "sku": "L"},
        ["acme"],
        [{"sku": "L"}],
        [{"vendorId": "acme"}],
        [{"vendorId": "acme", "sku": "L", "productId": "lamp"}],
        [{"vendorId": "acme", "sku": "L", "colour": "red"}],
        [{"vendorId": "", "sku": "L"}],
        [{"vendorId": 5, "sku": "L"}],
        [{"vendorId": "a\0", "sku": "L"}],
        [{"vendorId": "\ud800", "sku": "L"}],
        *[
            [{"vendorId": "acme", "sku": "L", "quantity": q}]
            for q in (0, -1, float("nan"), 1.0, True, "1", None, 10**9)
        ],
    ],
)
def test_a_cart_that_makes_no_sense_is_refused(items: Any) -> None:
    """A cart is checked whole when it is made."""
    with pytest.raises(InvalidArgumentError):
        Cart("zoe", items)
    with pytest.raises(InvalidArgumentError):
        Cart("", [{"vendorId": "acme", "sku": "L"}])


def test_an_order_with_an_unknown_vendor_writes_nothing_at_all() -> None:
    """The whole cart is refused before the first order is written."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme")
        before = market.network.stats.round_trips
        with pytest.raises(UnknownVendorError, match="ghost"):
            await market.place_order(Cart("zoe", [{"vendorId": v, "sku": "L"} for v in ("acme", "ghost")]))
        with pytest.raises(InvalidArgumentError):
            await market.place_order({"customer": "zoe"})  # type: ignore[arg-type]
        assert market.network.stats.round_trips == before
        assert (await market.query("SELECT COUNT(*) FROM orders")).rows == [(0,)]

    run(test)


def test_an_order_takes_its_stock_whole_or_not_at_all() -> None:
    """Too little of one item, or an unknown one, rejects the vendor's order and leaves every stock as it was."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme", "widgets")
        acme = market.vendor("acme")
        await acme.create_product(name="Rare", sku="R", price=5, stock=1)

        async def order(*items: tuple[str, int], vendor_id: str = "acme") -> dict[str, Any]:
            cart = Cart("zoe", [{"vendorId": vendor_id, "sku": sku, "quantity": n} for sku, n in items])
            return (await market.place_order(cart))[0]

        rejected = await order(("L", 1), ("R", 2))
        assert (rejected["status"], rejected["reason"]) == ("rejected", "1 of 'R' in stock, 2 wanted")
        assert (await order(("L", 2), ("L", 2)))["status"] == "rejected"
        assert (await order(("ghost", 1)))["reason"] == "'ghost' is not for sale"
        accepted = await order(("L", 3), ("R", 1))
        assert (accepted["status"], accepted["totalMinor"], accepted["reason"]) == ("accepted", 830, None)
        assert [row["stock"] for row in await acme.list_products()] == [0, 0]
        assert len({row[0] for row in (await market.query("SELECT orderId FROM orders")).rows}) == 4
        with pytest.raises(OutOfStockError):
            await acme.inventory().cheapest()
        with pytest.raises(OutOfStockError):
            await acme.reserve("L")
        with pytest.raises(InvalidArgumentError):
            await acme.reserve("ghost")

    run(test)


def test_the_last_unit_is_sold_once_whatever_the_concurrency() -> None:
    """Fifty customers want one of five lamps."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme", stock=5)
        cart = [{"vendorId": "acme", "productId": "lamp"}]
        answers = await asyncio.gather(*(market.place_order(Cart(f"c{i}", cart)) for i in range(50)))
        assert sorted(order["status"] for [order] in answers) == ["accepted"] * 5 + ["rejected"] * 45
        assert await market.vendor("acme").inventory().available("L") == 0

    run(test)


def test_an_order_is_handled_once_however_often_it_arrives() -> None:
    """The same orderId again returns the order as it is."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme")
        order = {"orderId": "o1", "customer": "zoe", "items": [{"sku": "L", "quantity": 2}]}
        first = await market.vendor("acme").handle_order(order)
        assert await market.vendor("acme").handle_order(order) == first
        assert await market.vendor("acme").inventory().available("L") == 1
        for bad in ({}, {**order, "orderId": "o2", "items": []}, {**order, "orderId": "o2", "items": "L"}, None):
            with pytest.raises(InvalidArgumentError):
                await market.vendor("acme").handle_order(bad)

    run(test)


@pytest.mark.parametrize("store", ["directory", "packed"])
def test_an_order_whose_vendor_does_not_answer_is_placed_and_delivered_after_a_restart(
    tmp_path: Path, store: str
) -> None:
    """The order survives in the outbox and is applied exactly once."""

    class Broken(VendorObject):
        def handle_order(self, order: Any) -> Any:
            raise ConnectionError("the vendor's code is broken today")

    async def before(market: Marketplace) -> None:
        await onboard(market, "acme")
        [order] = await market.place_order(Cart("zoe", [{"vendorId": "acme", "sku": "L"}]))
        assert order == {
            "orderId": "order-1-1",
            "vendorId": "acme",
            "customer": "zoe",
            "items": [{"sku": "L", "quantity": 1}],
            "status": "placed",
            "reason": None,
        }

    async def after(market: Marketplace) -> None:
        await market.idle()
        rows = (await market.query("SELECT orderId, customer, status FROM orders")).rows
        assert rows == [("order-1-1", "zoe", "accepted")]
        assert await market.vendor("acme").inventory().available("L") == 2
        assert market.dead_letters() == []

    run(before, tmp_path / "m", store=store, vendor_class=Broken)
    for _ in range(2):
        run(after, tmp_path / "m")


def test_bad_input_is_a_named_error_before_any_vendor_is_asked() -> None:
    """Statements, parameters, keys and ids are checked first: not one message leaves."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme")
        before = market.network.stats.round_trips
        for sql, params, error in (
            ("SELEC 1", (), SQLSyntaxError),
            ("SELECT * FROM ghosts", (), SQLSyntaxError),
            ("DELETE FROM products", (), ReadOnlyError),
            ("DROP TABLE products", (), ReadOnlyError),
            ("SELECT * FROM products WHERE name = ?", (), ParameterError),
            ("SELECT * FROM products WHERE name = ?", ("a", "b"), ParameterError),
        ):
            with pytest.raises(error):
                await market.query(sql, params)
        with pytest.raises(UnknownVendorError):
            await market.query("SELECT * FROM products", shard_key="ghost")
        for bad in ("", 5, None, "\ud800", "v" * 1_000_000):
            with pytest.raises(InvalidArgumentError):
                market.vendor(bad)  # type: ignore[arg-type]
        with pytest.raises(NotCallableError):
            market.vendor("acme")._sql  # noqa: B018
        assert market.network.stats.round_trips == before

    run(test)


def test_an_empty_fleet_answers_as_an_empty_table_would() -> None:
    """The schema is known though nobody is there."""

    async def test(market: Marketplace) -> None:
        assert (await market.query("SELECT COUNT(*), SUM(price) FROM products")).rows == [(0, None)]
        assert (await market.query("SELECT name FROM products ORDER BY rating LIMIT 3")).rows == []

    run(test)


def test_the_market_itself_takes_events_only() -> None:
    """Its address is no back door."""

    async def test(market: Marketplace) -> None:
        with pytest.raises(NotCallableError):
            await market.network.call("x", "market", CallMessage(()))

    run(test)


def test_the_html_of_a_marketplace_is_escaped(tmp_path: Path) -> None:
    """A folder's name is no markup."""

    async def test(market: Marketplace) -> None:
        html = market._repr_html_()
        assert "<script>" not in html
        assert "&lt;script&gt;" in html

    run(test, tmp_path / "<script>")


def test_a_dead_letter_of_an_order_can_be_replayed() -> None:
    """A handler that never succeeds ends in the dead letters, named by sender and number."""

    async def test(market: Marketplace) -> None:
        broken = True

        @market.on.Order.placed
        def handler(_event: Any) -> None:
            if broken:
                raise ValueError("indigestible")

        await onboard(market, "acme")
        [order] = await market.place_order(Cart("zoe", [{"vendorId": "acme", "sku": "L"}]))
        assert order["status"] == "accepted"  # its vendor has it; another subscriber is at fault
        for host in market._hosts().values():
            host.pump._policy = type(host.pump._policy)(max_attempts=2, base_s=0.001)
        await market.idle()
        [letter] = market.dead_letters()
        assert (letter["sender"], letter["event"], letter["error"]) == (
            *("system/market", "Order.placed"),
            "ValueError: indigestible",
        )
        broken = False
        with pytest.raises(InvalidArgumentError):
            await market.replay("nobody", 1)
        await market.replay(letter["sender"], letter["seq"])
        await market.idle()
        assert market.dead_letters() == []
        assert await market.vendor("acme").inventory().available("L") == 2

    run(test)


def test_a_generated_fleet_is_a_marketplace_like_any_other(tmp_path: Path) -> None:
    """It opens, answers, takes orders and new vendors; equal seeds are equal; the folder is used once."""
    for name in ("a", "b"):
        assert generate(tmp_path / name, vendors=30, products=4, seed=5, shards=3) == 30
    with pytest.raises(DuplicateError):
        generate(tmp_path / "a", vendors=30, products=4, seed=5)
    answers: list[Any] = []

    async def test(market: Marketplace) -> None:
        answers.append((await market.query("SELECT vendorId, id, name, price, rating FROM products")).rows)
        sql = "SELECT vendorId, id FROM products WHERE stock > 0 AND price IS NOT NULL LIMIT 1"
        [(vendor_id, product_id)] = (await market.query(sql)).rows
        [order] = await market.place_order(Cart("zoe", [{"vendorId": vendor_id, "productId": product_id}]))
        assert order["status"] == "accepted"
        await onboard(market, "acme")
        assert len(market.vendors) == 31

    run(test, tmp_path / "a", store="packed")
    run(test, tmp_path / "b")
    assert answers[0] == answers[1]
    assert len({row[0] for row in answers[0]}) > 10


def test_vendors_that_a_full_limit_left_unread_count_as_answered(tmp_path: Path) -> None:
    """As the statistics' documentation has it: nothing is missing of them, and the coverage is complete."""
    generate(tmp_path / "m", vendors=300, products=4, seed=5, shards=3)

    async def test(market: Marketplace) -> None:
        result = await market.query("SELECT name FROM products LIMIT 5")
        assert (result.stats.vendors_asked, result.stats.vendors_answered) == (300, 300)
        assert result.stats.rows_shipped < 300  # Three shards of 100 vendors with rows each: none was read to its end.
        assert result.coverage.complete

    run(test, tmp_path / "m")


def test_frames_become_tables_that_answer_as_the_frame_would() -> None:
    """Types are kept, missing values are NULL, and the vendor column keeps its name and routes."""
    products = pd.DataFrame(
        {
            "seller_id": ["b", "a", "b", "c"],
            "units": pd.array([1, 2, None, 4], dtype="Int64"),
            "price": [1.5, np.nan, 2.5, np.inf],
            "name": ["Wireless é", None, "x", "wireless"],
            "fresh": [True, False, True, True],
            "seen": pd.to_datetime(["2026-01-01", None, "2026-01-03", "2026-01-04"]),
        }
    )
    sellers = pd.DataFrame({"seller_id": ["a", "b", "c"], "since": [2001, 2002, 2003]})

    async def body() -> None:
        async with Marketplace.from_frames(products=products, sellers=sellers) as market:
            assert market.vendors == ["a", "b", "c"]
            rows = (await market.query("SELECT seller_id, units, price, name, fresh, seen FROM products")).rows
            assert rows == [
                ("a", 2, None, None, 0, None),
                ("b", 1, 1.5, "Wireless é", 1, "2026-01-01T00:00:00"),
                ("b", None, 2.5, "x", 1, "2026-01-03T00:00:00"),
                ("c", 4, float("inf"), "wireless", 1, "2026-01-04T00:00:00"),
            ]
            assert (await market.query("SELECT SUM(units), typeof(units) FROM products")).rows[0][0] == 7
            routed = await market.query("SELECT name FROM products WHERE seller_id = ?", ["b"])
            assert (routed.stats.vendors_asked, len(routed.rows)) == (1, 2)
            joined = "SELECT COUNT(*) FROM products JOIN sellers USING (seller_id) WHERE since > 2001"
            assert (await market.query(joined)).rows == [(3,)]
            assert await market.vendor("a").query("SELECT since FROM sellers") == [(2001,)]
            with pytest.raises(OrderError):
                await market.place_order(Cart("zoe", [{"vendorId": "a", "sku": "x"}]))
            with pytest.raises(UnknownVendorError):
                await market.vendor("d").initialize()

    asyncio.run(body())


@pytest.mark.parametrize(
    "frames",
    [
        {},
        {"products": [1]},
        {"products": pd.DataFrame({"a": [1]})},
        {"products": pd.DataFrame({"seller_id": ["a", None], "n": [1, 2]})},
        {"products": pd.DataFrame({"seller_id": [1.5], "n": [1]})},
        {"products": pd.DataFrame({"seller_id": ["a"], "n": [2**64 - 1]})},
        {"products": pd.DataFrame({"seller_id": ["a", "b"], "n": [1, "x"]})},
        {"products": pd.DataFrame({"seller_id": ["a"], "n": [[1]]})},
        {"products": pd.DataFrame({"seller_id": ["a"], "n": [1], "N": [2]})},
        {"products": pd.DataFrame({"seller_id": ["a"], 5: [1]})},
        {"sqlite_x": pd.DataFrame({"seller_id": ["a"]})},
    ],
)
def test_frames_that_cannot_be_kept_as_they_are_are_refused(frames: dict[str, Any]) -> None:
    """No vendor column, a vendor missing, numbers beyond 64 bits, mixed types: nothing is made."""
    with pytest.raises(InvalidArgumentError):
        Marketplace.from_frames(**frames)


def test_frames_go_to_a_new_folder_and_stay_there(tmp_path: Path) -> None:
    """On disk they are packed; a folder with something in it is refused; as a marketplace of nouns it is a mismatch."""
    frame = pd.DataFrame({"seller_id": [7, 8], 'quoted "name"': ["a", "b"]})

    async def body() -> None:
        async with Marketplace.from_frames(path=tmp_path / "f", items=frame) as market:
            assert (await market.query('SELECT "quoted ""name""" FROM items')).rows == [("a",), ("b",)]
            assert market.vendors == ["7", "8"]
        with pytest.raises(InvalidArgumentError):
            await Marketplace.from_frames(path=tmp_path / "f", items=frame)
        with pytest.raises(SchemaMismatchError):
            await Marketplace.open(tmp_path / "f")

    asyncio.run(body())
    assert json.loads((tmp_path / "f" / "market.json").read_text())["store"] == "packed"


# -- the life of a marketplace --------------------------------------------------------------------------------------


async def buy(market: Marketplace, *vendors: str, customer: str = "zoe", quantity: int = 1, **options: Any) -> Any:
    """Place a cart of one item a vendor."""
    key = options.pop("key", None)
    items = [{"vendorId": each, "sku": "L", "quantity": quantity} for each in vendors]
    return await market.place_order(Cart(customer, items, key=key), **options)


def test_an_order_moves_along_its_lifecycle_and_no_other_way() -> None:
    """Illegal moves are refused by name; money and stock follow; each move is an event."""
    heard: list[tuple[str, str]] = []

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme", "bolt")
        for verb in ("accepted", "rejected", "shipped", "delivered", "cancelled", "refunded"):
            market.on.add(f"Order.{verb}", lambda event: heard.append((event.data["orderId"], event.name)))
        only: list[str] = []
        market.vendor("bolt").on("Order.accepted")(lambda event: only.append(event.data["vendorId"]))
        acme = market.vendor("acme")
        [[first], [second], [third]] = [await buy(market, "acme") for _ in range(3)]
        await buy(market, "bolt")
        assert await acme.balances() == {"commission": 18, "customers": -330, "payable": 312}
        with pytest.raises(OrderError, match="accepted and cannot be delivered: it may become shipped or cancelled"):
            await acme.deliver_order(first["orderId"])
        await acme.ship_order(first["orderId"])
        await acme.deliver_order(first["orderId"])
        await acme.refund_order(first["orderId"])
        await acme.cancel_order(second["orderId"])
        for call in (acme.ship_order, acme.cancel_order, acme.refund_order, acme.deliver_order):
            for order in (first, second):
                with pytest.raises(OrderError):
                    await call(order["orderId"])
        assert await acme.pay_out() == 104
        assert await acme.pay_out() == 0
        assert await acme.balances() == {"commission": 6, "customers": -110, "paid": 104, "payable": 0}
        assert sum((await market.balances()).values()) == 0
        assert await acme.inventory().available("L") == 1
        assert (await acme.statistics())["orders"] == {"accepted": 1, "cancelled": 1, "refunded": 1}
        with pytest.raises(OrderError, match="no order"):
            await acme.ship_order("ghost")
        await market.idle()
        assert [name for order_id, name in heard if order_id == first["orderId"]] == [
            *("Order.accepted", "Order.shipped", "Order.delivered", "Order.refunded"),
        ]
        assert only == ["bolt"]
        assert third["status"] == "accepted"

    run(test)


def test_a_cart_with_a_key_is_placed_once(tmp_path: Path) -> None:
    """Again, at the same time and after a restart; another cart under the key is refused."""

    async def first(market: Marketplace) -> None:
        await onboard(market, "acme", "bolt")
        answers = await asyncio.gather(*(buy(market, "acme", "bolt", key="k") for _ in range(5)))
        assert all(answer == answers[0] for answer in answers)
        assert (await market.query("SELECT COUNT(*) FROM orders")).rows == [(2,)]
        with pytest.raises(DuplicateError):
            await buy(market, "acme", key="k")

    async def second(market: Marketplace) -> None:
        [order, _] = await buy(market, "acme", "bolt", key="k")
        await market.vendor("acme").ship_order(order["orderId"])
        assert [each["status"] for each in await buy(market, "acme", "bolt", key="k")] == ["shipped", "accepted"]
        assert (await market.query("SELECT SUM(stock) FROM products")).rows == [(4,)]

    run(first, tmp_path / "m")
    run(second, tmp_path / "m")


def test_all_or_nothing_accepts_all_or_holds_nothing() -> None:
    """One vendor without stock releases the others; a vendor that never answers is waited for as long as was said."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme", "bolt", stock=3)
        orders = await buy(market, "acme", "bolt", quantity=2, all_or_nothing=True)
        assert [order["status"] for order in orders] == ["accepted", "accepted"]
        await market.vendor("acme").restock("lamp", 5)
        orders = await buy(market, "acme", "bolt", quantity=2, all_or_nothing=True)
        assert [order["status"] for order in orders] == ["cancelled", "rejected"]
        assert await market.vendor("acme").inventory().available("L") == 6
        await market.idle()
        assert sum((await market.balances()).values()) == 0
        for bad in (0, -1, float("nan"), "5", 10**9):
            with pytest.raises(InvalidArgumentError):
                await buy(market, "acme", all_or_nothing=True, hold_s=bad)

    run(test)


def test_a_held_order_is_released_when_the_other_vendor_stays_silent() -> None:
    """On simulated time: the alarm of the market decides, and what comes later changes nothing."""

    class Silent(VendorObject):
        def handle_order(self, order: Any) -> Any:
            if self.id == "bolt":
                raise ConnectionError("out to lunch")
            return super().handle_order(order)

    async def body() -> None:
        async with Marketplace.open(vendor_class=Silent) as market:
            await onboard(market, "acme", "bolt")
            [held, silent] = await buy(market, "acme", "bolt", all_or_nothing=True, hold_s=20.0)
            assert silent["status"] == "placed"
            assert held["status"] == "cancelled"
            assert asyncio.get_running_loop().time() >= 20.0
            await market.idle()
            assert (await market.vendor("bolt").order(silent["orderId"]))["status"] == "cancelled"
            assert await market.vendor("acme").inventory().available("L") == 3

    sim_run(body())


def test_a_reservation_expires_or_is_released() -> None:
    """On simulated time, by the vendor's alarm."""

    async def body() -> None:
        async with Marketplace.open() as market:
            await onboard(market, "acme")
            inventory = market.vendor("acme").inventory()
            short = await inventory.reserve("L", 1, expires_s=10.0)
            await inventory.reserve("L", 1, expires_s=30.0)
            kept = await inventory.reserve("L", 1)
            assert kept["stock"] == 0
            await asyncio.sleep(15.0)
            assert await inventory.available("L") == 1
            with pytest.raises(InvalidArgumentError):
                await inventory.release(short["reservationId"])
            assert (await inventory.release(kept["reservationId"]))["stock"] == 2
            await asyncio.sleep(20.0)
            assert await inventory.available("L") == 3
            for bad in (0, -1, float("nan"), "1", True):
                with pytest.raises(InvalidArgumentError):
                    await inventory.reserve("L", 1, expires_s=bad)

    sim_run(body())


def test_only_a_buyer_reviews_and_once_and_the_rating_is_the_exact_mean() -> None:
    """4, 4 and 5 stars are 13/3."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme", stock=9)
        acme = market.vendor("acme")
        with pytest.raises(OrderError, match="buyers"):
            await acme.review_product("zoe", "lamp", 5)
        for customer, stars in (("zoe", 4), ("yan", 4), ("xi", 5)):
            await buy(market, "acme", customer=customer)
            await acme.review_product(customer, "lamp", stars, "fine")
        with pytest.raises(DuplicateError):
            await acme.review_product("zoe", "lamp", 1)
        for bad in (0, 6, 4.0, True, float("nan")):
            with pytest.raises(InvalidArgumentError):
                await acme.review_product("zoe", "lamp", bad)
        assert (await acme.product("lamp"))["rating"] == 13 / 3
        assert len(await acme.reviews("lamp")) == 3

    run(test)


def test_a_suspended_or_closed_vendor_finishes_what_is_in_flight() -> None:
    """It takes no new orders, is not found, and moves those it has."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme")
        acme = market.vendor("acme")
        [order] = await buy(market, "acme")
        await acme.suspend()
        [refused] = await buy(market, "acme")
        assert (refused["status"], refused["reason"]) == ("rejected", "the vendor is suspended")
        assert len(await market.search("lamp")) == 0
        await acme.resume()
        assert len(await market.search("LAMP")) == 1
        await acme.close()
        await acme.ship_order(order["orderId"])
        for call in (acme.resume(), acme.suspend(), acme.create_product(name="x")):
            with pytest.raises(OrderError):
                await call

    run(test)


def test_the_things_of_the_brief_answer_from_all_vendors_and_from_one() -> None:
    """``SELECT * FROM things WHERE type = ? AND category = ?``."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme", "bolt")
        await market.vendor("bolt").create_product(name="Chair", category="seats", id="c", stock=0)
        sql, params = "SELECT * FROM things WHERE type = ? AND category = ?", ["Product", "seats"]
        everywhere = await market.query(sql, params)
        assert everywhere.columns == ("type", "id", "vendorId", "category", "data")
        assert [row[:4] for row in everywhere.rows] == [("Product", "c", "bolt", "seats")]
        assert json.loads(everywhere.rows[0][4])["name"] == "Chair"
        assert await market.vendor("bolt").query(sql, params) == everywhere.rows
        counts = await market.query("SELECT type, COUNT(*) FROM things GROUP BY type ORDER BY type")
        assert counts.rows == [("Product", 3), ("Vendor", 2)]

    run(test)


def test_a_vendor_class_may_have_nouns_of_its_own(tmp_path: Path) -> None:
    """They are tables of every vendor, in `things` and in queries over all; a reopened folder wants the same class."""
    recipe = noun("Recipe", {"title": "TEXT NOT NULL", "category": "TEXT"})

    class Baker(VendorObject):
        nouns = (*VendorObject.nouns, recipe)

        def bake(self, title: str) -> None:
            self.things.create(recipe, title=title, category="bread")

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme")
        await market.vendor("acme").bake("rye")
        assert (await market.query("SELECT title FROM recipes")).rows == [("rye",)]
        assert (await market.query("SELECT type FROM things WHERE category = 'bread'")).rows == [("Recipe",)]
        assert (await buy(market, "acme"))[0]["status"] == "accepted"

    run(test, tmp_path / "m", vendor_class=Baker)
    with pytest.raises(SchemaMismatchError):
        run(test, tmp_path / "m")

    class Wrong(VendorObject):
        nouns = (recipe,)

    with pytest.raises(InvalidArgumentError):
        Marketplace.open(vendor_class=Wrong)


@pytest.mark.parametrize("sort", ["rating", "price", "-price", "name", "newest"])
def test_a_search_pages_through_everything_once_whatever_happens_meanwhile(sort: str) -> None:
    """Pages are cut by key: equal keys, NULL prices, wildcards in the text, and products that come and go."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "acme", "bolt", "cog")
        for number in range(12):
            price = None if number % 5 == 0 else (number % 3) / 2
            product = {"name": f"100% lamp_{number % 4}", "category": "light", "price": price, "rating": number % 3}
            await market.vendor(("acme", "bolt", "cog")[number % 3]).create_product(product)
        found: list[tuple[str, str]] = []
        page = None
        while True:
            result = await market.search("100% LAMP_", category="light", sort=sort, page=page, page_size=5)
            found += [(row["vendorId"], row["id"]) for row in result]
            page = result.next
            if page is None:
                break
            await market.vendor("acme").update_product("lamp", price=0.01 * len(found))
        assert len(found) == len(set(found)) == 12
        whole = await market.search("100% lamp_", category="light", sort=sort, page_size=100)
        assert [(row["vendorId"], row["id"]) for row in whole] == found
        assert len(await market.search("100_")) == 0
        for options in ({"sort": "luck"}, {"page_size": 0}, {"page": "x"}, {"page": "[1, 2, 3, 4]"}, {"category": 5}):
            with pytest.raises(InvalidArgumentError):
                await market.search("lamp", **options)

    run(test)


@pytest.mark.parametrize("store", ["directory", "packed"])
def test_a_vendor_can_be_exported_deleted_with_proof_and_imported(tmp_path: Path, store: str) -> None:
    """Nothing of it is left in the store's files; what would be lost by it is named; the import brings all back."""

    async def test(market: Marketplace) -> None:
        await onboard(market, "a-vendor-to-be-forgotten", "bolt")
        gone = market.vendor("a-vendor-to-be-forgotten")
        [order] = await buy(market, "a-vendor-to-be-forgotten")
        size = market.export_vendor("a-vendor-to-be-forgotten", tmp_path / "v.sqlite")
        assert size == (tmp_path / "v.sqlite").stat().st_size
        with pytest.raises(DuplicateError):
            market.export_vendor("a-vendor-to-be-forgotten", tmp_path / "v.sqlite")
        with pytest.raises(OrderError, match="in flight"):
            await market.delete_vendor("a-vendor-to-be-forgotten")
        await gone.ship_order(order["orderId"])
        await gone.deliver_order(order["orderId"])
        with pytest.raises(OrderError, match="paid out"):
            await market.delete_vendor("a-vendor-to-be-forgotten")
        await gone.pay_out()
        proof = await market.delete_vendor("a-vendor-to-be-forgotten")
        assert proof.left == ()
        assert proof.needles > 0
        assert proof.searched_bytes > 0
        with pytest.raises(UnknownVendorError):
            await gone.list_products()
        assert (await buy(market, "bolt"))[0]["status"] == "accepted"
        assert market.import_vendor(tmp_path / "v.sqlite") == "a-vendor-to-be-forgotten"
        assert (await gone.order(order["orderId"]))["status"] == "accepted"
        market.store.restore("a-vendor-to-be-forgotten", (tmp_path / "v.sqlite").read_bytes())
        assert (await gone.restock("lamp", 1))["stock"] == 3
        assert (await market.query("SELECT COUNT(*) FROM orders")).rows == [(2,)]

    run(test, tmp_path / "m", store=store, shards=1)


def test_a_late_subscriber_hears_from_an_offset_and_then_goes_on(tmp_path: Path) -> None:
    """Replayed and live events come once each, in order, also after a restart; effects by stubs are not repeated."""
    heard: list[tuple[int, str]] = []

    async def first(market: Marketplace) -> None:
        await onboard(market, "acme", "auditor", stock=9)
        for customer in ("a", "b", "c"):
            await buy(market, "acme", customer=customer)
        await market.idle()

    async def second(market: Marketplace) -> None:
        async def audit(event: Any) -> None:
            await market.vendor("auditor").notify(event.data["customer"])
            heard.append((event.offset, event.data["customer"]))

        offsets = [event.offset for event in market.events("Order.placed")]
        assert await market.subscribe("audit", "Order.placed", audit, since=offsets[0]) == 2
        await buy(market, "acme", customer="d")
        await market.idle()
        assert [customer for _, customer in heard] == ["b", "c", "d"]
        assert await market.subscribe("audit", "Order.placed", lambda event: audit(event)) == 4
        assert await market.vendor("auditor").notifications() == ["b", "c", "d", "a", "d"]
        with pytest.raises(InvalidArgumentError):
            market.vendor("acme").on("Order.placed")(None)  # type: ignore[arg-type]

    run(first, tmp_path / "m")
    run(second, tmp_path / "m")


@pytest.mark.parametrize("store", ["directory", "packed"])
@pytest.mark.parametrize("how", ["bulk", "written to", "scanned"])
def test_vendors_are_migrated_once_and_whole(tmp_path: Path, store: str, how: str) -> None:
    """A new noun, a renamed and a new column: rows are kept, also those of a vendor whose migration failed before."""
    first_recipe = noun("Recipe", {"name": "TEXT NOT NULL"})
    second_recipe = noun("Recipe", {"title": "TEXT", "minutes": "INTEGER DEFAULT 30"})

    class First(VendorObject):
        nouns = (*VendorObject.nouns, first_recipe)

        def bake(self, name: str) -> None:
            self.things.create(first_recipe, name=name)

    class Failing(VendorObject):
        nouns = (*VendorObject.nouns, second_recipe, noun("Oven"))
        version = 2
        migrations = {2: ("UPDATE recipes SET title = (SELECT naem FROM old.recipes)",)}  # noqa: RUF012

    class Second(Failing):
        migrations = {  # noqa: RUF012
            2: ("UPDATE recipes SET title = (SELECT name FROM old.recipes o WHERE o.rowid = recipes.rowid)",)
        }

        def recipes(self) -> list[Any]:
            return self.sql.execute("SELECT title, minutes FROM recipes ORDER BY rowid")

    async def before(market: Marketplace) -> None:
        await onboard(market, "acme", "bolt")
        for name in ("rye", "oat"):
            await market.vendor("acme").bake(name)
        await buy(market, "acme", "bolt")
        await market.idle()

    async def settled(market: Marketplace) -> None:
        assert market.migrate() == 0

    async def fails(market: Marketplace) -> None:
        with pytest.raises(SchemaMismatchError, match="naem"):
            market.migrate()
        with pytest.raises(SchemaMismatchError):
            await market.vendor("acme").list_products()

    async def after(market: Marketplace) -> None:
        if how == "bulk":
            assert market.migrate(progress=False) == 2
        elif how == "written to":
            assert sorted(market.store.outdated()) == ["acme", "bolt"]
            await market.vendor("acme").restock("lamp", 1)
            assert market.store.outdated() == ["bolt"]
        titles = (await market.query("SELECT title, minutes FROM recipes")).rows
        assert titles == [("rye", 30), ("oat", 30)] == await market.vendor("acme").recipes()
        assert market.migrate() == 0
        assert (await market.query("SELECT COUNT(*) FROM orders")).rows == [(2,)]
        assert (await buy(market, "bolt"))[0]["status"] == "accepted"
        await market.vendor("cog").initialize()
        assert market.store.outdated() == []

    async def again(market: Marketplace) -> None:
        assert market.migrate() == 0
        assert market.vendors == ["acme", "bolt", "cog"]

    run(before, tmp_path / "m", store=store, vendor_class=First)
    run(settled, tmp_path / "m", vendor_class=First)
    run(fails, tmp_path / "m", vendor_class=Failing)
    run(after, tmp_path / "m", vendor_class=Second)
    run(again, tmp_path / "m", vendor_class=Second)
    with pytest.raises(SchemaMismatchError):
        run(again, tmp_path / "m", vendor_class=First)

    class Wrong(Second):
        version = 1

    with pytest.raises(InvalidArgumentError):
        Marketplace.open(tmp_path / "m", vendor_class=Wrong)
