"""Questions answered: their tables, seeds, limiting cases, charts, and the command that asks them."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from mktsim.cli import main
from mktsim.errors import InvalidArgumentError
from mktsim.sim.latency import Constant, Exponential
from mktsim.sim.world import World
from mktsim.study import analytic, charts
from mktsim.study.points import tidy
from mktsim.study.questions import hedging, isolation, merging, partial_answers, pipelining
from mktsim.study.questions.hedging import Leaf
from mktsim.study.questions.isolation import ISOLATED, ONE
from mktsim.study.questions.merging import STATEMENTS
from mktsim.study.questions.partial import _keeps
from mktsim.study.questions.pipelining import WAYS, mean_round_trip_ms
from mktsim.study.result import StudyResult
from mktsim.study.scaling import simulation_processes

SEED = 20261122
COLUMNS = list(tidy([]).columns)
SMALL_HEDGING: dict[str, Any] = {"leaves": [1, 20], "delays": [0.0, 0.9], "replications": 10, "seed": SEED}
SMALL_PARTIAL: dict[str, Any] = {
    "vendors": 30,
    "deadlines": [0.5, 0.9],
    "requests": 2,
    "replications": 10,
    "seed": SEED,
}


@pytest.fixture(scope="module")
def hedged() -> StudyResult:
    """A small study of hedges."""
    return hedging(**SMALL_HEDGING)


@pytest.fixture(scope="module")
def partly() -> StudyResult:
    """A small study of partial answers."""
    return partial_answers(**SMALL_PARTIAL)


@pytest.fixture(scope="module")
def piped() -> StudyResult:
    """A small study of pipelining."""
    return pipelining(["same-zone", "multi-region"], vendors=4, requests=3, replications=10, seed=SEED)


@pytest.fixture(scope="module")
def isolated() -> StudyResult:
    """A small study of isolation."""
    return isolation(vendors=[5, 20], products=4, repeats=6, seed=SEED)


@pytest.fixture(scope="module")
def merged() -> StudyResult:
    """A small study of merges."""
    return merging(vendors=[5, 20], statements=60, repeats=6, seed=SEED)


def rows(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Pick rows by column values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame


def one(frame: pd.DataFrame, **where: object) -> float:
    """Return the one estimate of these column values."""
    return float(rows(frame, **where)["estimate"].item())


# --- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hedged", "partly", "piped", "isolated", "merged"])
def test_an_answer_is_a_tidy_table_in_which_intervals_hold_their_estimates(
    name: str, request: pytest.FixtureRequest
) -> None:
    """The columns of `Point`, no row twice, every kind named, n and seed in the caption, numbers in the answer."""
    result: StudyResult = request.getfixturevalue(name)
    frame = result.frame
    assert list(frame.columns) == COLUMNS
    assert set(frame["kind"]) <= {"measured", "simulated", "analytic"}
    assert not frame.duplicated(["series", "kind", "x", "group", "statistic", "unit", "preset"]).any()
    assert np.isfinite(frame["estimate"]).all()
    known = frame[frame["low"].notna()]
    assert ((known["low"] <= known["estimate"]) & (known["estimate"] <= known["high"])).all()
    assert (frame.loc[frame["kind"] == "analytic", "n"] == 0).all()
    assert (frame["seed"] == SEED).all()
    assert str(SEED) in result.caption
    assert "n = " in result.caption
    assert "[" in result.answer
    json.dumps(dict(result.parameters))


def test_one_seed_gives_one_answer(partly: StudyResult, piped: StudyResult) -> None:
    """What is simulated is a function of the seed: the same again, bit for bit; another seed gives another."""
    few: dict[str, Any] = {"leaves": [3], "delays": [0.9], "replications": 10, "seed": SEED}
    first, again = hedging(**few), hedging(**few)
    pd.testing.assert_frame_equal(again.frame, first.frame)
    assert again.answer == first.answer
    pd.testing.assert_frame_equal(partial_answers(**SMALL_PARTIAL).frame, partly.frame)
    other = partial_answers(**{**SMALL_PARTIAL, "seed": SEED + 1}).frame
    assert not np.array_equal(other["estimate"], partly.frame["estimate"])
    worlds = ["same-zone", "multi-region"]
    pd.testing.assert_frame_equal(
        pipelining(worlds, vendors=4, requests=3, replications=10, seed=SEED).frame, piped.frame
    )


@pytest.mark.parametrize(
    ("ask", "arguments"),
    [
        (hedging, {"service": 5}), (hedging, {"utilisation": 0.5}), (hedging, {"utilisation": math.nan}),
        (hedging, {"delays": [1.0]}), (hedging, {"delays": []}), (hedging, {"leaves": [0]}),
        (hedging, {"requests": 298}), (hedging, {"replications": 9}), (hedging, {"executor": 1}),
        (hedging, {"seed": -1}),
        (partial_answers, {"latency": "x"}), (partial_answers, {"deadlines": [0.0]}), (partial_answers, {"vendors": 0}),
        (partial_answers, {"failures": [1.0]}), (partial_answers, {"failures": "0"}), (partial_answers, {"seed": 0.5}),
        (merging, {"vendors": []}), (merging, {"vendors": [3, 3]}), (merging, {"repeats": 5}),
        (merging, {"statements": 0}),
        (isolation, {"vendors": [0]}), (isolation, {"repeats": True}), (isolation, {"folder": "x"}),
        (pipelining, {"worlds": "same-zone"}), (pipelining, {"worlds": []}), (pipelining, {"worlds": {"a": 1}}),
        (pipelining, {"vendors": 0}), (pipelining, {"worlds": ["no such preset"]}),
    ],
)  # fmt: skip
def test_a_question_refuses_what_it_cannot_answer(ask: Any, arguments: dict[str, Any]) -> None:
    """Before any work, by the name of what is wrong."""
    with pytest.raises(InvalidArgumentError):
        ask(**{"seed": 1, **arguments})


# --- hedging -----------------------------------------------------------------------------------------------------


def test_simulated_hedges_follow_the_law_of_the_minimum(hedged: StudyResult) -> None:
    """Of the p50s and p99s at least 80 % hold (1 - S(t) S(t - d))^n, and every p50 is within 5 % of it."""
    frame = hedged.frame[hedged.frame["series"] != "tied"]
    keys = ["series", "x", "group", "statistic"]
    both = frame[frame["kind"] == "simulated"].merge(frame[frame["kind"] == "analytic"], on=keys, suffixes=("", "_law"))
    both = both[both["statistic"].isin(["p50", "p99"])]
    assert len(both) == 2 * 2 * 3
    held = (both["low"] <= both["estimate_law"]) & (both["estimate_law"] <= both["high"])
    assert held.mean() >= 0.8
    medians = both[both["statistic"] == "p50"]
    assert (abs(medians["estimate"] / medians["estimate_law"] - 1) < 0.05).all()


def test_copies_are_as_many_as_leaves_are_late(hedged: StudyResult) -> None:
    """S(d) of the leaves under the load that everybody's hedging makes; tied copies are rarely both served."""
    for series, x in (("hedged", 100.0), ("hedged", 10.0), ("tied", 10.0)):
        for statistic in ("sent", "extra work"):
            found = rows(hedged.frame, series=series, statistic=statistic, kind="simulated")
            law = rows(hedged.frame, series=series, statistic=statistic, kind="analytic")
            assert np.isclose(found["x"], x).any()
            at, exact = (part[np.isclose(part["x"], x)].iloc[0] for part in (found, law))
            half = max(at["high"] - at["estimate"], 0.05)
            assert abs(at["estimate"] - exact["estimate"]) < 3 * half, (series, x, statistic)
    work = hedged.frame[hedged.frame["statistic"].eq("extra work") & hedged.frame["kind"].eq("simulated")]
    by = work.set_index(["series", work["x"].round()])["estimate"]
    assert by["hedged", 100] == 100
    assert by["tied", 10] < 0.2 * by["hedged", 10]


def test_an_infinite_delay_is_no_hedge_and_no_delay_is_the_better_of_two() -> None:
    """Limiting cases of the law, on leaves that others do not load."""
    leaf = Leaf(Exponential(1.0), 0.0, 1.0)
    for p in (0.5, 0.99):
        never = leaf.hedged_quantile(p, 10, math.inf)
        assert never == pytest.approx(leaf.quantile(analytic.leaf_quantile(p, 10)), rel=1e-6)
        at_once = leaf.hedged_quantile(p, 1, 0.0)  # The minimum of two exponentials is one of half the mean.
        assert at_once - 0.4 == pytest.approx(-math.log1p(-p) / 2, rel=1e-6)
        late = leaf.hedged_quantile(p, 10, leaf.quantile(1 - 1e-12))
        assert late == pytest.approx(never, rel=1e-9)
    assert leaf.quantile(1.0) == math.inf
    assert leaf.both_served(0.0) == 1.0  # Without work of others both begin at once.
    assert leaf.both_served(0.3) == 0.0


def test_a_leaf_that_never_varies_gains_nothing_by_a_hedge() -> None:
    """Copies are sent and gain nothing: the best is not to hedge, or to send none."""
    result = hedging(Constant(1.0), utilisation=0.0, leaves=[5], delays=[0.5], replications=10, seed=1)
    times = result.frame[result.frame["statistic"].isin(["p50", "p99"])]
    assert np.allclose(times["estimate"], 1.4)
    assert one(result.frame, statistic="p99 saved", series="hedged") == 0
    assert "not to hedge" in result.answer


def test_load_that_hedges_make_bounds_what_they_gain(hedged: StudyResult) -> None:
    """With everybody hedging at once, the machines work twice as much: waiting for the p90 is better."""
    p99 = rows(hedged.frame, statistic="p99", kind="simulated", group="20 leaves", series="hedged")
    by = p99.set_index(p99["x"].round(6))["estimate"]
    assert by[10.0] < by[100.0]
    used = rows(hedged.frame, statistic="utilisation", series="hedged").set_index("x")["estimate"]
    assert used[100.0] == pytest.approx(0.6)
    best = rows(hedged.frame, statistic="best delay", group="20 leaves", series="hedged")
    regret = rows(hedged.frame, statistic="regret", group="20 leaves", series="hedged")
    assert best["estimate"].item() > 0
    assert regret["low"].item() == 0 <= regret["high"].item()
    assert rows(hedged.frame, statistic="p99 saved", group="20 leaves", series="hedged")["low"].item() > 0


def test_what_the_best_delay_saves_is_told_for_all_delays_at_once(hedged: StudyResult) -> None:
    """The same delay under the same draws saves the same, with a wider interval where it was picked of two."""
    where = {"series": "hedged", "group": "20 leaves"}
    assert rows(hedged.frame, statistic="best delay", **where)["x"].item() == pytest.approx(10)
    alone = hedging(**{**SMALL_HEDGING, "leaves": [20], "delays": [0.9]})
    wide, narrow = (rows(each.frame, statistic="p99 saved", **where).iloc[0] for each in (hedged, alone))
    assert wide["estimate"] == pytest.approx(narrow["estimate"])
    # Of Student's t with 9 degrees of freedom: 98.75 % to 97.5 %.
    assert wide["high"] - wide["low"] > 1.15 * (narrow["high"] - narrow["low"])
    assert "for all delays at once" in hedged.answer
    assert "for all delays at once" in hedged.caption


# --- partial answers ---------------------------------------------------------------------------------------------


def test_coverage_is_the_deadlines_share_of_the_vendors_that_are_up(partly: StudyResult) -> None:
    """F(d) (1 - f), within four half-widths; COUNT lacks what coverage lacks; every stated guarantee held."""
    frame = partly.frame
    for statistic in ("coverage", "error of COUNT", "recall of top-10"):
        found = rows(frame, statistic=statistic, kind="simulated").set_index(["series", "x"])
        law = rows(frame, statistic=statistic, kind="analytic").set_index(["series", "x"])["estimate"]
        assert len(found) == 4 == len(law)
        assert (abs(found["estimate"] - law) < 2 * (found["high"] - found["low"]) + 1).all(), statistic
    held = frame[frame["statistic"] == "guarantee held"]
    assert (held["estimate"] == 100).all()
    assert held["n"].sum() > 100
    assert held["group"].str.contains("lower bound").any()


def test_with_time_enough_a_partial_answer_is_the_whole_one() -> None:
    """A deadline that every vendor keeps: all are covered, nothing is off, nothing is guaranteed but completeness."""
    frame = partial_answers(
        Exponential(1.0), vendors=10, deadlines=[1 - 1e-12], failures=[0.0], requests=1, replications=10, seed=2
    ).frame
    assert one(frame, statistic="coverage", kind="simulated") == 100
    for name in ("COUNT", "SUM", "AVG"):
        assert one(frame, statistic=f"error of {name}", kind="simulated") == 0
    assert one(frame, statistic="recall of filter") == 100
    assert (frame["series"] != "guarantee").all()


def test_a_bound_is_tried_on_the_full_answer() -> None:
    """What was guaranteed and does not hold would be found."""
    assert _keeps("lower bound", 3, 4)
    assert not _keeps("lower bound if none is negative", 5, 4)
    assert not _keeps("upper bound", 3, 4)
    assert not _keeps("exact", 3, 4)
    assert _keeps("none", 9, 4)
    assert _keeps("exact", None, 4)


# --- merging -----------------------------------------------------------------------------------------------------


def test_the_exact_merge_costs_bytes_and_the_naive_one_is_wrong(merged: StudyResult) -> None:
    """Every statement is measured at every size; AVG is wrong at 20 vendors, a filter right; no exact one is wrong."""
    frame = merged.frame
    right = rows(frame, statistic="right").set_index(["series", "group", "x"])["estimate"]
    assert len(right) == 2 * 2 * len(STATEMENTS)
    assert (right["exact merge"] == 1).all()
    assert right["naive merge", "AVG by group", 20] == 0
    assert right["naive merge", "filter", 20] == 1
    assert (rows(frame, statistic="bytes", series="exact over naive")["estimate"] >= 1).all()
    sizes = rows(frame, statistic="bytes a vendor").set_index(["series", "group", "x"])["estimate"]
    answers = rows(frame, statistic="answer bytes a vendor").set_index(["series", "group", "x"])["estimate"]
    assert (answers > 0).all()
    assert (answers < sizes).all()
    ratio = one(frame, statistic="bytes", group="filter", x=20)
    assert ratio == pytest.approx(sizes["exact merge", "filter", 20] / sizes["naive merge", "filter", 20])
    shares = rows(frame, statistic="share right", group="all").set_index("series")
    assert shares.loc["exact merge", "estimate"] == 1
    assert shares.loc["naive merge", "estimate"] < 1
    assert (shares["n"] == 60).all()


def test_bytes_are_a_function_of_the_seed(merged: StudyResult) -> None:
    """Times are this machine's; what travels is not."""
    again = merging(vendors=[5, 20], statements=60, repeats=6, seed=SEED).frame
    for statistic in ("bytes a vendor", "share right", "right"):
        one_, two = (rows(each, statistic=statistic)["estimate"].to_numpy() for each in (again, merged.frame))
        assert np.array_equal(one_, two), statistic


# --- isolation ---------------------------------------------------------------------------------------------------


def test_isolation_is_measured_beside_one_file_with_the_same_rows(isolated: StudyResult) -> None:
    """Both series at both sizes for every class; small databases take more bytes than rows of one."""
    frame = isolated.frame
    times = rows(frame, statistic="time", unit="ms")
    assert len(times) == 2 * 2 * 4
    assert (times["low"] > 0).all()
    for n in (5, 20):
        size = rows(frame, statistic="bytes a vendor", x=n).set_index("series")["estimate"]
        assert size[ISOLATED] > size[ONE] > 0
        assert one(frame, statistic="bytes", x=n) == pytest.approx(size[ISOLATED] / size[ONE])


# --- pipelining --------------------------------------------------------------------------------------------------


def test_round_trips_are_counted_and_times_follow_them(piped: StudyResult) -> None:
    """One by one takes 2 m round trips exactly in the mean; together no less than the slowest one's mean."""
    frame = piped.frame
    trips = rows(frame, statistic="round trips").groupby("series")["estimate"].agg(["min", "max"])
    assert {way: row["min"] for way, row in trips.iterrows()} == {
        "one by one": 8, "pipelined, one by one": 4, "gathered": 8, "pipelined": 4,
    }  # fmt: skip
    assert (trips["min"] == trips["max"]).all()
    law = rows(frame, kind="analytic").set_index(["preset", "group"])["estimate"]
    for row in rows(frame, kind="simulated").to_dict("records"):
        exact = law[row["preset"], row["series"]]
        if row["series"].endswith("one by one"):
            assert abs(row["estimate"] - exact) < 2 * (row["high"] - row["low"]), row
        else:
            assert row["high"] >= exact, row
    sizes = rows(frame, statistic="bytes").groupby("series")["estimate"].first()
    assert sizes["pipelined"] < sizes["gathered"]


def test_at_distance_zero_pipelining_saves_no_time_but_round_trips() -> None:
    """Where nothing takes time all ways take none; there is nothing to draw."""
    result = pipelining({"here": World()}, vendors=3, requests=1, replications=10, seed=1)
    assert (rows(result.frame, statistic="time")["estimate"] == 0).all()
    assert one(result.frame, statistic="round trips", series="pipelined") == 3
    with pytest.raises(InvalidArgumentError, match="distance 0"):
        charts.pipelining_chart(result.frame)


def test_a_constant_distance_gives_times_without_scatter() -> None:
    """With links of 5 ms every way takes its depth times 10 ms, to the last bit of a tick."""
    world = World(link_out=Constant(5.0), link_back=Constant(5.0))
    assert mean_round_trip_ms(world) == 10
    frame = pipelining({"constant": world}, vendors=3, requests=1, replications=10, seed=1).frame
    for way, (_, depth) in WAYS.items():
        assert one(frame, statistic="time", kind="simulated", series=way) == pytest.approx(10 * depth(3), abs=1e-5)


# --- charts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "draw", "labelled"),
    [
        ("hedged", charts.hedging_charts, ("simulated", "analytic")),
        ("partly", charts.partial_chart, ("simulated", "analytic")),
        ("piped", charts.pipelining_chart, ("simulated", "analytic", "measured")),
        ("isolated", charts.isolation_chart, ("measured",)),
        ("merged", charts.merging_charts, ("measured",)),
    ],
)
def test_charts_name_their_axes_units_and_where_numbers_come_from(
    name: str, draw: Any, labelled: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """Axes with labels; measured, simulated and analytic are written; marker or line differ; the caption stands."""
    result: StudyResult = request.getfixturevalue(name)
    drawn = draw(result.frame)
    figures: list[list[Axes]] = list(drawn.values()) if isinstance(drawn, dict) else [drawn]
    written = ""
    for axes in figures:
        charts.annotate(axes, title="A title", caption=result.caption)
        for ax in axes:
            assert isinstance(ax, Axes)
            assert ax.get_xlabel()
            assert ax.get_ylabel() or ax.get_yticklabels()
            written += ax.get_xlabel() + " ".join(ax.get_legend_handles_labels()[1])
            looks = [
                (line.get_marker(), line.get_linestyle(), line.get_label())
                for line in ax.get_lines() if not str(line.get_label()).startswith(("_", "analytic"))
            ]  # fmt: skip
            assert len({look[:2] for look in looks}) == len(looks), looks  # Told apart without colour.
        figure = axes[0].figure
        assert any("n = " in " ".join(text.get_text().split()) for text in figure.texts)
        assert charts.png(axes[0]).startswith(b"\x89PNG")
        for ax in axes:
            ticks = [label.get_text() for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
            assert not any("10^" in text or "mathdefault" in text for text in ticks)
    assert all(kind in written for kind in labelled)


def test_a_chart_refuses_a_table_of_another_kind() -> None:
    """The message names the columns that are missing."""
    for draw in (
        charts.hedging_charts, charts.partial_chart, charts.pipelining_chart, charts.isolation_chart,
        charts.merging_charts,
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match="series"):
            draw(pd.DataFrame({"x": [1.0]}))


# --- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["hedging", "isolation", "merging", "partial", "pipelining"])
def test_each_question_has_a_sub_command(
    question: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """``study NAME --json``: the answer as JSON on stdout, chart and table in the folder.

    The study itself ran before; what is tested is all around it, so the command answers with that result.
    """
    from importlib import import_module

    module = import_module(f"mktsim.study.questions.{question}")
    fixture = {"hedging": "hedged", "partial": "partly", "pipelining": "piped"}.get(question)
    small: StudyResult = request.getfixturevalue(fixture or {"isolation": "isolated", "merging": "merged"}[question])
    asked: dict[str, Any] = {}

    def ask(**options: Any) -> StudyResult:
        asked.update(options)
        return small

    monkeypatch.setattr(module, "partial_answers" if question == "partial" else question, ask)
    assert main(["study", question, "--quick", "--json", "--seed", "7", "--out", str(tmp_path)]) == 0
    assert asked["seed"] == 7
    found = json.loads(capsys.readouterr().out)
    assert found["question"] == small.question
    assert found["answer"] == small.answer
    assert len(found["rows"]) == len(small.frame)
    assert (tmp_path / f"{question}.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / f"{question}.csv")
    assert list(table.columns) == COLUMNS


def test_processes_change_nothing() -> None:
    """Worker processes, as the command has them, give the table that one process gives."""
    asks: list[Any] = [
        partial(partial_answers, vendors=5, deadlines=[0.9], requests=1, replications=10, seed=7),
        partial(pipelining, ["same-zone"], vendors=2, requests=1, replications=10, seed=7),
    ]
    with simulation_processes(2) as processes:
        for ask in asks:
            pd.testing.assert_frame_equal(ask(executor=processes).frame, ask().frame)
