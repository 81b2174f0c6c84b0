"""KLs of whole networks at the published values (card 10.10 and 10.11)."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from bayespare import methods, trace
from bayespare.methods.spike_slab import SpikeSlab

pytestmark = pytest.mark.usefixtures("float64")


def toy(name: str, *, settings: dict[str, object], conv: bool = False) -> SpikeSlab:
    """Card 10.10: one spiked layer, all means and spreads set; the output layer costs nothing."""
    first = nn.Conv2d(2, 2, 3, bias=False) if conv else nn.Linear(3, 2)
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    example = torch.randn(2, 2, 3, 3) if conv else torch.randn(2, 3)
    method = methods.build(name, settings="faithful", prior=0.01, prior_std=1.0, **settings)
    method.attach(model, trace(model, example), examples=1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
        model[0].weight.fill_(0.5)
        if model[0].bias is not None:
            model[0].bias.fill_(-0.5)
        model[3].weight.zero_()
        model[3].bias.zero_()
        one = math.log(math.e - 1)  # softplus(one) = 1: the prior itself
        method.weights.weight_rho[1].fill_(one)
        method.weights.bias_rho[1].fill_(one)
    return method


def test_toy_layer_has_the_published_kl():
    assert toy("ss-ig", settings={}).kl().item() == pytest.approx(4.155883870884762, abs=1e-9)


def test_toy_layer_with_horseshoe_scales_has_the_published_kl():
    method = toy("ss-ghs", settings={"centred": False})
    with torch.no_grad():
        method.scale.alpha_log_mean.fill_(0.3)
        method.scale.beta_log_mean.fill_(0.3)
    units = method.scale.kl_units(torch.ones(3))
    assert units[0].item() == pytest.approx(1.0863349240 + 0.6119172043, abs=1e-9)
    hidden = method.kl() - units[2] - method.scale.kl_global()
    assert hidden.item() == pytest.approx(7.552388127431751, abs=1e-9)


@pytest.mark.parametrize(
    ("conv", "expected", "size", "out"),
    [(False, 6.251797840519051, 4, 3), (True, 35.00951145457769, 18, 3)],
)
def test_toy_layer_with_lasso_scales_has_the_published_kl(conv, expected, size, out):
    """The published code gives 7.4002 for the convolution: it forgets K_tau (card 8.2)."""
    method = toy("ss-gl", settings={"centred": False}, conv=conv)
    with torch.no_grad():
        method.scale.log_mean.fill_(0.3)
        method.scale.rate_log_mean.fill_(0.2)
    units = method.scale.kl_units(torch.tensor([size, size, float(out)]))
    if not conv:
        assert units[0].item() == pytest.approx(1.0479569848, abs=1e-9)
    hidden = method.kl() - units[2] - method.scale.kl_global()
    assert hidden.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ss-ig", 2610668.465666434),
        ("ss-ghs", 2610668.465666434 + 9983.956967),
        ("ss-gl", 2610668.465666434 + 1066273.491563),
    ],
)
def test_the_authors_mlp_starts_at_the_published_kl(name, expected):
    """Card 10.11: 784-400-400-10, mu = 0, rho = -6, gamma = 0.99, theory's priors."""
    sizes = [784, 400, 400, 10]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    scales = {} if name == "ss-ig" else {"centred": False}
    method = methods.build(name, settings="faithful", prior_std=1.0, **scales)
    method.attach(model, trace(model, torch.randn(2, 784), check=False), examples=60_000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for unit in ("log_mean", "alpha_log_mean", "beta_log_mean"):
            if hasattr(method.scale, unit):
                getattr(method.scale, unit).zero_()
    assert method.prior_inclusion.unique().tolist() == pytest.approx(
        [0.001541135531010872, 0.002343842915729095]
    )
    assert method.kl().item() == pytest.approx(expected, rel=1e-9)
    if name == "ss-ig":
        assert method.penalty().item() == pytest.approx(43.5111, abs=1e-4)
