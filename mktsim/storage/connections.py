"""Connections that stay open: the rules of a write transaction, and the cache of those most recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from mktsim.errors import SchemaMismatchError, StorageError
from mktsim.sqlite import Connection


class Writer:
    """One vendor's read-write connection, and the rules of a transaction on it.

    Attributes
    ----------
    changed : bool
        Whether the last transaction committed a change of rows or of ``user_version``.
    """

    __slots__ = ("_committing", "_cookie", "changed", "connection")

    def __init__(self, connection: Connection, cookie: int) -> None:
        self.connection = connection
        self.changed = False
        self._cookie = cookie
        self._committing = False
        connection.execute("PRAGMA foreign_keys = ON").fetchall()
        connection.set_commit_hook(lambda: not self._committing)  # True turns a commit into a rollback

    @contextmanager
    def transaction(self, finish: Callable[[Connection], None] | None = None) -> Iterator[Connection]:
        """Run the block in one write transaction; `finish` runs last in it, where something changed."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            before = connection.total_changes(), connection.pragma("user_version")
            yield connection
            if connection.authorizer is not None:  # the block's; it would judge our own statements too
                connection.authorizer = None
            if connection.get_autocommit():
                raise StorageError("the block ended its transaction, which was rolled back: leave that to the store")
            if connection.pragma("schema_version") != self._cookie:
                raise SchemaMismatchError("the block changed the schema and was rolled back: migrate the store")
            self.changed = before != (connection.total_changes(), connection.pragma("user_version"))
            if self.changed and finish is not None:
                finish(connection)
            self._committing = self.changed
            connection.execute("COMMIT" if self.changed else "ROLLBACK")
        except BaseException:
            connection.authorizer = None
            if not connection.get_autocommit():
                connection.execute("ROLLBACK")
            raise
        finally:
            self._committing = False


class Closable(Protocol):
    """What a :class:`Cache` holds."""

    def close(self) -> None:
        """Free it."""


C = TypeVar("C", bound=Closable)


class Cache(Generic[C]):
    """The most recently used connections. One in use is taken out, so that eviction never closes it under its user."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, C] = OrderedDict()

    def take(self, key: Hashable) -> C | None:
        """Remove and return the entry of `key`, or None."""
        return self._entries.pop(key, None)

    def give(self, key: Hashable, entry: C) -> None:
        """Put an entry back as the most recently used, and close what no longer fits."""
        self.drop(key)
        self._entries[key] = entry
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)[1].close()

    def drop(self, key: Hashable) -> None:
        """Close the entry of `key`, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.close()

    def close(self) -> None:
        """Close all entries."""
        while self._entries:
            self._entries.popitem()[1].close()
