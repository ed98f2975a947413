"""From one statement to its plan: route, two-phase, collect or local.

Rules
-----
Whatever SQLite can prepare as a SELECT gets a plan. Two-phase where `twophase` proves it; otherwise collect: ship the
columns the statement reads, of the rows that can matter, and run the original text over tables of the same shape.
Refused, by name: writes, bare rowids and INDEXED BY (they mean something else in each database), functions of a
connection's state, and tables of SQLite's own that differ from vendor to vendor.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

from sqlglot import exp

from mktsim.errors import InvalidArgumentError, UnsupportedQueryError
from mktsim.sql import lexer
from mktsim.sql.catalog import Catalog, Facts, affinity
from mktsim.sql.collect import collect, rebuildable
from mktsim.sql.colocated import push_join
from mktsim.sql.lexer import PREFIX, Statement
from mktsim.sql.plan import Plan
from mktsim.sql.schema import Schema
from mktsim.sql.syntax import Node, Select, Undecided, conjuncts, equated, is_value, parse, single_select, text, unwrap
from mktsim.sql.twophase import decompose
from mktsim.sql.whole import push_whole
from mktsim.sqlite import Error, Value, rows

_STATE_FUNCTIONS = {"changes", "total_changes", "last_insert_rowid", "load_extension", "fts3_tokenizer"}
_RANDOM_FUNCTIONS = {"random", "randomblob"}
_CLOCK_NAMES = {"current_timestamp", "current_date", "current_time"}
_CLOCK_FUNCTIONS = {"date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"}
_NO_ARGUMENT = re.compile(r"(?i)\b(?:date|time|datetime|julianday|unixepoch)\s*\(\s*\)")
_SCHEMA_TABLES = {"sqlite_master", "sqlite_schema", "sqlite_temp_master", "sqlite_temp_schema"}

#: A longer statement is refused before it is read.
MAX_STATEMENT_CHARS = 1_000_000


class Planner:
    """Plans statements over one schema and remembers the plans.

    Parameters
    ----------
    schema : Schema
        The DDL every vendor database shares.
    functions : bool
        Whether vendors' databases know the aggregates of `mktsim.sql.register`; without them, sums are collected.
    cache_size : int
        Plans remembered by statement text.

    Examples
    --------
    >>> planner = Planner(Schema(("CREATE TABLE products(name TEXT, category TEXT, price REAL)",)))
    >>> plan = planner.plan("SELECT category, AVG(price) FROM products GROUP BY category")
    >>> plan.tier
    'two-phase'
    >>> plan.gather
    'SELECT category, MKTSIM_AVG_VALUE(mktsim_a0, mktsim_a1) FROM products GROUP BY category'
    """

    def __init__(self, schema: Schema, *, functions: bool = True, cache_size: int = 512) -> None:
        if cache_size < 1:
            raise InvalidArgumentError(f"cache_size must be at least 1, not {cache_size}")
        self.catalog = Catalog(schema)
        self._functions = functions
        # By text, and whether the values seen made it collect.
        self._cache: OrderedDict[tuple[str, bool], Plan] = OrderedDict()
        self._cache_size = cache_size

    @property
    def schema(self) -> Schema:
        """The schema that statements are planned over."""
        return self.catalog.schema

    def plan(self, sql: str) -> Plan:
        """Return the plan of a statement; remembered by its text.

        Raises
        ------
        QueryError
            One of its subclasses, before any vendor is touched.
        """
        known = self._cache.get((sql, False)) if isinstance(sql, str) else None
        if known is not None:
            self._cache.move_to_end((sql, False))
            return known
        if isinstance(sql, str) and len(sql) > MAX_STATEMENT_CHARS:
            raise UnsupportedQueryError(
                f"the statement has {len(sql):,} characters, the limit is {MAX_STATEMENT_CHARS:,}: use parameters",
                sql=sql,
            )
        plan = self._plan(lexer.read(sql))
        return self._remember((sql, False), plan)

    def _remember(self, key: tuple[str, bool], plan: Plan) -> Plan:
        self._cache[key] = plan
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return plan

    def _plan(self, statement: Statement) -> Plan:
        catalog = self.catalog
        facts = catalog.facts(statement)
        self._refuse(statement, facts)
        if not any(name in catalog.tables for name in facts.reads.keys() | facts.opened):
            tables = catalog.schema.statements if _SCHEMA_TABLES & facts.reads.keys() else ()
            return Plan(
                statement, facts.columns, "local", (), statement.normal, tables, reason="it reads no table of a vendor"
            )
        volatile = _is_volatile(statement, facts)
        tree = parse(statement, catalog)
        if isinstance(tree, str):
            return collect(statement, facts, catalog, None, reason=tree, volatile=volatile)
        try:
            return self._with_tree(statement, facts, tree, volatile)
        except RecursionError:
            return collect(statement, facts, catalog, None, reason="it nests too deeply to be read", volatile=volatile)

    def _with_tree(self, statement: Statement, facts: Facts, tree: Node, volatile: bool) -> Plan:
        catalog = self.catalog
        reason = "random() or the clock is evaluated once, at the coordinator"
        plan: Plan | None = None
        for attempt in () if volatile else (self._whole, self._decomposed, self._colocated):
            try:
                plan = attempt(statement, facts, tree)
                break
            except Undecided as undecided:
                reason = str(undecided)
        if plan is not None and plan.needs_functions and not self._functions:
            plan, reason = None, "a vendor's database does not know mktsim_sum(): see mktsim.sql.register"
        if plan is not None and plan.rounds is not None and not self._functions:
            plan = replace(plan, rounds=None, rules=plan.rules[:-1])
        if plan is None:
            plan = collect(statement, facts, catalog, tree, reason=reason, volatile=volatile)
        if plan.tier == "two-phase" and self._may_change_with_values(statement, facts):
            plan = replace(plan, steps=facts.steps)
        source = _only_table(tree, catalog)
        if source is not None and not volatile:
            plan = replace(plan, single_table=True, shard_values=self._shard_values(source))
        return plan

    def _may_change_with_values(self, statement: Statement, facts: Facts) -> bool:
        """Return whether SQLite may choose another walk once it sees the values of LIMIT, LIKE or GLOB."""
        return (
            bool(statement.parameters)
            and not {"LIMIT", "LIKE", "GLOB"}.isdisjoint(statement.words)
            and any(self.catalog.tables[name].indexes for name in facts.reads if name in self.catalog.tables)
        )

    def settled(self, plan: Plan, values: tuple[Value, ...]) -> Plan:
        """Return the plan for these values: another one where SQLite, seeing them, would walk another way."""
        if not plan.steps:
            return plan
        bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
        try:
            steps = tuple(str(row[3]) for row in self.catalog.whole.execute(plan.statement.normal, bindings, explain=2))
        except Error:
            return plan
        if steps == plan.steps:
            return plan
        key = (plan.statement.sql, True)
        known = self._cache.get(key)
        if known is None:
            reason = "with these values SQLite would walk the rows another way"
            known = collect(
                plan.statement, self.catalog.facts(plan.statement), self.catalog, None, reason=reason, volatile=False
            )
            known = replace(known, single_table=plan.single_table, shard_values=plan.shard_values)
            self._remember(key, known)
        return known

    def _whole(self, statement: Statement, facts: Facts, tree: Node) -> Plan:
        if self.schema.shard_column is None:
            raise Undecided("no column is known to hold the vendor's id")
        return push_whole(statement, facts, single_select(tree, self.catalog, windows=True), self.catalog)

    def _decomposed(self, statement: Statement, facts: Facts, tree: Node) -> Plan:
        return decompose(statement, facts, single_select(tree, self.catalog), self.catalog)

    def _colocated(self, statement: Statement, facts: Facts, tree: Node) -> Plan:
        if not _has_joins(tree):
            single_select(tree, self.catalog)  # For its reason, which is the one to show.
            return self._decomposed(statement, facts, tree)

        def plan_over(schema: Schema, sql: str) -> Plan:
            return Planner(schema, functions=self._functions, cache_size=1).plan(sql)

        return push_join(statement, facts, tree, self.catalog, plan_over)

    def _refuse(self, statement: Statement, facts: Facts) -> None:
        if ("INDEXED", "BY") in pairwise(statement.words):
            raise UnsupportedQueryError("INDEXED BY names an index of one database: leave it out", sql=statement.sql)
        state = sorted(facts.functions & _STATE_FUNCTIONS)
        if state:
            raise UnsupportedQueryError(f"{state[0]}() tells the state of one connection", sql=statement.sql)
        for name, columns in facts.reads.items():
            table = self.catalog.tables.get(name)
            if table is None:
                if name.startswith(("pragma_", "dbstat", "sqlite_stat", "sqlite_sequence", "sqlite_dbpage")):
                    raise UnsupportedQueryError(
                        f"{name} differs from vendor to vendor: ask one vendor", sql=statement.sql
                    )
                if name in _SCHEMA_TABLES and any(other in self.catalog.tables for other in facts.reads):
                    raise UnsupportedQueryError(
                        f"{name} cannot be joined with vendors' rows: read it in a statement of its own",
                        sql=statement.sql,
                    )
            elif table.kind == "virtual" and not rebuildable(table, self.catalog):
                raise UnsupportedQueryError(
                    f"{table.name} is a virtual table whose content cannot be shipped: ask one vendor",
                    sql=statement.sql,
                )
            elif "ROWID" in {column.upper() for column in columns} and table.column("ROWID") is None:
                raise UnsupportedQueryError(
                    f"rowid is not unique over vendors: select a key column of {table.name} instead", sql=statement.sql
                )

    # -- routing --------------------------------------------------------------------------------------------------

    def _shard_values(self, source: Select) -> tuple[str, ...] | None:
        """Return SQL of the values that WHERE allows the shard column, or None for any."""
        column = self.schema.shard_column
        where = source.node.args.get("where")
        if column is None or where is None:
            return None
        declared = source.table.column(column)
        if declared is None or declared.collation.upper() != "BINARY" or affinity(declared.type) != "TEXT":
            return None
        for condition in conjuncts(where.this):
            pair = equated(source, condition)
            if pair is not None and pair[0] is declared:
                return (text(pair[1]),)
            if (
                isinstance(condition, exp.In)
                and source.column(unwrap(condition.this)) is declared
                and condition.expressions
                and all(map(is_value, condition.expressions))
            ):
                return tuple(map(text, condition.expressions))
        return None

    def shard_keys(self, plan: Plan, values: tuple[Value, ...]) -> frozenset[str] | None:
        """Return the vendor ids that a bound statement may touch, or None for all."""
        if plan.shard_values is None:
            return None
        bindings = {f"{PREFIX}{number}": value for number, value in enumerate(values, 1)}
        listed = ", ".join(f"CAST(({value}) AS TEXT), typeof({value})" for value in plan.shard_values)
        try:
            row = rows(self.catalog.vendor, f"SELECT {listed}", bindings)[0]
        except Error:
            return None
        # A blob never equals text, and NULL equals nothing.
        return frozenset(key for key, kind in zip(row[::2], row[1::2], strict=True) if kind not in ("null", "blob"))


def _has_joins(tree: Node) -> bool:
    source = tree.args.get("from_") or tree.args.get("from")
    return bool(tree.args.get("joins") or (source is not None and source.this.args.get("joins")))


def _is_volatile(statement: Statement, facts: Facts) -> bool:
    if facts.functions & (_RANDOM_FUNCTIONS | _CLOCK_NAMES):
        return True
    if not facts.functions & _CLOCK_FUNCTIONS:
        return False
    normal = statement.normal
    return bool(statement.parameters or "now" in normal.lower() or _NO_ARGUMENT.search(normal))


def _only_table(tree: Node, catalog: Catalog) -> Select | None:
    """Return the outer SELECT where the whole statement names one base table, once."""
    tables = list(tree.find_all(exp.Table))
    if not isinstance(tree, exp.Select) or len(tables) != 1 or tree.args.get("with_") or tree.args.get("with"):
        return None
    source = tree.args.get("from_") or tree.args.get("from")
    if source is None or source.this is not tables[0] or not isinstance(tables[0].this, exp.Identifier):
        return None
    if tree.args.get("joins") or tables[0].args.get("joins"):
        return None
    table = catalog.tables.get(tables[0].name.lower())
    if table is None or table.kind != "table":
        return None
    return Select(tree, table, tables[0].alias or table.name)
