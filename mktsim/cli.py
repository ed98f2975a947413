"""The command line: ``python -m mktsim`` runs the scaling study; see ``python -m mktsim --help``.

Rules
-----
An exit code says whose fault it is (`ExitCode`), one message on stderr what is wrong; a traceback is a bug of ours.
What was asked for goes to stdout, what is said about it to stderr; progress bars appear on a terminal only. A mistake
that can be seen in the arguments is answered before anything large is imported. Whatever encoding the output has, it
takes every text: what it lacks is written as an escape.

Theory of operation
-------------------
*Ctrl-C.* At the first one ``asyncio.run`` asks the main task to end at its next ``await``, which may be minutes away
while SQLite runs a statement or many vendors are read in one go. :func:`_run` has the signal cancel the task that runs
where it is, within SQLite too: there the signal arrives in the progress handler (`mktsim.fanout.interrupt`). To the
tasks that wait for it this is a cancellation as any other, so that stores close in their order; KeyboardInterrupt,
which every waiting task would raise again, is not.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import errno
import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mktsim.errors import (
    CalibrationError,
    IncompleteAnswerError,
    InvalidArgumentError,
    MissingExtraError,
    MktsimError,
    OrderError,
    QueryError,
    StorageError,
    cause,
    shortened,
)

if TYPE_CHECKING:
    import pandas as pd

    from mktsim.fanout import QueryResult
    from mktsim.market import Marketplace
    from mktsim.study import StudyResult

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
its options (--quick, --seed, --out, --json).

exit codes:
  0    done
  1    nobody reads the output
  2    your mistake: an argument, a path, the statement
  3    the answer is late, or vendors are missing in it; --allow-partial has printed what there is
  4    a store, a vendor or this machine failed: a damaged or lost file, a full disk
  5    a check failed: 'study validate', or measurements that do not follow their model
  130  interrupted
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
#: The one rule for seeds is `mktsim.streams.check_seed`, which a test compares with this: that module imports numpy.
_MOST_SEED: Final = (1 << 128) - 1


#: What the system says where it cannot write more.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class ExitCode(IntEnum):
    """Whose fault it is, as `mktsim.errors` tells the caller's, a vendor's and an answer's apart."""

    DONE = 0
    UNREAD = 1
    MISTAKE = 2
    INCOMPLETE = 3
    FAILED = 4
    UNPROVEN = 5
    INTERRUPTED = 130


Command = Callable[[argparse.Namespace], ExitCode]


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
    with _usable_streams() as is_read:
        code = _attempted(given)
    return int(code if is_read or code else ExitCode.UNREAD)


def _attempted(given: Sequence[str]) -> int:
    """Run a command; say what is wrong, and return its exit code."""
    try:
        try:
            options = _parser().parse_args(given)
            run: Command = options.run
            code: int = run(options)
        except SystemExit as stop:  # argparse has said what is wrong.
            code = int(stop.code or 0)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted; nothing is left half-written")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _written()
        return ExitCode.UNREAD
    except (MktsimError, OSError) as error:
        # A message written for callers of the library names the option of this command line instead.
        message = _plain(str(error)).replace("allow_partial=True", "--allow-partial")
        if not _written() or _is_full(error):
            message = f"the output cannot be written: {message}"
        _say(f"error: {message}")
        return _code(error)
    return code


def _is_full(error: Exception) -> bool:
    """Whether it is what printing raises: an error of the system's that names no file."""
    if isinstance(error, MktsimError) or not isinstance(error, OSError):
        return False
    return error.errno in _FULL and error.filename is None


def _code(error: MktsimError | OSError) -> ExitCode:
    """Return whose fault an error is.

    Examples
    --------
    >>> _code(StorageError("the disk is full")).name, _code(InvalidArgumentError("no")).name
    ('FAILED', 'MISTAKE')
    """
    if isinstance(error, IncompleteAnswerError):
        # It is for lack of a vendor that failed, which more time would not mend; or for lack of time.
        reason = error.__cause__
        late = isinstance(reason, TimeoutError) or not isinstance(reason, MktsimError | OSError)
        return ExitCode.INCOMPLETE if late or isinstance(reason, QueryError) else ExitCode.FAILED
    if isinstance(error, CalibrationError):
        return ExitCode.UNPROVEN
    if isinstance(error, InvalidArgumentError | QueryError | OrderError | MissingExtraError):
        return ExitCode.MISTAKE
    return ExitCode.INCOMPLETE if isinstance(error, TimeoutError) else ExitCode.FAILED


@contextmanager
def _usable_streams() -> Iterator[bool]:
    """Let stdout and stderr take any text; where the caller has closed one, nobody reads it. Yield if stdout is read.

    Python has None for a closed stream, and then prints to stdout what was meant for stderr.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                setattr(sys, name, stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
            elif isinstance(stream, io.TextIOWrapper):
                stack.callback(_escaping, stream, stream.errors)
                _escaping(stream, "backslashreplace")
        try:
            yield before[0] is not None
        finally:
            sys.stdout, sys.stderr = before


def _escaping(stream: io.TextIOWrapper, errors: str | None) -> None:
    """Decide what becomes of characters that a stream's encoding lacks."""
    with suppress(OSError, ValueError):  # To reconfigure flushes, and nobody may read any more.
        stream.reconfigure(errors=errors)


class _Parser(argparse.ArgumentParser):
    """A parser whose messages are short, whatever it was given."""

    def error(self, message: str) -> NoReturn:
        super().error(_plain(shortened(message)))

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse itself says nothing where the help cannot be written, on a full disk for instance.
        if message and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def _parser(folders: Any = None) -> _Parser:
    """Make the parser; `folders` is what completes a folder's name, for shells."""
    parser = _Parser(
        prog="python -m mktsim",
        description="Exact SQL over many isolated SQLite databases, run for real and simulated by the same code.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="{" + ",".join(_COMMANDS) + "}", required=True)

    def folder(action: Any) -> None:
        action.complete = folders

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
    folder(generate.add_argument("path", type=_path, metavar="PATH", help="a new folder"))
    generate.add_argument("--vendors", type=_whole, default=1000, help="how many (default %(default)s)")
    generate.add_argument("--products", type=_whole, default=10, help="mean number a vendor (default %(default)s)")
    generate.add_argument("--seed", type=_seed, default=0, help="decides every row (default %(default)s)")

    query = command("query", "answer one SELECT over all vendors", _query,
                    'query /tmp/shop "SELECT name FROM products WHERE name LIKE ?" --param %wireless%')  # fmt: skip
    explain = command("explain", "show how a statement would be answered, without running it", _explain,
                      'explain /tmp/shop "SELECT AVG(price) FROM products"')  # fmt: skip
    for one in (query, explain):
        folder(one.add_argument("path", type=_path, metavar="PATH", help="a marketplace's folder"))
        one.add_argument("sql", metavar="SQL", help="one statement that reads")
        one.add_argument(
            "--param", action="append", default=[], metavar="VALUE",
            help="of the next placeholder: a number or null as in JSON, a text in JSON quotes, else the text itself",
        )  # fmt: skip
    query.add_argument("--shard-key", metavar="VENDOR", help="ask this vendor alone")
    query.add_argument("--allow-partial", action="store_true", help="answer from the vendors that answered")
    query.add_argument("--deadline", type=_seconds, metavar="SECONDS", help="stop waiting after so long")

    study = command("study", "run a study and write charts, a table and a report", _study, "study scaling --quick")
    study.epilog = _STUDIES
    names = ["scaling", *_QUESTIONS]
    study.add_argument("name", nargs="?", choices=names, default="scaling", metavar="NAME",
                       help="which, see below (default %(default)s)")  # fmt: skip
    study.add_argument("--quick", action="store_true", help="smaller samples, under 30 seconds")
    study.add_argument("--seed", type=_seed, default=20261122, help="decides every draw (default %(default)s)")
    folder(study.add_argument("--out", type=_path, default=Path("out"), metavar="FOLDER", help="(default %(default)s)"))

    completion = command("completion", "print what teaches a shell to complete 'mktsim'", _completion,
                         "completion bash > mktsim.bash && source mktsim.bash")  # fmt: skip
    completion.add_argument("shell", choices=_SHELLS, help="which")
    return parser


# -- commands -----------------------------------------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> ExitCode:
    from time import perf_counter

    _check_new(options.path)
    from mktsim.study.fleets import make_fleet

    started = perf_counter()
    numbers = {"vendors": options.vendors, "products": options.products, "seed": options.seed}
    path = make_fleet(options.path, **numbers, progress=_on_terminal())
    wall_s = round(perf_counter() - started, 3)
    if options.json:
        _print_json({"path": str(path), **numbers, "wall_s": wall_s})
    else:
        print(f"{_plain(str(path))}: {options.vendors:,} vendors in {wall_s} s")
    return ExitCode.DONE


def _query(options: argparse.Namespace) -> ExitCode:
    _check_market(options.path)
    params = [_param(text) for text in options.param]

    async def ask(market: Marketplace) -> QueryResult:
        return await market.query(
            options.sql, params, shard_key=options.shard_key, allow_partial=options.allow_partial,
            deadline_s=options.deadline,
        )  # fmt: skip

    result = _run(options.path, ask)
    if options.json:
        coverage = {name: getattr(result.coverage, name) for name in ("asked", "answered", "missing")}
        told = {"stats": asdict(result.stats), "coverage": coverage}
        _print_json({"columns": result.columns, "rows": result.rows, **told})
    else:
        _table(result.columns, [[_shown(value) for value in row] for row in result.rows])
        stats = result.stats
        _say(
            f"{_rows(len(result.rows))}; {stats.tier}; {stats.vendors_answered:,} of {stats.vendors_asked:,} vendors "
            f"answered, {stats.vendors_pruned:,} pruned; {_rows(stats.rows_shipped)} shipped; "
            f"{1e3 * stats.wall_s['total']:.1f} ms{f'; {stats.reading}' if stats.reading else ''}"
        )
    if result.coverage.complete:
        return ExitCode.DONE
    missing = result.coverage.missing
    shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10:,} more" if len(missing) > 10 else "")
    lacking = result.coverage.asked - result.coverage.answered
    _say(_plain(f"incomplete: {lacking:,} of {result.coverage.asked:,} vendors did not answer: {shown}"))
    return ExitCode.INCOMPLETE


def _explain(options: argparse.Namespace) -> ExitCode:
    _check_market(options.path)
    params = [_param(text) for text in options.param]

    async def look(market: Marketplace) -> Any:
        return market.explain(options.sql, params)

    explanation = _run(options.path, look)
    if options.json:
        _print_json(asdict(explanation))
    else:
        print(_plain(str(explanation)))
    return ExitCode.DONE


def _study(options: argparse.Namespace) -> ExitCode:
    out = _folder(options.out)
    from mktsim.study.points import tidy
    from mktsim.study.report import Provenance, answers, write_study
    from mktsim.study.scaling import FULL, QUICK, run_study, simulation_processes

    if options.name in _QUESTIONS:
        return _question(options, out)
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
        return ExitCode.DONE
    _print_study(frame)
    for answer in answers(frame):
        print(f"- {answer}")
    print(f"\n{_plain(str(written[-1]))}, {len(written) - 2} charts, {written[-2].name}")
    return ExitCode.DONE


def _question(options: argparse.Namespace, out: Path) -> ExitCode:
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
    else:
        print(f"{result.question}\n{result.answer}\n\n{_plain(', '.join(str(out / name) for name in files))}")
    if options.name == "validate" and not _passed(result):
        _say(f"failed: {result.answer}")
        return ExitCode.UNPROVEN
    return ExitCode.DONE


def _passed(result: StudyResult) -> bool:
    """Whether a validation passed, by its own rule."""
    from mktsim.study.claims import Claim
    from mktsim.study.validation import Validation

    names = [each.name for each in fields(Claim)]
    claims = tuple(Claim(**{name: row[name] for name in names}) for row in result.frame.to_dict("records"))
    return Validation(claims, result.seed, result.parameters["scale"]).passed


def _completion(options: argparse.Namespace) -> ExitCode:
    import shtab

    parser = _parser(shtab.DIRECTORY)
    parser.prog = "mktsim"
    script = shtab.complete(parser, options.shell)
    if options.json:
        _print_json({"shell": options.shell, "script": script})
    else:
        print(script)
    return ExitCode.DONE


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


def _run(path: Path, use: Callable[[Marketplace], Coroutine[Any, Any, Any]]) -> Any:
    """Open the marketplace at `path`, hand it on, and close it; the first Ctrl-C ends what is done with it."""

    async def work() -> Any:
        from mktsim.market import Marketplace

        async with Marketplace.open(path) as market:
            return await _interruptible(use(market))

    try:
        return asyncio.run(work())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _interruptible(work: Coroutine[Any, Any, Any]) -> Any:
    """Wait for `work`; meanwhile SIGINT cancels the task that runs, at once, and with it this one."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    if not callable(before):
        return await work  # No signal arrives here, or it is ignored on purpose: by a shell, of what runs behind it.
    loop, waiting = asyncio.get_running_loop(), asyncio.current_task()
    is_told = is_over = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal is_told
        if is_told:
            raise KeyboardInterrupt  # Whoever asks twice does not wait for stores to close.
        is_told = True
        running = asyncio.current_task(loop)
        # All of them: one whose turn comes before this one's would run a long statement of its own.
        for task in asyncio.all_tasks(loop) - {running}:
            task.cancel()
        # Where no task runs, the loop sleeps: this wakes it.
        loop.call_soon_threadsafe(insist)
        if running is not None:
            raise asyncio.CancelledError

    def insist() -> None:
        # Python drops what is raised in a callback of its garbage collector, say, which the signal may have met.
        if not is_over and waiting is not None and not waiting.cancelling():
            waiting.cancel()

    signal.signal(signal.SIGINT, interrupt)
    try:
        answer = await work
    finally:
        is_over = True
        signal.signal(signal.SIGINT, before)
    if is_told:
        raise asyncio.CancelledError
    return answer


def _check_market(path: Path) -> None:
    """Refuse a folder without a marketplace: to open it would make an empty one."""
    try:
        found = (path / "market.json").is_file()
    except OSError:
        found = False
    if not found:
        raise InvalidArgumentError(f"no marketplace at {str(path)!r:.300}: make one with 'generate'")


def _check_new(path: Path) -> None:
    """Refuse a place that is taken, as the generator would, which takes seconds to import."""
    with _named("PATH", path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InvalidArgumentError(f"{str(path)!r:.300} exists already: choose a new folder")
        _check_writable(next(parent for parent in path.absolute().parents if parent.exists()))


def _folder(out: Path) -> Path:
    """Make a folder for results."""
    with _named("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        _check_writable(out)
    return out


def _check_writable(folder: Path) -> None:
    reason = errno.EACCES if folder.is_dir() else errno.ENOTDIR
    if reason == errno.ENOTDIR or not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(reason, os.strerror(reason), str(folder))


@contextmanager
def _named(option: str, path: Path) -> Iterator[None]:
    """Name the errors of the system: whether the path is one that cannot be, or its disk has failed."""
    try:
        yield
    except OSError as error:
        if isinstance(error, MktsimError):
            raise
        kind = InvalidArgumentError if error.errno in _IMPOSSIBLE else StorageError
        raise kind(f"{option} {str(path)!r:.300} cannot be used: {shortened(error)}") from cause(error)


#: What the system says of a path that cannot be, or must not be used, however healthy the disk is.
_IMPOSSIBLE: Final = frozenset(
    {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR}
    | {errno.EPERM, errno.EROFS, errno.EINVAL}
)


def _path(text: str) -> Path:
    """Read a path; an empty one would be the current folder.

    Examples
    --------
    >>> _path("")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: it is empty: name a folder
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a folder")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"no path can hold a zero byte, as {text!r:.80} does")
    return Path(text)


def _whole(text: str, most: int | None = None) -> int:
    """Read a whole number that is not negative; the library knows the other limits, but not a shell's digits.

    Examples
    --------
    >>> _whole("1_000")
    1000
    >>> _whole("many")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: it must be a whole number from 0, not 'many'
    """
    try:
        number = int(text)  # Python itself refuses more than 4,300 digits.
    except ValueError:
        number = -1
    if number < 0 or (most is not None and number > most):
        upper = "" if most is None else f" to 2**{most.bit_length()} - 1"
        shown = repr(text) if len(text) <= 80 else f"one of {len(text):,} characters"
        raise argparse.ArgumentTypeError(f"it must be a whole number from 0{upper}, not {shown}")
    return number


def _seed(text: str) -> int:
    return _whole(text, _MOST_SEED)


def _seconds(text: str) -> float:
    """Read a positive number of seconds.

    Examples
    --------
    >>> _seconds("0.5"), _seconds("inf")
    (0.5, inf)
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"it must be a positive number of seconds, not {text!r:.80}")
    return number


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
    with suppress(OSError):  # What is said about the output is not worth more than the output.
        print(text, file=sys.stderr, flush=True)


def _written() -> bool:
    """Whether stdout took all that was printed; where not, let go of it: Python would complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"mktsim {version('mktsim')}"
    except PackageNotFoundError:
        return "mktsim, not installed"
