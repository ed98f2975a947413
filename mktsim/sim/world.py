"""The simulated world: how long messages, services and the coordinator's own work take; and the presets.

Rules
-----
A world is plain frozen data. A preset is a world whose every value says where it comes from and from when: a TOML
file in ``data/presets``; one value without source or date, and the file is refused.

Theory of operation
-------------------
One call of a scatter passes, in order: the sender's processor (`fan_out_ms`, one message at a time), the link out, the
queue of the target's host (`workers` at a time, first come first served) for `service`, the link back, and the
sender's processor again (`fan_in_ms`). A sender keeps at most `window` calls in flight; a connection is free again when
its answer has been taken in. `base` is what a request costs before its scatter, once: the client's way in and out.
All links and services of one request are stretched by its `pace`: what slows them together, such as a busy network,
which independent draws average away.

**Ticks.** Every duration is rounded to a whole number of ticks of 2**-30 s (0.93 ns). Sums and differences of ticks are
exact in float64 below 2**23 s (97 days), whatever their order; that, and draws keyed by what they are for, is why an
event simulation and an array computation of one request can agree to the last bit.

What this does not do
---------------------
Every vendor has the same distributions; zones, faults, cold starts and bandwidth are not here.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.sim.latency import Constant, Latency, latency_from_dict
from mktsim.streams import Streams

#: Seconds in a tick, the grid on which all simulated durations lie.
TICK_S: Final = 2.0**-30
#: Seconds of simulated time up to which sums of ticks are exact.
HORIZON_S: Final = 2.0**23
_TICKS_PER_MS: Final = 2.0**30 / 1000.0
_MAX_TICKS: Final = 2.0**50  # 12 days, so that some thousands of the longest still add up without overflow.

Ticks = NDArray[np.int64]
_BLOCK: Final = 1 << 14
_ZERO = Constant(0.0)
_ONE = Constant(1.0)


def to_ticks(ms: NDArray[np.float64]) -> Ticks:
    """Round durations in ms to whole ticks.

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
    return ticks.astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Durations and limits of a simulated installation; see the module's text for their order.

    Parameters
    ----------
    base : Latency
        Once a request, before its scatter, ms.
    pace : Latency
        A factor, without unit, drawn once a request, by which its links and services are multiplied.
    link_out, link_back : Latency
        One way to a host, and back, ms.
    service : Latency
        A vendor's work on one call, ms.
    aggregator_service : Latency
        An inner node's work before it scatters further, ms.
    workers : int
        Calls that one host serves at a time.
    fan_out_ms, fan_in_ms : float
        The sender's own work for each message it sends, and for each it takes in; one after another.
    window : int or None
        Calls in flight from one sender at most; None means no cap.

    Raises
    ------
    InvalidArgumentError
        If a value is not of its kind, negative or not a number.
    """

    base: Latency = _ZERO
    pace: Latency = _ONE
    link_out: Latency = _ZERO
    link_back: Latency = _ZERO
    service: Latency = _ZERO
    aggregator_service: Latency = _ZERO
    workers: int = 1
    fan_out_ms: float = 0.0
    fan_in_ms: float = 0.0
    window: int | None = None

    def __post_init__(self) -> None:
        for name in _LATENCIES:
            if not isinstance(getattr(self, name), Latency):
                raise InvalidArgumentError(f"World.{name} must be a Latency, not {getattr(self, name)!r:.80}")
        for name in ("fan_out_ms", "fan_in_ms"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise InvalidArgumentError(f"World.{name} must be a finite number of at least 0, not {value!r:.80}")
        for name in ("workers", "window"):
            value = getattr(self, name)
            if value is None and name == "window":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgumentError(f"World.{name} must be a whole number of at least 1, not {value!r:.80}")

    @property
    def fan_out_ticks(self) -> int:
        """`fan_out_ms` in ticks."""
        return int(to_ticks(np.array([self.fan_out_ms]))[0])

    @property
    def fan_in_ticks(self) -> int:
        """`fan_in_ms` in ticks."""
        return int(to_ticks(np.array([self.fan_in_ms]))[0])

    def replace(self, **changes: Any) -> World:
        """Return a copy with some values changed."""
        return replace(self, **changes)

    def hops(
        self, streams: Streams, group: str, request: int, n: int, *, attempt: int = 0
    ) -> tuple[Ticks, Ticks, Ticks]:
        """Draw what one call to each of the `n` hosts of a group takes: link out, service, link back.

        Both engines draw here and nowhere else. Host i's durations depend on the seed, the group's name, the request,
        the attempt and i alone.
        """
        service = self.service if group == LEAF else self.aggregator_service
        # Drawn as an array, like all else, and the same for every group and attempt of the request.
        pace = float(self.pace.sample(streams.uniform("pace", request, 1))[0])
        prefix = f"{group}/" if attempt == 0 else f"{group}/attempt {attempt}/"
        return (
            _draw(self.link_out, streams, prefix + "link_out", request, n, pace),
            _draw(service, streams, prefix + "service", request, n, pace),
            _draw(self.link_back, streams, prefix + "link_back", request, n, pace),
        )

    def base_ticks(self, streams: Streams, request: int) -> int:
        """Draw the request's `base`."""
        return int(_draw(self.base, streams, "base", request, 1)[0])


#: The group of vendors; inner nodes of a tree are in groups "aggregator/1" (the lowest), "aggregator/2", ...
LEAF: Final = "leaf"
_LATENCIES: Final = ("base", "pace", "link_out", "link_back", "service", "aggregator_service")


def _draw(latency: Latency, streams: Streams, stream: str, request: int, n: int, pace: float = 1.0) -> Ticks:
    if isinstance(latency, Constant):  # The same ticks without spending a million uniforms on them.
        return np.full(n, to_ticks(np.array([latency.ms * pace]))[0])
    u = streams.uniform(stream, request, n)
    ticks = np.empty(n, np.int64)
    for start in range(0, n, _BLOCK):  # In blocks, which stay in the processor's cache: at a million it saves a tenth.
        ms = latency.sample(u[start : start + _BLOCK])
        ticks[start : start + _BLOCK] = to_ticks(ms if pace == 1.0 else ms * pace)
    return ticks


def tree_levels(leaves: int, width: int | None) -> list[int]:
    """Return how many nodes each level of an aggregator tree has, leaves first; the root is not counted.

    Neighbours stand under one parent, `width` at most, until `width` at most are left for the root. None means flat.

    Examples
    --------
    >>> tree_levels(100, 6)
    [100, 17, 3]
    >>> tree_levels(100, None)
    [100]
    """
    levels = [leaves]
    while width is not None and levels[-1] > width:
        levels.append(-(-levels[-1] // width))
    return levels


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from: who says so, from when, and whether it was published, measured or assumed."""

    text: str
    date: str
    kind: Literal["published", "measured", "assumed"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A named world with the source of every value.

    Attributes
    ----------
    name, date, description : str
        The date is the day on which the preset was put together.
    world : World
        The values.
    sources : mapping of str to Source
        By name of the value; every value that is set has one.
    """

    name: str
    date: str
    description: str
    world: World
    sources: Mapping[str, Source] = field(hash=False)


def preset_directory() -> Path:
    """Return the directory of the presets: in an installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "data" / "presets", package.parent / "data" / "presets"):
        if directory.is_dir():
            return directory
    raise SimulationError(f"the presets are not installed: neither {package} nor its parent holds data/presets")


def preset_names() -> list[str]:
    """List the presets by name."""
    return sorted(path.stem for path in preset_directory().glob("*.toml"))


def load_preset(name: str | Path) -> Preset:
    """Load a preset by name, or a preset file by path.

    Raises
    ------
    InvalidArgumentError
        If there is no such preset, or the file lacks a source or a date or holds an unknown value.

    Examples
    --------
    >>> load_preset("cloudflare-2026").world.window
    6
    """
    if isinstance(name, Path):
        path = name
    elif isinstance(name, str) and name in preset_names():
        path = preset_directory() / f"{name}.toml"
    else:
        raise InvalidArgumentError(f"no preset {name!r:.80}; there are {', '.join(preset_names())}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(f"preset file {path.name} cannot be read: {error}") from error
    try:
        return _preset(path.stem, data)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"preset file {path.name}: {error}") from error


def _preset(name: str, data: dict[str, Any]) -> Preset:
    header = {"date", "description", "values"}
    if data.keys() != header or not isinstance(data["values"], dict):
        raise InvalidArgumentError(f"it must hold {sorted(header)}, not {sorted(data)}")
    date, description = data["date"], data["description"]
    if not isinstance(date, dt.date) or not isinstance(description, str):
        raise InvalidArgumentError("date must be a date and description a string")
    known = {f.name for f in fields(World)}
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for key, entry in data["values"].items():
        if key not in known:
            raise InvalidArgumentError(f"unknown value {key!r:.80}; known: {sorted(known)}")
        if not isinstance(entry, dict) or entry.keys() != {"value", "source", "date", "kind"}:
            raise InvalidArgumentError(f"{key} must hold a value and its source, date and kind")
        text, when, kind = entry["source"], str(entry["date"]), entry["kind"]
        if not isinstance(text, str) or not text.strip() or not re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", when):
            raise InvalidArgumentError(f"{key} needs a source and a date like 2026-11-22, not {text!r:.80}, {when!r}")
        if kind not in ("published", "measured", "assumed"):
            raise InvalidArgumentError(f"{key} must be published, measured or assumed, not {kind!r:.80}")
        values[key] = latency_from_dict(entry["value"]) if key in _LATENCIES else entry["value"]
        sources[key] = Source(text, when, kind)
    return Preset(name, date.isoformat(), description, World(**values), sources)
