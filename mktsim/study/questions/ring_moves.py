"""Which vendors move when shards come or go?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mktsim.placement import ConsistentHashRing, hash_keys, moved
from mktsim.study.coordinated import vendor_ids


@dataclass(frozen=True, slots=True, eq=False)
class RingChange:
    """What a change of shards does to the vendors.

    Attributes
    ----------
    turn : ndarray of float64, shape (vendors,)
        Each vendor's place on the ring, from 0 to 1.
    moved : ndarray of bool, shape (vendors,)
        Whether it changed its shard.
    shards : DataFrame
        One row a shard, of before or after: ``shard``, ``before``, ``after`` (vendors), ``stayed``, ``in``, ``out``
        (that moved).
    joined, gone : tuple of str
        Shards of after alone, and of before alone.
    even_share : float
        The share of the vendors that those which joined would have if all shards of after had as many.
    """

    turn: NDArray[np.float64]
    moved: NDArray[np.bool_]
    shards: pd.DataFrame
    joined: tuple[str, ...]
    gone: tuple[str, ...]
    even_share: float

    @property
    def count(self) -> int:
        """The number of vendors that moved."""
        return int(self.moved.sum())

    @property
    def share(self) -> float:
        """The share of the vendors that moved."""
        return float(self.moved.mean()) if len(self.moved) else 0.0

    def in_words(self) -> str:
        """Say who moved, where from and where to."""
        text = f"{self.count:,} of {len(self.moved):,} vendors moved ({self.share:.1%})"
        if self.joined:
            text += f", all of them to {', '.join(self.joined)}; an even share would be {self.even_share:.1%}"
        if self.gone:
            text += f", all of them from {', '.join(self.gone)}; nobody else had to"
        return f"{text}."


def ring_change(
    before: Sequence[str], after: Sequence[str], vendors: int | Sequence[str], *, virtual_nodes: int
) -> RingChange:
    """Place vendors on two rings and compare.

    Parameters
    ----------
    before, after : sequence of str
        Names of the shards.
    vendors : int or sequence of str
        Their ids, or how many of the ids that simulated vendors have.
    virtual_nodes : int
        Points of each shard on the ring.

    Returns
    -------
    RingChange

    Raises
    ------
    InvalidArgumentError
        If a number is out of range, or a name comes twice.

    Examples
    --------
    >>> change = ring_change(["a", "b"], ["a", "b", "c"], 300, virtual_nodes=150)
    >>> bool((change.shards.loc[change.shards["shard"] != "c", "in"] == 0).all()), change.joined
    (True, ('c',))
    """
    ids = vendor_ids(vendors) if isinstance(vendors, int) else vendors
    old, new = (ConsistentHashRing(nodes, virtual_nodes=virtual_nodes) for nodes in (before, after))
    changed = moved(old, new, ids)
    names = list(dict.fromkeys([*before, *after]))
    was = pd.Series(np.array(before)[old.assign(ids)])
    is_now = pd.Series(np.array(after)[new.assign(ids)])
    counts = {
        "before": was.value_counts(),
        "after": is_now.value_counts(),
        "stayed": is_now[~changed].value_counts(),
        "in": is_now[changed].value_counts(),
        "out": was[changed].value_counts(),
    }
    frame = pd.DataFrame({name: count.reindex(names, fill_value=0) for name, count in counts.items()})
    joined = tuple(name for name in after if name not in set(before))
    gone = tuple(name for name in before if name not in set(after))
    return RingChange(
        hash_keys(ids) / 2.0**64, changed, frame.rename_axis("shard").reset_index(), joined, gone,
        len(joined) / len(after) if len(after) else 0.0,
    )  # fmt: skip
