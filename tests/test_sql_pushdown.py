"""Conditions that run at the vendors although a statement is collected: fewer rows, the same answer."""

from __future__ import annotations

import random

import pytest

from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sql import Planner, Schema
from mktsim.testing import run_oracle, typed
from tests.oracle import ask

SCHEMA = Schema(
    (
        "CREATE TABLE a(k INTEGER, x REAL, w TEXT)",
        "CREATE TABLE b(k INTEGER, y INTEGER, w TEXT COLLATE NOCASE, t TEXT)",
        "CREATE TABLE c(k TEXT, z INTEGER)",
        "CREATE VIEW v AS SELECT k, x FROM a WHERE x > 1",
    )
)


@pytest.fixture(scope="module")
def sides():
    """One SQLite with all rows, and a coordinator over five vendors."""
    draw = random.Random(11)
    one, fleet = SCHEMA.database(), [SCHEMA.database() for _ in range(5)]
    for database in fleet[:-1]:
        for _ in range(12):
            rows = {
                "a": (draw.randrange(6), draw.choice((0.5, 1.0, 2.5, None, "odd")), draw.choice(("p", "P", "q"))),
                "b": (draw.randrange(6), draw.choice((1, 2, 3, None)), draw.choice(("p", "P", "r")), draw.choice("{[")),
                "c": (draw.choice(("1", "2", "1.0", None)), draw.randrange(4)),
            }
            for name, row in rows.items():
                for target in (one, database):
                    target.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
    # As one table would have them: by vendor.
    one.close()
    one = SCHEMA.database()
    for name in "abc":
        for database in fleet:
            for row in database.execute(f"SELECT * FROM {name}").fetchall():
                one.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
    scanners = [Scanner.from_connection(f"v{place}", database) for place, database in enumerate(fleet)]
    coordinator = QueryCoordinator(scanners, schema=SCHEMA)
    yield one, coordinator
    coordinator.close()
    for database in (one, *fleet):
        database.close()


def conditions(sql: str) -> dict[str, str]:
    """Return, by table, what its vendors are asked."""
    plan = Planner(SCHEMA).plan(sql)
    assert plan.tier == "collect"
    found = {}
    for statement in plan.scatter:
        source, _, condition = statement.sql.partition(" FROM ")[2].removesuffix(" ORDER BY rowid").partition(" WHERE ")
        found[source.split('"')[1]] = condition
    return found


#: Statement, and the condition on each table that must travel ("" where none may).
RULES = [
    ("SELECT * FROM a, b WHERE a.k = b.k AND x > 1 AND y = 2", {"a": "(x > 1)", "b": "(y = 2)"}),
    ("SELECT * FROM a JOIN b ON a.k = b.k AND y < 3 WHERE x < 2", {"a": "(x < 2)", "b": "(y < 3)"}),
    # What WHERE says of the right of a LEFT JOIN may be true of rows that have no match.
    ("SELECT * FROM a LEFT JOIN b ON a.k = b.k WHERE y IS NULL AND x > 1", {"a": "(x > 1)", "b": ""}),
    # ON of a LEFT JOIN drops no row of the left, and of the right those that match nothing.
    ("SELECT * FROM a LEFT JOIN b ON a.k = b.k AND y = 1 AND x > 1", {"a": "", "b": "(y = 1)"}),
    ("SELECT * FROM a RIGHT JOIN b ON a.k = b.k AND y = 1 WHERE x > 1 OR y > 1", {"a": "", "b": ""}),
    # Disjunctions: each branch must say something of the table.
    (
        "SELECT * FROM a, b WHERE (a.k = b.k AND x > 1 AND y = 1) OR (x < 1 AND y = 2)",
        {"a": "((x > 1) OR (x < 1))", "b": "((y = 1) OR (y = 2))"},
    ),
    ("SELECT * FROM a, b WHERE (a.k = b.k AND x > 1) OR (a.w = 'p' AND y = 2)", {"a": "((x > 1) OR (a.w = 'p'))"}),
    ("SELECT * FROM a, b WHERE (a.k = b.k AND x > 1) OR y = 2", {"a": "", "b": ""}),
    # Constants through equal columns, of one affinity and compared byte by byte.
    ("SELECT * FROM a, b WHERE a.k = b.k AND b.k IN (1, 2)", {"a": "(a.k IN (1, 2))", "b": "(b.k IN (1, 2))"}),
    ("SELECT * FROM a, b WHERE a.k = b.k AND b.k BETWEEN 1 AND 3", {"a": "(a.k BETWEEN 1 AND 3)"}),
    ("SELECT * FROM a, b WHERE a.w = b.w AND b.w = 'p'", {"a": "", "b": "(b.w = 'p')"}),
    ("SELECT * FROM a, c WHERE a.k = c.k AND c.k = '1'", {"a": "", "c": "(c.k = '1')"}),
    ("SELECT * FROM a LEFT JOIN b ON a.k = b.k WHERE a.k = 2", {"a": "(a.k = 2)", "b": ""}),
    # Sub-queries: their own WHERE, of their own tables.
    ("SELECT k FROM a WHERE EXISTS (SELECT 1 FROM b WHERE b.k = a.k AND y = 3)", {"a": "", "b": "(y = 3)"}),
    ("SELECT k FROM a WHERE EXISTS (SELECT 1 FROM b WHERE b.k = a.k AND x = 1)", {"a": "", "b": ""}),
    ("SELECT k FROM a WHERE x > (SELECT AVG(x) FROM a WHERE x < 2)", {"a": ""}),
    (
        "SELECT k FROM a WHERE w = 'p' AND x > (SELECT AVG(x) FROM a AS i WHERE i.x < 2)",
        {"a": "((w = 'p')) OR ((x < 2))"},
    ),
    ("WITH n AS (SELECT k, SUM(y) AS s FROM b WHERE y > 1 GROUP BY k) SELECT * FROM n, n AS m", {"b": "(y > 1)"}),
    ("SELECT k FROM a WHERE x > 1 UNION SELECT k FROM b WHERE y = 1", {"a": "(x > 1)", "b": "(y = 1)"}),
    ("SELECT k FROM a WHERE x > 1 UNION SELECT k FROM a", {"a": ""}),
    ("SELECT s FROM (SELECT k, SUM(x) AS s FROM a WHERE w = 'q' GROUP BY k) WHERE s > 1", {"a": "(w = 'q')"}),
    # A view's conditions are not read.
    ("SELECT * FROM v WHERE x > 2", {"a": ""}),
    # What could fail stays at home, unless there is nothing else to decide first.
    ("SELECT a.k FROM a, b WHERE a.k = b.k AND y = 9 AND json_extract(t, '$.x') = 1", {"a": "", "b": "(y = 9)"}),
    ("SELECT a.k FROM a, b WHERE a.k = b.k AND abs(y) = 1 AND y LIKE '1' ESCAPE 'xx'", {"b": ""}),
    # A cross join's order of loops is kept, and its conditions travel as well.
    ("SELECT * FROM a CROSS JOIN b WHERE x > 1", {"a": "(x > 1)", "b": ""}),
]


@pytest.mark.parametrize(("sql", "expected"), RULES)
def test_what_travels_is_what_the_rules_say(sql, expected):
    """No more, which would be wrong, and no less, which would ship rows for nothing."""
    found = conditions(sql)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("sql", [sql for sql, _ in RULES if "ESCAPE" not in sql])
def test_the_answer_is_that_of_one_sqlite(sides, sql):
    """Values, types, order and names."""
    one, coordinator = sides
    names, rows = run_oracle(one, sql)
    answer = ask(coordinator, sql)
    assert typed(answer.rows) == typed(rows)
    assert answer.columns == names


def test_conditions_spare_rows(sides):
    """The rows that reach the coordinator are those that pass."""
    one, coordinator = sides
    sql = "SELECT * FROM a, b WHERE (a.k = b.k AND x > 2 AND y = 1) OR (a.k = b.k AND x < 1 AND y = 2)"
    passing = one.execute("SELECT COUNT(*) FROM a WHERE x > 2 OR x < 1").get
    passing += one.execute("SELECT COUNT(*) FROM b WHERE y IN (1, 2)").get
    assert ask(coordinator, sql).stats.rows_shipped == passing < 80


def test_parameters_are_bound_where_a_condition_goes(sides):
    """Out of order, and once for each place it went to."""
    one, coordinator = sides
    sql = "SELECT COUNT(*) FROM a, b WHERE y = ?2 AND a.k = b.k AND b.k < ?1 AND a.w <> ?3"
    params = (4, 2, "q")
    assert ask(coordinator, sql, params).rows == run_oracle(one, sql, params)[1]
