"""The far end of a distribution: what a large fleet waits for, from leaves that were measured.

Rules
-----
Three readings stand side by side, and none is called right: the samples themselves, a lognormal of all of them, and a
Pareto of their largest. Where they part, the data do not decide, the assumption does. A quantile that is too rare for
an interval between two of the samples is read by the family alone; that gives a warning by name, with the number of
samples that would do.

Theory of operation
-------------------
A request over n leaves has its quantile p at the leaf's quantile p^(1/n), which is rarer than any sample for n beyond
about the sample's size. Lognormal: by the moments of the logarithms. Pareto: S(t) = s (t / u)^-alpha beyond a threshold
u that a share s exceeds, alpha by Hill's estimator (Annals of Statistics 3, 1975), whose standard error is
alpha / sqrt(k) for k exceedances. The empirical one cannot exceed its largest sample, whatever is asked; its interval
is the one between two order statistics, which assumes no family, and exists where some 3 samples and more lie beyond
the quantile on average: with 20,000 samples for a leaf's p99.98, the median of 3,500 leaves.

What this does not do
---------------------
It chooses no threshold: by default the largest tenth.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from mktsim.errors import ExtrapolationWarning, InvalidArgumentError
from mktsim.study.analytic import exceedance
from mktsim.study.statistics import _samples, _share, quantile_ranks, samples_for_quantile

_LEAST: Final = 50
_Z: Final = float(ndtri(0.975))


@dataclass(frozen=True, slots=True, eq=False)
class TailFit:
    """Three readings of one sample; made by :func:`fit_tails`.

    Attributes
    ----------
    sorted_ms : ndarray of float64
        The samples, rising.
    log_mean, log_sigma : float
        Of the lognormal.
    threshold_ms, share, alpha : float
        Of the Pareto: beyond the threshold lies this share of the samples.
    exceedances : int
        How many they are.
    """

    sorted_ms: NDArray[np.float64]
    log_mean: float
    log_sigma: float
    threshold_ms: float
    share: float
    alpha: float
    exceedances: int

    @property
    def alpha_interval(self) -> tuple[float, float]:
        """The 95 % interval of alpha."""
        half = _Z * self.alpha / math.sqrt(self.exceedances)
        return self.alpha - half, self.alpha + half

    def beyond(self, share: float) -> dict[str, float]:
        """Return, for each reading, the time in ms that a share of the leaves exceeds."""
        _share("share", share)
        n = len(self.sorted_ms)
        pareto = self.threshold_ms * (self.share / share) ** (1 / self.alpha)
        if share > self.share:  # Below the threshold the samples themselves are the Pareto's body.
            pareto = float(np.quantile(self.sorted_ms, 1 - share))
        return {
            "empirical": float(self.sorted_ms[min(n - 1, math.ceil((1 - share) * n - 1e-9) - 1)]),
            "lognormal": math.exp(self.log_mean - self.log_sigma * float(ndtri(share))),
            "Pareto": float(pareto),
        }

    def fleet(self, leaves: int, p: float = 0.5) -> pd.DataFrame:
        """Read the quantile `p` of the slowest of `leaves` in the three ways.

        Returns
        -------
        DataFrame
            ``family``, ``leaves``, ``p``, ``share`` (which a leaf exceeds), ``estimate_ms``, ``low_ms`` and ``high_ms``
            (95 %: of the fitted parameters, or for the empirical one between two of the samples; NaN where these are
            too few), ``beyond_sample``.

        Warns
        -----
        ExtrapolationWarning
            If the samples are too few for the quantile of a leaf to have an interval between two of them, as they are
            wherever the fleet is larger than the sample and half of its requests or more are meant.
        """
        if not isinstance(leaves, int) or isinstance(leaves, bool) or leaves < 1:
            raise InvalidArgumentError(f"leaves must be a whole number of at least 1, not {leaves!r:.80}")
        n, share = len(self.sorted_ms), exceedance(p, leaves)
        needed = _needed(share)
        if n < needed:
            warnings.warn(
                f"the quantile {p:g} of a fleet of {leaves:,} leaves is what one leaf exceeds with probability "
                f"{share:.3g}, as {n * share:.2g} of the {n:,} samples do: it lies beyond what was measured, and the "
                f"family that is assumed decides; measure {needed:,}, or state all three",
                ExtrapolationWarning,
                stacklevel=2,
            )
        found = self.beyond(share)
        # By the delta method, in logarithms: of the lognormal's two parameters, and of Hill's alpha.
        z = -float(ndtri(share))
        spread = {
            "lognormal": self.log_sigma * math.sqrt((1 + z * z / 2) / n),
            "Pareto": math.log(self.share / share) / self.alpha / math.sqrt(self.exceedances)
            if share <= self.share
            else math.nan,
        }
        ends = {
            family: (found[family] * math.exp(-_Z * each), found[family] * math.exp(_Z * each))
            for family, each in spread.items()
        }
        ends["empirical"] = (math.nan, math.nan)
        if n >= needed:
            # Of the times' negatives it is the share's quantile: 1 - share would have lost the digits of a rare one.
            lower, upper = quantile_ranks(n, share)
            ends["empirical"] = (float(self.sorted_ms[n - upper]), float(self.sorted_ms[n - lower]))
        rows = [
            (family, leaves, p, share, t, *ends[family], bool(t > self.sorted_ms[-1] or n < needed))
            for family, t in found.items()
        ]
        names = ["family", "leaves", "p", "share", "estimate_ms", "low_ms", "high_ms", "beyond_sample"]
        return pd.DataFrame(rows, columns=names)

    def goodness(self) -> pd.DataFrame:
        """Tabulate, by family, the largest distance between its CDF and the samples' (Kolmogorov and Smirnov's).

        The Pareto is judged beyond its threshold, where it is one.
        """
        x, n = self.sorted_ms, len(self.sorted_ms)
        tail = x[n - self.exceedances :]
        cdfs = {
            "lognormal": (x, ndtr((np.log(x) - self.log_mean) / self.log_sigma)),
            "Pareto": (tail, 1 - (tail / self.threshold_ms) ** -self.alpha),
        }
        rows = []
        for family, (at, cdf) in cdfs.items():
            steps = np.arange(len(at) + 1) / len(at)
            distance = max(float((steps[1:] - cdf).max()), float((cdf - steps[:-1]).max()))
            rows.append((family, distance, distance * math.sqrt(len(at)), len(at)))
        return pd.DataFrame(rows, columns=["family", "distance", "distance_root_n", "n"])


def _needed(share: float) -> int:
    """Return how many samples there must be for what a share exceeds to have an interval between two of them."""
    if share > 1e-12:
        return samples_for_quantile(share)  # As many as for 1 - share, which has fewer digits.
    return math.ceil(math.log(0.05) / math.log1p(-share))


def fit_tails(values_ms: ArrayLike, *, tail_share: float = 0.1) -> TailFit:
    """Fit a lognormal to samples and a Pareto to their largest.

    Parameters
    ----------
    values_ms : array_like
        At least 50 independent durations, positive.
    tail_share : float
        The Pareto's share of the samples.

    Raises
    ------
    InvalidArgumentError
        If there are too few samples, one is not positive, or they do not differ.

    Examples
    --------
    >>> from mktsim.streams import Streams
    >>> from mktsim.sim.latency import Pareto
    >>> leaf = Pareto(1.0, 2.5)
    >>> fit = fit_tails(leaf.sample(Streams(1).uniform("leaf", 0, 20_000)))
    >>> fit.alpha_interval[0] < 2.5 < fit.alpha_interval[1]
    True
    """
    x = np.sort(_samples(values_ms, _LEAST))
    share = _share("tail_share", tail_share)
    if x[0] <= 0:
        raise InvalidArgumentError(f"durations must be positive, not {x[0]:g}")
    count = max(10, int(len(x) * share))
    if count >= len(x):
        raise InvalidArgumentError(f"tail_share {share:g} leaves no sample of {len(x)} below the threshold")
    threshold = float(x[-count - 1])
    excess = float(np.log(x[-count:] / threshold).mean())
    logs = np.log(x)
    if not excess or not logs.std():
        raise InvalidArgumentError("durations that do not differ have no tail to fit")
    return TailFit(x, float(logs.mean()), float(logs.std(ddof=1)), threshold, count / len(x), 1 / excess, count)
