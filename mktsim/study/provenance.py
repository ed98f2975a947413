"""Which programs decided a result, and whether the source on disk is still the one that runs.

Rules
-----
The digest is that of the source when this was imported, not when somebody asks: a process goes on with the code that
it has loaded, whatever is edited meanwhile. Where the two may differ, `running_digest` names no digest at all, for
samples of one program must never be kept under the name of another.

Theory of operation
-------------------
`import mktsim` notes the time, and this module, which every study imports, reads the source (200 files, 12 ms). A file
written between the two may have been loaded before it was written: nobody can tell any more. A file written later is
noticed by its size and times when the digest is next used; its bytes then decide whether it has changed. Looking at
the files again takes a millisecond, so after each replication it is done only where a module was loaded since: nothing
else brings in other code.

What this does not do
---------------------
It does not notice code that is replaced in memory (monkeypatching), nor packages other than this one, which go by their
version numbers. `importlib.reload` of a changed file is noticed as the change that it is.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from mktsim import _IMPORTED_NS, sqlite
from mktsim.errors import shortened


@cache
def program_versions() -> Mapping[str, str]:
    """Look up the versions of the programs that decide a result."""
    found = {"python": platform.python_version(), "sqlite": sqlite.VERSION}
    for package in ("mktsim", "numpy", "scipy", "simpy", "sqlglot"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # Run from a source tree that was never installed.
            found[package] = "unknown"
    return found


#: What of the studies decides samples; the rest of them reads samples, or draws.
_DECIDES: Final = ("study/coordinated.py", "study/jobs.py", "study/replication.py", "study/scenario.py")
_DECIDES_NOTHING: Final = ("study/", "explore/", "cli.py", "__main__.py", "testing.py")
#: Times of files are those of the system's last tick: one that looks this much older may still have been written later.
_TICK_NS: Final = 10_000_000
_PACKAGE: Final = Path(__file__).resolve().parents[1]
#: What tells whether a file was written to: its size, its times and its number, by its name in the package.
_State = dict[str, tuple[int, int, int, int]]


def _sources() -> _State:
    """Look up which files decide samples, and their states."""
    found: _State = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE).as_posix()
        if name in _DECIDES or not name.startswith(_DECIDES_NOTHING):
            state = path.stat()
            found[name] = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    return found


def _contents(names: Iterable[str]) -> dict[str, bytes]:
    """Digest each of these files, as it is now."""
    return {name: hashlib.blake2b((_PACKAGE / name).read_bytes()).digest() for name in names}


@dataclass(slots=True)
class _Source:
    """The source that this process runs: read once, compared with the files whenever it matters."""

    known: _State
    contents: dict[str, bytes]
    #: Why it is not certain that these are the contents which were loaded; empty where it is.
    doubt: str
    digest: str = field(init=False)
    modules: frozenset[str] = field(init=False)
    #: How many of the modules were loaded when the files were last found unchanged.
    loaded: int = -1

    def __post_init__(self) -> None:
        whole = hashlib.blake2b(digest_size=16)
        for name, content in self.contents.items():
            whole.update(f"{name}\0".encode() + content)
        self.digest = whole.hexdigest()
        names = (Path(name).with_suffix("").parts for name in self.contents)
        self.modules = frozenset(".".join(("mktsim", *parts)).removesuffix(".__init__") for parts in names)

    @classmethod
    def read(cls) -> _Source:
        """Read the files."""
        known = _sources()
        late = [name for name, (_, *times_ns, _) in known.items() if max(times_ns) > _IMPORTED_NS - _TICK_NS]
        doubt = f"{late[0]} was written to while this process was loading it" if late else ""
        if not known:
            doubt = f"{_PACKAGE} has no source files that tell one program from another"
        return cls(known, _contents(known), doubt)

    def look(self) -> str:
        """Compare the files with what was read, and say what is doubtful."""
        loaded = self.count_loaded()  # Before the files: a module that is loaded meanwhile is looked at the next time.
        try:
            now = _sources()
            if now != self.known:
                contents = _contents(now)
                if contents != self.contents:
                    changed = min(name for name, _ in contents.items() ^ self.contents.items())
                    return f"{changed} has changed since this process loaded it"
                self.known = now  # Touched, or written as it was.
        except OSError as error:  # A file that is being replaced.
            return f"the source cannot be read: {shortened(error)}"
        self.loaded = loaded
        return self.doubt

    def look_where_loaded(self) -> str:
        """Do so where a module was loaded since; code that is loaded stays what it is."""
        return self.doubt if self.count_loaded() == self.loaded else self.look()

    def count_loaded(self) -> int:
        """Count the modules that are loaded."""
        return sum(name in sys.modules for name in self.modules)


_source: Final = _Source.read()


def program_digest() -> str:
    """Return the digest of the source on which samples depend: two programs of one version number may still differ.

    It is that of the files when this module was imported.

    Examples
    --------
    >>> len(program_digest())
    32
    """
    return _source.digest


def program_doubt() -> str:
    """Say why the source on disk may not be what runs here; empty where it is.

    Examples
    --------
    >>> program_doubt() in ("", "sql/planner.py has changed since this process loaded it")
    True
    """
    return _source.look()


def running_digest() -> str:
    """Return the digest of the source that gave the samples which were just computed, or "" where that is in doubt."""
    return "" if _source.look_where_loaded() else _source.digest
