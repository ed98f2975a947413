"""Distributions of durations, in milliseconds, sampled by inverse CDF.

Rules
-----
A distribution draws nothing itself: `sample(u)` maps uniforms to durations, so the same uniform is the same duration
in every engine. The first argument is always an array; scalar code reads elements of an array draw, for numpy's vector
and scalar loops may differ in the last bit. All times are in
milliseconds, finite where u is inside (0, 1), never negative.

What this does not do
---------------------
It does not fit; see calibration in `mktsim.study`. A :class:`Mixture` is sampled by splitting u, not by inverting its
CDF: right in law, but not monotone in u.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import gammainc, gammaincinv, ndtr, ndtri

from mktsim.errors import InvalidArgumentError

Array = NDArray[np.float64]
_Z99 = float(ndtri(0.99))


def _number(owner: object, name: str, *, above: float = -math.inf, least: float = -math.inf) -> None:
    """Check one field: a finite number, above or at least a bound; store it as float."""
    value = getattr(owner, name)
    good = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not (value > above and value >= least):
        bound = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
        raise InvalidArgumentError(f"{type(owner).__name__}.{name} must be a finite number{bound}, not {value!r:.80}")
    object.__setattr__(owner, name, float(value))


class Latency(ABC):
    """A distribution of durations in milliseconds. Frozen; equal parameters make equal objects.

    Raises
    ------
    InvalidArgumentError
        At making, if a parameter is no finite number in its range.

    Examples
    --------
    Three of one mean; what a hundred calls wait for is the tail, where they differ.

    >>> for latency in (Constant(10.0), Exponential(10.0), Pareto(5.0, 2.0)):
    ...     print(latency.kind, latency.mean_ms, round(latency.quantile(0.99), 1))
    constant 10.0 10.0
    exponential 10.0 46.1
    pareto 10.0 50.0
    """

    __slots__ = ()
    kind: ClassVar[str]

    @abstractmethod
    def sample(self, u: Array) -> Array:
        """Map uniforms in (0, 1) to durations in ms, element by element."""

    @property
    @abstractmethod
    def mean_ms(self) -> float:
        """The mean, infinite where there is none."""

    @abstractmethod
    def cdf(self, t_ms: ArrayLike) -> Array:
        """P(duration <= t)."""

    def quantile(self, p: float) -> float:
        """Return the duration that a share `p` (in (0, 1)) does not exceed.

        Raises
        ------
        InvalidArgumentError
            If `p` is outside (0, 1).
        """
        return float(self.sample(np.array([_probability(p)]))[0])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: ``kind`` and the parameters; the inverse of :func:`latency_from_dict`."""
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}  # type: ignore[arg-type]


def _probability(p: float) -> float:
    if not isinstance(p, int | float | np.floating) or not 0.0 < p < 1.0:
        raise InvalidArgumentError(f"a quantile needs 0 < p < 1, not {p!r:.80}")
    return float(p)


@dataclass(frozen=True, slots=True)
class Constant(Latency):
    """A duration that is always the same.

    Parameters
    ----------
    ms : float
        The duration, at least 0.

    Raises
    ------
    InvalidArgumentError
        If it is negative or not finite.

    Examples
    --------
    >>> eight = Constant(8.0)
    >>> eight.sample(np.array([0.1, 0.9])), eight.cdf([7.9, 8.0])
    (array([8., 8.]), array([0., 1.]))
    """

    ms: float
    kind: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        _number(self, "ms", least=0.0)

    def sample(self, u: Array) -> Array:
        return np.full(np.shape(u), self.ms)

    @property
    def mean_ms(self) -> float:
        return self.ms

    def cdf(self, t_ms: ArrayLike) -> Array:
        return np.asarray(np.asarray(t_ms, float) >= self.ms, float)


@dataclass(frozen=True, slots=True)
class Uniform(Latency):
    """A duration anywhere between two bounds, all equally likely.

    Parameters
    ----------
    low_ms, high_ms : float
        The bounds: at least 0, and above that.

    Raises
    ------
    InvalidArgumentError
        If they are out of order, negative or not finite.

    Examples
    --------
    >>> latency = Uniform(2.0, 6.0)
    >>> latency.mean_ms, latency.quantile(0.75), float(latency.cdf(3.0))
    (4.0, 5.0, 0.25)
    """

    low_ms: float
    high_ms: float
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _number(self, "low_ms", least=0.0)
        _number(self, "high_ms", above=self.low_ms)

    def sample(self, u: Array) -> Array:
        x: Array = u * (self.high_ms - self.low_ms)
        x += self.low_ms
        return x

    @property
    def mean_ms(self) -> float:
        return (self.low_ms + self.high_ms) / 2

    def cdf(self, t_ms: ArrayLike) -> Array:
        share = (np.asarray(t_ms, float) - self.low_ms) / (self.high_ms - self.low_ms)
        return np.asarray(np.clip(share, 0.0, 1.0), float)


@dataclass(frozen=True, slots=True)
class Exponential(Latency):
    """Memoryless, with the given mean: what is left of it does not depend on how long it has lasted.

    Parameters
    ----------
    mean_ms : float
        Above 0.

    Raises
    ------
    InvalidArgumentError
        If it is not positive or not finite.

    Examples
    --------
    The 99th percentile is ln(100) = 4.6 means.

    >>> round(Exponential(10.0).quantile(0.99), 2)
    46.05
    """

    mean_ms: float = field()  # Without field(), dataclass would take the inherited property as a default.
    kind: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        _number(self, "mean_ms", above=0.0)

    def sample(self, u: Array) -> Array:
        x: Array = np.log1p(-u)
        x *= -self.mean_ms
        return x

    def cdf(self, t_ms: ArrayLike) -> Array:
        return np.asarray(-np.expm1(-np.maximum(np.asarray(t_ms, float), 0.0) / self.mean_ms), float)


@dataclass(frozen=True, slots=True)
class LogNormal(Latency):
    """The usual shape of a network or service time, by its median and its 99th percentile.

    Parameters
    ----------
    median_ms : float
        Above 0.
    p99_ms : float
        Above the median: what one call in a hundred exceeds.

    Raises
    ------
    InvalidArgumentError
        If they are out of order, not positive or not finite.

    Examples
    --------
    Half of all calls take 8 ms at most, one in a hundred more than 40 ms, one in a thousand more than 68 ms.

    >>> latency = LogNormal(8.0, 40.0)
    >>> [round(latency.quantile(p), 1) for p in (0.5, 0.99, 0.999)], round(latency.mean_ms, 2)
    ([8.0, 40.0, 67.9], 10.16)
    >>> round(LogNormal.from_mean_sigma(12.0, 0.5).p99_ms, 1)
    33.9
    """

    median_ms: float
    p99_ms: float
    kind: ClassVar[str] = "lognormal"

    def __post_init__(self) -> None:
        _number(self, "median_ms", above=0.0)
        _number(self, "p99_ms", above=self.median_ms)

    @classmethod
    def from_mean_sigma(cls, mean_ms: float, sigma: float) -> LogNormal:
        """Make the one of this mean (ms) whose logarithm has standard deviation `sigma`."""
        if not (0 < mean_ms < math.inf and 0 < sigma < math.inf):
            raise InvalidArgumentError(f"mean and sigma must be positive and finite, not {mean_ms!r}, {sigma!r}")
        median = mean_ms * math.exp(-sigma * sigma / 2)
        return cls(median, median * math.exp(sigma * _Z99))

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.p99_ms / self.median_ms) / _Z99

    def sample(self, u: Array) -> Array:
        x: Array = ndtri(u)
        x *= self.sigma
        x += math.log(self.median_ms)
        np.exp(x, out=x)
        return x

    @property
    def mean_ms(self) -> float:
        return self.median_ms * math.exp(self.sigma**2 / 2)

    def cdf(self, t_ms: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            log_t = np.log(np.maximum(np.asarray(t_ms, float), 0.0))
        return np.asarray(ndtr((log_t - math.log(self.median_ms)) / self.sigma), float)


@dataclass(frozen=True, slots=True)
class Gamma(Latency):
    """A sum of exponential stages, by how many there are and the mean of the sum; parts of stages count too.

    Parameters
    ----------
    shape : float
        How many stages, above 0: the standard deviation is ``mean_ms / sqrt(shape)``.
    mean_ms : float
        Above 0.

    Raises
    ------
    InvalidArgumentError
        If a value is not positive or not finite.

    Examples
    --------
    More stages of the same mean, less tail; one is the exponential.

    >>> [round(Gamma(stages, 10.0).quantile(0.99), 1) for stages in (1, 4, 16)]
    [46.1, 25.1, 16.7]
    """

    shape: float
    mean_ms: float = field()  # Without field(), dataclass would take the inherited property as a default.
    kind: ClassVar[str] = "gamma"

    def __post_init__(self) -> None:
        _number(self, "shape", above=0.0)
        _number(self, "mean_ms", above=0.0)

    def sample(self, u: Array) -> Array:
        return np.asarray(gammaincinv(self.shape, u) * (self.mean_ms / self.shape), float)

    def cdf(self, t_ms: ArrayLike) -> Array:
        t = np.maximum(np.asarray(t_ms, float), 0.0)
        return np.asarray(gammainc(self.shape, t * (self.shape / self.mean_ms)), float)


@dataclass(frozen=True, slots=True)
class Pareto(Latency):
    """A power tail: P(duration > t) = (minimum / t)^alpha.

    Parameters
    ----------
    minimum_ms : float
        Above 0: the shortest.
    alpha : float
        Above 0; without a mean up to 1, without a variance up to 2.

    Raises
    ------
    InvalidArgumentError
        If a value is not positive or not finite.

    Examples
    --------
    Every factor of ten in how rare a duration is makes it longer by the same factor.

    >>> [round(Pareto(1.0, 2.0).quantile(p), 1) for p in (0.9, 0.99, 0.999)], Pareto(1.0, 1.0).mean_ms
    ([3.2, 10.0, 31.6], inf)
    """

    minimum_ms: float
    alpha: float
    kind: ClassVar[str] = "pareto"

    def __post_init__(self) -> None:
        _number(self, "minimum_ms", above=0.0)
        _number(self, "alpha", above=0.0)

    def sample(self, u: Array) -> Array:
        return self.minimum_ms * np.exp(np.log1p(-u) * (-1.0 / self.alpha))

    @property
    def mean_ms(self) -> float:
        return self.alpha * self.minimum_ms / (self.alpha - 1) if self.alpha > 1 else math.inf

    def cdf(self, t_ms: ArrayLike) -> Array:
        t = np.maximum(np.asarray(t_ms, float), self.minimum_ms)
        return np.asarray(1.0 - (self.minimum_ms / t) ** self.alpha, float)


@dataclass(frozen=True, slots=True)
class Shifted(Latency):
    """Another distribution, later by a constant: a distance that no luck shortens.

    Parameters
    ----------
    offset_ms : float
        At least 0.
    latency : Latency
        What comes on top.

    Raises
    ------
    InvalidArgumentError
        If the offset is negative or not finite, or the latency is none.

    Examples
    --------
    Across the Atlantic, 45 ms one way at the least:

    >>> latency = Shifted(45.0, Exponential(2.0))
    >>> latency.mean_ms, round(latency.quantile(0.01), 2), float(latency.cdf(45.0))
    (47.0, 45.02, 0.0)
    """

    offset_ms: float
    latency: Latency
    kind: ClassVar[str] = "shifted"

    def __post_init__(self) -> None:
        _number(self, "offset_ms", least=0.0)
        _part(self, self.latency)

    def sample(self, u: Array) -> Array:
        return self.offset_ms + self.latency.sample(u)

    @property
    def mean_ms(self) -> float:
        return self.offset_ms + self.latency.mean_ms

    def cdf(self, t_ms: ArrayLike) -> Array:
        return self.latency.cdf(np.asarray(t_ms, float) - self.offset_ms)

    def quantile(self, p: float) -> float:
        return self.offset_ms + self.latency.quantile(p)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "offset_ms": self.offset_ms, "latency": self.latency.to_dict()}


@dataclass(frozen=True, slots=True)
class Mixture(Latency):
    """One of several distributions, each with its weight: cold and warm, near and far.

    Parameters
    ----------
    weights : sequence of float
        Positive; made to sum to 1.
    parts : sequence of Latency
        As many.

    Examples
    --------
    >>> Mixture((3, 1), (Constant(8.0), Constant(101.0))).mean_ms
    31.25
    """

    weights: tuple[float, ...]
    parts: tuple[Latency, ...]
    kind: ClassVar[str] = "mixture"

    def __post_init__(self) -> None:
        weights, parts = tuple(self.weights), tuple(self.parts)
        if not weights or len(weights) != len(parts):
            raise InvalidArgumentError(f"Mixture needs as many weights as parts, not {len(weights)} and {len(parts)}")
        for weight in weights:
            if not isinstance(weight, int | float) or not (0 < weight < math.inf):
                raise InvalidArgumentError(f"Mixture.weights must be positive and finite, not {weight!r:.80}")
        for part in parts:
            _part(self, part)
        object.__setattr__(self, "weights", tuple(weight / math.fsum(weights) for weight in weights))
        object.__setattr__(self, "parts", parts)

    def sample(self, u: Array) -> Array:
        u = np.asarray(u, float)
        edges = np.concatenate(([0.0], np.cumsum(self.weights)))
        edges[-1] = 1.0
        chosen = np.searchsorted(edges, u, side="right") - 1
        # Given which part it fell to, the rest of u is uniform again; kept off 0 and 1, where logarithms end.
        rest = np.clip((u - edges[chosen]) / (edges[chosen + 1] - edges[chosen]), 2.0**-53, 1 - 2.0**-53)
        result = np.empty(u.shape)
        for i, part in enumerate(self.parts):
            mine = chosen == i
            result[mine] = part.sample(rest[mine])
        return result

    @property
    def mean_ms(self) -> float:
        return math.fsum(w * part.mean_ms for w, part in zip(self.weights, self.parts, strict=True))

    def cdf(self, t_ms: ArrayLike) -> Array:
        total = np.zeros(np.shape(t_ms))
        for weight, part in zip(self.weights, self.parts, strict=True):
            total = total + weight * part.cdf(t_ms)
        return np.minimum(total, 1.0)

    def quantile(self, p: float) -> float:
        """Invert the CDF numerically; where it jumps over `p`, the point of the jump."""
        p = _probability(p)
        marks = [part.quantile(p) for part in self.parts]
        low, high = min(marks), max(marks)
        if low == high or float(self.cdf(low)) >= p:
            return low
        return float(brentq(lambda t: float(self.cdf(t)) - p, low, high, xtol=1e-12 * high, rtol=1e-14))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "weights": list(self.weights), "parts": [part.to_dict() for part in self.parts]}


@dataclass(frozen=True, slots=True)
class Empirical(Latency):
    """Measured durations, each as likely as the others. Never longer than the longest one that was seen.

    Parameters
    ----------
    values_ms : sequence of float
        At least one, none negative; kept sorted.

    Raises
    ------
    InvalidArgumentError
        If there is none, or one is negative or not finite.

    Notes
    -----
    A quantile rarer than one in as many as were measured is the longest of them: the tail beyond needs a shape.

    Examples
    --------
    >>> latency = Empirical((9.0, 8.0, 8.0, 101.0))
    >>> latency.mean_ms, latency.quantile(0.7), latency.quantile(0.999)
    (31.5, 9.0, 101.0)
    """

    values_ms: tuple[float, ...]
    kind: ClassVar[str] = "empirical"

    def __post_init__(self) -> None:
        values = np.asarray(self.values_ms, float)
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values < 0).any():
            raise InvalidArgumentError(
                f"Empirical.values_ms must be finite, none negative, at least one; got {self.values_ms!r:.80}"
            )
        object.__setattr__(self, "values_ms", tuple(np.sort(values).tolist()))

    def sample(self, u: Array) -> Array:
        values = np.array(self.values_ms)
        return values[np.minimum((np.asarray(u) * len(values)).astype(np.int64), len(values) - 1)]

    @property
    def mean_ms(self) -> float:
        return math.fsum(self.values_ms) / len(self.values_ms)

    def cdf(self, t_ms: ArrayLike) -> Array:
        return np.searchsorted(np.array(self.values_ms), t_ms, side="right") / len(self.values_ms)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "values_ms": list(self.values_ms)}


def _part(owner: Latency, part: object) -> None:
    if not isinstance(part, Latency):
        raise InvalidArgumentError(f"{type(owner).__name__} is made of Latency objects, not {part!r:.80}")


_KINDS: dict[str, type[Latency]] = {
    cls.kind: cls for cls in (Constant, Uniform, Exponential, LogNormal, Gamma, Pareto, Shifted, Mixture, Empirical)
}


def latency_from_dict(data: Mapping[str, Any]) -> Latency:
    """Make a distribution from plain data, as a preset's TOML holds it.

    A lognormal may be given by ``mean_ms`` and ``sigma`` instead of ``median_ms`` and ``p99_ms``.

    Parameters
    ----------
    data : mapping
        ``kind`` and the parameters of that kind; those of parts are mappings themselves.

    Returns
    -------
    Latency

    Raises
    ------
    InvalidArgumentError
        If the kind is unknown or the parameters are not those of the kind.

    Examples
    --------
    >>> latency_from_dict({"kind": "exponential", "mean_ms": 5})
    Exponential(mean_ms=5.0)
    """
    if not isinstance(data, Mapping):
        raise InvalidArgumentError(f"a latency is a table with a kind, not {data!r:.80}")
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise InvalidArgumentError(f"unknown kind of latency {kind!r:.80}; known: {', '.join(_KINDS)}")
    if kind == "lognormal" and values.keys() == {"mean_ms", "sigma"}:
        return LogNormal.from_mean_sigma(**values)
    cls = _KINDS[kind]
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if values.keys() != names:
        raise InvalidArgumentError(f"a latency of kind {kind} takes {sorted(names)}, not {sorted(map(str, values))}")
    if kind == "shifted":
        values["latency"] = latency_from_dict(values["latency"])
    elif kind == "mixture":
        if not isinstance(values["parts"], list | tuple):
            raise InvalidArgumentError(f"the parts of a mixture are a list, not {values['parts']!r:.80}")
        values["parts"] = tuple(latency_from_dict(part) for part in values["parts"])
    return cls(**values)
