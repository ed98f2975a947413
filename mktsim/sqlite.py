"""The one place that names the SQLite driver.

Every database of this package, a vendor's, a shard file's, the gather's, runs on the SQLite that the `apsw` wheel
bundles, so that one version of SQLite answers everywhere whatever the interpreter was built with. Other modules take
the driver's names from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import apsw
from apsw import (
    SQLITE_DENY,
    SQLITE_FUNCTION,
    SQLITE_OK,
    SQLITE_OPEN_CREATE,
    SQLITE_OPEN_READONLY,
    SQLITE_OPEN_READWRITE,
    SQLITE_OPEN_URI,
    SQLITE_READ,
    SQLITE_RECURSIVE,
    SQLITE_SELECT,
    VFS,
    AuthError,
    BusyError,
    Connection,
    ConstraintError,
    CorruptError,
    Cursor,
    Error,
    ExecTraceAbort,
    FullError,
    InterruptError,
    NotADBError,
    SQLError,
    VFSFile,
)

__all__ = [
    "SQLITE_DENY",
    "SQLITE_FUNCTION",
    "SQLITE_OK",
    "SQLITE_OPEN_CREATE",
    "SQLITE_OPEN_READONLY",
    "SQLITE_OPEN_READWRITE",
    "SQLITE_OPEN_URI",
    "SQLITE_READ",
    "SQLITE_RECURSIVE",
    "SQLITE_SELECT",
    "STATEMENT_CLOCK",
    "VERSION",
    "VFS",
    "AuthError",
    "BusyError",
    "Connection",
    "ConstraintError",
    "CorruptError",
    "Cursor",
    "Error",
    "ExecTraceAbort",
    "FullError",
    "InterruptError",
    "NotADBError",
    "SQLError",
    "VFSFile",
    "Value",
    "connect",
    "driver",
    "quote",
    "rows",
    "transaction",
]

#: A value SQLite can hold.
Value = None | int | float | str | bytes

#: The SQLite version in force, for the provenance of results.
VERSION: Final[str] = apsw.sqlite_lib_version()

#: The driver module itself, for the few constants that are looked up by name.
driver: Final = apsw


def connect(path: str = ":memory:", *, flags: int | None = None, vfs: str | None = None) -> Connection:
    """Open a database with this package's defaults.

    Parameters
    ----------
    path : str
        A file, a URI, or `":memory:"`.
    flags : int, optional
        SQLite open flags; read-write and create when absent.
    vfs : str, optional
        Name of a registered VFS.

    Returns
    -------
    Connection
        SQLite's own defaults otherwise, so that answers are those of a plain SQLite.
    """
    return Connection(
        path,
        flags=SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI if flags is None else flags,
        vfs=vfs,
    )


@contextmanager
def transaction(connection: Connection, *, mode: str = "IMMEDIATE") -> Iterator[Connection]:
    """Run the block in one transaction: committed at its end, rolled back if it raises."""
    connection.execute(f"BEGIN {mode}")
    try:
        yield connection
    except BaseException:
        if not connection.get_autocommit():
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def rows(connection: Connection, sql: str, bindings: Any = ()) -> list[tuple[Any, ...]]:
    """Return all rows of a statement."""
    return connection.execute(sql, bindings).fetchall()


class StatementClock(VFS):
    """A clock that stands still while a statement runs: every 'now' of it is one instant.

    SQLite itself promises that only within one step, so that a long answer could see time pass.

    Attributes
    ----------
    unix_ms : int
        The instant, in milliseconds since 1970.
    """

    NAME: Final = "mktsim-statement-clock"

    def __init__(self) -> None:
        self.unix_ms = 0
        super().__init__(self.NAME, "")

    def xCurrentTimeInt64(self) -> int:
        """Return the instant in milliseconds since the Julian epoch."""
        return self.unix_ms + 210_866_760_000_000

    def xCurrentTime(self) -> float:
        """Return the instant in days since the Julian epoch."""
        return self.xCurrentTimeInt64() / 86_400_000


STATEMENT_CLOCK: Final = StatementClock()


def quote(name: str) -> str:
    """Quote an identifier for use in SQL.

    Examples
    --------
    >>> print(quote('unit "price" net'))
    "unit ""price"" net"
    """
    return '"' + name.replace('"', '""') + '"'
