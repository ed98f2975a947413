"""Notebooks: stored clean, built as the house style says, and run from clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Return each notebook."""
    found: Path = request.param
    return found


def test_there_are_notebooks() -> None:
    """The other tests would pass without any."""
    assert "00_start_here" in [path.stem for path in NOTEBOOKS]


def test_it_is_stored_clean(path: Path) -> None:
    """No outputs, counts or widget state: a change in the repository is a change in what was written."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert not cell.metadata


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
    assert not any("asyncio.run" in source for source in code)
    assert cells[-2].source.startswith("## Answer")
    assert cells[-1].cell_type == "code"
    assert "print(" in cells[-1].source
    assert max(source.count("\n") for source in code) < 25


def test_it_runs_from_clean(path: Path, tmp_path: Path) -> None:
    """By nbmake, each in a kernel of its own, within 30 s a notebook."""
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=30", "-p", "no:cacheprovider", str(path)]
    env = {**os.environ, "MKTSIM_FAST": "1", "IPYTHONDIR": str(tmp_path)}
    env.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
