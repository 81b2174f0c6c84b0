"""Data ready for a run: read, split, and transformed by what the training part says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from bayespare.data.dataset import Dataset, Part, Splits
from bayespare.data.raw import Examples, Raw
from bayespare.data.read import read
from bayespare.data.split import draw
from bayespare.data.standardize import Standardize
from bayespare.data.table import Table
from bayespare.data.table_transform import Impute, TableTransform
from bayespare.data.target import Target, Task, infer_task
from bayespare.data.transform import Transform
from bayespare.errors import BayespareError, did_you_mean

TEST_SHARE = 0.2
TEST_SEED = 0

Standardized = Literal["both", "inputs", "target", "neither"]
"""What is shifted and scaled to mean 0 and deviation 1."""


class Inputs(NamedTuple):
    """New data for a fitted model: ``x``, and ``y`` where the data have targets."""

    x: Tensor
    y: Tensor | None


def load(
    spec: str,
    *,
    target: str | None = None,
    impute: Impute | None = None,
    drop: Sequence[str] = (),
    task: Task | None = None,
    standardize: Standardized = "both",
    valid: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Read a data set and split it; whatever is learnt from it is learnt from the training part.

    A test split that comes with the data is used; otherwise 20 % of the rows are drawn, always
    with the same seed. The validation split is drawn from the rest. Both draws keep the shares
    of the classes.

    Args:
        spec: A bundled name (``digits``, ``breast_cancer``, ``wine``, ``iris``, ``diabetes``) or a
            path: ``.npz``, ``.csv``, ``.tsv``, ``.parquet``, IDX file or folder, CIFAR folder.
        target: The column of a table to predict.
        impute: Fill the missing values of a table instead of refusing them.
        drop: Columns of a table that are not looked at; new data need not have them.
        task: What the target is, when :func:`infer_task` is not to decide.
        standardize: Whether inputs and a numeric target get mean 0 and deviation 1, as measured on
            the training part: ``both``, ``inputs``, ``target`` or ``neither``. Pixels in bytes are
            otherwise in [0, 1], other numbers as stored.
        valid: Share of the rows (after the test split) to hold out for validation.
        seed: Seed of the validation split.

    Raises:
        BayespareError: If the data cannot be read or learnt from; the message names the file
            and, where there is one, the row and column.
    """
    if standardize not in get_args(Standardized):
        known = did_you_mean(str(standardize), get_args(Standardized))
        raise BayespareError(f"standardize={standardize!r}: not known{known}")
    raw = read(spec, target=target)
    place = raw.train.place
    y = raw.train.labelled(raw.classes)
    kind, why = infer_task(y, place, task=task or raw.task)
    if raw.task is not None and task is None:
        why = f"{kind}: the data set says so"

    given = {"test": raw.test, "valid": raw.valid}
    labels = y if kind == "classification" else None
    try:
        rows = _draw(
            len(y), labels, given, {"test": (TEST_SHARE, TEST_SEED), "valid": (valid, seed)}
        )
    except BayespareError as error:
        raise BayespareError(f"{place}: {error}") from error
    fitted = Target.fit(y[rows["train"]], kind, place=place, column=raw.column, order=raw.classes)
    if standardize not in ("both", "target"):
        fitted = replace(fitted, scale=(0.0, 1.0))
    transform = _fit(raw, rows["train"], impute, drop)
    if standardize not in ("both", "inputs"):
        transform = transform.as_stored()
    whole = _dataset(raw, raw.train, fitted, transform)

    def part(name: Part) -> Dataset:
        own = given.get(name)
        if own is not None:
            return _dataset(raw, own, fitted, transform)
        return whole.subset(torch.from_numpy(rows[name]))

    path = Path(raw.source).resolve()
    return Splits(
        part("train"),
        part("valid"),
        part("test"),
        name=path.name.partition(".")[0] or path.name,
        source=raw.source,
        fingerprint=raw.fingerprint,
        target=fitted,
        note="; ".join([why, *_split_notes(given, valid), *_rare(labels)]),
    )


def read_inputs(spec: str, transform: Transform, *, target: Target | None = None) -> Inputs:
    """Read data that a fitted model is to predict or to be judged on.

    Of data with a test split of their own, the test split is read; otherwise all rows.

    Args:
        spec: As in :func:`load`; targets may be missing.
        transform: What the model was fitted with.
        target: What the model predicts; without it targets are not read.

    Returns:
        ``x``, and ``y`` if ``target`` is given and the data have targets.

    Raises:
        BayespareError: If the data cannot be read, do not fit the model, or hold a category or
            a label it does not know.
    """
    raw = read(spec, target=(target.column or None) if target else None, need_labels=False)
    examples = raw.test or raw.train
    x = transform.apply(examples.x, examples.place_of_x)
    if target is None or examples.y is None:
        return Inputs(x, None)
    return Inputs(x, target.encode(examples.labelled(raw.classes), examples.place))


def _draw(
    count: int,
    labels: np.ndarray | None,
    given: dict[str, Examples | None],
    shares: dict[str, tuple[float, int]],
) -> dict[str, np.ndarray]:
    """Positions of the rows of each part that is not given, ``train`` being what is left."""
    rows: dict[str, np.ndarray] = {}
    rest = np.arange(count)
    for part, (share, seed) in shares.items():
        if given[part] is None:
            held = draw(len(rest), share, seed, None if labels is None else labels[rest])
            rows[part], rest = rest[held], rest[~held]
    return {"train": rest, **rows}


def _fit(raw: Raw, train: np.ndarray, impute: Impute | None, drop: Sequence[str]) -> Transform:
    x = raw.train.x
    if isinstance(x, Table):
        mask = np.zeros(len(x), dtype=np.bool_)
        mask[train] = True
        return TableTransform.fit(x, mask, target=raw.column, impute=impute, drop=drop)
    for key, value in {"impute": impute, "drop": ",".join(drop)}.items():
        if value:
            raise BayespareError(f"{raw.source}: {key}={value} is for tables, this is not one")
    try:
        return Standardize.fit(
            x[train], per_channel=raw.per_channel, divisor=raw.divisor, features=raw.features
        )
    except BayespareError as error:
        raise BayespareError(f"{raw.train.place_of_x}: {error}") from error


def _dataset(raw: Raw, examples: Examples, target: Target, transform: Transform) -> Dataset:
    return Dataset(
        transform.apply(examples.x, examples.place_of_x),
        target.encode(examples.labelled(raw.classes), examples.place),
        target.task,
        classes=target.classes,
        features=transform.features,
        feature_groups=transform.feature_groups,
        target_scale=target.scale,
        transform=transform,
    )


def _split_notes(given: dict[str, Examples | None], valid: float) -> list[str]:
    drawn = {"test": f"{TEST_SHARE:.0%} drawn", "valid": f"{valid:.0%} of the rest drawn"}
    return [f"{part}: {'as given' if given[part] else drawn[part]}" for part in given]


def _rare(labels: np.ndarray | None) -> list[str]:
    """A remark on classes with so few rows that a split lacks them."""
    if labels is None:
        return []
    names, counts = np.unique(labels, return_counts=True)
    rare = [str(name) for name in names[counts < 3]]
    return [f"fewer than 3 rows of class {', '.join(rare[:5])}"] if rare else []
