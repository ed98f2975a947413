"""Generated marketplaces on disk, up to millions of vendors.

Theory of operation
-------------------
A vendor's rows depend on its number and the seed alone (`mktsim.market.catalogue`), so that the work can be cut as one
likes. Each worker process has shard files of its own, which nobody else writes, and goes through all vendors in order
of their numbers, range after range; it fills those of its shards. A range is a few seconds of work: what a progress bar
shows. Until all is done, a file beside the market says what is being made, and nobody can open it.

*Resuming.* A shard takes its vendors in the order of their ids, in transactions: what it lacks is what comes after its
last. So the same call made again after a crash goes on where each shard stopped, and makes the same files' content.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mktsim.errors import DuplicateError, InvalidArgumentError, MktsimError, StorageError, cause, shortened
from mktsim.market.catalogue import catalogue
from mktsim.market.layout import UNFINISHED, Layout, find_layout
from mktsim.market.nouns import SCHEMA
from mktsim.storage.folder import replace_file

#: Vendors from which a second process pays for its start.
_WORTH_PROCESSES: Final = 20_000
_RANGE: Final = 10_000


def generate(
    path: str | PathLike[str],
    *,
    vendors: int,
    products: int,
    seed: int,
    shards: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> int:
    """Generate a packed marketplace that ``Marketplace.open(path)`` opens.

    A call that was interrupted is resumed by the same call.

    Parameters
    ----------
    path : path
        A new folder, or one in which the same call was interrupted.
    vendors : int
        How many.
    products : int
        Mean number of products of a vendor.
    seed : int
        Equal seeds make equal marketplaces.
    shards : int, optional
        How many shard files; 8 when absent.
    workers : int, optional
        Processes, each of which writes shard files of its own; when absent one a core for 20,000 vendors or more, and
        else this process alone.
    progress : bool
        Show a progress bar.

    Returns
    -------
    int
        How many vendors the marketplace has.

    Raises
    ------
    InvalidArgumentError
        A value is not of its kind or out of range, or another call was interrupted in this folder.
    StorageError
        The folder cannot be used, or the disk is full.
    DuplicateError
        The folder holds vendors already.

    Examples
    --------
    >>> import asyncio, tempfile
    >>> from mktsim.market import Marketplace
    >>> async def counted(path):
    ...     async with Marketplace.open(path) as market:
    ...         return (await market.query("SELECT COUNT(*) FROM products")).rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     vendors = generate(f"{folder}/market", vendors=20, products=5, seed=1, shards=2)
    ...     vendors, asyncio.run(counted(f"{folder}/market"))
    (20, [(110,)])
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 256):
        raise InvalidArgumentError(f"workers is a whole number from 1 to 256, not {workers!r:.80}")
    catalogue(vendors=vendors, products=products, seed=seed)  # Refuses what is out of range, before anything is made.
    if not isinstance(progress, bool):
        raise InvalidArgumentError(f"progress must be True or False, not {progress!r:.80}")
    try:
        folder = Path(path)
    except TypeError:
        raise InvalidArgumentError(f"a path is a string or a Path, not {path!r:.80}") from None
    layout = find_layout(folder, store="packed", shards=shards, virtual_nodes=None, unfinished=True)
    _begin(folder, layout, {"vendors": vendors, "products": products, "seed": seed})
    if workers is None:
        workers = (os.cpu_count() or 1) if vendors >= _WORTH_PROCESSES else 1
    groups = [layout.map().shards[place::workers] for place in range(min(workers, layout.shards))]
    steps = [(first, min(_RANGE, vendors - first)) for first in range(0, vendors, _RANGE)]
    with ExitStack() as stack:
        made = _bar(stack, vendors, progress)
        if len(groups) == 1:
            for first, count in steps:
                made(_fill(folder, layout, groups[0], first, count, products, seed))
        else:
            call = {"folder": str(folder), "steps": steps, "products": products, "seed": seed}
            processes = [stack.enter_context(_Worker(call | {"group": group})) for group in groups]
            for _ in steps:
                for process in processes:
                    made(process.filled())
    (folder / UNFINISHED).unlink()
    return vendors


def _begin(folder: Path, layout: Layout, wanted: dict[str, int]) -> None:
    """Mark the market as unfinished, or check that it is this call that is resumed."""
    mark = folder / UNFINISHED
    if mark.exists():
        try:
            found = json.loads(mark.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError(f"{str(mark)!r:.300} cannot be read: {shortened(error)}") from cause(error)
        if found != wanted:
            raise InvalidArgumentError(
                f"in {str(folder)!r:.300} {found} was interrupted: make the same call again, or choose a new folder"
            )
        return
    with layout.open_vendors(folder, SCHEMA, layout.map().shard_of) as store:
        if len(store):
            raise DuplicateError(f"{str(folder)!r:.300} holds {len(store)} vendors already: choose a new folder")
    replace_file(mark, json.dumps(wanted).encode(), folder / f"{UNFINISHED}.draft")


def _bar(stack: ExitStack, vendors: int, progress: bool) -> Callable[[int], object]:
    if not progress:
        return lambda count: None
    from tqdm.auto import tqdm

    bar = stack.enter_context(tqdm(total=vendors, unit=" vendors", unit_scale=True))
    return lambda count: bar.update(count)


class _Worker:
    """A process that fills a group of shards, so that a shard file has one writer and its caches stay where they are.

    It is a process of its own and not one of a pool, for a pool imports the caller's script again, which calls
    `generate` again unless its author thought of that. When its reader is gone, it ends with its next line.
    """

    def __init__(self, call: dict[str, Any]) -> None:
        code = (
            f"import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import _work; _work(sys.argv[2])"
        )
        command = [sys.executable, "-c", code, json.dumps(sys.path), json.dumps(call)]
        # A group of its own: Ctrl-C reaches this process alone, which then ends the others.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, process_group=0
        )

    def filled(self) -> int:
        """Wait until the next range is done, and return how many vendors were made of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip().isdigit():
            reason = line.strip() or f"it ended with code {self._process.wait()}"
            raise StorageError(f"a process that generated vendors failed: {reason}; the same call goes on from there")
        return int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdout is not None
        if error is not None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def _work(call: str) -> None:
    """Do what a :class:`_Worker` was made for; a line for each range."""
    given = json.loads(call)
    folder = Path(given["folder"])
    layout = find_layout(folder, store="packed", shards=None, virtual_nodes=None, unfinished=True)
    try:
        for first, count in given["steps"]:
            print(_fill(folder, layout, given["group"], first, count, given["products"], given["seed"]), flush=True)
    except BrokenPipeError:
        os._exit(1)
    except MktsimError as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


def _fill(folder: Path, layout: Layout, group: Sequence[str], first: int, count: int, products: int, seed: int) -> int:
    """Make those vendors of a range that belong to a group of shards; return how many there are of them."""
    locate = layout.map().shard_of
    mine = frozenset(group)
    seen = 0

    def owned() -> Iterator[tuple[str, dict[str, list[Any]]]]:
        nonlocal seen
        for vendor_id, tables in catalogue(vendors=count, products=products, seed=seed, first=first):
            shard = locate(vendor_id)
            if shard in mine:
                seen += 1
                if vendor_id > last[shard]:
                    yield vendor_id, {"_vendor": [(vendor_id, 0)], **tables}

    with layout.open_vendors(folder, SCHEMA, locate) as store:
        last = {shard: store.last_vendor_id(shard) for shard in group}  # type: ignore[attr-defined]
        store.create_many(owned())
    return seen
