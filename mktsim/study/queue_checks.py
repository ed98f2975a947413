"""Checks of the validation in which calls wait for each other: queues, losses, and who picks the shorter queue.

Rules
-----
A closed form is held against what simulates whole worlds, in both engines. What needs runs longer than those do in
seconds stands a second time against the recursion that the array engine has inside, by itself, and says so.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import OverloadedError
from mktsim.sim.conditions import Background, RequestLimit
from mktsim.sim.events import event_sojourn_times
from mktsim.sim.latency import Constant, Exponential, Latency, LogNormal, Uniform
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sim.world import LEAF, TICK_S, World
from mktsim.streams import Streams
from mktsim.study import analytic
from mktsim.study.arrivals import Poisson
from mktsim.study.claims import Claim, Size
from mktsim.study.load import LoadEngine, draw_calls, run_load
from mktsim.study.queues import service_ends
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, mean_interval

Array = NDArray[np.float64]
_ERLANG: Final = "Erlang, 1917"
_KLEINROCK: Final = "Kleinrock, Queueing Systems I"
_POLLACZEK: Final = "Pollaczek & Khinchine"
_NELSON: Final = "Nelson & Tantawi, 1988: 0 to 3 % above"
#: Engines, how many runs of how many requests each is given at scale 1, and how much wider that makes tolerances.
_ENGINES: Final[tuple[tuple[LoadEngine, int, int, float], ...]] = (
    ("vectorised", 12, 1000, 1.0), ("event", 8, 500, 1.6),
)  # fmt: skip
_MEMORYLESS: Final = Exponential(1.0)
#: A lognormal service of mean 1 ms whose logarithm has a standard deviation of 1; its 99th percentile.
_SKEWED: Final = LogNormal(float(np.exp(-0.5)), float(np.exp(-0.5 + 2.3263478740408408)))
#: A call that waited at least so long did wait: less is rounding, of instants far from 0 and of draws to ticks.
_WAITED_MS: Final = 1e-5


def background(streams: Streams, scale: float) -> list[Claim]:
    """A call that finds others' work waits as in M/M/1."""
    rows = []
    for engine, times, requests in (
        ("vectorised", vectorised_sojourn_times, 5000), ("event", event_sojourn_times, 1500),
    ):  # fmt: skip
        size = Size.of(scale, requests)
        world = World(background=Background(0.6, 1.0))
        x = 1e3 * times(world, streams.child(engine), leaves=1, requests=range(size.count))
        rows.append(
            Claim.of("background", "mean wait behind others at utilisation 0.6", engine,
                     analytic.mm1_mean(0.6, 1.0) - 1.0, mean_interval(x), source="Wolff, 1982; Kleinrock I, 5.12",
                     tolerance=0.15, share=size.share)
        )  # fmt: skip
    return rows


def _load_runs(
    world: World, vendors: int, rate: float, streams: Streams, *, engine: LoadEngine, runs: int, requests: int
) -> tuple[Array, Array]:
    """Return sojourn and waiting times in ms of independent runs, after half as many requests more for the warm-up.

    Both of shape (runs, requests). The wait is what is left of the sojourn time without the call's own service; with
    more than one vendor it has no meaning, and is nan.
    """
    scenario, warm_up = Scenario(vendors=vendors, world=world), requests // 2
    sojourn = np.empty((runs, requests + warm_up))
    waiting = np.full_like(sojourn, np.nan)
    for run in range(runs):
        own = streams.child(f"{engine} {run}")
        drawn = draw_calls(scenario, own, requests + warm_up) if vendors == 1 else None
        sojourn[run] = run_load(
            scenario, Poisson(1e3 * rate), own, requests=requests + warm_up, engine=engine, drawn=drawn
        ).sojourn_time_ms
        if drawn is not None:
            waiting[run] = sojourn[run] - drawn[1][1, :, 0] * (TICK_S * 1e3)
    return sojourn[:, warm_up:], waiting[:, warm_up:]


def _means(samples: NDArray[Any]) -> Interval:
    return mean_interval(samples.mean(axis=1))


def _quantiles(samples: Array, p: float) -> Interval:
    return mean_interval(np.quantile(samples, p, axis=1))


def queues(streams: Streams, scale: float) -> list[Claim]:
    """Queues at moderate load, by the engines that run whole worlds."""
    rows: list[Claim] = []
    for engine, runs, requests, wider in _ENGINES:
        size = Size.of(scale, requests, 150)

        def ran(
            name: str, rate: float, *, service: Latency = _MEMORYLESS, servers: int = 1, vendors: int = 1,
            engine: LoadEngine = engine, runs: int = runs, requests: int = size.count,
        ) -> tuple[Array, Array]:  # fmt: skip
            world = World(service=service, workers=servers)
            return _load_runs(world, vendors, rate, streams.child(name), engine=engine, runs=runs, requests=requests)

        def add(
            group: str, claim: str, theory: float | tuple[float, float], found: Interval, source: str,
            tolerance: float, engine: str = engine, share: float = size.share, wider: float = wider,
        ) -> None:  # fmt: skip
            claimed = Claim.of(
                group, claim, engine, theory, found, source=source, tolerance=wider * tolerance, share=share
            )
            rows.append(claimed)

        x, _ = ran("M/M/1", 0.5)
        add("M/M/1", "mean sojourn time at 0.5", analytic.mm1_mean(0.5, 1.0), _means(x), _KLEINROCK, 0.13)
        p90 = analytic.mm1_quantile(0.9, 0.5, 1.0)
        add("M/M/1", "p90 of the sojourn time at 0.5", p90, _quantiles(x, 0.9), _KLEINROCK, 0.15)
        for name, service, square in (("constant", Constant(1.0), 1.0), ("uniform", Uniform(0.0, 2.0), 4 / 3)):
            x, _ = ran(name, 0.5, service=service)
            mean = 1 + analytic.mg1_waiting(0.5, 1.0, square)
            add("M/G/1", f"mean sojourn time at 0.5, {name} service", mean, _means(x), _POLLACZEK, 0.07)
        _, waiting = ran("lognormal", 0.5, service=_SKEWED)
        mean = analytic.mg1_waiting(0.5, 1.0, math.e)
        add("M/G/1", "mean wait at 0.5, lognormal service", mean, _means(waiting), _POLLACZEK, 0.3)
        for servers, load in ((2, 0.6), (3, 0.6), (8, 0.7)):
            rate = load * servers
            x, waiting = ran(f"M/M/{servers}", rate, servers=servers)
            mean = analytic.mmc_mean(rate, 1.0, servers)
            add("M/M/c", f"mean sojourn time of M/M/{servers} at {load}", mean, _means(x), _ERLANG, 0.11)
            waits = analytic.erlang_c(rate, servers)
            often = _means(waiting > _WAITED_MS)
            add("Erlang C", f"P(wait) in M/M/{servers} at {load}", waits, often, _ERLANG, 0.3 if servers == 8 else 0.12)
            if servers == 2:
                long = analytic.mmc_waiting_survival(1.0, rate, 1.0, servers)
                add("Erlang C", "P(wait > 1) in M/M/2 at 0.6", long, _means(waiting > 1.0), _ERLANG, 0.2)
        for n in (2, 8, 32):
            x, _ = ran(f"fork {n}", 0.5, vendors=n)
            mean = analytic.fork_join_mean(n, 0.5, 1.0)
            claim = (mean, "Flatto & Hahn, 1984") if n == 2 else ((mean, 1.03 * mean), _NELSON)
            near = 0.08 if n == 2 else 0.05
            add("fork-join", f"mean of a {n}-way fork-join at 0.5", claim[0], _means(x), claim[1], near)
    return rows


def _long_queue(streams: Streams, name: str, rate: float, runs: int, calls: int, *, servers: int = 1, joined: int = 1,
                kind: str = "exponential") -> tuple[Array, Array]:  # fmt: skip
    """Return sojourn and waiting times of long queues by the recursions of the array engine alone, warmed up."""
    draws = streams.generator(name)
    warm_up = calls // 2
    shape = (runs, calls + warm_up)
    arrivals = np.cumsum(draws.exponential(1 / rate, shape), axis=1)
    sojourn = np.zeros(shape)
    waiting = sojourn
    for _ in range(joined):
        service = draws.exponential(1.0, shape) if kind == "exponential" else draws.lognormal(-0.5, 1.0, shape)
        own = service_ends(arrivals, service, servers) - arrivals
        waiting = own - service
        sojourn = np.maximum(sojourn, own)
    return sojourn[:, warm_up:], waiting[:, warm_up:]


def long_queues(streams: Streams, scale: float) -> list[Claim]:
    """Queues at high load, which need long runs: by the recursion alone."""
    rows: list[Claim] = []
    runs = 20

    def add(
        group: str, claim: str, theory: float | tuple[float, float], found: Interval, source: str, tolerance: float,
        size: Size,
    ) -> None:  # fmt: skip
        rows.append(
            Claim.of(group, claim, "recursion", theory, found, source=source, tolerance=tolerance, share=size.share)
        )

    size = Size.of(scale, 20_000, 6000)
    sojourn, waiting = _long_queue(streams, "M/M/1", 0.8, runs, size.count)
    mean, p99 = analytic.mm1_mean(0.8, 1.0), analytic.mm1_quantile(0.99, 0.8, 1.0)
    add("M/M/1", "mean sojourn time at 0.8", mean, _means(sojourn), _KLEINROCK, 0.06, size)
    add("M/M/1", "p99 of the sojourn time at 0.8", p99, _quantiles(sojourn, 0.99), _KLEINROCK, 0.18, size)
    add("M/M/1", "P(wait) at 0.8", 0.8, _means(waiting > _WAITED_MS), "PASTA: Wolff, 1982", 0.02, size)
    _, waiting = _long_queue(streams, "M/G/1", 0.7, runs, size.count, kind="lognormal")
    mean = analytic.mg1_waiting(0.7, 1.0, math.e)
    add("M/G/1", "mean wait at 0.7, lognormal service", mean, _means(waiting), _POLLACZEK, 0.12, size)
    size = Size.of(scale, 5000, 2000)
    for servers in (2, 8):
        rate = 0.8 * servers
        sojourn, waiting = _long_queue(streams, f"M/M/{servers}", rate, runs, size.count, servers=servers)
        mean, waits = analytic.mmc_mean(rate, 1.0, servers), analytic.erlang_c(rate, servers)
        long = analytic.mmc_waiting_survival(1.0, rate, 1.0, servers)
        add("M/M/c", f"mean sojourn time of M/M/{servers} at 0.8", mean, _means(sojourn), _ERLANG, 0.1, size)
        add("Erlang C", f"P(wait) in M/M/{servers} at 0.8", waits, _means(waiting > _WAITED_MS), _ERLANG, 0.08, size)
        near = 0.3 if servers == 8 else 0.12  # With eight it is rarer.
        add("Erlang C", f"P(wait > 1) in M/M/{servers} at 0.8", long, _means(waiting > 1.0), _ERLANG, near, size)
    size = Size.of(scale, 10_000, 2000)
    for n, rate in ((2, 0.8), (8, 0.5), (32, 0.7)):
        sojourn, _ = _long_queue(streams, f"fork {n} {rate}", rate, runs, size.count, joined=n)
        theory = analytic.fork_join_mean(n, rate, 1.0)
        claim = (theory, "Flatto & Hahn, 1984") if n == 2 else ((theory, 1.03 * theory), _NELSON)
        near = 0.07 if n == 2 else 0.04
        add("fork-join", f"mean of a {n}-way fork-join at {rate}", claim[0], _means(sojourn), claim[1], near, size)
    return rows


def losses(streams: Streams, scale: float) -> list[Claim]:
    """Calls lost by servers without a queue, shed by the simulated host itself."""
    rows = []
    size = Size.of(scale, 500, 150)
    for load, servers in ((2.0, 3), (8.0, 10)):
        shares = []
        for run in range(12):
            own = streams.child(f"{servers} {run}")
            shares.append(sim_run(_shed_share(own, load, servers, size.count)))
        rows.append(
            Claim.of("Erlang B", f"share lost by {servers} servers at load {load:g}", "host",
                     analytic.erlang_b(load, servers), mean_interval(shares), source=_ERLANG,
                     tolerance=0.15 if servers == 3 else 0.3,
                     share=size.share)
        )  # fmt: skip
    return rows


async def _shed_share(streams: Streams, load: float, servers: int, requests: int) -> float:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    world = World(service=Exponential(1.0), workers=servers, limit=RequestLimit(queue=0))
    network = SimNetwork(loop, world, streams)
    network.add_hosts(LEAF, ["leaf/0"])
    network.register("leaf/", lambda target, message: None)
    warm_up = requests // 5
    answers = []
    for request, when_ms in enumerate(Poisson(1e3 * load).times_ms(streams, requests + warm_up).tolist()):
        await asyncio.sleep(max(0.0, when_ms / 1e3 - loop.time()))
        with request_number(request):
            answers.append(network.call("root", "leaf/0", None))
    ended = await asyncio.gather(*answers, return_exceptions=True)
    return sum(isinstance(answer, OverloadedError) for answer in ended[warm_up:]) / requests


#: Queues among which calls choose; the formula is the limit of many, and at n of them the mean is O(1/n) above it.
_QUEUES: Final = 40


def two_choices(streams: Streams, scale: float) -> list[Claim]:
    """The shorter of two random queues among many, where the queues are simulated hosts."""
    rows = []
    # Warm-ups are some times the relaxation time, whatever the length.
    for load, warm_up in ((0.7, 400), (0.9, 1200)):
        size = Size.of(scale, 2500, 500)
        means = [
            sim_run(_two_choice_run(streams.child(f"{load} {run}"), load, size.count, warm_up)) for run in range(6)
        ]
        theory = analytic.two_choices_mean(load)
        rows.append(
            Claim.of("two choices", f"mean sojourn time at {load}, {_QUEUES} queues", "host",
                     (theory, theory * (1 + 2 / _QUEUES)), mean_interval(means),
                     source=f"Mitzenmacher, 2001: limit of many queues, 0 to {200 / _QUEUES:g} % above at {_QUEUES}",
                     tolerance=0.1, share=size.share)
        )  # fmt: skip
    return rows


async def _two_choice_run(streams: Streams, load: float, calls: int, warm_up: int) -> float:
    """Return the mean sojourn time in ms of calls that each go to the host of two that has fewer calls."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    network = SimNetwork(loop, World(service=Exponential(1.0)), streams)
    targets = [f"leaf/{number}" for number in range(_QUEUES)]
    network.add_hosts(LEAF, targets)
    network.register("leaf/", lambda target, message: None)
    total = calls + warm_up
    one, two = ((streams.uniform(name, 0, total) * _QUEUES).astype(int).tolist() for name in ("one", "two"))
    length = [0] * _QUEUES
    began, ended = np.zeros(total), np.zeros(total)

    def done(number: int, chosen: int, _answer: asyncio.Future[Any]) -> None:
        length[chosen] -= 1
        ended[number] = loop.time()

    for number, when_ms in enumerate(Poisson(1e3 * load * _QUEUES).times_ms(streams, total).tolist()):
        await asyncio.sleep(max(0.0, when_ms / 1e3 - loop.time()))
        a, b = one[number], two[number]
        chosen = a if length[a] <= length[b] else b
        length[chosen] += 1
        began[number] = loop.time()
        with request_number(number):
            answer = network.call("root", targets[chosen], None)
        answer.add_done_callback(partial(done, number, chosen))
    await network.idle()
    return float(1e3 * (ended - began)[warm_up:].mean())
