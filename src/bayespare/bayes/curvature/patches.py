"""Unfolding of convolutions, and their per-example weight gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from bayespare.bayes.curvature.layout import split

# Beyond this many entries an example is not unfolded: the stock kernel sums over positions itself.
UNFOLDED = 2**22
_STOCK = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


@dataclass(frozen=True)
class Window:
    """How a kernel moves over space: one number a dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


def windows(signal: Tensor, kernel: Sequence[int], window: Window) -> Tensor:
    """A view of what the kernel sees at each position.

    Returns:
        Shape ``(examples, channels, *positions, *kernel)``, nothing copied but padding.
    """
    pad = [size for size in reversed(window.padding) for _ in range(2)]
    view = functional.pad(signal, pad) if any(pad) else signal
    for axis, size in enumerate(kernel):
        step, reach = window.dilation[axis], (size - 1) * window.dilation[axis] + 1
        view = view.unfold(2 + axis, reach, window.stride[axis])[..., ::step]
    return view


def patches(signal: Tensor, kernel: Sequence[int], window: Window) -> Tensor:
    """What the kernel sees at each position, example by example.

    Positions come last: runs of a row of the image are copied at once, several times as fast as
    the stock unfolding.

    Args:
        signal: Shape ``(examples, channels, *space)``.
        kernel: Its size in each dimension.
        window: How it moves.

    Returns:
        Shape ``(examples, groups, channels of a group * kernel entries, positions)``.
    """
    view = windows(signal, kernel, window)
    dims = len(kernel)
    view = view.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    count = signal.shape[1] // window.groups * math.prod(kernel)
    return view.reshape(len(signal), window.groups, count, -1)


def columns(signal: Tensor, kernel: Sequence[int], window: Window) -> Tensor:
    """The same for all examples together.

    Returns:
        Shape ``(groups, channels of a group * kernel entries, examples * positions)``.
    """
    view = windows(signal, kernel, window)
    dims = len(kernel)
    view = view.permute(1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
    count = signal.shape[1] // window.groups * math.prod(kernel)
    return view.reshape(window.groups, count, -1)


def weight_gradients(
    signal: Tensor, cotangent: Tensor, size: tuple[int, ...], window: Window
) -> Tensor:
    """Gradient of a convolution's weight for every example.

    Args:
        signal: Input, shape ``(examples, channels, *space)``.
        cotangent: Of the output, shape ``(examples, outputs, *positions)``.
        size: Shape of the weight, ``(outputs, channels of a group, *kernel)``.
        window: How the kernel moved.

    Returns:
        Shape ``(examples, *size)``.
    """
    kernel = size[2:]
    signal, window = _within(signal, kernel, window, cotangent.shape[2:])
    positions = cotangent[0, 0].numel()
    if signal.shape[1] * math.prod(kernel) * positions > UNFOLDED:
        return _by_stock_kernel(signal, cotangent, size, window)
    seen = patches(signal, kernel, window)
    given = split(cotangent.flatten(2), 1, window.groups, -1)
    return (given @ seen.mT).reshape(len(signal), *size)


def _within(
    signal: Tensor, kernel: Sequence[int], window: Window, positions: Sequence[int]
) -> tuple[Tensor, Window]:
    """Without what no position sees: an output padding of a whole stride makes further windows."""
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, window.dilation, strict=True)]
    there = [
        (size + 2 * pad - far) // step + 1
        for size, pad, far, step in zip(
            signal.shape[2:], window.padding, reach, window.stride, strict=True
        )
    ]
    if there == list(positions):
        return signal, window
    pad = [size for size in reversed(window.padding) for _ in range(2)]
    signal = functional.pad(signal, pad)
    for axis, (far, step) in enumerate(zip(reach, window.stride, strict=True)):
        signal = signal.narrow(2 + axis, 0, (positions[axis] - 1) * step + far)
    return signal, replace(window, padding=(0,) * len(kernel))


def _by_stock_kernel(
    signal: Tensor, cotangent: Tensor, size: tuple[int, ...], window: Window
) -> Tensor:
    """One example at a time, nothing unfolded: least memory."""
    gradient = _STOCK[len(size) - 2]
    found = cotangent.new_empty(len(signal), *size)
    for n in range(len(signal)):
        found[n] = gradient(  # type: ignore[no-untyped-call]
            signal[n : n + 1],
            size,
            cotangent[n : n + 1],
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            groups=window.groups,
        )
    return found
