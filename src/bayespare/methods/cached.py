"""A KL whose gradient is used for several steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bayespare.bayes.fused import linearised


class CachedKL:
    """The KL does not depend on the data and changes slowly: its gradient is good for some steps.

    Args:
        every: Steps for which a gradient is used.
    """

    def __init__(self, every: int) -> None:
        self.every, self.age = every, 0
        self.parts: tuple[Tensor, list[Tensor], list[nn.Parameter]] | None = None

    def forget(self) -> None:
        """Compute it anew at the next call."""
        self.parts = None

    def __call__(self, kl: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """The KL as last computed, with its gradient.

        Args:
            kl: Computes it.
            parameters: What it depends on.
        """
        if self.parts is None or self.age >= self.every:
            wanted = [p for p in parameters if p.requires_grad]
            value = kl()
            grads = torch.autograd.grad(value, wanted, allow_unused=True)
            used = [(p, g) for p, g in zip(wanted, grads, strict=True) if g is not None]
            self.parts = value.detach(), [g for _, g in used], [p for p, _ in used]
            self.age = 0
        self.age += 1
        return linearised(*self.parts)
