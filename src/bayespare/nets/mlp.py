"""Multi-layer perceptrons: ``mlp:400,400`` and, with shortcuts, ``residual-mlp:256,256``."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from bayespare.errors import BayespareError
from bayespare.nets.activations import Activation, activation
from bayespare.nets.initial import he_hidden
from bayespare.nets.registry import Options, register
from bayespare.nets.residual import Residual


@register("mlp")
def mlp(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``mlp:WIDTH[,WIDTH...][,act=NAME][,dropout=SHARE]`` on flattened inputs.

    Layers are called ``fc1``, ``fc2``, ... ``mlp:500,500,500,500,act=silu`` is the MLP of Bayesian
    model reduction (arXiv 2309.12095), with ``dropout=0.2`` its MAP rival.

    Raises:
        BayespareError: If a width is not a positive integer or the activation is unknown.
    """
    options.refuse_unknown(known=("act", "dropout"), words=True)
    act, dropout = activation(options, "relu"), options.share("dropout")
    return perceptron([math.prod(inputs), *_widths(options), outputs], act, dropout)


@register("residual-mlp")
def residual_mlp(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``residual-mlp:WIDTH[,WIDTH...][,act=NAME]``: one residual block for each width.

    A square linear layer, blocks ``x + fc2(act(fc1(x)))``, and a linear head, all on the flattened
    inputs; ``residual-mlp:256,256`` is what the code of SpaM (arXiv 2402.15978) calls an MLP-Mixer.

    Raises:
        BayespareError: If a width is not a positive integer or the activation is unknown.
    """
    options.refuse_unknown(known=("act",), words=True)
    act, size = activation(options, "gelu"), math.prod(inputs)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    layers["embed"] = nn.Linear(size, size)
    for i, width in enumerate(_widths(options), start=1):
        inner: OrderedDict[str, nn.Module] = OrderedDict(fc1=nn.Linear(size, width), act=act())
        inner["fc2"] = nn.Linear(width, size)
        layers[f"block{i}"] = Residual(inner)
    layers["head"] = nn.Linear(size, outputs)
    return he_hidden(nn.Sequential(layers), gain=1.0)


def perceptron(sizes: list[int], act: Activation = nn.ReLU, dropout: float = 0.0) -> nn.Sequential:
    """Flatten, then one linear layer between each two of ``sizes``, activations in between."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(sizes) - 1:
            layers[f"act{i}"] = act()
            if dropout:
                layers[f"drop{i}"] = nn.Dropout(dropout)
    return he_hidden(nn.Sequential(layers))


def _widths(options: Options) -> list[int]:
    if not options.words:
        name = options.spec.partition(":")[0]
        raise BayespareError(f"net {options.spec!r}: needs its widths, for example {name}:400,400")
    return options.widths()
