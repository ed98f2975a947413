"""Measure a live marketplace: what one query takes by fleet and statement, how queries queue, how late the loop is.

Rules
-----
All times are read from the running loop's clock, so that a simulated market is measured by the same code. Fleets and
statements are interleaved round by round: what slows the machine for a while slows all of them. Every query carries a
parameter of its own, so that no answer is taken from a kept one, and stands between two timings of a yardstick
(`mktsim.study.yardstick`), whose mean tells how fast the machine was. In an open loop a request's time counts from the
instant at which it was meant to begin (no coordinated omission); the yardstick is then part of it, as of all the load.

Theory of operation
-------------------
Python's collector walks, now and then, all objects there are; beside fleets and libraries that is tens of milliseconds
in the midst of some query. :func:`frozen_collector` sets aside what existed before, as a long-running server does; what
a query itself leaves to collect stays part of its time.

What this does not do
---------------------
It does not choose the machine's quiet hours. A yardstick tells of a neighbour that slows the processor, not of one that
takes turns with it: measure where nothing else of yours runs.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mktsim.errors import CalibrationError, InvalidArgumentError
from mktsim.streams import Streams
from mktsim.study.yardstick import Yardstick

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statement:
    """One class of statement: SQL with one parameter, which is drawn anew for each query.

    Parameters
    ----------
    name : str
        Of the class.
    sql : str
        One SELECT that every vendor must be scanned for, with one placeholder.
    low, high : float
        The parameter is uniform between them.

    Examples
    --------
    >>> Statement("filter", "SELECT id FROM products WHERE price * ? < 9", 0.5, 1.5).params(0.25)
    (0.75,)
    """

    name: str
    sql: str
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("name", "sql"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InvalidArgumentError(f"Statement.{name} must be text, not {getattr(self, name)!r:.80}")
        ends = (self.low, self.high)
        if not all(isinstance(end, int | float) and np.isfinite(end) for end in ends) or not self.low < self.high:
            raise InvalidArgumentError(f"Statement needs finite low < high, not {self.low!r:.40} and {self.high!r:.40}")

    def params(self, u: float) -> tuple[float]:
        """Return the parameters at a point of (0, 1)."""
        return (self.low + (self.high - self.low) * u,)


#: Prices in another currency, at a rate that no summary foresees: all vendors are scanned, and no answer serves twice.
STATEMENTS: Final = (
    Statement(
        "top-k",
        "SELECT id, vendorId, name, price, rating FROM products ORDER BY rating / (price * ?) DESC, id LIMIT 10",
        0.9,
        1.1,
    ),
    Statement("filter", "SELECT vendorId, id, name, price FROM products WHERE price * ? BETWEEN 20 AND 40", 0.9, 1.1),
    Statement(
        "group-by",
        "SELECT category, COUNT(*) AS count, AVG(price * ?) AS mean FROM products GROUP BY category",
        0.9,
        1.1,
    ),
)


class Answers(Protocol):
    """What is measured: a :class:`mktsim.Marketplace`, a coordinator, or whatever answers like one."""

    async def query(self, sql: str, params: Any = (), /) -> Any:
        """Return a :class:`mktsim.fanout.QueryResult`."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """A market and the numbers that its times depend on.

    Attributes
    ----------
    vendors, shards : int
        How many there are, and over how many scanners they are spread.
    market : Answers
    """

    vendors: int
    shards: int
    market: Answers

    @classmethod
    def of(cls, market: Any) -> Fleet:
        """Read the numbers off a :class:`mktsim.Marketplace`; a Fleet is returned as it is.

        Raises
        ------
        InvalidArgumentError
            If it is neither.
        """
        if isinstance(market, Fleet):
            return market
        try:
            return cls(len(market.vendors), len(market.store.shards), market)
        except (AttributeError, TypeError):
            raise InvalidArgumentError(f"needs a Marketplace or a Fleet, not {market!r:.80}") from None


@contextmanager
def frozen_collector() -> Iterator[None]:
    """Set aside, for the block, all that Python's collector would walk again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def measure_services(
    fleets: Sequence[Fleet],
    statements: Sequence[Statement],
    *,
    rounds: int,
    streams: Streams,
    yardstick: Yardstick,
    progress: bool = False,
) -> pd.DataFrame:
    """Time single queries, each fleet and statement once a round.

    Returns
    -------
    DataFrame
        One row a query, in their order: ``statement``, ``vendors``, ``shards``, ``round``, ``rows`` shipped, its phases
        ``scatter_ms``, ``gather_ms`` and ``rest_ms``, which add up to ``total_ms``, ``began_ms`` on the loop's clock,
        and ``yardstick_ms``, the mean of before and after.

    Raises
    ------
    CalibrationError
        If a statement spares vendors: its time then does not follow the size of the fleet.
    """
    cells = [(fleet, statement) for fleet in fleets for statement in statements]
    table = []
    clock = asyncio.get_running_loop().time
    before_ms = await yardstick()
    with tqdm(total=(rounds + 2) * len(cells), desc="calibration", unit=" queries", disable=not progress) as bar:
        for turn in range(-2, rounds):  # The first two open files, plan, and fill caches.
            u = streams.uniform("params", turn + 2, len(cells))
            for step in range(len(cells)):
                place = (step + turn) % len(cells)
                fleet, statement = cells[place]
                began_ms = 1e3 * clock()
                total_ms, result = await timed(fleet, statement, float(u[place]))
                after_ms = await yardstick()
                scatter_ms, gather_ms = (1e3 * result.stats.wall_s.get(phase, 0.0) for phase in ("scatter", "gather"))
                rest_ms = max(0.0, total_ms - scatter_ms - gather_ms)
                shipped = result.stats.rows_shipped
                row = (statement.name, fleet.vendors, fleet.shards, turn, shipped, scatter_ms, gather_ms, rest_ms)
                if turn >= 0:
                    table.append((*row, total_ms, began_ms, (before_ms + after_ms) / 2))
                before_ms = after_ms
                bar.update()
    names = ["statement", "vendors", "shards", "round", "rows", "scatter_ms", "gather_ms", "rest_ms", "total_ms",
             "began_ms", "yardstick_ms"]  # fmt: skip
    return pd.DataFrame(table, columns=names)


async def timed(fleet: Fleet, statement: Statement, u: float) -> tuple[float, Any]:
    """Ask once; return the time in ms and the result.

    Raises
    ------
    CalibrationError
        If vendors were spared.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    result = await fleet.market.query(statement.sql, statement.params(u))
    total_ms = 1e3 * (clock() - start)
    if result.stats.vendors_asked != fleet.vendors:
        raise CalibrationError(
            f"{statement.name!r:.80} asked {result.stats.vendors_asked:,} of {fleet.vendors:,} vendors: its time does "
            "not follow the size of the fleet; give a statement that all must be scanned for, and each time another "
            "parameter"
        )
    return total_ms, result


async def one_at_a_time(
    fleet: Fleet, statement: Statement, *, requests: int, streams: Streams, yardstick: Yardstick
) -> tuple[Times, Times]:
    """Time queries of one client that sends the next when it has the last answer.

    Returns
    -------
    sojourn_ms, yardstick_ms : ndarray of float64, shape (requests,)
        The second is the mean of before and after each.
    """
    times, sticks = [], [await yardstick()]
    for value in streams.uniform("params", 0, requests).tolist():
        total_ms, _ = await timed(fleet, statement, value)
        times.append(total_ms)
        sticks.append(await yardstick())
    return np.array(times), _between(sticks)


async def open_loop(
    fleet: Fleet, statement: Statement, arrival_ms: Times, *, streams: Streams, yardstick: Yardstick
) -> tuple[Times, Times]:
    """Time queries that come when they come, each from the instant at which it was meant to begin.

    A request first times the yardstick, when its turn has come, so that it is part of the request.

    Parameters
    ----------
    fleet, statement
        Who is asked what.
    arrival_ms : ndarray of float64
        When each is meant to begin, from now; not decreasing.
    streams : Streams
        Of the parameters.
    yardstick : Yardstick

    Returns
    -------
    sojourn_ms, yardstick_ms : ndarray of float64, shape (requests,)
        The second is the mean of before a request and before the next.
    """
    loop = asyncio.get_running_loop()
    u = streams.uniform("params", 0, len(arrival_ms))
    sojourn_ms = np.zeros(len(arrival_ms))
    sticks = [0.0] * (len(arrival_ms) + 1)
    start_s = loop.time() + 0.01

    async def one(request: int) -> None:
        meant_s = start_s + arrival_ms[request] / 1e3
        sticks[request] = await yardstick()
        await timed(fleet, statement, float(u[request]))
        sojourn_ms[request] = 1e3 * (loop.time() - meant_s)

    async with asyncio.TaskGroup() as group:
        for request, when_ms in enumerate(arrival_ms):
            delay_s = start_s + when_ms / 1e3 - loop.time()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            group.create_task(one(request))
    sticks[-1] = await yardstick()
    return sojourn_ms, _between(sticks)


def _between(sticks: Sequence[float]) -> Times:
    return np.convolve(sticks, (0.5, 0.5), "valid")


async def lateness(*, timers: int = 200, delay_s: float = 0.002) -> Times:
    """Measure how late an idle loop's timers are, ms; none is early, and none is exactly 0."""
    loop = asyncio.get_running_loop()
    late = []
    for _ in range(timers):
        due_s = loop.time() + delay_s
        await asyncio.sleep(delay_s)
        late.append(max(1e3 * (loop.time() - due_s), 1e-6))
    return np.array(late)


async def burst(fleet: Fleet, statement: Statement, *, queries: int, u: Sequence[float]) -> Times:
    """Ask at once; return when each answer was complete, sorted, ms from the start."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()

    async def one(value: float) -> float:
        await timed(fleet, statement, value)
        return 1e3 * (loop.time() - start_s)

    return np.sort(await asyncio.gather(*(one(float(value)) for value in u[:queries])))
