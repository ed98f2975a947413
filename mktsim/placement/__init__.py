"""From a vendor's id to the node that holds it: deterministic, the same in every process, on every platform.

============== ====================== ================= ============= =====================================
placement      shares                 a new node moves  look-up       take it where
============== ====================== ================= ============= =====================================
ring           Beta law, by weight    1/(n+1)           log(n v)      nodes come and go; the default
jump           even                   1/(n+1)           ln n          nodes are numbered, only grow
rendezvous     exact, by weight       1/(n+1)           n             few nodes, any weights
Maglev         even to an entry       1/(n+1) and more  1             look-ups count most
multi-probe    fullest within 10 %    1/(n+1)           21 log n      memory counts
bounded loads  at most (1 + eps)      more              remembered    a cap must hold
two choices    within log log n       1/(n+1)           remembered    loads of keys differ
============== ====================== ================= ============= =====================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mktsim.errors import InvalidArgumentError
from mktsim.placement.base import Placement, hash_key, hash_keys, moved
from mktsim.placement.bounded import BoundedLoadHash
from mktsim.placement.choices import TwoChoicesHash
from mktsim.placement.hot import shard_report, weights_from_load
from mktsim.placement.jump import JumpHash
from mktsim.placement.maglev import MaglevHash
from mktsim.placement.multi_probe import MultiProbeHash
from mktsim.placement.nodes import NodePlacement
from mktsim.placement.rendezvous import RendezvousHash
from mktsim.placement.ring import ConsistentHashRing

#: Every placement by the name under which it is stored.
PLACEMENTS: Final[Mapping[str, type[NodePlacement]]] = {
    each.kind: each
    for each in (
        ConsistentHashRing, JumpHash, RendezvousHash, MaglevHash, MultiProbeHash, BoundedLoadHash, TwoChoicesHash,
    )
}  # fmt: skip


def placement_from_dict(data: Mapping[str, Any]) -> NodePlacement:
    """Restore any placement from what its ``to_dict`` returned.

    Parameters
    ----------
    data : mapping
        Also as JSON gives it back.

    Raises
    ------
    InvalidArgumentError
        If `data` name no placement or are not of its form.

    Examples
    --------
    >>> placement_from_dict(JumpHash(["a", "b"]).to_dict())
    <JumpHash of 2 nodes>
    """
    kind = data.get("placement") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in PLACEMENTS:
        raise InvalidArgumentError(
            f"data describe no placement: it is one of {', '.join(PLACEMENTS)}, not {kind!r:.80}"
        )
    return PLACEMENTS[kind].from_dict(data)


__all__ = [
    "PLACEMENTS",
    "BoundedLoadHash",
    "ConsistentHashRing",
    "JumpHash",
    "MaglevHash",
    "MultiProbeHash",
    "NodePlacement",
    "Placement",
    "RendezvousHash",
    "TwoChoicesHash",
    "hash_key",
    "hash_keys",
    "moved",
    "placement_from_dict",
    "shard_report",
    "weights_from_load",
]
