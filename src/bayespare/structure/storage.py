"""How the tensors of a model are stored: weights that are mostly zero as index and value."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bayespare.data.raw import check_memory
from bayespare.errors import BayespareError, did_you_mean

INDEX, VALUE, SHAPE = "#index", "#value", "#shape"

_INDEX_BYTES = 4
_MOST = 2**31 - 1
"""Entries that an index of four bytes reaches."""


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes in a file: whole, or as index and value if that is less."""
    return min(tensor.nbytes, _packed_bytes(tensor))


def _packed_bytes(tensor: Tensor) -> int:
    """Bytes of a weight's entries that are not zero and their places; eight a dimension."""
    if tensor.dim() < 2 or not tensor.is_floating_point() or tensor.numel() > _MOST:
        return tensor.nbytes
    entries = int(tensor.count_nonzero())
    return entries * (tensor.element_size() + _INDEX_BYTES) + 8 * tensor.dim()


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each weight that is smaller as index and value by these; all else stays as it is.

    Args:
        tensors: By name.

    Returns:
        ``name#index`` (places in the flattened tensor, rising, int32), ``name#value`` and
        ``name#shape`` for a tensor that was replaced.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _packed_bytes(tensor) >= tensor.nbytes:
            packed[name] = tensor
            continue
        flat = tensor.detach().flatten()
        index = flat.nonzero().squeeze(1)
        packed[name + INDEX] = index.to(torch.int32)
        packed[name + VALUE] = flat[index]
        packed[name + SHAPE] = torch.tensor(tensor.shape, dtype=torch.int64)
    return packed


def unpack(packed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Undo :func:`pack`.

    Args:
        packed: As read from a file.
        shapes: Of the tensors a network needs. Only these are made whole: a file cannot ask for
            memory.

    Raises:
        BayespareError: If a part is missing or says something impossible.
    """
    tensors = {}
    for key, value in packed.items():
        name, mark, part = key.rpartition("#")
        if not mark or mark + part not in (INDEX, VALUE, SHAPE):
            tensors[key] = value
        elif mark + part == VALUE:
            tensors[name] = _whole(name, value, packed, shapes)
        elif name + VALUE not in packed:
            raise BayespareError(f"{name}: stored as index and value, but {VALUE} is missing")
    return tensors


def _whole(
    name: str, value: Tensor, packed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> Tensor:
    """One tensor out of its parts."""
    for part in (INDEX, SHAPE):
        if name + part not in packed:
            raise BayespareError(f"{name}: stored as index and value, but {part} is missing")
    if name not in shapes:
        raise BayespareError(f"the network has no {name!r}{did_you_mean(name, shapes)}")
    index, shape = packed[name + INDEX], packed[name + SHAPE].tolist()
    if shape != list(shapes[name]):
        raise BayespareError(
            f"{name} is of shape {shape}, the network needs {tuple(shapes[name])}; the run is of "
            "another network"
        )
    check_memory(name, value.element_size() * math.prod(shape))
    whole = value.new_zeros(shapes[name]).flatten()
    fits = index.shape == value.shape and index.dim() == 1 and bool((index.diff() > 0).all())
    if not fits or (len(index) and not 0 <= int(index[0]) <= int(index[-1]) < len(whole)):
        raise BayespareError(f"{name}: its index is damaged")
    whole[index.long()] = value
    return whole.view(shapes[name])
