"""A claim and an estimate side by side: one row of the validation."""

from __future__ import annotations

from dataclasses import dataclass

from mktsim.study.statistics import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row of the validation.

    Attributes
    ----------
    group, claim : str
        What it is about.
    engine : str
        ``vectorised``, ``event``, ``transform`` (drawn by the order-statistic transform), ``placement`` or ``model``.
    theory : float
        What is claimed; `theory_low` to `theory_high` where the source gives a range.
    estimate, low, high : float
        With its 95 % interval.
    n : int
        Samples behind it.
    tolerance : float
        How far the estimate may be from the claim, relative to it.
    source : str
    """

    group: str
    claim: str
    engine: str
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
        source: str, tolerance: float = 0.1,
    ) -> Claim:  # fmt: skip
        """Set a claim, a number or a range, beside an estimate."""
        low, high = theory if isinstance(theory, tuple) else (theory, theory)
        return cls(
            group=group, claim=claim, engine=engine, theory=low if low == high else (low + high) / 2, theory_low=low,
            theory_high=high, estimate=interval.estimate, low=interval.low, high=interval.high, n=interval.n,
            tolerance=tolerance, source=source,
        )  # fmt: skip

    @property
    def error(self) -> float:
        """How far the estimate is from the claim, relative to it; 0 within a range."""
        nearest = min(max(self.estimate, self.theory_low), self.theory_high)
        return (self.estimate - nearest) / abs(nearest) if nearest else self.estimate - nearest

    @property
    def covered(self) -> bool:
        """Whether the interval holds the claim."""
        return self.low <= self.theory_high and self.theory_low <= self.high

    @property
    def verdict(self) -> str:
        """``covered``, ``within tolerance`` or ``off``."""
        if abs(self.error) > self.tolerance:
            return "off"
        return "covered" if self.covered else "within tolerance"
