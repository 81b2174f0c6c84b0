"""Runs of equal or consecutive integers: how a plan writes its owners down."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def runs(owner: Tensor) -> list[list[int]]:
    """Compress owners to ``[first unit, step, count]`` runs: most are 0, 1, 2, ... or constant."""
    found: list[list[int]] = []
    for value in owner.tolist():
        if found:
            first, step, count = found[-1]
            if count == 1 and value - first in (0, 1):
                found[-1] = [first, value - first, 2]
                continue
            if count > 1 and value == first + step * count:
                found[-1][2] += 1
                continue
        found.append([value, 0, 1])
    return found


def unruns(found: Any) -> Tensor:
    """Undo :func:`runs`, refusing sizes that no real layer has."""
    parts = []
    total = 0
    for first, step, count in found:
        total += int(count)
        if not 0 < int(count) <= total <= 2**26 or step not in (0, 1):
            raise ValueError(f"run {[first, step, count]}")
        parts.append(int(first) + int(step) * torch.arange(int(count)))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
