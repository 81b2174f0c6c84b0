"""Data in memory: one part (:class:`Dataset`), and the three parts of a run (:class:`Splits`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bayespare.data.target import Target, Task
from bayespare.data.transform import Transform

__all__ = ["Dataset", "Part", "Splits", "Task"]

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples and their targets, ready for a network.

    Attributes:
        x: float32, shape ``(N, ...)``, standardised; or int64, token ids.
        y: Class indices, int64, shape ``(N,)``; or for regression float32, standardised by
            ``target_scale``.
        task: ``classification`` or ``regression``.
        classes: Labels in the order of their index; ``()`` for regression.
        features: Names of the flattened inputs; ``()`` for images.
        feature_groups: For a table the source column of each input: the one-hot inputs of one
            column share a number, and are kept or removed together. ``None``: each input alone.
        target_scale: Mean and standard deviation of the training targets in the user's units;
            ``(0, 1)`` for classification.
        transform: What made ``x`` from the user's data, to be applied to new data.
        weight: How often each example counts in the likelihood, float32, shape ``(N,)``; ``None``:
            once.
    """

    x: Tensor
    y: Tensor
    task: Task
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    feature_groups: tuple[int, ...] | None = None
    target_scale: tuple[float, float] = (0.0, 1.0)
    transform: Transform | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def outputs(self) -> int:
        """Size of the network's output: the number of classes, or 1 for regression."""
        return len(self.classes) if self.task == "classification" else 1

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return replace(self, x=self.x.to(device), y=self.y.to(device), weight=weight)

    def subset(self, index: Tensor) -> Dataset:
        """The examples at ``index`` (int64 positions or a boolean mask), in that order."""
        weight = None if self.weight is None else self.weight[index]
        return replace(self, x=self.x[index], y=self.y[index], weight=weight)

    def joined(self, other: Dataset) -> Dataset:
        """These examples, then those of another part of the same data."""
        x, y, weight = torch.cat([self.x, other.x]), torch.cat([self.y, other.y]), None
        if self.weight is not None or other.weight is not None:
            once = (p.x.new_ones(len(p)) if p.weight is None else p.weight for p in (self, other))
            weight = torch.cat(list(once))
        return replace(self, x=x, y=y, weight=weight)


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, validation and test data of one run.

    Attributes:
        train: Fitted on.
        valid: Chooses sizes, stopping and tempering.
        test: Read once, at the end.
        name: Short name for tables and folders.
        source: The bundled name or the path it came from.
        fingerprint: SHA-256 of the files' bytes or the raw arrays, hex.
        target: How labels or target values are written as ``y``.
        note: One line: which task, and why; how the data were split.
    """

    train: Dataset
    valid: Dataset
    test: Dataset
    name: str
    source: str
    fingerprint: str
    target: Target
    note: str = ""

    @property
    def transform(self) -> Transform | None:
        """The transform that all three parts went through, fitted on the training part."""
        return self.train.transform
