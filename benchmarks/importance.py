"""Importance and selection where the truth is known: ``python benchmarks/importance.py [seeds]``.

The paper-type experiments of card section 6. E1: the importance of the second of two features goes
from 0 to 1. E2: correlation of the true weights of ten features with their importance. E3 and E4:
the share of features judged rightly, and test errors of the dense network, of the pruned one and of
a new one on the features selected, for more columns (E3) and other signal-to-noise ratios (E4).
Each fit is a JSON line in ``benchmarks/results/importance.jsonl``; those that are there are
skipped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from selection import smooth

from bayespare.sklearn import SparseRegressor

Row = dict[str, object]
HELD_OUT = 2000


def regressor(seed: int, **options: object) -> SparseRegressor:
    """The network of all four experiments."""
    return SparseRegressor(method="node-pip", hidden=(32,), random_state=seed, **options)


def additive(psi: np.ndarray, seed: int, linear: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and a target to which feature j adds ``psi[j]`` standard deviations (E1, E2)."""
    rows = 500 if len(psi) == 2 else 1000
    r = np.random.default_rng(seed)
    x = r.standard_normal((rows, len(psi)))
    parts = x if linear else smooth(x)
    parts = (parts - parts.mean(0)) / parts.std(0)
    return x, parts @ psi + 0.5 * r.standard_normal(rows)


def e1(seed: int, linear: bool, psi: float) -> Row:
    """Importance and probability of the second feature."""
    x, y = additive(np.array([1.0, psi]), seed, linear)
    model = regressor(seed, settings={"prior": 0.5}).fit(x, y)
    return {
        "importance": model.importances_.tolist(),
        "probability": model.inclusion_probabilities_.tolist(),
    }


def e2(seed: int, linear: bool) -> Row:
    """Correlation of importance with the truth."""
    psi = np.random.default_rng(100 + seed).uniform(0, 1, 10)
    x, y = additive(psi, seed, linear)
    model = regressor(seed, settings={"prior": 0.5}).fit(x, y)
    return {
        "correlation": float(np.corrcoef(psi, model.importances_)[0, 1]),
        "selected": int(model.get_support().sum()),
    }


def e34(seed: int, columns: int, alpha: float) -> Row:
    """Selection, and test error (in standard deviations of the signal) before and after."""
    r = np.random.default_rng(seed)
    n = 1000
    x = r.standard_normal((n + HELD_OUT, columns))
    truth = r.random(columns) < 0.2
    signal = smooth(x[:, truth]).sum(1)
    signal -= signal[:n].mean()
    unit = signal[:n].std()
    y = signal + unit / alpha * r.standard_normal(n + HELD_OUT)

    def error(model: SparseRegressor, kept: np.ndarray) -> float:
        rest = y[n:] - model.fit(x[:n, kept], y[:n]).predict(x[n:, kept])
        return float(np.sqrt(np.mean(rest**2)) / unit)

    every = np.ones(columns, dtype=bool)
    pruned = regressor(seed)
    row: Row = {"pruned": error(pruned, every)}
    kept = pruned.get_support()
    row |= {
        "accuracy": float((kept == truth).mean()),
        "selected": int(kept.sum()),
        "true": int(truth.sum()),
        # Nothing is removed: the prior is certain of every node.
        "dense": error(regressor(seed, settings={"prior": 0.999, "draws": 0}), every),
    }
    if kept.any():
        row["refit"] = error(regressor(seed), kept)
    row["oracle_refit"] = error(regressor(seed), truth)
    return row


def cells(seeds: int) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """What is to be fitted: its name, and the fit."""
    for seed in range(seeds):
        for linear in (True, False):
            for psi in (0.0, 0.25, 0.5, 0.75, 1.0):
                name: Row = {"experiment": "E1", "seed": seed, "linear": linear, "psi": psi}
                yield name, lambda seed=seed, linear=linear, psi=psi: e1(seed, linear, psi)
            name = {"experiment": "E2", "seed": seed, "linear": linear}
            yield name, lambda seed=seed, linear=linear: e2(seed, linear)
        for kind, columns, alpha in (
            ("E3", 20, 2.0), ("E3", 50, 2.0), ("E3", 100, 2.0),
            ("E4", 100, 0.5), ("E4", 100, 1.0), ("E4", 100, 4.0),
        ):  # fmt: skip
            name = {"experiment": kind, "seed": seed, "columns": columns, "alpha": alpha}
            yield name, lambda seed=seed, c=columns, a=alpha: e34(seed, c, a)


def main() -> None:
    """Run all experiments."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    path = Path(__file__).with_name("results") / "importance.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = [json.loads(line) for line in lines]
    for name, fit in cells(seeds):
        if any(name.items() <= row.items() for row in done):
            continue
        started = time.perf_counter()
        row = name | fit() | {"seconds": time.perf_counter() - started}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
