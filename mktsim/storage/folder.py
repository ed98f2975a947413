"""The folder of a store on disk: what it holds is written beside it, and checked when it is opened again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mktsim.errors import SchemaMismatchError, StorageError
from mktsim.sql.schema import Schema
from mktsim.sqlite import SQLITE_OPEN_CREATE, SQLITE_OPEN_READONLY, SQLITE_OPEN_READWRITE, Connection, connect
from mktsim.storage.guards import named_errors

_FORMAT = 1
_FORMAT_MOVING = 2  # while vendors move: whoever does not know of that must not open the store
_MANIFEST = "store.json"
BUSY_TIMEOUT_MS = 10_000


def claim(path: str | Path, kind: str, schema: Schema, shards: tuple[str, ...], *, version: int = 1) -> Path:
    """Make the folder of a store, or check that the one there is this store's, and return it.

    A folder of an earlier version of the schema is claimed for the present one; its vendors are migrated one by one.
    Where vendors move (see `mktsim.storage.moves`), the shards may be others than they were.

    Raises
    ------
    SchemaMismatchError
        The store was made for another schema.
    StorageError
        It is another kind of store, has other shards, or cannot be read or written.
    """
    folder = Path(path)
    present = {"version": version, "statements": schema.statements}
    wanted = {"format": _FORMAT, "kind": kind, "schema": schema.digest, "shards": list(shards)}
    with named_errors(f"store {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / _MANIFEST
        if not manifest.exists():
            if any(not entry.name.startswith(_MANIFEST) for entry in folder.iterdir()):
                raise StorageError(f"{folder} holds files but no {_MANIFEST}: choose an empty folder")
            draft = folder / f"{_MANIFEST}.{os.getpid()}"
            replace_file(manifest, json.dumps(wanted | present, indent=1).encode(), draft)
        try:
            read = json.loads(manifest.read_bytes())
            found = {key: read[key] for key in wanted}
            before = int(read.get("version", 1))
            if read.get("moving") is not None:
                wanted |= {"format": _FORMAT_MOVING, "shards": list(found["shards"])}
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{manifest} cannot be understood: {error!r}") from error
    if found["schema"] != schema.digest and before < version:
        found["schema"] = schema.digest
        if found == wanted:
            _amend(folder, wanted | present)
    if found["schema"] != schema.digest:
        raise SchemaMismatchError(f"{folder} was made for another schema, listed in {manifest.name}: open it with that")
    for key, value in wanted.items():
        if found[key] != value:
            raise StorageError(f"{folder} was made with {key} {found[key]!r}, not {value!r}: open it as it was made")
    return folder


def moving_in(folder: Path) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """Return all shards that hold vendors while some move, and what was noted about the move; None where none do."""
    read = json.loads((folder / _MANIFEST).read_bytes())
    return None if read.get("moving") is None else (tuple(read["shards"]), dict(read["moving"]))


def note_shards(folder: Path, shards: Sequence[str], moving: Mapping[str, Any] | None) -> None:
    """Write down which shards a store has: with a note while vendors move between them, or None when they have."""
    with named_errors(f"store {folder}"):
        form = _FORMAT if moving is None else _FORMAT_MOVING
        _amend(folder, {"format": form, "shards": list(shards), "moving": None if moving is None else dict(moving)})


def _amend(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change some of what is written beside a store."""
    with named_errors(f"store {folder}"):
        manifest = folder / _MANIFEST
        read = json.loads(manifest.read_bytes()) | changes
        kept = {key: value for key, value in read.items() if value is not None}
        replace_file(manifest, json.dumps(kept, indent=1).encode(), folder / f"{_MANIFEST}.{os.getpid()}")


def replace_file(path: Path, content: bytes, draft: Path) -> None:
    """Write a file so that it is there whole or not at all, even if the power fails."""
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def file_name(shard: str) -> str:
    """Return a file name for a shard, safe on every system.

    Examples
    --------
    >>> file_name("eu/1")
    'eu%2F1.sqlite'
    """
    return quote(shard, safe="") + ".sqlite"


def open_file(path: Path, *, writable: bool = True) -> Connection:
    """Open a database file of a store: a write-ahead log, every commit on disk before it is acknowledged."""
    connection = connect(
        str(path), flags=SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE if writable else SQLITE_OPEN_READONLY
    )
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        if writable:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON").fetchall()  # what is deleted is overwritten
    except BaseException:
        connection.close(True)
        raise
    return connection
