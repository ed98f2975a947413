"""SQLite's own test statements, split over vendors: every answer equals one SQLite's, bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mktsim.sqlite import connect
from mktsim.testing import run_oracle, typed
from tests.oracle import ask, coordinator, split

CASES = Path(__file__).parents[2] / "shared" / "sql-cases" / "sqlite_tcl.jsonl"

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the public SQL cases lie beside the project, not in it")


@pytest.mark.parametrize("vendors", [1, 5, 7, 50])
def test_every_case_split_contiguously_equals_one_sqlite(vendors):
    """Values, types, order and column names; one more vendor is empty."""
    tiers: Counter[str] = Counter()
    different = []
    for case in map(json.loads, CASES.read_text().splitlines()):
        if not case["exact_after_contiguous_split"]:
            continue
        one = connect()
        for statement in case["setup"]:
            one.execute(statement)
        names, rows = run_oracle(one, case["query"])
        fleet = split(one, vendors)
        with coordinator(fleet) as made:
            answer = ask(made, case["query"])
        tiers[answer.stats.tier] += 1
        if typed(answer.rows) != typed(rows) or answer.columns != names:
            different.append((case["id"], case["query"]))
        for database in [one, *fleet]:
            database.close()
    assert not different
    assert sum(tiers.values()) == 1448
    assert tiers["two-phase"] >= 340
