"""Kept partials: a repeated aggregate visits what was written since, and answers as a full scan does."""

from __future__ import annotations

import asyncio
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.fanout import QueryCoordinator, partials
from mktsim.fanout.costs import Costs, CostsByPlan
from mktsim.fanout.partials import Blocks, Kept, PartialCache, Unmergeable
from mktsim.fanout.scanner import store_scanners
from mktsim.market import Marketplace, generate
from mktsim.sql.merge import merge_groups
from tests.test_pruning import AGGREGATES, GROUPS, NUMBERS, ODD, SUMMARISED, Fleet, typed

SUMS = ["SUM(x)", "AVG(x)", "TOTAL(n)", "SUM(x * n)", "AVG(n)", "MIN(id)", "MAX(x)", "MIN(-x)"]

cache_key = PartialCache.key


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have blocks of two vendors, and visits preferred wherever possible."""
    monkeypatch.setattr(Costs, "prefers_visits", lambda self, visits, vendors: visits < vendors)
    monkeypatch.setattr(partials, "BLOCK", 2)
    monkeypatch.setattr(partials, "_FAN", 2)


def aggregate(draw: random.Random) -> tuple[str, list[Any]]:
    """Return an aggregate that summaries do not decide."""
    shown = ", ".join([draw.choice(SUMS), *(draw.choice([*SUMS, *AGGREGATES]) for _ in range(draw.choice([0, 1, 2])))])
    where, values = draw.choice([("", []), (" WHERE y > ?", [1]), (" WHERE y > ?", [1.0]), (" WHERE x <> 2", [])])
    key = draw.choice(["", "", "g", "n", "x", "g, n", "lower(g)"])
    if not key:
        return f"SELECT {shown} FROM t{where}", values
    tail = draw.choice(["", " HAVING COUNT(*) > 1", f" ORDER BY {key} LIMIT 2", " ORDER BY 2 DESC, 1 LIMIT 2"])
    return f"SELECT {key}, {shown} FROM t{where} GROUP BY {key}{tail}", values


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_repeated_aggregates_are_those_of_a_full_scan_whatever_was_written_between(data: st.DataObject) -> None:
    """Updates, deletions, new vendors, by this process's store and another's; sums, extremes, groups."""
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    values = draw.choice([ODD, NUMBERS, NUMBERS, [0.1, 0.2, 1e100, -1e100], [0.0, -0.0, None]])

    async def run(fleet: Fleet) -> None:
        asked = [aggregate(draw) for _ in range(3)]
        for _ in range(16):
            await fleet.check(*draw.choice(asked))
            if draw.random() < 0.6:
                fleet.write()

    with TemporaryDirectory() as name:
        fleet = Fleet(Path(name), draw, values, draw.choice([GROUPS, ["a", "b", None]]))
        try:
            asyncio.run(run(fleet))
        finally:
            fleet.close()


def test_a_repeated_aggregate_visits_the_blocks_of_changed_vendors_alone(tmp_path: Path) -> None:
    """None where nothing changed; after one update, a deletion and a new vendor, those vendors' blocks."""
    fleet = Fleet(tmp_path, random.Random(1), [1.5, 2.5], ["a", "b"])
    for vendor_id in fleet.store.vendor_ids():
        fleet.store.delete(vendor_id)
    fleet.store.create_many((f"v{number:03}", {"t": [(1, f"v{number:03}", number, 1, "a", 0)]}) for number in range(60))

    async def run() -> None:
        sql = "SELECT g, SUM(x), COUNT(y) FROM t GROUP BY g"
        first = await fleet.check(sql, [])
        assert (first.stats.vendors_asked, first.stats.reading) == (60, "")
        again = await fleet.check(sql, [])
        assert (again.stats.vendors_asked, again.stats.vendors_pruned) == (0, 60)
        assert "60 of 60 vendors, unchanged" in again.stats.reading
        with fleet.store.transaction("v007") as connection:
            connection.execute("UPDATE t SET x = 1000")
        assert "vendors  2 to visit, 58 pruned" in str(fleet.pruning.explain(sql))
        changed = await fleet.check(sql, [])
        assert changed.stats.vendors_asked == 2
        assert changed.rows == [("a", sum(range(60)) - 7 + 1000.0, 60)]
        fleet.store.delete("v030")
        assert (await fleet.check(sql, [])).stats.vendors_asked == 1
        fleet.store.create("v030x", {"t": [(1, "v030x", 5, 1, "c", 0)]})
        assert (await fleet.check(sql, [])).stats.vendors_asked <= 3
        assert (await fleet.check(sql, [])).stats.vendors_asked == 0

    try:
        asyncio.run(run())
    finally:
        fleet.close()


def test_partials_too_large_to_be_kept_are_not_kept_and_not_tried_again(tmp_path: Path) -> None:
    """A cap on bytes; the statement is then scanned each time, and others are forgotten first."""
    fleet = Fleet(tmp_path, random.Random(2), [1.5, 2.5], ["a", "b"])

    async def run() -> None:
        cache = fleet.pruning._partials = PartialCache(most_bytes=200)
        sql = "SELECT id, SUM(x) FROM t GROUP BY id"
        for _ in range(3):
            assert (await fleet.check(sql, [])).stats.vendors_pruned == 0
        assert cache.nbytes == 0
        assert not cache.fits(cache.key(sql, ()))

    try:
        asyncio.run(run())
    finally:
        fleet.close()


def test_the_partials_used_last_stay_when_others_must_go() -> None:
    """Least recently used first, by bytes."""
    blocks = Blocks.build([("a", ([("x" * 100, 1)],))], ("", "SUM"), 10_000)
    assert blocks is not None
    size = blocks.nbytes
    keys = [cache_key(name, ()) for name in "abc"]
    cache = PartialCache(2 * (size + sys.getsizeof("a")))
    for key in keys:
        cache.give(key, Kept({"s": (None, 1, blocks)}))
        if key == keys[1]:
            cache.give(keys[0], cache.take(keys[0]) or Kept({}))
    assert cache.nbytes == cache.most_bytes
    assert [cache.take(key) is not None for key in keys] == [True, False, True]


def test_long_values_are_not_kept_as_keys(tmp_path: Path) -> None:
    """A statement with a text of a megabyte is scanned each time: its key would be larger than its partials."""
    fleet = Fleet(tmp_path, random.Random(5), [1.5, 2.5], ["a", "b"])

    async def run() -> None:
        sql = "SELECT SUM(x) FROM t WHERE y <> ?"
        for number in range(3):
            assert (await fleet.check(sql, [f"{number}" * 1_000_000])).stats.vendors_pruned == 0
        assert fleet.pruning._partials.nbytes == 0
        assert not fleet.pruning._partials._unfit
        await fleet.check(sql, ["short"])
        assert (await fleet.check(sql, ["short"])).stats.vendors_asked == 0
        assert fleet.pruning._partials.nbytes > 0

    try:
        asyncio.run(run())
    finally:
        fleet.close()


def test_partials_of_a_shard_that_was_dropped_are_not_those_of_one_made_anew(tmp_path: Path) -> None:
    """Its name is the same, and the number of its last change was passed long ago."""

    async def run() -> None:
        generate(tmp_path / "m", vendors=80, products=2, seed=1, shards=4, workers=1)
        async with Marketplace.open(tmp_path / "m") as market:
            sql = "SELECT SUM(price), COUNT(*) FROM products WHERE name <> ''"
            last = market.shards[-1]
            for vendor_id in market.store.vendor_ids(last):
                for _ in range(5):
                    with market.store.transaction(vendor_id) as connection:
                        connection.execute("UPDATE products SET stock = stock + 1")
            whole = (await market.query(sql)).rows
            assert (await market.query(sql)).stats.vendors_asked == 0
            await market.merge_shards(last, market.shards[0])
            assert (await market.query(sql)).rows == whole
            await market.split_shard(market.shards[0])
            assert market.shards.count(last) == 1
            for _ in range(2):
                assert (await market.query(sql)).rows == whole
            assert (await market.query(sql)).stats.vendors_asked == 0

    asyncio.run(run())


def test_kept_partials_serve_under_a_deadline_and_none_are_made_under_one(tmp_path: Path) -> None:
    """What was kept spares the scan whoever asks; a query that may break off keeps nothing, and spoils nothing."""
    fleet = Fleet(tmp_path, random.Random(6), [1.5, 2.5], ["a", "b"])

    async def run() -> None:
        sql = "SELECT g, SUM(x) FROM t GROUP BY g"
        hurried = await fleet.pruning.query(sql, deadline_s=60)
        assert (hurried.stats.vendors_asked, fleet.pruning._partials.nbytes) == (len(fleet.store), 0)
        whole = await fleet.check(sql, [])
        for options in ({"deadline_s": 60}, {"allow_partial": True}):
            again = await fleet.pruning.query(sql, **options)
            assert (again.stats.vendors_asked, typed(again.rows)) == (0, typed(whole.rows))

    try:
        asyncio.run(run())
    finally:
        fleet.close()


def test_aggregators_are_not_asked_for_blocks(tmp_path: Path) -> None:
    """They merge what goes through them: nothing could be kept of it."""
    fleet = Fleet(tmp_path, random.Random(7), [1.5, 2.5], ["a", "b"])
    tree = QueryCoordinator(store_scanners(fleet.store), schema=SUMMARISED, fanout_width=2, address="tree")

    async def run() -> None:
        sql = "SELECT g, SUM(x) FROM t GROUP BY g"
        for _ in range(2):
            found = await tree.query(sql)
            assert typed(found.rows) == typed((await fleet.check(sql, [])).rows)
            assert "partials kept" not in found.stats.reading
        assert tree._partials.nbytes == 0

    try:
        asyncio.run(run())
    finally:
        tree.close()
        fleet.close()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-5, 5)), max_size=40), st.data())
def test_blocks_merge_to_what_all_segments_merge_to(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    """Built, and after any of them was replaced."""
    merges = ("", "SUM", "MAX")
    by_vendor: dict[str, list[Any]] = {}
    for vendor, value in rows:
        by_vendor.setdefault(f"{vendor:02}", []).append((value % 3, value, value))
    segments = [(vendor, (sent,)) for vendor, sent in sorted(by_vendor.items())]

    def total(segments: Any) -> list[Any]:
        merged = merge_groups(segments, merges)
        assert merged is not None
        return sorted(row for _, parts in merged for row in parts[0])

    blocks = Blocks.build(segments, merges, 100_000)
    assert blocks is not None
    assert sorted(blocks.total()) == total(segments)
    changed = data.draw(st.integers(0, len(blocks.starts) - 1))
    fresh = [("99", ([(1, 7, 7)],))] if data.draw(st.booleans()) else []
    blocks.replace({changed: fresh})
    ids = [segment[0] for segment in segments]
    kept = [segment for segment in segments if segment[0] not in blocks.vendors(changed, ids)]
    assert sorted(blocks.total()) == total([*kept, *fresh])


def test_values_that_python_must_not_compare_are_not_kept() -> None:
    """Text beside numbers under MIN is SQL's to merge."""
    mixed = [("a", ([(1,)],)), ("b", ([("x",)],))]
    assert Blocks.build(mixed, ("MIN",), 10_000) is None
    blocks = Blocks.build(mixed[:1], ("MIN",), 10_000)
    assert blocks is not None
    with pytest.raises(Unmergeable):
        blocks.replace({0: mixed})


def test_shards_scanned_elsewhere_hand_up_their_blocks_too(tmp_path: Path) -> None:
    """The same answers and the same visits through an executor."""
    fleet = Fleet(tmp_path, random.Random(3), [0.1, 0.7, 2.5], ["a", "b"])
    with ThreadPoolExecutor(1) as executor:
        fleet.pruning.change_scanners(store_scanners(fleet.store, executor=executor))

        async def run() -> None:
            for sql in ("SELECT g, AVG(x), MIN(n) FROM t GROUP BY g", "SELECT SUM(x) FROM t"):
                await fleet.check(sql, [])
                assert (await fleet.check(sql, [])).stats.vendors_asked == 0

        try:
            asyncio.run(run())
        finally:
            fleet.close()


def test_one_and_one_point_zero_are_two_statements() -> None:
    """typeof(?) tells them apart, and so does the key of what is kept."""
    assert PartialCache.key("SELECT ?", (1,)) != PartialCache.key("SELECT ?", (1.0,))
    assert PartialCache.key("SELECT ?", (0.0,)) != PartialCache.key("SELECT ?", (-0.0,))


def test_starting_worker_processes_does_not_speak_against_them() -> None:
    """The first scan that is handed out waits for them to start; the later ones tell what handing out costs."""
    costs = CostsByPlan()["a"]
    costs.learn_handed_out(2_000, busy_s=0.016, wall_s=2.0, workers=2)
    assert costs.hand_out_us is None
    assert not costs.scans_here(2_000, workers=2)
    for _ in range(3):
        costs.learn_handed_out(2_000, busy_s=0.016, wall_s=0.0105, workers=2)
    assert not costs.scans_here(2_000, workers=2)
    assert costs.scans_here(500, workers=2)


def test_costs_are_running_means_that_one_stall_does_not_upset() -> None:
    """Bounded by a decade around the prior; few vendors teach nothing; each statement has its own."""
    costs = CostsByPlan()
    costs["a"].learn("scan", 1_000, 3_600.0)
    assert costs["a"].scan_us == 0.75 * 8 + 0.25 * 80
    costs["a"].learn("visit", 10, 1.0)
    assert costs["a"].visit_us == 20.0
    assert costs["b"].scan_us == 8.0
    assert typed([(costs["b"].visit_us,)]) == [["float 20.0"]]
    assert SUMMARISED.summarised
