"""Rows handed out while vendors are still being asked.

Rules
-----
The rows of a stream are those of the query, in the same order. A vendor that does not answer ends the stream in an
error, unless a partial answer was allowed: a stream that ends in peace without that is complete.

Theory of operation
-------------------
Where a row of the answer is made of one row of one vendor, and in the order of vendors (a SELECT without ORDER BY,
DISTINCT and aggregates), what the vendors sent is gathered vendor by vendor, and LIMIT and OFFSET are counted here. A
few vendors are asked ahead of the one whose rows are handed out: one at first, then two, four and so on, so that a
stream that is left early has asked few. What is held is what those few sent. Vendors of shards lie between each
other in the order of vendors, so shards are asked for some hundred of their vendors at a time.

For all else, ORDER BY above all, nothing can be handed out before the last vendor has answered: the rows are gathered
as by a query, and only then handed out. `stats.delivery` tells which it was. Merging sorted streams would need
SQLite's order in Python, collations and all; this is not attempted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from mktsim.fanout.guarantees import Shape
from mktsim.fanout.policy import ScatterPolicy
from mktsim.fanout.result import Coverage, QueryStats
from mktsim.fanout.scanner import HAND_IN_SHARE
from mktsim.fanout.scatter import Scatter, Target
from mktsim.sql import Plan, Planner
from mktsim.sql.lexer import PREFIX, read, tokens
from mktsim.sql.syntax import Undecided, parse, single_select
from mktsim.sqlite import Error, Value, rows
from mktsim.storage.replicas import Staleness

if TYPE_CHECKING:
    from mktsim.fanout.coordinator import Params, QueryCoordinator

#: Scanners asked ahead at most where the policy has no window, and vendors of shards asked for at a time.
_AHEAD: Final = 16
_CHUNK: Final = 256

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A plan whose rows may be gathered vendor by vendor: the plan without its LIMIT, and the LIMIT's values."""

    plan: Plan
    limit: int | None
    offset: int


def row_plan(planner: Planner, plan: Plan, values: tuple[Value, ...]) -> RowPlan | None:
    """Return how to gather a statement vendor by vendor, or None where it must be gathered whole."""
    if plan.tier != "two-phase" or plan.backwards or "ORDER" in read(plan.gather).words:
        return None
    tree = parse(plan.statement, planner.catalog)
    if isinstance(tree, str):
        return None
    try:
        shape = Shape(single_select(tree, planner.catalog), planner.catalog.aggregates)
    except Undecided:
        return None
    if shape.grouped or shape.distinct or shape.ordered:
        return None
    if not shape.limited:
        return RowPlan(plan, None, 0)
    if plan.limit is None:
        return None
    bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
    try:
        limit, offset = rows(
            planner.catalog.vendor, f"SELECT ({plan.limit.limit}), ({plan.limit.offset or '0'})", bindings
        )[0]
    except Error:
        return None
    if not isinstance(limit, int) or not isinstance(offset, int):
        return None  # SQLite refuses it, in the gather, in its own words.
    pieces = list(tokens(plan.gather))
    end = max(place for place, (kind, piece) in enumerate(pieces) if kind == "word" and piece.upper() == "LIMIT")
    whole = replace(plan, gather="".join(piece for _, piece in pieces[:end]))
    return RowPlan(whole, limit if limit >= 0 else None, max(0, offset))


def scattered_until(deadline: float | None, allow_partial: bool) -> float | None:
    """Return when to stop waiting for vendors: early enough to gather, where what there is will do."""
    if deadline is None or not allow_partial:
        return deadline
    return deadline - HAND_IN_SHARE * max(0.0, deadline - asyncio.get_running_loop().time())


class RowStream:
    """Rows of one query, as they come; made by :meth:`QueryCoordinator.stream`.

    Iterating yields each row as a dict; :meth:`batches` yields lists of tuples. Leaving the loop, or `aclose`, cancels
    what is under way. One stream is iterated once.

    Attributes
    ----------
    columns : tuple of str
        Names, from the first row on.
    stats : QueryStats or None
        Once the stream has ended; `delivery` is ``streamed`` or ``gathered``.
    coverage : Coverage or None
        The same.

    Examples
    --------
    >>> from mktsim.fanout import QueryCoordinator, Scanner
    >>> from mktsim.sql import Schema
    >>> scanners = [Scanner(name, lambda sql, params: [("mouse",), ("lamp",)]) for name in ("acme", "bolt", "core")]
    >>> coordinator = QueryCoordinator(scanners, schema=Schema(["CREATE TABLE products(name TEXT)"]))
    >>> async def first_rows():
    ...     async with coordinator.stream("SELECT name FROM products LIMIT 3") as stream:
    ...         names = [row["name"] async for row in stream]
    ...     return names, stream.stats.delivery, stream.stats.vendors_asked
    >>> asyncio.run(first_rows())
    (['mouse', 'lamp', 'mouse'], 'streamed', 2)
    >>> coordinator.close()
    """

    def __init__(
        self,
        coordinator: QueryCoordinator,
        sql: str,
        params: Params,
        *,
        allow_partial: bool,
        deadline_s: float | None,
        policy: ScatterPolicy | None,
    ) -> None:
        self.columns: tuple[str, ...] = ()
        self.stats: QueryStats | None = None
        self.coverage: Coverage | None = None
        self._coordinator = coordinator
        self._query = (sql, params)
        self._options: dict[str, Any] = {"allow_partial": allow_partial, "policy": policy}
        self._deadline_s = deadline_s
        self._batches = self._run()
        self._rows = self._dicts()

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._rows

    def batches(self) -> AsyncGenerator[list[Row], None]:
        """Return an iterator over lists of rows, none of them empty."""
        return self._batches

    async def aclose(self) -> None:
        """End the stream: what is under way is cancelled."""
        await self._rows.aclose()
        await self._batches.aclose()

    async def __aenter__(self) -> RowStream:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def _dicts(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            async for batch in self._batches:
                for row in batch:
                    yield dict(zip(self.columns, row, strict=True))
        finally:
            await self._batches.aclose()

    async def _run(self) -> AsyncGenerator[list[Row], None]:
        coordinator, (sql, params) = self._coordinator, self._query
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        with coordinator._admitted(self._options["policy"], self._deadline_s) as (policy, deadline):
            planner = coordinator._planner or await coordinator._prepared_by(deadline)
            plan = planner.plan(sql)
            values = plan.statement.bind(params)
            plan = planner.settled(plan, values)
            targets, routed, pruned = coordinator._targets(planner, plan, values, None)
            by_rows = None if routed else row_plan(planner, plan, values)
            self.columns = plan.columns
            if by_rows is not None:
                allow_partial = self._options["allow_partial"]
                until = scattered_until(deadline, allow_partial)
                request = coordinator._request(planner, plan, values, params, False, until, allow_partial, policy)
                request = request.replace(combine=None, folding=None)
                flow = _Flow(coordinator, by_rows, values, request, policy, self._units(targets), deadline)
                try:
                    async with aclosing(flow.batches()) as batches:
                        async for batch in batches:
                            yield batch
                finally:
                    flow.cancel()
                    self.stats = QueryStats(
                        plan.tier,
                        flow.asked,
                        flow.answered,
                        pruned,
                        flow.shipped,
                        {},
                        flow.calls,
                        "streamed",
                        stale=flow.stale,
                    )
                    self.coverage = coordinator._coverage(flow.asked, flow.answered, flow.failures, flow.targets)
                return
        left_s = None if self._deadline_s is None else max(1e-9, self._deadline_s - (loop.time() - begun_s))
        result = await coordinator.query(sql, params, deadline_s=left_s, **self._options)
        self.stats, self.coverage = result.stats, result.coverage
        if result.rows:
            yield result.rows

    def _units(self, targets: list[Target]) -> Iterator[list[Target]]:
        """Yield what is asked for at a time, in the order of vendors."""
        coordinator = self._coordinator
        if any(only is not None for _, only in targets) or len(targets) != len(coordinator._top):
            leaves = targets
        else:
            leaves = [(leaf, None) for leaf in coordinator._leaves]
        if not coordinator._by_vendor:
            yield from ([target] for target in leaves)
            return
        listed = [
            [(vendor_id, place) for vendor_id in (shard.vendor_ids() if only is None else only)]
            for place, (shard, only) in enumerate(leaves)
        ]
        vendors = merge(*listed)
        while chunk := list(islice(vendors, _CHUNK)):
            by_shard: dict[int, list[str]] = {}
            for vendor_id, place in chunk:
                by_shard.setdefault(place, []).append(vendor_id)
            yield [(leaves[place][0], tuple(ids)) for place, ids in by_shard.items()]


class _Flow:
    """Asks unit after unit, some ahead, and gathers each as its turn comes."""

    def __init__(
        self,
        coordinator: QueryCoordinator,
        by_rows: RowPlan,
        values: tuple[Value, ...],
        request: Any,
        policy: ScatterPolicy,
        units: Iterator[list[Target]],
        deadline: float | None,
    ) -> None:
        self.asked = self.answered = self.shipped = self.calls = 0
        self.failures: dict[str, Exception] = {}
        self.stale: Staleness | None = None
        self.targets: list[Target] = []
        self._coordinator = coordinator
        self._by_rows = by_rows
        self._values = values
        self._request = request
        self._policy = policy
        self._units = units
        self._deadline = deadline
        self._unix_ms = coordinator._unix_ms()
        self._under_way: deque[tuple[Scatter, list[Target]]] = deque()

    async def batches(self) -> AsyncGenerator[list[Row], None]:
        """Yield the rows, LIMIT and OFFSET applied."""
        skip, left = self._by_rows.offset, self._by_rows.limit
        ahead = 1
        most = self._policy.window or _AHEAD
        node = self._coordinator._node
        while left is None or left > 0:
            for unit in islice(self._units, ahead - len(self._under_way)):
                self._under_way.append((node.scatter(unit, self._request, self._policy), unit))
            if not self._under_way:
                return
            ahead = min(most, 2 * ahead)
            batch = await self._gathered()
            if skip:
                skipped = min(skip, len(batch))
                skip -= skipped
                batch = batch[skipped:]
            if left is not None:
                batch = batch[:left]
                left -= len(batch)
            if batch:
                yield batch

    async def _gathered(self) -> list[Row]:
        scatter, unit = self._under_way[0]
        await scatter.wait()
        self._under_way.popleft()
        coordinator, allow_partial = self._coordinator, self._request.allow_partial
        partials, failures = scatter.partials, scatter.failures
        self.asked += sum(len(only) if only is not None else scanner.width for scanner, only in unit)
        self.calls += scatter.calls
        if failures:
            coordinator._judge(partials, failures, allow_partial)
        segments = coordinator._ordered(partials)
        batch = coordinator._gather(self._by_rows.plan, segments, self._values, self._deadline, self._unix_ms)
        if failures:
            self._fail(failures, unit)
        self.answered += sum(partial.answered for partial in partials.values())
        self.shipped += sum(partial.rows for partial in partials.values())
        self.stale = Staleness.worst((self.stale, *(partial.stale for partial in partials.values())))
        return batch

    def _fail(self, failures: Mapping[str, Exception], unit: list[Target]) -> None:
        """Note who is missing: of a shard only the vendors that it was asked for now."""
        only = {scanner.id: ids for scanner, ids in unit}
        for id_, error in failures.items():
            self.failures.update(dict.fromkeys(only.get(id_) or (id_,), error))

    def cancel(self) -> None:
        """Give up what is under way."""
        for scatter, _ in self._under_way:
            scatter.cancel()
        self._under_way.clear()
