"""Evidence and curvature against laplace-torch, where it is installed and does the same."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayespare.bayes.likelihood import Gaussian
from bayespare.bayes.marginal import Prior, laplace

D = torch.float64

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it warns of on import is not ours
    peer = pytest.importorskip("laplace", reason="laplace-torch is not installed")
    from laplace import curvature as backends

pytestmark = pytest.mark.filterwarnings("ignore")

BACKENDS = {
    "asdl": (backends.asdl.AsdlGGN, backends.asdl.AsdlEF),
    "backpack": (backends.backpack.BackPackGGN, backends.backpack.BackPackEF),
    "curvlinops": (backends.curvlinops.CurvlinopsGGN, backends.curvlinops.CurvlinopsEF),
}


def perceptron():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3))
    return model.double(), torch.randn(40, 5, dtype=D)


def convolutional():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 4), nn.Tanh(), nn.Linear(4, 3)
    )
    return model.double(), torch.randn(12, 1, 5, 5, dtype=D)


def theirs(model, x, y, structure, backend, kind):
    """Their Laplace approximation, in batches of 16."""
    made = peer.Laplace(
        model,
        "classification",
        subset_of_weights="all",
        hessian_structure="diag" if structure == "diag" else "kron",
        backend=BACKENDS[backend][kind == "ef"],
    )
    made.fit(DataLoader(TensorDataset(x, y), batch_size=16))
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["ggn", "ef"])
@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("net", [perceptron, convolutional])
def test_evidence_and_diagonal(net, structure, kind, backend):
    """At one precision for all and at one for each parameter tensor."""
    if (backend, structure) == ("backpack", "kfac"):
        if kind == "ef":
            pytest.skip("BackPACK has no Kronecker factors of the empirical Fisher")
        if net is convolutional:
            pytest.skip("BackPACK sums over positions where KFAC-expand takes the mean")
    model, x = net()
    y = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(0))
    found = laplace(
        model, "classification", [(x[:9], y[:9]), (x[9:], y[9:])], kind=kind, structure=structure
    )
    expected = theirs(model, x, y, structure, backend, kind)
    count = len(list(model.parameters()))
    for kind_of_prior, logs in [
        ("scalar", torch.tensor([0.7], dtype=D)),
        ("layer", torch.linspace(-2, 2, count, dtype=D)),
    ]:
        prior = Prior(dict(model.named_parameters()), kind_of_prior)
        with torch.no_grad():
            for log, value in zip(prior.logs, logs, strict=True):
                log.copy_(value)
        mine = float(found.log_evidence(prior).detach())
        given = float(expected.log_marginal_likelihood(logs.exp()).detach())
        assert mine == pytest.approx(given, rel=1e-8)
    if structure == "diag":
        ours = torch.cat([block.flatten() for block in found.curvatures().values()])
        assert torch.allclose(ours, expected.H, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("backend", ["asdl", "backpack", "curvlinops"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_regression_with_noise(backend, temperature):
    """Their evidence of a regression has the same noise, normaliser and temperature."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x, std = torch.randn(30, 4, dtype=D), 0.4
    y = x[:, :1] + std * torch.randn(30, 1, dtype=D)
    likelihood = Gaussian().double()
    with torch.no_grad():
        likelihood.log_noise.fill_(math.log(std))
    found = laplace(model, likelihood, [(x, y)], kind="ggn", temperature=temperature)
    made = peer.Laplace(
        model,
        "regression",
        subset_of_weights="all",
        hessian_structure="diag",
        backend=BACKENDS[backend][0],
        sigma_noise=std,
        temperature=temperature,
    )
    made.fit(DataLoader(TensorDataset(x, y), batch_size=16))
    prior = Prior(dict(model.named_parameters()), "scalar", start=2.0)
    given = made.log_marginal_likelihood(torch.tensor([2.0], dtype=D))
    assert float(found.log_evidence(prior).detach()) == pytest.approx(float(given), rel=1e-6)
