"""The marketplace: vendors, queries over all of them, and orders routed to each.

Theory of operation
-------------------
An order is an event. `place_order` commits one ``Order.placed`` per vendor to the outbox of the marketplace's own
durable object, all in one transaction; from then on it cannot be lost. The event comes back to the hub at the address
``"market"``, whose first handler calls the vendor's `handle_order` under the event's idempotency key. What is returned
is the vendor's answer if the first attempt succeeded; if not, the order is `placed` and will be tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mktsim.errors import InvalidArgumentError, NotCallableError, OrderError
from mktsim.fanout import Explanation, QueryCoordinator, QueryResult, RowStream, ScatterPolicy, store_scanners
from mktsim.limits import Lateness
from mktsim.market.administration import Administration
from mktsim.market.cart import Cart
from mktsim.market.footprint import check_opened, check_shards, report
from mktsim.market.layout import Layout, find_layout
from mktsim.market.listening import VendorStub
from mktsim.market.nouns import NOUNS
from mktsim.market.opening import Opening
from mktsim.market.orders import commission_of
from mktsim.market.rebalance import Rebalancer, Sharding
from mktsim.market.replication import Replicated, Replication, check_replicas
from mktsim.market.routing import OrderRouter
from mktsim.market.search import SearchPage, search
from mktsim.market.system import SYSTEM_SCHEMA, MarketObject
from mktsim.market.vendor import VendorObject
from mktsim.network import InProcessNetwork, Network
from mktsim.objects import Caller, DurableObject, ObjectHost, Subscriptions, object_schema
from mktsim.objects.events import EventMessage
from mktsim.objects.ledger import FixedLedger, StoreLedger
from mktsim.objects.log import EventLog
from mktsim.sql.schema import Schema
from mktsim.storage import Migration, PackedStore, VendorStore
from mktsim.storage.guards import check_vendor_id
from mktsim.streams import Streams

if TYPE_CHECKING:
    import pandas as pd


class Marketplace(Administration, Sharding, Replicated):
    """Vendors behind one address; made by :meth:`open` or :meth:`from_frames`.

    Attributes
    ----------
    on : Subscriptions
        ``market.on.Order.placed(handler)`` subscribes to an event.

    Examples
    --------
    >>> import asyncio
    >>> async def story():
    ...     async with Marketplace.open() as market:
    ...         acme = market.vendor("acme")
    ...         await acme.initialize(name="Acme Electronics")
    ...         await acme.create_product(name="Wireless mouse", sku="SKU-123", price=19.99, stock=3)
    ...         [order] = await market.place_order(Cart("zoe", [{"vendorId": "acme", "sku": "SKU-123"}]))
    ...         found = await market.query("SELECT name, stock FROM products WHERE name LIKE ?", ["%wireless%"])
    ...         return order["status"], order["totalMinor"], found.rows
    >>> asyncio.run(story())
    ('accepted', 1999, [('Wireless mouse', 2)])
    """

    def __init__(
        self,
        *,
        layout: Layout,
        path: Path | None,
        schema: Schema,
        vendor_class: type[DurableObject],
        executor: Executor | None,
        network: Network | None,
        seed: int,
        clock: Callable[[], float] | None,
        commission_bp: int = 0,
        migration: Migration | None = None,
        fill: Callable[[VendorStore], object] | None = None,
        replicas: int = 0,
    ) -> None:
        streams = Streams(seed)
        self.on = Subscriptions()
        self._path = path
        self._fill = fill
        self._executor = executor
        self._lateness = Lateness()
        self._network: Network = network if network is not None else InProcessNetwork()
        self._schema = schema
        self._closers: list[Callable[[], Any]] = []
        self._replication: Replication | None = None
        try:
            shard_map = layout.map()
            check_shards(layout.store, len(shard_map.shards), replicas, executor)
            self._vendors = layout.open_vendors(path, schema, shard_map.shard_of, migration, replicated=bool(replicas))
            self._closers.append(self._vendors.close)
            check_opened(self._vendors, executor)
            system = layout.open_system(path, SYSTEM_SCHEMA)
            self._closers.append(system.close)
            self._log = EventLog(system, "log")
            if replicas and isinstance(self._vendors, PackedStore):
                self._replication = Replication(self._vendors, count=replicas, executor=executor, clock=clock)
            make_scanner = self._replication.scanner if self._replication is not None else None
            self._coordinator = QueryCoordinator(
                list(map(make_scanner, self._vendors.shards))
                if make_scanner is not None
                else store_scanners(self._vendors, executor=executor),
                schema=schema,
                network=self._network,
                clock=clock,
            )
            self._closers.append(self._coordinator.close)
            self._host = ObjectHost(
                self._vendors,
                self._network,
                factory=vendor_class,
                prefix="vendor/",
                hub="market",
                streams=streams,
                ledger=StoreLedger(system, "ledger"),
                clock=clock,
                first_serial=lambda id: self._log.last(f"vendor/{id}"),
            )
            self._closers.append(self._host.close)
            self._system_host = ObjectHost(
                system,
                self._network,
                factory=MarketObject,
                prefix="system/",
                hub="market",
                streams=streams,
                ledger=FixedLedger(["market"]),
                clock=clock,
                queue_limit=1_000_000,
                on_dead=lambda *dead: self._router.is_dead(*dead),
            )
            self._closers.append(self._system_host.close)
            self._host.recover()
            self._system_host.recover()
            self._network.register("market", self._serve)
            self._closers.append(lambda: self._network.unregister("market"))
            self.calls = Caller(self._network, "market")
            self._closers.append(self.calls.drain)
            self._rebalancer = Rebalancer(
                self._vendors,
                self._host,
                self._coordinator,
                layout=layout,
                path=path,
                executor=executor,
                make_scanner=make_scanner,
            )
            self._closers.append(self._rebalancer.close)
            if self._replication is not None:
                self._closers.append(self._replication.close)
        except BaseException:
            for close in reversed(self._closers[:3]):  # those that need no event loop; nothing else has begun
                close()
            raise
        self._own = self.calls.stub("system/market")
        self._router = OrderRouter(self._own, self.vendor, self._vendors, self.on, commission_bp=commission_bp)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str] | None = None,
        *,
        store: str | None = None,
        shards: int | None = None,
        virtual_nodes: int | None = None,
        executor: Executor | None = None,
        vendor_class: type[VendorObject] = VendorObject,
        network: Network | None = None,
        seed: int = 0,
        clock: Callable[[], float] | None = None,
        commission_bp: int = 500,
        replicas: int = 0,
    ) -> Opening:
        """Open a marketplace, or make a new one: ``market = await Marketplace.open()``, or ``async with``.

        Parameters
        ----------
        path : path, optional
            The folder. One that holds a marketplace is opened with the store and the numbers it was made with.
        store : {"memory", "directory", "packed"}, optional
            Where vendors' databases live; memory without a path, else packed.
        shards : int, optional
            Groups of vendors; 8 for a new one.
        virtual_nodes : int, optional
            Tokens of each shard on the ring; 150 for a new one.
        executor : Executor, optional
            Where shards are scanned; in this process when absent.
        vendor_class : type
            What a vendor is; a subclass of :class:`VendorObject`. Its `nouns` may go on after those of its base; where
            they change, its `version` goes up, and vendors are migrated when first written to or scanned.
        network : Network, optional
            What messages travel by; in process when absent.
        seed : int
            Of the jitter between deliveries.
        clock : callable, optional
            Seconds since 1970-01-01 UTC for `createdAt` and reservations that outlive the process, `time.time` for
            instance; the loop's own time when absent.
        commission_bp : int
            What the marketplace keeps of an order, in hundredths of a percent.
        replicas : int
            Copies of each shard of a packed store, each beside another shard, that follow it while orders go on. A
            query asks them where its policy hedges or retries; see :meth:`staleness` and ``result.stats.stale``.

        Raises
        ------
        InvalidArgumentError, SchemaMismatchError, StorageError
        LostFileError
            A file that held data is missing or empty. With replicas a lost shard file is refused when it is used, so
            that replicas can answer for it.
        ResourceLimitError
            The system allows fewer file descriptors or less memory than may be needed; see :meth:`limits`.
        """
        if not (isinstance(vendor_class, type) and issubclass(vendor_class, VendorObject)):
            raise InvalidArgumentError(f"vendor_class must be a subclass of VendorObject, not {vendor_class!r:.80}")
        if vendor_class.nouns[: len(NOUNS)] != NOUNS:
            raise InvalidArgumentError("the nouns of a vendor_class are those of VendorObject and then its own")
        commission_of(0, commission_bp)
        schema = object_schema(*vendor_class.nouns)
        migration = Migration(vendor_class.version, vendor_class.migrations)
        folder = _folder(path)

        def make() -> Marketplace:
            layout = find_layout(folder, store=store, shards=shards, virtual_nodes=virtual_nodes)
            return cls(
                layout=layout,
                replicas=check_replicas(replicas, layout, folder),
                path=folder,
                schema=schema,
                vendor_class=vendor_class,
                executor=executor,
                network=network,
                seed=seed,
                clock=clock,
                commission_bp=commission_bp,
                migration=migration,
            )

        return Opening(make)

    @classmethod
    def from_frames(
        cls,
        *,
        vendor: str = "seller_id",
        store: str | None = None,
        path: str | PathLike[str] | None = None,
        shards: int | None = None,
        executor: Executor | None = None,
        network: Network | None = None,
        **frames: Any,
    ) -> Opening:
        """Make a marketplace of your own DataFrames, to query; see `mktsim.market.frames` for how types are kept.

        Parameters
        ----------
        vendor : str
            The column, in every frame, that says whose the row is.
        store, path, shards, executor, network
            As for :meth:`open`; `path` must be new.
        **frames : DataFrame
            Table name to frame.

        Raises
        ------
        InvalidArgumentError
            A frame has no such column, a missing vendor, or values that SQLite cannot keep as they are.
        """
        from mktsim.market.frames import FrameVendor, load, tables_of

        tables = tables_of(frames, vendor)
        folder = _folder(path)

        def make() -> Marketplace:
            if folder is not None and folder.exists() and any(folder.iterdir()):
                raise InvalidArgumentError(f"{str(folder)!r:.300} is not empty: frames go to a new folder")
            return cls(
                layout=find_layout(folder, store=store, shards=shards, virtual_nodes=None),
                path=folder,
                schema=tables.schema,
                vendor_class=FrameVendor,
                executor=executor,
                network=network,
                seed=0,
                clock=None,
                fill=partial(load, tables),
            )

        return Opening(make)

    @property
    def vendors(self) -> list[str]:
        """The ids of all vendors, sorted."""
        return self._vendors.vendor_ids()

    @property
    def store(self) -> VendorStore:
        """The store that holds the vendors' databases."""
        return self._vendors

    @property
    def network(self) -> Network:
        """What messages travel by; its `stats` count round trips."""
        return self._network

    def vendor(self, id: str) -> VendorStub:
        """Return the stub of a vendor; an id nobody has is for ``initialize``."""
        stub = VendorStub(self.calls.root(f"vendor/{check_vendor_id(id)}"))
        stub._subscriptions = self.on
        return stub

    async def query(
        self,
        sql: str,
        params: Any = (),
        *,
        shard_key: str | None = None,
        allow_partial: bool = False,
        deadline_s: float | None = None,
        policy: ScatterPolicy | None = None,
    ) -> QueryResult:
        """Run one SELECT over all vendors, exactly; see :meth:`mktsim.fanout.QueryCoordinator.query`."""
        self._migrate_before_query()
        with self._lateness:
            return await self._coordinator.query(
                sql, params, shard_key=shard_key, allow_partial=allow_partial, deadline_s=deadline_s, policy=policy
            )

    def stream(
        self,
        sql: str,
        params: Any = (),
        *,
        allow_partial: bool = False,
        deadline_s: float | None = None,
        policy: ScatterPolicy | None = None,
    ) -> RowStream:
        """Run one SELECT over all vendors row by row: ``async for row in market.stream(sql)``, each row a dict.

        Leaving the loop early asks no further vendor; see :meth:`mktsim.fanout.QueryCoordinator.stream`.
        """
        self._migrate_before_query()
        return self._coordinator.stream(sql, params, allow_partial=allow_partial, deadline_s=deadline_s, policy=policy)

    def explain(self, sql: str, params: Any = ()) -> Explanation:
        """Say how a statement would be answered; see :meth:`mktsim.fanout.QueryCoordinator.explain`."""
        return self._coordinator.explain(sql, params)

    async def place_order(
        self, cart: Cart, *, all_or_nothing: bool = False, hold_s: float = 60.0
    ) -> list[dict[str, Any]]:
        """Place one order with each vendor of a cart.

        Parameters
        ----------
        cart : Cart
            One with a `key` places nothing twice: placed again, it returns how its orders stand by now.
        all_or_nothing : bool
            Accept all orders, or release what is held: vendors hold their orders until each has answered.
        hold_s : float
            How long they hold at most while another does not answer, seconds.

        Returns
        -------
        list of dict
            An order per vendor, in the order in which the cart first names them: the vendor's row, whose `status` is
            ``accepted`` or ``rejected`` (with a `reason`), or ``cancelled`` where it was released; or ``placed`` where
            the vendor did not answer the first attempt, which will be repeated.

        Raises
        ------
        InvalidArgumentError, UnknownVendorError, OrderError
            Nothing was written.
        DuplicateError
            The key was used for another cart.
        """
        if self._fill is not None:
            raise OrderError("a marketplace made of frames holds no orders: open one with Marketplace.open()")
        return await self._router.place(cart, all_or_nothing=bool(all_or_nothing), hold_s=hold_s)

    async def search(
        self,
        text: str = "",
        *,
        category: str | None = None,
        sort: str = "rating",
        page: str | None = None,
        page_size: int = 20,
    ) -> SearchPage:
        """Return a page of the products of active vendors whose name holds `text`.

        Parameters
        ----------
        text : str
            As LIKE compares: ASCII letters match in either case. Empty for all.
        category : str, optional
        sort : {"rating", "price", "-price", "name", "newest"}
            Best rated, cheapest, dearest, by name, or newest first; then by vendor and id.
        page : str, optional
            The `next` of the page before; the first page when absent.
        page_size : int
            From 1 to 1000.
        """
        return await search(self.query, text, category=category, sort=sort, page=page, page_size=page_size)

    def limits(self) -> pd.DataFrame:
        """Return what this marketplace uses of the system, may come to need, and may have.

        Returns
        -------
        DataFrame
            One row a limit: ``what``, ``unit``, ``used`` now by the process, ``needed`` at most by the marketplace, by
            estimate, ``limit``, and what to ``raise``. Descriptors and memory are checked when the marketplace is
            opened. Lateness is measured while queries run: how long others on the loop had to wait for their turn.

        Examples
        --------
        >>> import asyncio
        >>> async def story():
        ...     async with Marketplace.open() as market:
        ...         await market.query("SELECT COUNT(*) FROM products")
        ...         return market.limits()
        >>> frame = asyncio.run(story())
        >>> frame["what"].tolist()[:2]
        ['file descriptors', 'memory']
        >>> bool((frame["used"] >= 0).all())
        True
        """
        replicas = self._replication.count if self._replication is not None else 0
        shards = len(self._vendors.shards)  # those that a rebalance is about to drop included
        return report(self._vendors, shards, self._executor, self._lateness, replicas=replicas)

    async def balances(self) -> dict[str, int]:
        """Return the balance of every account over all vendors, in minor units; together they are 0."""
        sql = "SELECT account, SUM(amount) FROM entries WHERE account IS NOT NULL GROUP BY account ORDER BY account"
        return {str(account): int(amount) for account, amount in (await self.query(sql)).rows}

    async def close(self) -> None:
        """Send and answer what is recorded, stop delivering, close the files; calling it again does nothing."""
        self._router.give_up()
        closers, self._closers = self._closers, []
        for close in reversed(closers):
            waiting = close()
            if waiting is not None:
                await waiting

    def __repr__(self) -> str:
        if not self._closers:
            return "<Marketplace closed>"
        layout = self._rebalancer.layout
        return f"<Marketplace {len(self._vendors)} vendors, {layout.shards} shards, {layout.store}>"

    def _repr_html_(self) -> str:
        facts = {
            "store": self._rebalancer.layout.store,
            "path": str(self._path) if self._path is not None else "in memory",
            "vendors": f"{len(self._vendors):,}" if self._closers else "closed",
            "shards": f"{self._rebalancer.layout.shards} x {self._rebalancer.layout.virtual_nodes} virtual nodes",
        }
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table><caption>Marketplace</caption>{rows}</table>"

    async def _begin(self) -> None:
        if self._fill is not None:
            self._fill(self._vendors)
        self._router.run = await self._own.begin()
        self._system_host.resume()
        self._host.resume()
        self._rebalancer.resume()
        if self._replication is not None:
            self._replication.start(self._coordinator, self._rebalancer)

    async def _serve(self, _address: str, message: Any) -> None:
        if not isinstance(message, EventMessage):
            raise NotCallableError("the market takes events only: call its vendors")
        content = message.content()  # what is malformed does not enter the log
        await self.on.deliver(message, await self._log.append(message), content)


def _folder(path: str | PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    try:
        return Path(path)
    except TypeError:
        raise InvalidArgumentError(f"a path is a string or a Path, not {path!r:.80}") from None
