"""Batch norms at the end of a run have the statistics of its last weights, without noise."""

import copy

import pytest
import torch
from small_runs import Small, table
from torch import nn

from bayespare import sparsify
from bayespare.training.norms import measure_norms


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in network.named_buffers() if "running" in name}


@pytest.mark.parametrize("rows", [12, 33, 120])
def test_statistics_are_those_of_the_rows(rows):
    torch.manual_seed(0)
    network, data = Small(), table(inputs=(1, 6, 6), rows=rows)
    measure_norms(network, data)
    size = min(rows, 32)
    batches = network.conv(data.x)[: rows // size * size].split(size)
    mean = torch.stack([out.mean((0, 2, 3)) for out in batches]).mean(0)
    torch.testing.assert_close(network.norm.running_mean, mean, rtol=1e-4, atol=1e-5)


def test_what_a_run_returns_is_measured_on_its_last_weights():
    torch.manual_seed(0)
    data = table(inputs=(1, 6, 6))
    result = sparsify(
        Small(), data, valid=data, method="ss-ig", epochs=4, batch=24, baseline=False, samples=2
    )
    for point in result.frontier:
        again = copy.deepcopy(point.model)
        measure_norms(again, data)
        expected = buffers(again)
        for name, value in buffers(point.model).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
