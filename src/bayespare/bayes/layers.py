"""Linear and convolution layers whose weights are drawn afresh at every step.

A variational layer holds its posterior means as ordinary ``weight`` and ``bias``, under the names
they have in the user's network. What varies from step to step is put into ``drawn`` by whoever
owns the posterior; without it the layer computes with its means.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayespare.bayes.fused import noisy_linear
from bayespare.errors import UnsupportedStructureError


class Drawn(NamedTuple):
    """Parameters of one layer for one forward pass.

    Attributes:
        weight: Weight to multiply with, the shape of the layer's own.
        bias: Bias to add, or None.
        noise: How a linear layer draws its noise at the output, per example; None when ``weight``
            already carries it.
    """

    weight: Tensor
    bias: Tensor | None
    noise: OutputNoise | None = None


class OutputNoise(NamedTuple):
    """Rank-one weight noise, drawn at the output (local reparameterisation).

    Attributes:
        gate: Factor of every input of the layer and of its noise, shape ``(inputs,)``, or None.
        variance_in: Shape ``(inputs,)``.
        std_out: Shape ``(outputs,)``; the variance of weight (o, i) is their product, squared
            in ``std_out``.
        generator: Source of the noise.
    """

    gate: Tensor | None
    variance_in: Tensor
    std_out: Tensor
    generator: torch.Generator | None


class VariationalLinear(nn.Linear):
    """``nn.Linear`` with a draw; reads only the inputs in ``select`` when that is set."""

    drawn: Drawn | None
    select: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, shape ``(..., inputs)`` to ``(..., outputs)``."""
        if self.select is not None:
            x = x.index_select(-1, self.select)
        weight, bias, noise = self.drawn or Drawn(self.weight, self.bias)
        if noise is None:
            return functional.linear(x, weight, bias)
        gate, variance_in, std_out, generator = noise
        shape = (*x.shape[:-1], len(std_out))
        draw = torch.empty(shape, device=x.device).normal_(generator=generator)
        if torch.is_autocast_enabled(x.device.type):
            return _noisy_linear_autocast(x, weight, bias, noise, draw)
        rows = x.reshape(-1, x.shape[-1])
        out = noisy_linear(
            rows, weight, bias, gate, variance_in, std_out, draw.view(-1, len(std_out))
        )
        return out.view(shape)


def _noisy_linear_autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None, noise: OutputNoise, draw: Tensor
) -> Tensor:
    """:func:`noisy_linear` in operations that autocast knows: the products run in bfloat16."""
    gate, variance_in, std_out, _ = noise
    if gate is not None:
        weight, variance_in = weight * gate, variance_in * gate.square()
    out = functional.linear(x, weight, bias)
    spread = ((x.float().square() * variance_in).sum(-1, keepdim=True) + 1e-10).sqrt()
    return out + spread * std_out * draw


class _VariationalConv(nn.modules.conv._ConvNd):
    """A convolution with a draw."""

    drawn: Drawn | None
    select: None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, shape ``(N, channels in, ...)`` to ``(N, channels out, ...)``."""
        weight, bias, _ = self.drawn or Drawn(self.weight, self.bias)
        return self._conv_forward(x, weight, bias)


class VariationalConv1d(_VariationalConv, nn.Conv1d):
    """``nn.Conv1d`` with a draw."""


class VariationalConv2d(_VariationalConv, nn.Conv2d):
    """``nn.Conv2d`` with a draw."""


VariationalLayer = VariationalLinear | VariationalConv1d | VariationalConv2d

_KINDS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: VariationalLinear,
    nn.Conv1d: VariationalConv1d,
    nn.Conv2d: VariationalConv2d,
}


def can_be_variational(layer: nn.Module) -> bool:
    """Whether a layer has a variational form, or is one."""
    return type(layer) in _KINDS or type(layer) in _KINDS.values()


def make_variational(network: nn.Module, name: str) -> VariationalLayer:
    """Replace one stock layer of ``network`` by its variational kind, sharing its parameters.

    Raises:
        UnsupportedStructureError: If the layer is not a Linear, Conv1d or Conv2d.
    """
    stock = network.get_submodule(name)
    kind = _KINDS.get(type(stock))
    if kind is None:
        raise UnsupportedStructureError(
            f"layer {name!r} is a {type(stock).__name__}, which has no variational form; "
            f"supported: {', '.join(k.__name__ for k in _KINDS)}"
        )
    layer: VariationalLayer = nn.Module.__new__(kind)
    # The stock layer's own attributes (stride, padding, parameters, hooks) stay as they are.
    layer.__dict__.update(stock.__dict__)
    layer.drawn = None
    layer.select = None
    network.set_submodule(name, layer)
    return layer
