"""A claim and an estimate side by side: one row of the validation.

Rules
-----
An estimate is *off* where it is further from the claim than chance explains (so many half-widths of its own interval),
or further than the row's tolerance (a share of what is claimed), which is what a full-sized sample must reach. Neither
alone would do: with few samples an interval is wide, and a tolerance that allows for few samples allows for much. A
smaller sample widens the tolerance as it widens the interval, by the root of how much smaller it is, and never to 1:
an estimate of 0 is off by 1, so that a tolerance of 1 would let any theory pass that is too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from mktsim.study.statistics import Interval

Kind = Literal["closed form", "published", "input", "fitted", "predicted", "missed"]
#: Half-widths of a 95 % interval beyond which a claim is wrong rather than unlucky: 2.7 are 5.3 standard errors, and
#: with Student's interval of as few as 6 runs still a chance of 1 in 1,000.
FURTHEST_HALF_WIDTHS: Final = 2.7
#: No tolerance is wider, however few the samples.
WIDEST: Final = 0.5
#: Kinds whose rows are a matter of chance alone: theory, or a printed number, against samples.
_BY_CHANCE: Final = ("closed form", "published")


@dataclass(frozen=True, slots=True)
class Size:
    """How many samples there are, and what share of those at full scale that is, 1 at most."""

    count: int
    share: float

    @classmethod
    def of(cls, scale: float, base: int, least: int = 100) -> Size:
        """Take `base` samples at scale 1, and never fewer than `least`.

        Examples
        --------
        >>> Size.of(0.25, 1000), Size.of(0.25, 40, 20), Size.of(4.0, 1000)
        (Size(count=250, share=0.25), Size(count=20, share=0.5), Size(count=4000, share=1.0))
        """
        count = max(least, round(scale * base))
        return cls(count, min(1.0, count / max(least, base)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row of the validation.

    Attributes
    ----------
    group, claim : str
        What it is about.
    engine : str
        What gave the estimate: the engines ``vectorised`` and ``event``; the simulated ``host`` that calls are sent to
        one by one; ``recursion``, the queue that the array engine has inside, by itself; ``arrivals``, an arrival
        process; ``transform``, a latency's inverse distribution function; ``placement``; ``merge``, the query
        coordinator over real vendors; or ``model``, a number that is computed and has no samples.
    kind : str
        ``closed form``: theory. ``published``: a printed number, within its rounding. ``input``: a published number
        that the model was given, and gives back. ``fitted`` and ``predicted``: a published number beside a model that
        was fitted to it, or to others; the claim is the accuracy that is stated for the model. ``missed``: a published
        number that the model is known not to have; the claim is by how much.
    theory : float
        What is claimed or was published; `theory_low` to `theory_high` is what an estimate may be.
    estimate, low, high : float
        With its 95 % interval.
    n : int
        Samples behind it; 0 where it was computed.
    tolerance : float
        How far the estimate may be from the claim, relative to it; at this size of the sample.
    source : str
    """

    group: str
    claim: str
    engine: str
    kind: str = "closed form"
    theory: float
    theory_low: float
    theory_high: float
    estimate: float
    low: float
    high: float
    n: int
    tolerance: float
    source: str

    @classmethod
    def of(
        cls, group: str, claim: str, engine: str, theory: float | tuple[float, float], interval: Interval, *,
        source: str, tolerance: float = 0.1, share: float = 1.0, kind: Kind = "closed form",
        published: float | None = None,
    ) -> Claim:  # fmt: skip
        """Set a claim, a number or a range, beside an estimate.

        Parameters
        ----------
        tolerance : float
            At full scale.
        share : float
            Of the samples at full scale; see :class:`Size`.
        published : float, optional
            What stands in the publication, where the range is not centred on it.

        Examples
        --------
        A quarter of the samples may be off by twice as much; this estimate is close by its tolerance, and yet too many
        half-widths of its interval away.

        >>> found = Claim.of("group", "mean", "event", 1.0, Interval(1.15, 1.1, 1.2, 50), source="theory",
        ...                  tolerance=0.1, share=0.25)
        >>> found.tolerance, round(found.error, 2), round(found.half_widths, 1), found.verdict
        (0.2, 0.15, 3.0, 'off')
        """
        low, high = theory if isinstance(theory, tuple) else (theory, theory)
        middle = low if low == high else (low + high) / 2
        return cls(
            group=group, claim=claim, engine=engine, kind=kind, theory=middle if published is None else published,
            theory_low=low, theory_high=high, estimate=interval.estimate, low=interval.low, high=interval.high,
            n=interval.n, tolerance=min(WIDEST, tolerance / math.sqrt(share)), source=source,
        )  # fmt: skip

    @property
    def nearest(self) -> float:
        """What of the claim is nearest to the estimate."""
        return min(max(self.estimate, self.theory_low), self.theory_high)

    @property
    def error(self) -> float:
        """How far the estimate is from the claim, relative to it; 0 within a range."""
        return (self.estimate - self.nearest) / abs(self.nearest) if self.nearest else self.estimate - self.nearest

    @property
    def half_widths(self) -> float:
        """How far the estimate is from the claim, in halves of its interval; infinite where it is off and has none.

        The half on the claim's side counts.
        """
        apart = abs(self.estimate - self.nearest)
        half = self.estimate - self.low if self.estimate > self.nearest else self.high - self.estimate
        if apart <= 1e-9 * abs(self.nearest):
            return 0.0
        return apart / half if half > 0 else math.inf

    @property
    def covered(self) -> bool:
        """Whether the interval holds the claim."""
        return not self.half_widths or (self.low <= self.theory_high and self.theory_low <= self.high)

    @property
    def is_by_chance(self) -> bool:
        """Whether theory stands against samples, so that 19 rows of 20 are covered if all is right."""
        return self.kind in _BY_CHANCE and self.low < self.high

    @property
    def verdict(self) -> str:
        """``covered``, ``within tolerance`` or ``off``."""
        if abs(self.error) > self.tolerance or self.half_widths > FURTHEST_HALF_WIDTHS:
            return "off"
        return "covered" if self.covered else "within tolerance"
