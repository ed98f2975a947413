"""Explorers for notebooks, and the ``%%market`` magic: thin views over studies and simulations.

Each of :func:`fanout`, :func:`ring`, :func:`merge`, :func:`stragglers`, :func:`faults` and :func:`stepper` makes a
widget to display, with `.config`, the question shown as Python code. They are loaded when first used.

Examples
--------
>>> from mktsim import explore
>>> explorer = explore.ring(shards=3, vendors=100)
>>> print(explorer.config.splitlines()[0])
from mktsim.study.questions import ring_change
>>> explorer.close()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mktsim.explore.base import Explorer
    from mktsim.explore.failures import Faults as faults
    from mktsim.explore.fan_out import FanOut as fanout
    from mktsim.explore.hedges import Stragglers as stragglers
    from mktsim.explore.magic import load_ipython_extension
    from mktsim.explore.merges import Merge as merge
    from mktsim.explore.shards import Ring as ring
    from mktsim.explore.steps import Stepper as stepper

_HOMES = {
    "Explorer": ("base", "Explorer"),
    "fanout": ("fan_out", "FanOut"),
    "faults": ("failures", "Faults"),
    "load_ipython_extension": ("magic", "load_ipython_extension"),
    "merge": ("merges", "Merge"),
    "ring": ("shards", "Ring"),
    "stepper": ("steps", "Stepper"),
    "stragglers": ("hedges", "Stragglers"),
}

__all__ = ["Explorer", "fanout", "faults", "load_ipython_extension", "merge", "ring", "stepper", "stragglers"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mktsim.explore' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"mktsim.explore.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
