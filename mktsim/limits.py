"""What the system lets this process have, against what is about to be needed.

Rules
-----
What cannot fit is refused before anything is begun, by an error that says how much is needed, how much there is and
what to raise. A limit that the platform does not tell is none.

What this does not do
---------------------
Nothing is reserved: two who are told that there is room may both take it.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

from mktsim.errors import ResourceLimitError

try:
    import resource as _resource
except ImportError:  # Windows: descriptors are plenty there
    _limits: Any = None
else:
    _limits = _resource

#: Descriptors that are left for everybody else: sockets, logs, libraries.
SPARE_DESCRIPTORS: Final = 32
_MEMINFO: Final = Path("/proc/meminfo")
_GROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
#: Seconds between looks at the clock while the loop is watched.
_BEAT_S: Final = 0.005


def descriptor_limit() -> int | None:
    """Return how many file descriptors this process, and each that it starts, may have.

    Returns
    -------
    int or None
        The soft RLIMIT_NOFILE; None where there is none or it is unknown.

    Examples
    --------
    >>> limit = descriptor_limit()
    >>> limit is None or 0 < open_descriptors() < limit
    True
    """
    if _limits is None:
        return None
    soft, _hard = _limits.getrlimit(_limits.RLIMIT_NOFILE)
    return None if soft == _limits.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """Return how many file descriptors are open in this process.

    Returns
    -------
    int
        0 where that is unknown.

    Examples
    --------
    >>> before = open_descriptors()
    >>> with open(os.devnull):
    ...     open_descriptors() - before
    1
    """
    try:
        return len(os.listdir("/dev/fd")) - 1  # the listing has one of its own
    except OSError:
        return 0


def check_descriptors(needed: int, what: str, *, way_out: str = "") -> None:
    """Raise unless so many more file descriptors may be opened.

    Parameters
    ----------
    needed : int
        At most, besides those that are open.
    what : str
        Who needs them.
    way_out : str
        What else would do than to raise the limit.

    Raises
    ------
    ResourceLimitError

    Examples
    --------
    >>> check_descriptors(3, "a vendor's file")
    >>> try:
    ...     check_descriptors(2**40, "a store of very many files")
    ... except ResourceLimitError as error:
    ...     error.resource
    'file descriptors'
    """
    limit = descriptor_limit()
    if limit is None:
        return
    used = open_descriptors()
    available = max(0, limit - used - SPARE_DESCRIPTORS)
    if needed <= available:
        return
    raise ResourceLimitError(
        f"{what} may need {needed:,} file descriptors, and {available:,} are left of {limit:,} (RLIMIT_NOFILE): "
        f"raise that by 'ulimit -n {needed + used + SPARE_DESCRIPTORS}' before the start, or by resource.setrlimit"
        + (f"; or {way_out}" if way_out else ""),
        resource="file descriptors",
        needed=needed,
        available=available,
    )


def available_memory() -> int | None:
    """Return how many bytes of memory this process may still take; None where that is unknown.

    The least of what the system has left, what the container's control group has, and RLIMIT_AS.

    Returns
    -------
    int or None
        Bytes.

    Examples
    --------
    >>> room = available_memory()
    >>> room is None or room > resident_memory() // 1_000
    True
    """
    rooms = [room for room in (_system_room(), *map(_group_room, _GROUPS), _address_room()) if room is not None]
    return max(0, min(rooms)) if rooms else None


def resident_memory() -> int:
    """Return how many bytes of memory this process has.

    Returns
    -------
    int
        Bytes that are in memory now, shared pages included; 0 where that is unknown.

    Examples
    --------
    >>> before = resident_memory()
    >>> block = bytearray(b"x") * 50_000_000
    >>> before == 0 or 40_000_000 < resident_memory() - before < 100_000_000
    True
    """
    return _statm(1) or 0


def check_memory(needed: int, what: str, *, way_out: str = "") -> None:
    """Raise unless so many bytes of memory may still be taken.

    Parameters
    ----------
    needed : int
        Bytes at most, besides what this process has.
    what : str
        Who needs them.
    way_out : str
        What else would do than to raise the limit.

    Raises
    ------
    ResourceLimitError
        More is needed than there is.

    Examples
    --------
    >>> check_memory(1, "a byte")
    >>> try:
    ...     check_memory(2**60, "a table of all grains of sand")
    ... except ResourceLimitError as error:
    ...     error.resource, error.needed
    ('memory', 1152921504606846976)
    """
    available = available_memory()
    if available is None or needed <= available:
        return
    raise ResourceLimitError(
        f"{what} may need {needed / 1e6:,.0f} MB of memory, and {available / 1e6:,.0f} MB are available: free some, or "
        "raise the memory of the machine, its container or 'ulimit -v'" + (f"; or {way_out}" if way_out else ""),
        resource="memory",
        needed=needed,
        available=available,
    )


def _system_room() -> int | None:
    return _field(_MEMINFO, "MemAvailable:", unit=1024)


def _group_room(folder: Path) -> int | None:
    """Return what the control group's limit leaves; pages of files are not counted, for they are given back."""
    for limit_name, held_name in (("memory.max", "anon"), ("memory.limit_in_bytes", "total_rss")):
        try:
            limit = int((folder / limit_name).read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        held = _field(folder / "memory.stat", held_name)
        return None if held is None or limit >= 2**60 else limit - held
    return None


def _address_room() -> int | None:
    if _limits is None:
        return None
    soft, _hard = _limits.getrlimit(_limits.RLIMIT_AS)
    size = _statm(0)
    return None if soft == _limits.RLIM_INFINITY or size is None else soft - size


def _statm(place: int) -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[place]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _field(path: Path, name: str, *, unit: int = 1) -> int | None:
    """Return a number from a file of names and numbers."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return None
    return next((int(parts[1]) * unit for line in lines if (parts := line.split())[:1] == [name]), None)


class Lateness:
    """How late the running loop gets to what is due, while somebody watches: others' turns are late by as much.

    A timer goes round only while the block runs, so that an idle loop stays idle. Under simulation nothing is
    measured: virtual time has no lateness, and a timer would be an event.

    Attributes
    ----------
    worst_s, last_s : float
        The longest that a timer was late, ever and in the last block, seconds; a beat's five milliseconds and more.

    Examples
    --------
    >>> from threading import Event
    >>> async def story():
    ...     watched = Lateness()
    ...     with watched:
    ...         _ = Event().wait(0.03)  # holds the loop up, as a scan does
    ...     return 0.015 < watched.worst_s < 1.0
    >>> asyncio.run(story())
    True
    """

    __slots__ = ("_due_s", "_handle", "_loop", "_watchers", "last_s", "worst_s")

    def __init__(self) -> None:
        self.worst_s = self.last_s = 0.0
        self._watchers = 0
        self._due_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> Lateness:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # Those who watched another loop are gone with it.
            self._loop, self._watchers = loop, 0
        self._watchers += 1
        if self._watchers == 1:
            self.last_s = 0.0
            if getattr(loop, "unix_time", None) is None:
                self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchers -= 1
        if self._watchers <= 0 and self._handle is not None:
            self._handle.cancel()
            self._handle = None
            self._look()

    def _wait(self) -> None:
        assert self._loop is not None
        self._due_s = self._loop.time() + _BEAT_S
        self._handle = self._loop.call_at(self._due_s, self._beat)

    def _beat(self) -> None:
        self._look()
        self._wait()

    def _look(self) -> None:
        assert self._loop is not None
        self.last_s = max(self.last_s, self._loop.time() - self._due_s)
        self.worst_s = max(self.worst_s, self.last_s)
