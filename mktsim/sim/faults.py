"""Failures, declared as a schedule: what goes wrong, where, from when until when.

Rules
-----
A fault hits the addresses that its pattern matches (shell wildcards), of these a share drawn by host, and all of its
chances are keyed by (seed, fault, request, attempt, host): the same fault hits the same calls whatever else happens.
Times are simulated ms from the start of the run; a fault holds from `start_ms` up to, and not at, `end_ms`.

What this does not do
---------------------
No disk loses what was committed, and no message is altered. Two processors never disagree on the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from mktsim.errors import InvalidArgumentError
from mktsim.sim import plain
from mktsim.sim.latency import Constant, Latency, latency_from_dict

_AT_ONCE = Constant(0.0)
_A_MOMENT = Constant(1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What all faults say: where and when.

    Parameters
    ----------
    targets : str
        Pattern of the addresses: ``vendor/acme``, ``vendor/*``.
    share : float
        Of the matching hosts.
    start_ms, end_ms : float
        From when until when; for ever, where no end is given.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range, or the end is not after the start.

    Examples
    --------
    >>> fault = Fault(targets="vendor/a*", start_ms=50, end_ms=100)
    >>> fault.matches("vendor/acme"), fault.matches("vendor/bolt")
    (True, False)
    """

    kind: ClassVar[str]

    targets: str = "*"
    share: float = 1.0
    start_ms: float = 0.0
    end_ms: float = math.inf

    def __post_init__(self) -> None:
        plain.text(self, "targets")
        plain.number(self, "share", most=1.0)
        plain.number(self, "start_ms")
        plain.number(self, "end_ms", above=self.start_ms, finite=False)

    def matches(self, address: str) -> bool:
        """Whether the pattern matches an address; its share is another question."""
        return fnmatchcase(address, self.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash(Fault):
    """The hosts stop: what they were doing is lost. At `end_ms` they are back, empty and cold.

    With `silent` nobody answers, as when a machine loses power; without, callers get `VendorDownError` after the way
    back, as when a process ends and its machine refuses for it.

    Parameters
    ----------
    targets, share, start_ms, end_ms
        Where and when; see :class:`Fault`.
    silent : bool
        Whether nobody answers.

    Examples
    --------
    >>> from mktsim.sim.events import event_sojourn_times
    >>> from mktsim.sim.world import World
    >>> from mktsim.streams import Streams
    >>> world = World(faults=(Crash(targets="leaf/7"),))
    >>> event_sojourn_times(world, Streams(1), leaves=10)
    Traceback (most recent call last):
    mktsim.errors.VendorDownError: 'leaf/7' is down at 0 s
    >>> event_sojourn_times(world, Streams(1), leaves=7)
    array([0.])
    """

    kind: ClassVar[str] = "crash"
    silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition(Fault):
    """Every message between the hosts hit and all others is lost, in both directions; the hosts go on working.

    Parameters
    ----------
    targets, share, start_ms, end_ms
        Where and when; see :class:`Fault`.

    Examples
    --------
    Three of ten leaves are cut off; what they were asked never arrives.

    >>> from mktsim.sim.events import scatters
    >>> from mktsim.sim.simulation import Simulation
    >>> from mktsim.sim.world import World
    >>> from mktsim.streams import Streams
    >>> world = World(faults=(Partition(targets="leaf/[0-2]"),))
    >>> with Simulation(lambda network: scatters(network, leaves=10), world, Streams(1)) as run:
    ...     _ = run.run_until(1.0)
    ...     run.network.incidents["lost"], run.done
    (3, False)
    """

    kind: ClassVar[str] = "partition"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDisk(Fault):
    """Services that begin in this time take `factor` times as long, and `added_ms` on top.

    Parameters
    ----------
    targets, share, start_ms, end_ms
        Where and when; see :class:`Fault`.
    factor : float
        At least 1.
    added_ms : float
        At least 0.

    Examples
    --------
    One slow leaf of a hundred is what everybody waits for: 3 times 2 ms and 1 ms.

    >>> from mktsim.sim.events import event_sojourn_times
    >>> from mktsim.sim.world import World
    >>> from mktsim.streams import Streams
    >>> world = World(service=Constant(2), faults=(SlowDisk(targets="leaf/7", factor=3, added_ms=1),))
    >>> event_sojourn_times(world, Streams(1), leaves=100).round(6)
    array([0.007])
    """

    kind: ClassVar[str] = "slow_disk"
    factor: float = 1.0
    added_ms: float = 0.0

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        plain.number(self, "factor", least=1.0)
        plain.number(self, "added_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss(Fault):
    """A request to the hosts, or their answer, is lost with this probability, each way by itself.

    Parameters
    ----------
    targets, share, start_ms, end_ms
        Where and when; see :class:`Fault`.
    probability : float
        From 0 to 1.

    Examples
    --------
    A scatter over a hundred that waits for all ends in one of eight times only: 0.99 to the power of 200 is 0.13.

    >>> from mktsim.sim.events import scatters
    >>> from mktsim.sim.simulation import Simulation
    >>> from mktsim.sim.world import World
    >>> from mktsim.streams import Streams
    >>> world = World(faults=(Loss(probability=0.01),))
    >>> with Simulation(lambda network: scatters(network, leaves=100), world, Streams(1)) as run:
    ...     _ = run.run_until(1.0)
    ...     run.network.incidents["lost"], run.done
    (2, False)
    """

    kind: ClassVar[str] = "loss"
    probability: float = 0.01

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        plain.number(self, "probability", most=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplication(Fault):
    """A request arrives a second time, `delay` after the first, with this probability: it is served twice.

    Parameters
    ----------
    targets, share, start_ms, end_ms
        Where and when; see :class:`Fault`.
    probability : float
        From 0 to 1.
    delay : Latency
        From the first arrival to the second, ms.

    Examples
    --------
    Of a hundred requests about thirty are served twice: what must happen once needs a key.

    >>> from mktsim.sim.events import scatters
    >>> from mktsim.sim.simulation import Simulation
    >>> from mktsim.sim.world import World
    >>> from mktsim.streams import Streams
    >>> world = World(faults=(Duplication(probability=0.3),))
    >>> with Simulation(lambda network: scatters(network, leaves=100), world, Streams(1)) as run:
    ...     _ = run.run()
    ...     run.network.incidents["duplicated"]
    30
    """

    kind: ClassVar[str] = "duplication"
    probability: float = 0.01
    delay: Latency = _AT_ONCE

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        plain.number(self, "probability", most=1.0)
        plain.latency(self, "delay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reordering(Fault):
    """A request to the hosts, or their answer, is held up by `delay` with this probability: later ones overtake it.

    Parameters
    ----------
    targets, share, start_ms, end_ms
        Where and when; see :class:`Fault`.
    probability : float
        From 0 to 1, each way by itself.
    delay : Latency
        How long it is held up, ms.

    Examples
    --------
    Where it befalls every message, both ways take 10 ms longer.

    >>> from mktsim.sim.events import event_sojourn_times
    >>> from mktsim.sim.world import World
    >>> from mktsim.streams import Streams
    >>> world = World(link_out=Constant(3), faults=(Reordering(probability=1.0, delay=Constant(10)),))
    >>> event_sojourn_times(world, Streams(1), leaves=4).round(6)
    array([0.023])
    """

    kind: ClassVar[str] = "reordering"
    probability: float = 0.01
    delay: Latency = _A_MOMENT

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        plain.number(self, "probability", most=1.0)
        plain.latency(self, "delay")


_KINDS: dict[str, type[Fault]] = {cls.kind: cls for cls in (Crash, Partition, SlowDisk, Loss, Duplication, Reordering)}


def fault_from_dict(data: Any) -> Fault:
    """Read a fault from plain data: its ``kind`` and what differs from the defaults.

    Parameters
    ----------
    data : mapping
        What a world's ``to_dict`` or TOML file says of it.

    Returns
    -------
    Fault

    Raises
    ------
    InvalidArgumentError
        If the kind is unknown or a value is out of range.

    Examples
    --------
    >>> fault_from_dict({"kind": "loss", "targets": "vendor/*", "probability": 0.1}).probability
    0.1
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidArgumentError(f"unknown kind of fault {kind!r:.80}; known: {', '.join(_KINDS)}")
    readers: dict[str, Callable[[Any], Any]] = {"delay": latency_from_dict}
    return plain.from_plain(_KINDS[kind], {key: value for key, value in data.items() if key != "kind"}, readers)
