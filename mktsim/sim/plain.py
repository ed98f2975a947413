"""Frozen dataclasses as plain data and as TOML, and the checks that their fields share.

Rules
-----
A field at its default is left out; what is read names no unknown field and passes the class's own checks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from mktsim.errors import InvalidArgumentError
from mktsim.sim.latency import Latency

T = TypeVar("T")
Readers = Mapping[str, Callable[[Any], Any]]


def to_plain(value: Any) -> Any:
    """Return tables, lists, strings, numbers and truth values that say the same."""
    if isinstance(value, Latency):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        kind = getattr(value, "kind", None)
        table = {} if kind is None else {"kind": kind}
        for each in fields(value):
            held = getattr(value, each.name)
            if each.default is MISSING or held != each.default:
                table[each.name] = to_plain(held)
        return table
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: Callable[..., T], data: Any, readers: Readers = {}) -> T:  # noqa: B006 - never written to
    """Make a dataclass of a table; `readers` turn the fields that are not plain.

    Raises
    ------
    InvalidArgumentError
        If it is no table, lacks a field without default, or has one that the class does not know.
    """
    name = getattr(cls, "__name__", str(cls))
    if not isinstance(data, Mapping):
        raise InvalidArgumentError(f"{name} is a table, not {data!r:.80}")
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in data if key not in known)
    lacking = sorted(key for key, each in known.items() if each.default is MISSING and key not in data)
    if unknown or lacking:
        what = f"does not know {unknown[0]!r:.80}" if unknown else f"lacks {lacking[0]!r}"
        raise InvalidArgumentError(f"{name} {what}; it takes {', '.join(known)}")
    return cls(**{key: readers[key](value) if key in readers else value for key, value in data.items()})


def list_of(reader: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Return a reader of lists."""

    def read(data: Any) -> tuple[T, ...]:
        if not isinstance(data, list | tuple):
            raise InvalidArgumentError(f"needs a list, not {data!r:.80}")
        return tuple(reader(item) for item in data)

    return read


def to_toml(value: Any) -> str:
    """Write one plain value as TOML; tables inline.

    Examples
    --------
    >>> to_toml({"kind": "constant", "ms": 5.0})
    '{ kind = "constant", ms = 5.0 }'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings are JSON's, but for U+007F.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, int | float):
        return repr(value)
    raise InvalidArgumentError(f"TOML has no value for {value!r:.80}")


def _table(table: Mapping[str, Any]) -> str:
    items = []
    for key, held in table.items():
        bare = key and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in key)
        items.append(f"{key if bare else to_toml(str(key))} = {to_toml(held)}")
    return "{ " + ", ".join(items) + " }"


def number(
    owner: object,
    name: str,
    *,
    least: float = 0.0,
    most: float = math.inf,
    above: float = -math.inf,
    finite: bool = True,
) -> None:
    """Check a field of `owner`: a number within bounds; store it as float."""
    value = getattr(owner, name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most and value > above
    if not good or (finite and math.isinf(value)):
        bounds = f" above {above:g}" if above > -math.inf else f" of at least {least:g}"
        bounds += f" and at most {most:g}" if most < math.inf else ""
        raise InvalidArgumentError(f"{type(owner).__name__}.{name} must be a number{bounds}, not {value!r:.80}")
    object.__setattr__(owner, name, float(value))


def numbers(owner: object, name: str, *, above: float) -> None:
    """Check a field of `owner`: finite numbers above a bound, perhaps none; store them as a tuple of floats."""
    values = getattr(owner, name)
    many = isinstance(values, list | tuple)
    wrong = [
        each for each in (values if many else ()) if not isinstance(each, int | float) or isinstance(each, bool)
        or not above < each < math.inf
    ]  # fmt: skip
    if not many or wrong:
        raise InvalidArgumentError(
            f"{type(owner).__name__}.{name} must be a sequence of finite numbers above {above:g}, not "
            f"{(wrong[0] if wrong else values)!r:.80}"
        )
    object.__setattr__(owner, name, tuple(map(float, values)))


def whole(owner: object, name: str, *, least: int = 1, optional: bool = False) -> None:
    """Check a field of `owner`: a whole number, or None where that is allowed."""
    value = getattr(owner, name)
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgumentError(
            f"{type(owner).__name__}.{name} must be a whole number of at least {least}, not {value!r:.80}"
        )


def latency(owner: object, name: str) -> None:
    """Check a field of `owner`: a distribution."""
    value = getattr(owner, name)
    if not isinstance(value, Latency):
        raise InvalidArgumentError(f"{type(owner).__name__}.{name} must be a Latency, not {value!r:.80}")


def text(owner: object, name: str) -> None:
    """Check a field of `owner`: a string, not empty."""
    value = getattr(owner, name)
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"{type(owner).__name__}.{name} must be a string, not {value!r:.80}")
