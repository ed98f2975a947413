"""Scatter and gather over many vendors."""

from mktsim.fanout.aggregator import Aggregator, tree
from mktsim.fanout.coordinator import QueryCoordinator
from mktsim.fanout.guarantees import Guarantees
from mktsim.fanout.interrupt import prepare
from mktsim.fanout.messages import Cancel, Partial, ScatterRequest, Tie, Withdrawn
from mktsim.fanout.policy import Breaker, Histogram, ScatterPolicy
from mktsim.fanout.result import Coverage, Explanation, QueryResult, QueryStats
from mktsim.fanout.scanner import Scanner, ShardScanner, scan_shard, store_scanners
from mktsim.fanout.stream import RowStream

__all__ = [
    "Aggregator",
    "Breaker",
    "Cancel",
    "Coverage",
    "Explanation",
    "Guarantees",
    "Histogram",
    "Partial",
    "QueryCoordinator",
    "QueryResult",
    "QueryStats",
    "RowStream",
    "Scanner",
    "ScatterPolicy",
    "ScatterRequest",
    "ShardScanner",
    "Tie",
    "Withdrawn",
    "prepare",
    "scan_shard",
    "store_scanners",
    "tree",
]
