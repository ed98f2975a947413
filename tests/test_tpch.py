"""TPC-H: the 22 queries over a fleet of suppliers equal one SQLite's answers, bit for bit."""

from __future__ import annotations

import pytest

from benchmarks.tpch import QUERIES, generator, run, warehouse
from mktsim.testing import typed

pytestmark = pytest.mark.skipif(generator() is None, reason="tpchgen-cli, a development requirement, is not installed")


@pytest.fixture(scope="module")
def suppliers():
    """Scale 0.01 over 100 vendors: a vendor is a supplier."""
    with warehouse(scale=0.01, vendors=100) as both:
        yield both


#: No part of scale 0.01 has the brand and container of query 17's validation parameters: NULL is its right answer.
_NULL_AT_THIS_SCALE = {17}


@pytest.mark.parametrize("number", QUERIES)
def test_every_query_over_a_hundred_suppliers_equals_one_sqlite(suppliers, number):
    """Values to the last bit, types, order and column names; and the answer says something."""
    equal, result = suppliers.compare(suppliers.text(number))
    assert equal, suppliers.coordinator.explain(suppliers.text(number))
    assert result.rows
    assert all(value is not None for row in result.rows for value in row) or number in _NULL_AT_THIS_SCALE


def test_query_17_for_a_brand_that_the_scale_has_equals_one_sqlite(suppliers):
    """The specification lets brand and container vary: these have eight parts, and the answer is no NULL."""
    sql = suppliers.text(17).replace("Brand#23", "Brand#32").replace("MED BOX", "LG PKG")
    equal, result = suppliers.compare(sql)
    assert equal
    assert result.rows[0][0] > 0


def test_every_row_lies_at_exactly_one_vendor(suppliers):
    """The fleet's rows, vendor by vendor, are the one SQLite's rows in its order."""
    for table, count in suppliers.rows.items():
        spread = [row for database in suppliers.fleet for row in database.execute(f"SELECT * FROM {table}").fetchall()]
        assert typed(spread) == typed(suppliers.one.execute(f"SELECT * FROM {table} NOT INDEXED").fetchall())
        assert len(spread) == count


def test_a_suppliers_lines_and_offers_lie_at_its_own_vendor(suppliers):
    """One supplier a vendor, and only its rows there: nothing else would make the fleet a marketplace."""
    for database in suppliers.fleet:
        (supplier,) = database.execute("SELECT s_suppkey FROM supplier").fetchall()
        for table, column in (("partsupp", "ps_suppkey"), ("lineitem", "l_suppkey")):
            assert database.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall() == [supplier]


@pytest.mark.parametrize("vendors", [1, 7])
def test_other_splits_of_a_smaller_scale_agree_too(vendors):
    """Scale 0.001 has ten suppliers: over one vendor, and over seven of which some have two."""
    with warehouse(scale=0.001, vendors=vendors) as both:
        assert [number for number in QUERIES if not both.compare(both.text(number))[0]] == []


def test_the_comparison_sees_a_changed_cent():
    """One price changed at one vendor by one cent shows in the answers that read it."""
    with warehouse(scale=0.001, vendors=10) as both:
        both.fleet[3].execute("UPDATE lineitem SET l_extendedprice = l_extendedprice + 0.01 WHERE rowid = 1")
        assert not both.compare(both.text(1))[0]


def test_the_benchmark_reports_all_queries():
    """The table of times has a row for each query, each equal and timed."""
    found = run(quick=True)
    assert [row["query"] for row in found] == list(range(1, 23))
    assert all(row["equal"] and row["ratio"] > 0 for row in found)
