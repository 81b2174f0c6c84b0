import gzip
import struct

import numpy as np
import pytest
import torch

from bayespare.data import load, read_inputs
from bayespare.data.idx import read_idx
from bayespare.errors import BayespareError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (50, 5, 4), dtype=np.uint8)
LABELS = np.arange(50, dtype=np.uint8) % 3


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write(path, array, zipped):
    body = idx_bytes(array)
    path.write_bytes(gzip.compress(body) if zipped else body)


@pytest.fixture(params=["-idx,", "-idx,.gz", ".idx,", ".idx,.gz"])
def folder(request, tmp_path):
    mark, suffix = request.param.split(",")
    for part, rows in (("train", slice(40)), ("t10k", slice(40, 50))):
        write(tmp_path / f"{part}-images{mark}3-ubyte{suffix}", IMAGES[rows], bool(suffix))
        write(tmp_path / f"{part}-labels{mark}1-ubyte{suffix}", LABELS[rows], bool(suffix))
    return tmp_path


def test_folder_in_every_spelling(folder):
    splits = load(str(folder), valid=0.25)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [30, 10, 10]
    assert splits.train.inputs == (1, 5, 4)
    assert splits.train.classes == ("0", "1", "2")
    assert splits.train.features == ()
    assert "test: as given" in splits.note
    assert torch.equal(splits.test.y, torch.from_numpy(LABELS[40:].astype(np.int64)))
    assert splits.train.x.mean().abs() < 1e-6
    assert splits.train.x.std(correction=0) == pytest.approx(1, abs=1e-5)
    mean, std = splits.transform.mean[0], splits.transform.std[0]
    slow = (IMAGES[40:, None] / 255 - mean) / std
    np.testing.assert_allclose(splits.test.x.numpy(), slow, atol=1e-5)


def test_inputs_of_a_folder_and_of_a_file(folder):
    splits = load(str(folder))
    x, y = read_inputs(str(folder), splits.transform, target=splits.target)
    assert torch.equal(x, splits.test.x)
    assert torch.equal(y, splits.test.y)
    images = next(folder.glob("t10k-images*"))
    assert torch.equal(read_inputs(str(images), splits.transform).x, splits.test.x)
    next(folder.glob("t10k-labels*")).unlink()
    x, y = read_inputs(str(images), splits.transform, target=splits.target)
    assert torch.equal(x, splits.test.x)
    assert y is None


def test_file_with_its_labels(folder):
    splits = load(str(next(folder.glob("train-images*"))))
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 40
    assert "test: 20% drawn" in splits.note


BAD = {
    "empty": (b"", "begins with nothing"),
    "not_idx": (b"\x89PNG....", "not an IDX file of images: it begins with 89504e47"),
    "labels": (idx_bytes(LABELS), "begins with 00000801, not 00000803"),
    "header_cut": (idx_bytes(IMAGES)[:10], "truncated in its header"),
    "body_cut": (idx_bytes(IMAGES)[:-1], "truncated"),
    "too_long": (idx_bytes(IMAGES) + b"x", "has more"),
    "no_images": (idx_bytes(IMAGES[:0]), "it is empty"),
    "hostile": (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "truncated: its header"),
    "gz_cut": (gzip.compress(idx_bytes(IMAGES))[:-30], "damaged or truncated gzip"),
    "gz_short": (gzip.compress(idx_bytes(IMAGES)[:-5]), "promises 1000 bytes of data, it has 995"),
    "gz_flipped": (
        gzip.compress(idx_bytes(IMAGES))[:30] + b"\xff" * 300,
        "damaged or truncated gzip",
    ),
    "gz_hostile": (
        gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3)),
        "truncated: its header",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_one_line_errors(tmp_path, case):
    body, message = BAD[case]
    path = tmp_path / "images"
    path.write_bytes(body)
    with pytest.raises(BayespareError) as caught:
        read_idx(path, 3)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_must_match(tmp_path):
    write(tmp_path / "train-images-idx3-ubyte", IMAGES, False)
    write(tmp_path / "train-labels-idx1-ubyte", LABELS[:-2], False)
    with pytest.raises(BayespareError, match="50 images, but 48 labels"):
        load(str(tmp_path))


def test_labels_must_be_there(tmp_path):
    images = tmp_path / "train-images-idx3-ubyte"
    write(images, IMAGES, False)
    with pytest.raises(BayespareError, match="has no labels file"):
        load(str(tmp_path))
    with pytest.raises(BayespareError, match="no file of labels beside it"):
        load(str(images))


def test_a_test_part_alone_cannot_be_trained_on(tmp_path):
    write(tmp_path / "t10k-images-idx3-ubyte", IMAGES, False)
    write(tmp_path / "t10k-labels-idx1-ubyte", LABELS, False)
    with pytest.raises(BayespareError, match="no train-images"):
        load(str(tmp_path))


def test_unknown_label_in_the_test_part(tmp_path):
    for part, labels in (("train", LABELS), ("t10k", LABELS + 1)):
        write(tmp_path / f"{part}-images-idx3-ubyte", IMAGES, False)
        write(tmp_path / f"{part}-labels-idx1-ubyte", labels, False)
    with pytest.raises(BayespareError, match=r"t10k-labels.*row 2 .*label '3' is not one of"):
        load(str(tmp_path))
