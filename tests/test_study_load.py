"""Arrivals, queues, requests that do not wait for each other, and how much load is too much."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.fanout.policy import ScatterPolicy
from mktsim.sim.conditions import Hiccups
from mktsim.sim.latency import Constant, Exponential, LogNormal, Uniform
from mktsim.sim.world import World
from mktsim.streams import Streams
from mktsim.study import analytic
from mktsim.study.arrivals import Batches, Bursts, Diurnal, Poisson, TraceDriven
from mktsim.study.capacity import load_curve, saturation_point
from mktsim.study.load import simulate_load, uncovered
from mktsim.study.queues import service_ends, shared_service_ends
from mktsim.study.scenario import Scenario

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
