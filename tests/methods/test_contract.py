"""What every method promises, for every row of the table of cases."""

import math

import pytest
import torch
from cases import (
    ARCHITECTURES,
    GATED,
    METHODS,
    NETS,
    PAIRS,
    MethodCase,
    planned,
    started,
    thinned,
    train,
)
from cases import trained as trained_fit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayespare.methods.registry import registered
from bayespare.structure import count
from bayespare.training.finish import finish
from bayespare.training.fit import Fit
from bayespare.training.method import Method

EVERY = pytest.mark.parametrize("case", METHODS, ids=str)
IN_TABLE = pytest.mark.parametrize(("case", "net"), PAIRS, ids=str)
MLP, LENET = NETS[0], NETS[1]
POINTS = [case for case in METHODS if case.name == "flat-map"]
# The authors' flat-map draws the scale of each layer.
AT_MODES = [
    case
    for case in METHODS
    if case.name == "spam" or (case.name == "flat-map" and "settings" not in case.settings)
]


def evaluated(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(x)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def test_every_registered_method_is_in_the_table():
    assert {case.name for case in METHODS} == set(registered())


# --------------------------------------------------- what is left is one network


@IN_TABLE
def test_live_masked_and_compact_network_are_one(case, net):
    """After live removals and the decision; sizes, names and shapes agree as well."""
    template, plan, data = planned(net)
    fit = trained_fit(case, net)
    fit.remove(thinned(fit, 0.7, seed=0))
    train(fit, net)
    fit.update()
    fit.remove(thinned(fit, 0.8, seed=1))
    before, expected = evaluated(fit.network, data.x), fit.parameters()
    fit.decide()
    live = evaluated(fit.network, data.x)
    # In evaluation a gate is its decision, so deciding changes nothing.
    assert relative(live, before) < 1e-5
    done = finish(template, fit.method, data.x[:4])
    assert done.masked_difference <= 1e-5
    assert relative(evaluated(done.model, data.x), live) < 1e-5
    counted = count(done.model, data.x[:1])
    by_weight = getattr(fit.method.config, "unit", "unit") == "weight"
    assert (counted.nonzeros if by_weight else counted.parameters) == expected == fit.parameters()
    assert done.verdict.kept.keys() == {group.name for group in plan.groups}
    for group in plan.groups:
        assert torch.equal(done.verdict.of(group), fit.method.keep[group.name])
    assert set(done.posterior.std) <= {name for name, _ in done.model.named_parameters()}
    drawn = done.posterior.draw(done.model, torch.Generator().manual_seed(0))
    torch.func.functional_call(done.model, drawn, (data.x[:2],))


@EVERY
def test_after_the_decision_training_goes_on_without_gates(case):
    fit = trained_fit(case, MLP)
    fit.decide()
    assert fit.method.decided
    assert fit.method.log_odds() == {}
    kept = fit.parameters()
    train(fit, MLP)
    fit.update()
    assert fit.parameters() == kept
    template, _, data = planned(MLP)
    done = finish(template, fit.method, data.x[:4])
    assert relative(evaluated(done.model, data.x), evaluated(fit.network, data.x)) < 1e-5


@IN_TABLE
def test_other_posterior_means_can_be_put_in_place(case, net):
    """Of every parameter of the smaller network, whatever scales are multiplied in."""
    fit = trained_fit(case, net)
    fit.remove(thinned(fit, 0.7, seed=0))
    fit.decide()
    names = {name for name, _ in fit.network.named_parameters()}
    wanted = {n: 1.25 * v for n, v in fit.method.means().items() if n in names}
    fit.method.take(wanted)
    found = fit.method.means()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


SHARED = [MethodCase("ss-ig"), MethodCase("ss-ghs", {"centred": False})]


@pytest.mark.parametrize("case", SHARED, ids=str)
@settings(max_examples=12)
@given(data=st.data())
def test_any_removal_leaves_a_network_that_runs(case, data):
    """Whole groups and single survivors included, channels and their positions at odds."""
    net = NETS[3]
    template, _, examples = planned(net)
    fit = started(case, net)
    for _ in range(data.draw(st.integers(1, 3))):
        keep = {}
        for group in fit.method.plan.groups:
            how = data.draw(st.sampled_from(["random", "none", "one", "all"]))
            line = torch.full((group.size,), how == "all")
            if how == "one":
                line[data.draw(st.integers(0, group.size - 1))] = True
            elif how == "random":
                line = torch.tensor([data.draw(st.booleans()) for _ in range(group.size)])
            keep[group.name] = line
        fit.remove(keep)
        assert all(group.size for group in fit.method.plan.groups)
    expected = fit.parameters()
    live = evaluated(fit.network, examples.x)
    fit.decide()
    done = finish(template, fit.method, examples.x[:4])
    assert relative(evaluated(done.model, examples.x), live) < 1e-5
    assert count(done.model, examples.x[:1]).parameters == expected


def test_gates_of_channels_and_positions_that_agree_on_nothing_leave_one_path():
    """Each channel's gate is open where all of its positions' are shut, and the reverse."""
    net = NETS[3]
    template, plan, data = planned(net)
    fit = started(MethodCase("ss-ig"), net)
    odds = {name: torch.full_like(v, 2.0) for name, v in fit.method.log_odds().items()}
    odds["conv"][:] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    odds["hidden.inputs"][: len(odds["hidden.inputs"]) // 2] = -1.0
    fit.method.gates.data = torch.cat([odds[g.name] for g in plan.groups if g.name in odds])
    verdict, expected = fit.verdict(), fit.parameters()
    assert all(verdict.of(group).any() for group in plan.groups)
    fit.decide()
    done = finish(template, fit.method, data.x[:4])
    assert relative(evaluated(done.model, data.x), evaluated(fit.network, data.x)) < 1e-5
    assert count(done.model, data.x[:1]).parameters == expected


# ----------------------------------------------------------------- bookkeeping


@IN_TABLE
def test_keep_and_log_odds_follow_every_removal(case, net):
    fit = trained_fit(case, net)
    method = fit.method
    whole, odds = method.whole, method.log_odds()
    features = {g.name for g in whole.groups if g.unit in ("feature", "position")}
    faithful = case in GATED and case.settings.get("settings") == "faithful"
    assert set(odds) == {g.name for g in whole.groups} - (features if faithful else set())
    assert all(len(odds[name]) == whole[name].size for name in odds)
    for seed in (0, 1):
        keep, sizes = thinned(fit, 0.6, seed), {g.name: g.size for g in method.plan.groups}
        stayed = method.remove(keep, fit.optimizer)
        for group in method.plan.groups:
            line = stayed.get(group.name, torch.ones(sizes[group.name], dtype=torch.bool))
            assert group.size == int(line.sum()) == int(method.keep[group.name].sum())
            if group.name in odds:
                odds[group.name] = odds[group.name][line]
                if case in GATED:
                    assert torch.equal(method.log_odds()[group.name], odds[group.name])
                else:  # the evidence of what stays depends on what went
                    assert method.log_odds()[group.name].shape == odds[group.name].shape
                if keep[group.name].any():
                    assert not (line & ~keep[group.name]).any()
        assert method.whole is whole
    noted = fit.odds
    fit.update()
    assert all(len(noted[g.name]) == g.size for g in whole.groups)


@IN_TABLE
def test_posteriors_are_named_and_shaped_like_the_network_at_every_size(case, net):
    fit = trained_fit(case, net)
    for _ in range(2):
        parameters = dict(fit.network.named_parameters())
        stds, means = fit.method.standard_deviations(), fit.method.means()
        assert set(stds) <= set(parameters)
        assert any(name.endswith("weight") for name in stds) or case in POINTS
        for name, std in stds.items():
            assert std.shape == parameters[name].shape
            # Of a single weight that was removed nothing is left, mean or noise.
            assert ((std > 0) | (std == 0) & (means[name] == 0)).all()
        assert {n: t.shape for n, t in means.items()} == {
            n: t.shape for n, t in fit.network.state_dict().items()
        }
        fit.remove(thinned(fit, 0.5, seed=3))


@EVERY
def test_the_optimiser_holds_every_parameter_once(case):
    fit = trained_fit(case, MLP)
    for _ in range(2):
        held = [id(p) for group in fit.optimizer.param_groups for p in group["params"]]
        wanted = [*fit.network.parameters(), *fit.method.parameters()]
        assert len(held) == len(set(held))
        assert set(held) == {id(p) for p in wanted}
        assert set(map(id, fit.optimizer.state)) <= set(held)
        fit.remove(thinned(fit, 0.5, seed=0))


@IN_TABLE
def test_removal_carries_the_moments_of_what_stays(case, net):
    """Every state tensor is the old one at the kept indices, in every dimension at once."""
    fit = trained_fit(case, net)
    names = {id(p): n for n, p in (*fit.network.named_parameters(), *named(fit.method))}
    old = {names[id(p)]: state for p, state in fit.optimizer.state.items()}
    values = dict((*fit.network.named_parameters(), *named(fit.method)))
    fit.remove(thinned(fit, 0.6, seed=2))
    lines = kept_lines(fit, values)
    after = dict((*fit.network.named_parameters(), *named(fit.method)))
    assert set(after) == set(values)
    changed = 0
    for name, parameter in after.items():
        index = lines[name]
        expected = values[name].detach()[index] if values[name].dim() else values[name].detach()
        assert torch.equal(parameter.detach(), expected), name
        changed += parameter.shape != values[name].shape
        state = fit.optimizer.state.get(parameter)
        assert (state is None) == (name not in old), name
        for key in ("exp_avg", "exp_avg_sq") if state is not None else ():
            before = old[name][key]
            assert torch.equal(state[key], before[index] if before.dim() else before), (name, key)
        if state is not None:
            assert state["step"] == old[name]["step"] > 0
    assert changed > 3


def named(method: Method) -> list[tuple[str, nn.Parameter]]:
    return [(f"posterior/{name}", p) for name, p in method.named_parameters()]


def kept_lines(fit: Fit, values: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Index of what must be left of each tensor, from the plan and the keep alone."""
    whole, keep = fit.method.whole, fit.method.keep
    lines = whole.lines(keep)
    index = {}
    for name, value in values.items():
        dims = [
            lines.get((name, dim), torch.ones(size, dtype=torch.bool)).nonzero().squeeze(1)
            for dim, size in enumerate(value.shape)
        ]
        index[name] = torch.meshgrid(*dims, indexing="ij") if dims else ()
    rows, columns = [], []
    for order, part in enumerate(fit.method.layers):
        layer = part.name
        weight = values[f"{layer}.weight"]
        kernel = weight[0, 0].numel()
        every = [
            lines.get((f"{layer}.weight", dim), torch.ones(size, dtype=torch.bool))
            for dim, size in enumerate(weight.shape[:2])
        ]
        row, inputs = every[::-1] if part.inputs_first else every
        rows.append(row)
        columns.append(inputs.repeat_interleave(kernel))
        for kind in ("weight", "bias"):
            name = f"posterior/weights.{kind}_rho.{order}"
            if name in values and values[name].numel():
                index[name] = index[f"{layer}.{kind}"]
    if "posterior/gates" in values:
        gated = torch.cat([keep[n] for n in fit.method.log_odds()])
        index["posterior/gates"] = (gated.nonzero().squeeze(1),)
    index["posterior/weights.log_in"] = (torch.cat(columns).nonzero().squeeze(1),)
    index["posterior/weights.log_out"] = (torch.cat(rows).nonzero().squeeze(1),)
    for name in fit.method.scale.per_unit if hasattr(fit.method, "scale") else ():
        index[f"posterior/scale.{name}"] = (torch.cat(rows).nonzero().squeeze(1),)
    for place, scale in enumerate(getattr(fit.method, "scales", ())):
        for name in scale.per_unit:
            index[f"posterior/scales.{place}.{name}"] = (rows[place].nonzero().squeeze(1),)
    return index


def test_update_removes_what_has_settled_and_nothing_else():
    case = MethodCase("ss-ig", {"settled": 0.05})
    fit = started(case, MLP)
    edge = math.log(0.05 / 0.95)
    with torch.no_grad():
        fit.method.gates[:3] = torch.tensor([edge - 0.01, edge + 0.01, -30.0])
    stayed = fit.method.update(fit.optimizer)
    assert {name: (~line).nonzero().flatten().tolist() for name, line in stayed.items()} == {
        fit.method.whole.groups[0].name: [0, 2]
    }
    assert fit.method.update(fit.optimizer) == {}


def test_decide_keeps_the_median_probability_model_and_never_empties_a_group():
    fit = started(MethodCase("ss-ghs"), MLP)
    with torch.no_grad():
        first = fit.method.whole.groups[0].size
        fit.method.gates[:first] = torch.linspace(-1, 1, first)
        fit.method.gates[first:] = torch.linspace(-9, -1, len(fit.method.gates) - first)
    fit.decide()
    kept = [fit.method.keep[g.name].nonzero().flatten().tolist() for g in fit.method.whole.groups]
    sizes = [g.size for g in fit.method.whole.groups]
    assert kept == [list(range(first // 2, first)), [sizes[1] - 1], [sizes[2] - 1]]


# ------------------------------------------------------------------ evaluation


@EVERY
def test_evaluation_draws_nothing_and_training_does(case):
    *_, data = planned(MLP)
    fit = trained_fit(case, MLP)
    state = fit.generator.get_state()
    first, second = (evaluated(fit.network, data.x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, fit.generator.get_state())
    fit.network.train()
    with torch.no_grad():
        drawn = [fit.network(data.x) for _ in range(2)]
    assert torch.equal(*drawn) == (case in AT_MODES)


def test_relaxed_evaluation_weighs_units_by_their_inclusion():
    """By hand on an MLP: what is read is multiplied by the probability, or by the decision."""
    *_, data = planned(MLP)
    fit = started(MethodCase("ss-ig"), MLP)
    with torch.no_grad():
        fit.method.gates.normal_(generator=torch.Generator().manual_seed(0))
    odds = fit.method.log_odds()
    net = fit.network
    for relaxed in (False, True):
        fit.method.relaxed = relaxed
        x = data.x
        for layer, group in zip((net.fc1, net.fc2, net.fc3), fit.method.plan.groups, strict=True):
            gate = odds[group.name].sigmoid() if relaxed else (odds[group.name] > 0).float()
            x = (x * gate) @ layer.weight.T + layer.bias
            x = x.relu() if layer is not net.fc3 else x
        torch.testing.assert_close(evaluated(net, data.x), x)


def test_faithful_gates_leave_features_and_positions_to_the_weights():
    """The authors gate outputs; what nobody gates must never be removed."""
    fit = started(MethodCase("ss-ig", {"settings": "faithful"}), LENET)
    assert {fit.method.whole[name].unit for name in fit.method.log_odds()} == {"channel", "unit"}
    fit.decide()
    assert all(line.all() for line in fit.method.keep.values())


def test_the_fused_encoder_of_pytorch_does_not_read_past_the_gates():
    """In evaluation its encoder layer takes the weights of its parts without calling them."""
    net = next(net for net in ARCHITECTURES if net.name == "encoder")
    _, _, data = planned(net)
    fit = trained_fit(MethodCase("ss-ig"), net)
    whole = evaluated(fit.network, data.x)
    for name in ("layer.linear1", "layer.self_attn"):
        changed = fit.copy()
        odds = changed.method.log_odds()
        place = sum(len(odds[n]) for n in list(odds)[: list(odds).index(name)])
        with torch.no_grad():
            changed.method.gates[place] = -5.0
        assert relative(evaluated(changed.network, data.x), whole) > 1e-4
