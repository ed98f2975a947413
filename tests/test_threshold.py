"""Top-k by a non-negative aggregate in three rounds: the answer of every group, for fewer groups."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mktsim.errors import EvaluationError, IncompleteAnswerError, VendorDownError
from mktsim.fanout import QueryCoordinator, Scanner, threshold
from mktsim.sql import register
from mktsim.sqlite import Connection
from mktsim.testing import Case, TableData, check_statement, run_oracle, typed
from tests.oracle import ask

COLUMNS = ("g TEXT", "h INTEGER", "x REAL", "n INTEGER")
TOP = (
    "SELECT g, COUNT(*) AS c FROM t GROUP BY g ORDER BY c DESC LIMIT 3",
    "SELECT g, SUM(n) FROM t GROUP BY g ORDER BY SUM(n) DESC, g DESC LIMIT 2 OFFSET 1",
    "SELECT SUM(x), g, COUNT(n), AVG(x) FROM t WHERE h <> 2 GROUP BY g ORDER BY 1 DESC LIMIT 4",
    "SELECT h, g, TOTAL(n) AS s, MAX(x) FROM t GROUP BY g, h ORDER BY s DESC, h LIMIT 3",
    "SELECT g, COUNT(*) FILTER (WHERE x > 1), SUM(n) FROM t GROUP BY 1 ORDER BY 2 DESC LIMIT 2",
)


def split(rows: list[tuple[Any, ...]], owners: list[int], vendors: int) -> Case:
    """Return a case of one table."""
    return Case((TableData("t", COLUMNS, tuple(rows)),), vendors, {"t": tuple(owners)})


@contextmanager
def small_rounds(whole: int = 1) -> Iterator[list[int]]:
    """Let vendors with more groups than so many take part in the rounds; count the rounds of each statement."""
    seen: list[int] = []
    real = threshold.scatter_in_rounds

    async def counted(*arguments: Any) -> threshold.Outcome:
        outcome = await real(*arguments)
        seen.append(outcome.rounds)
        return outcome

    with (
        patch.object(threshold, "WHOLE", whole),
        patch.object(threshold, "FACTOR", 0),
        patch("mktsim.fanout.coordinator.scatter_in_rounds", counted),
    ):
        yield seen


#: Few values, so that most totals tie; and powers of two, so that one vendor outweighs all others.
_ALIKE = st.sampled_from([0, 1, 1, 2])
_SKEWED = st.sampled_from([0, 1, 2, 4, 64, 1024, 2**40])


@given(
    numbers=st.sampled_from([_ALIKE, _SKEWED]).flatmap(
        lambda values: st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 3), values, values, st.integers(0, 4)), max_size=60
        )
    ),
    whole=st.integers(0, 3),
    sql=st.sampled_from(TOP),
)
def test_any_split_ties_and_skew_give_the_answer_of_one_sqlite(numbers, whole, sql):
    """Ties at the k-th place fall as they do over one table; a group key may be NULL."""
    rows = [(f"g{g}" if g else None, h, x * 0.1, n) for g, h, x, n, _ in numbers]
    with small_rounds(whole):
        check_statement(sql, split(rows, [row[-1] for row in numbers], 5))


@pytest.mark.parametrize("sql", TOP)
@pytest.mark.parametrize("seed", range(6))
def test_many_groups_over_many_vendors_agree_in_few_rounds(sql, seed):
    """40 vendors, some without rows, 200 groups of very different sizes."""
    draw = random.Random(seed)
    rows = [
        (f"g{int(200 * draw.random() ** 3)}", draw.randrange(4), draw.random() * 3, draw.randrange(5))
        for _ in range(6000)
    ]
    with small_rounds(8) as rounds:
        result = check_statement(sql, split(rows, [draw.randrange(40) for _ in rows], 41))
    assert result is not None
    assert result.stats.tier == "two-phase"
    assert 1 <= max(rounds) <= 4


def skewed(vendors: int = 20, groups: int = 2_000) -> Case:
    """Return a case in which few groups have most of the rows, at every vendor."""
    draw = random.Random(5)
    rows, owners = [], []
    for vendor in range(vendors):
        for group in range(groups):
            if draw.random() < 0.5:
                rows.append((f"g{group}", 0, round(draw.random() * 3000 / (1 + group), 2), 1))
                owners.append(vendor)
    return split(rows, owners, vendors)


def shipped(case: Case, sql: str) -> tuple[int, int]:
    """Return the rows that reach the coordinator with and without rounds."""
    fleet = case.fleet()
    scanners = [Scanner.from_connection(f"v{place:03d}", database) for place, database in enumerate(fleet)]
    coordinator = QueryCoordinator(scanners, schema=case.schema)
    try:
        with_rounds = ask(coordinator, sql)
        with patch.object(threshold, "may_pay", lambda _targets: False):
            without = ask(coordinator, sql)
        assert typed(with_rounds.rows) == typed(without.rows)
        return with_rounds.stats.rows_shipped, without.stats.rows_shipped
    finally:
        coordinator.close()
        for database in fleet:
            database.close()


def test_of_skewed_groups_few_travel():
    """20 vendors, 2,000 groups, half of them at each: the top 5 need less than a tenth of the 20,000 partials."""
    few, all_ = shipped(skewed(), "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 5")
    assert all_ > 19_000
    assert few < all_ / 10


def test_vendors_with_few_groups_need_one_round_and_send_nothing_twice():
    """No certificate, no second round."""
    case = skewed(vendors=5, groups=60)
    few, all_ = shipped(case, TOP[0])
    assert few == all_


@pytest.mark.parametrize("bad", [-5.0, "12", b"7"])
def test_a_sum_that_is_not_certified_ships_every_group(bad):
    """One negative value, text or blob at one vendor: totals may sink, and the answer stays exact."""
    draw = random.Random(3)
    rows = [(f"g{draw.randrange(40)}", 0, round(draw.random(), 2), 1) for _ in range(600)]
    rows += [(f"g{group}", 0, bad, 1) for group in range(3)]
    columns = ("g TEXT", "h INTEGER", "x", "n INTEGER")
    owners = tuple(draw.randrange(4) for _ in rows)
    made = Case((TableData("t", columns, tuple(rows)),), 4, {"t": owners})
    with small_rounds(4) as rounds:
        check_statement("SELECT g, SUM(x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 3", made)
    assert rounds == [3]  # The first, the second with its certificate, and everything.


def placed(*vendors: dict[str, float]) -> Case:
    """Return a case from each vendor's groups and their values."""
    rows = [(g, 0, x, 1) for vendor in vendors for g, x in vendor.items()]
    return split(rows, [place for place, vendor in enumerate(vendors) for _ in vendor], len(vendors))


LARGEST = "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 1"


def test_a_negative_total_that_only_one_vendor_knows_raises_no_bar():
    """Without certificates a's 200 would be the bar, b at most 158 and left out: but a's total is -800, b's 150."""
    two = {"a": 100.0, "b": 60.0, "c": 1.0}
    third = {"d": 40.0, "e": 39.0, "f": 38.0, "b": 30.0, "a": -1000.0}
    with small_rounds(2) as rounds:
        result = check_statement(LARGEST, placed(two, two, third))
    assert result is not None
    assert result.rows == [("b", 150.0)]
    assert rounds == [3]


def test_what_a_vendor_has_not_sent_counts_as_much_as_it_can():
    """y's 16 is known after the second round, x's 9 as well: that x has 7.9 more is found in the third."""
    with small_rounds(2) as rounds:
        result = check_statement(
            LARGEST, placed({"x": 9.0, "y": 8.0, "z": 1.0}, {"y": 8.0, "z": 7.95, "w": 7.94, "x": 7.9})
        )
    assert result is not None
    assert result.rows == [("x", 16.9)]
    assert rounds == [3]


def test_an_overflow_in_a_group_that_would_be_left_out_is_still_an_error():
    """SQLite sums every group before it sorts them."""
    big = 2**62
    rows = [(f"g{group}", 0, 50.0 if group == 3 else 0.1, big if group == 7 else 1) for group in range(12)] * 2
    made = split(rows, [0] * 12 + [1] * 12, 2)
    fleet = made.fleet()
    scanners = [Scanner.from_connection(f"v{place}", database) for place, database in enumerate(fleet)]
    coordinator = QueryCoordinator(scanners, schema=made.schema)
    with small_rounds(2), pytest.raises(EvaluationError, match="integer overflow"):
        ask(coordinator, "SELECT g, SUM(x), SUM(n) FROM t GROUP BY g ORDER BY SUM(x) DESC LIMIT 1")
    coordinator.close()
    for database in fleet:
        database.close()


class _Writing:
    """An execute callable whose database changes before its n-th statement."""

    def __init__(self, database: Connection, when: int, write: str) -> None:
        register(database)
        self._database, self._when, self._write = database, when, write
        self.asked = 0

    def __call__(self, sql: str, params: Any) -> list[tuple[Any, ...]]:
        self.asked += 1
        if self.asked == self._when:
            self._database.execute(self._write)
        return self._database.execute(sql, params).fetchall()


@pytest.mark.parametrize("when", [2, 4])
def test_a_write_between_two_rounds_is_noticed_and_every_group_shipped(when):
    """Before the second round, or the third, a group that was small becomes the largest: it must be in the answer."""
    made = skewed(vendors=3, groups=400)
    fleet = made.fleet()
    writers = [
        _Writing(database, when, "INSERT INTO t VALUES ('g399', 0, 1e6, 1)" if place == 1 else "SELECT 1")
        for place, database in enumerate(fleet)
    ]
    scanners = [Scanner(f"v{place}", writer, has_functions=True) for place, writer in enumerate(writers)]
    coordinator = QueryCoordinator(scanners, schema=made.schema)
    with small_rounds(16) as rounds:
        result = ask(coordinator, "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 4")
    assert writers[1].asked > when
    assert rounds[0] > 2
    assert result.rows[0][0] == "g399"
    coordinator.close()
    for database in fleet:
        database.close()


def test_a_vendor_that_fails_in_a_round_fails_the_query_or_is_named():
    """As in any scatter: an error by name, or a partial answer that says who is missing."""
    made = skewed(vendors=3, groups=400)
    fleet = made.fleet()
    register(fleet[1])
    calls = []

    def down_later(sql: str, params: Any) -> Any:
        calls.append(sql)
        if len(calls) > 1:
            raise VendorDownError("down", vendor_id="v1")
        return fleet[1].execute(sql, params).fetchall()

    scanners = [
        Scanner.from_connection("v0", fleet[0]),
        Scanner("v1", down_later, has_functions=True),
        Scanner.from_connection("v2", fleet[2]),
    ]
    coordinator = QueryCoordinator(scanners, schema=made.schema)
    sql = "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 4"
    with small_rounds(16), pytest.raises(IncompleteAnswerError):
        ask(coordinator, sql)
    calls.clear()
    with small_rounds(16):
        result = ask(coordinator, sql, allow_partial=True)
    assert result.coverage.missing == ("v1",)
    coordinator.close()
    rest = Case(made.tables, 3, {"t": tuple(1 if owner == 1 else owner for owner in made.owners["t"])})
    one = rest._filled([0, 2])
    assert typed(result.rows) == typed(run_oracle(one, sql)[1])
    for database in (one, *fleet):
        database.close()


def test_explain_names_the_rule_and_functions_are_needed():
    """The rule, and how many groups travel; without mktsim_fingerprint at the vendors there are no rounds."""
    made = split([("a", 1, 1.0, 1)], [0], 2)
    fleet = made.fleet()
    coordinator = QueryCoordinator(
        [Scanner.from_connection(f"v{place}", database) for place, database in enumerate(fleet)], schema=made.schema
    )
    assert "TPUT" in str(coordinator.explain(TOP[0]))
    assert "first groups" in coordinator.explain(TOP[0]).travels
    assert "TPUT" not in str(coordinator.explain("SELECT g, AVG(x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 3"))
    coordinator.close()
    plain = QueryCoordinator(
        [Scanner(f"v{place}", lambda *call, d=d: d.execute(*call).fetchall()) for place, d in enumerate(fleet)],
        schema=made.schema,
    )
    assert "TPUT" not in str(plain.explain(TOP[0]))
    assert ask(plain, TOP[0]).rows == [("a", 1)]
    plain.close()
    for database in fleet:
        database.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT g, COUNT(*) FROM t GROUP BY g HAVING COUNT(*) > 1 ORDER BY 2 DESC LIMIT 3",
        "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY 2 LIMIT 3",
        "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY 2 DESC NULLS FIRST LIMIT 3",
        "SELECT g, COUNT(DISTINCT x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 3",
        "SELECT g, AVG(x) FROM t GROUP BY g ORDER BY 2 DESC LIMIT 3",
        "SELECT lower(g), COUNT(*) FROM t GROUP BY 1 ORDER BY 2 DESC LIMIT 3",
        "SELECT g, h, COUNT(*) FROM t GROUP BY g ORDER BY 3 DESC LIMIT 3",
        "SELECT g, COUNT(*), abs(h) FROM t GROUP BY g, h ORDER BY 2 DESC LIMIT 3",
        "SELECT DISTINCT COUNT(*) FROM t GROUP BY g ORDER BY 1 DESC LIMIT 3",
        "SELECT g, COUNT(*) FROM t GROUP BY g ORDER BY g, 2 DESC LIMIT 3",
    ],
)
def test_what_is_not_proven_ships_every_group(sql):
    """HAVING, ascending order, NULLS FIRST, DISTINCT, AVG, expressions as keys, bare columns, functions that fail."""
    made = split([("a", 1, 1.0, 1), ("b", 2, 2.0, 1), ("b", 2, None, 1)], [0, 1, 1], 2)
    fleet = made.fleet()
    coordinator = QueryCoordinator(
        [Scanner.from_connection(f"v{place:03d}", database) for place, database in enumerate(fleet)],
        schema=made.schema,
    )
    assert "TPUT" not in str(coordinator.explain(sql))
    check_statement(sql, made, coordinator=coordinator)
    coordinator.close()
    for database in fleet:
        database.close()
