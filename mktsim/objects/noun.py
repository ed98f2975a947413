"""Nouns: the kinds of thing a durable object keeps, each a table with typed columns.

Rules
-----
Every table has ``id TEXT PRIMARY KEY`` and ``vendorId TEXT NOT NULL``, and `vendorId` holds the owner's own id in every
row: the planner sends ``WHERE vendorId = ?`` to one vendor alone on the strength of that. The DDL names no vendor, so
it is the same, byte for byte, in every vendor's database.

Theory of operation
-------------------
``_vendor`` is a table of one row that says whose database this is. The guard of `mktsim.objects.sql` keeps an object's
code from writing another id into `vendorId`, and from writing to any table whose name starts with an underscore.

``things`` is a view over all nouns: `type` (the noun's name), `id`, `vendorId`, one column for each facet, which is
NULL where a noun has no such column, and `data`, the other columns as a JSON object. A vendor answers ``SELECT * FROM
things WHERE type = ? AND category = ?`` whole; over all vendors the planner collects the nouns' rows and SQLite
evaluates the view on them: exact, but a query on the noun's own table ships less. Its text is stored once per vendor
and costs about a page for every four nouns; bytes per vendor are the price of isolation, so that declarations are
written as short as SQLite takes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mktsim.errors import InvalidArgumentError, cause, shortened
from mktsim.sql.schema import Schema, Summarised
from mktsim.sqlite import Error, connect, driver, quote

#: The tables every durable object has beside its nouns: whose database it is, the last serial number given out and
#: when its alarm rings; the events it has still to deliver (dead letters have an error); the calls it has applied.
INTERNAL: Final = (
    "CREATE TABLE _vendor(id TEXT NOT NULL, serial INTEGER NOT NULL, alarm REAL DEFAULT NULL)",
    "CREATE TABLE _outbox(seq INTEGER PRIMARY KEY, event TEXT NOT NULL, data TEXT NOT NULL, error TEXT)",
    "CREATE TABLE _inbox(sender TEXT, seq INT, part TEXT, answer TEXT, PRIMARY KEY(sender, seq, part)) WITHOUT ROWID",
)

_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_TYPE: Final = re.compile(r"(TEXT|INTEGER|REAL|BLOB)\b[^;]*")
_VIEW: Final = "things"
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
    compact : bool
        Whether rows live in the index of their ids, which saves a page a vendor; they are listed in order of id.
    summarised : Summarised or None
        What a store knows of the table without reading it.
    names : tuple of str
        The names of the columns, in order.
    affinity : mapping of str to str
        Column name to TEXT, INTEGER, REAL or BLOB.

    Examples
    --------
    >>> product = noun("Product", {"name": "TEXT NOT NULL", "price": "REAL"})
    >>> product.table, product.names
    ('products', ('id', 'vendorId', 'name', 'price'))
    >>> print(product.ddl()[0])
    CREATE TABLE products(id TEXT PRIMARY KEY, vendorId TEXT NOT NULL, name TEXT NOT NULL, price REAL)
    """

    name: str
    table: str
    columns: tuple[tuple[str, str], ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    compact: bool = False
    summarised: Summarised | None = None
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    affinity: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(name for name, _ in self.columns))
        object.__setattr__(self, "affinity", {name: kind.split()[0].upper() for name, kind in self.columns})

    @property
    def order(self) -> str:
        """The column that things are listed by."""
        return "id" if self.compact else "rowid"

    def new_id(self, serial: int) -> str:
        """Return the id of a thing that was given none; those of compact nouns sort by age."""
        return f"{self.name.lower()}-{serial:09d}" if self.compact else f"{self.name.lower()}-{serial}"

    def ddl(self) -> tuple[str, ...]:
        """Return the statements that make the table and its indexes."""
        table = _written(self.table)
        columns = ", ".join(f"{_written(name)} {kind}" for name, kind in self.columns)
        return (
            f"CREATE TABLE {table}({columns}){' WITHOUT ROWID' if self.compact else ''}",
            *(
                f"CREATE INDEX {_written('_'.join((self.table, *index)))} ON {table}({', '.join(map(_written, index))})"
                for index in self.indexes
            ),
        )

    def select(self, facets: Sequence[str]) -> str:
        """Return this noun's part of the view `things`."""
        shown = ",".join(_written(name) if name in self.names else "NULL" for name in facets)
        data = ",".join(f"'{name}',{_as_json(name, kind)}" for name, kind in self.columns[2:])
        columns = f"'{self.name}',id,vendorId,{shown + ',' if facets else ''}json_object({data})"
        return f"SELECT {columns}FROM {_written(self.table)}"


def noun(
    name: str,
    columns: Mapping[str, str] | None = None,
    *,
    indexes: Iterable[str | Sequence[str]] = (),
    references: Mapping[str, Noun] | None = None,
    table: str | None = None,
    compact: bool = False,
    summarised: Iterable[str] | None = None,
    grouped_by: str | None = None,
) -> Noun:
    """Declare a kind of thing.

    Parameters
    ----------
    name : str
        Letters, digits and underscores, a letter first.
    columns : mapping of str to str, optional
        Column name to declared type: TEXT, INTEGER, REAL or BLOB and what SQLite allows after it. `id` and `vendorId`
        come by themselves. What follows the type may be a default, NOT NULL or a CHECK.
    indexes : iterable of str or of sequences of str
        Columns to index. Each index costs every vendor a page, and a vendor's tables are small: none is the default.
    references : mapping of str to Noun, optional
        Columns that hold the id of a thing of another noun, or NULL: SQLite refuses any other value.
    table : str, optional
        The table's name; the plural of `name` in lower case when absent.
    compact : bool
        Keep rows in the index of their ids; see :class:`Noun`.
    summarised : iterable of str, optional
        REAL and INTEGER columns of which a store keeps each vendor's bounds, so that a query need not visit those that
        cannot matter; empty to keep counts alone.
    grouped_by : str, optional
        A TEXT column of few values: counts and bounds are kept for each of its values too.

    Raises
    ------
    InvalidArgumentError
        If a name is no identifier or SQLite does not take the declaration.

    Examples
    --------
    >>> noun("Category", {"title": "TEXT NOT NULL", "depth": "INTEGER"}).ddl()[0]
    'CREATE TABLE categories(id TEXT PRIMARY KEY, vendorId TEXT NOT NULL, title TEXT NOT NULL, depth INTEGER)'
    """
    kinds = {_identifier("a column", column): _type(column, kind) for column, kind in (columns or {}).items()}
    for column, other in (references or {}).items():
        if column not in kinds or not isinstance(other, Noun):
            raise InvalidArgumentError(
                f"noun {name!r:.80}: references name its own columns and nouns, not {column!r:.80}"
            )
        kinds[column] += f" REFERENCES {_written(other.table)}(id)"
    named = _identifier("a table", _plural(name) if table is None else table)
    summary = None
    if summarised is not None or grouped_by is not None:
        summary = Summarised(named, tuple(summarised or ()), grouped_by)
        for column in {*summary.columns, *([grouped_by] if grouped_by is not None else [])} - {*kinds}:
            raise InvalidArgumentError(f"noun {name!r:.80}: its summary has its own columns, not {column!r:.80}")
    made = Noun(
        _identifier("a noun", name),
        named,
        _FIXED + tuple(kinds.items()),
        tuple((index,) if isinstance(index, str) else tuple(index) for index in indexes),
        bool(compact),
        summary,
    )
    if made.table.lower().startswith("sqlite_"):
        raise InvalidArgumentError(f"table {made.table!r} of noun {name!r}: SQLite keeps names that start with sqlite_")
    scratch = connect()
    try:
        for statement in made.ddl():
            scratch.execute(statement)
        found = tuple(str(row[1]) for row in scratch.execute(f"PRAGMA table_info({quote(made.table)})"))
    except Error as error:
        message = f"noun {name!r:.80}: SQLite does not take its declaration: {shortened(error)}"
        raise InvalidArgumentError(message) from cause(error)
    finally:
        scratch.close()
    if found != made.names:
        raise InvalidArgumentError(f"noun {name!r}: a declared type makes more than its column: {dict(columns or {})}")
    return made


def object_schema(*nouns: Noun, facets: Sequence[str] = ("category",)) -> Schema:
    """Return the schema of an object's database: the internal tables, those of the nouns and the view `things`.

    Parameters
    ----------
    *nouns : Noun
    facets : sequence of str
        Columns of nouns that are columns of `things` too, where any noun has them.

    Raises
    ------
    InvalidArgumentError
        If two nouns share a name or a table, or a table is called as the view is.

    Examples
    --------
    >>> schema = object_schema(noun("Lamp", {"category": "TEXT"}), noun("Note"))
    >>> database = schema.database()
    >>> _ = database.execute("INSERT INTO lamps VALUES('l1', 'acme', 'desk')")
    >>> database.execute("SELECT * FROM things WHERE type = ? AND category = ?", ("Lamp", "desk")).fetchall()
    [('Lamp', 'l1', 'acme', 'desk', '{"category":"desk"}')]
    >>> database.close()
    """
    for what, names in (("name", [each.name for each in nouns]), ("table", [each.table.lower() for each in nouns])):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InvalidArgumentError(f"two nouns share the {what} {', '.join(sorted(twice))}")
    if any(each.table.lower() == _VIEW for each in nouns):
        raise InvalidArgumentError(f"a table cannot be called {_VIEW!r}: that is the view over all nouns")
    statements = [*INTERNAL, *(statement for each in nouns for statement in each.ddl())]
    if nouns:
        shown = [name for name in facets if any(name in each.names[2:] for each in nouns)]
        columns = ",".join(("type", "id", "vendorId", *map(_written, shown), "data"))
        union = " UNION ALL ".join(each.select(shown) for each in nouns)
        statements.append(f"CREATE VIEW {_VIEW}({columns})AS {union}")
    summarised = tuple(each.summarised for each in nouns if each.summarised is not None)
    return Schema(tuple(statements), shard_column="vendorId", summarised=summarised)


def _as_json(name: str, kind: str) -> str:
    """Return a column as JSON takes it: bytes in hexadecimal."""
    return f"hex({_written(name)})" if kind.startswith("BLOB") else _written(name)


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
