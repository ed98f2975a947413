"""Intervals for what simulations estimate, and the refusal to estimate from too little.

Rules
-----
A mean over replications gets Student's t. A quantile gets order statistics, which assume nothing of the distribution
but independence; from too few samples there is no such interval, and the error names the number that would do. Where
requests of one replication depend on each other, replications are the samples, for quantiles as well. One long run
bears an interval by batch means, with a warning where its batches are too short to be told apart.

Theory of operation
-------------------
Student's interval of R replication means covers less than it says where the means are skewed: to first order by
2 z phi(z) s^2 (z^4 + 2 z^2 - 3) / (18 R), s being their skewness (Hall, The Bootstrap and Edgeworth Expansion, 1992,
2.6). A mean of m observations is as skewed as one of m / tau independent ones, where tau is how much more the means
vary than those of m independent observations would; so s^2 = S^2 tau / m, with the skewness S of single observations.
`replication_interval` warns where that deficit exceeds a percentage point. Worked example, M/M/1 at 0.8: S is about 2,
tau 80; 10 runs of 200 lose 0.25 * 4 * 80 / 2000 = 4 points, 20 runs of 10,000 a twenty-fifth of one. So short a run
also still remembers how it started, which no number of replications mends: it warns, too, where observations depend on
each other and a replication is shorter than 25 tau. Where a replication's observations depend on each other only by
what was drawn once for all of them, nothing builds up from its start, and length neither harms nor mends.

A quantile q of dependent observations is where the share at most q is p. Each replication has its own such share, and
their mean a Student's interval; the quantile's interval holds all q for which that one holds p. The replications' own
quantiles would mislead where replications are of different kinds: of a hundred medians near 4 and 90 the mean is near
neither.

Means of batches of b observations are nearly independent where b is many times the integrated autocorrelation time tau.
Of M/M/1 at 0.8, 95 % intervals of 20 batches held the truth in 66, 91 and 94 % of runs with b = 3, 8 and 28 tau, tau
being estimated from the run itself: `batch_means_interval` warns below 15.
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
#: A batch that holds fewer times the autocorrelation time of its run is short.
_LONG_BATCH: Final = 15
#: Autocorrelation times up to this are taken for chance: those of some forty independent observations stay below.
_CHANCE: Final = 2.0
#: So far into the half in which MSER-5 looks for its cut, a share, it has not found one.
_CENSORED: Final = 0.95
#: Samples whose squares can still be added up, a hundred million of them.
_LARGEST: Final = 1e145
#: More replications than this nobody makes; where they are asked for, the width is refused.
_MOST_REPLICATIONS: Final = 10**15


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval, from `n` samples.

    Attributes
    ----------
    estimate : float
        The best guess.
    low, high : float
        Ends of the interval.
    n : int
        Samples, or replications, behind it.
    confidence : float
        How often such an interval holds the truth, from 0 to 1.

    Examples
    --------
    >>> interval = Interval(12.0, 11.4, 12.9, n=300)
    >>> print(interval, 12.5 in interval, round(interval.relative_half_width, 3))
    12 [11.4, 12.9] True 0.075
    """

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


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    """Return real numbers as floats; text that reads as one is none."""
    try:
        given = np.asarray(values)
        x = np.asarray(given, float) if given.dtype.kind in "biufO" else None
    except (TypeError, ValueError, OverflowError):
        x = None
    if x is None:
        raise InvalidArgumentError(f"samples must be real numbers in rows of one length, not {values!r:.80}")
    largest = float(np.abs(x).max()) if x.size else 0.0
    if _LARGEST < largest < math.inf:
        raise InvalidArgumentError(f"samples up to {largest:.3g} have squares that no float holds: rescale them")
    return x


def _samples(values: ArrayLike, least: int) -> NDArray[np.float64]:
    x = _numbers(values)
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
        For fewer than 2 samples, any that is no finite number, or numbers so large that their interval is none.

    Examples
    --------
    >>> print(mean_interval([1.0, 2.0, 3.0, 4.0]))
    2.5 [0.4457, 4.554]
    """
    x, confidence = _samples(values, 2), _share("confidence", confidence)
    mean = float(x.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x), confidence)


def batch_means_interval(
    values: ArrayLike, *, batches: int = 20, confidence: float = 0.95, stacklevel: int = 2
) -> Interval:
    """Estimate the mean of one long dependent run from the means of `batches` equal parts; the remainder is dropped.

    Parameters
    ----------
    values : array_like, shape (observations,)
        In the order in which they came, warm-up dropped; at least two a batch.
    batches : int
    confidence : float
    stacklevel : int
        Whose line the warning names; 2 is the caller's.

    Raises
    ------
    InvalidArgumentError
        If there are fewer than 2 batches, or too few observations for them.

    Warns
    -----
    UndercoverageWarning
        If the batches are so short that their means depend on each other, or few for so skewed a mean.

    Examples
    --------
    >>> print(batch_means_interval(np.arange(4000) % 7))
    2.998 [2.99, 3.007]
    """
    x = _batches(values, batches)
    reason = short_batches(values, batches=batches, confidence=confidence)
    if reason is not None:
        warnings.warn(reason, UndercoverageWarning, stacklevel=stacklevel)
    return mean_interval(x.mean(axis=1), confidence=confidence)


def _batches(values: ArrayLike, batches: int) -> NDArray[np.float64]:
    if not isinstance(batches, int) or isinstance(batches, bool) or batches < 2:
        raise InvalidArgumentError(f"batches must be a whole number of at least 2, not {batches!r:.80}")
    x = _samples(values, 2 * batches)
    return x[: len(x) // batches * batches].reshape(batches, -1)


def short_batches(values: ArrayLike, *, batches: int = 20, confidence: float = 0.95) -> str | None:
    """Say why the interval of batch means of a run is likely to cover less than it says, or None.

    Examples
    --------
    >>> short_batches(np.sin(np.arange(400) / 30) + np.arange(400) / 100)
    '20 batches of 20 observations are short of 15 times the 49.9 over which the run is correlated; take a longer run'
    """
    x = _batches(values, batches)
    tau = autocorrelation_time(x.ravel())
    if tau > _CHANCE and x.shape[1] < _LONG_BATCH * tau:
        return (
            f"{batches} batches of {x.shape[1]:,} observations are short of {_LONG_BATCH} times the {tau:.3g} over "
            "which the run is correlated; take a longer run"
        )
    deficit = coverage_deficit(x, confidence=confidence)
    if deficit > _DEFICIT:
        return (
            f"{batches} batches of {x.shape[1]:,} observations are few for so skewed a mean: an interval said to be of "
            f"{confidence:.0%} covers about {100 * deficit:.2g} points less; take a longer run"
        )
    return None


def autocorrelation_time(values: ArrayLike) -> float:
    """Estimate how much more the mean of a series varies than that of as many independent values: 1 plus twice the
    sum of its autocorrelations.

    The sum goes up to the first lag that is 5 times what it has come to, beyond which there is more noise than
    correlation. From a run that is short against it, it comes out too small.

    Source: Sokal, Monte Carlo methods in statistical mechanics, 1989, section 3.

    Parameters
    ----------
    values : array_like, shape (observations,)
        In their order, 2 at least.

    Returns
    -------
    float
        In observations, at least 1.

    Raises
    ------
    InvalidArgumentError
        For fewer than 2 values or any that is no finite number.

    Notes
    -----
    O(n log n).

    Examples
    --------
    >>> noise = np.random.default_rng(1).normal(size=10_000)
    >>> round(autocorrelation_time(noise)), round(autocorrelation_time(np.repeat(noise, 10)))
    (1, 10)
    """
    x = _samples(values, 2)
    x = x - x.mean()
    largest = float(np.abs(x).max())
    if not largest:
        return 1.0
    spectrum = np.fft.rfft(x / largest, 2 * len(x))
    products = np.fft.irfft(spectrum * spectrum.conj())[: len(x)]
    sums = 2.0 * np.cumsum(products / products[0]) - 1.0
    enough = np.flatnonzero(np.arange(len(x)) >= 5.0 * sums)
    return max(1.0, float(sums[enough[0] if len(enough) else -1]))


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
    x = _numbers(samples)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1] or not np.isfinite(x).all():
        raise InvalidArgumentError(
            f"needs finite samples of shape (replications, observations), 2 replications at least, not {x.shape}"
        )
    return x


def replication_interval(
    samples: ArrayLike, *, confidence: float = 0.95, is_steady: bool = False, stacklevel: int = 2
) -> Interval:
    """Estimate a mean from replications of several observations each, and warn where the interval deceives.

    Parameters
    ----------
    samples : array_like, shape (replications, observations)
        Replications are independent of each other; the observations of one need not be.
    confidence : float
    is_steady : bool
        See :func:`undercoverage`.
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
    reason = undercoverage(x, confidence=confidence, is_steady=is_steady)
    if reason is not None:
        said = f"{len(x)} replications of {x.shape[1]:,} observations: {reason}"
        warnings.warn(said, UndercoverageWarning, stacklevel=stacklevel)
    return mean_interval(x.mean(axis=1), confidence=confidence)


def undercoverage(samples: ArrayLike, *, confidence: float = 0.95, is_steady: bool = False) -> str | None:
    """Say why Student's interval of these replications is likely to cover less than it says, or None.

    Parameters
    ----------
    samples : array_like, shape (replications, observations)
    confidence : float
    is_steady : bool
        Whether a replication is the same from its first observation on, so that it cannot be too short: its
        observations share what was drawn once, and nothing builds up.

    Examples
    --------
    >>> undercoverage(np.arange(60.0).reshape(10, 6))
    'each is shorter than 25 times the 6.6 observations that one remembers, so its start still shows; take longer ones'
    """
    x = _runs(samples)
    tau = memory(x)
    depends = tau > _DEPENDENT
    if depends and not is_steady and x.shape[1] < _LONG * tau:
        return (
            f"each is shorter than {_LONG} times the {tau:.3g} observations that one remembers, so its start still "
            "shows; take longer ones"
        )
    deficit = coverage_deficit(x, confidence=confidence)
    if deficit > _DEFICIT:
        return (
            f"they are few for so skewed a mean: an interval said to be of {confidence:.0%} covers about "
            f"{100 * deficit:.2g} points less; take more{'' if depends and is_steady else ', or longer ones'}"
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

    The estimate is that of all observations together. Its interval holds the values for which p lies in Student's
    interval of the replications' shares of observations up to them; see the module's text. It is as lopsided as the
    samples are, and ends at samples.

    Source: the share is a mean over replications, as in sectioning (Asmussen & Glynn, Stochastic Simulation, 2007,
    III.5a); its test is inverted, for the replications' own quantiles may be of several kinds.

    Parameters
    ----------
    samples : array_like, shape (replications, observations)
    p : float
        Inside (0, 1).
    confidence : float

    Raises
    ------
    InvalidArgumentError
        If a replication has fewer than 5 observations beyond the quantile on average.

    Notes
    -----
    O(n log n) for n observations in all.

    Examples
    --------
    Three replications are near 1 and two near 50: the median is near 1, and might well be near 50.

    >>> kinds = np.array([1.0, 1.0, 1.0, 50.0, 50.0])[:, None] + np.linspace(0, 1, 20)
    >>> print(sectioned_quantile_interval(kinds, 0.5))
    1.842 [1.368, 50.53]
    """
    x, p = _runs(samples), _share("p", p)
    replications, each = x.shape
    needed = observations_for_section(p)
    if each < needed:
        raise InvalidArgumentError(
            f"a {p:g} quantile of dependent requests needs at least {needed:,} in each replication, not {each:,}"
        )
    t = float(stats.t.ppf((1 + _share("confidence", confidence)) / 2, replications - 1))
    ordered = np.sort(x, axis=1)
    order = np.argsort(ordered, axis=None, kind="stable")
    values = ordered.ravel()[order]
    # Of each replication so many observations are at most a value; their sum, and their sum of squares, in its order.
    counts = np.arange(1, x.size + 1)
    squares = np.cumsum(2 * (order % each) + 1)
    last = np.append(values[1:] != values[:-1], True)  # Equal values are passed at once.
    values, counts, squares = values[last], counts[last], squares[last]
    share = counts / x.size
    spread = np.maximum(squares - counts / replications * counts, 0.0) / (replications - 1)
    half = t * np.sqrt(spread / replications) / each
    estimate = float(np.quantile(x, p))
    low = float(values[np.argmax(share + half >= p)])
    may_be_less = np.flatnonzero(share - half <= p)
    high = float(values[min(may_be_less[-1] + 1, len(values) - 1)]) if len(may_be_less) else float(values[0])
    return Interval(estimate, min(low, estimate), max(high, estimate), replications, confidence)


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
        If the pilot's mean is 0, where no relative width exists, it has fewer than 2 values, a number is out of range,
        or nobody could make so many.

    Examples
    --------
    >>> required_replications([9.0, 10.0, 11.0, 10.0], 0.02)
    67
    """
    x, width = _samples(values, 2), _share("relative_half_width", relative_half_width)
    confidence = _share("confidence", confidence)
    if not x.mean():
        raise InvalidArgumentError("a mean of 0 has no relative half-width; ask for an absolute one")
    spread = float(x.std(ddof=1) / abs(x.mean()))

    def enough(n: int) -> bool:
        return bool(stats.t.ppf((1 + confidence) / 2, n - 1) * spread / math.sqrt(n) <= width)

    high = 2
    while not enough(high):
        high *= 2
        if high > _MOST_REPLICATIONS:
            raise InvalidArgumentError(
                f"a relative half-width of {width:g} needs more than {_MOST_REPLICATIONS:.0e} replications; ask for a "
                "wider one"
            )
    low = high // 2  # The half-width falls with n: bisect between one that is too few and one that will do.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def mser5(values: ArrayLike) -> int:
    """Return how many first observations to drop as warm-up, by MSER-5.

    The series is averaged in batches of 5; the cut is where the standard error of what remains is smallest, sought in
    the first half. A cut at the very end of that half means that the run is too short to tell; see
    :func:`warm_up_is_known`.

    Source: White, Cobb & Spratt, A comparison of five steady-state truncation heuristics, WSC 2000.

    Examples
    --------
    A series that falls for 100 observations and then is level.

    >>> mser5(np.maximum(100 - np.arange(1000), 0))
    100
    """
    statistic = mser5_statistic(values)
    searched = statistic[: max(1, len(statistic) // 2)]
    # The first of those that are equal but for rounding: where nothing varies any more, nothing more is dropped.
    return 5 * int(np.argmax(searched <= searched.min() + 1e-12 * searched.max()))


def warm_up_is_known(values: ArrayLike) -> bool:
    """Whether MSER-5 finds its cut before the last twentieth of the half in which it looks.

    Where it does not, what remains would vary even less after a later cut: the series is still on its way, or has no
    steady state at all.

    Examples
    --------
    >>> warm_up_is_known(np.maximum(100 - np.arange(1000), 0)), warm_up_is_known(np.arange(1000))
    (True, False)
    """
    searched = max(1, len(mser5_statistic(values)) // 2)
    return mser5(values) // 5 + 1 < max(2.0, _CENSORED * searched)


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
