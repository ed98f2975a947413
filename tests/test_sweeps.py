"""A sweep warns, once and by name, where the intervals of its means hold the truth less often than they say."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mktsim.errors import InvalidArgumentError, UndercoverageWarning
from mktsim.sim.latency import Constant, Exponential, LogNormal, Pareto
from mktsim.sim.world import Hiccups, World
from mktsim.streams import Streams
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import coverage_deficit
from mktsim.study.sweeps import _doubt, sweep

CALM = Scenario(vendors=1, world=World(service=LogNormal(1.0, 1.2)))
SKEWED = Scenario(vendors=1, world=World(service=Pareto(1.0, 2.1)))


def warned(scenario: Any, **options: Any) -> list[str]:
    """Return what a sweep warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sweep(scenario, seed=1, progress=False, **({"quantiles": ()} | options))
    assert all(each.category is UndercoverageWarning for each in caught)
    assert all(each.filename == __file__ for each in caught)  # The caller's line, not the sweep's.
    return [str(each.message) for each in caught]


def test_one_warning_names_the_scenarios_whose_few_short_replications_cover_less() -> None:
    """Not one a row: of three scenarios the two skewed ones are named, with the plan and a way out."""
    [said] = warned([SKEWED, CALM, SKEWED.replace(vendors=2)], replications=10, requests=10)
    assert said.startswith("the means of 2 of 3 scenarios (numbers 0, 2) are")
    for part in ("10 replications of 10 requests", "skewed", "take more, or longer ones"):
        assert part in said
    [said] = warned(SKEWED, replications=10, requests=10)
    assert said.startswith("the scenario's mean is")
    [said] = warned([SKEWED.replace(vendors=n) for n in range(1, 13)], replications=10, requests=5)
    assert "12 of 12 scenarios (numbers 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)" in said


def test_a_sweep_whose_intervals_hold_does_not_warn() -> None:
    """Requests that are hardly skewed; long replications of exponentials; and where no mean is asked for."""
    assert warned(CALM, replications=10, requests=10) == []
    calm = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    assert warned(calm, replications=20, requests=200) == []
    assert warned(SKEWED, replications=10, requests=10, mean=False, quantiles=(0.5,)) == []
    for wrong in ({"mean": False}, {"mean": 1}, {"mean": None, "quantiles": (0.5,)}):
        with pytest.raises(InvalidArgumentError, match="mean"):
            warned(CALM, replications=10, **wrong)


def test_fewer_than_ten_replications_are_judged_too() -> None:
    """Three of one exponential each cover 7 points less; two of a calm world are wide enough."""
    skewed = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    [said] = warned(skewed, replications=4, requests=3)
    assert "at least 10" in said
    assert warned(CALM, replications=2, requests=5) == []


def test_replications_that_remember_their_start_are_told_as_such() -> None:
    """Pauses make requests depend on each other: then few replications, too, are judged by their memory."""
    paused = Scenario(vendors=1, world=World(service=Constant(1.0), hiccups=Hiccups(100.0, Constant(100.0))))
    [said] = warned(paused, replications=10, requests=20)
    assert "in scenario 0 there are 10 replications of 20 requests" in said
    remembering = np.arange(54.0).reshape(9, 6)
    assert "start still shows" in str(_doubt(remembering, is_steady=False))
    assert _doubt(remembering, is_steady=True) is None


@pytest.mark.parametrize(
    ("skewness", "draw"),
    [
        (2.0, lambda size: Streams(5).generator("draw").standard_exponential(size)),
        (2 / math.sqrt(5), lambda size: Streams(5).generator("draw").standard_gamma(5.0, size) / 5),
    ],
)
@pytest.mark.parametrize("replications", [3, 5, 9])
def test_what_few_replications_lose_is_known(
    skewness: float, draw: Callable[[tuple[int, int]], Any], replications: int
) -> None:
    """The share of Student's intervals that miss the truth, of 100,000, is that of the rule within a half."""
    means = draw((100_000, replications))
    half = stats.t.ppf(0.975, replications - 1) * means.std(axis=1, ddof=1) / math.sqrt(replications)
    lost = 0.95 - float((np.abs(means.mean(axis=1) - 1) <= half).mean())
    z = stats.norm.ppf(0.975)
    first_order = 2 * z * stats.norm.pdf(z) * skewness**2 * (z**4 + 2 * z * z - 3) / 18  # Times 1 / R.
    assert first_order / (replications + 10) == pytest.approx(lost, rel=0.5)
    # The rule is applied to what is estimated from samples: many replications tell the same first order.
    many = means.reshape(-1, 1)[:50_000]
    assert coverage_deficit(many) * len(many) == pytest.approx(first_order, rel=0.1)
