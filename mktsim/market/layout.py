"""How a marketplace lies on disk: ``market.json`` beside the vendors' store and the platform's own.

``market.json`` is there first, and names each of the two stores from when that has been made: one that it names is not
made again where its folder is lost (see `mktsim.storage.folder` for the files in a store's folder).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mktsim.errors import InvalidArgumentError, SchemaMismatchError, StorageError, cause, shortened
from mktsim.fanout import prepare
from mktsim.market.footprint import check_shards
from mktsim.market.placing import ShardMap, numbered
from mktsim.placement import ConsistentHashRing
from mktsim.sql.schema import Schema
from mktsim.storage import Migration, PackedStore, VendorStore, open_store
from mktsim.storage.folder import MANIFEST, is_lost, lost, replace_file
from mktsim.storage.guards import named_errors

_FILE: Final = "market.json"
#: A file that is there while the market is being generated.
UNFINISHED: Final = "generation.json"
_STORES: Final = ("memory", "directory", "packed")
_PARTS: Final = ("vendors", "system")
#: How many shards a marketplace has at most.
MOST_SHARDS: Final = 10_000


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
        Tokens of each node on the ring.
    nodes : tuple of str
        The ring's nodes, where they are not ``shard-0``, ``shard-1`` and so on, each of them a shard.
    slices : mapping of str to tuple of str
        See :class:`~mktsim.market.placing.ShardMap`.
    made : tuple of str
        Which stores, ``"vendors"`` and ``"system"``, have been made.
    """

    store: str
    shards: int
    virtual_nodes: int
    nodes: tuple[str, ...] = ()
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    made: tuple[str, ...] = ()

    def ring(self) -> ConsistentHashRing:
        """Return the ring."""
        return self.map().ring

    def map(self) -> ShardMap:
        """Return which shard a vendor belongs to."""
        return ShardMap(self.nodes or numbered(self.shards), self.virtual_nodes, self.slices)

    def placed_by(self, shard_map: ShardMap) -> Layout:
        """Return the layout with another map."""
        count = len(shard_map.shards)
        nodes = () if shard_map.nodes == numbered(count) and not shard_map.slices else shard_map.nodes
        return replace(self, shards=count, nodes=nodes, slices=shard_map.slices)

    def open_vendors(
        self,
        path: Path | None,
        schema: Schema,
        locate: Callable[[str], str],
        migration: Migration | None = None,
        *,
        replicated: bool = False,
    ) -> VendorStore:
        """Open the vendors' store below `path`; a `replicated` one also where it lacks shard files.

        Raises
        ------
        LostFileError
            The store, or a file of it, has been made and is there no more.
        """
        names = self.map().shards
        folder = self._folder(path, "vendors")
        if replicated and folder is not None:
            store: VendorStore = PackedStore(
                folder, schema, shards=names, locate=locate, setup=prepare, migration=migration, may_lack_files=True
            )
        else:
            store = open_store(
                self.store, folder, schema, shards=names, locate=locate, setup=prepare, migration=migration
            )
        self._note_made(path, "vendors", store)
        return store

    def open_system(self, path: Path | None, schema: Schema) -> VendorStore:
        """Open the store of the platform's own objects below `path`.

        Raises
        ------
        LostFileError
            The store, or a file of it, has been made and is there no more.
        """
        kind, folder = "memory" if path is None else "directory", self._folder(path, "system")
        store = open_store(kind, folder, schema, shards=["system"], locate=lambda _: "system")
        self._note_made(path, "system", store)
        return store

    def _folder(self, path: Path | None, name: str) -> Path | None:
        if path is None:
            return None
        folder = path / name
        if name in self.made and is_lost(folder / MANIFEST):
            raise lost(folder / MANIFEST, f", and the whole of {name}/, or delete the marketplace", what="store")
        return folder

    def _note_made(self, path: Path | None, name: str, store: VendorStore) -> None:
        """Write down that a store has been made, once its files are on disk."""
        if path is not None and name not in self.made:
            try:
                with named_errors(str(path)[:300]):
                    rewrite(path, _read(path / _FILE))  # as it is by now
            except BaseException:
                store.close()
                raise


def find_layout(
    path: Path | None, *, store: str | None, shards: int | None, virtual_nodes: int | None, unfinished: bool = False
) -> Layout:
    """Return the layout of what is at `path`, or make it; arguments left out are taken from there.

    Raises
    ------
    InvalidArgumentError
        An argument is out of range, or a store on disk has no path.
    SchemaMismatchError
        The marketplace at `path` has another kind of store, or other numbers.
    ResourceLimitError
        The shards may need more file descriptors than there can be.
    StorageError
        `path` cannot be used, or, unless `unfinished` markets are wanted, is still being generated.
    """
    for name, value in (("shards", shards), ("virtual_nodes", virtual_nodes)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SHARDS
        ):
            raise InvalidArgumentError(f"{name} is a whole number from 1 to {MOST_SHARDS}, not {value!r:.80}")
    if store is not None and store not in _STORES:
        raise InvalidArgumentError(f"store is one of {', '.join(_STORES)}, not {store!r:.80}")
    if path is None:
        if store not in (None, "memory"):
            raise InvalidArgumentError(f"a {store} store needs a path")
        return Layout("memory", shards or 8, virtual_nodes or 150)
    if store == "memory":
        raise InvalidArgumentError("a memory store has no path: leave it out, or choose directory or packed")
    try:
        layout = _read(path / _FILE) if (path / _FILE).exists() else None
    except KeyError as error:
        raise StorageError(f"{str(path / _FILE)!r:.300} lacks the entry {error}: put it back from a backup") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"{str(path / _FILE)!r:.300} cannot be read: {shortened(error)}") from cause(error)
    if not unfinished and (path / UNFINISHED).exists():
        raise StorageError(f"the generation of {str(path)!r:.300} was not finished: call generate() again as before")
    if layout is None:
        layout = Layout(store or "packed", shards or 8, virtual_nodes or 150)
        check_shards(layout.store, layout.shards)  # before anything is there that says so many
        _write(path, layout)
    else:
        check_shards(layout.store, layout.shards)
    asked = {"store": store, "shards": shards, "virtual_nodes": virtual_nodes}
    for name, wanted in asked.items():
        there = getattr(layout, name)
        if wanted not in (None, there):
            raise SchemaMismatchError(
                f"the marketplace at {str(path)!r:.300} has {name}={there!r}, not {wanted!r}: leave it out"
            )
    return layout


def _write(path: Path, layout: Layout) -> None:
    """Write the file whole or not at all."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(not entry.name.startswith(f"{_FILE}.draft") for entry in path.iterdir()):
            raise StorageError(f"{str(path)!r:.300} is not empty and holds no {_FILE}: choose a new folder")
        rewrite(path, layout)
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"no marketplace can be made at {str(path)!r:.300}: {shortened(error)}") from cause(error)


def rewrite(path: Path, layout: Layout) -> None:
    """Replace the layout of what is at `path`, whole or not at all; the stores that are there count as made.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    facts: dict[str, Any] = {"store": layout.store, "shards": layout.shards, "virtual_nodes": layout.virtual_nodes}
    if layout.nodes or layout.slices:  # A program that knows only numbered shards must not take these for such.
        facts["shards"] = layout.map().to_dict()
    with named_errors(str(path)[:300]):
        facts["made"] = [name for name in _PARTS if name in layout.made or (path / name / MANIFEST).exists()]
        draft = path / f"{_FILE}.draft.{os.getpid()}"  # Workers that generate may be at it together.
        replace_file(path / _FILE, json.dumps(facts, indent=2).encode(), draft)


def _read(path: Path) -> Layout:
    found = json.loads(path.read_text("utf-8"))
    store, shards, virtual_nodes = str(found["store"]), found["shards"], int(found["virtual_nodes"])
    made = tuple(map(str, found.get("made", ())))
    if not isinstance(shards, dict):
        return Layout(store, int(shards), virtual_nodes, made=made)
    return Layout(store, 0, virtual_nodes, made=made).placed_by(ShardMap.from_dict(shards))
