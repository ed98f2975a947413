"""Values as Python code that makes them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from mktsim.study.scenario import Scenario


def code_of(value: Any) -> str:
    """Return a value as Python code; of dataclasses, what differs from the defaults.

    Examples
    --------
    >>> code_of(Scenario(vendors=10, fanout=6))
    "Scenario(vendors=10, preset='same-zone', fanout=6)"
    """
    if isinstance(value, tuple | list):
        inner = ", ".join(map(code_of, value)) + ("," if isinstance(value, tuple) and len(value) == 1 else "")
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if not is_dataclass(value):
        return repr(value)
    return f"{type(value).__name__}({', '.join(f'{name}={code_of(one)}' for name, one in _told(value))})"


def imports_of(*values: Any, **more: str) -> str:
    """Return the import statements that :func:`code_of` these values needs, a line a module.

    Parameters
    ----------
    *values : object
    **more : str
        Further names, and the module of each.

    Examples
    --------
    >>> print(imports_of(Scenario(vendors=10), simulate="mktsim"))
    from mktsim import Scenario, simulate
    """
    homes: dict[str, set[str]] = {}
    for name, module in more.items():
        homes.setdefault(module, set()).add(name)
    for name in {type(each).__name__ for value in values for each in _all_of(value)}:
        home = {"Scenario": "mktsim", "ScatterPolicy": "mktsim.fanout.policy", "Breaker": "mktsim.fanout.policy"}
        homes.setdefault(home.get(name, "mktsim.sim"), set()).add(name)
    return "\n".join(f"from {home} import {', '.join(sorted(names))}" for home, names in sorted(homes.items()))


def _told(value: Any) -> list[tuple[str, Any]]:
    """Return names and values of the fields that must be written down."""
    # A scenario's world is the preset's, which is told by its name, or its own, and then there is no preset.
    left_out = {"world" if value.preset != "own" else "preset"} if isinstance(value, Scenario) else set()
    if isinstance(value, Scenario) and value.params == Scenario(statement=value.statement).params:
        left_out.add("params")
    return [
        (each.name, getattr(value, each.name))
        for each in fields(value)
        if each.init
        and each.name not in left_out
        and (each.default is MISSING or getattr(value, each.name) != each.default)
    ]


def _all_of(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for each in value:
            yield from _all_of(each)
    elif is_dataclass(value):
        yield value
        for _, each in _told(value):
            yield from _all_of(each)
