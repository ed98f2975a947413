"""How a marketplace lies on disk: ``market.json`` beside the vendors' store and the platform's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mktsim.errors import InvalidArgumentError, SchemaMismatchError, StorageError
from mktsim.fanout import prepare
from mktsim.placement import ConsistentHashRing
from mktsim.sql.schema import Schema
from mktsim.storage import Migration, VendorStore, open_store

_FILE: Final = "market.json"
_STORES: Final = ("memory", "directory", "packed")
_MAX_SHARDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Layout:
    """What must be the same each time a marketplace is opened.

    Attributes
    ----------
    store : str
        ``"memory"``, ``"directory"`` or ``"packed"``.
    shards : int
        How many shards the vendors are spread over.
    virtual_nodes : int
        Tokens of each shard on the ring.
    """

    store: str
    shards: int
    virtual_nodes: int

    def ring(self) -> ConsistentHashRing:
        """Return the ring of the shards, whose names are ``shard-0`` and so on."""
        return ConsistentHashRing(
            (f"shard-{number}" for number in range(self.shards)), virtual_nodes=self.virtual_nodes
        )

    def open_vendors(
        self, path: Path | None, schema: Schema, locate: Callable[[str], str], migration: Migration | None = None
    ) -> VendorStore:
        """Open the vendors' store below `path`."""
        names = [f"shard-{number}" for number in range(self.shards)]
        folder = None if path is None else path / "vendors"
        return open_store(self.store, folder, schema, shards=names, locate=locate, setup=prepare, migration=migration)

    def open_system(self, path: Path | None, schema: Schema) -> VendorStore:
        """Open the store of the platform's own objects below `path`."""
        kind = "memory" if path is None else "directory"
        return open_store(kind, path and path / "system", schema, shards=["system"], locate=lambda _: "system")


def find_layout(path: Path | None, *, store: str | None, shards: int | None, virtual_nodes: int | None) -> Layout:
    """Return the layout of what is at `path`, or make it; arguments left out are taken from there.

    Raises
    ------
    InvalidArgumentError
        An argument is out of range, or a store on disk has no path.
    SchemaMismatchError
        The marketplace at `path` has another kind of store, or other numbers.
    StorageError
        `path` cannot be used.
    """
    for name, value in (("shards", shards), ("virtual_nodes", virtual_nodes)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SHARDS
        ):
            raise InvalidArgumentError(f"{name} is a whole number from 1 to {_MAX_SHARDS}, not {value!r:.80}")
    if store is not None and store not in _STORES:
        raise InvalidArgumentError(f"store is one of {', '.join(_STORES)}, not {store!r:.80}")
    if path is None:
        if store not in (None, "memory"):
            raise InvalidArgumentError(f"a {store} store needs a path")
        return Layout("memory", shards or 8, virtual_nodes or 150)
    if store == "memory":
        raise InvalidArgumentError("a memory store has no path: leave it out, or choose directory or packed")
    try:
        found = json.loads((path / _FILE).read_text("utf-8")) if (path / _FILE).exists() else None
        layout = (
            None if found is None else Layout(str(found["store"]), int(found["shards"]), int(found["virtual_nodes"]))
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{str(path / _FILE)!r:.300} cannot be read: {error}") from error
    if layout is None:
        layout = Layout(store or "packed", shards or 8, virtual_nodes or 150)
        _write(path, layout)
    asked = {"store": store, "shards": shards, "virtual_nodes": virtual_nodes}
    for name, there in asdict(layout).items():
        if asked[name] not in (None, there):
            raise SchemaMismatchError(
                f"the marketplace at {str(path)!r:.300} has {name}={there!r}, not {asked[name]!r}: leave it out"
            )
    return layout


def _write(path: Path, layout: Layout) -> None:
    """Write the file whole or not at all."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(entry.name != f"{_FILE}.draft" for entry in path.iterdir()):
            raise StorageError(f"{str(path)!r:.300} is not empty and holds no {_FILE}: choose a new folder")
        draft = path / f"{_FILE}.draft"
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(layout), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path / _FILE)
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"no marketplace can be made at {str(path)!r:.300}: {error}") from error
