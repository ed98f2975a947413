"""What does a partial answer lose? Coverage, the error of aggregates and the recall of a top-k, against the deadline.

Rules
-----
The real coordinator answers over real SQLite databases in simulated time: planner, scatter, deadline, merge and stated
guarantees are those of a live query with ``allow_partial``. Every partial answer is compared with the full answer of
the same vendors, and every guarantee that came with it is tried on that full answer: a study in which one fails stops.

Theory of operation
-------------------
A vendor is in time with probability c = F(d), F being the leaf's distribution and d the part of the deadline that the
scatter may use (the rest is kept for the gather), and up with probability 1 - f. Who is late is drawn apart from what
he sells: so COUNT, SUM and the recall of the k best rows are c (1 - f) in the mean, whatever the data, while AVG has no
such bias, only the scatter of a sample. What is not like that in practice, vendors that are late *because* they sell
much, makes COUNT worse than its coverage; the study does not assume it away, its world just does not have it.

What this does not do
---------------------
The deadline does not make vendors faster: a query that gives up leaves its work behind at them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from tqdm.auto import tqdm

from mktsim.errors import IncompleteAnswerError, InvalidArgumentError, SimulationError
from mktsim.fanout import QueryCoordinator, QueryResult, Scanner
from mktsim.fanout.scanner import HAND_IN_SHARE
from mktsim.sim.faults import Crash
from mktsim.sim.latency import Latency, LogNormal
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.world import LEAF, World
from mktsim.sqlite import Value
from mktsim.streams import Streams, check_seed
from mktsim.study import charts
from mktsim.study.coordinated import SCHEMA, fleet
from mktsim.study.jobs import Submits, check_executor, computed
from mktsim.study.points import Point, tidy
from mktsim.study.replications import check_replications
from mktsim.study.result import StudyResult
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, mean_interval

QUESTION: Final = "What does a partial answer lose?"
#: Deadlines, as quantiles of a vendor's time.
DEADLINES: Final = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
FAILURES: Final = (0.0, 0.05)
_AGGREGATES: Final = "SELECT COUNT(*) AS count, SUM(stock) AS units, AVG(price) AS mean FROM products"
_TOP: Final = "SELECT id, rating, price FROM products ORDER BY rating DESC, price DESC, id LIMIT 10"
_FILTER: Final = "SELECT id, price FROM products WHERE price < 50"
_STATEMENTS: Final = (_AGGREGATES, _TOP, _FILTER)
_MEASURES: Final = (
    "coverage", "error of COUNT", "error of SUM", "error of AVG", "recall of top-10", "recall of filter",
)  # fmt: skip
_ANSWERED: Final = "queries answered"
Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """One replication: a fleet of its own, asked under every deadline."""

    vendors: int
    products: int
    latency: Latency
    down: float
    deadlines_s: tuple[float, ...]
    requests: int
    seed: int
    number: int


def partial_answers(
    latency: Latency | None = None,
    *,
    vendors: int = 200,
    products: int = 10,
    deadlines: Sequence[float] = DEADLINES,
    failures: Sequence[float] = FAILURES,
    requests: int = 4,
    replications: int = 20,
    seed: int,
    executor: Submits | None = None,
    progress: bool = False,
) -> StudyResult:
    """Ask for partial answers under several deadlines, with and without failed vendors, and count what they lack.

    Parameters
    ----------
    latency : Latency, optional
        From the coordinator to a vendor and back; lognormal with a median of 1 ms and a p99 of 10 ms when absent.
    vendors, products : int
        The fleet.
    deadlines : sequence of float
        What the scatter may take, as quantiles of `latency`, inside (0, 1).
    failures : sequence of float
        Shares of vendors that are down, from 0 to below 1.
    requests : int
        Of each statement, in each replication, under each deadline.
    replications : int
        Fleets, at least 10.
    seed : int
        Decides every row and draw.
    executor, progress
        See :func:`~mktsim.study.sweeps.sweep`.

    Returns
    -------
    StudyResult
        Its frame has, by ``series`` (``all vendors up``, ``5 % of vendors down``) and ``x``, the deadline in ms:
        ``coverage``, ``error of COUNT``, ``error of SUM`` and ``error of AVG`` (mean of the absolute error), ``recall
        of top-10`` and ``recall of filter``, in %, with their laws; ``queries answered`` in %; and one row for each
        ``guarantee`` that was stated: its words in ``group``, how often it was stated and held in ``n`` and
        ``estimate``.

    Raises
    ------
    InvalidArgumentError
        Before any work, if a number is out of range.
    SimulationError
        If a stated guarantee does not hold: report it.

    Examples
    --------
    >>> found = partial_answers(vendors=20, deadlines=[0.9], failures=[0.0], requests=1, replications=10, seed=1).frame
    >>> covered = found[(found["statistic"] == "coverage") & (found["kind"] == "simulated")]["estimate"].item()
    >>> 80 < covered < 100
    True
    """
    latency = LogNormal(1.0, 10.0) if latency is None else latency
    if not isinstance(latency, Latency):
        raise InvalidArgumentError(f"latency must be a Latency, not {latency!r:.80}")
    seed = check_seed(seed)
    check_executor(executor, None)
    check_replications(replications)
    for name, number in (("vendors", vendors), ("products", products), ("requests", requests)):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 100_000:
            raise InvalidArgumentError(f"{name} must be a whole number from 1 to 100,000, not {number!r:.80}")
    for name, values, least in (("deadlines", deadlines, math.nextafter(0, 1)), ("failures", failures, 0.0)):
        good = isinstance(values, list | tuple) and values and len(set(values)) == len(values)
        if not good or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and least <= v < 1 for v in values
        ):
            raise InvalidArgumentError(f"{name} must be a sequence of different shares below 1, not {values!r:.80}")
    scattered_s = [latency.quantile(p) / 1e3 for p in sorted(deadlines)]
    # Of a deadline the coordinator keeps a share for the gather.
    deadlines_s = tuple(each / (1 - HAND_IN_SHARE) for each in scattered_s)
    parts = [
        _Part(vendors, products, latency, down, deadlines_s, requests, seed, r)
        for down in failures for r in range(replications)
    ]  # fmt: skip
    found: list[pd.DataFrame] = []
    with tqdm(total=len(parts), desc="partial answers", unit=" fleets", disable=not progress) as bar:
        by_place = {}
        for place, rows in computed(_ask, parts, executor=executor):
            by_place[place] = pd.DataFrame(rows, columns=["deadline_s", "statistic", "value", "guarantee"])
            bar.update()
    for place, part in enumerate(parts):
        found.append(by_place[place].assign(down=part.down, number=part.number))
    table = pd.concat(found)
    common: dict[str, Any] = {"study": "partial answers", "seed": seed, "axis": "deadline, ms", "unit": "%"}
    points = []
    for down in failures:
        series = "all vendors up" if not down else f"{100 * down:g} % of vendors down"
        for scatter_s, deadline_s in zip(scattered_s, deadlines_s, strict=True):
            mine = table[(table["down"] == down) & (table["deadline_s"] == deadline_s)]
            where = {"series": series, "x": 1e3 * deadline_s, **common}
            for statistic in (*_MEASURES, _ANSWERED):
                # One mean a fleet: queries to one fleet share its rows.
                means = mine[mine["statistic"] == statistic].groupby("number")["value"].mean().dropna()
                if len(means) > 1:
                    interval = _kept_in(mean_interval(100 * means.to_numpy()), statistic)
                    points.append(Point.of(interval, kind="simulated", statistic=statistic, engine="event", **where))
            answered = float(latency.cdf(1e3 * scatter_s)) * (1 - down)
            laws = {"coverage": answered, "error of COUNT": 1 - answered, "recall of top-10": answered}
            points += [Point(kind="analytic", statistic=k, estimate=100 * v, **where) for k, v in laws.items()]
    stated = table[(table["guarantee"] != "") & (table["statistic"] == "guarantee held")]
    for words, alike in stated.groupby("guarantee", sort=True):
        points.append(
            Point(
                series="guarantee", kind="simulated", group=str(words), statistic="guarantee held", engine="event",
                estimate=100 * alike["value"].mean(), n=len(alike), **common,
            )
        )  # fmt: skip
    if (stated["value"] < 1).any():
        raise SimulationError(f"a stated guarantee did not hold: {stated[stated['value'] < 1]['guarantee'].iloc[0]}")
    frame = tidy(points)
    caption = (
        f"Simulated: the real coordinator, {vendors:,} vendors of {products} products in SQLite, there and back "
        f"{latency!r}; n = {replications} fleets a point with {requests} queries of each statement; seed {seed}; 95 % "
        f"intervals. {100 * HAND_IN_SHARE:g} % of the deadline are kept for the gather. Errors are absolute, in % of "
        "the full answer."
    )
    parameters = {
        "latency": latency.to_dict(), "vendors": vendors, "products": products, "deadlines": list(deadlines),
        "failures": list(failures), "requests": requests, "replications": replications,
    }  # fmt: skip
    return StudyResult(
        question=QUESTION,
        answer=_answer(frame, len(stated)),
        frame=frame,
        parameters=parameters,
        seed=seed,
        caption=caption,
    )


def _kept_in(interval: Interval, statistic: str) -> Interval:
    """Cut Student's interval to what is possible: an error is not negative, a share of the answer at most all of it."""
    high = math.inf if statistic.startswith("error") else 100.0
    return Interval(interval.estimate, max(0.0, interval.low), min(high, interval.high), interval.n)


def _ask(part: _Part) -> list[tuple[float, str, float, str]]:
    """Ask one fleet everything: rows of deadline, statistic, value and the guarantee's words."""
    streams = Streams(part.seed).child(f"replication {part.number}")
    faults = (Crash(share=part.down),) if part.down else ()
    world = World(service=part.latency, faults=faults)
    with ExitStack() as stack:
        databases = fleet(Scenario(vendors=part.vendors, products=part.products, world=World()), streams)
        for database in databases.values():
            stack.callback(database.close)
        scanners = [Scanner.from_connection(vendor_id, database) for vendor_id, database in databases.items()]
        return sim_run(_ask_fleet(part, world, streams, scanners))


async def _ask_fleet(
    part: _Part, world: World, streams: Streams, scanners: list[Scanner]
) -> list[tuple[float, str, float, str]]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    addresses = [scanner.address for scanner in scanners]
    full = QueryCoordinator(scanners, schema=SCHEMA)
    whole = {sql: (await full.query(sql)).rows for sql in _STATEMENTS}
    every = set((await full.query(_FILTER)).rows)
    full.close()
    network = SimNetwork(loop, world, streams)
    network.add_hosts(LEAF, addresses)
    coordinator = QueryCoordinator(scanners, schema=SCHEMA, network=network)
    await coordinator.prepare()
    table: list[tuple[float, str, float, str]] = []
    request = 0
    for _ in range(part.requests):
        for sql in _STATEMENTS:
            request += 1
            # The same draws under every deadline: who is late is the same vendors, until one waits for them.
            for deadline_s in part.deadlines_s:
                with request_number(request):
                    try:
                        result = await coordinator.query(sql, allow_partial=True, deadline_s=deadline_s)
                    except IncompleteAnswerError:  # Nobody was in time: there is nothing to answer from.
                        table.append((deadline_s, _ANSWERED, 0.0, ""))
                    else:
                        table.append((deadline_s, _ANSWERED, 1.0, ""))
                        table += [(deadline_s, *row) for row in _judged(sql, result, whole[sql], every)]
                await network.idle()
    coordinator.close()
    return table


def _judged(sql: str, result: QueryResult, whole: list[Row], every: set[Row]) -> list[tuple[str, float, str]]:
    """Compare a partial answer with the whole one: statistics, and whether what was guaranteed holds."""
    rows = [("coverage", result.coverage.fraction, "")]
    stated = "" if result.coverage.complete else result.guarantees.text
    if sql == _AGGREGATES:
        mine, full = result.rows[0], whole[0]
        for name, value, true in zip(("COUNT", "SUM", "AVG"), mine, full, strict=True):
            if value is None or not isinstance(true, int | float) or not true:
                continue
            rows.append((f"error of {name}", abs(float(value) / true - 1), ""))
        if stated:
            held = all(_keeps(bound, a, b) for bound, a, b in zip(result.guarantees.columns, mine, full, strict=True))
            rows.append(("guarantee held", float(held), stated))
        return rows
    kept = len(set(result.rows) & set(whole)) / len(whole) if whole else 1.0
    rows.append(("recall of top-10" if sql == _TOP else "recall of filter", kept, ""))
    if stated:
        certain = result.guarantees.certain_rows
        held = set(result.rows[: max(0, certain)]) <= set(whole)
        if result.guarantees.rows == "subset":
            held = held and set(result.rows) <= every
        rows.append(("guarantee held", float(held), stated))
    return rows


def _keeps(bound: str, value: Any, true: Any) -> bool:
    """Return whether a value stands to the true one as was guaranteed; stocks are never negative here."""
    if value is None or bound == "none":
        return True
    if bound.startswith("lower bound"):
        return bool(value <= true)
    return bool(value >= true) if bound == "upper bound" else bool(value == true)


def _answer(frame: pd.DataFrame, stated: int) -> str:
    """Say what is lost at the least and the longest deadline, and where some 95 % of the vendors answer."""
    known, laws = (frame[frame["kind"] == kind] for kind in ("simulated", "analytic"))
    texts = []
    for series, part in known[known["series"] != "guarantee"].groupby("series", sort=False):
        at = {float(x): part[part["x"] == x].set_index("statistic") for x in sorted(set(part["x"]))}
        # By its law: where an estimate lies nearest, it does so by luck as well, of which its interval knows nothing.
        law = laws[(laws["series"] == series) & (laws["statistic"] == "coverage")].set_index("x")["estimate"]
        covered = {x: float(law[x]) for x, rows in at.items() if "coverage" in rows.index}
        nearest = min((abs(share - 95), x) for x, share in covered.items())[1]
        for x in sorted({min(covered), nearest, max(covered)}):
            rows = at[x]

            def told(name: str, rows: pd.DataFrame = rows) -> str:
                if name not in rows.index:
                    return "nothing known"  # Nobody answered in time, in any fleet.
                row = rows.loc[name]
                return f"{row['estimate']:.3g} % [{row['low']:.3g}, {row['high']:.3g}]"

            texts.append(
                f"{series!s}, deadline {x:.3g} ms: {told('coverage')} of the vendors answer; COUNT is off by "
                f"{told('error of COUNT')}, AVG by {told('error of AVG')}, and the top-10 has "
                f"{told('recall of top-10')} of its rows"
            )
    words = "; ".join(known.loc[known["series"] == "guarantee", "group"])
    return f"Simulated: {'; '.join(texts)}. All {stated:,} guarantees that were stated held: {words}."


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Answer for the command line, with charts as PNG by file name."""
    size: dict[str, Any] = {"vendors": 50, "requests": 2, "replications": 10} if quick else {}
    result = partial_answers(seed=seed, executor=executor, progress=progress, **size)
    axes = charts.partial_chart(result.frame)
    charts.annotate(axes, title=QUESTION, caption=result.caption)
    return result, {"partial.png": (QUESTION, charts.png(axes[0]))}
