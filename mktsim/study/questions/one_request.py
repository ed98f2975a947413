"""Where does one request's time go, and what does a second copy of what is late buy?"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import pandas as pd

from mktsim.fanout.policy import ScatterPolicy
from mktsim.sim import Policy, Trace
from mktsim.sim.events import event_sojourn_times
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.streams import Streams
from mktsim.study.scenario import Scenario
from mktsim.study.slices import Progress, sliced
from mktsim.study.statistics import quantile_interval


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


def hedging_policy(after_ms: float, *, tied: bool = False) -> ScatterPolicy:
    """Return the policy that sends a second copy of a call after so many ms, tied to the first or not.

    Examples
    --------
    >>> hedging_policy(15).hedge_after_s
    0.015
    """
    return ScatterPolicy(hedge_after_s=after_ms / 1e3, tied=tied)


@sliced
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
        Decides every draw.

    Returns
    -------
    HedgedRequest

    Examples
    --------
    >>> answer = hedged_request(Scenario(vendors=10), request=0, requests=300, seed=1)
    >>> len(answer.waterfall), answer.time_ms == answer.plain_ms, answer.copies
    (10, True, 0)
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
    table = pd.DataFrame(effect, columns=columns)
    return HedgedRequest(frame, float(times[0]) * 1e3, float(plain[0]) * 1e3, table, copies)
