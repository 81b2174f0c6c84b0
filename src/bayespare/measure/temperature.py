"""Temperature scaling: the usual remedy for overconfidence, to compare a posterior with.

Source: Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def best_temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature at which ``softmax(logits / T)`` has the lowest mean NLL.

    Args:
        logits: Of validation data, shape ``(N, K)``; log probabilities will do.
        y: The classes, int64, shape ``(N,)``.

    Returns:
        T between 0.05 and 20.
    """
    logits = logits.double()

    def slope(inverse: float) -> float:
        """Of the NLL in 1 / T, in which it is convex."""
        probs = (logits * inverse).softmax(1)
        mean = (probs * logits).sum(1)
        return float((mean - logits.gather(1, y.unsqueeze(1)).squeeze(1)).mean())

    low, high = math.log(0.05), math.log(20.0)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def scaled_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Log probabilities at a temperature, float64, shape ``(N, K)``."""
    return functional.log_softmax(logits.to(torch.float64) / temperature, dim=1)
