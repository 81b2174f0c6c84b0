"""What a trace finds in networks of every architecture, and that all of it can be removed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from structure_nets import half, outputs, relative
from structure_zoo import (
    GPT,
    Attends,
    BasicBlock,
    Bottleneck,
    Calls,
    Conv1D,
    DenseBlock,
    Grouped,
    Inverted,
    Mixer,
    ResNet,
    SelfAttention,
    ShuffleBlock,
    SwiGLU,
    UNet,
    ViT,
    randomised,
)
from torch import Tensor, nn
from torch.nn import functional as F

from bayespare.structure import Plan, Select, Verdict, compact, count, mask, trace
from bayespare.structure.compare import difference
from bayespare.structure.narrow import NarrowAttention, NarrowLayerNorm, NarrowRMSNorm

IMAGE, SEQUENCE = torch.randn(2, 3, 12, 12), torch.randn(2, 4, 5)
TOKENS = torch.randint(11, (2, 6))


@dataclass
class Case:
    """A network, what it reads, and the size of every group that should be found."""

    make: Callable[[], nn.Module]
    example: Tensor
    sizes: dict[str, int]
    heads: set[str] = field(default_factory=set)
    widths: bool = False


def between(*middle: nn.Module, out: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *middle, nn.Conv2d(out, 2, 1))


def around(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), middle, nn.Linear(8, 2))


def encoder(**settings: object) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 4, 6, batch_first=True, **settings)
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Linear(8, 2),
    )


BLOCKS = ("blocks.0", "blocks.1")
VIT = {f"{b}.{part}": n for b in BLOCKS for part, n in [("attention", 3), ("mlp.0", 7)]}
ATTENTIONS = {f"{b}.attention" for b in BLOCKS}
GPT_SIZES = {
    "blocks.0.attention": 2, "blocks.0.mlp.0": 9, "blocks.1.attention": 2, "blocks.1.mlp.gate": 5,
}  # fmt: skip
IN = {"input": 5}

CASES: dict[str, Case] = {
    "residual, projections": Case(
        lambda: ResNet("B"), IMAGE,
        {"conv": 4, "layer1.0.conv1": 4, "layer1.1.conv1": 4, "layer2.0.conv1": 10,
         "layer2.0.conv2": 10, "layer2.1.conv1": 10},
    ),
    "residual, padded shortcut": Case(
        lambda: ResNet("A"), IMAGE,
        {"conv": 4, "layer1.0.conv1": 4, "layer1.1.conv1": 4, "layer2.0.conv1": 10,
         "layer2.0.conv2": 6, "layer2.1.conv1": 10},
    ),
    "many groups": Case(
        lambda: between(Bottleneck(8, 16, 8)), IMAGE, {"0": 8, "1.a": 8, "1.down": 2}
    ),
    "few groups": Case(
        lambda: between(Bottleneck(8, 16, 2)), IMAGE, {"0": 8, "1.a": 8, "1.b": 8, "1.down": 2}
    ),
    "depthwise": Case(lambda: between(Inverted(8)), IMAGE, {"0": 8, "1.grow.0": 16}),
    "depthwise, two for one": Case(
        lambda: between(Inverted(8, 2)), IMAGE, {"0": 8, "1.grow.0": 16}
    ),
    "depthwise on the image": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)),
        IMAGE, {"1": 4},
    ),
    "shuffled by hand": Case(lambda: between(ShuffleBlock(8, 2)), IMAGE, {"0": 4, "1.a": 2}),
    "shuffled by a layer": Case(
        lambda: between(nn.Conv2d(8, 8, 1, groups=2), nn.ChannelShuffle(2)), IMAGE, {"0": 4, "1": 4}
    ),
    "pixel shuffle": Case(lambda: between(nn.PixelShuffle(2), out=2), IMAGE, {"0": 2}),
    "pixel unshuffle": Case(lambda: between(nn.PixelUnshuffle(2), out=32), IMAGE, {"0": 8}),
    "dense": Case(
        lambda: between(DenseBlock(8, 4, 3), out=20), IMAGE,
        {"0": 8, "1.layers.0.2": 4, "1.layers.1.2": 4, "1.layers.2.2": 4},
    ),
    "encoder and decoder": Case(
        UNet, IMAGE, {"down1.0": 4, "down2.0": 12, "up": 6, "out.0": 5}
    ),
    "transposed, grouped": Case(
        lambda: between(nn.ConvTranspose2d(8, 12, 2, groups=2), out=12), IMAGE, {"0": 4, "1": 6}
    ),
    "transposed, depthwise": Case(
        lambda: between(nn.ConvTranspose2d(8, 16, 2, groups=8), out=16), IMAGE, {"0": 8}
    ),
    "vit": Case(ViT, IMAGE, VIT, ATTENTIONS),
    "vit, separate projections": Case(lambda: ViT(""), IMAGE, VIT, ATTENTIONS),
    "vit, chunked": Case(lambda: ViT("chunk"), IMAGE, VIT, ATTENTIONS),
    "vit, the stream too": Case(ViT, IMAGE, {"patch": 12, **VIT}, ATTENTIONS, widths=True),
    "mixer": Case(Mixer, IMAGE, {"tokens.0": 5, "channels.0": 6}),
    "gpt": Case(GPT, TOKENS, GPT_SIZES, ATTENTIONS),
    "gpt, the stream too": Case(GPT, TOKENS, {"wte": 8, **GPT_SIZES}, ATTENTIONS, widths=True),
    "gpt, root mean squares": Case(
        lambda: GPT(norm="rms", tied=False), TOKENS, {"wte": 8, **GPT_SIZES}, ATTENTIONS, True
    ),
    "grouped queries": Case(
        lambda: around(Grouped(8, 4, 2, native=True)), SEQUENCE,
        {**IN, "0": 8, "2": 2, "2.o": 8}, {"2"},
    ),
    "repeated keys": Case(
        lambda: around(Grouped(8, 4, 2, native=False)), SEQUENCE,
        {**IN, "0": 8, "2": 2, "2.o": 8}, {"2"},
    ),
    "one key for all": Case(
        lambda: around(Grouped(8, 4, 1, native=True)), SEQUENCE,
        {**IN, "0": 8, "2": 4, "2.o": 8}, {"2"},
    ),
    "scores written out": Case(
        lambda: around(SelfAttention(8, 2, sdpa=False)), SEQUENCE,
        {**IN, "0": 8, "2": 2, "2.o": 8}, {"2"},
    ),
    "stock attention": Case(
        lambda: Attends(batch_first=True), SEQUENCE, {**IN, "enter": 8, "attention": 4},
        {"attention"},
    ),
    "stock attention, positions first": Case(
        lambda: Attends(weights=False), SEQUENCE, {**IN, "enter": 8, "attention": 4}, {"attention"}
    ),
    "stock attention to another": Case(
        lambda: Attends(cross=True, batch_first=True, bias=False), SEQUENCE,
        {**IN, "enter": 8, "attention": 4}, {"attention"},
    ),
    "stock attention, other widths": Case(
        lambda: Attends(cross=True, batch_first=True, kdim=5, vdim=5), SEQUENCE,
        {"enter": 8, "attention": 4}, {"attention"},
    ),
    "stock attention, learnt key": Case(
        lambda: Attends(batch_first=True, add_bias_kv=True), SEQUENCE,
        {**IN, "enter": 8, "attention": 4}, {"attention"},
    ),
    "stock attention, key of zeros": Case(
        lambda: Attends(batch_first=True, add_zero_attn=True), SEQUENCE, {**IN, "enter": 8}
    ),
    "stock encoder": Case(
        encoder, SEQUENCE,
        {**IN, "1.layers.0.self_attn": 4, "1.layers.0.linear1": 6, "1.layers.1.self_attn": 4,
         "1.layers.1.linear1": 6},
        {"1.layers.0.self_attn", "1.layers.1.self_attn"},
    ),
    "stock encoder, the stream too": Case(
        lambda: encoder(norm_first=True, activation="gelu"), SEQUENCE,
        {**IN, "0": 8, "1.layers.0.self_attn": 4, "1.layers.0.linear1": 6,
         "1.layers.1.self_attn": 4, "1.layers.1.linear1": 6},
        {"1.layers.0.self_attn", "1.layers.1.self_attn"}, True,
    ),
    "gated": Case(lambda: around(SwiGLU(8, 5)), SEQUENCE, {**IN, "0": 8, "2.gate": 5, "2.down": 8}),
    "weights the other way round": Case(
        lambda: around(nn.Sequential(Conv1D(8, 7), nn.GELU(), Conv1D(7, 8))), SEQUENCE,
        {**IN, "0": 8, "2.0": 7, "2.2": 8},
    ),
    "a layer called twice": Case(
        lambda: Calls(
            lambda s, x: s.o(s.n(s.c(s.n(s.c(s.i(x))).relu())).mean((2, 3))),
            i=nn.Conv2d(3, 6, 1), c=nn.Conv2d(6, 6, 3), n=nn.BatchNorm2d(6), o=nn.Linear(6, 2),
        ),
        IMAGE, {"i": 6},
    ),
    "rows as units": Case(
        lambda: Calls(lambda s, x: s.o((h := s.a(x)) @ h.mT @ h), a=nn.Linear(5, 6),
                      o=nn.Linear(6, 2)),
        SEQUENCE, {**IN, "a": 6},
    ),
    "embeddings": Case(
        lambda: nn.Sequential(nn.Embedding(11, 7), nn.ReLU(), nn.Linear(7, 4), nn.Linear(4, 2)),
        TOKENS, {"0": 7, "2": 4},
    ),
}  # fmt: skip


def some(plan: Plan, seed: int) -> Verdict:
    """A random half, one unit alone, or nothing of every group; half of the groups whole."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for number, group in enumerate(plan.groups):
        keep[group.name] = torch.rand(group.size, generator=generator) < 0.5
        if (number + seed) % 3 == 1:
            keep[group.name] = torch.arange(group.size) == seed % group.size
        elif (number + seed) % 3 == 2:
            keep[group.name][:] = seed > 2
    return Verdict(plan, keep)


@pytest.mark.parametrize("name", CASES)
def test_found_and_exactly_removable(name):
    torch.manual_seed(0)
    case = CASES[name]
    model = randomised(case.make())
    example = case.example.double() if case.example.is_floating_point() else case.example
    plan = trace(model, example, widths=case.widths)
    assert {g.name: g.size for g in plan.groups} == case.sizes
    assert {g.name for g in plan.groups if g.unit == "head"} == case.heads
    x = torch.randn_like(example) if example.is_floating_point() else example.flip(0)
    for seed in range(5):
        verdict = some(plan, seed)
        small = compact(model, verdict, example=example)
        assert relative(outputs(small, x), outputs(mask(model, verdict), x)) <= 1e-9
        half = {name: (kept + 1) // 2 for name, (_, kept) in verdict.kept.items()}
        if any(kept < half[name] for name, (kept, _) in verdict.kept.items()):
            assert count(small, example).parameters < count(model, example).parameters


def test_attributes_count_what_is_left():
    torch.manual_seed(0)
    for make, name, expected in [
        (lambda: ViT("timm"), "blocks.0.attention", {"num_heads": 2, "head_dim": 4}),
        (lambda: ViT("split"), "blocks.0.attention", {"num_heads": 2, "split_size": 8}),
    ]:
        model = make()
        plan = trace(model, IMAGE)
        small = compact(model, Verdict(plan, {name: torch.tensor([True, False, True])}))
        module = small.get_submodule(name)
        assert {key: getattr(module, key) for key in expected} == expected
    model = around(Grouped(8, 4, 2, native=False))
    small = compact(model, Verdict(trace(model, SEQUENCE), {"2": torch.tensor([True, False])}))
    assert (small[2].n_head, small[2].n_kv, small[2].n_rep, small[2].head_dim) == (2, 1, 2, 2)
    assert (small[2].q.out_features, small[2].k.out_features, small[2].o.in_features) == (4, 2, 4)


def test_stock_sizes_are_brought_up_to_date():
    torch.manual_seed(0)
    model = UNet()
    plan = trace(model, IMAGE)
    keep = {
        "down1.0": torch.tensor([True, False, False, True]),
        "down2.0": torch.arange(12) < 5,
        "up": torch.arange(6) < 2,
    }
    small = compact(model, Verdict(plan, keep), example=IMAGE)
    assert (small.down1[1].num_groups, small.down1[1].num_channels) == (2, 4)
    assert small.down2[1].num_features == 5
    assert (small.up.in_channels, small.up.out_channels, small.up.weight.shape[:2]) == (
        5,
        2,
        (5, 2),
    )
    depthwise = between(Inverted(8))
    plan = trace(depthwise, IMAGE)
    small = compact(depthwise, Verdict(plan, {"1.grow.0": torch.arange(16) % 3 == 0}))
    assert (small[1].depth.groups, small[1].depth.in_channels, small[1].depth.out_channels) == (
        6, 6, 6,
    )  # fmt: skip
    table = nn.Sequential(nn.Embedding(11, 7), nn.Linear(7, 2))
    small = compact(table, Verdict(trace(table, TOKENS), {"0": torch.arange(7) < 3}))
    assert (small[0].embedding_dim, small[0].num_embeddings) == (3, 11)


def test_the_padded_shortcut_is_followed_by_a_selection():
    torch.manual_seed(0)
    model = ResNet("A")
    plan = trace(model, IMAGE)
    keep = {
        "conv": torch.tensor([True, False, True, True]),
        "layer2.0.conv2": torch.tensor([True, False, False, True, True, False]),
    }
    small = compact(model, Verdict(plan, keep), example=IMAGE)
    pair = small.layer2[0].shortcut
    assert isinstance(pair[1], Select)
    # Of 3 zeros, the 3 channels left and 3 zeros: the first zero, all channels, two of the last.
    assert (pair[1].index.tolist(), pair[1].dim) == ([0, 3, 4, 5, 6, 7], 1)
    assert small.fc.in_features == 6
    without = compact(model, Verdict(plan, {"conv": keep["conv"]}), example=IMAGE)
    assert not any(isinstance(module, Select) for module in without.modules())


class Inside(BasicBlock):
    """Pads in the middle of its forward, always by as much or by as much as is missing."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__(8, 11, 2, "B")
        self.shortcut, self.fixed = nn.Identity(), fixed

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        more = 3 if self.fixed else y.shape[1] - x.shape[1]
        return y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, more))


def test_what_pads_inside_a_longer_forward_may_adapt():
    model = between(Inside(fixed=True), out=11)
    plan = trace(model, IMAGE)
    assert {g.name: g.size for g in plan.groups} == {"0": 8, "1.conv1": 11}
    (rows,) = [slot for slot in plan["0"].slots if slot.tensor == "1.conv2.weight"]
    assert rows.owner.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1]
    model = between(Inside(fixed=False), out=11)
    plan = trace(model, IMAGE)
    assert {g.name: g.size for g in plan.groups} == {"0": 8, "1.conv1": 11, "1.conv2": 3}
    for seed in range(3):
        small = compact(model, half(plan, seed), example=IMAGE)
        assert not any(isinstance(module, Select) for module in small.modules())


def test_norms_keep_their_old_width():
    torch.manual_seed(0)
    for norm, kind in [("layer", NarrowLayerNorm), ("rms", NarrowRMSNorm)]:
        model = GPT(norm=norm)
        plan = trace(model, TOKENS, widths=True)
        small = compact(model, Verdict(plan, {"wte": torch.arange(8) < 5}), example=TOKENS)
        assert type(small.norm) is kind
        assert (small.norm.width, small.norm.normalized_shape) == (8, (5,))
        assert "width=8" in repr(small.norm)
        again = trace(small, TOKENS, widths=True)
        assert again["wte"].size == 5
        twice = compact(small, Verdict(again, {"wte": torch.arange(5) > 1}), example=TOKENS)
        assert (twice.norm.width, twice.norm.normalized_shape) == (8, (3,))
        untouched = compact(model, Verdict(plan, {"blocks.0.mlp.0": torch.arange(9) < 5}))
        assert not isinstance(untouched.norm, kind)


def test_compact_attention_can_be_cut_again():
    torch.manual_seed(0)
    model = Attends(batch_first=True)
    keep = {"attention": torch.tensor([True, False, True, True])}
    small = compact(model, Verdict(trace(model, SEQUENCE), keep), example=SEQUENCE)
    assert type(small.attention) is NarrowAttention
    assert (small.attention.num_heads, small.attention.in_proj_weight.shape) == (3, (18, 8))
    plan = trace(small, SEQUENCE)
    assert {g.name: g.size for g in plan.groups} == {"input": 5, "enter": 8, "attention": 3}
    keep = {"attention": torch.tensor([False, True, False]), "enter": torch.arange(8) < 6}
    assert compact(small, Verdict(plan, keep), example=SEQUENCE).attention.num_heads == 1


@pytest.mark.parametrize(
    "name",
    [
        "residual, padded shortcut",
        "depthwise",
        "gpt, the stream too",
        "stock encoder, the stream too",
    ],
)
def test_a_fresh_network_takes_the_shape_and_the_weights(name):
    torch.manual_seed(0)
    case = CASES[name]
    model = randomised(case.make())
    example = case.example.double() if case.example.is_floating_point() else case.example
    plan = trace(model, example, widths=case.widths)
    verdict = half(plan)
    small = compact(model, verdict, example=example)
    with torch.device("meta"):
        fresh = case.make().double()
    written = Plan.from_json(plan.to_json())
    again = compact(fresh, Verdict(written, verdict.keep))
    again.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(outputs(again, example), outputs(small, example))
    assert torch.equal(outputs(pickle.loads(pickle.dumps(again)), example), outputs(small, example))


def test_an_image_may_be_padded_before_the_first_layer():
    """Its features differ along both axes, and each line gets the same margin."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ZeroPad2d((1, 2, 2, 1)),
        nn.Conv2d(2, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 7 * 7, 3),
    )
    x = torch.randn(4, 2, 6, 6)
    plan = trace(model, x)
    assert [(group.name, group.size) for group in plan.groups] == [("1", 5)]
    verdict = Verdict(plan, {"1": torch.tensor([True, False, True, True, False])})
    assert difference(mask(model, verdict), compact(model, verdict, example=x), x) < 1e-5
