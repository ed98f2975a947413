"""Tests of `benchmarks`: the peers answer what we answer, and the measuring measures."""

from __future__ import annotations

import json
import math
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # The package is not installed, only run from here.

from benchmarks import __main__ as command
from benchmarks import measure, peers, report
from benchmarks.measure import Contender, DifferentAnswerError, Figure, Sizes, Subject

TINY = Sizes(
    vendors=(12,),
    products=200,
    threads=3,
    nodes=5,
    virtual_nodes=20,
    keys=500,
    leaves=9,
    event_leaves=20,
    array_leaves=50,
    rows=300,
    objects=(),
    cluster_vendors=16,
    large_vendors=150,
    orders=20,
    growth=(10, 30),
    rounds=3,
    subject_s=0.0,
)


@pytest.mark.parametrize("name", [name for name in command.MODULES if name != "runtime"])
def test_every_peer_gives_the_same_answer(name: str) -> None:
    """What is compared for time answers the same question: compare() raises where one does not."""
    names = []
    with closing(command.MODULES[name].subjects(TINY, 7)) as subjects:
        for subject in subjects:
            measure.compare(subject)
            measure.compare(subject)  # Again, for the next request of a simulation is another one.
            names.append(subject.name)
    assert len(names) == len(set(names)) > 1


@pytest.mark.skipif(
    not (Path(peers.__file__).parent / "node_modules").is_dir(),
    reason="optional: the Durable Object runtime is installed by `python -m benchmarks --only runtime`",
)
def test_the_platforms_own_runtime_gives_the_same_answer() -> None:
    """Four real Durable Objects hold the rows of four vendors."""
    with closing(command.MODULES["runtime"].subjects(replace(TINY, objects=(4,)), 7)) as subjects:
        subject = next(subjects)
        measure.compare(subject)


def test_the_fleet_holds_what_makes_merging_hard() -> None:
    """Ties in rating within the first ten, and NULLs: else a naive merge would be right whatever it did."""
    with closing(command.MODULES["fanout"].subjects(TINY, 7)) as subjects:
        rows = next(subjects).ours.run().rows
        groups = next(subjects).ours.run().rows
    ratings = [row[4] for row in rows]
    assert len(rows) == 10
    assert len(set(ratings)) < 10
    assert groups[0][0] is None
    assert sum(count for _, count, _ in groups) == 12 * 200


def test_a_peer_that_answers_otherwise_is_not_timed() -> None:
    """A ratio between answers to two questions means nothing: it is an error that names both."""
    subject = Subject("sum", "row", 1, Contender("ours", lambda: 3), (Contender("theirs", lambda: 4),))
    with pytest.raises(DifferentAnswerError, match="sum: theirs answers 4, ours 3"):
        measure.measure(subject, rounds=3, subject_s=1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that moves only when a contender moves it."""
    now = [0.0]
    monkeypatch.setattr(measure, "perf_counter", lambda: now[0])

    def passes(name: str, seconds: list[float], log: list[str]) -> Contender:
        turns = iter([0.0, *seconds])  # The first run is the comparison's, which is not timed.

        def run() -> int:
            log.append(name)
            now[0] += next(turns)
            return 1

        return Contender(name, run, at_most=0.5)

    return passes


def test_the_ratio_is_the_median_of_ratios_within_a_round(clock: Any) -> None:
    """A machine that slows down for a round slows both: 1/4, 10/20 and 2/4 have the median 1/2."""
    log: list[str] = []
    ours, theirs = clock("ours", [1.0, 10.0, 2.0], log), clock("theirs", [4.0, 20.0, 4.0], log)
    (figure,) = measure.measure(Subject("s", "row", 2, ours, (theirs,)), rounds=3, subject_s=1e9)
    assert (figure.ratio, figure.low, figure.high) == (0.5, 0.375, 0.5)
    assert (figure.ours_s, figure.peer_s, figure.rounds) == (2.0, 4.0, 3)
    assert figure.met is True
    assert log[2:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]  # The order rotates.


def test_a_slow_subject_ends_after_three_rounds(clock: Any) -> None:
    """The time allowed ends a subject early, though not before its third round."""
    log: list[str] = []
    ours, theirs = clock("ours", [5.0] * 9, log), clock("theirs", [5.0] * 9, log)
    subject = Subject("s", "row", 1, ours, (theirs,))
    assert measure.measure(subject, rounds=9, subject_s=1.0)[0].rounds == 3
    again = Subject("s", "row", 1, clock("ours", [5.0] * 9, log), (clock("theirs", [5.0] * 9, log),))
    assert measure.measure(again, rounds=9, subject_s=45.0)[0].rounds == 5


def test_the_command_writes_what_repeats_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON and Markdown carry machine, versions, seed and parameters; --check fails where a ratio grew by a third."""
    monkeypatch.setattr(command, "QUICK", TINY)
    run = ["--quick", "--only", "sql", "--seed", "5", "--out", str(tmp_path)]
    assert command.main(run) == 0
    stored = json.loads((tmp_path / "benchmarks.json").read_text("utf-8"))
    assert stored["seed"] == 5
    assert stored["parameters"]["rows"] == 300
    assert {"processor", "cores"} <= stored["machine"].keys()
    assert {"python", "sqlite", "numpy", "simpy", "uhashring"} <= stored["versions"].keys()
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in stored["figures"])
    page = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert page.count("\n|") == 2 + len(stored["figures"])
    assert "seed 5" in page
    assert "sum of 300 REAL values" in capsys.readouterr().out
    for row in stored["figures"]:
        row["ratio"] /= 1000
    (tmp_path / "before.json").write_text(json.dumps(stored), "utf-8")
    assert command.main([*run, "--check", str(tmp_path / "before.json")]) == 1
    assert "worse by more than a third" in capsys.readouterr().err


def test_a_regression_is_a_third_and_more(tmp_path: Path) -> None:
    """Only what got slower counts, and only what both runs measured."""
    was = Figure("s", "peer", "row", 1, 1.0, 0.9, 1.1, 1.0, 1.0, 3)
    report.write(tmp_path, [was], report.conditions(TINY, 1))
    stored = tmp_path / "benchmarks.json"
    assert report.regressions([replace(was, ratio=1.33), replace(was, ratio=0.1)], stored) == ([], 2, 1)
    assert report.regressions([replace(was, peer="other", ratio=9.0)], stored) == ([], 0, 1)
    worse, compared, _ = report.regressions([replace(was, ratio=1.34)], stored)
    assert worse == ["worse by more than a third: s, against peer: 1 before, 1.34 now"]
    assert compared == 1


def test_a_missed_bar_and_a_check_of_nothing_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether or not the stored run missed it as well; and a run of other subjects says nothing."""
    was = Figure("s", "peer", "row", 1, 1.0, 0.9, 1.1, 1.0, 1.0, 3)
    report.write(tmp_path, [was], report.conditions(TINY, 1))
    stored = tmp_path / "benchmarks.json"
    missed, _, _ = report.regressions([replace(was, at_most=0.5)], stored)
    assert missed == ["a bar is missed: s, against peer: 1"]
    run = ["--only", "sql", "--out", str(tmp_path / "out"), "--check", str(stored)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "Sizes", lambda: TINY)
        assert command.main(run) == 1
    assert "the check says nothing" in capsys.readouterr().err


def test_a_whole_run_is_kept_for_the_next_to_be_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, the page of the site with its picture; a part of a run or a quick one is refused."""
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(command, "STORED", tmp_path / "figures.json")
    monkeypatch.setattr(command, "PAGE", tmp_path / "BENCHMARKS.md")
    monkeypatch.setattr(command, "MODULES", {"sql": command.MODULES["sql"]})
    monkeypatch.setattr(command, "TABLES", ("growth",))
    monkeypatch.setattr(command, "Sizes", lambda: TINY)
    with pytest.raises(SystemExit):
        command.main(["--keep", "--quick"])
    assert command.main(["--keep", "--out", str(tmp_path / "out")]) == 0
    kept = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert kept["figures"]
    assert {row["x"] for row in kept["tables"]["Growth: median times in ms by the number of vendors"]} == {10, 30}
    assert "](images/growth.png)" in (tmp_path / "BENCHMARKS.md").read_text("utf-8")
    assert (tmp_path / "images" / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_file_to_check_is_told_before_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments are checked whole before any work."""
    with pytest.raises(SystemExit):
        command.main(["--check", "no such file"])
    assert "there is no file 'no such file'" in capsys.readouterr().err
