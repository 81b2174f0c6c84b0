"""The whole network as a teacher of the smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor, nn

from bayespare.bayes.likelihood import Categorical, Distilled, honest_temperature
from bayespare.data import Batches, Dataset
from bayespare.training.loop import Scores, validate


@final
class _Softened(nn.Module):
    """A classifier with its logits divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(N, classes)``."""
        logits: Tensor = self.network(x).float()
        return logits / self.temperature


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a trained classifier says of the training data, and how good it is.

    Attributes:
        probabilities: Of every training example, softened until it is on average as sure as it is
            right elsewhere; shape ``(N, classes)``.
        scores: Its validation.
        softened: The same with logits softened like the probabilities.
        temperature: What its logits were divided by.
    """

    probabilities: Tensor
    scores: Scores
    softened: Scores
    temperature: float

    @classmethod
    @torch.no_grad()
    def of(cls, network: nn.Module, train: Dataset, valid: Dataset, scores: Scores) -> Self:
        """Ask a network, in evaluation mode; its training mode is restored.

        Args:
            network: On the device of the data.
            train: Training data.
            valid: Validation data.
            scores: Its validation.
        """
        training = network.training
        network.eval()
        said = [network(x).float() for x, *_ in Batches(train, 1024, shuffle=False)]
        logits = torch.cat(said)
        temperature = honest_temperature(logits, scores.mean)
        held = Batches(valid, 1024, shuffle=False)
        softened = validate(_Softened(network, temperature).eval(), Categorical(), held)
        network.train(training)
        return cls((logits / temperature).softmax(1), scores, softened, temperature)

    def lesson(self, train: Dataset, weight: float) -> tuple[Distilled, Dataset]:
        """Likelihood and data whose targets are labels mixed with what it says.

        Args:
            train: The training data it was asked about.
            weight: Its share, in [0, 1].
        """
        return Distilled(), replace(train, y=Distilled.targets(train.y, self.probabilities, weight))

    @property
    def unfinished(self) -> bool:
        """Whether it is no surer of what it was trained on than it is right elsewhere.

        After few steps there is nothing it has learnt too well, and much it has not learnt yet:
        its pupils would be held back.
        """
        return self.temperature <= 1.0

    def outgrown(self, best: Scores) -> bool:
        """Whether a pupil is measurably better, and would lose what it knows.

        So it is after few epochs of few examples. One that is merely too sure of itself still keeps
        its pupils from being that.
        """
        return self.scores.worse_than(best) and self.softened.worse_than(best)

    def state(self) -> dict[str, Tensor]:
        """Flat tensors, for a checkpoint."""
        scores = {f"scores/{key}": value for key, value in self.scores.tensors().items()}
        softened = {f"softened/{key}": value for key, value in self.softened.tensors().items()}
        temperature = torch.tensor(self.temperature, dtype=torch.float64)
        return {
            "probabilities": self.probabilities.cpu(),
            "temperature": temperature,
            **scores,
            **softened,
        }

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Self:
        """Undo :meth:`state`."""
        return cls(
            tensors["probabilities"].to(device),
            Scores.of(tensors, "scores/"),
            Scores.of(tensors, "softened/"),
            float(tensors["temperature"]),
        )
