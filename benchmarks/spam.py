"""What marginal-likelihood training does for pruning: ``python benchmarks/spam.py [name] [seeds]``.

``digits``: those bundled with scikit-learn, an MLP 64-128-10, batch 128: the small comparison of
card section 14. ``cancer``: breast cancer, also bundled, an MLP 30-100-100-2 and the split of the
SpaM paper (arXiv 2402.15978), batch 64, columns standardised (the authors leave them as they are).
Adam at 1e-3, 300 epochs, exact curvature every fifth epoch from the tenth on; diagonal, or (only of
``cancer``, a precision for each weight) Kronecker factors. Weights are pruned at once, by rank over
the whole network, and not trained again; units are removed by the sum over their rows, biases and
outgoing columns. MAP has one precision for all weights: one on digits; the best of five on a fifth
of the training rows, which then are trained on as well, on breast cancer. The test rows are read
once, at the end. One JSON file for each seed in ``benchmarks/results/spam``.
"""

import copy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from records import write
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from bayespare.bayes import scores
from bayespare.bayes.curvature.passes import Structure
from bayespare.bayes.marginal import Laplace, Prior, PriorKind, laplace, learn

EPOCHS, EVERY, BURN_IN = 300, 5, 10
WEIGHTS = (0.7, 0.8, 0.9, 0.95, 0.975, 0.99)
UNITS = (0.5, 0.75, 0.875)


@dataclass(frozen=True)
class Rows:
    """Inputs and labels, to train on and to test on."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        prior: Who shares a precision; None: all, and it is not learnt.
        structure: Of the curvature.
        precision: That the prior starts with.
    """

    prior: PriorKind | None = None
    structure: Structure = "diag"
    precision: float = 1.0


@dataclass(frozen=True)
class Task:
    """Data, a network and how it is trained.

    Attributes:
        rows: Makes the data.
        widths: Of the network's layers, inputs and outputs included.
        batch: Rows a step.
        precisions: Of MAP's prior, validation chooses; one is not chosen from.
        trainings: By name, beside MAP's.
    """

    rows: Callable[[], Rows]
    widths: tuple[int, ...]
    batch: int
    precisions: tuple[float, ...]
    trainings: Mapping[str, Training]


def digits() -> Rows:
    """Pixels in [0, 1]; a quarter for the test, the same for all seeds."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.25, random_state=0, stratify=y)
    train_x, test_x, train_y, test_y = (torch.tensor(part) for part in parts)
    return Rows(train_x.float(), train_y, test_x.float(), test_y)


def cancer() -> Rows:
    """The authors' fifth for the test; columns standardised by the training rows."""
    x, y = load_breast_cancer(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.2, random_state=42)
    train_x, test_x, train_y, test_y = (torch.tensor(part) for part in parts)
    mean, std = train_x.mean(0), train_x.std(0)
    return Rows(((train_x - mean) / std).float(), train_y, ((test_x - mean) / std).float(), test_y)


DIAGONAL: Mapping[str, Training] = {"parameter": Training("parameter"), "unit": Training("unit")}
TASKS = {
    "digits": Task(digits, (64, 128, 10), 128, (1.0,), DIAGONAL),
    "cancer": Task(
        cancer,
        (30, 100, 100, 2),
        64,
        (0.1, 0.3, 1.0, 3.0, 10.0),
        {**DIAGONAL, "kfac_parameter": Training("parameter", "kfac")},
    ),
}


def network(widths: tuple[int, ...]) -> nn.Sequential:
    """An MLP."""
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def train(
    task: Task, training: Training, x: Tensor, y: Tensor, seed: int
) -> tuple[nn.Sequential, Prior, Laplace]:
    """Train with learnt precisions, or at the mode under one that is given."""
    torch.manual_seed(seed)
    model = network(task.widths)
    parameters = dict(model.named_parameters())
    prior = Prior(parameters, training.prior or "scalar", training.precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def found() -> Laplace:
        structure = training.structure
        return laplace(model, "classification", [(x, y)], kind="ggn", structure=structure)

    for epoch in range(1, EPOCHS + 1):
        for index in torch.randperm(len(x)).split(task.batch):
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            loss = loss + prior.penalty(parameters) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if training.prior is not None and epoch >= BURN_IN and epoch % EVERY == 0:
            learn(prior, found(), steps=20)
    return model, prior, found()


def best_precision(task: Task, rows: Rows, seed: int) -> float:
    """MAP's precision of the lowest NLL on a fifth of the training rows."""
    if len(task.precisions) == 1:
        return task.precisions[0]
    order = torch.randperm(len(rows.x), generator=torch.Generator().manual_seed(seed))
    held, used = order[: len(order) // 5], order[len(order) // 5 :]

    def loss(precision: float) -> float:
        training = Training(precision=precision)
        model, *_ = train(task, training, rows.x[used], rows.y[used], seed)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(rows.x[held]), rows.y[held]))

    return min(task.precisions, key=loss)


def accuracy(model: nn.Module, rows: Rows) -> float:
    """On the test rows."""
    with torch.no_grad():
        return float((model(rows.test_x).argmax(1) == rows.test_y).double().mean())


def unstructured(model: nn.Module, ranked: dict[str, Tensor], rows: Rows) -> dict[str, float]:
    """Accuracy with so many of all parameters at zero, the lowest scores first."""
    found = {}
    for share in WEIGHTS:
        pruned = copy.deepcopy(model)
        scores.apply_masks(pruned, scores.masks(ranked, share))
        found[f"{100 * share:g}"] = accuracy(pruned, rows)
    return found


def structured(model: nn.Sequential, ranked: dict[str, Tensor], rows: Rows) -> dict[str, float]:
    """Accuracy without so many units of every hidden layer: lowest sums over all they own."""
    found = {}
    for share in UNITS:
        pruned = copy.deepcopy(model)
        for layer in range(0, len(model) - 1, 2):
            line = scores.line_sums(ranked[f"{layer}.weight"], 0) + ranked[f"{layer}.bias"].double()
            line = line + scores.line_sums(ranked[f"{layer + 2}.weight"], 1)
            gone = line.argsort()[: round(share * len(line))]
            with torch.no_grad():
                pruned[layer + 2].weight[:, gone] = 0
        found[f"{100 * share:g}"] = accuracy(pruned, rows)
    return found


def run(task: Task, seed: int) -> dict[str, object]:
    """All trainings and all criteria."""
    rows = task.rows()
    record: dict[str, object] = {"seed": seed}
    for name, training in {"map": Training(), **task.trainings}.items():
        started = time.perf_counter()
        if name == "map":
            training = Training(precision=best_precision(task, rows, seed))
        model, prior, found = train(task, training, rows.x, rows.y, seed)
        seconds = time.perf_counter() - started
        parameters = dict(model.named_parameters())
        whole = [(rows.x, rows.y)]
        criteria = {
            "opd": scores.opd(found, prior),
            "magnitude": scores.magnitude(parameters),
            "snip": scores.snip(model, "classification", whole),
            "grasp": scores.grasp(model, "classification", whole),
            "taylor": scores.taylor(model, "classification", whole),
            "random": scores.random(parameters, torch.Generator().manual_seed(seed)),
        }
        record[name] = {
            "precision": training.precision,
            "dense": accuracy(model, rows),
            "seconds": seconds,
            "evidence": float(found.log_evidence(prior).detach()) / found.examples,
            "unstructured": {c: unstructured(model, r, rows) for c, r in criteria.items()},
            "structured": {
                "opd": structured(model, criteria["opd"], rows),
                "l2": structured(model, scores.squares(parameters), rows),
            },
        }
    return record


def main() -> None:
    """All seeds that are missing."""
    torch.set_num_threads(1)
    given = sys.argv[1:]
    names = [name for name in given if not name.isdigit()] or list(TASKS)
    seeds = next((int(word) for word in given if word.isdigit()), 5)
    out = Path(__file__).with_name("results") / "spam"
    for name in names:
        for seed in range(seeds):
            path = out / f"{name}_s{seed}.json"
            if path.exists():
                continue
            write(path, run(TASKS[name], seed))
            print(path, flush=True)


if __name__ == "__main__":
    main()
