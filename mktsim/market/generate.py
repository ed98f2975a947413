"""Generated marketplaces on disk."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from mktsim.errors import DuplicateError
from mktsim.market.catalogue import catalogue
from mktsim.market.layout import find_layout
from mktsim.market.nouns import SCHEMA


def generate(
    path: str | PathLike[str],
    *,
    vendors: int,
    products: int,
    seed: int,
    shards: int | None = None,
    progress: bool = False,
) -> int:
    """Generate a packed marketplace that ``Marketplace.open(path)`` opens.

    Parameters
    ----------
    path : path
        A new folder.
    vendors : int
        How many.
    products : int
        Mean number of products of a vendor.
    seed : int
        Equal seeds make equal marketplaces.
    shards : int, optional
        How many shard files; 8 when absent.
    progress : bool
        Show a progress bar.

    Returns
    -------
    int
        How many vendors were made.

    Raises
    ------
    InvalidArgumentError, StorageError
    DuplicateError
        The folder holds vendors already.
    """
    rows = catalogue(vendors=vendors, products=products, seed=seed)
    folder = Path(path)
    layout = find_layout(folder, store="packed", shards=shards, virtual_nodes=None)

    def owned() -> Iterator[tuple[str, dict[str, list[Any]]]]:
        for vendor_id, tables in rows:
            yield vendor_id, {"_vendor": [(vendor_id, 0)], **tables}

    with layout.open_vendors(folder, SCHEMA, layout.ring().get_node) as store:
        if len(store):
            raise DuplicateError(f"{str(folder)!r:.300} holds {len(store)} vendors already: choose a new folder")
        if not progress:
            return store.create_many(owned())
        from tqdm.auto import tqdm

        return store.create_many(tqdm(owned(), total=vendors, unit=" vendors", unit_scale=True))
