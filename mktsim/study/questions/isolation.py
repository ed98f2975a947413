"""What does isolation cost against one database? Bytes a vendor, and the time of queries over all vendors and of one.

Rules
-----
The same rows stand in a packed marketplace, a database a vendor, and in one SQLite file, whose tables have the vendor
first in their keys. Both answer the same statements with the same parameters, in turns; the answers are compared. Every
query has a parameter of its own, so that neither answers from what it kept.

Theory of operation
-------------------
Isolation costs pages: a database of a few rows has a schema of its own and at least a page a table, which packing
shrinks but does not remove. A query over all vendors pays for opening each image and for merging; both are a constant a
vendor, so that times grow alike and the ratio settles. A query of one vendor pays nothing for the others: it is a
look-up in either.

What this does not do
---------------------
It measures one process on one machine: what isolation is for, vendors on many machines and none in the way of another,
is worth nothing here. The one SQLite has no locks to wait for either.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError, MktsimError
from mktsim.market import Marketplace
from mktsim.market.catalogue import catalogue
from mktsim.market.nouns import NOUNS
from mktsim.sqlite import Connection, connect, quote
from mktsim.streams import Streams, check_seed
from mktsim.study import charts
from mktsim.study.fleets import make_fleet
from mktsim.study.jobs import Submits, check_executor
from mktsim.study.measuring import STATEMENTS, Statement, frozen_collector
from mktsim.study.points import Point, tidy
from mktsim.study.result import StudyResult
from mktsim.study.statistics import quantile_interval, samples_for_quantile

QUESTION: Final = "What does isolation cost against one database?"
SIZES: Final = (10, 100, 1_000, 10_000)
#: What a vendor asks of himself: a look-up in both.
ONE_VENDOR: Final = Statement(
    "one vendor",
    "SELECT id, name, price FROM products WHERE vendorId = '{}' AND price * ? < 1000 ORDER BY id",
    0.9,
    1.1,
)
ISOLATED: Final = "a database a vendor"
ONE: Final = "one SQLite"


def isolation(
    *,
    vendors: Sequence[int] = SIZES,
    products: int = 10,
    repeats: int = 15,
    folder: Path | None = None,
    seed: int,
    executor: Submits | None = None,
    progress: bool = False,
) -> StudyResult:
    """Measure a packed marketplace beside one SQLite file with the same rows.

    It runs an event loop of its own: in a notebook, ``await asyncio.to_thread(isolation, ...)``.

    Parameters
    ----------
    vendors : sequence of int
        Fleets.
    products : int
        Mean number of products of a vendor.
    repeats : int
        Timed repetitions of each statement; at least 6.
    folder : Path, optional
        Where both are made, and left; a temporary one when absent.
    seed : int
        Decides every row and parameter; times are this machine's.
    executor
        Not used: what is timed runs in this process, alone.
    progress : bool
        Show a progress bar.

    Returns
    -------
    StudyResult
        Its frame has, by ``series`` (``a database a vendor``, ``one SQLite``), ``x`` (vendors) and ``group`` (the class
        of statement): ``time`` in ms (median), and ``bytes a vendor`` on disk; as series ``isolated over one`` the
        ratios ``time``, of pairs, and ``bytes``.

    Raises
    ------
    InvalidArgumentError
        Before any work, if a number is out of range.
    MktsimError
        If the two answer differently: report it.

    Examples
    --------
    >>> frame = isolation(vendors=[5], repeats=6, seed=1).frame
    >>> sorted(frame["group"].unique())
    ['', 'filter', 'group-by', 'one vendor', 'top-k']
    """
    seed = check_seed(seed)
    check_executor(executor, None)
    if not isinstance(vendors, list | tuple | range) or not vendors or len(set(vendors)) < len(vendors):
        raise InvalidArgumentError(f"vendors must be a sequence of different whole numbers, not {vendors!r:.80}")
    numbers = [("vendors", n, 1, 1_000_000) for n in vendors]
    numbers += [("products", products, 1, 10_000), ("repeats", repeats, samples_for_quantile(0.5), 100_000)]
    for name, number, low, high in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise InvalidArgumentError(f"{name} must be a whole number from {low:,} to {high:,}, not {number!r:.80}")
    if folder is not None and not isinstance(folder, Path):
        raise InvalidArgumentError(f"folder must be a Path or None, not {folder!r:.80}")
    points: list[Point] = []
    total = len(vendors) * (len(STATEMENTS) + 1) * repeats
    with tqdm(total=total, desc="isolation", unit=" pairs", disable=not progress) as bar:
        with TemporaryDirectory() as made:
            for n in vendors:
                where = (folder or Path(made)) / f"{n}-vendors"
                points += asyncio.run(_measure(where, n, products, repeats, seed, bar))
    frame = tidy(points)
    caption = (
        f"Measured on this machine, one process, files warm, {products} products a vendor in the mean, with reviews; "
        f"medians of n = {repeats} repetitions in turns, seed {seed}; 95 % intervals. One SQLite: the same rows in one "
        "file, keys and index by vendor."
    )
    parameters = {"vendors": list(vendors), "products": products, "repeats": repeats}
    return StudyResult(
        question=QUESTION, answer=_answer(frame), frame=frame, parameters=parameters, seed=seed, caption=caption
    )


async def _measure(folder: Path, vendors: int, products: int, repeats: int, seed: int, bar: Any) -> list[Point]:
    path = make_fleet(folder / "market", vendors=vendors, products=products, seed=seed)
    file = folder / "one.db"
    common: dict[str, Any] = {
        "study": "isolation", "kind": "measured", "axis": "vendors", "x": vendors, "seed": seed, "engine": "live",
    }  # fmt: skip
    points = []
    streams = Streams(seed)
    with closing(one_sqlite(file, vendors=vendors, products=products, seed=seed)) as one:
        async with Marketplace.open(path) as market:
            sizes = {ISOLATED: _bytes(path), ONE: _bytes(file)}
            with frozen_collector():
                chosen = market.vendors[vendors // 2]
                lookup = Statement(ONE_VENDOR.name, ONE_VENDOR.sql.format(chosen), ONE_VENDOR.low, ONE_VENDOR.high)
                for number, statement in enumerate((*STATEMENTS, lookup)):
                    routed = {"shard_key": chosen} if statement is lookup else {}
                    times: dict[str, list[float]] = {ISOLATED: [], ONE: []}
                    for turn, u in enumerate(streams.uniform("params", number, repeats + 2).tolist()):
                        params = statement.params(u)
                        started = perf_counter()
                        isolated = (await market.query(statement.sql, params, **routed)).rows  # type: ignore[arg-type]
                        between = perf_counter()
                        whole = one.execute(statement.sql, params).fetchall()
                        ended = perf_counter()
                        if not _same(isolated, whole, ordered="ORDER" in statement.sql):
                            raise MktsimError(
                                f"{statement.name} over {vendors:,} vendors differs from one SQLite: report it, with "
                                f"seed {seed}"
                            )
                        if turn > 1:  # The first two open files, plan, and fill caches.
                            times[ISOLATED].append(1e3 * (between - started))
                            times[ONE].append(1e3 * (ended - between))
                            bar.update()
                    ratio = np.array(times[ISOLATED]) / np.array(times[ONE])
                    where = {"statistic": "time", "group": statement.name, **common}
                    points += [
                        Point.of(quantile_interval(values, 0.5), series=series, unit="ms", **where)
                        for series, values in times.items()
                    ]
                    points.append(
                        Point.of(quantile_interval(ratio, 0.5), series="isolated over one", unit="ratio", **where)
                    )
    points += [
        Point(series=series, statistic="bytes a vendor", unit="bytes", estimate=size / vendors, n=1, **common)
        for series, size in sizes.items()
    ]
    ratio_of_bytes = sizes[ISOLATED] / sizes[ONE]
    points.append(
        Point(series="isolated over one", statistic="bytes", unit="ratio", estimate=ratio_of_bytes, n=1, **common)
    )
    return points


def one_sqlite(path: Path, *, vendors: int, products: int, seed: int) -> Connection:
    """Make one SQLite file with the rows of a generated marketplace, in the order of vendors; the caller closes it.

    Each table has the vendor before its id in the primary key, which serves as the index of what is one vendor's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = connect(str(path))
    with connection:
        for noun in NOUNS:
            declared = ", ".join(
                f"{quote(name)} {kind.replace('PRIMARY KEY', '').strip()}" for name, kind in noun.columns
            )
            connection.execute(f"CREATE TABLE {quote(noun.table)}({declared}, PRIMARY KEY(vendorId, id))")
        for _, tables in catalogue(vendors=vendors, products=products, seed=seed):
            for table, rows in tables.items():
                marks = ", ".join("?" * len(rows[0])) if rows else ""
                connection.executemany(f"INSERT INTO {quote(table)} VALUES ({marks})", rows)
    return connection


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def _same(one: Sequence[Any], other: Sequence[Any], *, ordered: bool) -> bool:
    """Return whether two answers agree; of floats SQLite's own sums may be off by the last bits."""
    if not ordered:
        one, other = sorted(one, key=repr), sorted(other, key=repr)
    return len(one) == len(other) and all(
        len(a) == len(b) and all(x == y or _close(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def _close(x: Any, y: Any) -> bool:
    return isinstance(x, float) and isinstance(y, float) and math.isclose(x, y, rel_tol=1e-12)


def _answer(frame: pd.DataFrame) -> str:
    most = frame["x"].max()
    at = frame[frame["x"] == most]
    sizes = at[at["statistic"] == "bytes a vendor"].set_index("series")["estimate"]
    texts = []
    for group, rows in at[at["statistic"] == "time"].groupby("group", sort=False):
        by = {row["series"]: row for row in rows.to_dict("records")}
        ratio = by["isolated over one"]
        texts.append(
            f"{group} {by[ISOLATED]['estimate']:.3g} against {by[ONE]['estimate']:.3g} ms, {ratio['estimate']:.3g} "
            f"[{ratio['low']:.3g}, {ratio['high']:.3g}] times"
        )
    return (
        f"Measured, {most:,.0f} vendors: {sizes[ISOLATED]:,.0f} bytes a vendor on disk against {sizes[ONE]:,.0f} in "
        f"one SQLite, {sizes[ISOLATED] / sizes[ONE]:.2g} times; and in time {'; '.join(texts)}."
    )


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Answer for the command line, with charts as PNG by file name."""
    size: dict[str, Any] = {"vendors": SIZES[:3], "repeats": 6} if quick else {}
    result = isolation(seed=seed, executor=executor, progress=progress, **size)
    axes = charts.isolation_chart(result.frame)
    charts.annotate(axes, title=QUESTION, caption=result.caption)
    return result, {"isolation.png": (QUESTION, charts.png(axes[0]))}
