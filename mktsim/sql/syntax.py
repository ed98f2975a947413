"""Reading a statement's structure, with a parser that SQLite keeps honest.

Theory of operation
-------------------
sqlglot parses; it is not SQLite's parser, and misreads some texts (``CAST(x AS NUMERIC)``, ``1_000``).
So a tree is used only if the text generated from it compiles, on a schema-only database, to the very program that the
original compiles to. What fails that test, or does not parse, has no tree, and its statement is collected instead.

A replaced node is always atomic (a column in place of an aggregate call), so that operator precedence in the generated
text remains SQLite's to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from mktsim.sql.catalog import Catalog, Column, Table
from mktsim.sql.lexer import PLUS, PREFIX, Statement, keep_unary_plus
from mktsim.sqlite import Error, quote

Node = exp.Expr
_LEAVES = (exp.Column, exp.Identifier, exp.Literal, exp.Placeholder)


def text(node: Node) -> str:
    """Return a node as SQLite text."""
    # Writing a tree may rewrite it, so that it is copied; a leaf cannot be, and most calls are for leaves.
    # Only unary plus is ever called by its stand-in's name; +(x) is +x.
    return node.sql(dialect="sqlite", copy=not isinstance(node, _LEAVES)).replace(f"{PLUS.upper()}(", "+(")


def parse(statement: Statement, catalog: Catalog) -> Node | str:
    """Return the statement's tree, or the reason why there is none."""
    bindings = {f"{PREFIX}{number}": None for number in range(1, len(statement.parameters) + 1)}
    try:
        tree = sqlglot.parse_one(keep_unary_plus(statement.normal), dialect="sqlite")
        for join in list(tree.find_all(exp.Join)):
            # A comma is read as CROSS JOIN, which in SQLite fixes the order of the loops; only a written one has this.
            if join.args.get("kind") == "CROSS" and "pivots" not in join.args:
                join.set("kind", None)
        again = text(tree)
        if _canonical(catalog.program(again, bindings)) == _canonical(catalog.program(statement.normal, bindings)):
            return tree
    except (SqlglotError, Error, RecursionError, ValueError) as error:
        return f"the parser does not read it ({type(error).__name__})"
    return "the parser reads it differently from SQLite"


#: Names under which SQLite has one and the same function, as they stand in a program.
_SYNONYMS = {"substring": "substr", "string_agg": "group_concat", "if": "iif"}


def _canonical(program: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [
        (
            *row[:5],
            _SYNONYMS.get(str(row[5]).split("(")[0], str(row[5]).split("(")[0]),
            str(row[5]).split("(")[1:],
            row[6],
        )
        if row[1] in ("Function", "PureFunc", "AggStep", "AggStep1", "AggFinal")
        else row
        for row in program
    ]


@dataclass(frozen=True, slots=True)
class Select:
    """A SELECT over one base table, with its names resolved as SQLite resolves them.

    Attributes
    ----------
    node : Node
        The parsed statement.
    table : Table
        The table it reads.
    alias : str
        The name by which columns may be qualified.
    """

    node: exp.Select
    table: Table
    alias: str

    @property
    def source(self) -> str:
        """The FROM clause's table, quoted, with its alias."""
        name = quote(self.table.name)
        return name if self.alias == self.table.name else f"{name} AS {quote(self.alias)}"

    @property
    def items(self) -> list[Node]:
        """The select list, aliases removed."""
        return [item.this if isinstance(item, exp.Alias) else item for item in self.node.expressions]

    def expanded(self) -> Iterator[Node]:
        """Yield the select list with ``*`` written out."""
        for item in self.items:
            if is_star(item):
                for column in self.table.columns:
                    if column.shown:
                        yield exp.column(exp.to_identifier(column.name, quoted=True))
            else:
                yield item

    @property
    def has_star(self) -> bool:
        """Whether the select list has ``*`` or ``t.*``."""
        return any(is_star(item) for item in self.node.expressions)

    def aliases(self) -> dict[str, Node]:
        """Result names given with AS, in lower case, and what they stand for; the first of a name wins."""
        named: dict[str, Node] = {}
        for item in self.node.expressions:
            if isinstance(item, exp.Alias):
                named.setdefault(item.alias.lower(), item.this)
        return named

    def column(self, node: Node) -> Column | None:
        """Return the table's column that a column node names, or None."""
        if not isinstance(node, exp.Column) or is_star(node):
            return None
        if node.args.get("db") or (node.table and node.table.lower() != self.alias.lower()):
            return None
        return self.table.column(node.name)

    def resolve(self, node: Node) -> Node:
        """Return a copy in which every result alias is replaced by what it stands for.

        Raises
        ------
        Undecided
            Where a name is neither a column nor an alias (SQLite may read it as a string).
        """
        aliases = self.aliases()

        def substitute(inner: Node) -> Node:
            if isinstance(inner, exp.Column) and not is_star(inner) and self.column(inner) is None:
                target = aliases.get(inner.name.lower()) if not inner.table else None
                if target is None:
                    raise Undecided(f"the name {inner.name!r} is no column of {self.table.name}")
                return exp.Paren(this=target.copy())
            return inner

        return node.copy().transform(substitute)

    def order_terms(self) -> list[tuple[Node, exp.Ordered]]:
        """Return the ORDER BY terms, each resolved: alias first, then position, then column."""
        clause = self.node.args.get("order")
        terms = []
        for term in clause.expressions if clause else []:
            named = self._through_collate(term.this, self._alias)
            terms.append((named if named is not None else self._at(term.this), term))
        return [(self.resolve(node), term) for node, term in terms]

    def group_keys(self) -> list[Node]:
        """Return the GROUP BY terms, each resolved: position, then column, then alias."""
        clause = self.node.args.get("group")
        if clause is None:
            return []
        if any(clause.args.get(extra) for extra in ("rollup", "cube", "grouping_sets", "totals", "all")):
            raise Undecided("GROUP BY has an extension that SQLite has not")
        return [self.resolve(self._at(term)) for term in clause.expressions]

    def _alias(self, node: Node) -> Node | None:
        if isinstance(node, exp.Column) and not is_star(node) and not node.table:
            return self.aliases().get(node.name.lower())
        return None

    def _through_collate(self, node: Node, find: Callable[[Node], Node | None]) -> Node | None:
        """Apply `find` to what stands inside parentheses and COLLATE, and put the COLLATE around what it finds."""
        inner = unwrap(node)
        if isinstance(inner, exp.Collate):
            found = self._through_collate(inner.this, find)
            return exp.Collate(this=exp.Paren(this=found.copy()), expression=inner.expression.copy()) if found else None
        return find(inner)

    def _at(self, node: Node) -> Node:
        """Return the select item a position names, or the node itself."""
        found = self._through_collate(node, self._position)
        return node if found is None else found

    def _position(self, node: Node) -> Node | None:
        if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit():
            listed = list(self.expanded())
            place = int(node.this) - 1
            if not 0 <= place < len(listed):
                raise Undecided("a position is out of range")
            return listed[place]
        return None


class Undecided(Exception):
    """The planner cannot prove a rule applies; the message is the reason shown by explain()."""


def conjuncts(node: Node) -> Iterator[Node]:
    """Yield the conditions that AND joins at the top of a tree."""
    node = unwrap(node)
    if isinstance(node, exp.And):
        yield from conjuncts(node.left)
        yield from conjuncts(node.right)
    else:
        yield node


def is_value(node: Node) -> bool:
    """Return whether a node is a literal or a parameter."""
    node = unwrap(node)
    return isinstance(node, exp.Literal | exp.Null) or (isinstance(node, exp.Placeholder) and bool(node.this))


def equated(select: Select, condition: Node) -> tuple[Column, Node] | None:
    """Return the column and the value that a condition ``column = value`` equates, or None."""
    if isinstance(condition, exp.EQ):
        for this, other in ((condition.left, condition.right), (condition.right, condition.left)):
            column = select.column(unwrap(this))
            if column is not None and is_value(other):
                return column, other
    return None


def is_star(node: Node) -> bool:
    """Return whether a node is ``*`` or ``t.*``."""
    return isinstance(node, exp.Star) or (isinstance(node, exp.Column) and isinstance(node.this, exp.Star))


def unwrap(node: Node) -> Node:
    """Return what stands inside parentheses."""
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def single_select(tree: Node, catalog: Catalog, *, windows: bool = False) -> Select:
    """Return the tree as a SELECT over one base table, or raise :class:`Undecided` with the reason."""
    if not isinstance(tree, exp.Select):
        raise Undecided("it is not one SELECT (set operation or VALUES)")
    args = tree.args
    if args.get("with_") or args.get("with"):
        raise Undecided("it has a common table expression")
    if any(args.get(name) for name in ("joins", "laterals", "pivots", "windows", "qualify", "match", "connect")):
        raise Undecided("it joins tables or names a window")
    source = args.get("from_") or args.get("from")
    table_node = source.this if source is not None else None
    if not isinstance(table_node, exp.Table) or not isinstance(table_node.this, exp.Identifier):
        raise Undecided("its FROM is no plain table")
    if table_node.args.get("joins") or (table_node.args.get("db") and table_node.args["db"].name.lower() != "main"):
        raise Undecided("its FROM is no plain table")
    if any(node is not tree for node in tree.find_all(exp.Query)) or tree.find(exp.Exists):
        raise Undecided("it has a sub-query")
    if not windows and tree.find(exp.Window):
        raise Undecided("it has a window function")
    table = catalog.tables.get(table_node.name.lower())
    if table is None or table.kind != "table":
        raise Undecided(f"{table_node.name} is a {table.kind if table else 'temporary name'}, not a table")
    distinct = args.get("distinct")
    if distinct is not None and distinct.args.get("on"):
        raise Undecided("DISTINCT ON is not SQLite's")
    alias = table_node.alias or table.name
    return Select(tree, table, alias)


def aggregates(node: Node, known: frozenset[str]) -> Iterator[Node]:
    """Yield the aggregate calls in a tree, outermost first, each with its FILTER."""
    if isinstance(node, exp.Filter) and aggregate_name(node.this, known):
        yield node
        return
    if aggregate_name(node, known):
        yield node
        return
    for child in node.iter_expressions():
        yield from aggregates(child, known)


def aggregate_name(node: Node, known: frozenset[str]) -> str | None:
    """Return the lower-case name of the aggregate that a node calls, or None."""
    if isinstance(node, exp.Min | exp.Max):
        return None if node.expressions else type(node).__name__.lower()
    if isinstance(node, exp.Anonymous):
        name = str(node.this).lower()
        return name if name in known else None
    if isinstance(node, exp.Func) and not isinstance(node, exp.Binary):
        # The name as SQLite will read it: sqlglot's own name for a function may be another dialect's. It counts AND, OR
        # and some operators among the functions, which begin with whatever stands on their left.
        name = text(node).split("(", 1)[0].strip().lower()
        return name if name in known else None
    return None


def is_constant_number(node: Node) -> bool:
    """Return whether ORDER BY or GROUP BY would take the node for a position."""
    while isinstance(node, exp.Paren | exp.Neg | exp.Collate):
        node = node.this
    return isinstance(node, exp.Literal) and not node.is_string


def walk_outside(node: Node, stop: Callable[[Node], bool]) -> Iterator[Node]:
    """Yield nodes top-down without entering those at which `stop` holds."""
    if stop(node):
        return
    yield node
    for child in node.iter_expressions():
        yield from walk_outside(child, stop)
