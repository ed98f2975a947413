"""What the system allows is compared with what will be needed before anything begins, and named."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from mktsim import limits
from mktsim.errors import ResourceLimitError
from mktsim.limits import Lateness, available_memory, check_descriptors, check_memory, open_descriptors
from mktsim.market import Marketplace, footprint, generate
from mktsim.market.nouns import SCHEMA
from mktsim.sim.loop import SimLoop
from mktsim.storage import open_store
from mktsim.storage.packed import SHARD_DESCRIPTORS

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits are read from Linux's /proc")

PREAMBLE = """
import asyncio, os, resource, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from mktsim.errors import ResourceLimitError
from mktsim.limits import available_memory
from mktsim.market import Marketplace, footprint
from mktsim.market.nouns import SCHEMA
from mktsim.storage import open_store

async def counted(path=None, **options):
    async with Marketplace.open(path, **options) as market:
        return (await market.query("SELECT COUNT(*) FROM vendors")).rows[0][0]

def refused(make):
    try:
        make()
    except ResourceLimitError as error:
        return error
    raise AssertionError("nothing was refused")

def lower(kind, soft):
    resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))

path = sys.argv[1]
"""


def run_limited(code: str, path: Path) -> str:
    """Run code in a process of its own, whose limits it may lower."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(code), str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_new_market_of_more_shards_than_descriptors_allow_is_refused_and_leaves_nothing(tmp_path):
    """The error says what to raise, and no folder is there that would be of too many shards for ever."""
    said = run_limited(
        """
        lower(resource.RLIMIT_NOFILE, 256)
        error = refused(lambda: asyncio.run(counted(path, shards=100)))
        assert error.resource == "file descriptors" and error.needed > 700 > error.available
        print(error)
        assert not os.path.exists(path)
        assert asyncio.run(counted(path, shards=10)) == 0
        """,
        tmp_path / "market",
    )
    assert "ulimit -n" in said
    assert "RLIMIT_NOFILE" in said
    assert "fewer shards" in said


def test_the_limit_that_the_error_names_is_enough(tmp_path):
    """Who follows the message comes through, and queries over all shards then find the files that they need."""
    run_limited(
        """
        import re
        lower(resource.RLIMIT_NOFILE, 200)
        error = refused(lambda: asyncio.run(counted(path, shards=60)))
        lower(resource.RLIMIT_NOFILE, int(re.search(r"ulimit -n (\\d+)", str(error)).group(1)))
        async def story():
            async with Marketplace.open(path, shards=60) as market:
                for number in range(200):
                    await market.vendor(f"v{number}").initialize()
                for sql in ("SELECT COUNT(*) FROM vendors", "SELECT COUNT(*) FROM vendors WHERE id <> ''"):
                    assert (await market.query(sql)).rows == [(200,)]
                    assert (await market.query(sql, deadline_s=20)).rows == [(200,)]
        asyncio.run(story())
        """,
        tmp_path / "market",
    )


def test_an_existing_market_is_refused_under_a_lower_limit_and_is_whole_afterwards(tmp_path):
    """Nothing was begun."""
    path = tmp_path / "market"
    generate(path, vendors=30, products=3, seed=1, shards=40)
    run_limited("lower(resource.RLIMIT_NOFILE, 128); refused(lambda: asyncio.run(counted(path)))", path)

    async def story():
        async with Marketplace.open(path) as market:
            return len(market.vendors)

    assert asyncio.run(story()) == 30


def test_a_directory_store_is_refused_the_vendors_for_whose_files_there_is_no_room(tmp_path):
    """Before the first of them is written; as many as fit are served, all of them read and written."""
    run_limited(
        """
        lower(resource.RLIMIT_NOFILE, 192)
        rows = lambda a, b: [(f"v{i}", {"_vendor": [(f"v{i}", 0)]}) for i in range(a, b)]
        with open_store("directory", path, SCHEMA, shards=["s"], locate=lambda _: "s") as store:
            assert store.create_many(rows(0, 15)) == 15
            error = refused(lambda: store.create_many(rows(15, 200)))
            assert "packed" in str(error) and len(store) == 15
            for vendor in store.vendor_ids():
                with store.join(vendor) as connection:
                    connection.execute("UPDATE _vendor SET serial = 7")
            store.flush()
            assert [rows for _, (rows,) in store.scan("s", [("SELECT serial FROM _vendor", ())])] == [[(7,)]] * 15
        lower(resource.RLIMIT_NOFILE, 64)
        refused(lambda: open_store("directory", path, SCHEMA, shards=["s"], locate=lambda _: "s"))
        """,
        tmp_path / "store",
    )


def test_a_pool_of_more_processes_than_fit_is_refused(tmp_path):
    """By descriptors and by memory; the pool that fits is taken."""
    run_limited(
        """
        if __name__ == "__main__":
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            lower(resource.RLIMIT_NOFILE, 150)
            with ProcessPoolExecutor(60) as pool:
                error = refused(lambda: asyncio.run(counted(path, executor=pool, shards=2)))
                assert "smaller pool" in str(error), error
            lower(resource.RLIMIT_NOFILE, soft)
            with ProcessPoolExecutor(2) as pool:
                assert asyncio.run(counted(path, executor=pool, shards=2)) == 0
            size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            lower(resource.RLIMIT_AS, size + 150_000_000)
            with ProcessPoolExecutor(2) as pool:
                error = refused(lambda: asyncio.run(counted(path, executor=pool)))
                assert error.resource == "memory" and "ulimit -v" in str(error), error
        """,
        tmp_path / "market",
    )


def test_a_market_of_more_vendors_than_memory_holds_summaries_of_is_refused(tmp_path):
    """A million vendors are refused where few would pass; only large files make it count them."""
    run_limited(
        """
        from types import SimpleNamespace
        class Store(SimpleNamespace):
            def __len__(self):
                return self.vendors
        os.mkdir(path)
        with open(path + "/large", "wb") as file:
            file.truncate(10_000_000_000)
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        lower(resource.RLIMIT_AS, size + 200_000_000)
        assert 100_000_000 < available_memory() <= 200_000_000
        error = refused(lambda: footprint.check_opened(Store(path=Path(path), vendors=1_000_000), None))
        assert error.resource == "memory" and error.needed > 300_000_000 and "1,000,000 vendors" in str(error)
        footprint.check_opened(Store(path=Path(path), vendors=1_000), None)
        """,
        tmp_path / "store",
    )


@pytest.mark.parametrize("shards", [1, 12])
def test_the_estimates_hold(tmp_path, shards):
    """What a market has open, and what its summaries take, is no more than was reckoned with, and not far less."""
    generate(tmp_path / "market", vendors=300, products=10, seed=5, shards=shards)

    async def story():
        gc.collect()
        before = open_descriptors()
        async with Marketplace.open(tmp_path / "market") as market:
            for options in ({}, {"deadline_s": 20.0}, {"allow_partial": True}):
                await market.query("SELECT COUNT(*) FROM products", **options)
                await market.query("SELECT category, AVG(price) FROM products WHERE name <> '' GROUP BY 1", **options)
            for vendor in market.vendors:
                with market.store.join(vendor) as connection:
                    connection.execute("UPDATE products SET price = price + 1")
            market.store.flush()
            await market.query("SELECT category, AVG(price) FROM products WHERE name <> '' GROUP BY category")
            held = sum(market.store.summaries(shard).nbytes for shard in market.store.shards)
            return open_descriptors() - before, held, market.limits()

    opened, held, frame = asyncio.run(story())
    reckoned = frame.set_index("what").loc["file descriptors", "needed"]
    assert 0.5 * reckoned - 16 < opened <= reckoned
    assert 0.3 < held / 300 / footprint.VENDOR_BYTES < 1


def test_memory_is_the_least_of_what_the_system_and_the_control_group_leave(tmp_path, monkeypatch):
    """Either group version; files that are missing or say ``max`` are no limit."""
    meminfo, new, old = tmp_path / "meminfo", tmp_path / "new", tmp_path / "old"
    new.mkdir()
    old.mkdir()
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  5000 kB\n")
    monkeypatch.setattr(limits, "_MEMINFO", meminfo)
    monkeypatch.setattr(limits, "_GROUPS", (new, old))
    assert available_memory() == 5_120_000
    (new / "memory.max").write_text("max\n")
    assert available_memory() == 5_120_000
    (new / "memory.max").write_text("3000000\n")
    (new / "memory.stat").write_text("anon 1000000\nfile 900000\n")
    assert available_memory() == 2_000_000
    (old / "memory.limit_in_bytes").write_text("1500000\n")
    (old / "memory.stat").write_text("cache 900000\ntotal_rss 1000000\n")
    assert available_memory() == 500_000
    check_memory(500_000, "this")
    with pytest.raises(ResourceLimitError, match="this may need 1 MB of memory, and 0 MB are available") as caught:
        check_memory(600_000, "this")
    assert (caught.value.needed, caught.value.available) == (600_000, 500_000)


def test_descriptors_are_counted_as_they_are():
    """One more file, one more; the error survives a pickle, as workers send it."""
    before = open_descriptors()
    with open(os.devnull) as _:
        assert open_descriptors() == before + 1
    with pytest.raises(ResourceLimitError) as caught:
        check_descriptors(2**40, "this")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.needed, str(again)) == (2**40, str(caught.value))


def test_a_loop_that_is_held_up_is_late_by_as_much():
    """The worst stays, the last is of the last time; nested watching is one."""

    async def story():
        watched = Lateness()
        with watched, watched:
            time.sleep(0.06)
        assert 0.04 < watched.worst_s == watched.last_s < 1.0
        with watched:
            await asyncio.sleep(0.02)
            time.sleep(0.03)
            await asyncio.sleep(0)
        assert 0.01 < watched.last_s < watched.worst_s
        assert not [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]

    asyncio.run(story())


def test_time_between_loops_and_in_simulation_is_not_lateness():
    """A stopped loop is late for nobody, and a simulated one has no timer more for being watched."""
    watched = Lateness()

    async def quick():
        with watched:
            await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(quick())
        time.sleep(0.2)
        runner.run(quick())
    assert watched.worst_s < 0.15

    async def simulated():
        with watched:
            assert watched._handle is None
            await asyncio.sleep(1000)

    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(simulated())
    assert watched.last_s == 0.0


def test_limits_says_what_is_used_needed_and_allowed_for_each_store(tmp_path):
    """A frame of numbers; a query that scans in this process makes the loop late."""

    async def story(**options):
        async with Marketplace.open(**options) as market:
            for number in range(5):
                await market.vendor(f"v{number}").initialize()
            result = await market.query("SELECT COUNT(*) FROM vendors AS a JOIN vendors AS b")
            return result.rows, market.limits()

    for options in ({}, {"path": tmp_path / "d", "store": "directory"}, {"path": tmp_path / "p", "shards": 3}):
        rows, frame = asyncio.run(story(**options))
        assert rows == [(25,)]
        assert list(frame.columns) == ["what", "unit", "used", "needed", "limit", "raise"]
        by = frame.set_index("what")
        assert 0 < by.loc["file descriptors", "used"] < by.loc["file descriptors", "limit"]
        assert by.loc["memory", "used"] + by.loc["memory", "needed"] < by.loc["memory", "limit"]
        assert by.loc["lateness of the loop in queries, worst", "used"] >= 0
        assert frame["raise"].str.len().gt(10).all()
    with ProcessPoolExecutor(3) as pool:
        with_pool = footprint._workers_to_start(pool)
    assert (with_pool, footprint._workers_to_start(None), footprint._workers_to_start(SimpleNamespace())) == (3, 0, 0)


def test_a_store_says_how_many_descriptors_it_may_have(tmp_path):
    """Three a file that it keeps open for reading, for writing and in a group commit."""
    with open_store("directory", tmp_path / "s", SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        assert store.most_descriptors == 3 * (1 + 96 + 24 + 64)


def test_replicas_are_counted_and_refused_before_they_are_made(tmp_path):
    """Together with shards and a pool, by one error; what it says is enough is enough."""
    run_limited(
        """
        if __name__ == "__main__":
            lower(resource.RLIMIT_NOFILE, 240)
            assert asyncio.run(counted(path, shards=12)) == 0
            error = refused(lambda: asyncio.run(counted(path, replicas=2)))
            assert "12 shards and 2 replicas of each" in str(error) and "fewer replicas" in str(error), error
            assert not os.path.exists(path + "/vendors/replicas")
            lower(resource.RLIMIT_NOFILE, 180)
            assert asyncio.run(counted(path)) == 0  # as many shards fit alone, and so does a pool
            with ProcessPoolExecutor(30) as pool:
                error = refused(lambda: asyncio.run(counted(path, executor=pool)))
                assert "12 shards and a pool of 30 processes" in str(error), error
            lower(resource.RLIMIT_NOFILE, 330)
            async def story():
                async with Marketplace.open(path, replicas=2) as market:
                    for number in range(50):
                        await market.vendor(f"v{number}").initialize()
                    await market.replicated()
                    for store in market._replication.stores:
                        for shard in store.shards:
                            list(store.scan(shard, [("SELECT 1", ())]))
                    assert (await market.query("SELECT COUNT(*) FROM vendors WHERE id <> ''")).rows == [(50,)]
            asyncio.run(story())
        """,
        tmp_path / "market",
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_estimate_of_descriptors_holds_with_replicas(tmp_path, replicas):
    """What is open is no more than what limits() says is needed, and not far less."""
    generate(tmp_path / "market", vendors=60, products=3, seed=5, shards=8)

    async def story():
        gc.collect()
        before = open_descriptors()
        async with Marketplace.open(tmp_path / "market", replicas=replicas) as market:
            await market.replicated()
            for store in market._replication.stores:
                for shard in store.shards:
                    list(store.scan(shard, [("SELECT 1", ())]))
            for vendor in market.vendors:
                with market.store.join(vendor) as connection:
                    connection.execute("UPDATE products SET price = price + 1")
            market.store.flush()
            await market.query("SELECT category, AVG(price) FROM products WHERE name <> '' GROUP BY category")
            await market.replicated()
            return open_descriptors() - before, market.limits()

    opened, frame = asyncio.run(story())
    reckoned = frame.set_index("what").loc["file descriptors", "needed"]
    assert reckoned == (1 + replicas) * 8 * SHARD_DESCRIPTORS + 24
    assert 0.7 * reckoned < opened <= reckoned


def test_a_rebalance_to_more_shards_than_descriptors_allow_is_refused_before_it_begins(tmp_path):
    """The market goes on as it was, and to as many as fit."""
    run_limited(
        """
        lower(resource.RLIMIT_NOFILE, 200)
        async def story():
            async with Marketplace.open(path, shards=2) as market:
                await market.vendor("acme").initialize()
                try:
                    await market.rebalance(shards=100)
                except ResourceLimitError as error:
                    assert "100 shards" in str(error)
                else:
                    raise AssertionError("nothing was refused")
                assert market.shards == ("shard-0", "shard-1") == market.store.shards and market.store.moving is None
                await market.rebalance(shards=6)
                assert (await market.query("SELECT id FROM vendors")).rows == [("acme",)]
        asyncio.run(story())
        """,
        tmp_path / "market",
    )
