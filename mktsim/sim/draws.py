"""Draws of durations: from keyed uniforms to whole ticks, for all hosts of a group or for some of them.

Rules
-----
A host's duration is the same to the last bit whoever else is drawn for, in one array or in many.

Theory of operation
-------------------
Every duration is rounded to a whole number of ticks of 2**-30 s (0.93 ns). Sums and differences of ticks are exact in
float64 below 2**23 s (97 days), whatever their order. Draws are made in blocks that stay in the processor's cache; of
few hosts far apart each number is looked up by itself.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import SimulationError
from mktsim.sim.latency import Constant, Latency
from mktsim.streams import Streams

#: Seconds in a tick, the grid on which all simulated durations lie.
TICK_S: Final = 2.0**-30
#: Seconds of simulated time up to which sums of ticks are exact.
HORIZON_S: Final = 2.0**23
_TICKS_PER_MS: Final = 2.0**30 / 1000.0
_MAX_TICKS: Final = 2.0**50  # 12 days, so that some thousands of the longest still add up without overflow.

Ticks = NDArray[np.int64]
#: Which hosts of a group are drawn for: all, those from start to stop, or some in the order of their indices.
Chosen = slice | NDArray[np.intp] | None
_BLOCK: Final = 1 << 14
#: Where fewer than one host of so many is chosen, each draw is looked up by itself; measured.
_SPARSE: Final = 40


def to_ticks(ms: NDArray[np.float64], *, out: Ticks | None = None) -> Ticks:
    """Round durations in ms to whole ticks, into `out` where it is given.

    Raises
    ------
    SimulationError
        If one is negative, not a number, or longer than 12 days.
    """
    ticks = ms * _TICKS_PER_MS
    np.rint(ticks, out=ticks)
    if ticks.size and not (float(ticks.min()) >= 0.0 and float(ticks.max()) <= _MAX_TICKS):
        raise SimulationError(
            f"a simulated duration must be from 0 ms to 12 days; drawn: {float(ms.min()):g} to {float(ms.max()):g} ms"
        )
    if out is None:
        return ticks.astype(np.int64)
    np.copyto(out, ticks, casting="unsafe")
    return out


def ms_to_ticks(ms: float) -> int:
    """Round one duration in ms to whole ticks; see :func:`to_ticks`."""
    return int(to_ticks(np.array([ms]))[0])


def transfer_ticks(size_bytes: float, bandwidth_mbps: float | None) -> int:
    """Return what a message of that size takes on a link of that many megabits a second, beyond its latency."""
    return 0 if bandwidth_mbps is None or not size_bytes else ms_to_ticks(size_bytes * 0.008 / bandwidth_mbps)


def uniforms(streams: Streams, stream: str, request: int, n: int, only: Chosen = None) -> NDArray[np.float64]:
    """Draw the uniforms of `n` hosts, or of the chosen ones alone: the same numbers, bit for bit."""
    if only is None:
        return streams.uniform(stream, request, n)
    if isinstance(only, slice):
        return streams.uniform(stream, request, only.stop - only.start, first=only.start)
    if not len(only):
        return np.empty(0)
    first, last = int(only[0]), int(only[-1])
    if len(only) * _SPARSE < last - first:
        return streams.uniform_of(stream, request, only)
    u = np.empty(len(only))
    edges = np.arange(first, last + 1 + _BLOCK, _BLOCK)
    places = np.searchsorted(only, edges)
    for edge, start, stop in zip(edges[:-1].tolist(), places[:-1].tolist(), places[1:].tolist(), strict=True):
        if start < stop:
            drawn = streams.uniform(stream, request, int(only[stop - 1]) - edge + 1, first=edge)
            drawn.take(only[start:stop] - edge, out=u[start:stop])
    return u


def count_of(n: int, only: Chosen) -> int:
    """Return how many hosts are chosen of `n`."""
    return n if only is None else only.stop - only.start if isinstance(only, slice) else len(only)


def chosen_of(values: NDArray[Any], only: Chosen) -> NDArray[Any]:
    """Return the values of the chosen hosts."""
    return values if only is None else values[only]


def among(places: NDArray[np.intp], only: Chosen) -> NDArray[np.intp]:
    """Return the hosts at some places of the chosen ones."""
    return places if only is None else places + only.start if isinstance(only, slice) else only[places]


def draw(
    latency: Latency, streams: Streams, stream: str, request: int, n: int, pace: float = 1.0, only: Chosen = None
) -> Ticks:
    """Draw the durations of `n` hosts, or of the chosen ones alone, times `pace`."""
    if isinstance(latency, Constant):  # The same ticks without spending a million uniforms on them.
        return np.full(count_of(n, only), to_ticks(np.array([latency.ms * pace]))[0])
    u = uniforms(streams, stream, request, n, only)
    ticks = u.view(np.int64)  # In the memory of the uniforms, a block after it was read: fresh memory costs a tenth.
    for start in range(0, len(u), _BLOCK):  # In blocks, which stay in the processor's cache: it saves a tenth.
        ms = latency.sample(u[start : start + _BLOCK])
        to_ticks(ms if pace == 1.0 else ms * pace, out=ticks[start : start + _BLOCK])
    return ticks
