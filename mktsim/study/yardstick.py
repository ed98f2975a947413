"""How fast the machine is just now: a fixed piece of work, timed beside whatever is measured.

Rules
-----
A yardstick never changes with this package: plain SQLite over rows of its own, in memory, and a little Python, which is
what a query over vendors spends its time on. It runs on the same thread as what it stands beside.

Theory of operation
-------------------
A core that is shared with others, of a host or by hyper-threading, has more than one speed, and changes from one to
another within a second: on the machines of this project by 1.4 to 1.7 times, while the system counts no time as stolen.
What a query took then says little of the query. A piece of work that is always the same, timed right before and right
after it, slows as much as it does, so that the ratio of the two stays (a control variate). Each timing
runs the work four times: the first warms what the last query pushed out of the caches, and of the others the median
counts. What stops the machine for some milliseconds, once in a while, would make a short piece of work several times
as long, and does not make a long query so.

The *pace* of the machine is such a time over a reference, the median of a calibration: 1.5 where all takes half as long
again. A :class:`PaceTrace` is the paces of a calibration by the clock. Where a time is yet to come, stretches of it are
played again, each from an instant of its own: what is slow for a while stays so for a while.

What this does not do
---------------------
It tells of two instants, between which a long query may see others. It does not tell what else differs: pages that were
swapped out, files that are not cached. A simulated loop's clock stands still while a yardstick works: its pace is 1.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.sqlite import connect, rows

#: What follows the name of a statistic of requests that were simulated at the paces that were measured.
PACE_KNOWN: Final = ", pace known"

#: How often a timing does the work: once to warm it, and an odd number of times to take the median of.
RUNS: Final = 4
_ROWS: Final = 750
_SEED: Final = 20261122
_GROUP: Final = "SELECT substr(name, 1, 6) AS word, COUNT(*), SUM(price * ?) FROM goods GROUP BY word"
_SORT: Final = "SELECT id, name, price FROM goods WHERE price * ? > 10 ORDER BY price DESC"


class Yardstick(Protocol):
    """What times a fixed piece of work: a :class:`SqliteYardstick`, or a stand-in on simulated time."""

    async def __call__(self) -> float:
        """Return what the work takes now, ms; 0 where the clock stands still."""


class SqliteYardstick:
    """Half a millisecond of SQLite and Python, four times over: a grouping and a sort of rows in memory.

    Examples
    --------
    >>> yardstick = SqliteYardstick()
    >>> ticks = iter((10.0, 10.0015, 20.0, 20.0014, 30.0, 30.009))
    >>> round(yardstick.time_ms(lambda: next(ticks)), 3)
    1.5
    >>> yardstick.close()
    """

    def __init__(self) -> None:
        draws = random.Random(_SEED)
        self._database = connect()
        self._database.execute("CREATE TABLE goods (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
        goods = [(number, f"name {number}", 100 * draws.random()) for number in range(_ROWS)]
        self._database.executemany("INSERT INTO goods VALUES (?, ?, ?)", goods)

    def _work(self) -> None:
        for statement in (_GROUP, _SORT):
            rows(self._database, statement, (1.0,))

    def time_ms(self, clock: Callable[[], float] = perf_counter) -> float:
        """Do the work four times and return the median of what it took but for the first time, ms.

        Parameters
        ----------
        clock : callable
            Returns seconds.
        """
        self._work()
        times_ms = []
        for _ in range(RUNS - 1):
            start = clock()
            self._work()
            times_ms.append(1e3 * (clock() - start))
        return median(times_ms)

    async def __call__(self) -> float:
        """Return what the work takes now by the running loop's clock, ms."""
        return self.time_ms(asyncio.get_running_loop().time)

    def close(self) -> None:
        """Give the memory back."""
        self._database.close()


def paces_of(yardstick_ms: ArrayLike, reference_ms: float) -> NDArray[np.float64]:
    """Return how many times as long as the reference a yardstick took; 1 where the clock stood still.

    Parameters
    ----------
    yardstick_ms : array of float
    reference_ms : float
        0 where there is none: then all are 1.

    Returns
    -------
    ndarray of float64
        Of the same shape.

    Examples
    --------
    >>> paces_of([1.0, 1.5, 0.0], 1.0).tolist(), paces_of([0.0, 0.0], 0.0).tolist()
    ([1.0, 1.5, 1.0], [1.0, 1.0])
    """
    times = np.asarray(yardstick_ms, float)
    return np.where(times > 0, times / reference_ms, 1.0) if reference_ms > 0 else np.ones_like(times)


@dataclass(frozen=True, slots=True, eq=False)
class PaceTrace:
    """The paces of a machine by the clock, as they were measured.

    Parameters
    ----------
    at_ms : ndarray of float64, shape (n,)
        When, rising.
    pace : ndarray of float64, shape (n,)
        Positive.

    Raises
    ------
    InvalidArgumentError
        If they are not as many, none, not finite, or instants fall.

    Examples
    --------
    >>> trace = PaceTrace(np.array([0.0, 10.0, 20.0]), np.array([1.0, 1.5, 1.0]))
    >>> trace.stretch(12.0, [0.0, 5.0, 10.0, 20.0]).tolist()  # At 12, 17, 2 and 12 ms: the trace begins anew at 20.
    [1.5, 1.5, 1.0, 1.5]
    """

    at_ms: NDArray[np.float64]
    pace: NDArray[np.float64]

    def __post_init__(self) -> None:
        at_ms, pace = np.asarray(self.at_ms, float), np.asarray(self.pace, float)
        good = at_ms.ndim == 1 and at_ms.shape == pace.shape and len(at_ms) > 0
        if not good or not np.isfinite([at_ms, pace]).all() or (np.diff(at_ms) < 0).any() or (pace <= 0).any():
            raise InvalidArgumentError(
                f"a trace needs instants that do not fall and as many positive paces, at least one, not arrays of "
                f"shapes {at_ms.shape} and {pace.shape}"
            )
        object.__setattr__(self, "at_ms", at_ms - at_ms[0])
        object.__setattr__(self, "pace", pace)

    @property
    def span_ms(self) -> float:
        """From the first instant to the last, after which the trace begins anew."""
        return float(self.at_ms[-1])

    def stretch(self, start_ms: float, at_ms: ArrayLike) -> NDArray[np.float64]:
        """Return the paces at instants counted from `start_ms` on; each holds until the next."""
        at = start_ms + np.asarray(at_ms, float)
        inside = np.mod(at, self.span_ms) if self.span_ms > 0 else np.zeros_like(at)
        return self.pace[np.searchsorted(self.at_ms, inside, side="right") - 1]

    def quantile(self, p: float) -> float:
        """Return a quantile of the paces."""
        return float(np.quantile(self.pace, p))

    def __repr__(self) -> str:
        low, high = self.quantile(0.05), self.quantile(0.95)
        return f"<PaceTrace of {len(self.pace):,} in {self.span_ms / 1e3:.3g} s: 90 % from {low:.3g} to {high:.3g}>"


def as_paces(paces: Any, requests: int) -> NDArray[np.float64]:
    """Check paces, one a request.

    Raises
    ------
    InvalidArgumentError
        If they are not so many positive, finite numbers.

    Examples
    --------
    >>> as_paces([1, 1.5], 2)
    array([1. , 1.5])
    """
    try:
        found = np.asarray(paces, float)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (requests,) or not np.isfinite(found).all() or (found <= 0).any():
        raise InvalidArgumentError(f"paces must be {requests:,} positive, finite factors, not {paces!r:.80}")
    return found
