"""Explorers as a user meets them: JupyterLab and Voila in Chromium, by keyboard and by mouse.

Screenshots are kept in ``out/browser``. Without Chromium these tests are skipped, but not where CI is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, Locator, Page, expect

from benchmarks.browser import (
    CHROMIUM,
    EXPLORERS,
    PING,
    chromium,
    click_to_change_ms,
    explorer,
    ready,
    voila,
)
from benchmarks.browser import lab as open_lab

if not os.environ.get("CI") and CHROMIUM is None:
    pytest.skip("there is no chromium (set MKTSIM_CHROMIUM)", allow_module_level=True)

SHOTS = Path(__file__).resolve().parents[1] / "out" / "browser"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium."""
    assert CHROMIUM is not None, "CI needs chromium: .ci/run installs it"
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Open one JupyterLab page with a notebook that shows every explorer, each in a cell of its own."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    cells = [f"from mktsim import explore\n{PING}", *(f"{name} = explore.{name}()\n{name}" for name in EXPLORERS)]
    money = "from IPython.display import HTML, display\nimport pandas as pd\nimport mktsim\n" + MONEY
    with open_lab(
        browser, tmp_path_factory.mktemp("lab"), *cells, money, ready_when=".test-ping, .mktsim-explorer"
    ) as page:
        yield page


def changes(found: Locator, act: Callable[[], object]) -> None:
    """Do something and wait for another answer than there was."""
    result = found.locator(".mktsim-result")
    before = result.inner_html()
    act()
    found.page.wait_for_function("([e, before]) => e.innerHTML !== before", arg=[result.element_handle(), before])
    ready(found)


def handle_of(found: Locator, label: str) -> Locator:
    """Return the handle of the slider with that label."""
    row = found.locator(".widget-slider", has=found.page.locator("label", has_text=label)).first
    handle = row.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    return handle


def by_keyboard(found: Locator, label: str, key: str = "ArrowRight") -> Callable[[], None]:
    """Return an action that moves a slider by one key."""

    def act() -> None:
        handle_of(found, label).focus()
        found.page.keyboard.press(key)

    return act


def by_mouse(found: Locator, label: str, pixels: float) -> Callable[[], None]:
    """Return an action that drags a slider's handle, in thirty steps."""

    def act() -> None:
        box = handle_of(found, label).bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse = found.page.mouse
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + pixels, y, steps=30)
        mouse.up()

    return act


def press(found: Locator, name: str) -> Callable[[], None]:
    """Return an action that presses a button by the mouse."""
    return lambda: found.locator(f"button.mktsim-{name}").click()


def keep(found: Locator, name: str) -> None:
    """Keep a screenshot of an explorer and see that it shows no error."""
    assert found.locator(".mktsim-errors").inner_text().strip() == ""
    found.scroll_into_view_if_needed()
    found.screenshot(path=SHOTS / f"{name}.png")
    assert (SHOTS / f"{name}.png").stat().st_size > 10_000


# -- every explorer -----------------------------------------------------------------------------------------------


def test_fan_out(lab: Page) -> None:
    """Another size by the keyboard and by the mouse, a tree, the code."""
    found = explorer(lab, "fanout")
    assert "p50, flat\t1,000\t" in found.inner_text()
    changes(found, by_keyboard(found, "vendors"))
    assert "p50, flat\t3,000\t" in found.inner_text()
    changes(found, by_mouse(found, "tree width", 60))
    assert "tree of width" in found.inner_text()
    found.get_by_role("button", name="Show code").click()
    expect(found.locator(".mktsim-code pre")).to_contain_text("vendors=3000")
    keep(found, "fanout")


def test_ring(lab: Page) -> None:
    """A shard joins and one leaves."""
    found = explorer(lab, "ring")
    changes(found, press(found, "add"))
    assert "all of them to shard-05" in found.inner_text()
    changes(found, by_mouse(found, "virtual nodes", -60))
    changes(found, by_keyboard(found, "vendors", "PageUp"))
    keep(found, "ring")
    changes(found, press(found, "remove"))
    expect(found).to_contain_text("all of them from shard-00", timeout=20_000)  # after what was still under way


def test_merge(lab: Page) -> None:
    """A statement typed into the box, with markup in it; a mistake is seen, and goes."""
    found = explorer(lab, "merge")
    box = found.locator("textarea")
    changes(found, lambda: box.fill("SELECT '<script>alert(1)</script>' AS \"<b>name</b>\", AVG(price) FROM products"))
    assert "<script>alert(1)</script>" in found.inner_text()
    assert found.locator(".mktsim-result script").count() == 0
    box.fill("SELECT unheard_of FROM products")
    expect(found.locator(".mktsim-errors")).to_contain_text("SQLSyntaxError: no such column: unheard_of")
    found.screenshot(path=SHOTS / "merge-mistake.png")
    changes(found, lambda: found.locator("select").first.select_option(label="HAVING"))
    changes(found, by_mouse(found, "vendors", 30))
    changes(found, by_keyboard(found, "products each"))
    press(found, "code-button")()
    expect(found.locator(".mktsim-code pre")).to_contain_text("answer = compare_merges(scenario, seed=1)")
    keep(found, "merge")


def test_stragglers(lab: Page) -> None:
    """A hedge, and a later one."""
    found = explorer(lab, "stragglers")
    changes(found, lambda: found.get_by_label("hedge", exact=True).check())
    assert "second cop" in found.inner_text()
    changes(found, by_mouse(found, "hedge after", -30))
    changes(found, by_keyboard(found, "request number"))
    press(found, "code-button")()
    expect(found.locator(".mktsim-code pre")).to_contain_text("answer = hedged_request(scenario, request=1")
    keep(found, "stragglers")


def test_faults(lab: Page) -> None:
    """Kill, cut off, heal; the coverage falls and comes back."""
    found = explorer(lab, "faults")
    changes(found, press(found, "kill"))
    assert "11 of 12 vendors answered" in found.inner_text()
    found.locator("select").first.select_option(label="v0000004")
    changes(found, press(found, "partition"))
    assert "10 of 12 vendors answered" in found.inner_text()
    changes(found, by_keyboard(found, "deadline"))
    changes(found, by_mouse(found, "retries", 80))
    changes(found, press(found, "heal"))
    changes(found, press(found, "go"))
    assert "12 of 12 vendors answered" in found.inner_text()
    keep(found, "faults")


def test_stepper(lab: Page) -> None:
    """Step by the keyboard alone, run, reset."""
    found = explorer(lab, "stepper")

    def step() -> None:
        found.locator("button.mktsim-step").focus()
        lab.keyboard.press("Enter")

    changes(found, step)
    assert "1 moment," in found.inner_text()
    changes(found, press(found, "ten"))
    changes(found, by_mouse(found, "vendors", 8))
    changes(found, press(found, "run"))
    changes(found, by_keyboard(found, "requests"))
    assert "the end" in found.inner_text()
    keep(found, "stepper")
    changes(found, press(found, "reset"))


def test_the_tab_key_goes_through_the_controls_in_reading_order(lab: Page) -> None:
    """From the first slider to the buttons."""
    found = explorer(lab, "ring")
    handle_of(found, "virtual nodes").focus()
    seen = []
    for _ in range(8):
        lab.keyboard.press("Tab")
        seen.append(lab.evaluate("document.activeElement.innerText || document.activeElement.className"))
    order = [seen.index(label) for label in ("Add a shard", "Remove a shard", "Reset")]
    assert order == sorted(order)


# -- while a sweep runs -------------------------------------------------------------------------------------------


def test_a_click_is_answered_while_a_million_vendor_sweep_runs_and_stop_stops_it(
    lab: Page, record_property: Any
) -> None:
    """Of another widget and of the same explorer, each before the sweep has ended; Stop ends it before its end.

    How many milliseconds they take is measured by ``python -m benchmarks --only explorers``.
    """
    found = explorer(lab, "fanout")
    by_keyboard(found, "requests", "Home")()
    by_keyboard(found, "vendors", "End")()
    status = found.locator(".mktsim-status")
    expect(status).to_contain_text("1,000,000 vendors", timeout=60_000)
    ping, pong = lab.locator(".test-ping"), lab.locator(".test-pong")
    ping.wait_for()
    answers = []
    for k in range(1, 16):
        answers.append(click_to_change_ms(lab, ping, pong, rf"^{k}$"))
        assert "computing" in status.inner_text(), "the sweep was over before the click was answered"
    found.scroll_into_view_if_needed()
    code = found.locator("button.mktsim-code-button")
    same = []
    for _ in range(4):
        label = "Hide" if code.inner_text() == "Show code" else "Show"
        same.append(click_to_change_ms(lab, code, code, label))
        assert "computing" in status.inner_text(), "the sweep was over before the click was answered"
    found.screenshot(path=SHOTS / "fanout-sweep.png")
    stop = click_to_change_ms(lab, found.locator("button.mktsim-stop"), status, "^stopped")
    expect(status).to_contain_text("in part")
    figures = {
        "answers_ms": [round(ms) for ms in answers], "same_explorer_ms": [round(ms) for ms in same],
        "stop_ms": round(stop),
    }  # fmt: skip
    (SHOTS / "stopwatch.json").write_text(json.dumps(figures))
    record_property("stopwatch", figures)
    print(figures)


MONEY = """
from mktsim.explore.drawing import rows_table
from mktsim.fanout.result import Coverage, QueryResult, QueryStats
result = QueryResult([("$5 and $6",)], ("$a$",), QueryStats("local", 0, 0, 0, 1, {}), Coverage(0, 0))
display(HTML("<div class='test-typeset'>$5 and $6</div>"), HTML(f"<div class='test-kept'>{result._repr_html_()}</div>"))
display(HTML(f"<div class='test-kept'>{rows_table(['$a$'], [('$5 and $6',)])}</div>"))
get_ipython().run_line_magic("load_ext", "mktsim")
from mktsim.explore.magic import _marked
_marked(pd.DataFrame({"$a$": ["$5 and $6"]}), "", get_ipython())
"""


def test_money_in_results_is_not_typeset(lab: Page) -> None:
    """Where HTML does not say so, JupyterLab makes mathematics of what stands between two dollars."""
    lab.locator(".test-typeset mjx-container").wait_for(state="attached", timeout=60_000)
    for kept in lab.locator(".test-kept, .dataframe").all():
        assert kept.locator("mjx-container").count() == 0
        assert "$5 and $6" in kept.inner_text()
    assert lab.locator(".dataframe").count() >= 1


# -- voila --------------------------------------------------------------------------------------------------------


def test_voila_shows_every_explorer_and_their_mistakes(browser: Browser, tmp_path: Path) -> None:
    """Without a notebook around them: a button of each answers, a slider moves one, and an error is seen."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    cells = ["from mktsim import explore", *(f"explore.{name}({SMALL.get(name, '')})" for name in EXPLORERS)]
    with voila(browser, tmp_path, *cells) as page:
        for name in EXPLORERS:
            found = explorer(page, name)
            button = BUTTONS.get(name)
            if button is None:
                found.locator("button.mktsim-code-button").click()
                expect(found.locator(".mktsim-code pre")).to_contain_text("answer = ")
            else:
                changes(found, press(found, button))
            assert found.locator(".mktsim-errors").inner_text().strip() == ""
        found = explorer(page, "merge")
        changes(found, by_keyboard(found, "vendors"))
        assert "4 vendors" in found.inner_text()
        found.locator("textarea").fill("SELECT unheard_of FROM products")
        expect(found.locator(".mktsim-errors")).to_contain_text("SQLSyntaxError")
        page.screenshot(path=SHOTS / "voila.png")


#: Explorers of few vendors; and a button that changes the answer, where an explorer has one.
SMALL = {"fanout": "vendors=10", "merge": "vendors=3", "stragglers": "leaves=6", "faults": "vendors=3"}
BUTTONS = {"ring": "add", "faults": "kill", "stepper": "step"}
