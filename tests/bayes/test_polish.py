"""The polish of gates: costs that depend on the other gates, and no likelihood computed twice."""

import copy

import pytest
import torch
from torch import Tensor, nn

import bayespare.methods.node_pip as module
from bayespare.bayes.inclusion import gain_log_odds, polish
from bayespare.methods import build
from bayespare.structure import trace

PAIRS = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))


def log_likelihood(gates: Tensor) -> Tensor:
    """Gates that depend on each other."""
    return 3 * gates.sum(1) + ((gates @ PAIRS) * gates).sum(1)


def costs(odds: Tensor) -> Tensor:
    """Of each node: its share of what it has in common with the others that are there."""
    return 2 + odds.sigmoid().sum() - odds.sigmoid()


def in_turn(start: Tensor, sweeps: int, draws: int) -> Tensor:
    """With and without each node, both computed, and its cost as the others are then."""
    generator = torch.Generator().manual_seed(0)
    odds = start.clone()
    for _ in range(sweeps):
        uniform = torch.rand(draws, len(odds), generator=generator)
        for node in range(len(odds)):
            gates = (uniform < odds.sigmoid()).float()
            gates[:, node] = 1.0
            included = log_likelihood(gates)
            gates[:, node] = 0.0
            gain = (included - log_likelihood(gates)).mean()
            odds[node] = gain_log_odds(gain, costs(odds)[node], torch.tensor(-1.0))
    return odds


def test_costs_are_those_at_the_gates_of_the_others_so_far():
    calls = []

    def counted(gates: Tensor) -> Tensor:
        calls.append(gates)
        return log_likelihood(gates)

    start = torch.linspace(-1, 1, 5)
    found = polish(
        counted,
        start,
        costs,
        torch.tensor(-1.0),
        draws=6,
        sweeps=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(found, in_turn(start, 3, 6))
    assert not torch.equal(found, in_turn(start, 1, 6))
    # One at the start of a sweep, then one for each node.
    assert len(calls) == 3 * (1 + 5)


def test_node_pip_gives_costs_at_the_gates_that_are_asked_for(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    plan = trace(network, torch.randn(3, 4))
    method = build("node-pip", judged=5)
    method.attach(copy.deepcopy(network), plan, examples=50, generator=torch.Generator())
    asked = {}

    def noted(likelihoods: object, odds: Tensor, slab_kl: object, prior: Tensor, **_: object):
        asked["costs"] = slab_kl
        return odds

    monkeypatch.setattr(module, "polish", noted)
    judged = method.gates.detach().abs().argsort()[:5].sort().values
    before = method.gates.detach().clone()
    method.polish(lambda: torch.zeros(()))
    odds = torch.linspace(-3, 3, 5)
    costs = asked["costs"](odds)
    assert torch.equal(method.gates, before)
    with torch.no_grad():
        method.gates[judged] = odds
    torch.testing.assert_close(costs, method._node_costs()[judged])


@pytest.mark.parametrize("algorithm", ["dense", "spike"])
def test_gates_that_are_not_trained_stay_open_however_long_a_budget_takes(algorithm):
    schedule = build("node-pip", algorithm=algorithm).schedule(60, 40, 5000, "auto")
    assert schedule.progress(3 * schedule.explore, 1.0) < schedule.hold
