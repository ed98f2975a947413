"""Replicas of a marketplace's shards: where second copies and further attempts of a query go.

Rules
-----
* A replica follows its shard while orders go on, and none of them waits for it.
* It answers only where a policy hedges or retries, for the vendors of its shard; the answer's `stats` say how far
  behind it was at most. A policy with ``max_staleness_s=0`` never asks one.
* What a replica says is not kept: partials that are kept between queries come from the shards themselves.
* While vendors move between shards replicas rest: they neither follow nor answer.

Theory of operation
-------------------
What is replicated is a shard, whole: a scatter asks shards, so that a second copy of a call must find at one place
the same vendors that its first found. (Replicas of single vendors on each one's own successors, as keys of a store
have them, would have all shards asked to stand in for one.) The k-th replica of a shard lies with the k-th of those
that follow its name on the ring, and so on another of the machines that shards stand for: when one is lost, its
vendors' replicas are elsewhere, and each shard carries about as many replicas as another.

One task follows, shard by shard and batch by batch (`mktsim.storage.replicas`), and takes no more than half of the
loop's time. Between two looks at unchanged files it sleeps `PAUSE_S`; a look costs about 9 us a replica, and a replica
as many file descriptors as a shard.

*Summaries and replicas.* A query may know a shard's vendors from summaries, which are the shard's own and current, and
visit some at a replica. That is exact over a fleet in which each vendor is as it was at one time: now, or as far back
as is said; so is any answer that comes partly from replicas.

What this does not do
---------------------
All replicas are files of one folder: the shards' machines are names until they are mounted. A replica does not become
the shard when that is lost. Vendors' own requests and orders do not go to replicas, for they write.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mktsim.errors import (
    CorruptImageError,
    InvalidArgumentError,
    SchemaMismatchError,
    StaleReplicaError,
    StorageError,
    UnknownVendorError,
)
from mktsim.fanout import QueryCoordinator, ShardScanner
from mktsim.fanout.messages import Partial, ScatterRequest
from mktsim.market.layout import Layout
from mktsim.market.placing import ShardMap
from mktsim.market.rebalance import Rebalancer
from mktsim.objects import ObjectHost
from mktsim.objects.context import detached
from mktsim.storage import PackedStore, VendorStore
from mktsim.storage.folder import file_name
from mktsim.storage.replicas import FOLDER, Replica, ReplicaStore, Staleness, remove
from mktsim.storage.summaries import ShardSummaries

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("mktsim.market")

_T = TypeVar("_T")

#: Seconds between two looks at files that have not changed, and after one that failed.
PAUSE_S: Final = 0.05
_PAUSE_AFTER_FAILURE_S: Final = 1.0


def check_replicas(count: Any, layout: Layout, path: Path | None) -> int:
    """Return how many replicas a marketplace has of each shard, or raise where it can have none or not so many."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InvalidArgumentError(f"replicas is a whole number from 0, not {count!r:.80}")
    if count and (path is None or layout.store != "packed"):
        raise InvalidArgumentError(f"replicas are of shard files: a {layout.store} store has none, a packed one has")
    if count and count >= layout.shards:
        raise InvalidArgumentError(
            f"{layout.shards} shards have room for {layout.shards - 1} replicas of each, not {count}: each lies with "
            "another shard"
        )
    return count


def homes(shard_map: ShardMap, count: int) -> list[dict[str, str]]:
    """Return for each replica of a shard, the first of all, then the second, beside which shard it lies.

    Examples
    --------
    >>> homes(ShardMap(("s0", "s1", "s2"), 150), 1)
    [{'s0': 's1', 's1': 's0', 's2': 's0'}]
    """
    shards = shard_map.shards
    found: list[dict[str, str]] = [{} for _ in range(min(count, len(shards) - 1))]
    for shard in shards:
        nodes = shard_map.ring.get_nodes(f"replicas of {shard}", len(shard_map.nodes))
        others = dict.fromkeys(each for node in nodes for each in shard_map.shards_of_node(node) if each != shard)
        for each, other in zip(found, others, strict=False):
            each[shard] = other
    return found


class ReplicaScanner(ShardScanner):
    """Answers for a shard from a replica, and says how far behind that is."""

    __slots__ = ("_replication", "_stock")

    def __init__(self, replication: Replication, number: int, shard: str) -> None:
        self._stock = replication.stores[number]
        self._replication = replication
        super().__init__(self._stock, shard, executor=replication.executor)
        self.address = f"shard/{replication.stores[number].copies[shard].home}/replica/{number}/{shard}"

    def __repr__(self) -> str:
        return f"ReplicaScanner({self.address!r})"

    def summaries(self) -> ShardSummaries | None:
        """Return None: a replica keeps none."""
        return None

    def scan(self, request: ScatterRequest) -> Any:
        """Scan the replica, if it may answer; see :class:`~mktsim.fanout.scanner.ScatterTarget`.

        Raises
        ------
        StaleReplicaError
            It may not.
        """
        if request.deadline_s is not None or (self._executor is not None and not request.here):
            return self._later(request)
        staleness = self._admit(request)
        try:
            answer: Any = super().scan(request.replace(keep=0))
            return _marked(answer, staleness)
        except UnknownVendorError as error:
            raise self._behind(error) from error

    async def _later(self, request: ScatterRequest) -> Partial:
        staleness = self._admit(request)
        try:
            answer: Any = super().scan(request.replace(keep=0))
            return _marked(await answer, staleness)
        except UnknownVendorError as error:
            raise self._behind(error) from error

    def _admit(self, request: ScatterRequest) -> Staleness:
        copy = self._stock.copies.get(self.id)
        why = self._replication.hindrance(copy)
        if copy is None or why:
            raise StaleReplicaError(f"the replica of shard {self.id!r} does not answer: {why}")
        staleness = copy.staleness()
        most_s = request.policy.max_staleness_s if request.policy is not None else None
        if most_s is not None and staleness.seconds > most_s:
            raise StaleReplicaError(
                f"the replica of shard {self.id!r} is {staleness.seconds:.3g} s behind, the policy allows {most_s:g} s"
            )
        return staleness

    def _behind(self, error: UnknownVendorError) -> StaleReplicaError:
        return StaleReplicaError(f"the replica of shard {self.id!r} is behind: {error}")


def _marked(partial: Partial, staleness: Staleness) -> Partial:
    stale = Staleness(staleness.changes, staleness.seconds, partial.answered)
    return Partial(partial.segments, partial.answered, partial.rows, partial.failures, stale=stale)


class ReplicatedScanner(ShardScanner):
    """A shard that has replicas: they say who its vendors are where its own file cannot be read.

    Only what is asked before a scatter comes from there; the scatter itself asks the shard, and its policy says what
    happens when that fails.
    """

    __slots__ = ("_replication",)

    def __init__(self, replication: Replication, shard: str) -> None:
        self._replication = replication
        super().__init__(replication.store, shard)
        self._executor = replication.executor
        self._shard_path = str(replication.store.path / file_name(shard))

    @property
    def width(self) -> int:
        """How many vendors the shard has."""
        return self._told(lambda store: store.count(self.id))

    def covers(self, vendor_id: str) -> bool:
        """Whether the vendor is in this shard."""
        return self._store.shard_of(vendor_id) == self.id and self._told(lambda store: vendor_id in store)

    def vendor_ids(self) -> list[str]:
        """Return the ids of the shard's vendors, sorted."""
        return self._told(lambda store: store.vendor_ids(self.id))

    def summaries(self) -> ShardSummaries | None:
        """Return what the store knows of the vendors, None where its file cannot be read: then all are scanned."""
        try:
            return super().summaries()
        except StorageError:
            if self._replication.serving(self.id) is None:
                raise
            return None

    def _told(self, tell: Callable[[VendorStore], _T]) -> _T:
        try:
            return tell(self._store)
        except StorageError:
            other = self._replication.serving(self.id)
            if other is None:
                raise
            return tell(other)


class Replication:
    """The replicas of one marketplace, and the task that has them follow.

    Parameters
    ----------
    store : PackedStore
    count : int
        Replicas of each shard.
    executor : Executor or None
        Where they are scanned.
    clock : callable or None
        Seconds since 1970, where there are such: staleness is then told across restarts; the loop's time when absent.

    Attributes
    ----------
    stores : list of ReplicaStore
        The first replicas of all shards, then the second ones.
    """

    def __init__(
        self, store: PackedStore, *, count: int, executor: Executor | None, clock: Callable[[], float] | None
    ) -> None:
        self.store = store
        self.count = count
        self.executor = executor
        self.stores: list[ReplicaStore] = []
        self._clock = clock
        self._now: Callable[[], float] = lambda: 0.0
        self._rebalancer: Rebalancer | None = None
        self._coordinator: QueryCoordinator | None = None
        self._arranged: tuple[ShardMap | None, str] = None, ""
        self._scanners: dict[tuple[int, str, str], ReplicaScanner] = {}
        self._offered: list[ReplicaScanner] = []
        self._following = asyncio.Lock()
        self._not_before: dict[Path, float] = {}
        self._task: asyncio.Task[None] | None = None

    def scanner(self, shard: str) -> ReplicatedScanner:
        """Return what asks a shard that has replicas."""
        return ReplicatedScanner(self, shard)

    def start(self, coordinator: QueryCoordinator, rebalancer: Rebalancer) -> None:
        """Offer what there is, and follow from now on."""
        loop = asyncio.get_running_loop()
        self._now = self._clock if self._clock is not None else loop.time
        self._coordinator, self._rebalancer = coordinator, rebalancer
        self._arrange()
        self._task = loop.create_task(self._follow(), context=detached())
        self._task.add_done_callback(_log_failure)

    async def close(self) -> None:
        """Stop; the next process goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._coordinator is not None:
            self._coordinator.change_replicas({})
        for store in self.stores:
            store.close()

    # -- who may answer -------------------------------------------------------------------------------------------

    @property
    def arrangement(self) -> str:
        """A name of where vendors belong by the present map, and of their schema."""
        assert self._rebalancer is not None
        shard_map = self._rebalancer.map
        if self._arranged[0] is not shard_map:
            text = json.dumps([shard_map.to_dict(), self.store.schema.digest])
            self._arranged = shard_map, sha256(text.encode()).hexdigest()
        return self._arranged[1]

    def hindrance(self, copy: Replica | None) -> str:
        """Return why a replica does not answer; nothing where it does."""
        if copy is None:
            return "there is none"
        if self.store.moving is not None:
            return "vendors move between shards"
        return "" if copy.arrangement == self.arrangement else "it has not yet copied all that there was"

    def serving(self, shard: str) -> ReplicaStore | None:
        """Return a store of replicas in which that of a shard may answer, if there is any."""
        return next((store for store in self.stores if not self.hindrance(store.copies.get(shard))), None)

    def _offer(self) -> None:
        """Tell the coordinator which replicas answer."""
        assert self._coordinator is not None
        offered: dict[str, list[ReplicaScanner]] = {}
        for number, store in enumerate(self.stores):
            for shard, copy in store.copies.items():
                if not self.hindrance(copy):
                    key = number, shard, copy.home
                    scanner = self._scanners.get(key)
                    if scanner is None:
                        scanner = self._scanners[key] = ReplicaScanner(self, number, shard)
                    offered.setdefault(shard, []).append(scanner)
        listed = [scanner for scanners in offered.values() for scanner in scanners]
        if listed != self._offered:
            self._coordinator.change_replicas(offered)
            self._offered = listed

    # -- following ------------------------------------------------------------------------------------------------

    def _arrange(self) -> bool:
        """Have a replica of each shard where it belongs; return False where that is for later, as vendors move."""
        assert self._rebalancer is not None
        if self.store.moving is None:
            placed = homes(self._rebalancer.map, self.count)
            found = [{shard: copy.home for shard, copy in store.copies.items()} for store in self.stores]
            if found != placed:
                while len(self.stores) < len(placed):
                    self.stores.append(ReplicaStore(self.store, now=self._now, lasting=self._clock is not None))
                for number, store in enumerate(self.stores):
                    store.arrange(placed[number] if number < len(placed) else {})
                self._sweep()
        self._offer()
        return self.store.moving is None

    def _sweep(self) -> None:
        """Delete replicas that belong elsewhere by now, left by an earlier process."""
        kept = {copy.path for store in self.stores for copy in store.copies.values()}
        kept |= {store.path_of(shard) for store in self.stores for shard in store.failures}
        for path in sorted((self.store.path / FOLDER).glob("*/*.sqlite")):
            if path not in kept:
                remove(path)

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            begun_s = clock()
            async with self._following:
                if self._arrange():
                    for number, copy in enumerate(self._copies()):
                        if self._now() >= self._not_before.get(copy.path, -inf):
                            await self._follow_politely(copy)
                        if number % 16 == 15:
                            await asyncio.sleep(0)
                    self._offer()
            await asyncio.sleep(max(PAUSE_S, clock() - begun_s))

    async def _follow_politely(self, copy: Replica) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self.store.moving is None:
                begun_s = loop.time()
                if copy.step(self.arrangement):
                    break
                await asyncio.sleep(loop.time() - begun_s)
            copy.failure = None
            self._not_before.pop(copy.path, None)
        except StorageError as error:
            if copy.failure is None:
                _log.warning("the replica of shard %r cannot follow: %s", copy.shard, error)
            copy.failure = error
            self._not_before[copy.path] = self._now() + _PAUSE_AFTER_FAILURE_S

    async def complete(self) -> None:
        """Follow to the end; see :meth:`Replicated.replicated`."""
        async with self._following:
            self._arrange()
            for copy in self._copies():
                try:
                    while self.store.moving is None and not copy.step(self.arrangement):
                        await asyncio.sleep(0)
                except StorageError as error:
                    copy.failure = error
                    raise
            self._offer()
        for store in self.stores:
            for shard in store.shards:
                why = self.hindrance(store.copies.get(shard))
                if why:
                    raise store.failures.get(shard) or StaleReplicaError(f"the replica of shard {shard!r}: {why}")

    def _copies(self) -> list[Replica]:
        return [copy for store in self.stores for copy in store.copies.values()]

    # -- what is said of them -------------------------------------------------------------------------------------

    def report(self) -> list[dict[str, Any]]:
        """Return a row for each replica."""
        rows: list[dict[str, Any]] = []
        for store in self.stores:
            for shard, home in store.homes.items():
                copy = store.copies.get(shard)
                staleness = copy.staleness() if copy is not None else Staleness(0, inf)
                why = self.hindrance(copy)
                failure = copy.failure if copy is not None else store.failures.get(shard)
                rows.append(
                    {
                        "shard": shard,
                        "beside": home,
                        "vendors": store.count(shard) if copy is not None else 0,
                        "changes": staleness.changes,
                        "seconds": staleness.seconds,
                        "answers": not why,
                        "remark": "; ".join(each for each in (why, str(failure or "")) if each),
                    }
                )
        return sorted(rows, key=lambda row: (row["shard"], row["beside"]))


class Replicated:
    """What a `Marketplace` says of its replicas."""

    _vendors: VendorStore
    _host: ObjectHost
    _replication: Replication | None

    async def replicated(self) -> None:
        """Wait until every replica has all that was committed when this was called.

        Raises
        ------
        StorageError
            Vendors move between shards (``await market.rebalance()`` first), or a file cannot be read or written.

        Examples
        --------
        >>> import tempfile
        >>> from mktsim.market import Marketplace
        >>> async def story(folder):
        ...     async with Marketplace.open(folder, shards=2, replicas=1) as market:
        ...         await market.vendor("acme").initialize()
        ...         await market.replicated()
        ...         return market.staleness()[["shard", "beside", "vendors", "changes", "answers"]]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(asyncio.run(story(f"{folder}/market")).to_string(index=False))
          shard  beside  vendors  changes  answers
        shard-0 shard-1        1        0     True
        shard-1 shard-0        0        0     True
        """
        if self._replication is not None:
            self._vendors.migrate()
            self._host.flush()
            await self._replication.complete()

    def staleness(self) -> pd.DataFrame:
        """Return how far behind each replica is now.

        Returns
        -------
        DataFrame
            A row a replica: ``shard``, the shard ``beside`` which it lies, how many ``vendors`` it has, how many of
            the shard's vendors had ``changes`` since that it lacks, ``seconds`` since it lacked none (infinite where
            that is not known), whether it ``answers``, and if not, or where it cannot follow, a ``remark``.
        """
        import pandas as pd

        columns = ["shard", "beside", "vendors", "changes", "seconds", "answers", "remark"]
        return pd.DataFrame(self._replication.report() if self._replication is not None else [], columns=columns)

    def _migrate_before_query(self) -> None:
        """Bring vendors to the present schema: worker processes scan files, and do not write to them.

        A shard that cannot be read is passed over where it has replicas: the scatter will say, or ask one of them.
        """
        if self._replication is None:
            self._vendors.migrate()
            return
        for shard in self._vendors.shards:
            try:
                self._vendors.migrate(shard=shard)
            except StorageError as error:
                if isinstance(error, SchemaMismatchError) or (isinstance(error, CorruptImageError) and error.vendor_id):
                    raise


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("replicas follow no more: %r", error)
