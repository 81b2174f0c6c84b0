"""Ordinary training: the start of a run, and the dense reference it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.bayes.likelihood import Likelihood
from bayespare.data import Batches, Dataset
from bayespare.training import ranks
from bayespare.training.fit import moments, restore_moments
from bayespare.training.loop import EpochSummary, falling, run_epoch
from bayespare.training.schedule import Settings


class DenseTraining:
    """Training of a network in place with Adam, the learning rate falling to zero along a falling.

    Args:
        network: On the device of the data.
        likelihood: Gives the loss; its own parameters are trained too.
        data: Training data.
        epochs: Passes over the data.
        settings: Batch and precision.
        generator: Source of the batches' order.
        rate: Initial learning rate.

    Attributes:
        epoch: Epochs done.
    """

    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        data: Dataset,
        *,
        epochs: int,
        settings: Settings,
        generator: torch.Generator,
        rate: float = 1e-3,
    ) -> None:
        self.network, self.likelihood = network, likelihood
        self.epochs, self.precision = epochs, settings.precision
        self.epoch = 0
        groups = [
            {"params": [p for p in network.parameters() if p.requires_grad], "base_lr": rate},
            # One number: at the network's rate it would still be on its way at the end.
            {"params": list(likelihood.parameters()), "base_lr": 10 * rate},
        ]
        self.optimizer = torch.optim.Adam([g for g in groups if g["params"]], fused=True)
        self.batches = Batches(
            data,
            settings.batch,
            generator=generator,
            shuffle=True,
            drop_last=True,
            share=ranks.share(settings.batch),
        )

    def run(
        self,
        after_epoch: Callable[[EpochSummary], None] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """Train the epochs that are left."""
        while self.epoch < self.epochs:
            summary = run_epoch(
                self.network,
                self.likelihood,
                self.optimizer,
                self.batches,
                rate=falling(self.epoch, self.epochs, len(self.batches)),
                after_step=after_step,
                precision=self.precision,
            )
            self.epoch += 1
            if after_epoch is not None:
                after_epoch(summary)

    def row(self, phase: str, summary: EpochSummary) -> dict[str, Any]:
        """The row of history of the epoch that has just been done."""
        return {
            "phase": phase,
            "epoch": self.epoch,
            "train_nll": summary.nll,
            "seconds": summary.seconds,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything as flat tensors; the number of epochs done is not among them."""
        parts = {
            "network": self.network.state_dict(),
            "likelihood": self.likelihood.state_dict(),
            "optimizer": moments(self.optimizer),
        }
        return {
            f"{part}/{name}": value.detach().cpu().contiguous()
            for part, values in parts.items()
            for name, value in values.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], epoch: int) -> None:
        """Undo :meth:`state`.

        Raises:
            RuntimeError: If a tensor is missing or has another shape, or the training is shorter.
        """
        if not 0 <= epoch <= self.epochs:
            raise RuntimeError(f"{epoch} epochs are done of {self.epochs}")
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "likelihood": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        self.network.load_state_dict(parts["network"])
        self.likelihood.load_state_dict(parts["likelihood"])
        restore_moments(self.optimizer, parts["optimizer"])
        self.epoch = epoch


def train_dense(
    network: nn.Module,
    likelihood: Likelihood,
    data: Dataset,
    *,
    epochs: int,
    settings: Settings,
    generator: torch.Generator,
    rate: float = 1e-3,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train the dense reference in place, as :class:`DenseTraining`.

    Args:
        network: On the device of the data.
        likelihood: Gives the loss; its own parameters are trained too.
        data: Training data.
        epochs: Passes over the data.
        settings: Batch and precision.
        generator: Source of the batches' order.
        rate: Initial learning rate.
        report: Called with a row of history after every epoch.
    """
    training = DenseTraining(
        network,
        likelihood,
        data,
        epochs=epochs,
        settings=settings,
        generator=generator,
        rate=rate,
    )

    def after(summary: EpochSummary) -> None:
        if report is not None:
            report(training.row("dense", summary))

    training.run(after)
