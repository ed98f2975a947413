"""The ring explorer: which vendors move when a shard comes or goes?"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mktsim.explore.background import Progress, Slices
from mktsim.explore.base import Explorer
from mktsim.explore.controls import check_whole, scale, whole
from mktsim.explore.drawing import caption, dress, paragraph, picture, stacked_axes, table
from mktsim.explore.questions import RingChange, ring_change
from mktsim.study.charts import PALETTE
from mktsim.study.coordinated import vendor_ids

_VNODES = [1, 2, 5, 10, 20, 50, 100, 150, 300, 1000]
_MOST = 24


class Ring(Explorer):
    """Add and remove shards, and watch which vendors move, and where to.

    Parameters
    ----------
    shards : int
        At the start, from 1 to 24.
    vendors : int
        That are placed.

    Examples
    --------
    >>> explorer = Ring(shards=4, vendors=400)
    >>> explorer.buttons["add"].click()
    >>> explorer.after
    ('shard-00', 'shard-01', 'shard-02', 'shard-03', 'shard-04')
    >>> explorer.close()
    """

    name = "ring"
    title = "Ring: which vendors move when a shard comes or goes?"
    about = "Each shard owns many points of a ring, and a vendor belongs to the next point clockwise of its hash."

    def __init__(self, *, shards: int = 5, vendors: int = 1000) -> None:
        self._start = tuple(f"shard-{number:02}" for number in range(check_whole("shards", shards, 1, _MOST)))
        #: Shards before the last change, and now.
        self.before = self.after = self._start
        controls = {
            "virtual_nodes": scale("virtual nodes", _VNODES, 150, "Points that each shard has on the ring"),
            "vendors": whole("vendors", vendors, 100, 20_000, "How many are placed", step=100),
        }
        actions = {
            "add": ("Add a shard", "A new shard joins the ring", self._add),
            "remove": ("Remove a shard", "The oldest shard leaves", self._remove),
            "reset": ("Reset", "Back to the shards of the start", self._reset),
        }
        super().__init__(controls, actions)
        self._enable()

    def _enable(self) -> None:
        self.buttons["add"].disabled = len(self.after) >= _MOST
        self.buttons["remove"].disabled = len(self.after) <= 1

    def _add(self) -> None:
        if len(self.after) < _MOST:
            number = int(self.after[-1].partition("-")[2]) + 1
            self._change((*self.after, f"shard-{number:02}"))

    def _remove(self) -> None:
        if len(self.after) > 1:
            self._change(self.after[1:])

    def _reset(self) -> None:
        self.after = self._start
        self._change(self._start)

    def _change(self, after: tuple[str, ...]) -> None:
        self.before, self.after = self.after, after
        self._enable()
        self.refresh()

    def values(self) -> dict[str, Any]:
        """See :meth:`Explorer.values`."""
        return {**super().values(), "before": self.before, "after": self.after}

    def work(self, values: dict[str, Any]) -> Slices:
        """See :meth:`Explorer.work`."""
        ids = vendor_ids(values["vendors"])
        change = ring_change(values["before"], values["after"], ids, virtual_nodes=values["virtual_nodes"])
        yield Progress(1, 1, "placements")
        return change

    def draw(self, values: dict[str, Any], answer: RingChange) -> str:
        """See :meth:`Explorer.draw`."""
        (axes,) = stacked_axes(3.3)
        frame = answer.shards
        left, right = np.arange(len(frame)) - 0.2, np.arange(len(frame)) + 0.2
        axes.bar(left, frame["before"], 0.38, color="white", edgecolor="#555555", label="before")
        kept = frame["after"] - frame["in"]
        axes.bar(right, kept, 0.38, color=PALETTE[0], label="now: stayed")
        axes.bar(right, frame["in"], 0.38, bottom=kept, color=PALETTE[1], hatch="///", edgecolor="white",
                 label="now: moved here")  # fmt: skip
        names = [name.removeprefix("shard-") for name in frame["shard"]]
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="shard", ylabel="vendors")
        axes.grid(False, axis="x")
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        # The ring itself, beside the bars: every vendor at its hash.
        circle = dress(axes.figure.add_axes((0.72, 0.16, 0.27, 0.72), projection="polar"))
        turn = 2 * np.pi * answer.turn
        circle.plot(turn[~answer.moved], np.ones((~answer.moved).sum()), ".", color=PALETTE[4], ms=2)
        circle.vlines(turn[answer.moved], 1.05, 1.25, color=PALETTE[1], lw=1)
        circle.set(rmax=1.3, yticks=[], xticks=[])
        circle.set_title("the ring: who moved", fontsize=8)
        circle.grid(False)
        circle.spines["polar"].set_visible(False)
        engine = axes.figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine)
        engine.set(rect=(0, 0, 0.7, 1))
        caption(axes, f"Computed: {values['vendors']:,} vendors, {values['virtual_nodes']} virtual nodes a shard")
        moved = int(answer.moved.sum())
        text = f"{moved:,} of {values['vendors']:,} vendors moved ({answer.share:.1%})"
        joined = sorted(set(values["after"]) - set(values["before"]))
        gone = sorted(set(values["before"]) - set(values["after"]))
        if joined:
            text += (
                f", all of them to {', '.join(joined)}; an even share would be {len(joined) / len(values['after']):.1%}"
            )
        if gone:
            text += f", all of them from {', '.join(gone)}; nobody else had to"
        shown = frame.rename(columns={"in": "moved in", "out": "moved out"})
        return paragraph(f"{text}.") + picture(axes, f"Bar chart of vendors a shard. {text}.") + table(shown)

    def config_of(self, values: dict[str, Any]) -> str:
        """See :meth:`Explorer.config_of`."""
        return (
            "from mktsim import ConsistentHashRing\nfrom mktsim.placement import moved\n\n"
            f"vendors = [f'v{{number:07d}}' for number in range({values['vendors']})]\n"
            f"before = ConsistentHashRing({list(values['before'])!r}, virtual_nodes={values['virtual_nodes']})\n"
            f"after = ConsistentHashRing({list(values['after'])!r}, virtual_nodes={values['virtual_nodes']})\n"
            "moved(before, after, vendors).sum()"
        )
