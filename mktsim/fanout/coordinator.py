"""The coordinator: scatter one statement to every vendor that matters, gather one exact answer.

Rules
-----
A statement, its parameters and the shard key are checked before any vendor is touched. An answer that lacks a vendor
is an error unless `allow_partial` was asked for, and then says who is missing and what the answer still guarantees.

Theory of operation
-------------------
Requests travel by the network seam as a policy has it (`mktsim.fanout.scatter`), to the scanners or to the top of a
tree of aggregators over them; what comes back is sorted by the vendors' order and handed to the gather engine. The code
is the same under simulation, where the loop's clock and the network are others. A statement that names its vendors
goes straight to them.

Vendors' order is the order of the scanners given, or, where scanners are shards of vendors, the order of vendor ids:
the answer then does not depend on how vendors are spread over shards.

A generic coordinator (no schema given) reads the schema from its scanners and, where a table has a column
``vendorId``, verifies at each of them that it holds the scanner's own id in every row; only then is a condition on
that column used to leave vendors out. Pass a :class:`Schema` to decide it yourself.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter
from typing import Any, Protocol

from mktsim.errors import (
    EmptyFleetError,
    IncompleteAnswerError,
    InvalidArgumentError,
    MktsimError,
    OverloadedError,
    QueryError,
    SchemaMismatchError,
    UnknownVendorError,
    VendorError,
)
from mktsim.fanout.aggregator import Aggregator, leave, leaves, serve, tree
from mktsim.fanout.guarantees import guarantees
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.fanout.policy import ScatterPolicy
from mktsim.fanout.result import Coverage, Explanation, QueryResult, QueryStats
from mktsim.fanout.scanner import ScatterTarget, ShardScanner
from mktsim.fanout.scatter import Node, Target
from mktsim.fanout.stream import RowStream
from mktsim.network import InProcessNetwork, Network
from mktsim.sql import SCHEMA_QUERY, GatherEngine, GatherLimits, Plan, Planner, Schema
from mktsim.sqlite import Value, quote
from mktsim.streams import Streams

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
    policy : ScatterPolicy, optional
        How it treats slow, failing and overloaded scanners; by default each is asked once.
    replicas : mapping, optional
        Scanner id to replicas that answer as it does, scanners of other ids or addresses already served: second
        copies and further attempts go there.
    streams : Streams, optional
        Randomness of retries; a family of its address when absent.
    fanout_width : int, optional
        Put aggregators between, so that no node has more children than this.
    limits : GatherLimits, optional
        Caps on the rows and bytes one answer may be gathered from.

    Raises
    ------
    InvalidArgumentError
        Two scanners share an id or an address, or the width is below 2.

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
        policy: ScatterPolicy | None = None,
        replicas: Mapping[str, Sequence[ScatterTarget | str]] | None = None,
        streams: Streams | None = None,
        fanout_width: int | None = None,
        limits: GatherLimits | None = None,
    ) -> None:
        self.scanners = tuple(scanners)
        self.address = address
        self.policy = _checked_policy(policy)
        self._ring = ring
        self._leaves = tuple(leaves(self.scanners))
        self._by_id = {scanner.id: scanner for scanner in self._leaves}
        if len(self._by_id) != len(self._leaves):
            seen: set[str] = set()
            twice = next(s.id for s in self._leaves if s.id in seen or seen.add(s.id))  # type: ignore[func-returns-value]
            raise InvalidArgumentError(f"two scanners have the id {twice!r}")
        self._top = tuple(tree(self.scanners, fanout_width, prefix=f"{address}/aggregator"))
        self._network = network if network is not None else InProcessNetwork()
        self._nodes = {node.id: node for node in _inner_nodes(self._top)}
        self._place = {scanner.id: place for place, scanner in enumerate(self._leaves)}
        # An aggregator stands where its first leaf does.
        self._place.update((id_, self._place[next(leaves([node])).id]) for id_, node in self._nodes.items())
        self._by_vendor = bool(self._leaves) and all(isinstance(scanner, ShardScanner) for scanner in self._leaves)
        self._functions = all(scanner.has_functions for scanner in self._leaves)
        self._planner = Planner(schema, functions=self._functions) if schema is not None else None
        self._engine = GatherEngine(limits=limits)
        self._replicas, addresses = _replicas(replicas or {}, self._by_id)
        self._node = Node(self._network, address, replicas=addresses, streams=streams)
        self._in_flight = 0
        serve(self._top, self._network, replicas=addresses, streams=streams)
        serve(self._replicas, self._network)

    def __repr__(self) -> str:
        return f"QueryCoordinator({len(self.scanners)} scanners)"

    def close(self) -> None:
        """Leave the network and free the gather engine."""
        leave((*self._top, *self._replicas), self._network)
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
        policy: ScatterPolicy | None = None,
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
            Answer from the vendors that answered; `coverage` says who is missing, `guarantees` what still holds.
        deadline_s : float, optional
            Seconds from now after which to stop waiting and interrupt what runs; the policy's when absent.
        policy : ScatterPolicy, optional
            In place of the coordinator's, for this query.

        Raises
        ------
        QueryError
            The statement or its parameters are at fault; no vendor was touched.
        UnknownVendorError, EmptyFleetError, InvalidArgumentError
            The shard key, the fleet, the deadline or the policy is; no vendor was touched.
        OverloadedError
            The policy's `max_in_flight` queries are under way.
        IncompleteAnswerError
            A vendor did not answer, and a partial answer was not asked for. It comes when all others have answered or
            been given up, and so names everybody who is missing.
        EvaluationError
            SQLite failed while computing, as it would have over one database.
        """
        started = perf_counter()
        with self._admitted(policy, deadline_s) as (policy, deadline):
            planner = self._planner or await self._prepared_by(deadline)
            plan = planner.plan(sql)
            values = plan.statement.bind(params)
            plan = planner.settled(plan, values)
            targets, routed, pruned = self._targets(planner, plan, values, shard_key)
            request = self._request(planner, plan, values, params, routed, deadline, allow_partial, policy)
            planned = perf_counter()
            asked = _width(targets)
            scatter = self._node.scatter(targets, request, policy)
            await scatter.wait()
            partials, failures = scatter.partials, scatter.failures
            if failures:
                self._judge(partials, failures, allow_partial)
            scattered = perf_counter()
            if routed:
                rows = [row for partial in partials.values() for _, parts in partial.segments for row in parts[0]]
            else:
                segments = self._ordered(partials)
                # Counted now, for the gather takes the rows out of the segments.
                before = _rows_before(segments, failures, self._place, self._by_vendor) if failures else 0
                rows = self._engine.gather(plan, segments, values)
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
            calls=scatter.calls,
        )
        if not failures:
            return QueryResult(rows, plan.columns, stats, Coverage(asked, answered))
        coverage = self._coverage(asked, answered, failures, targets)
        held = guarantees(planner, plan, values, rows=rows, rows_before=0 if routed else before, routed=routed)
        return QueryResult(rows, plan.columns, stats, coverage, held)

    def stream(
        self,
        sql: str,
        params: Params = (),
        *,
        allow_partial: bool = False,
        deadline_s: float | None = None,
        policy: ScatterPolicy | None = None,
    ) -> RowStream:
        """Answer one SELECT row by row: ``async for row in coordinator.stream(sql)``, each row a dict.

        Parameters and errors are those of :meth:`query`; errors come from the loop, those of vendors after the rows
        of the vendors before them. Rows come vendor by vendor, with bounded memory, where the statement has neither
        ORDER BY nor DISTINCT nor aggregates; else after all have answered. See :mod:`mktsim.fanout.stream`.

        Examples
        --------
        >>> async def first(coordinator):
        ...     async with coordinator.stream("SELECT name FROM products") as stream:
        ...         async for row in stream:
        ...             return row
        """
        return RowStream(self, sql, params, allow_partial=allow_partial, deadline_s=deadline_s, policy=policy)

    @contextmanager
    def _admitted(self, policy: ScatterPolicy | None, deadline_s: float | None) -> Iterator[tuple[Any, float | None]]:
        """Check a query's policy and deadline, and count it; yield the policy and the deadline on the loop's clock."""
        policy = self.policy if policy is None else _checked_policy(policy)
        if deadline_s is None:
            deadline_s = policy.deadline_s
        elif not deadline_s > 0:
            raise InvalidArgumentError(f"deadline_s must be positive, not {deadline_s}")
        if policy.max_in_flight is not None and self._in_flight >= policy.max_in_flight:
            raise OverloadedError(
                f"{self.address!r:.80} has {self._in_flight} queries under way, as many as the policy allows: retry",
                vendor_id=self.address,
            )
        self._in_flight += 1
        try:
            yield policy, None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        finally:
            self._in_flight -= 1

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
            width = sum(scanner.width for scanner in self._leaves)
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
    ) -> tuple[list[Target], bool, int]:
        """Return the scanners to ask (each with the vendors it is limited to), whether to route, and the pruned."""
        width = sum(scanner.width for scanner in self._leaves)
        if shard_key is not None:
            scanner = self._locate(shard_key)
            only = (shard_key,) if isinstance(scanner, ShardScanner) else None
            return [(scanner, only)], True, width - (1 if only else scanner.width)
        if plan.tier == "local":
            return [], False, width
        keys = planner.shard_keys(plan, values)
        if keys is None:
            return [(scanner, None) for scanner in self._top], False, 0
        targets: list[Target] = []
        for scanner in self._leaves:
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
            for scanner in self._leaves:
                if isinstance(scanner, ShardScanner) and scanner.covers(shard_key):
                    return scanner
        raise UnknownVendorError(f"no vendor has the id {shard_key[:100]!r}")

    def _request(
        self,
        planner: Planner,
        plan: Plan,
        values: tuple[Value, ...],
        params: Params,
        routed: bool,
        deadline: float | None,
        allow_partial: bool,
        policy: ScatterPolicy,
    ) -> ScatterRequest:
        if routed:
            names = plan.statement.parameters
            bound: Any = values
            if isinstance(params, Mapping):
                bound = dict(zip(names, values, strict=True))
            return ScatterRequest(
                ((plan.statement.sql, bound),),
                deadline_s=deadline,
                allow_partial=allow_partial,
                widths=(len(plan.columns),),
            )
        reach = plan.limit.reach(planner.catalog.vendor, values) if plan.limit is not None else -1

        def bind(binders: tuple[Any, ...]) -> tuple[Value, ...]:
            return tuple(reach if binder == "limit" else values[binder - 1] for binder in binders)

        combine = (plan.combine, bind(plan.combine.binders)) if plan.combine is not None else None
        return ScatterRequest(
            tuple((statement.sql, bind(statement.binders)) for statement in plan.scatter),
            combine=combine,
            deadline_s=deadline,
            allow_partial=allow_partial,
            policy=None if policy.asks_once else policy,
            widths=tuple(statement.width for statement in plan.scatter),
        )

    # -- what came back -------------------------------------------------------------------------------------------

    def _ordered(self, partials: dict[str, Partial]) -> list[Any]:
        """Return all segments in the order of vendors."""
        if not self._by_vendor:
            order = sorted(partials, key=self._place.__getitem__) if len(partials) > 1 else partials
            return [segment for id_ in order for segment in partials[id_].segments]
        segments = sorted(
            (segment for partial in partials.values() for segment in partial.segments),
            key=lambda segment: segment[0],
        )
        if len(partials) > 1 and len({place for place, _ in segments}) != len(segments):
            twice = next(one[0] for one, other in pairwise(segments) if one[0] == other[0])
            raise VendorError(f"vendor {twice!r:.80} answered from two shards: it must be in one", vendor_id=twice)
        return segments

    def _judge(self, partials: dict[str, Partial], failures: dict[str, Exception], allow_partial: bool) -> None:
        """Raise unless a partial answer is allowed and possible."""
        for error in failures.values():
            if isinstance(error, QueryError):
                raise error  # The statement fails wherever it runs: no vendor is to blame.
            if not isinstance(error, MktsimError):
                raise error
        if allow_partial:
            return
        missing = self._in_order(failures)
        first = failures[missing[0]]
        answered = sum(partial.answered for partial in partials.values())
        shown = ", ".join(map(repr, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise IncompleteAnswerError(
            f"{len(failures)} of {len(failures) + len(partials)} did not answer ({shown}): {first}; "
            "retry, or take what there is with allow_partial=True",
            answered=answered,
            missing=missing,
        ) from first

    def _in_order(self, ids: Iterable[str]) -> list[str]:
        """Return ids of scanners, then of single vendors, in their order."""
        last = len(self._place)
        return sorted(ids, key=lambda id_: (self._place.get(id_, last), id_))

    def _coverage(
        self, asked: int, answered: int, failures: Mapping[str, Exception], targets: list[Target]
    ) -> Coverage:
        only = {scanner.id: listed for scanner, listed in targets if listed is not None}
        known: dict[str, Any] = {**self._nodes, **self._by_id}

        def expand(id_: str) -> Iterable[str]:
            scanner = known.get(id_)
            if id_ in only:
                return only[id_]
            return scanner.vendor_ids() if isinstance(scanner, ShardScanner | Aggregator) else (id_,)

        return Coverage(asked, answered, tuple(self._in_order(failures)), expand)

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

    async def _prepared_by(self, deadline: float | None) -> Planner:
        try:
            async with asyncio.timeout_at(deadline):
                return await self.prepare()
        except TimeoutError as error:
            raise IncompleteAnswerError(
                "the schema could not be read before the deadline: pass schema=, or allow more time",
                answered=0,
                missing=self._by_id,
            ) from error

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
        for scanner in self._leaves:
            execute = getattr(scanner, "execute", None)
            if execute is None:
                raise InvalidArgumentError(f"pass schema=: it cannot be read from {scanner!r}")
            steps.append(_attempt(execute, SCHEMA_QUERY, ()))
        return steps

    async def _settle(self, answers: list[Any]) -> Planner:
        schemas: list[tuple[ScatterTarget, Schema]] = []
        failure: Exception | None = None
        for scanner, answer in zip(self._leaves, answers, strict=True):
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
        for scanner in self._leaves:
            for table in sharded:
                sql = f"SELECT 1 FROM {quote(table.name)} WHERE vendorId IS NOT ? LIMIT 1"
                answer = await _settled(_attempt(scanner.execute, sql, (scanner.id,)))  # type: ignore[attr-defined]
                if isinstance(answer, Exception) or list(answer):
                    return None
        return "vendorId"


def _plausible(vendor_id: str) -> bool:
    return 0 < len(vendor_id) <= 10_000


def _checked_policy(policy: Any) -> ScatterPolicy:
    if policy is None:
        return ScatterPolicy()
    if not isinstance(policy, ScatterPolicy):
        raise InvalidArgumentError(f"policy must be a ScatterPolicy, not {policy!r:.80}")
    return policy


def _width(targets: Iterable[Target]) -> int:
    return sum(len(only) if only is not None else scanner.width for scanner, only in targets)


def _replicas(
    replicas: Mapping[str, Sequence[ScatterTarget | str]], scanners: Mapping[str, ScatterTarget]
) -> tuple[list[ScatterTarget], dict[str, list[str]]]:
    """Return the replicas to serve, and the addresses of all by the id of the scanner they stand for."""
    served: list[ScatterTarget] = []
    addresses: dict[str, list[str]] = {}
    for id_, listed in replicas.items():
        if id_ not in scanners or isinstance(listed, str):
            raise InvalidArgumentError(f"replicas maps ids of scanners to lists of replicas; {id_!r:.80} is none")
        for replica in listed:
            if not isinstance(replica, str):
                served.append(replica)
            addresses.setdefault(id_, []).append(replica if isinstance(replica, str) else replica.address)
    return served, addresses


def _inner_nodes(scanners: Iterable[ScatterTarget]) -> Iterator[Aggregator]:
    for scanner in scanners:
        if isinstance(scanner, Aggregator):
            yield scanner
            yield from _inner_nodes(scanner.scanners)


def _rows_before(segments: Iterable[Any], failures: Iterable[str], places: Mapping[str, int], by_vendor: bool) -> int:
    """Count the rows of the vendors that precede, in the order of vendors, all that are missing."""
    if by_vendor:
        # A shard's vendors may stand anywhere; single vendors, and no others, are known by their own id.
        missing = list(failures)
        if any(id_ in places for id_ in missing):
            return 0
        return sum(len(parts[0]) for vendor_id, parts in segments if parts and vendor_id < min(missing))
    first = min(places[id_] for id_ in failures)
    return sum(len(parts[0]) for id_, parts in segments if parts and places[id_] < first)


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
