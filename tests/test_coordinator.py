"""The coordinator: what it answers, what it refuses, and what it says about both."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from mktsim.errors import (
    EmptyFleetError,
    EvaluationError,
    IncompleteAnswerError,
    InvalidArgumentError,
    MktsimError,
    ParameterError,
    QueryError,
    ReadOnlyError,
    SchemaMismatchError,
    SQLSyntaxError,
    UnknownVendorError,
    UnsupportedQueryError,
    VendorError,
)
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.placement import ConsistentHashRing
from mktsim.sql import Schema
from mktsim.sqlite import connect
from tests.oracle import ask

DDL = "CREATE TABLE products(id TEXT PRIMARY KEY, vendorId TEXT, name TEXT, category TEXT, price REAL, stock INTEGER)"
CATALOGUE = {
    "acme": [("p1", "acme", "wireless mouse", "electronics", 19.99, 3), ("p2", "acme", "desk", "home", 120.0, 1)],
    "gadgets": [("p1", "gadgets", "wireless kettle", "kitchen", 49.5, 0)],
    "widgets": [("p1", "widgets", "widget", "electronics", 0.1, 5), ("p2", "widgets", "gear", None, 0.2, None)],
    "empty": [],
}


@pytest.fixture
def fleet():
    """Four vendors, one without rows; product keys collide between them."""
    made = {}
    for vendor, rows in CATALOGUE.items():
        made[vendor] = connect()
        made[vendor].execute(DDL)
        made[vendor].executemany("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)", rows)
    yield made
    for connection in made.values():
        connection.close()


@pytest.fixture
def coordinator(fleet):
    """A coordinator over the fleet."""
    made = QueryCoordinator([Scanner.from_connection(*item) for item in fleet.items()])
    yield made
    made.close()


def test_search_counts_and_averages_over_all_vendors(coordinator):
    """The brief's queries."""
    assert [row["name"] for row in ask(coordinator, "SELECT name FROM products WHERE name LIKE ?", ["%wireless%"])] == [
        "wireless mouse",
        "wireless kettle",
    ]
    count = ask(coordinator, "SELECT COUNT(*) AS count FROM products")
    assert (count.columns, count.rows) == (("count",), [(5,)])
    assert count.stats.tier == "two-phase"
    assert ask(coordinator, "SELECT AVG(price) FROM products").rows == [((19.99 + 120.0 + 49.5 + 0.1 + 0.2) / 5,)]


def test_colliding_keys_disturb_no_tier(coordinator):
    """Two vendors may both have product p1: keys hold within a vendor."""
    assert ask(coordinator, "SELECT id, COUNT(*) FROM products GROUP BY id ORDER BY id").rows == [("p1", 3), ("p2", 2)]
    window = ask(
        coordinator, "SELECT id, ROW_NUMBER() OVER (PARTITION BY id ORDER BY price) FROM products ORDER BY 1, 2"
    )
    assert window.stats.tier == "collect"
    assert window.rows == [("p1", 1), ("p1", 2), ("p1", 3), ("p2", 1), ("p2", 2)]


def test_a_shard_key_routes_to_one_vendor(coordinator):
    """The original text runs there, and nowhere else."""
    answer = ask(coordinator, "SELECT name FROM products WHERE vendorId = ?", ("acme",), shard_key="acme")
    assert answer.rows == [("wireless mouse",), ("desk",)]
    assert (answer.stats.tier, answer.stats.vendors_asked, answer.stats.vendors_pruned) == ("route", 1, 3)


def test_a_condition_on_the_shard_column_routes_without_being_told(coordinator):
    """vendorId = ? is found in WHERE; IN leaves just the vendors it lists."""
    one = ask(coordinator, "SELECT COUNT(*) FROM products WHERE stock > 0 AND vendorId = :v", {"v": "acme"})
    assert (one.rows, one.stats.tier, one.stats.vendors_asked) == ([(2,)], "route", 1)
    two = ask(coordinator, "SELECT COUNT(*) FROM products WHERE vendorId IN ('acme', 'widgets', 'nobody')")
    assert (two.rows, two.stats.tier, two.stats.vendors_asked) == ([(4,)], "two-phase", 2)
    none = ask(coordinator, "SELECT COUNT(*), SUM(stock) FROM products WHERE vendorId = NULL")
    assert (none.rows, none.stats.vendors_asked) == ([(0, None)], 0)


def test_a_column_that_does_not_keep_the_contract_is_not_routed_by(fleet):
    """Where vendorId holds something else than the scanner's id, every vendor is asked."""
    fleet["acme"].execute("UPDATE products SET vendorId = 'widgets' WHERE id = 'p2'")
    coordinator = QueryCoordinator([Scanner.from_connection(*item) for item in fleet.items()])
    answer = ask(coordinator, "SELECT COUNT(*) FROM products WHERE vendorId = 'widgets'")
    assert (answer.rows, answer.stats.vendors_asked) == ([(3,)], 4)
    coordinator.close()


def test_a_ring_finds_the_shard_of_a_key(fleet):
    """With shards behind the scanners, the ring maps the vendor to its scanner."""
    ring = ConsistentHashRing(list(fleet))
    coordinator = QueryCoordinator([Scanner.from_connection(*item) for item in fleet.items()], ring=ring)
    answer = ask(coordinator, "SELECT COUNT(*) FROM products", shard_key="any-vendor")
    assert answer.rows == [(len(CATALOGUE[ring.get_node("any-vendor")]),)]
    coordinator.close()


def counting(calls, answer=()):
    """Return an execute that counts its calls after the schema has been read."""

    def execute(sql, params):
        if "sqlite_schema" in sql:
            return [("table", "products", DDL)]
        calls.append(sql)
        return list(answer)

    return execute


@pytest.mark.parametrize(
    ("sql", "params", "options", "error"),
    [
        ("SELEC name FROM products", (), {}, SQLSyntaxError),
        ("SELECT nothing FROM products", (), {}, SQLSyntaxError),
        ("SELECT 1; DROP TABLE products", (), {}, SQLSyntaxError),
        ("", (), {}, SQLSyntaxError),
        (" -- nothing", (), {}, SQLSyntaxError),
        (None, (), {}, SQLSyntaxError),
        ("DELETE FROM products", (), {}, ReadOnlyError),
        ("INSERT INTO products(id) VALUES (1) RETURNING id", (), {}, ReadOnlyError),
        ("WITH x AS (SELECT 1) UPDATE products SET name = 'x'", (), {}, ReadOnlyError),
        ("ATTACH 'other' AS other", (), {}, ReadOnlyError),
        ("PRAGMA user_version = 3", (), {}, ReadOnlyError),
        ("CREATE TABLE x(a)", (), {}, ReadOnlyError),
        ("VACUUM", (), {}, ReadOnlyError),
        ("SELECT name FROM products WHERE id = ?", (), {}, ParameterError),
        ("SELECT name FROM products WHERE id = ?", (1, 2), {}, ParameterError),
        ("SELECT name FROM products WHERE id = ?", (object(),), {}, ParameterError),
        ("SELECT name FROM products WHERE id = ?", (2**63,), {}, ParameterError),
        ("SELECT name FROM products WHERE id = :a", {"b": 1}, {}, ParameterError),
        ("SELECT name FROM products WHERE id = ?", "x", {}, ParameterError),
        ("SELECT name FROM products WHERE id = ?", ("\ud800",), {}, ParameterError),
        ("SELECT '\ud800' FROM products", (), {}, SQLSyntaxError),
        ("SELECT name\0 FROM products", (), {}, SQLSyntaxError),
        ("SELECT rowid FROM products", (), {}, UnsupportedQueryError),
        ("SELECT name FROM products INDEXED BY i", (), {}, QueryError),
        ("SELECT last_insert_rowid() FROM products", (), {}, UnsupportedQueryError),
        ("SELECT load_extension('x')", (), {}, QueryError),
        ("EXPLAIN SELECT 1", (), {}, UnsupportedQueryError),
        ("SELECT '" + "x" * 1_000_001 + "'", (), {}, UnsupportedQueryError),
        ("SELECT name FROM products", (), {"shard_key": "nobody"}, UnknownVendorError),
        ("SELECT name FROM products", (), {"shard_key": "x" * 1_000_000}, UnknownVendorError),
        ("SELECT name FROM products", (), {"shard_key": 7}, InvalidArgumentError),
        ("SELECT name FROM products", (), {"deadline_s": -1}, InvalidArgumentError),
        ("SELECT name FROM products", (), {"deadline_s": float("nan")}, InvalidArgumentError),
        ("SELECT name FROM products", (), {"deadline_s": "x"}, InvalidArgumentError),
        ("SELECT name FROM products", (), {"deadline_s": True}, InvalidArgumentError),
        ("SELECT name FROM products", (), {"deadline_s": 10**400}, InvalidArgumentError),
    ],
)
def test_bad_input_is_a_named_error_before_any_vendor_is_touched(sql, params, options, error):
    """Nothing reaches a vendor."""
    calls: list[str] = []
    coordinator = QueryCoordinator([Scanner("acme", counting(calls))], schema=Schema((DDL,)))
    with pytest.raises(error) as caught:
        ask(coordinator, sql, params, **options)
    assert isinstance(caught.value, MktsimError)
    assert calls == []
    coordinator.close()


def test_an_empty_fleet_without_a_schema_is_an_error_and_with_one_answers_as_an_empty_table():
    """There is nothing to plan with; with a schema, an aggregate over nothing still has its row."""
    bare = QueryCoordinator([])
    with pytest.raises(EmptyFleetError):
        ask(bare, "SELECT COUNT(*) FROM products")
    planned = QueryCoordinator([], schema=Schema((DDL,)))
    assert ask(planned, "SELECT COUNT(*), SUM(price), TOTAL(price) FROM products").rows == [(0, None, 0.0)]
    assert ask(planned, "SELECT category, COUNT(*) FROM products GROUP BY category").rows == []


def test_scanners_are_checked_when_given():
    """Two of one id, no callable, no connection, no scanners at all: refused at once."""
    for scanners in (None, 3, [3], "abc", ["a"], {"a": Scanner("a", print)}):
        with pytest.raises(InvalidArgumentError, match="scanner"):
            QueryCoordinator(scanners)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="replicas"):
        QueryCoordinator([Scanner("a", print)], replicas=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        QueryCoordinator([Scanner("a", print), Scanner("a", print)])
    with pytest.raises(InvalidArgumentError):
        Scanner("a", "not callable")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        Scanner.from_connection("a", 3)
    with pytest.raises(InvalidArgumentError):
        Scanner("", print)


@pytest.mark.parametrize("answer", [42, None, "abc", [3], [(1,)], ["abc"], [("table", "t", 3)]])
def test_an_execute_that_returns_no_rows_is_named_with_its_vendor(answer):
    """Where the schema is read from it; told of a schema, the coordinator misses that vendor's answer."""
    with pytest.raises(InvalidArgumentError, match="execute of vendor 'acme' must return rows"):
        ask(QueryCoordinator([Scanner("acme", lambda sql, params=(): answer)]), "SELECT name FROM products")


def test_vendors_of_different_schemas_are_refused():
    """One statement cannot mean the same in both."""
    one, two = connect(), connect()
    one.execute("CREATE TABLE t(a)")
    two.execute("CREATE TABLE t(a, b)")
    coordinator = QueryCoordinator([Scanner.from_connection("one", one), Scanner.from_connection("two", two)])
    with pytest.raises(SchemaMismatchError, match="'two'"):
        ask(coordinator, "SELECT a FROM t")
    for made in (coordinator, one, two):
        made.close()


def test_plain_and_async_callables_of_any_driver_are_scanners():
    """Rows may be tuples, mappings or sqlite3 rows; exact sums fall back to collecting."""
    connections = [sqlite3.connect(":memory:") for _ in range(2)]
    for place, connection in enumerate(connections):
        connection.execute("CREATE TABLE t(a REAL)")
        connection.executemany("INSERT INTO t VALUES (?)", [(0.1,)] * (place + 1))
    connections[1].row_factory = sqlite3.Row

    async def later(sql, params):
        await asyncio.sleep(0)
        return [dict(row) for row in connections[1].execute(sql, params)]

    coordinator = QueryCoordinator(
        [Scanner("plain", lambda sql, params: connections[0].execute(sql, params).fetchall()), Scanner("async", later)],
        schema=Schema(("CREATE TABLE t(a REAL)",)),
    )
    answer = ask(coordinator, "SELECT SUM(a), COUNT(*) FROM t")
    assert answer.rows == [(0.30000000000000004, 3)] or answer.rows == [(0.1 + 0.1 + 0.1, 3)]
    assert answer.stats.tier == "collect"
    assert ask(coordinator, "SELECT COUNT(*) FROM t").stats.tier == "two-phase"
    coordinator.close()
    for connection in connections:
        connection.close()


def test_a_failing_vendor_makes_the_answer_incomplete_never_silently_partial(fleet):
    """Fail closed by default; allow_partial says who is missing."""

    def broken(sql, params):
        raise OSError("disk on fire")

    scanners = [Scanner.from_connection("acme", fleet["acme"]), Scanner("broken", broken)]
    coordinator = QueryCoordinator(scanners, schema=Schema((DDL,), shard_column="vendorId"))
    with pytest.raises(IncompleteAnswerError) as caught:
        ask(coordinator, "SELECT COUNT(*) FROM products")
    assert caught.value.missing == ("broken",)
    assert caught.value.answered == 1
    assert isinstance(caught.value.__cause__, VendorError)
    partial = ask(coordinator, "SELECT COUNT(*) FROM products", allow_partial=True)
    assert partial.rows == [(2,)]
    assert (partial.coverage.missing, partial.coverage.complete, partial.coverage.fraction) == (("broken",), False, 0.5)
    assert "broken" in partial._repr_html_()
    coordinator.close()


def test_a_deadline_stops_the_waiting_and_leaves_no_task(fleet):
    """A vendor that never answers is cancelled and named."""

    async def never(sql, params):
        await asyncio.Event().wait()

    async def scenario():
        coordinator = QueryCoordinator(
            [Scanner.from_connection("acme", fleet["acme"]), Scanner("slow", never)], schema=Schema((DDL,))
        )
        with pytest.raises(IncompleteAnswerError) as caught:
            await coordinator.query("SELECT COUNT(*) FROM products", deadline_s=0.05)
        assert caught.value.missing == ("slow",)
        partial = await coordinator.query("SELECT COUNT(*) FROM products", deadline_s=0.05, allow_partial=True)
        assert partial.rows == [(2,)]
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        coordinator.close()

    asyncio.run(scenario())


def test_what_sqlite_fails_to_compute_is_sqlites_own_error(coordinator):
    """Integer overflow of the total, and JSON that is none."""
    with pytest.raises(EvaluationError, match="integer overflow"):
        ask(coordinator, "SELECT SUM(9223372036854775807) FROM products")
    with pytest.raises((EvaluationError, IncompleteAnswerError), match="malformed JSON"):
        ask(coordinator, "SELECT json(name) FROM products")


def test_the_result_can_be_read_in_every_way(coordinator):
    """Rows, dicts, DataFrame, HTML with everything escaped."""
    answer = ask(coordinator, "SELECT name AS '<script>', price, NULL AS n FROM products ORDER BY price LIMIT 2")
    assert answer.rows == [("widget", 0.1, None), ("gear", 0.2, None)]
    assert next(iter(answer)) == {"<script>": "widget", "price": 0.1, "n": None}
    assert list(answer.to_pandas().columns) == ["<script>", "price", "n"]
    assert "<script>" not in answer._repr_html_()
    assert "2 rows" in repr(answer)
    assert set(answer.stats.wall_s) == {"plan", "scatter", "gather", "total"}
    twice = ask(coordinator, "SELECT name, name FROM products LIMIT 1").to_pandas()
    assert list(twice.columns) == ["name", "name"]


def test_explain_tells_tier_statements_and_vendors_without_running(coordinator):
    """Push-downs come with the rule that allows them, a lesser tier with its reason."""
    plan = coordinator.explain("SELECT category, AVG(price) FROM products WHERE stock > 1 GROUP BY category")
    assert plan.tier == "two-phase"
    assert "mktsim_sum(price)" in plan.scatter[0]
    assert "WHERE" not in plan.gather
    assert plan.vendors == 4
    assert coordinator.explain("SELECT RANK() OVER (ORDER BY price) FROM products").reason == "it has a window function"
    routed = coordinator.explain("SELECT name FROM products WHERE vendorId = ?", ("acme",))
    assert (routed.tier, routed.only, routed.pruned) == ("route", ("acme",), 3)
    assert "<" not in str(routed)
    assert "route" in routed._repr_html_()


def test_a_statement_nested_too_deeply_for_the_parser_is_collected(coordinator):
    """SQLite can run it, so it is answered."""
    answer = ask(coordinator, "SELECT COUNT(*) FROM products WHERE " + " AND ".join(["price > 0"] * 900))
    assert answer.rows == [(5,)]


def test_sql_in_every_string_stays_a_string(coordinator):
    """Values, shard keys and names are never spliced into statements."""
    attack = "x'; DROP TABLE products; --"
    assert ask(coordinator, "SELECT name FROM products WHERE name = ?", (attack,)).rows == []
    with pytest.raises(UnknownVendorError):
        ask(coordinator, "SELECT 1", shard_key=attack)
    assert ask(coordinator, "SELECT COUNT(*) FROM products WHERE vendorId = ?", (attack,)).rows == [(0,)]
    assert ask(coordinator, "SELECT COUNT(*) FROM products").rows == [(5,)]
