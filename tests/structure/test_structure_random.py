"""Compact equals masked on random networks of every architecture.

About 150 examples in an ordinary run; ``make exact`` asks for 2,000.
"""

import os
from copy import deepcopy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structure_nets import outputs, relative, verdicts
from structure_random import probe, samples
from structure_zoo import Block, ResNet, SelfAttention, randomised

from bayespare.structure import (
    Plan,
    Select,
    Verdict,
    close,
    compact,
    follow,
    mask,
    slice_slots,
    trace,
)
from bayespare.structure.sizes import update_sizes
from bayespare.structure.slicing import slots_by_tensor

EXAMPLES = int(os.environ.get("BAYESPARE_EXAMPLES", "150"))
LONG = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
SHORT = settings(LONG, max_examples=max(1, EXAMPLES // 8))


@LONG
@given(st.data())
def test_compact_equals_masked(data):
    sample = data.draw(samples())
    plan = trace(sample.model, sample.example, widths=sample.widths)
    plan = Plan.from_json(plan.to_json())
    verdict = data.draw(verdicts(plan))
    small = compact(sample.model, verdict)
    x = probe(sample.example)
    assert relative(outputs(small, x), outputs(mask(sample.model, verdict), x)) <= 1e-9


def cut_in_place(model, plan, keep):
    """What training does: the live network follows, and each tensor is sliced where it is."""
    model = follow(model, plan, keep, live=True)
    for name, places in slots_by_tensor(plan).items():
        layer, _, leaf = name.rpartition(".")
        module = model.get_submodule(layer)
        old = getattr(module, leaf)
        slots, keeps = [s for _, s in places], [keep[g.name] for g, _ in places]
        new = slice_slots(old.detach(), slots, keeps)
        holders = [
            (m, key)
            for m in model.modules()
            for table in (m._parameters, m._buffers)
            for key, tensor in table.items()
            if tensor is old
        ]
        fresh = torch.nn.Parameter(new) if isinstance(old, torch.nn.Parameter) else new
        for holder, key in holders:
            setattr(holder, key, fresh)
            update_sizes(holder)
    return model


@SHORT
@given(st.data())
def test_a_network_cut_twice_while_it_lives_is_the_masked_one(data):
    sample = data.draw(samples())
    plan = trace(sample.model, sample.example, widths=sample.widths)
    plan = Plan(tuple(g for g in plan.groups if g.unit != "feature"), plan.left_alone)
    left = {g.name: torch.ones(g.size, dtype=torch.bool) for g in plan.groups}
    live, now = deepcopy(sample.model), plan
    names = set(live.state_dict())
    for _ in range(2):
        drawn = data.draw(verdicts(now))
        keep = {
            g.name: drawn.of(g) if drawn.of(g).any() else drawn.of(g) | True for g in now.groups
        }
        live = cut_in_place(live, now, keep)
        for name, line in keep.items():
            left[name][left[name].nonzero().flatten()[~line]] = False
        now = now.restrict(keep)
    assert set(live.state_dict()) == names
    x = probe(sample.example)
    expected = outputs(mask(sample.model, Verdict(plan, left)), x)
    assert relative(outputs(live, x), expected) <= 1e-9


@SHORT
@given(st.data())
def test_closing_changes_nothing_that_is_said(data):
    sample = data.draw(samples())
    plan = trace(sample.model, sample.example, widths=sample.widths)
    chance = data.draw(st.sampled_from([0.3, 0.8]))
    with torch.no_grad():
        for parameter in sample.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) > chance)
    verdict = data.draw(verdicts(plan))
    closed, after = close(sample.model, verdict, sample.example)
    x = probe(sample.example)
    expected = outputs(mask(sample.model, verdict), x)
    assert relative(outputs(compact(closed, after), x), expected) <= 1e-7


def test_a_padded_shortcut_cut_twice():
    torch.manual_seed(0)
    model, x = randomised(ResNet("A")), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    plan = trace(model, x)
    live, now, left = deepcopy(model), plan, {}
    for stream, zeros in [([1, 0, 1, 1], [0, 1, 1, 0, 1, 1]), ([0, 1, 1], [1, 0, 1, 1])]:
        keep = {g.name: torch.ones(g.size, dtype=torch.bool) for g in now.groups}
        keep |= {"conv": torch.tensor(stream) > 0, "layer2.0.conv2": torch.tensor(zeros) > 0}
        live, now = cut_in_place(live, now, keep), now.restrict(keep)
    assert isinstance(live.layer2[0].shortcut[1], Select)
    left = {
        "conv": torch.tensor([0, 0, 1, 1]) > 0,
        "layer2.0.conv2": torch.tensor([0, 1, 0, 0, 1, 1]) > 0,
    }
    expected = outputs(mask(model, Verdict(plan, left)), x)
    assert relative(outputs(live, x), expected) <= 1e-9


def test_a_channel_that_only_makes_scores_has_an_effect():
    """Nobody reads its values, but its keys say where the head looks."""
    torch.manual_seed(0)
    attention = SelfAttention(4, 1, fused="timm", sdpa=False)
    mlp = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    block = Block(attention, mlp, lambda: torch.nn.LayerNorm(4))
    model = randomised(torch.nn.Sequential(block, torch.nn.Linear(4, 3))).double().eval()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        attention.o.weight[:, 1] = 0
    plan = trace(model, x)
    (group,) = [g for g in plan.groups if any(s.layer.endswith("qkv") for s in g.slots)]
    assert group.unit == "unit"
    verdict = Verdict(plan, {group.name: torch.tensor([True, True, True, False])})
    closed, after = close(model, verdict, x)
    assert after.keep[group.name].tolist() == [True, True, True, False]
    x = probe(x)
    expected = outputs(mask(model, verdict), x)
    assert relative(outputs(compact(closed, after), x), expected) <= 1e-9
