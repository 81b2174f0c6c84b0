import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from bayespare.data import Batches, Dataset, from_loader, from_tensors
from bayespare.errors import BayespareError


def dataset(rows):
    x = torch.arange(float(rows))[:, None]
    return Dataset(x, torch.arange(rows) % 3, "classification", classes=("0", "1", "2"))


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.booleans(), st.booleans())
def test_each_row_comes_once(rows, size, shuffle, drop_last):
    data = dataset(rows)
    if drop_last and rows < size:
        with pytest.raises(BayespareError, match=f"batch={size} is more than the {rows} rows"):
            Batches(data, size, shuffle=shuffle, drop_last=True)
        return
    batches = Batches(data, size, shuffle=shuffle, drop_last=drop_last)
    parts = list(batches)
    assert len(parts) == len(batches)
    assert batches.examples == rows
    lengths = [len(y) for _, y in parts]
    assert all(n == size for n in lengths[: len(lengths) if drop_last else -1])
    x = torch.cat([x for x, _ in parts]).flatten()
    y = torch.cat([y for _, y in parts])
    assert torch.equal(x.long() % 3, y)
    assert len(set(x.tolist())) == len(x) == (rows // size * size if drop_last else rows)
    if not shuffle:
        assert x.tolist() == sorted(x.tolist())


def test_order_comes_from_the_generator_and_changes_each_pass():
    def passes(seed):
        batches = Batches(
            dataset(30), 7, generator=torch.Generator().manual_seed(seed), shuffle=True
        )
        return [torch.cat([y for y, _ in batches]).flatten().tolist() for _ in range(2)]

    first = passes(1)
    assert first == passes(1)
    assert first != passes(2)
    assert first[0] != first[1]


@pytest.mark.parametrize(("rows", "size"), [(5, 0), (5, -1), (0, 4)])
def test_sizes_that_make_no_batches(rows, size):
    with pytest.raises(BayespareError):
        Batches(dataset(rows), size, shuffle=True)


def test_loader_becomes_a_dataset():
    x, y = torch.randn(23, 2, 3), torch.arange(23) % 4
    data = from_loader(DataLoader(TensorDataset(x.double(), y), batch_size=5))
    assert data.task == "classification"
    assert data.classes == ("0", "1", "2", "3")
    assert data.x.dtype == torch.float32
    torch.testing.assert_close(data.x, x)
    assert torch.equal(data.y, y)


def test_regression_loader_shares_the_training_scale():
    x = torch.randn(20, 2)
    train = from_loader([(x, x.sum(1, keepdim=True) * 3 + 7)])
    assert train.task == "regression"
    assert train.y.mean().abs() < 1e-6
    valid = from_loader([(x[:1].numpy(), np.array([7]))], like=train)
    mean, std = train.target_scale
    assert valid.y.item() == pytest.approx((7 - mean) / std, abs=1e-6)
    assert valid.target_scale == train.target_scale


def test_buffers_that_a_loader_uses_again_are_copied():
    def loader():
        x, y = torch.zeros(2, 1), torch.tensor([0, 1])
        for i in range(3):
            x.fill_(i)
            yield x, y

    assert from_loader(loader()).x.flatten().tolist() == [0, 0, 1, 1, 2, 2]


CLASSES = from_tensors(torch.zeros(4, 1), torch.tensor([0, 1, 2, 1]))


@pytest.mark.parametrize(
    ("batches", "like", "message"),
    [
        ([], None, "gives no batches"),
        ([torch.zeros(3)], None, "batch 0 is not a pair (x, y) but Tensor; of whole tensors make"),
        ((np.zeros((3, 2)), np.array(["a", "b", "a"])), None, "y holds text or objects"),
        ((np.zeros((3, 2)), np.zeros(4)), None, "x of shape (3, 2) and y of shape (4,)"),
        ([np.zeros((3, 2))] * 3, None, "but ndarray; of whole tensors make"),
        (7, None, "int gives no batches: give a pair (x, y), a torch Dataset"),
        ([[torch.zeros(3)] * 3], None, "but list of 3; a network that takes several inputs"),
        ([{"ids": 1, "labels": 2}], None, "but dict (ids, labels); give the DataLoader a collate"),
        (["text"], None, "batch 0 is not a pair (x, y) but str"),
        ([("text", [1])], None, "the loader's batch 0 holds what makes no tensor"),
        ([(torch.zeros(3, 1), torch.zeros(2))], None, "x of shape (3, 1) and y of (2,)"),
        ([(torch.zeros(3, 1), torch.randn(3, 2))], None, "(3, 2) holds several targets a row"),
        (
            [(torch.zeros(3, 1), torch.zeros(3, 4, 4).long())],
            None,
            "give one class index or number",
        ),
        (
            [(torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]))],
            None,
            "x is not finite in row 1",
        ),
        ([(torch.zeros(2, 1), torch.tensor([0.5, torch.inf]))], None, "y is not finite in row 1"),
        ([(torch.zeros(2, 1), torch.tensor([0, -1]))], None, "y holds -1 in row 1"),
        ([(torch.zeros(2, 1), torch.tensor([1, 1]))], None, "y holds one class only (1)"),
        ([(torch.zeros(2, 1), torch.tensor([1.5, 1.5]))], None, "one target value only"),
        ([(torch.zeros(2, 1), torch.tensor([0, 3]))], CLASSES, "y holds 3 in row 1"),
        ([(torch.zeros(2, 1), torch.tensor([0.0, 1.0]))], CLASSES, "y holds decimals"),
    ],
)
def test_wrong_loaders_are_one_line_errors(batches, like, message):
    with pytest.raises(BayespareError) as caught:
        from_loader(batches, like=like)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_smaller_last_batch_is_not_shared():
    data = from_tensors(torch.randn(10, 2), torch.arange(10) % 2)
    with pytest.raises(BayespareError, match="the last of the batches has 2 rows instead of 4"):
        Batches(data, 4, shuffle=False, share=slice(2))
    assert len(list(Batches(data, 4, shuffle=False, share=slice(2), drop_last=True))) == 2


def test_arrays_make_the_dataset_that_tensors_make():
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    made, same = from_tensors(x.numpy(), y.numpy()), from_tensors(x, y)
    assert torch.equal(made.x, same.x)
    assert torch.equal(made.y, same.y)
    assert made.classes == same.classes
    with pytest.raises(BayespareError, match="x holds text or objects"):
        from_tensors(np.array(["a", "b"]), y[:2])


class Pairs(TorchDataset):
    """Examples one by one, as torchvision's data sets give them."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


@pytest.mark.parametrize("form", ["pair", "arrays", "frame", "dataset", "stream", "loader"])
def test_data_in_whichever_form_are_the_same_dataset(form):
    x = torch.randn(2050, 3)
    y = (x[:, 0] > 0).long()
    one_by_one = Pairs(x, y)

    class Stream(IterableDataset):
        def __iter__(self):
            return (one_by_one[k] for k in range(len(one_by_one)))

    made = {
        "pair": lambda: (x, y),
        "arrays": lambda: [x.double().numpy(), y.numpy()],
        "frame": lambda: (pd.DataFrame(x.numpy()), pd.Series(y.numpy())),
        "dataset": lambda: one_by_one,
        "stream": Stream,
        "loader": lambda: DataLoader(one_by_one, batch_size=100),
    }
    before = torch.get_rng_state()
    found = from_loader(made[form]())
    assert torch.equal(found.x, x)
    assert torch.equal(found.y, y)
    assert found.task == "classification"
    # The loader is the user's own.
    assert form == "loader" or torch.equal(before, torch.get_rng_state())
