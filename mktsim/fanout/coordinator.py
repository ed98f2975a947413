"""The coordinator: scatter one statement to every vendor that matters, gather one exact answer.

Rules
-----
A statement, its parameters and the shard key are checked before any vendor is touched. An answer that lacks a vendor
is an error unless `allow_partial` was asked for, and then says so in its coverage.

Theory of operation
-------------------
Requests travel by the network seam as futures, all at once; what comes back is sorted by the vendors' order and handed
to the gather engine. The code is the same under simulation, where the loop's clock and the network are others.

Vendors' order is the order of the scanners given, or, where scanners are shards of vendors, the order of vendor ids:
the answer then does not depend on how vendors are spread over shards.

A generic coordinator (no schema given) reads the schema from its scanners and, where a table has a column
``vendorId``, verifies at each of them that it holds the scanner's own id in every row; only then is a condition on
that column used to leave vendors out. Pass a :class:`Schema` to decide it yourself.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

from mktsim.errors import (
    EmptyFleetError,
    IncompleteAnswerError,
    InvalidArgumentError,
    MktsimError,
    QueryError,
    SchemaMismatchError,
    UnknownVendorError,
    VendorTimeoutError,
)
from mktsim.fanout.result import Coverage, Explanation, QueryResult, QueryStats
from mktsim.fanout.scanner import Partial, ScatterRequest, ScatterTarget, ShardScanner
from mktsim.network import InProcessNetwork, Network
from mktsim.sql import SCHEMA_QUERY, GatherEngine, Plan, Planner, Schema
from mktsim.sqlite import Value, quote

Params = Sequence[Value] | Mapping[str, Value]


class Ring(Protocol):
    """What the coordinator needs of a placement."""

    def get_node(self, key: str) -> str:
        """Return the node that owns a key."""


class QueryCoordinator:
    """Answers SQL over many vendors as one SQLite holding all their rows would.

    Parameters
    ----------
    scanners : sequence
        Vendors, or shards of vendors; ids must be distinct.
    ring : placement, optional
        Maps a shard key to the id of the scanner that has it.
    schema : Schema, optional
        What every vendor database was made from; read from the scanners when absent.
    network : Network, optional
        How scanners are reached; in process when absent.
    address : str
        The coordinator's own address.

    Raises
    ------
    InvalidArgumentError
        Two scanners share an id or an address.

    Examples
    --------
    >>> import asyncio, sqlite3
    >>> from mktsim.fanout import Scanner
    >>> fleet = {name: sqlite3.connect(":memory:") for name in ("acme", "widgets")}
    >>> for price, connection in enumerate(fleet.values(), 1):
    ...     _ = connection.execute("CREATE TABLE products(name TEXT, price REAL)")
    ...     _ = connection.execute("INSERT INTO products VALUES ('mouse', ?)", (price,))
    >>> coordinator = QueryCoordinator([Scanner.from_connection(*item) for item in fleet.items()])
    >>> asyncio.run(coordinator.query("SELECT COUNT(*) AS count, AVG(price) FROM products")).rows
    [(2, 1.5)]
    >>> coordinator.close()
    >>> for connection in fleet.values():
    ...     connection.close()
    """

    def __init__(
        self,
        scanners: Sequence[ScatterTarget],
        *,
        ring: Ring | None = None,
        schema: Schema | None = None,
        network: Network | None = None,
        address: str = "coordinator",
    ) -> None:
        self.scanners = tuple(scanners)
        self.address = address
        self._ring = ring
        self._by_id = {scanner.id: scanner for scanner in self.scanners}
        if len(self._by_id) != len(self.scanners):
            seen: set[str] = set()
            twice = next(s.id for s in self.scanners if s.id in seen or seen.add(s.id))  # type: ignore[func-returns-value]
            raise InvalidArgumentError(f"two scanners have the id {twice!r}")
        self._network = network if network is not None else InProcessNetwork()
        self._place = {scanner.id: place for place, scanner in enumerate(self.scanners)}
        self._by_vendor = bool(self.scanners) and all(isinstance(scanner, ShardScanner) for scanner in self.scanners)
        self._functions = all(scanner.has_functions for scanner in self.scanners)
        self._planner = Planner(schema, functions=self._functions) if schema is not None else None
        self._engine = GatherEngine()
        for scanner in self.scanners:
            self._network.register(scanner.address, _handler(scanner))

    def __repr__(self) -> str:
        return f"QueryCoordinator({len(self.scanners)} scanners)"

    def close(self) -> None:
        """Leave the network and free the gather engine."""
        for scanner in self.scanners:
            self._network.unregister(scanner.address)
        self._engine.close()

    # -- queries --------------------------------------------------------------------------------------------------

    async def query(
        self,
        sql: str,
        params: Params = (),
        *,
        shard_key: str | None = None,
        allow_partial: bool = False,
        deadline_s: float | None = None,
    ) -> QueryResult:
        """Answer one SELECT over all vendors.

        Parameters
        ----------
        sql : str
            Any SELECT that SQLite runs.
        params : sequence or mapping
            One value per placeholder, in any of SQLite's forms.
        shard_key : str, optional
            The statement concerns this vendor alone: it runs there, as it is.
        allow_partial : bool
            Answer from the vendors that answered, and say in `coverage` who is missing.
        deadline_s : float, optional
            Seconds from now after which to stop waiting.

        Raises
        ------
        QueryError
            The statement or its parameters are at fault; no vendor was touched.
        UnknownVendorError, EmptyFleetError, InvalidArgumentError
            The shard key, the fleet or the deadline is; no vendor was touched.
        IncompleteAnswerError
            A vendor did not answer, and a partial answer was not asked for.
        EvaluationError
            SQLite failed while computing, as it would have over one database.
        """
        started = perf_counter()
        if deadline_s is not None and not deadline_s > 0:
            raise InvalidArgumentError(f"deadline_s must be positive, not {deadline_s}")
        planner = self._planner or await self.prepare()
        plan = planner.plan(sql)
        values = plan.statement.bind(params)
        targets, routed, pruned = self._targets(planner, plan, values, shard_key)
        request = self._request(planner, plan, values, params, routed)
        if deadline_s is not None:
            deadline_s += asyncio.get_running_loop().time()
        planned = perf_counter()
        asked = sum(len(only) if only is not None else scanner.width for scanner, only in targets)
        partials, missing = await self._scatter(plan, request, targets, deadline_s, allow_partial)
        scattered = perf_counter()
        if routed:
            rows = [row for partial in partials.values() for _, parts in partial.segments for row in parts[0]]
        else:
            rows = self._engine.gather(plan, self._ordered(partials), values)
        finished = perf_counter()
        answered = sum(partial.answered for partial in partials.values())
        stats = QueryStats(
            tier="route" if routed else plan.tier,
            vendors_asked=asked,
            vendors_answered=answered,
            vendors_pruned=pruned,
            rows_shipped=sum(partial.rows for partial in partials.values()),
            wall_s={
                "plan": planned - started,
                "scatter": scattered - planned,
                "gather": finished - scattered,
                "total": finished - started,
            },
        )
        return QueryResult(rows, plan.columns, stats, Coverage(asked, answered, missing))

    def explain(self, sql: str, params: Params | None = None) -> Explanation:
        """Tell how a statement would be answered, without running it.

        Parameters
        ----------
        sql : str
            The statement.
        params : sequence or mapping, optional
            With them, the vendors that a condition on the shard column leaves are named.
        """
        planner = self._planner or self._prepare_now()
        plan = planner.plan(sql)
        if not params and plan.statement.parameters:
            width = sum(scanner.width for scanner in self.scanners)
            return Explanation.of(plan, vendors=width, pruned=0, only=None, routed=False)
        targets, routed, pruned = self._targets(planner, plan, plan.statement.bind(params or ()), None)
        vendors = sum(len(only) if only is not None else scanner.width for scanner, only in targets)
        named: list[str] = []
        if vendors < vendors + pruned:
            named = [key for scanner, only in targets for key in ([scanner.id] if only is None else only)]
        return Explanation.of(
            plan, vendors=vendors, pruned=pruned, only=tuple(sorted(named)) if named else None, routed=routed
        )

    # -- who is asked what ----------------------------------------------------------------------------------------

    def _targets(
        self, planner: Planner, plan: Plan, values: tuple[Value, ...], shard_key: str | None
    ) -> tuple[list[tuple[ScatterTarget, tuple[str, ...] | None]], bool, int]:
        """Return the scanners to ask (each with the vendors it is limited to), whether to route, and the pruned."""
        width = sum(scanner.width for scanner in self.scanners)
        if shard_key is not None:
            scanner = self._locate(shard_key)
            only = (shard_key,) if isinstance(scanner, ShardScanner) else None
            return [(scanner, only)], True, width - (1 if only else scanner.width)
        if plan.tier == "local":
            return [], False, width
        keys = planner.shard_keys(plan, values)
        if keys is None:
            return [(scanner, None) for scanner in self.scanners], False, 0
        targets: list[tuple[ScatterTarget, tuple[str, ...] | None]] = []
        for scanner in self.scanners:
            if isinstance(scanner, ShardScanner):
                mine = tuple(sorted(key for key in keys if _plausible(key) and scanner.covers(key)))
                if mine:
                    targets.append((scanner, mine))
            elif scanner.id in keys:
                targets.append((scanner, None))
        visited = sum(len(only) if only is not None else 1 for _, only in targets)
        return targets, visited == 1 and plan.single_table, width - visited

    def _locate(self, shard_key: str) -> ScatterTarget:
        if not isinstance(shard_key, str):
            raise InvalidArgumentError(f"shard_key must be a string, not {type(shard_key).__name__}")
        if self._ring is not None and not self._by_vendor:
            node = self._ring.get_node(shard_key)
            if node in self._by_id:
                return self._by_id[node]
            raise UnknownVendorError(f"the ring places {shard_key!r} on {node!r}, which is no scanner here")
        direct = self._by_id.get(shard_key)
        if direct is not None and not isinstance(direct, ShardScanner):
            return direct
        if _plausible(shard_key):
            for scanner in self.scanners:
                if isinstance(scanner, ShardScanner) and scanner.covers(shard_key):
                    return scanner
        raise UnknownVendorError(f"no vendor has the id {shard_key[:100]!r}")

    def _request(
        self, planner: Planner, plan: Plan, values: tuple[Value, ...], params: Params, routed: bool
    ) -> ScatterRequest:
        if routed:
            names = plan.statement.parameters
            bound: Any = values
            if isinstance(params, Mapping):
                bound = dict(zip(names, values, strict=True))
            return ScatterRequest(((plan.statement.sql, bound),))
        reach = plan.limit.reach(planner.catalog.vendor, values) if plan.limit is not None else -1

        def bind(binders: tuple[Any, ...]) -> tuple[Value, ...]:
            return tuple(reach if binder == "limit" else values[binder - 1] for binder in binders)

        combine = (plan.combine, bind(plan.combine.binders)) if plan.combine is not None else None
        return ScatterRequest(
            tuple((statement.sql, bind(statement.binders)) for statement in plan.scatter), combine=combine
        )

    def _ordered(self, partials: dict[str, Partial]) -> list[Any]:
        """Return all segments in the order of vendors."""
        if self._by_vendor:
            return sorted(
                (segment for partial in partials.values() for segment in partial.segments),
                key=lambda segment: segment[0],
            )
        return [segment for id_ in sorted(partials, key=self._place.__getitem__) for segment in partials[id_].segments]

    # -- the scatter ----------------------------------------------------------------------------------------------

    async def _scatter(
        self,
        plan: Plan,
        request: ScatterRequest,
        targets: list[tuple[ScatterTarget, tuple[str, ...] | None]],
        deadline_s: float | None,
        allow_partial: bool,
    ) -> tuple[dict[str, Partial], tuple[str, ...]]:
        """Ask all targets at once; return what came back and who is missing."""
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[Partial]] = {}
        for scanner, only in targets:
            asked = ScatterRequest(request.statements, only, request.combine, deadline_s)
            futures[scanner.id] = self._network.call(self.address, scanner.address, asked)
        waiting = [future for future in futures.values() if not future.done()]
        if waiting:
            timeout = None if deadline_s is None else max(0.0, deadline_s - loop.time())
            try:
                await asyncio.wait(waiting, timeout=timeout)
            finally:
                for future in waiting:
                    future.cancel()
        partials: dict[str, Partial] = {}
        failures: dict[str, Exception] = {}
        for id_, future in futures.items():
            if not future.done() or future.cancelled():
                failures[id_] = VendorTimeoutError(f"{id_!r} did not answer before the deadline", vendor_id=id_)
            elif (error := future.exception()) is None:
                partials[id_] = future.result()
            elif isinstance(error, Exception):
                failures[id_] = error
            else:
                raise error
        if failures:
            self._judge(plan, partials, failures, allow_partial)
        return partials, tuple(failures)

    def _judge(
        self, plan: Plan, partials: dict[str, Partial], failures: dict[str, Exception], allow_partial: bool
    ) -> None:
        """Raise unless a partial answer is allowed and possible."""
        for error in failures.values():
            if isinstance(error, QueryError):
                raise error  # The statement fails wherever it runs: no vendor is to blame.
            if not isinstance(error, MktsimError):
                raise error
        if allow_partial:
            return
        first = next(iter(failures.values()))
        answered = sum(partial.answered for partial in partials.values())
        shown = ", ".join(map(repr, list(failures)[:5])) + (", …" if len(failures) > 5 else "")
        raise IncompleteAnswerError(
            f"{len(failures)} of {len(failures) + len(partials)} did not answer ({shown}): {first}; "
            "retry, or take what there is with allow_partial=True",
            answered=answered,
            missing=failures,
        ) from first

    # -- the schema -----------------------------------------------------------------------------------------------

    async def prepare(self) -> Planner:
        """Read the schema from the scanners, once; called by the first query.

        Raises
        ------
        EmptyFleetError
            There is no scanner to read it from.
        SchemaMismatchError
            Two vendors have different schemas.
        """
        if self._planner is None:
            answers = [await _settled(step) for step in self._schema_steps()]
            self._planner = await self._settle(answers)
        return self._planner

    def _prepare_now(self) -> Planner:
        """Read the schema without waiting, for explain()."""
        answers = list(self._schema_steps())
        if any(inspect.isawaitable(answer) for answer in answers):
            for answer in answers:
                if inspect.iscoroutine(answer):
                    answer.close()
            raise InvalidArgumentError("these scanners answer asynchronously: await coordinator.prepare() first")
        routine = self._settle(answers)
        try:
            routine.send(None)
        except StopIteration as stop:
            self._planner = stop.value
        assert self._planner is not None, "reading the schema from plain callables never waits"
        return self._planner

    def _schema_steps(self) -> list[Any]:
        if not self.scanners:
            raise EmptyFleetError("there are no vendors, and no schema was given: pass schema= to answer as if empty")
        steps: list[Any] = []
        for scanner in self.scanners:
            execute = getattr(scanner, "execute", None)
            if execute is None:
                raise InvalidArgumentError(f"pass schema=: it cannot be read from {scanner!r}")
            steps.append(_attempt(execute, SCHEMA_QUERY, ()))
        return steps

    async def _settle(self, answers: list[Any]) -> Planner:
        schemas: list[tuple[ScatterTarget, Schema]] = []
        failure: Exception | None = None
        for scanner, answer in zip(self.scanners, answers, strict=True):
            if isinstance(answer, Exception):
                failure = answer  # A vendor that is down now will be missing from the query's coverage.
            else:
                schemas.append((scanner, Schema.from_rows(tuple(row) for row in answer)))
        if not schemas:
            raise IncompleteAnswerError(
                f"no vendor could be asked for its schema: {failure}", answered=0, missing=self._by_id
            ) from failure
        first, schema = schemas[0]
        for scanner, other in schemas:
            if other.digest != schema.digest:
                raise SchemaMismatchError(f"vendors {first.id!r} and {scanner.id!r} have different schemas")
        if not self._functions:
            tried = [await _settled(_attempt(s.execute, "SELECT mktsim_sum(1)", ())) for s, _ in schemas]  # type: ignore[attr-defined]
            self._functions = not any(isinstance(answer, Exception) for answer in tried)
        column = await self._verified_shard_column(schema)
        return Planner(Schema(schema.statements, shard_column=column), functions=self._functions)

    async def _verified_shard_column(self, schema: Schema) -> str | None:
        tables = [table for table in Planner(schema).catalog.tables.values() if table.kind == "table"]
        sharded = [table for table in tables if table.column("vendorId") is not None]
        if not sharded:
            return None
        for scanner in self.scanners:
            for table in sharded:
                sql = f"SELECT 1 FROM {quote(table.name)} WHERE vendorId IS NOT ? LIMIT 1"
                answer = await _settled(_attempt(scanner.execute, sql, (scanner.id,)))  # type: ignore[attr-defined]
                if isinstance(answer, Exception) or list(answer):
                    return None
        return "vendorId"


def _plausible(vendor_id: str) -> bool:
    return 0 < len(vendor_id) <= 10_000


def _handler(scanner: ScatterTarget) -> Any:
    def handle(_target: str, request: ScatterRequest) -> Partial | Awaitable[Partial]:
        return scanner.scan(request)

    return handle


def _attempt(execute: Any, sql: str, params: Any) -> Any:
    try:
        return execute(sql, params)
    except Exception as error:
        return error


async def _settled(answer: Any) -> Any:
    if not inspect.isawaitable(answer):
        return answer
    try:
        return await answer
    except Exception as error:
        return error
