"""Tensors of which every process has a part (``DTensor``, as FSDP makes them)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over several processes."""
    return hasattr(tensor, "placements")


def own_entries(tensor: Tensor) -> int:
    """Entries that this process has."""
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return local.numel()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process has to ask for it."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def row_squares(weight: Tensor, columns: Tensor) -> Tensor:
    """``sum_i weight_oi^2 columns_i``; of a sharded weight each process squares what it has.

    Args:
        weight: Shape ``(rows, ...)``.
        columns: Factor of each column, on every process; shape ``(columns,)``.

    Returns:
        On every process, shape ``(rows,)``.
    """
    if is_sharded(weight):
        columns = _everywhere(columns, weight)
    return whole(torch.mv(weight.flatten(1).square(), columns))


def _everywhere(tensor: Tensor, like: Any) -> Tensor:
    """What every process has alike, beside a sharded tensor."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def sum_into_shards(part: Tensor, like: Tensor) -> Tensor:
    """Add up what the processes have, each of the whole, and leave each its share of the sum.

    Args:
        part: A term of the sum, on every process.
        like: A sharded tensor of the same shape.
    """
    from torch.distributed.tensor import DTensor, Partial

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    terms = DTensor.from_local(part, mesh, [Partial()] * mesh.ndim, run_check=False)
    return terms.redistribute(placements=placements)


def scaled_by(tensors: tuple[Tensor, ...], factor: Tensor) -> list[Tensor]:
    """Multiply tensors, sharded or not, by one number."""
    if not any(is_sharded(tensor) for tensor in tensors):
        return list(torch._foreach_mul(tensors, factor))
    return [tensor * factor for tensor in tensors]
