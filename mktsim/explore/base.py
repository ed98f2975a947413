"""What all explorers share: controls, a debounce, work beside the kernel's thread, progress, Stop, errors, code.

Rules
-----
An explorer is a view. It says which controls there are, which question of :mod:`mktsim.study.questions` their values
ask, how the answer looks as HTML and what its caption says; it computes nothing. The question is one
:class:`~mktsim.explore.pasting.Call`, which is what runs and what `.config` writes down. Every text that comes from
data or a user is escaped.

Theory of operation
-------------------
A changed control starts a timer; when 150 ms have passed without another change, the job under way is stopped and a
new one begins with the values of that moment. The job works, and draws, in a thread of its own and posts what it has to
the event loop, in the context of the change that caused it, so that widgets change in the kernel's thread only.

Without a running loop (a plain Python session) everything happens at once, in the caller's thread.

Errors are put into an Output widget as outputs: `Output.capture` needs the message that is being answered, and a job's
end answers none. A mistake is shown as its name and message, a defect with its traceback.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from collections.abc import Callable, Mapping
from html import escape
from itertools import groupby
from typing import Any, ClassVar, Final

import ipywidgets as widgets

from mktsim.errors import MktsimError
from mktsim.explore.background import Job, Progress, Slices
from mktsim.explore.drawing import code_block
from mktsim.explore.pasting import Call

DEBOUNCE_S: Final = 0.15
_ALERT = "border-left:4px solid #D55E00;padding:.2em .6em"
#: An answer to another question than the one that failed must not look like the one to it.
_STALE = "mktsim-stale"
_STYLE = f"<style>.{_STALE} {{opacity: .4}}</style>"


class Explorer(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types.
    """Base of the explorers; display it, or use it from code by its `controls`.

    Parameters
    ----------
    controls : mapping of str to widget
        What the user decides, by name; the order is the order of the Tab key.
    actions : mapping of str to (label, tooltip, callable)
        Buttons, by name.

    Attributes
    ----------
    controls, buttons : dict of str to widget
        ``explorer.controls["vendors"].value = 100``, ``explorer.buttons["stop"].click()``.
    errors : ipywidgets.Output
        What went wrong, if anything.
    runs : int
        How many jobs were begun.
    answer : object
        What is shown, as plain data: the `answer` of the code in `.config`.

    Examples
    --------
    Without a running loop an answer is there as soon as the control is set.

    >>> from mktsim import explore
    >>> explorer = explore.ring(shards=3, vendors=100)
    >>> explorer, explorer.runs
    (<Ring explorer, ready; .config is its question as code>, 1)
    >>> explorer.controls["vendors"].value = 200
    >>> explorer.runs
    2
    >>> explorer.close()
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]

    # Set here, for ipywidgets closes a widget whose making failed as well.
    _job: Job | None = None
    _working = False
    _timer: asyncio.TimerHandle | None = None
    _settled: asyncio.Event | None = None

    def __init__(
        self,
        controls: Mapping[str, widgets.Widget],
        actions: Mapping[str, tuple[str, str, Callable[[], object]]] | None = None,
    ) -> None:
        self.controls = dict(controls)
        self.buttons: dict[str, widgets.Widget] = {}
        for name, (label, tooltip, act) in (actions or {}).items():
            self._add_button(name, label, tooltip, act)
        self._add_button("stop", "Stop", "Break off what is being computed", self.stop, disabled=True)
        self.code = widgets.ToggleButton(description="Show code", tooltip="The same question as Python code",
                                         layout={"width": "auto"})  # fmt: skip
        self.code.add_class("mktsim-code-button")
        self.code.observe(lambda _: self._show_code(), "value")
        self._code = widgets.HTML(layout={"display": "none"})
        self._progress = widgets.FloatProgress(max=1.0, layout={"width": "12em", "visibility": "hidden"})
        self._status, self._result = widgets.HTML(), widgets.HTML(layout={"min_height": "4em"})
        for widget, mark in ((self._status, "status"), (self._result, "result"), (self._code, "code")):
            widget.add_class(f"mktsim-{mark}")
        self.errors = widgets.Output()
        self.errors.add_class("mktsim-errors")
        self.runs, self.answer = 0, None
        for control in self.controls.values():
            control.observe(self._changed, "value")
        super().__init__(
            [
                widgets.HTML(
                    f"{_STYLE}<b>{escape(self.title)}</b><br><span style='opacity:.8'>{escape(self.about)}</span>"
                ),
                widgets.VBox(_arranged(list(self.controls.values()))),
                widgets.HBox([*self.buttons.values(), self.code], layout={"flex_flow": "row wrap"}),
                widgets.HBox([self._status, self._progress], layout={"min_height": "2.2em", "align_items": "center"}),
                self.errors,
                self._result,
                self._code,
            ],
            layout={"max_width": "60em"},
        )
        self.add_class("mktsim-explorer")
        self.add_class(f"mktsim-{self.name}")
        self.refresh()

    # -- what a view says of itself -----------------------------------------------------------------------------------

    def values(self) -> dict[str, Any]:
        """Return what the question depends on, as plain data."""
        return {name: control.value for name, control in self.controls.items()}

    def call(self, values: dict[str, Any]) -> Call:
        """Return the question as the call that asks it."""
        raise NotImplementedError

    def caption(self, values: dict[str, Any], answer: Any) -> str:
        """Say what is shown: measured or simulated, n, seed, fleet, world, policy; see `mktsim.study.captions`."""
        raise NotImplementedError

    def work(self, values: dict[str, Any]) -> Slices:
        """Ask the question; runs in the job's thread and touches no widget."""
        return self.call(values).slices()

    def draw(self, values: dict[str, Any], answer: Any) -> str:
        """Return an answer as HTML; runs in the job's thread and touches no widget."""
        raise NotImplementedError

    def config_of(self, values: dict[str, Any]) -> str:
        """Return the question as Python code."""
        return self.call(values).code()

    # -- what a user can do -------------------------------------------------------------------------------------------

    @property
    def config(self) -> str:
        """The question that is being shown, as Python code to paste into a cell."""
        return self.config_of(self.values())

    @property
    def busy(self) -> bool:
        """Whether something is being computed, or about to be."""
        return self._timer is not None or self._working

    def refresh(self) -> None:
        """Ask the question anew, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._guarded(self._begin)

    def stop(self) -> None:
        """Break off what is being computed; what was shown before stays."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._job is not None and self._working:
            self._job.stop()
            self._say("stopping …")
        elif self._settled is not None:
            self._settled.set()

    async def settled(self) -> None:
        """Wait until what the controls ask for is shown: in a notebook, ``await explorer.settled()``."""
        while self.busy:
            self._settled = asyncio.Event()
            await self._settled.wait()

    def __repr__(self) -> str:
        state = "computing" if self.busy else "ready"
        return f"<{type(self).__name__} explorer, {state}; .config is its question as code>"

    def close(self) -> None:
        """Stop and remove the widget."""
        self.stop()
        self._job, self._working = None, False
        if self._settled is not None:  # Nothing will be shown any more: who waits for it may go on.
            self._settled.set()
        super().close()

    # -- machinery ----------------------------------------------------------------------------------------------------

    def _add_button(
        self, name: str, label: str, tooltip: str, act: Callable[[], object], *, disabled: bool = False
    ) -> None:
        button = widgets.Button(description=label, tooltip=tooltip, disabled=disabled, layout={"width": "auto"})
        button.add_class(f"mktsim-{name}")
        button.on_click(lambda _: self._guarded(act))
        self.buttons[name] = button

    def _changed(self, _change: Any) -> None:
        loop = _running_loop()
        if self._timer is not None:
            self._timer.cancel()
        if loop is None:
            self.refresh()
        else:
            self._timer = loop.call_later(DEBOUNCE_S, self.refresh)

    def _begin(self) -> None:
        loop, values, before = _running_loop(), self.values(), self._job
        context = contextvars.copy_context()

        def report(job: Job) -> None:
            if loop is None:
                self._show(job)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(self._show, job, context=context)

        if before is not None:
            before.stop()
        self.runs += 1
        self._working = True
        self._job = job = Job(self._views(values), report, after=before)
        self._show_code()
        if loop is None:
            job.run()
        else:
            self.buttons["stop"].disabled = False
            self._say("computing …")
            job.start()

    def _views(self, values: dict[str, Any]) -> Slices:
        """Do the work; partial answers and the answer become HTML."""
        work = self.work(values)
        try:
            while True:
                try:
                    step = next(work)
                except StopIteration as end:
                    answer = end.value
                    break
                view = None if step.partial is None else (self.draw(values, step.partial), step.partial)
                yield Progress(step.done, step.total, step.what, view)
        finally:
            work.close()
        return self.draw(values, answer), answer

    def _show(self, job: Job) -> None:
        """Bring the widgets up to date with a job; calls of jobs that were superseded, and second ones, do nothing."""
        if job is not self._job:
            return
        progress = job.progress
        if job.state == "running":
            if progress is not None:
                self._progress.value, self._progress.max = float(progress.done), float(progress.total or 1)
                self._progress.layout.visibility = "visible" if progress.total else "hidden"
                if not job.stopping:
                    of = f" of {progress.total:,}" if progress.total else ""
                    self._say(f"computing … {progress.done:,}{of} {progress.what}")
                if job.partial is not None:
                    self._result.value, self.answer = job.partial
                    self._result.remove_class(_STALE)
            return
        if not self._working:
            return
        self._working = False
        self._progress.layout.visibility = "hidden"
        self.buttons["stop"].disabled = True
        if job.state == "failed":
            assert job.error is not None
            self._fail(job.error)
        elif job.state == "stopped":
            self.stopped()
            self._say("stopped; what is shown is from before, or in part")
        else:
            self.errors.outputs = ()
            self._result.value, self.answer = job.result
            self._result.remove_class(_STALE)
            self._say("ready")
        if self._settled is not None:
            self._settled.set()

    def stopped(self) -> None:
        """Called when a job was stopped, for views that keep state."""

    def _guarded(self, act: Callable[[], object]) -> None:
        """Do something for a user, who must see what goes wrong."""
        try:
            act()
        except Exception as error:
            self._fail(error)
            if self._settled is not None:
                self._settled.set()

    def _fail(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        output: dict[str, Any]
        if isinstance(error, MktsimError):
            output = {"output_type": "stream", "name": "stderr", "text": f"{text}\n"}
        else:
            trace = [line[:300] for line in "".join(traceback.format_exception(error)).splitlines()]
            output = {
                "output_type": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": trace,
            }  # fmt: skip
        self.errors.outputs = (output,)
        self._result.add_class(_STALE)
        self._say(f"failed: {type(error).__name__}; any answer below is from before", alert=True)

    def _say(self, text: str, *, alert: bool = False) -> None:
        role, style = ("alert", _ALERT) if alert else ("status", "")
        self._status.value = f"<span role='{role}' aria-live='polite' style='{style}'>{escape(text)}</span>"

    def _show_code(self) -> None:
        self._code.layout.display = "" if self.code.value else "none"
        self.code.description = "Hide code" if self.code.value else "Show code"
        if self.code.value:
            self._code.value = code_block(self.config)


def _arranged(controls: list[widgets.Widget]) -> list[widgets.Widget]:
    """Put controls in two columns, and texts across both, in their order."""
    rows: list[widgets.Widget] = []
    columns = {"grid_template_columns": "repeat(auto-fit, minmax(20em, 1fr))", "grid_gap": "0 1em"}
    for across, group in groupby(controls, lambda control: isinstance(control, widgets.Text | widgets.Textarea)):
        some = list(group)
        rows += some if across else [widgets.GridBox(some, layout=columns)]
    return rows


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
