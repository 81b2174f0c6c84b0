"""The survivor update on whole networks: never worse, exact without removal, equal to lstsq."""

import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bayespare.bayes.curvature import Curvature, curvature
from bayespare.errors import BayespareError
from bayespare.structure import Verdict, compact, mask, trace
from bayespare.structure.costs import unit_costs, weight_costs
from bayespare.structure.moments import Moments
from bayespare.structure.survivors import expand, update_survivors


class Gpt2Linear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.up = Gpt2Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.up(self.layer(x)))).mean(1)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, groups=2, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
        nn.Flatten(),
        nn.Linear(72, 4),
    )


def perceptron():
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


NETWORKS = {
    "perceptron": (perceptron, (10,)),
    "convolutions": (convolutions, (2, 8, 8)),
    "attention": (Attention, (5, 8)),
}


def case(name):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model = build()
    if name == "convolutions":
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    return model, [torch.randn(50, *shape) for _ in range(4)]


def magnitude_masks(model, share):
    return {
        name: p.detach().abs() > p.detach().abs().flatten().quantile(share)
        for name, p in model.named_parameters()
        if p.ndim > 1
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_changes_where_nothing_is_removed(name):
    model, batches = case(name)
    refit = update_survivors(model, {}, batches)
    for key, tensor in model.state_dict().items():
        assert torch.equal(refit.model.state_dict()[key], tensor), key
    assert all(after == 0 for _, after in refit.errors.values())
    assert model.training


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_nearer_and_masks_hold(name):
    model, batches = case(name)
    masks = magnitude_masks(model, 0.6)
    bias = "head.bias" if name == "attention" else "0.bias"
    masks[bias] = torch.rand(model.get_parameter(bias).shape) > 0.5
    before = copy.deepcopy(model.state_dict())
    refit = update_survivors(model, masks, batches)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    weights = {n for n, p in model.named_parameters() if p.ndim > 1}
    assert {key.partition("@")[0] for key in refit.errors} == weights
    for key, (first, last) in refit.errors.items():
        assert last < first or first == 0, key
    parameters = dict(refit.model.named_parameters())
    for key, keep in masks.items():
        assert not parameters[key][~keep].any(), key
        assert parameters[key][keep].ne(before[key][keep]).any(), key
    x = torch.cat(batches)
    model.eval(), refit.model.eval()
    pruned = copy.deepcopy(model)
    for key, parameter in pruned.named_parameters():
        if key in masks:
            parameter.data.mul_(masks[key])
    with torch.no_grad():
        target = model(x)
        gaps = [float((net(x) - target).square().mean()) for net in (pruned, refit.model)]
    assert gaps[1] < 0.7 * gaps[0]


def test_layers_in_turn_equal_numpy(float64):
    """Without a ridge: plain least squares to the dense pre-activations, layer after layer."""
    model, _ = case("perceptron")
    model.double()
    x = torch.randn(200, 10)
    masks = magnitude_masks(model, 0.5)
    refit = update_survivors(model, masks, [(x[:90], None), (x[90:], None)], ridge=0)
    given, whole = x, x
    with torch.no_grad():
        for number in (0, 2, 4):
            target = model[number](whole)
            design = np.c_[given.numpy(), np.ones(200)]
            rows = []
            for row, keep in enumerate(masks[f"{number}.weight"]):
                kept = np.r_[keep.numpy(), True]
                solution, *_ = np.linalg.lstsq(design[:, kept], target[:, row].numpy())
                full = np.zeros(len(kept))
                full[kept] = solution
                rows.append(full)
            expected = torch.tensor(np.array(rows))
            torch.testing.assert_close(refit.model[number].weight.data, expected[:, :-1])
            torch.testing.assert_close(refit.model[number].bias.data, expected[:, -1])
            given = given @ expected[:, :-1].T + expected[:, -1]
            if number < 4:
                given, whole = model[number + 1](given), model[number + 1](target)


def test_a_convolution_equals_numpy_on_its_patches(float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2, stride=2, padding=1))
    x = torch.randn(30, 4, 9)
    keep = torch.rand(6, 2, 3) > 0.4
    refit = update_survivors(model, {"0.weight": keep}, [x], ridge=0)
    padded = nn.functional.pad(x, (1, 1)).unfold(2, 3, 2)
    target = model(x).detach()
    for out in range(6):
        group = out // 3
        patches = padded[:, 2 * group : 2 * group + 2].permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        kept = np.r_[keep[out].flatten().numpy(), True]
        design = np.c_[patches.numpy(), np.ones(len(patches))][:, kept]
        solution, *_ = np.linalg.lstsq(design, target[:, out].flatten().numpy())
        row = torch.cat([refit.model[0].weight[out].flatten(), refit.model[0].bias[out : out + 1]])
        np.testing.assert_allclose(row.detach()[kept], solution, atol=1e-9)


def test_sampled_positions_give_nearly_the_same(monkeypatch):
    model, batches = case("convolutions")
    masks = magnitude_masks(model, 0.5)
    whole = update_survivors(model, masks, batches)
    monkeypatch.setattr("bayespare.structure.moments._EFFORT", 18**2 * 1500)
    some = update_survivors(model, masks, batches)
    a, b = whole.model[0].weight.detach(), some.model[0].weight.detach()
    assert 0 < float((a - b).norm() / a.norm()) < 0.1


@pytest.mark.parametrize("name", ["perceptron", "convolutions"])
def test_units_of_a_plan(name):
    model, batches = case(name)
    if name == "convolutions":
        model = nn.Sequential(*model[:3], nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(180, 4))
    model.eval()
    plan = trace(model, batches[0][:2])
    torch.manual_seed(1)
    keep = {g.name: torch.rand(g.size) > 0.4 for g in plan.groups}
    verdict = Verdict(plan, keep)
    refit = update_survivors(model, verdict, batches)
    small = compact(refit.model, verdict, example=batches[0][:2])
    x = torch.cat(batches)
    with torch.no_grad():
        target = model(x)
        gaps = [float((net(x) - target).square().mean()) for net in (mask(model, verdict), small)]
    assert gaps[1] < 0.9 * gaps[0]
    again = expand(small, model, verdict)
    for key, tensor in refit.model.state_dict().items():
        if key.endswith(("weight", "bias")):
            torch.testing.assert_close(again.state_dict()[key], tensor, msg=key)
    assert torch.allclose(again(x), refit.model(x), atol=1e-5)
    with torch.no_grad():
        next(small.parameters()).mul_(2)
    started = update_survivors(model, verdict, batches, start=expand(small, model, verdict))
    assert max(after for _, after in started.errors.values()) < 1


def test_counts_of_batches_are_expanded_too():
    """A norm of cumulative averages that forgot its count would forget its averages next."""
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU(), nn.Conv2d(6, 3, 3)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 3)).eval()
    x = torch.randn(8, 2, 8, 8)
    plan = trace(model, x[:2])
    keep = {g.name: torch.arange(g.size) % 3 > 0 for g in plan.groups}
    verdict = Verdict(plan, keep)
    small = compact(model, verdict).train()
    for _ in range(5):
        small(x + 3)
    again = expand(small.eval(), model, verdict)
    assert int(again[1].num_batches_tracked) == 5
    assert int(model[1].num_batches_tracked) == 0
    torch.testing.assert_close(again(x), small(x))


def test_a_pruned_network_of_the_same_shape():
    model, batches = case("perceptron")
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for key, keep in magnitude_masks(model, 0.5).items():
            pruned.get_parameter(key).mul_(keep)
    by_model = update_survivors(model, pruned, batches).model
    by_masks = update_survivors(model, magnitude_masks(model, 0.5), batches).model
    for a, b in zip(by_model.parameters(), by_masks.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_left_alone_is_named():
    model, batches = case("perceptron")
    model[2].weight.requires_grad_(False)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(*model, shared, nn.ReLU(), shared)
    refit = update_survivors(model, {"0.weight": torch.rand(12, 10) > 0.5}, batches)
    assert refit.left_alone == {"2.weight": "frozen", "5.weight": "used in several places"}
    assert torch.equal(refit.model[2].weight, model[2].weight)


def test_bad_input():
    model, batches = case("perceptron")
    keep = torch.rand(12, 10) > 0.5
    for removal, given, message in [
        ({"0.wieght": keep}, batches, "did you mean '0.weight'"),
        ({"0.weight": keep.float()}, batches, "booleans of shape"),
        ({"0.weight": keep}, iter(batches), "only once"),
        ({"0.weight": keep}, [], "no batches"),
        (nn.Sequential(nn.Linear(3, 3)), batches, r"no '0\.weight' of shape \(12, 10\)"),
        ({"0.weight": keep}, [batches[0] * math.inf], "not finite"),
    ]:
        with pytest.raises(BayespareError, match=message):
            update_survivors(model, removal, given)


def test_costs_of_a_network_are_those_of_removing_and_refitting():
    """In nats of the Kronecker curvature; by hand for one weight and for one unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(60, 3, dtype=torch.float64)
    y = torch.randint(0, 2, (60,))
    blocks = curvature(model, "classification", [(x, y)], kind="ggn", structure="kfac")
    plan = trace(model, x[:2])
    hidden = torch.relu(model[0](x)).detach()
    design = torch.cat([hidden, torch.ones(60, 1, dtype=torch.float64)], 1)
    gram = design.T @ design / 60
    inverse = (gram + 1e-3 * gram.diagonal().mean() * torch.eye(5)).inverse()
    output, weight = blocks.factors["2.weight"].output, model[2].weight.detach()
    costs = weight_costs(model, [x], curvature=blocks)
    expected = 0.5 * weight.square() * output.diagonal()[:, None] / inverse.diagonal()[:4]
    torch.testing.assert_close(costs["2.weight"], expected)
    units = unit_costs(model, plan, [x], curvature=blocks, refit=True)
    wanted = 0.5 * ((weight.T @ output) * weight.T).sum(1)
    torch.testing.assert_close(units["0"], wanted / inverse.diagonal()[:4])
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(0))
    fixed = unit_costs(model, plan, [x, x, x], curvature=blocks)
    handle.remove()
    assert len(calls) == 1  # the curvature has seen the inputs: only the wiring is looked up
    torch.testing.assert_close(fixed["0"], wanted * gram.diagonal()[:4])
    layers = {"2.weight": torch.arange(8.0, dtype=torch.float64).view(2, 4)}
    measured = unit_costs(model, plan, [x], curvature=Curvature(layers, {}, 60), ridge=0)
    ratio = layers["2.weight"].sum(1) / gram.diagonal()[:4].sum()
    by_hand = 0.5 * (ratio[:, None] * weight.square()).sum(0) * gram.diagonal()[:4]
    torch.testing.assert_close(measured["0"], by_hand)
    diagonal = curvature(model, "classification", [(x, y)], kind="ggn")
    near = weight_costs(model, [x], curvature=diagonal)["2.weight"]
    assert bool(((near / expected).log().abs() < 1).all())
    masks = {"2.weight": torch.tensor([[True, False, True, True]]).expand(2, 4)}
    assert not weight_costs(model, [x], masks=masks)["2.weight"][:, 1].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_costs(name):
    model, batches = case(name)
    costs = weight_costs(model, batches)
    assert costs.keys() == {n for n, p in model.named_parameters() if p.ndim > 1}
    for key, cost in costs.items():
        assert cost.shape == model.get_parameter(key).shape
        assert bool((cost > 0).all()), key


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_take_inputs_alone(name, monkeypatch):
    """Outputs were compared with themselves once: it changed nothing."""
    model, batches = case(name)
    found = weight_costs(model, batches)
    monkeypatch.setattr(Moments, "add_inputs", lambda self, reached: self.add(reached, reached))
    for key, cost in weight_costs(model, batches).items():
        assert torch.equal(found[key], cost), key


def test_digits_at_nine_tenths():
    """A magnitude mask of 90 %: the update gives most of the lost accuracy back."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = (torch.from_numpy(part) for part in datasets.load_digits(return_X_y=True))
    x = x.float() / 16
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU())
    model.append(nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(300):
        rows = torch.randint(0, 1300, (128,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    masks = magnitude_masks(model, 0.9)
    refit = update_survivors(model, masks, [x[:1300]])
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for key, keep in masks.items():
            pruned.get_parameter(key).mul_(keep)

    def accuracy(net):
        return float((net(x[1300:]).argmax(1) == y[1300:]).float().mean())

    dense, before, after = accuracy(model), accuracy(pruned), accuracy(refit.model)
    assert dense > 0.88
    assert after - before > 0.5 * (dense - before) > 0.05


def test_fashion_mnist_at_nine_tenths():
    """784-400-400-10, four epochs: a third of the accuracy lost and most of it found again."""
    folder = os.environ.get("BAYESPARE_DATA")
    if not folder or not Path(folder, "fashion-mnist").exists():
        pytest.skip("BAYESPARE_DATA is not set: no fashion-mnist")
    from bayespare.data import load

    splits = load(str(Path(folder, "fashion-mnist")))
    x, y = splits.train.x[:12000].flatten(1), splits.train.y[:12000]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU())
    model.append(nn.Linear(400, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(4):
        for rows in torch.randperm(12000).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    every = torch.cat([p.detach().abs().flatten() for p in model.parameters() if p.ndim > 1])
    limit = every.kthvalue(int(0.9 * len(every))).values
    masks = {n: p.detach().abs() > limit for n, p in model.named_parameters() if p.ndim > 1}
    refit = update_survivors(model, masks, list(x[:6000].split(1000))).model
    valid, labels = splits.valid.x.flatten(1), splits.valid.y
    for key, keep in masks.items():
        model.get_parameter(key).data.mul_(keep)
    right = [(net(valid).argmax(1) == labels).float() for net in (model, refit)]
    before, after = (float(each.mean()) for each in right)
    assert after > before + 0.05
    assert after > 0.8
