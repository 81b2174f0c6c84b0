"""The parts of vision transformers and mixers: patches, tokens, positions and attention."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayespare.errors import BayespareError
from bayespare.nets.images import Image
from bayespare.nets.registry import Options


class Attention(nn.Module):
    """Self-attention with separate projections, so that a head is rows of three and columns of one.

    Args:
        width: Of the tokens.
        heads: Number of heads.
        head_width: Width of queries, keys and values of one head.
        bias: Whether queries, keys and values have biases.
        out_bias: Whether the output has one.
        dropout: Share of the attention weights that a training step drops.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        bias: bool = True,
        out_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.head_width = head_width
        self.dropout = dropout
        self.query = nn.Linear(width, heads * head_width, bias=bias)
        self.key = nn.Linear(width, heads * head_width, bias=bias)
        self.value = nn.Linear(width, heads * head_width, bias=bias)
        self.out = nn.Linear(heads * head_width, width, bias=out_bias)

    @property
    def heads(self) -> int:
        """Number of heads; whole heads can be removed."""
        return self.query.weight.shape[0] // self.head_width

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, tokens, width)`` to the same shape."""
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        z: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return z

    def _split(self, x: Tensor) -> Tensor:
        """``(N, tokens, heads * head_width)`` to ``(N, heads, tokens, head_width)``."""
        return x.view(x.shape[0], x.shape[1], -1, self.head_width).transpose(1, 2)

    def extra_repr(self) -> str:
        """Heads and their width."""
        return f"heads={self.heads}, head_width={self.head_width}"


class Swap(nn.Module):
    """Exchanges channels and positions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, A, B)`` to ``(N, B, A)``."""
        return x.transpose(1, 2)


class Tokens(nn.Module):
    """Puts a learned class token first and adds learned positions."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, patches, width)`` to ``(N, patches + 1, width)``."""
        first = self.class_token.expand(x.shape[0], -1, -1)
        return torch.cat((first, x), dim=1) + self.positions


class Waves(nn.Module):
    """Adds fixed positions: sines and cosines of row and column (arXiv 2205.01580).

    Attributes:
        positions: ``(1, rows * columns, width)``; not trained.
    """

    positions: Tensor

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        quarter = width // 4
        rate = 10_000.0 ** -(torch.arange(quarter) / max(quarter - 1, 1))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        angles = [axis.flatten()[:, None] * rate for axis in (column, row)]
        table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
        self.register_buffer("positions", table[None])

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + positions``, shape ``(N, rows * columns, width)``."""
        return x + self.positions


class First(nn.Module):
    """Picks the class token."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, tokens, width)`` to ``(N, width)``."""
        return x[:, 0]


class Mean(nn.Module):
    """Averages over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, tokens, width)`` to ``(N, width)``."""
        return x.mean(1)


def patches(
    options: Options, image: Image, patch: int, width: int, *, bias: bool = True
) -> tuple[OrderedDict[str, nn.Module], int, int]:
    """Layers that cut an image into patches and embed each: ``(N, C, H, W)`` to tokens.

    Args:
        options: Of the network, for messages.
        image: What arrives.
        patch: Height and width of a patch.
        width: Of a token.
        bias: Whether the embedding has one.

    Returns:
        The layers, and the number of rows and columns of patches.

    Raises:
        BayespareError: If the image is not made of whole patches.
    """
    if image.height % patch or image.width % patch:
        fits = math.gcd(image.height, image.width)
        whole = -(-max(image.height, image.width) // patch) * patch
        raise BayespareError(
            f"net {options.spec!r}: images of {image.height} x {image.width} are not made of whole "
            f"patches of {patch} x {patch}; use a patch= that divides {fits}, or pad them: "
            f"image={whole}"
        )
    layers = OrderedDict(image.front)
    layers["patch"] = nn.Conv2d(image.channels, width, patch, stride=patch, bias=bias)
    layers["flatten"], layers["swap"] = nn.Flatten(2), Swap()
    return layers, image.height // patch, image.width // patch


def feed_forward(
    width: int, hidden: int, act: nn.Module, *, bias: bool = True, dropout: float = 0.0
) -> OrderedDict[str, nn.Module]:
    """Two linear layers with an activation between them.

    Args:
        width: Of what arrives and leaves.
        hidden: Units between.
        act: Activation.
        bias: Whether the first layer has one; the second always does.
        dropout: Share of the hidden units that a training step drops.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        fc1=nn.Linear(width, hidden, bias=bias), act=act
    )
    if dropout:
        layers["drop"] = nn.Dropout(dropout)
    layers["fc2"] = nn.Linear(hidden, width)
    return layers
