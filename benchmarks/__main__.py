"""The command: ``python -m benchmarks [--quick] [--only NAME] [--check FILE]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from benchmarks import cluster, fanout, placement, prediction, report, runtime, simulation, sql
from benchmarks.measure import QUICK, Figure, Sizes, measure

MODULES = {
    "fanout": fanout,
    "placement": placement,
    "simulation": simulation,
    "sql": sql,
    "runtime": runtime,
    "cluster": cluster,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, write; return 1 where ``--check`` finds a regression."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios to what one would write instead.")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds: about a minute")
    parser.add_argument("--only", action="append", choices=[*MODULES], help="one module; may be given more than once")
    parser.add_argument("--seed", type=int, default=20261122, help="of catalogues, keys and durations")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of benchmarks.json and benchmarks.md")
    parser.add_argument("--check", type=Path, metavar="FILE", help="a benchmarks.json to compare with")
    parser.add_argument("--predict", action="store_true", help="only: the runtime's largest size from its small ones")
    options = parser.parse_args(arguments)
    if options.check is not None and not options.check.is_file():
        parser.error(f"--check: there is no file {str(options.check)!r}")
    if options.predict:
        return prediction.report(quick=options.quick, seed=options.seed, out=options.out)
    sizes = QUICK if options.quick else Sizes()
    progress, shown = Console(stderr=True), Console()
    if not shown.is_terminal:
        shown = Console(width=220)
    about = report.conditions(sizes, options.seed)
    figures: list[Figure] = []
    try:
        for name in options.only or MODULES:
            with closing(MODULES[name].subjects(sizes, options.seed)) as subjects:
                for subject in subjects:
                    progress.print(f"{name}: {subject.name}", style="dim")
                    figures += measure(subject, rounds=sizes.rounds, subject_s=sizes.subject_s)
    except KeyboardInterrupt:
        progress.print("interrupted: what was measured so far follows, nothing was written")
        shown.print(report.table(figures))
        return 130
    shown.print(report.table(figures))
    regressions = report.regressions(figures, options.check) if options.check else []
    report.write(options.out, figures, about)
    for line in regressions:
        progress.print(f"worse by more than a third: {line}", style="bold red")
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
