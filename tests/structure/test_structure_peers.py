"""Models of the shapes that torch-pruning's suite tries: each exact, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from structure_nets import half, relative
from structure_zoo import Calls, randomised
from torch import Tensor, nn

from bayespare.errors import UnsupportedStructureError
from bayespare.structure import compact, count, mask, trace
from bayespare.structure.slicing import slots_by_tensor

IMAGE, ROWS, SEQUENCE = torch.randn(2, 3, 8, 8), torch.randn(3, 6), torch.randn(2, 4, 5)
Arguments = Tensor | tuple[Tensor, ...]


def conv(fan_in: int, fan_out: int, size: int = 3, **settings: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, padding=size // 2, **settings)


def unit(fan_in: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(conv(fan_in, fan_out), nn.BatchNorm2d(fan_out), nn.ReLU())


class Own(nn.Module):
    """A layer that no library knows: a scale and a shift for every channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.square().mean(0, keepdim=True)).sqrt() * self.scale + self.shift


class Tokens(nn.Module):
    """A class token and positions without a layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.positions
        return self.head(x.relu()[:, 0])


class ConvNeXt(nn.Module):
    """Depthwise, a norm over channels in last place, a scale for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = conv(3, 6), conv(6, 6, groups=6)
        self.norm, self.grow, self.shrink = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale, self.head = nn.Parameter(torch.randn(6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.shrink(F.gelu(self.grow(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def in_and_out(s: nn.Module, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    h = F.relu(s.a(x) + s.b(z))
    return s.c(h), s.d(h)


def squeezed(s: nn.Module, x: Tensor) -> Tensor:
    x = s.a(x)
    return s.o((x * s.up(s.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()).mean((2, 3)))


# What makes the model, its input, and the layers whose units can be removed.
CASES: dict[str, tuple[Callable[[], nn.Module], Arguments, set[str]]] = {
    "fully connected": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 2)),
        ROWS, {"input", "0", "2"},
    ),
    "concat": (
        lambda: Calls(
            lambda s, x: s.o(torch.cat([s.a(x), s.b(x), s.c(x)], 1).mean((2, 3))),
            a=unit(3, 4), b=conv(3, 5, 1), c=conv(3, 3), o=nn.Linear(12, 2),
        ),
        IMAGE, {"a.0", "b", "c"},
    ),
    "cascaded concat": (
        lambda: Calls(
            lambda s, x: s.o(torch.cat([h := torch.cat([s.a(x), s.b(x)], 1), s.c(h)], 1)),
            a=conv(3, 4), b=conv(3, 4), c=conv(8, 6), o=conv(14, 2),
        ),
        IMAGE, {"a", "b", "c"},
    ),
    "concat along the rows of an image": (
        lambda: Calls(
            lambda s, x: s.o(torch.cat([s.a(x), s.b(x)], 2)), a=conv(3, 4), b=conv(3, 4),
            o=conv(4, 2),
        ),
        IMAGE, {"a"},
    ),
    "concat and split": (
        lambda: Calls(
            lambda s, x: sum(
                layer(part)
                for layer, part in zip(
                    (s.p, s.q), torch.cat([s.a(x), s.b(x)], 1).chunk(2, 1), strict=True
                )
            ),
            a=conv(3, 4), b=conv(3, 4), p=conv(4, 2), q=conv(4, 2),
        ),
        IMAGE, {"a"},
    ),
    "chunk": (
        lambda: Calls(
            lambda s, x: s.o((p := s.a(x).chunk(2, 1))[0] * p[1].sigmoid()), a=conv(3, 8),
            o=conv(4, 2),
        ),
        IMAGE, {"a"},
    ),
    "reshaped to features": (
        lambda: nn.Sequential(
            unit(3, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2)
        ),
        IMAGE, {"0.0", "3"},
    ),
    "squeezed and unsqueezed": (
        lambda: Calls(
            lambda s, x: s.o(s.a(x).mean((2, 3), keepdim=True).squeeze(3).squeeze(2)),
            a=conv(3, 4), o=nn.Linear(4, 2),
        ),
        IMAGE, {"a"},
    ),
    "one output channel": (
        lambda: nn.Sequential(unit(3, 4), conv(4, 1), nn.Sigmoid(), conv(1, 5), conv(5, 1)),
        IMAGE, {"0.0", "1", "3"},
    ),
    "several inputs and outputs": (
        lambda: Calls(
            in_and_out, a=nn.Linear(6, 5), b=nn.Linear(4, 5), c=nn.Linear(5, 2), d=nn.Linear(5, 3)
        ),
        (ROWS, torch.randn(3, 4)), {"input0", "input1", "a"},
    ),
    "unused parameters": (
        lambda: Calls(
            lambda s, x: s.o(s.a(x).relu()), a=nn.Linear(6, 5), never=nn.Linear(7, 7),
            alone=nn.Parameter(torch.randn(3)), o=nn.Linear(5, 2),
        ),
        ROWS, {"input", "a"},
    ),
    "a layer of one's own": (
        lambda: nn.Sequential(nn.Linear(6, 5), Own(5), nn.ReLU(), nn.Linear(5, 2)),
        ROWS, {"input", "0"},
    ),
    "unwrapped parameters": (Tokens, SEQUENCE, {"input", "embed"}),
    "convnext": (ConvNeXt, IMAGE, {"grow"}),
    "transposed": (
        lambda: nn.Sequential(unit(3, 6), nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(), conv(4, 2)),
        IMAGE, {"0.0", "1"},
    ),
    "depthwise and pointwise": (
        lambda: nn.Sequential(unit(3, 6), conv(6, 6, groups=6), conv(6, 4, 1), conv(4, 2)),
        IMAGE, {"0.0", "2"},
    ),
    "grouped": (
        lambda: nn.Sequential(unit(3, 8), conv(8, 8, groups=2), nn.ReLU(), conv(8, 2)),
        IMAGE, {"0.0", "1"},
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(conv(3, 12), nn.PixelShuffle(2), conv(3, 4), conv(4, 2)),
        IMAGE, {"0", "2"},
    ),
    "squeeze and excite": (
        lambda: Calls(squeezed, a=unit(3, 6), down=conv(6, 3, 1), up=conv(3, 6, 1),
                      o=nn.Linear(6, 2)),
        IMAGE, {"a.0", "down"},
    ),
    "dense": (
        lambda: Calls(
            lambda s, x: s.o(torch.cat([x, a := s.a(x), s.b(torch.cat([x, a], 1))], 1)),
            a=unit(3, 4), b=unit(7, 4), o=conv(11, 2),
        ),
        IMAGE, {"a.0", "b.0"},
    ),
    "residual": (
        lambda: Calls(
            lambda s, x: s.o((h := s.a(x)) + s.c(s.b(h))), a=unit(3, 4), b=unit(4, 6),
            c=conv(6, 4), o=conv(4, 2),
        ),
        IMAGE, {"a.0", "b.0"},
    ),
    "recurrent": (
        lambda: Calls(
            lambda s, x: s.o(s.b(s.l(s.a(x))[0]).relu()), a=nn.Linear(5, 6),
            l=nn.LSTM(6, 4, batch_first=True), b=nn.Linear(4, 3), o=nn.Linear(3, 2),
        ),
        SEQUENCE, {"input", "b"},
    ),
}  # fmt: skip


def said(model: nn.Module, example: Arguments) -> Tensor:
    """All outputs in a row."""
    with torch.no_grad():
        found = model.eval()(*example) if isinstance(example, tuple) else model.eval()(example)
    return torch.cat([y.flatten() for y in (found if isinstance(found, tuple) else (found,))])


@pytest.mark.parametrize("name", CASES)
def test_exact_or_refused_by_name(name):
    torch.manual_seed(0)
    make, example, found = CASES[name]
    model = randomised(make()).float()
    plan = trace(model, example)
    assert {group.name for group in plan.groups} == found
    touched = slots_by_tensor(plan).keys() | plan.left_alone.keys()
    assert all(parameter in touched for parameter, _ in model.named_parameters())
    for seed in range(4):
        verdict = half(plan, seed)
        small = compact(model, verdict, example=example)
        assert relative(said(small, example), said(mask(model, verdict), example)) <= 1e-5
        if any(kept < whole for kept, whole in verdict.kept.values()):
            assert count(small, example).parameters < count(model, example).parameters


REFUSED: dict[str, tuple[nn.Module, Arguments, str]] = {
    "split by numbers": (
        Calls(
            lambda s, x: s.p((h := s.a(x).split([2, 6], 1))[0]) + s.q(h[1]), a=conv(3, 8),
            p=conv(2, 2), q=conv(6, 2),
        ),
        IMAGE, r"a\.weight, a\.bias: the model itself: does not run without .* sizes in a",
    ),
    "slices": (
        Calls(
            lambda s, x: s.p((h := s.a(x))[:, :4]) + s.q(h[:, 4:]), a=conv(3, 8), p=conv(4, 2),
            q=conv(4, 2),
        ),
        IMAGE, r"a\.weight, a\.bias: slice \(in the model itself\) takes fixed positions",
    ),
    "recurrent alone": (
        nn.Sequential(nn.LSTM(5, 4, batch_first=True), Calls(lambda s, x: x[0][:, -1])), SEQUENCE,
        r"input, 0\.weight_ih_l0, 0\.weight_hh_l0 and 2 more: LSTM \(in layer 0\) is recurrent",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    model, example, message = REFUSED[name]
    with pytest.raises(UnsupportedStructureError, match=message):
        trace(model, example)
