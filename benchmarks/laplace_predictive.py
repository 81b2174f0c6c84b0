"""How a Laplace posterior predicts best: ``python benchmarks/laplace_predictive.py [seeds]``.

Networks that ``spam`` made smaller (digits, MLP 128; Fashion-MNIST, MLP 100 on 6,000 images, where
``BAYESPARE_DATA`` holds it) with their Laplace posterior at precisions per layer. Beside the mean
alone: draws of networks, draws of the outputs of the linearised network, and its probit form. Each
with a diagonal as it is, with its spread reduced by the factor that is best on validation data, and
with Kronecker factors; and the mean with the temperature that is best there. Validation chooses,
test is read once. One JSON file for each data set and seed in ``benchmarks/results/predictive``;
what is there is skipped.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from records import write
from torch import nn

import bayespare
from bayespare import data, nets
from bayespare.assess import narrowing
from bayespare.bayes.curvature import curvature
from bayespare.bayes.curvature.passes import Structure
from bayespare.bayes.marginal import Laplace, Prior, learn
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.data import Dataset
from bayespare.measure import (
    ClassPrediction,
    best_temperature,
    evaluate,
    load_average,
    predict,
    scaled_log_probs,
)

OUT = Path(__file__).parent / "results" / "predictive"
WAYS = ("draws", "linear", "probit")


def main() -> None:
    """All that are missing."""
    torch.set_num_threads(1)
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        for name in ("digits", "fashion-mnist"):
            out = OUT / f"{name}_s{seed}.json"
            if out.exists() or (name != "digits" and "BAYESPARE_DATA" not in os.environ):
                continue
            record = run(name, seed)
            write(out, record)
            print(out.stem, json.dumps(record["test"], indent=1), flush=True)


def run(name: str, seed: int) -> dict[str, Any]:
    """One network, all ways to predict."""
    train, valid, test = parts(name, seed)
    spec, epochs = ("mlp:128", 60) if name == "digits" else ("mlp:100", 10)
    network = nets.build(spec, inputs=train.inputs, outputs=train.outputs, seed=seed)
    options = {"method": "spam", "epochs": epochs, "seed": seed, "baseline": False}
    model = bayespare.sparsify(network, train, valid=valid, **options).model.cpu()
    wide = posterior_of(model, train, seed, "diag")
    kronecker = posterior_of(model, train, seed, "kfac")
    record: dict[str, Any] = {"name": name, "seed": seed, "load_average": load_average()}
    record["parameters"] = sum(p.numel() for p in model.parameters())
    for part, rows in (("valid", valid), ("test", test)):
        mean = predict(model, rows.x, task="classification").log_probs
        if part == "valid":
            temperature = best_temperature(mean, rows.y)
            ways = {how: replace(wide, predictive=how) for how in WAYS}
            fitted = {how: w.scaled(narrowing(w, model, valid, None)) for how, w in ways.items()}
        found = {
            "mean": scored(mean, rows),
            "temperature": scored(scaled_log_probs(mean, temperature), rows),
        }
        for how in WAYS:
            for words, posterior in (
                (how, fitted[how]),
                (f"{how}, as it is", replace(wide, predictive=how)),
                (f"{how}, Kronecker, as it is", replace(kronecker, predictive=how)),
            ):
                said = predict(model, rows.x, task="classification", posterior=posterior)
                found[words] = scored(said.log_probs, rows)
        record[part] = found
    return record


def parts(name: str, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Train, validation and test data; fewer of Fashion-MNIST, for the Jacobians' sake."""
    if name == "digits":
        splits = data.load("digits", seed=seed)
        return splits.train, splits.valid, splits.test
    splits = data.load(str(Path(os.environ["BAYESPARE_DATA"]) / name), seed=seed)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    return (
        splits.train.subset(order[:6000]),
        splits.valid.subset(torch.arange(500)),
        splits.test.subset(torch.arange(1500)),
    )


def posterior_of(
    model: nn.Module, train: Dataset, seed: int, structure: Structure
) -> GaussianPosterior:
    """Laplace, precisions per layer of highest evidence."""
    generator = torch.Generator().manual_seed(seed)
    batches = list(zip(train.x.split(1000), train.y.split(1000), strict=True))
    parameters = dict(model.named_parameters())
    bends = curvature(model, "classification", batches, structure=structure, generator=generator)
    found = Laplace(parameters, bends)
    prior = Prior(parameters, "layer")
    learn(prior, found, steps=30)
    return found.posterior(prior)


def scored(log_probs: torch.Tensor, rows: Dataset) -> dict[str, float]:
    """NLL, ECE and accuracy."""
    found = evaluate(ClassPrediction(log_probs, torch.zeros(len(rows))), rows.y)
    return {key: found[key] for key in ("nll", "ece", "accuracy")}


if __name__ == "__main__":
    main()
