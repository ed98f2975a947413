"""Arrivals, queues, requests that do not wait for each other, and how much load is too much."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError, SimulationError, UndercoverageWarning
from mktsim.fanout.policy import ScatterPolicy
from mktsim.sim.conditions import Geography, Hiccups, Route, Zone
from mktsim.sim.latency import Constant, Exponential, LogNormal, Uniform
from mktsim.sim.world import World
from mktsim.streams import Streams
from mktsim.study import analytic, capacity
from mktsim.study.arrivals import Batches, Bursts, Diurnal, Poisson, TraceDriven
from mktsim.study.capacity import load_curve, saturation_point
from mktsim.study.load import draw_calls, simulate_load, uncovered
from mktsim.study.queues import service_ends, shared_service_ends
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import autocorrelation_time, batch_means_interval, mser5, warm_up_is_known

_PROCESSES = [
    Poisson(200.0),
    Bursts(quiet_per_s=0, burst_per_s=2000, quiet_ms=90, burst_ms=10),
    Bursts(quiet_per_s=100, burst_per_s=1100, quiet_ms=90, burst_ms=10),
    Batches(200.0, 5.0),
    Diurnal(200.0, 0.9, 2000.0),
]


# --- arrivals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", _PROCESSES, ids=lambda p: type(p).__name__)
def test_arrivals_come_at_their_rate_and_are_keyed(process: Any) -> None:
    """The mean rate is 200 a second; a longer draw begins as a shorter one; the seed decides; scaling is exact."""
    rates = [1e3 * 20_000 / process.times_ms(Streams(seed), 20_000)[-1] for seed in range(8)]
    assert process.mean_rate_per_s == pytest.approx(200.0)
    assert np.mean(rates) == pytest.approx(200.0, rel=0.04)
    few, many = (process.times_ms(Streams(1), n) for n in (50, 5000))
    assert np.array_equal(few, many[:50])
    assert (np.diff(many) >= 0).all()
    assert not np.array_equal(few, process.times_ms(Streams(2), 50))
    assert process.scaled(4.0).times_ms(Streams(1), 5000) == pytest.approx(many / 4)


def test_bursts_and_batches_come_in_clumps() -> None:
    """Counts a 10 ms window vary like their mean for Poisson, and far more for the others."""

    def dispersion(process: Any) -> float:
        times = process.times_ms(Streams(3), 20_000)
        counts = np.histogram(times, np.arange(0, times[-1], 10.0))[0]
        return float(counts.var() / counts.mean())

    assert dispersion(Poisson(200.0)) == pytest.approx(1.0, abs=0.1)
    assert min(dispersion(process) for process in _PROCESSES[1:4]) > 2
    sizes = np.unique(Batches(200.0, 5.0).times_ms(Streams(1), 20_000), return_counts=True)[1]
    assert sizes.mean() == pytest.approx(5.0, rel=0.06)


def test_the_day_has_its_hours() -> None:
    """The rate in each eighth of the period is the integral of the sine."""
    times = Diurnal(1000.0, 0.8, 1000.0).times_ms(Streams(1), 100_000)
    counts = np.histogram(times % 1000.0, 8, (0, 1000))[0] / len(times)
    edges = np.linspace(0, 1, 9)
    expected = np.diff(edges - 0.8 / (2 * math.pi) * np.cos(2 * math.pi * edges))
    assert counts == pytest.approx(expected, abs=0.006)


def test_bad_arrivals_are_named_errors() -> None:
    """Rates, shares, traces that fall, more requests than a trace holds."""
    for make in (
        lambda: Poisson(0.0), lambda: Poisson(math.nan), lambda: Poisson("5"), lambda: Batches(1.0, 0.5),
        lambda: Bursts(quiet_per_s=-1, burst_per_s=1, quiet_ms=1, burst_ms=1), lambda: Diurnal(1.0, 1.5),
        lambda: TraceDriven(()), lambda: TraceDriven((1.0, 0.0)), lambda: TraceDriven((math.nan, 1.0)),
        lambda: TraceDriven("ab"), lambda: TraceDriven((0.0, 1.0)).times_ms(Streams(1), 3),
        lambda: Poisson(1.0).times_ms(Streams(1), 0), lambda: Poisson(1.0).times_ms(Streams(1), 10**9),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            make()


# --- queues --------------------------------------------------------------------------------------------------------


def _one_by_one(arrivals: list[int], services: list[int], servers: int) -> list[int]:
    free = [0] * servers
    ends = []
    for a, s in zip(arrivals, services, strict=True):
        first = min(range(servers), key=free.__getitem__)
        free[first] = max(a, free[first]) + s
        ends.append(free[first])
    return ends


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=40),
       st.integers(1, 4))  # fmt: skip
def test_queues_as_arrays_equal_queues_call_by_call(calls: list[tuple[int, int, int]], servers: int) -> None:
    """Lindley's and Kiefer and Wolfowitz's recursions, alone, side by side and over shared hosts."""
    arrivals = np.cumsum([gap for gap, _, _ in calls])
    services = np.array([service for _, service, _ in calls])
    expected = _one_by_one(arrivals.tolist(), services.tolist(), servers)
    assert service_ends(arrivals, services, servers).tolist() == expected
    assert service_ends(np.tile(arrivals, (3, 1)), np.tile(services, (3, 1)), servers).tolist() == [expected] * 3
    hosts = np.array([host for _, _, host in calls], np.intp)
    shuffled = np.random.default_rng(1).permutation(len(calls))
    found = shared_service_ends(arrivals[shuffled], services[shuffled], hosts[shuffled], servers)
    for host in set(hosts.tolist()):
        mine = hosts[shuffled] == host
        order = np.argsort(arrivals[shuffled][mine], kind="stable")
        a, s = arrivals[shuffled][mine][order], services[shuffled][mine][order]
        assert found[mine][order].tolist() == _one_by_one(a.tolist(), s.tolist(), servers)


# --- engines -------------------------------------------------------------------------------------------------------

_latencies = st.one_of(
    st.builds(Constant, st.floats(0, 3)), st.builds(Exponential, st.floats(0.1, 3)),
    st.builds(lambda low, more: Uniform(low, low + more), st.floats(0, 2), st.floats(0.1, 2)),
    st.builds(lambda median: LogNormal(median, 3 * median), st.floats(0.1, 2)),
)  # fmt: skip


@settings(max_examples=40)
@given(
    st.builds(
        World, base=_latencies, link_out=_latencies, service=_latencies, link_back=_latencies,
        workers=st.integers(1, 3), fan_out_ms=st.sampled_from((0.0, 0.1)), machines=st.sampled_from((None, 2)),
        pace=st.sampled_from((Constant(1.0), LogNormal(1.0, 2.0))),
        pace_trace=st.sampled_from(((), (1.0, 2.0, 0.5))),
    ),
    st.integers(1, 5),
    st.sampled_from((None, 2)),
    st.sampled_from([Poisson(300.0), Batches(300.0, 3.0), _PROCESSES[1]]),
    st.integers(0, 1000),
)  # fmt: skip
def test_concurrent_requests_take_the_same_times_in_all_engines(
    world: World, vendors: int, shards: int | None, arrivals: Any, seed: int
) -> None:
    """Bit for bit: arrays, plain events and the real coordinator, whatever queues where."""
    scenario = Scenario(vendors=vendors, shards=shards, world=world)
    times = [
        simulate_load(scenario, arrivals, requests=40, seed=seed, engine=engine).sojourn_time_ms.tobytes()
        for engine in ("vectorised", "event", "coordinator")
    ]
    assert times[0] == times[1] == times[2]


def test_what_feeds_back_is_left_to_the_events() -> None:
    """Windows, work on answers, conditions and policies: refused by the arrays by name, simulated by "auto"."""
    for world, name in (
        (World(service=Exponential(1.0), window=2), "window"),
        (World(service=Exponential(1.0), fan_in_ms=0.1), "work on answers"),
        (World(service=Exponential(1.0), hiccups=Hiccups(100.0, Constant(5.0))), "hiccups"),
    ):
        scenario = Scenario(vendors=4, world=world)
        assert name in str(uncovered(scenario))
        with pytest.raises(InvalidArgumentError, match="engine='event'"):
            simulate_load(scenario, Poisson(100.0), requests=10, seed=1, engine="vectorised")
        found = simulate_load(scenario, Poisson(100.0), requests=50, seed=1)
        real = simulate_load(scenario, Poisson(100.0), requests=50, seed=1, engine="coordinator")
        assert found.engine == "event"
        assert found.sojourn_time_ms.tobytes() == real.sojourn_time_ms.tobytes()
    hedged = Scenario(
        vendors=3, world=World(service=Exponential(5.0), replicas=2), policy=ScatterPolicy(hedge_after_s=0.005)
    )
    found = simulate_load(hedged, Poisson(50.0), requests=200, seed=1)
    plain = simulate_load(hedged.replace(policy=None), Poisson(50.0), requests=200, seed=1)
    assert found.engine == "coordinator"
    assert found.sojourn_time_ms.mean() < plain.sojourn_time_ms.mean()


def test_bad_load_is_a_named_error() -> None:
    """Before any work."""
    queue = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    for arguments in (
        {"requests": 0}, {"engine": "magic"}, {"client": "half"}, {"arrivals": 5}, {"seed": -1},
        {"scenario": queue.replace(vendors=10, fanout=2)}, {"arrivals": Poisson(1e-9)}, {"requests": 10**8},
        {"scenario": queue.replace(vendors=1_000_000), "requests": 100},
    ):  # fmt: skip
        given = {"scenario": queue, "arrivals": Poisson(1.0), "requests": 10, "seed": 1, **arguments}
        with pytest.raises(InvalidArgumentError):
            simulate_load(given.pop("scenario"), given.pop("arrivals"), **given)


def test_a_stalled_server_is_seen_by_an_open_client_and_hidden_from_a_closed_one() -> None:
    """It stands still for 1 s in every 5: open, a fifth of the requests see it; closed, next to none."""
    stalls = World(service=Constant(1.0), hiccups=Hiccups(5000.0, Constant(1000.0)))
    scenario, arrivals = Scenario(vendors=1, world=stalls), Poisson(100.0)
    loaded, coordinated = (
        simulate_load(scenario, arrivals, requests=2000, seed=1, client=client).sojourn_time_ms
        for client in ("open", "closed")
    )
    assert (loaded > 100).mean() > 0.15
    assert np.quantile(loaded, 0.99) > 800
    assert (coordinated > 100).mean() < 0.005
    assert np.quantile(coordinated, 0.99) < 5


def test_latency_counts_from_the_intended_start() -> None:
    """While a sender is busy sending, the next request is late from the instant at which it was meant to go."""
    scenario = Scenario(vendors=10, world=World(fan_out_ms=1.0))
    found = simulate_load(scenario, TraceDriven((0.0, 1.0, 2.0)), requests=3, seed=1)
    assert found.arrival_ms == pytest.approx([0, 1, 2], abs=1e-6)
    # It sends for 30 ms before it looks at the first answer.
    assert found.sojourn_time_ms == pytest.approx([30, 29, 28], abs=1e-4)


def test_a_run_reports_its_utilisation_and_shows_itself() -> None:
    """Offered work over the workers' time: rho; and a table."""
    found = simulate_load(
        Scenario(vendors=2, world=World(service=Exponential(1.0), workers=2)), Poisson(1000.0), requests=4000, seed=1
    )
    assert found.utilisation == pytest.approx(0.5, rel=0.1)
    assert list(found.to_pandas().columns) == ["request", "arrival_ms", "sojourn_time_ms"]
    assert "p99" in found._repr_html_()
    assert "utilisation" in repr(found)


# --- capacity ------------------------------------------------------------------------------------------------------

_QUEUE = Scenario(vendors=1, world=World(service=Exponential(1.0)))


def test_sojourn_time_grows_with_utilisation_as_theory_says() -> None:
    """M/M/1 at 0.3 and 0.6: mean and utilisation within their intervals, doubled; the executor does not matter."""
    arguments: dict[str, Any] = {"statistics": ("mean", "p90"), "requests": 800, "seed": 2}
    frame = load_curve(_QUEUE, Poisson(1.0), [300, 600], **arguments)
    with ThreadPoolExecutor(2) as executor:
        parallel = load_curve(_QUEUE, Poisson(1.0), [300, 600], **arguments, executor=executor)
    pd.testing.assert_frame_equal(parallel, frame)
    for row in frame.to_dict("records"):
        rho = row["x"] / 1e3
        theory = {"utilisation": rho, "mean": analytic.mm1_mean(rho, 1.0), "p90": analytic.mm1_quantile(0.9, rho, 1.0)}
        half = row["high"] - row["estimate"]
        assert abs(row["estimate"] - theory[row["statistic"]]) < 2 * half
    with pytest.raises(InvalidArgumentError, match="1,000 requests"):
        load_curve(_QUEUE, Poisson(1.0), [300], requests=800, seed=1)


def test_the_saturation_point_is_where_theory_has_it() -> None:
    """M/M/1 with a limit of 2.5 ms for the mean: 600 a second; limits that none or all reach are named."""
    found = saturation_point(_QUEUE, Poisson(7.0), limit_ms=2.5, statistic="mean", requests=1200, seed=3)
    theory = 1e3 * analytic.mm1_saturation(2.5, 1.0)
    assert found.n == 10
    assert abs(found.estimate - theory) < 2 * (found.high - found.estimate)
    assert found.relative_half_width < 0.15
    with pytest.raises(SimulationError, match="lone request"):
        saturation_point(_QUEUE, Poisson(1.0), limit_ms=0.5, statistic="mean", requests=100, seed=1)
    free = Scenario(vendors=1, world=World(link_out=Constant(1.0)))
    with pytest.raises(SimulationError, match="nothing queues"):
        saturation_point(free, Poisson(1.0), limit_ms=5.0, statistic="mean", requests=20, seed=1)
    for arguments in ({"limit_ms": 0}, {"warm_up": 0.9}, {"tolerance": 0.0}, {"statistic": "best"}):
        with pytest.raises(InvalidArgumentError):
            saturation_point(_QUEUE, Poisson(1.0), **{"limit_ms": 2.0, "seed": 1, **arguments})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def drawn() -> Any:
    """Draw each replication's requests once for all limits: drawing is nearly all that a search takes."""
    known: dict[Any, Any] = {}

    def remembered(scenario: Scenario, streams: Streams, requests: int) -> Any:
        key = (scenario, streams, requests)
        if key not in known:
            known[key] = draw_calls(scenario, streams, requests)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(capacity, "draw_calls", remembered)
        yield


@pytest.mark.parametrize("limit_ms", [10.0, 20.0, 100.0, 1000.0])
def test_a_limit_that_runs_are_too_short_for_is_refused_or_warned_of(limit_ms: float, drawn: None) -> None:
    """M/M/1 at 0.9 by 2,000 requests: right, with a warning; at 0.95 and above, at no rate above the capacity."""
    given: dict[str, Any] = {"limit_ms": limit_ms, "statistic": "mean", "seed": 1}
    if limit_ms == 10.0:
        with pytest.warns(UndercoverageWarning, match="start still shows"):
            found = saturation_point(_QUEUE, Poisson(1.0), **given)
        assert 1e3 * analytic.mm1_saturation(limit_ms, 1.0) in found
        assert found.high < 1000
        return
    with pytest.raises(SimulationError, match=r"raise requests, or ask for a lower limit"):
        saturation_point(_QUEUE, Poisson(1.0), **given)


def test_a_sender_that_is_too_slow_is_no_steady_state_though_machines_are_idle() -> None:
    """Ten messages of 1 ms: a request every 10 ms at most. The machines do nothing; the requests take ever longer."""
    slow = Scenario(vendors=10, world=World(fan_out_ms=1.0))
    with pytest.raises(SimulationError, match=r"takes .* longer than the first"):
        saturation_point(slow, Poisson(1.0), limit_ms=500.0, statistic="mean", requests=200, seed=1)


def test_saturation_points_of_short_runs_are_not_too_high() -> None:
    """M/M/1, p90 of 5.8 ms at 600 a second: runs of 200, 15 macro-runs, hold it and are right within 4 % on average.

    Means of the replications' own rates were 5 % and more too high.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndercoverageWarning)  # So short runs may well be warned of.
        found = [
            saturation_point(
                _QUEUE, Poisson(1.0), limit_ms=math.log(10) / 0.4, statistic="p90", requests=200, seed=seed,
                tolerance=0.01,
            )
            for seed in range(15)
        ]  # fmt: skip
    assert np.mean([each.estimate for each in found]) == pytest.approx(600, rel=0.04)
    assert sum(600 in each for each in found) >= 12  # 95 % less two and a half binomial standard errors.


def test_a_curve_says_where_it_knows_nothing() -> None:
    """Runs of 20 at 0.95 and any at 1.5: no interval, and one warning that names the rates; the engine that ran."""
    with pytest.warns(UndercoverageWarning, match=r"at 950 a second the machines have .* cannot tell"):
        short = load_curve(_QUEUE, Poisson(1.0), [950], statistics=("mean",), requests=20, seed=1)
    assert short.set_index("statistic").loc["mean", ["low", "high"]].isna().all()
    with pytest.warns(UndercoverageWarning, match="at 1500 a second the machines have 1") as caught:
        curve = load_curve(_QUEUE, Poisson(1.0), np.array([100, 1500]), statistics=("mean",), requests=400, seed=1)
    assert len(caught) == 1
    means = curve[curve["statistic"] == "mean"].set_index("x")
    assert means.loc[100.0, "low"] < means.loc[100.0, "high"]
    assert means.loc[1500.0, ["low", "high"]].isna().all()
    assert set(curve["engine"]) == {"vectorised"}


def test_one_runs_mean_warns_where_its_batches_are_short() -> None:
    """M/M/1 at 0.8: 2,000 requests cover 60 % of the time, and every run says so, at the caller's line."""
    warned = 0
    for seed in range(4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            simulate_load(_QUEUE, Poisson(800.0), requests=2000, seed=seed).mean()
        warned += bool(caught)
        assert all(each.category is UndercoverageWarning and each.filename == __file__ for each in caught)
    assert warned == 4


def _sojourn_ms(generator: np.random.Generator, runs: int, requests: int, utilisation: float) -> Any:
    arrivals = np.cumsum(generator.standard_exponential((runs, requests)), axis=1) / utilisation
    return service_ends(arrivals, generator.standard_exponential((runs, requests))) - arrivals


@pytest.mark.parametrize(
    ("requests", "covered", "warned"), [(2000, (0.5, 0.8), (0.95, 1.0)), (40_000, (0.88, 1.0), (0.0, 0.1))]
)
def test_batch_means_warn_where_they_cover_less(
    requests: int, covered: tuple[float, float], warned: tuple[float, float]
) -> None:
    """M/M/1 at 0.8, 100 runs: 20 batches of 100 hold the truth of 5 in two runs of three, of 2,000 as they say."""
    held = said = 0
    for x in _sojourn_ms(np.random.default_rng(4), 100, requests, 0.8):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            held += 5.0 in batch_means_interval(x[mser5(x) :])
        said += bool(caught)
    assert covered[0] <= held / 100 <= covered[1]
    assert warned[0] <= said / 100 <= warned[1]


def test_the_autocorrelation_time_is_that_of_the_law() -> None:
    """An autoregressive series of correlation r: (1 + r) / (1 - r); constants and alternating series: 1."""
    for r in (0.0, 0.5, 0.9):
        noise, x = np.random.default_rng(1).normal(size=40_000), np.empty(40_000)
        value = 0.0
        for i, each in enumerate(noise):
            value = x[i] = r * value + each
        assert autocorrelation_time(x) == pytest.approx((1 + r) / (1 - r), rel=0.15)
    assert autocorrelation_time(np.full(10, 3.0)) == 1.0
    assert autocorrelation_time(np.arange(100) % 2) == 1.0


def test_a_warm_up_that_does_not_end_is_told_from_one_that_does() -> None:
    """A queue beyond its capacity has no end of its warm-up in any run; one at a half has."""
    generator = np.random.default_rng(3)
    assert not any(warm_up_is_known(x) for x in _sojourn_ms(generator, 20, 2000, 1.5))
    assert sum(warm_up_is_known(x) for x in _sojourn_ms(generator, 20, 2000, 0.5)) >= 18
    assert warm_up_is_known(np.ones(400))
    assert mser5(np.ones(400)) == 0


@pytest.mark.parametrize("warm_up", [-1000, "x", 1.5, True, 400, None])
def test_a_warm_up_is_a_number_of_requests_that_leaves_some(warm_up: Any) -> None:
    """Not from behind, not of another kind, not all of them; None is MSER-5's, and whole numbers of numpy count."""
    found = simulate_load(_QUEUE, Poisson(100.0), requests=400, seed=1)
    if warm_up is None:
        assert found.mean(warm_up=np.int64(40)) == found.mean(warm_up=40)  # type: ignore[arg-type]
        return
    with pytest.raises(InvalidArgumentError, match="warm_up"):
        found.mean(warm_up=warm_up)


def test_one_run_under_load_warns_of_what_it_cannot_know() -> None:
    """Beyond the capacity there is no mean; where vendors stand was drawn once."""
    with pytest.warns(UndercoverageWarning, match="no steady state"):
        simulate_load(_QUEUE, Poisson(1500.0), requests=400, seed=1).mean()
    ways = (Route(("a", "a"), Constant(1.0)), Route(("a", "b"), Constant(9.0)), Route(("b", "b"), Constant(1.0)))
    world = World(service=Exponential(1.0), geography=Geography((Zone("a", "a"), Zone("b", "b")), ways, home="a"))
    with pytest.warns(UndercoverageWarning, match="zones"):
        simulate_load(Scenario(vendors=3, world=world), Poisson(10.0), requests=400, seed=1).mean()


def test_a_curve_checks_everything_before_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates, statistics, engines, calls that do not fit: named errors, and nothing was simulated."""
    monkeypatch.setattr(capacity, "run_load", lambda *_, **__: pytest.fail("it worked first"))
    windowed = _QUEUE.replace(vendors=4, window=2)
    cases: list[dict[str, Any]] = [
        {"rates_per_s": []}, {"rates_per_s": 5}, {"rates_per_s": "300"}, {"rates_per_s": [300, True]},
        {"rates_per_s": [0]}, {"statistics": ()}, {"statistics": "mean"}, {"statistics": ("best",)},
        {"scenario": windowed, "engine": "vectorised"}, {"engine": "magic"}, {"seed": -1},
        {"scenario": _QUEUE.replace(vendors=100_000)},
    ]  # fmt: skip
    for changes in cases:
        given = {"scenario": _QUEUE, "rates_per_s": [300], "requests": 1000, "seed": 1, **changes}
        with pytest.raises(InvalidArgumentError):
            load_curve(given.pop("scenario"), Poisson(1.0), given.pop("rates_per_s"), **given)
    for engine in ("vectorised", "magic"):
        with pytest.raises(InvalidArgumentError):
            saturation_point(windowed, Poisson(1.0), limit_ms=5.0, seed=1, engine=engine)  # type: ignore[arg-type]
