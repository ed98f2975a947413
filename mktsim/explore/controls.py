"""The controls of explorers: each with a label, a tooltip, and room for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import ipywidgets as widgets

from mktsim.errors import InvalidArgumentError

_STYLE: Final = {"description_width": "9em"}
_LAYOUT: Final = {"width": "auto", "min_width": "18em"}
#: Sizes of fleets, in steps that look even on a slider.
FLEETS: Final = [(f"{n:,}", n) for k in range(1, 6) for n in (10**k, 3 * 10**k)] + [("1,000,000", 1_000_000)]


def choice(label: str, options: Sequence[Any], value: Any, tooltip: str) -> widgets.Widget:
    """Return a labelled choice; options are values, or (label, value) pairs, and none of them None."""
    _check_option(label, options, value)
    return widgets.Dropdown(
        options=options, value=value, description=label, tooltip=tooltip, style=_STYLE, layout=_LAYOUT
    )


def scale(label: str, options: Sequence[Any], value: Any, tooltip: str) -> widgets.Widget:
    """Return a labelled slider over options that have an order."""
    _check_option(label, options, value)
    return widgets.SelectionSlider(
        options=options, value=value, description=label, tooltip=tooltip, style=_STYLE, layout=_LAYOUT
    )


def whole(label: str, value: int, low: int, high: int, tooltip: str, *, step: int = 1) -> widgets.Widget:
    """Return a labelled slider of whole numbers."""
    check_whole(label, value, low, high)
    return widgets.IntSlider(
        value=value, min=low, max=high, step=step, description=label, tooltip=tooltip, style=_STYLE, layout=_LAYOUT,
        readout_format=",d",
    )  # fmt: skip


def number(label: str, value: float, low: float, high: float, tooltip: str, *, step: float = 0.5) -> widgets.Widget:
    """Return a labelled slider of numbers."""
    return widgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=label, tooltip=tooltip, style=_STYLE, layout=_LAYOUT,
        readout_format=".1f" if step > 0.1 else ".2f",
    )  # fmt: skip


def check(label: str, value: bool, tooltip: str) -> widgets.Widget:
    """Return a labelled check box."""
    return widgets.Checkbox(value=value, description=label, tooltip=tooltip, style=_STYLE, layout=_LAYOUT)


def seed_box(value: int) -> widgets.Widget:
    """Return the box for the seed, which all explorers have."""
    return widgets.BoundedIntText(
        value=value, min=0, max=2**31 - 1, description="seed", tooltip="Decides every draw: same seed, same picture",
        style=_STYLE, layout=_LAYOUT,
    )  # fmt: skip


def text(label: str, value: str, tooltip: str, *, rows: int = 0) -> widgets.Widget:
    """Return a labelled text field; with `rows`, of so many lines."""
    kind, more = (widgets.Textarea, {"rows": rows}) if rows else (widgets.Text, {})
    return kind(value=value, description=label, tooltip=tooltip, style=_STYLE, layout=_LAYOUT, **more)


def check_whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number that is in a range.

    Raises
    ------
    InvalidArgumentError
        If it is not: a slider would move it into its range without a word, or fail by a name that says nothing.

    Examples
    --------
    >>> check_whole("shards", 5, 1, 24)
    5
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgumentError(f"{name} must be a whole number from {low:,} to {high:,}, not {value!r:.80}")
    return value


def _check_option(label: str, options: Sequence[Any], value: Any) -> None:
    known = [each[1] if isinstance(each, tuple) else each for each in options]
    if value not in known:
        listed = ", ".join(f"{each:,}" if isinstance(each, int) else str(each) for each in known)
        raise InvalidArgumentError(f"{label} must be one of {listed}, not {value!r:.80}")
