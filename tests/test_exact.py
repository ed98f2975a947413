"""Sums are correctly rounded and do not depend on the split."""

from __future__ import annotations

import math
import random
import sqlite3
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mktsim.sql import register
from mktsim.sql.exact import FUNCTIONS, ExactSum, merge_partials
from mktsim.sqlite import SQLError, connect

numbers = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False, width=64),
    st.sampled_from([0.1, 1e308, -1e308, 5e-324, -0.0, 1e16, 1.0]),
)


def rounded(values):
    """Return the correctly rounded sum by rational arithmetic."""
    exact = sum(map(Fraction, values), Fraction(0))
    try:
        return exact.numerator / exact.denominator + 0.0
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@given(st.lists(st.lists(numbers, max_size=8), max_size=8), st.randoms(use_true_random=False))
@example([[1e308, 1e308], [-1e308]], random.Random(0))
def test_any_split_and_any_tree_give_the_correctly_rounded_sum(groups, chance):
    """Packing, merging in any order and shape, and rounding once equals rounding the exact sum."""
    partials = []
    for group in groups:
        total = ExactSum()
        total.add(group)
        partials.append(total.pack())
    while len(partials) > 1:
        chance.shuffle(partials)
        merged = ExactSum()
        merged.merge(partials[:3])
        partials = [merged.pack(), *partials[3:]]
    final = ExactSum()
    final.merge(partials)
    values = [value for group in groups for value in group if value is not None]
    if not values:
        assert final.value() is None
    elif all(isinstance(value, int) for value in values):
        if -(2**63) <= sum(values) < 2**63:
            assert final.value() == sum(values)
            assert type(final.value()) is int
        else:
            with pytest.raises(SQLError, match="integer overflow"):
                final.value()
    else:
        assert final.value().hex() == rounded(values).hex()


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_infinities_add_up_as_in_sqlite(values):
    """inf wins, inf and -inf make NULL."""
    connection = connect()
    register(connection)
    connection.execute("CREATE TABLE t(x REAL)")
    connection.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
    theirs, ours = connection.execute("SELECT SUM(x), mktsim_exact_sum(x) FROM t").fetchone()
    if any(map(math.isinf, values)):
        assert ours == theirs
    else:
        assert ours.hex() == rounded(values).hex()
    connection.close()


@pytest.mark.parametrize(
    "value",
    [
        "12",
        " 12 ",
        "12abc",
        "abc",
        "",
        "1.5",
        "1e3",
        "9223372036854775808",
        b"12",
        b"1.5x",
        b"",
        "0x10",
        "+7",
        "-7",
        ".5",
    ],
)
def test_text_and_blobs_count_as_sqlite_counts_them(value):
    """SUM reads '12' as an integer, '12abc' as 12.0 and a blob as the text it spells."""
    connection = connect()
    register(connection)
    sql = "SELECT SUM(?1), mktsim_exact_sum(?1), TOTAL(?1), mktsim_exact_total(?1), AVG(?1), mktsim_exact_avg(?1)"
    row = connection.execute(sql, (value,)).fetchone()
    assert [(type(v), v) for v in row[::2]] == [(type(v), v) for v in row[1::2]]
    connection.close()


def test_the_standard_librarys_connection_learns_the_aggregates_too():
    """A vendor behind `sqlite3` takes part in two-phase sums."""
    connection = sqlite3.connect(":memory:")
    register(connection)
    rows = connection.execute("SELECT mktsim_sum(x) FROM (SELECT 0.1 AS x UNION ALL SELECT 0.2 UNION ALL SELECT 0.3)")
    total = ExactSum()
    total.merge([rows.fetchone()[0]])
    assert total.value() == rounded([0.1, 0.2, 0.3])
    connection.close()


reals = st.one_of(
    st.floats(allow_nan=False, width=64), st.sampled_from([0.1, 0.2, 1e308, -1e308, 5e-324, -0.0, 1e16, math.inf])
)


@given(st.lists(st.lists(st.one_of(reals, numbers), max_size=6), max_size=6))
@example([[0.1, 0.2, 0.3], [1e308, 1e308], [], [0.1]])
@example([[0.1, 0.2], [2**70 / 3, 1]])
def test_the_short_way_for_reals_packs_what_the_long_way_does(groups):
    """Sums of REAL values, which most are, take a way of their own: its partials are the others', bit for bit."""
    _, partial = FUNCTIONS["mktsim_sum"]
    packed = []
    for group in groups:
        slow = ExactSum()
        slow.add(group)
        packed.append(slow.pack())
        assert repr(partial(list(group))) == repr(packed[-1])
    whole = ExactSum()
    whole.merge(packed)
    assert repr(merge_partials(packed)) == repr(whole.pack())


def test_dropping_the_residual_is_seen():
    """What would be lost without the expansion's second term is not lost: ten tenths split in two make one."""
    parts = []
    for _ in range(2):
        part = ExactSum()
        part.add([0.1] * 5)
        parts.append(part)
    merged = ExactSum()
    merged.merge(part.pack() for part in parts)
    assert merged.value() == 1.0
    third = ExactSum()
    third.add([0.1] * 3)
    assert third.floats[0] + third.floats[1] == third.floats[0]
    assert Fraction(third.floats[0]) + Fraction(third.floats[1]) == 3 * Fraction(0.1)
