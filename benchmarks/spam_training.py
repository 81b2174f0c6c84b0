"""The trainings that the curves of ``spam_curves.py`` start from, kept in ``bench-results/spam``.

``python benchmarks/spam_training.py [seeds]``. Fashion-MNIST, the LeNet of arXiv 2402.15978 (60,170
parameters), 30 epochs of Adam, batch 128, the rate falling from 2e-3 to zero; 54,000 images train
and 6,000 choose. SpaM: after every epoch from the third on, curvature by sampled labels on 10,000
images, then the precisions of highest evidence. MAP: one precision for all, 1 as published,
30 or 300.
"""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayespare import data, nets
from bayespare.bayes.curvature import Curvature, curvature
from bayespare.bayes.likelihood import likelihood_for
from bayespare.bayes.marginal import Laplace, Prior, PriorKind, learn
from bayespare.data import Batches, Dataset, Splits
from bayespare.training.loop import cosine, placed, run_epoch

LENET = "lenet:act=relu,pool=max,kernel=3"
KINDS: tuple[str, ...] = ("parameter", "map", "unit", "map30", "map300")
PRIORS: Mapping[str, tuple[PriorKind, float]] = {
    "parameter": ("parameter", 1.0),
    "unit": ("unit", 1.0),
    "map": ("scalar", 1.0),
    "map30": ("scalar", 30.0),
    "map300": ("scalar", 300.0),
}


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

    epochs: int = 30
    batch: int = 128
    rate: float = 2e-3
    burn_in: int = 3
    samples: int = 10_000


class Pull:
    """What a prior adds to the mean loss."""

    def __init__(self, prior: Prior, parameters: Mapping[str, Tensor], examples: int) -> None:
        self.prior, self.parameters, self.examples = prior, parameters, examples

    def penalty(self) -> Tensor:
        """Nats per example."""
        return self.prior.penalty(self.parameters) / self.examples


def train(
    model: nn.Module, train: Dataset, kind: str, seed: int, recipe: Recipe
) -> tuple[nn.Module, Prior]:
    """Train a network in place, with the precisions of a prior learnt unless it is MAP's."""
    model = placed(model, torch.device("cpu"))
    parameters = dict(model.named_parameters())
    shared, start = PRIORS[kind]
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
            rate=lambda step, e=epoch: cosine((e + step / len(batches)) / recipe.epochs),
        )
        if not kind.startswith("map") and epoch + 1 >= recipe.burn_in:
            learn(prior, posterior(model, train, generator, recipe.samples))
    return model.to(memory_format=torch.contiguous_format).eval(), prior


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


def lenet(kind: str, seed: int, splits: Splits) -> tuple[nn.Module, Prior]:
    """A LeNet trained with a prior: from its file, or now."""
    model = nets.build(LENET, inputs=(1, 28, 28), outputs=10, seed=seed)
    prior = Prior(dict(model.named_parameters()), *PRIORS[kind])
    folder = Path(__file__).parents[1] / "bench-results" / "spam"
    path = folder / f"lenet_{kind}_s{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        model, prior = train(model, splits.train, kind, seed, Recipe())
        tensors = {f"model/{n}": v for n, v in model.state_dict().items()}
        tensors |= {f"prior/{n}": v for n, v in prior.state_dict().items()}
        aside = path.with_suffix(".part")
        save_file(tensors, aside)
        aside.rename(path)
        print(path.name, f"{time.perf_counter() - started:.0f} s", flush=True)
    tensors = load_file(path)
    for name, module in (("model/", model), ("prior/", prior)):
        own = {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
        module.load_state_dict(own)
    return model.eval(), prior


def fashion(seed: int) -> Splits:
    """Fashion-MNIST from ``BAYESPARE_DATA``."""
    return data.load(str(Path(os.environ["BAYESPARE_DATA"]) / "fashion-mnist"), seed=seed)


def main() -> None:
    """All trainings, the ones that matter most first."""
    torch.set_num_threads(1)
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    for kinds in (KINDS[:3], KINDS[3:]):
        for seed in seeds:
            for kind in kinds:
                lenet(kind, seed, fashion(seed))


if __name__ == "__main__":
    main()
