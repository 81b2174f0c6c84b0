"""The charts of the report as inline SVG: lines, points, reliability, histogram, bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bayespare.report.markup import Safe, element, join
from bayespare.report.scales import Scale, around, nice_step, percent_label, tick_label

WIDTH, HEIGHT = 360.0, 228.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 30.0, 194.0
CHARACTER = 6.2  # the mean width of one, in a label of the size the style sheet sets

MOST_ROWS_OF_MARKS = 3

# Log-odds of an inclusion probability of 0.9: nearer to zero than this a unit counts as undecided.
UNDECIDED = math.log(9)

Label = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One curve or cloud of points.

    Attributes:
        name: Shown in the legend.
        kind: CSS class that gives the colour: ``dense``, ``compact`` or ``second``.
        points: Pairs of x and y; a pair with a value that is not finite breaks the curve.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_title: str,
    y_title: str,
    log_y: bool = False,
    label: Label = tick_label,
    marks: Sequence[tuple[float, str]] = (),
) -> Safe:
    """Draw curves over a common x, with a legend when there are several.

    Args:
        series: The curves.
        title: Spoken by screen readers.
        x_title: Below the axis.
        y_title: Above the axis.
        log_y: Space the logarithm of y evenly.
        label: Formats the ticks of y.
        marks: Positions on x where a named phase begins.
    """
    x = around([p[0] for s in series for p in s.points], LEFT, RIGHT, margin=0)
    rows = _rows_of_marks(x, marks)
    top = TOP + 12 * (max(rows, default=-1) + 1)
    y = around([p[1] for s in series for p in s.points], BOTTOM, top, log=log_y)
    drawn: list[str] = [_frame(x, y, x_title, y_title, label)]
    for (at, name), row in zip(marks, rows, strict=True):
        fits = x(at) + 4 + CHARACTER * len(name) <= RIGHT
        place = (x(at) + 4, "start") if fits else (RIGHT, "end")
        drawn.append(_line(x(at), TOP + 12 * row if row >= 0 else top, x(at), BOTTOM, "mark"))
        if row >= 0:
            drawn.append(_text(place[0], TOP + 9 + 12 * row, name, "note", place[1]))
    for s in series:
        for piece in _pieces(s.points, positive=y.shape == "log"):
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in piece)
            drawn.append(element("polyline", points=path, class_=f"curve {s.kind}"))
            if len(piece) == 1:
                drawn.append(_dot(x(piece[0][0]), y(piece[0][1]), 2.5, s.kind))
    if len(series) > 1:
        drawn.append(_legend(series))
    return _chart(title, drawn)


@dataclass(frozen=True)
class Point:
    """One network of the frontier: where it lies, what it is called, whether it was chosen."""

    x: float
    y: float
    name: str
    chosen: bool = False


def frontier_chart(
    points: Sequence[Point], *, title: str, x_title: str, y_title: str, label: Label = tick_label
) -> Safe:
    """Draw networks by size (log scale) and score; the chosen one is ringed and named."""
    x = around([p.x for p in points], LEFT, RIGHT, log=True)
    y = around([p.y for p in points], BOTTOM, TOP, margin=0.12)
    shown = sorted((p for p in points if p.x > 0), key=lambda p: p.x)
    path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in shown)
    drawn: list[str] = [_frame(x, y, x_title, y_title, label)]
    drawn.append(element("polyline", points=path, class_="curve faint"))
    for p in shown:
        dot = _dot(x(p.x), y(p.y), 4.0 if p.chosen else 3.0, "compact" if p.chosen else "dense")
        drawn.append(element("g", element("title", p.name), dot))
        if p.chosen:
            drawn.append(element("circle", cx=x(p.x), cy=y(p.y), r=8.0, class_="ring"))
            height = y(p.y) + 21 if y(p.y) + 21 < BOTTOM - 3 else y(p.y) - 13
            drawn.append(_text(x(p.x), height, "chosen", "strong", "middle"))
    return _chart(title, drawn)


def reliability_chart(
    curves: Sequence[tuple[str, str, Sequence[tuple[float, float, float]]]], *, title: str
) -> Safe:
    """Draw accuracy against confidence; dots grow with the share of rows in their bin.

    Args:
        curves: Name, CSS class, and ``(confidence, accuracy, rows)`` per bin.
        title: Spoken by screen readers.
    """
    x, y = Scale(0.0, 1.0, LEFT, RIGHT), Scale(0.0, 1.0, BOTTOM, TOP)
    drawn: list[str] = [_frame(x, y, "confidence", "accuracy", tick_label)]
    drawn.append(_line(x(0), y(0), x(1), y(1), "mark"))
    for name, kind, bins in curves:
        finite = [b for b in bins if all(map(math.isfinite, b))]
        rows = sum(n for _, _, n in finite) or 1.0
        path = " ".join(f"{x(c):.1f},{y(a):.1f}" for c, a, _ in finite)
        drawn.append(element("polyline", points=path, class_=f"curve {kind}"))
        for confidence, accuracy, n in finite:
            tip = f"{name}: confidence {confidence:.3f}, accuracy {accuracy:.3f}, {n:.0f} rows"
            dot = _dot(x(confidence), y(accuracy), 2 + 6 * math.sqrt(max(n, 0) / rows), kind)
            drawn.append(element("g", element("title", tip), dot))
    drawn.append(_legend([Series(name, kind, ()) for name, kind, _ in curves]))
    return _chart(title, drawn)


def histogram(log_odds: Sequence[float], *, title: str, bins: int = 32) -> Safe:
    """Draw a histogram of log-odds with the decision line at zero.

    Zero is the edge of a bin, so that no bar holds both kept and removed units. The band in which
    the inclusion probability is between 0.1 and 0.9 is shaded. Far outliers stand in the last bin
    on their side. Heights follow the square root, so that a few units can be seen beside many.
    """
    ordered = sorted(v for v in log_odds if not math.isnan(v))
    low, high = _bulk(ordered)
    step = nice_step((high - low) / bins)
    first, last = math.floor(low / step), math.ceil(high / step)
    counts = dict.fromkeys(range(first, last), 0)
    for value in ordered:
        # The decision keeps what is above zero: a bin holds its upper edge, not its lower one.
        index = math.ceil(min(max(value, low), high) / step) - 1
        least, most = (0, last - 1) if value > 0 else (first, -1)
        counts[min(max(index, least), most)] += 1
    x = Scale(first * step, last * step, LEFT, RIGHT)
    y = Scale(0.0, max([*counts.values(), 1]), BOTTOM, TOP + 12, "sqrt")
    band = (x(-UNDECIDED), x(UNDECIDED))
    drawn: list[str] = [
        element(
            "rect", x=band[0], y=TOP, width=band[1] - band[0], height=BOTTOM - TOP, class_="band"
        ),
        _frame(x, y, "log-odds of staying, nats", "units", tick_label),
    ]
    for i, n in counts.items():
        if n == 0:
            continue
        left, top = x(i * step), min(y(n), BOTTOM - 1.5)
        lowest = "less" if i == first else f"{i * step:.4g}"
        highest = "more" if i == last - 1 else f"{(i + 1) * step:.4g}"
        bar = element(
            "rect",
            element("title", f"{n} units from {lowest} to {highest} nats"),
            x=left + 0.5,
            y=top,
            width=max(x((i + 1) * step) - left - 1, 0.8),
            height=BOTTOM - top,
            class_="kept" if i >= 0 else "removed",
        )
        drawn.append(bar)
    drawn.append(_line(x(0), TOP, x(0), BOTTOM, "decision"))
    drawn.append(_text(x(0) - 5, TOP + 8, "removed", "note", "end"))
    drawn.append(_text(x(0) + 5, TOP + 8, "kept", "note strong", "start"))
    return _chart(title, drawn)


def bar(share: float) -> Safe:
    """Draw a bar that fills ``share`` of its width, whatever that is."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return element(
        "svg",
        element("rect", x=0, y=0, width=100, height=10, class_="rest"),
        element("rect", x=0, y=0, width=filled, height=10, class_="kept"),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_="bar",
        aria_hidden="true",
    )


def _bulk(ordered: Sequence[float]) -> tuple[float, float]:
    """The range that holds all but far outliers, and room on both sides of zero.

    An outlier lies more than one and a half times as far out as the 95th percentile of its side.
    """
    bounds = []
    for side in (-1, 1):
        distances = sorted(side * v for v in ordered if side * v > 0)
        usual = distances[int(0.95 * (len(distances) - 1))] if distances else 0.0
        usual = min(usual, 1e6)
        farthest = min(distances[-1], 1.5 * usual) if distances else 0.0
        bounds.append(side * max(farthest, 1.5 * UNDECIDED))
    return bounds[0], bounds[1]


def _pieces(
    points: Sequence[tuple[float, float]], positive: bool
) -> list[list[tuple[float, float]]]:
    """Cut a curve where a value is missing."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in points:
        if math.isfinite(a) and math.isfinite(b) and (b > 0 or not positive):
            pieces[-1].append((a, b))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _rows_of_marks(x: Scale, marks: Sequence[tuple[float, str]]) -> list[int]:
    """Put the names of phases into rows above the curves, so that none runs into another.

    A name that would need one row too many gets row -1: its line is drawn without it.
    """
    ends: list[float] = []
    rows = []
    for at, name in marks:
        width = CHARACTER * len(name)
        start = min(x(at) + 4, RIGHT - width)
        row = next((r for r, end in enumerate(ends) if end < start), len(ends))
        if row < MOST_ROWS_OF_MARKS:
            ends[row : row + 1] = [start + width + 4]
        rows.append(row if row < MOST_ROWS_OF_MARKS else -1)
    return rows


def _frame(x: Scale, y: Scale, x_title: str, y_title: str, label: Label) -> Safe:
    """Grid lines with their values, and the titles of both axes."""
    drawn: list[str] = []
    # There is room above a share of one, but no share.
    shares = label is percent_label
    for tick in (tick for tick in y.ticks() if not shares or -1e-9 <= tick <= 1 + 1e-9):
        drawn.append(_line(LEFT, y(tick), RIGHT, y(tick), "grid"))
        drawn.append(_text(LEFT - 6, y(tick) + 3.5, label(tick), "tick", "end"))
    for tick in x.ticks():
        drawn.append(_text(x(tick), BOTTOM + 14, tick_label(tick), "tick", "middle"))
    drawn.append(_line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"))
    drawn.append(_text(LEFT - 40, TOP - 14, y_title, "title", "start"))
    drawn.append(_text(RIGHT, BOTTOM + 30, x_title, "title", "end"))
    return join(*drawn)


def _legend(series: Sequence[Series]) -> Safe:
    """Names with a dot of their colour, right-aligned above the chart."""
    drawn: list[str] = []
    right = RIGHT
    for s in reversed(series):
        drawn.append(_text(right, TOP - 14, s.name, "tick", "end"))
        right -= CHARACTER * len(s.name) + 8
        drawn.append(_dot(right, TOP - 17.5, 3.5, s.kind))
        right -= 12
    return join(*drawn)


def _chart(title: str, drawn: Sequence[str]) -> Safe:
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return element("svg", *drawn, viewBox=box, role="img", aria_label=title, class_="chart")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Safe:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _dot(x: float, y: float, radius: float, kind: str) -> Safe:
    return element("circle", cx=x, cy=y, r=radius, class_=f"dot {kind}")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Safe:
    return element("text", text, x=x, y=y, class_=kind, text_anchor=anchor)
