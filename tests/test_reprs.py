"""What a notebook and a terminal show of each object: every text escaped, and the plain text as good as the HTML."""

from __future__ import annotations

import asyncio
import html
import re
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from IPython.lib.pretty import pretty

from mktsim import ConsistentHashRing, Marketplace, Scenario, explore, simulate
from mktsim.explore.drawing import rows_table
from mktsim.fanout.result import Coverage, QueryResult, QueryStats
from mktsim.sql import Planner, Schema
from mktsim.study.comparison import Comparison
from mktsim.study.optimisation import best_of
from mktsim.study.statistics import Interval

EVIL = "<script>alert(1)</script>"
QUOTED = 'SELECT "' + EVIL + '" AS "' + EVIL + "\", '" + EVIL + "' FROM products WHERE name <> '" + EVIL + "'"
#: Elements that the reprs are made of; whatever else comes up came from data.
KNOWN = {
    "table", "thead", "tbody", "tr", "th", "td", "caption", "p", "small", "b", "code", "div", "h3", "details",
    "summary",
}  # fmt: skip


class Tags(HTMLParser):
    """Collects the elements and the text of some HTML, as a browser reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element, and that nothing is to run."""
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        """Note the text."""
        self.text.append(data)


def read(made: str) -> tuple[set[str], str]:
    """Return the elements and the text of some HTML."""
    tags = Tags()
    tags.feed(made)
    return tags.tags, "".join(tags.text)


@pytest.fixture(scope="module")
def things() -> dict[str, Any]:
    """Return one object of each kind, with markup wherever a user or data can put it."""
    frame = pd.DataFrame({"seller_id": [EVIL, "acme"], EVIL: [EVIL, "mouse"], "name": [EVIL, "\x1b[2J"]})

    async def ask() -> dict[str, Any]:
        async with Marketplace.from_frames(products=frame) as market:
            sql = f'SELECT seller_id, "{EVIL}", name AS "{EVIL} 2" FROM products WHERE name <> \'{EVIL}!\''
            result = await market.query(sql)
            alone = await market.query("SELECT name FROM products", shard_key=EVIL)
            routed = market.explain("SELECT name FROM products WHERE seller_id = ?", [EVIL])
            return {
                "QueryResult": result, "QueryResult, routed": alone, "Explanation": market.explain(sql),
                "Explanation, routed": routed, "Marketplace": (market, market._repr_html_()),
            }  # fmt: skip

    found = asyncio.run(ask())
    stats = QueryStats("two-phase", 2, 1, 0, 1, {})
    found["QueryResult, partial"] = QueryResult(
        [(EVIL, None, b"\x00")], (EVIL, "b", "c"), stats, Coverage(2, 1, (EVIL,))
    )
    found["Ring"] = ConsistentHashRing([EVIL, "b"])
    found["Plan"] = Planner(Schema((f'CREATE TABLE products("{EVIL}" TEXT, name TEXT)',))).plan(QUOTED)
    scenario = Scenario(vendors=3, statement=f"SELECT name AS '{EVIL}' FROM products WHERE name <> ?", params=(EVIL,))
    found["Scenario"] = scenario
    found["simulation"] = simulate(scenario, requests=30, seed=1)
    some, none = Interval(2.0, 1.0, 3.0, 10), Interval(0.0, -1.0, 1.0, 10)
    found["Comparison"] = Comparison(EVIL, some, some, none, 0.5, 2.0)
    found["Optimum"] = best_of([range(10), range(1, 11)], [EVIL, "b"], parameter=EVIL, objective=EVIL)
    try:
        from mktsim.study import StudyResult

        table = pd.DataFrame({EVIL: [EVIL], "estimate": [1.0]})
        found["StudyResult"] = StudyResult(
            question=EVIL, answer=EVIL, frame=table, parameters={EVIL: EVIL}, seed=1, caption=EVIL
        )
    except TypeError:
        found["StudyResult"] = found["simulation"]
    return found


NAMES = [
    "QueryResult", "QueryResult, routed", "QueryResult, partial", "Explanation", "Explanation, routed", "Marketplace",
    "Ring", "Plan", "Scenario", "simulation", "StudyResult",
    "Comparison", "Optimum",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_markup_in_data_is_text(name: str, things: dict[str, Any]) -> None:
    """No element comes from a name, an id, a statement or a column; each is there to read."""
    thing = things[name]
    made = thing[1] if isinstance(thing, tuple) else thing._repr_html_()
    tags, text = read(made)
    assert tags <= KNOWN, tags - KNOWN
    assert "<script" not in made.lower()
    if name not in ("Marketplace", "simulation"):
        assert html.unescape(EVIL) in text


def test_money_in_data_is_no_mathematics() -> None:
    """JupyterLab typesets ``$5 and $6`` in HTML, unless an element above it says that it must not."""
    stats = QueryStats("collect", 1, 1, 0, 1, {})
    merge = explore.merge("SELECT '$5' AS \"$a\", '$6' AS \"$b\"")
    made = {"result": QueryResult([("$5", "$6")], ("$a", "$b"), stats, Coverage(1, 1))._repr_html_()}
    made |= {"merge": merge._result.value, "table": rows_table(["$a", "$b"], [("$5", "$6")], title="$7 and $8")}
    for name, each in made.items():
        reader = Typeset()
        reader.feed(each)
        assert "$5" in "".join(reader.kept), name
        assert reader.typeset == [], name
    merge.close()
    reader = Typeset()
    reader.feed("<table><tr><td>$5 and $6</td></tr></table>")
    assert reader.typeset == ["$5 and $6"]


class Typeset(HTMLParser):
    """Collects the texts with a dollar that MathJax would read, and those it leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[bool] = []
        self.typeset: list[str] = []
        self.kept: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note whether this element, or one around it, is left alone."""
        if tag not in ("img", "br"):
            alone = tag == "code" or "mathjax_ignore" in (dict(attrs).get("class") or "").split()
            self.open.append(alone or (bool(self.open) and self.open[-1]))

    def handle_endtag(self, tag: str) -> None:
        """Leave the element."""
        self.open.pop()

    def handle_data(self, data: str) -> None:
        """Note a text with a dollar."""
        if "$" in data:
            (self.kept if self.open and self.open[-1] else self.typeset).append(data)


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_text_says_as_much(name: str, things: dict[str, Any]) -> None:
    """In a terminal nothing is escaped, nothing is an address in memory, and nothing commands the terminal."""
    thing = things[name][0] if isinstance(things[name], tuple) else things[name]
    text = str(thing)
    assert "object at 0x" not in text
    assert "\x1b" not in text
    assert "&lt;" not in text
    assert len(text) >= 20
    if name.startswith("QueryResult"):
        assert EVIL in text


def test_a_result_prints_as_a_table() -> None:
    """With its column names, NULL, blobs, and how many rows are not shown."""
    stats = QueryStats("collect", 3, 3, 0, 50, {})
    result = QueryResult([(None, b"\xff", k) for k in range(50)], ("a", "b", "number"), stats, Coverage(3, 3))
    lines = str(result).splitlines()
    assert lines[0].split() == ["a", "b", "number"]
    assert lines[2].split() == ["NULL", "x'ff'", "0"]
    assert lines[-2] == "... 30 more rows"
    assert lines[-1] == repr(result)
    assert str(QueryResult([], (), stats, Coverage(0, 0))).endswith(repr(QueryResult([], (), stats, Coverage(0, 0))))


def test_a_plan_prints_its_tier_and_statements(things: dict[str, Any]) -> None:
    """One below the other, as explain does."""
    text = str(things["Plan"])
    assert re.match(r"tier +two-phase\nscatter ", text)
    assert "\ngather " in text


@pytest.mark.parametrize("name", ["Explanation", "Explanation, routed", "Plan", "Comparison", "Optimum"])
def test_the_repr_is_one_short_line_with_the_answer(name: str, things: dict[str, Any]) -> None:
    """Not every field of a dataclass with its tables; `print` and IPython show the whole."""
    thing = things[name]
    text = repr(thing)
    assert text.startswith(f"<{type(thing).__name__} ")
    assert "\n" not in text
    assert len(text) < 250
    told = {
        "Explanation": "vendors to visit",
        "Plan": "<Plan two-phase, 2 columns: ",
        "Comparison": "no difference shown",
        "Optimum": "could be best: 1 of 2",
    }
    assert told[type(thing).__name__] in text


@pytest.mark.parametrize("name", ["Explanation", "Plan"])
def test_ipython_shows_a_whole_explanation(name: str, things: dict[str, Any]) -> None:
    """In a terminal as in a notebook."""
    shown = pretty(things[name])  # type: ignore[no-untyped-call]
    assert shown == str(things[name])
    assert "\ngather " in shown


def test_explorers_escape_what_they_show() -> None:
    """Statement, columns, values, errors."""
    merge = explore.merge(f"SELECT '{EVIL}' AS \"{EVIL}\", name FROM products LIMIT 2")
    tags, text = read(merge._result.value)
    assert "script" not in tags
    assert EVIL in text
    merge.controls["statement"].value = f"SELECT {EVIL}"
    assert "<script" not in merge._status.value
    merge.close()
    assert read(rows_table([EVIL], [(EVIL,)], title=EVIL))[0] <= KNOWN
