"""Summaries: written with the image, loaded as arrays, kept up to date whoever writes."""

from __future__ import annotations

import asyncio
import random
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError
from mktsim.market import Marketplace
from mktsim.market.nouns import SCHEMA
from mktsim.objects import noun, object_schema
from mktsim.sql.schema import Schema, Summarised
from mktsim.sqlite import connect
from mktsim.storage import PackedStore, summaries
from mktsim.storage.folder import file_name
from mktsim.storage.summaries import NULL, OTHER, WHOLE, Labels, ShardSummaries, Summariser

DDL = ("CREATE TABLE t(x REAL, n INTEGER, g TEXT, c TEXT COLLATE NOCASE)", "CREATE TABLE u(a INTEGER)")
DECLARED = (Summarised("t", ("x", "n"), "g"), Summarised("u"))
SUMMARISED = Schema(DDL, summarised=DECLARED)
INF = float("inf")


def store(path: Path, schema: Schema = SUMMARISED) -> PackedStore:
    """Open a store of one shard."""
    return PackedStore(path, schema, shards=["s"], locate=lambda _: "s")


def described(found: ShardSummaries) -> dict[str, Any]:
    """Return all records by vendor, as values: None for a vendor without a summary."""
    names = {code: label for label, code in found.labels.items()} | {WHOLE: "all", OTHER: "other", NULL: None}
    told: dict[str, Any] = {
        vendor_id: {} if known else None for vendor_id, known in zip(found.ids, found.known, strict=True)
    }
    for table, pair in enumerate(found.tables):
        for records in pair:
            for place in np.flatnonzero(records.rows):
                bounds = [
                    (
                        int(records.present[column][place]),
                        *map(repr, (records.low[column][place], records.high[column][place])),
                    )
                    for column in range(len(records.low))
                ]
                vendor = told[found.ids[records.vendor[place]]]
                assert vendor is not None, "an unknown vendor has no record"
                key = table, names[records.code[place]]
                assert key not in vendor, "a vendor has one record of a kind"
                vendor[key] = int(records.rows[place]), bounds
    return told


def loaded(path: Path, schema: Schema = SUMMARISED) -> dict[str, Any]:
    """Return what is in the file, loaded anew."""
    found = ShardSummaries(path / file_name("s"), Summariser(schema))
    try:
        found.refresh()
        return described(found)
    finally:
        found.close()


def test_a_summary_holds_counts_and_bounds_over_all_rows_and_by_group(tmp_path: Path) -> None:
    """NULLs are counted out; text among numbers, and integers that no float holds, leave a bound open."""
    rows = [
        (1.5, 3, "a", ""),
        (None, None, "a", ""),
        (-2, 2**53 + 1, "b", ""),
        ("text", 1, None, ""),
        (9.0, 2, b"x", ""),
    ]
    with store(tmp_path / "s") as made:
        made.create("acme", {"t": rows, "u": [(1,), (2,)]})
        made.create("void")
        found = made.summaries("s")
        assert found is not None
        told = described(found)
    nan, none = (repr(np.float64("nan")),) * 2, (repr(np.float64(INF)), repr(np.float64(-INF)))

    def exactly(low: float, high: float) -> tuple[str, str]:
        return repr(np.float64(low)), repr(np.float64(high))

    assert told["void"] == {}
    assert told["acme"] == {
        (0, "all"): (5, [(4, *nan), (4, *nan)]),
        (0, "a"): (2, [(1, *exactly(1.5, 1.5)), (1, *exactly(3, 3))]),
        (0, "b"): (1, [(1, *exactly(-2, -2)), (1, *nan)]),
        (0, None): (1, [(1, *nan), (1, *exactly(1, 1))]),
        (0, "other"): (1, [(1, *exactly(9, 9)), (1, *exactly(2, 2))]),
        (1, "all"): (2, []),
    }
    assert none == exactly(INF, -INF)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_arrays_brought_up_to_date_are_those_loaded_anew(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is written, in this process or another, in whatever order."""
    draw = random.Random(seed)
    path = tmp_path_factory.mktemp("m") / "s"

    def rows() -> list[tuple[Any, ...]]:
        values = [None, 1, 2.5, "x", 2**60]
        return [(draw.choice(values), draw.choice(values), draw.choice("abcd"), "") for _ in range(draw.randrange(5))]

    with store(path) as made:
        made.create_many((f"v{number}", {"t": rows()}) for number in range(draw.randrange(12)))
        found = made.summaries("s")
        assert found is not None
        for _ in range(10):
            for _ in range(draw.randrange(4)):
                writer = made if draw.random() < 0.7 else store(path)
                ids = writer.vendor_ids()
                kind = draw.random()
                if kind < 0.5 and ids:
                    with writer.transaction(draw.choice(ids)) as connection:
                        connection.execute(draw.choice(["DELETE FROM t", "UPDATE t SET x = 7", "SELECT 1"]))
                        connection.executemany("INSERT INTO t VALUES(?, ?, ?, ?)", rows())
                elif kind < 0.7 and ids:
                    writer.delete(draw.choice(ids))
                elif f"v{(new := draw.randrange(30))}" not in writer:
                    writer.create(f"v{new}", {"t": rows()})
                if writer is not made:
                    writer.close()
            before = found.seq
            known = set(found.ids)
            assert made.summaries("s") is found
            assert described(found) == loaded(path)
            assert found.ids == made.vendor_ids()
            changed = found.changed_since(before)
            assert changed is None or set(found.ids) ^ known <= set(changed)


def test_nothing_is_read_where_nothing_was_committed(tmp_path: Path) -> None:
    """One number tells; a commit of another process is seen by it."""
    with store(tmp_path / "s") as made:
        made.create("acme", {"t": [(1, 1, "a", "")]})
        found = made.summaries("s")
        assert found is not None
        seen: list[str] = []
        found._connection.trace_v2(1, lambda event: seen.append(event["sql"]))
        made.summaries("s")
        assert seen == ["PRAGMA data_version"]
        with store(tmp_path / "s") as other, other.transaction("acme") as connection:
            connection.execute("UPDATE t SET x = 5")
        made.summaries("s")
        assert found.tables[0][0].high[0][0] == 5.0
        assert found.changed_since(1) == ["acme"]


def test_whoever_writes_an_image_without_a_summary_makes_the_vendor_unknown(tmp_path: Path) -> None:
    """Triggers see to it; the next query makes the summary, unless it cannot be read."""
    path = tmp_path / "s"
    with store(path) as made:
        made.create_many((name, {"t": [(1, 1, "a", "")]}) for name in ("acme", "bolt", "core"))
        file = connect(str(path / file_name("s")))
        image = made.image("bolt")
        file.execute("UPDATE vendors SET image = ?, version = version + 1 WHERE id = 'acme'", (image,))
        file.execute("UPDATE vendors SET image = x'00' WHERE id = 'core'")
        file.execute("INSERT INTO vendors SELECT 'dyne', schema_digest, 1, image FROM vendors WHERE id = 'bolt'")
        assert [name for name, told in loaded(path).items() if told is None] == ["acme", "core", "dyne"]
        for _ in range(2):
            found = made.summaries("s")
        assert found is not None
        assert not found.known[found.ids.index("core")]
        file.close()


def test_a_store_made_without_summaries_gets_them_when_it_is_opened(tmp_path: Path) -> None:
    """An older layout is brought up to date; another declaration makes all summaries anew."""
    path = tmp_path / "s"
    with store(path, Schema(DDL)) as made:
        made.create_many((f"v{number}", {"t": [(number, 1, "a", "")]}) for number in range(5))
        assert made.summaries("s") is None
    file = connect(str(path / file_name("s")))
    for kind, name in file.execute(
        "SELECT type, name FROM sqlite_schema WHERE name LIKE '%summar%' AND type <> 'index'"
    ).fetchall():
        if kind == "trigger":
            file.execute(f"DROP TRIGGER {name}")
    file.execute("DROP TABLE summaries; DROP TABLE labels; PRAGMA user_version = 2")
    file.close()
    with store(path) as made:
        found = made.summaries("s")
        assert found is not None
        assert found.known.all()
        assert found.tables[0][0].low[0].tolist() == [0, 1, 2, 3, 4]
    other = Schema(DDL, summarised=(Summarised("t", ("n",)),))
    with store(path, other) as made:
        found = made.summaries("s")
        assert found is not None
        assert found.known.all()
        assert [records.high.tolist() for records, _ in found.tables] == [[[1.0] * 5]]


def test_text_that_cannot_be_read_leaves_a_vendor_unknown_and_writable(tmp_path: Path) -> None:
    """A summary is never a reason why a commit fails."""
    with store(tmp_path / "s") as made:
        made.create("acme")
        with made.transaction("acme") as connection:
            connection.execute("INSERT INTO t(x, g) VALUES(1, CAST(x'ff' AS TEXT))")
        found = made.summaries("s")
        assert found is not None
        assert not found.known[0]
        with made.transaction("acme") as connection:
            connection.execute("DELETE FROM t")
        found = made.summaries("s")
        assert found is not None
        assert found.known[0]


def test_a_failed_commit_leaves_no_summary_and_no_label(tmp_path: Path) -> None:
    """They are of one transaction with the image."""
    path = tmp_path / "s"
    with store(path) as made:
        made.create("acme", {"t": [(1, 1, "a", "")]})
        before = loaded(path)
        with made.join("acme") as connection:
            connection.execute("UPDATE t SET g = 'new', x = 9")
        assert loaded(path) == before
        made.discard()
        assert loaded(path) == before
        made.create("bolt", {"t": [(1, 1, "late", "")]})
        assert sorted(name for _, name in loaded(path)["bolt"]) == ["all", "late"]


def test_labels_past_the_cap_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shard and of a vendor."""
    monkeypatch.setattr(summaries, "_MOST_LABELS", 2)
    with store(tmp_path / "s") as made:
        made.create("acme", {"t": [(1, 1, "a", ""), (2, 1, "b", ""), (3, 1, "c", ""), (4, 1, "d", "")]})
        found = made.summaries("s")
        assert found is not None
        assert described(found)["acme"][0, "other"][0] == 2
        assert found.labels == {"a": 3, "b": 4}
        file = made._file("s")
        assert Labels(file, made._summariser)("b") == 4
        assert Labels(file, made._summariser)("e") == OTHER


@pytest.mark.parametrize(
    "declared",
    [
        Summarised("t", ("g",)),
        Summarised("t", ("zz",)),
        Summarised("t", (), "x"),
        Summarised("t", (), "c"),
        Summarised("q"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(declared: Summarised, tmp_path: Path) -> None:
    """Bounds are of REAL and INTEGER columns, groups of TEXT that compares by its bytes."""
    with pytest.raises(InvalidArgumentError):
        store(tmp_path / "s", Schema(DDL, summarised=(declared,)))


def test_nouns_declare_summaries() -> None:
    """The market's products have them; a column that a noun has not is refused."""
    assert SCHEMA.summarised == (Summarised("products", ("price", "rating", "stock"), "category"),)
    lamp = noun("Lamp", {"watt": "INTEGER", "kind": "TEXT"}, summarised=["watt"], grouped_by="kind")
    assert object_schema(lamp).summarised == (Summarised("lamps", ("watt",), "kind"),)
    assert object_schema(noun("Note", {}, summarised=[])).summarised == (Summarised("notes"),)
    with pytest.raises(InvalidArgumentError, match="its own columns"):
        noun("Lamp", {"watt": "INTEGER"}, summarised=["volt"])


def in_use(made: PackedStore) -> dict[str, dict[str | None, int]]:
    """Return how many rows of each group each vendor has, as its database says."""
    found = made.scan("s", [("SELECT g, COUNT(*) FROM t GROUP BY g", ())])
    return {vendor_id: dict(rows) for vendor_id, (rows,) in found}  # type: ignore[arg-type]


def labels_of(made: PackedStore) -> dict[str, int]:
    """Return the labels in the shard's file."""
    return {label: code for code, label in made._file("s").execute("SELECT code, label FROM labels")}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.sampled_from([3, 5, 1_000]))
def test_labels_are_those_in_use_and_no_reader_takes_one_for_another(
    seed: int, most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Categories come and go in two processes, codes are given anew: what is told of a vendor is what it has."""
    draw = random.Random(seed)
    path = tmp_path_factory.mktemp("m") / "s"
    with pytest.MonkeyPatch.context() as patch, store(path) as one, store(path) as two:
        patch.setattr(summaries, "_MOST_LABELS", most)
        patch.setattr(summaries, "_SWEEP_CHANGES", 2)
        patch.setattr(summaries, "_SWEEP_ROWS", 2)
        patch.setattr(summaries, "_SWEEP_SHARE", 10**9)

        numbers = count(draw.randrange(5))

        def rows() -> list[tuple[Any, ...]]:
            return [(1, 1, draw.choice([None, *"abcdefghij"]), "") for _ in range(draw.randrange(4))]

        for _ in range(25):
            writer = draw.choice([one, two])
            ids = writer.vendor_ids()
            kind = draw.random()
            if kind < 0.25:
                writer.create_many((f"v{next(numbers)}", {"t": rows()}) for _ in range(draw.randrange(1, 3)))
            elif kind < 0.65 and ids:
                for vendor_id in draw.sample(ids, draw.randrange(1, len(ids) + 1)):
                    with writer.join(vendor_id) as connection:
                        connection.execute("DELETE FROM t")
                        connection.executemany("INSERT INTO t VALUES(?, ?, ?, ?)", rows())
                writer.discard() if draw.random() < 0.2 else writer.flush()
            elif kind < 0.8 and ids:
                writer.delete(draw.choice(ids))
            elif kind < 0.9:
                writer.scrub()
            truth = in_use(one)
            for reader in draw.sample([one, two], draw.randrange(3)):  # another may have seen nothing for long
                found = reader.summaries("s")
                assert found is not None
                for vendor_id, told in described(found).items():
                    told = {group: number for (table, group), (number, _) in told.items() if table == 0}
                    others = told.pop("other", 0)
                    assert told.pop("all", 0) == sum(truth[vendor_id].values())
                    assert told.items() <= truth[vendor_id].items()
                    assert others == sum(truth[vendor_id].values()) - sum(told.values())
                    assert most == 1_000 or others == 0 or len(labels_of(one)) <= most
                    assert most < 1_000 or others == 0
        one.scrub()
        used = {group for groups in in_use(one).values() for group in groups if group is not None}
        kept = labels_of(one)
        assert kept.keys() <= used
        assert kept.keys() == used or most < 1_000
        assert len(kept) <= most
        for vendor_id in one.vendor_ids():  # written anew, all that there is room for are told by name
            with two.transaction(vendor_id) as connection:
                connection.execute("UPDATE t SET x = 2")
        two.scrub()
        assert len(labels_of(one)) == min(most, len(used))


def test_labels_of_ever_new_categories_find_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table stays as small as it may be, and looking for room is rare."""
    monkeypatch.setattr(summaries, "_MOST_LABELS", 20)
    swept: list[int] = []
    sweep = Labels.sweep

    def counted(self: Labels) -> None:
        swept.append(1)
        sweep(self)

    monkeypatch.setattr(Labels, "sweep", counted)
    monkeypatch.setattr(summaries, "_SWEEP_CHANGES", 10)
    with store(tmp_path / "s") as made:
        made.create_many((f"v{number}", {"t": [(1, 1, "start", "")]}) for number in range(10))
        for number in range(500):
            with made.transaction(f"v{number % 10}") as connection:
                connection.execute("UPDATE t SET g = ?", (f"category-{number}",))
        assert len(labels_of(made)) <= 20
        assert 500 / 20 < len(swept) <= 500 / 10
        found = made.summaries("s")
        assert found is not None
        told = described(found)
        assert [(f"category-{490 + number}" in [name for _, name in told[f"v{number}"]]) for number in range(10)] == [
            True
        ] * 10


def test_records_of_another_declaration_are_made_anew_where_their_labels_go(tmp_path: Path) -> None:
    """Their codes cannot be read: they must not come to mean another label."""
    other = Schema(DDL, summarised=(Summarised("t", ("n",), "g"),))
    path = tmp_path / "s"
    with store(path) as made, store(path, other) as foreign:
        made.create("acme", {"t": [(1, 1, "old", "")]})
        foreign.create("bolt", {"t": [(1, 1, "foreign", "")]})
        seen = foreign.summaries("s")
        assert seen is not None
        made.create("core", {"t": [(1, 1, "gone", "")]})
        made.delete("core")
        made.scrub()
        assert labels_of(made).keys() <= {"old"}
        made.create("dyne", {"t": [(1, 1, "new", "")]})
        found = foreign.summaries("s")
        assert found is seen
        assert {name for told in described(found).values() for _, name in told} == {"all", "old", "foreign", "new"}
        assert (0, "foreign") in described(found)["bolt"]


def test_a_program_that_numbers_labels_by_their_count_is_kept_out(tmp_path: Path) -> None:
    """It knows 11 parts of a shard file's layout, and refuses one of more by name."""
    with store(tmp_path / "s") as made:
        assert made._file("s").pragma("user_version") > 11


def test_a_deleted_vendor_leaves_no_label_behind(tmp_path: Path) -> None:
    """What only it called a category is in no file of the store any more, as the proof of its deletion says."""

    async def story() -> None:
        async with Marketplace.open(tmp_path / "market", shards=1) as market:
            for vendor_id in ("a-vendor-to-be-forgotten", "bolt"):
                vendor = market.vendor(vendor_id)
                await vendor.initialize()
                await vendor.create_product(
                    name="Thing", sku="S", price=1, stock=1, category=f"made by {vendor_id} alone"
                )
            sql = "SELECT category, COUNT(*) FROM products GROUP BY category ORDER BY category"
            assert len((await market.query(sql)).rows) == 2
            proof = await market.delete_vendor("a-vendor-to-be-forgotten")
            assert proof.left == ()
            assert proof.needles > 0
            assert (await market.query(sql)).rows == [("made by bolt alone", 1)]

    asyncio.run(story())
