"""Engines and placements against theory; closed forms against integrals; intervals against their own promise."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from mktsim.errors import InvalidArgumentError
from mktsim.fanout import QueryCoordinator
from mktsim.placement import ConsistentHashRing, TwoChoicesHash
from mktsim.sim.network import SimNetwork
from mktsim.streams import Streams
from mktsim.study import analytic, checks, queue_checks
from mktsim.study.claims import Claim, Kind, Size
from mktsim.study.coverage import interval_coverage
from mktsim.study.load import run_load
from mktsim.study.queue_checks import losses
from mktsim.study.statistics import Interval
from mktsim.study.tail_at_scale import PLATFORM
from mktsim.study.validation import Validation, run_check, validate

_INF = math.inf


@pytest.fixture(scope="module")
def small() -> Validation:
    """The whole validation at the smallest scale."""
    return validate(scale=0.1)


def wrong(claim: Claim, factor: float) -> Claim:
    """The same row where theory, or what is printed, is wrong by a factor."""
    scaled = {name: factor * getattr(claim, name) for name in ("theory", "theory_low", "theory_high")}
    return replace(claim, **scaled)


def test_theory_and_publications_are_met(small: Validation) -> None:
    """Every claim of the specification is a row: nine of ten covered at 95 %, none off."""
    frame = small.frame
    assert len(frame) >= 150
    assert small.passed, str(small)
    assert small.covered_share >= 0.9
    assert not (frame["verdict"] == "off").any(), str(small)
    assert frame["half_widths"].max() <= 2.7
    assert (frame["low"] <= frame["estimate"]).all()
    assert (frame["source"] != "").all()
    groups = {"maximum", "k of N", "hedge", "window", "M/M/1", "M/G/1", "M/M/c", "Erlang B", "Erlang C", "fork-join",
              "two choices", "ring", "slow leaves", "top-k", "million leaves", "table 1", "hedged reads", "tied reads",
              "platform"}  # fmt: skip
    assert groups <= set(frame["group"])
    assert set(frame["kind"]) == {"closed form", "published", "input", "fitted", "predicted", "missed"}
    assert small._repr_html_().count("<tr") == len(frame) + 1


@pytest.mark.parametrize("factor", [1.5, 1 / 1.5])
def test_no_family_of_rows_passes_with_a_theory_that_is_wrong_by_half(small: Validation, factor: float) -> None:
    """One group at a time, all others being right, at the smallest scale; a bound may be too high."""
    for group in set(small.frame["group"]) - ({"caps"} if factor > 1 else set()):
        claims = tuple(wrong(claim, factor) if claim.group == group else claim for claim in small.claims)
        assert not replace(small, claims=claims).passed, group


@pytest.mark.parametrize("factor", [3.0, 1 / 3.0])
def test_no_single_row_passes_with_a_theory_that_is_three_times_off(small: Validation, factor: float) -> None:
    """Also where samples are few and the estimate is below, which an error of -100 % would never show."""
    for claim in small.claims:
        if claim.theory_low > 0 or factor < 1:
            assert wrong(claim, factor).verdict == "off", claim
        assert claim.tolerance <= 0.5


def test_erlang_b_times_1_9_and_a_million_leaves_times_50_do_not_pass(
    small: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone is off; the first by way of the formula itself."""
    exact = analytic.erlang_b
    monkeypatch.setattr(analytic, "erlang_b", lambda load, servers: 1.9 * exact(load, servers))
    claims = run_check((losses, small.seed, 0.1))
    assert {claim.verdict for claim in claims} == {"off"}
    million = [wrong(claim, 50) for claim in small.claims if claim.group == "million leaves"]
    assert {claim.verdict for claim in million} == {"off"}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_theory_is_met_at_full_size_with_any_seed(seed: int) -> None:
    """At scale 1; and no family passes with a theory that is wrong by a quarter."""
    found = validate(scale=1.0, seed=seed)
    assert found.passed, str(found)
    for group, factor in product(set(found.frame["group"]), (1.25, 0.8)):
        claims = tuple(wrong(claim, factor) if claim.group == group else claim for claim in found.claims)
        assert (group == "caps" and factor > 1) or not replace(found, claims=claims).passed, (group, factor)


def test_queues_are_simulated_by_both_engines_and_by_the_recursion_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row says gave its estimate did: Erlang C, M/M/2, M/M/8, the M/G/1 wait and fork-joins of 8 and 32."""
    ran: list[str] = []

    def spied(*arguments: Any, **options: Any) -> Any:
        result = run_load(*arguments, **options)
        ran.append(result.engine)
        return result

    monkeypatch.setattr(queue_checks, "run_load", spied)
    monkeypatch.setattr(queue_checks, "_ENGINES", tuple((engine, 2, 150, 1.0) for engine in ("vectorised", "event")))
    rows = queue_checks.queues(Streams(1), 0.1)
    assert ran.count("vectorised") == ran.count("event") > 0
    for engine in ("vectorised", "event"):
        mine = {claim.claim for claim in rows if claim.engine == engine}
        assert mine >= {
            "P(wait) in M/M/2 at 0.6", "P(wait > 1) in M/M/2 at 0.6", "mean sojourn time of M/M/2 at 0.6",
            "P(wait) in M/M/8 at 0.7", "mean sojourn time of M/M/8 at 0.7", "mean wait at 0.5, lognormal service",
            "mean of a 8-way fork-join at 0.5", "mean of a 32-way fork-join at 0.5",
        }  # fmt: skip
    monkeypatch.setattr(queue_checks, "run_load", None)  # The recursion needs no engine, and does not say that it does.
    assert {claim.engine for claim in queue_checks.long_queues(Streams(1), 0.1)} == {"recursion"}


def test_choices_rings_and_merges_are_this_packages_own(small: Validation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go to simulated hosts, keys to TwoChoicesHash, shares are a ring's, and a coordinator merges."""
    pairs = set(zip(small.frame["group"], small.frame["engine"], strict=True))
    for owner, name, check, group, engine in (
        (SimNetwork, "call", queue_checks.two_choices, "two choices", "host"),
        (SimNetwork, "call", losses, "Erlang B", "host"),
        (TwoChoicesHash, "assign", checks.choices, "two choices", "placement"),
        (ConsistentHashRing, "shares", checks.rings, "ring", "placement"),
        (QueryCoordinator, "query", checks.top_k, "top-k", "merge"),
    ):

        def broken(*_arguments: Any, **_options: Any) -> Any:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, broken)
            with pytest.raises(ZeroDivisionError):
                check(Streams(1), 0.1)
        assert (group, engine) in pairs
    assert {engine for group, engine in pairs if group in ("ring", "top-k", "Erlang B")} == {
        "placement",
        "merge",
        "host",
    }


def test_published_numbers_say_whether_a_model_was_fitted_to_them(small: Validation) -> None:
    """Tables 1 and 2, the hedged reads and the platform's table: all of their cells, and none counts as chance."""
    frame = small.frame.set_index("group")
    assert frame.loc["table 1", "kind"].tolist() == ["closed form"] * 2 + ["fitted"] * 9
    assert frame.loc["tied reads", "kind"].value_counts().to_dict() == {
        "closed form": 12, "missed": 8, "fitted": 4, "predicted": 4,
    }  # fmt: skip
    assert set(frame.loc["hedged reads", "theory"]) >= {74.0, 1800.0, 0.02}
    platform = frame.loc["platform"]
    assert set(platform["theory"]) == {ms for row in PLATFORM.values() for column in row for ms in column}
    assert platform["kind"].value_counts().to_dict() == {"fitted": 24, "predicted": 10, "missed": 6}
    assert not any(claim.is_by_chance for claim in small.claims if claim.kind in ("fitted", "predicted", "missed"))


def test_fewer_samples_widen_a_tolerance_by_their_root_and_never_to_one() -> None:
    """A floor of 20 of 40 samples widens by the root of 2, whatever the scale was."""
    assert Size.of(0.1, 40, 20) == Size(20, 0.5)
    assert Size.of(3.0, 40, 20) == Size(120, 1.0)
    interval = Interval(1.0, 0.95, 1.05, 20)
    claim = Claim.of("g", "c", "event", 1.0, interval, source="s", tolerance=0.1, share=0.5)
    assert claim.tolerance == pytest.approx(0.1 * math.sqrt(2))
    assert Claim.of("g", "c", "event", 1.0, interval, source="s", tolerance=0.1, share=1e-4).tolerance == 0.5


def test_a_wrong_claim_is_told_from_an_unlucky_one() -> None:
    """Covered, within tolerance, off by tolerance or by half-widths; ranges; HTML escaped."""

    def claim(theory: float | tuple[float, float], tolerance: float = 0.1, kind: Kind = "closed form") -> Claim:
        interval = Interval(1.0, 0.95, 1.05, 100)
        return Claim.of("<b>", "mean", "event", theory, interval, source="<i>", tolerance=tolerance, kind=kind)

    assert claim(1.04).verdict == "covered"
    assert claim(1.08).verdict == "within tolerance"
    assert claim(1.2).verdict == "off"
    assert claim(1.13, tolerance=0.5).verdict == "within tolerance"
    assert claim(1.14, tolerance=0.5).verdict == "off"  # 2.8 half-widths, whatever the tolerance.
    assert claim((1.04, 1.2)).verdict == "covered"
    assert claim((1.0, 1.2)).error == 0.0
    assert claim((1.2, 1.3)).error == pytest.approx(-1 / 6)
    lopsided = Claim.of("g", "c", "event", 1.3, Interval(1.0, 0.9, 1.2, 9), source="s")
    assert lopsided.half_widths == pytest.approx(1.5)  # The upper half counts, for the claim is above.
    assert Claim.of("g", "c", "model", 1.01, Interval(1.0, 1.0, 1.0, 0), source="s").verdict == "off"
    nine = (claim(1.0),) * 9
    assert Validation((*nine, claim(1.08)), 1, 1.0).passed
    assert not Validation((*nine, claim(1.2)), 1, 1.0).passed
    assert not Validation((*nine, claim(1.08), claim(1.08)), 1, 1.0).passed
    # What was fitted is covered by no luck, and makes up for none.
    assert not Validation((*nine, *(claim(1.0, kind="fitted"),) * 9, claim(1.08), claim(1.08)), 1, 1.0).passed
    assert not Validation((*nine, claim(1.3, kind="fitted")), 1, 1.0).passed
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
