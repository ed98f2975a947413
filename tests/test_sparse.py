"""Packed images: what is read is what was written, and what cannot be read is named."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import CorruptImageError, StorageError
from mktsim.market.nouns import SCHEMA
from mktsim.sql.schema import Schema
from mktsim.sqlite import connect
from mktsim.storage import PackedStore
from mktsim.storage.base import no_setup
from mktsim.storage.images import PAGE_SIZE_BYTES, Template
from mktsim.storage.sparse import HEAD, WHOLE, Bases, digest_of, packed
from mktsim.storage.vfs import Reader

SMALL = Schema(("CREATE TABLE t(a)", "CREATE INDEX by_a ON t(a)", "CREATE TABLE u(b)"))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), pages=st.integers(0, 300), odd=st.booleans())
def test_packing_and_unpacking_is_the_identity_for_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, pages: int, odd: bool
) -> None:
    """Shorter and longer than the base, equal to it, of odd length, and beyond what is packed."""
    draw = random.Random(seed)
    base = draw.randbytes(20 * PAGE_SIZE_BYTES)
    image = b"".join(
        base[start : start + PAGE_SIZE_BYTES] if draw.random() < 0.6 else draw.randbytes(PAGE_SIZE_BYTES)
        for start in range(0, pages * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES)
    )
    image = image[: pages * PAGE_SIZE_BYTES] + (b"x" if odd else b"")
    bases = Bases(tmp_path_factory.mktemp("bases"))
    stored = packed(image, base, bases.add(base))
    assert Bases(bases._folder).unpacked(stored) == image
    assert len(stored) <= max(len(image), HEAD + len(image))


def test_a_reader_answers_from_packed_and_whole_images_in_turn(tmp_path: Path) -> None:
    """One connection, images of both kinds and of several sizes: never a page of another."""
    template = Template(SMALL)
    bases = Bases(tmp_path)
    digest = bases.add(template.image)
    fleet = [[(number * 1_000 + row,) for row in range(number * 7 % 90)] for number in range(60)]
    stored = [packed(template.fill(f"v{n}", {"t": rows}), template.image, digest) for n, rows in enumerate(fleet)]
    stored = [bases.unpacked(each) if n % 3 == 0 else each for n, each in enumerate(stored)]
    with closing(Reader(stored[0], no_setup, bases.layout(stored[0]))) as reader:
        for rows, each in zip(fleet, stored, strict=True):
            reader.file.image, reader.file.layout, reader.file.is_new = each, bases.layout(each), True
            assert reader.connection.execute("SELECT a FROM t ORDER BY rowid").fetchall() == rows
            assert reader.connection.execute("SELECT COUNT(*) FROM u").fetchall() == [(0,)]
            assert (
                reader.connection.execute("SELECT a FROM t WHERE a = ?", (rows[-1] if rows else (0,))).fetchall()
                == rows[-1:]
            )
    template.close()


def test_a_page_is_of_the_size_that_reading_takes_for_granted() -> None:
    """`ImageFile.xRead` shifts by nine bits."""
    assert PAGE_SIZE_BYTES == 1 << 9


def test_a_small_vendor_takes_half_the_bytes(tmp_path: Path) -> None:
    """Ten products and all nouns of the market: at most 8 KB a vendor, everything included."""
    rows = [(f"p{n}", "v", f"SKU-{n}", f"product {n}", None, "audio", 9.99, 4.5, 3, "2026-01-01") for n in range(10)]
    with PackedStore(tmp_path / "fleet", SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        store.create_many((f"vendor-{n:07}", {"products": rows}) for n in range(2_000))
        path = store.shard_path("s")
        store.scrub()
        assert store.image("vendor-0000007").startswith(b"SQLite format 3\0")
    assert path.stat().st_size / 2_000 < 8_000


def test_damage_is_named_and_other_vendors_are_read(tmp_path: Path) -> None:
    """A head that makes no sense, a lost tail, a base that is missing or another."""
    with PackedStore(tmp_path / "fleet", SMALL, shards=["s"], locate=lambda _: "s") as store:
        store.create_many((f"v{n}", {"t": [(n,)]}) for n in range(3))
        path = store.shard_path("s")
    file = connect(str(path))
    (stored,) = file.execute("SELECT image FROM vendors WHERE id = 'v1'").fetchone()
    for bad in (stored[:30], stored[:-1], stored[:12] + b"\xff\xff" + stored[14:], stored[:4] + bytes(8) + stored[12:]):
        file.execute("UPDATE vendors SET image = ? WHERE id = 'v1'", (bad,))
        with PackedStore(tmp_path / "fleet", SMALL, shards=["s"], locate=lambda _: "s") as store:
            with pytest.raises(CorruptImageError, match="v1"):
                list(store.scan("s", [("SELECT a FROM t ORDER BY a", ())]))  # along the index, the last page kept
            with pytest.raises(CorruptImageError, match="v1"), store.read("v1"):
                pass
            with pytest.raises(CorruptImageError, match="v1"):
                store.image("v1")
            with store.read("v2") as connection:
                assert connection.execute("SELECT a FROM t").fetchall() == [(2,)]
    file.close()


def test_a_missing_or_damaged_base_is_named_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    """A base is found again by any process that opens the folder."""
    base = bytes(PAGE_SIZE_BYTES) * 3
    stored = packed(bytes(PAGE_SIZE_BYTES) * 2 + b"x" * PAGE_SIZE_BYTES, base, digest_of(base))
    with pytest.raises(CorruptImageError, match="missing"):
        Bases(tmp_path).unpacked(stored)
    Bases(tmp_path).add(base)
    (path,) = tmp_path.glob("*.base")
    assert Bases(tmp_path).unpacked(stored)[-1:] == b"x"
    path.write_bytes(b"another")
    with pytest.raises(CorruptImageError, match="damaged"):
        Bases(tmp_path).unpacked(stored)
    with pytest.raises(StorageError, match="cannot be written"):
        Bases(tmp_path / "nowhere").add(base)
    assert Bases(tmp_path).layout(b"SQLite format 3\0") is WHOLE
