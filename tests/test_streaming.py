"""Streams: the rows of a query, vendor by vendor, with bounded memory and an early stop."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from mktsim.errors import IncompleteAnswerError, InvalidArgumentError, OverloadedError, QueryError
from mktsim.fanout import QueryCoordinator, RowStream, Scanner, ScatterPolicy, prepare, store_scanners
from mktsim.market import Marketplace
from mktsim.sim.loop import sim_run
from mktsim.sql import Schema
from mktsim.storage import open_store
from mktsim.testing import Grammar, make_coordinator, typed

SCHEMA = Schema(("CREATE TABLE t(a INTEGER, b TEXT)",))


class Fleet:
    """Vendors that count how often they are asked; vendor i has `rows` rows (i, n)."""

    def __init__(self, vendors: int, rows: int = 3, *, fails: int = -1, sleeps: bool = False) -> None:
        self.asked: list[int] = []
        self.cancelled: list[int] = []
        self.rows = rows
        self.fails = fails
        self.sleeps = sleeps
        self.made = QueryCoordinator([Scanner(f"v{i:05d}", self.execute(i)) for i in range(vendors)], schema=SCHEMA)

    def execute(self, vendor: int) -> Any:
        """Return the vendor's callable: its database is made for the call."""

        def answer(sql: str, params: Any) -> list[tuple[Any, ...]]:
            self.asked.append(vendor)
            if vendor == self.fails:
                raise ConnectionError("gone")
            with closing(SCHEMA.database()) as database:
                rows = ((vendor * 10 + n, "x" * 100) for n in range(self.rows))
                database.executemany("INSERT INTO t VALUES (?, ?)", rows)
                return database.execute(sql, params).fetchall()

        async def later(sql: str, params: Any) -> list[tuple[Any, ...]]:
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                self.cancelled.append(vendor)
                raise
            return answer(sql, params)

        return later if self.sleeps else answer


async def all_of(stream: RowStream) -> list[dict[str, Any]]:
    """Return every row."""
    return [row async for row in stream]


def test_rows_come_vendor_by_vendor_as_dicts_in_the_order_of_vendors():
    """As iterating a result would give them."""
    fleet = Fleet(20)

    async def story() -> None:
        stream = fleet.made.stream("SELECT a, b AS text FROM t")
        rows = await all_of(stream)
        assert rows == list(await fleet.made.query("SELECT a, b AS text FROM t"))
        assert [row["a"] for row in rows] == [10 * i + n for i in range(20) for n in range(3)]
        assert stream.columns == ("a", "text")
        assert stream.stats is not None
        assert (stream.stats.delivery, stream.stats.vendors_answered) == ("streamed", 20)
        assert stream.coverage is not None
        assert stream.coverage.complete

    asyncio.run(story())
    fleet.made.close()


def test_a_limit_stops_early_and_counts_the_offset_over_vendors():
    """Rows 5 to 9 of 3,000 vendors: only the first few vendors are asked."""
    fleet = Fleet(3_000)
    rows = asyncio.run(all_of(fleet.made.stream("SELECT a FROM t LIMIT ? OFFSET ?", (5, 5))))
    assert [row["a"] for row in rows] == [12, 20, 21, 22, 30]
    assert len(fleet.asked) <= 16
    fleet.asked.clear()
    assert asyncio.run(all_of(fleet.made.stream("SELECT a FROM t LIMIT 0"))) == []
    assert fleet.asked == []
    assert len(asyncio.run(all_of(fleet.made.stream("SELECT a FROM t LIMIT -1 OFFSET 8990")))) == 10
    with pytest.raises(QueryError, match="datatype mismatch"):
        asyncio.run(all_of(fleet.made.stream("SELECT a FROM t LIMIT 'x'")))
    fleet.made.close()


def test_leaving_the_loop_cancels_what_runs():
    """What was asked ahead is cancelled, no task is left, and the place in the queue is free again."""
    fleet = Fleet(100, sleeps=True)

    async def story() -> None:
        policy = ScatterPolicy(max_in_flight=1)
        async with fleet.made.stream("SELECT a FROM t", policy=policy) as stream:
            seen = 0
            async for _ in stream:
                seen += 1
                if seen == 20:
                    with pytest.raises(OverloadedError):
                        await fleet.made.query("SELECT a FROM t", policy=policy)
                    break
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        assert fleet.made._in_flight == 0
        assert stream.stats is not None
        assert 0 < stream.stats.vendors_answered < 100
        # Without `async with`, dropping the stream does it.
        async for _ in fleet.made.stream("SELECT a FROM t"):
            break
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    sim_run(story())
    assert len(fleet.cancelled) > 0
    assert len(fleet.asked) < 50
    fleet.made.close()


def test_a_vendor_that_fails_ends_the_stream_in_an_error_after_the_rows_before_it():
    """Never a short stream that ends in peace; unless a partial answer was allowed."""
    fleet = Fleet(10, fails=4)

    async def story() -> None:
        seen = []
        stream = fleet.made.stream("SELECT a FROM t")

        async def to_its_end() -> None:
            async for row in stream:
                seen.append(row["a"])  # noqa: PERF401

        with pytest.raises(IncompleteAnswerError) as caught:
            await to_its_end()
        assert seen == [10 * i + n for i in range(4) for n in range(3)]
        assert caught.value.missing == ("v00004",)
        stream = fleet.made.stream("SELECT a FROM t", allow_partial=True)
        assert len(await all_of(stream)) == 27
        assert stream.coverage is not None
        assert stream.coverage.missing == ("v00004",)

    asyncio.run(story())
    fleet.made.close()


def test_a_deadline_holds_for_the_whole_stream():
    """Sixteen at a time, a second each: what is not there by then is missing."""
    fleet = Fleet(100, sleeps=True)

    async def story() -> int:
        seen = 0
        try:
            async for _ in fleet.made.stream("SELECT a FROM t", deadline_s=3.5):
                seen += 1
        except IncompleteAnswerError:
            return seen
        return -1

    assert 3 <= sim_run(story()) < 300
    fleet.made.close()


def test_what_is_sorted_or_grouped_is_gathered_first_and_says_so():
    """ORDER BY, DISTINCT, aggregates: the same rows as a query's, after all have answered."""
    fleet = Fleet(10)

    async def story() -> None:
        for sql in ("SELECT a FROM t ORDER BY a DESC", "SELECT DISTINCT b FROM t", "SELECT COUNT(*) FROM t"):
            stream = fleet.made.stream(sql)
            assert await all_of(stream) == list(await fleet.made.query(sql))
            assert stream.stats is not None
            assert stream.stats.delivery == "gathered"

    asyncio.run(story())
    fleet.made.close()


def test_memory_is_bounded_by_a_few_vendors_however_many_there_are():
    """Two hundred vendors of 500 rows of 100 characters, some 20 MB of rows, in under 6 MB."""
    fleet = Fleet(200, rows=500)

    async def story() -> int:
        count = 0
        async for batch in fleet.made.stream("SELECT a, b || a FROM t").batches():
            count += len(batch)
        return count

    asyncio.run(all_of(fleet.made.stream("SELECT a, b || a FROM t LIMIT 1")))
    tracemalloc.start()
    try:
        assert asyncio.run(story()) == 100_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6
    fleet.made.close()


def test_vendors_of_shards_stream_in_the_order_of_vendors(tmp_path):
    """Shards are asked for a few hundred of their vendors at a time, so that order and memory both hold."""
    shards = ["s0", "s1", "s2"]
    with open_store(
        "packed", tmp_path / "p", SCHEMA, shards=shards, locate=lambda id_: shards[sum(id_.encode()) % 3], setup=prepare
    ) as store:
        store.create_many((f"v{i:04d}", {"t": [(i, "x"), (i, "y")]}) for i in range(1_000))
        made = QueryCoordinator(store_scanners(store), schema=SCHEMA, fanout_width=2)

        async def story() -> None:
            stream = made.stream("SELECT a, b FROM t")
            assert [row["a"] for row in await all_of(stream)] == [i for i in range(1_000) for _ in range(2)]
            assert stream.stats is not None
            assert (stream.stats.delivery, stream.stats.vendors_answered) == ("streamed", 1_000)
            short = made.stream("SELECT a FROM t LIMIT 3")
            assert [row["a"] for row in await all_of(short)] == [0, 0, 1]
            assert short.stats is not None
            assert short.stats.vendors_asked == 256

        asyncio.run(story())
        made.close()


@given(st.randoms(use_true_random=False))
def test_a_stream_has_the_rows_of_the_query_whatever_the_statement(chance):
    """Statements of every tier, LIMIT and OFFSET included, value for value and in order."""
    grammar = Grammar(chance)
    case = grammar.case()
    fleet = case.fleet()
    made = make_coordinator(case, fleet)

    async def rows(sql: str, params: Any) -> Any:
        return [row async for batch in made.stream(sql, params).batches() for row in batch]

    for _ in range(3):
        sql, params = grammar.statement(case)
        note(sql)
        try:
            expected = asyncio.run(made.query(sql, params))
        except QueryError as error:
            with pytest.raises(type(error)):
                asyncio.run(rows(sql, params))
        else:
            assert typed(asyncio.run(rows(sql, params))) == typed(expected.rows)
    for each in (made, *fleet):
        each.close()


def test_the_grammar_does_exercise_streams():
    """Of plain statements a good share is streamed, not gathered: the law above has something to say."""
    deliveries: dict[str, int] = {}
    for seed in range(150):
        grammar = Grammar(random.Random(seed))
        case = grammar.case(vendors=4)
        fleet = case.fleet()
        made = make_coordinator(case, fleet)

        async def delivery(sql: str, params: Any, made: QueryCoordinator = made) -> str:
            stream = made.stream(sql, params)
            async for _ in stream.batches():
                pass
            assert stream.stats is not None
            return stream.stats.delivery

        sql, params = grammar.statement(case)
        try:
            kind = asyncio.run(delivery(sql, params))
        except QueryError:
            kind = "refused"
        deliveries[kind] = deliveries.get(kind, 0) + 1
        for each in (made, *fleet):
            each.close()
    assert deliveries["streamed"] >= 5
    assert deliveries["gathered"] >= 50


def test_a_market_streams_and_takes_a_policy():
    """The same rows as its query's, one by one, and one policy for one query."""

    async def story():
        async with Marketplace.open(shards=2) as market:
            for name in ("acme", "beta", "zeta"):
                vendor = market.vendor(name)
                await vendor.initialize(name=name.title())
                await vendor.create_product(name=f"lamp of {name}", sku="S1", price=5, stock=1)
            sql = "SELECT vendorId, name FROM products WHERE stock > ?"
            async with market.stream(sql, [0]) as stream:
                streamed = [tuple(row.values()) async for row in stream]
            assert stream.stats.delivery == "streamed"
            whole = await market.query(sql, [0], policy=ScatterPolicy(retries=1, window=1))
            assert streamed == whole.rows
            with pytest.raises(InvalidArgumentError, match="ScatterPolicy"):
                await market.query(sql, [0], policy={"retries": 1})
            async for _ in market.stream(sql, [0]):
                break  # The rest is given up; the market closes in peace.
            return len(streamed)

    assert asyncio.run(story()) == 3
