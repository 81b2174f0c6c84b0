"""Initial weights of the named networks."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def he_hidden(model: Module, gain: float = 2.0) -> Module:
    """Draw hidden weights from N(0, gain / fan-in) and set every bias to zero.

    The last layer keeps PyTorch's own weights: nothing rectifies its outputs. A gain of 2 is for
    rectifiers (He et al., 2015, eq. 10), 1 for tanh (LeCun et al., 1998).

    Args:
        model: Linear and convolutional layers in the order the data meet them; changed in place.
        gain: Variance of a weight times its fan-in.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        if layer is not layers[-1]:
            normal(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


def glorot_linear(model: Module) -> Module:
    """Draw linear weights from Glorot's uniform distribution, biases zero (the ViT paper's).

    The embedding of the patches, a convolution, is drawn from N(0, 1 / fan-in).
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            normal(layer.weight, 1.0)
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


def normal(weight: Tensor, gain: float) -> None:
    """Draw a weight from N(0, gain / fan-in), in place."""
    nn.init.normal_(weight, std=math.sqrt(gain / weight[0].numel()))
