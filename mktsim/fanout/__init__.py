"""Scatter and gather over many vendors."""

from mktsim.fanout.coordinator import QueryCoordinator
from mktsim.fanout.result import Coverage, Explanation, QueryResult, QueryStats
from mktsim.fanout.scanner import Partial, Scanner, ScatterRequest, ShardScanner, scan_shard, store_scanners

__all__ = [
    "Coverage",
    "Explanation",
    "Partial",
    "QueryCoordinator",
    "QueryResult",
    "QueryStats",
    "Scanner",
    "ScatterRequest",
    "ShardScanner",
    "scan_shard",
    "store_scanners",
]
