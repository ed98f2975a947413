"""Exact SQL over many isolated SQLite databases, run for real and simulated by the same code.

The public names are loaded when first used, so that a worker process that only scans does not load the studies.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mktsim.cluster import ClusterExecutor
    from mktsim.errors import MktsimError
    from mktsim.explore.magic import load_ipython_extension
    from mktsim.fanout import QueryCoordinator, QueryResult, Scanner, ScatterPolicy
    from mktsim.market import Cart, Marketplace, VendorObject, generate
    from mktsim.network import Metered
    from mktsim.objects import DurableObject, noun
    from mktsim.placement import (
        BoundedLoadHash,
        ConsistentHashRing,
        JumpHash,
        MaglevHash,
        MultiProbeHash,
        RendezvousHash,
        TwoChoicesHash,
        placement_from_dict,
        shard_report,
        weights_from_load,
    )
    from mktsim.sql import Schema
    from mktsim.study import (
        Calibration,
        Prediction,
        Scenario,
        StudyResult,
        calibrate,
        compare,
        optimise,
        predict,
        replicate,
        simulate,
        sweep,
        validate,
    )

__version__ = "0.1.0"

#: Since when this package is loaded, ns since 1970: `mktsim.study.provenance` doubts what is written to later.
_IMPORTED_NS = time.time_ns()

_HOMES = {
    "BoundedLoadHash": "mktsim.placement",
    "Calibration": "mktsim.study",
    "Cart": "mktsim.market",
    "ClusterExecutor": "mktsim.cluster",
    "ConsistentHashRing": "mktsim.placement",
    "DurableObject": "mktsim.objects",
    "JumpHash": "mktsim.placement",
    "MaglevHash": "mktsim.placement",
    "Marketplace": "mktsim.market",
    "Metered": "mktsim.network",
    "MktsimError": "mktsim.errors",
    "MultiProbeHash": "mktsim.placement",
    "Prediction": "mktsim.study",
    "QueryCoordinator": "mktsim.fanout",
    "QueryResult": "mktsim.fanout",
    "RendezvousHash": "mktsim.placement",
    "Scanner": "mktsim.fanout",
    "ScatterPolicy": "mktsim.fanout",
    "Scenario": "mktsim.study",
    "Schema": "mktsim.sql",
    "StudyResult": "mktsim.study",
    "TwoChoicesHash": "mktsim.placement",
    "VendorObject": "mktsim.market",
    "calibrate": "mktsim.study",
    "compare": "mktsim.study",
    "generate": "mktsim.market",
    "load_ipython_extension": "mktsim.explore.magic",
    "noun": "mktsim.objects",
    "optimise": "mktsim.study",
    "placement_from_dict": "mktsim.placement",
    "predict": "mktsim.study",
    "replicate": "mktsim.study",
    "shard_report": "mktsim.placement",
    "simulate": "mktsim.study",
    "sweep": "mktsim.study",
    "validate": "mktsim.study",
    "weights_from_load": "mktsim.placement",
}

__all__ = [
    "BoundedLoadHash",
    "Calibration",
    "Cart",
    "ClusterExecutor",
    "ConsistentHashRing",
    "DurableObject",
    "JumpHash",
    "MaglevHash",
    "Marketplace",
    "Metered",
    "MktsimError",
    "MultiProbeHash",
    "Prediction",
    "QueryCoordinator",
    "QueryResult",
    "RendezvousHash",
    "Scanner",
    "ScatterPolicy",
    "Scenario",
    "Schema",
    "StudyResult",
    "TwoChoicesHash",
    "VendorObject",
    "calibrate",
    "compare",
    "generate",
    "load_ipython_extension",
    "noun",
    "optimise",
    "placement_from_dict",
    "predict",
    "replicate",
    "shard_report",
    "simulate",
    "sweep",
    "validate",
    "weights_from_load",
]


def __getattr__(name: str) -> Any:
    if name == "explore":
        return import_module("mktsim.explore")
    if name not in _HOMES:
        raise AttributeError(f"module 'mktsim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
