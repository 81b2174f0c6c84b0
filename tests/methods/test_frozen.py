"""What the user has frozen has no posterior, and comes back as it was."""

import pytest
import torch
from cases import MethodCase
from torch import nn

from bayespare import methods, sparsify, trace
from bayespare.data import from_tensors

FROZEN = {
    "a layer": ("2.weight", "2.bias"),
    "a bias": ("2.bias",),
    "the output's bias": ("4.bias",),
    "the first weight": ("0.weight",),
}
RUNS = [
    MethodCase("bmr"),
    MethodCase("bmr", {"unit": "weight"}),
    MethodCase("spam"),
    MethodCase("spam", {"unit": "weight"}),
    MethodCase("spam", {"curvature": "kfac"}),
    MethodCase("ss-gl"),
    MethodCase("ss-ghs", {"centred": False}),
    MethodCase("node-pip"),
]
FAITHFUL = ["ss-ig", "ss-gl", "ss-ghs", "tiered-ff", "flat-ff", "flat-map", "bmr-rhs", "bmr"]


def network(names: tuple[str, ...]) -> nn.Sequential:
    """Two hidden layers, some parameters frozen at values of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    for name in names:
        model.get_parameter(name).requires_grad_(False).normal_(0.0, 0.5)
    return model


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(80, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


@pytest.mark.parametrize("case", RUNS, ids=str)
@pytest.mark.parametrize("names", FROZEN.values(), ids=FROZEN)
def test_a_run_gives_it_back_unchanged(case, names):
    model = network(names)
    result = sparsify(
        model,
        from_tensors(*rows(0)),
        valid=from_tensors(*rows(1)),
        method=case.name,
        settings=case.settings,
        epochs=3,
        baseline=False,
    )
    for name in names:
        assert torch.equal(result.model.get_parameter(name), model.get_parameter(name))
    assert not torch.equal(result.model(rows(2)[0]), model(rows(2)[0]))


@pytest.mark.parametrize("name", FAITHFUL)
def test_the_authors_start_leaves_it_and_it_is_added_as_it_is(name):
    model = network(("2.bias",))
    before = model[2].bias.clone()
    x, _ = rows(2)
    method = methods.build(name, settings="faithful")
    method.attach(model, trace(model, x[:4]), examples=80, generator=torch.Generator())
    model.train()(x)
    assert torch.equal(model.get_parameter("2.bias"), before)
    # Twice as far from zero it moves what the network says: nobody leaves it out.
    first = model.eval()(x)
    model.get_parameter("2.bias").mul_(2)
    assert not torch.equal(model(x), first)
    assert torch.isfinite(method.penalty())
    assert "2.bias" not in method.standard_deviations()
