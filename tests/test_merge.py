"""Groups merged in Python are those that SQL merges."""

from __future__ import annotations

import math
import random
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.sql import Combiner, GatherEngine, Planner, merge, register
from mktsim.sql.merge import GroupFold, merge_groups
from mktsim.sql.plan import Combine
from mktsim.sql.schema import Schema

SCHEMA = Schema(("CREATE TABLE t(g TEXT, h REAL, x REAL, y INTEGER, b, n TEXT COLLATE NOCASE)",))
STATEMENTS = (
    "SELECT g, COUNT(*), SUM(x), AVG(x), MIN(y), MAX(x) FROM t GROUP BY g",
    "SELECT h, COUNT(y), TOTAL(x), MAX(g) FROM t GROUP BY h",
    "SELECT g, h, SUM(y) FROM t GROUP BY g, h",
    "SELECT COUNT(*), SUM(x), MIN(g) FROM t",
    "SELECT g, COUNT(DISTINCT y) FROM t GROUP BY g",
)
VALUES: dict[str, list[Any]] = {
    "g": ["a", "A", "", None, "ä", "a\x00b"],
    "h": [1.0, 0.0, 2.5, None, 1e300, -1.0],
    "x": [0.1, 0.2, 1e16, -1e16, None, math.inf, 1e-300],
    "y": [1, 2, None, 2**62, -(2**62)],
    "b": [1, 1.0, "1", b"1", None],
    "n": ["a", "A"],
}


def by_sql(combine: Combine, bindings: tuple[Any, ...], segments: list[Any]) -> list[Any]:
    """Combine without Python."""
    plain = Combine(combine.table, combine.insert, combine.sql, combine.binders)
    combiner = Combiner(plain, bindings)
    try:
        return combiner(segments)
    finally:
        combiner.close()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), sql=st.sampled_from(STATEMENTS))
def test_python_and_sql_combine_to_the_same_answer(seed: int, sql: str) -> None:
    """Ties, NULLs, infinities, cancelling floats and integers near the limit."""
    draw = random.Random(seed)
    plan = Planner(SCHEMA).plan(sql)
    assert plan.combine is not None
    assert plan.combine.merges
    vendor = SCHEMA.database()
    register(vendor)
    segments = []
    for number in range(draw.randint(0, 8)):
        vendor.execute("DELETE FROM t")
        rows = [tuple(draw.choice(choices) for choices in VALUES.values()) for _ in range(draw.randrange(8))]
        vendor.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", rows)
        found = vendor.execute(plan.scatter[0].sql).fetchall()
        if found:
            segments.append((f"v{number}", (found,)))
    vendor.close()
    merged = merge_groups(segments, plan.combine.merges)
    assert merged is not None
    with patch.object(merge, "_HELD", 2):  # Whenever three rows are held, they are merged.
        assert repr(merge_groups(segments, plan.combine.merges)) == repr(merged)
    expected = by_sql(plan.combine, (), segments)
    engine = GatherEngine()

    def answer(parts: list[Any]) -> Any:
        try:
            return engine.gather(plan, [(place, tuple(list(rows) for rows in each)) for place, each in parts], ())
        except Exception as error:
            return str(error)

    try:
        assert repr(answer(merged)) == repr(answer(expected)) == repr(answer(segments))
        assert [place for place, _ in merged] == [place for place, _ in segments[:1]]
    finally:
        engine.close()


def test_extremes_of_mixed_types_are_left_to_sql() -> None:
    """Python cannot compare 1 with '1'; SQLite can."""
    combine = Planner(SCHEMA).plan("SELECT g, COUNT(*) FROM t GROUP BY g").combine
    assert combine is not None
    assert merge_groups([("v", ([("a", 1), ("a", "1")],))], ("", "MIN")) is None
    assert merge_groups([("v", ([("a", b"1"), ("a", b"2")],))], ("", "MAX")) is None
    assert merge_groups([], ("", "MAX")) == []


def test_what_python_cannot_merge_is_handed_on_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold over a shard that meets mixed types keeps their rows; SQL merges them with the merged ones."""
    monkeypatch.setattr(merge, "_HELD", 2)
    fold = GroupFold(("", "MIN"))
    for value in (5, 4, "1", 3, 2):
        fold.append(("v", ([("a", value), ("b", 7)],)))
    ((place, (rows,)),) = fold.result()
    assert (place, fold.decided) == ("v", False)
    assert ("b", 7) in rows
    assert ("a", 4) in rows
    assert ("a", "1") in rows
    assert GroupFold(("", "MIN")).result() == []


def test_keys_of_another_collation_are_left_to_sql() -> None:
    """'a' and 'A' are one group under NOCASE, and two in a dictionary."""
    combine = Planner(SCHEMA).plan("SELECT COUNT(*) FROM t GROUP BY n").combine
    assert combine is None or not combine.merges
