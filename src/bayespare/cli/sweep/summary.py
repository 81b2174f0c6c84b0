"""What came out of a sweep: mean and spread over seeds, as a table, ``sweep.csv`` and JSON."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayespare.cli.sweep.grid import Cell, label
from bayespare.cli.sweep.study import OBJECTIVES, Ended
from bayespare.cli.tables import columns
from bayespare.report.text import count, number, percent, quantity
from bayespare.training.checkpoint import write_json, write_text

MEASURES = (
    "valid_error",
    "test_error",
    "test_nll",
    "parameters",
    "macs",
    "latency_ms",
    "seconds",
)


def summary(
    cells: Sequence[Cell], ended: Mapping[str, Ended], objectives: Sequence[str]
) -> dict[str, Any]:
    """Everything that is known of a sweep, JSON-ready.

    Args:
        cells: Of the sweep.
        ended: Those that have ended, by name.
        objectives: What the study minimises.

    Returns:
        ``configurations``, each with its seeds and the mean and standard deviation (of a sample;
        null for one seed) of every measure, and whether no other is better in all objectives
        (``best``); ``cells``; ``failed``, with the reason.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    rows = [_configuration(group, cells, ended) for group in groups.values()]
    rows = [row for row in rows if row["seeds"]]
    means = [[row["mean"][OBJECTIVES[name]] for name in objectives] for row in rows]
    for row, mine in zip(rows, means, strict=True):
        row["best"] = not any(_better(other, mine) for other in means)
    return {
        "objective": list(objectives),
        "configurations": rows,
        "cells": [
            {"cell": c.name, "keys": {**c.told, "seed": c.keys.seed}, **ended[c.name].figures}
            for c in cells
            if c.name in ended and ended[c.name].error is None
        ],
        "failed": {c.name: ended[c.name].error for c in cells if _why(c, ended) is not None},
    }


def _configuration(
    group: Sequence[Cell], cells: Sequence[Cell], ended: Mapping[str, Ended]
) -> dict[str, Any]:
    done = [c for c in group if c.name in ended and ended[c.name].error is None]
    found = [ended[c.name].figures for c in done]
    values = {name: [float(figures[name]) for figures in found] for name in MEASURES}
    return {
        "label": label(group[0], cells),
        "keys": dict(group[0].told),
        "seeds": [c.keys.seed for c in done],
        "score": found[0]["score"] if found else None,
        "mean": {name: statistics.fmean(own) for name, own in values.items() if own},
        "spread": {
            name: statistics.stdev(own) if len(own) > 1 else None for name, own in values.items()
        },
    }


def _why(cell: Cell, ended: Mapping[str, Ended]) -> str | None:
    return ended[cell.name].error if cell.name in ended else None


def _better(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is nowhere worse and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def write(found: Mapping[str, Any], project: Path) -> Path | None:
    """Write ``sweep.json`` and ``sweep.csv``, one line a configuration.

    Returns:
        Where the table of another sweep that was there is now, if there was one.
    """
    aside = _set_aside(found, project)
    write_json(project / "sweep.json", found)
    keys = list(dict.fromkeys(key for row in found["configurations"] for key in row["keys"]))
    head = [*keys, "seeds", *(f"{m}_{of}" for m in MEASURES for of in ("mean", "std")), "best"]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(head)
    for row in found["configurations"]:
        figures = [row[of][m] for m in MEASURES for of in ("mean", "spread")]
        own = [row["keys"].get(key) for key in keys]
        lines.writerow([*own, len(row["seeds"]), *figures, row["best"]])
    write_text(project / "sweep.csv", text.getvalue())
    return aside


def _set_aside(found: Mapping[str, Any], project: Path) -> Path | None:
    """Rename the files of a sweep that has cells which this one has not."""
    try:
        other = _names(json.loads((project / "sweep.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if other <= _names(found):
        return None
    number = next(n for n in itertools.count(1) if not (project / f"sweep-{n}.csv").exists())
    for ending in ("json", "csv"):
        # Another process of the same sweep may have done it.
        with contextlib.suppress(FileNotFoundError):
            (project / f"sweep.{ending}").replace(project / f"sweep-{number}.{ending}")
    return project / f"sweep-{number}.csv"


def _names(found: Mapping[str, Any]) -> set[str]:
    return {cell["cell"] for cell in found["cells"]} | set(found["failed"])


# ---------------------------------------------------------------------- tables
def table(found: Mapping[str, Any]) -> str:
    """Mean and standard deviation over seeds, one line a configuration."""
    measured = ["valid. error", "test error", "parameters", "MACs", "latency, ms", "time, s"]
    rows = [["", "seeds", *measured, ""]]
    for row in found["configurations"]:
        shown = percent if row["score"] == "accuracy" else quantity
        kinds = {"valid_error": shown, "test_error": shown, "parameters": count, "macs": count}
        kinds |= {"latency_ms": number, "seconds": number}
        cells = [_spread(row["mean"][m], row["spread"][m], show) for m, show in kinds.items()]
        rows.append(
            [row["label"], str(len(row["seeds"])), *cells, "<- best" if row["best"] else ""]
        )
    return columns(rows)


def _spread(mean: float, spread: float | None, show: Any) -> str:
    return show(mean) if spread is None else f"{show(mean)} ± {show(spread)}"


def progress_head(width: int) -> str:
    """The header of the lines that :func:`progress_line` gives."""
    return f"{'cell':>9}  {'':<{width}}  {'seed':>5}  {'error':>9}  {'parameters':>10}  {'s':>7}"


def progress_line(cell: Cell, name: str, width: int, end: Ended, number_of: str) -> str:
    """One line for a cell that has ended."""
    start = f"{number_of:>9}  {name:<{width}}  {cell.keys.seed:>5}"
    if end.error is not None:
        return f"{start}  failed: {end.error}"
    figures = end.figures
    error = figures["valid_error"]
    shown = percent(error) if figures["score"] == "accuracy" else quantity(error)
    return f"{start}  {shown:>9}  {count(figures['parameters']):>10}  {figures['seconds']:>7.1f}"
