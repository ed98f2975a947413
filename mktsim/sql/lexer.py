"""SQLite's tokens, as far as a planner needs them: where strings end, where parameters and statements are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mktsim.errors import ParameterError, SQLSyntaxError
from mktsim.sqlite import Value

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
  | (?P<string>'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
  | (?P<number>0[xX][0-9A-Fa-f_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?)
  | (?P<parameter>\?\d*|[:@#][\w$]+|\$[\w$]+(?:::[\w$]+)*(?:\([^)\s]*\))?)
  | (?P<word>[^\W\d][\w$]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

#: The prefix of the names that parameters get in normalised text.
PREFIX = "mktsim_p"


def tokens(sql: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of each token, white space included, so that the texts join to `sql` again."""
    for match in _TOKEN.finditer(sql):
        yield str(match.lastgroup), match.group()


#: Stands for unary plus, which sqlglot would drop: in SQLite it hides a column's affinity and its indexes.
PLUS = "mktsim_plus"

_OPERAND_ENDS = {"string", "quoted", "number", "parameter", "word"}
_WORDS_BEFORE_OPERAND = {
    "SELECT", "DISTINCT", "ALL", "WHERE", "AND", "OR", "NOT", "ON", "BY", "HAVING", "LIMIT", "OFFSET", "IN", "IS",
    "LIKE", "GLOB", "BETWEEN", "WHEN", "THEN", "ELSE", "CASE", "ESCAPE", "RETURNING", "MATCH", "REGEXP", "FROM",
}  # fmt: skip


def keep_unary_plus(sql: str) -> str:
    """Write unary plus before a simple operand as a call of :data:`PLUS`; leave it where the operand is not simple.

    Examples
    --------
    >>> keep_unary_plus("SELECT a + +b FROM t ORDER BY +lower(t.c), +(d)")
    'SELECT a + mktsim_plus(b) FROM t ORDER BY mktsim_plus(lower(t.c)), mktsim_plus((d))'
    """
    parts = list(tokens(sql))
    after_operand = False
    place = 0
    while place < len(parts):
        kind, text = parts[place]
        if text == "+" and not after_operand:
            end = _operand_end(parts, place + 1)
            if end is not None:
                parts[place] = ("other", f"{PLUS}(")
                parts.insert(end, ("other", ")"))
        elif kind != "space":
            ends = kind in _OPERAND_ENDS and text.upper() not in _WORDS_BEFORE_OPERAND
            after_operand = ends or text == ")"
        if text == "+":
            after_operand = False
        place += 1
    return "".join(text for _, text in parts)


def _operand_end(parts: list[tuple[str, str]], place: int) -> int | None:
    """Return where a name, literal, call or parenthesis that starts at `place` ends; None for anything else."""
    while place < len(parts) and parts[place][0] == "space":
        place += 1
    if place >= len(parts) or (parts[place][0] not in _OPERAND_ENDS and parts[place][1] != "("):
        return None
    if parts[place][1].upper() in _WORDS_BEFORE_OPERAND:
        return None
    if parts[place][1] != "(":
        place += 1
        while place + 1 < len(parts) and parts[place][1] == ".":
            place += 2
    if place < len(parts) and parts[place][1] == "(":
        depth = 0
        while place < len(parts):
            depth += {"(": 1, ")": -1}.get(parts[place][1], 0)
            place += 1
            if not depth:
                return place
        return None
    return place


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, read once.

    Attributes
    ----------
    sql : str
        The text as given, without a trailing semicolon.
    normal : str
        The same statement with parameter number n written ``:mktsim_pn``.
    words : tuple of str
        Its bare words in upper case, in order.
    parameters : tuple of (str or None)
        For each parameter number from 1, its name without the sigil, or None.
    uses_names : bool
        Whether every parameter is named, so that a mapping may be bound.

    Examples
    --------
    >>> from mktsim.sql import Planner, Schema
    >>> planner = Planner(Schema(["CREATE TABLE products(name, price)"]))
    >>> statement = planner.plan("SELECT name FROM products WHERE price < :most;").statement
    >>> statement.normal
    'SELECT name FROM products WHERE price < :mktsim_p1'
    >>> statement.parameters, statement.bind({"most": 20})
    (('most',), (20,))
    """

    sql: str
    normal: str
    words: tuple[str, ...]
    parameters: tuple[str | None, ...]
    uses_names: bool

    def bind(self, params: Sequence[Value] | Mapping[str, Value]) -> tuple[Value, ...]:
        """Return one value for each parameter number, or raise :class:`ParameterError`.

        Raises
        ------
        ParameterError
            Where the number of values, a name or a type does not fit.
        """
        if isinstance(params, Mapping):
            values = tuple(self._named(params))
        elif isinstance(params, str | bytes | bytearray) or not isinstance(params, Sequence):
            raise ParameterError(
                f"parameters must be a sequence or a mapping, not {type(params).__name__}", sql=self.sql
            )
        else:
            values = tuple(params)
            if len(values) != len(self.parameters):
                raise ParameterError(
                    f"the statement has {len(self.parameters)} parameters, {len(values)} values were given",
                    sql=self.sql,
                )
        return tuple(_checked(value, number, self.sql) for number, value in enumerate(values, 1))

    def _named(self, params: Mapping[str, Value]) -> list[Value]:
        values = []
        for number, name in enumerate(self.parameters, 1):
            if name is None or name not in params:
                shown = f":{name}" if name else f"?{number}"
                raise ParameterError(f"no value was given for parameter {shown}", sql=self.sql)
            values.append(params[name])
        unknown = sorted(str(key) for key in set(params) - set(self.parameters))
        if unknown:
            raise ParameterError(f"the statement has no parameter named {unknown[0]!r}", sql=self.sql)
        return values


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(value: Any, number: int, sql: str) -> Value:
    if isinstance(value, str) and not _is_unicode(value):
        raise ParameterError(f"parameter {number} holds a lone surrogate, which is no Unicode text", sql=sql)
    if value is None or type(value) in (str, bytes, float):
        return value  # type: ignore[no-any-return]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ParameterError(f"parameter {number} is {value}, beyond SQLite's 64-bit integers", sql=sql)
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a numpy scalar
        return _checked(value.item(), number, sql)
    raise ParameterError(f"parameter {number} is of type {type(value).__name__}, which SQLite cannot hold", sql=sql)


def read(sql: str) -> Statement:
    """Read one statement.

    Raises
    ------
    SQLSyntaxError
        If the text is not a string, is empty, or holds more than one statement.

    Examples
    --------
    >>> read("SELECT ?2, :name, ? FROM t -- done").normal
    'SELECT :mktsim_p2, :mktsim_p3, :mktsim_p4 FROM t -- done'
    """
    if not isinstance(sql, str):
        raise SQLSyntaxError(f"a statement must be a string, not {type(sql).__name__}")
    if not _is_unicode(sql):
        raise SQLSyntaxError("the statement holds a lone surrogate, which is no Unicode text")
    pieces: list[str] = []
    words: list[str] = []
    names: dict[int, str | None] = {}
    numbers: dict[str, int] = {}
    highest = 0
    end: int | None = None
    for match in _TOKEN.finditer(sql):
        kind, text = match.lastgroup, match.group()
        if kind == "space":
            pieces.append(text)
            continue
        if end is not None:
            if text == ";":
                continue
            raise SQLSyntaxError("one statement at a time: text follows the semicolon", sql=sql, position=match.start())
        if text == ";":
            end = match.start()
            continue
        if kind == "word":
            words.append(text.upper())
        if kind == "parameter":
            if text[0] != "?":
                number = numbers.setdefault(text, highest + 1)
                names.setdefault(number, text[1:])
            else:
                number = int(text[1:]) if len(text) > 1 else highest + 1
                if not 1 <= number <= 32766:
                    raise SQLSyntaxError(f"parameter {text} is out of range", sql=sql, position=match.start())
                names.setdefault(number, None)
            highest = max(highest, number)
            text = f":{PREFIX}{number}"
        pieces.append(text)
    if not words:
        raise SQLSyntaxError("the statement is empty", sql=sql)
    parameters = tuple(names.get(number) for number in range(1, highest + 1))
    return Statement(
        sql=sql if end is None else sql[:end],
        normal="".join(pieces).strip(),
        words=tuple(words),
        parameters=parameters,
        uses_names=all(parameters),
    )
