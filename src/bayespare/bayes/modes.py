"""Weights at their mode, with what a Laplace approximation knows of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from bayespare.bayes.layers import Drawn, Layer
from bayespare.bayes.weights import Cut, Draw, Statistics, Weights


@final
class LaplaceWeights(Weights):
    """Modes as posterior means; log precisions of the prior and curvature of each weight and bias.

    Args:
        layers: The layers.
        masked: Whether single weights can be removed. What is gone is zero, takes no gradient and
            is in no sum.
    """

    KINDS = ("log_precision", "curvature", "shared")

    def __init__(self, layers: Sequence[Layer], *, masked: bool = False) -> None:
        super().__init__(layers)
        self.masked = masked
        for name, value in self.parameters_by_name().items():
            for kind in self.KINDS:
                self.register_buffer(self._place(kind, name), torch.zeros_like(value.detach()))
            if masked:
                every = torch.ones_like(value, dtype=torch.bool)
                self.register_buffer(self._place("there", name), every)
        self.register_buffer("looks", torch.zeros((), dtype=torch.long))
        self.looks: Tensor

    @staticmethod
    def _place(kind: str, name: str) -> str:
        return f"{kind}:{name.replace('.', '/')}"

    @property
    def known(self) -> bool:
        """Whether curvature has been measured."""
        return int(self.looks) > 0

    def parameter_names(self) -> list[str]:
        """Names of all weights and biases in the network."""
        return list(self.parameters_by_name())

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All weights and biases by their name in the network."""
        return {
            f"{layer.name}.{leaf}": parameter
            for layer in self.layers
            for leaf, parameter in layer.parameters().items()
        }

    def get(self, kind: str, name: str) -> Tensor:
        """What is known of a parameter, in its shape: one of :attr:`KINDS`, or ``there``."""
        value: Tensor = getattr(self, self._place(kind, name))
        return value

    def set(self, name: str, log_precision: Tensor, curvature: Tensor, shared: Tensor) -> None:
        """Note a look at one parameter."""
        for kind, value in zip(self.KINDS, (log_precision, curvature, shared), strict=True):
            self.get(kind, name).copy_(value)
        self.looks += 1

    # ---------------------------------------------------------------- masks
    @torch.no_grad()
    def prune(self, keep: Mapping[str, Tensor]) -> None:
        """Remove weights and biases; what is gone stays gone.

        Args:
            keep: Parameter name to which of its entries stay, boolean, in its shape.
        """
        for name, stays in keep.items():
            self.get("there", name).logical_and_(stays)
        self.silence()

    @torch.no_grad()
    def silence(self) -> None:
        """Set what is gone to zero; an optimiser's momentum may have moved it."""
        if self.masked:
            for name, value in self.parameters_by_name().items():
                value.mul_(self.get("there", name))

    def mean(self, index: int, gate: Tensor | None, factor: Tensor | None) -> Drawn:
        """See :class:`Weights`."""
        drawn, layer = super().mean(index, gate, factor), self.layers[index]
        if not self.masked:
            return drawn
        weight = layer.stored(self.get("there", f"{layer.name}.weight"))
        bias = None if layer.bias is None else self.get("there", f"{layer.name}.bias")
        return drawn.without(weight, bias)

    # ------------------------------------------------------------ see Weights
    def draw(
        self,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        generator: torch.Generator | None,
    ) -> list[Draw]:
        """See :class:`Weights`: training is at the modes."""
        return self.means(inputs, outputs)

    def statistics(self, inputs: Sequence[Tensor]) -> list[Statistics]:
        """See :class:`Weights`."""
        result = []
        for layer, read in zip(self.layers, inputs, strict=True):
            name = f"{layer.name}.weight"
            variance = layer.stored(self._variance(name)).flatten(1)
            square = torch.mv(layer.weight.flatten(1).square() + variance, read)
            result.append(Statistics(read.sum(), square, torch.mv(0.5 * variance.log(), read)))
        return result

    def _variance(self, name: str) -> Tensor:
        return 1 / (self.get("curvature", name) + self.get("log_precision", name).exp())

    def cuts(self, columns: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`Weights`."""
        cuts = []
        kinds = (*self.KINDS, "there") if self.masked else self.KINDS
        for layer, column, row in zip(self.layers, columns, rows, strict=True):
            kernel = layer.weight.shape[2:].numel()
            lines = {"weight": [row, column[::kernel]], "bias": [row]}
            if layer.inputs_first:
                lines["weight"].reverse()
            for leaf in layer.parameters():
                for kind in kinds:
                    place = self._place(kind, f"{layer.name}.{leaf}")
                    cuts += [Cut(self, place, dim, keep) for dim, keep in enumerate(lines[leaf])]
        return cuts

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Weights`: of the Laplace posterior; none before the first look."""
        if not self.known:
            return {}
        std = {name: self._variance(name).sqrt() for name in self.parameter_names()}
        if not self.masked:
            return std
        return {name: value * self.get("there", name) for name, value in std.items()}
