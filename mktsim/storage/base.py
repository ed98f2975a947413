"""What every vendor store promises, and the guards that all of them share.

Rules
-----
* A vendor owns one SQLite database. No connection ever sees two vendors' tables.
* Every database is made from one template of the store's schema, so that all of them share its byte layout (see
  `mktsim.storage.images`). The schema changes by migration of the store, never inside a transaction.
* A transaction commits whole or leaves nothing. While it is open, everybody else sees the state before it.
* A connection lent for reading cannot write, attach or define anything: SQLite's authorizer and open flags see to it.

What this does not do
---------------------
Stores are for one thread. Several processes may share the files of a directory or packed store: SQLite's own locks,
and the version that a packed commit compares, keep them from overwriting each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import ClassVar, Self

from mktsim.errors import (
    DuplicateError,
    InvalidArgumentError,
    ParameterError,
    ReadOnlyError,
    SQLSyntaxError,
    StorageError,
)
from mktsim.sql.schema import Schema
from mktsim.sql.topk import TopKRequest
from mktsim.sql.ungrouped import Folding
from mktsim.sqlite import AuthError, Connection, Error, ExecTraceAbort, Value, driver
from mktsim.storage.connections import Writer
from mktsim.storage.guards import allow_only_reading, check_vendor_id, scan_error, shown, vendor_errors
from mktsim.storage.images import Template
from mktsim.storage.migrate import Migration, migrated
from mktsim.storage.moves import Epochs
from mktsim.storage.summaries import ShardSummaries

__all__ = [
    "Answer",
    "Row",
    "Setup",
    "Statement",
    "Tables",
    "VendorStore",
    "check_vendor_id",
    "no_setup",
    "run_statements",
]

#: Rows of new tables: table name to rows in declared column order.
Tables = Mapping[str, Sequence[Sequence[Value]]]
#: A statement and the values of its placeholders.
Statement = tuple[str, Sequence[Value]]
#: A row of an answer.
Row = tuple[Value, ...]
#: What a scan yields: a vendor and one list of rows per statement.
Answer = tuple[str, tuple[list[Row], ...]]
#: Prepares a connection before statements run on it, for instance registers SQL functions.
Setup = Callable[[Connection], None]


def run_statements(connection: Connection, vendor_id: str, statements: list[Statement]) -> tuple[list[Row], ...]:
    """Return the rows of each statement, or raise the error that names vendor and statement."""
    sql = ""
    try:
        answer = []
        for sql, values in statements:
            answer.append(connection.execute(sql, values).fetchall())
        return tuple(answer)
    except Exception as error:
        raise scan_error(error, vendor_id, sql) from error


class VendorStore(ABC):
    """Vendors' databases, grouped by shard.

    Parameters
    ----------
    schema : Schema
        What every vendor database is created from.
    shards : sequence of str
        Names of the shards, distinct and not empty.
    locate : callable
        Vendor id to shard name.
    setup : callable, optional
        Called once on every connection that runs scans or is lent for reading.
    migration : Migration, optional
        The version of the schema, and the way there from earlier ones; without it an earlier schema is refused.

    Examples
    --------
    Every kind of store is used alike; see :func:`mktsim.storage.open_store`.

    >>> from mktsim.storage import open_store
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> with open_store("memory", None, schema, shards=["s0", "s1"], locate=lambda id: f"s{len(id) % 2}") as store:
    ...     store.create("acme", {"products": [("mouse",)]})
    ...     store.create("bolts")
    ...     with store.read("acme") as connection:
    ...         found = connection.execute("SELECT name FROM products").fetchall()
    ...     print(len(store), store.vendor_ids("s1"), found)
    2 ['bolts'] [('mouse',)]
    """

    def __init__(
        self,
        schema: Schema,
        *,
        shards: Sequence[str],
        locate: Callable[[str], str],
        setup: Setup | None = None,
        migration: Migration | None = None,
    ) -> None:
        self._set_shards(shards)
        self.schema = schema
        self.setup: Setup = setup if setup is not None else no_setup
        self.migration = migration or Migration()
        self.template = Template(schema, self.migration.version)
        self._locate = locate
        self._in_transaction: set[str] = set()
        self._closed = False
        self._parameter_counts: dict[str, int] = {}
        self._probe = self.template.connection()
        self.setup(self._probe)
        self._probe.authorizer = allow_only_reading

    #: Whether :meth:`join` and :meth:`flush` make groups.
    groups: ClassVar[bool] = False

    # -- what a store must provide ------------------------------------------------------------------------------

    @abstractmethod
    def vendor_ids(self, shard: str | None = None) -> list[str]:
        """Return the ids, of one shard or of all, sorted by code point."""

    @abstractmethod
    def __contains__(self, vendor_id: object) -> bool:
        """Whether the vendor exists."""

    @abstractmethod
    def count(self, shard: str | None = None) -> int:
        """Return how many vendors a shard has, or all shards have together."""

    def __len__(self) -> int:
        return self.count()

    @abstractmethod
    def create_many(self, vendors: Iterable[tuple[str, Tables]]) -> int:
        """Create vendors in bulk, in transactions of a few hundred, and return how many.

        Raises
        ------
        DuplicateError, InvalidArgumentError
            A vendor exists or its rows do not fit. Batches committed before it stay; its own batch leaves nothing.
        """

    @contextmanager
    def creating(self, vendor_id: str, tables: Tables | None = None) -> Iterator[Connection]:
        """Lend a connection to a vendor that comes into being, with these rows and the block's, at the block's end.

        Until then nobody sees it, and whatever happens before leaves nothing: the block runs on a copy in memory, which
        is stored whole in one commit.

        Raises
        ------
        DuplicateError
            The vendor exists, by now.
        InvalidArgumentError, StorageError
        """
        image = self.template.fill(check_vendor_id(vendor_id), tables or {})
        with self._exclusively(vendor_id):
            if vendor_id in self:
                raise DuplicateError(f"vendor {shown(vendor_id)} exists already")
            connection = self.template.connection(image)
            try:
                with vendor_errors(vendor_id), Writer(connection, self.template.cookie).transaction() as lent:
                    yield lent
                self._store_new(vendor_id, connection.serialize("main"))
            finally:
                connection.close(True)

    @abstractmethod
    def _store_new(self, vendor_id: str, image: bytes) -> None:
        """Create a vendor from an image of this store's own, in one commit; raise where it exists."""

    @abstractmethod
    def transaction(self, vendor_id: str) -> AbstractContextManager[Connection]:
        """Lend a connection for one write transaction: committed at the block's end, rolled back if it raises.

        Everybody else, `read` and `scan` of this process included, sees the state before it until it is committed.

        Raises
        ------
        UnknownVendorError, CorruptImageError
        StorageError
            It cannot be stored, or a transaction of this vendor is already open; nothing was changed.
        SchemaMismatchError
            The block changed the schema; nothing was changed.
        """

    def join(self, vendor_id: str) -> AbstractContextManager[Connection]:
        """Lend a connection as `transaction` does, but let the commit wait for the next :meth:`flush`.

        Later transactions of this store see the change at once, scans and other processes once it is flushed. Where
        a store has nothing to gain from it, this is a `transaction`.
        """
        return self.transaction(vendor_id)

    def flush(self) -> dict[str, StorageError]:
        """Commit what joined, many vendors at the price of one; return the vendors whose changes were lost, and why."""
        return {}

    def discard(self) -> None:  # noqa: B027  # nothing joins where no groups are made
        """Forget what joined and was not flushed, as a crash would."""

    @abstractmethod
    def read(self, vendor_id: str) -> AbstractContextManager[Connection]:
        """Lend a connection on which only reading is possible, for the time of the block."""

    @abstractmethod
    def delete(self, vendor_id: str) -> None:
        """Delete the vendor's database."""

    def outdated(self, shard: str | None = None) -> list[str]:
        """Return the vendors, of one shard or of all, that are still of an earlier version of the schema."""
        return []

    def migrate(self, *, shard: str | None = None, progress: bool = False) -> int:
        """Bring vendors to the present version of the schema, each whole or not at all; return how many.

        A vendor that is written to is migrated then; a scan migrates its shard first.

        Raises
        ------
        SchemaMismatchError, CorruptImageError
            A vendor cannot be migrated; those before it are, it and those after it are as they were.
        """
        waiting: Iterable[str] = self.outdated(shard)
        if progress:
            from tqdm.auto import tqdm

            waiting = tqdm(waiting, unit=" vendors", unit_scale=True)
        count = 0
        for vendor_id in waiting:
            self._migrate(vendor_id)
            count += 1
        return count

    def _migrate(self, vendor_id: str) -> None:  # noqa: B027  # what is in memory is never outdated
        """Migrate one vendor, which is outdated."""

    def _migrated(self, image: bytes, vendor_id: str) -> bytes:
        return migrated(self.template, self.migration, image, vendor_id)

    def scrub(self) -> None:  # noqa: B027  # memory has no files
        """See to it that deleted vendors leave no bytes behind in this store's files."""

    @abstractmethod
    def version(self, vendor_id: str) -> int:
        """Return 1 for a new vendor, one more for each committed transaction that changed something."""

    @abstractmethod
    def image(self, vendor_id: str) -> bytes:
        """Return the vendor's whole database as the bytes of an SQLite file, its integrity checked."""

    @abstractmethod
    def restore(self, vendor_id: str, image: bytes) -> None:
        """Replace the vendor's database by an image, or create the vendor from it.

        Raises
        ------
        CorruptImageError
            SQLite's integrity check finds damage.
        SchemaMismatchError
            The image has another schema or text encoding than this store.
        """

    @abstractmethod
    def _scan(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
    ) -> Iterator[Answer]:
        """Scan with arguments that are already checked; `vendor_ids` are sorted. `top` may be left unused."""

    @abstractmethod
    def _close(self) -> None:
        """Free everything; called once."""

    # -- what they share ----------------------------------------------------------------------------------------

    def summaries(self, shard: str) -> ShardSummaries | None:
        """Return what is known of a shard's vendors as they are now, or None where a store keeps no summaries."""
        return None

    @property
    def epochs(self) -> Epochs | None:
        """By which queries are kept apart from moves of vendors; None where vendors stay in their shards."""
        return None

    def vendor_ids_as_of(self, shard: str, as_of: int | None) -> list[str]:
        """Return the ids of a shard as a query sees them that began at an epoch, sorted by code point."""
        return self.vendor_ids(shard)

    def _set_shards(self, shards: Sequence[str]) -> None:
        """Take over the names of the shards, or raise where they cannot be names."""
        named = tuple(shards)
        if not named or len(set(named)) != len(named):
            raise InvalidArgumentError(f"shards must be distinct and at least one, not {list(named)[:10]}")
        for shard in named:
            if not isinstance(shard, str) or not 0 < len(shard) <= 60 or not shard.isprintable():
                raise InvalidArgumentError(f"a shard name has 1 to 60 printable characters, not {str(shard)[:80]!r}")
        self.shards: tuple[str, ...] = named
        self._known_shards = frozenset(named)

    def shard_of(self, vendor_id: str) -> str:
        """Return the shard that holds the vendor, or would hold it."""
        shard = self._locate(check_vendor_id(vendor_id))
        if shard not in self._known_shards:
            raise InvalidArgumentError(f"vendor {shown(vendor_id)} is placed on {shard!r}, no shard of this store")
        return shard

    def create(self, vendor_id: str, tables: Tables | None = None) -> None:
        """Create a vendor, with initial rows if given: table name to rows in declared column order.

        Raises
        ------
        DuplicateError
            The vendor exists.
        InvalidArgumentError
            The id or the rows do not fit; NaN is refused, for SQLite would store NULL.
        """
        self.create_many([(vendor_id, tables or {})])

    def scan(
        self,
        shard: str,
        statements: Sequence[Statement],
        *,
        vendor_ids: Sequence[str] | None = None,
        top: TopKRequest | None = None,
        as_of: int | None = None,
    ) -> Iterator[Answer]:
        """Run statements on every vendor of a shard, or on those named, in order of id.

        Parameters
        ----------
        shard : str
            Which shard.
        statements : sequence of (str, sequence of values)
            Each reads only. All statements of one vendor see one snapshot of its database.
        vendor_ids : sequence of str, optional
            Visit these vendors of the shard alone.
        top : TopKRequest, optional
            The one statement asks for first rows: a store may leave out those that cannot be among them.
        as_of : int, optional
            The epoch at which the query began: vendors that have moved since are where they were then; now when absent.

        Returns
        -------
        iterator of (str, tuple of list of tuple)
            The vendor, and the rows of each statement.

        Raises
        ------
        SQLSyntaxError, ReadOnlyError, ParameterError, InvalidArgumentError
            Before any vendor is visited.
        CorruptImageError
            With `vendor_id`, when the scan reaches a damaged vendor: scan on with the `vendor_ids` after it.
        EvaluationError
            A statement failed on a vendor.
        UnknownVendorError
            When the scan reaches a named vendor that does not exist in the shard.
        """
        return self._scan(*self._checked_scan(shard, statements, vendor_ids, top), as_of)

    def collect(
        self,
        shard: str,
        statements: Sequence[Statement],
        *,
        vendor_ids: Sequence[str] | None = None,
        top: TopKRequest | None = None,
        as_of: int | None = None,
        folding: Folding | None = None,
    ) -> tuple[list[Answer], int]:
        """Return the answers of :meth:`scan` that have rows, and how many vendors were visited.

        With `folding` the rows of the one statement are merged as they come, and are one answer at the first vendor's
        place, or one for each block of vendors: see :mod:`mktsim.sql.ungrouped`.
        """
        if folding is not None and folding.ungrouped is not None:
            self.check_statements([folding.ungrouped.statement])
        return self._collect(*self._checked_scan(shard, statements, vendor_ids, top), as_of, folding)

    def _collect(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
        folding: Folding | None,
    ) -> tuple[list[Answer], int]:
        """Collect with arguments that are already checked."""
        found: list[Answer] = []
        visited = 0
        fold = None if folding is None else replace(folding, ungrouped=None).begin(statements[0])
        give = found.append if fold is None else fold.append
        for answer in self._scan(shard, statements, vendor_ids, top, as_of):
            visited += 1
            if any(answer[1]):
                give(answer)
        return found if fold is None else fold.result(), visited

    def _checked_scan(
        self, shard: str, statements: Sequence[Statement], vendor_ids: Sequence[str] | None, top: TopKRequest | None
    ) -> tuple[str, list[Statement], list[str] | None, TopKRequest | None]:
        self._check_open()
        self._check_shard(shard)
        wanted = None if vendor_ids is None else sorted({check_vendor_id(vendor_id) for vendor_id in vendor_ids})
        if top is not None:
            self.check_statements([top.unsorted, *([top.bounded] if top.bounded[0] else [])])
        return shard, self.check_statements(statements), wanted, top

    def check_statements(self, statements: Sequence[Statement]) -> list[Statement]:
        """Return the statements with their parameters as tuples, or raise unless each is one that only reads."""
        checked: list[Statement] = []
        for sql, parameters in statements:
            values = tuple(parameters)
            if self._parameter_counts.get(sql) != len(values):
                self._check_statement(sql, values)
                if len(self._parameter_counts) >= 1_000:
                    self._parameter_counts.clear()
                self._parameter_counts[sql] = len(values)
            checked.append((sql, values))
        return checked

    def _check_statement(self, sql: str, values: tuple[Value, ...]) -> None:
        seen: list[str] = []

        def prepared_only(_cursor: object, text: str, _bindings: object) -> bool:
            seen.append(text)
            return False

        cursor = self._probe.cursor()
        cursor.exec_trace = prepared_only
        try:
            cursor.execute(sql, values)
        except ExecTraceAbort:
            pass
        except AuthError as error:
            raise ReadOnlyError("a scan only reads", sql=sql) from error
        except (driver.BindingsError, TypeError, OverflowError, UnicodeError) as error:
            raise ParameterError(str(error), sql=sql) from error
        except Error as error:
            raise SQLSyntaxError(str(error), sql=sql) from error
        if not seen or not seen[0].strip() or sql.replace(seen[0], "", 1).strip(" \t\r\n;"):
            raise SQLSyntaxError("a scan takes exactly one statement per text", sql=sql)

    def close(self) -> None:
        """Close the store; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._probe.close(True)
            self.template.close()
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self)} vendors"
        return f"<{type(self).__name__} {state}, {len(self.shards)} shards>"

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("the store is closed: open it again")

    def _check_shard(self, shard: str) -> None:
        if shard not in self._known_shards:
            raise InvalidArgumentError(f"no shard {str(shard)[:80]!r}: the shards are {', '.join(self.shards[:10])}")

    @contextmanager
    def _exclusively(self, vendor_id: str) -> Iterator[None]:
        """Hold a vendor against a second transaction, deletion or restore while the block runs."""
        self._check_open()
        if vendor_id in self._in_transaction:
            raise StorageError(f"vendor {shown(vendor_id)} has an open transaction: end it first")
        self._in_transaction.add(vendor_id)
        try:
            yield
        finally:
            self._in_transaction.discard(vendor_id)


def no_setup(_connection: Connection) -> None:
    """Leave a connection as it is."""
