"""Predictions of the linearised network, and temperature scaling."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import bayespare
from bayespare.assess import narrowing
from bayespare.bayes.marginal import Prior, laplace
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.data import from_tensors, load
from bayespare.errors import BayespareError
from bayespare.measure import best_temperature, evaluate, predict, scaled_log_probs
from bayespare.measure.linearised import draws, output_moments, probit_logits

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
    _, variance = output_moments(model, x, posterior, variance=True)
    assert torch.equal(variance, covariance.diagonal(dim1=1, dim2=2))
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


def test_moments_do_not_depend_on_how_a_weight_lies_in_memory():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    posterior = GaussianPosterior({n: torch.rand_like(p) for n, p in model.named_parameters()})
    x = torch.randn(3, 4, dtype=D)
    _, before = output_moments(model, x, posterior)
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
    torch.testing.assert_close(output_moments(model, x, posterior)[1], before)


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
    spread = torch.full((1, 2), 8 / math.pi, dtype=D)
    halves = probit_logits(torch.tensor([[2.0, 0.0]], dtype=D), spread)
    assert halves.tolist() == [[pytest.approx(math.sqrt(2)), 0]]


class Uses(nn.Module):
    """One layer for all positions, one used twice, one transposed, one not trained, one unused."""

    def __init__(self):
        super().__init__()
        self.each, self.frozen = nn.Linear(4, 3), nn.Linear(6, 6, bias=False)
        self.twice, self.spare = nn.Linear(6, 6), nn.Linear(2, 2)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
        self.head = nn.Linear(5, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        x = torch.tanh(self.each(x.view(-1, 4))).view(len(x), 6)
        x = self.twice(torch.tanh(self.twice(self.frozen(x))))
        return self.head(torch.addmm(self.bias, x, self.weight).relu_())


def uses():
    torch.manual_seed(0)
    return Uses().double().eval(), torch.randn(5, 8, dtype=D)


def perceptron():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 4, bias=False))
    model.append(nn.Tanh()).append(nn.Linear(4, 3))
    return model.double().eval(), torch.randn(5, 8, dtype=D)


@pytest.mark.parametrize(
    ("case", "rest"),
    [(perceptron, 0), (uses, 7), (lambda: small()[::2], 2)],
    ids=["perceptron", "uses", "convolution"],
)
def test_of_plain_layers_no_jacobian_is_formed(case, rest, monkeypatch):
    """What they bring is the same as with it."""
    model, x = case()
    names = [n for n, _ in model.named_parameters() if n not in ("1.weight", "1.bias")]
    posterior = GaussianPosterior({n: torch.rand_like(model.get_parameter(n)) for n in names})
    differentiated = []

    def spied(function):
        return lambda values, x: differentiated.append(set(values)) or jacrev(function)(values, x)

    monkeypatch.setattr("bayespare.measure.linearised.jacrev", spied)
    mean, covariance = output_moments(model, x, posterior)
    assert [len(names) for names in differentiated] == [rest] * bool(rest)
    monkeypatch.setattr("bayespare.measure.linearised._plain_layers", lambda *_: {})
    expected = output_moments(model, x, posterior)
    assert len(differentiated[-1]) == len(names)
    torch.testing.assert_close(mean, expected[0])
    torch.testing.assert_close(covariance, expected[1])


def test_correlated_weights_beside_independent_ones():
    model, x = perceptron()
    y = torch.arange(5) % 3
    found = laplace(model, "classification", [(x, y)], structure="kfac", kind="ggn")
    whole = found.posterior(Prior(found.means, "layer"))
    some = {"0.weight": whole.correlated["0.weight"]}
    mixed = GaussianPosterior(whole.std, correlated=some)
    parts = [
        GaussianPosterior({"0.weight": whole.std["0.weight"]}, correlated=some),
        GaussianPosterior({n: std for n, std in whole.std.items() if n != "0.weight"}),
    ]
    spread = sum(output_moments(model, x, part)[1] for part in parts)
    torch.testing.assert_close(output_moments(model, x, mixed)[1], spread)


def test_outputs_are_drawn_where_their_generator_is():
    mean, root = torch.randn(4, 2, dtype=D), torch.randn(4, 2, 2, dtype=D)
    covariance = root @ root.mT
    expected = draws(mean, covariance, 3, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        found = draws(mean, covariance, 3, generator)
    assert all(map(torch.equal, found, expected))


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
    posterior = GaussianPosterior(std, predictive="linear")
    factor = narrowing(posterior, model, splits.valid, None)
    assert 0 < factor <= 1
    assert posterior.scaled(factor).predictive == "linear"


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
