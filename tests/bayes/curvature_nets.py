"""Small networks that use parameters in every way the curvature pass must follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 3


class Gpt2Linear(nn.Module):
    """``x W + b`` on flattened tokens, the weight stored as (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Decoder(nn.Module):
    """Tokens, positions that no batch dimension has, transposed layers, a tied head."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4, padding_idx=2)
        self.places = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.up = Gpt2Linear(4, 5)
        self.down = Gpt2Linear(5, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(x.shape[1])
        x = self.tokens(x) + self.places(position)
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return self.head(x).cumsum(1)[:, -1]


class Vision(nn.Module):
    """A class token, learned positions, a stock transformer layer, a hand-written norm."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(2, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.places = nn.Parameter(torch.randn(1, 5, 4))
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.5, batch_first=batch_first)
        self.scale = nn.Parameter(torch.randn(4))
        self.shift = nn.Parameter(torch.randn(4))
        self.rms = nn.RMSNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.repeat(len(x), 1, 1), self.embed(x)], 1) + self.places
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.rms(self.layer(x) * self.scale - self.shift)
        return self.head(x.mean(1 if self.batch_first else 0))


class Cross(nn.Module):
    """Attention over another sequence of another width: separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
        self.same = nn.MultiheadAttention(4, 2, bias=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        query, other = x[..., :4].transpose(0, 1), x[..., 3:].transpose(0, 1)
        mixed, _ = self.attention(query, other, other, need_weights=False)
        mixed, _ = self.same(mixed, query, query)
        return self.head(mixed[0])


class Recurrent(nn.Module):
    """One layer used at every step, and one matrix that is multiplied from the right."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(3, 3)
        self.mix = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        state = x[:, 0] @ self.mix
        for t in range(1, x.shape[1]):
            state = torch.tanh(self.step(state) + x[:, t] @ self.mix)
        return state


class Frames(nn.Module):
    """Frames folded into the batch, first examples first, then positions first."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv1d(1, 2, 3)
        self.read = nn.Linear(4, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        count, frames = x.shape[:2]
        seen = torch.tanh(self.look(x.reshape(count * frames, 1, -1)))
        by_frame = seen.view(count, frames, -1).transpose(0, 1)
        read = torch.tanh(self.read(by_frame.reshape(frames * count, -1)))
        return self.head(read.view(frames, count, -1).prod(0))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=2),
        nn.GroupNorm(3, 6),
        nn.PReLU(6),
        nn.Conv2d(6, 6, 3, groups=6, padding="same", bias=False),
        nn.ConvTranspose2d(6, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def instances() -> nn.Module:
    """Statistics of each example, and running ones."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.InstanceNorm2d(3, affine=True),
        nn.Tanh(),
        nn.Conv2d(3, 2, 3),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def upsampled() -> nn.Module:
    """Output paddings of a stride and more: positions that only the bias reaches."""
    return nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, stride=1, dilation=2, output_padding=1, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, (2, 3), stride=(2, 1), padding=1, dilation=3, output_padding=2),
        nn.Flatten(),
        nn.Linear(504, CLASSES),
    )


def signals() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"),
        nn.BatchNorm1d(3),
        nn.PReLU(),
        nn.Unflatten(2, (2, 2, 2)),
        nn.Conv3d(3, 2, 2),
        nn.Flatten(),
        nn.Linear(2, CLASSES),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


def cases() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name to a network and a batch of inputs, in float64."""
    torch.manual_seed(1)
    wide = {"dtype": torch.float64}
    built: dict[str, tuple[nn.Module, Tensor]] = {
        "perceptron": (perceptron(), torch.randn(6, 5, **wide)),
        "images": (images(), torch.randn(5, 2, 8, 8, **wide)),
        "instances": (instances(), torch.randn(5, 2, 8, 8, **wide)),
        "upsampled": (upsampled(), torch.randn(5, 2, 3, 3, **wide)),
        "signals": (signals(), torch.randn(6, 2, 6, **wide)),
        "decoder": (Decoder(tied=False), torch.randint(0, 7, (4, 6))),
        "tied": (Decoder(tied=True), torch.randint(0, 7, (4, 6))),
        "vision": (Vision(), torch.randn(4, 4, 2, **wide)),
        "positions first": (Vision(batch_first=False), torch.randn(4, 4, 2, **wide)),
        "cross": (Cross(), torch.randn(4, 3, 6, **wide)),
        "frames": (Frames(), torch.randn(5, 4, 4, **wide)),
        "recurrent": (Recurrent(), torch.randn(5, 4, 2, **wide)),
    }
    for model, _ in built.values():
        model.double()
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
    return built
