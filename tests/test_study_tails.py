"""Histograms that merge, tails side by side, warm-up, and the first question."""

from __future__ import annotations

import math
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
    found = LogHistogram.of(values, relative_error=error).quantile(p)
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
    with pytest.raises(InvalidArgumentError, match="29,956"):
        histogram.quantile_interval(0.9999)


def test_bad_histograms_are_named_errors() -> None:
    """Negative, NaN, no samples, other errors, spans beyond memory."""
    for make in (
        lambda: LogHistogram.of([-1.0]), lambda: LogHistogram.of([math.nan]), lambda: LogHistogram.of([math.inf]),
        lambda: LogHistogram.of([1.0], relative_error=0.9), lambda: LogHistogram.of([]).quantile(0.5),
        lambda: LogHistogram.of([1.0]) + LogHistogram.of([1.0], relative_error=0.1),
        lambda: LogHistogram.of([1e-300, 1e300], relative_error=1e-6), lambda: LogHistogram.from_dict({}),
        lambda: LogHistogram(0.01, 0, np.array([-1])), lambda: LogHistogram.of([1.0]).quantile(1.0),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            make()
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
    with pytest.warns(ExtrapolationWarning, match="1,000,000 leaves is larger than the sample of 100,000"):
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
    axes = charts.fanout_width_chart(frame)
    assert all(each.get_xlabel() for each in axes)
    assert charts.png(axes[0]).startswith(b"\x89PNG")


def test_the_fan_out_question_refuses_what_it_cannot_answer() -> None:
    """Before any work."""
    for arguments in (
        {"vendors": []}, {"vendors": [10, 10]}, {"vendors": "10"}, {"vendors": [0]}, {"widths": [1]},
        {"requests": 5}, {"replications": 5}, {"seed": -1}, {"scenario": 5}, {"executor": 1},
        {"scenario": Scenario(shards=3)},
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            fanout_width(**{"vendors": [10], "widths": [3], "seed": 1, **arguments})  # type: ignore[arg-type]
