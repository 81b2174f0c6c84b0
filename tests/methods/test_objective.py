"""The penalty is the KL, scaled once; the KL is the sum over all weights, gates and scales."""

import copy

import pytest
import torch
from cases import EXAMPLES, GATED, METHODS, NETS, MethodCase, planned, started, thinned
from cases import trained as trained_fit
from torch import Tensor

from bayespare import methods
from bayespare.bayes.gates import bernoulli_kl
from bayespare.bayes.scales import NoScale
from bayespare.methods import Method, registered
from bayespare.methods.spike_slab import SpikeSlab

EVERY = pytest.mark.parametrize("case", METHODS, ids=str)
EVERY_GATED = pytest.mark.parametrize(
    # Where the gates are integrated out there is no sum over them.
    "case",
    [case for case in GATED if case.settings.get("algorithm") != "spike"],
    ids=str,
)
ON_EVERY = pytest.mark.parametrize("net", NETS, ids=str)
MLP = NETS[0]


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


@EVERY_GATED
@ON_EVERY
def test_kl_is_the_sum_over_all_weights_gates_and_scales(case, net):
    """The obvious twin: weight by weight from the plan, in float64, nothing fused or indexed."""
    fit = trained_fit(case, net)
    fit.remove(thinned(fit, 0.7, seed=0))
    assert fit.method.kl().item() == pytest.approx(kl_by_hand(fit.method), rel=2e-5)


@pytest.mark.parametrize("net", NETS[:1] + NETS[3:], ids=str)
@pytest.mark.parametrize("name", sorted({case.name for case in GATED}))
def test_a_price_is_paid_for_every_weight_and_bias_expected_to_stay(name, net):
    fit = started(MethodCase(name), net)
    method = fit.method
    with torch.no_grad():
        method.gates.normal_(generator=torch.Generator().manual_seed(0))
    plain = method.kl().item()
    inclusion = {n: odds.double().sigmoid() for n, odds in method.log_odds().items()}
    row, column = presences(method, inclusion)
    size = sum(
        row[x.name].sum() * (column[x.name].sum() * x.module.weight[0, 0].numel() + 1)
        for x in method.layers
    )
    method.price = 3.0
    assert method.kl().item() == pytest.approx(plain + 3 * size.item(), rel=1e-5)
    (slope,) = torch.autograd.grad(method.kl(), method.gates)
    method.price = 0.0
    (flat,) = torch.autograd.grad(method.kl(), method.gates)
    assert (slope > flat).all()
    method.settle(fit.optimizer)
    without = method.kl().item()
    method.price = 3.0
    assert method.kl().item() == without


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
        if prior_std == "fan-in":
            # Of the layer as it was before anything was cut; held against it in test_node_pip.
            prior_std = method.slab_std[method.layers.index(layer)]
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


@EVERY_GATED
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


@EVERY
def test_a_method_moves_with_everything_it_looks_up(case):
    """As to a GPU; the meta device stands for it."""
    methods.build("ss-ig").to("meta")  # nothing to move yet
    method = started(case, MLP).method
    units = torch.zeros(sum(group.size for group in method.gated()), device="meta")
    method.to("meta")
    assert all(part.device.type == "meta" for part in method.wiring.by_column(units))
    assert all(part.device.type == "meta" for part in method.wiring.by_row(units))
    left = [*method.named_parameters(), *method.named_buffers()]
    assert all(value.device.type == "meta" for _, value in left)
