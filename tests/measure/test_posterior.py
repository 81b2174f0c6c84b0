"""The Gaussian posterior: what it refuses, and what a draw is."""

import pytest
import torch
from torch import nn

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.errors import BayespareError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_unknown_name_is_refused_with_a_hint(model: nn.Module) -> None:
    with pytest.raises(BayespareError, match=r"'0\.wieght' \(did you mean '0\.weight'"):
        GaussianPosterior({"0.wieght": torch.ones(4, 3)}).checked(model)


def test_wrong_shape_is_refused(model: nn.Module) -> None:
    with pytest.raises(BayespareError, match=r"'0\.weight'.*\(3, 4\).*\(4, 3\)"):
        GaussianPosterior({"0.weight": torch.ones(3, 4)}).checked(model)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_impossible_std_is_refused(model: nn.Module, bad: float) -> None:
    std = torch.ones(4, 3)
    std[1, 2] = bad
    with pytest.raises(BayespareError, match="negative or not finite"):
        GaussianPosterior({"0.weight": std}).checked(model)


def test_a_fitting_posterior_is_returned_itself(model: nn.Module) -> None:
    posterior = GaussianPosterior({"0.weight": torch.ones(4, 3), "2.bias": torch.zeros(2)})
    assert posterior.checked(model) is posterior


def test_draws_have_the_mean_and_std_of_the_posterior(model: nn.Module) -> None:
    std = torch.linspace(0, 1, 12).reshape(4, 3)
    posterior = GaussianPosterior({"0.weight": std})
    generator = seeded(1)
    draws = torch.stack([posterior.draw(model, generator)["0.weight"] for _ in range(4000)])
    mean = dict(model.named_parameters())["0.weight"].detach()
    torch.testing.assert_close(draws.mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(draws.std(0), std, atol=0.04, rtol=0)


def test_point_mass_parameters_are_not_drawn_and_zero_std_gives_the_mean(model: nn.Module) -> None:
    draw = GaussianPosterior({"2.bias": torch.zeros(2)}).draw(model, seeded(0))
    assert draw.keys() == {"2.bias"}
    torch.testing.assert_close(draw["2.bias"], dict(model.named_parameters())["2.bias"].detach())
    assert not draw["2.bias"].requires_grad


def test_a_draw_does_not_depend_on_the_order_of_the_names(model: nn.Module) -> None:
    std = {name: torch.rand(p.shape) for name, p in model.named_parameters()}
    shuffled = dict(reversed(list(std.items())))
    one = GaussianPosterior(std).draw(model, seeded(7))
    two = GaussianPosterior(shuffled).draw(model, seeded(7))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
