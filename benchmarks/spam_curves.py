"""Accuracy against sparsity after marginal-likelihood training: ``spam_curves.py [seeds]``.

Fashion-MNIST, the LeNets of ``spam_training.py`` (those without a file are trained first), every
criterion, single weights (20 to 99 % of all parameters at zero, ranked over the whole network) and
filters and hidden units (the same share of every layer). With and without the refit of survivors,
with and without 10 epochs of training afterwards; training data towards the labels, masks in force,
at the rate of ``prune``.
The test data are read once for each network. One JSON file for each training, unit, criterion and
treatment in ``benchmarks/results/spam_curves``; those that are there are skipped.
``BAYESPARE_DATA`` holds ``fashion-mnist/``.
"""

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from records import write
from spam_training import PRIORS, Recipe, fashion, lenet
from torch import Tensor, nn

from bayespare.bayes import scores
from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import Splits
from bayespare.measure import evaluate, predict
from bayespare.posthoc import PruneOptions, tune
from bayespare.posthoc.criteria import unit_scores, weight_scores
from bayespare.posthoc.removal import masks_of
from bayespare.posthoc.rounds import REFIT_BATCHES, sampled, silenced
from bayespare.posthoc.settings import Criterion
from bayespare.structure import Plan, Verdict, close, compact, count, trace
from bayespare.structure.positions import with_positions
from bayespare.training.loop import placed

WEIGHTS = (0.2, 0.4, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
UNITS = (0.2, 0.4, 0.6, 0.7, 0.75, 0.8, 0.9)
TRAINED = {"weight": (0.8, 0.9, 0.95, 0.99), "unit": (0.6, 0.7, 0.9)}
EPOCHS = 10


@dataclass(frozen=True)
class Cell:
    """What one file holds.

    Attributes:
        seed: Of the training.
        kind: Training, as in ``spam_training.py``.
        unit: ``weight`` or ``unit``.
        criterion: What is ranked by.
        survivors: Whether what survives is refitted.
        finetune: Epochs of training afterwards.
    """

    seed: int
    kind: str
    unit: str
    criterion: Criterion
    survivors: bool
    finetune: int

    @property
    def path(self) -> Path:
        """Its file."""
        treated = f"{'refit' if self.survivors else 'bare'}{self.finetune or ''}"
        trained = f"e{Recipe().epochs}_s{self.seed}"
        name = f"{self.kind}_{self.unit}_{self.criterion}_{treated}_{trained}.json"
        return Path(__file__).with_name("results") / "spam_curves" / name

    @property
    def shares(self) -> tuple[float, ...]:
        """Sparsities; training costs too much for all of them."""
        if self.finetune:
            return TRAINED[self.unit]
        return WEIGHTS if self.unit == "weight" else UNITS


def cells(seeds: int) -> Iterator[Cell]:
    """All cells, the ones that say most first."""
    criteria: tuple[Criterion, ...] = get_args(Criterion)
    for seed, finetune, criterion in product(range(seeds), (0, EPOCHS), criteria):
        for kind, unit in product(PRIORS, ("weight", "unit")):
            if unit == "weight" and criterion == "l2":
                continue  # ranks like magnitude
            for survivors in (False, True):
                yield Cell(seed, kind, unit, criterion, survivors, finetune)


def measured(model: nn.Module, splits: Splits) -> dict[str, Any]:
    """Accuracy, NLL, ECE and Brier score on the test data."""
    found = evaluate(predict(model, splits.test.x, task="classification"), splits.test.y)
    return {key: found[key] for key in ("accuracy", "nll", "ece", "brier")}


def masks_for(
    cell: Cell, plan: Plan, model: nn.Module, given: dict[str, Tensor], share: float
) -> tuple[dict[str, Tensor], Verdict | None]:
    """Which weights stay, and of units the verdict."""
    if cell.unit == "weight":
        return scores.masks(given, share), None
    sums = unit_scores(plan, given)
    keep = plan.surviving(scores.masks(sums, share, scope="layer"), sums)
    verdict = Verdict(plan, keep)
    return masks_of(model, verdict), verdict


def run(cell: Cell, splits: Splits) -> dict[str, Any]:
    """One curve."""
    started = time.perf_counter()
    model = placed(lenet(cell.kind, cell.seed, splits), torch.device("cpu"))
    example = splits.train.x[:4]
    plan = with_positions(trace(model, example))
    likelihood = likelihood_for("classification")
    generator = torch.Generator().manual_seed(cell.seed)
    batches = sampled(splits.train, 10_000, generator)
    given = weight_scores(
        cell.criterion,
        model,
        likelihood,
        batches,
        len(splits.train),
        generator,
        prior="layer" if PRIORS[cell.kind] == "scalar" else PRIORS[cell.kind],
    )
    options = PruneOptions(sparsity=cell.shares, finetune=cell.finetune)
    points = {}
    for share in cell.shares:
        masks, verdict = masks_for(cell, plan, model, given, share)
        unlabelled = [x for x, _ in batches[:REFIT_BATCHES]]
        small = silenced(model, masks, unlabelled, survivors=cell.survivors)
        tune(small, masks, likelihood, splits.train, cell.finetune, options, generator)
        points[f"{100 * share:g}"] = measured(small, splits)
        if verdict is not None:
            closed, verdict = close(copy.deepcopy(small).eval(), verdict, example)
            counts = count(compact(closed, verdict, example=example), example[:1])
            points[f"{100 * share:g}"] |= {"macs": counts.macs, "parameters": counts.parameters}
    return {
        **asdict(cell),
        "epochs": Recipe().epochs,
        "dense": measured(model, splits) | {"macs": count(model, example[:1]).macs},
        "points": points,
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """All cells that are missing."""
    torch.set_num_threads(1)
    splits: dict[int, Splits] = {}
    for cell in cells(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        if cell.path.exists():
            continue
        if cell.seed not in splits:
            splits = {cell.seed: fashion(cell.seed)}
        record = run(cell, splits[cell.seed])
        write(cell.path, record)
        print(cell.path.name, f"{record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
