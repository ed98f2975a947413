"""What summaries leave out is never missed: pruned answers against full scans."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import EvaluationError
from mktsim.fanout import QueryCoordinator, prepare, prune
from mktsim.fanout.costs import Costs
from mktsim.fanout.partials import PartialCache
from mktsim.fanout.scanner import store_scanners
from mktsim.sql.schema import Schema, Summarised
from mktsim.storage import PackedStore, summaries

DDL = ("CREATE TABLE t(id INTEGER, vendorId TEXT, x REAL, n INTEGER, g TEXT, y)",)
SUMMARISED = Schema(DDL, shard_column="vendorId", summarised=(Summarised("t", ("x", "n"), "g"),))
PLAIN = Schema(DDL, shard_column="vendorId")
INF = float("inf")
#: Ties, NULLs, signed zeros, infinities, integers that no float holds, and what is no number at all.
ODD = [None, 0, -0.0, 0.0, 1, 1.5, 2, -1, INF, -INF, 2**53, 2**53 + 1, -(2**62), 1e300, "a", "2", b"b"]
NUMBERS = [None, 0.0, 1, 1.5, 2, 3, -1]
GROUPS = ["a", "b", "c", "A", "", None, b"a", 7, "x" * 300]
SHARDS = ("s0", "s1", "s2")

CONDITIONS = [
    "x > ?", "x >= ?", "x < ?", "x <= ?", "x = ?", "? < x", "n = ?", "n > ?", "n <= ?", "x IS NULL", "n IS NOT NULL",
    "NOT x IS NULL", "x BETWEEN ? AND ?", "n IN (?, ?)", "g = ?", "g = ?", "g IN (?, ?)", "g IS NULL", "g IS NOT NULL",
    "y > ?", "x > n", "x <> ?", "g > ?", "x NOT IN (?, ?)", "(x > ? OR n = ?)", "x = -1", "g = 'a' COLLATE NOCASE",
    "+x > ?", "g COLLATE NOCASE = 'a'", "t.n >= -2", "x = '2'",
]  # fmt: skip
ORDERS = [
    "x", "x DESC", "n", "n DESC", "x DESC NULLS FIRST", "x NULLS LAST", "x DESC, vendorId", "n, vendorId DESC",
    "x, n DESC", "x DESC, g", "n DESC, vendorId, id", "-x", "x COLLATE NOCASE", "2", "k DESC",
]  # fmt: skip
AGGREGATES = [
    "COUNT(*)", "COUNT(x)", "MIN(x)", "MAX(x)", "COUNT(n)", "MIN(n)", "MAX(n)", "MIN(x) + MAX(n)", "SUM(n)", "MIN(y)",
    "COUNT(*) FILTER (WHERE n > 0)", "COUNT(DISTINCT g)", "typeof(MAX(x))", "MIN(t.x)",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have visits preferred wherever possible, waves of few vendors, and caps that a small fleet reaches."""
    monkeypatch.setattr(Costs, "prefers_visits", lambda self, visits, vendors: visits < vendors)
    monkeypatch.setattr(prune, "_FIRST_WAVE", 1)
    monkeypatch.setattr(prune, "_GROWTH", 1)


def statement(draw: random.Random) -> tuple[str, list[Any]]:
    """Return a statement, and values for its placeholders."""
    chosen = [draw.choice(CONDITIONS) for _ in range(draw.choice([0, 0, 1, 1, 2, 3]))]
    where = f" WHERE {' AND '.join(chosen)}" if chosen else ""
    kind = draw.random()
    if kind < 0.5:
        limit = draw.choice([1, 1, 2, 3, 5, 0, -1, 100])
        offset = draw.choice(["", "", " OFFSET 2"])
        tail = f"ORDER BY {draw.choice(ORDERS)} LIMIT {limit}{offset}"
        sql = f"SELECT id, x AS k, n, typeof(x), vendorId, g FROM t{where} {tail}"
    elif kind < 0.7:
        shown = ", ".join(draw.choice(AGGREGATES) for _ in range(draw.randint(1, 3)))
        sql = f"SELECT {shown} FROM t{where}{draw.choice(['', '', ' HAVING COUNT(*) > 1'])}"
    elif kind < 0.95:
        shown = ", ".join(draw.choice(AGGREGATES) for _ in range(draw.randint(1, 3)))
        tail = draw.choice(["", " HAVING COUNT(*) > 1", " ORDER BY 2 DESC, g LIMIT 2", " ORDER BY g DESC LIMIT 2"])
        sql = f"SELECT g, {shown} FROM t{where} GROUP BY {draw.choice(['g', 'g', 'g', 'n'])}{tail}"
    else:
        sql = f"SELECT DISTINCT g, n FROM t{where} ORDER BY n DESC, g LIMIT 3"
    values: list[Any] = []
    for condition in chosen:
        listed = [*GROUPS, "zz", "a", "b", "c"] if condition.startswith("g") else [*NUMBERS, *NUMBERS, *ODD]
        values += [draw.choice(listed) for _ in range(condition.count("?"))]
    return sql, values


def typed(rows: Any) -> list[list[str]]:
    """Tell 1 from 1.0 and 0.0 from -0.0."""
    return [[f"{type(value).__name__} {value!r}" for value in row] for row in rows]


class Fleet:
    """A packed store whose statements are answered with summaries and without."""

    def __init__(self, folder: Path, draw: random.Random, values: list[Any], groups: list[Any]) -> None:
        self.draw, self.values, self.groups = draw, values, groups
        self.path = folder / "fleet"
        self.schema = SUMMARISED
        self.serial = 0
        self.store = self.opened()
        ids = [f"v{number:02}" for number in range(draw.choice([1, 4, 9]))]
        self.store.create_many((vendor_id, {"t": self.rows(vendor_id)}) for vendor_id in ids)
        scanners = store_scanners(self.store)
        self.pruning = QueryCoordinator(scanners, schema=SUMMARISED)
        self.scanning = QueryCoordinator(store_scanners(self.store), schema=PLAIN, address="other")
        self.scanning._partials = PartialCache(0)

    def opened(self) -> PackedStore:
        return PackedStore(
            self.path, self.schema, shards=SHARDS, locate=lambda id_: SHARDS[sum(id_.encode()) % 3], setup=prepare
        )

    def rows(self, vendor_id: str) -> list[tuple[Any, ...]]:
        made = []
        for _ in range(self.draw.choice([0, 1, 1, 2, 4])):
            self.serial += 1
            x, n, y = (self.draw.choice(self.values) for _ in range(3))
            made.append((self.serial, vendor_id, x, n, self.draw.choice(self.groups), y))
        return made

    def write(self) -> None:
        """Change something, as this process or another."""
        store = self.store if self.draw.random() < 0.6 else self.opened()
        ids = store.vendor_ids()
        kind = self.draw.random()
        if kind < 0.6 and ids:
            vendor_id = self.draw.choice(ids)
            with store.transaction(vendor_id) as connection:
                sql = self.draw.choice(
                    ["DELETE FROM t WHERE id % 2", "UPDATE t SET x = ?", "UPDATE t SET n = ?", "UPDATE t SET g = NULL"]
                )
                connection.execute(sql, [self.draw.choice(self.values)] * sql.count("?"))
                connection.executemany("INSERT INTO t VALUES(?, ?, ?, ?, ?, ?)", self.rows(vendor_id))
        elif kind < 0.75 and ids:
            store.delete(self.draw.choice(ids))
        elif kind < 0.8 and ids:
            vendor_id = self.draw.choice(ids)
            store.restore(vendor_id, store.image(vendor_id))
        else:
            new = f"v{self.draw.randrange(30):02}"
            if new not in store:
                store.create(new, {"t": self.rows(new)})
        if store is not self.store:
            store.close()

    async def check(self, sql: str, values: list[Any]) -> Any:
        """Compare; return the pruned answer."""
        try:
            scanned = await self.scanning.query(sql, values)
        except EvaluationError:
            with pytest.raises(EvaluationError):
                await self.pruning.query(sql, values)
            return None
        pruned = await self.pruning.query(sql, values)
        assert typed(pruned.rows) == typed(scanned.rows), f"{sql} {values}"
        assert pruned.stats.vendors_asked + pruned.stats.vendors_pruned == len(self.store)
        return pruned

    def close(self) -> None:
        self.pruning.close()
        self.scanning.close()
        self.store.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_pruned_answers_are_those_of_a_full_scan_whatever_is_stored_and_written_between(data: st.DataObject) -> None:
    """Every condition, order, limit and aggregate; ties, NULLs, odd types; writes by two processes' stores."""
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    values = draw.choice([ODD, NUMBERS, NUMBERS, [1, 2], [0.0, -0.0, None], [draw.random() for _ in range(30)]])
    groups = draw.choice([GROUPS, ["a", "b", None], ["a", "b", "c", "d", "e"]])

    async def run(fleet: Fleet) -> None:
        for _ in range(40):
            await fleet.check(*statement(draw))
            if draw.random() < 0.15:
                fleet.write()

    caps = summaries._MOST_LABELS, summaries._MOST_GROUPS, summaries._REMEMBERED
    with TemporaryDirectory() as name:
        if draw.random() < 0.3:
            summaries._MOST_LABELS, summaries._MOST_GROUPS, summaries._REMEMBERED = 2, 2, 3  # type: ignore[misc]
        fleet = Fleet(Path(name), draw, values, groups)
        try:
            asyncio.run(run(fleet))
        finally:
            summaries._MOST_LABELS, summaries._MOST_GROUPS, summaries._REMEMBERED = caps  # type: ignore[misc]
            fleet.close()


@pytest.mark.parametrize("write", ["create", "delete"])
def test_a_search_goes_by_the_vendors_that_there_were_when_it_began(
    folder: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """Another query sees new vendors, or deletions, between two of its waves: it visits whom it meant to."""
    store = PackedStore(folder, SUMMARISED, shards=["s"], locate=lambda _: "s", setup=prepare)
    with store:
        store.create_many(
            (f"v{n:03}", {"t": [(1, f"v{n:03}", float(n), 1, "a", int(n in (70, 180)))]}) for n in range(200)
        )
        searching = QueryCoordinator(store_scanners(store), schema=SUMMARISED)
        other = QueryCoordinator(store_scanners(store), schema=SUMMARISED, address="other")
        waves = 0
        scatter = prune.scatter_into

        async def interrupted(*arguments: Any) -> Any:
            nonlocal waves
            waves += 1
            if waves == 3:
                for number in range(30):
                    if write == "create":
                        store.create(f"a{number:03}", {"t": [(1, f"a{number:03}", -1.0, 1, "a", 0)]})
                    else:
                        store.delete(f"v{number:03}")
                assert (await other.query("SELECT COUNT(*) FROM t")).stats.vendors_asked == 0
            return await scatter(*arguments)

        monkeypatch.setattr(prune, "scatter_into", interrupted)
        sql = "SELECT vendorId FROM t WHERE y > 0 ORDER BY x DESC LIMIT 1"
        found = asyncio.run(searching.query(sql))
        assert waves > 5
        assert found.rows == [("v180",)]
        assert found.stats.vendors_asked < 150
        searching.close()
        other.close()


@pytest.mark.parametrize(
    ("condition", "values"),
    [
        ("g LIKE 'a' ESCAPE 'xx'", []),
        ("g LIKE ?", ["%" * 60_000]),
        ("g LIKE g || ?", ["%" * 60_000]),
        ("like(?, g)", ["%" * 60_000]),
        ("replace(replace(g, 'a', ?), 'a', ?) > 1e9", ["a" * 100_000, "a" * 100_000]),
    ],
)
def test_what_fails_over_one_database_fails_though_no_vendor_need_be_visited(
    folder: Path, condition: str, values: list[Any]
) -> None:
    """A row that a summary leaves out may be the one over which SQLite fails: it is not left out."""
    store = PackedStore(folder, SUMMARISED, shards=["s"], locate=lambda _: "s", setup=prepare)
    with store:
        store.create_many((f"v{n}", {"t": [(1, f"v{n}", float(n), 1, "a", 0)]}) for n in range(5))
        made = QueryCoordinator(store_scanners(store), schema=SUMMARISED)
        with pytest.raises(EvaluationError):
            asyncio.run(made.query(f"SELECT id FROM t WHERE {condition} AND x > 500", values))
        pruned = asyncio.run(made.query("SELECT id FROM t WHERE g LIKE ? AND x > 500", ["%a%"]))
        assert (pruned.rows, pruned.stats.vendors_asked) == ([], 0)
        made.close()


def test_a_vendor_that_cannot_be_summarised_does_not_stand_in_the_way_of_those_after_it(folder: Path) -> None:
    """Text that is no UTF-8 is named when it is read; everybody else has a summary."""
    store = PackedStore(folder, SUMMARISED, shards=["s"], locate=lambda _: "s", setup=prepare)
    with store:
        store.create_many((f"v{n:02}", {"t": [(1, f"v{n:02}", float(n), 1, "a", 0)]}) for n in range(20))
        with store.transaction("v03") as connection:
            connection.execute("UPDATE t SET g = CAST(x'ff' AS TEXT)")
        for number in range(5, 10):
            store.restore(f"v{number:02}", store.image(f"v{number:02}"))  # without a summary
        made = QueryCoordinator(store_scanners(store), schema=SUMMARISED)
        for _ in range(2):
            found = asyncio.run(made.query("SELECT COUNT(*), MAX(x) FROM t"))
            assert (found.rows, found.stats.vendors_asked) == ([(20, 19.0)], 1)
        made.close()


def test_a_vendor_that_is_deleted_while_summaries_are_made_is_passed_over(folder: Path) -> None:
    """Another process may delete it between the look at who has none and the scan: no query fails for that."""
    store = PackedStore(folder, SUMMARISED, shards=["s"], locate=lambda _: "s", setup=prepare)
    with store:
        store.create_many((f"v{n}", {"t": [(1, f"v{n}", float(n), 1, "a", 0)]}) for n in range(6))
        for number in (1, 4):
            store.restore(f"v{number}", store.image(f"v{number}"))  # without a summary
        assert store._summarise("s", ["v1", "v2x", "v4"])
        assert not store._unsummarised
        made = QueryCoordinator(store_scanners(store), schema=SUMMARISED)
        found = asyncio.run(made.query("SELECT COUNT(*), MAX(x) FROM t"))
        assert (found.rows, found.stats.vendors_asked) == ([(6, 5.0)], 0)
        made.close()


class Small(Fleet):
    """A fleet of given rows: by vendor, (x, n, g)."""

    def __init__(self, folder: Path, vendors: dict[str, list[tuple[Any, ...]]], *, index: str = "") -> None:
        self.schema = Schema((*DDL, index) if index else DDL, "vendorId", SUMMARISED.summarised)
        self.path = folder / "fleet"
        self.store = self.opened()
        self.store.create_many(
            (name, {"t": [(number, name, *row, number) for number, row in enumerate(rows)]})
            for name, rows in vendors.items()
        )
        self.pruning = QueryCoordinator(store_scanners(self.store), schema=self.schema)
        plain = Schema(self.schema.statements, "vendorId")
        self.scanning = QueryCoordinator(store_scanners(self.store), schema=plain, address="other")
        self.scanning._partials = PartialCache(0)

    def ask(self, sql: str, values: Any = ()) -> Any:
        """Compare; return the answer."""
        return asyncio.run(self.check(sql, list(values)))


@pytest.mark.parametrize(
    ("sql", "visited"),
    [
        ("SELECT id FROM t ORDER BY x DESC LIMIT 1", 1),  # v0 and v9 tie at 5: the row of v0 comes first
        ("SELECT id FROM t ORDER BY x DESC, vendorId LIMIT 1", 1),
        ("SELECT vendorId FROM t ORDER BY x DESC, vendorId DESC LIMIT 1", 2),  # here it is that of v9
        ("SELECT vendorId FROM t ORDER BY x DESC, n LIMIT 1", 2),  # and here n decides
        ("SELECT vendorId FROM t ORDER BY x LIMIT 2", 2),
        ("SELECT COUNT(*), COUNT(x), MIN(x), MAX(n) FROM t", 0),
        ("SELECT g, COUNT(*), MAX(x) FROM t GROUP BY g", 0),
        ("SELECT COUNT(*) FROM t WHERE g = 'a'", 0),
        ("SELECT COUNT(*) FROM t WHERE x > 4", 2),  # v0 and v9 have rows on either side
        ("SELECT COUNT(*) FROM t WHERE x > 1", 3),
        ("SELECT COUNT(*) FROM t WHERE x >= 1", 0),
        ("SELECT SUM(x) FROM t WHERE x > 4", 2),
        ("SELECT id FROM t WHERE n = 7", 0),
    ],
)
def test_so_many_vendors_are_visited(sql: str, visited: int, tmp_path: Path) -> None:
    """Those whose bounds say that they may matter; of equals those that order may put first."""
    rows = {f"v{number}": [(1, 1, "a"), (2, 3, "b")] for number in range(1, 9)}
    rows |= {"v0": [(1, 2, "a"), (5, 2, "b")], "v9": [(1, 1, "a"), (5, 1, "b")]}
    if "> 1" in sql:
        rows |= {f"v{number}": [(3, 1, "a"), (2, 3, "b")] for number in range(2, 9)}
    fleet = Small(tmp_path, rows)
    try:
        result = fleet.ask(sql)
        assert result.stats.vendors_asked == visited
        assert result.stats.vendors_pruned == 10 - visited
        assert result.stats.reading == fleet.pruning.explain(sql).reading
        assert result.stats.reading
    finally:
        fleet.close()


def test_ties_along_an_index_are_not_decided_by_vendors(tmp_path: Path) -> None:
    """One SQLite walks the index: equal x come by n, and only then by vendor."""
    fleet = Small(
        tmp_path, {"a": [(1, 5, "g")], "b": [(1, 4, "g")], "c": [(1, 3, "g")]}, index="CREATE INDEX i ON t(x, n)"
    )
    try:
        assert fleet.ask("SELECT vendorId, n FROM t ORDER BY x LIMIT 1").rows == [("c", 3)]
    finally:
        fleet.close()


@pytest.mark.parametrize("zeros", [(0.0, -0.0), (-0.0, 0.0)])
@pytest.mark.parametrize(
    "sql", ["SELECT MIN(x), MAX(n) FROM t", "SELECT g, MIN(x) FROM t GROUP BY g", "SELECT SUM(n), MIN(x) FROM t"]
)
def test_a_zero_has_one_sign_in_a_column_of_numbers(zeros: tuple[float, float], sql: str, tmp_path: Path) -> None:
    """SQLite stores -0.0 as 0.0 there, so that an extreme is the same whichever vendor it comes from."""
    fleet = Small(
        tmp_path, {"a": [(zeros[0], 1, "g")], "b": [(zeros[1], 2, "g")], "c": [(0.0, 3, "g")], "d": [(-0.0, 1, "g")]}
    )
    try:
        for _ in range(2):
            fleet.ask(sql)
    finally:
        fleet.close()


def test_a_group_among_the_others_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no label of its own may be any value."""
    monkeypatch.setattr(summaries, "_MOST_GROUPS", 1)
    fleet = Small(
        tmp_path, {"a": [(1, 1, "g")], "b": [(2, 2, "a"), (3, 3, "g"), (4, 4, "h")], "c": [(1, 1, "x" * 300)]}
    )
    try:
        assert fleet.ask("SELECT vendorId FROM t WHERE g = 'g'").rows == [("a",), ("b",)]
        assert fleet.ask("SELECT COUNT(*) FROM t WHERE g IN ('g', 'h')").rows == [(3,)]
        assert fleet.ask("SELECT g, COUNT(*) FROM t GROUP BY g").rows[1] == ("g", 2)
        assert fleet.ask("SELECT x FROM t WHERE g = 'h' ORDER BY x LIMIT 1").rows == [(4.0,)]
        assert fleet.ask("SELECT COUNT(*) FROM t WHERE g IS NOT NULL").stats.vendors_asked == 0
    finally:
        fleet.close()


def test_a_vendor_deleted_after_the_summaries_were_read_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are scanned then."""
    fleet = Small(tmp_path, {f"v{number}": [(number, 1, "g")] for number in range(9)})
    read = prune.read_summaries

    def late(leaves: Any) -> Any:
        found = read(leaves)
        fleet.store.delete("v8")
        monkeypatch.undo()
        return found

    monkeypatch.setattr("mktsim.fanout.coordinator.read_summaries", late)
    try:
        result = asyncio.run(fleet.pruning.query("SELECT x FROM t ORDER BY x DESC LIMIT 1"))
        assert result.rows == [(7.0,)]
    finally:
        fleet.close()


def test_a_search_that_would_visit_most_scans_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that say nothing cost little more than a scan."""
    monkeypatch.setattr(Costs, "prefers_visits", lambda self, visits, vendors: visits * 3 < vendors)
    fleet = Small(tmp_path, {f"v{number}": [(1, number, "g")] for number in range(20)})
    try:
        result = fleet.ask("SELECT n FROM t ORDER BY x DESC, n DESC LIMIT 3")
        assert result.rows == [(19,), (18,), (17,)]
        assert (result.stats.vendors_asked, result.stats.vendors_pruned) == (20, 0)
    finally:
        fleet.close()


def test_numbers_that_no_float_holds_bound_nothing(tmp_path: Path) -> None:
    """2**53 + 1 as a float is 2**53, which would count the wrong rows."""
    fleet = Small(tmp_path, {"a": [(1, 2**53, "g")], "b": [(1, 1, "g")], "c": [(1, 2**53 + 1, "g")]})
    try:
        assert fleet.ask("SELECT COUNT(*) FROM t WHERE n >= ?", [2**53 + 1]).rows == [(1,)]
        assert fleet.ask("SELECT COUNT(*) FROM t WHERE n >= ?", [2**53]).rows == [(2,)]
        assert fleet.ask("SELECT MAX(n) FROM t").rows == [(2**53 + 1,)]
    finally:
        fleet.close()
