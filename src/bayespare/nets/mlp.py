"""Multi-layer perceptrons: ``mlp:400,400`` and, with another activation, ``mlp:64,act=silu``."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from bayespare.errors import BayespareError, did_you_mean
from bayespare.nets.initial import he_hidden
from bayespare.nets.registry import Options, register

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}

MAX_WIDTH = 2**20


@register("mlp")
def mlp(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``mlp:WIDTH[,WIDTH...][,act=NAME]``: layers ``fc1``, ``fc2``, ... on flattened inputs.

    Raises:
        BayespareError: If a width is not a positive integer or the activation is unknown.
    """
    options.refuse_unknown(known=("act",), words=True)
    if not options.words:
        raise BayespareError(f"net {options.spec!r}: needs its widths, for example mlp:400,400")
    act = options.keys.get("act", "relu")
    if act not in ACTIVATIONS:
        raise BayespareError(
            f"net {options.spec!r}: unknown activation {act!r}{did_you_mean(act, ACTIVATIONS)}"
        )
    widths = [_width(word, options.spec) for word in options.words]
    return perceptron([math.prod(inputs), *widths, outputs], ACTIVATIONS[act])


def perceptron(sizes: list[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Flatten, then one linear layer between each two of ``sizes``, activations in between."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(sizes) - 1:
            layers[f"act{i}"] = activation()
    return he_hidden(nn.Sequential(layers))


def _width(word: str, spec: str) -> int:
    if not (word.isascii() and word.isdigit()) or not 0 < int(word) <= MAX_WIDTH:
        raise BayespareError(
            f"net {spec!r}: width {word!r} is not a whole number from 1 to {MAX_WIDTH}"
        )
    return int(word)
