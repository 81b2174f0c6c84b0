"""What a network's outputs say of the targets: categorical or Gaussian."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayespare.errors import BayespareError, did_you_mean


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
    """Classification towards labels mixed with a teacher's probabilities.

    Targets are probabilities, shape ``(N, classes)``, made by :meth:`targets`.
    """

    @staticmethod
    def targets(y: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """Return ``(1 - weight) * one-hot(y) + weight * teacher``.

        Args:
            y: Class indices, shape ``(N,)``.
            teacher: Probabilities, shape ``(N, classes)``.
            weight: Share of the teacher, in [0, 1].
        """
        labels = functional.one_hot(y, teacher.shape[1]).to(teacher)
        return torch.lerp(labels, teacher, weight)

    def nll(self, output: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy to the targets per example, nats."""
        return functional.cross_entropy(output, y, reduction="none")

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        """Agreement with the most probable class of the targets."""
        return (output.argmax(1) == y.argmax(1)).float()


def honest_temperature(logits: Tensor, accuracy: float) -> float:
    """Temperature at which a network is on average as confident as it is accurate.

    A network is surer of the examples it was trained on than it has reason to be; divided by this
    its logits there have a mean confidence of its accuracy on new data.

    Args:
        logits: On the training data, shape ``(N, classes)``.
        accuracy: On validation data, in (0, 1].

    Returns:
        Between 0.05 and 100.
    """
    low, high = 0.05, 100.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        confidence = float((logits / middle).softmax(1).amax(1).mean())
        low, high = (middle, high) if confidence > accuracy else (low, middle)
    return high


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
    """The likelihood of a task, ``classification`` or ``regression``.

    Raises:
        BayespareError: On another.
    """
    known: dict[str, type[Likelihood]] = {"classification": Categorical, "regression": Gaussian}
    if task not in known:
        raise BayespareError(f"unknown task {task!r}{did_you_mean(task, known)}")
    return known[task]()


def by_position(likelihood: Likelihood, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets with a row for every position of every example.

    Args:
        likelihood: What the outputs say of the targets.
        output: Shape ``(N, ..., outputs)``.
        y: Classes or numbers, ``(N, ...)``, or of the outputs' shape.

    Raises:
        BayespareError: If the classes do not lie along the last dimension of the outputs.
    """
    if isinstance(likelihood, Categorical) and y.shape not in (output.shape[:-1], output.shape):
        raise BayespareError(
            f"labels have shape {tuple(y.shape)} and outputs {tuple(output.shape)}: classes have "
            "to lie along the last dimension, with a label for each position before it"
        )
    if output.ndim > 2 and y.shape == output.shape[:-1]:
        return output.flatten(0, -2), y.flatten()
    if output.ndim > 2 and y.shape == output.shape and not isinstance(likelihood, Gaussian):
        return output.flatten(0, -2), y.flatten(0, -2)
    return output, y
