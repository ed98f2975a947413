"""The documentation: it builds without a warning, its links lead somewhere, and every public name is explained."""

from __future__ import annotations

import html
import inspect
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from doctest import SKIP, DocTestFinder, Example
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import mktsim

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Pages, docstrings and notebooks; a broken reference is a warning, and a warning fails."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "QueryCoordinator" in (tmp_path / "_reference" / "query.html").read_text("utf-8")
    first = (tmp_path / "index.html").read_text("utf-8")
    assert 'id="a-first-query"' in first, "the site begins with the README"
    assert set(re.findall(r'src="_images/(\w+)\.png"', first)) == {"scaling", "stragglers"}
    pages = {page: page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    assert len(pages) > 25
    assert [link for page, text in pages.items() for link in dead_links(page, text, pages)] == []


def dead_links(page: Path, text: str, pages: dict[Path, str]) -> Iterator[str]:
    """Name a page's links and pictures within the site that lead nowhere, with their anchors."""
    for target in set(re.findall(r'(?:href|src)="([^"]*)"', text)):
        path, _, anchor = html.unescape(target).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
        named = not anchor or found not in pages or f'id="{unquote(anchor)}"' in pages[found]
        if not found.exists() or not named:
            yield f"{page.name}: {target}"


def test_the_site_can_have_the_notebooks_charts_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make site` executes the notebooks, small ones and only where they have changed; a plain build does not."""
    rule = (ROOT / "Makefile").read_text("utf-8").partition("\nsite:\n")[2].partition("\n\n")[0]
    assert "MKTSIM_SITE_RUN=1" in rule
    assert " -W " in rule
    for asked, mode, fast in (("1", "cache", "1"), ("", "off", None)):
        monkeypatch.setenv("MKTSIM_SITE_RUN", asked)
        monkeypatch.delenv("MKTSIM_FAST", raising=False)
        configuration = runpy.run_path(str(ROOT / "docs" / "conf.py"))
        assert configuration["nb_execution_mode"] == mode
        assert os.environ.get("MKTSIM_FAST") == fast


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """Relative links and pictures, in every page a reader meets."""
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def public_names() -> dict[str, Any]:
    """Return every function and class that `mktsim` or a room of the site offers, by the name of its home."""
    site = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    offered = [getattr(mktsim, name) for name in mktsim.__all__]
    for _, rooms in site["ROOMS"].values():
        for room in map(import_module, rooms):
            offered += [getattr(room, name) for name in site["_public"](room)]
    shown = [value for value in offered if inspect.isclass(value) or inspect.isroutine(value)]
    return {f"{value.__module__}.{value.__qualname__}": value for value in shown}


PUBLIC = public_names()


@cache
def doctests_of(module: str) -> dict[str, list[Example]]:
    """Return the examples that running a module's doctests runs, by whose docstring they stand in."""
    return {test.name: test.examples for test in DocTestFinder().find(import_module(module), module)}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    """Parameters are documented, and the example is a doctest, which the suite runs and holds against an output."""
    value = PUBLIC[name]
    text = inspect.cleandoc(value.__doc__ or "")  # Its own: what it inherits is about something else.
    summary = text.partition("\n\n")[0]
    assert len(text) > 40, f"{name} is not explained"
    if issubclass_of(value, Exception):
        assert re.search(r": \S", summary), f"{name} does not say what to do next, after a colon"
        return
    ran = [each for each in doctests_of(value.__module__).get(name, []) if not each.options.get(SKIP)]
    assert any(each.want.strip() or each.exc_msg for each in ran), f"{name} has no example with an output that is run"
    if "made by" in summary or getattr(value, "_is_protocol", False):
        return  # By `open`, by the host, or by nobody: its constructor is not for users.
    missing = [
        each
        for each in inspect.signature(value).parameters
        if not each.startswith("_") and not re.search(rf"^(\**\w+, )*\**{each}(, \**\w+)*( : .*)?$", text, re.M)
    ]
    assert not missing, f"{name} does not document {missing}"


def issubclass_of(value: object, base: type) -> bool:
    """Whether a value is a class derived from another."""
    return inspect.isclass(value) and issubclass(value, base)
