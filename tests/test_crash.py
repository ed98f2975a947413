"""Real processes, killed by SIGKILL while they take orders; and files that are full, read-only, damaged or foreign."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import (
    CorruptImageError,
    InvalidArgumentError,
    MktsimError,
    OrderError,
    ParameterError,
    SchemaMismatchError,
    StorageError,
)
from mktsim.market import Cart, Marketplace
from mktsim.objects import deadline
from mktsim.objects.events import EventMessage
from mktsim.sqlite import FullError, connect
from mktsim.storage.connections import Writer

VENDORS = [f"vendor-{number}" for number in range(6)]
STOCK = 100_000

#: Run in a process of its own: places carts as fast as it can, and writes down each one that was acknowledged.
CHILD = """
import asyncio, os, sys, time
from mktsim.market import Cart, Marketplace

async def customer(market, name, journal):
    number = 0
    while True:
        number += 1
        first = hash((name, number)) % 6
        items = [{"vendorId": f"vendor-{(first + step) % 6}", "sku": "S"} for step in range(1 + number % 3)]
        cart = Cart(f"{name}-{number}", items, key=f"{name}-{number}")
        orders = await market.place_order(cart, all_or_nothing=number % 4 == 0)
        os.write(journal, f"{cart.customer} {' '.join(order['orderId'] for order in orders)}\\n".encode())
        if number % 5 == 0:
            vendor = market.vendor(orders[0]["vendorId"])
            await vendor.reserve("S", 1, expires_s=0.2)
            await (vendor.cancel_order if number % 2 else vendor.ship_order)(orders[0]["orderId"])
        if number % 11 == 0:
            await market.vendor(orders[0]["vendorId"]).pay_out()

async def main(folder, store, name):
    journal = os.open(f"{folder}.journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with Marketplace.open(folder, store=store, shards=2, clock=time.time) as market:
        os.write(1, b"up\\n")
        await asyncio.gather(*(customer(market, f"{name}-{n}", journal) for n in range(8)))

asyncio.run(main(*sys.argv[1:]))
"""


def run(test: Callable[[Marketplace], Awaitable[None]], *arguments: Any, **options: Any) -> None:
    """Run a coroutine in a marketplace."""

    async def body() -> None:
        async with Marketplace.open(*arguments, **options) as market:
            await test(market)

    asyncio.run(body())


async def onboard(market: Marketplace) -> None:
    for vendor_id in VENDORS:
        await market.vendor(vendor_id).initialize()
        await market.vendor(vendor_id).create_product(name="Thing", sku="S", price=0.37, stock=STOCK)


def kill_repeatedly(folder: Path, store: str, kills: int, seed: int) -> dict[str, int]:
    """Kill a process that takes orders, again and again; return the counts once all has been checked."""
    rng = random.Random(seed)
    run(onboard, folder, store=store, shards=2)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    for number in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), store, f"p{number}"], stdout=subprocess.PIPE, env=environment
        )
        with child:
            assert child.stdout is not None
            if rng.random() < 0.9:  # else it is killed while it starts and recovers
                assert child.stdout.readline() == b"up\n"
                time.sleep(rng.uniform(0.0, 0.25))
            else:
                time.sleep(rng.uniform(0.0, 1.0))
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert child.returncode == -signal.SIGKILL
    counts = Counter(kills=kills)

    async def check(market: Marketplace) -> None:
        await market.idle()
        while market._host.alarms.next_s() is not None or market._host.alarms.ringing:
            await asyncio.sleep(0.05)
        await market.idle()
        assert market.dead_letters() == []
        acknowledged = Path(f"{folder}.journal").read_text().splitlines() if Path(f"{folder}.journal").exists() else []
        seen: dict[str, str] = {}
        for vendor_id in VENDORS:
            market.store.image(vendor_id)  # raises unless PRAGMA integrity_check says ok
            with market.store.read(vendor_id) as db:
                assert db.execute("PRAGMA integrity_check").get == "ok"
                sold = 0
                for order_id, customer, status in db.execute("SELECT orderId, customer, status FROM orders"):
                    assert order_id not in seen, f"{order_id} was applied twice"
                    assert customer, "a release without its order"
                    seen[order_id] = customer
                    counts[status] += 1
                    sold += status in ("accepted", "shipped")
                left = db.execute("SELECT stock FROM products").get
                assert left >= 0
                assert left == STOCK - sold, f"{vendor_id}: {left} left, {sold} sold of {STOCK}"
                assert db.execute("SELECT COUNT(*) FROM _outbox").get == 0
                assert db.execute("SELECT COUNT(*) FROM entries WHERE kind = 'hold'").get == 0
                unbalanced = db.execute(
                    "SELECT subject FROM entries WHERE account IS NOT NULL GROUP BY subject HAVING SUM(amount) <> 0"
                ).fetchall()
                assert unbalanced == []
        per_cart: Counter[tuple[str, str]] = Counter()
        for order_id, customer in seen.items():
            per_cart[customer, order_id.rsplit("-", 1)[0]] += 1
        runs = Counter(customer for customer, _ in per_cart)
        assert all(number == 1 for number in runs.values()), "a cart was placed by two runs"
        assert "placed" not in counts
        for line in acknowledged:
            customer, *order_ids = line.split()
            for order_id in order_ids:
                assert seen.get(order_id) == customer, f"{order_id} was acknowledged to {customer} and is lost"
        assert sum((await market.balances()).values()) == 0
        counts["acknowledged carts"] = len(acknowledged)
        counts["orders"] = len(seen)

    run(check, folder, clock=time.time)
    return dict(counts)


@pytest.mark.parametrize("store", ["packed", "directory"])
def test_a_killed_process_loses_no_order_and_repeats_none(tmp_path: Path, store: str) -> None:
    """Ten kills, five a store, wherever they fall."""
    counts = kill_repeatedly(tmp_path / "market", store, kills=5, seed=5)
    print(store, counts)
    assert counts["orders"] > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("store", ["packed", "directory"])
def test_hundreds_of_kills_lose_no_order_and_repeat_none(tmp_path: Path, store: str) -> None:
    """Two hundred and forty kills, over both stores."""
    for seed in range(4):
        print(store, kill_repeatedly(tmp_path / f"market-{seed}", store, kills=30, seed=seed))


#: Onboards vendors until one of them is killed at the n-th of the steps that make a vendor.
ONBOARDING = """
import asyncio, os, signal, sys
import mktsim.storage.directory as directory
import mktsim.storage.packed as packed
from mktsim.market import Marketplace

folder, store, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
steps = 0

def step():
    global steps
    steps += 1
    if steps == at:
        os.kill(os.getpid(), signal.SIGKILL)

def killing(function):
    def wrapped(*args, **kwargs):
        step()
        result = function(*args, **kwargs)
        step()
        return result
    return wrapped

async def main():
    async with Marketplace.open(folder, store=store, shards=1) as market:
        directory.replace_file = killing(directory.replace_file)
        kind = directory.DirectoryStore if store == "directory" else packed.PackedStore
        kind._store_new = killing(kind._store_new)
        for number in range(4):
            vendor = market.vendor(f"vendor-{number}")
            vendor.initialize(name=f"N{number}")
            vendor.create_product(name="Thing", sku="S", price=1, stock=5)
            await vendor.notify("hello")
            os.write(1, f"vendor-{number}\\n".encode())

asyncio.run(main())
"""


@pytest.mark.parametrize("store", ["packed", "directory"])
def test_a_vendor_whose_onboarding_is_killed_is_there_whole_or_not_at_all(tmp_path: Path, store: str) -> None:
    """Before its file is written, between that and its listing, and after it: no half of a vendor is ever found."""
    steps = 4 if store == "directory" else 2  # for each vendor
    seen = set()
    for at in range(1, 2 * steps + 1):
        folder = tmp_path / f"m{at}"
        child = subprocess.run(
            [sys.executable, "-c", ONBOARDING, str(folder), store, str(at)], stdout=subprocess.PIPE, check=False
        )
        assert child.returncode == -signal.SIGKILL
        acknowledged = child.stdout.decode().split()

        async def check(market: Marketplace, acknowledged: list[str] = acknowledged) -> None:
            await market.idle()
            assert set(acknowledged) <= set(market.vendors)
            seen.add(len(market.vendors) - len(acknowledged))
            for vendor_id in market.vendors:  # each with all of the message that made it
                assert (await market.vendor(vendor_id).profile())["status"] == "active"
                assert await market.vendor(vendor_id).inventory().available("S") == 5
                assert await market.vendor(vendor_id).notifications() == ["hello"]
            heard = [event.data["vendorId"] for event in market.events("Vendor.notified")]
            assert sorted(heard) == market.vendors
            assert (await market.query("SELECT id FROM vendors ORDER BY id")).rows == [(v,) for v in market.vendors]
            for number in range(4):
                if f"vendor-{number}" not in market.vendors:
                    await market.vendor(f"vendor-{number}").initialize()
            assert len(market.vendors) == 4

        run(check, folder)
        if store == "directory":
            files = [path for path in (folder / "vendors").rglob("*") if path.suffix in (".sqlite", ".new")]
            assert len(files) == 4 + 1  # the catalogue
    assert seen == {0, 1}, "killed before a vendor's commit and after it"


@pytest.mark.parametrize("store", ["packed", "directory"])
def test_requests_that_wait_together_reach_the_disk_together(tmp_path: Path, store: str) -> None:
    """Thirty concurrent requests of one vendor wait for its disk a few times, and each one stands.

    Of several vendors in a directory each has its own file, and so its own commit.
    """

    async def test(market: Marketplace) -> None:
        await onboard(market)
        file = market.store._file(market.store.shards[0]) if store == "packed" else None  # type: ignore[attr-defined]
        commits: list[str] = []
        if file is not None:
            file.set_commit_hook(lambda: bool(commits.append("shard")))  # type: ignore[func-returns-value]
        else:
            commit = Writer.commit

            def counted(self: Writer) -> None:
                commits.append("file")
                commit(self)

            patch.setattr(Writer, "commit", counted)

        before = commits.copy()
        buyers = [market.vendor(VENDORS[0]).reserve("S") for _ in range(3)]
        tasks = [asyncio.ensure_future(one(market)) for _ in range(30)]
        await asyncio.gather(*tasks, *buyers)
        assert 0 < len(commits) - len(before) <= 4
        assert await market.vendor(VENDORS[0]).inventory().available("S") == STOCK - 33

    async def one(market: Marketplace) -> None:
        with deadline(20.0 + next(numbers)):  # so that they are requests of their own
            await market.vendor(VENDORS[0]).reserve("S")

    numbers = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        run(test, tmp_path / "m", store=store, shards=1)


def test_a_commit_that_fails_loses_its_own_group_and_no_other(tmp_path: Path) -> None:
    """Directory store: nobody of the group is answered, the object goes on from the last commit, others stand."""

    async def test(market: Marketplace) -> None:
        await onboard(market)
        commit = Writer.commit

        def failing(self: Writer) -> None:
            if VENDORS[0] in self.connection.execute("SELECT id FROM _vendor").get:
                self.rollback()
                raise FullError("database or disk is full")
            commit(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Writer, "commit", failing)
            answers = await asyncio.gather(
                *(market.vendor(vendor_id).reserve("S") for vendor_id in VENDORS), return_exceptions=True
            )
            assert isinstance(answers[0], StorageError)
            assert [answer["stock"] for answer in answers[1:]] == [STOCK - 1] * 5
        assert await market.vendor(VENDORS[0]).inventory().available("S") == STOCK
        await is_well(market, *VENDORS)

    run(test, tmp_path / "m", store="directory", shards=1)


# -- bad files and bad input --------------------------------------------------------------------------------------


async def is_well(market: Marketplace, *vendors: str) -> None:
    """Vendors sell and answer as ever."""
    for vendor_id in vendors:
        [order] = await market.place_order(Cart("zoe", [{"vendorId": vendor_id, "sku": "S"}]))
        assert order["status"] == "accepted"


@pytest.mark.parametrize("store", ["packed", "directory"])
def test_a_full_disk_fails_by_name_and_what_was_acknowledged_stays(tmp_path: Path, store: str) -> None:
    """Files may grow no further: orders end in errors or wait in the outbox; with room again all is well."""
    run(onboard, tmp_path / "m", store=store, shards=2)
    placed: list[str] = []

    async def fill(market: Marketplace) -> None:
        largest = max(path.stat().st_size for path in (tmp_path / "m").rglob("*") if path.is_file())
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 20_000, before[1]))
        failures = 0
        try:
            for number in range(400):
                try:
                    async with asyncio.timeout(0.5):
                        cart = Cart(f"c{number}", [{"vendorId": VENDORS[number % 6], "sku": "S"}])
                        placed.extend(order["orderId"] for order in await market.place_order(cart))
                except (StorageError, TimeoutError):
                    failures += 1
                    if failures == 5:
                        break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert failures == 5

    async def after(market: Marketplace) -> None:
        await market.idle()
        for letter in market.dead_letters():
            await market.replay(letter["sender"], letter["seq"])
        await market.idle()
        there = {row[0] for row in (await market.query("SELECT orderId FROM orders")).rows}
        assert set(placed) <= there
        await is_well(market, *VENDORS)

    run(fill, tmp_path / "m")
    run(after, tmp_path / "m")


def test_a_damaged_vendor_fails_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    """Its orders wait as dead letters or in the outbox, and are delivered once it is restored from a copy."""

    async def test(market: Marketplace) -> None:
        await onboard(market)
        market.export_vendor(VENDORS[0], tmp_path / "copy.sqlite")
        shard = market.store.shard_of(VENDORS[0])
        image = bytearray(market.store.image(VENDORS[0]))
        image[0:16] = b"no database here"
        with closing(connect(str(market.store.shard_path(shard)))) as file:  # type: ignore[attr-defined]
            file.execute("UPDATE vendors SET image = ?, version = version + 7 WHERE id = ?", (bytes(image), VENDORS[0]))
        with pytest.raises(CorruptImageError, match=VENDORS[0]):
            await market.vendor(VENDORS[0]).list_products()
        with pytest.raises(MktsimError):
            await market.query("SELECT COUNT(*) FROM products")
        [order] = await market.place_order(Cart("zoe", [{"vendorId": VENDORS[0], "sku": "S"}]))
        assert order["status"] == "placed"
        await is_well(market, *VENDORS[1:])
        market.store.restore(VENDORS[0], (tmp_path / "copy.sqlite").read_bytes())
        await market.idle()
        for letter in market.dead_letters():
            await market.replay(letter["sender"], letter["seq"])
        await market.idle()
        row = await market.vendor(VENDORS[0]).order(order["orderId"])
        assert row["status"] == "accepted"

    run(test, tmp_path / "m", store="packed", shards=2)


@pytest.mark.parametrize("store", ["memory", "packed", "directory"])
def test_images_from_elsewhere_are_refused_by_name(tmp_path: Path, store: str) -> None:
    """No database, a foreign schema, UTF-16, another vendor's rows: nothing is added."""
    foreign, utf16 = tmp_path / "foreign.sqlite", tmp_path / "utf16.sqlite"
    with closing(connect(str(foreign))) as db:
        db.execute("CREATE TABLE products(id TEXT PRIMARY KEY, vendorId TEXT)")
    (tmp_path / "noise.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(5_000))
    (tmp_path / "empty.sqlite").write_bytes(b"")

    async def test(market: Marketplace) -> None:
        await onboard(market)
        market.export_vendor(VENDORS[0], tmp_path / "own.sqlite")
        with closing(connect(str(utf16))) as db:
            db.execute("PRAGMA encoding = 'UTF-16'").fetchall()
            for statement in market._schema.statements:
                db.execute(statement)
            db.execute("INSERT INTO _vendor(id, serial) VALUES('u', 0)")
        mixed = (tmp_path / "own.sqlite").read_bytes()
        (tmp_path / "mixed.sqlite").write_bytes(mixed)
        with closing(connect(str(tmp_path / "mixed.sqlite"))) as db:
            db.execute("UPDATE _vendor SET id = 'thief'")
        before = market.vendors
        for name, error in (
            ("foreign", SchemaMismatchError),
            ("utf16", SchemaMismatchError),
            ("noise", CorruptImageError),
            ("empty", CorruptImageError),
            ("mixed", CorruptImageError),
            ("own", InvalidArgumentError),
            ("missing", StorageError),
        ):
            with pytest.raises(error):
                market.import_vendor(tmp_path / f"{name}.sqlite")
        assert market.vendors == before
        await is_well(market, *VENDORS)

    options = {} if store == "memory" else {"store": store}
    run(test, *([] if store == "memory" else [tmp_path / "m"]), **options)


def test_duplicate_and_malformed_events_and_odd_values_are_named_errors(tmp_path: Path) -> None:
    """Each is refused for what it is; stock, orders and the other vendors are as before."""

    async def test(market: Marketplace) -> None:
        await onboard(market)
        odd = 'it\'s "odd"; DROP TABLE products; --é'
        with pytest.raises(InvalidArgumentError, match="NUL"):
            await market.vendor(odd + "\0").initialize()
        assert market.vendors == VENDORS
        await market.vendor(odd).initialize()
        await market.vendor(odd).create_product(name="Thing", sku="S", price=1, stock=3)
        assert await market.vendor(odd).inventory().available("S") == 3
        for quantity in (-1, 0, float("nan"), float("inf"), 1.5, "1", None, True, 10**30):
            with pytest.raises(InvalidArgumentError):
                Cart("zoe", [{"vendorId": odd, "sku": "S", "quantity": quantity}])
            with pytest.raises(InvalidArgumentError):
                await market.vendor(odd).reserve("S", quantity)
            order = {"orderId": "o", "customer": "z", "items": [{"sku": "S", "quantity": quantity}]}
            with pytest.raises(InvalidArgumentError):
                await market.vendor(odd).handle_order(order)
        with pytest.raises(ParameterError):
            await market.vendor(odd).query("SELECT ?", [float("nan")])
        [order] = await market.place_order(Cart("zoe", [{"vendorId": VENDORS[0], "sku": "S"}]))
        await market.idle()
        [event] = market.events("Order.placed")
        seq = int(event.id.partition("#")[2])
        for _ in range(3):  # the very same event again, as a network may have it: the inbox answers, nothing happens
            copy = EventMessage(event.sender, seq, "Order.placed", json.dumps(event.data), seq)
            await market.network.call("x", "market", copy)
        for number, data in enumerate(("", "{", "[]", "null", "{}", '{"orderId": 5}')):
            broken = EventMessage("system/market", 1_000 + number, "Order.placed", data, 1_000)
            with pytest.raises(MktsimError):
                await market.network.call("x", "market", broken)
        for message in (None, 5, "Order.placed", {"event": 1}):
            with pytest.raises(MktsimError):
                await market.network.call("x", "market", message)
            with pytest.raises(MktsimError):
                await market.network.call("x", f"vendor/{VENDORS[0]}", message)
        assert await market.vendor(VENDORS[0]).inventory().available("S") == STOCK - 1
        with pytest.raises(OrderError):
            await market.vendor(VENDORS[0]).ship_order(odd)
        with pytest.raises(InvalidArgumentError):
            await market.vendor(VENDORS[0]).ship_order("order\0")
        assert order["orderId"] in {row[0] for row in (await market.query("SELECT orderId FROM orders")).rows}
        await is_well(market, *VENDORS)

    run(test, tmp_path / "m", store="packed")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to what is read-only")
def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    """Before anything is made."""
    (tmp_path / "m").mkdir(mode=0o500)
    with pytest.raises(StorageError):
        run(onboard, tmp_path / "m")


def test_a_store_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    """A shard file that may only be read: reading goes on, writing fails by name, and nothing is lost."""
    run(onboard, tmp_path / "m", store="packed", shards=1)

    async def test(market: Marketplace) -> None:
        shard = market.store.shards[0]
        file = market.store._file(shard)  # type: ignore[attr-defined]
        file.execute("PRAGMA query_only = 1").fetchall()
        with pytest.raises(StorageError):
            await market.vendor(VENDORS[0]).restock("product-1", 1)
        assert await market.vendor(VENDORS[0]).inventory().available("S") == STOCK
        assert (await market.query("SELECT COUNT(*) FROM products")).rows == [(6,)]
        file.execute("PRAGMA query_only = 0").fetchall()
        await is_well(market, *VENDORS)

    run(test, tmp_path / "m")
