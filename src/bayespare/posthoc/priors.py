"""Prior precisions per layer, set by the evidence on the weights that are there.

MacKay's condition (Neural Computation 4, 1992): with curvature h of the summed loss and prior
precision d, ``gamma = sum h / (h + d)`` counts the weights that the data determine, and
``d = gamma / sum w^2``. It has one root, which Newton's steps in log d reach from anywhere.
MacKay's own flip the error from side to side where the data determine little.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Generator, Tensor, nn

log = logging.getLogger(__name__)


def evidence_precision(weight: Tensor, curvature: Tensor, there: Tensor) -> float | None:
    """Prior precision of a layer's weights that maximises the diagonal Laplace evidence.

    Args:
        weight: Any shape.
        curvature: Of the summed negative log likelihood, nats, 0 or more, the same shape.
        there: Which weights there are, boolean, the same shape; the others count for nothing.

    Returns:
        The precision; None where there is none: no weight differs from zero (it would be
        infinite), or the loss does not depend on the layer (it would be zero).
    """
    w = weight.detach()[there].double()
    h = curvature[there].double().clamp_min(0)
    size = float(w.square().sum())
    if size <= 0 or float(h.sum()) <= 0:
        return None
    level = math.log(w.numel() / size)
    for _ in range(50):
        determined = h / (h + math.exp(level))
        gamma = float(determined.sum())
        # log(gamma / size) - level falls at 1 + slope, where slope is between 0 and 1.
        slope = float((determined * (1 - determined)).sum()) / gamma
        move = (math.log(gamma / size) - level) / (1 + slope)
        level += move
        if abs(move) <= 1e-8:
            break
    return math.exp(level)


def precisions(
    weights: Mapping[str, Tensor], curvature: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, float]:
    """:func:`evidence_precision` of every masked weight that has one, by name."""
    found = {
        name: evidence_precision(weights[name], curvature[name], mask)
        for name, mask in masks.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def occam(curvature: Tensor, precision: float) -> Tensor:
    """``1/2 log(1 + h / d)``: evidence gained by not having to determine a weight, nats."""
    return 0.5 * torch.log1p(curvature.double().clamp_min(0) / precision)


@final
class WeightPriors:
    """Zero-mean Gaussian priors on matrices and kernels, as a penalty of training.

    The precisions are set once, where the training starts: set again as it goes, they feed on
    their own shrinkage. Biases and the scales of normalisations have none.

    Args:
        model: Where it starts; trained in place later.
        curvature: Of the summed negative log likelihood, nats, by parameter name.
        examples: N of the training data.
    """

    generator: Generator | None = None

    def __init__(self, model: nn.Module, curvature: Mapping[str, Tensor], examples: int) -> None:
        self.examples = examples
        self.weights = {
            name: p for name, p in model.named_parameters() if p.ndim > 1 and name in curvature
        }
        there = {name: weight.detach() != 0 for name, weight in self.weights.items()}
        self.precisions = precisions(self.weights, curvature, there)

    def penalty(self) -> Tensor:
        """``sum d w^2 / 2``, nats per example."""
        terms = [0.5 * d * self.weights[n].square().sum() for n, d in self.precisions.items()]
        return torch.stack(terms or [torch.zeros(())]).sum() / self.examples
