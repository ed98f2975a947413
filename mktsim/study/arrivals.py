"""When requests come: open-loop arrivals, which do not wait for answers.

Rules
-----
An arrival process is frozen plain data; `times_ms(streams, n)` draws its first n instants from keyed streams, so a
longer run begins as a shorter one does, and the same seed meets the same crowd whatever it meets it with. Instants are
in ms from 0, never falling. `scaled` speeds a process up by shrinking its time: the k-th request stays the k-th, so
that comparisons over rates are under common random numbers.

Theory of operation
-------------------
A process of varying rate is a Poisson process of rate 1 seen through the inverse of its running intensity (Cinlar,
Introduction to Stochastic Processes, 4.7): exact where that is piecewise linear, as with bursts. Where it is not, by
day and night, points of the highest rate are thinned (Lewis & Shedler, Naval Research Logistics 26, 1979).

What this does not do
---------------------
No process reacts to the answers it gets. Clients that wait before they ask again slow down together with what they
measure, and never see its worst: see ``client="closed"`` in :mod:`mktsim.study.load`, which is there to show that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams

Times = NDArray[np.float64]


def _positive(owner: object, *names: str, zero: bool = False) -> None:
    for name in names:
        value = getattr(owner, name)
        good = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not good or not (value >= 0 if zero else value > 0) or not value < math.inf:
            kind = "finite and at least 0" if zero else "positive and finite"
            raise InvalidArgumentError(f"{type(owner).__name__}.{name} must be {kind}, not {value!r:.80}")
        object.__setattr__(owner, name, float(value))


class Arrivals(ABC):
    """Instants at which requests come. Frozen; equal parameters make equal objects.

    Examples
    --------
    A hundred requests a second in the long run, smooth, in bursts of five, and as they were recorded.

    >>> for arrivals in (Poisson(100.0), Batches(100.0, mean_size=5.0), TraceDriven((0.0, 10.0, 20.0))):
    ...     print(arrivals.mean_rate_per_s, arrivals.times_ms(Streams(2), 3).round(1))
    100.0 [ 6.4 15.1 16.3]
    100.0 [32.2 32.2 32.2]
    100.0 [ 0. 10. 20.]
    """

    __slots__ = ()

    @property
    @abstractmethod
    def mean_rate_per_s(self) -> float:
        """Requests a second in the long run."""

    @abstractmethod
    def scaled(self, factor: float) -> Arrivals:
        """Return the same process, `factor` times as fast."""

    @abstractmethod
    def _draw(self, streams: Streams, n: int) -> Times: ...

    def times_ms(self, streams: Streams, n: int) -> Times:
        """Draw the first `n` instants.

        Raises
        ------
        InvalidArgumentError
            If `n` is no whole number of at least 1, or more than a trace holds.
        """
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 100_000_000:
            raise InvalidArgumentError(f"n must be a whole number from 1 to 100,000,000, not {n!r:.80}")
        return self._draw(streams, n)


def _points(streams: Streams, name: str, n: int) -> Times:
    """Draw the first points of a Poisson process of rate 1."""
    return np.asarray(np.cumsum(-np.log1p(-streams.uniform(f"arrivals/{name}", 0, n))), float)


@dataclass(frozen=True, slots=True)
class Poisson(Arrivals):
    """Many independent clients: `rate_per_s` requests a second, whatever came before.

    Parameters
    ----------
    rate_per_s : float
        Requests a second, above 0.

    Raises
    ------
    InvalidArgumentError
        If the rate is not positive and finite.

    Examples
    --------
    >>> times = Poisson(100.0).times_ms(Streams(1), 10_000)
    >>> 97 < float(times[-1]) / 1e3 < 103  # seconds
    True
    """

    rate_per_s: float

    def __post_init__(self) -> None:
        _positive(self, "rate_per_s")

    @property
    def mean_rate_per_s(self) -> float:
        return self.rate_per_s

    def scaled(self, factor: float) -> Poisson:
        return Poisson(self.rate_per_s * factor)

    def _draw(self, streams: Streams, n: int) -> Times:
        return _points(streams, "gap", n) * (1e3 / self.rate_per_s)


@dataclass(frozen=True, slots=True)
class Bursts(Arrivals):
    """Poisson at one of two rates, each for an exponential time: a Markov-modulated Poisson process.

    Parameters
    ----------
    quiet_per_s, burst_per_s : float
        Requests a second; the quiet rate may be 0.
    quiet_ms, burst_ms : float
        Mean length of a period of each.

    Examples
    --------
    >>> Bursts(quiet_per_s=10, burst_per_s=200, quiet_ms=900, burst_ms=100).mean_rate_per_s
    29.0
    """

    quiet_per_s: float
    burst_per_s: float
    quiet_ms: float
    burst_ms: float

    def __post_init__(self) -> None:
        _positive(self, "quiet_per_s", zero=True)
        _positive(self, "burst_per_s", "quiet_ms", "burst_ms")

    @property
    def mean_rate_per_s(self) -> float:
        work = self.quiet_per_s * self.quiet_ms + self.burst_per_s * self.burst_ms
        return work / (self.quiet_ms + self.burst_ms)

    def scaled(self, factor: float) -> Bursts:
        return Bursts(
            self.quiet_per_s * factor, self.burst_per_s * factor, self.quiet_ms / factor, self.burst_ms / factor
        )

    def _draw(self, streams: Streams, n: int) -> Times:
        points = _points(streams, "gap", n)
        bursting = streams.uniform_at("arrivals/first state", 0, 0) * (self.quiet_ms + self.burst_ms) >= self.quiet_ms
        periods = 16
        while True:
            order = np.arange(periods) % 2 == (0 if bursting else 1)
            lengths = -np.log1p(-streams.uniform("arrivals/period", 0, periods))
            lengths *= np.where(order, self.burst_ms, self.quiet_ms)
            rates = np.where(order, self.burst_per_s, self.quiet_per_s) / 1e3
            intensity = np.concatenate(([0.0], np.cumsum(lengths * rates)))
            if intensity[-1] >= points[-1]:
                break
            periods *= 2
        starts = np.concatenate(([0.0], np.cumsum(lengths)))
        # The period in which the intensity passes each point; a quiet one of rate 0 is never it.
        k = np.searchsorted(intensity, points, side="left") - 1
        return np.asarray(starts[k] + (points - intensity[k]) / rates[k], float)


@dataclass(frozen=True, slots=True)
class Batches(Arrivals):
    """Requests in groups that come at one instant: Poisson groups of geometric size, `mean_size` on average.

    Parameters
    ----------
    rate_per_s : float
        Requests a second, not groups.
    mean_size : float
        At least 1.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.

    Examples
    --------
    Of a hundred thousand requests, four of five come together with the one before.

    >>> times_ms = Batches(100.0, mean_size=5.0).times_ms(Streams(1), 100_000)
    >>> round(float(np.mean(np.diff(times_ms) == 0)), 2)
    0.8
    """

    rate_per_s: float
    mean_size: float

    def __post_init__(self) -> None:
        _positive(self, "rate_per_s", "mean_size")
        if self.mean_size < 1:
            raise InvalidArgumentError(f"Batches.mean_size must be at least 1, not {self.mean_size!r}")

    @property
    def mean_rate_per_s(self) -> float:
        return self.rate_per_s

    def scaled(self, factor: float) -> Batches:
        return replace(self, rate_per_s=self.rate_per_s * factor)

    def _draw(self, streams: Streams, n: int) -> Times:
        # A request begins a new group with probability 1 / mean_size: the size of a group is then geometric.
        begins = streams.uniform("arrivals/begins", 0, n) * self.mean_size < 1
        begins[0] = True
        groups = np.cumsum(begins) - 1
        instants = _points(streams, "gap", int(groups[-1]) + 1) * (1e3 * self.mean_size / self.rate_per_s)
        return np.asarray(instants[groups], float)


@dataclass(frozen=True, slots=True)
class Diurnal(Arrivals):
    """Day and night: a Poisson rate of ``mean_per_s * (1 + amplitude * sin(2 pi t / period_ms))``.

    Parameters
    ----------
    mean_per_s : float
        Requests a second over a whole period.
    amplitude : float
        From 0, no change, to 1, when nobody is awake at the lowest point.
    period_ms : float
        From one peak to the next; a day when absent.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.

    Examples
    --------
    Four days of 50 s each, requests by the quarter of the day: the first half is busy.

    >>> times_ms = Diurnal(100.0, amplitude=0.9, period_ms=50_000.0).times_ms(Streams(1), 20_000)
    >>> np.histogram(times_ms % 50_000, bins=4, range=(0, 50_000))[0].tolist()
    [7973, 7803, 2136, 2088]
    """

    mean_per_s: float
    amplitude: float = 0.5
    period_ms: float = 86_400_000.0

    def __post_init__(self) -> None:
        _positive(self, "mean_per_s", "period_ms")
        _positive(self, "amplitude", zero=True)
        if self.amplitude > 1:
            raise InvalidArgumentError(f"Diurnal.amplitude must be from 0 to 1, not {self.amplitude!r}")

    @property
    def mean_rate_per_s(self) -> float:
        return self.mean_per_s

    def scaled(self, factor: float) -> Diurnal:
        return replace(self, mean_per_s=self.mean_per_s * factor, period_ms=self.period_ms / factor)

    def _draw(self, streams: Streams, n: int) -> Times:
        highest = 1 + self.amplitude
        size = int(n * highest * 1.1) + 64
        while True:
            times = _points(streams, "gap", size) * (1e3 / (self.mean_per_s * highest))
            rate = 1 + self.amplitude * np.sin(times * (2 * math.pi / self.period_ms))
            kept = times[streams.uniform("arrivals/kept", 0, size) * highest < rate]
            if len(kept) >= n:
                return np.asarray(kept[:n], float)
            size *= 2


@dataclass(frozen=True, slots=True)
class TraceDriven(Arrivals):
    """Instants that were recorded, in ms; the seed decides nothing.

    Parameters
    ----------
    instants_ms : sequence of float
        At least two, from 0 on, never falling.

    Raises
    ------
    InvalidArgumentError
        If they are not finite, fall, or are all one; and by `times_ms`, if more are asked for than there are.

    Examples
    --------
    >>> TraceDriven((0.0, 5.0, 5.0, 20.0)).scaled(2).times_ms(Streams(1), 3)
    array([0. , 2.5, 2.5])
    """

    instants_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            times = np.asarray(self.instants_ms, float)
        except (TypeError, ValueError):
            times = np.empty(0)
        good = times.ndim == 1 and len(times) > 1 and bool(np.isfinite(times).all())
        if not good or (np.diff(times) < 0).any() or times[0] < 0 or times[-1] <= times[0]:
            raise InvalidArgumentError(
                f"TraceDriven.instants_ms must be at least 2 instants from 0 on, never falling, not "
                f"{self.instants_ms!r:.80}"
            )
        object.__setattr__(self, "instants_ms", tuple(times.tolist()))

    @property
    def mean_rate_per_s(self) -> float:
        return 1e3 * (len(self.instants_ms) - 1) / (self.instants_ms[-1] - self.instants_ms[0])

    def scaled(self, factor: float) -> TraceDriven:
        return TraceDriven(tuple(np.array(self.instants_ms) / factor))

    def _draw(self, streams: Streams, n: int) -> Times:
        if n > len(self.instants_ms):
            raise InvalidArgumentError(f"the trace holds {len(self.instants_ms):,} requests, not {n:,}; ask for fewer")
        return np.array(self.instants_ms[:n])


def check_arrivals(arrivals: Any) -> Arrivals:
    """Return what is an arrival process, refuse what is not.

    Parameters
    ----------
    arrivals : Arrivals
        Whatever a caller gave.

    Returns
    -------
    Arrivals
        The same.

    Raises
    ------
    InvalidArgumentError
        If it is none.

    Examples
    --------
    >>> check_arrivals(Poisson(100))
    Poisson(rate_per_s=100.0)
    >>> check_arrivals(100)
    Traceback (most recent call last):
    mktsim.errors.InvalidArgumentError: arrivals must be an arrival process, as Poisson(100.0), not 100
    """
    if not isinstance(arrivals, Arrivals):
        raise InvalidArgumentError(f"arrivals must be an arrival process, as Poisson(100.0), not {arrivals!r:.80}")
    return arrivals
