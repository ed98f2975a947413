"""Notebooks: stored clean, built as the house style says, run from clean, and their answers read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: In the order that teaches.
STEMS = [
    "00_start_here",
    "01_fanout_width",
    "02_virtual_nodes",
    "03_merge_correctness",
    "04_stragglers_and_hedging",
    "05_orders_and_faults",
    "06_pipelining",
    "07_live_and_simulated",
    "08_a_million_vendors",
]
#: The explorer that belongs to a notebook's question.
EXPLORERS = {
    "01_fanout_width": "explore.fanout(",
    "02_virtual_nodes": "explore.ring(",
    "03_merge_correctness": "explore.merge(",
    "04_stragglers_and_hedging": "explore.stragglers(",
    "05_orders_and_faults": "explore.faults(",
    "06_pipelining": "stepper(",
}
#: A call of `mktsim.study.charts` that draws.
_CHART = re.compile(r"\b\w+_charts?\(")
#: The studies that a notebook's answer comes from.
QUESTIONS = {
    "01_fanout_width": ["fanout_width"],
    "03_merge_correctness": ["merging"],
    "04_stragglers_and_hedging": ["hedging"],
    "05_orders_and_faults": ["partial_answers"],
    "06_pipelining": ["pipelining"],
    "07_live_and_simulated": ["live_vs_simulated", "validate"],
    "08_a_million_vendors": ["isolation"],
}
_INTERVAL = re.compile(r"\[[\d,.-]+, [\d,.-]+\]|interval from [\d.]+ %")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Return each notebook."""
    found: Path = request.param
    return found


def sources(path: Path, kind: str) -> list[str]:
    """Return the cells of one kind."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def unclean(notebook: Any) -> list[str]:
    """Name what a notebook holds that a run left behind."""
    left = ["widget state"] if "widgets" in notebook.metadata else []
    for number, cell in enumerate(notebook.cells):
        if cell.metadata:
            left.append(f"metadata of cell {number}")
        if cell.cell_type == "code" and cell.outputs:
            left.append(f"outputs of cell {number}")
        if cell.cell_type == "code" and cell.execution_count is not None:
            left.append(f"count of cell {number}")
    return left


def test_the_notebooks_are_there_in_their_order() -> None:
    """The other tests would pass without any."""
    assert [path.stem for path in NOTEBOOKS] == STEMS


def test_it_is_stored_clean(path: Path) -> None:
    """No outputs, counts or widget state: a change in the repository is a change in what was written."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert unclean(notebook) == []


def test_what_a_run_leaves_behind_is_noticed() -> None:
    """The test above can fail."""
    cell = nbformat.v4.new_code_cell("1", execution_count=1, outputs=[nbformat.v4.new_output("stream", text="1")])
    cell.metadata["trusted"] = True
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    assert unclean(notebook) == ["widget state", "metadata of cell 0", "outputs of cell 0", "count of cell 0"]


def test_it_asks_a_question_and_ends_with_the_answer(path: Path) -> None:
    """Title is the question; imports and one SEED come first; the last cell answers; await stands at top level."""
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert cells[0].source.splitlines()[0].endswith("?")
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert sum(source.count("SEED = ") for source in code) == 1
    assert "SEED = " in code[0]
    assert not any(line.startswith(("import ", "from ")) for source in code[1:] for line in source.splitlines())
    main_program = "asyncio.run(main(*sys.argv[1:]))"  # Of a process of its own.
    assert not any("asyncio.run" in source.replace(main_program, "") for source in code)
    assert cells[-2].source.startswith("## Answer")
    assert cells[-1].cell_type == "code"
    assert "print(" in cells[-1].source
    assert max(source.count("\n") for source in code) < 25


def test_it_shrinks_for_the_tests_and_names_no_machine(path: Path) -> None:
    """`MKTSIM_FAST=1` counts; paths are found, not written down."""
    text = "\n".join([*sources(path, "code"), *sources(path, "markdown")])
    assert 'FAST = os.environ.get("MKTSIM_FAST") == "1"' in text
    assert text.count("FAST") > 2
    assert not re.search(r"/(work|home|tmp|Users)/", text)


def test_it_says_what_is_measured_simulated_and_analytic(path: Path) -> None:
    """A reader knows of each number where it comes from; charts are captioned and have a text for those who hear."""
    text = "\n".join(sources(path, "markdown"))
    code = sources(path, "code")
    assert re.search("simulated|measured", text)
    assert re.search("(?i)simulated|measured", code[-1])
    for source in code[1:]:
        if _CHART.search(source):
            assert "annotate(" in source or "caption=" in source
            assert "Image(" in source, "a figure that matplotlib shows by itself has no text"
        assert source.count("Image(") == source.count("alt="), source
    assert "pyplot" not in code[0]


@pytest.mark.parametrize(("stem", "questions"), sorted(QUESTIONS.items()))
def test_it_asks_the_study_that_has_its_question(stem: str, questions: list[str]) -> None:
    """What a study answers is not computed by hand beside it."""
    code = "\n".join(sources(FOLDER / f"{stem}.ipynb", "code"))
    for name in questions:
        assert re.search(rf"\b{name}\(|to_thread\({name},", code), name


def test_each_explorer_stands_in_its_notebook() -> None:
    """In the notebook whose question it asks."""
    for stem, call in EXPLORERS.items():
        assert any(call in source for source in sources(FOLDER / f"{stem}.ipynb", "code")), stem


def test_it_runs_from_clean_and_answers_with_numbers(path: Path, tmp_path: Path) -> None:
    """By nbmake, each in a kernel of its own, within 30 s a notebook; the answer has a number of samples and intervals.

    What is run is a copy, beside the same data: the stored notebook stays as it is.
    """
    (tmp_path / "data").symlink_to(ROOT / "data")
    copy = tmp_path / "notebooks" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=30", "--overwrite"]
    env = {**os.environ, "MKTSIM_FAST": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    for name in ("PYTEST_ADDOPTS", "MKTSIM_VENDORS"):
        env.pop(name, None)
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(copy)],
        capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    executed = nbformat.read(copy, as_version=4)
    streams = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [each.text for each in streams if each.output_type == "stream" and each.name == "stderr"] == []
    answer = "".join(output.get("text", "") for output in executed.cells[-1].outputs)
    assert re.search(r"\bn = \d", answer), answer
    assert _INTERVAL.search(answer), answer
    assert not re.search(r"\bnan\b", answer), answer
