"""The trainings that the curves of ``spam_curves.py`` start from, kept in ``bench-results/spam``.

``python benchmarks/spam_training.py [seeds]``. Fashion-MNIST, the LeNet of arXiv 2402.15978 (60,170
parameters), 100 epochs of Adam, batch 128, the rate falling from 2e-3 to zero; 54,000 images train
and 6,000 choose. ``parameter`` and ``unit``: after every epoch from the third on, curvature by
sampled labels on 10,000 images, then the precisions of highest evidence for each weight, or each
input and output. ``map``: one precision for all, 1 as published. ``tuned``: that of two, 1 and 30,
whose network of the first seed has the lowest NLL on its validation images, noted in
``benchmarks/results/spam_curves/decay_e100.json``.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from records import write
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayespare import data, nets
from bayespare.bayes.curvature import Curvature, curvature
from bayespare.bayes.likelihood import likelihood_for
from bayespare.bayes.marginal import Laplace, Prior, PriorKind, learn
from bayespare.data import Batches, Dataset, Splits
from bayespare.training.loop import falling, placed, run_epoch, validate

LENET = "lenet:act=relu,pool=max,kernel=3"
PRIORS: Mapping[str, PriorKind] = {
    "parameter": "parameter",
    "unit": "unit",
    "tuned": "scalar",
    "map": "scalar",
}
DECAYS = (1.0, 30.0)
"""Precisions that ``tuned`` chooses from."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the data.
        batch: Examples a step.
        rate: Where Adam's learning rate starts; it falls to zero along a cosine.
        burn_in: The epoch after which precisions are learnt first.
        samples: Training examples that the curvature is measured on.
    """

    epochs: int = 100
    batch: int = 128
    rate: float = 2e-3
    burn_in: int = 3
    samples: int = 10_000


CHOICE = Path(__file__).with_name("results") / "spam_curves" / f"decay_e{Recipe().epochs}.json"


class Pull:
    """What a prior adds to the mean loss; it draws nothing."""

    generator = None

    def __init__(self, prior: Prior, parameters: Mapping[str, Tensor], examples: int) -> None:
        self.prior, self.parameters, self.examples = prior, parameters, examples

    def penalty(self) -> Tensor:
        """Nats per example."""
        return self.prior.penalty(self.parameters) / self.examples


def train(
    model: nn.Module, train: Dataset, shared: PriorKind, start: float, seed: int, recipe: Recipe
) -> nn.Module:
    """Train a network in place; precisions that start at one value are learnt but where all share.

    Args:
        model: The network.
        train: Training data.
        shared: Who shares a precision; ``scalar``: all, and it stays what it is.
        start: Precision to begin with.
        seed: Of the batches' order and the sampled labels.
        recipe: How long and how fast.
    """
    model = placed(model, torch.device("cpu"))
    parameters = dict(model.named_parameters())
    prior = Prior(parameters, shared, start)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(
        [{"params": list(parameters.values()), "base_lr": recipe.rate}], fused=True
    )
    batches = Batches(train, recipe.batch, generator=generator, shuffle=True, drop_last=True)
    likelihood = likelihood_for(train.task)
    for epoch in range(recipe.epochs):
        run_epoch(
            model,
            likelihood,
            optimizer,
            batches,
            method=Pull(prior, parameters, len(train)),
            rate=falling(epoch, recipe.epochs, len(batches)),
        )
        if shared != "scalar" and epoch + 1 >= recipe.burn_in:
            learn(prior, posterior(model, train, generator, recipe.samples))
    return model.to(memory_format=torch.contiguous_format).eval()


def posterior(
    model: nn.Module, train: Dataset, generator: torch.Generator, samples: int
) -> Laplace:
    """Diagonal Laplace at a model, its curvature measured on some of the data, for all of them."""
    samples = min(samples, len(train))
    order = torch.randperm(len(train), generator=generator)[:samples]
    some = Batches(train.subset(order), min(1000, samples), shuffle=False)
    batches = [(x, y) for x, y, *_ in some]
    found = curvature(model, likelihood_for(train.task), batches, generator=generator)
    bends = {name: bend * (len(train) / samples) for name, bend in found.diagonal.items()}
    return Laplace(dict(model.named_parameters()), Curvature(bends, {}, len(train)))


def lenet(kind: str, seed: int, splits: Splits) -> nn.Module:
    """A LeNet trained with a prior: from its file, or now."""
    return _kept(PRIORS[kind], tuned_decay() if kind == "tuned" else 1.0, seed, splits)


def tuned_decay() -> float:
    """The precision of MAP's prior that validation chooses, at the first seed."""
    if not CHOICE.exists():
        splits = fashion(0)
        held = Batches(splits.valid, 1000, shuffle=False)
        found = {
            decay: validate(
                _kept("scalar", decay, 0, splits), likelihood_for("classification"), held
            ).nll
            for decay in DECAYS
        }
        record = {"valid_nll": found, "best": min(found, key=lambda decay: found[decay])}
        write(CHOICE, record)
    return float(json.loads(CHOICE.read_text())["best"])


def _kept(shared: PriorKind, start: float, seed: int, splits: Splits) -> nn.Module:
    model = nets.build(LENET, inputs=(1, 28, 28), outputs=10, seed=seed)
    folder = Path(__file__).parents[1] / "bench-results" / "spam"
    path = folder / f"lenet_{shared}{start:g}_e{Recipe().epochs}_s{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        model = train(model, splits.train, shared, start, seed, Recipe())
        aside = path.with_suffix(".part")
        save_file(model.state_dict(), aside)
        aside.rename(path)
        print(path.name, f"{time.perf_counter() - started:.0f} s", flush=True)
    model.load_state_dict(load_file(path))
    return model.eval()


def fashion(seed: int) -> Splits:
    """Fashion-MNIST from ``BAYESPARE_DATA``."""
    return data.load(str(Path(os.environ["BAYESPARE_DATA"]) / "fashion-mnist"), seed=seed)


def main() -> None:
    """All trainings."""
    torch.set_num_threads(1)
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        for kind in PRIORS:
            lenet(kind, seed, fashion(seed))


if __name__ == "__main__":
    main()
