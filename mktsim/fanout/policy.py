"""How a scatter behaves under stragglers, failures and load; and the little that a node remembers to behave so.

Rules
-----
A policy is plain frozen data, and the same object rules live and simulated scatters. What is remembered between
scatters (how long calls took, which scanners fail, how many retries are left) belongs to one node, coordinator or
aggregator, and moves with that node's clock only.

What this does not do
---------------------
It does not coordinate nodes: each keeps its own budget, breakers and observations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mktsim.errors import InvalidArgumentError


def _number(name: str, value: Any, *, least: float, most: float = math.inf, above: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not (value > least if above else value >= least) or not value <= most:
        bound = f"above {least:g}" if above else f"at least {least:g}"
        limit = f" and at most {most:g}" if most < math.inf else ""
        raise InvalidArgumentError(f"{name} must be a number {bound}{limit}, not {value!r:.80}")


def _whole(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgumentError(f"{name} must be a whole number of at least {least}, not {value!r:.80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """When to stop asking a scanner that fails.

    Parameters
    ----------
    failures : int
        Failures in a row that open the circuit: the scanner is then not asked, and counts as down at once.
    open_s : float
        Seconds after which it is half-open: `probes` calls at a time are let through; a success closes it, a failure
        opens it again.
    probes : int
        Calls at a time that try a half-open circuit.

    Raises
    ------
    InvalidArgumentError
        If a value is none of its kind.

    Examples
    --------
    After two failures in a row the scanner is left alone for a second; then one call at a time tries it.

    >>> from mktsim.fanout.policy import Circuits
    >>> breaker, circuits = Breaker(failures=2, open_s=1.0), Circuits()
    >>> for _ in range(2):
    ...     circuits.failed("vendor/acme", breaker, now_s=0.0)
    >>> circuits.admit("vendor/acme", breaker, now_s=0.5)
    False
    >>> [circuits.admit("vendor/acme", breaker, now_s=1.0) for _ in range(2)]
    [True, False]
    >>> ScatterPolicy(breaker=breaker).asks_once
    False
    """

    failures: int = 5
    open_s: float = 30.0
    probes: int = 1

    def __post_init__(self) -> None:
        _whole("Breaker.failures", self.failures, least=1)
        _number("Breaker.open_s", self.open_s, least=0, above=True)
        _whole("Breaker.probes", self.probes, least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterPolicy:
    """How a scatter treats slow, failing and overloaded scanners. The default asks each once and waits.

    Parameters
    ----------
    deadline_s : float, optional
        Seconds from a query's start after which nothing is waited for and running statements are interrupted.
    attempt_timeout_s : float, optional
        Seconds after which one attempt counts as failed, so that a lost message can be sent again.
    retries : int
        Further attempts after an attempt has failed (never after the statement itself failed).
    backoff_s, backoff_cap_s : float
        Before retry n (from 0) a scatter waits a uniform share of ``min(backoff_cap_s, backoff_s * 2**n)``.
    retry_budget : float
        Retries allowed as a share of calls, over a reserve of ten: it keeps retries from feeding an overload.
    hedge_after_s : float, optional
        Seconds after which a second copy of an unanswered call is sent, to a replica where there is one.
    hedge_quantile : float, optional
        The same after this quantile of the times observed at the node, once there are enough of them; until then
        `hedge_after_s`, if given, holds.
    tied : bool
        The second copy goes to a replica only, and whichever copy is started first withdraws the other.
    window : int, optional
        Calls in flight at most.
    breaker : Breaker, optional
        Stop asking scanners that keep failing.
    max_in_flight : int, optional
        Queries at the coordinator at most: one more is refused with :class:`~mktsim.errors.OverloadedError`.
    visit_all : bool
        Scan every vendor that the statement is about, though summaries or kept partials could spare it.
    max_staleness_s : float, optional
        How far behind a replica may be that answers, seconds; with 0 none is asked, however the call fares. Any may
        answer when absent, and the answer's `stats` say how far behind it was.

    Raises
    ------
    InvalidArgumentError
        If a value is none of its kind, or `tied` has no delay to go by.

    Examples
    --------
    >>> ScatterPolicy(retries=2, hedge_quantile=0.95).replace(window=6).window
    6
    """

    deadline_s: float | None = None
    attempt_timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 0.05
    backoff_cap_s: float = 1.0
    retry_budget: float = 0.2
    hedge_after_s: float | None = None
    hedge_quantile: float | None = None
    tied: bool = False
    window: int | None = None
    breaker: Breaker | None = None
    max_in_flight: int | None = None
    visit_all: bool = False
    max_staleness_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("deadline_s", "attempt_timeout_s"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), least=0, above=True)
        _whole("retries", self.retries, least=0)
        if not isinstance(self.visit_all, bool):
            raise InvalidArgumentError(f"visit_all must be True or False, not {self.visit_all!r:.80}")
        if self.max_staleness_s is not None:
            _number("max_staleness_s", self.max_staleness_s, least=0)
        for name in ("backoff_s", "backoff_cap_s", "retry_budget"):
            _number(name, getattr(self, name), least=0)
        if self.hedge_after_s is not None:
            _number("hedge_after_s", self.hedge_after_s, least=0)
        if self.hedge_quantile is not None:
            _number("hedge_quantile", self.hedge_quantile, least=0, above=True)
            if self.hedge_quantile >= 1:
                raise InvalidArgumentError(f"hedge_quantile must be below 1, not {self.hedge_quantile!r:.80}")
        if not isinstance(self.tied, bool):
            raise InvalidArgumentError(f"tied must be True or False, not {self.tied!r:.80}")
        if self.tied and self.hedge_after_s is None and self.hedge_quantile is None:
            raise InvalidArgumentError("tied requests need hedge_after_s (or hedge_quantile), the delay of the twin")
        for name in ("window", "max_in_flight"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least=1)
        if self.breaker is not None and not isinstance(self.breaker, Breaker):
            raise InvalidArgumentError(f"breaker must be a Breaker, not {self.breaker!r:.80}")

    @property
    def asks_once(self) -> bool:
        """Whether each scanner is asked once, all at the same time, whatever happens."""
        return (
            self.retries == 0
            and self.attempt_timeout_s is None
            and self.hedge_after_s is None
            and self.hedge_quantile is None
            and self.window is None
            and self.breaker is None
            and self.max_staleness_s is None
        )

    def replace(self, **changes: Any) -> ScatterPolicy:
        """Return a copy with some values changed."""
        return replace(self, **changes)


#: Buckets grow by 2**(1/8), 9 %, from a microsecond: a quantile is off by at most that.
_PER_DOUBLING: Final = 8
_SMALLEST_S: Final = 1e-6


@dataclass(slots=True)
class Histogram:
    """Durations in logarithmic buckets: constant memory, mergeable, quantiles within 9 %.

    Attributes
    ----------
    count : int
        Durations counted so far.

    Examples
    --------
    >>> one, two = Histogram(), Histogram()
    >>> for ms in range(1, 101):
    ...     (one if ms % 2 else two).add(ms / 1000)
    >>> one.merge(two)
    >>> 0.095 <= one.quantile(0.95) <= 0.105
    True
    """

    count: int = 0
    _buckets: dict[int, int] = field(default_factory=dict)

    def add(self, duration_s: float) -> None:
        """Count one duration."""
        bucket = math.ceil(_PER_DOUBLING * math.log2(duration_s / _SMALLEST_S)) if duration_s > _SMALLEST_S else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def merge(self, other: Histogram) -> None:
        """Add another's counts; the order of merging does not matter."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += other.count

    def quantile(self, share: float) -> float:
        """Return a bound in seconds that this share of the durations did not pass, rounded up to a bucket's end.

        Raises
        ------
        InvalidArgumentError
            If nothing was counted.
        """
        if not self.count:
            raise InvalidArgumentError("an empty histogram has no quantile: add durations first")
        rank, seen = share * self.count, 0
        bucket = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                break
        return float(_SMALLEST_S * 2 ** (bucket / _PER_DOUBLING))


_RESERVE: Final = 10.0


class RetryBudget:
    """A bucket of tokens: every call puts in a share of one, every retry takes one out."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = _RESERVE

    def deposit(self, calls: int, share: float) -> None:
        """Count first attempts; of what earlier ones left, no more than the reserve is kept."""
        self.tokens = min(self.tokens, _RESERVE) + calls * share

    def take(self) -> bool:
        """Take a token, if there is one."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Circuits:
    """The circuit breakers of one node, by address; a scanner that never failed has none.

    A circuit is closed until `failures` in a row; then open until a time; then half-open, with few probes in flight.
    """

    __slots__ = ("_failed", "_open_until_s", "_probes")

    def __init__(self) -> None:
        self._failed: dict[str, int] = {}
        self._open_until_s: dict[str, float] = {}
        self._probes: dict[str, int] = {}

    @property
    def open(self) -> Mapping[str, float]:
        """Addresses whose circuit is not closed, and the loop time at which each was, or will be, half-open."""
        return self._open_until_s

    def admit(self, address: str, breaker: Breaker, now_s: float) -> bool:
        """Tell whether a call may be sent; a call let through a half-open circuit is counted as a probe."""
        until_s = self._open_until_s.get(address)
        if until_s is None:
            return True
        if now_s < until_s or self._probes.get(address, 0) >= breaker.probes:
            return False
        self._probes[address] = self._probes.get(address, 0) + 1
        return True

    def succeeded(self, address: str) -> None:
        """Close the circuit."""
        if self._failed:
            for table in (self._failed, self._open_until_s, self._probes):
                table.pop(address, None)

    def failed(self, address: str, breaker: Breaker, now_s: float) -> None:
        """Count a failure: open the circuit at the last one allowed, or again after a probe."""
        failed = self._failed[address] = self._failed.get(address, 0) + 1
        if failed >= breaker.failures:
            self._open_until_s[address] = now_s + breaker.open_s
            self._probes.pop(address, None)

    def given_up(self, address: str) -> None:
        """A call ended without telling anything of the scanner: give a probe's place back."""
        if self._probes.get(address, 0) > 0:
            self._probes[address] -= 1
