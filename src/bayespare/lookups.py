"""Numbers that a network looks up, such as token ids: checked against what its embeddings have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bayespare.errors import BayespareError


class _Lookup(NamedTuple):
    """What an embedding was asked for: its name, how many entries it has, the numbers."""

    name: str
    size: int
    ids: Tensor


def check_lookups(model: nn.Module, parts: Mapping[str, Tensor]) -> None:
    """Refuse token ids that an embedding does not have, or that are no whole numbers.

    PyTorch says of neither where it is; and ids that are kept as decimals cannot be traced, which
    runs a network on other numbers of the same kind.

    Args:
        model: On the CPU; not changed.
        parts: Inputs, shape ``(N, ...)``, by the name of where they came from.

    Raises:
        BayespareError: The message names the part, the layer, the number and what the layer has.
    """
    where, x = next(iter(parts.items()))
    example = x[:4].cpu()
    for name, size, ids in _lookups(model, example):
        direct = ids.shape == example.shape and torch.equal(ids, example.to(ids.dtype))
        if ids.is_floating_point() or (direct and example.is_floating_point()):
            raise BayespareError(
                f"{where}: layer {name!r} looks up whole numbers, such as token ids, but gets "
                "decimals, as files are read; give ids in Python, by "
                "bayespare.data.from_tensors(ids, labels, tokens=True)"
            )
        for part, asked in parts.items() if direct else [(where, ids)]:
            low, high = int(asked.min()), int(asked.max())
            if low < 0 or high >= size:
                worst = f"smallest is {low}" if low < 0 else f"largest is {high}"
                raise BayespareError(
                    f"{part}: layer {name!r} looks up numbers from 0 to {size - 1}, such as token "
                    f"ids, but the {worst}; mend the data, or give it another num_embeddings"
                )


@torch.no_grad()
def _lookups(model: nn.Module, x: Tensor) -> list[_Lookup]:
    """What the embeddings of a network are asked for, up to the first that fails."""
    if not any(isinstance(layer, nn.Embedding) for layer in model.modules()):
        return []
    network, found = copy.deepcopy(model).eval(), list[_Lookup]()

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Embedding) and inputs:
            found.append(_Lookup(name, layer.num_embeddings, inputs[0].detach()))

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Embedding):
            layer.register_forward_pre_hook(partial(note, name))
    # What else is wrong with it is said where it is traced.
    with suppress(IndexError, RuntimeError, TypeError, ValueError):
        network(x)
    return found
