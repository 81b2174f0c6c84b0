"""Initial weights of the named networks."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def he_hidden(model: Module) -> Module:
    """Draw hidden weights from N(0, 2 / fan-in) and set every bias to zero.

    The last layer keeps PyTorch's own weights: nothing rectifies its outputs.

    Args:
        model: Linear and convolutional layers in the order the data meet them; changed in place.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        if layer is not layers[-1]:
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model
