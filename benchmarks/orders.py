"""What a durable order costs: ``python -m benchmarks.orders [--quick]``.

Rules
-----
Every order is on disk before it is acknowledged, ours and the peer's (a write-ahead log, ``synchronous = FULL``). The
floor is what one writes without any of this: one SQLite file, and for each order one transaction that inserts it and
takes its stock. Ours places the same number of orders through the whole path: cart, outbox, log, vendor, inbox, ledger;
the clock stops once all events are delivered and settled as well.

What this does not do
---------------------
It says nothing of a machine whose disk does not wait: there group commit has nothing to save.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from mktsim.market import Cart, Marketplace
from mktsim.sqlite import connect


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure and return one row per subject: orders per second, and the ratio to the floor of the same round."""
    orders, vendors, rounds = (300, 50, 3) if quick else (2_000, 200, 5)
    results: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            floor = _floor(Path(folder) / "floor.sqlite", orders)
            for store, many, concurrency in (
                ("packed", vendors, 1),
                ("packed", vendors, 32),
                ("packed", vendors, 256),
                ("directory", vendors, 32),
                ("directory", 1, 32),
            ):
                some = orders // 10 if concurrency == 1 or store == "directory" else orders
                path = Path(folder) / f"market-{store}-{many}-{concurrency}"
                rate = asyncio.run(_ours(path, store, some, many, concurrency))
                where = "one shard file" if store == "packed" else "a file a vendor"
                name = f"{where}, {many} vendor{'s' * (many > 1)}, {concurrency} customers at a time"
                results.setdefault(name, []).append((rate, floor))
    return [
        {
            "subject": f"durable orders, {name}",
            "orders": orders,
            "rounds": rounds,
            "orders_per_s": round(median(rate for rate, _ in rates), 1),
            "floor_orders_per_s": round(median(floor for _, floor in rates), 1),
            "times_the_floor": round(median(rate / floor for rate, floor in rates), 2),
        }
        for name, rates in results.items()
    ]


def _floor(path: Path, orders: int) -> float:
    """Return orders per second of one transaction per order in a loop."""
    db = connect(str(path))
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE products(id TEXT PRIMARY KEY, stock INTEGER)")
        db.execute("CREATE TABLE orders(id TEXT PRIMARY KEY, customer TEXT, items TEXT, status TEXT)")
        db.execute("INSERT INTO products VALUES('p', 1000000)")
        start = perf_counter()
        for number in range(orders):
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE products SET stock = stock - 1 WHERE id = 'p' AND stock >= 1")
            db.execute("INSERT INTO orders VALUES(?, 'zoe', '[]', 'accepted')", (f"order-{number}",))
            db.execute("COMMIT")
        return orders / (perf_counter() - start)
    finally:
        db.close(True)


async def _ours(path: Path, store: str, orders: int, vendors: int, concurrency: int) -> float:
    """Return orders per second, each acknowledged by its vendor."""
    async with Marketplace.open(path, store=store, shards=1) as market:
        stubs = [market.vendor(f"vendor-{number}") for number in range(vendors)]
        await asyncio.gather(*(stub.initialize() for stub in stubs))
        products = {"name": "Thing", "sku": "S", "price": 1.5, "stock": 1_000_000}
        await asyncio.gather(*(stub.create_product(products) for stub in stubs))
        numbers = iter(range(orders))

        async def customer() -> None:
            for number in numbers:
                cart = Cart("zoe", [{"vendorId": f"vendor-{number % vendors}", "sku": "S"}])
                [order] = await market.place_order(cart)
                assert order["status"] == "accepted"

        start = perf_counter()
        await asyncio.gather(*(customer() for _ in range(concurrency)))
        await market.idle()
        rate = orders / (perf_counter() - start)
        assert (await market.query("SELECT COUNT(*), SUM(totalMinor) FROM orders")).rows == [(orders, 150 * orders)]
        return rate


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(json.dumps(row))
