"""Layers whose weights are drawn afresh at every step.

A layer holds its posterior means as ordinary ``weight`` and ``bias``, under the names they have in
the user's network. What varies from step to step is handed to it by whoever owns the posterior
(:meth:`Layer.compute_with`); without it the layer computes with its means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bayespare.bayes.fused import noisy_linear
from bayespare.errors import UnsupportedStructureError


class Drawn(NamedTuple):
    """Parameters of one layer for one forward pass.

    Attributes:
        weight: Weight to multiply with, the shape of the layer's own.
        bias: Bias to add, or None.
        noise: How a linear layer draws its noise at the output, per example (local
            reparameterisation); None when ``weight`` already carries it.
    """

    weight: Tensor
    bias: Tensor | None
    noise: OutputNoise | EntryNoise | None = None

    def in_the_weight(self) -> Tensor:
        """The weight with its noise, drawn here and not at the output."""
        return self.weight if self.noise is None else self.noise.drawn(self.weight)

    def in_the_bias(self) -> Tensor | None:
        """The bias with its noise, if it has any."""
        if self.bias is None or not isinstance(self.noise, EntryNoise):
            return self.bias
        return self.noise.drawn_bias(self.bias)

    def without(self, weight: Tensor, bias: Tensor | None) -> Drawn:
        """The same, zero where these are; of ``bias`` only if there is one."""
        kept = None if self.bias is None or bias is None else self.bias * bias
        return Drawn(self.weight * weight, kept, self.noise)


class EntryNoise(NamedTuple):
    """Noise of its own for every weight and bias, drawn at the output.

    Kingma, Salimans and Welling 2015, "Variational Dropout and the Local Reparameterization Trick".

    Attributes:
        variance: Of the weight, shape ``(outputs, inputs)``.
        bias: Variance of the bias, shape ``(outputs,)``, or None.
        generator: Source of the noise.
    """

    variance: Tensor
    bias: Tensor | None
    generator: torch.Generator | None

    def drawn(self, weight: Tensor) -> Tensor:
        """A weight with these means, drawn."""
        shape = tuple(weight.shape)
        return weight + self.variance.sqrt() * standard_normal(shape, weight.device, self.generator)

    def drawn_bias(self, bias: Tensor) -> Tensor:
        """A bias with these means, drawn."""
        if self.bias is None:
            return bias
        shape = tuple(bias.shape)
        return bias + self.bias.sqrt() * standard_normal(shape, bias.device, self.generator)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a linear layer with these means, its weights drawn for each example."""
        out = functional.linear(x, weight, bias)
        variance = functional.linear(x.square(), self.variance, self.bias)
        # The root has no gradient at zero, where there is no noise either.
        spread = (variance + 1e-10).sqrt().masked_fill(variance == 0, 0.0)
        draw = standard_normal(tuple(out.shape), out.device, self.generator)
        return torch.addcmul(out, spread, draw.to(out.dtype))


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

    def drawn(self, weight: Tensor) -> Tensor:
        """A weight with these means, drawn and gated."""
        gate, variance_in, std_out, generator = self
        draw = standard_normal(tuple(weight.shape), weight.device, generator)
        weight = weight + std_out.unsqueeze(1) * variance_in.sqrt() * draw
        return weight if gate is None else weight * gate

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a linear layer with these means, its weights drawn for each example."""
        gate, variance_in, std_out, generator = self
        shape = (*x.shape[:-1], len(std_out))
        draw = standard_normal(shape, x.device, generator)
        if torch.is_autocast_enabled(x.device.type):
            return _noisy_linear_autocast(x, weight, bias, self, draw)
        rows = x.reshape(-1, x.shape[-1])
        out = noisy_linear(
            rows, weight, bias, gate, variance_in, std_out, draw.view(-1, len(std_out))
        )
        # No view where there is no need: FSDP warns of them.
        return out.view(shape) if x.dim() != 2 else out


class VariationalLinear(nn.Linear):
    """``nn.Linear`` with a draw; reads only the inputs in ``select`` when that is set."""

    drawn: Drawn | None
    select: Tensor | None

    def __getattr__(self, name: str) -> Any:
        """As of any module; whoever multiplies with the weight without the layer gets a draw."""
        drawn = self.__dict__.get("drawn") if name in ("weight", "bias") else None
        if drawn is None:
            return super().__getattr__(name)
        return drawn.in_the_bias() if name == "bias" else drawn.in_the_weight()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, shape ``(..., inputs)`` to ``(..., outputs)``."""
        if self.select is not None:
            x = x.index_select(-1, self.select)
        weight, bias, noise = self.drawn or Drawn(self.weight, self.bias)
        if noise is None:
            return functional.linear(x, weight, bias)
        return noise.applied(x, weight, bias)


def standard_normal(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Noise for each row of a batch."""
    return torch.empty(shape, device=device).normal_(generator=generator)


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


@dataclass(frozen=True)
class Layer:
    """A layer with a posterior, its weight seen as a matrix ``(rows, columns)``.

    A frozen bias has none: it is used as it is.

    Attributes:
        name: Its name in the network.
        module: The layer.
        inputs_first: Whether its weight is stored the other way round, as those of transposed
            convolutions and of GPT-2 are.
    """

    name: str
    module: nn.Module
    inputs_first: bool = False

    @property
    def linear(self) -> bool:
        """Whether it draws its noise at the output, per example."""
        return isinstance(self.module, VariationalLinear)

    @property
    def weight(self) -> Tensor:
        """Means of the weight, outputs first, shape ``(rows, inputs, ...)``."""
        # Not the attribute: a draw may lie before it.
        return self.stored(cast(Tensor, self.module._parameters["weight"]))

    @property
    def bias(self) -> Tensor | None:
        """Means of the bias, shape ``(rows,)``."""
        return self.parameters().get("bias")

    def parameters(self) -> dict[str, nn.Parameter]:
        """Its weight and its bias, by that name; a user's layer may hold more, which stay plain."""
        own = {leaf: self.module._parameters.get(leaf) for leaf in ("weight", "bias")}
        return {leaf: p for leaf, p in own.items() if p is not None and p.requires_grad}

    @property
    def rows(self) -> int:
        """Output units."""
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """Weights that enter each output unit (inputs times kernel positions), without the bias."""
        return self.weight.shape[1:].numel()

    def stored(self, value: Tensor) -> Tensor:
        """Values per weight, outputs first, as the layer stores them; and back."""
        return value.transpose(0, 1) if self.inputs_first and value.dim() > 1 else value

    def compute_with(self, drawn: Drawn | None) -> None:
        """Let the layer compute with ``drawn``; with its means again if that is None.

        Without noise of its own at the output, the tensors are put before the parameters: whoever
        reads ``layer.weight`` finds them, also the attention that never calls its projection.
        """
        if drawn is not None and drawn.bias is None:
            drawn = drawn._replace(bias=self.module._parameters.get("bias"))
        if isinstance(self.module, VariationalLinear):
            self.module.drawn = drawn
            return
        for name in ("weight", "bias"):
            self.module.__dict__.pop(name, None)
        if drawn is not None:
            assert drawn.noise is None
            self.module.__dict__["weight"] = self.stored(drawn.weight)
            if drawn.bias is not None:
                self.module.__dict__["bias"] = drawn.bias


def can_be_variational(layer: nn.Module) -> bool:
    """Whether a layer can have a posterior: it multiplies with a weight that is its own.

    That is convolutions, and any layer with a matrix: also GPT-2's, also one of the user's.
    """
    weight = layer._parameters.get("weight")
    if weight is None or isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return False
    if isinstance(layer, _ConvTransposeNd):
        # In groups its outputs are no rows of its weight.
        return layer.groups == 1
    return isinstance(layer, _ConvNd) or weight.dim() == 2


def make_variational(network: nn.Module, name: str, *, inputs_first: bool = False) -> Layer:
    """Prepare one layer of ``network`` for draws; it shares its parameters.

    An ``nn.Linear`` is replaced by :class:`VariationalLinear`; others stay what they are.

    Args:
        network: Holds the layer.
        name: Of the layer.
        inputs_first: As :attr:`Layer.inputs_first`.

    Raises:
        UnsupportedStructureError: If the layer cannot have a posterior.
    """
    stock = network.get_submodule(name)
    if not can_be_variational(stock):
        raise UnsupportedStructureError(
            f"layer {name!r} is a {type(stock).__name__}, which cannot have a posterior; layers "
            "that multiply with a matrix or a filter of their own can"
        )
    if type(stock) is nn.Linear:
        layer: Any = nn.Module.__new__(VariationalLinear)
        # The stock layer's own attributes (sizes, parameters, hooks) stay as they are.
        layer.__dict__.update(stock.__dict__)
        layer.drawn = None
        layer.select = None
        # A hook keeps PyTorch's fused encoder away, which reads weights past their layers.
        layer.register_forward_pre_hook(_nothing)
        network.set_submodule(name, layer)
    return Layer(name, network.get_submodule(name), inputs_first)


def _nothing(layer: nn.Module, inputs: Any) -> None:
    """Do nothing."""
