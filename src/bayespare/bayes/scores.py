"""What weights and structures are ranked by when a network is pruned.

All scores say how important a weight is: the lowest go first. They are per parameter name, in its
shape; :func:`line_sums` and :func:`group_sums` make scores of rows, columns, filters and heads.

Definitions: OPD of arXiv 2402.15978; SNIP of arXiv 1810.02340; GraSP of arXiv 2002.07376; Taylor of
arXiv 1906.10771.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bayespare.bayes.curvature.running import call, evaluating, examples_in, moved, outputs_of
from bayespare.bayes.likelihood import Likelihood, by_position, likelihood_for
from bayespare.bayes.marginal import Laplace, Prior
from bayespare.errors import BayespareError, did_you_mean

Scores = dict[str, Tensor]
Scope = Literal["global", "layer"]


def above_rank(values: Tensor, gone: float, whole: int) -> Tensor:
    """Half of the values less the highest of those that go, so that ``gone`` of ``whole`` do.

    Args:
        values: Of what is left, any shape.
        gone: How many are to be gone in all, rounded up.
        whole: How many there were; those that have left already are not among the values.
    """
    count = min(values.numel(), math.ceil(gone) - (whole - values.numel()))
    if count < 1:
        return torch.full_like(values, torch.inf)
    return 0.5 * (values - values.flatten().kthvalue(count).values)


ONLINE_EVERY = 10
"""Epochs between the prunings of :func:`online_sparsity`."""


def online_sparsity(epoch: int, epochs: int, last: float, first: float = 0.1) -> float:
    """Share of the weights that online pruning sets to zero after an epoch; 0 before the first.

    Every tenth epoch, in equal steps that end at ``last``: from what would be ``first`` at the
    start (card section 8, online pruning).

    Args:
        epoch: Epochs done.
        epochs: In all.
        last: Share at the end, in (0, 1).
        first: Share at the start; of a smaller ``last`` that.
    """
    if epoch < ONLINE_EVERY:
        return 0.0
    first = min(first, last)
    done = (epoch // ONLINE_EVERY) / max(1, epochs // ONLINE_EVERY)
    return min(last, first + (last - first) * done)


@torch.no_grad()
def opd(laplace: Laplace, prior: Prior) -> Scores:
    """``P_qq theta_q^2``: twice the rise of the negative log joint when a weight goes to zero.

    P_qq is the exact diagonal of the posterior precision, unless ``laplace`` is as published.
    """
    precisions = laplace.precisions(prior)
    return {name: precisions[name] * mean.square() for name, mean in laplace.means.items()}


@torch.no_grad()
def posterior_log_odds(laplace: Laplace, prior: Prior) -> Scores:
    """Log odds of being in the model, nats: half of OPD less the Occam term, even prior odds.

    ``1/2 P theta^2 - 1/2 log(P / delta)``, the change of log evidence with its sign turned. At
    precisions learnt one by one it is nowhere negative: score with a prior that is shared.
    """
    precisions, logs = laplace.precisions(prior), prior.log_precisions()
    return {
        name: 0.5 * (precisions[name] * mean.square() - precisions[name].log() + logs[name])
        for name, mean in laplace.means.items()
    }


@torch.no_grad()
def magnitude(parameters: Mapping[str, Tensor]) -> Scores:
    """``|theta|``."""
    return {name: value.detach().abs() for name, value in parameters.items()}


def random(parameters: Mapping[str, Tensor], generator: Generator) -> Scores:
    """Uniform in [0, 1)."""
    return {
        name: torch.rand(value.shape, generator=generator, device=generator.device).to(value)
        for name, value in parameters.items()
    }


@torch.no_grad()
def squares(parameters: Mapping[str, Tensor]) -> Scores:
    """``theta^2``: its sum over a structure is the square of the L2 norm, which ranks alike."""
    return {name: value.detach().square() for name, value in parameters.items()}


def snip(
    model: nn.Module, likelihood: Likelihood | str, batches: Iterable[tuple[Any, ...]]
) -> Scores:
    """``|g theta|`` with the gradient g of the mean loss over all batches."""
    gradient = mean_gradient(model, likelihood, batches)
    return {n: (gradient[n] * p.detach()).abs() for n, p in _trainable(model).items()}


def taylor(
    model: nn.Module, likelihood: Likelihood | str, batches: Iterable[tuple[Any, ...]]
) -> Scores:
    """``(g theta)^2``: the square of the first-order change of the loss, summed per structure."""
    gradient = mean_gradient(model, likelihood, batches)
    return {n: (gradient[n] * p.detach()).square() for n, p in _trainable(model).items()}


def grasp(
    model: nn.Module, likelihood: Likelihood | str, batches: Iterable[tuple[Any, ...]]
) -> Scores:
    """``theta (H g)``, signed: what removal takes from the gradient flow; the lowest go first.

    (The paper's score is minus this and removes the highest.) H is the exact Hessian of the mean
    loss over all batches, used in one product by double backward.
    """
    batches = _again(batches)
    gradient = mean_gradient(model, likelihood, batches)
    parameters = _trainable(model)
    product = {name: torch.zeros_like(p) for name, p in parameters.items()}
    total = 0
    for loss, examples in _losses(model, likelihood, batches, twice=True):
        first = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, allow_unused=True
        )
        along = sum(
            (g * gradient[name]).sum()
            for name, g in zip(parameters, first, strict=True)
            if g is not None
        )
        assert isinstance(along, Tensor)
        second = torch.autograd.grad(along, list(parameters.values()), allow_unused=True)
        for name, part in zip(parameters, second, strict=True):
            if part is not None:
                product[name] += part
        total += examples
    return {n: p.detach() * product[n] / total for n, p in parameters.items()}


def mean_gradient(
    model: nn.Module, likelihood: Likelihood | str, batches: Iterable[tuple[Any, ...]]
) -> Scores:
    """Gradient of the mean loss over all batches, in evaluation mode.

    Raises:
        BayespareError: If there is no data.
    """
    parameters = _trainable(model)
    summed = {name: torch.zeros_like(p) for name, p in parameters.items()}
    total = 0
    for loss, examples in _losses(model, likelihood, batches):
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, part in zip(parameters, grads, strict=True):
            if part is not None:
                summed[name] += part
        total += examples
    if not total:
        raise BayespareError("scores: there are no batches")
    return {name: value / total for name, value in summed.items()}


# ------------------------------------------------------------------ structures
def line_sums(score: Tensor, dim: int) -> Tensor:
    """Sum over everything but one dimension: of rows and filters (0) or columns (1), float64."""
    return score.movedim(dim, 0).reshape(score.shape[dim], -1).sum(1, dtype=torch.float64)


def group_sums(score: Tensor, dim: int, owner: Tensor, size: int) -> Tensor:
    """Sums over the lines of each unit, float64, shape ``(size,)``; heads own several lines.

    Args:
        score: Of one parameter.
        dim: The dimension that units lie along.
        owner: Unit of each index, or -1 for none, shape ``(size of dim,)``.
        size: Number of units.
    """
    lines = line_sums(score, dim).cpu()
    there = owner >= 0
    return lines.new_zeros(size).index_add_(0, owner[there], lines[there])


# --------------------------------------------------------------------- choices
@torch.no_grad()
def masks(
    scores: Mapping[str, Tensor], sparsity: float, *, scope: Scope = "global"
) -> dict[str, Tensor]:
    """Boolean masks that keep all but a share of the weights, those with the lowest scores.

    By rank, so exactly ``round(sparsity n)`` go whatever the ties; of equals the first go.

    Args:
        scores: Parameter name to scores.
        sparsity: Share to remove, in [0, 1].
        scope: Rank ``global`` over all parameters, or in each one (``layer``).

    Raises:
        BayespareError: On a share out of range, an unknown scope or a score that is not a number.
    """
    if not 0 <= sparsity <= 1:
        raise BayespareError(f"sparsity={sparsity}: must be between 0 and 1")
    if scope not in get_args(Scope):
        raise BayespareError(f"unknown scope {scope!r}{did_you_mean(scope, get_args(Scope))}")
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise BayespareError(f"{name}: a score is not a number")
    if scope == "layer":
        return {n: _kept(s.flatten(), sparsity).view(s.shape) for n, s in scores.items()}
    flat = _kept(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = torch.split(flat, [score.numel() for score in scores.values()])
    return {n: part.view(s.shape) for (n, s), part in zip(scores.items(), parts, strict=True)}


def _kept(flat: Tensor, sparsity: float) -> Tensor:
    keep = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    keep[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = False
    return keep


@torch.no_grad()
def apply_masks(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Set what is not kept to zero, in place; again after each step keeps it there.

    Raises:
        BayespareError: If a mask names no parameter, or has another shape.
    """
    parameters = dict(model.named_parameters())
    for name, line in keep.items():
        if name not in parameters:
            raise BayespareError(
                f"mask of {name!r}: no such parameter{did_you_mean(name, parameters)}"
            )
        if line.shape != parameters[name].shape:
            raise BayespareError(
                f"mask of {name!r} has shape {tuple(line.shape)}, the parameter "
                f"{tuple(parameters[name].shape)}"
            )
        parameters[name].mul_(line.to(parameters[name].device))


# ---------------------------------------------------------------------- shared
def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _again(batches: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    if iter(batches) is batches:
        raise BayespareError("the batches can be iterated only once: give a list or a loader")
    return batches


def _losses(
    model: nn.Module,
    likelihood: Likelihood | str,
    batches: Iterable[tuple[Any, ...]],
    *,
    twice: bool = False,
) -> Iterable[tuple[Tensor, int]]:
    """Summed loss of every batch, to be differentiated once or twice; its number of examples."""
    if isinstance(likelihood, str):
        likelihood = likelihood_for(likelihood)
    device = next(model.parameters()).device
    # Of the fused kernels of attention no second derivative is known.
    plain = sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()
    with evaluating(model), torch.enable_grad(), plain:
        for x, y, *weight in batches:
            output = outputs_of(call(model, moved(x, device)))
            losses = likelihood.nll(*by_position(likelihood, output, y.to(device)))
            if weight:
                losses = losses.reshape(len(output), -1) * weight[0].to(losses).unsqueeze(1)
            yield losses.sum(), examples_in(x)
