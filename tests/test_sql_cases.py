"""SQLite's own test statements, split over vendors: every answer equals one SQLite's, bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from sqlglot import exp

from mktsim.sql import SCHEMA_QUERY, Planner, Schema
from mktsim.sqlite import Connection, connect, quote
from mktsim.testing import run_oracle, typed
from tests.oracle import ask, coordinator, split

CASES = Path(__file__).parents[2] / "shared" / "sql-cases" / "sqlite_tcl.jsonl"

TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the public SQL cases lie beside the project, not in it")


def cases() -> Iterator[tuple[dict[str, Any], Connection]]:
    """Yield each case, and one SQLite that holds its rows.

    The suite marks six whose order SQL leaves open even after a contiguous split: ties that follow an index. Here they
    follow the walk of one SQLite, and so are no exception.
    """
    for case in map(json.loads, CASES.read_text().splitlines()):
        one = connect()
        for statement in case["setup"]:
            one.execute(statement)
        yield case, one
        one.close()


@pytest.mark.parametrize("vendors", [1, 5, 7, 50])
def test_every_case_split_contiguously_equals_one_sqlite(vendors):
    """Values, types, order and column names; one more vendor is empty."""
    tiers: Counter[str] = Counter()
    different = []
    for case, one in cases():
        names, rows = run_oracle(one, case["query"])
        fleet = split(one, vendors)
        with coordinator(fleet) as made:
            answer = ask(made, case["query"])
        tiers[answer.stats.tier] += 1
        if typed(answer.rows) != typed(rows) or answer.columns != names:
            different.append((case["id"], case["query"]))
        for database in fleet:
            database.close()
    assert not different
    assert sum(tiers.values()) == 1454
    assert tiers["two-phase"] >= 410


def test_every_case_split_by_hash_equals_one_sqlite_that_holds_the_rows_by_vendor():
    """Where order is left open it is that of rows by vendor, then rowid: a hash split defines it as well."""
    different = []
    for case, one in cases():
        fleet = split(one, 5, how="hash")
        for (table,) in one.execute(TABLES).fetchall():
            columns = one.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0", (table,)).fetchall()
            listed = ", ".join(quote(name) for (name,) in columns)
            one.execute(f"DELETE FROM {quote(table)}")
            for database in fleet:
                walk = "" if "WITHOUT ROWID" in str(case["setup"]).upper() else " NOT INDEXED"
                rows = database.execute(f"SELECT {listed} FROM {quote(table)}{walk}").fetchall()
                marks = ", ".join("?" * len(columns))
                one.executemany(f"INSERT INTO {quote(table)}({listed}) VALUES ({marks})", rows)
        names, rows = run_oracle(one, case["query"])
        with coordinator(fleet) as made:
            answer = ask(made, case["query"])
        if typed(answer.rows) != typed(rows) or answer.columns != names:
            different.append((case["id"], case["query"]))
        for database in fleet:
            database.close()
    assert not different


def is_simple(query: str, planner: Planner) -> bool:
    """Return whether a statement reads one table, without window, sub-query, CTE or set operation."""
    try:
        tree = sqlglot.parse_one(query, dialect="sqlite")
    except sqlglot.errors.SqlglotError:
        return False
    tables = list(tree.find_all(exp.Table))
    table = planner.catalog.tables.get(tables[0].name.lower()) if len(tables) == 1 else None
    nested = any(node is not tree for node in tree.find_all(exp.Query))
    return (
        isinstance(tree, exp.Select)
        and table is not None
        and table.kind == "table"
        and not nested
        and tree.find(exp.Window, exp.Exists) is None
        and not tree.args.get("with_")
    )


def test_nine_in_ten_simple_statements_are_not_collected():
    """Of those that read one table without window, sub-query, CTE or set operation."""
    simple = collected = 0
    for case, one in cases():
        planner = Planner(Schema.from_rows(one.execute(SCHEMA_QUERY).fetchall()))
        if is_simple(case["query"], planner):
            simple += 1
            collected += planner.plan(case["query"]).tier not in ("two-phase", "route")
    assert simple > 400
    assert collected <= simple / 10
