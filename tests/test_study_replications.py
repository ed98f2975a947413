"""Replications, comparisons, choices, and sweeps that survive being killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mktsim.errors import EvaluationError, InvalidArgumentError, SimulationError, StorageError, UndercoverageWarning
from mktsim.sim.conditions import Hiccups
from mktsim.sim.latency import Constant, Exponential, LogNormal, Pareto
from mktsim.sim.world import World
from mktsim.sqlite import connect, rows
from mktsim.study import StudyResult, compare, jobs, optimisation, optimise, replicate, sweep
from mktsim.study.cache import ReplicationCache
from mktsim.study.jobs import Job, completed, digest_of
from mktsim.study.optimisation import _upper, best_of, interval_of_one_among
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, estimate_statistic, replication_interval

_FAST = Scenario(vendors=10, preset="cloudflare-2026")


@pytest.fixture(autouse=True)
def _unedited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the source be edited while these tests run; tests/test_provenance.py shows what else would happen."""
    monkeypatch.setattr(jobs, "program_doubt", lambda: "")
    monkeypatch.setattr(jobs, "running_digest", jobs.program_digest)


# --- replicate -----------------------------------------------------------------------------------------------------


def test_replications_are_independent_and_repeat() -> None:
    """Same seed, same samples; another seed, others; replications of one run do not resemble each other."""
    one, again, other = (replicate(_FAST, seed=seed).sojourn_time_ms for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert np.abs(np.corrcoef(one)[np.triu_indices(10, 1)]).max() < 0.45


def test_more_replications_keep_those_that_were_there() -> None:
    """A longer run begins with the shorter one's replications."""
    few, many = (replicate(_FAST, seed=1, replications=n).sojourn_time_ms for n in (10, 15))
    assert few.tobytes() == many[:10].tobytes()


def test_without_common_random_numbers_scenarios_are_independent() -> None:
    """With them two windows correlate strongly; without them, not."""
    other, correlation = _FAST.replace(window=5), {}
    for common in (True, False):
        pair = [replicate(s, seed=1, replications=30, common_random_numbers=common).values() for s in (_FAST, other)]
        correlation[common] = np.corrcoef(*pair)[0, 1]
    assert correlation[True] > 0.9
    assert abs(correlation[False]) < 0.6


def test_sequential_stopping_reaches_the_width_and_stops_soon() -> None:
    """The relative half-width is within w / (1 + w), not much below; p99 too; the executor does not decide where."""
    for statistic, width in (("mean", 0.01), ("p99", 0.05)):
        found = replicate(_FAST, seed=3, until_relative_half_width=width, statistic=statistic)
        half = found.estimate(statistic).relative_half_width
        assert half <= width / (1 + width)
        assert half > width / 3 or len(found) == 10
        with ThreadPoolExecutor(2) as executor:
            parallel = replicate(_FAST, seed=3, until_relative_half_width=width, statistic=statistic, executor=executor)
        assert parallel.sojourn_time_ms.tobytes() == found.sojourn_time_ms.tobytes()
    with pytest.raises(SimulationError, match="after 20 replications"):
        replicate(_FAST, seed=3, until_relative_half_width=1e-4, max_replications=20)


def test_replicate_refuses_what_cannot_be_answered_honestly() -> None:
    """Fewer than 10, widths that are none, statistics that are none, quantiles without the samples."""
    for arguments, message in (
        ({"replications": 9}, "at least 10"),
        ({"replications": True}, "at least 10"),
        ({"until_relative_half_width": 0.0}, "inside"),
        ({"until_relative_half_width": math.nan}, "inside"),
        ({"until_relative_half_width": 0.1, "max_replications": 5}, "max_replications"),
        ({"statistic": "median"}, "p50"),
        ({"statistic": "p99.99"}, "29,956"),
        ({"statistic": "p100"}, "p50"),
        ({"common_random_numbers": 1}, "True or False"),
        ({"executor": 5}, "submit"),
        ({"cache": ""}, "path"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            replicate(_FAST, seed=1, **arguments)  # type: ignore[arg-type]


def test_few_skewed_replications_warn_that_they_cover_less() -> None:
    """A named warning where the mean's skewness costs a point of coverage; none where it does not."""
    tail = Scenario(vendors=1, world=World(service=Pareto(1.0, 2.1)))
    with pytest.warns(UndercoverageWarning, match="skewed"):
        replicate(tail, seed=1, requests=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replicate(_FAST, seed=1)


def test_quantiles_of_dependent_requests_come_from_replications() -> None:
    """Where one request leaves something behind, its replication is the sample; too short ones are refused."""
    world = World(service=Exponential(1.0), hiccups=Hiccups(1000.0, Constant(300.0)))
    scenario = Scenario(vendors=1, world=world)
    with pytest.raises(InvalidArgumentError, match="100 requests"):
        replicate(scenario, seed=1, requests=50, statistic="p95")
    found = replicate(scenario, seed=1, requests=100, statistic="p50")
    assert found.engine == "event"
    assert found.estimate("p50").n == 10
    assert replicate(_FAST, seed=1).estimate("p50").n == 1000


def test_replications_show_themselves() -> None:
    """A table with intervals, its caption escaped; statistics without enough samples are left out."""
    found = replicate(_FAST.replace(preset="same-zone"), seed=1)
    assert list(found.summary()["statistic"]) == ["mean", "p50", "p90", "p99"]
    assert "10 replications of 100 requests" in found._repr_html_()
    assert "seed 1" in repr(found)


# --- compare -------------------------------------------------------------------------------------------------------


def test_a_comparison_in_pairs_is_narrower_and_says_by_how_much() -> None:
    """Same estimate as the difference of the means; narrower than Welch's; the factor is the ratio of variances."""
    a, b = _FAST, _FAST.replace(window=5)
    paired = compare(a, b, seed=1, replications=20)
    apart = compare(a, b, seed=1, replications=20, common_random_numbers=False)
    assert paired.difference.estimate == pytest.approx(paired.a.estimate - paired.b.estimate)
    assert paired.verdict == "a is less"
    assert paired.saved > 3
    assert math.isnan(apart.saved)
    width = [c.difference.high - c.difference.low for c in (paired, apart)]
    assert width[0] < width[1] / 1.5
    x, y = (replicate(s, seed=1, replications=20).values() for s in (a, b))
    assert paired.saved == pytest.approx((x.var(ddof=1) + y.var(ddof=1)) / (x - y).var(ddof=1))
    assert "&lt;" not in paired._repr_html_()


def test_a_comparison_of_equals_shows_no_difference() -> None:
    """With itself the difference is exactly 0; with an independent twin the interval holds 0 as often as it says."""
    same = compare(_FAST, _FAST, seed=1)
    assert (same.difference.low, same.difference.high, same.saved) == (0.0, 0.0, math.inf)
    one = Scenario(vendors=3, world=World(service=Exponential(1.0)))
    twin = one.replace(statement="SELECT 1 FROM products")
    verdicts = [compare(one, twin, seed=s, requests=20, common_random_numbers=False).verdict for s in range(20)]
    assert verdicts.count("no difference shown") >= 16


def test_paired_intervals_cover_the_known_difference() -> None:
    """Exponential leaves of mean 1 and 1.2 in pairs: the difference of H_3 means is covered as often as said."""
    worlds = [World(service=Exponential(mean)) for mean in (1.2, 1.0)]
    truth, hits, runs = 0.2 * (1 + 1 / 2 + 1 / 3), 0, 60
    scenarios = [Scenario(vendors=3, world=world) for world in worlds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndercoverageWarning)  # 200 exponentials are skewed, now and then a lot.
        for seed in range(runs):
            hits += truth in compare(*scenarios, seed=seed, requests=20).difference
    assert hits >= 51  # 95 % less three and a half binomial standard errors.


def test_a_quantile_is_compared_only_where_each_replication_bears_it() -> None:
    """p99 of each replication needs 299 requests in it."""
    with pytest.raises(InvalidArgumentError, match="299 requests"):
        compare(_FAST, _FAST.replace(window=5), statistic="p99", seed=1)
    found = compare(_FAST, _FAST.replace(window=2), statistic="p99", seed=1, requests=300)
    assert found.verdict == "a is less"


# --- optimise ------------------------------------------------------------------------------------------------------


def test_the_best_width_is_found_with_its_regret() -> None:
    """Over six connections a thousand objects want a narrow tree; the interval of the regret begins at 0."""
    big = _FAST.replace(vendors=1000)
    found = optimise(big, "fanout", ["flat", 6, 8, 30], seed=1, requests=50)
    assert found.best in (6, 8)
    assert found.regret.low == 0.0 <= found.regret.high < 5.0
    assert "flat" not in found.could_be_best
    assert found.best in found.could_be_best
    frame = found.frame.set_index("candidate")
    assert frame.loc["flat", "regret_high"] > frame.loc[found.best, "regret_high"]
    assert "fanout" in found._repr_html_()


def test_a_hedge_delay_is_a_parameter_too() -> None:
    """A dotted name reaches into the policy; the objective may be any function of a replication's times."""
    world = World(service=Exponential(5.0), replicas=2)
    found = optimise(
        Scenario(vendors=20, world=world), "policy.hedge_after_s", [0.002, 0.01, 0.05], seed=1,
        objective=lambda times_ms: float(np.quantile(times_ms, 0.9)),
    )  # fmt: skip
    assert found.best == 0.002
    assert found.objective == "<lambda>"
    for name in ("policy.hedge", "nonsense", "policy.", "seed.x"):
        with pytest.raises(InvalidArgumentError):
            optimise(_FAST, name, [1, 2], seed=1)


def test_the_regret_bound_holds_although_the_samples_chose() -> None:
    """Ten nearly equal candidates, 600 macro-runs: the bound holds, and the best is among those that could be."""
    generator = np.random.default_rng(20261122)
    means = np.linspace(0.0, 0.45, 10)
    held = kept = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndercoverageWarning)  # Ten numbers look skewed now and then.
        for _ in range(600):
            luck = generator.normal(size=10)
            found = best_of(means[:, None] + luck + generator.normal(size=(10, 10)), range(10))
            held += means[found.best] <= found.regret.high
            kept += 0 in found.could_be_best
    assert held >= 554  # 95 % less three binomial standard errors.
    assert kept >= 554


_SKEWED: dict[str, Any] = {  # Of mean 1.
    "exponential": lambda generator, size: generator.exponential(size=size),
    "lognormal 1.0": lambda generator, size: generator.lognormal(-0.5, 1.0, size),
    "lognormal 1.5": lambda generator, size: generator.lognormal(-1.125, 1.5, size),
    "Pareto 2.1": lambda generator, size: (generator.pareto(2.1, size) + 1) * 1.1 / 2.1,
}


@pytest.mark.parametrize(
    ("law", "requests", "gap", "least_held", "least_warned", "most_warned"),
    [
        # Student's bound held 75 to 89 % of these, and said nothing.
        ("exponential", 2, 0.2, 0.92, 0.3, 0.7),
        ("exponential", 100, 0.05, 0.95, 0.0, 0.02),
        ("lognormal 1.0", 20, 0.05, 0.92, 0.5, 0.9),
        ("lognormal 1.5", 2, 0.2, 0.86, 0.88, 1.0),
        ("lognormal 1.5", 20, 0.05, 0.90, 0.93, 1.0),
        ("Pareto 2.1", 20, 0.05, 0.87, 0.88, 1.0),
    ],
)
def test_the_regret_bound_of_skewed_candidates_holds_or_warns(
    law: str, requests: int, gap: float, least_held: float, least_warned: float, most_warned: float
) -> None:
    """Against a constant that is better: a bound of 95 % fails without a warning at most 5 % of the time.

    Three binomial standard errors of 250 macro-runs are allowed for; the best must be among those that could be.
    """
    generator = np.random.default_rng(5)
    held = kept = warned = failed_quietly = 0
    for _ in range(250):
        times = np.stack([_SKEWED[law](generator, (10, requests)), np.full((10, requests), 1 - gap)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = best_of(times.mean(axis=2), ["skewed", "constant"], observations=times)
        holds = found.best == "constant" or found.regret.high >= gap
        held += holds
        kept += "constant" in found.could_be_best
        warned += bool(caught)
        failed_quietly += not holds and not caught
        assert all(each.category is UndercoverageWarning for each in caught)
    assert held >= least_held * 250
    assert kept >= 0.92 * 250
    assert least_warned * 250 <= warned <= most_warned * 250
    assert failed_quietly <= (0.05 + 3 * math.sqrt(0.05 * 0.95 / 250)) * 250


def test_few_skewed_values_by_themselves_are_bounded_better_than_by_students_t() -> None:
    """Ten lognormal values (sigma 1.5), nothing else known: Student's bound held 65 %, Hall's more than 80 %."""
    generator = np.random.default_rng(7)
    held = student = 0
    for _ in range(400):
        values = np.stack([_SKEWED["lognormal 1.5"](generator, 10), np.full(10, 10.0)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndercoverageWarning)
            found = best_of(values, ["skewed", "constant"])
        held += found.frame["high"][0] >= 1.0
        student += values[0].mean() + stats.t.ppf(0.9875, 9) * values[0].std(ddof=1) / math.sqrt(10) >= 1.0
    assert student < 0.78 * 400  # For the lesson: 98.75 % are said.
    assert held >= 0.88 * 400


def test_what_the_best_of_several_saves_has_an_interval_that_knows_of_the_choice() -> None:
    """Eight arms that save nothing, correlated, 20 replications: 95 % hold the true 0, the unadjusted interval 85 %."""
    generator = np.random.default_rng(11)
    held = alone = 0
    for _ in range(600):
        saved = generator.normal(size=20) * 0.5 + generator.normal(size=(8, 20))
        best = saved[int(np.argmax(saved.mean(axis=1)))]
        held += 0.0 in interval_of_one_among(8, best)
        alone += 0.0 in interval_of_one_among(1, best)
    assert held >= (0.95 - 3 * math.sqrt(0.05 * 0.95 / 600)) * 600
    assert alone < 0.9 * 600
    for several, values in ((0, [1.0, 2.0]), (True, [1.0, 2.0]), (2, [1.0]), (2, [1.0, math.nan]), (2, ["a", "b"])):
        with pytest.raises(InvalidArgumentError):
            interval_of_one_among(several, values)


def test_skewness_moves_a_bound_and_its_absence_does_not() -> None:
    """By hand: Hall's cubic solves its own equation, a mirrored sample mirrors it, without skewness it is Student's."""
    values = np.array([1.0, 2.0, 3.0, 5.0, 9.0])
    t, scale = float(stats.t.ppf(0.05, 4)), values.std(ddof=1) / math.sqrt(5)
    assert _upper(values, 0.0, t) == pytest.approx(values.mean() - t * scale)
    assert _upper(values, 1e-5, t) == pytest.approx(values.mean() - t * scale, rel=1e-4)
    for skewness in (0.9, -0.9):
        ratio, a = (values.mean() - _upper(values, skewness, t)) / scale, skewness / math.sqrt(5)
        assert ratio + a * ratio**2 / 3 + a**2 * ratio**3 / 27 + a / 6 == pytest.approx(t)
    assert _upper(values, 0.9, t) > _upper(values, 0.0, t) > _upper(values, -0.9, t)


def test_an_optimum_of_few_skewed_requests_warns_at_the_callers_line() -> None:
    """Two requests a replication of a lognormal leaf against one that never varies; 400 of them do."""
    slow, still = (World(service=each) for each in (LogNormal(1.0, 33.0), Constant(4.0)))
    with pytest.warns(UndercoverageWarning, match="10 replications of 2 observations are few") as caught:
        optimise(Scenario(vendors=1), "world", [slow, still], seed=2, requests=2)
    assert [each.filename for each in caught] == [__file__]
    found = optimise(Scenario(vendors=1), "world", [World(service=Exponential(1.0)), still], seed=1, requests=400)
    assert found.best == World(service=Exponential(1.0))


def test_a_quantile_of_dependent_requests_needs_as_many_of_them_as_in_a_sweep() -> None:
    """299 independent requests give a p99; of requests that depend on each other 500 are asked for."""
    paused = World(service=Exponential(1.0), hiccups=Hiccups(1_000.0, Constant(5.0)))
    for scenario, requests in ((Scenario(vendors=2, world=paused), 499), (_FAST.replace(vendors=2), 298)):
        with pytest.raises(InvalidArgumentError, match=str({499: 500, 298: 299}[requests])):
            optimise(scenario, "vendors", [2, 3], objective="p99", seed=1, requests=requests)
    with pytest.raises(InvalidArgumentError, match="500"):
        sweep(Scenario(vendors=2, world=paused), replications=10, seed=1, requests=499, quantiles=(0.99,))


def test_optimise_checks_every_candidates_engine_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that the engine does not cover is named though the first is covered, and nothing was simulated."""
    monkeypatch.setattr(optimisation, "completed", lambda *_, **__: pytest.fail("work was done"))
    still, paused = World(), World(hiccups=Hiccups(1_000.0, Constant(5.0)))
    with pytest.raises(InvalidArgumentError, match="vectorised engine does not cover hiccups"):
        optimise(Scenario(vendors=2), "world", [still, paused], seed=1, engine="vectorised")


def test_equal_candidates_are_not_told_apart() -> None:
    """A choice among equals keeps them all, and its regret is bounded by the noise."""
    noise = np.random.default_rng(1).normal(size=(5, 20))
    found = best_of(noise, list("abcde"))
    assert found.could_be_best == list("abcde")
    assert 0 < found.regret.high < 2.5


def test_optimise_refuses_choices_that_are_none() -> None:
    """One candidate, twice the same, unknown parameters and objectives, too few requests for a quantile."""
    for arguments, message in (
        ({"candidates": [6]}, "at least 2"),
        ({"candidates": "flat"}, "at least 2"),
        ({"candidates": [6, 6]}, "twice"),
        ({"candidates": [6, 1]}, "fanout"),
        ({"parameter": "fan_out"}, "fan_out"),
        ({"objective": "p99"}, "299"),
        ({"objective": 5}, "objective"),
        ({"replications": 5}, "at least 10"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            optimise(_FAST, **{"parameter": "fanout", "candidates": [6, 7], "seed": 1, **arguments})  # type: ignore[arg-type]


# --- sweep ---------------------------------------------------------------------------------------------------------


def test_a_sweep_takes_a_list_of_scenarios() -> None:
    """Columns for the fields in which they differ; each combined with the axes."""
    frame = sweep(
        [_FAST, _FAST.replace(vendors=20, window=3)], seed=1, replications=3, quantiles=(), progress=False,
        fanout=["flat", 4],
    )  # fmt: skip
    assert list(frame["vendors"]) == [10, 10, 20, 20]
    assert list(frame["fanout"]) == ["flat", 4, "flat", 4]
    assert list(frame["scenario"]) == [0, 1, 2, 3]
    for bad in ([], "scenario", [1], 5):
        with pytest.raises(InvalidArgumentError):
            sweep(bad, seed=1, replications=3, progress=False)  # type: ignore[arg-type]


class _Bare:
    """A scheduler with a submit and futures of its own, as some clusters have; ends its jobs in reverse order."""

    class Future:
        def __init__(self, call: Any, ended: list[Any]) -> None:
            self.result, self.ended = call, ended

        def add_done_callback(self, fn: Any) -> None:
            self.ended.append((fn, self))
            if len(self.ended) == 70:
                for each, future in reversed(self.ended):
                    each(future)

        def cancel(self) -> None:
            """Too late: all are done when one is."""

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def submit(self, fn: Any, /, *args: Any) -> Any:
        return self.Future(lambda: fn(*args), self.ended)


def test_anything_that_submits_can_run_a_sweep() -> None:
    """Not only executors: any object whose futures call back."""
    size: dict[str, Any] = {"replications": 10, "quantiles": (), "progress": False}
    arguments = {"seed": 1, **size, "window": range(1, 8)}
    alone, together = sweep(_FAST, **arguments), sweep(_FAST, **arguments, executor=_Bare())
    pd.testing.assert_frame_equal(alone, together, check_exact=True)


def test_a_failing_replication_ends_the_sweep_and_keeps_what_was_done(tmp_path: Path) -> None:
    """The error is the replication's own; those before it are in the cache."""
    scenarios = [_FAST.replace(vendors=v, preset="same-zone", world=None) for v in (5, 6)]
    # Only rows show that it overflows, and only the event engine, which this scenario needs, has any.
    bad = Scenario(vendors=3, statement="SELECT abs(stock - 9223372036854775807 - 1 - stock) FROM products",
                   shards=2, window=2)  # fmt: skip
    with pytest.raises(EvaluationError, match="overflow"):
        sweep([*scenarios, bad], seed=1, replications=3, quantiles=(), progress=False, cache=tmp_path)
    with ReplicationCache.open(tmp_path) as cache:
        assert len(cache) == 6


def test_a_cache_returns_the_very_samples_and_no_others(tmp_path: Path) -> None:
    """Equal to the last bit, in whatever mix of found and computed; other seeds, sizes, scenarios are not found."""
    arguments: dict[str, Any] = {"replications": 5, "quantiles": (0.5,), "progress": False}
    alone = sweep(_FAST, seed=1, **arguments, window=[2, 3])
    assert sweep(_FAST, seed=1, **arguments, window=[2], cache=tmp_path).equals(alone[alone["window"] == 2])
    with ReplicationCache.open(tmp_path) as cache:
        assert len(cache) == 5
    pd.testing.assert_frame_equal(sweep(_FAST, seed=1, **arguments, window=[2, 3], cache=tmp_path), alone)
    pd.testing.assert_frame_equal(sweep(_FAST, seed=1, **arguments, window=[2, 3], cache=tmp_path), alone)
    base = Job(_FAST, 1, 0, 100)
    keys = {
        job.key(digest_of(job.scenario))
        for job in (base, Job(_FAST, 2, 0, 100), Job(_FAST, 1, 1, 100), Job(_FAST, 1, 0, 101),
                    Job(_FAST, 1, 0, 100, "event"), Job(_FAST, 1, 0, 100, "auto", False),
                    Job(_FAST.replace(window=4), 1, 0, 100), Job(Scenario(vendors=10), 1, 0, 100),
                    Job(Scenario(vendors=10, world=World()), 1, 0, 100))
    }  # fmt: skip
    assert len(keys) == 9


def test_a_preset_that_changed_is_not_found_under_its_name(tmp_path: Path) -> None:
    """The values of the world decide, not the name of its file."""
    text = Path(__file__).parents[1].joinpath("data/presets/same-zone.toml").read_text()
    preset = tmp_path / "mine.toml"
    digests = []
    for value in (text, text.replace("0.002", "0.004")):
        preset.write_text(value)
        digests.append(digest_of(Scenario(vendors=5, preset=str(preset))))
    assert digests[0] != digests[1]


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    """Bytes that do not have their digest count as missing; a file that is no cache is a named error."""
    some = [Job(_FAST, 1, r, 100) for r in range(3)]
    first = dict(completed(some, cache=tmp_path))
    connection = connect(str(tmp_path / "replications.sqlite"))
    connection.execute("UPDATE replications SET samples = zeroblob(800) WHERE rowid = 2")
    connection.close()
    second = dict(completed(some, cache=tmp_path))
    assert all(first[r][1].tobytes() == second[r][1].tobytes() for r in range(3))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "replications.sqlite").write_bytes(b"no database at all" * 100)
    for folder in (tmp_path / "other", tmp_path / "replications.sqlite", "nul\0byte"):
        with pytest.raises(StorageError, match="cannot be used"):
            sweep(_FAST, seed=1, replications=3, quantiles=(), progress=False, cache=folder)


_SWEEP = """
import sys
from mktsim.study import Scenario, jobs, sweep

# A source that is edited while the test runs would be another program, whose samples are others.
jobs.program_digest = jobs.running_digest = lambda: "as it is"
jobs.program_doubt = lambda: ""

if __name__ == "__main__":
    frame = sweep(
        Scenario(), replications=20, seed=7, requests=3, quantiles=(0.5,), progress=False,
        cache=sys.argv[1] or None, vendors=range(1, 51), products=range(4),
    )
    frame.to_csv(sys.argv[2], index=False, float_format="%.17g")
"""


def test_a_sweep_killed_half_way_resumes_and_equals_one_that_never_was(tmp_path: Path) -> None:
    """200 scenarios of 20 replications, SIGKILL at about half: no table then, the same table after going on."""
    script = tmp_path / "run_sweep.py"
    script.write_text(_SWEEP)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def start(cache: str, out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(script), cache, str(out)], env=environment)

    cache, killed, whole, resumed = (tmp_path / name for name in ("cache", "killed.csv", "whole.csv", "resumed.csv"))
    process = start(str(cache), killed)
    done = 0
    deadline = time.monotonic() + 120
    while done < 2000 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
        if (cache / "replications.sqlite").exists():
            with ReplicationCache.open(cache) as kept:
                done = len(kept)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with ReplicationCache.open(cache) as kept:
        before = len(kept)
    assert 2000 <= before < 4000
    assert not killed.exists()
    both = [start(str(cache), resumed), start("", whole)]
    assert [each.wait() for each in both] == [0, 0]
    with ReplicationCache.open(cache) as kept:
        assert len(kept) == 4000
    connection = connect(str(cache / "replications.sqlite"))
    (oldest,) = rows(connection, "SELECT COUNT(*) FROM replications WHERE rowid <= ?", (before,))
    connection.close()
    assert oldest[0] == before  # What had been computed was not computed again: its rows were not replaced.
    table = pd.read_csv(resumed)
    assert len(table) == 400
    pd.testing.assert_frame_equal(table, pd.read_csv(whole), check_exact=True)


# --- results -------------------------------------------------------------------------------------------------------


def test_a_study_result_is_frozen_and_shows_itself_escaped() -> None:
    """HTML in a question, an answer, a cell or a parameter is text; the frame is a copy."""
    frame = pd.DataFrame({"statement": ["<script>alert(1)</script>"], "estimate": [1.5]})
    evil = "<script>alert(2)</script>"
    result = StudyResult(question=evil, answer=evil, frame=frame, parameters={"a": evil}, seed=1, caption=evil)
    frame.loc[0, "estimate"] = 9.0
    assert result.frame["estimate"].tolist() == [1.5]
    assert "<script" not in result._repr_html_()
    with pytest.raises(AttributeError):
        result.seed = 2  # type: ignore[misc]
    assert result.provenance["versions"].keys() >= {"mktsim", "numpy"}
    for changes in ({"frame": pd.DataFrame()}, {"question": 5}, {"parameters": []}):
        with pytest.raises(InvalidArgumentError):
            StudyResult(**{"question": "?", "answer": "!", "frame": frame, "parameters": {}, "seed": 1, **changes})  # type: ignore[arg-type]


def test_statistics_of_replications_check_their_shape() -> None:
    """Two replications at least, finite, two dimensions."""
    for bad in ([], [1.0, 2.0], [[1.0]], [[math.nan], [1.0]], [[], []]):
        with pytest.raises(InvalidArgumentError):
            replication_interval(bad)
    assert estimate_statistic([[1.0, 2.0], [3.0, 4.0]], "mean") == Interval(2.5, *_student(), 2)


def _student() -> tuple[float, float]:
    from scipy import stats

    half = float(stats.t.ppf(0.975, 1) * math.sqrt(2) / math.sqrt(2))
    return 2.5 - half, 2.5 + half
