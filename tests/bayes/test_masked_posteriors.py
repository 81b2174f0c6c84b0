"""Posteriors of the flat prior and what they cost, against distributions and quadrature."""

import itertools
import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import Normal, kl_divergence

from bayespare.bayes.evidence import delta_f
from bayespare.bayes.horseshoe import best_tau, horseshoe_gain, shrinkages
from bayespare.bayes.layer_scale import LayerScale, gamma_kl
from bayespare.bayes.layers import make_variational
from bayespare.bayes.masked import MaskedWeights
from bayespare.bayes.scales import Moments


def masked(bias: bool = True) -> MaskedWeights:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3, bias=bias)).double()
    weights = MaskedWeights([make_variational(network, "0")], [0.3]).double()
    with torch.no_grad():
        for rho in (*weights.weight_rho, *weights.bias_rho):
            rho.add_(0.2 * torch.randn_like(rho))
    return weights


@pytest.mark.parametrize("bias", [True, False])
def test_the_masked_kl_is_the_sum_over_what_is_there(bias):
    weights = masked(bias)
    keep = torch.rand(3, 4) < 0.6
    keep_bias = torch.tensor([True, False, True])[: 3 * bias]
    weights.prune({0: (keep, keep_bias)})
    ones = [torch.ones(4).double()], [torch.ones(3).double()]
    zero = torch.zeros(()).double()
    found = weights.slab_kl(*ones, [Moments(zero, zero + 1)], 0.7)
    layer = weights.layers[0].module
    expected = kl_divergence(Normal(layer.weight, weights.weight_rho[0].exp()), Normal(zero, 0.7))[
        keep
    ].sum()
    if bias:
        kl = kl_divergence(Normal(layer.bias, weights.bias_rho[0].exp()), Normal(zero, 0.7))
        expected = expected + kl[keep_bias].sum()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [False, True])
def test_noise_at_the_output_is_that_of_drawn_weights(bias, scale):
    """Same mean and variance of every output; of two examples, one after the other's noise."""
    weights = masked(bias).float()
    weights.per_example = True
    weights.prune({0: (torch.rand(3, 4) < 0.7, torch.tensor([True, False, True])[: 3 * bias])})
    layer = weights.layers[0].module.float()
    x = torch.randn(2, 4)
    factor = torch.tensor([0.5, 1.0, 2.0]) if scale else None
    gate = torch.tensor([1.0, 0.3, 1.0, 0.0]) if scale else None
    generator = torch.Generator().manual_seed(0)
    outputs = {}
    for per_example, draws in ((True, 1), (False, 5_000)):
        weights.per_example = per_example
        rows = x.repeat(5_000 // draws, 1)
        found = []
        for _ in range(draws):
            (draw,) = weights.draw([gate], [factor], generator)
            weights.layers[0].compute_with(draw())
            with torch.no_grad():
                found.append(layer(rows))
        outputs[per_example] = torch.cat(found).view(-1, 2, 3)
    one, many = outputs[True], outputs[False]
    torch.testing.assert_close(one.mean(0), many.mean(0), rtol=0.0, atol=0.06)
    torch.testing.assert_close(one.std(0), many.std(0), rtol=0.06, atol=1e-4)
    # Drawn apart, where a weight that is shared couples the examples.
    assert abs(float(torch.corrcoef(one[:, :, 0].T)[0, 1])) < 0.06


def test_noise_at_the_output_has_the_gradients_of_its_formula():
    weights = masked()
    weights.per_example = True
    weights.prune({0: (torch.rand(3, 4) < 0.7, torch.tensor([True, False, True]))})
    layer, rho, bias_rho = weights.layers[0].module, weights.weight_rho[0], weights.bias_rho[0]
    x = torch.randn(5, 4).double()
    (draw,) = weights.draw([None], [None], torch.Generator().manual_seed(3))
    weights.layers[0].compute_with(draw())
    found = layer(x)
    weights.layers[0].compute_with(None)
    noise = torch.empty(5, 3).normal_(generator=torch.Generator().manual_seed(3)).double()
    there, bias_there = weights.masks(0)
    mean = x @ (layer.weight * there).T + layer.bias * bias_there
    variance = x.square() @ ((2 * rho).exp() * there).T + (2 * bias_rho).exp() * bias_there
    expected = mean + (variance + 1e-10).sqrt() * noise
    torch.testing.assert_close(found, expected)
    parameters = [layer.weight, layer.bias, rho, bias_rho]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    weights.prune({0: (torch.zeros(3, 4).bool(), torch.zeros(3).bool())})
    weights.layers[0].compute_with(draw())
    assert not layer(x).any()  # what is gone has no noise


def test_the_empirical_kl_is_the_lowest_over_the_prior_s_scale():
    weights = masked()
    ones = [torch.ones(4).double()], [torch.ones(3).double()]
    unit = [Moments(torch.zeros(()).double(), torch.ones(()).double())]
    found = float(weights.slab_kl(*ones, unit, None).detach())
    grid = [float(weights.slab_kl(*ones, unit, 0.02 * 1.002**k).detach()) for k in range(3000)]
    assert min(grid) - 1e-3 <= found <= min(grid) + 1e-9


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.1), (-0.7, 0.4), (1.2, 0.9)])
def test_the_kl_of_a_log_normal_from_a_gamma(mean, std):
    q = stats.lognorm(std, scale=math.exp(mean))
    p = stats.gamma(2.0, scale=1 / 3.0)

    def integrand(z: float) -> float:
        x = math.exp(mean + std * z)
        return stats.norm.pdf(z) * (q.logpdf(x) - p.logpdf(x))

    expected, _ = integrate.quad(integrand, -12, 12, limit=400)
    log_mean, log_std = torch.tensor([mean, std], dtype=torch.float64)
    assert float(gamma_kl(log_mean, log_std, 2.0, 3.0)) == pytest.approx(expected, abs=1e-8)


def test_draws_of_a_layer_scale_have_its_mean():
    scale = LayerScale([0.1, 1.0])
    with torch.no_grad():
        scale.log_mean.copy_(torch.tensor([0.4, -0.3]))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([scale.draw(generator) for _ in range(20_000)])
    torch.testing.assert_close(draws.mean(0), scale.mean(), rtol=3e-3, atol=0.0)


def test_the_horseshoe_s_evidence_is_an_integral_over_its_scale():
    mean, std, tau = torch.tensor(0.25, dtype=torch.float64), 0.1, 0.1

    def integrand(log_t: float) -> float:
        t = math.exp(log_t)
        density = 2 / (math.pi * tau * (1 + (t / tau) ** 2))
        gain = delta_f(mean, std, 1.0, t / math.sqrt(1 + t * t))
        return density * t * math.exp(float(gain))

    expected, _ = integrate.quad(integrand, -16, 16, limit=400)
    gains = torch.stack([delta_f(mean, std, 1.0, s) for s in shrinkages(512)])
    assert float(horseshoe_gain(gains, tau)) == pytest.approx(math.log(expected), abs=2e-3)
    coarse = torch.stack([delta_f(mean, std, 1.0, s) for s in shrinkages()])
    assert float(horseshoe_gain(coarse, tau)) == pytest.approx(math.log(expected), abs=2e-3)


@pytest.mark.parametrize(("size", "within"), [(10, 0.01), (100, 0.1), (4096, 5.0)])
@pytest.mark.parametrize("std", [0.01, 0.1])
def test_the_horseshoe_s_evidence_of_wide_blocks_is_an_integral_too(size, within, std):
    """A narrow peak in the scale, against 20,001 points; values are thousands of nats."""
    logs = torch.linspace(math.log(1e-12), math.log(1e12), 20_001, dtype=torch.float64)
    scales = logs.exp() / (1 + logs.exp().square()).sqrt()
    for ratio, tau in itertools.product((1.0, 1.2, 3.0, 20.0), (1e-3, 1.0)):
        mean = torch.tensor(std * math.sqrt(ratio), dtype=torch.float64)
        density = math.log(2 / (math.pi * tau)) - (logs.exp() / tau).square().log1p() + logs
        whole = size * delta_f(mean, std, 1.0, scales)
        expected = (whole + density + (logs[1] - logs[0]).log()).logsumexp(0)
        coarse = size * torch.stack([delta_f(mean, std, 1.0, s) for s in shrinkages()])
        assert float(horseshoe_gain(coarse, tau)) == pytest.approx(float(expected), abs=within)


def test_blocks_far_from_zero_ask_for_a_wider_horseshoe():
    def at(mean: float) -> float:
        means = torch.full((8,), mean, dtype=torch.float64)
        return best_tau(torch.stack([delta_f(means, 0.01, 1.0, s) for s in shrinkages()]))

    assert at(0.0) == 1e-3
    assert at(0.02) < at(0.8)
