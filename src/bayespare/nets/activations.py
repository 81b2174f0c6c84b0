"""Activations by name, as ``act=`` gives them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from bayespare.nets.registry import Options

Activation = Callable[[], nn.Module]

ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, approximate="tanh"),
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def activation(options: Options, default: str) -> Activation:
    """The activation that ``act=`` names, or the default one.

    Raises:
        BayespareError: If there is none of that name.
    """
    return ACTIVATIONS[options.choose("act", default, ACTIVATIONS, what="activation")]
