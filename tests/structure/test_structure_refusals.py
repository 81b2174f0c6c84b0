"""What cannot be removed exactly is refused by name: whole models, and layers one by one."""

import pytest
import torch
import torch.nn.functional as F
from structure_nets import half, mlp, outputs, relative
from structure_zoo import Calls, randomised
from torch import Tensor, nn

from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure import Verdict, compact, mask, trace

X, IMAGE, SEQUENCE = torch.randn(3, 4), torch.randn(2, 3, 12, 12), torch.randn(2, 4, 5)


def linear(*sizes: int) -> nn.Linear:
    return nn.Linear(*sizes)


WHOLE: dict[str, tuple[object, Tensor, str]] = {
    "compiled": (
        torch.compile(mlp(4, 6, 2), backend="eager"), X,
        r"the model is wrapped in OptimizedModule: give model\._orig_mod",
    ),
    "parallel": (nn.DataParallel(mlp(4, 6, 2)), X, r"wrapped in DataParallel: give model\.module"),
    "a part that is compiled": (
        nn.Sequential(torch.compile(mlp(4, 6, 2), backend="eager")), X,
        "layer 0 is wrapped in OptimizedModule",
    ),
    "a path chosen by the data": (
        nn.Sequential(linear(4, 6), Calls(lambda s, x: x if x.mean() > 0 else -x), linear(6, 2)),
        X, r"^layer 1: its path depends on the data \(_local_scalar_dense",
    ),
    "a path chosen by embedded tokens": (
        Calls(
            lambda s, t: s.o(h if bool((h := s.e(t)).sum() > 0) else -h),
            e=nn.Embedding(5, 4), o=linear(4, 2),
        ),
        torch.randint(5, (3, 2)), "^the model itself: its path depends on the data",
    ),
    "an example that does not fit": (
        nn.Sequential(linear(4, 6), Calls(lambda s, x: s.l(x), l=linear(5, 2))), X,
        r"does not run on an example of shape \(3, 4\): layer 1\.l: mat1 and mat2",
    ),
    "an example of another type": (
        nn.Sequential(nn.Embedding(5, 4), linear(4, 2)), X, r"shape \(3, 4\): layer 0: Expected",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_refused():
    scripted = torch.jit.trace(mlp(4, 6, 2), X)
    with pytest.raises(BayespareError, match="TopLevelTracedModule: give the Python module"):
        trace(scripted, X)


@pytest.mark.parametrize("name", WHOLE)
def test_models_refused_whole(name):
    model, example, message = WHOLE[name]
    with pytest.raises(BayespareError, match=message):
        trace(model, example)


def test_a_path_chosen_by_a_padding_mask_is_no_surprise():
    model = Calls(
        lambda s, x, m: s.o(s.a(x) * m if not bool(m.all()) else s.a(x)),
        a=linear(4, 6), o=linear(6, 2),
    )  # fmt: skip
    plan = trace(model, (X, torch.ones(3, 1, dtype=torch.int64)))
    assert "a" in {group.name for group in plan.groups}


class Named(nn.Module):
    """Halves of a layer, whose sizes the module knows by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.second = linear(4, 12), 4, 8
        self.o, self.r = linear(4, 2), linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.a(x).split([self.first, self.second], 1)
        return self.o(p.relu()) + self.r(q.tanh())


class Timm(nn.Module):
    """Attention that takes the width of what leaves from what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.num_heads = linear(8, 24), linear(8, 8), 2

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, n, c))


class Windows(nn.Module):
    """Shifted windows with a table of position biases."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.heads = linear(8, 24), linear(8, 8), 2
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("places", torch.randint(9, (4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, (1, 1), (1, 2)).view(b, h // 2, 2, w // 2, 2, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        qkv = self.qkv(x).reshape(len(x), 4, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.places.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        y = ((q @ k.mT * 0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        y = self.o(y).view(b, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(y.reshape(b, h, w, -1), (-1, -1), (1, 2))


TURNS = torch.polar(torch.ones(4, 1, 2), torch.randn(4, 1, 2)).to(torch.complex128)


class Turned(nn.Module):
    """Rotary positions written with complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = linear(8, 8), linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], -1, 2, 2)
        q = torch.view_as_real(torch.view_as_complex(q) * TURNS).flatten(3).transpose(1, 2)
        return self.o(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2))


def lstm(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        linear(5, 8), Calls(lambda s, x: s.l(x)[0], l=kind(8, 6, batch_first=True)), linear(6, 7),
        nn.ReLU(), linear(7, 2),
    )  # fmt: skip


def around(middle: nn.Module) -> nn.Module:
    return nn.Sequential(linear(5, 8), middle, linear(8, 2))


def between(middle: nn.Module, out: int = 6) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), middle, nn.Conv2d(out, 5, 1), nn.Conv2d(5, 2, 1))


MIXES = "mixes units with each other"
# Model, example, sizes of the groups, and a parameter that stays with the beginning of the reason.
PARTS: dict[str, tuple[nn.Module, Tensor, dict[str, int], str, str]] = {
    "lstm": (lstm(nn.LSTM), SEQUENCE, {"input": 5, "2": 7}, "1.l.weight_hh_l0",
             "LSTM (in layer 1.l) is recurrent: the sizes of its state are fixed"),
    "gru": (lstm(nn.GRU), SEQUENCE, {"input": 5, "2": 7}, "0.weight", "GRU (in layer 1.l) is rec"),
    "rnn": (lstm(nn.RNN), SEQUENCE, {"input": 5, "2": 7}, "0.weight", "RNN (in layer 1.l) is rec"),
    "parts of fixed sizes": (
        Calls(
            lambda s, x: s.o((p := s.a(x).split([4, 8], 1))[0]) + s.r(p[1]),
            a=linear(4, 12), o=linear(4, 2), r=linear(8, 2),
        ),
        X, {"input": 4}, "a.weight", "the model itself: does not run without the removed units",
    ),
    "parts whose sizes have names": (
        Named(), X, {"input": 4, "a": 4, "a#2": 8}, "o.weight", "network output",
    ),
    "heads whose width is that of the stream": (
        around(Timm()), SEQUENCE, {"input": 5, "1.o": 8}, "1.qkv.weight",
        "layer 1: does not run without the removed units",
    ),
    "windows with a table of biases": (
        around(Windows()), torch.randn(2, 4, 4, 5), {"input": 5, "0": 8, "1": 2, "1.o": 8},
        "2.weight", "network output",
    ),
    "complex numbers": (
        around(Turned()), SEQUENCE, {"input": 5, "0": 8, "1": 2, "1.o": 8}, "2.weight",
        "network output",
    ),
    "unwrapped parameters": (
        Calls(
            lambda s, x: s.o((s.l(x) * s.a + s.b).relu()),
            l=linear(4, 6), o=linear(6, 2), a=nn.Parameter(torch.randn(1, 6)),
            b=nn.Parameter(torch.randn(6)),
        ),
        X, {"input": 4, "l": 6}, "o.weight", "network output",
    ),
    "an unwrapped parameter on the image": (
        Calls(
            lambda s, x: s.o(s.g * s.c(x * s.p).relu()), p=nn.Parameter(torch.randn(1, 3, 12, 12)),
            c=nn.Conv2d(3, 6, 3), g=nn.Parameter(torch.randn(6, 1, 1)), o=nn.Conv2d(6, 2, 1),
        ),
        IMAGE, {"c": 6}, "p", "acts on the input of the network",
    ),
    "bilinear": (
        Calls(lambda s, x: s.o(s.b(s.a(x), s.a(x))), a=linear(4, 6), b=nn.Bilinear(6, 6, 3),
              o=linear(3, 2)),
        X, {"input": 4}, "a.weight", "_trilinear (in layer b) is not understood",
    ),
    "a bag of embeddings": (
        nn.Sequential(nn.EmbeddingBag(9, 6), linear(6, 5), linear(5, 2)), torch.randint(9, (3, 4)),
        {"1": 5}, "0.weight", "_embedding_bag (in layer 0) is not understood",
    ),
    "weight norm": (
        nn.Sequential(
            linear(4, 6), nn.utils.parametrizations.weight_norm(linear(6, 5)), mlp(5, 3, 2)
        ),
        X, {"input": 4, "2.0": 3}, "0.weight",
        "addmm (in layer 1) has a weight that is not a plain",
    ),
    "spectral norm": (
        nn.Sequential(
            linear(4, 6), nn.utils.parametrizations.spectral_norm(linear(6, 5)), mlp(5, 3, 2)
        ),
        X, {"2.0": 3}, "0.weight",
        "mv (in layer 1.parametrizations.weight.0) is not understood",
    ),
    "local response": (
        between(nn.LocalResponseNorm(3)), IMAGE, {"2": 5}, "0.weight",
        f"avg_pool3d (in layer 1) {MIXES}",
    ),
    "the largest channel": (
        between(Calls(lambda s, x: x.amax(1, keepdim=True)), out=1), IMAGE, {"2": 5}, "0.bias",
        f"amax (in layer 1) {MIXES}",
    ),
    "one norm over all channels": (
        between(nn.GroupNorm(1, 6)), IMAGE, {"2": 5}, "0.weight",
        f"native_group_norm (in layer 1) {MIXES}",
    ),
    "patches of a map": (
        between(Calls(lambda s, x: F.fold(F.unfold(x, 2), (10, 10), 2))), IMAGE, {"2": 5},
        "0.weight", "im2col (in layer 1) is not understood",
    ),
    "linear attention": (
        around(
            Calls(
                lambda s, x: s.o(s.q(x).softmax(-1) @ (s.k(x).mT.softmax(-1) @ s.v(x))),
                q=linear(8, 6), k=linear(8, 6), v=linear(8, 6), o=linear(6, 8),
            )
        ),
        SEQUENCE, {"input": 5, "0": 8, "1.o": 8}, "1.q.weight", f"_softmax (in layer 1) {MIXES}",
    ),
    "an index out of order": (
        Calls(lambda s, x: s.o(s.a(x)[:, [2, 0, 1]]), a=linear(4, 6), o=linear(3, 2)),
        X, {"input": 4}, "a.weight",
        "index (in the model itself) takes fixed positions of the units",
    ),
    "frozen": (
        nn.Sequential(linear(4, 6), nn.ReLU(), linear(6, 5).requires_grad_(False), nn.ReLU(),
                      linear(5, 7), nn.ReLU(), linear(7, 2)),
        X, {"input": 4, "4": 7}, "2.weight", "2.weight is frozen",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_exact_or_refused_by_name(name):
    model, example, sizes, key, reason = PARTS[name]
    torch.manual_seed(0)
    model = randomised(model)
    example = example.double() if example.is_floating_point() else example
    plan = trace(model, example)
    assert {g.name: g.size for g in plan.groups} == sizes
    assert plan.left_alone[key].startswith(reason)
    x = torch.randn_like(example) if example.is_floating_point() else example.flip(0)
    for seed in range(3):
        small = compact(model, half(plan, seed), example=example)
        assert relative(outputs(small, x), outputs(mask(model, half(plan, seed)), x)) <= 1e-9


def test_what_nobody_reads_costs_nothing():
    model = Calls(
        lambda s, x: (s.o(h := s.a(x)), h.softmax(1).mean())[0], a=linear(4, 6), o=linear(6, 2)
    )
    assert trace(model, X)["a"].size == 6
    read = Calls(lambda s, x: s.o(h := s.a(x)) + h.mean(), a=linear(4, 6), o=linear(6, 2))
    assert trace(read, X).left_alone["a.weight"].startswith("mean (in the model itself) mixes")


class Quiet(nn.Module):
    """Attention that adds nothing yet; as many heads as channels in each."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o, self.head_dim = linear(8, 4), linear(4, 8), 2
        nn.init.zeros_(self.o.weight)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)
        return x + self.o(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2))


def test_the_proof_does_not_depend_on_the_weights():
    torch.manual_seed(0)
    model = around(Quiet())
    plan = trace(model, SEQUENCE)
    assert plan["1"].size == 2
    assert not any(fixture.kind == "count" for fixture in plan["1"].fixtures)
    keep = {"1": torch.tensor([False, True])}
    nn.init.normal_(model[1].o.weight)
    assert compact(model, Verdict(plan, keep), example=SEQUENCE)[1].head_dim == 2


def test_the_message_says_what_to_do():
    with pytest.raises(UnsupportedStructureError, match=r"decide with torch\.where"):
        trace(Calls(lambda s, x: s.o(x if x.sum() > 0 else -x), o=linear(4, 2)), X)
