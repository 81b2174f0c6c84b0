"""A copy of a model on which a plan can be proven: its own weights may hide a mistake.

A branch that starts at zero, or attention that is still uniform, adds nothing to the output: a
wrong cut in it would not show. What can be removed does not depend on the weights, so they are
drawn anew.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bayespare.errors import BayespareError
from bayespare.structure.compare import outputs


def stand_in(
    model: nn.Module, examples: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a copy with weights of ordinary size, in float64, and the examples to go with it.

    A model that insists on its own precision keeps it; one that says nothing finite with other
    weights keeps its own.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = deepcopy(model)
    _draw(drawn, generator)
    wide = tuple(x.double() if x.is_floating_point() else x for x in examples)
    for candidate, given in ((deepcopy(drawn).double(), wide), (drawn, examples)):
        try:
            finite = all(bool(y.isfinite().all()) for y in outputs(candidate, given))
        except BayespareError:
            continue
        if finite:
            return candidate, given
    return model, examples


@torch.no_grad()
def _draw(model: nn.Module, generator: torch.Generator) -> None:
    """Draw parameters, and the statistics of batch norms, in place."""

    def normal(like: Tensor, std: float) -> Tensor:
        return (torch.randn(like.shape, generator=generator) * std).to(like)

    def positive(like: Tensor) -> Tensor:
        return (0.5 + torch.rand(like.shape, generator=generator)).to(like)

    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            parameter.copy_(normal(parameter, 1.5 / math.sqrt(max(fan, 1))))
        else:
            parameter.copy_(positive(parameter) * normal(parameter, 1).sign())
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(normal(module.running_mean, 0.5))
            module.running_var.copy_(positive(module.running_var))
