"""What the posterior foretells of a removal, beside what comes true."""

import pytest
import torch
from cases import NETS, MethodCase, started
from torch import nn

from bayespare import methods
from bayespare.bayes.evidence import delta_f
from bayespare.bayes.likelihood import Gaussian
from bayespare.data import from_tensors
from bayespare.structure import trace
from bayespare.training.criterion import Foretold, rounds, warning
from bayespare.training.fit import Fit, Sample

MLP = NETS[0]


@pytest.mark.parametrize("unit", ["unit", "weight"])
@pytest.mark.parametrize("tempering", [1.0, 0.2])
def test_in_a_conjugate_regression_all_that_is_foretold_comes_true(unit, tempering):
    """Orthogonal inputs: the exact posterior is diagonal, and set by hand."""
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(60, 5)).Q * torch.tensor([3.0, 5.0, 8.0, 2.0, 4.0])
    y = x @ torch.tensor([1.0, -0.2, 0.05, 0.4, -0.02]) + 0.3 * torch.randn(60)
    data = from_tensors(x, y)
    model = nn.Sequential(nn.Linear(5, 1, bias=False))
    method = methods.build("bmr", prior_std=0.7, unit=unit, warm_up=1, tie=0.0, cap=1.0)
    generator = torch.Generator().manual_seed(0)
    method.attach(model, trace(model, data.x[:4]), examples=len(data), generator=generator)
    likelihood = Gaussian()
    fit = Fit.start(model, method, likelihood, generator, batch=20)
    with torch.no_grad():
        likelihood.log_noise.fill_(-0.5)
        curvature = data.x.square().sum(0) / likelihood.noise_std**2
        precision = curvature + tempering / 0.7**2
        mean = data.x.T @ data.y.flatten() / likelihood.noise_std**2 / precision
        model[0].weight.copy_(mean)
        std = (tempering / precision).sqrt()
        if unit == "weight":
            method.weights.weight_rho[0].copy_(std.log())
        else:
            method.weights.log_in.copy_(std.log())
            method.weights.log_out.zero_()
    method.tempering = tempering
    method.steps += 1
    gain = delta_f(mean, std, 0.7)
    checked = fit.update(Sample.of(data, len(data)))
    assert checked is not None
    assert checked.foretold.rise == pytest.approx(checked.realised, rel=1e-3)
    assert checked.foretold.delta_f == pytest.approx(float(gain[gain > 0].sum()), rel=1e-4)
    assert 0 < int((gain > 0).sum()) < 5


def test_methods_that_foretell_nothing_are_not_checked():
    fit = started(MethodCase("ss-ig"), MLP)
    data = from_tensors(torch.randn(20, 10), torch.arange(20) % 3)
    assert fit.update(Sample.of(data, 20)) is None


def test_what_is_checked_leaves_no_trace():
    """The loss is looked at without noise and without the decision."""
    fit = started(MethodCase("bmr", {"warm_up": 1, "cap": 0.3, "tie": 40.0}), MLP)
    twin = fit.copy()
    data = from_tensors(torch.randn(20, 10), torch.arange(20) % 3)
    for each in (fit, twin):
        each.method.steps += 1
    state = fit.generator.get_state()
    assert fit.update(Sample.of(data, 20)) is not None
    assert twin.update() is None
    assert torch.equal(fit.generator.get_state(), state)
    assert not fit.method.looking
    assert fit.method.keep.keys() == twin.method.keep.keys()
    for name, line in fit.method.keep.items():
        assert torch.equal(line, twin.method.keep[name])


def test_a_run_that_was_foretold_wrongly_warns():
    def history(*pairs):
        return [
            {"epoch": i, "predicted_rise": p, "realised_rise": r} for i, (p, r) in enumerate(pairs)
        ]

    right = rounds([{"epoch": 9}, *history((30.0, 25.0), (1.0, 0.01), (2.0, -1.0))])
    assert [r["round"] for r in right] == [0, 1, 2]
    for sound in (
        right,
        [],
        rounds(history((0.01, 0.4), (0.3, -0.2))),
        rounds(history((9.0, 1.0))),
    ):
        assert warning(sound, "so") == []
    for off in (
        ((1.0, 30.0), (1.0, 5.0)),
        ((50.0, 1.0),),
        # Errors that would cancel, and rises that never came.
        ((43.0, 744.0), (644.0, 258.0)),
        ((1.0, 1000.0), (1000.0, -900.0)),
        ((5000.0, 0.0),),
        ((5000.0, -1.0), (30.0, 40.0)),
    ):
        (text,) = warning(rounds(history(*off)), "so it is")
        assert text.endswith("so it is")
    assert "in 1 of 2 rounds" in text
    assert "5e+03 nats there in all, -1 came true" in text


def test_what_is_foretold_adds_up():
    assert Foretold(1.0, 2.0) + Foretold(3.0, 5.0) == Foretold(4.0, 7.0)
