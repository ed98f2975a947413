"""A scenario: everything that decides what a study asks, and nothing of how it is computed."""

from __future__ import annotations

import html
import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from mktsim.errors import InvalidArgumentError
from mktsim.sim.world import Preset, World, load_preset

_MAX_VENDORS: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet, the world it stands in and the query that is asked of it.

    Parameters
    ----------
    vendors : int
        How many, from 1 to 10,000,000.
    products : int
        Rows in each vendor's table `products`.
    preset : str
        Name of a preset (see :func:`mktsim.sim.world.preset_names`), or the path of a preset file ending in ``.toml``.
    fanout : "flat" or int
        Ask every vendor from the coordinator, or through a tree of aggregators with this many children each.
    window : int, "unlimited" or None
        Calls in flight from one sender at most; None takes the preset's.
    shards : int or None
        Machines on which the vendors are placed by a consistent-hash ring, and for which they queue there; None gives
        each vendor its own.
    virtual_nodes : int
        Points of each shard on that ring.
    statement : str
        The query.
    params : sequence
        Its parameters: numbers and strings.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range or the preset does not exist.

    Examples
    --------
    >>> scenario = Scenario(vendors=100, preset="cloudflare-2026")
    >>> Scenario.from_toml(scenario.to_toml()) == scenario
    True
    >>> scenario.replace(window=3).world.window
    3
    """

    vendors: int = 1000
    products: int = 10
    preset: str = "same-zone"
    fanout: int | Literal["flat"] = "flat"
    window: int | Literal["unlimited"] | None = None
    shards: int | None = None
    virtual_nodes: int = 150
    statement: str = "SELECT name, price, rating FROM products WHERE category = ? ORDER BY rating DESC, id LIMIT 10"
    params: Sequence[int | float | str] = ("electronics",)

    def __post_init__(self) -> None:
        self._whole("vendors", 1, _MAX_VENDORS)
        self._whole("products", 0, 1_000_000)
        self._whole("virtual_nodes", 1, 1_000_000)
        if self.fanout != "flat":
            self._whole("fanout", 2, _MAX_VENDORS, ' or "flat"')
        if self.window is not None and self.window != "unlimited":
            self._whole("window", 1, _MAX_VENDORS, ', "unlimited", or None for the preset\'s')
        if self.shards is not None:
            self._whole("shards", 1, _MAX_VENDORS, " or None for a machine a vendor")
        if not isinstance(self.statement, str) or not self.statement.strip():
            raise InvalidArgumentError(f"Scenario.statement must be SQL text, not {self.statement!r:.80}")
        if isinstance(self.params, str) or not isinstance(self.params, Sequence):
            raise InvalidArgumentError(f"Scenario.params must be a sequence of values, not {self.params!r:.80}")
        object.__setattr__(self, "params", tuple(self.params))
        for value in self.params:
            good = isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))
            if not good or isinstance(value, bool) or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
                raise InvalidArgumentError(f"Scenario.params holds numbers and strings, not {value!r:.80}")
        for text in (self.statement, *(value for value in self.params if isinstance(value, str))):
            if re.search("[\ud800-\udfff]", text):
                raise InvalidArgumentError(f"text with a lone surrogate cannot be stored: {text!r:.80}")
        if not isinstance(self.preset, str):
            raise InvalidArgumentError(f"Scenario.preset must be a name or a path, not {self.preset!r:.80}")
        self.load_preset()

    def _whole(self, name: str, low: int, high: int, alternative: str = "") -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidArgumentError(
                f"Scenario.{name} must be a whole number from {low:,} to {high:,}{alternative}, not {value!r:.80}"
            )

    def load_preset(self) -> Preset:
        """Load the preset, with its date and sources."""
        return load_preset(Path(self.preset) if self.preset.endswith(".toml") else self.preset)

    @property
    def world(self) -> World:
        """The preset's world under this scenario's window."""
        world = self.load_preset().world
        if self.window is None:
            return world
        return world.replace(window=None if self.window == "unlimited" else self.window)

    @property
    def width(self) -> int | None:
        """Fan-out width of the tree, None where it is flat: no inner node is needed for that many vendors."""
        return None if self.fanout == "flat" or self.fanout >= self.vendors else self.fanout

    def replace(self, **changes: Any) -> Scenario:
        """Return a copy with some values changed.

        Raises
        ------
        InvalidArgumentError
            If a name is no field, or a value is out of range.
        """
        unknown = changes.keys() - {f.name for f in fields(self)}
        if unknown:
            raise InvalidArgumentError(
                f"a Scenario has no {sorted(unknown)[0]!r:.80}; it has {', '.join(f.name for f in fields(self))}"
            )
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; values that are None are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(v) if name == "params" else v for name, v in values.items() if v is not None}

    def to_toml(self) -> str:
        """Return the scenario as TOML text; :meth:`from_toml` reads it back."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in self.to_dict().items())

    @classmethod
    def from_toml(cls, text: str) -> Scenario:
        """Read a scenario from TOML text; what it does not name keeps its default.

        Raises
        ------
        InvalidArgumentError
            If the text is not TOML, names an unknown value, or one is out of range.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgumentError(f"a scenario cannot be read: {error}") from error
        return cls().replace(**data)

    def _repr_html_(self) -> str:
        preset = self.load_preset()
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self.to_dict().items()
        )
        return f"<table><caption>Scenario, preset of {preset.date}</caption>{cells}</table>"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # TOML's basic strings are JSON's, but for U+007F and for surrogate pairs, which are not written here.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
