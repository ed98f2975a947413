"""Statements that never look across vendors: each vendor answers for itself, the gather only sorts.

Rules
-----
The shard column holds the vendor's own id in every row. So a group that has it among its keys, and a window partition
that starts with it, lies within one vendor, and whatever is computed over it (any aggregate, HAVING, bare columns,
ranks) is computed there, by SQLite, from the same rows in the same order as in one table.

Theory of operation
-------------------
The scatter is the user's statement with the values it would be sorted by as further columns; LIMIT + OFFSET travels,
since no later step drops a row. The gather sorts by the user's ORDER BY, then by what orders SQLite's output anyway:
the group keys, or the vendor.

What this does not do
---------------------
Windows that differ from each other, or whose partition starts with another column, leave an output order that is
SQLite's own affair: they are collected.
"""

from __future__ import annotations

from sqlglot import exp

from mktsim.sql.catalog import Catalog, Facts, affinity
from mktsim.sql.lexer import Statement
from mktsim.sql.plan import Limit, Plan, ScatterStatement
from mktsim.sql.syntax import Node, Select, Undecided, aggregates, is_constant_number, text, unwrap
from mktsim.sql.twophase import collation_of, scan_order
from mktsim.sqlite import Error, quote


def is_shard_column(select: Select, node: Node, catalog: Catalog) -> bool:
    """Return whether a node is the shard column, compared byte by byte."""
    name = catalog.schema.shard_column
    column = select.column(unwrap(node))
    return (
        name is not None
        and column is not None
        and column.name.lower() == name.lower()
        and column.collation.upper() == "BINARY"
        and affinity(column.type) == "TEXT"
    )


def push_whole(statement: Statement, facts: Facts, select: Select, catalog: Catalog) -> Plan:
    """Return a plan in which each vendor answers for itself, or raise :class:`Undecided`."""
    node = select.node
    if node.args.get("distinct") is not None:
        raise Undecided("DISTINCT looks across vendors")
    windows = list(node.find_all(exp.Window))
    if windows:
        order = _window_order(select, windows, catalog)
        rule = "every window's partition starts with the shard column: each lies within one vendor"
        walk = " NOT INDEXED"
        if any(" INDEX " in step for step in facts.steps):
            raise Undecided("SQLite would walk an index below the window")
    else:
        order = _group_order(select, facts, catalog)
        rule = "the shard column is a group key: each group lies within one vendor"
        walk = ""
        if scan_order(select, facts, catalog).by_rowid:
            walk = " NOT INDEXED"
        elif catalog.whole is not catalog.vendor:
            raise Undecided("SQLite would walk an index that vendors may not walk")
    return _plan(statement, facts, select, catalog, order, rule, walk)


def _window_order(select: Select, windows: list[exp.Window], catalog: Catalog) -> list[str]:
    if select.node.args.get("group") or select.node.args.get("having"):
        raise Undecided("it has both groups and windows")
    first = windows[0]
    for window in windows:
        partition = window.args.get("partition_by") or []
        if not partition or not is_shard_column(select, partition[0], catalog):
            raise Undecided("it has a window function over rows of several vendors")
        if window.args.get("alias") or [text(part) for part in partition] != [
            text(part) for part in first.args["partition_by"]
        ]:
            raise Undecided("its windows differ")
        if text(window.args.get("order") or exp.Null()) != text(first.args.get("order") or exp.Null()):
            raise Undecided("its windows differ")
    bare = select.node.copy()
    for window in list(bare.find_all(exp.Window)):
        window.replace(exp.Null())
    if any(True for _ in aggregates(bare, catalog.aggregates)):
        raise Undecided("it has both aggregates and windows")
    return [text(first.args["partition_by"][0])]


def _group_order(select: Select, facts: Facts, catalog: Catalog) -> list[str]:
    keys = select.group_keys()
    if not any(is_shard_column(select, key, catalog) for key in keys):
        raise Undecided("the shard column is no group key")
    if any(is_constant_number(key) for key in keys):
        raise Undecided("it groups by a constant")
    scan = scan_order(select, facts, catalog)
    if "GROUP BY" not in scan.sorts and scan.terms:
        raise Undecided("SQLite would group along an index")
    return [text(key) for key in keys]


def _plan(
    statement: Statement, facts: Facts, select: Select, catalog: Catalog, order: list[str], rule: str, walk: str
) -> Plan:
    node = select.node
    grouped = node.args.get("group") is not None
    group = f" GROUP BY {', '.join(order)}" if grouped else ""
    where, having = node.args.get("where"), node.args.get("having")
    terms = [(key, term) for key, term in select.order_terms() if not is_constant_number(key)]
    items = [text(select.resolve(item)) for item in select.expanded()]
    names = [f"c{place}" for place in range(len(items))]
    definitions = list(names)
    hidden: list[str] = []
    sorting: list[str] = []
    for place, (key, term) in enumerate(terms):
        written = term.copy()
        written.set("this", exp.column(f"o{place}"))
        hidden.append(text(key))
        shown = quote(collation_of(catalog, statement, select, _without_windows(key), group))
        definitions.append(f"o{place} COLLATE {shown}")
        sorting.append(text(written))
    group_keys = select.group_keys()
    down = _group_directions(node, len(group_keys)) if grouped else [""]
    for place, key_text in enumerate(order):
        collation = collation_of(catalog, statement, select, group_keys[place], "") if grouped else "BINARY"
        hidden.append(key_text)
        definitions.append(f"k{place} COLLATE {quote(collation)}")
        sorting.append(f"k{place}{down[place]}")
    columns = [definition.split()[0] for definition in definitions]
    limit_node, offset_node = node.args.get("limit"), node.args.get("offset")
    limit, tail = None, ""
    if limit_node is not None:
        skip = limit_node.args.get("offset") or (offset_node.expression if offset_node is not None else None)
        limit = Limit(text(limit_node.expression), text(skip) if skip is not None else None)
        tail = f" LIMIT {limit.limit}" + (f" OFFSET {limit.offset}" if limit.offset else "")
    sql = f"SELECT {', '.join(items + hidden)} FROM {select.source}{walk}"
    sql += f" WHERE {text(select.resolve(where.this))}" if where is not None else ""
    sql += group
    sql += f" HAVING {text(select.resolve(having.this))}" if having is not None else ""
    local = [_local_term(key, term) for key, term in terms]
    # Within a vendor the statement's own order decides: window output already is in order of the partition.
    local += [key_text + direction for key_text, direction in zip(order, down, strict=True)] if grouped else []
    if limit is not None:
        sql += (f" ORDER BY {', '.join(local)}" if local else "") + " LIMIT :mktsim_limit"
    elif terms and not grouped:
        sql += f" ORDER BY {', '.join(local)}"
    gather = f"SELECT {', '.join(names)} FROM mktsim_rows ORDER BY {', '.join(sorting)}{tail}"
    rules = [rule] + (["LIMIT + OFFSET travels: no later step drops a row"] if limit is not None else [])
    scatter = ScatterStatement.build(sql, "mktsim_rows", columns)
    try:
        catalog.vendor_steps(scatter.sql, len(scatter.binders))
    except Error as error:
        raise Undecided(f"a fragment does not stand alone ({error})") from error
    return Plan(
        statement=statement,
        columns=facts.columns,
        tier="two-phase",
        scatter=(scatter,),
        gather=gather,
        tables=(f"CREATE TABLE mktsim_rows({', '.join(definitions)})",),
        limit=limit,
        rules=tuple(rules),
    )


def _without_windows(node: Node) -> Node:
    """Return a copy whose window calls are NULL: they have no collation, and their sorters would hide ORDER BY's."""
    bare = exp.Paren(this=node.copy())
    for window in list(bare.find_all(exp.Window)):
        if window.find(exp.Collate) is not None:
            raise Undecided("a window function sorts by a collation of its own")
        window.replace(exp.Null())
    return bare


def _group_directions(node: exp.Select, keys: int) -> list[str]:
    """Return which way groups are sorted: like ORDER BY, term by term, where SQLite sees as many terms in both."""
    clause = node.args.get("order")
    terms = clause.expressions if clause else []
    if len(terms) != keys:
        return [""] * keys
    return [" DESC" if term.args.get("desc") else "" for term in terms]


def _local_term(key: Node, term: exp.Ordered) -> str:
    written = term.copy()
    written.set("this", key.copy())
    return text(written)
