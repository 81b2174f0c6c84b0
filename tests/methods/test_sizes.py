"""Sizes that the papers report for their networks, counted on networks that were really cut."""

import pytest
import torch

from bayespare import Verdict, compact, count, nets, trace

CUTS = [  # spec, units kept per layer, MACs of the dense network and of what is left, parameters
    ("mlp:400,400", {}, 478_410, 478_410, 478_410),
    ("mlp:400,400", {"fc1": 68, "fc2": 40}, 478_410, 56_550, 56_550),
    ("mlp:400,400", {"fc1": 25, "fc2": 15}, 478_410, 20_175, 20_175),
    ("lenet5-wide", {}, 2_949_030, 2_949_030, 1_071_880),
    (
        "lenet5-wide",
        {"conv1": 14, "conv2": 7, "fc1": 13, "fc2": 15},
        2_949_030,
        368_751,
        4660,
    ),
]


@pytest.mark.parametrize(("spec", "kept", "dense", "macs", "parameters"), CUTS)
def test_published_structures_have_the_published_sizes(spec, kept, dense, macs, parameters):
    model = nets.build(spec, inputs=(1, 28, 28), outputs=10, seed=0)
    example = torch.randn(2, 1, 28, 28)
    plan = trace(model, example, check=False)
    keep = {name: torch.arange(plan[name].size) < number for name, number in kept.items()}
    small = compact(model, Verdict(plan, keep), example=example)
    assert count(model, example[:1]).macs == dense
    counted = count(small, example[:1])
    assert (counted.macs, counted.parameters) == (macs, parameters)
    assert sum(p.numel() for p in small.parameters()) == parameters
