"""What answers a scatter: one vendor, or a shard of vendors.

Rules
-----
Every scanner takes the same request and returns the same partial, so that a shard, an aggregator of shards or a single
vendor may stand in the same place. A segment carries its vendor's place in the order of vendors, which is how a
partial can arrive in any order and still be merged as one table would have it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from mktsim.errors import InvalidArgumentError, MktsimError, VendorError, VendorTimeoutError
from mktsim.sql import Combiner, Segment, register
from mktsim.sql.plan import Combine
from mktsim.sqlite import Value
from mktsim.storage import VendorStore

Row = tuple[Any, ...]
#: Runs one statement on one vendor's database and returns its rows, or an awaitable of them.
Execute = Callable[[str, Any], Any]

#: Vendors visited between two looks at the clock.
_SLICE = 256


@dataclass(frozen=True, slots=True)
class ScatterRequest:
    """What a coordinator asks of a scanner.

    Attributes
    ----------
    statements : tuple of (str, parameters)
        All are run in one snapshot of each vendor's database.
    vendor_ids : tuple of str or None
        Only these vendors; None for all that the scanner has.
    combine : (Combine, bindings) or None
        What an inner node may do with the partials it holds.
    deadline_s : float or None
        Absolute, on the running loop's clock.
    """

    statements: tuple[tuple[str, Any], ...]
    vendor_ids: tuple[str, ...] | None = None
    combine: tuple[Combine, tuple[Value, ...]] | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Partial:
    """What a scanner answers.

    Attributes
    ----------
    segments : list of (place, rows per statement)
        Sorted by place; vendors without rows are left out.
    answered : int
        Vendors that answered.
    rows : int
        Rows in the segments.
    """

    segments: list[Segment]
    answered: int
    rows: int


class ScatterTarget(Protocol):
    """What the coordinator needs of a scanner, whatever stands behind it."""

    id: str
    address: str

    @property
    def width(self) -> int:
        """How many vendors it covers now."""

    @property
    def has_functions(self) -> bool:
        """Whether its databases know the functions of `mktsim.sql.register`."""

    def covers(self, vendor_id: str) -> bool:
        """Whether it answers for a vendor."""

    def scan(self, request: ScatterRequest) -> Partial | Awaitable[Partial]:
        """Answer a request, or raise."""


class Scanner:
    """One vendor, reached through any callable.

    Parameters
    ----------
    id : str
        The vendor's id.
    execute : callable
        ``execute(sql, params) -> rows``, plain or async. Placeholders are ``?`` and `params` a tuple, except that a
        statement routed to this vendor alone is handed on as the caller wrote it.
    address : str, optional
        Where the network finds it; ``vendor/<id>`` when absent.
    has_functions : bool
        Whether the database behind it knows the aggregates of `mktsim.sql.register`, which let it send exact partial
        sums; without them the rows of a SUM, AVG or TOTAL travel.

    Examples
    --------
    >>> import sqlite3
    >>> acme = sqlite3.connect(":memory:")
    >>> _ = acme.execute("CREATE TABLE products(name TEXT, price REAL)")
    >>> Scanner.from_connection("acme", acme)
    Scanner('acme')
    >>> acme.close()
    """

    __slots__ = ("_connection", "_execute", "address", "has_functions", "id")

    def __init__(
        self, id: str, execute: Execute, *, address: str | None = None, has_functions: bool = False
    ) -> None:
        if not isinstance(id, str) or not id:
            raise InvalidArgumentError(f"a scanner's id must be a string and not empty, not {id!r}")
        if not callable(execute):
            raise InvalidArgumentError(f"scanner {id!r}: execute must be callable, not {type(execute).__name__}")
        self.id = id
        self.address = f"vendor/{id}" if address is None else address
        self.has_functions = has_functions
        self._execute = execute
        self._connection: Any = None

    @classmethod
    def from_connection(cls, id: str, connection: Any, *, address: str | None = None) -> Scanner:
        """Make a scanner of an open connection (of this package's driver or of `sqlite3`), and teach it exact sums."""
        if not hasattr(connection, "execute"):
            raise InvalidArgumentError(f"scanner {id!r}: {type(connection).__name__} is no database connection")
        register(connection)
        scanner = cls(
            id,
            lambda sql, params: connection.execute(sql, params).fetchall(),
            address=address,
            has_functions=True,
        )
        scanner._connection = connection
        return scanner

    def __repr__(self) -> str:
        return f"Scanner({self.id!r})"

    @property
    def width(self) -> int:
        """One vendor."""
        return 1

    def covers(self, vendor_id: str) -> bool:
        """Whether this is that vendor."""
        return vendor_id == self.id

    def execute(self, sql: str, params: Any = ()) -> Any:
        """Run one statement as the callable does."""
        return self._execute(sql, params)

    def scan(self, request: ScatterRequest) -> Partial | Awaitable[Partial]:
        """Run the request's statements; see :class:`ScatterTarget`."""
        try:
            if self._connection is not None and len(request.statements) > 1:
                answers = self._snapshot(request)
            else:
                answers = [self._execute(sql, params) for sql, params in request.statements]
        except Exception as error:
            raise self._named(error) from error
        if any(inspect.isawaitable(answer) for answer in answers):
            return self._await(answers)
        return self._partial(answers)

    def _snapshot(self, request: ScatterRequest) -> list[Any]:
        own = not self._connection.in_transaction
        if own:
            self._connection.execute("BEGIN")
        try:
            return [self._execute(sql, params) for sql, params in request.statements]
        finally:
            if own:
                self._connection.execute("ROLLBACK")

    async def _await(self, answers: Sequence[Any]) -> Partial:
        try:
            return self._partial([await answer if inspect.isawaitable(answer) else answer for answer in answers])
        except Exception as error:
            raise self._named(error) from error

    def _partial(self, answers: Iterable[Any]) -> Partial:
        parts = [[row if type(row) is tuple else _as_tuple(row) for row in answer] for answer in answers]
        rows = sum(map(len, parts))
        return Partial([(self.id, parts)] if rows else [], 1, rows)

    def _named(self, error: Exception) -> Exception:
        if isinstance(error, MktsimError):
            return error
        return VendorError(f"vendor {self.id!r} failed: {type(error).__name__}: {error}", vendor_id=self.id)


def _as_tuple(row: Any) -> Row:
    return tuple(row.values()) if isinstance(row, Mapping) else tuple(row)


class ShardScanner:
    """The vendors of one shard of a store, scanned in one loop.

    Parameters
    ----------
    store : VendorStore
        Where the shard is.
    shard : str
        Its name.
    executor : Executor, optional
        Where to scan; in the calling thread when absent. Only a packed store's shard can be scanned elsewhere.
    """

    __slots__ = ("_executor", "_shard_path", "_store", "address", "id")

    def __init__(self, store: VendorStore, shard: str, *, executor: Executor | None = None) -> None:
        self.id = shard
        self.address = f"shard/{shard}"
        self._store = store
        self._executor = executor
        self._shard_path: str | None = None
        if executor is not None:
            path_of = getattr(store, "shard_path", None)
            if path_of is None:
                raise InvalidArgumentError("an executor needs a packed store: only its shards are files of their own")
            self._shard_path = str(path_of(shard))

    def __repr__(self) -> str:
        return f"ShardScanner({self.id!r})"

    @property
    def width(self) -> int:
        """How many vendors the shard has."""
        return self._store.count(self.id)

    @property
    def has_functions(self) -> bool:
        """The store's set-up registers them."""
        return True

    def covers(self, vendor_id: str) -> bool:
        """Whether the vendor is in this shard."""
        return self._store.shard_of(vendor_id) == self.id and vendor_id in self._store

    def scan(self, request: ScatterRequest) -> Partial | Awaitable[Partial]:
        """Scan the shard; see :class:`ScatterTarget`."""
        if self._executor is not None:
            return self._elsewhere(request)
        if request.deadline_s is not None:
            return self._in_slices(request)
        # Between vendors of one process nothing is saved by combining: the gather does the same work.
        return scan_all(self._store.scan(self.id, request.statements, vendor_ids=request.vendor_ids))

    async def _in_slices(self, request: ScatterRequest) -> Partial:
        """Scan with a look at the clock, and a turn for others, after every few vendors."""
        loop = asyncio.get_running_loop()
        answers = self._store.scan(self.id, request.statements, vendor_ids=request.vendor_ids)
        segments: list[Segment] = []
        answered = 0
        rows = 0
        while True:
            partial = scan_all(islice(answers, _SLICE))
            segments += partial.segments
            answered += partial.answered
            rows += partial.rows
            if partial.answered < _SLICE:
                return Partial(segments, answered, rows)
            await asyncio.sleep(0)
            if request.deadline_s is not None and loop.time() >= request.deadline_s:
                answers.close()  # type: ignore[attr-defined]
                raise VendorTimeoutError(
                    f"shard {self.id!r} reached the deadline after {answered} vendors", vendor_id=self.id
                )

    async def _elsewhere(self, request: ScatterRequest) -> Partial:
        # The worker's clock is another one: the coordinator enforces the deadline.
        plain = replace(request, deadline_s=None)
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, scan_shard, self._shard_path or "", plain
        )


def scan_all(answers: Iterable[tuple[str, tuple[list[Row], ...]]]) -> Partial:
    """Collect a scan's answers; hot: see ``benchmarks/`` (fan-out against the bare loop)."""
    segments: list[Segment] = []
    answered = rows = 0
    for answer in answers:
        answered += 1
        shipped = sum(map(len, answer[1]))
        if shipped:
            rows += shipped
            segments.append(answer)
    return Partial(segments, answered, rows)


def scan_shard(path: str, request: ScatterRequest) -> Partial:
    """Scan one packed shard file and combine what it holds: what a worker process runs."""
    from mktsim.storage.packed import open_scanner

    scanner = open_scanner(path, register)
    wanted = None if request.vendor_ids is None else sorted(request.vendor_ids)
    partial = scan_all(scanner.scan(list(request.statements), vendor_ids=wanted))
    if request.combine is None:
        return partial
    combine, bindings = request.combine
    combiner = Combiner(combine, bindings)
    try:
        segments = combiner(partial.segments)
    finally:
        combiner.close()
    return Partial(segments, partial.answered, sum(len(parts[0]) for _, parts in segments))


def store_scanners(store: VendorStore, *, executor: Executor | None = None) -> list[ShardScanner]:
    """Return one scanner for each shard of a store."""
    return [ShardScanner(store, shard, executor=executor) for shard in store.shards]
