"""The error hierarchy. Every error this package raises on purpose is one of these.

.. code-block:: text

    MktsimError
    ├── InvalidArgumentError (ValueError)      an argument is wrong; nothing was done
    │   ├── UnknownVendorError (KeyError)      no vendor has that id
    │   ├── UnknownNodeError (KeyError)        no node of the placement has that id
    │   ├── EmptyFleetError (LookupError)      nothing to ask, and no schema to plan with
    │   ├── NotOpenError (AttributeError)      the marketplace was not awaited
    │   └── DuplicateError                     the id is taken
    ├── QueryError (ValueError)                the statement is at fault; carries sql and position
    │   ├── SQLSyntaxError                     SQLite cannot prepare it
    │   ├── ReadOnlyError (PermissionError)    it would write
    │   ├── ParameterError                     parameters do not fit the statement
    │   ├── UnsupportedQueryError              it has no meaning over many databases
    │   ├── EvaluationError                    SQLite failed while computing it (integer overflow, ...)
    │   └── QueryTooLargeError (MemoryError)   a cap on rows or bytes was reached
    ├── VendorError (RuntimeError)             one vendor failed; carries vendor_id
    │   ├── VendorTimeoutError (TimeoutError)
    │   ├── VendorDownError (ConnectionError)
    │   └── OverloadedError                    its request queue is full
    ├── IncompleteAnswerError (RuntimeError)   some vendors did not answer; carries answered and missing
    ├── StorageError (OSError)                 a store cannot be read or written
    │   ├── CorruptImageError                  a vendor's database image is damaged
    │   ├── SchemaMismatchError                an image or store was made for another schema
    │   ├── LostFileError (FileNotFoundError)  a file that held data is gone or empty; carries path
    │   └── StaleReplicaError                  a replica may not answer: ask the shard itself
    ├── ObjectError (RuntimeError)             a durable object refused a request
    │   ├── NotCallableError (AttributeError)  the method is not open to callers
    │   ├── IsolationError (PermissionError)   code tried to leave its own database
    │   └── OrderError (ValueError)            an order cannot be placed or moved
    │       └── OutOfStockError
    ├── SimulationError (RuntimeError)         the simulated world cannot go on
    ├── CalibrationError (ValueError)          measurements do not follow the model they were taken for
    ├── ResourceLimitError (OSError)           the system allows less than is about to be needed
    ├── ClusterError (BrokenExecutor)          the workers of a cluster are lost, or none can be reached
    └── MissingExtraError (ImportError)        an optional dependency is not installed

What is given all the same, though it may mislead, comes with a warning of its own class:

.. code-block:: text

    StudyWarning (UserWarning)
    ├── UndercoverageWarning                   an interval is likely to hold the truth less often than it says
    └── ExtrapolationWarning                   a tail is read beyond the samples that it was fitted to
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import BrokenExecutor
from typing import Final

#: Characters that a message shows of a text of somebody else's, which may be a million long.
_SHOWN: Final = 300


def shortened(text: object) -> str:
    """Return the text of an error, or another that enters a message, without its middle where it is long.

    SQLite quotes what it stumbles over, and the system the path that it cannot take, at their whole length.

    Parameters
    ----------
    text : object
        What ``str`` is called on.

    Returns
    -------
    str
        At most 300 characters: its beginning and its end.

    Examples
    --------
    >>> shortened(ValueError("no such table")), len(shortened("x" * 1_000_000))
    ('no such table', 300)
    """
    whole = str(text)
    return whole if len(whole) <= _SHOWN else f"{whole[: _SHOWN - 103]}...{whole[-100:]}"


def cause(error: Exception) -> Exception | None:
    """Return an error where a traceback can show it as a cause, None where its text would bury ours.

    Parameters
    ----------
    error : Exception
        What an error of this package is raised from.

    Returns
    -------
    Exception or None
        The same; None where its text is longer than 300 characters.

    Examples
    --------
    >>> cause(ValueError("no such table"))
    ValueError('no such table')
    >>> print(cause(ValueError("no such column: " + "x" * 1_000_000)))
    None
    """
    return error if len(str(error)) <= _SHOWN else None


class MktsimError(Exception):
    """Base of all errors of this package: catch it to catch them all.

    Examples
    --------
    >>> from mktsim import ConsistentHashRing
    >>> try:
    ...     ConsistentHashRing(["s0"], virtual_nodes=-1)
    ... except MktsimError as error:
    ...     print(type(error).__name__)
    InvalidArgumentError
    """


class InvalidArgumentError(MktsimError, ValueError):
    """An argument is wrong and nothing was done: correct it and call again."""


class UnknownVendorError(InvalidArgumentError, KeyError):
    """No vendor has this id: onboard it first, or check the spelling."""

    __str__ = Exception.__str__  # KeyError would show the message's repr


class UnknownNodeError(InvalidArgumentError, KeyError):
    """The placement has no such node: add it first."""

    __str__ = Exception.__str__


class EmptyFleetError(InvalidArgumentError, LookupError):
    """There is nothing to ask: pass at least one scanner, or a schema to answer as an empty fleet would."""


class NotOpenError(InvalidArgumentError, AttributeError):
    """The marketplace is not open yet: ``await Marketplace.open(...)``, or use it by ``async with``."""


class DuplicateError(InvalidArgumentError):
    """The id is already taken: choose another, or update what is there."""


class QueryError(MktsimError, ValueError):
    """The statement is at fault: the message says where and why; correct it and ask again.

    Attributes
    ----------
    sql : str
        The statement as it was given.
    position : int or None
        Offset into `sql` (characters) where SQLite or the planner saw the fault, if known.
    """

    def __init__(self, message: str, *, sql: str = "", position: int | None = None) -> None:
        message = shortened(message)
        shown = sql if len(sql) <= _SHOWN else sql[: _SHOWN - 3] + "..."
        where = f" (at character {position})" if position is not None else ""
        super().__init__(f"{message}{where}" + (f"\n  in: {shown}" if shown else ""))
        self.message = message
        self.sql = sql
        self.position = position

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_query_error, (type(self), self.message, self.sql, self.position)


def _rebuild_query_error(kind: type[QueryError], message: str, sql: str, position: int | None) -> QueryError:
    return kind(message, sql=sql, position=position)


class SQLSyntaxError(QueryError):
    """SQLite cannot prepare the statement: read the message, which is SQLite's own, and correct the text."""


class ReadOnlyError(QueryError, PermissionError):
    """`query` only reads: send writes to the vendor that owns the rows, through its stub."""


class ParameterError(QueryError):
    """The parameters do not fit the statement's placeholders: pass exactly one value for each."""


class UnsupportedQueryError(QueryError):
    """The statement has no meaning over many databases: the message names the clause and the way out."""


class EvaluationError(QueryError):
    """SQLite itself failed while computing the answer, as it would have over one database: mend what it names."""


class QueryTooLargeError(QueryError, MemoryError):
    """A cap on rows or bytes was reached: narrow the statement or raise the cap the message names."""


class VendorError(MktsimError, RuntimeError):
    """One vendor failed: see to the vendor that `vendor_id` names, or `allow_partial=True` to do without it.

    Attributes
    ----------
    vendor_id : str
        The vendor, or the scanner where several vendors stand behind one.
    """

    def __init__(self, message: str, *, vendor_id: str) -> None:
        super().__init__(message)
        self.vendor_id = vendor_id

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_vendor_error, (type(self), str(self), self.vendor_id)


def _rebuild_vendor_error(kind: type[VendorError], message: str, vendor_id: str) -> VendorError:
    return kind(message, vendor_id=vendor_id)


class VendorTimeoutError(VendorError, TimeoutError):
    """A vendor did not answer before the deadline: allow more time, or `allow_partial=True`."""


class VendorDownError(VendorError, ConnectionError):
    """A vendor cannot be reached: retry later, or `allow_partial=True`."""


class OverloadedError(VendorError):
    """A vendor's request queue is full: back off and retry."""


class IncompleteAnswerError(MktsimError, RuntimeError):
    """Some vendors did not answer: ask again, allow more time, or `allow_partial=True` for what the others say.

    Attributes
    ----------
    answered : int
        How many vendors answered.
    missing : tuple of str
        The ids that did not.
    """

    def __init__(self, message: str, *, answered: int, missing: Iterable[str]) -> None:
        super().__init__(message)
        self.answered = answered
        self.missing = tuple(missing)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_incomplete, (str(self), self.answered, self.missing)


def _rebuild_incomplete(message: str, answered: int, missing: tuple[str, ...]) -> IncompleteAnswerError:
    return IncompleteAnswerError(message, answered=answered, missing=missing)


class StorageError(MktsimError, OSError):
    """A store cannot be read or written: the message names the file and what SQLite or the system said."""


class CorruptImageError(StorageError):
    """A vendor's database image is damaged: restore that vendor; others are unaffected.

    Attributes
    ----------
    vendor_id : str
        The vendor whose image it is, or empty where the store itself is damaged.
    """

    def __init__(self, message: str, *, vendor_id: str = "") -> None:
        super().__init__(message)
        self.vendor_id = vendor_id

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_corrupt_image, (str(self), self.vendor_id)


def _rebuild_corrupt_image(message: str, vendor_id: str) -> CorruptImageError:
    return CorruptImageError(message, vendor_id=vendor_id)


class SchemaMismatchError(StorageError):
    """An image or a store was made for another schema: migrate it, or open it with the schema it has."""


class LostFileError(StorageError, FileNotFoundError):
    """A file that held data is gone or empty, and is not made anew: put it back from a backup.

    Attributes
    ----------
    path : str
        The file, or the first of several.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_lost_file, (str(self), self.path)


def _rebuild_lost_file(message: str, path: str) -> LostFileError:
    return LostFileError(message, path=path)


class StaleReplicaError(StorageError):
    """A replica may not answer, for it is too far behind or vendors move: ask the shard itself, or allow more."""


class ObjectError(MktsimError, RuntimeError):
    """A durable object refused a request: its message says why; change the call, or the state that the object is in."""


class NotCallableError(ObjectError, AttributeError):
    """The method does not exist or is not open to callers: mark it public on the class."""


class IsolationError(ObjectError, PermissionError):
    """Code tried to leave its own database: an object only ever sees its own rows."""


class OrderError(ObjectError, ValueError):
    """An order cannot be placed or moved: the message names the order and the rule."""


class OutOfStockError(OrderError):
    """Less is in stock than was asked for: order less, or wait."""


class SimulationError(MktsimError, RuntimeError):
    """The simulated world cannot go on: the message says what was scheduled where it must not be."""


class ResourceLimitError(MktsimError, OSError):
    """The system allows less than is about to be needed, and nothing was begun: the message says what to raise.

    Attributes
    ----------
    resource : str
        ``"file descriptors"`` or ``"memory"``.
    needed, available : int
        Descriptors, or bytes.
    """

    def __init__(self, message: str, *, resource: str, needed: int, available: int) -> None:
        super().__init__(message)
        self.resource = resource
        self.needed = needed
        self.available = available

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_resource_limit, (str(self), self.resource, self.needed, self.available)


def _rebuild_resource_limit(message: str, resource: str, needed: int, available: int) -> ResourceLimitError:
    return ResourceLimitError(message, resource=resource, needed=needed, available=available)


class ClusterError(MktsimError, BrokenExecutor):
    """The workers of a cluster are lost or cannot be reached: start some, or make a new executor."""


class MissingExtraError(MktsimError, ImportError):
    """What was asked for needs a package that is not installed: the message says how to install it."""


class CalibrationError(MktsimError, ValueError):
    """Measurements do not follow the model: measure on a quieter machine, or what the message says the model lacks."""


class StudyWarning(UserWarning):
    """A study's answer may mislead: the message says why, and what would mend it."""


class UndercoverageWarning(StudyWarning):
    """An interval is likely to hold the truth less often than it says: take longer or more replications."""


class ExtrapolationWarning(StudyWarning):
    """A tail is read beyond the samples that it was fitted to: the family that was assumed decides, not the data."""
