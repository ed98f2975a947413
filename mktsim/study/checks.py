"""The checks of the validation: each simulates something of which theory or a publication says what must come out.

Rules
-----
A check draws from its own streams, so that adding one changes no other. Sizes grow with the scale; none depends on what
came out. Times are in ms; a leaf of mean 1 ms makes rates of requests a millisecond, 1,000 times those a second.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from mktsim.errors import OverloadedError
from mktsim.placement import BoundedLoadHash, ConsistentHashRing, JumpHash, MaglevHash
from mktsim.sim.conditions import Background, RequestLimit
from mktsim.sim.events import event_sojourn_times
from mktsim.sim.latency import Constant, Exponential, LogNormal, Mixture, Pareto, Uniform
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.vectorised import Policy, vectorised_sojourn_times
from mktsim.sim.world import LEAF, World
from mktsim.streams import Streams
from mktsim.study import analytic
from mktsim.study.arrivals import Bursts, Poisson
from mktsim.study.claims import Claim
from mktsim.study.load import LoadEngine, run_load
from mktsim.study.queues import service_ends
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, mean_interval, quantile_interval, share_interval
from mktsim.study.tail_at_scale import slow_requests

Array = NDArray[np.float64]
Check = Callable[[Streams, float], list[Claim]]
_ENGINES: Final = {"vectorised": vectorised_sojourn_times, "event": event_sojourn_times}
_DEAN: Final = "Dean & Barroso, CACM 56(2), 2013"
_RENYI: Final = "Renyi, 1953"
_LAMPING: Final = "Lamping & Veach, 2014"


def _size(scale: float, base: int, least: int = 100) -> int:
    return max(least, round(scale * base))


def _times(engine: str, world: World, streams: Streams, requests: int, leaves: int, **more: Any) -> Array:
    """Return sojourn times in ms, of independent requests."""
    return 1e3 * _ENGINES[engine](world, streams, leaves=leaves, requests=range(requests), **more)


_EXPONENTIAL: Final = World(link_out=Exponential(1.0))


# -- one request ------------------------------------------------------------------------------------------------------


def maxima(streams: Streams, scale: float) -> list[Claim]:
    """All of N leaves."""
    rows = []
    for engine, n, requests in (
        ("vectorised", 1, 4000), ("vectorised", 10, 4000), ("vectorised", 100, 4000), ("vectorised", 1000, 1500),
        ("event", 10, 1200), ("event", 100, 400),
    ):  # fmt: skip
        x = _times(engine, _EXPONENTIAL, streams.child(f"{engine} {n}"), _size(scale, requests), n)
        rows.append(
            Claim.of(
                "maximum", f"mean of the slowest of {n:,} exponential leaves", engine, analytic.max_of_exponentials(n),
                mean_interval(x), source=_RENYI,
            )
        )  # fmt: skip
        if n == 100:
            leaf = LogNormal(1.0, 5.0)
            x = _times(engine, World(link_out=leaf), streams.child(f"p99 {engine}"), _size(scale, 2 * requests, 320), n)
            rows += [
                Claim.of(
                    "maximum", f"p{100 * p:g} of the slowest of 100 lognormal leaves", engine,
                    leaf.quantile(analytic.leaf_quantile(p, n)), quantile_interval(x, p), tolerance=0.15,
                    source="F(t)^N",
                )
                for p in (0.5, 0.99)
            ]  # fmt: skip
    return rows


def quorums(streams: Streams, scale: float) -> list[Claim]:
    """The first k of N leaves."""
    rows = []
    for engine, k, n, requests in (
        ("vectorised", 7, 10, 4000), ("vectorised", 95, 100, 3000), ("event", 7, 10, 1200), ("event", 95, 100, 300),
    ):  # fmt: skip
        x = _times(
            engine, _EXPONENTIAL, streams.child(f"{engine} {k}"), _size(scale, requests), n, policy=Policy(quorum=k)
        )
        rows.append(
            Claim.of(
                "k of N", f"mean until {k} of {n} exponential leaves have answered", engine,
                analytic.k_of_n_exponentials(k, n), mean_interval(x), source=_RENYI,
            )
        )  # fmt: skip
    return rows


def hedges(streams: Streams, scale: float) -> list[Claim]:
    """A second copy after a delay."""
    world, delay, rows = _EXPONENTIAL.replace(replicas=2), 0.7, []
    for engine, requests in (("vectorised", 6000), ("event", 2500)):
        x = _times(engine, world, streams.child(engine), _size(scale, requests, 320), 1, policy=Policy(hedge_ms=delay))
        late = analytic.hedged_survival(lambda t: math.exp(-max(t, 0.0)), 1.5, delay)
        mean = analytic.hedged_exponential_mean(delay)
        p99 = (math.log(100) + delay) / 2  # S(t) S(t - d) = 1 %
        rows += [
            Claim.of("hedge", f"mean of a call hedged after {delay}", engine, mean, mean_interval(x), source=_DEAN),
            Claim.of(
                "hedge", "P(hedged call > 1.5)", engine, late, share_interval(int((x > 1.5).sum()), len(x)),
                source="S(t) S(t - d)", tolerance=0.25,
            ),
            Claim.of(
                "hedge", "p99 of a hedged call", engine, p99, quantile_interval(x, 0.99), source="S(t) S(t - d)",
                tolerance=0.2,
            ),
        ]  # fmt: skip
    n = 1000
    leaf = LogNormal(1.0, 10.0)
    calls = _size(scale, 40, 10)
    first = [World(service=leaf).hops(streams, LEAF, request, n)[1] for request in range(calls)]
    late_calls = int(sum((ticks * (1e3 * 2.0**-30) > leaf.quantile(0.95)).sum() for ticks in first))
    rows.append(
        Claim.of(
            "hedge", "extra load of hedging at the leaf's p95", "vectorised", 0.05,
            share_interval(late_calls, calls * n), source=_DEAN,
        )
    )  # fmt: skip
    return rows


def windows(streams: Streams, scale: float) -> list[Claim]:
    """At most c calls in flight."""
    rows = []
    for engine, n, c, requests in (
        ("vectorised", 50, 6, 3000), ("vectorised", 100, 1, 1500), ("vectorised", 20, 19, 3000), ("event", 50, 6, 500),
    ):  # fmt: skip
        x = _times(engine, _EXPONENTIAL.replace(window=c), streams.child(f"{engine} {c}"), _size(scale, requests), n)
        rows.append(
            Claim.of(
                "window", f"mean of {n} exponential calls, {c} in flight", engine,
                analytic.windowed_exponentials(n, c), mean_interval(x), source="Renyi, 1953; memorylessness",
            )
        )  # fmt: skip
    return rows


def trees(streams: Streams, scale: float) -> list[Claim]:
    """A tree whose inner nodes cost nothing answers when its slowest leaf does."""
    rows = []
    for engine, requests in (("vectorised", 2500), ("event", 300)):
        world = World(service=Exponential(1.0))
        x = _times(engine, world, streams.child(engine), _size(scale, requests), 64, width=4)
        rows.append(
            Claim.of(
                "tree", "mean over 64 exponential leaves by a free tree of width 4", engine,
                analytic.max_of_exponentials(64), mean_interval(x), source=_RENYI,
            )
        )  # fmt: skip
    return rows


def slow_leaves(streams: Streams, scale: float) -> list[Claim]:
    """The share of requests that meet a slow leaf."""
    rows = []
    published = {100: (0.625, 0.635), 2000: (0.1805, 0.1815)}
    for case in slow_requests().to_dict("records"):
        n, share = int(case["leaves"]), float(case["slow_leaf_share"])
        world = World(link_out=Mixture((1 - share, share), (Constant(1.0), Constant(1000.0))))
        for engine, requests in (("vectorised", 4000), ("event", 300)) if n == 100 else (("vectorised", 4000),):
            x = _times(engine, world, streams.child(f"{engine} {n}"), _size(scale, requests), n)
            interval = share_interval(int((x > 500).sum()), len(x))
            text = f"share of requests over {n:,} leaves that meet one of {share:g} slow"
            rows.append(
                Claim.of("slow leaves", text, engine, float(case["exact"]), interval, source="1 - (1 - s)^N",
                         tolerance=0.25)
            )  # fmt: skip
            rows.append(Claim.of("slow leaves", f"{text}, as published", engine, published[n], interval, source=_DEAN,
                                 tolerance=0.25))  # fmt: skip
    return rows


def million_leaves(streams: Streams, scale: float) -> list[Claim]:
    """At a million leaves the tail's family decides."""
    rows, n = [], 1_000_000
    published = {"lognormal(0, 1)": (124.5, 125.5), "Pareto(2.5)": (290.5, 291.5)}
    # The 99th percentile of a standard normal is 2.3263.
    leaves = {"lognormal(0, 1)": LogNormal(1.0, math.exp(2.3263478740408408)), "Pareto(2.5)": Pareto(1.0, 2.5)}
    for name, leaf in leaves.items():
        exact = leaf.quantile(analytic.leaf_quantile(0.5, n))
        text = f"median of the maximum of a million {name} leaves"
        requests = _size(scale, 40, 20)
        x = _times("vectorised", World(link_out=leaf), streams.child(name), requests, n)
        rows.append(
            Claim.of("million leaves", text, "vectorised", exact, quantile_interval(x, 0.5), source="F(t)^N",
                     tolerance=0.6)
        )  # fmt: skip
        # The maximum's uniform is U^(1/N): as many requests as one likes.
        u = streams.uniform(f"{name} transform", 0, _size(scale, 100_000))
        slowest = leaf.sample(np.exp(np.log(u) / n))
        source = "SCIENCE.md, closed forms; David & Nagaraja 2.1"
        for claim, theory in ((text, exact), (f"{text}, as published", published[name])):
            rows.append(
                Claim.of("million leaves", claim, "transform", theory, quantile_interval(slowest, 0.5), source=source,
                         tolerance=0.02)
            )  # fmt: skip
    return rows


def background(streams: Streams, scale: float) -> list[Claim]:
    """A call that finds others' work waits as in M/M/1."""
    rows = []
    for engine, requests in (("vectorised", 5000), ("event", 1500)):
        x = _times(engine, World(background=Background(0.6, 1.0)), streams.child(engine), _size(scale, requests), 1)
        rows.append(
            Claim.of(
                "background", "mean wait behind others at utilisation 0.6", engine,
                analytic.mm1_mean(0.6, 1.0) - 1.0, mean_interval(x), source="Wolff, 1982; Kleinrock I, 5.12",
                tolerance=0.2,
            )
        )  # fmt: skip
    return rows


# -- queues -----------------------------------------------------------------------------------------------------------


def _load_runs(
    world: World, vendors: int, rate: float, streams: Streams, *, engine: LoadEngine, runs: int, requests: int
) -> Array:
    """Return sojourn times in ms of independent runs, shape (runs, requests), after as many more for the warm-up."""
    scenario, warm_up = Scenario(vendors=vendors, world=world), requests // 2
    return np.stack(
        [
            run_load(
                scenario, Poisson(1e3 * rate), streams.child(f"{engine} {run}"), requests=requests + warm_up,
                engine=engine,
            ).sojourn_time_ms[warm_up:]
            for run in range(runs)
        ]
    )  # fmt: skip


def _means(samples: NDArray[Any]) -> Interval:
    return mean_interval(samples.mean(axis=1))


def _quantiles(samples: Array, p: float) -> Interval:
    return mean_interval(np.quantile(samples, p, axis=1))


def queues(streams: Streams, scale: float) -> list[Claim]:
    """Single queues at moderate load, by the engines that run whole worlds."""
    rows = []
    service = Exponential(1.0)
    sizes: tuple[tuple[LoadEngine, int, int], ...] = (("vectorised", 20, 500), ("event", 12, 400))
    for engine, runs, requests in sizes:
        size = _size(scale, requests, 150)
        x = _load_runs(World(service=service), 1, 0.5, streams.child("M/M/1"), engine=engine, runs=runs, requests=size)
        mm1, kleinrock = analytic.mm1_mean(0.5, 1.0), "Kleinrock, Queueing Systems I"
        rows += [
            Claim.of("M/M/1", "mean sojourn time at 0.5", engine, mm1, _means(x), source=kleinrock, tolerance=0.2),
            Claim.of(
                "M/M/1", "p90 of the sojourn time at 0.5", engine, analytic.mm1_quantile(0.9, 0.5, 1.0),
                _quantiles(x, 0.9), source=kleinrock, tolerance=0.25,
            ),
        ]  # fmt: skip
        for name, latency, square in (("constant", Constant(1.0), 1.0), ("uniform", Uniform(0.0, 2.0), 4 / 3)):
            x = _load_runs(World(service=latency), 1, 0.5, streams.child(name), engine=engine, runs=runs, requests=size)
            rows.append(
                Claim.of(
                    "M/G/1", f"mean sojourn time at 0.5, {name} service", engine,
                    1 + analytic.mg1_waiting(0.5, 1.0, square), _means(x), source="Pollaczek & Khinchine",
                    tolerance=0.15,
                )
            )  # fmt: skip
        x = _load_runs(
            World(service=service, workers=3), 1, 2.1, streams.child("M/M/3"), engine=engine, runs=runs, requests=size
        )
        rows.append(
            Claim.of("M/M/c", "mean sojourn time of M/M/3 at 0.7", engine, analytic.mmc_mean(2.1, 1.0, 3), _means(x),
                     source="Erlang, 1917", tolerance=0.25)
        )  # fmt: skip
        x = _load_runs(World(service=service), 2, 0.5, streams.child("fork"), engine=engine, runs=runs, requests=size)
        rows.append(
            Claim.of("fork-join", "mean of a two-way fork-join at 0.5", engine, analytic.fork_join_mean(2, 0.5, 1.0),
                     _means(x), source="Flatto & Hahn, 1984", tolerance=0.2)
        )  # fmt: skip
    return rows


def _long_queue(streams: Streams, name: str, rate: float, runs: int, calls: int, *, servers: int = 1, joined: int = 1,
                kind: str = "exponential") -> tuple[Array, Array]:  # fmt: skip
    """Return sojourn and waiting times of long queues by the recursions of the vectorised engine, warmed up."""
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
    """Queues at high load, which need long runs."""
    calls, rows, engine = _size(scale, 20_000, 6000), [], "vectorised"
    sojourn, waiting = _long_queue(streams, "M/M/1", 0.8, 20, calls)
    rows += [
        Claim.of("M/M/1", "mean sojourn time at 0.8", engine, analytic.mm1_mean(0.8, 1.0), _means(sojourn),
                 source="Kleinrock, Queueing Systems I"),
        Claim.of("M/M/1", "p99 of the sojourn time at 0.8", engine, analytic.mm1_quantile(0.99, 0.8, 1.0),
                 _quantiles(sojourn, 0.99), source="Kleinrock, Queueing Systems I", tolerance=0.15),
        Claim.of("M/M/1", "P(wait) at 0.8", engine, 0.8, _means(waiting > 1e-12), source="PASTA: Wolff, 1982"),
    ]  # fmt: skip
    _, waiting = _long_queue(streams, "M/G/1", 0.7, 20, calls, kind="lognormal")
    rows.append(
        Claim.of("M/G/1", "mean waiting time at 0.7, lognormal service of sigma 1", engine,
                 analytic.mg1_waiting(0.7, 1.0, math.e), _means(waiting), source="Pollaczek & Khinchine",
                 tolerance=0.2)
    )  # fmt: skip
    for servers, runs in ((2, 20), (8, 20)):
        rate = 0.8 * servers
        sojourn, waiting = _long_queue(streams, f"M/M/{servers}", rate, runs, max(2000, calls // 4), servers=servers)
        rows += [
            Claim.of("M/M/c", f"mean sojourn time of M/M/{servers} at 0.8", engine,
                     analytic.mmc_mean(rate, 1.0, servers), _means(sojourn), source="Erlang, 1917", tolerance=0.15),
            Claim.of("Erlang C", f"P(wait) in M/M/{servers} at 0.8", engine, analytic.erlang_c(rate, servers),
                     _means(waiting > 1e-12), source="Erlang, 1917", tolerance=0.15),
            Claim.of("Erlang C", f"P(wait > 1) in M/M/{servers} at 0.8", engine,
                     analytic.mmc_waiting_survival(1.0, rate, 1.0, servers), _means(waiting > 1.0),
                     source="Erlang, 1917", tolerance=0.2),
        ]  # fmt: skip
    for n, rate in ((2, 0.8), (8, 0.5), (32, 0.7)):
        sojourn, _ = _long_queue(streams, f"fork {n} {rate}", rate, 20, max(2000, calls // 2), joined=n)
        theory = analytic.fork_join_mean(n, rate, 1.0)
        exact = n == 2
        rows.append(
            Claim.of("fork-join", f"mean of a {n}-way fork-join at {rate}", engine,
                     theory if exact else (theory, 1.03 * theory), _means(sojourn),
                     source="Flatto & Hahn, 1984" if exact else "Nelson & Tantawi, 1988: 0 to 3 % above",
                     tolerance=0.1)
        )  # fmt: skip
    return rows


def losses(streams: Streams, scale: float) -> list[Claim]:
    """Calls lost by servers without a queue, shed by the simulated host itself."""
    rows = []
    for load, servers in ((2.0, 3), (8.0, 10)):
        shares = []
        for run in range(12):
            own = streams.child(f"{servers} {run}")
            shares.append(sim_run(_shed_share(own, load, servers, _size(scale, 500, 150))))
        rows.append(
            Claim.of("Erlang B", f"share lost by {servers} servers at load {load:g}", "event",
                     analytic.erlang_b(load, servers), mean_interval(shares), source="Erlang, 1917", tolerance=0.3)
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


def two_choices(streams: Streams, scale: float) -> list[Claim]:
    """The shorter of two random queues among many."""
    rows, n = [], 100
    for load in (0.7, 0.9):
        size = _size(scale, 20_000, 10_000)
        means = [_two_choice_run(streams.child(f"{load} {run}"), load, n, size) for run in range(12)]
        theory = analytic.two_choices_mean(load)
        # The formula is the limit of many queues; at n of them the mean is above it by O(1/n).
        rows.append(
            Claim.of("two choices", f"mean sojourn time at {load}, {n} queues", "event", (theory, theory * (1 + 4 / n)),
                     mean_interval(means), source="Mitzenmacher, 2001: limit of many queues, 0 to 4 % above at 100",
                     tolerance=0.08)
        )  # fmt: skip
    return rows


def _two_choice_run(streams: Streams, load: float, n: int, calls: int) -> float:
    """Return the mean sojourn time of calls that join the shorter of two queues; by a heap of departures."""
    warm_up = 60 * n  # Some times the relaxation time at 0.9, whatever the length.
    total = calls + warm_up
    arrivals = np.cumsum(-np.log1p(-streams.uniform("arrivals", 0, total))) / (load * n)
    one, two = ((streams.uniform(name, 0, total) * n).astype(int).tolist() for name in ("one", "two"))
    services = (-np.log1p(-streams.uniform("services", 0, total))).tolist()
    length, free = [0] * n, [0.0] * n
    departures: list[tuple[float, int]] = []
    spent = 0.0
    for number, now in enumerate(arrivals.tolist()):
        while departures and departures[0][0] <= now:
            length[heappop(departures)[1]] -= 1
        a, b = one[number], two[number]
        chosen = a if length[a] <= length[b] else b
        length[chosen] += 1
        free[chosen] = end = max(free[chosen], now) + services[number]
        heappush(departures, (end, chosen))
        if number >= warm_up:
            spent += end - now
    return spent / calls


def arrivals(streams: Streams, scale: float) -> list[Claim]:
    """Rate and burstiness of arrival processes."""
    runs, n = 20, _size(scale, 5000, 1000)
    bursts = Bursts(quiet_per_s=100, burst_per_s=2000, quiet_ms=200, burst_ms=50)
    length_ms = 0.8e3 * n / bursts.mean_rate_per_s
    counts, spread = [], []
    for run in range(runs):
        own = streams.child(f"run {run}")
        # Counting to a fixed time: times until a fixed count would be biased.
        counts.append(np.searchsorted(bursts.times_ms(own, 3 * n), length_ms) / (length_ms / 1e3))
        gaps = np.diff(Poisson(100.0).times_ms(own, n))
        spread.append(gaps.std() / gaps.mean())
    return [
        Claim.of("arrivals", "mean rate of bursts, a second", "vectorised", bursts.mean_rate_per_s,
                 mean_interval(counts), source="stationary mean of a two-state MMPP", tolerance=0.2),
        Claim.of("arrivals", "variation of Poisson gaps", "vectorised", 1.0, mean_interval(spread),
                 source="the exponential distribution"),
    ]  # fmt: skip


# -- placement --------------------------------------------------------------------------------------------------------


def rings(streams: Streams, scale: float) -> list[Claim]:
    """How evenly a ring spreads keys, against the exact law and the published table."""
    rows, nodes, keys, count = [], 100, 50_000, _size(scale, 24, 8)
    names = [f"key {number}" for number in range(keys)]
    seed = int(streams.uniform_at("ring", 0, 0) * 2**32)
    for points in (10, 100):
        loads = np.array(
            [
                np.bincount(
                    ConsistentHashRing((f"{seed}/{ring}/{i}" for i in range(nodes)), virtual_nodes=points).assign(
                        names
                    ),
                    minlength=nodes,
                )
                for ring in range(count)
            ]
        ) * (nodes / keys)
        law = betabinom(keys, points, (nodes - 1) * points)
        square = mean_interval(loads.var(axis=1))
        root = [math.sqrt(max(0.0, value)) for value in (square.estimate, square.low, square.high)]
        variation = Interval(root[0], root[1], root[2], count)
        rows += [
            Claim.of("ring", f"variation of loads, {nodes} nodes x {points} points", "placement",
                     float(law.std()) * nodes / keys, variation, source="Beta law, binomial keys", tolerance=0.15),
            Claim.of("ring", f"median of the fullest of {nodes} nodes x {points} points", "placement",
                     (float(law.ppf(0.5 ** (1 / nodes))) * nodes / keys * 0.99,
                      float(law.ppf(0.5 ** (1 / nodes))) * nodes / keys * 1.01),
                     quantile_interval(loads.max(axis=1), 0.5), source="Beta law, shares as if independent: 1 %",
                     tolerance=0.15),
        ]  # fmt: skip
    published = {10: (0.3152, 0.37, 1.98), 100: (0.0997, 0.76, 1.28), 1000: (0.0316, 0.92, 1.09)}
    for points, (error, low, high) in published.items():
        # Shares of a ring of 1,000 nodes by its uniform spacings, as the paper's table has them.
        draws = streams.generator("spacings", points)
        runs = _size(scale, 20, 6)
        share = draws.gamma(points, size=(runs, 1000))
        share *= 1000 / share.sum(axis=1, keepdims=True)
        rows.append(
            Claim.of("ring", f"standard error of the load, {points} points a node", "transform",
                     (error - 1e-3, error + 1e-3), mean_interval(share.std(axis=1)), source=f"{_LAMPING}, table",
                     tolerance=0.05)
        )  # fmt: skip
        for p, bound in ((0.005, low), (0.995, high)):
            rows.append(
                Claim.of("ring", f"p{100 * p:g} of the load, {points} points a node", "transform",
                         (bound - 0.015, bound + 0.015), mean_interval(np.quantile(share, p, axis=1)),
                         source=f"{_LAMPING}, table", tolerance=0.05)
            )  # fmt: skip
    return rows


def moves(streams: Streams, scale: float) -> list[Claim]:
    """What one more node takes over, and caps that must hold."""
    keys = [f"{streams.uniform_at('keys', 0, 0)}/{number}" for number in range(_size(scale, 40_000, 10_000))]
    nodes = [f"n{i}" for i in range(10)]
    before, after = JumpHash(nodes).assign(keys), JumpHash([*nodes, "n10"]).assign(keys)
    changed = before != after
    shares = []
    for ring in range(_size(scale, 24, 8)):
        names = [f"{ring}/{name}/{keys[0]}" for name in [*nodes, "new"]]
        small, large = (
            ConsistentHashRing(part, virtual_nodes=100).assign(keys[:10_000]) for part in (names[:-1], names)
        )
        shares.append(float((small != large).mean()))
    rows = [
        Claim.of("moves", "share that jump hash moves from 10 to 11 nodes", "placement", analytic.moved_share(10),
                 share_interval(int(changed.sum()), len(keys)), source=_LAMPING, tolerance=0.15),
        Claim.of("moves", "moved keys that the new node took", "placement", 1.0,
                 share_interval(int((after[changed] == 10).sum()), int(changed.sum())), source=_LAMPING,
                 tolerance=1e-9),
        Claim.of("moves", "share that a ring moves from 10 to 11 nodes", "placement", analytic.moved_share(10),
                 mean_interval(shares), source="Karger et al., 1997", tolerance=0.15),
    ]  # fmt: skip
    bounded = BoundedLoadHash(nodes, epsilon=0.25)
    fullest = float(np.bincount(bounded.assign(keys), minlength=10).max())
    cap = math.ceil(1.25 * len(keys) / 10)
    entries = MaglevHash(nodes).entries()
    uneven = float(entries.max() - entries.min())
    rows += [
        Claim.of("caps", "fullest node under bounded loads of 1.25", "placement", (0.0, float(cap)),
                 Interval(fullest, fullest, fullest, len(keys)), source="Mirrokni et al., 2016", tolerance=1e-9),
        Claim.of("caps", "difference of Maglev's table entries", "placement", (0.0, 1.0),
                 Interval(uneven, uneven, uneven, int(entries.sum())), source="Eisenbud et al., 2016", tolerance=1e-9),
    ]  # fmt: skip
    return rows


def top_k(streams: Streams, scale: float) -> list[Claim]:
    """A top-10 of which each vendor sends one row only."""
    rows = []
    for k, nodes, kept in ((10, 100, 1), (8, 20, 2)):
        trials = _size(scale, 20_000, 2000)
        places = (streams.uniform(f"{k}/{nodes}", 0, trials * k) * nodes).astype(int)
        holders = np.sort(places.reshape(trials, k), axis=1)
        # Right where no node holds more than `kept` of the k best: sorted, no holder equals the one `kept` places on.
        right = int((holders[:, kept:] != holders[:, :-kept]).all(axis=1).sum())
        interval = share_interval(right, trials)
        text = f"P(top-{k} of {nodes} vendors is right with {kept} row(s) each)"
        rows.append(Claim.of("top-k", text, "model", analytic.top_k_kept_probability(k, nodes, kept), interval,
                             source="falling factorials"))  # fmt: skip
        if kept == 1:
            rows.append(Claim.of("top-k", f"{text}, as published", "model", (0.6275, 0.6285), interval,
                                 source="SCIENCE.md, closed forms"))  # fmt: skip
    return rows


#: In the order of the rows.
CHECKS: Final[tuple[Check, ...]] = (
    maxima, quorums, hedges, windows, trees, slow_leaves, million_leaves, background, queues, long_queues, losses,
    two_choices, arrivals, rings, moves, top_k,
)  # fmt: skip
