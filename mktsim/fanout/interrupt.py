"""Interrupt a running SQLite statement when its time is up.

Theory of operation
-------------------
SQLite calls a progress handler every few thousand steps of its virtual machine, in the thread that runs the statement,
and gives the statement up where the handler says so. :func:`prepare` installs one for good, which asks the limit that
:func:`limited` has set for the thread, if any; :func:`interrupting` installs one for the time of a block, on a
connection that is somebody else's. The clock is handed in: a loop's, so that under simulation, where a computation
takes no time, nothing is ever interrupted.

What this does not do
---------------------
A single step that takes long (one call of a function over megabytes, say) is not interrupted within.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from mktsim.sql import register
from mktsim.sqlite import Connection, InterruptError

#: Steps between two looks at the clock: below a millisecond of most statements, and no cost to measure.
_STEPS: Final = 5_000
_ID: Final = "mktsim.fanout deadline"

Clock = Callable[[], float]


class _Limit(threading.local):
    clock: Clock | None = None
    end_s: float = 0.0


_limit: Final = _Limit()


def _is_over() -> bool:
    clock = _limit.clock
    return clock is not None and clock() >= _limit.end_s


def prepare(connection: Connection) -> None:
    """Set a store's connection up: exact sums, and deadlines that interrupt statements. Pass it as ``setup=``.

    Parameters
    ----------
    connection : Connection
        Of this package's driver.

    Examples
    --------
    A statement that would run for ever ends with its deadline.

    >>> from time import monotonic
    >>> from mktsim.sqlite import Error, connect
    >>> connection = connect()
    >>> prepare(connection)
    >>> endless = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i FROM n) SELECT SUM(i) FROM n"
    >>> with limited(monotonic, monotonic() + 0.01):
    ...     try:
    ...         connection.execute(endless).fetchall()
    ...     except Error as error:
    ...         print(type(error).__name__)
    InterruptError
    >>> connection.close()
    """
    register(connection)
    connection.set_progress_handler(_is_over, _STEPS, id=_ID)


@contextmanager
def limited(clock: Clock, end_s: float | None) -> Iterator[None]:
    """Interrupt what prepared connections run in this block, and in this thread, once the clock passes `end_s`."""
    if end_s is None:
        yield
        return
    before = _limit.clock, _limit.end_s
    _limit.clock, _limit.end_s = clock, end_s
    try:
        yield
    finally:
        _limit.clock, _limit.end_s = before


@contextmanager
def interrupting(connection: Any, clock: Clock, end_s: float) -> Iterator[None]:
    """Interrupt what `connection`, of this package's driver or of `sqlite3`, runs in this block past `end_s`.

    Raises
    ------
    TimeoutError
        In place of what the driver raises, where the handler was the cause.
    """
    fired = False

    def is_over() -> bool:
        nonlocal fired
        fired = fired or clock() >= end_s
        return fired

    ours = isinstance(connection, Connection)
    options = {"id": _ID} if ours else {}
    connection.set_progress_handler(is_over, _STEPS, **options)
    try:
        yield
    except Exception as error:
        if fired:
            raise TimeoutError("the statement was interrupted at the deadline") from error
        raise
    finally:
        connection.set_progress_handler(None, _STEPS, **options)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error goes back to an interrupted statement."""
    while error is not None:
        if isinstance(error, InterruptError):
            return True
        error = error.__cause__
    return False
