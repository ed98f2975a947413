"""The two-phase tier: scatter partials, gather them.

Rules
-----
1. The gather runs the user's own statement, over a table that has the source table's name and, for the columns
   shipped, its names, types and collations. Only aggregate calls are replaced and WHERE, already applied, is dropped.
   So aliases, positions, affinity in HAVING, collations and NULLS FIRST mean in the gather what they meant before.
2. Rows enter the gather in the order in which one SQLite holding all rows would visit them: by vendor, then rowid,
   both reversed if the program walks backwards. Where that SQLite would walk an index, the index's columns are added
   behind ORDER BY. SQLite's sorts are stable, so ties fall as they would there.
3. LIMIT travels as limit + offset, only to plain and DISTINCT selects and to groups ordered by all their keys.
4. What is not proven here is not guessed: :class:`Undecided` carries the reason and the statement is collected.

Theory of operation
-------------------
``SELECT category, AVG(price) FROM products WHERE stock > 0 GROUP BY category HAVING COUNT(*) > 1`` becomes::

    scatter  SELECT category, mktsim_sum(price) AS a0, COUNT(price) AS a1, COUNT(*) AS a2
             FROM products WHERE stock > 0 GROUP BY category
    gather   SELECT category, mktsim_avg_value(a0, a1) FROM products GROUP BY category HAVING COALESCE(SUM(a2), 0) > 1

A partial has the columns that occur outside aggregates ("bare" in SQLite's terms) and one or two columns for each
distinct aggregate call. An ungrouped scatter ends in ``HAVING COUNT(*) > 0``, so that an empty vendor sends nothing.
The argument of a DISTINCT aggregate is shipped as one more group key.

What this does not do
---------------------
Joins, sub-queries, windows, set operations and aggregates whose value depends on row order are collected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import sqlglot
from sqlglot import exp

from mktsim.sql.bounds import with_bounds
from mktsim.sql.catalog import ROWID_NAMES, Catalog, Column, Facts, Index, affinity
from mktsim.sql.lexer import Statement
from mktsim.sql.merge import MERGES
from mktsim.sql.plan import Combine, Limit, Plan, ScatterStatement, positional
from mktsim.sql.syntax import (
    Node,
    Select,
    Undecided,
    aggregate_name,
    aggregates,
    conjuncts,
    equated,
    is_constant_number,
    is_star,
    text,
    unwrap,
    walk_outside,
)
from mktsim.sql.threshold import with_rounds
from mktsim.sql.topk import TopK
from mktsim.sql.ungrouped import Ungrouped
from mktsim.sqlite import Error, quote

_ORDINAL = "mktsim_ordinal"
_FIRST = "mktsim_first"
_MERGEABLE = {"count", "sum", "avg", "total", "group_concat", "string_agg"}
#: Functions that return text, or an integer, or a blob, but never both an integer and a real number.
_ONE_TYPE = {
    "char", "concat", "concat_ws", "date", "datetime", "format", "hex", "instr", "json_type", "json_valid", "length",
    "lower", "ltrim", "octet_length", "printf", "quote", "replace", "rtrim", "soundex", "strftime", "substr",
    "substring", "time", "trim", "typeof", "unicode", "upper",
}  # fmt: skip
_STEP = re.compile(
    r"(SCAN|SEARCH) .*?"
    r"(?: USING (?:COVERING )?INDEX (.+?)(?: \(.*\))?| USING (?:INTEGER )?PRIMARY KEY.*)?\Z"
)
_SORT_STEPS = ("USE TEMP B-TREE FOR ",)


@dataclass(frozen=True, slots=True)
class Scan:
    """The order in which one SQLite holding all rows would visit the table.

    Attributes
    ----------
    terms : tuple of (column, collation, descending)
        Order before (vendor, rowid); empty for a walk in (vendor, rowid) order.
    known : bool
        False where an expression index decides.
    backwards : bool
        Whether (vendor, rowid) runs downwards.
    sorts : frozenset of str
        Which of ``ORDER BY``, ``GROUP BY``, ``DISTINCT`` use a sorter.
    """

    terms: tuple[tuple[str, str, bool], ...]
    known: bool
    backwards: bool
    sorts: frozenset[str]

    def within(self, columns: Iterable[str]) -> bool:
        """Whether rows that agree in `columns` are visited by (vendor, rowid), upwards."""
        names = {name.lower() for name in columns}
        return self.known and not self.backwards and all(name.lower() in names for name, _, _ in self.terms)

    @property
    def by_rowid(self) -> bool:
        """Whether the walk is by rowid, upwards."""
        return self.known and not self.terms and not self.backwards


def scan_order(select: Select, facts: Facts, catalog: Catalog) -> Scan:
    """Read the order of the walk from EXPLAIN QUERY PLAN."""
    walks = [step for step in facts.steps if step.startswith(("SCAN ", "SEARCH "))]
    others = [step for step in facts.steps if step not in walks and not step.startswith(_SORT_STEPS)]
    if len(walks) != 1 or others:
        raise Undecided(f"SQLite's plan has a step whose order is not known ({(others or facts.steps)[:1]})")
    match = _STEP.match(walks[0])
    name = match.group(2) if match else None
    table = select.table
    terms: tuple[tuple[str, str, bool], ...] = ()
    known = True
    if name is not None:
        index = next((index for index in table.indexes if index.name == name), None)
        known = index is not None and all(term.column is not None for term in index.terms)
        if index is not None and known:
            terms = _walk(index, facts.reverse)
    elif table.rowid_alias is not None and table.name.lower() not in catalog.relaxed:
        # The rowid is a key that all vendors share: one table would be walked by it, not by vendor.
        terms = ((table.rowid_alias, "BINARY", facts.reverse),)
    elif table.without_rowid and table.name.lower() not in catalog.relaxed:
        key = next((index for index in table.indexes if index.origin == "pk"), None)
        if key is not None:
            terms = _walk(key, facts.reverse)
    where = select.node.args.get("where")
    pairs = [equated(select, condition) for condition in conjuncts(where.this)] if where is not None else []
    fixed = {pair[0].name.lower() for pair in pairs if pair is not None}  # equal in all rows: they order nothing
    terms = tuple(term for term in terms if term[0].lower() not in fixed)
    sorts = {
        kind
        for kind in ("ORDER BY", "GROUP BY", "DISTINCT")
        for step in facts.steps
        if step not in walks and kind in step
    }
    return Scan(terms, known, facts.reverse, frozenset(sorts))


def _walk(index: Index, backwards: bool) -> tuple[tuple[str, str, bool], ...]:
    return tuple((term.column or "", term.collation, term.descending != backwards) for term in index.terms)


@dataclass(slots=True)
class _Partial:
    """The columns of a partial, as they are collected."""

    select: Select
    shipped: dict[str, Column] = field(default_factory=dict)
    computed: dict[str, tuple[str, str]] = field(default_factory=dict)  # expression -> (column, definition)
    merged: dict[str, str] = field(default_factory=dict)  # column -> how combine merges it
    made: dict[str, tuple[str, str]] = field(default_factory=dict)  # column -> how, and of which argument, it is made
    keys: list[str] = field(default_factory=list)  # columns that combine groups by

    def ship(self, column: Column) -> None:
        self.shipped.setdefault(column.name.lower(), column)

    def compute(
        self,
        expression: str,
        merge: str | None,
        *,
        type_: str = "",
        collation: str = "BINARY",
        made: tuple[str, str] | None = None,
    ) -> str:
        known = self.computed.get(expression)
        if known is not None:
            return known[0]
        name = f"mktsim_a{len(self.computed)}"
        collate = "" if collation.upper() == "BINARY" else f" COLLATE {quote(collation)}"
        self.computed[expression] = (name, f"{name} {type_}{collate}".rstrip())
        if merge is None:
            self.keys.append(name)
            made = "", expression
        else:
            self.merged[name] = merge.format(name)
        if made is not None:
            self.made[name] = made
        return name

    def makes(self) -> list[tuple[str, str]] | None:
        """Return how each column is made and of which expression of a row, or None where one is made otherwise."""
        alias = quote(self.select.alias)
        shipped = [("", f"{alias}.{quote(column.name)}") for column in self.shipped.values()]
        computed = [self.made.get(name) for name, _ in self.computed.values()]
        return None if None in computed else [*shipped, *(each for each in computed if each is not None)]

    def columns(self) -> list[str]:
        names = [quote(column.name) for column in self.shipped.values()]
        return names + [name for name, _ in self.computed.values()]

    def expressions(self) -> list[str]:
        alias = quote(self.select.alias)
        return [f"{alias}.{quote(column.name)}" for column in self.shipped.values()] + list(self.computed)

    def ensure_some(self) -> None:
        """A row must have a column: ship a constant where nothing is needed."""
        if not self.shipped and not self.computed:
            self.compute("NULL", "MIN({})")

    def definitions(self) -> list[str]:
        return [column.definition() for column in self.shipped.values()] + [
            text_ for _, text_ in self.computed.values()
        ]


class _Builder:
    """Builds the plan of one statement."""

    def __init__(self, statement: Statement, facts: Facts, select: Select, catalog: Catalog) -> None:
        self.statement = statement
        self.facts = facts
        self.select = select
        self.catalog = catalog
        self.scan = scan_order(select, facts, catalog)
        self.partial = _Partial(select)
        self.concatenates = False
        self.expression_shown = False  # a group key that is no plain column is seen in the answer
        self.spelling_matters = False  # an aggregate returns the first seen of values that compare equal
        self.rules: list[str] = []
        node = select.node
        self.where = node.args.get("where")
        self.condition = f" WHERE {text(select.resolve(self.where.this))}" if self.where is not None else ""
        limit, offset = node.args.get("limit"), node.args.get("offset")
        self.limit = None
        if limit is not None:
            skip = limit.args.get("offset") or (offset.expression if offset is not None else None)
            self.limit = Limit(text(limit.expression), text(skip) if skip is not None else None)
        # A constant orders nothing, and written out it would be read as a position.
        self.order = [(key, term) for key, term in select.order_terms() if not is_constant_number(key)]
        self.keys = select.group_keys()
        if any(is_constant_number(key) for key in self.keys):
            raise Undecided("it groups by a constant")
        self.distinct = node.args.get("distinct") is not None
        self.having = node.args.get("having")
        roots = [*select.items, *(term for term, _ in self.order)]
        self.roots = [select.resolve(root) for root in roots] + (
            [select.resolve(self.having.this)] if self.having else []
        )
        self.calls: dict[str, Node] = {}
        for root in self.roots:
            for call in aggregates(root, catalog.aggregates):
                self.calls.setdefault(text(call), call)
        if self.condition:
            self.rules.append("WHERE runs at each vendor: a row's own columns decide it")

    def build(self) -> Plan:
        if self.calls or self.keys or self.having is not None:
            return self._grouped()
        if self.facts.functions & self.catalog.aggregates:
            raise Undecided("SQLite sees an aggregate that the parser does not")
        return self._plain()

    # -- rows without aggregates ----------------------------------------------------------------------------------

    def _plain(self) -> Plan:
        self._ship_roots()
        if self.scan.terms:
            self._ship_scan_terms()
        if not self.scan.known:
            raise Undecided("SQLite would walk an index on an expression")
        if self.distinct:
            return self._distinct()
        self.partial.ensure_some()
        ordering = [self._term(node, term) for node, term in self.order] + self._scan_suffix()
        push = self.limit is not None
        if push:
            self.rules.append("LIMIT + OFFSET travels: a vendor's rows past it cannot be among the first")
        scatter = self._scatter(ordering if push else [], group=None, limit=push)
        combine = self._combine_rows(ordering, limit=push)
        top = self._top_k() if push else None
        return replace(self._plan(scatter, self._gather({}), combine=combine, limit=push), top=top)

    def _top_k(self) -> TopK | None:
        """Return how a scan finds the first rows without sorting at each vendor; None where it walks an index."""
        if not self.scan.by_rowid or self.select.table.without_rowid:
            return None
        head = f"SELECT {', '.join(self.partial.expressions())} FROM {self.select.source}"
        if not self.order:
            first = f"{head}{self.condition} LIMIT :mktsim_limit"
            if self._uses_index(first):
                return None
            self.rules.append("a scan ends with the first LIMIT + OFFSET rows: vendors come in the answer's order")
            return TopK.build(first, first_come=True)
        unsorted = f"{head}{self.condition} LIMIT :mktsim_more"
        if self._uses_index(unsorted):
            return None
        node, term = self.order[0]
        column = self.select.column(unwrap(node))
        if column is None or column.collation.upper() != "BINARY":
            return TopK.build(unsorted)
        down, nulls_first = bool(term.args.get("desc")), bool(term.args.get("nulls_first"))
        # Vendors come in the answer's order: with no second term to win by, an equal key is too late.
        beats = f"{'>' if down else '<'}{'' if len(self.order) == 1 else '='}"
        key = f"{quote(self.select.alias)}.{quote(column.name)}"
        bound = f"+{key} {beats} :mktsim_bound"
        if nulls_first:
            bound = f"({key} IS NULL OR {bound})"
        where = f" WHERE ({text(self.select.resolve(self.where.this))}) AND" if self.where is not None else " WHERE"
        bounded = f"{head}{where} {bound} LIMIT :mktsim_more"
        if self._uses_index(bounded):
            return TopK.build(unsorted)
        self.rules.append("a running threshold within a scan: what is left out comes after k rows found before")
        place = list(self.partial.shipped).index(column.name.lower())
        return TopK.build(unsorted, bounded, key=place, descending=down)

    def _distinct(self) -> Plan:
        """DISTINCT keeps each value's first row in scan order; so does each vendor, for its own rows."""
        chosen = {text(unwrap(item)).lower() for item in self.select.items}
        columns = {c.name.lower() for item in self.select.items if (c := self.select.column(unwrap(item))) is not None}
        if self.select.has_star:
            columns = {column.name.lower() for column in self.select.table.columns}
        for node, _ in self.order:
            column = self.select.column(unwrap(node))
            if not (column is not None and column.name.lower() in columns) and text(unwrap(node)).lower() not in chosen:
                raise Undecided("DISTINCT is ordered by what it does not select")
        ordered = {c.name.lower() for key, _ in self.order if (c := self.select.column(unwrap(key))) is not None}
        chosen_columns = [column for column in self.select.table.columns if column.name.lower() in columns]
        settled = not self.select.has_star and all(
            column.name.lower() in ordered and not _varies(column) for column in chosen_columns
        )
        settled = settled and len(columns) == len({text(unwrap(item)).lower() for item in self.select.items})
        if self.scan.backwards and not settled:
            raise Undecided("DISTINCT would be taken in a backward walk")
        if not settled and any(name.lower() not in columns for name, _, _ in self.scan.terms):
            raise Undecided("DISTINCT would be taken in the order of an index on other columns")
        plain = all(self.select.column(unwrap(item)) is not None or is_star(item) for item in self.select.items)
        if settled:  # ORDER BY tells all rows apart: the walk decides nothing.
            self.scan = Scan((), True, False, self.scan.sorts)
            self.partial = _Partial(self.select)
            self._ship_roots()
        self.rules.append("DISTINCT runs at each vendor and again in the gather: it is idempotent")
        push = self.limit is not None
        if push:
            self.rules.append("LIMIT + OFFSET travels: DISTINCT is ordered by its own columns, or by first sight")
        ordering = [self._term(node, term) for node, term in self.order] + self._scan_suffix()
        if plain:
            scatter = self._scatter(ordering if push else [], group=None, limit=push, distinct=True)
        else:
            # Each value's first row stands for it: SQLite takes bare columns from the row of the one MIN.
            first = self._first_row()
            group = [text(self.select.resolve(item)) for item in self.select.items]
            scatter = self._scatter([*(ordering if push else []), first], group=group, limit=push)
        self.partial.ensure_some()
        return self._plan(scatter, self._gather({}), limit=push)

    # -- groups and aggregates ------------------------------------------------------------------------------------

    def _grouped(self) -> Plan:
        select, scan = self.select, self.scan
        unknown = (self.facts.functions & self.catalog.aggregates) - _MERGEABLE
        if unknown:
            raise Undecided(f"{sorted(unknown)[0]}() has no partial form here")
        extreme = self._one_extreme()
        if extreme is not None:
            return extreme
        key_columns = {c.name.lower(): c for key in self.keys if (c := select.column(unwrap(key))) is not None}
        bare = self._ship_bare(key_columns)
        replacements, extremes, finer = self._merge_calls()
        # What the walk decides: which row a bare column is taken from, which spelling stands for equal values, and in
        # which order text is concatenated. A vendor decides it for its rows, the gather between vendors, both by walk.
        first_seen = bare or self.spelling_matters
        by_walk = scan.within(key_columns)
        if first_seen and not by_walk:
            raise Undecided("a bare column or a spelling depends on a walk along an index")
        if self.concatenates and finer:
            raise Undecided("group_concat() beside a DISTINCT aggregate would be cut into pieces")
        if self.expression_shown and extremes:
            raise Undecided("a group's spelling depends on an extreme's row")
        if bare and extremes + bool(finer) > 1:
            raise Undecided("a bare column or a group's spelling depends on more than one aggregate")
        if self.keys and "GROUP BY" not in scan.sorts:
            if not scan.known:
                raise Undecided("SQLite would group along an index on an expression")
            if len(key_columns) < len(self.keys):
                raise Undecided("SQLite would group by an expression along an index")
        group = [text(key) for key in self.keys] + finer
        push = self._may_push_groups(finer)
        ordering = [self._term(node, term) for node, term in self.order] if push else []
        if first_seen and finer:
            # Finer groups arrive by the first row of each: SQLite takes bare columns from the row of the one MIN.
            ordering = [self._first_row()]
        scatter = self._scatter(ordering, group=group, limit=push, first_rows=first_seen)
        combine = None if first_seen or self.concatenates else self._combine_groups()
        self.rules.append("aggregates are merged from each vendor's partials, in SQLite")
        suffix = []
        if self.keys and "GROUP BY" not in scan.sorts:
            suffix = [
                (quote(select.alias) + "." + quote(name), collation, down)
                for name, collation, down in scan.terms
                if name.lower() in key_columns
            ]
        ungrouped = self._ungrouped(combine) if not push else None
        plan = self._plan(scatter, self._gather(replacements, suffix), combine=combine, limit=push)
        return replace(plan, ungrouped=ungrouped)

    def _ungrouped(self, combine: Combine | None) -> Ungrouped | None:
        """Return how a scan groups the rows of many vendors at once; None where SQL merges their partials."""
        makes = self.partial.makes()
        if combine is None or not combine.merges or makes is None:
            return None
        ungrouped = Ungrouped.build(makes, self.select.source, self.condition)
        if ungrouped is not None:
            self.rules.append("a scan groups the rows of many vendors at once, where each has few")
        return ungrouped

    def _ship_bare(self, key_columns: dict[str, Column]) -> bool:
        """Ship what occurs outside aggregates; return whether it matters from which row of the group it is taken."""
        select = self.select
        keys = {text(unwrap(key)) for key in self.keys}
        kinds = {type(unwrap(key)) for key in self.keys}
        matters = False

        def is_key(node: Node) -> bool:
            node = unwrap(node)
            return type(node) in kinds and text(node) in keys

        for root in [*self.roots, *self.keys]:
            for node in walk_outside(root, self._is_aggregate):
                if is_star(node) and not isinstance(node.parent, exp.Count):
                    for column in select.table.columns:
                        self.partial.ship(column)
                    matters = True
                elif (found := select.column(node)) is not None:
                    self.partial.ship(found)
        for root in self.roots:
            for node in walk_outside(root, lambda node: is_key(node) or self._is_aggregate(node)):
                found = select.column(node)
                # A key's column may also stand alone: then its spelling is seen.
                if found is not None and (found.name.lower() not in key_columns or _varies(found)):
                    matters = True
            for node in root.walk():
                if is_key(node) and not isinstance(node, exp.Identifier) and not self._is_aggregate(node):
                    varies = self._spelt_variously(node)
                    self.expression_shown |= varies and select.column(unwrap(node)) is None
                    matters |= varies
        return matters

    def _first_row(self) -> str:
        rowid = self.select.table.rowid
        if rowid is None:
            raise Undecided("the first row of a group needs a rowid")
        first = f"MIN({quote(self.select.alias)}.{rowid})"
        self.partial.compute(first, "MIN({})")
        return first

    def _one_extreme(self) -> Plan | None:
        """Answer one ungrouped MIN or MAX along an index by each vendor's first row of that walk.

        SQLite walks the index from its end and stops at the first row; which of several equal values it meets there,
        and hence a bare column's row, follows from the walk, so vendors must walk alike.
        """
        if self.keys or self.having is not None or len(self.calls) != 1 or not self.scan.terms or not self.scan.known:
            return None
        call = next(iter(self.calls.values()))
        name = aggregate_name(call, self.catalog.aggregates)
        if name not in ("min", "max") or isinstance(call, exp.Filter) or self.select.has_star:
            return None
        value = call.this
        if value.find(exp.Placeholder, exp.Distinct, exp.Order) or value.find(exp.Column) is None:
            return None
        for root in self.roots:
            if any(self.select.column(node) is not None for node in walk_outside(root, self._is_aggregate)):
                return None  # With nothing but NULLs, SQLite takes bare columns from the last row and not the first.
        for node in value.find_all(exp.Column):
            if (column := self.select.column(node)) is not None:
                self.partial.ship(column)
        self._ship_scan_terms()
        self.partial.ensure_some()
        direction = " DESC" if name == "max" else ""
        ordering = [f"({text(value)}) IS NULL", f"{text(value)}{direction}", *self._scan_suffix()]
        down = " DESC" if self.scan.backwards else ""
        ties = [f"{quote(self.select.alias)}.{key}{down}" for key in self._row_order()]
        self.rules.append(f"{name.upper()} along an index is its walk's first row, at each vendor and in the gather")
        scatter = ScatterStatement.build(
            f"SELECT {', '.join(self.partial.expressions())} FROM {self.select.source}{self.condition} "
            f"ORDER BY {', '.join([*ordering, *ties])} LIMIT 1",
            _FIRST,
            self.partial.columns(),
        )
        plan = self._plan(scatter, self._gather({}, []), limit=False)
        # The statement reads a view of the one row that comes first; vendors' rows have arrived in the walk's order.
        table = f"CREATE TABLE {_FIRST}({', '.join(self.partial.definitions())})"
        view = (
            f"CREATE VIEW {quote(self.select.table.name)} AS SELECT {', '.join(self.partial.columns())} "
            f"FROM {_FIRST} AS {quote(self.select.alias)} ORDER BY {', '.join(ordering)} LIMIT 1"
        )
        return replace(plan, tables=(table, view))

    def _may_push_groups(self, distinct_arguments: list[str]) -> bool:
        if self.limit is None or not self.keys or self.having is not None or self.distinct or distinct_arguments:
            return False
        ordered = {text(unwrap(node)) for node, _ in self.order}
        if ordered != {text(unwrap(key)) for key in self.keys}:
            return False
        self.rules.append("LIMIT + OFFSET travels: groups are ordered by all their keys and there is no HAVING")
        return True

    def _merge_calls(self) -> tuple[dict[str, str], int, list[str]]:
        """Give each aggregate call its partial columns; return call -> gather text, MIN/MAX count, DISTINCT keys."""
        replacements: dict[str, str] = {}
        extremes = 0
        distinct_arguments: list[str] = []
        for whole, call in self.calls.items():
            inner = call.this if isinstance(call, exp.Filter) else call
            condition = f" FILTER (WHERE {text(call.expression.this)})" if isinstance(call, exp.Filter) else ""
            name = aggregate_name(inner, self.catalog.aggregates) or ""
            arguments = _arguments(inner)
            if name == "group_concat":
                replacements[whole] = self._concatenation(inner, arguments, condition)
                continue
            for each in arguments:
                if any(True for _ in aggregates(each, self.catalog.aggregates)) or each.find(exp.Order):
                    raise Undecided(f"{name}() has an argument that is no plain expression")
            if len(arguments) > 1:
                raise Undecided(f"{name}() has more than one argument")
            argument: Node | None = arguments[0] if arguments else None
            if isinstance(argument, exp.Distinct):
                if name == "group_concat":
                    raise Undecided("group_concat(DISTINCT) depends on the order of rows")
                value = argument.expressions[0]
                type_, collation = self._shape(value)
                self.spelling_matters |= name != "count" and self._spelt_variously(value)
                column = self.partial.compute(text(value), None, type_=type_, collation=collation)
                chosen = ""
                if condition:
                    passes = f"({text(call.expression.this)})"
                    chosen = f" FILTER (WHERE {self.partial.compute(passes, None)})"
                    distinct_arguments.append(passes)
                if text(value) not in distinct_arguments:
                    distinct_arguments.append(text(value))
                    self.rules.append(f"the values of {name}(DISTINCT) travel, each once per vendor and group")
                exact = {"sum": "mktsim_exact_sum", "total": "mktsim_exact_total", "avg": "mktsim_exact_avg"}.get(
                    name, name
                )
                explicit = self._explicit(value, collation)
                replacements[whole] = f"{exact}(DISTINCT {column}{explicit}){chosen}"
                extremes += name in ("min", "max")
                continue
            shown = "*" if argument is None else text(argument)
            if name == "count":
                made = None if condition else ("COUNT(*)", "") if argument is None else ("COUNT", shown)
                column = self.partial.compute(f"COUNT({shown}){condition}", "SUM({0})", made=made)
                replacements[whole] = f"COALESCE(SUM({column}), 0)"
            elif name in ("min", "max"):
                if argument is None:
                    raise Undecided(f"{name}() has no argument")
                _, collation = self._shape(argument)
                self.spelling_matters |= self._spelt_variously(argument)
                column = self.partial.compute(
                    f"{name.upper()}({shown}){condition}",
                    name.upper() + "({0})",
                    collation=collation,
                    made=None if condition else (name.upper(), shown),
                )
                replacements[whole] = f"{name.upper()}({column}{self._explicit(argument, collation)})"
                extremes += 2 if condition else 1
            else:
                made = None if condition else ("mktsim_sum", shown)
                column = self.partial.compute(f"mktsim_sum({shown}){condition}", "mktsim_sum_merge({0})", made=made)
                if name == "avg":
                    made = None if condition else ("COUNT", shown)
                    count = self.partial.compute(f"COUNT({shown}){condition}", "SUM({0})", made=made)
                    replacements[whole] = f"mktsim_avg_value({column}, {count})"
                else:
                    replacements[whole] = f"mktsim_{name}_value({column})"
        return replacements, extremes, distinct_arguments

    def _concatenation(self, call: Node, arguments: list[Node], condition: str) -> str:
        """Concatenate vendors' concatenations, with the same separator and in the same order."""
        separator = call.args.get("separator")
        parts = [part for part in [*arguments, separator] if part is not None]
        if any(part.find(exp.Order, exp.Distinct, exp.Concat) for part in parts) or len(parts) > 2:
            raise Undecided("group_concat() orders its rows itself")
        if not isinstance(unwrap(parts[-1]), exp.Literal | exp.Placeholder) if len(parts) == 2 else False:
            raise Undecided("group_concat() has a separator that is no constant")
        if not self.scan.by_rowid:
            raise Undecided("group_concat() follows a walk that is not by rowid")
        self.concatenates = self.spelling_matters = True
        between = f", {text(parts[1])}" if len(parts) == 2 else ""
        column = self.partial.compute(f"GROUP_CONCAT({text(parts[0])}{between}){condition}", "{0}")
        self.rules.append("concatenations travel: vendors' texts joined in the order of vendors")
        return f"GROUP_CONCAT({column}{between})"

    def _is_aggregate(self, node: Node) -> bool:
        inner = node.this if isinstance(node, exp.Filter) else node
        return aggregate_name(inner, self.catalog.aggregates) is not None

    def _shape(self, node: Node) -> tuple[str, str]:
        """Return an expression's declared type and collation, as SQLite has them."""
        column = self.select.column(unwrap(node))
        if column is not None:
            return column.type, column.collation
        return "", collation_of(self.catalog, self.statement, self.select, node, "")

    def _spelt_variously(self, node: Node) -> bool:
        """Return whether equal values of an expression may differ: 1 and 1.0, 'a' and 'A' under NOCASE."""
        node = unwrap(node)
        column = self.select.column(node)
        if column is not None:
            return _varies(column)
        if not self._has_one_type(node):
            return True
        return collation_of(self.catalog, self.statement, self.select, node, "").upper() != "BINARY"

    def _has_one_type(self, node: Node) -> bool:
        """Return whether an expression never is an integer in one row and a real number in another."""
        node = unwrap(node)
        if isinstance(node, exp.Mod | exp.Div):
            return all(self._is_integer(side) for side in (node.left, node.right))
        if isinstance(node, exp.Func) and not isinstance(node, exp.And | exp.Or):
            return text(node).split("(", 1)[0].strip().lower() in _ONE_TYPE
        return isinstance(node, exp.DPipe | exp.Literal | exp.Predicate | exp.Not | exp.And | exp.Or)

    def _is_integer(self, node: Node) -> bool:
        node = unwrap(node)
        column = self.select.column(node)
        if column is not None:  # Only a key that is the rowid can hold nothing but integers.
            return column.name == self.select.table.rowid_alias
        return isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit()

    def _explicit(self, node: Node, collation: str) -> str:
        """Return a COLLATE clause where the argument has one of its own: it then belongs to the result as well."""
        return f" COLLATE {quote(collation)}" if node.find(exp.Collate) is not None else ""

    # -- texts ----------------------------------------------------------------------------------------------------

    def _ship_roots(self) -> None:
        if self.select.has_star:
            for column in self.select.table.columns:
                if column.shown:
                    self.partial.ship(column)
        for root in self.roots:
            for node in root.find_all(exp.Column):
                column_ = self.select.column(node)
                if column_ is not None:
                    self.partial.ship(column_)

    def _ship_scan_terms(self) -> None:
        for name, _, _ in self.scan.terms:
            column = self.select.table.column(name)
            if column is None or (self.select.has_star and not column.shown):
                raise Undecided("the walk's order needs a column that cannot be shipped")
            self.partial.ship(column)

    def _term(self, node: Node, term: exp.Ordered) -> str:
        """Return one ORDER BY term as it stands at a vendor."""
        whole = term.copy()
        whole.set("this", node.copy())
        return text(whole)

    def _scan_suffix(self) -> list[str]:
        alias = quote(self.select.alias)
        return [
            f"{alias}.{quote(name)} COLLATE {quote(collation)}{' DESC' if down else ''}"
            for name, collation, down in self.scan.terms
        ]

    def _scatter(
        self,
        ordering: list[str],
        *,
        group: list[str] | None,
        limit: bool,
        distinct: bool = False,
        first_rows: bool = False,
    ) -> ScatterStatement:
        """Write the statement each vendor runs, and make its row order certain."""
        self.partial.ensure_some()
        head = (
            f"SELECT {'DISTINCT ' if distinct else ''}{', '.join(self.partial.expressions())} FROM {self.select.source}"
        )
        tail = self.condition
        if group is not None:
            tail += f" GROUP BY {', '.join(group)}" if group else " HAVING COUNT(*) > 0"
        end = " LIMIT :mktsim_limit" if limit else ""
        clause = f" ORDER BY {', '.join(ordering)}" if ordering else ""
        sql = head + tail + clause + end
        indexed = self._uses_index(sql)
        if group is None and not distinct:
            if indexed or self.scan.backwards:
                direction = " DESC" if self.scan.backwards else ""
                ties = [f"{quote(self.select.alias)}.{name}{direction}" for name in self._row_order()]
                sql = f"{head}{tail} ORDER BY {', '.join([*ordering, *ties])}{end}"
        elif indexed and (distinct or first_rows or (group is not None and "MIN(" in "".join(ordering))):
            sql = f"{head} NOT INDEXED{tail}{clause}{end}"
        return ScatterStatement.build(sql, quote(self.select.table.name), self.partial.columns())

    def _row_order(self) -> list[str]:
        table = self.select.table
        if table.without_rowid:
            return [quote(name) for name in table.key]
        if table.rowid is None:
            raise Undecided("all three names of the rowid are taken by columns")
        return [table.rowid]

    def _uses_index(self, sql: str) -> bool:
        positions, binders = positional(sql)
        try:
            steps = self.catalog.vendor_steps(positions, len(binders))
        except Error as error:
            raise Undecided(f"a fragment does not stand alone ({error})") from error
        return any(" INDEX " in step or "MULTI-INDEX" in step for step in steps)

    def _gather(self, replacements: dict[str, str], suffix: list[tuple[str, str, bool]] | None = None) -> str:
        """Return the user's statement with aggregates replaced, WHERE dropped and the walk's order spelt out."""
        node: Node = self.select.node.copy()
        if node.args.get("where") is not None:
            node.set("where", None)

        def substitute(inner: Node) -> Node:
            if self._is_aggregate(inner):
                key = text(self.select.resolve(inner))
                return sqlglot.parse_one(replacements[key], dialect="sqlite")
            return inner

        if replacements:
            node = node.transform(substitute)
        sql = text(node)
        extra = [f"{name} COLLATE {quote(coll)}{' DESC' if down else ''}" for name, coll, down in suffix or []]
        if suffix is None:
            extra = self._scan_suffix()
        if extra:
            order, limit = node.args.get("order"), ""
            for name in ("limit", "offset"):
                clause = node.args.get(name)
                if clause is not None:
                    limit += " " + text(clause).strip()
                    node.set(name, None)
            terms = [text(term) for term in order.expressions] if order else []
            node.set("order", None)
            sql = f"{text(node)} ORDER BY {', '.join(terms + extra)}{limit}"
        return sql

    # -- combine --------------------------------------------------------------------------------------------------

    def _combine_rows(self, ordering: list[str], *, limit: bool) -> Combine | None:
        """Keep the first limit + offset rows; ordinals break ties as vendors do."""
        if not limit or self.scan.backwards or all(self.select.table.column(name) for name in ROWID_NAMES):
            return None
        alias = quote(self.select.alias)
        arrival = next(name for name in ROWID_NAMES if self.select.table.column(name) is None)
        terms = ", ".join([*ordering, f"{alias}.{_ORDINAL}", f"{alias}.{arrival}"])
        sql = (
            f"SELECT {_ORDINAL}, {', '.join(self.partial.columns())} FROM {self.select.source} "
            f"ORDER BY {terms} LIMIT :mktsim_limit"
        )
        return self._combine(sql)

    def _combine_groups(self) -> Combine:
        keys = [quote(column.name) for column in self.partial.shipped.values()] + self.partial.keys
        group = f" GROUP BY {', '.join(keys)}" if keys else " HAVING COUNT(*) > 0"
        values = [self.partial.merged.get(name, name) for name in self.partial.columns()]
        combine = self._combine(f"SELECT MIN({_ORDINAL}), {', '.join(values)} FROM {self.select.source}{group}")
        merges = tuple(self.partial.merged.get(name, "").partition("(")[0] for name in self.partial.columns())
        in_python = not any(" COLLATE " in definition for definition in self.partial.definitions())
        return replace(combine, merges=merges) if in_python and set(merges) <= {"", *MERGES} else combine

    def _combine(self, text_: str) -> Combine:
        name = quote(self.select.table.name)
        columns = self.partial.columns()
        sql, binders = positional(text_)
        return Combine(
            table=f"CREATE TABLE {name}({', '.join([_ORDINAL + ' INTEGER', *self.partial.definitions()])})",
            insert=f"INSERT INTO {name} VALUES ({', '.join('?' * (len(columns) + 1))})",
            sql=sql,
            binders=binders,
        )

    def _plan(self, scatter: ScatterStatement, gather: str, *, combine: Combine | None = None, limit: bool) -> Plan:
        table = f"CREATE TABLE {quote(self.select.table.name)}({', '.join(self.partial.definitions())})"
        return Plan(
            statement=self.statement,
            columns=self.facts.columns,
            tier="two-phase",
            scatter=(scatter,),
            gather=gather,
            tables=(table,),
            combine=combine,
            backwards=self.scan.backwards,
            limit=self.limit if limit else None,
            rules=tuple(dict.fromkeys(self.rules)),
            needs_functions="mktsim_sum(" in scatter.sql,
        )


def collation_of(catalog: Catalog, statement: Statement, select: Select, node: Node, group: str) -> str:
    """Return the collation SQLite sorts an expression by: the one its sorter is opened with."""
    bindings = {f"mktsim_p{number}": None for number in range(1, len(statement.parameters) + 1)}
    try:
        program = catalog.program(f"SELECT 1 FROM {select.source} NOT INDEXED{group} ORDER BY ({text(node)})", bindings)
    except Error as error:
        raise Undecided(f"a fragment does not stand alone ({error})") from error
    # The sorter of ORDER BY is opened first; that of GROUP BY after it.
    info = next((str(row[5]) for row in program if row[1] in ("SorterOpen", "OpenEphemeral")), "")
    match = re.match(r"k\(\d+,-?([^,)]*)", info)
    return match.group(1) if match and match.group(1) not in ("", "B") else "BINARY"


def _varies(column: Column) -> bool:
    """Return whether equal values of a column may be spelt differently ('a' and 'A', 1 and 1.0)."""
    return column.collation.upper() != "BINARY" or affinity(column.type) == "BLOB"


def _arguments(call: Node) -> list[Node]:
    if isinstance(call, exp.Anonymous):
        return list(call.expressions)
    inner = call.this
    found = [] if inner is None or isinstance(inner, exp.Star) else [inner]
    return found + list(call.expressions)


def decompose(statement: Statement, facts: Facts, select: Select, catalog: Catalog) -> Plan:
    """Return a two-phase plan, or raise :class:`Undecided` with the reason."""
    builder = _Builder(statement, facts, select, catalog)
    return replace(with_bounds(builder, with_rounds(builder, builder.build())), single_table=True)
