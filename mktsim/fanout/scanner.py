"""What answers a scatter: one vendor, or a shard of vendors.

Rules
-----
Every scanner takes the same request and returns the same partial, so that a shard, an aggregator of shards or a single
vendor may stand in the same place. What any callable returns is checked before it counts as an answer. A segment
carries its vendor's place in the order of vendors, which is how a partial can arrive in any order and still be merged
as one table would have it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import replace
from time import perf_counter
from typing import Any, Final, Protocol

from mktsim.errors import (
    CorruptImageError,
    EvaluationError,
    InvalidArgumentError,
    MktsimError,
    VendorDownError,
    VendorError,
    VendorTimeoutError,
    cause,
    shortened,
)
from mktsim.fanout.interrupt import interrupting, limited, prepare, was_interrupted
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.fanout.partials import Blocks
from mktsim.sql import Combiner, Segment, register
from mktsim.sql.plan import Combine
from mktsim.sqlite import SQLError
from mktsim.storage import VendorStore
from mktsim.storage.moves import Epochs
from mktsim.storage.summaries import ShardSummaries

Row = tuple[Any, ...]
#: Runs one statement on one vendor's database and returns its rows, or an awaitable of them.
Execute = Callable[[str, Any], Any]

_TYPES: Final = frozenset((type(None), int, float, str, bytes))
#: A scan with a deadline gives others a turn after as many vendors, or as many seconds.
_SLICE: Final = 256
_SLICE_S: Final = 0.005
#: What is left of the time to a deadline, for a node of several vendors to hand in what it has.
HAND_IN_SHARE: Final = 0.1


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
    workers : int, optional
        Requests that an async `execute` works on at a time; the others wait in line. No limit when absent.

    Examples
    --------
    >>> import sqlite3
    >>> acme = sqlite3.connect(":memory:")
    >>> _ = acme.execute("CREATE TABLE products(name TEXT, price REAL)")
    >>> Scanner.from_connection("acme", acme)
    Scanner('acme')
    >>> acme.close()
    """

    __slots__ = ("_connection", "_execute", "address", "has_functions", "id", "workers")

    def __init__(
        self,
        id: str,
        execute: Execute,
        *,
        address: str | None = None,
        has_functions: bool = False,
        workers: int | None = None,
    ) -> None:
        if not isinstance(id, str) or not id:
            raise InvalidArgumentError(f"a scanner's id must be a string and not empty, not {id!r}")
        if not callable(execute):
            raise InvalidArgumentError(f"scanner {id!r}: execute must be callable, not {type(execute).__name__}")
        self.id = id
        self.address = f"vendor/{id}" if address is None else address
        if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
            raise InvalidArgumentError(f"scanner {id!r}: workers must be a whole number of at least 1, not {workers!r}")
        self.has_functions = has_functions
        self.workers = workers
        self._execute = execute
        self._connection: Any = None

    @classmethod
    def from_connection(cls, id: str, connection: Any, *, address: str | None = None) -> Scanner:
        """Make a scanner of an open connection (of this package's driver or of `sqlite3`), and teach it exact sums.

        A query's deadline interrupts its statement. For that time `sqlite3` connections lose a progress handler of
        their own, for they can have one only.
        """
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
            if self._connection is not None and request.deadline_s is not None:
                with interrupting(self._connection, asyncio.get_running_loop().time, request.deadline_s):
                    answers = self._run(request)
            else:
                answers = self._run(request)
            for answer in answers:
                if type(answer) is not list and inspect.isawaitable(answer):
                    task = asyncio.ensure_future(self._await(answers, request))
                    task.add_done_callback(lambda _: _close(answers))
                    return task
            return self._partial(answers, request)
        except Exception as error:
            raise self._named(error) from cause(error)

    def _run(self, request: ScatterRequest) -> list[Any]:
        if len(request.statements) > 1 and self._connection is not None:
            return self._snapshot(request)
        return [self._execute(sql, params) for sql, params in request.statements]

    def _snapshot(self, request: ScatterRequest) -> list[Any]:
        own = not self._connection.in_transaction
        if own:
            self._connection.execute("BEGIN")
        try:
            return [self._execute(sql, params) for sql, params in request.statements]
        finally:
            if own:
                self._connection.execute("ROLLBACK")

    async def _await(self, answers: Sequence[Any], request: ScatterRequest) -> Partial:
        try:
            settled = [await answer if inspect.isawaitable(answer) else answer for answer in answers]
            return self._partial(settled, request)
        except Exception as error:
            raise self._named(error) from cause(error)

    def _partial(self, answers: Iterable[Any], request: ScatterRequest) -> Partial:
        parts = [[row if type(row) is tuple else as_tuple(row) for row in answer] for answer in answers]
        if self._connection is None and request.widths:
            for part, width in zip(parts, request.widths, strict=True):
                _check_rows(part, width)
        rows = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        return Partial([(self.id, parts)] if rows else [], 1, rows)

    def _named(self, error: Exception) -> Exception:
        if isinstance(error, MktsimError):
            return error
        if isinstance(error, SQLError) or getattr(error, "sqlite_errorcode", None) == 1:
            # SQLite could not compute it from this vendor's rows: over one database it could not either.
            return EvaluationError(f"vendor {self.id!r}: {error}")
        kind: type[VendorError] = VendorError
        if isinstance(error, TimeoutError):
            kind = VendorTimeoutError
        elif isinstance(error, ConnectionError | EOFError):
            kind = VendorDownError
        return kind(f"vendor {self.id!r} failed: {type(error).__name__}: {shortened(error)}", vendor_id=self.id)


def _close(answers: Iterable[Any]) -> None:
    """Close coroutines that were never begun, because their task was cancelled before its first step."""
    for answer in answers:
        if inspect.iscoroutine(answer):
            answer.close()


def as_tuple(row: Any) -> Row:
    """Return a row as a tuple of its values; raise TypeError where it is no row."""
    if isinstance(row, str | bytes):
        raise TypeError(f"a row must be a sequence of values, not {row!r:.80}")
    return tuple(row.values()) if isinstance(row, Mapping) else tuple(row)


def _check_rows(rows: list[Row], width: int) -> None:
    """Raise unless every row is as many values as were asked for, each of a type that SQLite has."""
    for row in rows:
        if len(row) != width:
            raise ValueError(f"a row of {width} values was asked for, not {row!r:.200}")
        for value in row:
            if type(value) not in _TYPES and not isinstance(value, int | float | str | bytes):
                raise TypeError(f"SQLite has no value {value!r:.200}")


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

    Raises
    ------
    InvalidArgumentError
        An executor was given, and the store is none of packed shard files.

    Examples
    --------
    >>> from mktsim.fanout import QueryCoordinator
    >>> from mktsim.sql import Schema
    >>> from mktsim.storage import open_store
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> with open_store("memory", None, schema, shards=["s0"], locate=lambda vendor_id: "s0", setup=prepare) as store:
    ...     for vendor_id in ("acme", "bolt"):
    ...         store.create(vendor_id, {"products": [("mouse",), ("lamp",)]})
    ...     scanner = ShardScanner(store, "s0")
    ...     coordinator = QueryCoordinator([scanner], schema=schema)
    ...     result = asyncio.run(coordinator.query("SELECT name, COUNT(*) FROM products GROUP BY name"))
    ...     coordinator.close()
    >>> scanner.id, result.rows
    ('s0', [('lamp', 2), ('mouse', 2)])
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

    @property
    def processes(self) -> int:
        """How many other processes may scan at a time; 0 where none does."""
        if self._executor is None or self.is_abandoned:
            return 0
        cores = os.cpu_count() or 1
        own = getattr(self._executor, "workers", None)
        return own or min(getattr(self._executor, "_max_workers", cores), cores)

    @property
    def is_abandoned(self) -> bool:
        """Whether the executor takes no more work, for a process of it died or it was shut down: scans are here."""
        marks = ("_broken", "_shutdown_thread", "_shutdown")  # as the standard library's pools have them
        return self._executor is not None and any(getattr(self._executor, mark, False) for mark in marks)

    def covers(self, vendor_id: str) -> bool:
        """Whether the vendor is in this shard."""
        return self._store.shard_of(vendor_id) == self.id and vendor_id in self._store

    def vendor_ids(self) -> list[str]:
        """Return the ids of the shard's vendors, sorted."""
        return self._store.vendor_ids(self.id)

    @property
    def epochs(self) -> Epochs | None:
        """By which queries are kept apart from moves of vendors between shards; see `mktsim.storage.moves`."""
        return self._store.epochs

    def summaries(self) -> ShardSummaries | None:
        """Return what the store knows of the shard's vendors without reading them."""
        return self._store.summaries(self.id)

    def _visited(self, request: ScatterRequest) -> list[str]:
        return self._store.vendor_ids_as_of(self.id, request.as_of)

    def scan(self, request: ScatterRequest) -> Partial | Awaitable[Partial]:
        """Scan the shard; see :class:`ScatterTarget`.

        Where a partial answer is of use, damaged vendors are named in its failures and the others scanned.
        """
        if self._executor is not None and not request.here and not self.is_abandoned:
            return self._elsewhere(request)
        if request.deadline_s is not None:
            return self._in_slices(request)
        if not request.allow_partial:
            only, folding = request.vendor_ids, request.folding
            options: dict[str, Any] = {
                "vendor_ids": only,
                "top": request.top,
                "as_of": request.as_of,
                "folding": folding,
            }
            return _to_keep(_partial(*self._store.collect(self.id, request.statements, **options)), request)
        failures: dict[str, Exception] = {}
        partial = scan_all(self._visit_sound(request, failures))
        return Partial(partial.segments, partial.answered, partial.rows, failures) if failures else partial

    def _scan(self, request: ScatterRequest, only: tuple[str, ...] | None) -> Iterator[Any]:
        return self._store.scan(self.id, request.statements, vendor_ids=only, top=request.top, as_of=request.as_of)

    def _visit(self, request: ScatterRequest, failures: dict[str, Exception]) -> Iterator[Any]:
        """Return the answers of the vendors, without those that are damaged where a partial answer is of use."""
        if not request.allow_partial:
            return self._scan(request, request.vendor_ids)
        return self._visit_sound(request, failures)

    def _visit_sound(self, request: ScatterRequest, failures: dict[str, Exception]) -> Iterator[Any]:
        wanted = request.vendor_ids
        while True:
            try:
                yield from self._scan(request, wanted)
                return
            except CorruptImageError as error:
                if not error.vendor_id:
                    raise
                failures[error.vendor_id] = error
                wanted = self._after(request, error.vendor_id)
                if not wanted:
                    return

    def _after(self, request: ScatterRequest, vendor_id: str) -> tuple[str, ...]:
        wanted = self._visited(request) if request.vendor_ids is None else sorted(request.vendor_ids)
        return tuple(each for each in wanted if each > vendor_id)

    async def _in_slices(self, request: ScatterRequest) -> Partial:
        """Scan with an eye on the clock, and a turn for others now and then."""
        clock = asyncio.get_running_loop().time
        assert request.deadline_s is not None
        end_s = request.deadline_s
        if request.allow_partial:
            end_s -= HAND_IN_SHARE * max(0.0, end_s - clock())
        failures: dict[str, Exception] = {}
        answers = self._visit(request, failures)
        segments: list[Segment] = []
        answered = rows = 0
        last = ""
        try:
            while True:
                turn_s = clock() + _SLICE_S
                visited = 0
                with limited(clock, end_s):
                    for answer in answers:
                        visited += 1
                        last = answer[0]
                        shipped = sum(map(len, answer[1]))
                        if shipped:
                            rows += shipped
                            segments.append(answer)
                        now_s = clock()
                        if visited == _SLICE or now_s >= turn_s or now_s >= end_s:
                            break
                    else:
                        return Partial(segments, answered + visited, rows, failures)
                answered += visited
                if clock() >= end_s:
                    break
                await asyncio.sleep(0)
        except EvaluationError as error:
            if not was_interrupted(error):
                raise
            answered += visited
        finally:
            answers.close()  # type: ignore[attr-defined]
        late = VendorTimeoutError(f"shard {self.id!r} reached the deadline after {answered} vendors", vendor_id=self.id)
        if not request.allow_partial:
            raise late
        failures.update(dict.fromkeys(self._after(request, last), late))
        return Partial(segments, answered, rows, failures)

    async def _elsewhere(self, request: ScatterRequest) -> Partial:
        loop = asyncio.get_running_loop()
        failures: dict[str, Exception] = {}
        wanted = request.vendor_ids
        while True:
            # The worker's clock is another one: the deadline travels as what is left of it.
            budget_s = None if request.deadline_s is None else request.deadline_s - loop.time()
            plain = request.replace(vendor_ids=wanted, deadline_s=None, policy=None, tie=None, budget_s=budget_s)
            try:
                work = loop.run_in_executor(self._executor, scan_shard, self._shard_path or "", plain)
            except RuntimeError as error:  # It was shut down, or has broken, since it was looked at.
                message = f"shard {self.id!r} could not be handed to another process: {error}"
                raise VendorDownError(message, vendor_id=self.id) from error
            try:
                partial = await work
            except BrokenExecutor as error:
                message = f"the process that scanned shard {self.id!r} died: {error}"
                raise VendorDownError(message, vendor_id=self.id) from error
            except CorruptImageError as error:
                if not request.allow_partial or not error.vendor_id:
                    raise
                failures[error.vendor_id] = error
                everybody = self._visited(request) if request.vendor_ids is None else request.vendor_ids
                wanted = tuple(each for each in everybody if each not in failures)
                continue
            return Partial(partial.segments, partial.answered, partial.rows, failures) if failures else partial


def scan_all(answers: Iterable[tuple[str, tuple[list[Row], ...]]]) -> Partial:
    """Collect a scan's answers."""
    answered = 0
    segments: list[Segment] = []
    for answer in answers:
        answered += 1
        if any(answer[1]):
            segments.append(answer)
    return _partial(segments, answered)


def _partial(segments: Sequence[Segment], answered: int) -> Partial:
    return Partial(list(segments), answered, sum(len(part) for _, parts in segments for part in parts))


def scan_shard(path: str, request: ScatterRequest) -> Partial:
    """Scan one packed shard file and combine what it holds: what a worker process runs.

    Parameters
    ----------
    path : str
        The shard's file, by this machine's folders: what :meth:`~mktsim.storage.PackedStore.shard_path` returns.
    request : ScatterRequest
        Its time is `budget_s`, seconds from now: `deadline_s` is of another process's clock.

    Returns
    -------
    Partial
        With `busy_s`, the seconds that it took here.

    Raises
    ------
    StorageError
        The file cannot be read, or is none of this package's.
    VendorTimeoutError
        The time was up.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mktsim.sql import Schema
    >>> from mktsim.storage import close_scanners, open_store
    >>> request = ScatterRequest((("SELECT name FROM products", ()),))
    >>> with TemporaryDirectory() as folder:
    ...     schema = Schema(["CREATE TABLE products(name TEXT)"])
    ...     with open_store("packed", folder, schema, shards=["s0"], locate=lambda vendor_id: "s0") as store:
    ...         store.create("acme", {"products": [("mouse",)]})
    ...         partial = scan_shard(str(store.shard_path("s0")), request)
    ...         close_scanners()
    >>> partial.segments, partial.answered
    ([('acme', ([('mouse',)],))], 1)
    """
    started = perf_counter()
    return replace(_scanned(path, request), busy_s=perf_counter() - started)


def _scanned(path: str, request: ScatterRequest) -> Partial:
    from mktsim.storage.packed import open_scanner

    scanner = open_scanner(path, prepare)
    wanted = None if request.vendor_ids is None else sorted(request.vendor_ids)
    end_s = None if request.budget_s is None else perf_counter() + request.budget_s
    if end_s is None:
        found = scanner.collect(
            list(request.statements),
            vendor_ids=wanted,
            top=request.top,
            as_of=request.as_of,
            folding=request.folding,
        )
        partial = _partial(*found)
    else:
        answers = scanner.scan(list(request.statements), vendor_ids=wanted, top=request.top, as_of=request.as_of)
        try:
            with limited(perf_counter, end_s):
                partial = scan_all(_until(end_s, answers))
        except EvaluationError as error:
            if not was_interrupted(error):
                raise
            raise VendorTimeoutError(f"shard file {path} reached the deadline", vendor_id=path) from None
        finally:
            answers.close()  # type: ignore[attr-defined]
    if request.combine is None:
        return partial
    partial = _to_keep(partial, request)
    if partial.blocks is not None:
        return partial
    segments = combined(partial.segments, request.combine)
    return Partial(segments, partial.answered, sum(len(parts[0]) for _, parts in segments))


def _to_keep(partial: Partial, request: ScatterRequest) -> Partial:
    """Return the partial with its blocks where the sender would keep them: their total then stands for all vendors."""
    if not request.keep or request.combine is None:
        return partial
    is_folded = request.folding is not None and request.folding.every > 0
    blocks = Blocks.build(partial.segments, request.combine[0].merges, request.keep, is_folded=is_folded)
    if blocks is None:
        return partial
    total = blocks.total()
    return Partial([(partial.segments[0][0], (total,))] if total else [], partial.answered, len(total), blocks=blocks)


def _until(end_s: float, answers: Iterable[Any]) -> Iterator[Any]:
    for answer in answers:
        if perf_counter() >= end_s:
            raise VendorTimeoutError(f"the deadline passed at vendor {answer[0]!r:.80}", vendor_id=answer[0])
        yield answer


def combined(segments: list[Segment], combine: tuple[Combine, Any]) -> list[Segment]:
    """Apply a plan's combine step to segments that are sorted by place."""
    combiner = Combiner(*combine)
    try:
        return combiner(segments)
    finally:
        combiner.close()


def store_scanners(store: VendorStore, *, executor: Executor | None = None) -> list[ShardScanner]:
    """Return one scanner for each shard of a store.

    Parameters
    ----------
    store : VendorStore
        Its connections must be set up by :func:`~mktsim.fanout.prepare`.
    executor : Executor, optional
        Where shards are scanned; in the calling thread when absent.

    Returns
    -------
    list of ShardScanner
        In the order of `store.shards`.

    Raises
    ------
    InvalidArgumentError
        An executor was given, and the store is none of packed shard files.

    Examples
    --------
    >>> from mktsim.sql import Schema
    >>> from mktsim.storage import open_store
    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> locate = {"acme": "s0", "bolt": "s1", "core": "s1"}.__getitem__
    >>> with open_store("memory", None, schema, shards=["s0", "s1"], locate=locate, setup=prepare) as store:
    ...     for vendor_id in ("acme", "bolt", "core"):
    ...         store.create(vendor_id)
    ...     [(scanner.id, scanner.vendor_ids()) for scanner in store_scanners(store)]
    [('s0', ['acme']), ('s1', ['bolt', 'core'])]
    """
    return [ShardScanner(store, shard, executor=executor) for shard in store.shards]
