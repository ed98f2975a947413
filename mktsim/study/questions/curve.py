"""How does the time of one query grow with the number of vendors it asks, up to a fleet of one's own?

Rules
-----
The engine is the one that `simulate` would choose, and the times are its times, bit for bit. The array engine does a
million vendors; what only the event engine covers is simulated call by call, so a point is given as many requests as
fit into a bounded number of calls, and a size for which that is too few is left out, by name.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.sim.vectorised import vectorised_sojourn_times
from mktsim.streams import Streams
from mktsim.study.coordinated import coordinated_sojourn_times
from mktsim.study.points import Point, tidy
from mktsim.study.replication import dependence, place, requests_are_independent
from mktsim.study.scenario import Scenario
from mktsim.study.slices import Progress, sliced
from mktsim.study.statistics import Interval, quantile_interval, samples_for_quantile

_SLICE_LEAVES: Final = 100_000
#: Calls of the event engine in a slice, and for a point: about 0.2 s and 2 s.
_SLICE_CALLS: Final = 1_000
_POINT_CALLS: Final = 10_000
_QUANTILES: Final = (0.5, 0.99)


@dataclass(frozen=True, slots=True, eq=False)
class FanOutCurve:
    """Quantiles of the sojourn time by the number of vendors.

    Attributes
    ----------
    points : DataFrame
        See :class:`mktsim.study.points.Point`; the statistics are p50 and p99 of the sojourn time in ms, `n` the
        requests behind each, `engine` the one that ran.
    largest : DataFrame
        Of each series the largest fleet that has it: ``""`` (the series), ``vendors``, ``ms``, ``low``, ``high``,
        ``requests``.
    left_out : tuple of str
        A sentence for whatever was asked for and is not there.
    """

    points: pd.DataFrame
    largest: pd.DataFrame
    left_out: tuple[str, ...]

    @property
    def n(self) -> str:
        """The requests behind a point, or their range, in words."""
        counts = sorted(set(self.points["n"]))
        return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


@sliced
def fan_out_curve(
    scenario: Scenario, *, requests: int, seed: int, beside_flat: bool = False
) -> Generator[Progress, None, FanOutCurve]:
    """Simulate scatters over 10, 100, ... vendors up to the scenario's; a slice yields the points so far.

    Parameters
    ----------
    scenario : Scenario
        The largest fleet, its world and the fan-out.
    requests : int
        For each size, at least 6; p99 needs 299 and is left out below. Where only the event engine covers the scenario,
        a point has at most 10,000 calls.
    seed : int
        Decides every draw: the times are those of `simulate`.
    beside_flat : bool
        Where there is a tree, the flat scatter as well.

    Returns
    -------
    FanOutCurve

    Raises
    ------
    InvalidArgumentError
        Before any work, if there are too few requests for a median.

    Examples
    --------
    >>> fan_out_curve(Scenario(vendors=10), requests=30, seed=1).points["statistic"].tolist()
    ['p50']
    """
    least = samples_for_quantile(_QUANTILES[0])
    if not isinstance(requests, int) or isinstance(requests, bool) or requests < least:
        raise InvalidArgumentError(f"requests must be a whole number of at least {least}, not {requests!r:.80}")
    streams = Streams(seed)
    kinds = [scenario.fanout, "flat"] if beside_flat and scenario.width is not None else [scenario.fanout]
    sizes = sorted({10**k for k in range(1, 8) if 10**k < scenario.vendors} | {scenario.vendors})
    plan = [
        (here, *_affordable(here, requests))
        for n in sizes
        for kind in kinds
        for here in [scenario.replace(vendors=n, fanout=kind)]
    ]
    left_out = _left_out([(here, why, many) for here, why, many in plan], requests, least)
    if (shared := dependence(scenario)) is not None:
        left_out += (f"Intervals: the requests of one run depend on {shared}; replicate gives them.",)
    plan = [(here, why, many) for here, why, many in plan if many >= least]
    total, done = sum(many for *_, many in plan), 0
    points: list[Point] = []
    for place_, (here, why, many) in enumerate(plan):
        if place_ and here.vendors != plan[place_ - 1][0].vendors and points:
            yield Progress(done, total, _what(here), _curve(points, left_out))
        times: list[NDArray[np.float64]] = []
        for part in _times(here, streams, many, arrays=why is None):
            times.append(part)
            done += len(part)
            yield Progress(done, total, _what(here))
        engine = "vectorised" if why is None else "event"
        points += _quantiles(np.concatenate(times) * 1e3, here, seed, engine)
    return _curve(points, left_out)


def _what(here: Scenario) -> str:
    return f"requests, {here.vendors:,} vendors"


def _affordable(here: Scenario, requests: int) -> tuple[str | None, int]:
    """Return why the arrays cannot compute it, or None, and how many requests are simulated."""
    why = here.uncovered(place(here))
    return why, requests if why is None else min(requests, _POINT_CALLS // here.vendors)


def _times(here: Scenario, streams: Streams, requests: int, *, arrays: bool) -> Iterator[NDArray[np.float64]]:
    hosts = place(here)
    if arrays:
        step = max(1, _SLICE_LEAVES // here.vendors)
    elif requests_are_independent(here):
        step = max(1, _SLICE_CALLS // here.vendors)
    else:  # Each request meets what the one before left: the run cannot be cut.
        step = requests
    for first in range(0, requests, step):
        numbers = range(first, min(requests, first + step))
        if arrays:
            yield vectorised_sojourn_times(
                here.world, streams, leaves=here.vendors, requests=numbers, width=here.width, hosts=hosts,
                policy=here.array_policy,
            )  # fmt: skip
        else:
            yield coordinated_sojourn_times(here, streams, requests=numbers, hosts=hosts, execute=False)[0]


def _series(here: Scenario) -> str:
    return "flat" if here.fanout == "flat" else f"tree of width {here.fanout}"


def _quantiles(times_ms: NDArray[np.float64], here: Scenario, seed: int, engine: str) -> list[Point]:
    independent = requests_are_independent(here)  # Else one run has no interval.
    return [
        Point.of(
            quantile_interval(times_ms, p) if independent
            else Interval(float(np.quantile(times_ms, p)), np.nan, np.nan, len(times_ms)),
            study="fan-out", series=f"p{100 * p:g}, {_series(here)}", kind="simulated", axis="vendors",
            x=float(here.vendors), statistic=f"p{100 * p:g}", unit="ms", seed=seed, engine=engine, preset=here.preset,
        )
        for p in _QUANTILES
        if len(times_ms) >= samples_for_quantile(p)
    ]  # fmt: skip


def _curve(points: list[Point], left_out: tuple[str, ...]) -> FanOutCurve:
    frame = tidy(points)
    last = frame.loc[frame.groupby("series", sort=False)["x"].idxmax()]
    largest = last[["series", "x", "estimate", "low", "high", "n"]].round(1)
    largest = largest.set_axis(["", "vendors", "ms", "low", "high", "requests"], axis="columns")
    return FanOutCurve(frame, largest.astype({"vendors": int}).reset_index(drop=True), left_out)


def _left_out(plan: list[tuple[Scenario, str | None, int]], requests: int, least: int) -> tuple[str, ...]:
    """Say which sizes are missing, and which have fewer requests, and why."""
    told = []
    for name in dict.fromkeys(_series(here) for here, *_ in plan):
        mine = [each for each in plan if _series(each[0]) == name]
        short = [(here, many) for here, why, many in mine if why is not None and many < requests]
        if not short:
            continue
        why = next(why for _, why, _ in mine if why is not None)
        gone = [here.vendors for here, many in short if many < least]
        fewer = [f"{many:,} requests over {here.vendors:,}" for here, many in short if many >= least]
        parts = ([f"{', '.join(fewer)} vendors"] if fewer else []) + (
            [f"nothing over {' and '.join(f'{n:,}' for n in gone)} vendors"] if gone else []
        )
        told.append(
            f"{name}: the arrays do not cover {why}, and the event engine is given {_POINT_CALLS:,} calls a point: "
            f"{'; '.join(parts)}."
        )
    return tuple(told)
