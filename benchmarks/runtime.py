"""One statement over many vendors against the platform's own runtime, N SQLite-backed Durable Objects on loopback.

Both hold the same rows, have been asked before, and answer the top 10 by rating in a category. The runtime's time
includes one request over loopback; ours is `market.query`. Beyond a thousand objects the runtime runs out of file
descriptors on an ordinary machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.fanout import TOP_TEN, VISIT_ALL, opened, write_market
from benchmarks.measure import Contender, Sizes, Subject
from benchmarks.peers import DurableObjectRuntime, available
from mktsim.market.catalogue import COLUMNS, catalogue


def subjects(sizes: Sizes, seed: int) -> Iterator[Subject]:
    """Yield one subject for each number of objects; none where node and npm are missing."""
    for objects in sizes.objects if available() else ():
        with ExitStack() as stack:
            yield _subject(stack, objects, sizes, seed)


def _subject(stack: ExitStack, objects: int, sizes: Sizes, seed: int) -> Subject:
    made = sorted(
        (vendor_id, tables["products"])
        for vendor_id, tables in catalogue(vendors=objects, products=sizes.products, seed=seed, skew=0)
    )
    columns = COLUMNS["products"]
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="mktsim-benchmark-")))
    runner = stack.enter_context(asyncio.Runner())
    write_market(folder / "market", [(vendor_id, {"products": rows}) for vendor_id, rows in made])
    market = runner.run(opened(folder / "market"))
    stack.callback(lambda: runner.run(market.close()))
    runtime = stack.enter_context(DurableObjectRuntime(columns, made))
    return Subject(
        f"{TOP_TEN.name}, {objects:,} objects",
        "object",
        objects,
        Contender(
            "market.query, all scanned",
            lambda: runner.run(market.query(TOP_TEN.sql, TOP_TEN.params, policy=VISIT_ALL)),
            lambda result: result.rows,
        ),
        (
            Contender(
                "Durable Objects in the platform's own runtime",
                lambda: runtime.top(TOP_TEN.naive, TOP_TEN.params, key=4, limit=10),
                at_most=0.1 if objects == 1_000 else None,
            ),
        ),
        least_rounds=7,
    )
