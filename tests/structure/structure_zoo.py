"""Small networks of every architecture that a trace should follow, written as people write them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Calls(nn.Module):
    """A forward function with the parts it uses."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


class PadShortcut(nn.Module):
    """The parameter-free shortcut: every second pixel, channels of zeros on both sides."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class BasicBlock(nn.Module):
    def __init__(self, width: int, new: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, new, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(new)
        self.conv2 = nn.Conv2d(new, new, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(new)
        self.shortcut: nn.Module = nn.Identity()
        if (width, stride) != (new, 1):
            self.shortcut = (
                PadShortcut(new - width, stride)
                if option == "A"
                else nn.Sequential(nn.Conv2d(width, new, 1, stride), nn.BatchNorm2d(new))
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, option: str = "A") -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(BasicBlock(4, 4, 1, option), BasicBlock(4, 4, 1, option))
        self.layer2 = nn.Sequential(BasicBlock(4, 10, 2, option), BasicBlock(10, 10, 1, option))
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.bn(self.conv(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Bottleneck(nn.Module):
    """The block of ResNeXt and, with a squeeze-excite, of its descendants."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner)
        self.b = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.c, self.cn = nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width)
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cn(self.c(self.b(self.an(self.a(x)).relu()).relu()))
        gate = self.up(F.silu(self.down(y.mean((2, 3), keepdim=True)))).sigmoid()
        return (x + gate * y).relu()


class Inverted(nn.Module):
    """The block of MobileNet."""

    def __init__(self, width: int, multiplier: int = 1) -> None:
        super().__init__()
        inner = 2 * width
        self.grow = nn.Sequential(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner), nn.ReLU6())
        self.depth = nn.Conv2d(inner, inner * multiplier, 3, 1, 1, groups=inner)
        self.norm = nn.BatchNorm2d(inner * multiplier)
        self.shrink = nn.Conv2d(inner * multiplier, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shrink(F.hardswish(self.norm(self.depth(self.grow(x)))))


class ShuffleBlock(nn.Module):
    """Grouped convolutions with a channel shuffle written out."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 1, groups=groups)
        self.b = nn.Conv2d(width, width, 1, groups=groups)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x + self.b(y)


class DenseBlock(nn.Module):
    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width + growth * i),
                nn.ReLU(),
                nn.Conv2d(width + growth * i, growth, 3, padding=1),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class UNet(nn.Module):
    """Transposed convolutions, skip connections and group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 12, 2, 2), nn.InstanceNorm2d(12, affine=True))
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.out = nn.Sequential(nn.Conv2d(14, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        low = self.down2(high).relu()
        return self.out(torch.cat([self.up(low), high], 1))


class SelfAttention(nn.Module):
    """Attention with separate or fused projections; sizes from attributes."""

    def __init__(self, width: int, heads: int, *, fused: str = "", sdpa: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = heads, width // heads, width
        self.fused, self.sdpa, self.scale = fused, sdpa, (width // heads) ** -0.5
        if fused:
            self.qkv = nn.Linear(width, 3 * width, bias=fused != "split")
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        shape = (b, t, self.num_heads, self.head_dim)
        if self.fused == "timm":
            qkv = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            if self.fused == "split":
                parts = self.qkv(x).split(self.split_size, dim=2)
            elif self.fused == "chunk":
                parts = self.qkv(x).chunk(3, -1)
            else:
                parts = self.q(x), self.k(x), self.v(x)
            q, k, v = (p.view(shape).transpose(1, 2) for p in parts)
        if self.sdpa:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * self.scale
            hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, self.num_heads * self.head_dim))


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding, ``(batch, heads, positions, channels)``."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / 10 ** (torch.arange(half) / half)
    angles = torch.cat([angles, angles], -1).to(x)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


class Grouped(nn.Module):
    """Grouped-query attention with rotary embeddings and normalised queries, as in Llama."""

    def __init__(self, width: int, heads: int, kv: int, *, native: bool) -> None:
        super().__init__()
        self.n_head, self.n_kv, self.n_rep, self.head_dim = heads, kv, heads // kv, width // heads
        self.q, self.k, self.v = (
            nn.Linear(width, n * self.head_dim, bias=False) for n in (heads, kv, kv)
        )
        self.qn, self.o = nn.RMSNorm(self.head_dim), nn.Linear(width, width, bias=False)
        self.native = native

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.qn(self.q(x).view(b, t, -1, self.head_dim)).transpose(1, 2)
        k = self.k(x).view(b, t, self.n_kv, self.head_dim).transpose(1, 2)
        v = self.v(x).view(b, t, self.n_kv, self.head_dim).transpose(1, 2)
        q, k = rotated(q), rotated(k)
        if not self.native:
            k, v = (
                h[:, :, None].expand(b, self.n_kv, self.n_rep, t, self.head_dim).flatten(1, 2)
                for h in (k, v)
            )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.native)
        return self.o(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(*s, bias=False) for s in [(width, inner), (width, inner), (inner, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.n1, self.attention, self.n2, self.mlp = norm(), attention, norm(), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class ViT(nn.Module):
    """Patches, a class token, learned positions, blocks, a head on the token."""

    def __init__(self, fused: str = "timm", width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 10, width))
        self.blocks = nn.Sequential(
            *(
                Block(
                    SelfAttention(width, heads, fused=fused, sdpa=fused != "timm"),
                    nn.Sequential(nn.Linear(width, 7), nn.GELU(), nn.Linear(7, width)),
                    lambda: nn.LayerNorm(width),
                )
                for _ in range(2)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions[:, : x.shape[1]]
        return self.head(self.norm(self.blocks(x))[:, 0])


class GPT(nn.Module):
    """Token and position tables, a tied output, weights stored the other way round."""

    def __init__(self, *, tied: bool = True, norm: str = "layer") -> None:
        super().__init__()
        width = 8
        make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm]
        self.wte, self.wpe = nn.Embedding(11, width), nn.Embedding(6, width)
        attention = SelfAttention(width, 2, fused="split")
        attention.qkv, attention.o = Conv1D(width, 3 * width), Conv1D(width, width)
        mlp = nn.Sequential(Conv1D(width, 9), nn.GELU("tanh"), Conv1D(9, width))
        other = Block(Grouped(width, 4, 2, native=True), SwiGLU(width, 5), lambda: make(width))
        self.blocks = nn.Sequential(Block(attention, mlp, lambda: make(width)), other)
        self.norm, self.head = make(width), nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is ``(inputs, outputs)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.randn(outputs) / 10)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return out.view(*x.shape[:-1], self.nf)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.n1, self.n2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 9))
        self.channels = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.n2(x))).mean(1))


class Attends(nn.Module):
    """``nn.MultiheadAttention`` on a stream, or from one to another."""

    def __init__(self, *, cross: bool = False, weights: bool = True, **settings: object) -> None:
        super().__init__()
        self.cross, self.weights = cross, weights
        self.enter = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 4, **settings)
        self.leave = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        other = (x[:, :2], x[:, :2]) if self.attention.kdim != 8 else (h[:, :2], h[:, :2])
        other = other if self.cross else (h, h)
        y = self.attention(h, *other, need_weights=self.weights)[0]
        return self.leave((h + y).relu())


def randomised(model: nn.Module) -> nn.Module:
    """Norms with statistics, gains and shifts of their own; float64."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter)
    return model.double()
