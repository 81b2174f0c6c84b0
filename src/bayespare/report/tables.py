"""The sections of the report that are words and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bayespare.report.markup import Safe, element, join
from bayespare.report.run_view import RunView, Scores
from bayespare.report.text import (
    Row,
    comparison,
    count,
    duration,
    number,
    percent,
    quantity,
    times,
)

NOTHING = Safe("")
LONGEST_VALUE = 200  # characters; lists of classes or features can be far longer

STAGES = {
    "dense": "dense",
    "relaxed": "relaxed: trained, gates still soft",
    "pruned": "pruned: removed by the decision, not retrained",
    "finetuned": "fine-tuned: the result",
}
TIMES = {
    "dense_training": "dense training",
    "training": "sparse training",
    "finetuning": "fine-tuning",
}
OF_REMOVAL = {"training": "removal"}
"""Of a network that was trained already: ``reduce`` and ``prune`` train no sparse one."""


def headline(run: RunView) -> tuple[str, str]:
    """Return the title of the page and the line under it."""
    config, metrics = run.config, run.metrics
    net, data = config.net or "Network", config.data
    method = metrics.method or config.method
    title = f"{net} on {data}" if data else net
    dense, compact = metrics.dense.parameters, metrics.compact.parameters
    if dense and compact:
        title += f": {times(dense / compact)} fewer parameters"
    seed = metrics.seed if metrics.seed is not None else config.seed
    facts = [
        method and f"method {method}",
        config.task,
        seed is not None and f"seed {seed}",
        metrics.n_train is not None and f"{count(metrics.n_train)} training rows",
        metrics.n_test is not None and f"{count(metrics.n_test)} test rows",
        metrics.measured_on and f"measured on {metrics.measured_on} data",
        f"run {run.name}",
    ]
    return title, " · ".join(str(fact) for fact in facts if fact)


def section(title: str, lead: str, *children: str, anchor: str | None = None) -> Safe:
    """A heading, a sentence on how to read what follows, and what follows."""
    return element(
        "section",
        element("h2", title),
        element("p", lead, class_="soft") if lead else NOTHING,
        *children,
        id=anchor,
    )


def first_screen(run: RunView) -> Safe:
    """The dense -> compact table, the time spent, and a pointer to the warnings."""
    rows = comparison(run.metrics)
    warnings = len(run.metrics.warnings)
    notice = NOTHING
    if warnings:
        said = "1 warning" if warnings == 1 else f"{warnings} warnings"
        link = element("a", said, href="#warnings")
        notice = element("p", link, " about this run, below.", class_="notice")
    facts = _facts(run)
    cards = [
        element("div", _main_table(rows), class_="card") if rows else NOTHING,
        element("div", facts, class_="card") if facts else NOTHING,
    ]
    return join(notice, element("div", *cards, class_="first"))


def averaged_section(run: RunView) -> Safe:
    """The compact model with its parameters as they are, and averaged over the posterior."""
    if run.metrics.averaged is None:
        return NOTHING
    plain = "parameters at their means"
    scores = {plain: run.metrics.compact, "averaged over the posterior": run.metrics.averaged}
    lead = "The compact model as an ordinary network, and as the mixture its posterior describes."
    return section("With and without the posterior", lead, _card(_scores_table("model", scores)))


def stages_section(run: RunView) -> Safe:
    """Scores at each stage, so that a drop can be placed."""
    if not run.metrics.stages:
        return NOTHING
    scores = {STAGES.get(name, name): stage for name, stage in run.metrics.stages.items()}
    lead = (
        "Where accuracy was lost or won on the way, on validation data. Cutting units out is "
        "exact; deciding which to cut is what costs."
    )
    return section("Stages", lead, _card(_scores_table("stage", scores)))


def _scores_table(title: str, models: Mapping[str, Scores]) -> Safe:
    """Scores of several models, one a row; what none of them has is left out."""
    columns: tuple[tuple[str, Callable[[Scores], float | None], Callable[..., str]], ...] = (
        ("accuracy", lambda s: s.accuracy, percent),
        ("RMSE", lambda s: s.rmse, quantity),
        ("NLL, nats", lambda s: s.nll, number),
        ("ECE", lambda s: s.ece, number),
        ("Brier", lambda s: s.brier, number),
    )
    held = [c for c in columns if any(c[1](scores) is not None for scores in models.values())]
    rows = [[name, *(show(read(s)) for _, read, show in held)] for name, s in models.items()]
    return table([title, *(name for name, _, _ in held)], rows)


def left_alone_section(run: RunView) -> Safe:
    """What was not considered for removal, and the reason."""
    if not run.plan.left_alone:
        return NOTHING
    rows = [[element("code", name), reason] for name, reason in run.plan.left_alone.items()]
    body = _card(table(["layer or parameter", "because"], rows, numbers=False))
    return section("Left alone", "", body)


def warnings_section(run: RunView) -> Safe:
    """Every warning of the run."""
    if not run.metrics.warnings:
        return NOTHING
    items = [element("li", text) for text in run.metrics.warnings]
    body = element("div", element("ul", *items), class_="card warnings")
    return section("Warnings", "", body, anchor="warnings")


def run_section(run: RunView) -> Safe:
    """What is needed to repeat the run: settings, versions, the data's fingerprint."""
    config = run.config
    rows: list[list[str]] = [
        [label, element("code", value)]
        for label, value in (
            ("method", config.method),
            ("net", config.net),
            ("data", config.data),
            ("data fingerprint", config.data_fingerprint),
        )
        if value is not None
    ]
    settings = config.settings
    flat = dict(settings) if isinstance(settings, Mapping) else {"settings": settings}
    said = {str(k): _said(v) for k, v in {**(config.model_extra or {}), **flat}.items()}
    rows += [[k, element("code", v)] for k, v in said.items() if v and len(v) <= LONGEST_VALUE]
    rows += [[f"version of {k}", element("code", v)] for k, v in config.versions.items()]
    if not rows:
        return NOTHING
    body = table(["key", "value"], rows, numbers=False)
    closed = element("details", element("summary", "Settings, versions, data"), _card(body))
    return section("How it was run", "", closed)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> Safe:
    """A table whose first column names the row; the others are numbers unless said otherwise."""
    kind = "number" if numbers else None
    head = [element("th", cell, class_=kind if i else None) for i, cell in enumerate(header)]
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", c, class_=kind) for c in row[1:]),
        )
        for row in rows
    ]
    return element("table", element("thead", element("tr", *head)), element("tbody", *lines))


def _card(body: Safe) -> Safe:
    return element("div", body, class_="card wide")


def _main_table(rows: Sequence[Row]) -> Safe:
    def cell(value: str, note: str) -> Safe:
        small = element("small", note, class_="soft") if note else NOTHING
        return element("td", value, small, class_="number")

    head = [element("th", "")]
    head += [element("th", t, class_="number") for t in ("dense", "compact", "change")]
    lines = [
        element(
            "tr",
            element("th", row.label, scope="row"),
            cell(row.dense, row.notes[0]),
            cell(row.compact, row.notes[1]),
            element("td", row.change, class_="number soft"),
        )
        for row in rows
    ]
    return element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *lines),
        class_="main",
    )


def _facts(run: RunView) -> Safe:
    """Time spent, and what there is to know about the measurement."""
    metrics = run.metrics
    spent = {k: v for k, v in metrics.time_s.items() if v is not None}
    names = TIMES | (OF_REMOVAL if metrics.method in ("reduce", "prune") else {})
    pairs = [(names.get(k, k), duration(v)) for k, v in spent.items()]
    dense = spent.get("dense_training")
    if dense and "training" in spent:
        run_time = spent["training"] + spent.get("finetuning", 0.0)
        pairs.append(("run / dense training", times(run_time / dense)))
    made = [element("h3", "Time spent"), _pairs(pairs)] if pairs else []
    facts = [
        ("units kept", _kept(run)),
        ("tempering", f"{metrics.tempering:.4g}" if metrics.tempering is not None else None),
        (
            "posterior spread",
            times(metrics.spread) if metrics.spread is not None else None,
        ),
        (
            "compact vs masked",
            f"{metrics.compact_equals_masked:.1e}"
            if metrics.compact_equals_masked is not None
            else None,
        ),
        (
            "load while timing",
            f"{metrics.load_average:.2f}" if metrics.load_average is not None else None,
        ),
    ]
    known = [(label, value) for label, value in facts if value is not None]
    if known:
        made += [element("h3", "This run"), _pairs(known)]
    return join(*made)


def _kept(run: RunView) -> str | None:
    units = kept_units(run).values()
    if not units:
        return None
    return f"{count(sum(k for k, _ in units))} of {count(sum(n for _, n in units))}"


def kept_units(run: RunView) -> dict[str, tuple[int, int]]:
    """Units kept and in all per group, as measured, else as planned."""
    if run.metrics.units:
        return dict(run.metrics.units)
    return {g.name: (len(g.kept), g.size) for g in run.plan.groups if g.kept is not None}


def _pairs(pairs: Sequence[tuple[str, str]]) -> Safe:
    made: list[str] = []
    for label, value in pairs:
        made += [element("dt", label), element("dd", value)]
    return element("dl", *made)


def _said(value: Any) -> str:
    """A setting as text; empty for one that was not set."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
