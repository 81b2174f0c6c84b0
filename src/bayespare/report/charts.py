"""The sections of the report that are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bayespare.report.markup import Safe, element, join
from bayespare.report.run_view import Candidate, Epoch, GroupView, RunView
from bayespare.report.scales import tick_label
from bayespare.report.svg import (
    UNDECIDED,
    Point,
    Series,
    bar,
    frontier_chart,
    histogram,
    line_chart,
    reliability_chart,
)
from bayespare.report.tables import NOTHING, kept_units, section, table
from bayespare.report.text import count, number, percent

Read = Callable[[Epoch], float | None]


def units_section(run: RunView) -> Safe:
    """How many units of each layer were kept, as bars."""
    units = kept_units(run)
    if not units:
        return NOTHING
    kinds = {group.name: group.unit for group in run.plan.groups}
    lines = []
    for name, (kept, size) in units.items():
        share = kept / size if size else 0.0
        kind = kinds.get(name, "unit")
        lines.append(
            element(
                "tr",
                element("th", element("code", name), scope="row"),
                element("td", bar(share), class_="stretch"),
                element("td", f"{count(kept)} of {count(size)} {kind}s", class_="number"),
                element("td", percent(share, 1), class_="number soft"),
            )
        )
    body = element("table", element("tbody", *lines))
    lead = "What is left of every group of units that could be removed."
    return section("Units kept", lead, element("div", body, class_="card wide"))


def log_odds_section(run: RunView) -> Safe:
    """A histogram of the log-odds of each group, and how well they separate."""
    cards = [_log_odds_card(group) for group in run.plan.groups if _known(group)]
    if not cards:
        return NOTHING
    lead = (
        "Posterior log-odds that a unit belongs in the model. What lies right of the line at zero "
        "is kept. The shaded band holds the undecided: inclusion probability between 0.1 and 0.9. "
        "Heights follow the square root of the count."
    )
    return section("Log-odds", lead, element("div", *cards, class_="grid"))


def separation(group: GroupView) -> float:
    """Share of the group's units whose inclusion probability is between 0.1 and 0.9."""
    known = _known(group)
    return sum(abs(value) < UNDECIDED for value in known) / max(group.size, len(known), 1)


def _known(group: GroupView) -> list[float]:
    return [v for v in group.log_odds or () if v is not None and not math.isnan(v)]


def _log_odds_card(group: GroupView) -> Safe:
    known = _known(group)
    missing = group.size - len(known)
    said = f"{percent(separation(group), 1)} of {count(group.size)} {group.unit}s undecided"
    if missing > 0:
        said += f"; {count(missing)} never in question, not drawn"
    return element(
        "div",
        element("h3", element("code", group.name)),
        element("span", said, class_="soft"),
        histogram(known, title=f"Log-odds of {group.name}"),
        class_="card",
    )


def calibration_section(run: RunView) -> Safe:
    """Reliability of the dense and the compact model in one diagram."""
    known = [(k, run.metrics.reliability.get(k)) for k in ("dense", "compact")]
    curves = [(name, name, rows) for name, rows in known if rows]
    if not curves:
        return NOTHING
    chart = reliability_chart(curves, title="Reliability of the dense and the compact model")
    lead = (
        "Of the test rows predicted with a given confidence, how many are right. On the dashed "
        "line the model is as sure as it should be; below it, too sure. Dots grow with the number "
        "of rows."
    )
    return section("Calibration", lead, _grid([("Reliability", chart)]))


def frontier_section(run: RunView) -> Safe:
    """Every finished candidate by size and validation score, the chosen one marked."""
    by_macs = all(c.macs is not None for c in run.frontier)
    x_title = "MACs, log scale" if by_macs else "parameters, log scale"
    for title, score, label in SCORES:
        points = [
            Point(x, y, _tip(c), c.chosen)
            for c in run.frontier
            if (x := _finite(c.macs if by_macs else c.parameters)) is not None
            and (y := _finite(score(c))) is not None
            and x > 0
        ]
        if points:
            chart = frontier_chart(
                points, title="Frontier", x_title=x_title, y_title=title, label=label
            )
            return _frontier(run, chart)
    return NOTHING


# What can stand on the vertical axis, the most telling first.
SCORES: tuple[tuple[str, Callable[[Candidate], float | None], Callable[[float], str]], ...] = (
    ("validation accuracy", lambda c: c.valid_accuracy, lambda v: percent(v, 1)),
    ("validation RMSE", lambda c: c.valid_rmse, tick_label),
    ("validation NLL, nats", lambda c: c.valid_nll, tick_label),
)


def _frontier(run: RunView, chart: Safe) -> Safe:
    lead = (
        "The finished networks of this run. The ringed one was chosen on validation data, by the "
        "one-standard-error rule or a budget; another can be picked without training again."
    )
    listed = element("div", _candidates(run.frontier), class_="card wide")
    choices = element("details", element("summary", f"All {len(run.frontier)} networks"), listed)
    return section("Accuracy and size", lead, _grid([("Frontier", chart)]), choices)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _tip(c: Candidate) -> str:
    score = percent(c.valid_accuracy) if c.valid_accuracy is not None else number(c.valid_rmse)
    return f"{c.name}: {count(c.macs)} MACs, {count(c.parameters)} parameters, {score}"


def _candidates(frontier: Sequence[Candidate]) -> Safe:
    regression = all(c.valid_accuracy is None for c in frontier)
    header = ["network", "tempering", "MACs", "parameters"]
    header += ["RMSE" if regression else "accuracy", "NLL, nats"]
    rows = [
        [
            f"{c.name} (chosen)" if c.chosen else c.name,
            f"{c.tempering:.3g}" if c.tempering is not None else "",
            count(c.macs),
            count(c.parameters),
            number(c.valid_rmse) if regression else percent(c.valid_accuracy),
            number(c.valid_nll),
        ]
        for c in sorted(frontier, key=lambda c: c.macs or c.parameters or 0.0)
    ]
    return table(header, rows)


def curves_section(run: RunView) -> Safe:
    """How training went: likelihood, KL, validation score and size over the epochs."""
    if len(run.history) < 2:
        return NOTHING
    charts: list[tuple[str, Safe]] = []
    nll: Read = lambda e: e.nll if e.nll is not None else e.loss  # noqa: E731
    _add(charts, run, "Negative log-likelihood", "nats per row", [
        ("training", "dense", nll), ("validation", "compact", lambda e: e.valid_nll)])  # fmt: skip
    _add(charts, run, "Validation accuracy", "", [
        ("validation", "compact", lambda e: e.valid_accuracy)],
        label=lambda v: percent(v, 0 if abs(100 * v - round(100 * v)) < 1e-6 else 1))  # fmt: skip
    _add(charts, run, "Validation RMSE", "", [("validation", "compact", lambda e: e.valid_rmse)])
    _add(charts, run, "KL from the prior", "nats", [("KL", "compact", lambda e: e.kl)], log_y=True)
    _add(charts, run, "Size of the live model", "parameters", [
        ("parameters", "compact", lambda e: e.parameters)], log_y=True)  # fmt: skip
    if not charts:
        return NOTHING
    return section("Training", "", _grid(charts))


def _add(
    charts: list[tuple[str, Safe]],
    run: RunView,
    title: str,
    unit: str,
    curves: Sequence[tuple[str, str, Read]],
    *,
    log_y: bool = False,
    label: Callable[[float], str] = tick_label,
) -> None:
    """Add a chart of the curves that have at least two values; none, no chart."""
    series = []
    for name, kind, read in curves:
        values = [(x, read(epoch)) for x, epoch in enumerate(run.history, start=1)]
        held = sum(v is not None and math.isfinite(v) for _, v in values)
        if held >= 2:
            points = [(float(x), math.nan if v is None else v) for x, v in values]
            series.append(Series(name, kind, _broken(points, run.history)))
    if series:
        chart = line_chart(
            series, title=title, x_title="epochs of all phases", y_title=unit, log_y=log_y,
            label=label, marks=_phases(run.history),
        )  # fmt: skip
        charts.append((title, chart))


def _broken(
    points: Sequence[tuple[float, float]], history: Sequence[Epoch]
) -> list[tuple[float, float]]:
    """Break a curve where a phase or a tempering begins: the two sides are different models."""
    made: list[tuple[float, float]] = []
    for i, point in enumerate(points):
        if i and _leg(history[i]) != _leg(history[i - 1]):
            made.append((math.nan, math.nan))
        made.append(point)
    return made


def _leg(epoch: Epoch) -> tuple[str, float | None]:
    return epoch.phase, epoch.tempering


def _phases(history: Sequence[Epoch]) -> list[tuple[float, str]]:
    """Where each named phase begins."""
    marks = []
    before = ""
    for x, epoch in enumerate(history, start=1):
        if epoch.phase and epoch.phase != before:
            marks.append((float(x) - (0.5 if x > 1 else 0.0), epoch.phase))
            before = epoch.phase
    return marks


def _grid(charts: Sequence[tuple[str, Safe]]) -> Safe:
    cards = [element("div", element("h3", title), chart, class_="card") for title, chart in charts]
    return join(element("div", *cards, class_="grid"))
