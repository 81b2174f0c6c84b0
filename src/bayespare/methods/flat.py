"""The flat prior without pruning: MAP and mean-field Gaussian, the rivals of model reduction.

They keep every unit; what they are for is to be compared with. Source: arXiv 2309.12095
(card sections 3.1 and 6). Differences from the publication under ``settings=faithful``: Adam where
the authors use AdaBelief, the KL in closed form, and no dropout added to the MAP network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from bayespare.bayes.scales import Moments
from bayespare.bayes.weights import Cut, Draw, SlabStd, Statistics, Weights
from bayespare.methods.gaussian import GaussianConfig, GaussianMethod
from bayespare.methods.registry import register

FAITHFUL_MAP_STD = 0.32
"""Standard deviation of the weights that MAP starts from: the median of 15 prior draws."""


def _config(rate: float, /, settings: str = "default", **changes: Any) -> GaussianConfig:
    values: dict[str, Any] = {"rate": rate}
    if settings == "faithful":
        values |= {"kl_every": 1}
    return GaussianConfig(**{**values, **changes, "settings": settings})


@register("flat-ff", partial(_config, 5e-3))
class FlatGaussian(GaussianMethod):
    """A mean-field Gaussian posterior under one flat prior; nothing is removed."""

    removes = False

    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`bayespare.methods.Method`: infinite, every unit stays."""
        return self.certain()


@register("flat-map", partial(_config, 1e-3))
@final
class FlatMap(GaussianMethod):
    """The most probable weights under the flat prior; nothing is removed, nothing is drawn.

    Without ``prior_std`` the prior of a layer is He's initialisation, N(0, 2 / fan-in): a point
    has no evidence that could choose a scale.
    """

    removes = False

    def make_posterior(self) -> None:
        """A point mass."""
        given = self.config.prior_std
        prior = [
            1.0 if self.faithful else (2 / x.columns) ** 0.5 if given == "empirical" else given
            for x in self.layers
        ]
        self.weights = PointWeights(self.layers, prior)

    @property
    def noisy(self) -> bool:
        """See :class:`PosteriorMethod`: only a scale would be drawn."""
        return self.layer_scale is not None

    @torch.no_grad()
    def _authors_start(self) -> None:
        super()._authors_start()
        for layer in self.layers:
            for parameter in layer.parameters().values():
                parameter.normal_(0.0, FAITHFUL_MAP_STD, generator=self.generator)

    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`bayespare.methods.Method`: infinite, every unit stays."""
        return self.certain()


@final
class PointWeights(Weights):
    """Weights without spread, under N(0, prior_std^2) of each layer.

    Args:
        layers: The layers.
        prior_stds: One per layer.
    """

    def __init__(self, layers: Sequence[Any], prior_stds: Sequence[float]) -> None:
        super().__init__(layers)
        self.prior_stds = tuple(prior_stds)

    def draw(
        self,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        generator: torch.Generator | None,
    ) -> list[Draw]:
        """See :class:`Weights`: the means."""
        return self.means(inputs, outputs)

    def slab_kl(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        scales: Sequence[Moments],
        prior_std: SlabStd,
    ) -> Tensor:
        """Minus the log prior density of weights and biases, up to a constant, nats."""
        total = outputs[0].new_zeros(())
        for layer, std in zip(self.layers, self.prior_stds, strict=True):
            for parameter in layer.parameters().values():
                total = total + parameter.square().sum() / (2 * std**2)
        return total

    def statistics(self, inputs: Sequence[Tensor]) -> list[Statistics]:
        """See :class:`Weights`; a point's log standard deviation is minus infinity."""
        result = []
        for layer, read in zip(self.layers, inputs, strict=True):
            square = torch.mv(layer.weight.flatten(1).square(), read)
            result.append(Statistics(read.sum(), square, torch.full_like(square, -torch.inf)))
        return result

    def cuts(self, columns: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`Weights`: there is nothing of its own to cut."""
        return []

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Weights`: none."""
        return {}
