"""Spike-and-slab node selection: SS-IG, SS-GL and SS-GHS.

Every unit has a Bernoulli gate (the spike is a point mass at zero) and a Gaussian slab over the
weights that enter it, whose scale per unit is one (``ss-ig``), group-lasso (``ss-gl``) or
regularised group-horseshoe (``ss-ghs``). Source: Jantre, Bhattacharya and Maiti, arXiv 2308.09104
and 2108.11000; card sections 2 to 5.

The default differs from the publication in its parametrisation, not in its model: gates act where
units are read (so also on input features), standard deviations have rank one, the slab's variance
is set by empirical Bayes, and a weight is paid for only if both units it joins exist.
``settings=faithful`` is the authors' form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bayespare.bayes.gates import bernoulli_kl, draw_gates, layer_inclusion
from bayespare.bayes.scales import (
    FAITHFUL_RHO,
    GroupHorseshoeScale,
    GroupLassoScale,
    Moments,
    NoScale,
    Scale,
)
from bayespare.bayes.weights import (
    Cut,
    Draw,
    FullWeights,
    SlabStd,
    TiedWeights,
    scale_rows,
    scaled,
)
from bayespare.errors import UnsupportedStructureError
from bayespare.methods.posterior import PosteriorConfig, PosteriorMethod
from bayespare.methods.registry import fixed, register
from bayespare.methods.wiring import Wiring
from bayespare.structure.plan import Group
from bayespare.training.method import Config
from bayespare.training.shrink import apply_cuts


class SpikeSlabConfig(PosteriorConfig):
    """Settings of the three spike-and-slab methods.

    Attributes:
        slab: Which scale the units' slabs have.
        prior: Prior inclusion probability: a number, ``1/k`` (one unit expected per layer; one
            half where it has no other) or ``theory`` (card section 5).
        prior_std: sigma_0 of the slab; ``empirical``: per layer, at the value that maximises the
            evidence bound, in closed form; ``fan-in``: one over the root of a layer's inputs, and
            1 where it has one output or two.
        centred: Whether the unit scale sits in the prior (centred) or multiplies the weights; of a
            layer straight before a batch norm, which would cancel it, the gain of the norm.
        c_reg: Bound of the horseshoe's scale: a number, ``k+1`` or ``learnt``.
        temperature: Of the relaxed gates' gradient.
        start_inclusion: Inclusion probability every gate starts at.
        start_std: Standard deviation every weight starts at (``default`` only).
        settled: Units whose inclusion probability falls below this are removed for good.
    """

    slab: Literal["gaussian", "group-lasso", "group-horseshoe"] = "gaussian"
    prior: Annotated[float, Field(gt=0, lt=1)] | Literal["1/k", "theory"] = 0.01
    prior_std: Annotated[float, Field(gt=0)] | Literal["empirical", "fan-in"] = "empirical"
    centred: bool = True
    c_reg: Annotated[float, Field(gt=0)] | Literal["k+1", "learnt"] = 1.0
    temperature: float = Field(0.5, gt=0)
    start_inclusion: float = Field(0.9, gt=0, lt=1)
    start_std: float = Field(0.02, gt=0)
    settled: float = Field(0.01, ge=0, lt=0.5)

    def idle(self) -> dict[str, str]:
        """See :class:`bayespare.training.method.Config`."""
        found = {}
        if self.slab == "gaussian":
            found["centred"] = "a Gaussian slab has no scales; ss-gl and ss-ghs do"
        if self.slab != "group-horseshoe":
            found["c_reg"] = "it is of the group horseshoe: method=ss-ghs"
        return found


NAMES = {"gaussian": "ss-ig", "group-lasso": "ss-gl", "group-horseshoe": "ss-ghs"}
"""Which method has which slab."""


def _config(slab: str, /, settings: str = "default", **changes: Any) -> SpikeSlabConfig:
    """The authors' values where ``settings`` is ``faithful``, ours elsewhere; then the user's."""
    fixed("slab", NAMES, slab, changes)
    values: dict[str, Any] = {}
    if settings == "faithful":
        values = {
            "prior": "theory",
            "prior_std": 1.0,
            "start_inclusion": 0.99,
            "settled": 0.0,
            "kl_every": 1,
        }
        if slab == "group-horseshoe":
            values["prior_std"] = 1.3
        if slab == "group-lasso":
            values["centred"] = False
    return SpikeSlabConfig(**{**values, **changes, "slab": slab, "settings": settings})


@register("ss-ig", partial(_config, "gaussian"))
@register("ss-gl", partial(_config, "group-lasso"))
@register("ss-ghs", partial(_config, "group-horseshoe"))
class SpikeSlab(PosteriorMethod):
    """Gates, slabs and unit scales over a network.

    Attributes:
        gates: Log-odds of inclusion of every gated unit, group after group, shape ``(units,)``.
        scale: Posterior of the unit scales.
        given: Gates of the next pass, in place of drawn ones; weights are drawn then too.
        gains: Norms whose gains have the scale of a layer's rows, by the place of the layer.
    """

    settings_class: ClassVar[type[Config]] = SpikeSlabConfig
    offers = ("unit", "feature")
    config: SpikeSlabConfig
    gates: nn.Parameter
    prior_inclusion: Tensor
    scale: Scale
    gains: dict[int, str]
    given: Tensor | None = None

    # ---------------------------------------------------------------- attach
    def begin(self) -> None:
        """See :class:`PosteriorMethod`."""
        config, device = self.config, self.layers[0].weight.device
        self.slab_std = self._slab_std()
        if self.faithful:
            self._authors_start()
        start = torch.tensor(config.start_inclusion).logit()
        units = sum(group.size for group in self.gated())
        self.gates = nn.Parameter(torch.full((units,), float(start), device=device))
        # At nought or one, to which float32 rounds, the KL is infinite.
        edge = torch.finfo(torch.float32)
        prior = self._prior(self.examples).clamp(edge.tiny, 1 - edge.eps)
        self.register_buffer("prior_inclusion", prior.to(device))
        if self.faithful:
            self.weights = FullWeights(self.layers, FAITHFUL_RHO)
        else:
            self.weights = TiedWeights(self.layers, config.start_std)
        self.scale = self._make_scale().to(device)
        self.gains = {} if self.faithful or config.centred else self._gains()
        if not (self.faithful or config.centred):
            (network,) = self.network
            # The scales start where their prior is: the means are to give the same network.
            self.take({name: p.clone() for name, p in network.named_parameters()})

    def _gains(self) -> dict[int, str]:
        """Place of each layer straight before a norm, which would cancel its scale, to the norm."""
        norms = {
            fixture.name: fixture.layer
            for group in self.plan.groups
            for fixture in group.fixtures
            if fixture.kind == "gain"
        }
        names = {place: f"{layer.name}.weight" for place, layer in enumerate(self.layers)}
        return {place: norms[name] for place, name in names.items() if name in norms}

    def gated(self) -> list[Group]:
        """Groups with gates: until the decision all.

        The authors gate units only, where they are written.
        """
        if self.decided:
            return []
        if not self.faithful:
            return list(self.plan.groups)
        known = {layer.name for layer in self.layers}
        return [
            group
            for group in self.plan.groups
            if group.unit in ("unit", "channel")
            and all(slot.layer in known for slot in group.writes())
        ]

    def _slab_std(self) -> SlabStd:
        """sigma_0 of every layer's slab; None where it follows the weights."""
        if self.config.prior_std == "fan-in":
            return [1.0 if x.rows <= 2 else x.columns**-0.5 for x in self.layers]
        return None if self.config.prior_std == "empirical" else self.config.prior_std

    def _prior(self, examples: int) -> Tensor:
        """Prior inclusion probability of every gated unit."""
        groups = self.gated()
        prior = self.config.prior
        if isinstance(prior, float):
            return torch.full((sum(g.size for g in groups),), prior)
        # Whether a unit alone in its group is there is as open as it can be.
        values = {group.name: 1 / max(2, group.size) for group in groups}
        if prior == "theory":
            values |= {n: v for n, v in self._theory(examples).items() if n in values}
        return torch.cat([torch.zeros(0)] + [torch.full((g.size,), values[g.name]) for g in groups])

    def _theory(self, examples: int) -> dict[str, float]:
        """Theory's inclusion probability by layer."""
        layers = self.layers
        if not self.faithful:
            found = layer_inclusion([(x.columns, x.rows) for x in layers], examples)
            return {x.name: value for x, value in zip(layers, found, strict=True)}
        # The authors give convolutions the values of the linear layers, in order.
        linear = [layer for layer in layers if layer.linear]
        convolutions = [layer for layer in layers if not layer.linear]
        found = layer_inclusion([(x.columns, x.rows) for x in linear], examples)
        pairs = [*zip(linear, found, strict=True), *zip(convolutions, found, strict=False)]
        return {layer.name: value for layer, value in pairs}

    @torch.no_grad()
    def _authors_start(self) -> None:
        """Means as the authors draw them: their linear fan-in is the number of outputs (card 5)."""
        for layer in self.layers:
            fan = layer.rows if layer.linear else layer.columns
            bound = (6 / fan) ** 0.5
            layer.weight.uniform_(-bound, bound, generator=self.generator)
            if layer.bias is not None:
                bound = fan**-0.5
                layer.bias.uniform_(-bound, bound, generator=self.generator)

    def _make_scale(self) -> Scale:
        config = self.config
        faithful = self.faithful
        # Only the authors' slab covers the bias.
        self._biases = [int(faithful and layer.bias is not None) for layer in self.layers]
        rows = sum(layer.rows for layer in self.layers)
        sizes = torch.cat(
            [
                torch.full((layer.rows,), float(layer.columns + bias))
                for layer, bias in zip(self.layers, self._biases, strict=True)
            ]
        )
        if config.slab == "gaussian":
            return NoScale(rows)
        if config.slab == "group-lasso":
            if not faithful:
                return GroupLassoScale.at_prior(sizes)
            std = float(nn.functional.softplus(torch.tensor(FAITHFUL_RHO)))
            start = self.gates.new_empty(rows).uniform_(-0.6, 0.6, generator=self.generator)
            return GroupLassoScale(start, torch.full_like(start, std), 1.0, std)
        slab = None
        if config.c_reg == "k+1":
            slab = sizes if faithful else sizes + 1
        elif isinstance(config.c_reg, float):
            slab = torch.full((rows,), config.c_reg)
        if not faithful:
            return GroupHorseshoeScale(torch.zeros(2, rows), 0.5, 0.0, slab)
        std = float(nn.functional.softplus(torch.tensor(FAITHFUL_RHO)))
        start = self.gates.new_empty(2, rows).uniform_(-0.6, 0.6, generator=self.generator)
        return GroupHorseshoeScale(start, std, 1.0, slab)

    # ------------------------------------------------- what a forward pass uses
    def drawn(self, *, training: bool) -> Sequence[Draw]:
        """See :class:`PosteriorMethod`; with gates that are given it draws in evaluation, too."""
        draws = training or self.given is not None
        columns: Sequence[Tensor | None] = [None] * len(self.layers)
        rows = columns
        gate = self._gate(draws)
        if gate is not None and draws and self.faithful:
            rows = self.wiring.by_row(gate)
        elif gate is not None:
            columns = self.wiring.by_column(gate)
        if not self.config.centred:
            rows = self._at_gains(self._draw_scales(rows) if draws else self._mean_scales())
        if not draws:
            return self.weights.means(columns, rows)
        return self.weights.draw(columns, rows, self.generator)

    def _gate(self, draws: bool) -> Tensor | None:
        """Factor of every gated unit in this pass; None: all are one."""
        if self.given is not None or not self.gates.numel():
            return self.given
        if not draws and self.relaxed:
            return self.gates.detach().sigmoid()
        if not draws:
            odds = self.log_odds()
            kept = self.plan.surviving({name: value > 0 for name, value in odds.items()}, odds)
            return torch.cat([kept[name] for name in odds]).to(self.gates)
        if self.held:
            return None
        uniform = torch.empty_like(self.gates)
        uniform.uniform_(1e-7, 1 - 1e-7, generator=self.generator)
        return draw_gates(self.gates, uniform, self.config.temperature)

    def draw_within(self, blocks: Sequence[nn.Module]) -> None:
        """See :class:`Method`."""
        if self.gains:
            norm = next(iter(self.gains.values()))
            raise UnsupportedStructureError(
                f"{norm}: its gain has the scale of units, and cannot be spread over the ranks "
                "with its block; use ss-ig"
            )
        super().draw_within(blocks)

    def _draw_scales(self, rows: Sequence[Tensor | None]) -> list[Tensor]:
        """Factors of the rows: a draw of each unit's scale, times its gate where it has one."""
        noise = torch.randn(
            sum(self.wiring.row_sizes), generator=self.generator, device=self.gates.device
        )
        shared = torch.randn((), generator=self.generator, device=self.gates.device)
        scales = self.wiring.split_rows(self.scale.draw(noise, shared).expand_as(noise))
        return [s if gate is None else s * gate for s, gate in zip(scales, rows, strict=True)]

    def _mean_scales(self) -> Sequence[Tensor]:
        mean = self.scale.mean().detach().expand(sum(self.wiring.row_sizes))
        return self.wiring.split_rows(mean)

    def _at_gains(self, rows: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Let norms that would cancel a scale have it on their gains; the others' factors of rows.

        The drawn gain lies before the parameter until the pass is over.
        """
        (network,) = self.network
        left = list(rows)
        for place, name in self.gains.items():
            norm, factor = network.get_submodule(name), left[place]
            norm.__dict__["weight"] = scaled(norm.get_parameter("weight"), None, factor)[0]
            left[place] = None
        return left

    def _after_forward(self, network: nn.Module, inputs: Any, output: Any) -> None:
        for name in self.gains.values():
            network.get_submodule(name).__dict__.pop("weight", None)
        super()._after_forward(network, inputs, output)

    # --------------------------------------------------------------- penalty
    def kl(self) -> Tensor:
        """KL of the posterior from the prior, nats; with a price, that of the expected size too.

        While the gates are held open nothing but the slabs counts.
        """
        if self.held:
            # The gates stay in the graph, with gradients of zero.
            return self.slabs(torch.ones_like(self.gates) + 0 * self.gates)
        included = self.gates.sigmoid()
        total = self.slabs(included)
        if self.gates.numel():
            total = total + bernoulli_kl(self.gates, self.prior_inclusion).sum()
        if self.price and not self.decided:
            total = total + self._priced(included)
        return total

    def _priced(self, included: Tensor) -> Tensor:
        """The price of every parameter expected to stay, nats."""
        total = included.new_zeros(())
        columns, rows = self.wiring.by_column(included), self.wiring.by_row(included)
        for layer, column, row in zip(self.layers, columns, rows, strict=True):
            price = self.price * (self.worth or {}).get(layer.name, 1.0)
            # One more for the bias.
            total = total + price * (column.sum() + 1) * row.sum()
        return total

    def slabs(self, included: Tensor) -> Tensor:
        """KL of weights and scales from their priors, nats, weighted by presence.

        Args:
            included: Probability, or presence, of every gated unit.
        """
        faithful = self.faithful
        rows = self.wiring.by_row(included)
        columns = self.wiring.by_column(torch.ones_like(included) if faithful else included)
        total = self.weights.slab_kl(columns, rows, self._scale_moments(), self.slab_std)
        if not isinstance(self.scale, NoScale):
            sizes = [
                (column.sum() + bias).expand(rows)
                for column, bias, rows in zip(
                    columns, self._biases, self.wiring.row_sizes, strict=True
                )
            ]
            total = total + self.scale.kl_units(torch.cat(sizes)).sum() + self.scale.kl_global()
        return total

    def _scale_moments(self) -> list[Moments]:
        """Moments of the unit scales by layer; a non-centred slab has its scale in the weights."""
        moments = self.scale.moments() if self.config.centred else NoScale.plain(self.gates)
        if moments.log_square.dim() == 0:
            return [moments] * len(self.layers)
        parts = (self.wiring.split_rows(part) for part in moments)
        return [Moments(*part) for part in zip(*parts, strict=True)]

    def parameter_groups(self, network: nn.Module, batch: int) -> list[dict[str, Any]]:
        """See :class:`Method`; the authors use one rate for everything."""
        means = [p for p in network.parameters() if p.requires_grad]
        spreads = [*self.weights.parameters(), *self.scale.parameters()]
        if self.faithful:
            rated = [([*means, *spreads, self.gates], 1e-3)]
        else:
            rated = [
                (means, 3e-3 if self.decided else 2e-3),
                (spreads, 1e-2),
                # Adam moves a gate by its rate a step: many steps an epoch need a lower one.
                (
                    [] if self.decided else [self.gates],
                    0.06 * self.haste * min(1.0, 215 * batch / self.examples) ** 0.5,
                ),
            ]
        return [{"params": part, "lr": rate, "base_lr": rate} for part, rate in rated]

    # ---------------------------------------------------------------- update
    def update(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """See :class:`Method`: removes units whose inclusion probability has settled at zero."""
        settled = torch.tensor(self.config.settled).logit() if self.config.settled else -torch.inf
        return self.remove({n: odds > settled for n, odds in self.log_odds().items()}, optimizer)

    def settle(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """See :class:`Method`: the gates go."""
        gone = torch.zeros(self.gates.shape, dtype=torch.bool)
        apply_cuts([Cut(self, name, 0, gone) for name in ("gates", "prior_inclusion")], optimizer)
        self.cached.forget()
        self.decided = True
        self.wiring = Wiring(self.layers, self.gated())

    def cuts(self, keep: Mapping[str, Tensor], rows: Sequence[Tensor]) -> list[Cut]:
        """See :class:`PosteriorMethod`: gates and unit scales."""
        units = torch.cat(
            [torch.ones(0, dtype=torch.bool)]
            + [keep.get(g.name, torch.ones(g.size, dtype=torch.bool)) for g in self.gated()]
        )
        cuts = [Cut(self, name, 0, units) for name in ("gates", "prior_inclusion")]
        return cuts + [
            Cut(self.scale, name, 0, torch.cat(list(rows))) for name in self.scale.per_unit
        ]

    def means(self) -> dict[str, Tensor]:
        """See :class:`Method`; a non-centred scale is multiplied in at its mean."""
        (network,) = self.network
        means: dict[str, Tensor] = dict(network.state_dict())
        return means if self.config.centred else self._scaled(means, self._mean_scales())

    def unscaled(self, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See :class:`PosteriorMethod`."""
        if self.config.centred:
            return means
        return self._scaled(means, [1 / scale for scale in self._mean_scales()])

    def standard_deviations(self) -> dict[str, Tensor]:
        """See :class:`Method`."""
        std = self.weights.standard_deviations()
        return std if self.config.centred else self._scaled(std, self._mean_scales())

    def _scaled(self, values: Mapping[str, Tensor], scales: Sequence[Tensor]) -> dict[str, Tensor]:
        values, factors = dict(values), list[Tensor | None](scales)
        for place, name in self.gains.items():
            gain = f"{name}.weight"
            if gain in values:
                values[gain], _ = scaled(values[gain], None, factors[place])
            factors[place] = None
        return scale_rows(self.layers, values, factors)

    # -------------------------------------------------------------- log_odds
    def log_odds(self) -> dict[str, Tensor]:
        """See :class:`Method`: the gates' logits."""
        sizes = [group.size for group in self.gated()]
        parts = torch.split(self.gates.detach().cpu(), sizes)
        return {group.name: part for group, part in zip(self.gated(), parts, strict=True)}
