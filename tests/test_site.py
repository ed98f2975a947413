"""The documentation: it builds without a warning, its links lead somewhere, and every public name is explained."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """Relative links and pictures, in every page a reader meets."""
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", mktsim.__all__)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    """Parameters are documented, and the example is a doctest, which the suite runs."""
    value = getattr(mktsim, name)
    text = inspect.getdoc(value) or ""
    assert len(text) > 40, name
    assert ">>> " in text, f"{name} has no example"
    if name in ("Marketplace", "DurableObject", "VendorObject") or issubclass_of(value, Exception):
        return  # Made by `open`, by the host, or by this package: nobody calls their constructors.
    listed = inspect.signature(value).parameters
    missing = [
        each
        for each in listed
        if each != "axes" and not re.search(rf"^(\**\w+, )*\**{each}(, \**\w+)*( : .*)?$", text, re.M)
    ]
    assert not missing, f"{name} does not document {missing}"


def issubclass_of(value: object, base: type) -> bool:
    """Whether a value is a class derived from another."""
    return inspect.isclass(value) and issubclass(value, base)
