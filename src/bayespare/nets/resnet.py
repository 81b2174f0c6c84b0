"""Residual networks: ``resnet20`` ... ``resnet110`` for CIFAR, ``resnet18`` and ``wrn:16,4``.

Parameters of the networks with batch norm are called as in torchvision, so that ``resnet18`` with
1000 classes takes the weights that were published for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import repeat

from torch import nn

from bayespare.errors import BayespareError
from bayespare.nets.activations import activation
from bayespare.nets.blocks import Block, FixupBlock, Shift, WideBlock, conv3x3, fixup
from bayespare.nets.images import images
from bayespare.nets.initial import he_hidden
from bayespare.nets.registry import Options, register

MAX_CHANNELS = 4096
MAX_DEPTH = 1202

LARGE_IMAGE = 64
"""Images of this many pixels a side get the stem of networks for ImageNet."""

MakeBlock = Callable[[int, int, int], nn.Module]


def cifar_resnet(
    options: Options, *, inputs: tuple[int, ...], outputs: int, depth: int
) -> nn.Sequential:
    """Build ``resnetN[:shortcut=a|b][,act=,norm=batch|fixup,width=]``, N = 20, 32, 44, 56 or 110.

    Three stages of 16, 32 and 64 channels (``width=16`` sets the first) and (N - 2) / 6 blocks (He
    et al., arXiv 1512.03385, section 4.2). Shortcuts have no parameters, as there (``shortcut=a``),
    or are 1x1 convolutions with batch norm (``b``). The spike-and-slab papers (arXiv 2308.09104)
    use ``resnet20:shortcut=b,act=silu``.

    Raises:
        BayespareError: If the inputs are no images, or an option is wrong.
    """
    options.refuse_unknown(known=("shortcut", "act", "norm", "width"))
    width = options.whole("width", 16, most=MAX_CHANNELS)
    blocks = (depth - 2) // 6
    return _resnet(options, inputs, outputs, width, [blocks] * 3, large=False, shortcut="a")


for _depth in (20, 32, 44, 56, 110):
    register(f"resnet{_depth}")(partial(cifar_resnet, depth=_depth))


@register("resnet18")
def resnet18(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``resnet18[:stem=cifar|imagenet][,shortcut=a|b,act=,norm=batch|fixup,width=]``.

    Four stages of 64, 128, 256 and 512 channels with two blocks each. The ImageNet stem (a 7x7
    convolution of stride 2 and a pool) is the default for images of 64 pixels a side and more, the
    CIFAR stem (a 3x3 convolution) for smaller ones. ``resnet18:norm=fixup`` is the network without
    norm that SpaM uses (arXiv 2402.15978).

    Raises:
        BayespareError: If the inputs are no images, or an option is wrong.
    """
    options.refuse_unknown(known=("stem", "shortcut", "act", "norm", "width"))
    natural = "imagenet" if min(inputs[-2:]) >= LARGE_IMAGE else "cifar"
    large = options.choose("stem", natural, ("cifar", "imagenet")) == "imagenet"
    width = options.whole("width", 64, most=MAX_CHANNELS)
    return _resnet(options, inputs, outputs, width, [2] * 4, large=large, shortcut="b")


@register("wrn")
def wide_resnet(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``wrn:DEPTH,FACTOR[,act=,norm=batch|fixup,dropout=]``, such as ``wrn:16,4``.

    Three stages of FACTOR times 16, 32 and 64 channels, (DEPTH - 4) / 6 blocks each (Zagoruyko and
    Komodakis, arXiv 1605.07146). SpaM uses ``wrn:16,4,norm=fixup``.

    Raises:
        BayespareError: If the inputs are no images, there is no such depth, or an option is wrong.
    """
    options.refuse_unknown(known=("act", "norm", "dropout"), words=True)
    sizes = options.widths()
    if len(sizes) != 2 or sizes[0] < 10 or sizes[0] > MAX_DEPTH or (sizes[0] - 4) % 6:
        raise BayespareError(
            f"net {options.spec!r}: needs its depth (10, 16, 22, 28 ...) and factor, such as "
            "wrn:16,4"
        )
    depth, factor = sizes
    if 64 * factor > MAX_CHANNELS:
        raise BayespareError(
            f"net {options.spec!r}: factor {factor} is more than {MAX_CHANNELS // 64}"
        )
    act, dropout = activation(options, "relu"), options.share("dropout")
    batch_norm = options.choose("norm", "batch", ("batch", "fixup")) == "batch"
    image = images(options, inputs)
    layers = image.front
    layers["conv1"] = conv3x3(image.channels, 16)
    if not batch_norm:
        layers["shift1"] = Shift()
    make = partial(WideBlock, act=act, batch_norm=batch_norm, dropout=dropout)
    last = _stages(layers, make, 16, 16 * factor, [(depth - 4) // 6] * 3)
    if batch_norm:
        layers["bn1"] = nn.BatchNorm2d(last)
    layers["act1"] = act()
    return _headed(layers, last, outputs, batch_norm=batch_norm)


def _resnet(
    options: Options,
    inputs: tuple[int, ...],
    outputs: int,
    width: int,
    counts: list[int],
    *,
    large: bool,
    shortcut: str,
) -> nn.Sequential:
    """A stem, a stage of blocks for each of ``counts``, a pool and a linear head."""
    act = activation(options, "relu")
    batch_norm = options.choose("norm", "batch", ("batch", "fixup")) == "batch"
    shortcut = options.choose("shortcut", shortcut if batch_norm else "a", ("a", "b"))
    if not batch_norm and shortcut == "b":
        raise BayespareError(
            f"net {options.spec!r}: shortcut=b has batch norm, which norm=fixup does without"
        )
    image = images(options, inputs)
    layers = image.front
    if large:
        layers["conv1"] = nn.Conv2d(image.channels, width, 7, 2, padding=3, bias=False)
    else:
        layers["conv1"] = conv3x3(image.channels, width)
    layers["bn1" if batch_norm else "shift1"] = nn.BatchNorm2d(width) if batch_norm else Shift()
    layers["act1"] = act()
    if large:
        layers["maxpool"] = nn.MaxPool2d(3, 2, padding=1)
    make: MakeBlock = partial(FixupBlock, act=act)
    if batch_norm:
        make = partial(Block, act=act, project=shortcut == "b")
    last = _stages(layers, make, width, width, counts)
    return _headed(layers, last, outputs, batch_norm=batch_norm)


def _stages(
    layers: OrderedDict[str, nn.Module],
    make: MakeBlock,
    fan_in: int,
    channels: int,
    counts: list[int],
) -> int:
    """Add ``layer1``, ``layer2``, ...; each but the first halves the image and doubles channels."""
    for number, count in enumerate(counts, start=1):
        stage = nn.Sequential()
        for stride in (2 if number > 1 else 1, *repeat(1, count - 1)):
            stage.append(make(fan_in, channels, stride))
            fan_in = channels
        layers[f"layer{number}"] = stage
        channels *= 2
    return fan_in


def _headed(
    layers: OrderedDict[str, nn.Module], channels: int, outputs: int, *, batch_norm: bool
) -> nn.Sequential:
    """Add the pool and the head, and draw the initial weights."""
    layers["avgpool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    if not batch_norm:
        layers["shift2"] = Shift()
    layers["fc"] = nn.Linear(channels, outputs)
    model = nn.Sequential(layers)
    return he_hidden(model) if batch_norm else fixup(model)
