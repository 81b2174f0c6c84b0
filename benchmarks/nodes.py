"""Nodes of small networks for tables, pruned: ``python benchmarks/nodes.py [seeds] [method ...]``.

One hidden layer, as in card section 4: 100 units for digits, 50 elsewhere; 70 % of the rows are
fitted on (a ninth of them chooses, where a method chooses), the others read once; splits by seed,
stratified. The dense network beside has the same epochs. Each run is a JSON line in
``benchmarks/results/nodes.jsonl``; those that are there are skipped. ``BAYESPARE_DATA`` holds
``uci/``; without it the sets of scikit-learn alone are run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from bayespare import nets, sparsify
from bayespare.data import hold_out
from bayespare.data.batches import from_tensors

BUNDLED = {
    "digits": datasets.load_digits,
    "breast_cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
}
UCI = ("boston", "concrete", "energy", "yacht")


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and target; integers are classes."""
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True)
    folder = Path(os.environ["BAYESPARE_DATA"]) / "uci" / name
    table = np.loadtxt(folder / "data.txt")
    columns = np.loadtxt(folder / "index_features.txt").astype(int)
    return table[:, columns], table[:, int(np.loadtxt(folder / "index_target.txt"))]


def run(name: str, seed: int, method: str) -> dict[str, object]:
    """Fit, prune, compare with the dense network on rows that were not fitted on."""
    x, y = read(name)
    classes = y.dtype.kind == "i"
    parts = train_test_split(
        x, y, test_size=0.3, random_state=seed, stratify=y if classes else None
    )
    mean, std = parts[0].mean(0), parts[0].std(0)
    x_train, x_test = (torch.tensor((p - mean) / np.where(std > 0, std, 1)) for p in parts[:2])
    whole = from_tensors(x_train, torch.tensor(parts[2]))
    test = from_tensors(x_test, torch.tensor(parts[3]), like=whole)
    train, valid = hold_out(whole, 1 / 9, seed=seed)
    width = 100 if name == "digits" else 50
    network = nets.build(f"mlp:{width}", inputs=whole.inputs, outputs=whole.outputs, seed=seed)
    started = time.perf_counter()
    result = sparsify(network, train, valid=valid, test=test, method=method, seed=seed)
    row: dict[str, object] = {"data": name, "seed": seed, "method": method}
    row["seconds"] = time.perf_counter() - started
    score = "accuracy" if classes else "rmse"
    for which in ("dense", "compact"):
        measured = result.metrics[which]
        row[which] = {key: measured[key] for key in (score, "nll", "parameters")}
    row["kept"] = {group: int(line.sum()) for group, line in result.verdict.keep.items()}
    return row


def main() -> None:
    """Run all data sets."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    methods = sys.argv[2:] or ["node-pip", "ss-ghs"]
    path = Path(__file__).with_name("results") / "nodes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(row["data"], row["seed"], row["method"]) for row in map(json.loads, lines)}
    for name in (*BUNDLED, *(UCI if "BAYESPARE_DATA" in os.environ else ())):
        for seed in range(seeds):
            for method in methods:
                if (name, seed, method) not in done:
                    line = json.dumps(run(name, seed, method))
                    with path.open("a") as file:
                        file.write(line + "\n")
                    print(line, flush=True)


if __name__ == "__main__":
    main()
