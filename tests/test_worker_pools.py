"""Shards scanned by a pool of worker processes: pools that break, that are shut down, and files that are dropped."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mktsim.errors import IncompleteAnswerError
from mktsim.fanout import ScatterPolicy
from mktsim.fanout.costs import Costs
from mktsim.market import Marketplace, generate

SUM = "SELECT SUM(LENGTH(name)), COUNT(*) FROM products"
SCANNED = ScatterPolicy(visit_all=True)


@pytest.fixture(autouse=True)
def _handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small fleets handed to the pool as well."""
    monkeypatch.setattr(Costs, "scans_here", lambda self, vendors, workers: False)


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generate(tmp_path / "m", vendors=120, products=3, seed=1, shards=4, workers=1)
    return tmp_path / "m"


async def whole(folder: Path) -> list[tuple[object, ...]]:
    async with Marketplace.open(folder) as market:
        return (await market.query(SUM, policy=SCANNED)).rows


def test_after_a_worker_was_killed_scans_go_on_in_this_process(folder: Path, pool: ProcessPoolExecutor) -> None:
    """The query that it was at is an error by name; the pool takes no more, and the files are at hand."""

    async def run() -> None:
        async with Marketplace.open(folder, executor=pool) as market:
            expected = await whole(folder)
            first = await market.query(SUM, policy=SCANNED)
            assert (first.rows, "2 worker processes" in first.stats.reading) == (expected, True)
            for process in list(pool._processes):
                os.kill(process, signal.SIGKILL)
            with suppress(IncompleteAnswerError):  # until the pool has noticed
                while not market._coordinator.scanners[0].is_abandoned:
                    assert (await market.query(SUM, policy=SCANNED)).rows == expected
                    await asyncio.sleep(0.01)
            for _ in range(2):
                again = await market.query(SUM, policy=SCANNED)
                assert again.rows == expected
                assert "has broken or was shut down" in again.stats.reading
            assert "has broken or was shut down" in str(market.explain("SELECT SUM(LENGTH(name)) FROM products"))

    asyncio.run(run())


def test_a_pool_that_was_shut_down_spares_nobody_the_answer(folder: Path, pool: ProcessPoolExecutor) -> None:
    """It is scanned here, and said so."""

    async def run() -> None:
        async with Marketplace.open(folder, executor=pool) as market:
            pool.shutdown()
            found = await market.query(SUM, policy=SCANNED)
            assert found.rows == await whole(folder)
            assert "was shut down" in found.stats.reading

    asyncio.run(run())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are looked at in /proc")
def test_workers_let_go_of_the_files_of_dropped_shards(folder: Path, pool: ProcessPoolExecutor) -> None:
    """An open file keeps its space on the disk: after some scans none of them is held any more."""

    def held() -> int:
        names = [os.readlink(each) for pid in pool._processes for each in Path(f"/proc/{pid}/fd").iterdir()]
        return sum("shard-" in name and name.endswith("(deleted)") for name in names)

    async def run() -> None:
        async with Marketplace.open(folder, executor=pool) as market:
            for _ in range(5):
                await market.query(SUM, policy=SCANNED)
            await market.rebalance(shards=2)
            seen = []
            for _ in range(40):
                await market.query(SUM, policy=SCANNED)
                seen.append(held())
                if not seen[-1]:
                    break
            assert seen[-1] == 0, seen

    asyncio.run(run())
