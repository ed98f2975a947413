"""``%%market``: a cell of SQL, asked of a marketplace of the notebook.

Rules
-----
The statement's parameters are variables of the notebook: ``:name``, or ``{name}``, which means the same. They are
bound, never written into the text; braces within quotes are text. A mistake is told by its name and message, without a
traceback, and is an error: "Run all" stops there.

Theory of operation
-------------------
A marketplace lives in the notebook's running event loop, and a magic is a plain function, which cannot wait there:
waiting would stop the very loop that has to answer. So the magic returns a coroutine, and the call that IPython makes
of ``%%market`` or ``%market`` gets an ``await`` before it, which IPython allows outside of functions.

What this does not do
---------------------
In a function that is not `async`, Python refuses that ``await`` as it refuses any.
"""

from __future__ import annotations

import argparse
import asyncio
import keyword
import re
import shlex
from collections.abc import Coroutine, Mapping
from inspect import cleandoc
from typing import Any, Final, NoReturn

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import no_var_expand

from mktsim.errors import InvalidArgumentError, MktsimError, ParameterError
from mktsim.explore.markup import NO_MATHEMATICS
from mktsim.fanout import QueryCoordinator
from mktsim.market import Marketplace
from mktsim.sql.lexer import Statement, tokens
from mktsim.study.replication import simulate
from mktsim.study.scenario import Scenario

#: The call that IPython makes of the magic, its result assigned or not.
_CALL: Final = re.compile(
    r"^(\s*(?:[\w.]+(?:\s*,\s*[\w.]+)*\s*=\s*)?)(?=get_ipython\(\)\.run_(?:cell|line)_magic\('market',)"
)
#: The call of a cell without a body, which IPython refuses before it asks us.
_EMPTY: Final = re.compile(r"^(\s*get_ipython\(\)\.)run_cell_magic\('market', (.*), ''\)")
#: Where the statement of ``%market`` begins.
_STATEMENT: Final = re.compile(r"(?i)(?:^|\s)(?=(?:select|with|values)\b)")

#: What can be asked.
_KINDS: Final = (Marketplace, QueryCoordinator)
_REFUSED: Final = "-o {0}: {0} is a marketplace, which the DataFrame would replace; choose another name"
#: A statement of one parameter, which takes what SQLite can hold.
_ONE: Final = Statement(sql="", normal="", words=(), parameters=(None,), uses_names=False)
#: What a DataFrame of ours carries, copies and selections included: the statement that it answers.
_MARK: Final = "mktsim_statement"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Make ``%%market`` known: ``%load_ext mktsim``.

    Parameters
    ----------
    shell : InteractiveShell
        The notebook's, or IPython's.

    Examples
    --------
    >>> from IPython.core.interactiveshell import InteractiveShell
    >>> shell = InteractiveShell()
    >>> load_ipython_extension(shell)
    >>> "market" in shell.magics_manager.magics["cell"]
    True
    """
    shell.register_magic_function(market, "line_cell", "market")  # type: ignore[arg-type]  # It is no method.
    if _await_it not in shell.input_transformers_post:
        shell.input_transformers_post.append(_await_it)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Forget ``%%market``: ``%unload_ext mktsim``."""
    for form in ("line", "cell"):
        shell.magics_manager.magics[form].pop("market", None)
    html = _html_formatter(shell)
    if html is not None:
        for kind in [kind for kind, shows in html.type_printers.items() if shows is _as_html]:
            html.pop(kind)
    if _await_it in shell.input_transformers_post:
        shell.input_transformers_post.remove(_await_it)


def _await_it(lines: list[str]) -> list[str]:
    """Put an ``await`` before each call of the magic; a cell without a body, as ``%%market --help``, is a line.

    Examples
    --------
    >>> _await_it(["top = get_ipython().run_line_magic('market', 'SELECT 1')"])
    ["top = await get_ipython().run_line_magic('market', 'SELECT 1')"]
    """
    return [_CALL.sub(r"\1await ", _EMPTY.sub(r"\1run_line_magic('market', \2)", line)) for line in lines]


class _Parser(argparse.ArgumentParser):
    """Tells of a mistake as IPython tells of a mistaken magic."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def _parser() -> _Parser:
    parser = _Parser(prog="%%market", add_help=False)
    add = parser.add_argument
    add("market", nargs="?", help="the marketplace's variable; not needed where there is one only")
    add("-o", "--output", metavar="NAME", help="put the result into this variable and show nothing")
    add("--explain", action="store_true", help="show how the statement would be answered, without running it")
    add("--simulate", metavar="PRESET", help="simulate the fan-out to the vendors that it would visit")
    add("--vendors", type=int, metavar="N", help="with --simulate: as if it visited so many")
    add("--requests", type=int, metavar="N", help="with --simulate: how many (default 400)")
    add("--seed", type=int, help="with --simulate: decides every draw (default 1)")
    add("--allow-partial", action="store_true", help="answer from the vendors that answered")
    add("--deadline", type=float, metavar="SECONDS", help="stop waiting after so long")
    return parser


@no_var_expand  # IPython would write the values of {name} into the line.
def market(line: str, cell: str | None = None) -> Coroutine[Any, Any, Any]:
    """Ask a marketplace of the notebook one SELECT; a DataFrame comes back.

    ::

        %%market shop -o top
        SELECT name, rating FROM products WHERE category = :category ORDER BY rating DESC LIMIT 10

        count = %market SELECT COUNT(*) AS count FROM products

    Options: ``-o NAME``, ``--explain``, ``--simulate PRESET`` (with ``--vendors``, ``--requests``, ``--seed``),
    ``--allow-partial``, ``--deadline SECONDS``.
    """
    shell = InteractiveShell.instance()
    if cell is None:
        begin = _STATEMENT.search(line)
        line, cell = (line, "") if begin is None else (line[: begin.start()], line[begin.end() :])
    parser = _parser()
    if {"-h", "--help"} & set(line.split()):
        return _help(parser)
    try:
        options, unknown = parser.parse_known_args(shlex.split(line))
    except ValueError as error:  # An open quote.
        raise UsageError(f"%%market: {error}") from None
    _check_options(parser, options, unknown)
    if isinstance(shell.user_ns.get(options.output), _KINDS):
        raise UsageError(_REFUSED.format(options.output))
    if not cell.strip():
        raise UsageError("%%market needs a SELECT: in the cell's body, or behind %market")
    return _answer(options, cell, shell)


async def _help(parser: _Parser) -> None:
    """Say what there is; a coroutine, because the call of the magic is awaited."""
    print(parser.format_help().rstrip())
    print("\n" + cleandoc(market.__doc__ or ""))


def _check_options(parser: _Parser, options: argparse.Namespace, unknown: list[str]) -> None:
    """Refuse, before anything is asked, what would be overlooked otherwise."""
    if unknown:
        parser.error(
            f"{unknown[0]!r:.80} is no option; the statement, which begins with SELECT, WITH or VALUES, stands in the "
            "cell below %%market, or behind %market"
        )
    name = options.output
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        parser.error(f"-o takes a variable's name, not {name!r:.80}")
    if options.explain and options.simulate:
        parser.error("--explain and --simulate are two questions: ask one")
    alone = [name for name in ("vendors", "requests", "seed") if getattr(options, name) is not None]
    if alone and not options.simulate:
        parser.error(f"--{alone[0]} goes with --simulate PRESET")


async def _answer(options: Any, cell: str, shell: InteractiveShell) -> Any:
    try:
        target = _find(options.market, shell.user_ns)
        sql, params = bound(cell, shell.user_ns)
        if options.explain or options.simulate:
            answer: Any = target.explain(sql, params)
            if options.simulate:
                visited = (answer.vendors or 1) if options.vendors is None else options.vendors
                scenario = Scenario(
                    vendors=visited, preset=options.simulate, statement=sql, params=tuple(params.values())
                ).planned_elsewhere()
                # In a thread: simulations take long, and the kernel has others to answer.
                requests = 400 if options.requests is None else options.requests
                seed = 1 if options.seed is None else options.seed
                answer = await asyncio.to_thread(simulate, scenario, requests=requests, seed=seed)
        else:
            result = await target.query(sql, params, allow_partial=options.allow_partial, deadline_s=options.deadline)
            if not result.coverage.complete:
                print(f"incomplete: {', '.join(result.coverage.missing[:10])} did not answer; {result.guarantees}")
            answer = _marked(result.to_pandas(), sql, shell)
    except MktsimError as error:
        raise _short(error) from None
    if options.output is None:
        return answer
    if isinstance(shell.user_ns.get(options.output), _KINDS):  # The cell may have made it since the check.
        raise UsageError(_REFUSED.format(options.output))
    shell.user_ns[options.output] = answer
    return None


def _marked(frame: Any, sql: str, shell: InteractiveShell) -> Any:
    """Mark a DataFrame as an answer, which notebooks show without reading ``$5 and $6`` in it as mathematics."""
    frame.attrs[_MARK] = sql
    html = _html_formatter(shell)
    if html is not None and type(frame) not in html.type_printers:  # A format of the user's own stays.
        html.for_type(type(frame), _as_html)
    return frame


def _html_formatter(shell: InteractiveShell) -> Any:
    display = shell.display_formatter
    return None if display is None else display.formatters.get("text/html")


def _as_html(frame: Any) -> str | None:
    made: str | None = frame._repr_html_()
    if made is None or _MARK not in frame.attrs:
        return made
    return f"<div {NO_MATHEMATICS}>{made}</div>"


def _short(error: MktsimError) -> MktsimError:
    """Have IPython show an error by its name and message alone."""
    text = f"{type(error).__name__}: {error}"
    error._render_traceback_ = lambda: [text]  # type: ignore[attr-defined]
    return error


def _find(name: str | None, namespace: Mapping[str, Any]) -> Marketplace | QueryCoordinator:
    if name is not None:
        found = namespace.get(name)
        if isinstance(found, _KINDS):
            return found
        what = "nothing" if name not in namespace else f"a {type(found).__name__}"
        raise InvalidArgumentError(f"{name!r:.80} is {what}, not a marketplace: market = await Marketplace.open(...)")
    known = {key: value for key, value in namespace.items() if isinstance(value, _KINDS) and not key.startswith("_")}
    if len({id(value) for value in known.values()}) == 1:
        return next(iter(known.values()))
    if not known:
        raise InvalidArgumentError("there is no marketplace yet: market = await Marketplace.open(...)")
    raise InvalidArgumentError(f"which marketplace? %%market NAME, one of {', '.join(sorted(known))}")


def bound(sql: str, namespace: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a statement with named placeholders, and the namespace's value of each.

    Raises
    ------
    ParameterError
        A variable does not exist or holds what SQLite cannot, braces hold no name, or a placeholder has none.

    Examples
    --------
    >>> bound("SELECT * FROM t WHERE a = {a} AND b = :b AND c = '{c}'", {"a": 1, "b": "x' OR 1 --"})
    ("SELECT * FROM t WHERE a = :a AND b = :b AND c = '{c}'", {'a': 1, 'b': "x' OR 1 --"})
    """
    pieces: list[str] = []
    names: list[str] = []
    given = list(tokens(sql))
    place = 0
    while place < len(given):
        kind, text = given[place]
        if text == "{" and kind == "other":
            inner = "".join(piece for _, piece in given[place + 1 : place + 3])
            name = inner.removesuffix("}")
            if not (inner.endswith("}") and name.isidentifier()):
                raise ParameterError("braces hold a variable's name, {name}; compute the value before", sql=sql)
            pieces.append(f":{name}")
            names.append(name)
            place += 3
            continue
        if kind == "parameter":
            if not text[1:].isidentifier():
                raise ParameterError(f"{text} has no name: write :name, the name of a variable", sql=sql)
            names.append(text[1:])
        pieces.append(text)
        place += 1
    missing = [name for name in names if name not in namespace]
    if missing:
        raise ParameterError(f"there is no variable {missing[0]!r}", sql=sql)
    values = {name: namespace[name] for name in names}
    for name, value in values.items():
        try:
            (values[name],) = _ONE.bind((value,))
        except ParameterError as error:
            told = error.message.replace("parameter 1", f"the variable {name!r}", 1)
            raise ParameterError(told, sql=sql) from None
    return "".join(pieces), values
