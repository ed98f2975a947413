"""Replications as jobs: run here or by an executor, and looked up where they were run before.

Rules
-----
What a job gives depends on the job alone, never on the order or the process in which it runs: an executor or a cache
changes the wall time and nothing else. Only the process that asked writes to the cache, each job when it is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.streams import Streams
from mktsim.study.cache import ReplicationCache, Samples
from mktsim.study.provenance import program_digest, program_versions
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


def run_job(job: Job) -> Samples:
    """Simulate one job; what an executor is handed."""
    return job.run()


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
        If the cache cannot be used.
    SimulationError
        If a worker process died; what was done by then is in the cache.
    """
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
        for place, samples in computed(run_job, jobs, places=missing, executor=executor):
            if kept is not None:
                kept.put(keys[place], samples)
            yield place, samples


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
    except BrokenExecutor as error:
        raise SimulationError(f"a worker of the executor died: {error}; make a new one and call again") from error
    finally:
        for future in pending.values():
            future.cancel()
