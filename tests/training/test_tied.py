"""Weights that several layers share: saved, resumed and loaded as one."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_identical, table
from torch import Tensor, nn

from bayespare import Result, load, sparsify
from bayespare.training.checkpoint import read_tensors, write_tensors


class Tied(nn.Module):
    """Two layers with one weight, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.alias = self.first
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(self.enter(x).relu()).relu()).relu())


class Killed(Exception):
    """Stands for a process that ends."""


def test_shared_memory_is_written_under_each_name(tmp_path):
    whole = torch.randn(4, 3)
    tensors = {"a": whole, "b": whole, "row": whole[1], "turned": whole.T, "none": torch.zeros(0)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    assert_identical(read_tensors(tmp_path / "x.safetensors"), tensors)


def test_a_tied_network_is_fitted_in_a_folder_resumed_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    network, data = Tied(), table()

    def run(folder: Path, kill: int = 0) -> Result:
        calls = itertools.count(1)

        def report(row: dict[str, Any]) -> None:
            if next(calls) == kill:
                raise Killed

        return sparsify(
            copy.deepcopy(network),
            data,
            folder=folder,
            report=report,
            epochs=6,
            baseline=False,
            samples=2,
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", 4)
    resumed = run(tmp_path / "killed")
    assert_identical(resumed.model.state_dict(), whole.model.state_dict())
    resumed.save(tmp_path / "saved")
    model = load(tmp_path / "saved", network).model
    assert_identical(model.state_dict(), whole.model.state_dict())
    for found in (resumed.model, model):
        assert found.second.weight is found.first.weight
        assert found.alias is found.first
