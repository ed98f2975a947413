"""Files of a market that are deleted or emptied by hand are errors by name; a crash while they are made is none."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mktsim.errors import LostFileError, StorageError
from mktsim.market import Marketplace, generate
from mktsim.sql.schema import Schema
from mktsim.sqlite import connect
from mktsim.storage import close_scanners, open_scanner, open_store

SCHEMA = Schema(("CREATE TABLE t(x)",))
VENDORS = [f"v{number}" for number in range(8)]
COUNT = "SELECT COUNT(*), COUNT(DISTINCT id) FROM vendors"


def made(path: Path, store: str) -> Path:
    """Make a market of eight vendors, and return its folder."""

    async def story() -> None:
        async with Marketplace.open(path, store=store, shards=2) as market:
            for vendor_id in VENDORS:
                await market.vendor(vendor_id).initialize()

    asyncio.run(story())
    return path


async def counted(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    """Open a market and count its vendors."""
    async with Marketplace.open(path, **options) as market:
        return (await market.query(COUNT)).rows


def contents(path: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def forget(path: Path) -> None:
    """Have a market look as an older program left it."""
    for file in (path / "market.json", path / "vendors" / "store.json", path / "system" / "store.json"):
        facts = json.loads(file.read_text())
        assert facts.pop("made")
        file.write_text(json.dumps(facts))


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def blank(path: Path) -> None:
    """Put a database without tables in the file's place."""
    path.unlink()
    with closing(connect(str(path))) as file:
        file.execute("CREATE TABLE x(y); DROP TABLE x; VACUUM")


HARM = {"delete": delete, "truncate": truncate, "blank": blank}


@pytest.mark.parametrize("harm", HARM)
def test_a_lost_shard_file_is_refused_by_name_and_comes_back_from_a_backup(tmp_path: Path, harm: str) -> None:
    """Nothing is made in its place or changed elsewhere, however often it is tried."""
    path = made(tmp_path / "market", "packed")
    lost = path / "vendors" / "shard-1.sqlite"
    backup = lost.read_bytes()
    HARM[harm](lost)
    before = contents(path)
    for _ in range(2):
        with pytest.raises(LostFileError, match="backup") as caught:
            asyncio.run(counted(path))
        assert caught.value.path == str(lost)
        assert "shard-1.sqlite" in str(caught.value)
        if harm != "blank":  # That is seen when it is used, and is in WAL mode by then.
            assert contents(path) == before
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.path) == (str(caught.value), caught.value.path)
    lost.write_bytes(backup)
    assert asyncio.run(counted(path)) == [(8, 8)]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("is_old", [False, True])
def test_a_lost_catalogue_is_refused_and_costs_no_vendor_its_file(tmp_path: Path, harm: str, is_old: bool) -> None:
    """Files that no catalogue lists are no leftovers of a crash where there is no catalogue; also in an old market."""
    path = made(tmp_path / "market", "directory")
    if is_old:
        forget(path)
    lost = path / "vendors" / "catalogue.sqlite"
    backup = lost.read_bytes()
    HARM[harm](lost)
    before = {name for name in contents(path) if name.count("/") == 2}
    with pytest.raises(LostFileError, match=r"catalogue\.sqlite"):
        asyncio.run(counted(path))
    assert {name for name in contents(path) if name.count("/") == 2} == before
    assert len(before) >= 8
    for suffix in ("-wal", "-shm"):
        Path(f"{lost}{suffix}").unlink(missing_ok=True)
    lost.write_bytes(backup)
    assert asyncio.run(counted(path)) == [(8, 8)]


@pytest.mark.parametrize("harm", ["delete", "truncate", "folder", "two"])
def test_a_lost_vendor_file_is_refused_by_name_when_the_store_is_opened(tmp_path: Path, harm: str) -> None:
    """Its folder too; with the vendor struck from the catalogue the others go on."""
    path = made(tmp_path / "market", "directory")
    files = sorted((path / "vendors").glob("*/*.sqlite"))
    backup = files[0].read_bytes()
    if harm == "folder":
        delete(files[0].parent)
    else:
        HARM.get(harm, delete)(files[0])
    if harm == "two":
        truncate(files[1])
    with pytest.raises(LostFileError, match="backup") as caught:
        asyncio.run(counted(path))
    first, *others = (files[0], files[1]) if harm == "two" else (files[0],)
    assert caught.value.path in (str(first), *map(str, others))
    assert ("one other" in str(caught.value)) == bool(others)
    files[0].parent.mkdir(exist_ok=True)
    if harm == "two":
        with closing(connect(str(path / "vendors" / "catalogue.sqlite"))) as file:
            for each in files[:2]:
                each.unlink(missing_ok=True)
            while True:
                try:
                    left = asyncio.run(counted(path))
                    break
                except LostFileError as error:
                    file.execute(f"DELETE {str(error).partition('DELETE ')[2].partition(',')[0]}")
        assert left == [(6, 6)]
    else:
        files[0].write_bytes(backup)
        assert asyncio.run(counted(path)) == [(8, 8)]


@pytest.mark.parametrize("store", ["packed", "directory"])
@pytest.mark.parametrize("part", ["vendors", "system", "vendors/store.json"])
def test_a_lost_store_is_refused_by_name(tmp_path: Path, store: str, part: str) -> None:
    """``market.json`` says that it was made."""
    path = made(tmp_path / "market", store)
    shutil.copytree(path / part.partition("/")[0], tmp_path / "backup")
    delete(path / part)
    with pytest.raises(LostFileError, match=r"store\.json"):
        asyncio.run(counted(path))
    assert not (path / part).exists()
    shutil.rmtree(path / part.partition("/")[0], ignore_errors=True)
    shutil.copytree(tmp_path / "backup", path / part.partition("/")[0])
    assert asyncio.run(counted(path)) == [(8, 8)]


@pytest.mark.parametrize("store", ["packed", "directory"])
def test_a_market_of_an_older_program_opens_and_is_guarded_from_then_on(tmp_path: Path, store: str) -> None:
    """Files that it had not made yet are made."""
    path = made(tmp_path / "market", store)
    forget(path)
    if store == "packed":
        (path / "vendors" / "shard-0.sqlite").unlink()  # An older program made it when it had a vendor.
    assert asyncio.run(counted(path))[0][0] in (8, *range(1, 8))
    for file in (path / "market.json", path / "vendors" / "store.json", path / "system" / "store.json"):
        assert json.loads(file.read_text())["made"]
    delete(path / "vendors" / ("shard-0.sqlite" if store == "packed" else "catalogue.sqlite"))
    with pytest.raises(LostFileError):
        asyncio.run(counted(path))


def test_the_way_out_that_is_named_makes_the_file_anew(tmp_path: Path) -> None:
    """Whoever strikes it from ``made`` goes on without what it held."""
    path = made(tmp_path / "market", "packed")
    with closing(connect(str(path / "vendors" / "shard-0.sqlite"))) as file:
        left = file.execute("SELECT COUNT(*) FROM vendors").get
    delete(path / "vendors" / "shard-1.sqlite")
    facts = json.loads((path / "vendors" / "store.json").read_text())
    facts["made"].remove("shard-1.sqlite")
    (path / "vendors" / "store.json").write_text(json.dumps(facts))
    assert asyncio.run(counted(path)) == [(left, left)]
    (path / "vendors" / "store.json").write_text(json.dumps(facts | {"made": 5}))
    with pytest.raises(StorageError, match="cannot be understood"):
        asyncio.run(counted(path))


def test_a_file_that_is_only_read_is_never_taken_for_an_empty_one(tmp_path: Path) -> None:
    """By a worker's scanner: neither missing nor empty."""
    with open_store("packed", tmp_path / "s", SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        store.create("acme", {"t": [(1,)]})
    file = tmp_path / "s" / "s.sqlite"
    assert len(list(open_scanner(file).scan([("SELECT x FROM t", ())]))) == 1
    close_scanners()
    truncate(file)
    with pytest.raises(LostFileError, match=r"s\.sqlite"):
        open_scanner(file)
    delete(file)
    with pytest.raises(StorageError, match=r"s\.sqlite"):
        open_scanner(file)
    assert not file.exists()


def test_a_vendor_file_that_is_lost_under_an_open_store_costs_one_vendor(tmp_path: Path) -> None:
    """It is named when the vendor is read or written, and not made anew; the others go on."""
    with open_store("directory", tmp_path / "s", SCHEMA, shards=["s"], locate=lambda _: "s") as store:
        store.create_many((vendor_id, {"t": [(1,)]}) for vendor_id in ("acme", "bolt"))
        file = store.vendor_path("acme")  # type: ignore[attr-defined]
        for harm, kind in ((truncate, LostFileError), (delete, StorageError)):
            harm(file)
            for use in (store.read, store.transaction):
                with pytest.raises(kind, match="'acme'"), use("acme"):
                    pass
            assert [rows for _, rows in store.scan("s", [("SELECT x FROM t", ())], vendor_ids=["bolt"])] == [([(1,)],)]
        assert not file.exists()


def test_a_generation_that_was_interrupted_does_not_go_on_without_a_file(tmp_path: Path) -> None:
    """It would make the vendors that are left, and call that all."""
    path = tmp_path / "market"
    generate(path, vendors=40, products=2, seed=1, shards=2)
    (path / "generation.json").write_text('{"vendors": 40, "products": 2, "seed": 1}')
    backup = (path / "vendors" / "shard-0.sqlite").read_bytes()
    delete(path / "vendors" / "shard-0.sqlite")
    with pytest.raises(LostFileError, match="shard-0"):
        generate(path, vendors=40, products=2, seed=1, shards=2)
    (path / "vendors" / "shard-0.sqlite").write_bytes(backup)
    assert generate(path, vendors=40, products=2, seed=1, shards=2) == 40


#: Runs a story again and again, each time killed one step later, and each time sees to it that all goes on.
KILLED = """
import asyncio, os, shutil, signal, sys
from pathlib import Path
from importlib import import_module
generating, layout = import_module("mktsim.market.generate"), import_module("mktsim.market.layout")
import mktsim.storage.directory as directory
import mktsim.storage.folder as folder
import mktsim.storage.packed as packed
import mktsim.storage.sparse as sparse
from mktsim.errors import DuplicateError
from mktsim.market import Marketplace, generate

steps = 0

def step(at):
    global steps
    steps += 1
    if steps == at:
        os.kill(os.getpid(), signal.SIGKILL)

def killing(function, at):
    def wrapped(*args, **kwargs):
        step(at)
        result = function(*args, **kwargs)
        step(at)
        return result
    return wrapped

def arm(at):
    for module, name in [
        (layout, "replace_file"), (folder, "replace_file"), (sparse, "replace_file"), (directory, "replace_file"),
        (generating, "replace_file"), (packed, "open_file"), (packed, "_lay_out"), (directory, "open_file"),
        (Path, "unlink"),
    ]:
        setattr(module, name, killing(getattr(module, name), at))

def in_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

VENDORS = [f"v{number}" for number in range(12)]

async def open_new(path):
    async with Marketplace.open(path, store=sys.argv[2], shards=2) as market:
        for vendor in VENDORS[:2]:
            if vendor not in market.vendors:
                await market.vendor(vendor).initialize()

async def fill(path):
    async with Marketplace.open(path, shards=2) as market:
        for vendor in VENDORS:
            await market.vendor(vendor).initialize()

async def rebalanced(path):
    async with Marketplace.open(path) as market:
        await market.rebalance(shards=3)
        await market.rebalance(shards=1)

async def check(path, least):
    async with Marketplace.open(path) as market:
        if hasattr(market.store, "moving"):
            await market.rebalance()
        await market.idle()
        rows = (await market.query("SELECT id FROM vendors ORDER BY id")).rows
        assert rows == [(vendor,) for vendor in market.vendors] and len(rows) >= least, rows
        for vendor in [f"new-{n}" for n in range(3)]:
            await market.vendor(vendor).initialize()
        assert len((await market.query("SELECT id FROM vendors")).rows) == len(rows) + 3

root, store, story = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for at in range(1, 1000):
    path = root / str(at)
    if story == "open":
        work = lambda: asyncio.run(open_new(path))
        least = 0
    elif story == "generate":
        work = lambda: generate(path, vendors=30, products=1, seed=1, shards=2)
        least = 30
    else:
        if at == 1:
            asyncio.run(fill(root / "before"))
        shutil.copytree(root / "before", path)
        work = lambda: asyncio.run(rebalanced(path))
        least = len(VENDORS)
    def dying():
        arm(at)
        work()
    status = in_child(dying)
    if status == 0:
        print(at)
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (at, status)
    if story == "generate":
        def again():
            try:
                work()
            except DuplicateError:  # It was done when it was killed.
                assert not (path / "generation.json").exists()
        assert in_child(again) == 0, at
    assert in_child(lambda: asyncio.run(check(path, least))) == 0, at
"""


@pytest.mark.parametrize(
    ("store", "story", "least"),
    [("packed", "open", 30), ("directory", "open", 20), ("packed", "generate", 25), ("packed", "rebalance", 15)],
)
def test_a_crash_at_any_step_of_making_and_dropping_files_leaves_a_market_that_opens(
    tmp_path: Path, store: str, story: str, least: int
) -> None:
    """SIGKILL before and after each file is made, written down and deleted; whatever was acknowledged is there."""
    memory = Path("/dev/shm")  # where there is one: a killed process does not care that fsync is nothing there
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), folder, store, story],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stdout) > least
