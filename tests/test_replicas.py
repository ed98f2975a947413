"""Replicas of shards: where second copies of a query go, how far behind they are, and what they never do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import (
    IncompleteAnswerError,
    InvalidArgumentError,
    LostFileError,
    ReadOnlyError,
    StaleReplicaError,
    StorageError,
)
from mktsim.fanout import ScatterPolicy
from mktsim.fanout.messages import ScatterRequest
from mktsim.market import Cart, Marketplace
from mktsim.market.placing import ShardMap, numbered
from mktsim.market.replication import homes
from mktsim.sim import SimLoop
from mktsim.sqlite import SQLITE_OPEN_READONLY, connect
from mktsim.storage.replicas import ReplicaStore

STOCK = 1_000_000
COUNT = "SELECT COUNT(*), SUM(stock), COUNT(DISTINCT vendorId) FROM products"
ROWS = "SELECT vendorId, sku, price, stock FROM products ORDER BY vendorId, sku"
BY_CATEGORY = "SELECT category, COUNT(*), SUM(stock), MAX(price) FROM products GROUP BY category ORDER BY category"
RETRY = ScatterPolicy(retries=1, backoff_s=0.0)
HEDGE = ScatterPolicy(hedge_after_s=0.05)


def run(test: Callable[[Marketplace], Awaitable[None]], *arguments: Any, **options: Any) -> None:
    async def body() -> None:
        async with Marketplace.open(*arguments, **({"replicas": 1, "shards": 4} | options)) as market:
            await test(market)

    asyncio.run(body())


def fill(market: Marketplace, vendors: int, first: int = 0) -> list[str]:
    """Create vendors with two products each, in bulk, and return their ids."""
    ids = [f"vendor-{number:05}" for number in range(first, first + vendors)]
    made = "2026-11-22T00:00:00.000000Z"
    market.store.create_many(
        (
            vendor_id,
            {
                "_vendor": [(vendor_id, 0)],
                "vendors": [(vendor_id, vendor_id, f"Name {number}", None, None, "active", made)],
                "products": [
                    ("p1", vendor_id, "S", "Thing", None, "a", number % 97 + 1, 4.0, STOCK, made),
                    ("p2", vendor_id, "Tea", "Tea", None, "b", number % 89 + 1, 3.0, STOCK, made),
                ],
            },
        )
        for number, vendor_id in enumerate(ids)
    )
    return ids


async def order(market: Marketplace, vendor_id: str, number: int = 0) -> None:
    [placed] = await market.place_order(Cart(f"c{number}", [{"vendorId": vendor_id, "sku": "S"}]))
    assert placed["status"] == "accepted", placed


class Held:
    """A shard whose answers wait until they are let go, and how often it was asked."""

    def __init__(self, market: Marketplace, shard: str) -> None:
        self.asked = 0
        self.released = asyncio.Event()
        self._scanner = next(each for each in market._coordinator.scanners if each.id == shard)
        self._network = market.network
        market.network.unregister(f"shard/{shard}")
        market.network.register(f"shard/{shard}", self._answer)

    async def _answer(self, _address: str, request: ScatterRequest) -> Any:
        self.asked += 1
        await self.released.wait()
        return self._scanner.scan(request)


def rest(market: Marketplace) -> None:
    """Have replicas follow no more, but for who calls `replicated`."""
    assert market._replication is not None
    assert market._replication._task is not None
    market._replication._task.cancel()


def test_a_hedge_of_a_slow_shard_goes_to_its_replica_and_the_answer_is_the_same(tmp_path: Path) -> None:
    """The shard is asked and never answers; after the delay its replica does, for exactly its vendors, not stale."""

    async def story(market: Marketplace) -> None:
        ids = fill(market, 60)
        await market.replicated()
        for sql in (
            COUNT,
            ROWS,
            BY_CATEGORY,
            "SELECT name FROM vendors ORDER BY id LIMIT 5",
            "SELECT sku FROM products",
        ):
            expected = await market.query(sql)
            assert expected.stats.stale is None
            market._coordinator._partials.clear()  # of which nobody would be asked anything
            held = Held(market, "shard-1")
            result = await market.query(sql, policy=HEDGE)
            assert result.rows == expected.rows
            assert result.coverage.complete
            assert held.asked == 1
            stale = result.stats.stale
            assert stale is not None
            assert (stale.changes, stale.seconds) == (0, 0.0)
            assert stale.vendors == market.store.count("shard-1") > 0
            assert result.stats.vendors_answered == expected.stats.vendors_answered == len(ids)
            held.released.set()
            market.network.unregister("shard/shard-1")
            market.network.register("shard/shard-1", lambda _, request, scanner=held._scanner: scanner.scan(request))

    run(story, tmp_path / "market")


def test_on_simulated_time_the_replica_answers_at_the_delay_of_the_hedge(tmp_path: Path) -> None:
    """The copying, the hedge and the staleness go by the loop's clock alone: the same code under simulation."""

    async def body() -> tuple[float, float, int]:
        loop = asyncio.get_running_loop()
        async with Marketplace.open(tmp_path / "market", shards=4, replicas=1) as market:
            ids = fill(market, 20)
            await market.replicated()
            rest(market)
            of_one = next(each for each in ids if market.store.shard_of(each) == "shard-1")
            with market.store.transaction(of_one) as connection:
                connection.execute("UPDATE products SET stock = 5 WHERE sku = 'S'")
            begun_s = loop.time()
            await asyncio.sleep(3.0)
            held = Held(market, "shard-1")
            result = await market.query(COUNT, policy=ScatterPolicy(hedge_after_s=0.25))
            held.released.set()
            assert result.stats.stale is not None
            assert result.rows == [(40, 40 * STOCK, 20)]  # as it was before the write
            return loop.time() - begun_s, result.stats.stale.seconds, result.stats.stale.changes

    loop = SimLoop()
    try:
        assert loop.run_until_complete(body()) == (3.25, 3.25, 1)
    finally:
        loop.close()


def test_staleness_is_reported_after_a_write_and_zero_after_catching_up(tmp_path: Path) -> None:
    """A row a replica: the vendors changed since, the seconds since it lacked nothing."""

    async def story(market: Marketplace) -> None:
        ids = fill(market, 40)
        await market.replicated()
        frame = market.staleness()
        assert list(frame["shard"]) == list(market.shards)
        assert (frame["shard"] != frame["beside"]).all()
        assert frame["vendors"].sum() == 40
        assert (frame["changes"] == 0).all()
        assert (frame["seconds"] == 0.0).all()
        assert frame["answers"].all()
        rest(market)
        await asyncio.sleep(0.01)
        await order(market, ids[0])
        await order(market, ids[0], 1)
        await asyncio.sleep(0.05)
        frame = market.staleness().set_index("shard")
        behind = frame[frame["changes"] > 0]
        assert list(behind.index) == [market.store.shard_of(ids[0])]
        assert list(behind["changes"]) == [1]  # one vendor, however often it was written
        assert 0.05 <= behind["seconds"].iloc[0] < 60
        assert behind["answers"].all()
        await market.replicated()
        frame = market.staleness()
        assert (frame["changes"] == 0).all()
        assert (frame["seconds"] == 0.0).all()

    run(story, tmp_path / "market")


def test_replicas_follow_by_themselves_what_is_written_made_deleted_and_made_again(tmp_path: Path) -> None:
    """After a while, without being asked to, each holds its shard's vendors, byte for byte, at their versions."""

    async def story(market: Marketplace) -> None:
        ids = fill(market, 300)
        await market.replicated()
        for number in range(20):
            await order(market, ids[number], number)
        followers, market.store.followers = market.store.followers, []  # type: ignore[attr-defined]
        market.store.delete(ids[202])  # as another process would
        market.store.followers = followers  # type: ignore[attr-defined]
        market.store.delete(ids[200])
        market.store.delete(ids[201])
        fill(market, 1, first=201)
        fill(market, 10, first=300)
        for _ in range(200):
            await asyncio.sleep(0.02)
            if (market.staleness()["changes"] == 0).all():
                break
        assert_same(market)

    run(story, tmp_path / "market", replicas=2)


def assert_same(market: Marketplace) -> None:
    assert market._replication is not None
    assert market._replication.stores
    for replicas in market._replication.stores:
        assert replicas.vendor_ids() == market.store.vendor_ids()
        for vendor_id in market.store.vendor_ids():
            assert replicas.version(vendor_id) == market.store.version(vendor_id)
            assert replicas.image(vendor_id) == market.store.image(vendor_id)


def test_changes_of_one_number_are_all_followed(tmp_path: Path) -> None:
    """Shard files of an earlier layout gave their vendors one number: a batch may end between two of those."""

    async def story(market: Marketplace) -> None:
        fill(market, 300)
        for shard in market.shards:
            market.store._file(shard).execute("UPDATE summaries SET seq = 1")  # type: ignore[attr-defined]
        await market.replicated()
        assert_same(market)

    run(story, tmp_path / "market", shards=2)


def test_a_policy_that_forbids_stale_answers_never_asks_a_replica(tmp_path: Path) -> None:
    """However current the replica is, the shard's own answer is waited for."""

    async def story(market: Marketplace) -> None:
        fill(market, 20)
        await market.replicated()
        held = Held(market, "shard-1")
        asked = asyncio.ensure_future(market.query(ROWS, policy=HEDGE.replace(max_staleness_s=0)))
        await asyncio.sleep(0.2)
        assert not asked.done()
        assert held.asked == 2  # the second copy too
        held.released.set()
        assert (await asked).stats.stale is None

    run(story, tmp_path / "market")


def test_whoever_writes_to_a_replica_is_refused_by_name(tmp_path: Path) -> None:
    """Creating, writing, joining, deleting and restoring; and the file that scans read is opened for reading."""

    async def story(market: Marketplace) -> None:
        [vendor_id] = fill(market, 1)
        await market.replicated()
        assert market._replication is not None
        [replicas] = market._replication.stores
        for write in (
            lambda: replicas.create("x"),
            lambda: replicas.create_many([("x", {})]),
            lambda: replicas.creating("x"),
            lambda: replicas.transaction(vendor_id),
            lambda: replicas.join(vendor_id),
            lambda: replicas.delete(vendor_id),
            lambda: replicas.restore(vendor_id, b""),
        ):
            with pytest.raises(ReadOnlyError, match="only follows its shard"):
                write()
        with replicas.read(vendor_id) as connection, pytest.raises(Exception, match="authoriz"):
            connection.execute("DELETE FROM products")
        with pytest.raises(ReadOnlyError):
            list(replicas.scan(replicas.shard_of(vendor_id), [("DELETE FROM products", ())]))
        assert_same(market)

    run(story, tmp_path / "market")


@pytest.mark.parametrize("wanted", [-1, True, 1.5, "1", None, 4, 100])
def test_how_many_replicas_there_can_be_is_checked(tmp_path: Path, wanted: Any) -> None:
    """A whole number from 0, below the number of shards."""
    with pytest.raises(InvalidArgumentError, match="replica"):
        run(lambda market: asyncio.sleep(0), tmp_path / "market", replicas=wanted)


def test_stores_without_shard_files_have_no_replicas(tmp_path: Path) -> None:
    """In memory, and a file a vendor: refused by name."""
    with pytest.raises(InvalidArgumentError, match="a memory store has none"):
        run(lambda market: asyncio.sleep(0))
    with pytest.raises(InvalidArgumentError, match="a directory store has none"):
        run(lambda market: asyncio.sleep(0), tmp_path / "market", store="directory")


def spoil(path: Path) -> None:
    """Overwrite a shard's file from its first byte on."""
    size = path.stat().st_size
    path.write_bytes(b"no database" * (size // 11 + 1))
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_file_that_cannot_be_read_is_answered_for_by_its_replica(tmp_path: Path, workers: int) -> None:
    """With a retry the answer is complete and says how stale it may be; without, it fails closed, by name."""
    expected: dict[str, Any] = {}

    async def before(market: Marketplace) -> None:
        fill(market, 60)
        for sql in (COUNT, ROWS, BY_CATEGORY):
            expected[sql] = (await market.query(sql)).rows
        await market.replicated()

    async def after(market: Marketplace) -> None:
        count = sum(shard == "shard-2" for shard in map(market.store.shard_of, map("vendor-{:05}".format, range(60))))
        for sql, rows in expected.items():
            result = await market.query(sql, policy=RETRY)
            assert result.rows == rows
            assert result.coverage.complete
            assert result.stats.stale is not None
            assert (result.stats.stale.vendors, result.stats.stale.seconds) == (count, inf)
        for policy in (None, RETRY.replace(max_staleness_s=0), RETRY.replace(max_staleness_s=3600.0)):
            with pytest.raises(IncompleteAnswerError) as caught:
                await market.query(COUNT, policy=policy)
            assert caught.value.missing == ("shard-2",)
        partial = await market.query(COUNT, allow_partial=True)
        assert partial.coverage.missing == ("shard-2",)
        assert partial.stats.stale is None
        single = next(f"vendor-{n:05}" for n in range(60) if market.store.shard_of(f"vendor-{n:05}") == "shard-2")
        result = await market.query(COUNT, shard_key=single, policy=RETRY)
        assert result.rows == [(2, 2 * STOCK, 1)]
        assert result.stats.stale is not None
        result = await market.query("SELECT sku FROM products WHERE vendorId = ?", [single], policy=RETRY)
        assert sorted(result.rows) == [("S",), ("Tea",)]
        row = market.staleness().set_index("shard").loc["shard-2"]
        assert row["answers"]
        assert row["seconds"] == inf
        stream = market.stream("SELECT vendorId, sku FROM products", policy=RETRY)
        assert len([found async for found in stream]) == 120
        assert stream.stats is not None
        assert stream.stats.stale is not None
        assert stream.stats.stale.vendors == count

    run(before, tmp_path / "market")
    spoil(tmp_path / "market" / "vendors" / "shard-2.sqlite")
    with ProcessPoolExecutor(1) if workers else nullcontext() as executor:
        run(after, tmp_path / "market", executor=executor)


def test_with_a_clock_staleness_is_told_across_restarts(tmp_path: Path) -> None:
    """What was current when the market closed is as many seconds behind as the clock says, and a bound on it holds."""
    now_s = [1000.0]

    async def before(market: Marketplace) -> None:
        fill(market, 20)
        await market.replicated()

    async def after(market: Marketplace) -> None:
        result = await market.query(COUNT, policy=RETRY)
        assert result.stats.stale is not None
        assert result.stats.stale.seconds == 30.0
        await market.query(COUNT, policy=RETRY.replace(max_staleness_s=30.0))
        with pytest.raises(IncompleteAnswerError):
            await market.query(COUNT, policy=RETRY.replace(max_staleness_s=29.0))

    run(before, tmp_path / "market", clock=lambda: now_s[0])
    spoil(tmp_path / "market" / "vendors" / "shard-2.sqlite")
    now_s[0] = 1030.0
    run(after, tmp_path / "market", clock=lambda: now_s[0])


def test_a_copy_outlives_the_file_of_its_shard_and_never_follows_a_new_one(tmp_path: Path) -> None:
    """The market opens, the copy answers for it; one made anew, as asked for, is not what the copy is a copy of."""
    folder = tmp_path / "market" / "vendors"

    async def before(market: Marketplace) -> None:
        fill(market, 40)
        await market.replicated()

    async def lost(market: Marketplace) -> None:
        assert (await market.query(COUNT, policy=RETRY)).rows == [(80, 80 * STOCK, 40)]
        with pytest.raises(IncompleteAnswerError, match=r"shard-2\.sqlite.*missing"):
            await market.query(COUNT)
        with pytest.raises(LostFileError, match=r"shard-2\.sqlite"):
            await market.replicated()
        for vendor_id in map("vendor-{:05}".format, range(40)):  # of the other shards they sell as ever
            if market.store.shard_of(vendor_id) == "shard-2":
                with pytest.raises(LostFileError):
                    await market.vendor(vendor_id).list_products()
            else:
                assert len(await market.vendor(vendor_id).list_products()) == 2
        row = market.staleness().set_index("shard").loc["shard-2"]
        assert row["answers"]
        assert row["vendors"] > 0
        assert "missing" in row["remark"]
        assert (market.limits()["needed"].dropna() > 0).all()
        assert not (folder / "shard-2.sqlite").exists()

    async def after(market: Marketplace) -> None:
        with pytest.raises(StorageError, match="copy of another file"):
            await market.replicated()
        assert market.staleness()["vendors"].sum() == 40
        assert "copy of another file" in " ".join(market.staleness()["remark"])

    run(before, tmp_path / "market")
    for suffix in ("", "-wal", "-shm"):
        (folder / f"shard-2.sqlite{suffix}").unlink(missing_ok=True)
    with pytest.raises(LostFileError, match=r"shard-2\.sqlite"):
        run(lost, tmp_path / "market", replicas=0)
    run(lost, tmp_path / "market")
    facts = json.loads((folder / "store.json").read_text())
    facts["made"].remove("shard-2.sqlite")
    (folder / "store.json").write_text(json.dumps(facts))
    run(after, tmp_path / "market")


def test_a_damaged_replica_is_named_and_made_anew_once_it_is_gone(tmp_path: Path) -> None:
    """The market opens and answers without it; when its file has been deleted, it is copied again."""
    path = tmp_path / "market" / "vendors" / "replicas" / homes(ShardMap(numbered(4), 150), 1)[0]["shard-1"]

    async def before(market: Marketplace) -> None:
        fill(market, 40)
        await market.replicated()

    async def damaged(market: Marketplace) -> None:
        row = market.staleness().set_index("shard").loc["shard-1"]
        assert not row["answers"]
        assert "damaged" in row["remark"]
        assert row["vendors"] == 0
        assert (await market.query(COUNT, policy=HEDGE)).rows == [(80, 80 * STOCK, 40)]
        with pytest.raises(StorageError, match="damaged"):
            await market.replicated()
        (path / "shard-1.sqlite").unlink()
        await market.replicated()
        assert_same(market)

    run(before, tmp_path / "market")
    spoil(path / "shard-1.sqlite")
    run(damaged, tmp_path / "market")


def test_a_stale_answer_does_not_enter_what_is_kept(tmp_path: Path) -> None:
    """A replica that is behind answers an aggregate; asked again of the shards, the answer is the present one."""

    async def story(market: Marketplace) -> None:
        ids = fill(market, 200)
        await market.replicated()
        rest(market)
        mine = [each for each in ids if market.store.shard_of(each) == "shard-1"]
        for warm in (True, False):
            if warm:
                await market.query(BY_CATEGORY)
            with market.store.transaction(mine[0 if warm else 1]) as connection:
                connection.execute("UPDATE products SET stock = 7, price = 12345 WHERE sku = 'S'")
            held = Held(market, "shard-1")
            if warm:  # What is kept is brought up to date by the shard itself, or not at all.
                hedged = asyncio.ensure_future(market.query(BY_CATEGORY, policy=HEDGE))
                await asyncio.sleep(0.2)
                assert not hedged.done()
                held.released.set()
                assert (await hedged).stats.stale is None
            else:
                market._coordinator._partials.clear()
                hedged_result = await market.query(BY_CATEGORY, policy=HEDGE)
                assert hedged_result.stats.stale is not None
                assert hedged_result.stats.stale.changes == 2
                held.released.set()
            market.network.unregister("shard/shard-1")
            market.network.register("shard/shard-1", lambda _, request, scanner=held._scanner: scanner.scan(request))
            for _ in range(3):
                fresh = await market.query(BY_CATEGORY)
                oracle = {}
                for _, sku, price, stock in (await market.query(ROWS)).rows:
                    category = "a" if sku == "S" else "b"
                    count, total, most = oracle.get(category, (0, 0, 0))
                    oracle[category] = count + 1, total + stock, max(most, price)
                assert fresh.rows == [(category, *oracle[category]) for category in sorted(oracle)]
                assert fresh.stats.stale is None
            assert "partials kept" in fresh.stats.reading  # nor is the statement taken for one not worth keeping

    run(story, tmp_path / "market")


def test_a_vendor_that_a_replica_does_not_have_yet_is_answered_for_by_its_shard(tmp_path: Path) -> None:
    """Asked for by name, the replica says that it is behind; the shard's own answer is waited for."""

    async def story(market: Marketplace) -> None:
        fill(market, 40)
        await market.replicated()
        rest(market)
        new = next(f"vendor-{n:05}" for n in range(40, 99) if market.store.shard_of(f"vendor-{n:05}") == "shard-1")
        fill(market, 1, first=int(new[-5:]))
        held = Held(market, "shard-1")
        sql = "SELECT COUNT(*) FROM products WHERE vendorId = ?"
        asked = asyncio.ensure_future(market.query(sql, [new], policy=HEDGE))
        await asyncio.sleep(0.2)
        assert not asked.done()
        held.released.set()
        result = await asked
        assert result.rows == [(2,)]
        assert result.stats.stale is None
        assert result.stats.calls == 2

    run(story, tmp_path / "market")


def test_replicas_rest_while_vendors_move_and_follow_the_new_map_after(tmp_path: Path) -> None:
    """During a rebalance a replica refuses by name; after it each holds its shard's vendors where the map has it."""

    async def story(market: Marketplace) -> None:
        ids = fill(market, 200)
        await market.replicated()
        replication = market._replication
        assert replication is not None
        old = list(replication._offered)
        moving = asyncio.ensure_future(market.rebalance(shards=6, vendors_per_s=150.0))
        await asyncio.sleep(0.15)
        assert market.store.moving is not None  # type: ignore[attr-defined]
        assert not replication._offered
        assert not market._coordinator._node.replicas
        for scanner in old:
            with pytest.raises(StaleReplicaError, match="vendors move"):
                scanner.scan(ScatterRequest((("SELECT 1", ()),)))
        with pytest.raises(StaleReplicaError, match="vendors move"):
            await market.replicated()
        assert not market.staleness()["answers"].any()
        assert (await market.query(COUNT, policy=HEDGE)).rows == [(400, 400 * STOCK, 200)]
        rest(market)
        await moving
        # Not yet caught up, a replica of the old map must not stand beside shards of the new one.
        for store in replication.stores:
            for copy in store.copies.values():
                assert replication.hindrance(copy)
        await market.replicated()
        assert_same(market)
        found = {shard: copy.home for shard, copy in replication.stores[0].copies.items()}
        assert [found] == homes(ShardMap(numbered(6), 150), 1)
        held = Held(market, "shard-5")
        result = await market.query(COUNT, policy=HEDGE)
        assert result.rows == [(400, 400 * STOCK, 200)]
        assert result.stats.stale is not None
        held.released.set()
        await asyncio.sleep(0)
        await market.rebalance(shards=2)
        await market.replicated()
        assert_same(market)
        files = {
            f"{path.parent.name}/{path.name}" for path in (tmp_path / "market/vendors/replicas").glob("*/*.sqlite")
        }
        assert files == {"shard-0/shard-1.sqlite", "shard-1/shard-0.sqlite"}
        assert len(ids) == 200

    run(story, tmp_path / "market")


def test_every_query_is_exact_while_shards_come_and_go_and_some_fail(tmp_path: Path) -> None:
    """A third of the calls to shards fail and go to replicas, during moves and after: no vendor twice or missing."""

    async def story(market: Marketplace) -> None:
        fill(market, 120)
        await market.replicated()
        calls = failed = stale = 0
        call = market.network.call

        def failing(source: str, target: str, message: Any) -> asyncio.Future[Any]:
            nonlocal calls, failed
            if type(message) is ScatterRequest and "/replica/" not in target:
                calls += 1
                if calls % 3 == 0:
                    failed += 1
                    lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                    lost.set_exception(StorageError("lost"))
                    return lost
            return call(source, target, message)

        market.network.call = failing  # type: ignore[method-assign]
        policy = ScatterPolicy(retries=4, backoff_s=0.0, retry_budget=10.0)
        for shards in (6, 3):
            moving = asyncio.ensure_future(market.rebalance(shards=shards, vendors_per_s=2000.0))
            while not moving.done():
                result = await market.query(COUNT, policy=policy)
                assert result.rows == [(240, 240 * STOCK, 120)]
                stale += result.stats.stale is not None
                await asyncio.sleep(0)
            await moving
            for _ in range(12):
                market._coordinator._partials.clear()  # of which nobody would be asked anything
                result = await market.query(COUNT, policy=policy)
                assert result.rows == [(240, 240 * STOCK, 120)]
                stale += result.stats.stale is not None
                await asyncio.sleep(0.02)
        assert failed > 20
        assert stale > 5

    run(story, tmp_path / "market")


def test_a_deleted_vendor_leaves_no_bytes_in_replicas(tmp_path: Path) -> None:
    """The proof of deletion searches the replicas too."""

    async def story(market: Marketplace) -> None:
        stub = market.vendor("a-vendor-of-its-own-name")
        await stub.initialize(name="Something to be searched for, long enough")
        fill(market, 20)
        await market.replicated()
        proof = await market.delete_vendor("a-vendor-of-its-own-name")
        assert proof.needles
        assert not proof.left
        assert any("replicas" in str(path) for path in (tmp_path / "market/vendors").rglob("*.sqlite"))
        await market.replicated()
        assert_same(market)

    run(story, tmp_path / "market")


def test_orders_do_not_wait_for_replicas(tmp_path: Path) -> None:
    """While a first copy of many vendors is made, orders are answered between its batches."""

    async def story(market: Marketplace) -> None:
        ids = fill(market, 3000)
        loop = asyncio.get_running_loop()
        copying = asyncio.ensure_future(market.replicated())
        await asyncio.sleep(0)
        slowest_s = 0.0
        for number in range(10):
            begun_s = loop.time()
            await order(market, ids[number], number)
            slowest_s = max(slowest_s, loop.time() - begun_s)
        assert not copying.done(), "the copy was made before the orders: take more vendors"
        assert slowest_s < 2.0
        await copying
        assert_same_count(market)

    run(story, tmp_path / "market")


def assert_same_count(market: Marketplace) -> None:
    assert market._replication is not None
    [replicas] = market._replication.stores
    assert replicas.vendor_ids() == market.store.vendor_ids()


CHILD = """
import asyncio, sys
from mktsim.market import Marketplace

async def main(path):
    async with Marketplace.open(path, replicas=1) as market:
        print("open", flush=True)
        await market.replicated()
        print("done", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(sys.argv[1]))
"""


def test_copying_that_was_killed_goes_on(tmp_path: Path) -> None:
    """SIGKILL at several moments of the first copy: what was followed stays, and in the end all is there."""
    made: list[int] = []

    async def before(market: Marketplace) -> None:
        fill(market, 4000)

    async def after(market: Marketplace) -> None:
        await market.replicated()
        assert_same(market)

    run(before, tmp_path / "market", replicas=0)
    for kill in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "market")], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == b"open\n"
            while copied(tmp_path / "market") < (kill + 1) * 600:
                time.sleep(0.002)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            assert kill or b"done" not in child.stdout.read()
        made.append(copied(tmp_path / "market"))
    assert 0 < made[0] < 4000
    assert made == sorted(made)
    run(after, tmp_path / "market")


def copied(path: Path) -> int:
    """Return how many vendors replicas have."""
    count = 0
    for file in (path / "vendors" / "replicas").glob("*/*.sqlite"):
        connection = connect(str(file), flags=SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(1_000)
            if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'vendors'").fetchall():
                count += int(connection.execute("SELECT COUNT(*) FROM vendors").get)
        finally:
            connection.close()
    return count


def test_replicas_lie_with_others_and_are_spread(tmp_path: Path) -> None:
    """Of 64 shards none keeps its own replica, the two of one lie apart, and no shard keeps very many."""
    placed = homes(ShardMap(numbered(64), 150), 2)
    assert [len(each) for each in placed] == [64, 64]
    for shard in numbered(64):
        assert len({shard, placed[0][shard], placed[1][shard]}) == 3
    most = max(list(placed[0].values()).count(shard) for shard in numbered(64))
    assert most <= 6
    split = ShardMap(("a", "b"), 8).split("a", "c")
    assert all(len(each) == 3 for each in homes(split, 2))


def test_a_store_of_replicas_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    """A shard without a copy, and a vendor without a row, are named."""

    async def story(market: Marketplace) -> None:
        fill(market, 10)
        await market.replicated()
        assert market._replication is not None
        [replicas] = market._replication.stores
        assert isinstance(replicas, ReplicaStore)
        with pytest.raises(InvalidArgumentError, match="no vendor 'nobody'"):
            replicas.version("nobody")
        assert "nobody" not in replicas
        assert "vendor-00001" in replicas
        with pytest.raises(InvalidArgumentError, match="no shard 'x'"):
            replicas.count("x")

    run(story, tmp_path / "market")
