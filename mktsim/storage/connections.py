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
            self._judge(before, finish)
            self._committing = self.changed
            connection.execute("COMMIT" if self.changed else "ROLLBACK")
        except BaseException:
            self._dismiss_authorizer()
            if not connection.get_autocommit():
                connection.execute("ROLLBACK")
            raise
        finally:
            self._committing = False

    @contextmanager
    def joining(self, finish: Callable[[Connection], None]) -> Iterator[Connection]:
        """Run the block as a part of a transaction that stays open until :meth:`commit`, begun if there is none.

        A part that fails is undone alone, unless SQLite gave the whole transaction up: `connection.get_autocommit()`
        is then true.
        """
        connection = self.connection
        if connection.get_autocommit():
            connection.execute("BEGIN IMMEDIATE")
        connection.execute("SAVEPOINT joined")
        try:
            before = connection.total_changes(), connection.pragma("user_version")
            yield connection
            self._judge(before, finish)
            if not self.changed:
                connection.execute("ROLLBACK TO joined")
            connection.execute("RELEASE joined")
        except BaseException:
            self._dismiss_authorizer()
            if not connection.get_autocommit():
                connection.execute("ROLLBACK TO joined")
                connection.execute("RELEASE joined")
            raise

    def commit(self) -> None:
        """End the transaction that others joined."""
        self._committing = True
        try:
            self.connection.execute("COMMIT")
        except BaseException:
            self.rollback()
            raise
        finally:
            self._committing = False

    def rollback(self) -> None:
        """Undo the transaction that others joined, if one is open."""
        if not self.connection.get_autocommit():
            self.connection.execute("ROLLBACK")

    def _judge(self, before: tuple[int, object], finish: Callable[[Connection], None] | None) -> None:
        """Look at what the block did: whether it may last, and whether it changed anything."""
        connection = self.connection
        self._dismiss_authorizer()
        if connection.get_autocommit():
            raise StorageError("the block ended its transaction, which was rolled back: leave that to the store")
        if connection.pragma("schema_version") != self._cookie:
            raise SchemaMismatchError("the block changed the schema and was rolled back: migrate the store")
        self.changed = before != (connection.total_changes(), connection.pragma("user_version"))
        if self.changed and finish is not None:
            finish(connection)

    def _dismiss_authorizer(self) -> None:
        """Take off an authorizer that the block has set and left closed: it would judge our own statements too."""
        authorizer = self.connection.authorizer
        if authorizer is not None and not getattr(authorizer, "open", False):
            self.connection.authorizer = None


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

    def __len__(self) -> int:
        return len(self._entries)

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
