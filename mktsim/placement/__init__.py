"""From a vendor's id to the node that holds it: deterministic, the same in every process, on every platform."""

from mktsim.placement.base import Placement, hash_key, hash_keys, moved
from mktsim.placement.ring import ConsistentHashRing

__all__ = ["ConsistentHashRing", "Placement", "hash_key", "hash_keys", "moved"]
