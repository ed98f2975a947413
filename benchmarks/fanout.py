"""One statement over many vendors, all of them scanned, warm, against four ways to do without this program.

The fleet is the market's own schema in a packed store, `products` products a vendor. The peers:

* *scanner loop*: next image, the same scatter statement, extend a list; no planner, no merge;
* *bare loop*: `benchmarks.bare`, the same written out, the floor of this way to store;
* *threads*: a pool, one file a vendor of SQLite's default page size in rollback-journal mode (a descriptor each), the
  standard library's driver, connections kept open as far as descriptors allow, and a merge in Python that
  concatenates, sorts and adds. Once with a task a vendor, as most would write it; once with a task a thread;
* *one SQLite* that holds all rows, in memory, with no index, as the vendors have none;
* *one DuckDB* that holds all rows, in memory, by column: what an analyst would do with a copy of everything.

The first query is measured again with the shards scanned by one worker process a core, against the two loops alone.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.bare import BareLoop
from benchmarks.measure import Contender, Sizes, Subject
from mktsim.fanout import QueryResult, ScatterPolicy
from mktsim.market import Marketplace
from mktsim.market.catalogue import COLUMNS, catalogue
from mktsim.market.layout import find_layout
from mktsim.market.nouns import SCHEMA, Product
from mktsim.sql import GatherEngine, Planner, register
from mktsim.sqlite import Connection, connect
from mktsim.storage import VendorStore, open_scanner

Row = tuple[Any, ...]
Tables = dict[str, list[Row]]
_SPARE_DESCRIPTORS = 200
#: All are scanned: what summaries and kept partials spare is another figure, in `benchmarks.million`.
VISIT_ALL = ScatterPolicy(visit_all=True)


@dataclass(frozen=True, slots=True)
class Query:
    """A statement, what the planner sends of it, and what somebody without a planner would send and merge."""

    name: str
    sql: str
    params: Row
    scatter_params: Row
    naive: str
    analytic: str
    merge: Callable[[list[Row]], list[Row]]
    equal: Callable[[list[Row], list[Row]], bool]


def _first_ten(rows: list[Row]) -> list[Row]:
    """Sort by rating, NULLs last; Python's sort keeps ties in the order of vendors, as one table would."""
    return sorted(rows, key=lambda row: -math.inf if row[4] is None else row[4], reverse=True)[:10]


def _by_category(rows: list[Row]) -> list[Row]:
    groups: dict[str | None, list[Any]] = {}
    for category, count, total, priced in rows:
        group = groups.setdefault(category, [0, 0.0, 0])
        group[0] += count
        group[1] += total or 0.0
        group[2] += priced
    ordered = sorted(groups.items(), key=lambda item: (item[0] is not None, item[0]))
    return [(category, count, total / priced if priced else None) for category, (count, total, priced) in ordered]


def _nearly(ours: list[Row], theirs: list[Row]) -> bool:
    """Averages of floats that were added in another order: 12 digits; all else exactly."""
    return len(ours) == len(theirs) and all(
        a[:2] == b[:2] and (a[2] == b[2] or math.isclose(a[2], b[2], rel_tol=1e-12))
        for a, b in zip(ours, theirs, strict=True)
    )


_COLUMNS = "id, vendorId, name, price, rating"
TOP_TEN = Query(
    name="top 10 by rating in a category",
    sql=f"SELECT {_COLUMNS} FROM products WHERE category = ? ORDER BY rating DESC LIMIT 10",
    params=("electronics",),
    scatter_params=("electronics", 10),
    naive=f"SELECT {_COLUMNS} FROM products WHERE category = ? ORDER BY rating DESC LIMIT 10",
    analytic=f"SELECT {_COLUMNS} FROM products WHERE category = ? ORDER BY rating DESC NULLS LAST, place LIMIT 10",
    merge=_first_ten,
    equal=lambda ours, theirs: ours == theirs,
)
GROUPS = Query(
    name="COUNT and AVG by category",
    sql="SELECT category, COUNT(*), AVG(price) FROM products GROUP BY category",
    params=(),
    scatter_params=(),
    naive="SELECT category, COUNT(*), SUM(price), COUNT(price) FROM products GROUP BY category",
    analytic="SELECT category, COUNT(*), AVG(price) FROM products GROUP BY category ORDER BY category NULLS FIRST",
    merge=_by_category,
    equal=_nearly,
)


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield one subject for each fleet and query; the fleet exists while its subjects are out."""
    for vendors in sizes.vendors:
        with ExitStack() as stack:
            fleet = Fleet(stack, vendors, sizes, seed)
            for query in (TOP_TEN, GROUPS):
                yield fleet.subject(query)
            yield fleet.subject(TOP_TEN, workers=os.cpu_count() or 1)


class Fleet:
    """The same rows four times: packed, a file a vendor, and in one database."""

    def __init__(self, stack: ExitStack, vendors: int, sizes: Sizes, seed: int) -> None:
        self.stack, self.vendors, self.sizes = stack, vendors, sizes
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mktsim-benchmark-")))
        # Sorted by id, in which order one table would have them; skew 0 gives every vendor as many products.
        made = list(catalogue(vendors=vendors, products=sizes.products, seed=seed, skew=0))
        self.paths, self.whole = write_market(folder / "market", made)
        stack.callback(self.whole.close)
        self.analytic = _in_duckdb(self.whole)
        stack.callback(self.analytic.close)
        self.folder = folder / "market"
        self.runner = stack.enter_context(asyncio.Runner())
        self.market = self._open(None)
        self.files = _write_files(folder, made)
        self.open_files, self.closed_files = _open_files(stack, self.files)
        self.pool = stack.enter_context(ThreadPoolExecutor(sizes.threads))
        self.planner, self.engine = Planner(SCHEMA), GatherEngine()
        stack.callback(self.engine.close)

    def subject(self, query: Query, *, workers: int = 0) -> Subject:
        """Return what is measured of one query, scanned in this process or by workers."""
        (scatter,) = self.planner.plan(query.sql).scatter
        gathered = self._gatherer(query)
        market = self.market
        if workers:
            # A forked worker would inherit the pool's threads and thousands of open files.
            context = multiprocessing.get_context("spawn")
            market = self._open(self.stack.enter_context(ProcessPoolExecutor(workers, mp_context=context)))
        threads = f"{self.sizes.threads} threads, one sqlite3 file a vendor"
        # The loops are one core's: the bar for two cores at 10,000 vendors is to be 1.6 times faster than they.
        is_large = self.vendors >= 10_000
        bar = 1 / 1.6 if workers == 2 and is_large else None if workers else 1.3 if is_large else 2.0
        pooled = 0.25 if query is TOP_TEN else None
        loops = (
            Contender("scanner loop", self._scanner_loop(scatter.sql, query), gathered, bar),
            Contender("bare loop", self._bare_loop(scatter.sql, query), gathered, bar),
        )
        others = (
            Contender(f"{threads} opened at each query", self._threads(query, None, reopen=True), at_most=pooled),
            Contender(f"{threads} kept open, a task a vendor", self._threads(query, None), at_most=pooled),
            Contender(f"{threads} kept open, a task a thread", self._threads(query, self.sizes.threads)),
            Contender("one SQLite holding all rows", self._one(query)),
            Contender("one in-memory DuckDB holding all rows", self._duck(query)),
        )
        return Subject(
            f"{query.name}, {self.vendors:,} vendors" + (f", {workers} worker processes" if workers else ""),
            "vendor",
            self.vendors,
            Contender("market.query, all scanned", self._ours(market, query), lambda result: result.rows),
            loops if workers else loops + others,
            query.equal,
            f"{len(self.closed_files)} files beyond the limit were opened at each query" if self.closed_files else "",
        )

    def _open(self, executor: ProcessPoolExecutor | None) -> Marketplace:
        market = self.runner.run(opened(self.folder, executor))
        self.stack.callback(lambda: self.runner.run(market.close()))
        return market

    def _ours(self, market: Marketplace, query: Query) -> Callable[[], QueryResult]:
        return lambda: self.runner.run(market.query(query.sql, query.params, policy=VISIT_ALL))

    def _gatherer(self, query: Query) -> Callable[[list[Row]], list[Row]]:
        """Return what merges a loop's rows for the comparison: sorted by vendor where rows tell whose they are."""

        def gathered(rows: list[Row]) -> list[Row]:
            ordered = sorted(rows, key=lambda row: str(row[1])) if query is TOP_TEN else rows
            return self.engine.gather(self.planner.plan(query.sql), [("", (ordered,))], query.params)

        return gathered

    def _scanner_loop(self, sql: str, query: Query) -> Callable[[], list[Row]]:
        scanners = [open_scanner(path, register) for path in self.paths]
        for scanner in scanners:
            self.stack.callback(scanner.close)

        def run() -> list[Row]:
            rows: list[Row] = []
            for scanner in scanners:
                for _vendor_id, parts in scanner.scan([(sql, query.scatter_params)]):
                    rows.extend(parts[0])
            return rows

        return run

    def _bare_loop(self, sql: str, query: Query) -> Callable[[], list[Row]]:
        loop = BareLoop(self.paths)
        self.stack.callback(loop.close)
        return lambda: loop.run(sql, query.scatter_params)

    def _threads(self, query: Query, tasks: int | None, *, reopen: bool = False) -> Callable[[], list[Row]]:
        sources: list[Any] = self.files if reopen else [*self.open_files, *self.closed_files]
        size = 1 if tasks is None else math.ceil(len(sources) / tasks)
        batches = [sources[start : start + size] for start in range(0, len(sources), size)]

        def ask(batch: Sequence[sqlite3.Connection | Path]) -> list[Row]:
            rows: list[Row] = []
            for source in batch:
                if isinstance(source, sqlite3.Connection):
                    rows += source.execute(query.naive, query.params).fetchall()
                else:
                    opened = sqlite3.connect(source)
                    rows += opened.execute(query.naive, query.params).fetchall()
                    opened.close()
            return rows

        return lambda: query.merge(list(chain.from_iterable(self.pool.map(ask, batches))))

    def _duck(self, query: Query) -> Callable[[], list[Row]]:
        return lambda: self.analytic.execute(query.analytic, query.params).fetchall()

    def _one(self, query: Query) -> Callable[[], list[Row]]:
        return lambda: self.whole.execute(query.sql, query.params).fetchall()


async def opened(path: Path, executor: ProcessPoolExecutor | None = None) -> Marketplace:
    """Open a market that has been written."""
    return await Marketplace.open(path, executor=executor)


def write_market(path: Path, made: Sequence[tuple[str, Tables]]) -> tuple[list[Path], Connection]:
    """Write a packed market; return its shard files, and one database that holds all its products."""
    layout = find_layout(path, store="packed", shards=None, virtual_nodes=None)
    with layout.open_vendors(path, SCHEMA, layout.ring().get_node) as store:
        store.create_many([(vendor_id, {"_vendor": [(vendor_id, 0)], **tables}) for vendor_id, tables in made])
        paths = [store.shard_path(shard) for shard in store.shards]  # type: ignore[attr-defined]
        return paths, _one_database(store)


def _in_duckdb(whole: Connection) -> Any:
    """Copy all products into a column store in memory; `place` is the order in which one table would have them."""
    import duckdb
    import pandas as pd

    names = ", ".join(Product.names)
    rows = whole.execute(f"SELECT rowid, {names} FROM products ORDER BY rowid").fetchall()
    frame = pd.DataFrame(rows, columns=["place", *Product.names])
    connection = duckdb.connect(":memory:")
    connection.register("frame", frame)
    connection.execute("CREATE TABLE products AS SELECT * FROM frame ORDER BY place")
    connection.unregister("frame")
    return connection


def _one_database(store: VendorStore) -> Connection:
    """Put all products into one table of the market's columns, without the key, which holds within a vendor alone.

    They go in as a walk over one vendor after another finds them: what an unordered tie then means is the same.
    """
    connection = connect()
    connection.execute(
        f"CREATE TABLE products({', '.join(f'{name} {kind.split()[0]}' for name, kind in Product.columns)})"
    )
    names = ", ".join(Product.names)
    walks = [store.scan(shard, [(f"SELECT {names} FROM products", ())]) for shard in store.shards]
    insert = f"INSERT INTO products VALUES({', '.join('?' * len(Product.names))})"
    with connection:
        for _vendor_id, (rows,) in sorted(chain.from_iterable(walks), key=lambda answer: answer[0]):
            connection.executemany(insert, rows)
    return connection


def _write_files(folder: Path, fleet: Sequence[tuple[str, Tables]]) -> list[Path]:
    """Write each vendor's database as a file, in the order of ids, by filling one template and rolling it back."""
    (folder / "files").mkdir()
    template = SCHEMA.database()
    paths = []
    for vendor_id, tables in fleet:
        template.execute("BEGIN")
        for table, rows in tables.items():
            names = COLUMNS.get(table, ("id", "serial"))
            marks = ",".join("?" * len(names))
            template.executemany(f"INSERT INTO {table}({','.join(names)}) VALUES({marks})", rows)
        paths.append(folder / "files" / f"{vendor_id}.sqlite")
        paths[-1].write_bytes(template.serialize("main"))
        template.execute("ROLLBACK")
    template.close()
    return paths


def _open_files(stack: ExitStack, paths: list[Path]) -> tuple[list[sqlite3.Connection], list[Path]]:
    """Open as many as descriptors allow; an LRU would keep none of the rest over a scan of all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    capacity = len(paths) if soft == resource.RLIM_INFINITY else max(0, soft - _SPARE_DESCRIPTORS)
    connections = []
    for path in paths[:capacity]:
        connections.append(sqlite3.connect(path, check_same_thread=False))
        stack.callback(connections[-1].close)
    return connections, paths[capacity:]
