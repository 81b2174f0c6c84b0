"""Fused nodes against plain autograd, plain loops and explicit draws of the weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor
from torch.autograd import gradcheck

from bayespare.bayes.fused import linearised, masked_draw, noisy_linear, tied_slab_kl

pytestmark = pytest.mark.usefixtures("float64")

SIZES = st.integers(1, 5)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def positive(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(seed)) + 0.1


# ---------------------------------------------------------------- noisy_linear


def layer(
    seed: int, rows: int, inputs: int, outputs: int, *, bias: bool, gate: bool, x_grad: bool
) -> list[Tensor | None]:
    """Arguments of :func:`noisy_linear`, all but the noise asking for gradients."""
    x = normal(seed, rows, inputs)
    x[0] = 0  # an input that is all zero still has a gradient
    arguments = [
        x.requires_grad_(x_grad),
        normal(seed + 1, outputs, inputs).requires_grad_(),
        normal(seed + 2, outputs).requires_grad_() if bias else None,
        positive(seed + 3, inputs).requires_grad_() if gate else None,
        positive(seed + 4, inputs).requires_grad_(),
        positive(seed + 5, outputs).requires_grad_(),
    ]
    return [*arguments, normal(seed + 6, rows, outputs)]


def plainly(x, weight, bias, gate, variance_in, std_out, noise):  # type: ignore[no-untyped-def]
    """The same in operations that PyTorch differentiates."""
    gate = torch.ones_like(variance_in) if gate is None else gate
    mean = (x * gate) @ weight.T + (0 if bias is None else bias)
    variance = (x * gate).square() @ variance_in + 1e-10
    return mean + noise * std_out * variance.sqrt().unsqueeze(1)


LAYERS = st.builds(
    layer,
    st.integers(0, 1000),
    SIZES,
    SIZES,
    SIZES,
    bias=st.booleans(),
    gate=st.booleans(),
    x_grad=st.booleans(),
)


@settings(max_examples=40)
@given(arguments=LAYERS, seed=st.integers(0, 1000))
def test_noisy_linear_is_the_plain_expression_and_so_are_its_gradients(arguments, seed):
    wanted = [a for a in arguments if a is not None and a.requires_grad]
    fast, slow = noisy_linear(*arguments), plainly(*arguments)
    torch.testing.assert_close(fast, slow)
    upstream = normal(seed, *fast.shape)
    torch.testing.assert_close(
        torch.autograd.grad(fast, wanted, upstream), torch.autograd.grad(slow, wanted, upstream)
    )


@settings(max_examples=10)
@given(arguments=LAYERS)
def test_noisy_linear_passes_gradcheck(arguments):
    arguments[0].data[0] = 0.3  # finite differences fail at the kink of |x|
    assert gradcheck(noisy_linear, arguments)


@pytest.mark.parametrize("gated", [False, True])
def test_noisy_linear_has_the_moments_of_explicitly_drawn_weights(gated):
    rows, inputs, outputs = 40_000, 4, 3
    x = normal(0, inputs)
    weight, bias = normal(1, outputs, inputs), normal(2, outputs)
    gate = torch.tensor([1.0, 0.0, 1.0, 0.6]) if gated else None
    variance_in, std_out = positive(3, inputs), positive(4, outputs)
    fused = noisy_linear(
        x.expand(rows, -1), weight, bias, gate, variance_in, std_out, normal(5, rows, outputs)
    )
    spread = std_out.unsqueeze(1) * variance_in.sqrt()
    drawn = weight + spread * normal(6, rows, outputs, inputs)
    explicit = drawn @ (x if gate is None else x * gate) + bias
    error = explicit.std(0) * math.sqrt(2 / rows)
    assert ((fused.mean(0) - explicit.mean(0)).abs() < 5 * error).all()
    ratio = fused.var(0) / explicit.var(0)
    assert ((ratio - 1).abs() < 5 * math.sqrt(4 / rows)).all()


def test_noisy_linear_has_the_published_variance():
    """Card 10.16 without its bias noise: 4 (0.01 + 0.16) around 0."""
    one = noisy_linear(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[0.5, -0.25]]),
        None,
        None,
        torch.tensor([0.01, 0.04]),
        torch.tensor([2.0]),
        torch.ones(1, 1),
    )
    assert one.item() == pytest.approx(math.sqrt(0.68), rel=1e-9)


def test_a_shut_gate_silences_weight_and_noise():
    arguments = layer(0, 3, 2, 2, bias=True, gate=True, x_grad=False)
    arguments[3] = torch.zeros(2)
    torch.testing.assert_close(
        noisy_linear(*arguments), arguments[2].expand(3, -1), rtol=0, atol=1e-4
    )


def test_noisy_linear_is_finite_in_float32_at_extreme_spreads():
    for size in (1e-30, 1e15):
        x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float32)
        weight = torch.zeros(2, 2, dtype=torch.float32, requires_grad=True)
        variance = torch.full((2,), size, dtype=torch.float32, requires_grad=True)
        std = torch.ones(2, dtype=torch.float32, requires_grad=True)
        noise = torch.ones(2, 2, dtype=torch.float32)
        out = noisy_linear(x, weight, None, None, variance, std, noise)
        out.sum().backward()
        assert torch.isfinite(out).all()
        assert all(torch.isfinite(p.grad).all() for p in (weight, variance, std))


# ---------------------------------------------------------------- tied_slab_kl


def slab(
    seed: int, rows: int, columns: int, *, scalar: bool, prior_std: float | None
) -> list[Tensor | float | None]:
    """Arguments of :func:`tied_slab_kl`."""
    shape = () if scalar else (rows,)
    tensors = [
        normal(seed, rows, columns),
        normal(seed + 1, columns),
        normal(seed + 2, rows),
        torch.rand(columns, generator=generator(seed + 3)) * 0.9 + 0.05,
        torch.rand(rows, generator=generator(seed + 4)) * 0.9 + 0.05,
        normal(seed + 5, *shape),
        positive(seed + 6, *shape),
    ]
    return [*(t.requires_grad_() for t in tensors), prior_std]


SLABS = st.builds(
    slab,
    st.integers(0, 1000),
    SIZES,
    SIZES,
    scalar=st.booleans(),
    prior_std=st.sampled_from([None, 0.3, 1.0, 1.3]),
)


def weight_by_weight(  # type: ignore[no-untyped-def]
    weight, log_in, log_out, inputs, outputs, log_square, inverse_square, prior_std
):
    """The sum as the docstring writes it; the optimal sigma_0 from its own formula."""
    rows, columns = weight.shape
    log_square, inverse_square = log_square.expand(rows), inverse_square.expand(rows)
    present = [(o, i, outputs[o] * inputs[i]) for o in range(rows) for i in range(columns)]

    def expected_square(o: int, i: int) -> Tensor:
        std = (log_out[o] + log_in[i]).exp()
        return (weight[o, i].square() + std.square()) * inverse_square[o]

    if prior_std is None:
        number = sum(p for *_, p in present)
        prior_std = (sum(p * expected_square(o, i) for o, i, p in present) / number).sqrt()
    prior_std = torch.as_tensor(prior_std)
    total = torch.zeros(())
    for o, i, p in present:
        ratio = prior_std.log() - log_out[o] - log_in[i] + log_square[o] / 2
        total = total + p * (ratio - 0.5 + expected_square(o, i) / (2 * prior_std.square()))
    return total


@settings(max_examples=40)
@given(arguments=SLABS)
def test_tied_slab_kl_is_the_sum_over_its_weights_and_so_are_its_gradients(arguments):
    fast, slow = tied_slab_kl(*arguments), weight_by_weight(*arguments)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(
        torch.autograd.grad(3 * fast, arguments[:-1]), torch.autograd.grad(3 * slow, arguments[:-1])
    )


@settings(max_examples=10)
@given(arguments=SLABS)
def test_tied_slab_kl_passes_gradcheck(arguments):
    assert gradcheck(lambda *tensors: tied_slab_kl(*tensors, arguments[-1]), arguments[:-1])


@settings(max_examples=15)
@given(arguments=SLABS)
def test_the_free_prior_std_is_the_one_that_costs_least(arguments):
    *tensors, _ = arguments
    searched = optimize.minimize_scalar(
        lambda log: tied_slab_kl(*tensors, math.exp(log)).item(), bounds=(-9, 9), method="bounded"
    )
    assert tied_slab_kl(*tensors, None).item() == pytest.approx(searched.fun, rel=1e-6, abs=1e-6)


def test_tied_slab_kl_may_be_asked_for_some_gradients_only():
    arguments = slab(0, 3, 2, scalar=True, prior_std=None)
    frozen = [a.detach() for a in arguments[:-1]]
    frozen[3] = arguments[3]
    tied_slab_kl(*frozen, None).backward()
    slow = slab(0, 3, 2, scalar=True, prior_std=None)
    weight_by_weight(*slow).backward()
    torch.testing.assert_close(arguments[3].grad, slow[3].grad)


@pytest.mark.parametrize("prior_std", [None, 1.0])
@pytest.mark.parametrize("logit", [-100.0, -60.0, 60.0, 100.0])
def test_tied_slab_kl_is_finite_in_float32_at_extreme_odds(logit, prior_std):
    """A layer whose every unit is all but gone costs all but nothing."""
    rows, columns = 3, 4
    weight = (0.1 * normal(0, rows, columns)).float().requires_grad_()
    into, out = (
        torch.full((n,), -2.0, dtype=torch.float32).requires_grad_() for n in (columns, rows)
    )
    theta = torch.full((rows,), logit, dtype=torch.float32, requires_grad=True)
    present = theta.sigmoid()
    zero, one = torch.zeros((), dtype=torch.float32), torch.ones((), dtype=torch.float32)
    read = torch.ones(columns, dtype=torch.float32)
    kl = tied_slab_kl(weight, into, out, read, present, zero, one, prior_std)
    kl.backward()
    assert torch.isfinite(kl)
    if logit < 0:
        assert abs(kl.item()) < 1e-20
    for parameter in (weight, into, out, theta):
        assert torch.isfinite(parameter.grad).all()


# ------------------------------------------------------------------ linearised


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 1000))
def test_a_masked_draw_is_the_plain_expression_and_so_are_its_gradients(rows, columns, seed):
    mean, log_std, noise, weights = (normal(seed + i, rows, columns) for i in range(4))
    mask = positive(seed, rows, columns) > 0.5
    mean.requires_grad_()
    log_std.requires_grad_()
    ours = masked_draw(mean, log_std, mask, noise)
    plain = (mean + log_std.exp() * noise) * mask
    torch.testing.assert_close(ours, plain)
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), (mean, log_std)),
        torch.autograd.grad((plain * weights).sum(), (mean, log_std)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@given(factor=st.floats(-3, 3), value=st.floats(-10, 10))
def test_linearised_has_the_given_value_and_gradients(factor, value):
    parameters = [normal(0, 2, 3).requires_grad_(), normal(1, 4).requires_grad_()]
    grads = [normal(2, 2, 3), normal(3, 4)]
    out = linearised(torch.tensor(value), grads, parameters)
    assert out.item() == value
    (factor * out).backward()
    for parameter, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(parameter.grad, factor * grad)


def test_linearised_leaves_the_gradients_it_was_given_alone():
    parameter, grad = normal(0, 3).requires_grad_(), normal(1, 3)
    before = grad.clone()
    for _ in range(2):
        (5 * linearised(torch.ones(()), [grad], [parameter])).backward()
    torch.testing.assert_close(grad, before)
    torch.testing.assert_close(parameter.grad, 10 * before)
