"""The marketplace: vendors, queries over all of them, and orders routed to each.

Theory of operation
-------------------
An order is an event. `place_order` commits one ``Order.placed`` per vendor to the outbox of the marketplace's own
durable object, all in one transaction; from then on it cannot be lost. The event comes back to the hub at the address
``"market"``, whose first handler calls the vendor's `handle_order` under the event's idempotency key. What is returned
is the vendor's answer if the first attempt succeeded; if not, the order is `placed` and will be tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from html import escape
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from mktsim.errors import InvalidArgumentError, NotCallableError, OrderError, UnknownVendorError
from mktsim.fanout import Explanation, QueryCoordinator, QueryResult, store_scanners
from mktsim.market.cart import Cart
from mktsim.market.layout import Layout, find_layout
from mktsim.market.nouns import SCHEMA
from mktsim.market.vendor import VendorObject
from mktsim.network import InProcessNetwork, Network
from mktsim.objects import Caller, DurableObject, Event, ObjectHost, RetryPolicy, Stub, Subscriptions, object_schema
from mktsim.objects.durable import Sent
from mktsim.objects.events import EventMessage
from mktsim.objects.ledger import LEDGER_TABLE, FixedLedger, StoreLedger
from mktsim.sql.schema import Schema
from mktsim.storage import VendorStore
from mktsim.storage.guards import check_vendor_id
from mktsim.streams import Streams

#: The platform's own databases: outbox and inbox of the marketplace, and the ledger of vendors with events to deliver.
_SYSTEM_SCHEMA: Final = Schema((*object_schema().statements, LEDGER_TABLE))


class MarketObject(DurableObject):
    """The marketplace's own durable object: numbers its runs and keeps the events of orders."""

    creators = frozenset({"begin"})

    def begin(self) -> int:
        """Return the number of this run, never given out before."""
        return self.next_serial()

    def place(self, orders: Sequence[Mapping[str, Any]]) -> list[int]:
        """Send ``Order.placed`` for each order: all of them or none."""
        return [self.send("Order.placed", order) for order in orders]


class Opening:
    """A marketplace about to be opened: ``await`` it, or use it by ``async with``."""

    __slots__ = ("_make", "_market")

    def __init__(self, make: Callable[[], Marketplace]) -> None:
        self._make = make
        self._market: Marketplace | None = None

    def __await__(self) -> Generator[Any, None, Marketplace]:
        return self._open().__await__()

    async def __aenter__(self) -> Marketplace:
        self._market = await self._open()
        return self._market

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._market is not None:
            await self._market.close()

    async def _open(self) -> Marketplace:
        market = self._make()
        try:
            await market._begin()
        except BaseException:
            await market.close()
            raise
        return market


class Marketplace:
    """Vendors behind one address; made by :meth:`open` or :meth:`from_frames`.

    Attributes
    ----------
    on : Subscriptions
        ``market.on.Order.placed(handler)`` subscribes to an event.

    Examples
    --------
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
        fill: Callable[[VendorStore], object] | None = None,
    ) -> None:
        streams = Streams(seed)
        self.on = Subscriptions()
        self._path = path
        self._layout = layout
        self._fill = fill
        self._network: Network = network if network is not None else InProcessNetwork()
        self._first_attempts: dict[str, asyncio.Future[dict[str, Any] | None]] = {}
        self._run = 0
        self._orders = 0
        self._closers: list[Callable[[], Any]] = []
        try:
            self.ring = layout.ring()
            self._vendors = layout.open_vendors(path, schema, self.ring.get_node)
            self._closers.append(self._vendors.close)
            system = layout.open_system(path, _SYSTEM_SCHEMA)
            self._closers.append(system.close)
            self._coordinator = QueryCoordinator(
                store_scanners(self._vendors, executor=executor), ring=self.ring, schema=schema, network=self._network
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
                policy=RetryPolicy(),
                on_dead=self._order_is_dead,
            )
            self._closers.append(self._system_host.close)
            self._network.register("market", self._serve)
            self._closers.append(lambda: self._network.unregister("market"))
            self.calls = Caller(self._network, "market")
            self._closers.append(self.calls.drain)
        except BaseException:
            for close in reversed(self._closers[:3]):  # those that need no event loop; nothing else has begun
                close()
            raise
        self._own = self.calls.stub("system/market")
        self.on.Order.placed(self._route_order)

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
            What a vendor is; a subclass of :class:`VendorObject`.
        network : Network, optional
            What messages travel by; in process when absent.
        seed : int
            Of the jitter between deliveries.
        clock : callable, optional
            Seconds since 1970-01-01 UTC for `createdAt`, `time.time` for instance; the loop's own time when absent.

        Raises
        ------
        InvalidArgumentError, SchemaMismatchError, StorageError
        """
        if not (isinstance(vendor_class, type) and issubclass(vendor_class, VendorObject)):
            raise InvalidArgumentError(f"vendor_class must be a subclass of VendorObject, not {vendor_class!r:.80}")
        if vendor_class.nouns != VendorObject.nouns:
            raise InvalidArgumentError("a vendor_class with nouns of its own needs a schema of its own: keep the nouns")
        folder = _folder(path)

        def make() -> Marketplace:
            return cls(
                layout=find_layout(folder, store=store, shards=shards, virtual_nodes=virtual_nodes),
                path=folder,
                schema=SCHEMA,
                vendor_class=vendor_class,
                executor=executor,
                network=network,
                seed=seed,
                clock=clock,
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

    def vendor(self, id: str) -> Stub:
        """Return the stub of a vendor; an id nobody has is for ``initialize``."""
        return self.calls.stub(f"vendor/{check_vendor_id(id)}")

    async def query(
        self,
        sql: str,
        params: Any = (),
        *,
        shard_key: str | None = None,
        allow_partial: bool = False,
        deadline_s: float | None = None,
    ) -> QueryResult:
        """Run one SELECT over all vendors, exactly; see :meth:`mktsim.fanout.QueryCoordinator.query`."""
        return await self._coordinator.query(
            sql, params, shard_key=shard_key, allow_partial=allow_partial, deadline_s=deadline_s
        )

    def explain(self, sql: str, params: Any = ()) -> Explanation:
        """Say how a statement would be answered; see :meth:`mktsim.fanout.QueryCoordinator.explain`."""
        return self._coordinator.explain(sql, params)

    async def place_order(self, cart: Cart) -> list[dict[str, Any]]:
        """Place one order with each vendor of a cart.

        Returns
        -------
        list of dict
            An order per vendor, in the order in which the cart first names them: the vendor's row, whose `status` is
            ``accepted`` or ``rejected`` (with a `reason`); or ``placed`` where the vendor did not answer the first
            attempt, which will be repeated.

        Raises
        ------
        InvalidArgumentError, UnknownVendorError, OrderError
            Nothing was written.
        """
        if not isinstance(cart, Cart):
            raise InvalidArgumentError(f"place_order takes a Cart, not {type(cart).__name__}")
        if self._fill is not None:
            raise OrderError("a marketplace made of frames holds no orders: open one with Marketplace.open()")
        groups = cart.by_vendor()
        unknown = [vendor_id for vendor_id in groups if vendor_id not in self._vendors]
        if unknown:
            raise UnknownVendorError(
                f"no vendor {', '.join(f'{each!r:.80}' for each in unknown[:10])}; nothing was ordered"
            )
        orders: list[dict[str, Any]] = []
        for vendor_id, items in groups.items():
            self._orders += 1
            order_id = f"order-{self._run}-{self._orders}"
            orders.append({"orderId": order_id, "vendorId": vendor_id, "customer": cart.customer, "items": items})
        loop = asyncio.get_running_loop()
        first = [self._first_attempts.setdefault(order["orderId"], loop.create_future()) for order in orders]
        try:
            await self._own.place(orders)
            answers = await asyncio.gather(*first)
        finally:
            for order in orders:
                self._first_attempts.pop(order["orderId"], None)
        return [
            {**order, "status": "placed", "reason": None} if answer is None else answer
            for order, answer in zip(orders, answers, strict=True)
        ]

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the events that could not be delivered: sender, seq, event, data and error of each."""
        return [
            {**letter, "sender": prefix + letter["sender"]}
            for prefix, host in self._hosts().items()
            for letter in host.dead_letters()
        ]

    async def replay(self, sender: str, seq: int) -> None:
        """Try a dead letter again, named by its `sender` and `seq`.

        Raises
        ------
        InvalidArgumentError
            There is no such dead letter.
        """
        for prefix, host in self._hosts().items():
            if isinstance(sender, str) and sender.startswith(prefix):
                return await host.replay(sender.removeprefix(prefix), seq)
        raise InvalidArgumentError(f"no sender {sender!r:.80}: dead_letters() lists them")

    async def idle(self) -> None:
        """Wait until every call is answered and every event delivered or dead."""
        await self.calls.drain()
        for host in self._hosts().values():
            await host.pump.idle()

    async def close(self) -> None:
        """Send and answer what is recorded, stop delivering, close the files; calling it again does nothing."""
        for future in self._first_attempts.values():
            if not future.done():
                future.set_result(None)
        closers, self._closers = self._closers, []
        for close in reversed(closers):
            waiting = close()
            if waiting is not None:
                await waiting

    def __repr__(self) -> str:
        if not self._closers:
            return "<Marketplace closed>"
        return f"<Marketplace {len(self._vendors)} vendors, {self._layout.shards} shards, {self._layout.store}>"

    def _repr_html_(self) -> str:
        facts = {
            "store": self._layout.store,
            "path": str(self._path) if self._path is not None else "in memory",
            "vendors": f"{len(self._vendors):,}" if self._closers else "closed",
            "shards": f"{self._layout.shards} x {self._layout.virtual_nodes} virtual nodes",
        }
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table><caption>Marketplace</caption>{rows}</table>"

    async def _begin(self) -> None:
        if self._fill is not None:
            self._fill(self._vendors)
        self._run = await self._own.begin()
        self._system_host.resume()
        self._host.resume()

    def _hosts(self) -> dict[str, ObjectHost]:
        return {"vendor/": self._host, "system/": self._system_host}

    def _serve(self, _address: str, message: Any) -> Any:
        if not isinstance(message, EventMessage):
            raise NotCallableError("the market takes events only: call its vendors")
        return self.on.deliver(message)

    async def _route_order(self, event: Event) -> None:
        """Hand an order to its vendor; the first handler of ``Order.placed``."""
        data = event.data
        order = {name: data[name] for name in ("orderId", "items", "customer")}
        try:
            answer = await self.vendor(data["vendorId"]).handle_order(order)
        except Exception:
            self._attempted(data["orderId"], None)
            raise
        self._attempted(data["orderId"], answer)

    def _order_is_dead(self, _sender: str, event: Sent, _error: Exception) -> None:
        for order_id in [each for each in self._first_attempts if f'"{each}"' in event.data]:
            self._attempted(order_id, None)

    def _attempted(self, order_id: str, answer: dict[str, Any] | None) -> None:
        future = self._first_attempts.get(order_id)
        if future is not None and not future.done():
            future.set_result(answer)


def _folder(path: str | PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    try:
        return Path(path)
    except TypeError:
        raise InvalidArgumentError(f"a path is a string or a Path, not {path!r:.80}") from None
