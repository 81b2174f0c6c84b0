"""Feature selection where the truth is known: ``python benchmarks/selection.py [seeds] [method]``.

Designs of card section 7.1, columns shuffled: Friedman (F), autoregressive linear (A), exclusive or
(X), sums of smooth functions of uniform (U) and normal (N) inputs, and pure noise (0); N with
inputs that all correlate by .5 (E), and Friedman with a copy of every relevant column (D), which
counts as found if one of the two is. Each fit is a JSON line in
``benchmarks/results/selection_METHOD.jsonl``; those that are there are skipped.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from bayespare.bayes.inclusion import recovery
from bayespare.sklearn import FeatureSelector

DESIGNS = "FAXUN0ED"


def smooth(x: np.ndarray) -> np.ndarray:
    """The paper's generator."""
    return np.exp(np.abs(x)) - 2 * x + np.sin(2 * np.pi * x)


def design(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training inputs, targets and which columns are relevant."""
    r = np.random.default_rng(seed)
    sizes = {"F": (500, 20), "D": (500, 20), "A": (200, 50), "X": (500, 10), "0": (300, 20)}
    n, columns = sizes.get(name, (1000, 50))
    rows, truth = n + 1000, np.zeros(columns, dtype=bool)
    if name in "FD":
        x = r.random((rows, columns))
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
        y = y + 10 * x[:, 3] + 5 * x[:, 4] + r.standard_normal(rows)
        x, truth[:5] = (x - 0.5) * np.sqrt(12), True
    elif name == "A":
        place = np.arange(columns)
        root = np.linalg.cholesky(0.7 ** np.abs(place[:, None] - place))
        x = r.standard_normal((rows, columns)) @ root.T
        where = [0, 4, 8, 12, 16]
        y = x[:, where] @ np.array([2, -1.5, 1, -1, 1.5]) + r.standard_normal(rows)
        truth[where] = True
    elif name == "X":
        x = r.standard_normal((rows, columns))
        y = (x[:, 0] * x[:, 1] > 0).astype(int)
        y = np.where(r.random(rows) < 0.05, 1 - y, y)
        truth[:2] = True
    elif name == "0":
        x, y = r.standard_normal((rows, columns)), r.standard_normal(rows)
    else:
        normal = name in "NE"
        x = r.standard_normal((rows, columns)) if normal else r.uniform(-1, 1, (rows, columns))
        x = (x + r.standard_normal((rows, 1))) / np.sqrt(2) if name == "E" else x
        truth = r.random(columns) < 0.2
        g = smooth(x[:, truth]).sum(1)
        y = 2 * (g - g[:n].mean()) / g[:n].std() + r.standard_normal(rows)
        x = x if normal else x * np.sqrt(3)
    if name == "D":
        x, truth = np.hstack([x, x[:, truth]]), np.hstack([truth, truth[truth]])
    order = np.random.default_rng(1000 + seed).permutation(len(truth))
    return x[:n, order], y[:n], truth[order]


def distinct(
    x: np.ndarray, truth: np.ndarray, scores: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of distinct columns: of copies the best score, and whether one is chosen."""
    _, first, which = np.unique(x, axis=1, return_index=True, return_inverse=True)
    best, kept = np.full(len(first), -np.inf), np.zeros(len(first), dtype=bool)
    np.maximum.at(best, which, scores)
    np.logical_or.at(kept, which, chosen)
    return truth[first], best, kept


def fit(name: str, seed: int, method: str) -> dict[str, object]:
    """Select by one method with its defaults; compare with the truth."""
    x, y, truth = design(name, seed)
    started = time.perf_counter()
    selector = FeatureSelector(method=method, random_state=seed).fit(x, y)
    row: dict[str, object] = {"design": name, "seed": seed, "method": method}
    row["seconds"] = time.perf_counter() - started
    row |= {"selected": int(selector.get_support().sum()), "true": int(truth.sum())}
    if truth.any():
        parts = distinct(x, truth, selector.log_odds_, selector.get_support())
        row |= asdict(recovery(*(torch.tensor(part) for part in parts)))
    return row


def main() -> None:
    """Run all designs."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    method = sys.argv[2] if len(sys.argv) > 2 else "node-pip"
    path = Path(__file__).with_name("results") / f"selection_{method}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(row["design"], row["seed"]) for row in map(json.loads, lines)}
    for name in DESIGNS:
        for seed in range(seeds):
            if (name, seed) not in done:
                line = json.dumps(fit(name, seed, method))
                with path.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
