"""The one layer of our own that a compact model often holds: it picks the entries that are kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Select(nn.Module):
    """Keeps some positions of one dimension, of something that arrives whole.

    Attributes:
        index: int64, the positions kept, in order.
        dim: The dimension they lie along.

    Args:
        index: As above.
        dim: As above.
        persistent: Whether the positions are part of the state dict.
    """

    index: Tensor

    def __init__(self, index: Tensor, dim: int = -1, *, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("index", index.to(torch.int64), persistent=persistent)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x[..., index]``, taken along :attr:`dim`."""
        return x.index_select(self.dim, self.index)

    def extra_repr(self) -> str:
        """How many positions are kept."""
        along = "features" if self.dim == -1 else f"entries of dimension {self.dim}"
        return f"{self.index.numel()} {along}"
