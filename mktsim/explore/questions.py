"""The questions that explorers ask, without a widget: plain values in, tables and results out.

Long ones are generators for :class:`mktsim.explore.background.Job`: they yield their progress, slice by slice, and
return the answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mktsim.errors import IncompleteAnswerError
from mktsim.explore.background import Progress
from mktsim.fanout import Explanation, QueryCoordinator, Scanner
from mktsim.fanout.policy import Breaker, ScatterPolicy
from mktsim.placement import ConsistentHashRing, hash_keys, moved
from mktsim.sim import Constant, Exponential, Latency, LogNormal, Pareto, Policy, SimNetwork, Trace, World, sim_run
from mktsim.sim.events import event_sojourn_times
from mktsim.sim.network import request_number
from mktsim.sim.simulation import Program, Simulation
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sim.world import LEAF
from mktsim.sqlite import Connection, Error, Value, rows
from mktsim.streams import Streams
from mktsim.study.coordinated import SCHEMA, fleet
from mktsim.study.naive import naive_merge
from mktsim.study.points import Point, tidy
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import quantile_interval, samples_for_quantile

Row = tuple[Any, ...]
T = TypeVar("T")

_SLICE_LEAVES: Final = 100_000
_MOMENTS_A_SLICE: Final = 500

#: Distributions of a vendor's service time, by name, each made of its mean in ms.
SERVICES: Final[Mapping[str, Callable[[float], Latency]]] = {
    "constant": Constant,
    "exponential": Exponential,
    "log-normal, sigma 1": lambda mean_ms: LogNormal.from_mean_sigma(mean_ms, 1.0),
    "Pareto, alpha 2.1": lambda mean_ms: Pareto(mean_ms * 1.1 / 2.1, 2.1),
}


def finish(slices: Generator[Progress, None, T]) -> T:
    """Do all slices of a question and return its answer.

    Examples
    --------
    >>> finish(fan_out_curve(Scenario(vendors=10), requests=30, seed=1))["statistic"].tolist()
    ['p50']
    """
    while True:
        try:
            next(slices)
        except StopIteration as end:
            answer: T = end.value
            return answer


# -- fan-out ------------------------------------------------------------------------------------------------------


def fan_out_curve(
    scenario: Scenario, *, requests: int, seed: int, beside_flat: bool = False
) -> Generator[Progress, None, pd.DataFrame]:
    """Simulate scatters over 10, 100, ... vendors up to the scenario's; yield after each slice, with the points so far.

    Parameters
    ----------
    scenario : Scenario
        The largest fleet, its world and the fan-out.
    requests : int
        For each size; p99 needs 299, and is left out below.
    seed : int
        Decides every draw: the times are those of `simulate`.
    beside_flat : bool
        Where there is a tree, the flat scatter as well.

    Returns
    -------
    DataFrame
        See :class:`mktsim.study.points.Point`; the statistics are p50 and p99 of the sojourn time in ms.
    """
    streams = Streams(seed)
    kinds = [scenario.fanout, "flat"] if beside_flat and scenario.width is not None else [scenario.fanout]
    sizes = sorted({10**k for k in range(1, 8) if 10**k < scenario.vendors} | {scenario.vendors})
    total, done = requests * len(sizes) * len(kinds), 0
    points: list[Point] = []
    for n in sizes:
        for kind in kinds:
            here = scenario.replace(vendors=n, fanout=kind)
            step = max(1, min(requests, _SLICE_LEAVES // n))
            times: list[NDArray[np.float64]] = []
            for first in range(0, requests, step):
                numbers = range(first, min(requests, first + step))
                times.append(
                    vectorised_sojourn_times(here.world, streams, leaves=n, requests=numbers, width=here.width)
                )
                done += len(numbers)
                yield Progress(done, total, f"requests, {n:,} vendors")
            name = "flat" if kind == "flat" else f"tree of width {kind}"
            points += _quantiles(np.concatenate(times) * 1e3, name, n, seed, scenario.preset)
        if n != sizes[-1]:
            yield Progress(done, total, f"requests, {n:,} vendors", tidy(points))
    return tidy(points)


def _quantiles(times_ms: NDArray[np.float64], name: str, n: int, seed: int, preset: str) -> list[Point]:
    return [
        Point.of(
            quantile_interval(times_ms, p),
            study="fan-out", series=f"p{100 * p:g}, {name}", kind="simulated", axis="vendors", x=float(n),
            statistic=f"p{100 * p:g}", unit="ms", seed=seed, engine="vectorised", preset=preset,
        )
        for p in (0.5, 0.99)
        if len(times_ms) >= samples_for_quantile(p)
    ]  # fmt: skip


# -- ring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class RingChange:
    """What a change of shards does to the vendors.

    Attributes
    ----------
    turn : ndarray of float64, shape (vendors,)
        Each vendor's place on the ring, from 0 to 1.
    moved : ndarray of bool, shape (vendors,)
        Whether it changed its shard.
    shards : DataFrame
        One row a shard, of before or after: ``shard``, ``before``, ``after`` (vendors), ``in``, ``out`` (that moved).
    """

    turn: NDArray[np.float64]
    moved: NDArray[np.bool_]
    shards: pd.DataFrame

    @property
    def share(self) -> float:
        """The share of the vendors that moved."""
        return float(self.moved.mean()) if len(self.moved) else 0.0


def ring_change(
    before: Sequence[str], after: Sequence[str], vendors: Sequence[str], *, virtual_nodes: int
) -> RingChange:
    """Place vendors on two rings and compare.

    Examples
    --------
    >>> change = ring_change(["a", "b"], ["a", "b", "c"], [f"v{i}" for i in range(300)], virtual_nodes=150)
    >>> bool((change.shards.loc[change.shards["shard"] != "c", "in"] == 0).all())
    True
    """
    old, new = (ConsistentHashRing(nodes, virtual_nodes=virtual_nodes) for nodes in (before, after))
    changed = moved(old, new, vendors)
    names = list(dict.fromkeys([*before, *after]))
    was = pd.Series(np.array(before)[old.assign(vendors)])
    is_now = pd.Series(np.array(after)[new.assign(vendors)])
    counts = {
        "before": was.value_counts(),
        "after": is_now.value_counts(),
        "in": is_now[changed].value_counts(),
        "out": was[changed].value_counts(),
    }
    frame = pd.DataFrame({name: count.reindex(names, fill_value=0) for name, count in counts.items()})
    return RingChange(hash_keys(vendors) / 2.0**64, changed, frame.rename_axis("shard").reset_index())


# -- merge --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MergeComparison:
    """One statement, merged exactly and naively.

    Attributes
    ----------
    explanation : Explanation
        Tier and statements.
    columns : tuple of str
    exact, naive : list of tuple
        The two answers; the naive one is None where that merge breaks down, `naive_error` says how.
    agree : bool
        Whether they are the same: floats to 9 digits, in order where the statement has an ORDER BY.
    rows_shipped : int
        By the exact merge.
    """

    explanation: Explanation
    columns: tuple[str, ...]
    exact: list[Row]
    naive: list[Row] | None
    naive_error: str
    agree: bool
    rows_shipped: int


def compare_merges(sql: str, params: Sequence[Value], scenario: Scenario, *, seed: int) -> MergeComparison:
    """Answer one statement over the scenario's vendors by the coordinator, and as an obvious implementation would.

    Raises
    ------
    QueryError
        If the statement is at fault.

    Examples
    --------
    >>> compared = compare_merges("SELECT AVG(stock) FROM products WHERE stock > 60", (), Scenario(vendors=3), seed=1)
    >>> compared.explanation.tier, compared.agree
    ('two-phase', False)
    """
    databases = fleet(scenario, Streams(seed))
    try:
        coordinator = QueryCoordinator([Scanner.from_connection(*item) for item in databases.items()], schema=SCHEMA)
        try:
            explanation = coordinator.explain(sql, params)
            result = sim_run(coordinator.query(sql, params))  # Works in a notebook's running loop as well.
        finally:
            coordinator.close()
        naive, why = _naively(sql, params, result.columns, list(databases.values()))
    finally:
        for database in databases.values():
            database.close()
    agree = naive is not None and _same(naive, result.rows, ordered=" ORDER " in f" {sql.upper()} ")
    return MergeComparison(explanation, result.columns, result.rows, naive, why, agree, result.stats.rows_shipped)


def _naively(
    sql: str, params: Sequence[Value], columns: Sequence[str], databases: Sequence[Connection]
) -> tuple[list[Row] | None, str]:
    try:
        answers = [rows(database, sql, tuple(params)) for database in databases]
        return naive_merge(sql, columns, answers, params), ""
    except (Error, OverflowError, TypeError) as error:
        return None, f"{type(error).__name__}: {error}"


def _same(one: Sequence[Row], two: Sequence[Row], *, ordered: bool) -> bool:
    """Compare as leniently as a study of merges does: 1 equals 1.0, floats agree to 9 digits, order where asked for."""
    a, b = ([tuple(map(_alike, row)) for row in rows] for rows in (one, two))
    return a == b if ordered else Counter(a) == Counter(b)


def _alike(value: Any) -> Any:
    return f"{value:.9g}" if isinstance(value, int | float) else ("value", value)


# -- stragglers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class HedgedRequest:
    """One request under a policy, and many of them with it and without.

    Attributes
    ----------
    waterfall : DataFrame
        One row a call of the one request; see :meth:`mktsim.sim.trace.Trace.waterfall`.
    time_ms, plain_ms : float
        The request's sojourn time, with the same draws under the policy and without it.
    effect : DataFrame
        Of many requests: ``policy``, ``p50``, ``p99`` (ms, intervals as text), ``n``.
    copies : int
        Second calls that the one request made.
    """

    waterfall: pd.DataFrame
    time_ms: float
    plain_ms: float
    effect: pd.DataFrame
    copies: int


def hedged_request(
    scenario: Scenario, *, request: int, requests: int, seed: int
) -> Generator[Progress, None, HedgedRequest]:
    """Trace one request, and simulate many, under the scenario's policy and without it: the same draws each time.

    Parameters
    ----------
    scenario : Scenario
        Its world needs two replicas, where its policy hedges.
    request : int
        The number of the one that is traced.
    requests : int
        How many to estimate p50 and p99 from.
    seed : int
    """
    world, policy, leaves = scenario.world, scenario.array_policy, scenario.vendors
    streams, trace = Streams(seed), Trace()
    times = event_sojourn_times(world, streams, leaves=leaves, requests=(request,), policy=policy, trace=trace)
    plain = vectorised_sojourn_times(world, streams, leaves=leaves, requests=(request,))
    yield Progress(1, 3, "simulations")
    kinds = {"wait for all": Policy()} | ({"hedged": policy} if policy != Policy() else {})
    effect = []
    for place, (name, kind) in enumerate(kinds.items()):
        many = vectorised_sojourn_times(world, streams, leaves=leaves, requests=range(requests), policy=kind) * 1e3
        effect.append((name, *(str(quantile_interval(many, p)) for p in (0.5, 0.99)), requests))
        yield Progress(2 + place, 3, "simulations")
    frame = trace.waterfall(request)
    columns = ["policy", "p50, ms", "p99, ms", "requests"]
    copies = int((frame["attempt"] > 0).sum())
    return HedgedRequest(frame, times[0] * 1e3, plain[0] * 1e3, pd.DataFrame(effect, columns=columns), copies)


# -- faults -------------------------------------------------------------------------------------------------------


def ride_through(
    scenario: Scenario, *, requests: int, every_ms: float, seed: int
) -> Generator[Progress, None, pd.DataFrame]:
    """Send one request after another, `every_ms` apart, while the world's faults come and go.

    It is the real coordinator that answers, under the scenario's policy, with partial answers allowed.

    The answers are true ones, of SQLite databases in simulated time; where a schedule of faults only differs later,
    the beginning is the same.

    Returns
    -------
    DataFrame
        One row a request: ``request``, ``start_ms``, ``sojourn_time_ms``, ``asked``, ``answered``, ``coverage``,
        ``missing`` (ids), ``calls``, ``guarantee``, ``answer``.
    """
    databases = fleet(scenario, Streams(seed))
    out: list[dict[str, Any]] = []
    try:
        scanners = [Scanner.from_connection(*item) for item in databases.items()]
        # All in one slice: a fleet small enough to look at, and its loop cannot be left half-way.
        yield Progress(0, 1, "runs")
        sim_run(_ride(scenario, scanners, requests, every_ms, seed, out))
        yield Progress(1, 1, "runs")
    finally:
        for database in databases.values():
            database.close()
    return pd.DataFrame(out)


async def _ride(
    scenario: Scenario, scanners: Sequence[Scanner], requests: int, every_ms: float, seed: int,
    out: list[dict[str, Any]],
) -> None:  # fmt: skip
    loop: Any = asyncio.get_running_loop()
    streams = Streams(seed)
    network = SimNetwork(loop, scenario.world, streams)
    network.add_hosts(LEAF, [scanner.address for scanner in scanners])
    coordinator = QueryCoordinator(scanners, schema=SCHEMA, network=network, policy=scenario.policy, streams=streams)
    try:
        for request in range(requests):
            start_s = request * every_ms / 1e3
            await asyncio.sleep(max(0.0, start_s - loop.time()))
            start_s = loop.time()
            row: dict[str, Any] = {"request": request, "start_ms": start_s * 1e3}
            with request_number(request):
                try:
                    result = await coordinator.query(scenario.statement, scenario.params, allow_partial=True)
                except IncompleteAnswerError as error:  # Nobody answered.
                    row |= {"asked": len(scanners), "answered": error.answered, "missing": error.missing, "calls": 0}
                    row |= {"guarantee": "no answer", "answer": ""}
                else:
                    coverage = result.coverage
                    row |= {"asked": coverage.asked, "answered": coverage.answered, "missing": coverage.missing}
                    row |= {"calls": result.stats.calls, "guarantee": str(result.guarantees), "answer": result.rows}
            row |= {"coverage": row["answered"] / row["asked"], "sojourn_time_ms": (loop.time() - start_s) * 1e3}
            out.append(row)
    finally:
        coordinator.close()


def resilient_policy(deadline_ms: float, *, retries: int, breaker: bool) -> ScatterPolicy:
    """Return the policy of the faults explorer: a deadline, time-outs of a third of it, retries, a breaker or none."""
    return ScatterPolicy(
        deadline_s=deadline_ms / 1e3,
        attempt_timeout_s=deadline_ms / 3e3,
        retries=retries,
        backoff_s=deadline_ms / 3e4,
        breaker=Breaker(failures=2, open_s=deadline_ms / 1e2) if breaker else None,
    )


# -- steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A simulation up to some moment.

    Attributes
    ----------
    log : DataFrame
        See :meth:`mktsim.sim.trace.Trace.to_pandas`.
    moments : int
        Instants at which something was recorded, up to here.
    now_ms : float
        Simulated.
    done : bool
        Whether the program has ended and nothing is under way.
    """

    log: pd.DataFrame
    moments: int
    now_ms: float
    done: bool


def replay(program: Program, world: World, *, moments: int | None, seed: int) -> Generator[Progress, None, Replay]:
    """Run a simulation from its begin for so many moments, or to its end: the same moments each time.

    Parameters
    ----------
    program : callable
        See :class:`mktsim.sim.simulation.Simulation`.
    world : World
    moments : int, optional
        To the end when absent.
    seed : int
    """
    passed, over = 0, False
    with Simulation(program, world, Streams(seed)) as simulation:
        while moments is None or passed < moments:
            if not simulation.step():
                over = True
                break
            passed += 1
            if passed % _MOMENTS_A_SLICE == 0:
                now_ms = simulation.now_s * 1e3
                so_far = None if moments is not None else Replay(simulation.trace.to_pandas(), passed, now_ms, False)
                yield Progress(passed, moments or 0, "moments", so_far)
        now_ms = simulation.now_s * 1e3
        if over and simulation.done:
            _ = simulation.result  # Raises what the program raised.
        return Replay(simulation.trace.to_pandas(), passed, now_ms, over)
