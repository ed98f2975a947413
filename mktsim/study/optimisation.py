"""The best of several values of a parameter, with an honest interval of what the choice may cost.

Rules
-----
The answer is not a name alone: it comes with the *regret*, by how much the chosen value is worse than the truly best
one, and with all values that could be the best. Both hold at once with the stated confidence, however many candidates
there are and although the same samples chose: searching longer for a winner widens the interval.

Theory of operation
-------------------
Multiple comparisons with the best (Hsu, Annals of Statistics 12, 1984; under common random numbers Nelson & Matejcik,
Management Science 41, 1995). Let b be the truly best of k candidates, which is fixed though unknown. By Bonferroni over
the k - 1 others, with probability 1 - alpha at once for all j: mean_b - mean_j <= X_b - X_j + w(b, j), w being the
one-sided Student bound of the paired differences at alpha / (k - 1). Whatever rule picked s, then its regret
mean_s - mean_b is at most X_s - X_b + w(s, b), and so at most the largest of X_s - X_j + w(s, j) over j. The true b
itself satisfies X_b - X_j - w(b, j) <= 0 for all j: those that do could be the best.

What this does not do
---------------------
It compares given candidates; between them it knows nothing. Ties are given to the first.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.fanout.policy import ScatterPolicy
from mktsim.streams import check_seed
from mktsim.study.jobs import Job, Submits, check_executor, completed
from mktsim.study.replication import Engine, _check
from mktsim.study.replications import LEAST_REPLICATIONS, check_replications, values_of
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, _share, probability_of, samples_for_quantile

Objective = str | Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """The best candidate of a parameter, by the smallest objective.

    Attributes
    ----------
    parameter, objective : str
    best : object
        The candidate whose estimate is least.
    regret : Interval
        By how much it may be worse than the truly best candidate; from 0 on, in units of the objective.
    frame : DataFrame
        One row a candidate: ``candidate``, ``estimate`` with ``low`` and ``high`` (simultaneous for all candidates),
        ``regret_high``, ``could_be_best``, ``n`` (replications).
    seed : int
    """

    parameter: str
    objective: str
    best: Any
    regret: Interval
    frame: pd.DataFrame
    seed: int

    @property
    def could_be_best(self) -> list[Any]:
        """All candidates that the samples do not rule out, with the stated confidence."""
        return list(self.frame.loc[self.frame["could_be_best"], "candidate"])

    def __str__(self) -> str:
        return (
            f"{self.parameter} = {self.best} has the least {self.objective}; it is worse than the best by at most "
            f"{self.regret.high:.4g} ({self.regret.confidence:.0%}); could be best: "
            f"{', '.join(map(str, self.could_be_best))}"
        )

    def __repr__(self) -> str:
        return (
            f"<Optimum {self.parameter} = {self.best!r:.80} by {self.objective}, regret at most "
            f"{self.regret.high:.4g}; could be best: {len(self.could_be_best)} of {len(self.frame)}; seed {self.seed}>"
        )

    def _repr_html_(self) -> str:
        table: str = self.frame.to_html(index=False, float_format=lambda x: f"{x:.4g}", escape=True)
        return f"<div>{html.escape(str(self))}</div>{table}"


def optimise(
    scenario: Scenario,
    parameter: str,
    candidates: Sequence[Any],
    *,
    objective: Objective = "mean",
    replications: int = LEAST_REPLICATIONS,
    seed: int,
    requests: int = 100,
    confidence: float = 0.95,
    engine: Engine = "auto",
    executor: Submits | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> Optimum:
    """Find which of several values of a parameter makes an objective least, under common random numbers.

    Parameters
    ----------
    scenario : Scenario
        What the parameter does not change.
    parameter : str
        A field of the scenario, as ``fanout``, or of its policy or world, as ``policy.hedge_after_s``.
    candidates : sequence
        At least 2 different values.
    objective : str or callable
        ``mean``, a quantile like ``p99`` of each replication, or a function of one replication's sojourn times in ms.
    replications, seed, requests, engine, executor, cache, progress
        See :func:`~mktsim.study.replications.replicate`.
    confidence : float
        With which the regret's interval and the candidates that could be best hold at once.

    Raises
    ------
    InvalidArgumentError
        Before any work, if a candidate is out of range or the requests cannot bear the objective.

    Examples
    --------
    >>> found = optimise(Scenario(vendors=1000, preset="cloudflare-2026"), "fanout", ["flat", 6, 30], seed=1)
    >>> found.best, found.could_be_best, found.regret.low
    (6, [6], 0.0)
    """
    _check(scenario, requests, engine)
    check_seed(seed)
    check_executor(executor, cache)
    check_replications(replications)
    _share("confidence", confidence)
    if isinstance(candidates, str) or not isinstance(candidates, Sequence) or len(candidates) < 2:
        raise InvalidArgumentError(f"candidates must be a sequence of at least 2 values, not {candidates!r:.80}")
    if any(one == other for i, one in enumerate(candidates) for other in candidates[:i]):
        raise InvalidArgumentError(f"a candidate stands twice in {candidates!r:.80}")
    p = probability_of(objective) if isinstance(objective, str) else None
    if not isinstance(objective, str) and not callable(objective):
        raise InvalidArgumentError(f"objective must be a statistic or a function, not {objective!r:.80}")
    if p is not None and requests < samples_for_quantile(p):
        raise InvalidArgumentError(
            f"{objective} of each replication needs {samples_for_quantile(p):,} requests in it, not {requests:,}"
        )
    scenarios = [with_value(scenario, parameter, value) for value in candidates]
    jobs = [Job(one, seed, r, requests, engine) for one in scenarios for r in range(replications)]
    values = np.empty((len(scenarios), replications))
    with tqdm(total=len(jobs), desc=f"optimise {parameter}", unit="replication", disable=not progress) as bar:
        for place, (_, times_ms) in completed(jobs, executor=executor, cache=cache):
            value = float(objective(times_ms)) if callable(objective) else values_of(times_ms[None, :], objective)[0]
            values[divmod(place, replications)] = value
            bar.update()
    name = objective if isinstance(objective, str) else getattr(objective, "__name__", "objective")
    return best_of(values, candidates, parameter=parameter, objective=name, confidence=confidence, seed=seed)


def with_value(scenario: Scenario, parameter: str, value: Any) -> Scenario:
    """Return a scenario with one value changed, by its name or by ``policy.`` or ``world.`` and its name.

    Raises
    ------
    InvalidArgumentError
        If there is no such value, or it is out of range.

    Examples
    --------
    >>> with_value(Scenario(vendors=5), "policy.hedge_after_s", 0.01).policy.hedge_after_s
    0.01
    """
    if not isinstance(parameter, str):
        raise InvalidArgumentError(f"parameter must be a name, not {parameter!r:.80}")
    owner, dot, name = parameter.partition(".")
    if not dot:
        return scenario.replace(**{parameter: value})
    whole: Any = {"policy": scenario.policy or ScatterPolicy(), "world": scenario.world}.get(owner)
    known = [] if whole is None else [each.name for each in fields(whole) if each.init]
    if name not in known:
        raise InvalidArgumentError(
            f"no parameter {parameter!r:.80}: name a field of the scenario, or one of policy. or world., "
            f"which have {', '.join(known) or 'theirs'}"
        )
    return scenario.replace(**{owner: whole.replace(**{name: value})})


def best_of(
    values: ArrayLike,
    candidates: Sequence[Any],
    *,
    parameter: str = "candidate",
    objective: str = "value",
    confidence: float = 0.95,
    seed: int = 0,
) -> Optimum:
    """Choose the candidate with the least mean, and bound its regret; see the module's text.

    Parameters
    ----------
    values : array_like, shape (candidates, replications)
        Replication r of all candidates under the same draws.

    Examples
    --------
    >>> luck = np.arange(10.0)
    >>> found = best_of([luck + 3, luck + 1, luck + 1.5], ["a", "b", "c"])
    >>> found.best, found.regret.high
    ('b', 0.0)
    """
    x = np.asarray(values, float)
    if x.ndim != 2 or len(x) != len(candidates) or len(x) < 2 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise InvalidArgumentError(
            f"needs finite values of shape (candidates, replications), at least 2 of each, not {x.shape} for "
            f"{len(candidates)} candidates"
        )
    k, n = x.shape
    error = 1 - _share("confidence", confidence)
    means = x.mean(axis=1)
    apart = means[:, None] - means[None, :]
    # One pair after the other: all differences at once would be k times as much memory.
    spread = np.array([[(one - other).std(ddof=1) for other in x] for one in x])
    width = float(stats.t.ppf(1 - error / (k - 1), n - 1)) * spread / math.sqrt(n)
    others = ~np.eye(k, dtype=bool)
    regret_high = np.maximum(0.0, np.where(others, apart + width, -np.inf).max(axis=1))
    could = np.where(others, apart - width, -np.inf).max(axis=1) <= 0
    half = float(stats.t.ppf(1 - error / (2 * k), n - 1)) * x.std(axis=1, ddof=1) / math.sqrt(n)
    chosen = int(np.argmin(means))
    frame = pd.DataFrame(
        {
            "candidate": pd.Series(list(candidates), dtype=object),
            "estimate": means,
            "low": means - half,
            "high": means + half,
            "regret_high": regret_high,
            "could_be_best": could,
            "n": n,
        }
    )
    regret = Interval(0.0, 0.0, float(regret_high[chosen]), n, confidence)
    return Optimum(parameter, objective, candidates[chosen], regret, frame, seed)
