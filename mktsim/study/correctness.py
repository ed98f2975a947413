"""How often a merge is right: random statements, the exact and the naive merge, against one SQLite."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from scipy.stats import binomtest
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.sql.lexer import tokens
from mktsim.sqlite import Connection, Error, Value
from mktsim.study.naive import naive_merge
from mktsim.study.points import Point
from mktsim.study.statistics import Interval
from mktsim.testing import Case, Grammar, Mismatch, Row, check_statement, make_coordinator, run_oracle

#: Statement classes, by the first of these that a statement has.
CLASSES: Final = (
    "set operation",
    "sub-query",
    "window function",
    "join",
    "HAVING",
    "DISTINCT aggregate",
    "AVG",
    "GROUP_CONCAT",
    "JSON aggregate",
    "GROUP BY: COUNT, SUM, MIN, MAX",
    "COUNT, SUM, MIN, MAX",
    "SELECT DISTINCT",
    "OFFSET",
    "ORDER BY, LIMIT",
    "filter",
)
_JSON: Final = frozenset(f"{kind}_GROUP_{what}" for kind in ("JSON", "JSONB") for what in ("ARRAY", "OBJECT"))
_AGGREGATES: Final = {"COUNT", "SUM", "TOTAL", "AVG", "MIN", "MAX", "GROUP_CONCAT", *_JSON}


def statement_class(sql: str) -> str:
    """Return the class of a statement.

    Examples
    --------
    >>> statement_class("SELECT k, AVG(v) FROM t GROUP BY k"), statement_class("SELECT min(a, b) FROM t ORDER BY 1")
    ('AVG', 'ORDER BY, LIMIT')
    """
    words = [text.upper() for kind, text in tokens(sql) if kind == "word"]
    calls = _aggregate_calls(sql)
    has = set(words)
    rules = (
        bool(has & {"UNION", "INTERSECT", "EXCEPT"}),
        words.count("SELECT") > 1,
        "OVER" in has,
        _has_join(sql),
        "HAVING" in has,
        any(distinct for _, distinct in calls),
        any(name == "AVG" for name, _ in calls),
        any(name == "GROUP_CONCAT" for name, _ in calls),
        any(name in _JSON for name, _ in calls),
        "GROUP" in has,
        bool(calls),
        "DISTINCT" in has,
        "OFFSET" in has,
        bool(has & {"ORDER", "LIMIT"}),
        True,
    )
    return CLASSES[rules.index(True)]


def measure_merges(
    *,
    statements: int,
    vendors: int,
    rows: int,
    seed: int,
    progress: bool = False,
    mismatch: Callable[[str], object] = lambda _: None,
) -> list[Point]:
    """Count how many random statements each merge answers as one SQLite with all rows does.

    It runs an event loop of its own: in a notebook, ``await asyncio.to_thread(measure_merges, ...)``.

    The exact merge is right only if every value, its type, the bits of every float, the order and the names agree
    (`mktsim.testing`). The naive one is judged leniently: 1 equals 1.0, floats agree to 9 digits, and order counts
    only where the statement has an ORDER BY.

    Parameters
    ----------
    statements : int
        How many that one SQLite can answer; those it refuses are drawn again.
    vendors : int
        Over how many the rows of each random table are split.
    rows : int
        At most, in a table.
    seed : int
        Decides tables, splits and statements.
    progress : bool
        Show a progress bar.
    mismatch : callable
        Told of each statement that the exact merge answers wrongly: a program that shows it.

    Returns
    -------
    list of Point
        For each class that came up, and for all together, the share right of each merge with its Clopper-Pearson
        interval.
    """
    for name, value, least in (("statements", statements, 1), ("vendors", vendors, 1), ("rows", rows, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    grammar = Grammar(random.Random(seed))
    asked: Counter[str] = Counter()
    right: dict[str, Counter[str]] = {"exact": Counter(), "naive": Counter()}
    with tqdm(total=statements, desc="merge", unit=" statements", disable=not progress) as bar:
        while asked.total() < statements:
            case = grammar.case(vendors=vendors, rows=rows)
            batch = [grammar.statement(case) for _ in range(min(20, statements - asked.total()))]
            for kind, exact, naive in _judge(case, batch, mismatch):
                asked[kind] += 1
                right["exact"][kind] += exact
                right["naive"][kind] += naive
                bar.update()
    points = []
    for kind in (*(name for name in CLASSES if asked[name]), "all"):
        n = asked.total() if kind == "all" else asked[kind]
        for merge, counts in right.items():
            k = counts.total() if kind == "all" else counts[kind]
            points.append(
                Point.of(
                    share_interval(k, n),
                    study="merge", series=f"{merge} merge", kind="measured", axis="statement class", group=kind,
                    statistic="right", unit="share", seed=seed, engine="live",
                )
            )  # fmt: skip
    return points


def share_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Estimate a share from independent trials. Source: Clopper & Pearson, Biometrika 26, 1934.

    Examples
    --------
    >>> print(share_interval(100, 100))
    1 [0.9638, 1]
    """
    interval = binomtest(successes, n).proportion_ci(confidence, method="exact")
    return Interval(successes / n, float(interval.low), float(interval.high), n, confidence)


def _judge(
    case: Case, batch: Sequence[tuple[str, tuple[Value, ...]]], mismatch: Callable[[str], object]
) -> list[tuple[str, bool, bool]]:
    """Return class and verdicts of each statement that one SQLite answers."""
    oracle, fleet = case.oracle(), case.fleet()
    coordinator = make_coordinator(case, fleet)
    try:
        verdicts = []
        for sql, params in batch:
            try:
                columns, expected = run_oracle(oracle, sql, params)
            except Error:
                continue
            try:
                exact = check_statement(sql, case, params, coordinator=coordinator) is not None
            except Mismatch as found:
                exact = False
                mismatch(str(found))
            verdicts.append((statement_class(sql), exact, _naive_is_right(sql, params, columns, expected, fleet)))
        return verdicts
    finally:
        coordinator.close()
        for connection in (oracle, *fleet):
            connection.close()


def _naive_is_right(
    sql: str, params: tuple[Value, ...], columns: Sequence[str], expected: list[Row], fleet: Sequence[Connection]
) -> bool:
    try:
        merged = naive_merge(sql, columns, [run_oracle(vendor, sql, params)[1] for vendor in fleet], params)
    except (Error, OverflowError):
        return False
    return naive_is_right(sql, merged, expected)


def naive_is_right(sql: str, merged: Sequence[Row], expected: Sequence[Row]) -> bool:
    """Judge a merged answer leniently: 1 equals 1.0, floats to 9 digits, order only where the statement orders.

    Examples
    --------
    >>> naive_is_right("SELECT v FROM t", [(2,), (1.0,)], [(1,), (2,)])
    True
    """
    one, two = [_lenient(row) for row in merged], [_lenient(row) for row in expected]
    ordered = "ORDER" in {text.upper() for kind, text in tokens(sql) if kind == "word"}
    return one == two if ordered else Counter(one) == Counter(two)


def _lenient(row: Row) -> Row:
    def value(one: Any) -> Any:
        if isinstance(one, int | float):
            return "NULL" if math.isnan(one) else f"{one + 0.0:.9g}"  # SQLite turns NaN into NULL.
        return "NULL" if one is None else ("value", one)

    return tuple(map(value, row))


def _aggregate_calls(sql: str) -> list[tuple[str, bool]]:
    """Return the aggregates called, and whether with DISTINCT; MIN and MAX of several arguments are none."""
    solid = [(kind, text) for kind, text in tokens(sql) if kind != "space"]
    calls = []
    for place, (kind, text) in enumerate(solid[:-1]):
        if kind == "word" and text.upper() in _AGGREGATES and solid[place + 1][1] == "(":
            depth, several = 0, False
            for _, inner in solid[place + 1 :]:
                depth += (inner == "(") - (inner == ")")
                several |= inner == "," and depth == 1
                if depth == 0:
                    break
            if not (several and text.upper() in ("MIN", "MAX")):
                calls.append((text.upper(), solid[place + 2][1].upper() == "DISTINCT"))
    return calls


def _has_join(sql: str) -> bool:
    """Return whether the outermost FROM names more than one table."""
    depth, inside = 0, False
    for kind, text in tokens(sql):
        depth += (text == "(") - (text == ")")
        word = text.upper() if kind == "word" and depth == 0 else ""
        if word == "JOIN":
            return True
        inside = word == "FROM" or (inside and word not in ("WHERE", "GROUP", "ORDER", "LIMIT"))
        if inside and text == "," and depth == 0:
            return True
    return False
