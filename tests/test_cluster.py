"""Shards scanned by the workers of a Dask cluster: the same answers, whoever is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, CancelledError, ProcessPoolExecutor

import pandas as pd
import pytest

pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

import mktsim.fanout.scanner as scanner_module
from mktsim.cluster import ClusterExecutor, scan_shard_file
from mktsim.errors import (
    ClusterError,
    EvaluationError,
    IncompleteAnswerError,
    InvalidArgumentError,
    MktsimError,
    StorageError,
    VendorDownError,
)
from mktsim.fanout import QueryCoordinator, store_scanners
from mktsim.fanout.costs import Costs
from mktsim.fanout.messages import ScatterRequest
from mktsim.fanout.partials import PartialCache
from mktsim.fanout.scanner import scan_shard
from mktsim.market import Marketplace, generate
from mktsim.market.nouns import SCHEMA
from mktsim.sql.schema import Schema
from mktsim.study import Scenario, sweep

VENDORS, SHARDS = 240, 6
#: Statements of every tier, parameters, and options.
STATEMENTS = [
    ("SELECT COUNT(*), SUM(price), AVG(rating), MIN(name), TOTAL(stock) FROM products", (), {}),
    ("SELECT category, COUNT(*) AS n, AVG(price) FROM products GROUP BY category HAVING n > ? ORDER BY n, 1", (5,), {}),
    ("SELECT name, price, vendorId FROM products WHERE price > ? ORDER BY price DESC, id LIMIT 25", (20.0,), {}),
    ("SELECT DISTINCT category FROM products", (), {}),
    ("SELECT id, name FROM products WHERE name LIKE '%e%' LIMIT 40 OFFSET 13", (), {}),
    ("SELECT p.name, v.name FROM products p JOIN vendors v ON v.id = p.vendorId ORDER BY p.price LIMIT 9", (), {}),
    ("SELECT category, group_concat(name) FROM products WHERE rating > 4.8 GROUP BY category", (), {}),
    ("SELECT name, RANK() OVER (PARTITION BY category ORDER BY price DESC) FROM products WHERE stock < 9", (), {}),
    ("SELECT COUNT(DISTINCT category) FROM products WHERE vendorId IN (SELECT id FROM vendors LIMIT 7)", (), {}),
    ("SELECT name, price FROM products ORDER BY id", (), {"shard_key": "vendor-0000007"}),
    ("SELECT COUNT(*) FROM products WHERE vendorId IN ('vendor-0000001', 'vendor-0000002')", (), {}),
]
EVERYBODY = "SELECT COUNT(*), SUM(LENGTH(name)) FROM products"
#: As much work for each row as one likes: what is under way when something happens.
SLOW = "SELECT SUM(LENGTH(REPLACE(hex(zeroblob(? + LENGTH(name))), '0', 'ab'))), COUNT(*) FROM products"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A market on disk."""
    path = tmp_path_factory.mktemp("cluster") / "market"
    generate(path, vendors=VENDORS, products=6, seed=3, shards=SHARDS)
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes on this machine."""
    with ClusterExecutor(workers=2) as executor:
        yield executor


class Scanning:
    """A market whose queries visit everybody: no summaries, no kept partials."""

    def __init__(self, folder, executor):
        self.folder, self.executor = folder, executor

    async def __aenter__(self):
        self.market = await Marketplace.open(self.folder, executor=self.executor)
        plain = Schema(SCHEMA.statements, shard_column=SCHEMA.shard_column)
        scanners = store_scanners(self.market.store, executor=self.executor)
        self.coordinator = QueryCoordinator(scanners, schema=plain, address="scanning")
        self.coordinator._partials = PartialCache(0)
        self.query = self.coordinator.query
        self.paths = [str(self.market.store.shard_path(shard)) for shard in self.market.store.shards]
        return self

    async def __aexit__(self, *_):
        self.coordinator.close()
        await self.market.close()


async def everything(folder, executor):
    """Answer every statement."""
    async with Scanning(folder, executor) as scanning:
        return [(await scanning.query(sql, values, **options)).rows for sql, values, options in STATEMENTS]


def pids(executor):
    """Return the process of each worker, by its address."""
    return executor._client.run(os.getpid)


def under_way(executor, count, patience_s=20.0):
    """Wait until so many tasks are being run by workers, and return how many each runs."""
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        found = {address: len(keys) for address, keys in executor._client.processing().items()}
        if sum(found.values()) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError("no task was begun")


def blind(path):
    """Make this worker unable to open a shard file; run by a worker."""
    from mktsim.storage import scanner

    real = scanner.os.stat
    scanner.os = type("os", (), {"getpid": os.getpid, "stat": staticmethod(lambda p: _refuse(real, p, path))})


def _refuse(real, asked, path):
    if str(asked) == path:
        raise FileNotFoundError(2, "not on this machine", path)
    return real(asked)


def seeing():
    """Undo :func:`blind`."""
    from mktsim.storage import scanner

    scanner.os = os


def square(number, *, plus=0):
    """Be computed by a worker."""
    return number * number + plus


def fail(kind, message):
    """Raise."""
    raise kind(message)


# -- answers ------------------------------------------------------------------------------------------------------


def test_answers_of_every_tier_equal_those_of_this_process(folder, cluster):
    """Routed, two-phase, top-k, co-located and collected statements."""
    assert asyncio.run(everything(folder, cluster)) == asyncio.run(everything(folder, None))


def test_a_market_opened_with_a_cluster_answers_before_and_after_writes(folder, cluster, tmp_path):
    """With summaries and kept partials too; what is committed is seen by workers at once."""
    shutil.copytree(folder, tmp_path / "market")

    async def story(executor):
        async with Marketplace.open(tmp_path / "market", executor=executor) as market:
            answers = []
            for step in range(3):
                for sql, values, options in STATEMENTS:
                    answers.append((await market.query(sql, values, **options)).rows)
                if executor is not None:
                    await market.vendor(f"new-{step}").initialize(name="New")
                    await market.vendor(f"new-{step}").create_product(name="Nail", sku="N", price=1.25, stock=step)
            return answers

    written = asyncio.run(story(cluster))
    assert written[-len(STATEMENTS) :] != written[: len(STATEMENTS)]
    shutil.rmtree(tmp_path / "market")
    shutil.copytree(folder, tmp_path / "market")
    assert asyncio.run(story(None))[: len(STATEMENTS)] == written[: len(STATEMENTS)]


def test_a_statement_that_fails_on_a_worker_is_the_same_error(folder, cluster):
    """It is not tried elsewhere."""

    async def story(executor):
        async with Scanning(folder, executor) as scanning:
            await scanning.query(
                "SELECT SUM(9223372036854775807 + stock) + abs(-9223372036854775807 - 1) FROM products"
            )

    said = []
    for executor in (None, cluster):
        with pytest.raises(EvaluationError) as caught:
            asyncio.run(story(executor))
        said.append(caught.value.message)
    assert said[0] == said[1]


# -- placement ----------------------------------------------------------------------------------------------------


def test_shards_are_spread_over_all_workers_and_each_stays_with_its_own(folder, cluster):
    """No worker has more than its part at a time, and a shard read again alone is read by the ring's owner."""

    async def story():
        async with Scanning(folder, cluster) as scanning:
            await scanning.query(EVERYBODY)
            return scanning.paths

    paths = asyncio.run(story())
    owners = {path: cluster._ring.get_node(path) for path in paths}
    opened = cluster._client.run(_opened_files)
    assert set(opened) == set(cluster._ring.nodes)
    request = ScatterRequest(statements=(("SELECT COUNT(*) FROM products", ()),))
    for path in paths * 2:
        assert cluster.submit(scan_shard, path, request).result().answered > 0
        assert path in cluster._client.run(_opened_files)[owners[path]]
    assert not +cluster._under_way


def _opened_files():
    from mktsim.storage import scanner

    return [key[1] for key in scanner._scanners]


def test_no_worker_is_given_more_than_its_part_of_what_is_under_way():
    """ceil(n / w), whatever the ring would have."""
    executor = ClusterExecutor.__new__(ClusterExecutor)
    executor._under_way = Counter()
    for number in range(1, 31):
        executor._under_way[executor._chosen(["a", "b", "c"])] += 1
        assert max(executor._under_way.values()) == -(-number // 3)
    executor._under_way["a"] -= 5
    assert executor._chosen(["c", "a", "b"]) == "a"


# -- loss ---------------------------------------------------------------------------------------------------------


def test_what_a_killed_worker_had_under_way_is_answered_by_another(folder, cluster):
    """SIGKILL in the middle of a query: the same answer, all vendors covered."""
    sql, values = SLOW, (120_000,)

    async def story():
        async with Scanning(folder, cluster) as scanning:
            answer = asyncio.ensure_future(scanning.query(sql, values))
            busy = await asyncio.to_thread(under_way, cluster, SHARDS)
            await asyncio.sleep(0.1)
            victim = max(busy, key=busy.__getitem__)
            os.kill((await asyncio.to_thread(pids, cluster))[victim], signal.SIGKILL)
            return victim, await answer

    async def inline():
        async with Scanning(folder, None) as scanning:
            return await scanning.query(sql, values)

    victim, answer = asyncio.run(story())
    assert answer.rows == asyncio.run(inline()).rows
    assert answer.coverage.complete
    assert answer.coverage.answered == VENDORS
    cluster._client.wait_for_workers(2, timeout=30)
    assert victim not in pids(cluster)  # the nanny has started another in its place
    assert asyncio.run(everything(folder, cluster))
    assert victim not in cluster._ring.nodes


def test_a_place_that_the_cluster_gave_up_is_taken_again(cluster):
    """Dask forgets a worker that it did not see for a moment, and its nanny with it: the next tasks bring it back."""
    local = cluster._client.cluster

    async def give_up():
        await local.workers.pop(next(iter(local.workers))).close()

    asyncio.run_coroutine_threadsafe(give_up(), cluster._loop).result(20)
    until_s = time.monotonic() + 30
    while len(cluster._client.nthreads()) < 2 and time.monotonic() < until_s:
        assert cluster.submit(square, 2).result() == 4
        time.sleep(0.3)
    assert len(pids(cluster)) == 2


def test_a_shard_that_one_worker_cannot_open_is_read_by_the_other(folder, cluster):
    """Its owner refuses, the next on the ring answers; the caller sees nothing of it."""

    async def story():
        async with Scanning(folder, cluster) as scanning:
            await scanning.query(EVERYBODY)
            path = scanning.paths[0]
            owner = cluster._ring.get_node(path)
            await asyncio.to_thread(cluster._client.run, blind, path, workers=[owner])
            try:
                request = ScatterRequest(statements=(("SELECT 1", ()),))
                refused = cluster._client.submit(scan_shard_file, path, request, workers=[owner], pure=False)
                assert (await asyncio.to_thread(refused.result)).worker == owner
                return await scanning.query(EVERYBODY), path, request
            finally:
                await asyncio.to_thread(cluster._client.run, seeing)

    answer, path, request = asyncio.run(story())
    assert answer.coverage.complete
    assert answer.coverage.answered == VENDORS
    assert cluster.submit(scan_shard, path, request).result().answered > 0


def test_a_shard_that_no_worker_can_open_is_reported_by_coverage(folder, cluster, monkeypatch):
    """Only where a partial answer was asked for; else it is an error that names the shard."""
    monkeypatch.setattr(Costs, "scans_here", lambda *_: False)  # However little it pays.

    async def story():
        async with Scanning(folder, cluster) as scanning:
            whole = (await scanning.query(EVERYBODY)).rows[0][0]
            hidden, shard = scanning.paths[2], scanning.market.store.shards[2]
            lost = scanning.market.store.count(shard)
            await asyncio.to_thread(cluster._client.run, blind, hidden)
            try:
                with pytest.raises(IncompleteAnswerError, match=shard) as caught:
                    await scanning.query(EVERYBODY)
                partial = await scanning.query(EVERYBODY, allow_partial=True)
            finally:
                await asyncio.to_thread(cluster._client.run, seeing)
            return whole, shard, lost, caught.value, partial, await scanning.query(EVERYBODY)

    whole, shard, lost, error, partial, after = asyncio.run(story())
    assert isinstance(error.__cause__, VendorDownError)
    assert "none of 2 workers can open it" in str(error)
    assert partial.coverage.missing == (shard,)
    assert partial.coverage.answered == VENDORS - lost < VENDORS
    assert partial.rows[0][0] < whole == after.rows[0][0]


def test_a_deadline_that_passes_harms_no_other_query(folder, cluster):
    """What one gives up is not taken from the others."""

    async def story():
        async with Scanning(folder, cluster) as scanning:
            expected = (await scanning.query(EVERYBODY)).rows
            for _ in range(4):
                late = [scanning.query(SLOW, (4_000_000,), deadline_s=0.15) for _ in range(2)]
                found = await asyncio.gather(*late, scanning.query(EVERYBODY), return_exceptions=True)
                assert [type(each) for each in found[:2]] == [IncompleteAnswerError] * 2
                assert found[2].rows == expected

    asyncio.run(story())
    assert not cluster._pending


# -- an executor ----------------------------------------------------------------------------------------------------


def test_it_does_what_an_executor_does(cluster):
    """submit, map, errors, callbacks, cancellation."""
    assert cluster.submit(square, 7, plus=1).result() == 50
    assert list(cluster.map(square, range(5))) == [0, 1, 4, 9, 16]
    assert cluster.submit(pow, (sum, [1, 2])[1][0] + 1, 5).result() == 32
    assert cluster.submit(list, (sum, "of")).result() == [sum, "of"]  # no task hides in an argument
    for kind in (ValueError, StorageError):
        with pytest.raises(kind, match="told"):
            cluster.submit(fail, kind, "told").result()
    heard = threading.Event()
    cluster.submit(square, 1).add_done_callback(lambda future: heard.set())
    assert heard.wait(10)
    futures = [cluster.submit(time.sleep, 0.2) for _ in range(8)]
    assert futures[-1].cancel()
    with pytest.raises(CancelledError):
        futures[-1].result()
    assert [future.result() for future in futures[:-1]] == [None] * 7


def test_a_sweep_gives_the_frame_that_a_process_pool_gives(cluster):
    """The seed decides, not the executor."""
    grid = {"replications": 3, "seed": 11, "progress": False, "requests": 40, "vendors": [10, 30], "quantiles": (0.5,)}
    with ProcessPoolExecutor(1) as pool:
        expected = sweep(Scenario(), executor=pool, **grid)
    pd.testing.assert_frame_equal(sweep(Scenario(), executor=cluster, **grid), expected, check_exact=True)


def test_it_is_made_and_closed_under_a_running_loop():
    """As in a notebook: neither the start, a query, nor the end waits for the loop that waits for it."""

    async def story():
        with ClusterExecutor(workers=1) as executor:
            squares = [asyncio.get_running_loop().run_in_executor(executor, square, n) for n in range(3)]
            return await asyncio.wait_for(asyncio.gather(*squares), 20)

    assert asyncio.run(story()) == [0, 1, 4]


def test_it_joins_a_cluster_by_address_or_client_and_leaves_it_running(cluster):
    """What it did not start it does not end."""
    from distributed import Client

    address = cluster._client.scheduler.address
    with ClusterExecutor(address) as joined:
        assert joined.submit(square, 3).result() == 9
    with Client(address, set_as_default=False) as client:
        with ClusterExecutor(client) as joined:
            assert joined.submit(square, 4).result() == 16
        assert client.submit(square, 5).result() == 25
    assert cluster.submit(square, 6).result() == 36


def test_it_shows_where_to_look(cluster):
    """The dashboard's link, in text and in a notebook; nothing of it afterwards."""
    cluster.submit(square, 1).result()
    link = cluster.dashboard_link
    assert link.startswith("http://127.0.0.1:")
    assert link in repr(cluster)
    assert "workers: 2" in repr(cluster)
    assert f'href="{link}"' in cluster._repr_html_()


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", None, 10**9])
def test_a_number_of_workers_that_cannot_be_is_named(workers):
    """Before anything is started."""
    with pytest.raises(InvalidArgumentError, match="workers is a whole number"):
        ClusterExecutor(workers=workers)


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    """And what is no address as well."""
    monkeypatch.setattr("mktsim.cluster._PATIENCE_S", 0.5)
    for nowhere in ("tcp://127.0.0.1:9", "gibberish://", 5):
        with pytest.raises(ClusterError, match="no cluster at"):
            ClusterExecutor(nowhere)
    assert issubclass(ClusterError, MktsimError)
    assert issubclass(ClusterError, BrokenExecutor)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    """An ImportError that has a name and a way out."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install mktsim\[cluster\]") as caught:
        ClusterExecutor()
    assert isinstance(caught.value, MktsimError)


def test_the_function_that_workers_run_is_the_one_of_process_pools():
    """One scan function: what is tested of it holds of both."""
    assert scan_shard_file.__globals__["scan_shard"] is scanner_module.scan_shard


ALONE = """
import asyncio, gc, os, sys, warnings
import psutil
warnings.simplefilter("error")
from mktsim.cluster import ClusterExecutor
from mktsim.errors import ClusterError
from mktsim.market import Marketplace

def children():
    return [p for p in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]

async def counted(executor):
    async with Marketplace.open(sys.argv[1], executor=executor) as market:
        return (await market.query("SELECT COUNT(*), SUM(LENGTH(name)) FROM products")).rows

if __name__ == "__main__":
    seen = []
    for turn in range(3):
        with ClusterExecutor(workers=2) as executor:
            rows = asyncio.run(counted(executor))
            assert len(children()) >= 2
        executor.shutdown()
        assert not children(), children()
        assert "shut down" in repr(executor) and executor.dashboard_link is None
        try:
            executor.submit(len, "late")
        except ClusterError:
            pass
        else:
            raise AssertionError("a closed executor took a task")
        gc.collect()
        seen.append(len(os.listdir("/dev/fd")))
    assert seen[1] == seen[2] <= seen[0] + 2, seen
    print(rows[0][0])
"""


def test_closing_leaves_no_process_and_no_descriptor(folder, tmp_path):
    """Opened three times in a process of its own; the second and the third leave what the first did."""
    script = tmp_path / "alone.py"
    script.write_text(textwrap.dedent(ALONE))
    ran = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr
    assert int(ran.stdout) > VENDORS
