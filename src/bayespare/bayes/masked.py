"""Mean-field posteriors of which single weights have been removed for good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from bayespare.bayes.fused import masked_draw
from bayespare.bayes.layers import Drawn, EntryNoise, Layer
from bayespare.bayes.scales import Moments
from bayespare.bayes.weights import Cut, Draw, SlabStd, Statistics, Weights, scaled


@final
class MaskedWeights(Weights):
    """One standard deviation per weight and bias, and a boolean mask over both.

    A weight outside the mask is exactly zero, mean and noise, takes no gradient and is in no
    count.

    Args:
        layers: The layers.
        stds: Initial standard deviation of the weights and bias of each layer.
        per_example: Draw the noise of linear layers at their outputs, for each example (a second
            matrix product); otherwise, and of convolutions always, one draw a batch is shared by
            its examples.
    """

    def __init__(
        self, layers: Sequence[Layer], stds: Sequence[float], *, per_example: bool = False
    ) -> None:
        super().__init__(layers)
        self.per_example = per_example
        weights, biases = [], []
        for index, (layer, std) in enumerate(zip(layers, stds, strict=True)):
            weight, rows = layer.weight, layer.rows
            rows = rows if layer.bias is not None else 0
            weights.append(torch.full_like(weight, math.log(std)))
            biases.append(torch.full((rows,), math.log(std), device=weight.device))
            every = torch.ones_like(weight, dtype=torch.bool)
            self.register_buffer(f"weight_mask_{index}", every)
            self.register_buffer(f"bias_mask_{index}", every.new_ones(rows))
        self.weight_rho = nn.ParameterList(weights)
        self.bias_rho = nn.ParameterList(biases)

    def masks(self, index: int) -> tuple[Tensor, Tensor]:
        """Which weights, and which biases, of a layer are there."""
        return getattr(self, f"weight_mask_{index}"), getattr(self, f"bias_mask_{index}")

    @torch.no_grad()
    def prune(self, keep: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Remove weights and biases; what is gone stays gone.

        Args:
            keep: Place of the layer to boolean tensors like its weight and its bias.
        """
        for index, lines in keep.items():
            for mask, line in zip(self.masks(index), lines, strict=True):
                mask &= line.view_as(mask).to(mask.device)

    def draw(
        self,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        generator: torch.Generator | None,
    ) -> list[Draw]:
        """See :class:`Weights`."""
        return self.later(self._draw, inputs, outputs, generator)

    def _draw(
        self,
        index: int,
        gate: Tensor | None,
        factor: Tensor | None,
        generator: torch.Generator | None,
    ) -> Drawn:
        weight_mask, bias_mask = self.masks(index)
        if self.per_example and self.layers[index].linear:
            return self._at_the_output(index, gate, factor, generator)
        weight, bias = self.layers[index].weight, self.layers[index].bias
        noise = torch.empty_like(weight).normal_(generator=generator)
        weight = masked_draw(weight, self.weight_rho[index], weight_mask, noise)
        if bias is not None:
            noise = torch.empty_like(bias).normal_(generator=generator)
            bias = masked_draw(bias, self.bias_rho[index], bias_mask, noise)
        if gate is not None:
            weight = weight * gate.view(weight.shape[1:])
        return Drawn(*scaled(weight, bias, factor))

    def _at_the_output(
        self,
        index: int,
        gate: Tensor | None,
        factor: Tensor | None,
        generator: torch.Generator | None,
    ) -> Drawn:
        weight, bias, _ = self.mean(index, gate, factor)
        weight_mask, bias_mask = self.masks(index)
        variance = (2 * self.weight_rho[index]).exp() * weight_mask
        of_bias = None if bias is None else (2 * self.bias_rho[index]).exp() * bias_mask
        square = None if factor is None else factor.square()
        variance, of_bias = scaled(variance, of_bias, square)
        if gate is not None:
            variance = variance * gate.square()
        return Drawn(weight, bias, EntryNoise(variance, of_bias, generator))

    def mean(self, index: int, gate: Tensor | None, factor: Tensor | None) -> Drawn:
        """See :class:`Weights`."""
        return super().mean(index, gate, factor).without(*self.masks(index))

    def slab_kl(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        scales: Sequence[Moments],
        prior_std: SlabStd,
    ) -> Tensor:
        """See :class:`Weights`; the bias is one more weight, and what is gone costs nothing."""
        total = outputs[0].new_zeros(())
        priors = self.per_layer(prior_std)
        parts = zip(self._tables(), inputs, outputs, scales, priors, strict=True)
        for (square, log_std, mask), read, present, scale, std in parts:
            extra = read.new_ones(mask.shape[1] - len(read))
            there = mask * torch.outer(present, torch.cat((read, extra)))
            inverse, log_square = (
                part if part.dim() == 0 else part.unsqueeze(1)
                for part in (scale.inverse_square, scale.log_square)
            )
            number, spread = there.sum(), (there * square * inverse).sum()
            total = total + (there * (log_square / 2 - log_std)).sum()
            if std is None:
                tiny = torch.finfo(spread.dtype).tiny
                number, spread = number.clamp_min(tiny), spread.clamp_min(tiny)
                total = total + 0.5 * number * (spread / number).log()
            else:
                total = total + number * (math.log(std) - 0.5) + spread / (2 * std**2)
        return total

    def statistics(self, inputs: Sequence[Tensor]) -> list[Statistics]:
        """See :class:`Weights`; the number is the mean over the rows."""
        result = []
        for (square, log_std, mask), read in zip(self._tables(), inputs, strict=True):
            there = mask * torch.cat((read, read.new_ones(mask.shape[1] - len(read))))
            number = there.sum(1).mean()
            result.append(Statistics(number, (there * square).sum(1), (there * log_std).sum(1)))
        return result

    def _tables(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """E[w^2], log std and mask of each layer as matrices, the bias their last column."""
        tables = []
        for index, layer in enumerate(self.layers):
            mean, log_std = layer.weight, self.weight_rho[index]
            weight_mask, bias_mask = self.masks(index)
            parts = [mean.flatten(1), log_std.flatten(1), weight_mask.flatten(1)]
            if layer.bias is not None:
                last = (layer.bias, self.bias_rho[index], bias_mask)
                parts = [
                    torch.cat((part, column.unsqueeze(1)), 1)
                    for part, column in zip(parts, last, strict=True)
                ]
            mean, log_std, mask = parts
            tables.append((mean.square() + (2 * log_std).exp(), log_std, mask))
        return tables

    def cuts(self, columns: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`Weights`."""
        cuts = []
        for index, (layer, column, row) in enumerate(zip(self.layers, columns, rows, strict=True)):
            kernel = layer.weight.shape[2:].numel()
            matrices: list[tuple[nn.Module, str]] = [
                (self.weight_rho, str(index)),
                (self, f"weight_mask_{index}"),
            ]
            for module, name in matrices:
                cuts += [Cut(module, name, 0, row), Cut(module, name, 1, column[::kernel])]
            if layer.bias is not None:
                cuts.append(Cut(self.bias_rho, str(index), 0, row))
                cuts.append(Cut(self, f"bias_mask_{index}", 0, row))
        return cuts

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Weights`; zero where a weight is gone."""
        result = {}
        for index, layer in enumerate(self.layers):
            weight_mask, bias_mask = self.masks(index)
            std = self.weight_rho[index].detach().exp()
            result[f"{layer.name}.weight"] = layer.stored(std * weight_mask)
            if layer.bias is not None:
                result[f"{layer.name}.bias"] = self.bias_rho[index].detach().exp() * bias_mask
        return result
