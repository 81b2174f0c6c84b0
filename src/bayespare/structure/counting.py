"""Counting what a model costs: parameters, non-zeros, stored bytes and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayespare.structure.operators import Watcher, preserved
from bayespare.structure.stack import evaluating
from bayespare.structure.storage import stored_bytes


@dataclass(frozen=True)
class Counts:
    """The size of a model; four numbers that are never mixed.

    Attributes:
        parameters: Physical parameters, shared ones once; frozen ones are parameters, too.
        nonzeros: Those that are not zero.
        bytes: What the tensors of the state dict take in a file, shared ones once: whole, or as
            index and value where most of a tensor is zero.
        macs: Multiply-accumulates for one example.
    """

    parameters: int
    nonzeros: int
    bytes: int
    macs: int

    def ratio(self, other: Counts) -> dict[str, float]:
        """How many times each number goes into this one: ``dense.ratio(compact)`` is the gain."""
        mine, theirs = asdict(self), asdict(other)
        return {
            name: mine[name] / theirs[name] if theirs[name] else math.inf if mine[name] else 1.0
            for name in mine
        }


def count(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Counts:
    """Count a model; it runs once on the example, in evaluation mode.

    Multiply-accumulates: a linear map costs ``(inputs + bias) * outputs`` at every position, a
    convolution ``(inputs / groups * kernel + bias) * outputs`` at every output position, attention
    its two products. Normalisation, activation and pooling cost nothing.
    """
    examples = example if isinstance(example, tuple) else (example,)
    stored = {_place(tensor): stored_bytes(tensor) for tensor in model.state_dict().values()}
    macs = 0

    def run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        nonlocal macs
        out = func(*args, **kwargs)
        macs += _macs(func.overloadpacket.__name__, args, out)
        return out

    with torch.no_grad(), evaluating(model), preserved(model), Watcher(run):
        model(*examples)
    return Counts(
        parameters=sum(p.numel() for p in model.parameters()),
        nonzeros=sum(int(p.count_nonzero()) for p in model.parameters()),
        bytes=sum(stored.values()),
        macs=round(macs / examples[0].shape[0]),
    )


def _place(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """Where a tensor lies in memory: equal for two names of one tensor."""
    if not tensor.numel():
        return id(tensor), 0, ()
    return tensor.data_ptr(), tensor.nbytes, tensor.stride()


def _macs(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Multiply-accumulates of one operator, for the whole batch."""
    match name:
        case "mm" | "bmm" | "mv":
            return int(out.numel() * args[0].shape[-1])
        case "addmm" | "baddbmm" | "addmv":
            return int(out.numel() * (args[1].shape[-1] + 1))
        case "linear":
            bias = len(args) > 2 and args[2] is not None
            return int(out.numel() * (args[0].shape[-1] + bias))
        case "convolution":
            x, weight, bias, transposed = args[0], args[1], args[2] is not None, args[6]
            # A weight is used once per output position, or per input position when transposed.
            positions = x if transposed else out
            kernel = math.prod(weight.shape[1:])
            return int(positions.numel() * kernel + bias * out.numel())
        case _ if name.startswith("_scaled_dot_product"):
            query, key, value = args[:3]
            pairs = math.prod(query.shape[:-1]) * key.shape[-2]
            return int(pairs * (query.shape[-1] + value.shape[-1]))
    return 0
