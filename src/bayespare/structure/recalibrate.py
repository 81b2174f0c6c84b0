"""Statistics of batch norms, measured anew after units were removed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bayespare.errors import BayespareError
from bayespare.structure.stack import evaluating, layers_in_training


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any], *, batches: int = 10) -> int:
    """Measure the running mean and variance of every batch norm anew, in place.

    Removing units changes what later norms see; a few batches set their statistics right. Each
    statistic becomes the average over the batches, every batch with the same weight; only the norms
    are in training mode meanwhile, so that nothing else (dropout) is. Modes and momenta are as
    before afterwards.

    Args:
        model: The model; without such norms it is left alone and nothing is read.
        loader: Batches: inputs, or tuples whose first element is the input.
        batches: How many of them are used at most.

    Returns:
        Number of norms that were measured.

    Raises:
        BayespareError: If there is no batch, or a statistic is not finite; the statistics are then
            as before.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    }
    if not norms:
        return 0
    before = [(norm, norm.momentum, _state(norm)) for norm in norms.values()]
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over the batches
        seen = _run(model, list(norms.values()), islice(loader, batches))
        if not seen:
            raise BayespareError("recalibrate: there are no batches")
        for name, norm in norms.items():
            if not all(bool(tensor.isfinite().all()) for tensor in _state(norm).values()):
                raise BayespareError(f"recalibrate: layer {name} sees values that are not finite")
    except BaseException:
        for norm, _, state in before:
            for leaf, tensor in state.items():
                norm.get_buffer(leaf).copy_(tensor)
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum
    return len(norms)


def _state(norm: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}


def _run(model: nn.Module, norms: list[Any], batches: Iterable[Any]) -> int:
    """Run batches through the model with only the norms in training mode; return how many."""
    seen = 0
    with evaluating(model), layers_in_training(norms):
        for batch in batches:
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            try:
                model(x)
            except (RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())
                shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
                raise BayespareError(
                    f"recalibrate: the model does not run on a batch of shape {shape} ({reason})"
                ) from error
            seen += 1
    return seen
