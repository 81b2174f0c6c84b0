"""Every family of Gaussian posteriors behind one interface, against dense twins."""

import math

import pytest
import torch
from torch import nn

from bayespare import data, nets
from bayespare.bayes.curvature import Curvature, KroneckerFactors
from bayespare.bayes.evidence import spike_delta_f
from bayespare.bayes.marginal import Laplace, Prior, laplace
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.errors import BayespareError
from bayespare.measure import evaluate, predict
from bayespare.optim import VariationalAdam

TAU = 2.5


def batches(inputs=(6,), rows=30):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(rows, *inputs, generator=random, dtype=torch.float64)
    return [(x, torch.arange(rows) % 3)]


def made(structure):
    """A small network with a convolution, in double precision, and its Laplace posterior."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)
    ).double()
    found = laplace(
        model, "classification", batches((2, 3, 3)), kind="ggn", structure=structure, samples=1
    )
    prior = Prior(dict(model.named_parameters()), "layer", start=TAU)
    return model, found, found.posterior(prior)


def dense_covariance(found, name):
    block = found.blocks[name]
    size = found.means[name].numel()
    curvature = (
        block.factors.dense() if hasattr(block, "factors") else block.curvature.flatten().diag()
    )
    return torch.linalg.inv(curvature.double() + TAU * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_laplace_is_its_dense_inverse(structure):
    """Spread, evidence of entries, and evidence of rows and input channels removed together."""
    model, found, posterior = made(structure)
    for name, parameter in model.named_parameters():
        mean, covariance = parameter.detach(), dense_covariance(found, name)
        std = covariance.diagonal().sqrt().view_as(mean)
        torch.testing.assert_close(posterior.std[name], std)
        entries = torch.stack(
            [
                spike_delta_f(mean.flatten()[[i]], covariance[i : i + 1, i : i + 1], TAU**-0.5)
                for i in range(mean.numel())
            ]
        )
        torch.testing.assert_close(posterior.delta_f(model, name).flatten(), entries)
        index = torch.arange(mean.numel()).view_as(mean)
        for dim in range(min(2, mean.dim())):
            lines = [index.select(dim, i).flatten() for i in range(mean.shape[dim])]
            slow = torch.stack(
                [
                    spike_delta_f(mean.flatten()[i], covariance[i][:, i], TAU**-0.5, name=name)
                    for i in lines
                ]
            )
            torch.testing.assert_close(posterior.line_delta_f(model, name, dim), slow)


def factored(mean, transposed):
    """A parameter by itself, under strong curvature; the model that holds it, and its Laplace."""
    torch.manual_seed(0)
    output, into = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    factors = KroneckerFactors(output @ output.T, into @ into.T, 10, tuple(mean.shape), transposed)
    found = Laplace({"weight": mean}, Curvature({}, {"weight": factors}, 10))
    model = nn.Module()
    model.weight = nn.Parameter(mean)
    return model, found, found.posterior(Prior({"weight": mean}, "layer", start=TAU))


@pytest.mark.parametrize("transposed", [False, True])
def test_draws_have_the_covariance_of_the_factors(transposed):
    mean = torch.randn(3, 4, dtype=torch.float64)
    model, found, posterior = factored(mean if transposed else mean.T.contiguous(), transposed)
    generator = torch.Generator().manual_seed(0)
    drawn = [posterior.draw(model, generator)["weight"].flatten() for _ in range(4000)]
    dense = dense_covariance(found, "weight")
    within = 0.1 * dense.diagonal().max()
    assert (torch.stack(drawn).T.cov() - dense).abs().max() < within
    assert (dense - dense.diagonal().diag()).abs().max() > 2 * within


def test_a_posterior_half_as_wide_draws_half_as_far_away():
    model, _, posterior = made("kfac")
    wide, half = (
        p.draw(model, torch.Generator().manual_seed(3)) for p in (posterior, posterior.scaled(0.5))
    )
    for name, mean in model.named_parameters():
        torch.testing.assert_close(half[name] - mean.detach(), 0.5 * (wide[name] - mean.detach()))
        torch.testing.assert_close(posterior.scaled(0.5).std[name], 0.5 * posterior.std[name])


def test_a_weight_stored_the_other_way_round_is_the_same():
    """A Hugging Face Conv1D keeps (inputs, outputs)."""
    weight = torch.randn(3, 4, dtype=torch.float64)
    model, _, one = factored(weight.T.contiguous(), transposed=False)
    other_model, _, other = factored(weight, transposed=True)
    torch.testing.assert_close(one.std["weight"].T, other.std["weight"])
    for dim in (0, 1):
        torch.testing.assert_close(
            one.line_delta_f(model, "weight", dim),
            other.line_delta_f(other_model, "weight", 1 - dim),
        )


def test_the_temperature_widens_it():
    model, _, posterior = made("diag")
    hot = laplace(model, "classification", batches((2, 3, 3)), kind="ggn", temperature=4.0)
    wide = hot.posterior(Prior(dict(model.named_parameters()), "layer", start=TAU))
    curvature = posterior.std["3.weight"] ** -2 - TAU
    torch.testing.assert_close(wide.std["3.weight"], (curvature / 4 + TAU).rsqrt())


def test_what_has_no_factored_posterior_is_refused_by_name():
    model, found, posterior = made("kfac")
    prior = Prior(dict(model.named_parameters()), "parameter")
    with torch.no_grad():
        prior.logs[0].normal_()
    with pytest.raises(BayespareError, match=r"0\.weight.*one prior precision"):
        found.posterior(prior)
    with pytest.raises(BayespareError, match="within the kernel"):
        posterior.line_delta_f(model, "0.weight", 2)
    with pytest.raises(BayespareError, match="no parameter 'nobody'"):
        posterior.delta_f(model, "nobody")
    with pytest.raises(BayespareError, match="no prior is known of"):
        GaussianPosterior(posterior.std).delta_f(model, "0.weight")


def test_the_variational_optimiser_hands_its_posterior_to_the_evidence():
    """Digits, trained at draws: it learns, predicts by averaging, and units go without harm."""
    splits = data.load("digits", seed=0)
    train, test = splits.train, splits.test
    model = nets.build("mlp:40", inputs=train.inputs, outputs=10, seed=0)
    generator = torch.Generator().manual_seed(0)
    optimizer = VariationalAdam(
        model.parameters(),
        0.1,
        ess=10 * len(train),  # a temperature of a tenth
        weight_decay=1 / len(train),
        hess_init=0.1,
        betas=(0.9, 0.995),
        generator=generator,
    )
    for _ in range(25):
        for x, y, *_ in data.Batches(train, 64, generator=generator, shuffle=True, drop_last=True):
            with optimizer.sampled_params(train=True):
                nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    posterior = optimizer.posterior(model).checked(model)

    said = predict(model, test.x, task="classification", posterior=posterior, samples=20)
    assert evaluate(said, test.y)["accuracy"] > 0.93
    name = [n for n, p in model.named_parameters() if p.dim() == 2][-1]
    assert optimizer.initial_share(dict(model.named_parameters())[name]) < 0.1
    gains = posterior.line_delta_f(model, name, 1)
    std, prior = posterior.std[name].double(), posterior.prior_std[name].double()
    weight = dict(model.named_parameters())[name].detach().double()
    slow = ((prior / std).log() - 0.5 * (weight / std).square()).sum(0)
    torch.testing.assert_close(gains, slow, rtol=1e-4, atol=1e-3)
    worst, best = gains.argmax(), gains.argmin()
    assert gains[worst] > gains[best] + math.log(100)
    losses = []
    for unit in (worst, best):
        kept = weight.clone().float()
        kept[:, unit] = 0
        with torch.no_grad():
            output = torch.func.functional_call(model, {name: kept}, (train.x,))
        losses.append(float(nn.functional.cross_entropy(output, train.y)))
    assert losses[0] < losses[1]
