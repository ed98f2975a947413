"""What the requests of one replication share, and that no interval takes them for independent."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from mktsim.errors import InvalidArgumentError, UndercoverageWarning
from mktsim.fanout.policy import Breaker, ScatterPolicy
from mktsim.sim.conditions import ColdStart, Geography, Hiccups, RequestLimit, Route, Zone
from mktsim.sim.faults import SlowDisk
from mktsim.sim.latency import Constant, Exponential, LogNormal
from mktsim.sim.world import World
from mktsim.study import replicate, simulate, sweep
from mktsim.study.replication import dependence, requests_are_independent, starts_steady
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import quantile_interval, replication_interval, sectioned_quantile_interval

_NEAR, _FAR = Exponential(1.0), Exponential(50.0)


def _geography(far_share: float = 1.0, far: Any = _FAR, within: Any = _NEAR) -> Geography:
    zones = (Zone("a", "a", 9.0), Zone("b", "b", far_share))
    routes = (Route(("a", "a"), _NEAR), Route(("a", "b"), far), Route(("b", "b"), within))
    return Geography(zones, routes, home="a")


def _placed(**changes: Any) -> Scenario:
    """Return five vendors, each of which stands near with nine chances of ten, and else fifty times as far."""
    return Scenario(vendors=5, world=World(geography=_geography(**changes)))


def _median_ms() -> float:
    """Integrate the zones out: each vendor's way there and back is near or far."""

    def excess(t: float) -> float:
        one = 0.9 * stats.gamma.cdf(t, 2) + 0.1 * stats.gamma.cdf(t, 2, scale=50)
        return float(one**5 - 0.5)

    return float(optimize.brentq(excess, 1e-6, 1e3))


def test_quantiles_of_a_geography_cover_as_often_as_they_say() -> None:
    """Zones are drawn once a replication: 40 macro-runs of `replicate` cover, which pooled requests do not by far."""
    truth, held, pooled, runs = _median_ms(), 0, 0, 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndercoverageWarning)  # Of means, which are not looked at.
        for seed in range(runs):
            found = replicate(_placed(), seed=seed, requests=12)
            interval = found.estimate("p50")
            assert interval.n == 10
            held += truth in interval
            pooled += truth in quantile_interval(found.sojourn_time_ms.ravel(), 0.5)
    assert held >= 33  # 95 % less three and a half binomial standard errors.
    assert pooled < 24


def test_shares_of_replications_make_the_interval_of_a_quantile() -> None:
    """Replications of two kinds, 1,000 macro-runs: the interval covers; and of alike ones it is an ordinary one."""
    generator = np.random.default_rng(20261128)
    held, runs = {"two kinds": 0, "one kind": 0}, 1000
    truth = optimize.brentq(lambda t: 0.6 * stats.norm.cdf(t) + 0.4 * stats.norm.cdf(t - 40) - 0.5, -5, 50)
    for _ in range(runs):
        noise = generator.normal(size=(10, 20))
        kinds = 40.0 * (generator.random((10, 1)) < 0.4)
        held["two kinds"] += truth in sectioned_quantile_interval(noise + kinds, 0.5)
        held["one kind"] += 0.0 in sectioned_quantile_interval(noise, 0.5)
    for name, count in held.items():
        assert count >= 0.925 * runs, name
    assert held["one kind"] <= 0.985 * runs


def test_an_interval_of_shares_ends_at_samples_and_holds_its_estimate() -> None:
    """By hand: replications that are alike differ by no share; equal values are passed at once; order is nothing."""
    alike = np.tile(np.arange(20.0), (10, 1))
    assert (sectioned_quantile_interval(alike, 0.5).low, sectioned_quantile_interval(alike, 0.5).high) == (9.0, 10.0)
    same = sectioned_quantile_interval(np.full((10, 20), 3.0), 0.5)
    assert (same.low, same.estimate, same.high) == (3.0, 3.0, 3.0)
    x = np.random.default_rng(1).lognormal(size=(12, 100))
    found = sectioned_quantile_interval(x, 0.9)
    assert found.low < found.estimate < found.high
    assert {found.low, found.high} <= set(x.ravel().tolist())
    assert sectioned_quantile_interval(x[::-1, ::-1], 0.9) == found
    # Slow and plain: for each sample the share of each replication, and Student's interval of their mean.
    t, inside = stats.t.ppf(0.975, 11), []
    for value in np.sort(x.ravel()):
        shares = (x <= value).mean(axis=1)
        if abs(shares.mean() - 0.9) <= t * shares.std(ddof=1) / math.sqrt(12):
            inside.append(value)
    assert (found.low, found.high) == (inside[0], np.sort(x[x > inside[-1]])[0])


def test_zones_count_only_where_it_matters_who_stands_where() -> None:
    """One zone with hosts, or ways that are all alike: nothing is shared; a tree has ways between zones, too."""
    assert not requests_are_independent(_placed())
    assert requests_are_independent(_placed(far_share=0.0))
    assert requests_are_independent(_placed(far=_NEAR))
    assert requests_are_independent(_placed(far=_NEAR, within=_FAR))
    assert not requests_are_independent(_placed(far=_NEAR, within=_FAR).replace(fanout=2))
    wide = Geography(
        (Zone("a", "a"), Zone("b", "b")),
        (Route(("a", "a"), _NEAR), Route(("a", "b"), _NEAR, bandwidth_mbps=1.0), Route(("b", "b"), _NEAR)),
        home="a",
    )
    assert not requests_are_independent(Scenario(vendors=5, world=World(geography=wide)))


@pytest.mark.parametrize(
    ("world", "policy", "reason"),
    [
        ({"faults": (SlowDisk(share=0.5, added_ms=5.0),)}, None, "faults"),
        ({"limit": RequestLimit(queue=3)}, None, "limits"),
        ({"hiccups": Hiccups(100.0, Constant(5.0))}, None, "pauses"),
        ({"cold_start": ColdStart(Constant(5.0), idle_ms=10.0)}, None, "cold"),
        ({}, ScatterPolicy(hedge_quantile=0.95), "observed"),
        ({}, ScatterPolicy(attempt_timeout_s=0.01, retries=1), "budget"),
        ({}, ScatterPolicy(attempt_timeout_s=0.01, breaker=Breaker()), "breaker"),
        ({"cold_start": ColdStart(Constant(5.0), share=0.1), "pace": LogNormal(1.0, 2.0), "machines": 2}, None, None),
        ({"replicas": 2}, ScatterPolicy(hedge_after_s=0.01, retries=3), None),
        ({}, ScatterPolicy(attempt_timeout_s=0.01), None),
    ],
)
def test_whatever_one_request_leaves_to_the_next_is_named(
    world: dict[str, Any], policy: ScatterPolicy | None, reason: str | None
) -> None:
    """Each condition and each memory of a node; what has a request's number in its key is drawn anew."""
    scenario = Scenario(vendors=5, world=World(service=Exponential(1.0), **world), policy=policy)
    said = dependence(scenario)
    assert (said is None) if reason is None else (reason in str(said))
    assert starts_steady(scenario) == (reason is None)


def test_what_is_drawn_once_a_replication_shows_between_replications() -> None:
    """The rule against the samples: means of replications vary as those of independent requests, or far more."""
    for scenario, least, most in ((_placed(), 20.0, math.inf), (_placed(far=_NEAR), 0.0, 3.0)):
        x = replicate(scenario, seed=3, requests=40, replications=20, statistic="p50").sojourn_time_ms
        ratio = x.mean(axis=1).var(ddof=1) * 40 / x.var(axis=1, ddof=1).mean()
        assert least <= ratio <= most


def test_sweeps_take_a_geographys_replications_for_its_samples() -> None:
    """Of p50, the replications are counted, not the requests; too short ones are refused, with the reason."""
    frame = sweep(_placed(), replications=10, seed=1, requests=20, quantiles=(0.5,), mean=False, progress=False)
    assert frame["n"].tolist() == [10]
    with pytest.raises(InvalidArgumentError, match=r"zones.*50 requests"):
        sweep(_placed(), replications=10, seed=1, requests=20, quantiles=(0.9,), progress=False)


def test_what_length_cannot_mend_is_not_said_to_be_too_short() -> None:
    """Replications that share a draw and nothing else: only more of them help, and where they suffice, all is quiet."""
    generator = np.random.default_rng(2)
    shared = generator.normal(size=(60, 1)) + 0.1 * generator.normal(size=(60, 10))
    with pytest.warns(UndercoverageWarning, match="start still shows"):
        replication_interval(shared)
    replication_interval(shared, is_steady=True)
    with pytest.warns(UndercoverageWarning, match="take more$"):
        replication_interval(np.exp(2 * shared[:10]), is_steady=True)


# --- one run -------------------------------------------------------------------------------------------------------

_PAUSED = Scenario(vendors=1, world=World(service=Exponential(1.0), hiccups=Hiccups(500.0, Constant(200.0))))


@pytest.mark.parametrize("scenario", [_PAUSED, _placed()], ids=["pauses", "zones"])
def test_one_run_of_dependent_requests_has_estimates_and_no_intervals(scenario: Scenario) -> None:
    """Mean and quantiles are refused by name, with the way out; table and reprs show the estimates."""
    result = simulate(scenario, requests=300, seed=1)
    for ask in (lambda: result.mean, lambda: result.p50, lambda: result.p99, lambda: result.quantile(0.9)):
        with pytest.raises(InvalidArgumentError, match=r"depend on each other by .*replicate\(scenario"):
            ask()
    frame = result.summary().set_index("statistic")
    assert frame.loc["mean", "estimate_ms"] == pytest.approx(result.sojourn_time_ms.mean())
    assert frame.loc["p90", "estimate_ms"] == pytest.approx(np.quantile(result.sojourn_time_ms, 0.9))
    assert frame[["low_ms", "high_ms"]].isna().all().all()
    assert frame["note"].str.contains("replicate()", regex=False).all()
    assert "median" in repr(result)
    assert "replicate()" in result._repr_html_()
    few = simulate(scenario, requests=3, seed=1).summary().set_index("statistic")
    assert math.isnan(few.loc["p99", "estimate_ms"])


def test_one_run_of_independent_requests_covers_as_often_as_it_says() -> None:
    """Five vendors alike, 100 runs: the mean of the slowest of five exponentials."""
    scenario = Scenario(vendors=5, world=World(service=Exponential(1.0)))
    truth = sum(1 / k for k in range(1, 6))
    held = sum(truth in simulate(scenario, requests=50, seed=seed).mean for seed in range(100))
    assert 88 <= held <= 99
