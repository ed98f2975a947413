"""Top-k by a sum of non-negative values: which statements may be answered in three rounds, and what each round asks.

Rules
-----
1. The statement is ``SELECT … GROUP BY columns ORDER BY aggregate DESC … LIMIT k``, without HAVING and DISTINCT, whose
   first sort term is a COUNT, SUM or TOTAL. Its partials merge in any order and its keys are spelt in one way only.
2. A count is never negative. A sum is certified by each vendor that is asked to leave groups out: no negative value, no
   text or blob among those summed. Where a certificate fails, every group is shipped.
3. A group is left out only where its largest possible total is below the k-th total known: strictly, so that all ties
   travel. Bounds are widened by a millionth, far beyond any rounding, because only the gather sums exactly.
4. Nothing that could fail for a group left out may stand in the statement: its functions are of a short list, and a
   sum of integers elsewhere in it must be certified not to overflow.
5. Rounds see several snapshots of a vendor. The second and third carry fingerprints of its groups, and of what the
   first sent; where two differ, somebody wrote in between, and every group is shipped in one snapshot.

Source: Cao and Wang, Efficient Top-K Query Calculation in Distributed Networks, PODC 2004 (TPUT). The rounds themselves
are run by `mktsim.fanout.threshold`.

What this does not do
---------------------
AVG, MIN and MAX have no bound that grows with the vendors that answer; groups of expressions and of columns whose equal
values may be spelt differently ('a' and 'A') ship every group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sqlglot import exp

from mktsim.sql.plan import Binder, Limit, Plan, positional
from mktsim.sql.syntax import Node, aggregate_name, is_value, text, unwrap
from mktsim.sqlite import Error, quote

if TYPE_CHECKING:
    from mktsim.sql.twophase import _Builder

#: Functions that never fail, whatever the values; LIKE and GLOB where the pattern is a short text.
NEVER_FAIL: Final = frozenset(
    ("count", "sum", "avg", "total", "min", "max", "lower", "upper", "length", "substr", "substring", "trim", "ltrim")
) | {"rtrim", "coalesce", "ifnull", "nullif", "typeof", "round", "instr", "like", "glob", "iif", "unlikely"}
#: Characters of the longest text that is surely no pattern too complex for SQLite, which takes 50,000 bytes.
LONGEST_PATTERN: Final = 10_000


def never_fails(builder: _Builder) -> bool:
    """Return whether no row can make the statement fail, as long as no value bound is longer than a pattern may be.

    What is left out may otherwise be the row over which one SQLite would have failed.
    """
    root = builder.select.node
    if not builder.facts.functions <= NEVER_FAIL or len(builder.statement.sql) > LONGEST_PATTERN:
        return False
    patterns = [node for node in root.walk() if isinstance(node, exp.Like | exp.ILike | exp.Glob)]
    called = any(str(node.this).lower() in ("like", "glob") for node in root.find_all(exp.Anonymous))
    return root.find(exp.Escape) is None and not called and all(is_value(node.expression) for node in patterns)


@dataclass(frozen=True, slots=True)
class Query:
    """A statement with ``?`` placeholders, and what each is bound to."""

    sql: str
    binders: tuple[Binder, ...]


@dataclass(frozen=True, slots=True)
class Rounds:
    """What vendors are asked, round by round. Rows are partials with one more value: the group's sort key there.

    Attributes
    ----------
    first : Query
        The groups of the largest values; ``more`` is how many.
    above, below : Query
        The groups whose value is at least ``bound``, and those below it. Conditions on keys may be appended to `below`.
    certificate : Query
        One row: how many groups; how many summed values are no non-negative number; a fingerprint of all partials; the
        sum of the magnitudes that other sums of integers are made of; a fingerprint of what the first round sent.
    keys : tuple of int
        Where in a row the group's keys stand.
    names : tuple of str
        The keys' names in `below`, quoted.
    sums : tuple of int
        Where in a row the other sums stand.
    limit : Limit
        How many groups the answer has.
    width : int
        Values per row of a partial.
    """

    first: Query
    above: Query
    below: Query
    certificate: Query
    keys: tuple[int, ...]
    names: tuple[str, ...]
    sums: tuple[int, ...]
    limit: Limit
    width: int


def with_rounds(builder: _Builder, plan: Plan) -> Plan:
    """Return the plan with rounds where the rules allow them, else the plan as it is."""
    rounds = _rounds(builder, plan)
    if rounds is None:
        return plan
    rule = "top-k by a sum of non-negative values: three rounds leave out groups that cannot reach the k-th (TPUT)"
    return replace(plan, rounds=rounds, rules=(*plan.rules, rule))


def _rounds(builder: _Builder, plan: Plan) -> Rounds | None:
    limit, select, partial = builder.limit, builder.select, builder.partial
    if plan.combine is None or plan.limit is not None or limit is None or not builder.keys or not builder.order:
        return None
    if builder.having is not None or builder.distinct or partial.keys or not never_fails(builder):
        return None
    keys = [select.column(unwrap(key)) for key in builder.keys]
    named = {key.name.lower() for key in keys if key is not None}
    if None in keys or named != set(partial.shipped):
        return None
    node, term = builder.order[0]
    if not term.args.get("desc") or term.args.get("nulls_first"):
        return None
    value, strange = _value(unwrap(node), builder)
    if not value:
        return None
    columns = partial.columns()
    shown = ", ".join(f"{each} AS {name}" for each, name in zip(partial.expressions(), columns, strict=True))
    tail = f"FROM {select.source}{builder.condition} GROUP BY {', '.join(text(key) for key in builder.keys)}"
    groups = f"(SELECT {shown}, {value} AS mktsim_value {tail})"
    sums, magnitude = _other_sums(unwrap(node), builder)
    listed = ", ".join(columns)
    certified = f"(SELECT {shown}, {strange} AS mktsim_strange, {magnitude} AS mktsim_magnitude {tail})"
    head = f"SELECT {listed}, mktsim_value FROM {groups}"
    first = f"{head} ORDER BY mktsim_value DESC LIMIT :mktsim_more"
    certificate = (
        f"SELECT COUNT(*), TOTAL(mktsim_strange), mktsim_fingerprint({listed}), TOTAL(mktsim_magnitude), "
        f"(SELECT mktsim_fingerprint({listed}, mktsim_value) FROM ({first})) FROM {certified}"
    )
    above, below = (f"{head} WHERE mktsim_value {sign} :mktsim_bound" for sign in (">=", "<"))
    queries = [Query(*positional(each)) for each in (first, above, below, certificate)]
    try:
        for query in queries:
            builder.catalog.vendor_steps(query.sql, len(query.binders))
    except Error:
        return None
    places = [place for place, name in enumerate(partial.shipped) if name in named]
    names = tuple(quote(column.name) for name, column in partial.shipped.items() if name in named)
    return Rounds(
        first=queries[0],
        above=queries[1],
        below=queries[2],
        certificate=queries[3],
        keys=tuple(places),
        names=names,
        sums=tuple(columns.index(name) for name in sums),
        limit=limit,
        width=len(columns),
    )


def _parts(call: Node, builder: _Builder) -> tuple[str, Node | None, str]:
    """Return an aggregate call's name, its one argument and the text of its FILTER."""
    inner = call.this if isinstance(call, exp.Filter) else call
    condition = f" FILTER (WHERE {text(call.expression.this)})" if isinstance(call, exp.Filter) else ""
    name = aggregate_name(inner, builder.catalog.aggregates) or ""
    arguments = inner.expressions if isinstance(inner, exp.Anonymous) else [inner.this]
    return name, arguments[0] if arguments and isinstance(arguments[0], exp.Expr) else None, condition


def _value(call: Node, builder: _Builder) -> tuple[str, str]:
    """Return the text of a group's sort key, and of the count of values that are no non-negative numbers."""
    name, argument, condition = _parts(call, builder)
    if isinstance(argument, exp.Distinct) or text(call) not in builder.calls:
        return "", ""
    if name == "count":
        return text(call), "0"
    if name not in ("sum", "total") or argument is None:
        return "", ""
    shown = f"({text(argument)})"
    strange = (
        f"TOTAL(CASE typeof({shown}) WHEN 'integer' THEN {shown} < 0 WHEN 'real' THEN {shown} < 0 "
        f"WHEN 'null' THEN 0 ELSE 1 END){condition}"
    )
    return f"TOTAL({shown}){condition}", strange


def _other_sums(sort_key: Node, builder: _Builder) -> tuple[list[str], str]:
    """Return the columns of sums that might overflow unseen, and the text of the magnitudes they are made of."""
    found: dict[str, str] = {}
    for call in builder.calls.values():
        name, argument, condition = _parts(call, builder)
        if name == "sum" and argument is not None and text(call) != text(sort_key):
            column = builder.partial.computed[f"mktsim_sum({text(argument)}){condition}"][0]
            found[column] = f"TOTAL(abs(1.0 * ({text(argument)}))){condition}"
    return list(found), " + ".join(found.values()) or "0"
