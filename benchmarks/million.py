"""A large market: what summaries and kept partials spare, against scanning everybody.

``python -m benchmarks.million --vendors 1000000 --folder F`` makes the market in F, or takes the one that is there, and
writes to 100 of its vendors. Each statement is answered warm, by a coordinator that may prune and by one that scans
all, in turn; medians, and whether the answers agree.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from mktsim.fanout import QueryCoordinator, ScatterPolicy, store_scanners
from mktsim.market import Marketplace
from mktsim.market.generate import generate
from mktsim.market.nouns import SCHEMA
from mktsim.storage.folder import file_name, open_file
from mktsim.storage.images import open_quickly
from mktsim.storage.sparse import Bases

#: Statements, and what is looked at in them.
QUERIES = {
    "COUNT(*)": "SELECT COUNT(*) FROM products",
    "COUNT, MIN, MAX by category": "SELECT category, COUNT(*), MIN(price), MAX(price) FROM products GROUP BY category",
    "MAX of one category": "SELECT MAX(price) FROM products WHERE category = 'pets'",
    "top 10": "SELECT name, price FROM products ORDER BY price DESC LIMIT 10",
    "top 10 of many ties": "SELECT name, rating FROM products ORDER BY rating DESC, vendorId, id LIMIT 10",
    "top 10 of one category": "SELECT name, price FROM products WHERE category = 'pets' ORDER BY price LIMIT 10",
    "rows of few vendors": "SELECT name, price FROM products WHERE price > 50000",
}
REPEATED = "SELECT category, COUNT(*), AVG(price) FROM products WHERE name <> '' GROUP BY category"
CHANGED = 100


async def measure(folder: Path, workers: int, rounds: int) -> None:
    """Measure, and print as it goes."""
    with ExitStack() as stack:
        executor = None
        if workers:
            context = multiprocessing.get_context("spawn")
            executor = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
        async with Marketplace.open(folder, executor=executor) as market:
            vendors = len(market.store)
            scanners = store_scanners(market.store, executor=executor)
            pruning = QueryCoordinator(scanners, schema=SCHEMA, address="pruning")
            stack.callback(pruning.close)
            scanners = store_scanners(market.store, executor=executor)
            everybody = ScatterPolicy(visit_all=True)
            scanning = QueryCoordinator(scanners, schema=SCHEMA, address="scanning", policy=everybody)
            stack.callback(scanning.close)
            print(f"{vendors:,} vendors, {len(market.store.shards)} shards, {workers or 'no'} worker processes")
            started = perf_counter()
            loaded = [market.store.summaries(shard) for shard in market.store.shards]
            seconds = perf_counter() - started
            held = sum(each.nbytes for each in loaded if each is not None) / 1e6
            print(f"summaries loaded in {seconds:.2f} s, {held:.1f} MB")
            for name, sql in QUERIES.items():
                await compare(name, sql, pruning, scanning, rounds)
            await repeat(market, pruning, scanning)
            await point(market, pruning)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"peak memory of the coordinator: {peak:,.0f} MB")


async def timed(coordinator: QueryCoordinator, sql: str, **options: Any) -> tuple[float, Any]:
    """Return milliseconds and the result."""
    started = perf_counter()
    result = await coordinator.query(sql, **options)
    return 1e3 * (perf_counter() - started), result


async def compare(name: str, sql: str, pruning: QueryCoordinator, scanning: QueryCoordinator, rounds: int) -> None:
    """Print what a statement takes, pruned and scanned."""
    await timed(pruning, sql)
    pruned_ms, scanned_ms = [], []
    for round_ in range(rounds):
        milliseconds, pruned = await timed(pruning, sql)
        pruned_ms.append(milliseconds)
        if round_ < 3:
            milliseconds, scanned = await timed(scanning, sql)
            scanned_ms.append(milliseconds)
    agree = "equal" if pruned.rows == scanned.rows else "DIFFERENT"
    print(
        f"{name:<30} {median(pruned_ms):9.2f} ms pruned {median(scanned_ms):10.1f} ms scanned "
        f"{pruned.stats.vendors_asked:>8,} visited  {agree}"
    )


async def repeat(market: Marketplace, pruning: QueryCoordinator, scanning: QueryCoordinator) -> None:
    """Print what a repeated aggregate takes."""
    plain_ms = median([(await timed(scanning, REPEATED))[0] for _ in range(3)])
    first_ms, _ = await timed(pruning, REPEATED)
    print(f"aggregate, first time: {first_ms:.1f} ms ({plain_ms:.1f} ms where nothing is kept)")
    print(f"kept partials: {pruning._partials.nbytes / 1e6:.1f} MB")
    again_ms, _ = await timed(pruning, REPEATED)
    print(f"again, nothing changed: {again_ms:.2f} ms")
    ids = market.store.vendor_ids()
    for round_ in range(3):
        for place in range(CHANGED):
            with market.store.join(ids[(place * 7_919 + round_) % len(ids)]) as connection:
                connection.execute("UPDATE products SET price = price + 1")
        market.store.flush()
        changed_ms, result = await timed(pruning, REPEATED)
        scanned = (await timed(scanning, REPEATED))[1]
        agree = "equal" if result.rows == scanned.rows else "DIFFERENT"
        print(
            f"after {CHANGED} vendors changed: {changed_ms:.1f} ms, 1/{first_ms / changed_ms:.0f} of the first, "
            f"{result.stats.vendors_asked:,} visited  {agree}"
        )


async def point(market: Marketplace, pruning: QueryCoordinator) -> None:
    """Print what one vendor's answer takes, against opening its image by hand."""
    sql = "SELECT name, price FROM products ORDER BY price DESC LIMIT 3"
    store: Any = market.store
    ids = store.vendor_ids()[:: max(1, len(store) // 300)]
    files = {shard: open_file(store.path / file_name(shard), writable=False) for shard in store.shards}
    bases = Bases(store.path)
    ours, bare = [], []
    for vendor_id in ids:
        milliseconds, _ = await timed(pruning, sql, shard_key=vendor_id)
        ours.append(milliseconds)
        started = perf_counter()
        file = files[store.shard_of(vendor_id)]
        image = file.execute("SELECT image FROM vendors WHERE id = ?", (vendor_id,)).fetchone()[0]
        connection = open_quickly(bases.unpacked(image), vendor_id)
        connection.execute(sql).fetchall()
        connection.close(True)
        bare.append(1e3 * (perf_counter() - started))
    for file in files.values():
        file.close(True)
    print(f"point query: {1e3 * median(ours):.0f} us, bare open and read {1e3 * median(bare):.0f} us: "
          f"ratio {median(ours) / median(bare):.2f}")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the market where there is none, and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__)
    parser.add_argument("--vendors", type=int, default=100_000)
    parser.add_argument("--products", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the market is or is to be; temporary when absent")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that scan; 0 for none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=20261122)
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        folder = options.folder if options.folder is not None else Path(temporary) / "market"
        if not (folder / "market.json").exists():
            started = perf_counter()
            generate(folder, vendors=options.vendors, products=options.products, seed=options.seed)
            print(f"generated in {perf_counter() - started:.1f} s")
        asyncio.run(measure(folder, options.workers, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
