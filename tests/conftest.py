"""Hypothesis profiles, `dev` on a desk and `ci` where CI is set; and what is compiled once for all processes."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile

from hypothesis import HealthCheck, settings

settings.register_profile("dev", max_examples=60, deadline=None)
settings.register_profile(
    "ci", max_examples=200, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(config, items):
    """Leave soak tests out unless they are asked for."""
    if "soak" in (config.getoption("markexpr") or ""):
        return
    kept = [item for item in items if item.get_closest_marker("soak") is None]
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("soak") is not None])
    items[:] = kept


def _keep_bytecode() -> None:
    """Have the hundreds of processes that tests start find their imports compiled.

    Where PYTHONDONTWRITEBYTECODE is set, as in many containers, and the installer compiled nothing, as uv does not,
    each of them would compile pandas and scipy anew: three times the work of importing them. Bytecode then goes to a
    folder of this run, so that nothing is written beside sources.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        folder = tempfile.mkdtemp(prefix="mktsim-bytecode-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = folder
        sys.dont_write_bytecode = False


_keep_bytecode()  # Before the workers of pytest-xdist are started, which inherit it.
