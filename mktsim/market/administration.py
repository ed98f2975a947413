"""What an operator does with a marketplace: its log of events, its dead letters, its vendors' databases."""

from __future__ import annotations

from os import PathLike
from typing import Any

from mktsim.errors import InvalidArgumentError
from mktsim.market.upkeep import DeletionProof, check_deletable, delete_vendor, export_vendor, import_vendor
from mktsim.objects import Caller, Event, ObjectHost, Subscriptions
from mktsim.objects.context import Delivery
from mktsim.objects.events import EventHandler
from mktsim.objects.log import EventLog
from mktsim.storage import VendorStore


class Administration:
    """The first of the two layers of a `Marketplace`, which makes what is named here."""

    on: Subscriptions
    calls: Caller
    _vendors: VendorStore
    _log: EventLog
    _host: ObjectHost
    _system_host: ObjectHost

    def events(self, name: str | None = None, *, since: int = 0, limit: int = 500) -> list[Event]:
        """Return events of the log after an offset, in order, of one name or of all."""
        return self._log.read(after=since, name=name, limit=limit)

    async def subscribe(self, subscriber: str, name: str, handler: EventHandler, *, since: int = 0) -> int:
        """Hear the logged events of a name after an offset, then those to come; return how many were replayed.

        Parameters
        ----------
        subscriber : str
            A name of your own: what a replay calls through stubs happens once per subscriber and event, however often
            it is replayed.
        name : str
            ``"Order.placed"``.
        handler : callable
            Takes the :class:`~mktsim.objects.Event`.
        since : int
            The offset to begin after.
        """
        seen, replayed = since, 0
        while events := self._log.read(after=seen, name=name):
            for event in events:
                await self.on.run(handler, event, Delivery(f"log/{subscriber}", event.offset, 0, "0"))
                seen, replayed = event.offset, replayed + 1

        def live(event: Event) -> Any:
            return handler(event) if event.offset > seen else None

        self.on.add(name, live)
        return replayed

    def migrate(self, *, progress: bool = False) -> int:
        """Bring every vendor to the vendor class's version now, and return how many were not; see `VendorStore`."""
        return self._vendors.migrate(progress=progress)

    def export_vendor(self, vendor_id: str, path: str | PathLike[str]) -> int:
        """Write a vendor's database, its integrity checked, as a SQLite file; return its size in bytes."""
        return export_vendor(self._vendors, vendor_id, path)

    def import_vendor(self, path: str | PathLike[str]) -> str:
        """Add the vendor of an exported file and return its id.

        Raises
        ------
        CorruptImageError, SchemaMismatchError, StorageError
            The file is damaged, of another schema or encoding, or holds another vendor's rows; nothing was added.
        DuplicateError
            The vendor exists.
        """
        vendor_id = import_vendor(self._vendors, path, lambda id: self._log.last(f"vendor/{id}"))
        self._host.adopt(vendor_id)
        return vendor_id

    async def delete_vendor(self, vendor_id: str) -> DeletionProof:
        """Delete a vendor and prove that its files are clean of it; the log keeps what it announced.

        Raises
        ------
        OrderError
            It has events that are not delivered, orders in flight, or money that is not paid out.
        """
        await self.idle()
        await self._host.retire(vendor_id, check_deletable)
        return delete_vendor(self._vendors, vendor_id)

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
        while True:
            await self.calls.drain()
            for host in self._hosts().values():
                await host.pump.idle()
            if not self.calls.busy and not any(host.pump.busy for host in self._hosts().values()):
                return

    def _hosts(self) -> dict[str, ObjectHost]:
        return {"vendor/": self._host, "system/": self._system_host}
