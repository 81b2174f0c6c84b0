"""What every method promises, for every row of the table of cases."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from cases import EXAMPLES, METHODS, NETS, MethodCase, planned, started, thinned, train
from cases import trained as trained_fit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayespare.bayes.gates import bernoulli_kl
from bayespare.bayes.scales import NoScale
from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.methods import base as methods
from bayespare.methods.base import Method, registered
from bayespare.methods.spike_slab import SpikeSlab
from bayespare.structure import count, trace
from bayespare.training.finish import finish
from bayespare.training.fit import Fit

EVERY = pytest.mark.parametrize("case", METHODS, ids=str)
ON_EVERY = pytest.mark.parametrize("net", NETS, ids=str)
MLP, LENET = NETS[0], NETS[1]


def evaluated(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(x)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def test_every_registered_method_is_in_the_table():
    assert {case.name for case in METHODS} == set(registered())


# --------------------------------------------------- what is left is one network


@EVERY
@ON_EVERY
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
    done = finish(template, fit, data.x[:4])
    assert done.masked_difference <= 1e-5
    assert relative(evaluated(done.model, data.x), live) < 1e-5
    assert count(done.model, data.x[:1]).parameters == expected == fit.parameters()
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
    done = finish(template, fit, data.x[:4])
    assert relative(evaluated(done.model, data.x), evaluated(fit.network, data.x)) < 1e-5


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
    done = finish(template, fit, examples.x[:4])
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
    done = finish(template, fit, data.x[:4])
    assert relative(evaluated(done.model, data.x), evaluated(fit.network, data.x)) < 1e-5
    assert count(done.model, data.x[:1]).parameters == expected


# ----------------------------------------------------------------- bookkeeping


@EVERY
@ON_EVERY
def test_keep_and_log_odds_follow_every_removal(case, net):
    fit = trained_fit(case, net)
    method = fit.method
    whole, odds = method.whole, method.log_odds()
    features = {g.name for g in whole.groups if g.unit in ("feature", "position")}
    faithful = case.settings.get("settings") == "faithful"
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
                assert torch.equal(method.log_odds()[group.name], odds[group.name])
                if keep[group.name].any():
                    assert not (line & ~keep[group.name]).any()
        assert method.whole is whole
    noted = fit.odds
    fit.update()
    assert all(len(noted[g.name]) == g.size for g in whole.groups)


@EVERY
@ON_EVERY
def test_posteriors_are_named_and_shaped_like_the_network_at_every_size(case, net):
    fit = trained_fit(case, net)
    for _ in range(2):
        parameters = dict(fit.network.named_parameters())
        stds, means = fit.method.standard_deviations(), fit.method.means()
        assert set(stds) <= set(parameters)
        assert any(name.endswith("weight") for name in stds)
        for name, std in stds.items():
            assert std.shape == parameters[name].shape
            assert (std > 0).all()
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


@EVERY
@ON_EVERY
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
    layers = [layer.name for layer in fit.method.layers]
    rows, columns = [], []
    for layer in layers:
        weight = values[f"{layer}.weight"]
        kernel = weight[0, 0].numel()
        every = [torch.ones(size, dtype=torch.bool) for size in weight.shape[:2]]
        rows.append(lines.get((f"{layer}.weight", 0), every[0]))
        inputs = lines.get((f"{layer}.weight", 1), every[1])
        columns.append(inputs.repeat_interleave(kernel))
        order = layers.index(layer)
        for kind in ("weight", "bias"):
            name = f"posterior/weights.{kind}_rho.{order}"
            if name in values and values[name].numel():
                index[name] = index[f"{layer}.{kind}"]
    index["posterior/gates"] = (
        torch.cat([keep[n] for n in fit.method.log_odds()]).nonzero().squeeze(1),
    )
    index["posterior/weights.log_in"] = (torch.cat(columns).nonzero().squeeze(1),)
    index["posterior/weights.log_out"] = (torch.cat(rows).nonzero().squeeze(1),)
    for name in fit.method.scale.per_unit:
        index[f"posterior/scale.{name}"] = (torch.cat(rows).nonzero().squeeze(1),)
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


# --------------------------------------------------------------- the objective


@EVERY
def test_penalty_is_the_kl_per_example_scaled_once(case):
    fit = trained_fit(case, MLP)
    method = fit.method
    method.tempering = 1.0
    fresh(method)
    kl = method.kl().item()
    assert method.penalty().item() * EXAMPLES == pytest.approx(kl, rel=1e-6)
    method.tempering = 0.3
    assert method.penalty().item() * EXAMPLES == pytest.approx(0.3 * kl, rel=1e-6)


@EVERY
def test_penalty_knows_nothing_of_the_batch(case):
    """Batches of 5 and 50 in between: the same KL, the same penalty."""
    *_, data = planned(MLP)
    fit = trained_fit(case, MLP)
    seen = set()
    for size in (5, 50):
        fit.network.train()(data.x[:size])
        fresh(fit.method)
        seen.add(fit.method.penalty().item())
    assert len(seen) == 1


@pytest.mark.parametrize("name", sorted(registered()))
def test_penalty_falls_with_the_number_of_examples(name):
    model, plan, _ = planned(MLP)
    values = []
    for examples in (100, 400):
        method = methods.build(name)
        method.attach(copy.deepcopy(model), plan, examples=examples)
        values.append(method.penalty().item())
    assert values[0] == pytest.approx(4 * values[1], rel=1e-6)


@EVERY
@ON_EVERY
def test_penalty_has_the_gradient_of_the_kl(case, net):
    fit = trained_fit(case, net)
    method = fit.method
    parameters = [p for group in fit.optimizer.param_groups for p in group["params"]]
    slow = torch.autograd.grad(method.kl(), parameters, allow_unused=True)
    fresh(method)
    factor = method.tempering / EXAMPLES
    fast = torch.autograd.grad(method.penalty(), parameters, allow_unused=True)
    assert any(g is not None for g in fast)
    for s, f in zip(slow, fast, strict=True):
        assert (s is None) == (f is None)
        if s is not None:
            torch.testing.assert_close(f, factor * s)


def test_a_gradient_is_reused_for_its_period_and_then_made_anew():
    fit = started(MethodCase("ss-ghs", {"kl_every": 4}), MLP)
    method, gates = fit.method, fit.method.gates
    seen = []
    for step in range(9):
        with torch.no_grad():
            gates.fill_(step)
        (grad,) = torch.autograd.grad(method.penalty(), gates)
        seen.append(grad)
    for step, grad in enumerate(seen):
        assert torch.equal(grad, seen[step - step % 4])
    assert not torch.equal(seen[0], seen[4])
    assert not torch.equal(seen[4], seen[8])


def test_a_removal_ends_the_period():
    fit = started(MethodCase("ss-ig", {"kl_every": 100}), MLP)
    fit.method.penalty()
    fit.remove(thinned(fit, 0.5, seed=0))
    assert fit.method.penalty().item() * EXAMPLES == pytest.approx(fit.method.kl().item(), rel=1e-6)


def fresh(method: Method) -> None:
    method.begin_epoch()


@EVERY
@ON_EVERY
def test_kl_is_the_sum_over_all_weights_gates_and_scales(case, net):
    """The obvious twin: weight by weight from the plan, in float64, nothing fused or indexed."""
    fit = trained_fit(case, net)
    fit.remove(thinned(fit, 0.7, seed=0))
    assert fit.method.kl().item() == pytest.approx(kl_by_hand(fit.method), rel=2e-5)


def kl_by_hand(method: SpikeSlab) -> float:
    config = method.config
    faithful = config.settings == "faithful"
    inclusion = {n: odds.double().sigmoid() for n, odds in method.log_odds().items()}
    row, column = presences(method, inclusion)
    stds = method.weights.standard_deviations()
    moments = [m.detach().double() for m in method.scale.moments()]
    if not config.centred:
        moments = [torch.zeros(()).double(), torch.ones(()).double()]
    total, start, sizes = 0.0, 0, []
    for layer in method.layers:
        weight = layer.module.weight.detach().double()
        present = column[layer.name] if not faithful else torch.ones_like(column[layer.name])
        kernel = weight[0, 0].numel()
        present = present.repeat_interleave(kernel).expand(layer.rows, -1)
        mean, std = weight.flatten(1), stds[f"{layer.name}.weight"].double().flatten(1)
        bias = stds.get(f"{layer.name}.bias")
        if bias is not None:
            mean = torch.cat((mean, layer.module.bias.detach().double()[:, None]), 1)
            std = torch.cat((std, bias.double()[:, None]), 1)
            present = torch.cat((present, torch.ones(layer.rows, 1).double()), 1)
        sizes.append(present[:1].sum().expand(layer.rows))
        rows = slice(start, start + layer.rows)
        start += layer.rows
        log_square, inverse = (
            (m if m.dim() == 0 else m[rows][:, None]).expand(layer.rows, 1) for m in moments
        )
        present = present * row[layer.name][:, None]
        square = (mean.square() + std.square()) * inverse
        prior_std = config.prior_std
        if prior_std == "empirical":
            prior_std = ((present * square).sum() / present.sum()).sqrt()
        prior_std = torch.as_tensor(prior_std).double()
        kl = prior_std.log() + log_square / 2 - std.log() - 0.5 + square / (2 * prior_std.square())
        total += (present * kl).sum().item()
    if not isinstance(method.scale, NoScale):
        total += method.scale.kl_units(torch.cat(sizes).float()).double().sum().item()
        total += method.scale.kl_global().item()
    prior = method.prior_inclusion.double().split([len(v) for v in inclusion.values()])
    for (name, odds), p in zip(method.log_odds().items(), prior, strict=True):
        assert len(odds) == len(inclusion[name])
        total += bernoulli_kl(odds.double(), p).sum().item()
    return total


def presences(
    method: SpikeSlab, inclusion: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Per layer the inclusion of every output and the product of those along every input."""
    row, column = {}, {}
    for layer in method.layers:
        rows, inputs = layer.module.weight.shape[:2]
        row[layer.name] = torch.ones(rows, dtype=torch.float64)
        column[layer.name] = torch.ones(inputs, dtype=torch.float64)
    for group in method.plan.groups:
        for slot in group.slots if group.name in inclusion else ():
            if not slot.tensor.endswith(".weight") or slot.role == "scale":
                continue
            if slot.layer not in row:
                continue
            side = row if slot.role == "write" else column
            for index, owner in enumerate(slot.owner.tolist()):
                if owner >= 0:
                    side[slot.layer][index] *= inclusion[group.name][owner]
    return row, column


@EVERY
@ON_EVERY
def test_a_unit_that_is_all_but_gone_takes_its_own_terms_and_no_more(case, net):
    """Its gate's KL, its scale's KL; with nothing present its weights weigh nothing."""
    fit = trained_fit(case, net)
    method = fit.method
    keep = {n: line.clone() for n, line in thinned(fit, 0.6, seed=4).items()}
    closed = method.plan.closed(keep)
    with torch.no_grad():
        gone = torch.cat([~closed[n] for n in method.log_odds()])
        method.gates[gone] = -60.0
    assert gone.any()
    before = method.kl()
    gates = bernoulli_kl(method.gates, method.prior_inclusion).detach()
    row, _ = presences(method, {n: line.double() for n, line in closed.items()})
    rows_gone = torch.cat([row[layer.name] == 0 for layer in method.layers])
    expected = before.item() - gates[gone].sum().item()
    if not isinstance(method.scale, NoScale):
        scales = scale_kls(method)
        stay = {n: line for n, line in closed.items() if not line.all()}
        method.remove(stay, fit.optimizer)
        left = scale_kls(method)
        if case.settings.get("settings") == "faithful":
            # The prior of a group-lasso scale depends on how many weights share it: they got fewer.
            expected += left.sum().item() - scales.sum().item()
        else:
            torch.testing.assert_close(left, scales[~rows_gone], rtol=1e-4, atol=1e-4)
            expected -= scales[rows_gone].sum().item()
    else:
        method.remove(keep, fit.optimizer)
    if case.settings.get("settings") == "faithful":
        # Nor are inputs gated there: weights that read what is gone were still paid for.
        assert method.kl().item() <= expected + 1e-3 * abs(expected)
    else:
        assert method.kl().item() == pytest.approx(expected, rel=1e-4)


def scale_kls(method: SpikeSlab) -> Tensor:
    """KL of each row's scale, from the sizes that the gates leave."""
    faithful = method.config.settings == "faithful"
    inclusion = {n: odds.double().sigmoid() for n, odds in method.log_odds().items()}
    _, column = presences(method, inclusion)
    sizes = []
    for layer in method.layers:
        present = column[layer.name] if not faithful else torch.ones_like(column[layer.name])
        size = present.sum() * layer.module.weight[0, 0].numel()
        sizes.append((size + (faithful and layer.module.bias is not None)).expand(layer.rows))
    return method.scale.kl_units(torch.cat(sizes).float()).detach()


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
        assert not torch.equal(fit.network(data.x), fit.network(data.x))


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


# ------------------------------------------------- vectors of whole networks


def toy(name: str, *, settings: dict[str, object], conv: bool = False) -> SpikeSlab:
    """Card 10.10: one spiked layer, all means and spreads set; the output layer costs nothing."""
    first = nn.Conv2d(2, 2, 3, bias=False) if conv else nn.Linear(3, 2)
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    example = torch.randn(2, 2, 3, 3) if conv else torch.randn(2, 3)
    method = methods.build(name, settings="faithful", prior=0.01, prior_std=1.0, **settings)
    method.attach(model, trace(model, example), examples=1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
        model[0].weight.fill_(0.5)
        if model[0].bias is not None:
            model[0].bias.fill_(-0.5)
        model[3].weight.zero_()
        model[3].bias.zero_()
        one = math.log(math.e - 1)  # softplus(one) = 1: the prior itself
        method.weights.weight_rho[1].fill_(one)
        method.weights.bias_rho[1].fill_(one)
    return method


@pytest.mark.usefixtures("float64")
def test_toy_layer_has_the_published_kl():
    assert toy("ss-ig", settings={}).kl().item() == pytest.approx(4.155883870884762, abs=1e-9)


@pytest.mark.usefixtures("float64")
def test_toy_layer_with_horseshoe_scales_has_the_published_kl():
    method = toy("ss-ghs", settings={"centred": False})
    with torch.no_grad():
        method.scale.alpha_log_mean.fill_(0.3)
        method.scale.beta_log_mean.fill_(0.3)
    units = method.scale.kl_units(torch.ones(3))
    assert units[0].item() == pytest.approx(1.0863349240 + 0.6119172043, abs=1e-9)
    hidden = method.kl() - units[2] - method.scale.kl_global()
    assert hidden.item() == pytest.approx(7.552388127431751, abs=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("conv", "expected", "size", "out"),
    [(False, 6.251797840519051, 4, 3), (True, 35.00951145457769, 18, 3)],
)
def test_toy_layer_with_lasso_scales_has_the_published_kl(conv, expected, size, out):
    """The published code gives 7.4002 for the convolution: it forgets K_tau (card 8.2)."""
    method = toy("ss-gl", settings={"centred": False}, conv=conv)
    with torch.no_grad():
        method.scale.log_mean.fill_(0.3)
        method.scale.rate_log_mean.fill_(0.2)
    units = method.scale.kl_units(torch.tensor([size, size, float(out)]))
    if not conv:
        assert units[0].item() == pytest.approx(1.0479569848, abs=1e-9)
    hidden = method.kl() - units[2] - method.scale.kl_global()
    assert hidden.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ss-ig", 2610668.465666434),
        ("ss-ghs", 2610668.465666434 + 9983.956967),
        ("ss-gl", 2610668.465666434 + 1066273.491563),
    ],
)
def test_the_authors_mlp_starts_at_the_published_kl(name, expected):
    """Card 10.11: 784-400-400-10, mu = 0, rho = -6, gamma = 0.99, theory's priors."""
    sizes = [784, 400, 400, 10]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    method = methods.build(name, settings="faithful", prior_std=1.0, centred=False)
    method.attach(model, trace(model, torch.randn(2, 784), check=False), examples=60_000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for unit in ("log_mean", "alpha_log_mean", "beta_log_mean"):
            if hasattr(method.scale, unit):
                getattr(method.scale, unit).zero_()
    assert method.prior_inclusion.unique().tolist() == pytest.approx(
        [0.001541135531010872, 0.002343842915729095]
    )
    assert method.kl().item() == pytest.approx(expected, rel=1e-9)
    if name == "ss-ig":
        assert method.penalty().item() == pytest.approx(43.5111, abs=1e-4)


# ------------------------------------------------------------------- the priors


@pytest.mark.parametrize("settings_", [{}, {"settings": "faithful"}], ids=str)
@ON_EVERY
def test_one_over_k_expects_one_unit_a_group(settings_, net):
    fit = started(MethodCase("ss-ig", {**settings_, "prior": "1/k"}), net)
    sizes = [len(odds) for odds in fit.method.log_odds().values()]
    for part in fit.method.prior_inclusion.split(sizes):
        assert part.sum().item() == pytest.approx(1, rel=1e-5)


@ON_EVERY
def test_theory_is_below_one_over_k_and_close_to_it_in_small_networks(net):
    fit = started(MethodCase("ss-ig", {"prior": "theory"}), net)
    sizes = [len(odds) for odds in fit.method.log_odds().values()]
    for part in fit.method.prior_inclusion.split(sizes):
        assert 0.85 < part.sum().item() <= 1 + 1e-5


# ------------------------------------------------------------------- the config


@EVERY
def test_configs_round_trip_through_json_and_are_frozen(case: MethodCase):
    config = case.build().config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="frozen"):
        config.tempering = 2.0  # type: ignore[attr-defined]


def test_settings_change_the_authors_values_one_by_one():
    config = methods.build("ss-ghs", settings="faithful").config
    assert (config.prior, config.prior_std, config.start_inclusion) == ("theory", 1.3, 0.99)
    assert (config.kl_every, config.settled, config.centred, config.c_reg) == (1, 0.0, True, 1.0)
    assert not methods.build("ss-gl", settings="faithful").config.centred
    assert methods.build("ss-ghs", settings="faithful", prior_std=0.2).config.prior_std == 0.2


@pytest.mark.parametrize(
    ("name", "settings_", "says"),
    [
        ("ss-igg", {}, "did you mean 'ss-ig'"),
        ("ss-ig", {"priors": 0.1}, "priors"),
        ("ss-ig", {"settings": "faithfull"}, "settings"),
        ("ss-ig", {"prior": 1.5}, "prior"),
        ("ss-ig", {"prior": 0.0}, "prior"),
        ("ss-ig", {"prior": "half"}, "prior"),
        ("ss-ig", {"prior_std": -1.0}, "prior_std"),
        ("ss-ghs", {"c_reg": 0.0}, "c_reg"),
        ("ss-ig", {"temperature": 0}, "temperature"),
        ("ss-ig", {"start_inclusion": 1.0}, "start_inclusion"),
        ("ss-ig", {"kl_every": 0}, "kl_every"),
        ("ss-ig", {"settled": 0.5}, "settled"),
    ],
)
def test_bad_settings_are_refused_in_one_line_that_names_them(name, settings_, says):
    with pytest.raises(BayespareError) as caught:
        methods.build(name, **settings_)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_without_a_variational_form_is_refused_by_name():
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(1, 3, 2)
            self.out = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.up(x).relu().flatten(1))

    model, example = Transposed(), torch.randn(2, 1, 3)
    with pytest.raises(UnsupportedStructureError, match="up"):
        methods.build("ss-ig").attach(model, trace(model, example), examples=10)
