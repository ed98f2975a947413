"""What planning costs, and what each tier ships: ``python -m benchmarks --only planning``.

Rules
-----
Cold is the first plan of a text: SQLite prepares it, the parser reads it, fragments are probed. Cached is the look-up
by text. Both are medians. Shipped rows are those that reach the coordinator; shipped bytes are their values: one byte
for the type of each, and 8 for a number, the length of a text (in UTF-8) or blob, nothing for NULL.

The collect column answers the same statement over the same fleet with two-phase switched off; both answers are compared
before either is counted.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any
from unittest.mock import patch

from mktsim.fanout import QueryCoordinator, Scanner, threshold
from mktsim.sql import Planner, Schema, planner, register
from mktsim.sql.syntax import Undecided
from mktsim.sqlite import Connection
from mktsim.testing import typed

SCHEMA = Schema(
    (
        "CREATE TABLE products(vendorId TEXT, id TEXT, name TEXT COLLATE NOCASE, category TEXT, price REAL, stock INT)",
        "CREATE TABLE reviews(vendorId TEXT, productId TEXT, stars INTEGER, comment TEXT)",
    ),
    shard_column="vendorId",
)
STATEMENTS = {
    "filter": "SELECT name, price FROM products WHERE price < 20 AND stock > 90",
    "top-k": "SELECT name, price FROM products ORDER BY price, name LIMIT 10",
    "distinct": "SELECT DISTINCT category FROM products",
    "count": "SELECT COUNT(*) FROM products",
    "group": "SELECT category, COUNT(*), AVG(price) FROM products GROUP BY category",
    "having": "SELECT category, SUM(stock) AS s FROM products GROUP BY category HAVING s > 10 ORDER BY s DESC LIMIT 5",
    "count distinct": "SELECT category, COUNT(DISTINCT name) FROM products GROUP BY category",
    "expression": "SELECT SUM(price * stock) / SUM(stock) AS mean FROM products WHERE stock > 0",
    "extremum's row": "SELECT category, name, MAX(price) FROM products GROUP BY category",
    "window": "SELECT name, RANK() OVER (PARTITION BY category ORDER BY price) FROM products",
    "co-located join": "SELECT p.name, r.stars FROM products p JOIN reviews r ON r.vendorId = p.vendorId "
    "AND r.productId = p.id WHERE r.stars < 2",
    "groups of it": "SELECT p.category, AVG(r.stars) FROM products p JOIN reviews r ON r.vendorId = p.vendorId "
    "AND r.productId = p.id GROUP BY p.category",
    "join": "SELECT p.category, AVG(r.stars) FROM products p JOIN reviews r ON r.productId = p.id GROUP BY p.category",
    "sub-query": "SELECT name FROM products WHERE price > (SELECT AVG(price) FROM products)",
    "recursive CTE": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) "
    "SELECT i, COUNT(*) FROM n JOIN products ON stock % 5 = i GROUP BY i",
    "set operation": "SELECT id FROM products EXCEPT SELECT productId FROM reviews",
    "local": "SELECT 1 + 1",
}


def fleet(vendors: int, products: int, seed: int = 2026) -> list[Connection]:
    """Return vendors' databases, each with `products` products and twice as many reviews."""
    draw = random.Random(seed)
    made = []
    for vendor in range(vendors):
        database = SCHEMA.database()
        name = f"v{vendor:05d}"
        rows = [
            (
                *(name, f"{name}-{number}", f"item {draw.randrange(5 * products)}", f"category {draw.randrange(12)}"),
                *(round(draw.uniform(1, 500), 2), draw.randrange(100)),
            )
            for number in range(products)
        ]
        reviews = [(name, draw.choice(rows)[1], 1 + draw.randrange(5), "fine " * 8) for _ in range(2 * products)]
        with database:
            database.executemany("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)", rows)
            database.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?)", reviews)
        made.append(database)
    return made


class _Meter:
    """An execute callable that counts what it hands over."""

    def __init__(self, database: Connection) -> None:
        self._database = database
        self.rows = self.bytes = 0

    def __call__(self, sql: str, params: Any) -> list[tuple[Any, ...]]:
        rows = self._database.execute(sql, params).fetchall()
        self.rows += len(rows)
        self.bytes += sum(_size(value) for row in rows for value in row)
        return rows


def _size(value: Any) -> int:
    if value is None:
        return 1
    if isinstance(value, str):
        return 1 + len(value.encode())
    return 1 + (len(value) if isinstance(value, bytes) else 8)


@contextmanager
def forced_collect() -> Iterator[None]:
    """Switch the two-phase tier off for coordinators and planners that plan within."""

    def undecided(*_arguments: Any, **_options: Any) -> Any:
        raise Undecided("two-phase is switched off")

    with patch.object(planner, "decompose", undecided), patch.object(planner, "push_join", undecided):
        yield


def ship(databases: Sequence[Connection], sql: str) -> tuple[Any, int, int]:
    """Answer a statement over a fleet; return the result and the rows and bytes that its vendors sent."""
    meters = []
    for database in databases:
        register(database)
        meters.append(_Meter(database))
    scanners = [Scanner(f"v{place:05d}", meter, has_functions=True) for place, meter in enumerate(meters)]
    coordinator = QueryCoordinator(scanners, schema=SCHEMA)
    try:
        result = asyncio.run(coordinator.query(sql))
    finally:
        coordinator.close()
    return result, sum(meter.rows for meter in meters), sum(meter.bytes for meter in meters)


def _median_us(planner: Planner, sql: str, repeats: int, *, before: str) -> float:
    """Time planning; a planner that remembers one plan has forgotten it after planning another text before."""
    times = []
    for _ in range(repeats):
        planner.plan(before)
        start = perf_counter()
        planner.plan(sql)
        times.append(perf_counter() - start)
    return 1e6 * statistics.median(times)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure each statement class.

    Parameters
    ----------
    quick : bool
        20 vendors and few repeats, where otherwise 200 vendors; 50 products a vendor both times.

    Returns
    -------
    list of dict
        One a class: tier, cold and cached planning in microseconds, rows and bytes shipped by the planner's own tier
        and by collect, and whether both answers agree.
    """
    vendors, repeats = (20, 5) if quick else (200, 31)
    databases = fleet(vendors, 50)
    found = []
    try:
        for name, sql in STATEMENTS.items():
            cold, warm = Planner(SCHEMA, cache_size=1), Planner(SCHEMA)
            warm.plan(sql)
            result, rows, size = ship(databases, sql)
            with forced_collect():
                collected, all_rows, all_size = ship(databases, sql)
            found.append(
                {
                    "class": name,
                    "tier": result.stats.tier,
                    "cold_us": _median_us(cold, sql, repeats, before="SELECT 1"),
                    "cached_us": _median_us(warm, sql, 20 * repeats, before=sql),
                    "rows": rows,
                    "collect_rows": all_rows,
                    "bytes": size,
                    "collect_bytes": all_size,
                    "collect_over_own": all_size / size if size else 1.0,
                    "agree": typed(result.rows) == typed(collected.rows),
                }
            )
    finally:
        for database in databases:
            database.close()
    return found


def groups_shipped(quick: bool = False) -> list[dict[str, Any]]:
    """Count the rows that the ten largest groups cost, with the rounds of a threshold algorithm and without.

    Parameters
    ----------
    quick : bool
        10 vendors of 200 groups, where otherwise 100 of 2,000.

    Returns
    -------
    list of dict
        One a distribution: ``few`` groups a vendor, sums that fall like 1 / rank, sums that are all alike.
    """
    vendors, groups = (10, 200) if quick else (100, 2_000)
    schema = Schema(("CREATE TABLE sales(item TEXT, amount REAL)",))
    sql = "SELECT item, SUM(amount) AS total FROM sales GROUP BY item ORDER BY total DESC LIMIT 10"
    draw = random.Random(2026)
    found = []
    for name, kept, value in (
        ("few groups", 20, lambda rank: draw.random()),
        ("1 / rank", groups, lambda rank: draw.random() * 1000 / (1 + rank)),
        ("all alike", groups, lambda rank: draw.random()),
    ):
        fleet_ = [schema.database() for _ in range(vendors)]
        for database in fleet_:
            with database:
                items = [(f"item {rank}", round(value(rank), 2)) for rank in draw.sample(range(groups), kept)]
                database.executemany("INSERT INTO sales VALUES (?, ?)", items)
        scanners = [Scanner.from_connection(f"v{place:05d}", database) for place, database in enumerate(fleet_)]
        coordinator = QueryCoordinator(scanners, schema=schema)
        ours = asyncio.run(coordinator.query(sql))
        with patch.object(threshold, "may_pay", lambda _targets: False):
            plain = asyncio.run(coordinator.query(sql))
        coordinator.close()
        for database in fleet_:
            database.close()
        few, all_ = ours.stats.rows_shipped, plain.stats.rows_shipped
        found.append(
            {
                "sums": name,
                "vendors": vendors,
                "groups": groups,
                "rows": few,
                "rows_without": all_,
                "without_over_with": all_ / few,
                "agree": typed(ours.rows) == typed(plain.rows),
            }
        )
    return found
