"""What makes marginal-likelihood training cheap changes none of its results."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bayespare.bayes.curvature import KroneckerFactors, curvature, wired
from bayespare.bayes.marginal import Decay, Prior, laplace, learn, mackay
from bayespare.bayes.marginal.blocks import KroneckerBlock
from bayespare.errors import BayespareError

D = torch.float64
KINDS = ["scalar", "layer", "unit", "parameter"]


def lenet(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    return model, torch.randn(20, 1, 6, 6, dtype=D), torch.randint(0, 3, (20,))


@pytest.mark.parametrize("kind", KINDS)
def test_decay_is_the_gradient_of_the_penalty(kind):
    model, x, y = lenet()
    parameters = dict(model.named_parameters())
    prior = Prior(parameters, kind)
    for log in prior.logs:
        log.data.normal_()
    loss = functional.cross_entropy(model(x), y)
    whole = torch.autograd.grad(loss + 0.1 * prior.penalty(parameters), list(model.parameters()))
    functional.cross_entropy(model(x), y).backward()
    Decay(prior, parameters, 0.1).add()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        assert torch.allclose(parameter.grad, expected)


def test_decay_pulls_what_the_loss_does_not_use():
    unused = nn.Parameter(torch.tensor([2.0]))
    Decay(Prior({"w": unused}, start=3.0), {"w": unused}, 0.5).add()
    assert unused.grad.tolist() == pytest.approx([3.0])


@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("kind", ["ef", "ggn"])
def test_a_known_wiring_gives_the_same_blocks(structure, kind):
    model, x, y = lenet()
    options = {"kind": kind, "structure": structure}
    fresh = curvature(model, "classification", [(x, y)], **options)
    wiring = wired(model, x)
    for parameter in model.parameters():  # values may change, shapes may not
        parameter.data.mul_(1.0)
    again = curvature(model, "classification", [(x, y)], wiring=wiring, **options)
    for name, block in fresh.diagonals().items():
        assert torch.equal(block, again.diagonals()[name])


def test_a_wiring_of_another_model_is_refused():
    model, x, y = lenet()
    wiring = wired(model, x)
    model[3] = nn.Linear(48, 6).double()
    model[5] = nn.Linear(6, 3).double()
    with pytest.raises(BayespareError, match=r"'3.bias'.*find it again"):
        curvature(model, "classification", [(x, y)], wiring=wiring)


def test_one_pass_gives_curvature_and_likelihood():
    model, x, y = lenet()
    batches = [(x[:9], y[:9]), (x[9:], y[9:])]
    found = laplace(model, "classification", iter(batches), kind="ef")
    expected = -functional.cross_entropy(model(x), y, reduction="sum")
    assert float(found.log_likelihood()) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_a_bias_shares_its_weights_factor_and_eigenvectors():
    model, x, y = lenet()
    found = laplace(model, "classification", [(x, y)], structure="kfac", kind="ef")
    for layer in "035":
        weight, bias = found.blocks[f"{layer}.weight"], found.blocks[f"{layer}.bias"]
        assert bias.factors.output is weight.factors.output
        assert bias.output_values is weight.output_values
    rows = torch.zeros(5, 5, dtype=D)
    for n in range(20):  # the slow twin of one of them
        loss = functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        (row,) = torch.autograd.grad(loss, model[3].bias)
        rows += row.outer(row)
    assert torch.allclose(found.blocks["3.bias"].factors.output, rows)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_constant_prior_is_exact_without_an_eigenvalue_problem(transposed):
    torch.manual_seed(1)
    root, other = torch.randn(3, 7, dtype=D), torch.randn(4, 9, dtype=D)
    shape = (4, 3) if transposed else (3, 4)
    factors = KroneckerFactors(root @ root.T, other @ other.T, 1, shape, transposed)
    log, factor = torch.tensor(0.7, dtype=D), 0.3
    precision = factor * factors.dense() + log.exp() * torch.eye(12, dtype=D)
    block = KroneckerBlock(factors)
    options = {"published": False, "separable": False}
    value = block.log_determinant(log, torch.tensor(factor, dtype=D), **options)
    assert float(value) == pytest.approx(float(precision.logdet()), rel=1e-10)
    gamma = 1 - log.exp() * precision.inverse().diagonal().reshape(shape)
    assert torch.allclose(block.determined(log, factor, **options), gamma)
    assert float(block.effective(log, factor)) == pytest.approx(float(gamma.sum()), rel=1e-10)


@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("kind", ["scalar", "layer"])
def test_fixed_point_steps_stop_where_nothing_moves(kind, structure, monkeypatch):
    model, x, y = lenet()
    found = laplace(model, "classification", [(x, y)], kind="ggn", structure=structure)
    one, two = (Prior(found.means, kind) for _ in range(2))
    mackay(one, found, steps=30)
    best = float(found.log_evidence(one).detach())
    steps = []
    seen = found.effective
    monkeypatch.setattr(found, "effective", lambda *given: steps.append(0) or seen(*given))
    learn(two, found, steps=30, tolerance=0.01)
    assert float(found.log_evidence(two).detach()) == pytest.approx(best, abs=1e-3)
    assert len(steps) <= 6


@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_the_effective_number_is_the_sum_of_what_is_determined(structure):
    model, x, y = lenet()
    found = laplace(model, "classification", [(x, y)], kind="ggn", structure=structure)
    prior = Prior(found.means, "layer", start=3.0)
    totals, gamma = found.effective(prior), found.determined(prior)
    for name, total in totals.items():
        assert float(total) == pytest.approx(float(gamma[name].double().sum()), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("published", [False, True])
def test_the_evidence_of_a_convolution_under_every_prior(kind, published):
    """Against dense blocks: equal, or from below where the eigenbasis is approximate."""
    model, x, y = lenet()
    options = {"structure": "kfac", "kind": "ggn"}
    found = laplace(model, "classification", [(x, y)], published=published, **options)
    prior = Prior(found.means, kind)
    for log in prior.logs:
        log.data.normal_()
    dense = 0.0
    for name, log in prior.log_precisions().items():
        block = found.blocks[name].factors.dense() + log.detach().exp().flatten().diag()
        dense += float(block.logdet())
    value = float(found.log_determinant(prior).detach())
    if kind in ("scalar", "layer") or (kind == "unit" and not published):
        assert value == pytest.approx(dense, rel=1e-9)
    else:
        assert value >= dense - 1e-9
    if published and kind in ("unit", "parameter"):
        return  # shares below zero are cut off there
    gamma = found.determined(prior)
    slopes = torch.autograd.grad(found.log_determinant(prior), list(prior.logs))
    expected = prior.pooled({name: 1 - share for name, share in gamma.items()})
    for slope, share in zip(slopes, expected, strict=True):
        assert torch.allclose(slope, share, rtol=1e-6, atol=1e-9)


def test_a_singular_factor_in_single_precision_has_a_posterior():
    """A softmax has no curvature along the ones: an eigenvalue that is zero but for rounding."""
    torch.manual_seed(0)
    model, x = nn.Linear(30, 10), torch.randn(400, 30)
    y = torch.randint(0, 10, (400,))
    found = laplace(model, "classification", [(x, y)], kind="ggn", structure="kfac")
    values = torch.linalg.eigvalsh(found.blocks["weight"].output[0])
    assert values[0].abs() < 1e-5 * values[-1]
    posterior = found.posterior(Prior(found.means, "layer"))
    dense = found.blocks["weight"].factors.dense().double() + torch.eye(300)
    expected = dense.inverse().diagonal().sqrt().reshape(10, 30)
    assert torch.allclose(posterior.std["weight"].double(), expected, rtol=1e-3)
