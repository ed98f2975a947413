"""The command line: ``python -m mktsim`` runs the scaling study; see ``python -m mktsim --help``.

Rules
-----
Exit code 0: done. 1: the reader of the output went away. 2: the caller's mistake, told in one message on stderr,
without a traceback. 130: interrupted, and nothing is left half-written. What was asked for goes to stdout, what is said
about it to stderr; progress bars appear on a terminal only.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mktsim.errors import InvalidArgumentError, MktsimError, StorageError, cause, shortened

if TYPE_CHECKING:
    import pandas as pd

    from mktsim.fanout import QueryResult
    from mktsim.market import Marketplace

# Commands import what they need when they run, so that --help and a mistake are answered at once.

_EXAMPLES: Final = """\
examples:
  python -m mktsim                        the scaling study, under 3 minutes; charts and report in out/
  python -m mktsim --quick                the same in under 30 seconds
  python -m mktsim generate /tmp/shop --vendors 1000
  python -m mktsim query /tmp/shop "SELECT COUNT(*) AS count FROM products"
  python -m mktsim query /tmp/shop "SELECT name, rating FROM products WHERE category = ? \\
      ORDER BY rating DESC LIMIT 10" --param electronics
  python -m mktsim explain /tmp/shop "SELECT category, AVG(price) FROM products GROUP BY category"
  mkdir -p ~/.local/share/bash-completion/completions
  mktsim completion bash > ~/.local/share/bash-completion/completions/mktsim

Installed by uv, each begins with 'uv run', unless .venv is activated. Without a command, 'study scaling' runs and takes
its options (--quick, --seed, --out, --json). Exit codes: 0 done, 1 nobody reads on, 2 your mistake, 130 interrupted.
"""
_STUDIES: Final = """\
studies:
  scaling        live and simulated scaling to a million vendors, the ring's balance, exact and naive merges
  calibration    does the simulator, calibrated on small live fleets, foretell larger ones?
  fan-out-width  how does the p99 grow with the fan-out, and which width of the tree is best?
  hedging        what does hedging buy per extra load?
  isolation      what does isolation cost against one database?
  merging        what does an exact merge cost over a naive one, and how wrong is the naive one?
  partial        what does a partial answer lose?
  pipelining     what does pipelining save, by distance?
  validate       do the engines and placements give what theory and publications say?
  virtual-nodes  how many virtual nodes until placement stops costing tail latency?

examples:
  python -m mktsim study scaling --quick
  python -m mktsim study hedging --out /tmp/hedging --json
"""
#: Studies that answer one question, by their name in ``study NAME``: a module of `mktsim.study` with `answer_question`.
_QUESTIONS: Final = {
    "calibration": "questions.live_vs_simulated",
    "fan-out-width": "questions.fanout_width",
    "hedging": "questions.hedging",
    "isolation": "questions.isolation",
    "merging": "questions.merging",
    "partial": "questions.partial",
    "pipelining": "questions.pipelining",
    "validate": "validation",
    "virtual-nodes": "virtual_nodes",
}
_COMMANDS: Final = ("generate", "query", "explain", "study", "completion")
_SHELLS: Final = ("bash", "zsh", "tcsh")
Command = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process when absent.

    Examples
    --------
    >>> main(["generate", "/tmp/shop", "--vendors", "-1"])
    2
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given = ["study", "scaling", *given]
    try:
        options = _parser().parse_args(given)
        run: Command = options.run
        run(options)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse has said what is wrong.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        _say("interrupted; nothing is left half-written")
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MktsimError, OSError) as error:
        # A message written for callers of the library names the option of this command line instead.
        _say(f"error: {_plain(str(error)).replace('allow_partial=True', '--allow-partial')}")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mktsim",
        description="Exact SQL over many isolated SQLite databases, run for real and simulated by the same code.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="{" + ",".join(_COMMANDS) + "}", required=True)

    def command(name: str, text: str, run: Command, example: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  python -m mktsim {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    generate = command("generate", "generate a marketplace on disk", _generate, "generate /tmp/shop --vendors 1000")
    generate.add_argument("path", metavar="PATH", help="a new folder")
    generate.add_argument("--vendors", type=int, default=1000, help="how many (default %(default)s)")
    generate.add_argument("--products", type=int, default=10, help="mean number a vendor (default %(default)s)")
    generate.add_argument("--seed", type=int, default=0, help="decides every row (default %(default)s)")

    query = command("query", "answer one SELECT over all vendors", _query,
                    'query /tmp/shop "SELECT name FROM products WHERE name LIKE ?" --param %wireless%')  # fmt: skip
    explain = command("explain", "show how a statement would be answered, without running it", _explain,
                      'explain /tmp/shop "SELECT AVG(price) FROM products"')  # fmt: skip
    for one in (query, explain):
        one.add_argument("path", metavar="PATH", help="a marketplace's folder")
        one.add_argument("sql", metavar="SQL", help="one statement that reads")
        one.add_argument(
            "--param", action="append", default=[], metavar="VALUE",
            help="of the next placeholder: a number or null as in JSON, a text in JSON quotes, else the text itself",
        )  # fmt: skip
    query.add_argument("--shard-key", metavar="VENDOR", help="ask this vendor alone")
    query.add_argument("--allow-partial", action="store_true", help="answer from the vendors that answered")
    query.add_argument("--deadline", type=float, metavar="SECONDS", help="stop waiting after so long")

    study = command("study", "run a study and write charts, a table and a report", _study, "study scaling --quick")
    study.epilog = _STUDIES
    names = ["scaling", *_QUESTIONS]
    study.add_argument("name", nargs="?", choices=names, default="scaling", metavar="NAME",
                       help="which, see below (default %(default)s)")  # fmt: skip
    study.add_argument("--quick", action="store_true", help="smaller samples, under 30 seconds")
    study.add_argument("--seed", type=int, default=20261122, help="decides every draw (default %(default)s)")
    study.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="(default %(default)s)")

    completion = command("completion", "print what teaches a shell to complete 'mktsim'", _completion,
                         "completion bash > mktsim.bash && source mktsim.bash")  # fmt: skip
    completion.add_argument("shell", choices=_SHELLS, help="which")
    return parser


# -- commands -----------------------------------------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> None:
    from time import perf_counter

    from mktsim.study.fleets import make_fleet

    if not options.path:  # Path("") would be this very folder.
        raise InvalidArgumentError("PATH is empty: name a new folder")
    started = perf_counter()
    numbers = {"vendors": options.vendors, "products": options.products, "seed": options.seed}
    path = make_fleet(Path(options.path), **numbers, progress=_on_terminal())
    wall_s = round(perf_counter() - started, 3)
    if options.json:
        _print_json({"path": str(path), **numbers, "wall_s": wall_s})
    else:
        print(f"{_plain(str(path))}: {options.vendors:,} vendors in {wall_s} s")


def _query(options: argparse.Namespace) -> None:
    params = [_param(text) for text in options.param]

    async def ask(market: Marketplace) -> QueryResult:
        return await market.query(
            options.sql, params, shard_key=options.shard_key, allow_partial=options.allow_partial,
            deadline_s=options.deadline,
        )  # fmt: skip

    result = asyncio.run(_with_market(options.path, ask))
    if options.json:
        stats, coverage = asdict(result.stats), asdict(result.coverage)
        _print_json({"columns": result.columns, "rows": result.rows, "stats": stats, "coverage": coverage})
        return
    _table(result.columns, [[_shown(value) for value in row] for row in result.rows])
    stats = result.stats
    _say(
        f"{_rows(len(result.rows))}; {stats.tier}; {stats.vendors_answered:,} of {stats.vendors_asked:,} vendors "
        f"answered, {stats.vendors_pruned:,} pruned; {_rows(stats.rows_shipped)} shipped; "
        f"{1e3 * stats.wall_s['total']:.1f} ms{f'; {stats.reading}' if stats.reading else ''}"
    )
    if not result.coverage.complete:
        _say(f"incomplete: {_plain(', '.join(result.coverage.missing[:10]))} did not answer")


def _explain(options: argparse.Namespace) -> None:
    params = [_param(text) for text in options.param]

    async def look(market: Marketplace) -> Any:
        return market.explain(options.sql, params)

    explanation = asyncio.run(_with_market(options.path, look))
    if options.json:
        _print_json(asdict(explanation))
    else:
        print(_plain(str(explanation)))


def _study(options: argparse.Namespace) -> None:
    from mktsim.study.points import tidy
    from mktsim.study.report import Provenance, answers, write_study
    from mktsim.study.scaling import FULL, QUICK, run_study, simulation_processes

    out = _folder(options.out)
    if options.name in _QUESTIONS:
        _question(options, out)
        return
    size = QUICK if options.quick else FULL
    # In a checkout, fleets go where its .gitignore expects them; elsewhere beside the results.
    fleets = Path("data/fleets") if Path("data/presets").is_dir() else out / "fleets"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    provenance = Provenance.here(size, seed=options.seed, date=date)
    with simulation_processes() as processes:
        points = run_study(
            size, seed=options.seed, fleets=fleets, progress=_on_terminal(), executor=processes, announce=_say
        )
    written = write_study(points, provenance, out)
    frame = tidy(points)
    if options.json:
        _print_json(frame.to_dict("records"))
        return
    _print_study(frame)
    for answer in answers(frame):
        print(f"- {answer}")
    print(f"\n{_plain(str(written[-1]))}, {len(written) - 2} charts, {written[-2].name}")


def _question(options: argparse.Namespace, out: Path) -> None:
    """Answer one question: the answer on stdout; table and charts in a folder."""
    from importlib import import_module

    from mktsim.study.charts import write_whole
    from mktsim.study.scaling import simulation_processes

    module = import_module(f"mktsim.study.{_QUESTIONS[options.name]}")
    with simulation_processes() as processes:
        result, pictures = module.answer_question(
            quick=options.quick, seed=options.seed, executor=processes, progress=_on_terminal()
        )
    files = {name: data for name, (_, data) in pictures.items()}
    files[f"{options.name}.csv"] = result.frame.to_csv(index=False, lineterminator="\n").encode()
    for name, data in files.items():
        write_whole(out / name, data)
    if options.json:
        _print_json(
            {"question": result.question, "answer": result.answer, "rows": result.frame.to_dict("records"),
             **result.provenance}
        )  # fmt: skip
        return
    print(f"{result.question}\n{result.answer}\n\n{_plain(', '.join(str(out / name) for name in files))}")


def _completion(options: argparse.Namespace) -> None:
    import shtab

    parser = _parser()
    parser.prog = "mktsim"
    script = shtab.complete(parser, options.shell)
    if options.json:
        _print_json({"shell": options.shell, "script": script})
    else:
        print(script)


def _print_study(frame: pd.DataFrame) -> None:
    """Print three tables: times against vendors, the ring, the merges."""
    from mktsim.study.report import estimate

    times = frame[frame["study"].isin(["live", "fan-out"]) & (frame["n"] > 0)]
    series = list(times[["kind", "series", "preset"]].drop_duplicates().itertuples(index=False, name=None))
    for statistic in ("p50", "p99"):
        chosen = times[times["statistic"] == statistic]
        rows = [
            [f"{kind}: {name}", preset.split(" ")[0] or "this machine",
             *(estimate(chosen, kind=kind, series=name, preset=preset, x=x, brief=True)
               for x in sorted(times["x"].unique()))]
            for kind, name, preset in series
        ]  # fmt: skip
        rows = [row for row in rows if any(row[2:])]
        _table([f"{statistic}, ms, at vendors:", "where", *(f"{x:,.0f}" for x in sorted(times["x"].unique()))], rows)
    ring = frame[frame["study"] == "ring"]
    kinds = list(ring[["kind", "series"]].drop_duplicates().itertuples(index=False, name=None))
    rows = [
        [f"{x:,.0f}", *(estimate(part, kind=kind, series=name, statistic="fullest over mean") for kind, name in kinds)]
        for x, part in ring.groupby("x")
    ]
    _table(["virtual nodes", *(f"fullest / mean, {kind}: {name}" for kind, name in kinds)], rows)
    merge = frame[frame["study"] == "merge"]
    rows = [
        [group, str(int(part["n"].iloc[0])), *(estimate(part, series=f"{name} merge") for name in ("exact", "naive"))]
        for group, part in merge.groupby("group", sort=False)
    ]
    _table(["statements", "n", "exact merge right", "naive merge right"], rows)


# -- helpers ------------------------------------------------------------------------------------------------------


async def _with_market(path: str, use: Callable[[Marketplace], Any]) -> Any:
    """Open the marketplace at `path`, which must exist, and hand it on."""
    from mktsim.market import Marketplace

    try:
        found = (Path(path) / "market.json").is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise InvalidArgumentError(f"no marketplace at {path!r:.300}: make one with 'generate'")
    async with Marketplace.open(path) as market:
        return await use(market)


def _folder(out: Path) -> Path:
    """Make a folder for results."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise StorageError(f"--out {str(out)!r:.300} cannot be used: {shortened(error)}") from cause(error)
    return out


def _param(text: str) -> Any:
    """Read a value from the command line.

    Examples
    --------
    >>> [_param(text) for text in ("electronics", "3", "-0.5", "null", '"3"', "%wireless%")]
    ['electronics', 3, -0.5, None, '3', '%wireless%']
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    scalar = value is None or (isinstance(value, int | float | str) and not isinstance(value, bool))
    return value if scalar and not (isinstance(value, float) and not math.isfinite(value)) else text


def _print_json(data: Any) -> None:
    print(json.dumps(_jsonable(data), ensure_ascii=True, allow_nan=False, indent=1))


def _jsonable(value: Any) -> Any:
    """Return plain data; what JSON has not becomes an object that names it: bytes, infinities."""
    if isinstance(value, dict):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else {"real": str(value)}
    return value


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; on something that is no terminal as wide as it needs."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, name in enumerate(columns):
        numeric = bool(rows) and all(row[place][:1] in "-0123456789" or row[place] == "NULL" for row in rows)
        table.add_column(Text(_plain(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 2000, file=sys.stdout)
    console.print(table)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _shown(value: Any) -> str:
    if value is None:
        return "NULL"
    return f"x'{value.hex()}'" if isinstance(value, bytes) else _plain(str(value))


def _plain(text: str) -> str:
    """Return a text without control characters, which a product's name could use to command the terminal."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"mktsim {version('mktsim')}"
    except PackageNotFoundError:
        return "mktsim, not installed"
