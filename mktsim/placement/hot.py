"""Hot vendors: what each shard really carries, and weights that follow from it.

A placement balances the number of keys; work is another matter where one vendor brings a hundred times the median. All
here are pure functions of a placement and of an array of measured loads, one number a key in any unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mktsim.errors import EmptyFleetError, InvalidArgumentError
from mktsim.placement.base import Placement, hash_keys
from mktsim.placement.nodes import NodePlacement
from mktsim.placement.remembering import RememberingPlacement

_LEAST: Final = 1 / 64  # of a node's first weight: a node that a hot vendor fills keeps a token or two


def shard_report(placement: Placement, keys: Iterable[str], loads: ArrayLike) -> pd.DataFrame:
    """Tabulate what each node carries, the fullest first.

    Parameters
    ----------
    placement : Placement
        Any; its weights say what is fair, where it has some.
    keys : iterable of str
        The vendors.
    loads : array of float
        What each of them brings, 0 or more: requests a second, rows, milliseconds of service time.

    Returns
    -------
    DataFrame
        One row a node: ``node``, ``weight``, ``vendors``, ``load``, ``share`` of the whole load, ``over_fair`` (load
        over the node's part by weight; NaN for weight 0), ``hottest`` (the vendor that brings most) and its
        ``hottest_load``. A node without vendors has an empty `hottest`.

    Raises
    ------
    InvalidArgumentError
        If the loads are not one finite number from 0 on for each key, or a key is no string.
    EmptyFleetError
        If there are no keys or no node to hold them.

    Examples
    --------
    >>> from mktsim.placement import JumpHash
    >>> report = shard_report(JumpHash(["a", "b"]), ["acme", "widgets", "gadgets"], [1, 100, 1])
    >>> report[["node", "vendors", "load", "hottest"]].values.tolist()
    [['a', 2, 101.0, 'widgets'], ['b', 1, 1.0, 'gadgets']]
    """
    names = _names(keys)
    amounts = _checked(loads, len(names))
    owners, nodes = placement.assign(names), placement.nodes
    weights = np.array(list(_weights(placement).values()), dtype=float)
    carried = np.bincount(owners, weights=amounts, minlength=len(nodes))
    hottest = np.full(len(nodes), -1, dtype=np.intp)
    order = np.argsort(amounts, kind="stable")  # the last write wins: the hottest of each node
    hottest[owners[order]] = order
    whole, fair = carried.sum(), weights / weights.sum() * carried.sum()
    frame = pd.DataFrame(
        {
            "node": nodes,
            "weight": weights,
            "vendors": np.bincount(owners, minlength=len(nodes)),
            "load": carried,
            "share": carried / whole if whole else carried,
            "over_fair": np.divide(carried, fair, out=np.full(len(nodes), np.nan), where=fair > 0),
            "hottest": [names[i] if i >= 0 else "" for i in hottest.tolist()],
            "hottest_load": np.where(hottest >= 0, amounts[hottest], 0.0),
        }
    )
    return frame.sort_values(["load", "node"], ascending=[False, True], ignore_index=True)


def weights_from_load(
    placement: NodePlacement, keys: Iterable[str], loads: ArrayLike, *, rounds: int = 30
) -> dict[str, float]:
    """Find weights that bring the fullest node nearest to its fair part of the load.

    A node that carries more than its part gets a smaller weight, in proportion to the excess and damped, the keys are
    placed by the new weights, and so on; the best weights seen are returned, the first ones included, so that the
    fullest node is never fuller than before. A vendor hotter than a node's whole part cannot be divided, and lands
    elsewhere when its node's weight falls far: hand such loads to :class:`BoundedLoadHash`, which leaves it alone on
    its node.

    Parameters
    ----------
    placement : NodePlacement
        Takes weights and looks at hashes alone: a ring, rendezvous, Maglev or multi-probe. It is left as it is.
    keys, loads
        As :func:`shard_report` takes them.
    rounds : int
        How many times to adjust.

    Returns
    -------
    dict of str to float
        A weight for each node, in the order of its nodes, adding up to the weights of before; nodes of weight 0 keep
        it. Build the new placement from it: ``ConsistentHashRing(weights)``.

    Raises
    ------
    InvalidArgumentError
        As :func:`shard_report`, or the placement takes no weights.
    EmptyFleetError
        If there are no keys or no node to hold them.

    Examples
    --------
    >>> from mktsim.placement import ConsistentHashRing
    >>> ring = ConsistentHashRing(["a", "b", "c", "d"])
    >>> names = [f"vendor-{i}" for i in range(1000)]
    >>> loads = [100 if i == 7 else 1 for i in range(1000)]
    >>> better = ConsistentHashRing(weights_from_load(ring, names, loads))
    >>> [float(round(shard_report(each, names, loads)["load"].max())) for each in (ring, better)]
    [347.0, 276.0]
    """
    names = _names(keys)
    amounts = _checked(loads, len(names))
    if not isinstance(placement, NodePlacement) or isinstance(placement, RememberingPlacement):
        raise InvalidArgumentError(
            f"weights_from_load needs a placement that takes weights and remembers nothing, not {placement!r:.80}: "
            "bounded loads and two choices take the loads themselves, assign(keys, loads)"
        )
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 0 <= rounds <= 10_000:
        raise InvalidArgumentError(f"rounds must be a whole number from 0 to 10000, not {rounds!r:.80}")
    hashes = hash_keys(names)
    first = np.array(list(placement.weights.values()), dtype=float)
    weights = best = first
    fair = first / first.sum() * amounts.sum() if first.any() else first
    least, able = math.inf, fair > 0
    for step in range(rounds + 1):
        trial = placement if not step else _reweighted(placement, weights)
        carried = np.bincount(trial.assign_hashes(hashes), weights=amounts, minlength=len(first))
        if not able.any():
            break
        fullest = float((carried[able] / fair[able]).max())
        if fullest < least:
            least, best = fullest, weights
        gain = np.ones(len(first))
        gain[able] = np.sqrt(fair[able] / np.maximum(carried[able], fair[able] * 0.25))
        weights = np.where(able, np.maximum(weights * gain, first * _LEAST), 0.0)
        weights = weights * (first.sum() / weights.sum())
    return dict(zip(placement.nodes, best.tolist(), strict=True))


def _reweighted(placement: NodePlacement, weights: NDArray[np.float64]) -> NodePlacement:
    data: dict[str, Any] = placement.to_dict()
    return type(placement).from_dict(
        data | {"nodes": [[id, float(weight)] for id, weight in zip(placement.nodes, weights, strict=True)]}
    )


def _names(keys: Iterable[str]) -> list[str]:
    if isinstance(keys, str | bytes):
        raise InvalidArgumentError(f"keys must be many strings, not one: put {keys!r:.80} into a list")
    names = list(keys)
    if not names:
        raise EmptyFleetError("there is no key whose load could be placed: pass at least one")
    return names


def _checked(loads: ArrayLike, keys: int) -> NDArray[np.float64]:
    try:
        amounts = np.asarray(loads, dtype=float)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"loads must be numbers, not {loads!r:.80}") from None
    if amounts.shape != (keys,):
        raise InvalidArgumentError(f"loads must be one number for each of {keys} keys, not of shape {amounts.shape}")
    wrong = np.flatnonzero(~(np.isfinite(amounts) & (amounts >= 0)))
    if len(wrong):
        raise InvalidArgumentError(
            f"loads must be finite and at least 0, not {amounts[wrong[0]]!r} (at position {wrong[0]})"
        )
    return amounts


def _weights(placement: Placement) -> Mapping[str, float]:
    weights: Mapping[str, float] = getattr(placement, "weights", None) or dict.fromkeys(placement.nodes, 1.0)
    return weights
