"""What happened, step by step: every message and event of a simulated run with its simulated time.

Rules
-----
A trace is a list of plain tuples in the order in which they were recorded, and two runs of one seed record the same,
in any process: its digest says so. Recording changes nothing of what it records.

Steps of a call, in order: ``waits`` (for a connection), ``sent`` (it left the sender's processor), ``arrived``,
``served``, ``back``, ``taken in``; or ``failed`` at the end. What else befalls it: ``lost``, ``refused`` (the host is
down), ``shed``, ``duplicated``, ``cancelled`` (a tied twin).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import pandas as pd

from mktsim.errors import InvalidArgumentError

_ENDS: Final = ("taken in", "failed", "lost", "cancelled")


class Step(NamedTuple):
    """One line of a trace.

    Attributes
    ----------
    time_s : float
        Simulated.
    what : str
        See the module's text.
    call : float
        The call's number in the order in which calls were made; a duplicate's is a quarter more.
    request, attempt : int
        The request's number, and how often it had called this address before.
    source, target : str
        Addresses.

    Examples
    --------
    >>> step = Step(0.001, "sent", 1, 0, 0, "coordinator", "vendor/acme")
    >>> f"{1e3 * step.time_s:g} ms: {step.what} to {step.target}"
    '1 ms: sent to vendor/acme'
    """

    time_s: float
    what: str
    call: float
    request: int
    attempt: int
    source: str
    target: str


class Trace:
    """Records the steps of a simulated run.

    Examples
    --------
    >>> trace = Trace()
    >>> trace.add(0.001, "sent", 1, 0, 0, "coordinator", "vendor/acme")
    >>> trace.add(0.004, "taken in", 1, 0, 0, "coordinator", "vendor/acme")
    >>> trace.waterfall(0)[["target", "sent_ms", "end_ms", "outcome"]].values.tolist()
    [['vendor/acme', 1.0, 4.0, 'taken in']]
    """

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, time_s: float, what: str, call: float, request: int, attempt: int, source: str, target: str) -> None:
        """Record one step."""
        self.steps.append(Step(float(time_s), what, call, request, attempt, source, target))

    def __len__(self) -> int:
        return len(self.steps)

    def digest(self) -> str:
        """Return the SHA-256 of all steps, times to the last bit: equal for equal runs, in whatever process."""
        state = hashlib.sha256()
        for step in self.steps:
            line = json.dumps([step.time_s.hex(), step.what, step.call, *step[3:]], ensure_ascii=True)
            state.update(line.encode() + b"\n")
        return state.hexdigest()

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a step, in the order of recording; times in ms."""
        frame = pd.DataFrame(self.steps, columns=list(Step._fields))
        frame.insert(0, "time_ms", frame.pop("time_s").astype(float) * 1e3)
        return frame

    def waterfall(self, request: int, *, stragglers: int = 5) -> pd.DataFrame:
        """Return one row a call of one request, from its begin to its end: what a waterfall chart draws.

        Parameters
        ----------
        request : int
            Its number.
        stragglers : int
            How many of the calls that ended last to mark.

        Returns
        -------
        DataFrame
            In the order of the calls: ``call``, ``attempt``, ``source``, ``target``; ``waits_ms``, ``sent_ms``,
            ``arrived_ms``, ``served_ms``, ``back_ms``, ``end_ms``, simulated, NaN where there was no such step;
            ``outcome``, the last step; ``rank``, 1 for the call that ended last; ``straggler``.

        Raises
        ------
        InvalidArgumentError
            If the trace has no such request.
        """
        calls: dict[float, dict[str, Any]] = {}
        for step in self.steps:
            if step.request != request:
                continue
            row = calls.setdefault(
                step.call, {"call": step.call, "attempt": step.attempt, "source": step.source, "target": step.target}
            )
            row["attempt"] = step.attempt
            name = "end" if step.what in _ENDS else step.what
            if name in ("waits", "sent", "arrived", "served", "back", "end"):
                row[f"{name}_ms"] = step.time_s * 1e3
            row["outcome"] = step.what
        if not calls:
            raise InvalidArgumentError(f"the trace has no request {request!r:.80}; it has {self._requests()}")
        columns = ["call", "attempt", "source", "target"]
        columns += [f"{name}_ms" for name in ("waits", "sent", "arrived", "served", "back", "end")]
        frame = pd.DataFrame(list(calls.values()), columns=[*columns, "outcome"])
        frame = frame.sort_values("call", ignore_index=True)
        frame["rank"] = frame["end_ms"].rank(method="first", ascending=False, na_option="top").astype(int)
        frame["straggler"] = frame["rank"] <= stragglers
        return frame

    def _requests(self) -> str:
        known = sorted({step.request for step in self.steps})
        return ", ".join(map(str, known[:5])) + (", ..." if len(known) > 5 else "") if known else "none"

    def to_chrome(self) -> str:
        """Return the trace as Chrome trace-event JSON, which Perfetto and chrome://tracing open.

        A process is a sender, a thread one of its calls' targets; a call is a span from its first step to its last, its
        steps are instants within it. Times are simulated microseconds.
        """
        senders = _numbered(step.source for step in self.steps)
        targets = _numbered(step.target for step in self.steps)
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}}
            for name, number in senders.items()
        ]
        named = sorted({(senders[step.source], targets[step.target], step.target) for step in self.steps})
        for pid, tid, name in named:
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
        spans: dict[float, list[Step]] = {}
        for step in self.steps:
            spans.setdefault(step.call, []).append(step)
        for steps in spans.values():
            first, last = min(steps), max(steps, key=lambda step: step.time_s)
            place = {"pid": senders[first.source], "tid": targets[first.target]}
            arguments = {"request": first.request, "attempt": last.attempt, "outcome": steps[-1].what}
            events.append(
                {
                    "ph": "X",
                    "name": first.target,
                    "cat": "call",
                    "ts": first.time_s * 1e6,
                    "dur": (last.time_s - first.time_s) * 1e6,
                    "args": arguments,
                    **place,
                }
            )
            events += [
                {"ph": "i", "name": step.what, "cat": "step", "ts": step.time_s * 1e6, "s": "t", **place}
                for step in steps
            ]
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
