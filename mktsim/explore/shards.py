"""The ring explorer: which vendors move when a shard comes or goes?"""

from __future__ import annotations

from typing import Any

from mktsim.explore.base import Explorer
from mktsim.explore.controls import check_whole, scale, whole
from mktsim.explore.drawing import paragraph, picture, table
from mktsim.explore.pasting import Call
from mktsim.study.captions import counted
from mktsim.study.charts import ring_change_chart
from mktsim.study.questions import RingChange, ring_change

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

    def call(self, values: dict[str, Any]) -> Call:
        """See :meth:`Explorer.call`."""
        given = {"before": list(values["before"]), "after": list(values["after"])}
        options = {"vendors": values["vendors"], "virtual_nodes": values["virtual_nodes"]}
        return Call(ring_change, given, options)

    def caption(self, values: dict[str, Any], answer: RingChange) -> str:
        """See :meth:`Explorer.caption`."""
        return (
            f"Measured on this program's ring, not estimated: n = {counted(values['vendors'], 'vendor')}; before "
            f"{_named(values['before'])}, after {_named(values['after'])}, {values['virtual_nodes']:,} virtual nodes "
            "a shard; hashes of the names decide, no seed and no world."
        )

    def draw(self, values: dict[str, Any], answer: RingChange) -> str:
        """See :meth:`Explorer.draw`."""
        text = answer.in_words()
        bars, _ = ring_change_chart(
            answer.shards, turn=answer.turn, moved=answer.moved, caption=self.caption(values, answer),
        )  # fmt: skip
        shown = answer.shards.rename(columns={"in": "moved in", "out": "moved out"})
        return paragraph(text) + picture(bars, f"Bar chart of vendors a shard, and the ring. {text}") + table(shown)


def _named(shards: tuple[str, ...]) -> str:
    return (
        f"{counted(len(shards), 'shard')} ({shards[0]} to {shards[-1]})"
        if len(shards) > 1
        else f"1 shard ({shards[0]})"
    )
