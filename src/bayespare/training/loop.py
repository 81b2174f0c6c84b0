"""One epoch of training: forward, loss, penalty, backward, step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from bayespare.bayes.likelihood import Likelihood
from bayespare.errors import BayespareError, NonFiniteLossError
from bayespare.training import ranks

Precision = Literal["float32", "bf16"]


class Penalised(Protocol):
    """The part of a method that the loop calls.

    Attributes:
        generator: Source of its noise.
    """

    generator: torch.Generator | None

    def penalty(self) -> Tensor:
        """Nats per example to add to the mean loss."""


@dataclass(frozen=True)
class EpochSummary:
    """What one epoch of training measured.

    Attributes:
        nll: Mean training loss, nats per example.
        penalty: Mean penalty, nats per example.
        seconds: Wall time.
    """

    nll: float
    penalty: float
    seconds: float

    @classmethod
    def joined(cls, parts: Sequence[tuple[int, Self]]) -> Self:
        """Of an epoch in parts, each with its number of steps."""
        steps = sum(count for count, _ in parts)
        return cls(
            sum(count * part.nll for count, part in parts) / steps,
            sum(count * part.penalty for count, part in parts) / steps,
            sum(part.seconds for _, part in parts),
        )


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the GPU when there is one.

    Raises:
        BayespareError: If the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BayespareError(
            f"device={name}: not a device (use auto, cpu, cuda or cuda:0)"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise BayespareError(f"device={name}: runs on cpu and cuda only")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BayespareError(f"device={name}: no GPU is available here; use device=cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BayespareError(f"device={name}: there are {torch.cuda.device_count()} GPUs")
    if device.index is not None and ranks.world() > 1:
        raise BayespareError(f"device={name}: each process has a GPU of its own; use device=cuda")
    return device


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, two-dimensional convolutions to channels-last memory.

    The values are the same; a LeNet step takes two thirds of the time on a CPU.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        return network.to(device)
    fits = device.type != "cpu" or not any(map(_writes_out_of_bounds, convolutions))
    layout = torch.channels_last if fits else torch.contiguous_format
    return network.to(device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


def _writes_out_of_bounds(layer: nn.Conv2d) -> bool:
    """Whether oneDNN's gradient of its weight may, in channels-last memory.

    Of kernels of one pixel that skip pixels and read 2 to 7 channels, in PyTorch 2.13 on a CPU; cut
    far enough, any such layer reads so few.
    """
    return max(layer.kernel_size) == 1 and max(layer.stride) > 1


def cosine(fraction: float) -> float:
    """Learning-rate factor that falls from 1 to 0 as ``fraction`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def falling(epoch: int, epochs: int, steps: int) -> Callable[[int], float]:
    """Learning-rate factors of an epoch's steps, along one cosine over all epochs.

    Args:
        epoch: Epochs done.
        epochs: In all.
        steps: Of each.
    """
    return lambda step: cosine((epoch + step / steps) / epochs)


@contextmanager
def own_global_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators, and leave them as they were afterwards.

    Layers such as dropout draw from them; a run's are its own.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _flushing_subnormals() -> Iterator[None]:
    """Treat numbers below 1e-38 as zero, then as before.

    Gradients of examples that are already certain underflow; arithmetic on subnormal numbers
    makes late epochs several times slower than early ones.
    """
    flushed = float(torch.full((1,), 1e-38) * 0.01) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


@_flushing_subnormals()
def run_epoch(
    network: nn.Module,
    likelihood: Likelihood,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    method: Penalised | None = None,
    rate: Callable[[int], float] | None = None,
    after_step: Callable[[int], None] | None = None,
    precision: Precision = "float32",
    max_norm: float | None = None,
) -> EpochSummary:
    """Train for one pass over the batches; of several ranks, each over its share of every batch.

    Args:
        network: The network; left in training mode.
        likelihood: Gives the loss of its outputs.
        optimizer: Steps all parameters.
        batches: Pairs (x, y) on the network's device; a third tensor weighs the examples.
        method: Adds its penalty to the loss.
        rate: Factor of every group's ``base_lr`` at a given step of this epoch.
        after_step: Called with the number of steps taken in this epoch.
        precision: ``bf16`` runs the forward pass under autocast; parameters stay float32.
        max_norm: Clip the gradient to this norm.

    Raises:
        NonFiniteLossError: If the loss stops being finite; the step is not taken.
    """
    network.train()
    started = time.perf_counter()
    # Summed on the device: reading a value every step would wait for the GPU every step.
    total = torch.zeros(3)
    with ranks.own_noise(method):
        for step, (x, y, *weight) in enumerate(batches):
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * rate(step)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = network(x)
            losses = likelihood.nll(output.float(), y)
            nll = (losses * weight[0] if weight else losses).mean()
            penalty = method.penalty() if method is not None else torch.zeros_like(nll)
            optimizer.zero_grad(set_to_none=True)
            (nll + penalty).backward()  # type: ignore[no-untyped-call]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            # Of all ranks, so that none goes on where another stops.
            parts = ranks.mean_gradients(parameters, nll, penalty, torch.ones_like(nll))
            if not torch.isfinite(parts.sum()):
                likely, penal, _ = parts.tolist()
                raise NonFiniteLossError(
                    f"the loss became {likely + penal} (likelihood {likely}, penalty {penal}) "
                    f"at step {step}"
                )
            if max_norm is not None:
                nn.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()
            # The graph of this step must not outlive a cut of its parameters.
            del nll, penalty, losses, output, parameters
            if after_step is not None:
                after_step(step + 1)
            total = total.to(x.device) + parts
    optimizer.zero_grad(set_to_none=True)
    ranks.align(network, optimizer)
    nll_sum, penalty_sum, steps = total.tolist()
    steps = max(steps, 1)
    return EpochSummary(nll_sum / steps, penalty_sum / steps, time.perf_counter() - started)


@dataclass(frozen=True, eq=False)
class Scores:
    """Validation of one network.

    Attributes:
        score: Per example, higher is better: 1 or 0 for right or wrong, or -error^2.
        losses: Negative log likelihood per example, nats.
    """

    score: Tensor
    losses: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> Self:
        """Undo :meth:`tensors`, the names there behind a prefix."""
        return cls(tensors[f"{prefix}score"], tensors[f"{prefix}losses"])

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a checkpoint."""
        return {"score": self.score.cpu(), "losses": self.losses.cpu()}

    @property
    def nll(self) -> float:
        """Mean negative log likelihood, nats."""
        return float(self.losses.mean())

    @property
    def loss(self) -> float:
        """What networks are compared by, lower is better, positive: NLL, or squared error."""
        return self.nll if self.mean >= 0 else -self.mean

    @property
    def loss_error(self) -> float:
        """Standard error of :attr:`loss`; zero of a single example."""
        return _standard_error(self._each)

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.score.mean())

    @property
    def _each(self) -> Tensor:
        """The loss of every example."""
        return self.losses if self.mean >= 0 else -self.score

    def worse_than(self, other: Scores, errors: float = 2.0) -> bool:
        """Whether the loss is higher on the same examples by so many paired standard errors."""
        return _paired(self._each - other._each, errors)

    def scores_below(self, other: Scores, errors: float = 2.0) -> bool:
        """The same of the score: the loss of a network too sure of itself hides what it knows."""
        return _paired(other.score - self.score, errors)


def _paired(difference: Tensor, errors: float) -> bool:
    """Whether a mean difference lies above zero by so many standard errors."""
    # Rounding must not tell equal networks apart.
    return float(difference.mean()) > errors * _standard_error(difference) + 1e-12


def _standard_error(values: Tensor) -> float:
    """Of the mean; zero of a single value."""
    return float(values.std(correction=0)) / math.sqrt(len(values))


@torch.no_grad()
def validate(
    network: nn.Module, likelihood: Likelihood, batches: Iterable[tuple[Tensor, ...]]
) -> Scores:
    """Score a network in evaluation mode; its training mode is restored. Ranks share the rows.

    Weighted examples have their scores multiplied by their share, so that plain means are right.
    """
    training = network.training
    network.eval()
    scores, losses, weights = [], [], []
    for x, y, *weight in batches:
        own = ranks.share(len(y))
        output = network(x[own]).float()
        scores.append(_at(own, likelihood.score(output, y[own]), len(y)))
        losses.append(_at(own, likelihood.nll(output, y[own]), len(y)))
        weights += weight
    network.train(training)
    score, loss = ranks.summed(torch.stack((torch.cat(scores), torch.cat(losses)))).double().cpu()
    if weights:
        share = torch.cat(weights).double().cpu()
        share = share / share.mean()
        score, loss = score * share, loss * share
    return Scores(score, loss)


def _at(own: slice, values: Tensor, rows: int) -> Tensor:
    """Values of some rows among zeros for the others."""
    if len(values) == rows:
        return values
    full = values.new_zeros(rows)
    full[own] = values
    return full
