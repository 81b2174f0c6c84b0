"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bayespare.report.charts import (
    calibration_section,
    curves_section,
    frontier_section,
    log_odds_section,
    units_section,
)
from bayespare.report.markup import Safe, element, join
from bayespare.report.run_view import RunView
from bayespare.report.style import STYLE
from bayespare.report.tables import (
    averaged_section,
    first_screen,
    headline,
    left_alone_section,
    run_section,
    stages_section,
    warnings_section,
)
from bayespare.training.checkpoint import write_text

# Nothing may be loaded and no script may run, whatever text a run folder holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(run: RunView) -> str:
    """Return the report of a run as one HTML page, free of scripts and outside resources.

    What the run does not hold is left out.
    """
    title, lead = headline(run)
    sections = (
        first_screen(run),
        units_section(run),
        log_odds_section(run),
        _side_by_side(calibration_section(run), frontier_section(run)),
        averaged_section(run),
        curves_section(run),
        stages_section(run),
        left_alone_section(run),
        warnings_section(run),
        run_section(run),
    )
    return document(run.name, title, lead, sections)


def document(name: str, title: str, lead: str, sections: Sequence[Safe]) -> str:
    """A page of its own: heading, a line below it, and the sections that are not empty."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"{name} · Bayespare"),
        element("style", Safe(STYLE)),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", lead, class_="lead")),
        element("main", *(section for section in sections if section)),
    )
    return join(Safe("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")


def _side_by_side(*sections: Safe) -> Safe:
    shown = [section for section in sections if section]
    return element("div", *shown, class_="pair") if shown else Safe("")


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, from the JSON files there.

    Returns:
        The path of the page.

    Raises:
        BayespareError: If the folder holds no run, a file in it is damaged, or the page cannot be
            written.
    """
    folder = Path(folder)
    return write_page(render(RunView.read(folder)), folder / "report.html")


def write_page(page: str, path: Path) -> Path:
    """Write a page aside, then rename it: it is whole or not there.

    Raises:
        BayespareError: If it cannot be written.
    """
    write_text(path, page)
    return path
