"""Each trap of one statement over N databases has its test; the number is the trap's in the project's SQL notes."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mktsim.errors import (
    EvaluationError,
    InvalidArgumentError,
    QueryTooLargeError,
    SchemaMismatchError,
    UnsupportedQueryError,
)
from mktsim.sql import Combiner, GatherEngine, GatherLimits, Planner, Schema
from mktsim.sql.schema import SCHEMA_QUERY
from mktsim.sqlite import connect
from mktsim.testing import Case, Grammar, TableData, check_statement, make_coordinator, run_oracle, typed
from tests.oracle import ask, coordinator, split


def case(columns, *vendors, extra=()):
    """Make a case of one table `t` from a list of rows for each vendor."""
    rows = tuple(row for vendor in vendors for row in vendor)
    owners = tuple(number for number, vendor in enumerate(vendors) for _ in vendor)
    return Case((TableData("t", tuple(columns), rows, tuple(extra)),), len(vendors), {"t": owners})


def check(sql, made, tier="two-phase", params=()):
    """Check a statement against one SQLite, and that the expected tier answered it."""
    answer = check_statement(sql, made, params)
    assert answer is not None
    assert answer.stats.tier == tier, answer
    return answer.rows


NUMBERS = case(["g TEXT", "x REAL"], [("a", 0.1), ("a", 0.2)], [("b", 0.3), ("a", 0.3)], [], [("b", None)])


@pytest.mark.parametrize("connective", ["AND", "OR"])
def test_aggregates_that_stand_first_in_a_condition_do_not_make_it_an_aggregate(connective):
    """COUNT(*) > 1 AND ... begins with the name of an aggregate and is none: it is decided in two phases."""
    sql = f"SELECT g, SUM(x) FROM t GROUP BY g HAVING COUNT(*) > 2 {connective} MAX(x) > 0.25 ORDER BY g"
    assert check(sql, NUMBERS) == ([("a", 0.6)] if connective == "AND" else [("a", 0.6), ("b", 0.3)])


def test_01_float_sums_do_not_depend_on_the_split():
    """Adding vendors' rounded sums would be wrong in the last bit."""
    rng = random.Random(1)
    values = [rng.uniform(-1e6, 1e6) for _ in range(300)]
    answers = set()
    for vendors in (1, 2, 7, 50):
        parts = [[] for _ in range(vendors)]
        for value in values:
            parts[rng.randrange(vendors)].append((value,))
        answers.add(check("SELECT SUM(x), AVG(x), TOTAL(x) FROM t", case(["x REAL"], *parts))[0])
    assert answers == {(math.fsum(values), math.fsum(values) / 300, math.fsum(values))}


def test_02_integer_sums_overflow_only_where_the_total_does():
    """A vendor's own sum may leave 64 bits."""
    big = 2**62
    fine = case(["x INTEGER"], [(big,), (big,)], [(-big,), (-big,), (7,)])
    with coordinator(fine.fleet()) as made:
        assert ask(made, "SELECT SUM(x) FROM t").rows == [(7,)]
    with coordinator(case(["x INTEGER"], [(big,)], [(big,)]).fleet()) as made:
        with pytest.raises(EvaluationError, match="integer overflow"):
            ask(made, "SELECT SUM(x) FROM t")
        assert ask(made, "SELECT AVG(x) FROM t").rows == [(float(big),)]


def test_03_avg_is_the_exact_sum_over_the_count_never_an_average_of_averages():
    """NULL on no rows; never an overflow."""
    assert check("SELECT g, AVG(x) FROM t GROUP BY g ORDER BY g", NUMBERS) == [("a", 0.6 / 3), ("b", 0.3)]
    assert check("SELECT AVG(x) FROM t WHERE g = 'z'", NUMBERS) == [(None,)]


def test_04_sum_keeps_its_type():
    """INTEGER in, INTEGER out; one REAL makes it REAL; TOTAL is always REAL."""
    mixed = case(["x"], [(1,), (2,)], [(3.0,)], [(None,)])
    assert typed(check("SELECT SUM(x), TOTAL(x) FROM t", mixed)) == typed([(6.0, 6.0)])
    whole = case(["x"], [(1,)], [(2,)])
    assert typed(check("SELECT SUM(x), TOTAL(x) FROM t", whole)) == typed([(3, 3.0)])


@pytest.mark.parametrize("collation", ["NOCASE", "RTRIM"])
def test_05_collations_hold_in_the_gather(collation):
    """GROUP BY, DISTINCT, MIN, MAX, ORDER BY, = and IN use the column's collation, or the one written."""
    made = case(
        [f"n TEXT COLLATE {collation}", "p TEXT"], [("a", "a"), ("B ", "B ")], [("A", "A"), ("b", "b")], [("a ", "a ")]
    )
    for sql in (
        "SELECT n, COUNT(*) FROM t GROUP BY n",
        "SELECT DISTINCT n FROM t",
        "SELECT MIN(n), MAX(n), COUNT(DISTINCT n) FROM t",
        "SELECT n FROM t ORDER BY n DESC LIMIT 3",
        "SELECT COUNT(*) FROM t WHERE n = 'A' OR n IN ('b')",
        f"SELECT p COLLATE {collation}, COUNT(*) FROM t GROUP BY p COLLATE {collation}",
        f"SELECT MIN(p COLLATE {collation}) FROM t",
        f"SELECT p FROM t ORDER BY p COLLATE {collation}, p LIMIT 4",
    ):
        check(sql, made)


def test_06_the_first_seen_stands_for_a_group():
    """'a' or 'A', 1 or 1.0: whichever a single table would have met first."""
    made = case(["n TEXT COLLATE NOCASE", "v"], [("B", 1.0)], [("a", 1), ("b", 2)], [("A", 2.0)])
    assert check("SELECT n, COUNT(*) FROM t GROUP BY n", made) == [("a", 2), ("B", 2)]
    assert typed(check("SELECT v, COUNT(*) FROM t GROUP BY v", made)) == typed([(1.0, 2), (2, 2)])


def test_07_bare_columns_come_from_the_extremes_row():
    """With one MIN or MAX its row; with none the first; with FILTER or several, SQLite over all rows."""
    made = case(["g", "x INTEGER", "n TEXT"], [("a", 3, "p"), ("a", 1, "q")], [("a", 1, "r"), ("b", 9, "s")], [])
    assert check("SELECT g, MIN(x), n FROM t GROUP BY g", made) == [("a", 1, "q"), ("b", 9, "s")]
    assert check("SELECT n, MAX(x) FROM t", made) == [("s", 9)]
    check("SELECT g, n, COUNT(*) FROM t GROUP BY g", made)
    check("SELECT g, n, MAX(x) FILTER (WHERE x < 9) FROM t GROUP BY g", made, "collect")
    check("SELECT g, n, MAX(x), MIN(x) FROM t GROUP BY g", made, "collect")


def test_08_empty_vendors_add_nothing_and_no_vendors_still_make_a_row():
    """An ungrouped aggregate over nothing has a row of NULL and 0."""
    assert check("SELECT SUM(x), COUNT(*), MIN(x) FROM t", case(["x"], [], [(2,)], [])) == [(2, 1, 2)]
    assert check("SELECT SUM(x), COUNT(*), TOTAL(x) FROM t", case(["x"], [], [])) == [(None, 0, 0.0)]
    assert check("SELECT SUM(x), COUNT(*) FROM t", case(["x"])) == [(None, 0)]
    assert check("SELECT x, COUNT(*) FROM t GROUP BY x", case(["x"])) == []


def test_09_limit_travels_only_where_it_is_safe():
    """Limit + offset to plain rows, DISTINCT by its own columns and groups by all keys; never past an aggregate."""
    made = case(["g TEXT", "x INTEGER"], *[[(f"g{(i * j) % 5}", i - j) for i in range(6)] for j in range(4)])
    with coordinator(made.fleet()) as one:
        pushed = one.explain("SELECT x FROM t ORDER BY x DESC LIMIT 2 OFFSET 3")
        assert "LIMIT ?" in pushed.scatter[0]
        assert "OFFSET" not in pushed.scatter[0]
        for sql in (
            "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY SUM(x) LIMIT 2",
            "SELECT g FROM t GROUP BY g HAVING COUNT(*) > 1 ORDER BY g LIMIT 2",
        ):
            assert "LIMIT" not in one.explain(sql).scatter[0]
        assert "LIMIT" in one.explain("SELECT g, SUM(x) FROM t GROUP BY g ORDER BY g LIMIT 2").scatter[0]
    for sql in (
        "SELECT x FROM t ORDER BY x DESC LIMIT 2 OFFSET 3",
        "SELECT DISTINCT g FROM t ORDER BY g LIMIT 2 OFFSET 1",
        "SELECT DISTINCT g FROM t LIMIT 2 OFFSET 1",
        "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY SUM(x) DESC, g LIMIT 2",
        "SELECT g, SUM(x) FROM t GROUP BY g ORDER BY g DESC LIMIT 2 OFFSET 1",
        "SELECT g FROM t GROUP BY g HAVING COUNT(*) > 1 ORDER BY g LIMIT 2",
    ):
        check(sql, made)


@pytest.mark.parametrize("tail", ["LIMIT -1", "LIMIT 2 OFFSET -3", "LIMIT 1, 2", "LIMIT ?", "LIMIT 1 + 1", "LIMIT 0"])
def test_10_limits_are_evaluated_once(tail):
    """-1 is unlimited, a negative offset 0; parameters, expressions and the comma form work."""
    made = case(["x"], [(3,), (1,)], [(2,)], [(5,), (4,)])
    check(f"SELECT x FROM t ORDER BY x {tail}", made, params=(3,) if "?" in tail else ())


def test_10_a_limit_that_is_no_number_is_sqlites_own_error():
    """The gather refuses it in SQLite's words."""
    with coordinator(case(["x"], [(1,)]).fleet()) as made:
        with pytest.raises(EvaluationError, match="datatype mismatch"):
            ask(made, "SELECT x FROM t LIMIT ?", ("many",))


def test_11_distinct_aggregates_count_each_value_once():
    """Several of them, with other aggregates and with FILTER."""
    made = case(["g", "x", "y"], [(1, 2, "a"), (1, 2, "b")], [(1, 2.0, "a"), (2, 3, None)], [(2, 4, "c")])
    for sql in (
        "SELECT COUNT(DISTINCT x), SUM(DISTINCT x), AVG(DISTINCT x), COUNT(DISTINCT y), COUNT(*), SUM(x) FROM t",
        "SELECT g, COUNT(DISTINCT x), COUNT(DISTINCT y) FROM t GROUP BY g",
        "SELECT COUNT(DISTINCT x) FILTER (WHERE y = 'a') FROM t",
    ):
        check(sql, made)


def test_12_concatenations_keep_the_order_of_rows():
    """A constant separator is joined in vendor order; anything else is collected."""
    made = case(["g", "x TEXT"], [(1, "a"), (2, "b")], [(1, None), (1, "c")], [(1, "")])
    assert check("SELECT GROUP_CONCAT(x) FROM t", made) == [("a,b,c,",)]
    check("SELECT g, GROUP_CONCAT(x, '; ') FROM t GROUP BY g", made)
    check("SELECT GROUP_CONCAT(x, g) FROM t", made, "collect")
    check("SELECT GROUP_CONCAT(DISTINCT x) FROM t", made, "collect")
    check("SELECT json_group_array(json_array(x)) FROM t", made, "collect")


def test_13_mixed_types_sort_as_sqlite_sorts_them():
    """NULL, numbers, text, blobs; NULLS FIRST and LAST."""
    made = case(["x"], [(b"b",), (None,), ("10",)], [(9,), (1.5,), ("é",)], [("É",), (10,), (None,)])
    for tail in ("", " DESC", " NULLS LAST", " DESC NULLS FIRST"):
        check(f"SELECT x, typeof(x) FROM t ORDER BY x{tail} LIMIT 7", made)


def test_14_utf16_databases_are_refused():
    """They would sort differently; the store says so when an image comes in."""
    from mktsim.storage import open_store

    utf16 = connect()
    utf16.execute("PRAGMA encoding = 'UTF-16le'")
    utf16.execute("CREATE TABLE t(x)")
    store = open_store("memory", None, Schema(("CREATE TABLE t(x)",)), shards=("s",), locate=lambda _: "s")
    with pytest.raises(SchemaMismatchError):
        store.restore("acme", utf16.serialize("main"))
    store.close()
    utf16.close()


def test_15_having_compares_with_the_affinity_of_the_source():
    """HAVING a = '1' is true for an INTEGER column, MAX(a) = '1' is not."""
    made = case(["a INTEGER", "b"], [(1, 1)], [(1, 2), (2, 3)])
    assert check("SELECT a, COUNT(*) FROM t GROUP BY a HAVING a = '1'", made) == [(1, 2)]
    assert check("SELECT a, MAX(a) FROM t GROUP BY a HAVING MAX(a) = '1'", made) == []


def test_16_names_resolve_as_in_the_original():
    """GROUP BY prefers a column, ORDER BY an alias; result names are SQLite's."""
    made = case(["a", "b"], [(1, 4), (2, 3)], [(1, 2), (3, 1)])
    for sql in (
        "SELECT b AS a, COUNT(*) FROM t GROUP BY a",
        "SELECT -b AS a, b FROM t ORDER BY a LIMIT 3",
        "SELECT a + 0 AS k, COUNT(*) n FROM t GROUP BY k HAVING n > 1",
        "SELECT a, sum( b ) FROM t GROUP BY 1 ORDER BY 2 DESC",
        "SELECT count(*), Count ( * ) AS [x y], t.a FROM t GROUP BY a",
        "SELECT a AS k FROM t WHERE k > 1 ORDER BY 1 COLLATE NOCASE",
    ):
        check(sql, made)


def test_17_a_sort_key_need_not_be_selected():
    """It travels as a hidden column."""
    made = case(["a", "b"], [(1, 9), (2, 7)], [(3, 8)])
    assert check("SELECT a FROM t ORDER BY b LIMIT 2", made) == [(2,), (3,)]
    assert check("SELECT a FROM t GROUP BY a ORDER BY SUM(b)", made) == [(2,), (3,), (1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a, SUM(b) OVER (ORDER BY a) FROM t",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i, a FROM n, t ORDER BY 1",
        "SELECT a FROM t UNION SELECT b FROM t",
        "SELECT a FROM t EXCEPT SELECT b FROM t",
        "SELECT a, (SELECT COUNT(*) FROM t AS o WHERE o.b < t.b) FROM t",
        "SELECT l.a, r.b FROM t AS l JOIN t AS r ON l.a = r.b",
        "SELECT a FROM t WHERE b IN (SELECT MAX(b) FROM t)",
        "SELECT * FROM t AS l NATURAL JOIN t AS r",
    ],
)
def test_18_what_looks_across_vendors_is_collected(sql):
    """Windows, CTEs, set operations, sub-queries and joins across vendors."""
    check(sql, case(["a", "b"], [(1, 9), (2, 7)], [(3, 8), (9, 1)], []), "collect")


SHARDED = Schema(
    ("CREATE TABLE t(g, x REAL, n TEXT, vendorId TEXT)",),
    shard_column="vendorId",
)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT vendorId, g, GROUP_CONCAT(n), SUM(x), n FROM t GROUP BY g, vendorId HAVING COUNT(*) > 1",
        "SELECT vendorId, COUNT(*) FROM t GROUP BY vendorId ORDER BY COUNT(*) DESC LIMIT 2",
        "SELECT vendorId, MAX(x), n FROM t GROUP BY vendorId ORDER BY 2 DESC, n LIMIT 2 OFFSET 1",
        "SELECT n, ROW_NUMBER() OVER (PARTITION BY vendorId ORDER BY x) AS r FROM t ORDER BY r, n LIMIT 5",
        "SELECT n, LAG(x) OVER (PARTITION BY vendorId, g ORDER BY n) FROM t WHERE x > 0",
        "SELECT vendorId, json_group_array(n) FROM t GROUP BY 1",
    ],
)
def test_18_what_lies_within_one_vendor_is_pushed_whole(sql):
    """The shard column among the group keys, or first in every partition: the vendor answers."""
    rng = random.Random(3)
    vendors = [
        [
            (rng.choice((1, 1.0, "a", None)), rng.uniform(-1, 5), rng.choice("pqrs"), f"v{v:03d}")
            for _ in range(rng.randrange(9))
        ]
        for v in range(6)
    ]
    made = case(["g", "x REAL", "n TEXT", "vendorId TEXT"], *vendors)
    fleet = made.fleet()
    with coordinator(fleet, schema=SHARDED) as one:
        answer = check_statement(sql, made, coordinator=one)
        assert answer is not None
        assert answer.stats.tier == "two-phase"
        assert "shard column" in str(one.explain(sql)) or "partition" in str(one.explain(sql))
    for connection in fleet:
        connection.close()


def test_19_a_join_is_over_all_vendors_rows():
    """One big table is the meaning: rows of different vendors join, and conditions on one table travel."""
    made = case(["a", "b"], [(1, 2)], [(2, 3)], [(3, 4)])
    sql = "SELECT l.a, r.b FROM t AS l JOIN t AS r ON l.b = r.a"
    assert check(sql, made, "collect") == [(1, 3), (2, 4)]
    two = Case(
        (TableData("t", ("a", "b"), ((1, 2), (2, 3))), TableData("u", ("c", "d"), ((2, 5), (3, 6)))),
        2,
        {"t": (0, 1), "u": (1, 0)},
    )
    fleet = two.fleet()
    with coordinator(fleet) as one:
        plan = one.explain("SELECT a, d FROM t JOIN u ON b = c WHERE a > 1 AND d > 5")
        assert any("WHERE (a > 1)" in sql for sql in plan.scatter)
        assert any("WHERE (d > 5)" in sql for sql in plan.scatter)
        outer = one.explain("SELECT a, d FROM t LEFT JOIN u ON b = c WHERE a > 1 AND d IS NULL")
        assert any("WHERE (a > 1)" in sql for sql in outer.scatter)
        assert not any("IS NULL" in sql for sql in outer.scatter)
    for connection in fleet:
        connection.close()
    check_statement("SELECT a, d FROM t JOIN u ON b = c WHERE a > 1 AND d > 5", two)
    check_statement("SELECT a, d FROM t LEFT JOIN u ON b = c AND d > 5 WHERE a > 0 AND d IS NULL", two)


@pytest.mark.parametrize("sql", ["SELECT rowid FROM t", "SELECT oid, x FROM t", "SELECT x FROM t ORDER BY _rowid_"])
def test_20_bare_rowids_are_refused(sql):
    """They name other rows in every database."""
    with coordinator(case(["x"], [(1,)]).fleet()) as made:
        with pytest.raises(UnsupportedQueryError, match="rowid is not unique"):
            ask(made, sql)


def test_20_indexed_by_is_refused():
    """An index is one database's own."""
    with coordinator(case(["x"], [(1,)], extra=["CREATE INDEX i ON t(x)"]).fleet()) as made:
        with pytest.raises(UnsupportedQueryError, match="INDEXED BY"):
            ask(made, "SELECT x FROM t INDEXED BY i WHERE x > 0")


def test_21_a_statement_has_one_instant_and_random_only_in_the_gather():
    """'now' is the same in all rows, and no vendor draws a random number."""
    made = case(["x"], *[[(i,)] for i in range(50)])
    fleet = made.fleet()
    with coordinator(fleet) as one:
        sql = "SELECT DISTINCT julianday('now'), CURRENT_TIMESTAMP FROM t WHERE datetime('now') > '2000'"
        assert len(ask(one, sql).rows) == 1
        assert "now" not in one.explain(sql).scatter[0]
        assert "random" not in one.explain("SELECT x FROM t WHERE random() > 0").scatter[0].lower()
        with pytest.raises(UnsupportedQueryError, match="changes"):
            ask(one, "SELECT changes(), x FROM t")
    plan = Planner(made.schema).plan("SELECT datetime('now') FROM t")
    engine = GatherEngine()
    assert engine.gather(plan, [("v", [[(1,)]])], (), unix_ms=86_400_000) == [("1970-01-02 00:00:00",)]
    engine.close()
    for connection in fleet:
        connection.close()


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT x + ? FROM t WHERE x > ? LIMIT ?", (10, 1, 2)),
        ("SELECT x + ?2 FROM t WHERE x > ?1 OR x = ?2", (1, 2)),
        ("SELECT x + :a, :b FROM t WHERE x > :a", {"a": 1, "b": "z"}),
        ("SELECT x + @a FROM t GROUP BY x + @a", {"a": 1}),
        ("SELECT COUNT(*) + $n FROM t WHERE x <> $n", {"n": 3}),
        ("SELECT ?3, ?1, x FROM t", (1, 2, 3)),
        ("SELECT x, '?', \"x\", [x], `x` /* ? */ FROM t -- ?", ()),
    ],
)
def test_22_parameters_of_every_form(sql, params):
    """Numbered, named, repeated, out of order; those in strings and comments are none."""
    made = case(["x"], [(1,), (2,)], [(3,)], [])
    oracle, fleet = made.oracle(), made.fleet()
    with coordinator(fleet) as one:
        answer = ask(one, sql, params)
        names, rows = run_oracle(oracle, sql, params)
        assert (answer.columns, typed(answer.rows)) == (names, typed(rows))
    for connection in [oracle, *fleet]:
        connection.close()


def test_23_all_statements_of_one_vendor_see_one_snapshot():
    """A collect over two tables reads both in one transaction of each vendor."""
    seen = []
    connection = connect()
    connection.execute("CREATE TABLE t(a)")
    connection.execute("CREATE TABLE u(b)")
    with coordinator([connection]) as one:
        connection.exec_trace = lambda _cursor, sql, _bindings: seen.append(sql) or True
        ask(one, "SELECT * FROM t, u")
        connection.exec_trace = None
    started = seen.index("BEGIN")
    assert [sql.split()[0] for sql in seen[started:]] == ["BEGIN", "SELECT", "SELECT", "ROLLBACK"]
    connection.close()


def test_24_infinities_and_negative_zero():
    """inf - inf is NULL; MIN keeps -0.0."""
    made = case(["x REAL"], [(math.inf,), (-0.0,)], [(-math.inf,)], [(0.0,)])
    assert check("SELECT SUM(x), AVG(x), TOTAL(x) FROM t", made) == [(None, None, None)]
    check("SELECT MIN(x), MAX(x) FROM t WHERE abs(x) < 1", made)
    assert check("SELECT SUM(x) FROM t WHERE x >= 0", made) == [(math.inf,)]


# -- beyond the traps -------------------------------------------------------------------------------------------------


@given(st.randoms(use_true_random=False))
def test_combine_is_associative_and_commutative_up_to_order(chance):
    """Partials combined in random trees of shards gather to the answer of the uncombined partials."""
    grammar = Grammar(chance)
    made = grammar.case(vendors=6)
    planner = Planner(made.schema)
    fleet = made.fleet()
    engine = GatherEngine()
    for _ in range(4):
        sql, params = grammar.statement(made)
        plan = planner.plan(sql)
        if plan.combine is None:
            continue
        values = plan.statement.bind(params)
        reach = plan.limit.reach(planner.catalog.vendor, values) if plan.limit else -1

        def bind(binders, reach=reach, values=values):
            return tuple(reach if binder == "limit" else values[binder - 1] for binder in binders)

        from mktsim.sql import register

        segments = []
        for number, connection in enumerate(fleet):
            register(connection)
            statement = plan.scatter[0]
            segments.append((number, (connection.execute(statement.sql, bind(statement.binders)).fetchall(),)))
        groups = [[segment] for segment in segments]
        while len(groups) > 1:
            first, second = (groups.pop(chance.randrange(len(groups))) for _ in range(2))
            merged = sorted(first + second, key=lambda segment: segment[0])
            if chance.random() < 0.7:
                combiner = Combiner(plan.combine, bind(plan.combine.binders))
                merged = combiner([(place, ([*parts[0]],)) for place, parts in merged])
                combiner.close()
            groups.append(merged)
        try:
            plain = engine.gather(plan, [(place, ([*parts[0]],)) for place, parts in segments], values)
        except EvaluationError as error:  # The total overflows: so it does, in the same words, from the tree.
            with pytest.raises(EvaluationError, match=re.escape(str(error))):
                engine.gather(plan, groups[0], values)
            continue
        treed = engine.gather(plan, groups[0], values)
        assert typed(treed) == typed(plain), sql
    engine.close()
    for connection in fleet:
        connection.close()


def test_full_text_ranking_is_global():
    """bm25 scores with the statistics of all vendors' documents; MATCH alone travels."""
    one = connect()
    one.execute("CREATE VIRTUAL TABLE docs USING fts5(title, body)")
    rng = random.Random(5)
    words = ["wireless", "mouse", "desk", "kettle", "usb", "red"]
    documents = [(" ".join(rng.choices(words, k=2)), " ".join(rng.choices(words, k=9))) for _ in range(40)]
    one.executemany("INSERT INTO docs VALUES (?, ?)", documents)
    fleet = [connect() for _ in range(5)]
    for place, connection in enumerate(fleet):
        connection.execute("CREATE VIRTUAL TABLE docs USING fts5(title, body)")
        connection.executemany("INSERT INTO docs VALUES (?, ?)", documents[place * 10 : place * 10 + 10])
    with coordinator(fleet) as made:
        for sql in (
            "SELECT title, bm25(docs) FROM docs WHERE docs MATCH 'wireless' ORDER BY rank LIMIT 5",
            "SELECT title, rank FROM docs('mouse OR desk') ORDER BY rank",
            "SELECT highlight(docs, 0, '<', '>') FROM docs WHERE docs MATCH 'usb'",
            "SELECT COUNT(*) FROM docs WHERE docs MATCH 'red'",
        ):
            assert typed(ask(made, sql).rows) == typed(one.execute(sql).fetchall())
        assert "MATCH" in made.explain("SELECT title FROM docs WHERE docs MATCH 'red'").scatter[0]
        assert "MATCH" not in made.explain("SELECT title FROM docs WHERE docs MATCH 'red' ORDER BY rank").scatter[0]
    for connection in [one, *fleet]:
        connection.close()


def test_a_full_text_table_whose_content_is_elsewhere_is_refused():
    """Its rows cannot be rebuilt in the gather, and a shard-local rank would be silently wrong."""
    ddl = (
        "CREATE TABLE base(id INTEGER PRIMARY KEY, body)",
        "CREATE VIRTUAL TABLE docs USING fts5(body, content=base)",
    )
    with pytest.raises(UnsupportedQueryError, match="virtual table"):
        Planner(Schema(ddl)).plan("SELECT body FROM docs WHERE docs MATCH 'x'")


def test_caps_on_rows_and_bytes_are_named_errors():
    """The message says what to do; a spill below the cap changes nothing."""
    made = case(["x TEXT"], *[[(f"{i}" * 500,)] for i in range(400)])
    fleet = made.fleet()
    sql = "SELECT x, RANK() OVER (ORDER BY x) FROM t"
    with coordinator(fleet) as plain, coordinator(fleet, limits=GatherLimits(memory_bytes=1)) as spilling:
        assert ask(spilling, sql).rows == ask(plain, sql).rows
    for limits in (GatherLimits(max_rows=399), GatherLimits(max_bytes=100_000)):
        with coordinator(fleet, limits=limits) as capped, pytest.raises(QueryTooLargeError, match="raise GatherLimits"):
            ask(capped, sql)
    for connection in fleet:
        connection.close()


def test_a_shared_integer_key_decides_the_walk():
    """One SQLite walks an INTEGER PRIMARY KEY by key, whichever vendor holds the row."""
    rows = tuple((i, "abc"[i % 3]) for i in range(1, 13))
    made = Case(
        (TableData("t", ("id INTEGER PRIMARY KEY", "c TEXT"), rows),), 3, {"t": tuple(i % 3 for i in range(12))}
    )
    for sql in (
        "SELECT c FROM t LIMIT 4",
        "SELECT * FROM t",
        "SELECT c FROM t WHERE id > 3 LIMIT 2 OFFSET 1",
        "SELECT GROUP_CONCAT(c) FROM t",
        "SELECT c, id FROM t ORDER BY c LIMIT 5",
        "SELECT id FROM t ORDER BY id DESC LIMIT 3",
        "SELECT DISTINCT c FROM t",
        "SELECT c, COUNT(*), id FROM t GROUP BY c",
        "SELECT MAX(c), MIN(id) FROM t",
    ):
        check_statement(sql, made)


def test_colliding_keys_are_relaxed_and_kept_keys_keep_sqlites_order():
    """Two vendors with the same key: the gather drops the key and answers over all rows."""
    ddl = ("CREATE TABLE t(id TEXT PRIMARY KEY, x)",)
    fleet = [connect() for _ in range(3)]
    for place, connection in enumerate(fleet):
        connection.execute(ddl[0])
        connection.executemany("INSERT INTO t VALUES (?, ?)", [("p1", place), ("p2", -place)])
    with coordinator(fleet) as one:
        assert ask(one, "SELECT id, SUM(x) OVER (PARTITION BY id) FROM t ORDER BY 1, x").rows[0] == ("p1", 3)
        assert ask(one, "SELECT id, COUNT(*) FROM t GROUP BY id").rows == [("p1", 3), ("p2", 3)]
    for connection in fleet:
        connection.close()


def test_views_generated_columns_and_strict_tables():
    """The gather has the same shape: views, generated columns, STRICT and WITHOUT ROWID tables."""
    one = connect()
    for statement in (
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c AS (a * 2), d AS (upper(b)) STORED)",
        "CREATE TABLE s(x INTEGER, y ANY) STRICT",
        "CREATE TABLE w(k TEXT, v REAL, PRIMARY KEY(k, v)) WITHOUT ROWID",
        "CREATE VIEW v AS SELECT b, COUNT(*) AS n FROM t GROUP BY b",
        "CREATE INDEX partial ON t(b) WHERE a > 2",
    ):
        one.execute(statement)
    one.executemany("INSERT INTO t(a, b) VALUES (?, ?)", [(i, "pqr"[i % 3]) for i in range(9)])
    one.executemany("INSERT INTO s VALUES (?, ?)", [(1, "1"), (2, 2), (3, 2.5)])
    one.executemany("INSERT INTO w VALUES (?, ?)", [("b", 1.5), ("a", 2.0), ("a", 1.0)])
    fleet = split(one, 4)
    with coordinator(fleet) as made:
        for sql in (
            "SELECT * FROM t WHERE c > 4",
            "SELECT d, SUM(c) FROM t GROUP BY d",
            "SELECT * FROM v ORDER BY n, b",
            "SELECT y, typeof(y) FROM s ORDER BY y",
            "SELECT DISTINCT typeof(y) FROM s",
            "SELECT * FROM w ORDER BY k, v",
            "SELECT b FROM t WHERE a > 2 AND b >= 'q'",
            "SELECT * FROM v NATURAL JOIN t WHERE a < 5",
        ):
            assert typed(ask(made, sql).rows) == typed(one.execute(sql).fetchall()), sql
    for connection in [one, *fleet]:
        connection.close()


def test_plans_are_remembered_by_text():
    """The second planning of a text costs a look-up."""
    planner = Planner(Schema(("CREATE TABLE t(a)",)), cache_size=2)
    first = planner.plan("SELECT a FROM t")
    assert planner.plan("SELECT a FROM t") is first
    planner.plan("SELECT a + 1 FROM t")
    planner.plan("SELECT a + 2 FROM t")
    assert planner.plan("SELECT a FROM t") is not first


def test_the_schema_can_be_read_back_from_a_database_it_made():
    """Shadow tables of virtual tables are left out."""
    schema = Schema(("CREATE TABLE t(a)", "CREATE VIRTUAL TABLE f USING fts5(x)", "CREATE INDEX i ON t(a)"))
    database = schema.database()
    assert Schema.from_rows(database.execute(SCHEMA_QUERY).fetchall()).statements == schema.statements
    database.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schema(3),
        lambda: Schema(None),
        lambda: Schema("CREATE TABLE t(a)"),
        lambda: Schema([3]),
        lambda: Schema((), shard_column=3),
        lambda: Schema((), summarised=3),
        lambda: Schema((), summarised=("t",)),
        lambda: Schema.from_rows(3),
        lambda: Schema.from_rows("abc"),
        lambda: Schema.from_rows([3]),
        lambda: Schema.from_rows([("table", "t", None)]),
        lambda: Schema.read(3),
        lambda: Schema.read(lambda sql: 3),
    ],
)
def test_what_is_no_schema_is_refused_when_it_is_made(make):
    """Or a string would be a statement a character."""
    with pytest.raises(InvalidArgumentError):
        make()


def test_make_coordinator_agrees_with_a_case_of_no_vendors():
    """The testing tools work at zero as well."""
    made = Case((TableData("t", ("a",), ()),), 0, {"t": ()})
    fleet = made.fleet()
    one = make_coordinator(made, fleet)
    assert ask(one, "SELECT COUNT(*) FROM t").rows == [(0,)]
    one.close()
