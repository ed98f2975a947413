"""What stands between a caller and its answer besides plain links and services: places, and the state of hosts.

Rules
-----
Each condition is frozen and checked when made. Whatever it draws is keyed by (seed, stream, request, vendor), or by the
vendor alone where it is the vendor's own: its zone, the phase of its pauses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.sim import plain
from mktsim.sim.latency import Latency, latency_from_dict
from mktsim.streams import Streams


@dataclass(frozen=True, slots=True)
class Zone:
    """A place of a region, and its share of the hosts.

    Parameters
    ----------
    name : str
        Of the zone.
    region : str
        Which region it belongs to; routes may name it for all of its zones.
    share : float
        A weight against those of the other zones.

    Raises
    ------
    InvalidArgumentError
        If a name is no string, or the share is negative or not finite.

    Examples
    --------
    Three of four hosts stand in New York.

    >>> from mktsim.sim.latency import Constant
    >>> near, far = Constant(1), Constant(45)
    >>> routes = [Route(("eu", "eu"), near), Route(("us", "us"), near), Route(("eu", "us"), far)]
    >>> geography = Geography([Zone("fra", "eu"), Zone("nyc", "us", share=3)], routes, home="fra")
    >>> np.bincount(geography.place(Streams(1), "leaf", 10_000)).tolist()
    [2425, 7575]
    """

    name: str
    region: str
    share: float = 1.0

    def __post_init__(self) -> None:
        plain.text(self, "name")
        plain.text(self, "region")
        plain.number(self, "share")


@dataclass(frozen=True, slots=True)
class Route:
    """The way between two zones or regions, the same in both directions.

    Parameters
    ----------
    ends : pair of str
        Names of zones or regions; the same name twice is the way within.
    latency : Latency
        One way, ms.
    bandwidth_mbps : float or None
        Megabits a second of one link; None means that size does not matter.

    Raises
    ------
    InvalidArgumentError
        If the ends are not two names, or a value is out of range.

    Examples
    --------
    A megabyte over 100 Mbit/s takes 80 ms beside the distance.

    >>> from mktsim.sim.latency import Constant
    >>> from mktsim.sim.world import TICK_S, transfer_ticks
    >>> route = Route(("eu", "us"), Constant(45), bandwidth_mbps=100)
    >>> route.latency.mean_ms, round(float(transfer_ticks(1_000_000, route.bandwidth_mbps)) * TICK_S, 3)
    (45.0, 0.08)
    """

    ends: tuple[str, str]
    latency: Latency
    bandwidth_mbps: float | None = None

    def __post_init__(self) -> None:
        ends = tuple(self.ends) if isinstance(self.ends, list | tuple) else ()
        if len(ends) != 2 or not all(isinstance(end, str) for end in ends):
            raise InvalidArgumentError(f"Route.ends must be two names, not {self.ends!r:.80}")
        object.__setattr__(self, "ends", ends)
        plain.latency(self, "latency")
        if self.bandwidth_mbps is not None:
            plain.number(self, "bandwidth_mbps", above=0.0)

    @classmethod
    def from_dict(cls, data: Any) -> Route:
        """Read plain data."""
        return plain.from_plain(cls, data, {"latency": latency_from_dict})


@dataclass(frozen=True, slots=True)
class Geography:
    """Zones and regions, and the ways between them, which take the place of the world's two links.

    Parameters
    ----------
    zones : sequence of Zone
        A host stands in one of them, drawn once by the zones' shares, and stays there for all requests.
    routes : sequence of Route
        For two zones the most particular one counts: between the zones, else between a zone and a region, else between
        the regions.
    home : str
        The zone of the coordinator and of every sender that is no declared host.

    Raises
    ------
    InvalidArgumentError
        If two zones have no route, a name is unknown or one stands twice.

    Examples
    --------
    >>> from mktsim.sim.latency import Constant
    >>> world = Geography((Zone("fra", "eu"), Zone("nyc", "us", 3)),
    ...                   (Route(("eu", "eu"), Constant(1)), Route(("us", "us"), Constant(1)),
    ...                    Route(("eu", "us"), Constant(45))), home="fra")
    >>> world.route(0, 1).latency
    Constant(ms=45.0)
    """

    zones: tuple[Zone, ...]
    routes: tuple[Route, ...]
    home: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "zones", tuple(self.zones))
        object.__setattr__(self, "routes", tuple(self.routes))
        names = [zone.name for zone in self.zones if isinstance(zone, Zone)]
        if not names or len(set(names)) != len(self.zones) or math.fsum(zone.share for zone in self.zones) <= 0:
            raise InvalidArgumentError("Geography.zones must be zones of distinct names, one with a share above 0")
        if self.home not in names:
            raise InvalidArgumentError(f"Geography.home must be a zone, not {self.home!r:.80}")
        known = {*names, *(zone.region for zone in self.zones)}
        seen = set()
        for route in self.routes:
            if not isinstance(route, Route) or not known.issuperset(route.ends):
                raise InvalidArgumentError(f"Geography.routes join known zones or regions, not {route!r:.80}")
            if frozenset(route.ends) in seen:
                raise InvalidArgumentError(f"two routes between {route.ends[0]!r:.80} and {route.ends[1]!r:.80}")
            seen.add(frozenset(route.ends))
        for a in range(len(names)):
            for b in range(a + 1):
                self.route(a, b)

    @property
    def home_index(self) -> int:
        """The number of the home zone."""
        return [zone.name for zone in self.zones].index(self.home)

    def route(self, a: int, b: int) -> Route:
        """Return the way between two zones, by their numbers."""
        by_ends = {frozenset(route.ends): route for route in self.routes}
        one, other = self.zones[a], self.zones[b]
        for ends in (
            (one.name, other.name),
            (one.name, other.region),
            (one.region, other.name),
            (one.region, other.region),
        ):
            route = by_ends.get(frozenset(ends))
            if route is not None:
                return route
        raise InvalidArgumentError(f"no route between the zones {one.name!r:.80} and {other.name!r:.80}")

    def place(self, streams: Streams, group: str, n: int) -> NDArray[np.intp]:
        """Return the zone of each of the `n` hosts of a group; a longer group begins as a shorter one does."""
        shares = np.cumsum([zone.share for zone in self.zones])
        u = streams.uniform(f"{group}/zone", 0, n) * shares[-1]
        return np.asarray(np.minimum(np.searchsorted(shares, u, side="right"), len(shares) - 1), np.intp)

    @classmethod
    def from_dict(cls, data: Any) -> Geography:
        """Read plain data."""
        readers = {
            "zones": plain.list_of(lambda zone: plain.from_plain(Zone, zone)),
            "routes": plain.list_of(Route.from_dict),
        }
        return plain.from_plain(cls, data, readers)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """A host that must first be woken: its service takes `latency` longer.

    Parameters
    ----------
    latency : Latency
        Over a warm call, ms.
    share : float
        Of all calls that find a cold host, each drawn by itself.
    idle_ms : float or None
        A host that was not called for so long is cold as well, and so is one that has not been called yet.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.

    Examples
    --------
    One host in a hundred sleeps; of a hundred that are asked there is nearly always one.

    >>> from mktsim.sim import World, vectorised_sojourn_times
    >>> from mktsim.sim.latency import Constant
    >>> world = World(service=Constant(2), cold_start=ColdStart(Constant(1_200), share=0.01))
    >>> vectorised_sojourn_times(world, Streams(1), leaves=100, requests=range(5)).round(3)
    array([0.002, 0.002, 0.002, 1.202, 0.002])
    """

    latency: Latency
    share: float = 0.0
    idle_ms: float | None = None

    def __post_init__(self) -> None:
        plain.latency(self, "latency")
        plain.number(self, "share", most=1.0)
        if self.idle_ms is not None:
            plain.number(self, "idle_ms")

    @classmethod
    def from_dict(cls, data: Any) -> ColdStart:
        """Read plain data."""
        return plain.from_plain(cls, data, {"latency": latency_from_dict})


@dataclass(frozen=True, slots=True)
class Hiccups:
    """Stop-the-world pauses of each host, as by a garbage collector: nothing is served, what was begun stands still.

    Parameters
    ----------
    every_ms : float
        From the begin of one pause to the next; each host has its own phase.
    latency : Latency
        How long a pause is, ms; cut at half of `every_ms`.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.

    Examples
    --------
    Each host stands still for 10 ms of every 100. Of a hundred that serve for 1 ms, one nearly always begins to when it
    is asked, once the first pauses have come.

    >>> from mktsim.sim import World
    >>> from mktsim.sim.events import event_sojourn_times
    >>> from mktsim.sim.latency import Constant
    >>> world = World(service=Constant(1), hiccups=Hiccups(100, Constant(10)))
    >>> event_sojourn_times(world, Streams(1), leaves=100, requests=range(5)).round(3)
    array([0.001, 0.011, 0.011, 0.011, 0.011])
    """

    every_ms: float
    latency: Latency

    def __post_init__(self) -> None:
        plain.number(self, "every_ms", above=0.0)
        plain.latency(self, "latency")

    @classmethod
    def from_dict(cls, data: Any) -> Hiccups:
        """Read plain data."""
        return plain.from_plain(cls, data, {"latency": latency_from_dict})


@dataclass(frozen=True, slots=True)
class Background:
    """Work for others that a call finds at the host and that is done before it.

    A host busy with an M/M/1 stream of others' calls is found idle with probability 1 - utilisation, and else with an
    exponential backlog of mean service / (1 - utilisation). Source: arrivals see time averages (Wolff, 1982);
    Kleinrock, Queueing Systems I, 5.12.

    Parameters
    ----------
    utilisation : float
        From 0 to below 1, by the others.
    service_ms : float
        Mean of one of the others' calls.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.

    Examples
    --------
    Of hosts that are busy for 0.8 of the time, one in five is found idle; the mean wait is that of M/M/1, 4 services.

    >>> waiting_ms = Background(0.8, 1.0).sample((np.arange(100_000) + 0.5) / 100_000)
    >>> round(float(np.mean(waiting_ms == 0)), 3), round(float(waiting_ms.mean()), 2)
    (0.2, 4.0)
    """

    utilisation: float
    service_ms: float

    def __post_init__(self) -> None:
        plain.number(self, "utilisation", most=math.nextafter(1.0, 0.0))
        plain.number(self, "service_ms", above=0.0)

    def sample(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map uniforms to waiting times in ms."""
        idle = 1.0 - self.utilisation
        # What u exceeds the idle share by, as a share of the rest: uniform again, and kept off 1, where logarithms end.
        busy = np.minimum(np.maximum(u - idle, 0.0) / max(self.utilisation, 2.0**-53), 1.0 - 2.0**-53)
        return np.asarray(np.log1p(-busy) * (-self.service_ms / idle), float)

    @classmethod
    def from_dict(cls, data: Any) -> Background:
        """Read plain data."""
        return plain.from_plain(cls, data)


@dataclass(frozen=True, slots=True)
class RequestLimit:
    """What a host takes on before it answers `OverloadedError` at once.

    Parameters
    ----------
    queue : int or None
        Calls that may wait, beyond those that its workers serve.
    rate_per_s : float or None
        Calls a second that it takes on in the long run.
    burst : int
        Calls that it takes on at once after a rest, against that rate.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range, or neither a queue nor a rate is given.

    Examples
    --------
    A host that lets one call wait turns the third away.

    >>> import asyncio
    >>> from mktsim.sim import SimNetwork, World, sim_run
    >>> from mktsim.sim.latency import Constant
    >>> async def story():
    ...     world = World(service=Constant(2), limit=RequestLimit(queue=1))
    ...     network = SimNetwork(asyncio.get_running_loop(), world, Streams(1))
    ...     network.add_hosts("leaf", ["vendor/acme"])
    ...     network.register("vendor/acme", lambda target, message: "here you are")
    ...     calls = [network.call("coordinator", "vendor/acme", "a mouse, please") for _ in range(3)]
    ...     return await asyncio.gather(*calls, return_exceptions=True)
    >>> [answer if isinstance(answer, str) else type(answer).__name__ for answer in sim_run(story())]
    ['here you are', 'here you are', 'OverloadedError']
    """

    queue: int | None = None
    rate_per_s: float | None = None
    burst: int = 1

    def __post_init__(self) -> None:
        plain.whole(self, "queue", least=0, optional=True)
        plain.whole(self, "burst")
        if self.rate_per_s is not None:
            plain.number(self, "rate_per_s", above=0.0)
        if self.queue is None and self.rate_per_s is None:
            raise InvalidArgumentError("RequestLimit needs a queue, a rate_per_s, or both")

    @classmethod
    def from_dict(cls, data: Any) -> RequestLimit:
        """Read plain data."""
        return plain.from_plain(cls, data)


#: How each condition is read from plain data, by the name of its field in a world.
READERS: Mapping[str, Any] = {
    "geography": Geography.from_dict,
    "cold_start": ColdStart.from_dict,
    "hiccups": Hiccups.from_dict,
    "background": Background.from_dict,
    "limit": RequestLimit.from_dict,
}
