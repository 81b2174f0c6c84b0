"""What a network's outputs say of the targets: categorical or Gaussian."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


class Likelihood(nn.Module):
    """Turns outputs and targets into negative log likelihoods."""

    @property
    def noise_std(self) -> float | None:
        """Standard deviation of the targets around the outputs; None where there is none."""
        return None

    @abstractmethod
    def nll(self, output: Tensor, y: Tensor) -> Tensor:
        """Negative log likelihood per example, nats, shape ``(N,)``."""

    @abstractmethod
    def score(self, output: Tensor, y: Tensor) -> Tensor:
        """What is compared between networks, per example, higher is better, shape ``(N,)``."""


@final
class Categorical(Likelihood):
    """Classification: the outputs are logits, shape ``(N, classes)``; the score is being right."""

    def nll(self, output: Tensor, y: Tensor) -> Tensor:
        """See :class:`Likelihood`."""
        return functional.cross_entropy(output, y, reduction="none")

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        """See :class:`Likelihood`."""
        return (output.argmax(1) == y).float()


@final
class Distilled(Likelihood):
    """Classification towards labels and a teacher; its targets carry the teacher's probabilities.

    The loss is ``(1 - weight) * cross-entropy(label) + weight * T^2 * cross-entropy(teacher)``,
    the second at temperature T (Hinton, Vinyals and Dean, arXiv 1503.02531).

    Args:
        weight: Share of the teacher, in [0, 1].
        temperature: T.
    """

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def targets(self, y: Tensor, logits: Tensor) -> Tensor:
        """Put labels ``(N,)`` and the teacher's probabilities at T side by side.

        Args:
            y: Class indices, shape ``(N,)``.
            logits: The teacher's, shape ``(N, classes)``.

        Returns:
            Shape ``(N, 1 + classes)``.
        """
        probabilities = (logits / self.temperature).softmax(1)
        return torch.cat((y.unsqueeze(1).to(logits.dtype), probabilities), dim=1)

    def nll(self, output: Tensor, y: Tensor) -> Tensor:
        """See :class:`Likelihood`; ``y`` is made by :meth:`targets`."""
        hard = functional.cross_entropy(output, y[:, 0].long(), reduction="none")
        soft = functional.cross_entropy(output / self.temperature, y[:, 1:], reduction="none")
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        """See :class:`Likelihood`."""
        return (output.argmax(1) == y[:, 0].long()).float()


@final
class Gaussian(Likelihood):
    """Regression: outputs ``(N, 1)`` or ``(N,)``, one learned noise; the score is -error^2.

    Attributes:
        log_noise: Log standard deviation of the noise, in the units of ``y``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_noise = nn.Parameter(torch.zeros(()))

    @property
    def noise_std(self) -> float | None:
        """See :class:`Likelihood`; in the units of ``y``."""
        return float(self.log_noise.detach().exp())

    def nll(self, output: Tensor, y: Tensor) -> Tensor:
        """See :class:`Likelihood`."""
        residual = (y - output.view_as(y)) * (-self.log_noise).exp()
        return 0.5 * residual.square() + self.log_noise + 0.5 * math.log(2 * math.pi)

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        """See :class:`Likelihood`."""
        return -(y - output.view_as(y)).square()


def likelihood_for(task: str) -> Likelihood:
    """The likelihood of a task, ``classification`` or ``regression``."""
    return Categorical() if task == "classification" else Gaussian()
