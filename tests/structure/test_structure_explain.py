"""The table names every parameter once, with its gate, its couplings or the reason it has none."""

import torch
from structure_nets import lenet_wide, mlp

from bayespare.structure import trace
from bayespare.structure.explain import table


def test_table_of_an_mlp():
    model = mlp(4, 6, 2)
    assert table(trace(model, torch.randn(3, 4)), model).splitlines() == [
        "parameter  shape  gated by            coupled to                  left alone because",
        "---------  -----  ------------------  --------------------------  ------------------",
        "input             input (4 features)",
        "0.weight   6x4    0 (6 units)         input (4 entries of dim 1)",
        "0.bias     6      0 (6 units)",
        "2.weight   2x6                        0 (6 entries of dim 1)      network output",
        "2.bias     2                                                      network output",
    ]


def test_every_parameter_has_a_line():
    model = lenet_wide()
    plan = trace(model, torch.randn(2, 1, 28, 28))
    lines = table(plan, model).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["input", *dict(model.named_parameters())]
    assert "convolved" in lines[0]
    assert "3 (800 entries of dim 1)" in next(x for x in lines if x.startswith("7.0.weight"))
    for line in lines:
        name = line.split()[0]
        assert (name in plan.left_alone) == line.rstrip().endswith(plan.left_alone.get(name, "\n"))
