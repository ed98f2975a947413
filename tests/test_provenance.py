"""Which source gave a result: what is edited while a process lives is never kept under the wrong name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mktsim.errors import SimulationError, StorageError
from mktsim.sim.world import World
from mktsim.study import Scenario, jobs, provenance
from mktsim.study.cache import ReplicationCache
from mktsim.study.jobs import Job, completed, computed

ROOT = Path(__file__).parents[1]

#: What every program of these tests begins with: a sweep of four replications, and an edit that doubles a median.
_BEGIN = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import mktsim
from mktsim.errors import SimulationError, StorageError
from mktsim.sim import LogNormal, World
from mktsim.study import Scenario, sweep

FILE = Path(mktsim.__file__).parent / "sim" / "latency.py"
AS_IT_WAS = FILE.read_text()

def edit():
    FILE.write_text(AS_IT_WAS + '''

_as_it_was = LogNormal.sample
LogNormal.sample = lambda self, uniforms: 2 * _as_it_was(self, uniforms)
''')

def ask(cache=None, executor=None):
    scenario = Scenario(vendors=3, world=World(service=LogNormal(1.0, 10.0)))
    try:
        found = sweep(scenario, replications=4, seed=1, requests=5, mean=False, quantiles=(0.5,), cache=cache,
                      executor=executor, progress=False)
    except (SimulationError, StorageError) as error:
        return f"{type(error).__name__}: {error}"
    return float(found["estimate"].iloc[0])
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    shutil.copytree(ROOT / "mktsim", tmp_path / "mktsim", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(ROOT / "data")
    return tmp_path


def _run(package: Path, program: str) -> Any:
    """Run a program on the copy and return what it prints last, which is JSON."""
    script = package / "program.py"
    script.write_text(_BEGIN + program)
    # Python itself takes a file of the same size and second for unchanged.
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=package, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_samples_of_the_code_that_was_loaded_are_not_kept_as_those_of_the_file_that_was_edited(package: Path) -> None:
    """A process that outlives an edit is refused the cache; the next one finds nothing stale in it."""
    cache = str(package / "cache")
    refused, plain, reverted = _run(
        package, f"edit(); refused = ask({cache!r}); plain = ask(); FILE.write_text(AS_IT_WAS)\n"
        f"reverted = ask({cache!r}); edit(); print(json.dumps([refused, plain, reverted]))",
    )  # fmt: skip
    assert refused.startswith("StorageError: the cache is refused")
    assert "sim/latency.py has changed" in refused
    assert reverted == plain  # The file is again what was loaded: the cache may be used, and is.
    with ReplicationCache.open(cache) as kept:
        assert len(kept) == 4
    cached, uncached = _run(package, f"print(json.dumps([ask({cache!r}), ask()]))")
    assert cached == uncached
    assert uncached > 1.8 * plain  # The edit counts.
    with ReplicationCache.open(cache) as kept:
        assert len(kept) == 8


def test_a_worker_that_runs_other_source_is_refused_with_or_without_a_cache(package: Path) -> None:
    """A worker that was started after an edit gives samples of the new program to a process of the old one."""
    cache = package / "cache"
    mixed, with_cache, alone = _run(
        package,
        f"""
if __name__ == "__main__":
    edit()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        mixed = ask(executor=pool)
        FILE.write_text(AS_IT_WAS)  # So that this process is in no doubt; the worker has loaded the edit.
        with_cache = ask({str(cache)!r}, executor=pool)
    print(json.dumps([mixed, with_cache, ask({str(cache)!r})]))
""",
    )
    assert mixed.startswith("SimulationError: a worker of the executor does not run the source")
    assert with_cache.startswith("SimulationError: a worker of the executor does not run the source")
    assert isinstance(alone, float)
    with ReplicationCache.open(cache) as kept:
        assert len(kept) == 4


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three files, one of which decides nothing."""
    for name in ("sim/latency.py", "study/charts.py", "__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    monkeypatch.setattr(provenance, "_IMPORTED_NS", time.time_ns() + 10**9)
    return tmp_path


def test_what_decides_samples_decides_the_digest(small: Path) -> None:
    """Contents and names of deciding files; neither their times nor the other files."""
    source = provenance._Source.read()
    assert source.doubt == source.look() == ""
    (small / "study/charts.py").write_text("# Another chart.\n")
    os.utime(small / "sim/latency.py")
    assert source.look() == ""
    assert provenance._Source.read().digest == source.digest
    (small / "sim/latency.py").write_text("# sim/Latency.py\n")  # Of the same size.
    assert "sim/latency.py has changed" in source.look()
    assert provenance._Source.read().digest != source.digest
    (small / "sim/latency.py").write_text("# sim/latency.py\n")
    assert source.look() == ""
    for change in (lambda: (small / "sim/new.py").write_text(""), lambda: (small / "sim/latency.py").unlink()):
        change()
        assert "has changed" in source.look()


def test_a_file_written_between_the_first_import_and_the_digest_is_in_doubt(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been loaded before it was written: the digest on disk would not be that of the code."""
    monkeypatch.setattr(provenance, "_IMPORTED_NS", time.time_ns() - 10**9)
    assert "was written to while" in provenance._Source.read().look()
    for path in small.rglob("*.py"):
        path.unlink()
    assert "no source" in provenance._Source.read().look()


def test_after_a_replication_files_are_read_only_where_a_module_was_loaded(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that is loaded stays what it is; a module that comes later may be of another program."""
    source = provenance._Source.read()
    monkeypatch.delitem(sys.modules, "mktsim.sim.latency")
    assert source.look() == ""
    (small / "sim/latency.py").write_text("# edited\n")
    assert source.look_where_loaded() == ""
    monkeypatch.setitem(sys.modules, "mktsim.sim.latency", provenance)
    assert "has changed" in source.look_where_loaded()


def test_a_module_loaded_after_an_edit_ends_a_cached_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed before it is kept, what may be of the edited file is not."""
    doubts = iter(["", "sim/latency.py has changed since this process loaded it"])
    monkeypatch.setattr(jobs, "program_doubt", lambda: next(doubts))
    digests = iter([jobs.program_digest()] * 2 + [""])
    monkeypatch.setattr(jobs, "running_digest", lambda: next(digests))
    with pytest.raises(StorageError, match="has changed"):
        list(completed([Job(Scenario(vendors=2, world=World()), 1, r, 3) for r in range(5)], cache=tmp_path))
    with ReplicationCache.open(tmp_path) as kept:
        assert len(kept) == 2


class _Lost:
    """A scheduler that loses every job."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit(self, fn: Any, /, *args: Any) -> Any:
        return self

    def add_done_callback(self, fn: Any) -> None:
        fn(self)

    def result(self) -> Any:
        raise self.error

    def cancel(self) -> None:
        """Lost already."""


def test_a_job_that_the_scheduler_lost_is_a_named_error() -> None:
    """Dask's killed worker and a cancelled job are ours to name; what a job raises is its own."""
    from distributed.scheduler import KilledWorker

    killed = KilledWorker("job", SimpleNamespace(address="tcp://127.0.0.1:5"), 3)
    for error in (killed, CancelledError("shut down")):
        with pytest.raises(SimulationError, match="worker of the executor died, or a job was cancelled"):
            list(computed(abs, [1], executor=_Lost(error)))
    with pytest.raises(ZeroDivisionError):
        list(computed(abs, [1], executor=_Lost(ZeroDivisionError())))
