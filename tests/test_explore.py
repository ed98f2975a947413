"""Explorers without a kernel or a browser: their questions, their controls, the debounce, Stop, errors, code."""

from __future__ import annotations

import asyncio
import html
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mktsim import Scenario, explore, simulate
from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.explore import background
from mktsim.explore.background import Job, Progress
from mktsim.explore.base import Explorer
from mktsim.sim import Constant, Crash, Hiccups, Simulation, World, preset_names
from mktsim.streams import Streams
from mktsim.study.charts import waterfall_chart
from mktsim.study.correctness import naive_is_right
from mktsim.study.questions import compare_merges, fan_out_curve, ride_through, ring_change
from mktsim.study.questions import curve as curve_module

NAMES = ["fanout", "ring", "merge", "stragglers", "faults", "stepper"]


@pytest.fixture(scope="module", params=NAMES)
def looked_at(request: pytest.FixtureRequest) -> Iterator[Explorer]:
    """Return each explorer, made as `explorer` is, for tests that only look at it."""
    made = getattr(explore, request.param)()
    yield made
    made.close()


@pytest.fixture(params=NAMES)
def explorer(request: pytest.FixtureRequest) -> Iterator[Explorer]:
    """Return each explorer, made without a running loop: everything happens at once."""
    made = getattr(explore, request.param)()
    yield made
    made.close()


class Slow(Explorer):
    """Counts up in slices, or spins in one that never ends."""

    name = "slow"
    title = about = "<script>alert(1)</script>"

    def __init__(self, slice_s: float = 0.01, *, spin: bool = False) -> None:
        from mktsim.explore.controls import check, whole

        self.seen: list[int] = []
        self.ended: list[float] = []
        self.slice_s, self.spin = slice_s, spin
        super().__init__({"n": whole("n", 1, 0, 1000, "count"), "fail": check("fail", False, "go wrong")})

    def work(self, values: dict[str, Any]) -> Any:
        assert threading.current_thread() is not threading.main_thread() or not _in_loop()
        try:
            for k in range(values["n"]):
                while self.spin:
                    pass
                time.sleep(self.slice_s)
                yield Progress(k + 1, values["n"], "slices", k if k % 10 == 9 else None)
            if values["fail"]:
                raise KeyError("a defect")
        finally:
            self.ended.append(time.perf_counter())
        return values["n"]

    def draw(self, values: dict[str, Any], answer: Any) -> str:
        self.seen.append(answer)
        return f"<p>{answer}</p>"

    def config_of(self, values: dict[str, Any]) -> str:
        if values["n"] == 13:
            raise InvalidArgumentError("13 cannot be written down")
        return f"n = {values['n']}  # <script>"


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def text_of(made: str) -> str:
    """Return the text of some HTML."""
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", made))


# -- every explorer -----------------------------------------------------------------------------------------------


def test_it_shows_an_answer_as_soon_as_it_is_made(looked_at: Explorer) -> None:
    """And says that it is ready."""
    assert looked_at.errors.outputs == ()
    assert "ready" in looked_at._status.value
    assert len(looked_at._result.value) > 200
    assert looked_at.buttons["stop"].disabled


def test_every_control_is_labelled_and_tells_what_it_does(looked_at: Explorer) -> None:
    """A description and a tooltip, and keyboard order is reading order."""
    for widget in (*looked_at.controls.values(), *looked_at.buttons.values(), looked_at.code):
        assert widget.description, widget
        assert widget.tooltip, widget
        assert getattr(widget, "index", 0) is not None, f"{widget.description} would look empty"
    rows, buttons = looked_at.children[1], looked_at.children[2]
    shown = [one for row in rows.children for one in getattr(row, "children", [row])]
    assert shown == list(looked_at.controls.values())
    assert list(buttons.children) == [*looked_at.buttons.values(), looked_at.code]


def test_its_code_is_shown_on_demand(explorer: Explorer) -> None:
    """In lines that a cell can hold."""
    assert explorer._code.layout.display == "none"
    explorer.code.value = True
    assert explorer._code.layout.display == ""
    assert text_of(explorer._code.value).split()[0] == "from"
    assert max(map(len, explorer.config.splitlines())) <= 100


def small(name: str) -> Explorer:
    """Return an explorer over few vendors, all of whose controls count."""
    made: Explorer = getattr(explore, name)(**SMALL[name])
    for control, value in ENABLING.get(name, {}).items():
        made.controls[control].value = value
    for button in {"ring": ["add"], "stepper": ["run"], "faults": ["kill"]}.get(name, []):
        made.buttons[button].click()
    return made


SMALL: dict[str, dict[str, Any]] = {
    "fanout": {"vendors": 10}, "ring": {"vendors": 200}, "merge": {"vendors": 3}, "stragglers": {"leaves": 6},
    "faults": {"vendors": 3}, "stepper": {},
}  # fmt: skip
ENABLING: dict[str, dict[str, Any]] = {
    "fanout": {"requests": 40, "width": 3, "service": "exponential"},
    "stragglers": {"hedge": True, "hedge_ms": 2.0},
}
#: What a control is moved to, where the next option or step would not be another question.
MOVES: dict[tuple[str, str], Any] = {
    ("fanout", "window"): 2, ("fanout", "preset"): "same-zone", ("fanout", "vendors"): 30,
    ("merge", "params"): '["books"]',
    ("merge", "statement"): "SELECT name\nFROM products\nORDER BY price -- a comment",
    ("stragglers", "request"): 7,
}  # fmt: skip


def move(made: Explorer, name: str) -> None:
    """Change a control."""
    control = made.controls[name]
    if (made.name, name) == ("merge", "params"):
        made.controls["statement"].value = "SELECT COUNT(*) FROM products WHERE category = ?"
    if (made.name, name) in MOVES:
        control.value = MOVES[made.name, name]
    elif hasattr(control, "index"):
        control.index = control.index + 1 if control.index + 1 < len(control.options) else control.index - 1
    else:
        control.value = not control.value if isinstance(control.value, bool) else control.value + 2 * control.step


def same(one: Any, two: Any) -> bool:
    """Return whether two answers are the same, whatever they are made of, to the last bit."""
    if type(one) is not type(two):
        return False
    if isinstance(one, pd.DataFrame):
        return one.equals(two)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two)
    if is_dataclass(one) and not isinstance(one, type):
        return all(same(getattr(one, each.name), getattr(two, each.name)) for each in fields(one))
    return bool(one == two)


@pytest.mark.parametrize("name", NAMES)
def test_its_code_gives_the_answer_that_is_shown_and_its_caption_tells_the_question(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever control is moved: the pasted code's answer is the one shown; another question has another caption."""
    drawn: list[str] = []

    def noted(axes: Any) -> bytes:
        drawn[:] = [text.get_text() for text in axes.figure.texts]
        return b"PNG"

    monkeypatch.setattr("mktsim.explore.drawing.png", noted)
    made = small(name)
    asked: set[str] = set()
    seen: dict[str, str] = {}
    for control in ["", *sorted(made.controls, key="hedge".__eq__)]:  # Without a hedge, others would not count.
        if control:
            move(made, control)
        assert made.errors.outputs == (), (control, made.errors.outputs)
        namespace: dict[str, Any] = {}
        exec(made.config, namespace)
        assert same(namespace["answer"], made.answer), control
        caption = made.caption(made.values(), made.answer)
        shown = " ".join([*drawn, html.unescape(text_of(made._result.value))])
        assert "".join(caption.split()) in "".join(shown.split()), control
        assert re.match("(Measured|Simulated)", caption)
        assert re.search(r"\bn = [\d,]+ ?\w*", caption)
        assert "seed" in caption
        assert seen.setdefault(caption, made.config) == made.config, f"{control}: two questions, one caption"
        asked.add(made.config)
    idle = {"faults": {"vendor", "added_ms"}, "merge": {"example"}}.get(name, set())
    assert len(asked) >= 1 + len(made.controls) - len(idle)
    made.close()


def test_the_caption_tells_of_the_world_that_was_asked() -> None:
    """A preset with its date, and whatever is not the preset's."""
    made = explore.fanout(vendors=10)
    assert "window 6; preset cloudflare-2026 of 2026-11-22." in made.caption(made.values(), made.answer)
    made.controls["window"].value = "unlimited"
    made.controls["service"].value = "exponential"
    caption = made.caption(made.values(), made.answer)
    assert "window unlimited; preset cloudflare-2026 of 2026-11-22, but service exponential (mean_ms 5)" in caption
    made.close()
    stragglers = explore.stragglers(leaves=5)
    stragglers.controls["hedge"].value = True
    caption = stragglers.caption(stragglers.values(), stragglers.answer)
    for told in ("5 vendors", "service exponential (mean_ms 5)", "utilisation 0.2", "hedge_after_s 0.015"):
        assert told in caption
    stragglers.close()


@pytest.mark.parametrize("name", ["ring", "faults", "stragglers", "fanout"])
def test_every_series_of_a_picture_says_where_it_comes_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, simulated or analytic, in the legend."""
    labels: list[str] = []

    def noted(axes: Any) -> bytes:
        labels[:] = [text.get_text() for legend in axes.figure.legends for text in legend.get_texts()]
        return b"PNG"

    monkeypatch.setattr("mktsim.explore.drawing.png", noted)
    small(name).close()
    assert len(labels) >= 2
    assert all(re.match("(measured|simulated|analytic): ", label) for label in labels), labels


def test_its_code_follows_its_controls(explorer: Explorer) -> None:
    """The block that is open changes with them."""
    explorer.code.value = True
    before = explorer._code.value
    control = explorer.controls["vendors" if explorer.name == "ring" else "seed"]
    control.value += 100
    assert explorer._code.value != before
    assert text_of(explorer._code.value).split() == text_of(escape(explorer.config)).split()


def test_pictures_have_a_text_for_those_who_do_not_see_them(looked_at: Explorer) -> None:
    """And nothing is fetched from elsewhere."""
    for image in re.findall("<img[^>]*>", looked_at._result.value):
        assert re.search("alt='[^']{10,}'", image)
        assert "src='data:image/png" in image


# -- the machinery ------------------------------------------------------------------------------------------------


def test_without_a_loop_everything_happens_at_once() -> None:
    """A plain Python session has nobody who would wait."""
    slow = Slow(0.0)
    slow.controls["n"].value = 3
    assert slow.seen == [1, 3]
    assert slow._result.value == "<p>3</p>"
    slow.close()


def test_a_drag_of_many_steps_is_one_run() -> None:
    """The debounce waits for 150 ms of rest, and the values of the end count."""

    async def drag() -> Slow:
        slow = Slow(0.0)
        await slow.settled()
        for n in range(2, 62):
            slow.controls["n"].value = n
            await asyncio.sleep(0.002)
        assert slow.runs == 1
        await slow.settled()
        return slow

    slow = asyncio.run(drag())
    assert slow.runs == 2
    assert slow.seen[-1] == 61


def test_the_loop_goes_on_while_a_job_works_and_sees_its_progress() -> None:
    """The work is in another thread, the widgets change in this one."""

    async def watch() -> None:
        slow = Slow(0.01)
        await slow.settled()
        slow.controls["n"].value = 60
        turns, states, begun = 0, set(), time.perf_counter()
        while slow.busy or time.perf_counter() - begun < 0.3:
            await asyncio.sleep(0.005)
            turns += slow.busy
            states.add(text_of(slow._status.value))
            if slow._result.value == "<p>9</p>":
                states.add("partial")
        assert "partial" in states
        assert any("of 60 slices" in state for state in states)
        assert turns > 10
        assert slow._result.value == "<p>60</p>"
        assert slow._progress.layout.visibility == "hidden"

    asyncio.run(watch())


@pytest.mark.parametrize("spin", [False, True], ids=["between slices", "within a slice that never ends"])
def test_stop_ends_the_work_and_not_only_the_display(spin: bool, record_property: Any) -> None:
    """Long before it would have ended; how many milliseconds it takes is measured by `benchmarks/explorers.py`."""

    async def stop() -> float:
        slow = Slow(0.02)
        await slow.settled()
        slow.spin = spin
        slow.controls["n"].value = 1000
        await asyncio.sleep(0.4)
        assert not slow.buttons["stop"].disabled
        pressed = time.perf_counter()
        slow.buttons["stop"].click()
        try:
            await asyncio.wait_for(slow.settled(), 10)
        finally:
            slow.spin = False
        assert slow._job is not None
        assert slow._job.join(10.0)
        assert slow._job.state == "stopped"
        done = 0 if slow._job.progress is None else slow._job.progress.done
        assert done == 0 if spin else 0 < done < 500
        assert "stopped" in slow._status.value
        assert slow.buttons["stop"].disabled
        return slow.ended[-1] - pressed

    tries_ms = [round(1e3 * asyncio.run(stop())) for _ in range(2)]
    record_property("stop_ms", tries_ms)
    print(f"ms from Stop to the end of the work: {tries_ms}")


def test_stop_breaks_off_a_slice_over_a_million_vendors(record_property: Any) -> None:
    """The longest slice there is: one request under a window, leaf by leaf in Python. Its sweep never ends."""

    async def stop() -> float:
        made = explore.fanout(vendors=10)
        await made.settled()
        made.controls["requests"].min = 6
        made.controls["requests"].value = 6
        made.controls["vendors"].value = 1_000_000
        made.controls["window"].value = 6
        made.controls["preset"].value = "same-zone"
        while "1,000,000 vendors" not in made._status.value:
            await asyncio.sleep(0.01)
        pressed = time.perf_counter()
        made.buttons["stop"].click()
        await made.settled()
        stopped_s = time.perf_counter() - pressed
        assert made._job is not None
        assert made._job.join(10.0)
        assert made._job.state == "stopped"
        assert made._job.progress is not None
        assert made._job.progress.done < made._job.progress.total
        made.close()
        return stopped_s

    tries_ms = [round(1e3 * asyncio.run(stop())) for _ in range(2)]
    record_property("stop_ms", tries_ms)
    print(f"ms from Stop to stopped: {tries_ms}")


def test_a_new_question_supersedes_the_one_under_way() -> None:
    """Whose answer is never shown, however late it comes."""

    async def change() -> Slow:
        slow = Slow(0.01)
        await slow.settled()
        slow.controls["n"].value = 500
        await asyncio.sleep(0.3)
        slow.controls["n"].value = 2
        await slow.settled()
        assert slow._result.value == "<p>2</p>"
        await asyncio.sleep(0.1)
        assert slow._result.value == "<p>2</p>"
        return slow

    slow = asyncio.run(change())
    assert 500 not in slow.seen
    assert slow.runs == 3


def test_a_defect_is_seen_with_its_traceback_and_a_mistake_by_name() -> None:
    """In the explorer itself: Voila shows nothing else. The next good answer takes the error away."""

    async def fail() -> None:
        slow = Slow(0.0)
        await slow.settled()
        slow.controls["fail"].value = True
        await slow.settled()
        (output,) = slow.errors.outputs
        assert output["ename"] == "KeyError"
        assert any("a defect" in line for line in output["traceback"])
        assert "role='alert'" in slow._status.value
        slow.controls["fail"].value = False
        await slow.settled()
        assert slow.errors.outputs == ()
        merge = explore.merge("SELECT nothing FROM products")
        await merge.settled()
        (output,) = merge.errors.outputs
        assert output["output_type"] == "stream"
        assert output["text"].startswith("SQLSyntaxError: ")

    asyncio.run(fail())


def test_an_error_in_an_observer_is_seen_as_well() -> None:
    """What a control's change calls in the kernel's thread."""
    slow = Slow(0.0)
    slow.code.value = True
    slow.controls["n"].value = 13
    assert "13 cannot be written down" in slow.errors.outputs[0]["text"]
    slow.close()


def test_closing_stops_the_work() -> None:
    """A cell that is run again leaves no thread behind."""

    async def close() -> None:
        slow = Slow(0.01)
        await slow.settled()
        slow.controls["n"].value = 1000
        await asyncio.sleep(0.3)
        job = slow._job
        slow.close()
        assert job is not None
        assert job.join(1.0)
        assert not slow.busy

    asyncio.run(close())


def test_who_waits_for_an_explorer_that_is_closed_goes_on() -> None:
    """Nothing will be shown any more: waiting for it would hang the notebook."""

    async def close() -> None:
        slow = Slow(0.01)
        await slow.settled()
        slow.controls["n"].value = 1000
        await asyncio.sleep(0.3)
        waiting = asyncio.ensure_future(slow.settled())
        await asyncio.sleep(0.05)
        slow.close()
        await asyncio.wait_for(waiting, 2)

    asyncio.run(close())


def test_an_impatient_user_breaks_nothing() -> None:
    """Run twice, Stop with nothing to stop, a step before the end of the run: the last press counts."""

    async def press() -> None:
        stepper = explore.stepper()
        stepper.buttons["stop"].click()
        await stepper.settled()
        stepper.buttons["stop"].click()
        for name in ("run", "run", "reset", "step", "step"):
            stepper.buttons[name].click()
        await stepper.settled()
        assert "2 moments" in stepper._result.value
        assert stepper.errors.outputs == ()
        stepper.buttons["run"].click()
        stepper.close()

    asyncio.run(press())


def test_an_answer_to_another_question_does_not_look_like_the_one_that_failed() -> None:
    """It is faded until a good one comes."""
    merge = explore.merge()
    stale = "mktsim-stale"
    assert stale not in merge._result._dom_classes
    merge.controls["statement"].value = "  "
    assert "there is no statement: type one" in merge.errors.outputs[0]["text"]
    merge.controls["statement"].value = "SELECT nothing_there FROM products"
    assert merge._result._dom_classes.count(stale) == 1
    assert f".{stale} {{opacity" in merge.children[0].value
    merge.controls["statement"].value = "SELECT COUNT(*) FROM products"
    assert stale not in merge._result._dom_classes
    merge.close()


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("fanout", {"vendors": 1500}, "vendors must be one of 10, 30, .*1,000,000, not 1500"),
        ("fanout", {"preset": "moon"}, "world must be one of cloudflare-2026.*, not 'moon'"),
        ("ring", {"shards": 0}, "shards must be a whole number from 1 to 24, not 0"),
        ("ring", {"vendors": float("nan")}, "vendors must be a whole number from 100 to 20,000, not nan"),
        ("merge", {"statement": 5}, "statement must be SQL text, not 5"),
        ("stragglers", {"leaves": True}, "vendors asked must be a whole number from 2 to 60, not True"),
        ("faults", {"vendors": "12"}, "vendors must be a whole number from 2 to 40, not '12'"),
        ("stepper", {"program": 5}, "program must be a function of a network, not 5"),
        ("stepper", {"world": 5}, "world must be a World, not 5"),
    ],
)
def test_a_mistake_in_the_call_is_named(name: str, wrong: dict[str, Any], told: str) -> None:
    """With what would do; nothing is moved into its range in silence."""
    with pytest.raises(InvalidArgumentError, match=told):
        getattr(explore, name)(**wrong)


def test_controls_that_do_not_count_cannot_be_moved() -> None:
    """They come back with what they belong to."""
    fanout = explore.fanout(vendors=10)
    assert fanout.controls["mean_ms"].disabled
    assert fanout.controls["beside_flat"].disabled
    fanout.controls["service"].value = "constant"
    fanout.controls["width"].value = 6
    assert not fanout.controls["mean_ms"].disabled
    assert not fanout.controls["beside_flat"].disabled
    fanout.close()
    stragglers = explore.stragglers(leaves=5)
    assert stragglers.controls["hedge_ms"].disabled
    stragglers.controls["hedge"].value = True
    assert not stragglers.controls["tied"].disabled
    stragglers.controls["hedge_ms"].value = float("nan")
    assert "InvalidArgumentError" in stragglers.errors.outputs[0]["text"]
    stragglers.close()


def test_titles_code_and_errors_are_escaped() -> None:
    """Whatever an author or a user writes."""
    slow = Slow(0.0)
    slow.code.value = True
    for made in (slow.children[0].value, slow._code.value):
        assert "<script>" not in made
        assert "&lt;script&gt;" in made
    slow.close()


def test_a_stop_that_comes_as_the_work_ends_leaves_a_job_that_has_ended() -> None:
    """A hundred races: each ends as done or as stopped, and reports."""
    for number in range(100):
        reports: list[str] = []
        job = Job(_ticks(50), lambda job, reports=reports: reports.append(job.state))  # type: ignore[misc]
        job.start()
        time.sleep(number * 2e-5)
        job.stop()
        assert job.join(2.0)
        assert job.state in ("done", "stopped")
        assert reports[-1] == job.state


def _ticks(n: int) -> Any:
    for k in range(n):
        yield Progress(k, n)
    return "done"


def test_a_script_that_ends_while_jobs_run_stops_them_and_ends_in_order() -> None:
    """A thread that is killed inside compiled code aborts the process: five scripts end, each with two jobs."""
    script = textwrap.dedent(
        """
        import time
        from mktsim.explore.background import Job, Progress

        def work(name):
            try:
                for k in range(10**9):
                    time.sleep(0.001)
                    yield Progress(k, 10**9)
            finally:
                print(f"{name} was put in order", flush=True)

        first = Job(work("first"), lambda job: None)
        second = Job(work("second"), lambda job: None)
        first.start(), second.start()
        time.sleep(0.1)
        """
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    for run in runs:
        out, errors = run.communicate(timeout=60)
        assert (run.returncode, errors) == (0, "")
        assert sorted(out.splitlines()) == ["first was put in order", "second was put in order"]


def test_stopped_is_a_keyboard_interrupt() -> None:
    """Or asyncio would swallow it in a simulation's callbacks."""
    assert issubclass(background.Stopped, KeyboardInterrupt)


# -- single explorers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["cloudflare-2026", "cloudflare-2026-tree"])
def test_the_fan_out_curve_is_what_simulate_says(preset: str) -> None:
    """Slices change nothing, in either engine: the same draws, the same quantiles, bit for bit."""
    scenario = Scenario(vendors=30, preset=preset, fanout=6)
    answer = fan_out_curve(scenario, requests=300, seed=5, beside_flat=True)
    for fanout, name in ((6, "tree of width 6"), ("flat", "flat")):
        for n in (10, 30):
            result = simulate(scenario.replace(vendors=n, fanout=fanout), requests=300, seed=5)
            mine = answer.points[(answer.points["series"] == f"p99, {name}") & (answer.points["x"] == n)]
            assert mine["estimate"].item() == result.p99.estimate
            assert mine["low"].item() == result.p99.low
            assert mine["engine"].item() == result.engine


@pytest.mark.parametrize("width", ["flat", 6])
@pytest.mark.parametrize("preset", preset_names())
def test_every_world_can_be_asked_flat_and_through_a_tree(preset: str, width: Any) -> None:
    """What one offers the other answers: by arrays, or by events where the arrays do not cover it."""
    made = explore.fanout(vendors=10, preset=preset)
    made.controls["requests"].value = 30
    made.controls["width"].value = width
    made.controls["vendors"].value = 100 if width == 6 and "tree" not in preset else 30
    assert made.errors.outputs == ()
    assert set(made.answer.points["x"]) == {10.0, float(made.controls["vendors"].value)}
    assert made.answer.left_out == ()
    made.close()


def test_what_only_events_cover_is_bounded_and_what_is_left_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point has so many calls at most: fewer requests where there are more vendors, and none is told to be there."""
    monkeypatch.setattr(curve_module, "_POINT_CALLS", 700)
    answer = fan_out_curve(
        Scenario(vendors=1000, preset="cloudflare-2026-tree", fanout=6), requests=30, seed=1, beside_flat=True
    )
    tree = answer.points[answer.points["series"] == "p50, tree of width 6"]
    assert tree[["x", "n", "engine"]].values.tolist() == [[10.0, 30, "event"], [100.0, 7, "event"]]
    flat = answer.points[answer.points["series"] == "p50, flat"]
    assert flat["x"].tolist() == [10.0, 100.0, 1000.0]
    [told] = answer.left_out
    assert "do not cover a tree over shared hosts" in told
    assert told.endswith("7 requests over 100 vendors; nothing over 1,000 vendors.")
    assert answer.n == "7 to 30"
    with pytest.raises(InvalidArgumentError, match="requests must be a whole number of at least 6, not 5"):
        fan_out_curve(Scenario(vendors=10), requests=5, seed=1)


def test_a_run_of_dependent_requests_has_a_curve_without_intervals() -> None:
    """What pauses or placement leave to later requests makes one run's intervals too narrow: none is drawn."""
    paused = World(service=Constant(1.0), hiccups=Hiccups(100.0, Constant(5.0)))
    answer = fan_out_curve(Scenario(vendors=10, world=paused), requests=300, seed=1)
    assert answer.points["estimate"].notna().all()
    assert answer.points[["low", "high"]].isna().all(axis=None)
    assert "pauses, which the clock brings on; replicate gives them" in answer.left_out[-1]
    assert fan_out_curve(Scenario(vendors=10), requests=300, seed=1).points[["low", "high"]].notna().all(axis=None)


def test_too_few_requests_show_no_p99() -> None:
    """Rather than one without an interval."""
    made = explore.fanout(vendors=10)
    made.controls["requests"].value = 100
    assert "p50" in made._result.value
    assert "p99, " not in made._result.value
    made.close()


def test_a_shard_that_joins_takes_and_one_that_leaves_gives() -> None:
    """Consistent hashing, as the explorer shows it; reset comes back to the start."""
    ring = explore.ring(shards=5, vendors=2000)
    ring.buttons["add"].click()
    assert re.search(r"(\d+) of 2,000 vendors moved \(\d\d\.\d%\), all of them to shard-05", ring._result.value)
    ring.buttons["remove"].click()
    assert "all of them from shard-00" in ring._result.value
    ring.buttons["reset"].click()
    assert ring.after == tuple(f"shard-0{k}" for k in range(5))
    change = ring_change(["a", "b", "c"], ["a", "b", "c", "d"], [f"v{k}" for k in range(2000)], virtual_nodes=150)
    frame = change.shards.set_index("shard")
    assert frame["in"].drop("d").eq(0).all()
    assert frame.loc["d", "in"] == frame["out"].sum() == change.moved.sum()
    assert frame["after"].sum() == frame["before"].sum() == 2000
    ring.close()


def test_the_ring_keeps_one_shard_and_at_most_24(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buttons at the ends do nothing, and look like it."""
    monkeypatch.setattr(explore.ring, "draw", lambda *_: "")
    ring = explore.ring(shards=1, vendors=100)
    assert ring.buttons["remove"].disabled
    ring.buttons["remove"].click()
    assert len(ring.after) == 1
    for _ in range(30):
        ring._add()
    assert len(ring.after) == 24
    assert ring.buttons["add"].disabled
    assert not ring.buttons["remove"].disabled
    ring.close()


def test_the_merge_explorer_tells_a_wrong_merge_from_a_right_one() -> None:
    """By values, types and order."""
    scenario = Scenario(vendors=4, products=6, statement="SELECT COUNT(*) FROM products")
    assert compare_merges(scenario, seed=1).agree
    other = scenario.replace(statement="SELECT AVG(price) FROM products WHERE stock > 60")
    assert not compare_merges(other, seed=1).agree
    merge = explore.merge()
    assert "naive merge is wrong" in merge._result.value
    for label, sql in merge.controls["example"].options[1:]:
        merge.controls["example"].value = sql
        assert merge.controls["statement"].value == sql
        assert merge.errors.outputs == (), label
        assert "tier" in merge._result.value
    assert merge.controls["example"].value == sql
    merge.controls["statement"].value += " "
    assert merge.controls["example"].value == ""  # And so can be chosen again.
    merge.controls["params"].value = '["x'
    assert "JSON list" in merge.errors.outputs[0]["text"]
    merge.controls["params"].value = '["<b>"]'
    merge.controls["statement"].value = 'SELECT ? AS "<script>" FROM products LIMIT 1'
    assert "<script>" not in merge._result.value
    assert "&lt;b&gt;" in merge._result.value
    merge.close()


@pytest.mark.parametrize("gap", [" ", "\n", "\t", "\r\n  ", "/* a comment */", " -- a comment\n", "\n-- two\n\n"])
def test_a_merge_in_the_wrong_order_is_wrong_wherever_order_by_stands(gap: str) -> None:
    """A line of its own is the usual place: the box has four."""
    merge = explore.merge(f"SELECT vendorId, name FROM products{gap}ORDER BY price")
    assert not merge.answer.agree
    assert "The naive merge is wrong here." in merge._result.value
    merge.close()


def test_order_within_a_text_orders_nothing() -> None:
    """It is the statement's words that count."""
    assert naive_is_right("SELECT ' ORDER BY ' AS v FROM t -- ORDER BY v", [(2,), (1,)], [(1,), (2,)])
    assert not naive_is_right("SELECT v FROM t\nORDER\nBY v", [(2,), (1,)], [(1,), (2,)])


def test_who_was_not_asked_sent_nothing() -> None:
    """The sentence below the plan counts the vendors that the plan visits; a row of money is no mathematics."""
    merge = explore.merge("SELECT '$5' AS a, '$6' AS b")
    assert "0 to visit, 6 pruned" in merge._result.value
    assert "The exact one asked no vendor." in merge._result.value
    merge.controls["statement"].value = "SELECT COUNT(*) FROM products"
    assert "took 6 rows from 6 vendors." in merge._result.value
    merge.controls["statement"].value = "SELECT name FROM products WHERE vendorId = 'v0000002'"
    assert "from 1 vendor." in merge._result.value
    merge.close()


def test_a_hedge_helps_the_request_that_waits_for_a_straggler() -> None:
    """The same draws with it and without."""
    made = explore.stragglers()
    made.controls["hedge"].value = True
    found = re.search(
        r"took ([\d.]+) ms with (\d+) second cop(?:y|ies); without hedging, same draws, ([\d.]+)", made._result.value
    )
    assert found is not None
    for request in range(10):
        made.controls["request"].value = request
        found = re.search(r"took ([\d.]+) ms with (\d+) second cop.*draws, ([\d.]+)", made._result.value)
        assert found is not None
        if int(found[2]) and float(found[1]) < float(found[3]):
            break
    else:
        pytest.fail("no request of ten was helped")
    made.close()


def test_a_killed_vendor_is_missing_and_comes_back_healed() -> None:
    """Coverage falls with the press of a button and returns; a schedule that differs later has the same past."""
    faults = explore.faults(vendors=5)
    for name in ("kill", "heal", "go"):
        faults.buttons[name].click()
    scenario = faults._scenario(faults.values())
    frame = ride_through(scenario, requests=faults.requests, every_ms=100.0, seed=1)
    assert frame["answered"].iloc[:10].eq(5).all()
    assert frame["answered"].iloc[10:20].eq(4).all()
    assert frame["missing"].iloc[15] == ("v0000000",)
    assert frame["answered"].iloc[30:].eq(5).all()
    shorter = ride_through(scenario, requests=12, every_ms=100.0, seed=1)
    assert frame["partial_so_far"].iloc[-1] == (frame["coverage"] < 1).sum() > 0
    pd.testing.assert_frame_equal(shorter, frame.iloc[:12])
    faults.controls["vendor"].value = "v0000003"
    faults.buttons["partition"].click()
    faults.buttons["slow"].click()
    assert [type(fault).__name__ for fault in faults.schedule] == ["Crash", "Partition", "SlowDisk"]
    faults.buttons["reset"].click()
    assert (faults.schedule, faults.requests) == ((), 10)
    faults.close()


def test_a_run_that_has_reached_its_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than taking presses that do nothing."""
    monkeypatch.setattr("mktsim.explore.failures._MOST", 20)
    faults = explore.faults(vendors=3)
    faults.buttons["kill"].click()
    assert all(faults.buttons[name].disabled for name in ("go", "kill", "slow", "partition", "heal"))
    assert "20 requests are the end of this run: Reset begins anew" in faults._result.value
    faults.buttons["reset"].click()
    assert not faults.buttons["kill"].disabled
    faults.close()


def test_when_everybody_is_down_there_is_no_answer_and_no_error() -> None:
    """The table says so."""
    scenario = Scenario(vendors=3, params=(), statement="SELECT COUNT(*) FROM products", world=World(faults=(Crash(),)))
    frame = ride_through(scenario, requests=3, every_ms=10.0, seed=1)
    assert frame["answered"].eq(0).all()


def test_stepping_running_and_resetting_show_one_log() -> None:
    """That of the simulation itself."""
    stepper = explore.stepper()
    for _ in range(3):
        stepper.buttons["step"].click()
    stepper.buttons["ten"].click()
    assert "13 moments" in stepper._result.value
    stepper.buttons["run"].click()
    assert "the end" in stepper._result.value
    with Simulation(_program(stepper), stepper._world(stepper.values()), Streams(1)) as simulation:
        simulation.run()
        while simulation.step():
            pass
        assert f"{len(simulation.trace):,} steps" in stepper._result.value
    stepper.buttons["reset"].click()
    assert "0 moments, 0 steps" in stepper._result.value
    stepper.close()


def _program(stepper: Any) -> Any:
    from functools import partial

    from mktsim.sim.events import scatters

    values = stepper.values()
    return partial(scatters, leaves=values["leaves"], requests=range(values["requests"]))


def test_the_stepper_takes_a_program_of_ones_own_and_shows_its_error() -> None:
    """What it raises is raised at the end."""

    async def broken(network: Any) -> None:
        await asyncio.sleep(0.5)
        raise SimulationError("<b>gone</b>")

    stepper = explore.stepper(program=lambda network: broken(network), world=World())
    stepper.buttons["run"].click()
    assert "SimulationError: <b>gone</b>" in stepper.errors.outputs[0]["text"]
    assert "<b>gone" not in stepper._status.value
    stepper.close()


async def an_errand(network: Any) -> None:
    """Do nothing for a while."""
    await asyncio.sleep(0.001)


def test_the_code_of_a_program_of_ones_own_names_it_or_says_what_to_define() -> None:
    """`program = program` would say nothing."""
    stepper = explore.stepper(program=an_errand, world=World())
    stepper.buttons["run"].click()
    assert f"from {__name__} import an_errand\n" in stepper.config
    assert "replay(an_errand, world, moments=None, seed=1)" in stepper.config
    exec(stepper.config, {})
    stepper.close()
    stepper = explore.stepper(program=lambda network: an_errand(network))
    assert "# program: what this stepper was given, <function" in stepper.config
    assert "program = program" not in stepper.config
    exec(stepper.config, {"program": an_errand})
    stepper.close()

    async def mine(network: Any) -> None:
        await an_errand(network)

    mine.__module__, mine.__qualname__ = "__main__", "walk"  # As in a notebook.
    stepper = explore.stepper(program=mine)
    assert "# walk: your own program, async def walk(network); define it before.\n" in stepper.config
    exec(stepper.config, {"walk": mine})
    stepper.close()


def test_the_waterfall_shows_when_the_request_was_answered() -> None:
    """What ends after the line, nobody waited for."""
    made = explore.stragglers(leaves=60)
    made.controls["hedge"].value = True
    answer = made.answer
    axes = waterfall_chart(answer.waterfall, end_ms=answer.time_ms)
    [line] = [each for each in axes.lines if each.get_linestyle() == ":"]
    assert list(line.get_xdata()) == [answer.time_ms] * 2  # type: ignore[arg-type]
    assert axes.get_xlim()[1] < 1.1 * answer.time_ms
    assert answer.waterfall["end_ms"].max() > answer.time_ms
    made.close()


def test_the_package_is_light_and_the_explorers_come_when_first_used() -> None:
    """Neither `import mktsim` nor the magic loads a widget."""
    import subprocess
    import sys

    program = (
        "import sys, mktsim, mktsim.explore; assert not {'ipywidgets', 'matplotlib'} & set(sys.modules)\n"
        "import mktsim.explore.magic; assert 'ipywidgets' not in sys.modules\n"
        "mktsim.explore.ring; assert 'ipywidgets' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert set(explore.__all__) <= set(dir(explore))
    with pytest.raises(AttributeError):
        explore.nothing  # noqa: B018
