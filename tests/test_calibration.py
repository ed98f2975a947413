"""Calibration: families found again from their own samples, and this machine's preset predicts this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mktsim.errors import InvalidArgumentError
from mktsim.fanout import Scanner
from mktsim.sim.latency import Exponential, Gamma, Latency, LogNormal, Mixture, Pareto, Uniform
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.sim.world import load_preset
from mktsim.streams import Streams
from mktsim.study.calibration import _query_ms, calibrate_this_machine, fit_latency, preset_toml
from mktsim.study.coordinated import fleet
from mktsim.study.scenario import Scenario


@pytest.mark.parametrize("law", [LogNormal(9, 60), Gamma(3.0, 12.0), Exponential(5.0), Pareto(2.0, 2.5)])
def test_a_family_is_found_again_from_its_own_samples(law: Latency) -> None:
    """Of 20,000 samples the family ranks first (an exponential is a gamma too), its quantiles within 5 %."""
    fits = fit_latency(law.sample(Streams(3).uniform("fit", 0, 20_000)))
    best = next(fit for fit in fits if fit.family == law.kind)
    assert best.criterion <= fits[0].criterion + 2.1
    assert best.distance < 0.01
    for p in (0.5, 0.9, 0.99):
        assert best.latency.quantile(p) == pytest.approx(law.quantile(p), rel=0.05)
    assert [fit.criterion for fit in fits] == sorted(fit.criterion for fit in fits)


def test_a_family_that_does_not_fit_says_so_by_its_distance() -> None:
    """Two humps fit none."""
    humps = Mixture((1, 1), (Uniform(1, 2), Uniform(100, 101)))
    assert min(fit.distance for fit in fit_latency(humps.sample(Streams(1).uniform("u", 0, 5000)))) > 0.1


@pytest.mark.parametrize("values", [[], [1.0] * 29, [1.0] * 100, [0.0] * 50, [np.nan] * 50, [[1.0] * 50], [-1.0] * 40])
def test_values_that_no_family_fits_are_named_errors(values: list[float]) -> None:
    """Too few, equal, not positive, no numbers, a table; and families that do not exist."""
    with pytest.raises(InvalidArgumentError):
        fit_latency(values)
    for families in ((), ("normal",), "gamma"):
        with pytest.raises(InvalidArgumentError):
            fit_latency(np.arange(1, 100.0), families=families)


def test_this_machines_preset_is_a_preset_file_and_predicts_queries_of_another_size(tmp_path: Path) -> None:
    """Every value has its source; calibrated at 300 vendors, a query of 900 is foretold within a factor of 2."""
    preset = calibrate_this_machine(vendors=300, rounds=5, where="one process")
    path = tmp_path / "this-machine.toml"
    path.write_text(preset_toml(preset), encoding="utf-8")
    assert load_preset(path).world == preset.world
    scenario = Scenario(vendors=900, preset=str(path))
    assert scenario.world.fan_out_ms > 0
    databases = fleet(scenario, Streams(1))
    scanners = [Scanner.from_connection(*item) for item in databases.items()]
    foretold = 1e3 * vectorised_sojourn_times(scenario.world, Streams(1), leaves=900)[0]
    ratios = [_query_ms(scenario, scanners, 5) / foretold for _ in range(3)]
    for database in databases.values():
        database.close()
    assert min(ratios) < 2
    assert max(ratios) > 0.5
    own = calibrate_this_machine(vendors=30, rounds=1)
    assert own.sources["service"].kind == "measured"
    assert own.world.link_out == load_preset("same-zone").world.link_out
    assert load_preset("same-zone").world == load_preset("same-zone").world
    for bad in ({"vendors": 3}, {"rounds": 0}, {"where": "moon"}):
        with pytest.raises(InvalidArgumentError):
            calibrate_this_machine(**bad)  # type: ignore[arg-type]
