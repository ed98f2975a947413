"""Export, import and deletion of one vendor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

from mktsim.errors import (
    CorruptImageError,
    DuplicateError,
    InvalidArgumentError,
    OrderError,
    SchemaMismatchError,
    StorageError,
    cause,
    shortened,
)
from mktsim.sqlite import Connection
from mktsim.storage import VendorStore
from mktsim.storage.folder import replace_file

_NEEDLE: Final = re.compile(rb"[\x20-\x7e]{24,}")
_CHUNK_BYTES: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class DeletionProof:
    """What was looked at after a vendor was deleted.

    Attributes
    ----------
    vendor_id : str
    image_bytes : int
        Size of the database that was deleted.
    needles : int
        Texts of its own, 24 characters or longer, that were searched for byte by byte.
    searched_bytes : int
        Size of the files that were searched; 0 for a store in memory.
    left : tuple of str
        Files in which any of them was found: empty, or the deletion failed.
    """

    vendor_id: str
    image_bytes: int
    needles: int
    searched_bytes: int
    left: tuple[str, ...]


def export_vendor(store: VendorStore, vendor_id: str, path: str | PathLike[str]) -> int:
    """Write a vendor's database as a SQLite file; return its size in bytes."""
    image = store.image(vendor_id)
    target = Path(path)
    if os.path.lexists(target):
        raise DuplicateError(f"{str(target)!r:.300} exists: choose a new file")
    try:
        replace_file(target, image, target.with_name(f"{target.name}.draft"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{str(target)!r:.300} cannot be written: {shortened(error)}") from cause(error)
    return len(image)


def import_vendor(store: VendorStore, path: str | PathLike[str], last_serial: Callable[[str], int]) -> str:
    """Add the vendor of an exported file, its integrity, schema and ownership checked; return its id.

    `last_serial` says which number the vendor's events had come to here. Its next ones bear higher numbers, though the
    file be older, for receivers would take an event whose number they know for a copy; and those up to it that the file
    has still to deliver were delivered before the vendor was deleted.
    """
    try:
        image = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise StorageError(f"{str(path)!r:.300} cannot be read: {shortened(error)}") from cause(error)
    adopted = store.template.adopt(image, str(path))
    connection = store.template.connection(adopted)
    try:
        ids = [str(row[0]) for row in connection.execute("SELECT id FROM _vendor").fetchall()]
        if len(ids) != 1 or not ids[0]:
            raise SchemaMismatchError(f"{str(path)!r:.300} says {len(ids)} times whose database it is, not once")
        for (table,) in connection.execute("SELECT name FROM pragma_table_list WHERE type = 'table'").fetchall():
            if not str(table).startswith(("_", "sqlite_")):
                foreign = connection.execute(f'SELECT 1 FROM "{table}" WHERE vendorId IS NOT ? LIMIT 1', (ids[0],))
                if foreign.fetchone() is not None:
                    raise CorruptImageError(f"{str(path)!r:.300} holds rows of another vendor", vendor_id=ids[0])
        last = last_serial(ids[0])
        connection.execute("UPDATE _vendor SET serial = MAX(serial, ?)", (last,))
        connection.execute("DELETE FROM _outbox WHERE seq <= ?", (last,))
        adopted = connection.serialize("main")
    finally:
        connection.close(True)
    if ids[0] in store:
        raise DuplicateError(f"vendor {ids[0]!r:.80} exists already: delete it first")
    store.restore(ids[0], adopted)
    return ids[0]


def check_deletable(connection: Connection) -> None:
    """Raise :class:`OrderError` where a vendor's deletion would lose what somebody waits for."""
    for what, sql in (
        ("events that are not delivered", "SELECT COUNT(*) FROM _outbox"),
        (
            "orders in flight: finish or cancel them",
            "SELECT COUNT(*) FROM orders WHERE status IN ('placed', 'accepted', 'shipped')",
        ),
        (
            "minor units that are not paid out: call pay_out()",
            "SELECT ABS(COALESCE(SUM(amount), 0)) FROM entries WHERE account = 'payable'",
        ),
    ):
        left = connection.execute(sql).get
        if left:
            raise OrderError(f"the vendor has {left} {what}")


def delete_vendor(store: VendorStore, vendor_id: str) -> DeletionProof:
    """Delete a vendor's database and search the store's files for what was in it."""
    image = store.image(vendor_id)
    with store.read(vendor_id) as connection:
        schema = {str(row[0]) for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    known = "\n".join(schema).encode()
    needles = {found for found in _NEEDLE.findall(image) if found not in known and vendor_id.encode() in found}
    store.delete(vendor_id)
    store.scrub()
    if vendor_id in store:
        raise InvalidArgumentError(f"vendor {vendor_id!r:.80} is being made anew: stop that and delete it again")
    folder = getattr(store, "path", None)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder is not None else []
    left = tuple(str(path.relative_to(folder)) for path in files if folder is not None and _holds(path, needles))
    size = sum(path.stat().st_size for path in files)
    return DeletionProof(vendor_id, len(image), len(needles), size, left)


def _holds(path: Path, needles: set[bytes]) -> bool:
    """Whether any of the texts is in a file, also across the border of two chunks."""
    longest = max(map(len, needles), default=0)
    if not longest:
        return False
    pattern = re.compile(b"|".join(map(re.escape, sorted(needles))))
    with path.open("rb") as file:
        before = b""
        while chunk := file.read(_CHUNK_BYTES):
            if pattern.search(before + chunk):
                return True
            before = chunk[-longest:]
    return False
