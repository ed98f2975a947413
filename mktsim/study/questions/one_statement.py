"""How is one statement answered over many databases, and what would a naive merge say?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mktsim.fanout import Explanation, QueryCoordinator, Scanner
from mktsim.sim import sim_run
from mktsim.sqlite import Connection, Error, Value, rows
from mktsim.streams import Streams
from mktsim.study.coordinated import SCHEMA, fleet
from mktsim.study.correctness import naive_is_right
from mktsim.study.naive import naive_merge
from mktsim.study.scenario import Scenario

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class MergeComparison:
    """One statement, merged exactly and naively.

    Attributes
    ----------
    explanation : Explanation
        Tier and statements.
    columns : tuple of str
    exact, naive : list of tuple
        The two answers; the naive one is None where that merge breaks down, `naive_error` says how.
    agree : bool
        Whether they are the same, judged as :func:`~mktsim.study.correctness.naive_is_right` judges.
    rows_shipped : int
        By the exact merge.
    vendors_visited : int
        By the exact merge.
    """

    explanation: Explanation
    columns: tuple[str, ...]
    exact: list[Row]
    naive: list[Row] | None
    naive_error: str
    agree: bool
    rows_shipped: int
    vendors_visited: int


def compare_merges(scenario: Scenario, *, seed: int) -> MergeComparison:
    """Answer a scenario's statement over its vendors by the coordinator, and as an obvious implementation would.

    Parameters
    ----------
    scenario : Scenario
        Vendors, products of each, statement and its parameters; no time passes.
    seed : int
        Decides the rows.

    Raises
    ------
    QueryError
        If the statement is at fault.

    Examples
    --------
    >>> asked = Scenario(vendors=3, statement="SELECT AVG(stock) FROM products WHERE stock > 60")
    >>> compared = compare_merges(asked, seed=1)
    >>> compared.explanation.tier, compared.agree
    ('two-phase', False)
    """
    sql, params = scenario.statement, scenario.params
    databases = fleet(scenario, Streams(seed))
    try:
        coordinator = QueryCoordinator([Scanner.from_connection(*item) for item in databases.items()], schema=SCHEMA)
        try:
            explanation = coordinator.explain(sql, params)
            result = sim_run(coordinator.query(sql, params))  # Works in a notebook's running loop as well.
        finally:
            coordinator.close()
        naive, why = _naively(sql, params, result.columns, list(databases.values()))
    finally:
        for database in databases.values():
            database.close()
    agree = naive is not None and naive_is_right(sql, naive, result.rows)
    return MergeComparison(
        explanation, result.columns, result.rows, naive, why, agree, result.stats.rows_shipped, explanation.vendors
    )


def _naively(
    sql: str, params: Sequence[Value], columns: Sequence[str], databases: Sequence[Connection]
) -> tuple[list[Row] | None, str]:
    try:
        answers = [rows(database, sql, tuple(params)) for database in databases]
        return naive_merge(sql, columns, answers, params), ""
    except (Error, OverflowError, TypeError) as error:
        return None, f"{type(error).__name__}: {error}"
