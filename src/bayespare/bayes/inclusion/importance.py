"""How much a node matters, which inclusion probabilities do not say: these saturate at 1."""

from __future__ import annotations

import torch
from torch import Tensor


def energy(inclusion: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Expected squared norm of a node's weights, per node (card section 5 a).

    Args:
        inclusion: Probabilities, shape ``(...)``.
        mean: Posterior means, shape ``(..., K)``.
        std: Posterior standard deviations, of the same shape.
    """
    return inclusion * (mean.square() + std.square()).sum(-1)


def drop(whole: Tensor, without: Tensor) -> Tensor:
    """Root mean square change of the outputs when a node is silenced (card section 5 c).

    It does not change when one layer is scaled up and the next one down.

    Args:
        whole: Outputs, shape ``(N, outputs)``; logits are compared up to a constant per row.
        without: Outputs with the node silenced, of the same shape.
    """
    change = without - whole
    if change.dim() == 2 and change.shape[1] > 1:
        change = change - change.mean(1, keepdim=True)
    return change.square().mean().sqrt()


def relative(effects: Tensor) -> Tensor:
    """Scale effects to a sum of 1; all zero where there is no effect at all."""
    total = effects.sum()
    return effects / total if bool(total > 0) else torch.zeros_like(effects)


def gated_moments(
    inputs: Tensor, mean: Tensor, std: Tensor, inclusion: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a layer's pre-activations over weights and shared input gates.

    Outputs that read the same gated node depend on each other: noise drawn for each output on its
    own, with the right variances, would miss that.

    Args:
        inputs: One example, shape ``(J,)``.
        mean: Posterior means, shape ``(J, K)``.
        std: Posterior standard deviations, shape ``(J, K)``.
        inclusion: Probability of each gate, shape ``(J,)``.

    Returns:
        Mean, shape ``(K,)``, and covariance, shape ``(K, K)``.
    """
    part = inputs[:, None] * mean
    spread = part * (inclusion * (1 - inclusion))[:, None]
    noise = (inclusion * inputs.square()) @ std.square()
    return inclusion @ part, part.T @ spread + noise.diag()
