"""Vision transformers: ``vit`` with a class token, and the plainer ``simple-vit``."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from bayespare.errors import BayespareError
from bayespare.nets.attention import Attention, First, Mean, Tokens, Waves, feed_forward, patches
from bayespare.nets.images import images, padded_size
from bayespare.nets.initial import glorot_linear
from bayespare.nets.registry import Options, register
from bayespare.nets.residual import Residual

KEYS = ("dim", "depth", "heads", "head", "mlp", "patch", "image", "norm", "dropout")

MAX_DIM = 2**15
MAX_DEPTH = 1000


@dataclass(frozen=True)
class Sizes:
    """Sizes of a transformer.

    Attributes:
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block.
        head: Width of a head.
        mlp: Hidden units of a block.
        patch: Height and width of a patch.
        norm: Whether there is layer norm.
        dropout: Share dropped in training, at every place where the ViT paper drops.
    """

    dim: int
    depth: int
    heads: int
    head: int
    mlp: int
    patch: int
    norm: bool
    dropout: float


@register("vit")
def vit(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``vit[:dim=256,depth=6,heads=8,head=32,mlp=512,patch=4,image=,norm=,dropout=]``.

    Dosovitskiy et al. (arXiv 2010.11929): class token, learned positions, layer norm first, GELU in
    its tanh form. The defaults are the ViT of Bayesian model reduction (arXiv 2309.12095): on
    28 x 28 images ``vit:image=32`` (zeros around them), with ``dropout=0.2`` its MAP rival. A head
    is ``dim / heads`` wide unless ``head=`` says otherwise; ``norm=none`` leaves layer norm out.

    Raises:
        BayespareError: If the inputs are no images of whole patches, or an option is wrong.
    """
    options.refuse_unknown(known=KEYS)
    sizes = _sizes(options, dim=256, head=None, norm="layer")
    image = images(options, inputs, size=padded_size(options, inputs))
    layers, rows, columns = patches(options, image, sizes.patch, sizes.dim)
    layers["tokens"] = Tokens(rows * columns, sizes.dim)
    if sizes.dropout:
        layers["drop"] = nn.Dropout(sizes.dropout)
    layers["blocks"] = nn.Sequential(*(_block(sizes, bias=True) for _ in range(sizes.depth)))
    if sizes.norm:
        layers["norm"] = nn.LayerNorm(sizes.dim)
    layers["first"] = First()
    layers["head"] = nn.Linear(sizes.dim, outputs)
    return glorot_linear(nn.Sequential(layers))


@register("simple-vit")
def simple_vit(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``simple-vit[:dim=512,depth=6,heads=8,head=64,mlp=512,patch=4,image=,norm=,dropout=]``.

    Beyer et al. (arXiv 2205.01580): fixed positions of sines and cosines, the mean of all tokens,
    and biases nowhere but in the last layer of a block. The defaults, without layer norm, are
    SpaM's (arXiv 2402.15978) for CIFAR; ``simple-vit:dim=128,depth=1,mlp=256,patch=7`` is its ViT
    for MNIST. ``norm=layer`` puts layer norm back.

    Raises:
        BayespareError: If the inputs are no images of whole patches, or an option is wrong.
    """
    options.refuse_unknown(known=KEYS)
    sizes = _sizes(options, dim=512, head=64, norm="none")
    if sizes.dim % 4:
        raise BayespareError(f"net {options.spec!r}: dim={sizes.dim} is not a multiple of 4")
    image = images(options, inputs, size=padded_size(options, inputs))
    layers, rows, columns = patches(options, image, sizes.patch, sizes.dim, bias=False)
    layers["waves"] = Waves(rows, columns, sizes.dim)
    if sizes.dropout:
        layers["drop"] = nn.Dropout(sizes.dropout)
    layers["blocks"] = nn.Sequential(*(_block(sizes, bias=False) for _ in range(sizes.depth)))
    if sizes.norm:
        layers["norm"] = nn.LayerNorm(sizes.dim)
    layers["mean"] = Mean()
    layers["head"] = nn.Linear(sizes.dim, outputs, bias=False)
    return glorot_linear(nn.Sequential(layers))


def _sizes(options: Options, *, dim: int, head: int | None, norm: str) -> Sizes:
    """Read the keys; ``head`` is the default width of a head, None for an equal share of ``dim``.

    Raises:
        BayespareError: If a value is wrong, or the heads do not divide ``dim``.
    """
    dim = options.whole("dim", dim, most=MAX_DIM)
    heads = options.whole("heads", 8, most=MAX_DIM)
    if head is None and "head" not in options.keys and dim % heads:
        raise BayespareError(
            f"net {options.spec!r}: {heads} heads do not divide dim={dim}; give the width of one, "
            f"as in head={max(dim // heads, 1)}"
        )
    return Sizes(
        dim=dim,
        depth=options.whole("depth", 6, most=MAX_DEPTH),
        heads=heads,
        head=options.whole("head", head or dim // heads, most=MAX_DIM),
        mlp=options.whole("mlp", 512),
        patch=options.whole("patch", 4, most=MAX_DIM),
        norm=options.choose("norm", norm, ("layer", "none")) == "layer",
        dropout=options.share("dropout"),
    )


def _block(sizes: Sizes, *, bias: bool) -> nn.Sequential:
    """Attention and feed-forward layers, each with a norm before and a shortcut around."""
    attention = Attention(
        sizes.dim, sizes.heads, sizes.head, bias=bias, out_bias=bias, dropout=sizes.dropout
    )
    mlp = feed_forward(
        sizes.dim, sizes.mlp, nn.GELU(approximate="tanh"), bias=bias, dropout=sizes.dropout
    )
    branches: OrderedDict[str, nn.Module] = OrderedDict()
    for name, inner in (("attention", OrderedDict(heads=attention)), ("mlp", mlp)):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if sizes.norm:
            layers["norm"] = nn.LayerNorm(sizes.dim)
        layers.update(inner)
        if sizes.dropout:
            layers["out_drop"] = nn.Dropout(sizes.dropout)
        branches[name] = Residual(layers)
    return nn.Sequential(branches)
