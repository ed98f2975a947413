"""A large market scanned whole by the workers of a Dask cluster, against a process pool and this process alone.

The same packed market, the same statements, as many worker processes; no summaries and no kept partials, so that every
vendor is read each time. What Dask costs is the ratio to the pool: a scheduler between, and results fetched from
workers. A worker that is killed in the middle of a query, by SIGKILL, costs the work it had under way.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any

from benchmarks.fanout import GROUPS, TOP_TEN, Query, Row
from benchmarks.measure import Contender, Sizes, Subject
from mktsim.cluster import ClusterExecutor
from mktsim.fanout import QueryCoordinator, prepare, store_scanners
from mktsim.fanout.partials import PartialCache
from mktsim.market import generate
from mktsim.market.layout import find_layout
from mktsim.market.nouns import SCHEMA
from mktsim.sql.schema import Schema
from mktsim.storage import VendorStore, open_store

WORKERS = 2
#: What each row is worked on for, so that a query lasts long enough for a worker to be lost in the middle of it.
_LONG = "SELECT COUNT(*), SUM(LENGTH(hex(zeroblob(2000 + LENGTH(name))))) FROM products"


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield one subject for each query, and one for a worker that is killed; the market exists while they are out."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mktsim-benchmark-"))) / "market"
        generate(folder, vendors=sizes.cluster_vendors, products=sizes.products, seed=seed)
        layout = find_layout(folder, store=None, shards=None, virtual_nodes=None)
        vendors, locate = folder / "vendors", layout.map().shard_of
        store = open_store("packed", vendors, SCHEMA, shards=layout.map().shards, locate=locate, setup=prepare)
        stack.callback(store.close)
        context = multiprocessing.get_context("spawn")
        executors: dict[str, Executor | None] = {
            "cluster": stack.enter_context(ClusterExecutor(workers=WORKERS)),
            "pool": stack.enter_context(ProcessPoolExecutor(WORKERS, mp_context=context)),
            "inline": None,
        }
        runner = stack.enter_context(asyncio.Runner())
        ways = {name: _coordinator(stack, store, name, executor) for name, executor in executors.items()}
        for query in (TOP_TEN, GROUPS):
            yield Subject(
                f"{query.name}, {sizes.cluster_vendors:,} vendors, {WORKERS} Dask workers",
                "vendor",
                sizes.cluster_vendors,
                Contender("Dask workers", _asks(runner, ways["cluster"], query)),
                (
                    Contender(f"{WORKERS} processes of a pool", _asks(runner, ways["pool"], query), at_most=1.5),
                    Contender("this process alone", _asks(runner, ways["inline"], query)),
                ),
            )
        cluster = executors["cluster"]
        assert isinstance(cluster, ClusterExecutor)
        long = Loss(runner, ways["cluster"], cluster)
        yield Subject(
            f"a worker of {WORKERS} killed in the middle of a query, {sizes.cluster_vendors:,} vendors",
            "vendor",
            sizes.cluster_vendors,
            Contender("one worker killed", long.killed, before=long.whole_again),
            (Contender("nobody killed", long.undisturbed, before=long.whole_again),),
            note="nearly one worker's share is worked on again while another process starts",
        )


def _coordinator(stack: ExitStack, store: VendorStore, name: str, executor: Executor | None) -> QueryCoordinator:
    plain = Schema(SCHEMA.statements, shard_column=SCHEMA.shard_column)
    coordinator = QueryCoordinator(store_scanners(store, executor=executor), schema=plain, address=name)
    coordinator._partials = PartialCache(0)
    stack.callback(coordinator.close)
    return coordinator


def _asks(runner: asyncio.Runner, coordinator: QueryCoordinator, query: Query) -> Callable[[], list[Row]]:
    async def asked() -> list[Row]:
        return (await coordinator.query(query.sql, query.params)).rows

    return lambda: runner.run(asked())


class Loss:
    """A query of some seconds, with and without the loss of a worker half-way."""

    def __init__(self, runner: asyncio.Runner, coordinator: QueryCoordinator, executor: ClusterExecutor) -> None:
        self._runner = runner
        self._coordinator = coordinator
        self._executor = executor
        self._client = executor._client
        self._half_s = 0.0

    def whole_again(self) -> None:
        """Wait until all workers are there."""
        while len(self._client.nthreads()) < WORKERS:
            self._executor.submit(sleep, 0.2).result()  # which looks after the workers
        self._pids = self._client.run(os.getpid)

    def undisturbed(self) -> list[Row]:
        """Ask, and note how long it takes."""
        return self._runner.run(self._asked())

    def killed(self) -> list[Row]:
        """Ask, and kill a worker half-way."""
        if not self._half_s:
            self.undisturbed()
        return self._runner.run(self._asked(self._half_s))

    async def _asked(self, kill_after_s: float | None = None) -> list[Row]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        victim = next(iter(self._pids.values()))
        after_s = kill_after_s if kill_after_s is not None else 3_600.0
        killing = loop.call_later(after_s, os.kill, victim, signal.SIGKILL)
        try:
            result: Any = await self._coordinator.query(_LONG)
        finally:
            killing.cancel()
        if kill_after_s is None:
            self._half_s = (loop.time() - began_s) / 2
        assert result.coverage.complete
        return list(result.rows)
