"""Node inclusion probabilities: the polish against slow twins, and decisions on known data."""

import itertools

import pytest
import torch
from cases import NETS, MethodCase, planned, started, train

from bayespare import nets, sparsify
from bayespare.bayes.inclusion import (
    gaussian_kl,
    prior_log_odds,
    profiled_penalty,
    rate_posterior,
    reduced_log_odds,
    spike_log_odds,
)
from bayespare.data.batches import from_tensors
from bayespare.errors import BayespareError
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


# ------------------------------------------------------------------ recovered afterwards


def outgoing(method):
    """Layer by layer: means and standard deviations of each node's outgoing weights, the slab."""
    std, means = method.standard_deviations(), method.means()
    for layer, slab in zip(method.layers, method.slab_std, strict=True):
        name = f"{layer.name}.weight"
        yield means[name].T, std[name].T, slab


def test_the_gaussian_spike_is_the_profiled_penalty_of_the_outgoing_weights():
    fit = fitted(algorithm="spike", spike=0.2)
    method = fit.method
    prior = torch.tensor(0.2).logit()
    parts = [(m, s, prior, slab, 0.2 * slab) for m, s, slab in outgoing(method)]
    expected = sum(profiled_penalty(*part).sum() for part in parts)
    assert method.kl().item() == pytest.approx(expected.item(), rel=1e-5)
    fit.polish(planned(MLP)[2])
    odds = torch.cat([spike_log_odds(*part) for part in parts])
    assert torch.allclose(method.gates.detach(), odds, rtol=1e-4, atol=1e-4)


def test_the_spike_starts_as_wide_as_the_slab_and_narrows():
    method = fitted(algorithm="spike").method
    apart = []
    for method.progress in (0.0, 0.35, 0.7, 1.0):
        slab, spike, rest = method._mixture()
        apart.append((spike - slab).detach().abs().max().item())
        assert rest.item() == 0
    assert apart[0] < 0.2 * apart[1] < apart[1] < apart[2] == apart[3]


def test_annealing_keeps_a_node_from_being_sure_too_early():
    """What a weight feels is ``sigmoid(power * log-odds)`` parts slab, the rest spike."""
    method = started(CASE, MLP, algorithm="spike", annealing=1e-4).method
    with torch.no_grad():
        method.layers[0].module.weight[:, :5] *= 3
    method.progress = 0.35
    weight, slab = method.layers[0].module.weight, method.slab_std[0]
    spike = slab * (0.95 * 0.14) ** 0.5
    (found,) = torch.autograd.grad(method.kl(), weight)
    means, std, _ = next(outgoing(method))
    odds = spike_log_odds(means, std, torch.tensor(0.2).logit(), slab, spike)
    included = (0.01 * odds).sigmoid()
    ridge = included / slab**2 + (1 - included) / spike**2
    assert 0.05 < included.min() < 0.9
    assert torch.allclose(found / weight.detach(), ridge.expand_as(found), rtol=1e-3)


def test_dense_odds_are_those_of_taking_the_slab_away():
    fit = fitted(algorithm="dense", draws=0)
    prior = torch.tensor(0.2).logit()
    odds = torch.cat([reduced_log_odds(m, s, prior, slab) for m, s, slab in outgoing(fit.method)])
    fit.polish(planned(MLP)[2])
    assert torch.allclose(fit.method.gates.detach(), odds, rtol=1e-4, atol=1e-4)


def test_recovery_needs_a_slab_of_known_width():
    with pytest.raises(BayespareError, match="algorithm=dense needs the slab's width"):
        build("node-pip", algorithm="dense", prior_std="empirical")


def test_the_inclusion_rate_is_learnt_for_each_group():
    fit = started(CASE, MLP, prior="beta")
    method = fit.method
    with torch.no_grad():
        method.gates[:10] = 6.0
        method.gates[10:] = -6.0
    method.held = True
    method.observe(fit.likelihood, planned(MLP)[2])
    assert torch.allclose(method.prior_inclusion, torch.tensor(0.2))
    method.held = False
    method.observe(fit.likelihood, planned(MLP)[2])
    inputs, *hidden = method.prior_inclusion.split([10, 12, 8])
    expected = rate_posterior(torch.full((10,), 6.0).sigmoid()).log_odds.sigmoid()
    assert torch.allclose(inputs, expected)
    assert expected > 0.4
    assert all((line < 0.1).all() for line in hidden)


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


def test_a_group_that_the_data_ask_nothing_of_is_named():
    method = started(CASE, MLP).method
    first, *others = method.log_odds()
    with torch.no_grad():
        method.gates.fill_(1.0)
        assert not method.warnings()
        method.gates[: len(method.log_odds()[first])] = -1.0
    (said,) = method.warnings()
    assert said.startswith(f"{first}: no unit is more probable than not")
    assert not any(name in said for name in others)


def test_a_price_is_part_of_what_a_node_costs():
    """The price of the weights at it, and of the biases of a unit, others weighted by presence."""
    method = fitted().method
    free = method._node_costs()
    method.price = 0.25
    paid = (method._node_costs() - free) / method.price
    odds = method.log_odds()
    present = {name: line.sigmoid() for name, line in odds.items()}
    fc1 = float(present["fc1"].sum())
    assert paid[: len(odds["input"])].tolist() == pytest.approx([fc1] * len(odds["input"]))
    behind = float(present["fc2"].sum())
    unit = float(paid[len(odds["input"])])
    assert unit == pytest.approx(float(present["input"].sum()) + 1 + behind, rel=1e-5)


@pytest.mark.parametrize("algorithm", ["gates", "dense", "spike"])
def test_a_budget_is_met(algorithm):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=draw)
    noise = 0.5 * torch.randn(200, generator=draw)
    data = from_tensors(x, x[:, 0] * x[:, 1] + x[:, 2] + noise)
    network = nets.build("mlp:8", inputs=data.inputs, outputs=data.outputs, seed=0)
    result = sparsify(
        network,
        data,
        valid=data,
        method="node-pip",
        settings={"algorithm": algorithm, "draws": 2},
        epochs=400,
        max_params=12,
        baseline=False,
        samples=2,
    )
    assert result.metrics["compact"]["parameters"] <= 12
