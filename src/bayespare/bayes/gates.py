"""Bernoulli gates: inclusion probabilities, their KL, and the binary-concrete draw.

Source: Jantre, Bhattacharya and Maiti, arXiv 2308.09104 (card sections 3 and 4a).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PriorInclusion = float | Literal["theory", "1/k"]


def bernoulli_kl(logit: Tensor, prior: Tensor | float) -> Tensor:
    """KL divergence of Bernoulli(sigmoid(logit)) from Bernoulli(prior), in nats, per gate.

    Stable in float32 for any logit: both log probabilities come from ``logsigmoid``.

    Args:
        logit: Log-odds of inclusion, any shape.
        prior: Prior inclusion probability in (0, 1), broadcast against ``logit``.
    """
    prior = torch.as_tensor(prior, dtype=logit.dtype, device=logit.device)
    included = logit.sigmoid()
    return included * (logsigmoid(logit) - prior.log()) + (1 - included) * (
        logsigmoid(-logit) - torch.log1p(-prior)
    )


class _StraightThrough(torch.autograd.Function):
    """Hard gate forward, gradient of the relaxed gate backward."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        relaxed = (logit + uniform.log() - torch.log1p(-uniform)).div_(temperature).sigmoid_()
        ctx.save_for_backward(relaxed)
        ctx.temperature = temperature
        return (relaxed > 0.5).to(logit.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (relaxed,) = ctx.saved_tensors
        return grads[0] * relaxed * (1 - relaxed) / ctx.temperature, None, None


def draw_gates(logit: Tensor, uniform: Tensor, temperature: float = 0.5) -> Tensor:
    """Draw hard gates, exactly Bernoulli(sigmoid(logit)), with the binary-concrete gradient.

    The temperature changes the gradient only, ``y (1 - y) / temperature`` with ``y`` the relaxed
    gate; the drawn value does not depend on it.

    Args:
        logit: Log-odds of inclusion, any shape.
        uniform: Uniform(0, 1) draws of the same shape, inside the open interval.
        temperature: Temperature of the relaxation.

    Returns:
        Zeros and ones of the shape and dtype of ``logit``.
    """
    drawn: Tensor = _StraightThrough.apply(logit, uniform, temperature)  # type: ignore[no-untyped-call]
    return drawn


def theory_inclusion(widths: Sequence[int], examples: int, constant: float = 1e-9) -> list[float]:
    """Prior inclusion probability per hidden layer of an MLP, from the contraction-rate theory.

    Args:
        widths: ``k_0`` (inputs), the hidden widths, and the number of outputs.
        examples: Number of training examples.
        constant: The constant C of :func:`layer_inclusion`.

    Returns:
        One probability for each hidden layer.
    """
    return layer_inclusion(list(pairwise(widths)), examples, constant)[:-1]


def layer_inclusion(
    layers: Sequence[tuple[int, int]], examples: int, constant: float = 1e-9
) -> list[float]:
    """Prior inclusion probability of the units of each layer, from the contraction-rate theory.

    ``lambda_l = exp(-log k_{l+1} - C (k_l + 1) v_l)``: wide layers and large fan-ins get a smaller
    one. ``constant=0`` means ``1 / k_{l+1}``: one active unit expected in each layer.

    Args:
        layers: Fan-in ``k_l`` and number of units ``k_{l+1}`` of every layer, the output last.
        examples: Number of training examples.
        constant: The constant C of the formula; the authors set 1e-9 by hand.

    Returns:
        One probability for each layer (that of the output layer has no use). Source: card
        section 5.
    """
    depth = len(layers)
    complexity = sum(
        depth**2 * (math.log(examples) + math.log(depth) + math.log(fan_in + 1) + math.log(units))
        for fan_in, units in layers
    )
    fans = sum(math.log(fan_in + 1) for fan_in, _ in layers)
    probabilities = []
    for fan_in, units in layers:
        # The other layers' fan-ins and this one's own: v_l of the card has both.
        bound = (
            (fan_in + 1) ** 2
            + fans
            + (depth - 1)
            + math.log(units)
            + math.log(examples)
            + math.log(complexity)
        )
        probabilities.append(math.exp(-math.log(units) - constant * (fan_in + 1) * bound))
    return probabilities
