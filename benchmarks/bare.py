"""The bare loop: one statement over every image of packed shard files, with nothing that is not needed.

No planner, no checks, no names of vendors: the floor of this way to store. In several processes, each takes shard files
and merges what it finds, a few thousand vendors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mktsim.sql import register
from mktsim.sqlite import SQLITE_OPEN_READONLY, connect
from mktsim.storage.sparse import HEAD, Bases
from mktsim.storage.vfs import Reader

Row = tuple[Any, ...]
Merge = Callable[[list[Row]], list[Row]]
_MERGED_AT_LEAST = 20_000
_loops: dict[Path, BareLoop] = {}


class BareLoop:
    """Shard files kept open, and one reader that is given image after image."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [connect(str(path), flags=SQLITE_OPEN_READONLY) for path in paths]
        for file in self._files:
            file.execute("PRAGMA mmap_size = 1099511627776").fetchall()
        image = next(image for file in self._files for (image,) in file.execute("SELECT image FROM vendors LIMIT 1"))
        self._bases = Bases(paths[0].parent)
        self._reader = Reader(image, register, self._bases.layout(image))
        self._execute = self._reader.connection.cursor().execute

    def run(self, sql: str, params: Row) -> list[Row]:
        """Return the rows of all vendors, file by file, in the order of ids."""
        rows: list[Row] = []
        extend, execute = rows.extend, self._execute
        served, bases = self._reader.file, self._bases
        layouts = bases.layouts
        for file in self._files:
            for (served.image,) in file.execute("SELECT image FROM vendors ORDER BY id"):
                served.layout = layouts.get(served.image[:HEAD]) or bases.layout(served.image)
                served.is_new = True
                extend(execute(sql, params))
        return rows

    def merged(self, sql: str, params: Row, merge: Merge) -> list[Row]:
        """Return the same rows merged, of which only some thousands are held at a time.

        The loop is written out once more, for it is the floor: a call a vendor would be a tenth of it.
        """
        rows: list[Row] = []
        execute = self._execute
        served, bases = self._reader.file, self._bases
        layouts = bases.layouts
        for file in self._files:
            for (served.image,) in file.execute("SELECT image FROM vendors ORDER BY id"):
                served.layout = layouts.get(served.image[:HEAD]) or bases.layout(served.image)
                served.is_new = True
                rows.extend(execute(sql, params))
                if len(rows) >= _MERGED_AT_LEAST:
                    rows = merge(rows)
        return merge(rows)

    def close(self) -> None:
        """Close the files."""
        self._reader.close()
        for file in self._files:
            file.close(True)


def scan_file(path: Path, sql: str, params: Row, merge: Merge) -> list[Row]:
    """Return the merged rows of one shard file, which this process keeps open: what a worker process runs."""
    loop = _loops.get(path)
    if loop is None:
        loop = _loops[path] = BareLoop([path])
    return loop.merged(sql, params, merge)
