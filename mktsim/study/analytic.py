"""Closed forms: what theory says a scatter, a queue or a ring must do. Each is held against simulation in the tests.

Times are in the unit of the argument (a mean in ms gives ms). Formulas name their source. What is
no number, out of range, or no whole number where things are counted is an `InvalidArgumentError`, never a number that
means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.integrate import quad
from scipy.special import betaincinv, digamma, gammaln

from mktsim.errors import InvalidArgumentError

#: From here on whole numbers are no longer told apart by floating-point arithmetic.
_MOST: Final = 1 << 53


def _is_number(value: object) -> bool:
    """Whether this is a real number, infinity included; True is none, nor is what no float is as large as."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not _is_number(value) or not 0 < value < math.inf:
            raise InvalidArgumentError(f"{name} must be positive and finite, not {value!r:.80}")


def _not_negative(**values: float) -> None:
    """Let infinity pass: a hedge that is never sent, a time that never comes."""
    for name, value in values.items():
        if not _is_number(value) or not value >= 0:
            raise InvalidArgumentError(f"{name} must be a number of at least 0, not {value!r:.80}")


def _whole(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value < _MOST:
            raise InvalidArgumentError(f"{name} must be a whole number of at least 1, not {value!r:.80}")


def _inside(**values: float) -> None:
    for name, value in values.items():
        if not _is_number(value) or not 0 < value < 1:
            raise InvalidArgumentError(f"{name} must be inside (0, 1), not {value!r:.80}")


def _callable(**values: object) -> None:
    for name, value in values.items():
        if not callable(value):
            raise InvalidArgumentError(f"{name} must be a function of the time, not {value!r:.80}")


def _probability(name: str, function: Callable[[float], float], t: float) -> float:
    """Ask a function for a probability; what rounding adds to 1 or takes from 0 is cut."""
    found = function(t)
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not -1e-9 <= value <= 1 + 1e-9:
        raise InvalidArgumentError(f"{name}({t:g}) must be a probability, not {found!r:.80}")
    return min(1.0, max(0.0, value))


def _stable(arrival_rate: float, capacity: float) -> None:
    if arrival_rate >= capacity:
        raise InvalidArgumentError(f"no steady state: arrival rate {arrival_rate:g} is not below capacity {capacity:g}")


def harmonic(n: float) -> float:
    """Return the harmonic number H_n = 1 + 1/2 + ... + 1/n; H_0 = 0.

    Source: H_n = digamma(n + 1) + Euler's constant (Abramowitz & Stegun 6.3.2).

    Parameters
    ----------
    n : float
        At least 0; between whole numbers by the same formula.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        `n` is negative or not finite.

    Examples
    --------
    >>> round(harmonic(4), 6)
    2.083333
    """
    _not_negative(n=n)
    if n == math.inf:
        raise InvalidArgumentError("n must be finite, for H_n is not")
    return float(digamma(n + 1) + np.euler_gamma)


def max_of_exponentials(n: int, *, mean: float = 1.0) -> float:
    """Return the mean time of the slowest of `n` exponential leaves: mean * H_n.

    Source: Renyi, 1953.

    Parameters
    ----------
    n : int
        Leaves, all of which are waited for.
    mean : float
        Of one leaf, in any unit of time.

    Returns
    -------
    float
        In the unit of `mean`.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive and finite.

    Examples
    --------
    A hundred leaves of 10 ms each take five times as long as one; ten times as many, not even half as long again.

    >>> [round(max_of_exponentials(n, mean=10.0), 1) for n in (1, 100, 1_000)]
    [10.0, 51.9, 74.9]
    """
    return k_of_n_exponentials(n, n, mean=mean)


def k_of_n_exponentials(k: int, n: int, *, mean: float = 1.0) -> float:
    """Return the mean time until the first `k` of `n` exponential leaves have answered: mean * (H_n - H_(n-k)).

    Source: Renyi, 1953.

    Parameters
    ----------
    k : int
        Answers that are enough, at most `n`.
    n : int
        Leaves that are asked.
    mean : float
        Of one leaf, in any unit of time.

    Returns
    -------
    float
        In the unit of `mean`.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive and finite, or `k` is above `n`.

    Examples
    --------
    To do without the last 5 of 100 answers saves nearly half of the time.

    >>> [round(k_of_n_exponentials(k, 100, mean=10.0), 1) for k in (95, 100)]
    [29.0, 51.9]
    """
    _whole(k=k, n=n)
    _positive(mean=mean)
    if k > n:
        raise InvalidArgumentError(f"k must be at most n, not {k} of {n}")
    return mean * (harmonic(n) - harmonic(n - k))


def windowed_exponentials(n: int, window: int, *, mean: float = 1.0) -> float:
    """Return the mean time of `n` exponential calls, at most `window` in flight: mean * ((n - c)/c + H_c).

    While all c connections are busy one becomes free every mean/c; the last c are a maximum. Source: order statistics
    of the exponential and its lack of memory (Renyi, 1953).

    Parameters
    ----------
    n : int
        Calls.
    window : int
        Calls in flight at most; more than `n` is as good as `n`.
    mean : float
        Of one call, in any unit of time.

    Returns
    -------
    float
        In the unit of `mean`.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive and finite.

    Examples
    --------
    Six connections at a time make 100 calls of 10 ms take three and a half times as long as all at once.

    >>> [round(windowed_exponentials(100, window, mean=10.0), 1) for window in (6, 100)]
    [181.2, 51.9]
    """
    _whole(n=n, window=window)
    _positive(mean=mean)
    c = min(window, n)
    return mean * ((n - c) / c + harmonic(c))


def slow_share(n: int, leaf_share: float) -> float:
    """Return the share of requests with at least one slow leaf among `n`: 1 - (1 - s)^n.

    Source: Dean & Barroso, CACM 56(2), 2013.

    Parameters
    ----------
    n : int
        Independent leaves that a request waits for.
    leaf_share : float
        Share of slow answers at each, from 0 to 1.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    InvalidArgumentError
        `n` is not positive, or `leaf_share` no share.

    Examples
    --------
    >>> round(slow_share(100, 0.01), 6)
    0.633968
    """
    _whole(n=n)
    if not _is_number(leaf_share) or not 0 <= leaf_share <= 1:
        raise InvalidArgumentError(f"leaf_share must be from 0 to 1, not {leaf_share!r:.80}")
    return -math.expm1(n * math.log1p(-leaf_share)) if leaf_share < 1 else 1.0


def leaf_quantile(p: float, n: int) -> float:
    """Return which quantile of a leaf is the request's quantile `p` when it waits for all `n`: p^(1/n).

    Source: the maximum of n independent leaves has distribution F(t)^n.

    Parameters
    ----------
    p : float
        Inside (0, 1).
    n : int
        Independent leaves.

    Returns
    -------
    float
        Inside (0, 1).

    Raises
    ------
    InvalidArgumentError
        `p` is outside (0, 1), or `n` not positive.

    Examples
    --------
    The p99 of a request over 100 leaves is the p99.99 of a leaf.

    >>> round(leaf_quantile(0.99, 100), 6)
    0.9999
    """
    _whole(n=n)
    _inside(p=p)
    return float(p ** (1 / n))


def exceedance(p: float, n: int) -> float:
    """Return how rare a leaf's time is that `n` leaves all keep with probability `p`: 1 - p^(1/n).

    It is computed without cancellation. Source: as :func:`leaf_quantile`; for a million leaves that number itself has
    only 10 good digits of tail left.

    Parameters
    ----------
    p : float
        Inside (0, 1).
    n : int
        Independent leaves.

    Returns
    -------
    float
        Probability that one leaf is slower.

    Raises
    ------
    InvalidArgumentError
        `p` is outside (0, 1), or `n` not positive.

    Examples
    --------
    >>> f"{exceedance(0.5, 1_000_000):.6e}"
    '6.931469e-07'
    """
    _whole(n=n)
    _inside(p=p)
    return -math.expm1(math.log(p) / n)


def k_of_n_leaf_quantile(p: float, k: int, n: int) -> float:
    """Return which quantile of a leaf is the request's quantile `p` when it waits for the first `k` of `n`.

    Source: U_(k) of n uniforms is Beta(k, n - k + 1) (David & Nagaraja, Order Statistics, 3rd ed., 2.1).

    Parameters
    ----------
    p : float
        Inside (0, 1).
    k : int
        Answers that are enough.
    n : int
        Independent leaves that are asked.

    Returns
    -------
    float
        Inside (0, 1).

    Raises
    ------
    InvalidArgumentError
        `p` is outside (0, 1), or `k` above `n`.

    Examples
    --------
    >>> round(k_of_n_leaf_quantile(0.99, 95, 100), 4), k_of_n_leaf_quantile(0.99, 100, 100) == 0.99 ** 0.01
    (0.9819, True)
    """
    _whole(k=k, n=n)
    _inside(p=p)
    if k > n:
        raise InvalidArgumentError(f"k must be at most n, not {k} of {n}")
    return leaf_quantile(p, n) if k == n else float(betaincinv(k, n - k + 1, p))


def mean_of_maximum(cdf: Callable[[float], float], n: int, *, upper: float = math.inf) -> float:
    """Return the mean time of the slowest of `n` leaves of any distribution: the integral of 1 - F(t)^n, numerically.

    Source: the mean of a positive time is the integral of its survival function.

    Parameters
    ----------
    cdf : callable
        ``cdf(t)``: share of a leaf's times up to `t`, never falling.
    n : int
        Independent leaves.
    upper : float
        Where to end the integral: after this nobody is left.

    Returns
    -------
    float
        In the unit of `t`.

    Raises
    ------
    InvalidArgumentError
        A number is not positive, `n` is no whole one, or `cdf` gives what is no probability.

    Examples
    --------
    The slowest of 9 that are spread evenly over 10 ms takes 9 ms.

    >>> round(mean_of_maximum(lambda t: min(t / 10, 1.0), 9, upper=10), 6)
    9.0
    >>> round(mean_of_maximum(lambda t: -math.expm1(-t), 100) / harmonic(100), 6)
    1.0
    """
    _callable(cdf=cdf)
    _whole(n=n)
    if not isinstance(upper, float) or upper != math.inf:
        _positive(upper=upper)

    def survival(t: float) -> float:
        below = _probability("cdf", cdf, t)
        return 1.0 if below <= 0 else -math.expm1(n * math.log(below))

    return float(quad(survival, 0, upper, limit=500)[0])


def hedged_survival(survival: Callable[[float], float], t: float, delay: float) -> float:
    """Return P(no answer by `t`) when a twin starts after `delay` on an independent replica: S(t) S(t - d).

    Source: the minimum of two independent times (Dean & Barroso, CACM 56(2), 2013, describe the policy).

    Parameters
    ----------
    survival : callable
        ``survival(t)``: P(one call is not answered by `t`).
    t : float
        Since the request.
    delay : float
        After which the twin starts, in the unit of `t`.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    InvalidArgumentError
        A time is negative, or `survival` gives what is no probability.

    Examples
    --------
    Without a hedge 1 call in 100 takes longer than its p99; a twin sent at the p95 leaves 1 in 500.

    >>> p95, p99 = -math.log(0.05), -math.log(0.01)
    >>> round(hedged_survival(lambda t: math.exp(-t), p99, delay=p95), 4)
    0.002
    """
    _callable(survival=survival)
    _not_negative(t=t, delay=delay)
    first = _probability("survival", survival, t)
    return first * _probability("survival", survival, t - delay) if t > delay else first


def hedged_exponential_mean(delay: float, *, mean: float = 1.0) -> float:
    """Return the mean time of an exponential call hedged after `delay`: mean * (1 - exp(-d/mean)/2).

    Source: the integral of S(t) S(t - d).

    Parameters
    ----------
    delay : float
        At least 0, in the unit of `mean`.
    mean : float
        Of one call, in any unit of time.

    Returns
    -------
    float
        In the unit of `mean`.

    Raises
    ------
    InvalidArgumentError
        The delay is negative, or the mean not positive.

    Examples
    --------
    Two copies at once take half as long; a hedge at the p95 gains little in the mean: it is for the tail.

    >>> hedged_exponential_mean(0.0, mean=10.0), round(hedged_exponential_mean(30.0, mean=10.0), 2)
    (5.0, 9.75)
    """
    _positive(mean=mean)
    _not_negative(delay=delay)
    return mean * (1 - math.exp(-delay / mean) / 2)


def hedge_extra_load(survival: Callable[[float], float], delay: float) -> float:
    """Return the share of second copies that a hedge after `delay` sends: S(d), so 5 % at the leaf's p95.

    Source: Dean & Barroso, CACM 56(2), 2013.

    Parameters
    ----------
    survival : callable
        ``survival(t)``: P(one call is not answered by `t`).
    delay : float
        At least 0.

    Returns
    -------
    float
        Further calls over calls, from 0 to 1.

    Raises
    ------
    InvalidArgumentError
        The delay is negative.

    Examples
    --------
    >>> round(hedge_extra_load(lambda t: math.exp(-t / 10.0), delay=30.0), 3)
    0.05
    """
    _callable(survival=survival)
    _not_negative(delay=delay)
    return _probability("survival", survival, delay)


def moved_share(nodes: int) -> float:
    """Return the share of the keys that one more node takes over from `nodes`: 1/(n + 1), all of them to the new one.

    Source: Karger et al., STOC 1997; Lamping & Veach, 2014.

    Parameters
    ----------
    nodes : int
        Before the new one.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    InvalidArgumentError
        `nodes` is not positive.

    Examples
    --------
    >>> moved_share(4)
    0.2
    """
    _whole(nodes=nodes)
    return 1 / (nodes + 1)


def mm1_mean(arrival_rate: float, service_rate: float) -> float:
    """Return the mean sojourn time of an M/M/1 queue: 1/(mu - lambda).

    Source: Kleinrock, Queueing Systems I, 3.2.

    Parameters
    ----------
    arrival_rate, service_rate : float
        Per unit of time; the first below the second.

    Returns
    -------
    float
        Units of time, waiting and service together.

    Raises
    ------
    InvalidArgumentError
        A rate is not positive, or there is no steady state.

    Examples
    --------
    A server of 100 a second answers in 10 ms when idle, in 20 ms at half of its load and in 100 ms at nine tenths.

    >>> [round(1e3 * mm1_mean(rate, 100.0)) for rate in (1.0, 50.0, 90.0)]
    [10, 20, 100]
    """
    _positive(arrival_rate=arrival_rate, service_rate=service_rate)
    _stable(arrival_rate, service_rate)
    return 1 / (service_rate - arrival_rate)


def mm1_quantile(p: float, arrival_rate: float, service_rate: float) -> float:
    """Return a quantile of the sojourn time of an M/M/1 queue, which is exponential.

    Source: Kleinrock, Queueing Systems I, 5.5.

    Parameters
    ----------
    p : float
        Inside (0, 1).
    arrival_rate, service_rate : float
        Per unit of time; the first below the second.

    Returns
    -------
    float
        Units of time.

    Raises
    ------
    InvalidArgumentError
        `p` is outside (0, 1), a rate is not positive, or there is no steady state.

    Examples
    --------
    Whatever the load, the p99 is ln(100) = 4.6 times the mean.

    >>> round(mm1_quantile(0.99, 50.0, 100.0) / mm1_mean(50.0, 100.0), 3)
    4.605
    """
    _inside(p=p)
    return -math.log1p(-p) * mm1_mean(arrival_rate, service_rate)


def mm1_saturation(limit: float, service_rate: float) -> float:
    """Return the arrival rate at which the mean sojourn time of an M/M/1 queue reaches `limit`: mu - 1/T.

    Source: :func:`mm1_mean`, solved for the arrival rate.

    Parameters
    ----------
    limit : float
        Mean sojourn time that is still good, in units of time.
    service_rate : float
        Per unit of time.

    Returns
    -------
    float
        Arrivals per unit of time.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive, or the limit is not above the mean service time.

    Examples
    --------
    If 50 ms are good enough, a server of 100 a second takes 80 a second.

    >>> round(mm1_saturation(0.05, 100.0), 6)
    80.0
    """
    _positive(limit=limit, service_rate=service_rate)
    if limit * service_rate <= 1:
        raise InvalidArgumentError(f"a limit of {limit:g} is not above the mean service time {1 / service_rate:g}")
    return service_rate - 1 / limit


def mg1_waiting(arrival_rate: float, service_mean: float, service_square: float) -> float:
    """Return the mean waiting time of an M/G/1 queue: lambda E[S^2] / (2 (1 - rho)).

    Source: Pollaczek and Khinchine; Kleinrock I, 5.6.

    Parameters
    ----------
    arrival_rate : float
        Per unit of time.
    service_mean : float
        E[S], units of time.
    service_square : float
        E[S^2], at least ``service_mean**2``, units of time squared.

    Returns
    -------
    float
        Units of time, the service itself not included.

    Raises
    ------
    InvalidArgumentError
        An argument is out of range, or there is no steady state.

    Examples
    --------
    Services that never vary wait half as long as exponential ones, whose E[S^2] is 2 E[S]^2.

    >>> mg1_waiting(0.5, 1.0, 1.0), mg1_waiting(0.5, 1.0, 2.0)
    (0.5, 1.0)
    """
    _positive(arrival_rate=arrival_rate, service_mean=service_mean, service_square=service_square)
    _stable(arrival_rate, 1 / service_mean)
    least = service_mean * service_mean  # Which may be infinite, where a power would be an error.
    if service_square < least * (1 - 1e-12):
        raise InvalidArgumentError(f"E[S^2] = {service_square:g} is below E[S]^2 = {least:g}")
    return arrival_rate * service_square / (2 * (1 - arrival_rate * service_mean))


def erlang_b(offered_load: float, servers: int) -> float:
    """Return the share of calls lost by `servers` without a queue.

    Source: Erlang, 1917, by the recursion B_c = aB/(c + aB).

    Parameters
    ----------
    offered_load : float
        Arrival rate times mean service time.
    servers : int
        At least 1.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive.

    Examples
    --------
    >>> round(erlang_b(2.0, 3), 6)
    0.210526
    """
    _positive(offered_load=offered_load)
    _whole(servers=servers)
    blocking = 1.0
    for c in range(1, servers + 1):
        blocking = offered_load * blocking / (c + offered_load * blocking)
    return blocking


def erlang_c(offered_load: float, servers: int) -> float:
    """Return P(an arrival must wait) in an M/M/c queue.

    Source: Erlang, 1917; C = B / (1 - (a/c)(1 - B)).

    Parameters
    ----------
    offered_load : float
        Arrival rate times mean service time, below `servers`.
    servers : int
        At least 1.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive, or there is no steady state.

    Examples
    --------
    At the same utilisation of 0.8, ten servers make half as many wait as one does.

    >>> round(erlang_c(0.8, 1), 2), round(erlang_c(8.0, 10), 2)
    (0.8, 0.41)
    """
    blocking = erlang_b(offered_load, servers)
    _stable(offered_load, servers)
    return blocking / (1 - offered_load / servers * (1 - blocking))


def mmc_mean(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Return the mean sojourn time of an M/M/c queue: C / (c mu - lambda) + 1/mu.

    Source: Erlang, 1917.

    Parameters
    ----------
    arrival_rate, service_rate : float
        Per unit of time; the second of one server.
    servers : int
        At least 1.

    Returns
    -------
    float
        Units of time.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive, or there is no steady state.

    Examples
    --------
    >>> round(mmc_mean(0.8, 1.0, 1), 6) == round(mm1_mean(0.8, 1.0), 6)
    True
    >>> round(mmc_mean(8.0, 1.0, 10), 2)
    1.2
    """
    _positive(arrival_rate=arrival_rate, service_rate=service_rate)
    return erlang_c(arrival_rate / service_rate, servers) / (servers * service_rate - arrival_rate) + 1 / service_rate


def mmc_waiting_survival(t: float, arrival_rate: float, service_rate: float, servers: int) -> float:
    """Return P(waiting time > t) in an M/M/c queue: C exp(-(c mu - lambda) t).

    Source: Kleinrock, Queueing Systems I, 5.12 and 3.5 (first come, first served).

    Parameters
    ----------
    t : float
        At least 0, units of time.
    arrival_rate, service_rate : float
        Per unit of time; the second of one server.
    servers : int
        At least 1.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    InvalidArgumentError
        An argument is out of range, or there is no steady state.

    Examples
    --------
    >>> [round(mmc_waiting_survival(t, 8.0, 1.0, 10), 3) for t in (0.0, 1.0, 2.0)]
    [0.409, 0.055, 0.007]
    """
    _positive(arrival_rate=arrival_rate, service_rate=service_rate)
    _not_negative(t=t)
    waits = erlang_c(arrival_rate / service_rate, servers)
    return waits * math.exp(-(servers * service_rate - arrival_rate) * t)


def fork_join_mean(n: int, arrival_rate: float, service_rate: float) -> float:
    """Return the mean time of a request that forks to `n` M/M/1 queues and waits for all.

    Exact for 1 and 2, (12 - rho)/(8 (mu - lambda)) (Flatto & Hahn, 1984); for 3 to 32 the approximation of Nelson &
    Tantawi (IEEE Trans. Computers 37, 1988), 0.2 to 3 % below the true value.

    Parameters
    ----------
    n : int
        Queues, from 1 to 32.
    arrival_rate, service_rate : float
        Of each queue, per unit of time; the first below the second.

    Returns
    -------
    float
        Units of time.

    Raises
    ------
    InvalidArgumentError
        Beyond 32, where the approximation was not fitted; or there is no steady state.

    Examples
    --------
    >>> [round(fork_join_mean(n, 0.5, 1.0), 3) for n in (1, 2, 8)]
    [2.0, 2.875, 4.785]
    """
    _whole(n=n)
    single = mm1_mean(arrival_rate, service_rate)
    rho = arrival_rate / service_rate
    if n == 1:
        return single
    two = (12 - rho) / 8 * single
    if n == 2:
        return two
    if not 3 <= n <= 32:
        raise InvalidArgumentError(f"the approximation holds for 1 to 32 queues, not {n!r:.80}")
    ratio = harmonic(n) / harmonic(2)
    return (ratio + 4 / 11 * (1 - ratio) * rho) * two


def two_choices_mean(arrival_rate: float, *, terms: int = 60) -> float:
    """Return the mean sojourn time (service mean 1) joining the shorter of two random queues: sum of lambda^(2^i - 2).

    Source: Mitzenmacher, IEEE TPDS 12(10), 2001; the limit of many queues.

    Parameters
    ----------
    arrival_rate : float
        At each queue, below 1: its utilisation.
    terms : int
        Of the sum, at most.

    Returns
    -------
    float
        Mean service times.

    Raises
    ------
    InvalidArgumentError
        The rate is not positive, or there is no steady state.

    Examples
    --------
    At a utilisation of 0.9 a second choice makes the time a quarter of what it is.

    >>> round(two_choices_mean(0.9), 2), round(mm1_mean(0.9, 1.0), 2)
    (2.61, 10.0)
    """
    _positive(arrival_rate=arrival_rate)
    _whole(terms=terms)
    _stable(arrival_rate, 1.0)
    return math.fsum(arrival_rate ** float(2**i - 2) for i in range(1, min(terms, 59) + 1))


def ring_load_variation(nodes: int, virtual_nodes: int) -> float:
    """Return the coefficient of variation of a node's share of a hash ring: sqrt((n - 1)/(n v + 1)).

    Source: the share is Beta(v, (n - 1) v), a sum of v of n v uniform spacings (Lamping & Veach, 2014, tabulate it).

    Parameters
    ----------
    nodes : int
        On the ring.
    virtual_nodes : int
        Points of each.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        An argument is not positive.

    Examples
    --------
    >>> round(ring_load_variation(1000, 100), 4)
    0.0999
    """
    _whole(nodes=nodes, virtual_nodes=virtual_nodes)
    return math.sqrt((nodes - 1) / (nodes * virtual_nodes + 1))


def ring_share_quantile(p: float, nodes: int, virtual_nodes: int) -> float:
    """Return a quantile of a node's load relative to the mean load.

    Source: the Beta law of :func:`ring_load_variation`; Lamping & Veach, 2014.

    Parameters
    ----------
    p : float
        Inside (0, 1).
    nodes : int
        On the ring.
    virtual_nodes : int
        Points of each.

    Returns
    -------
    float
        1 is the mean load.

    Raises
    ------
    InvalidArgumentError
        An argument is out of range.

    Examples
    --------
    The published 99 % interval of a node with 100 points: 0.76 to 1.28.

    >>> [round(ring_share_quantile(p, 1000, 100), 2) for p in (0.005, 0.995)]
    [0.76, 1.28]
    """
    _whole(nodes=nodes, virtual_nodes=virtual_nodes)
    _inside(p=p)
    return 1.0 if nodes == 1 else float(nodes * betaincinv(virtual_nodes, (nodes - 1) * virtual_nodes, p))


def ring_max_over_mean(nodes: int, virtual_nodes: int) -> float:
    """Return the median of the fullest node's load relative to the mean, taking the nodes' shares as independent.

    Source: the 0.5^(1/n) quantile of the Beta law; the shares sum to 1, so their true dependence is slightly negative.

    Parameters
    ----------
    nodes : int
        On the ring.
    virtual_nodes : int
        Points of each.

    Returns
    -------
    float
        1 is the mean load.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive.

    Examples
    --------
    What virtual nodes are for: of eight nodes with one point each the fullest holds 2.4 times its share.

    >>> [round(ring_max_over_mean(8, points), 2) for points in (1, 10, 150)]
    [2.39, 1.43, 1.11]
    """
    return ring_share_quantile(leaf_quantile(0.5, nodes), nodes, virtual_nodes)


def top_k_kept_probability(k: int, nodes: int, kept: int) -> float:
    """Return P(a top-k over equal nodes is exact when each sends only `kept` rows).

    It is, where no node holds more than `kept` of the k. Source: the k best rows fall on nodes uniformly; by the
    exponential generating function (sum_{j<=kept} x^j/j!)^n.

    Parameters
    ----------
    k : int
        Rows of the answer.
    nodes : int
        That hold as many rows each.
    kept : int
        Rows that each node sends.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    InvalidArgumentError
        An argument is not positive.

    Examples
    --------
    >>> round(top_k_kept_probability(10, 100, 1), 3)
    0.628
    """
    _whole(k=k, nodes=nodes, kept=kept)
    single = np.exp(-gammaln(np.arange(min(kept, k) + 1) + 1.0))
    result, power = np.array([1.0]), nodes
    while power:
        if power & 1:
            result = np.convolve(result, single)[: k + 1]
        single = np.convolve(single, single)[: k + 1]
        power >>= 1
    return float(result[k] * math.exp(gammaln(k + 1) - k * math.log(nodes))) if len(result) > k else 0.0
