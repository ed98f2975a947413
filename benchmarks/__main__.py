"""The command: ``python -m benchmarks [--quick] [--only NAME] [--check FILE]``.

Ratios to named peers come first, then tables that have no peer: how times grow, what planning costs and ships, TPC-H.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks import (
    cluster,
    explorers,
    fanout,
    growth,
    million,
    orders,
    placement,
    planning,
    prediction,
    report,
    runtime,
    simulation,
    sql,
    tpch,
)
from benchmarks.measure import QUICK, Figure, Sizes, measure
from benchmarks.peers import PeerMissingError
from mktsim.errors import CalibrationError

#: The figures of the last whole run that was kept; ``docs/BENCHMARKS.md`` shows them.
STORED = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).parents[1] / "docs" / "BENCHMARKS.md"
#: Ratios.
MODULES = {
    "fanout": fanout,
    "million": million,
    "orders": orders,
    "placement": placement,
    "simulation": simulation,
    "sql": sql,
    "runtime": runtime,
    "cluster": cluster,
}
#: Tables.
TABLES = ("growth", "planning", "tpch", "prediction", "explorers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, write; return 1 where ``--check`` finds a regression."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios to what one would write instead.")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds: some minutes")
    names = [*MODULES, *TABLES]
    parser.add_argument("--only", action="append", choices=names, help="one part; may be given more than once")
    parser.add_argument("--seed", type=int, default=20261122, help="of catalogues, keys and durations")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of benchmarks.json and benchmarks.md")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", nargs="?", const=STORED, help="a benchmarks.json to compare with, or ours"
    )
    parser.add_argument("--keep", action="store_true", help="store a whole run: for --check, and as docs/BENCHMARKS.md")
    options = parser.parse_args(arguments)
    if options.keep and (options.quick or options.only):
        parser.error("--keep: what is kept is a whole run, without --quick and --only")
    if options.check is not None and not options.check.is_file():
        parser.error(f"--check: there is no file {str(options.check)!r}")
    sizes = QUICK if options.quick else Sizes()
    progress, shown = Console(stderr=True), Console()
    if not shown.is_terminal:
        shown = Console(width=220)
    about = report.conditions(sizes, options.seed)
    figures: list[Figure] = []
    tables: dict[str, pd.DataFrame] = {}
    chosen = options.only or names
    try:
        for name in [name for name in MODULES if name in chosen]:
            with closing(MODULES[name].subjects(sizes, options.seed)) as subjects:
                try:
                    for subject in subjects:
                        progress.print(f"{name}: {subject.name}", style="dim")
                        figures += measure(subject, rounds=sizes.rounds, subject_s=sizes.subject_s)
                except PeerMissingError as error:
                    progress.print(f"{name} is left out: {error}", style="bold red")
        for name in [name for name in TABLES if name in chosen]:
            progress.print(f"{name}: a table", style="dim")
            try:
                tables |= _tables(name, sizes, options)
            except (PeerMissingError, CalibrationError) as error:
                progress.print(f"{name} is left out: {error}", style="bold red")
    except KeyboardInterrupt:
        progress.print("interrupted: what was measured so far follows, nothing was written")
        shown.print(report.table(figures))
        return 130
    if figures:
        shown.print(report.table(figures))
    for title, frame in tables.items():
        shown.print(f"\n{title}\n{report.plain(frame)}", markup=False, highlight=False)
    regressions, compared, stored = report.regressions(figures, options.check) if options.check else ([], 0, 0)
    report.write(options.out, figures, about, tables)
    if options.keep:
        shutil.copy(options.out / "benchmarks.json", STORED)
        shutil.copy(options.out / "growth.png", PAGE.parent / "images")
        text = report.markdown(figures, about, tables)
        PAGE.write_text(text.replace("\n## ", "\n![How times grow](images/growth.png)\n\n## ", 1), encoding="utf-8")
    for line in regressions:
        progress.print(line, style="bold red")
    if options.check:
        progress.print(f"compared with {options.check}: {compared} of its {stored} ratios")
        if not compared:
            progress.print("none of them is of a subject of this run: the check says nothing", style="bold red")
    return 1 if regressions or (options.check and not compared) else 0


def _tables(name: str, sizes: Sizes, options: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Measure what has no peer; return tables by their titles, and write the chart of growth."""
    if name == "growth":
        frame = growth.run(sizes, options.seed)
        options.out.mkdir(parents=True, exist_ok=True)
        caption = (
            f"Medians of {growth.REPEATS} queries or {growth.ORDERS} orders and point queries, warm; a market is "
            f"generated once. {sizes.products} products a vendor; scans by one process a core unless it says one; "
            f"seed {options.seed}."
        )
        (options.out / "growth.png").write_bytes(growth.chart(frame, caption))
        columns = ["series", "x", "estimate", "low", "high", "n"]
        return {
            "Growth: median times in ms by the number of vendors": frame[columns],
            "Growth: slopes on log axes over the larger half of the fleets": growth.slopes(frame),
        }
    if name == "planning":
        return {
            "Planning: cold and cached, and what travels": pd.DataFrame(planning.run(options.quick)),
            "The ten largest groups, by rounds of a threshold algorithm": pd.DataFrame(
                planning.groups_shipped(options.quick)
            ),
        }
    if name == "explorers":
        return {"Explorers in a browser: from a click to the change it causes": explorers.run(options.quick)}
    if name == "prediction":
        size = prediction.QUICK if options.quick else {}
        frame, calibration = prediction.predict_runtime(seed=options.seed, **size)
        kept = ["kind", "statistic", "unit", "x", "estimate", "low", "high", "n"]
        return {
            "The platform's own runtime, calibrated on few objects": calibration.cells,
            "The platform's own runtime, predicted at more objects and measured": frame[kept],
        }
    if tpch.generator() is None:
        raise PeerMissingError("TPC-H's generator is not installed")
    return {"TPC-H's queries beside one SQLite": pd.DataFrame(tpch.run(options.quick))}


if __name__ == "__main__":
    sys.exit(main())
