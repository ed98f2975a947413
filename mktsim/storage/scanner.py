"""Scan one shard file: the hot loop of a packed store, in the store's process or in a worker.

Theory of operation
-------------------
A shard file has one row a vendor, whose image is a whole SQLite database. The loop reads image after image, in order
of id and from one snapshot of the shard file, hands each to a :class:`~mktsim.storage.vfs.Reader`, and runs the
statements on cursors that keep them compiled. The store's own writes and those of other processes are seen by every
scan that starts after their commit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

from mktsim.errors import CorruptImageError, EvaluationError, MktsimError, cause
from mktsim.sql.topk import RunningTopK, TopKRequest
from mktsim.sql.ungrouped import BlockFold, Folding, RowFold
from mktsim.sqlite import Connection
from mktsim.storage.base import Answer, Row, Setup, Statement, no_setup
from mktsim.storage.folder import open_file
from mktsim.storage.guards import named_errors, scan_error, unknown
from mktsim.storage.images import checked
from mktsim.storage.moves import LATEST, UNSEEN
from mktsim.storage.sparse import HEAD, Bases, Layout, of_vendor
from mktsim.storage.vfs import Reader, ReaderPool

_COLUMNS: Final = "SELECT id, schema_digest, image FROM vendors"
_SEEN: Final = f"{_COLUMNS} WHERE id NOT IN ({UNSEEN})"
# The file is mapped into memory as far as SQLite allows (2 GB): that spares a system call and a copy a page.
_MMAP_BYTES: Final = 1 << 40


class ShardScanner:
    """Reads one shard file of a packed store; see :func:`open_scanner`.

    Parameters
    ----------
    path : str or Path
        The shard file.
    setup : callable, optional
        Called once on every connection that runs statements.
    readers : ReaderPool, optional
        Readers to share with other scanners: a scan of many shards then goes through one connection, whose memory
        stays in the processor's cache.

    Raises
    ------
    StorageError
        The file cannot be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mktsim.sql import Schema
    >>> from mktsim.storage import open_store
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> with TemporaryDirectory() as folder:
    ...     with open_store("packed", folder, schema, shards=["s0"], locate=lambda vendor_id: "s0") as store:
    ...         store.create("acme", {"products": [("mouse",)]})
    ...         store.create("bolt")
    ...         scanner = ShardScanner(store.shard_path("s0"))
    ...         print(list(scanner.scan([("SELECT COUNT(*) FROM products", ())])))
    ...         scanner.close()
    [('acme', ([(1,)],)), ('bolt', ([(0,)],))]
    """

    def __init__(self, path: str | Path, setup: Setup | None = None, *, readers: ReaderPool | None = None) -> None:
        self.path = Path(path)
        self._shares = readers is not None
        self.bases = Bases(self.path.parent)
        self._readers = readers or ReaderPool(setup if setup is not None else no_setup)
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        with self._connection() as connection:  # A file that cannot be opened is named here, not within a query.
            self.bases.take_from(connection)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Lend a connection to the shard file: scans may be nested, each needs its own."""
        with named_errors(f"shard file {self.path}"):
            if self._idle:
                connection = self._idle.pop()
            else:
                connection = open_file(self.path, writable=False)
                self._open.add(connection)
                connection.execute(f"PRAGMA mmap_size = {_MMAP_BYTES}").fetchall()
            try:
                yield connection
            except GeneratorExit:  # The scan was left before its end; its cursors are closed.
                self._idle.append(connection)
                raise
            except BaseException:
                self._open.discard(connection)
                connection.close(True)
                raise
            self._idle.append(connection)

    def scan(
        self,
        statements: list[Statement],
        *,
        vendor_ids: list[str] | None = None,
        top: TopKRequest | None = None,
        as_of: int | None = None,
    ) -> Iterator[Answer]:
        """Yield every vendor of the file, or those of `vendor_ids`, with the rows of each statement.

        The arguments are trusted: :meth:`VendorStore.check_statements` has checked the statements, and the ids are
        sorted. Errors are those of :meth:`VendorStore.scan`.
        """
        leading = RunningTopK(top, statements[0]) if top is not None else None
        digest: str | None = None
        layouts = self.bases.layouts
        with (
            self._connection() as connection,
            self._borrowed() as readers,
            closing(_images(connection, vendor_ids, as_of)) as rows,
        ):
            for vendor_id, new_digest, image in rows:
                layout = layouts.get(image[:HEAD])
                if layout is None or layout[3] != len(image):
                    layout = self._layout(vendor_id, image)
                if new_digest != digest:
                    digest = new_digest
                    reader = readers.serve(digest, image, layout)
                    file = reader.file
                    prepared = [(reader.connection.cursor().execute, sql, values) for sql, values in statements]
                file.image = image
                file.layout = layout
                file.is_new = True
                answer: list[list[Row]] = []
                sql = ""
                try:
                    if leading is not None:
                        sql = leading.sql
                        answer.append([] if leading.done else leading.ask(prepared[0][0]))
                    else:
                        for execute, sql, values in prepared:
                            answer.append(execute(sql, values).fetchall())
                except Exception as error:
                    readers.failed = True
                    raise self._named(error, vendor_id, sql, image) from cause(error)
                yield vendor_id, tuple(answer)

    def collect(
        self,
        statements: list[Statement],
        *,
        vendor_ids: list[str] | None = None,
        top: TopKRequest | None = None,
        as_of: int | None = None,
        folding: Folding | None = None,
    ) -> tuple[list[Answer], int]:
        """Return the answers of :meth:`scan` that have rows, and how many vendors it visited.

        The same loop without a turn for anybody else, which is what it costs less: see ``benchmarks/`` (fan-out
        against the bare loop). With `folding` the rows of the one statement are merged while they are at hand.
        """
        if folding is not None:
            fold = folding.begin(statements[0])
            asking = fold.rows if isinstance(fold, BlockFold) else fold if isinstance(fold, RowFold) else None
            visited = self._collect_into(fold.append, statements, vendor_ids, asking, as_of)
            return fold.result(), visited
        found: list[Answer] = []
        leading = RunningTopK(top, statements[0]) if top is not None else None
        return found, self._collect_into(found.append, statements, vendor_ids, leading, as_of)

    def _collect_into(
        self,
        give: Callable[[Answer], object],
        statements: list[Statement],
        vendor_ids: list[str] | None,
        asking: RunningTopK | RowFold | None,
        as_of: int | None,
    ) -> int:
        """Give each answer that has rows, and return how many vendors were visited; `asking` knows what to ask."""
        visited = 0
        if len(statements) > 1:
            for answer in self.scan(statements, vendor_ids=vendor_ids, as_of=as_of):
                visited += 1
                if any(answer[1]):
                    give(answer)
            return visited
        sql, values = statements[0]
        digest: str | None = None
        layouts = self.bases.layouts
        with (
            self._connection() as connection,
            self._borrowed() as readers,
            closing(_images(connection, vendor_ids, as_of)) as rows,
        ):
            for vendor_id, new_digest, image in rows:
                layout = layouts.get(image[:HEAD])
                if layout is None or layout[3] != len(image):
                    layout = self._layout(vendor_id, image)
                if new_digest != digest:
                    digest = new_digest
                    reader = readers.serve(digest, image, layout)
                    file = reader.file
                    execute = reader.connection.cursor().execute
                file.image = image
                file.layout = layout
                file.is_new = True
                visited += 1
                try:
                    part = execute(sql, values).fetchall() if asking is None else asking.ask(execute)
                except Exception as error:
                    readers.failed = True
                    raise self._named(error, vendor_id, sql, image) from cause(error)
                if part:
                    give((vendor_id, (part,)))
                    if asking is not None and asking.done:
                        break  # What is left out has been answered for all the same.
            else:
                return visited
        return self._seen(vendor_ids, as_of)

    def _seen(self, vendor_ids: list[str] | None, as_of: int | None) -> int:
        """Return how many vendors a whole scan visits."""
        if vendor_ids is not None:
            return len(vendor_ids)
        epoch = LATEST if as_of is None else as_of
        with self._connection() as connection:
            return int(
                connection.execute(f"SELECT COUNT(*) FROM vendors WHERE id NOT IN ({UNSEEN})", (epoch, epoch)).get
            )

    def _layout(self, vendor_id: str, stored: bytes) -> Layout:
        with of_vendor(vendor_id):
            return self.bases.layout(stored)

    def _named(self, error: Exception, vendor_id: str, sql: str, stored: bytes) -> MktsimError:
        """Return the named error: damage shows itself in many ways, so that the image is looked at closely."""
        named = scan_error(error, vendor_id, sql)
        if isinstance(named, EvaluationError):
            try:
                with of_vendor(vendor_id):
                    stored = self.bases.unpacked(stored)
                checked(stored, vendor_id)
            except CorruptImageError as damage:
                return damage
        return named

    @contextmanager
    def _borrowed(self) -> Iterator[_Borrowed]:
        """Lend the readers of one scan."""
        borrowed = _Borrowed(self._readers)
        try:
            yield borrowed
        finally:
            borrowed.give_back()

    @contextmanager
    def read(self, vendor_id: str) -> Iterator[Connection]:
        """Lend a connection that reads one vendor's database as it is now."""
        with self._connection() as connection:
            row = connection.execute(f"{_COLUMNS} WHERE id = ? AND version > 0", (vendor_id,)).fetchone()
        if row is None:
            raise unknown(vendor_id)
        with self._readers.lend(str(row[1]), row[2], self._layout(vendor_id, row[2])) as lent:
            yield lent

    def close(self) -> None:
        """Close all connections but shared ones; a scan that is under way ends with an error."""
        if not self._shares:
            self._readers.close()
        self._idle.clear()
        while self._open:
            self._open.pop().close(True)


class _Borrowed:
    """The readers that one scan has taken from the pool, by schema digest."""

    __slots__ = ("_pool", "_readers", "failed")

    def __init__(self, pool: ReaderPool) -> None:
        self._pool = pool
        self._readers: dict[str, Reader] = {}
        self.failed = False

    def serve(self, digest: str, image: bytes, layout: Layout) -> Reader:
        """Return the reader of a schema."""
        reader = self._readers.get(digest)
        if reader is None:
            reader = self._readers[digest] = self._pool.take(digest, image, layout)
        return reader

    def give_back(self) -> None:
        """Return the readers to the pool; after a failure nobody may use them again."""
        for digest, reader in self._readers.items():
            if self.failed:
                reader.close()
            else:
                self._pool.give(digest, reader)


def _images(connection: Connection, vendor_ids: list[str] | None, as_of: int | None) -> Any:
    """Return an iterator of id, schema digest and image of the vendors, from one snapshot of the shard file."""
    epoch = LATEST if as_of is None else as_of
    if vendor_ids is None:
        return connection.execute(f"{_SEEN} ORDER BY id", (epoch, epoch))
    return _chosen(connection, vendor_ids, epoch)


def _chosen(connection: Connection, vendor_ids: list[str], epoch: int) -> Generator[tuple[str, str, bytes], None, None]:
    cursor = connection.cursor()
    cursor.execute("BEGIN")
    try:
        for vendor_id in vendor_ids:
            row = cursor.execute(f"{_SEEN} AND id = ?", (epoch, epoch, vendor_id)).fetchone()
            if row is None:
                raise unknown(vendor_id)
            yield row
    finally:
        connection.execute("ROLLBACK")


_scanners: dict[tuple[object, ...], ShardScanner] = {}
_looked_at = count()
_readers: dict[tuple[int, Setup | None], ReaderPool] = {}  # by process and setup, for all its scanners


def open_scanner(path: str | Path, setup: Setup | None = None) -> ShardScanner:
    """Return this process's scanner of a shard file, opening it at most once.

    This is how worker processes scan: the task names the file and an importable `setup`. The cache knows the process,
    so that a forked worker opens its own, and the file's identity, so that a file made anew is not mistaken.

    Parameters
    ----------
    path : str or Path
        The shard file.
    setup : callable, optional
        Called once on every connection that runs statements.

    Returns
    -------
    ShardScanner
        The same for the same file and `setup`.

    Raises
    ------
    StorageError
        The file cannot be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mktsim.sql import Schema
    >>> from mktsim.storage import open_store
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> with TemporaryDirectory() as folder:
    ...     with open_store("packed", folder, schema, shards=["s0"], locate=lambda vendor_id: "s0") as store:
    ...         store.create("acme", {"products": [("mouse",)]})
    ...         file = store.shard_path("s0")
    ...         print(open_scanner(file) is open_scanner(file))
    ...         print(list(open_scanner(file).scan([("SELECT name FROM products", ())])))
    ...         close_scanners()
    True
    [('acme', ([('mouse',)],))]
    """
    with named_errors(f"shard file {path}"):
        status = os.stat(path)
    place = (os.getpid(), str(path), setup)
    key = (*place, status.st_dev, status.st_ino)
    scanner = _scanners.get(key)
    if scanner is None:
        for stale in [known for known in _scanners if known[:3] == place]:
            _scanners.pop(stale).close()
        readers = _readers.get((os.getpid(), setup))
        if readers is None:
            readers = _readers[os.getpid(), setup] = ReaderPool(setup if setup is not None else no_setup)
        scanner = _scanners[key] = ShardScanner(path, readers=readers)
    _close_one_that_is_gone()
    return scanner


def _close_one_that_is_gone() -> None:
    """Look at one scanner, in turn, and close it if its file was dropped: an open file keeps its space on the disk."""
    key = list(_scanners)[next(_looked_at) % len(_scanners)]
    if key[0] == os.getpid() and not Path(str(key[1])).exists():
        _scanners.pop(key).close()


def close_scanners() -> None:
    """Close every scanner that :func:`open_scanner` opened in this process.

    Examples
    --------
    A folder of shard files can be removed once nobody in this process reads them.

    >>> close_scanners()
    >>> len(_scanners), len(_readers)
    (0, 0)
    """
    for key in [key for key in _scanners if key[0] == os.getpid()]:
        _scanners.pop(key).close()
    for place in [place for place in _readers if place[0] == os.getpid()]:
        _readers.pop(place).close()
