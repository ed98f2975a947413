"""What is left of an answer while vendors are down, and how does it come back?"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any

import pandas as pd

from mktsim.errors import IncompleteAnswerError
from mktsim.fanout import QueryCoordinator, Scanner
from mktsim.fanout.policy import Breaker, ScatterPolicy
from mktsim.sim import SimNetwork, sim_run
from mktsim.sim.network import request_number
from mktsim.sim.world import LEAF
from mktsim.streams import Streams
from mktsim.study.coordinated import SCHEMA, fleet
from mktsim.study.scenario import Scenario
from mktsim.study.slices import Progress, sliced


def resilient_policy(deadline_ms: float, *, retries: int, breaker: bool) -> ScatterPolicy:
    """Return a policy of a deadline, time-outs of a third of it, retries, and a circuit breaker or none.

    Examples
    --------
    >>> resilient_policy(60, retries=1, breaker=True).attempt_timeout_s
    0.02
    """
    return ScatterPolicy(
        deadline_s=deadline_ms / 1e3,
        attempt_timeout_s=deadline_ms / 3e3,
        retries=retries,
        backoff_s=deadline_ms / 3e4,
        breaker=Breaker(failures=2, open_s=deadline_ms / 1e2) if breaker else None,
    )


def intended_start_ms(request: int, *, every_ms: float) -> float:
    """Return when a request of :func:`ride_through` is to start, in simulated ms; it waits for the one before.

    Examples
    --------
    >>> intended_start_ms(10, every_ms=100)
    1000.0
    """
    return float(request * every_ms)


@sliced
def ride_through(
    scenario: Scenario, *, requests: int, every_ms: float, seed: int
) -> Generator[Progress, None, pd.DataFrame]:
    """Send one request after another, `every_ms` apart, while the world's faults come and go.

    It is the real coordinator that answers, under the scenario's policy, with partial answers allowed. The answers are
    true ones, of SQLite databases in simulated time; where a schedule of faults only differs later, the beginning is
    the same.

    Parameters
    ----------
    scenario : Scenario
        Vendors, statement, world with its faults, and policy.
    requests : int
    every_ms : float
        Between the intended starts of two requests, simulated.
    seed : int
        Decides every row and draw.

    Returns
    -------
    DataFrame
        One row a request: ``request``, ``start_ms``, ``sojourn_time_ms``, ``asked``, ``answered``, ``coverage``,
        ``covered_percent``, ``missing`` (ids), ``calls``, ``guarantee``, ``answer``, ``partial_so_far`` (the number of
        requests up to this one of which a vendor was missing).

    Examples
    --------
    >>> ride_through(Scenario(vendors=3), requests=2, every_ms=100, seed=1)[["asked", "answered"]].values.tolist()
    [[3, 3], [3, 3]]
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
    frame = pd.DataFrame(out)
    return frame.assign(
        covered_percent=100 * frame["coverage"], partial_so_far=(frame["coverage"] < 1).cumsum(),
    )  # fmt: skip


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
            start_s = intended_start_ms(request, every_ms=every_ms) / 1e3
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
