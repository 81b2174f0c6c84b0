"""The dense reference: ordinary training with the same epochs and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bayespare.bayes.likelihood import Likelihood
from bayespare.data import Batches, Dataset
from bayespare.training.loop import cosine, run_epoch
from bayespare.training.schedule import Settings


def train_dense(
    network: nn.Module,
    likelihood: Likelihood,
    data: Dataset,
    *,
    epochs: int,
    settings: Settings,
    generator: torch.Generator,
    rate: float = 1e-3,
    phase: str = "dense",
    report: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train a network in place with Adam, the learning rate falling to zero along a cosine.

    Args:
        network: On the device of the data.
        likelihood: Gives the loss; its own parameters are trained too.
        data: Training data.
        epochs: Passes over the data.
        settings: Batch and precision.
        generator: Source of the batches' order.
        rate: Initial learning rate.
        phase: What the rows of history call it.
        report: Called with a row of history after every epoch.
    """
    groups = [
        {"params": [p for p in network.parameters() if p.requires_grad], "base_lr": rate},
        # One number: at the network's rate it would still be on its way at the end.
        {"params": list(likelihood.parameters()), "base_lr": 10 * rate},
    ]
    optimizer = torch.optim.Adam([g for g in groups if g["params"]], fused=True)
    batches = Batches(data, settings.batch, generator=generator, shuffle=True, drop_last=True)
    for epoch in range(epochs):
        start = epoch

        def falling(step: int, start: int = start) -> float:
            return cosine((start + step / len(batches)) / epochs)

        summary = run_epoch(
            network,
            likelihood,
            optimizer,
            batches,
            rate=falling,
            precision=settings.precision,
        )
        if report is not None:
            report(
                {
                    "phase": phase,
                    "epoch": epoch + 1,
                    "train_nll": summary.nll,
                    "seconds": summary.seconds,
                }
            )
