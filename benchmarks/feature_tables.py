"""The sections of docs/results.md about which inputs matter."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from forms import percent, spread, table, three, times

DESIGNS = {
    "F": "Friedman, 5 of 20 columns, 500 rows",
    "A": "autoregressive, linear, 5 of 50, 200 rows",
    "X": "exclusive or, 2 of 10, 500 rows",
    "U": "smooth, uniform, a fifth of 50, 1,000 rows",
    "N": "smooth, normal, a fifth of 50, 1,000 rows",
    "E": "as before, inputs correlate by .5",
    "D": "Friedman, each of the 5 twice, 500 rows",
    "0": "noise, 0 of 20, 300 rows",
}


def selection(folder: Path) -> list[str]:
    """How well the relevant features of known designs are found, by us and by others."""
    fits = [fit for path in sorted(folder.glob("selection_*.jsonl")) for fit in _lines(path)]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for fit in fits:
        cells[fit["design"], fit["method"]].append(fit)
    rows = []
    for (design, method), own in sorted(
        cells.items(), key=lambda cell: list(DESIGNS).index(cell[0][0])
    ):
        known = "f1" in own[0]
        empty = sum(fit["selected"] == 0 for fit in own)
        rows.append(
            [
                DESIGNS[design],
                method,
                str(len(own)),
                spread([fit["f1"] for fit in own], three) if known else "",
                three(min(fit["f1"] for fit in own)) if known else "",
                spread([fit["auroc"] for fit in own], three) if known else "",
                "" if known else f"{empty} of {len(own)}",
                three(statistics.mean(fit["seconds"] for fit in own)),
            ]
        )
    head = ["design", "method", "seeds", "F1", "worst F1", "AUROC", "nothing selected", "seconds"]
    return table(head, rows)


def nodes(path: Path) -> list[str]:
    """Networks with one hidden layer before and after, by data and method."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in _lines(path) if path.exists() else []:
        cells[run["data"], run["method"]].append(run)
    rows = []
    for (data, method), runs in cells.items():
        score = "accuracy" if "accuracy" in runs[0]["dense"] else "rmse"
        both = [[run[which] for run in runs] for which in ("dense", "compact")]
        sizes = zip(*([part["parameters"] for part in parts] for parts in both), strict=True)
        rows.append(
            [
                data,
                method,
                str(len(runs)),
                spread([before / after for before, after in sizes], times),
                " / ".join(
                    spread([run["kept"][group] for run in runs], "{:.0f}".format)
                    for group in ("input", "fc1")
                ),
                score,
                *(spread([part[score] for part in parts], three) for parts in both),
                " / ".join(spread([part["nll"] for part in parts], three) for parts in both),
                three(statistics.mean(run["seconds"] for run in runs)),
            ]
        )
    head = ["data", "method", "seeds", "fewer parameters", "inputs / units kept", "score"]
    return table([*head, "dense", "pruned", "NLL dense / pruned", "seconds"], rows)


def inputs(results: Path) -> list[str]:
    """All sections about inputs."""
    return [
        "## Feature selection",
        "",
        "`FeatureSelector` with its defaults on designs whose relevant columns are known",
        "(`benchmarks/selection.py`): F1 of the selected set, area under the ROC curve of the",
        "log-odds, and how often pure noise had nothing selected. Seconds on one thread of a",
        "machine that was also busy otherwise; of the others (`benchmarks/peers.py`), seconds of",
        "the processor.",
        "",
        *selection(results),
        "",
        "### Nodes",
        "",
        "`benchmarks/nodes.py`: inputs and hidden units of networks with one hidden layer (100",
        "units for digits, 50 elsewhere); 70 % of the rows are fitted on, the others read once.",
        "The dense network has as many epochs. Seconds are those of both.",
        "`node-pip` is what `fit` takes for tables. With two hidden layers and few rows it closes",
        "everything (wine on `mlp:64,32`: accuracy .39) and says so, so the network is `mlp:64`.",
        "",
        *nodes(results / "nodes.jsonl"),
        "",
        "### Real data among probes",
        "",
        "`benchmarks/probes.py`: every column has a probe, the same values in another order",
        "(madelon has its own 480). Five times two folds; selection sees one fold, three learners",
        "are fitted to it and scored on the other: accuracy, or the share of variance explained,",
        "with all columns and probes, with the real columns, and with those selected.",
        "",
        *probes(results / "probes"),
        "",
        "### Importance",
        "",
        "`benchmarks/importance.py`. Importance of the second of two features, whose weight is",
        "psi (the first has 1):",
        "",
        *second_feature(_lines(results / "importance.jsonl")),
        "",
        "Correlation of ten features' importance with their weights:",
        "",
        *correlation(_lines(results / "importance.jsonl")),
        "",
        "A fifth of D normal features matter, signal alpha times the noise: share of features",
        "judged rightly, and test RMSE (in standard deviations of the signal) of the network with",
        "nothing removed, of the pruned one, of a new one on the features selected, and of one on",
        "the true features. Where the refit is no better than the pruned network, selection did",
        "not help beyond pruning.",
        "",
        *signal_to_noise(_lines(results / "importance.jsonl")),
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def probes(folder: Path) -> list[str]:
    """What is kept of real columns and probes, and what learners make of it."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        folds = record["folds"]
        for place, learner in enumerate(("linear", "forest", "neighbours")):
            if learner not in folds[0]:
                continue
            scores = {
                which: [fold[learner][which] for fold in folds if which in fold[learner]]
                for which in ("all", "real", "selected")
            }
            kept = [
                f"{record['data']}, {record['rows'] // 2} rows",
                f"{spread([f['real_kept'] for f in folds], '{:.1f}'.format)} of {record['real']}",
                f"{statistics.mean(f['probes_kept'] for f in folds):.1f} of {record['probes']}",
            ]
            empty = len(folds) - len(scores["selected"])
            rows.append(
                [
                    *(kept if place == 0 else [""] * 3),
                    learner,
                    *(spread(values, percent) if values else "" for values in scores.values()),
                    f"{empty} of {len(folds)}" if place == 0 else "",
                ]
            )
    head = ["data", "real kept", "probes kept", "learner", "all", "real", "selected"]
    return table([*head, "nothing selected"], rows)


def second_feature(fits: list[dict[str, Any]]) -> list[str]:
    """E1."""
    cells = _by(fits, "E1", "linear", "psi")
    rows = [
        [
            "linear" if linear else "nonlinear",
            f"{psi:g}",
            f"{psi / (1 + psi):.3f}",
            spread([fit["importance"][1] for fit in own], three),
            spread([fit["probability"][1] for fit in own], three),
        ]
        for (linear, psi), own in cells.items()
    ]
    return table(["generator", "psi", "ideal", "importance", "probability"], rows)


def correlation(fits: list[dict[str, Any]]) -> list[str]:
    """E2."""
    rows = [
        ["linear" if linear else "nonlinear", spread([fit["correlation"] for fit in own], three)]
        for (linear,), own in _by(fits, "E2", "linear").items()
    ]
    return table(["generator", "correlation"], rows)


def signal_to_noise(fits: list[dict[str, Any]]) -> list[str]:
    """E3 and E4."""
    cells = _by(fits, "E3", "columns", "alpha") | _by(fits, "E4", "columns", "alpha")
    rows = [
        [
            str(columns),
            f"{alpha:g}",
            *(
                spread([fit[key] for fit in own if key in fit], three)
                for key in ("accuracy", "dense", "pruned", "refit", "oracle_refit")
            ),
        ]
        for (columns, alpha), own in cells.items()
    ]
    head = ["D", "alpha", "judged rightly", "dense", "pruned", "refit", "true features"]
    return table(head, rows)


def _by(
    fits: list[dict[str, Any]], experiment: str, *keys: str
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for fit in fits:
        if fit["experiment"] == experiment:
            cells[tuple(fit[key] for key in keys)].append(fit)
    return dict(cells)
