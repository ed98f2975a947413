"""The proof that intervals cover is a proof of the intervals that users get."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mktsim.sim.latency import Exponential
from mktsim.sim.world import World
from mktsim.study import replicate, statistics, sweep
from mktsim.study.coverage import interval_coverage
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval

#: The slowest of three exponentials of mean 1, and its median.
_SLOWEST = Scenario(vendors=3, world=World(service=Exponential(1.0)))
_MEAN_MS = 1 + 1 / 2 + 1 / 3


def test_the_proof_breaks_with_the_interval_that_it_proves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean's interval of a quarter of its width is found out: the coverage is counted from the function itself."""
    size: dict[str, Any] = {"replications": 10, "observations": 200, "utilisation": 0.3, "macro_runs": 200, "seed": 1}
    whole = interval_coverage(**size)
    right = statistics.mean_interval

    def narrow(*arguments: Any, **options: Any) -> Interval:
        found = right(*arguments, **options)
        half = (found.high - found.low) / 8
        return Interval(found.estimate, found.estimate - half, found.estimate + half, found.n, found.confidence)

    monkeypatch.setattr(statistics, "mean_interval", narrow)
    broken = interval_coverage(**size)
    assert whole.honest
    assert not broken.honest
    assert broken.covered.high < 0.6
    assert broken.relative_half_width == pytest.approx(whole.relative_half_width / 4)


def test_replicate_and_sweep_cover_as_often_as_they_say() -> None:
    """The slowest of three exponentials, 40 macro-runs from scenario to interval: its mean and its median."""
    median_ms = -math.log1p(-(0.5 ** (1 / 3)))
    held = {"replicate, mean": 0, "replicate, p50": 0, "sweep, mean": 0, "sweep, p50": 0}
    for seed in range(40):
        found = replicate(_SLOWEST, seed=seed, requests=12, statistic="p50")
        held["replicate, mean"] += _MEAN_MS in found.estimate()
        held["replicate, p50"] += median_ms in found.estimate("p50")
        frame = sweep(
            _SLOWEST, seed=1000 + seed, replications=10, requests=12, quantiles=(0.5,), progress=False
        ).set_index("statistic")
        for statistic, truth in (("mean", _MEAN_MS), ("p50", median_ms)):
            held[f"sweep, {statistic}"] += frame.loc[statistic, "low"] <= truth <= frame.loc[statistic, "high"]
    for name, count in held.items():
        assert count >= 33, name  # 95 % of 40 less three and a half binomial standard errors.
    assert sum(held.values()) < 4 * 40  # They are not so wide that they hold everything.
