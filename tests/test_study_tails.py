"""Histograms that merge, tails side by side, warm-up, and the first question."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mktsim.errors import ExtrapolationWarning, InvalidArgumentError
from mktsim.sim.latency import LogNormal, Pareto
from mktsim.streams import Streams
from mktsim.study import StudyResult, charts
from mktsim.study.histograms import LogHistogram
from mktsim.study.questions import fanout_width
from mktsim.study.queues import service_ends
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import mser5, mser5_statistic, quantile_interval
from mktsim.study.tails import fit_tails

_durations = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e9)), max_size=60)
_errors = st.sampled_from((0.001, 0.01, 0.2))


# --- histograms ----------------------------------------------------------------------------------------------------


@given(_durations, _durations, _durations, _errors)
def test_merging_is_associative_commutative_and_counts_all(
    a: list[float], b: list[float], c: list[float], error: float
) -> None:
    """Whatever the order, the merge of the parts is the histogram of the whole; and it survives plain data."""
    x, y, z = (LogHistogram.of(values, relative_error=error) for values in (a, b, c))
    whole = LogHistogram.of([*a, *b, *c], relative_error=error)
    assert (x + y) + z == x + (y + z) == z + x + y == whole
    assert whole.n == len(a) + len(b) + len(c)
    assert x + LogHistogram.of([], relative_error=error) == x
    assert LogHistogram.from_dict(whole.to_dict()) == whole


@given(_durations.filter(bool), st.floats(0.001, 0.999), _errors)
def test_a_histograms_quantile_is_within_its_relative_error(values: list[float], p: float, error: float) -> None:
    """Of the sample of rank ceil(p n), for any durations."""
    exact = sorted(values)[max(1, math.ceil(p * len(values))) - 1]
    found = LogHistogram.of(values, relative_error=error).sample_quantile(p)
    assert abs(found - exact) <= error * exact * (1 + 1e-9)


def test_a_histograms_interval_holds_the_samples_own() -> None:
    """Wider by the relative error, no more; refused from too few samples, naming the number."""
    x = np.random.default_rng(1).lognormal(0, 1, 5000)
    histogram = LogHistogram.of(x)
    for p in (0.05, 0.5, 0.99):
        exact, found = quantile_interval(x, p), histogram.quantile_interval(p)
        assert found.low <= exact.low <= exact.high <= found.high
        assert found.low > exact.low * 0.97
        assert found.high < exact.high * 1.03
        assert histogram.quantile(p) == histogram.sample_quantile(p) == found.estimate
    with pytest.raises(InvalidArgumentError, match="29,956"):
        histogram.quantile_interval(0.9999)


def test_a_histogram_refuses_a_quantile_that_its_samples_cannot_bear() -> None:
    """As the interval does, naming the number; the sample's own quantile is there for who asks for it."""
    for n, p, needed in ((3, 0.99999, "299,572"), (298, 0.99, "299"), (5, 0.5, "6"), (0, 0.5, "6"), (298, 0.01, "299")):
        histogram = LogHistogram.of(np.arange(1.0, n + 1))
        with pytest.raises(InvalidArgumentError, match=f"at least {needed} samples, not {n}"):
            histogram.quantile(p)
        if n:
            assert histogram.sample_quantile(p) == pytest.approx(max(1, math.ceil(p * n)), rel=0.01)
    assert LogHistogram.of(np.arange(1.0, 300)).quantile(0.99) == pytest.approx(297, rel=0.01)
    assert LogHistogram.of([1.0] * 300)._repr_html_().count("too few") == 1  # Of p50, p90, p99 and p99.9.
    assert LogHistogram.of([1.7e308]).sample_quantile(0.5) == pytest.approx(1.7e308, rel=0.06)


def test_bad_histograms_are_named_errors() -> None:
    """Negative, NaN, no samples, other errors, spans beyond memory."""
    for make in (
        lambda: LogHistogram.of([-1.0]), lambda: LogHistogram.of([math.nan]), lambda: LogHistogram.of([math.inf]),
        lambda: LogHistogram.of([1.0], relative_error=0.9), lambda: LogHistogram.of([]).quantile(0.5),
        lambda: LogHistogram.of([1.0]) + LogHistogram.of([1.0], relative_error=0.1),
        lambda: LogHistogram.of([1e-300, 1e300], relative_error=1e-6), lambda: LogHistogram.from_dict({}),
        lambda: LogHistogram(0.01, 0, np.array([-1])), lambda: LogHistogram.of([1.0]).quantile(1.0),
        lambda: LogHistogram.of([1.0]).sample_quantile(0.0), lambda: LogHistogram.of([1.0]).sample_quantile("x"),
        lambda: LogHistogram.of([]).sample_quantile(0.5), lambda: LogHistogram.of(["a"]),
        lambda: LogHistogram.of(["1"]), lambda: LogHistogram.of([[1.0], [1.0, 2.0]]), lambda: LogHistogram.of(None),
        lambda: LogHistogram.of([1j]), lambda: LogHistogram.of([1.0], relative_error="x"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            make()
    plain = LogHistogram.of([0.0, 1.0, 2.0]).to_dict()
    assert LogHistogram.from_dict(plain).to_dict() == plain
    for changes in (
        {"counts": ["a"]}, {"counts": "ab"}, {"counts": [1.7, 2.9]}, {"counts": [1.0]}, {"counts": [math.nan]},
        {"counts": [True]}, {"counts": [[1]]}, {"counts": None}, {"counts": 5}, {"counts": [1 << 63]},
        {"counts": [1 << 62, 1 << 62]}, {"counts": [1 << 70]}, {"zeros": "x"}, {"zeros": math.nan}, {"zeros": 1.5},
        {"zeros": -1}, {"zeros": True}, {"zeros": None}, {"first": "x"}, {"first": math.nan}, {"first": 0.5},
        {"first": 10**9}, {"first": -(10**9)}, {"first": 1 << 70}, {"first": True}, {"relative_error": "x"},
        {"relative_error": math.nan}, {"relative_error": None}, {"more": 1},
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            LogHistogram.from_dict({**plain, **changes})
    with pytest.raises(ValueError, match="read-only"):
        LogHistogram.of([1.0]).counts[0] = 5


# --- tails ---------------------------------------------------------------------------------------------------------

_LEAVES = {"lognormal": LogNormal(1.0, 10.2407), "Pareto": Pareto(1.0, 2.5)}


def _leaf(name: str, n: int) -> Any:
    return _LEAVES[name].sample(Streams(5).uniform(name, 0, n))


@pytest.mark.parametrize("family", ["lognormal", "Pareto"])
def test_the_right_family_reads_a_million_leaves_and_the_wrong_one_does_not(family: str) -> None:
    """The medians of the maximum, 125 and 291, from 100,000 leaves: only the family that made them covers."""
    fit = fit_tails(_leaf(family, 100_000), tail_share=0.02 if family == "Pareto" else 0.1)
    truth = _LEAVES[family].quantile(0.5**1e-6)
    assert truth == pytest.approx(125 if family == "lognormal" else 291, abs=1)
    with pytest.warns(
        ExtrapolationWarning,
        match="0.069 of the 100,000 samples do.* measure 4,321,929,",
    ):
        frame = fit.fleet(1_000_000).set_index("family")
    assert frame.loc[family, "low_ms"] < truth < frame.loc[family, "high_ms"]
    other = "Pareto" if family == "lognormal" else "lognormal"
    assert not frame.loc[other, "low_ms"] < truth < frame.loc[other, "high_ms"]
    assert frame.loc["empirical", "estimate_ms"] == fit.sorted_ms[-1]
    assert frame["beyond_sample"].all()
    goodness = fit.goodness().set_index("family")["distance_root_n"]
    assert goodness[family] < 1.63  # The 1 % point of Kolmogorov's law, which fitted parameters only lower.


def test_a_fleet_within_the_sample_needs_no_warning() -> None:
    """All three readings agree where the data reach."""
    frame = fit_tails(_leaf("lognormal", 100_000)).fleet(100).set_index("family")
    truth = _LEAVES["lognormal"].quantile(0.5**0.01)
    assert frame["estimate_ms"].to_numpy() == pytest.approx(truth, rel=0.1)
    assert not frame["beyond_sample"].any()
    for family in ("empirical", "lognormal"):
        assert frame.loc[family, "low_ms"] < truth < frame.loc[family, "high_ms"]


@pytest.mark.parametrize(
    ("leaves", "p", "warns"),
    [
        (10_000, 0.999, True), (10, 0.9999999, True), (1_000_000, 0.5, True), (20_000, 0.5, True),  # 0.7 samples.
        (6_000, 0.5, True), (4_000, 0.5, False), (30_000, 0.01, False), (10, 0.99, False), (1, 0.001, False),
        (10**15, 0.5, True),
    ],
)  # fmt: skip
def test_a_quantile_too_rare_for_the_sample_is_read_with_a_warning(leaves: int, p: float, warns: bool) -> None:
    """Not the fleet's size decides but the share of leaves that exceed it: 3 of 20,000 samples are needed at least."""
    fit = fit_tails(_leaf("lognormal", 20_000))
    with pytest.warns(ExtrapolationWarning, match="the family that is assumed decides") if warns else nullcontext():
        frame = fit.fleet(leaves, p).set_index("family")
    assert frame.loc["empirical", "beyond_sample"] == warns
    assert frame["beyond_sample"].all() or not warns
    assert np.isnan(frame.loc["empirical", ["low_ms", "high_ms"]].to_numpy(float)).all() == warns


def test_the_samples_themselves_have_an_interval_that_assumes_no_family() -> None:
    """Between two order statistics, the very ones of `quantile_interval`; it covers whatever the leaf's law is."""
    leaf, held = _LEAVES["Pareto"], 0
    for number in range(200):
        fit = fit_tails(leaf.sample(Streams(number).uniform("leaf", 0, 1_000)))
        found = fit.fleet(50, 0.6).set_index("family").loc["empirical"]
        exact = quantile_interval(fit.sorted_ms, 0.6**0.02)
        assert (found["low_ms"], found["high_ms"]) == (exact.low, exact.high)
        assert found["low_ms"] <= found["estimate_ms"] <= found["high_ms"]
        held += found["low_ms"] <= leaf.quantile(0.6**0.02) <= found["high_ms"]
    assert held >= (0.95 - 3 * math.sqrt(0.05 * 0.95 / 200)) * 200


def test_bad_tails_are_named_errors() -> None:
    """Too few, equal, not positive; fleets that are none."""
    good = np.arange(1.0, 101.0)
    for values in (good[:20], np.ones(100), np.zeros(100), -good, [math.nan] * 100):
        with pytest.raises(InvalidArgumentError):
            fit_tails(values)
    for call in (lambda: fit_tails(good).fleet(0), lambda: fit_tails(good).fleet(5, 1.0),
                 lambda: fit_tails(good, tail_share=1.5), lambda: fit_tails(good).beyond(0.0)):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            call()


# --- warm-up -------------------------------------------------------------------------------------------------------


def test_the_warm_up_of_a_queue_is_found_and_drawn() -> None:
    """The mean of 200 queues that start empty rises; MSER-5 cuts there, at its statistic's least, and is drawn."""
    generator = np.random.default_rng(1)
    arrivals = np.cumsum(generator.exponential(1 / 0.9, (200, 4000)), axis=1)
    mean = (service_ends(arrivals, generator.exponential(1, arrivals.shape)) - arrivals).mean(axis=0)
    cut = mser5(mean)
    assert 100 <= cut <= 1500
    statistic = mser5_statistic(mean)
    assert statistic[cut // 5] == statistic[: len(statistic) // 2].min()
    axes = charts.warm_up_chart(mean, title="warm-up")
    assert f"{cut:,} observations" in str([text.get_text() for text in axes.get_legend().get_texts()])
    assert "ms" in axes.get_ylabel()
    assert charts.png(axes).startswith(b"\x89PNG")


# --- the first question --------------------------------------------------------------------------------------------


def test_the_fan_out_question_is_answered_with_intervals_and_regret() -> None:
    """Flat is best for few vendors, a tree for many, on machines of one zone; the lower bound is below all."""
    result = fanout_width(vendors=[10, 100, 3000], widths=[6, 32, 100], requests=320, seed=1)
    assert isinstance(result, StudyResult)
    frame = result.frame
    best = frame[frame["statistic"] == "best width"].set_index("x")
    assert best.loc[10, "series"] == "flat"
    assert best.loc[3000, "series"] in ("width 32", "width 100")
    assert best.loc[3000, "series"] in best.loc[3000, "group"]
    regret = frame[frame["statistic"] == "regret"]
    assert (regret["low"] == 0).all()
    assert (regret["high"] >= 0).all()
    p99 = frame[frame["statistic"] == "p99"].pivot(index="x", columns="series", values="estimate")
    assert (p99["slowest leaf (lower bound)"] < p99["flat"]).all()
    assert p99["flat"].is_monotonic_increasing
    assert p99.loc[3000, "flat"] > 3 * p99.loc[3000, "width 32"]
    assert "flat" in result.answer
    assert "regret" in result.answer
    # The tree was picked among three: its interval is that of 98.3 %, for which 320 requests are too few at the p99.
    assert "(best of 3 widths, whose interval needs 408 requests, not 320)" in result.answer
    axes = charts.fanout_width_chart(frame)
    assert all(each.get_xlabel() for each in axes)
    assert charts.png(axes[0]).startswith(b"\x89PNG")


def test_the_best_width_is_chosen_by_the_p99_where_replications_bear_one() -> None:
    """The question is about the p99: 299 requests in each of 10 replications; one fewer, and the mean must do."""
    size: dict[str, Any] = {"vendors": [5], "widths": [3], "replications": 10, "seed": 1}
    for requests, judged in ((2_990, "p99"), (2_980, "mean")):
        result = fanout_width(requests=requests, **size)
        assert f"5: flat by the {judged} (regret at most" in result.answer


def test_the_fan_out_question_refuses_what_it_cannot_answer() -> None:
    """Before any work."""
    for arguments in (
        {"vendors": []}, {"vendors": [10, 10]}, {"vendors": "10"}, {"vendors": [0]}, {"widths": [1]},
        {"requests": 5}, {"replications": 5}, {"seed": -1}, {"scenario": 5}, {"executor": 1},
        {"scenario": Scenario(shards=3)},
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            fanout_width(**{"vendors": [10], "widths": [3], "seed": 1, **arguments})  # type: ignore[arg-type]
