"""Rebalancing: a marketplace gets other shards while it takes orders and answers queries.

Rules
-----
* Exactly the vendors move that belong elsewhere by the new map, one at a time.
* No request is lost: those of the vendor whose home is being switched wait for some milliseconds, the others do not.
* A query sees each vendor exactly once: see `mktsim.storage.moves` for how.
* A rebalance that was interrupted, by a crash, by closing or by cancelling it, goes on from where it was.

Theory of operation
-------------------
What must not be halfway is one file: ``market.json``, which has the new map from the moment at which the rebalance is
decided. The store has written down before that vendors may move; it finds by itself who is not yet where the map has
it, also after a crash. Each vendor is copied while it works; then its object is held between two requests, what it has
answered is brought to disk, and the store switches. New vendors are made where the new map has them.

When the last vendor has moved, the shards that are left over are asked by no new query; once the queries under way
have ended, their files go.

What this does not do
---------------------
It does not choose: when to rebalance, and how fast, is the caller's to say. A query that is left open, a stream that
nobody reads to its end, holds the end of a rebalance up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mktsim.errors import InvalidArgumentError, StorageError
from mktsim.fanout import QueryCoordinator, ShardScanner
from mktsim.market.layout import MOST_SHARDS, Layout, rewrite
from mktsim.market.placing import ShardMap, numbered
from mktsim.objects import ObjectHost
from mktsim.objects.context import detached
from mktsim.storage import PackedStore, VendorStore

_log = logging.getLogger("mktsim.market")

#: Vendors after which copies that no query needs any more are deleted, many at the price of one.
_CLEAN_EVERY: Final = 512
#: Seconds to wait for a vendor that somebody writes to by the store itself.
_BUSY_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Rebalanced:
    """What a rebalance did.

    Attributes
    ----------
    before, after : tuple of str
        The shards.
    vendors : int
        How many vendors there are now.
    moved : int
        How many moved, since this process took the rebalance up.
    caught_up : int
        How many of them were written to between copy and switch, and so copied twice.
    copied_bytes : int
    ideal_share : float
        The exact share of all possible ids that belong elsewhere by the new map; what is moved of n vendors is
        binomial about it.
    duration_s : float
        On the loop's clock.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    vendors: int
    moved: int
    caught_up: int
    copied_bytes: int
    ideal_share: float
    duration_s: float

    @property
    def moved_share(self) -> float:
        """Moved vendors as a share of all; 0.0 where there are none."""
        return self.moved / self.vendors if self.vendors else 0.0


class Rebalancer:
    """Moves the vendors of one marketplace.

    Parameters
    ----------
    store : VendorStore
    host : ObjectHost
        Of the vendors' objects.
    coordinator : QueryCoordinator
        Over the store's shards.
    layout : Layout
        The present one.
    path : Path or None
        Where the layout is written.
    executor : Executor or None
        Where shards are scanned.
    make_scanner : callable, optional
        Makes a new shard's scanner; a plain one when absent.
    """

    def __init__(
        self,
        store: VendorStore,
        host: ObjectHost,
        coordinator: QueryCoordinator,
        *,
        layout: Layout,
        path: Path | None,
        executor: Executor | None,
        make_scanner: Callable[[str], ShardScanner] | None = None,
    ) -> None:
        self._store = store
        self._host = host
        self._coordinator = coordinator
        self._path = path
        self._make_scanner = make_scanner or partial(ShardScanner, store, executor=executor)
        self._task: asyncio.Task[Rebalanced] | None = None
        self.layout = layout
        self.map = layout.map()

    async def to(self, target: ShardMap | None, vendors_per_s: float | None, progress: bool) -> Rebalanced:
        """Rebalance to a map, or to the end of what was begun; see :meth:`Sharding.rebalance`."""
        if vendors_per_s is not None and (
            isinstance(vendors_per_s, bool) or not isinstance(vendors_per_s, int | float) or not vendors_per_s > 0
        ):
            raise InvalidArgumentError(f"vendors_per_s is a number above 0, not {vendors_per_s!r:.80}")
        store, present = self._store, self.map
        if not isinstance(store, PackedStore):
            raise InvalidArgumentError(
                f"the vendors of a {self.layout.store} store stay in their shards: rebalance a packed one"
            )
        if self._path is None:
            raise InvalidArgumentError("a marketplace without a path cannot be rebalanced")
        if store.moving is not None and target not in (None, present):
            raise InvalidArgumentError("another rebalance is under way: await market.rebalance() first")
        if self._task is not None:
            return await self._outcome(asyncio.shield(self._task))
        if store.moving is None:
            if target in (None, present):
                count = store.count()
                return Rebalanced(present.shards, present.shards, count, 0, 0, 0, 0.0, 0.0)
            assert target is not None
            self._begin(store, target, vendors_per_s)
        return await self._outcome(self._start(store, vendors_per_s, progress))

    @staticmethod
    async def _outcome(work: asyncio.Future[Rebalanced]) -> Rebalanced:
        """Wait for a rebalance; one that was paused by somebody else is no cancellation of the caller."""
        try:
            return await work
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise StorageError("the rebalance was paused: await market.rebalance() in an open market") from None

    def resume(self) -> None:
        """Go on in the background with what an earlier process began."""
        if isinstance(self._store, PackedStore) and self._store.moving is not None:
            self._start(self._store, None, False).add_done_callback(_log_failure)

    async def close(self) -> None:
        """Stop: the next process goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _start(self, store: PackedStore, vendors_per_s: float | None, progress: bool) -> asyncio.Task[Rebalanced]:
        work = self._run(store, vendors_per_s, progress)
        task = self._task = asyncio.get_running_loop().create_task(work, context=detached())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, _task: asyncio.Task[Rebalanced]) -> None:
        self._task = None

    def _begin(self, store: PackedStore, target: ShardMap, vendors_per_s: float | None) -> None:
        """Decide: from here on new vendors go where the new map has them, and a crash does not undo it."""
        layout = self.layout.placed_by(target)
        assert self._path is not None
        self._host.flush()
        store.begin_moving(target.shards, {"vendors_per_s": vendors_per_s, "from": self.map.to_dict()})
        try:
            store.relocate(target.shard_of)
            rewrite(self._path, layout)
        except StorageError:
            store.relocate(self.map.shard_of)
            store.end_moving(self.map.shards)
            raise
        self.layout, self.map = layout, target
        self._ask(store.shards)

    def _ask(self, shards: Collection[str]) -> None:
        """Have queries from now on ask these shards."""
        known = {scanner.id: scanner for scanner in self._coordinator.scanners}
        self._coordinator.change_scanners([known.get(shard) or self._make_scanner(shard) for shard in shards])

    async def _run(self, store: PackedStore, vendors_per_s: float | None, progress: bool) -> Rebalanced:
        loop = asyncio.get_running_loop()
        begun_s = next_s = loop.time()
        note = store.moving
        assert note is not None
        per_s = vendors_per_s if vendors_per_s is not None else note["vendors_per_s"]
        target = self.map
        moved = caught_up = copied_bytes = 0
        store.migrate()  # what is moved must be what its new shard's scans expect
        for vendor_id in _shown(_strays(store), len(store.moves.strays), progress):
            if vendor_id in store.busy:
                await asyncio.sleep(_BUSY_S)
            if vendor_id in store.busy or vendor_id not in store.moves.strays:  # it may be deleted meanwhile
                continue
            self._host.flush()
            copied_bytes += store.stage(vendor_id)
            await asyncio.sleep(0)
            async with self._host.quiesced(vendor_id):
                if vendor_id in store.moves.strays and vendor_id not in store.busy:
                    caught_up += store.switch(vendor_id)
                    moved += 1
            if moved % _CLEAN_EVERY == 0:
                self._host.flush()
                store.moves.clean()
            if per_s is not None:
                next_s = max(next_s, loop.time() - 1.0) + 1.0 / per_s
                await asyncio.sleep(max(0.0, next_s - loop.time()))
            else:
                await asyncio.sleep(0)
        self._ask(target.shards)
        store.epochs.now += 1  # Queries that began before this may still ask the shards that go.
        await self._past(store)
        self._host.flush()
        store.end_moving(target.shards)
        before = ShardMap.from_dict(note["from"])
        return Rebalanced(
            before.shards,
            target.shards,
            vendors=store.count(),
            moved=moved,
            caught_up=caught_up,
            copied_bytes=copied_bytes,
            ideal_share=before.moved_share(target),
            duration_s=loop.time() - begun_s,
        )

    @staticmethod
    async def _past(store: PackedStore) -> None:
        """Wait until every query that began before now has ended."""
        ended = asyncio.get_running_loop().create_future()
        store.epochs.when_past(store.epochs.now, lambda: None if ended.done() else ended.set_result(None))
        await ended


class Sharding:
    """What a `Marketplace` says of its shards, and how it gets others."""

    _rebalancer: Rebalancer

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards that vendors are spread over; while a rebalance is under way, those that there are to be."""
        return self._rebalancer.map.shards

    async def rebalance(
        self,
        *,
        shards: int | Sequence[str] | None = None,
        vendors_per_s: float | None = None,
        progress: bool = False,
    ) -> Rebalanced:
        """Spread the vendors over other shards, while orders and queries go on.

        To cancel it is to pause it: the vendors that have moved stay where they are now, nothing is lost, and
        ``rebalance()`` goes on, as does the next process that opens the marketplace.

        Parameters
        ----------
        shards : int or sequence of str, optional
            How many, or which: ``market.shards`` and more, or without some. With a number the first of those that
            there are stay. When absent, a rebalance that is under way is waited for, or gone on with.
        vendors_per_s : float, optional
            Move no more than so many; as fast as may be when absent.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Rebalanced

        Raises
        ------
        InvalidArgumentError
            The shards cannot be, the store is not a packed one, or another rebalance is under way.
        StorageError, SchemaMismatchError
            A file cannot be written, or a vendor not be migrated: no vendor is lost, and ``rebalance()`` goes on.

        Examples
        --------
        >>> import tempfile
        >>> from mktsim.market import Marketplace
        >>> async def story(folder):
        ...     async with Marketplace.open(folder, shards=2) as market:
        ...         for number in range(10):
        ...             await market.vendor(f"v{number}").initialize()
        ...         done = await market.rebalance(shards=3)
        ...         found = await market.query("SELECT COUNT(*) FROM vendors")
        ...         return done.moved, f"{done.ideal_share:.2f}", market.shards, found.rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     asyncio.run(story(f"{folder}/market"))
        (4, '0.33', ('shard-0', 'shard-1', 'shard-2'), [(10,)])
        """
        return await self._rebalancer.to(_target(self._rebalancer.map, shards), vendors_per_s, progress)

    async def split_shard(
        self, shard: str, *, vendors_per_s: float | None = None, progress: bool = False
    ) -> Rebalanced:
        """Move half of a shard's vendors to a new shard, and no other vendor; see :meth:`rebalance`.

        Raises
        ------
        UnknownNodeError
            There is no such shard.
        """
        present = self._rebalancer.map
        new = numbered(len(present.shards) + 1, named=present.shards)[-1]
        return await self._rebalancer.to(present.split(shard, new), vendors_per_s, progress)

    async def merge_shards(
        self, shard: str, into: str, *, vendors_per_s: float | None = None, progress: bool = False
    ) -> Rebalanced:
        """Move all vendors of a shard to another, and no other vendor; the shard goes. See :meth:`rebalance`.

        Raises
        ------
        UnknownNodeError
            There is no such shard.
        """
        return await self._rebalancer.to(self._rebalancer.map.merge(shard, into), vendors_per_s, progress)


def _target(present: ShardMap, shards: int | Sequence[str] | None) -> ShardMap | None:
    """Return the map that a caller asks for: a plain ring of shards."""
    if shards is None:
        return None
    if isinstance(shards, int) and not isinstance(shards, bool) and 1 <= shards <= MOST_SHARDS:
        names = numbered(shards, named=present.shards)
    elif isinstance(shards, list | tuple) and 1 <= len(set(map(str, shards))) == len(shards) <= MOST_SHARDS:
        names = tuple(shards)
        for name in names:
            if not isinstance(name, str) or not 0 < len(name) <= 60 or not name.isprintable():
                raise InvalidArgumentError(f"a shard name has 1 to 60 printable characters, not {name!r:.80}")
    else:
        raise InvalidArgumentError(
            f"shards is a number from 1 to {MOST_SHARDS} or a list of different names, not {shards!r:.80}"
        )
    return ShardMap(names, present.virtual_nodes)


def _strays(store: PackedStore) -> Iterator[str]:
    """Yield the vendors that have still to move, again and again until there is none."""
    while store.moves.strays:
        yield from sorted(store.moves.strays)


def _shown(vendor_ids: Iterator[str], total: int, progress: bool) -> Iterator[str]:
    if not progress:
        return vendor_ids
    from tqdm.auto import tqdm

    shown: Iterator[str] = iter(tqdm(vendor_ids, total=total, desc="rebalance", unit=" vendors", unit_scale=True))
    return shown


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the rebalance cannot go on, await market.rebalance() to try again: %s", error)
