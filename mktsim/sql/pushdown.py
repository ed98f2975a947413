"""Which rows of each table can matter to a statement that is collected: conditions that run at the vendors.

Rules
-----
1. A condition travels for one occurrence of a table if it stands in that occurrence's own SELECT, joined by AND in
   WHERE or in an ON, and concerns its columns alone: rows that fail it never take part there. The gather applies the
   whole statement again.
2. Of conditions joined by OR, each with a part that concerns the table alone, the parts joined by OR travel.
3. ``a.x = b.y AND a.x = 5`` lets ``b.y = 5`` travel, where both columns have one affinity and compare byte by byte.
4. Outer joins bring back rows without a match. WHERE then says something only of tables that stand before the first
   LEFT JOIN; ON of a LEFT JOIN only of its right-hand table. With RIGHT or FULL nothing travels.
5. A table that occurs several times is needed by each occurrence: the conditions are joined by OR, and where one
   occurrence has none, nothing travels.
6. A condition that could fail (``json_extract`` of bad text) travels only from a SELECT over that one table: elsewhere
   one SQLite might never have computed it for a row.

What this does not do
---------------------
A semi-join (ask one table first, then another for the keys found) would need a second round; joins of a small and a
large table across vendors therefore ship what passes the large one's own conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sqlglot import exp

from mktsim.sql.catalog import Catalog, Column, Facts, Table, affinity
from mktsim.sql.syntax import Node, aggregates, conjuncts, is_star, is_value, text, unwrap
from mktsim.sqlite import quote

_RANKING = {"bm25", "highlight", "snippet", "fts5_get_locale", "fts5_insttoken"}
#: Functions that never fail; what sqlglot takes for an operator has none of these names.
_SAFE: Final = frozenset(
    ("lower", "upper", "length", "substr", "substring", "trim", "ltrim", "rtrim", "coalesce", "ifnull", "nullif")
) | {
    "typeof",
    "round",
    "instr",
    "replace",
    "hex",
    "unicode",
    "iif",
    "date",
    "time",
    "datetime",
    "julianday",
    "strftime",
}
_OPERATORS: Final = (
    exp.Binary, exp.Unary, exp.Condition, exp.Between, exp.In, exp.Literal, exp.Identifier, exp.Case, exp.If, exp.Cast,
    exp.DataType, exp.Tuple, exp.Collate,
)  # fmt: skip


@dataclass(slots=True)
class _Scope:
    """One SELECT: what its FROM joins, and which conditions rows must pass to take part."""

    catalog: Catalog
    sources: dict[str, Table | None] = field(default_factory=dict)  # None for what is no base table
    conditions: list[tuple[Node, frozenset[str] | None]] = field(default_factory=list)  # and of whom they say something

    def owner(self, column: exp.Column) -> tuple[str, Column] | None:
        """Return the alias and column that a node names here, or None where it may name something else."""
        if is_star(column) or column.args.get("db"):
            return None
        if column.table:
            aliases = [column.table.lower()]
        elif None in self.sources.values():
            return None
        else:
            aliases = [
                alias for alias, table in self.sources.items() if table is not None and table.column(column.name)
            ]
        table = self.sources.get(aliases[0]) if len(aliases) == 1 else None
        found = table.column(column.name) if table is not None else None
        return (aliases[0], found) if found is not None else None

    def concerns(self, condition: Node) -> str | None:
        """Return the alias of the one table whose columns a condition reads, or None."""
        if condition.find(exp.Query, exp.Exists, exp.Window) or any(
            True for _ in aggregates(condition, self.catalog.aggregates)
        ):
            return None
        owners = [self.owner(column) for column in condition.find_all(exp.Column)]
        aliases = {owner[0] for owner in owners if owner is not None}
        return aliases.pop() if len(aliases) == 1 and None not in owners else None

    def needed(self, alias: str) -> list[Node]:
        """Return the conditions that a row of one table must pass to take part."""
        found = []
        for condition, about in self.conditions:
            if about is None or alias in about:
                found += self._implied(condition, alias)
        return found

    def _implied(self, condition: Node, alias: str) -> list[Node]:
        if self.concerns(condition) == alias:
            return [condition] if len(self.sources) == 1 or _is_safe(condition) else []
        branches = list(_disjuncts(condition))
        if len(branches) < 2:
            return []
        parts = []
        for branch in branches:
            mine = [part for each in conjuncts(branch) for part in self._implied(each, alias)]
            if not mine:
                return []
            parts.append(_joined(exp.And, mine))
        return [_joined(exp.Or, parts)]

    def carry_constants(self) -> None:
        """Add what follows from equal columns of inner tables: a comparison with constants holds for both."""
        everybody = frozenset(self.sources)
        sure = [condition for condition, about in self.conditions if about is None or about == everybody]
        pairs: list[tuple[exp.Column, exp.Column]] = []
        for condition in sure:
            if isinstance(condition, exp.EQ):
                left, right = unwrap(condition.left), unwrap(condition.right)
                if isinstance(left, exp.Column) and isinstance(right, exp.Column):
                    one, other = self.owner(left), self.owner(right)
                    if one is not None and other is not None and _compare_alike(one[1], other[1]):
                        pairs += [(left, right), (right, left)]
        for condition in sure:
            compared = _compared_with_constants(condition)
            mine = self.owner(compared) if compared is not None else None
            for left, right in pairs if mine is not None else ():
                if self.owner(left) == mine:
                    moved = condition.copy()
                    for column in list(moved.find_all(exp.Column)):
                        column.replace(right.copy())
                    self.conditions.append((moved, None))


def conditions(tree: Node, facts: Facts, catalog: Catalog) -> dict[str, str]:
    """Return, for each table of which not every row matters, the text behind its name in FROM.

    Parameters
    ----------
    tree : Node
        The statement, of any form.
    facts, catalog
        What SQLite says of it and of the schema.
    """
    if any(catalog.tables[name].kind == "view" for name in facts.reads if name in catalog.tables):
        return {}
    named = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    # By table: for each occurrence its alias and conditions; None where an occurrence is not understood.
    found: dict[str, list[tuple[str, list[Node]]]] = {}
    seen: set[int] = set()
    for select in tree.find_all(exp.Select):
        scope = _scope(select, catalog, named)
        for alias, node in _tables(select):
            table = scope.sources.get(alias)
            if table is not None:
                seen.add(id(node))
                found.setdefault(table.name.lower(), []).append((alias, scope.needed(alias)))
    for node in tree.find_all(exp.Table):
        if id(node) not in seen:
            found.pop(node.name.lower(), None)
            found[node.name.lower()] = []
    pushed = {}
    for name, occurrences in found.items():
        table = catalog.tables.get(name)
        if table is None or not occurrences or not all(needed for _, needed in occurrences):
            continue
        if table.kind == "virtual" and (facts.functions & _RANKING or "rank" in _read(facts, table)):
            continue
        if len(occurrences) == 1:
            alias, needed = occurrences[0]
            source, texts = ("" if alias == name else f" AS {quote(alias)}"), [" AND ".join(_texts(needed))]
        elif table.kind == "virtual":
            continue
        else:
            source, texts = "", [" AND ".join(_texts(map(_unqualified, needed))) for _, needed in occurrences]
        whole = texts[0] if len(texts) == 1 else " OR ".join(f"({each})" for each in dict.fromkeys(texts))
        pushed[name] = f"{source} WHERE {whole}"
    return pushed


def _texts(nodes: Iterator[Node] | list[Node]) -> list[str]:
    return list(dict.fromkeys(f"({text(node)})" for node in nodes))


def _unqualified(node: Node) -> Node:
    def bare(inner: Node) -> Node:
        return exp.Column(this=inner.this.copy()) if isinstance(inner, exp.Column) else inner

    return node.transform(bare)


def _read(facts: Facts, table: Table) -> set[str]:
    return {name.lower() for name in facts.reads.get(table.name.lower(), ())}


def _tables(select: exp.Select) -> Iterator[tuple[str, Node]]:
    """Yield alias and node of what a SELECT's own FROM joins, in order."""
    first = select.args.get("from_") or select.args.get("from")
    joined = [first.this, *(join.this for join in first.this.args.get("joins") or [])] if first is not None else []
    joined += [join.this for join in select.args.get("joins") or []]
    for place, node in enumerate(joined):
        yield (node.alias or node.name or f"?{place}").lower(), node


def _scope(select: exp.Select, catalog: Catalog, named: set[str]) -> _Scope:
    scope = _Scope(catalog)
    for place, (alias, node) in enumerate(_tables(select)):
        table = catalog.tables.get(node.name.lower()) if isinstance(node, exp.Table) else None
        plain = table is not None and table.kind in ("table", "virtual") and isinstance(node.this, exp.Identifier)
        if alias in scope.sources or (isinstance(node, exp.Table) and node.name.lower() in named):
            plain = False
        scope.sources[alias if alias not in scope.sources else f"?{place}"] = table if plain else None
    first = select.args.get("from_") or select.args.get("from")
    joins = [*((first.this.args.get("joins") if first else None) or []), *(select.args.get("joins") or [])]
    sides = [(join.args.get("side") or "").upper() for join in joins]
    if not set(sides) <= {"", "LEFT"}:
        return scope
    aliases = list(scope.sources)
    outer = sides.index("LEFT") if "LEFT" in sides else len(joins)
    where = select.args.get("where")
    before = None if outer == len(joins) else frozenset(aliases[: outer + 1])
    for place, join in enumerate(joins):
        on = join.args.get("on")
        about = frozenset((aliases[place + 1],)) if sides[place] == "LEFT" else before
        scope.conditions += [(each, about) for each in conjuncts(on)] if on is not None else []
    scope.conditions += [(each, before) for each in conjuncts(where.this)] if where is not None else []
    scope.carry_constants()
    return scope


def _disjuncts(node: Node) -> Iterator[Node]:
    node = unwrap(node)
    if isinstance(node, exp.Or):
        yield from _disjuncts(node.left)
        yield from _disjuncts(node.right)
    else:
        yield node


def _joined(kind: type[exp.And] | type[exp.Or], nodes: list[Node]) -> Node:
    whole = nodes[0]
    for node in nodes[1:]:
        whole = kind(this=exp.Paren(this=whole.copy()), expression=exp.Paren(this=node.copy()))
    return whole


def _is_safe(condition: Node) -> bool:
    """Return whether a condition can be computed for any row without an error."""
    for node in condition.walk():
        if isinstance(node, exp.Escape | exp.Match | exp.RegexpLike):
            return isinstance(node, exp.Match)  # A bad query fails for every row, or for none.
        if isinstance(node, exp.Func) and not isinstance(node, exp.And | exp.Or | exp.Case | exp.If | exp.Cast):
            if text(node).split("(", 1)[0].strip().lower() not in _SAFE:
                return False
        elif not isinstance(node, _OPERATORS) and not isinstance(node, exp.Column | exp.Placeholder | exp.Null):
            return False
    return True


def _compare_alike(one: Column, other: Column) -> bool:
    return affinity(one.type) == affinity(other.type) and one.collation.upper() == other.collation.upper() == "BINARY"


def _compared_with_constants(condition: Node) -> exp.Column | None:
    """Return the column that a condition compares with nothing but constants, or None."""
    if isinstance(condition, exp.EQ | exp.LT | exp.LTE | exp.GT | exp.GTE):
        sides = [unwrap(condition.left), unwrap(condition.right)]
        if is_value(sides[0]):
            sides.reverse()
        constant = is_value(sides[1])
    elif isinstance(condition, exp.In):
        sides = [unwrap(condition.this)]
        constant = bool(condition.expressions) and all(map(is_value, condition.expressions))
    elif isinstance(condition, exp.Between):
        sides = [unwrap(condition.this)]
        constant = is_value(condition.args["low"]) and is_value(condition.args["high"])
    else:
        return None
    return sides[0] if constant and isinstance(sides[0], exp.Column) and not is_star(sides[0]) else None
