"""Predictions of the linearised network, and temperature scaling."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import bayespare
from bayespare.assess import narrowed
from bayespare.bayes.marginal import Prior, laplace
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.data import from_tensors, load
from bayespare.errors import BayespareError
from bayespare.measure import best_temperature, evaluate, predict, scaled_log_probs
from bayespare.measure.linearised import output_moments, probit_logits

D = torch.float64


def small(outputs=3):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(9, outputs)
    )
    model = model.double().eval()
    std = {n: 0.05 + 0.1 * torch.rand_like(p) for n, p in model.named_parameters() if "1." not in n}
    return model, GaussianPosterior(std), torch.randn(5, 2, 5, dtype=D)


@pytest.mark.parametrize("working", [1, 2**24])
def test_moments_are_those_of_the_dense_jacobian(working, monkeypatch):
    """Chunked or not; of what the posterior is sure of there is no part."""
    monkeypatch.setattr("bayespare.measure.linearised.WORKING", working)
    model, posterior, x = small()
    mean, covariance = output_moments(model, x, posterior)
    assert torch.allclose(mean, model(x))
    parameters = dict(model.named_parameters())
    for n in range(5):
        expected = torch.zeros(3, 3, dtype=D)
        rows = []
        for k in range(3):
            grads = torch.autograd.grad(model(x)[n, k], list(parameters.values()))
            rows.append(
                torch.cat(
                    [
                        (g * posterior.std[name]).flatten()
                        for name, g in zip(parameters, grads, strict=True)
                        if name in posterior.std
                    ]
                )
            )
        jacobian = torch.stack(rows)
        expected = jacobian @ jacobian.T
        assert torch.allclose(covariance[n], expected)


def test_small_spreads_make_networks_and_their_linearisation_one():
    """Draws of networks have the covariance of the linearised one."""
    model, posterior, x = small()
    tiny = GaussianPosterior({n: 1e-3 * s for n, s in posterior.std.items()})
    mean, covariance = output_moments(model, x, tiny)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = torch.stack(
            [functional_call(model, tiny.draw(model, random), (x,)) for _ in range(4000)]
        )
    centred = outputs - mean
    found = torch.einsum("snk,snl->nkl", centred, centred) / 4000
    assert torch.allclose(found, covariance, rtol=0.2, atol=0.1 * float(covariance.abs().max()))


def test_correlated_parameters_have_their_own_covariance():
    """Of a Laplace posterior with Kronecker factors: against its dense covariance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.randn(20, 2, 3, dtype=D)
    found = laplace(
        model, "classification", [(x, torch.arange(20) % 3)], structure="kfac", kind="ggn"
    )
    posterior = found.posterior(Prior(found.means, "layer", start=2.0))
    assert posterior.correlated
    _, covariance = output_moments(model, x[:1], posterior)
    expected = torch.zeros(3, 3, dtype=D)
    for name, parameter in model.named_parameters():
        rows = [torch.autograd.grad(model(x[:1])[0, k], parameter)[0].flatten() for k in range(3)]
        jacobian = torch.stack(rows)
        block = found.blocks[name].factors.dense() + 2 * torch.eye(parameter.numel(), dtype=D)
        expected += jacobian @ block.inverse() @ jacobian.T
    assert torch.allclose(covariance[0], expected)


def test_probit_is_near_the_mean_over_draws_of_outputs():
    model, posterior, x = small()
    linear = GaussianPosterior(posterior.std, predictive="linear")
    probit = GaussianPosterior(posterior.std, predictive="probit")
    one = predict(model, x, task="classification", posterior=linear, samples=4000)
    two = predict(model, x, task="classification", posterior=probit)
    assert torch.allclose(one.probs, two.probs, atol=0.02)
    assert bool((one.epistemic > 0).all())
    assert not bool(two.epistemic.any())
    spread = torch.eye(2, dtype=D)[None] * 8 / math.pi
    halves = probit_logits(torch.tensor([[2.0, 0.0]], dtype=D), spread)
    assert halves.tolist() == [[pytest.approx(math.sqrt(2)), 0]]


def test_regression_has_the_exact_variance():
    model, posterior, x = small(1)
    linear = GaussianPosterior(posterior.std, predictive="linear")
    mean, covariance = output_moments(model, x, linear)
    said = predict(model, x, task="regression", posterior=linear, noise_std=0.3)
    assert torch.allclose(said.mean, mean[:, 0])
    assert torch.allclose(said.epistemic, covariance[:, 0, 0])
    assert torch.allclose(said.variance, covariance[:, 0, 0] + 0.09)


def test_a_wide_laplace_posterior_predicts_better_linearised():
    """Why there are two ways: draws of networks leave the region where the curvature holds."""
    splits = load("digits")
    x, y = splits.train.x, splits.train.y
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    std = {n: torch.full_like(p, 0.3) for n, p in model.named_parameters()}
    scores = {}
    for how in ("draws", "linear", "probit"):
        posterior = GaussianPosterior(std, predictive=how)
        said = predict(model, splits.valid.x, task="classification", posterior=posterior)
        scores[how] = evaluate(said, splits.valid.y)["nll"]
    assert scores["probit"] < scores["draws"]
    found = narrowed(GaussianPosterior(std, predictive="linear"), model, splits.valid, None)
    assert found.predictive == "linear"


def test_best_temperature_is_where_the_loss_is_least():
    random = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(400, 4, generator=random, dtype=D)
    y = torch.multinomial((logits / 3).softmax(1), 1, generator=random).squeeze(1)
    found = best_temperature(logits, y)
    assert found == pytest.approx(3, rel=0.2)
    at = torch.arange(400)

    def loss(temperature):
        return float(-scaled_log_probs(logits, temperature)[at, y].mean())

    assert loss(found) <= min(loss(found * 1.01), loss(found / 1.01))
    assert best_temperature(logits, logits.argmax(1)) == pytest.approx(0.05, rel=1e-6)


def test_how_it_predicts_is_chosen_kept_and_checked(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    data = from_tensors(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    result = bayespare.sparsify(
        model, data, method="spam", epochs=6, baseline=False, predictive="probit"
    )
    assert result.posterior.predictive == "probit"
    folder = result.save(tmp_path / "run")
    back = bayespare.load(folder, model)
    assert back.posterior.predictive == "probit"
    assert torch.equal(back.predict(x).probs, result.predict(x).probs)
    with pytest.raises(BayespareError, match="ss-ig predicts by draws"):
        bayespare.sparsify(model, data, method="ss-ig", epochs=6, predictive="linear")
    with pytest.raises(BayespareError, match="did you mean 'linear'"):
        GaussianPosterior({}, predictive="linaer").checked(model)
