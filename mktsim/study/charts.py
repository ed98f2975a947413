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
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mktsim.errors import InvalidArgumentError

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

    Examples
    --------
    >>> plain_number(1e6), plain_number(0.05)
    ('1,000,000', '0.05')
    """
    return f"{value:,.10g}" if abs(value) < 1 else f"{value:,.0f}" if value == round(value) else f"{value:,.10g}"


def new_axes(count: int = 1, *, width: float = 7.0, height: float = 4.6) -> list[Axes]:
    """Return Axes side by side on a new figure that needs no window."""
    figure = Figure(figsize=(width * (1 if count == 1 else 0.75 * count), height), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    return [figure.add_subplot(1, count, place + 1) for place in range(count)]


def series_styles(frame: pd.DataFrame) -> Styles:
    """Give each series of a table its look, the same in every chart that is handed the result."""
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

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no point.
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

    Raises
    ------
    InvalidArgumentError
        A column is missing, or there is no point.
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
    """Give Axes side by side the same range upwards, so that heights can be compared."""
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
    """
    figure = axes[0].figure
    assert isinstance(figure, Figure), "annotate takes the Axes of a whole figure"
    labels: dict[str, Any] = {}
    for each in axes:
        labels.update(zip(*reversed(each.get_legend_handles_labels()), strict=True))
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


def png(axes: Axes) -> bytes:
    """Return the figure of some Axes as PNG."""
    buffer = BytesIO()
    figure = axes.figure
    assert isinstance(figure, Figure), "a part of a figure cannot be saved"
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": "mktsim"})
    return buffer.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
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
    ("served_ms", "back_ms", "below it, and way back", "#E6E6E6", "...."),
    ("back_ms", "end_ms", "taken in", "#000000", ""),
)


def waterfall_chart(
    frame: pd.DataFrame, *, title: str = "", caption: str = "", most: int = 40, end_ms: float | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw one simulated request: a bar a call, from its departure until its answer was taken in.

    Second copies (hedges, retries) are hatched; a cross ends what was cancelled, lost or failed; the stragglers carry
    their rank, 1 for the call that ended last.

    Parameters
    ----------
    frame : DataFrame
        From :meth:`mktsim.sim.Trace.waterfall`.
    title : str
    caption : str
        What a reader needs to judge it: n, seed, preset; below the figure, which is then given a legend too.
    most : int
        Calls to draw: of more, those that ended last.
    end_ms : float, optional
        When the request had what it waited for, which a line marks: what ends later, nobody waited for.
    ax : Axes, optional
        Where to draw; on a new figure when absent.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        A column is missing, there is no call, or `most` is no number of calls.

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
    _check(frame, ("call", "attempt", "target", *dict.fromkeys(times), "outcome", "rank", "straggler"))
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise InvalidArgumentError(f"most must be a whole number of at least 1, not {most!r:.80}")
    shown = frame[frame["rank"] <= most].sort_values("call")
    axes = ax if ax is not None else new_axes(height=1.8 + 0.22 * len(shown))[0]
    labelled: set[str] = set()
    for y, (_, call) in enumerate(shown.iterrows()):
        again = call["attempt"] > 0
        for begin, end, name, color, hatch in _PASSAGES:
            if call[end] > call[begin]:  # False where one is unknown.
                axes.barh(
                    y, call[end] - call[begin], left=call[begin], height=0.5 if again else 0.8, color=color,
                    edgecolor="#777777", linewidth=0.6, hatch="////" if again and not hatch else hatch,
                    label=None if name in labelled else f"simulated: {name}",
                )  # fmt: skip
                labelled.add(name)
        known = [ms for ms in call[list(dict.fromkeys(times))] if ms == ms]
        last = max(known)
        if call["outcome"] != "taken in":
            axes.plot([max((ms for ms in known if ms < last), default=last), last], [y, y], color="#777777", lw=1)
            label = None if "x" in labelled else "cancelled, lost or failed"
            axes.plot(last, y, marker="x", color="#000000", ls="none", ms=6, label=label)
            labelled.add("x")
        elif call["straggler"]:
            style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "va": "center"}
            axes.annotate(f"{call['rank']}", (last, y), xytext=(4, 0), **style)
    if end_ms is not None:
        axes.axvline(end_ms, color=PALETTE[1], ls=":", lw=2, label="simulated: the request is answered")
    names = [f"{call.target}{', second copy' if call.attempt else ''}" for call in shown.itertuples()]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("simulated time, ms")
    if len(shown) < len(frame):
        title = f"{title} ({len(shown)} of {len(frame):,} calls, the last to end)".lstrip()
    _dress(axes, title)
    axes.tick_params(axis="y", labelsize=7)
    if caption:
        annotate([axes], title="", caption=caption)
    else:
        axes.legend(fontsize=7, frameon=False, loc="best")
    return axes


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
        drawn left of a line, for they were seen.

    Returns
    -------
    list of Axes
        Measured and simulated are drawn side by side, a little off the size that both have.
    """
    _check(frame, ("study", "series", "kind", "x", "group", "statistic", "estimate", "low", "high"))
    shown = frame[frame["statistic"].isin(["p50", "p99"])]
    loads = list(dict.fromkeys(shown["group"]))
    figure = Figure(figsize=(5.2 * len(loads), 8.2), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    styles = series_styles(shown.sort_values(["series", "kind"]))
    for number, name in enumerate(sorted(set(shown["series"]))):  # A statement has one colour and one marker.
        for kind in ("measured", "simulated"):
            alike = {"color": PALETTE[number], "marker": _MARKERS[number]}
            styles[name, kind] = _style(kind, number, number) | alike
    panels = []
    for row, statistic in enumerate(("p50", "p99")):
        for column, load in enumerate(loads):
            axes = figure.add_subplot(2, len(loads), row * len(loads) + column + 1)
            points = shown[(shown["statistic"] == statistic) & (shown["group"] == load)]
            beside = points["kind"].map({"measured": 0.965, "simulated": 1.035})
            label = f"{statistic} of the sojourn time, ms"
            line_chart(
                points.assign(x=points["x"] * beside), x_label="vendors", y_label=label, title=f"{statistic}, {load}",
                ax=axes, styles=styles,
            )  # fmt: skip
            seen, foretold = (points.loc[(points["study"] == "calibration") == known, "x"] for known in (True, False))
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
