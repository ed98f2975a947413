"""Questions answered, one module each: a function that returns a StudyResult, and `answer_question` for the CLI.

To add one: write ``your_question(..., seed, executor=None, progress=False) -> StudyResult`` from replications and
intervals; its chart as a function of the result's frame in `mktsim.study.charts`; ``answer_question(*, quick, seed,
executor, progress)`` that returns the result and its pictures by file name; and a line in the command line's table.

Smaller ones, of one statement, one request, one ring, one run, are asked by the explorers: `compare_merges`,
`fan_out_curve`, `hedged_request`, `replay`, `ride_through`, `ring_change`. They return plain data; the long ones can be
asked slice by slice (`mktsim.study.slices`).
"""

from mktsim.study.questions.curve import FanOutCurve, fan_out_curve
from mktsim.study.questions.fanout_width import fanout_width
from mktsim.study.questions.hedging import hedging
from mktsim.study.questions.isolation import isolation
from mktsim.study.questions.merging import merging
from mktsim.study.questions.moments import Replay, replay
from mktsim.study.questions.one_request import HedgedRequest, hedged_request, hedging_policy
from mktsim.study.questions.one_statement import MergeComparison, compare_merges
from mktsim.study.questions.partial import partial_answers
from mktsim.study.questions.pipelining import pipelining
from mktsim.study.questions.ride import intended_start_ms, resilient_policy, ride_through
from mktsim.study.questions.ring_moves import RingChange, ring_change

__all__ = [
    "FanOutCurve",
    "HedgedRequest",
    "MergeComparison",
    "Replay",
    "RingChange",
    "compare_merges",
    "fan_out_curve",
    "fanout_width",
    "hedged_request",
    "hedging",
    "hedging_policy",
    "intended_start_ms",
    "isolation",
    "merging",
    "partial_answers",
    "pipelining",
    "replay",
    "resilient_policy",
    "ride_through",
    "ring_change",
]
