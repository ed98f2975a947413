"""The real coordinator over a simulated network: the event engine of a study.

The planner, the scatter, the merge and SQLite are the ones that answer live queries; only the loop and the network are
simulated. So the rows are a true answer, and the times are those of the scenario's world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.operators import Hosts
from mktsim.sim.trace import Trace
from mktsim.sim.world import LEAF, TICK_S, tree_levels
from mktsim.sql.lexer import Statement
from mktsim.sql.planner import Planner
from mktsim.sql.schema import Schema
from mktsim.sqlite import Connection, Value
from mktsim.streams import Streams
from mktsim.study.scenario import Scenario

#: The table that every simulated vendor has.
SCHEMA: Final = Schema(
    (
        """CREATE TABLE products(
            id TEXT PRIMARY KEY, vendorId TEXT, name TEXT, category TEXT, price REAL, rating REAL, stock INTEGER
        )""",
    ),
    shard_column="vendorId",
)
_CATEGORIES: Final = ("electronics", "books", "garden", "toys", "kitchen", "音楽", "outdoor", "health")
_NOUNS: Final = ("lamp", "cable", "kettle", "novel", "tent", "puzzle", "Wireless mouse", "crème", "radio", "chair")
#: A vendor's open database in memory takes about 41 KB.
_MAX_DATABASES: Final = 25_000


def vendor_ids(count: int) -> list[str]:
    """Name the vendors of a scenario, in the order of their indices."""
    return [f"v{index:07d}" for index in range(count)]


def catalogue(streams: Streams, vendor: int, vendor_id: str, products: int) -> list[tuple[Value, ...]]:
    """Draw one vendor's products: ties in rating, some prices and ratings NULL. The same whatever the fleet's size."""
    u = {name: streams.uniform(f"catalogue/{name}", vendor, products) for name in ("what", "price", "rating", "stock")}
    rows: list[tuple[Value, ...]] = []
    for i, (what, price, rating, stock) in enumerate(zip(*(column.tolist() for column in u.values()), strict=True)):
        kind = int(what * len(_CATEGORIES) * len(_NOUNS))
        category, noun = _CATEGORIES[kind % len(_CATEGORIES)], _NOUNS[kind // len(_CATEGORIES)]
        rows.append(
            (
                f"{vendor_id}/{i}",
                vendor_id,
                f"{noun} {i}",
                category,
                None if price < 0.02 else round(price * 500, 2),
                None if rating < 0.05 else round(rating * 10) / 2,
                int(stock * 100),
            )
        )
    return rows


def fleet(scenario: Scenario, streams: Streams) -> dict[str, Connection]:
    """Make the scenario's vendors: one SQLite database in memory each. The caller closes them."""
    databases = {}
    for index, vendor_id in enumerate(vendor_ids(scenario.vendors)):
        database = databases[vendor_id] = SCHEMA.database()
        with database:
            database.executemany(
                "INSERT INTO products VALUES(?,?,?,?,?,?,?)", catalogue(streams, index, vendor_id, scenario.products)
            )
    return databases


@lru_cache(maxsize=64)
def _planned(sql: str) -> Statement:
    return Planner(SCHEMA, cache_size=1).plan(sql).statement


def check_statement(scenario: Scenario) -> None:
    """Plan a scenario's statement as the coordinator would, and fit its parameters: 3 ms for a text, once a process.

    The array engine computes times alone, and would give them to any text. What only rows can show, as an integer
    overflow, is not seen. A statement that was planned elsewhere is left alone.

    Raises
    ------
    QueryError
        If the statement or its parameters are at fault.
    """
    if not scenario.is_planned_elsewhere:
        _planned(scenario.statement).bind(scenario.params)


def check_databases(scenario: Scenario, *, execute: bool) -> None:
    """Check that a scenario's vendors fit in memory as open databases, where its statement is executed.

    Raises
    ------
    InvalidArgumentError
        If they are too many.
    """
    if execute and scenario.vendors > _MAX_DATABASES:
        raise InvalidArgumentError(
            f"{scenario.vendors:,} vendors would take {scenario.vendors * 41 / 1e6:.1f} GB as open databases (at most "
            f"{_MAX_DATABASES:,}); pass execute=False, or engine='vectorised'"
        )


def coordinated_sojourn_times(
    scenario: Scenario,
    streams: Streams,
    *,
    requests: Sequence[int],
    hosts: Hosts | None,
    execute: bool,
    trace: Trace | None = None,
) -> tuple[NDArray[np.float64], list[tuple[Value, ...]] | None]:
    """Answer the scenario's query with the real coordinator in simulated time, one request after another.

    Every step of its calls, and of its tree's, goes into `trace` where one is given.

    Returns
    -------
    times : ndarray of float64, shape (len(requests),)
        Sojourn times in seconds.
    rows : list of tuple, or None
        The answer of the last request; None where `execute` is False, for then it means nothing.

    Raises
    ------
    InvalidArgumentError
        If the scenario asks for more databases than fit in memory.
    QueryError
        If the statement is at fault.
    IncompleteAnswerError
        If a vendor does not answer, because of a fault or the policy's deadline.
    """
    check_databases(scenario, execute=execute)
    with ExitStack() as stack:
        scanners: list[Scanner]
        if execute:
            databases = fleet(scenario, streams)
            for database in databases.values():
                stack.callback(database.close)
            scanners = [Scanner.from_connection(vendor_id, database) for vendor_id, database in databases.items()]
        else:
            (database,) = fleet(scenario.replace(vendors=1), streams).values()
            stack.callback(database.close)
            # Made of the connection so that the database knows the functions that statements may call.
            answer_once = _AnswerOnce(Scanner.from_connection("first", database))
            scanners = [Scanner(vendor_id, answer_once) for vendor_id in vendor_ids(scenario.vendors)]
        times, rows = sim_run(_run(scenario, streams, requests, hosts, scanners, trace))
    return np.array(times), rows if execute else None


class _AnswerOnce:
    """Stands in for every vendor in timing-only runs: the first vendor's partial, computed once a statement."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._answers: dict[Any, list[tuple[Value, ...]]] = {}

    def __call__(self, sql: str, params: Any = ()) -> list[tuple[Value, ...]]:
        key = (sql, tuple(params))
        if key not in self._answers:
            self._answers[key] = list(self._scanner.execute(sql, params))
        return self._answers[key]


async def _run(
    scenario: Scenario,
    streams: Streams,
    requests: Sequence[int],
    hosts: Hosts | None,
    scanners: Sequence[Scanner],
    trace: Trace | None,
) -> tuple[list[float], list[tuple[Value, ...]]]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    world = scenario.world
    network = SimNetwork(loop, world, streams, trace=trace)
    network.add_hosts(LEAF, [scanner.address for scanner in scanners], hosts=None if hosts is None else hosts.tolist())
    for level, nodes in enumerate(tree_levels(len(scanners), scenario.width)[1:], start=1):
        network.add_hosts(f"aggregator/{level}", [f"coordinator/aggregator/{level}/{i}" for i in range(nodes)])
    coordinator = QueryCoordinator(
        scanners,
        schema=SCHEMA,
        network=network,
        policy=scenario.simulated_policy,
        # The world's replicas answer at the vendor's own address: a second call to it finds another machine.
        replicas={scanner.id: [scanner.address] for scanner in scanners} if world.replicas > 1 else None,
        streams=streams.child("coordinator"),
        fanout_width=scenario.width,
    )
    times: list[float] = []
    rows: list[tuple[Value, ...]] = []
    for request in requests:
        start = loop.time()
        base = world.base_ticks(streams, request)
        if base:
            await asyncio.sleep(base * TICK_S)
        with request_number(request):
            result = await coordinator.query(scenario.statement, scenario.params)
        times.append(loop.time() - start)
        rows = list(result.rows)
        await network.idle()  # Second copies that nobody waits for any more must not meet the next request.
    coordinator.close()
    return times, rows
