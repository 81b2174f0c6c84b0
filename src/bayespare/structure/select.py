"""The one layer of our own that a compact model may hold: it picks the features that are kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Select(nn.Module):
    """Keeps some positions of the last dimension, so that the original input is still accepted.

    Attributes:
        index: int64, the positions kept, in order.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.to(torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x[..., index]``."""
        return x.index_select(-1, self.index)

    def extra_repr(self) -> str:
        """How many positions are kept."""
        return f"{self.index.numel()} features"
