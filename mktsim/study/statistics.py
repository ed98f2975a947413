"""Intervals for what simulations estimate, and the refusal to estimate from too little.

Rules
-----
A mean over replications gets Student's t. A quantile gets order statistics, which assume nothing of the distribution
but independence; from too few samples there is no such interval, and the error names the number that would do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mktsim.errors import InvalidArgumentError


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
    x, p = np.sort(_samples(values, 1)), _share("p", p)
    n, error = len(x), 1 - _share("confidence", confidence)
    needed = samples_for_quantile(p, confidence=confidence)
    if n < needed:
        raise InvalidArgumentError(
            f"a {p:g} quantile with a {confidence:g} interval needs at least {needed:,} independent samples, "
            f"not {n:,}; run more requests"
        )
    if p < 0.5:
        mirrored = quantile_interval(-x, 1 - p, confidence=confidence)
        return Interval(-mirrored.estimate, -mirrored.high, -mirrored.low, n, confidence)
    # B, the number of samples below the quantile, is binomial; X_(l) <= quantile <= X_(u) iff l <= B < u.
    binomial = stats.binom(n, p)
    upper = int(binomial.ppf(1 - error / 2)) + 1
    lower_error = error / 2
    if upper > n:
        upper, lower_error = n, error - p**n
    lower = int(binomial.ppf(lower_error))
    if binomial.cdf(lower - 1) > lower_error:
        lower -= 1
    return Interval(float(np.quantile(x, p)), float(x[max(lower, 1) - 1]), float(x[upper - 1]), n, confidence)


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
    x = _samples(values, 20)
    z = x[: len(x) // 5 * 5].reshape(-1, 5).mean(axis=1)
    z = z - z.mean()  # Sums of squares of a series far from 0 would cancel.
    m = len(z) - np.arange(len(z))
    tail, squares = np.cumsum(z[::-1])[::-1], np.cumsum((z * z)[::-1])[::-1]
    statistic = (squares - tail**2 / m) / m.astype(float) ** 2
    return 5 * int(np.argmin(statistic[: max(1, len(z) // 2)]))


def pooled(parts: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Join the samples of several replications."""
    return np.concatenate([np.asarray(part, float) for part in parts])
