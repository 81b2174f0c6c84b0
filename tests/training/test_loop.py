"""One epoch: what is summed, stepped, clipped and refused; likelihoods, teacher and reference."""

import copy
import math

import pytest
import torch
from small_runs import FITS, Problem, assert_identical, small_conv, small_mlp, table, train
from torch import nn

from bayespare import nets
from bayespare.bayes.likelihood import (
    Categorical,
    Distilled,
    Gaussian,
    honest_temperature,
    likelihood_for,
)
from bayespare.data import Batches, load
from bayespare.errors import BayespareError, NonFiniteLossError
from bayespare.methods import registry as methods
from bayespare.structure import trace
from bayespare.training.baseline import train_dense
from bayespare.training.fit import Fit
from bayespare.training.loop import cosine, pick_device, placed, run_epoch, validate
from bayespare.training.schedule import Settings

EVERY = pytest.mark.parametrize("problem", FITS.values(), ids=FITS)


def flushes() -> bool:
    """Whether arithmetic on subnormal numbers gives zero."""
    return (torch.full((8,), 1e-40) * 1.0).sum().item() == 0.0


# ------------------------------------------------------------------------ loop


def test_the_loss_falls_on_digits():
    data = load("digits").train.subset(torch.arange(600))
    problem = Problem()
    model = nets.build("mlp:24", inputs=(64,), outputs=10, seed=0)
    network = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    method = methods.build(problem.method)
    method.attach(network, trace(model, data.x[:4]), examples=len(data), generator=generator)
    method.tempering = 0.1
    fit = Fit.start(network, method, Categorical(), generator, 64)
    start = validate(network, fit.likelihood, Batches(data, 64, shuffle=False))
    summaries = []
    for _ in range(16):
        batches = Batches(data, 64, generator=generator, shuffle=True, drop_last=True)
        summaries.append(run_epoch(network, fit.likelihood, fit.optimizer, batches, method=method))
    end = validate(network, fit.likelihood, Batches(data, 64, shuffle=False))
    assert summaries[-1].nll < 0.5 * summaries[0].nll
    assert summaries[-1].penalty < summaries[0].penalty
    assert end.nll < 0.5 * start.nll
    assert end.mean > 0.8 > start.mean
    assert all(s.seconds > 0 for s in summaries)


def test_a_summary_is_the_mean_over_the_batches():
    problem = Problem()
    data = table()
    fit = problem.start()
    fit.optimizer.param_groups.clear()  # nothing moves: the losses are those of one network
    fit.network.register_forward_hook(lambda *_: None)
    state = fit.generator.get_state()
    summary = run_epoch(
        fit.network,
        fit.likelihood,
        fit.optimizer,
        Batches(data, 30, shuffle=False),
        method=fit.method,
    )
    fit.generator.set_state(state)
    fit.network.train()
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(fit.network(x), y).item()
            for x, y in Batches(data, 30, shuffle=False)
        ]
    assert summary.nll == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert summary.penalty == pytest.approx(fit.method.penalty().item(), rel=1e-6)


def test_rates_and_steps_are_followed():
    fit, data = Problem().start(), table()
    bases = [group["base_lr"] for group in fit.optimizer.param_groups]
    seen, steps = [], []

    def after(step: int) -> None:
        steps.append(step)
        seen.append([group["lr"] for group in fit.optimizer.param_groups])

    run_epoch(
        fit.network,
        fit.likelihood,
        fit.optimizer,
        Batches(data, 30, shuffle=False),
        method=fit.method,
        rate=lambda step: cosine(step / 4),
        after_step=after,
    )
    assert steps == [1, 2, 3, 4]
    assert seen == [[base * cosine(step / 4) for base in bases] for step in range(4)]
    assert (cosine(0), cosine(1), cosine(7)) == (1, 0, 0)
    assert cosine(0.5) == pytest.approx(0.5)


def test_the_gradient_is_clipped_to_its_norm():
    fit, data = Problem().start(), table()
    fit.optimizer = torch.optim.SGD([{"params": list(fit.network.parameters())}], lr=1.0)
    before = [p.detach().clone() for p in fit.network.parameters()]
    batches = Batches(data, len(data), shuffle=False)
    run_epoch(fit.network, fit.likelihood, fit.optimizer, batches, max_norm=1e-3)
    moved = sum(
        (p - q).square().sum() for p, q in zip(fit.network.parameters(), before, strict=True)
    )
    assert moved.sqrt().item() == pytest.approx(1e-3, rel=1e-3)


@EVERY
def test_bf16_trains_with_float32_parameters(problem):
    fit = problem.start()
    train(fit, problem, precision="bf16")
    for parameter in (*fit.network.parameters(), *fit.method.parameters()):
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter).all()
    data = table(problem.task, problem.inputs)
    summary = run_epoch(
        fit.network,
        fit.likelihood,
        fit.optimizer,
        Batches(data, 30, shuffle=False),
        method=fit.method,
        precision="bf16",
    )
    assert math.isfinite(summary.nll)
    assert math.isfinite(summary.penalty)


@pytest.mark.parametrize("cause", ["data", "rate"])
def test_a_loss_that_is_not_finite_stops_the_epoch_before_the_step(cause):
    problem = Problem()
    fit, data = problem.start(), table()
    x, y = data.x.clone(), data.y
    if cause == "data":
        x[0, 0] = torch.nan
        seen = {name: t.clone() for name, t in fit.network.state_dict().items()}
    else:
        with torch.no_grad():
            fit.network.fc1.weight.fill_(1e30)
        seen = {name: t.clone() for name, t in fit.network.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"the loss became (nan|inf).*step 0") as caught:
        run_epoch(fit.network, fit.likelihood, fit.optimizer, [(x, y)], method=fit.method)
    assert "\n" not in str(caught.value)
    assert_identical(seen, dict(fit.network.state_dict()))


@pytest.mark.parametrize("fails", [False, True])
def test_the_processor_s_modes_are_as_before_after_an_epoch(fails):
    torch.set_flush_denormal(False)
    fit, data = Problem().start(), table()
    x = data.x * (torch.nan if fails else 1)
    try:
        run_epoch(fit.network, fit.likelihood, fit.optimizer, [(x, data.y)], method=fit.method)
    except NonFiniteLossError:
        assert fails
    after = flushes()
    torch.set_flush_denormal(False)
    assert not after


def test_validation_is_in_evaluation_mode_and_says_what_the_likelihood_says():
    model, data = small_conv(), table(inputs=(1, 6, 6))
    model.train()
    statistics = model.norm.running_mean.clone()
    scores = validate(model, Categorical(), Batches(data, 17, shuffle=False))
    assert model.training
    assert torch.equal(model.norm.running_mean, statistics)
    with torch.no_grad():
        output = model.eval()(data.x)
    assert torch.equal(scores.score, (output.argmax(1) == data.y).double())
    assert scores.nll == pytest.approx(nn.functional.cross_entropy(output, data.y).item(), rel=1e-6)
    assert scores.mean == pytest.approx((output.argmax(1) == data.y).double().mean().item())


def test_the_dense_reference_learns():
    data, network, rows = table(), small_mlp(), []
    train_dense(
        network,
        Categorical(),
        data,
        epochs=12,
        settings=Settings(16, torch.device("cpu")),
        generator=torch.Generator().manual_seed(0),
        rate=1e-2,
        report=rows.append,
    )
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert {row["phase"] for row in rows} == {"dense"}
    assert rows[-1]["train_nll"] < 0.5 * rows[0]["train_nll"]


def test_devices_that_are_not_there_are_refused():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(BayespareError, match="device=gpu"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(BayespareError, match="no GPU is available"):
            pick_device("cuda:0")


# ------------------------------------------------------------------ likelihoods


def test_likelihoods_are_torch_s_own_densities():
    output, y = torch.randn(7, 1), torch.randn(7)
    gaussian = Gaussian()
    with torch.no_grad():
        gaussian.log_noise.fill_(-0.7)
    exact = -torch.distributions.Normal(output[:, 0], torch.tensor(-0.7).exp()).log_prob(y)
    torch.testing.assert_close(gaussian.nll(output, y), exact)
    torch.testing.assert_close(gaussian.score(output, y), -((y - output[:, 0]) ** 2))
    assert type(likelihood_for("regression")) is Gaussian
    logits, labels = torch.randn(7, 3), torch.randint(3, (7,))
    categorical = likelihood_for("classification")
    exact = -torch.distributions.Categorical(logits=logits).log_prob(labels)
    torch.testing.assert_close(categorical.nll(logits, labels), exact)


def test_a_teacher_s_loss_is_both_cross_entropies():
    torch.manual_seed(0)
    output, y = torch.randn(5, 3), torch.randint(3, (5,))
    teacher = torch.randn(5, 3).softmax(1)
    targets = Distilled.targets(y, teacher, 0.3)
    logs = output.log_softmax(1)
    slow = [-0.7 * logs[i][y[i]] - 0.3 * teacher[i] @ logs[i] for i in range(5)]
    torch.testing.assert_close(Distilled().nll(output, targets), torch.stack(slow))
    labels = Distilled.targets(y, teacher, 0.0)
    torch.testing.assert_close(Distilled().nll(output, labels), Categorical().nll(output, y))
    assert torch.equal(Distilled().score(output, labels), Categorical().score(output, y))


@pytest.mark.parametrize("accuracy", [0.4, 0.7, 0.95])
def test_a_teacher_is_as_confident_as_it_is_right(accuracy):
    torch.manual_seed(0)
    logits = 5 * torch.randn(400, 4)
    got = (logits / honest_temperature(logits, accuracy)).softmax(1)
    assert got.amax(1).mean().item() == pytest.approx(accuracy, abs=1e-4)
    torch.testing.assert_close(got.sum(1), torch.ones(400))
    assert torch.equal(got.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("accuracy", [0.0, 0.01, 1.0])
def test_a_teacher_that_cannot_be_as_confident_as_asked_stays_finite(accuracy):
    logits = torch.tensor([[1e4, -1e4], [0.0, 0.1]])
    got = (logits / honest_temperature(logits, accuracy)).softmax(1)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.sum(1), torch.ones(2))


@pytest.mark.parametrize("channels", [3, 5, 7])
def test_a_shortcut_that_skips_pixels_is_not_run_where_its_gradient_is_wrong(channels):
    """In channels-last memory oneDNN writes it out of bounds (uxlfoundation/oneDNN#6035)."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 16, 1, stride=2))
    x = torch.randn(8, 3, 12, 12)
    wanted = copy.deepcopy(layer).double()
    wanted(x.double()).square().sum().backward()
    here = placed(layer.to(memory_format=torch.channels_last), torch.device("cpu"))
    assert all(p.is_contiguous() for p in here.parameters())
    here(x).square().sum().backward()
    for p, exact in zip(here.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(p.grad.double(), exact.grad, rtol=1e-4, atol=1e-2)


def test_other_networks_are_run_in_channels_last_memory():
    network = placed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), torch.device("cpu"))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
