"""The steps of a move between two shard files: what scans see at every one of them, and after a crash there."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import StorageError, UnknownVendorError
from mktsim.sql.schema import Schema
from mktsim.sqlite import Connection, connect
from mktsim.storage import PackedStore, packed
from mktsim.storage.folder import open_file
from mktsim.storage.moves import Epochs, Moves

SCHEMA = Schema(("CREATE TABLE t(x INTEGER, pad TEXT)",))
SUM = ("SELECT SUM(x) FROM t", ())
VENDORS = [f"v{number:02}" for number in range(12)]
OLD, NEW = ("a", "b"), ("a", "b", "c")


def before(vendor_id: str) -> str:
    return OLD[int(vendor_id[1:]) % 2]


def after(vendor_id: str) -> str:
    return NEW[int(vendor_id[1:]) % 3]


def opened(folder: Path, *, old: bool = False) -> PackedStore:
    """Open the store as it is before its vendors move, or after that was decided."""
    return PackedStore(folder, SCHEMA, shards=OLD if old else NEW, locate=before if old else after)


def filled(folder: Path) -> PackedStore:
    """Return a store of twelve vendors, number i with the sum i."""
    store = opened(folder, old=True)
    store.create_many((vendor_id, {"t": [(number, "x" * 300)]}) for number, vendor_id in enumerate(VENDORS))
    return store


def add(store: PackedStore, vendor_id: str, amount: int = 100) -> None:
    with store.transaction(vendor_id) as connection:
        connection.execute("INSERT INTO t VALUES(?, NULL)", (amount,))


def seen(store: PackedStore, as_of: int | None = None) -> dict[str, Any]:
    """Return each vendor's sum; a vendor that is seen twice fails."""
    answers = [answer for shard in store.shards for answer in store.scan(shard, [SUM], as_of=as_of)]
    assert len(answers) == len({vendor_id for vendor_id, _ in answers}), "a vendor was seen twice"
    return {vendor_id: parts[0][0][0] for vendor_id, parts in answers}


def check(store: PackedStore, expected: dict[str, int]) -> None:
    """Every way of looking at the store tells of the same vendors."""
    assert seen(store) == expected
    assert store.vendor_ids() == sorted(expected)
    assert len(store) == len(expected)
    for vendor_id, amount in expected.items():
        assert vendor_id in store
        assert store.version(vendor_id) >= 1
        with store.read(vendor_id) as connection:
            assert connection.execute("SELECT SUM(x) FROM t").get == amount
        store.image(vendor_id)
        found = list(store.scan(store.shard_of(vendor_id), [SUM], vendor_ids=[vendor_id]))
        assert found == [(vendor_id, ([(amount,)],))]


def rows_of(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = connect(str(path))
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close(True)


def begin(store: PackedStore) -> None:
    store.begin_moving(NEW, {"why": "a test"})
    store.relocate(after)


def move_all(store: PackedStore) -> None:
    for vendor_id in sorted(store.moves.strays):
        store.stage(vendor_id)
        store.switch(vendor_id)
    store.end_moving(NEW)


EXPECTED = {vendor_id: number for number, vendor_id in enumerate(VENDORS)}


def test_vendors_move_one_by_one_and_are_always_seen_once(tmp_path: Path) -> None:
    """After each step every look at the store tells of every vendor, and at the end the folder is a plain one."""
    with filled(tmp_path) as store:
        begin(store)
        assert store.moves.strays == {v: before(v) for v in VENDORS if before(v) != after(v)}
        expected = dict(EXPECTED)
        for vendor_id in sorted(store.moves.strays):
            assert 0 < store.stage(vendor_id) <= len(store.image(vendor_id))
            check(store, expected)
            if vendor_id > "v06":
                add(store, vendor_id)
                expected[vendor_id] += 100
                check(store, expected)
            assert store.shard_of(vendor_id) == before(vendor_id)
            assert store.switch(vendor_id) == (vendor_id > "v06")
            assert store.shard_of(vendor_id) == after(vendor_id)
            check(store, expected)
            add(store, vendor_id, 1)
            expected[vendor_id] += 1
            check(store, expected)
        store.end_moving(NEW)
        check(store, expected)
    assert [rows_of(tmp_path / f"{shard}.sqlite", "SELECT * FROM moves") for shard in NEW] == [[], [], []]
    assert [rows_of(tmp_path / f"{shard}.sqlite", "SELECT COUNT(*) FROM vendors") for shard in NEW] == [[(4,)]] * 3
    with opened(tmp_path) as store:
        assert store.moving is None
        check(store, expected)


def test_the_worked_example_of_the_module(tmp_path: Path) -> None:
    """A query from before a move finds the vendor at its source, one from after it at its destination."""
    with filled(tmp_path) as store:
        begin(store)
        with store.epochs.pinned() as first:
            store.stage("v02")
            assert "v02" not in dict(store.scan("c", [SUM], as_of=first))
            store.switch("v02")
            add(store, "v02")
            assert dict(store.scan("a", [SUM], as_of=first))["v02"] == ([(2,)],)
            assert seen(store, first) == EXPECTED
            with store.epochs.pinned() as second:
                assert seen(store, second) == {**EXPECTED, "v02": 102}
            assert store.moves.clean() == 1
            assert store.vendor_ids_as_of("a", first) == [v for v in VENDORS if before(v) == "a"]
            assert "v02" not in store.vendor_ids_as_of("a", second)
        assert store.moves.clean() == 0
        assert rows_of(tmp_path / "a.sqlite", "SELECT COUNT(*) FROM vendors WHERE id = 'v02'") == [(0,)]
        assert rows_of(tmp_path / "c.sqlite", "SELECT COUNT(*) FROM moves") == [(0,)]


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_queries_that_overlap_moves_in_any_way_see_each_vendor_once(seed: int, tmp_path_factory: Any) -> None:
    """Queries read the files at any time, in any order, some vendor by vendor, while vendors move and are written."""
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("moves")
    with filled(folder) as store:
        begin(store)
        sums = dict(EXPECTED)
        queries: list[dict[str, Any]] = []

        def start() -> None:
            pin = store.epochs.pinned()
            epoch = pin.__enter__()
            scans = [(shard, store.scan(shard, [SUM], as_of=epoch)) for shard in store.shards]
            if rng.random() < 0.3:  # as a statement that names its vendors: they are located when the query begins
                by_shard: dict[str, list[str]] = {}
                for vendor_id in VENDORS:
                    by_shard.setdefault(store.shard_of(vendor_id), []).append(vendor_id)
                scans = [(s, store.scan(s, [SUM], vendor_ids=ids, as_of=epoch)) for s, ids in by_shard.items()]
            rng.shuffle(scans)
            queries.append({"pin": pin, "scans": scans, "found": Counter(), "least": dict(sums)})

        def go_on() -> None:
            query = rng.choice(queries)
            answer = next(query["scans"][0][1], None)
            if answer is None:
                query["scans"].pop(0)
            else:
                vendor_id, ((amount,),) = answer[0], answer[1][0]
                query["found"][vendor_id] += 1
                assert query["least"][vendor_id] <= amount <= sums[vendor_id]
            if not query["scans"]:
                assert query["found"] == Counter(VENDORS)
                query["pin"].__exit__(None, None, None)
                queries.remove(query)

        staged: set[str] = set()
        while store.moves.strays or queries:
            act = rng.random()
            if act < 0.1 and len(queries) < 4 and store.moves.strays:
                start()
            elif act < 0.6 and queries:
                go_on()
            elif act < 0.7:
                vendor_id = rng.choice(VENDORS)
                add(store, vendor_id, 1)
                sums[vendor_id] += 1
            elif act < 0.75:
                store.moves.clean()
            elif store.moves.strays:
                vendor_id = rng.choice(sorted(store.moves.strays))
                if vendor_id in staged:
                    store.switch(vendor_id)
                else:
                    store.stage(vendor_id)
                    staged.add(vendor_id)
        store.end_moving(NEW)
        check(store, sums)


class Crash(BaseException):
    """The process ends here."""


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, at: int, when: str) -> Iterator[list[int]]:
    """End the process before the `at`-th transaction of a move (from 1), in its middle, or after its commit."""
    count = [0]
    plain = Moves._transaction

    @contextmanager
    def dying(self: Moves, shard: str, vendor_id: str) -> Iterator[Connection]:
        count[0] += 1
        if count[0] == at and when == "before":
            raise Crash
        with plain(self, shard, vendor_id) as file:
            yield file
            if count[0] == at and when == "within":
                raise Crash
        if count[0] == at:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Moves, "_transaction", dying)
        patch.setattr(Moves, "_undo", lambda *_: None)  # who is dead undoes nothing
        patch.setattr(Moves, "_there", _there_unless_dead(count, at))
        yield count


def _there_unless_dead(count: list[int], at: int) -> Any:
    plain = Moves._there

    def there(self: Moves, *arguments: Any) -> Any:
        return None if count[0] >= at else plain(self, *arguments)

    return there


def leave(store: PackedStore, folder: Path, copy: Path) -> None:
    """Take what is on disk as a crash leaves it, and close the store."""
    shutil.copytree(folder, copy)
    store.close()


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_crash_at_every_step_resumes_with_every_vendor_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Copy, catch up, switch, arrive and both cleanings, of a vendor that is written to in the midst of its move."""
    for at in range(1, 100):
        folder, copy = tmp_path / f"{at}", tmp_path / f"{at}-copy"
        store = filled(folder)
        begin(store)
        expected = dict(EXPECTED)
        finished = False
        with crashing(monkeypatch, at, when):
            try:
                for vendor_id in ("v02", "v03"):
                    store.stage(vendor_id)
                    add(store, vendor_id)
                    expected[vendor_id] += 100
                    store.switch(vendor_id)
                store.moves.clean()
                finished = True
            except Crash:
                pass
        leave(store, folder, copy)
        with opened(copy) as again:
            assert again.moving == {"why": "a test"}
            check(again, expected)
            assert all(not rows_of(copy / f"{s}.sqlite", "SELECT * FROM moves") for s in NEW)
            assert all(not rows_of(copy / f"{s}.sqlite", "SELECT id FROM vendors WHERE version < 0") for s in NEW)
            move_all(again)
            check(again, expected)
        if finished:
            assert at > 10
            return
    pytest.fail("the move never ended")


def test_a_crash_within_the_recovery_from_a_crash_resumes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery does the same again."""
    store = filled(tmp_path / "m")
    begin(store)
    store.stage("v02")
    store.stage("v03")
    with crashing(monkeypatch, 1, "after"), pytest.raises(Crash):
        store.switch("v02")  # at its source; it does not arrive
    leave(store, tmp_path / "m", tmp_path / "crashed")
    for at in range(1, 20):
        copy = tmp_path / f"copy-{at}"
        shutil.copytree(tmp_path / "crashed", copy)
        with crashing(monkeypatch, at, "after"):
            try:
                opened(copy).close()
                assert at > 3
                return
            except Crash:
                pass
        with opened(copy) as again:
            check(again, EXPECTED)
    pytest.fail("recovery never ended")


def test_a_destination_that_cannot_be_written_leaves_the_vendor_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch is taken back; where even that fails, the store says so instead of answering without the vendor."""
    with filled(tmp_path) as store:
        begin(store)
        store.stage("v02")
        plain = Moves._transaction

        def failing(*numbers: int) -> Any:
            """Have the transactions of these numbers, from 1, fail."""
            calls: list[str] = []

            @contextmanager
            def transaction(self: Moves, shard: str, vendor_id: str) -> Iterator[Connection]:
                calls.append(shard)
                if len(calls) in numbers:
                    raise StorageError(f"shard {shard} is full")
                with plain(self, shard, vendor_id) as file:
                    yield file

            return transaction

        with monkeypatch.context() as patch:
            patch.setattr(Moves, "_transaction", failing(2))
            with pytest.raises(StorageError, match="c is full"):
                store.switch("v02")
        check(store, EXPECTED)
        add(store, "v02")
        assert store.switch("v02") is True
        check(store, {**EXPECTED, "v02": 102})
        store.stage("v03")
        with monkeypatch.context() as patch:
            patch.setattr(Moves, "_transaction", failing(2, 3))
            with pytest.raises(StorageError, match="b is full"):
                store.switch("v03")
        with pytest.raises(StorageError, match="half moved"):
            seen(store)
    with opened(tmp_path) as again:
        check(again, {**EXPECTED, "v02": 102})
        move_all(again)


def test_a_vendor_deleted_while_it_moves_leaves_no_copy_behind(tmp_path: Path) -> None:
    """Neither a staged one at its destination, nor the one that old queries read at its source."""
    with filled(tmp_path) as store:
        begin(store)
        store.stage("v02")
        store.delete("v02")
        with pytest.raises(UnknownVendorError):
            store.version("v02")
        store.stage("v03")
        with store.epochs.pinned() as epoch:
            store.switch("v03")
            assert "v03" in seen(store, epoch)
            store.delete("v03")
        store.create("v03", {"t": [(7, None)]})
        store.create("v02", {"t": [(8, None)]})
        expected = {**EXPECTED, "v03": 7, "v02": 8}
        check(store, expected)
        move_all(store)
        check(store, expected)


def test_a_vendor_whose_transaction_is_open_is_not_switched_under_it(tmp_path: Path) -> None:
    """It is refused by name, and moves afterwards with what was written."""
    with filled(tmp_path) as store:
        begin(store)
        store.stage("v02")
        with store.transaction("v02") as connection:
            connection.execute("INSERT INTO t VALUES(1, NULL)")
            assert "v02" in store.busy
            with pytest.raises(StorageError, match="open transaction"):
                store.switch("v02")
        assert store.switch("v02") is True
        check(store, {**EXPECTED, "v02": 3})


def test_what_only_joined_a_group_is_on_disk_before_it_is_copied(tmp_path: Path) -> None:
    """A copy of a change that was lost would bear the version of another change."""
    with filled(tmp_path) as store:
        begin(store)
        with store.join("v02") as connection:
            connection.execute("INSERT INTO t VALUES(5, NULL)")
        store.stage("v02")
        store.discard()
        assert store.switch("v02") is False
        check(store, {**EXPECTED, "v02": 7})


def test_another_process_that_still_writes_to_the_source_fails_by_name(tmp_path: Path) -> None:
    """Its commit compares the version, and the source's row has none any more; nothing is overwritten."""
    with filled(tmp_path) as store, opened(tmp_path, old=True) as other:
        begin(store)

        def late() -> None:
            with other.transaction("v02") as connection:
                connection.execute("INSERT INTO t VALUES(1, NULL)")
                store.stage("v02")
                store.switch("v02")

        with pytest.raises(StorageError, match="another process"):
            late()
        with pytest.raises(UnknownVendorError):
            add(other, "v02")
        check(store, EXPECTED)


def test_a_commit_of_another_process_between_copy_and_switch_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch compares the version in the transaction that counts, and refuses; the next attempt catches up."""
    with filled(tmp_path) as store, opened(tmp_path, old=True) as other:
        begin(store)
        store.stage("v02")
        plain = Moves._transaction

        def interfering(self: Moves, shard: str, vendor_id: str) -> Any:
            monkeypatch.undo()
            add(other, "v02")
            return plain(self, shard, vendor_id)

        monkeypatch.setattr(Moves, "_transaction", interfering)
        with pytest.raises(StorageError, match="retry"):
            store.switch("v02")
        check(store, {**EXPECTED, "v02": 102})
        assert store.switch("v02") is True
        check(store, {**EXPECTED, "v02": 102})


def test_a_store_from_before_moves_existed_opens_and_moves(tmp_path: Path) -> None:
    """A shard file without the table gets it; one of a later layout is refused by name."""
    filled(tmp_path).close()
    for shard in OLD:
        rows_of(tmp_path / f"{shard}.sqlite", "DROP TABLE moves")
        rows_of(tmp_path / f"{shard}.sqlite", "PRAGMA user_version = 0")
    with opened(tmp_path, old=True) as store:
        check(store, EXPECTED)
        begin(store)
        move_all(store)
        check(store, EXPECTED)
    rows_of(tmp_path / "a.sqlite", "PRAGMA user_version = 1000")
    with pytest.raises(StorageError, match="layout 1000"), opened(tmp_path) as store:
        len(store)


def test_a_store_on_the_move_is_not_taken_for_one_at_rest(tmp_path: Path) -> None:
    """A program that does not know of moves refuses its format; other shards are refused when nothing moves."""
    with filled(tmp_path) as store:
        begin(store)
        text = (tmp_path / "store.json").read_text()
        assert '"format": 2' in text
        move_all(store)
    assert '"format": 1' in (tmp_path / "store.json").read_text()
    with pytest.raises(StorageError, match="made with shards"):
        opened(tmp_path, old=True)


def test_a_vendor_in_two_shards_is_refused_by_name(tmp_path: Path) -> None:
    """Whoever copies rows by hand is told."""
    with filled(tmp_path) as store:
        begin(store)
        store.shard_path("c")
        with closing(connect(str(tmp_path / "c.sqlite"))) as file:
            file.execute("ATTACH ? AS a", (str(tmp_path / "a.sqlite"),))
            file.execute("INSERT INTO vendors SELECT * FROM a.vendors WHERE id = 'v02'")
        with pytest.raises(StorageError, match="'v02' is in shard"):
            store.stage("v02")
    with pytest.raises(StorageError, match="'v02' is in shard"):
        opened(tmp_path)


def test_shards_are_dropped_only_when_they_are_empty(tmp_path: Path) -> None:
    """And then with their files."""
    with filled(tmp_path) as store:
        store.begin_moving(OLD, {})
        store.relocate(lambda _: "a")
        with pytest.raises(StorageError, match="still to move"):
            store.end_moving(["a"])
        for vendor_id in sorted(store.moves.strays):
            store.stage(vendor_id)
            store.switch(vendor_id)
        store.end_moving(["a"])
        check(store, EXPECTED)
        assert store.shards == ("a",)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".base") == ["a.sqlite", "store.json"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_move_that_cannot_make_its_files_leaves_the_shards_that_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever of the new files it is; and the next try begins anew."""
    with filled(tmp_path) as store:
        names = sorted(path.name for path in tmp_path.iterdir())
        opens = iter(range(1, 9))

        def full(path: Path) -> Connection:
            if next(opens) == failing:
                raise StorageError("the disk is full")
            return open_file(path)

        monkeypatch.setattr(packed, "open_file", full)
        with pytest.raises(StorageError, match="disk is full"):
            store.begin_moving(["a", "b", "c", "d"], {})
        monkeypatch.undo()
        assert store.moving is None
        assert store.shards == OLD
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        check(store, EXPECTED)
        begin(store)
        move_all(store)
        check(store, EXPECTED)


def test_whoever_waits_for_old_queries_is_called_when_the_last_has_ended() -> None:
    """And at once where none runs."""
    epochs = Epochs()
    told: list[str] = []
    with epochs.pinned():
        epochs.now = 1
        epochs.when_past(1, lambda: told.append("one"))
        with epochs.pinned():
            epochs.when_past(0, lambda: told.append("zero"))
        assert told == ["zero"]
    assert told == ["zero", "one"]
    epochs.when_past(1, lambda: told.append("now"))
    assert told[-1] == "now"
