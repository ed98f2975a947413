"""The command line: what it prints, where, its exit codes; no traceback, and no file half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mktsim import cli
from mktsim.cli import main
from mktsim.study import scaling

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
    assert len(err) < 3000


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
    monkeypatch.setattr(cli, "_study", lambda options: seen.append((options.name, options.quick, str(options.out))))
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
    """In the middle of the simulations, with processes at work; as a terminal does, to the whole group."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mktsim", "--quick", "--out", "out"],
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


def test_every_command_takes_json() -> None:
    """A program that calls this one needs no table."""
    commands = next(action for action in cli._parser()._actions if isinstance(action.choices, dict))
    assert set(commands.choices) == set(cli._COMMANDS)
    for name, parser in commands.choices.items():
        assert "--json" in parser.format_help(), name
