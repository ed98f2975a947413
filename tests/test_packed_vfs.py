"""Serving images to one connection: the traps, and what worker processes see."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mktsim.errors import StorageError
from mktsim.sql.schema import Schema
from mktsim.sqlite import Connection, connect, driver
from mktsim.storage import PackedStore, ShardScanner, close_scanners, open_scanner, open_store
from mktsim.storage.base import no_setup
from mktsim.storage.images import Template
from mktsim.storage.scanner import _scanners
from mktsim.storage.vfs import ImageFile, Reader, ReaderPool

SCHEMA = Schema(
    (
        "CREATE TABLE products(id TEXT PRIMARY KEY, category TEXT, rating REAL)",
        "CREATE INDEX by_category ON products(category)",
        "CREATE TABLE reviews(id INTEGER PRIMARY KEY AUTOINCREMENT, product TEXT)",
        "CREATE VIEW good AS SELECT * FROM products WHERE rating > 4",
        "CREATE VIRTUAL TABLE words USING fts5(word)",
    )
)
TOP = "SELECT id, rating FROM products WHERE category = ? ORDER BY rating DESC, id LIMIT 3"


def products(vendor: str, seed: int, count: int = 10) -> list[tuple[str, str, float]]:
    """Return rows that differ from vendor to vendor."""
    draw = random.Random(seed)
    return [(f"{vendor}-{i}", draw.choice(["a", "b"]), draw.random() * 5) for i in range(count)]


def plain_top(rows: list[tuple[str, str, float]]) -> list[tuple[str, float]]:
    """Return the top three of category a, computed without SQL."""
    return sorted(((i, r) for i, c, r in rows if c == "a"), key=lambda row: (-row[1], row[0]))[:3]


@pytest.fixture(name="store")
def packed_store(tmp_path: Path) -> Iterator[PackedStore]:
    """Return a packed store of one shard with forty vendors."""
    with PackedStore(tmp_path / "fleet", SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        store.create_many((f"v{i:02}", {"products": products(f"v{i:02}", i)}) for i in range(40))
        yield store


def test_images_of_one_template_share_the_counters_and_only_stamping_makes_the_answers_right() -> None:
    """Served with equal change counters and no stamp, a connection answers from the first image's pages."""
    template = Template(SCHEMA)
    fleet = [products(f"v{i}", i) for i in range(200)]
    images = [template.fill("v", {"products": rows}) for rows in fleet]
    assert len({image[24:40] for image in images}) < 10  # the sixteen bytes SQLite compares
    expected = [plain_top(rows) for rows in fleet]

    def answers(*, stamped: bool) -> list[list[tuple[object, ...]]]:
        with closing(Reader(images[0], no_setup)) as reader:
            cursor = reader.connection.cursor()
            found = []
            for image in images:
                reader.file.image = image
                reader.file.is_new = stamped
                found.append(cursor.execute(TOP, ("a",)).fetchall())
            return found

    unstamped = answers(stamped=False)
    assert sum(found != right for found, right in zip(unstamped, expected, strict=True)) > 150
    assert answers(stamped=True) == expected
    template.close()


def test_a_stamp_is_given_once_so_that_later_statements_on_an_image_keep_the_cache() -> None:
    """The second statement on one image reads no page again."""
    template = Template(SCHEMA)
    image = template.fill("v", {"products": products("v", 1)})
    reads: list[int] = []
    plain_read = ImageFile.xRead

    def counting_read(file: ImageFile, amount: int, offset: int) -> bytes:
        reads.append(amount)
        return plain_read(file, amount, offset)

    ImageFile.xRead = counting_read  # type: ignore[method-assign]
    try:
        with closing(Reader(image, no_setup)) as reader:
            reader.connection.execute(TOP, ("a",)).fetchall()
            reads.clear()
            assert reader.connection.execute(TOP, ("a",)).fetchall() == plain_top(products("v", 1))
            assert reads == [16]
            reader.file.is_new = True
            reader.connection.execute(TOP, ("a",)).fetchall()
            assert len(reads) > 3
    finally:
        ImageFile.xRead = plain_read  # type: ignore[method-assign]
        template.close()


@pytest.mark.parametrize("page_size", [512, 4096])
def test_a_restored_image_with_other_root_pages_is_answered_from_its_own_tables(
    store: PackedStore, page_size: int
) -> None:
    """Compiled statements name root pages: a foreign layout is brought to the template's before it is served."""
    with closing(connect()) as foreign:
        foreign.execute(f"PRAGMA page_size = {page_size}").fetchall()
        foreign.execute("PRAGMA auto_vacuum = 1").fetchall()
        foreign.execute("CREATE TABLE filler(x)")  # moves every later root page
        SCHEMA.create_in(foreign)
        foreign.execute("DROP TABLE filler")
        foreign.executemany("INSERT INTO products VALUES(?, ?, ?)", products("new", 99, 300))
        store.restore("v20", foreign.serialize("main"))
    store.restore("v21x", store.image("v21"))
    with store.transaction("v20") as connection:  # the foreign image bears this schema's cookie now
        connection.execute("INSERT INTO reviews(product) VALUES('p')")
    found = {vendor: rows for vendor, (rows, _) in store.scan("s", [(TOP, ("a",)), ("SELECT * FROM reviews", ())])}
    assert list(store.scan("s", [("SELECT * FROM reviews", ())], vendor_ids=["v20"])) == [("v20", ([(1, "p")],))]
    for i in range(40):
        rows = products("new", 99, 300) if i == 20 else products(f"v{i:02}", i)
        assert found[f"v{i:02}"] == plain_top(rows)
    assert found["v21x"] == plain_top(products("v21", 21))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO products VALUES('x', 'x', 1)",
        "DELETE FROM products",
        "CREATE TABLE t(x)",
        "CREATE TEMP TABLE t(x)",
        "DROP TABLE products",
        "ATTACH ':memory:' AS other",
        "PRAGMA query_only = 0",
        "PRAGMA writable_schema = 1",
        "VACUUM INTO '/dev/null'",
        "REINDEX",
    ],
)
@pytest.mark.parametrize("kind", ["memory", "directory", "packed"])
def test_a_lent_reader_only_reads(kind: str, statement: str, tmp_path: Path) -> None:
    """Nothing a borrower executes may change a database or leave anything behind for the next borrower."""
    path = None if kind == "memory" else tmp_path / kind
    with open_store(kind, path, SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        store.create("v01", {"products": products("v01", 1)})
        with store.read("v01") as connection:
            with pytest.raises((driver.AuthError, driver.ReadOnlyError)):
                connection.execute(statement).fetchall()
            assert connection.execute("SELECT COUNT(*) FROM products").get == 10
            assert connection.execute("PRAGMA integrity_check").get == "ok"


def test_a_reader_with_a_statement_still_running_is_not_lent_again(store: PackedStore) -> None:
    """A running statement holds SQLite's snapshot, and with it the pages of the image before."""
    with store.read("v01") as connection:
        running = connection.execute("SELECT id FROM products")
        assert next(running)[0].startswith("v01")
    with store.read("v02") as connection:
        assert {row[0][:3] for row in connection.execute("SELECT id FROM products")} == {"v02"}


def test_scans_and_reads_may_be_nested(store: PackedStore) -> None:
    """Each suspended scan has its own connections."""
    for vendor, _ in store.scan("s", [(TOP, ("a",))], vendor_ids=["v05", "v03"]):
        with store.read("v09") as nine, store.read("v08") as eight:
            assert nine.execute("SELECT MIN(id) FROM products").get == "v09-0"
            assert eight.execute("SELECT MIN(id) FROM products").get == "v08-0"
            assert [v for v, _ in store.scan("s", [(TOP, ("a",))])][3:6:2] == ["v03", "v05"]
        assert vendor in ("v03", "v05")
    abandoned = store.scan("s", [(TOP, ("a",))])
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    with store.transaction("v00") as connection:
        connection.execute("DELETE FROM products")
    assert next(iter(store.scan("s", [(TOP, ("a",))]))) == ("v00", ([],))


def test_a_pool_keeps_readers_of_two_schemas_apart() -> None:
    """A reader is only served images of one schema digest."""
    other = Schema(("CREATE TABLE products(rating REAL, id TEXT, category TEXT)",))
    pool = ReaderPool(no_setup)
    templates = [Template(SCHEMA), Template(other)]
    rows = [[("p", "a", 1.5)], [(1.5, "p", "a")]]
    images = [t.fill("v", {"products": r}) for t, r in zip(templates, rows, strict=True)]
    for _ in range(3):
        for template, image in zip(templates, images, strict=True):
            with pool.lend(template.schema.digest, image) as connection:
                assert connection.execute("SELECT id, rating FROM products").fetchall() == [("p", 1.5)]
    pool.close()
    for template in templates:
        template.close()


def register_twice(connection: Connection) -> None:
    """Register an SQL function, as a worker's set-up does."""
    connection.create_scalar_function("twice", lambda value: 2 * value, 1)


def count_in_worker(path: str) -> tuple[int, list[tuple[str, int]]]:
    """Scan a shard file in a worker process."""
    scanner = open_scanner(path, register_twice)
    assert open_scanner(path, register_twice) is scanner
    assert all(scanner is not inherited for key, inherited in _scanners.items() if key[0] != os.getpid())
    statement = ("SELECT twice(COUNT(*)) FROM products", ())
    return os.getpid(), [(vendor, int(str(rows[0][0]))) for vendor, (rows,) in scanner.scan([statement])]


def test_worker_processes_scan_by_path_and_see_what_was_committed_between_two_scans(store: PackedStore) -> None:
    """The scanner a worker keeps answers from the file as it is now."""
    path = str(store.shard_path("s"))
    count_in_worker(path)  # the parent has one open already, which a forked worker must not use
    with ProcessPoolExecutor(1) as executor:
        process, before = executor.submit(count_in_worker, path).result()
        assert before == [(f"v{i:02}", 20) for i in range(40)]
        with store.transaction("v07") as connection:
            connection.execute("DELETE FROM products WHERE id <> 'v07-1'")
        store.delete("v08")
        same_process, after = executor.submit(count_in_worker, path).result()
    assert same_process == process != os.getpid()
    assert after == [(v, 2 if v == "v07" else 20) for v, _ in before if v != "v08"]
    close_scanners()


def test_a_file_made_anew_is_not_mistaken_for_the_old_one(tmp_path: Path) -> None:
    """A kept scanner knows which file it opened."""
    for count in (3, 5):
        folder = tmp_path / str(count)
        with PackedStore(folder, SCHEMA, shards=["s"], locate=lambda _: "s") as store:
            store.create_many((f"v{i}", {}) for i in range(count))
        os.replace(folder / "s.sqlite", tmp_path / "s.sqlite")
        assert len(list(open_scanner(tmp_path / "s.sqlite").scan([("SELECT 1", ())]))) == count
    close_scanners()
    with pytest.raises(StorageError, match="shard file"):
        open_scanner(tmp_path / "absent.sqlite")
    with pytest.raises(StorageError, match="shard file"):
        ShardScanner(tmp_path / "absent.sqlite")


def test_a_small_vendor_takes_at_most_eleven_kilobytes() -> None:
    """The isolation tax: eight tables, an index, ten products, one image."""
    tables = [f"CREATE TABLE t{i}(id TEXT PRIMARY KEY, vendorId TEXT, a TEXT, b INTEGER)" for i in range(7)]
    template = Template(Schema((*SCHEMA.statements[:2], *tables)))
    size = len(template.fill("v", {"products": products("v", 1)}))
    template.close()
    assert size <= 11 * 1024
