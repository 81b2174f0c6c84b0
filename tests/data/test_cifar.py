import numpy as np
import pytest

from bayespare.data import load, read_inputs
from bayespare.errors import BayespareError

RANDOM = np.random.default_rng(1)


def records(count, label_bytes, classes):
    body = RANDOM.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    body[:, label_bytes - 1] = np.arange(count) % classes
    return body


@pytest.fixture
def cifar10(tmp_path):
    parts = [records(20, 1, 10) for _ in range(3)]
    for name, body in zip(
        ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"), parts, strict=True
    ):
        body.tofile(tmp_path / name)
    return tmp_path, parts


def test_cifar10(cifar10):
    folder, parts = cifar10
    (folder / "batches.meta.txt").write_text("\n".join("zyxwvutsrq") + "\n\n")
    splits = load(str(folder))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (36, 4, 20)
    assert splits.train.inputs == (3, 32, 32)
    assert splits.train.classes == tuple("zyxwvutsrq")  # the order of the file, not the alphabet
    assert splits.test.y.tolist() == [i % 10 for i in range(20)]
    assert splits.train.x.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    mean, std = (np.array(v)[:, None, None] for v in (splits.transform.mean, splits.transform.std))
    slow = (parts[2][3, 1:].reshape(3, 32, 32) / 255 - mean) / std
    np.testing.assert_allclose(splits.test.x[3].numpy(), slow, atol=1e-5)
    again = read_inputs(str(folder / "test_batch.bin"), splits.transform, target=splits.target)
    assert again.x.equal(splits.test.x)
    assert again.y.equal(splits.test.y)


def test_cifar100_takes_the_fine_label(tmp_path):
    records(300, 2, 100).tofile(tmp_path / "train.bin")
    records(100, 2, 100).tofile(tmp_path / "test.bin")
    splits = load(str(tmp_path))
    assert splits.train.outputs == 100
    assert splits.test.y.tolist() == list(range(100))


def test_size_must_be_whole_records(cifar10):
    folder, _ = cifar10
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BayespareError, match=r"data_batch_2.bin: truncated .*61453 bytes"):
        load(str(folder))
    path.write_bytes(b"")
    with pytest.raises(BayespareError, match="0 bytes"):
        load(str(folder))


def test_labels_must_be_classes(cifar10):
    folder, parts = cifar10
    parts[0][7, 0] = 10
    parts[0].tofile(folder / "data_batch_1.bin")
    with pytest.raises(BayespareError, match="label 10 in record 7"):
        load(str(folder))


def test_the_pickled_version_is_named(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(BayespareError, match="get the binary version"):
        load(str(tmp_path))
