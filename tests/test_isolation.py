"""No way from one vendor to another's rows, to a file, to code, or to more than its share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import InvalidArgumentError, IsolationError, MktsimError, QueryTooLargeError
from mktsim.market import Marketplace, VendorObject
from mktsim.objects import Limits

SECRET = "the-victims-secret"


class Evil(VendorObject):
    """A vendor whose code does what it is told."""

    limits = Limits(result_rows=5_000, result_bytes=200_000, value_bytes=100_000, steps=2_000_000)

    def evil(self, sql: str, params: Any = ()) -> Any:
        return self.sql.execute(sql, params)

    def evil_and_careless(self, sql: str) -> Any:
        try:
            self.sql.execute(sql)
        except MktsimError:
            return "swallowed"
        return "done"


STATEMENTS = [
    "ATTACH '{other}' AS other",
    "ATTACH ':memory:' AS scratch",
    "ATTACH 'file:{other}?mode=ro' AS other",
    "ATTACH '' AS t",
    "DETACH main",
    "VACUUM",
    "VACUUM INTO '{out}'",
    "PRAGMA database_list",
    "PRAGMA temp_store_directory = '{folder}'",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA writable_schema = 1",
    "PRAGMA trusted_schema = 1",
    "PRAGMA page_size = 4096",
    "PRAGMA user_version = 7",
    "PRAGMA application_id = 7",
    "PRAGMA schema_version = 7",
    "PRAGMA foreign_keys = 0",
    "PRAGMA mmap_size = 100000000",
    "PRAGMA hard_heap_limit = 1",
    "PRAGMA wal_checkpoint",
    "PRAGMA function_list",
    "PRAGMA module_list",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_function_list",
    "SELECT load_extension('evil')",
    "SELECT readfile('{other}')",
    "SELECT writefile('{out}', 'x')",
    "SELECT edit('x')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT * FROM sqlite_dbpage",
    "SELECT * FROM dbstat",
    "SELECT * FROM sqlite_stmt",
    "SELECT * FROM fsdir('{folder}')",
    "SELECT * FROM zipfile('{other}')",
    "CREATE TABLE t(x)",
    "CREATE TEMP TABLE t(x)",
    "CREATE TEMP VIEW v AS SELECT 1",
    "CREATE TEMP TRIGGER t AFTER INSERT ON products BEGIN SELECT 1; END",
    "CREATE VIEW v AS SELECT * FROM products",
    "CREATE TRIGGER t AFTER INSERT ON products BEGIN UPDATE products SET vendorId = 'victim'; END",
    "CREATE INDEX i ON products(name)",
    "CREATE VIRTUAL TABLE v USING fts5(x)",
    "CREATE VIRTUAL TABLE v USING csv(filename='{other}')",
    "CREATE VIRTUAL TABLE v USING dbstat(main)",
    "CREATE TABLE t AS SELECT * FROM products",
    "ALTER TABLE products RENAME TO p",
    "ALTER TABLE products DROP COLUMN name",
    "DROP TABLE products",
    "DROP VIEW things",
    "REINDEX",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "END",
    "ROLLBACK",
    "SAVEPOINT s",
    "RELEASE step",
    "ROLLBACK TO step",
    "UPDATE sqlite_schema SET sql = 'x'",
    "INSERT INTO sqlite_schema VALUES('table', 't', 't', 0, '')",
    "DELETE FROM sqlite_schema",
    "UPDATE _vendor SET id = 'victim'",
    "UPDATE _vendor SET alarm = 0",
    "DELETE FROM _outbox",
    "INSERT INTO _outbox VALUES(1, 'Order.placed', '{{}}', NULL)",
    "INSERT INTO _inbox VALUES('a', 1, '', '')",
    "DELETE FROM _inbox",
    "INSERT INTO products(id, vendorId, name) VALUES('x', 'victim', 'n')",
    "INSERT INTO products(id, name) VALUES('x', 'n')",
    "INSERT OR REPLACE INTO products(id, vendorId) VALUES('p', 'victim')",
    "INSERT INTO products(id, vendorId) SELECT 'x', 'vic' || 'tim'",
    "INSERT INTO products(id, vendorId) VALUES('p', 'evil') ON CONFLICT DO UPDATE SET vendorId = 'victim'",
    "REPLACE INTO entries(id, vendorId) VALUES('e', 'victim')",
    "UPDATE products SET vendorId = 'victim'",
    "UPDATE products SET name = 'x', VENDORID = lower('VICTIM')",
    "UPDATE OR REPLACE products SET vendorId = 'victim'",
    "WITH c AS (SELECT 'victim' v) INSERT INTO products(id, vendorId) SELECT 'x', v FROM c",
    "INSERT INTO products(id, vendorId) VALUES('y', 'evil'); INSERT INTO products(id, vendorId) VALUES('x', 'victim')",
    "SELECT * FROM other.products",
    "SELECT * FROM temp.products",
    "EXPLAIN ATTACH 'x' AS y",
    "SELECT sqlite_compileoption_get(0), readfile('/etc/passwd')",
]

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
TOO_MUCH = [
    f"{ENDLESS} SELECT COUNT(*) FROM n",
    f"{ENDLESS} SELECT i FROM n",
    "WITH RECURSIVE n(i, t) AS (SELECT 1, 'x' UNION ALL SELECT i + 1, t || t FROM n) SELECT MAX(LENGTH(t)) FROM n",
    "SELECT zeroblob(1000000000)",
    "SELECT randomblob(90000) FROM sqlite_schema, products p, products q, sqlite_schema s",
    "SELECT printf('%1000000d', 1)",
    "SELECT group_concat(a.sql) FROM sqlite_schema a, sqlite_schema b, sqlite_schema c, sqlite_schema d",
    f"{ENDLESS} INSERT INTO products(id, vendorId) SELECT i, 'evil' FROM n",
    f"{ENDLESS} UPDATE products SET stock = (SELECT COUNT(*) FROM n)",
]


@pytest.fixture(params=["memory", "directory", "packed"])
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Run a coroutine in a marketplace of two vendors, one evil."""

    def run(test: Callable[[Marketplace], Awaitable[None]]) -> None:
        async def body() -> None:
            path = None if request.param == "memory" else tmp_path / "m"
            async with Marketplace.open(path, store=request.param, shards=1, vendor_class=Evil) as market:
                for vendor_id in ("evil", "victim"):
                    await market.vendor(vendor_id).initialize()
                await market.vendor("evil").create_product(name="Bait", sku="S", id="p", stock=1)
                await market.vendor("victim").create_product(name=SECRET, sku="S", id="p", stock=1)
                await test(market)
                assert (await market.vendor("victim").product("p"))["name"] == SECRET
                assert (await market.query("SELECT vendorId, id, name, stock FROM products")).rows == [
                    ("evil", "p", "Bait", 1),
                    ("victim", "p", SECRET, 1),
                ]
                market.store.image("evil")
                market.store.image("victim")

        asyncio.run(body())

    return run


def test_no_statement_leads_out_of_a_vendors_own_rows(story: Callable[..., None], tmp_path: Path) -> None:
    """Each is refused by name, run or queried, alone, beside others or with its error swallowed; nothing remains."""

    async def test(market: Marketplace) -> None:
        evil = market.vendor("evil")
        paths = {"other": tmp_path / "m" / "market.json", "out": tmp_path / "out.db", "folder": tmp_path}
        schema = await evil.query("SELECT name, sql FROM sqlite_schema")
        for template in STATEMENTS:
            sql = template.format(**paths)
            for attempt in (evil.evil(sql), evil.query(sql)):
                with pytest.raises(MktsimError):
                    await attempt
            results = await asyncio.gather(evil.evil(sql), evil.evil(sql), return_exceptions=True)
            assert all(isinstance(result, MktsimError) for result in results), (sql, results)
            with contextlib.suppress(MktsimError):  # an error that the code swallowed may undo the whole request
                assert await evil.evil_and_careless(sql) == "swallowed", sql
        assert not (tmp_path / "out.db").exists()
        assert await evil.query("SELECT name, sql FROM sqlite_schema") == schema
        assert await evil.query("SELECT COUNT(*) FROM _vendor WHERE id = 'evil'") == [(1,)]

    story(test)


def test_a_statement_that_the_platform_has_prepared_is_no_back_door(story: Callable[..., None]) -> None:
    """The same text is in the connection's statement cache, judged leniently: the object's code does not find it."""

    async def test(market: Marketplace) -> None:
        vendor = market.vendor("evil")
        for _ in range(2):  # the platform runs all of these, on this very connection
            vendor.notify("x")
            await vendor.notify("y")
            await market.idle()
        for sql, params in (
            ("UPDATE _vendor SET serial = ?", [0]),
            ("INSERT INTO _outbox VALUES(?, ?, ?, NULL)", [99, "Order.placed", "{}"]),
            ("DELETE FROM _outbox WHERE seq = ?", [1]),
            ("SAVEPOINT step", []),
            ("RELEASE step", []),
            ("BEGIN IMMEDIATE", []),
            ("COMMIT", []),
            ("ROLLBACK", []),
            ("PRAGMA schema_version", []),
            ("PRAGMA user_version", []),
            ("PRAGMA foreign_keys = ON", []),
        ):
            before = await vendor.query("SELECT serial FROM _vendor")
            with pytest.raises(IsolationError):
                await vendor.evil(sql, params)
            with pytest.raises(MktsimError):
                await vendor.query(sql, params)
            assert await vendor.query("SELECT serial FROM _vendor") == before
        assert len(await vendor.notifications()) == 4

    story(test)


def test_a_swallowed_error_does_not_smuggle_a_foreign_row_in(story: Callable[..., None]) -> None:
    """The request is undone although the vendor's code caught the error and went on."""

    async def test(market: Marketplace) -> None:
        with pytest.raises(IsolationError):
            await market.vendor("evil").evil_and_careless("INSERT INTO products(id, vendorId) VALUES('x', 'victim')")

    story(test)


def test_a_vendor_cannot_take_more_than_its_share(story: Callable[..., None]) -> None:
    """Endless recursion, huge values, huge answers and huge statements end in a named error, soon; others go on."""

    async def test(market: Marketplace) -> None:
        evil = market.vendor("evil")
        for sql in TOO_MUCH:
            with pytest.raises(QueryTooLargeError):
                await evil.evil(sql)
            if "INSERT" not in sql and "UPDATE" not in sql:
                with pytest.raises(QueryTooLargeError):
                    await evil.query(sql)
        for sql in ("SELECT 1" + " " * 200_000, "SELECT '" + "x" * 200_000 + "'"):
            with pytest.raises(InvalidArgumentError):
                await evil.evil(sql)
        for sql in ("SELECT " + "abs(" * 2_000 + "1" + ")" * 2_000, "SELECT 1" + " UNION ALL SELECT 1" * 2_000):
            with pytest.raises(MktsimError):
                await evil.evil(sql)
        assert await evil.inventory().available("S") == 1

    story(test)


def test_what_a_query_may_see_of_the_schema_is_its_own(story: Callable[..., None]) -> None:
    """No statement's answer holds the other vendor's secret, nor does its own image."""

    async def test(market: Marketplace) -> None:
        evil = market.vendor("evil")
        for table in ("things", "vendors", "products", "reviews", "orders", "entries", "_vendor", "_outbox", "_inbox"):
            assert SECRET not in str(await evil.query(f"SELECT * FROM {table}"))
        assert SECRET.encode() not in market.store.image("evil")

    story(test)


def others(folder: Path) -> list[Path]:
    """Return the files that are none of the stores'."""
    return sorted(path for path in folder.rglob("*") if not {"vendors", "system"} & set(path.parts))


@pytest.mark.parametrize(
    "vendor_id",
    [
        "../victim",
        "../../etc/passwd",
        "/etc/passwd",
        "evil/../victim",
        "victim.sqlite",
        "victim%00",
        "VICTIM",
        "victim ",
        "'; DROP TABLE vendors; --",
        "file:victim?mode=ro",
        "victim\n",
        "con",
        ".",
        "..",
    ],
)
def test_an_id_is_a_name_and_no_path(story: Callable[..., None], vendor_id: str, tmp_path: Path) -> None:
    """Whatever it looks like, it is another vendor's, with a database of its own."""

    async def test(market: Marketplace) -> None:
        before = others(tmp_path)
        await market.vendor(vendor_id).initialize()
        assert await market.vendor(vendor_id).list_products() == []
        assert others(tmp_path) == before

    story(test)
