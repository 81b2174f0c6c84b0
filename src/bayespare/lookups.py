"""Numbers that a network looks up, such as token ids: checked against what its embeddings have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bayespare.data import Dataset
from bayespare.errors import BayespareError


class _Lookup(NamedTuple):
    """What an embedding was asked for: its name, how many entries it has, the numbers."""

    name: str
    size: int
    ids: Tensor


def looks_up(model: nn.Module, x: Tensor) -> bool:
    """Whether an embedding of a network on the CPU is asked for the inputs themselves."""
    return any(_direct(x[:4], ids) for *_, ids in _asked(model, x))


def with_ids(model: nn.Module, data: Dataset) -> Dataset:
    """The same data, its inputs whole numbers if that is what the network looks up.

    Loaders and files are read as decimals, for most networks calculate with what they are given.

    Args:
        model: On the CPU; not changed.
        data: Left as they are where an input is no whole number.
    """
    x = data.x
    if not x.is_floating_point() or not looks_up(model, x):
        return data
    # From 2^24 on a decimal may stand for its neighbour.
    exact = bool((x == x.round()).all()) and float(x.abs().max()) < 2**24
    return replace(data, x=x.to(torch.int64)) if exact else data


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
    for name, size, ids in _asked(model, x):
        direct = _direct(x[:4], ids)
        for part, asked in parts.items() if direct else [(where, ids)]:
            if asked.is_floating_point():
                raise BayespareError(
                    f"{part}: layer {name!r} looks up whole numbers, such as token ids, but gets "
                    "decimals; of a file of ids standardize=neither leaves them as they are"
                )
            low, high = int(asked.min()), int(asked.max())
            if low < 0 or high >= size:
                worst = f"smallest is {low}" if low < 0 else f"largest is {high}"
                raise BayespareError(
                    f"{part}: layer {name!r} looks up numbers from 0 to {size - 1}, such as token "
                    f"ids, but the {worst}; mend the data, or give it another num_embeddings"
                )


def _direct(x: Tensor, ids: Tensor) -> bool:
    """Whether these are the inputs themselves, and not made of them."""
    return ids.shape == x.shape and torch.equal(ids, x.cpu().to(ids.dtype))


@torch.no_grad()
def _asked(model: nn.Module, x: Tensor) -> list[_Lookup]:
    """What the embeddings of a network are asked for by four rows, up to the first that fails."""
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
        network(x[:4].cpu())
    return found
