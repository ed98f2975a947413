"""Joins on the shard column are pushed whole; all others are collected, and both equal one SQLite."""

from __future__ import annotations

import random

import pytest

from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sql import Schema, colocated
from mktsim.testing import run_oracle, typed
from tests.oracle import ask

PLAIN = Schema(
    (
        "CREATE TABLE p(vendorId TEXT, id TEXT, name TEXT COLLATE NOCASE, price REAL)",
        "CREATE TABLE r(vendorId TEXT, productId TEXT, stars INTEGER, name TEXT)",
        "CREATE TABLE s(vendorId TEXT, stars INTEGER, word TEXT)",
        "CREATE TABLE n(stars INTEGER, word TEXT)",
    ),
    shard_column="vendorId",
)
KEYED = Schema(
    (
        "CREATE TABLE p(vendorId TEXT, id TEXT PRIMARY KEY, name TEXT COLLATE NOCASE, price REAL)",
        "CREATE TABLE r(vendorId TEXT, productId TEXT, stars INTEGER, name TEXT, UNIQUE(stars, productId, name))",
        "CREATE TABLE s(vendorId TEXT, stars INTEGER PRIMARY KEY, word TEXT)",
        "CREATE TABLE n(stars INTEGER, word TEXT)",
        "CREATE INDEX p_price ON p(price)",
    ),
    shard_column="vendorId",
)


class Fleet:
    """One database with all rows, and vendors behind a coordinator; product ids collide between vendors."""

    def __init__(self, schema: Schema, vendors: int = 6, seed: int = 1) -> None:
        draw = random.Random(seed)
        self.one, self.fleet = schema.database(), [schema.database() for _ in range(vendors)]
        # One table of all rows has no key that holds within a vendor only.
        if schema is KEYED:
            self.one.close()
            relaxed = PLAIN.statements + tuple(text for text in KEYED.statements if "INDEX" in text)
            self.one = Schema(relaxed, shard_column="vendorId").database()
        for place, database in enumerate(self.fleet[:-1]):
            name = f"v{place}"
            products = [
                (name, f"p{k}", draw.choice(("Mouse", "mouse", "Lamp", None)), draw.choice((0.1, 0.2, 5.5, None)))
                for k in range(5)
            ]
            reviews = {
                (draw.choice((1, 2, 3)), f"p{draw.randrange(7)}", draw.choice(("x", "Y", "y"))) for _ in range(9)
            }
            stars = [(name, k, f"word {k % 2}") for k in (1, 3)]
            for target in (self.one, database):
                target.executemany("INSERT INTO p VALUES (?, ?, ?, ?)", products)
                target.executemany(
                    "INSERT INTO r VALUES (?, ?, ?, ?)", [(name, p, s, n) for s, p, n in sorted(reviews)]
                )
                target.executemany("INSERT INTO s VALUES (?, ?, ?)", stars)
                target.executemany("INSERT INTO n VALUES (?, ?)", [(k % 3, "w") for k in range(2)])
        scanners = [Scanner.from_connection(f"v{place}", database) for place, database in enumerate(self.fleet)]
        self.coordinator = QueryCoordinator(scanners, schema=schema)

    def check(self, sql: str, params: tuple = ()) -> str:
        """Compare with the one SQLite; return the tier."""
        names, rows = run_oracle(self.one, sql, params)
        answer = ask(self.coordinator, sql, params)
        assert typed(answer.rows) == typed(rows), self.coordinator.explain(sql)
        assert answer.columns == names
        return answer.stats.tier

    def close(self) -> None:
        """Close everything."""
        self.coordinator.close()
        for database in (self.one, *self.fleet):
            database.close()


@pytest.fixture(scope="module")
def plain():
    """Tables without keys or indexes."""
    made = Fleet(PLAIN)
    yield made
    made.close()


@pytest.fixture(scope="module")
def keyed():
    """Tables with keys, which hold within a vendor only."""
    made = Fleet(KEYED)
    yield made
    made.close()


ON = "r.vendorId = p.vendorId AND r.productId = p.id"
PUSHED = [
    f"SELECT p.name, r.stars FROM p JOIN r ON {ON}",
    f"SELECT p.name, r.stars FROM p LEFT JOIN r ON {ON}",
    f"SELECT * FROM p JOIN r ON {ON} WHERE stars > 1",
    f"SELECT r.*, price * 2 AS double FROM p LEFT JOIN r ON {ON} ORDER BY double DESC, r.stars LIMIT 7 OFFSET 1",
    f"SELECT p.name AS price, price AS q FROM p JOIN r ON {ON} ORDER BY price, p.price",
    f"SELECT p.price AS name FROM p JOIN r ON {ON} GROUP BY p.name ORDER BY name",
    f"SELECT DISTINCT p.name FROM p JOIN r ON {ON}",
    f"SELECT DISTINCT p.name, r.name FROM p JOIN r ON {ON} ORDER BY p.name DESC, 2 LIMIT 3",
    f"SELECT p.name, COUNT(*), SUM(price), MAX(r.stars) FROM p JOIN r ON {ON} GROUP BY p.name HAVING COUNT(*) > 1",
    f"SELECT COUNT(*), AVG(price), GROUP_CONCAT(r.name) FROM p JOIN r ON {ON}",
    f"SELECT p.id, SUM(stars) AS n FROM p JOIN r ON {ON} GROUP BY p.id ORDER BY n DESC LIMIT 2",
    f"SELECT p.vendorId, COUNT(*), p.name FROM p JOIN r ON {ON} GROUP BY p.vendorId ORDER BY 2 DESC LIMIT 3",
    "SELECT stars, id FROM p JOIN r USING (vendorId) WHERE id = productId",
    "SELECT vendorId, COUNT(*) FROM p LEFT JOIN r USING (vendorId) GROUP BY vendorId",
    "SELECT a.id, b.id FROM p AS a JOIN p AS b ON a.vendorId = b.vendorId WHERE a.price < b.price",
    "SELECT p.name, r.stars FROM p CROSS JOIN r WHERE p.vendorId = r.vendorId AND p.id = r.productId",
    f"SELECT p.id, r.stars, s.word FROM p JOIN r ON {ON} LEFT JOIN s ON s.vendorId = r.vendorId AND s.stars = r.stars",
    f"SELECT p.id, s.word FROM p LEFT JOIN r ON {ON} LEFT JOIN s ON s.vendorId = r.vendorId AND s.stars = r.stars",
    f"SELECT p.id, s.word FROM p JOIN r ON {ON} JOIN s ON s.vendorId = p.vendorId WHERE s.stars = r.stars",
    "SELECT word, vendorId FROM r NATURAL JOIN s",
    f"SELECT CASE WHEN r.stars IS NULL THEN 0 ELSE r.name END AS k, COUNT(*) FROM p LEFT JOIN r ON {ON} GROUP BY k",
]


@pytest.mark.parametrize("sql", PUSHED)
def test_joins_on_the_shard_column_are_pushed_and_equal_one_sqlite(plain, sql):
    """Inner, LEFT, CROSS, USING, NATURAL, self-joins and chains; plain rows, DISTINCT, groups, LIMIT on top."""
    assert plain.check(sql) == "two-phase"
    explained = str(plain.coordinator.explain(sql))
    assert "every joined table is equated on the shard column" in explained


COLLECTED = [
    ("SELECT p.name, r.stars FROM p JOIN r ON r.productId = p.id", "not every table"),
    ("SELECT p.name, n.word FROM p JOIN n ON n.stars = p.price", "no shard column"),
    (f"SELECT p.name, r.stars FROM p RIGHT JOIN r ON {ON}", "RIGHT"),
    (f"SELECT p.name, r.stars FROM p FULL JOIN r ON {ON}", "FULL"),
    ("SELECT p.name, r.stars FROM p LEFT JOIN r ON r.productId = p.id WHERE r.vendorId = p.vendorId", "LEFT"),
    ("SELECT p.name, r.stars FROM p LEFT JOIN r ON r.productId = p.id AND p.vendorId = p.vendorId", "LEFT"),
    ("SELECT p.name, r.stars FROM p JOIN r ON r.vendorId = p.vendorId OR r.productId = p.id", "not every table"),
    ("SELECT p.name, r.stars FROM p JOIN r ON NOT (r.vendorId = p.vendorId)", "not every table"),
    ("SELECT p.name, r.stars FROM p JOIN r ON r.vendorId = p.vendorId COLLATE NOCASE", "not every table"),
    ("SELECT a.id FROM p a LEFT JOIN r ON r.vendorId = a.vendorId JOIN s ON s.vendorId = r.vendorId", "not every"),
    (f"SELECT p.name FROM p JOIN r ON {ON} WHERE p.price > (SELECT AVG(price) FROM p)", "sub-query"),
    (f"SELECT p.name FROM p JOIN r ON {ON} UNION SELECT word FROM s", "set operation"),
    (f"WITH c AS (SELECT 1 AS x) SELECT p.name FROM p JOIN r ON {ON}", "common table"),
]


@pytest.mark.parametrize(("sql", "reason"), COLLECTED)
def test_what_is_not_proven_is_collected_and_equals_one_sqlite(plain, sql, reason):
    """Joins that may match rows of two vendors, append unmatched rows at the end, or hide in something else."""
    assert plain.check(sql) == "collect"
    assert reason in plain.coordinator.explain(sql).reason


@pytest.mark.parametrize("sql", [*PUSHED, *(sql for sql, _ in COLLECTED)])
def test_keys_that_hold_within_a_vendor_disturb_no_join(keyed, sql):
    """Vendors may join along a key that one table of all rows does not have: then order decides the tier."""
    keyed.check(sql)


def test_groups_are_pushed_although_vendors_join_in_another_order(keyed):
    """What a sum, a count or a maximum is of does not depend on order; rows do."""
    assert keyed.check(f"SELECT p.id, COUNT(*), SUM(price) FROM p JOIN r ON {ON} GROUP BY p.id") == "two-phase"


def test_a_vendor_named_in_where_answers_alone(plain):
    """A condition on the shard column of a table that is never NULL routes; on the right of a LEFT JOIN it cannot."""
    sql = f"SELECT p.name, r.stars FROM p JOIN r ON {ON} WHERE r.vendorId = ?"
    assert plain.check(sql, ("v2",)) == "route"
    assert plain.check(sql, ("nobody",)) == "two-phase"
    two = f"SELECT p.name, r.stars FROM p JOIN r ON {ON} WHERE p.vendorId IN ('v4', 'v1')"
    assert plain.check(two) == "two-phase"
    assert plain.coordinator.explain(two).only == ("v1", "v4")
    assert plain.check(f"SELECT p.name FROM p LEFT JOIN r ON {ON} WHERE r.vendorId = 'v2'") in ("two-phase", "collect")


def test_parameters_reach_the_join_the_filter_and_the_limit(plain):
    """In ON, SELECT, WHERE and LIMIT, out of order and repeated."""
    sql = (
        f"SELECT p.name, ?2 || r.name FROM p LEFT JOIN r ON {ON} AND r.stars > ?1 "
        "WHERE p.price < ?3 OR p.name = ?2 ORDER BY r.stars + ?1 LIMIT ?4"
    )
    assert plain.check(sql, (1, "mouse", 6.0, 9)) == "two-phase"


def test_the_proof_sees_a_column_of_the_wrong_table(plain, monkeypatch):
    """A name taken for the other table's column compiles to another program: the statement is collected."""
    real = colocated._Join.owner

    def wrong(self, node):
        found = real(self, node)
        return ("r", self.sources["r"].column("name")) if found and found[1].name == "name" else found

    monkeypatch.setattr(colocated._Join, "owner", wrong)
    sql = f"SELECT p.name, r.stars, 'wrong' FROM p JOIN r ON {ON}"
    assert plain.check(sql) == "collect"
    assert "compile" in plain.coordinator.explain(sql).reason
