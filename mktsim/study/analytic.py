"""Closed forms: what theory says a scatter, a queue or a ring must do. Each is held against simulation in the tests.

Times are in the unit of the argument (a mean in ms gives ms). Formulas name their source.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.integrate import quad
from scipy.special import betaincinv, digamma, gammaln

from mktsim.errors import InvalidArgumentError


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float | np.integer | np.floating) or not 0 < value < math.inf:
            raise InvalidArgumentError(f"{name} must be positive and finite, not {value!r:.80}")


def _stable(arrival_rate: float, capacity: float) -> None:
    if arrival_rate >= capacity:
        raise InvalidArgumentError(f"no steady state: arrival rate {arrival_rate:g} is not below capacity {capacity:g}")


def harmonic(n: float) -> float:
    """H_n = 1 + 1/2 + ... + 1/n; H_0 = 0.

    Source: H_n = digamma(n + 1) + Euler's constant (Abramowitz & Stegun 6.3.2).

    Examples
    --------
    >>> round(harmonic(4), 6)
    2.083333
    """
    if not 0 <= n < math.inf:
        raise InvalidArgumentError(f"n must be at least 0 and finite, not {n!r:.80}")
    return float(digamma(n + 1) + np.euler_gamma)


def max_of_exponentials(n: int, *, mean: float = 1.0) -> float:
    """Mean of the slowest of `n` exponential leaves: mean * H_n. Source: Renyi, 1953."""
    return k_of_n_exponentials(n, n, mean=mean)


def k_of_n_exponentials(k: int, n: int, *, mean: float = 1.0) -> float:
    """Mean time until the first `k` of `n` exponential leaves have answered: mean * (H_n - H_(n-k)).

    Source: Renyi, 1953.
    """
    _positive(k=k, n=n, mean=mean)
    if k > n:
        raise InvalidArgumentError(f"k must be at most n, not {k} of {n}")
    return mean * (harmonic(n) - harmonic(n - k))


def windowed_exponentials(n: int, window: int, *, mean: float = 1.0) -> float:
    """Mean time of `n` exponential calls, at most `window` in flight: mean * ((n - c)/c + H_c).

    While all c connections are busy one becomes free every mean/c; the last c are a maximum. Source: order statistics
    of the exponential and its lack of memory (Renyi, 1953).
    """
    _positive(n=n, window=window, mean=mean)
    c = min(window, n)
    return mean * ((n - c) / c + harmonic(c))


def slow_share(n: int, leaf_share: float) -> float:
    """Share of requests with at least one slow leaf among `n`: 1 - (1 - s)^n. Source: Dean & Barroso, CACM 56(2), 2013.

    Examples
    --------
    >>> round(slow_share(100, 0.01), 6)
    0.633968
    """
    _positive(n=n)
    if not 0 <= leaf_share <= 1:
        raise InvalidArgumentError(f"leaf_share must be from 0 to 1, not {leaf_share!r:.80}")
    return -math.expm1(n * math.log1p(-leaf_share)) if leaf_share < 1 else 1.0


def leaf_quantile(p: float, n: int) -> float:
    """Which quantile of a leaf is the request's quantile `p` when it waits for all `n`: p^(1/n).

    Source: the maximum of n independent leaves has distribution F(t)^n.
    """
    _positive(n=n)
    if not 0 < p < 1:
        raise InvalidArgumentError(f"p must be inside (0, 1), not {p!r:.80}")
    return float(p ** (1 / n))


def exceedance(p: float, n: int) -> float:
    """How rare a leaf's time is that `n` leaves all keep with probability `p`: 1 - p^(1/n), without cancellation.

    Source: as :func:`leaf_quantile`; for a million leaves that number itself has only 10 good digits of tail left.

    Examples
    --------
    >>> f"{exceedance(0.5, 1_000_000):.6e}"
    '6.931469e-07'
    """
    _positive(n=n)
    if not 0 < p < 1:
        raise InvalidArgumentError(f"p must be inside (0, 1), not {p!r:.80}")
    return -math.expm1(math.log(p) / n)


def k_of_n_leaf_quantile(p: float, k: int, n: int) -> float:
    """Which quantile of a leaf is the request's quantile `p` when it waits for the first `k` of `n`.

    Source: U_(k) of n uniforms is Beta(k, n - k + 1) (David & Nagaraja, Order Statistics, 3rd ed., 2.1).

    Examples
    --------
    >>> round(k_of_n_leaf_quantile(0.99, 95, 100), 4), k_of_n_leaf_quantile(0.99, 100, 100) == 0.99 ** 0.01
    (0.9819, True)
    """
    _positive(k=k, n=n)
    if not 0 < p < 1 or k > n:
        raise InvalidArgumentError(f"needs 0 < p < 1 and k <= n, not p = {p!r:.80}, k = {k!r:.80}, n = {n!r:.80}")
    return leaf_quantile(p, n) if k == n else float(betaincinv(k, n - k + 1, p))


def mean_of_maximum(cdf: Callable[[float], float], n: int, *, upper: float = math.inf) -> float:
    """Mean of the slowest of `n` leaves of any distribution: the integral of 1 - F(t)^n, numerically."""
    _positive(n=n)

    def survival(t: float) -> float:
        below = float(cdf(t))
        return 1.0 if below <= 0 else -math.expm1(n * math.log(below))

    return float(quad(survival, 0, upper, limit=500)[0])


def hedged_survival(survival: Callable[[float], float], t: float, delay: float) -> float:
    """P(no answer by `t`) when a twin starts after `delay` on an independent replica: S(t) S(t - d).

    Source: the minimum of two independent times (Dean & Barroso, CACM 56(2), 2013, describe the policy).
    """
    return survival(t) * (survival(t - delay) if t > delay else 1.0)


def hedged_exponential_mean(delay: float, *, mean: float = 1.0) -> float:
    """Mean time of an exponential call hedged after `delay`: mean * (1 - exp(-d/mean)/2).

    Source: the integral of S(t) S(t - d).
    """
    _positive(mean=mean)
    if not delay >= 0:
        raise InvalidArgumentError(f"delay must be at least 0, not {delay!r:.80}")
    return mean * (1 - math.exp(-delay / mean) / 2)


def hedge_extra_load(survival: Callable[[float], float], delay: float) -> float:
    """Share of second copies that a hedge after `delay` sends: S(d), so 5 % at the leaf's p95.

    Source: Dean & Barroso, CACM 56(2), 2013.
    """
    if not delay >= 0:
        raise InvalidArgumentError(f"delay must be at least 0, not {delay!r:.80}")
    return float(survival(delay))


def moved_share(nodes: int) -> float:
    """Share of the keys that one more node takes over from `nodes`: 1/(n + 1), all of them to the new one.

    Source: Karger et al., STOC 1997; Lamping & Veach, 2014.
    """
    _positive(nodes=nodes)
    return 1 / (nodes + 1)


def mm1_mean(arrival_rate: float, service_rate: float) -> float:
    """Mean sojourn time of an M/M/1 queue: 1/(mu - lambda). Source: Kleinrock, Queueing Systems I, 3.2."""
    _positive(arrival_rate=arrival_rate, service_rate=service_rate)
    _stable(arrival_rate, service_rate)
    return 1 / (service_rate - arrival_rate)


def mm1_quantile(p: float, arrival_rate: float, service_rate: float) -> float:
    """Quantile of the sojourn time of an M/M/1 queue, which is exponential.

    Source: Kleinrock, Queueing Systems I, 5.5.
    """
    if not 0 < p < 1:
        raise InvalidArgumentError(f"p must be inside (0, 1), not {p!r:.80}")
    return -math.log1p(-p) * mm1_mean(arrival_rate, service_rate)


def mm1_saturation(limit: float, service_rate: float) -> float:
    """Arrival rate at which the mean sojourn time of an M/M/1 queue reaches `limit`: mu - 1/T.

    Source: :func:`mm1_mean`, solved for the arrival rate.
    """
    _positive(limit=limit, service_rate=service_rate)
    if limit * service_rate <= 1:
        raise InvalidArgumentError(f"a limit of {limit:g} is not above the mean service time {1 / service_rate:g}")
    return service_rate - 1 / limit


def mg1_waiting(arrival_rate: float, service_mean: float, service_square: float) -> float:
    """Mean waiting time of an M/G/1 queue: lambda E[S^2] / (2 (1 - rho)).

    Source: Pollaczek and Khinchine; Kleinrock I, 5.6.
    """
    _positive(arrival_rate=arrival_rate, service_mean=service_mean, service_square=service_square)
    _stable(arrival_rate, 1 / service_mean)
    if service_square < service_mean**2 * (1 - 1e-12):
        raise InvalidArgumentError(f"E[S^2] = {service_square:g} is below E[S]^2 = {service_mean**2:g}")
    return arrival_rate * service_square / (2 * (1 - arrival_rate * service_mean))


def erlang_b(offered_load: float, servers: int) -> float:
    """Share of calls lost by `servers` without a queue. Source: Erlang, 1917, by the recursion B_c = aB/(c + aB).

    Examples
    --------
    >>> round(erlang_b(2.0, 3), 6)
    0.210526
    """
    _positive(offered_load=offered_load, servers=servers)
    blocking = 1.0
    for c in range(1, servers + 1):
        blocking = offered_load * blocking / (c + offered_load * blocking)
    return blocking


def erlang_c(offered_load: float, servers: int) -> float:
    """P(an arrival must wait) in an M/M/c queue. Source: Erlang, 1917; C = B / (1 - (a/c)(1 - B))."""
    blocking = erlang_b(offered_load, servers)
    _stable(offered_load, servers)
    return blocking / (1 - offered_load / servers * (1 - blocking))


def mmc_mean(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Mean sojourn time of an M/M/c queue: C / (c mu - lambda) + 1/mu. Source: Erlang, 1917."""
    _positive(arrival_rate=arrival_rate, service_rate=service_rate)
    return erlang_c(arrival_rate / service_rate, servers) / (servers * service_rate - arrival_rate) + 1 / service_rate


def mmc_waiting_survival(t: float, arrival_rate: float, service_rate: float, servers: int) -> float:
    """P(waiting time > t) in an M/M/c queue: C exp(-(c mu - lambda) t).

    Source: Kleinrock, Queueing Systems I, 5.12 and 3.5 (first come, first served).
    """
    _positive(arrival_rate=arrival_rate, service_rate=service_rate)
    if not t >= 0:
        raise InvalidArgumentError(f"t must be at least 0, not {t!r:.80}")
    waits = erlang_c(arrival_rate / service_rate, servers)
    return waits * math.exp(-(servers * service_rate - arrival_rate) * t)


def fork_join_mean(n: int, arrival_rate: float, service_rate: float) -> float:
    """Mean time of a request that forks to `n` M/M/1 queues and waits for all.

    Exact for 1 and 2, (12 - rho)/(8 (mu - lambda)) (Flatto & Hahn, 1984); for 3 to 32 the approximation of Nelson &
    Tantawi (IEEE Trans. Computers 37, 1988), 0.2 to 3 % below the true value.

    Raises
    ------
    InvalidArgumentError
        Beyond 32, where the approximation was not fitted.
    """
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
    """Mean sojourn time (service mean 1) joining the shorter of two random queues: sum of lambda^(2^i - 2).

    Source: Mitzenmacher, IEEE TPDS 12(10), 2001; the limit of many queues.
    """
    _positive(arrival_rate=arrival_rate)
    _stable(arrival_rate, 1.0)
    return math.fsum(arrival_rate ** float(2**i - 2) for i in range(1, terms) if 2**i < 1 << 60)


def ring_load_variation(nodes: int, virtual_nodes: int) -> float:
    """Coefficient of variation of a node's share of a hash ring: sqrt((n - 1)/(n v + 1)).

    Source: the share is Beta(v, (n - 1) v), a sum of v of n v uniform spacings (Lamping & Veach, 2014, tabulate it).

    Examples
    --------
    >>> round(ring_load_variation(1000, 100), 4)
    0.0999
    """
    _positive(nodes=nodes, virtual_nodes=virtual_nodes)
    return math.sqrt((nodes - 1) / (nodes * virtual_nodes + 1))


def ring_share_quantile(p: float, nodes: int, virtual_nodes: int) -> float:
    """Quantile of a node's load relative to the mean load, by the same Beta law."""
    _positive(nodes=nodes, virtual_nodes=virtual_nodes)
    if not 0 < p < 1:
        raise InvalidArgumentError(f"p must be inside (0, 1), not {p!r:.80}")
    return 1.0 if nodes == 1 else float(nodes * betaincinv(virtual_nodes, (nodes - 1) * virtual_nodes, p))


def ring_max_over_mean(nodes: int, virtual_nodes: int) -> float:
    """Median of the fullest node's load relative to the mean, taking the nodes' shares as independent.

    Source: the 0.5^(1/n) quantile of the Beta law; the shares sum to 1, so their true dependence is slightly negative.
    """
    return ring_share_quantile(leaf_quantile(0.5, nodes), nodes, virtual_nodes)


def top_k_kept_probability(k: int, nodes: int, kept: int) -> float:
    """P(a top-k over equal nodes is exact when each sends only `kept` rows): no node holds more than `kept` of the k.

    Source: the k best rows fall on nodes uniformly; by the exponential generating function (sum_{j<=kept} x^j/j!)^n.

    Examples
    --------
    >>> round(top_k_kept_probability(10, 100, 1), 3)
    0.628
    """
    _positive(k=k, nodes=nodes, kept=kept)
    single = np.exp(-gammaln(np.arange(min(kept, k) + 1) + 1.0))
    result, power = np.array([1.0]), nodes
    while power:
        if power & 1:
            result = np.convolve(result, single)[: k + 1]
        single = np.convolve(single, single)[: k + 1]
        power >>= 1
    return float(result[k] * math.exp(gammaln(k + 1) - k * math.log(nodes))) if len(result) > k else 0.0
