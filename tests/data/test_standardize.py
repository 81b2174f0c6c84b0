import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bayespare.data import Standardize, transform_from_json
from bayespare.data.place import Place
from bayespare.errors import BayespareError

HERE = Place("here")


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 20), st.integers(1, 4)),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.booleans(),
)
def test_standardised_data_have_mean_zero_and_deviation_one_or_zero(x, per_channel):
    transform = Standardize.fit(x, per_channel=per_channel)
    z = transform.apply(x, HERE).double()
    groups = z.T if per_channel else z.flatten()[None]
    for values, std in zip(groups, transform.std, strict=True):
        assert values.mean().abs() < 1e-5
        spread = values.std(correction=0).item()
        assert spread == pytest.approx(1, abs=1e-4) or (std == 1 and spread < 1e-9)
    back = z.numpy() * transform.std + transform.mean
    np.testing.assert_allclose(back, x, atol=1e-6 * max(1, np.abs(x).max()))


@pytest.mark.parametrize("per_channel", [True, False])
def test_blocks_are_merged_exactly(per_channel):
    x = np.random.default_rng(0).normal(5, 3, (9000, 3, 2)).cumsum(axis=0)
    transform = Standardize.fit(x, per_channel=per_channel, divisor=2.0)
    axes = (0, 2) if per_channel else None
    np.testing.assert_allclose(transform.mean, np.atleast_1d((x / 2).mean(axis=axes)), rtol=1e-12)
    np.testing.assert_allclose(transform.std, np.atleast_1d((x / 2).std(axis=axes)), rtol=1e-12)


def test_a_large_offset_is_no_constant():
    x = 1.6e9 + np.arange(50.0)[:, None] / 10
    z = Standardize.fit(x, per_channel=True).apply(x, HERE)
    assert z.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    constant = np.full((50, 1), 0.1 + 0.2)
    assert Standardize.fit(constant, per_channel=True).apply(constant, HERE).abs().max() < 1e-9


def test_json_round_trip_and_damage():
    x = np.random.default_rng(0).normal(size=(10, 3, 4, 5))
    transform = Standardize.fit(x, per_channel=True, features=("a",))
    data = json.loads(json.dumps(transform.to_json()))
    assert transform_from_json(data) == transform
    for key, value in (
        ("kind", "other"),
        ("mean", [0.0]),
        ("std", [0.0, 1.0, 1.0]),
        ("std", [1.0, 1.0]),
        ("divisor", float("inf")),
        ("shape", []),
        ("shape", "abc"),
    ):
        with pytest.raises(BayespareError, match="damaged"):
            transform_from_json({**data, key: value})


@pytest.mark.parametrize("data", [{}, [], None, {"kind": "standardize"}, {"kind": "table"}])
def test_what_is_no_transform(data):
    with pytest.raises(BayespareError, match="damaged"):
        transform_from_json(data)


def test_inputs_that_do_not_fit():
    transform = Standardize.fit(np.ones((4, 3)), per_channel=True)
    with pytest.raises(BayespareError, match=r"here: examples have shape \(2,\), the model needs"):
        transform.apply(np.ones((4, 2)), HERE)
    with pytest.raises(BayespareError, match=r"here, row 1 .* too large"):
        transform.apply(np.array([[1, 1, 1], [1, 1e300, 1]]), HERE)
    with pytest.raises(BayespareError, match="too large"):
        Standardize.fit(np.array([[1e308], [-1e308]]), per_channel=True)


def test_bytes_take_the_fast_way_to_the_same_numbers():
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)
    transform = Standardize.fit(x, per_channel=True, divisor=255.0)
    shape = (1, 3, 1, 1)
    slow = (x / 255 - np.reshape(transform.mean, shape)) / np.reshape(transform.std, shape)
    torch.testing.assert_close(
        transform.apply(x, HERE), torch.from_numpy(slow).float(), atol=2e-6, rtol=1e-5
    )
