"""Serve one database image after another to one long-lived, read-only connection.

Rules
-----
* A :class:`Reader` answers from the image it was served last, never from pages of an earlier one.
* Nothing is ever written, locked or journalled.

Theory of operation
-------------------
To open a database, read its schema and compile a statement costs several times what a small query costs. A reader
pays it once. Its file is an object of this module, whose bytes are replaced between two transactions. To SQLite that
looks as if another process had rewritten the file.

*The trap.* SQLite keeps its page cache across transactions when 16 bytes of the header (24-39: change counter, size,
free list) are as it last saw them on page 1. Images made from one template often share all sixteen; they would be
answered from the wrong vendor's pages. Hence the stamp: the first time after an image was served that SQLite reads
those sixteen bytes alone, it is given a value no page 1 can hold (a size of 2**32 - 1 pages), and so drops its cache.
It then takes the true bytes from page 1; later statements on the same image find them unchanged and keep the cache.
A stamp on serving holds for every image, whoever wrote it and whatever counter it bears, which no counter stored in
the image could promise.

Compiled statements and the parsed schema live on as long as the schema cookie is the same. `mktsim.storage.images`
sees to it that equal cookies mean equal layouts, and whoever serves images keeps a reader per schema digest.

What this does not do
---------------------
It copies the image's pages as SQLite asks for them: only those a query touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mktsim.sqlite import SQLITE_OPEN_READONLY, SQLITE_OPEN_URI, VFS, Connection, Error, connect, driver
from mktsim.storage.base import Setup
from mktsim.storage.guards import allow_only_reading
from mktsim.storage.sparse import WHOLE, Layout

_VFS_NAME: Final = "mktsim-image"
_CHANGED: Final = b"\xff" * 16


class ImageFile:
    """What SQLite sees as the file of a :class:`Reader`.

    Attributes
    ----------
    image : bytes
        The database, or what is stored of it.
    layout : Layout
        Where its pages are (`mktsim.storage.sparse`).
    is_new : bool
        Set to true with each new image: the next look at the header's counters reports a change.
    """

    __slots__ = ("image", "is_new", "layout")

    def __init__(self) -> None:
        self.image = b""
        self.layout = WHOLE
        self.is_new = True

    def xRead(self, amount: int, offset: int) -> bytes:
        """Return the bytes asked for. Only the look at the counters ever asks for sixteen."""
        if amount == 16 and self.is_new:
            self.is_new = False
            return _CHANGED
        layout = self.layout
        pages = layout[0]
        if pages is None:
            return self.image[offset : offset + amount]
        # SQLite reads a page, of 2**9 bytes, or a part of one. This runs several times a vendor: plain numbers are
        # faster than names.
        place = pages[offset >> 9]
        if place < 0:
            return layout[1][offset : offset + amount]
        place += offset & 511
        return self.image[place : place + amount]

    def xFileSize(self) -> int:
        """Return the size of the image, bytes."""
        size = self.layout[2]
        return len(self.image) if size < 0 else size

    def xLock(self, _level: int) -> None:
        """Take no lock: nobody else has this file."""

    xUnlock = xLock

    def xCheckReservedLock(self) -> bool:
        """Nobody is about to write."""
        return False

    def xFileControl(self, _operation: int, _pointer: int) -> bool:
        """No file control is known."""
        return False

    def xSectorSize(self) -> int:
        """Return a sector size; nothing is written, so that it does not matter."""
        return 512

    def xDeviceCharacteristics(self) -> int:
        """Promise nothing. Above all not that the file is immutable: the cache would then never be dropped."""
        return 0

    def xWrite(self, _data: bytes, _offset: int) -> None:
        """Refuse to write."""
        raise driver.ReadOnlyError("a served image cannot be written")

    def xTruncate(self, _size: int) -> None:
        """Refuse to write."""
        raise driver.ReadOnlyError("a served image cannot be written")

    def xSync(self, _flags: int) -> None:
        """Nothing is ever written."""

    def xClose(self) -> None:
        """Let go of the image."""
        self.image = b""
        self.layout = WHOLE


class ImageVFS(VFS):
    """The file system of which every file is an :class:`ImageFile`."""

    def __init__(self) -> None:
        super().__init__(_VFS_NAME, "")
        self.opening = ImageFile()

    def xOpen(self, _name: object, flags: list[int]) -> ImageFile:  # type: ignore[override]
        """Open the file that the reader under construction has put in `opening`."""
        flags[1] = flags[0]
        return self.opening

    def xAccess(self, _name: str, _flags: int) -> bool:
        """No journal and no write-ahead log exists."""
        return False

    def xFullPathname(self, name: str) -> str:
        """Names are as good as paths here."""
        return name


_registered: list[ImageVFS] = []  # A VFS stays registered while it is referenced; made on first use.


class Reader:
    """A connection that reads the image it was served last.

    Parameters
    ----------
    image : bytes
        The first image.
    setup : callable
        Called once with the connection.
    layout : Layout
        Of the first image.

    Attributes
    ----------
    connection : Connection
        Reads only; its authorizer denies the rest.
    file : ImageFile
        To serve an image, set its `image` and `layout`, then `is_new` to true, while no statement is running. A layout
        must be that of an image of this length: SQLite takes bytes that are missing for zeros.
    """

    __slots__ = ("connection", "file")

    def __init__(self, image: bytes, setup: Setup, layout: Layout = WHOLE) -> None:
        if not _registered:
            _registered.append(ImageVFS())
        self.file = _registered[0].opening = ImageFile()
        self.file.image = image
        self.file.layout = layout
        self.connection: Connection = connect(
            "file:image?nolock=1", flags=SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, vfs=_VFS_NAME
        )
        # Plans must not depend on bound values: else SQLite compiles `LIMIT ?` anew for every vendor it is bound for.
        self.connection.config(driver.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        setup(self.connection)
        self.connection.authorizer = allow_only_reading

    def close(self) -> None:
        """Close the connection."""
        self.connection.close(True)


class ReaderPool:
    """Readers that wait for work, by schema digest."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._idle: dict[str, list[Reader]] = {}

    def take(self, digest: str, image: bytes, layout: Layout = WHOLE) -> Reader:
        """Return a reader that has been served `image`, for the caller alone."""
        idle = self._idle.get(digest)
        if not idle:
            return Reader(image, self._setup, layout)
        reader = idle.pop()
        reader.file.image = image
        reader.file.layout = layout
        reader.file.is_new = True
        return reader

    def give(self, digest: str, reader: Reader) -> None:
        """Take a reader back. One with a statement still running would answer from old pages, and is closed."""
        if reader.connection.txn_state("main") != driver.SQLITE_TXN_NONE:
            reader.close()
            return
        if reader.connection.authorizer is not allow_only_reading:
            reader.connection.authorizer = allow_only_reading
        reader.file.image = b""
        reader.file.layout = WHOLE
        self._idle.setdefault(digest, []).append(reader)

    @contextmanager
    def lend(self, digest: str, image: bytes, layout: Layout = WHOLE) -> Iterator[Connection]:
        """Lend a connection on `image` for the time of the block."""
        reader = self.take(digest, image, layout)
        try:
            yield reader.connection
        except Error:
            reader.close()
            raise
        except BaseException:
            self.give(digest, reader)
            raise
        self.give(digest, reader)

    def close(self) -> None:
        """Close the waiting readers."""
        for idle in self._idle.values():
            for reader in idle:
                reader.close()
        self._idle.clear()
