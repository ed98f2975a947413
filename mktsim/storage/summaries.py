"""What a packed store knows of each vendor without reading its image: counts and bounds, as arrays.

Rules
-----
* A summary is written in the transaction that writes the image. Triggers of the shard file see to the rest: whoever
  writes an image without a summary, an older program for instance, leaves the vendor *unknown*, never wrongly known.
* A bound is a number that a float holds exactly. A vendor of which that cannot be said (text among the numbers, an
  integer past 2**53) has the bound NaN, which excludes nothing.
* Every change of a vendor's row has a number, higher than those of all commits before it: what changed since is found
  without looking at what did not.
* A label goes only when no record of the file has its code. Labels and records are read in one snapshot, and a record
  never gets a code without a change that has a number: so that a code may be given to another label at once.

Theory of operation
-------------------
`Schema.summarised` declares tables, columns and a grouping column of each. A summary is a sequence of records of one
length: for each table one over all its rows (code 0), then one for each value of its grouping column. Such a value is
written once a shard, in ``labels``, and the record has its code; values that are no short text, and those past the
first `_MOST_LABELS` of a shard or `_MOST_GROUPS` of a vendor, share the code `OTHER`, which stands for any value. So
the summaries of a shard are one array of bytes, that numpy reads as columns: 35 MB for 100,000 vendors of ten products
in two to three categories, their ids included (``python -m benchmarks --only million``), and ten times that for ten
times as many.

`ShardSummaries` is that, loaded. SQLite tells by one number (``PRAGMA data_version``) whether any other connection, of
this process or another, has committed since; if none has, nothing is read. Else the rows whose number is higher than
the highest seen are read, and their places in the arrays written over.

*Labels* that no record uses any more go when a store is scrubbed, after a deletion for instance, and when a new one
finds no room: for that all records of the file are read, 1.5 us each, at most once in so many changes that it costs
each of them little. Worked example: of 1,000 labels, "spring" is of no use since its last vendor calls it "summer",
which found no room and was counted among the others. The next write of a new label, "autumn", reads the records, finds
that code 7 is nobody's, and gets it; a reader that knows 7 as "spring" has no record with it, and reads the labels anew
with the record that has.

What this does not do
---------------------
Vendors that are on the move are in two files, so that while any vendor moves the arrays are not `settled`, and are not
to be used. What was counted among the others stays there until its vendor is written again.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mktsim.errors import InvalidArgumentError
from mktsim.sql.catalog import affinity
from mktsim.sql.schema import Schema
from mktsim.sqlite import Connection, Error, quote, rows
from mktsim.storage.folder import open_file
from mktsim.storage.guards import named_errors
from mktsim.storage.moves import ABSENT

#: Codes of records: over all rows, over the rows whose group has no code of its own, and over those where it is NULL.
WHOLE, OTHER, NULL = 0, 1, 2
_FIRST_LABEL: Final = 3
_MOST_LABELS: Final = 1_000
_MOST_CODES: Final = 1 << 16
_MOST_GROUPS: Final = 64
_LONGEST_LABEL: Final = 200
_EXACT: Final = 2**53
_INF: Final = float("inf")
_NAN: Final = float("nan")

_NEXT: Final = "(SELECT COALESCE(MAX(seq), 0) + 1 FROM summaries)"
#: Part of a shard file's layout. A deleted vendor's row stays, without id and summary, as the trace of a change.
SUMMARY_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS summaries(
        number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, id TEXT UNIQUE, form INTEGER, summary BLOB) STRICT""",
    "CREATE INDEX IF NOT EXISTS summaries_by_seq ON summaries(seq)",
    "CREATE TABLE IF NOT EXISTS labels(code INTEGER PRIMARY KEY, label TEXT NOT NULL UNIQUE) STRICT",
    "INSERT OR IGNORE INTO summaries(seq, id) SELECT 1, id FROM vendors",
    f"""CREATE TRIGGER IF NOT EXISTS summary_of_new AFTER INSERT ON vendors BEGIN
        INSERT INTO summaries(seq, id) SELECT {_NEXT}, NEW.id
        WHERE NOT EXISTS (SELECT 1 FROM summaries WHERE id = NEW.id); END""",
    """CREATE TRIGGER IF NOT EXISTS summary_of_written AFTER UPDATE OF image ON vendors BEGIN
        UPDATE summaries SET form = NULL, summary = NULL WHERE id = NEW.id; END""",
    f"""CREATE TRIGGER IF NOT EXISTS summary_of_changed AFTER UPDATE ON vendors BEGIN
        UPDATE summaries SET seq = {_NEXT} WHERE id = NEW.id; END""",
    f"""CREATE TRIGGER IF NOT EXISTS summary_of_deleted AFTER DELETE ON vendors BEGIN
        UPDATE summaries SET seq = {_NEXT}, id = NULL, form = NULL, summary = NULL WHERE id = OLD.id; END""",
)
#: Stores a new vendor's summary; to be run before the vendor's row is inserted.
INSERT: Final = f"INSERT INTO summaries(seq, id, form, summary) VALUES({_NEXT}, ?, ?, ?)"
#: Stores the summary of a vendor that is there.
UPDATE: Final = f"UPDATE summaries SET seq = {_NEXT}, form = ?, summary = ? WHERE id = ?"
_COUNT: Final = f"SELECT (SELECT COUNT(*) FROM vendors) - (SELECT COUNT(*) FROM ({ABSENT}))"
_READ: Final = "SELECT id, number, seq, form, summary FROM summaries"
#: Part of a shard file's layout: the last change when labels were swept. Programs that number labels by their count,
#: which gaps would lead astray, do not know of it, and refuse the layout by name.
SWEPT_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS swept(one INTEGER PRIMARY KEY CHECK(one = 1), seq INTEGER NOT NULL) STRICT"
)
#: Records of another declaration cannot be read here, and their codes not be known: they are made anew by who can.
_DISOWN: Final = f"UPDATE summaries SET seq = {_NEXT}, form = NULL, summary = NULL WHERE form IS NOT NULL AND form <> ?"
#: The lowest code that no label has.
_FREE: Final = (
    "SELECT MIN(code) FROM (SELECT ? AS code UNION ALL SELECT code + 1 FROM labels) "
    "WHERE code NOT IN (SELECT code FROM labels)"
)
_CHANGED: Final = (
    "SELECT (SELECT COALESCE(MAX(seq), 0) FROM summaries) - COALESCE((SELECT seq FROM swept), 0), "
    "(SELECT COALESCE(MAX(number), 0) FROM summaries)"
)
#: Labels that find no room have them swept after so many changes, or a share of the shard's vendors if that is more.
_SWEEP_CHANGES: Final = 256
_SWEEP_SHARE: Final = 8
_SWEEP_ROWS: Final = 4_096

Group = tuple[Any, ...]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Summariser:
    """Makes the summaries of one schema's vendors.

    Parameters
    ----------
    schema : Schema

    Attributes
    ----------
    statements : list of (str, values)
        What is asked of a vendor's database.
    form : int
        Tells summaries of this declaration from those of another.
    integral : tuple of tuple of bool
        For each table, which columns are INTEGER.

    Raises
    ------
    InvalidArgumentError
        The declaration names what is not there, or not of the type that it takes.

    Examples
    --------
    >>> from mktsim.sql.schema import Summarised
    >>> schema = Schema(("CREATE TABLE t(x REAL, g TEXT)",), summarised=(Summarised("t", ("x",), "g"),))
    >>> summariser = Summariser(schema)
    >>> database = schema.database()
    >>> _ = database.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (NULL, 'b')")
    >>> summariser.read(database)
    [[('a', 1, 1, 1.0, 1.0), ('b', 2, 1, 2.0, 2.0)]]
    >>> len(summariser.encoded(summariser.read(database), {"a": 3, "b": 4}.__getitem__)) // summariser.record.itemsize
    3
    >>> database.close()
    """

    def __init__(self, schema: Schema) -> None:
        self.tables = schema.summarised
        self.width = max((len(each.columns) for each in self.tables), default=0)
        self.form = int(sha256(repr((1, schema.digest, self.tables)).encode()).hexdigest()[:12], 16)
        self.record = np.dtype(
            [("table", "u1"), ("code", "<u2"), ("rows", "<u4")]
            + [(f"{what}{place}", kind) for place in range(self.width) for what, kind in _COLUMN]
        )
        self._pack = struct.Struct("<BHI" + "Idd" * self.width).pack
        self._padding = (0, _INF, -_INF)
        self.integral = self._checked(schema)
        self.statements = [(_statement(each.table, each.columns, each.by), ()) for each in self.tables]

    def _checked(self, schema: Schema) -> tuple[tuple[bool, ...], ...]:
        if len(self.tables) > 255 or len({each.table.lower() for each in self.tables}) != len(self.tables):
            raise InvalidArgumentError("a schema summarises a table once, and at most 255")
        database = schema.database()
        try:
            found = [
                [affinity(_declared(database, each.table, column)[0]) for column in each.columns]
                for each in self.tables
            ]
            for each, kinds in zip(self.tables, found, strict=True):
                if not database.table_exists("main", each.table):
                    raise InvalidArgumentError(f"no table {each.table!r:.80} can be summarised: there is none")
                for column, kind in zip(each.columns, kinds, strict=True):
                    if kind not in ("REAL", "INTEGER"):
                        raise InvalidArgumentError(f"{each.table}.{column} is {kind}: REAL and INTEGER have bounds")
                if each.by is not None:
                    declared, collation = _declared(database, each.table, each.by)
                    if affinity(declared) != "TEXT" or collation.upper() != "BINARY":
                        raise InvalidArgumentError(f"{each.table}.{each.by} must be TEXT to group a summary by it")
        finally:
            database.close()
        return tuple(tuple(kind == "INTEGER" for kind in kinds) for kinds in found)

    def read(self, connection: Connection) -> list[list[Group]] | None:
        """Return what the summary of the vendor whose database this is is made of; None where that is not text."""
        try:
            return [connection.execute(sql).fetchall() for sql, _ in self.statements]
        except UnicodeDecodeError:
            return None

    def encoded(self, answers: Sequence[list[Group]] | None, label: Callable[[str], int]) -> bytes | None:
        """Return the summary that the rows of :attr:`statements` make; `label` gives a group's code."""
        if answers is None:
            return None
        pieces = []
        for table, groups in enumerate(answers):
            records: list[tuple[Any, ...]] = []
            others: list[tuple[Any, ...]] = []
            padding = self._padding * (self.width - len(self.tables[table].columns))
            for row in groups:
                code = OTHER
                if row[0] is None:
                    code = NULL
                elif type(row[0]) is str and len(row[0]) <= _LONGEST_LABEL and len(records) < _MOST_GROUPS:
                    code = label(row[0])
                record = [code, row[1]]
                for present, low, high in zip(row[2::3], row[3::3], row[4::3], strict=True):
                    record += _bounds(present, low, high)
                (others if code == OTHER else records).append((*record, *padding))
            if others:
                records.append((OTHER, *_merged(others)))
            whole = records[0][1:] if len(records) == 1 else _merged(records)
            pieces.append(self._pack(table, WHOLE, *(whole or (0, *self._padding * self.width))))
            if self.tables[table].by is not None:
                pieces += [self._pack(table, *record) for record in records]
        return b"".join(pieces)


_COLUMN: Final = (("present", "<u4"), ("low", "<f8"), ("high", "<f8"))


def _statement(table: str, columns: Sequence[str], by: str | None) -> str:
    chosen = "".join(f", COUNT({name}), MIN({name}), MAX({name})" for name in map(quote, columns))
    group = "NULL" if by is None else quote(by)
    return f"SELECT {group}, COUNT(*){chosen} FROM {quote(table)}{'' if by is None else f' GROUP BY {group}'}"


def _declared(database: Connection, table: str, column: str) -> tuple[str, str]:
    try:
        found = database.column_metadata(None, table, column)
    except Error as error:
        raise InvalidArgumentError(f"no column {table}.{column} can be summarised: {error}") from error
    return str(found[0]), str(found[1])


def _bounds(present: int, low: Any, high: Any) -> tuple[int, float, float]:
    """Return the bounds of values of which these are SQLite's first and last: numbers come before text and blobs."""
    if low is None:
        return present, _INF, -_INF
    for value in (low, high):
        if not isinstance(value, float) and not (isinstance(value, int) and -_EXACT <= value <= _EXACT):
            return present, _NAN, _NAN
    return present, float(low), float(high)


def _merged(records: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the record over the rows of several, without code."""
    if not records:
        return ()
    columns = list(zip(*records, strict=True))
    merged: list[Any] = [sum(columns[1])]
    for place in range(2, len(columns), 3):
        present, lows, highs = columns[place : place + 3]
        odd = any(low != low for low in lows)
        merged += (sum(present), _NAN if odd else min(lows), _NAN if odd else max(highs))
    return tuple(merged)


class Labels:
    """The codes of group values in one shard file, for the time of one transaction.

    Parameters
    ----------
    file : Connection
        In a transaction that writes.
    summariser : Summariser
        Of the records that the labels are for.
    """

    def __init__(self, file: Connection, summariser: Summariser) -> None:
        self._file = file
        self._summariser = summariser
        self._codes: dict[str, int] = {}
        self._is_full = False

    def __call__(self, label: str) -> int:
        """Return the code of a value, which is given one if there are any left."""
        code = self._codes.get(label)
        if code is None:
            code = self._codes[label] = self._code(label)
        return code

    def _code(self, label: str) -> int:
        execute = self._file.execute
        found = execute("SELECT code FROM labels WHERE label = ?", (label,)).fetchone()
        if found is None:
            if not self._has_room():
                return OTHER
            code = int(execute(_FREE, (_FIRST_LABEL,)).get)
            execute("INSERT INTO labels VALUES(?, ?)", (code, label))
            return code
        return int(found[0])

    def _has_room(self) -> bool:
        """Whether there may be another label: in one transaction unused ones are looked for once."""
        if not self._is_full and self._count() >= _MOST_LABELS:
            changed, vendors = self._changed()
            if changed >= max(_SWEEP_CHANGES, vendors // _SWEEP_SHARE):
                self.sweep()
            self._is_full = self._count() >= _MOST_LABELS
        return not self._is_full

    def _count(self) -> int:
        return int(self._file.execute("SELECT COUNT(*) FROM labels").get)

    @property
    def swept(self) -> bool:
        """Whether no vendor has changed since unused labels were deleted."""
        return not self._changed()[0]

    def _changed(self) -> tuple[int, int]:
        """Return how many changes there were since the last sweep, and how many vendors there may be."""
        changed, vendors = rows(self._file, _CHANGED)[0]
        return int(changed), int(vendors)

    def sweep(self) -> None:
        """Delete the labels that no record uses."""
        execute = self._file.execute
        execute(_DISOWN, (self._summariser.form,))
        used = np.zeros(_MOST_CODES, bool)
        used[list(self._codes.values())] = True  # Their records are still to be written.
        records = execute("SELECT summary FROM summaries WHERE summary IS NOT NULL")
        while some := list(islice(records, _SWEEP_ROWS)):
            used[np.frombuffer(b"".join(row[0] for row in some), self._summariser.record)["code"]] = True
        unused = [row for row in rows(self._file, "SELECT code FROM labels") if not used[row[0]]]
        self._file.executemany("DELETE FROM labels WHERE code = ?", unused)
        execute("INSERT OR REPLACE INTO swept SELECT 1, COALESCE(MAX(seq), 0) FROM summaries")


class Records:
    """Summary records of one table as columns.

    Attributes
    ----------
    vendor : array of int32
        Whose each is, as a place in the ids of the shard.
    code : array of uint16
    rows : array of uint32
        How many rows it speaks of; 0 where it speaks of nothing.
    present : array of uint32, (columns, records)
        How many values are not NULL.
    low, high : array of float64, (columns, records)
        Bounds of those; NaN where they are not known, infinities turned inside out where there are none.
    """

    __slots__ = ("_sorted", "code", "high", "low", "present", "rows", "vendor")

    def __init__(self, vendor: Any, found: Any, width: int) -> None:
        self.vendor = vendor.astype(np.int32)
        self.code = found["code"].copy()
        self.rows = found["rows"].copy()
        self.present, self.low, self.high = (
            np.ascontiguousarray(np.stack([found[f"{what}{place}"] for place in range(width)]))
            if width
            else np.empty((0, len(found)), kind)
            for what, kind in _COLUMN
        )
        self._sorted = len(found)  # so many stand in the order of vendors

    def _arrays(self) -> list[str]:
        return ["vendor", "code", "rows", "present", "low", "high"]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(getattr(self, name).nbytes for name in self._arrays())

    def of(self, vendor: int) -> Ints:
        """Return where a vendor's records are."""
        first, last = np.searchsorted(self.vendor[: self._sorted], (vendor, vendor + 1))
        late = self._sorted + np.flatnonzero(self.vendor[self._sorted :] == vendor)
        return np.concatenate([np.arange(first, last), late])

    def put(self, vendor: int, new: Records | None) -> list[int]:
        """Write a vendor's records over those it had; return the places in `new` for which there was no room."""
        places = self.of(vendor)
        count = 0 if new is None else min(len(places), len(new.rows))
        if new is not None:
            for name in self._arrays()[1:]:
                getattr(self, name)[..., places[:count]] = getattr(new, name)[..., :count]
        rest = places[count:]
        self.rows[rest] = 0
        self.present[:, rest] = 0
        self.low[:, rest], self.high[:, rest] = _INF, -_INF
        return [] if new is None else list(range(count, len(new.rows)))

    def append(self, others: Sequence[Records]) -> None:
        """Add records at the end."""
        for name in self._arrays():
            parts = [getattr(self, name), *(getattr(other, name) for other in others)]
            setattr(self, name, np.concatenate(parts, axis=-1))

    def chosen(self, chosen: Any) -> Records:
        """Return some of the records, in their order."""
        made: Records = object.__new__(Records)
        for name in self._arrays():
            setattr(made, name, getattr(self, name)[..., chosen])
        made._sorted = 0
        return made

    def renumber(self, new: Any) -> None:
        """Give vendors other places, in the same order; records of vendors whose place is negative go."""
        kept = new[self.vendor] >= 0
        self._sorted = int(np.count_nonzero(kept[: self._sorted]))
        for name in self._arrays():
            setattr(self, name, getattr(self, name)[..., kept])
        self.vendor = new[self.vendor].astype(np.int32)


#: Changes remembered by id, so that partials made before them know what to make anew.
_REMEMBERED: Final = 200_000


class ShardSummaries:
    """The summaries of one shard file, loaded.

    Parameters
    ----------
    path : Path
        The shard file.
    summariser : Summariser

    Attributes
    ----------
    ids : list of str
        The vendors, sorted.
    known : array of bool
        Which of them have a summary.
    tables : list of (Records, Records)
        For each table the records over all rows, one a vendor in the order of ids, and those by group.
    labels : dict of str to int
        The codes of group values.
    seq : int
        The number of the last change that was seen.
    settled : bool
        Whether no vendor of the shard is on the move.
    identity : object
        Of these summaries and no others: a file that is made anew, under a name that was another's, has another.
    """

    def __init__(self, path: Path, summariser: Summariser) -> None:
        self.path = path
        self.summariser = summariser
        self.ids: list[str] = []
        self.known: Mask = np.empty(0, bool)
        self.tables: list[tuple[Records, Records]] = []
        self.labels: dict[str, int] = {}
        self.seq = -1
        self.settled = False
        self.identity = object()
        self._numbers: Ints = np.empty(0, np.int64)
        self._changes: list[tuple[int, str]] = []
        self._floor = 0  # changes up to this one are not remembered
        self._seen = self._counted = -1
        self._count = 0
        with named_errors(f"shard file {path}"):
            self._connection = open_file(path, writable=False)

    def close(self) -> None:
        """Close the file."""
        self._connection.close(True)

    @property
    def nbytes(self) -> int:
        """Bytes held, the ids included."""
        held = sum(records.nbytes for pair in self.tables for records in pair) + self._numbers.nbytes
        return held + sum(map(len, self.ids)) + 57 * len(self.ids) + self.known.nbytes

    def data_version(self) -> int:
        """Return a number that is another after each commit to the file by anybody else."""
        return int(self._connection.execute("PRAGMA data_version").get)

    def count(self) -> int:
        """Return how many vendors the shard has now, without loading anything."""
        version = self.data_version()
        if version != self._counted:
            self._count, self._counted = int(self._connection.execute(_COUNT).get), version
        return self._count

    def refresh(self) -> None:
        """See what has been committed."""
        with named_errors(f"shard file {self.path}"):
            version = self.data_version()
            if version == self._seen:
                return
            execute = self._connection.execute
            execute("BEGIN")
            try:
                self.settled = not execute("SELECT EXISTS(SELECT 1 FROM moves)").get
                last = int(execute("SELECT COALESCE(MAX(seq), 0) FROM summaries").get)
                if last != self.seq:
                    self.labels = {str(label): int(code) for code, label in execute("SELECT * FROM labels")}
                    behind = execute("SELECT COUNT(*) FROM summaries WHERE seq > ?", (self.seq,)).get
                    if self.seq < 0 or behind > 1_000 + len(self.ids) // 50:
                        self._load(execute(f"{_READ} WHERE id IS NOT NULL ORDER BY id").fetchall())
                        self._changes, self._floor = [], last
                    else:
                        self._apply(execute(f"{_READ} WHERE seq > ? ORDER BY seq", (self.seq,)).fetchall())
                    self.seq = last
            except BaseException:
                self.seq = -1  # What was half applied is loaded anew.
                raise
            finally:
                execute("ROLLBACK")
            self._seen = version

    def changed_since(self, seq: int) -> list[str] | None:
        """Return the vendors that were written, made or deleted after a change, or None where that is not known."""
        if not self._floor <= seq <= self.seq:
            return None
        first = bisect_left(self._changes, (seq + 1, ""))
        return [vendor_id for _, vendor_id in self._changes[first:]]

    def missing(self, most: int) -> list[str]:
        """Return the first vendors without a summary."""
        return [self.ids[place] for place in np.flatnonzero(~self.known)[:most]]

    # -- arrays -------------------------------------------------------------------------------------------------

    def _parsed(self, rows: Sequence[tuple[Any, ...]]) -> tuple[Mask, list[tuple[Records, Records]]]:
        """Return which rows have a summary of this form, and all records, by table; vendors are numbered as rows."""
        form, size = self.summariser.form, self.summariser.record.itemsize
        blobs = [row[4] if row[3] == form and row[4] is not None else b"" for row in rows]
        known = np.fromiter(map(bool, blobs), bool, len(rows))
        found = np.frombuffer(b"".join(blobs), self.summariser.record)
        vendor = np.repeat(np.arange(len(rows)), [len(blob) // size for blob in blobs])
        tables = []
        for table, each in enumerate(self.summariser.tables):
            mine = found["table"] == table
            whole = mine & (found["code"] == WHOLE)
            dense = np.zeros(len(rows), self.summariser.record)  # unknown vendors have an empty record
            dense[vendor[whole]] = found[whole]
            groups = mine & (found["code"] != WHOLE)
            width = len(each.columns)
            tables.append((Records(np.arange(len(rows)), dense, width), Records(vendor[groups], found[groups], width)))
        return known, tables

    def _load(self, rows: list[tuple[Any, ...]]) -> None:
        self.ids = [row[0] for row in rows]
        self._numbers = np.fromiter((row[1] for row in rows), np.int64, len(rows))
        self.known, self.tables = self._parsed(rows)

    def _apply(self, rows: list[tuple[Any, ...]]) -> None:
        """Take over changes: deletions, then new vendors, then records."""
        gone = {row[1] for row in rows if row[0] is None}
        if gone:
            places = np.flatnonzero(np.isin(self._numbers, list(gone)))
            names = dict(zip(self._numbers[places].tolist(), [self.ids[place] for place in places], strict=True))
            self._remember((row[2], names[row[1]]) for row in rows if row[1] in names)
            self._delete(places)
        there = [row for row in rows if row[0] is not None]
        new = sorted(row[0] for row in there if self._place(row[0]) is None)
        if new:
            self._insert(new)
        self._remember((row[2], row[0]) for row in there)
        self._write(there)

    def _remember(self, changes: Iterable[tuple[int, str]]) -> None:
        self._changes = sorted([*self._changes, *changes])
        if len(self._changes) > _REMEMBERED:
            half = self._changes[len(self._changes) // 2][0]
            self._changes = [change for change in self._changes if change[0] > half]
            self._floor = half

    def _place(self, vendor_id: str) -> int | None:
        place = bisect_left(self.ids, vendor_id)
        return place if place < len(self.ids) and self.ids[place] == vendor_id else None

    def _delete(self, places: Ints) -> None:
        kept = np.ones(len(self.ids), bool)
        kept[places] = False
        new = np.where(kept, np.cumsum(kept) - 1, -1)
        self.ids = [vendor_id for vendor_id, keep in zip(self.ids, kept.tolist(), strict=True) if keep]
        self.known, self._numbers = self.known[kept], self._numbers[kept]
        for whole, groups in self.tables:
            whole.renumber(new)
            groups.renumber(new)

    def _insert(self, new: list[str]) -> None:
        """Make room for vendors, which are not known yet."""
        before = np.array([bisect_left(self.ids, vendor_id) for vendor_id in new])
        moved = np.arange(len(self.ids)) + np.searchsorted(before, np.arange(len(self.ids)), side="right")
        _, empty = self._parsed([(vendor_id, 0, 0, None, b"") for vendor_id in new])
        places = before + np.arange(len(new))
        self.ids = sorted([*self.ids, *new])
        self.known, self._numbers = np.insert(self.known, before, False), np.insert(self._numbers, before, -1)
        for (whole, groups), (blank, _) in zip(self.tables, empty, strict=True):
            whole.renumber(moved)
            groups.renumber(moved)
            blank.vendor = places.astype(np.int32)
            whole.append([blank])
            order = np.argsort(whole.vendor, kind="stable")
            for name in whole._arrays():
                setattr(whole, name, getattr(whole, name)[..., order])
            whole._sorted = len(order)

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        known, tables = self._parsed(rows)
        places = np.array([bisect_left(self.ids, row[0]) for row in rows], np.int64)
        self.known[places] = known
        self._numbers[places] = [row[1] for row in rows]
        for (whole, groups), (new_whole, new_groups) in zip(self.tables, tables, strict=True):
            for name in whole._arrays()[1:]:
                getattr(whole, name)[..., places] = getattr(new_whole, name)
            late = []
            for row, place in enumerate(places.tolist()):
                mine = new_groups.chosen(new_groups.vendor == row)
                mine.vendor[:] = place
                rest = groups.put(place, mine)
                if rest:
                    late.append(mine.chosen(rest))
            if late:
                groups.append(late)
