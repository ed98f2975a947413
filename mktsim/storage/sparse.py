"""Images without the pages that every new vendor has: half the bytes to write, keep and scan.

Rules
-----
* What is read is the image that was written, byte for byte: :func:`packed` and :meth:`Bases.unpacked` are inverse.
* An image names the base it lacks pages of by that base's digest. A base is in the shard file, and beside it as a file
  of its own, before any image names it, and is never changed or removed.

Theory of operation
-------------------
A vendor's database has a dozen tables and indexes, most of them an empty page, and the schema's text: of 22 pages of a
small vendor's, 15 are those of the template it was made from (`mktsim.storage.images`). A packed image is a head and
the other pages::

    "\\0mk1"   8 bytes: the base's digest   2 bytes: pages of the image   32 bytes: which of them are kept   kept pages

The head alone tells where each page is. Few heads differ in a whole fleet, so that what a head means is remembered, and
a scan finds it by one look into a dictionary. An image beyond 256 pages has little to gain and is kept as it is; so is
what an earlier version of this package wrote. A shard file taken elsewhere can be read by itself; the file beside it
serves images that came from another shard, whose base may have been made by another version of SQLite.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from mktsim.errors import CorruptImageError, StorageError
from mktsim.sqlite import Connection
from mktsim.storage.folder import replace_file
from mktsim.storage.guards import shown
from mktsim.storage.images import PAGE_SIZE_BYTES

_MAGIC: Final = b"\0mk1"
_DIGEST: Final = slice(4, 12)
_COUNT: Final = slice(12, 14)
_KEPT: Final = slice(14, 46)
_MOST_PAGES: Final = 256
#: Where a shard file keeps its bases.
BASES_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS bases(digest BLOB NOT NULL PRIMARY KEY, image BLOB NOT NULL) STRICT, WITHOUT ROWID"
)
#: Bytes of a packed image's head.
HEAD: Final = 46
_MOST_LAYOUTS: Final = 10_000


class Layout(NamedTuple):
    """Where the pages of an image are.

    Attributes
    ----------
    pages : tuple of int or None
        For each page its first byte in the packed image, or -1 for the base's page; None for an image that is whole.
    base : bytes
        The database that lacking pages are taken from.
    size : int
        Bytes of the whole image; -1 for the length of what is stored.
    stored : int
        Bytes of the packed image.
    """

    pages: tuple[int, ...] | None
    base: bytes
    size: int
    stored: int


#: Of an image that is whole.
WHOLE: Final = Layout(None, b"", -1, -1)


@contextmanager
def of_vendor(vendor_id: str) -> Iterator[None]:
    """Say in an error whose image it is about."""
    try:
        yield
    except CorruptImageError as error:
        raise CorruptImageError(f"vendor {shown(vendor_id)}: {error}", vendor_id=vendor_id) from error


def digest_of(base: bytes) -> bytes:
    """Return by which digest images name a base."""
    return hashlib.blake2b(base, digest_size=8).digest()


def packed(image: bytes, base: bytes, digest: bytes) -> bytes:
    """Return an image without the pages it shares with a base; large images are returned as they are.

    Examples
    --------
    >>> base = bytes(1024)
    >>> image = bytes(512) + b"x" * 512
    >>> len(image), len(packed(image, base, digest_of(base)))
    (1024, 558)
    """
    size = len(image)
    if not size or size % PAGE_SIZE_BYTES or size > _MOST_PAGES * PAGE_SIZE_BYTES:
        return image
    kept = bytearray(32)
    pages = []
    for number, start in enumerate(range(0, size, PAGE_SIZE_BYTES)):
        page = image[start : start + PAGE_SIZE_BYTES]
        if page != base[start : start + PAGE_SIZE_BYTES]:
            kept[number >> 3] |= 1 << (number & 7)
            pages.append(page)
    return b"".join((_MAGIC, digest, (size // PAGE_SIZE_BYTES).to_bytes(2, "little"), kept, *pages))


class Bases:
    """The bases that images in a folder's shard files name.

    Parameters
    ----------
    folder : Path
        Where the files are: ``<digest>.base``.

    Attributes
    ----------
    layouts : dict of bytes to Layout
        What is known of heads: look there before :meth:`layout`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._images: dict[bytes, bytes] = {}
        self.layouts: dict[bytes, Layout] = {}

    def add(self, base: bytes) -> bytes:
        """Put a base into the folder, if it is not there, and return its digest."""
        digest = digest_of(base)
        path = self._path(digest)
        try:
            if not path.exists():
                replace_file(path, base, path.with_name(f"{path.name}.{os.getpid()}"))
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error
        self._images[digest] = base
        return digest

    def put_into(self, file: Connection, digest: bytes) -> None:
        """Put a base into a shard file, if it is not there."""
        if not file.execute("SELECT 1 FROM bases WHERE digest = ?", (digest,)).fetchall():
            file.execute("INSERT OR IGNORE INTO bases VALUES(?, ?)", (digest, self._images[digest]))

    def take_from(self, file: Connection) -> None:
        """Learn the bases of a shard file."""
        if file.execute("SELECT 1 FROM sqlite_schema WHERE name = 'bases'").fetchall():
            found: list[Any] = file.execute("SELECT digest, image FROM bases").fetchall()
            self._images.update((digest, base) for digest, base in found if digest_of(base) == digest)

    def layout(self, stored: bytes) -> Layout:
        """Return the layout of what is stored for a vendor.

        Raises
        ------
        CorruptImageError
            Its base is not there, or the head makes no sense.
        """
        head = stored[:HEAD]
        known = self.layouts.get(head)
        if known is not None and known.stored == len(stored):
            return known
        if not head.startswith(_MAGIC):
            return WHOLE
        base = self._base(head[_DIGEST])
        count = int.from_bytes(head[_COUNT], "little")
        kept = int.from_bytes(head[_KEPT], "little")
        pages, place = [], HEAD
        for number in range(count):
            if kept >> number & 1:
                pages.append(place)
                place += PAGE_SIZE_BYTES
            else:
                pages.append(-1)
        if len(head) < HEAD or not count or count > _MOST_PAGES or kept >> count or place != len(stored):
            raise CorruptImageError("a packed image's head does not fit what is stored")
        if len(self.layouts) >= _MOST_LAYOUTS:
            self.layouts.clear()
        found = self.layouts[head] = Layout(tuple(pages), base, count * PAGE_SIZE_BYTES, place)
        return found

    def unpacked(self, stored: bytes) -> bytes:
        """Return the image that was stored.

        Raises
        ------
        CorruptImageError
        """
        pages, base, size, _ = self.layout(stored)
        if pages is None:
            return stored
        starts = range(0, size, PAGE_SIZE_BYTES)
        return b"".join(
            base[start : start + PAGE_SIZE_BYTES] if place < 0 else stored[place : place + PAGE_SIZE_BYTES]
            for start, place in zip(starts, pages, strict=True)
        )

    def _base(self, digest: bytes) -> bytes:
        base = self._images.get(digest)
        if base is None:
            path = self._path(digest)
            try:
                base = path.read_bytes()
            except OSError as error:
                raise CorruptImageError(f"the base of packed images is missing: {path}: {error}") from error
            if digest_of(base) != digest:
                raise CorruptImageError(f"the base of packed images is damaged: {path}: restore it from a copy")
            self._images[digest] = base
        return base

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.base"
