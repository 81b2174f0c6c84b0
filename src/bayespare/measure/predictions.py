"""Predictive distributions: probabilities averaged over posterior draws, never logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args, overload

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.data.target import Task
from bayespare.errors import BayespareError, did_you_mean
from bayespare.measure.linearised import draws, output_moments, probit_logits


@dataclass(frozen=True, eq=False)
class ClassPrediction:
    """What a classifier says about N rows, averaged over the posterior.

    Attributes:
        log_probs: Log of the averaged class probabilities, float64, shape ``(N, K)``.
        epistemic: Mutual information between the label and the parameters, in nats, shape
            ``(N,)``; zero without a posterior.
    """

    log_probs: Tensor
    epistemic: Tensor

    @property
    def probs(self) -> Tensor:
        """Class probabilities, shape ``(N, K)``."""
        return self.log_probs.exp()

    @property
    def labels(self) -> Tensor:
        """The most probable class of each row, int64, shape ``(N,)``."""
        return self.log_probs.argmax(dim=1)


@dataclass(frozen=True, eq=False)
class RealPrediction:
    """What a regression model says about N rows, in the units of the target.

    Attributes:
        mean: Predictive mean, float64, shape ``(N,)``.
        variance: Total predictive variance, epistemic plus noise, shape ``(N,)``.
        epistemic: Variance of the mean over the posterior, shape ``(N,)``; zero without one.
    """

    mean: Tensor
    variance: Tensor
    epistemic: Tensor


Prediction = ClassPrediction | RealPrediction


@overload
def predict(
    model: nn.Module,
    x: Tensor,
    *,
    task: Literal["classification"],
    posterior: GaussianPosterior | None = None,
    samples: int = 32,
    noise_std: float | None = None,
    batch_size: int = 1024,
    generator: Generator | None = None,
    target_scale: tuple[float, float] = (0.0, 1.0),
) -> ClassPrediction: ...


@overload
def predict(
    model: nn.Module,
    x: Tensor,
    *,
    task: Literal["regression"],
    posterior: GaussianPosterior | None = None,
    samples: int = 32,
    noise_std: float | None = None,
    batch_size: int = 1024,
    generator: Generator | None = None,
    target_scale: tuple[float, float] = (0.0, 1.0),
) -> RealPrediction: ...


@overload
def predict(
    model: nn.Module,
    x: Tensor,
    *,
    task: Task,
    posterior: GaussianPosterior | None = None,
    samples: int = 32,
    noise_std: float | None = None,
    batch_size: int = 1024,
    generator: Generator | None = None,
    target_scale: tuple[float, float] = (0.0, 1.0),
) -> Prediction: ...


def predict(
    model: nn.Module,
    x: Tensor,
    *,
    task: Task,
    posterior: GaussianPosterior | None = None,
    samples: int = 32,
    noise_std: float | None = None,
    batch_size: int = 1024,
    generator: Generator | None = None,
    target_scale: tuple[float, float] = (0.0, 1.0),
) -> Prediction:
    """Predict N rows in eval mode, without gradients, on the model's device.

    Every posterior draw is one network that sees all rows, so the prediction depends on the batch
    size through rounding alone. The modes of the model's layers are as before afterwards.

    Args:
        model: Gives logits of shape ``(N, K)``, ``K >= 2``, or for regression a mean of shape
            ``(N,)`` or ``(N, 1)`` in standardised units.
        x: Inputs, shape ``(N, ...)``, on any device.
        task: ``"classification"`` or ``"regression"``.
        posterior: Spread of the parameters, and how it predicts; without one the model is taken
            as certain. Predictions of the ``linear`` kind cost a backward pass for each output.
        samples: Number of posterior draws.
        noise_std: Standard deviation of the target around the mean, in standardised units;
            regression only. Without it the predictive variance is the epistemic part alone.
        batch_size: Rows per forward pass.
        generator: Source of the draws; without one a fresh generator with seed 0, so that the same
            call gives the same prediction.
        target_scale: Mean and standard deviation that map a standardised target back to its units.

    Returns:
        A :class:`ClassPrediction` or a :class:`RealPrediction`, on the CPU, in float64.

    Raises:
        BayespareError: If there are no rows, an option is out of range, the posterior does not fit
            the model, or the model's output is not finite or has the wrong shape.
    """
    if task not in get_args(Task):
        hint = did_you_mean(str(task), get_args(Task))
        raise BayespareError(f"predict: unknown task {task!r}{hint}")
    if len(x) == 0:
        raise BayespareError("predict: there are no rows to predict")
    if samples < 1 or batch_size < 1:
        raise BayespareError(
            f"predict: samples ({samples}) and batch_size ({batch_size}) must be at least 1"
        )
    if posterior is not None:
        posterior.checked(model)
    with evaluating(model):
        if posterior is not None and posterior.predictive != "draws":
            outputs = _linear_outputs(model, x, posterior, task, samples, generator)
        else:
            outputs = _outputs(model, x, posterior, samples, batch_size, generator)
        if task == "classification":
            return _classified(outputs)
        return _regressed(outputs, noise_std, target_scale)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode without gradients; every layer's own mode comes back afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU if it has neither."""
    tensors: Iterator[Tensor] = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _outputs(
    model: nn.Module,
    x: Tensor,
    posterior: GaussianPosterior | None,
    samples: int,
    batch_size: int,
    generator: Generator | None,
) -> Iterator[Tensor]:
    """Yield the model's output for all rows once per posterior draw, float64 on the CPU."""
    device = device_of(model)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    for _ in range(1 if posterior is None else samples):
        drawn = {} if posterior is None else posterior.draw(model, generator)
        rows = [
            torch.func.functional_call(model, drawn, (batch.to(device),)).to("cpu", torch.float64)
            for batch in torch.split(x, batch_size)
        ]
        output = torch.cat(rows)
        _check_finite(output)
        yield output


def _check_finite(output: Tensor) -> None:
    finite = torch.isfinite(output).reshape(len(output), -1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise BayespareError(
            f"predict: the model's output for row {row} is not finite; "
            "look for extreme inputs in that row, or a model whose training diverged"
        )


def _linear_outputs(
    model: nn.Module,
    x: Tensor,
    posterior: GaussianPosterior,
    task: Task,
    samples: int,
    generator: Generator | None,
) -> Iterator[Tensor]:
    """The same of the linearised network; few for all draws where there is a closed form."""
    closed = task == "regression" or posterior.predictive == "probit"
    mean, spread = output_moments(model, x, posterior, variance=closed)
    _check_finite(mean)
    if task == "regression":
        # Two outputs that have this mean and this variance.
        yield from (mean + (spread / 2).sqrt(), mean - (spread / 2).sqrt())
    elif closed:
        yield probit_logits(mean, spread)
    else:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        yield from draws(mean, spread, samples, generator)


def _classified(outputs: Iterator[Tensor]) -> ClassPrediction:
    """Average probabilities in log space; epistemic = entropy of the mean - mean of entropies."""
    count = 0
    log_sum = entropy_sum = torch.zeros(())
    for logits in outputs:
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise BayespareError(
                f"predict: a classifier must give logits of shape (rows, classes) with at least "
                f"2 classes, got {tuple(logits.shape)}"
            )
        log_probs = logits.log_softmax(dim=1)
        log_sum = torch.logaddexp(log_sum, log_probs) if count else log_probs
        entropy_sum = entropy_sum + _entropy(log_probs)
        count += 1
    mean = log_sum - math.log(count)
    # A single network carries no epistemic part: rounding must not make one.
    epistemic = (_entropy(mean) - entropy_sum / count).clamp_min(0.0)
    return ClassPrediction(mean, epistemic if count > 1 else torch.zeros_like(epistemic))


def _regressed(
    outputs: Iterator[Tensor], noise_std: float | None, target_scale: tuple[float, float]
) -> RealPrediction:
    """Mean and unbiased variance over draws (Welford's update), mapped to the target's units."""
    shift, scale = target_scale
    noise = 0.0 if noise_std is None else noise_std
    if not (0 <= noise < math.inf and 0 < scale < math.inf and math.isfinite(shift)):
        raise BayespareError(
            f"predict: noise_std ({noise_std}) must be at least 0, and target_scale "
            f"{target_scale} a finite mean and a positive standard deviation"
        )
    count = 0
    mean = squares = torch.zeros(())
    for output in outputs:
        if output.dim() == 2 and output.shape[1] == 1:
            output = output.squeeze(1)
        if output.dim() != 1:
            raise BayespareError(
                f"predict: a regression model must give shape (rows,) or (rows, 1), "
                f"got {tuple(output.shape)}"
            )
        count += 1
        step = output - mean
        mean = mean + step / count
        squares = squares + step * (output - mean)
    epistemic = scale**2 * squares / max(count - 1, 1)
    return RealPrediction(shift + scale * mean, epistemic + (scale * noise) ** 2, epistemic)


def _entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats over the last dimension, shape ``(N,)``."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)
