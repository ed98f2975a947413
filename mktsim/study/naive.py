"""The merge that an obvious implementation makes, to be measured against the exact one.

Rules
-----
Every vendor runs the statement as it is. Then: rows are concatenated; where the select list has aggregate calls,
rows that agree in all other columns are merged into one, COUNT, SUM and TOTAL added, AVG averaged, the least MIN and
the greatest MAX taken; for SELECT DISTINCT equal rows are dropped; rows are sorted again by those ORDER BY terms that
name a column of the result; and the first LIMIT rows are kept.

This is meant to be a fair opponent: it is more than "concatenate, add, average". What it gets wrong is wrong because
the statement was not taken apart before it was sent: an average of averages weighs a vendor of one row like one of a
thousand, HAVING and OFFSET have been applied to parts, distinct values are counted once a vendor, and rows of
different vendors never meet in a join or a window.

What this does not do
---------------------
It reads the text, not a syntax tree, and evaluates nothing: a LIMIT that is an expression is left to the vendors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mktsim.sql.lexer import tokens

Row = tuple[Any, ...]
_Token = tuple[str, str]

_CLAUSES: Final = {"FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT"}


def _add(values: list[Any]) -> Any:
    return sum(values)


def _average(values: list[Any]) -> Any:
    return sum(values) / len(values)


def _first(values: list[Any]) -> Any:
    return min(values, key=_rank)


def _last(values: list[Any]) -> Any:
    return max(values, key=_rank)


_MERGES: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "COUNT": _add,
    "SUM": _add,
    "TOTAL": _add,
    "AVG": _average,
    "MIN": _first,
    "MAX": _last,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the naive merge reads from a statement's text.

    Attributes
    ----------
    items : tuple of str
        The select list.
    merges : tuple of (str or None)
        For each item the aggregate it is, or None.
    distinct : bool
        Whether it begins with SELECT DISTINCT.
    order : tuple of (str, bool)
        ORDER BY terms, and whether each is descending.
    limit : int, "?" or None
        The number of rows to keep; "?" where it is a parameter.
    """

    items: tuple[str, ...]
    merges: tuple[str | None, ...]
    distinct: bool
    order: tuple[tuple[str, bool], ...]
    limit: int | str | None


def shape(sql: str) -> Shape:
    """Read a statement as the naive merge does.

    Examples
    --------
    >>> shape("SELECT k, AVG(v) FROM t GROUP BY k ORDER BY 2 DESC LIMIT 3")
    Shape(items=('k', 'AVG(v)'), merges=(None, 'AVG'), distinct=False, order=(('2', True),), limit=3)
    """
    clauses = _clauses(sql)
    select = clauses.get("SELECT", [])
    distinct = bool(select) and select[0][1].upper() == "DISTINCT"
    items = _split(select[1:] if distinct else select)
    order = []
    for term in _split(clauses.get("ORDER", [])[1:]):  # its first word is BY
        words = [text.upper() for kind, text in term if kind == "word"]
        kept = [text for kind, text in term if not (kind == "word" and text.upper() in ("ASC", "DESC"))]
        order.append(("".join(kept).strip(), "DESC" in words))
    limit_text = "".join(text for _, text in clauses.get("LIMIT", [])).split(" OFFSET ")[0].strip()
    limit = limit_text if limit_text == "?" else int(limit_text) if limit_text.isdigit() else None
    return Shape(
        tuple(_name("".join(text for _, text in item)) for item in items),
        tuple(map(_aggregate, items)),
        distinct,
        tuple(order),
        limit,
    )


def naive_merge(
    sql: str, columns: Sequence[str], answers: Sequence[Sequence[Row]], params: Sequence[Any] = ()
) -> list[Row]:
    """Merge the vendors' answers to one statement as an obvious implementation does.

    Parameters
    ----------
    sql : str
        The statement that every vendor ran.
    columns : sequence of str
        Names of the columns of an answer.
    answers : sequence of sequence of tuple
        Each vendor's rows.
    params : sequence
        Values of the statement's placeholders.

    Examples
    --------
    The average of the two vendors' averages is 30; that of all four prices is 20.

    >>> naive_merge("SELECT COUNT(*), AVG(price) FROM products", ["COUNT(*)", "AVG(price)"], [[(3, 10.0)], [(1, 50.0)]])
    [(4, 30.0)]
    """
    read = shape(sql)
    rows = [tuple(row) for answer in answers for row in answer]
    if any(read.merges) and len(read.merges) == len(columns):
        rows = _merge_groups(read.merges, rows)
    if read.distinct:
        rows = list(dict.fromkeys(rows))
    for term, descending in reversed(read.order):
        place = _place(term, read.items, columns)
        if place is not None:
            rows.sort(key=lambda row, place=place: _rank(row[place]), reverse=descending)  # type: ignore[misc]
    limit = read.limit
    if limit == "?":
        limit = params[-1] if params and isinstance(params[-1], int) else None
    return rows if not isinstance(limit, int) or limit < 0 else rows[:limit]


def _merge_groups(merges: Sequence[str | None], rows: Sequence[Row]) -> list[Row]:
    groups: dict[Row, list[Row]] = {}
    for given in rows:
        key = tuple(value for value, merge in zip(given, merges, strict=True) if merge is None)
        groups.setdefault(key, []).append(given)
    merged = []
    for group in groups.values():
        row: list[Any] = []
        for merge, values in zip(merges, zip(*group, strict=True), strict=True):
            present = [value for value in values if value is not None]
            row.append(values[0] if merge is None else _MERGES[merge](present) if present else None)
        merged.append(tuple(row))
    return merged


def _clauses(sql: str) -> dict[str, list[_Token]]:
    """Return the tokens of each outermost clause, by its first word; of a clause that comes twice the last."""
    clauses: dict[str, list[_Token]] = {}
    current: list[_Token] = []
    depth = 0
    for kind, text in tokens(sql):
        depth += (text == "(") - (text == ")")
        word = text.upper() if kind == "word" and depth == 0 else ""
        if word == "SELECT" or word in _CLAUSES:
            current = clauses[word] = []
        elif kind == "space":
            if current:
                current.append((kind, " "))
        else:
            current.append((kind, text))
    return clauses


def _split(clause: Sequence[_Token]) -> list[list[_Token]]:
    """Split a clause at its outermost commas."""
    parts: list[list[_Token]] = [[]]
    depth = 0
    for kind, text in clause:
        depth += (text == "(") - (text == ")")
        if text == "," and depth == 0:
            parts.append([])
        elif kind != "space" or parts[-1]:
            parts[-1].append((kind, text))
    return [part for part in parts if part]


def _aggregate(item: Sequence[_Token]) -> str | None:
    """Return the aggregate that an item begins with; MIN and MAX of several arguments are no aggregates."""
    name = item[0][1].upper()
    if name not in _MERGES or len(item) < 2 or item[1][1] != "(":
        return None
    depth = 0
    for _, text in item[1:]:
        depth += (text == "(") - (text == ")")
        if text == "," and depth == 1:
            return None
        if depth == 0:
            break
    return name


def _name(item: str) -> str:
    return re.sub(r"(?i)\s+AS\s+\w+\s*$", "", item).strip()


def _place(term: str, items: Sequence[str], columns: Sequence[str]) -> int | None:
    """Return the column of the result that an ORDER BY term names: by position, by name, or by the item's text."""
    if term.isdigit():
        return int(term) - 1 if 1 <= int(term) <= len(columns) else None
    for names in (columns, items if len(items) == len(columns) else ()):
        if term in names:
            return list(names).index(term)
    return None


def _rank(value: Any) -> tuple[int, Any]:
    """Order values as SQLite does by default: NULL, numbers, text, blobs."""
    if value is None:
        return 0, 0
    return (1, value) if isinstance(value, int | float) else (2, value) if isinstance(value, str) else (3, value)
