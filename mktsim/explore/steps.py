"""The stepper: a simulation, one moment at a time, with its event log."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from mktsim.errors import InvalidArgumentError
from mktsim.explore.base import Explorer
from mktsim.explore.controls import choice, number, seed_box, whole
from mktsim.explore.drawing import note, paragraph, table
from mktsim.explore.pasting import Call
from mktsim.sim import Exponential, World
from mktsim.sim.events import scatters
from mktsim.sim.simulation import Program
from mktsim.study.captions import caption_of, counted
from mktsim.study.distributions import SERVICES
from mktsim.study.questions import Replay, replay
from mktsim.study.scenario import Scenario

_SHOWN: Final = 12


class Stepper(Explorer):
    """Step through a simulated scatter, or a program of your own, and read what happened.

    Each press runs the simulation from its begin to the moment asked for: same seed, same moments, whatever the steps.

    Parameters
    ----------
    program : callable, optional
        See :class:`mktsim.sim.simulation.Simulation`; a scatter over some vendors when absent.
    world : World, optional
        Of that program; what the controls say when absent.

    Examples
    --------
    >>> explorer = Stepper()
    >>> explorer.buttons["step"].click()
    >>> explorer.moments
    1
    >>> explorer.close()
    """

    name = "stepper"
    title = "Stepper: a simulation, one moment at a time"
    about = "A moment is an instant at which something is recorded. Stepping, running and resetting give the same log."

    def __init__(self, program: Program | None = None, world: World | None = None) -> None:
        if program is not None and not callable(program):
            raise InvalidArgumentError(f"program must be a function of a network, not {program!r:.80}")
        if world is not None and not isinstance(world, World):
            raise InvalidArgumentError(f"world must be a World, not {world!r:.80}")
        self._program, self._own_world = program, world
        #: Moments to show; None for all.
        self.moments: int | None = 0
        controls = {"seed": seed_box(1)}
        if program is None:
            controls = {
                "leaves": whole("vendors", 5, 1, 200, "Calls of one request"),
                "requests": whole("requests", 2, 1, 50, "One after another"),
                "window": choice(
                    "window", [("unlimited", 0), ("1", 1), ("2", 2), ("6", 6)], 0, "Calls in flight at most"
                ),
                **controls,
            }
        if world is None:
            controls = {
                "service": choice("service time", list(SERVICES), "exponential", "Distribution of a vendor's work"),
                "mean_ms": number("mean service, ms", 5.0, 0.5, 30.0, "Of that distribution"),
                **controls,
            }
        actions = {
            "step": ("Step", "On to the next moment", lambda: self._go(1)),
            "ten": ("Ten steps", "Ten moments on", lambda: self._go(10)),
            "run": ("Run", "To the end", lambda: self._to(None)),
            "reset": ("Reset", "Back to time 0", lambda: self._to(0)),
        }
        super().__init__(controls, actions)

    def _to(self, moments: int | None) -> None:
        self.moments = moments
        self.refresh()

    def _go(self, more: int) -> None:
        if self.moments is not None:  # At the end there is no further.
            self._to(self.moments + more)

    def stopped(self) -> None:
        """Stay at the moment that is shown."""
        if self.moments is None and self._job is not None and self._job.progress is not None:
            self.moments = self._job.progress.done

    def values(self) -> dict[str, Any]:
        """See :meth:`Explorer.values`."""
        return {**super().values(), "moments": self.moments}

    def _world(self, values: dict[str, Any]) -> World:
        if self._own_world is not None:
            return self._own_world
        return World(
            link_out=Exponential(1.0), link_back=Exponential(1.0),
            service=SERVICES[values["service"]](values["mean_ms"]), window=values.get("window") or None,
        )  # fmt: skip

    def call(self, values: dict[str, Any]) -> Call:
        """See :meth:`Explorer.call`."""
        name, program, known = "program", self._program, {}
        if program is None:
            program = partial(scatters, leaves=values["leaves"], requests=range(values["requests"]))
        else:
            name, line = _named(program)
            known = {name: line}
        options = {"moments": values["moments"], "seed": values["seed"]}
        return Call(replay, {name: program, "world": self._world(values)}, options, known)

    def caption(self, values: dict[str, Any], answer: Replay) -> str:
        """See :meth:`Explorer.caption`."""
        what = "a program of your own" if self._program is not None else counted(values["requests"], "request")
        world = self._world(values)
        return caption_of(
            Scenario(vendors=values.get("leaves", 1), world=world), kind="simulated",
            n=f"{counted(answer.moments, 'moment')} of 1 run of {what}", seed=values["seed"],
            fleet=self._program is None,
        )  # fmt: skip

    def draw(self, values: dict[str, Any], answer: Replay) -> str:
        """See :meth:`Explorer.draw`."""
        recent = answer.last(_SHOWN)
        title = "event log" if len(recent) == len(answer.log) else (
            f"event log, the last {len(recent)} of {len(answer.log):,}"
        )  # fmt: skip
        return paragraph(answer.in_words()) + table(recent, title=title) + note(self.caption(values, answer))


def _named(program: Program) -> tuple[str, str]:
    """Return the name of a user's program, and the line that makes it known or says who must."""
    name, module = getattr(program, "__qualname__", ""), getattr(program, "__module__", None)
    if not name.isidentifier():
        return "program", f"# program: what this stepper was given, {program!r:.80}; give it this name before."
    if module in (None, "__main__"):
        return name, f"# {name}: your own program, async def {name}(network); define it before."
    return name, f"from {module} import {name}"
