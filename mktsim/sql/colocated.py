"""Joins whose tables are equated on the shard column: each vendor joins its own rows.

Rules
-----
1. The shard column holds the vendor's own id in every row. So two rows whose shard columns are equal lie at one vendor,
   and an inner join that equates them, or a LEFT JOIN whose ON does, is the union of what vendors join for themselves:
   a row without a match at its own vendor has none anywhere.
2. Every table must be connected with the first one: an inner join's by a condition that AND joins at the top of ON or
   WHERE, or by USING; a LEFT JOIN's by its own ON or USING. RIGHT and FULL joins append rows after the last vendor's.
3. What is joined is then one table, under a name of ours, and `twophase` and `whole` plan the rest of the statement
   over it. WHERE stays with the join.
4. The statement rewritten over that table must compile, with the join as a sub-query, to the program of the original:
   SQLite dissolves the sub-query, and so proves that every name was understood.
5. Rows leave a vendor's join in the order in which one SQLite would make them: its plan for the whole statement must
   begin with a scan of the first loop's table by rowid, and the vendor's plan must have the same steps. Without that,
   only groups whose merge does not look at order are pushed.

Theory of operation
-------------------
``SELECT p.name, COUNT(*) FROM p JOIN r ON r.vendorId = p.vendorId GROUP BY p.name`` is planned as
``SELECT mktsim_c0, COUNT(*) FROM mktsim_joined GROUP BY mktsim_c0``, and in the scatter ``FROM mktsim_joined`` becomes
``FROM (SELECT p.name AS mktsim_c0 FROM p JOIN r ON r.vendorId = p.vendorId) AS mktsim_joined``.

What this does not do
---------------------
Joins with sub-queries, views or virtual tables, with tables that have no shard column, and joins across vendors are
collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlglot import exp

from mktsim.sql import lexer
from mktsim.sql.catalog import Catalog, Column, Facts, Table, affinity
from mktsim.sql.lexer import PREFIX, Statement
from mktsim.sql.plan import Binder, Plan, positional
from mktsim.sql.schema import Schema
from mktsim.sql.syntax import Node, Undecided, conjuncts, is_star, is_value, text, unwrap
from mktsim.sqlite import Error, quote

_JOINED: Final = "mktsim_joined"
_CURSORS: Final = frozenset(
    ("OpenRead", "OpenEphemeral", "OpenAutoindex", "SorterOpen", "OpenPseudo", "OpenDup", "Rewind", "Last", "Next")
) | {
    "Prev", "Column", "Rowid", "IdxRowid", "IdxInsert", "IdxDelete", "IdxGT", "IdxGE", "IdxLT", "IdxLE", "SeekGE",
    "SeekGT", "SeekLE", "SeekLT", "SeekRowid", "SeekScan", "NotExists", "NotFound", "Found", "NoConflict", "NullRow",
    "Delete", "Sequence", "SequenceTest", "Sort", "SorterSort", "SorterInsert", "SorterData", "SorterNext",
    "SorterCompare", "DeferredSeek", "IfNullRow", "Insert", "NewRowid", "Close", "ResetSorter", "IfEmpty", "Count",
    "ColumnsUsed", "IfNoHope", "IfNotOpen", "ReopenIdx", "RowData", "CursorHint",
}  # fmt: skip


@dataclass(slots=True)
class _Join:
    """The tables that a FROM clause joins, by alias, and what of them the statement reads."""

    catalog: Catalog
    sources: dict[str, Table] = field(default_factory=dict)
    inner: set[str] = field(default_factory=set)  # aliases that no outer join can make NULL
    shared: set[str] = field(default_factory=set)  # columns that USING or NATURAL equates
    columns: dict[tuple[str, str], str] = field(default_factory=dict)  # (alias, column) -> our name

    def owner(self, node: exp.Column) -> tuple[str, Column] | None:
        """Return the alias and column that a column node names; None for a name that is no column."""
        if node.args.get("db"):
            raise Undecided("a column is named with its database")
        if node.table:
            table = self.sources.get(node.table.lower())
            column = table.column(node.name) if table is not None else None
            if column is None:
                raise Undecided(f"the name {node.table}.{node.name} is no column of the joined tables")
            return node.table.lower(), column
        found = [(alias, c) for alias, table in self.sources.items() if (c := table.column(node.name)) is not None]
        if len(found) > 1 and node.name.lower() not in self.shared:
            raise Undecided(f"the name {node.name!r} is in several of the joined tables")
        return found[0] if found else None

    def is_shard_column(self, node: Node) -> str | None:
        """Return the alias whose shard column a node is, or None."""
        node = unwrap(node)
        if not isinstance(node, exp.Column) or is_star(node):
            return None
        found = self.owner(node)
        name = self.catalog.schema.shard_column or ""
        return found[0] if found is not None and found[1].name.lower() == name.lower() else None

    def ours(self, alias: str, column: Column) -> str:
        """Return our name of a column."""
        return self.columns.setdefault((alias, column.name.lower()), f"mktsim_c{len(self.columns)}")


def push_join(
    statement: Statement, facts: Facts, tree: Node, catalog: Catalog, plan_over: Callable[[Schema, str], Plan]
) -> Plan:
    """Return a plan in which each vendor joins its own rows, or raise :class:`Undecided`.

    `plan_over` plans a statement over the one table of a schema.
    """
    if catalog.schema.shard_column is None:
        raise Undecided("it joins tables, and no column is known to hold the vendor's id")
    select = _plain_select(tree)
    join = _Join(catalog)
    _connect(select, join)
    rewritten = _rewrite(select, join)
    names = {name: key for key, name in join.columns.items()}
    ddl = ", ".join(replace(_column(join, *key), name=name, shown=True).definition() for name, key in names.items())
    # That of any table which is never NULL: they are all equal.
    sharded = (alias for alias, name in join.columns if name == catalog.schema.shard_column.lower())
    shard = next(
        (join.columns[alias, catalog.schema.shard_column.lower()] for alias in sharded if alias in join.inner), None
    )
    source = _source(select, join, names)
    _prove(statement, facts, rewritten, source, catalog)
    numbered = _numbered(rewritten)
    plan = plan_over(Schema((f"CREATE TABLE {_JOINED}({ddl or 'mktsim_c'})",), shard_column=shard), numbered)
    if plan.tier != "two-phase":
        raise Undecided(f"it joins tables, and of the joined rows: {plan.reason}")
    return _grafted(statement, facts, plan, source, select, join)


def _plain_select(tree: Node) -> exp.Select:
    if not isinstance(tree, exp.Select):
        raise Undecided("it is not one SELECT (set operation or VALUES)")
    args = tree.args
    if args.get("with_") or args.get("with"):
        raise Undecided("it has a common table expression")
    if any(args.get(name) for name in ("laterals", "pivots", "windows", "qualify", "match", "connect")):
        raise Undecided("it names a window")
    if any(node is not tree for node in tree.find_all(exp.Query)) or tree.find(exp.Exists):
        raise Undecided("it has a sub-query")
    return tree


def _connect(select: exp.Select, join: _Join) -> None:
    """Read the FROM clause; raise unless every table is connected with the first by its shard column."""
    first = select.args.get("from_") or select.args.get("from")
    if first is None or first.this.args.get("joins"):
        raise Undecided("its FROM is no plain join")
    _add(first.this, join)
    start = next(iter(join.sources))
    edges: list[tuple[str, str]] = []
    free: list[tuple[str, list[tuple[str, str]]]] = []
    for clause in select.args.get("joins") or []:
        side, kind, method = ((clause.args.get(name) or "").upper() for name in ("side", "kind", "method"))
        if side not in ("", "LEFT") or kind not in ("", "INNER", "CROSS", "OUTER") or method not in ("", "NATURAL"):
            raise Undecided(f"it has a {' '.join(filter(None, (method, side, kind)))} join")
        before = list(join.sources)
        alias = _add(clause.this, join)
        own: list[tuple[str, str]] = []
        using = [name.name.lower() for name in clause.args.get("using") or []]
        if method:
            mine = join.sources[alias]
            using = [
                c.name.lower() for c in mine.columns if any(join.sources[other].column(c.name) for other in before)
            ]
        join.shared.update(using)
        if (join.catalog.schema.shard_column or "").lower() in using:
            own.append((start, alias))  # USING takes the first table that has the column, and all have it.
        on = clause.args.get("on")
        own += _equations(on, join) if on is not None else []
        if side == "LEFT":
            if not any(alias in edge and edge[0] != edge[1] for edge in own):
                raise Undecided("a LEFT JOIN does not equate the shard column")
            # Its edges reach rows that may be NULL; they say nothing of the tables on the left.
            free.append((alias, [edge for edge in own if alias in edge]))
        else:
            join.inner.add(alias)
            edges += own
    where = select.args.get("where")
    edges += [edge for edge in _equations(where.this, join) if set(edge) <= join.inner] if where is not None else []
    reached = {start}
    for _ in join.sources:
        reached |= {alias for edge in edges if reached & set(edge) and set(edge) <= join.inner for alias in edge}
        reached |= {alias for alias, own in free if any(reached & (set(edge) - {alias}) for edge in own)}
    if reached != set(join.sources):
        raise Undecided("it joins across vendors: not every table is equated on the shard column")
    if len(join.sources) < 2:
        raise Undecided("it joins nothing")


def _add(node: Node, join: _Join) -> str:
    catalog = join.catalog
    table = catalog.tables.get(node.name.lower()) if isinstance(node, exp.Table) else None
    if table is None or table.kind != "table" or not isinstance(node.this, exp.Identifier) or node.args.get("joins"):
        raise Undecided("it joins what is no plain table")
    if node.args.get("db") and node.args["db"].name.lower() != "main":
        raise Undecided("it joins what is no plain table")
    column = table.column(catalog.schema.shard_column or "")
    if column is None or column.collation.upper() != "BINARY" or affinity(column.type) != "TEXT":
        raise Undecided(f"it joins {table.name}, which has no shard column that is compared byte by byte")
    alias = (node.alias or table.name).lower()
    if alias in join.sources:
        raise Undecided("two joined tables have one name")
    if not join.sources:
        join.inner.add(alias)
    join.sources[alias] = table
    return alias


def _equations(condition: Node, join: _Join) -> list[tuple[str, str]]:
    """Return the pairs of tables whose shard columns a condition equates."""
    found = []
    for each in conjuncts(condition):
        if isinstance(each, exp.EQ):
            left, right = join.is_shard_column(each.left), join.is_shard_column(each.right)
            if left is not None and right is not None:
                found.append((left, right))
    return found


def _rewrite(select: exp.Select, join: _Join) -> exp.Select:
    """Return the statement over the joined rows: their columns under our names, without FROM's joins and WHERE."""
    node = select.copy()
    node.set("where", None)
    node.set("joins", None)
    node.set("from_" if "from_" in node.args else "from", exp.From(this=exp.to_table(_JOINED)))
    aliases = {item.alias.lower() for item in node.expressions if isinstance(item, exp.Alias)}
    items: list[Node] = []
    for item in node.expressions:
        items += list(_expanded(item, join)) if is_star(item) else [item]
    node.set("expressions", items)
    clause = node.args.get("order")
    kept = set()
    for term in clause.expressions if clause else []:
        inner = unwrap(term.this)
        while isinstance(inner, exp.Collate):
            inner = unwrap(inner.this)
        # A whole term of ORDER BY is the result of that name rather than a column.
        if isinstance(inner, exp.Column) and not inner.table and inner.name.lower() in aliases:
            kept.add(id(inner))
    for column in list(node.find_all(exp.Column)):
        if is_star(column) or id(column) in kept or column.name.startswith("mktsim_c"):
            continue
        found = join.owner(column)
        if found is not None:
            column.replace(exp.column(join.ours(*found)))
    return node


def _expanded(item: Any, join: _Join) -> Iterator[Node]:
    if join.shared:
        raise Undecided("it selects * of a join by USING or NATURAL")
    wanted = item.table.lower() if isinstance(item, exp.Column) else ""
    if wanted and wanted not in join.sources:
        raise Undecided(f"the name {item.table}.* is no joined table")
    for alias, table in join.sources.items():
        for column in table.columns if wanted in ("", alias) else ():
            if column.shown:
                yield exp.column(join.ours(alias, column))


def _column(join: _Join, alias: str, name: str) -> Column:
    column = join.sources[alias].column(name)
    assert column is not None, "only columns of the joined tables are named"
    return column


def _source(select: exp.Select, join: _Join, names: dict[str, tuple[str, str]]) -> str:
    """Return the join as a sub-query, in normalised text."""
    inner = exp.Select()
    for part in ("from_", "from", "joins", "where"):
        if select.args.get(part):
            value = select.args[part]
            inner.set(part, [each.copy() for each in value] if isinstance(value, list) else value.copy())
    listed = ", ".join(
        f"{quote(alias)}.{quote(_column(join, alias, name).name)} AS {ours}" for ours, (alias, name) in names.items()
    )
    return f"(SELECT {listed or 'NULL AS mktsim_c'} {text(inner).removeprefix('SELECT').strip()}) AS {_JOINED}"


def _prove(statement: Statement, facts: Facts, rewritten: Node, source: str, catalog: Catalog) -> None:
    """Raise unless the rewritten statement compiles to the original's program, cursors renumbered."""
    bindings = {f"{PREFIX}{number}": None for number in range(1, len(statement.parameters) + 1)}
    over = text(rewritten).replace(f"FROM {_JOINED}", f"FROM {source}", 1)
    try:
        one, other = catalog.program(statement.normal, bindings), catalog.program(over, bindings)
    except (Error, UnicodeDecodeError) as error:
        raise Undecided(f"a fragment does not stand alone ({error})") from error
    if _renumbered(one) != _renumbered(other):
        raise Undecided("SQLite does not compile the join as part of the statement")


def _renumbered(program: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Return a program whose cursors are numbered in the order in which they are named."""
    numbers: dict[object, int] = {}
    made = []
    for row in program:
        address, opcode, *operands = row
        if opcode in _CURSORS:
            operands[0] = numbers.setdefault(operands[0], len(numbers))
        for place, opcodes in ((1, ("OpenDup",)), (2, ("SorterData", "DeferredSeek"))):
            if opcode in opcodes:
                operands[place] = numbers.setdefault(operands[place], len(numbers))
        if opcode == "Noop":
            operands = []
        made.append((address, opcode, *operands))
    return made


def _numbered(rewritten: Node) -> str:
    """Return normalised text as a statement to be read: parameters keep their numbers."""
    return "".join(
        f"?{piece[len(PREFIX) + 1 :]}" if kind == "parameter" and piece.startswith(f":{PREFIX}") else piece
        for kind, piece in lexer.tokens(text(rewritten))
    )


def _grafted(statement: Statement, facts: Facts, plan: Plan, source: str, select: exp.Select, join: _Join) -> Plan:
    """Return the plan over the joined rows as one over the tables themselves."""
    catalog = join.catalog
    scatter = tuple(replace(each, **_with_source(each.sql, each.binders, source)) for each in plan.scatter)
    ungrouped = plan.ungrouped
    if ungrouped is not None:
        ungrouped = replace(ungrouped, **_with_source(ungrouped.sql, ungrouped.binders, source))
    rounds = plan.rounds
    if rounds is not None:
        rounds = replace(
            rounds,
            **{
                name: replace(query, **_with_source(query.sql, query.binders, source))
                for name in ("first", "above", "below", "certificate")
                for query in [getattr(rounds, name)]
            },
        )
    walk = [step for step in facts.steps if not step.startswith("USE TEMP B-TREE FOR ")]
    try:
        steps = [step for each in scatter for step in catalog.vendor_steps(each.sql, len(each.binders))]
    except Error as error:
        raise Undecided(f"a fragment does not stand alone ({error})") from error
    vendors = [step for step in steps if not step.startswith("USE TEMP B-TREE FOR ")]
    first = walk[0] if walk else ""
    in_order = (
        walk == vendors
        and not facts.reverse
        and first.startswith("SCAN ")
        and " " not in first.removeprefix("SCAN ")
        and not any(table.without_rowid for table in join.sources.values())
    )
    merges = plan.combine is not None and plan.limit is None and not plan.backwards
    blind = merges and (" GROUP BY " in plan.combine.sql or " HAVING " in plan.combine.sql)  # type: ignore[union-attr]
    if not in_order and not blind:
        raise Undecided("a vendor would join in another order than one table of all rows")
    if any("GROUP BY" in word for word in (str(select.args.get("group") or ""),)) and not any(
        "FOR GROUP BY" in step for step in facts.steps
    ):
        raise Undecided("SQLite would group along an index")
    return replace(
        plan,
        statement=statement,
        columns=facts.columns,
        scatter=scatter,
        rounds=rounds,
        top=None,
        ungrouped=ungrouped,
        single_table=in_order,
        shard_values=_shard_values(select, join),
        rules=("every joined table is equated on the shard column: rows that match lie at one vendor", *plan.rules),
    )


def _with_source(sql: str, binders: tuple[Binder, ...], source: str) -> dict[str, Any]:
    """Return the text and binders with the join in place of our table."""
    marker = f"FROM {quote(_JOINED)}"
    parts = sql.split(marker)
    joined, inner = positional(source)
    made: list[Binder] = []
    rest = list(binders)
    for part in parts[:-1]:
        count = sum(kind == "parameter" for kind, _ in lexer.tokens(part))
        made += [*rest[:count], *inner]
        rest = rest[count:]
    # Our table has no index, and a sub-query may not be told to use none.
    pieces = [parts[0], *(part.removeprefix(" NOT INDEXED") for part in parts[1:])]
    return {"sql": f"FROM {joined}".join(pieces), "binders": (*made, *rest)}


def _shard_values(select: exp.Select, join: _Join) -> tuple[str, ...] | None:
    """Return SQL of the values that WHERE allows the shard column of a table that is never NULL."""
    where = select.args.get("where")
    for each in conjuncts(where.this) if where is not None else ():
        if isinstance(each, exp.EQ):
            for this, other in ((each.left, each.right), (each.right, each.left)):
                if is_value(other) and join.is_shard_column(this) in join.inner:
                    return (text(other),)
        elif (
            isinstance(each, exp.In)
            and each.expressions
            and all(map(is_value, each.expressions))
            and join.is_shard_column(each.this) in join.inner
        ):
            return tuple(map(text, each.expressions))
    return None
