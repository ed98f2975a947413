"""Scenarios, simulation with the real coordinator, sweeps, statistics, closed forms."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, signal, stats

from mktsim.errors import (
    InvalidArgumentError,
    ParameterError,
    QueryError,
    ReadOnlyError,
    SQLSyntaxError,
    UnsupportedQueryError,
)
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.placement import ConsistentHashRing
from mktsim.sim.latency import Exponential, LogNormal
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sim.world import World, preset_directory
from mktsim.sql import Plan, Planner
from mktsim.streams import Streams
from mktsim.study import analytic
from mktsim.study.coordinated import SCHEMA, fleet
from mktsim.study.replication import place, simulate
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import (
    batch_means_interval,
    mean_interval,
    mser5,
    quantile_interval,
    required_replications,
    samples_for_quantile,
)
from mktsim.study.sweeps import sweep

# --- Scenario ------------------------------------------------------------------------------------------------------

_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@given(
    st.builds(
        Scenario,
        vendors=st.integers(1, 10_000_000),
        products=st.integers(0, 1000),
        preset=st.sampled_from(("same-zone", "cloudflare-2026", "same-region", "multi-region")),
        fanout=st.one_of(st.just("flat"), st.integers(2, 100)),
        window=st.one_of(st.none(), st.just("unlimited"), st.integers(1, 100)),
        shards=st.one_of(st.none(), st.integers(1, 100)),
        statement=_texts.filter(str.strip),
        params=st.lists(
            st.one_of(_texts, st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False, allow_infinity=False))
        ),
    )
)
def test_a_scenario_round_trips_through_toml(scenario: Scenario) -> None:
    """Whatever the statement holds: quotes, controls, any script."""
    assert Scenario.from_toml(scenario.to_toml()) == scenario


@pytest.mark.parametrize(
    "changes",
    [
        {"vendors": 0},
        {"vendors": 2.0},
        {"vendors": math.nan},
        {"vendors": 10**9},
        {"products": -1},
        {"fanout": 1},
        {"fanout": "wide"},
        {"window": 0},
        {"window": True},
        {"shards": 0},
        {"virtual_nodes": 0},
        {"statement": " "},
        {"statement": 5},
        {"params": "electronics"},
        {"params": [None]},
        {"params": [math.nan]},
        {"params": [1 << 63]},
        {"params": ["\ud800"]},
        {"preset": "atlantis"},
        {"preset": "missing.toml"},
        {"vendor": 5},
    ],
)
def test_a_scenario_out_of_range_is_a_named_error(changes: dict[str, Any]) -> None:
    """Checked when made; the message is short and the scenario unchanged."""
    with pytest.raises(InvalidArgumentError) as caught:
        Scenario().replace(**changes)
    assert len(str(caught.value)) < 400


def test_a_scenario_shows_itself_without_running_what_it_holds() -> None:
    """HTML in a statement is shown as text."""
    shown = Scenario(statement="SELECT '<script>alert(1)</script>'")._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown


def test_text_that_is_no_scenario_is_a_named_error() -> None:
    """Neither TOML nor known values."""
    for text in ("vendors = ", "vendor = 5", "vendors = '5'"):
        with pytest.raises(InvalidArgumentError):
            Scenario.from_toml(text)


# --- simulate ------------------------------------------------------------------------------------------------------

STATEMENTS = [
    ("SELECT name, price, rating FROM products WHERE category = ? ORDER BY rating DESC, id LIMIT 10", ("electronics",)),
    ("SELECT COUNT(*) AS count, SUM(price), AVG(rating), MIN(name) FROM products", ()),
    ("SELECT category, COUNT(*), TOTAL(stock) FROM products GROUP BY category HAVING COUNT(*) > 3", ()),
    ("SELECT DISTINCT rating FROM products WHERE price BETWEEN ? AND ?", (10, 200)),
    ("SELECT vendorId, name FROM products WHERE rating = (SELECT MAX(rating) FROM products) ORDER BY id", ()),
]


@pytest.mark.parametrize(("statement", "params"), STATEMENTS)
def test_live_and_simulated_give_the_same_rows(statement: str, params: tuple[Any, ...]) -> None:
    """The same coordinator code over the same databases: only the clock and the network were swapped."""
    scenario = Scenario(vendors=30, preset="cloudflare-2026", statement=statement, params=params)
    databases = fleet(scenario, Streams(3))
    try:
        coordinator = QueryCoordinator([Scanner.from_connection(*item) for item in databases.items()], schema=SCHEMA)
        live = asyncio.run(coordinator.query(statement, params)).rows
        coordinator.close()
    finally:
        for database in databases.values():
            database.close()
    simulated = simulate(scenario, requests=2, seed=3, engine="event")
    assert simulated.rows == live
    assert len(live) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "cloudflare-2026"},
        {"preset": "cloudflare-2026", "window": "unlimited"},
        {"preset": "multi-region", "window": 7},
        {"shards": 5, "virtual_nodes": 3},
    ],
)
def test_the_real_coordinator_takes_the_times_that_the_arrays_say(changes: dict[str, Any]) -> None:
    """Bit for bit, with SQL executed or left out, for the object code that also answers live."""
    scenario = Scenario(vendors=80, **changes)
    events = simulate(scenario, requests=5, seed=7, engine="event")
    vectors = simulate(scenario, requests=5, seed=7)
    bare = simulate(scenario, requests=5, seed=7, engine="event", execute=False)
    assert (events.engine, vectors.engine) == ("event", "vectorised")
    assert events.sojourn_time_ms.tobytes() == vectors.sojourn_time_ms.tobytes() == bare.sojourn_time_ms.tobytes()
    assert bare.rows is None


def test_auto_takes_the_event_engine_where_arrays_do_not_cover() -> None:
    """A window over shared hosts feeds back: only events can tell."""
    result = simulate(Scenario(vendors=40, shards=4, window=3), requests=2, seed=1)
    assert result.engine == "event"
    assert result.rows is not None


def test_the_platform_table_is_reproduced_within_seven_percent() -> None:
    """p50 and p99 of one deployed object calling N others in a loop (public measurement, 2026)."""
    for n, p50, p99 in ((10, 61, 77), (50, 96, 151), (100, 142, 243), (250, 296, 522)):
        result = simulate(Scenario(vendors=n, preset="cloudflare-2026"), requests=4000, seed=1)
        assert result.p50.estimate == pytest.approx(p50, rel=0.07)
        assert result.p99.estimate == pytest.approx(p99, rel=0.07)


def test_a_result_carries_its_provenance_and_shows_itself() -> None:
    """Seed, engine, preset and date, versions; a table that says what it cannot estimate."""
    result = simulate(Scenario(vendors=10), requests=50, seed=9)
    origin = result.provenance
    assert (origin["seed"], origin["engine"], origin["preset"], origin["requests"]) == (
        9,
        "vectorised",
        "same-zone",
        50,
    )
    assert origin["preset_date"].startswith("20")
    assert {"mktsim", "numpy", "simpy", "sqlite", "python"} <= origin["versions"].keys()
    assert "needs 299 requests" in result._repr_html_()
    with pytest.raises(InvalidArgumentError, match="299"):
        _ = result.p99
    assert list(result.to_pandas().columns) == ["request", "sojourn_time_ms"]
    assert result.p50.low <= result.p50.estimate <= result.p50.high


def test_bad_simulations_are_named_errors() -> None:
    """Before any work: counts, engines, engines without a tree, fleets that do not fit."""
    scenario = Scenario(vendors=10)
    for arguments in (
        {"requests": 0, "seed": 1},
        {"requests": 1.5, "seed": 1},
        {"requests": 1, "seed": -1},
        {"requests": 1, "seed": 1, "engine": "magic"},
        {"requests": 1, "seed": 1, "execute": None},
    ):
        with pytest.raises(InvalidArgumentError):
            simulate(scenario, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="engine='vectorised'"):
        simulate(scenario.replace(vendors=1_000_000), requests=1, seed=1, engine="event")


@pytest.mark.parametrize(
    ("statement", "params", "error"),
    [
        ("SELEC garbage", (), SQLSyntaxError),
        ("SELECT price FROM prices", (), SQLSyntaxError),
        ("SELECT cost FROM products", (), SQLSyntaxError),
        ("DELETE FROM products", (), ReadOnlyError),
        ("SELECT rowid FROM products", (), UnsupportedQueryError),
        ("SELECT 1 FROM products WHERE price > ?", (), ParameterError),
        ("SELECT 1 FROM products", ("electronics",), ParameterError),
    ],
)
def test_a_faulty_statement_is_the_same_error_in_either_engine(
    statement: str, params: tuple[Any, ...], error: type[QueryError]
) -> None:
    """Arrays compute times whatever the text says, so it is planned for them too; sweeps refuse it before any work."""
    faulty = Scenario(vendors=3, statement=statement, params=params)
    told = set()
    for engine in ("event", "vectorised", "auto"):
        with pytest.raises(error) as caught:
            simulate(faulty, requests=1, seed=1, engine=engine)  # type: ignore[arg-type]
        told.add(str(caught.value))
    for axis in ({"vendors": [3]}, {"statement": [statement]}):
        with pytest.raises(error) as caught:
            sweep(faulty.replace(**{name: values[0] for name, values in axis.items()}), seed=1, replications=2,
                  quantiles=(), progress=False, **axis)  # fmt: skip
        told.add(str(caught.value))
    assert len(told) == 1
    assert simulate(faulty.planned_elsewhere(), requests=1, seed=1).engine == "vectorised"


def test_a_statement_is_planned_once_however_often_it_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning takes milliseconds, as long as a thousand requests to a small fleet."""
    planned: list[str] = []
    plan = Planner.plan

    def counted(planner: Planner, sql: str) -> Plan:
        planned.append(sql)
        return plan(planner, sql)

    monkeypatch.setattr(Planner, "plan", counted)
    text = "SELECT COUNT(*) AS planned_once FROM products"
    sweep(Scenario(statement=text), seed=1, replications=3, quantiles=(), progress=False, vendors=[2, 3, 4])
    assert planned == [text]


def test_parameters_belong_to_their_statement() -> None:
    """Those of the default statement are not handed to another one; one's own stay."""
    text = "SELECT COUNT(*) FROM products"
    made = [Scenario(statement=text), Scenario().replace(statement=text), Scenario.from_dict({"statement": text})]
    for scenario in made:
        assert scenario.params == ()
    assert Scenario().params == ("electronics",)
    assert Scenario(params=("toys",)).replace(statement=text + " WHERE category = ?").params == ("toys",)


def test_times_that_no_sql_made_say_so() -> None:
    """Who reads a result of the array engine must not think that its statement ran."""
    for engine, ran in (("vectorised", False), ("event", True)):
        result = simulate(Scenario(vendors=2), requests=1, seed=1, engine=engine)  # type: ignore[arg-type]
        assert ("no SQL ran" not in repr(result)) == ran == ("no SQL ran" not in result._repr_html_())


def test_a_preset_may_be_given_as_a_path(tmp_path: Path) -> None:
    """Kept as text, so that the scenario can be written down; a path that is no preset's file says what one is."""
    path = tmp_path / "mine.toml"
    path.write_text((preset_directory() / "same-zone.toml").read_text("utf-8"), "utf-8")
    scenario = Scenario(preset=path)  # type: ignore[arg-type]
    assert scenario == Scenario(preset=str(path))
    assert Scenario.from_toml(scenario.to_toml()) == scenario
    with pytest.raises(InvalidArgumentError, match=r"ends in \.toml"):
        Scenario(preset=tmp_path / "mine.json")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError) as caught:
        Scenario(preset="x" * 1_000_000 + ".toml")
    assert len(str(caught.value)) < 700


# --- sweep ---------------------------------------------------------------------------------------------------------


def test_a_sweep_is_tidy_and_independent_of_its_executor() -> None:
    """One row a scenario and statistic, with its interval; the same frame from one thread and from two."""
    arguments: dict[str, Any] = {"replications": 4, "seed": 2, "requests": 100, "progress": False}
    axes: dict[str, Any] = {"vendors": [10, np.int64(100)], "fanout": ["flat", 6]}
    alone = sweep(Scenario(), **arguments, **axes)
    with ThreadPoolExecutor(2) as executor:
        together = sweep(Scenario(), **arguments, **axes, executor=executor)
    pd.testing.assert_frame_equal(alone, together)
    assert len(alone) == 4 * 3
    assert set(alone["statistic"]) == {"mean", "p50", "p99"}
    assert (alone["low"] <= alone["estimate"]).all()
    assert (alone["estimate"] <= alone["high"]).all()
    assert set(alone[alone["statistic"] == "mean"]["n"]) == {4}
    assert set(alone[alone["statistic"] == "p99"]["n"]) == {400}


def test_a_sweep_checks_everything_before_it_works() -> None:
    """Unknown axes, empty axes, values out of range, quantiles that the samples cannot bear."""
    for changes, message in (
        ({"replications": 1}, "replications"),
        ({"vendor": [1]}, "vendor"),
        ({"vendors": []}, "no values"),
        ({"vendors": 5}, "iterable"),
        ({"vendors": [1, 0]}, "vendors"),
        ({"quantiles": (0.9999,)}, "29,956"),
    ):
        arguments = {"replications": 10, "seed": 1, "progress": False, **changes}
        with pytest.raises(InvalidArgumentError, match=message):
            sweep(Scenario(), **arguments)  # type: ignore[arg-type]


# --- statistics ----------------------------------------------------------------------------------------------------


def _covered(estimate: Any, truth: float, draw: Any, runs: int = 1000) -> float:
    generator = np.random.default_rng(20261122)
    hits = 0
    for _ in range(runs):
        interval = estimate(draw(generator))
        hits += interval.low <= truth <= interval.high
    return hits / runs


def test_intervals_cover_as_often_as_they_say() -> None:
    """Nominal 95 % over 1,000 macro-runs, within binomial error (99.9 %: 92.5 to 97.1 %); discrete ones may exceed."""
    t = _covered(mean_interval, 5.0, lambda g: g.normal(5, 2, 12))
    assert 0.925 <= t <= 0.972
    for p, n in ((0.5, 40), (0.99, 299), (0.99, 2000), (0.05, 100)):
        truth = -math.log1p(-p)
        share = _covered(lambda x, p=p: quantile_interval(x, p), truth, lambda g, n=n: g.exponential(1, n))
        assert share >= 0.925, (p, n)


def test_batch_means_cover_where_naive_intervals_do_not() -> None:
    """An autoregressive series, correlation 0.9: the naive interval is far too short."""

    def series(generator: np.random.Generator) -> np.ndarray[Any, Any]:
        return np.asarray(signal.lfilter([1.0], [1.0, -0.9], generator.normal(size=20_000)))

    assert _covered(batch_means_interval, 0.0, series, 200) > 0.88
    assert _covered(mean_interval, 0.0, series, 200) < 0.6


@settings(deadline=None)
@given(st.floats(0.001, 0.9999), st.floats(0.5, 0.999))
def test_a_quantile_needs_exactly_the_samples_it_names(p: float, confidence: float) -> None:
    """With that many the whole range covers; with one fewer it does not, and the call is refused."""
    n = samples_for_quantile(p, confidence=confidence)
    assert p**n + (1 - p) ** n <= 1 - confidence + 1e-12
    if n > 1:
        assert p ** (n - 1) + (1 - p) ** (n - 1) > 1 - confidence - 1e-12
        with pytest.raises(InvalidArgumentError, match=f"{n:,}"):
            quantile_interval(np.arange(n - 1.0), p, confidence=confidence)
    interval = quantile_interval(np.arange(float(n)), p, confidence=confidence)
    # Exact coverage of the chosen order statistics, from the binomial law itself.
    low, high = int(interval.low) + 1, int(interval.high) + 1
    assert stats.binom.cdf(high - 1, n, p) - stats.binom.cdf(low - 1, n, p) >= confidence - 1e-9


def test_warm_up_is_found_and_absent_where_there_is_none() -> None:
    """MSER-5 cuts an initial slope of 400 near its end and leaves a stationary series almost whole."""
    noise = np.random.default_rng(1).normal(size=4000)
    start = np.zeros(4000)
    start[:400] = np.linspace(20, 0, 400)
    assert 300 <= mser5(noise + start) <= 500
    assert mser5(noise) <= 200


def test_replications_for_a_width_are_enough_and_not_many_more() -> None:
    """The half-width at the number named is within the width; at nine tenths of it, it is not."""
    pilot = np.random.default_rng(1).normal(10, 3, 30)
    spread = pilot.std(ddof=1) / pilot.mean()
    n = required_replications(pilot, 0.02)

    def half(m: int) -> float:
        return float(stats.t.ppf(0.975, m - 1) * spread / math.sqrt(m))

    assert half(n) <= 0.02 < half(int(0.9 * n))
    for bad in ([], [1.0], [1.0, math.nan]):
        with pytest.raises(InvalidArgumentError):
            mean_interval(bad)
    with pytest.raises(InvalidArgumentError, match="relative"):
        required_replications([1.0, -1.0], 0.1)


# --- closed forms --------------------------------------------------------------------------------------------------

_EXP = World(link_out=Exponential(1.0))


def _mean_ms(world: World, leaves: int, requests: int = 3000) -> Any:
    return mean_interval(
        vectorised_sojourn_times(world, Streams(5), leaves=leaves, requests=range(requests)) * 1e3, confidence=0.999
    )


def _holds(interval: Any, value: float) -> bool:
    return bool(interval.low <= value <= interval.high)


def test_the_maximum_of_exponentials_is_harmonic() -> None:
    """H_N against the engine, against the integral of 1 - F^N and against its own sum."""
    for n in (1, 10, 100):
        theory = analytic.max_of_exponentials(n)
        assert theory == pytest.approx(sum(1 / i for i in range(1, n + 1)))
        assert theory == pytest.approx(analytic.mean_of_maximum(lambda t: -math.expm1(-t), n))
        assert _holds(_mean_ms(_EXP, n), theory)


def test_a_window_of_exponentials_takes_the_closed_form() -> None:
    """(N - c)/c + H_c against the engine's recursion."""
    for n, c in ((50, 6), (100, 1), (20, 19), (5, 6)):
        assert _holds(_mean_ms(_EXP.replace(window=c), n, 2000), analytic.windowed_exponentials(n, c))


def test_k_of_n_hedge_and_the_slow_share_hold_against_samples() -> None:
    """Order statistics and minima of 200,000 samples; the paper's 63 % and 18.1 %."""
    generator = np.random.default_rng(1)
    x = np.sort(generator.exponential(1, (20_000, 10)), axis=1)
    assert _holds(mean_interval(x[:, 6], confidence=0.999), analytic.k_of_n_exponentials(7, 10))
    delay = 0.7
    first, second = generator.exponential(1, (2, 200_000))
    hedged = np.minimum(first, delay + second)
    assert _holds(mean_interval(hedged, confidence=0.999), analytic.hedged_exponential_mean(delay))
    survival = lambda t: math.exp(-max(t, 0.0))  # noqa: E731
    assert (hedged > 1.5).mean() == pytest.approx(analytic.hedged_survival(survival, 1.5, delay), abs=0.005)
    integral = integrate.quad(lambda t: analytic.hedged_survival(survival, t, delay), 0, np.inf)[0]
    assert integral == pytest.approx(analytic.hedged_exponential_mean(delay))
    assert analytic.slow_share(100, 0.01) == pytest.approx(0.633968, abs=1e-6)
    assert analytic.slow_share(2000, 1e-4) == pytest.approx(0.181, abs=5e-4)


def test_the_requests_quantile_is_a_far_quantile_of_a_leaf() -> None:
    """Request p99 over 100 leaves = leaf quantile 0.99^(1/100), simulated with lognormal leaves."""
    leaf = LogNormal(1.0, 5.0)
    times = vectorised_sojourn_times(World(link_out=leaf), Streams(3), leaves=100, requests=range(4000)) * 1e3
    assert _holds(quantile_interval(times, 0.99, confidence=0.999), leaf.quantile(analytic.leaf_quantile(0.99, 100)))


def test_the_tail_decides_at_a_million_leaves() -> None:
    """Median of the maximum: 125 for lognormal(0, 1) and 291 for Pareto(2.5), in units of the scale."""
    share = analytic.leaf_quantile(0.5, 1_000_000)
    assert LogNormal(1.0, math.exp(stats.norm.ppf(0.99))).quantile(share) == pytest.approx(125, rel=0.02)
    assert stats.pareto(2.5).ppf(share) == pytest.approx(291, rel=0.02)


def _queue(arrivals: Any, services: Any, servers: int = 1) -> Any:
    free = [0.0] * servers
    sojourn = np.empty(len(arrivals))
    for i, (a, s) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        j = min(range(servers), key=free.__getitem__)
        free[j] = max(a, free[j]) + s
        sojourn[i] = free[j] - a
    return sojourn


def test_queues_take_their_closed_forms() -> None:
    """M/M/1, M/G/1 (uniform service), M/M/3 and the two-way fork-join against long simulated queues."""
    g = np.random.default_rng(4)
    n, rate = 120_000, 0.7
    arrivals = np.cumsum(g.exponential(1 / rate, n))
    exponential = g.exponential(1, n)
    alone = _queue(arrivals, exponential)
    assert alone.mean() == pytest.approx(analytic.mm1_mean(rate, 1), rel=0.05)
    assert np.quantile(alone, 0.99) == pytest.approx(analytic.mm1_quantile(0.99, rate, 1), rel=0.08)
    even = g.uniform(0, 2, n)
    waiting = _queue(arrivals, even) - even
    assert waiting.mean() == pytest.approx(analytic.mg1_waiting(rate, 1, 4 / 3), rel=0.06)
    assert analytic.mg1_waiting(rate, 1, 2) + 1 == pytest.approx(analytic.mm1_mean(rate, 1))
    three = _queue(arrivals / 3, exponential, 3)
    assert three.mean() == pytest.approx(analytic.mmc_mean(3 * rate, 1, 3), rel=0.05)
    joined = np.maximum(alone, _queue(arrivals, g.exponential(1, n)))
    assert joined.mean() == pytest.approx(analytic.fork_join_mean(2, rate, 1), rel=0.05)
    assert analytic.fork_join_mean(3, rate, 1) > analytic.fork_join_mean(2, rate, 1)
    assert analytic.mmc_mean(rate, 1, 1) == pytest.approx(analytic.mm1_mean(rate, 1))


def test_erlang_and_two_choices_hold_against_their_definitions() -> None:
    """Erlang B is a truncated Poisson; one term of the two-choice sum is no queue at all."""
    for load, servers in ((2.0, 3), (80.0, 100)):
        truncated = stats.poisson(load)
        assert analytic.erlang_b(load, servers) == pytest.approx(truncated.pmf(servers) / truncated.cdf(servers))
    assert analytic.erlang_c(0.5, 1) == pytest.approx(0.5)
    assert analytic.two_choices_mean(1e-9) == pytest.approx(1)
    assert analytic.two_choices_mean(0.9) < analytic.mm1_mean(0.9, 1) / 3


def test_the_ring_spreads_as_the_beta_law_says() -> None:
    """CoV, percentiles and the fullest node, against uniform spacings, the public table and our ring."""
    g = np.random.default_rng(2)
    n, v = 100, 20
    gaps = g.exponential(1, (400, n, v)).sum(axis=2)
    loads = n * gaps / gaps.sum(axis=1, keepdims=True)
    assert loads.std() == pytest.approx(analytic.ring_load_variation(n, v), rel=0.02)
    assert np.quantile(loads, 0.99) == pytest.approx(analytic.ring_share_quantile(0.99, n, v), rel=0.02)
    assert np.median(loads.max(axis=1)) == pytest.approx(analytic.ring_max_over_mean(n, v), rel=0.02)
    for points, error, low, high in ((10, 0.3152, 0.37, 1.98), (100, 0.0997, 0.76, 1.28), (1000, 0.0316, 0.92, 1.09)):
        assert analytic.ring_load_variation(1000, points) == pytest.approx(error, rel=0.01)
        assert analytic.ring_share_quantile(0.005, 1000, points) == pytest.approx(low, abs=0.011)
        assert analytic.ring_share_quantile(0.995, 1000, points) == pytest.approx(high, abs=0.02)
    ring = ConsistentHashRing([f"s{i}" for i in range(100)], virtual_nodes=20)
    counts = np.bincount(ring.assign([f"key {i}" for i in range(200_000)]), minlength=100)
    assert counts.std() / counts.mean() == pytest.approx(analytic.ring_load_variation(100, 20), rel=0.25)


def test_one_row_a_vendor_is_exact_with_the_stated_probability() -> None:
    """Top 10 of 100 vendors with one row each kept: 0.628; with k kept it is certain; and against counting."""
    assert analytic.top_k_kept_probability(10, 100, 1) == pytest.approx(0.628, abs=5e-4)
    assert analytic.top_k_kept_probability(10, 100, 10) == pytest.approx(1)
    g = np.random.default_rng(3)
    most = np.array([np.bincount(row).max() for row in g.integers(0, 20, (20_000, 8))])
    assert (most <= 2).mean() == pytest.approx(analytic.top_k_kept_probability(8, 20, 2), abs=0.015)


@pytest.mark.parametrize(
    "call",
    [
        lambda: analytic.mm1_mean(2, 1),
        lambda: analytic.mm1_mean(math.nan, 1),
        lambda: analytic.k_of_n_exponentials(5, 3),
        lambda: analytic.windowed_exponentials(0, 3),
        lambda: analytic.erlang_c(5, 3),
        lambda: analytic.fork_join_mean(100, 0.5, 1),
        lambda: analytic.mg1_waiting(0.5, 1, 0.5),
        lambda: analytic.leaf_quantile(1.0, 5),
        lambda: analytic.ring_share_quantile(0.5, 0, 5),
        lambda: analytic.slow_share(5, 1.5),
    ],
)
def test_closed_forms_refuse_what_they_do_not_cover(call: Any) -> None:
    """No steady state, NaN, outside the range of the formula: named errors."""
    with pytest.raises(InvalidArgumentError):
        call()


def test_more_virtual_nodes_even_out_the_fullest_machine() -> None:
    """The machine with most vendors is the straggler: its share falls with the ring's points, as the law says."""
    fullest = []
    for points in (1, 10, 150):
        hosts = place(Scenario(vendors=20_000, shards=50, virtual_nodes=points))
        assert hosts is not None
        fullest.append(np.bincount(hosts, minlength=50).max() / (20_000 / 50))
    assert all(a > b for a, b in pairwise(fullest))
    assert fullest[-1] == pytest.approx(analytic.ring_max_over_mean(50, 150), abs=0.15)
