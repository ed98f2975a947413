"""Database images: the template that every vendor starts from, and the check of an image that comes from elsewhere.

Rules
-----
* All databases of one schema share page size, text encoding, schema cookie and the root page of every table and index.
* An image from elsewhere is either brought to that form or refused by name.

Theory of operation
-------------------
A scan serves thousands of images to one connection (see `mktsim.storage.vfs`), which parses the schema once and keeps
compiled statements as long as the schema cookie (header bytes 40-43) stays the same. Compiled statements name tables
by root page. So equal cookie must mean equal schema *and* equal root pages. The cookie is therefore taken from the
schema's digest, and the template is vacuumed: VACUUM lays root pages out by the order of the schema alone, whatever
rows there are, so that a vacuumed image of the same schema has the template's root pages.

Pages are small, for a small vendor has many nearly empty tables: ten products with eight tables take about 11 KB at
512 bytes a page, 20 KB at 1,024 and 70 KB at 4,096.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from mktsim.errors import CorruptImageError, InvalidArgumentError, SchemaMismatchError
from mktsim.sql.schema import Schema
from mktsim.sqlite import Connection, Error, Value, connect, quote

#: Page size of every vendor database, bytes.
PAGE_SIZE_BYTES: Final = 512

_PAGE_SIZE = f"page_size = {PAGE_SIZE_BYTES}"
_MAGIC = b"SQLite format 3\0"
_LAYOUT = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY type, name"


def with_journal(image: bytes, mode: int) -> bytes:
    """Return the image marked for a rollback journal (1) or a write-ahead log (2): header bytes 18 and 19."""
    return image[:18] + bytes((mode, mode)) + image[20:]


def with_application_id(image: bytes, application_id: int) -> bytes:
    """Return the image with its application id (header bytes 68-71) replaced."""
    return image[:68] + struct.pack(">i", application_id) + image[72:]


class Template:
    """The empty database of a schema, at a version, and what can be made from it.

    Attributes
    ----------
    image : bytes
        The empty vendor database.
    cookie : int
        Its schema cookie, taken from the schema's digest.

    Examples
    --------
    >>> template = Template(Schema(("CREATE TABLE products(id, price)",)))
    >>> image = template.fill("acme", {"products": [("p1", 250)]})
    >>> len(template.image), len(image)
    (1024, 1024)
    """

    def __init__(self, schema: Schema, version: int = 1) -> None:
        self.schema = schema
        self.cookie: int = int(schema.digest[:8], 16) >> 1 or 1
        self._staging = connect()
        for pragma in (_PAGE_SIZE, "encoding = 'UTF-8'", "auto_vacuum = 0"):
            self._staging.execute(f"PRAGMA {pragma}").fetchall()
        try:
            schema.create_in(self._staging)
            self._staging.execute("VACUUM")
        except Error as error:
            raise InvalidArgumentError(f"the schema cannot be laid out: {error}") from error
        self._staging.execute(f"PRAGMA schema_version = {self.cookie}")
        if version > 1:
            self._staging.execute(f"PRAGMA user_version = {version}")
        self.image: bytes = self._staging.serialize("main")
        self._has_virtual = bool(
            self._staging.execute("SELECT EXISTS(SELECT 1 FROM pragma_table_list WHERE type = 'virtual')").get
        )
        self._template_form = self._form(self._staging, self.image)
        self._inserts: dict[tuple[str, int], str] = {}

    def close(self) -> None:
        """Free the template's connection."""
        self._staging.close(True)

    def connection(self, image: bytes | None = None) -> Connection:
        """Return an in-memory connection that holds a copy of `image`, or of the empty database."""
        connection = connect()
        connection.deserialize("main", self.image if image is None else image)
        return connection

    def fill(
        self,
        vendor_id: str,
        tables: Mapping[str, Sequence[Sequence[Value]]],
        look: Callable[[Connection], object] | None = None,
    ) -> bytes:
        """Return the image of a new vendor with these rows, all rows of a table as long as its first.

        `look` is shown the database before it is rolled back.

        The rows are inserted into the template's own connection, which is then rolled back: an image depends on its
        own rows alone.

        Raises
        ------
        InvalidArgumentError
            A table is unknown or a row does not fit.
        """
        staging = self._staging
        if not tables:
            if look is not None:
                look(staging)
            return self.image
        staging.execute("BEGIN")
        table = ""
        try:
            for table, rows in tables.items():
                width = len(rows[0]) if rows else 0
                statement = self._inserts.get((table, width)) or self._insert(table, width)
                staging.executemany(statement, _without_nan(rows))
            if self._has_virtual:  # Full-text search keeps what is new in memory until a savepoint or the commit.
                staging.execute("SAVEPOINT filled; RELEASE filled")
            if look is not None:
                look(staging)
            return staging.serialize("main")
        except (Error, TypeError, ValueError, OverflowError) as error:
            raise InvalidArgumentError(f"vendor {vendor_id[:60]!r}, table {table[:60]!r}: {error}") from error
        finally:
            staging.execute("ROLLBACK")

    def _insert(self, table: str, width: int) -> str:
        """Return the statement that inserts rows without the last columns if those have declared defaults."""
        columns = self._staging.execute("SELECT name, dflt_value FROM pragma_table_info(?)", (table,)).fetchall()
        if not columns:
            raise InvalidArgumentError("the schema has no such table")
        given = len(columns)
        while given > max(1, width) and columns[given - 1][1] is not None:
            given -= 1
        names = ", ".join(quote(str(name)) for name, _ in columns[:given])
        marks = ", ".join("?" * given)
        self._inserts[table, width] = f"INSERT INTO {quote(table)}({names}) VALUES({marks})"
        return self._inserts[table, width]

    def fits(self, connection: Connection) -> bool:
        """Whether a database has this schema, whatever its cookie."""
        return bool(connection.execute(_LAYOUT).fetchall() == self._staging.execute(_LAYOUT).fetchall())

    def adopt(self, image: bytes, vendor_id: str) -> bytes:
        """Return a foreign image in this template's form, or raise where it is damaged or of another schema.

        Raises
        ------
        InvalidArgumentError, CorruptImageError, SchemaMismatchError
        """
        if not isinstance(image, bytes):
            raise InvalidArgumentError(f"an image must be bytes, not {type(image).__name__}")
        who = f"the image for vendor {vendor_id[:60]!r}"
        image = with_journal(image, 1)
        with closing(open_checked(image, vendor_id)) as connection:
            encoding = connection.pragma("encoding")
            if encoding != "UTF-8":
                raise SchemaMismatchError(f"{who} is stored in {encoding}: convert it to UTF-8")
            if self._form(connection, image) != self._template_form:
                image = _rebuilt(image)
        with closing(open_checked(image, vendor_id)) as connection:
            if self._form(connection, image) != self._template_form:
                raise SchemaMismatchError(
                    f"{who} has another schema than this store, or the same made in another order; its tables are "
                    f"{_names(connection)}"
                )
        marked = image[:40] + struct.pack(">i", self.cookie) + image[44:]
        return with_application_id(marked, 0)

    @staticmethod
    def _form(connection: Connection, image: bytes) -> tuple[object, ...]:
        """Return what images of one cookie must share: page size, format number, reserved bytes, schema, root pages."""
        return (
            image[16:18],
            image[20],
            image[44:48],
            connection.pragma("auto_vacuum"),
            connection.execute(_LAYOUT).fetchall(),
        )


def _rebuilt(image: bytes) -> bytes:
    """Return the image vacuumed to a template's page size: in a file, for VACUUM in memory keeps the page size."""
    with TemporaryDirectory(prefix="mktsim-") as folder:
        path = Path(folder) / "image.sqlite"
        path.write_bytes(image)
        with closing(connect(str(path))) as connection:
            for pragma in (
                "journal_mode = OFF",
                "synchronous = OFF",
                f"page_size = {PAGE_SIZE_BYTES}",
                "auto_vacuum = 0",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            connection.execute("VACUUM")
            return connection.serialize("main")


def open_quickly(image: bytes, vendor_id: str) -> Connection:
    """Return an in-memory connection on a copy of `image`; its header and schema have been read, no more.

    Raises
    ------
    CorruptImageError
    """
    who = f"the image of vendor {vendor_id[:60]!r}"
    if len(image) < 512 or not image.startswith(_MAGIC):
        raise CorruptImageError(f"{who} is no SQLite database: {len(image)} bytes", vendor_id=vendor_id)
    connection = connect()
    try:
        connection.deserialize("main", image)
        connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchall()
    except Error as error:
        connection.close(True)
        raise CorruptImageError(f"{who} is damaged: {error}", vendor_id=vendor_id) from error
    return connection


def open_checked(image: bytes, vendor_id: str) -> Connection:
    """Return what :func:`open_quickly` does once SQLite has checked the integrity of the whole image."""
    connection = open_quickly(image, vendor_id)
    try:
        found = str(connection.execute("PRAGMA integrity_check(3)").fetchall()[0][0])
    except Error as error:
        found = str(error)
    if found != "ok":
        connection.close(True)
        raise CorruptImageError(
            f"the image of vendor {vendor_id[:60]!r} is damaged: {found[:200]}", vendor_id=vendor_id
        )
    return connection


def checked(image: bytes, vendor_id: str) -> bytes:
    """Return `image` itself once its integrity has been checked."""
    open_checked(image, vendor_id).close(True)
    return image


def _without_nan(rows: Iterable[Sequence[Value]]) -> Iterable[Sequence[Value]]:
    for row in rows:
        for value in row:
            if value != value:
                raise ValueError("NaN cannot be stored (SQLite would make it NULL): pass None")
        yield row


def _names(connection: Connection) -> str:
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name LIMIT 10").fetchall()
    return ", ".join(str(name) for (name,) in names) or "none"
