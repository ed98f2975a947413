"""Replications that outlive the process: what was computed once, under a key that says all that decides it.

Rules
-----
A key is a digest of everything that the samples depend on, the program's own source included, so an entry is never
stale: what has changed is simply not found. That source is the one which runs, in this process and in its workers, not
the one which an editor has saved since (`mktsim.study.provenance`); where they differ, nothing is kept. An entry is
written in one transaction, so it is there whole or not at all, wherever the process was killed; a digest of the samples
tells one that was damaged later, which counts as missing.

What this does not do
---------------------
It never deletes: remove the folder to start anew. Several processes may write to one folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError, StorageError, cause, shortened
from mktsim.sqlite import Connection, Error, connect, rows

#: The engine that ran, and the sojourn times in ms.
Samples = tuple[str, NDArray[np.float64]]
_FILE: Final = "replications.sqlite"
_BUSY_MS: Final = 10_000


class ReplicationCache:
    """Samples by key, in one SQLite file; made by :meth:`open`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, ReplicationCache.open(folder) as cache:
    ...     cache.put(b"key", ("vectorised", np.array([1.0, 2.0])))
    ...     cache.get(b"key"), cache.get(b"other"), len(cache)
    (('vectorised', array([1., 2.])), None, 1)
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, folder: str | Path) -> Iterator[ReplicationCache]:
        """Open the cache in a folder, which is made where there is none, for the length of a block.

        Raises
        ------
        InvalidArgumentError
            If `folder` is no path.
        StorageError
            If it cannot be read or written.
        """
        if not isinstance(folder, str | Path) or not str(folder):
            raise InvalidArgumentError(f"cache must be the path of a folder, not {folder!r:.80}")
        connection = None
        try:
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
                connection = connect(str(Path(folder).resolve() / _FILE))
                connection.set_busy_timeout(_BUSY_MS)
                # Readers and a writer side by side; what a killed process had committed survives it.
                connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL").fetchall()
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS replications"
                    "(key BLOB PRIMARY KEY, engine TEXT NOT NULL, samples BLOB NOT NULL, digest BLOB NOT NULL)"
                )
            except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
                raise _unusable(folder, error) from cause(error)
            yield cls(connection)
        except Error as error:
            raise _unusable(folder, error) from cause(error)
        finally:
            if connection is not None:
                connection.close()

    def __len__(self) -> int:
        return int(rows(self._connection, "SELECT COUNT(*) FROM replications")[0][0])

    def get(self, key: bytes) -> Samples | None:
        """Return the samples under a key, or None where there are none, or damaged ones."""
        found = rows(self._connection, "SELECT engine, samples, digest FROM replications WHERE key = ?", (key,))
        if not found or _digest(key, found[0][0], found[0][1]) != found[0][2]:
            return None
        return str(found[0][0]), np.frombuffer(found[0][1], "<f8").astype(np.float64)

    def put(self, key: bytes, samples: Samples) -> None:
        """Keep samples, whole or not at all."""
        engine, data = samples[0], np.ascontiguousarray(samples[1], "<f8").tobytes()
        self._connection.execute(
            "INSERT OR REPLACE INTO replications VALUES(?, ?, ?, ?)", (key, engine, data, _digest(key, engine, data))
        )


def _unusable(folder: str | Path, error: Exception) -> StorageError:
    return StorageError(
        f"the cache {str(folder)!r:.300} cannot be used: {shortened(error)}; choose another folder, or delete this one"
    )


def _digest(key: bytes, engine: str, data: bytes) -> bytes:
    return hashlib.blake2b(key + engine.encode() + b"\0" + data, digest_size=16).digest()
