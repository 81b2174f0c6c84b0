"""What the methods with a plain Gaussian posterior share: no gates, one prior scale a layer.

The mean-field posterior of every weight is fitted under a zero-mean Gaussian prior. Its standard
deviation is one per layer, at the value that maximises the evidence bound (``prior_std=empirical``)
or given. ``settings=faithful`` is the published parametrisation (arXiv 2309.12095, code):
``W = constant_l c_l W~`` with W~ ~ N(0, 1), c_l^-2 ~ Gamma(2, 2), means that start in U(-2, 2).

The KL is in closed form in both (the published code draws it; the expectation is the same), and
the tempering that a run raises from low values is its warm-up.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.layer_scale import LayerScale
from bayespare.bayes.masked import MaskedWeights
from bayespare.bayes.scales import NoScale, Scale
from bayespare.bayes.weights import Cut, Draw, TiedWeights, Weights, scale_rows
from bayespare.methods.posterior import PosteriorConfig, PosteriorMethod
from bayespare.methods.wiring import block_sums
from bayespare.structure.plan import Role
from bayespare.training.method import Config

FAITHFUL_CONSTANT = 0.1
"""Factor of the weights of all layers but the last, as published."""

FAITHFUL_STD = 0.1
"""Standard deviation every weight starts at, as published."""


class GaussianConfig(PosteriorConfig):
    """Settings of the methods with a plain Gaussian posterior.

    Attributes:
        prior_std: Standard deviation of the prior, or ``empirical``: per layer, at the value that
            maximises the evidence bound, in closed form (``default`` only).
        start_std: Standard deviation every weight starts at, as a share of the root mean square
            of its layer's weights (``default`` only).
        rate: Learning rate of the authors, used for all parameters (``faithful`` only).
        noise: Where every weight has a standard deviation of its own: one draw of the weights a
            ``batch``, or one for each ``example``, at the outputs of linear layers (local
            reparameterisation: less noise in the gradients for a second matrix product).
    """

    prior_std: Annotated[float, Field(gt=0)] | Literal["empirical"] = "empirical"
    start_std: float = Field(0.1, gt=0)
    rate: float = Field(5e-3, gt=0)
    noise: Literal["batch", "example"] = "batch"

    def idle(self) -> dict[str, str]:
        """See :class:`bayespare.training.method.Config`."""
        if self.settings == "faithful":
            return dict.fromkeys(("prior_std", "start_std"), "it is of settings=default")
        return {
            "rate": "it is of settings=faithful; lr is the learning rate",
            "noise": "one standard deviation a weight is of settings=faithful",
        }


class GaussianMethod(PosteriorMethod):
    """A Gaussian posterior over the weights of a network; subclasses say what belongs in it.

    Attributes:
        layer_scale: Posterior of c_l where the parametrisation has it.
    """

    settings_class: ClassVar[type[Config]] = GaussianConfig
    # 500 steps of warm-up and 50 times 500, about an epoch of Fashion-MNIST each (card section 4).
    authors_run = (51, 120)
    config: GaussianConfig
    layer_scale: LayerScale | None

    # ---------------------------------------------------------------- attach
    def begin(self) -> None:
        """See :class:`PosteriorMethod`."""
        self.epoch_steps = self.examples
        self.last = [self.plan.is_output(layer.name) for layer in self.layers]
        self.layer_scale = None
        if self.faithful:
            self._authors_start()
        self.make_posterior()

    @torch.no_grad()
    def _authors_start(self) -> None:
        """W~ ~ U(-2, 2), biases included; it forgets what the network had learnt."""
        for layer in self.layers:
            for parameter in layer.parameters().values():
                parameter.uniform_(-2.0, 2.0, generator=self.generator)
        device = self.layers[0].weight.device
        constants = [1.0 if last else FAITHFUL_CONSTANT for last in self.last]
        self.layer_scale = LayerScale(constants).to(device)

    def make_posterior(self) -> None:
        """Choose the family of the standard deviations."""
        self.weights = self.masked_weights() if self.faithful else self.tied_weights()

    def masked_weights(self) -> MaskedWeights:
        """One standard deviation a weight, with masks."""
        per_example = self.config.noise == "example"
        return MaskedWeights(self.layers, self.start_stds(), per_example=per_example)

    def tied_weights(self) -> Weights:
        """Rank-one standard deviations, each layer's at its own scale."""
        weights = TiedWeights(self.layers, 1.0)
        with torch.no_grad():
            stds = torch.tensor(self.start_stds()).log() / 2
            for flat, sizes in (
                (weights.log_in, [layer.columns for layer in self.layers]),
                (weights.log_out, [layer.rows for layer in self.layers]),
            ):
                flat.copy_(stds.repeat_interleave(torch.tensor(sizes)))
        return weights

    def start_stds(self) -> list[float]:
        """Standard deviation that the weights of each layer start at."""
        if self.faithful:
            return [FAITHFUL_STD] * len(self.layers)
        share = self.config.start_std
        return [
            share * max(1e-4, float(layer.weight.detach().square().mean().sqrt()))
            for layer in self.layers
        ]

    # ------------------------------------------------- what a forward pass uses
    def drawn(self, *, training: bool) -> Sequence[Draw | None]:
        """See :class:`PosteriorMethod`."""
        rows = self.row_factors(draw=training)
        if not training:
            return self.evaluation_means(rows)
        return self.weights.draw([None] * len(self.layers), rows, self.generator)

    def row_factors(self, *, draw: bool) -> list[Tensor | None]:
        """Factors of the rows of each layer and of its biases, or None."""
        if self.layer_scale is None:
            return [None] * len(self.layers)
        scale = self.layer_scale
        values = scale.draw(self.generator) if draw else scale.mean().detach()
        return [value.expand(layer.rows) for value, layer in zip(values, self.layers, strict=True)]

    def evaluation_means(self, rows: Sequence[Tensor | None]) -> Sequence[Draw | None]:
        """What evaluation computes with."""
        return self.weights.means([None] * len(self.layers), rows)

    # --------------------------------------------------------------- penalty
    def kl(self) -> Tensor:
        """KL of the posterior from the prior, nats."""
        like = self.layers[0].weight
        total = self.weights.slab_kl(
            [like.new_ones(layer.columns) for layer in self.layers],
            [like.new_ones(layer.rows) for layer in self.layers],
            [NoScale.plain(like)] * len(self.layers),
            self.fixed_prior_std,
        )
        return total if self.layer_scale is None else total + self.layer_scale.kl()

    @property
    def fixed_prior_std(self) -> float | None:
        """The prior's standard deviation; None: each layer's own optimum."""
        if self.faithful:
            return 1.0
        return None if self.config.prior_std == "empirical" else self.config.prior_std

    @torch.no_grad()
    def prior_stds(self) -> list[float]:
        """Standard deviation of each layer's prior; 1 where nothing of a layer is left."""
        if self.fixed_prior_std is not None:
            return [self.fixed_prior_std] * len(self.layers)
        ones = [layer.weight.new_ones(layer.columns) for layer in self.layers]
        tiny = torch.finfo(torch.float32).tiny
        return [
            float((s.square.sum() / (s.number * len(s.square)).clamp_min(tiny)).sqrt()) or 1.0
            for s in self.weights.statistics(ones)
        ]

    def parameter_groups(self, network: nn.Module, batch: int) -> list[dict[str, Any]]:
        """See :class:`Method`; the authors use one rate for everything."""
        self.epoch_steps = max(1, self.examples // batch)
        means = [p for p in network.parameters() if p.requires_grad]
        spreads = list(self.parameters())
        if self.faithful:
            rated = [([*means, *spreads], self.config.rate)]
        else:
            rated = [(means, 3e-3 if self.decided else 2e-3), (spreads, 1e-2)]
        return [{"params": part, "lr": rate, "base_lr": rate} for part, rate in rated]

    # ---------------------------------------------------------------- update
    def update(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """See :class:`Method`; nothing is due by itself."""
        return {}

    def cuts(self, keep: Mapping[str, Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`PosteriorMethod`: unit scales."""
        scales = self.row_scales().items()
        return [Cut(scale, n, 0, rows[place]) for place, scale in scales for n in scale.per_unit]

    def row_scales(self) -> Mapping[int, Scale]:
        """Posteriors of unit scales by the place of the layer, for methods that have any."""
        return {}

    def means(self) -> dict[str, Tensor]:
        """See :class:`Method`; scales are multiplied in at their means."""
        (network,) = self.network
        means: dict[str, Tensor] = dict(network.state_dict())
        none: list[Tensor | None] = [None] * len(self.layers)
        drawn = self.weights.means(none, self.row_factors(draw=False))
        for layer, draw in zip(self.layers, drawn, strict=True):
            weight, bias, _ = draw()
            means[f"{layer.name}.weight"] = layer.stored(weight.detach())
            if bias is not None:
                means[f"{layer.name}.bias"] = bias.detach()
        return means

    def unscaled(self, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See :class:`PosteriorMethod`."""
        factors = [None if f is None else 1 / f for f in self.row_factors(draw=False)]
        return scale_rows(self.layers, means, factors)

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Method`."""
        std = self.weights.standard_deviations()
        return scale_rows(self.layers, std, self.row_factors(draw=False))

    # -------------------------------------------------------------- log_odds
    @abstractmethod
    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`Method`."""

    def block_sums(self, values: Mapping[str, Tensor], role: Role = "read") -> dict[str, Tensor]:
        """:func:`~bayespare.methods.wiring.block_sums` of values by layer, outputs first."""
        stored = {x.name: x.stored(values[x.name]) for x in self.layers}
        return block_sums(self.plan, stored, role)

    def unjudged(self) -> dict[str, Tensor]:
        """Which units no evidence can judge: none of their weights is left to read them."""
        ones = {x.name: torch.ones_like(x.weight) for x in self.layers}
        return {name: read == 0 for name, read in self.block_sums(ones).items()}

    def costs(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nats that a budget asks for the parameters each unit brings, in both of its blocks."""
        if not self.price:
            return {group.name: torch.zeros(()) for group in self.plan.groups}
        worth = self.worth or {}
        priced = {n: torch.full_like(v, self.price * worth.get(n, 1.0)) for n, v in like.items()}
        read, written = self.block_sums(priced, "read"), self.block_sums(priced, "write")
        return {name: read[name] + written[name] for name in read}

    def certain(self) -> dict[str, Tensor]:
        """Log-odds of a method that removes nothing by itself: all infinite."""
        if self.decided:
            return {}
        return {group.name: torch.full((group.size,), torch.inf) for group in self.plan.groups}


def capped(odds: Tensor, cap: float) -> Tensor:
    """Keep what has positive log-odds, and the better part of the rest where too many would go."""
    keep = odds > 0
    most = math.ceil(cap * len(odds))
    if int((~keep).sum()) > most:
        keep = torch.ones_like(keep)
        keep[odds.argsort(stable=True)[:most]] = False
    return keep
