"""What a trace finds, couples, leaves alone and refuses, one small network for each case."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from structure_nets import half, lenet_wide, mlp
from torch import Tensor, nn

from bayespare import nets
from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure import Plan, compact, count, trace


class Net(nn.Module):
    """A forward function with the modules and parameters it uses."""

    def __init__(self, function: Any, **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor) -> Any:
        return self.function(self, *args)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def sizes(plan: Plan) -> dict[str, int]:
    return {group.name: group.size for group in plan.groups}


def slots(plan: Plan, name: str) -> set[tuple[str, int, str]]:
    return {(slot.tensor, slot.dim, slot.role) for slot in plan[name].slots}


def linear(*parts: int) -> nn.Linear:
    return nn.Linear(*parts)


X = torch.randn(3, 4)
IMAGE = torch.randn(2, 3, 8, 8)


def conv_net(*middle: nn.Module, out: int = 6) -> nn.Sequential:
    """conv -> middle -> 1x1 conv -> global pool -> linear."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Sequential(*middle),
        nn.Conv2d(out, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )


def test_mlp_slots_in_full():
    plan = trace(mlp(4, 6, 5, 2), X)
    assert [(g.name, g.size, g.unit) for g in plan.groups] == [
        ("input", 4, "feature"),
        ("0", 6, "unit"),
        ("2", 5, "unit"),
    ]
    assert [(s.tensor, s.dim, s.role) for s in plan["0"].slots] == [
        ("0.weight", 0, "write"),
        ("0.bias", 0, "write"),
        ("2.weight", 1, "read"),
    ]
    assert all(s.owner.tolist() == list(range(6)) for s in plan["0"].slots)
    assert plan["0"].slots[0].owner.dtype == torch.int64
    assert plan.left_alone == {"4.weight": "network output", "4.bias": "network output"}


def test_lenet_columns_belong_to_channels():
    plan = trace(lenet_wide(), torch.randn(2, 1, 28, 28))
    assert [(g.name, g.size, g.unit) for g in plan.groups] == [
        ("0", 20, "channel"),
        ("3", 50, "channel"),
        ("7.0", 800, "unit"),
        ("7.2", 500, "unit"),
    ]
    read = plan["3"].slots[-1]
    assert (read.tensor, read.dim, read.role) == ("7.0.weight", 1, "read")
    assert torch.equal(read.owner, torch.arange(50).repeat_interleave(16))
    assert plan.left_alone["input"] == "convolved, not a list of features"


def test_pixels_are_features_of_a_flattened_image():
    plan = trace(nn.Sequential(nn.Flatten(), mlp(36, 5, 2)), torch.randn(2, 1, 6, 6))
    assert plan["input"].size == 36
    assert plan["input"].slots[0].owner.tolist() == list(range(36))


def test_batch_norm_and_prelu_scale_the_units():
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 2)
    )
    plan = trace(model, X)
    assert slots(plan, "1") == {
        ("1.weight", 0, "write"),
        ("1.bias", 0, "write"),
        *((f"2.{n}", 0, "scale") for n in ("weight", "bias", "running_mean", "running_var")),
        ("3.weight", 0, "scale"),
        ("4.weight", 1, "read"),
    }
    assert slots(plan, "input") == {("1.weight", 1, "read")}
    assert plan.left_alone["0.weight"] == "acts on the input of the network"


EXACT: dict[str, tuple[Net, dict[str, int]]] = {
    "residual": (
        Net(
            lambda s, x: s.o((h := s.a(x).relu()) + s.b(h)),
            a=linear(4, 6), b=linear(6, 6), o=linear(6, 2),
        ),
        {"input": 4, "a": 6},
    ),
    "concat": (
        Net(
            lambda s, x: s.o(torch.cat([s.a(x).relu(), s.b(x).tanh()], 1)),
            a=linear(4, 6), b=linear(4, 5), o=linear(11, 2),
        ),
        {"input": 4, "a": 6, "b": 5},
    ),
    "stack then mean": (
        Net(
            lambda s, x: s.o(torch.stack([s.a(x), s.b(x)], 1).mean(1)),
            a=linear(4, 6), b=linear(4, 6), o=linear(6, 2),
        ),
        {"input": 4, "a": 6},
    ),
    "two readers": (
        Net(
            lambda s, x: s.b(h := s.a(x).relu()) + s.c(h),
            a=linear(4, 6), b=linear(6, 2), c=linear(6, 2),
        ),
        {"input": 4, "a": 6},
    ),
    "gated halves": (
        Net(
            lambda s, x: s.o((p := s.a(x).chunk(2, 1))[0] * p[1].sigmoid()),
            a=linear(4, 12), o=linear(6, 2),
        ),
        {"input": 4, "a": 6},
    ),
    "glu": (
        Net(lambda s, x: s.o(F.glu(s.a(x))), a=linear(4, 12), o=linear(6, 2)),
        {"input": 4, "a": 6},
    ),
    "halves that meet later": (
        Net(
            lambda s, x: s.o(torch.cat([(p := s.a(x).chunk(2, 1))[0].relu(), p[1].tanh()], 1)),
            a=linear(4, 12), o=linear(12, 2),
        ),
        {"input": 4, "a": 6},
    ),
    "hidden units and features normalised together": (
        Net(
            lambda s, x: s.o(s.n(torch.cat([s.a(x).relu(), x], 1))),
            a=linear(4, 6), n=nn.BatchNorm1d(10), o=linear(10, 2),
        ),
        {"input": 4, "a": 6},
    ),
    "one layer added to two": (
        Net(
            lambda s, x: s.o(s.a(x) + torch.cat([s.b(x), s.c(x)], 1)),
            a=linear(4, 6), b=linear(4, 2), c=linear(4, 4), o=linear(6, 2),
        ),
        {"input": 4, "a": 2, "a#2": 4},
    ),
    "functional weights": (
        Net(
            lambda s, x: torch.relu(x @ s.w + s.b) @ s.v,
            w=weight(4, 6), b=weight(6), v=weight(6, 2),
        ),
        {"w": 6},
    ),
    "weights on the left": (
        Net(lambda s, x: (s.v @ (s.w @ x.T).relu()).T, w=weight(6, 4), v=weight(2, 6)),
        {"w": 6},
    ),
    "einsum": (
        Net(
            lambda s, x: s.o(torch.einsum("ni,oi->no", s.i(x), s.w).relu()),
            i=linear(4, 5), w=weight(6, 5), o=linear(6, 2),
        ),
        {"input": 4, "i": 5, "w": 6},
    ),
    "recurrent weight": (
        Net(
            lambda s, x: s.o(s.h(s.h(s.i(x)).tanh()).tanh()),
            i=linear(4, 6), h=linear(6, 6), o=linear(6, 2),
        ),
        {"input": 4, "i": 6},
    ),
    "tied autoencoder": (
        Net(lambda s, x: F.linear(F.linear(x, s.w).relu(), s.w.t()), w=weight(6, 4)),
        {"w": 6},
    ),
    "padded units": (
        Net(lambda s, x: s.o(F.pad(s.a(x), (1, 2))), a=linear(4, 6), o=linear(9, 2)),
        {"input": 4, "a": 6},
    ),
    "reversed units": (
        Net(lambda s, x: s.o(s.a(x).relu().flip(1)), a=linear(4, 6), o=linear(6, 2)),
        {"input": 4, "a": 6},
    ),
    "selected features": (
        Net(lambda s, x: s.o(s.a(x[:, 1:]).relu()), a=linear(3, 6), o=linear(6, 2)),
        {"input": 4, "a": 6},
    ),
    "a scale that is computed": (
        Net(lambda s, x: s.o(s.a(x) * s.k.abs()), a=linear(4, 6), k=weight(6), o=linear(6, 2)),
        {"input": 4, "a": 6},
    ),
    "parts that meet a fixed vector are whole": (
        Net(
            lambda s, x: s.o((s.a(x).view(len(x), s.parts, 3) * torch.arange(3)).flatten(1)),
            a=linear(4, 6), o=linear(6, 2), parts=2,
        ),
        {"input": 4, "a": 2},
    ),
    "one unit": (mlp(4, 1, 3, 2), {"input": 4, "0": 1, "2": 3}),
    "logits normalised": (
        nn.Sequential(mlp(4, 6, 2), nn.LogSoftmax(1)),
        {"input": 4, "0.0": 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_exactly_removable(name):
    model, expected = EXACT[name]
    plan = trace(model, X)
    assert sizes(plan) == expected
    assert sizes(trace(model, X, check=False)) == expected
    compact(model, half(plan), example=X)


def test_squeeze_and_excite_goes_with_its_channels():
    net = Net(
        lambda s, x: s.o(
            (h := s.c(x).relu()) * s.g(h.mean((2, 3)))[:, :, None, None].sigmoid()
        ).flatten(1),
        c=nn.Conv2d(3, 4, 3), g=mlp(4, 2, 4), o=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    plan = trace(net, IMAGE)
    assert sizes(plan) == {"c": 4, "g.0": 2}
    assert ("g.2.weight", 0, "write") in slots(plan, "c")


def test_a_spatial_gate_is_pinned_but_not_what_it_gates():
    net = Net(
        lambda s, x: s.o((h := s.c(x).relu()) * s.g(h).sigmoid()).flatten(1),
        c=nn.Conv2d(3, 4, 3), g=nn.Conv2d(4, 1, 1), o=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    plan = trace(net, IMAGE)
    assert sizes(plan) == {"c": 4}
    assert "spreads" in plan.left_alone["g.weight"]


def test_sequences_share_features_over_positions():
    x = torch.randn(3, 5, 4)
    plan = trace(mlp(4, 6, 2), x)
    assert sizes(plan) == {"input": 4, "0": 6}
    flat = Net(lambda s, x: s.o(s.a(x.view(-1, 4)).relu()), a=linear(4, 6), o=linear(6, 2))
    assert sizes(trace(flat, x)) == {"input": 4, "a": 6}


def test_units_pass_through_a_layer_that_mixes_positions():
    net = Net(
        lambda s, x: s.o(s.t(s.a(x).transpose(1, 2)).transpose(1, 2).relu().mean(1)),
        a=linear(4, 6), t=linear(5, 5), o=linear(6, 2),
    )  # fmt: skip
    plan = trace(net, torch.randn(3, 5, 4))
    assert sizes(plan) == {"input": 4, "a": 6}
    assert plan.left_alone["t.weight"].endswith("mixes positions, not units")


def test_layers_split_between_readers_make_two_groups():
    net = Net(
        lambda s, x: s.o(torch.cat([s.a(x), s.b(x)], 1)) + s.p(s.a(x)),
        a=linear(4, 3), b=linear(4, 3), o=linear(6, 2), p=linear(3, 2),
    )  # fmt: skip
    plan = trace(net, X)
    assert sizes(plan) == {"input": 4, "a": 3, "b": 3}
    (read,) = [s for s in plan["b"].slots if s.tensor == "o.weight"]
    assert read.owner.tolist() == [-1, -1, -1, 0, 1, 2]


def test_features_of_one_column_share_a_unit():
    plan = trace(mlp(4, 6, 2), X, inputs=[1, 0, 0, 2])
    assert plan["input"].size == 3
    assert plan["input"].slots[0].owner.tolist() == [1, 0, 0, 2]
    keep = {"input": torch.tensor([False, True, True])}
    small = compact(mlp(4, 6, 2), type(half(plan))(plan, keep), example=X)
    assert small[0][0].index.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [([0, 1, 1], "has 3 entries, but the example has 4"), ([0, 1, 1, 3], "from 0 to 3")],
)
def test_wrong_inputs(inputs, message):
    with pytest.raises(BayespareError, match=message):
        trace(mlp(4, 6, 2), X, inputs=inputs)


def test_several_inputs_are_groups_of_their_own():
    net = Net(
        lambda s, x, y: s.o(s.a(x).relu() + s.b(y)), a=linear(4, 6), b=linear(3, 6), o=linear(6, 2)
    )
    plan = trace(net, (X, torch.randn(3, 3)))
    assert sizes(plan) == {"input0": 4, "input1": 3, "a": 6}
    compact(net, half(plan), example=(X, torch.randn(3, 3)))
    with pytest.raises(BayespareError, match="single input"):
        trace(net, (X, torch.randn(3, 3)), inputs=[0, 1, 2, 3])


def test_outputs_in_dicts_and_dataclasses():
    @dataclass
    class Output:
        hidden: Tensor
        logits: Tensor

    net = Net(lambda s, x: {"y": s.o(s.a(x)), "n": None}, a=linear(4, 6), o=linear(6, 2))
    assert sizes(trace(net, X)) == {"input": 4, "a": 6}
    shown = Net(lambda s, x: Output(h := s.a(x), s.o(h)), a=linear(4, 6), o=linear(6, 2))
    plan = trace(shown, X)
    assert sizes(plan) == {"input": 4}
    assert plan.left_alone["a.weight"] == "network output"
    with pytest.raises(BayespareError, match="returns str"):
        trace(Net(lambda s, x: "y", a=linear(4, 2)), X)


def write_slice(h: Tensor) -> Tensor:
    wide = torch.zeros(len(h), 8)
    wide[:, 1:7] = h
    return wide


LEFT_ALONE: dict[str, tuple[nn.Module, Tensor, str, str]] = {
    "layer norm": (
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), mlp(6, 5, 2)),
        X, "0.weight",
        "LayerNorm (in layer 1) normalises over the units (trace with widths=True to remove them)",
    ),
    "functional layer norm": (
        Net(lambda s, x: s.o(F.layer_norm(s.a(x), (6,))), a=linear(4, 6), o=linear(6, 2)),
        X, "a.weight", "native_layer_norm (in the model itself) mixes units with each other",
    ),
    "softmax": (
        Net(lambda s, x: s.o(s.a(x).softmax(1)), a=linear(4, 6), o=linear(6, 2)),
        X, "a.weight", "_softmax (in the model itself) mixes units with each other",
    ),
    "a fixed slice": (
        Net(lambda s, x: s.o(s.a(x)[:, :5]), a=linear(4, 9), o=linear(5, 2)),
        X, "a.bias", "slice (in the model itself) takes fixed positions of the units",
    ),
    "a constant": (
        Net(lambda s, x: s.o(s.a(x) + torch.ones(6)), a=linear(4, 6), o=linear(6, 2)),
        X, "a.weight", "add (in the model itself) meets a tensor of fixed size",
    ),
    "heads": (
        Net(
            lambda s, x: s.o(s.a(x).view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)),
            a=linear(4, 6), o=linear(6, 2),
        ),
        X, "a.weight",
        "layer o: does not run without the removed units (mat1 and mat2 shapes cannot be "
        "multiplied (2x6 and 4x2)); sizes in a forward must come from x.shape or an attribute of "
        "the module",
    ),
    "written in place": (
        Net(lambda s, x: s.o(write_slice(s.a(x))), a=linear(4, 6), o=linear(8, 2)),
        X, "a.weight", "copy_ (in the model itself) writes into a tensor in place",
    ),
    "parametrised": (
        nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
        ),
        X, "0.weight", "addmm (in layer 2) has a weight that is not a plain parameter (if it is "
        "parametrized: torch.nn.utils.parametrize.remove_parametrizations makes it one)",
    ),
    "joined with the input": (
        Net(
            lambda s, x: s.o(s.b(s.a(x).relu()) + x),
            a=linear(4, 6), b=linear(6, 4), o=linear(4, 2),
        ),
        X, "b.weight", "combined with the input of the network",
    ),
    "unused": (
        Net(lambda s, x: s.o(s.a(x)), a=linear(4, 6), o=linear(6, 2), z=linear(3, 3)),
        X, "z.weight", "not used when the model runs",
    ),
    "functional features": (
        Net(lambda s, x: s.o((x @ s.w).relu()), w=weight(4, 6), o=linear(6, 2)),
        X, "input", "read outside a Linear layer, not a list of features",
    ),
    "embedded": (
        Net(
            lambda s, x: s.o(s.a(s.e(x).mean(1)).relu()),
            e=nn.Embedding(9, 4), a=linear(4, 6), o=linear(6, 2),
        ),
        torch.randint(9, (3, 5)), "input",
        "embedding (in layer e) looks it up, which is no list of features",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone_with_the_reason(name):
    model, example, key, reason = LEFT_ALONE[name]
    plan = trace(model, example)
    assert plan.left_alone[key] == reason
    assert not any(s.tensor == key and s.role != "read" for g in plan.groups for s in g.slots)
    compact(model, half(plan), example=example)


def test_a_failed_trial_removal_gives_up_that_group_alone():
    net = Net(
        lambda s, x: s.o((p := s.b(s.a(x).relu()).split(3, 1))[0] * p[1]),
        a=linear(4, 5), b=linear(5, 6), o=linear(3, 2),
    )  # fmt: skip
    assert sizes(trace(net, X, check=False)) == {"input": 4, "a": 5, "b": 3}
    plan = trace(net, X)
    assert sizes(plan) == {"input": 4, "a": 5}
    assert "does not run without the removed units" in plan.left_alone["b.weight"]
    compact(net, half(plan), example=X)


def test_frozen_units_stay():
    model = mlp(4, 6, 5, 2)
    model[0].weight.requires_grad_(False)
    plan = trace(model, X)
    assert sizes(plan) == {"2": 5}
    assert plan.left_alone["0.bias"] == plan.left_alone["input"] == "0.weight is frozen"


def test_nothing_removable_says_why():
    with pytest.raises(UnsupportedStructureError, match=r"0\.weight, 0\.bias: network output"):
        trace(nn.Sequential(nn.Conv2d(3, 2, 3)), IMAGE)
    with pytest.raises(UnsupportedStructureError, match="no parameters"):
        trace(nn.Sequential(), torch.randn(3))


def test_an_example_that_does_not_fit_names_the_layer():
    with pytest.raises(BayespareError, match=r"shape \(3, 5\): layer 0: mat1 and mat2"):
        trace(mlp(4, 6, 2), torch.randn(3, 5))
    with pytest.raises(BayespareError, match="the example is empty"):
        trace(mlp(4, 6, 2), torch.randn(0, 4))


def test_the_model_is_left_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.o = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("variance", torch.ones(4))
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(6))

        def forward(self, x):
            self.calls += 1
            self.last = self.a(x).mean(0)
            self.a.weight.data.clamp_(-0.1, 0.1)
            x = F.batch_norm(x, self.mean, self.variance, training=True)
            return self.o(self.b(self.a(x)))

    model = Counting()
    model.o.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    plan = trace(model, X)
    assert sizes(plan) == {"b": 5}
    compact(model, half(plan), example=X)
    count(model, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in (model, model.a, model.o)] == [True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_plans_survive_json():
    plan = trace(lenet_wide(), torch.randn(2, 1, 28, 28))
    again = Plan.from_json(plan.to_json())
    for mine, theirs in zip(plan.groups, again.groups, strict=True):
        assert (mine.name, mine.size, mine.unit) == (theirs.name, theirs.size, theirs.unit)
        for a, b in zip(mine.slots, theirs.slots, strict=True):
            assert (a.tensor, a.dim, a.role) == (b.tensor, b.dim, b.role)
            assert torch.equal(a.owner, b.owner)


@pytest.mark.parametrize("net", ["resnet20:width=4", "resnet20:width=4,shortcut=b", "wrn:10,1"])
def test_the_layout_of_memory_changes_nothing(net):
    """What training leaves behind: pooling to one position changes strides in place there."""
    model, x = nets.build(net, inputs=(3, 32, 32), outputs=10, seed=0), torch.randn(4, 3, 32, 32)
    plan = trace(model, x)
    assert trace(model.to(memory_format=torch.channels_last), x).to_json() == plan.to_json()
