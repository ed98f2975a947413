"""The merge explorer: how is a statement answered over many databases, and what would a naive merge say?"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from mktsim.errors import InvalidArgumentError
from mktsim.explore.base import Explorer
from mktsim.explore.controls import choice, seed_box, text, whole
from mktsim.explore.drawing import note, paragraph, rows_table
from mktsim.explore.markup import NO_MATHEMATICS
from mktsim.explore.pasting import Call
from mktsim.study.captions import caption_of, counted
from mktsim.study.questions import MergeComparison, compare_merges
from mktsim.study.scenario import Scenario

#: Statements to begin with, by what they show.
EXAMPLES = {
    "an average by group": "SELECT category, AVG(price), COUNT(*) FROM products GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
    "distinct values": "SELECT COUNT(DISTINCT category), COUNT(DISTINCT rating) FROM products",
    "HAVING": "SELECT category, COUNT(*) AS n FROM products GROUP BY category HAVING COUNT(*) > 6 ORDER BY n DESC, 1",
    "the second page": "SELECT name, rating FROM products ORDER BY rating DESC, name, id LIMIT 5 OFFSET 5",
    "a top ten": "SELECT name, price FROM products WHERE price IS NOT NULL ORDER BY price DESC, id LIMIT 10",
    "a window function": "SELECT name, price, RANK() OVER (ORDER BY price DESC) AS place FROM products LIMIT 5",
    "a join between vendors": (
        "SELECT a.vendorId, b.vendorId, a.name FROM products a JOIN products b\n"
        "  ON a.name = b.name AND a.vendorId < b.vendorId ORDER BY 1, 2, 3 LIMIT 5"
    ),
    "one vendor only": "SELECT name, price FROM products WHERE vendorId = 'v0000002' ORDER BY price LIMIT 3",
}


class Merge(Explorer):
    """Type any SELECT over ``products`` and see its tier, its statements, and the exact and the naive answer.

    Parameters
    ----------
    statement : str, optional
        To begin with.
    vendors, products : int
        How many databases, and rows in each.

    Examples
    --------
    >>> explorer = Merge("SELECT COUNT(*) FROM products", vendors=3)
    >>> "two-phase" in explorer._result.value
    True
    >>> explorer.close()
    """

    name = "merge"
    title = "Merge: one statement over many databases"
    about = "Table products(id, vendorId, name, category, price, rating, stock), a database for each vendor."

    def __init__(self, statement: str | None = None, *, vendors: int = 6, products: int = 8) -> None:
        if statement is not None and not isinstance(statement, str):
            raise InvalidArgumentError(f"statement must be SQL text, not {statement!r:.80}")
        examples = [("…", ""), *EXAMPLES.items()]
        controls = {
            "example": choice("example", examples, "", "Puts a statement into the box below"),
            "statement": text("statement", statement or next(iter(EXAMPLES.values())), "Any SELECT of SQLite", rows=4),
            "params": text("parameters", "[]", 'Values of the placeholders, as a JSON list: ["electronics", 3]'),
            "vendors": whole("vendors", vendors, 1, 40, "Databases"),
            "products": whole("products each", products, 0, 40, "Rows in each"),
            "seed": seed_box(1),
        }
        controls["example"].observe(self._take, "value")
        controls["statement"].observe(self._leave, "value")
        super().__init__(controls)

    def _take(self, change: Any) -> None:
        if change["new"]:
            self.controls["params"].value = "[]"
            self.controls["statement"].value = change["new"]

    def _leave(self, change: Any) -> None:
        """Let an example that was changed be chosen again."""
        if change["new"] != self.controls["example"].value:
            self.controls["example"].value = ""

    def call(self, values: dict[str, Any]) -> Call:
        """See :meth:`Explorer.call`."""
        if not values["statement"].strip():
            raise InvalidArgumentError("there is no statement: type one, like SELECT COUNT(*) FROM products")
        return Call(compare_merges, {"scenario": self._scenario(values)}, {"seed": values["seed"]})

    def caption(self, values: dict[str, Any], answer: MergeComparison) -> str:
        """See :meth:`Explorer.caption`."""
        return caption_of(
            self._scenario(values), kind="measured", n="1 statement", seed=values["seed"], statement=True, timed=False,
            more="The naive merge is judged leniently: 1 equals 1.0, floats to 9 digits, order under ORDER BY alone.",
        )  # fmt: skip

    def draw(self, values: dict[str, Any], answer: MergeComparison) -> str:
        """See :meth:`Explorer.draw`."""
        exact = rows_table(answer.columns, answer.exact, title=f"exact: {counted(len(answer.exact), 'row')}")
        if answer.naive is None:
            naive = paragraph(f"The naive merge breaks down: {answer.naive_error}")
        else:
            naive = rows_table(answer.columns, answer.naive, title=f"naive: {counted(len(answer.naive), 'row')}")
        verdict = "The naive merge is right here." if answer.agree else "The naive merge is wrong here."
        mark, colour = ("✓", "#009E73") if answer.agree else ("✗", "#D55E00")
        shipped, visited = counted(answer.rows_shipped, "row"), counted(answer.vendors_visited, "vendor")
        told = f"{verdict} The exact one " + (
            f"took {shipped} from {visited}." if answer.vendors_visited else "asked no vendor."
        )
        return (
            f"<div {NO_MATHEMATICS}>{answer.explanation._repr_html_()}</div>"
            f"<p style='border-left:4px solid {colour};padding-left:.6em'><b>{mark}</b> {escape(told)}</p>"
            f"<div {NO_MATHEMATICS} style='display:flex;flex-wrap:wrap'><div>{exact}</div><div>{naive}</div></div>"
            + note(self.caption(values, answer))
        )

    def _scenario(self, values: dict[str, Any]) -> Scenario:
        return Scenario(
            vendors=values["vendors"], products=values["products"], statement=values["statement"],
            params=_params(values["params"]),
        )  # fmt: skip


def _params(typed: str) -> tuple[Any, ...]:
    try:
        params = json.loads(typed or "[]")
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f'parameters are a JSON list, like ["electronics", 3]: {error}') from None
    if not isinstance(params, list):
        raise InvalidArgumentError(f'parameters are a JSON list, like ["electronics", 3], not {typed!r:.80}')
    return tuple(params)
