"""The shortcut that MLPs and transformers share."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Sequential):
    """Layers in a row with a shortcut around all of them."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus what the layers make of it."""
        y = x
        for layer in self:
            y = layer(y)
        return x + y
