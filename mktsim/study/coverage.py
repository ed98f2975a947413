"""Do intervals hold the truth as often as they say? Macro-runs of a queue whose truth is known.

Theory of operation
-------------------
An M/M/1 queue that starts empty is what makes replication intervals hard: it forgets its start slowly, its times are
skewed, and one customer's wait is the next one's. Each macro-run replicates it, asks `statistics.estimate_statistic`
for the interval of the mean sojourn time, as :class:`~mktsim.study.replications.Replications` and sweeps do, and looks
whether 1 / (mu - lambda) is inside; all queues run side by side in one recursion (`mktsim.study.queues`). Twenty long
replications cover as they say. Ten short ones do not: they are centred too low, for the queue had not filled, and are
too narrow for their skewness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams
from mktsim.study.analytic import mm1_mean
from mktsim.study.queues import service_ends
from mktsim.study.statistics import Interval, _share, estimate_statistic, share_interval, undercoverage

#: Customers that are simulated at once; what 30 MB hold.
_AT_ONCE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often intervals held the truth.

    Attributes
    ----------
    covered : Interval
        The share of macro-runs, with the exact binomial interval at 99.9 %.
    nominal : float
        The share that the intervals claim.
    relative_half_width : float
        Mean half-width of the intervals over the truth.
    warned : float
        Share of the first 200 macro-runs in which :func:`~mktsim.study.statistics.replication_interval` warns.
    replications, observations, warm_up : int
    """

    covered: Interval
    nominal: float
    relative_half_width: float
    warned: float
    replications: int
    observations: int
    warm_up: int

    @property
    def honest(self) -> bool:
        """Whether the nominal share is within the binomial error of the one found."""
        return self.nominal in self.covered

    def __str__(self) -> str:
        return (
            f"{self.replications} replications of {self.observations:,} observations: {self.covered.estimate:.1%} of "
            f"{self.covered.n:,} intervals of nominally {self.nominal:.0%} hold the truth (half-width "
            f"{self.relative_half_width:.1%} of it); {self.warned:.0%} came with a warning"
        )


def interval_coverage(
    *,
    replications: int,
    observations: int,
    warm_up: int = 0,
    macro_runs: int = 1000,
    utilisation: float = 0.8,
    confidence: float = 0.95,
    seed: int,
) -> Coverage:
    """Count how often replication intervals of an M/M/1 queue's mean sojourn time hold the truth.

    Parameters
    ----------
    replications, observations : int
        Of each macro-run; every replication starts empty and drops its first `warm_up` customers.
    macro_runs : int
    utilisation : float
        Inside (0, 1); service times have mean 1.
    confidence : float
    seed : int

    Raises
    ------
    InvalidArgumentError
        If a number is out of range.

    Notes
    -----
    About 25 ns a customer.

    Examples
    --------
    >>> short = interval_coverage(replications=10, observations=200, macro_runs=200, seed=1)
    >>> short.honest, short.warned > 0.9
    (False, True)
    """
    for name, value, least in (
        ("replications", replications, 2), ("observations", observations, 1), ("warm_up", warm_up, 0),
        ("macro_runs", macro_runs, 2),
    ):  # fmt: skip
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")
    rho, nominal = _share("utilisation", utilisation), _share("confidence", confidence)
    truth, streams, length = mm1_mean(rho, 1.0), Streams(seed), observations + warm_up
    at_once = max(1, _AT_ONCE // (replications * length))
    found: list[Interval] = []
    warned: list[bool] = []
    for part, first in enumerate(range(0, macro_runs, at_once)):
        shape = (min(at_once, macro_runs - first), replications, length)
        draws = streams.generator("coverage", part)
        arrivals = draws.standard_exponential(shape)
        arrivals /= rho
        np.cumsum(arrivals, axis=-1, out=arrivals)
        sojourn = service_ends(arrivals, draws.standard_exponential(shape))
        sojourn -= arrivals
        kept = sojourn[..., warm_up:]
        found += [estimate_statistic(run, "mean", confidence=nominal) for run in kept]
        warned += [undercoverage(run, confidence=nominal) is not None for run in kept[: 200 - len(warned)]]
    hits = sum(truth in interval for interval in found)
    half = sum(interval.high - interval.low for interval in found) / 2 / macro_runs
    return Coverage(
        share_interval(hits, macro_runs, confidence=0.999), nominal, half / truth,
        sum(warned) / len(warned), replications, observations, warm_up,
    )  # fmt: skip
