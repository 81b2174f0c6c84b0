"""The whole network as a teacher of the smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from bayespare.bayes.likelihood import Distilled, honest_probabilities
from bayespare.data import Batches, Dataset
from bayespare.training.loop import Scores


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a trained classifier says of the training data, and how good it is.

    Attributes:
        probabilities: Of every training example, softened until it is on average as sure as it is
            right elsewhere; shape ``(N, classes)``.
        scores: Its validation.
    """

    probabilities: Tensor
    scores: Scores

    @classmethod
    @torch.no_grad()
    def of(cls, network: nn.Module, train: Dataset, scores: Scores) -> Self:
        """Ask a network, in evaluation mode; its training mode is restored.

        Args:
            network: On the device of the data.
            train: Training data.
            scores: Its validation.
        """
        training = network.training
        network.eval()
        said = [network(x).float() for x, *_ in Batches(train, 1024, shuffle=False)]
        network.train(training)
        return cls(honest_probabilities(torch.cat(said), scores.mean), scores)

    def lesson(self, train: Dataset, weight: float) -> tuple[Distilled, Dataset]:
        """Likelihood and data whose targets are labels mixed with what it says.

        Args:
            train: The training data it was asked about.
            weight: Its share, in [0, 1].
        """
        return Distilled(), replace(train, y=Distilled.targets(train.y, self.probabilities, weight))

    def outgrown(self, best: Scores) -> bool:
        """Whether a pupil is measurably better, and would lose what it knows.

        So it is after few epochs of few examples.
        """
        return self.scores.worse_than(best)

    def state(self) -> dict[str, Tensor]:
        """Flat tensors, for a checkpoint."""
        return {"probabilities": self.probabilities.cpu(), **self.scores.tensors()}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Self:
        """Undo :meth:`state`."""
        return cls(tensors["probabilities"].to(device), Scores.of(tensors))
