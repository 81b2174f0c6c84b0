"""Biases that closing dead paths adds: named, and made again from a file that names them."""

import pytest
import torch
from torch import nn

from bayespare.errors import BayespareError
from bayespare.structure import Verdict, close, compact, trace
from bayespare.structure.closure import added_biases, with_biases

VECTORS, IMAGES = torch.randn(3, 4), torch.randn(3, 1, 6, 6)


def constants(model: nn.Sequential) -> nn.Sequential:
    """Two units of each hidden layer but the last read nothing, and say something."""
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 1
    return model


def linear() -> nn.Sequential:
    inner = nn.Linear(5, 6, bias=False)
    return constants(
        nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), inner, nn.ReLU(), nn.Linear(6, 2))
    )


def last() -> nn.Sequential:
    return constants(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2, bias=False)))


def convolutions() -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    inner = nn.Conv2d(3, 4, 3, bias=False)
    return constants(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), inner, nn.ReLU(), *head))


@pytest.mark.parametrize(
    ("make", "x", "names"),
    [
        (linear, VECTORS, ["2.bias"]),
        (last, VECTORS, ["2.bias"]),
        (convolutions, IMAGES, ["2.bias"]),
    ],
)
@pytest.mark.parametrize("virtual", [False, True])
def test_a_network_with_an_added_bias_is_cut_out_of_the_original_again(make, x, names, virtual):
    model = make()
    plan = trace(model, x)
    closed, after = close(model, Verdict(plan, {}), x)
    small = compact(closed, after, example=x)
    assert added_biases(plan, after.plan) == names
    with torch.device("meta" if virtual else "cpu"):
        fresh = make()
    before = list(fresh.state_dict())
    whole, again = with_biases(fresh, plan, names)
    assert list(fresh.state_dict()) == before
    assert again.to_json() == after.plan.to_json()
    made = compact(whole, Verdict(again, after.keep))
    made.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(made(x), small(x))


def test_a_bias_that_was_there_is_not_added():
    model = constants(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)))
    plan = trace(model, VECTORS)
    _, after = close(model, Verdict(plan, {}), VECTORS)
    assert after.kept["0"] == (3, 5)
    assert added_biases(plan, after.plan) == []


@pytest.mark.parametrize("name", ["0.bias", "1.bias", "2.weight", "7.bias", "bias", ""])
def test_a_name_that_is_no_missing_bias_is_refused(name):
    model = last()
    with pytest.raises(BayespareError, match="lacks a bias"):
        with_biases(model, trace(model, VECTORS), [name])
