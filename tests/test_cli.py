"""The command line: what it prints, where, its exit codes; no traceback, and no file half-written."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mktsim import cli
from mktsim.cli import main
from mktsim.errors import (
    CalibrationError,
    CorruptImageError,
    IncompleteAnswerError,
    MissingExtraError,
    MktsimError,
    OutOfStockError,
    OverloadedError,
    ResourceLimitError,
    SQLSyntaxError,
    StorageError,
    VendorDownError,
    VendorTimeoutError,
)
from mktsim.sqlite import connect
from mktsim.streams import check_seed
from mktsim.study import scaling, validation
from mktsim.study.claims import Claim
from mktsim.study.statistics import Interval

TOP = "SELECT vendorId, name, rating FROM products WHERE category = ? ORDER BY rating DESC LIMIT 3"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a generated marketplace."""
    path = tmp_path_factory.mktemp("shop") / "here"
    assert main(["generate", str(path), "--vendors", "40", "--products", "6", "--seed", "3"]) == 0
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run a command and return its code and what it printed."""
    capsys.readouterr()
    code = main(argv)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_query_prints_its_rows_to_stdout_and_how_it_ran_to_stderr(
    shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the output can be piped."""
    code, out, err = run(capsys, "query", shop, "SELECT COUNT(*) AS count, COUNT(DISTINCT vendorId) FROM products")
    assert code == 0
    assert "count" in out.splitlines()[0]
    assert out.split()[-2] == str(sum(1 for _ in json_rows(capsys, shop, "SELECT 1 FROM products")))
    assert "40 of 40 vendors" in err


def json_rows(capsys: pytest.CaptureFixture[str], shop: str, sql: str, *options: str) -> list[list[object]]:
    """Return the rows of a query asked for in JSON."""
    code, out, err = run(capsys, "query", shop, sql, "--json", *options)
    assert (code, err) == (0, "")
    rows: list[list[object]] = json.loads(out)["rows"]
    return rows


def test_parameters_are_bound_in_order_with_their_types(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers and null as in JSON, the rest as text; nothing is pasted into the statement."""
    sql = "SELECT typeof(?), typeof(?), typeof(?), typeof(?), ? FROM products LIMIT 1"
    given = ["3", "0.5", "null", '"3"', "x'); DROP TABLE products; --"]
    rows = json_rows(capsys, shop, sql, *(f"--param={value}" for value in given))
    assert rows == [["integer", "real", "null", "text", given[-1]]]
    assert len(json_rows(capsys, shop, TOP, "--param", "electronics")) == 3


def test_json_names_what_json_has_not(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes and infinities survive as objects; text of any script is ASCII on the wire."""
    rows = json_rows(capsys, shop, "SELECT x'00ff', 9e999, 'žlutý \x1b[31m' FROM products LIMIT 1")
    assert rows == [[{"hex": "00ff"}, {"real": "inf"}, "žlutý \x1b[31m"]]


def test_a_table_cannot_command_the_terminal(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in data are shown, and markup is text."""
    code, out, _ = run(capsys, "query", shop, "SELECT '\x1b[2J[bold]x[/bold]' || char(7) FROM products LIMIT 1")
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert r"\x1b[2J[bold]x[/bold]\x07" in out


def test_a_shard_key_asks_one_vendor(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And an unknown one is the caller's mistake."""
    code, _, err = run(capsys, "query", shop, "SELECT COUNT(*) FROM products", "--shard-key", "vendor-0000007")
    assert code == 0
    assert "route; 1 of 1 vendors" in err
    code, out, err = run(capsys, "query", shop, "SELECT COUNT(*) FROM products", "--shard-key", "nobody")
    assert (code, out) == (2, "")
    assert "nobody" in err


def test_explain_shows_the_tier_and_runs_nothing(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As text and as JSON."""
    code, out, _ = run(capsys, "explain", shop, "SELECT AVG(price) FROM products")
    assert code == 0
    assert "two-phase" in out
    code, out, _ = run(capsys, "explain", shop, TOP, "--param", "books", "--json")
    assert json.loads(out)["tier"] == "two-phase"


@pytest.mark.parametrize(
    "argv",
    [
        ["query", "{shop}", "SELEC 1"],
        ["query", "{shop}", "DELETE FROM products"],
        ["query", "{shop}", "SELECT ? FROM products"],
        ["query", "{shop}", "SELECT 1", "--deadline", "-1"],
        ["query", "{shop}", ""],
        ["query", "{shop}", "SELECT 1 FROM products WHERE name = '\0"],
        ["query", "{shop}/nowhere", "SELECT 1"],
        ["query", "a\0b", "SELECT 1"],
        ["query", "x" * 5000, "SELECT 1"],
        ["explain", "{shop}", "SELECT nothing FROM products"],
        ["generate", "{shop}"],
        ["generate", "{shop}/new", "--vendors", "-3"],
        ["generate", "{shop}/new", "--vendors", "many"],
        ["generate", "{shop}/new", "--vendors", "10000001"],
        ["generate", "{shop}/new", "--seed", "9" * 5000],
        ["generate", "{shop}/new", "--seed", "-1"],
        ["generate", ""],
        ["generate", "a\0b"],
        ["generate", "{shop}/market.json/below"],
        ["query", "", "SELECT 1"],
        ["query", "{shop}", "SELECT 1", "--deadline", "nan"],
        ["query", "{shop}", "SELECT 1", "--shard-key", "k" * 5000],
        ["query", "{shop}", "SELECT 1", "--" + "x" * 5000],
        ["study", "x" * 5000],
        ["study", "hedging", "--seed", "-1", "--out", "{shop}/out"],
        ["study", "hedging", "--out", ""],
        ["study", "hedging", "--out", "a\0b"],
        ["study", "hedging", "--out", "x" * 5000],
        ["study", "unheard-of"],
        ["--quick", "--seed", "-1", "--out", "{shop}/out"],
        ["--quick", "--out", "{shop}/market.json"],
        ["unheard-of"],
        ["query"],
        ["completion"],
        ["completion", "cmd.exe"],
    ],
)
def test_a_users_mistake_is_one_message_and_code_2(
    argv: Sequence[str], shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, without a traceback, and nothing on stdout."""
    code, out, err = run(capsys, *(text.replace("{shop}", shop) for text in argv))
    assert (code, out) == (2, "")
    assert "error: " in err
    assert "Traceback" not in err
    assert len(err.partition("error: ")[2]) < 700
    assert len(err) < 3000


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "{shop}"],
        ["generate", "new", "--seed", "-1"],
        ["generate", "new", "--seed", "9" * 5000],
        ["query", "nowhere", "SELECT 1"],
        ["query", "{shop}", "SELECT 1", "--deadline", "0"],
        ["study", "hedging", "--seed", "-1"],
        ["study", "hedging", "--out", ""],
        ["study", "scaling", "--out", "{shop}/market.json"],
    ],
)
def test_a_mistake_in_the_arguments_is_answered_before_anything_large_is_imported(
    argv: Sequence[str], shop: str, tmp_path: Path
) -> None:
    """To load numpy, pandas and SQLite takes seconds on a slow machine, and so it does in processes of a study."""
    code = (
        "import sys; from mktsim.cli import main; code = main(sys.argv[1:]); "
        "print(code, *(name for name in ('numpy', 'pandas', 'apsw', 'sqlglot') if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, *(text.replace("{shop}", shop) for text in argv)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "2\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_parsers_rule_for_seeds_is_the_librarys() -> None:
    """The parser has a copy of the limit, for the library's takes an import of numpy."""
    assert check_seed(cli._seed(str(cli._MOST_SEED))) == cli._MOST_SEED
    with pytest.raises(ValueError, match="whole number from 0"):
        check_seed(cli._MOST_SEED + 1)


def test_a_mistaken_query_makes_no_marketplace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path with a typing error must not become an empty fleet that answers 0."""
    assert run(capsys, "query", str(tmp_path / "typo"), "SELECT COUNT(*) FROM products")[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [["--help"], ["query", "--help"], ["generate", "-h"], ["study", "--help"], ["completion", "--help"]]
)
def test_help_has_examples(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command shows how it is used."""
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "example" in out
    assert "python -m mktsim" in out


def test_no_command_is_the_scaling_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m mktsim --quick`` is ``python -m mktsim study scaling --quick``."""
    seen = []

    def study(options: argparse.Namespace) -> cli.ExitCode:
        seen.append((options.name, options.quick, str(options.out)))
        return cli.ExitCode.DONE

    monkeypatch.setattr(cli, "_study", study)
    assert [main([]), main(["--quick", "--out", "x"]), main(["study"])] == [0, 0, 0]
    assert seen == [("scaling", False, "out"), ("scaling", True, "x"), ("scaling", False, "out")]


def test_the_study_writes_charts_table_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole main job at a tiny size, with its processes, end to end."""
    tiny = replace(
        scaling.QUICK,
        live_vendors=(10, 20),
        repeats=6,
        sim_vendors=(10, 200),
        requests=10,
        rings=6,
        keys=500,
        statements=30,
    )
    monkeypatch.setattr(scaling, "QUICK", tiny)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "study", "scaling", "--quick", "--seed", "5")
    assert code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "live.png", "fan-out-same-zone.png", "fan-out-cloudflare-2026.png", "ring.png", "merge.png", "scaling.csv",
        "report.html", "fleets",
    }  # fmt: skip
    frame = pd.read_csv(tmp_path / "out" / "scaling.csv")
    assert set(frame["study"]) == {"live", "fan-out", "ring", "merge"}
    assert set(frame["kind"]) == {"measured", "simulated", "analytic"}
    assert (frame["seed"] == 5).all()
    assert "exact merge" in out
    assert [line[:3] for line in err.splitlines() if line[:1].isdigit()] == ["1/4", "2/4", "3/4", "4/4"]


def test_ctrl_c_ends_with_130_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """In the middle of the simulations, with processes at work; as a terminal does, to the whole group.

    What is simulated has the size of ``--quick``, so that it is under way; the fleets before it are two small ones.
    """
    program = (
        "import sys\nfrom dataclasses import replace\nfrom mktsim import cli\nfrom mktsim.study import scaling\n"
        "scaling.QUICK = replace(scaling.QUICK, live_vendors=(1, 10), repeats=6)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--quick", "--out", "out"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "COLUMNS": "100"},
        # A shell starts background jobs deaf to SIGINT, and their children inherit it: a terminal's are not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("2/4"):
                break
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert out == ""
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fleets"]
    assert not list(tmp_path.rglob("*draft*"))


#: SQLite computes for hours in the gather, by a self-join and by recursion, and in a vendor: keys of its own join.
_LONG = {
    "gather": "SELECT COUNT(*) FROM products a, products b, products c, products d, products e, products f "
    "WHERE a.price + b.price + c.price + d.price + e.price + f.price < 1",
    "recursion": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100000000000) "
    "SELECT COUNT(*) FROM n, products",
    "vendor": "SELECT COUNT(*) FROM products a, "
    + ", ".join(f"products {name}" for name in "bcdefghijklm")
    + " WHERE "
    + " AND ".join(f"a.vendorId = {name}.vendorId" for name in "bcdefghijklm")
    + " AND a.price + b.price + m.price < 1",
}


#: Tells when SQLite computes: the first time that it asks whether to go on.
_TELLING = """
import sys, mktsim.cli as cli, mktsim.fanout.interrupt as interrupt
before, told = interrupt._is_over, []
def is_over():
    if not told:
        told.append(print("computing", file=sys.stderr, flush=True))
    return before()
interrupt._is_over = is_over
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("gather", []),
        ("recursion", ["--deadline", "1000"]),
        ("vendor", []),
        ("vendor", ["--deadline", "1000"]),
        ("vendor", ["--allow-partial"]),
    ],
    ids=lambda value: "".join(value),
)
def test_the_first_ctrl_c_ends_a_query_wherever_sqlite_computes(
    where: str, options: list[str], shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it gathers and while vendors are scanned: 130 without a traceback, and stores as they were."""
    tier = json.loads(run(capsys, "explain", shop, _LONG[where], "--json")[1])["tier"]
    assert tier == ("two-phase" if where == "vendor" else "collect")
    with subprocess.Popen(
        [sys.executable, "-c", _TELLING, "query", shop, _LONG[where], *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline() == "computing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        started = time.perf_counter()
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert (process.returncode, out, err) == (130, "", "interrupted; nothing is left half-written\n")
    assert time.perf_counter() - started < 10
    assert not [path.name for path in Path(shop).rglob("*") if path.name.endswith(("-wal", "-journal", ".draft"))]


def test_ctrl_c_ends_the_processes_that_generate_vendors(tmp_path: Path) -> None:
    """A terminal signals the whole group; the others end without a word of their own, and the folder is not there."""
    with subprocess.Popen(
        [sys.executable, "-m", "mktsim", "generate", "shop", "--vendors", "200000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        wanted = time.perf_counter() + 30
        while not list(tmp_path.glob(".shop.draft-*/generation.json")) and time.perf_counter() < wanted:
            time.sleep(0.02)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "interrupted; nothing is left half-written\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_output_takes_every_text_whatever_its_encoding(
    encoding: str, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an encoding lacks is written as an escape; so are halves of pairs, which no encoding has."""
    for argv in (["query", shop], ["explain", shop]):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        assert main([*argv, "SELECT char(382) AS \u017e, '\u2603' AS snow, name FROM products LIMIT 3"]) == 0
        assert sys.stdout.errors == "strict", "the caller's own setting is back"
        shown = raw.getvalue().decode(encoding)
        assert ("\u017e" if encoding == "utf-8" else r"\u017e") in shown
        assert ("\u2603" if encoding == "utf-8" else r"\u2603") in shown


def shell(line: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m mktsim ...`` in a shell that redirects its streams as `line` says."""
    command = ["sh", "-c", f'"$0" -m mktsim "$@" {line}', sys.executable, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("argv", [["query", "{shop}", TOP, "--param=books"], ["query", "nowhere", TOP], ["--help"]])
def test_a_closed_stdout_is_read_by_nobody(argv: Sequence[str], shop: str) -> None:
    """Code 1 where all else went well; a mistake is a mistake all the same. Nothing meant for stderr goes elsewhere."""
    done = shell(">&-", *(text.replace("{shop}", shop) for text in argv))
    mistaken = argv[-1] == TOP
    assert done.returncode == (2 if mistaken else 1), done.stderr
    assert "Traceback" not in done.stderr
    assert ("error: " in done.stderr) == mistaken
    done = shell("2>&-", *(text.replace("{shop}", shop) for text in argv))
    assert done.returncode == (2 if mistaken else 0)
    assert "vendors answered" not in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, a disk that is always full")
@pytest.mark.parametrize("argv", [["query", "{shop}", "SELECT * FROM products"], ["--help"]])
def test_a_full_disk_is_nobodys_mistake(argv: Sequence[str], shop: str) -> None:
    """Code 4, and one message."""
    done = shell("> /dev/full", *(text.replace("{shop}", shop) for text in argv))
    assert done.returncode == 4, done.stderr
    assert "error: the output cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_answer_that_comes_too_late_is_code_3(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The statement was right, and more time would have helped; with --allow-partial as without."""
    code, out, err = run(capsys, "query", shop, _LONG["vendor"], "--deadline", "0.2")
    assert (code, out) == (3, "")
    assert "--allow-partial" in err
    code, out, err = run(capsys, "query", shop, _LONG["gather"], "--deadline", "0.2")
    assert (code, out) == (3, "")


def test_a_partial_answer_is_printed_and_told_by_code_3(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table and as JSON: how many vendors are missing, and which."""
    for options in ([], ["--json"]):
        code, out, err = run(capsys, "query", shop, _LONG["vendor"], "--deadline=0.2", "--allow-partial", *options)
        assert code == 3
        assert "COUNT(*)" in out
        assert re.search(r"incomplete: \d+ of 40 vendors did not answer: \S+, ", err), err
        assert " more" in err
    coverage = json.loads(out)["coverage"]
    assert coverage["asked"] == 40
    assert coverage["answered"] + sum(name.startswith("vendor-") for name in coverage["missing"]) <= 40


@pytest.mark.parametrize("harm", ["truncated", "lost", "one image"])
def test_a_damaged_or_lost_file_is_code_4(
    harm: str, shop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store is at fault, not who asks; that vendors' rows can be had without it, the message says."""
    copied = shutil.copytree(shop, tmp_path / "copy")
    shard = next(copied.joinpath("vendors").glob("shard-*.sqlite"))
    if harm == "lost":
        shard.unlink()
    elif harm == "truncated":
        shard.write_bytes(shard.read_bytes()[:5000])
    else:
        with closing(connect(str(shard))) as file:
            file.execute("UPDATE vendors SET image = zeroblob(300) WHERE id = (SELECT MIN(id) FROM vendors)")
    code, out, err = run(capsys, "query", str(copied), "SELECT AVG(price) FROM products WHERE name LIKE '%e%'")
    assert (code, out) == (4, ""), err
    assert "error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SQLSyntaxError("near x"), 2),
        (OutOfStockError("none left"), 2),
        (MissingExtraError("install dask"), 2),
        (IncompleteAnswerError("no time", answered=0, missing=()), 3),
        (VendorTimeoutError("late", vendor_id="acme"), 3),
        (VendorDownError("gone", vendor_id="acme"), 4),
        (OverloadedError("full", vendor_id="acme"), 4),
        (CorruptImageError("damaged"), 4),
        (StorageError("the disk is full"), 4),
        (OSError(28, "No space left on device"), 4),
        (ResourceLimitError("descriptors", resource="file descriptors", needed=2, available=1), 4),
        (CalibrationError("no such model"), 5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exit_code_says_whose_fault_an_error_is(
    error: MktsimError | OSError, code: int, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tree of errors tells the caller's, a vendor's and an answer's apart."""

    def fail(_options: argparse.Namespace) -> cli.ExitCode:
        raise error

    monkeypatch.setattr(cli, "_query", fail)
    assert main(["query", shop, "SELECT 1"]) == code


def test_help_and_readme_name_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that calls the command has to know them."""
    told = run(capsys, "--help")[1].partition("exit codes:")[2]
    assert re.findall(r"^  (\d+) ", told, re.MULTILINE) == [str(code.value) for code in cli.ExitCode]
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8").partition("Exit codes: ")[2]
    for code in cli.ExitCode:
        assert f"`{code.value}`" in readme.partition("\n\n")[0]


def claim(estimate: float) -> Claim:
    """Return a claim that 1 comes out, and what came out."""
    interval = Interval(estimate, estimate - 0.01, estimate + 0.01, 10)
    return Claim.of("group", "one", "event", 1.0, interval, source="theory")


@pytest.mark.parametrize(("estimate", "code"), [(1.0, 0), (1.3, 5)])
def test_a_validation_that_fails_is_code_5(
    estimate: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its table is written and printed all the same."""

    def validate(*, scale: float, seed: int, **_options: object) -> validation.Validation:
        return validation.Validation((claim(estimate),), seed, scale)

    monkeypatch.setattr(validation, "validate", validate)
    for options in ([], ["--json"]):
        told, out, err = run(capsys, "study", "validate", "--quick", "--out", str(tmp_path / "out"), *options)
        assert told == code
        assert ("FAILED" in out) == bool(code)
        assert ("failed: " in err) == bool(code)
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"validate.csv", "validation.html"}


def test_a_reader_that_leaves_early_is_no_error_to_shout_about(shop: str) -> None:
    """As in ``python -m mktsim query ... | head -1``."""
    command = [sys.executable, "-m", "mktsim", "query", shop, "SELECT * FROM products", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert process.returncode == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_learns_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script is made of the parser, so that it knows what the parser knows."""
    code, out, err = run(capsys, "completion", shell)
    assert (code, err) == (0, "")
    for word in ("generate", "explain", "shard-key", "allow-partial", "mktsim"):
        assert word in out
    code, told, _ = run(capsys, "completion", shell, "--json")
    assert json.loads(told) == {"shell": shell, "script": out.removesuffix("\n")}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a real bash: what follows ``mktsim qu`` and ``mktsim query --sh``."""
    script = tmp_path / "mktsim.bash"
    script.write_text(run(capsys, "completion", "bash")[1])
    asked = (
        f"source {script}; f=$(complete -p mktsim | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $f mktsim "${!#}" "${@:$#-1:1}"; '
        'echo "${COMPREPLY[@]}"; }; ask mktsim qu; ask mktsim query --sh; ask mktsim completion z'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.split() == ["query", "--shard-key", "zsh"]


class Bash:
    """A bash on a terminal of its own, with the completion script sourced and a command `mktsim`."""

    def __init__(self, script: Path, cwd: Path) -> None:
        self._cwd = cwd
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(cwd)
            os.environ.update(TERM="dumb", PS1="", INPUTRC="/dev/null")
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        self._type("bind 'set enable-bracketed-paste off'; mktsim() { printf '%s\\n' \"$@\" > typed.draft; ")
        self._type(f"mv typed.draft typed.txt; }}; source '{script}'\n")

    def _type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def completed(self, line: str) -> list[str]:
        """Type a line, press TAB and then Enter, and return the arguments that the command was called with."""
        typed = self._cwd / "typed.txt"
        typed.unlink(missing_ok=True)
        self._type(f"{line}\t")
        self._drained(0.3)
        self._type("\n")
        until = time.perf_counter() + 10
        while not typed.exists() and time.perf_counter() < until:
            self._drained(0.05)
        return typed.read_text().splitlines()

    def _drained(self, wait_s: float) -> None:
        while select.select([self._terminal], [], [], wait_s)[0]:
            os.read(self._terminal, 65536)

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_folders_at_a_real_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the script as without it: where a path is asked for, TAB completes a folder's name."""
    script = tmp_path / "mktsim.bash"
    script.write_text(run(capsys, "completion", "bash")[1])
    (tmp_path / "here" / "shop").mkdir(parents=True)
    with closing(Bash(script, tmp_path / "here")) as bash:
        assert bash.completed(f"mktsim query {tmp_path}/here/sh") == ["query", f"{tmp_path}/here/shop/"]
        assert bash.completed("mktsim explain sh") == ["explain", "shop/"]
        assert bash.completed("mktsim generate sh") == ["generate", "shop/"]
        assert bash.completed("mktsim study --out sh") == ["study", "--out", "shop/"]
        assert bash.completed("mktsim query --sha") == ["query", "--shard-key"]


def test_every_command_takes_json() -> None:
    """A program that calls this one needs no table."""
    commands = next(action for action in cli._parser()._actions if isinstance(action.choices, dict))
    assert set(commands.choices) == set(cli._COMMANDS)
    for name, parser in commands.choices.items():
        assert "--json" in parser.format_help(), name
