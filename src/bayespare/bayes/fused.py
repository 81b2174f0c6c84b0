"""The hot spots of variational training as single autograd nodes.

They compute what a dozen PyTorch operations would (the tests hold them against those), without
their temporaries of the size of the weights and without their bookkeeping, which is most of the
cost of a step once a network is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bayespare.bayes.sharded import scaled_by


class _NoisyLinear(torch.autograd.Function):
    """Linear layer with gated inputs and rank-one output noise."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gate: Tensor | None,
        variance_in: Tensor,
        std_out: Tensor,
        noise: Tensor,
    ) -> Tensor:
        gated = weight if gate is None else weight * gate
        variance = variance_in if gate is None else variance_in * gate.square()
        square = x.square()
        # Small enough not to matter, large enough that an all-zero input has a gradient.
        spread = torch.mv(square, variance).add_(1e-10).sqrt_()
        scaled = noise * std_out
        out = functional.linear(x, gated, bias)
        # Not the gated weight: where weights are elsewhere between the passes, it would stay here.
        ctx.save_for_backward(x, square, weight, gate, variance_in, std_out, noise, spread)
        ctx.has_bias = bias is not None
        return torch.addcmul(out, scaled, spread.unsqueeze(1), out=out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, square, weight, gate, variance_in, std_out, noise, spread = ctx.saved_tensors
        noisy = grad * noise
        grad_std = torch.mv(noisy.t(), spread)
        grad_variance_n = torch.mv(noisy, std_out).div_(spread).mul_(0.5)
        grad_in = torch.mv(square.t(), grad_variance_n)
        grad_weight = grad.t() @ x
        grad_gate = None
        grad_variance_in = grad_in
        variance = variance_in
        if gate is not None:
            variance = variance_in * gate.square()
            grad_variance_in = grad_in * gate.square()
            grad_gate = (grad_weight * weight).sum(0).add_(2 * gate * variance_in * grad_in)
            grad_weight = grad_weight.mul_(gate)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if gate is not None:
                grad_x.mul_(gate)
            grad_x.addcmul_(x * variance, grad_variance_n.unsqueeze(1), value=2)
        grad_bias = grad.sum(0) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, grad_gate, grad_variance_in, grad_std, None


def noisy_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    variance_in: Tensor,
    std_out: Tensor,
    noise: Tensor,
) -> Tensor:
    """Apply a linear layer with weights N(weight, variance_in * std_out^2), drawn per example.

    Args:
        x: Inputs, shape ``(N, inputs)``.
        weight: Means, shape ``(outputs, inputs)``.
        bias: Shape ``(outputs,)`` or None.
        gate: Factor of each input, shape ``(inputs,)``, or None.
        variance_in: Input factor of the weights' variance, shape ``(inputs,)``.
        std_out: Output factor of the weights' standard deviation, shape ``(outputs,)``.
        noise: Standard normal, shape ``(N, outputs)``.

    Returns:
        Shape ``(N, outputs)``.
    """
    out: Tensor = _NoisyLinear.apply(x, weight, bias, gate, variance_in, std_out, noise)  # type: ignore[no-untyped-call]
    return out


class _Linearised(torch.autograd.Function):
    """A scalar known by its value and gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: tuple[Tensor, ...], *_: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return (None, None, *scaled_by(ctx.grads, grads[0]))


def linearised(value: Tensor, grads: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return ``value`` with the given gradients with respect to ``parameters``."""
    out: Tensor = _Linearised.apply(value, tuple(grads), *parameters)  # type: ignore[no-untyped-call]
    return out


class _MaskedDraw(torch.autograd.Function):
    """Draws of weights of which some are gone."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        there = mask.to(mean.dtype)
        deviation = log_std.exp().mul_(noise).mul_(there)
        ctx.save_for_backward(there, deviation)
        return torch.addcmul(deviation, mean, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        there, deviation = ctx.saved_tensors
        return grad * there, grad * deviation, None, None


def masked_draw(mean: Tensor, log_std: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """``(mean + exp(log_std) noise) mask``.

    Args:
        mean: Posterior mean, any shape.
        log_std: Log of the posterior standard deviation, same shape.
        mask: Boolean, same shape; what is outside is zero and takes no gradient.
        noise: Standard normal, same shape.
    """
    value: Tensor = _MaskedDraw.apply(mean, log_std, mask, noise)  # type: ignore[no-untyped-call]
    return value


class _TiedSlabKl(torch.autograd.Function):
    """KL of one layer's rank-one Gaussian weights from their slabs, with closed-form gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        log_in: Tensor,
        log_out: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        log_square: Tensor,
        inverse_square: Tensor,
        prior_std: float | None,
    ) -> Tensor:
        weight_square = weight.square()
        variance_in = (2 * log_in).exp()
        variance_out = (2 * log_out).exp()
        count, total_out = inputs.sum(), outputs.sum()
        scaled = outputs * inverse_square
        spread_in = torch.dot(inputs, variance_in)
        square = torch.mv(weight_square, inputs) + variance_out * spread_in
        logs = torch.dot(inputs, log_in) + count * log_out
        spread = torch.dot(scaled, square)
        number = count * total_out
        if prior_std is None:
            # The presence of a layer that is all but gone underflows, to 0 / 0 without this.
            tiny = torch.finfo(spread.dtype).tiny
            spread, number = spread.clamp_min(tiny), number.clamp_min(tiny)
            log_prior_square = (spread / number).log()
            slope = 0.5 * number / spread
            value = 0.5 * number * log_prior_square
        else:
            log_prior_square = spread.new_tensor(prior_std).square().log()
            slope = spread.new_tensor(0.5 / prior_std**2)
            value = 0.5 * number * (log_prior_square - 1) + slope * spread
        value = value + 0.5 * count * torch.dot(outputs, log_square.expand_as(outputs))
        value = value - torch.dot(outputs, logs)
        # Gradients of everything small; the weight's own waits for the backward pass.
        per_weight = 0.5 * (log_prior_square - 1)
        column = torch.mv(weight_square.t(), scaled)
        spread_out = torch.dot(scaled, variance_out)
        grad_inputs = slope * (column + variance_in * spread_out) - total_out * log_in
        grad_inputs += total_out * per_weight - torch.dot(outputs, log_out)
        grad_inputs += 0.5 * torch.dot(outputs, log_square.expand_as(outputs))
        grad_outputs = slope * square * inverse_square + count * (per_weight + 0.5 * log_square)
        grad_outputs -= logs
        grad_log_in = inputs * (2 * slope * spread_out * variance_in - total_out)
        grad_log_out = 2 * slope * spread_in * scaled * variance_out - count * outputs
        ctx.save_for_backward(
            weight,
            inputs,
            2 * slope * scaled,
            grad_log_in,
            grad_log_out,
            grad_inputs,
            grad_outputs,
            0.5 * count * outputs,
            slope * outputs * square,
        )
        ctx.scalar_scale = log_square.dim() == 0
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weight, inputs, rows, log_in, log_out, g_in, g_out, log_square, inverse = ctx.saved_tensors
        grad_weight = (weight * inputs).mul_((grad * rows).unsqueeze(1))
        if ctx.scalar_scale:
            log_square, inverse = log_square.sum(), inverse.sum()
        return (
            grad_weight,
            grad * log_in,
            grad * log_out,
            grad * g_in,
            grad * g_out,
            grad * log_square if ctx.needs_input_grad[5] else None,
            grad * inverse if ctx.needs_input_grad[6] else None,
            None,
        )


def tied_slab_kl(
    weight: Tensor,
    log_in: Tensor,
    log_out: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    log_square: Tensor,
    inverse_square: Tensor,
    prior_std: float | None,
) -> Tensor:
    """KL of one layer's weights from their slabs, each weighted by the presence of both its ends.

    With presences ``g`` and weight (o, i) ~ N(mu, (exp(log_out_o + log_in_i))^2) the KL is
    ``sum_oi g_o g_i [log(sigma_0/sigma) + E[log s_o^2]/2 - 1/2
    + E[w^2] E[1/s_o^2]/(2 sigma_0^2)]``.

    Args:
        weight: Means, shape ``(rows, columns)``.
        log_in: Shape ``(columns,)``.
        log_out: Shape ``(rows,)``.
        inputs: Inclusion probability per column.
        outputs: Inclusion probability per row.
        log_square: E[log s^2], scalar or per row.
        inverse_square: E[1/s^2], scalar or per row.
        prior_std: sigma_0; None for its optimum, in closed form (empirical Bayes).

    Returns:
        KL, nats, scalar.
    """
    value: Tensor = _TiedSlabKl.apply(  # type: ignore[no-untyped-call]
        weight, log_in, log_out, inputs, outputs, log_square, inverse_square, prior_std
    )
    return value
