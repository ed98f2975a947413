"""What theory and publications say, beside what the engines say: one row a claim, with a verdict.

Rules
-----
A row states what is claimed and by whom, an estimate with its 95 % interval, and a tolerance: how far the estimate may
be off before something is wrong rather than unlucky (at scale 1; smaller samples may be off by more). A closed form is
a number, and is *covered* by an interval that holds it. Where a source states a range (a rounded number, an
approximation of known error, a bound), the claim is that range, and is covered by an interval that meets it. A 95 %
interval misses one time in twenty: nine rows of ten must be covered, and none may be off by more than its tolerance.

What this does not do
---------------------
It chooses no seed: the same checks run with any. It does not repeat the tables of `mktsim.study.tail_at_scale` that
were fitted; what is fitted cannot be validated by what it was fitted to.
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

import pandas as pd
from tqdm.auto import tqdm

from mktsim.errors import InvalidArgumentError
from mktsim.streams import Streams, check_seed
from mktsim.study.checks import CHECKS, Check
from mktsim.study.claims import Claim
from mktsim.study.jobs import Submits, check_executor, computed
from mktsim.study.provenance import program_versions
from mktsim.study.result import StudyResult


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """All rows, and what they say together.

    Attributes
    ----------
    claims : tuple of Claim
    seed : int
    scale : float
        How large the samples were.
    versions : mapping of str to str
    """

    claims: tuple[Claim, ...]
    seed: int
    scale: float
    versions: Any = field(default_factory=program_versions)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a claim: its fields, its relative ``error`` and its ``verdict``."""
        rows = [{**asdict(claim), "error": claim.error, "verdict": claim.verdict} for claim in self.claims]
        return pd.DataFrame(rows, columns=[*(each.name for each in fields(Claim)), "error", "verdict"])

    @property
    def covered_share(self) -> float:
        """Share of the rows whose interval holds the claim."""
        return sum(claim.covered for claim in self.claims) / len(self.claims)

    @property
    def passed(self) -> bool:
        """Whether nine rows of ten are covered and none is off."""
        return self.covered_share >= 0.9 and all(claim.verdict != "off" for claim in self.claims)

    def __str__(self) -> str:
        count = len(self.claims)
        off = [f"{claim.claim} ({claim.engine})" for claim in self.claims if claim.verdict == "off"]
        return (
            f"{count} claims: {sum(claim.covered for claim in self.claims)} covered ({self.covered_share:.1%}), "
            f"{len(off)} off by more than their tolerance{': ' + ', '.join(off) if off else ''}; "
            f"{'passed' if self.passed else 'FAILED'}; seed {self.seed}, scale {self.scale:g}"
        )

    def _repr_html_(self) -> str:
        colours = {"covered": "#e6f4ea", "within tolerance": "#fef7e0", "off": "#fce8e6"}
        head = ("about", "claim", "engine", "theory", "estimate", "95 % interval", "n", "error", "verdict", "source")
        rows = []
        for claim in self.claims:
            theory = f"{claim.theory_low:.5g}"
            if claim.theory_low != claim.theory_high:
                theory += f" to {claim.theory_high:.5g}"
            cells = (
                claim.group, claim.claim, claim.engine, theory, f"{claim.estimate:.5g}",
                f"{claim.low:.5g} to {claim.high:.5g}", f"{claim.n:,}",
                f"{100 * claim.error:+.2f} % of {100 * claim.tolerance:g} %", claim.verdict, claim.source,
            )  # fmt: skip
            shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            rows.append(f"<tr style='background:{colours[claim.verdict]};color:#222'>{shown}</tr>")
        titles = "".join(f"<th style='text-align:left'>{html.escape(title)}</th>" for title in head)
        return f"<table><caption>{html.escape(str(self))}</caption><tr>{titles}</tr>{''.join(rows)}</table>"


#: A tolerance below this is none: the claim is about what no sample size changes.
_EXACT: Final = 1e-6


def run_check(task: tuple[Check, int, float]) -> list[Claim]:
    """Run one check; what an executor is handed. Below a scale of 1 tolerances widen as the intervals do."""
    check, seed, scale = task
    widened = 1 / math.sqrt(min(1.0, scale))
    return [
        claim if claim.tolerance < _EXACT else replace(claim, tolerance=claim.tolerance * widened)
        for claim in check(Streams(seed).child(check.__name__), scale)
    ]


def validate(
    *, scale: float = 1.0, seed: int = 20261122, executor: Submits | None = None, progress: bool = False
) -> Validation:
    """Hold the engines and the placements against closed forms and published tables.

    Parameters
    ----------
    scale : float
        Multiplies the samples, from 0.1: intervals narrow with its square root. 1 takes about half a minute.
    seed : int
        Decides every draw.
    executor : optional
        Runs the checks side by side; the result does not depend on it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Validation
        A claim each of at least 60 rows; ``.frame`` is the table, ``.passed`` the verdict of all.

    Raises
    ------
    InvalidArgumentError
        If `scale` or `seed` is out of range.

    Examples
    --------
    A table of more than 90 rows takes seconds, a wrong argument none:

    >>> validate(scale=0)
    Traceback (most recent call last):
        ...
    mktsim.errors.InvalidArgumentError: scale must be from 0.1 to 1000, not 0
    """
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0.1 <= scale <= 1000:
        raise InvalidArgumentError(f"scale must be from 0.1 to 1000, not {scale!r:.80}")
    check_seed(seed)
    check_executor(executor, None)
    tasks = [(check, seed, float(scale)) for check in CHECKS]
    found: dict[int, list[Claim]] = {}
    with tqdm(total=len(tasks), desc="validate", unit="check", disable=not progress) as bar:
        for number, claims in computed(run_check, tasks, executor=executor):
            found[number] = claims
            bar.update()
    return Validation(tuple(claim for number in range(len(tasks)) for claim in found[number]), seed, float(scale))


def answer_question(
    *, quick: bool, seed: int, executor: Submits | None = None, progress: bool = False
) -> tuple[StudyResult, dict[str, tuple[str, bytes]]]:
    """Validate for the command line; the table as an HTML page by file name."""
    found = validate(scale=0.2 if quick else 1.0, seed=seed, executor=executor, progress=progress)
    question = "Do the engines and placements give what theory and publications say?"
    result = StudyResult(
        question=question, answer=str(found), frame=found.frame, parameters={"scale": found.scale}, seed=seed,
        caption="95 % intervals; tolerances are relative.",
    )  # fmt: skip
    head = "<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>validation</title>"
    return result, {"validation.html": (question, f"{head}{found._repr_html_()}</html>\n".encode())}
