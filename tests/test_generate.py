"""Generating fleets: the same for one process and many, resumed after a crash, refused where it would mix."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import DuplicateError, InvalidArgumentError, StorageError
from mktsim.market import Marketplace, generate
from mktsim.market.layout import UNFINISHED
from mktsim.sqlite import SQLITE_OPEN_READONLY, connect


def contents(path: Path) -> dict[str, list[Any]]:
    """Return every shard's vendors, with their whole databases."""
    found = {}
    for file in sorted((path / "vendors").iterdir()):
        if file.suffix == ".sqlite":
            connection = connect(str(file), flags=SQLITE_OPEN_READONLY)
            found[file.name] = connection.execute("SELECT id, version, image FROM vendors ORDER BY id").fetchall()
            connection.close()
    return found


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    """Every image of every shard is the same, byte for byte."""
    assert generate(tmp_path / "one", vendors=150, products=3, seed=5, shards=5, workers=1) == 150
    assert generate(tmp_path / "two", vendors=150, products=3, seed=5, shards=5, workers=2) == 150
    one = contents(tmp_path / "one")
    assert sum(map(len, one.values())) == 150
    assert one == contents(tmp_path / "two")
    assert not (tmp_path / "two" / UNFINISHED).exists()
    with pytest.raises(DuplicateError, match="holds 150 vendors"):
        generate(tmp_path / "two", vendors=150, products=3, seed=5)


def test_a_killed_generation_is_resumed_by_the_same_call_and_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL in the middle; until it is resumed nobody can open it, and no other call can go on in its place."""
    code = (
        "import sys; from mktsim.market import generate; "
        "generate(sys.argv[1], vendors=4000, products=2, seed=9, shards=3, workers=1)"
    )
    path = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not sum(map(len, contents_or_nothing(path).values())):
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    made = sum(map(len, contents(path).values()))
    assert 0 < made < 4000, "killed too late, or nothing was made"
    with pytest.raises(StorageError, match="was not finished"):
        asyncio.run(open_and_close(path))
    with pytest.raises(InvalidArgumentError, match="interrupted"):
        generate(path, vendors=4000, products=2, seed=10, shards=3)
    assert generate(path, vendors=4000, products=2, seed=9, shards=3, workers=2) == 4000
    generate(tmp_path / "whole", vendors=4000, products=2, seed=9, shards=3, workers=1)
    assert contents(path) == contents(tmp_path / "whole")
    asyncio.run(open_and_close(path))


def contents_or_nothing(path: Path) -> dict[str, list[Any]]:
    """Return what is there already."""
    try:
        return contents(path)
    except Exception:
        return {}


async def open_and_close(path: Path) -> None:
    """Open a market, and close it."""
    async with Marketplace.open(path) as market:
        assert (await market.query("SELECT COUNT(*) AS n FROM vendors")).rows == [(4000,)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("vendors", -1), ("vendors", None), ("products", "3"), ("seed", -1), ("seed", True), ("workers", 0),
     ("shards", "x"), ("progress", "x")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_before_a_folder_is_made(tmp_path: Path, name: str, value: object) -> None:
    """Nothing is left behind."""
    with pytest.raises(InvalidArgumentError):
        generate(tmp_path / "new", **{"vendors": 3, "products": 2, "seed": 1, name: value})  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", [3, None, b"abc"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    """With the words that opening has for it."""
    with pytest.raises(InvalidArgumentError, match="a path is a string or a Path"):
        generate(path, vendors=1, products=1, seed=1)
