"""What does an exact merge cost over a naive one, in bytes and time, and how often is the naive one wrong?

Rules
-----
Both merges work over the same vendors and the same network, in process and metered, so that bytes are those of the same
codec, both ways; they are timed in turns. The naive merge (`mktsim.study.naive`) sends each vendor the statement as it
is. How wrong it is, is counted on random statements (`mktsim.study.correctness`), judged leniently for the naive merge
and to the last bit for the exact one.

Theory of operation
-------------------
The exact merge sends vendors another statement where parts cannot be put together from answers: an average travels as
its sum and count, exactly; a DISTINCT aggregate as its values; ORDER BY brings its terms along; a join or a window over
rows of several vendors needs the rows themselves. So it costs the columns it adds, nothing where the answer was enough
anyway, and the most for statements that the naive merge gets wrong. Bytes grow with the vendors in both.

What this does not do
---------------------
Messages do not travel: over a network with a bandwidth, bytes would be time as well (`mktsim.sim`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Final

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError, MktsimError
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.network import InProcessNetwork, Metered
from mktsim.sqlite import Connection
from mktsim.streams import Streams, check_seed
from mktsim.study import charts
from mktsim.study.coordinated import SCHEMA, fleet
from mktsim.study.correctness import measure_merges, naive_is_right
from mktsim.study.jobs import Submits, check_executor
from mktsim.study.measuring import frozen_collector
from mktsim.study.naive import naive_merge
from mktsim.study.points import Point, tidy
from mktsim.study.result import StudyResult
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import quantile_interval, samples_for_quantile
from mktsim.testing import run_oracle, typed

QUESTION: Final = "What does an exact merge cost over a naive one, and how wrong is the naive one?"
SIZES: Final = (10, 100, 1_000)
#: A statement of each class that the naive merge could be asked.
STATEMENTS: Final = {
    "filter": "SELECT id, name, price FROM products WHERE price < 50",
    "top-k": "SELECT id, price, rating FROM products ORDER BY rating DESC, price, id LIMIT 10",
    "top-k by a hidden column": "SELECT id, name FROM products ORDER BY rating DESC, price, id LIMIT 10",
    "OFFSET": "SELECT id, price FROM products ORDER BY price DESC, id LIMIT 10 OFFSET 20",
    "SELECT DISTINCT": "SELECT DISTINCT category, rating FROM products ORDER BY category, rating",
    "COUNT, SUM, MAX": "SELECT COUNT(*), SUM(stock), MAX(price) FROM products",
    "AVG by group": "SELECT category, AVG(price), AVG(rating) FROM products GROUP BY category ORDER BY category",
    "COUNT(DISTINCT)": "SELECT COUNT(DISTINCT category), COUNT(DISTINCT rating) FROM products",
    "HAVING": "SELECT category, COUNT(*) FROM products GROUP BY category HAVING COUNT(*) > 3 ORDER BY category",
    "window function": "SELECT id, price, RANK() OVER (ORDER BY price DESC, id) FROM products ORDER BY 3 LIMIT 10",
    "self-join": "SELECT COUNT(*) FROM products AS a JOIN products AS b ON a.name = b.name AND a.id < b.id",
}  # fmt: skip


def merging(
    *,
    vendors: Sequence[int] = SIZES,
    products: int = 10,
    statements: int = 3_000,
    repeats: int = 15,
    seed: int,
    executor: Submits | None = None,
    progress: bool = False,
) -> StudyResult:
    """Measure bytes and time of both merges by class of statement, and on random statements how often each is right.

    It runs an event loop of its own: in a notebook, ``await asyncio.to_thread(merging, ...)``.

    Parameters
    ----------
    vendors : sequence of int
        Fleets, each from 1 to 10,000 vendors.
    products : int
        Rows of a vendor.
    statements : int
        Random ones.
    repeats : int
        Timed repetitions of each statement; at least 6.
    seed : int
        Decides rows and statements; times are this machine's.
    executor
        Not used: what is timed runs in this process, alone.
    progress : bool
        Show progress bars.

    Returns
    -------
    StudyResult
        Its frame has, by ``series`` (``exact merge``, ``naive merge``), ``group`` (the class) and ``x`` (vendors):
        ``bytes a vendor`` both ways and ``answer bytes a vendor`` of these, ``time`` in ms (median), ``right`` (whether
        the answer was one SQLite's); as series ``exact over naive`` the ratios ``bytes`` and ``time``, the latter of
        pairs. Of random statements ``share right``, by class and for ``all``.

    Raises
    ------
    InvalidArgumentError
        Before any work, if a number is out of range.
    MktsimError
        If the exact merge differs from one SQLite: report it.

    Examples
    --------
    >>> frame = merging(vendors=[3], statements=20, repeats=6, seed=1).frame
    >>> right = frame[(frame["statistic"] == "right") & (frame["series"] == "naive merge")].set_index("group")
    >>> right.loc[["filter", "AVG by group"], "estimate"].tolist()
    [1.0, 0.0]
    """
    seed = check_seed(seed)
    check_executor(executor, None)
    if not isinstance(vendors, list | tuple | range) or not vendors or len(set(vendors)) < len(vendors):
        raise InvalidArgumentError(f"vendors must be a sequence of different whole numbers, not {vendors!r:.80}")
    least = samples_for_quantile(0.5)
    numbers = [("vendors", n, 1, 10_000) for n in vendors]
    numbers += [("products", products, 1, 10_000), ("statements", statements, 1, 1_000_000)]
    for name, number, low, high in (*numbers, ("repeats", repeats, least, 100_000)):
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise InvalidArgumentError(f"{name} must be a whole number from {low:,} to {high:,}, not {number!r:.80}")
    wrong: list[str] = []
    points = [
        replace(each, study="merging", statistic="share right")
        for each in measure_merges(
            statements=statements, vendors=5, rows=30, seed=seed, progress=progress, mismatch=wrong.append
        )
    ]
    if wrong:
        raise MktsimError(f"the exact merge differs from one SQLite in {len(wrong)} statements: {wrong[0]:.2000}")
    with tqdm(total=len(vendors) * len(STATEMENTS) * repeats, desc="merging", disable=not progress) as bar:
        for n in vendors:
            points += asyncio.run(_measure(n, products, repeats, seed, bar))
    frame = tidy(points)
    caption = (
        f"Measured on this machine, in process, {products} products a vendor in memory; bytes both ways, by the codec "
        f"of messages; medians of n = {repeats} repetitions in turns. Random statements: n = {statements:,} over 5 "
        f"vendors. Seed {seed}; 95 % intervals."
    )
    parameters = {"vendors": list(vendors), "products": products, "statements": statements, "repeats": repeats}
    return StudyResult(
        question=QUESTION, answer=_answer(frame), frame=frame, parameters=parameters, seed=seed, caption=caption
    )


async def _measure(vendors: int, products: int, repeats: int, seed: int, bar: Any) -> list[Point]:
    """Ask one fleet each statement by both merges."""
    common: dict[str, Any] = {
        "study": "merging", "kind": "measured", "axis": "vendors", "x": vendors, "seed": seed, "engine": "live",
    }  # fmt: skip
    points = []
    with ExitStack() as stack:
        databases = fleet(Scenario(vendors=vendors, products=products), Streams(seed))
        for database in databases.values():
            stack.callback(database.close)
        oracle = _one_sqlite(databases)
        stack.callback(oracle.close)
        networks = {name: Metered(InProcessNetwork()) for name in ("exact merge", "naive merge")}
        scanners = [Scanner.from_connection(vendor_id, database) for vendor_id, database in databases.items()]
        coordinator = QueryCoordinator(scanners, schema=SCHEMA, network=networks["exact merge"])
        stack.callback(coordinator.close)
        naive = _Naive(databases, networks["naive merge"])
        stack.enter_context(frozen_collector())
        for group, sql in STATEMENTS.items():
            expected = run_oracle(oracle, sql)[1]
            answers: dict[str, Any] = {}
            moved: dict[str, Any] = {}
            times: dict[str, list[float]] = {}
            asks: dict[str, Any] = {"exact merge": coordinator.query, "naive merge": naive.query}
            for turn in range(-1, repeats):  # The first plans, and fills caches; its bytes are those of all.
                for name, ask in asks.items():
                    stats = networks[name].stats
                    before = np.array([stats.request_bytes, stats.answer_bytes])
                    started = perf_counter()
                    result = await ask(sql)
                    elapsed_ms = 1e3 * (perf_counter() - started)
                    if turn < 0:
                        answers[name] = result.rows if name == "exact merge" else result
                        moved[name] = np.array([stats.request_bytes, stats.answer_bytes]) - before
                        times[name] = []
                    else:
                        times[name].append(elapsed_ms)
                bar.update(turn >= 0)
            if typed(answers["exact merge"]) != typed(expected):
                raise MktsimError(f"over {vendors:,} vendors {sql!r:.200} differs from one SQLite: report it")
            right = {"exact merge": True, "naive merge": naive_is_right(sql, answers["naive merge"], expected)}
            for name in asks:
                where = {"series": name, "group": group, **common}
                points += [
                    Point(statistic="bytes a vendor", unit="bytes", estimate=moved[name].sum() / vendors, n=1, **where),
                    Point(
                        statistic="answer bytes a vendor", unit="bytes", estimate=moved[name][1] / vendors, n=1, **where
                    ),
                    Point.of(quantile_interval(times[name], 0.5), statistic="time", unit="ms", **where),
                    Point(statistic="right", unit="share", estimate=float(right[name]), n=1, **where),
                ]
            where = {"series": "exact over naive", "group": group, "unit": "ratio", **common}
            ratio = np.array(times["exact merge"]) / np.array(times["naive merge"])
            points += [
                Point(
                    statistic="bytes", estimate=moved["exact merge"].sum() / moved["naive merge"].sum(), n=1, **where
                ),
                Point.of(quantile_interval(ratio, 0.5), statistic="time", **where),
            ]
    return points


class _Naive:
    """Sends each vendor the statement as it is, over a network, and merges the answers as they are."""

    def __init__(self, databases: dict[str, Connection], network: Metered) -> None:
        self._addresses = [f"vendor/{vendor_id}" for vendor_id in databases]
        self._network = network
        for address, database in zip(self._addresses, databases.values(), strict=True):
            network.register(address, partial(_answered, database))

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the merged rows."""
        answers = [await self._network.call("coordinator", address, sql) for address in self._addresses]
        return naive_merge(sql, answers[0][0], [rows for _, rows in answers])


def _answered(database: Connection, _target: str, sql: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    return run_oracle(database, sql)


def _one_sqlite(databases: dict[str, Connection]) -> Connection:
    """Return one database with all rows, in the order of vendors."""
    oracle = SCHEMA.database()
    with oracle:
        for database in databases.values():
            oracle.executemany(
                "INSERT INTO products VALUES(?,?,?,?,?,?,?)", database.execute("SELECT * FROM products").fetchall()
            )
    return oracle


def _answer(frame: pd.DataFrame) -> str:
    most = frame["x"].max()
    at = frame[frame["x"] == most]
    ratios = at[at["series"] == "exact over naive"]
    right = at[(at["series"] == "naive merge") & (at["statistic"] == "right")].set_index("group")["estimate"]
    told = []
    for fine, what in ((1.0, "where the naive merge is right"), (0.0, "where it is wrong")):
        mine = ratios[ratios["group"].map(right) == fine]
        if mine.empty:
            continue
        by = {name: rows["estimate"] for name, rows in mine.groupby("statistic")}
        told.append(
            f"{what} the exact one moves {by['bytes'].min():.2g} to {by['bytes'].max():.2g} times its bytes and takes "
            f"{by['time'].min():.2g} to {by['time'].max():.2g} times its time"
        )
    shares = frame[frame["statistic"] == "share right"]
    one = shares[(shares["group"] == "all") & (shares["series"] == "naive merge")].iloc[0]
    exact = shares[(shares["group"] == "all") & (shares["series"] == "exact merge")].iloc[0]
    return (
        f"Measured: with {most:,.0f} vendors, by class of statement, {'; '.join(told)}. Of {one['n']:,} random "
        f"statements the naive merge gets {100 * (1 - one['estimate']):.3g} % wrong [{100 * (1 - one['high']):.3g}, "
        f"{100 * (1 - one['low']):.3g}], the exact one {100 * (1 - exact['estimate']):.3g} % [0, "
        f"{100 * (1 - exact['low']):.2g}]; {_by_class(shares)}"
    )


def _by_class(shares: pd.DataFrame) -> str:
    naive = shares[(shares["series"] == "naive merge") & (shares["group"] != "all")].sort_values("estimate")
    listed = [f"{row['group']} {100 * (1 - row['estimate']):.3g} %" for row in naive.to_dict("records")]
    return f"wrong by class: {', '.join(listed)}."


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Answer for the command line, with charts as PNG by file name."""
    size: dict[str, Any] = {"vendors": SIZES[:2], "statements": 400, "repeats": 6} if quick else {}
    result = merging(seed=seed, executor=executor, progress=progress, **size)
    pictures = {}
    titles = {"merging": "What an exact merge costs", "merging-right": "How often each merge is right"}
    for name, axes in charts.merging_charts(result.frame).items():
        charts.annotate(axes, title=titles[name], caption=result.caption)
        pictures[f"{name}.png"] = (titles[name], charts.png(axes[0]))
    return result, pictures
