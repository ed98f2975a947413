"""Replications as jobs: run here or by an executor, and looked up where they were run before.

Rules
-----
What a job gives depends on the job alone, never on the order or the process in which it runs: an executor or a cache
changes the wall time and nothing else. Only the process that asked writes to the cache, each job when it is done.

Samples come with the digest of the source that gave them. A process whose files have changed since it loaded them may
not use the cache, and a worker that runs other source than the process that asked ends the call: both are errors, not
warnings, because the reader would take the answer for that of the program on the screen, and another one next time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from mktsim.errors import InvalidArgumentError, SimulationError, StorageError, shortened
from mktsim.streams import Streams
from mktsim.study.cache import ReplicationCache, Samples
from mktsim.study.provenance import program_digest, program_doubt, program_versions, running_digest
from mktsim.study.replication import Engine, run
from mktsim.study.scenario import Scenario

T = TypeVar("T")
R = TypeVar("R")
#: Jobs that an executor has at most, so that a long sweep does not lie in memory whole.
_IN_FLIGHT: Final = 512


class Submits(Protocol):
    """What runs jobs: a `concurrent.futures.Executor`, or anything whose futures can do as much, as a Dask client."""

    def submit(self, fn: Any, /, *args: Any) -> Any:
        """Return a future with ``result()``, ``cancel()`` and ``add_done_callback(fn)``."""


@dataclass(frozen=True, slots=True)
class Job:
    """One replication of a scenario.

    Parameters
    ----------
    scenario : Scenario
    seed, number : int
        They key its draws.
    requests : int
    engine : "auto", "event" or "vectorised"
    common : bool
        Whether the same number draws the same for every scenario (common random numbers).
    """

    scenario: Scenario
    seed: int
    number: int
    requests: int
    engine: Engine = "auto"
    common: bool = True

    def key(self, scenario_digest: str) -> bytes:
        """A digest of all that decides the samples: the scenario's, the numbers and the programs."""
        numbers = [self.seed, self.number, self.requests, self.engine, self.common]
        text = json.dumps([scenario_digest, numbers, dict(program_versions()), program_digest()])
        return hashlib.blake2b(text.encode(), digest_size=32).digest()

    @property
    def streams(self) -> Streams:
        """Where its draws come from."""
        streams = Streams(self.seed).child(f"replication {self.number}")
        if self.common:
            return streams
        return streams.child(digest_of(self.scenario))

    def run(self) -> Samples:
        """Simulate it."""
        name, times_ms, _ = run(self.scenario, self.streams, self.requests, engine=self.engine)
        return name, times_ms


def digest_of(scenario: Scenario) -> str:
    """Digest a scenario together with the values of its world: a preset's file may change under its name."""
    text = json.dumps([scenario.to_dict(), scenario.world.to_dict()], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def run_job(job: Job) -> tuple[str, Samples]:
    """Simulate one job, what an executor is handed; its samples follow the digest of the source that gave them."""
    samples = job.run()
    return running_digest(), samples


def check_executor(executor: Submits | None, cache: str | Path | None) -> None:
    """Check what :func:`completed` is handed besides jobs, before any work."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise InvalidArgumentError(f"executor must have a submit method, as an Executor has, not {executor!r:.80}")
    if cache is not None and (not isinstance(cache, str | Path) or not str(cache)):
        raise InvalidArgumentError(f"cache must be the path of a folder, not {cache!r:.80}")


def completed(
    jobs: Sequence[Job], *, executor: Submits | None = None, cache: str | Path | None = None
) -> Iterator[tuple[int, Samples]]:
    """Yield each job's place and samples as they are known: what the cache holds first.

    Raises
    ------
    StorageError
        If the cache cannot be used, or may not be, for the source has changed since this process loaded it.
    SimulationError
        If a worker process died, or runs other source than this one; what was done by then is in the cache.
    """
    if cache is not None and (doubt := program_doubt()):
        raise _refused(doubt)
    with ExitStack() as stack:
        kept = None if cache is None else stack.enter_context(ReplicationCache.open(cache))
        keys: list[bytes] = []
        if kept is not None:
            # Of each scenario once: reading its preset takes longer than looking up a replication.
            digests = {id(job.scenario): digest_of(job.scenario) for job in {id(j.scenario): j for j in jobs}.values()}
            keys = [job.key(digests[id(job.scenario)]) for job in jobs]
        missing = []
        for place in range(len(jobs)):
            known = kept.get(keys[place]) if kept is not None else None
            if known is None or len(known[1]) != jobs[place].requests:
                missing.append(place)
            else:
                yield place, known
        for place, (source, samples) in computed(run_job, jobs, places=missing, executor=executor):
            if source != program_digest() and executor is not None:
                raise SimulationError(
                    "a worker of the executor does not run the source that this process runs, so its samples are those "
                    "of another program: start its workers anew, and this process too if a file was edited since"
                )
            if kept is not None:
                if source != program_digest():
                    raise _refused(program_doubt())
                kept.put(keys[place], samples)
            yield place, samples


def _refused(doubt: str) -> StorageError:
    return StorageError(
        f"the cache is refused, for samples could be kept under another program's name: {doubt}; restart Python (the "
        "kernel of a notebook), or call without cache"
    )


def computed(
    fn: Callable[[T], R], items: Sequence[T], *, places: Iterable[int] | None = None, executor: Submits | None = None
) -> Iterator[tuple[int, R]]:
    """Yield a function's result for each item, with the item's place, in the order in which they are known.

    Parameters
    ----------
    fn : callable
        Of one argument; for processes one that they can import.
    items : sequence
    places : iterable of int, optional
        Of which items; all when absent.
    executor : optional

    Raises
    ------
    SimulationError
        If the executor lost a job: a worker died, or somebody cancelled it. What the function raises comes as it is.

    Examples
    --------
    >>> list(computed(abs, [-1, 2, -3], places=[0, 2]))
    [(0, 1), (2, 3)]
    """
    waiting = iter(range(len(items)) if places is None else places)
    if executor is None:
        for place in waiting:
            yield place, fn(items[place])
        return
    done: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    pending: dict[int, Any] = {}

    def submit(count: int) -> None:
        for place in islice(waiting, count):
            future = pending[place] = executor.submit(fn, items[place])
            # Only what any future can do is used, so that those of other schedulers serve as well.
            future.add_done_callback(lambda ended, place=place: done.put((place, ended)))

    try:
        submit(_IN_FLIGHT)
        while pending:
            place, ended = done.get()
            del pending[place]
            submit(1)
            yield place, ended.result()
    except Exception as error:
        if not _is_the_schedulers(error):
            raise
        raise SimulationError(
            f"a worker of the executor died, or a job was cancelled: {shortened(error)}; make a new executor and call "
            "again"
        ) from error
    finally:
        for future in pending.values():
            future.cancel()


def _is_the_schedulers(error: Exception) -> bool:
    """Whether an error tells of the executor, not of the job.

    The errors of Dask, whose clients may stand for an executor as they are, inherit from nothing that others know.
    """
    is_dasks = any(kind.__module__.partition(".")[0] == "distributed" for kind in type(error).__mro__)
    return is_dasks or isinstance(error, BrokenExecutor | CancelledError)
