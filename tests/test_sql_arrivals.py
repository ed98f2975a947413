"""Collected rows enter the gather as they arrive: little memory, any order of arrival, the same answer."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from unittest.mock import patch

import pytest

from mktsim.errors import QueryTooLargeError, VendorDownError
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sql import GatherLimits, Schema, arrivals
from mktsim.sqlite import STATEMENT_CLOCK
from mktsim.testing import run_oracle, typed
from tests.oracle import ask

PLAIN = Schema(
    ("CREATE TABLE t(a INTEGER, b TEXT)", "CREATE TABLE u(a INTEGER, c REAL)", "CREATE INDEX u_c ON u(c, a)")
)
#: Keys that all vendors share: without a shard column one table has them too, unless they collide.
KEYED = Schema(
    (
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)",
        "CREATE TABLE u(a INTEGER, c REAL, UNIQUE(a, c))",
        "CREATE INDEX t_b ON t(b)",
        "CREATE VIEW v AS SELECT a, b FROM t",
    )
)
WINDOW = "SELECT a, b, ROW_NUMBER() OVER (ORDER BY b) FROM t"
STATEMENTS = (
    WINDOW,
    "SELECT t.b, u.c FROM t JOIN u ON t.a = u.a",
    "SELECT b FROM t UNION ALL SELECT c FROM u",
    "SELECT a, (SELECT GROUP_CONCAT(c) FROM u WHERE u.a = t.a) FROM t",
    "SELECT GROUP_CONCAT(b ORDER BY length(b)) FROM t",
)


def fill(schema: Schema, vendors: int, rows: int, *, collide: bool):
    """Return one database with all rows and one per vendor."""
    draw = random.Random(3)
    one, fleet = schema.database(), [schema.database() for _ in range(vendors)]
    if collide and schema is KEYED:  # One table with every row cannot have such keys.
        one.close()
        one = Schema((*PLAIN.statements[:2], *KEYED.statements[2:])).database()
    for place, database in enumerate(fleet):
        for k in range(rows):
            key = k if collide else place * rows + k
            row, other = (key, draw.choice("xyz") * draw.randrange(4)), (draw.randrange(rows * vendors), key + 0.5)
            for target in (one, database):
                target.execute("INSERT INTO t VALUES (?, ?)", row)
                target.execute("INSERT INTO u VALUES (?, ?)", other)
    return one, fleet


def delayed(database, delay: float):
    """Return an execute callable that answers after some turns of the loop."""

    async def execute(sql, params):
        await asyncio.sleep(delay)
        return database.execute(sql, params).fetchall()

    return execute


@pytest.mark.parametrize("large", [2, 10_000])
@pytest.mark.parametrize(("schema", "collide"), [(PLAIN, True), (KEYED, False), (KEYED, True)])
@pytest.mark.parametrize("sql", STATEMENTS)
def test_any_order_of_arrival_gives_the_answer_of_one_sqlite(sql, schema, collide, large):
    """Vendors answer last to first; with keys, without, and with keys that collide; twice, for what is kept of it."""
    one, fleet = fill(schema, 5, 6, collide=collide)
    scanners = [Scanner(f"v{place}", delayed(database, 0.02 - 0.004 * place)) for place, database in enumerate(fleet)]
    coordinator = QueryCoordinator(scanners, schema=schema)
    with patch.object(arrivals, "_LARGE", large):
        for _ in range(2):
            names, rows = run_oracle(one, sql)
            answer = ask(coordinator, sql)
            assert answer.stats.tier == "collect"
            assert typed(answer.rows) == typed(rows)
            assert answer.columns == names
    coordinator.close()
    for database in (one, *fleet):
        database.close()


def peak(vendors: int, rows: int) -> int:
    """Return the peak of Python's memory while so many vendors' rows are collected, in bytes."""

    def execute(_sql, _params):
        return [(number, f"a text that is as long as that of a product {number}") for number in range(rows)]

    coordinator = QueryCoordinator([Scanner(f"v{place:03d}", execute) for place in range(vendors)], schema=PLAIN)
    sql = "SELECT COUNT(*), COUNT(n) FROM (SELECT ROW_NUMBER() OVER (ORDER BY a) AS n FROM t WHERE b > '')"
    tracemalloc.start()
    try:
        assert ask(coordinator, sql).rows == [(vendors * rows, vendors * rows)]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        coordinator.close()


def test_the_peak_is_one_vendors_rows_not_all_of_theirs():
    """Sixteen times the vendors need hardly more memory than one: their rows are in SQLite, which spills."""
    assert peak(16, 4_000) < 1.5 * peak(1, 4_000)


def test_caps_are_named_errors_before_the_last_vendor_has_answered():
    """Rows and bytes; the coordinator answers the next query."""
    asked = []

    def execute(_sql, _params):
        asked.append(1)
        return [(number, "x" * 500) for number in range(1_000)]

    scanners = [Scanner(f"v{place}", execute) for place in range(6)]
    for limits, word in ((GatherLimits(max_rows=2_500), "rows"), (GatherLimits(max_bytes=400_000), "bytes")):
        coordinator = QueryCoordinator(scanners, schema=PLAIN, limits=limits)
        with pytest.raises(QueryTooLargeError, match=word):
            ask(coordinator, WINDOW)
        assert ask(coordinator, "SELECT 1").rows == [(1,)]
        coordinator.close()


def test_a_partial_answer_holds_the_rows_of_those_who_answered():
    """What a vendor that fails has not sent is missing by name, the rest is gathered."""
    one, fleet = fill(PLAIN, 3, 5, collide=False)

    def down(_sql, _params):
        raise VendorDownError("down", vendor_id="v1")

    scanners = [
        Scanner.from_connection("v0", fleet[0]), Scanner("v1", down), Scanner.from_connection("v2", fleet[2])
    ]  # fmt: skip
    coordinator = QueryCoordinator(scanners, schema=PLAIN)
    answer = ask(coordinator, WINDOW, allow_partial=True)
    assert answer.coverage.missing == ("v1",)
    one.execute("DELETE FROM t WHERE a BETWEEN 5 AND 9")
    assert typed(answer.rows) == typed(run_oracle(one, WINDOW)[1])
    coordinator.close()
    for database in (one, *fleet):
        database.close()


def test_now_is_one_instant_although_rows_arrive_over_time():
    """The clock stands still from when the statement runs, not from when rows came."""
    one, fleet = fill(PLAIN, 3, 2, collide=False)
    scanners = [Scanner(f"v{place}", delayed(database, 0.01 * place)) for place, database in enumerate(fleet)]
    coordinator = QueryCoordinator(scanners, schema=PLAIN)
    answer = ask(coordinator, "SELECT DISTINCT unixepoch('now', 'subsec') FROM t")
    assert answer.rows == [(STATEMENT_CLOCK.unix_ms / 1000,)]
    coordinator.close()
    for database in (one, *fleet):
        database.close()
