"""Memory of the variational optimiser that is used again every step, and what fills it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Generator, Tensor


@dataclass(slots=True)
class Scratch:
    """Memory of one parameter that is used again every step, and no part of the state.

    Attributes:
        mean: The posterior mean while the parameter holds a sample.
        noise: The standard normal draw.
        root: Square root of the posterior precision per example, from a sample to its step.
        product: Mean over the samples of this step of gradient times noise times root:
            1 / sqrt(ess) of the estimate of the Hessian's diagonal.
        grad: Mean gradient over them.
        samples: How many there were.
    """

    mean: Tensor
    noise: Tensor
    root: Tensor
    product: Tensor
    grad: Tensor | None = None
    samples: int = 0


def fill_normal(noise: Tensor, generator: Generator | None) -> None:
    """Draw standard normals into a tensor, on the generator's device if it has another."""
    if generator is None or generator.device.type == noise.device.type:
        noise.normal_(generator=generator)
    else:
        drawn = noise.new_empty(noise.shape, device=generator.device)
        noise.copy_(drawn.normal_(generator=generator))


def sum_into(
    outs: list[Tensor], first: list[Tensor], second: list[Tensor] | float, factor: float = 1.0
) -> None:
    """``outs = first + factor * second``; on a CPU in one pass over memory, not two."""
    if outs[0].device.type == "cpu":
        others: Iterable[Tensor | float] = second if isinstance(second, list) else repeat(second)
        for out, one, other in zip(outs, first, others, strict=False):
            torch.add(one, other, alpha=factor, out=out)
    else:
        torch._foreach_copy_(outs, first)
        if isinstance(second, list):
            torch._foreach_add_(outs, second, alpha=factor)
        else:
            torch._foreach_add_(outs, factor * second)
