"""Feature selection on real data among probes: ``python benchmarks/probes.py [repeats] [method]``.

Every data set gets a probe for each of its columns, the same values in another order, and its
columns are shuffled (card section 7.1). Five times two folds: selection, standardisation and the
two learners that score it see one fold, the other is read once. madelon brings its own probes: 480
of its 500 columns are noise; the 20 relevant ones are those that correlate with another column.
One JSON file for each data set in ``benchmarks/results/probes``; those that are there are skipped.
``BAYESPARE_DATA`` holds ``features/``; without it the sets of scikit-learn alone are run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import write
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayespare.sklearn import FeatureSelector

BUNDLED = {
    "breast_cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
    "digits": datasets.load_digits,
}
FILES = ("colon", "coil20", "madelon")


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and target."""
    if name in BUNDLED:
        x, y = BUNDLED[name](return_X_y=True)
    else:
        with np.load(Path(os.environ["BAYESPARE_DATA"]) / "features" / f"{name}.npz") as file:
            x, y = file["X"], file["y"]
    return np.asarray(x, dtype=float), np.asarray(y).ravel()


def with_probes(name: str, x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and probes, shuffled; and which of them are real."""
    if name == "madelon":
        with np.errstate(invalid="ignore"):
            related = np.abs(np.corrcoef(x.T)) - np.eye(x.shape[1])
        return x, related.max(0) > 0.5
    r = np.random.default_rng(seed)
    probes = np.column_stack([r.permutation(column) for column in x.T])
    order = r.permutation(2 * x.shape[1])
    real = np.arange(2 * x.shape[1]) < x.shape[1]
    return np.column_stack([x, probes])[:, order], real[order]


def learners(classes: bool) -> dict[str, Any]:
    """What scores a selection; none has anything to do with networks."""
    if classes:
        return {
            "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)),
            "forest": RandomForestClassifier(300, random_state=0),
            "neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(7)),
        }
    return {
        "linear": make_pipeline(StandardScaler(), Ridge()),
        "forest": RandomForestRegressor(300, random_state=0),
    }


def fold(
    x: np.ndarray, y: np.ndarray, real: np.ndarray, rows: tuple, classes: bool, method: str
) -> dict:
    """Select on one fold, score on the other."""
    train, test = rows
    scale = StandardScaler().fit(x[train])
    started = time.perf_counter()
    task = "classification" if classes else "regression"
    selector = FeatureSelector(task=task, method=method, random_state=0)
    kept = selector.fit(scale.transform(x[train]), y[train]).get_support()
    row: dict = {"seconds": time.perf_counter() - started}
    row |= {"real_kept": int((kept & real).sum()), "probes_kept": int((kept & ~real).sum())}
    sets = {"all": np.ones_like(kept), "real": real, "selected": kept}
    for name, learner in learners(classes).items():
        row[name] = {
            which: float(learner.fit(x[train][:, c], y[train]).score(x[test][:, c], y[test]))
            for which, c in sets.items()
            if c.any()
        }
    return row


def main() -> None:
    """Run all data sets."""
    torch.set_num_threads(1)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    method = sys.argv[2] if len(sys.argv) > 2 else "node-pip"
    out = Path(__file__).with_name("results") / "probes"
    for name in (*BUNDLED, *(FILES if "BAYESPARE_DATA" in os.environ else ())):
        path = out / f"{name}_{method}.json"
        if path.exists():
            continue
        plain, y = read(name)
        classes = name != "diabetes"
        folds = []
        for repeat in range(repeats):
            x, real = with_probes(name, plain, repeat)
            split = (StratifiedKFold if classes else KFold)(2, shuffle=True, random_state=repeat)
            for rows in split.split(x, y):
                folds.append(fold(x, y, real, rows, classes, method))
                print(name, json.dumps(folds[-1]), flush=True)
        record = {"data": name, "method": method, "rows": len(y), "real": int(real.sum())}
        record |= {"probes": int((~real).sum()), "folds": folds}
        write(path, record)


if __name__ == "__main__":
    main()
