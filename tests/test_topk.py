"""The running threshold of a scan: what it leaves out is never missed."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import MktsimError
from mktsim.fanout import QueryCoordinator, QueryResult
from mktsim.fanout.scanner import store_scanners
from mktsim.sql import Planner
from mktsim.sql.schema import Schema
from mktsim.sql.topk import RunningTopK
from mktsim.sqlite import connect
from mktsim.storage import PackedStore

SCHEMA = Schema(("CREATE TABLE t(id INTEGER, x, n TEXT COLLATE NOCASE, g TEXT)",))
#: Few distinct values, so that ties are the rule, and every kind that ORDER BY tells apart.
KEYS = [None, 0, 1, 2, 2.0, 2.5, -0.0, math.inf, -math.inf, 2**53, 2**53 + 1, float(2**53), "a", "B", b"a"]
NUMBERS = [None, 1, 2, 2.5, 3]
ORDERS = [
    "x DESC",
    "x DESC",
    "x",
    "x",
    "x DESC NULLS FIRST",
    "x NULLS LAST",
    "x DESC, g",
    "x, n DESC",
    "n",
    "n DESC",
    "-x",
    "+x DESC",
]


def ask(fleet: Sequence[list[tuple[Any, ...]]], sql: str, params: Any, shards: int, **options: Any) -> QueryResult:
    """Answer one statement over a packed store that holds one vendor a list."""
    with TemporaryDirectory() as folder:
        names = [f"s{number}" for number in range(shards)]
        places = {f"v{number:02}": names[number % shards] for number in range(len(fleet))}
        with PackedStore(
            Path(folder) / "fleet", SCHEMA, shards=names, locate=lambda id_: places.get(id_, "s0")
        ) as store:
            store.create_many((f"v{number:02}", {"t": rows}) for number, rows in enumerate(fleet))
            coordinator = QueryCoordinator(store_scanners(store), schema=SCHEMA)
            try:
                return asyncio.run(coordinator.query(sql, params, **options))
            finally:
                coordinator.close()


def typed(rows: Sequence[tuple[Any, ...]]) -> list[list[str]]:
    """Tell 1 from 1.0 and 0.0 from -0.0."""
    return [[f"{type(value).__name__} {value!r}" for value in row] for row in rows]


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_first_rows_are_those_of_one_table_whatever_ties_nulls_and_types_the_key_has(data: st.DataObject) -> None:
    """Every order, limit and offset, over a store whose scans keep a threshold."""
    # A seed makes full-sized fleets as likely as small ones, which a list strategy does not.
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    keys = draw.choice([KEYS, NUMBERS, NUMBERS, [draw.random() for _ in range(20)], ["a", "B", "b", None]])
    most = draw.choice([2, 3, 6])  # few rows a vendor: the threshold then comes to stand between any two of them
    drawn = [
        [
            (draw.choice(keys), draw.choice(["a", "A", "b", None]), draw.choice("ggh"))
            for _ in range(draw.randrange(most))
        ]
        for _ in range(draw.randint(1, 8))
    ]
    number = iter(range(1_000))
    fleet = [[(next(number), *row) for row in vendor] for vendor in drawn]
    order = draw.choice(ORDERS)
    condition = data.draw(st.sampled_from(["", " WHERE g = 'g'", " WHERE g = 'g' OR x > 1"]))
    limit, offset = draw.choice([-1, 0, 1, 2, 3, 4, 5]), draw.choice([0, 0, 1, 3])
    by = f" ORDER BY {order}" if draw.random() < 0.8 else ""
    sql = f"SELECT id, x, n FROM t{condition}{by} LIMIT ? OFFSET ?"
    oracle = connect()
    oracle.execute(SCHEMA.statements[0])
    oracle.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", [row for vendor in fleet for row in vendor])
    expected = oracle.execute(sql, (limit, offset)).fetchall()
    oracle.close()
    shards = data.draw(st.integers(1, 3))
    deadline_s = data.draw(st.sampled_from([None, 60.0]))
    answer = ask(fleet, sql, (limit, offset), shards, deadline_s=deadline_s, allow_partial=data.draw(st.booleans()))
    assert typed(answer.rows) == typed(expected)


def test_without_an_order_a_scan_ends_with_the_rows_it_needs(tmp_path: Path) -> None:
    """Later vendors' images are not even read: one of them is damaged, and nobody notices."""
    fleet = [(f"v{number:02}", {"t": [(number, 1, "n", "g"), (number, 2, "n", "h")]}) for number in range(20)]
    with PackedStore(tmp_path / "fleet", SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        store.create_many(fleet)
        with connect(str(store.shard_path("s"))) as file:
            file.execute("UPDATE vendors SET image = x'00' WHERE id = 'v09'")
        coordinator = QueryCoordinator(store_scanners(store), schema=SCHEMA)
        sql = "SELECT id FROM t WHERE x = ? LIMIT 3 OFFSET 1"
        answer = asyncio.run(coordinator.query(sql, (1,)))
        assert answer.rows == [(1,), (2,), (3,)]
        assert answer.stats.vendors_answered == 20
        assert answer.stats.rows_shipped == 4
        with pytest.raises(MktsimError, match="v09"):
            asyncio.run(coordinator.query("SELECT id FROM t WHERE x = 1 LIMIT 10"))
        coordinator.close()


def test_a_row_that_equals_the_threshold_may_win_by_a_second_term() -> None:
    """The first term alone decides nothing between equals, so that they are sent."""
    fleet = [[(0, 1, "n", "h")], [(1, 1, "n", "g")], [(2, 1, "n", "i")]]
    assert ask(fleet, "SELECT id FROM t ORDER BY x DESC, g LIMIT 1", (), 1).rows == [(1,)]


def test_a_scan_with_a_threshold_ships_far_fewer_rows_and_tells_so() -> None:
    """One vendor after another, each with ten better than none: only the first few send anything."""
    fleet = [[(10 * vendor + row, row / 10, "n", "g") for row in range(10)] for vendor in range(50)]
    sql = "SELECT id FROM t WHERE g = ? ORDER BY x DESC LIMIT 5"
    answer = ask(fleet, sql, ("g",), 1)
    assert [id_ for (id_,) in answer.rows] == [9, 19, 29, 39, 49]
    assert answer.stats.rows_shipped < 50  # 250 without a threshold
    assert answer.stats.vendors_answered == 50
    plan = Planner(SCHEMA).plan(sql)
    assert any("threshold" in rule for rule in plan.rules)


@pytest.mark.parametrize(("order", "why", "bounded"), [
    ("x DESC", "a plain column", True),
    ("n DESC", "a collation that Python's order is not", False),
    ("-x", "an expression, which is not shipped", False),
])  # fmt: skip
def test_a_threshold_is_had_for_plain_columns_alone(order: str, why: str, bounded: bool) -> None:
    """Without it, vendors are still asked unsorted."""
    top = Planner(SCHEMA).plan(f"SELECT id, x, n FROM t ORDER BY {order} LIMIT 5").top
    assert top is not None, why
    assert top.unsorted.endswith(" LIMIT ?")
    assert " ORDER BY " not in top.unsorted
    assert bool(top.bounded) is bounded, why


def test_a_scan_that_meets_numbers_and_text_goes_on_without_a_threshold() -> None:
    """Python cannot compare them, and need not."""
    top = Planner(SCHEMA).plan("SELECT x FROM t ORDER BY x LIMIT 2").top
    assert top is not None
    request = top.bind(2, lambda binders: tuple(3 if binder == "more" else None for binder in binders))
    assert request is not None
    running = RunningTopK(request, ("SELECT x FROM t ORDER BY x LIMIT 2", ()))
    running.add([(1,), (2,)])
    assert running.sql == request.bounded[0]
    running.add([("a",)])
    running.add([(1,), (2,)])
    assert running.sql == request.unsorted[0]
