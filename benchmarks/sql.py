"""Planning, cold and remembered, against SQLite's own preparing; and the exact sum against SQLite's SUM."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.fanout import GROUPS, TOP_TEN
from benchmarks.measure import Contender, Sizes, Subject
from mktsim.market.nouns import SCHEMA
from mktsim.sql import Planner, register
from mktsim.sqlite import connect
from mktsim.streams import Streams

#: A statement of every tier: routed or two-phase, collected, local.
STATEMENTS = (
    TOP_TEN.sql,
    GROUPS.sql,
    "SELECT COUNT(*) AS count FROM products WHERE name LIKE '%wireless%'",
    "SELECT vendorId, name, price FROM products WHERE vendorId = ? AND stock > 0",
    "SELECT category, SUM(stock) AS total FROM products GROUP BY category HAVING total > 9 ORDER BY total DESC LIMIT 5",
    "SELECT name, RANK() OVER (PARTITION BY category ORDER BY price) FROM products",
    "SELECT p.name, r.stars FROM products p JOIN reviews r ON r.productId = p.id ORDER BY r.stars DESC LIMIT 20",
    "SELECT 1 + 1",
)
_REPEATS = 20

Columns = list[tuple[str, ...]]


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield planning, remembered planning and the exact sum."""
    cold, warm = Planner(SCHEMA, cache_size=1), Planner(SCHEMA)
    with closing(sqlite3.connect(":memory:", cached_statements=0)) as plain:
        for statement in SCHEMA.statements:
            plain.execute(statement)
        prepare = Contender("SQLite prepares and runs it on empty tables", _prepare(plain))
        # One plan is remembered, and each statement is another than the one before: none is found.
        yield Subject(
            f"plan {len(STATEMENTS)} statements, cold",
            "statement",
            len(STATEMENTS) * _REPEATS,
            Contender("Planner.plan", _plan(cold)),
            (prepare,),
        )
        yield Subject(
            f"plan {len(STATEMENTS)} statements, remembered",
            "statement",
            len(STATEMENTS) * _REPEATS,
            Contender("Planner.plan", _plan(warm)),
            (Contender("Planner.plan, cold", _plan(cold)), prepare),
        )
    prices = np.round(Streams(seed).uniform("price", 0, sizes.rows) * 500, 2).tolist()
    with closing(connect()) as database:
        register(database)
        database.execute("CREATE TABLE products(price REAL)")
        with database:
            database.executemany("INSERT INTO products VALUES(?)", ((price,) for price in prices))

        def ask(sql: str) -> Callable[[], float]:
            return lambda: float(database.execute(f"SELECT {sql} FROM products").get)

        def in_python() -> float:
            return math.fsum(chain.from_iterable(database.execute("SELECT price FROM products")))

        yield Subject(
            f"sum of {sizes.rows:,} REAL values",
            "row",
            sizes.rows,
            Contender("mktsim_exact_sum", ask("mktsim_exact_sum(price)")),
            (
                Contender("SQLite's SUM, not exact", ask("SUM(price)"), _Rounded),
                Contender("math.fsum over SELECT", in_python),
            ),
            # SQLite's compensated sum may differ in the last digits; every other way must give the same bits.
            lambda ours, theirs: math.isclose(ours, theirs, rel_tol=1e-14 if isinstance(theirs, _Rounded) else 0.0),
        )


class _Rounded(float):
    """A sum that may be off in its last digits."""


def _plan(planner: Planner) -> Callable[[], Columns]:
    return lambda: [planner.plan(sql).columns for _ in range(_REPEATS) for sql in STATEMENTS]


def _prepare(connection: sqlite3.Connection) -> Callable[[], Columns]:
    calls: list[tuple[str, Any]] = [(sql, ("electronics",) * sql.count("?")) for sql in STATEMENTS]

    def names(sql: str, params: Any) -> tuple[str, ...]:
        return tuple(entry[0] for entry in connection.execute(sql, params).description)

    return lambda: [names(*call) for _ in range(_REPEATS) for call in calls]
