"""The stragglers explorer: where does one request's time go, and what does a second copy buy?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mktsim.explore.base import Explorer
from mktsim.explore.controls import check, choice, number, seed_box, whole
from mktsim.explore.drawing import paragraph, picture, table
from mktsim.explore.pasting import Call
from mktsim.sim import Background, Exponential, World
from mktsim.study.captions import caption_of, counted
from mktsim.study.charts import waterfall_chart
from mktsim.study.distributions import SERVICES
from mktsim.study.questions import HedgedRequest, hedged_request, hedging_policy
from mktsim.study.scenario import Scenario

_REQUESTS: Final = 400
#: Vendors that are drawn, of more those that had answered last.
_MOST: Final = 24


class Stragglers(Explorer):
    """Watch one request's calls as a waterfall, and hedge the late ones.

    Parameters
    ----------
    leaves : int
        How many vendors are asked, from 2 to 60.

    Examples
    --------
    >>> explorer = Stragglers(leaves=10)
    >>> explorer.controls["hedge"].value = True
    >>> "hedge_after_s=0.015" in explorer.config
    True
    >>> explorer.close()
    """

    name = "stragglers"
    title = "Stragglers: where does one request's time go?"
    about = "A request waits for its slowest call. A hedge sends a second copy of what is late to another replica."

    def __init__(self, *, leaves: int = 24) -> None:
        controls = {
            "leaves": whole("vendors asked", leaves, 2, 60, "Calls of one request"),
            "request": whole("request number", 0, 0, 99, "Which of the simulated requests is shown"),
            "service": choice("service time", list(SERVICES), "exponential", "Distribution of what one vendor takes"),
            "mean_ms": number("mean service, ms", 5.0, 0.5, 30.0, "Of that distribution"),
            "utilisation": number(
                "busy for others", 0.2, 0.0, 0.9, "Share of the time vendors work for others", step=0.05
            ),
            "hedge": check("hedge", False, "Send a second copy of calls that are late"),
            "hedge_ms": number("hedge after, ms", 15.0, 0.0, 60.0, "When a call counts as late"),
            "tied": check("tied", False, "The copy that is served first withdraws its twin"),
            "seed": seed_box(1),
        }
        controls["hedge"].observe(lambda _: self._enable(controls), "value")
        self._enable(controls)
        super().__init__(controls)

    @staticmethod
    def _enable(controls: Mapping[str, Any]) -> None:
        """Let only those be moved that count."""
        for name in ("hedge_ms", "tied"):
            controls[name].disabled = not controls["hedge"].value

    def _scenario(self, values: dict[str, Any]) -> Scenario:
        busy = values["utilisation"]
        world = World(
            link_out=Exponential(0.5), link_back=Exponential(0.5), replicas=2, cancel_ms=0.5, fan_in_ms=0.05,
            service=SERVICES[values["service"]](values["mean_ms"]),
            background=Background(busy, values["mean_ms"]) if busy else None,
        )  # fmt: skip
        policy = hedging_policy(values["hedge_ms"], tied=values["tied"]) if values["hedge"] else None
        return Scenario(vendors=values["leaves"], world=world, policy=policy)

    def call(self, values: dict[str, Any]) -> Call:
        """See :meth:`Explorer.call`."""
        options = {"request": values["request"], "requests": _REQUESTS, "seed": values["seed"]}
        return Call(hedged_request, {"scenario": self._scenario(values)}, options)

    def caption(self, values: dict[str, Any], answer: HedgedRequest) -> str:
        """See :meth:`Explorer.caption`."""
        return caption_of(
            self._scenario(values), kind="simulated", n=f"1, request {values['request']}", seed=values["seed"],
        )  # fmt: skip

    def draw(self, values: dict[str, Any], answer: HedgedRequest) -> str:
        """See :meth:`Explorer.draw`."""
        text = f"Request {values['request']} took {answer.time_ms:.1f} ms"
        if values["hedge"]:
            copies = counted(answer.copies, "second copy", "second copies")
            text += f" with {copies}; without hedging, same draws, {answer.plain_ms:.1f} ms"
        axes = waterfall_chart(
            answer.waterfall, title="One request", caption=self.caption(values, answer), most=_MOST,
            end_ms=answer.time_ms,
        )  # fmt: skip
        title = f"{_REQUESTS} requests, 95 % intervals, same draws for both"
        return paragraph(f"{text}.") + picture(axes, f"Waterfall chart. {text}.") + table(answer.effect, title=title)
