"""The README's pictures are those of today's code, and a command makes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import pictures
from mktsim.study import charts

ROOT = Path(__file__).parents[1]


def test_the_explorer_in_the_readme_is_what_todays_code_shows() -> None:
    """Texts, tables, the bars of the chart: the digest in the file is that of the explorer. Else: make pictures."""
    kept = (pictures.IMAGES / "stragglers.png").read_bytes()
    made = pictures.stragglers()
    assert pictures.text_of(kept, pictures.DIGEST_KEY) == pictures.shown(made), "make pictures"
    made.close()


@pytest.mark.parametrize("change", ["a draw", "a text", "the chart"])
def test_another_answer_text_or_chart_is_another_picture(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    kept = pictures.text_of((pictures.IMAGES / "stragglers.png").read_bytes(), pictures.DIGEST_KEY)
    if change == "the chart":
        monkeypatch.setattr(charts, "_COPY_HATCH", "xx")
    made = pictures.stragglers()
    if change == "a draw":
        made.controls["seed"].value += 1
    elif change == "a text":
        made.title = "another title"
    assert pictures.shown(made) != kept
    made.close()


def test_make_pictures_writes_every_picture_of_the_readme_that_no_benchmark_writes() -> None:
    """The command knows each by its name, and the Makefile names the command."""
    named = set(re.findall(r"docs/images/(\w+)\.png", (ROOT / "README.md").read_text()))
    assert named == set(pictures.PICTURES)
    assert "pictures:\n\tuv run python -m benchmarks.pictures\n" in (ROOT / "Makefile").read_text()
    assert {path.stem for path in pictures.IMAGES.glob("*.png")} == {*pictures.PICTURES, "growth"}
