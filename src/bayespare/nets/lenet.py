"""The LeNets that pruning papers report on.

Sizes as in LeCun et al. (1998) and the Caffe model zoo; 28 x 28 inputs and 10 classes give
266,610 (``lenet300``), 431,080 (``lenet5``) and 1,071,880 (``lenet5-wide``) parameters.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from bayespare.errors import BayespareError
from bayespare.nets.initial import he_hidden
from bayespare.nets.mlp import perceptron
from bayespare.nets.registry import Options, register


@register("lenet300")
def lenet300(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Fully connected 300-100 network on flattened inputs (LeNet-300-100)."""
    options.refuse_unknown()
    return perceptron([math.prod(inputs), 300, 100, outputs])


@register("lenet5")
def lenet5(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Two 5x5 convolutions of 20 and 50 channels, then 500 hidden units (LeNet-5-Caffe)."""
    options.refuse_unknown()
    return _lenet5("lenet5", inputs, [500, outputs])


@register("lenet5-wide")
def lenet5_wide(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """The same convolutions as ``lenet5``, then 800 and 500 hidden units."""
    options.refuse_unknown()
    return _lenet5("lenet5-wide", inputs, [800, 500, outputs])


def _lenet5(name: str, inputs: tuple[int, ...], widths: list[int]) -> nn.Sequential:
    if len(inputs) != 3:
        raise BayespareError(
            f"net {name!r}: needs images (channels, height, width), got inputs of shape {inputs}"
        )
    channels, height, width = inputs
    # Each stage is a 5x5 convolution without padding, then a 2x2 pool: n -> (n - 4) // 2.
    height, width = (((n - 4) // 2 - 4) // 2 for n in (height, width))
    if height < 1 or width < 1:
        raise BayespareError(
            f"net {name!r}: needs images of at least 16 x 16 pixels, "
            f"got {inputs[1]} x {inputs[2]}; use a net such as mlp:400,400"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 20, 5),
        pool1=nn.MaxPool2d(2),
        act1=nn.ReLU(),
        conv2=nn.Conv2d(20, 50, 5),
        pool2=nn.MaxPool2d(2),
        act2=nn.ReLU(),
        flatten=nn.Flatten(),
    )
    sizes = [50 * height * width, *widths]
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(widths):
            layers[f"act{i + 2}"] = nn.ReLU()
    return he_hidden(nn.Sequential(layers))
