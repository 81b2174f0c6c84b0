"""What stands before a convolutional network or a transformer: channels and padding."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from bayespare.errors import BayespareError
from bayespare.nets.registry import Options

MAX_IMAGE = 4096


@dataclass(frozen=True)
class Image:
    """The images that reach the first layer.

    Attributes:
        channels: Number of them.
        height: In pixels, after padding.
        width: In pixels, after padding.
        front: Layers that bring the network's inputs to this shape; often none.
    """

    channels: int
    height: int
    width: int
    front: OrderedDict[str, nn.Module]


def images(options: Options, inputs: tuple[int, ...], *, least: int = 1, size: int = 0) -> Image:
    """Read the shape of one example as an image; ``(height, width)`` is one of a single channel.

    Args:
        options: Of the network, for messages.
        inputs: Shape of one example.
        least: Smallest height and width that the network can take.
        size: Height and width up to which zeros are put around smaller images, as evenly as may
            be; 0 for none.

    Raises:
        BayespareError: If the inputs are no images, or smaller than ``least``.
    """
    if len(inputs) not in (2, 3):
        raise BayespareError(
            f"net {options.spec!r}: needs images (channels, height, width), "
            f"got inputs of shape {inputs}"
        )
    channels, height, width = inputs if len(inputs) == 3 else (1, *inputs)
    if min(height, width) < least:
        raise BayespareError(
            f"net {options.spec!r}: needs images of at least {least} x {least} pixels, "
            f"got {height} x {width}; use a net such as mlp:400,400"
        )
    front: OrderedDict[str, nn.Module] = OrderedDict()
    if len(inputs) == 2:
        front["channel"] = nn.Unflatten(1, (1, height))
    below, right = max(size - height, 0), max(size - width, 0)
    if below or right:
        edges = (right // 2, right - right // 2, below // 2, below - below // 2)
        front["pad"] = nn.ZeroPad2d(edges)
    return Image(channels, height + below, width + right, front)


def padded_size(options: Options, inputs: tuple[int, ...]) -> int:
    """What ``image=`` says: the height and width that smaller images are padded to; 0 for none.

    Raises:
        BayespareError: If it is no size, or the images are larger.
    """
    size = options.whole("image", 0, most=MAX_IMAGE)
    if size and max(inputs[-2:]) > size:
        raise BayespareError(
            f"net {options.spec!r}: image={size} is smaller than the inputs of shape {inputs}"
        )
    return size
