"""Sums that do not depend on how the rows were split.

Rules
-----
The sum of a column is the correctly rounded sum of its values, whichever vendor, shard or tree they came through. An
inner node never rounds; the gather rounds once.

Theory of operation
-------------------
A partial sum is a value SQLite can carry: NULL (no rows), an INTEGER (all integers, in range), a REAL (the sum is
exactly this number) or a BLOB that packs everything else: whether a REAL was seen, infinities, the integer sum in 128
bits, and a list of floats whose exact sum is the sum of the REAL rows (a non-overlapping expansion, Shewchuk 1997:
the rounded sum, then the rounded rest, until nothing is left). Partials merge by adding integers and re-expanding the
concatenated floats, which loses no bit, so merging is associative and commutative.

Example: 0.1 + 0.2 + 0.3 at one vendor is the partial (0.6, 0.0) after rounding 0.6000000000000000055...; the rest,
5.5e-17, is the expansion's second term. Adding two such partials gives the same bits as adding all six numbers.

The step of the aggregate is `list.append` itself, so that SQLite calls into C for each row; guarded by
`benchmarks/` (about 90 ns a row above SQLite's own SUM).

What this does not do
---------------------
It does not repeat SQLite's intermediate overflow: an integer sum fails only where the total leaves 64 bits, and a REAL
sum is infinite only where the total is.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mktsim.sqlite import Connection, SQLError, Value, connect, rows

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_REAL_SEEN, _PLUS_INF, _MINUS_INF = 1, 2, 4
_HEAD = struct.Struct("<Bqq")  # flags, high and low half of the 128-bit integer sum
_TWO = struct.Struct("<2d")
#: The head of a partial that is nothing but the floats after it.
_ONLY_REAL = _HEAD.pack(_REAL_SEEN, 0, 0)
#: Bytes of such a partial of two floats.
_PAIR_BYTES = _HEAD.size + _TWO.size
#: Partials that are read by one call.
_FEW = 64
_MAX = math.ldexp(1 - 2**-53, 1024)


class ExactSum:
    """An exact sum of integers and floats.

    Examples
    --------
    >>> total = ExactSum()
    >>> total.add([0.1] * 10)
    >>> total.value()
    1.0
    >>> total.add([2**62, 2**62])
    >>> total.pack()[:1]
    b'\\x01'
    """

    __slots__ = ("count", "flags", "floats", "integer")

    def __init__(self) -> None:
        self.count = 0
        self.flags = 0
        self.integer = 0
        self.floats: list[float] = []

    def add(self, values: Iterable[Value]) -> None:
        """Add raw column values with SQLite's reading of each: NULL is skipped, text and blobs read as numbers."""
        for value in values:
            if value is None:
                continue
            self.count += 1
            number = value if isinstance(value, int | float) else _as_number(value)
            if isinstance(number, int):
                self.integer += number
            else:
                self._add_float(number)
                self.flags |= _REAL_SEEN
        self.floats = _expand(self.floats)

    def merge(self, partials: Iterable[Value]) -> None:
        """Add packed partials."""
        for partial in partials:
            if partial is None:
                continue
            self.count += 1
            if isinstance(partial, int):
                self.integer += partial
            elif isinstance(partial, float):
                self.flags |= _REAL_SEEN
                self._add_float(partial)
            elif isinstance(partial, bytes):
                flags, high, low = _HEAD.unpack_from(partial)
                self.flags |= flags
                self.integer += (high << 63) + low
                self.floats.extend(value for (value,) in struct.iter_unpack("<d", partial[_HEAD.size :]))
            else:
                raise TypeError(f"not a partial sum: {partial!r}")
        self.floats = _expand(self.floats)

    def _add_float(self, value: float) -> None:
        if math.isinf(value):
            self.flags |= _PLUS_INF if value > 0 else _MINUS_INF
        else:
            self.floats.append(value)

    def pack(self) -> Value:
        """Return the partial as one SQLite value."""
        if not self.count:
            return None
        if not self.flags:
            if _INT_MIN <= self.integer <= _INT_MAX:
                return self.integer
        elif self.flags == _REAL_SEEN and not self.integer and len(self.floats) <= 1:
            return self.floats[0] if self.floats else 0.0
        head = _HEAD.pack(self.flags, self.integer >> 63, self.integer & _INT_MAX)
        return head + struct.pack(f"<{len(self.floats)}d", *self.floats)

    def value(self) -> int | float | None:
        """Return what SUM returns: rounded once. Raises SQLite's own error where an integer total overflows."""
        if not self.count:
            return None
        if self.flags:
            return self.total()
        if not _INT_MIN <= self.integer <= _INT_MAX:
            raise SQLError("integer overflow")
        return self.integer

    def total(self) -> float | None:
        """Return the sum as a float; None for inf - inf, as SQLite has it."""
        if self.flags & (_PLUS_INF | _MINUS_INF):
            if self.flags & _PLUS_INF and self.flags & _MINUS_INF:
                return None
            return math.inf if self.flags & _PLUS_INF else -math.inf
        if not self.floats:
            return float(self.integer)
        if not self.integer and len(self.floats) == 1:
            return self.floats[0]
        return _round(sum(map(Fraction, self.floats), Fraction(self.integer)))


def _round(exact: Fraction) -> float:
    try:
        return exact.numerator / exact.denominator + 0.0  # Python divides integers with one correct rounding
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _expand(values: list[float]) -> list[float]:
    """Return the shortest list of floats, largest first, that has exactly the same sum."""
    terms: list[float] = []
    if not values:
        return terms
    rest = list(values)
    try:
        while high := math.fsum(rest):
            terms.append(high)
            rest.append(-high)
    except OverflowError:
        terms, exact = [], sum(map(Fraction, values), Fraction(0))
        while exact:
            high = max(-_MAX, min(_MAX, _round(exact)))
            terms.append(high)
            exact -= Fraction(high)
    return terms


_reader: list[Connection] = []


def _as_number(value: str | bytes) -> int | float:
    """Read text or a blob as SUM reads it, by asking SQLite's own SUM."""
    if not _reader:
        _reader.append(connect())
    number: int | float = rows(_reader[0], "SELECT SUM(?)", (value,))[0][0]
    return number


def partial_sum(values: list[Value]) -> Value:
    """Return the packed sum of raw values, of which the list is used up.

    Examples
    --------
    >>> partial_sum([1, None, 2]), partial_sum([0.5, None]), partial_sum([None])
    (3, 0.5, None)
    """
    kinds = set(map(type, values))
    if type(None) in kinds:
        values = [value for value in values if value is not None]
        kinds.discard(type(None))
    if kinds == {int}:
        whole = sum(values)  # type: ignore[arg-type]
        if _INT_MIN <= whole <= _INT_MAX:
            return whole
    if kinds == {float}:  # The hot path: a REAL column without NULL, infinity or overflow.
        count = len(values)
        try:
            high = math.fsum(values)  # type: ignore[arg-type]
            if math.isfinite(high):
                values.append(-high)
                rest = math.fsum(values)  # type: ignore[arg-type]
                if not rest:
                    return high + 0.0
                values.append(-rest)
                if not math.fsum(values):  # type: ignore[arg-type]
                    return _ONLY_REAL + _TWO.pack(high, rest)
        except (OverflowError, ValueError):
            pass
        del values[count:]
    total = ExactSum()
    total.add(values)
    return total.pack()


@lru_cache(maxsize=_FEW)
def _pairs(count: int) -> struct.Struct:
    """Return what reads so many partials of two floats, one after another."""
    return struct.Struct("<" + f"{_HEAD.size}sdd" * count)


def merge_partials(partials: Iterable[Value]) -> Value:
    """Return the packed sum of packed sums."""
    listed = list(partials)
    kinds = set(map(type, listed))
    if kinds == {bytes} and len(listed) <= _FEW and set(map(len, listed)) == {_PAIR_BYTES}:  # type: ignore[arg-type]
        # The hot path of a few partials: nothing but sums of two floats each.
        terms = _pairs(len(listed)).unpack(b"".join(listed))  # type: ignore[arg-type]
        if set(terms[::3]) == {_ONLY_REAL}:
            return partial_sum([*terms[1::3], *terms[2::3]])
    if kinds <= {float, bytes}:  # A REAL stands for itself, among partials as among values.
        floats = [partial for partial in listed if type(partial) is float]
        packed = [partial for partial in listed if type(partial) is bytes]
        heads = b"".join([partial[: _HEAD.size] for partial in packed])
        if heads == _ONLY_REAL * len(packed):
            rest = b"".join([partial[_HEAD.size :] for partial in packed])
            floats += struct.unpack(f"<{len(rest) // 8}d", rest)
            if floats:
                return partial_sum(floats)  # type: ignore[arg-type]
    return _merged(listed).pack()


def _merged(partials: Iterable[Value]) -> ExactSum:
    total = ExactSum()
    total.merge(partials)
    return total


def _raw(values: Iterable[Value]) -> ExactSum:
    total = ExactSum()
    total.add(values)
    return total


def _mean(total: ExactSum, count: int) -> float | None:
    whole = total.total() if count else None
    return None if whole is None else whole / count


def _mean_of_partials(rows: list[tuple[Value, int]]) -> Value:
    return _mean(_merged(partial for partial, _ in rows), sum(count for _, count in rows))


def _mean_of_values(values: list[Value]) -> Value:
    total = _raw(values)
    return _mean(total, total.count)


#: name -> (number of arguments, what it makes of the collected arguments)
FUNCTIONS: dict[str, tuple[int, Callable[[list[Any]], Value]]] = {
    "mktsim_sum": (1, partial_sum),
    "mktsim_sum_merge": (1, merge_partials),
    "mktsim_sum_value": (1, lambda partials: _merged(partials).value()),
    "mktsim_total_value": (1, lambda partials: _merged(partials).total()),
    "mktsim_avg_value": (2, _mean_of_partials),
    "mktsim_exact_sum": (1, lambda values: _raw(values).value()),
    "mktsim_exact_total": (1, lambda values: _raw(values).total()),
    "mktsim_exact_avg": (1, _mean_of_values),
}


def fingerprint(rows: Iterable[tuple[Value, ...]]) -> int:
    """Return a number that tells sets of rows apart, whatever their order: the sum of 64-bit digests.

    Examples
    --------
    >>> fingerprint([(1, "a"), (2, None)]) == fingerprint([(2, None), (1, "a")]) != fingerprint([(1.0, "a")])
    True
    """
    digests = (hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=8).digest() for row in rows)
    return sum(int.from_bytes(digest, "little") for digest in digests) % 2**63


def _append_pair(state: list[Any], *arguments: Value) -> None:
    state.append(arguments)


def register(connection: Any) -> None:
    """Teach a connection the aggregates that scatter, combine and gather statements call.

    Parameters
    ----------
    connection : Connection or sqlite3.Connection
        The driver's connection, or one of the standard library's.

    Examples
    --------
    Three vendors' partial sums travel without rounding, so that nothing is lost between the large ones.

    >>> import sqlite3
    >>> connection = sqlite3.connect(":memory:")
    >>> register(connection)
    >>> _ = connection.execute("CREATE TABLE orders(vendor TEXT, price REAL)")
    >>> _ = connection.execute("INSERT INTO orders VALUES ('a', 1e100), ('b', 1.0), ('c', -1e100)")
    >>> partials = "SELECT vendor, MKTSIM_SUM(price) AS partial FROM orders GROUP BY vendor"
    >>> connection.execute(f"SELECT MKTSIM_SUM_VALUE(partial) FROM ({partials})").fetchall()
    [(1.0,)]
    >>> connection.close()
    """
    for name, (count, final) in FUNCTIONS.items():
        if isinstance(connection, Connection):
            step = list.append if count == 1 else _append_pair
            connection.create_aggregate_function(name, _factory(step, final), count)
        else:
            connection.create_aggregate(name, count, _aggregate_class(count, final))
    if isinstance(connection, Connection):
        connection.create_aggregate_function("mktsim_fingerprint", _factory(_append_pair, fingerprint), -1)
    else:
        connection.create_aggregate("mktsim_fingerprint", -1, _aggregate_class(-1, fingerprint))


def _factory(step: Any, final: Any) -> Any:
    return lambda: ([], step, final)


def _aggregate_class(count: int, final: Callable[[list[Any]], Value]) -> type:
    class Aggregate:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def step(self, *arguments: Value) -> None:
            self.rows.append(arguments[0] if count == 1 else arguments)

        def finalize(self) -> Value:
            return final(self.rows)

    return Aggregate
