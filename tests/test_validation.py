"""Engines and placements against theory; closed forms against integrals; intervals against their own promise."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import integrate, stats

from mktsim.errors import InvalidArgumentError
from mktsim.study import analytic
from mktsim.study.claims import Claim
from mktsim.study.coverage import interval_coverage
from mktsim.study.statistics import Interval
from mktsim.study.validation import Validation, validate

_INF = math.inf


def test_theory_and_publications_are_met() -> None:
    """Sixty rows and more, both engines: nine of ten covered at 95 %, none off by more than its stated tolerance."""
    found = validate(scale=0.1)
    frame = found.frame
    assert len(frame) >= 60
    assert {"vectorised", "event", "transform", "placement"} <= set(frame["engine"])
    assert found.covered_share >= 0.9, str(found)
    assert not (frame["verdict"] == "off").any(), str(found)
    assert found.passed
    # Beyond chance: a wrong formula is many half-widths off, even where few samples are allowed to be far off.
    half = (frame["high"] - frame["low"]).clip(lower=1e-12) / 2
    nearest = frame["estimate"].clip(frame["theory_low"], frame["theory_high"])
    apart = (frame["estimate"] - nearest).abs() / half
    assert apart.max() < 2.7, frame.loc[apart.idxmax()]
    assert (frame["low"] <= frame["estimate"]).all()
    assert (frame["source"] != "").all()
    groups = {"maximum", "k of N", "hedge", "window", "M/M/1", "M/G/1", "M/M/c", "Erlang B", "Erlang C", "fork-join",
              "two choices", "ring", "slow leaves", "top-k", "million leaves"}  # fmt: skip
    assert groups <= set(frame["group"])
    assert found._repr_html_().count("<tr") == len(frame) + 1


@pytest.mark.soak
def test_theory_is_met_at_full_size_with_any_seed() -> None:
    """At scale 1 with three seeds."""
    for seed in range(3):
        found = validate(scale=1.0, seed=seed)
        assert found.passed, str(found)


def test_a_wrong_claim_is_told_from_an_unlucky_one() -> None:
    """Covered, within tolerance, off; ranges; HTML escaped."""

    def claim(theory: float | tuple[float, float], tolerance: float = 0.1) -> Claim:
        interval = Interval(1.0, 0.95, 1.05, 100)
        return Claim.of("<b>", "mean", "event", theory, interval, source="<i>", tolerance=tolerance)

    assert claim(1.04).verdict == "covered"
    assert claim(1.08).verdict == "within tolerance"
    assert claim(1.2).verdict == "off"
    assert claim((1.04, 1.2)).verdict == "covered"
    assert claim((1.0, 1.2)).error == 0.0
    assert claim((1.2, 1.3)).error == pytest.approx(-1 / 6)
    nine = (claim(1.0),) * 9
    assert Validation((*nine, claim(1.08)), 1, 1.0).passed
    assert not Validation((*nine, claim(1.2)), 1, 1.0).passed
    assert not Validation((*nine, claim(1.08), claim(1.08)), 1, 1.0).passed
    shown = Validation(nine, 1, 1.0)._repr_html_()
    assert "<b>" not in shown
    assert "<i>" not in shown
    for arguments in ({"scale": 0.0}, {"scale": math.nan}, {"seed": -1}, {"executor": 3}):
        with pytest.raises(InvalidArgumentError):
            validate(**arguments)  # type: ignore[arg-type]


# --- coverage ------------------------------------------------------------------------------------------------------


def test_twenty_long_replications_cover_as_they_say() -> None:
    """1,000 macro-runs of M/M/1 at 0.8: nominal 95 % is within the binomial error; and hardly one warns."""
    found = interval_coverage(replications=20, observations=5000, warm_up=500, seed=2)
    assert found.covered.n == 1000
    assert found.honest, str(found)
    assert found.warned < 0.05


def test_ten_short_replications_do_not_and_warn() -> None:
    """The known under-coverage: far below 95 %, with a warmed-up start as well, and nearly every run says so."""
    cold = interval_coverage(replications=10, observations=200, seed=1)
    warm = interval_coverage(replications=10, observations=200, warm_up=200, seed=1)
    assert cold.covered.high < 0.85
    assert warm.covered.high < 0.94
    assert not cold.honest
    assert not warm.honest
    assert min(cold.warned, warm.warned) > 0.9


@pytest.mark.soak
def test_coverage_holds_for_other_seeds() -> None:
    """Three seeds, and a queue at 0.5, longer replications."""
    for seed in (3, 4, 5):
        assert interval_coverage(replications=20, observations=10_000, warm_up=1000, seed=seed).honest
        assert interval_coverage(replications=20, observations=2_000, warm_up=200, utilisation=0.5, seed=seed).honest


# --- closed forms against integrals --------------------------------------------------------------------------------


def _mean(survival: object, *, upper: float = _INF) -> float:
    return float(integrate.quad(survival, 0, upper, limit=400)[0])  # type: ignore[arg-type]


def test_maxima_and_order_statistics_equal_their_integrals() -> None:
    """The mean of k of n exponentials is the integral of P(fewer than k have answered by t)."""
    for k, n in ((1, 1), (1, 8), (7, 10), (10, 10), (95, 100)):
        survival = lambda t, k=k, n=n: stats.binom.cdf(k - 1, n, -math.expm1(-t))  # noqa: E731
        assert _mean(survival, upper=60.0) == pytest.approx(analytic.k_of_n_exponentials(k, n), rel=1e-6)
        for p in (0.1, 0.5, 0.99):
            u = analytic.k_of_n_leaf_quantile(p, k, n)
            assert stats.binom.sf(k - 1, n, u) == pytest.approx(p)
    assert analytic.exceedance(0.99, 100) == pytest.approx(1 - analytic.leaf_quantile(0.99, 100))
    assert analytic.harmonic(1000) == pytest.approx(math.fsum(1 / i for i in range(1, 1001)))


def test_a_window_equals_the_sum_of_its_phases() -> None:
    """While all c are busy the next is free after the minimum of c; the last c are a maximum."""
    for n, c in ((50, 6), (100, 1), (5, 6)):
        busy = min(c, n)
        minimum = _mean(lambda t, busy=busy: math.exp(-busy * t))
        last = _mean(lambda t, busy=busy: 1 - (-math.expm1(-t)) ** busy)
        assert (n - busy) * minimum + last == pytest.approx(analytic.windowed_exponentials(n, c))


def test_hedges_equal_their_integrals() -> None:
    """The mean of the earlier copy is the integral of S(t) S(t - d); its extra load is S(d)."""
    for delay in (0.0, 0.3, 2.0):
        survival = lambda t, d=delay: analytic.hedged_survival(lambda s: math.exp(-max(s, 0.0)), t, d)  # noqa: E731
        mean = _mean(survival, upper=delay or 1.0) + integrate.quad(survival, delay or 1.0, _INF)[0]
        assert mean == pytest.approx(analytic.hedged_exponential_mean(delay))
        density = integrate.quad(lambda t: math.exp(-t), delay, _INF)[0]
        assert analytic.hedge_extra_load(lambda t: math.exp(-t), delay) == pytest.approx(density)


def test_single_queues_equal_integrals_of_their_laws() -> None:
    """M/M/1 by its density; M/G/1 by E[S^2] as an integral; M/M/c by the integral of its waiting time's survival."""
    assert _mean(lambda t: math.exp(-(1 - 0.7) * t)) == pytest.approx(analytic.mm1_mean(0.7, 1.0))
    quantile = analytic.mm1_quantile(0.99, 0.7, 1.0)
    assert integrate.quad(lambda t: 0.3 * math.exp(-0.3 * t), 0, quantile)[0] == pytest.approx(0.99)
    lognormal = stats.lognorm(0.5)
    square = integrate.quad(lambda t: t * t * lognormal.pdf(t), 0, _INF)[0]
    mean = integrate.quad(lambda t: t * lognormal.pdf(t), 0, _INF)[0]
    found = analytic.mg1_waiting(0.5, mean, square)
    # Pollaczek and Khinchine: the mean wait is rho / (1 - rho) times the mean residual service.
    residual = integrate.quad(lambda t: t * lognormal.sf(t) / mean, 0, _INF)[0]
    assert found == pytest.approx(0.5 * mean / (1 - 0.5 * mean) * residual)
    for servers, rho in product((1, 2, 8), (0.3, 0.9)):
        rate = servers * rho
        survival = lambda t, rate=rate, c=servers: analytic.mmc_waiting_survival(t, rate, 1.0, c)  # noqa: E731
        assert _mean(survival) + 1 == pytest.approx(analytic.mmc_mean(rate, 1.0, servers))
    assert analytic.mm1_mean(analytic.mm1_saturation(5.0, 1.0), 1.0) == pytest.approx(5.0)


def test_erlang_b_equals_its_integral() -> None:
    """1 / B(a, c) is the integral of a e^(-a t) (1 + t)^c (Jagerman, 1974)."""
    for load, servers in ((2.0, 3), (8.0, 10), (0.5, 1)):
        inverse = integrate.quad(lambda t, a=load, c=servers: a * math.exp(-a * t) * (1 + t) ** c, 0, _INF)[0]
        assert analytic.erlang_b(load, servers) == pytest.approx(1 / inverse)


def test_fork_join_is_between_its_bounds() -> None:
    """One queue below; independent queues above: the integral of 1 - F^n, since the two are associated."""
    for n, rho in product((2, 8, 32), (0.2, 0.8)):
        independent = analytic.mean_of_maximum(lambda t, r=1 - rho: -math.expm1(-r * t), n)
        assert analytic.mm1_mean(rho, 1.0) < analytic.fork_join_mean(n, rho, 1.0) < independent
    # Without load, the branches are independent exponentials.
    assert analytic.fork_join_mean(2, 1e-9, 1.0) == pytest.approx(_mean(lambda t: 1 - (-math.expm1(-t)) ** 2))


def test_the_ring_equals_integrals_of_its_beta_law() -> None:
    """Variation and quantiles by numerical integration of the density."""
    for nodes, points in ((10, 20), (100, 10)):
        law = stats.beta(points, (nodes - 1) * points)
        mean = integrate.quad(lambda x, law=law: x * law.pdf(x), 0, 1)[0]
        square = integrate.quad(lambda x, law=law: x * x * law.pdf(x), 0, 1)[0]
        assert math.sqrt(square - mean**2) / mean == pytest.approx(
            analytic.ring_load_variation(nodes, points), rel=1e-5
        )
        bound = analytic.ring_share_quantile(0.9, nodes, points) / nodes
        assert integrate.quad(law.pdf, 0, bound)[0] == pytest.approx(0.9, rel=1e-6)
        most = analytic.ring_max_over_mean(nodes, points) / nodes
        assert law.cdf(most) ** nodes == pytest.approx(0.5)
    assert analytic.moved_share(10) == pytest.approx(1 / 11)


def test_one_row_each_equals_falling_factorials() -> None:
    """P(all different) is n (n-1) ... / n^k; and slow shares by their complement."""
    exact = math.prod((100 - i) / 100 for i in range(10))
    assert analytic.top_k_kept_probability(10, 100, 1) == pytest.approx(exact)
    assert analytic.slow_share(100, 0.01) == pytest.approx(1 - 0.99**100)


def test_two_choices_equal_the_fixed_point() -> None:
    """Mitzenmacher's differential equations at rest: the tails s_i = lambda^(2^i - 1), and Little's law."""
    rate = 0.9
    tails = [1.0]
    while tails[-1] > 1e-12:
        tails.append(rate * tails[-1] ** 2)
    assert sum(tails[1:]) / rate == pytest.approx(analytic.two_choices_mean(rate))


@pytest.mark.parametrize(
    "call",
    [
        lambda: analytic.exceedance(1.0, 5),
        lambda: analytic.k_of_n_leaf_quantile(0.5, 6, 5),
        lambda: analytic.mm1_saturation(0.5, 1.0),
        lambda: analytic.mmc_waiting_survival(-1.0, 0.5, 1.0, 1),
        lambda: analytic.mmc_waiting_survival(1.0, 5.0, 1.0, 1),
        lambda: analytic.hedge_extra_load(np.exp, -1.0),
        lambda: analytic.moved_share(0),
    ],
)
def test_newer_closed_forms_refuse_what_they_do_not_cover(call: object) -> None:
    """Named errors."""
    with pytest.raises(InvalidArgumentError):
        call()  # type: ignore[operator]
