"""The collect tier: ship what the statement reads, and run the user's own text over it.

Rules
-----
1. The gather has the schema's tables, views and indexes; keys are kept unless they hold within a vendor only, or turn
   out to collide. SQLite then plans the text as it would over one database.
2. A column is shipped if SQLite's authorizer says that it is read, if an index that the plan walks is ordered by it,
   or if NATURAL or USING may compare it (which the authorizer does not tell). Others are NULL in the gather.
3. A condition travels if it stands, joined by AND, in the outer WHERE, concerns one table that the statement names
   once, and if no outer join can bring back what it drops. The gather applies it again.

Full-text tables are rebuilt in the gather, so that bm25() and snippets see the statistics of the whole corpus; MATCH
travels only where nothing is ranked.

What this does not do
---------------------
It pushes no aggregate, sort or limit: see `twophase` and `whole`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from sqlglot import exp

from mktsim.sql.catalog import Catalog, Facts, Table
from mktsim.sql.lexer import Statement
from mktsim.sql.plan import Plan, ScatterStatement
from mktsim.sql.syntax import Node, aggregates, conjuncts, is_star, text
from mktsim.sqlite import quote, rows

_RANKING = {"bm25", "highlight", "snippet", "fts5_get_locale", "fts5_insttoken"}


def collect(
    statement: Statement, facts: Facts, catalog: Catalog, tree: Node | None, *, reason: str, volatile: bool
) -> Plan:
    """Return the plan that ships rows; `tree` is None where the text has no trusted parse."""
    conditions = {} if tree is None or volatile else _conditions(tree, facts, catalog)
    scatter = []
    rules = []
    for name in sorted(facts.reads.keys() | facts.opened):
        table = catalog.tables.get(name)
        if table is None or table.kind == "view":
            continue
        condition = conditions.get(name, "")
        if condition:
            rules.append(f"a condition runs at each vendor for {table.name}: it names no other table")
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
    return ScatterStatement.build(f"SELECT {', '.join(listed)} FROM {source}{condition}{order}", source, columns)


def _conditions(tree: Node, facts: Facts, catalog: Catalog) -> dict[str, str]:
    """Return, for each table some condition of the outer WHERE concerns alone, the text behind its name in FROM."""
    where = tree.args.get("where") if isinstance(tree, exp.Select) else None
    if where is None or tree.args.get("with_") or tree.args.get("with"):
        return {}
    if any(catalog.tables[name].kind == "view" for name in facts.reads if name in catalog.tables):
        return {}
    sources = dict(_sources(tree, catalog))
    uses = Counter(node.name.lower() for node in tree.find_all(exp.Table))
    pushed: dict[str, tuple[str, list[str]]] = {}
    for condition in conjuncts(where.this):
        alias = _concerns(condition, sources, catalog)
        table = sources.get(alias or "")
        if alias is None or table is None or uses[table.name.lower()] != 1 or alias not in _kept(tree, sources):
            continue
        if table.kind == "virtual" and (facts.functions & _RANKING or "rank" in _read(facts, table)):
            continue
        pushed.setdefault(table.name.lower(), (alias, []))[1].append(f"({text(condition)})")
    return {
        name: f"{'' if alias == name else f' AS {quote(alias)}'} WHERE {' AND '.join(texts)}"
        for name, (alias, texts) in pushed.items()
    }


def _read(facts: Facts, table: Table) -> set[str]:
    return {name.lower() for name in facts.reads.get(table.name.lower(), ())}


def _sources(tree: Node, catalog: Catalog) -> Iterator[tuple[str, Table | None]]:
    """Yield alias and table of what FROM joins, in order; None for what is no base table."""
    first = tree.args.get("from_") or tree.args.get("from")
    joined = [first.this] if first is not None else []
    joined += [join.this for join in tree.args.get("joins") or []]
    if first is not None:
        joined += [join.this for join in first.this.args.get("joins") or []]
    for place, node in enumerate(joined):
        table = catalog.tables.get(node.name.lower()) if isinstance(node, exp.Table) else None
        known = table is not None and table.kind in ("table", "virtual") and isinstance(node.this, exp.Identifier)
        yield (node.alias or node.name or f"?{place}").lower(), table if known else None


def _kept(tree: Node, sources: dict[str, Table | None]) -> set[str]:
    """Return the aliases of which no outer join can make a NULL row out of a dropped one."""
    first = tree.args.get("from_") or tree.args.get("from")
    joins = [*(tree.args.get("joins") or []), *((first.this.args.get("joins") if first else None) or [])]
    sides = {(join.side or "").upper() for join in joins}
    if sides <= {""}:
        return set(sources)
    return set(list(sources)[:1]) if sides <= {"", "LEFT"} else set()


def _concerns(condition: Node, sources: dict[str, Table | None], catalog: Catalog) -> str | None:
    """Return the alias of the one table whose columns a condition reads, or None."""
    if condition.find(exp.Query, exp.Exists, exp.Window) or any(
        True for _ in aggregates(condition, catalog.aggregates)
    ):
        return None
    found: set[str] = set()
    for column in condition.find_all(exp.Column):
        if is_star(column) or column.args.get("db"):
            return None
        if column.table:
            owners = [column.table.lower()]
        elif all(table is not None for table in sources.values()):
            owners = [alias for alias, table in sources.items() if table is not None and table.column(column.name)]
        else:
            return None
        table = sources.get(owners[0]) if len(owners) == 1 else None
        if table is None or table.column(column.name) is None:
            return None
        found.add(owners[0])
    return found.pop() if len(found) == 1 else None
