"""A question as a call: run by an explorer, and written as Python code that asks the very same.

Rules
-----
An explorer has one :class:`Call` for the values of its controls. It runs that call, and its code is that call, so the
code cannot ask something else than what is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Final

from mktsim.explore.background import Progress, Slices
from mktsim.study.scenario import Scenario

#: Characters of a line of code, as in a notebook's cell.
_WIDTH: Final = 96
_QUESTIONS: Final = "mktsim.study.questions"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A function and what it is called with.

    Attributes
    ----------
    function : callable
        Of `mktsim.study.questions`; the long ones are asked slice by slice (`mktsim.study.slices`).
    given : mapping of str to object
        What stands first in the call, by the name that it has in the code.
    options : mapping of str to object
        What follows by keyword.
    known : mapping of str to str
        Lines of code that make a name of `given` known, where its value cannot be written down.

    Examples
    --------
    >>> from mktsim.study.questions import fan_out_curve
    >>> print(Call(fan_out_curve, {"scenario": Scenario(vendors=10)}, {"requests": 30, "seed": 1}).code())
    from mktsim import Scenario
    from mktsim.study.questions import fan_out_curve
    <BLANKLINE>
    scenario = Scenario(vendors=10, preset="same-zone")
    answer = fan_out_curve(scenario, requests=30, seed=1)
    answer
    """

    function: Callable[..., Any]
    given: Mapping[str, Any]
    options: Mapping[str, Any]
    known: Mapping[str, str] = field(default_factory=dict)

    def slices(self) -> Slices:
        """Ask, slice by slice where the function can."""
        in_slices = getattr(self.function, "slices", None)
        if in_slices is not None:
            return (yield from in_slices(*self.given.values(), **self.options))
        answer = self.function(*self.given.values(), **self.options)
        yield Progress(1, 1, "questions")
        return answer

    def code(self) -> str:
        """Return the call as Python code, whose `answer` is what is shown."""
        name = self.function.__name__
        written = [value for key, value in self.given.items() if key not in self.known]
        imports = imports_of(*written, *self.options.values(), **{name: _QUESTIONS})
        made = [self.known.get(key) or f"{key} = {code_of(value, len(key) + 3)}" for key, value in self.given.items()]
        said = [*self.given, *(f"{key}={code_of(value, len(key) + 5)}" for key, value in self.options.items())]
        return "\n".join([imports, "", *made, _fitted(f"answer = {name}(", said, ")", 0), "answer"])


def code_of(value: Any, column: int = 0) -> str:
    """Return a value as Python code, of dataclasses what differs from the defaults; long values are broken over lines.

    Parameters
    ----------
    value : object
        Plain data, or dataclasses of it.
    column : int
        Where in its line it begins.

    Examples
    --------
    >>> code_of(Scenario(vendors=10, fanout=6))
    'Scenario(vendors=10, preset="same-zone", fanout=6)'
    >>> print(code_of(["a statement"] * 9))
    [
        "a statement", "a statement", "a statement", "a statement", "a statement", "a statement",
        "a statement", "a statement", "a statement",
    ]
    """
    return _code(value, column, 0)


def imports_of(*values: Any, **more: str) -> str:
    """Return the import statements that :func:`code_of` these values needs, a line a module.

    Parameters
    ----------
    *values : object
    **more : str
        Further names, and the module of each.

    Examples
    --------
    >>> print(imports_of(Scenario(vendors=10), simulate="mktsim"))
    from mktsim import Scenario, simulate
    """
    homes: dict[str, set[str]] = {}
    for name, module in more.items():
        homes.setdefault(module, set()).add(name)
    for each in (one for value in values for one in _all_of(value)):
        if isinstance(each, partial):
            homes.setdefault("functools", set()).add("partial")
            homes.setdefault(each.func.__module__, set()).add(each.func.__name__)
            continue
        home = {"Scenario": "mktsim", "ScatterPolicy": "mktsim", "Breaker": "mktsim.fanout.policy"}
        homes.setdefault(home.get(type(each).__name__, "mktsim.sim"), set()).add(type(each).__name__)
    lines = [f"from {home} import {', '.join(sorted(names))}" for home, names in sorted(homes.items())]
    standard = [line for line in lines if line.startswith("from functools ")]
    return "\n".join([*standard, *([""] if standard else []), *(line for line in lines if line not in standard)])


def _code(value: Any, column: int, indent: int) -> str:
    """Write a value that begins in a column of a line with that indent, and has a comma behind it at most."""
    inner = indent + 4
    if isinstance(value, str):
        return _text(value, column, indent)
    if isinstance(value, tuple | list):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        closing = f",{closing}" if isinstance(value, tuple) and len(value) == 1 else closing
        return _fitted(opening, [_code(one, inner, inner) for one in value], closing, indent, column)
    if isinstance(value, partial):
        said = [value.func.__name__, *(_code(one, inner, inner) for one in value.args)]
        said += [f"{name}={_code(one, inner + len(name) + 1, inner)}" for name, one in value.keywords.items()]
        return _fitted("partial(", said, ")", indent, column)
    if not is_dataclass(value):
        return repr(value)
    said = [f"{name}={_code(one, inner + len(name) + 1, inner)}" for name, one in _told(value)]
    return _fitted(f"{type(value).__name__}(", said, ")", indent, column)


def _fitted(opening: str, parts: list[str], closing: str, indent: int, column: int = 0) -> str:
    """Put parts between two brackets: on the line if they fit, on as few indented lines as hold them otherwise."""
    flat = f"{opening}{', '.join(parts)}{closing}"
    if "\n" not in flat and column + len(flat) < _WIDTH:
        return flat
    margin = " " * (indent + 4)
    lines: list[str] = []
    for part in parts:
        if lines and "\n" not in part + lines[-1] and len(margin) + len(lines[-1]) + len(part) + 2 < _WIDTH:
            lines[-1] += f" {part},"
        else:
            lines.append(f"{part},")
    return "\n".join([opening, *(margin + line for line in lines), " " * indent + closing.lstrip(",")])


def _text(value: str, column: int, indent: int) -> str:
    """Write a text in double quotes, as ruff does; a long one in pieces that Python joins."""
    if column + len(_quoted(value)) < _WIDTH:
        return _quoted(value)
    margin, room = " " * (indent + 4), _WIDTH - indent - 10
    pieces, rest = [], value
    while len(_quoted(rest)) > room or "\n" in rest.rstrip("\n"):
        fits = max(n for n in range(1, len(rest) + 1) if n == 1 or len(_quoted(rest[:n])) <= room)
        line = rest.find("\n", 0, fits)
        space = line if line >= 0 else rest.rfind(" ", 1, fits)
        cut = space + 1 if space >= 0 else fits
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces.append(rest)
    return "\n".join(["(", *(margin + _quoted(piece) for piece in pieces if piece), " " * indent + ")"])


def _quoted(text: str) -> str:
    plain = repr(text)
    if plain.startswith('"') or '"' in text:
        return plain
    return '"' + plain[1:-1].replace("\\'", "'") + '"'


def _told(value: Any) -> list[tuple[str, Any]]:
    """Return names and values of the fields that must be written down."""
    # A scenario's world is the preset's, which is told by its name, or its own, and then there is no preset.
    left_out = {"world" if value.preset != "own" else "preset"} if isinstance(value, Scenario) else set()
    if isinstance(value, Scenario) and value.params == Scenario(statement=value.statement).params:
        left_out.add("params")
    return [
        (each.name, getattr(value, each.name))
        for each in fields(value)
        if each.init
        and each.name not in left_out
        and (each.default is MISSING or getattr(value, each.name) != each.default)
    ]


def _all_of(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for each in value:
            yield from _all_of(each)
    elif isinstance(value, partial):
        yield value
        for each in (*value.args, *value.keywords.values()):
            yield from _all_of(each)
    elif is_dataclass(value):
        yield value
        for _, each in _told(value):
            yield from _all_of(each)
