"""Compact against dense Laplace networks on UCI regressions: ``python benchmarks/uci.py [splits]``.

The first of Gal's splits of five small tables (``BAYESPARE_DATA`` holds ``uci/``), a tenth of the
training rows held out, MLP 50, the epochs that ``spam`` takes by default. ``spam``: with its
defaults. ``MAP``: dense, trained as usual. ``evidence``: dense, with a prior precision per layer
and a noise that the Laplace evidence sets every fifth epoch (arXiv 2104.04975). All three then get
the same posterior: diagonal Laplace of the linearised network, one precision per layer of highest
evidence, noise and reduced spread from validation rows. Test rows are read once. One JSON file for
each table and split in ``benchmarks/results/uci``; what is there is skipped.
"""

import copy
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import write
from spam_training import Pull
from torch import nn

import bayespare
from bayespare import nets
from bayespare.assess import narrowing
from bayespare.bayes.likelihood import Gaussian
from bayespare.bayes.marginal import Prior, laplace, learn
from bayespare.data import Batches, Dataset, hold_out
from bayespare.data.batches import from_tensors
from bayespare.measure import evaluate, predict
from bayespare.options import Options
from bayespare.structure import count
from bayespare.training.loop import cosine, run_epoch, validate

TABLES = ("boston", "concrete", "energy", "wine", "yacht")
OUT = Path(__file__).parent / "results" / "uci"
RATE = 5e-3
"""Of all: at the default of 1e-3 networks this small are far from their best in these epochs."""
EVERY = 5
"""Epochs between updates of ``evidence``."""


def main() -> None:
    """All that are missing, one split of every table after the other."""
    torch.set_num_threads(1)
    for split in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        for name in TABLES:
            path = OUT / f"{name}_s{split}.json"
            if path.exists():
                continue
            record = run(name, split)
            write(path, record)
            print(path.stem, json.dumps(record), flush=True)


def run(name: str, split: int) -> dict[str, Any]:
    """All three networks of one split."""
    train, valid, test = parts(name, split)
    network = nets.build("mlp:50", inputs=train.inputs, outputs=1, seed=split)
    record: dict[str, Any] = {"name": name, "split": split, "rows": len(train)}
    for training in (spam, usual, evidence):
        started = time.process_time()
        model = training(copy.deepcopy(network), train, valid, split)
        seconds = time.process_time() - started
        record[training.__name__] = scored(model, train, valid, test) | {"seconds": seconds}
    return record


def parts(name: str, split: int) -> tuple[Dataset, Dataset, Dataset]:
    """Columns and target standardised by the training rows, those held out among them."""
    folder = Path(os.environ["BAYESPARE_DATA"]) / "uci" / name
    table = np.loadtxt(folder / "data.txt")
    x = table[:, np.loadtxt(folder / "index_features.txt").astype(int)]
    y = table[:, int(np.loadtxt(folder / "index_target.txt"))]
    rows = [np.loadtxt(folder / f"index_{p}_{split}.txt").astype(int) for p in ("train", "test")]
    mean, std = x[rows[0]].mean(0), x[rows[0]].std(0)
    inputs = [torch.tensor((x[r] - mean) / np.where(std > 0, std, 1)) for r in rows]
    whole = from_tensors(inputs[0], torch.tensor(y[rows[0]]))
    test = from_tensors(inputs[1], torch.tensor(y[rows[1]]), like=whole)
    return *hold_out(whole, seed=split), test


def spam(network: nn.Module, train: Dataset, valid: Dataset, seed: int) -> nn.Module:
    """The compact network that ``spam`` chooses."""
    options = {"method": "spam", "seed": seed, "baseline": False, "lr": RATE}
    return bayespare.sparsify(network, train, valid=valid, **options).model.cpu()


def usual(network: nn.Module, train: Dataset, valid: Dataset, seed: int) -> nn.Module:
    """Dense, without a prior."""
    return dense(network, train, seed, learning=False)


def evidence(network: nn.Module, train: Dataset, valid: Dataset, seed: int) -> nn.Module:
    """Dense, at precisions and a noise of highest evidence."""
    return dense(network, train, seed, learning=True)


def dense(network: nn.Module, train: Dataset, seed: int, *, learning: bool) -> nn.Module:
    """Adam, its rate falling to zero, for as many epochs as ``spam`` has."""
    options = Options(method="spam")
    epochs, batch = options.epochs_for(len(train)), options.batch_for(len(train))
    likelihood = Gaussian()
    parameters = dict(network.named_parameters())
    prior = Prior(parameters, "layer", 1.0 if learning else 1e-6)
    groups = [{"params": list(parameters.values()), "base_lr": RATE}]
    if not learning:  # the noise by gradient, as usual
        groups.append({"params": [likelihood.log_noise], "base_lr": 10 * RATE})
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(train, batch, generator=generator, shuffle=True, drop_last=True)
    for epoch in range(epochs):
        run_epoch(
            network,
            likelihood,
            optimizer,
            batches,
            method=Pull(prior, parameters, len(train)) if learning else None,
            rate=lambda step, e=epoch: cosine((e + step / len(batches)) / epochs),
        )
        if learning and epoch % EVERY == EVERY - 1:
            found = laplace(network, likelihood, [(train.x, train.y)], kind="ggn")
            learn(prior, found, steps=5, log_noise=likelihood.log_noise)
    return network


def scored(model: nn.Module, train: Dataset, valid: Dataset, test: Dataset) -> dict[str, Any]:
    """Test RMSE and NLL under the posterior that all networks get, in the target's units."""
    model.eval()
    likelihood = Gaussian()
    held = validate(model, likelihood, Batches(valid, 1024, shuffle=False))
    with torch.no_grad():
        likelihood.log_noise.fill_(0.5 * math.log(-held.mean))
    found = laplace(model, likelihood, [(train.x, train.y)], kind="ggn")
    prior = Prior(dict(model.named_parameters()), "layer")
    learn(prior, found, steps=30)
    posterior = replace(found.posterior(prior), predictive="linear")
    noise = likelihood.noise_std
    posterior = posterior.scaled(narrowing(posterior, model, valid, noise))
    mean, std = train.target_scale
    said = {
        key: predict(
            model,
            test.x,
            task="regression",
            posterior=spread,
            noise_std=noise,
            target_scale=train.target_scale,
        )
        for key, spread in (("laplace", posterior), ("mean", None))
    }
    scores = {key: evaluate(value, test.y.double() * std + mean) for key, value in said.items()}
    return {
        "parameters": count(model, train.x[:1]).parameters,
        "rmse": scores["laplace"]["rmse"],
        "nll": scores["laplace"]["nll"],
        "nll_without_spread": scores["mean"]["nll"],
    }


if __name__ == "__main__":
    main()
