"""Running a model for its curvature: modes, arguments and outputs of any shape of batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bayespare.errors import BayespareError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, so that statistics stay; restore each one's own."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def call(model: nn.Module, x: Any) -> Any:
    """Run the model on a tensor, on several in a tuple, or on keyword arguments in a mapping."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, (tuple, list)) else model(x)


def outputs_of(result: Any) -> Tensor:
    """The outputs of a likelihood in what a model returned: itself, its ``logits``, or the first.

    Raises:
        BayespareError: If there is no tensor, or it is not finite.
    """
    logits = getattr(result, "logits", None)
    given = [logits] if not isinstance(result, Tensor) else []
    found = next((x for x in given + tree_leaves(result) if isinstance(x, Tensor)), None)
    if found is None:
        raise BayespareError(f"curvature: the model returns {type(result).__name__}, not a tensor")
    if not bool(torch.isfinite(found).all()):
        raise BayespareError(
            "curvature: the network's outputs are not finite; look for extreme inputs, or a model "
            "whose training diverged"
        )
    return found


def examples_in(x: Any) -> int:
    """Number of examples in a batch of inputs."""
    return len(next(leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)))


def moved(x: Any, device: torch.device) -> Any:
    """The inputs, on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, x)


def few(x: Any) -> tuple[Any, int]:
    """A few examples of a batch, repeated if need be, and how many: a number no dimension has."""
    examples = examples_in(x)
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    sizes = {size for leaf in tensors for size in leaf.shape[1:]}
    count = next(number for number in (3, 5, 7, 11, 13, 17, 19, 23) if number not in sizes)
    rows = torch.arange(count) % examples

    def pick(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != examples:
            return leaf
        return leaf[rows.to(leaf.device)]

    return tree_map(pick, x), count
