"""A scenario: everything that decides what a study asks, and nothing of how it is computed.

Rules
-----
A world comes from a preset, whose values have sources, or is the study's own. The policy is the very object that rules
a live coordinator. Whatever the array engine cannot compute of both, :meth:`Scenario.uncovered` names.
"""

from __future__ import annotations

import html
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, Literal, cast

from mktsim.errors import InvalidArgumentError
from mktsim.fanout.policy import Breaker, ScatterPolicy
from mktsim.sim import plain
from mktsim.sim.operators import Hosts
from mktsim.sim.vectorised import Policy, unsupported
from mktsim.sim.world import TICK_S, Preset, World, load_preset, ms_to_ticks

_MAX_VENDORS: Final = 10_000_000
_PRESET: Final = "same-zone"
_STATEMENT: Final = "SELECT name, price, rating FROM products WHERE category = ? ORDER BY rating DESC, id LIMIT 10"
_PARAMS: Final = ("electronics",)
#: What `Scenario.preset` says where the world is the study's own.
_OWN: Final = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet, the world it stands in and the query that is asked of it.

    Parameters
    ----------
    vendors : int
        How many, from 1 to 10,000,000.
    products : int
        Rows in each vendor's table `products`.
    preset : str or path
        Name of a preset (see :func:`mktsim.sim.world.preset_names`), or the path of a preset file ending in ``.toml``;
        ``"own"`` where a world is given. A path is kept as its text.
    world : World, str or None
        A world of the study's own, in place of a preset's, or the preset's name. It then reads as the world that holds,
        under the scenario's `window`.
    policy : ScatterPolicy or None
        How the coordinator, or the tree's nodes, treat slow and failing vendors; None asks each once. Second copies
        find the other machines where the world has `replicas`.
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
        The query, over the one table of simulated vendors, `products(id, vendorId, name, category, price, rating,
        stock)`; planned when it is simulated, by either engine. See :meth:`planned_elsewhere`.
    params : sequence
        Its parameters: numbers and strings. A statement of one's own has none where they are left out.

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
    >>> hedged = scenario.replace(world=World(replicas=2), policy=ScatterPolicy(hedge_after_s=0.01))
    >>> Scenario.from_toml(hedged.to_toml()) == hedged, hedged.preset
    (True, 'own')
    """

    vendors: int = 1000
    products: int = 10
    preset: str = ""  # A path becomes its text when it is made.
    world: World = None  # type: ignore[assignment]  # A preset's name and None become Worlds when it is made.
    policy: ScatterPolicy | None = None
    fanout: int | Literal["flat"] = "flat"
    window: int | Literal["unlimited"] | None = None
    shards: int | None = None
    virtual_nodes: int = 150
    statement: str = _STATEMENT
    params: Sequence[int | float | str] = None  # type: ignore[assignment]  # None becomes those of the statement.
    _own: World | None = field(default=None, init=False, repr=False, compare=False)
    _is_planned: bool = field(default=False, init=False, repr=False, compare=False)

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
        if cast(Any, self.params) is None:
            object.__setattr__(self, "params", _PARAMS if self.statement == _STATEMENT else ())
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
        if self.policy is not None and not isinstance(self.policy, ScatterPolicy):
            raise InvalidArgumentError(f"Scenario.policy must be a ScatterPolicy or None, not {self.policy!r:.80}")
        self._settle_world()

    def _settle_world(self) -> None:
        """Decide between preset and own world; from here on `world` is the one that holds."""
        preset, world = _text_of(self.preset), cast(Any, self.world)
        if not isinstance(preset, str):
            raise InvalidArgumentError(f"Scenario.preset must be a name or a path, not {preset!r:.80}")
        if isinstance(world, str):
            if preset not in ("", world):
                raise InvalidArgumentError(f"Scenario.preset {preset!r:.80} and world {world!r:.80} name two presets")
            preset, world = world, None
        if world is None:
            preset = preset or _PRESET
            holds = load_preset(_where(preset)).world
        elif isinstance(world, World):
            if preset not in ("", _OWN):
                raise InvalidArgumentError(f"give Scenario a preset or a world, not both: {preset!r:.80} and a World")
            preset, holds = _OWN, world
        else:
            raise InvalidArgumentError(f"Scenario.world must be a World or a preset's name, not {world!r:.80}")
        if self.window is not None:
            holds = holds.replace(window=None if self.window == "unlimited" else self.window)
        for name, value in (("preset", preset), ("world", holds), ("_own", world)):
            object.__setattr__(self, name, value)

    def _whole(self, name: str, low: int, high: int, alternative: str = "") -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidArgumentError(
                f"Scenario.{name} must be a whole number from {low:,} to {high:,}{alternative}, not {value!r:.80}"
            )

    @property
    def is_planned_elsewhere(self) -> bool:
        """Whether the statement is another market's; see :meth:`planned_elsewhere`."""
        return self._is_planned

    def planned_elsewhere(self) -> Scenario:
        """Return the scenario of a statement that a market with other tables has planned: only its times are simulated.

        Simulated vendors need not have the tables; where the event engine has to run the statement, they do.

        Examples
        --------
        >>> asked = Scenario(statement="SELECT stars FROM reviews", params=()).planned_elsewhere()
        >>> asked.replace(vendors=10).is_planned_elsewhere, asked.replace(params=(1,)).is_planned_elsewhere
        (True, False)
        """
        copy = self.replace()
        object.__setattr__(copy, "_is_planned", True)
        return copy

    def load_preset(self) -> Preset:
        """Load the preset, with its date and sources; an own world has neither."""
        if self._own is not None:
            return Preset(_OWN, "", "A world of the study's own.", self._own, {})
        return load_preset(_where(self.preset))

    @property
    def width(self) -> int | None:
        """Fan-out width of the tree, None where it is flat: no inner node is needed for that many vendors."""
        return None if self.fanout == "flat" or self.fanout >= self.vendors else self.fanout

    @property
    def simulated_policy(self) -> ScatterPolicy | None:
        """The policy on simulated time's grid: its hedge after a whole number of ticks."""
        policy = self.policy
        if policy is None or policy.hedge_after_s is None:
            return policy
        return policy.replace(hedge_after_s=ms_to_ticks(policy.hedge_after_s * 1e3) * TICK_S)

    @property
    def live_policy(self) -> ScatterPolicy:
        """The policy for a live coordinator: its window is the world's cap on connections, unless it has its own."""
        policy = self.policy or ScatterPolicy()
        return policy if policy.window is not None else policy.replace(window=self.world.window)

    @property
    def array_policy(self) -> Policy:
        """What of the policy the array engine computes; :meth:`uncovered` names what it cannot."""
        policy = self.policy or ScatterPolicy()
        after_s = policy.hedge_after_s
        return Policy(hedge_ms=None if after_s is None else after_s * 1e3, tied=policy.tied and after_s is not None)

    def uncovered(self, hosts: Hosts | None = None) -> str | None:
        """Name what the array engine cannot compute of this scenario, or None where it can.

        Retries, back-off, budgets and breakers need no computing where nothing fails; worlds where something may are
        refused.

        Examples
        --------
        >>> Scenario(policy=ScatterPolicy(deadline_s=1)).uncovered()
        'a deadline'
        >>> Scenario(policy=ScatterPolicy(retries=3)).uncovered() is None
        True
        """
        policy = self.policy or ScatterPolicy()
        reasons = {
            "a deadline": policy.deadline_s is not None,
            "a time-out of attempts": policy.attempt_timeout_s is not None,
            "hedges at an observed quantile": policy.hedge_quantile is not None,
            f"the policy's window of {policy.window} (the world's is covered)": policy.window is not None
            and policy.window < self.vendors,
        }
        named = next((reason for reason, holds in reasons.items() if holds), None)
        return named or unsupported(
            self.world, leaves=self.vendors, width=self.width, hosts=hosts, policy=self.array_policy
        )

    def replace(self, **changes: Any) -> Scenario:
        """Return a copy with some values changed; a new preset takes the place of an own world, and the reverse.

        Raises
        ------
        InvalidArgumentError
            If a name is no field, or a value is out of range.
        """
        known = _fields()
        unknown = changes.keys() - set(known)
        if unknown:
            raise InvalidArgumentError(f"a Scenario has no {sorted(unknown)[0]!r:.80}; it has {', '.join(known)}")
        values = {name: getattr(self, name) for name in known} | {"world": self._own}
        if "statement" in changes and (self.statement, self.params) == (_STATEMENT, _PARAMS):
            values["params"] = None  # They were not for another statement.
        if changes.get("world") is not None:
            values["preset"] = ""
        elif "preset" in changes or "world" in changes:
            values["world"] = None
            values["preset"] = "" if self._own is not None else self.preset
        changed = Scenario(**(values | changes))
        if not changes.keys() & {"statement", "params"}:
            object.__setattr__(changed, "_is_planned", self._is_planned)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; values that are None are left out, and so is the world where it is the preset's."""
        values = {name: getattr(self, name) for name in _fields()} | {"world": self._own}
        return {name: plain.to_plain(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> Scenario:
        """Read plain data; the inverse of :meth:`to_dict`. What it does not name keeps its default.

        Raises
        ------
        InvalidArgumentError
            If it names an unknown value, or one is out of range.
        """
        if not isinstance(data, Mapping):
            raise InvalidArgumentError(f"a scenario is a table, not {data!r:.80}")
        values = dict(data)
        if isinstance(values.get("world"), Mapping):
            values["world"] = World.from_dict(values["world"])
        if "policy" in values:
            readers = {"breaker": lambda breaker: plain.from_plain(Breaker, breaker)}
            values["policy"] = plain.from_plain(ScatterPolicy, values["policy"], readers)
        return cls().replace(**values)

    def to_toml(self) -> str:
        """Return the scenario as TOML text; :meth:`from_toml` reads it back."""
        return "".join(f"{name} = {plain.to_toml(value)}\n" for name, value in self.to_dict().items())

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
        return cls.from_dict(data)

    def _repr_html_(self) -> str:
        date = self.load_preset().date
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self.to_dict().items()
        )
        world = f"preset of {date}" if date else "a world of its own"
        return f"<table><caption>Scenario, {world}</caption>{cells}</table>"


def _text_of(preset: Any) -> Any:
    path = fspath(preset) if isinstance(preset, PathLike) else None
    if isinstance(path, str) and not path.endswith(".toml"):
        raise InvalidArgumentError(f"Scenario.preset: the file of a preset ends in .toml, and {path!r:.300} does not")
    return preset if path is None else path


def _where(preset: str) -> str | Path:
    return Path(preset) if preset.endswith(".toml") else preset


def _fields() -> list[str]:
    return [each.name for each in fields(Scenario) if each.init]
