"""Many requests at once: what a scatter takes when requests do not wait for each other.

Rules
-----
Requests come when they come (`mktsim.study.arrivals`), whatever became of those before: an open loop. A sojourn time
counts from the instant at which the request was *meant* to begin, so time spent before it could be sent is in it, and
no stall hides by keeping clients from asking (coordinated omission). ``client="closed"`` is that mistake, to compare
with: it sends the next request when it has the last answer, and times it from there.

Three engines give one answer, bit for bit. "coordinator" runs the real query coordinator, concurrently; "event" plain
scatters over the same simulated network, several times as fast; "vectorised" computes the queues as arrays.

Theory of operation
-------------------
Per host the calls of all requests form one queue, first come first served. So: the instants at which calls leave (the
sender's processor is a queue as well), plus the way out; each host's queue by its recursion (`mktsim.study.queues`);
plus the way back. Whole ticks throughout.

What this does not do
---------------------
The array engine refuses what feeds back into the order of calls: a window, a sender's work on answers (`fan_in_ms`),
and conditions that depend on the instant. "auto" then takes the event engine, and with a policy the coordinator, whose
it is. Trees are for :func:`~mktsim.study.replication.simulate`. A request that fails ends the run with its error.
"""

from __future__ import annotations

import asyncio
import html
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError, UndercoverageWarning
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.sim.events import scatter
from mktsim.sim.loop import SimLoop, sim_run
from mktsim.sim.network import SimNetwork, request_number
from mktsim.sim.vectorised import Hosts
from mktsim.sim.world import HORIZON_S, LEAF, TICK_S, Ticks, World, to_ticks
from mktsim.streams import Streams
from mktsim.study.arrivals import Arrivals, check_arrivals
from mktsim.study.coordinated import SCHEMA, fleet, vendor_ids
from mktsim.study.provenance import program_versions
from mktsim.study.queues import service_ends, shared_service_ends
from mktsim.study.replication import _check, drawn_once, place
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, _batches, mean_interval, mser5, short_batches, warm_up_is_known

LoadEngine = Literal["auto", "vectorised", "event", "coordinator"]
Client = Literal["open", "closed"]
#: Calls that the array engine holds at once, about 1 GB.
_MAX_CALLS: Final = 20_000_000


@dataclass(frozen=True, slots=True, eq=False)
class LoadResult:
    """What a run of many requests gave.

    Attributes
    ----------
    scenario : Scenario
    arrivals : Arrivals
    seed : int
    engine : str
    client : "open" or "closed"
    arrival_ms : ndarray of float64, shape (requests,)
        When each request was meant to begin; with a closed client, when it was sent.
    sojourn_time_ms : ndarray of float64, shape (requests,)
        From then until its answer was complete.
    utilisation : float
        Service that was asked of the hosts, over their workers' time from the first arrival to the last.
    versions : mapping of str to str
    """

    scenario: Scenario
    arrivals: Arrivals
    seed: int
    engine: str
    client: str
    arrival_ms: NDArray[np.float64]
    sojourn_time_ms: NDArray[np.float64]
    utilisation: float
    versions: Any = field(default_factory=program_versions)

    def warm_up(self) -> int:
        """Return how many first requests MSER-5 would drop; 0 where there are fewer than 20."""
        return mser5(self.sojourn_time_ms) if len(self.sojourn_time_ms) >= 20 else 0

    def mean(self, *, warm_up: int | None = None, batches: int = 20) -> Interval:
        """Estimate the mean sojourn time in ms by batch means, after a warm-up, by default MSER-5's.

        Parameters
        ----------
        warm_up : int, optional
            First requests to drop; as many as MSER-5 finds when absent.
        batches : int
            Into which the rest is cut; two requests each at least.

        Returns
        -------
        Interval
            From `batches` samples.

        Raises
        ------
        InvalidArgumentError
            If a number is out of range, or too few requests are left.

        Warns
        -----
        UndercoverageWarning
            If the interval is likely to cover less than it says: there is no steady state to estimate or none is
            reached yet, the batches are short against what a request leaves to later ones, or something was drawn once
            for all requests, of which one run knows one draw only.
        """
        times = self.sojourn_time_ms
        if warm_up is None:
            cut = self.warm_up()
        elif isinstance(warm_up, int | np.integer) and not isinstance(warm_up, bool) and 0 <= warm_up < len(times):
            cut = int(warm_up)
        else:
            raise InvalidArgumentError(
                f"warm_up must be a whole number from 0 to below {len(times):,} requests, or None, not {warm_up!r:.80}"
            )
        kept = times[cut:]
        reason = short_batches(kept, batches=batches)
        if self.client == "open" and self.utilisation >= 1:
            reason = f"utilisation is {self.utilisation:.3g}: queues grow without end, and there is no steady state"
        elif warm_up is None and len(times) >= 20 and not warm_up_is_known(times):
            reason = f"MSER-5 finds no end of the warm-up among {len(times) // 2:,} first requests; take a longer run"
        elif (shared := drawn_once(self.scenario)) is not None:
            reason = f"one run cannot tell how much depends on {shared}: use load_curve, which replicates"
        if reason is not None:
            warnings.warn(reason, UndercoverageWarning, stacklevel=2)
        return mean_interval(_batches(kept, batches).mean(axis=1))

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a request."""
        return pd.DataFrame(
            {
                "request": np.arange(len(self.arrival_ms)),
                "arrival_ms": self.arrival_ms,
                "sojourn_time_ms": self.sojourn_time_ms,
            }
        )

    def __repr__(self) -> str:
        return (
            f"<LoadResult {len(self.arrival_ms):,} requests over {self.scenario.vendors:,} vendors at utilisation "
            f"{self.utilisation:.3g}, {self.engine} engine, {self.client} client, seed {self.seed}: median "
            f"{np.median(self.sojourn_time_ms):.4g} ms>"
        )

    def _repr_html_(self) -> str:
        quantiles = [np.quantile(self.sojourn_time_ms, p) for p in (0.5, 0.9, 0.99)]
        cells = "".join(f"<td>{value:.4g}</td>" for value in quantiles)
        return (
            f"<div>{html.escape(repr(self))}</div><table><tr><th>p50, ms</th><th>p90, ms</th><th>p99, ms</th></tr>"
            f"<tr>{cells}</tr></table>"
        )


def uncovered(scenario: Scenario) -> str | None:
    """Say why the array engine cannot compute concurrent requests of a scenario, or None where it can."""
    world = scenario.world
    reasons = {
        "a policy": scenario.policy is not None,
        "faults": bool(world.faults),
        "request limits": world.limit is not None,
        "hiccups": world.hiccups is not None,
        "hosts that grow cold with time": world.cold_start is not None and world.cold_start.idle_ms is not None,
        f"a window of {world.window}": world.window is not None,
        "a sender whose work on answers delays what it sends": bool(world.fan_in_ticks),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def check_load_engine(scenario: Scenario, engine: str, *, requests: int, client: str = "open") -> None:
    """Check, before any work, that an engine can simulate so many concurrent requests of a scenario.

    Raises
    ------
    InvalidArgumentError
        If there is no such engine, it does not cover the scenario, or the calls do not fit in memory.
    """
    if engine not in ("auto", "vectorised", "event", "coordinator"):
        raise InvalidArgumentError(f'engine must be "auto", "vectorised", "event" or "coordinator", not {engine!r:.80}')
    reason = uncovered(scenario) if client == "open" else "a closed client"
    if (engine == "vectorised" and reason is not None) or (engine == "event" and scenario.policy is not None):
        other = "event" if scenario.policy is None else "coordinator"
        raise InvalidArgumentError(
            f"the {engine} engine does not cover {reason or 'a policy'} under load; use engine={other!r}"
        )
    if engine in ("auto", "vectorised") and reason is None:
        _check_calls(scenario, requests)


def _check_calls(scenario: Scenario, requests: int) -> None:
    calls = requests * scenario.vendors
    if calls > _MAX_CALLS:
        raise InvalidArgumentError(
            f"{requests:,} requests to {scenario.vendors:,} vendors are {calls:,} calls, above {_MAX_CALLS:,}; ask for "
            "fewer"
        )


def simulate_load(
    scenario: Scenario,
    arrivals: Arrivals,
    *,
    requests: int,
    seed: int,
    engine: LoadEngine = "auto",
    client: Client = "open",
) -> LoadResult:
    """Simulate requests that come by an arrival process, each of them a scatter over all vendors.

    Parameters
    ----------
    scenario : Scenario
        Flat; its vendors queue for their machines.
    arrivals : Arrivals
        When requests are meant to begin.
    requests : int
    seed : int
        Decides arrivals and every draw.
    engine : "auto", "vectorised", "event" or "coordinator"
        See the module's text; "auto" takes the arrays where they cover the scenario, else events, else the coordinator.
    client : "open" or "closed"
        Whether requests come when they are meant to, or wait for the answer of the last one.

    Returns
    -------
    LoadResult

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range, or the engine does not cover the world.

    Examples
    --------
    >>> from mktsim.sim.latency import Exponential
    >>> from mktsim.study.arrivals import Poisson
    >>> queue = Scenario(vendors=1, world=World(service=Exponential(1.0)))
    >>> found = simulate_load(queue, Poisson(500.0), requests=20_000, seed=1)
    >>> 1.9 in found.mean()  # M/M/1 at 0.5: 2 ms
    True
    """
    _check(scenario, requests, "auto")
    check_arrivals(arrivals)
    check_load_engine(scenario, engine, requests=requests, client=client)
    if client not in ("open", "closed"):
        raise InvalidArgumentError(f'client must be "open" or "closed", not {client!r:.80}')
    if scenario.width is not None:
        raise InvalidArgumentError(f"concurrent requests are not covered with fanout={scenario.fanout}; use 'flat'")
    streams = Streams(seed)
    return run_load(scenario, arrivals, streams, requests=requests, engine=engine, client=client)


def run_load(
    scenario: Scenario,
    arrivals: Arrivals,
    streams: Streams,
    *,
    requests: int,
    engine: LoadEngine = "auto",
    client: Client = "open",
    drawn: Drawn | None = None,
) -> LoadResult:
    """Do what :func:`simulate_load` does, with streams instead of a seed and without checks.

    `drawn` spares the array engine the drawing where the same requests have come before, at another rate.
    """
    world = scenario.world
    hosts = place(scenario)
    if hosts is None and world.machines is not None:
        hosts = np.arange(scenario.vendors, dtype=np.intp) % world.machines
    times_ms = arrivals.times_ms(streams, requests)
    if times_ms[-1] >= 1e3 * HORIZON_S / 2:
        raise InvalidArgumentError(
            f"the last of {requests:,} requests would come after {times_ms[-1] / 86.4e6:.0f} days, beyond the exact "
            "range of simulated time; ask for fewer, or more often"
        )
    meant = to_ticks(times_ms)
    reason = uncovered(scenario) if client == "open" else "a closed client"
    way_out = "event" if scenario.policy is None else "coordinator"
    check_load_engine(scenario, engine, requests=requests, client=client)
    chosen = engine if engine != "auto" else way_out if reason is not None else "vectorised"
    if chosen == "vectorised":
        drawn = draw_calls(scenario, streams, requests) if drawn is None else drawn
        began, ends = meant, _array_ends(world, scenario.vendors, meant, hosts, drawn)
        asked = int(drawn[1][1].sum())
    else:
        began, ends = _event_ends(world, streams, scenario, meant, hosts, client, chosen == "coordinator")
        asked = sum(int(world.hops(streams, LEAF, request, scenario.vendors)[1].sum()) for request in range(requests))
    workers = world.workers * (scenario.vendors if hosts is None else len(np.unique(hosts)))
    used = asked / (max(1, int(meant[-1] - meant[0])) * workers)
    return LoadResult(scenario, arrivals, streams.seed, chosen, client, _ms(began), _ms(ends - began), used)


#: Each request's `base`, shape (requests,), and the calls' ways out, services and ways back, shape (3, requests, n).
Drawn = tuple[Ticks, Ticks]


def draw_calls(scenario: Scenario, streams: Streams, requests: int) -> Drawn:
    """Draw all that requests take without each other, in ticks.

    Raises
    ------
    InvalidArgumentError
        If they are more calls than fit in memory.
    """
    n, world = scenario.vendors, scenario.world
    _check_calls(scenario, requests)
    base = np.array([world.base_ticks(streams, request) for request in range(requests)])
    hops = np.empty((3, requests, n), np.int64)
    for request in range(requests):
        hops[0, request], hops[1, request], hops[2, request] = world.hops(streams, LEAF, request, n)
    return base, hops


def _ms(ticks: Ticks) -> NDArray[np.float64]:
    return np.asarray(ticks * (TICK_S * 1e3), np.float64)


def _array_ends(world: World, n: int, meant: Ticks, hosts: Hosts | None, drawn: Drawn) -> Ticks:
    """Compute when each request's answer is complete, in ticks."""
    count = len(meant)
    begun = meant + drawn[0]
    order = np.argsort(begun, kind="stable")  # In which the requests' calls are made, and numbered.
    out, service, back = drawn[1][:, order]
    sent = begun[order]
    if world.fan_out_ticks:
        whole = n * world.fan_out_ticks
        sent = service_ends(sent, np.full(count, whole)) - whole
    out += sent[:, None] + world.fan_out_ticks * np.arange(1, n + 1)
    if hosts is None:
        # Each vendor's queue is a row: sorted by arrival, and by number where two arrive at one instant.
        by_host, service = out.T, service.T
        turns = np.argsort(by_host, axis=1, kind="stable")
        ends = np.empty_like(by_host)
        served = service_ends(
            np.take_along_axis(by_host, turns, 1), np.take_along_axis(service, turns, 1), world.workers
        )
        np.put_along_axis(ends, turns, served, 1)
        ends = ends.T
    else:
        everywhere = np.tile(np.asarray(hosts, np.intp), count)
        ends = shared_service_ends(out.ravel(), service.ravel(), everywhere, world.workers).reshape(count, n)
    answers = ends + back
    if world.fan_out_ticks:
        # An answer is looked at when the processor has sent the calls of all requests that began before it was back.
        latest = np.searchsorted(begun[order], answers.ravel(), side="right") - 1
        answers = np.maximum(answers, (sent + n * world.fan_out_ticks)[latest].reshape(count, n))
    found = np.empty(count, np.int64)
    found[order] = answers.max(axis=1)
    return found


def _event_ends(
    world: World,
    streams: Streams,
    scenario: Scenario,
    meant: Ticks,
    hosts: Hosts | None,
    client: Client,
    real: bool,
) -> tuple[Ticks, Ticks]:
    """Simulate the requests event by event; return when each began, and when its answer was complete, in ticks."""
    named = None if hosts is None else hosts.tolist()

    async def run() -> tuple[list[float], list[float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        network = SimNetwork(loop, world, streams)
        coordinator = None
        if real:
            # One vendor's partial stands for all: the coordinator's work is real, the rows are not looked at.
            (database,) = fleet(scenario.replace(vendors=1), streams).values()
            answer = Scanner.from_connection("first", database)
            scanners = [Scanner(vendor_id, answer.execute) for vendor_id in vendor_ids(scenario.vendors)]
            network.add_hosts(LEAF, [scanner.address for scanner in scanners], hosts=named)
            policy = scenario.simulated_policy
            coordinator = QueryCoordinator(scanners, schema=SCHEMA, network=network, policy=policy)
        else:
            targets = [f"leaf/{i}" for i in range(scenario.vendors)]
            network.add_hosts(LEAF, targets, hosts=named)
            network.register("leaf/", lambda target, message: None)

        async def ask(request: int) -> None:
            base = world.base_ticks(streams, request)
            if base:
                await asyncio.sleep(base * TICK_S)
            with request_number(request):
                if coordinator is not None:
                    await coordinator.query(scenario.statement, scenario.params)
                else:
                    await scatter(network, "root", targets)

        try:
            return await _driven(ask, (meant * TICK_S).tolist(), client)
        finally:
            if coordinator is not None:
                coordinator.close()
                database.close()

    began, ends = sim_run(run())
    return tuple(np.rint(np.array(times) / TICK_S).astype(np.int64) for times in (began, ends))  # type: ignore[return-value]


async def _driven(
    ask: Callable[[int], Awaitable[None]], meant_s: Sequence[float], client: Client
) -> tuple[list[float], list[float]]:
    loop = asyncio.get_running_loop()
    began, ends = list(meant_s), [0.0] * len(meant_s)

    async def one(request: int) -> None:
        await ask(request)
        ends[request] = loop.time()

    if client == "closed":
        for request, when in enumerate(meant_s):
            if when > loop.time():
                await asyncio.sleep(when - loop.time())
            began[request] = loop.time()
            await one(request)
        return began, ends
    running: set[asyncio.Task[None]] = set()
    done: asyncio.Future[None] = loop.create_future()

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if done.done():
            return
        if not task.cancelled() and task.exception() is not None:
            done.set_exception(cast(BaseException, task.exception()))
        elif not running and started == len(meant_s):
            done.set_result(None)

    started = 0

    def start() -> None:
        # One timer at a time: a long run would otherwise begin with all of its timers in the queue.
        nonlocal started
        while started < len(meant_s) and meant_s[started] <= loop.time():
            task = loop.create_task(one(started))
            running.add(task)
            started += 1
            task.add_done_callback(ended)
        if started < len(meant_s):
            loop.call_at(meant_s[started], start)

    start()
    try:
        await done
    finally:
        for task in running:
            task.cancel()
    return began, ends
