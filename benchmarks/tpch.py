"""TPC-H's 22 queries over a fleet, beside one SQLite that holds every row: ``python -m benchmarks --only tpch``.

Rules
-----
A vendor is a supplier, or several: `lineitem`, `partsupp` and `supplier` rows lie where ``suppkey % vendors`` says;
`orders`, `customer`, `part`, `nation` and `region` are spread by a hash of their key, so that every row lies at exactly
one vendor and nearly every join crosses vendors. The one SQLite is loaded in (vendor, rowid) order and has the same
indexes, which only spare its nested loops a scan each: no answer depends on them.

The queries are the specification's, with its validation parameters, in SQLite's dialect: dates are ISO text, an
interval is an argument of ``date()``, EXTRACT is ``strftime``, the view of query 15 a common table expression. Decimals
are REAL, so that sums are float sums. An answer is compared to the last bit; SQLite's SUM being compensated but not
always correctly rounded, a difference is judged again by an oracle whose SUM and AVG are `math.fsum`.

What this does not do
---------------------
It is no TPC-H result: no refresh functions, no throughput run, scale far below 1, and one machine.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from mktsim.fanout import QueryCoordinator, QueryResult, Scanner
from mktsim.sql import Schema
from mktsim.sqlite import Connection
from mktsim.testing import run_oracle, typed

_COLUMNS = {
    "region": "r_regionkey INTEGER, r_name TEXT, r_comment TEXT",
    "nation": "n_nationkey INTEGER, n_name TEXT, n_regionkey INTEGER, n_comment TEXT",
    "supplier": "s_suppkey INTEGER, s_name TEXT, s_address TEXT, s_nationkey INTEGER, s_phone TEXT, s_acctbal REAL, "
    "s_comment TEXT",
    "customer": "c_custkey INTEGER, c_name TEXT, c_address TEXT, c_nationkey INTEGER, c_phone TEXT, c_acctbal REAL, "
    "c_mktsegment TEXT, c_comment TEXT",
    "part": "p_partkey INTEGER, p_name TEXT, p_mfgr TEXT, p_brand TEXT, p_type TEXT, p_size INTEGER, "
    "p_container TEXT, p_retailprice REAL, p_comment TEXT",
    "partsupp": "ps_partkey INTEGER, ps_suppkey INTEGER, ps_availqty INTEGER, ps_supplycost REAL, ps_comment TEXT",
    "orders": "o_orderkey INTEGER, o_custkey INTEGER, o_orderstatus TEXT, o_totalprice REAL, o_orderdate TEXT, "
    "o_orderpriority TEXT, o_clerk TEXT, o_shippriority INTEGER, o_comment TEXT",
    "lineitem": "l_orderkey INTEGER, l_partkey INTEGER, l_suppkey INTEGER, l_linenumber INTEGER, l_quantity REAL, "
    "l_extendedprice REAL, l_discount REAL, l_tax REAL, l_returnflag TEXT, l_linestatus TEXT, l_shipdate TEXT, "
    "l_commitdate TEXT, l_receiptdate TEXT, l_shipinstruct TEXT, l_shipmode TEXT, l_comment TEXT",
}
#: Which column holds the supplier, where the vendor is one.
_SUPPLIER = {"supplier": 0, "partsupp": 1, "lineitem": 2}
_INDEXES = {
    "supplier": "s_suppkey", "customer": "c_custkey", "part": "p_partkey", "partsupp": "ps_partkey, ps_suppkey",
    "orders": "o_orderkey", "lineitem": "l_orderkey",
}  # fmt: skip
SCHEMA = Schema(
    (
        *(f"CREATE TABLE {table}({columns})" for table, columns in _COLUMNS.items()),
        *(f"CREATE INDEX {table}_key ON {table}({columns})" for table, columns in _INDEXES.items()),
        "CREATE INDEX orders_customer ON orders(o_custkey)",
        "CREATE INDEX lineitem_part ON lineitem(l_partkey, l_suppkey)",
    )
)

QUERIES: dict[int, str] = {
    1: """
        SELECT l_returnflag, l_linestatus, SUM(l_quantity) AS sum_qty, SUM(l_extendedprice) AS sum_base_price,
            SUM(l_extendedprice * (1 - l_discount)) AS sum_disc_price,
            SUM(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS sum_charge,
            AVG(l_quantity) AS avg_qty, AVG(l_extendedprice) AS avg_price, AVG(l_discount) AS avg_disc,
            COUNT(*) AS count_order
        FROM lineitem WHERE l_shipdate <= date('1998-12-01', '-90 days')
        GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus""",
    2: """
        SELECT s_acctbal, s_name, n_name, p_partkey, p_mfgr, s_address, s_phone, s_comment
        FROM part, supplier, partsupp, nation, region
        WHERE p_partkey = ps_partkey AND s_suppkey = ps_suppkey AND p_size = 15 AND p_type LIKE '%BRASS'
            AND s_nationkey = n_nationkey AND n_regionkey = r_regionkey AND r_name = 'EUROPE'
            AND ps_supplycost = (
                SELECT MIN(ps_supplycost) FROM partsupp, supplier, nation, region
                WHERE p_partkey = ps_partkey AND s_suppkey = ps_suppkey AND s_nationkey = n_nationkey
                    AND n_regionkey = r_regionkey AND r_name = 'EUROPE')
        ORDER BY s_acctbal DESC, n_name, s_name, p_partkey LIMIT 100""",
    3: """
        SELECT l_orderkey, SUM(l_extendedprice * (1 - l_discount)) AS revenue, o_orderdate, o_shippriority
        FROM customer, orders, lineitem
        WHERE c_mktsegment = 'BUILDING' AND c_custkey = o_custkey AND l_orderkey = o_orderkey
            AND o_orderdate < '1995-03-15' AND l_shipdate > '1995-03-15'
        GROUP BY l_orderkey, o_orderdate, o_shippriority ORDER BY revenue DESC, o_orderdate LIMIT 10""",
    4: """
        SELECT o_orderpriority, COUNT(*) AS order_count FROM orders
        WHERE o_orderdate >= '1993-07-01' AND o_orderdate < date('1993-07-01', '+3 months')
            AND EXISTS (SELECT * FROM lineitem WHERE l_orderkey = o_orderkey AND l_commitdate < l_receiptdate)
        GROUP BY o_orderpriority ORDER BY o_orderpriority""",
    5: """
        SELECT n_name, SUM(l_extendedprice * (1 - l_discount)) AS revenue
        FROM customer, orders, lineitem, supplier, nation, region
        WHERE c_custkey = o_custkey AND l_orderkey = o_orderkey AND l_suppkey = s_suppkey
            AND c_nationkey = s_nationkey AND s_nationkey = n_nationkey AND n_regionkey = r_regionkey
            AND r_name = 'ASIA' AND o_orderdate >= '1994-01-01' AND o_orderdate < date('1994-01-01', '+1 year')
        GROUP BY n_name ORDER BY revenue DESC""",
    6: """
        SELECT SUM(l_extendedprice * l_discount) AS revenue FROM lineitem
        WHERE l_shipdate >= '1994-01-01' AND l_shipdate < date('1994-01-01', '+1 year')
            AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24""",
    7: """
        SELECT supp_nation, cust_nation, l_year, SUM(volume) AS revenue
        FROM (
            SELECT n1.n_name AS supp_nation, n2.n_name AS cust_nation,
                CAST(strftime('%Y', l_shipdate) AS INTEGER) AS l_year, l_extendedprice * (1 - l_discount) AS volume
            FROM supplier, lineitem, orders, customer, nation n1, nation n2
            WHERE s_suppkey = l_suppkey AND o_orderkey = l_orderkey AND c_custkey = o_custkey
                AND s_nationkey = n1.n_nationkey AND c_nationkey = n2.n_nationkey
                AND ((n1.n_name = 'FRANCE' AND n2.n_name = 'GERMANY')
                    OR (n1.n_name = 'GERMANY' AND n2.n_name = 'FRANCE'))
                AND l_shipdate BETWEEN '1995-01-01' AND '1996-12-31') AS shipping
        GROUP BY supp_nation, cust_nation, l_year ORDER BY supp_nation, cust_nation, l_year""",
    8: """
        SELECT o_year, SUM(CASE WHEN nation = 'BRAZIL' THEN volume ELSE 0 END) / SUM(volume) AS mkt_share
        FROM (
            SELECT CAST(strftime('%Y', o_orderdate) AS INTEGER) AS o_year,
                l_extendedprice * (1 - l_discount) AS volume, n2.n_name AS nation
            FROM part, supplier, lineitem, orders, customer, nation n1, nation n2, region
            WHERE p_partkey = l_partkey AND s_suppkey = l_suppkey AND l_orderkey = o_orderkey
                AND o_custkey = c_custkey AND c_nationkey = n1.n_nationkey AND n1.n_regionkey = r_regionkey
                AND r_name = 'AMERICA' AND s_nationkey = n2.n_nationkey
                AND o_orderdate BETWEEN '1995-01-01' AND '1996-12-31' AND p_type = 'ECONOMY ANODIZED STEEL'
        ) AS all_nations
        GROUP BY o_year ORDER BY o_year""",
    9: """
        SELECT nation, o_year, SUM(amount) AS sum_profit
        FROM (
            SELECT n_name AS nation, CAST(strftime('%Y', o_orderdate) AS INTEGER) AS o_year,
                l_extendedprice * (1 - l_discount) - ps_supplycost * l_quantity AS amount
            FROM part, supplier, lineitem, partsupp, orders, nation
            WHERE s_suppkey = l_suppkey AND ps_suppkey = l_suppkey AND ps_partkey = l_partkey
                AND p_partkey = l_partkey AND o_orderkey = l_orderkey AND s_nationkey = n_nationkey
                AND p_name LIKE '%green%') AS profit
        GROUP BY nation, o_year ORDER BY nation, o_year DESC""",
    10: """
        SELECT c_custkey, c_name, SUM(l_extendedprice * (1 - l_discount)) AS revenue, c_acctbal, n_name, c_address,
            c_phone, c_comment
        FROM customer, orders, lineitem, nation
        WHERE c_custkey = o_custkey AND l_orderkey = o_orderkey AND o_orderdate >= '1993-10-01'
            AND o_orderdate < date('1993-10-01', '+3 months') AND l_returnflag = 'R' AND c_nationkey = n_nationkey
        GROUP BY c_custkey, c_name, c_acctbal, c_phone, n_name, c_address, c_comment
        ORDER BY revenue DESC LIMIT 20""",
    11: """
        SELECT ps_partkey, SUM(ps_supplycost * ps_availqty) AS value
        FROM partsupp, supplier, nation
        WHERE ps_suppkey = s_suppkey AND s_nationkey = n_nationkey AND n_name = 'GERMANY'
        GROUP BY ps_partkey
        HAVING SUM(ps_supplycost * ps_availqty) > (
            SELECT SUM(ps_supplycost * ps_availqty) * {fraction} FROM partsupp, supplier, nation
            WHERE ps_suppkey = s_suppkey AND s_nationkey = n_nationkey AND n_name = 'GERMANY')
        ORDER BY value DESC""",
    12: """
        SELECT l_shipmode,
            SUM(CASE WHEN o_orderpriority = '1-URGENT' OR o_orderpriority = '2-HIGH' THEN 1 ELSE 0 END)
                AS high_line_count,
            SUM(CASE WHEN o_orderpriority <> '1-URGENT' AND o_orderpriority <> '2-HIGH' THEN 1 ELSE 0 END)
                AS low_line_count
        FROM orders, lineitem
        WHERE o_orderkey = l_orderkey AND l_shipmode IN ('MAIL', 'SHIP') AND l_commitdate < l_receiptdate
            AND l_shipdate < l_commitdate AND l_receiptdate >= '1994-01-01'
            AND l_receiptdate < date('1994-01-01', '+1 year')
        GROUP BY l_shipmode ORDER BY l_shipmode""",
    13: """
        SELECT c_count, COUNT(*) AS custdist
        FROM (
            SELECT c_custkey, COUNT(o_orderkey) AS c_count
            FROM customer LEFT OUTER JOIN orders
                ON c_custkey = o_custkey AND o_comment NOT LIKE '%special%requests%'
            GROUP BY c_custkey) AS c_orders
        GROUP BY c_count ORDER BY custdist DESC, c_count DESC""",
    14: """
        SELECT 100.00 * SUM(CASE WHEN p_type LIKE 'PROMO%' THEN l_extendedprice * (1 - l_discount) ELSE 0 END)
            / SUM(l_extendedprice * (1 - l_discount)) AS promo_revenue
        FROM lineitem, part
        WHERE l_partkey = p_partkey AND l_shipdate >= '1995-09-01' AND l_shipdate < date('1995-09-01', '+1 month')""",
    15: """
        WITH revenue(supplier_no, total_revenue) AS (
            SELECT l_suppkey, SUM(l_extendedprice * (1 - l_discount)) FROM lineitem
            WHERE l_shipdate >= '1996-01-01' AND l_shipdate < date('1996-01-01', '+3 months')
            GROUP BY l_suppkey)
        SELECT s_suppkey, s_name, s_address, s_phone, total_revenue
        FROM supplier, revenue
        WHERE s_suppkey = supplier_no AND total_revenue = (SELECT MAX(total_revenue) FROM revenue)
        ORDER BY s_suppkey""",
    16: """
        SELECT p_brand, p_type, p_size, COUNT(DISTINCT ps_suppkey) AS supplier_cnt
        FROM partsupp, part
        WHERE p_partkey = ps_partkey AND p_brand <> 'Brand#45' AND p_type NOT LIKE 'MEDIUM POLISHED%'
            AND p_size IN (49, 14, 23, 45, 19, 3, 36, 9)
            AND ps_suppkey NOT IN (SELECT s_suppkey FROM supplier WHERE s_comment LIKE '%Customer%Complaints%')
        GROUP BY p_brand, p_type, p_size ORDER BY supplier_cnt DESC, p_brand, p_type, p_size""",
    17: """
        SELECT SUM(l_extendedprice) / 7.0 AS avg_yearly
        FROM lineitem, part
        WHERE p_partkey = l_partkey AND p_brand = 'Brand#23' AND p_container = 'MED BOX'
            AND l_quantity < (SELECT 0.2 * AVG(l_quantity) FROM lineitem WHERE l_partkey = p_partkey)""",
    18: """
        SELECT c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice, SUM(l_quantity)
        FROM customer, orders, lineitem
        WHERE o_orderkey IN (SELECT l_orderkey FROM lineitem GROUP BY l_orderkey HAVING SUM(l_quantity) > 300)
            AND c_custkey = o_custkey AND o_orderkey = l_orderkey
        GROUP BY c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice
        ORDER BY o_totalprice DESC, o_orderdate LIMIT 100""",
    19: """
        SELECT SUM(l_extendedprice * (1 - l_discount)) AS revenue
        FROM lineitem, part
        WHERE (p_partkey = l_partkey AND p_brand = 'Brand#12'
                AND p_container IN ('SM CASE', 'SM BOX', 'SM PACK', 'SM PKG')
                AND l_quantity >= 1 AND l_quantity <= 1 + 10 AND p_size BETWEEN 1 AND 5
                AND l_shipmode IN ('AIR', 'AIR REG') AND l_shipinstruct = 'DELIVER IN PERSON')
            OR (p_partkey = l_partkey AND p_brand = 'Brand#23'
                AND p_container IN ('MED BAG', 'MED BOX', 'MED PKG', 'MED PACK')
                AND l_quantity >= 10 AND l_quantity <= 10 + 10 AND p_size BETWEEN 1 AND 10
                AND l_shipmode IN ('AIR', 'AIR REG') AND l_shipinstruct = 'DELIVER IN PERSON')
            OR (p_partkey = l_partkey AND p_brand = 'Brand#34'
                AND p_container IN ('LG CASE', 'LG BOX', 'LG PACK', 'LG PKG')
                AND l_quantity >= 20 AND l_quantity <= 20 + 10 AND p_size BETWEEN 1 AND 15
                AND l_shipmode IN ('AIR', 'AIR REG') AND l_shipinstruct = 'DELIVER IN PERSON')""",
    20: """
        SELECT s_name, s_address FROM supplier, nation
        WHERE s_suppkey IN (
                SELECT ps_suppkey FROM partsupp
                WHERE ps_partkey IN (SELECT p_partkey FROM part WHERE p_name LIKE 'forest%')
                    AND ps_availqty > (
                        SELECT 0.5 * SUM(l_quantity) FROM lineitem
                        WHERE l_partkey = ps_partkey AND l_suppkey = ps_suppkey AND l_shipdate >= '1994-01-01'
                            AND l_shipdate < date('1994-01-01', '+1 year')))
            AND s_nationkey = n_nationkey AND n_name = 'CANADA'
        ORDER BY s_name""",
    21: """
        SELECT s_name, COUNT(*) AS numwait
        FROM supplier, lineitem l1, orders, nation
        WHERE s_suppkey = l1.l_suppkey AND o_orderkey = l1.l_orderkey AND o_orderstatus = 'F'
            AND l1.l_receiptdate > l1.l_commitdate
            AND EXISTS (
                SELECT * FROM lineitem l2 WHERE l2.l_orderkey = l1.l_orderkey AND l2.l_suppkey <> l1.l_suppkey)
            AND NOT EXISTS (
                SELECT * FROM lineitem l3 WHERE l3.l_orderkey = l1.l_orderkey AND l3.l_suppkey <> l1.l_suppkey
                    AND l3.l_receiptdate > l3.l_commitdate)
            AND s_nationkey = n_nationkey AND n_name = 'SAUDI ARABIA'
        GROUP BY s_name ORDER BY numwait DESC, s_name LIMIT 100""",
    22: """
        SELECT cntrycode, COUNT(*) AS numcust, SUM(c_acctbal) AS totacctbal
        FROM (
            SELECT substr(c_phone, 1, 2) AS cntrycode, c_acctbal FROM customer
            WHERE substr(c_phone, 1, 2) IN ('13', '31', '23', '29', '30', '18', '17')
                AND c_acctbal > (
                    SELECT AVG(c_acctbal) FROM customer
                    WHERE c_acctbal > 0.00 AND substr(c_phone, 1, 2) IN ('13', '31', '23', '29', '30', '18', '17'))
                AND NOT EXISTS (SELECT * FROM orders WHERE o_custkey = c_custkey)) AS custsale
        GROUP BY cntrycode ORDER BY cntrycode""",
}


def generator() -> str | None:
    """Return the path of `tpchgen-cli`, beside this interpreter or on the path; None where it is not installed."""
    return shutil.which("tpchgen-cli", path=str(Path(sys.executable).parent)) or shutil.which("tpchgen-cli")


@dataclass(frozen=True, slots=True)
class Warehouse:
    """The rows, once in one SQLite and once in a fleet behind a coordinator.

    Attributes
    ----------
    one : Connection
        All rows in (vendor, rowid) order.
    fleet : list of Connection
        One database a vendor.
    coordinator : QueryCoordinator
        Over the fleet.
    rows : dict
        Table to number of rows.
    scale : float
        TPC-H's scale factor.
    """

    one: Connection
    fleet: list[Connection]
    coordinator: QueryCoordinator
    rows: dict[str, int]
    scale: float

    def text(self, number: int) -> str:
        """Return a query's text; the fraction of query 11 is the specification's 0.0001 over the scale factor."""
        return QUERIES[number].replace("{fraction}", repr(0.0001 / self.scale)).strip()

    def expected(self, sql: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Return one SQLite's column names and rows."""
        return run_oracle(self.one, sql)

    def answer(self, sql: str) -> QueryResult:
        """Return the coordinator's result."""
        return asyncio.run(self.coordinator.query(sql))

    def compare(self, sql: str) -> tuple[bool, QueryResult]:
        """Return whether the coordinator's answer is one SQLite's to the last bit, and that answer.

        A difference is judged again by sums that are correctly rounded; see the module's rules.
        """
        result = self.answer(sql)

        def same() -> bool:
            names, rows = self.expected(sql)
            return tuple(result.columns) == names and typed(result.rows) == typed(rows)

        if same():
            return True, result
        with _rounded_sums(self.one):
            return same(), result


class _RoundedSum:
    """SUM and AVG as the correctly rounded sum; TPC-H has no infinities and no integer sum beyond 2**63."""

    def __init__(self, average: bool) -> None:
        self._average = average
        self._values: list[int | float] = []

    def step(self, *arguments: Any) -> None:
        (value,) = arguments
        if value is not None:
            self._values.append(value)

    def final(self) -> int | float | None:
        values = self._values
        if not values:
            return None
        if self._average:
            return math.fsum(values) / len(values)
        return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)


@contextmanager
def _rounded_sums(connection: Connection) -> Iterator[None]:
    for name in ("sum", "avg"):
        connection.create_aggregate_function(name, partial(_RoundedSum, name == "avg"), 1)
    try:
        yield
    finally:
        for name in ("sum", "avg"):
            connection.create_aggregate_function(name, None, 1)


@contextmanager
def warehouse(*, scale: float = 0.01, vendors: int = 10) -> Iterator[Warehouse]:
    """Generate the data, load both sides, and close them at the end.

    Parameters
    ----------
    scale : float
        TPC-H's scale factor: 1 is 6 million lines; 0.01 has 100 suppliers, 0.001 has 10.
    vendors : int
        How many databases; with as many as there are suppliers, every vendor is one supplier.

    Raises
    ------
    FileNotFoundError
        `tpchgen-cli` is not installed.
    """
    program = generator()
    if program is None:
        raise FileNotFoundError("tpchgen-cli is not installed: it is among the development requirements")
    one = SCHEMA.database()
    fleet = [SCHEMA.database() for _ in range(vendors)]
    counts: dict[str, int] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([program, "tbl", "-s", str(scale), "-o", folder, "-q"], check=True)
            for table in _COLUMNS:
                parts = _split(table, (Path(folder) / f"{table}.tbl").read_text(encoding="utf-8"), vendors)
                counts[table] = sum(map(len, parts))
                insert = f"INSERT INTO {table} VALUES ({', '.join('?' * (_COLUMNS[table].count(', ') + 1))})"
                for database, part in zip(fleet, parts, strict=True):
                    for target in (one, database):
                        with target:
                            target.executemany(insert, part)
        scanners = [Scanner.from_connection(f"vendor-{n:04d}", database) for n, database in enumerate(fleet)]
        coordinator = QueryCoordinator(scanners, schema=SCHEMA)
        try:
            yield Warehouse(one, fleet, coordinator, counts, scale)
        finally:
            coordinator.close()
    finally:
        for database in (one, *fleet):
            database.close()


def _split(table: str, text: str, vendors: int) -> list[list[list[str]]]:
    """Return each vendor's rows; SQLite's column affinity makes numbers of the texts."""
    parts: list[list[list[str]]] = [[] for _ in range(vendors)]
    place = _SUPPLIER.get(table)
    for line in text.splitlines():
        row = line.removesuffix("|").split("|")
        key = int(row[place]) if place is not None else zlib.crc32(f"{table} {row[0]}".encode())
        parts[key % vendors].append(row)
    return parts


def _timed_ms(call: Callable[[str], Any], sql: str) -> float:
    start = perf_counter()
    call(sql)
    return 1e3 * (perf_counter() - start)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Compare, then time, the 22 queries on both sides in turn.

    Parameters
    ----------
    quick : bool
        Scale 0.001 over 10 vendors and one round, where otherwise 0.01 over 100 vendors (a vendor a supplier) and five.

    Returns
    -------
    list of dict
        One a query: tier, whether equal, rows answered and shipped, median times of both sides and their ratio.
    """
    found = []
    with warehouse(scale=0.001 if quick else 0.01, vendors=10 if quick else 100) as both:
        for number in QUERIES:
            sql = both.text(number)
            equal, result = both.compare(sql)
            # In turn, so that a busy machine slows both; what is reported is a median of each.
            times = [(_timed_ms(both.expected, sql), _timed_ms(both.answer, sql)) for _ in range(1 if quick else 5)]
            one_ms, ours_ms = (statistics.median(column) for column in zip(*times, strict=True))
            found.append(
                {
                    "query": number,
                    "tier": result.stats.tier,
                    "equal": equal,
                    "rows": len(result.rows),
                    "rows_shipped": result.stats.rows_shipped,
                    "one_sqlite_ms": one_ms,
                    "coordinator_ms": ours_ms,
                    "ratio": ours_ms / one_ms,
                }
            )
    return found
