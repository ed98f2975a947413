"""The best of several values of a parameter, with an honest interval of what the choice may cost.

Rules
-----
The answer is not a name alone: it comes with the *regret*, by how much the chosen value is worse than the truly best
one, and with all values that could be the best. Both hold at once with the stated confidence, however many candidates
there are and although the same samples chose: searching longer for a winner widens the interval.

Theory of operation
-------------------
Multiple comparisons with the best (Hsu, Annals of Statistics 12, 1984; under common random numbers Nelson & Matejcik,
Management Science 41, 1995). Let b be the truly best of k candidates, which is fixed though unknown, and U(i, j) an
upper bound of mean_i - mean_j at 1 - alpha / (k - 1), so that -U(j, i) is a lower one. By Bonferroni over the k - 1
others, with probability 1 - alpha at once for all j: mean_j - mean_b <= U(j, b). Whatever rule picked s, then its
regret mean_s - mean_b is at most U(s, b), and so at most the largest of U(s, j) over j. The true b itself satisfies
U(j, b) >= 0 for all j, for no mean is below its own: those that do could be the best.

A one-sided Student bound of skewed differences misses by O(1 / sqrt(n)): for ten lognormal ones (sigma 1.5) it holds
65 times in a hundred where 95 are said. So U is Hall's (Journal of the Royal Statistical Society B 54, 1992): with a =
skewness / sqrt(n), g(T) = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6 of the Student ratio T is symmetric to O(1 / n), and g
is a cubic that can be turned round: T = 3 / a (cbrt(1 + a (y - a / 6)) - 1). Ten values tell little of their skewness,
but a mean of m requests is as skewed as sqrt(tau / m) times one of them (`mktsim.study.statistics`), and of those there
are m times as many: where the objective is a mean, they tell it. Worked example: a = 0.4 at y = -1.83, the t quantile
of ten, gives T = -2.8, a bound 1.5 times as far.

What is left is O(1 / n), and is estimated from the same skewness; above a percentage point it is a warning, if chance
alone would hardly have made the skewness.

What this does not do
---------------------
It compares given candidates; between them it knows nothing. Ties are given to the first. A tail so rare that no sample
shows it corrects no bound and warns nobody: of ten lognormal values (sigma 1.5) against a constant the bound holds 86
times in a hundred, and half of such samples warn.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError, UndercoverageWarning
from mktsim.fanout.policy import ScatterPolicy
from mktsim.streams import check_seed
from mktsim.study.jobs import Job, Submits, check_executor, completed
from mktsim.study.replication import Engine, _check, check_engine, requests_are_independent
from mktsim.study.replications import LEAST_REPLICATIONS, check_replications, values_of
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import (
    Interval,
    _share,
    coverage_deficit,
    memory,
    observations_for_section,
    probability_of,
    samples_for_quantile,
)

#: Means of requests that are kept of each replication, to tell how skewed it is.
_OBSERVATIONS: Final = 100
#: A lost percentage point of coverage is worth a warning.
_DEFICIT: Final = 0.01
#: So often, in a hundred, chance alone may make one of all the differences look skewed.
_BY_CHANCE: Final = 0.01
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

    Examples
    --------
    What the samples cannot tell apart from the best stands beside it.

    >>> luck = np.arange(10.0)
    >>> found = best_of([luck + 3, luck + 1, luck[::-1] + 1.1], ["flat", 6, 30], parameter="fanout")
    >>> found.best, found.could_be_best
    (6, [6, 30])
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

    Warns
    -----
    UndercoverageWarning
        If the differences between candidates are so skewed that the bound of the regret is likely to hold less often
        than it says, although it is corrected for that.

    Examples
    --------
    >>> found = optimise(Scenario(vendors=1000, preset="cloudflare-2026"), "fanout", ["flat", 6, 30], seed=1)
    >>> found.best, found.could_be_best, found.regret.low
    (6, [6], 0.0)
    """
    _check(scenario, requests, engine)
    seed = check_seed(seed)
    check_executor(executor, cache)
    check_replications(replications)
    _share("confidence", confidence)
    if isinstance(candidates, str) or not isinstance(candidates, Sequence) or len(candidates) < 2:
        raise InvalidArgumentError(f"candidates must be a sequence of at least 2 values, not {candidates!r:.80}")
    if any(one == other for i, one in enumerate(candidates) for other in candidates[:i]):
        raise InvalidArgumentError(f"a candidate stands twice in {candidates!r:.80}")
    p = probability_of(objective) if isinstance(objective, str) else None
    is_mean = isinstance(objective, str) and p is None
    if not isinstance(objective, str) and not callable(objective):
        raise InvalidArgumentError(f"objective must be a statistic or a function, not {objective!r:.80}")
    scenarios = [with_value(scenario, parameter, value) for value in candidates]
    for one in scenarios:
        check_engine(one, engine)
    if p is not None:
        independent = all(map(requests_are_independent, scenarios))
        needed = samples_for_quantile(p) if independent else max(samples_for_quantile(p), observations_for_section(p))
        if requests < needed:
            raise InvalidArgumentError(
                f"{objective} of each replication needs {needed:,} requests in it{'' if independent else ', for they '}"
                f"{'' if independent else 'depend on each other'}, not {requests:,}"
            )
    jobs = [Job(one, seed, r, requests, engine) for one in scenarios for r in range(replications)]
    values = np.empty((len(scenarios), replications))
    # Means of so many requests are observations too, and in memory they are few.
    size = -(-requests // _OBSERVATIONS) if is_mean else requests
    observed = np.empty((len(scenarios), replications, requests // size))
    with tqdm(total=len(jobs), desc=f"optimise {parameter}", unit="replication", disable=not progress) as bar:
        for place, (_, times_ms) in completed(jobs, executor=executor, cache=cache):
            value = float(objective(times_ms)) if callable(objective) else values_of(times_ms[None, :], objective)[0]
            values[divmod(place, replications)] = value
            parts = times_ms[: observed.shape[2] * size].reshape(-1, size).mean(axis=1) if is_mean else value
            observed[divmod(place, replications)] = parts
            bar.update()
    name = objective if isinstance(objective, str) else getattr(objective, "__name__", "objective")
    found, reason = _best_of(values, candidates, observed, parameter, name, confidence, seed)
    if reason is not None:
        warnings.warn(reason, UndercoverageWarning, stacklevel=2)
    return found


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
    observations: ArrayLike | None = None,
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
    observations : array_like, shape (candidates, replications, observations), optional
        What each value is the mean of, paired as well: they tell more of how skewed the values are.
    confidence : float
        With which the regret's interval and the candidates that could be best hold at once.

    Raises
    ------
    InvalidArgumentError
        If the values are not finite or of another shape.

    Warns
    -----
    UndercoverageWarning
        As :func:`optimise` does.

    Examples
    --------
    >>> luck = np.arange(10.0)
    >>> found = best_of([luck + 3, luck + 1, luck + 1.5], ["a", "b", "c"])
    >>> found.best, found.regret.high
    ('b', 0.0)
    """
    found, reason = _best_of(values, candidates, observations, parameter, objective, confidence, seed)
    if reason is not None:
        warnings.warn(reason, UndercoverageWarning, stacklevel=2)
    return found


def interval_of_one_among(several: int, values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Estimate a mean that was picked among several by looking at the very samples.

    The one that looks best does so by luck as well, so its own interval would hold less often than it says. This one
    holds for all of them at once, by Bonferroni, and so for the one that was picked, whatever picked it. Its ends are
    Hall's bounds, as those of the regret.

    Parameters
    ----------
    several : int
        How many there were to pick from.
    values : array_like, shape (replications,)
        Of the one that was picked.
    confidence : float

    Raises
    ------
    InvalidArgumentError
        If there are fewer than 2 values, one is not finite, or `several` is no whole number of at least 1.

    Examples
    --------
    >>> print(interval_of_one_among(1, [1.0, 2.0, 3.0, 4.0]), interval_of_one_among(8, [1.0, 2.0, 3.0, 4.0]))
    2.5 [0.4457, 4.554] 2.5 [-1.951, 6.951]
    """
    if not isinstance(several, int) or isinstance(several, bool) or several < 1:
        raise InvalidArgumentError(f"several must be a whole number of at least 1, not {several!r:.80}")
    x = _numbers(values)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise InvalidArgumentError(f"needs at least 2 finite values in one dimension, not {x.shape}")
    y = float(stats.t.ppf((1 - _share("confidence", confidence)) / (2 * several), len(x) - 1))
    skewness = _skewness(x[:, None])
    return Interval(float(x.mean()), -_upper(-x, -skewness, y), _upper(x, skewness, y), len(x), confidence)


def _best_of(
    values: ArrayLike,
    candidates: Sequence[Any],
    observations: ArrayLike | None,
    parameter: str,
    objective: str,
    confidence: float,
    seed: int,
) -> tuple[Optimum, str | None]:
    """Choose, and say why the bound of the regret may deceive, or None."""
    x = _numbers(values)
    if x.ndim != 2 or len(x) != len(candidates) or len(x) < 2 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise InvalidArgumentError(
            f"needs finite values of shape (candidates, replications), at least 2 of each, not {x.shape} for "
            f"{len(candidates)} candidates"
        )
    parts = x[:, :, None] if observations is None else _numbers(observations)
    if parts.ndim != 3 or parts.shape[:2] != x.shape or not parts.shape[2] or not np.isfinite(parts).all():
        raise InvalidArgumentError(
            f"needs finite observations of shape (candidates, replications, observations), the first two {x.shape}, "
            f"not {parts.shape}"
        )
    k, n = x.shape
    error = 1 - _share("confidence", confidence)
    means = x.mean(axis=1)
    # One pair after the other: all differences at once would be k times as much memory.
    regret_bound = np.full((k, k), -np.inf)
    of_pairs, of_each = (float(stats.t.ppf(share, n - 1)) for share in (error / (k - 1), error / (2 * k)))
    for i in range(k):
        for j in range(i):
            skewness = _skewness(parts[i] - parts[j])
            for one, other, sign in ((i, j, 1), (j, i, -1)):
                regret_bound[one, other] = _upper(x[one] - x[other], sign * skewness, of_pairs)
    regret_high = np.maximum(0.0, regret_bound.max(axis=1))
    could = np.where(np.eye(k, dtype=bool), np.inf, regret_bound).min(axis=0) >= 0
    own = [_skewness(each) for each in parts]
    chosen = int(np.argmin(means))
    frame = pd.DataFrame(
        {
            "candidate": pd.Series(list(candidates), dtype=object),
            "estimate": means,
            "low": [-_upper(-each, -skewness, of_each) for each, skewness in zip(x, own, strict=True)],
            "high": [_upper(each, skewness, of_each) for each, skewness in zip(x, own, strict=True)],
            "regret_high": regret_high,
            "could_be_best": could,
            "n": n,
        }
    )
    regret = Interval(0.0, 0.0, float(regret_high[chosen]), n, confidence)
    found = Optimum(parameter, objective, candidates[chosen], regret, frame, seed)
    return found, _doubt(parts, chosen, candidates, confidence)


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"needs finite values, as many of each candidate, not {values!r:.80}") from None


def _upper(values: NDArray[np.float64], skewness: float, y: float) -> float:
    """Return Hall's upper bound of a mean of values of this skewness, `y` being the lower quantile of Student's t."""
    n = len(values)
    a = skewness / math.sqrt(n)
    # The limit at a = 0 is Student's bound, and rounding would swallow what differs from it so near.
    ratio = y if abs(a) < 1e-6 else 3 / a * (float(np.cbrt(1 + a * (y - a / 6))) - 1)
    return float(values.mean()) - ratio * float(values.std(ddof=1)) / math.sqrt(n)


def _skewness(observations: NDArray[np.float64]) -> float:
    """Estimate the skewness of a replication's mean from observations of shape (replications, observations)."""
    count, (n, m) = observations.size, observations.shape
    if count < 3 or np.ptp(observations) <= 1e-12 * np.abs(observations).max():  # Equal but for rounding.
        return 0.0
    tau = memory(observations) if m > 1 else 1.0
    unbiased = math.sqrt(count * (count - 1)) / (count - 2)
    return unbiased * _third_moment(observations) * math.sqrt((tau if tau > _memory_by_chance(n) else 1.0) / m)


@cache
def _memory_by_chance(n: int) -> float:
    """Return what the memory of independent observations exceeds once in a hundred times, as in `coverage_deficit`."""
    return float(stats.chi2.ppf(0.99, n - 1)) / (n - 1)


def _third_moment(observations: NDArray[np.float64]) -> float:
    """Return the standardised third moment of all observations."""
    apart = observations - observations.mean()
    squares = apart * apart
    return float((squares * apart).mean() / squares.mean() ** 1.5)


def _doubt(parts: NDArray[np.float64], chosen: int, candidates: Sequence[Any], confidence: float) -> str | None:
    """Say of which candidate the difference from the chosen one is too skewed for its bound, or None."""
    k, n, m = parts.shape
    count = n * m
    if count < 3:
        return None
    # Standard error of the skewness of a normal law.
    noise = math.sqrt(6 * (count - 2) / ((count + 1) * (count + 3)))
    least = float(stats.norm.isf(_BY_CHANCE / (2 * (k - 1)))) * noise
    worst, against = 0.0, 0
    for j in range(k):
        apart = parts[chosen] - parts[j]
        if j != chosen and _skewness(apart) and abs(_third_moment(apart)) > least:
            worst, against = max((worst, against), (coverage_deficit(apart, confidence=confidence), j))
    if worst <= _DEFICIT:
        return None
    return (
        f"{n} replications{f' of {m:,} observations' if m > 1 else ''} are few for so skewed a difference as that of "
        f"{candidates[chosen]!s:.40} from {candidates[against]!s:.40}: a bound of the regret said to be of "
        f"{confidence:.0%} holds about {100 * worst:.2g} points less often, and the best may be missing from those "
        "that could be it; take more, or longer ones"
    )
