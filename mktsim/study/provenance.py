"""Which programs decided a result."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from mktsim import sqlite


@cache
def program_versions() -> Mapping[str, str]:
    """Look up the versions of the programs that decide a result."""
    found = {"python": platform.python_version(), "sqlite": sqlite.VERSION}
    for package in ("mktsim", "numpy", "scipy", "simpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # Run from a source tree that was never installed.
            found[package] = "unknown"
    return found


#: What of the studies decides samples; the rest of them reads samples, or draws.
_DECIDES: Final = ("study/coordinated.py", "study/jobs.py", "study/replication.py", "study/scenario.py")


@cache
def program_digest() -> str:
    """Digest the source on which samples depend: two programs of one version number may still differ.

    Examples
    --------
    >>> len(program_digest())
    32
    """
    package = Path(__file__).resolve().parents[1]
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name in _DECIDES or not name.startswith(("study/", "explore/", "cli.py", "__main__.py", "testing.py")):
            state.update(f"{name}\0".encode())
            state.update(hashlib.blake2b(path.read_bytes()).digest())
    return state.hexdigest()
