"""Shards scanned by the workers of a Dask cluster, past one machine.

Rules
-----
* A :class:`ClusterExecutor` stands wherever a `concurrent.futures.Executor` does, and runs the same functions.
* A shard file is scanned by the worker that the consistent-hash ring of worker addresses gives it, as long as that one
  has no more under way than its part. So each worker keeps the same files open, and its caches warm.
* The answer never depends on which worker gave it. What a lost worker had under way runs again on another; a file that
  one worker cannot open is handed to the next; one that none can open is a vendor that is down, which an answer
  reports by its coverage.

Theory of operation
-------------------
Dask's client has an event loop in a thread of its own. A task here is one coroutine on that loop: choose a worker,
submit, await the result. The caller's loop, a notebook's for instance, only ever waits for the future and so cannot
dead-lock. The scheduler tells the client nothing when workers come and go; it is asked for them, at most once a
`_KNOWN_FOR_S`, and a task that was sent to a worker which is gone by then may run anywhere (``allow_other_workers``).
The bound on a worker's load is that of consistent hashing with bounded loads, taken over the tasks under way: of n
tasks over w workers none has more than ceil(n / w), and a task that finds its owner full goes to the next on the ring.

What this does not do
---------------------
Files do not travel: workers open what `path` says on their machine. Shard files are SQLite databases in WAL mode,
whose readers and writer share memory: on other machines than the writer's, they must be copies that nobody writes to.
A task that is cancelled while it runs is left to end; a scan ends by itself at its deadline.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent import futures
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from html import escape
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mktsim.errors import (
    ClusterError,
    CorruptImageError,
    InvalidArgumentError,
    MissingExtraError,
    SchemaMismatchError,
    StorageError,
    VendorDownError,
)
from mktsim.fanout.scanner import scan_shard
from mktsim.placement import ConsistentHashRing

if TYPE_CHECKING:
    from mktsim.fanout.messages import Partial, ScatterRequest

__all__ = ["ClusterExecutor"]

T = TypeVar("T")
#: Seconds for which the workers that the scheduler named are taken for those that there are.
_KNOWN_FOR_S: Final = 1.0
#: Seconds to wait for a first worker, and for a scheduler to answer.
_PATIENCE_S: Final = 30.0
_MOST_WORKERS: Final = 256
_VIRTUAL_NODES: Final = 150


@dataclass(frozen=True, slots=True)
class _Unopened:
    """What a worker answers that cannot open a shard file."""

    worker: str
    reason: str


_one_at_a_time = threading.Lock()


def scan_shard_file(path: str, request: ScatterRequest) -> Partial | _Unopened:
    """Scan a shard file in a worker; what a worker of several threads does one at a time, for scanners are shared."""
    from distributed import get_worker

    try:
        with _one_at_a_time:
            return scan_shard(path, request)
    except (CorruptImageError, SchemaMismatchError):
        raise  # The file was read: another worker would find the same.
    except StorageError as error:
        return _Unopened(get_worker().address, str(error))


class ClusterExecutor(Executor):
    """A `concurrent.futures.Executor` over the workers of a Dask cluster.

    Parameters
    ----------
    client : Client, cluster or address, optional
        Which cluster: a `distributed.Client`, which stays open when this is shut down; anything a client is made from,
        as ``"tcp://host:8786"``. When absent, worker processes are started on this machine, and end with this.
    workers : int
        How many of them, where they are started.

    Raises
    ------
    MissingExtraError
        The package `distributed` is not installed.
    InvalidArgumentError
        The client lives on the caller's own event loop, which would wait for itself.
    ClusterError
        The cluster cannot be reached or started.

    Examples
    --------
    Like any process pool on this machine, in a script it belongs below ``if __name__ == "__main__":``.

    >>> with ClusterExecutor(workers=2) as executor:  # doctest: +SKIP
    ...     async with Marketplace.open("market", executor=executor) as market:
    ...         await market.query("SELECT category, AVG(price) FROM products GROUP BY category")
    >>> ClusterExecutor(workers=0)
    Traceback (most recent call last):
    mktsim.errors.InvalidArgumentError: workers is a whole number from 1 to 256, not 0
    """

    def __init__(self, client: Any = None, *, workers: int = 2) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= _MOST_WORKERS:
            raise InvalidArgumentError(f"workers is a whole number from 1 to {_MOST_WORKERS}, not {workers!r:.80}")
        try:
            import distributed
        except ImportError as error:
            raise MissingExtraError(
                "a cluster needs the package 'distributed': pip install mktsim[cluster]", name="distributed"
            ) from error
        with ExitStack() as stack:
            owned = not isinstance(client, distributed.Client)
            self._client: Any = _connected(distributed, stack, client, workers) if owned else client
            if self._client.asynchronous:
                raise InvalidArgumentError(
                    "a client made with asynchronous=True shares your event loop, which would wait for itself: "
                    "make one without"
                )
            self._closing = stack.pop_all()
        self._loop: asyncio.AbstractEventLoop = self._client.loop.asyncio_loop
        self._started = workers if client is None else 0
        self._ring = ConsistentHashRing(virtual_nodes=_VIRTUAL_NODES)
        self._known_until_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._under_way: Counter[str] = Counter()
        self._pending: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._is_shut = False

    # -- an executor --------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``fn(*args, **kwargs)``, which workers must be able to import, and return its future.

        Raises
        ------
        ClusterError
            This executor was shut down. The future raises it where the cluster is lost, or where several workers died
            while they ran the task.
        """
        with self._lock:
            if self._is_shut:
                raise ClusterError("the executor was shut down: make a new one")
            work: Coroutine[Any, Any, Any]
            work = self._scan(*args, **kwargs) if fn is scan_shard else self._anywhere(partial(fn, *args, **kwargs))
            try:
                future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
            except RuntimeError as error:  # the client was closed, and its loop with it
                work.close()
                raise ClusterError(f"the cluster's client is closed: {error}") from error
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and close what this has opened; calling it again does nothing.

        Parameters
        ----------
        wait : bool
            Until what is under way has ended; else it is cancelled.
        cancel_futures : bool
            Cancel it rather than wait.
        """
        with self._lock:
            self._is_shut = True
            pending = set(self._pending)
        if wait and not cancel_futures:
            futures.wait(pending)
        for future in pending:
            future.cancel()
        self._closing.close()

    # -- on the client's loop -----------------------------------------------------------------------------------

    async def _run(self, call: Callable[[], T], workers: list[str] | None = None) -> T:
        """Run a call on one of the workers, or on any; on any other where those are lost."""
        from distributed import KilledWorker
        from distributed.scheduler import NoValidWorkerError

        # Each call has a key of its own, for the same scan made again may find something else.
        future = self._client.submit(call, pure=False, workers=workers, allow_other_workers=bool(workers))
        # The client fetches the results of several at once: who gives up must not take those of the others along.
        fetched = asyncio.ensure_future(self._client.gather(future, asynchronous=True))
        fetched.add_done_callback(_look_at)
        try:
            result: T = await asyncio.shield(fetched)
            return result
        except futures.CancelledError as error:  # Dask's own; that of a caller who gives up is asyncio's
            raise ClusterError(f"the cluster gave the task up: {error}; is its scheduler alive?") from error
        except (KilledWorker, NoValidWorkerError) as error:
            raise ClusterError(f"no worker of the cluster lives through the task: {error}") from error
        finally:
            future.release()  # which also tells the scheduler that nobody waits for it any more

    async def _anywhere(self, call: Callable[[], T]) -> T:
        await self._learn_workers()
        return await self._run(call)

    async def _scan(self, path: str, request: ScatterRequest) -> Partial:
        """Scan a shard file on its worker, or the next that can open it."""
        call = partial(scan_shard_file, path, request)
        refused: dict[str, str] = {}
        while True:
            await self._learn_workers(at_once=bool(refused))
            able = [each for each in self._ring.get_nodes(path, len(self._ring)) if each not in refused]
            if not able:
                seen = f"none of {len(refused)} workers can open it: {next(iter(refused.values()))}"
                raise VendorDownError(f"shard file {path}: {seen}", vendor_id=Path(path).stem)
            worker = self._chosen(able)
            self._under_way[worker] += 1
            try:
                found = await self._run(call, [worker, *(each for each in able if refused and each != worker)])
            finally:
                self._under_way[worker] -= 1
                self._under_way += Counter()  # Forgets who has none.
            if not isinstance(found, _Unopened):
                return found
            refused[found.worker] = found.reason

    def _chosen(self, ranked: list[str]) -> str:
        """Return the first worker, in the ring's order, that has less than its part of all tasks under way."""
        loads = [self._under_way[worker] for worker in ranked]
        part = ceil((sum(loads) + 1) / len(loads))
        return next(worker for worker, load in zip(ranked, loads, strict=True) if load < part)

    async def _learn_workers(self, *, at_once: bool = False) -> None:
        """Bring the ring up to date with the workers that there are; one task asks for all."""
        if self._loop.time() < self._known_until_s and not at_once:
            return
        if self._asking is None:
            self._asking = self._loop.create_task(self._ask())
        await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        try:
            until_s = self._loop.time() + _PATIENCE_S
            while not (found := await self._client.nthreads(asynchronous=True)):
                if self._loop.time() >= until_s:
                    raise TimeoutError(f"no worker came in {_PATIENCE_S:g} s")
                await asyncio.sleep(0.1)
        except (OSError, ValueError) as error:  # a TimeoutError is an OSError
            raise ClusterError(f"the cluster {self._client!r:.200}: {error}; start a worker") from error
        finally:
            self._asking = None
        if len(found) < self._started:
            # A worker that is being replaced when Dask looks for it is taken for lost, and its place given up.
            self._client.cluster.scale(self._started)
        for gone in set(self._ring.nodes) - set(found):
            self._ring.remove_node(gone)
        for come in sorted(set(found) - set(self._ring.nodes)):
            self._ring.add_node(come)
        self._known_until_s = self._loop.time() + _KNOWN_FOR_S

    # -- what it shows ------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """How many workers there were when it was last looked; none before the first task."""
        return len(self._ring)

    @property
    def dashboard_link(self) -> str | None:
        """Where Dask shows what the workers do, None where it does not."""
        return None if self._is_shut else self._client.dashboard_link or None

    def _facts(self) -> dict[str, str]:
        if self._is_shut:
            return {"state": "shut down"}
        facts = {"scheduler": getattr(self._client.scheduler, "address", "lost")}
        if len(self._ring):
            facts["workers"] = str(len(self._ring))
        return facts | {"dashboard": self.dashboard_link or "none"}

    def __repr__(self) -> str:
        return f"<ClusterExecutor {', '.join(f'{name}: {value}' for name, value in self._facts().items())}>"

    def _repr_html_(self) -> str:
        facts = {name: escape(value) for name, value in self._facts().items()}
        link = facts.get("dashboard", "")
        if link.startswith(("http://", "https://")):
            facts["dashboard"] = f'<a href="{link}" target="_blank" rel="noopener">{link}</a>'
        rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts.items())
        return f"<table><caption>ClusterExecutor</caption>{rows}</table>"


def _connected(distributed: Any, stack: ExitStack, client: Any, workers: int) -> Any:
    """Return a client of the cluster that is named, or of one that is started; the stack closes what is opened."""
    try:
        if client is None:
            # A worker's resident memory counts the pages of shard files that are mapped, which the system takes back
            # when it needs them: with a limit, the nanny would end workers for having read much.
            client = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
            )
            stack.callback(client.close)
        made = distributed.Client(client, direct_to_workers=True, set_as_default=False, timeout=_PATIENCE_S)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"no cluster at {client or 'this machine'!r:.200}: {type(error).__name__}: {error}"
        ) from error
    stack.callback(made.close)
    return made


def _look_at(fetched: asyncio.Future[Any]) -> None:
    """Take note of how a fetch ended that perhaps nobody waits for any more."""
    if not fetched.cancelled():
        fetched.exception()
