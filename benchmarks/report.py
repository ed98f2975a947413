"""Show figures as a table, and write them as JSON and Markdown with all that is needed to repeat them."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from benchmarks.measure import Figure, Sizes
from mktsim.study.replication import program_versions

COLUMNS = ("subject", "peer", "ours / peer", "quartiles", "in words", "ours", "peer's", "rounds", "bar")
#: A ratio that grew by more than this factor since a stored run is a regression.
WORSE = 4 / 3


def conditions(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Return machine, versions, seed and parameters."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "load_1_min": round(os.getloadavg()[0], 2),
        },
        "versions": {**program_versions(), "uhashring": version("uhashring"), "duckdb": version("duckdb")},
        "seed": seed,
        "parameters": asdict(sizes),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cells(figure: Figure) -> tuple[str, ...]:
    """Return a figure's row of the table."""
    times = 1 / figure.ratio if figure.ratio < 1 else figure.ratio
    words = f"{_three(times)} times {'faster' if figure.ratio < 1 else 'slower'}"
    return (
        figure.subject,
        figure.peer,
        f"{figure.ratio:.3g}",
        f"{figure.low:.3g} to {figure.high:.3g}",
        words,
        _time(figure.ours_s / figure.count, figure.unit),
        _time(figure.peer_s / figure.count, figure.unit),
        str(figure.rounds),
        _bar(figure),
    )


def _bar(figure: Figure) -> str:
    bars = [] if figure.at_most is None else [f"at most {figure.at_most:.3g}"]
    if figure.at_most_s is not None:
        bars.append(f"ours at most {1e3 * figure.at_most_s:g} ms")
    return f"{'met' if figure.met else 'MISSED'}: {', '.join(bars)}" if bars else ""


def _time(seconds: float, unit: str) -> str:
    value, name = (seconds * 1e6, "us") if seconds >= 1e-6 else (seconds * 1e9, "ns")
    return f"{_three(value)} {name} a {unit}"


def _three(value: float) -> str:
    """Return three significant digits, without an exponent where a number is large."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> Table:
    """Return the figures for a terminal."""
    made = Table(title="Ours divided by the peer's: medians over interleaved rounds; below 1 we are faster")
    for column in COLUMNS:
        made.add_column(column, justify="left" if column in ("subject", "peer", "in words", "bar") else "right")
    last = ""
    for figure in figures:
        subject, *rest = cells(figure)
        if last and subject != last:
            made.add_section()
        style = "red" if figure.met is False else None
        made.add_row(subject if subject != last else "", *rest, style=style)
        last = subject
    return made


def plain(frame: pd.DataFrame) -> str:
    """Return a table as aligned text."""
    return frame.to_string(index=False, float_format=_three)


def markdown(figures: Sequence[Figure], about: dict[str, Any], tables: Mapping[str, pd.DataFrame] | None = None) -> str:
    """Return the figures as a Markdown page."""
    machine, versions = about["machine"], about["versions"]
    measured = (
        f"Measured {about['date']} on {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"load {machine['load_1_min']}; {', '.join(f'{name} {number}' for name, number in versions.items())}; "
        f"seed {about['seed']}. Medians over interleaved rounds, quartiles of the ratio within a round; every peer's "
        "answer was compared with ours before it was timed."
    )
    lines = [
        "# Benchmarks",
        "",
        measured,
        "",
        f"Parameters: {', '.join(f'{name} {value}' for name, value in about['parameters'].items())}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(cells(figure))} |" for figure in figures),
    ]
    notes = sorted({f"{figure.subject}: {figure.note}." for figure in figures if figure.note})
    lines += [*([""] if notes else []), *notes, ""]
    for title, frame in (tables or {}).items():
        lines += [f"## {title}", "", f"| {' | '.join(frame.columns)} |", f"|{'---|' * len(frame.columns)}"]
        lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in frame.itertuples(index=False)]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else _three(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write(
    folder: Path,
    figures: Sequence[Figure],
    about: dict[str, Any],
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Write ``benchmarks.json`` and ``benchmarks.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(figure), "met": figure.met} for figure in figures]
    others = {title: json.loads(frame.to_json(orient="records")) for title, frame in (tables or {}).items()}
    text = json.dumps({**about, "figures": rows, "tables": others}, indent=2, ensure_ascii=False)
    (folder / "benchmarks.json").write_text(text + "\n", encoding="utf-8")
    (folder / "benchmarks.md").write_text(markdown(figures, about, tables), encoding="utf-8")


def regressions(figures: Sequence[Figure], stored: Path) -> tuple[list[str], int, int]:
    """Compare with a stored run.

    Returns
    -------
    list of str
        Ratios that grew by more than a third, and bars that are missed, in words.
    int, int
        How many ratios were compared, and how many are stored: subjects are known by their names, sizes included.
    """
    before = {(row["subject"], row["peer"]): row["ratio"] for row in json.loads(stored.read_text("utf-8"))["figures"]}
    shared = [(figure, before[key]) for figure in figures if (key := (figure.subject, figure.peer)) in before]
    worse = [
        f"worse by more than a third: {figure.subject}, against {figure.peer}: {ratio:.3g} before, "
        f"{figure.ratio:.3g} now"
        for figure, ratio in shared
        if figure.ratio > ratio * WORSE
    ]
    missed = [
        f"a bar is missed: {figure.subject}, against {figure.peer}: {figure.ratio:.3g}"
        for figure in figures
        if figure.met is False
    ]
    return worse + missed, len(shared), len(before)
