"""Intervals for what simulations estimate, and the refusal to estimate from too little.

Rules
-----
A mean over replications gets Student's t. A quantile gets order statistics, which assume nothing of the distribution
but independence; from too few samples there is no such interval, and the error names the number that would do. Where
requests of one replication depend on each other, replications are the samples, for quantiles as well.

Theory of operation
-------------------
Student's interval of R replication means covers less than it says where the means are skewed: to first order by
2 z phi(z) s^2 (z^4 + 2 z^2 - 3) / (18 R), s being their skewness (Hall, The Bootstrap and Edgeworth Expansion, 1992,
2.6). A mean of m observations is as skewed as one of m / tau independent ones, where tau is how much more the means
vary than those of m independent observations would; so s^2 = S^2 tau / m, with the skewness S of single observations.
`replication_interval` warns where that deficit exceeds a percentage point. Worked example, M/M/1 at 0.8: S is about 2,
tau 80; 10 runs of 200 lose 0.25 * 4 * 80 / 2000 = 4 points, 20 runs of 10,000 a twenty-fifth of one. So short a run
also still remembers how it started, which no number of replications mends: it warns, too, where observations depend on
each other and a replication is shorter than 25 tau.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mktsim.errors import InvalidArgumentError, UndercoverageWarning

#: A lost percentage point of coverage is worth a warning.
_DEFICIT: Final = 0.01
#: A replication that holds fewer times what one observation remembers is short.
_LONG: Final = 25
#: Beyond chance for 10 replications of independent observations (once in 30,000).
_DEPENDENT: Final = 4.0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval, from `n` samples."""

    estimate: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @property
    def relative_half_width(self) -> float:
        """The larger half of the interval over the estimate; infinite where the estimate is 0."""
        half = max(self.estimate - self.low, self.high - self.estimate)
        return half / abs(self.estimate) if self.estimate else math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def _samples(values: ArrayLike, least: int) -> NDArray[np.float64]:
    x = np.asarray(values, float)
    if x.ndim != 1 or len(x) < least or not np.isfinite(x).all():
        raise InvalidArgumentError(
            f"needs at least {least} finite samples in one dimension, not {x.size} of shape {x.shape}"
        )
    return x


def _share(name: str, value: float) -> float:
    if not isinstance(value, int | float | np.floating) or not 0.0 < value < 1.0:
        raise InvalidArgumentError(f"{name} must be inside (0, 1), not {value!r:.80}")
    return float(value)


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Estimate a mean from independent replications by Student's t.

    Raises
    ------
    InvalidArgumentError
        For fewer than 2 samples or any that is not finite.

    Examples
    --------
    >>> print(mean_interval([1.0, 2.0, 3.0, 4.0]))
    2.5 [0.4457, 4.554]
    """
    x, confidence = _samples(values, 2), _share("confidence", confidence)
    mean = float(x.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x), confidence)


def batch_means_interval(values: ArrayLike, *, batches: int = 20, confidence: float = 0.95) -> Interval:
    """Estimate the mean of one long dependent run from the means of `batches` equal parts; the remainder is dropped."""
    if not isinstance(batches, int) or batches < 2:
        raise InvalidArgumentError(f"batches must be a whole number of at least 2, not {batches!r:.80}")
    x = _samples(values, 2 * batches)
    means = x[: len(x) // batches * batches].reshape(batches, -1).mean(axis=1)
    return mean_interval(means, confidence=confidence)


def samples_for_quantile(p: float, *, confidence: float = 0.95) -> int:
    """Return how many independent samples the quantile `p` needs at least, for an interval to exist.

    With n samples the quantile lies outside their whole range with probability p^n + (1-p)^n.

    Examples
    --------
    >>> samples_for_quantile(0.99), samples_for_quantile(0.9999)
    (299, 29956)
    """
    p, error = _share("p", p), 1 - _share("confidence", confidence)
    n = max(1, math.ceil(math.log(error) / math.log(max(p, 1 - p))) - 1)
    while p**n + (1 - p) ** n > error:
        n += 1
    return n


def quantile_interval(values: ArrayLike, p: float, *, confidence: float = 0.95) -> Interval:
    """Estimate a quantile of independent samples, with an interval between two order statistics.

    The interval holds the quantile with at least the stated probability, whatever the distribution. Tails are equal
    where there are samples enough; otherwise the upper end is the largest sample and the lower tail gets what is left
    (for p below 1/2 the other way round).

    Raises
    ------
    InvalidArgumentError
        If there are too few samples; the message names the number needed.

    Source: David & Nagaraja, Order Statistics, 3rd ed., section 7.1.
    """
    x = np.sort(_samples(values, 1))
    lower, upper = quantile_ranks(len(x), p, confidence=confidence)
    return Interval(float(np.quantile(x, p)), float(x[lower - 1]), float(x[upper - 1]), len(x), confidence)


def quantile_ranks(n: int, p: float, *, confidence: float = 0.95) -> tuple[int, int]:
    """Return the ranks, from 1 up, of the two among `n` sorted samples between which the quantile lies.

    Raises
    ------
    InvalidArgumentError
        If there are too few samples; the message names the number needed.

    Examples
    --------
    >>> quantile_ranks(100, 0.5), quantile_ranks(299, 0.99)
    ((40, 61), (289, 299))
    """
    p, error = _share("p", p), 1 - _share("confidence", confidence)
    needed = samples_for_quantile(p, confidence=confidence)
    if n < needed:
        raise InvalidArgumentError(
            f"a {p:g} quantile with a {confidence:g} interval needs at least {needed:,} independent samples, "
            f"not {n:,}; run more requests"
        )
    if p < 0.5:
        lower, upper = quantile_ranks(n, 1 - p, confidence=confidence)
        return n + 1 - upper, n + 1 - lower
    # B, the number of samples below the quantile, is binomial; X_(l) <= quantile <= X_(u) iff l <= B < u.
    binomial = stats.binom(n, p)
    upper = int(binomial.ppf(1 - error / 2)) + 1
    lower_error = error / 2
    if upper > n:
        upper, lower_error = n, error - p**n
    lower = int(binomial.ppf(lower_error))
    if binomial.cdf(lower - 1) > lower_error:
        lower -= 1
    return max(lower, 1), upper


def share_interval(hits: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Estimate a share from `hits` among `n` independent trials, by the exact binomial tails.

    Source: Clopper & Pearson, Biometrika 26, 1934; it holds the share at least as often as it says.

    Examples
    --------
    >>> print(share_interval(0, 10))
    0 [0, 0.3085]
    """
    if not isinstance(n, int | np.integer) or not isinstance(hits, int | np.integer) or not 0 <= hits <= n or n < 1:
        raise InvalidArgumentError(f"a share needs 0 <= hits <= n and n >= 1, not {hits!r:.80} of {n!r:.80}")
    tail = (1 - _share("confidence", confidence)) / 2
    low = float(stats.beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.isf(tail, hits + 1, n - hits)) if hits < n else 1.0
    return Interval(hits / n, low, high, int(n), confidence)


# -- replications -------------------------------------------------------------------------------------------------


def probability_of(statistic: str) -> float | None:
    """Read the name of a statistic: None for ``mean``, else the share of which it is the quantile.

    Raises
    ------
    InvalidArgumentError
        If it is neither ``mean`` nor like ``p50`` or ``p99.9``.

    Examples
    --------
    >>> probability_of("mean"), probability_of("p99.9")
    (None, 0.999)
    """
    if statistic == "mean":
        return None
    if isinstance(statistic, str) and re.fullmatch(r"p\d{1,2}(\.\d{1,12})?", statistic):
        p = float(statistic[1:]) / 100
        if 0 < p < 1:
            return round(p, 15)
    raise InvalidArgumentError(f'a statistic is "mean" or a quantile like "p50" or "p99.9", not {statistic!r:.80}')


def _runs(samples: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(samples, float)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1] or not np.isfinite(x).all():
        raise InvalidArgumentError(
            f"needs finite samples of shape (replications, observations), 2 replications at least, not {x.shape}"
        )
    return x


def replication_interval(samples: ArrayLike, *, confidence: float = 0.95, stacklevel: int = 2) -> Interval:
    """Estimate a mean from replications of several observations each, and warn where the interval deceives.

    Parameters
    ----------
    samples : array_like, shape (replications, observations)
        Replications are independent of each other; the observations of one need not be.
    confidence : float
    stacklevel : int
        Whose line the warning names; 2 is the caller's.

    Warns
    -----
    UndercoverageWarning
        If the replications are so few or so short that the interval covers a percentage point less than it says.

    Examples
    --------
    >>> print(replication_interval([[1.0, 2.0], [2.0, 4.0], [3.0, 3.0]]))
    2.5 [0.3487, 4.651]
    """
    x = _runs(samples)
    reason = undercoverage(x, confidence=confidence)
    if reason is not None:
        said = f"{len(x)} replications of {x.shape[1]:,} observations: {reason}"
        warnings.warn(said, UndercoverageWarning, stacklevel=stacklevel)
    return mean_interval(x.mean(axis=1), confidence=confidence)


def undercoverage(samples: ArrayLike, *, confidence: float = 0.95) -> str | None:
    """Say why Student's interval of these replications is likely to cover less than it says, or None.

    Examples
    --------
    >>> undercoverage(np.arange(60.0).reshape(10, 6))
    'each is shorter than 25 times the 6.6 observations that one remembers, so its start still shows; take longer ones'
    """
    x = _runs(samples)
    tau = memory(x)
    if tau > _DEPENDENT and x.shape[1] < _LONG * tau:
        return (
            f"each is shorter than {_LONG} times the {tau:.3g} observations that one remembers, so its start still "
            "shows; take longer ones"
        )
    deficit = coverage_deficit(x, confidence=confidence)
    if deficit > _DEFICIT:
        return (
            f"they are few for so skewed a mean: an interval said to be of {confidence:.0%} covers about "
            f"{100 * deficit:.2g} points less; take more, or longer ones"
        )
    return None


def memory(samples: ArrayLike) -> float:
    """Estimate over how many observations one is remembered: 1 where they are independent.

    It is how much more the replications' means vary than those of as many independent observations would.
    """
    x = _runs(samples)
    spread = float(x.var())
    return float(x.mean(axis=1).var(ddof=1)) * x.shape[1] / spread if spread else 1.0


def coverage_deficit(samples: ArrayLike, *, confidence: float = 0.95) -> float:
    """Estimate by how much skewness makes Student's interval cover less than it says; see the module's text."""
    x = _runs(samples)
    if not x.std():
        return 0.0
    tau = memory(x)
    # What independent observations would reach by chance once in a hundred times is taken for chance.
    by_chance = float(stats.chi2.ppf(0.99, len(x) - 1)) / (len(x) - 1)
    skew2 = float(stats.skew(x, axis=None)) ** 2 * (tau if tau > by_chance else 1.0) / x.shape[1]
    z = float(stats.norm.ppf((1 + _share("confidence", confidence)) / 2))
    lost: float = 2 * z * float(stats.norm.pdf(z)) * skew2 * (z**4 + 2 * z * z - 3) / (18 * len(x))
    return min(confidence, lost)


def sectioned_quantile_interval(samples: ArrayLike, p: float, *, confidence: float = 0.95) -> Interval:
    """Estimate a quantile of observations that depend on each other within a replication.

    The estimate is that of all observations together, its spread that of the replications' own quantiles.
    Source: sectioning, Asmussen & Glynn, Stochastic Simulation, 2007, III.5a.

    Raises
    ------
    InvalidArgumentError
        If a replication has fewer than 5 observations beyond the quantile on average.
    """
    x, p = _runs(samples), _share("p", p)
    needed = observations_for_section(p)
    if x.shape[1] < needed:
        raise InvalidArgumentError(
            f"a {p:g} quantile of dependent requests needs at least {needed:,} in each replication, not {x.shape[1]:,}"
        )
    spread = mean_interval(np.quantile(x, p, axis=1), confidence=confidence)
    estimate, half = float(np.quantile(x, p)), spread.high - spread.estimate
    return Interval(estimate, estimate - half, estimate + half, len(x), confidence)


def observations_for_section(p: float) -> int:
    """Return how many dependent observations a replication needs for its own quantile `p`: 5 beyond it on average.

    Examples
    --------
    >>> observations_for_section(0.99)
    500
    """
    return math.ceil(round(5 / min(p, 1 - p), 9))


def estimate_statistic(
    samples: ArrayLike, statistic: str, *, independent: bool = True, confidence: float = 0.95
) -> Interval:
    """Estimate ``mean``, ``p50``, ``p99``, ... from replications, without a warning.

    Parameters
    ----------
    samples : array_like, shape (replications, observations)
    statistic : str
    independent : bool
        Whether the observations of one replication are independent, so that a quantile may use them all.
    """
    p, x = probability_of(statistic), _runs(samples)
    if p is None:
        return mean_interval(x.mean(axis=1), confidence=confidence)
    if independent:
        return quantile_interval(x.ravel(), p, confidence=confidence)
    return sectioned_quantile_interval(x, p, confidence=confidence)


def required_replications(values: ArrayLike, relative_half_width: float, *, confidence: float = 0.95) -> int:
    """Return how many replications a mean needs for its half-width to be that share of it, judged from a pilot.

    Raises
    ------
    InvalidArgumentError
        If the pilot's mean is 0, where no relative width exists, or has fewer than 2 values.
    """
    x, width = _samples(values, 2), _share("relative_half_width", relative_half_width)
    if not x.mean():
        raise InvalidArgumentError("a mean of 0 has no relative half-width; ask for an absolute one")
    spread = float(x.std(ddof=1) / abs(x.mean()))

    def enough(n: int) -> bool:
        return bool(stats.t.ppf((1 + confidence) / 2, n - 1) * spread / math.sqrt(n) <= width)

    high = 2
    while not enough(high):
        high *= 2
    low = high // 2  # The half-width falls with n: bisect between one that is too few and one that will do.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def mser5(values: ArrayLike) -> int:
    """Return how many first observations to drop as warm-up, by MSER-5.

    The series is averaged in batches of 5; the cut is where the standard error of what remains is smallest, sought in
    the first half. A cut at the very end of that half means that the run is too short to tell.

    Source: White, Cobb & Spratt, A comparison of five steady-state truncation heuristics, WSC 2000.
    """
    statistic = mser5_statistic(values)
    return 5 * int(np.argmin(statistic[: max(1, len(statistic) // 2)]))


def mser5_statistic(values: ArrayLike) -> NDArray[np.float64]:
    """Return what MSER-5 minimises: the squared standard error of what remains after each cut of 5 k observations."""
    x = _samples(values, 20)
    z = x[: len(x) // 5 * 5].reshape(-1, 5).mean(axis=1)
    z = z - z.mean()  # Sums of squares of a series far from 0 would cancel.
    m = len(z) - np.arange(len(z))
    tail, squares = np.cumsum(z[::-1])[::-1], np.cumsum((z * z)[::-1])[::-1]
    return np.asarray((squares - tail**2 / m) / m.astype(float) ** 2)


def pooled(parts: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Join the samples of several replications."""
    return np.concatenate([np.asarray(part, float) for part in parts])
