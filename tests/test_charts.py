"""Charts and the report: what is drawn stands in the table, is labelled, readable, and whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from mktsim.errors import InvalidArgumentError
from mktsim.study import charts
from mktsim.study.points import Point, tidy
from mktsim.study.report import Provenance, answers, estimate, report_html, write_study
from mktsim.study.scaling import QUICK

NAN = float("nan")


def frame_of(kinds: dict[str, str]) -> pd.DataFrame:
    """Return a table of two points a series."""
    return tidy(
        Point(study="fan-out", series=series, kind=kind, axis="vendors", x=x, statistic="p50", unit="ms",
              estimate=x / 10, low=x / 12, high=x / 8, n=300, seed=1)
        for series, kind in kinds.items() for x in (1e6, 10.0)
    )  # fmt: skip


FRAME = frame_of({"flat": "simulated", "tree": "simulated", "one process": "measured", "bound": "analytic"})


def test_every_series_is_labelled_with_its_kind() -> None:
    """A reader must never take a simulation for a measurement."""
    ax = charts.line_chart(FRAME, x_label="vendors", y_label="ms")
    assert ax.get_legend_handles_labels()[1] == [
        "simulated: flat", "simulated: tree", "measured: one process", "analytic: bound",
    ]  # fmt: skip


def test_what_is_drawn_is_what_the_table_holds() -> None:
    """Points come sorted by x, whatever the order of rows."""
    line = charts.line_chart(FRAME, x_label="vendors", y_label="ms").get_lines()[0]
    assert line.get_xdata().tolist() == [10.0, 1e6]
    assert line.get_ydata().tolist() == [1.0, 1e5]


def test_series_differ_without_colour() -> None:
    """In grey, marker and line style alone tell any two series apart; filled is measured."""
    styles = charts.series_styles(FRAME)
    seen = {(style.get("marker"), str(style["linestyle"])) for style in styles.values()}
    assert len(seen) == len(styles)
    assert "markerfacecolor" not in styles["one process", "measured"]
    assert styles["flat", "simulated"]["markerfacecolor"] == "white"


def test_colours_are_okabe_and_itos() -> None:
    """No two are closer than readers with a colour vision deficiency can tell: all are from the published palette."""
    published = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert set(charts.PALETTE) <= published
    assert len({to_rgb(color) for color in charts.PALETTE}) == len(charts.PALETTE)


def test_axes_show_plain_numbers_and_units() -> None:
    """A million is 1,000,000, not 10^6."""
    ax = charts.line_chart(FRAME, x_label="vendors", y_label="sojourn time, ms")
    charts.png(ax)  # Ticks have labels only once drawn.
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert "1,000,000" in shown
    assert not any("10^" in text or "e+" in text or "mathdefault" in text for text in shown)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("vendors", "sojourn time, ms")


@pytest.mark.parametrize("frame", [FRAME.drop(columns="low"), FRAME.iloc[:0]])
def test_a_table_that_cannot_be_drawn_is_refused(frame: pd.DataFrame) -> None:
    """The message names the columns."""
    with pytest.raises(InvalidArgumentError, match="series, kind"):
        charts.line_chart(frame, x_label="x", y_label="y")


def test_legend_caption_and_axes_do_not_overlap() -> None:
    """However many series and lines of caption there are."""
    panels = charts.new_axes(2)
    for ax in panels:
        charts.line_chart(FRAME, x_label="vendors", y_label="ms", ax=ax)
    charts.annotate(panels, title="A title", caption="A caption of many words. " * 20)
    charts.png(panels[0])
    figure = panels[0].figure
    [legend], [text] = figure.legends, figure.texts[-1:]
    key, caption = legend.get_window_extent(), text.get_window_extent()
    assert caption.y0 >= 0
    assert caption.y1 <= key.y0 + 1
    for ax in panels:
        assert key.y1 <= ax.get_tightbbox().y0 + 1


def test_shares_stand_at_their_percentage_with_every_group_named() -> None:
    """A group a line, with its n."""
    frame = tidy(
        Point(study="merge", series=series, kind="measured", axis="class", group=group, statistic="right", unit="share",
              estimate=share, low=share / 2, high=1.0, n=40, seed=1)
        for group in ("AVG", "all") for series, share in (("exact merge", 1.0), ("naive merge", 0.5))
    )  # fmt: skip
    ax = charts.share_chart(frame)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["AVG  (n = 40)", "all  (n = 40)"]
    assert sorted({float(x) for line in ax.get_lines() for x in line.get_xdata()}) == [25, 50, 100]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_dots_of_a_group_stand_around_its_line(count: int) -> None:
    """However many series there are: centred, apart from each other, and clear of the next group's."""
    names = [f"series {number}" for number in range(count)]
    frame = tidy(
        Point(study="a", series=series, kind="measured", axis="class", group=group, statistic="time", unit="ms",
              estimate=1.0 + place, low=1.0, high=9.0, n=40, seed=1)
        for group in ("one", "other") for place, series in enumerate(names)
    )  # fmt: skip
    ax = charts.dot_chart(frame, x_label="time, ms", groups=["one", "other"])
    for number in range(2):
        y = sorted({float(line.get_ydata()[number]) for line in ax.get_lines() if len(line.get_ydata()) == 2})
        assert len(y) == count
        assert sum(y) / count == pytest.approx(number)
        assert y[-1] - y[0] < 0.9


def test_names_of_levels_stand_beside_what_is_drawn() -> None:
    """However near a level is to a line, its name is right of the line's end and inside the axes."""
    ax = charts.line_chart(FRAME, x_label="leaves, %", y_label="ms")
    at = FRAME["estimate"].min(), FRAME["estimate"].max()
    charts._levels(ax, {"p50": at[0], "p99.9": at[1]}, "simulated: no hedge")
    charts.png(ax)
    end = ax.transData.transform((FRAME["x"].max(), 1.0))[0]
    assert [text.get_text() for text in ax.texts] == ["p50", "p99.9"]
    for text in ax.texts:
        box = text.get_window_extent()
        assert end < box.x0 < box.x1 <= ax.get_window_extent().x1
    assert ax.get_legend_handles_labels()[1].count("simulated: no hedge") == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops the writing, the old file stays and no draft is left."""
    target = tmp_path / "scaling.csv"
    target.write_bytes(b"old")

    def stop(self: Path, _: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            charts.write_whole(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["scaling.csv"]
    assert target.read_bytes() == b"old"
    charts.write_whole(target, b"new")
    assert target.read_bytes() == b"new"


def study_points() -> list[Point]:
    """Return a small made-up study."""
    common = {"seed": 7, "n": 10, "low": 0.5, "high": 2.0}
    points = [
        Point(study="live", series="top-10 by rating in a category", kind="measured", axis="vendors", x=x,
              statistic="p50", unit="ms", estimate=1.0, engine="live", **common) for x in (10, 100)
    ]  # fmt: skip
    for statistic in ("p50", "p99"):
        points += [
            Point(study="fan-out", series=series, kind="simulated", axis="vendors", x=x, statistic=statistic, unit="ms",
                  estimate=1.0, engine="vectorised", preset="same-zone of 2026", **common)
            for series in ("flat", "<script>alert(1)</script>") for x in (10, 1e6)
        ]  # fmt: skip
    for statistic in ("variation", "fullest over mean"):
        for kind in ("measured", "analytic"):
            points += [
                Point(study="ring", series="keys", kind=kind, axis="virtual nodes", x=x, statistic=statistic,
                      unit="ratio", estimate=1.2, **common) for x in (1, 150)
            ]  # fmt: skip
    points += [
        Point(study="merge", series=f"{merge} merge", kind="measured", axis="class", group=group, statistic="right",
              unit="share", estimate=1.0, **(common | {"low": 0.9, "high": 1.0}))
        for group in ("AVG", "all") for merge in ("exact", "naive")
    ]  # fmt: skip
    return points


def test_the_report_is_one_escaped_page_with_all_charts_and_provenance(tmp_path: Path) -> None:
    """It asks for no other file, and what is in the table cannot become markup."""
    provenance = Provenance.here(QUICK, seed=7, date="2026-11-22")
    written = write_study(study_points(), provenance, tmp_path / "new" / "out")
    assert [path.name for path in written] == [
        "live.png", "fan-out-same-zone.png", "ring.png", "merge.png", "scaling.csv", "report.html",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(path.name for path in written)
    page = written[-1].read_text("utf-8")
    assert page.count("<img") == 4 == page.count("src='data:image/png;base64,")
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for fact in ("2026-11-22", provenance.machine, provenance.versions["sqlite"], "same-zone of 2026"):
        assert fact in page
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[:4])


def test_the_table_is_tidy_and_reads_back(tmp_path: Path) -> None:
    """One row a point, no index, numbers as numbers."""
    points = study_points()
    written = write_study(points, Provenance.here(QUICK, seed=7, date="2026-11-22"), tmp_path)
    frame = pd.read_csv(written[-2], keep_default_na=True)
    assert len(frame) == len(points)
    assert frame.columns.tolist() == tidy(points).columns.tolist()
    assert frame["estimate"].tolist() == [point.estimate for point in points]


def test_answers_are_sentences_with_numbers_intervals_and_n() -> None:
    """Each part of the study is answered; a part that was not run is left out."""
    frame = tidy(study_points())
    found = answers(frame)
    assert len(found) == 4
    assert all(re.match(r"(Measured|Simulated).*\d.*\[.*\.$", sentence) for sentence in found)
    assert answers(frame[frame["study"] == "merge"]) == found[-1:]


def test_an_estimate_is_written_with_unit_and_interval() -> None:
    """Shares become percent, thousands get their commas, a lone estimate no interval."""
    frame = tidy(
        [
            Point(study="a", series="s", kind="measured", axis="x", statistic="p50", unit="ms", estimate=1234.5,
                  low=1200.0, high=1e6, seed=1),
            Point(study="a", series="t", kind="analytic", axis="x", statistic="p50", unit="share", estimate=0.5,
                  seed=1),
        ]
    )  # fmt: skip
    assert estimate(frame, series="s") in ("1,234 ms [1,200, 1,000,000]", "1,235 ms [1,200, 1,000,000]")
    assert estimate(frame, series="t") == "50 %"
    assert estimate(frame, series="u") == ""


def test_provenance_can_be_repeated_from() -> None:
    """It is plain data: versions and every number that was asked for."""
    provenance = Provenance.here(QUICK, seed=7, date="2026-11-22")
    assert json.loads(json.dumps(dict(provenance.parameters)))["rings"] == QUICK.rings
    assert {"python", "sqlite", "mktsim", "numpy", "matplotlib"} <= provenance.versions.keys()
    assert "/" not in provenance.machine
    assert report_html(tidy(study_points()), {}, provenance).startswith("<!DOCTYPE html>")


def test_a_picture_carries_the_fingerprint_of_what_it_shows() -> None:
    """Drawn again it is the same; another number, text, colour or hatch is another one."""
    from io import BytesIO

    from PIL import Image

    def drawn(**changes: float) -> Axes:
        ax = charts.line_chart(FRAME.assign(**changes), x_label="vendors", y_label="ms")
        charts.annotate([ax], title="title", caption="caption")
        return ax

    ax = drawn()
    with Image.open(BytesIO(charts.png(ax))) as image:
        kept = image.info[charts.FINGERPRINT_KEY]
    assert kept == charts.fingerprint(drawn()) == charts.fingerprint(ax)
    assert charts.fingerprint(drawn(estimate=5.0)) != kept
    ax.get_lines()[0].set_color("#123456")
    assert charts.fingerprint(ax) != kept
    other = drawn()
    other.figure.texts[0].set_text("another caption")
    assert charts.fingerprint(other) != kept


def test_a_chart_of_a_ring_or_a_ride_refuses_another_table() -> None:
    """Both name what is missing."""
    with pytest.raises(InvalidArgumentError, match="stayed"):
        charts.ring_change_chart(pd.DataFrame({"shard": ["a"], "before": [1]}), turn=[0.5], moved=[True])
    with pytest.raises(InvalidArgumentError, match="covered_percent"):
        charts.ride_chart(pd.DataFrame({"start_ms": [1.0]}))
