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

A generic coordinator (no schema given) reads the schema from its scanners: see `mktsim.fanout.schemas`. Pass a
:class:`Schema` to decide it yourself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from time import perf_counter
from typing import Any, Protocol

from mktsim.errors import (
    EvaluationError,
    IncompleteAnswerError,
    InvalidArgumentError,
    MktsimError,
    OverloadedError,
    QueryError,
    UnknownVendorError,
    VendorError,
)
from mktsim.fanout.aggregator import Aggregator, leave, leaves, serve, tree
from mktsim.fanout.costs import CostsByPlan
from mktsim.fanout.guarantees import guarantees
from mktsim.fanout.interrupt import limited, prepare, was_interrupted
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.fanout.partials import PartialCache
from mktsim.fanout.policy import ScatterPolicy
from mktsim.fanout.prune import Pruned, prune, read_summaries
from mktsim.fanout.repeat import Repeat
from mktsim.fanout.result import Coverage, Explanation, QueryResult, QueryStats
from mktsim.fanout.scanner import ScatterTarget, ShardScanner
from mktsim.fanout.scatter import Node, Scatter, Target
from mktsim.fanout.schemas import read_planner, read_planner_now
from mktsim.fanout.stream import RowStream, scattered_until
from mktsim.fanout.threshold import Outcome, may_pay, scatter_in_rounds
from mktsim.network import InProcessNetwork, Network
from mktsim.sql import GatherEngine, GatherLimits, Plan, Planner, Schema
from mktsim.sql.arrivals import Arrivals
from mktsim.sql.ungrouped import Folding
from mktsim.sqlite import Value
from mktsim.storage.replicas import Staleness
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
    clock : callable, optional
        Seconds since 1970-01-01 UTC: what a statement's 'now' is. The simulated time under simulation and the
        system's clock elsewhere, when absent.

    Raises
    ------
    InvalidArgumentError
        A scanner is none, two share an id or an address, or the width is below 2.

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
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.address = address
        self.policy = _checked_policy(policy)
        self._ring = ring
        self._fanout_width = fanout_width
        self._network = network if network is not None else InProcessNetwork()
        self._place: dict[str, int] = {}
        self._arrange(scanners)
        functions = all(scanner.has_functions for scanner in self._leaves)
        self._planner = Planner(schema, functions=functions) if schema is not None else None
        self._engine = GatherEngine(limits=limits, setup=prepare)
        self._clock = clock
        self._replicas, addresses = _replicas(replicas or {}, self._by_id)
        self._node = Node(self._network, address, replicas=addresses, streams=streams)
        self._in_flight = 0
        self._costs = CostsByPlan()
        self._partials = PartialCache()
        serve(self._top, self._network, replicas=addresses, streams=streams)
        serve(self._replicas, self._network)

    def _arrange(self, scanners: Sequence[ScatterTarget]) -> None:
        """Lay the scanners out: their places, the tree above them."""
        self.scanners = _checked_scanners(scanners)
        self._leaves = tuple(leaves(self.scanners))
        self._by_id = {scanner.id: scanner for scanner in self._leaves}
        if len(self._by_id) != len(self._leaves):
            seen: set[str] = set()
            twice = next(s.id for s in self._leaves if s.id in seen or seen.add(s.id))  # type: ignore[func-returns-value]
            raise InvalidArgumentError(f"two scanners have the id {twice!r:.80}")
        self._top = tuple(tree(self.scanners, self._fanout_width, prefix=f"{self.address}/aggregator"))
        self._nodes = {node.id: node for node in _inner_nodes(self._top)}
        self._place |= {scanner.id: place for place, scanner in enumerate(self._leaves)}  # others may be under way
        # An aggregator stands where its first leaf does.
        self._place.update((id_, self._place[next(leaves([node])).id]) for id_, node in self._nodes.items())
        self._by_vendor = bool(self._leaves) and all(isinstance(scanner, ShardScanner) for scanner in self._leaves)
        epochs = {leaf.epochs for leaf in self._leaves if isinstance(leaf, ShardScanner)} - {None}
        self._epochs = epochs.pop() if len(epochs) == 1 else None

    def __repr__(self) -> str:
        return f"QueryCoordinator({len(self.scanners)} scanners)"

    def close(self) -> None:
        """Leave the network and free the gather engine."""
        leave((*self._top, *self._replicas), self._network)
        self._engine.close()

    def change_scanners(self, scanners: Sequence[ScatterTarget]) -> None:
        """Ask these scanners from the next query on; queries under way go on with those that they asked.

        Raises
        ------
        InvalidArgumentError
            Two scanners share an id.
        """
        leave(self._top, self._network)
        self._arrange(scanners)
        serve(self._top, self._network, replicas=self._node.replicas, streams=self._node.streams)

    def change_replicas(self, replicas: Mapping[str, Sequence[ScatterTarget | str]]) -> None:
        """Send second copies and further attempts there from the next query on; see the parameter of that name.

        Raises
        ------
        InvalidArgumentError
            They are replicas of nobody.
        """
        served, addresses = _replicas(replicas, self._by_id)
        leave([each for each in self._replicas if each not in served], self._network)
        serve([each for each in served if each not in self._replicas], self._network)
        self._replicas = served
        self._node.replicas = {id_: tuple(listed) for id_, listed in addresses.items()}
        if self._nodes:  # Aggregators have been told of those before.
            self.change_scanners(self.scanners)

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
            been given up, and so names everybody who is missing. Or what they sent was not gathered by the deadline.
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
            until = scattered_until(deadline, allow_partial)
            request = self._request(planner, plan, values, params, routed, until, allow_partial, policy)
            less: Pruned | Repeat | None = None
            if not routed and not pruned:
                less = None if policy.visit_all else self._less(planner, plan, values, targets)
            reading, here = "", False
            planned = perf_counter()
            spared = await less.run(self._node, request, self._visiting(less, policy)) if less is not None else None
            if less is not None and spared is not None:
                asked, pruned, reading = less.visits, less.vendors - less.visits, less.why
            else:
                asked = _width(targets)
                if targets and not routed and not pruned:
                    here, reading = self._where(plan, asked)
                request = request.replace(here=here) if here else request
                if isinstance(less, Repeat):
                    request = less.kept_by(request)
            scatter: Scatter | Outcome
            with self._arrivals(plan, targets, routed or spared is not None) as (arrivals, take_in):
                if spared is not None:
                    scatter = spared
                elif plan.rounds is not None and not routed:
                    scratch = planner.catalog.vendor
                    scatter = await scatter_in_rounds(
                        self._node, targets, request, policy, plan.rounds, values, scratch
                    )
                else:
                    scatter = self._node.scatter(targets, request, policy, take_in=take_in)
                    await scatter.wait()
                partials, failures = scatter.partials, scatter.failures
                if failures:
                    self._judge(partials, failures, allow_partial)
                elif isinstance(less, Repeat) and request.keep and spared is None and not _from_replicas(partials):
                    less.keep(partials)
                scattered = perf_counter()
                if routed:
                    rows = [row for partial in partials.values() for _, parts in partial.segments for row in parts[0]]
                else:
                    segments = self._ordered(partials)
                    # Counted now, for the gather takes the rows out of the segments.
                    before = _rows_before(segments, failures, self._place, self._by_vendor) if failures else 0
                    gathered = segments if arrivals is None else arrivals
                    rows = self._gather(plan, gathered, values, deadline, self._unix_ms())
            finished = perf_counter()
            if not failures and not routed and getattr(asyncio.get_running_loop(), "unix_time", None) is None:
                self._learn(plan, less if spared is not None else None, asked, scattered - planned, partials, here)
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
            reading=reading,
            stale=Staleness.worst(partial.stale for partial in partials.values()),
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
        else:
            _check_deadline(deadline_s)
        if policy.max_in_flight is not None and self._in_flight >= policy.max_in_flight:
            raise OverloadedError(
                f"{self.address!r:.80} has {self._in_flight} queries under way, as many as the policy allows: retry",
                vendor_id=self.address,
            )
        self._in_flight += 1
        try:
            # What a query reads is decided here, where it begins: vendors may move while it goes on.
            with self._epochs.pinned() if self._epochs is not None else nullcontext():
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
        values = plan.statement.bind(params or ())
        targets, routed, pruned = self._targets(planner, plan, values, None)
        less = None if routed or pruned else self._less(planner, plan, values, targets, look=True)
        if less is not None and less.spares:
            vendors = less.candidates
            return Explanation.of(
                plan, vendors=vendors, pruned=less.vendors - vendors, only=None, routed=False, reading=less.why
            )
        vendors = sum(len(only) if only is not None else scanner.width for scanner, only in targets)
        named: list[str] = []
        if vendors < vendors + pruned:
            named = [key for scanner, only in targets for key in ([scanner.id] if only is None else only)]
        only = tuple(sorted(named)) if named else None
        reading = self._where(plan, vendors)[1] if targets and not routed and not pruned else ""
        return Explanation.of(plan, vendors=vendors, pruned=pruned, only=only, routed=routed, reading=reading)

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
            # The longest work first, so that worker processes end together.
            top = sorted(self._top, key=_by_width) if self._by_vendor and self._workers else self._top
            return [(scanner, None) for scanner in top], False, 0
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

    def _less(
        self,
        planner: Planner,
        plan: Plan,
        values: tuple[Value, ...],
        targets: list[Target],
        *,
        look: bool = False,
    ) -> Pruned | Repeat | None:
        """Return how to visit fewer vendors than all of them, or None where neither summaries nor partials help."""
        # Aggregators merge what they hand up: the blocks of a shard do not come through them.
        may_repeat = plan.combine is not None and not self._nodes and (plan.rounds is None or not may_pay(targets))
        if not (plan.bounds or may_repeat) or not self._by_vendor or any(only is not None for _, only in targets):
            return None
        summaries = read_summaries(self._leaves)
        if summaries is None:
            return None
        costs = self._costs[plan.statement.sql]
        reach = -1
        if plan.bounds is not None and plan.bounds.leading is not None and plan.limit is not None:
            reach = plan.limit.reach(planner.catalog.vendor, values)
        pruned = prune(planner, plan, values, reach, summaries, costs)
        if pruned is not None or not may_repeat:
            return pruned
        return Repeat.of(self._partials, plan, values, summaries, costs, look=look)

    @property
    def _workers(self) -> int:
        """How many processes scan shards for this one; 0 where it scans them itself."""
        first = self._leaves[0] if self._by_vendor else None
        return first.processes if isinstance(first, ShardScanner) else 0

    def _where(self, plan: Plan, vendors: int) -> tuple[bool, str]:
        """Return whether to scan in this process though there are workers, and the words for it; none without any."""
        first = self._leaves[0] if self._by_vendor else None
        if isinstance(first, ShardScanner) and first.is_abandoned:
            return True, "scanned in this process: the pool of worker processes has broken or was shut down"
        if not self._workers:
            return False, ""
        if self._costs[plan.statement.sql].scans_here(vendors, self._workers):
            return True, f"scanned in this process: {vendors:,} vendors are not worth handing to other processes"
        return False, f"scanned by {self._workers} worker process{'es' if self._workers > 1 else ''}"

    def _learn(
        self,
        plan: Plan,
        less: Pruned | Repeat | None,
        asked: int,
        wall_s: float,
        partials: Mapping[str, Partial],
        here: bool,
    ) -> None:
        """Take in what reading so many vendors in some way has cost."""
        costs = self._costs[plan.statement.sql]
        busy_s = sum(partial.busy_s for partial in partials.values())
        if less is not None and not (isinstance(less, Pruned) and less.has_scanned):
            costs.learn("visit", asked, wall_s)
        elif self._workers and busy_s and not here:
            costs.learn_handed_out(asked, busy_s=busy_s, wall_s=wall_s, workers=self._workers)
        else:
            costs.learn("scan", asked, wall_s)

    def _visiting(self, less: Pruned | Repeat, policy: ScatterPolicy) -> ScatterPolicy:
        """Return the policy of visits: what is to be kept is asked of nobody who may be behind."""
        may_be_stale = isinstance(less, Repeat) and self._node.replicas and not policy.asks_once
        return policy.replace(max_staleness_s=0.0) if may_be_stale else policy

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
        as_of = None if self._epochs is None else self._epochs.now
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
                as_of=as_of,
                here=True,
            )
        reach = plan.limit.reach(planner.catalog.vendor, values) if plan.limit is not None else -1

        pushed = {"limit": reach, "more": reach + 1, "bound": None}

        def bind(binders: tuple[Any, ...]) -> tuple[Value, ...]:
            return tuple(values[binder - 1] if isinstance(binder, int) else pushed[binder] for binder in binders)

        combine = (plan.combine, bind(plan.combine.binders)) if plan.combine is not None else None
        return ScatterRequest(
            tuple((statement.sql, bind(statement.binders)) for statement in plan.scatter),
            combine=combine,
            deadline_s=deadline,
            allow_partial=allow_partial,
            policy=None if policy.asks_once else policy,
            widths=tuple(statement.width for statement in plan.scatter),
            top=plan.top.bind(reach, bind) if plan.top is not None else None,
            folding=Folding.of(plan, bind),
            as_of=as_of,
        )

    def _unix_ms(self) -> int | None:
        """Return the instant that 'now' is, None for the system's clock."""
        clock = self._clock or getattr(asyncio.get_running_loop(), "unix_time", None)
        return None if clock is None else round(clock() * 1000)

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

    @contextmanager
    def _arrivals(
        self, plan: Plan, targets: list[Target], routed: bool
    ) -> Iterator[tuple[Arrivals | None, Callable[[str, Partial], Partial] | None]]:
        """Let a collected statement's rows enter the gather as they arrive: yield what holds, and what enters them."""
        if routed or plan.tier != "collect":
            yield None, None
            return
        ranks = {scanner.id: rank for rank, (scanner, _) in enumerate(targets)}
        arrivals = self._engine.arrivals(plan, ranked=not self._by_vendor)

        def take_in(id_: str, partial: Partial) -> Partial:
            return replace(partial, segments=arrivals.add(ranks[id_], partial.segments))

        try:
            yield arrivals, take_in
        finally:
            arrivals.close()

    def _gather(
        self,
        plan: Plan,
        segments: list[Any] | Arrivals,
        values: tuple[Value, ...],
        deadline: float | None,
        unix_ms: int | None,
    ) -> list[tuple[Any, ...]]:
        """Gather, but no longer than to the deadline."""
        try:
            with limited(asyncio.get_running_loop().time, deadline):
                if isinstance(segments, Arrivals):
                    return segments.answer(values, unix_ms)
                return self._engine.gather(plan, segments, values, unix_ms=unix_ms)
        except EvaluationError as error:
            if not was_interrupted(error):
                raise
            raise IncompleteAnswerError(
                "what the vendors sent could not be gathered before the deadline: allow more time, or ask for fewer "
                "rows (a condition or an aggregate that each vendor can apply)",
                answered=0,
                missing=(),
            ) from error

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
            self._planner = await read_planner(self._leaves)
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
        self._planner = read_planner_now(self._leaves)
        return self._planner


def _plausible(vendor_id: str) -> bool:
    return 0 < len(vendor_id) <= 10_000


def _checked_policy(policy: Any) -> ScatterPolicy:
    if policy is None:
        return ScatterPolicy()
    if not isinstance(policy, ScatterPolicy):
        raise InvalidArgumentError(f"policy must be a ScatterPolicy, not {policy!r:.80}")
    return policy


def _check_deadline(deadline_s: Any) -> None:
    good = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool)
    if not good or not (0 < deadline_s <= 1e300 or deadline_s == math.inf):
        raise InvalidArgumentError(f"deadline_s must be a positive number of seconds, not {deadline_s!r:.80}")


def _checked_scanners(scanners: Any) -> tuple[ScatterTarget, ...]:
    if isinstance(scanners, str | bytes | Mapping) or not isinstance(scanners, Iterable):
        raise InvalidArgumentError(f"scanners must be a sequence of scanners, not {scanners!r:.80}")
    listed = tuple(scanners)
    for scanner in listed:
        if not all(hasattr(scanner, name) for name in ("id", "address", "scan")):  # To look at its width reads a store.
            raise InvalidArgumentError(f"a scanner has an id, an address, scan(), as Scanner has; not {scanner!r:.80}")
    return listed


def _from_replicas(partials: Mapping[str, Partial]) -> bool:
    return any(partial.stale is not None for partial in partials.values())


def _by_width(scanner: ScatterTarget) -> int:
    return -scanner.width


def _width(targets: Iterable[Target]) -> int:
    return sum(len(only) if only is not None else scanner.width for scanner, only in targets)


def _replicas(
    replicas: Mapping[str, Sequence[ScatterTarget | str]], scanners: Mapping[str, ScatterTarget]
) -> tuple[list[ScatterTarget], dict[str, list[str]]]:
    """Return the replicas to serve, and the addresses of all by the id of the scanner they stand for."""
    if not isinstance(replicas, Mapping):
        raise InvalidArgumentError(f"replicas maps ids of scanners to lists of replicas; {replicas!r:.80} does not")
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
