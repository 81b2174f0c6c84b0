"""The target: which task it makes, and how labels or values become ``y``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bayespare.data.place import Place, hint, quote
from bayespare.errors import BayespareError, did_you_mean

Task = Literal["classification", "regression"]

MANY_CLASSES = 20
"""More distinct values than this make integers suspect of being a quantity."""

DISTINCT_SHARE = 0.05
"""... and they are one if more than this share of the rows are distinct."""


def infer_task(values: np.ndarray, place: Place, *, task: Task | None = None) -> tuple[Task, str]:
    """Tell classification from regression by the target's values.

    Text and booleans are classes. Whole numbers are classes unless there are more than 20
    distinct ones that make up more than 5 % of the rows. Other numbers are a quantity; numbers
    stored as floats are classes only if they are two whole numbers (0.0 and 1.0).

    Args:
        values: Raw target values, shape ``(N,)``.
        place: Where they came from.
        task: What the user says it is; checked, not doubted.

    Returns:
        The task, and the reason in one line.

    Raises:
        BayespareError: If the values are all equal, are free text, or do not fit ``task``.
    """
    if task is not None and task not in get_args(Task):
        raise BayespareError(f"unknown task {task!r}{did_you_mean(task, get_args(Task))}")
    distinct = np.unique(values)
    if len(distinct) == 1:
        raise BayespareError(
            f"{place}: the target has one value only ({quote(label_of(distinct[0]))}); "
            "nothing can be learnt from it"
        )
    is_number = values.dtype.kind in "iuf"
    if is_number and task is None:
        return _infer_numbers(distinct, len(values))
    if task == "regression":
        if not is_number:
            raise BayespareError(
                f"{place.row(0)}: task=regression needs numbers, got {quote(label_of(values[0]))}"
            )
        return "regression", "regression: as asked for"
    if is_number and not _whole(values).all():
        row = int(np.argmin(_whole(values)))
        raise BayespareError(
            f"{place.row(row)}: task=classification needs labels, got {values[row]}"
        )
    if not is_number and len(distinct) > max(MANY_CLASSES, len(values) // 2):
        raise BayespareError(
            f"{place}: {len(distinct)} distinct texts in {len(values)} rows are not class labels "
            f"(the first is {quote(label_of(values[0]))})"
        )
    if task is not None:
        return "classification", "classification: as asked for"
    kind = "boolean values" if values.dtype.kind == "b" else "texts"
    return "classification", f"classification: the target holds {len(distinct)} distinct {kind}"


def _infer_numbers(distinct: np.ndarray, rows: int) -> tuple[Task, str]:
    count = len(distinct)
    if distinct.dtype.kind == "f":
        if count == 2 and _whole(distinct).all():
            return "classification", "classification: the target holds 2 distinct whole numbers"
        return "regression", f"regression: the target holds {count} distinct decimal numbers"
    if count > MANY_CLASSES and count > DISTINCT_SHARE * rows:
        why = f"the target holds {count} distinct whole numbers in {rows} rows"
        return "regression", f"regression: {why}"
    return "classification", f"classification: the target holds {count} distinct whole numbers"


def _whole(values: np.ndarray) -> np.ndarray:
    return np.asarray(values == np.round(values))


def label_of(value: Any) -> str:
    """The label of a class: whole numbers without a decimal point, everything else as text."""
    if isinstance(value, np.floating | float) and float(value).is_integer():
        return str(int(value))
    return str(value)


@dataclass(frozen=True)
class Target:
    """What a network predicts, in the user's words and units.

    Attributes:
        task: ``classification`` or ``regression``.
        classes: Labels in the order of their index; ``()`` for regression.
        scale: Mean and standard deviation of the training targets; ``(0, 1)`` for classes.
        column: Name of the target column of a table, else ``""``.
    """

    task: Task
    classes: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)
    column: str = ""

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        task: Task,
        *,
        place: Place,
        column: str = "",
        order: Sequence[str] = (),
    ) -> Target:
        """Learn the labels, or the mean and standard deviation, of the training targets.

        Args:
            values: Raw targets of the training rows, shape ``(N,)``.
            task: What they are.
            place: Where they came from.
            column: Name of the target column of a table.
            order: The labels in an order of their own; otherwise they are sorted.

        Raises:
            BayespareError: If the values are constant.
        """
        distinct = np.unique(values)
        if len(distinct) < 2:
            raise BayespareError(
                f"{place}: the training rows hold one target value only "
                f"({quote(label_of(values[0]))})"
            )
        if task == "classification":
            labels = [label_of(value) for value in distinct]
            return cls(
                task, tuple(sorted(labels, key=order.index) if order else labels), column=column
            )
        exact = values.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            scale = (float(exact.mean()), float(exact.std()))
        if not np.isfinite(scale).all() or scale[1] == 0:
            raise BayespareError(f"{place}: the values are too large, or too close to each other")
        return cls(task, scale=scale, column=column)

    def encode(self, values: np.ndarray, place: Place) -> Tensor:
        """Write raw target values as ``y``: int64 indices, or standardised float32.

        Args:
            values: Shape ``(N,)``.
            place: Where they came from.

        Raises:
            BayespareError: If a label is not one of the classes, or a value is not a number.
        """
        if self.task == "regression":
            if values.dtype.kind not in "iuf":
                raise BayespareError(
                    f"{place.row(0)}: the target must be a number, got {quote(label_of(values[0]))}"
                )
            mean, std = self.scale
            return torch.from_numpy(((values.astype(np.float64) - mean) / std).astype(np.float32))
        distinct, inverse = np.unique(values, return_inverse=True)
        index = {label: i for i, label in enumerate(self.classes)}
        codes = np.array([index.get(label_of(v), -1) for v in distinct], dtype=np.int64)
        if (codes < 0).any():
            unknown = int(np.argmax(codes < 0))
            row = int(np.argmax(inverse == unknown))
            label = label_of(distinct[unknown])
            raise BayespareError(
                f"{place.row(row)}: label {quote(label)} is not one of the classes"
                f"{hint(label, self.classes)}"
            )
        return torch.from_numpy(codes[inverse])

    def to_json(self) -> dict[str, Any]:
        """Return the target as JSON-ready lists and strings."""
        return {
            "task": self.task,
            "classes": list(self.classes),
            "scale": list(self.scale),
            "column": self.column,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Rebuild what :meth:`to_json` wrote.

        Raises:
            BayespareError: If a field is missing or makes no sense.
        """
        try:
            mean, std = (float(v) for v in data["scale"])
            target = cls(
                data["task"], tuple(str(c) for c in data["classes"]), (mean, std), data["column"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BayespareError(f"the stored target is damaged: {error!r}") from error
        if target.task not in get_args(Task) or not np.isfinite(mean) or not 0 < std < np.inf:
            raise BayespareError("the stored target is damaged: its task or its scale is wrong")
        return target
