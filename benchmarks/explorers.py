"""How long a user of the explorers waits for a click, while a sweep over a million vendors runs: in a real browser.

JupyterLab runs in Chromium with every explorer in a notebook; the page's own clock measures from a click to the change
that it causes. What counts is the worst that a user meets, so the high quantiles are reported, and every try counts: a
machine that is busy with others is slower, and is not excused.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pandas as pd

from benchmarks.peers import PeerMissingError

#: Bars, ms: to the answer of a click, and from Stop to stopped.
ANSWER_MS: Final = 250
STOP_MS: Final = 200
#: Tries of each kind.
TRIES: Final = {"click": 60, "stop": 10}
QUICK: Final = {"click": 20, "stop": 2}
#: A button of each explorer: one that asks anew where there is one.
BUTTONS: Final = {
    "ring": "add", "faults": "kill", "stepper": "step", "merge": "code-button", "stragglers": "code-button",
    "fanout": "code-button",
}  # fmt: skip


def run(quick: bool) -> pd.DataFrame:
    """Press buttons, by the page's clock.

    Returns
    -------
    DataFrame
        One row a kind of click: ``what``, ``n``, ``p50``, ``p90``, ``p99`` and ``largest`` in ms, ``bar`` and whether
        the largest keeps it; a blank bar where the answer is work of its own.

    Raises
    ------
    PeerMissingError
        If there is no Chromium or no Playwright.
    """
    if find_spec("playwright") is None:
        raise PeerMissingError("Playwright is not installed: pip install -e '.[dev]'")
    from benchmarks import browser

    if browser.CHROMIUM is None:
        raise PeerMissingError("there is no Chromium; MKTSIM_CHROMIUM names one")
    tries = QUICK if quick else TRIES
    with TemporaryDirectory() as folder, browser.chromium() as chromium:
        cells = [f"from mktsim import explore\n{browser.PING}"]
        cells += [f"{name} = explore.{name}()\n{name}" for name in browser.EXPLORERS]
        with browser.lab(
            chromium, Path(folder), *cells, ready_when=".test-ping, .mktsim-explorer"
        ) as page:  # fmt: skip
            times = _alone(browser, page, 5 if quick else 15)
            times |= _beside_a_sweep(browser, page, tries["click"], tries["stop"])
    return _table(times)


def _alone(browser: Any, page: Any, tries: int) -> dict[str, list[float]]:
    """Press a button in each explorer, with nothing else under way."""
    times: dict[str, list[float]] = {}
    for name, button in BUTTONS.items():
        found = browser.explorer(page, name)
        pressed, watched = found.locator(f"button.mktsim-{button}"), found.locator(".mktsim-result")
        what = f"{name}: a new answer after {button!r}"
        if button == "code-button":
            watched, what = pressed, f"{name}: its code"
        times[what] = []
        for _ in range(tries):
            if button == "code-button":
                pattern = "^Hide" if pressed.inner_text() == "Show code" else "^Show"
                times[what].append(browser.click_to_change_ms(page, pressed, watched, pattern))
                continue
            times[what].append(_click_to_another(page, pressed, watched))
            browser.ready(found)
            if pressed.is_disabled():
                found.locator("button.mktsim-reset").click()
                browser.ready(found)
    return times


def _beside_a_sweep(browser: Any, page: Any, clicks: int, stops: int) -> dict[str, list[float]]:
    """Click beside a sweep over a million vendors that never ends by itself, and stop it, again and again."""
    found = browser.explorer(page, "fanout")
    status, stop = found.locator(".mktsim-status"), found.locator("button.mktsim-stop")
    code = found.locator("button.mktsim-code-button")
    ping, pong = page.locator(".test-ping"), page.locator(".test-pong")
    other, same, stopped = "another widget, beside a sweep", "the same explorer, beside its sweep", "Stop of a sweep"
    times: dict[str, list[float]] = {other: [], same: [], stopped: []}
    slider = found.locator(".widget-slider", has=page.locator("label", has_text="vendors")).first
    vendors = slider.locator(".noUi-handle")
    fewer = found.locator(".widget-slider", has=page.locator("label", has_text="requests")).first
    fewer.locator(".noUi-handle").first.focus()
    page.keyboard.press("Home")  # Few requests of the smaller fleets, so that the million is soon reached.
    vendors.first.focus()
    page.keyboard.press("End")
    number = 0
    for turn in range(stops):
        if turn:  # The same sweep once more: one step back, and again to the end.
            vendors.first.focus()
            page.keyboard.press("ArrowLeft")
            page.keyboard.press("ArrowRight")
        browser.expect(status).to_contain_text("1,000,000 vendors", timeout=120_000)
        for _ in range(max(1, clicks // stops)):
            number += 1
            times[other].append(browser.click_to_change_ms(page, ping, pong, rf"^{number}$"))
            label = "^Hide" if code.inner_text() == "Show code" else "^Show"
            times[same].append(browser.click_to_change_ms(page, code, code, label))
        assert "computing" in status.inner_text(), "the sweep was over before its clicks"
        times[stopped].append(browser.click_to_change_ms(page, stop, status, "^stopped"))
    return times


CLICK_TO_ANOTHER: Final = """async ([button, watched]) => {
  const before = watched.innerHTML, start = performance.now();
  const done = new Promise((resolve, reject) => {
    const look = () => { if (watched.innerHTML !== before) resolve(performance.now() - start); };
    new MutationObserver(look).observe(watched, {childList: true, subtree: true, characterData: true});
    setTimeout(() => reject(new Error("no other answer")), 20000);
  });
  button.click();
  return await done;
}"""


def _click_to_another(page: Any, button: Any, watched: Any) -> float:
    return float(page.evaluate(CLICK_TO_ANOTHER, [button.element_handle(), watched.element_handle()]))


def _table(times: dict[str, list[float]]) -> pd.DataFrame:
    rows = []
    for what, found in times.items():
        bar = STOP_MS if what.startswith("Stop") else None if "a new answer" in what else ANSWER_MS
        p50, p90, p99 = np.quantile(found, (0.5, 0.9, 0.99), method="higher").round(0).tolist()
        kept = "" if bar is None else "yes" if max(found) <= bar else "no"
        rows.append((what, len(found), p50, p90, p99, round(max(found)), bar or "", kept))
    columns = ["what", "n", "p50, ms", "p90, ms", "p99, ms", "largest, ms", "bar, ms", "all within the bar"]
    return pd.DataFrame(rows, columns=columns)
