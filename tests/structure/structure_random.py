"""Random networks of every architecture: convolutional, sequential, and what joins them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import reject
from hypothesis import strategies as st
from structure_zoo import (
    BasicBlock,
    Block,
    Bottleneck,
    Conv1D,
    DenseBlock,
    Grouped,
    Inverted,
    SelfAttention,
    ShuffleBlock,
    SwiGLU,
    randomised,
)
from torch import Tensor, nn


@dataclass
class Sample:
    """A network, a batch for it, and whether norms over units may be cut from under."""

    model: nn.Module
    example: Tensor
    widths: bool


class Gate(nn.Module):
    """Half of the channels gate the other half."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, self.dim)
        return first * second.sigmoid()


class Beside(nn.Module):
    """Two branches, joined along the channels."""

    def __init__(self, first: nn.Module, second: nn.Module, dim: int) -> None:
        super().__init__()
        self.first, self.second, self.dim = first, second, dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x).tanh()], self.dim)


class Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Stock(nn.Module):
    """``nn.MultiheadAttention`` on itself."""

    def __init__(self, width: int, heads: int, weights: bool, **settings: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, **settings)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.weights)[0]


class Tokens(nn.Module):
    """A class token and positions, or neither."""

    def __init__(self, width: int, length: int, token: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width)) if token else None
        self.positions = nn.Parameter(torch.randn(1, length + 2, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return x + self.positions[:, : x.shape[1]]


class Pool(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return {"mean": lambda: x.mean(1), "first": lambda: x[:, 0], "max": lambda: x.amax(1)}[
            self.how
        ]()


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


ACTIVATIONS: list[Callable[[], nn.Module]] = [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish]


def _norm2d(draw: st.DrawFn, width: int) -> list[nn.Module]:
    kind = draw(st.sampled_from(["batch", "batch", "none", "group", "instance", "plain"]))
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if width % g == 0]))
    return {
        "none": lambda: [],
        "batch": lambda: [nn.BatchNorm2d(width)],
        "plain": lambda: [nn.BatchNorm2d(width, affine=False)],
        "instance": lambda: [nn.InstanceNorm2d(width, affine=draw(st.booleans()))],
        "group": lambda: [nn.GroupNorm(groups, width, affine=draw(st.booleans()))],
    }[kind]()


def _conv(draw: st.DrawFn, width: int, new: int, **settings: int) -> nn.Module:
    conv = nn.Conv2d(width, new, 3, padding=1, bias=draw(st.booleans()), **settings)
    return nn.Sequential(conv, *_norm2d(draw, new), draw(st.sampled_from(ACTIVATIONS))())


def _image_block(draw: st.DrawFn, width: int) -> tuple[nn.Module, int]:
    """A block for ``width`` channels (an even number) and how many it returns."""
    new = width + 2 * draw(st.integers(0, 2))
    match draw(st.integers(0, 11)):
        case 0:
            return _conv(draw, width, new), new
        case 1 | 2:
            option = draw(st.sampled_from(["A", "B"]))
            stride = draw(st.integers(1, 2))
            return BasicBlock(width, new, stride, option), new
        case 3:
            return _conv(draw, width, 2 * width, groups=draw(st.sampled_from([2, width]))), (
                2 * width
            )
        case 4:
            return Inverted(width, draw(st.integers(1, 2))), width
        case 5:
            groups = draw(st.sampled_from([1, 2, 4]))
            return Bottleneck(width, 8, groups), width
        case 6:
            return DenseBlock(width, 2, draw(st.integers(1, 2))), width + 2 * 2
        case 7:
            return ShuffleBlock(width, 2), width
        case 8:
            groups = draw(st.sampled_from([1, 1, 2]))
            return nn.ConvTranspose2d(width, new, 2, 2, groups=groups), new
        case 9:
            return nn.Sequential(nn.Conv2d(width, 2 * new, 1), Gate(1)), new
        case 10:
            first, second = _conv(draw, width, new), nn.Conv2d(width, 2, 1)
            return Beside(first, second, 1), new + 2
        case _:
            return Skip(nn.Sequential(_conv(draw, width, new), _conv(draw, new, width))), width


def _image(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    width = 2 * draw(st.integers(1, 3))
    layers: list[nn.Module] = [nn.Conv2d(2, width, 3, padding=1), *_norm2d(draw, width)]
    if draw(st.integers(0, 4)) == 0:  # the image itself goes on, too
        layers, width = [Beside(nn.Identity(), nn.Sequential(*layers), 1)], width + 2
    side = 6
    for _ in range(draw(st.integers(1, 3))):
        block, new = _image_block(draw, width)
        if isinstance(block, DenseBlock):
            new = width + 2 * len(block.layers)
        layers.append(block)
        width = new + new % 2
        if new % 2:
            layers.append(nn.Conv2d(new, width, 1))
        if draw(st.integers(0, 4)) == 0:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    example = torch.randn(2, 2, side, side)
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(draw(st.integers(1, 2))), nn.Flatten()]
    else:
        layers.append(nn.Flatten())
    with torch.no_grad():
        try:
            flat = nn.Sequential(*layers).eval()(example).shape[1]
        except ValueError:  # a map of one pixel has no instance norm
            reject()
    inner = draw(st.integers(1, 5))
    layers += [nn.Linear(flat, inner), nn.ReLU(), nn.Linear(inner, 2)]
    return nn.Sequential(*layers), example


def _attention(draw: st.DrawFn, width: int, heads: int) -> nn.Module:
    match draw(st.integers(0, 4)):
        case 0:
            fused = draw(st.sampled_from(["", "timm", "split", "chunk"]))
            return SelfAttention(width, heads, fused=fused, sdpa=draw(st.booleans()))
        case 1:
            kv = draw(st.sampled_from([k for k in (1, 2, 4) if heads % k == 0]))
            return Grouped(width, heads, kv, native=draw(st.booleans()))
        case 2:
            attention = SelfAttention(width, heads, fused="split")
            attention.qkv, attention.o = Conv1D(width, 3 * width), Conv1D(width, width)
            return attention
        case _:
            return Stock(
                width,
                heads,
                draw(st.booleans()),
                batch_first=draw(st.booleans()),
                bias=draw(st.booleans()),
                add_bias_kv=draw(st.integers(0, 4)) == 0,
            )


def _sequence(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    heads = draw(st.sampled_from([1, 2, 4]))
    width = heads * 2 * draw(st.integers(1, 2))
    length = 4
    kind = draw(st.sampled_from(["features", "tokens", "patches"]))
    start: nn.Module = nn.Linear(3, width)
    example = torch.randn(2, length, 3)
    if kind == "tokens":
        start, example = nn.Embedding(7, width), torch.randint(7, (2, length))
    elif kind == "patches":
        start, example = Patches(width), torch.randn(2, 2, 6, 6)
    layers: list[nn.Module] = [start]
    if draw(st.booleans()):
        layers.append(Tokens(width, length, draw(st.booleans())))
    norm = draw(
        st.sampled_from(
            [
                lambda: nn.LayerNorm(width),
                lambda: nn.LayerNorm(width, bias=False),
                lambda: nn.RMSNorm(width),
                nn.Identity,
            ]
        )
    )
    for _ in range(draw(st.integers(1, 2))):
        inner = draw(st.integers(1, 6))
        mlp: nn.Module = nn.Sequential(
            nn.Linear(width, inner), draw(st.sampled_from(ACTIVATIONS))(), nn.Linear(inner, width)
        )
        if draw(st.booleans()):
            mlp = SwiGLU(width, inner)
        if draw(st.integers(0, 3)) == 0:
            layers.append(
                nn.TransformerEncoderLayer(
                    width, heads, inner, batch_first=True, norm_first=draw(st.booleans())
                )
            )
        else:
            layers.append(Block(_attention(draw, width, heads), mlp, norm))
    layers += [norm(), Pool(draw(st.sampled_from(["mean", "first", "max"]))), nn.Linear(width, 3)]
    return nn.Sequential(*layers), example


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Random networks in float64."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    model, example = draw(st.sampled_from([_image, _sequence]))(draw)
    model = randomised(model)
    example = example.double() if example.is_floating_point() else example
    return Sample(model, example, draw(st.booleans()))


def probe(example: Tensor) -> Tensor:
    """Other inputs of the same kind, for another number of examples."""
    if example.is_floating_point():
        return torch.randn(3, *example.shape[1:], dtype=torch.float64)
    return torch.randint(7, (3, *example.shape[1:]))
