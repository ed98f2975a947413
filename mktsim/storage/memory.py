"""Vendors in memory, a connection each: for tests, notebooks and small markets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from mktsim.errors import DuplicateError
from mktsim.sql.schema import Schema
from mktsim.sql.topk import TopKRequest
from mktsim.sqlite import Connection
from mktsim.storage.base import Answer, Setup, Statement, Tables, VendorStore, run_statements
from mktsim.storage.connections import Writer
from mktsim.storage.guards import check_vendor_id, named_errors, shown, unknown, vendor_errors
from mktsim.storage.images import checked
from mktsim.storage.migrate import Migration
from mktsim.storage.vfs import ReaderPool


class _Vendor:
    """A vendor's connection, its version, and its image from before the transaction that is open, if one is."""

    __slots__ = ("before", "version", "writer")

    def __init__(self, writer: Writer, version: int) -> None:
        self.writer = writer
        self.version = version
        self.before: bytes | None = None

    def committed_image(self) -> bytes:
        """Return the image of the last committed state."""
        return self.before if self.before is not None else self.writer.connection.serialize("main")


class MemoryStore(VendorStore):
    """A :class:`VendorStore` that lives as long as its process. Some 50 KB of memory a small vendor.

    Parameters
    ----------
    schema, shards, locate, setup, migration
        As of every store; see :class:`VendorStore`.

    Examples
    --------
    What ends in an error was never there.

    >>> schema = Schema(["CREATE TABLE products(name TEXT)"])
    >>> with MemoryStore(schema, shards=["s0"], locate=lambda vendor_id: "s0") as store:
    ...     store.create("acme", {"products": [("mouse",)]})
    ...     try:
    ...         with store.transaction("acme") as connection:
    ...             _ = connection.execute("DELETE FROM products")
    ...             raise ConnectionError("the line is dead")
    ...     except ConnectionError:
    ...         print(list(store.scan("s0", [("SELECT name FROM products", ())])))
    [('acme', ([('mouse',)],))]
    """

    def __init__(
        self,
        schema: Schema,
        *,
        shards: Sequence[str],
        locate: Callable[[str], str],
        setup: Setup | None = None,
        migration: Migration | None = None,
    ) -> None:
        super().__init__(schema, shards=shards, locate=locate, setup=setup, migration=migration)
        self._vendors: dict[str, dict[str, _Vendor]] = {shard: {} for shard in self.shards}
        self._readers = ReaderPool(self.setup)

    def _vendor(self, vendor_id: str) -> _Vendor:
        self._check_open()
        vendor = self._vendors[self.shard_of(vendor_id)].get(vendor_id)
        if vendor is None:
            raise unknown(vendor_id)
        return vendor

    def vendor_ids(self, shard: str | None = None) -> list[str]:
        self._check_open()
        if shard is None:
            return sorted(vendor_id for vendors in self._vendors.values() for vendor_id in vendors)
        self._check_shard(shard)
        return sorted(self._vendors[shard])

    def __contains__(self, vendor_id: object) -> bool:
        self._check_open()
        return vendor_id in self._vendors[self.shard_of(check_vendor_id(vendor_id))]

    def count(self, shard: str | None = None) -> int:
        self._check_open()
        if shard is None:
            return sum(map(len, self._vendors.values()))
        self._check_shard(shard)
        return len(self._vendors[shard])

    def create_many(self, vendors: Iterable[tuple[str, Tables]]) -> int:
        self._check_open()
        count = 0
        for vendor_id, tables in vendors:
            shard = self._vendors[self.shard_of(vendor_id)]
            if vendor_id in shard:
                raise DuplicateError(f"vendor {shown(vendor_id)} exists already")
            shard[vendor_id] = self._open(self.template.fill(vendor_id, tables), version=1)
            count += 1
        return count

    def _store_new(self, vendor_id: str, image: bytes) -> None:
        self._vendors[self.shard_of(vendor_id)][vendor_id] = self._open(image, version=1)

    @contextmanager
    def transaction(self, vendor_id: str) -> Iterator[Connection]:
        vendor = self._vendor(vendor_id)
        with self._exclusively(vendor_id), vendor_errors(vendor_id):
            vendor.before = vendor.writer.connection.serialize("main")
            try:
                with vendor.writer.transaction() as connection:
                    yield connection
                vendor.version += vendor.writer.changed
            finally:
                vendor.before = None

    @contextmanager
    def read(self, vendor_id: str) -> Iterator[Connection]:
        image = self._vendor(vendor_id).committed_image()
        with vendor_errors(vendor_id), self._readers.lend(self.schema.digest, image) as connection:
            yield connection

    def delete(self, vendor_id: str) -> None:
        vendor = self._vendor(vendor_id)
        with self._exclusively(vendor_id):
            del self._vendors[self.shard_of(vendor_id)][vendor_id]
            vendor.writer.connection.close(True)

    def version(self, vendor_id: str) -> int:
        return self._vendor(vendor_id).version

    def image(self, vendor_id: str) -> bytes:
        with named_errors(f"vendor {shown(vendor_id)}", vendor_id):
            return checked(self._vendor(vendor_id).committed_image(), vendor_id)

    def restore(self, vendor_id: str, image: bytes) -> None:
        self._check_open()
        shard = self._vendors[self.shard_of(vendor_id)]
        adopted = self.template.adopt(image, vendor_id)
        with self._exclusively(vendor_id):
            old = shard.get(vendor_id)
            shard[vendor_id] = self._open(adopted, version=1 if old is None else old.version + 1)
            if old is not None:
                old.writer.connection.close(True)

    def _open(self, image: bytes, *, version: int) -> _Vendor:
        connection = self.template.connection(image)
        self.setup(connection)
        return _Vendor(Writer(connection, self.template.cookie), version)

    def _scan(
        self,
        shard: str,
        statements: list[Statement],
        vendor_ids: list[str] | None,
        top: TopKRequest | None,
        as_of: int | None,
    ) -> Iterator[Answer]:
        vendors = self._vendors[shard]
        for vendor_id in sorted(vendors) if vendor_ids is None else vendor_ids:
            vendor = vendors.get(vendor_id)
            if vendor is None:
                if vendor_ids is None:  # It was deleted since the scan began.
                    continue
                raise unknown(vendor_id)
            if vendor.before is None:
                rows = run_statements(vendor.writer.connection, vendor_id, statements)
            else:
                with self._readers.lend(self.schema.digest, vendor.before) as connection:
                    rows = run_statements(connection, vendor_id, statements)
            yield vendor_id, rows

    def _close(self) -> None:
        self._readers.close()
        for vendors in self._vendors.values():
            for vendor in vendors.values():
                vendor.writer.connection.close(True)
            vendors.clear()
