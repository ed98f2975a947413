"""One estimate of a study, and many of them as a tidy table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import pandas as pd

from mktsim.study.statistics import Interval

Kind = Literal["measured", "simulated", "analytic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One row of a study's table.

    Attributes
    ----------
    study : str
        The measurement it belongs to: ``live``, ``fan-out``, ``ring``, ``merge``.
    series : str
        What it is a point of.
    kind : "measured", "simulated" or "analytic"
        Where it comes from.
    axis, x, group : str, float, str
        Name and value of what is varied; `group` where it is no number.
    statistic, unit : str
        What is estimated, in which unit.
    estimate, low, high : float
        With its 95 % interval; NaN where there is none to give.
    n : int
        Samples behind it; 0 for what is computed.
    seed : int
    engine, preset : str
        How it came about, and in which world; empty where that has no meaning.
    """

    study: str
    series: str
    kind: Kind
    axis: str
    x: float = math.nan
    group: str = ""
    statistic: str
    unit: str
    estimate: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    seed: int
    engine: str = ""
    preset: str = ""

    @classmethod
    def of(cls, interval: Interval, **values: Any) -> Point:
        """Make a point of an interval."""
        return cls(estimate=interval.estimate, low=interval.low, high=interval.high, n=interval.n, **values)


def tidy(points: Iterable[Point]) -> pd.DataFrame:
    """Return one row a point, columns in the order of the fields."""
    return pd.DataFrame([asdict(point) for point in points], columns=[each.name for each in fields(Point)])
