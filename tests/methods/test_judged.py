"""Which units can be judged, and that every method takes the others as they are."""

import copy

import pytest
import torch
from cases import DEFAULTS, EXAMPLES, MethodCase, planned, started, thinned, train
from more_nets import MORE_NETS, OneHead, Tied, TiedDecoder, TwoNames
from torch import nn

from bayespare.errors import UnsupportedStructureError
from bayespare.methods.wiring import judged, left_whole
from bayespare.structure import count, trace
from bayespare.structure.compare import difference
from bayespare.training.finish import finish

pytestmark = pytest.mark.filterwarnings("ignore")
NETS = {net.name: net for net, _ in MORE_NETS}


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
@pytest.mark.parametrize(("net", "units"), MORE_NETS, ids=[net.name for net, _ in MORE_NETS])
def test_live_masked_and_compact_network_are_one(case, net, units):
    """After a live removal and the decision, the network in training is the one that is saved."""
    template, _, data = planned(net)
    fit = started(case, net)
    train(fit, net)
    assert {group.name for group in fit.method.whole.groups} == units
    fit.remove(thinned(fit, 0.6, seed=0))
    train(fit, net)
    fit.update()
    before, size = copy.deepcopy(fit.network).eval(), fit.parameters()
    fit.decide()
    assert difference(before, fit.network.eval(), data.x[:8]) < 1e-5
    done = finish(template, fit.method, data.x[:4])
    assert done.masked_difference <= 1e-5
    assert difference(fit.network.eval(), done.model.eval(), data.x[:8]) < 1e-5
    assert count(done.model, data.x[:1]).parameters == size == fit.parameters()
    assert set(done.posterior.std) <= {name for name, _ in done.model.named_parameters()}


@pytest.mark.parametrize(
    "case",
    [
        MethodCase("spam", {"unit": "weight"}),
        MethodCase("bmr", {"unit": "weight"}),
        MethodCase("bmr", {"settings": "faithful"}),
        MethodCase("flat-map", {"settings": "faithful"}),
    ],
    ids=str,
)
def test_what_a_layer_holds_besides_weight_and_bias_stays_plain(case):
    net = NETS["third-parameters"]
    template, _, data = planned(net)
    fit = started(case, net)
    assert torch.equal(fit.network.first.gain, template.first.gain)
    train(fit, net)
    fit.remove(thinned(fit, 0.6, seed=0))
    fit.decide()
    assert not any(name.endswith(("gain", "scale")) for name in fit.method.standard_deviations())
    done = finish(template, fit.method, data.x[:4])
    assert difference(fit.network.eval(), done.model.eval(), data.x[:8]) < 1e-5


@pytest.mark.parametrize("name", ["attention", "attention-kdim", "grouped-up", "tied"])
def test_a_shut_gate_silences_its_unit_exactly(name):
    """Heads included: what a removed unit computes does not matter."""
    _, _, data = planned(NETS[name])
    fit = started(MethodCase("ss-ghs"), NETS[name])
    train(fit, NETS[name])
    method, network = fit.method, fit.network.eval()
    group = method.plan.groups[-1]
    odds = {name: torch.full_like(value, 5.0) for name, value in method.log_odds().items()}
    odds[group.name][0] = -5.0
    with torch.no_grad():
        method.gates.copy_(torch.cat([odds[g.name] for g in method.plan.groups]))
        expected = network(data.x[:8])
        for slot in group.writes():
            entries = slot.owner == 0
            network.get_parameter(slot.tensor).movedim(slot.dim, 0)[entries] += 3.0
        torch.testing.assert_close(network(data.x[:8]), expected, rtol=1e-5, atol=1e-6)
        method.gates.fill_(5.0)
        assert (network(data.x[:8]) - expected).abs().max() > 1e-2


def test_what_cannot_be_judged_is_said_by_name():
    for model, said in (
        (OneHead(), {"query": "they meet in a product, and no weight reads them"}),
        (
            Tied(),
            {
                "enter": "first.weight is shared by several layers",
                "first": "first.weight is shared by several layers",
                "second": "first.weight is shared by several layers",
            },
        ),
        (
            TwoNames(),
            {
                "enter": "first is one layer under several names (first, second)",
                "first": "first is one layer under several names (first, second)",
                "steps.0": "steps.2 is one layer under several names (steps.2, steps.4)",
                "steps.2": "steps.2 is one layer under several names (steps.2, steps.4)",
            },
        ),
        (
            TiedDecoder(),
            {
                "enter": "code.weight is multiplied with in both directions",
                "code": "code.weight is multiplied with in both directions",
            },
        ),
    ):
        example = torch.randn(4, 4, 5) if isinstance(model, OneHead) else torch.randn(4, 5)
        plan = trace(model, example)
        reasons = left_whole(model, plan)
        assert reasons == {n: why for n, why in said.items() if n in {g.name for g in plan.groups}}
        assert reasons
        narrow = judged(model, plan)
        assert {g.name for g in narrow.groups} == {g.name for g in plan.groups} - set(reasons)
        for name, why in reasons.items():
            for slot in plan[name].writes():
                assert narrow.left_alone[slot.tensor] == why
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = trace(plain, torch.randn(2, 3))
    assert judged(plain, plan) is plan


def test_a_network_of_which_nothing_can_be_judged_is_refused():
    model = OneHead()
    plan = trace(model, torch.randn(4, 4, 5)).only("query")
    with pytest.raises(UnsupportedStructureError, match=r"query: they meet in a product"):
        judged(model, plan)
    with pytest.raises(UnsupportedStructureError, match="query"):
        MethodCase("ss-ig").build().attach(model, plan, examples=EXAMPLES)
