"""Unit scales in residual networks: batch norm behind a layer must not make them idle."""

import pytest
import torch
from cases import ARCHITECTURES, MethodCase, planned, started, thinned, train
from torch import Tensor

from bayespare.structure.compare import difference
from bayespare.training.finish import finish
from bayespare.training.fit import Fit

RESNET = next(net for net in ARCHITECTURES if net.name == "resnet")
NAMES = pytest.mark.parametrize("name", ["ss-gl", "ss-ghs"])


def likelihood_gradients(fit: Fit) -> list[float]:
    """Largest gradient of the loss without the KL in the log scales of each layer's rows."""
    *_, data = planned(RESNET)
    method, network = fit.method, fit.network.train()
    loss = fit.likelihood.nll(network(data.x[:32]), data.y[:32]).mean()
    (log_mean,) = (
        p for n, p in method.scale.named_parameters() if n in ("log_mean", "alpha_log_mean")
    )
    (found,) = torch.autograd.grad(loss, log_mean)
    return [float(part.abs().max()) for part in found.split([x.rows for x in method.layers])]


def unit_parameters(fit: Fit) -> dict[str, Tensor]:
    scale = fit.method.scale
    return {
        name: p.detach().clone() for name, p in scale.named_parameters() if name in scale.per_unit
    }


@NAMES
@pytest.mark.parametrize("centred", [True, False])
def test_the_posterior_of_the_scales_leaves_its_start(name, centred):
    fit = started(MethodCase(name, {"centred": centred}), RESNET)
    before = unit_parameters(fit)
    train(fit, RESNET)
    for key, value in unit_parameters(fit).items():
        assert (value - before[key]).abs().median() > 1e-2


@NAMES
def test_a_scale_that_batch_norm_would_cancel_acts_on_its_gain(name):
    """Every layer's scales get a gradient from the likelihood, those before a norm too."""
    fit = started(MethodCase(name, {"centred": False}), RESNET)
    assert len(fit.method.gains) == len(fit.method.layers) - 1  # all but the output layer
    train(fit, RESNET)
    assert min(likelihood_gradients(fit)) > 1e-5
    assert all("weight" not in module.__dict__ for module in fit.network.modules())
    fit.method.gains = {}
    *before_norms, last = likelihood_gradients(fit)
    assert max(before_norms) < 1e-3 * last


@NAMES
def test_scaled_gains_are_in_the_network_that_is_saved(name):
    template, _, data = planned(RESNET)
    fit = started(MethodCase(name, {"centred": False}), RESNET)
    train(fit, RESNET)
    fit.remove(thinned(fit, 0.6, seed=0))
    train(fit, RESNET)
    fit.decide()
    done = finish(template, fit.method, data.x[:4])
    assert difference(fit.network.eval(), done.model.eval(), data.x[:8]) < 1e-5


def test_the_authors_scales_stay_where_they_are_cancelled():
    fit = started(MethodCase("ss-gl", {"settings": "faithful"}), RESNET)
    assert fit.method.gains == {}
    train(fit, RESNET)
    *before_norms, last = likelihood_gradients(fit)
    assert max(before_norms) < 1e-3 * last


@NAMES
@pytest.mark.parametrize("net", ARCHITECTURES[:3], ids=str)
def test_scales_of_their_own_leave_the_network_what_it_was(name, net):
    """They start where their prior is, and the means give way: it may be trained already."""
    network, _, data = planned(net)
    fit = started(MethodCase(name, {"centred": False}), net)
    with torch.no_grad():
        given, attached = network.eval()(data.x), fit.network.eval()(data.x)
    torch.testing.assert_close(attached, given, rtol=1e-4, atol=1e-5)
