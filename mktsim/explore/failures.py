"""The faults explorer: what is left of an answer while vendors are down, and how does it come back?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from mktsim.explore.base import Explorer
from mktsim.explore.controls import check, check_whole, choice, number, seed_box, whole
from mktsim.explore.drawing import paragraph, picture, rows_table, shown
from mktsim.explore.pasting import Call
from mktsim.sim import Exponential, Uniform, World
from mktsim.sim.faults import Crash, Fault, Partition, SlowDisk
from mktsim.study.captions import caption_of
from mktsim.study.charts import ride_chart
from mktsim.study.coordinated import vendor_ids
from mktsim.study.questions import intended_start_ms, resilient_policy, ride_through
from mktsim.study.scenario import Scenario

_EVERY_MS: Final = 100.0
_MORE: Final = 10
_MOST: Final = 200


class Faults(Explorer):
    """Kill, slow or cut off a vendor while requests go on, and see coverage, time and recovery.

    A press of a button adds a fault to the schedule, from now on, and sends ten more requests. The whole run is
    repeated each time: same seed, same schedule, same past.

    Parameters
    ----------
    vendors : int
        From 2 to 40.

    Examples
    --------
    >>> explorer = Faults(vendors=4)
    >>> explorer.buttons["kill"].click()
    >>> explorer.schedule
    (Crash(targets='vendor/v0000000', share=1.0, start_ms=1000.0, end_ms=inf, silent=False),)
    >>> explorer.close()
    """

    name = "faults"
    title = "Faults: what is left of an answer, and how does it come back?"
    about = "A request every 100 ms, partial answers allowed. Choose a vendor, press a button, and the run goes on."

    def __init__(self, *, vendors: int = 12) -> None:
        self._vendors = check_whole("vendors", vendors, 2, 40)
        #: Faults so far, and requests sent.
        self.schedule: tuple[Fault, ...] = ()
        self.requests = _MORE
        controls = {
            "vendor": choice("vendor", vendor_ids(self._vendors), "v0000000", "Whom the next button hits"),
            "added_ms": number("slowed by, ms", 8.0, 1.0, 60.0, "What a slowed vendor takes longer for each call"),
            "deadline_ms": number("deadline, ms", 60.0, 5.0, 200.0, "Nobody is waited for longer", step=5.0),
            "retries": whole("retries", 1, 0, 3, "Further attempts, after a third of the deadline or a refusal"),
            "breaker": check("circuit breaker", True, "Stop asking who failed twice; try again after some time"),
            "seed": seed_box(1),
        }
        actions = {
            "go": ("Go on", "Ten more requests", lambda: self._go_on()),
            "kill": ("Kill", "The vendor's process ends: callers are refused", lambda: self._hit(Crash)),
            "slow": ("Slow", "The vendor's disk becomes slow", lambda: self._hit(SlowDisk)),
            "partition": ("Partition", "Messages to and from the vendor are lost", lambda: self._hit(Partition)),
            "heal": ("Heal all", "Every fault ends now", self._heal),
            "reset": ("Reset", "Begin anew, without faults", self._reset),
        }
        super().__init__(controls, actions)

    @property
    def now_ms(self) -> float:
        """When the next request will be sent, on the simulated clock."""
        return intended_start_ms(self.requests, every_ms=_EVERY_MS)

    def _hit(self, kind: type[Fault]) -> None:
        more = {"added_ms": self.controls["added_ms"].value} if kind is SlowDisk else {}
        target = f"vendor/{self.controls['vendor'].value}"
        self._go_on((*self.schedule, kind(targets=target, start_ms=self.now_ms, **more)))

    def _heal(self) -> None:
        self._go_on(
            tuple(replace(each, end_ms=self.now_ms) if each.end_ms == math.inf else each for each in self.schedule)
        )

    def _reset(self) -> None:
        self.schedule, self.requests = (), _MORE
        self._enable()
        self.refresh()

    def _go_on(self, schedule: tuple[Fault, ...] | None = None) -> None:
        if self.requests < _MOST:
            self.schedule = self.schedule if schedule is None else schedule
            self.requests += _MORE
        self._enable()
        self.refresh()

    def _enable(self) -> None:
        for name in ("go", "kill", "slow", "partition", "heal"):
            self.buttons[name].disabled = self.requests >= _MOST

    def values(self) -> dict[str, Any]:
        """See :meth:`Explorer.values`."""
        return {**super().values(), "schedule": self.schedule, "requests": self.requests}

    def _scenario(self, values: dict[str, Any]) -> Scenario:
        return Scenario(
            vendors=self._vendors, statement="SELECT COUNT(*) AS products, AVG(price) FROM products", params=(),
            world=World(
                link_out=Uniform(0.125, 0.25), link_back=Uniform(0.125, 0.25), service=Exponential(0.5),
                faults=values["schedule"],
            ),
            policy=resilient_policy(values["deadline_ms"], retries=values["retries"], breaker=values["breaker"]),
        )  # fmt: skip

    def call(self, values: dict[str, Any]) -> Call:
        """See :meth:`Explorer.call`."""
        options = {"requests": values["requests"], "every_ms": _EVERY_MS, "seed": values["seed"]}
        return Call(ride_through, {"scenario": self._scenario(values)}, options)

    def caption(self, values: dict[str, Any], answer: Any) -> str:
        """See :meth:`Explorer.caption`."""
        return caption_of(
            self._scenario(values), kind="simulated", n=f"{values['requests']} requests, one each {_EVERY_MS:g} ms",
            seed=values["seed"], statement=True, more="Shaded: a fault holds.",
        )  # fmt: skip

    def draw(self, values: dict[str, Any], answer: Any) -> str:
        """See :meth:`Explorer.draw`."""
        top, _ = ride_chart(answer, faults=values["schedule"], caption=self.caption(values, answer))
        last = answer.iloc[-1]
        text = (
            f"Last request: {last['answered']} of {last['asked']} vendors answered in {last['sojourn_time_ms']:.1f} ms"
        )
        if values["requests"] >= _MOST:
            text += f"; {_MOST} requests are the end of this run: Reset begins anew"
        facts = [
            ("answer", "; ".join(", ".join(map(shown, row)) for row in last["answer"]) or "none"),
            ("missing", ", ".join(last["missing"]) or "nobody"),
            ("guarantee", last["guarantee"]),
            ("calls", last["calls"]),
            ("partial answers so far", last["partial_so_far"]),
        ]
        return (
            paragraph(f"{text}.")
            + picture(top, f"Coverage and time. {text}.")
            + rows_table(["", "last request"], facts)
        )
