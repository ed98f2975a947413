"""The site's configuration: ``python -m sphinx -W -b html docs out/site``, or ``make site``.

Pages are the texts in this folder, README.md as the first one, the public names of each room from their docstrings, and
the notebooks. These are stored without outputs: with MKTSIM_SITE_RUN=1, as ``make site`` has it, they are executed (at
the size of MKTSIM_FAST=1, and again only when they change), so that the site has their charts and answers.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from importlib import import_module
from importlib.metadata import version as installed
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
NOTEBOOKS = HERE / "_notebooks"
REFERENCE = HERE / "_reference"
PROJECT = HERE / "_project"
#: Files outside this folder -> what they are on the site. README.md has no page of its own: index.md includes it.
OUTSIDE = {
    "README.md": "_project/README.txt",
    "CONTRIBUTING.md": "_project/CONTRIBUTING.md",
    "data/README.md": "_project/DATA.md",
}
#: Page -> title and the modules whose public names it has.
ROOMS = {
    "market": ("The marketplace", ["mktsim.market"]),
    "query": ("Queries", ["mktsim.fanout", "mktsim.sql"]),
    "objects": ("Durable objects", ["mktsim.objects"]),
    "placement": ("Placement", ["mktsim.placement"]),
    "sim": ("The simulated world", ["mktsim.sim"]),
    "study": (
        "Studies",
        [
            *("mktsim.study", "mktsim.study.analytic", "mktsim.study.arrivals", "mktsim.study.live"),
            *("mktsim.study.prediction", "mktsim.study.charts"),
        ],
    ),
    "cluster": ("Past one machine", ["mktsim.cluster", "mktsim.limits"]),
    "explore": ("Explorers", ["mktsim.explore"]),
    "storage": ("Storage", ["mktsim.storage"]),
    "testing": ("Testing your own statements", ["mktsim.testing"]),
    "errors": ("Errors", ["mktsim.errors"]),
}

project = "mktsim"
author = "the mktsim authors"
version = release = installed("mktsim")
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.intersphinx", "numpydoc", "myst_nb"]
html_theme = "furo"
html_title = "mktsim"
html_static_path = ["images"]
default_role = "code"
nb_execution_mode = "cache" if os.environ.get("MKTSIM_SITE_RUN") == "1" else "off"
nb_execution_cache_path = str(HERE.parent / "out" / "notebook-cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
if nb_execution_mode == "cache":
    os.environ["MKTSIM_FAST"] = "1"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # No other site is fetched: the build needs no network.
suppress_warnings = ["config.cache"]


def _copy_notebooks(_app: object) -> None:
    """Bring the notebooks below the source folder, where the builder looks for pages."""
    shutil.rmtree(NOTEBOOKS, ignore_errors=True)
    NOTEBOOKS.mkdir()
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, NOTEBOOKS / notebook.name)


def _copy_outside(_app: object) -> None:
    """Bring the project's own pages below the source folder, and turn their links to where files are on the site."""
    shutil.rmtree(PROJECT, ignore_errors=True)
    PROJECT.mkdir()
    for name, page in OUTSIDE.items():
        folder = (HERE.parent / name).parent
        reader = HERE if page.endswith(".txt") else PROJECT  # An included text is read where it is included.

        def turned(link: re.Match[str], folder: Path = folder, reader: Path = reader) -> str:
            target, anchor = link["target"], link["anchor"] or ""
            if "://" in target:
                return link[0]
            found = (folder / target).resolve().relative_to(HERE.parent)
            if str(found) in OUTSIDE:
                place = HERE / OUTSIDE[str(found)]
            elif found.parts[0] == "docs":
                place = HERE.parent / found
            else:
                place = NOTEBOOKS / found.name
            return f"]({os.path.relpath(place, reader)}{anchor})"

        text = (HERE.parent / name).read_text("utf-8")
        (HERE / page).write_text(re.sub(r"\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)", turned, text), "utf-8")


def _public(module: ModuleType) -> list[str]:
    """Return the names a module offers: its ``__all__``, or what it defines itself."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return [name for name in getattr(module, "__all__", own) if not name.startswith("_")]


def _write_reference(_app: object) -> None:
    """Write a page a room: its modules' own words, then each public name."""
    shutil.rmtree(REFERENCE, ignore_errors=True)
    REFERENCE.mkdir()
    shown: set[int] = set()  # A name that several modules offer is shown once.
    for page, (title, modules) in ROOMS.items():
        lines = [title, "=" * len(title), ""]
        for module_name in modules:
            module = import_module(module_name)
            lines += [module_name, "-" * len(module_name), "", f".. automodule:: {module_name}", "   :no-members:", ""]
            for name in _public(module):
                value = getattr(module, name)
                if not (inspect.isclass(value) or inspect.isroutine(value)) or id(value) in shown:
                    continue
                shown.add(id(value))
                if not inspect.isclass(value):
                    lines += [f".. autofunction:: {module_name}.{name}", ""]
                elif issubclass(value, BaseException):
                    lines += [f".. autoexception:: {module_name}.{name}", "   :show-inheritance:", ""]
                else:
                    lines += [f".. autoclass:: {module_name}.{name}", "   :members:", ""]
        (REFERENCE / f"{page}.rst").write_text("\n".join(lines) + "\n", "utf-8")


def setup(app: object) -> None:
    """Register what is done before the pages are read."""
    app.connect("builder-inited", _copy_notebooks)  # type: ignore[attr-defined]
    app.connect("builder-inited", _copy_outside)  # type: ignore[attr-defined]
    app.connect("builder-inited", _write_reference)  # type: ignore[attr-defined]
