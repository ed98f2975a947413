"""Memory, directory and packed stores against plain SQLite databases, damage, and kill -9."""

from __future__ import annotations

import math
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mktsim.errors import (
    CorruptImageError,
    DuplicateError,
    EvaluationError,
    InvalidArgumentError,
    ParameterError,
    ReadOnlyError,
    SchemaMismatchError,
    SQLSyntaxError,
    StorageError,
    UnknownVendorError,
)
from mktsim.sql.schema import Schema
from mktsim.sqlite import Connection, connect, driver
from mktsim.storage import DirectoryStore, PackedStore, VendorStore, open_store

KINDS = ("memory", "directory", "packed")
SHARDS = ("north", "south/1")
SCHEMA = Schema(
    (
        "CREATE TABLE products(id TEXT PRIMARY KEY, category TEXT, price INTEGER, rating REAL)",
        "CREATE INDEX by_category ON products(category)",
        "CREATE TABLE notes(id INTEGER PRIMARY KEY AUTOINCREMENT, text)",
    )
)
ODD_IDS = ("a", "A", "a ", "Zoë", "x/../y", "q'\"`;--", "nul\0x", "nul\0y", "長い" * 50, "%s", "\U0010ffff", "\uffff")
COUNT = ("SELECT COUNT(*) FROM products", ())


def locate(vendor_id: str) -> str:
    """Place a vendor by the length of its id."""
    return SHARDS[len(vendor_id) % 2]


def opened(kind: str, folder: Path, schema: Schema = SCHEMA) -> VendorStore:
    """Open a store of a kind below `folder`."""
    return open_store(kind, None if kind == "memory" else folder / kind, schema, shards=SHARDS, locate=locate)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VendorStore]:
    """Return an empty store of each kind."""
    with opened(request.param, tmp_path) as made:
        yield made


texts = st.sampled_from(["", "books", "it's", "nul\0", "ü"]) | st.none()
numbers = st.integers(-(2**63), 2**63 - 1) | st.none()
ratings = st.floats(allow_nan=False) | st.none()
product_rows = st.lists(
    st.tuples(st.sampled_from("abcdef"), texts, numbers, ratings), max_size=6, unique_by=lambda row: row[0]
)


class StoresAgainstPlainSQLite(RuleBasedStateMachine):
    """Every store answers, after any history, as a dict of plain SQLite databases would."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.stores: dict[str, VendorStore] = {}
        self.model: dict[str, Connection] = {}
        self.versions: dict[str, int] = {}
        self.images: list[tuple[bytes, list[tuple[object, ...]]]] = []

    @initialize()
    def open(self) -> None:
        self.stores = {kind: opened(kind, Path(self.folder.name)) for kind in KINDS}

    @rule(vendor_id=st.sampled_from(ODD_IDS), rows=product_rows)
    def create(self, vendor_id: str, rows: list[tuple[object, ...]]) -> None:
        if vendor_id in self.model:
            for store in self.stores.values():
                with pytest.raises(DuplicateError):
                    store.create(vendor_id, {"products": rows})
            return
        for store in self.stores.values():
            store.create(vendor_id, {"products": rows, "notes": [(None, "x")]})
        database = SCHEMA.database()
        database.executemany("INSERT INTO products VALUES(?, ?, ?, ?)", rows)
        database.execute("INSERT INTO notes(text) VALUES('x')")
        self.model[vendor_id] = database
        self.versions[vendor_id] = 1

    @rule(vendor_id=st.sampled_from(ODD_IDS), rows=product_rows, how=st.sampled_from(["commit", "raise", "nothing"]))
    def transact(self, vendor_id: str, rows: list[tuple[object, ...]], how: str) -> None:
        def write(connection: Connection) -> None:
            if how != "nothing":
                connection.executemany("REPLACE INTO products VALUES(?, ?, ?, ?)", rows)
                connection.execute("INSERT INTO notes(text) VALUES('y')")
                connection.execute("DELETE FROM products WHERE price < 0")

        for store in self.stores.values():
            if vendor_id not in self.model:
                with pytest.raises(UnknownVendorError):
                    store.transaction(vendor_id).__enter__()
                continue
            before = list(store.scan(locate(vendor_id), [("SELECT * FROM products", ())]))
            try:
                with store.transaction(vendor_id) as connection:
                    write(connection)
                    assert list(store.scan(locate(vendor_id), [("SELECT * FROM products", ())])) == before
                    if how == "raise":
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        if vendor_id in self.model and how == "commit":
            write(self.model[vendor_id])
            self.versions[vendor_id] += 1

    @rule(vendor_id=st.sampled_from(ODD_IDS))
    def delete(self, vendor_id: str) -> None:
        for store in self.stores.values():
            if vendor_id in self.model:
                store.delete(vendor_id)
            else:
                with pytest.raises(UnknownVendorError):
                    store.delete(vendor_id)
        if vendor_id in self.model:
            self.model.pop(vendor_id).close()
            del self.versions[vendor_id]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), kind=st.sampled_from(KINDS))
    def take_image(self, data: st.DataObject, kind: str) -> None:
        vendor_id = data.draw(st.sampled_from(sorted(self.model)))
        self.images.append((self.stores[kind].image(vendor_id), self.model[vendor_id].serialize("main")))  # type: ignore[arg-type]

    @precondition(lambda self: self.images)
    @rule(vendor_id=st.sampled_from(ODD_IDS), data=st.data(), plain=st.booleans())
    def restore(self, vendor_id: str, data: st.DataObject, plain: bool) -> None:
        image, plain_image = self.images[data.draw(st.integers(0, len(self.images) - 1))]
        for store in self.stores.values():
            store.restore(vendor_id, plain_image if plain else image)  # type: ignore[arg-type]
        database = self.model[vendor_id] if vendor_id in self.model else connect()
        database.deserialize("main", plain_image)  # type: ignore[arg-type]
        self.model[vendor_id] = database
        self.versions[vendor_id] = self.versions.get(vendor_id, 0) + 1

    @rule(kind=st.sampled_from(["directory", "packed"]))
    def reopen(self, kind: str) -> None:
        self.stores[kind].close()
        self.stores[kind] = opened(kind, Path(self.folder.name))

    @invariant()
    def check(self) -> None:
        statements = [
            ("SELECT category, COUNT(*), MAX(price), MIN(rating) FROM products GROUP BY category ORDER BY 1", ()),
            ("SELECT * FROM products WHERE price > ? ORDER BY id", (10,)),
            ("SELECT * FROM notes", ()),
        ]
        expected = {
            shard: [
                (vendor_id, tuple(self.model[vendor_id].execute(*statement).fetchall() for statement in statements))
                for vendor_id in sorted(self.model)
                if locate(vendor_id) == shard
            ]
            for shard in SHARDS
        }
        for store in self.stores.values():
            assert store.vendor_ids() == sorted(self.model)
            assert len(store) == len(self.model)
            for shard in SHARDS:
                assert list(store.scan(shard, statements)) == expected[shard]
                assert store.count(shard) == len(expected[shard])
                named = [vendor_id for vendor_id, _ in expected[shard]][::-2]
                assert list(store.scan(shard, statements, vendor_ids=named)) == [
                    answer for answer in expected[shard] if answer[0] in named
                ]
            for vendor_id, version in self.versions.items():
                assert vendor_id in store
                assert store.version(vendor_id) == version

    def teardown(self) -> None:
        for store in self.stores.values():
            store.close()
        for database in self.model.values():
            database.close()
        self.folder.cleanup()


StoresAgainstPlainSQLite.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
test_all_stores_answer_as_a_dict_of_plain_sqlite_databases = StoresAgainstPlainSQLite.TestCase


# -- transactions ---------------------------------------------------------------------------------------------------


def test_a_block_cannot_end_its_own_transaction(store: VendorStore) -> None:
    """A COMMIT inside the block is turned into a rollback; so is a change of schema; nothing is stored."""
    store.create("acme", {"products": [("p", "x", 1, 1.0)]})
    with pytest.raises(driver.ConstraintError):  # noqa: PT012
        with store.transaction("acme") as connection:
            connection.execute("DELETE FROM products")
            connection.execute("COMMIT")
    with pytest.raises(StorageError, match="ended its transaction"):  # noqa: PT012
        with store.transaction("acme") as connection:
            connection.execute("DELETE FROM products")
            connection.execute("ROLLBACK")
    with pytest.raises(SchemaMismatchError, match="changed the schema"):
        with store.transaction("acme") as connection:
            connection.execute("CREATE TABLE more(x)")
    with store.transaction("acme") as connection:  # an authorizer the block leaves behind does not stop the store
        connection.execute("INSERT INTO notes(text) VALUES('n')")
        connection.authorizer = lambda *_: driver.SQLITE_DENY
    assert store.version("acme") == 2
    with store.read("acme") as connection:
        assert connection.execute(
            "SELECT (SELECT COUNT(*) FROM products), (SELECT COUNT(*) FROM notes)"
        ).fetchall() == [(1, 1)]


def test_a_vendor_has_one_transaction_at_a_time_and_others_see_the_state_before_it(store: VendorStore) -> None:
    """A second transaction, a deletion or a restore of the same vendor is refused by name; other vendors go on."""
    store.create_many([("acme", {}), ("beta", {})])
    with store.transaction("acme") as acme:
        acme.execute("INSERT INTO notes(text) VALUES('n')")
        with store.transaction("beta") as beta:
            beta.execute("INSERT INTO notes(text) VALUES('n')")
        for attempt in (
            lambda: store.transaction("acme").__enter__(),
            lambda: store.delete("acme"),
            lambda: store.restore("acme", store.image("beta")),
        ):
            with pytest.raises(StorageError, match="open transaction"):
                attempt()
        with store.read("acme") as reader:
            assert reader.execute("SELECT COUNT(*) FROM notes").get == 0
        assert store.version("acme") == 1
    assert [store.version("acme"), store.version("beta")] == [2, 2]


def test_a_packed_commit_never_overwrites_another_process(tmp_path: Path) -> None:
    """The version a transaction started from is compared when it is stored; the loser is told and undone."""
    with opened("packed", tmp_path) as one, opened("packed", tmp_path) as two:
        one.create("acme")
        for each in (one, two, one):  # a loaded vendor is loaded anew where another process has written it
            with each.transaction("acme") as connection:
                connection.execute("INSERT INTO notes(text) VALUES('n')")
        with pytest.raises(StorageError, match="another process"):  # noqa: PT012
            with one.transaction("acme") as connection:
                connection.execute("INSERT INTO notes(text) VALUES('lost')")
                with two.transaction("acme") as other:
                    other.execute("INSERT INTO notes(text) VALUES('kept')")
        with one.read("acme") as connection:
            assert connection.execute("SELECT text FROM notes ORDER BY id").fetchall() == [("n",)] * 3 + [("kept",)]
        assert one.version("acme") == 5


def test_a_vendor_made_anew_by_another_process_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """Its versions count from one again; what one process has loaded of its namesake must not overwrite it."""
    with opened("packed", tmp_path) as one, opened("packed", tmp_path) as two:
        one.create("acme")
        with two.transaction("acme") as connection:  # two has loaded the first acme, at version 2
            connection.execute("INSERT INTO notes(text) VALUES('old')")
        one.delete("acme")
        one.create("acme")
        with one.transaction("acme") as connection:
            connection.execute("INSERT INTO notes(text) VALUES('new')")
        assert one.version("acme") == two.version("acme") == 2
        with two.transaction("acme") as connection:
            connection.execute("INSERT INTO notes(text) VALUES('newer')")
        with one.read("acme") as connection:
            assert connection.execute("SELECT text FROM notes ORDER BY id").fetchall() == [("new",), ("newer",)]
        with pytest.raises(StorageError, match="another process"):  # noqa: PT012
            with two.transaction("acme") as connection:
                connection.execute("INSERT INTO notes(text) VALUES('lost')")
                one.delete("acme")
                one.create("acme")
                for _ in range(2):
                    with one.transaction("acme") as other:
                        other.execute("INSERT INTO notes(text) VALUES('kept')")
        with one.read("acme") as connection:
            assert connection.execute("SELECT text FROM notes").fetchall() == [("kept",)] * 2


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor_id", ["", "x" * 1_000_000, "\ud800", 7, None, b"acme", math.nan])
def test_an_id_that_cannot_be_one_is_refused_by_name(store: VendorStore, vendor_id: object) -> None:
    """Everywhere, before anything is done."""
    for attempt in (
        lambda: store.create(vendor_id),  # type: ignore[arg-type]
        lambda: store.version(vendor_id),  # type: ignore[arg-type]
        lambda: vendor_id in store,
        lambda: store.transaction(vendor_id).__enter__(),  # type: ignore[arg-type]
        lambda: store.scan("north", [COUNT], vendor_ids=[vendor_id]),  # type: ignore[list-item]
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            attempt()
        assert len(str(caught.value)) < 300
    assert len(store) == 0


def test_an_id_of_ten_thousand_characters_is_as_good_as_any(store: VendorStore) -> None:
    """The limit is stated and can be used to the full."""
    longest = "é" * 10_000
    store.create(longest, {"notes": [(1, "n")]})
    with store.transaction(longest) as connection:
        connection.execute("INSERT INTO notes(text) VALUES('m')")
    assert list(store.scan(locate(longest), [("SELECT COUNT(*) FROM notes", ())])) == [(longest, ([(2,)],))]
    with pytest.raises(DuplicateError) as caught:
        store.create(longest)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "tables",
    [
        {"products": [("p", "x", 1, math.nan)]},
        {"products": [("p", "x", 1)]},
        {"products": [("p", "x", 2**63, 1.0)]},
        {"products": [("p", "x", object(), 1.0)]},
        {"products": [("p", "\ud800", 1, 1.0)]},
        {"products": [("p", "x", 1, 1.0), ("p", "x", 1, 1.0)]},
        {"products; DROP TABLE notes": [("p",)]},
        {"nul\0": [("p",)]},
        {"absent": []},
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_no_vendor(store: VendorStore, tables: dict[str, list]) -> None:  # type: ignore[type-arg]
    """NaN too, which SQLite would turn into NULL."""
    with pytest.raises(InvalidArgumentError, match="'acme'"):
        store.create("acme", tables)
    assert store.vendor_ids() == []
    store.create("acme")


def test_a_statement_that_cannot_be_scanned_is_refused_before_any_vendor(store: VendorStore) -> None:
    """By name, though the store is empty."""
    for sql, values, error in [
        ("SELEC 1", (), SQLSyntaxError),
        ("SELECT * FROM absent", (), SQLSyntaxError),
        ("", (), SQLSyntaxError),
        ("SELECT 1; DELETE FROM products", (), SQLSyntaxError),
        ("DELETE FROM products", (), ReadOnlyError),
        ("ATTACH ':memory:' AS x", (), ReadOnlyError),
        ("PRAGMA journal_mode = DELETE", (), ReadOnlyError),
        ("SELECT ?", (), ParameterError),
        ("SELECT ?", (1, 2), ParameterError),
        ("SELECT ?", (object(),), ParameterError),
    ]:
        with pytest.raises(error):
            store.scan("north", [COUNT, (sql, values)])
    with pytest.raises(InvalidArgumentError, match="no shard"):
        store.scan("west", [COUNT])
    store.create("acme")
    with pytest.raises(UnknownVendorError):
        list(store.scan(locate("acme"), [COUNT], vendor_ids=["acme", "ghost!"]))
    with pytest.raises(EvaluationError, match=r"'acme'.*overflow"):
        list(store.scan(locate("acme"), [("SELECT abs(-9223372036854775807 - 1)", ())]))
    assert len(list(store.scan(locate("acme"), [COUNT]))) == 1


@pytest.mark.parametrize(
    ("kind", "path", "shards"),
    [
        ("drawer", "x", SHARDS),
        ("memory", "x", SHARDS),
        ("packed", None, SHARDS),
        ("packed", "x\0y", SHARDS),
        ("memory", None, ()),
        ("memory", None, ("a", "a")),
        ("memory", None, ("a\n",)),
    ],
)
def test_a_store_that_cannot_be_meant_is_refused(kind: str, path: str | None, shards: tuple[str, ...]) -> None:
    """Before any file is made."""
    with pytest.raises(InvalidArgumentError):
        open_store(kind, path, SCHEMA, shards=shards, locate=locate)


# -- images, damage, schemas ----------------------------------------------------------------------------------------


def damaged(image: bytes) -> Iterator[bytes]:
    """Yield images that no store may accept."""
    yield b""
    yield b"SQLite format 3\0"
    yield image[: len(image) // 2]
    yield bytes(len(image))
    noise = random.Random(1).randbytes(len(image) - 512)
    yield image[:512] + noise


def test_a_damaged_foreign_or_utf16_image_is_refused_and_nothing_is_lost(store: VendorStore) -> None:
    """Restore checks integrity, schema and encoding before it touches the vendor."""
    store.create("acme", {"products": [("p", "x", 1, 1.0)]})
    good = store.image("acme")
    for image in damaged(good):
        with pytest.raises(CorruptImageError) as caught:
            store.restore("acme", image)
        assert caught.value.vendor_id == "acme"
    for ddl in ("CREATE TABLE other(x)", "PRAGMA encoding = 'UTF-16'; " + SCHEMA.statements[0]):
        with closing(connect()) as foreign:
            foreign.execute(ddl).fetchall()
            if "UTF" in ddl:
                for statement in SCHEMA.statements[1:]:
                    foreign.execute(statement)
            with pytest.raises(SchemaMismatchError, match="UTF-16" if "UTF" in ddl else "another schema"):
                store.restore("acme", foreign.serialize("main"))
    with pytest.raises(InvalidArgumentError):
        store.restore("acme", "text")  # type: ignore[arg-type]
    assert store.image("acme") == good
    assert store.version("acme") == 1


def test_an_image_moves_between_all_kinds_of_store(tmp_path: Path) -> None:
    """Images are plain SQLite files of one form, whichever store they come from."""
    with (
        opened("memory", tmp_path) as memory,
        opened("directory", tmp_path) as folder,
        opened("packed", tmp_path) as packed,
    ):
        memory.create("acme", {"products": [("p", "x", 1, 1.0)]})
        for source, target in ((memory, folder), (folder, packed), (packed, memory)):
            with source.transaction("acme") as connection:
                connection.execute("INSERT INTO notes(text) VALUES(?)", (type(source).__name__,))
            target.restore("acme", source.image("acme"))
            assert target.image("acme") == source.image("acme")
        with memory.read("acme") as connection:
            assert connection.execute("SELECT text FROM notes ORDER BY id").fetchall() == [
                ("MemoryStore",),
                ("DirectoryStore",),
                ("PackedStore",),
            ]


@pytest.mark.parametrize("harm", [*range(5), "wal mark"])
def test_a_scan_names_the_damaged_vendor_and_the_others_stay_readable(tmp_path: Path, harm: int | str) -> None:
    """One damaged image in a shard of five costs one vendor, in scan, read and transaction alike."""
    with opened("packed", tmp_path) as store:
        assert isinstance(store, PackedStore)
        names = [f"v{i}" for i in range(5)]
        rows = {"products": [(str(i), "x" * 200, i, 1.0) for i in range(40)]}
        store.create_many((name, rows) for name in names)
        good = store.image("v2")
        bad = good[:18] + b"\2\2" + good[20:] if isinstance(harm, str) else list(damaged(good))[harm]
        shard = locate("v2")
        with closing(connect(str(store.shard_path(shard)))) as file:
            file.execute("UPDATE vendors SET image = ? WHERE id = 'v2'", (bad,))
        statement = ("SELECT MAX(category), SUM(price) FROM products", ())
        seen = []
        with pytest.raises(CorruptImageError, match="v2") as caught:  # noqa: PT012
            for vendor_id, answer in store.scan(shard, [statement]):
                seen.append(vendor_id)
                assert answer == ([("x" * 200, 780)],)
        assert caught.value.vendor_id == "v2"
        assert pickle.loads(pickle.dumps(caught.value)).vendor_id == "v2"
        seen += [v for v, _ in store.scan(shard, [statement], vendor_ids=names[names.index("v2") + 1 :])]
        assert seen == ["v0", "v1", "v3", "v4"]
        with pytest.raises(CorruptImageError):
            store.image("v2")
        with pytest.raises(CorruptImageError), store.transaction("v2") as connection:
            connection.execute("UPDATE products SET price = price + 1, category = category || '!'")
        store.restore("v2", good)
        assert len(list(store.scan(shard, [statement]))) == 5


def test_a_damaged_file_of_a_directory_store_costs_one_vendor(tmp_path: Path) -> None:
    """Its scan, reading and transaction name the vendor; the others go on; a restored file is as good as new."""
    with opened("directory", tmp_path) as store:
        assert isinstance(store, DirectoryStore)
        store.create_many((f"v{i}", {}) for i in range(3))
        good = store.image("v1")
        store.close()
        store.vendor_path("v1").write_bytes(b"noise" * 1000)
    with opened("directory", tmp_path) as store:
        for attempt in (
            lambda: list(store.scan(locate("v1"), [COUNT])),
            lambda: store.transaction("v1").__enter__(),
            lambda: store.image("v1"),
        ):
            with pytest.raises(CorruptImageError, match="v1") as caught:
                attempt()
            assert caught.value.vendor_id == "v1"
        assert [v for v, _ in store.scan(locate("v1"), [COUNT], vendor_ids=["v0", "v2"])] == ["v0", "v2"]
        store.delete("v1")
        store.restore("v1", good)
        assert [v for v, _ in store.scan(locate("v1"), [COUNT])] == ["v0", "v1", "v2"]


@pytest.mark.parametrize("kind", ["directory", "packed"])
def test_a_store_remembers_what_it_is(kind: str, tmp_path: Path) -> None:
    """Another schema, kind or shards, a folder of something else, a spoilt manifest: each a named error."""
    opened(kind, tmp_path).close()
    folder = tmp_path / kind
    with pytest.raises(SchemaMismatchError, match="another schema"):
        opened(kind, tmp_path, Schema(("CREATE TABLE other(x)",)))
    other = "packed" if kind == "directory" else "directory"
    with pytest.raises(StorageError, match="kind"):
        open_store(other, folder, SCHEMA, shards=SHARDS, locate=locate)
    with pytest.raises(StorageError, match="shards"):
        open_store(kind, folder, SCHEMA, shards=["west"], locate=locate)
    (folder / "store.json").write_text("{")
    with pytest.raises(StorageError, match="understood"):
        opened(kind, tmp_path)
    (folder / "store.json").unlink()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="choose an empty folder"):
        opened(kind, tmp_path)
    with pytest.raises(StorageError):
        open_store(kind, folder / "thesis.txt", SCHEMA, shards=SHARDS, locate=locate)


def test_a_closed_store_holds_no_file_and_says_so(store: VendorStore) -> None:
    """Closing twice is fine; the rest is a named error, and no file descriptor is left."""
    store.create_many((f"v{i}", {}) for i in range(30))
    with store.transaction("v1") as connection:
        connection.execute("INSERT INTO notes(text) VALUES('n')")
    suspended = store.scan("north", [COUNT])
    next(suspended)
    list(store.scan("north", [COUNT]))
    store.close()
    store.close()
    for attempt in (
        store.vendor_ids,
        lambda: store.create("x"),
        lambda: store.scan("north", [COUNT]),
        lambda: len(store),
    ):
        with pytest.raises(StorageError, match="closed"):
            attempt()
    if hasattr(store, "path"):
        held = [link for link in _descriptors() if str(store.path) in link]
        assert held == []
        assert not [file for file in store.path.rglob("*") if file.name.endswith(("-wal", "-shm", "-journal"))]


def _descriptors() -> list[str]:
    links = []
    for entry in os.scandir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            links.append(os.readlink(entry.path))
        except OSError:
            continue
    return links


# -- processes that die, disks that are full, folders that cannot be written ----------------------------------------

_HEAD = """
import os, resource, sys
import mktsim.storage, mktsim.storage.scanner, encodings.idna
from mktsim.errors import StorageError
from mktsim.sql.schema import Schema
from mktsim.storage import open_store
schema = Schema(("CREATE TABLE rows(n INTEGER PRIMARY KEY, filler)", "CREATE TABLE total(n)"))
def opened():
    return open_store(sys.argv[1], sys.argv[2], schema, shards=["s"], locate=lambda vendor_id: "s")
"""
_WRITE = """
with opened() as store:
    done = sum(store.scan("s", [("SELECT COUNT(*) FROM rows", ())], vendor_ids=[v])  .__next__()[1][0][0][0]
               for v in store.vendor_ids())
    while True:
        with store.transaction(f"v{done % 3}") as connection:
            connection.execute("INSERT INTO rows VALUES(?, zeroblob(300))", (done,))
            connection.execute("UPDATE total SET n = n + 1")
        done += 1
        print(done, flush=True)
"""
_KILLED = Schema(("CREATE TABLE rows(n INTEGER PRIMARY KEY, filler)", "CREATE TABLE total(n)"))


def _open_killed(kind: str, folder: Path) -> VendorStore:
    return open_store(kind, folder, _KILLED, shards=["s"], locate=lambda _: "s")


@pytest.mark.parametrize(("kind", "kills"), [("packed", 10), ("directory", 4)])
def test_kill_9_leaves_every_committed_transaction_and_nothing_else(kind: str, kills: int, tmp_path: Path) -> None:
    """A writing process is killed at random moments: what it acknowledged is there, at most one commit more, whole."""
    folder = tmp_path / kind
    with _open_killed(kind, folder) as store:
        store.create_many((f"v{i}", {"total": [(0,)]}) for i in range(3))
    moments = random.Random(20261122)
    acknowledged = 0
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", _HEAD + _WRITE, kind, str(folder)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child:
            first = child.stdout.readline()
            time.sleep(moments.random() * 0.05)
            os.kill(child.pid, signal.SIGKILL)
            lines = (first + child.stdout.read()).split(b"\n")[:-1]
        assert child.returncode == -signal.SIGKILL
        acknowledged = int(lines[-1])
        with _open_killed(kind, folder) as store:
            numbers = []
            for vendor_id in store.vendor_ids():
                with store.read(vendor_id) as connection:
                    assert connection.execute("PRAGMA integrity_check").get == "ok"
                    rows = [row[0] for row in connection.execute("SELECT n FROM rows")]
                    assert connection.execute("SELECT n FROM total").get == len(rows)
                assert store.version(vendor_id) == 1 + len(rows)
                numbers += rows
        assert sorted(numbers) == list(range(len(numbers)))
        assert acknowledged <= len(numbers) <= acknowledged + 1
    assert acknowledged > kills


_FULL = """
store = opened()
store.create("acme", {"total": [(0,)]})
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
for n in range(1000):
    try:
        with store.transaction("acme") as connection:
            connection.execute("INSERT INTO rows VALUES(?, zeroblob(20000))", (n,))
            connection.execute("UPDATE total SET n = n + 1")
    except StorageError as error:
        print(n, type(error).__name__, error)
        break
with store.read("acme") as connection:
    print(connection.execute("SELECT (SELECT COUNT(*) FROM rows), n FROM total").fetchall() == [(n, n)])
with store.transaction("acme") as connection:
    connection.execute("SELECT 1")
"""
_READ_ONLY = """
import locale
opened().close()
folder = sys.argv[2]
os.chmod(folder, 0o555)
for name in os.listdir(folder):
    os.chmod(os.path.join(folder, name), 0o444)
if os.geteuid() == 0:
    os.setuid(65534)
for attempt in (lambda: opened().create("acme"), lambda: (sys.argv.__setitem__(2, folder + "/inner"), opened())):
    try:
        attempt()
    except StorageError as error:
        print(type(error).__name__, error)
"""


def _child(script: str, kind: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + script, kind, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["directory", "packed"])
def test_a_full_disk_is_a_named_error_and_loses_nothing(kind: str, tmp_path: Path) -> None:
    """The transaction that does not fit is undone; what was committed before is there, now and after reopening."""
    first, second = _child(_FULL, kind, tmp_path / kind).splitlines()
    count, error, *_ = first.split()
    assert (error, second) == ("StorageError", "True")
    assert 0 < int(count) < 100
    with _open_killed(kind, tmp_path / kind) as store, store.read("acme") as connection:
        assert connection.execute("SELECT n FROM total").get == int(count)


@pytest.mark.parametrize("kind", ["directory", "packed"])
def test_a_folder_that_cannot_be_written_is_a_named_error(kind: str) -> None:
    """For a store that is there and for one that would have to be made; root becomes nobody for the test."""
    with tempfile.TemporaryDirectory() as outer:
        os.chmod(outer, 0o755)
        lines = _child(_READ_ONLY, kind, Path(outer) / kind).splitlines()
        os.chmod(Path(outer) / kind, 0o755)
    assert [line.split()[0] for line in lines] == ["StorageError", "StorageError"], lines
    assert kind in lines[0]


def test_every_reading_connection_is_set_up_once(tmp_path: Path) -> None:
    """SQL functions that `setup` registers are known to scans and to lent readers."""

    def register(connection: Connection) -> None:
        connection.create_scalar_function("shout", lambda text: text.upper(), 1)

    for kind in KINDS:
        path = None if kind == "memory" else tmp_path / kind
        with open_store(kind, path, SCHEMA, shards=SHARDS, locate=locate, setup=register) as store:
            store.create("acme")
            assert list(store.scan(locate("acme"), [("SELECT shout('x')", ())])) == [("acme", ([("X",)],))]
            with store.read("acme") as connection:
                assert connection.execute("SELECT shout('y')").get == "Y"
            with pytest.raises(EvaluationError, match="acme"):
                list(store.scan(locate("acme"), [("SELECT shout(1)", ())]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_vendor_is_found_by_full_text_search(kind: str, tmp_path: Path) -> None:
    """The index is in the image too, not only the rows; and no vendor's words are in the next one's index."""
    schema = Schema(("CREATE VIRTUAL TABLE words USING fts5(title, body)",))
    with opened(kind, tmp_path, schema) as store:
        store.create("aa", {"words": [("one", "lamp"), ("two", "chair")]})
        store.create("bb", {"words": [("three", "lamp")]})
        store.create("cc", {})
        found = list(store.scan(SHARDS[0], [("SELECT title FROM words WHERE words MATCH 'lamp'", ())]))
        assert found == [("aa", ([("one",)],)), ("bb", ([("three",)],)), ("cc", ([],))]
