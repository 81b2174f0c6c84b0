"""What a Gaussian posterior knows of the weights of a layer, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayespare.bayes.evidence import delta_f
from bayespare.bayes.masked import MaskedWeights
from bayespare.bayes.weights import Weights

Parts = tuple[Tensor, Tensor]
"""A value for every weight and every bias of a layer."""


@dataclass(frozen=True, eq=False)
class Belief:
    """What is known of the weights of a layer.

    Attributes:
        name: Of the layer.
        prior_std: Standard deviation of the prior.
        mean: Posterior mean of the weights.
        std: Posterior standard deviation, also of what is masked.
        there: Which weights are there.
        bias_mean: The same of the biases; empty where they are not judged.
        bias_std: The same of the biases.
    """

    name: str
    prior_std: float
    mean: Tensor
    std: Tensor
    there: Tensor
    bias_mean: Tensor
    bias_std: Tensor

    @property
    def known(self) -> float:
        """Mean of 1 - variance / prior variance: zero where the data have taught nothing."""
        inside = (self.std / self.prior_std).square()[self.there]
        return 1 - float(inside.mean()) if inside.numel() else 1.0

    def changes(self, share: float) -> Parts:
        """Change of log evidence when the prior is narrowed to a share of its width, nats."""
        reduced = share * self.prior_std
        return self._parts(lambda m, s: delta_f(m, s, self.prior_std, reduced, name=self.name))

    def rises(self, tempering: float) -> Parts:
        """Rise of the summed training loss when a weight goes, by the posterior, nats.

        Its precision is the prior's plus the curvature of the loss over the tempering, and at its
        mean the loss falls as steeply towards the data as the prior pulls the other way.
        """
        prior = self.prior_std**-2
        return self._parts(lambda m, s: 0.5 * tempering * m.square() * (s**-2 + prior))

    def _parts(self, score: Callable[[Tensor, Tensor], Tensor]) -> Parts:
        return score(self.mean, self.std), score(self.bias_mean, self.bias_std)


def beliefs(weights: Weights, prior_stds: Sequence[float]) -> list[Belief]:
    """What is known of each layer; of its biases where single weights are masked, too.

    Args:
        weights: The posterior.
        prior_stds: Standard deviation of each layer's prior.
    """
    stds = weights.standard_deviations()
    found = []
    for place, (layer, prior) in enumerate(zip(weights.layers, prior_stds, strict=True)):
        mean, bias = layer.weight.detach(), layer.bias
        std = layer.stored(stds[f"{layer.name}.weight"])
        there = torch.ones_like(mean, dtype=torch.bool)
        bias_mean = bias_std = mean.new_zeros(0)
        if isinstance(weights, MaskedWeights):
            std, there = weights.weight_rho[place].detach().exp(), weights.masks(place)[0]
            if bias is not None:
                bias_mean, bias_std = bias.detach(), weights.bias_rho[place].detach().exp()
        found.append(Belief(layer.name, prior, mean, std, there, bias_mean, bias_std))
    return found
