"""Random tables, random splits, random statements: the coordinator equals one SQLite."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from mktsim.sql import merge, twophase, ungrouped
from mktsim.testing import Case, Grammar, Mismatch, TableData, check_statement, make_coordinator
from tests.oracle import packed_coordinator


@given(st.randoms(use_true_random=False))
def test_any_statement_over_any_split_equals_one_sqlite(chance):
    """Tables, 0 to 20 vendors (empty ones included) and statements of every tier are drawn from the grammar."""
    grammar = Grammar(chance)
    case = grammar.case()
    for _ in range(3):
        sql, params = grammar.statement(case)
        note(sql)
        check_statement(sql, case, params)


def run(seed: int, statements: int) -> Counter[str]:
    """Check many statements drawn from consecutive seeds; a mismatch names its seed."""
    tiers: Counter[str] = Counter()
    while sum(tiers.values()) < statements:
        seed += 1
        grammar = Grammar(random.Random(seed))
        case = grammar.case()
        fleet = case.fleet()
        made = make_coordinator(case, fleet)
        try:
            for _ in range(20):
                sql, params = grammar.statement(case)
                try:
                    answer = check_statement(sql, case, params, coordinator=made)
                except Mismatch as mismatch:
                    raise Mismatch(f"seed {seed}: {mismatch}") from None
                tiers["refused" if answer is None else answer.stats.tier] += 1
        finally:
            made.close()
            for connection in fleet:
                connection.close()
    return tiers


def test_a_few_thousand_statements_of_every_tier_agree():
    """The same grammar from plain seeds; each tier is really exercised."""
    tiers = run(seed=1_000_000, statements=3_000)
    assert tiers["two-phase"] > 1_000
    assert tiers["collect"] > 500


_UNGROUPED = "a scan groups the rows of many vendors at once, where each has few"


def run_packed(seed: int, statements: int, folder: Path) -> Counter[str]:
    """Check statements over packed files in three shards, whose scans merge and group few rows at a time."""
    told: Counter[str] = Counter()
    with (
        patch.object(merge, "_HELD", 3),
        patch.object(ungrouped, "_HELD", 3),
        patch.object(ungrouped, "_MOST", 2),
    ):
        while told["statements"] < statements:
            seed += 1
            grammar = Grammar(random.Random(seed))
            case = grammar.case()
            if any(table.virtual for table in case.tables):
                continue
            with packed_coordinator(case, folder / str(seed)) as made:
                for _ in range(20):
                    sql, params = grammar.statement(case)
                    try:
                        answer = check_statement(sql, case, params, coordinator=made)
                    except Mismatch as mismatch:
                        raise Mismatch(f"seed {seed}: {mismatch}") from None
                    told["statements"] += 1
                    told["ungrouped"] += answer is not None and _UNGROUPED in made.explain(sql, params).rules
            shutil.rmtree(folder / str(seed))
    return told


def test_statements_over_packed_shards_agree(tmp_path: Path) -> None:
    """Partials are merged, and rows grouped for many vendors at once, in the shards' scans."""
    told = run_packed(seed=3_000_000, statements=600, folder=tmp_path)
    assert told["ungrouped"] > 30


@pytest.mark.soak
@pytest.mark.timeout(0)  # as long as asked
def test_statements_over_packed_shards_agree_for_as_long_as_asked(tmp_path: Path) -> None:
    """Runs for MKTSIM_SOAK_MINUTES (1 unless set) and prints seed and counts."""
    seed = 3_000_000 + int(os.environ.get("MKTSIM_SOAK_SEED", "0"))
    end = time.monotonic() + 60 * float(os.environ.get("MKTSIM_SOAK_MINUTES", "1"))
    told: Counter[str] = Counter()
    while time.monotonic() < end:
        told += run_packed(seed, 1_000, tmp_path)
        seed += 100
    print(f"soak: last seed {seed}, {dict(told)}")


@pytest.mark.soak
@pytest.mark.timeout(0)  # as long as asked
def test_statements_agree_for_as_long_as_asked():
    """Runs for MKTSIM_SOAK_MINUTES (1 unless set) and prints seed and counts."""
    seed = int(os.environ.get("MKTSIM_SOAK_SEED", "0"))
    end = time.monotonic() + 60 * float(os.environ.get("MKTSIM_SOAK_MINUTES", "1"))
    tiers: Counter[str] = Counter()
    while time.monotonic() < end:
        tiers += run(seed, 2_000)
        seed += 100
    print(f"soak: last seed {seed}, {sum(tiers.values())} statements, {dict(tiers)}")


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("residual", lambda patch: patch.setattr("mktsim.sql.exact._expand", lambda values: [sum(values)])),
        (
            "offset",
            lambda patch: patch.setattr(
                twophase.Limit, "reach", lambda self, scratch, values: int(self.limit) if self.limit.isdigit() else -1
            ),
        ),
        (
            "collation",
            lambda patch: patch.setattr(
                "mktsim.sql.catalog.Column.definition", lambda self: f'"{self.name}" {self.type}'
            ),
        ),
    ],
)
def test_a_broken_merge_is_caught(name, break_it, monkeypatch):
    """Dropping the residual, pushing LIMIT without OFFSET, or losing a collation: the suite finds each."""
    monkeypatch.setattr("mktsim.sql.exact.partial_sum", lambda values: _slow_partial(values))
    break_it(monkeypatch)
    with pytest.raises(Mismatch):
        run(seed=5_000_000, statements=20_000)


def _slow_partial(values):
    from mktsim.sql.exact import ExactSum

    total = ExactSum()
    total.add(values)
    return total.pack()


def test_the_judge_reads_text_as_numbers_where_sqlite_misses_the_correct_rounding() -> None:
    """A tiny number decides a tie: SQLite loses it, and the rational sum must judge, text among the values or not."""
    rows = (("a ",), (9007199254740993,), (None,), (100,), (5e-324,), ("b",))
    case = Case(tables=(TableData(name="t", columns=("a",), rows=rows),), vendors=4, owners={"t": (3, 1, 2, 0, 3, 1)})
    result = check_statement("SELECT AVG(a), SUM(a) FROM t", case)
    assert result is not None
    assert result.rows == [(9007199254741094 / 5, 9007199254741094.0)]
