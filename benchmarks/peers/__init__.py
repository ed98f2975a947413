"""The platform's own runtime as a peer: SQLite-backed Durable Objects in the npm package miniflare, on loopback.

`worker.mjs` is what one would write there: a class with a database each, and a worker that asks all of them at once and
sorts. It needs node and npm; the package is installed beside this file on first use. One connection is kept open, so
that a request costs a fraction of a millisecond beyond what the runtime does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_HERE = Path(__file__).parent
_BATCH = 50


class PeerMissingError(RuntimeError):
    """The peer cannot be had on this machine; the message says what it needs."""


def available() -> bool:
    """Whether node and npm are there."""
    return shutil.which("node") is not None and shutil.which("npm") is not None


class DurableObjectRuntime:
    """N Durable Objects, each with a table ``products``.

    Parameters
    ----------
    columns : sequence of str
        The table's columns.
    vendors : iterable of (str, rows)
        An object each.

    Raises
    ------
    PeerMissingError
        Without node, npm or the package.
    """

    def __init__(self, columns: Sequence[str], vendors: Iterable[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
        self.ids: list[str] = []
        self._folder = TemporaryDirectory(prefix="mktsim-objects-", ignore_cleanup_errors=True)
        _install()
        self._process = subprocess.Popen(
            ["node", str(_HERE / "serve.mjs"), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            if not line.startswith("listening "):
                raise PeerMissingError(f"the runtime did not start: {line!r}")
            place = urlsplit(line.split()[1])
            self._connection = HTTPConnection(place.hostname or "", place.port, timeout=300)
            ddl = f"CREATE TABLE products({', '.join(columns)})"
            batch: list[Any] = []
            for vendor_id, rows in vendors:
                self.ids.append(vendor_id)
                batch.append([vendor_id, rows])
                if len(batch) == _BATCH:
                    self._post("/fill", {"ddl": ddl, "columns": columns, "vendors": batch})
                    batch = []
            self._post("/fill", {"ddl": ddl, "columns": columns, "vendors": batch})
        except BaseException:
            self.close()
            raise

    def top(self, statement: str, params: Sequence[Any], *, key: int, limit: int) -> list[tuple[Any, ...]]:
        """Ask every object, sort by the column `key`, descending, and return the first `limit` rows."""
        body = {"ids": self.ids, "statement": statement, "params": params, "key": key, "limit": limit}
        return [tuple(row) for row in self._post("/top", body)]

    def _post(self, path: str, body: Any) -> Any:
        try:
            self._connection.request("POST", path, json.dumps(body))
            response = self._connection.getresponse()
        except ConnectionError:  # The runtime hangs up on a connection that was idle for seconds.
            self._connection.close()
            self._connection.request("POST", path, json.dumps(body))
            response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {answer[:300]!r}")
        return json.loads(answer)

    def close(self) -> None:
        """Stop the runtime and remove its files."""
        if getattr(self, "_connection", None) is not None:
            self._connection.close()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _install() -> None:
    if (_HERE / "node_modules" / "miniflare").is_dir():
        return
    if not available():
        raise PeerMissingError("the Durable Object runtime needs node and npm")
    command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--prefix", str(_HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerMissingError(f"npm install failed: {done.stderr.strip()[-500:]}")
