"""The stragglers explorer: where does one request's time go, and what does a second copy buy?"""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes

from mktsim.explore.background import Slices
from mktsim.explore.base import Explorer
from mktsim.explore.controls import check, choice, number, seed_box, whole
from mktsim.explore.drawing import caption, paragraph, picture, stacked_axes, table
from mktsim.explore.pasting import code_of, imports_of
from mktsim.explore.questions import SERVICES, HedgedRequest, hedged_request
from mktsim.fanout.policy import ScatterPolicy
from mktsim.sim import Background, Exponential, World
from mktsim.study.charts import PALETTE
from mktsim.study.scenario import Scenario

_REQUESTS: Final = 400
#: The parts of a call, from a step to the next, and how they look.
_PARTS: Final = (
    ("sent_ms", "arrived_ms", "on its way", PALETTE[4], ""),
    ("arrived_ms", "served_ms", "queue and service", PALETTE[0], ""),
    ("served_ms", "back_ms", "way back", PALETTE[4], "///"),
    ("back_ms", "end_ms", "taken in", "#000000", ""),
)


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
        super().__init__(controls)

    def _scenario(self, values: dict[str, Any]) -> Scenario:
        busy = values["utilisation"]
        world = World(
            link_out=Exponential(0.5), link_back=Exponential(0.5), replicas=2, cancel_ms=0.5, fan_in_ms=0.05,
            service=SERVICES[values["service"]](values["mean_ms"]),
            background=Background(busy, values["mean_ms"]) if busy else None,
        )  # fmt: skip
        after_s = values["hedge_ms"] / 1e3
        policy = ScatterPolicy(hedge_after_s=after_s, tied=values["tied"]) if values["hedge"] else None
        return Scenario(vendors=values["leaves"], world=world, policy=policy)

    def work(self, values: dict[str, Any]) -> Slices:
        """See :meth:`Explorer.work`."""
        return hedged_request(
            self._scenario(values), request=values["request"], requests=_REQUESTS, seed=values["seed"]
        )

    def draw(self, values: dict[str, Any], answer: HedgedRequest) -> str:
        """See :meth:`Explorer.draw`."""
        text = f"Request {values['request']} took {answer.time_ms:.1f} ms"
        if values["hedge"]:
            text += f" with {answer.copies} second copies; without hedging, same draws, {answer.plain_ms:.1f} ms"
        axes = waterfall_axes(answer.waterfall, end_ms=answer.time_ms)
        caption(axes, f"Simulated: one request over {values['leaves']} vendors, seed {values['seed']}")
        title = f"{_REQUESTS} requests, 95 % intervals, same draws for both"
        return paragraph(f"{text}.") + picture(axes, f"Waterfall chart. {text}.") + table(answer.effect, title=title)

    def config_of(self, values: dict[str, Any]) -> str:
        """See :meth:`Explorer.config_of`."""
        scenario = self._scenario(values)
        return (
            f"{imports_of(scenario, finish='mktsim.explore.questions', hedged_request='mktsim.explore.questions')}\n\n"
            f"scenario = {code_of(scenario)}\n"
            f"answer = finish(hedged_request(scenario, request={values['request']}, requests={_REQUESTS}, "
            f"seed={values['seed']}))\nanswer.waterfall"
        )


def waterfall_axes(frame: pd.DataFrame, *, end_ms: float) -> Axes:
    """Draw a waterfall table: a bar a call, in the order in which they ended, the stragglers at the bottom."""
    ordered = frame.sort_values("rank", ascending=False, ignore_index=True)
    (axes,) = stacked_axes(1.2 + 0.12 * max(len(ordered), 12))
    for begin, end, label, colour, hatch in _PARTS:
        width = (ordered[end] - ordered[begin]).clip(lower=0)
        axes.barh(
            ordered.index, width, left=ordered[begin], height=0.75, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.2, label=label,
        )  # fmt: skip
    copies = ordered[ordered["attempt"] > 0]
    if len(copies):
        axes.plot(copies["sent_ms"], copies.index, ">", color=PALETTE[1], ms=5, label="second copy", ls="none")
    given_up = ordered[ordered["outcome"] == "cancelled"]
    if len(given_up):
        axes.plot(given_up["end_ms"], given_up.index, "x", color="#777777", ms=4, label="withdrawn", ls="none")
    axes.axvline(end_ms, color="#000000", lw=1, ls=":", label="answered")
    names = [
        target.rpartition("/")[2] + ("′" if attempt else "")
        for target, attempt in zip(ordered["target"], ordered["attempt"], strict=True)
    ]
    axes.set_yticks(ordered.index, names, fontsize=6)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set(xlabel="since the request began, simulated ms", ylabel="vendor (′: second copy)")
    axes.grid(False, axis="y")
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return axes
