"""Migrations: from a vendor database of an earlier version of the schema to one of the present.

Rules
-----
A vendor is migrated once, whole or not at all: its new image, digest and version are one commit. Rows keep their
values, their order and their rowids; columns that are new take their defaults; tables and columns that are gone are
dropped.

Theory of operation
-------------------
There is no ALTER: a database is made anew from the present template, which alone decides its byte layout, and the rows
are copied, table by table, the columns that both have. Then the statements of every version after the image's own run
in order. They see the new database as `main` and the one before as `old`, so that a column that was renamed is filled
by ``UPDATE products SET title = (SELECT name FROM old.products AS o WHERE o.rowid = products.rowid)``.

The version of an image is its ``user_version``; 0, where nobody ever set it, is version 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from mktsim.errors import InvalidArgumentError, SchemaMismatchError
from mktsim.sqlite import Connection, Error, quote
from mktsim.storage.images import Template, open_checked

_TABLES = (
    "SELECT name, wr FROM pragma_table_list WHERE schema = ? AND type = 'table' "
    "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
)


@dataclass(frozen=True, slots=True)
class Migration:
    """The present version of a schema, and what to run on the way to it.

    Parameters
    ----------
    version : int
        From 1.
    statements : mapping of int to sequence of str
        What is run on arriving at a version, in the layout of the present one.

    Raises
    ------
    InvalidArgumentError
        The version is no whole number from 1, or statements lead beyond it.

    Examples
    --------
    The second version calls a product's name its title.

    >>> from tempfile import TemporaryDirectory
    >>> from mktsim.sql import Schema
    >>> from mktsim.storage import open_store
    >>> where = {"shards": ["s0"], "locate": lambda vendor_id: "s0"}
    >>> one, two = Schema(["CREATE TABLE products(name)"]), Schema(["CREATE TABLE products(title)"])
    >>> fill = "UPDATE products SET title = old.name FROM old.products AS old WHERE old.rowid = products.rowid"
    >>> with TemporaryDirectory() as folder:
    ...     with open_store("packed", folder, one, **where) as store:
    ...         store.create("acme", {"products": [("mouse",)]})
    ...     with open_store("packed", folder, two, **where, migration=Migration(2, {2: [fill]})) as store:
    ...         print(list(store.scan("s0", [("SELECT title FROM products", ())])))
    [('acme', ([('mouse',)],))]
    """

    version: int = 1
    statements: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.version, bool) or not isinstance(self.version, int) or not 1 <= self.version < 2**31:
            raise InvalidArgumentError(f"a schema's version is a whole number from 1, not {self.version!r:.80}")
        beyond = [version for version in self.statements if version not in range(2, self.version + 1)]
        if beyond:
            raise InvalidArgumentError(f"migrations lead to versions 2 to {self.version}, not {beyond[:10]}")


def migrated(template: Template, migration: Migration, image: bytes, vendor_id: str) -> bytes:
    """Return the image in the template's schema, with its rows.

    Raises
    ------
    SchemaMismatchError
        The image is of a later version, or a statement fails; the image itself is as it was.
    CorruptImageError
    """
    who = f"vendor {vendor_id[:60]!r}"
    open_checked(image, vendor_id).close(True)
    with closing(template.connection()) as new:
        new.execute("ATTACH ':memory:' AS old").fetchall()
        new.deserialize("old", image)
        version = int(new.pragma("user_version", schema="old")) or 1
        if version > migration.version:
            raise SchemaMismatchError(f"{who} is of version {version}, this program of {migration.version}: update it")
        try:
            new.execute("BEGIN")
            before = {str(name): bool(wr) for name, wr in new.execute(_TABLES, ("old",)).fetchall()}
            for name, without_rowid in new.execute(_TABLES, ("main",)).fetchall():
                if str(name) in before:
                    rowid = [] if without_rowid or before[str(name)] else ["rowid"]
                    shared = ", ".join([*rowid, *map(quote, _shared(new, str(name)))])
                    table = quote(str(name))
                    new.execute(f"INSERT INTO main.{table}({shared}) SELECT {shared} FROM old.{table}")
            for number in range(version + 1, migration.version + 1):
                for statement in migration.statements.get(number, ()):
                    new.execute(statement)
            broken = new.execute("PRAGMA main.foreign_key_check").fetchone()
            if broken is not None:
                raise SchemaMismatchError(f"{who} cannot be migrated: a row of {broken[0]!r} refers to nothing")
            new.execute(f"PRAGMA main.user_version = {migration.version}")
            new.execute("COMMIT")
        except Error as error:
            raise SchemaMismatchError(f"{who} cannot be migrated to version {migration.version}: {error}") from error
        if new.pragma("schema_version") != template.cookie:
            raise SchemaMismatchError(f"a migration of {who} changed the schema: its statements move rows only")
        return new.serialize("main")


def _shared(new: Connection, table: str) -> list[str]:
    columns = "SELECT name FROM pragma_table_info(?, ?)"
    old = {row[0] for row in new.execute(columns, (table, "old"))}
    return [str(row[0]) for row in new.execute(columns, (table, "main")).fetchall() if row[0] in old]
