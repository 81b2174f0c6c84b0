"""Single weights change places while what is left is trained."""

import pytest
import torch
from torch import nn

from bayespare.bayes.likelihood import likelihood_for
from bayespare.data import Dataset
from bayespare.posthoc import ReduceOptions, tune
from bayespare.posthoc.settings import PruneOptions
from bayespare.posthoc.swap import LAST, swap
from bayespare.training.loop import cosine


def stepped(seed=0):
    """A small network after some steps of Adam, half of its weights gone."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    masks = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in weights(model).items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        x, y = torch.randn(32, 6), torch.randint(3, (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
    return model, masks, optimizer


def weights(model):
    return {n: p for n, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("done", [0.1, 0.5])
def test_the_cheapest_make_room_for_the_most_promising(done):
    model, masks, optimizer = stepped()
    before = {n: p.detach().clone() for n, p in weights(model).items()}
    found = swap(model, masks, optimizer, 0.3, done)
    # The same, weight by weight.
    costs, gains = [], []
    for name, mask in masks.items():
        state = optimizer.state[model.get_parameter(name)]
        for place in [tuple(i) for i in torch.ones_like(mask).nonzero().tolist()]:
            g, h = float(state["exp_avg"][place]), float(state["exp_avg_sq"][place])
            w = float(before[name][place])
            if mask[place]:
                costs.append((h * w**2, name, place))
            else:
                gains.append((g**2 / h, name, place))
    count = int(0.3 * cosine(done) * len(costs))
    assert count > 0
    wanted = {n: m.clone() for n, m in masks.items()}
    for _, name, place in sorted(costs)[:count]:
        wanted[name][place] = False
    for _, name, place in sorted(gains)[-count:]:
        wanted[name][place] = True
    for name, mask in found.items():
        assert torch.equal(mask, wanted[name])
        assert torch.equal(weights(model)[name], before[name] * mask)
    assert sum(int(m.sum()) for m in found.values()) == sum(int(m.sum()) for m in masks.values())


def test_masks_rest_towards_the_end():
    model, masks, optimizer = stepped()
    found = swap(model, masks, optimizer, 0.3, LAST + 0.01)
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_a_whole_network_has_nothing_to_swap():
    model, masks, optimizer = stepped()
    whole = {name: torch.ones_like(mask) for name, mask in masks.items()}
    found = swap(model, whole, optimizer, 0.3, 0.1)
    assert all(bool(mask.all()) for mask in found.values())
    assert swap(model, {}, optimizer, 0.3, 0.1) == {}


def test_training_finds_the_weights_that_matter():
    """Of 20 inputs 4 count; a mask that has none of them gets all of them, and no more weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 20, generator=generator)
    y = (x[:, :4] @ torch.tensor([1.0, -1.0, 2.0, 1.5]))[:, None]
    data = Dataset(x, y[:, 0], "regression")

    def error(swapped):
        torch.manual_seed(0)
        model = nn.Linear(20, 1)
        masks = {"weight": torch.zeros(1, 20, dtype=torch.bool)}
        masks["weight"][0, 10:16] = True
        options = ReduceOptions(unit="weight", lr=2e-2)
        likelihood = likelihood_for("regression")
        own = torch.Generator().manual_seed(0)
        tune(model, masks, likelihood, data, 12, options, own, swapped=swapped)
        assert int(model.weight.count_nonzero()) <= 6
        return (model(x) - y).square().mean().item()

    assert error(0.5) < 0.05 < 5 < error(0.0)


def test_a_ranking_that_was_asked_for_is_left_as_it_is():
    assert ReduceOptions(unit="weight").swapped > 0
    assert ReduceOptions(unit="unit").swapped == 0
    assert PruneOptions(unit="weight", sparsity=0.5).swapped == 0
