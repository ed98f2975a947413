"""The simulated world: how long messages, services and the coordinator's own work take; and the presets.

Rules
-----
A world is plain frozen data, and round-trips through TOML. A preset is a world whose every value says where it comes
from and from when: a TOML file in ``data/presets``; one value without source or date, and the file is refused.

Theory of operation
-------------------
One call of a scatter passes, in order: the sender's processor (`fan_out_ms`, one message at a time), the link out, the
queue of the target's host (`workers` at a time, first come first served) for `service`, the link back, and the
sender's processor again (`fan_in_ms`). A sender keeps at most `window` calls in flight; a connection is free again when
its answer has been taken in. `base` is what a request costs before its scatter, once: the client's way in and out.
All links and services of one request are stretched by its `pace`: what slows them together, such as a busy network,
which independent draws average away; and by its place in `pace_trace`, where that was measured and not drawn. A
geography puts hosts into zones and replaces the two links by the ways between them; size over bandwidth comes on top of
a link; the backlog of others and a cold start come before the service. Request limits, pauses and faults are the
network's (`mktsim.sim.network`): they depend on the instant of arrival.

**Ticks.** Every duration is rounded to a whole number of ticks of 2**-30 s (0.93 ns). Sums and differences of ticks are
exact in float64 below 2**23 s (97 days), whatever their order; that, and draws keyed by what they are for, is why an
event simulation and an array computation of one request can agree to the last bit.

What this does not do
---------------------
Hosts differ by their zone, their machine and the faults that hit them; otherwise they have the same distributions.
"""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError, SimulationError, cause, shortened
from mktsim.sim import plain
from mktsim.sim.conditions import READERS, Background, ColdStart, Geography, Hiccups, RequestLimit
from mktsim.sim.draws import HORIZON_S as HORIZON_S
from mktsim.sim.draws import TICK_S as TICK_S
from mktsim.sim.draws import Chosen as Chosen
from mktsim.sim.draws import Ticks as Ticks
from mktsim.sim.draws import among, chosen_of, count_of, draw, uniforms
from mktsim.sim.draws import ms_to_ticks as ms_to_ticks
from mktsim.sim.draws import to_ticks as to_ticks
from mktsim.sim.draws import transfer_ticks as transfer_ticks
from mktsim.sim.faults import Fault, fault_from_dict
from mktsim.sim.latency import Constant, Latency, latency_from_dict
from mktsim.streams import Streams

_ZERO = Constant(0.0)
_ONE = Constant(1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Durations and limits of a simulated installation; see the module's text for their order.

    Parameters
    ----------
    base : Latency
        Once a request, before its scatter, ms.
    pace : Latency
        A factor, without unit, drawn once a request, by which its links and services are multiplied.
    pace_trace : sequence of float
        Measured factors, on top of `pace`: the request of number r has the r-th, begun anew at the end. Empty: all 1.
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
    replicas : int
        Machines that can each answer for a host. The a-th call that one request makes to an address goes to replica
        a modulo `replicas`, so a hedge finds another machine where there is one.
    machines : int or None
        Over so many machines all hosts are spread in turn, inner nodes included; None gives each host its own.
    geography : Geography or None
        Zones, and the ways between them instead of `link_out` and `link_back`.
    bandwidth_mbps : float or None
        Megabits a second of each link, where no geography says it.
    request_bytes, answer_bytes : float
        Sizes of messages where they are not measured.
    cold_start : ColdStart or None
        Hosts that must first be woken.
    hiccups : Hiccups or None
        Pauses of the hosts.
    background : Background or None
        What others keep the hosts busy with.
    limit : RequestLimit or None
        What a host takes on before it sheds.
    cancel_ms : float
        Between the replicas of a tied request: from the start of one until the other knows.
    faults : sequence of Fault
        The schedule of failures.

    Raises
    ------
    InvalidArgumentError
        If a value is not of its kind, negative or not a number.

    Examples
    --------
    >>> world = World(service=Constant(2), window=6, background=Background(0.3, 1.5))
    >>> print(world.to_toml(), end="")
    service = { kind = "constant", ms = 2.0 }
    window = 6
    background = { utilisation = 0.3, service_ms = 1.5 }
    >>> World.from_toml(world.to_toml()) == world
    True
    """

    base: Latency = _ZERO
    pace: Latency = _ONE
    pace_trace: tuple[float, ...] = ()
    link_out: Latency = _ZERO
    link_back: Latency = _ZERO
    service: Latency = _ZERO
    aggregator_service: Latency = _ZERO
    workers: int = 1
    fan_out_ms: float = 0.0
    fan_in_ms: float = 0.0
    window: int | None = None
    replicas: int = 1
    machines: int | None = None
    geography: Geography | None = None
    bandwidth_mbps: float | None = None
    request_bytes: float = 0.0
    answer_bytes: float = 0.0
    cold_start: ColdStart | None = None
    hiccups: Hiccups | None = None
    background: Background | None = None
    limit: RequestLimit | None = None
    cancel_ms: float = 0.0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        for name in _LATENCIES:
            plain.latency(self, name)
        for name in ("fan_out_ms", "fan_in_ms", "request_bytes", "answer_bytes", "cancel_ms"):
            plain.number(self, name)
        plain.numbers(self, "pace_trace", above=0.0)
        for name in ("workers", "replicas"):
            plain.whole(self, name)
        for name in ("window", "machines"):
            plain.whole(self, name, optional=True)
        if self.bandwidth_mbps is not None:
            plain.number(self, "bandwidth_mbps", above=0.0)
        for name, kind in _CONDITIONS.items():
            if not isinstance(getattr(self, name), kind | None):
                raise InvalidArgumentError(
                    f"World.{name} must be a {kind.__name__} or None, not {getattr(self, name)!r:.80}"
                )
        if not isinstance(self.faults, list | tuple) or not all(isinstance(fault, Fault) for fault in self.faults):
            raise InvalidArgumentError(f"World.faults must be a sequence of faults, not {self.faults!r:.80}")
        object.__setattr__(self, "faults", tuple(self.faults))

    @property
    def fan_out_ticks(self) -> int:
        """`fan_out_ms` in ticks."""
        return ms_to_ticks(self.fan_out_ms)

    @property
    def fan_in_ticks(self) -> int:
        """`fan_in_ms` in ticks."""
        return ms_to_ticks(self.fan_in_ms)

    @property
    def has_pace(self) -> bool:
        """Whether links and services of some request may be stretched."""
        return self.pace != _ONE or any(factor != 1.0 for factor in self.pace_trace)

    @property
    def mean_pace(self) -> float:
        """Factor by which links and services are stretched in the mean."""
        traced = sum(self.pace_trace) / len(self.pace_trace) if self.pace_trace else 1.0
        return self.pace.mean_ms * traced

    def replace(self, **changes: Any) -> World:
        """Return a copy with some values changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what differs from the defaults."""
        return dict(plain.to_plain(self))

    @classmethod
    def from_dict(cls, data: Any) -> World:
        """Read plain data; the inverse of :meth:`to_dict`.

        Raises
        ------
        InvalidArgumentError
            If a name is unknown or a value out of range.
        """
        return plain.from_plain(cls, data, _READERS)

    def to_toml(self) -> str:
        """Return the world as TOML text; :meth:`from_toml` reads it back."""
        return "".join(f"{name} = {plain.to_toml(value)}\n" for name, value in self.to_dict().items())

    @classmethod
    def from_toml(cls, text: str) -> World:
        """Read a world from TOML text; errors are those of :meth:`from_dict`."""
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgumentError(f"a world cannot be read: {error}") from error

    def hops(
        self,
        streams: Streams,
        group: str,
        request: int,
        n: int,
        *,
        attempt: int = 0,
        sources: int | NDArray[np.intp] | None = None,
        transfer: bool = True,
        only: Chosen = None,
    ) -> tuple[Ticks, Ticks, Ticks]:
        """Draw what one call to each of the `n` hosts of a group takes: link out, service, link back.

        Both engines draw here and nowhere else. Host i's durations depend on the seed, the group's name, the request,
        the attempt and i alone; its links on the zone from which it is called as well (`sources`, of all calls or one
        for each; home when absent). The service includes the backlog of others and a cold start. Without `transfer`
        the links leave out what a message's size takes. With `only` the durations of those hosts alone are drawn.
        """
        pace = self._pace(streams, request)
        prefix = _prefix(group, attempt)
        service = self.service if group == LEAF else self.aggregator_service
        busy = draw(service, streams, prefix + "service", request, n, pace, only)
        if self.cold_start is not None and self.cold_start.share:
            cold = np.flatnonzero(uniforms(streams, prefix + "is_cold", request, n, only) < self.cold_start.share)
            busy[cold] += self.cold_ticks(streams, group, request, n, attempt, only=among(cold, only))
        if self.background is not None:
            busy += self.backlog(streams, group, request, n, attempt=attempt, only=only)
        key = (streams, group, request, n, attempt, pace, sources, transfer, only)
        return self._link("out", *key), busy, self._link("back", *key)

    def begins(self, streams: Streams, request: int, n: int, *, attempt: int, only: Chosen = None) -> Ticks:
        """Draw when each leaf's own service begins after its call has left: link out and backlog of :meth:`hops`."""
        pace = self._pace(streams, request)
        out = self._link("out", streams, LEAF, request, n, attempt, pace, None, True, only)
        if self.background is not None:
            out += self.backlog(streams, LEAF, request, n, attempt=attempt, only=only)
        return out

    def _pace(self, streams: Streams, request: int) -> float:
        # Drawn as an array, like all else, and the same for every group and attempt of the request.
        drawn = float(self.pace.sample(streams.uniform("pace", request, 1))[0])
        return drawn * self.pace_trace[request % len(self.pace_trace)] if self.pace_trace else drawn

    def _link(
        self,
        way: Literal["out", "back"],
        streams: Streams,
        group: str,
        request: int,
        n: int,
        attempt: int,
        pace: float,
        sources: int | NDArray[np.intp] | None,
        transfer: bool,
        only: Chosen,
    ) -> Ticks:
        stream = f"{_prefix(group, attempt)}link_{way}"
        size_bytes = (self.request_bytes if way == "out" else self.answer_bytes) if transfer else 0.0
        if self.geography is None:
            link = draw(self.link_out if way == "out" else self.link_back, streams, stream, request, n, pace, only)
            if size_bytes:
                link += transfer_ticks(size_bytes, self.bandwidth_mbps)
            return link
        zones = chosen_of(zones_of(self.geography, streams, group, n, attempt % self.replicas), only)
        origins = self.geography.home_index if sources is None else sources
        origins = (
            np.broadcast_to(origins, len(zones)) if np.ndim(origins) == 0 else chosen_of(np.asarray(origins), only)
        )
        link = np.empty(len(zones), np.int64)
        for a in np.unique(origins).tolist():
            for b in range(len(self.geography.zones)):
                here = np.flatnonzero((origins == a) & (zones == b))
                if here.size:
                    route = self.geography.route(a, b)
                    drawn = draw(route.latency, streams, stream, request, n, pace, among(here, only))
                    link[here] = drawn + transfer_ticks(size_bytes, route.bandwidth_mbps)
        return link

    def backlog(
        self, streams: Streams, group: str, request: int, n: int, *, attempt: int = 0, only: Chosen = None
    ) -> Ticks:
        """Draw the work of others that each call finds before it; it is part of the service of :meth:`hops`."""
        if self.background is None:
            return np.zeros(count_of(n, only), np.int64)
        u = uniforms(streams, _prefix(group, attempt) + "background", request, n, only)
        return to_ticks(self.background.sample(u))

    def cold_ticks(
        self, streams: Streams, group: str, request: int, n: int, attempt: int, *, only: Chosen = None
    ) -> Ticks:
        """Draw what a cold start of each host would take."""
        assert self.cold_start is not None
        return draw(self.cold_start.latency, streams, f"{group}/attempt {attempt}/cold", request, n, only=only)

    def base_ticks(self, streams: Streams, request: int) -> int:
        """Draw the request's `base`."""
        return int(draw(self.base, streams, "base", request, 1)[0])


#: The group of vendors; inner nodes of a tree are in groups "aggregator/1" (the lowest), "aggregator/2", ...
LEAF: Final = "leaf"
_LATENCIES: Final = ("base", "pace", "link_out", "link_back", "service", "aggregator_service")
_CONDITIONS: Final = {
    "geography": Geography,
    "cold_start": ColdStart,
    "hiccups": Hiccups,
    "background": Background,
    "limit": RequestLimit,
}
_READERS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(_LATENCIES, latency_from_dict),
    **READERS,
    "faults": plain.list_of(fault_from_dict),
}


@lru_cache(maxsize=32)
def zones_of(geography: Geography, streams: Streams, group: str, n: int, replica: int = 0) -> NDArray[np.intp]:
    """Return the zone of each of the `n` hosts of a group, or of one of their replicas; not to be written to."""
    zones = geography.place(streams, group if replica == 0 else f"{group}/replica {replica}", n)
    zones.flags.writeable = False
    return zones


def _prefix(group: str, attempt: int) -> str:
    return f"{group}/" if attempt == 0 else f"{group}/attempt {attempt}/"


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
    """Where a value comes from: who says so, from when, and its kind.

    A fitted value is neither published nor measured: it makes the model agree with what was, on the date given.

    Attributes
    ----------
    text : str
        Who says so, and where.
    date : str
        ISO 8601: a year, a month or a day.
    kind : str
        ``published``, ``measured``, ``fitted`` or ``assumed``.

    Examples
    --------
    >>> source = load_preset("cloudflare-2026").sources["window"]
    >>> source.kind, source.date
    ('published', '2026')
    """

    text: str
    date: str
    kind: Literal["published", "measured", "fitted", "assumed"]


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

    Examples
    --------
    >>> preset = load_preset("same-zone")
    >>> sorted(preset.sources)
    ['fan_in_ms', 'fan_out_ms', 'link_back', 'link_out', 'service', 'workers']
    >>> preset.world.link_out == Preset("mine", preset.date, "", preset.world, preset.sources).world.link_out
    True
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
    """List the presets by name.

    Returns
    -------
    list of str
        Sorted; each is what :func:`load_preset` takes.

    Examples
    --------
    >>> preset_names()[:3]
    ['cloudflare-2026', 'cloudflare-2026-one-thread', 'cloudflare-2026-tree']
    """
    return sorted(path.stem for path in preset_directory().glob("*.toml"))


def load_preset(name: str | Path) -> Preset:
    """Load a preset by name, or a preset file by path.

    Parameters
    ----------
    name : str or Path
        One of :func:`preset_names`, or a file of your own of the same form.

    Returns
    -------
    Preset

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
        message = f"preset file {path.name:.300} cannot be read: {shortened(error)}"
        raise InvalidArgumentError(message) from cause(error)
    try:
        return _preset(path.stem, data)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"preset file {path.name:.300}: {error}") from error


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
        if kind not in ("published", "measured", "fitted", "assumed"):
            raise InvalidArgumentError(f"{key} must be published, measured, fitted or assumed, not {kind!r:.80}")
        values[key] = entry["value"]
        sources[key] = Source(text, when, kind)
    return Preset(name, date.isoformat(), description, World.from_dict(values), sources)
