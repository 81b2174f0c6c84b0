"""Compact equals masked: on random networks with random verdicts, and in the corners."""

from copy import deepcopy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structure_nets import cases, half, lenet_wide, mlp, outputs, relative, verdicts
from torch import nn

from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure import (
    Group,
    Plan,
    Select,
    Slot,
    Verdict,
    compact,
    mask,
    slice_slots,
    trace,
)
from bayespare.structure.positions import with_positions

SLOW = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@SLOW
@given(st.data())
def test_compact_equals_mask(data):
    case = data.draw(cases())
    plan = trace(case.model, case.example)
    if data.draw(st.booleans()):
        plan = with_positions(plan)
    before = deepcopy(case.model.state_dict())
    verdict = data.draw(verdicts(plan))
    silent = mask(case.model, verdict)
    small = compact(case.model, verdict, example=case.example)
    x = torch.randn(4, *case.example.shape[1:], dtype=torch.float64)
    assert relative(outputs(small, x), outputs(silent, x)) <= 1e-9
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert silent.state_dict()[name].shape == tensor.shape


@SLOW
@given(cases())
def test_every_layer_of_a_stock_network_is_found(case):
    plan = trace(case.model, case.example, check=False)
    proven = trace(case.model, case.example)
    assert [g.name for g in plan.groups] == [g.name for g in proven.groups]
    hidden = sum(g.size for g in plan.groups if g.unit != "feature")
    # The inner layer of a residual branch writes the units of the stream: it adds none.
    assert hidden == case.units
    assert sum(g.size for g in plan.groups if g.unit == "feature") == case.features
    for group in plan.groups:
        for slot in group.slots:
            tensor = dict(case.model.state_dict())[slot.tensor]
            assert len(slot.owner) == tensor.shape[slot.dim]
            assert int(slot.owner.max()) < group.size
            assert set(slot.owner[slot.owner >= 0].tolist()) == set(range(group.size))


@SLOW
@given(st.data())
def test_mask_equals_zeroing_entry_by_entry(data):
    case = data.draw(cases())
    plan = trace(case.model, case.example)
    verdict = data.draw(verdicts(plan))
    slow = deepcopy(case.model)
    tensors = slow.state_dict()
    for group in plan.groups:
        for unit, kept in enumerate(verdict.of(group).tolist()):
            for slot in group.slots:
                for index, owner in enumerate(slot.owner.tolist()):
                    if owner == unit and not kept:
                        tensors[slot.tensor].select(slot.dim, index).zero_()
    fast = mask(case.model, verdict).state_dict()
    assert all(torch.equal(fast[name], tensor) for name, tensor in tensors.items())


def test_lenet_shapes_and_attributes():
    torch.manual_seed(0)
    model, x = lenet_wide(), torch.randn(2, 1, 28, 28)
    plan = trace(model, x)
    keep = {g.name: torch.arange(g.size) % 10 == 3 for g in plan.groups}
    small = compact(model, Verdict(plan, keep), example=x)
    assert (small[0].in_channels, small[0].out_channels) == (1, 2)
    assert (small[3].in_channels, small[3].out_channels) == (2, 5)
    assert small[3].weight.shape == (5, 2, 5, 5)
    assert (small[7][0].in_features, small[7][0].out_features) == (80, 80)
    assert small[7][4].weight.shape == (10, 50)
    assert torch.equal(small[7][4].bias, model[7][4].bias)


def test_features_are_selected_from_the_original_input():
    torch.manual_seed(0)
    model, x = mlp(6, 5, 2), torch.randn(3, 6)
    plan = trace(model, x)
    keep = torch.tensor([True, False, True, False, False, True])
    small = compact(model, Verdict(plan, {"input": keep}), example=x)
    assert isinstance(small[0], nn.Sequential)
    assert isinstance(small[0][0], Select)
    assert small[0][0].index.tolist() == [0, 2, 5]
    assert torch.allclose(small(x), mask(model, Verdict(plan, {"input": keep}))(x), atol=1e-6)
    noise = x + (~keep) * torch.randn(6)
    assert torch.equal(small(noise), small(x))


def flattened() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def test_positions_of_a_flattened_map_are_selected_among_what_arrives():
    model, x = flattened(), torch.randn(2, 1, 4, 4)
    plan = with_positions(trace(model, x))
    keep = {
        "0": torch.tensor([True, False, True]),
        "3.inputs": torch.tensor([0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0]).bool(),
    }
    small = compact(model, Verdict(plan, keep), example=x)
    assert small[3][0].index.tolist() == [1, 3, 4]
    assert torch.equal(small[3][1].weight, model[3].weight[:, [1, 3, 8]])
    whole = compact(model, Verdict(plan, {"0": keep["0"]}), example=x)
    assert isinstance(whole[3], nn.Linear)


def test_a_layer_that_is_to_read_nothing_reads_one_silent_entry():
    model, x = flattened(), torch.randn(2, 1, 4, 4)
    plan = with_positions(trace(model, x))
    positions = torch.arange(12) < 4
    keep = {"0": torch.tensor([False, True, True]), "3.inputs": positions}
    small = compact(model, Verdict(plan, keep), example=x)
    assert torch.equal(small(x), model[3].bias.expand(2, 2))

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x):
            return self.a(x[:, :2]) + self.b(x[:, 2:])

    split, x = Split(), torch.randn(2, 4)
    plan = trace(split, x)
    one = Verdict(plan, {"input": torch.tensor([True, False, False, False])})
    small = compact(split, one, example=x)
    assert torch.allclose(small(x), mask(split, one)(x), atol=1e-6)
    assert not small.b[1].weight.any()


def test_only_a_linear_layer_can_read_a_selection():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)
            self.w = nn.Parameter(torch.randn(12, 2))

        def forward(self, x):
            return self.conv(x).flatten(1) @ self.w

    model, x = Functional(), torch.randn(2, 1, 4, 4)
    plan = trace(model, x)
    assert [g.name for g in with_positions(plan).groups] == ["conv"]
    group = Group("w.inputs", 12, "position", (Slot("w", 0, "read", torch.arange(12)),))
    plan = Plan((*plan.groups, group), plan.left_alone)
    with pytest.raises(UnsupportedStructureError, match="w: only a Linear layer"):
        compact(model, Verdict(plan, {group.name: torch.arange(12) < 4}))


def test_only_a_flattened_map_has_positions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1, groups=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    x = torch.randn(2, 1, 4, 4)
    plan = trace(model, x)
    assert len(with_positions(plan).groups) == len(plan.groups) == 3
    compact(model, half(with_positions(plan)), example=x)


def test_features_and_hidden_units_read_by_one_layer():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.o = nn.Linear(4, 6), nn.Linear(10, 2)

        def forward(self, x):
            return self.o(torch.cat([self.a(x).relu(), x], 1))

    torch.manual_seed(0)
    model, x = Skip(), torch.randn(3, 4)
    plan = trace(model, x)
    keep = {
        "input": torch.tensor([True, False, True, False]),
        "a": torch.arange(6) % 2 == 0,
    }
    small = compact(model, Verdict(plan, keep), example=x)
    assert small.o[0].index.tolist() == [0, 1, 2, 3, 5]
    assert small.a[0].index.tolist() == [0, 2]
    assert torch.allclose(small(x), mask(model, Verdict(plan, keep))(x), atol=1e-6)


def test_a_model_that_is_one_linear_layer():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    plan = trace(model, x)
    verdict = Verdict(plan, {"input": torch.tensor([False, True, False, True])})
    small = compact(model, verdict, example=x)
    assert small[1].weight.shape == (2, 2)
    assert torch.allclose(small(x), mask(model, verdict)(x), atol=1e-6)


def test_everything_removed_leaves_the_bias():
    torch.manual_seed(0)
    model, x = mlp(4, 5, 5, 2), torch.randn(3, 4)
    plan = trace(model, x)
    none = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in plan.groups}
    small = compact(model, Verdict(plan, none), example=x)
    assert torch.equal(small(x), model[4].bias.expand(3, 2))
    assert next(p.shape for p in small.parameters()) == (1, 1)


def test_keeping_all_is_the_same_network():
    model, x = mlp(4, 5, 2), torch.randn(3, 4)
    small = compact(model, Verdict(trace(model, x), {}), example=x)
    assert torch.equal(small(x), model(x))
    assert small.state_dict().keys() == model.state_dict().keys()
    assert small[0].weight is not model[0].weight


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.a, self.b, self.o = (
                nn.Linear(*s) for s in [(3, 5), (5, 5), (5, 5), (5, 2)]
            )
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.o(self.b(self.a(self.i(x)).tanh()).tanh())

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(4, 3)
    plan = trace(model, x)
    verdict = half(plan)
    small = compact(model, verdict, example=x)
    assert small.a.weight is small.b.weight
    assert small.b.in_features == small.a.in_features == int(verdict.of(plan["i"]).sum())
    assert torch.allclose(small(x), mask(model, verdict)(x), atol=1e-6)


def test_modes_and_requires_grad_are_kept():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    plan = trace(model, x)
    model[2].bias.requires_grad_(False)
    model[1].eval()
    small = compact(model, half(plan), example=x)
    assert [p.requires_grad for p in small.parameters()] == [True, True, True, False]
    assert [m.training for m in (small, small[1], small[2])] == [True, False, True]
    assert model.training
    assert not model[1].training


def test_subnormals_become_zero():
    model, x = mlp(4, 6, 2), torch.randn(3, 4)
    plan = trace(model, x)
    with torch.no_grad():
        model[0].weight.fill_(1e-40)
    small = compact(model, half(plan))
    assert not small.get_parameter("0.1.weight").any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model, x = mlp(8, 40, 30, 2).to(dtype), torch.randn(3, 8, dtype=dtype)
    plan = trace(model, x)
    assert [g.size for g in plan.groups] == [8, 40, 30]
    assert compact(model, half(plan), example=x)(x).dtype == dtype


def test_copies_state_dicts_and_export():
    torch.manual_seed(0)
    model, x = lenet_wide(), torch.randn(2, 1, 28, 28)
    small = compact(model, half(trace(model, x)), example=x).eval()
    again = deepcopy(small)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    program = torch.export.export(small, (x,))
    assert torch.allclose(program.module()(x), small(x), atol=1e-6)
    dense = mlp(6, 5, 2)
    tiny = compact(dense, half(trace(dense, torch.randn(2, 6))))
    y = torch.randn(3, 6)
    assert torch.allclose(torch.export.export(tiny, (y,)).module()(y), tiny(y), atol=1e-6)


def test_compact_twice():
    torch.manual_seed(0)
    model, x = mlp(8, 10, 10, 2), torch.randn(3, 8)
    once = compact(model, half(trace(model, x)), example=x)
    plan = trace(once, x)
    assert plan["input"].size == 8
    twice = compact(once, half(plan, seed=1), example=x)
    assert torch.allclose(twice(x), mask(once, half(plan, seed=1))(x), atol=1e-6)
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())


def test_a_fixed_size_in_the_forward_is_refused_by_name():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 2)

        def forward(self, x):
            return self.head(self.conv(x).view(-1, 36))

    model, x = Fixed(), torch.randn(2, 1, 5, 5)
    with pytest.raises(UnsupportedStructureError, match=r"nothing .*conv\.weight, .*x\.shape"):
        trace(model, x)
    plan = trace(model, x, check=False)
    with pytest.raises(UnsupportedStructureError, match=r"x\.shape"):
        compact(model, half(plan), example=x)


def test_the_first_layer_that_differs_is_named():
    torch.manual_seed(0)
    model, x = mlp(4, 6, 6, 2), torch.randn(3, 4)
    plan = trace(model, x)
    wrong = next(s for g in plan.groups for s in g.slots if s.tensor == "2.bias")
    slots = tuple(
        Slot(s.tensor, s.dim, s.role, s.owner.flip(0)) if s is wrong else s for s in plan["2"].slots
    )
    damaged = type(plan)((type(plan["2"])("2", 6, "unit", slots),), {})
    keep = {"2": torch.arange(6) < 2}
    with pytest.raises(UnsupportedStructureError, match=r"^layer 2: the compact model differs"):
        compact(model, Verdict(damaged, keep), example=x)


def test_a_plan_for_another_model_is_refused():
    x = torch.randn(3, 4)
    plan = trace(mlp(4, 6, 2), x)
    with pytest.raises(BayespareError, match=r"0\.weight has shape \(5, 4\)"):
        compact(mlp(4, 5, 2), half(plan))
    with pytest.raises(BayespareError, match=r"no '2\.weight'"):
        mask(mlp(4, 6), half(plan))


def test_slice_slots_works_on_optimiser_state():
    owner = torch.tensor([0, 0, 1, 1, -1])
    state = torch.arange(10.0).view(2, 5)
    slot = Slot("w", 1, "read", owner)
    cut = slice_slots(state, [slot], [torch.tensor([False, True])])
    assert cut.tolist() == [[2, 3, 4], [7, 8, 9]]
    rows = Slot("w", 0, "write", torch.tensor([0, 1]))
    both = slice_slots(
        state, [slot, rows], [torch.tensor([True, False]), torch.tensor([True, False])]
    )
    assert both.tolist() == [[0, 1, 4]]
    shared = torch.ones(2, 1)
    assert slice_slots(shared, [slot], [torch.tensor([False, True])]) is shared
