"""The site's configuration: ``python -m sphinx -W -b html docs out/site``.

Pages are the texts in this folder, the public names of each room from their docstrings, and the notebooks as they are
stored (they are executed by the tests, not here).
"""

from __future__ import annotations

import inspect
import shutil
from importlib import import_module
from importlib.metadata import version as installed
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
NOTEBOOKS = HERE / "_notebooks"
REFERENCE = HERE / "_reference"
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
nb_execution_mode = "off"
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
    app.connect("builder-inited", _write_reference)  # type: ignore[attr-defined]
