"""The residual blocks of convolutional networks, with batch norm or without any norm (Fixup)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayespare.nets.activations import Activation
from bayespare.nets.initial import he_hidden, normal


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., arXiv 1512.03385, fig. 2).

    Args:
        fan_in: Channels that arrive.
        channels: Channels that leave.
        stride: Of the first convolution.
        act: Activation.
        project: A shortcut that changes shape is a 1x1 convolution (option B of the paper);
            otherwise it skips positions and appends channels of zeros (option A).
    """

    def __init__(
        self, fan_in: int, channels: int, stride: int, act: Activation, *, project: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = conv3x3(fan_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = act()
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = act()
        self.downsample: nn.Module | None = None
        if project and (stride > 1 or fan_in != channels):
            self.downsample = nn.Sequential(
                nn.Conv2d(fan_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, fan_in, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        x = widen(x, y.shape[1], self.stride) if self.downsample is None else self.downsample(x)
        z: Tensor = self.act2(y + x)
        return z


class FixupBlock(nn.Module):
    """The same with scalar shifts and a scale in place of batch norm (arXiv 1901.09321, fig. 1)."""

    def __init__(self, fan_in: int, channels: int, stride: int, act: Activation) -> None:
        super().__init__()
        self.stride = stride
        self.shift1a = Shift()
        residual: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=conv3x3(fan_in, channels, stride), shift1b=Shift(), act=act(), shift2a=Shift()
        )
        residual |= OrderedDict(conv2=conv3x3(channels, channels), scale=Scale(), shift2b=Shift())
        self.residual = nn.Sequential(residual)
        self.act2 = act()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, fan_in, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        shifted = self.shift1a(x)
        y = self.residual(shifted)
        x = x if self.stride == 1 else widen(shifted, y.shape[1], self.stride)
        z: Tensor = self.act2(y + x)
        return z


class WideBlock(nn.Module):
    """A block of a wide residual network (arXiv 1605.07146): norm and activation come first.

    Args:
        fan_in: Channels that arrive.
        channels: Channels that leave.
        stride: Of the first convolution.
        act: Activation.
        batch_norm: Batch norm; otherwise scalar shifts and a scale (Fixup).
        dropout: Share of the inner units that a training step drops.
    """

    def __init__(
        self,
        fan_in: int,
        channels: int,
        stride: int,
        act: Activation,
        *,
        batch_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(fan_in) if batch_norm else Shift()
        self.act1 = act()
        residual: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=conv3x3(fan_in, channels, stride),
            norm2=nn.BatchNorm2d(channels) if batch_norm else Shift(),
            act2=act(),
        )
        if not batch_norm:
            residual["shift2"] = Shift()
        if dropout:
            residual["drop"] = nn.Dropout(dropout)
        residual["conv2"] = conv3x3(channels, channels)
        if not batch_norm:
            residual["scale"], residual["shift3"] = Scale(), Shift()
        self.residual = nn.Sequential(residual)
        self.shortcut: nn.Module | None = None
        if stride > 1 or fan_in != channels:
            self.shortcut = nn.Conv2d(fan_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, fan_in, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        y = self.act1(self.norm1(x))
        z: Tensor = self.residual(y) + (x if self.shortcut is None else self.shortcut(y))
        return z


class Shift(nn.Module):
    """Adds one learned number to everything."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + bias``."""
        return x + self.bias


class Scale(nn.Module):
    """Multiplies everything by one learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``gain * x``."""
        return x * self.gain


def conv3x3(fan_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps height and width (divided by the stride)."""
    return nn.Conv2d(fan_in, channels, 3, stride, padding=1, bias=False)


def widen(x: Tensor, channels: int, stride: int) -> Tensor:
    """The shortcut without parameters: every ``stride``-th position, then channels of zeros."""
    if stride > 1:
        x = x[:, :, ::stride, ::stride]
    missing = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


def fixup(model: nn.Sequential) -> nn.Sequential:
    """Draw initial weights as Fixup does: every residual branch and the head start at zero.

    The first convolution of a branch is scaled by the number of blocks to the power -1/2
    (arXiv 1901.09321, section 3); all others are He's.

    Args:
        model: Its blocks are :class:`FixupBlock` or :class:`WideBlock`; changed in place.
    """
    he_hidden(model)
    blocks = [m.residual for m in model.modules() if isinstance(m, FixupBlock | WideBlock)]
    for residual in blocks:
        normal(residual.get_parameter("conv1.weight"), 2.0 / len(blocks))
        nn.init.zeros_(residual.get_parameter("conv2.weight"))
    nn.init.zeros_(model.get_parameter("fc.weight"))
    return model
