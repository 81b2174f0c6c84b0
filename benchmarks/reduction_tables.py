"""The section of docs/results.md about Bayesian model reduction."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from forms import percent, ratio, spread, table, three

AUTHORS = {
    "lenet": {
        "flat-map": (".887", ".059", ".438", ""),
        "flat-ff": (".885", ".036", ".333", ""),
        "tiered-ff": (".889", ".016", ".312", ""),
        "bmr": (".902", ".016", ".283", "81.1"),
    },
    "mlp:500,500,500,500,act=silu": {
        "flat-map": (".898", ".058", ".424", ""),
        "flat-ff": (".843", ".048", ".445", ""),
        "tiered-ff": (".860", ".030", ".394", ""),
        "bmr": (".869", ".010", ".358", "99"),
    },
}
"""Read off the authors' figures (arXiv 2309.12095, Fashion-MNIST, one seed, epoch 50)."""

LEAST = {"lenet": 0.811, "mlp:500,500,500,500,act=silu": 0.99}
"""The share of parameters that the authors' ``bmr`` prunes."""


def reduction(folder: Path) -> list[str]:
    """All of it."""
    paths = sorted(folder.glob("*.json"))
    runs = [json.loads(path.read_text()) for path in paths if not path.stem.endswith("_pace")]
    paces = [json.loads(path.read_text()) for path in paths if path.stem.endswith("_pace")]
    return [
        "## Bayesian model reduction",
        "",
        "`benchmarks/bmr.py`: Fashion-MNIST, average of 100 posterior draws; only rows of the same",
        "epochs and batch have had the same training. `bmr` judges single weights, `bmr-rhs`",
        "units, the others nothing. `sparsity`: asked for. `at their size`: of the finished",
        "candidates that prune as much as the authors', the one with the lowest validation NLL.",
        "Authors: read off their figures, one seed; ECE by 20 equal-mass bins.",
        "",
        *_scores(runs),
        "",
        "Training steps timed in turn, one process, one thread, batch 128, nothing pruned yet.",
        "",
        *_paces(paces),
    ]


def _scores(runs: list[dict[str, Any]]) -> list[str]:
    if not runs:
        return ["Not run yet."]
    groups: dict[tuple[str, str, int, int, float], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        config = run["config"]
        asked = config["sparsity"] or 0.0
        key = run["net"], run["method"], config["epochs"], config["batch"], asked
        groups[key].append(run)
    rows = []
    for (net, method, epochs, batch, asked), own in sorted(groups.items()):
        words = f"`sparsity={asked:g}`" if asked else "chosen"
        picks = {words: [run["chosen"] for run in own]}
        if method == "bmr" and not asked and all(_matched(run) for run in own):
            picks["at their size"] = [_matched(run) for run in own]
        for words, points in picks.items():
            test = [point["test"] for point in points]
            rows.append(
                [
                    net,
                    method,
                    words,
                    f"{epochs} of {batch}",
                    str(len(own)),
                    *(spread([t[key] for t in test], three) for key in ("accuracy", "ece_mass")),
                    *(spread([t[key] for t in test], three) for key in ("ece", "nll")),
                    spread([point["pruned"] for point in points], percent),
                    " / ".join(AUTHORS.get(net, {}).get(method, [])).rstrip(" /"),
                ]
            )
    head = ["network", "method", "which", "epochs, batch", "seeds", "accuracy", "ECE, equal mass"]
    head += ["ECE, equal width", "NLL", "pruned %", "authors: acc / ECE / NLL / pruned"]
    return table(head, rows)


def _matched(run: dict[str, Any]) -> dict[str, Any]:
    """The best candidate, by validation, that prunes as much as the authors'; or an empty one."""
    there = [p for p in run["frontier"] if p["pruned"] >= LEAST.get(run["net"], 1.0)]
    return min(there, key=lambda p: p["valid_nll"]) if there else {}


def _paces(paces: list[dict[str, Any]]) -> list[str]:
    if not paces:
        return ["Not run yet."]
    rows = [
        [pace["net"], name, three(seconds), ratio(pace["of_adam"][name])]
        for pace in paces
        for name, seconds in pace["seconds_per_epoch"].items()
    ]
    return table(["network", "method", "CPU seconds per epoch", "of plain Adam"], rows)
