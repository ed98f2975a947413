"""Closed forms refuse what they have no answer to; that their answers are right is shown by simulation elsewhere."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mktsim.errors import InvalidArgumentError
from mktsim.study import analytic


def _survival(t: float) -> float:
    return math.exp(-t)


def _cdf(t: float) -> float:
    return 1 - math.exp(-t)


_NO_NUMBERS: tuple[Any, ...] = ("x", "1", None, math.nan, np.nan, True, np.bool_(True), [1.0], 1j, -math.inf, 10**400)
#: What each kind of argument must not be.
_BAD: dict[str, tuple[Any, ...]] = {
    "positive": (*_NO_NUMBERS, 0, 0.0, -1, -0.5, math.inf),
    "whole": (*_NO_NUMBERS, 0, -1, math.inf, 1.5, 2.0, np.float64(2.0), 1 << 60),
    "positive or infinite": (*_NO_NUMBERS, 0, 0.0, -1, -0.5),
    "inside": (*_NO_NUMBERS, 0, 1, 0.0, 1.0, -0.5, 1.5, math.inf),
    "share": (*_NO_NUMBERS, -0.5, 1.5, math.inf),
    "from 0": (*_NO_NUMBERS, -1, -1e-300),
    "finite from 0": (*_NO_NUMBERS, -1, -1e-300, math.inf),
    "probability": (
        *(each for each in _NO_NUMBERS if not callable(each)), 5, lambda t: 2.0, lambda t: -0.5, lambda t: math.nan,
        lambda t: "x", lambda t: None, lambda t: math.inf,
    ),
}  # fmt: skip
#: Of each closed form: arguments that it answers, and their kinds.
_FORMS: dict[str, dict[str, tuple[Any, str]]] = {
    "harmonic": {"n": (4, "finite from 0")},
    "max_of_exponentials": {"n": (3, "whole"), "mean": (2.0, "positive")},
    "k_of_n_exponentials": {"k": (2, "whole"), "n": (3, "whole"), "mean": (2.0, "positive")},
    "windowed_exponentials": {"n": (3, "whole"), "window": (2, "whole"), "mean": (2.0, "positive")},
    "slow_share": {"n": (3, "whole"), "leaf_share": (0.1, "share")},
    "leaf_quantile": {"p": (0.9, "inside"), "n": (3, "whole")},
    "exceedance": {"p": (0.9, "inside"), "n": (3, "whole")},
    "k_of_n_leaf_quantile": {"p": (0.9, "inside"), "k": (2, "whole"), "n": (3, "whole")},
    "mean_of_maximum": {"cdf": (_cdf, "probability"), "n": (3, "whole"), "upper": (50.0, "positive or infinite")},
    "hedged_survival": {"survival": (_survival, "probability"), "t": (1.0, "from 0"), "delay": (0.5, "from 0")},
    "hedged_exponential_mean": {"delay": (0.5, "from 0"), "mean": (2.0, "positive")},
    "hedge_extra_load": {"survival": (_survival, "probability"), "delay": (0.5, "from 0")},
    "moved_share": {"nodes": (3, "whole")},
    "mm1_mean": {"arrival_rate": (0.5, "positive"), "service_rate": (1.0, "positive")},
    "mm1_quantile": {"p": (0.9, "inside"), "arrival_rate": (0.5, "positive"), "service_rate": (1.0, "positive")},
    "mm1_saturation": {"limit": (3.0, "positive"), "service_rate": (1.0, "positive")},
    "mg1_waiting": {
        "arrival_rate": (0.5, "positive"), "service_mean": (1.0, "positive"), "service_square": (2.0, "positive"),
    },
    "erlang_b": {"offered_load": (2.0, "positive"), "servers": (3, "whole")},
    "erlang_c": {"offered_load": (2.0, "positive"), "servers": (3, "whole")},
    "mmc_mean": {"arrival_rate": (2.0, "positive"), "service_rate": (1.0, "positive"), "servers": (3, "whole")},
    "mmc_waiting_survival": {
        "t": (1.0, "from 0"), "arrival_rate": (2.0, "positive"), "service_rate": (1.0, "positive"),
        "servers": (3, "whole"),
    },
    "fork_join_mean": {"n": (3, "whole"), "arrival_rate": (0.5, "positive"), "service_rate": (1.0, "positive")},
    "two_choices_mean": {"arrival_rate": (0.5, "positive"), "terms": (10, "whole")},
    "ring_load_variation": {"nodes": (3, "whole"), "virtual_nodes": (5, "whole")},
    "ring_share_quantile": {"p": (0.9, "inside"), "nodes": (3, "whole"), "virtual_nodes": (5, "whole")},
    "ring_max_over_mean": {"nodes": (3, "whole"), "virtual_nodes": (5, "whole")},
    "top_k_kept_probability": {"k": (3, "whole"), "nodes": (5, "whole"), "kept": (1, "whole")},
}  # fmt: skip


def _public() -> dict[str, Callable[..., Any]]:
    return {
        name: form
        for name, form in inspect.getmembers(analytic, inspect.isfunction)
        if form.__module__ == analytic.__name__ and not name.startswith("_")
    }


def test_every_closed_form_is_asked_for_what_it_refuses() -> None:
    """A new one belongs into the table above, with every argument."""
    found = {name: set(inspect.signature(form).parameters) for name, form in _public().items()}
    assert found == {name: set(arguments) for name, arguments in _FORMS.items()}


@pytest.mark.parametrize("name", sorted(_FORMS))
def test_a_closed_form_refuses_what_is_no_argument_of_it_by_name(name: str) -> None:
    """NaN, infinity, negative numbers, zero, texts, True, fractions of whole numbers, functions that lie."""
    form, good = _public()[name], {argument: value for argument, (value, _) in _FORMS[name].items()}
    assert math.isfinite(form(**good))
    for argument, (_, kind) in _FORMS[name].items():
        for bad in _BAD[kind]:
            try:
                answer = form(**{**good, argument: bad})
            except InvalidArgumentError:
                continue
            pytest.fail(f"{name}({argument}={bad!r:.40}) answered {answer!r}")


@pytest.mark.parametrize(
    "call",
    [
        lambda: analytic.mg1_waiting(1e-300, 1e200, 1e300), lambda: analytic.mm1_mean(1, 1),
        lambda: analytic.two_choices_mean(1.0), lambda: analytic.k_of_n_leaf_quantile(0.5, 4, 3),
        lambda: analytic.fork_join_mean(33, 0.5, 1.0), lambda: analytic.mm1_saturation(1.0, 1.0),
    ],
)  # fmt: skip
def test_numbers_that_do_not_go_together_are_named_errors(call: Callable[[], float]) -> None:
    """Each is in range by itself."""
    with pytest.raises(InvalidArgumentError):
        call()


def test_numpys_numbers_and_limits_are_answered() -> None:
    """A refusal must not reach what has an answer: numpy's scalars, a hedge that is never sent, one term of a sum."""
    assert analytic.k_of_n_exponentials(np.int64(2), np.int32(3), mean=np.float32(1.0)) == pytest.approx(1 / 3 + 1 / 2)
    assert analytic.hedged_survival(_survival, 1.0, math.inf) == math.exp(-1)
    assert analytic.hedged_exponential_mean(math.inf, mean=2.0) == 2.0
    assert analytic.hedge_extra_load(_survival, math.inf) == 0.0
    assert analytic.mmc_waiting_survival(math.inf, 1.0, 1.0, 2) == 0.0
    assert analytic.mean_of_maximum(_cdf, 3) == pytest.approx(analytic.harmonic(3))
    assert analytic.mean_of_maximum(lambda t: min(1.0 + 1e-12, t), 1) == pytest.approx(0.5)
    assert analytic.two_choices_mean(0.5, terms=1) == 1.0
    assert analytic.two_choices_mean(0.5, terms=2) == 1.25
    assert analytic.two_choices_mean(0.5, terms=10_000) == analytic.two_choices_mean(0.5)
    assert analytic.slow_share(3, 1.0) == analytic.slow_share(3, 1) == 1.0
