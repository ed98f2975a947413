"""Imports only go down the floors, and each third-party driver is named in one place."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mktsim"

#: The first matching prefix decides; a room may import from lower floors and from itself.
FLOORS = {
    "mktsim.errors": -1,  # the ground that floor 0 stands on
    "mktsim.sqlite": 0,
    "mktsim.streams": 0,
    "mktsim.limits": 0,
    "mktsim.sql": 1,
    "mktsim.network": 1,
    "mktsim.placement": 1,
    "mktsim.storage": 2,
    "mktsim.objects": 3,
    "mktsim.fanout": 3,
    "mktsim.market": 4,
    "mktsim.cluster": 4,
    "mktsim.testing": 4,
    "mktsim.sim": 5,
    "mktsim.study": 6,
    "mktsim.explore": 7,
    "mktsim.cli": 7,
    "mktsim.__main__": 8,
    "mktsim": 8,
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """Return the room a module belongs to."""
    return next(
        room for room in sorted(FLOORS, key=len, reverse=True) if module == room or module.startswith(room + ".")
    )


def name_of(path: Path) -> str:
    """Return a file's module name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache  # Every test asks for every file.
def imports_of(path: Path) -> frozenset[str]:
    """Return every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in FLOORS}
    return frozenset(found)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_go_down_the_floors(path):
    """A room may import from floors below it and from itself; two rooms of one floor do not know each other."""
    here = room_of(name_of(path))
    for imported in imports_of(path):
        if imported.split(".")[0] != "mktsim" or imported == "mktsim":
            continue
        there = room_of(imported)
        assert there == here or FLOORS[there] < FLOORS[here], f"{name_of(path)} ({here}) imports {imported} ({there})"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("apsw", {"mktsim.sqlite"}),
        ("sqlite3", set()),
        ("sqlglot", {"mktsim.sql"}),
        ("simpy", {"mktsim.sim"}),
        ("scipy", {"mktsim.study", "mktsim.sim"}),
        ("matplotlib", {"mktsim.study"}),
        ("ipywidgets", {"mktsim.explore"}),
        ("rich", {"mktsim.cli", "mktsim.study"}),
        ("distributed", {"mktsim.cluster"}),
        ("hypothesis", set()),
    ],
)
def test_a_third_party_library_has_few_homes(library, homes):
    """Replacing a library means touching its homes and nothing else."""
    users = {room_of(name_of(path)) for path in MODULES for name in imports_of(path) if name.split(".")[0] == library}
    assert users <= homes


FORBIDDEN = re.compile(
    r"\btime\.(sleep|time|monotonic)\(|\bdatetime\.now\(|\bdatetime\.utcnow\(|\bdate\.today\(|"
    r"\brandom\.(random|choice|randint|shuffle|seed)\(|np\.random\.(seed|rand|randint|normal|default_rng)\("
)


@pytest.mark.parametrize("path", [path for path in MODULES if FLOORS[room_of(name_of(path))] < 5], ids=name_of)
def test_below_the_simulation_nothing_reads_a_wall_clock_or_a_global_generator(path):
    """Time is the running loop's, randomness a keyed stream that is handed in."""
    code = path.read_text()
    assert FORBIDDEN.search(code) is None
    if room_of(name_of(path)) != "mktsim.fanout":  # which times its phases for the result's statistics
        assert "perf_counter" not in code


#: What computes, whichever library it comes from: methods of arrays and tables, and functions.
COMPUTES = {
    "sum", "mean", "std", "var", "median", "quantile", "max", "min", "cumsum", "value_counts", "groupby", "nunique",
    "sort_values", "merge", "apply", "assign", "astype", "round", "divmod", "pow",
}  # fmt: skip
#: Rooms of a study from which an answer is computed: a view asks a question of `mktsim.study.questions` instead.
ENGINES = (
    "mktsim.sim.vectorised", "mktsim.sim.operators", "mktsim.sim.network", "mktsim.streams", "mktsim.placement",
    "mktsim.study.statistics", "mktsim.study.analytic", "mktsim.study.naive", "mktsim.study.correctness",
)  # fmt: skip


def computations(code: str) -> list[str]:
    """Name what a module computes with data: libraries for it, engines, methods of tables, divisions and products."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.names[0].name if isinstance(node, ast.Import) else str(node.module)
            names = {module, *(f"{module}.{alias.name}" for alias in node.names)}
            libraries = {"numpy", "pandas", "scipy", "statistics", "random", "fractions", "decimal"}
            if module.split(".")[0] in libraries or any(name.startswith(ENGINES) for name in names):
                found.append(f"line {node.lineno}: {module}")
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in COMPUTES:
                found.append(f"line {node.lineno}: {name}()")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Mult | ast.Pow | ast.FloorDiv | ast.Sub):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", ["fan_out", "failures", "hedges", "merges", "shards", "steps", "drawing", "magic"])
def test_an_explorer_is_a_view_and_computes_nothing(name):
    """What is shown is what a question of a study answered; captions and charts are the studies' too."""
    assert computations((PACKAGE / "explore" / f"{name}.py").read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import numpy as np", "from pandas import DataFrame", "from mktsim.sim.vectorised import Policy",
        "from mktsim.study import statistics",
        "kept = frame['after'] - frame['in']", "share = len(joined) / len(after)",
        "n = int((answer['coverage'] < 1).sum())", "counts = log['what'].value_counts()", "worst = max(times)",
    ],
)  # fmt: skip
def test_arithmetic_in_a_view_is_noticed(line):
    """The test above can fail: each of these stood in a view once, or could."""
    assert len(computations(line)) >= 1
