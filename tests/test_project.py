"""The project's own files agree with each other."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import mktsim
from mktsim import explore

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


def readme(language: str) -> list[str]:
    """Return the blocks of code of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_programs_run(capsys, tmp_path, monkeypatch):
    """A newcomer's first query, script and first simulation, as they stand in the README."""
    monkeypatch.chdir(tmp_path)
    programs = readme("python")
    assert len(programs) == 4
    for program in programs:
        # As a cell of Jupyter and `python -m asyncio` do: `await` needs no function around it.
        code = compile(program, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names = {}
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(run_and_close(eval(code, names), names))
        else:
            exec(code, names)
    shown = capsys.readouterr().out
    assert re.search(r"lamp +45\.0 +1\nmouse +25\.0 +2\n", shown)
    assert shown.count("\n2\n") == 1
    assert re.search(r"\d ms|\d, ", shown)


async def run_and_close(program, names):
    """Run a program whose marketplace stays open, as in a notebook."""
    await program
    await names["market"].close()


def test_the_first_query_and_the_first_simulation_take_five_lines_at_most():
    """A newcomer reads them in one look."""
    first, _, simulation, _ = readme("python")
    assert "query(" in first
    assert "simulate(" in simulation
    assert max(len(re.findall(r"(?m)^.*\S", program)) for program in (first, simulation)) <= 5


def test_the_readmes_commands_can_be_parsed():
    """Every `python -m mktsim ...` of the README and of the help is one that the parser takes."""
    from mktsim import cli

    text = (ROOT / "README.md").read_text() + cli._EXAMPLES + cli._STUDIES
    found = re.findall(r"python -m mktsim( [^`\n|]*)?", re.sub(r" *\\\n +", " ", text))
    assert len(found) >= 12
    for command in found:
        words = shlex.split(command.partition("  ")[0], comments=True)  # What follows two spaces says what it does.
        if not words or words[0].startswith("-"):
            words = ["study", "scaling", *words]
        assert cli._parser().parse_args(["scaling" if word == "NAME" else word for word in words]).run
    studies = set(re.findall(r"`([\w-]+)`", next(line for line in text.splitlines() if "one question" in line)))
    assert {name for name in studies if name in cli._QUESTIONS} == set(cli._QUESTIONS) - {"validate"}


def test_the_readme_names_the_explorers_and_presets_that_there_are():
    """What it lists is the code's own list."""
    text = (ROOT / "README.md").read_text()
    listed = re.findall(r"explore\.(\w+)\(\)|(?<=[ ,])(\w+)\(\)", readme("python")[-1])
    assert {a or b for a, b in listed} == set(explore.__all__) - {"Explorer", "load_ipython_extension"}
    for preset in re.findall(r'preset="([^"]+)"', text):
        assert (ROOT / "data" / "presets" / f"{preset}.toml").is_file()


def test_no_path_of_a_machine_and_no_outputs_in_notebooks():
    """Notebooks are stored clean."""
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        text = notebook.read_text()
        assert '"output_type"' not in text
        assert not re.search(r'"execution_count": \d', text)
