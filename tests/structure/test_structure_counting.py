"""Counting against known networks and against the plain rule, layer by layer."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from structure_nets import cases, half, lenet_wide, mlp
from torch import nn

from bayespare.structure import Counts, compact, count, trace


@pytest.mark.parametrize(
    ("widths", "macs"),
    [((784, 400, 400, 10), 478_410), ((784, 25, 15, 10), 20_175), ((784, 68, 40, 10), 56_550)],
)
def test_mlp(widths, macs):
    counts = count(mlp(*widths), torch.randn(3, 784))
    assert counts.parameters == counts.nonzeros == counts.macs == macs
    assert counts.bytes == 4 * macs


def test_lenet():
    counts = count(lenet_wide(), torch.randn(2, 1, 28, 28))
    assert counts.parameters == 1_071_880
    assert counts.macs == 2_949_030


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_macs_follow_the_rule(case):
    expected = 0

    def add(module, args, out):
        nonlocal expected
        bias = module.bias is not None
        if isinstance(module, nn.Linear):
            expected += (module.in_features + bias) * module.out_features
        else:
            kernel = math.prod(module.kernel_size)
            positions = math.prod(out.shape[2:])
            expected += module.out_channels * (module.in_channels * kernel + bias) * positions

    for module in case.model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.register_forward_hook(add)
    assert count(case.model, case.example).macs == expected


def test_grouped_transposed_and_attention():
    x = torch.randn(2, 4, 6, 6)
    assert count(nn.Conv2d(4, 8, 3, groups=2), x).macs == 8 * (2 * 9 + 1) * 16
    assert count(nn.ConvTranspose2d(4, 8, 3), x).macs == 36 * 4 * 8 * 9 + 8 * 64

    class Attention(nn.Module):
        def forward(self, q):
            return nn.functional.scaled_dot_product_attention(q, q, q)

    assert count(Attention(), torch.randn(2, 3, 5, 8)).macs == 3 * 2 * 5 * 5 * 8


def test_what_is_counted_as_what():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2, bias=False))
    model[2].weight = nn.Parameter(torch.zeros(2, 6))
    model[0].bias.requires_grad_(False)  # it is frozen, and there
    counts = count(model, torch.randn(3, 4))
    assert counts.parameters == 24 + 6 + 12 + 12
    assert counts.nonzeros == 24 + 6 + 6  # the norm starts with ones and zeros
    # The weight that is zero is its shape alone.
    assert counts.bytes == 4 * (24 + 6 + 4 * 6) + 8 + 16
    assert counts.macs == (4 + 1) * 6 + 6 * 2
    assert model.training


def test_shared_tensors_are_stored_once():
    tied = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    tied[1].weight = tied[0].weight
    assert count(tied, torch.randn(2, 5)).bytes == 4 * (25 + 5 + 5)


def test_ratio():
    dense, x = mlp(20, 10, 2), torch.randn(2, 20)
    small = compact(dense, half(trace(dense, x)))
    gain = count(dense, x).ratio(count(small, x))
    assert gain["parameters"] == pytest.approx(232 / count(small, x).parameters)
    assert Counts(1, 0, 4, 2).ratio(Counts(0, 0, 2, 1)) == {
        "parameters": math.inf,
        "nonzeros": 1.0,
        "bytes": 2.0,
        "macs": 2.0,
    }
