"""Work beside the kernel's thread: in slices, one job after another, and stopped within moments.

Rules
-----
A job's work is a generator that yields its :class:`Progress` and returns its result; it touches no widget. What it
tells, it tells through `report`, which is called in the job's thread and has to hand on to another.

Theory of operation
-------------------
A stop is noticed at the next slice. A slice over a million vendors may be a second long, so the job's thread is sent
:class:`Stopped` as well, which arrives between two byte codes, as Ctrl-C does in the main thread. It is a
`KeyboardInterrupt`, because asyncio hands these on where it would swallow others, and because all code here must leave
things in order on Ctrl-C anyway. At most one is sent a job, and only while its slices run.

A thread that is killed inside compiled code when the interpreter ends takes the whole process down with SIGABRT. So
what still runs then is stopped and waited for, by `atexit`: daemon threads are still alive when its functions run.

What this does not do
---------------------
A single call into C is not stopped within: with arrays of a million, some tens of milliseconds.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, Literal

from mktsim.study.slices import Progress as Progress

_REPORT_EVERY_S: Final = 0.1
#: How long the interpreter's end waits for all jobs together; one that takes longer dies as it may.
_EXIT_S: Final = 10.0


class Stopped(KeyboardInterrupt):
    """Raised in a job's thread when it is stopped."""


Slices = Generator[Progress, None, Any]
State = Literal["running", "done", "stopped", "failed"]


class Job:
    """One piece of work in a thread of its own.

    Parameters
    ----------
    slices : generator
        The work.
    report : callable
        Told of progress, at most ten times a second, and of the end, once or twice. Called in the job's thread.
    after : Job, optional
        The one before, which is waited for.

    Attributes
    ----------
    state : "running", "done", "stopped" or "failed"
    progress : Progress or None
    partial : object
        The last partial result that the work told of.
    result : object
        What the work returned.
    error : Exception or None
    stopping : bool
        Whether it was asked to end.

    Examples
    --------
    >>> def work():
    ...     yield Progress(1, 2)
    ...     return "result"
    >>> job = Job(work(), lambda job: None)
    >>> job.start()
    >>> _ = job.join()
    >>> job.state, job.result
    ('done', 'result')
    """

    def __init__(self, slices: Slices, report: Callable[[Job], object], *, after: Job | None = None) -> None:
        self.state: State = "running"
        self.progress: Progress | None = None
        self.partial: Any = None
        self.result: Any = None
        self.error: Exception | None = None
        self._slices = slices
        self._report = report
        self._after = after
        self.stopping = False
        self._in_slice = False
        self._reported_s = 0.0
        self._thread = threading.Thread(target=self._main_and_out, name="mktsim explorer", daemon=True)

    def start(self) -> None:
        """Begin, once the job before has ended."""
        _started.add(self)
        self._thread.start()

    def run(self) -> None:
        """Do the work here and now, in the caller's thread."""
        self._attempt()
        self._report(self)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ask the work to end; a second call does nothing."""
        if self.stopping:
            return
        self.stopping = True
        if self._in_slice and self._thread.ident is not None:
            _raise_in(self._thread.ident, Stopped)

    def _main_and_out(self) -> None:
        try:
            self._main()
        finally:
            _started.discard(self)

    def _main(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None  # Or each job would keep all before it.
        with suppress(Stopped):  # Sent when the last slice had just ended.
            self._attempt()
        if self.state == "running":
            self.state = "stopped"
        try:
            self._report(self)
        except Stopped:
            self._report(self)

    def _attempt(self) -> None:
        try:
            self._in_slice = True
            while True:
                if self.stopping:
                    raise Stopped
                self.progress = next(self._slices)
                if self.progress.partial is not None:
                    self.partial = self.progress.partial
                if perf_counter() - self._reported_s > _REPORT_EVERY_S:
                    self._reported_s = perf_counter()
                    self._report(self)
        except StopIteration as end:
            self._in_slice = False
            self.result, self.state = end.value, "done"
        except Stopped:
            self._in_slice = False
            self.state = "stopped"
        except Exception as error:
            self._in_slice = False
            self.error, self.state = error, "failed"
        finally:
            self._slices.close()


_started: Final[set[Job]] = set()


@atexit.register
def _stop_all() -> None:
    """Stop the jobs that still run, and wait for their threads."""
    until_s = perf_counter() + _EXIT_S
    jobs = list(_started)
    for job in jobs:
        job.stop()
    for job in jobs:
        job.join(max(0.0, until_s - perf_counter()))


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
