"""Rows drawn for testing and validation, stratified by class."""

from __future__ import annotations

import numpy as np
import torch

from bayespare.data.dataset import Dataset
from bayespare.errors import BayespareError


def draw(rows: int, fraction: float, seed: int, labels: np.ndarray | None) -> np.ndarray:
    """Draw rows to hold out.

    With labels, each class gives its share of the rows (rounded so that the total is right) and
    keeps one row at least; a class of one row is never drawn from.

    Args:
        rows: Number of rows to draw from.
        fraction: Share to draw, strictly between 0 and 1; at least one row is drawn.
        seed: Seed of the draw.
        labels: Class of each row, or None for regression.

    Returns:
        Boolean mask, shape ``(rows,)``: true for held-out rows.

    Raises:
        BayespareError: If the fraction is out of range or there are too few rows.
    """
    if not 0 < fraction < 1:
        raise BayespareError(f"the share to hold out, {fraction}, is not between 0 and 1")
    if rows < 2:
        raise BayespareError(f"{rows} row(s) are too few to hold any out")
    random = np.random.default_rng(seed)
    count = min(max(1, round(rows * fraction)), rows - 1)
    if labels is None:
        groups, quotas = [np.arange(rows)], np.array([count])
    else:
        _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
        quotas = _quotas(sizes, count)
    held = np.zeros(rows, dtype=np.bool_)
    for group, quota in zip(groups, quotas, strict=True):
        held[random.permutation(group)[:quota]] = True
    if not held.any():
        raise BayespareError("every class has one row only: none can be held out")
    return held


def _quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """Share ``count`` out over classes by largest remainder, at most all but one of a class."""
    exact = sizes * (count / sizes.sum())
    quotas: np.ndarray = np.minimum(np.floor(exact).astype(np.int64), sizes - 1)
    while quotas.sum() < min(count, (sizes - 1).sum()):
        quotas[np.argmax(np.where(quotas < sizes - 1, exact - quotas, -np.inf))] += 1
    return quotas


def hold_out(dataset: Dataset, fraction: float = 0.1, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a dataset into the rows to train on and the rows held out, both in their order.

    Raises:
        BayespareError: As :func:`draw`.
    """
    labels = dataset.y.cpu().numpy() if dataset.task == "classification" else None
    held = torch.from_numpy(draw(len(dataset), fraction, seed, labels)).to(dataset.x.device)
    return dataset.subset(~held), dataset.subset(held)
