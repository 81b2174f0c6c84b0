"""The page of a feature selection: every feature with its probability, most probable first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bayespare.report.markup import Safe, element
from bayespare.report.page import document
from bayespare.report.svg import bar
from bayespare.report.tables import NOTHING, section, table
from bayespare.report.text import number, percent
from bayespare.select import Feature, Selection

MOST_ROWS = 500


def features_page(name: str, selection: Selection) -> str:
    """Return the page as HTML, free of scripts and outside resources.

    Args:
        name: Of the data.
        selection: What was found.
    """
    kept, every = len(selection.selected), len(selection.features)
    fits = "one fit" if selection.seeds == 1 else f"{selection.seeds} fits"
    return document(
        name,
        f"{kept} of {every} features belong in the model",
        f"{name} · posterior inclusion probabilities of {fits}",
        (
            _features(selection),
            _scores(selection.scores),
            _correlated(selection.correlated),
            _constant(selection.constant),
        ),
    )


def _features(selection: Selection) -> Safe:
    shown = selection.features[:MOST_ROWS]
    heads = ["feature", "probability", "", "log-odds, nats", "importance"]
    several = selection.seeds > 1
    heads += ["seeds that keep it"] * several
    head = element(
        "tr", *(element("th", h, class_="number" if i else None) for i, h in enumerate(heads))
    )
    lines = [_line(feature, several) for feature in shown]
    rest = len(selection.features) - len(shown)
    more = element("p", f"and {rest} more, in features.csv", class_="soft") if rest else NOTHING
    body = element("table", element("thead", head), element("tbody", *lines))
    return section(
        "Features",
        "The probability that a feature belongs in the model; those in bold are kept. "
        "Importance is the relative change of the predictions without it.",
        element("div", body, more, class_="card wide"),
    )


def _line(feature: Feature, several: bool) -> Safe:
    label = element("strong" if feature.selected else "span", feature.name)
    cells = [
        element("th", label, scope="row"),
        element("td", percent(feature.probability, 1), class_="number"),
        element("td", bar(feature.probability), class_="stretch"),
        element("td", f"{feature.log_odds:.1f}", class_="number"),
        element("td", percent(feature.importance, 1), class_="number"),
    ]
    if several:
        cells.append(element("td", percent(feature.stability, 0), class_="number"))
    return element("tr", *cells)


def _scores(scores: Mapping[str, Mapping[str, float]]) -> Safe:
    rows = [
        [learner, number(own["all"]), number(own["selected"]) if "selected" in own else "—"]
        for learner, own in scores.items()
    ]
    body = table(["learner", "all features", "selected"], rows)
    return section(
        "What the selected features are worth",
        "Test scores of other learners, refitted: accuracy, or the share of variance explained.",
        element("div", body, class_="card wide"),
    )


def _correlated(groups: Sequence[Mapping[str, object]]) -> Safe:
    if not groups:
        return NOTHING
    rows = []
    for group in groups:
        members, probability = group["features"], group["probability"]
        assert isinstance(members, list)
        assert isinstance(probability, float)
        rows.append([", ".join(str(member) for member in members), percent(probability, 1)])
    return section(
        "Features that say the same thing",
        "Correlated so strongly that no data can tell them apart: the probability that one of "
        "them at least belongs in the model.",
        element("div", table(["features", "probability"], rows), class_="card wide"),
    )


def _constant(names: Sequence[str]) -> Safe:
    if not names:
        return NOTHING
    return section(
        "Features that do not vary",
        "They were left out.",
        element("p", ", ".join(names)),
    )
