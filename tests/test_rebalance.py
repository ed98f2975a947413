"""Marketplaces that get other shards while orders and queries go on, against one database; and killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError, SchemaMismatchError, StorageError, UnknownNodeError
from mktsim.market import Cart, Marketplace
from mktsim.market.placing import ShardMap, numbered
from mktsim.market.rebalance import Rebalanced
from mktsim.sqlite import Connection, connect
from mktsim.storage import PackedStore

STOCK = 1_000_000
COUNT = "SELECT COUNT(*), SUM(LENGTH(id)), COUNT(DISTINCT vendorId) FROM products"
CHECKSUM = "SELECT vendorId, COUNT(*), SUM(price * 7 + LENGTH(sku)) FROM products GROUP BY vendorId ORDER BY vendorId"


def run(test: Callable[[Marketplace], Awaitable[None]], *arguments: Any, **options: Any) -> None:
    async def body() -> None:
        async with Marketplace.open(*arguments, **options) as market:
            await test(market)

    asyncio.run(body())


def fill(market: Marketplace, vendors: int) -> list[str]:
    """Create vendors with two products each, in bulk, and return their ids."""
    ids = [f"vendor-{number:07}" for number in range(vendors)]  # as the catalogue names them
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


def gathered(store: PackedStore) -> Connection:
    """Return ONE database that holds the rows of every vendor: the oracle."""
    oracle = connect()
    model = store.schema.database()
    for table in ("products", "orders"):  # without keys, for those hold within a vendor only
        declared = model.execute("SELECT name, type FROM pragma_table_info(?)", (table,)).fetchall()
        columns = ", ".join(f'"{name}"' for name, _ in declared)
        typed = ", ".join(f'"{name}" {kind}' for name, kind in declared)
        oracle.execute(f"CREATE TABLE {table}({typed})")
        for vendor_id in store.vendor_ids():
            with store.read(vendor_id) as connection:
                rows = connection.execute(f"SELECT {columns} FROM {table}").fetchall()
            oracle.executemany(f"INSERT INTO {table} VALUES({', '.join('?' * len(declared))})", rows)
    model.close()
    return oracle


class Load:
    """Customers and readers at work, who keep count of what they were told."""

    def __init__(self, market: Marketplace, vendors: list[str], seed: int = 7) -> None:
        self.market = market
        self.vendors = vendors
        self.rng = random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.accepted: dict[str, str] = {}  # order to vendor
        self.queries = 0
        self.over = False
        oracle = gathered(market.store)  # type: ignore[arg-type]
        self.expected = {sql: oracle.execute(sql).fetchall() for sql in (COUNT, CHECKSUM)}
        oracle.close()

    async def customer(self) -> None:
        while not self.over:
            chosen = self.rng.sample(self.vendors, 2)
            items = [{"vendorId": vendor_id, "sku": "S", "quantity": 1} for vendor_id in chosen]
            self.sent.update(chosen)
            for order in await self.market.place_order(Cart("zoe", items), all_or_nothing=self.rng.random() < 0.2):
                assert order["status"] == "accepted"
                self.accepted[order["orderId"]] = order["vendorId"]
            await asyncio.sleep(0)

    async def reader(self, pause_s: float = 0.0) -> None:
        """Ask in every way there is; products never change but in stock, so that each answer is known exactly."""
        while not self.over:
            kind = self.queries % 6
            self.queries += 1
            options: dict[str, Any] = {} if kind == 0 else {"deadline_s": 600.0}
            if kind < 3:
                sql = (COUNT, CHECKSUM)[kind % 2]
                result = await self.market.query(sql, **options)
                assert result.rows == self.expected[sql]
                assert result.coverage.complete
                assert result.stats.vendors_answered + result.stats.vendors_pruned == len(self.vendors)
            elif kind == 3:
                named = sorted(self.rng.sample(self.vendors, 20))
                sql = f"SELECT vendorId FROM products WHERE vendorId IN ({', '.join('?' * 20)}) AND id = 'p1'"
                result = await self.market.query(sql, named, **options)
                assert sorted(result.rows) == [(vendor_id,) for vendor_id in named]
            elif kind == 4:
                seen = [
                    row["vendorId"]
                    async for row in self.market._coordinator.stream("SELECT vendorId FROM products WHERE id = 'p2'")
                ]
                assert seen == self.vendors
            else:
                least, most = Counter(self.accepted.values()), self.sent
                result = await self.market.query("SELECT vendorId, COUNT(*) FROM orders GROUP BY vendorId", **options)
                found = dict(result.rows)
                assert all(found.get(vendor_id, 0) >= count for vendor_id, count in least.items())
                assert all(count <= most[vendor_id] for vendor_id, count in found.items())
            await asyncio.sleep(pause_s)

    async def during(self, work: Awaitable[Any], customers: int = 3, readers: int = 2, pause_s: float = 0.0) -> Any:
        """Run until `work` is done; an error of anybody is an error."""
        async with asyncio.TaskGroup() as group:
            for _ in range(customers):
                group.create_task(self.customer())
            for _ in range(readers):
                group.create_task(self.reader(pause_s))
            try:
                return await work
            finally:
                self.over = True

    async def check(self) -> None:
        """Every order that was accepted is there once, and the market answers as one database."""
        self.over = False
        await self.market.idle()
        assert self.market.dead_letters() == []
        assert self.market.vendors == self.vendors
        found = (await self.market.query("SELECT orderId, vendorId, status FROM orders")).rows
        assert len(found) == len({order_id for order_id, _, _ in found})
        assert {order_id: vendor_id for order_id, vendor_id, status in found if status == "accepted"} == self.accepted
        oracle = gathered(self.market.store)  # type: ignore[arg-type]
        stock = "SELECT SUM(stock), COUNT(*) FROM products"
        for sql in (COUNT, CHECKSUM, stock, "SELECT COUNT(*), SUM(totalMinor) FROM orders"):
            assert (await self.market.query(sql)).rows == oracle.execute(sql).fetchall()
        oracle.close()
        [(left, _)] = (await self.market.query(stock)).rows
        assert left == 2 * STOCK * len(self.vendors) - len(self.accepted)
        assert sum((await self.market.balances()).values()) == 0


def check_placed(market: Marketplace) -> None:
    """Every vendor is in the shard where the map has it, and in no other."""
    store = market.store
    assert isinstance(store, PackedStore)
    assert store.moving is None
    assert store.shards == market.shards
    assert sorted(path.stem for path in store.path.glob("*.sqlite")) == sorted(market.shards)
    for shard in store.shards:
        assert all(market._rebalancer.map.shard_of(vendor_id) == shard for vendor_id in store.vendor_ids(shard))


def owners(market: Marketplace) -> dict[str, str]:
    return {vendor_id: market.store.shard_of(vendor_id) for vendor_id in market.vendors}


def test_more_and_fewer_shards_under_load_keep_every_order_and_every_query_exact(tmp_path: Path) -> None:
    """From 4 to 6 to 3 shards; exactly the vendors move whose owner changed by the ring."""

    async def test(market: Marketplace) -> None:
        vendors = fill(market, 60)
        for count in (6, 3):
            before = owners(market)
            load = Load(market, vendors)
            had = {row[0]: row[1] for row in (await market.query("SELECT orderId, vendorId FROM orders")).rows}
            load.accepted.update(had)
            load.sent.update(had.values())
            done = await load.during(market.rebalance(shards=count))
            assert isinstance(done, Rebalanced)
            assert load.queries > 5
            assert len(load.accepted) > len(had)
            after = owners(market)
            changed = [vendor_id for vendor_id in vendors if before[vendor_id] != after[vendor_id]]
            assert done.moved == len(changed) > 0
            assert done.after == market.shards == numbered(count)
            assert done.copied_bytes > 1_000 * done.moved
            check_placed(market)
            await load.check()

    run(test, tmp_path / "m", shards=4)
    run(lambda market: asyncio.sleep(0, check_placed(market)), tmp_path / "m", shards=3)


def test_splitting_moves_half_of_one_shard_and_merging_moves_it_back(tmp_path: Path) -> None:
    """And no other vendor; the layout outlives the process, and numbered shards bring back a plain ring."""

    async def split(market: Marketplace) -> None:
        fill(market, 80)
        before = owners(market)
        done = await market.split_shard("shard-1")
        after = owners(market)
        assert {before[v] for v in before if before[v] != after[v]} == {"shard-1"}
        assert {after[v] for v in before if before[v] != after[v]} == {"shard-2"}
        assert done.moved == sum(shard == "shard-2" for shard in after.values()) > 5
        assert done.ideal_share == pytest.approx(market._rebalancer.map.ring.shares()[1] / 2)
        check_placed(market)

    async def merge(market: Marketplace) -> None:
        assert market.shards == ("shard-0", "shard-1", "shard-2")
        before = owners(market)
        load = Load(market, market.vendors)
        done = await load.during(market.merge_shards("shard-0", "shard-2"), 1, 1)
        after = owners(market)
        assert all(after[v] == ("shard-2" if before[v] == "shard-0" else before[v]) for v in before)
        assert done.moved == sum(shard == "shard-0" for shard in before.values())
        check_placed(market)
        await load.check()
        with pytest.raises(UnknownNodeError):
            await market.split_shard("shard-0")
        await market.rebalance(shards=["shard-0", "eu"])
        check_placed(market)

    run(split, tmp_path / "m", shards=2)
    run(merge, tmp_path / "m")
    run(lambda market: asyncio.sleep(0, check_placed(market)), tmp_path / "m")
    with pytest.raises(SchemaMismatchError, match="shards=2"):
        run(split, tmp_path / "m", shards=3)


def test_a_paused_rebalance_goes_on_here_and_in_the_next_process(tmp_path: Path) -> None:
    """Cancelled, closed, opened again: each time it goes on from where it was, and every vendor is there."""

    async def pause(market: Marketplace) -> None:
        vendors = fill(market, 60)
        store = market.store
        assert isinstance(store, PackedStore)
        task = asyncio.create_task(market.rebalance(shards=5, vendors_per_s=1_000))
        while len(store.moves.strays) in (0, len([v for v in vendors if market._rebalancer.map.shard_of(v) != v])):
            await asyncio.sleep(0)
            if store.epochs.now >= 3:
                break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = len(store.moves.strays)
        assert left > 3
        assert (await market.query(COUNT)).rows == [(120, 240, 60)]
        with pytest.raises(InvalidArgumentError, match="another rebalance"):
            await market.rebalance(shards=7)
        again = asyncio.create_task(market.rebalance(shards=5))
        while store.epochs.now < 5:
            await asyncio.sleep(0)
        both = asyncio.create_task(market.rebalance())
        await asyncio.sleep(0)
        await market._rebalancer.close()
        for task in (again, both):
            with pytest.raises(StorageError, match="paused"):
                await task
        assert store.moves.strays

    async def resumed(market: Marketplace) -> None:
        load = Load(market, market.vendors)
        await load.during(market.rebalance(), 1, 1)
        check_placed(market)
        await load.check()
        assert (await market.rebalance()).moved == 0
        assert (await market.rebalance(shards=5)).moved == 0

    run(pause, tmp_path / "m", shards=3)
    run(resumed, tmp_path / "m", shards=5)


def test_a_rebalance_keeps_to_its_rate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Twenty vendors a second, by the loop's clock; the bar tells how far it is."""

    async def test(market: Marketplace) -> None:
        fill(market, 40)
        done = await market.rebalance(shards=3, vendors_per_s=20, progress=True)
        assert done.moved > 5
        assert done.duration_s >= (done.moved - 1) / 20
        check_placed(market)

    run(test, tmp_path / "m", shards=2)
    assert "rebalance" in capfd.readouterr().err


def test_worker_processes_scan_right_while_vendors_move(tmp_path: Path) -> None:
    """The request carries its epoch to the workers, which read the files when their turn comes."""

    async def test(market: Marketplace) -> None:
        vendors = fill(market, 60)
        load = Load(market, vendors)
        await load.during(market.rebalance(shards=5, vendors_per_s=40), 1, 4)
        assert load.queries > 10
        check_placed(market)
        await load.check()

    with ProcessPoolExecutor(2) as pool:
        run(test, tmp_path / "m", shards=3, executor=pool)


def test_vendors_come_and_go_while_others_move(tmp_path: Path) -> None:
    """New ones are made where they belong; deleted ones leave no byte behind, wherever their copies were."""

    async def test(market: Marketplace) -> None:
        vendors = fill(market, 40)
        work = asyncio.create_task(market.rebalance(shards=4, vendors_per_s=60))
        store = market.store
        assert isinstance(store, PackedStore)
        await asyncio.sleep(0.05)
        for number, vendor_id in enumerate(vendors[::4]):
            proof = await market.delete_vendor(vendor_id)
            assert proof.left == ()
            await market.vendor(f"new-{number}").initialize()
            await market.vendor(f"new-{number}").create_product(name="N", sku="N", price=1, stock=1)
        await work
        check_placed(market)
        assert market.vendors == sorted({*vendors} - {*vendors[::4]} | {f"new-{n}" for n in range(10)})
        [(count,)] = (await market.query("SELECT COUNT(*) FROM products")).rows
        assert count == 30 * 2 + 10

    run(test, tmp_path / "m", shards=2)


def test_what_cannot_be_is_refused_and_nothing_moves(tmp_path: Path) -> None:
    """Numbers, names, rates, kinds of stores."""

    async def test(market: Marketplace) -> None:
        fill(market, 10)
        before = owners(market)
        for shards in (0, -1, 1.5, True, "shard-1", [], ["a", "a"], [""], ["x" * 61], ["nul\0"], [None], 10**9):
            with pytest.raises(InvalidArgumentError):
                await market.rebalance(shards=shards)
        for rate in (0, -1, float("nan"), "fast", True):
            with pytest.raises(InvalidArgumentError):
                await market.rebalance(shards=3, vendors_per_s=rate)
        with pytest.raises(InvalidArgumentError):
            await market.merge_shards("shard-0", "shard-0")
        assert owners(market) == before
        check_placed(market)

    async def refuse(market: Marketplace) -> None:
        with pytest.raises(InvalidArgumentError, match="stay in their shards"):
            await market.rebalance(shards=3)

    run(test, tmp_path / "m", shards=2)
    run(refuse)
    run(refuse, tmp_path / "d", store="directory")


def test_a_layout_that_cannot_be_written_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision is one file; without it no shard is added."""

    async def test(market: Marketplace) -> None:
        vendors = fill(market, 20)

        def full(*_: Any) -> None:
            raise StorageError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("mktsim.market.rebalance.rewrite", full)
            with pytest.raises(StorageError, match="full"):
                await market.rebalance(shards=3)
        check_placed(market)
        load = Load(market, vendors)
        await load.during(market.rebalance(shards=3), 1, 1)
        await load.check()

    run(test, tmp_path / "m", shards=2)


names = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=6, unique=True)


@given(nodes=names, steps=st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(0, 99)), max_size=5))
def test_splits_and_merges_move_what_they_say_and_no_more(nodes: list[str], steps: list[tuple[bool, int, int]]) -> None:
    """The exact share agrees with what moves; maps come back from JSON as they were."""
    ids = [f"id-{number}" for number in range(300)]
    made = ShardMap(tuple(nodes), 20)
    for number, (is_split, one, other) in enumerate(steps):
        shard, into = made.shards[one % len(made.shards)], made.shards[other % len(made.shards)]
        if not is_split and shard == into:
            continue
        after = made.split(shard, f"new-{number}") if is_split else made.merge(shard, into)
        moved = [id for id in ids if made.shard_of(id) != after.shard_of(id)]
        assert {made.shard_of(id) for id in moved} <= {shard}
        share = made.moved_share(after)
        assert abs(len(moved) / len(ids) - share) < 5 * (share * (1 - share) / len(ids)) ** 0.5 + 1e-9
        made = after
    assert ShardMap.from_dict(made.to_dict()) == made


# -- killed meanwhile ---------------------------------------------------------------------------------------------

#: Run in a process of its own: rebalances back and forth, takes orders, and writes down what it has acknowledged.
CHILD = """
import asyncio, os, sys
from mktsim.market import Cart, Marketplace

async def customer(market, name, vendors, journal):
    number = 0
    while True:
        number += 1
        items = [{"vendorId": vendors[hash((name, number, step)) % len(vendors)], "sku": "S"} for step in range(2)]
        orders = await market.place_order(Cart(name, items))
        os.write(journal, "".join(f"{order['orderId']} {order['vendorId']}\\n" for order in orders).encode())

async def main(folder, name, counts):
    journal = os.open(f"{folder}.journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with Marketplace.open(folder) as market:
        vendors = market.vendors
        async def move():
            await market.rebalance()
            for count in [*map(int, counts.split(","))] * 1000:
                await market.rebalance(shards=count)
        os.write(1, b"up\\n")
        await asyncio.gather(move(), *(customer(market, f"{name}-{n}", vendors, journal) for n in range(3)))

asyncio.run(main(*sys.argv[1:]))
"""


def kill_repeatedly(folder: Path, kills: int, seed: int, vendors: int, counts: str) -> Counter[str]:
    """Kill a process that rebalances and takes orders, again and again, and check all after each kill."""
    rng = random.Random(seed)
    ids: list[str] = []

    async def begin(market: Marketplace) -> None:
        ids.extend(fill(market, vendors))

    run(begin, folder, shards=int(counts.split(",")[-1]))
    told = Counter[str]()
    journal = Path(f"{folder}.journal")
    for number in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), f"p{number}", counts],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            time.sleep(rng.uniform(0.05, 0.6))
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert child.returncode == -signal.SIGKILL

        async def check(market: Marketplace, number: int = number) -> None:
            store = market.store
            assert isinstance(store, PackedStore)
            told["killed on the move"] += store.moving is not None
            told["still to move"] += len(store.moves.strays)
            assert market.vendors == ids
            expected = [(vendors * 2, vendors * 4, vendors)]
            assert (await market.query(COUNT)).rows == expected
            await market.idle()
            acknowledged = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
            found = (await market.query("SELECT orderId, vendorId FROM orders WHERE status = 'accepted'")).rows
            assert len(found) == len({order_id for order_id, _ in found})
            assert {tuple(order) for order in acknowledged} <= set(found)
            [(left,)] = (await market.query("SELECT SUM(stock) FROM products")).rows
            assert left == 2 * STOCK * vendors - len(found)
            for vendor_id in ids:
                store.image(vendor_id)  # raises unless PRAGMA integrity_check says ok
            told["orders"] = len(found)
            if number % 2:  # else the next child finds it on the move
                await market.rebalance()
                check_placed(market)
                assert (await market.query(COUNT)).rows == expected

        run(check, folder)
    return told


def test_a_process_killed_while_vendors_move_loses_no_order_and_no_vendor(tmp_path: Path) -> None:
    """Four kills, wherever they fall; the next process goes on."""
    told = kill_repeatedly(tmp_path / "m", kills=4, seed=3, vendors=40, counts="5,3")
    print(dict(told))
    assert told["killed on the move"] > 0
    assert told["orders"] > 0


#: Run in a process of its own: rebalances copies of a marketplace, each in a child that kills itself at one more step.
#: A step is a file of the store that is opened, named, renamed or removed; a child dies before it, or after it.
KILLED_AT_EACH_STEP = """
import asyncio, os, shutil, signal, sys
from pathlib import Path
from mktsim.market import Marketplace
from mktsim.storage import folder, packed

def dying(function, steps):
    def instead(*arguments, **options):
        if next(steps) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if next(steps) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return instead

async def move(path, count, left):
    async with Marketplace.open(path) as market:
        steps = iter(range(left, -10_000, -1))
        packed.open_file = dying(packed.open_file, steps)
        folder.replace_file = dying(folder.replace_file, steps)
        Path.unlink = dying(Path.unlink, steps)
        await market.rebalance(shards=count)
        os._exit(0)

template, count = sys.argv[1], int(sys.argv[2])
left = 0
while True:
    path = f"{template}-{count}-{left:03}"
    shutil.copytree(template, path)
    child = os.fork()
    if not child:
        asyncio.run(move(path, count, left))
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    left += 1
"""


@pytest.mark.parametrize("count", [2, 5])
def test_a_process_killed_at_any_step_of_a_rebalance_leaves_no_file_that_no_shard_has(
    tmp_path: Path, count: int
) -> None:
    """From 3 shards to fewer and to more; the next process has the vendors, and the files of its shards only."""
    ids: list[str] = []

    async def begin(market: Marketplace) -> None:
        ids.extend(fill(market, 8))

    run(begin, tmp_path / "m", shards=3)
    subprocess.run([sys.executable, "-c", KILLED_AT_EACH_STEP, str(tmp_path / "m"), str(count)], check=True)
    died = sorted(tmp_path.glob("m-*"))[:-1]
    assert len(died) >= 10
    ends = Counter[tuple[str, ...]]()

    async def check(market: Marketplace) -> None:
        assert market.vendors == ids
        await market.rebalance()
        check_placed(market)
        assert (await market.query(COUNT)).rows == [(16, 32, 8)]
        ends[market.shards] += 1

    for path in died:
        run(check, path)
    assert set(ends) == {numbered(3), numbered(count)}  # undone if it dies early, finished if late


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_while_a_thousand_vendors_move_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL, twenty times."""
    told = kill_repeatedly(tmp_path / "m", kills=20, seed=11, vendors=1_000, counts="20,16")
    print(dict(told))
    assert told["killed on the move"] > 10


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_64_to_80_shards_with_twenty_thousand_vendors_under_load(tmp_path: Path) -> None:
    """Every order kept, every query exact, no vendor twice or missing; moved share within 1 % of the ideal."""

    async def test(market: Marketplace) -> None:
        vendors = fill(market, 20_000)
        before = owners(market)
        load = Load(market, vendors)
        begun_s = time.perf_counter()
        done = await load.during(market.rebalance(shards=80, progress=True), 3, 1, 1.0)
        took_s = time.perf_counter() - begun_s
        after = owners(market)
        assert done.moved == sum(before[vendor_id] != after[vendor_id] for vendor_id in vendors)
        assert abs(done.moved_share - done.ideal_share) < 0.01
        assert abs(done.moved_share - 16 / 80) < 0.01
        check_placed(market)
        await load.check()
        print(
            f"{done.moved} of {done.vendors} vendors moved ({done.moved_share:.4%}; the ring: {done.ideal_share:.4%}; "
            f"16/80 = {16 / 80:.2%}), {done.copied_bytes / 1e6:.1f} MB, {done.caught_up} caught up, in {took_s:.1f} s; "
            f"{len(load.accepted)} orders and {load.queries} queries meanwhile"
        )

    run(test, tmp_path / "m", shards=64)
