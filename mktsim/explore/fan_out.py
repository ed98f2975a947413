"""The fan-out explorer: how long does one query over N vendors take?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mktsim.explore.base import Explorer
from mktsim.explore.controls import FLEETS, check, choice, number, scale, seed_box, whole
from mktsim.explore.drawing import paragraph, picture, table
from mktsim.explore.pasting import Call
from mktsim.sim import preset_names
from mktsim.study.captions import caption_of
from mktsim.study.charts import annotate, line_chart
from mktsim.study.distributions import SERVICES
from mktsim.study.questions import FanOutCurve, fan_out_curve
from mktsim.study.scenario import Scenario

_WIDTHS = [("flat", "flat"), *((str(n), n) for n in (2, 3, 4, 6, 8, 10, 16, 32, 64, 100))]
_WINDOWS = [("the preset's", "preset"), ("unlimited", "unlimited"), *((str(n), n) for n in (1, 2, 6, 20, 100, 1000))]


class FanOut(Explorer):
    """Slide the number of vendors, the width of the tree and the world, and see p50 and p99 of a query over all.

    Parameters
    ----------
    vendors : int
        At the start; one of 10, 30, 100, ... 1,000,000.
    preset : str
        See :func:`mktsim.sim.preset_names`.

    Examples
    --------
    >>> explorer = FanOut(vendors=10)
    >>> explorer.controls["width"].value = 6
    >>> print(explorer.config.splitlines()[3])
    scenario = Scenario(vendors=10, preset="cloudflare-2026", fanout=6)
    >>> explorer.close()
    """

    name = "fanout"
    title = "Fan-out: how long does a query over N vendors take?"
    about = "One coordinator asks every vendor, flat or through a tree of aggregators, and waits for the last answer."

    def __init__(self, *, vendors: int = 1000, preset: str = "cloudflare-2026") -> None:
        services = [("the preset's", "preset"), *((name, name) for name in SERVICES)]
        controls = {
            "vendors": scale("vendors", FLEETS, vendors, "How many vendors the query asks; the chart goes up to here"),
            "width": scale("tree width", _WIDTHS, "flat", "Children of each node; flat: all from the coordinator"),
            "preset": choice("world", preset_names(), preset, "Latencies and limits of a platform, each with a source"),
            "window": choice("window", _WINDOWS, "preset", "Calls that one sender has in flight at most"),
            "service": choice("service time", services, "preset", "Distribution of what one vendor takes"),
            "mean_ms": number("mean service, ms", 5.0, 0.5, 50.0, "Of the distribution chosen; the preset has its own"),
            "requests": whole("requests", 300, 30, 2000, "Simulated for each size; p99 needs 299", step=10),
            "beside_flat": check("flat beside it", True, "Where there is a tree, show the flat scatter as well"),
            "seed": seed_box(1),
        }
        for name in ("service", "width"):
            controls[name].observe(lambda _: self._enable(controls), "value")
        self._enable(controls)
        super().__init__(controls)

    @staticmethod
    def _enable(controls: Mapping[str, Any]) -> None:
        """Let only those be moved that count."""
        controls["mean_ms"].disabled = controls["service"].value == "preset"
        controls["beside_flat"].disabled = controls["width"].value == "flat"

    def _scenario(self, values: dict[str, Any]) -> Scenario:
        window = None if values["window"] == "preset" else values["window"]
        scenario = Scenario(vendors=values["vendors"], preset=values["preset"], fanout=values["width"], window=window)
        if values["service"] == "preset":
            return scenario
        return scenario.replace(world=scenario.world.replace(service=SERVICES[values["service"]](values["mean_ms"])))

    def call(self, values: dict[str, Any]) -> Call:
        """See :meth:`Explorer.call`."""
        options = {name: values[name] for name in ("requests", "seed", "beside_flat")}
        return Call(fan_out_curve, {"scenario": self._scenario(values)}, options)

    def caption(self, values: dict[str, Any], answer: FanOutCurve) -> str:
        """See :meth:`Explorer.caption`."""
        flat = " The flat scatter is beside it." if values["beside_flat"] and values["width"] != "flat" else ""
        return caption_of(
            self._scenario(values), kind="simulated", n=f"{answer.n} requests a point", seed=values["seed"],
            preset=values["preset"], more=f"Bars: 95 % intervals.{flat}",
        )  # fmt: skip

    def draw(self, values: dict[str, Any], answer: FanOutCurve) -> str:
        """See :meth:`Explorer.draw`."""
        axes = line_chart(answer.points, x_label="vendors asked", y_label="sojourn time, ms")
        caption = self.caption(values, answer)
        annotate([axes], title="Sojourn time of one query", caption=caption)
        told = "".join(map(paragraph, answer.left_out))
        title = "the largest fleets, 95 % intervals"
        return told + picture(axes, f"Line chart. {caption}") + table(answer.largest, title=title)
