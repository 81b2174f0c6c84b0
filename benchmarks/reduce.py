"""Post-hoc reduction of ordinarily trained networks: ``python benchmarks/reduce.py [seeds]``.

Fashion-MNIST, dense training of 15 epochs, then :func:`bayespare.reduce` with its defaults; nobody
gives a ratio. Beside it, magnitude at the sparsity that was found, with the same refit of survivors
and the same training afterwards. One JSON file for each network, unit and seed in
``benchmarks/results/reduce``; those that are there are skipped. ``BAYESPARE_DATA`` holds
``fashion-mnist/``.
"""

import copy
import json
import os
import sys
import time
from pathlib import Path

import torch
from records import write
from torch import nn

import bayespare
from bayespare import data, nets
from bayespare.bayes.likelihood import Distilled, honest_probabilities, likelihood_for
from bayespare.data import Batches, Dataset, Splits
from bayespare.measure import load_average
from bayespare.posthoc import ReduceOptions, tune
from bayespare.posthoc.removal import matrices
from bayespare.structure.survivors import update_survivors
from bayespare.training.baseline import train_dense
from bayespare.training.loop import placed, validate
from bayespare.training.schedule import Settings

NETS = ("mlp:400,400", "lenet")
CPU = torch.device("cpu")


def dense(net: str, splits: Splits, seed: int) -> nn.Module:
    """Ordinary training, 15 epochs of Adam."""
    model = nets.build(net, inputs=splits.train.inputs, outputs=10, seed=seed)
    model = placed(model, CPU)
    train_dense(
        model,
        likelihood_for("classification"),
        splits.train,
        epochs=15,
        settings=Settings(256, CPU),
        generator=torch.Generator().manual_seed(seed),
    )
    return model.to(memory_format=torch.contiguous_format).eval()


def accuracy(model: nn.Module, part: Dataset) -> float:
    """Share of the rows that are right."""
    return validate(
        placed(copy.deepcopy(model), CPU),
        likelihood_for("classification"),
        Batches(part, 1024, shuffle=False),
    ).mean


def magnitude(model: nn.Module, splits: Splits, sparsity: float, seed: int) -> float:
    """Test accuracy of global magnitude, everything after the choice of weights alike."""
    options = ReduceOptions(unit="weight", seed=seed)
    weights = matrices(model)
    every = torch.cat([w.abs().flatten() for w in weights.values()])
    limit = every.kthvalue(max(1, round(sparsity * len(every)))).values
    masks = {name: w.abs() > limit for name, w in weights.items()}
    unlabelled = [
        x for x, *_ in Batches(splits.train.subset(torch.arange(6000)), 1000, shuffle=False)
    ]
    small = update_survivors(model, masks, unlabelled).model
    with torch.no_grad():
        said = torch.cat([model(x) for x in splits.train.x.split(1000)])
    teacher = honest_probabilities(said, accuracy(model, splits.valid))
    soft = copy.copy(splits.train)
    object.__setattr__(soft, "y", Distilled.targets(splits.train.y, teacher, 0.5))
    generator = torch.Generator().manual_seed(seed)
    # As many epochs as the rounds had, and those at the end.
    tune(small, masks, Distilled(), soft, options.finetune + 8, options, generator)
    return accuracy(small, splits.test)


def main() -> None:
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    source = Path(os.environ["BAYESPARE_DATA"]) / "fashion-mnist"
    out = Path(__file__).with_name("results") / "reduce"
    for seed in range(seeds):
        for net in NETS:
            paths = {
                unit: out / f"{net.replace(':', '-').replace(',', '-')}_{unit}_s{seed}.json"
                for unit in ("weight", "unit")
            }
            if all(path.exists() for path in paths.values()):
                continue
            splits = data.load(str(source), seed=seed)
            model = dense(net, splits, seed)
            for unit, path in paths.items():
                if path.exists():
                    continue
                started = time.perf_counter()
                result = bayespare.reduce(
                    model,
                    splits.train,
                    valid=splits.valid,
                    test=splits.test,
                    unit=unit,
                    seed=seed,
                    report=lambda row: print(json.dumps(row), file=sys.stderr, flush=True),
                )
                seconds = time.perf_counter() - started
                small, whole = result.metrics["compact"], result.metrics["dense"]
                record = {
                    "net": net,
                    "unit": unit,
                    "seed": seed,
                    "seconds": seconds,
                    "load_average": load_average(),
                    "dense": {
                        k: whole[k] for k in ("accuracy", "nll", "ece", "parameters", "macs")
                    },
                    "compact": {
                        k: small[k]
                        for k in ("accuracy", "nll", "ece", "parameters", "nonzeros", "macs")
                    },
                    "averaged": result.metrics["averaged"],
                    "frontier": [dict(p.summary) for p in result.frontier],
                    "criterion": result.metrics["criterion"],
                }
                if unit == "weight":
                    sparsity = 1 - small["nonzeros"] / whole["parameters"]
                    record["magnitude_accuracy"] = magnitude(model, splits, sparsity, seed)
                write(path, record)
                print(path, result, flush=True)


if __name__ == "__main__":
    main()
