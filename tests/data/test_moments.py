"""A column that varies by rounding is constant; one with a large offset need not be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bayespare.data import Dataset, Standardize, load, transform_from_json
from bayespare.data.moments import settled
from bayespare.data.place import Place
from bayespare.select import _constant
from bayespare.sklearn.rows import Scaling

RANDOM = np.random.default_rng(0)
ROWS = 400
ONES = np.ones(ROWS)
HERE = Place("here")

CONSTANT = {
    "a number without a finite expansion": ONES * -273.15,
    "large, with the last digit off": 1e15 + RANDOM.integers(0, 2, ROWS) * 0.125,
    "a share of what is summed": RANDOM.dirichlet(np.ones(200), ROWS).sum(1),
    "zero": ONES * 0,
}
VARIES = {
    "large, beyond float32": 10**15.2 + RANDOM.normal(size=ROWS) * 30,
    "nanoseconds of a millisecond": 1.7e18 + RANDOM.integers(0, 10**6, ROWS),
    "large and negative": -1e12 + RANDOM.normal(size=ROWS),
    "tiny": RANDOM.normal(size=ROWS) * 1e-200,
}


def by_standardize(column: np.ndarray) -> tuple[torch.Tensor, bool]:
    x = np.stack([column, RANDOM.normal(size=ROWS)], axis=1)
    transform = Standardize.fit(x, per_channel=True)
    assert transform_from_json(json.loads(json.dumps(transform.to_json()))) == transform
    return transform.apply(x, HERE)[:, 0], 0 in transform.constant


def by_table(column: np.ndarray, folder: Path) -> tuple[torch.Tensor, bool]:
    lines = [f"{value!r},{i % 2}" for i, value in enumerate(column.tolist())]
    path = folder / "table.csv"
    path.write_text("a,y\n" + "\n".join(lines) + "\n")
    splits = load(str(path), target="y")
    transform = splits.transform
    assert transform is not None
    assert transform_from_json(json.loads(json.dumps(transform.to_json()))) == transform
    return splits.train.x[:, 0], transform.columns[0].constant


def by_estimator(column: np.ndarray) -> tuple[torch.Tensor, bool]:
    scaling = Scaling.fit(column[:, None], ONES)
    return scaling.apply(column[:, None])[:, 0].float(), bool(scaling.constant[0])


@pytest.mark.parametrize("way", ["array", "table", "estimator"])
@pytest.mark.parametrize("name", [*CONSTANT, *VARIES])
def test_all_ways_agree_on_what_varies(name, way, tmp_path):
    column = {**CONSTANT, **VARIES}[name]
    made, constant = {
        "array": by_standardize,
        "table": lambda c: by_table(c, tmp_path),
        "estimator": by_estimator,
    }[way](column)
    assert constant == (name in CONSTANT)
    if constant:
        assert (made == 0).all()
    else:
        assert made.mean().abs() < 1e-2
        assert made.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_differences_by_the_rounding_of_how_they_were_stored_are_none():
    single = np.float32(273.15) + np.spacing(np.float32(273.15)) * RANDOM.integers(0, 2, (ROWS, 1))
    assert Standardize.fit(single.astype(np.float32), per_channel=True).constant == (0,)
    assert Standardize.fit(single.astype(np.float64), per_channel=True).constant == ()


def test_what_was_constant_says_nothing_of_new_data_and_nothing_is_kept_as_stored():
    x = np.stack([ONES * 5, RANDOM.normal(size=ROWS)], axis=1)
    transform = Standardize.fit(x, per_channel=True)
    assert transform.apply(x[:1] + 2, HERE)[0, 0] == 0
    assert transform.as_stored().apply(x[:1] + 2, HERE)[0, 0] == 7
    images = np.full((9, 1, 2, 2), 7, dtype=np.uint8)
    whole = Standardize.fit(images, per_channel=False, divisor=255.0)
    assert (whole.apply(images, HERE) == 0).all()
    data = transform.to_json()
    del data["constant"]  # a run of an earlier version
    assert transform_from_json(data).constant == ()


def test_weights_count_where_a_column_is_measured_again():
    values = 1e15 + np.array([0.0, 100.0, 200.0])
    found = settled(np.array([1e15]), np.zeros(1), lambda _: values, weight=np.array([1.0, 0, 1]))
    assert (found.mean.item(), found.std.item()) == (1e15 + 100, 100.0)
    assert not found.constant.item()


def test_a_feature_without_a_finite_expansion_is_found_constant():
    x = torch.full((1000, 1), 0.1)
    data = Dataset(x, torch.arange(1000) % 2, "classification", classes=("a", "b"))
    assert _constant(data, torch.tensor([True]))
