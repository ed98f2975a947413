"""What a study hands back: the answer in words, its table, and all that is needed to repeat it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mktsim.errors import InvalidArgumentError
from mktsim.study.provenance import program_versions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StudyResult:
    """The answer to one question.

    Parameters
    ----------
    question : str
        In a sentence.
    answer : str
        In a sentence or two, with numbers and intervals.
    frame : DataFrame
        The numbers, tidy: as a rule the columns of :class:`~mktsim.study.points.Point`. A copy is kept.
    parameters : mapping of str to object
        What was asked for, complete enough to ask again.
    seed : int
        Decides every draw.
    caption : str
        What a chart of it must say: n, preset and its date, confidence.
    versions : mapping of str to str
        Of the programs that took part.

    Raises
    ------
    InvalidArgumentError
        If a part is not of its kind, or the frame is empty.

    Examples
    --------
    >>> frame = pd.DataFrame({"statistic": ["p99"], "estimate": [12.5]})
    >>> result = StudyResult(question="How long?", answer="12.5 ms.", frame=frame, parameters={"vendors": 10}, seed=1)
    >>> result
    <StudyResult 'How long?' 1 rows, seed 1: 12.5 ms.>
    """

    question: str
    answer: str
    frame: pd.DataFrame
    parameters: Mapping[str, Any]
    seed: int
    caption: str = ""
    versions: Mapping[str, str] = field(default_factory=program_versions)

    def __post_init__(self) -> None:
        for name in ("question", "answer", "caption"):
            if not isinstance(getattr(self, name), str):
                raise InvalidArgumentError(f"StudyResult.{name} must be text, not {getattr(self, name)!r:.80}")
        if not isinstance(self.frame, pd.DataFrame) or self.frame.empty:
            raise InvalidArgumentError(f"StudyResult.frame must be a table with rows, not {self.frame!r:.80}")
        if not isinstance(self.parameters, Mapping):
            raise InvalidArgumentError(f"StudyResult.parameters must be a mapping, not {self.parameters!r:.80}")
        object.__setattr__(self, "frame", self.frame.copy())
        object.__setattr__(self, "parameters", dict(self.parameters))
        object.__setattr__(self, "versions", dict(self.versions))

    @property
    def provenance(self) -> dict[str, Any]:
        """Seed, parameters and versions."""
        return {"seed": self.seed, "parameters": dict(self.parameters), "versions": dict(self.versions)}

    def __repr__(self) -> str:
        return f"<StudyResult {self.question!r:.80} {len(self.frame)} rows, seed {self.seed}: {self.answer:.200}>"

    def _repr_html_(self) -> str:
        shown = self.frame.dropna(axis="columns", how="all")
        table = shown.to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}", na_rep="", escape=True)
        origin = html.escape(json.dumps(self.provenance, default=str, ensure_ascii=False))
        return (
            f"<h3>{html.escape(self.question)}</h3><p>{html.escape(self.answer)}</p>{table}"
            f"<p><small>{html.escape(self.caption)}</small></p>"
            f"<details><summary>provenance</summary><code>{origin}</code></details>"
        )
