import io
import zipfile

import numpy as np
import pytest
import torch

from bayespare.data import load, read_inputs
from bayespare.errors import BayespareError

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(3, 2, (60, 4)) * [1, 10, 0.1, 0]
Y = np.arange(60) % 3


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


def test_columns_are_standardised_on_the_training_rows(save):
    splits = load(save(X=X, y=Y))
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [43, 5, 12]
    x = splits.train.x
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(dim=0, correction=0), torch.tensor([1.0, 1, 1, 0]))
    assert splits.train.features == ("x0", "x1", "x2", "x3")
    assert splits.train.feature_groups is None
    assert splits.name == "data"
    everything = torch.cat([splits.train.x, splits.valid.x, splits.test.x])
    raw = torch.from_numpy((X - splits.transform.mean) / splits.transform.std).float()
    assert sorted(everything[:, 0].tolist()) == sorted(raw[:, 0].tolist())


def test_given_parts_are_used(save):
    path = save(x_train=X, y_train=Y, x_val=X[:7], y_val=Y[:7], x_test=X[:5], y_test=Y[:5])
    splits = load(path)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [60, 7, 5]
    assert "test: as given; valid: as given" in splits.note
    assert splits.test.y.tolist() == Y[:5].tolist()


def test_regression_targets_are_standardised_and_can_be_put_back(save):
    y = X[:, :1] * 5 + 100
    splits = load(save(x=X, y=y))
    assert splits.train.task == "regression"
    assert splits.train.y.dtype == torch.float32
    assert splits.train.y.mean().abs() < 1e-6
    mean, std = splits.train.target_scale
    back = torch.cat([part.y for part in (splits.train, splits.valid, splits.test)]) * std + mean
    np.testing.assert_allclose(np.sort(back.numpy()), np.sort(y[:, 0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([5, -1])[Y % 2], ("-1", "5")),
        (np.array(["b", "a", "c"])[Y], ("a", "b", "c")),
        (np.array([b"b", b"a", b"c"])[Y], ("a", "b", "c")),
        (Y % 2 == 0, ("False", "True")),
        ((Y % 2).astype(float), ("0", "1")),
        (Y.astype(np.uint16)[:, None], ("0", "1", "2")),
    ],
)
def test_labels_of_any_kind(save, labels, classes):
    splits = load(save(x=X, y=labels))
    assert splits.train.task == "classification"
    assert splits.train.classes == classes
    _, y = read_inputs(save(x=X, y=labels), splits.transform, target=splits.target)
    text = [str(v.decode() if isinstance(v, bytes) else v) for v in labels.ravel().tolist()]
    assert [classes[i] for i in y] == [t.removesuffix(".0") for t in text]


def test_bytes_are_pixels(save):
    gray = RANDOM.integers(0, 256, (30, 6, 5), dtype=np.uint8)
    splits = load(save(x=gray, y=Y[:30]))
    assert splits.train.inputs == (1, 6, 5)
    colour = RANDOM.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    splits = load(save(x=colour, y=Y[:30]))
    assert splits.train.inputs == (3, 6, 5)
    x, _ = read_inputs(save(x=colour), splits.transform)
    mean, std = np.array(splits.transform.mean), np.array(splits.transform.std)
    slow = np.moveaxis((colour / 255 - mean) / std, 3, 1)
    np.testing.assert_allclose(x.numpy(), slow, atol=1e-5)
    with pytest.raises(BayespareError, match="fitted on bytes"):
        read_inputs(save(x=colour.transpose(0, 3, 1, 2) / 255), splits.transform)


def test_feature_names(save):
    splits = load(save(x=X, y=Y, feature_names=np.array(list("abcd"))))
    assert splits.train.features == ("a", "b", "c", "d")
    with pytest.raises(BayespareError, match="must be 4 different names"):
        load(save(x=X, y=Y, feature_names=np.array(list("abca"))))


def test_new_data_without_targets(save):
    splits = load(save(x=X, y=Y))
    for name in ("x", "X", "x_test"):
        x, y = read_inputs(save(**{name: X}), splits.transform, target=splits.target)
        assert x.shape == (60, 4)
        assert y is None


def write_member(path, fields):
    """An archive whose ``x`` has a header of our own, followed by the bytes of X."""
    header = f"{{{fields}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    labels = io.BytesIO()
    np.save(labels, Y)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member + X.tobytes())
        archive.writestr("y.npy", labels.getvalue())


def with_nan(array, *where, value=np.nan):
    array = array.astype(float)
    array[where] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X, "y": Y}, "no array 'x' or 'x_train' (it has a, y)"),
        ({"x": X}, "there is 'x' but no 'y'"),
        ({"x": X, "y": Y[:-1]}, "'x' has 60 rows, 'y' has 59"),
        ({"x": with_nan(X, 5, 3), "y": Y}, "array 'x', row 5, column 3 (counting from 0)"),
        ({"x": with_nan(X, 0, 1, value=-np.inf), "y": Y}, "the value is -inf"),
        ({"x": X, "y": with_nan(X[:, 0], 9)}, "array 'y', row 9"),
        ({"x": X, "y": np.zeros(60)}, "one value only ('0')"),
        ({"x": X, "y": np.array(["a"] * 60)}, "one value only ('a')"),
        ({"x": X, "y": np.eye(60)}, "one label or number for each row"),
        ({"x": X[:, 0], "y": Y}, "it must hold numbers, shape (N, ...)"),
        ({"x": X[:0], "y": Y[:0]}, "it must hold numbers, shape (N, ...)"),
        ({"x": X.astype(str), "y": Y}, "it must hold numbers"),
        ({"x": X + 1j, "y": Y}, "it must hold numbers"),
        ({"x": X, "y": np.array([f"id{i}" for i in range(60)])}, "60 distinct texts"),
        (
            {"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y},
            "array 'x_test': examples have shape (2,)",
        ),
        ({"x": X, "y": Y, "x_val": X[:, :2], "y_val": Y}, "array 'x_val': examples have shape"),
        (
            {"x": X, "y": Y, "x_test": with_nan(X, 3, 1, value=1e300), "y_test": Y},
            "'x_test', row 3",
        ),
        ({"x": X.astype(np.uint8), "y": Y, "x_test": X, "y_test": Y}, "array 'x_test': the model"),
        ({"x": X, "y": Y, "x_test": X}, "there is 'x_test' but no 'y_test'"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "label '3' is not one of the classes"),
        ({"x": X, "y": Y, "X": X}, "has the array 'X' twice"),
        ({"x": X * 1e300, "y": Y}, "array 'x': the training examples have too large values"),
        ({"x": X[:1], "y": Y[:1]}, "one value only"),
        ({"x": X[:2], "y": Y[:2]}, "every class has one row only"),
    ],
)
def test_wrong_arrays_are_one_line_errors(save, arrays, message):
    path = save(**arrays)
    with pytest.raises(BayespareError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_task_can_be_forced(save):
    assert load(save(x=X, y=Y), task="regression").train.task == "regression"
    assert load(save(x=X, y=Y.astype(float)), task="classification").train.outputs == 3
    with pytest.raises(BayespareError, match=r"row 0 .*task=classification needs labels"):
        load(save(x=X, y=X[:, 0]), task="classification")
    with pytest.raises(BayespareError, match="task=regression needs numbers, got 'a'"):
        load(save(x=X, y=np.array(["a", "b", "c"])[Y]), task="regression")
    with pytest.raises(BayespareError, match="did you mean 'regression'"):
        load(save(x=X, y=Y), task="regresion")


def test_pickled_objects_are_never_read(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{}, []], dtype=object), y=Y)
    with pytest.raises(BayespareError, match="holds pickled objects"):
        load(str(path))


@pytest.mark.parametrize("dtype", ["'|U0'", "'|V0'", "'|O'", "[('a', '<f8')]", "'no type'"])
def test_types_that_hold_no_numbers(tmp_path, dtype):
    path = tmp_path / "data.npz"
    write_member(path, f"'descr': {dtype}, 'fortran_order': False, 'shape': (60,)")
    with pytest.raises(BayespareError, match=r"array 'x' (is|holds)"):
        load(str(path))


@pytest.mark.parametrize("keep", [0, 10, 400, -200, -1])
def test_truncated_files(save, keep):
    path = save(x=X, y=Y)
    with open(path, "rb") as file:
        body = file.read()
    with open(path, "wb") as file:
        file.write(body[:keep])
    with pytest.raises(BayespareError, match=r"truncated or not an \.npz file"):
        load(path)


def test_flipped_bytes_give_the_right_answer_or_a_clear_error(save):
    path = save(x=X, y=Y)
    with open(path, "rb") as file:
        body = bytearray(file.read())
    caught = 0
    for position in range(0, len(body), 11):
        damaged = bytearray(body)
        damaged[position] ^= 0x5A
        with open(path, "wb") as file:
            file.write(damaged)
        try:
            load(path)
        except BayespareError:
            caught += 1
    assert caught > 0.8 * len(body) / 11


@pytest.mark.parametrize(
    "shape", ["(99999999, 99999999)", "(-1, 4)", "(60, 4", "(10**9,)", "(60, 5)"]
)
def test_hostile_headers_take_no_memory(tmp_path, shape):
    path = tmp_path / "hostile.npz"
    write_member(path, f"'descr': '<f8', 'fortran_order': False, 'shape': {shape}")
    with pytest.raises(BayespareError, match=r"array 'x' is (truncated|damaged)"):
        load(str(path))


def test_fortran_order_and_foreign_bytes_are_read_right(save):
    plain = load(save(x=X, y=Y))
    other = load(save(x=np.asfortranarray(X.astype(">f8")), y=Y.astype(">i2")))
    assert torch.equal(plain.train.x, other.train.x)
    assert torch.equal(plain.train.y, other.train.y)
