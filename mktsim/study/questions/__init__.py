"""Questions answered, one module each: a function that returns a StudyResult, and `answer_question` for the CLI.

To add one: write ``your_question(..., seed, executor=None, progress=False) -> StudyResult`` from replications and
intervals; its chart as a function of the result's frame in `mktsim.study.charts`; ``answer_question(*, quick, seed,
executor, progress)`` that returns the result and its pictures by file name; and a line in the command line's table.
"""

from mktsim.study.questions.fanout_width import fanout_width
from mktsim.study.questions.hedging import hedging
from mktsim.study.questions.isolation import isolation
from mktsim.study.questions.merging import merging
from mktsim.study.questions.partial import partial_answers
from mktsim.study.questions.pipelining import pipelining

__all__ = ["fanout_width", "hedging", "isolation", "merging", "partial_answers", "pipelining"]
