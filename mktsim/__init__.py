"""Exact SQL over many isolated SQLite databases, run for real and simulated by the same code.

The public names are loaded when first used, so that a worker process that only scans does not load the studies.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mktsim.errors import MktsimError
    from mktsim.fanout import QueryCoordinator, QueryResult, Scanner
    from mktsim.market import Cart, Marketplace, VendorObject, generate
    from mktsim.objects import DurableObject, noun
    from mktsim.placement import ConsistentHashRing
    from mktsim.sql import Schema
    from mktsim.study import Scenario, simulate, sweep

__version__ = "0.1.0"

_HOMES = {
    "Cart": "mktsim.market",
    "ConsistentHashRing": "mktsim.placement",
    "DurableObject": "mktsim.objects",
    "Marketplace": "mktsim.market",
    "MktsimError": "mktsim.errors",
    "QueryCoordinator": "mktsim.fanout",
    "QueryResult": "mktsim.fanout",
    "Scanner": "mktsim.fanout",
    "Scenario": "mktsim.study",
    "Schema": "mktsim.sql",
    "VendorObject": "mktsim.market",
    "generate": "mktsim.market",
    "noun": "mktsim.objects",
    "simulate": "mktsim.study",
    "sweep": "mktsim.study",
}

__all__ = [
    "Cart",
    "ConsistentHashRing",
    "DurableObject",
    "Marketplace",
    "MktsimError",
    "QueryCoordinator",
    "QueryResult",
    "Scanner",
    "Scenario",
    "Schema",
    "VendorObject",
    "generate",
    "noun",
    "simulate",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mktsim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
