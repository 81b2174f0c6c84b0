"""``reduce`` and ``prune`` stopped anywhere: the same command goes on to the same network."""

from typing import Any

import pytest
import torch
from torch import nn

import bayespare
from bayespare import data
from bayespare.cli.folder import existing_run
from bayespare.data import Dataset
from bayespare.errors import BayespareError
from bayespare.posthoc import reduction
from test_reduce import digits, taught

QUICK = {"between": 1, "finetune": 1, "samples": 300, "seed": 3}


class Stopped(Exception):
    """What the user does."""


class Noisy(nn.Module):
    """Convolution, normalisation and dropout: memory formats, running sums, the global stream."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(54, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.drop(nn.functional.max_pool2d(x, 2).flatten(1)))


def images() -> tuple[nn.Module, Dataset, Dataset]:
    splits = data.load("digits")
    parts = []
    for part in (splits.train, splits.valid):
        rows = part.subset(torch.arange(min(len(part), 400)))
        parts.append(Dataset(rows.x.view(-1, 1, 8, 8), rows.y, rows.task, classes=rows.classes))
    torch.manual_seed(0)
    return taught(Noisy(), parts[0], 5), *parts


def rows_of_digits() -> tuple[nn.Module, Dataset, Dataset]:
    model, splits = digits("mlp:48,24")
    return model, splits.train, splits.valid


CASES = {
    "units": (bayespare.reduce, images, {"rounds": 3}),
    "units of rows": (bayespare.reduce, rows_of_digits, {"rounds": 3}),
    "inside a round": (bayespare.reduce, rows_of_digits, {"rounds": 2}),
    "weights": (bayespare.reduce, images, {"rounds": 2, "unit": "weight"}),
    "prune": (bayespare.prune, images, {"rounds": 2, "sparsity": (0.5, 0.8)}),
    "prune weights": (
        bayespare.prune,
        rows_of_digits,
        {"rounds": 2, "sparsity": (0.6, 0.9), "unit": "weight", "criterion": "random"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(case, tmp_path, monkeypatch):
    run, given, options = CASES[case]
    if case == "inside a round":
        monkeypatch.setattr(reduction, "as_good", lambda *_: False)
    model, train, valid = given()

    def result(**more: Any) -> bayespare.Result:
        return run(model, train, valid=valid, **QUICK, **options, **more)

    rows: list[dict[str, Any]] = []
    whole = result(report=rows.append)
    for stop in sorted({2, len(rows) // 2 + 1, len(rows)}):
        seen: list[dict[str, Any]] = []

        def report(row: dict[str, Any], stop: int = stop, seen: list[Any] = seen) -> None:
            seen.append(row)
            if len(seen) == stop:
                raise Stopped

        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            result(folder=folder, report=report)
        again: list[dict[str, Any]] = []
        found = result(folder=folder, report=again.append)
        # The step that was stopped in its last moment is done again, no other.
        assert len(again) == len(rows) - stop + 1
        told = [{k: v for k, v in row.items() if k != "seconds"} for row in found.history]
        assert told == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
        assert [p.name for p in found.frontier] == [p.name for p in whole.frontier]
        for one, other in zip(found.frontier, whole.frontier, strict=True):
            state = other.model.state_dict()
            assert all(torch.equal(t, state[n]) for n, t in one.model.state_dict().items())
            assert dict(one.summary) == dict(other.summary)


def test_another_run_is_refused(tmp_path):
    model, train, valid = rows_of_digits()
    options = QUICK | {"rounds": 2, "valid": valid, "folder": tmp_path}

    rows: list[dict[str, Any]] = []

    def later(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        bayespare.reduce(model, train, **options, report=later)
    for change, says in (({"finetune": 2}, "finetune=1, not 2"), ({"rounds": 5}, "rounds=2")):
        with pytest.raises(BayespareError, match=says):
            bayespare.reduce(model, train, **options | change)
    with pytest.raises(BayespareError, match="other data"):
        bayespare.reduce(model, train.subset(torch.arange(900)), **options)
    with pytest.raises(BayespareError, match="method=reduce, not prune"):
        bayespare.prune(model, train, valid=valid, sparsity=0.5, folder=tmp_path)


def test_a_run_that_was_stopped_in_python_is_said_to_be_unfinished(tmp_path):
    model, train, valid = rows_of_digits()
    rows: list[dict[str, Any]] = []

    def stop(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == 2:  # then the first step is kept
            raise Stopped

    with pytest.raises(Stopped):
        bayespare.reduce(model, train, valid=valid, folder=tmp_path, report=stop, **QUICK)
    says = "the run is not finished .* begun in Python: go on with the same call and folder="
    with pytest.raises(BayespareError, match=says):
        bayespare.load(tmp_path, model)
    with pytest.raises(BayespareError, match=says):
        existing_run(str(tmp_path), "eval")
