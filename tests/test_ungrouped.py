"""Rows grouped for many vendors at once make the partials that vendors' own groups merge to."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mktsim.fanout import QueryCoordinator, ScatterPolicy, store_scanners
from mktsim.sql import GatherEngine, Plan, Planner, merge, register, ungrouped
from mktsim.sql.merge import GroupFold
from mktsim.sql.schema import Schema
from mktsim.sql.ungrouped import Folding, RowFold
from mktsim.storage import PackedStore

SCHEMA = Schema(("CREATE TABLE t(g TEXT, h REAL, x REAL, y INTEGER, b, n TEXT COLLATE NOCASE)",))
STATEMENTS = (
    "SELECT g, COUNT(*), SUM(x), AVG(x), MIN(y), MAX(x) FROM t GROUP BY g",
    "SELECT h, COUNT(y), TOTAL(x), MAX(g) FROM t GROUP BY h",
    "SELECT g, h, SUM(y) FROM t GROUP BY g, h ORDER BY SUM(y) DESC, g, h",
    "SELECT COUNT(*), SUM(x), MIN(g) FROM t",
    "SELECT AVG(y) FROM t WHERE x > 0.1",
    "SELECT g, COUNT(DISTINCT y), SUM(x) FROM t GROUP BY g",
    "SELECT SUM(x), MIN(x), MAX(x), COUNT(x) FROM t",
    "SELECT g, SUM(x) FROM t GROUP BY g HAVING COUNT(*) > 1 AND AVG(x) < 1e9",
    "SELECT LENGTH(g), SUM(x + y) FROM t GROUP BY LENGTH(g)",
)
VALUES: dict[str, list[Any]] = {
    "g": ["a", "A", "", None, "ä", "a\x00b"],
    "h": [1.0, 0.0, 2.5, None, 1e300, -1.0],
    "x": [0.1, 0.2, 1e16, -1e16, None, math.inf, 1e-300, 0.3, 0.7, "1.5q", b"z"],
    "y": [1, 2, None, 2**62, -(2**62)],
    "b": [1, 1.0, "1", b"1", None, "x", 2.5],
    "n": ["a", "A"],
}


def planned(sql: str) -> Plan:
    plan = Planner(SCHEMA).plan(sql)
    assert plan.ungrouped is not None, plan
    return plan


def answer(plan: Plan, segments: list[Any]) -> str:
    """Gather, and tell an error by its words."""
    with closing(GatherEngine()) as engine:
        try:
            return repr(engine.gather(plan, segments, ()))
        except Exception as error:
            return str(error)


@given(seed=st.integers(0, 2**32), sql=st.sampled_from(STATEMENTS), most=st.integers(0, 9), held=st.integers(0, 9))
def test_ungrouped_rows_make_the_partials_of_groups(seed: int, sql: str, most: int, held: int) -> None:
    """Ties, NULLs, mixed types, infinities, cancelling floats; vendors with more rows than travel ungrouped."""
    draw = random.Random(seed)
    plan = planned(sql)
    assert plan.combine is not None
    assert plan.ungrouped is not None
    grouped = (plan.scatter[0].sql, ())
    small = plan.ungrouped.sql.replace("LIMIT 257", f"LIMIT {most + 1}")
    with (
        patch.object(ungrouped, "_MOST", most),
        patch.object(ungrouped, "_HELD", held),
        patch.object(merge, "_HELD", held),
        closing(SCHEMA.database()) as vendor,
    ):
        register(vendor)
        request = plan.ungrouped.bind(lambda binders: ())
        rows = Folding(plan.combine.merges, type(request)((small, ()), request.keys, request.makes)).begin(grouped)
        groups = GroupFold(plan.combine.merges)
        assert isinstance(rows, RowFold)
        plain = []
        for number in range(draw.randint(0, 12)):
            vendor.execute("DELETE FROM t")
            chosen = [tuple(map(draw.choice, VALUES.values())) for _ in range(draw.randrange(12))]
            vendor.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", chosen)
            found = vendor.execute(*grouped).fetchall()
            if found:
                plain.append((f"v{number}", (found,)))
                groups.append(plain[-1])
            part = rows.ask(vendor.execute)
            if part:
                rows.append((f"v{number}", (part,)))
        made, expected = rows.result(), groups.result()
    assert [place for place, _ in made] == [place for place, _ in expected]
    if rows.decided and groups.decided and "LENGTH" not in sql:  # there a vendor's groups are coarser than partials
        assert sorted(map(repr, made[0][1][0] if made else [])) == sorted(
            map(repr, expected[0][1][0] if expected else [])
        )
    assert answer(plan, made) == answer(plan, expected) == answer(plan, plain)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT g, COUNT(*) FROM t GROUP BY g",  # no exact sum: SQLite counts faster than rows travel
        "SELECT n, SUM(x) FROM t GROUP BY n",  # a collation
        "SELECT g, SUM(x) FILTER (WHERE y > 0) FROM t GROUP BY g",
        "SELECT g, SUM(x), GROUP_CONCAT(g) FROM t GROUP BY g",
        "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY g LIMIT 2",  # first groups travel
        "SELECT x FROM t ORDER BY x LIMIT 2",
    ],
)
def test_what_is_not_proven_stays_grouped_at_each_vendor(sql: str) -> None:
    """There is no other statement for these."""
    assert Planner(SCHEMA).plan(sql).ungrouped is None


def test_vendors_of_many_rows_are_asked_for_groups_and_soon_for_nothing_else() -> None:
    """Five large ones in turn: four are asked twice, the fifth once."""
    plan = planned(STATEMENTS[0])
    assert plan.combine is not None
    assert plan.ungrouped is not None
    grouped = (plan.scatter[0].sql, ())
    asked: list[str] = []
    with closing(SCHEMA.database()) as vendor:
        register(vendor)
        vendor.executemany("INSERT INTO t(g, x) VALUES (?, ?)", [("a", 0.1)] * 300)

        def execute(sql: str, values: Any) -> Any:
            asked.append(sql)
            return vendor.execute(sql, values)

        fold = Folding(plan.combine.merges, plan.ungrouped.bind(lambda binders: ())).begin(grouped)
        assert isinstance(fold, RowFold)
        for number in range(5):
            fold.append((number, (fold.ask(execute),)))
    assert asked == [plan.ungrouped.sql, grouped[0]] * 4 + [grouped[0]]
    assert answer(plan, fold.result()) == repr([("a", 1_500, 150.0, 0.1, None, 0.1)])


@given(
    rows=st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.1, 0.2, None])), max_size=4), max_size=9
    ),
    every=st.integers(0, 3),
    ends=st.sets(st.integers(0, 9), max_size=4),
)
def test_blocks_of_vendors_are_folded_each_by_itself(
    rows: list[list[tuple[str, float | None]]], every: int, ends: set[int]
) -> None:
    """A block is what its vendors alone would be folded to, wherever it is cut."""
    plan = planned("SELECT g, SUM(x) FROM t GROUP BY g")
    assert plan.combine is not None
    folding = Folding.of(plan, lambda binders: ())
    assert folding is not None
    cut = tuple(f"v{end}" for end in sorted(ends))
    sent = [(f"v{number}", each) for number, each in enumerate(rows) if each]
    fold = replace(folding, every=every, ends=cut).begin(("", ()))
    blocks: list[list[Any]] = []
    for place, each in sent:
        starts = not blocks or (every and len(blocks[-1]) == every)
        if starts or any(blocks[-1][-1][0] <= end < place for end in cut):
            blocks.append([])
        blocks[-1].append((place, each))
        fold.append((place, (each,)))
    made = fold.result()
    if not every and not cut:
        blocks = [[each for block in blocks for each in block]] if blocks else []
    assert [place for place, _ in made] == [block[0][0] for block in blocks]
    for (_, (found,)), block in zip(made, blocks, strict=True):
        alone = folding.begin(("", ()))
        for place, each in block:
            alone.append((place, (each,)))
        assert found == alone.result()[0][1][0]


@pytest.mark.parametrize("most", [2, 256])
def test_a_packed_fleet_answers_the_same_by_either_way(tmp_path: Path, most: int) -> None:
    """Through the coordinator, over three shards, beside one database of all rows; parameters in WHERE and key."""
    draw = random.Random(7)
    tables = {
        f"v{number:02}": {"t": [tuple(map(draw.choice, VALUES.values())) for _ in range(draw.randrange(9))]}
        for number in range(40)
    }
    sql = "SELECT g || ?1, COUNT(*), TOTAL(x), AVG(y) FROM t WHERE x < ?2 GROUP BY g || ?1 ORDER BY g || ?1"
    params = ("none", 1e17)
    with closing(SCHEMA.database()) as oracle:
        for vendor_id in sorted(tables):
            oracle.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", tables[vendor_id]["t"])
        expected = oracle.execute(sql, params).fetchall()
    shards = ("a", "b", "c")
    store = PackedStore(
        tmp_path / "s", SCHEMA, shards=shards, locate=lambda vendor_id: shards[int(vendor_id[1:]) % 3], setup=register
    )
    with store:
        store.create_many(sorted(tables.items()))
        coordinator = QueryCoordinator(store_scanners(store), schema=SCHEMA)
        with patch.object(ungrouped, "_MOST", most):
            result = asyncio.run(coordinator.query(sql, params, policy=ScatterPolicy(visit_all=True)))
    assert repr(result.rows) == repr(expected)
    assert Planner(SCHEMA).plan(sql).ungrouped is not None
