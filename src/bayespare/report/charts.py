"""The sections of the report that are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from bayespare.report.markup import Safe, element, join
from bayespare.report.run_view import Candidate, Epoch, GroupView, RunView
from bayespare.report.scales import percent_label, tick_label
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
from bayespare.report.text import count, number, percent, quantity


@dataclass(frozen=True)
class Curve:
    """A quantity to draw over the epochs: its name in the legend, its colour, how to read it."""

    name: str
    kind: str
    read: Callable[[Epoch], float | None]


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
    ("validation accuracy", lambda c: c.valid_accuracy, percent_label),
    ("validation RMSE", lambda c: c.valid_rmse, tick_label),
    ("validation NLL, nats", lambda c: c.valid_nll, tick_label),
)


def _frontier(run: RunView, chart: Safe) -> Safe:
    lead = (
        "The finished networks of this run. The ringed one was chosen on validation data (or "
        "by hand); another can be picked without training again."
    )
    listed = element("div", _candidates(run.frontier), class_="card wide")
    choices = element("details", element("summary", _all(len(run.frontier))), listed)
    return section("Accuracy and size", lead, _grid([("Frontier", chart)]), choices)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _all(networks: int) -> str:
    return "The network" if networks == 1 else f"All {networks} networks"


def _tip(c: Candidate) -> str:
    score = percent(c.valid_accuracy) if c.valid_accuracy is not None else quantity(c.valid_rmse)
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
            quantity(c.valid_rmse) if regression else percent(c.valid_accuracy),
            number(c.valid_nll),
        ]
        for c in sorted(frontier, key=lambda c: c.macs or c.parameters or 0.0)
    ]
    return table(header, rows)


def curves_section(run: RunView) -> Safe:
    """How training went: likelihood, prior, validation score and size over the time it took."""
    if len(run.history) < 2:
        return NOTHING
    classifies = run.config.task == "classification"
    nll = (Curve("training", "dense", _nll), Curve("validation", "compact", lambda e: e.valid_nll))
    held = [v for curve in nll for e in run.history if (v := _finite(curve.read(e))) is not None]
    drawn = (
        _curves(
            run, "Negative log-likelihood", "nats per row", nll, log_y=min(held, default=0) > 0
        ),
        _curves(
            run,
            "Validation accuracy",
            "",
            [Curve("", "compact", _accuracy if classifies else lambda e: e.valid_accuracy)],
            label=percent_label,
        ),
        _curves(run, "Validation RMSE", "", [Curve("", "compact", lambda e: e.valid_rmse)]),
        _curves(run, "KL from the prior", "nats", [Curve("", "compact", lambda e: e.kl)]),
        _curves(
            run,
            "Prior's part of the loss",
            "tempered KL, nats per row",
            [Curve("", "compact", lambda e: e.penalty)],
        ),
        _curves(
            run,
            "Size of the live model",
            "parameters",
            [Curve("", "compact", lambda e: e.parameters)],
            log_y=True,
        ),
    )
    charts = [chart for chart in drawn if chart is not None]
    return section("Training", "", _grid(charts)) if charts else NOTHING


def _nll(epoch: Epoch) -> float | None:
    return epoch.nll if epoch.nll is not None else epoch.loss


def _accuracy(epoch: Epoch) -> float | None:
    return epoch.valid_accuracy if epoch.valid_accuracy is not None else epoch.valid_score


def _curves(
    run: RunView,
    title: str,
    unit: str,
    curves: Sequence[Curve],
    *,
    log_y: bool = False,
    label: Callable[[float], str] = tick_label,
) -> tuple[str, Safe] | None:
    """Draw the curves that have at least two values; none, no chart."""
    series = []
    ends, unit_of_time = _ends(run.history)
    for curve in curves:
        values = [_finite(curve.read(epoch)) for epoch in run.history]
        if sum(value is not None for value in values) >= 2:
            series.append(Series(curve.name, curve.kind, _by_phase(values, run.history, ends)))
    if not series:
        return None
    marks = _phases(run.history, ends)
    chart = line_chart(
        series,
        title=title,
        x_title=unit_of_time,
        y_title=unit,
        log_y=log_y,
        label=label,
        marks=marks,
    )
    return title, chart


def _ends(history: Sequence[Epoch]) -> tuple[list[float], str]:
    """Where each epoch ends, and what that is: an epoch of one phase may be fifty of another."""
    seconds = [epoch.seconds for epoch in history if epoch.seconds is not None]
    if len(seconds) < len(history) or not all(0 < value < math.inf for value in seconds):
        return [float(i) for i in range(1, len(history) + 1)], "epochs of all phases"
    return list(accumulate(seconds)), "seconds of training"


def _by_phase(
    values: Sequence[float | None], history: Sequence[Epoch], ends: Sequence[float]
) -> list[tuple[float, float]]:
    """Points of a curve, broken where a phase begins: the two sides can be different models."""
    made: list[tuple[float, float]] = []
    for i, value in enumerate(values):
        if i and history[i].phase != history[i - 1].phase:
            made.append((math.nan, math.nan))
        made.append((ends[i], math.nan if value is None else value))
    return made


def _phases(history: Sequence[Epoch], ends: Sequence[float]) -> list[tuple[float, str]]:
    """Where each named phase begins."""
    marks = []
    before = ""
    for i, epoch in enumerate(history):
        if epoch.phase and epoch.phase != before:
            marks.append(((ends[i - 1] + ends[i]) / 2 if i else ends[0], epoch.phase))
            before = epoch.phase
    return marks


def _grid(charts: Sequence[tuple[str, Safe]]) -> Safe:
    cards = [element("div", element("h3", title), chart, class_="card") for title, chart in charts]
    return join(element("div", *cards, class_="grid"))
