"""Scales and charts: pixels where they belong, no bar across the decision."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayespare.report.charts import separation
from bayespare.report.markup import Safe, element, join
from bayespare.report.run_view import GroupView
from bayespare.report.scales import Scale, around, nice_step, percent_label, tick_label
from bayespare.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Point,
    Series,
    bar,
    frontier_chart,
    histogram,
    line_chart,
)

numbers = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.text(), st.text())
def test_elements_escape_text_and_attributes(text: str, value: str) -> None:
    made = element("p", text, title=value)
    inner = made[len("<p") : -len("</p>")]
    assert inner.count("<") == 0
    assert inner.count('"') == 2
    assert join(made, text).startswith(made)


def test_markup_is_kept_and_numbers_are_short() -> None:
    inner = element("b", "1 < 2")
    assert element("p", inner, x=1.23456, class_="a", aria_label=None) == Safe(
        '<p x="1.23" class="a"><b>1 &lt; 2</b></p>'
    )


@given(st.lists(numbers, min_size=1, max_size=30), st.booleans())
def test_every_value_lies_on_the_scale_and_order_is_kept(values: list[float], log: bool) -> None:
    scale = around(values, 10.0, 90.0, log=log)
    held = sorted(v for v in values if v > 0 or not log)
    pixels = [scale(v) for v in held]
    assert pixels == sorted(pixels)
    assert all(10 - 1e-9 <= p <= 90 + 1e-9 for p in pixels)
    ticks = scale.ticks()
    assert len(ticks) <= 8
    assert all(scale.low * (1 - 1e-9) - 1e-6 <= t for t in ticks if scale.low >= 0)


@given(st.floats(1e-12, 1e12))
def test_a_nice_step_is_round_and_just_large_enough(least: float) -> None:
    step = nice_step(least)
    assert least * (1 - 1e-6) <= step <= 2.5 * least * (1 + 1e-6)
    assert f"{step:.1e}"[:3] in {"1.0", "2.0", "2.5", "5.0"}


def test_square_root_ticks_are_whole_and_spread() -> None:
    assert Scale(0, 400, 0, 1, "sqrt").ticks() == [0, 20, 100, 200, 400]
    assert Scale(0, 1, 0, 1, "sqrt").ticks() == [0, 1]


def test_shares_close_together_have_labels_of_their_own() -> None:
    labels = [percent_label(share) for share in Scale(0.9852, 0.9871, 100, 0).ticks()]
    assert labels == ["98.55 %", "98.6 %", "98.65 %", "98.7 %"]


def test_tick_labels_are_short() -> None:
    assert [tick_label(v) for v in (0, 0.25, 1500, -20e6)] == ["0", "0.25", "1.5k", "\u221220M"]


def bars(svg: str) -> list[tuple[float, float, str, int]]:
    """Left and right edge, class and count of every bar of a histogram."""
    found = re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="[\d.]+" class="(kept|removed)">'
        r"<title>(\d+) units",
        svg,
    )
    return [(float(x), float(x) + float(w), kind, int(n)) for x, w, kind, n in found]


@settings(deadline=None)
@given(st.lists(st.floats(-1e12, 1e12) | st.just(0.0) | st.just(math.inf), min_size=1, max_size=60))
def test_histogram_bars_split_at_the_decision_and_count_every_unit(odds: list[float]) -> None:
    svg = histogram(odds, title="t")
    found = bars(svg)
    line = float(re.findall(r'<line x1="([\d.]+)"[^>]*class="decision"', svg)[0])
    assert sum(n for *_, kind, n in found if kind == "kept") == sum(v > 0 for v in odds)
    assert sum(n for *_, kind, n in found if kind == "removed") == sum(v <= 0 for v in odds)
    for left, right, kind, _ in found:
        assert LEFT - 0.1 <= left <= right <= RIGHT + 1
        assert left >= line - 0.1 if kind == "kept" else left <= line + 0.1


def test_an_outlier_does_not_squeeze_the_rest() -> None:
    odds = [-5.0 + i / 10 for i in range(100)] + [-1e6]
    assert len(bars(histogram(odds, title="t"))) > 15


def test_undecided_share_counts_inclusion_probabilities_between_a_tenth_and_nine_tenths() -> None:
    odds = [-20.0, -2.3, -2.1, 0.0, 2.1, 2.3, 20.0, None]
    slow = sum(0.1 < 1 / (1 + math.exp(-v)) < 0.9 for v in odds if v is not None) / 8
    group = GroupView(name="a", size=8, log_odds=odds)
    assert separation(group) == pytest.approx(slow) == pytest.approx(3 / 8)


def test_a_curve_breaks_where_a_value_is_missing() -> None:
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, math.nan), (4.0, 3.0), (5.0, 2.0)]
    svg = line_chart([Series("a", "dense", points)], title="t", x_title="x", y_title="y")
    assert svg.count("<polyline") == 2
    for a, b in re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]*)"', svg))):
        assert LEFT <= float(a) <= RIGHT
        assert TOP <= float(b) <= BOTTOM


def test_names_of_many_phases_stay_in_three_rows() -> None:
    points = [(float(i), float(i)) for i in range(40)]
    marks = [(float(i), f"candidate {i}") for i in range(0, 40, 2)]
    svg = line_chart(
        [Series("a", "dense", points)], title="t", x_title="x", y_title="y", marks=marks
    )
    rows = {y for y, _ in re.findall(r'y="([\d.]+)" class="note"[^>]*>(candidate)', svg)}
    assert len(rows) == 3
    assert svg.count('class="mark"') == len(marks)


def test_a_bar_fills_its_share() -> None:
    assert 'width="25"' in bar(0.25)
    assert 'width="100"' in bar(7)


def test_no_share_above_one_is_named() -> None:
    points = [Point(100.0, 1.0, "only", chosen=True)]
    texts = {"title": "t", "x_title": "x", "y_title": "y"}
    shares = str(frontier_chart(points, **texts, label=percent_label))
    assert "100 %" in shares
    assert "105 %" not in shares
    assert "1.05" in str(frontier_chart(points, **texts))
