"""Log-binned histograms: small, mergeable in any order, with a fixed relative error at every quantile.

Rules
-----
Merging adds whole numbers, so it is exactly associative and commutative: a tree of workers may merge as it likes, and
the histogram of all samples is the merge of the parts' histograms. Every positive value is within the relative error of
the one number that stands for its bin; zeros have a bin of their own.

Theory of operation
-------------------
With g = (1 + e) / (1 - e), bin k holds values in (g^(k-1), g^k], and 2 g^k / (g + 1) is within e of all of them
(Masson, Rim & Lee, DDSketch, VLDB 12, 2019). At e = 1 %, from a microsecond to a day are 1,300 bins, 10 KB.

What this does not do
---------------------
It forgets the order of samples, and which replication they came from: intervals of its quantiles take them for
independent.
"""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.study.statistics import Interval, _share, quantile_ranks, samples_for_quantile

#: Bins between the smallest and the largest value at most: 80 MB.
_MAX_BINS: Final = 10_000_000
#: What is counted in 64 bits.
_MOST: Final = 1 << 63
#: Of the largest number, and a bin of the largest relative error above it.
_LARGEST_LOG: Final = 712.0


@dataclass(frozen=True, slots=True, eq=False)
class LogHistogram:
    """Counts of durations, none negative, in bins of equal ratio; made by :meth:`of`.

    Attributes
    ----------
    relative_error : float
        Of every value that is read from it; plus what rounding costs, 1e-12.
    first : int
        Number of the bin that ``counts[0]`` counts.
    counts : ndarray of int64
        Not to be written to; neither begins nor ends with 0.
    zeros : int

    Examples
    --------
    >>> a, b = LogHistogram.of([1.0, 2.0, 3.0]), LogHistogram.of([0.0, 100.0])
    >>> (a + b).n, (a + b) == (b + a) == LogHistogram.of([3.0, 2.0, 1.0, 100.0, 0.0])
    (5, True)
    >>> round(a.sample_quantile(0.5), 1)
    2.0
    """

    relative_error: float
    first: int
    counts: NDArray[np.int64]
    zeros: int = 0

    def __post_init__(self) -> None:
        error = self.relative_error
        if not isinstance(error, int | float) or not 1e-6 <= error <= 0.5:
            raise InvalidArgumentError(f"relative_error must be from 1e-6 to 0.5, not {error!r:.80}")
        for name, value, least in (("first", self.first, -math.inf), ("zeros", self.zeros, 0)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value < _MOST:
                raise InvalidArgumentError(f"LogHistogram.{name} must be a whole number, not {value!r:.80}")
        counts = _array("LogHistogram.counts", self.counts, None)
        whole = counts.dtype.kind in "iu" or not counts.size
        if counts.ndim != 1 or not whole or (counts < 0).any() or counts.sum(dtype=float) + self.zeros >= _MOST:
            raise InvalidArgumentError(
                f"LogHistogram.counts must be whole numbers from 0 up, in one dimension, not {self.counts!r:.80}"
            )
        used = np.flatnonzero(counts)
        first = int(used[0]) if len(used) else 0
        kept = np.array(counts[first : int(used[-1]) + 1] if len(used) else [], np.int64)
        ends = (int(self.first) + first, int(self.first) + first + len(kept))
        if len(used) and max(map(abs, ends)) * math.log(self.ratio) > _LARGEST_LOG:
            raise InvalidArgumentError(f"LogHistogram.first = {self.first:,} counts what no number is as large as")
        kept.flags.writeable = False
        object.__setattr__(self, "first", ends[0] if len(used) else 0)
        object.__setattr__(self, "zeros", int(self.zeros))
        object.__setattr__(self, "counts", kept)

    @classmethod
    def of(cls, values: ArrayLike, *, relative_error: float = 0.01) -> LogHistogram:
        """Count samples.

        Raises
        ------
        InvalidArgumentError
            If one is negative or not finite, or they span more bins than fit in memory.
        """
        empty = cls(relative_error, 0, np.empty(0, np.int64))
        x = _array("a histogram's samples", values, np.float64).ravel()
        if not np.isfinite(x).all() or (x < 0).any():
            raise InvalidArgumentError(f"a histogram of durations takes finite values from 0 up, not {x[:5]!r:.80}")
        positive = x[x > 0]
        if not len(positive):
            return cls(relative_error, 0, empty.counts, len(x))
        bins = np.ceil(np.log(positive) / math.log(empty.ratio)).astype(np.int64)
        first, last = int(bins.min()), int(bins.max())
        if last - first >= _MAX_BINS:
            raise InvalidArgumentError(
                f"{last - first:,} bins are above {_MAX_BINS:,}: raise relative_error above {relative_error:g}"
            )
        return cls(relative_error, first, np.bincount(bins - first), len(x) - len(positive))

    @property
    def ratio(self) -> float:
        """Upper edge of a bin over its lower one."""
        return (1 + self.relative_error) / (1 - self.relative_error)

    @property
    def n(self) -> int:
        """How many samples."""
        return int(self.counts.sum()) + self.zeros

    def __add__(self, other: LogHistogram) -> LogHistogram:
        """Merge two histograms of one relative error."""
        if not isinstance(other, LogHistogram):
            return NotImplemented
        if other.relative_error != self.relative_error:
            raise InvalidArgumentError(
                f"histograms of relative error {self.relative_error:g} and {other.relative_error:g} cannot be merged"
            )
        parts = [part for part in (self, other) if len(part.counts)]
        if not parts:
            return LogHistogram(self.relative_error, 0, self.counts, self.zeros + other.zeros)
        first = min(part.first for part in parts)
        total = np.zeros(max(part.first + len(part.counts) for part in parts) - first, np.int64)
        for part in parts:
            total[part.first - first :][: len(part.counts)] += part.counts
        return LogHistogram(self.relative_error, first, total, self.zeros + other.zeros)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogHistogram):
            return NotImplemented
        mine, theirs = ((h.relative_error, h.first, h.zeros) for h in (self, other))
        return mine == theirs and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def _value(self, rank: int) -> float:
        """Return what stands for the sample of a rank, from 1 up."""
        if rank <= self.zeros:
            return 0.0
        number = self.first + int(np.searchsorted(np.cumsum(self.counts), rank - self.zeros))
        try:
            return float(self.ratio**number * (2 / (self.ratio + 1)))
        except OverflowError:  # The upper edge of the bin may be above the largest number.
            return sys.float_info.max

    def quantile(self, p: float) -> float:
        """Return the sample of rank ceil(p n), within the relative error, where it says something of what was sampled.

        It does where an interval exists, as with `quantile_interval`; `sample_quantile` describes the samples alone.

        Raises
        ------
        InvalidArgumentError
            If `p` is outside (0, 1), or there are too few samples; the message names the number needed.

        Examples
        --------
        >>> LogHistogram.of([1.0, 2.0, 3.0]).quantile(0.99)
        Traceback (most recent call last):
        mktsim.errors.InvalidArgumentError: a 0.99 quantile needs at least 299 samples, not 3: take more, or ask for \
the sample_quantile, which says nothing beyond the samples
        """
        needed = samples_for_quantile(p)
        if self.n < needed:
            raise InvalidArgumentError(
                f"a {p:g} quantile needs at least {needed:,} samples, not {self.n:,}: take more, or ask for the "
                "sample_quantile, which says nothing beyond the samples"
            )
        return self.sample_quantile(p)

    def sample_quantile(self, p: float) -> float:
        """Return the sample of rank ceil(p n), within the relative error, however few they are.

        Raises
        ------
        InvalidArgumentError
            If `p` is outside (0, 1), or there is no sample.

        Examples
        --------
        >>> round(LogHistogram.of([1.0, 2.0, 3.0]).sample_quantile(0.99), 1)
        3.0
        """
        if not self.n:
            raise InvalidArgumentError("an empty histogram has no quantile")
        return self._value(max(1, math.ceil(_share("p", p) * self.n)))

    def quantile_interval(self, p: float, *, confidence: float = 0.95) -> Interval:
        """Estimate a quantile with the interval between two order statistics, each widened by the relative error.

        Raises
        ------
        InvalidArgumentError
            If there are too few samples; the message names the number needed.
        """
        lower, upper = quantile_ranks(self.n, p, confidence=confidence)
        low, high = self._value(lower) * (1 - self.relative_error), self._value(upper) * (1 + self.relative_error)
        return Interval(self.sample_quantile(p), low, high, self.n, confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; :meth:`from_dict` reads it back."""
        return {
            "relative_error": self.relative_error,
            "first": self.first,
            "counts": self.counts.tolist(),
            "zeros": self.zeros,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LogHistogram:
        """Read plain data."""
        if not isinstance(data, Mapping) or data.keys() != {"relative_error", "first", "counts", "zeros"}:
            raise InvalidArgumentError(f"a histogram is a table of its four values, not {data!r:.80}")
        return cls(data["relative_error"], data["first"], data["counts"], data["zeros"])

    def _repr_html_(self) -> str:
        if not self.n:
            return "<div>empty histogram</div>"
        cells = "".join(
            f"<td>{self.quantile(p):.4g}</td>" if self.n >= samples_for_quantile(p) else "<td>too few</td>"
            for p in (0.5, 0.9, 0.99, 0.999)
        )
        return (
            f"<table><caption>{html.escape(f'{self.n:,} samples, values within {self.relative_error:.2g}')}</caption>"
            f"<tr><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th></tr><tr>{cells}</tr></table>"
        )


def _array(name: str, values: Any, dtype: Any) -> NDArray[Any]:
    """Return values as an array; not those that are texts of numbers, ragged, or nothing like a number."""
    try:
        found = np.asarray(values)
        if found.size and found.dtype.kind not in "iufb":
            raise TypeError("no numbers")
        return found if dtype is None else found.astype(dtype)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{name} must be numbers, not {values!r:.80}") from None
