"""How a run spends its epochs, and what else the loop has to be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from bayespare.training.budget import Budget
from bayespare.training.loop import Precision, cosine

ALONE = (1.0, 2.0)
"""Tempering of the exploration where nothing but the prior keeps a network from overfitting.

Further on lie networks that are too small, and few validation rows cannot tell.
"""


LOOKS = 12
"""How often structures are looked for at least: few long epochs pass as many as many short ones."""


USUAL = 24
"""Epochs of exploring that the rates of gates are tuned to."""


FEW_STEPS = 5_000
"""Steps of a dense run below which candidates go on from each other, so that what each learns adds
up.

Of Fashion-MNIST these are 24 epochs. With more it gains nothing, and few rows are overfitted.
"""


LEAST_COOL = 5
"""Epochs of cooling for each candidate, at least: the cheapest; short runs gain most by them."""


RICH = 90
"""Examples for each weight with which a network cools untempered; with fewer, in proportion.

Of the loss the prior's share would vanish else: LeNet-5 cut to 2,800 weights, 48,000 images.
"""


AMPLE = 9.0
"""Examples for each weight with which a network that cools for longer is not overfitted.

A 4x500 MLP cut to 1 % of its weights has 5 of Fashion-MNIST, LeNet-5 cut to 2,800 has 19 of MNIST.
"""


CHEAP, DEAR = 0.1, 100.0
"""Nats asked for each parameter when a budget is first missed, and when it is given up."""


@dataclass(frozen=True)
class Schedule:
    """How the epochs of a run are spent.

    Attributes:
        warm: Epochs of ordinary training first; the network they give is also the teacher.
        explore: Epochs while the tempering rises and the network shrinks.
        cool: Epochs for each candidate.
        candidates: How many sizes are trained to the end.
        inherit: Whether a candidate goes on from what the next larger one has become, instead of
            from what it was when it was found.
        survivors: Whether what survives of the larger one is refitted then.
        share: Whether the cooling epochs of candidates that are not found go to the others, if
            these have enough examples.
        tempering: ``auto``, or the one value used throughout.
        start: Tempering at which exploration starts.
        end: Tempering at which it ends; higher in few epochs.
        cooling: Tempering while cooling, at least.
        cool_batch: Factor of the batch while cooling: small networks are bound by the number of
            steps, not by their size. In few epochs every step is needed.
        teacher: Weight of the teacher's probabilities while cooling, classification only.
        warm_rate: Learning rate of the ordinary training.
        hold: Share of the exploration in which all gates stay open.
        ramp: Share of the exploration over which a given tempering rises from zero, linearly.
        fall: Factor to which the learning rates fall while exploring, along a cosine.
        passes: Passes over the data that make an epoch here: one of small data in one batch is no
            more than a step, and what is done once an epoch would take most of the time.
    """

    warm: int = 17
    explore: int = 24
    cool: int = 15
    candidates: int = 3
    tempering: float | Literal["auto"] = "auto"
    start: float = 0.05
    end: float = 1.2
    cooling: float = 0.05
    cool_batch: int = 2
    teacher: float = 0.5
    warm_rate: float = 1e-3
    share: bool = True
    inherit: bool = False
    survivors: bool = True
    hold: float = 0.0
    ramp: float = 0.0
    fall: float = 1.0
    passes: int = 1

    @classmethod
    def of(
        cls, epochs: int, steps: int, examples: int, tempering: float | Literal["auto"] = "auto"
    ) -> Schedule:
        """Spend the time of about ``epochs`` dense epochs.

        Somewhat over a quarter goes to the start, two fifths to exploring. Cooling, a quarter but
        :data:`LEAST_COOL` at least, is repeated for each candidate, on a small network each time. A
        given tempering needs one candidate only.

        Args:
            epochs: What a dense network would get.
            steps: Of each epoch.
            examples: Training examples. With few the KL weighs more against each, so the
                tempering starts lower.
            tempering: ``auto``, or the one value used throughout.
        """
        return cls(
            warm=max(1, round(0.28 * epochs)),
            explore=max(2, round(0.4 * epochs)),
            cool=max(round(epochs / 4), min(LEAST_COOL, epochs)),
            candidates=3 if tempering == "auto" else 1,
            tempering=tempering,
            start=0.05 * min(1.0, math.sqrt(examples / 50_000)),
            cooling=0.05 if tempering == "auto" else tempering,
            cool_batch=2 if epochs >= 60 else 1,
            inherit=epochs * steps < FEW_STEPS,
        )

    @classmethod
    def published(cls, epochs: int, tempering: float = 1.0) -> Schedule:
        """The authors': all epochs alike, at one tempering, and nothing after the decision."""
        return cls(warm=0, explore=epochs, cool=0, candidates=1, tempering=tempering, teacher=0.0)

    @property
    def total(self) -> int:
        """Epochs in all, whatever the size of the network they train."""
        return self.warm + self.explore + self.cool * self.candidates

    def cooling_epochs(self, found: int, examples_each: float) -> int:
        """Epochs for a candidate: what missing ones leave, others may use.

        Where there are few examples for each of its weights, more epochs are only overfitted.

        Args:
            found: Candidates that were found.
            examples_each: Training examples for each weight.
        """
        if not self.share or examples_each < AMPLE:
            return self.cool
        return round(self.cool * min(2.5, self.candidates / max(1, found)))

    @property
    def parts(self) -> int:
        """Parts of an epoch of exploring; structures are looked for after each."""
        return math.ceil(LOOKS / max(1, self.explore))

    @property
    def haste(self) -> float:
        """Factor of the rate of gates, and of the last tempering.

        Tempering times rate, summed over the steps, is what moves a gate. In few epochs it would
        not come as far, and a network that can lose half of its work would lose a tenth. It comes
        somewhat further even: the smallest networks go on from larger ones.
        """
        few = self.tempering == "auto" and 0 < self.explore < USUAL
        return float((USUAL / self.explore) ** (2 / 3)) if few else 1.0

    def progress(self, epoch: int, share: float) -> float:
        """Share of the rise while exploring: below zero in the first part, above 1 after the last.

        Args:
            epoch: Epochs done.
            share: Of the one that is under way.
        """
        first = 1 / self.parts
        return (epoch - first + share) / max(first, self.explore - first)

    def rising(self, progress: float, *, alone: bool = False) -> float:
        """Tempering at a share of the exploration in [0, 1]; it stays at its end afterwards.

        Args:
            progress: The share.
            alone: Whether nothing but the prior keeps from overfitting. Its precisions would mean
                nothing of data that count a hundred times: everything is well determined.
        """
        if self.tempering != "auto":
            risen = min(1.0, max(0.0, progress) / self.ramp) if self.ramp else 1.0
            return self.tempering * risen
        start, end = ALONE if alone else (self.start, self.end * self.haste)
        return float(start * (end / start) ** min(1.0, max(0.0, progress)))

    def cooled(self, *, alone: bool, examples_each: float = 0.0) -> float:
        """Tempering while cooling; untempered where the prior stands alone.

        Args:
            alone: As in :meth:`rising`.
            examples_each: Training examples for each weight.
        """
        if self.tempering != "auto":
            return self.cooling
        return ALONE[0] if alone else max(self.cooling, min(1.0, examples_each / RICH))

    def rate(self, progress: float) -> float:
        """Factor of the learning rates at a share of the exploration."""
        return self.fall + (1 - self.fall) * cosine(progress)

    def price(self, progress: float) -> float:
        """Nats asked for each parameter, at a share of the exploration above 1.

        Zero while no budget is left to meet; then it rises evenly, so slowly that the network
        learns to do without what goes. A prior inclusion probability that falls with what a unit
        costs says the same.
        """
        return 0.0 if progress <= 1 else float(CHEAP * (DEAR / CHEAP) ** ((progress - 1) / 2))


@dataclass(frozen=True)
class Settings:
    """What the loop needs besides the data.

    Attributes:
        batch: Examples per step.
        device: Where to train.
        precision: ``float32`` or ``bf16``.
        budget: Exploration goes on until a structure meets it.
    """

    batch: int
    device: torch.device
    precision: Precision = "float32"
    budget: Budget = field(default_factory=Budget)
