"""What an open marketplace needs of the system, against what it may have.

Theory of operation
-------------------
A packed store needs up to seven descriptors a shard, measured: the file and its log, for writing, for scanning and for
summaries, and the memory that these share; each replica of a shard as many, for its own file and for following; a
worker process needs three, under the same limit. Each further query that runs at the same time with a deadline, or as a
stream, takes two more a shard, which are not reckoned with. Memory grows with the vendors: their summaries and the
partials kept of one statement, measured at ten products (``python -m benchmarks --only million``). How many vendors
there are is asked only where the files are large enough for it to matter.
"""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mktsim.errors import StorageError
from mktsim.limits import (
    Lateness,
    available_memory,
    check_descriptors,
    check_memory,
    descriptor_limit,
    open_descriptors,
    resident_memory,
)
from mktsim.storage import DirectoryStore, VendorStore
from mktsim.storage.packed import SHARD_DESCRIPTORS

if TYPE_CHECKING:
    import pandas as pd

#: What the platform's own store and a pool's pipes need.
_OWN_DESCRIPTORS: Final = 24
#: What each process of a pool needs in this one.
_WORKER_DESCRIPTORS: Final = 2
#: Summaries of a vendor, and its share of the partials kept of a statement.
VENDOR_BYTES: Final = 330 + 130
#: A vendor's image and summary in a shard file take more than this.
_LEAST_FILE_BYTES: Final = 1_024
#: A worker process that has scanned.
WORKER_BYTES: Final = 90_000_000
_BASE_BYTES: Final = 8_000_000


def check_shards(store: str, shards: int, replicas: int = 0, executor: Executor | None = None) -> None:
    """Raise unless the descriptors that so many shards, their replicas and a pool may come to need can be had together.

    A directory store sees to its own.

    Raises
    ------
    ResourceLimitError
    """
    workers = _workers_to_start(executor)
    if store == "packed" or workers:
        parts = {
            f"{shards:,} shards": "make one of fewer shards",
            f"{_of_each(shards, replicas)} replicas of each": "have fewer replicas" if replicas else "",
            f"a pool of {workers} processes": "make a smaller pool" if workers else "",
        }
        named = [what for what, way_out in parts.items() if way_out]
        check_descriptors(
            _files(store == "packed", shards, replicas) + _OWN_DESCRIPTORS + _WORKER_DESCRIPTORS * workers,
            f"a marketplace of {' and '.join(named)}",
            way_out=" or ".join(filter(None, parts.values())),
        )


def _of_each(shards: int, replicas: int) -> int:
    """Return how many replicas a shard has: each lies beside another shard."""
    return min(replicas, shards - 1)


def _files(packed: bool, shards: int, replicas: int) -> int:
    return shards * (1 + _of_each(shards, replicas)) * SHARD_DESCRIPTORS if packed else 0


def check_opened(store: VendorStore, executor: Executor | None) -> None:
    """Raise unless there is memory for a pool's processes, and for what queries over so many vendors keep.

    Raises
    ------
    ResourceLimitError
    """
    workers = _workers_to_start(executor)
    if workers:
        check_memory(workers * WORKER_BYTES, f"a pool of {workers} processes", way_out="make a smaller pool")
    path: Path | None = getattr(store, "path", None)
    if path is None or isinstance(store, DirectoryStore):
        return
    size = sum(entry.stat().st_size for entry in path.iterdir() if entry.is_file())
    others, room = workers * WORKER_BYTES + _BASE_BYTES, available_memory()
    if room is None or size // _LEAST_FILE_BYTES * VENDOR_BYTES + others <= room:
        return
    vendors = len(store)
    check_memory(vendors * VENDOR_BYTES + others, f"queries over {vendors:,} vendors")


def report(
    store: VendorStore, shards: int, executor: Executor | None, lateness: Lateness, *, replicas: int = 0
) -> pd.DataFrame:
    """Return the limits and what is used of them; see :meth:`mktsim.market.Marketplace.limits`."""
    import pandas as pd

    packed = getattr(store, "shard_path", None) is not None
    files = _files(packed, shards, replicas) or getattr(store, "most_descriptors", 0)
    files += _OWN_DESCRIPTORS + _WORKER_DESCRIPTORS * _workers_to_start(executor)
    limit, room, held = descriptor_limit(), available_memory(), resident_memory()
    memory = (_vendors(store) * VENDOR_BYTES if packed else 0) + _BASE_BYTES
    memory += _workers_to_start(executor) * WORKER_BYTES
    rows: list[tuple[str, str, float, float | None, float | None, str]] = [
        (
            "file descriptors",
            "",
            open_descriptors(),
            files,
            limit,
            "ulimit -n, resource.setrlimit(RLIMIT_NOFILE), or fewer shards or replicas",
        )
    ]
    memory_way = "the memory of the machine or container, ulimit -v, or fewer worker processes"
    most = None if room is None else (room + held) / 1e6
    rows.append(("memory", "MB", round(held / 1e6), round(memory / 1e6), most, memory_way))
    late_way = "scan in other processes (executor=...), or give queries a deadline_s: they then take turns"
    rows.append(
        ("lateness of the loop in queries, worst", "ms", round(1e3 * lateness.worst_s, 1), None, None, late_way)
    )
    rows.append(("lateness of the loop in queries, last", "ms", round(1e3 * lateness.last_s, 1), None, None, late_way))
    frame = pd.DataFrame(rows, columns=["what", "unit", "used", "needed", "limit", "raise"])
    return frame.astype({"used": float, "needed": float, "limit": float})


def _vendors(store: VendorStore) -> int:
    """Return how many vendors there are in those shards that can be read."""
    count = 0
    for shard in store.shards:
        with suppress(StorageError):  # Queries name it, or ask a replica.
            count += store.count(shard)
    return count


def _workers_to_start(executor: Executor | None) -> int:
    """Return how many worker processes of this machine's pool have still to start; 0 where it is no process pool."""
    most, started = getattr(executor, "_max_workers", 0), getattr(executor, "_processes", None)
    return 0 if started is None else max(0, most - len(started))
