"""Nouns: the kinds of thing a durable object keeps, each a table with typed columns.

Rules
-----
Every table has ``id TEXT PRIMARY KEY`` and ``vendorId TEXT NOT NULL``, and `vendorId` holds the owner's own id in every
row: the planner sends ``WHERE vendorId = ?`` to one vendor alone on the strength of that. The DDL names no vendor, so
it is the same, byte for byte, in every vendor's database.

Theory of operation
-------------------
``_vendor`` is a table of one row that says whose database this is; a trigger on each noun's table compares an inserted
row with it, which costs 0.4 us a row. UPDATE needs no trigger: the guard of `mktsim.objects.sql` denies an object's
code to write that column, or any table whose name starts with an underscore. Both together cost one page of 512 bytes
and about 1 KB of schema text per vendor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mktsim.errors import InvalidArgumentError
from mktsim.sql.schema import Schema
from mktsim.sqlite import Error, connect, driver, quote

#: What the insert trigger raises when a row carries an id that is not the owner's.
FOREIGN_ROW: Final = "vendorId of another"

#: The tables every durable object has beside its nouns: whose database it is and the last serial number given out,
#: the events it has still to deliver (dead letters have an error), and the calls it has applied for others.
INTERNAL: Final = (
    "CREATE TABLE _vendor(id TEXT NOT NULL, serial INTEGER NOT NULL)",
    "CREATE TABLE _outbox(seq INTEGER PRIMARY KEY, event TEXT NOT NULL, data TEXT NOT NULL, error TEXT)",
    "CREATE TABLE _inbox(sender TEXT, seq INT, part TEXT, answer TEXT, PRIMARY KEY(sender, seq, part)) WITHOUT ROWID",
)

_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_TYPE: Final = re.compile(r"(TEXT|INTEGER|REAL|BLOB)\b[^;]*")
_FIXED: Final = (("id", "TEXT PRIMARY KEY"), ("vendorId", "TEXT NOT NULL"))


@dataclass(frozen=True, slots=True)
class Noun:
    """A kind of thing; made by :func:`noun`.

    Attributes
    ----------
    name : str
        As code says it, ``"Product"``.
    table : str
        The table its things are rows of, ``"products"``.
    columns : tuple of (str, str)
        Name and declared type of every column in order, `id` and `vendorId` first.
    indexes : tuple of tuple of str
        The columns of each secondary index.
    """

    name: str
    table: str
    columns: tuple[tuple[str, str], ...]
    indexes: tuple[tuple[str, ...], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(name for name, _ in self.columns)

    def ddl(self) -> tuple[str, ...]:
        """Return the statements that make the table, its indexes and the trigger that keeps other vendors' rows out."""
        table = _written(self.table)
        columns = ", ".join(f"{_written(name)} {kind}" for name, kind in self.columns)
        return (
            f"CREATE TABLE {table}({columns})",
            *(
                f"CREATE INDEX {_written('_'.join((self.table, *index)))} ON {table}({', '.join(map(_written, index))})"
                for index in self.indexes
            ),
            (
                f"CREATE TRIGGER {_written(f'{self.table}_own')} BEFORE INSERT ON {table} WHEN NEW.vendorId IS NOT "
                f"(SELECT id FROM _vendor) BEGIN SELECT RAISE(ABORT, '{FOREIGN_ROW}'); END"
            ),
        )


def noun(
    name: str,
    columns: Mapping[str, str] | None = None,
    *,
    indexes: Iterable[str | Sequence[str]] = (),
    table: str | None = None,
) -> Noun:
    """Declare a kind of thing.

    Parameters
    ----------
    name : str
        Letters, digits and underscores, a letter first.
    columns : mapping of str to str, optional
        Column name to declared type: TEXT, INTEGER, REAL or BLOB and what SQLite allows after it. `id` and `vendorId`
        come by themselves.
    indexes : iterable of str or of sequences of str
        Columns to index. Each index costs every vendor a page, and a vendor's tables are small: none is the default.
    table : str, optional
        The table's name; the plural of `name` in lower case when absent.

    Raises
    ------
    InvalidArgumentError
        If a name is no identifier or SQLite does not take the declaration.

    Examples
    --------
    >>> noun("Category", {"title": "TEXT NOT NULL", "depth": "INTEGER"}).ddl()[0]
    'CREATE TABLE categories(id TEXT PRIMARY KEY, vendorId TEXT NOT NULL, title TEXT NOT NULL, depth INTEGER)'
    """
    made = Noun(
        _identifier("a noun", name),
        _identifier("a table", _plural(name) if table is None else table),
        _FIXED
        + tuple((_identifier("a column", column), _type(column, kind)) for column, kind in (columns or {}).items()),
        tuple((index,) if isinstance(index, str) else tuple(index) for index in indexes),
    )
    if made.table.lower().startswith("sqlite_"):
        raise InvalidArgumentError(f"table {made.table!r} of noun {name!r}: SQLite keeps names that start with sqlite_")
    scratch = connect()
    try:
        for statement in (INTERNAL[0], *made.ddl()):
            scratch.execute(statement)
        found = tuple(str(row[1]) for row in scratch.execute(f"PRAGMA table_info({quote(made.table)})"))
    except Error as error:
        raise InvalidArgumentError(f"noun {name!r}: SQLite does not take its declaration: {error}") from error
    finally:
        scratch.close()
    if found != made.names:
        raise InvalidArgumentError(f"noun {name!r}: a declared type makes more than its column: {dict(columns or {})}")
    return made


def object_schema(*nouns: Noun) -> Schema:
    """Return the schema of an object's database: the internal tables and those of the nouns.

    Raises
    ------
    InvalidArgumentError
        If two nouns share a name or a table.
    """
    for what, names in (("name", [each.name for each in nouns]), ("table", [each.table.lower() for each in nouns])):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InvalidArgumentError(f"two nouns share the {what} {', '.join(sorted(twice))}")
    return Schema((*INTERNAL, *(statement for each in nouns for statement in each.ddl())), shard_column="vendorId")


def _identifier(what: str, text: object) -> str:
    if not isinstance(text, str) or _IDENTIFIER.fullmatch(text) is None:
        raise InvalidArgumentError(
            f"{what}'s name must be 1 to 63 letters, digits and underscores, a letter first, not {text!r:.80}"
        )
    return text


def _type(column: str, kind: object) -> str:
    if not isinstance(kind, str) or len(kind) > 500 or _TYPE.fullmatch(kind) is None:
        raise InvalidArgumentError(
            f"column {column!r}: a type is TEXT, INTEGER, REAL or BLOB and more without semicolon, not {kind!r:.80}"
        )
    return kind


def _written(name: str) -> str:
    """Return an identifier as short as SQLite takes it, for the text is stored once per vendor."""
    return quote(name) if name.upper() in driver.keywords else name


def _plural(name: str) -> str:
    lower = str(name).lower()
    if re.search("[^aeiou]y$", lower):
        return f"{lower[:-1]}ies"
    return f"{lower}es" if lower.endswith(("s", "x", "z", "ch", "sh")) else f"{lower}s"
