"""Generated fleets on disk, made whole or not at all, and used again."""

from __future__ import annotations

import os
import shutil
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from mktsim.errors import DuplicateError, StorageError, cause, shortened
from mktsim.market import generate
from mktsim.market.catalogue import catalogue
from mktsim.market.nouns import SCHEMA


def make_fleet(path: Path, *, vendors: int, products: int, seed: int, progress: bool = False) -> Path:
    """Generate a packed marketplace at `path`, which appears there only when it is complete.

    Raises
    ------
    InvalidArgumentError
        A number is out of range.
    DuplicateError
        There is something at `path`.
    StorageError
        It cannot be written there.
    """
    rows = catalogue(vendors=vendors, products=products, seed=seed)  # Checks the numbers before a file is made.
    del rows
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DuplicateError(f"{str(path)!r:.300} exists already: choose a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
        try:
            generate(draft, vendors=vendors, products=products, seed=seed, progress=progress)
            if path.exists():
                path.rmdir()
            draft.replace(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
        if isinstance(error, StorageError | DuplicateError):
            raise
        raise StorageError(f"no fleet can be made at {str(path)!r:.300}: {shortened(error)}") from cause(error)
    return path


def ensure_fleet(folder: Path, *, vendors: int, products: int, seed: int, progress: bool = False) -> Path:
    """Return the fleet of these numbers below `folder`, generating it where there is none.

    Its name carries a digest of the schema and of a few vendors' rows, so that a changed generator makes a new one.
    """
    few = list(islice(catalogue(vendors=20, products=products, seed=seed), 20))
    digest = blake2b(repr((SCHEMA.statements, few)).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    path = folder / f"{vendors}-vendors-{products}-products-seed-{seed}-{digest}"
    if (path / "market.json").exists():
        return path
    return make_fleet(path, vendors=vendors, products=products, seed=seed, progress=progress)
