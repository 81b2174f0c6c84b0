"""Rounds of removal, and the stop by measured evidence.

After each round the loss is measured, not predicted. The evidence of a size is the Occam gain of
all that was removed minus ``c`` times the realised rise of the training loss.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes.likelihood import Likelihood
from bayespare.data import Batches, Dataset
from bayespare.errors import BayespareError
from bayespare.posthoc.live import Live, LiveUnits, LiveWeights
from bayespare.posthoc.priors import WeightPriors
from bayespare.posthoc.removal import matrices
from bayespare.posthoc.settings import WEIGHTS_OF_LOSS, PosthocOptions, ReduceOptions
from bayespare.posthoc.swap import swap
from bayespare.structure import Plan
from bayespare.structure.survivors import update_survivors
from bayespare.training.loop import cosine, run_epoch, validate

Row = dict[str, Any]

REFIT_BATCHES = 6
"""Batches of :func:`sampled` that survivors are refitted on."""

LEAST_STEPS = 100
"""Steps that make an epoch at least: of small data it is several passes."""


@dataclass(eq=False)
class Size:
    """The network after a round.

    Attributes:
        name: Short name.
        model: Shapes whole; what was removed is zero.
        masks: Which entries are there, by parameter name.
        keep: Which units are there, by group.
        gain: Occam gain of all that was removed so far, nats.
        rise: Realised rise of the training loss so far, after the survivor update, nats; what the
            first training adds to the loss by its other aim is none of it.
        log_odds: Of the units that are gone, in the round they went; infinite for those that stay,
            whose case is decided by what is measured.
    """

    name: str
    model: nn.Module
    masks: dict[str, Tensor]
    keep: dict[str, Tensor]
    gain: float
    rise: float
    log_odds: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nonzeros(self) -> int:
        """Trainable parameters that are not zero."""
        return sum(int(p.count_nonzero()) for p in self.model.parameters() if p.requires_grad)

    def evidence(self, weight: float) -> float:
        """Gain minus ``weight`` times the rise, nats."""
        return self.gain - weight * self.rise


def summits(sizes: Sequence[Size]) -> list[Size]:
    """The size of highest measured evidence, for each weight of the loss."""

    def summit(weight: float) -> Size:
        return max(sizes, key=lambda size: size.evidence(weight))

    return [summit(weight) for weight in WEIGHTS_OF_LOSS]


def up_to_summit(sizes: Sequence[Size]) -> list[Size]:
    """The sizes up to the last summit: what lies behind it no weight of the loss speaks for."""
    names = {size.name for size in summits(sizes)}
    last = max(i for i, size in enumerate(sizes) if size.name in names)
    return list(sizes[: last + 1])


def tune(
    model: nn.Module,
    masks: dict[str, Tensor],
    likelihood: Likelihood,
    data: Dataset,
    epochs: int,
    options: PosthocOptions,
    generator: Generator,
    *,
    rate: float | None = None,
    priors: WeightPriors | None = None,
    swapped: float = 0.0,
) -> None:
    """Train what is left, in place, masks in force, the learning rate falling to zero.

    Args:
        model: Trained in place.
        masks: Which entries are there, by parameter name.
        likelihood: Of the targets of ``data``.
        data: Trained on.
        epochs: How many; 0 leaves everything as it is.
        options: Learning rate, and whether there is a rate of its own.
        generator: Of the order of the examples.
        rate: Learning rate at the start; None: that of the options.
        priors: On the weights of ``model``; None: only the data count.
        swapped: Share of the weights that change places at first, see :func:`swap`.
    """
    if epochs == 0:
        return
    parameters = dict(model.named_parameters())
    some = [p for p in model.parameters() if p.requires_grad]
    group = {"params": some, "base_lr": rate or options.lr}
    optimizer = torch.optim.Adam([group], fused=True)
    size = min(256, max(16, len(data) // 40), len(data))
    passes = -(-LEAST_STEPS // (len(data) // size))
    batches = Batches(data, size, generator=generator, shuffle=True, drop_last=True, passes=passes)

    @torch.no_grad()
    def silence(_step: int) -> None:
        for name, mask in masks.items():
            parameters[name].mul_(mask)

    for epoch in range(epochs):
        run_epoch(
            model,
            likelihood,
            optimizer,
            batches,
            method=priors,
            rate=lambda step, e=epoch: cosine((e + step / len(batches)) / epochs),  # type: ignore[misc]
            after_step=silence,
        )
        if swapped:
            masks = swap(model, masks, optimizer, swapped, (epoch + 1) / epochs)


def sampled(train: Dataset, samples: int, generator: Generator) -> list[tuple[Tensor, Tensor]]:
    """Batches of so many random training examples, for curvature and costs."""
    order = torch.randperm(len(train), generator=generator, device=train.x.device)
    some = train.subset(order[:samples])
    return [(x, y) for x, y, *_ in Batches(some, min(1000, len(some)), shuffle=False)]


def run_rounds(
    model: nn.Module,
    plan: Plan | None,
    train: Dataset,
    valid: Dataset,
    likelihood: Likelihood,
    options: ReduceOptions,
    met: Callable[[Size], bool],
    report: Callable[[Row], None],
    soft: tuple[Likelihood, Dataset] | None = None,
) -> list[Size]:
    """Remove in rounds until the measured evidence has fallen for every weight of the loss.

    Args:
        model: Trained, on the device of the data; not changed.
        plan: Of units; None removes single weights.
        train: Training data.
        valid: Only scored here, for the history.
        likelihood: Of the task.
        options: Share, epochs and so on.
        met: Whether a budget is met; rounds go on until it is.
        report: Called with a row of history after each round.
        soft: Likelihood and data of the training after each round, where they are others.

    Returns:
        The network as given, then one size for each round.
    """
    generator = torch.Generator(train.x.device).manual_seed(options.seed)
    batches = sampled(train, options.samples, generator)
    unlabelled = [x for x, _ in batches[:REFIT_BATCHES]]
    examples = len(train)
    start = validate(model, likelihood, batches).nll
    keep = {g.name: torch.ones(g.size, dtype=torch.bool) for g in plan.groups} if plan else {}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in matrices(model).items()}
    if not masks:
        raise BayespareError("reduce: the model has no trainable weight that could be removed")

    def between(network: nn.Module, masks: dict[str, Tensor]) -> None:
        aim, rate = soft or (likelihood, train), options.rate_between
        tune(network, masks, *aim, options.between, options, generator, rate=rate)

    trust, after = 1.0, start
    certain = {name: torch.full(line.shape, torch.inf).double() for name, line in keep.items()}
    sizes = [Size("dense", copy.deepcopy(model), masks, keep, 0.0, 0.0, certain)]
    for number in range(1, options.rounds + 1):
        began, last = time.perf_counter(), sizes[-1]
        enough = met(last)
        # While an unmet budget asks for less, the evidence no longer has a veto.
        measured = (batches, likelihood, examples, options.share, generator)
        live: Live = (
            LiveUnits(last.model, plan, last.keep) if plan else LiveWeights(last.model, last.masks)
        )
        removal = live.decide(*measured, trust=trust, forced=not enough)
        while number == 1 and trust > 0.1 and (removal is None or live.little(removal)):
            # Nothing has been measured yet, and predictions are often several times too high.
            trust *= 0.5
            removal = live.decide(*measured, trust=trust, forced=not enough)
        if removal is None or (enough and live.little(removal)):
            break
        before = validate(live.model, likelihood, batches).nll
        if number == 2:
            # Trained towards soft targets, a network fits its labels less, whatever was removed.
            start += max(0.0, before - after)
        reduced = silenced(live.model, removal.masks, unlabelled, survivors=options.survivors)
        after = validate(reduced, likelihood, batches).nll
        left = live.trained(reduced, removal, between)
        odds = {
            name: torch.where(last.keep[name] & ~left.keep[name], values, last.log_odds[name])
            for name, values in left.log_odds.items()
        }
        size = Size(
            f"r{number:02d}", left.model, left.masks, left.keep,
            last.gain + removal.gain, examples * (after - start), last.log_odds | odds,
        )  # fmt: skip
        sizes.append(size)
        scores = validate(left.model, likelihood, Batches(valid, 1024, shuffle=False))
        predicted, realised = removal.gain - removal.predicted, examples * (after - before)
        # The next prediction is scaled by what came true of this one.
        if predicted > 0:
            trust = min(1.0, max(0.05, trust * realised / predicted))
        report(
            {
                "phase": "reduce",
                "epoch": number,
                "removed": removal.removed,
                "candidates": removal.candidates,
                "nonzeros": size.nonzeros,
                "predicted_delta_f": removal.predicted,
                "predicted_rise": predicted,
                "realised_rise": realised,
                "gain": size.gain,
                "train_nll": after,
                "valid_score": scores.mean,
                "valid_nll": scores.nll,
                "seconds": time.perf_counter() - began,
            }
        )
        if met(size) and _past(sizes):
            break
    return sizes


def _past(sizes: Sequence[Size]) -> bool:
    """Whether every best size lies two rounds or more behind."""
    return len(sizes) > 2 and all(size not in sizes[-2:] for size in summits(sizes))


def silenced(
    model: nn.Module, masks: Mapping[str, Tensor], unlabelled: list[Tensor], *, survivors: bool
) -> nn.Module:
    """A copy in which what is removed is zero, and what survives refitted if so wanted.

    Args:
        model: Shapes whole.
        masks: Which entries stay, by parameter name.
        unlabelled: Inputs for the refit.
        survivors: Refit.
    """
    if survivors:
        return update_survivors(model, masks, unlabelled).model
    reduced = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in reduced.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return reduced
