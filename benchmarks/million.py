"""A large market on disk: scanned whole by worker processes, pruned by summaries, repeated from kept partials.

All scans are by as many processes as there are cores, ours through the coordinator and the peer's as `benchmarks.bare`,
which takes shard file after shard file. The bare loop runs the statement that the planner scatters and merges as we do;
once more it runs what somebody without a planner would write, whose sums depend on the order of rows. What is pruned or
repeated has the same question scanned whole for its peer, and what a repeat takes after some vendors were written is
held against the first time that it was asked.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.bare import Merge, scan_file
from benchmarks.fanout import GROUPS, TOP_TEN, VISIT_ALL, Query, opened
from benchmarks.measure import Contender, Sizes, Subject
from mktsim.fanout import QueryResult, ScatterPolicy
from mktsim.market import Marketplace, generate
from mktsim.market.nouns import SCHEMA
from mktsim.sql import GatherEngine, Planner
from mktsim.sql.merge import merge_groups
from mktsim.storage.folder import file_name, open_file
from mktsim.storage.images import open_quickly
from mktsim.storage.sparse import Bases

Row = tuple[Any, ...]
#: Vendors from which on the bars hold.
LARGE = 1_000_000
BEST = "SELECT name, price FROM products ORDER BY price DESC LIMIT 10"
COUNT = "SELECT COUNT(*) FROM products"
REPEATED = "SELECT category, COUNT(*), AVG(price) FROM products WHERE name <> '' GROUP BY category"
POINT = "SELECT name, price FROM products ORDER BY price DESC LIMIT 3"
CHANGED = 100
POINTS = 300


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield scans, pruned and repeated queries, and point queries; the market exists while they are out."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mktsim-benchmark-"))) / "market"
        started = perf_counter()
        generate(folder, vendors=sizes.large_vendors, products=sizes.products, seed=seed)
        seconds = perf_counter() - started
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        made = f"generated in {seconds:.1f} s, {size / 1e9:.2f} GB"
        market = Market(stack, folder, sizes)
        yield replace(market.scan(TOP_TEN, first_ten, first_ten), note=made)
        yield market.scan(GROUPS, merged_exactly, added)
        yield market.pruned("top 10 by price", BEST, 0.1)
        yield market.pruned("COUNT(*)", COUNT, 0.05)
        yield market.repeated()
        yield replace(market.point(), note=f"peak memory of a process that asked all this: {peak_mb(folder):,.0f} MB")


def first_ten(rows: list[Row]) -> list[Row]:
    """Merge the rows of a top 10 by vendor, for shards are not in the order of vendors, and by rating."""
    return TOP_TEN.merge(sorted(rows, key=lambda row: str(row[1])))


def merged_exactly(rows: list[Row]) -> list[Row]:
    """Merge partials of COUNT(*), an exact sum and a COUNT by category."""
    segments = merge_groups([("", (rows,))], ("", "SUM", "mktsim_sum_merge", "SUM"))
    assert segments is not None
    return [row for _, parts in segments for row in parts[0]]


def added(rows: list[Row]) -> list[Row]:
    """Add up naive partials by category, as floats come."""
    groups: dict[Any, list[Any]] = {}
    for category, number, total, priced in rows:
        group = groups.setdefault(category, [0, 0.0, 0])
        group[0] += number
        group[1] += total or 0.0
        group[2] += priced
    return [(category, *group) for category, group in groups.items()]


class Market:
    """The market, asked with and without summaries, by worker processes."""

    def __init__(self, stack: ExitStack, folder: Path, sizes: Sizes) -> None:
        self.workers = os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")
        self.runner = stack.enter_context(asyncio.Runner())
        self.pool = stack.enter_context(ProcessPoolExecutor(self.workers, mp_context=context))
        self.bare_pool = stack.enter_context(ProcessPoolExecutor(self.workers, mp_context=context))
        self.market = self.runner.run(opened(folder, self.pool))
        stack.callback(lambda: self.runner.run(self.market.close()))
        self.store: Any = self.market.store
        self.vendors = sizes.large_vendors
        self.is_large = self.vendors >= LARGE
        self.changes = count()
        self.planner, self.engine = Planner(SCHEMA), GatherEngine()
        stack.callback(self.engine.close)
        self.stack = stack

    def ask(self, sql: str, params: Row = (), policy: ScatterPolicy | None = None, **options: Any) -> QueryResult:
        """Answer a statement."""
        return self.runner.run(self.market.query(sql, params, policy=policy, **options))

    def scan(self, query: Query, merge: Merge, naive: Merge) -> Subject:
        """Return a statement for which all are scanned, beside the bare loop in as many processes."""
        plan = self.planner.plan(query.sql)
        (scatter,) = plan.scatter

        def exactly(rows: list[Row]) -> list[Row]:
            return self.engine.gather(plan, [("", (rows,))], query.params)

        return Subject(
            f"{query.name}, {self.vendors:,} vendors, all scanned by {self.workers} processes",
            "vendor",
            self.vendors,
            Contender("market.query", lambda: self.ask(query.sql, query.params, VISIT_ALL), lambda result: result.rows),
            (
                Contender(
                    f"bare loop in {self.workers} processes",
                    self._bare(scatter.sql, query.scatter_params, merge),
                    exactly,
                    at_most=1.3 if self.is_large else None,
                ),
                Contender(
                    f"bare loop in {self.workers} processes, what one would write, floats added as they come",
                    self._bare(query.naive, query.params, naive),
                    query.merge,
                ),
            ),
            query.equal,
        )

    def _bare(self, sql: str, params: Row, merge: Merge) -> Callable[[], list[Row]]:
        paths = [self.store.shard_path(shard) for shard in self.store.shards]
        work = partial(scan_file, sql=sql, params=params, merge=merge)
        return lambda: merge(list(chain.from_iterable(self.bare_pool.map(work, paths))))

    def pruned(self, name: str, sql: str, at_most_s: float) -> Subject:
        """Return a statement that summaries decide or narrow down, beside the same scanned."""
        visited = self.ask(sql).stats.vendors_asked
        return Subject(
            f"{name}, {self.vendors:,} vendors, by summaries",
            "query",
            1,
            Contender("market.query", lambda: self.ask(sql), lambda result: result.rows),
            (Contender("the same, all scanned", lambda: self.ask(sql, policy=VISIT_ALL), lambda result: result.rows),),
            note=f"{visited:,} vendors visited",
            at_most_s=at_most_s,
        )

    def repeated(self) -> Subject:
        """Return an aggregate after some vendors were written, beside the first time."""
        kept = self.market._coordinator._partials
        return Subject(
            f"an aggregate again after {CHANGED} of {self.vendors:,} vendors changed",
            "query",
            1,
            Contender("again", lambda: self.ask(REPEATED), lambda result: result.rows, before=self.change),
            (
                Contender(
                    "the first time",
                    lambda: self.ask(REPEATED),
                    lambda result: result.rows,
                    at_most=1 / 50 if self.is_large else None,
                    before=kept.clear,
                ),
                Contender(
                    "scanned each time, nothing kept",
                    lambda: self.ask(REPEATED, policy=VISIT_ALL),
                    lambda result: result.rows,
                ),
            ),
            least_rounds=6,
        )

    def change(self) -> None:
        """Write to some vendors all over the market."""
        ids = self.store.vendor_ids()
        turn = next(self.changes)
        if turn == 0:
            self.ask(REPEATED)  # So that something is kept.
        for place in range(CHANGED):
            with self.store.join(ids[(place * 7_919 + turn) % len(ids)]) as connection:
                connection.execute("UPDATE products SET price = price + 1")
        self.store.flush()

    def point(self) -> Subject:
        """Return queries by shard key, beside opening each image by hand."""
        ids = self.store.vendor_ids()
        ids = ids[:: max(1, len(ids) // POINTS)]
        folder = self.store.path
        files = {shard: open_file(folder / file_name(shard), writable=False) for shard in self.store.shards}
        for file in files.values():
            self.stack.callback(file.close, True)
        bases = Bases(folder)

        def bare() -> list[list[Row]]:
            found = []
            for vendor_id in ids:
                file = files[self.store.shard_of(vendor_id)]
                image: Any = file.execute("SELECT image FROM vendors WHERE id = ?", (vendor_id,)).get
                connection = open_quickly(bases.unpacked(image), vendor_id)
                found.append(connection.execute(POINT).fetchall())
                connection.close(True)
            return found

        return Subject(
            f"{len(ids)} queries by shard key, {self.vendors:,} vendors",
            "query",
            len(ids),
            Contender("market.query", lambda: [self.ask(POINT, shard_key=vendor_id).rows for vendor_id in ids]),
            (Contender("a bare open and read of the image", bare, at_most=3.0),),
        )


def peak_mb(folder: Path) -> float:
    """Return the peak memory of a process that opens the market and asks everything above, MB."""
    code = f"from benchmarks.million import ask_all; print(ask_all({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def ask_all(folder: str) -> float:
    """Ask everything above in this process, whose workers scan; return its peak memory in MB."""
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn")) as pool:

        async def asked() -> None:
            async with Marketplace.open(folder, executor=pool) as market:
                for query in (TOP_TEN, GROUPS):
                    await market.query(query.sql, query.params, policy=VISIT_ALL)
                for sql in (BEST, COUNT, REPEATED, REPEATED):
                    await market.query(sql)
                await market.query(POINT, shard_key=market.store.vendor_ids()[0])

        asyncio.run(asked())
    # Not getrusage(): there a child begins with what its parent had.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), math.nan)
