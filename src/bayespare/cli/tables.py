"""Small tables in plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bayespare.report.text import count, number, percent, quantity


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows, the first of which is the header; the first column is left-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def frontier_table(points: Sequence[Mapping[str, Any]]) -> str:
    """The networks of a frontier with their sizes and validation scores, the chosen one marked."""
    regression = any("valid_rmse" in point for point in points)
    score = "RMSE" if regression else "accuracy"
    zeros = any(
        point.get("nonzeros", point["parameters"]) < point["parameters"] for point in points
    )
    sizes = ["parameters", *(["nonzeros"] if zeros else []), "macs"]
    titles = [{"macs": "MACs", "nonzeros": "not zero"}.get(size, size) for size in sizes]
    rows = [["name", *titles, f"valid. {score}", "valid. NLL", ""]]
    for point in points:
        value = point.get("valid_rmse" if regression else "valid_accuracy")
        rows.append(
            [
                str(point["name"]),
                *(count(point.get(size, point["parameters"])) for size in sizes),
                quantity(value) if regression else percent(value),
                number(point["valid_nll"]),
                "<- chosen" if point["chosen"] else "",
            ]
        )
    return columns(rows)


def scores_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores side by side: one column for each way to predict."""
    names = [
        ("accuracy", "accuracy", percent),
        ("rmse", "RMSE", quantity),
        ("nll", "NLL, nats", number),
        ("ece", "ECE", number),
        ("ece_chance", "ECE by chance alone", number),
        ("ece_mass", "ECE, equal mass", number),
        ("brier", "Brier", number),
    ]
    rows = [["", *scores]]
    for key, label, show in names:
        if any(key in own for own in scores.values()):
            rows.append([label, *(show(own.get(key)) for own in scores.values())])
    levels = dict.fromkeys(level for own in scores.values() for level in own.get("coverage", {}))
    for level in levels:
        shares = (percent(own.get("coverage", {}).get(level)) for own in scores.values())
        rows.append([f"inside the {level} % interval", *shares])
    return columns(rows)
