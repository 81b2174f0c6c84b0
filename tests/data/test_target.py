import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayespare.data import Target, infer_task
from bayespare.data.place import Place
from bayespare.errors import BayespareError

HERE = Place("here")


@pytest.mark.parametrize(
    ("values", "task", "why"),
    [
        (np.arange(100) % 10, "classification", "10 distinct whole numbers"),
        (np.arange(5000) % 100, "classification", "100 distinct whole numbers"),
        (np.arange(1000) % 100, "regression", "100 distinct whole numbers in 1000 rows"),
        (np.arange(20), "classification", "20 distinct whole numbers"),
        (np.arange(21), "regression", "21 distinct whole numbers in 21 rows"),
        (np.arange(20) / 2, "regression", "20 distinct decimal numbers"),
        (np.array([0.0, 1.0, 1.0]), "classification", "2 distinct whole numbers"),
        (np.array([0.0, 0.5, 0.5]), "regression", "2 distinct decimal numbers"),
        (np.array([0.0, 1.0, 2.0]), "regression", "3 distinct decimal numbers"),
        (np.array([True, False]), "classification", "2 distinct boolean values"),
        (np.array(["x", "y", "x"]), "classification", "2 distinct texts"),
    ],
)
def test_rule(values, task, why):
    inferred, reason = infer_task(values, HERE)
    assert inferred == task
    assert reason.startswith(f"{task}: ")
    assert why in reason


@settings(deadline=None)
@given(
    st.one_of(
        st.lists(st.integers(-5, 5), min_size=2, max_size=40),
        st.lists(st.text(max_size=3), min_size=2, max_size=40),
        st.lists(st.booleans(), min_size=2, max_size=40),
    )
)
def test_classes_can_be_decoded(values):
    # NumPy strips trailing NULs of text, which no label has.
    values = np.array([v.replace("\0", "0") if isinstance(v, str) else v for v in values])
    if len(set(values.tolist())) == 1:
        with pytest.raises(BayespareError, match="one value only"):
            infer_task(values, HERE)
        return
    target = Target.fit(values, "classification", place=HERE)
    codes = target.encode(values, HERE)
    assert codes.dtype == torch.int64
    assert [target.classes[i] for i in codes] == [str(v) for v in values.tolist()]
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40).filter(lambda v: np.std(v) > 1e-3))
def test_values_can_be_put_back(values):
    target = Target.fit(np.array(values), "regression", place=HERE)
    y = target.encode(np.array(values), HERE)
    mean, std = target.scale
    np.testing.assert_allclose(y.numpy() * std + mean, values, atol=1e-5 * np.abs(values).max())


def test_order_of_names_is_kept():
    names = ("malignant", "benign", "unseen")
    values = np.array(["benign", "malignant"])
    target = Target.fit(values, "classification", place=HERE, order=names)
    assert target.classes == ("malignant", "benign")


@pytest.mark.parametrize(
    "damage",
    [
        {"task": "guess"},
        {"scale": [0]},
        {"scale": [0, 0]},
        {"scale": [float("nan"), 1]},
        {"classes": 3},
    ],
)
def test_damaged_target_is_refused(damage):
    with pytest.raises(BayespareError, match="damaged"):
        Target.from_json({**Target("regression").to_json(), **damage})


def test_text_where_numbers_were():
    target = Target.fit(np.array([1.0, 2.5]), "regression", place=HERE)
    with pytest.raises(BayespareError, match=r"row 0 .*must be a number, got 'a'"):
        target.encode(np.array(["a"]), HERE)
