"""A marketplace of a user's own DataFrames.

Rules
-----
Each frame becomes a table with the frame's columns, in order and by name; each vendor gets the rows that carry its id,
in the frame's order. Whole numbers and booleans become INTEGER, floating numbers REAL, text TEXT, bytes BLOB, dates ISO
text; a missing value (NaN, NaT, None) becomes NULL. The vendor column becomes TEXT, for an id is a name.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mktsim.errors import InvalidArgumentError
from mktsim.objects import DurableObject
from mktsim.objects.sql import Parameters
from mktsim.sql.schema import Schema
from mktsim.sqlite import Value, quote
from mktsim.storage import VendorStore

Row = tuple[Value, ...]


class FrameVendor(DurableObject):
    """A vendor whose tables came from frames: it can be queried, and nothing else."""

    def query(self, sql: str, params: Parameters = ()) -> list[tuple[Value, ...]]:
        """Run one statement that only reads, on this vendor's own database, and return its rows."""
        return self.sql.query(sql, params)


@dataclass(frozen=True, slots=True)
class FrameTables:
    """Frames as tables: the schema, and per table each vendor's rows."""

    schema: Schema
    rows: dict[str, dict[str, list[Row]]]


def tables_of(frames: Mapping[str, Any], vendor: str) -> FrameTables:
    """Turn frames into tables, all checked.

    Raises
    ------
    InvalidArgumentError
        See :meth:`mktsim.market.Marketplace.from_frames`.
    """
    if not frames:
        raise InvalidArgumentError("pass at least one frame by name, as in from_frames(products=frame)")
    statements: list[str] = []
    rows: dict[str, dict[str, list[Row]]] = {}
    for table, frame in frames.items():
        if not isinstance(frame, pd.DataFrame):
            raise InvalidArgumentError(f"{table} must be a DataFrame, not {type(frame).__name__}")
        if table.lower().startswith(("sqlite_", "_")) or table.lower() in {name.lower() for name in rows}:
            raise InvalidArgumentError(f"{table!r} cannot be a table's name: it is taken or kept for the platform")
        columns = list(frame.columns)
        if vendor not in columns:
            raise InvalidArgumentError(f"{table} has no column {vendor!r:.80}: name the one that holds the vendor's id")
        lower = [name.lower() if isinstance(name, str) and name and "\0" not in name else None for name in columns]
        if None in lower or len(set(lower)) != len(lower):
            raise InvalidArgumentError(
                f"{table}: columns must be named by different texts (case aside), not {columns[:20]!r}"
            )
        kinds, values = zip(
            *(_ids(frame[name], table) if name == vendor else _column(frame[name], table) for name in columns),
            strict=True,
        )
        declared = ", ".join(f"{quote(name)} {kind}" for name, kind in zip(columns, kinds, strict=True))
        statements.append(f"CREATE TABLE {quote(table)}({declared})")
        place = columns.index(vendor)
        rows[table] = {}
        for row in zip(*values, strict=True):
            rows[table].setdefault(row[place], []).append(row)
    schema = Schema(tuple(statements), shard_column=vendor)
    schema.database().close()
    return FrameTables(schema, rows)


def load(tables: FrameTables, store: VendorStore) -> int:
    """Create every vendor of the tables and return how many."""
    ids = sorted({vendor_id for rows in tables.rows.values() for vendor_id in rows})

    def vendors() -> Iterator[tuple[str, dict[str, list[Row]]]]:
        for vendor_id in ids:
            yield vendor_id, {table: rows[vendor_id] for table, rows in tables.rows.items() if vendor_id in rows}

    return store.create_many(vendors())


def _ids(column: pd.Series[Any], table: str) -> tuple[str, list[Value]]:
    ids: list[Value] = []
    for value in column.tolist():
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise InvalidArgumentError(
                f"{table}.{column.name}: a vendor's id is a text or a whole number, not {value!r:.80}"
            )
        ids.append(str(value))
    return "TEXT", ids


def _column(column: pd.Series[Any], table: str) -> tuple[str, list[Value]]:
    where = f"{table}.{column.name}"
    missing = column.isna().tolist()
    values = column.tolist()
    present = [value for value, absent in zip(values, missing, strict=True) if not absent]
    kind, convert = _kind(column, present, where)
    return kind, [None if absent else convert(value) for value, absent in zip(values, missing, strict=True)]


def _kind(column: pd.Series[Any], present: list[Any], where: str) -> tuple[str, Callable[[Any], Value]]:
    """Return the declared type of a column and what turns its values into SQLite's."""

    def whole(value: Any) -> int:
        if not -(2**63) <= int(value) < 2**63:
            raise InvalidArgumentError(f"{where}: {value!r:.80} does not fit 64 bits")
        return int(value)

    def text(value: Any) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"{where} is not valid Unicode: {error}") from None
        return str(value)

    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_integer_dtype(column.dtype):
        return "INTEGER", whole
    if pd.api.types.is_float_dtype(column.dtype):
        return "REAL", float
    if all(isinstance(value, str) for value in present):
        return "TEXT", text
    if all(isinstance(value, bool | int | np.integer | np.bool_) for value in present):
        return "INTEGER", whole
    if all(isinstance(value, int | float | np.number) for value in present):
        return "REAL", float
    if all(isinstance(value, bytes) for value in present):
        return "BLOB", bytes
    if all(isinstance(value, datetime.date | datetime.time) for value in present):
        return "TEXT", lambda value: str(value.isoformat())
    kinds = sorted({type(value).__name__ for value in present})
    raise InvalidArgumentError(f"{where} mixes {', '.join(kinds[:10])}: convert it to one type that SQLite has")
