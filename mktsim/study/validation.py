"""What theory and publications say, beside what this package says: one row a claim, with a verdict.

Rules
-----
A row states what is claimed and by whom, what gave the estimate, the estimate with its 95 % interval, and a tolerance.
A closed form is a number, and is *covered* by an interval that holds it. Where a source states a range (a rounded
number, an approximation of known error, a bound), the claim is that range, and is covered by an interval that meets it.

An estimate is *off* that is further from its claim than its tolerance, or than chance explains: 2.7 half-widths of its
own interval (`mktsim.study.claims`). A 95 % interval misses one time in twenty: of the rows that are a matter of chance
(theory against samples) nine of ten must be covered, and none of any kind may be off.

What this does not do
---------------------
It chooses no seed: the same checks run with any. Rows of a kind ``fitted`` or ``predicted`` do not validate a model by
what it was fitted to: they hold it to the accuracy that is stated for it (`mktsim.study.table_checks`).
"""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field, fields
from typing import Any

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

    Examples
    --------
    One claim: the mean of the slowest of 100 exponential leaves is ``H_100``.

    >>> import numpy as np
    >>> from mktsim.study.analytic import harmonic
    >>> from mktsim.study.statistics import mean_interval
    >>> leaves = -np.log(Streams(1).uniform("leaf", 0, 400 * 100)).reshape(400, 100)
    >>> interval = mean_interval(leaves.max(axis=1))
    >>> claim = Claim.of("scatter", "all of 100", "arrivals", harmonic(100), interval, source="Renyi, 1953")
    >>> found = Validation((claim,), seed=1, scale=1.0)
    >>> found.passed, found.frame["verdict"].tolist()
    (True, ['covered'])
    """

    claims: tuple[Claim, ...]
    seed: int
    scale: float
    versions: Any = field(default_factory=program_versions)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a claim: its fields, ``error``, ``half_widths`` and ``verdict``."""
        more = ("error", "half_widths", "verdict")
        rows = [{**asdict(claim), **{name: getattr(claim, name) for name in more}} for claim in self.claims]
        return pd.DataFrame(rows, columns=[*(each.name for each in fields(Claim)), *more])

    @property
    def covered_share(self) -> float:
        """Share of the rows that are a matter of chance whose interval holds the claim; nan where there are none."""
        rows = [claim.covered for claim in self.claims if claim.is_by_chance]
        return sum(rows) / len(rows) if rows else float("nan")

    @property
    def passed(self) -> bool:
        """Whether nine of ten of the rows that are a matter of chance are covered, and no row is off."""
        return not self.covered_share < 0.9 and all(claim.verdict != "off" for claim in self.claims)

    def __str__(self) -> str:
        chance = [claim for claim in self.claims if claim.is_by_chance]
        off = [f"{claim.claim} ({claim.engine})" for claim in self.claims if claim.verdict == "off"]
        return (
            f"{len(self.claims)} claims, {len(chance)} of them a matter of chance: "
            f"{sum(claim.covered for claim in chance)} of these covered ({self.covered_share:.1%}); "
            f"{len(off)} off by more than their tolerance or than chance explains{': ' + ', '.join(off) if off else ''}"
            f"; {'passed' if self.passed else 'FAILED'}; seed {self.seed}, scale {self.scale:g}"
        )

    def _repr_html_(self) -> str:
        colours = {"covered": "#e6f4ea", "within tolerance": "#fef7e0", "off": "#fce8e6"}
        head = (
            "about",
            "claim",
            "engine",
            "kind",
            "theory",
            "estimate",
            "95 % interval",
            "n",
            "error",
            "verdict",
            "source",
        )
        rows = []
        for claim in self.claims:
            theory = f"{claim.theory:.5g}"
            if claim.theory_low != claim.theory_high:
                theory += f" ({claim.theory_low:.5g} to {claim.theory_high:.5g})"
            cells = (
                claim.group, claim.claim, claim.engine, claim.kind, theory, f"{claim.estimate:.5g}",
                f"{claim.low:.5g} to {claim.high:.5g}", f"{claim.n:,}",
                f"{100 * claim.error:+.2f} % of {100 * claim.tolerance:g} %", claim.verdict, claim.source,
            )  # fmt: skip
            shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            rows.append(f"<tr style='background:{colours[claim.verdict]};color:#222'>{shown}</tr>")
        titles = "".join(f"<th style='text-align:left'>{html.escape(title)}</th>" for title in head)
        return f"<table><caption>{html.escape(str(self))}</caption><tr>{titles}</tr>{''.join(rows)}</table>"


def run_check(task: tuple[Check, int, float]) -> list[Claim]:
    """Run one check; what an executor is handed."""
    check, seed, scale = task
    return check(Streams(seed).child(check.__name__), scale)


def validate(
    *, scale: float = 1.0, seed: int = 20261122, executor: Submits | None = None, progress: bool = False
) -> Validation:
    """Hold the engines and the placements against closed forms and published tables.

    Parameters
    ----------
    scale : float
        Multiplies the samples, from 0.1: intervals narrow with its square root, down to floors below which a check
        means nothing. 1 takes about a minute and a half.
    seed : int
        Decides every draw.
    executor : optional
        Runs the checks side by side; the result does not depend on it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Validation
        A claim each of at least 150 rows; ``.frame`` is the table, ``.passed`` the verdict of all.

    Raises
    ------
    InvalidArgumentError
        If `scale` or `seed` is out of range.

    Examples
    --------
    A table of more than 150 rows takes seconds, a wrong argument none:

    >>> validate(scale=0)
    Traceback (most recent call last):
        ...
    mktsim.errors.InvalidArgumentError: scale must be from 0.1 to 1000, not 0
    """
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0.1 <= scale <= 1000:
        raise InvalidArgumentError(f"scale must be from 0.1 to 1000, not {scale!r:.80}")
    seed = check_seed(seed)
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
        caption="95 % intervals; tolerances are relative; off is also what is 2.7 half-widths away.",
    )  # fmt: skip
    head = "<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>validation</title>"
    return result, {"validation.html": (question, f"{head}{found._repr_html_()}</html>\n".encode())}
