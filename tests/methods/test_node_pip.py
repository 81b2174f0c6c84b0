"""Node inclusion probabilities: the polish against slow twins, and decisions on known data."""

import itertools

import pytest
import torch
from cases import NETS, MethodCase, planned, started, train

from bayespare.bayes.inclusion import gaussian_kl, prior_log_odds
from bayespare.methods import build
from bayespare.sklearn import FeatureSelector

MLP = NETS[0]
CASE = MethodCase("node-pip")


def fitted(**changes):
    fit = started(CASE, MLP, **changes)
    train(fit, MLP, epochs=3)
    return fit


def test_the_cost_of_a_node_is_the_kl_of_the_weights_at_it():
    """Those it sends and those it gets, weighted by the presence of the other end."""
    fit = fitted()
    method = fit.method
    with torch.no_grad():
        method.gates.normal_(0.0, 2.0)
    std, means = method.standard_deviations(), method.means()
    costs = method._node_costs()
    sizes = [group.size for group in method.plan.groups]
    parts = dict(zip([g.name for g in method.plan.groups], costs.split(sizes), strict=True))
    present = {n: odds.sigmoid() for n, odds in method.log_odds().items()}
    ends = {"fc1": ("input", "fc1"), "fc2": ("fc1", "fc2"), "fc3": ("fc2", None)}
    expected = {group: [0.0] * len(line) for group, line in parts.items()}
    for layer, prior in zip(method.layers, method.slab_std, strict=True):
        source, target = ends[layer.name]
        weight, spread = means[f"{layer.name}.weight"], std[f"{layer.name}.weight"]
        for o, i in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
            kl = float(gaussian_kl(weight[o, i].view(1), spread[o, i].view(1), prior))
            expected[source][i] += kl * (1.0 if target is None else float(present[target][o]))
            if target is not None:
                expected[target][o] += kl * float(present[source][i])
    for group, line in parts.items():
        assert line.tolist() == pytest.approx(expected[group], rel=1e-4)


def test_the_slab_of_a_layer_has_the_scale_of_its_inputs():
    method = fitted().method
    wide = {layer.name: layer for layer in method.layers}
    assert method.slab_std == [wide[n].columns ** -0.5 for n in wide]
    one = started(MethodCase("node-pip", {"prior_std": 0.3}), MLP).method
    assert one.slab_std == 0.3


def test_the_polish_is_the_optimum_of_each_gate_in_turn():
    """With weights that do not vary the gain is a mean over patterns of gates: here over all."""
    fit = fitted(draws=400, sweeps=1, judged=1)
    method = fit.method
    _, _, data = planned(MLP)
    with torch.no_grad():
        method.weights.log_in.fill_(-20.0)
        method.gates.fill_(30.0)
        # Three nodes in question, the first of them the least certain.
        method.gates[:3] = torch.tensor([0.1, 0.5, -0.7])
    costs = method._node_costs()
    probability = method.gates.detach().sigmoid()

    def likelihood(gates):
        method.given = gates
        with torch.no_grad():
            value = -fit.likelihood.nll(fit.network(data.x), data.y).sum()
        method.given = None
        return value

    fit.network.eval()
    gain = 0.0
    for pattern in itertools.product((0.0, 1.0), repeat=2):
        weight = 1.0
        for node, value in zip((1, 2), pattern, strict=True):
            weight *= float(probability[node] if value else 1 - probability[node])
        gates = torch.ones_like(probability)
        gates[1], gates[2] = pattern
        with_it = likelihood(gates)
        gates[0] = 0.0
        gain += weight * float(with_it - likelihood(gates))
    prior = float(prior_log_odds(method.prior_inclusion[0]))
    expected = prior + gain - float(costs[0])
    fit.polish(data)
    assert method.gates[0].item() == pytest.approx(expected, abs=0.15 * abs(gain) + 0.05)
    assert method.gates[1].item() == 0.5


def test_the_polish_leaves_the_run_where_it_was():
    fit = fitted()
    _, _, data = planned(MLP)
    own = fit.method.generator
    fit.network.train()
    fit.polish(data)
    assert fit.method.generator is own
    assert fit.method.given is None
    assert fit.network.training
    assert not torch.equal(fit.method.gates, started(CASE, MLP).method.gates)


def test_without_draws_nothing_is_polished():
    fit = fitted(draws=0)
    before = fit.method.gates.detach().clone()
    fit.polish(planned(MLP)[2])
    assert torch.equal(fit.method.gates, before)


def test_the_gates_are_open_first_and_the_kl_rises_while_they_are():
    schedule = build("node-pip").schedule(8000, 1, 500, "auto")
    assert schedule.passes == 40
    assert schedule.explore * schedule.passes == 6000
    assert [schedule.rising(p) for p in (0.0, schedule.hold, 1.0)] == [0.0, 1.0, 1.0]
    assert build("node-pip", algorithm="dense").schedule(60, 40, 5000, "auto").hold > 1


def test_held_gates_do_not_move():
    fit = started(CASE, MLP)
    fit.method.held = True
    before = fit.method.gates.detach().clone()
    train(fit, MLP)
    assert torch.equal(fit.method.gates, before)


@pytest.mark.parametrize("algorithm", ["gates", "dense"])
def test_it_finds_an_exclusive_or_among_noise(algorithm):
    """Neither input says anything by itself."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=random)
    y = (x[:, 2] * x[:, 5] > 0).long()
    selector = FeatureSelector(
        method="node-pip", random_state=0, settings={"algorithm": algorithm}
    ).fit(x.numpy(), y.numpy())
    assert selector.get_support().nonzero()[0].tolist() == [2, 5]
