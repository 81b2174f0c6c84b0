"""Digits that all runs of the pipeline learn, and one run that several tests look at."""

from dataclasses import replace

import pytest
import torch
from digits_runs import short

from bayespare import Result
from bayespare.data import Dataset, load


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Dataset]:
    """A few hundred digits, half of the classes."""
    splits = load("digits")
    few = replace(splits.train, classes=splits.train.classes[:5])
    train, test = (
        replace(part, classes=few.classes).subset(part.y < 5)
        for part in (splits.train, splits.test)
    )
    return train.subset(torch.arange(400)), test


@pytest.fixture(scope="module")
def result(digits: tuple[Dataset, Dataset]) -> Result:
    """One run that is longer than the others and looked at from all sides."""
    return short(digits, epochs=48, batch=16)
