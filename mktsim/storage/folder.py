"""The folder of a store on disk: what it holds is written beside it, and checked when it is opened again.

Rules
-----
* ``store.json`` names the files that have been made: it is written after they are on disk. One that it names is never
  made again, so that a file which is lost is an error by name and not an empty store.
* A file that it does not name, because a crash came between the two or an older program wrote it, is made if it is not
  there. A file that is to be dropped is struck from it, on disk, before it goes.

What this does not do
---------------------
Files lost under a store that is open, or a write-ahead log that is taken away after a crash, are not noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from mktsim.errors import LostFileError, SchemaMismatchError, StorageError
from mktsim.sql.schema import Schema
from mktsim.sqlite import SQLITE_OPEN_CREATE, SQLITE_OPEN_READONLY, SQLITE_OPEN_READWRITE, Connection, connect
from mktsim.storage.guards import named_errors

_FORMAT = 1
_FORMAT_MOVING = 2  # while vendors move: whoever does not know of that must not open the store
MANIFEST = "store.json"
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
        manifest = folder / MANIFEST
        if not manifest.exists():
            if any(not entry.name.startswith(MANIFEST) for entry in folder.iterdir()):
                raise StorageError(f"{folder} holds files but no {MANIFEST}: choose an empty folder")
            draft = folder / f"{MANIFEST}.{os.getpid()}"
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
    read = json.loads((folder / MANIFEST).read_bytes())
    return None if read.get("moving") is None else (tuple(read["shards"]), dict(read["moving"]))


def note_shards(
    folder: Path, shards: Sequence[str], moving: Mapping[str, Any] | None, made: Iterable[str] = ()
) -> None:
    """Write down which shards a store has: with a note while vendors move between them, or None when they have.

    Of the files of these shards those count as made that are in `made`, or did so before.
    """
    with named_errors(f"store {folder}"):
        form = _FORMAT if moving is None else _FORMAT_MOVING
        changes = {"format": form, "shards": list(shards), "moving": None if moving is None else dict(moving)}
        _amend(folder, changes | {"made": sorted(made_in(folder).union(made).intersection(map(file_name, shards)))})


def made_in(folder: Path) -> frozenset[str]:
    """Return the names of a store's files that have been made; none where an older program wrote them down."""
    with named_errors(f"store {folder}"):
        try:
            return frozenset(map(str, json.loads((folder / MANIFEST).read_bytes()).get("made", ())))
        except (ValueError, TypeError, AttributeError) as error:
            raise StorageError(f"{folder / MANIFEST} cannot be understood: {error!r}") from error


def note_made(folder: Path, made: Iterable[str]) -> None:
    """Write down, in place of what was, which of a store's files have been made and are on disk."""
    _amend(folder, {"made": sorted(made)})


def is_lost(path: Path) -> bool:
    """Whether a database file that has been made is gone, or has not one byte left."""
    try:
        return not os.stat(path).st_size
    except FileNotFoundError:
        return True


def lost(path: Path, way_out: str = "", others: int = 0, *, what: str = "shard file") -> LostFileError:
    """Return the error for a file that is lost, and so many others."""
    more = f", as {'is one other' if others == 1 else f'are {others:,} others'}" if others else ""
    message = f"{what} {path} has been made and is missing or empty{more}: put it back from a backup{way_out}"
    return LostFileError(message, path=str(path))


#: How to go on without what a file of a store held.
MADE_ANEW: Final = f'; or strike its name from "made" in {MANIFEST}, and it is made anew, without what it held'


def _amend(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change some of what is written beside a store."""
    with named_errors(f"store {folder}"):
        manifest = folder / MANIFEST
        read = json.loads(manifest.read_bytes()) | changes
        kept = {key: value for key, value in read.items() if value is not None}
        replace_file(manifest, json.dumps(kept, indent=1).encode(), folder / f"{MANIFEST}.{os.getpid()}")
        sync_folder(folder)


def replace_file(path: Path, content: bytes, draft: Path) -> None:
    """Write a file so that it is there whole or not at all, even if the power fails."""
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def sync_folder(folder: Path) -> None:
    """See to it that the names of files, made, replaced or removed, are on disk, where the system can be told so."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_name(shard: str) -> str:
    """Return a file name for a shard, safe on every system.

    Examples
    --------
    >>> file_name("eu/1")
    'eu%2F1.sqlite'
    """
    return quote(shard, safe="") + ".sqlite"


def open_file(path: Path, *, writable: bool = True) -> Connection:
    """Open a database file of a store: a write-ahead log, every commit on disk before it is acknowledged.

    Raises
    ------
    LostFileError
        It is only to be read, and so has been made, but is there no more, or empty.
    """
    if not writable and is_lost(path):
        raise lost(path)
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
