"""The schema that every vendor database shares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mktsim.errors import InvalidArgumentError, cause, shortened
from mktsim.sqlite import Connection, Error, connect

#: Reads the statements that make a database, in an order in which they can be run again. The rows of sqlite_sequence
#: and the shadow tables of virtual tables are left out, for SQLite makes those itself.
SCHEMA_QUERY = (
    "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
    "ORDER BY rowid"
)


@dataclass(frozen=True, slots=True)
class Summarised:
    """A table of which a store keeps, for each vendor, how many rows there are and how its columns are bounded.

    Attributes
    ----------
    table : str
    columns : tuple of str
        Columns declared REAL or INTEGER: of each the smallest and the largest value and the count are kept.
    by : str or None
        A TEXT column of few distinct values: the same is kept for each of its values.
    """

    table: str
    columns: tuple[str, ...] = ()
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Schema:
    """DDL shared by all vendor databases.

    Parameters
    ----------
    statements : sequence of str
        DDL statements in the order in which they run.
    shard_column : str, optional
        A column which, in every table that has it, holds the vendor's own id in every row of that vendor's database.
        Only then may a condition on it send a statement to one vendor alone.
    summarised : sequence of Summarised
        What stores that can keep summaries keep; see `mktsim.storage.summaries`.

    Raises
    ------
    InvalidArgumentError
        A value is not of its kind. What SQLite thinks of the statements shows when a database is made.

    Attributes
    ----------
    digest : str
        SHA-256 of the statements, in hex: two databases of equal digest may share compiled statements.

    Examples
    --------
    >>> schema = Schema(("CREATE TABLE products(id, vendorId TEXT, price REAL)",), shard_column="vendorId")
    >>> len(schema.digest)
    64
    """

    statements: tuple[str, ...]
    shard_column: str | None = None
    summarised: tuple[Summarised, ...] = ()
    digest: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, kind, what in (("statements", str, "DDL texts"), ("summarised", Summarised, "Summarised tables")):
            given: Any = getattr(self, name)
            listed = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else None
            if listed is None or not all(isinstance(each, kind) for each in listed):
                raise InvalidArgumentError(f"Schema.{name} must be a sequence of {what}, not {given!r:.80}")
            object.__setattr__(self, name, listed)
        if self.shard_column is not None and not isinstance(self.shard_column, str):
            raise InvalidArgumentError(f"Schema.shard_column must be a name or None, not {self.shard_column!r:.80}")
        text = "\0".join(self.statements)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())

    def create_in(self, connection: Connection) -> None:
        """Run the DDL in an empty database."""
        for statement in self.statements:
            try:
                connection.execute(statement)
            except Error as error:
                message = f"schema statement fails: {shortened(error)}: {statement[:200]!r}"
                raise InvalidArgumentError(message) from cause(error)

    def database(self) -> Connection:
        """Return a new in-memory database that has this schema and no rows."""
        connection = connect()
        self.create_in(connection)
        return connection

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[Any]], *, shard_column: str | None = None) -> Schema:
        """Build a schema from the rows that :data:`SCHEMA_QUERY` returns.

        Raises
        ------
        InvalidArgumentError
            They are no such rows.
        """
        try:
            entries = [(kind, name, sql) for kind, name, sql in rows]
        except (TypeError, ValueError):
            entries = [("", "", None)]
        if isinstance(rows, str) or not all(isinstance(value, str) for entry in entries for value in entry):
            raise InvalidArgumentError(
                f"a schema is read from rows of (type, name, sql), which SCHEMA_QUERY returns, not from {rows!r:.80}"
            )
        virtual = [name for _, name, sql in entries if sql.lstrip()[:14].upper() == "CREATE VIRTUAL"]
        return cls(
            tuple(
                sql
                for kind, name, sql in entries
                if not (kind == "table" and any(name.startswith(f"{owner}_") for owner in virtual))
            ),
            shard_column=shard_column,
        )

    @classmethod
    def read(cls, execute: Callable[[str], Iterable[Sequence[Any]]], *, shard_column: str | None = None) -> Schema:
        """Read the schema of an existing database through any callable that runs a statement.

        Raises
        ------
        InvalidArgumentError
            It cannot be called, or returns no rows of a schema.
        """
        if not callable(execute):
            raise InvalidArgumentError(f"a schema is read by a callable that runs a statement, not by {execute!r:.80}")
        return cls.from_rows(execute(SCHEMA_QUERY), shard_column=shard_column)
