"""What a durable order costs, against one transaction for each order in one SQLite file.

Rules
-----
Every order is on disk before it is acknowledged, ours and the peer's (a write-ahead log, ``synchronous = FULL``). The
peer is the floor, what one writes without any of this: for each order one transaction that inserts it and takes its
stock. Ours places the same number of orders through the whole path: cart, outbox, log, vendor, inbox, ledger; the clock
stops once all events are delivered and settled as well. Each round begins with a new market and a new file.

What this does not do
---------------------
It says nothing of a machine whose disk does not wait: there group commit has nothing to save.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Contender, Sizes, Subject
from mktsim.market import Cart, Marketplace
from mktsim.sqlite import Connection, connect

VENDORS = 200
#: Kind of store, customers at a time; and by how much fewer orders are placed where each waits for the disk.
CASES = (("packed", 1, 10), ("packed", 32, 1), ("packed", 256, 1), ("directory", 32, 10))


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield one subject for each kind of store and number of customers."""
    del seed  # Nothing is drawn.
    for store, customers, fewer in CASES:
        vendors, orders = min(VENDORS, sizes.orders), max(1, sizes.orders // fewer)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="mktsim-benchmark-")))
            ours = _Ours(stack, folder, store, vendors, customers, orders)
            floor = _Floor(stack, folder, orders)
            where = "one shard file" if store == "packed" else "a file a vendor"
            yield Subject(
                f"durable orders, {where}, {vendors} vendors, {customers} customer{'s' * (customers > 1)} at a time",
                "order",
                orders,
                Contender("Marketplace.place_order", ours.run, before=ours.renew),
                (Contender("a transaction an order in one SQLite file", floor.run, before=floor.renew),),
            )


class _Floor:
    """One SQLite file, new for each round."""

    def __init__(self, stack: ExitStack, folder: Path, orders: int) -> None:
        self._folder, self._orders, self._round = folder, orders, 0
        self._file: Connection | None = None
        stack.callback(self._close)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close(True)

    def renew(self) -> None:
        """Begin with a new file."""
        self._close()
        self._round += 1
        file = self._file = connect(str(self._folder / f"floor-{self._round}.sqlite"))
        file.execute("PRAGMA journal_mode = WAL").fetchall()
        file.execute("PRAGMA synchronous = FULL")
        file.execute("CREATE TABLE products(id TEXT PRIMARY KEY, stock INTEGER)")
        file.execute("CREATE TABLE orders(id TEXT PRIMARY KEY, customer TEXT, items TEXT, status TEXT)")
        file.execute("INSERT INTO products VALUES('p', 1000000)")

    def run(self) -> int:
        """Place the orders; return how many there are."""
        assert self._file is not None
        execute = self._file.execute
        for number in range(self._orders):
            execute("BEGIN IMMEDIATE")
            execute("UPDATE products SET stock = stock - 1 WHERE id = 'p' AND stock >= 1")
            execute("INSERT INTO orders VALUES(?, 'zoe', '[]', 'accepted')", (f"order-{number}",))
            execute("COMMIT")
        return int(execute("SELECT COUNT(*) FROM orders").get)


class _Ours:
    """A market, new for each round."""

    def __init__(self, stack: ExitStack, folder: Path, store: str, vendors: int, customers: int, orders: int) -> None:
        self._folder, self._store, self._vendors = folder, store, vendors
        self._customers, self._orders, self._round = customers, orders, 0
        self._runner = stack.enter_context(asyncio.Runner())
        self._close: Callable[[], object] = lambda: None
        stack.callback(lambda: self._close())

    def renew(self) -> None:
        """Begin with a new market whose vendors each have a product."""
        self._close()
        self._round += 1
        self._market = self._runner.run(self._made())
        self._close = lambda: self._runner.run(self._market.close())

    async def _made(self) -> Marketplace:
        market = await Marketplace.open(self._folder / f"market-{self._round}", store=self._store, shards=1)
        stubs = [market.vendor(f"vendor-{number}") for number in range(self._vendors)]
        await asyncio.gather(*(stub.initialize() for stub in stubs))
        product = {"name": "Thing", "sku": "S", "price": 1.5, "stock": 1_000_000}
        await asyncio.gather(*(stub.create_product(product) for stub in stubs))
        return market

    def run(self) -> int:
        """Place the orders; return how many there are."""
        return self._runner.run(self._placed())

    async def _placed(self) -> int:
        market = self._market
        numbers = iter(range(self._orders))

        async def customer() -> None:
            for number in numbers:
                cart = Cart("zoe", [{"vendorId": f"vendor-{number % self._vendors}", "sku": "S"}])
                [order] = await market.place_order(cart)
                assert order["status"] == "accepted"

        await asyncio.gather(*(customer() for _ in range(self._customers)))
        await market.idle()
        ((orders,),) = (await market.query("SELECT COUNT(*) FROM orders")).rows
        return int(orders)
