"""An object's view of its own database, and the guard that keeps it there.

Rules
-----
An object's code reads and writes the rows of its own nouns and does nothing else: no ATTACH, no DDL, no transaction
control, no PRAGMA beyond a few that only describe, no function that reaches files or code, no write to the internal
tables, no row that carries another's `vendorId`. `query` moreover writes nothing at all. A statement's length, the
size of its answer and of any value in it, and the work SQLite spends on it are limited: see :class:`Limits`.

Theory of operation
-------------------
SQLite asks the guard, its authorizer, about every action while it prepares a statement. The guard stays on the
connection, for a new authorizer would make SQLite prepare anew whatever is cached; it is closed while a statement of
the object's code runs and open at all other times, for the platform's statements and the store's. A text that was
judged leniently must not be found in the cache by the object's code: the cache tells statements apart by text *and*
preparation flags, and those of the platform, of `execute` and of `query` differ, by flags that change nothing else.
What a statement would write into `vendorId` the authorizer does not see; SQLite's pre-update hook does, and a request
in which a row bore another id is undone whatever its code did about the error. Work is counted in steps of SQLite's
virtual machine, not in seconds, so that the same statement on the same rows is refused everywhere or nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from mktsim.errors import (
    EvaluationError,
    InvalidArgumentError,
    IsolationError,
    MktsimError,
    ObjectError,
    ParameterError,
    QueryTooLargeError,
    ReadOnlyError,
    SQLSyntaxError,
    StorageError,
    UnsupportedQueryError,
    cause,
)
from mktsim.sqlite import (
    SQLITE_DENY,
    SQLITE_OK,
    Connection,
    ConstraintError,
    Cursor,
    Error,
    FullError,
    InterruptError,
    Value,
    driver,
)

Parameters = Sequence[Value] | Mapping[str, Value]

_READS: Final = frozenset(getattr(driver, f"SQLITE_{name}") for name in ("SELECT", "READ", "RECURSIVE"))
_WRITES: Final = frozenset(getattr(driver, f"SQLITE_{name}") for name in ("INSERT", "UPDATE", "DELETE"))
_DESCRIBING_PRAGMAS: Final = frozenset(
    {"foreign_key_list", "index_info", "index_list", "index_xinfo", "table_info", "table_list", "table_xinfo"}
)
_FORBIDDEN_FUNCTIONS: Final = frozenset(
    {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "zipfile"}
)
#: Tables that SQLite makes up, and that show pages or statements rather than rows.
_FORBIDDEN_TABLES: Final = frozenset(
    {"bytecode", "completion", "dbstat", "fsdir", "sqlite_dbpage", "sqlite_stmt", "tables_used", "zipfile"}
)
_STEPS_A_CHECK: Final = 10_000
#: Preparation flags: a hint for SQLite's allocator, and one that it has ignored since 3.24.
_EXECUTE: Final[int] = driver.SQLITE_PREPARE_PERSISTENT
_QUERY: Final[int] = driver.SQLITE_PREPARE_PERSISTENT | driver.SQLITE_PREPARE_NORMALIZE
_VENDOR_COLUMN: Final = 1  # of every noun's table: see mktsim.objects.noun


@dataclass(frozen=True, slots=True)
class Limits:
    """What one statement of an object's code may cost.

    Attributes
    ----------
    statement_characters : int
        Length of its text.
    result_rows, result_bytes : int
        Size of its answer; bytes are those of its texts and blobs.
    value_bytes : int
        Size of any one value that SQLite handles on the way.
    steps : int
        Steps of SQLite's virtual machine, counted in tens of thousands; 100 million take a second or two.

    Examples
    --------
    A class of objects may allow less than is usual.

    >>> import asyncio
    >>> from mktsim import Marketplace, VendorObject
    >>> from mktsim.errors import QueryTooLargeError
    >>> class Frugal(VendorObject):
    ...     limits = Limits(result_rows=3)
    >>> async def story(rows):
    ...     async with Marketplace.open(vendor_class=Frugal) as market:
    ...         await market.vendor("acme").initialize()
    ...         numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n LIMIT ?"
    ...         return await market.vendor("acme").query(numbers, [rows])
    >>> asyncio.run(story(3))
    [(1,), (2,), (3,)]
    >>> try:
    ...     asyncio.run(story(4))
    ... except QueryTooLargeError as error:
    ...     print(str(error).splitlines()[0])
    an answer may have 3 rows and 16000000 bytes: add a LIMIT or aggregate
    """

    statement_characters: int = 100_000
    result_rows: int = 100_000
    result_bytes: int = 16_000_000
    value_bytes: int = 4_000_000
    steps: int = 100_000_000


class Guard:
    """SQLite's authorizer, progress handler and pre-update hook on an object's connection.

    Attributes
    ----------
    open : bool
        Whether everything is allowed: no statement of the object's code is running.
    read_only : bool
        Whether writes are denied too.
    denied : str
        What was denied last, for the error's message.
    violation : str
        What row was written that bears another's id.
    """

    __slots__ = ("denied", "denied_write", "open", "owner", "read_only", "steps", "steps_limit", "violation")

    def __init__(self, owner: str, steps_limit: int) -> None:
        self.owner = owner
        self.open = True
        self.read_only = False
        self.denied = ""
        self.denied_write = False
        self.violation = ""
        self.steps = 0
        self.steps_limit = steps_limit

    @classmethod
    def of(cls, connection: Connection, owner: str, limits: Limits) -> Guard:
        """Return the guard of a connection, set there if there is none."""
        guard = connection.authorizer
        if not isinstance(guard, cls):
            guard = cls(owner, limits.steps)
            connection.authorizer = guard
            connection.set_progress_handler(guard.is_spent, _STEPS_A_CHECK)
            connection.preupdate_hook(guard.written)
        return guard

    def is_spent(self) -> bool:
        """Answer SQLite's progress handler; true stops the statement."""
        self.steps += _STEPS_A_CHECK
        return self.steps > self.steps_limit and not self.open

    def written(self, change: Any) -> None:
        """Look at a row about to be written."""
        if self.open or change.op == "DELETE" or change.table_name.startswith("_"):
            return
        if change.new[_VENDOR_COLUMN] != self.owner:
            self.violation = f"object {self.owner!r:.80} may only write rows with its own id in vendorId"

    def __call__(
        self, action: int, first: str | None, second: str | None, schema: str | None, trigger: str | None
    ) -> int:
        """Answer SQLite."""
        if self.open or self._allows(action, (first or "").lower(), (second or "").lower(), schema):
            return SQLITE_OK
        name = str(driver.mapping_authorizer_function.get(action, action)).removeprefix("SQLITE_").replace("_", " ")
        self.denied = " ".join(part for part in (name, first, second) if part)
        self.denied_write = self.read_only and action in _WRITES
        return SQLITE_DENY

    def _allows(self, action: int, first: str, second: str, schema: str | None) -> bool:
        if action in _READS:
            return first not in _FORBIDDEN_TABLES
        if action in _WRITES:
            changes_owner = action == driver.SQLITE_UPDATE and second == "vendorid"
            own = schema == "main" and not first.startswith(("_", "sqlite_"))
            return own and not changes_owner and not self.read_only
        if action == driver.SQLITE_FUNCTION:
            return second not in _FORBIDDEN_FUNCTIONS
        return action == driver.SQLITE_PRAGMA and first in _DESCRIBING_PRAGMAS


class Sql:
    """Runs statements on the database of one object, while it serves a request."""

    __slots__ = ("_connection", "_guard", "_limits", "_owner")

    def __init__(self, owner: str, limits: Limits | None = None) -> None:
        self._owner = owner
        self._limits = limits or Limits()
        self._guard = Guard(owner, self._limits.steps)
        self._connection: Connection | None = None

    def execute(self, sql: str, params: Parameters = ()) -> list[tuple[Value, ...]]:
        """Run statements and return their rows as tuples.

        Raises
        ------
        IsolationError
            The statement would leave the object's own rows.
        SQLSyntaxError, ParameterError, EvaluationError
            SQLite refuses it, with SQLite's own words.
        InvalidArgumentError
            A constraint of the table does not hold.
        QueryTooLargeError
            A limit was reached.
        """
        return self._run(sql, params)[1]

    def rows(self, sql: str, params: Parameters = ()) -> list[dict[str, Value]]:
        """Run statements and return their rows as dicts; errors are those of :meth:`execute`."""
        names, rows = self._run(sql, params, named=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def query(self, sql: str, params: Parameters = ()) -> list[tuple[Value, ...]]:
        """Run one statement that only reads.

        Raises
        ------
        ReadOnlyError
            It would write.
        UnsupportedQueryError
            The text holds more than one statement.
        """
        guard = self._guard
        guard.read_only = True
        try:
            return self._run(sql, params, single=True)[1]
        finally:
            guard.read_only = False

    @contextmanager
    def bound(self, connection: Connection) -> Iterator[None]:
        """Serve statements by `connection`, under guard, while the block runs."""
        length, attached = driver.SQLITE_LIMIT_LENGTH, driver.SQLITE_LIMIT_ATTACHED
        before = connection.limit(length, self._limits.value_bytes), connection.limit(attached, 0)
        self._guard = Guard.of(connection, self._owner, self._limits)
        self._guard.violation = ""
        self._connection = connection
        try:
            yield
        finally:
            self._connection = None
            connection.limit(length, before[0])
            connection.limit(attached, before[1])

    def platform(self, sql: str, params: Parameters = ()) -> list[tuple[Value, ...]]:
        """Run one of the platform's own statements, unguarded."""
        return self._live().execute(sql, params).fetchall()

    def take_violation(self) -> str:
        """Return which row bears another's id, if one was written since this was asked last, else an empty text."""
        violation, self._guard.violation = self._guard.violation, ""
        return violation

    def _live(self) -> Connection:
        if self._connection is None:
            raise ObjectError(f"object {self._owner!r:.80} serves no request now: its database is open to it only then")
        return self._connection

    def _run(
        self, sql: str, params: Parameters, *, single: bool = False, named: bool = False
    ) -> tuple[tuple[str, ...], list[tuple[Value, ...]]]:
        if not isinstance(sql, str) or not sql.strip():
            raise InvalidArgumentError(f"a statement must be a text that is not empty, not {sql!r:.80}")
        longest = self._limits.statement_characters
        if len(sql) > longest:
            raise InvalidArgumentError(f"a statement may have {longest} characters, not {len(sql)}")
        values = checked_parameters(sql, params)
        cursor = self._live().cursor()
        names: tuple[str, ...] = ()
        count = 0

        def trace(_cursor: object, _text: str, _bindings: object) -> bool:
            nonlocal count, names
            count += 1
            if single and count > 1:
                raise UnsupportedQueryError("a query is one statement", sql=sql)
            if named:
                names = tuple(column[0] for column in cursor.get_description())
            return True

        if single or named:
            cursor.exec_trace = trace
        guard = self._guard
        guard.denied = ""
        guard.steps = 0
        guard.open = False
        try:
            rows = self._fetched(cursor.execute(sql, values, prepare_flags=_QUERY if single else _EXECUTE), sql)
            if guard.violation:
                raise IsolationError(guard.violation)
        except MktsimError:
            raise
        except (Error, TypeError, OverflowError, UnicodeError) as error:
            raise self._named(error, sql) from cause(error)
        finally:
            guard.open = True
        return names, rows

    def _fetched(self, cursor: Cursor, sql: str) -> list[tuple[Value, ...]]:
        """Return the rows, or stop where they grow too many or too large."""
        limits = self._limits
        rows: list[tuple[Value, ...]] = []
        size_bytes = 0
        for row in cursor:
            rows.append(row)
            for value in row:
                if isinstance(value, str | bytes):
                    size_bytes += len(value)
            if len(rows) > limits.result_rows or size_bytes > limits.result_bytes:
                cursor.close(True)
                most = f"{limits.result_rows} rows and {limits.result_bytes} bytes"
                raise QueryTooLargeError(f"an answer may have {most}: add a LIMIT or aggregate", sql=sql)
        return rows

    def _named(self, error: Exception, sql: str) -> MktsimError:
        """Return this package's error for SQLite's."""
        if self._guard.denied:  # SQLite reports a denied function as a mere error of the statement
            if self._guard.denied_write:
                return ReadOnlyError(f"a query only reads ({self._guard.denied})", sql=sql)
            return IsolationError(f"object {self._owner!r:.80} may not do this in its database: {self._guard.denied}")
        if "may not be modified" in str(error):  # SQLite's own word for its schema, before it asks the guard
            return IsolationError(f"object {self._owner!r:.80} may not do this in its database: {error}")
        if isinstance(error, ConstraintError):
            if str(error).lower().endswith(".vendorid"):
                return IsolationError(f"object {self._owner!r:.80} may only write rows with its own id: {error}")
            return InvalidArgumentError(f"the rows do not fit the table: {error}")
        if isinstance(error, InterruptError):
            return QueryTooLargeError(f"stopped after {self._limits.steps} steps: ask for less at a time", sql=sql)
        if isinstance(error, driver.TooBigError):
            return QueryTooLargeError(f"a value may have {self._limits.value_bytes} bytes: {error}", sql=sql)
        if isinstance(error, driver.BindingsError | TypeError | OverflowError | UnicodeError):
            return ParameterError(str(error), sql=sql)
        if isinstance(error, FullError | driver.IOError | driver.CantOpenError | driver.ReadOnlyError):
            return StorageError(f"the database of {self._owner!r:.80} cannot be written: {error}")
        if isinstance(error, driver.SQLError):
            return SQLSyntaxError(str(error), sql=sql)
        return EvaluationError(str(error), sql=sql)


def checked_parameters(sql: str, params: Parameters) -> Parameters:
    """Return the parameters, or raise :class:`ParameterError` for one that SQLite would change or cannot hold."""
    if type(params) not in (list, tuple) and (
        isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping)
    ):
        raise ParameterError(f"parameters are a sequence or a mapping, not {type(params).__name__}", sql=sql)
    for value in params.values() if isinstance(params, Mapping) else params:
        if value is None or isinstance(value, str | int | bytes):
            continue
        if not isinstance(value, float):
            raise ParameterError(f"SQLite holds no value of type {type(value).__name__}", sql=sql)
        if math.isnan(value):
            raise ParameterError("a parameter is NaN, which SQLite would turn into NULL: pass None for NULL", sql=sql)
    return params
