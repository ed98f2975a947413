"""The virtual-node study: its numbers against the exact laws, its answer, its charts, its command."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mktsim.cli import main
from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams
from mktsim.study import analytic, virtual_nodes
from mktsim.study.result import StudyResult
from mktsim.study.virtual_nodes import (
    ENOUGH,
    ENOUGH_NOISY,
    ShardModel,
    VirtualNodesSize,
    draw,
    enough_interval,
    placements,
    run_virtual_nodes,
    smallest_enough,
)

SIZE = VirtualNodesSize(shards=(4, 20), virtual_nodes=(1, 8, 64), vendors=(1_000, 8_000), replications=12, requests=200)


@pytest.fixture(scope="module")
def result() -> StudyResult:
    """A small study."""
    return run_virtual_nodes(SIZE, seed=5)


def rows(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Pick rows by column values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame


def test_measured_balance_covers_the_exact_laws(result: StudyResult) -> None:
    """Of the 24 intervals of the variation at least 19 hold the Beta or beta-binomial law: 95 % less 4 errors."""
    frame = result.frame
    measured = rows(frame, series="ring", statistic="variation")
    held = 0
    for row in measured.itertuples():
        law = rows(frame, kind="analytic", statistic="variation", shards=row.shards, vendors=row.vendors, x=row.x)
        assert len(law) == 1
        held += row.low <= law["estimate"].iloc[0] <= row.high
    assert len(measured) == 2 * 3 * 3
    assert held >= 0.95 * len(measured) - 4 * math.sqrt(0.95 * 0.05 * len(measured))
    beta = rows(frame, series="shares of the ring (Beta)", statistic="variation", shards=20, x=64.0)
    assert beta["estimate"].iloc[0] == analytic.ring_load_variation(20, 64)


def test_the_beta_binomial_law_of_variation_is_that_of_scipy() -> None:
    """The closed form in the study's table equals the library's standard deviation over the mean."""
    from scipy.stats import betabinom

    frame = run_virtual_nodes(
        VirtualNodesSize(shards=(7,), virtual_nodes=(3,), vendors=(500,), replications=2, requests=100), seed=1
    ).frame
    law = rows(frame, series="vendors (beta-binomial)")["estimate"].iloc[0]
    assert law == pytest.approx(float(betabinom(500, 3, 18).std()) * 7 / 500, rel=1e-12)


def test_every_placement_stands_beside_the_ring(result: StudyResult) -> None:
    """Balance, movement, memory, times and tail of each, and for each number of shards."""
    frame = result.frame[result.frame["kind"] != "analytic"]
    for shards in SIZE.shards:
        for name in ("ring", *placements(shards)):
            found = set(rows(frame, series=name, shards=shards)["statistic"])
            assert found >= {
                "variation", "fullest over mean", "p99", "p99 over even", "moved over ideal", "moved between others",
                "memory", "build", "look-up", "single look-up",
            }  # fmt: skip
    moved = rows(frame, statistic="moved between others").groupby("series")["estimate"].max()
    assert (moved[["ring", "jump", "rendezvous", "multi-probe 21"]] == 0).all()
    bounded = rows(frame, series="bounded 1.05", statistic="fullest over mean")
    for row in bounded.itertuples():
        assert row.estimate <= math.ceil(1.05 * row.vendors / row.shards) * row.shards / row.vendors + 1e-9


def test_a_new_node_of_an_even_placement_moves_its_part(result: StudyResult) -> None:
    """The interval of what jump and rendezvous move, over the ideal, holds 1 within 2.3 of its half-widths, 5 sigma."""
    for name in ("jump", "rendezvous"):
        for row in rows(result.frame, series=name, statistic="moved over ideal").itertuples():
            assert abs(row.estimate - 1) < 2.3 * (row.high - row.estimate)


def test_more_virtual_nodes_cost_less_tail_until_they_do_not(result: StudyResult) -> None:
    """The p99 falls towards that of even shares; the answer lies on the grid, with its interval around it."""
    tail = rows(result.frame, series="ring", statistic="p99 over even", shards=20, vendors=8_000).set_index("x")
    assert tail.loc[1.0, "low"] > tail.loc[8.0, "high"] > tail.loc[64.0, "estimate"] > 0.97
    for name in (ENOUGH, ENOUGH_NOISY):
        for row in rows(result.frame, statistic=name).itertuples():
            assert row.low <= row.estimate <= row.high
            assert {row.low, row.estimate, row.high} <= {1.0, 8.0, 64.0, math.inf}
    assert "8,000 vendors the p99 no longer improves" in result.answer
    assert "20 shards" in result.answer


def test_the_study_depends_on_its_seed_alone(result: StudyResult) -> None:
    """Not on the executor or the order of replications; another seed gives other numbers."""
    small = VirtualNodesSize(shards=(3, 5), virtual_nodes=(1, 9), vendors=(600,), replications=3, requests=100)

    def kept(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[~frame["statistic"].isin(["build", "look-up", "single look-up"])].reset_index(drop=True)

    once = kept(run_virtual_nodes(small, seed=1).frame)
    with ThreadPoolExecutor(2) as executor:
        pd.testing.assert_frame_equal(once, kept(run_virtual_nodes(small, seed=1, executor=executor).frame))
    other = kept(run_virtual_nodes(small, seed=2).frame)
    assert (once["estimate"] != other["estimate"]).any()


def test_the_model_is_a_maximum_of_scans_and_messages() -> None:
    """Without noise the p99 is the fullest shard's scan and the network; with workers, that many times less scan."""
    still = ShardModel(scan_us=10, workers=2, scan_sigma=0, network_ms=0.5, network_sigma=0)
    loads = [np.array([100, 300, 200]), np.array([200, 200, 200])]
    assert still.p99_ms(loads, Streams(1), 100) == pytest.approx([0.5 + 300 * 0.005, 0.5 + 200 * 0.005])
    # Exact p99 of the slowest of n shards with equal loads: the quantile 0.99^(1/n) of one lognormal.
    noisy = ShardModel(scan_us=10, scan_sigma=0.2, network_ms=0, network_sigma=0)
    from scipy.stats import norm

    found = np.mean([noisy.p99_ms([np.full(50, 100)], Streams(seed), 2_000)[0] for seed in range(20)])
    exact = math.exp(0.2 * norm.ppf(0.99 ** (1 / 50)) - 0.02)
    assert found == pytest.approx(exact, rel=0.01)


def test_enough_is_where_nothing_larger_is_worse() -> None:
    """One number that happens to be good does not count while a larger one is bad."""
    assert smallest_enough({1: 0.0, 2: 0.5, 4: 0.01, 8: -0.1}, 0.01) == 4
    assert smallest_enough({1: 0.0, 2: 0.5}, 0.01) == math.inf
    assert smallest_enough({1: 0.0, 2: 0.005}, 0.01) == 1


def test_the_interval_of_enough_holds_the_truth_from_three_replications_too() -> None:
    """Of 250 macro-runs 95 % hold it, wherever it lies; a bootstrap of these replications held 53, 79, 87 and 92 %."""
    generator = np.random.default_rng(3)
    virtual_nodes = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
    cases: list[tuple[int, tuple[float, ...], float]] = [
        (3, (0.05, 0.0095, 0.0095, 0.0095, 0.0095), 10.0),
        (3, (0.05, 0.03, 0.0105, 0.0095, 0.0095), 1_000.0),
        (10, (0.05, 0.0095, 0.0095, 0.0095, 0.0095), 10.0),
        (3, (0.05, 0.05, 0.05, 0.05, 0.0105), math.inf),
    ]
    for n, means, truth in cases:
        held = 0
        for _ in range(250):
            excess = {v: generator.normal(m, 0.002, n) for v, m in zip(virtual_nodes, means, strict=True)}
            found = enough_interval(excess, 0.01)
            held += found.low <= truth <= found.high
            assert found.low <= found.estimate <= found.high
            assert found.n == n
        assert held >= (0.95 - 3 * math.sqrt(0.05 * 0.95 / 250)) * 250, (n, means, held)


def test_enough_tells_of_how_few_replications_it_is() -> None:
    """Those of the numbers that decide, not of the study."""
    generator = np.random.default_rng(4)
    sizes = {1.0: 10, 10.0: 10, 1_000.0: 3}
    excess = {v: generator.normal(0.5 if v < 10 else 0.0, 0.001, n) for v, n in sizes.items()}
    assert enough_interval(excess, 0.01).n == 3
    few = VirtualNodesSize(
        shards=(4,), virtual_nodes=(1, 64), vendors=(2_000,), replications=4, large_replications=2, large_tokens=100,
        requests=100,
    )  # fmt: skip
    assert set(rows(run_virtual_nodes(few, seed=1).frame, statistic=ENOUGH)["n"]) == {2}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ShardModel(scan_us=0),
        lambda: ShardModel(workers=1.5),  # type: ignore[arg-type]
        lambda: ShardModel(network_ms=math.nan),
        lambda: VirtualNodesSize(shards=()),
        lambda: VirtualNodesSize(virtual_nodes=(5, 1)),
        lambda: VirtualNodesSize(vendors=(0,)),
        lambda: VirtualNodesSize(replications=1),
        lambda: run_virtual_nodes(SIZE, seed=1, tolerance=0),
        lambda: run_virtual_nodes(SIZE, seed=-1),
    ],
)
def test_bad_arguments_are_refused_before_any_work(make: object) -> None:
    """Each is an InvalidArgumentError."""
    with pytest.raises(InvalidArgumentError):
        make()  # type: ignore[operator]


def test_the_charts_say_what_they_show(result: StudyResult) -> None:
    """Four PNGs; the caption has n and the seed."""
    pictures = draw(result)
    assert set(pictures) == {f"virtual-nodes-{name}.png" for name in ("balance", "tail", "cost", "placements")}
    assert all(data.startswith(b"\x89PNG") and len(data) > 20_000 for _, data in pictures.values())
    assert "n = 12" in result.caption
    assert "seed 5" in result.caption


def test_the_command_writes_charts_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``study virtual-nodes`` answers on stdout and leaves CSV and PNGs; --json is the whole table."""
    small = VirtualNodesSize(shards=(3,), virtual_nodes=(1, 9), vendors=(600,), replications=2, requests=100)
    monkeypatch.setattr(virtual_nodes, "QUICK", small)
    from contextlib import nullcontext

    from mktsim.study import scaling

    monkeypatch.setattr(scaling, "simulation_processes", lambda: nullcontext(None))
    argv = ["study", "virtual-nodes", "--quick", "--seed", "3", "--out", str(tmp_path / "new")]
    assert main(argv) == 0
    assert "no longer improves" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == [
        "virtual-nodes-balance.png", "virtual-nodes-cost.png", "virtual-nodes-placements.png",
        "virtual-nodes-tail.png", "virtual-nodes.csv",
    ]  # fmt: skip
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seed"] == 3
    assert len(told["rows"]) == len(pd.read_csv(tmp_path / "new" / "virtual-nodes.csv"))
