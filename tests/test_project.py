"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import mktsim

ROOT = Path(__file__).parents[1]


def test_the_conda_environment_defers_to_pyproject():
    """environment.yml names Python and the project with its dev extra, nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "environment.yml").read_text()
    lowest = re.search(r"python >=([\d.]+)", text)
    assert lowest is not None
    assert project["requires-python"] == f">={lowest.group(1)}"
    listed = re.findall(r"^\s+- (.+)$", text, re.MULTILINE)
    assert listed == ["conda-forge", f"python >={lowest.group(1)}", "pip", "pip:", "-e .[dev]"]


def test_every_public_name_can_be_reached_and_has_a_docstring():
    """What `mktsim` hands on exists and tells what it is."""
    for name in mktsim.__all__:
        assert getattr(mktsim, name).__doc__, name
    assert set(mktsim.__all__) <= set(dir(mktsim))
    with pytest.raises(AttributeError):
        mktsim.nothing  # noqa: B018


@pytest.mark.parametrize(
    "path", ["README.md", "CONTRIBUTING.md", "docs/DESIGN.md", "docs/COMPARISON.md", "data/README.md"]
)
def test_links_inside_the_project_lead_somewhere(path):
    """Every relative link or image of a page is a file."""
    page = ROOT / path
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{path}: {target}"


def test_the_readmes_programs_run(capsys, tmp_path, monkeypatch):
    """A newcomer's first query and first simulation, as they stand in the README."""
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        exec(compile(program, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "[('electronics', 19.99, 1)]" in shown
    assert "two-phase" in shown
    assert shown.count("\n2\n") == 1


def test_no_path_of_a_machine_and_no_outputs_in_notebooks():
    """Notebooks are stored clean."""
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        text = notebook.read_text()
        assert '"output_type"' not in text
        assert not re.search(r'"execution_count": \d', text)
