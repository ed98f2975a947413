"""The scaling study written down: charts as PNG, a tidy CSV, and one HTML page that needs no other file."""

from __future__ import annotations

import json
import os
import platform
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes

from mktsim.study import charts
from mktsim.study.points import Point, tidy
from mktsim.study.replication import program_versions
from mktsim.study.scaling import STATEMENTS, StudySize

_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "img{max-width:100%}table{border-collapse:collapse;font-size:13px;margin:.5rem 0}"
    "th,td{border-bottom:1px solid #ddd;padding:.15rem .6rem;text-align:right}"
    "th:first-child,td:first-child{text-align:left}"
    "caption{text-align:left;font-weight:600}code{background:#f4f4f4;padding:0 .2rem}details{margin:.5rem 0}"
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a study comes from, complete enough to repeat it.

    Attributes
    ----------
    seed : int
    date : str
        When it ran, as the caller says.
    machine : str
        What it ran on.
    versions : mapping
        Of the programs that took part.
    parameters : mapping
        What was asked for.
    """

    seed: int
    date: str
    machine: str
    versions: Mapping[str, str]
    parameters: Mapping[str, Any]

    @classmethod
    def here(cls, size: StudySize, *, seed: int, date: str) -> Provenance:
        """Describe a study that runs on this machine."""
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
        versions = {**program_versions(), **{name: version(name) for name in ("pandas", "matplotlib", "sqlglot")}}
        return cls(seed, date, machine, versions, asdict(size))


ON_DISK = "one process on one machine, on disk, all scanned"


def estimate(frame: pd.DataFrame, *, brief: bool = False, **where: Any) -> str:
    """Return an estimate with its interval as text, picked by column values; empty where there is none.

    A brief one comes without its unit, and with the larger half-width of the interval in percent.
    """
    rows = frame
    for name, value in where.items():
        rows = rows[rows[name] == value]
    if rows.empty:
        return ""
    row = rows.iloc[0]
    if brief:
        half = max(row["estimate"] - row["low"], row["high"] - row["estimate"]) / row["estimate"]
        return f"{_short(row['estimate'])} ±{100 * half:.1f}%" if half == half else _short(row["estimate"])
    scale, unit = (100, " %") if row["unit"] == "share" else (1, " ms") if row["unit"] == "ms" else (1, "")
    text = f"{_short(scale * row['estimate'])}{unit}"
    if pd.isna(row["low"]):
        return text
    return f"{text} [{_short(scale * row['low'])}, {_short(scale * row['high'])}]"


def answers(frame: pd.DataFrame) -> list[str]:
    """Say in a sentence each what a study found, with numbers, intervals and n."""
    found = []
    live = frame[frame["study"] == "live"]
    if not live.empty:
        most = live["x"].max()
        name = live["series"].iloc[0]
        n = int(live["n"].iloc[0])
        text = estimate(live, x=most, series=name)
        found.append(f"Measured: the exact {name} over {most:,.0f} vendors on disk takes {text} (median of {n}, warm).")
    fan_out = frame[(frame["study"] == "fan-out") & (frame["kind"] == "simulated")]
    for preset, part in fan_out.groupby("preset", sort=False):
        most = part["x"].max()
        texts = [
            f"{series} {estimate(part, x=most, series=series, statistic='p50')}"
            for series in dict.fromkeys(part["series"])
        ]
        requests = _range(part[part["x"] == most]["n"])
        found.append(f"Simulated ({preset}): p50 over {most:,.0f} vendors is {', '.join(texts)} (n = {requests}).")
    ring = frame[(frame["study"] == "ring") & (frame["statistic"] == "fullest over mean") & (frame["x"] == 150)]
    if not ring.empty:
        exact = ring[ring["kind"] == "analytic"].iloc[-1]["estimate"]
        found.append(
            "Measured: with 150 virtual nodes the fullest of 100 shards has "
            f"{estimate(ring, kind='measured')} times the mean load (exact law: {exact:.3f})."
        )
    merge = frame[(frame["study"] == "merge") & (frame["group"] == "all")]
    if not merge.empty:
        found.append(
            f"Measured: of {int(merge['n'].iloc[0]):,} random statements the exact merge answers "
            f"{estimate(merge, series='exact merge')} as one SQLite does, the naive merge "
            f"{estimate(merge, series='naive merge')}."
        )
    return found


def draw(frame: pd.DataFrame, provenance: Provenance) -> dict[str, tuple[str, bytes]]:
    """Draw the study's charts.

    Returns
    -------
    dict
        File name to title and PNG.
    """
    made: dict[str, tuple[str, bytes]] = {}
    note = f"Seed {provenance.seed}; {provenance.machine}; {provenance.date}"

    def keep(name: str, title: str, axes: Sequence[Axes], text: str) -> None:
        charts.annotate(axes, title=title, caption=f"{text} Bars and bands are 95 % intervals. {note}.")
        made[name] = (title, charts.png(axes[0]))

    live = frame[frame["study"] == "live"]
    vendors, time = "vendors", "sojourn time, ms"
    [ax] = charts.new_axes()
    charts.line_chart(live, x_label=vendors, y_label="wall time (p50), ms", ax=ax)
    keep(
        "live.png", "Exact answers over vendors on disk", [ax],
        "Packed store, one process, warm, all vendors scanned; "
        f"median of n = {int(live['n'].min())}; every answer was checked against one "
        "SQLite that holds all rows.",
    )  # fmt: skip
    fan_out = frame[frame["study"] == "fan-out"]
    for preset, part in fan_out.groupby("preset", sort=False):
        panels = charts.new_axes(2, height=4.9)
        if str(preset).startswith("same-zone"):  # The same program on one machine, for comparison.
            top = live[live["series"] == STATEMENTS[0][0]].assign(
                series="one process on one machine, on disk, all scanned"
            )
            part = pd.concat([top, part])
        styles = charts.series_styles(part)
        for ax, statistic in zip(panels, ("p50", "p99"), strict=True):
            chosen = part[part["statistic"] == statistic]
            charts.line_chart(chosen, x_label=vendors, y_label=time, title=statistic, ax=ax, styles=styles)
        low = min(panel.get_ylim()[0] for panel in panels)
        high = max(panel.get_ylim()[1] for panel in panels)
        for ax in panels:
            ax.set(ylim=(low, high), xlim=(0.7, 1.4e6))
        n = _range(part[part["kind"] == "simulated"]["n"])
        keep(
            f"fan-out-{str(preset).split()[0]}.png", f"Fan-out width, preset {preset}", panels,
            f"Top-10 by rating. Preset {preset}; n = {n} simulated requests a point; p99 only where n is enough.",
        )  # fmt: skip
    ring = frame[frame["study"] == "ring"]
    panels = charts.new_axes(2)
    labels = {
        "variation": "coefficient of variation of loads",
        "fullest over mean": "load of fullest shard / mean load",
    }
    styles = charts.series_styles(ring)
    for ax, (statistic, label) in zip(panels, labels.items(), strict=True):
        chosen = ring[ring["statistic"] == statistic]
        charts.line_chart(chosen, x_label="virtual nodes a shard", y_label=label, title=statistic, ax=ax, styles=styles)
    rings = int(ring[ring["kind"] == "measured"]["n"].min())
    keep("ring.png", "Ring balance against virtual nodes", panels, f"100 shards; n = {rings} rings a point.")
    merge = frame[frame["study"] == "merge"]
    ax = charts.share_chart(merge)
    text = (
        "Random tables over 5 vendors, random statements. Exact: judged to the last bit and in order; naive: floats to "
        "9 digits, order only under ORDER BY."
    )
    keep("merge.png", "Exact and naive merge against one SQLite", [ax], text)
    return made


def write_study(points: Sequence[Point], provenance: Provenance, folder: Path) -> list[Path]:
    """Write charts, table and report into a folder, each file whole or not at all; return their paths."""
    frame = tidy(points)
    pictures = draw(frame, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        **{name: data for name, (_, data) in pictures.items()},
        "scaling.csv": frame.to_csv(index=False, lineterminator="\n").encode(),
        "report.html": report_html(frame, pictures, provenance).encode(),
    }
    for name, data in files.items():
        charts.write_whole(folder / name, data)
    return [folder / name for name in files]


def report_html(frame: pd.DataFrame, pictures: Mapping[str, tuple[str, bytes]], provenance: Provenance) -> str:
    """Return one HTML page with the answers, the charts, all numbers and the provenance; everything is escaped."""
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><title>mktsim: scaling study</title>",
        f"<style>{_STYLE}</style></head><body><h1>Scaling study</h1><ul>",
        *(f"<li>{escape(answer)}</li>" for answer in answers(frame)),
        "</ul>",
    ]
    for title, data in pictures.values():
        image = b64encode(data).decode()
        parts.append(f"<h2>{escape(title)}</h2><img alt='{escape(title)}' src='data:image/png;base64,{image}'>")
    parts.append("<h2>Statements</h2><ul>")
    parts += [f"<li>{escape(name)}: <code>{escape(sql)}</code></li>" for name, sql, _ in STATEMENTS]
    parts.append("</ul><h2>All numbers</h2>")
    for study, part in frame.groupby("study", sort=False):
        shown = part.drop(columns=["study", "seed"]).dropna(axis="columns", how="all")
        shown = shown.loc[:, [name for name in shown if not (shown[name] == "").all()]]
        table = shown.to_html(index=False, border=0, float_format=_short, na_rep="", escape=True)
        parts.append(f"<details><summary>{escape(str(study))}: {len(part)} rows</summary>{table}</details>")
    facts = {"seed": provenance.seed, "date": provenance.date, "machine": provenance.machine}
    facts |= {"versions": json.dumps(dict(provenance.versions)), "parameters": json.dumps(dict(provenance.parameters))}
    parts.append("<h2>Provenance</h2><table>")
    parts += [f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items()]
    parts.append("</table></body></html>\n")
    return "".join(parts)


def _range(counts: pd.Series[int]) -> str:
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def _short(value: float) -> str:
    """Write a number with four significant digits, without powers of ten."""
    if value != value or not value:
        return "" if value else "0"
    text = f"{value:.4g}"
    return f"{float(text):,.10g}" if "e" in text or abs(value) >= 1000 else text
