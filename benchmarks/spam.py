"""What marginal-likelihood training does for pruning: ``python benchmarks/spam.py [seeds]``.

The digits bundled with scikit-learn, an MLP 64-128-10, Adam at 1e-3, batch 128, 300 epochs, exact
diagonal curvature every fifth epoch from the tenth on: the small comparison of the SpaM paper's
kind (arXiv 2402.15978), card section 14. Weights are pruned at once, by rank over the whole
network, and not trained again; units are removed by the sum of their rows. MAP is the same with
every precision at one. One JSON file for each seed in ``benchmarks/results/spam``.
"""

import copy
import json
import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from bayespare.bayes import scores
from bayespare.bayes.marginal import Laplace, Prior, PriorKind, laplace, learn

EPOCHS, BATCH, EVERY, BURN_IN = 300, 128, 5, 10
WEIGHTS = (0.7, 0.8, 0.9, 0.95, 0.975, 0.99)
UNITS = (0.5, 0.75, 0.875)

Batches = list[tuple[Tensor, Tensor]]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels in [0, 1]; a quarter for the test, the same for all seeds."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.25, random_state=0, stratify=y)
    train_x, test_x, train_y, test_y = (torch.tensor(part) for part in parts)
    return train_x.float(), train_y, test_x.float(), test_y


def train(kind: PriorKind | None, seed: int) -> tuple[nn.Module, Prior, Laplace, float]:
    """Train with learnt precisions, or (None) at the mode under precisions of one."""
    x, y, *_ = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    parameters = dict(model.named_parameters())
    prior = Prior(parameters, kind or "scalar")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    whole: Batches = [(x, y)]
    started = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(x))
        for index in order.split(BATCH):
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            loss = loss + prior.penalty(parameters) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if kind is not None and epoch >= BURN_IN and epoch % EVERY == 0:
            learn(prior, laplace(model, "classification", whole, kind="ggn"), steps=20)
    seconds = time.perf_counter() - started
    return model, prior, laplace(model, "classification", whole, kind="ggn"), seconds


def accuracy(model: nn.Module) -> float:
    """On the test part."""
    *_, x, y = digits()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def unstructured(model: nn.Module, ranked: dict[str, Tensor]) -> dict[str, float]:
    """Accuracy with so many of all parameters at zero, the lowest scores first."""
    found = {}
    for share in WEIGHTS:
        pruned = copy.deepcopy(model)
        scores.apply_masks(pruned, scores.masks(ranked, share))
        found[f"{100 * share:g}"] = accuracy(pruned)
    return found


def structured(model: nn.Module, ranked: dict[str, Tensor]) -> dict[str, float]:
    """Accuracy without so many hidden units: lowest sum over row, bias and outgoing column."""
    line = scores.line_sums(ranked["0.weight"], 0) + ranked["0.bias"].double()
    line = line + scores.line_sums(ranked["2.weight"], 1)
    found = {}
    for share in UNITS:
        gone = line.argsort()[: round(share * len(line))]
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            pruned[2].weight[:, gone] = 0
        found[f"{100 * share:g}"] = accuracy(pruned)
    return found


def run(seed: int) -> dict[str, object]:
    """Both trainings and all criteria."""
    x, y, *_ = digits()
    whole: Batches = [(x, y)]
    record: dict[str, object] = {"seed": seed}
    kinds: dict[str, PriorKind | None] = {"map": None, "parameter": "parameter", "unit": "unit"}
    for name, kind in kinds.items():
        model, prior, found, seconds = train(kind, seed)
        criteria = {
            "opd": scores.opd(found, prior),
            "magnitude": scores.magnitude(dict(model.named_parameters())),
            "snip": scores.snip(model, "classification", whole),
            "grasp": scores.grasp(model, "classification", whole),
            "taylor": scores.taylor(model, "classification", whole),
            "random": scores.random(
                dict(model.named_parameters()), torch.Generator().manual_seed(seed)
            ),
        }
        record[name] = {
            "dense": accuracy(model),
            "seconds": seconds,
            "evidence": float(found.log_evidence(prior).detach()) / found.examples,
            "unstructured": {c: unstructured(model, ranked) for c, ranked in criteria.items()},
            "structured": {
                "opd": structured(model, criteria["opd"]),
                "l2": structured(model, scores.squares(dict(model.named_parameters()))),
            },
        }
    return record


def main() -> None:
    """All seeds."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    out = Path(__file__).with_name("results") / "spam"
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        path = out / f"digits_s{seed}.json"
        if path.exists():
            continue
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(run(seed), indent=1) + "\n")
        aside.rename(path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
