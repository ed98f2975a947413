"""A live market calibrated and foretold: against simulated markets whose costs are known, so that no clock decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mktsim.errors import CalibrationError, InvalidArgumentError
from mktsim.sim.latency import Constant, Latency, LogNormal, Mixture, Shifted, Uniform
from mktsim.sim.loop import sim_run
from mktsim.streams import Streams
from mktsim.study import charts, simulate
from mktsim.study.analytic import mm1_quantile
from mktsim.study.live import Calibration, calibrate, fit_calibration
from mktsim.study.measuring import STATEMENTS, Fleet, Statement
from mktsim.study.points import tidy
from mktsim.study.prediction import compared, cycle_interval, error_table, load_name, measure, predict
from mktsim.study.questions.live_vs_simulated import in_words, live_vs_simulated
from mktsim.study.queues import service_ends
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import share_interval
from mktsim.study.yardstick import RUNS, PaceTrace

FIXED, SHARD, VENDOR, ROW = 0.3, 0.04, 0.012, 0.001
TRUTH = {"top-k": 1.0, "filter": 0.6, "group-by": 2.0}
SIZES = ((100, 8), (200, 8), (500, 8), (1_000, 8), (1_000, 4))


class SimulatedMachine:
    """A machine that takes `slow` times as long in the second half of each `period_s`, and its yardstick."""

    def __init__(self, slow: float, period_s: float = 1.0) -> None:
        self.slow, self.period_s = slow, period_s

    def pace(self) -> float:
        """Return how many times as long as at its best it takes now."""
        now_s = asyncio.get_running_loop().time()
        return self.slow if now_s % self.period_s >= self.period_s / 2 else 1.0

    async def __call__(self) -> float:
        """Return what the yardstick takes now: little, and no simulated time."""
        return 0.01 * self.pace()


class SimulatedMarket:
    """A loop's worth of vendors on simulated time: stated costs, stated noise, one query after another."""

    def __init__(
        self,
        vendors: int,
        shards: int,
        noise: Latency,
        *,
        cost: Callable[[int], float] = lambda vendors: VENDOR * vendors,
        workers: int = 1,
        spared: int = 0,
        machine: SimulatedMachine | None = None,
    ) -> None:
        self.vendors, self.shards, self.noise, self.cost, self.spared = vendors, shards, noise, cost, spared
        self.workers, self.machine = workers, machine
        self.asked = 0
        self.loop = asyncio.Semaphore(workers)

    async def query(self, sql: str, params: Any = ()) -> Any:
        """Take the time that the query takes, when its turn has come."""
        name = next(each.name for each in STATEMENTS if each.sql == sql)
        self.asked += 1
        rows = 3 * self.vendors
        scatter = (FIXED + SHARD * self.shards + self.cost(self.vendors)) * TRUTH[name]
        gather = ROW * rows
        u = Streams(self.vendors + self.shards).uniform(name, self.asked, 1)
        factor = float(self.noise.sample(u)[0])
        async with self.loop:
            factor *= 1.0 if self.machine is None else self.machine.pace()
            await asyncio.sleep((scatter + gather) * factor / 1e3)
        wall_s = {"scatter": scatter * factor / 1e3, "gather": gather * factor / 1e3}
        stats = SimpleNamespace(
            vendors_asked=self.vendors - self.spared, vendors_pruned=self.spared, rows_shipped=rows, wall_s=wall_s
        )
        return SimpleNamespace(stats=stats)


def fleets(noise: Latency, **options: Any) -> list[Fleet]:
    """Make simulated markets of the sizes that are calibrated on."""
    return [Fleet(vendors, shards, SimulatedMarket(vendors, shards, noise, **options)) for vendors, shards in SIZES]


def calibrated(noise: Latency, yardstick: SimulatedMachine | None = None, **options: Any) -> Calibration:
    """Calibrate in simulated time."""

    async def run() -> Calibration:
        return await calibrate(*fleets(noise, **options), rounds=240, seed=4, yardstick=yardstick)

    return sim_run(run())


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """A market with noise of a tenth."""
    return calibrated(LogNormal(1.0, 1.25))


def test_the_costs_of_a_market_are_found_again_within_their_intervals(calibration: Calibration) -> None:
    """Of the twelve true costs at least ten lie in their 95 % intervals, and every query time is within 3 %."""
    hits = 0
    for name, factor in TRUTH.items():
        fit = calibration.fit(name)
        for term, truth in ((fit.fixed_ms, FIXED * factor), (fit.shard_ms, SHARD * factor),
                            (fit.vendor_ms, VENDOR * factor), (fit.row_ms, ROW)):  # fmt: skip
            hits += truth in term
        for vendors in (100, 3_000, 10_000):
            true_ms = (FIXED + 8 * SHARD + VENDOR * vendors) * factor + ROW * 3 * vendors
            assert fit.query_ms(vendors, 8) == pytest.approx(true_ms, rel=0.03)
        assert fit.r_squared > 0.999
        assert fit.worst < 0.03
        assert fit.distance < 0.1
        noise = fit.noise(fit.reference_ms)
        assert noise.quantile(0.99) / noise.quantile(0.5) == pytest.approx(1.25, rel=0.06)
        assert fit.rows_per_vendor == pytest.approx(3.0)
    assert hits >= 10


def test_stalls_are_told_from_the_body_and_come_as_often_a_millisecond() -> None:
    """One query in ten of 15 ms meets a pause of about 10 ms: ten times the query meets ten times as many."""
    bodies, pauses = LogNormal(1.0, 1.05), LogNormal(0.7, 1.0)
    found = calibrated(Mixture((9, 1), (bodies, Shifted(1.0, pauses))))
    fit = found.fit("top-k")
    assert fit.stalls is not None
    assert fit.distance < 0.1
    query_ms = fit.reference_ms
    assert fit.stalls.per_ms * query_ms == pytest.approx(0.1, rel=0.3)
    assert fit.stalls.least_ms + fit.stalls.mean_excess_ms == pytest.approx(0.7 * query_ms, rel=0.25)
    short, long = (fit.noise(scale * query_ms) for scale in (1, 10))
    assert short.mean_ms == pytest.approx(long.mean_ms, rel=0.02)
    assert short.quantile(0.99) > 1.5 > 1.35 > long.quantile(0.99) > long.quantile(0.5) > 1.02


def noisy(noise: Latency, rounds: int, seed: int) -> Any:
    """Fit fleets of which three count for the noise."""
    sizes, shards = np.repeat([30, 100, 300, 300, 200], rounds), np.repeat([1, 1, 1, 2, 1], rounds)
    times = (0.5 + 0.02 * sizes) * noise.sample(Streams(seed).uniform("noise", 0, len(sizes)))
    table = pd.DataFrame(
        {"statement": "all", "vendors": sizes, "shards": shards, "round": np.tile(range(rounds), 5), "rows": 0,
         "scatter_ms": times, "gather_ms": 0.0, "rest_ms": 0.0, "total_ms": times}
    )  # fmt: skip
    return fit_calibration(table, statements=[Statement("all", "SELECT ?", 0, 1)])


@pytest.mark.parametrize("seed", range(3))
def test_a_tail_is_fitted_or_refused_though_the_body_fits(seed: int) -> None:
    """Of 900 queries: what is accepted has a p95 and p99 inside their measured intervals, or within 15 %.

    Rare long stalls are found; humps and a sharp edge are refused, whose distance from the nearest family alone is
    below the tolerance: it does not see the one query of a hundred.
    """
    humps, edge = Mixture((7, 3), (LogNormal(1, 1.1), LogNormal(1.5, 1.65))), Uniform(0.6, 1.4)
    rare = Mixture((98, 2), (LogNormal(1, 1.1), LogNormal(6, 6.6)))
    for noise, family in ((rare, "stalled"), (LogNormal(1, 1.25), "lognormal"), (LogNormal(1, 2.0), "lognormal")):
        fit = noisy(noise, 300, seed).fit("all")
        assert family in fit.family
        for tail in fit.tails:
            assert tail.fitted in tail.measured or abs(tail.gap) < 0.15
    for noise in (humps, edge):
        with pytest.raises(CalibrationError, match=r"tail of the noise .* more than measured \(99 % interval"):
            noisy(noise, 300, seed)


def test_what_too_few_queries_cannot_refuse_is_shown() -> None:
    """180 queries bound a p99 from below only: the fitted and the measured one stand side by side."""
    found = noisy(Uniform(0.6, 1.4), 60, 0)
    tail = found.fit("all").tails[-1]
    assert tail.measured.high == np.inf
    assert tail.gap > 0.15
    (row,) = found.summary().to_dict("records")
    assert row["p99 / p50"] == pytest.approx(tail.fitted)
    assert row["p99 / p50, measured"] == pytest.approx(tail.measured.estimate)
    assert f"measured {tail.measured.estimate:.3g}: {100 * tail.gap:.2g} % more than measured" in repr(found)
    # Queries that stand still now and then, six times as long, are two in a hundred: the tail decides the family.
    rare = noisy(Mixture((98, 2), (LogNormal(1, 1.1), LogNormal(6, 6.6))), 60, 0).fit("all")
    assert "stalled" in rare.family
    assert rare.tails[-1].fitted == pytest.approx(rare.tails[-1].measured.estimate, rel=0.15)


def test_the_queue_and_the_timers_are_measured(calibration: Calibration) -> None:
    """Queries asked at once end one query apart; simulated timers are never late."""
    assert calibration.serial is not None
    assert calibration.serial.estimate == pytest.approx(1.0, abs=0.1)
    assert calibration.late is not None
    assert calibration.late.quantile(0.99) < 1e-3


def test_what_larger_markets_take_is_foretold_under_both_loads(calibration: Calibration) -> None:
    """Simulated markets of unseen sizes: p50 within 5 %, p99 within 10 %, one at a time and in an open loop at 0.5."""
    points = []
    for vendors in (2_000, 4_000):
        for load in (0.0, 0.5):
            foretold = predict(calibration, vendors=vendors, statement="filter", load=load, requests=300, seed=8)

            async def run(foretold: Any = foretold, vendors: int = vendors) -> Any:
                market = Fleet(vendors, 8, SimulatedMarket(vendors, 8, LogNormal(1.0, 1.25)))
                return await measure(foretold, calibration, market)

            found = sim_run(run())
            assert set(found.paces) == {1.0}  # A simulated clock stands still while a yardstick works.
            points += compared(foretold, found.times_ms)
    errors = error_table(tidy(points))
    assert len(errors) == 4
    assert (errors["error of p50"].abs() < 5).all(), errors
    assert (errors["error of p99"].abs() < 10).all(), errors


def test_a_prediction_under_load_is_that_of_the_queue() -> None:
    """Without noise the loop is M/D/1: at utilisation 0.5 the mean sojourn time is 1.5 services (Pollaczek, Khinchine).

    The replications share their arrivals, so that the tolerance is that of one run of 1,000 requests.
    """
    exact = calibrated(Constant(1.0))
    fit = exact.fit("top-k")
    assert fit.family == "none"
    foretold = predict(exact, vendors=50, statement="top-k", load=0.5, requests=1_000, shards=4, seed=2)
    assert foretold.times_ms.mean() / fit.query_ms(50, 4) == pytest.approx(1.5, rel=0.06)
    alone = predict(exact, vendors=50, statement="top-k", requests=10, shards=4)
    assert alone.p99.high == pytest.approx(fit.query_ms(50, 4), rel=1e-4)


def test_a_calibration_is_a_scenario_of_both_engines(calibration: Calibration) -> None:
    """It survives TOML, and the real coordinator on simulated time takes as long as the arrays say, bit for bit."""
    for statement in TRUTH:
        scenario = calibration.scenario(vendors=40, statement=statement, timers=True)
        assert Scenario.from_toml(scenario.to_toml()) == scenario
        assert scenario.is_planned_elsewhere  # The measured market may have other tables than simulated vendors.
        found = [simulate(scenario, requests=5, seed=3, engine=engine) for engine in ("event", "vectorised")]
        assert (found[0].sojourn_time_ms == found[1].sojourn_time_ms).all()
        assert found[0].rows


def test_noise_differs_between_replications_and_arrivals_do_not(calibration: Calibration) -> None:
    """Replications meet the same instants with noise of their own; the same seed gives the same prediction."""
    first, again, other = (
        predict(calibration, vendors=300, statement="filter", load=0.5, requests=50, seed=seed) for seed in (1, 1, 2)
    )
    assert len({tuple(row) for row in first.times_ms}) == 39
    assert (first.times_ms == again.times_ms).all()
    assert first.arrival_ms is not None
    assert other.arrival_ms is not None
    assert (first.arrival_ms != other.arrival_ms).any()
    assert first.p50.low < first.p50.estimate < first.p50.high


@pytest.mark.parametrize(
    ("noise", "options", "reason"),
    [
        (LogNormal(1.0, 1.2), {"cost": lambda vendors: 1e-4 * vendors**2}, "no sum of a cost"),
        (Mixture((3, 2), (LogNormal(1, 1.02), LogNormal(3, 3.06))), {}, "noise of its times"),
        (LogNormal(1.0, 1.2), {"workers": 4}, "asked at once"),
        (LogNormal(1.0, 1.2), {"spared": 1}, "size of the fleet"),
    ],
)
def test_what_does_not_follow_the_model_is_refused_by_name(noise: Latency, options: Any, reason: str) -> None:
    """Times that are no line, noise of two humps, a market that answers four at once, statements that spare vendors."""
    with pytest.raises(CalibrationError, match=reason):
        calibrated(noise, **options)


def test_bad_arguments_are_named_before_anything_is_measured(calibration: Calibration) -> None:
    """Too few sizes or rounds, no statements, names twice; loads that are none; a market of another size."""
    some = fleets(Constant(1.0))
    for wrong in ({"rounds": 5}, {"statements": ()}, {"statements": [STATEMENTS[0]] * 2}, {"tolerance": 0}):
        with pytest.raises(InvalidArgumentError):
            asyncio.run(calibrate(*some, **wrong))
    for markets in (some[:2], [some[3], some[4]], ["market"]):
        with pytest.raises(InvalidArgumentError):
            asyncio.run(calibrate(*markets))
    assert sum(fleet.market.asked for fleet in some) == 0  # type: ignore[attr-defined]
    good: dict[str, Any] = {"vendors": 100, "statement": "filter"}
    for changes in (
        {"statement": "x"}, {"load": 1.0}, {"load": -0.1}, {"load": float("nan")}, {"load": "0.5"}, {"vendors": 0},
        {"requests": 1}, {"replications": 38}, {"shards": 0},
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            predict(calibration, **(good | changes))
    foretold = predict(calibration, **good, requests=10)
    with pytest.raises(InvalidArgumentError, match="predicted were 100"):
        asyncio.run(measure(foretold, calibration, some[1]))
    for values in (("", "SELECT ?", 0, 1), ("a", "SELECT ?", 1, 1), ("a", "SELECT ?", 0, float("inf"))):
        with pytest.raises(InvalidArgumentError):
            Statement(*values)


def test_incomplete_rounds_are_refused() -> None:
    """A table in which fleets were measured unequally often is no set of rounds."""
    table = pd.DataFrame({"statement": "filter", "vendors": [1] * 40 + [2] * 40 + [3] * 39, "shards": 1, "rows": 0})
    for name in ("scatter_ms", "gather_ms", "rest_ms", "total_ms"):
        table[name] = 1.0
    with pytest.raises(InvalidArgumentError, match="three fleets"):
        fit_calibration(table.assign(round=0), statements=[STATEMENTS[1]])


def test_costs_are_found_on_a_machine_that_changes_its_pace() -> None:
    """Of a machine that is 1.6 times as slow for every other five seconds, costs are those of one pace, to 4 %.

    Without its yardstick fleets differ by when they were asked, and the fit is refused, or its noise is wide.
    """
    machine = SimulatedMachine(1.6, 10.0)
    found = calibrated(LogNormal(1.0, 1.05), machine, machine=machine)
    assert found.paces is not None
    assert len(found.paces.pace) == 240 * len(SIZES) * len(TRUTH)
    fast = min(found.paces.pace)  # The median is one of the two paces, whichever was met more often.
    assert max(found.paces.pace) / fast == pytest.approx(1.6)
    for name, factor in TRUTH.items():
        fit = found.fit(name)
        for vendors in (100, 1_000, 10_000):
            true_ms = (FIXED + 8 * SHARD + VENDOR * vendors) * factor + ROW * 3 * vendors
            assert fit.query_ms(vendors, 8) * fast == pytest.approx(true_ms, rel=0.04)
        noise = fit.noise(fit.reference_ms)
        assert noise.quantile(0.99) / noise.quantile(0.5) == pytest.approx(1.05, abs=0.03)
    assert "90 % from" in repr(found)
    assert "the machine&#x27;s pace from" in found._repr_html_()
    try:
        blind = calibrated(LogNormal(1.0, 1.05), machine=machine).fit("top-k")
    except CalibrationError:
        return
    noise = blind.noise(blind.reference_ms)
    assert noise.quantile(0.99) / noise.quantile(0.5) > 1.3


@pytest.mark.parametrize("load", [0.0, 0.5])
def test_an_error_at_known_paces_is_the_models(load: float) -> None:
    """A machine that became slow now and then is foretold wrongly, and rightly at the paces that were measured.

    Errors as they are come first, and are the same with and without.
    """
    noise, slow = LogNormal(1.0, 1.1), SimulatedMachine(1.8, 6.0)
    found = calibrated(noise, SimulatedMachine(1.0))
    foretold = predict(found, vendors=2_000, statement="filter", load=load, requests=300, seed=8)

    async def run() -> Any:
        market = Fleet(2_000, 8, SimulatedMarket(2_000, 8, noise, machine=slow))
        return await measure(foretold, found, market, yardstick=slow)

    measured = sim_run(run())
    assert {round(pace, 6) for pace in measured.paces.tolist()} == {1.0, 1.4, 1.8}  # 1.4 where it changed meanwhile.
    plain = compared(foretold, measured.times_ms)
    full = compared(foretold, measured.times_ms, paces=measured.paces)
    assert [repr(point) for point in full[: len(plain)]] == [repr(point) for point in plain]
    assert {point.statistic for point in plain} == {"p50", "p99", "error of p50", "error of p99"}
    errors = {point.statistic: point for point in full if point.unit == "%"}
    assert list(errors) == ["error of p50", "error of p99", "error of p50, pace known", "error of p99, pace known",
                            "pace"]  # fmt: skip
    assert errors["pace"].low == pytest.approx(0.0)
    assert errors["pace"].high == pytest.approx(80.0)
    assert errors["error of p99"].estimate < -35
    for statistic, bound in (("p50", 8), ("p99", 12)):
        assert abs(errors[f"error of {statistic}, pace known"].estimate) < bound
    if load:  # One or two busy cycles of 300 requests reach beyond it.
        assert np.isnan([errors["error of p99"].low, errors["error of p99, pace known"].high]).all()
    table = error_table(tidy(full))
    assert list(table.columns[3:]) == list(errors)


def test_requests_at_known_paces_queue_as_lindley_says() -> None:
    """Without noise each service is its own pace times the query, at the same instants; one at a time it is that.

    Under load the yardstick's work, which the measurement does in each request's turn, is part of the service.
    """
    exact = replace(calibrated(Constant(1.0)), yardstick_ms=0.05)
    size: dict[str, Any] = {"vendors": 5, "statement": "top-k", "shards": 4, "seed": 2}
    busy = predict(exact, load=0.5, requests=150, **size)
    paces = 1.0 + Streams(3).uniform("paces", 0, 150)
    slower = busy.at_paces(paces)
    assert busy.paces is None
    assert slower.arrival_ms is not None
    assert (slower.arrival_ms == busy.arrival_ms).all()
    assert f"at paces known, {np.median(paces):.3g} in the median" in repr(slower)
    query_ms = exact.fit("top-k").query_ms(5, 4)
    for foretold, each in ((busy, np.ones(150)), (slower, paces)):
        end_ms, sojourn_ms = 0.0, []
        for arrival_ms, pace in zip(slower.arrival_ms.tolist(), each.tolist(), strict=True):
            end_ms = max(end_ms, arrival_ms) + (query_ms + RUNS * 0.05) * pace
            sojourn_ms.append(end_ms - arrival_ms)
        assert foretold.times_ms[0] == pytest.approx(sojourn_ms, rel=0.01)
    assert (busy.at_paces(np.ones(150)).times_ms == busy.times_ms).all()
    alone = predict(exact, requests=150, **size).at_paces(paces)
    assert alone.times_ms[0] == pytest.approx(query_ms * paces, rel=1e-3)  # Simulated time has ticks.
    for wrong in (paces[:-1], 0 * paces, -paces, np.nan * paces, np.inf * paces, 1.2, "1", [[1.0] * 150]):
        with pytest.raises(InvalidArgumentError, match="paces must be 150 positive, finite"):
            busy.at_paces(wrong)


@pytest.mark.parametrize(
    "sticks", [{"yardstick_ms": 1.0}, {"began_ms": 0.0}, {"began_ms": 0.0, "yardstick_ms": np.nan}]
)
def test_a_table_without_whole_timings_of_a_yardstick_is_one_of_one_pace(sticks: dict[str, float]) -> None:
    """One column alone, or a timing that is none, tells no pace."""
    sizes = np.repeat([30, 100, 300], 30)
    times = 0.5 + 0.02 * sizes
    table = pd.DataFrame(
        {"statement": "all", "vendors": sizes, "shards": 1, "round": np.tile(range(30), 3), "rows": 0,
         "scatter_ms": times, "gather_ms": 0.0, "rest_ms": 0.0, "total_ms": times, **sticks}
    )  # fmt: skip
    found = fit_calibration(table, statements=[Statement("all", "SELECT ?", 0, 1)])
    assert found.paces is None
    assert found.yardstick_ms == 0.0
    assert found.fit("all").query_ms(1_000, 1) == pytest.approx(20.5)


def test_a_prediction_plays_stretches_of_the_calibrations_paces() -> None:
    """Replications differ by where in the calibration they begin; a slow half stays slow for as long as it did."""
    exact = calibrated(Constant(1.0))
    query_ms = exact.fit("top-k").query_ms(500, 8)
    # Ten queries' time at each pace: of ten requests in a row most meet one pace alone, and few both.
    at_ms = query_ms * np.arange(21.0)
    pace = np.where(np.arange(21) < 10, 1.0, 2.0)
    paced = replace(exact, paces=PaceTrace(at_ms, pace))
    foretold = predict(paced, vendors=500, statement="top-k", requests=4, seed=1)
    met = foretold.times_ms / query_ms
    assert np.isclose(met, 1.0, rtol=1e-3).any()
    assert np.isclose(met, 2.0, rtol=1e-3).any()
    steps = (np.abs(np.diff(met, axis=1)) > 0.5).sum()
    assert 0 < steps < 0.3 * met[:, 1:].size
    again = predict(paced, vendors=500, statement="top-k", requests=4, seed=1)
    assert (again.times_ms == foretold.times_ms).all()
    assert foretold.p50.high / foretold.p50.low == pytest.approx(2.0, rel=0.01)


def test_the_answer_says_where_the_errors_lie() -> None:
    """By size and under load where most errors show it, and not where they do not; a machine of another pace."""

    def answer(large: float, busy: float, pace: float) -> str:
        rows = []
        for x, load, estimate in ((3_000, 0.0, 0.0), (10_000, 0.0, large), (3_000, 0.5, busy), (10_000, 0.5, -30.0)):
            for name in ("error of p50", "error of p99", "error of p50, pace known", "error of p99, pace known",
                         "pace"):  # fmt: skip
                value = pace if name == "pace" else estimate
                rows.append(
                    {"x": x, "group": load_name(load), "series": "filter", "statistic": name, "estimate": value,
                     "low": value - 1, "high": value + 1}
                )  # fmt: skip
        return in_words(pd.DataFrame(rows))

    said = answer(-12.0, -5.0, 3.0)
    assert "The p50 is within 15 % in 3 of 4 cases" in said
    assert "The p99, pace known, is within 15 % in 3 of 4 cases" in said
    assert "-30 % at worst (filter, 10,000 vendors, open loop at 0.5)" in said
    assert "a yardstick took +3 to +3 % more than during calibration" in said
    assert "1 of 1 statements the error falls from 3,000 to 10,000 vendors, by 12 to 12 points" in said
    assert "2 of 2 cases the error under load lies below that of one query at a time, by 12 points" in said
    for pace in (3.0, 40.0, -40.0):
        said = answer(-1.5, 5.0, pace)
        assert "error falls" not in said
        assert "under load" not in said
        assert ("tell of the machine" in said) == (abs(pace) > 15)


def test_one_run_more_lies_in_a_predictions_interval_as_often_as_it_says(calibration: Calibration) -> None:
    """With 39 replications, and with 100: 95 % of 2,000 further runs, within the binomial error; with 20, 90 %.

    Student's, or the central 95 % of so few, would hold it more seldom.
    """
    foretold = predict(calibration, vendors=100, statement="filter", requests=2)
    assert foretold.p50.confidence == pytest.approx(0.95)
    assert (foretold.p50.low, foretold.p50.high) == (foretold.times_ms.mean(1).min(), foretold.times_ms.mean(1).max())
    assert "at 95 %" in repr(foretold)
    for runs, level in ((39, 0.95), (100, 1 - 4 / 101), (20, 1 - 2 / 21)):
        draws = Streams(9).generator("macro", runs).lognormal(size=(2000, runs + 1, 5))
        found = [replace(foretold, times_ms=each[1:]).quantile(0.99) for each in draws]
        assert {round(interval.confidence, 9) for interval in found} == {round(level, 9)}
        held = sum(np.quantile(each[0], 0.99) in interval for each, interval in zip(draws, found, strict=True))
        assert level in share_interval(held, 2000, confidence=0.999)


def queue(draws: np.random.Generator, requests: int, load: float) -> tuple[Any, Any]:
    """Draw arrivals and sojourn times of one M/M/1 queue."""
    arrivals = np.cumsum(draws.exponential(1 / load, requests))
    return arrivals, service_ends(arrivals, draws.exponential(1.0, requests)) - arrivals


@pytest.mark.parametrize(("requests", "p", "load"), [(300, 0.5, 0.5), (2000, 0.9, 0.5), (2000, 0.5, 0.8)])
def test_intervals_from_busy_cycles_hold_the_quantile_as_often_as_they_say(
    requests: int, p: float, load: float
) -> None:
    """Of 500 M/M/1 queues the true quantile lies inside 95 %, within the binomial error; hardly one is refused."""
    truth = mm1_quantile(p, load, 1.0)
    draws = Streams(3).generator("queues", requests)
    held = []
    for _ in range(500):
        with suppress(InvalidArgumentError):
            held.append(truth in cycle_interval(*queue(draws, requests, load), p))
    assert len(held) > 490
    found = share_interval(sum(held), len(held), confidence=0.999)
    assert found.high > 0.95
    assert found.estimate > 0.92


def test_intervals_under_load_come_from_busy_cycles() -> None:
    """Requests that never meet are cycles of one; what too few cycles reach beyond is refused, by number."""
    sojourn = Streams(2).uniform("x", 0, 400)
    apart = cycle_interval(np.linspace(0, 4000, 400), sojourn, 0.5)
    assert 0.5 in apart
    assert 0.05 < apart.high - apart.low < 0.15  # About 2 * 1.96 * 0.5 / sqrt(400).
    mirrored = cycle_interval(np.linspace(0, 4000, 400), 1 - sojourn, 0.2)
    above = cycle_interval(np.linspace(0, 4000, 400), sojourn, 0.8)
    assert [mirrored.low, mirrored.high] == pytest.approx([1 - above.high, 1 - above.low], abs=0.01)
    with pytest.raises(InvalidArgumentError, match=r"1 busy cycles of 400 .* needs 30: measure about 12,000 requests"):
        cycle_interval(np.linspace(0, 1e-3, 400), sojourn, 0.5)
    with pytest.raises(InvalidArgumentError, match="measure about 90 requests"):
        cycle_interval([0, 1, 9], [2, 3, 2], 0.999)
    with pytest.raises(InvalidArgumentError, match="needs 30"):
        cycle_interval(*queue(Streams(3).generator("one"), 300, 0.5), 0.99)
    for arrivals, times, p in (
        ([0, 1], [1], 0.5), ([], [], 0.5), ([1, 0], [1, 1], 0.5), ([0, 1], [1, np.nan], 0.5), ([0, 1], [1, 1], 1.0),
        ([0, 1], [1, 1], True),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match="must be"):
            cycle_interval(arrivals, times, p)


def test_fewer_replications_than_an_interval_needs_are_refused_by_number(calibration: Calibration) -> None:
    """39, and why."""
    with pytest.raises(InvalidArgumentError, match="at least 39, not 20: one run more lies between the lowest and"):
        predict(calibration, vendors=100, statement="filter", replications=20)


def test_the_error_of_a_prediction_is_that_of_the_median_and_the_tail(calibration: Calibration) -> None:
    """Where all take a quarter longer than foretold, what was foretold is a fifth too little."""
    foretold = predict(calibration, vendors=100, statement="top-k", requests=300, seed=1)
    table = tidy(compared(foretold, 1.25 * foretold.times_ms[0])).set_index(["kind", "statistic"])
    for statistic in ("p50", "p99"):
        error = table.loc[("simulated", f"error of {statistic}")]
        assert error["estimate"] == pytest.approx(-20, abs=4)
        assert error["low"] < error["estimate"] < error["high"]


def test_a_calibration_shows_itself(calibration: Calibration) -> None:
    """HTML names machine, seed, terms and fit; markup in a statement's name stays text."""
    page = calibration._repr_html_()
    for part in ("a vendor, us", "R²", f"seed {calibration.seed}", calibration.machine, "sqlite"):
        assert part in page
    assert "us a vendor" in repr(calibration)
    with pytest.raises(InvalidArgumentError, match="there are top-k"):
        calibration.fit("<b>")


def test_the_question_is_answered_from_live_markets() -> None:
    """Tiny live markets, from generation to the chart; of the numbers only what must hold on any machine is asked."""
    result, found = asyncio.run(
        live_vs_simulated(
            fitted=((20, 2), (40, 2), (60, 2), (60, 1)), predicted=(90,), statements=STATEMENTS[:2], rounds=30,
            requests=12, tolerance=1.0, seed=5,
        )
    )  # fmt: skip
    frame = result.frame
    errors = [f"error of {name}{suffix}" for suffix in ("", ", pace known") for name in ("p50", "p99")]
    assert set(frame["statistic"]) == {"p50", "p99", "p50, pace known", "p99, pace known", *errors, "pace"}
    assert set(found.fits) == {"top-k", "filter"}
    for row in frame[frame["statistic"] == "error of p50"].to_dict("records"):
        same = frame[(frame["x"] == row["x"]) & (frame["group"] == row["group"]) & (frame["series"] == row["series"])]
        value = {kind: same[(same["kind"] == kind) & (same["statistic"] == "p50")]["estimate"].item()
                 for kind in ("measured", "simulated")}  # fmt: skip
        assert row["estimate"] == pytest.approx(100 * (value["simulated"] / value["measured"] - 1))
    assert "at worst" in in_words(frame)
    axes = charts.live_vs_simulated_chart(frame)
    charts.annotate(axes, title="t", caption=result.caption)
    assert len(axes) == 4
    assert axes[0].get_ylabel() == "p50 of the sojourn time, ms"
    labels = {label for each in axes for label in each.get_legend_handles_labels()[1]}
    kinds = ("measured", "simulated", "simulated, pace known")
    assert labels == {f"{kind}: {name}" for kind in kinds for name in found.fits}
    with pytest.raises(InvalidArgumentError):
        asyncio.run(live_vs_simulated(fitted=((100, 8),), predicted=(100,), seed=1))
