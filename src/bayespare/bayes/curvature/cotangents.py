"""Cotangents of a network's outputs whose outer products are (or estimate) the curvature there.

The generalised Gauss-Newton matrix is ``sum_n J' L J`` with ``L`` the Hessian of the negative log
likelihood in the outputs. With ``L = sum_k v_k v_k'`` every ``v_k`` is one backward pass (card of
SpaM, section 2): the exact one takes as many passes as there are outputs, one with sampled
labels takes as many as samples, the empirical Fisher takes the gradient at the true labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Generator, Tensor

from bayespare.bayes.likelihood import Gaussian, Likelihood, by_position
from bayespare.errors import BayespareError

Kind = Literal["ggn-mc", "ggn", "ef"]
IGNORED = -100


def cotangents(
    likelihood: Likelihood,
    output: Tensor,
    y: Tensor,
    kind: Kind,
    *,
    samples: int = 1,
    generator: Generator | None = None,
    weight: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield cotangents of the outputs, scaled so that their squares add up to the curvature.

    Args:
        likelihood: What the outputs say of the targets.
        output: Detached, shape ``(N, ..., outputs)``; ``(N,)`` or ``(N, 1)`` for one number.
        y: The targets; class -100 counts for nothing.
        kind: ``ggn-mc``, ``ggn`` or ``ef``.
        samples: Passes of ``ggn-mc``.
        generator: Source of the sampled labels.
        weight: How often each example counts, shape ``(N,)``; None: once.

    Raises:
        BayespareError: If ``ggn`` is asked for outputs at several positions of an example, or the
            classes are not the last dimension of the outputs.
    """
    found = _unweighted(likelihood, output, y, kind, samples, generator)
    if weight is None:
        yield from found
        return
    # Squared later, and times the weight then.
    root = weight.to(output.dtype).sqrt().view(-1, *(1,) * (output.ndim - 1))
    for cotangent in found:
        yield cotangent * root


def _unweighted(
    likelihood: Likelihood,
    output: Tensor,
    y: Tensor,
    kind: Kind,
    samples: int,
    generator: Generator | None,
) -> Iterator[Tensor]:
    by_position(likelihood, output, y)  # refuses what does not fit
    if kind == "ef":
        yield _gradient(likelihood, output, y)
        return
    if kind == "ggn" and output.ndim > 2:
        raise BayespareError(
            f"kind='ggn' needs one output per example, the network returns {tuple(output.shape)}; "
            "use kind='ggn-mc'"
        )
    if isinstance(likelihood, Gaussian):
        yield from _gaussian(likelihood, output, kind, samples, generator)
        return
    probabilities = output.softmax(-1)
    counted = None
    if y.shape == output.shape[:-1] and not y.is_floating_point() and bool((y == IGNORED).any()):
        counted = (y != IGNORED).unsqueeze(-1)
    for cotangent in _categorical(probabilities, kind, samples, generator):
        yield cotangent if counted is None else cotangent * counted


def _categorical(
    probabilities: Tensor, kind: Kind, samples: int, generator: Generator | None
) -> Iterator[Tensor]:
    classes = probabilities.shape[-1]
    if kind == "ggn":
        roots = probabilities.sqrt()
        for c in range(classes):
            # sqrt(p_c) (e_c - p)
            cotangent = probabilities * -roots[:, c : c + 1]
            cotangent[:, c] += roots[:, c]
            yield cotangent
        return
    flat = probabilities.reshape(-1, classes)
    source = flat.device if generator is None else generator.device
    for _ in range(samples):
        drawn = torch.multinomial(flat.to(source), 1, generator=generator).to(flat.device)
        cotangent = (-flat).scatter_add_(1, drawn, torch.ones_like(flat[:, :1]))
        yield cotangent.view_as(probabilities) * samples**-0.5


def _gaussian(
    likelihood: Likelihood, output: Tensor, kind: Kind, samples: int, generator: Generator | None
) -> Iterator[Tensor]:
    std = likelihood.noise_std
    assert std is not None
    if kind == "ggn-mc":
        source = output.device if generator is None else generator.device
        for _ in range(samples):
            noise = torch.randn(
                output.shape, generator=generator, dtype=output.dtype, device=source
            )
            yield noise.to(output.device) * samples**-0.5 / std
        return
    flat = output.reshape(len(output), -1)
    for column in range(flat.shape[1]):
        cotangent = torch.zeros_like(flat)
        cotangent[:, column] = 1 / std
        yield cotangent.view_as(output)


def _gradient(likelihood: Likelihood, output: Tensor, y: Tensor) -> Tensor:
    leaf = output.detach().requires_grad_()
    with torch.enable_grad():
        loss = likelihood.nll(*by_position(likelihood, leaf, y)).sum()
    (found,) = torch.autograd.grad(loss, leaf)
    return found
