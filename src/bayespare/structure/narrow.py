"""Layers of our own for what no stock layer can do: the same result from fewer units.

A compact model holds them only where units were removed from under a normalisation, or heads from
``nn.MultiheadAttention``, whose width is tied to that of its input. Their parameters have the names
they have in the stock layer.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayespare.errors import UnsupportedStructureError

Layer = TypeVar("Layer", bound=nn.Module)


class NarrowLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over units some of which were removed: zeros that still count.

    Attributes:
        width: Number of units before any was removed; mean and variance are over that many.
    """

    width: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last dimension, shape ``(..., units that stay)``."""
        mean = input.sum(-1, keepdim=True) / self.width
        centred = input - mean
        gone = self.width - input.shape[-1]
        variance = (centred.square().sum(-1, keepdim=True) + gone * mean.square()) / self.width
        out = centred * torch.rsqrt(variance + self.eps) * self.weight
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        """The stock layer's, and the width."""
        return f"{super().extra_repr()}, width={self.width}"


class NarrowRMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` over units some of which were removed: zeros that still count.

    Attributes:
        width: Number of units before any was removed; the mean square is over that many.
    """

    width: int

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension, shape ``(..., units that stay)``."""
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        square = x.square().sum(-1, keepdim=True) / self.width
        return x * torch.rsqrt(square + eps) * self.weight

    def extra_repr(self) -> str:
        """The stock layer's, and the width."""
        return f"{super().extra_repr()}, width={self.width}"


class NarrowAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads together are narrower than what they read.

    Takes and returns what the stock layer does. Averaged attention weights are averages over the
    heads that stay.

    Attributes:
        head_dim: Channels of one head, as before.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, shapes as in the stock layer: ``(N, L, E)``, ``(L, N, E)`` or ``(L, E)``."""
        alone = query.dim() == 2
        if alone:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        query, key, value = self._projected(query, key, value)
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat([key, self.bias_k.expand(len(key), -1, -1)], 1)
            value = torch.cat([value, self.bias_v.expand(len(value), -1, -1)], 1)
        if self.add_zero_attn:
            key, value = functional.pad(key, (0, 0, 0, 1)), functional.pad(value, (0, 0, 0, 1))
        q, k, v = self._heads(query), self._heads(key), self._heads(value)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[-2])
        weights = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if alone else weights
        else:
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if alone:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        sources = (query, key, value)
        return [
            functional.linear(x, weight, bias)
            for x, weight, bias in zip(sources, weights, biases, strict=True)
        ]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, query: Tensor, keys: int
    ) -> Tensor | None:
        """One mask to add to the scores, from the two that the stock layer takes.

        What the layer adds to the keys itself is masked by neither.
        """
        total = None
        for given in (mask, None if padding is None else padding[:, None, None, :]):
            if given is None:
                continue
            if given.dtype == torch.bool:
                zero = torch.zeros((), dtype=query.dtype, device=query.device)
                given = zero.masked_fill(given, -torch.inf)
            if given.dim() == 3:
                given = given.reshape(len(query), -1, *given.shape[1:])
            given = functional.pad(given, (0, keys - given.shape[-1]))
            total = given if total is None else total + given
        return total


_NARROW: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: NarrowLayerNorm,
    nn.RMSNorm: NarrowRMSNorm,
    nn.MultiheadAttention: NarrowAttention,
}


def narrowed(layer: nn.Module, name: str) -> nn.Module:
    """The narrow kind of a stock layer, with its parameters; the layer itself if it is one.

    Raises:
        UnsupportedStructureError: If there is none.
    """
    if type(layer) in _NARROW.values():
        return layer
    kind = _NARROW.get(type(layer))
    if kind is None:
        raise UnsupportedStructureError(
            f"layer {name}: {type(layer).__name__} has no form that keeps its old width"
        )
    narrow: Any = nn.Module.__new__(kind)
    # The stock layer's own attributes (parameters, hooks, mode) stay as they are.
    narrow.__dict__.update(layer.__dict__)
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        (narrow.width,) = layer.normalized_shape
    else:
        # Makes the stock encoder layer leave its fused path, which reads the stock sizes.
        narrow._qkv_same_embed_dim = False
    module: nn.Module = narrow
    return module
