"""Tables of what marginal-likelihood training does for pruning, beside what its authors report."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forms import percent, ratio, spread, table, three, whole

Record = dict[str, Any]

TRAININGS = {
    "map": "MAP",
    "tuned": "MAP, tuned decay",
    "parameter": "prior per weight",
    "unit": "prior per unit",
    "kfac_parameter": "prior per weight, Kronecker",
}
AUTHORS = "authors"
PUBLISHED = {
    "cancer": {"80": 0.9591, "90": 0.9430, "95": 0.6754},
    "lenet": {
        "20": 0.89248,
        "40": 0.89244,
        "60": 0.89269,
        "80": 0.89225,
        "90": 0.89089,
        "95": 0.87978,
        "99": 0.26614,
    },
}
"""Accuracy by share of weights at zero: means of runs in the authors' notebooks (OPD)."""
PUBLISHED_UNITS = {"60": (3.1, 0.861), "70": (5.0, 0.852), "90": (12.4, 0.810)}
"""By share of filters: times fewer MACs and accuracy, smaller networks trained for 5 epochs."""


def pruned(folder: Path, name: str) -> list[str]:
    """Accuracy after pruning without training, by training, criterion and share."""
    seeds = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}_s*.json"))]
    if not seeds:
        return ["Not run yet."]
    rows = []
    if name in PUBLISHED:
        shares, values = _line(PUBLISHED[name])
        rows.append([AUTHORS, "", "weights", "opd", shares, values])
    for kind, words in TRAININGS.items():
        if kind not in seeds[0]:
            continue
        dense = spread([seed[kind]["dense"] for seed in seeds], percent)
        for form in ("unstructured", "structured"):
            for criterion, first in seeds[0][kind][form].items():
                values = [
                    spread([seed[kind][form][criterion][share] for seed in seeds], percent)
                    for share in first
                ]
                what = "weights" if form == "unstructured" else "units"
                rows.append([words, dense, what, criterion, " / ".join(first), " / ".join(values)])
    head = ["training", "dense", "removed", "criterion", "shares %", "accuracy %"]
    return [f"{len(seeds)} seeds.", "", *table(head, rows)]


def _line(values: Mapping[str, float]) -> tuple[str, str]:
    return " / ".join(values), " / ".join(percent(value) for value in values.values())


def curves(folder: Path) -> list[str]:
    """Accuracy of LeNets against sparsity; calibration where it is ranked by OPD."""
    cells: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for path in sorted(folder.glob("*_s*.json")):
        record = json.loads(path.read_text())
        keys = ("finetune", "unit", "kind", "epochs", "criterion", "survivors")
        cells[tuple(record[key] for key in keys)].append(record)
    if not cells:
        return ["Not run yet."]
    order = list(TRAININGS)
    groups = sorted(
        cells, key=lambda cell: (cell[0], cell[1] == "unit", order.index(cell[2]), cell[3])
    )
    text: list[str] = []
    for finetune, unit in dict.fromkeys(cell[:2] for cell in groups):
        keys = [cell for cell in groups if cell[:2] == (finetune, unit)]
        text += [_words(finetune, unit), "", *_accuracies(cells, keys, unit, finetune), ""]
    return [*text, "Ranked by OPD, survivors refitted:", "", *_calibration(cells, groups)]


def _words(finetune: int, unit: str) -> str:
    what = "Single weights" if unit == "weight" else "Filters and hidden units"
    after = f"{finetune} epochs of training afterwards" if finetune else "no training afterwards"
    return f"{what}, {after}: accuracy %" + (" (times fewer MACs):" if unit == "unit" else ":")


def _accuracies(
    cells: Mapping[tuple[Any, ...], list[Record]],
    keys: Sequence[tuple[Any, ...]],
    unit: str,
    finetune: int,
) -> list[str]:
    shares = list(cells[keys[0]][0]["points"])
    rows = []
    if unit == "weight" and not finetune:
        known = PUBLISHED["lenet"]
        figures = [percent(known[share]) if share in known else "" for share in shares]
        rows.append([AUTHORS, "100", "opd", "", "8", "", *figures])
    if unit == "unit" and finetune:
        known_units = PUBLISHED_UNITS
        figures = [f"{percent(known_units[s][1])} ({known_units[s][0]}x)" for s in shares]
        rows.append([AUTHORS, "100", "opd", "", "1", "", *figures])
    for key in keys:
        *_, kind, epochs, criterion, survivors = key
        records = cells[key]
        refitted = "yes" if survivors else "no"
        rows.append([TRAININGS[kind], str(epochs), criterion, refitted, str(len(records))])
        rows[-1].append(spread([r["dense"]["accuracy"] for r in records], percent))
        for share in shares:
            points = [r["points"][share] for r in records]
            cell = spread([point["accuracy"] for point in points], percent)
            if unit == "unit":
                fewer = [r["dense"]["macs"] / r["points"][share]["macs"] for r in records]
                cell += f" ({sum(fewer) / len(fewer):.1f}x)"
            rows[-1].append(cell)
    head = ["training", "epochs", "criterion", "refit", "runs", "dense"]
    return table([*head, *(f"{share} %" for share in shares)], rows)


def _calibration(
    cells: Mapping[tuple[Any, ...], list[Record]], keys: Sequence[tuple[Any, ...]]
) -> list[str]:
    rows = []
    for key in keys:
        finetune, unit, kind, epochs, criterion, survivors = key
        if criterion != "opd" or not survivors:
            continue
        records = cells[key]
        points = records[0]["points"]
        for measure in ("nll", "ece", "brier"):
            values = [
                spread([r["points"][share][measure] for r in records], three) for share in points
            ]
            before = spread([r["dense"][measure] for r in records], three)
            row = [TRAININGS[kind], str(epochs), unit, str(finetune), measure, before]
            rows.append([*row, " / ".join(points), " / ".join(values)])
    head = ["training", "epochs", "removed", "epochs after", "score", "dense", "shares %", "values"]
    return table(head, rows)


NETWORKS = {"spam": "`spam`, compact", "evidence": "dense, evidence", "usual": "dense, MAP"}


def regressions(folder: Path) -> list[str]:
    """Compact and dense Laplace networks on UCI tables."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for path in sorted(folder.glob("*_s*.json")):
        record = json.loads(path.read_text())
        groups[record["name"]].append(record)
    if not groups:
        return ["Not run yet."]
    measures: list[tuple[str, Callable[[float], str]]] = [
        ("parameters", whole),
        ("rmse", three),
        ("nll", three),
        ("nll_without_spread", three),
    ]
    rows = []
    for name, records in groups.items():
        for network, words in NETWORKS.items():
            found = [record[network] for record in records]
            paired = [r["spam"]["nll"] - r[network]["nll"] for r in records]
            rows.append([name, words, str(len(records))])
            rows[-1] += [spread([f[key] for f in found], form) for key, form in measures]
            rows[-1].append("" if network == "spam" else spread(paired, ratio))
    head = ["table", "network", "splits", "parameters", "test RMSE", "test NLL", "NLL of the mean"]
    return table([*head, "`spam`'s NLL less this one's"], rows)
