"""Mean-field Gaussian posteriors over the weights of a network's variational layers.

The means are the layers' own ``weight`` (and ``bias``). Two families of standard deviations:
:class:`TiedWeights`, rank one (std of weight (o, i) = output_o * input_i), which costs no second
matrix product, and :class:`FullWeights`, one per weight and bias, as in the published code.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bayespare.bayes.fused import tied_slab_kl
from bayespare.bayes.layers import Drawn, Layer, OutputNoise
from bayespare.bayes.scales import Moments
from bayespare.bayes.sharded import is_sharded, row_squares

# Computed as late as possible: where the layer's weight lies on several devices, it is here only
# while the layer runs.
Draw: TypeAlias = Callable[[], Drawn]

# sigma_0 of the slab: one, one per layer, or None for its optimum in each layer.
SlabStd = float | None | Sequence[float | None]


class Statistics(NamedTuple):
    """What a slab's KL needs to know of the weights that enter each output unit.

    Attributes:
        number: Expected number of weights, scalar.
        square: Sum of E[w^2], shape ``(rows,)``.
        log_std: Sum of log standard deviations, shape ``(rows,)``.
    """

    number: Tensor
    square: Tensor
    log_std: Tensor


class Cut(NamedTuple):
    """A boolean mask over one dimension of one tensor of a module."""

    module: nn.Module
    name: str
    dim: int
    keep: Tensor


class Weights(nn.Module):
    """Standard deviations of all variational layers, and what follows from them."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        # A tuple, so that the network's layers do not become submodules of the posterior.
        self.layers = tuple(layers)

    @abstractmethod
    def draw(
        self,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        generator: torch.Generator | None,
    ) -> list[Draw]:
        """What draws each layer's parameters.

        Args:
            inputs: Per layer, factors of its columns (gates of the units it reads), or None.
            outputs: Per layer, factors of its rows and biases (gates, scales), or None.
            generator: Source of the noise.
        """

    @abstractmethod
    def statistics(self, inputs: Sequence[Tensor]) -> list[Statistics]:
        """Sums over the columns of each layer, weighted by ``inputs`` (inclusion probabilities)."""

    def slab_kl(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        scales: Sequence[Moments],
        prior_std: SlabStd,
    ) -> Tensor:
        """KL of all weights from their slabs, nats, each weighted by the presence of its ends.

        Args:
            inputs: Inclusion probability per column, per layer.
            outputs: Inclusion probability per row, per layer; ones at the network's outputs.
            scales: Moments of the unit scales, per layer.
            prior_std: sigma_0 of the slab, one or per layer; None for its optimum in each layer.
        """
        total = outputs[0].new_zeros(())
        for statistics, present, scale, std in zip(
            self.statistics(inputs), outputs, scales, self.per_layer(prior_std), strict=True
        ):
            total = total + slab_kl(statistics, present, scale, std)
        return total

    def per_layer(self, prior_std: SlabStd) -> Sequence[float | None]:
        """sigma_0 of every layer's slab; None for its optimum."""
        return prior_std if isinstance(prior_std, Sequence) else [prior_std] * len(self.layers)

    @abstractmethod
    def cuts(self, columns: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """What to cut from the posterior's own tensors when the layers lose rows and columns."""

    @abstractmethod
    def standard_deviations(self) -> dict[str, Tensor]:
        """Standard deviation per parameter name of the network, shaped like the parameter."""

    def means(
        self, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
    ) -> list[Draw]:
        """What gives the posterior means, gated and scaled as in :meth:`draw`, for evaluation."""
        return self.later(self.mean, inputs, outputs)

    @staticmethod
    def later(
        draw: Callable[..., Drawn],
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        *more: Any,
    ) -> list[Draw]:
        """What calls ``draw`` with the place of each layer, its factors, and what more it takes."""
        pairs = zip(inputs, outputs, strict=True)
        return [partial(draw, index, *pair, *more) for index, pair in enumerate(pairs)]

    def mean(self, index: int, gate: Tensor | None, factor: Tensor | None) -> Drawn:
        """The posterior mean of one layer, gated and scaled."""
        layer = self.layers[index]
        weight, bias = scaled(layer.weight, layer.bias, factor)
        if gate is not None:
            weight = weight * gate.view(weight.shape[1:])
        return Drawn(weight, bias)


def scaled(
    weight: Tensor, bias: Tensor | None, factor: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Multiply the rows of a weight, and its bias, by ``factor``."""
    if factor is None:
        return weight, bias
    weight = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    return weight, None if bias is None else bias * factor


def scale_rows(
    layers: Sequence[Layer], values: Mapping[str, Tensor], factors: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """Multiply what belongs to the rows of each layer, weights and biases by name."""
    result = dict(values)
    for layer, factor in zip(layers, factors, strict=True):
        for name in (f"{layer.name}.{leaf}" for leaf in layer.parameters()):
            if name in result:
                value, _ = scaled(layer.stored(result[name]), None, factor)
                result[name] = layer.stored(value).detach()
    return result


def slab_kl(
    statistics: Statistics, present: Tensor, scale: Moments, prior_std: float | None
) -> Tensor:
    """KL of one layer's weights from their slabs, nats, weighted by its units' presence.

    Per unit: number (log sigma_0 + E[log s^2]/2 - 1/2) - sum log std
    + square E[1/s^2] / (2 sigma_0^2).
    At the optimal sigma_0 (``prior_std=None``) the terms -1/2 and square/(2 sigma_0^2) cancel.

    Args:
        statistics: Sums over the weights that enter each unit.
        present: Inclusion probability per unit, shape ``(rows,)``.
        scale: E[log s^2] and E[1/s^2], scalars or per unit.
        prior_std: sigma_0, or None.
    """
    count, square, log_std = statistics
    spread = torch.dot(present, square * scale.inverse_square)
    scales = count / 2 * (present * scale.log_square).sum()
    logs = torch.dot(present, log_std)
    number = present.sum() * count
    if prior_std is None:
        # The presence of a layer that is all but gone underflows, to 0 / 0 without this.
        tiny = torch.finfo(spread.dtype).tiny
        spread, number = spread.clamp_min(tiny), number.clamp_min(tiny)
        return 0.5 * number * (spread / number).log() + scales - logs
    return number * (math.log(prior_std) - 0.5) + scales - logs + spread / (2 * prior_std**2)


@final
class TiedWeights(Weights):
    """Rank-one standard deviations; biases are deterministic.

    Linear layers draw their noise at the output, per example; convolutions draw one weight a
    batch, since per-output noise would ignore that a filter is shared by all positions.

    Args:
        layers: The layers.
        std: Initial standard deviation of every weight.
    """

    def __init__(self, layers: Sequence[Layer], std: float) -> None:
        super().__init__(layers)
        half = 0.5 * math.log(std)
        device = layers[0].weight.device
        # Flat over the layers: a step then costs a handful of small operations, not one per layer.
        columns = sum(layer.columns for layer in layers)
        rows = sum(layer.rows for layer in layers)
        self.log_in = nn.Parameter(torch.full((columns,), half, device=device))
        self.log_out = nn.Parameter(torch.full((rows,), half, device=device))

    def _split(self, flat: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        return torch.split(flat, list(sizes), dim=-1)

    @property
    def _columns(self) -> list[int]:
        return [layer.columns for layer in self.layers]

    @property
    def _rows(self) -> list[int]:
        return [layer.rows for layer in self.layers]

    def draw(
        self,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        generator: torch.Generator | None,
    ) -> list[Draw]:
        """See :class:`Weights`."""
        variance_in = self._split((2 * self.log_in).exp(), self._columns)
        std_out = self._split(self.log_out.exp(), self._rows)
        noises = [
            OutputNoise(gate, variance, std if factor is None else std * factor, generator)
            for gate, factor, variance, std in zip(
                inputs, outputs, variance_in, std_out, strict=True
            )
        ]
        parts = zip(self.layers, outputs, noises, strict=True)
        return [partial(self._draw, *part) for part in parts]

    @staticmethod
    def _draw(layer: Layer, factor: Tensor | None, noise: OutputNoise) -> Drawn:
        weight, bias = scaled(layer.weight, layer.bias, factor)
        if layer.linear:
            return Drawn(weight, bias, noise)
        gate, variance, std, generator = noise
        normal = torch.empty_like(weight).normal_(generator=generator)
        spread = std.unsqueeze(-1) * variance.sqrt()
        weight = torch.addcmul(weight, normal, spread.view_as(weight))
        if gate is not None:
            weight = weight * gate.view(weight.shape[1:])
        return Drawn(weight, bias)

    def slab_kl(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        scales: Sequence[Moments],
        prior_std: SlabStd,
    ) -> Tensor:
        """See :class:`Weights`; one fused node per layer, where its weight is on one device."""
        if any(is_sharded(layer.weight) for layer in self.layers):
            return super().slab_kl(inputs, outputs, scales, prior_std)
        log_in = self._split(self.log_in, self._columns)
        log_out = self._split(self.log_out, self._rows)
        total = self.log_in.new_zeros(())
        priors = self.per_layer(prior_std)
        for layer, into, out, read, present, scale, std in zip(
            self.layers, log_in, log_out, inputs, outputs, scales, priors, strict=True
        ):
            total = total + tied_slab_kl(
                layer.weight.flatten(1),
                into,
                out,
                read,
                present,
                scale.log_square,
                scale.inverse_square,
                std,
            )
        return total

    def statistics(self, inputs: Sequence[Tensor]) -> list[Statistics]:
        """See :class:`Weights`."""
        flat = torch.cat(list(inputs))
        stacked = torch.stack((flat, flat * (2 * self.log_in).exp(), flat * self.log_in))
        variance_out = self._split((2 * self.log_out).exp(), self._rows)
        log_out = self._split(self.log_out, self._rows)
        result = []
        for layer, weights, parts, variance, log_std in zip(
            self.layers,
            inputs,
            self._split(stacked, self._columns),
            variance_out,
            log_out,
            strict=True,
        ):
            count, spread, logs = parts.sum(-1)
            square = row_squares(layer.weight, weights)
            result.append(Statistics(count, square + variance * spread, logs + count * log_std))
        return result

    def log_stds(self) -> list[Tensor]:
        """Log standard deviation of every weight of each layer, shape ``(rows, columns)``."""
        log_in = self._split(self.log_in, self._columns)
        log_out = self._split(self.log_out, self._rows)
        return [out[:, None] + into for into, out in zip(log_in, log_out, strict=True)]

    def cuts(self, columns: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`Weights`."""
        return [
            Cut(self, "log_in", 0, torch.cat(list(columns))),
            Cut(self, "log_out", 0, torch.cat(list(rows))),
        ]

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Weights`."""
        inputs = self._split(self.log_in.detach().exp(), self._columns)
        outputs = self._split(self.log_out.detach().exp(), self._rows)
        return {
            f"{layer.name}.weight": layer.stored(torch.outer(out, into).view_as(layer.weight))
            for layer, into, out in zip(self.layers, inputs, outputs, strict=True)
        }


@final
class FullWeights(Weights):
    """One standard deviation per weight and bias; one draw a batch, shared by its examples.

    Args:
        layers: The layers.
        rho: Initial value; the standard deviations are softplus(rho).
    """

    def __init__(self, layers: Sequence[Layer], rho: float) -> None:
        super().__init__(layers)
        self.weight_rho = nn.ParameterList(torch.full_like(layer.weight, rho) for layer in layers)
        self.bias_rho = nn.ParameterList(
            layer.weight.detach().new_full((layer.rows if layer.bias is not None else 0,), rho)
            for layer in layers
        )

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
        weight, bias = self.layers[index].weight, self.layers[index].bias
        noise = torch.empty_like(weight).normal_(generator=generator)
        weight = torch.addcmul(weight, softplus(self.weight_rho[index]), noise)
        if bias is not None:
            noise = torch.empty_like(bias).normal_(generator=generator)
            bias = torch.addcmul(bias, softplus(self.bias_rho[index]), noise)
        if gate is not None:
            weight = weight * gate.view(weight.shape[1:])
        return Drawn(*scaled(weight, bias, factor))

    def statistics(self, inputs: Sequence[Tensor]) -> list[Statistics]:
        """See :class:`Weights`; the bias counts as one more weight of its unit."""
        result = []
        for layer, weights, weight_rho, bias_rho in zip(
            self.layers, inputs, self.weight_rho, self.bias_rho, strict=True
        ):
            std = softplus(weight_rho).flatten(1)
            square = torch.mv(layer.weight.flatten(1).square() + std.square(), weights)
            log_std = torch.mv(std.log(), weights)
            count = weights.sum()
            if layer.bias is not None:
                bias_std = softplus(bias_rho)
                square = square + layer.bias.square() + bias_std.square()
                log_std = log_std + bias_std.log()
                count = count + 1
            result.append(Statistics(count, square, log_std))
        return result

    def cuts(self, columns: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`Weights`."""
        cuts = []
        for index, (layer, column, row) in enumerate(zip(self.layers, columns, rows, strict=True)):
            kernel = layer.weight.shape[2:].numel()
            cuts.append(Cut(self.weight_rho, str(index), 0, row))
            cuts.append(Cut(self.weight_rho, str(index), 1, column[::kernel]))
            if layer.bias is not None:
                cuts.append(Cut(self.bias_rho, str(index), 0, row))
        return cuts

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Weights`."""
        result = {}
        for layer, weight_rho, bias_rho in zip(
            self.layers, self.weight_rho, self.bias_rho, strict=True
        ):
            result[f"{layer.name}.weight"] = layer.stored(softplus(weight_rho.detach()))
            if layer.bias is not None:
                result[f"{layer.name}.bias"] = softplus(bias_rho.detach())
        return result
