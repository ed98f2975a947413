"""What a study cannot answer it refuses by name, before its first job."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mktsim.errors import InvalidArgumentError
from mktsim.sim.latency import Exponential
from mktsim.sim.world import World
from mktsim.study import compare, jobs, replicate, sweep
from mktsim.study.jobs import Job
from mktsim.study.scenario import Scenario
from mktsim.study.statistics import mean_interval, replication_interval, required_replications

_SMALL = Scenario(vendors=3, world=World(service=Exponential(1.0)))
#: A window over shared machines feeds back: arrays cannot compute it.
_UNCOVERED = _SMALL.replace(shards=2, window=2)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no replication run."""
    monkeypatch.setattr(Job, "run", lambda job: pytest.fail(f"replication {job.number} ran before the refusal"))


@pytest.mark.parametrize(
    ("scenario", "changes", "message"),
    [
        ([_SMALL, _UNCOVERED], {"engine": "vectorised"}, "does not cover a window"),
        (_SMALL, {"engine": "event", "vendors": [2, 30_000]}, "30,000 vendors"),
        ([_SMALL, _UNCOVERED.replace(vendors=30_000)], {}, "30,000 vendors"),
        (_SMALL, {"quantiles": 0.5}, "quantiles"),
        (_SMALL, {"quantiles": None}, "quantiles"),
        (_SMALL, {"quantiles": "0.5"}, "quantiles"),
        (_SMALL, {"quantiles": (0.5, 0.5)}, "twice"),
        (_SMALL, {"quantiles": (0.5, np.float64(0.5))}, "twice"),
        (_SMALL, {"quantiles": (1 - 1e-16,)}, "p"),
        (_SMALL, {"quantiles": (), "mean": False}, "mean"),
    ],
)
def test_a_sweep_refuses_before_its_first_job(idle: None, scenario: Any, changes: dict[str, Any], message: str) -> None:
    """Whichever scenario it is that cannot be simulated, and whatever the quantiles lack."""
    with pytest.raises(InvalidArgumentError, match=message):
        sweep(scenario, **{"replications": 3, "seed": 1, "progress": False, "quantiles": (), **changes})


def test_a_comparison_refuses_before_its_first_job(idle: None) -> None:
    """Quantiles that a replication does not bear, and engines that do not cover the second scenario."""
    with pytest.raises(InvalidArgumentError, match="299 requests"):
        compare(_SMALL, _SMALL, statistic="p99", requests=100, seed=1)
    with pytest.raises(InvalidArgumentError, match="does not cover a window"):
        compare(_SMALL, _UNCOVERED, seed=1, engine="vectorised")
    for changes in ({"confidence": 2.0}, {"requests": 1.5}, {"statistic": "best"}):
        with pytest.raises(InvalidArgumentError):
            compare(_SMALL, _SMALL, **{"seed": 1, **changes})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="needs a Scenario"):
        compare(_SMALL, 5, seed=1)  # type: ignore[arg-type]


def test_replications_are_refused_before_their_first_job(idle: None) -> None:
    """By the same rules."""
    with pytest.raises(InvalidArgumentError, match="does not cover a window"):
        replicate(_UNCOVERED, seed=1, engine="vectorised")
    with pytest.raises(InvalidArgumentError, match="30,000 vendors"):
        replicate(_SMALL.replace(vendors=30_000), seed=1, engine="event")


def test_a_seed_of_numpy_is_the_number_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples and the same entries of a cache as Python's."""
    monkeypatch.setattr(jobs, "program_doubt", lambda: "")
    monkeypatch.setattr(jobs, "running_digest", jobs.program_digest)
    given: dict[str, Any] = {"requests": 20, "cache": tmp_path}
    found = replicate(_SMALL, seed=np.int64(3), statistic="p50", **given)  # type: ignore[arg-type]
    assert type(found.seed) is int
    frame = sweep(_SMALL, seed=np.int64(3), replications=3, quantiles=(0.5,), progress=False, **given)  # type: ignore[arg-type]
    monkeypatch.setattr(Job, "run", lambda job: pytest.fail("it was not found in the cache"))
    again = replicate(_SMALL, seed=3, statistic="p50", **given)
    assert again.sojourn_time_ms.tobytes() == found.sojourn_time_ms.tobytes()
    assert frame.equals(sweep(_SMALL, seed=3, replications=3, quantiles=(0.5,), progress=False, **given))


@pytest.mark.parametrize(
    "values",
    [["a", "b"], ["1", "2"], [1j, 2j], [[1.0], [1.0, 2.0]], [None, 1.0], [1e308, 1e308, -1e308], "ab", [{}, 1]],
)
def test_samples_that_are_no_numbers_or_too_large_have_no_interval(values: Any) -> None:
    """Text, complex numbers, ragged rows, and sums beyond what a float holds."""
    with pytest.raises(InvalidArgumentError):
        mean_interval(values)
    with pytest.raises(InvalidArgumentError):
        replication_interval([values, values])


def test_large_samples_that_have_an_interval_keep_it() -> None:
    """Up to where sums of squares would overflow."""
    found = mean_interval([1e145, 5e144])
    assert -math.inf < found.low < found.estimate == 7.5e144 < found.high < math.inf


@pytest.mark.parametrize(
    ("width", "confidence"), [(0.1, 2.0), (0.1, 1.0), (0.1, math.nan), (1e-300, 0.95), (1e-12, 0.95), (0.0, 0.95)]
)
def test_widths_that_nobody_reaches_are_refused(width: float, confidence: float) -> None:
    """Confidences that are none, and widths that would take more replications than anybody makes."""
    with pytest.raises(InvalidArgumentError):
        required_replications([1.0, 2.0, 3.0], width, confidence=confidence)
