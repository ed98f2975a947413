"""Charts of studies: a tidy table in, Axes out.

Rules
-----
Every series says whether it is measured, simulated or analytic. Colours are those of Okabe and Ito, which colour-blind
readers tell apart; markers and line styles differ as well, so that a chart reads in grey. Bands and bars are 95 %
intervals. Axes name their unit, and logarithmic ones are marked in plain numbers.

What this does not do
---------------------
It computes no statistic: what is drawn is what stands in the table (`mktsim.study.points`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mktsim.errors import InvalidArgumentError
from mktsim.study.yardstick import PACE_KNOWN

#: Okabe & Ito's palette, without the yellow that is too light for a line.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_SIMULATED_LINES: Final[tuple[Any, ...]] = ("--", (0, (5, 1, 1, 1)), (0, (8, 2)))
_ANALYTIC_LINES: Final[tuple[Any, ...]] = (("#000000", ":"), ("#777777", (0, (6, 2, 1, 2, 1, 2))), ("#777777", "-."))
_DPI: Final = 150

#: (series, kind) to what Axes.plot takes.
Styles = dict[tuple[str, str], dict[str, Any]]


def plain_number(value: float, _position: int | None = None) -> str:
    """Write a number without powers of ten.

    Parameters
    ----------
    value : float
        The number.
    _position : int, optional
        Of a tick; matplotlib's formatters are told it, and it is of no use here.

    Returns
    -------
    str

    Examples
    --------
    >>> plain_number(1e6), plain_number(0.05)
    ('1,000,000', '0.05')
    """
    return f"{value:,.10g}" if abs(value) < 1 else f"{value:,.0f}" if value == round(value) else f"{value:,.10g}"


def new_axes(count: int = 1, *, width: float = 7.0, height: float = 4.6) -> list[Axes]:
    """Return Axes side by side on a new figure that needs no window.

    Parameters
    ----------
    count : int
        How many.
    width, height : float
        Of the figure, in inches; several share a figure three quarters as wide as so many alone.

    Returns
    -------
    list of Axes
        From left to right.

    Examples
    --------
    >>> left, right = new_axes(2)
    >>> left.figure is right.figure, left.figure.get_size_inches().tolist()
    (True, [10.5, 4.6])
    """
    figure = Figure(figsize=(width * (1 if count == 1 else 0.75 * count), height), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    return [figure.add_subplot(1, count, place + 1) for place in range(count)]


def series_styles(frame: pd.DataFrame) -> Styles:
    """Give each series of a table its look, the same in every chart that is handed the result.

    Parameters
    ----------
    frame : DataFrame
        Columns ``series`` and ``kind``: measured, simulated or analytic.

    Returns
    -------
    dict of (str, str) to dict
        Series and kind to what ``Axes.plot`` takes.

    Examples
    --------
    What was measured is a full line, what was simulated a broken one, what is computed has no markers.

    >>> frame = pd.DataFrame({"series": ["flat", "flat", "law"], "kind": ["measured", "simulated", "analytic"]})
    >>> for (series, kind), style in series_styles(frame).items():
    ...     print(series, kind, style["linestyle"], style.get("marker"))
    flat measured - o
    flat simulated -- s
    law analytic : None
    """
    styles: Styles = {}
    for series, kind in frame[["series", "kind"]].drop_duplicates().itertuples(index=False):
        alike = sum(other == kind for _, other in styles)
        styles[series, kind] = _style(kind, sum(other != "analytic" for _, other in styles), alike)
    return styles


def line_chart(
    frame: pd.DataFrame, *, x_label: str, y_label: str, title: str = "", ax: Axes | None = None,
    styles: Styles | None = None,
) -> Axes:  # fmt: skip
    """Draw each series of a table against `x`, both axes logarithmic.

    Parameters
    ----------
    frame : DataFrame
        Columns ``series``, ``kind``, ``x``, ``estimate``, ``low``, ``high``; one row a point.
    x_label, y_label : str
        With their units.
    title : str
    ax : Axes, optional
        Where to draw; on a new figure when absent.
    styles : optional
        From :func:`series_styles`, where several charts share them.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no point.

    Examples
    --------
    >>> frame = pd.DataFrame({"series": "flat", "kind": "simulated", "x": [100, 10], "estimate": [20.0, 5.0],
    ...                       "low": [19.0, 4.5], "high": [21.0, 5.5]})
    >>> axes = line_chart(frame, x_label="vendors", y_label="p50 of the sojourn time, ms")
    >>> axes.get_legend_handles_labels()[1], axes.get_lines()[0].get_xdata().tolist(), axes.get_xscale()
    (['simulated: flat'], [10, 100], 'log')
    """
    _check(frame, ("series", "kind", "x", "estimate", "low", "high"))
    axes = ax if ax is not None else new_axes()[0]
    looks = styles if styles is not None else series_styles(frame)
    for (series, kind), points in frame.groupby(["series", "kind"], sort=False):
        points = points.sort_values("x")
        style = looks[str(series), str(kind)]
        axes.plot(points["x"], points["estimate"], label=f"{kind}: {series}", **style)
        known = points[points["low"].notna()]
        if len(known) > 1:
            axes.fill_between(known["x"], known["low"], known["high"], color=style["color"], alpha=0.2, linewidth=0)
        if len(known):
            below = (known["estimate"] - known["low"]).clip(lower=0)
            above = (known["high"] - known["estimate"]).clip(lower=0)
            axes.errorbar(
                known["x"], known["estimate"], yerr=[below, above], fmt="none", ecolor=style["color"], capsize=3, lw=1
            )
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        set_scale("log")
        axis.set_major_formatter(FuncFormatter(plain_number))
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=x_label, ylabel=y_label)
    _mark_short_range(axes)
    _dress(axes, title)
    return axes


def share_chart(frame: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw shares with their intervals, a line a group, one marker a series.

    Parameters
    ----------
    frame : DataFrame
        Columns ``series``, ``kind``, ``group``, ``estimate``, ``low``, ``high``, ``n``; `estimate` from 0 to 1.
    title : str
    ax : Axes, optional
        Where to draw; on a new figure when absent.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no row.

    Examples
    --------
    >>> frame = pd.DataFrame({"series": "naive", "kind": "measured", "group": ["AVG", "COUNT"], "estimate": [0.1, 1.0],
    ...                       "low": [0.05, 0.97], "high": [0.2, 1.0], "n": 100})
    >>> [label.get_text() for label in share_chart(frame).get_yticklabels()]
    ['AVG  (n = 100)', 'COUNT  (n = 100)']
    """
    _check(frame, ("series", "kind", "group", "estimate", "low", "high", "n"))
    groups = list(dict.fromkeys(frame["group"]))
    axes = ax if ax is not None else new_axes(height=1.6 + 0.34 * len(groups))[0]
    names = list(dict.fromkeys(frame["series"]))
    for place, (series, points) in enumerate(frame.groupby("series", sort=False)):
        shift = 0.16 * (place - (len(names) - 1) / 2)
        y = [groups.index(group) + shift for group in points["group"]]
        estimate = 100 * points["estimate"].to_numpy()
        spread = np.abs(np.array([estimate - 100 * points["low"], 100 * points["high"] - estimate]))
        axes.errorbar(
            estimate, y, xerr=spread, fmt=_MARKERS[place], color=PALETTE[place], capsize=3, ms=6, lw=1.4, ls="none",
            mfc=PALETTE[place] if place == 0 else "white", label=f"{points['kind'].iloc[0]}: {series}",
        )  # fmt: skip
    counts = frame.drop_duplicates("group").set_index("group")["n"]
    axes.set_yticks(range(len(groups)), [f"{group}  (n = {counts[group]:,})" for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(-2, 103)
    axes.set_xlabel("statements answered as one SQLite does, % (95 % interval)")
    _dress(axes, title)
    return axes


def law_lines(frame: pd.DataFrame, *, by: str, label: str, ax: Axes) -> None:
    """Add exact laws to a chart: one thin dotted line for each value of a column, one entry in the legend.

    Parameters
    ----------
    frame : DataFrame
        Columns ``x``, ``estimate`` and the one that `by` names.
    by, label : str
    ax : Axes
        Of :func:`line_chart`.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no row.

    Examples
    --------
    >>> ax = new_axes()[0]
    >>> laws = pd.DataFrame({"statistic": ["p50", "p50", "p99", "p99"], "x": [1, 2, 1, 2], "estimate": [1, 2, 3, 4]})
    >>> law_lines(laws, by="statistic", label="analytic: F(t)^n", ax=ax)
    >>> len(ax.get_lines()), {line.get_linestyle() for line in ax.get_lines()}
    (2, {':'})
    """
    _check(frame, ("x", "estimate", by))
    for _, points in frame.groupby(by):
        points = points.sort_values("x")
        ax.plot(points["x"], points["estimate"], color="#000000", ls=":", lw=1.3, zorder=3, label=label)


def dot_chart(
    frame: pd.DataFrame, *, x_label: str, groups: Sequence[str], named: bool = True, title: str = "",
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw estimates with their intervals on a logarithmic axis, a line a group, one marker a series.

    Parameters
    ----------
    frame : DataFrame
        Columns ``series``, ``kind``, ``group``, ``estimate``, ``low``, ``high``.
    x_label : str
        With its unit.
    groups : sequence of str
        From top to bottom; one without a row is left empty.
    named : bool
        Whether the groups are written beside the axis; not, where the Axes to the left has them.
    title : str
    ax : Axes, optional
        Where to draw; on a new figure when absent.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no point.

    Examples
    --------
    >>> frame = pd.DataFrame({"series": ["naive", "exact"], "estimate": [16.0, 24.0], "low": [15.0, 23.0]})
    >>> frame = frame.assign(kind="measured", group="AVG", high=frame["estimate"] + 1)
    >>> axes = dot_chart(frame, x_label="bytes a vendor", groups=["AVG"])
    >>> axes.get_xlabel(), axes.get_legend_handles_labels()[1]
    ('measured: bytes a vendor', ['naive', 'exact'])
    """
    _check(frame, ("series", "kind", "group", "estimate", "low", "high"))
    axes = ax if ax is not None else new_axes(height=1.6 + 0.34 * len(groups))[0]
    place_of = {group: place for place, group in enumerate(groups)}
    count = frame["series"].nunique()
    step = min(0.2, 0.8 / count)  # The series of a group stand around its line, clear of the next one's.
    for place, (series, points) in enumerate(frame.groupby("series", sort=False)):
        y = [place_of[group] + step * (place - (count - 1) / 2) for group in points["group"]]
        spread = np.abs(np.array([points["estimate"] - points["low"], points["high"] - points["estimate"]]))
        axes.errorbar(
            points["estimate"], y, xerr=spread, fmt=_MARKERS[place], color=PALETTE[place], capsize=3, ms=5.5, lw=1.3,
            ls="none", mfc=PALETTE[place] if place == 0 else "white", label=str(series),
        )  # fmt: skip
    axes.set_yticks(range(len(groups)), groups if named else [""] * len(groups))
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{frame['kind'].iloc[0]}: {x_label}", fontsize=8)
    low, high = axes.get_xlim()
    if high / low < 100:
        close = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0) if high / low > 1.3 else (1.0, 1.1, 1.2)
        subs = (1.0, 2.0, 5.0) if high / low > 6 else close
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
    _dress(axes, title)
    return axes


def same_range(axes: Sequence[Axes]) -> None:
    """Give Axes side by side the same range upwards, so that heights can be compared.

    Parameters
    ----------
    axes : sequence of Axes
        That are to be compared.

    Examples
    --------
    >>> left, right = axes = new_axes(2)
    >>> left.set_ylim(1, 20), right.set_ylim(5, 100)
    ((1.0, 20.0), (5.0, 100.0))
    >>> same_range(axes)
    >>> left.get_ylim() == right.get_ylim() == (1.0, 100.0)
    True
    """
    low, high = min(each.get_ylim()[0] for each in axes), max(each.get_ylim()[1] for each in axes)
    for each in axes:
        each.set_ylim(low, high)


def annotate(axes: Sequence[Axes], *, title: str, caption: str) -> None:
    """Give the figure of some Axes its title, one legend for all of them, and the caption below it.

    Parameters
    ----------
    axes : sequence of Axes
        All of one figure.
    title : str
    caption : str
        What a reader needs to judge the figure: n, seed, preset, machine.

    Examples
    --------
    >>> axes = new_axes()
    >>> _ = axes[0].plot([10, 100], [5, 20], label="simulated: flat")
    >>> annotate(axes, title="How wide?", caption="n = 1,000 requests, seed 1, preset same-zone")
    >>> [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    ['simulated: flat']
    """
    figure = axes[0].figure
    assert isinstance(figure, Figure), "annotate takes the Axes of a whole figure"
    labels: dict[str, Any] = {}
    for each in axes:
        handles, names = _legend_of(each)
        labels.update(zip(names, handles, strict=True))
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
    width, height = figure.get_size_inches()
    text = fill(caption, int(width * 18.5))
    figure.text(0.01, 0.01, text, fontsize=7, color="#444444", va="bottom")
    lift = (text.count("\n") + 1) * 7 * 1.3 / 72 / height + 0.02
    legend = figure.legend(
        labels.values(), labels.keys(), loc="lower center", bbox_to_anchor=(0.5, lift),
        ncols=2 if len(labels) > 3 else 3, fontsize=8, frameon=False, handlelength=3.5,
    )  # fmt: skip
    # The layout does not count what stands at the lower edge twice, so the room for both is given to it by hand.
    lift += legend.get_window_extent().height / figure.bbox.height + 0.01
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, lift, 1, 1 - lift))


#: Where a legend's entries are kept that are no artists of the Axes.
_ENTRIES: Final = "_mktsim_entries"


def _legend_later(axes: Axes, entries: dict[str, Any]) -> None:
    setattr(axes, _ENTRIES, entries)


def _legend_of(axes: Axes) -> tuple[list[Any], list[str]]:
    """Return handles and labels: those that were put down by a chart, or those of the artists."""
    entries: dict[str, Any] | None = getattr(axes, _ENTRIES, None)
    if entries is not None:
        return list(entries.values()), list(entries)
    return axes.get_legend_handles_labels()


#: The key of a PNG's text chunk that holds the :func:`fingerprint` of what is drawn.
FINGERPRINT_KEY: Final = "mktsim-fingerprint"


def fingerprint(axes: Axes) -> str:
    """Return a digest of what the figure of some Axes shows: texts, bars, lines and their looks, numbers to 6 digits.

    Two pictures of one fingerprint show the same, whatever fonts and versions drew them: so a picture that was kept
    can be compared with what the code draws today.

    Parameters
    ----------
    axes : Axes
        Of the figure; of several, any.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> one, other = new_axes()[0], new_axes()[0]
    >>> fingerprint(one) == fingerprint(other)
    True
    >>> _ = other.plot([1, 2], [3, 4])
    >>> fingerprint(one) == fingerprint(other)
    False
    """
    lines: list[str] = []
    # Ticks stand where limits and locators put them when a figure is drawn; of them only names that a chart gave count.
    ticks: set[int] = set()
    for axis in (axis for each in axes.figure.axes for axis in (each.xaxis, each.yaxis)):
        lines.append(f"ticks {list(getattr(axis.get_major_formatter(), 'seq', ()))}")
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            ticks |= {id(part) for part in tick.get_children()}
    for artist in axes.figure.findobj():
        told: list[Any] = []
        if id(artist) in ticks:
            continue
        if isinstance(artist, Text):
            told = [artist.get_text()] if artist.get_text() else []
        elif isinstance(artist, Rectangle):
            told = [artist.get_x(), artist.get_y(), artist.get_width(), artist.get_height(), artist.get_hatch()]
            told += [to_hex(artist.get_facecolor(), keep_alpha=True)]
        elif isinstance(artist, Line2D):
            told = [*np.ravel(artist.get_xydata()), artist.get_linestyle(), artist.get_marker()]
            told += [to_hex(artist.get_color(), keep_alpha=True)]
        elif isinstance(artist, Axes):
            told = [*artist.get_xlim(), *artist.get_ylim()]
        if told:
            words = [f"{one:.6g}" if isinstance(one, float | np.floating) else str(one) for one in told]
            lines.append(type(artist).__name__ + "|".join(words))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def png(axes: Axes) -> bytes:
    """Return the figure of some Axes as PNG, with its :func:`fingerprint` in it.

    Parameters
    ----------
    axes : Axes
        Of the figure; of several, any.

    Returns
    -------
    bytes
        The whole file.

    Examples
    --------
    >>> png(new_axes(width=2, height=1)[0])[1:4]
    b'PNG'
    """
    buffer = BytesIO()
    figure = axes.figure
    assert isinstance(figure, Figure), "a part of a figure cannot be saved"
    about = {"Software": "mktsim", FINGERPRINT_KEY: fingerprint(axes)}
    figure.savefig(buffer, format="png", dpi=_DPI, metadata=about)
    return buffer.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Parameters
    ----------
    path : Path
        The file; its folder must be there. One of that name is replaced.
    data : bytes
        What it shall hold.

    Raises
    ------
    OSError
        It cannot be written; what was there is as it was.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "chart.png", b"first")
    ...     write_whole(Path(folder) / "chart.png", b"second")
    ...     [(file.name, file.read_bytes()) for file in Path(folder).iterdir()]
    [('chart.png', b'second')]
    """
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _check(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing or frame.empty:
        reason = f"lacks {', '.join(missing)}" if missing else "has no row"
        raise InvalidArgumentError(f"a chart needs a table with {', '.join(columns)}; this one {reason}")


def _style(kind: str, place: int, number: int) -> dict[str, Any]:
    """Return how a series looks: measured solid and filled, simulated dashed and hollow, analytic dotted, unmarked."""
    if kind == "analytic":
        color, line = _ANALYTIC_LINES[number % len(_ANALYTIC_LINES)]
        return {"color": color, "linestyle": line, "linewidth": 1.5, "zorder": 3}
    color = PALETTE[place % (len(PALETTE) - 1)]
    style = {"color": color, "marker": _MARKERS[place % len(_MARKERS)], "markersize": 6, "linewidth": 1.6}
    if kind == "measured":
        return {**style, "linestyle": "-"}
    return {**style, "linestyle": _SIMULATED_LINES[number % len(_SIMULATED_LINES)], "markerfacecolor": "white"}


def _mark_short_range(axes: Axes) -> None:
    """Mark 1, 2 and 5 of each power of ten where an axis spans less than two of them, so that no axis is bare."""
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if high / low < 100:
            subs = (1.0, 2.0, 5.0) if high / low > 12 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
            axis.set_major_locator(LogLocator(subs=subs))


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


#: What passes between two steps of a call, and how it is drawn: colour and hatch.
_PASSAGES: Final = (
    ("waits_ms", "sent_ms", "waits for a connection", "#FFFFFF", ""),
    ("sent_ms", "arrived_ms", "way out", "#56B4E9", ""),
    ("arrived_ms", "served_ms", "at the vendor", "#0072B2", ""),
    ("served_ms", "back_ms", "way back", "#E6E6E6", "...."),
    ("back_ms", "end_ms", "taken in", "#000000", ""),
)
_COPY_HATCH: Final = "////"
#: How far a waterfall goes on behind the answer, as a share of the time until then.
_PAST_THE_ANSWER: Final = 0.06


def waterfall_chart(
    frame: pd.DataFrame, *, title: str = "", caption: str = "", most: int = 40, end_ms: float | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw one simulated request: a bar a call, from its departure until its answer was taken in.

    A vendor's calls stand below each other, and the vendors in the order in which they had answered: the last one is
    whom the request waited for, and the stragglers carry their rank, 1 for this one. Second copies (hedges, retries)
    are thinner and hatched; a cross ends what was cancelled, lost or failed; what nobody waited for any more is pale.
    The axis ends a little after the answer: an arrow and the time tell of calls that go on.

    Parameters
    ----------
    frame : DataFrame
        From :meth:`mktsim.sim.Trace.waterfall`.
    title : str
    caption : str
        What a reader needs to judge it: n, seed, preset; below the figure, which is then given a legend too.
    most : int
        Vendors to draw: of more, those that had answered last.
    end_ms : float, optional
        When the request had what it waited for, which a line marks.
    ax : Axes, optional
        Where to draw; on a new figure when absent.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        A column is missing, there is no call, or `most` is no number of vendors.

    Examples
    --------
    >>> from mktsim.sim import Trace
    >>> trace = Trace()
    >>> for step, ms in (("sent", 1), ("arrived", 3), ("served", 8), ("back", 9), ("taken in", 9)):
    ...     trace.add(ms / 1000, step, 1, 0, 0, "coordinator", "vendor/acme")
    >>> waterfall_chart(trace.waterfall(0)).get_xlabel()
    'simulated time, ms'
    """
    times = [column for passage in _PASSAGES for column in passage[:2]]
    steps = list(dict.fromkeys(times))
    _check(frame, ("call", "attempt", "source", "target", *steps, "outcome", "straggler"))
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise InvalidArgumentError(f"most must be a whole number of at least 1, not {most!r:.80}")
    shown, vendors, ranks = _beside_each_other(frame, most)
    known = shown["counted_ms"].replace(np.inf, np.nan)
    answered_ms = end_ms if end_ms is not None else known.max()
    last_ms = shown[steps].max().max()
    edge_ms = last_ms if answered_ms != answered_ms else max(answered_ms, known.max())
    clipped = last_ms > edge_ms * (1 + _PAST_THE_ANSWER)
    axes = ax if ax is not None else new_axes(height=1.9 + 0.2 * len(shown))[0]
    inner = shown["target"].str.contains("aggregator").any()
    drawn: dict[str, Any] = {}
    for y, (_, call) in enumerate(shown.iterrows()):
        again = call["attempt"] > 0
        late = call["end_ms"] > call["counted_ms"] or (answered_ms == answered_ms and call["end_ms"] > answered_ms)
        look: dict[str, Any] = {"edgecolor": "#777777", "linewidth": 0.6, "alpha": 0.4 if late else 1.0}
        for begin, end, name, color, hatch in _PASSAGES:
            if call[end] > call[begin]:  # False where one is unknown.
                axes.barh(
                    y, call[end] - call[begin], left=call[begin], height=0.55 if again else 0.8, color=color,
                    hatch=_COPY_HATCH if again and not hatch else hatch, **look,
                )  # fmt: skip
                told = "below it, then way back" if inner and name == "way back" else name
                drawn[told] = Patch(facecolor=color, hatch=hatch, edgecolor="#777777")
        if again:
            drawn["second copy"] = Patch(facecolor="white", hatch=_COPY_HATCH, edgecolor="#777777")
        if late:
            drawn["nobody waits for it: pale"] = Patch(facecolor="#0072B2", alpha=0.4, edgecolor="#777777")
        ends = [ms for ms in call[steps] if ms == ms]
        last = max(ends)
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "va": "center"}
        if call["outcome"] != "taken in":
            axes.plot([max((ms for ms in ends if ms < last), default=last), last], [y, y], color="#777777", lw=1)
            [drawn["cancelled, lost or failed"]] = axes.plot(last, y, marker="x", color="#000000", ls="none", ms=6)
        elif call["end_ms"] == call["counted_ms"] and call["call"] in ranks:
            axes.annotate(f"{ranks[call['call']]}", (last, y), xytext=(4, 0), fontweight="bold", **style)
        if clipped and last > edge_ms * (1 + _PAST_THE_ANSWER):
            where = (1.0, y)
            axes.annotate(f"\u2192 {last:.1f}", where, xycoords=axes.get_yaxis_transform(), xytext=(3, 0), **style)
    if end_ms is not None:
        drawn["the request is answered"] = axes.axvline(end_ms, color=PALETTE[1], ls=":", lw=2)
    axes.set_yticks(
        range(len(shown)), [_caller_name(*one) for one in zip(shown["target"], shown["attempt"], strict=True)]
    )
    axes.set_ylim(len(shown) - 0.4, -0.6)
    if clipped:
        axes.set_xlim(0, edge_ms * (1 + _PAST_THE_ANSWER))
    else:
        axes.set_xlim(0)
    for place in np.flatnonzero(shown["vendor"].to_numpy()[1:] != shown["vendor"].to_numpy()[:-1]):
        axes.axhline(place + 0.5, color="#DDDDDD", lw=0.5, zorder=0)
    axes.set_xlabel("simulated time, ms")
    if shown["vendor"].nunique() < vendors:
        title = f"{title} ({shown['vendor'].nunique()} of {vendors:,} vendors, the last to be answered)".lstrip()
    _dress(axes, title)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", labelsize=7)
    _legend_later(axes, {f"simulated: {name}": handle for name, handle in drawn.items()})
    if caption:
        annotate([axes], title="", caption=caption)
    else:
        axes.legend(*_legend_of(axes), fontsize=7, frameon=False, loc="best")
    return axes


def _beside_each_other(frame: pd.DataFrame, most: int) -> tuple[pd.DataFrame, int, dict[float, int]]:
    """Order calls by when their vendor had answered, a vendor's by when they left; rank the answers that counted.

    A vendor has answered with the first of its calls that is taken in; one that never does stands last.
    """
    calls = frame.assign(vendor=frame["source"] + " " + frame["target"])
    taken = calls["end_ms"].where(calls["outcome"] == "taken in", np.inf).fillna(np.inf)
    calls["counted_ms"] = taken.groupby(calls["vendor"]).transform("min")
    first = calls.groupby("vendor")["call"].transform("min")
    calls = calls.assign(first=first).sort_values(["counted_ms", "first", "call"], ignore_index=True)
    order = list(dict.fromkeys(calls["vendor"]))
    counted = calls[(calls["end_ms"] == calls["counted_ms"]) & (calls["outcome"] == "taken in")]
    last = counted.drop_duplicates("vendor").tail(int(frame["straggler"].sum()))
    ranks = {call: len(last) - place for place, call in enumerate(last["call"])}
    return calls[calls["vendor"].isin(order[-most:])].reset_index(drop=True), len(order), ranks


def _caller_name(target: str, attempt: int) -> str:
    """Name whom a call goes to: a vendor, or an inner node by its address."""
    kind, _, name = target.partition("/")
    known = {"leaf": f"vendor {name}", "vendor": name}.get(kind, target)
    return known if not attempt else "second copy" if attempt == 1 else f"copy {attempt + 1}"


def ring_change_chart(
    shards: pd.DataFrame, *, turn: Any, moved: Any, caption: str = "", title: str = "",
) -> list[Axes]:  # fmt: skip
    """Draw what a change of shards does: vendors a shard before and now, and who moved on the ring.

    Parameters
    ----------
    shards : DataFrame
        Columns ``shard``, ``before``, ``stayed``, ``in``: vendors, one row a shard.
    turn : array_like of float
        Each vendor's place on the ring, from 0 to 1.
    moved : array_like of bool
        Whether it changed its shard.
    caption : str
    title : str

    Returns
    -------
    list of Axes
        The bars, and the ring.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no shard.

    Examples
    --------
    A third shard has taken two of six vendors from the two that were there.

    >>> shards = pd.DataFrame({"shard": ["s0", "s1", "s2"], "before": [3, 3, 0], "stayed": [2, 2, 0], "in": [0, 0, 2]})
    >>> bars, ring = ring_change_chart(shards, turn=[0, 0.1, 0.3, 0.5, 0.7, 0.9], moved=[0, 1, 0, 0, 0, 1])
    >>> bars.get_legend_handles_labels()[1]
    ['measured: before', 'measured: now, stayed', 'measured: now, moved here']
    """
    _check(shards, ("shard", "before", "stayed", "in"))
    figure = Figure(figsize=(7.6, 4.4), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 2, width_ratios=[2.4, 1])
    axes, circle = figure.add_subplot(grid[0]), figure.add_subplot(grid[1], projection="polar")
    at = np.arange(len(shards))
    edge: dict[str, Any] = {"edgecolor": "#555555", "linewidth": 0.6}
    axes.bar(at - 0.2, shards["before"], 0.38, color="white", label="measured: before", **edge)
    axes.bar(at + 0.2, shards["stayed"], 0.38, color=PALETTE[0], label="measured: now, stayed", **edge)
    axes.bar(
        at + 0.2, shards["in"], 0.38, bottom=shards["stayed"], color=PALETTE[5], hatch="///",
        label="measured: now, moved here", **edge,
    )  # fmt: skip
    axes.set_xticks(at, [str(name).removeprefix("shard-") for name in shards["shard"]])
    axes.set(xlabel="shard", ylabel="vendors")
    _dress(axes, title)
    axes.grid(False, axis="x")
    angle, gone = 2 * np.pi * np.asarray(turn, float), np.asarray(moved, bool)
    circle.plot(
        angle[~gone], np.ones((~gone).sum()), ".", color="#777777", ms=2, label="measured: a vendor that stayed",
    )  # fmt: skip
    ends = np.repeat(angle[gone], 3), np.tile([1.05, 1.25, np.nan], gone.sum())
    circle.plot(*ends, color=PALETTE[1], lw=1, label="measured: a vendor that moved")
    circle.set(rmax=1.3, yticks=[], xticks=[])
    circle.set_title("places on the ring", fontsize=8)
    circle.grid(False)
    circle.spines["polar"].set_visible(False)
    annotate([axes, circle], title="", caption=caption)
    return [axes, circle]


_FAULT_LINES: Final = {"crash": "-", "slow_disk": ":", "partition": "--"}


def ride_chart(frame: pd.DataFrame, *, faults: Sequence[Any] = (), caption: str = "") -> list[Axes]:
    """Draw a run of requests while faults come and go: who answered, above how long it took.

    Parameters
    ----------
    frame : DataFrame
        Of :func:`mktsim.study.questions.ride.ride_through`.
    faults : sequence of Fault
        The schedule: each is shaded while it holds, a line and its name at its begin.
    caption : str

    Returns
    -------
    list of Axes
        Coverage and sojourn time, with one axis of simulated time in seconds.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no request.

    Examples
    --------
    >>> from mktsim.sim import Crash
    >>> frame = pd.DataFrame({"start_ms": [0, 100, 200], "covered_percent": [100, 90, 100]})
    >>> crash = Crash(targets="vendor/acme", start_ms=80, end_ms=150)
    >>> above, below = ride_chart(frame.assign(sojourn_time_ms=[5, 50, 5]), faults=[crash])
    >>> [text.get_text() for text in above.texts], below.get_xlabel()
    (['crash acme'], 'simulated time, s')
    """
    _check(frame, ("start_ms", "covered_percent", "sojourn_time_ms"))
    figure = Figure(figsize=(7.0, 4.6), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    top, below = panels = list(figure.subplots(2, 1, sharex=True))
    at_s = frame["start_ms"] / 1e3
    top.step(at_s, frame["covered_percent"], where="post", color=PALETTE[0], lw=1.4)
    top.plot(
        at_s, frame["covered_percent"], "s", color=PALETTE[0], ms=3.5, label="simulated: vendors that answered",
    )  # fmt: skip
    top.set(ylim=(-4, 104), ylabel="vendors that\nanswered, %")
    below.plot(
        at_s, frame["sojourn_time_ms"], "o", color=PALETTE[1], ms=3.5, mfc="white", label="simulated: sojourn time",
    )  # fmt: skip
    below.set(yscale="symlog", ylabel="sojourn time, ms", xlabel="simulated time, s")
    below.set_yticks([0, 1, 3, 10, 30, 100, 300], ["0", "1", "3", "10", "30", "100", "300"])
    below.set_ylim(0, max(30.0, 1.3 * float(frame["sojourn_time_ms"].max())))
    end_s = float(at_s.max() + (at_s.iloc[1] - at_s.iloc[0] if len(at_s) > 1 else 1.0))
    for fault in faults:
        begin_s, until_s = fault.start_ms / 1e3, min(fault.end_ms / 1e3, end_s)
        for axes in panels:
            axes.axvspan(begin_s, until_s, color="#777777", alpha=0.12, lw=0, label="simulated: a fault holds")
            axes.axvline(begin_s, color="#000000", lw=1, ls=_FAULT_LINES.get(fault.kind, "-."))
        name = fault.targets.rpartition("/")[2]
        top.annotate(
            f"{fault.kind.replace('_', ' ')} {name}", (begin_s, 0), xytext=(3, 2), textcoords="offset points",
            fontsize=6.5, rotation=90,
        )  # fmt: skip
    for axes in panels:
        _dress(axes, "")
    annotate(panels, title="", caption=caption)
    return panels


def fanout_width_chart(frame: pd.DataFrame) -> list[Axes]:
    """Draw the answer of :func:`mktsim.study.questions.fanout_width`: growth with the fleet, and time against width.

    Parameters
    ----------
    frame : DataFrame
        Of that result.

    Returns
    -------
    list of Axes
        Left the p99 where it is known, flat and by the fastest width; right the p50 by width.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no point.

    Examples
    --------
    >>> frame = pd.DataFrame({"series": ["flat", "flat", "width 8", "width 8", "width 32", "width 32"],
    ...                       "x": [100, 1_000, 100, 1_000, 100, 1_000], "estimate": [20, 160, 25, 40, 22, 45]})
    >>> frame = frame.assign(kind="simulated", statistic="p99", low=np.nan, high=np.nan)
    >>> left, right = fanout_width_chart(frame)
    >>> fastest = left.get_lines()[1]
    >>> fastest.get_label(), fastest.get_ydata().tolist()
    ('simulated: tree of the fastest width', [22, 40])
    """
    _check(frame, ("series", "kind", "x", "statistic", "estimate", "low", "high"))
    left, right = new_axes(2, height=4.9)
    quantiles = frame[frame["statistic"].str.fullmatch(r"p\d+")]
    trees = quantiles[quantiles["series"].str.startswith("width ") & (quantiles["kind"] == "simulated")]
    statistic = "p99" if (quantiles["statistic"] == "p99").any() else "p50"
    known = trees[trees["statistic"] == statistic]
    fastest = known.loc[known.groupby("x")["estimate"].idxmin()].assign(series="tree of the fastest width")
    others = quantiles[(quantiles["statistic"] == statistic) & ~quantiles["series"].str.startswith("width ")]
    lines = pd.concat([others[others["series"] == "flat"], fastest, others[others["kind"] == "analytic"]])
    by_width = trees[trees["statistic"] == "p50"]
    by_width = by_width[by_width.groupby("x")["x"].transform("size") > 2]  # Fewer points make no line.
    by_width = by_width.assign(
        x=by_width["series"].str.split().str[1].astype(float), series=[f"{n:,.0f} vendors" for n in by_width["x"]]
    )
    styles = series_styles(pd.concat([lines, by_width]))
    label = f"{statistic} of the sojourn time, ms"
    line_chart(lines, x_label="vendors", y_label=label, title=f"{statistic} by vendors", ax=left, styles=styles)
    if not by_width.empty:
        label = "p50 of the sojourn time, ms"
        line_chart(
            by_width, x_label="fan-out width", y_label=label, title="p50 by width of the tree", ax=right, styles=styles
        )
    return [left, right]


def warm_up_chart(values: Any, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw a series of observations and what MSER-5 makes of it: its statistic after each cut, and the cut it takes.

    Parameters
    ----------
    values : array_like
        At least 20 observations in the order of their requests; the average of several replications is smoother.
    title : str
    ax : Axes, optional
        Where to draw; on a new figure when absent.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        There are fewer than 20 observations, or one is not finite.

    Examples
    --------
    A queue that begins empty: the first hundred requests of a thousand are too fast.

    >>> u = np.random.default_rng(1).uniform(size=1_000)
    >>> axes = warm_up_chart(10 * np.minimum(1, np.arange(1_000) / 100) + u)
    >>> [label for label in axes.get_legend_handles_labels()[1] if "warm-up" in label]
    ['warm-up by MSER-5: 100 observations']
    """
    from mktsim.study.statistics import mser5, mser5_statistic

    x, statistic, cut = np.asarray(values, float), mser5_statistic(values), mser5(values)
    axes = ax if ax is not None else new_axes()[0]
    batches = x[: len(x) // 5 * 5].reshape(-1, 5).mean(axis=1)
    at = 5 * np.arange(len(batches))
    axes.plot(at, batches, color=PALETTE[4], lw=0.8, label="simulated: mean of 5 observations")
    axes.axvline(cut, color="#000000", ls="--", lw=1.2, label=f"warm-up by MSER-5: {cut:,} observations")
    axes.axhline(x[cut:].mean(), color=PALETTE[1], ls=":", lw=1.4, label=f"mean after it: {x[cut:].mean():.4g} ms")
    axes.set(xlabel="observation", ylabel="sojourn time, ms")
    other = axes.twinx()
    half = max(1, len(statistic) // 2)
    other.plot(at[:half], statistic[:half], color=PALETTE[2], ls="-.", lw=1.2, label="MSER-5 statistic (right)")
    other.set_ylabel("squared standard error of the rest, ms²", fontsize=8)
    other.tick_params(labelsize=7)
    (lines, labels), (more, names) = axes.get_legend_handles_labels(), other.get_legend_handles_labels()
    axes.legend([*lines, *more], [*labels, *names], fontsize=7, frameon=False, loc="best")
    _dress(axes, title)
    return axes


def live_vs_simulated_chart(frame: pd.DataFrame) -> list[Axes]:
    """Draw what a live market took beside what the simulator foretold: p50 above p99, a column a load.

    Parameters
    ----------
    frame : DataFrame
        Of :func:`mktsim.study.questions.live_vs_simulated.live_vs_simulated`; rows of the study ``calibration`` are
        drawn left of a line, for they were seen. What was simulated at paces known has marks alone, half filled.

    Returns
    -------
    list of Axes
        Measured and simulated are drawn side by side, a little off the size that both have.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no row.

    Examples
    --------
    >>> sizes = {"study": ["calibration", "calibration", "live", "live"], "x": [100, 100, 500, 500]}
    >>> sizes |= {"kind": ["measured", "simulated"] * 2, "estimate": [2.5, 2.4, 10.6, 10.4]}
    >>> frame = pd.DataFrame(sizes).assign(series="top-k", group="one at a time", low=np.nan, high=np.nan)
    >>> frame = pd.concat([frame.assign(statistic=statistic) for statistic in ("p50", "p99")])
    >>> above, below = live_vs_simulated_chart(frame)
    >>> above.get_title(loc="left"), [text.get_text().strip() for text in above.texts]
    ('p50, one at a time', ['fitted', 'foretold'])
    """
    _check(frame, ("study", "series", "kind", "x", "group", "statistic", "estimate", "low", "high"))
    plain = frame[frame["statistic"].isin(["p50", "p99"])]
    loads = list(dict.fromkeys(plain["group"]))
    figure = Figure(figsize=(5.2 * len(loads), 8.2), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    styles = series_styles(plain.sort_values(["series", "kind"]))
    for number, name in enumerate(sorted(set(plain["series"]))):  # A statement has one colour and one marker.
        for kind in ("measured", "simulated"):
            alike = {"color": PALETTE[number], "marker": _MARKERS[number]}
            styles[name, kind] = _style(kind, number, number) | alike
    panels = []
    for row, statistic in enumerate(("p50", "p99")):
        for column, load in enumerate(loads):
            axes = figure.add_subplot(2, len(loads), row * len(loads) + column + 1)
            points = plain[(plain["statistic"] == statistic) & (plain["group"] == load)]
            beside = points["kind"].map({"measured": 0.94, "simulated": 1.06})
            label = f"{statistic} of the sojourn time, ms"
            line_chart(
                points.assign(x=points["x"] * beside), x_label="vendors", y_label=label, title=f"{statistic}, {load}",
                ax=axes, styles=styles,
            )  # fmt: skip
            known = frame[(frame["statistic"] == statistic + PACE_KNOWN) & (frame["group"] == load)]
            for name, part in known.groupby("series"):
                reach = np.abs(part[["low", "high"]].to_numpy(float).T - part["estimate"].to_numpy(float))
                color, marker = (styles[name, "simulated"][key] for key in ("color", "marker"))
                axes.errorbar(
                    part["x"], part["estimate"], reach, ls="none", color=color, marker=marker, markersize=6, lw=1.2,
                    capsize=3, fillstyle="left", markerfacecoloralt="white", label=f"simulated{PACE_KNOWN}: {name}",
                )  # fmt: skip
            seen, foretold = (points.loc[(points["study"] == "calibration") == was, "x"] for was in (True, False))
            if len(seen) and len(foretold):
                between = float(np.sqrt(seen.max() * foretold.min()))
                axes.axvline(between, color="#777777", ls=":", lw=1)
                style: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "fontsize": 7, "color": "#444444"}
                axes.text(between, 0.02, "fitted  ", ha="right", **style)
                axes.text(between, 0.02, "  foretold", ha="left", **style)
            sizes = sorted(set(points["x"]))
            axes.set_xticks(sizes, [plain_number(x) for x in sizes])
            room = 1.3 if len(sizes) > 1 else 3.0  # What is drawn beside one size stays near it.
            axes.set_xlim(sizes[0] / room, sizes[-1] * room)
            panels.append(axes)
    return panels


def hedging_charts(frame: pd.DataFrame) -> dict[str, list[Axes]]:
    """Draw the answer of :func:`mktsim.study.questions.hedging.hedging`: what is gained, and what for.

    Parameters
    ----------
    frame : DataFrame
        Of that result.

    Returns
    -------
    dict of str to list of Axes
        ``hedging``: p50, p99 and p99.9 of plain hedges against the delay, a panel for each number of leaves.
        ``hedging-load``: the p99 of plain and tied hedges, and what copies cost, against the delay.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no row.

    Examples
    --------
    >>> rows = [("no hedge", 0.0, "p99", 90.0, "simulated"), ("no hedge", 0.0, "p50", 40.0, "simulated")]
    >>> for x, p50, p99 in ((1.0, 38.0, 60.0), (5.0, 35.0, 45.0)):
    ...     rows += [("hedged", x, "p50", p50, kind) for kind in ("simulated", "analytic")]
    ...     rows += [("hedged", x, "p99", p99, kind) for kind in ("simulated", "analytic")]
    ...     rows += [("hedged", x, "extra work", x, kind) for kind in ("simulated", "analytic")]
    >>> frame = pd.DataFrame(rows, columns=["series", "x", "statistic", "estimate", "kind"])
    >>> charts = hedging_charts(frame.assign(group="100 leaves", low=frame["estimate"], high=frame["estimate"]))
    >>> {name: [axes.get_title(loc="left") for axes in panels] for name, panels in charts.items()}
    {'hedging': ['100 leaves'], 'hedging-load': ['p99, 100 leaves', 'What it costs']}
    """
    _check(frame, ("series", "kind", "x", "group", "statistic", "estimate", "low", "high"))
    label = "leaves unanswered after the delay, %"
    groups = [group for group in dict.fromkeys(frame["group"]) if group]
    quantiles = frame[frame["statistic"].str.fullmatch(r"p[\d.]+")]
    hedged = quantiles[(quantiles["series"] == "hedged") & (quantiles["kind"] == "simulated")]
    lines = hedged.assign(series=[f"{statistic}, hedged" for statistic in hedged["statistic"]])
    laws = quantiles[(quantiles["series"] == "hedged") & (quantiles["kind"] == "analytic")]
    none = quantiles[(quantiles["series"] == "no hedge") & (quantiles["kind"] == "simulated")]
    styles = series_styles(lines)
    gained = new_axes(len(groups), height=4.9, width=6.2)
    for ax, group in zip(gained, groups, strict=True):
        part = lines[lines["group"] == group]
        line_chart(part, x_label=label, y_label="sojourn time, ms", title=group, ax=ax, styles=styles)
        law_lines(laws[laws["group"] == group], by="statistic", label="analytic: (1 - S(t) S(t - d))^n", ax=ax)
        alone = none[none["group"] == group]
        _levels(ax, dict(zip(alone["statistic"], alone["estimate"], strict=True)), "simulated: no hedge")
    same_range(gained)
    left, right = paid = new_axes(2, height=4.9)
    p99 = quantiles[(quantiles["statistic"] == "p99") & (quantiles["kind"] == "simulated") & (quantiles["x"] > 0)]
    p99 = p99[p99["group"] == groups[-1]]
    work = frame[(frame["statistic"] == "extra work") & (frame["estimate"] > 0)]
    work = work.assign(low=work["low"].clip(lower=work["estimate"] / 10))
    styles = series_styles(p99)
    title = f"p99, {groups[-1]}"
    line_chart(p99, x_label=label, y_label="p99 of the sojourn time, ms", title=title, ax=left, styles=styles)
    before = none[(none["group"] == groups[-1]) & (none["statistic"] == "p99")]["estimate"].iloc[0]
    _levels(left, {"p99": before}, "simulated: no hedge")
    simulated = work[work["kind"] == "simulated"]
    costs = "extra work, % of the calls"
    line_chart(simulated, x_label=label, y_label=costs, title="What it costs", ax=right, styles=styles)
    law_lines(work[work["kind"] == "analytic"], by="series", label="analytic: S(d); tied: both begin at once", ax=right)
    return {"hedging": gained, "hedging-load": paid}


def _levels(ax: Axes, values: Mapping[str, float], label: str) -> None:
    """Draw a thin line across at each value, its name above it, right of all that is drawn; the axes logarithmic."""
    last = max(float(np.max(line.get_xdata())) for line in ax.get_lines())
    first, _ = ax.get_xlim()
    ax.set_xlim(first, last * (last / first) ** 0.14)  # Room for the names, which would lie on lines elsewhere.
    style: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "fontsize": 7, "color": "#444444"}
    for place, (name, value) in enumerate(values.items()):
        ax.axhline(value, color="#777777", lw=0.9, ls="-", zorder=1, label=f"_{label}" if place else label)
        ax.text(0.995, value * 1.01, name, ha="right", va="bottom", **style)


def partial_chart(frame: pd.DataFrame) -> list[Axes]:
    """Draw the answer of :func:`mktsim.study.questions.partial.partial_answers` against the deadline.

    Parameters
    ----------
    frame : DataFrame
        Of that result.

    Returns
    -------
    list of Axes
        Who is covered, by how much COUNT and AVG are off, and which rows of the top-10 are found.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no row.

    Examples
    --------
    >>> shown = ("coverage", "error of COUNT", "error of AVG", "recall of top-10")
    >>> rows = [(statistic, x, estimate) for statistic in shown for x, estimate in ((10.0, 50.0), (20.0, 90.0))]
    >>> frame = pd.DataFrame(rows, columns=["statistic", "x", "estimate"])
    >>> frame = frame.assign(series="deadline", kind="simulated", low=frame["estimate"], high=frame["estimate"])
    >>> [axes.get_title(loc="left") for axes in partial_chart(frame)]
    ['Vendors covered', 'COUNT', 'AVG', 'Top-10']
    """
    _check(frame, ("series", "kind", "x", "statistic", "estimate", "low", "high"))
    panels = {
        "coverage": ("Vendors covered", "vendors that answered, %"),
        "error of COUNT": ("COUNT", "mean absolute error of COUNT, %"),
        "error of AVG": ("AVG", "mean absolute error of AVG, %"),
        "recall of top-10": ("Top-10", "rows of the full top-10 found, %"),
    }
    axes = new_axes(len(panels), height=4.6, width=5.4)
    shown = frame[frame["statistic"].isin(panels) & (frame["estimate"] > 0)]  # The axes are logarithmic.
    simulated = shown[shown["kind"] == "simulated"]
    simulated = simulated.assign(low=simulated["low"].clip(lower=simulated["estimate"] / 3))
    laws, styles = shown[shown["kind"] == "analytic"], series_styles(simulated)
    for ax, (statistic, (title, label)) in zip(axes, panels.items(), strict=True):
        part = simulated[simulated["statistic"] == statistic]
        line_chart(part, x_label="deadline, ms", y_label=label, title=title, ax=ax, styles=styles)
        known = laws[laws["statistic"] == statistic]
        if not known.empty:
            law_lines(known, by="series", label="analytic: c = F(d) (1 - f); COUNT: 1 - c", ax=ax)
    return axes


def merging_charts(frame: pd.DataFrame) -> dict[str, list[Axes]]:
    """Draw the answer of :func:`mktsim.study.questions.merging.merging`.

    Parameters
    ----------
    frame : DataFrame
        Of that result.

    Returns
    -------
    dict of str to list of Axes
        ``merging``: bytes and time of both merges by class of statement, over the largest fleet. ``merging-right``: how
        often each is right on random statements.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no row.

    Examples
    --------
    What the naive merge gets wrong is marked where its bytes are shown.

    >>> rows = [(f"{merge} merge", "AVG", statistic, estimate) for merge, right in (("naive", 0.0), ("exact", 1.0))
    ...         for statistic, estimate in (("right", right), ("bytes a vendor", 20.0), ("time", 3.0))]
    >>> rows += [("naive", "AVG", "share right", 0.1), ("exact", "AVG", "share right", 1.0)]
    >>> frame = pd.DataFrame(rows, columns=["series", "group", "statistic", "estimate"])
    >>> frame = frame.assign(kind="measured", x=100.0, low=frame["estimate"], high=frame["estimate"], n=100)
    >>> charts = merging_charts(frame)
    >>> [label.get_text() for label in charts["merging"][0].get_yticklabels()], len(charts["merging-right"])
    (['AVG (naive: wrong)'], 1)
    """
    _check(frame, ("series", "kind", "x", "group", "statistic", "estimate", "low", "high", "n"))
    shares = frame[frame["statistic"] == "share right"]
    most = frame["x"].max()
    at = frame[(frame["x"] == most) & frame["series"].str.endswith("merge")]
    wrong = set(at.loc[(at["statistic"] == "right") & (at["estimate"] == 0), "group"])
    groups = list(dict.fromkeys(at["group"]))
    # What the naive merge gets wrong is marked: there its bytes and time are those of a wrong answer.
    names = {group: f"{group} (naive: wrong)" if group in wrong else group for group in groups}
    panels = new_axes(2, height=2.0 + 0.32 * len(groups))
    labels = {"bytes a vendor": "bytes a vendor, both ways", "time": "median time of a query, ms"}
    for place, (ax, (statistic, label)) in enumerate(zip(panels, labels.items(), strict=True)):
        part = at[at["statistic"] == statistic]
        part = part.assign(group=part["group"].map(names))
        listed = [names[group] for group in groups]
        dot_chart(part, x_label=label, groups=listed, named=not place, title=f"{most:,.0f} vendors", ax=ax)
    rights = [share_chart(shares, title="Random statements over 5 vendors")]
    return {"merging": panels, "merging-right": rights}


def isolation_chart(frame: pd.DataFrame) -> list[Axes]:
    """Draw the answer of :func:`mktsim.study.questions.isolation.isolation` against the number of vendors.

    Parameters
    ----------
    frame : DataFrame
        Of that result.

    Returns
    -------
    list of Axes
        Bytes a vendor, and the time of a query by class of statement.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no row.

    Examples
    --------
    >>> rows = [("bytes a vendor", "", "B", 1_000, 40_000.0), ("bytes a vendor", "", "B", 10_000, 38_000.0)]
    >>> rows += [("time", "top-k", "ms", 1_000, 12.0), ("time", "top-k", "ms", 10_000, 110.0)]
    >>> frame = pd.DataFrame(rows, columns=["statistic", "group", "unit", "x", "estimate"])
    >>> frame = frame.assign(series="packed", kind="measured", low=np.nan, high=np.nan)
    >>> [axes.get_title(loc="left") for axes in isolation_chart(frame)]
    ['Bytes', 'Time: top-k']
    """
    _check(frame, ("series", "kind", "x", "group", "statistic", "estimate", "low", "high"))
    timed = frame[(frame["statistic"] == "time") & (frame["unit"] == "ms")]
    groups = list(dict.fromkeys(timed["group"]))
    axes = new_axes(1 + len(groups), height=4.4, width=4.6)
    sizes = frame[frame["statistic"] == "bytes a vendor"]
    styles = series_styles(sizes)
    line_chart(sizes, x_label="vendors", y_label="bytes a vendor on disk", title="Bytes", ax=axes[0], styles=styles)
    for ax, group in zip(axes[1:], groups, strict=True):
        part = timed[timed["group"] == group]
        line_chart(part, x_label="vendors", y_label="median time, ms", title=f"Time: {group}", ax=ax, styles=styles)
    same_range(axes[1:])
    return axes


def pipelining_chart(frame: pd.DataFrame) -> list[Axes]:
    """Draw the answer of :func:`mktsim.study.questions.pipelining.pipelining`.

    Parameters
    ----------
    frame : DataFrame
        Of that result.

    Returns
    -------
    list of Axes
        The time against the mean round trip; the round trips and the bytes of each way.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or no world has a distance.

    Examples
    --------
    >>> rows = [(kind, preset, x, "time", 2 * x) for kind in ("simulated", "analytic")
    ...         for preset, x in (("same-zone", 0.5), ("multi-region", 90.0))]
    >>> rows += [("measured", "", np.nan, "round trips", 2.0), ("measured", "", np.nan, "bytes", 300.0)]
    >>> frame = pd.DataFrame(rows, columns=["kind", "preset", "x", "statistic", "estimate"])
    >>> frame = frame.assign(series="awaited one by one", low=frame["estimate"], high=frame["estimate"])
    >>> axes = pipelining_chart(frame)
    >>> [each.get_title(loc="left") for each in axes], [text.get_text() for text in axes[0].texts]
    (['Time by distance', 'Round trips', 'Bytes'], ['same-zone', 'multi-region'])
    """
    _check(frame, ("series", "kind", "x", "statistic", "estimate", "low", "high", "preset"))
    left, *others = axes = new_axes(3, height=5.0, width=6.4)
    times = frame[(frame["statistic"] == "time") & (frame["estimate"] > 0) & (frame["x"] > 0)]
    simulated = times[times["kind"] == "simulated"]
    if simulated.empty:
        raise InvalidArgumentError("at distance 0 no way takes time: there is nothing to draw; give farther worlds")
    label = "time until the caller goes on, ms"
    line_chart(simulated, x_label="mean round trip, ms", y_label=label, title="Time by distance", ax=left)
    law = "analytic: round trips after each other x their mean"
    law_lines(times[times["kind"] == "analytic"], by="series", label=law, ax=left)
    low, high = left.get_ylim()
    left.set_ylim(low, high * (high / low) ** 0.25)
    for preset, x in simulated[["preset", "x"]].drop_duplicates().itertuples(index=False):
        style: dict[str, Any] = {"transform": left.get_xaxis_transform(), "rotation": 90, "fontsize": 7}
        left.text(x, 0.99, preset.split(" ")[0], ha="center", va="top", color="#444444", **style)
    counted = frame[frame["kind"] == "measured"].drop_duplicates(["series", "statistic"])
    groups = list(dict.fromkeys(counted["series"]))
    units = {"round trips": "round trips of one look-up", "bytes": "bytes both ways of one look-up"}
    for place, (ax, (statistic, unit)) in enumerate(zip(others, units.items(), strict=True)):
        part = counted[counted["statistic"] == statistic]
        part = part.assign(group=part["series"], series="measured: every distance")
        dot_chart(part, x_label=unit, groups=groups, named=not place, title=statistic.capitalize(), ax=ax)
    return axes
