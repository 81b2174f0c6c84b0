"""Weighted examples: a whole weight is that many copies, one is none, zero is left out."""

import pytest
import torch
from curvature_nets import cases, perceptron
from torch import Tensor, nn

from bayespare.bayes.curvature import Curvature, curvature
from bayespare.bayes.likelihood import Gaussian
from bayespare.bayes.marginal import Laplace, Prior, laplace
from bayespare.errors import BayespareError

D = torch.float64
TIMES = torch.tensor([2, 0, 1, 3, 1, 2])
KINDS = ["ggn", "ef"]
STRUCTURES = [("diag", "expand"), ("kfac", "expand"), ("kfac", "reduce")]


def labelled(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, inputs, labels, and how often each counts."""
    model, x = cases()[name]
    with torch.no_grad():
        classes = model.eval()(x).shape[-1]
    y = torch.randint(0, classes, (len(x),), generator=torch.Generator().manual_seed(0))
    return model, x, y, TIMES[: len(x)]


def repeated(x: Tensor, y: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    return x.repeat_interleave(times, 0), y.repeat_interleave(times, 0)


def same(found: Curvature, expected: Curvature, *, exactly: bool = False) -> None:
    assert found.diagonal.keys() == expected.diagonal.keys()
    for name, block in expected.diagonal.items():
        _close(found.diagonal[name], block, exactly)
    assert found.factors.keys() == expected.factors.keys()
    for name, factors in expected.factors.items():
        assert found.factors[name].rows == pytest.approx(factors.rows) or factors.input is None, (
            name
        )
        _close(found.factors[name].output, factors.output, exactly)
        if factors.input is not None:
            _close(found.factors[name].input, factors.input, exactly)


def _close(found: Tensor | None, expected: Tensor, exactly: bool) -> None:
    assert found is not None
    if exactly:
        assert torch.equal(found, expected)
        return
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-6 * scale + 1e-25


@pytest.mark.parametrize(("structure", "sharing"), STRUCTURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(cases()))
def test_a_whole_weight_is_that_many_copies(name, kind, structure, sharing):
    """In every layout that examples can have, whatever the batches."""
    model, x, y, times = labelled(name)
    options = {"kind": kind, "structure": structure, "sharing": sharing}
    copies = zip(*(part.split(4) for part in repeated(x, y, times)), strict=True)
    expected = curvature(model, "classification", copies, **options)
    weight = times.float()
    whole = [(x, y, weight)]
    parts = [(x[:3], y[:3], weight[:3]), (x[3:], y[3:], weight[3:])]
    for batches in (whole, parts):
        found = curvature(model, "classification", batches, **options)
        same(found, expected)
        assert found.examples == len(x)  # rows: what a look at some of the data is scaled by


@pytest.mark.parametrize(("structure", "sharing"), STRUCTURES)
@pytest.mark.parametrize("kind", [*KINDS, "ggn-mc"])
@pytest.mark.parametrize("name", ["perceptron", "images", "decoder", "positions first"])
def test_weights_of_one_change_no_bit(name, kind, structure, sharing):
    model, x, y, _ = labelled(name)
    options = {"kind": kind, "structure": structure, "sharing": sharing}
    found, expected = (
        curvature(
            model,
            "classification",
            [batch],
            generator=torch.Generator().manual_seed(0),
            **options,
        )
        for batch in ((x, y, torch.ones(len(x))), (x, y))
    )
    same(found, expected, exactly=True)
    assert found.examples == expected.examples


@pytest.mark.parametrize("structure", ["diag", "kfac"])
@pytest.mark.parametrize("kind", [*KINDS, "ggn-mc"])
def test_a_weight_of_zero_leaves_an_example_out(kind, structure):
    model, x, y, _ = labelled("images")
    there = torch.tensor([True, True, False, True, False])
    # Labels are drawn in order: what is left out comes last.
    order = torch.cat([there.nonzero(), (~there).nonzero()]).squeeze(1)
    x, y, there = x[order], y[order], there[order]
    options = {"kind": kind, "structure": structure}
    found, expected = (
        curvature(
            model,
            "classification",
            [batch],
            generator=torch.Generator().manual_seed(0),
            **options,
        )
        for batch in ((x, y, there.float()), (x[there], y[there]))
    )
    same(found, expected)


def test_weights_need_not_be_whole():
    """Factors: the sum of weighted cotangents, the weighted mean of inputs."""
    torch.manual_seed(0)
    layer, x, y = nn.Linear(4, 3).double(), torch.randn(6, 4, dtype=D), torch.randint(0, 3, (6,))
    weight = 0.01 * torch.rand(6, dtype=D)
    options = {"kind": "ef", "structure": "kfac"}
    found = curvature(layer, "classification", [(x, y, weight)], **options).factors["weight"]
    gradient = layer(x).softmax(1) - nn.functional.one_hot(y, 3)
    expected = torch.einsum("n,no,np->op", weight, gradient, gradient).detach()
    torch.testing.assert_close(found.output, expected)
    assert found.input is not None
    expected = torch.einsum("n,ni,nj->ij", weight, x, x) / weight.sum()
    torch.testing.assert_close(found.input, expected)


def test_sums_of_weights_that_are_not_whole_add_up():
    """As of one sum over all, whatever the weights of each: .02 of one batch, 3 of the other."""
    torch.manual_seed(0)
    layer, x, y = nn.Linear(4, 3).double(), torch.randn(6, 4, dtype=D), torch.randint(0, 3, (6,))
    weight = torch.tensor([0.005, 0.01, 0.005, 1.5, 1.0, 0.5], dtype=D)
    options = {"kind": "ef", "structure": "kfac"}

    def of(rows: slice) -> Curvature:
        batches = [(x[rows], y[rows], weight[rows])]
        return curvature(layer, "classification", batches, **options)

    same(of(slice(3)).plus(of(slice(3, 6))), of(slice(6)))


def test_sampled_labels_of_weighted_examples_converge_to_the_exact_matrix():
    torch.manual_seed(0)
    model, x = perceptron().double(), torch.randn(6, 5, dtype=D)
    batch = (x, torch.zeros(6, dtype=torch.int64), torch.rand(6) * 3)
    exact = curvature(model, "classification", [batch], kind="ggn").diagonal
    generator = torch.Generator().manual_seed(0)
    sampled = curvature(
        model, "classification", [batch], samples=4000, generator=generator
    ).diagonal
    for name, block in exact.items():
        assert float((sampled[name] - block).norm() / block.norm()) < 0.1, name


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_outputs_at_every_position_have_the_weight_of_their_example(sharing):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3)).double()
    x, y = torch.randint(0, 5, (6, 4)), torch.randint(0, 3, (6, 4))
    y[0, 2:] = -100
    options = {"kind": "ef", "structure": "kfac", "sharing": sharing}
    batches = [(x, y, TIMES.float())]
    found = laplace(model, "classification", batches, kind="ef")
    expected = laplace(model, "classification", [repeated(x, y, TIMES)], kind="ef")
    assert float(found.log_likelihood()) == pytest.approx(float(expected.log_likelihood()))
    found = curvature(model, "classification", batches, **options)
    same(found, curvature(model, "classification", [repeated(x, y, TIMES)], **options))


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_the_evidence_of_weighted_examples_is_that_of_copies(task, structure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3 if task[0] == "c" else 1))
    model.double()
    x, y = torch.randn(6, 4, dtype=D), torch.randint(0, 3, (6,))
    likelihood = task if task[0] == "c" else Gaussian()
    y = y if task[0] == "c" else torch.randn(6, dtype=D)

    def of(*batches: tuple[Tensor, ...]) -> Laplace:
        return laplace(model, likelihood, batches, kind="ggn", structure=structure)

    found, expected = of((x, y, TIMES.float())), of(repeated(x, y, TIMES))
    prior = Prior(found.means, "layer")
    values = [float(each.log_evidence(prior).detach()) for each in (found, expected)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    if found.noise is not None and expected.noise is not None:
        assert found.noise.numbers == expected.noise.numbers == 9
        assert found.noise.squares == pytest.approx(expected.noise.squares)
    values = [
        float(each.log_evidence(prior).detach()) for each in (of((x, y, torch.ones(6))), of((x, y)))
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "weight", [torch.ones(5), torch.ones(6, 1), -torch.ones(6), torch.full((6,), torch.nan)]
)
def test_what_is_no_weight_is_refused(weight):
    x, y = torch.randn(6, 5), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(BayespareError, match="weights of 6 examples must be as many finite"):
        curvature(perceptron(), "classification", [(x, y, weight)])
