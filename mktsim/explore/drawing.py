"""What explorers show: pictures, tables and code as HTML, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from numbers import Integral, Real
from typing import Any, Final

from mktsim.explore.markup import NO_MATHEMATICS
from mktsim.study.charts import png

_LINE: Final = "1px solid rgba(128,128,128,.35)"
_CODE: Final = "background:rgba(128,128,128,.12);padding:.5em .8em;border-radius:4px;white-space:pre-wrap;margin:.3em 0"


def picture(axes: Any, text: str) -> str:
    """Return the figure of some Axes as an image, with `text` for those who do not see it."""
    data = base64.b64encode(png(axes)).decode()
    style = "display:block;max-width:100%;width:52em;background:white;border-radius:4px"
    return f"<img style='{style}' alt='{escape(text, quote=True)}' src='data:image/png;base64,{data}'>"


def table(frame: Any, *, title: str = "") -> str:
    """Return a DataFrame as a table: its index is not shown, numbers stand to the right."""
    return rows_table(list(map(str, frame.columns)), list(frame.itertuples(index=False, name=None)), title=title)


def rows_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", most: int = 15) -> str:
    """Return a table of rows, the first `most` of them.

    Examples
    --------
    >>> "&lt;b&gt;" in rows_table(["<b>"], [("<b>",)])
    True
    """
    cell = f"padding:.1em .8em .1em 0;border-bottom:{_LINE};vertical-align:top;text-align:"
    head = "".join(f"<th scope='col' style='{cell}left'>{escape(name)}</th>" for name in columns)
    body = ""
    for row in rows[:most]:
        cells = (f"<td style='{cell}{_side(value)}'>{escape(shown(value))}</td>" for value in row)
        body += f"<tr>{''.join(cells)}</tr>"
    if hidden := rows[most:]:
        body += f"<tr><td colspan='{len(columns)}'>… {len(hidden):,} more</td></tr>"
    above = (
        f"<caption style='text-align:left;font-weight:bold;white-space:nowrap'>{escape(title)}</caption>"
        if title
        else ""
    )
    style = "border-collapse:collapse;line-height:1.5;margin:.3em 1.5em .3em 0"
    return f"<table {NO_MATHEMATICS} style='{style}'>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def shown(value: Any) -> str:
    """Return a value as text, short, as SQLite or a reader would write it."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value[:32].hex()}'"
    if isinstance(value, Integral):
        return f"{value:,}"
    text = f"{value:,.7g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def _side(value: Any) -> str:
    return "right" if isinstance(value, Real) else "left"


def code_block(text: str) -> str:
    """Return code as HTML."""
    return f"<pre style='{_CODE}'>{escape(text)}</pre>"


def paragraph(text: str) -> str:
    """Return a text as a paragraph."""
    return f"<p {NO_MATHEMATICS} style='line-height:1.5;margin:.4em 0'>{escape(text)}</p>"


def note(text: str) -> str:
    """Return a caption below a table, where there is no picture that has it."""
    return f"<p {NO_MATHEMATICS} style='line-height:1.4;margin:.4em 0;font-size:85%;opacity:.8'>{escape(text)}</p>"
