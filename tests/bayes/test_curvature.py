"""The exact diagonal, held against dense Jacobians, for every way of using a parameter."""

import gc
import math
import os

import pytest
import torch
from curvature_nets import CLASSES, Decoder, cases, perceptron
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from bayespare import nets
from bayespare.bayes.curvature import curvature, estimate
from bayespare.bayes.likelihood import Distilled, Gaussian
from bayespare.errors import BayespareError, UnsupportedStructureError

NAMES = list(cases())


def oracle(model, x, y, kind):
    """Diagonal by Jacobians of one example after the other."""
    model.eval()
    values = {name: p.detach() for name, p in model.named_parameters()}

    def run(values, x):
        return functional_call(model, values, (x[None],))[0]

    total = {name: torch.zeros_like(value) for name, value in values.items()}
    with sdpa_kernel(SDPBackend.MATH):
        for x_n, y_n in zip(x, y, strict=True):
            if kind == "ef":
                rows = grad(lambda v, x=x_n, y=y_n: functional.cross_entropy(run(v, x), y))(values)
                for name, row in rows.items():
                    total[name] += row.square()
                continue
            jacobian = jacrev(run)(values, x_n)
            p = run(values, x_n).softmax(0)
            hessian = p.diag() - p.outer(p)
            for name, rows in jacobian.items():
                total[name] += torch.einsum("c...,cd,d...->...", rows, hessian, rows)
    return total


def labels(model, x):
    model.eval()
    with torch.no_grad():
        outputs = model(x).shape[-1]
    return torch.randint(0, outputs, (len(x),), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["ggn", "ef"])
@pytest.mark.parametrize("name", NAMES)
def test_diagonal_is_that_of_the_dense_jacobian(name, kind):
    model, x = cases()[name]
    y = labels(model, x)
    found = curvature(model, "classification", [(x[:3], y[:3]), (x[3:], y[3:])], kind=kind)
    expected = oracle(model, x, y, kind)
    assert found.examples == len(x)
    assert found.diagonal.keys() == expected.keys()
    for parameter, block in expected.items():
        scale = float(block.abs().max())
        difference = float((found.diagonal[parameter] - block).abs().max())
        # A key's bias has no effect on a softmax: its curvature is rounding.
        assert difference <= 1e-9 * scale + 1e-25, parameter
        assert scale > 0, parameter


def test_empirical_fisher_is_that_of_vmapped_gradients(float64):
    torch.manual_seed(0)
    model, x, y = perceptron(), torch.randn(40, 5), torch.randint(0, 3, (40,))
    values = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values, x, y):
        return functional.cross_entropy(functional_call(model, values, (x[None],))[0], y)

    rows = vmap(grad(loss), (None, 0, 0))(values, x, y)
    found = curvature(model, "classification", [(x, y)], kind="ef")
    for name, row in rows.items():
        torch.testing.assert_close(found.diagonal[name], row.square().sum(0))


def test_sampled_labels_converge_to_the_exact_matrix():
    model, x = cases()["images"]
    y = labels(model, x)
    exact = curvature(model, "classification", [(x, y)], kind="ggn").diagonal
    errors = []
    for samples in (4, 400):
        generator = torch.Generator().manual_seed(0)
        found = curvature(
            model, "classification", [(x, y)], samples=samples, generator=generator
        ).diagonal
        total = sum(float(block.sum()) for block in exact.values())
        errors.append(
            sum(float((found[n] - block).abs().sum()) for n, block in exact.items()) / total
        )
    assert errors[1] < 0.1 < errors[0]
    again = curvature(
        model, "classification", [(x, y)], samples=400, generator=torch.Generator().manual_seed(0)
    ).diagonal
    assert all(torch.equal(again[name], found[name]) for name in found)


@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_batch_size_and_order_of_registration_do_not_matter(structure):
    model, x = cases()["vision"]
    y = labels(model, x)
    one = curvature(model, "classification", [(x, y)], kind="ggn", structure=structure)
    singles = [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    model._modules = dict(reversed(model._modules.items()))
    model._parameters = dict(reversed(model._parameters.items()))
    many = curvature(model, "classification", singles, kind="ggn", structure=structure)
    halves = [
        curvature(model, "classification", part, kind="ggn", structure=structure)
        for part in (singles[:1], singles[1:])
    ]
    for other in (many, halves[0].plus(halves[1])):
        assert other.examples == one.examples
        assert other.diagonals().keys() == one.diagonals().keys()
        for name, block in one.diagonal.items():
            torch.testing.assert_close(other.diagonal[name], block)
        for name, factors in one.factors.items():
            torch.testing.assert_close(other.factors[name].output, factors.output)
            if factors.input is not None:
                torch.testing.assert_close(other.factors[name].input, factors.input)


def test_regression_has_the_noise_in_it(float64):
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(9, 3), 0
    y = torch.randn(9)
    likelihood = Gaussian()
    likelihood.log_noise.data.fill_(math.log(0.5))
    values = {name: p.detach() for name, p in model.named_parameters()}
    rows = vmap(jacrev(lambda v, x: functional_call(model, v, (x,))[0]), (None, 0))(values, x)
    found = curvature(model, likelihood, [(x, y)], kind="ggn").diagonal
    sampled = curvature(
        model, likelihood, [(x, y)], samples=3000, generator=torch.Generator().manual_seed(0)
    ).diagonal
    fisher = curvature(model, likelihood, [(x, y)], kind="ef").diagonal
    residual = (model(x)[:, 0] - y).detach()
    for name, row in rows.items():
        torch.testing.assert_close(found[name], 4 * row.square().sum(0))
        torch.testing.assert_close(sampled[name], found[name], rtol=0.2, atol=1e-6)
        weights = (4 * residual).square().view(-1, *[1] * (row.ndim - 1))
        torch.testing.assert_close(fisher[name], (row.square() * weights).sum(0))


def test_soft_targets_share_the_matrix_of_hard_ones():
    model, x = cases()["perceptron"]
    y = labels(model, x)
    soft = functional.one_hot(y, CLASSES).double() * 0.7 + 0.1
    hard = curvature(model, "classification", [(x, y)], kind="ggn").diagonal
    other = curvature(model, Distilled(), [(x, soft)], kind="ggn").diagonal
    assert all(torch.equal(hard[name], other[name]) for name in hard)


def test_published_vector_of_weight_sharing(float64):
    """Card, vector 11: two positions a = (1, 2), (3, -1) with cotangents 1, -2."""

    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x):
            return (self.layer(x)[..., 0] * torch.tensor([1.0, -2.0])).sum(1, keepdim=True)

    data = [(torch.tensor([[[1.0, 2.0], [3.0, -1.0]]]), torch.zeros(1))]
    exact = curvature(Signed(), "regression", data, kind="ggn").diagonal
    torch.testing.assert_close(exact["layer.weight"], torch.tensor([[25.0, 16.0]]))
    torch.testing.assert_close(exact["layer.bias"], torch.tensor([1.0]))
    expected = {
        "expand": ([[5, -0.5], [-0.5, 2.5]], 5.0, 5.0),
        "reduce": ([[4, 1], [1, 0.25]], 1.0, 1.0),
    }
    for sharing, (inputs, outputs, bias) in expected.items():
        found = curvature(
            Signed(), "regression", data, kind="ggn", structure="kfac", sharing=sharing
        ).factors
        torch.testing.assert_close(found["layer.weight"].input, torch.tensor(inputs))
        assert float(found["layer.weight"].output) == outputs
        assert float(found["layer.bias"].diagonal()) == bias


def test_modes_and_statistics_stay():
    model, x = cases()["images"]
    model.train()
    model[4].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curvature(model, "classification", [(x, torch.zeros(len(x), dtype=torch.int64))])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_and_unused_parameters():
    model, x = cases()["perceptron"]
    model[0].weight.requires_grad_(False)
    model.spare = nn.Linear(2, 2).double()
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    found = curvature(model, "classification", [(x, labels(model, x))])
    assert "0.weight" not in found.diagonal
    assert found.unused == ("spare.weight", "spare.bias")
    assert not found.diagonal["spare.weight"].any()


class _Double(torch.autograd.Function):
    """Computes outside of PyTorch, where nobody sees it."""

    @staticmethod
    def forward(ctx, weight):
        return torch.from_numpy(weight.detach().numpy() * 2)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class _Hidden(nn.Linear):
    def forward(self, x):
        return super().forward(x) + (x * _Double.apply(self.weight)[0]).sum(1, keepdim=True)


class _Einsum(nn.Linear):
    def forward(self, x):
        return torch.einsum("ni,oi->no", x, self.weight)


class _Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(5, 3, batch_first=True)

    def forward(self, x):
        return self.cell(x.unsqueeze(1))[0][:, -1]


class _Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.layer = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(x + self.inner(torch.eye(5, dtype=x.dtype))[0])


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (_Hidden(5, 3), ["'weight'", "cannot be seen"]),
        (_Einsum(5, 3), ["'weight'", "einsum"]),
        (_Last(), ["cell.weight_ih_l0"]),
        (_Table(), ["inner", "does not depend"]),
        (
            nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)),
            ["1.weight", "mixes the examples"],
        ),
    ],
)
def test_a_use_that_is_not_followed_is_refused_by_name(model, names):
    model.double()
    x = torch.randn(4, 5, dtype=torch.float64)
    with pytest.raises(UnsupportedStructureError) as error:
        curvature(model, "classification", [(x, torch.zeros(4, dtype=torch.int64))])
    assert all(name in str(error.value) for name in names)


def test_memory_is_estimated_and_refused_before_it_is_taken(caplog, monkeypatch):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 40_000))
    x, y = torch.randn(2, 8), torch.zeros(2, dtype=torch.int64)
    assert estimate(model, x).blocks == 4 * sum(p.numel() for p in model.parameters())
    whole = estimate(model, x, structure="kfac")
    assert whole.largest == "2.weight"
    entries = 64 + 16 + 16 + 40_000**2  # a bias has its weight's factor
    assert (whole.blocks, whole.decomposed) == (4 * entries, 16 * entries)
    with pytest.raises(BayespareError, match=r"32 GB .*'2\.weight' 6\.4 GB.*structure='diag'"):
        curvature(model, "classification", [(x, y)], structure="kfac", max_memory_gb=30)
    with monkeypatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: 2**17)
        with pytest.raises(BayespareError, match=r"32 GB .*this machine has 17\.2 GB"):
            curvature(model, "classification", [(x, y)], structure="kfac")
    with caplog.at_level("INFO", logger="bayespare"):
        curvature(model, "classification", [(x, y)], max_memory_gb=0.5)
    assert "curvature of 4 parameters" in caplog.text
    assert "'2.weight'" in caplog.text


def test_the_estimate_holds_the_unfolded_inputs_of_convolutions():
    model = nn.Sequential(nn.Conv2d(64, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, y = torch.randn(1, 64, 64, 64), torch.zeros(1, dtype=torch.int64)
    unfolded = 4 * 64 * 9 * 64 * 64
    assert estimate(model, x, structure="kfac").working >= unfolded
    with pytest.raises(BayespareError, match="curvature needs"):
        curvature(model, "classification", [(x, y)], structure="kfac", max_memory_gb=0.5e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "fisher"}, "unknown kind 'fisher'"),
        ({"structure": "kfca"}, "did you mean 'kfac'"),
        ({"sharing": "both"}, "unknown sharing"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_bad_settings(options, message):
    x = torch.randn(2, 5)
    with pytest.raises(BayespareError, match=message):
        curvature(perceptron(), "classification", [(x, torch.zeros(2).long())], **options)


def test_bad_input():
    x = torch.randn(2, 5)
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(BayespareError, match="no batches"):
        curvature(perceptron(), "classification", [])
    frozen = perceptron().requires_grad_(False)
    with pytest.raises(BayespareError, match="no trainable parameter"):
        curvature(frozen, "classification", [(x, y)])
    with pytest.raises(BayespareError, match=r"'0\.weight'.*not finite"):
        curvature(perceptron(), "classification", [(x * 1e30, y)], kind="ef")
    for kind in ("ggn-mc", "ggn", "ef"):
        with pytest.raises(BayespareError, match="outputs are not finite"):
            curvature(perceptron(), "classification", [(x * math.nan, y)], kind=kind)
        # The wiring is found on the first batch alone.
        with pytest.raises(BayespareError, match="outputs are not finite"):
            curvature(perceptron(), "classification", [(x, y), (x * math.inf, y)], kind=kind)
    with pytest.raises(BayespareError, match="first dimension"):
        curvature(nn.Sequential(nn.Linear(5, 3), nn.Flatten(0)), "classification", [(x, y)])


@pytest.mark.parametrize("kind", ["ggn-mc", "ggn", "ef"])
def test_classes_in_another_dimension_than_the_last_are_refused(kind):
    model = nn.Conv2d(3, 4, 3, padding=1)
    x, y = torch.randn(5, 3, 6, 6), torch.randint(0, 4, (5, 6, 6))
    with pytest.raises(BayespareError, match=r"\(5, 6, 6\).*\(5, 4, 6, 6\): classes have to lie"):
        curvature(model, "classification", [(x, y)], kind=kind)


def test_a_task_that_nobody_knows_is_not_a_regression():
    data = [(torch.randn(2, 5), torch.zeros(2).long())]
    with pytest.raises(BayespareError, match=r"'clasification'.*did you mean 'classification'"):
        curvature(perceptron(), "clasification", data)


def test_language_model_outputs_at_every_position(float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    x = torch.randint(0, 5, (3, 4))
    y = torch.randint(0, 5, (3, 4))
    y[0, 2:] = -100
    total = torch.zeros(5, 4)
    for x_n, y_n in zip(x, y, strict=True):
        loss = functional.cross_entropy(model(x_n), y_n, reduction="sum")
        total += torch.autograd.grad(loss, model[1].weight)[0].square()
    found = curvature(model, "classification", [(x, y)], kind="ef").diagonal
    torch.testing.assert_close(found["1.weight"], total)
    silent = torch.full_like(y, -100)
    assert not curvature(model, "classification", [(x, silent)]).diagonal["1.weight"].any()
    with pytest.raises(BayespareError, match="ggn-mc"):
        curvature(model, "classification", [(x, y)], kind="ggn")


def test_tokens_as_keyword_arguments():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, *, values, mask):
            return {"logits": self.layer(values * mask)}

    x = {"values": torch.randn(4, 3), "mask": torch.ones(4, 1)}
    y = torch.zeros(4, dtype=torch.int64)
    model = Named()
    found = curvature(model, "classification", [(x, y)], kind="ef").diagonal
    plain = nn.Sequential(model.layer)
    expected = curvature(plain, "classification", [(x["values"], y)], kind="ef").diagonal
    torch.testing.assert_close(found["layer.weight"], expected["0.weight"])


@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_as_many_positions_as_examples_are_still_positions(structure):
    """A lookup of positions that all examples share, in a batch that is as long as it is wide."""
    torch.manual_seed(0)
    model = Decoder(tied=False).double()
    x, y = torch.randint(0, 7, (6, 6)), torch.randint(0, 7, (6,))

    def of(batches):
        options = {"kind": "ef", "structure": structure}
        return curvature(model, "classification", batches, **options).diagonals()

    found, expected = of([(x, y)]), of([(x[:2], y[:2]), (x[2:], y[2:])])
    alone = of([(x[:5], y[:5]), (x[5:], y[5:])])
    for name, block in expected.items():
        torch.testing.assert_close(found[name], block)
        torch.testing.assert_close(alone[name], block)


@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_an_index_for_each_example_may_count_up(structure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.arange(6), torch.randint(0, 3, (6,))

    def of(order):
        options = {"kind": "ef", "structure": structure}
        return curvature(model, "classification", [(x[order], y[order])], **options).diagonals()

    found, expected = of(torch.arange(6)), of(torch.tensor([4, 2, 0, 5, 1, 3]))
    for name, block in expected.items():
        torch.testing.assert_close(found[name], block)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda part, x: checkpoint(part, x, use_reentrant=False), "curvature: activation check"),
        (lambda part, x: checkpoint(part, x, use_reentrant=True), "if that is checkpointing: act"),
        (lambda part, x: torch.no_grad()(part)(x), r"'body.weight': .*\(requires_grad_\(False\)\)"),
    ],
    ids=["checkpointed", "reentrant", "no_grad"],
)
def test_what_the_backward_pass_does_not_show_is_refused(run, says):
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.body, self.leave = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.leave(run(self.body, self.enter(x).relu()).relu())

    batch = (torch.randn(6, 4), torch.arange(6) % 3)
    with pytest.raises(UnsupportedStructureError, match=says):
        curvature(Part(), "classification", [batch])


@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_nothing_of_a_pass_stays_in_memory(structure):
    """Hooks of a graph that know what knows the graph: no collector would find it."""

    def graphs() -> int:
        gc.collect()
        found = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
        return sum(x.grad_fn is not None for x in found)

    model = nets.build("vit:dim=8,depth=1,heads=2,mlp=12", inputs=(1, 8, 8), outputs=3, seed=0)
    before = graphs()
    curvature(model, "classification", [(torch.randn(4, 1, 8, 8), torch.arange(4) % 3)])
    assert graphs() == before


@pytest.mark.parametrize("structure", ["diag", "kfac"])
def test_sums_in_half_precision_do_not_stand_still(structure):
    """Of many small batches; each term is in bfloat16, their sum is not."""
    torch.manual_seed(0)
    model, x = perceptron(), torch.randn(2000, 5)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(4)]
    full = curvature(model, "classification", batches, kind="ggn", structure=structure)
    model.bfloat16()
    halves = [(part.bfloat16(), y) for part, y in batches]
    half = curvature(model, "classification", halves, kind="ggn", structure=structure)
    for name, value in full.diagonals().items():
        total = half.diagonals()[name].double().sum()
        assert float(total) == pytest.approx(float(value.sum()), rel=0.02)


def test_sampled_curvature_takes_nothing_from_the_global_stream():
    model, x = perceptron(), torch.randn(30, 5)
    before = torch.get_rng_state()
    first, second = (
        curvature(model, "classification", [(x, torch.zeros(30, dtype=torch.long))]).diagonals()
        for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, second[name]) for name, value in first.items())
