"""``%%market`` in a real IPython shell: DataFrames, bound variables, short errors, a loop that already runs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

import mktsim
from mktsim.errors import ParameterError
from mktsim.explore.magic import bound
from mktsim.fanout import Explanation

FRAME = pd.DataFrame(
    {
        "seller_id": ["acme", "acme", "widgets", "gadgets"],
        "name": ["mouse", "<script>", "lamp", "o'clock"],
        "price": [20.0, 5.0, 45.5, 7.0],
    }
)


@pytest.fixture
def shell(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """Return a shell with the extension and a marketplace called `market`, opened by a cell."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(history_length=0)
    shell.history_manager.enabled = False
    shell.run_line_magic("load_ext", "mktsim.explore.magic")
    shell.user_ns["FRAME"] = FRAME
    assert shell.run_cell(
        "from mktsim import Marketplace\nmarket = await Marketplace.from_frames(products=FRAME)"
    ).success
    yield shell
    assert shell.run_cell("await market.close()").success
    shell.run_line_magic("unload_ext", "mktsim.explore.magic")
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def run(shell: InteractiveShell, cell: str) -> tuple[Any, str]:
    """Run a cell; return its value, or its error, and what was printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        result = shell.run_cell(cell)
    return (result.result if result.success else result.error_in_exec or result.error_before_exec), printed.getvalue()


def test_a_cell_of_sql_is_a_dataframe(shell: InteractiveShell) -> None:
    """Over all vendors, exactly, although the market lives in a loop; columns and order are the statement's."""
    frame, _ = run(shell, "%%market\nSELECT name, price\nFROM products\nORDER BY price DESC LIMIT 2\n")
    assert isinstance(frame, pd.DataFrame)
    assert frame.to_dict("list") == {"name": ["lamp", "mouse"], "price": [45.5, 20.0]}


def test_the_line_form_can_be_assigned_and_stand_in_a_block(shell: InteractiveShell) -> None:
    """``x = %market SELECT ...``, also in a loop."""
    cell = (
        "counts = []\nfor name in ('mouse', 'lamp', 'none'):\n"
        "    found = %market SELECT COUNT(*) AS n FROM products WHERE name = :name\n"
        "    counts.append(int(found['n'][0]))"
    )
    run(shell, cell)
    assert shell.user_ns["counts"] == [1, 1, 0]
    frame, _ = run(shell, "%market market SELECT MIN(name) AS least FROM products")
    assert frame["least"].tolist() == ["<script>"]


def test_o_puts_the_result_into_a_variable_and_shows_nothing(shell: InteractiveShell) -> None:
    """The variable's name is checked."""
    shown, printed = run(shell, "%%market market -o top\nSELECT name FROM products")
    assert shown is None
    assert "mouse" not in printed
    assert len(shell.user_ns["top"]) == 4
    _, printed = run(shell, "%%market -o a.b\nSELECT 1")
    assert "variable's name" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("form", ["%%market -o market\nSELECT 1 AS one", "%%market market -o market\nSELECT 1 AS one"])
def test_o_replaces_no_marketplace(shell: InteractiveShell, form: str) -> None:
    """It would be gone, open, and the next cell would say that there is none."""
    kept = shell.user_ns["market"]
    _, printed = run(shell, form)
    assert "-o market: market is a marketplace, which the DataFrame would replace; choose another name" in printed
    assert "Traceback" not in printed
    assert shell.user_ns["market"] is kept
    run(shell, "%%market -o one\nSELECT 1 AS one")
    run(shell, "%%market -o one\nSELECT 2 AS one")  # An answer may be replaced.
    assert shell.user_ns["one"]["one"].tolist() == [2]


@pytest.mark.parametrize(
    "asked", ["%%market --help\n", "%market -h", "%%market shop --help\nSELECT 1", "%market --help"]
)
def test_help_is_printed(shell: InteractiveShell, asked: str) -> None:
    """Every option with what it does, and an example; nothing is asked."""
    shown, printed = run(shell, asked)
    assert shown is None
    assert "UsageError" not in printed
    for option in ("-o NAME", "--explain", "--simulate PRESET", "--seed", "--allow-partial", "--deadline SECONDS"):
        assert option in printed
    assert "%%market shop -o top" in printed


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1, 2], "the variable 'd' is of type list, which SQLite cannot hold"),
        (2**70, "the variable 'd' is 1180591620717411303424, beyond SQLite's 64-bit integers"),
        ("\ud800", "the variable 'd' holds a lone surrogate"),
    ],
)
def test_a_variable_that_sqlite_cannot_hold_is_told_by_its_name(shell: InteractiveShell, value: Any, told: str) -> None:
    """Not by a number that the user never wrote."""
    shell.user_ns |= {"a": 1, "d": value}
    error, printed = run(shell, "%%market\nSELECT * FROM products WHERE price > :a AND name = {d}")
    assert isinstance(error, ParameterError)
    assert told in printed
    assert "parameter 1" not in printed


def test_money_in_a_frame_is_no_mathematics_and_other_frames_are_left_alone(shell: InteractiveShell) -> None:
    """JupyterLab typesets what stands between two dollars, unless an element says that it must not."""
    frame, _ = run(shell, "%%market\nSELECT '$5 and $6' AS price")
    assert shell.display_formatter is not None
    for shown in (frame, frame.head(1), frame.copy()):
        made = shell.display_formatter.format(shown)[0]["text/html"]
        assert made.startswith("<div class='mathjax_ignore tex2jax_ignore'>")
        assert "$5 and $6" in made
    other = shell.display_formatter.format(pd.DataFrame({"a": ["$5 and $6"]}))[0]["text/html"]
    assert "mathjax_ignore" not in other
    html = shell.display_formatter.formatters["text/html"]
    shell.run_line_magic("unload_ext", "mktsim.explore.magic")
    assert pd.DataFrame not in html.type_printers
    shell.run_line_magic("load_ext", "mktsim.explore.magic")
    html.for_type(pd.DataFrame, lambda frame: "mine")
    frame, _ = run(shell, "%%market\nSELECT 1 AS one")
    assert shell.display_formatter.format(frame)[0]["text/html"] == "mine"
    html.pop(pd.DataFrame)


def test_variables_are_bound_and_never_written_into_the_text(shell: InteractiveShell) -> None:
    """``:name`` and ``{name}`` alike; quotes and SQL in a value are a value; braces in quotes are text."""
    shell.user_ns["what"] = "o'clock"
    shell.user_ns["evil"] = "x' OR 1=1 --"
    shell.user_ns["least"] = np.float64(6.0)
    for cell in (
        "%%market\nSELECT price FROM products WHERE name = {what}",
        "%market SELECT price FROM products WHERE name = :what",
    ):
        frame, _ = run(shell, cell)
        assert frame["price"].tolist() == [7.0]
    for cell in (
        "%%market\nSELECT 1 FROM products WHERE name = {evil}",
        "%market SELECT 1 FROM products WHERE name = {evil}",
    ):
        frame, _ = run(shell, cell)
        assert frame.empty
    frame, _ = run(shell, "%%market\nSELECT '{what}' AS t, COUNT(*) AS n FROM products WHERE price > :least")
    assert frame.values.tolist() == [["{what}", 3]]


def test_explain_shows_the_plan_and_runs_nothing(shell: InteractiveShell) -> None:
    """An Explanation, whose HTML the notebook shows."""
    explanation, _ = run(shell, "%%market --explain\nSELECT AVG(price) FROM products")
    assert isinstance(explanation, Explanation)
    assert explanation.tier == "two-phase"


def test_simulate_times_the_fan_out_to_the_vendors_it_would_visit(shell: InteractiveShell) -> None:
    """Those of the plan, or as many as are asked for; the seed decides."""
    one, _ = run(
        shell, "%%market --simulate same-zone --requests 50\nSELECT price FROM products WHERE seller_id = 'acme'"
    )
    assert one.scenario.vendors == 1
    all_, _ = run(shell, "%%market --simulate cloudflare-2026 --requests 60 --seed 7\nSELECT AVG(price) FROM products")
    assert (all_.scenario.vendors, all_.scenario.preset, all_.seed, len(all_.sojourn_time_ms)) == (
        3,
        "cloudflare-2026",
        7,
        60,
    )
    many, _ = run(shell, "%%market --simulate same-zone --vendors 1000 --requests 30\nSELECT AVG(price) FROM products")
    assert many.scenario.vendors == 1000


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        ("%%market\nSELECT nothing FROM products", "SQLSyntaxError: "),
        ("%%market\nDELETE FROM products", "ReadOnlyError: "),
        (
            "%%market\nSELECT * FROM products WHERE price = :unheard_of",
            "ParameterError: there is no variable 'unheard_of'",
        ),
        ("%%market\nSELECT * FROM products WHERE price = ?", "ParameterError: ? has no name"),
        ("%%market\nSELECT * FROM products WHERE price = {1 + 1}", "ParameterError: braces hold"),
        ("%%market FRAME\nSELECT 1", "InvalidArgumentError: 'FRAME' is a DataFrame"),
        ("%%market nowhere\nSELECT 1", "InvalidArgumentError: 'nowhere' is nothing"),
        ("%%market --simulate moon\nSELECT 1 FROM products", "InvalidArgumentError: no preset 'moon'"),
        ("%%market --unheard-of\nSELECT 1", "UsageError: '--unheard-of' is no option"),
        ("%%market SELECT 1\nFROM products", "UsageError: '1' is no option; the statement, which begins with SELECT"),
        ("%market SELEC 1 FROM products", "UsageError: '1' is no option; the statement, which begins with SELECT"),
        ("%%market -o class\nSELECT 1 FROM products", "UsageError: -o takes a variable's name, not 'class'"),
        ("%%market --vendors 7\nSELECT 1 FROM products", "UsageError: --vendors goes with --simulate PRESET"),
        ("%%market --explain --simulate same-zone\nSELECT 1", "UsageError: --explain and --simulate are two questions"),
        ("%%market --simulate same-zone --vendors 0\nSELECT 1 FROM products", "InvalidArgumentError: Scenario.vendors"),
        ("%%market --deadline nan\nSELECT 1 FROM products", "InvalidArgumentError: deadline_s must be"),
        ("%%market\n", "UsageError"),
        ("%market", "UsageError"),
    ],
)
def test_a_mistake_is_a_short_named_error(shell: InteractiveShell, cell: str, named: str) -> None:
    """No traceback, and the cell has failed, so that nothing runs after it."""
    error, printed = run(shell, cell)
    assert isinstance(error, BaseException)
    assert named in printed
    assert "Traceback" not in printed
    assert "magic.py" not in printed
    assert len(printed) < 1000


def test_with_several_marketplaces_one_is_named(shell: InteractiveShell) -> None:
    """Another name for the same one is not another."""
    run(shell, "alias = market")
    assert len(run(shell, "%market SELECT 1 AS one")[0]) == 1
    run(shell, "other = await Marketplace.from_frames(products=FRAME)")
    assert "which marketplace? %%market NAME, one of alias, market, other" in run(shell, "%market SELECT 1")[1]
    assert len(run(shell, "%market other SELECT 1 AS one")[0]) == 1
    run(shell, "await other.close(); del other, alias")


def test_it_awaits_in_the_loop_that_already_runs(shell: InteractiveShell) -> None:
    """As in Jupyter, where the cell is run by a task of the kernel's loop: another task goes on meanwhile."""
    ticks = 0

    async def notebook() -> Any:
        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(tick())
        shell.user_ns["inner"] = await mktsim.Marketplace.from_frames(products=FRAME)
        try:
            answers = []
            for options in ("", "--simulate same-zone --requests 50"):
                cell = shell.transform_cell(f"%%market inner {options}\nSELECT SUM(price) AS total FROM products")
                done = await shell.run_cell_async(cell, transformed_cell=cell, preprocessing_exc_tuple=None)
                answers.append((done.result, ticks))
            return answers
        finally:
            other.cancel()
            await shell.user_ns.pop("inner").close()

    (frame, before), (simulated, after) = asyncio.run(notebook())
    assert frame["total"].tolist() == [77.5]
    assert len(simulated.sojourn_time_ms) == 50
    assert after > before  # Simulations are in a thread.


def test_in_a_function_that_is_not_async_python_refuses_it(shell: InteractiveShell) -> None:
    """Rather than waiting for the loop within the loop, which would never end."""
    error, printed = run(shell, "def f():\n    %market SELECT 1\n")
    assert isinstance(error, SyntaxError)
    assert "await" in printed


def test_bound_leaves_everything_else_as_it_is() -> None:
    """Comments, quotes, blobs and casts; each variable once."""
    sql = "SELECT \":x\", ':y', [{z}], a /* :q {r} */ FROM t -- {s}\nWHERE a = @a AND b = $b AND c = :a"
    assert bound(sql, {"a": 1, "b": 2}) == (sql, {"a": 1, "b": 2})
    with pytest.raises(ParameterError, match="no variable 'a'"):
        bound(sql, {})
    with pytest.raises(ParameterError, match="braces"):
        bound("SELECT {a.b}", {"a": 1})


def test_the_extension_is_the_package() -> None:
    """``%load_ext mktsim`` finds it."""
    from mktsim.explore import load_ipython_extension

    assert mktsim.load_ipython_extension is load_ipython_extension
