"""Where the sums of squared gradients lie: on this device, or a part of them on each of several."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from bayespare.bayes.curvature.views import View, like_parameter
from bayespare.bayes.sharded import is_sharded, sum_into_shards


def summed(dtype: torch.dtype) -> torch.dtype:
    """In which precision sums over examples are kept: those of half precision would stand still."""
    return torch.promote_types(dtype, torch.float32)


class Total:
    """The diagonal of one parameter as it adds up.

    Args:
        parameter: As the model computes with it.
    """

    def __init__(self, parameter: Tensor) -> None:
        self._parameter = parameter
        self._flat = self.zeros()

    def zeros(self) -> Tensor:
        """A buffer laid out like the parameter's memory."""
        like = self._parameter
        return torch.zeros(like.numel(), dtype=summed(like.dtype), device=like.device)

    def add(self, view: View, squares: Tensor) -> None:
        """Add squared gradients of some entries, shape ``view.size``."""
        view.within(self._flat).add_(squares)

    def add_all(self, flat: Tensor) -> None:
        """Add squared gradients of all entries, laid out like the parameter's memory."""
        self._flat.add_(flat)

    def result(self) -> Tensor:
        """The sum, in the parameter's shape."""
        return like_parameter(self._flat, self._parameter)


@final
class ShardedTotal(Total):
    """The same of a sharded parameter: each process keeps its part of what all have added.

    All processes add at once, in the same order.

    Args:
        parameter: As the model computes with it.
        lasting: As it lies between the passes.
    """

    def __init__(self, parameter: Tensor, lasting: Tensor) -> None:
        self._parameter = parameter
        self._part = torch.zeros_like(lasting, dtype=summed(lasting.dtype))

    def add(self, view: View, squares: Tensor) -> None:
        """See :class:`Total`."""
        flat = self.zeros()
        view.within(flat).add_(squares)
        self.add_all(flat)

    def add_all(self, flat: Tensor) -> None:
        """See :class:`Total`."""
        self._part += sum_into_shards(like_parameter(flat, self._parameter), self._part)

    def result(self) -> Tensor:
        """The sum, sharded as the parameter is."""
        return self._part


def total_of(parameter: Tensor, lasting: Tensor) -> Total:
    """Of a parameter, sharded if it is between the passes."""
    return ShardedTotal(parameter, lasting) if is_sharded(lasting) else Total(parameter)


def gathered_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters as the model computes with them, by name.

    Those of a sharded model have memory only while their block runs; each block is gathered once,
    one after the other.
    """
    found: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not any(is_sharded(parameter) for parameter in found.values()):
        return found
    from torch.distributed.fsdp import FSDPModule

    for prefix, module in model.named_modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            assert isinstance(module, nn.Module)
            here = module.named_parameters(prefix)
            found |= {n: p for n, p in here if n in found and not is_sharded(p)}
            module.reshard()
    return found
