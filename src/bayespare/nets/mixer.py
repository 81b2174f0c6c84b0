"""MLP-Mixer: ``mixer``, which mixes patches and channels in turn by small MLPs."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from bayespare.nets.attention import Mean, Swap, feed_forward, patches
from bayespare.nets.images import images, padded_size
from bayespare.nets.initial import he_hidden
from bayespare.nets.registry import Options, register
from bayespare.nets.residual import Residual

EPSILON = 1e-6
MAX_DIM = 2**15
MAX_DEPTH = 1000


@register("mixer")
def mixer(options: Options, *, inputs: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Build ``mixer[:dim=256,depth=6,tokens=512,mlp=512,patch=4,image=]``.

    Tolstikhin et al. (arXiv 2105.01601): ``tokens`` hidden units mix the patches of a channel,
    ``mlp`` hidden units the channels of a patch, layer norm first, GELU in its tanh form, the mean
    of all patches last. The defaults are the Mixer of Bayesian model reduction (arXiv 2309.12095):
    on 28 x 28 images ``mixer:image=32`` (zeros around them).

    Raises:
        BayespareError: If the inputs are no images of whole patches, or an option is wrong.
    """
    options.refuse_unknown(known=("dim", "depth", "tokens", "mlp", "patch", "image"))
    dim = options.whole("dim", 256, most=MAX_DIM)
    depth = options.whole("depth", 6, most=MAX_DEPTH)
    tokens, mlp = options.whole("tokens", 512), options.whole("mlp", 512)
    patch = options.whole("patch", 4, most=MAX_DIM)
    image = images(options, inputs, size=padded_size(options, inputs))
    layers, rows, columns = patches(options, image, patch, dim)
    layers["blocks"] = nn.Sequential(
        *(_block(rows * columns, dim, tokens, mlp) for _ in range(depth))
    )
    layers["norm"] = nn.LayerNorm(dim, eps=EPSILON)
    layers["mean"] = Mean()
    layers["head"] = nn.Linear(dim, outputs)
    return he_hidden(nn.Sequential(layers), gain=1.0)


def _block(positions: int, dim: int, tokens: int, mlp: int) -> nn.Sequential:
    """One mixing of patches and one of channels, each with a shortcut around."""
    across: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.LayerNorm(dim, eps=EPSILON))
    across["swap"] = Swap()
    across.update(feed_forward(positions, tokens, nn.GELU(approximate="tanh")))
    across["swap_back"] = Swap()
    within: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.LayerNorm(dim, eps=EPSILON))
    within.update(feed_forward(dim, mlp, nn.GELU(approximate="tanh")))
    return nn.Sequential(OrderedDict(tokens=Residual(across), channels=Residual(within)))
