"""Checks of what vendors are told: amounts of money, and mappings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mktsim.errors import InvalidArgumentError
from mktsim.sqlite import Value


def minor_units(price: Any) -> int:
    """Return a price in minor units of money.

    Raises
    ------
    InvalidArgumentError
        If it is negative, not finite, or no whole number of minor units.

    Examples
    --------
    >>> minor_units(19.99)
    1999
    """
    if (
        isinstance(price, bool)
        or not isinstance(price, int | float)
        or not math.isfinite(price)
        or not 0 <= price < 1e13
    ):
        raise InvalidArgumentError(f"a price is a number from 0 in major units, not {price!r:.80}")
    minor = round(price * 100)
    if minor / 100 != price:
        raise InvalidArgumentError(f"a price has at most two decimals, not {price!r:.80}")
    return minor


def mapping(what: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy as a dict, or raise :class:`InvalidArgumentError`."""
    if value is not None and not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{what} must be a mapping, not {type(value).__name__}")
    return dict(value or {})


def number(value: Value) -> int:
    """Return a whole number; what is none counts as 0."""
    return value if isinstance(value, int) else 0
