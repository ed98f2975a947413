"""The gather engine: an in-memory SQLite that merges, groups, sorts and limits what vendors sent.

A session holds one connection with a plan's tables, so that a repeated statement pays for neither DDL nor compilation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mktsim.errors import EvaluationError, InvalidArgumentError, QueryError, QueryTooLargeError, cause
from mktsim.sql.arrivals import Arrivals
from mktsim.sql.exact import register
from mktsim.sql.lexer import PREFIX
from mktsim.sql.merge import merge_groups
from mktsim.sql.plan import Combine, Plan
from mktsim.sqlite import (
    STATEMENT_CLOCK,
    Connection,
    ConstraintError,
    Error,
    FullError,
    SQLError,
    Value,
    connect,
    rows,
)

Row = tuple[Any, ...]
#: What one vendor sent: its place in the order of vendors, and rows for each scatter statement.
Segment = tuple[Any, Sequence[list[Row]]]
Setup = Callable[[Connection], object]


@dataclass(frozen=True, slots=True)
class GatherLimits:
    """What one gather may hold.

    Attributes
    ----------
    max_rows : int
        Rows that vendors may send for one statement.
    max_bytes : int
        Bytes those rows may take in the gather's database.
    memory_bytes : int
        Past this size the database spills to a temporary file, which SQLite deletes.

    Raises
    ------
    InvalidArgumentError
        A limit is no whole number of at least 1.

    Examples
    --------
    >>> from mktsim.errors import QueryTooLargeError
    >>> from mktsim.sql import Planner, Schema
    >>> plan = Planner(Schema(["CREATE TABLE products(name TEXT)"])).plan("SELECT name FROM products")
    >>> engine = GatherEngine(limits=GatherLimits(max_rows=1))
    >>> try:
    ...     engine.gather(plan, [("acme", ([("mouse",), ("lamp",)],))], ())
    ... except QueryTooLargeError as error:
    ...     print(str(error).partition(":")[0])
    vendors sent 2 rows, the limit is 1
    >>> engine.close()
    """

    max_rows: int = 50_000_000
    max_bytes: int = 8 * 2**30
    memory_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_bytes", "memory_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidArgumentError(f"{name} must be a positive integer, not {value!r}")


_PAGE_BYTES = 4096
#: Groups that SQL merges as they are: fewer are not worth a pass over them.
_FEW = 64


def _open(tables: Iterable[str], limits: GatherLimits | None = None) -> Connection:
    if limits is None:
        connection = connect()
    else:
        # The empty name is a private temporary database: in memory until the cache is full, then in a file.
        connection = connect("", vfs=STATEMENT_CLOCK.NAME)
        pages = max(8, limits.max_bytes // _PAGE_BYTES)
        for pragma in (
            f"page_size = {_PAGE_BYTES}",
            f"cache_size = {max(8, limits.memory_bytes // _PAGE_BYTES)}",
            f"max_page_count = {min(pages, 4_294_967_294)}",
            "journal_mode = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    register(connection)
    for statement in tables:
        connection.execute(statement)
    return connection


class _Session:
    """A connection with one plan's tables; empty between uses."""

    def __init__(self, plan: Plan, *, relaxed: bool, limits: GatherLimits, setup: Setup | None) -> None:
        self._plan = plan
        self.connection = _open(plan.relaxed_tables if relaxed else plan.tables, limits)
        if setup is not None:
            setup(self.connection)
        self.relaxed = relaxed
        # Rows are given up as they enter, never held twice; unless keys may collide, when they are needed again.
        self.consumes = relaxed or not plan.relaxed_tables or plan.tables == plan.relaxed_tables

    def run(self, segments: Sequence[Segment], values: Sequence[Value], unix_ms: int | None) -> list[Row]:
        self.connection.execute("BEGIN")
        try:
            for position, statement in enumerate(self._plan.scatter):
                self.connection.executemany(statement.insert, self._rows(segments, position))
            return self.answer(values, unix_ms)
        finally:
            self.empty()

    def answer(self, values: Sequence[Value], unix_ms: int | None) -> list[Row]:
        """Run the plan's last statement over what has been inserted."""
        STATEMENT_CLOCK.unix_ms = _system_clock_ms() if unix_ms is None else unix_ms
        bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
        return self.connection.execute(self._plan.gather, bindings).fetchall()

    def empty(self) -> None:
        """Roll back, which empties the tables without touching the rows one by one."""
        if not self.connection.get_autocommit():
            self.connection.execute("ROLLBACK")

    def _rows(self, segments: Sequence[Segment], position: int) -> Iterator[Row]:
        for _, parts in segments:
            yield from parts[position]
            if self.consumes:
                parts[position].clear()

    def close(self) -> None:
        self.connection.close()


def _system_clock_ms() -> int:
    """Read the system's clock as SQLite does: the gather's instant, where the caller has no other clock."""
    if not _clock:
        _clock.append(connect())
    return int(rows(_clock[0], "SELECT CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)")[0][0])


_clock: list[Connection] = []


class GatherEngine:
    """Runs gathers; keeps a few idle sessions by plan.

    Parameters
    ----------
    sessions : int
        Idle sessions kept.
    limits : GatherLimits, optional
        Caps on rows and bytes, and the size from which to spill.
    setup : callable, optional
        Called with each new connection: what interrupts it, for instance.

    Examples
    --------
    Two vendors have sent what the plan asks for: how many products they have, and their highest price.

    >>> from mktsim.sql import Planner, Schema
    >>> plan = Planner(Schema(["CREATE TABLE products(price REAL)"])).plan("SELECT COUNT(*), MAX(price) FROM products")
    >>> engine = GatherEngine()
    >>> engine.gather(plan, [("acme", ([(2, 20.0)],)), ("bolt", ([(1, 5.0)],))], ())
    [(3, 20.0)]
    >>> engine.close()
    """

    def __init__(self, *, sessions: int = 32, limits: GatherLimits | None = None, setup: Setup | None = None) -> None:
        self._setup = setup
        self._idle: OrderedDict[int, tuple[Plan, _Session]] = OrderedDict()
        self._collided: set[int] = set()
        self._sessions = sessions
        self.limits = limits if limits is not None else GatherLimits()

    def gather(
        self, plan: Plan, segments: Sequence[Segment], values: Sequence[Value], *, unix_ms: int | None = None
    ) -> list[Row]:
        """Merge segments into the answer's rows; the segments' lists are emptied as their rows enter.

        Parameters
        ----------
        plan : Plan
            A two-phase, collect or local plan.
        segments : sequence of Segment
            Sorted by vendor, ascending.
        values : sequence
            One value per parameter.
        unix_ms : int, optional
            The instant that 'now' means, in milliseconds since 1970; the system clock's when absent.

        Raises
        ------
        EvaluationError
            What SQLite itself raises while it computes the answer.
        QueryTooLargeError
            Vendors sent more rows or bytes than the limits allow.
        """
        sent = sum(len(part) for _, parts in segments for part in parts)
        self.check_rows(sent, plan)
        if plan.combine is not None and plan.combine.merges and sent > _FEW:
            segments = merge_groups(segments, plan.combine.merges) or segments
        ordered = segments[::-1] if plan.backwards else segments
        session = self.lend(plan)
        try:
            try:
                answer = session.run(ordered, values, unix_ms)
            except ConstraintError:
                if session.relaxed or not plan.relaxed_tables:
                    raise
                # Keys collide between vendors: one table with every row has no such key.
                session.close()
                self.collided(plan)
                session = self.lend(plan)
                answer = session.run(ordered, values, unix_ms)
        except Error as error:
            session.close()
            raise self.named(error, plan) from cause(error)
        except BaseException:  # Ctrl-C, told within SQLite's progress handler: nobody has the session any more.
            session.close()
            raise
        self._keep(plan, session)
        return answer

    def arrivals(self, plan: Plan, *, ranked: bool) -> Arrivals:
        """Return what takes a collected statement's rows in as they arrive; see :mod:`mktsim.sql.arrivals`."""
        return Arrivals(self, plan, ranked=ranked)

    def check_rows(self, sent: int, plan: Plan) -> None:
        """Raise :class:`QueryTooLargeError` where vendors have sent too many rows."""
        if sent > self.limits.max_rows:
            raise QueryTooLargeError(
                f"vendors sent {sent:,} rows, the limit is {self.limits.max_rows:,}: add a condition that each vendor "
                "can apply, or raise GatherLimits.max_rows",
                sql=plan.statement.sql,
            )

    def named(self, error: Exception, plan: Plan) -> QueryError:
        """Return an error of SQLite's as the one of ours that it is."""
        if isinstance(error, FullError):
            return QueryTooLargeError(
                f"the gather reached {self.limits.max_bytes:,} bytes or the disk is full: add a condition that each "
                "vendor can apply, or raise GatherLimits.max_bytes",
                sql=plan.statement.sql,
            )
        return EvaluationError(str(error), sql=plan.statement.sql)

    def collided(self, plan: Plan) -> None:
        """Remember that keys of this plan's tables collide between vendors."""
        self._collided.add(id(plan))

    def lend(self, plan: Plan) -> _Session:
        """Return a session that nobody else uses, with the plan's tables, empty."""
        entry = self._idle.pop(id(plan), None)
        relaxed = id(plan) in self._collided
        if entry is not None and entry[1].relaxed == relaxed:
            return entry[1]
        if entry is not None:
            entry[1].close()
        return _Session(plan, relaxed=relaxed, limits=self.limits, setup=self._setup)

    def give_back(self, plan: Plan, session: _Session, *, is_sound: bool) -> None:
        """Empty a session and keep it, or close it."""
        if is_sound:
            session.empty()
            self._keep(plan, session)
        else:
            session.close()

    def _keep(self, plan: Plan, session: _Session) -> None:
        previous = self._idle.pop(id(plan), None)
        if previous is not None:
            previous[1].close()
        self._idle[id(plan)] = (plan, session)
        while len(self._idle) > self._sessions:
            key, (_, oldest) = self._idle.popitem(last=False)
            self._collided.discard(key)
            oldest.close()

    def close(self) -> None:
        """Close all sessions."""
        for _, session in self._idle.values():
            session.close()
        self._idle.clear()
        self._collided.clear()


class Combiner:
    """Maps segments to fewer, equivalent segments, at an inner node.

    Parameters
    ----------
    combine : Combine
        The plan's combine step.
    bindings : sequence
        Values of its placeholders.

    Examples
    --------
    Two groups and one of the same name become two: less travels on, and the answer is the same.

    >>> from mktsim.sql import Planner, Schema
    >>> planner = Planner(Schema(["CREATE TABLE products(name TEXT)"]))
    >>> plan = planner.plan("SELECT name, COUNT(*) FROM products GROUP BY name")
    >>> combiner = Combiner(plan.combine, ())
    >>> combiner([("acme", ([("lamp", 1), ("mouse", 2)],)), ("bolt", ([("mouse", 3)],))])
    [('acme', ([('lamp', 1), ('mouse', 5)],))]
    >>> combiner.close()
    """

    def __init__(self, combine: Combine, bindings: Sequence[Value]) -> None:
        self._combine = combine
        self._bindings = tuple(bindings)
        self.connection = _open((combine.table,))

    def __call__(self, segments: Iterable[Segment]) -> list[Segment]:
        """Combine segments that are sorted by vendor; the result is sorted too."""
        listed = list(segments)
        merged = merge_groups(listed, self._combine.merges) if self._combine.merges else None
        if merged is not None:
            return merged
        connection, combine = self.connection, self._combine
        connection.execute("BEGIN")
        try:
            connection.executemany(
                combine.insert,
                [(ordinal, *row) for ordinal, (_, parts) in enumerate(listed) for row in parts[0]],
            )
            combined = connection.execute(combine.sql, self._bindings).fetchall()
        except SQLError as error:
            raise EvaluationError(str(error)) from cause(error)
        finally:
            connection.execute("ROLLBACK")
        grouped: dict[Any, list[Row]] = {}
        for ordinal, *row in combined:
            grouped.setdefault(ordinal, []).append(tuple(row))
        return [(listed[ordinal][0], (grouped[ordinal],)) for ordinal in sorted(grouped)]

    def close(self) -> None:
        """Close the working database."""
        self.connection.close()
