"""The measurements of the scaling study: the naive merge, the judge, the theory, the fleets on disk."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import DuplicateError, InvalidArgumentError, MktsimError, StorageError
from mktsim.sim import load_preset
from mktsim.study import correctness, fleets, scaling
from mktsim.study.correctness import CLASSES, measure_merges, share_interval, statement_class
from mktsim.study.naive import naive_merge
from mktsim.study.points import tidy
from mktsim.study.questions.hedging import hedging
from mktsim.study.scaling import QUICK, flat_bounds_ms, measure_live, measure_ring, simulate_fan_out, windowed_limit_ms
from mktsim.testing import Mismatch

SEED = 20261122
TINY = replace(
    QUICK, live_vendors=(10, 30), repeats=6, sim_vendors=(10, 200), requests=10, rings=6, keys=500, statements=40
)


# -- the naive merge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "answers", "merged"),
    [
        ("SELECT COUNT(*), SUM(v), TOTAL(v) FROM t", [[(2, 5, 5.0)], [(0, None, 0.0)]], [(2, 5, 5.0)]),
        ("SELECT MIN(v), MAX(v) FROM t", [[(2, "a")], [(None, None)], [(-1, 9)]], [(-1, "a")]),
        ("SELECT AVG(v) FROM t", [[(10.0,)], [(50.0,)]], [(30.0,)]),
        ("SELECT k, COUNT(*) FROM t GROUP BY k ORDER BY k", [[("b", 1)], [("a", 2), ("b", 3)]], [("a", 2), ("b", 4)]),
        ("SELECT v FROM t ORDER BY v DESC LIMIT 2", [[(3,), (1,)], [(9,), (None,)]], [(9,), (3,)]),
        ("SELECT v AS k, w FROM t ORDER BY k LIMIT ?", [[(3, 0)], [(1, 0)]], [(1, 0)]),
        ("SELECT DISTINCT v FROM t", [[(3,)], [(3,), (1,)]], [(3,), (1,)]),
        ("SELECT min(a, b) FROM t", [[(3,)], [(1,)]], [(3,), (1,)]),
    ],
)
def test_the_naive_merge_does_what_its_rules_say(sql: str, answers: list[Any], merged: list[Any]) -> None:
    """Counts are added, averages averaged, rows concatenated, sorted and cut; MIN of two arguments is no aggregate."""
    columns = [str(place) for place in range(len(answers[0][0]))]
    if " AS k" in sql:
        columns[0] = "k"
    assert naive_merge(sql, columns, answers, (1,)) == merged


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT a FROM t UNION SELECT a FROM u", "set operation"),
        ("SELECT a FROM t WHERE a IN (SELECT b FROM u)", "sub-query"),
        ("SELECT SUM(a) OVER (ORDER BY b) FROM t", "window function"),
        ("SELECT l.a FROM t AS l , u AS r", "join"),
        ("SELECT a, b FROM t WHERE a IN (1, 2)", "filter"),
        ("SELECT COUNT(DISTINCT a) FROM t", "DISTINCT aggregate"),
        ("SELECT 'UNION, AVG(x)' FROM t LIMIT 3 OFFSET 1", "OFFSET"),
        ("SELECT k, SUM(v) FROM t GROUP BY k HAVING SUM(v) > 1", "HAVING"),
        ("SELECT k, SUM(v) FROM t GROUP BY k", "GROUP BY: COUNT, SUM, MIN, MAX"),
        ("SELECT k FROM t GROUP BY k", "GROUP BY: COUNT, SUM, MIN, MAX"),
        ("SELECT json_group_array(length(a)) FROM t", "JSON aggregate"),
        ("SELECT json_array(a, b) FROM t", "filter"),
    ],
)
def test_a_statement_is_of_the_first_class_it_fits(sql: str, kind: str) -> None:
    """Words in strings and commas in parentheses do not count."""
    assert statement_class(sql) == kind


def test_the_judge_finds_the_naive_merge_wrong_and_the_exact_one_right() -> None:
    """Both shares come with the interval of as many statements as were asked; the classes add up to all."""
    frame = tidy(measure_merges(statements=150, vendors=4, rows=20, seed=SEED))
    by = frame.set_index(["series", "group"])["estimate"]
    assert by["exact merge", "all"] >= 0.99
    assert by["naive merge", "all"] < 0.9
    assert by["naive merge", "filter"] == 1
    exact = frame[(frame["series"] == "exact merge")].set_index("group")["n"]
    assert exact["all"] == 150 == exact.drop("all").sum()
    assert set(exact.index) <= {*CLASSES, "all"}
    assert ((frame["low"] <= frame["estimate"]) & (frame["estimate"] <= frame["high"])).all()


def test_the_judge_reports_an_exact_merge_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong answer is counted as wrong and told with its reproducer, never passed over."""

    def wrong(*_: Any, **__: Any) -> None:
        raise Mismatch("the reproducer")

    monkeypatch.setattr(correctness, "check_statement", wrong)
    told: list[str] = []
    frame = tidy(measure_merges(statements=5, vendors=2, rows=5, seed=1, mismatch=told.append))
    assert told == ["the reproducer"] * 5
    assert frame.set_index(["series", "group"])["estimate"]["exact merge", "all"] == 0


def test_the_interval_of_a_share_is_clopper_and_pearsons() -> None:
    """All of n right leaves a lower end of 0.025^(1/n); none right is its mirror image."""
    assert share_interval(50, 50).low == pytest.approx(0.025 ** (1 / 50))
    assert share_interval(0, 50).high == pytest.approx(1 - 0.025 ** (1 / 50))


# -- theory -------------------------------------------------------------------------------------------------------


def test_simulated_quantiles_lie_between_the_analytic_bounds() -> None:
    """Theory and simulation were written apart; the interval of p50 and the flat scatter's bounds must meet."""
    frame = tidy(simulate_fan_out(replace(TINY, sim_vendors=(10, 100, 3000), requests=100), seed=SEED))
    part = frame[(frame["preset"].str.startswith("same-zone")) & (frame["statistic"] == "p50")]
    values = part.pivot_table(index="x", columns="series", values=["estimate", "low", "high"])
    assert (values["high", "flat"] * (1 + 1e-6) >= values["estimate", "flat, lower bound"]).all()
    assert (values["low", "flat"] <= values["estimate", "flat, upper bound"]).all()


def test_the_windowed_limit_is_where_large_fleets_go() -> None:
    """base + n/c * mean * pace: at 10,000 vendors the simulated median's interval holds it."""
    frame = tidy(simulate_fan_out(replace(TINY, sim_vendors=(10_000,), requests=100), seed=SEED))
    part = frame[
        (frame["preset"].str.startswith("cloudflare")) & (frame["statistic"] == "p50") & (frame["x"] == 10_000)
    ]
    by = part.set_index("series")
    assert by.loc["flat", "low"] < by.loc["flat, limit of many vendors", "estimate"] < by.loc["flat", "high"]


def test_theory_refuses_worlds_it_does_not_hold_in() -> None:
    """A window has no such bounds, no window no such limit."""
    same_zone, cloudflare = load_preset("same-zone").world, load_preset("cloudflare-2026").world
    with pytest.raises(InvalidArgumentError, match="without window"):
        flat_bounds_ms(cloudflare, 10, 0.5)
    with pytest.raises(InvalidArgumentError, match="needs a window"):
        windowed_limit_ms(same_zone, 10, 0.5)


def test_measured_ring_balance_follows_the_beta_binomial_law() -> None:
    """The variation of loads over rings is the law's, within its interval widened threefold."""
    frame = tidy(measure_ring(rings=12, keys=20_000, seed=SEED, nodes=50, virtual_nodes=(1, 20, 150)))
    part = frame[frame["statistic"] == "variation"]
    for x, rows in part.groupby("x"):
        measured = rows[rows["kind"] == "measured"].iloc[0]
        law = rows[rows["series"].str.contains("binomial")].iloc[0]["estimate"]
        half = measured["high"] - measured["estimate"]
        assert abs(measured["estimate"] - law) < 3 * half, x


# -- live ---------------------------------------------------------------------------------------------------------


def test_live_answers_are_checked_against_one_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that does not hold what it should is refused, not timed."""
    options = {"sizes": (10, 30), "products": 5, "repeats": 6, "seed": 3}
    points = asyncio.run(measure_live(tmp_path, **options))  # type: ignore[arg-type]
    assert [(point.x, point.n, point.unit) for point in points] == [(10, 6, "ms")] * 2 + [(30, 6, "ms")] * 2
    assert all(0 < point.low <= point.estimate <= point.high for point in points)
    original = scaling._one_sqlite
    monkeypatch.setattr(scaling, "_one_sqlite", lambda vendors, products, seed: original(vendors, products, seed + 1))
    with pytest.raises(MktsimError, match="differs from one SQLite"):
        asyncio.run(measure_live(tmp_path, **options))  # type: ignore[arg-type]


def test_a_fleet_is_used_again_only_for_the_same_numbers(tmp_path: Path) -> None:
    """Same vendors, products and seed: same folder, untouched; another seed: another."""
    first = fleets.ensure_fleet(tmp_path, vendors=5, products=3, seed=1)
    stamp = (first / "market.json").stat().st_mtime_ns
    assert fleets.ensure_fleet(tmp_path, vendors=5, products=3, seed=1) == first
    assert (first / "market.json").stat().st_mtime_ns == stamp
    assert fleets.ensure_fleet(tmp_path, vendors=5, products=3, seed=2) != first


def test_an_interrupted_fleet_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of generating leaves neither a fleet nor its draft."""

    def half(path: Path, **_: Any) -> int:
        path.mkdir()
        (path / "market.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fleets, "generate", half)
    with pytest.raises(KeyboardInterrupt):
        fleets.ensure_fleet(tmp_path, vendors=5, products=3, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_a_fleet_does_not_replace_what_is_there(tmp_path: Path) -> None:
    """A folder with anything in it, a file, a path that cannot be: named errors, nothing touched."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("keep")
    for name, error in (("mine", DuplicateError), ("mine/note", DuplicateError), ("a\0b", StorageError)):
        with pytest.raises(error):
            fleets.make_fleet(tmp_path / name, vendors=1, products=1, seed=1)
    with pytest.raises(StorageError):
        fleets.make_fleet(tmp_path / "mine" / "note" / "below", vendors=1, products=1, seed=1)
    with pytest.raises(InvalidArgumentError):
        fleets.make_fleet(tmp_path / "new", vendors=-1, products=1, seed=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "note"]


def test_the_same_seed_gives_the_same_study() -> None:
    """Everything but wall times repeats, and does not depend on processes."""

    def frame() -> Any:
        points = simulate_fan_out(TINY, seed=5) + measure_ring(rings=6, keys=500, seed=5, virtual_nodes=(1, 10))
        return tidy(points + measure_merges(statements=20, vendors=3, rows=10, seed=5))

    assert frame().equals(frame())


def test_every_seed_that_one_study_takes_the_other_takes() -> None:
    """The largest too, which is above 2**64."""
    seed = 2**128 - 1
    assert simulate_fan_out(TINY, seed=seed)
    assert measure_ring(rings=6, keys=50, seed=seed, virtual_nodes=(1,))
    assert measure_merges(statements=2, vendors=2, rows=5, seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**128, 1.5, True, math.nan, "7"])
def test_a_seed_is_checked_before_any_work(seed: Any, tmp_path: Path) -> None:
    """No fleet is generated for a study that cannot run."""
    rule = r"seed must be a whole number from 0 to 2\*\*128 - 1"
    with pytest.raises(InvalidArgumentError, match=rule):
        scaling.run_study(TINY, seed=seed, fleets=tmp_path)
    with pytest.raises(InvalidArgumentError, match=rule):
        hedging(seed=seed)
    assert list(tmp_path.iterdir()) == []
