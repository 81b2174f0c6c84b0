"""Bayesian model reduction: what the evidence of a posterior that is set by hand decides."""

import math

import pytest
import torch
from cases import NETS, MethodCase, started
from torch import nn

from bayespare import BayespareError, methods, nets, trace
from bayespare.bayes.evidence import delta_f, unit_delta_f
from bayespare.bayes.horseshoe import horseshoe_gain, shrinkages
from bayespare.bayes.layer_scale import LayerScale
from bayespare.structure.positions import with_positions

MLP = NETS[0]


def test_units_are_judged_by_their_outgoing_weights_alone():
    fit = started(MethodCase("bmr", {"prior_std": 1.0, "tie": 0.1}), MLP)
    std = fit.method.standard_deviations()["fc2.weight"]
    slow = delta_f(fit.network.fc2.weight.detach(), std, 1.0).double().sum(0)
    expected = -slow - 0.1 * fit.network.fc2.weight.shape[0]
    torch.testing.assert_close(
        fit.method.log_odds()["fc1"].double(), expected, rtol=1e-5, atol=1e-4
    )
    before = fit.method.log_odds()["fc1"]
    with torch.no_grad():
        fit.network.fc1.weight.mul_(3.0)
    assert torch.equal(fit.method.log_odds()["fc1"], before)


def test_log_odds_follow_the_steps_of_a_fused_optimiser():
    fit = started(MethodCase("bmr", {"prior_std": 1.0}), MLP)
    fit.network.train()
    before = fit.method.log_odds()["fc1"]
    fit.network(torch.randn(4, *MLP.inputs)).square().mean().backward()
    fit.optimizer.step()
    std = fit.method.standard_deviations()["fc2.weight"]
    slow = -delta_f(fit.network.fc2.weight.detach(), std, 1.0).double().sum(0)
    tie = fit.method.config.tie * fit.network.fc2.weight.shape[0]
    now = fit.method.log_odds()["fc1"]
    assert not torch.equal(now, before)
    torch.testing.assert_close(now.double(), slow - tie, rtol=1e-5, atol=1e-4)


def test_a_round_waits_for_the_warm_up_and_takes_no_more_than_the_cap():
    case = MethodCase("bmr", {"odds": "fixed", "fixed_odds": -1e6, "cap": 0.25, "warm_up": 3})
    fit = started(case, MLP)
    assert fit.method.update(fit.optimizer) == {}
    fit.method.steps += 3
    sizes = {g.name: g.size for g in fit.method.plan.groups}
    stayed = fit.method.update(fit.optimizer)
    assert {n: int((~line).sum()) for n, line in stayed.items()} == {
        name: math.ceil(0.25 * size) for name, size in sizes.items()
    }
    assert fit.method.update(fit.optimizer) == {}


def test_pruned_weights_are_zero_in_every_draw_and_never_return():
    case = MethodCase("bmr", {"unit": "weight", "warm_up": 1, "every": 1, "tie": 3.0})
    fit = started(case, MLP)
    fit.method.steps += 1
    fit.method.update(fit.optimizer)
    masks = [fit.method.weights.masks(place)[0].clone() for place in range(3)]
    assert any(not mask.all() for mask in masks)
    none = [None] * 3
    for draw, mask in zip(fit.method.weights.draw(none, none, fit.generator), masks, strict=True):
        assert (draw().weight[~mask] == 0).all()
    with torch.no_grad():
        for layer in fit.method.layers:
            layer.module.weight.fill_(5.0)
    fit.method.steps += 1
    fit.method.update(fit.optimizer)
    assert all((fit.method.weights.masks(p)[0] <= m).all() for p, m in enumerate(masks))


def test_a_layer_that_never_left_its_prior_is_named_and_nothing_it_reads_goes(caplog):
    fit = started(MethodCase("bmr", {"warm_up": 1, "tie": 1.0}), MLP)
    with torch.no_grad():
        fit.network.fc2.weight.zero_()
    fit.method.steps += 1
    assert (fit.method.log_odds()["fc1"] == torch.inf).all()
    assert "fc2" in caplog.text


def test_the_horseshoe_lies_between_the_spike_and_the_best_scale():
    gains = torch.stack([delta_f(torch.tensor([0.0, 2.0]), 0.1, 1.0, s) for s in shrinkages()])
    found = horseshoe_gain(gains, 0.1)
    assert (found <= gains.amax(0)).all()
    assert found[0] < gains[0, 0]
    assert found[1] > gains[0, 1]
    torch.testing.assert_close(
        horseshoe_gain(torch.zeros(32, 1), 0.1), torch.zeros(1).double(), atol=1e-9, rtol=0
    )


def test_bmr_rhs_refuses_single_weights():
    with pytest.raises(BayespareError, match="unit=weight"):
        methods.build("bmr-rhs", unit="weight")


def test_the_size_of_a_network_of_single_weights_is_what_is_not_zero():
    case = MethodCase("bmr", {"unit": "weight", "warm_up": 1, "tie": 2.0})
    fit = started(case, MLP)
    foretold = fit.parameters()
    assert 0 < foretold < sum(p.numel() for p in fit.network.parameters())
    fit.decide()
    nonzero = sum(int(value.count_nonzero()) for value in fit.method.means().values())
    assert fit.parameters() == nonzero == foretold


@pytest.mark.parametrize("name", ["bmr", "flat-ff", "flat-map"])
def test_the_authors_layers_have_scales_that_are_learnt(name: str) -> None:
    """Card section 3.1: weights are constant_l c_l W, with a posterior of c_l for each layer."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(8, 6, generator=generator)
    method = methods.build(name, settings="faithful")
    method.attach(model, trace(model, x), examples=8, generator=generator)
    scale = method.layer_scale
    assert isinstance(scale, LayerScale)
    assert scale.constant.tolist() == pytest.approx([0.1, 1.0])
    model.train()
    loss = model(x).square().mean() + method.penalty()
    loss.backward()
    assert bool((scale.log_mean.grad != 0).all())
    given = [p for group in method.parameter_groups(model, batch=8) for p in group["params"]]
    assert any(p is scale.log_mean for p in given)


def test_of_a_transformer_the_head_alone_is_the_output_layer():
    """The authors never prune it; what writes to the residual stream they do."""
    model = nets.build(
        "vit:dim=8,depth=1,heads=2,mlp=16,patch=4", inputs=(1, 8, 8), outputs=3, seed=0
    )
    plan = with_positions(trace(model, torch.randn(4, 1, 8, 8)))
    method = methods.build("bmr", settings="faithful")
    method.attach(model, plan, examples=10)
    last = {x.name for x, is_last in zip(method.layers, method.last, strict=True) if is_last}
    assert last == {"head"}
    assert {"patch", "blocks.0.mlp.fc2"} < {x.name for x in method.layers}


def test_a_layer_nothing_is_left_of_does_not_end_the_run():
    """A scale learnt from what is left would be zero, and evidence refuses such a prior."""
    fit = started(MethodCase("bmr", {"unit": "weight"}), MLP)
    weights = fit.method.weights
    gone = [torch.zeros_like(mask) for mask in weights.masks(1)]
    weights.prune({1: (gone[0], gone[1])})
    first, empty, *_ = fit.method.prior_stds()
    assert first > 0
    assert empty == 1.0
    stays = fit.method.log_odds()
    assert all(not bool(odds.isnan().any()) for odds in stays.values())
    fit.decide()
    layer = fit.method.layers[1]
    assert not bool(fit.method.means()[f"{layer.name}.weight"].any())


def test_how_far_the_two_blocks_of_units_disagree_is_told():
    fit = started(MethodCase("bmr", {"prior_std": 1.0}), MLP)
    stds = fit.method.standard_deviations()
    changes = {
        name: delta_f(getattr(fit.network, name).weight.detach(), stds[f"{name}.weight"], 1.0)
        for name in ("fc1", "fc2")
    }
    rows, columns = changes["fc1"].double().sum(1), changes["fc2"].double().sum(0)
    (found,) = fit.method.diagnostics().values()
    assert "input" not in found  # nothing computes it
    assert found["fc1"]["mean_nats"] == pytest.approx(float((rows - columns).abs().mean()), 1e-4)
    opposite = (unit_delta_f(rows, columns, "incoming") > 0) != (columns > 0)
    assert found["fc1"]["opposite"] == pytest.approx(float(opposite.double().mean()))
    fit.decide()
    assert fit.diagnostics["block_disagreement"] == found
    tensors, meta = fit.state()
    again = started(MethodCase("bmr", {"prior_std": 1.0}), MLP)
    again.restore(tensors, meta)
    assert again.diagnostics == fit.diagnostics
    assert started(MethodCase("bmr", {"unit": "weight"}), MLP).method.diagnostics() == {}


def test_a_run_too_short_for_a_round_is_told_so():
    fit = started(MethodCase("bmr", {"settings": "faithful"}), MLP)
    fit.method.steps += 120
    fit.method.update(fit.optimizer)
    fit.decide()
    assert any("120 steps were too few" in text for text in fit.warnings)
    assert any("due at step 500" in text for text in fit.warnings)
    long = started(MethodCase("bmr", {"settings": "faithful"}), MLP)
    long.method.steps += 500
    long.method.update(long.optimizer)
    long.decide()
    assert not any("too few" in text for text in long.warnings)
