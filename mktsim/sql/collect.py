"""The collect tier: ship what the statement reads, and run the user's own text over it.

Rules
-----
1. The gather has the schema's tables, views and indexes; keys are kept unless they hold within a vendor only, or turn
   out to collide. SQLite then plans the text as it would over one database.
2. A column is shipped if SQLite's authorizer says that it is read, if an index that the plan walks is ordered by it,
   or if NATURAL or USING may compare it (which the authorizer does not tell). Others are NULL in the gather.
3. Conditions that rows must pass to take part at all run at the vendors: see `pushdown`. The gather applies them again.

Full-text tables are rebuilt in the gather, so that bm25() and snippets see the statistics of the whole corpus; MATCH
travels only where nothing is ranked.

What this does not do
---------------------
It pushes no aggregate, sort or limit: see `twophase` and `whole`.
"""

from __future__ import annotations

import re

from mktsim.sql.catalog import Catalog, Facts, Table
from mktsim.sql.lexer import Statement
from mktsim.sql.plan import Plan, ScatterStatement
from mktsim.sql.pushdown import conditions
from mktsim.sql.syntax import Node
from mktsim.sqlite import quote, rows


def collect(
    statement: Statement, facts: Facts, catalog: Catalog, tree: Node | None, *, reason: str, volatile: bool
) -> Plan:
    """Return the plan that ships rows; `tree` is None where the text has no trusted parse."""
    pushed = {} if tree is None or volatile else conditions(tree, facts, catalog)
    scatter = []
    rules = []
    for name in sorted(facts.reads.keys() | facts.opened):
        table = catalog.tables.get(name)
        if table is None or table.kind == "view":
            continue
        condition = pushed.get(name, "")
        if condition:
            rules.append(f"a condition runs at each vendor for {table.name}: rows that fail it take part nowhere")
        scatter.append(_ship(table, _columns(table, facts), condition))
    shipped = sum(statement_.width for statement_ in scatter)
    rules.append(f"{shipped} columns travel: SQLite's authorizer says no other is read")
    return Plan(
        statement=statement,
        columns=facts.columns,
        tier="collect",
        scatter=tuple(scatter),
        gather=statement.normal,
        tables=catalog.statements(relaxed=catalog.relaxed),
        relaxed_tables=catalog.statements(relaxed=frozenset(catalog.tables)),
        rules=tuple(rules),
        reason=reason,
    )


def rebuildable(table: Table, catalog: Catalog) -> bool:
    """Return whether a virtual table's content can be shipped row by row into another one of its kind."""
    found = rows(catalog.vendor, "SELECT sql FROM sqlite_schema WHERE name = ?", (table.name,))
    ddl = str(found[0][0]) if found else ""
    module = re.search(r"(?i)\bUSING\s+(\w+)", ddl)
    if module is None:
        return False
    return module.group(1).lower() == "rtree" or (
        module.group(1).lower() == "fts5" and not re.search(r"(?i)\bcontent\s*=", ddl)
    )


def _columns(table: Table, facts: Facts) -> set[str]:
    walked = [index for index in table.indexes if index.name.lower() in facts.opened]
    if (
        facts.compares_silently
        or table.kind == "virtual"
        or any(index.partial or index.on_expression for index in walked)
    ):
        return {column.name.lower() for column in table.columns}
    names = {name.lower() for name in facts.reads.get(table.name.lower(), ())}
    names |= {term.column.lower() for index in walked for term in index.terms if term.column is not None}
    if table.without_rowid or table.rowid_alias is not None:  # The walk of one table would be by its key.
        names |= {name.lower() for name in table.key}
    return names


def _ship(table: Table, names: set[str], condition: str) -> ScatterStatement:
    columns = [quote(column.name) for column in table.columns if column.name.lower() in names and column.shown]
    listed = columns
    if not columns:
        columns = [quote(next(column.name for column in table.columns if column.shown))]
        listed = ["NULL"]
    order = ""
    if table.rowid is not None:
        order = f" ORDER BY {table.rowid}"
    elif table.without_rowid:
        order = f" ORDER BY {', '.join(map(quote, table.key))}"
    source = quote(table.name)
    return ScatterStatement.build(
        f"SELECT {', '.join(listed)} FROM {source}{condition}{order}", source, columns, rowid=table.rowid
    )
