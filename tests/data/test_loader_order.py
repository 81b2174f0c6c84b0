"""A loader that shuffles gives the same rows in every process: so its run can be resumed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import bayespare
from bayespare.data import from_loader

N = 23
X = torch.arange(N, dtype=torch.float32)[:, None]
Y = torch.arange(N) % 2
ROWS = TensorDataset(X, Y)
SOME = [7, 3, 20, 11]


class Slices(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches instead of rows."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return X[5 * index : 5 * index + 5], Y[5 * index : 5 * index + 5]


def negative(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return -torch.stack([x for x, _ in batch]), torch.stack([y for _, y in batch])


def of(batches: BatchSampler) -> DataLoader[Any]:
    return DataLoader(ROWS, batch_sampler=batches)


SHUFFLED: dict[str, tuple[Callable[[], DataLoader[Any]], list[float]]] = {
    "shuffle": (lambda: DataLoader(ROWS, 5, shuffle=True), list(range(N))),
    "a rest that is dropped": (
        lambda: DataLoader(ROWS, 5, shuffle=True, drop_last=True),
        list(range(N)),
    ),
    "own generator": (
        lambda: DataLoader(ROWS, 5, shuffle=True, generator=torch.Generator().manual_seed(4)),
        list(range(N)),
    ),
    "batch sampler": (lambda: of(BatchSampler(RandomSampler(ROWS), 5, False)), list(range(N))),
    "subset": (lambda: DataLoader(ROWS, 2, sampler=SubsetRandomSampler(SOME)), SOME),
    "slices": (lambda: DataLoader(Slices(), batch_size=None, shuffle=True), list(range(20))),
    "own collation": (
        lambda: DataLoader(ROWS, 5, shuffle=True, collate_fn=negative),
        [-i for i in range(N)],
    ),
}


@pytest.mark.parametrize("name", SHUFFLED)
def test_rows_come_in_the_order_of_the_data(name: str) -> None:
    make, expected = SHUFFLED[name]
    loader = make()
    state = torch.get_rng_state()
    own = None if loader.generator is None else loader.generator.get_state()
    data = from_loader(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.x.flatten().tolist() == expected
    assert data.y.tolist() == [abs(i) % 2 for i in expected]
    assert loader.generator is None or torch.equal(loader.generator.get_state(), own)


class Twice(DataLoader[Any]):
    """A loader with a mind of its own."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield X, Y
        yield X, Y


class Backwards(BatchSampler):
    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(super().__iter__())[::-1])


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(ROWS, 5), list(range(N))),
        (DataLoader(ROWS, 5, drop_last=True), list(range(20))),
        (DataLoader(ROWS, 5, sampler=SOME), SOME),
        (of(Backwards(SequentialSampler(ROWS), 12, False)), [*range(12, N), *range(12)]),
        (Twice(ROWS, 5, shuffle=True), 2 * list(range(N))),
    ],
)
def test_a_loader_that_does_not_shuffle_is_taken_at_its_word(
    loader: DataLoader[Any], expected: list[int]
) -> None:
    assert from_loader(loader).x.flatten().tolist() == expected


def test_rows_that_are_drawn_again_are_still_drawn() -> None:
    weights = [0.0] * 4 + [1.0] * (N - 4)
    drawn = from_loader(DataLoader(ROWS, 5, sampler=WeightedRandomSampler(weights, 60)))
    assert len(drawn) == 60
    assert float(drawn.x.min()) >= 4
    again = RandomSampler(ROWS, replacement=True, num_samples=40)
    assert len(from_loader(DataLoader(ROWS, 5, sampler=again))) == 40
    few = from_loader(DataLoader(ROWS, 5, sampler=RandomSampler(ROWS, num_samples=9)))
    assert len(few) == 9


def test_a_run_of_a_loader_that_shuffles_goes_on(tmp_path: Path) -> None:
    x = torch.randn(300, 6)
    rows = TensorDataset(x, (x[:, 0] > 0).long())
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def stop(row: dict[str, Any]) -> None:
        if row["phase"] == "explore" and row["epoch"] == 2:
            raise KeyboardInterrupt

    def run(**more: Any) -> bayespare.Result:
        given: dict[str, Any] = {"epochs": 4, "folder": tmp_path, "baseline": False} | more
        loader = DataLoader(rows, 32, shuffle=True)
        return bayespare.sparsify(net, loader, method="ss-ig", device="cpu", **given)

    with pytest.raises(KeyboardInterrupt):
        run(report=stop)
    torch.manual_seed(9)
    resumed, whole = run(), run(folder=None)
    state = whole.model.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in resumed.model.state_dict().items())
