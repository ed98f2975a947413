"""Traces and stepping: what happened is on record, the same in every process and however the run is cut."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from mktsim.errors import InvalidArgumentError, SimulationError
from mktsim.sim import (
    Background,
    Constant,
    Exponential,
    LogNormal,
    Loss,
    Policy,
    SimNetwork,
    Simulation,
    Trace,
    World,
)
from mktsim.sim.events import event_sojourn_times, scatters
from mktsim.streams import Streams
from mktsim.study.charts import png, waterfall_chart

WORLD = World(
    link_out=LogNormal(1, 5),
    service=Exponential(2),
    link_back=Constant(1),
    fan_in_ms=0.1,
    replicas=2,
    background=Background(0.3, 2),
    cancel_ms=0.5,
)
ARGUMENTS: dict[str, Any] = {"leaves": 40, "requests": range(3), "policy": Policy(hedge_ms=4, tied=True)}


def traced() -> tuple[Trace, bytes]:
    trace = Trace()
    return trace, event_sojourn_times(WORLD, Streams(5), trace=trace, **ARGUMENTS).tobytes()


def simulation(world: World = WORLD, seed: int = 5) -> Simulation:
    return Simulation(lambda network: scatters(network, **ARGUMENTS), world, Streams(seed))


def test_recording_changes_nothing() -> None:
    """A traced run takes the times of one that is not."""
    assert traced()[1] == event_sojourn_times(WORLD, Streams(5), **ARGUMENTS).tobytes()


def test_the_digest_is_the_same_in_another_process_whatever_its_hash_seed() -> None:
    """And another seed gives another."""
    program = (
        "import sys; sys.path.insert(0, '.'); from tests.test_sim_trace import traced; print(traced()[0].digest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for hash_seed in ("0", "1")
    }
    assert digests == {traced()[0].digest()}
    other = Trace()
    event_sojourn_times(WORLD, Streams(6), trace=other, **ARGUMENTS)
    assert other.digest() not in digests


def test_every_call_that_is_sent_ends_and_no_step_comes_before_the_one_before() -> None:
    """Sent, arrived, served, back, taken in: in this order; a tied twin may be cancelled instead."""
    trace, _ = traced()
    order = ["sent", "arrived", "served", "back", "taken in"]
    steps: dict[float, list[Any]] = {}
    for step in trace.steps:
        steps.setdefault(step.call, []).append(step)
    ends = {"taken in": 0, "cancelled": 0}
    for mine in steps.values():
        names = [step.what for step in mine]
        assert names in (order, ["sent", "arrived", "cancelled"])
        assert [step.time_s for step in mine] == sorted(step.time_s for step in mine)
        ends[names[-1]] += 1
    assert ends["taken in"] >= 3 * 40
    assert ends["cancelled"] > 0


def test_the_waterfall_ranks_the_stragglers_and_ends_with_the_request() -> None:
    """Of the calls that answered first for their leaf the last is the one that the request waited for."""
    trace, _ = traced()
    plain = Trace()
    time_s = event_sojourn_times(WORLD, Streams(5), leaves=40, trace=plain)[0]
    frame = plain.waterfall(0, stragglers=3)
    assert len(frame) == 40
    assert frame["end_ms"].max() == pytest.approx(time_s * 1e3)
    assert frame.loc[frame["rank"] == 1, "end_ms"].item() == frame["end_ms"].max()
    assert frame["straggler"].sum() == 3
    assert (frame["arrived_ms"] >= frame["sent_ms"]).all()
    assert set(trace.to_pandas()["request"]) == {0, 1, 2}
    with pytest.raises(InvalidArgumentError, match="no request 7"):
        trace.waterfall(7)
    with pytest.raises(InvalidArgumentError, match="it has none"):
        Trace().waterfall(0)


def test_the_waterfall_chart_draws_every_call_and_shows_which_are_second_copies() -> None:
    """Hedges stand below their first, hatched and named; what nobody waited for is pale; grey will do."""
    frame = traced()[0].waterfall(0)
    axes = waterfall_chart(frame, title="One request", caption="1 request, seed 5")
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(labels) == len(frame) > 40  # Every call of the 40 vendors.
    assert labels.count("second copy") == (frame["attempt"] > 0).sum() > 0
    assert {label for label in labels if label != "second copy"} == {f"vendor {n}" for n in range(40)}
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    # Each bar is where the table has the call, vendors in the order in which they had answered.
    taken = frame[frame["outcome"] == "taken in"].groupby("target")["end_ms"].min()
    first = [label for label in labels if label != "second copy"]
    counted = [taken[f"leaf/{label.removeprefix('vendor ')}"] for label in first]
    assert counted == sorted(counted)
    vendor = ""
    for y, label in enumerate(labels):
        vendor = vendor if label == "second copy" else f"leaf/{label.removeprefix('vendor ')}"
        call = frame[(frame["target"] == vendor) & ((frame["attempt"] > 0) == (label == "second copy"))].iloc[0]
        mine = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == y]
        if call["outcome"] == "taken in":
            assert max(bar.get_x() + bar.get_width() for bar in mine) == pytest.approx(call["end_ms"])
            assert {bar.get_alpha() for bar in mine} == {1.0 if call["end_ms"] == taken[vendor] else 0.4}
        assert (label == "second copy") == any(bar.get_hatch() == "////" for bar in mine)
    legend = {text.get_text() for text in axes.figure.legends[0].get_texts()}
    assert {"simulated: second copy", "simulated: nobody waits for it: pale"} <= legend
    assert all(text.startswith("simulated: ") for text in legend)
    # What follows each other within a bar differs in grey by a fifth at least, or in its hatch.
    strong = [bar for bar in bars if bar.get_alpha() == 1.0 and bar.get_hatch() != "////"]
    greys = {bar.get_facecolor(): (to_rgb(bar.get_facecolor()[:3]), bar.get_hatch()) for bar in strong}
    looks = [(sum(w * c for w, c in zip((0.3, 0.59, 0.11), rgb, strict=True)), hatch) for rgb, hatch in greys.values()]
    assert all(abs(a[0] - b[0]) > 0.2 or a[1] != b[1] for a, b in pairwise(looks))
    assert len(png(axes)) > 10_000
    few = waterfall_chart(frame, most=3)
    assert [tick.get_text() for tick in few.get_yticklabels()] == labels[labels.index(first[-3]) :]
    assert "(3 of 40 vendors, the last to be answered)" in few.get_title(loc="left")
    for bad, most in ((frame.drop(columns="source"), 5), (frame.iloc[:0], 5), (frame, 0)):
        with pytest.raises(InvalidArgumentError):
            waterfall_chart(bad, most=most)


def test_the_straggler_is_whom_the_request_waited_for_and_the_axis_ends_behind_it() -> None:
    """Not a copy that goes on when the answer is there: its end is told by an arrow at the edge."""
    trace = Trace()
    times = event_sojourn_times(WORLD, Streams(5), leaves=40, policy=Policy(hedge_ms=1.0), trace=trace)
    frame, end_ms = trace.waterfall(0), times[0] * 1e3
    assert frame["end_ms"].max() > 1.2 * end_ms
    axes = waterfall_chart(frame, most=40, end_ms=end_ms)
    assert end_ms < axes.get_xlim()[1] < 1.2 * end_ms
    notes = {text.get_text(): text.xy for text in axes.texts}
    assert notes["1"][0] == pytest.approx(frame.loc[frame["end_ms"] <= end_ms, "end_ms"].max())
    assert round(notes["1"][1]) >= len(frame) - 2  # The last vendor's row, or its copy's below.
    assert {str(rank) for rank in range(1, 6)} <= set(notes)
    arrows = [text for text in notes if text.startswith("\u2192")]
    assert f"\u2192 {frame['end_ms'].max():.1f}" in arrows


def test_a_query_of_the_real_coordinator_leaves_one_digest_in_any_process() -> None:
    """Tied, in a world with faults, SQL executed: the same trace whatever PYTHONHASHSEED, another one by seed."""
    program = (
        "from mktsim.sim import *; from mktsim.fanout import ScatterPolicy; from mktsim.streams import Streams;"
        "from mktsim.study.scenario import Scenario;"
        "from mktsim.study.coordinated import coordinated_sojourn_times as go;"
        "import sys; trace = Trace();"
        "world = World(link_out=LogNormal(1, 9), background=Background(0.5, 2.0), replicas=2,"
        " faults=(Loss(probability=0.05),));"
        "policy = ScatterPolicy(retries=3, attempt_timeout_s=0.05, hedge_after_s=0.002, tied=True);"
        "go(Scenario(vendors=30, products=2, world=world, policy=policy), Streams(int(sys.argv[1])),"
        " requests=range(2), hosts=None, execute=True, trace=trace);"
        "print(trace.digest(), len(trace), trace.to_pandas()['what'].isin(['cancelled', 'lost']).sum())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program, seed], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True,
            check=True, timeout=60,
        ).stdout
        for seed, hash_seed in (("7", "0"), ("7", "1"), ("8", "1"))
    ]  # fmt: skip
    assert runs[0] == runs[1] != runs[2]
    assert int(runs[0].split()[2]) > 5


def test_the_chrome_trace_has_a_span_a_call_and_its_steps_within() -> None:
    """JSON of the trace-event format: complete events with a duration, instants inside, all named."""
    trace, _ = traced()
    events = json.loads(trace.to_chrome())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    instants = [event for event in events if event["ph"] == "i"]
    assert len(spans) == len({step.call for step in trace.steps})
    assert len(instants) == len(trace)
    assert all(span["dur"] >= 0 and span["name"].startswith("leaf/") for span in spans)
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert {(span["pid"], span["tid"]) for span in spans} == threads


def test_stepping_running_until_and_running_through_leave_one_trace() -> None:
    """However it is cut."""
    digest, times = traced()
    with simulation() as whole:
        assert b"".join(float(t).hex().encode() for t in whole.run())
        assert whole.trace.digest() == digest.digest()
    with simulation() as stepped:
        seen = 0
        while steps := stepped.step():
            seen += len(steps)
        assert stepped.done
        assert seen == len(digest)
        assert stepped.trace.digest() == digest.digest()
    with simulation() as sliced:
        instant = 0.0
        while not sliced.done:
            instant += 0.0011
            sliced.run_until(instant)
            assert sliced.now_s == instant
        assert sliced.trace.digest() == digest.digest()
    assert times


def test_reset_begins_anew() -> None:
    """From time 0, with the same draws; the first trace is not touched."""
    with simulation() as run:
        run.run_until(0.003)
        first = run.trace
        halfway = first.digest()
        run.reset()
        assert (run.now_s, len(run.trace), run.done) == (0.0, 0, False)
        run.run()
        assert first.digest() == halfway
        assert run.trace.digest() == traced()[0].digest()


def test_a_simulation_says_what_it_cannot_do() -> None:
    """Results before the end, steps after the close, time that has gone, programs that are none, deadlocks."""
    run = simulation()
    with pytest.raises(SimulationError, match="has not ended"):
        _ = run.result
    run.run_until(0.002)
    for instant in (0.001, float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match="clock stands at"):
            run.run_until(instant)
    run.close()
    run.close()
    for act in (run.step, run.run, lambda: run.run_until(1.0)):
        with pytest.raises(SimulationError, match="closed"):
            act()
    with pytest.raises(InvalidArgumentError, match="callable"):
        Simulation(None, World(), Streams(1))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="coroutine"):
        Simulation(lambda network: None, World(), Streams(1))  # type: ignore[arg-type, return-value]
    lossy = World(faults=(Loss(probability=1.0),))
    with simulation(lossy) as stuck:
        with pytest.raises(SimulationError, match="deadlock"):
            stuck.run()
        assert stuck.network.incidents["lost"] == 80


def test_an_error_of_the_program_is_its_result() -> None:
    """Raised by run() and by result, and by nothing else."""

    async def broken(network: SimNetwork) -> None:
        await asyncio.sleep(1)
        raise KeyError("broken")

    with Simulation(broken, World(), Streams(1)) as run:
        run.step()
        assert run.done
        with pytest.raises(KeyError, match="broken"):
            _ = run.result
