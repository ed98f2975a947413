"""What may be asked of a store, and the names its errors bear: ids, reading only, storage errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mktsim.errors import (
    CorruptImageError,
    EvaluationError,
    InvalidArgumentError,
    MktsimError,
    StorageError,
    UnknownVendorError,
    cause,
    shortened,
)
from mktsim.sqlite import SQLITE_DENY, SQLITE_OK, CorruptError, Error, NotADBError, driver

# Reading, by the names SQLite's authorizer uses. Transactions are reading too: they make a snapshot.
_READING = frozenset(
    getattr(driver, f"SQLITE_{name}") for name in ("SELECT", "READ", "FUNCTION", "RECURSIVE", "TRANSACTION")
)
_READING_PRAGMAS = frozenset(
    (
        *("application_id", "data_version", "encoding", "page_count", "page_size", "schema_version", "user_version"),
        *("foreign_key_check", "foreign_key_list", "index_info", "index_list", "index_xinfo"),
        *("integrity_check", "quick_check", "table_info", "table_list", "table_xinfo"),
    )
)


# What SQLite raises where the file system, not the statement, is at fault.
_SYSTEM_ERRORS = (driver.FullError, driver.IOError, driver.CantOpenError, driver.BusyError, driver.ReadOnlyError)

#: The longest vendor id that is accepted, in characters.
MAX_VENDOR_ID_CHARACTERS = 10_000


def shown(vendor_id: str) -> str:
    """Return an id as error messages show it: quoted and cut to a line."""
    return repr(vendor_id) if len(vendor_id) <= 60 else f"{vendor_id[:57]!r}... ({len(vendor_id)} characters)"


def check_vendor_id(vendor_id: object) -> str:
    """Return `vendor_id`, or raise :class:`InvalidArgumentError` where it cannot be one.

    Examples
    --------
    >>> check_vendor_id("Zoë's/shop")
    "Zoë's/shop"
    """
    if not isinstance(vendor_id, str):
        raise InvalidArgumentError(f"a vendor id must be a string, not {type(vendor_id).__name__}")
    if not 0 < len(vendor_id) <= MAX_VENDOR_ID_CHARACTERS:
        raise InvalidArgumentError(
            f"a vendor id must have 1 to {MAX_VENDOR_ID_CHARACTERS} characters, not {len(vendor_id)}"
        )
    try:
        vendor_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"vendor id {shown(vendor_id)} is not valid Unicode: {error}") from None
    return vendor_id


def allow_only_reading(action: int, first: str | None, second: str | None, _schema: object, _trigger: object) -> int:
    """Answer SQLite's authorizer: reading is allowed, everything else denied."""
    if action in _READING or (action == driver.SQLITE_PRAGMA and first in _READING_PRAGMAS):
        return SQLITE_OK
    return SQLITE_DENY


@contextmanager
def named_errors(what: str, vendor_id: str = "", path: Path | None = None) -> Iterator[None]:
    """Turn SQLite's and the system's errors inside the block into this package's storage errors.

    They name `what`, then the file and the vendor where a `path` is given: put together only when something is wrong.
    """
    try:
        yield
    except MktsimError:  # Some of them are OSErrors too.
        raise
    except (Error, OSError) as error:
        where = what if path is None else f"{what} {path}, vendor {shown(vendor_id)}"
        if isinstance(error, (CorruptError, NotADBError)):
            message = f"{where}: damaged: {shortened(error)}; restore it from a copy"
            raise CorruptImageError(message, vendor_id=vendor_id) from error
        raise StorageError(f"{where}: {shortened(error)}") from cause(error)


@contextmanager
def vendor_errors(vendor_id: str) -> Iterator[None]:
    """Name the vendor where its database is damaged or cannot be read or written; other errors are the block's own."""
    try:
        yield
    except MktsimError:
        raise
    except (CorruptError, NotADBError, *_SYSTEM_ERRORS) as error:
        with named_errors(f"vendor {shown(vendor_id)}", vendor_id):
            raise error


def scan_error(error: Exception, vendor_id: str, sql: str) -> CorruptImageError | EvaluationError:
    """Return the named error for a statement that failed on a vendor."""
    if isinstance(error, (CorruptError, NotADBError)):
        message = f"vendor {shown(vendor_id)}: database damaged: {error}; restore it from a copy"
        return CorruptImageError(message, vendor_id=vendor_id)
    return EvaluationError(f"vendor {shown(vendor_id)}: {error}", sql=sql)


def unknown(vendor_id: str) -> UnknownVendorError:
    """Return the error for a vendor that does not exist."""
    return UnknownVendorError(f"no vendor {shown(vendor_id)}: create it first, or check the spelling")
