"""Digits and a network small enough for a few seconds of somebody else's loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayespare import data, nets
from bayespare.data import Dataset, Splits

EPOCHS, BATCH = 12, 32


def digits() -> Splits:
    return data.load("digits", seed=0)


def network() -> nn.Module:
    return nets.build("mlp:64,32", inputs=(64,), outputs=10, seed=0)


@torch.no_grad()
def accuracy(model: nn.Module, rows: Dataset) -> float:
    return float((model.eval()(rows.x).argmax(1) == rows.y).float().mean())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def outputs_differ(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((one.eval()(x) - other.eval()(x)).abs().max())
