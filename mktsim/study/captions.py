"""Captions of pictures and tables: what a reader needs to judge one, written from the scenario that was asked.

Rules
-----
A caption says first whether what is shown was measured, simulated or computed by a closed form; then how many samples
there are, the seed, the fleet, the world and the policy. It is made of the scenario itself, so it cannot tell of
another world than the one that was asked: where a preset is changed, it names the preset with its date *and* the
change.

Examples
--------
>>> from mktsim.study.scenario import Scenario
>>> asked = Scenario(vendors=50, preset="cloudflare-2026", window=6)
>>> print(caption_of(asked, kind="simulated", n="300 requests", seed=1))
Simulated: n = 300 requests, seed 1; 50 vendors, flat; window 6; preset cloudflare-2026 of 2026-11-22.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from mktsim.fanout.policy import ScatterPolicy
from mktsim.sim import plain
from mktsim.sim.faults import Fault
from mktsim.sim.world import World, load_preset
from mktsim.study.points import Kind
from mktsim.study.scenario import Scenario

#: Faults that a caption lists; of more it says how many.
_FAULTS: Final = 6


def caption_of(
    scenario: Scenario, *, kind: Kind, n: str, seed: int, preset: str = "", statement: bool = False, timed: bool = True,
    fleet: bool = True, more: str = "",
) -> str:  # fmt: skip
    """Write the caption of what a scenario gave.

    Parameters
    ----------
    scenario : Scenario
        What was asked.
    kind : "measured", "simulated" or "analytic"
        Where it comes from.
    n : str
        How many samples, and of what: ``"300 requests a point"``.
    seed : int
    preset : str
        The preset that an own world was made of: then only what differs is told.
    statement : bool
        Whether the statement decides what is shown; of times alone it does not.
    timed, fleet : bool
        Whether the world's times, and the number of vendors, decide what is shown.
    more : str
        Sentences at the end.
    """
    shape = "flat" if scenario.width is None else f"a tree of width {scenario.fanout}"
    parts = [f"{kind.capitalize()}: n = {n}, seed {seed}"]
    if fleet:
        parts.append(f"{counted(scenario.vendors, 'vendor')}, {shape}")
    if statement:
        parts.append(f"{counted(scenario.products, 'product')} each")
    if scenario.shards is not None:
        parts.append(f"{scenario.shards:,} shards of {scenario.virtual_nodes:,} virtual nodes")
    if timed:
        window = scenario.world.window
        parts.append(f"window {'unlimited' if window is None else format(window, ',')}")
        parts.append(world_in_words(scenario, preset=preset))
    if scenario.policy is not None:
        parts.append(f"policy: {_changes(scenario.policy, ScatterPolicy())}")
    if statement:
        given = f" with {', '.join(map(repr, scenario.params))}" if scenario.params else ""
        parts.append(f"statement: {' '.join(scenario.statement.split())}{given}")
    return "; ".join(parts) + "." + (f" {more}" if more else "")


def world_in_words(scenario: Scenario, *, preset: str = "") -> str:
    """Say which world holds: a preset with its date and what differs from it, or each value of an own world.

    Examples
    --------
    >>> world_in_words(Scenario(world=World(fan_in_ms=0.5)))
    'own world: fan_in_ms 0.5'
    """
    name = preset or ("" if scenario.preset == "own" else scenario.preset)
    if not name:
        return f"own world: {_changes(scenario.world, World()) or 'no time passes'}"
    known = scenario.load_preset() if scenario.preset == name else load_preset(name)
    changes = _changes(scenario.world, known.world)
    return f"preset {known.name} of {known.date}" + (f", but {changes}" if changes else "")


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and what it counts.

    Examples
    --------
    >>> counted(1, "moment"), counted(2_000, "moment"), counted(0, "copy", "copies")
    ('1 moment', '2,000 moments', '0 copies')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _changes(value: Any, base: Any) -> str:
    """Name the fields in which one dataclass differs from another."""
    told = []
    for each in fields(value):
        mine = getattr(value, each.name)
        if each.init and each.name != "window" and mine != getattr(base, each.name):  # A caption always has the window.
            told.append(f"{each.name} {_words(mine)}")
    return ", ".join(told)


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple) and value and isinstance(value[0], Fault):
        more = f" and {len(value) - _FAULTS} more" if len(value) > _FAULTS else ""
        return "; ".join(map(_fault, value[:_FAULTS])) + more
    if is_dataclass(value):
        return _listed(plain.to_plain(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fault(fault: Fault) -> str:
    until = "" if fault.end_ms == float("inf") else f" to {fault.end_ms:,g}"
    rest = {
        each.name: getattr(fault, each.name)
        for each in fields(fault)
        if each.name not in ("targets", "start_ms", "end_ms") and getattr(fault, each.name) != each.default
    }
    more = f" ({', '.join(f'{name} {_words(value)}' for name, value in rest.items())})" if rest else ""
    return f"{fault.kind.replace('_', ' ')} of {fault.targets} from {fault.start_ms:,g}{until} ms{more}"


def _listed(data: Any) -> str:
    if not isinstance(data, Mapping):
        return f"{data:g}" if isinstance(data, float) else str(data)
    kind = data.get("kind", "")
    rest = ", ".join(f"{name} {_listed(value)}" for name, value in data.items() if name != "kind")
    return f"{kind} ({rest})".strip() if rest else str(kind)
