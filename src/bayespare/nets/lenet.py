"""The LeNets that pruning papers report on.

Sizes as in LeCun et al. (1998) and the Caffe model zoo; 28 x 28 inputs and 10 classes give
266,610 (``lenet300``), 431,080 (``lenet5``), 1,071,880 (``lenet5-wide``) and 61,706 (``lenet``)
parameters.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from bayespare.errors import BayespareError
from bayespare.nets.activations import activation
from bayespare.nets.images import images
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


POOLS: dict[str, type[nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


@register("lenet")
def lenet(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``lenet[:C1,C2,C3,WIDTH][,act=,pool=avg|max,kernel=,dropout=]``, 6-16-120-84 if bare.

    Three convolutions without padding, the first two followed by a 2x2 pool, then a hidden layer.
    Kernels are 5x5, that of the second convolution can be set. Images too small for them (28 x 28
    for kernels of 5) get zeros around them, up to 32 x 32, as in LeCun et al. (1998).

    ``lenet`` and, for CIFAR, ``lenet:18,48,360,256`` are the networks of Bayesian model reduction
    (arXiv 2309.12095; ``dropout=0.2`` for its MAP rival), ``lenet:act=relu,pool=max,kernel=3`` that
    of SpaM (arXiv 2402.15978) for 28 x 28 images.

    Raises:
        BayespareError: If the inputs are no images of 16 x 16 pixels at least, or an option is
            wrong.
    """
    options.refuse_unknown(known=("act", "pool", "kernel", "dropout"), words=True)
    widths = options.widths() or [6, 16, 120, 84]
    if len(widths) != 4:
        raise BayespareError(
            f"net {options.spec!r}: needs three numbers of channels and one of hidden units, "
            "for example lenet:6,16,120,84"
        )
    act, dropout = activation(options, "tanh"), options.share("dropout")
    pool = POOLS[options.choose("pool", "avg", POOLS)]
    kernels = (5, options.whole("kernel", 5, most=11), 5)
    # The least input that leaves one position: each pool halves, each kernel takes k - 1.
    size = 2 * (2 * kernels[2] + kernels[1] - 1) + kernels[0] - 1
    image = images(options, inputs, least=16, size=size)
    layers, fan_in = image.front, image.channels
    for i, (channels, kernel) in enumerate(zip(widths[:3], kernels, strict=True), start=1):
        layers[f"conv{i}"] = nn.Conv2d(fan_in, channels, kernel)
        layers[f"act{i}"] = act()
        if i < 3:
            layers[f"pool{i}"] = pool(2)
        fan_in = channels
    layers["flatten"] = nn.Flatten()
    positions = math.prod(
        ((n - kernels[0] + 1) // 2 - kernels[1] + 1) // 2 - kernels[2] + 1
        for n in (image.height, image.width)
    )
    layers["fc1"], layers["act4"] = nn.Linear(fan_in * positions, widths[3]), act()
    if dropout:
        layers["drop4"] = nn.Dropout(dropout)
    layers["fc2"] = nn.Linear(widths[3], outputs)
    return he_hidden(nn.Sequential(layers), gain=1.0 if act is nn.Tanh else 2.0)


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
