"""Two scenarios compared: the difference between them, with its interval, and what common random numbers saved.

Theory of operation
-------------------
Replication r of both scenarios draws the same numbers, so what luck does to one it does to the other, and the
differences D_r = A_r - B_r vary by var(A) + var(B) - 2 cov(A, B). Independent replications would lack the covariance:
(var(A) + var(B)) / var(D) times as many of them would give the same interval. That factor is reported, and below 1 it
says that common random numbers did harm.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mktsim.study.jobs import Submits
from mktsim.study.replication import Engine, _check, check_engine, check_statistic, starts_steady
from mktsim.study.replications import (
    LEAST_REPLICATIONS,
    Replications,
    check_replications,
    check_values,
    replicate_quietly,
)
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import Interval, _share, mean_interval, replication_interval


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """How two scenarios differ in one statistic, in ms.

    Attributes
    ----------
    statistic : str
    a, b : Interval
        Each by itself: means over replications of the replication's statistic.
    difference : Interval
        a - b.
    correlation : float
        Between the two, over replications; NaN where one does not vary.
    saved : float
        How many times as many independent replications the difference would need; NaN without common random numbers.

    Examples
    --------
    Pairs that share their luck show a difference that is much smaller than either interval is wide.

    >>> a, b = Interval(20.0, 18.0, 22.0, 10), Interval(20.5, 18.5, 22.5, 10)
    >>> found = Comparison("mean", a, b, Interval(-0.5, -0.6, -0.4, 10), correlation=0.99, saved=400.0)
    >>> found.verdict
    'a is less'
    >>> print(found)
    mean: 20 [18, 22] - 20.5 [18.5, 22.5] = -0.5 [-0.6, -0.4] ms: a is less; common random numbers saved a factor 400
    """

    statistic: str
    a: Interval
    b: Interval
    difference: Interval
    correlation: float
    saved: float

    @property
    def verdict(self) -> str:
        """Say which is less, or that the interval holds 0."""
        if 0.0 in self.difference:
            return "no difference shown"
        return "a is less" if self.difference.high < 0 else "b is less"

    def to_pandas(self) -> pd.DataFrame:
        """Return one row each for a, b and their difference."""
        parts = {"a": self.a, "b": self.b, "a - b": self.difference}
        return pd.DataFrame(
            [(name, self.statistic, i.estimate, i.low, i.high, i.n) for name, i in parts.items()],
            columns=["what", "statistic", "estimate_ms", "low_ms", "high_ms", "n"],
        )

    def __str__(self) -> str:
        saved = "" if math.isnan(self.saved) else f"; common random numbers saved a factor {self.saved:.3g}"
        return f"{self.statistic}: {self.a} - {self.b} = {self.difference} ms: {self.verdict}{saved}"

    def __repr__(self) -> str:
        return f"<Comparison {self}>"

    def _repr_html_(self) -> str:
        table: str = self.to_pandas().to_html(index=False, float_format=lambda x: f"{x:.4g}")
        return f"<div>{html.escape(str(self))}</div>{table}"


def compare(
    a: Scenario,
    b: Scenario,
    *,
    statistic: str = "mean",
    replications: int = LEAST_REPLICATIONS,
    seed: int,
    common_random_numbers: bool = True,
    requests: int = 100,
    confidence: float = 0.95,
    engine: Engine = "auto",
    executor: Submits | None = None,
    cache: str | Path | None = None,
) -> Comparison:
    """Compare two scenarios by replications in pairs.

    Parameters
    ----------
    a, b : Scenario
    statistic : str
        ``mean``, or a quantile like ``p99`` of each replication, which then needs requests enough for it.
    replications, seed, requests, engine, executor, cache
        See :func:`~mktsim.study.replications.replicate`.
    common_random_numbers : bool
        False compares independent replications, by Welch's interval.
    confidence : float

    Raises
    ------
    InvalidArgumentError
        If an argument is out of range; for a quantile with too few requests, naming the number needed.

    Warns
    -----
    UndercoverageWarning
        If the interval of the difference of means is likely to cover less than it says.

    Examples
    --------
    >>> wide, narrow = Scenario(vendors=100, window=20), Scenario(vendors=100, window=18)
    >>> found = compare(wide, narrow, seed=1)
    >>> found.verdict, found.saved > 1
    ('a is less', True)
    """
    check_replications(replications)
    _share("confidence", confidence)
    check_values(statistic, requests=requests if isinstance(requests, int) else 1)
    for scenario in (a, b):
        # Both whole, before the first is simulated.
        _check(scenario, requests, engine)
        check_engine(scenario, engine)
        check_statistic(scenario, statistic, replications=replications, requests=requests)
    pair = [
        replicate_quietly(
            scenario, replications=replications, seed=seed, common_random_numbers=common_random_numbers,
            statistic=statistic, requests=requests, engine=engine, executor=executor, cache=cache,
        )
        for scenario in (a, b)
    ]  # fmt: skip
    if statistic == "mean" and common_random_numbers:
        # What matters is how skewed the differences are, not the two by themselves.
        differences = pair[0].sojourn_time_ms - pair[1].sojourn_time_ms
        steady = starts_steady(a) and starts_steady(b)
        replication_interval(differences, confidence=confidence, is_steady=steady, stacklevel=3)
    return compared(*pair, statistic=statistic, confidence=confidence)


def compared(a: Replications, b: Replications, *, statistic: str = "mean", confidence: float = 0.95) -> Comparison:
    """Compare replications that are there already: in pairs where both drew common random numbers of one seed."""
    x, y = a.values(statistic), b.values(statistic)
    paired = a.common_random_numbers and b.common_random_numbers and a.seed == b.seed and len(x) == len(y)
    varies = bool(x.std() and y.std())
    correlation = float(np.corrcoef(x, y)[0, 1]) if paired and varies else math.nan
    saved = math.nan
    if paired:
        difference = mean_interval(x - y, confidence=confidence)
        spread = float((x - y).var(ddof=1))
        apart = float(x.var(ddof=1) + y.var(ddof=1))
        saved = apart / spread if spread else (math.inf if apart else 1.0)
    else:
        difference = _welch(x, y, confidence)
    own = [mean_interval(values, confidence=confidence) for values in (x, y)]
    return Comparison(statistic, own[0], own[1], difference, correlation, saved)


def _welch(x: np.ndarray, y: np.ndarray, confidence: float) -> Interval:
    found = stats.ttest_ind(x, y, equal_var=False).confidence_interval(confidence)
    return Interval(float(x.mean() - y.mean()), float(found.low), float(found.high), min(len(x), len(y)), confidence)
