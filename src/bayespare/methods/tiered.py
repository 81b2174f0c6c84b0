"""The tiered prior: a regularised horseshoe on output rows, the rival that shrinks.

Every row (output unit) has a half-Cauchy scale under one global half-Cauchy and one learnt slab
(c^2 ~ InverseGamma(2, 6)) per layer; all of them have log-normal posteriors. It shrinks and never
removes. Source: arXiv 2309.12095 (card section 3.2).

``settings=faithful`` multiplies the weights by a draw of their scale (non-centred), as published,
with global scale 0.01; ours has the scale in the prior, in closed form. In both the output layer
has one scale, at its optimum, where the authors draw a global half-Cauchy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.scales import GroupHorseshoeScale, Moments, NoScale, Scale
from bayespare.methods.gaussian import GaussianConfig, GaussianMethod
from bayespare.methods.registry import register

FAITHFUL_GLOBAL_SCALE = 0.01
"""tau_0 of the authors."""


class TieredConfig(GaussianConfig):
    """Settings of the tiered prior.

    Attributes:
        global_scale: tau_0, scale of the layers' half-Cauchy.
    """

    global_scale: float = Field(1.0, gt=0)

    def idle(self) -> dict[str, str]:
        """See :class:`bayespare.training.method.Config`."""
        return super().idle() | {
            "prior_std": "its prior is the tiers'; global_scale is their scale"
        }


def _config(settings: str = "default", **changes: Any) -> TieredConfig:
    values: dict[str, Any] = {}
    if settings == "faithful":
        values = {"kl_every": 1, "global_scale": FAITHFUL_GLOBAL_SCALE}
    return TieredConfig(**{**values, **changes, "settings": settings})


@register("tiered-ff", _config)
class Tiered(GaussianMethod):
    """A mean-field Gaussian posterior under a horseshoe over rows; nothing is removed.

    Attributes:
        scales: Posterior of the rows' scales, one module per layer; none for output layers.
    """

    settings_class = TieredConfig
    removes = False
    config: TieredConfig
    scales: nn.ModuleList

    def make_posterior(self) -> None:
        """Scales start where they explain the weights that are there."""
        scales: list[Scale] = []
        for layer, last in zip(self.layers, self.last, strict=True):
            weight = layer.weight
            if last:
                scales.append(NoScale(0).to(weight.device))
                continue
            size = weight.detach().flatten(1).square().mean(1).sqrt().clamp_min(1e-4)
            size = 0.1 * torch.ones_like(size) if self.faithful else size
            start = size.log().expand(2, -1)
            scales.append(
                GroupHorseshoeScale(
                    start, 0.1, 0.0, None, global_scale=self.config.global_scale
                ).to(weight.device)
            )
        self.scales = nn.ModuleList(scales)
        self.layer_scale = None
        super().make_posterior()

    def row_scales(self) -> Mapping[int, Scale]:
        """See :class:`GaussianMethod`."""
        return {
            place: scale
            for place, scale in enumerate(self.scales)
            if isinstance(scale, GroupHorseshoeScale)
        }

    def row_factors(self, *, draw: bool) -> list[Tensor | None]:
        """See :class:`GaussianMethod`; a centred scale sits in the prior."""
        factors: list[Tensor | None] = [None] * len(self.layers)
        if not self.faithful:
            return factors
        for place, scale in self.row_scales().items():
            if not draw:
                factors[place] = scale.mean().detach()
                continue
            like = self.layers[place].weight
            noise = like.new_empty(self.layers[place].rows).normal_(generator=self.generator)
            shared = like.new_empty(()).normal_(generator=self.generator)
            factors[place] = scale.draw(noise, shared)
        return factors

    def kl(self) -> Tensor:
        """KL of the posterior from the prior, nats."""
        like = self.layers[0].weight
        plain = NoScale.plain(like)
        total = like.new_zeros(())
        moments = [plain] * len(self.layers)
        for place, scale in self.row_scales().items():
            if not self.faithful:
                moments[place] = scale.moments()
            total = total + scale.kl_units(like.new_ones(self.layers[place].rows)).sum()
            total = total + scale.kl_global()
        for place, (last, std) in enumerate(zip(self.last, self.prior_stds(), strict=True)):
            if last:
                # At its optimum a prior scale needs no gradient of its own.
                square = like.new_tensor(max(std, 1e-12) ** 2)
                moments[place] = Moments(square.log(), 1 / square)
        columns = [like.new_ones(layer.columns) for layer in self.layers]
        rows = [like.new_ones(layer.rows) for layer in self.layers]
        return total + self.weights.slab_kl(columns, rows, moments, 1.0)

    @property
    def fixed_prior_std(self) -> float | None:
        """None: output layers have their own optimum."""
        return None

    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`bayespare.methods.Method`: infinite, every unit stays."""
        return self.certain()
