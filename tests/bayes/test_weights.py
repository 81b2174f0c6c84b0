"""Mean-field posteriors of whole networks: sums, draws and cuts against loops over weights."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from bayespare.bayes.layers import make_variational
from bayespare.bayes.scales import Moments, inverse_softplus
from bayespare.bayes.weights import (
    FullWeights,
    Statistics,
    TiedWeights,
    Weights,
    slab_kl,
)
from bayespare.errors import UnsupportedStructureError

pytestmark = pytest.mark.usefixtures("float64")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(*, bias: bool = True) -> nn.Sequential:
    """A convolution on 2 x 6 inputs and two linear layers."""
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 4, bias=bias),
        nn.Linear(4, 2),
    )


def posterior(kind: type[Weights], seed: int = 0, *, bias: bool = True) -> Weights:
    """A posterior over :func:`network` with random means and spreads."""
    torch.manual_seed(seed)
    model = network(bias=bias)
    layers = [make_variational(model, name) for name in ("0", "3", "4")]
    weights = TiedWeights(layers, 0.1) if kind is TiedWeights else FullWeights(layers, -2.0)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return weights


def factors(weights: Weights, seed: int, attribute: str) -> list[Tensor]:
    random = generator(seed)
    return [
        torch.rand(getattr(layer, attribute), generator=random) * 0.9 + 0.05
        for layer in weights.layers
    ]


def moments(weights: Weights, seed: int) -> list[Moments]:
    random = generator(seed)
    return [
        Moments(
            torch.randn(layer.rows, generator=random),
            torch.rand(layer.rows, generator=random) + 0.1,
        )
        for layer in weights.layers
    ]


KINDS = pytest.mark.parametrize("kind", [TiedWeights, FullWeights])


# ------------------------------------------------------------------------ sums


def loop(weights: Weights, inputs: Sequence[Tensor], index: int) -> Statistics:
    """Statistics of one layer, weight by weight."""
    layer = weights.layers[index]
    stds = weights.standard_deviations()
    mean, std = layer.weight.flatten(1), stds[f"{layer.name}.weight"].flatten(1)
    bias_std = stds.get(f"{layer.name}.bias")
    count = sum(p.item() for p in inputs[index]) + (bias_std is not None)
    square, log_std = torch.zeros(layer.rows), torch.zeros(layer.rows)
    for row in range(layer.rows):
        for column in range(layer.columns):
            present = inputs[index][column]
            square[row] += present * (mean[row, column] ** 2 + std[row, column] ** 2)
            log_std[row] += present * std[row, column].log()
        if bias_std is not None:
            square[row] += layer.bias[row] ** 2 + bias_std[row] ** 2
            log_std[row] += bias_std[row].log()
    return Statistics(torch.tensor(count), square, log_std)


@KINDS
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), bias=st.booleans())
def test_statistics_are_sums_over_the_weights(kind, seed, bias):
    weights = posterior(kind, seed, bias=bias)
    inputs = factors(weights, seed + 1, "columns")
    for index, statistics in enumerate(weights.statistics(inputs)):
        for fast, slow in zip(statistics, loop(weights, inputs, index), strict=True):
            torch.testing.assert_close(fast, slow)


@KINDS
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), prior_std=st.sampled_from([None, 0.4, 1.3]))
def test_slab_kl_is_the_sum_of_the_layers_own(kind, seed, prior_std):
    """For the tied posterior the fused node is held against the statistics' form."""
    weights = posterior(kind, seed)
    inputs, outputs = (factors(weights, seed + 1, side) for side in ("columns", "rows"))
    arguments = (inputs, outputs, moments(weights, seed + 2), prior_std)
    fast, slow = weights.slab_kl(*arguments), Weights.slab_kl(weights, *arguments)
    torch.testing.assert_close(fast, slow)
    parameters = [*weights.parameters(), *(layer.weight for layer in weights.layers)]
    torch.testing.assert_close(
        torch.autograd.grad(fast, parameters), torch.autograd.grad(slow, parameters)
    )


@settings(max_examples=30)
@given(
    rows=st.integers(1, 4),
    seed=st.integers(0, 1000),
    prior_std=st.sampled_from([None, 0.5, 1.0]),
)
def test_slab_kl_of_a_layer_is_a_sum_of_gaussian_kls(rows, seed, prior_std):
    """With everything present and known scales the KL is torch.distributions'."""
    random = generator(seed)
    mean, log_std = (torch.randn(rows, 3, generator=random) for _ in range(2))
    scale = torch.rand(rows, generator=random) + 0.2
    statistics = Statistics(
        torch.tensor(3.0),
        (mean.square() + (2 * log_std).exp()).sum(1),
        log_std.sum(1),
    )
    known = Moments(scale.square().log(), scale.pow(-2))
    got = slab_kl(statistics, torch.ones(rows), known, prior_std)
    if prior_std is None:
        expected = (mean.square() + (2 * log_std).exp()) / scale.square().unsqueeze(1)
        prior_std = expected.mean().sqrt()
    slab = torch.distributions.Normal(0.0, prior_std * scale.unsqueeze(1).expand(rows, 3))
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_std.exp()), slab
    ).sum()
    torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("logit", [-100.0, 100.0])
@KINDS
def test_slab_kl_is_finite_in_float32_at_extreme_odds(kind, logit):
    weights = posterior(kind).float()
    for layer in weights.layers:
        layer.module.float()
    plain = Moments(*torch.tensor([0.0, 1.0], dtype=torch.float32))
    for form in (kind.slab_kl, Weights.slab_kl):
        theta = torch.tensor(logit, dtype=torch.float32, requires_grad=True)
        inputs = [theta.sigmoid().expand(layer.columns) for layer in weights.layers]
        outputs = [theta.sigmoid().expand(layer.rows) for layer in weights.layers]
        kl = form(weights, inputs, outputs, [plain] * 3, None)
        (slope,) = torch.autograd.grad(kl, theta)
        assert torch.isfinite(kl)
        assert torch.isfinite(slope)


# ----------------------------------------------------------------------- draws


def test_full_draws_have_the_published_moments():
    """Card 10.16, bias noise and a scale of 2 included: as many equal rows as draws."""
    rows = 400_000
    model = nn.Sequential(nn.Linear(2, rows))
    layer = make_variational(model, "0")
    weights = FullWeights([layer], 0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -0.25]).expand(rows, 2))
        layer.bias.zero_()
        weights.weight_rho[0].copy_(inverse_softplus(torch.tensor([0.1, 0.2])).expand(rows, 2))
        weights.bias_rho[0].fill_(inverse_softplus(torch.tensor(0.05)).item())
        (draw,) = weights.draw([None], [torch.full((rows,), 2.0)], generator(0))
        layer.compute_with(draw())
        out = model(torch.tensor([[1.0, 2.0]]))
    assert out.mean().item() == pytest.approx(0, abs=5 * math.sqrt(0.69 / rows))
    assert out.var().item() == pytest.approx(0.69, rel=5 * math.sqrt(2 / rows))


@pytest.mark.parametrize("by", ["its layer", "hand"])
@pytest.mark.parametrize("gated", [False, True])
@KINDS
def test_draws_have_the_posterior_s_moments_at_the_output(kind, gated, by):
    """Mean and variance of each layer's output over draws, from means and standard deviations.

    Also where the network multiplies with ``layer.weight`` and never calls the layer.
    """
    weights = posterior(kind)
    inputs = factors(weights, 1, "columns") if gated else [None] * 3
    outputs = factors(weights, 2, "rows") if gated else [None] * 3
    draws, stds, random = 3000, weights.standard_deviations(), generator(3)
    for index, layer in enumerate(weights.layers):
        linear = layer.weight.dim() == 2
        x = torch.randn((1, layer.columns) if linear else (1, 2, 3), generator=random)
        gate = torch.ones(layer.columns) if inputs[index] is None else inputs[index]
        factor = torch.ones(layer.rows) if outputs[index] is None else outputs[index]
        samples = []
        with torch.no_grad():
            for _ in range(draws):
                layer.compute_with(weights.draw(inputs, outputs, random)[index]())
                if linear and by == "hand":
                    out = functional.linear(x, layer.module.weight, layer.module.bias)
                else:
                    out = layer.module(x)
                samples.append(out.flatten())
        layer.compute_with(None)
        got = torch.stack(samples)
        read = x.flatten() * gate
        mean = layer.weight.flatten(1) @ read + layer.bias
        variance = stds[f"{layer.name}.weight"].flatten(1).square() @ read.square()
        variance = variance + stds.get(f"{layer.name}.bias", torch.zeros(layer.rows)).square()
        spread = factor * variance.sqrt()
        assert ((got.mean(0) - factor * mean).abs() < 5 * spread / math.sqrt(draws)).all()
        assert ((got.std(0) / spread - 1).abs() < 5 / math.sqrt(2 * draws)).all()


@KINDS
def test_means_are_gated_and_scaled_and_carry_no_noise(kind):
    weights = posterior(kind)
    inputs, outputs = (factors(weights, 1, side) for side in ("columns", "rows"))
    for layer, draw, gate, factor in zip(
        weights.layers, weights.means(inputs, outputs), inputs, outputs, strict=True
    ):
        drawn = draw()
        assert drawn.noise is None
        expected = layer.weight.flatten(1) * gate * factor.unsqueeze(1)
        torch.testing.assert_close(drawn.weight.flatten(1), expected)
        torch.testing.assert_close(drawn.bias, layer.bias * factor)


@KINDS
def test_draws_come_from_the_generator_alone(kind):
    weights = posterior(kind)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (weights.draw([None] * 3, [None] * 3, generator(5)) for _ in range(2))
    torch.testing.assert_close(first[0]().weight, second[0]().weight, rtol=0, atol=0)
    x = torch.ones(2, 4)
    outs = []
    for _ in range(2):
        weights.layers[2].compute_with(weights.draw([None] * 3, [None] * 3, generator(5))[2]())
        outs.append(weights.layers[2].module(x))
    torch.testing.assert_close(*outs, rtol=0, atol=0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_scale_before_batch_norm_is_undone_by_it_and_a_gate_behind_it_is_not():
    """Card 10.17 and 8.1: why gates act where a unit is read."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12), nn.Conv2d(4, 2, 1)
    ).float()
    layers = [make_variational(model, name) for name in ("0", "2")]
    weights = TiedWeights(layers, 0.1)
    x = torch.randn(8, 3, 9, 9, dtype=torch.float32)
    factor = torch.tensor([0.5, 2.0, 7.0, 1.0], dtype=torch.float32)

    def run(inputs: Tensor | None, outputs: Tensor | None) -> Tensor:
        draws = weights.means([None, inputs], [outputs, None])
        for layer, draw in zip(layers, draws, strict=True):
            layer.compute_with(draw())
        with torch.no_grad():
            return model(x)

    plain = run(None, None)
    assert (run(None, factor) - plain).abs().max().item() < 2e-6
    assert (run(factor, None) - plain).abs().max().item() > 0.1


# ------------------------------------------------------------------------ cuts


@KINDS
def test_cuts_name_what_belongs_to_the_rows_and_columns_that_go(kind):
    """After the cuts the standard deviations are the old ones at the kept rows and columns."""
    weights = posterior(kind)
    keep_rows = [torch.tensor(k) for k in ([True, False, True], [True, False, True, True])]
    keep_rows.append(torch.ones(2, dtype=torch.bool))
    keep_columns = [
        torch.ones(6, dtype=torch.bool),
        keep_rows[0].repeat_interleave(4),
        keep_rows[1],
    ]
    before = weights.standard_deviations()
    for module, name, dim, keep in weights.cuts(keep_columns, keep_rows):
        old = getattr(module, name)
        setattr(module, name, nn.Parameter(old.detach().index_select(dim, keep.nonzero()[:, 0])))
    for layer, columns, rows in zip(weights.layers, keep_columns, keep_rows, strict=True):
        weight = layer.weight
        channels = columns[:: weight[0, 0].numel()]
        layer.module.weight = nn.Parameter(weight.detach()[rows][:, channels])
        layer.module.bias = nn.Parameter(layer.bias.detach()[rows])
    after = weights.standard_deviations()
    assert set(after) == set(before)
    for layer, columns, rows in zip(weights.layers, keep_columns, keep_rows, strict=True):
        name = f"{layer.name}.weight"
        channels = columns[:: before[name][0, 0].numel()]
        torch.testing.assert_close(after[name], before[name][rows][:, channels])
        if f"{layer.name}.bias" in before:
            torch.testing.assert_close(
                after[f"{layer.name}.bias"], before[f"{layer.name}.bias"][rows]
            )


@KINDS
def test_standard_deviations_are_shaped_like_the_parameters(kind):
    weights = posterior(kind)
    stds = weights.standard_deviations()
    for layer in weights.layers:
        assert stds[f"{layer.name}.weight"].shape == layer.weight.shape
    biases = {name for name in stds if name.endswith("bias")}
    assert biases == (set() if kind is TiedWeights else {"0.bias", "3.bias", "4.bias"})
    assert all((std > 0).all() for std in stds.values())


@KINDS
def test_the_network_s_parameters_stay_the_network_s(kind):
    weights = posterior(kind)
    own = {id(parameter) for parameter in weights.parameters()}
    assert not own & {id(p) for layer in weights.layers for p in layer.module.parameters()}


# ---------------------------------------------------------------------- layers


def test_a_variational_layer_without_a_draw_is_the_stock_layer():
    torch.manual_seed(0)
    for stock, shape in (
        (nn.Linear(4, 3), (2, 4)),
        (nn.Linear(4, 3), (2, 5, 4)),
        (nn.Conv1d(4, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 7)),
        (nn.Conv2d(4, 6, (2, 3), stride=2, dilation=2, groups=2, bias=False), (2, 4, 9, 9)),
    ):
        model = nn.Sequential(stock)
        x = torch.randn(shape)
        expected = model(x)
        layer = make_variational(model, "0")
        assert layer.weight is stock.weight
        assert isinstance(layer.module, type(stock))
        assert set(model.state_dict()) == {"0." + name for name in stock.state_dict()}
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_noise_at_the_output_is_drawn_for_every_position_of_a_sequence():
    weights = posterior(TiedWeights)
    layer = weights.layers[2]
    layer.compute_with(weights.draw([None] * 3, [None] * 3, generator(0))[2]())
    out = layer.module(torch.ones(3, 5, 4))
    assert out.shape == (3, 5, 2)
    assert len(out.flatten(0, 1).unique(dim=0)) == 15


def test_other_layers_are_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2))
    with pytest.raises(UnsupportedStructureError, match="'1' is a Bilinear") as caught:
        make_variational(model, "1")
    assert "a matrix or a filter" in str(caught.value)
