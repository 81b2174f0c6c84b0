"""Every named network, half of it removed: saved, loaded, copied, pickled and exported as it is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from net_table import SMALL
from torch import nn

import bayespare
from bayespare import Point, Result, Verdict, nets
from bayespare.bayes.posterior import GaussianPosterior

ONE_OF_EACH = [
    (spec, inputs)
    for spec, inputs in SMALL
    # Deeper networks are more of the same blocks, and slow to trace and export.
    if not spec.startswith(("resnet44", "resnet56", "resnet110", "lenet5-wide"))
]

# ``tests/test_export.py`` has one of each of the other kinds.
ELSEWHERE = [
    "residual-mlp:6,5",
    "lenet300",
    "lenet:2,3,4,5",
    "resnet18:width=4,norm=fixup,act=gelu",
    "wrn:10,1,dropout=0.3",
]


def shrunk(spec: str, inputs: tuple[int, ...]) -> tuple[Result, nn.Module]:
    """A run's result with random parameters, about half of its units, and the network it was."""
    torch.manual_seed(0)
    model = nets.build(spec, inputs=inputs, outputs=3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor), alpha=0.3)
    example = torch.randn(2, *inputs)
    plan = bayespare.trace(model.eval(), example)
    keep = {group.name: torch.rand(group.size) < 0.5 for group in plan.groups}
    for flags in keep.values():
        flags[0] = True
    verdict = Verdict(plan, keep)
    small = bayespare.compact(model, verdict, example=example)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    std = {name: torch.rand_like(p) for name, p in small.named_parameters()}
    point = Point("e001", small, GaussianPosterior(std), verdict, {"name": "e001"})
    config = {"net": spec, "inputs": list(inputs), "outputs": 3, "task": "classification"}
    return Result(point, plan, {}, {}, [point], [], config, "classification"), model


@pytest.mark.parametrize(("spec", "inputs"), ONE_OF_EACH, ids=[spec for spec, _ in ONE_OF_EACH])
def test_widths_of_all_kinds_come_back(spec: str, inputs: tuple[int, ...], tmp_path: Path) -> None:
    result, model = shrunk(spec, inputs)
    small, x = result.model, torch.randn(3, *inputs)
    result.save(tmp_path)
    by_name, by_hand = bayespare.load(tmp_path), bayespare.load(tmp_path, model)
    copies = [by_name.model, by_hand.model, copy.deepcopy(small), pickle.loads(pickle.dumps(small))]
    other = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other.load_state_dict(small.state_dict())
        expected = small(x)
        for same in (*copies, other):
            assert torch.equal(same(x), expected)
    for name, std in result.posterior.std.items():
        assert torch.equal(by_name.posterior.std[name], std)


@pytest.mark.parametrize("spec", ELSEWHERE)
def test_other_runtimes_say_the_same(spec: str, tmp_path: Path) -> None:
    inputs = dict(SMALL)[spec]
    result, _ = shrunk(spec, inputs)
    for format in ("onnx", "torch"):
        path = tmp_path / f"model.{format}"
        # It runs the file on batches of other sizes before it keeps it.
        assert (
            bayespare.export(result.model, torch.zeros(1, *inputs), path, format).difference < 1e-5
        )
        assert path.is_file()
