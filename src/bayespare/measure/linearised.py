"""Predictions of a network that is linear in its parameters around their means.

The curvature of a Laplace posterior is that of the linearised network, so it is the linearised
network whose draws agree with it: ``f(x) + J(x) (theta - mean)`` is Gaussian with covariance
``J V J'``, V that of the posterior. Source: Immer, Korzepa and Bauer 2021 (arXiv 2008.08400); the
probit form is MacKay's (1992).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, jacrev, vmap

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.errors import BayespareError

WORKING = 2**24
"""Entries of the Jacobians that are held at once."""


def output_moments(
    model: nn.Module, x: Tensor, posterior: GaussianPosterior
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the outputs of the linearised network.

    Args:
        model: In eval mode; its parameters are the means.
        x: Inputs, shape ``(N, ...)``, on any device.
        posterior: Of the model.

    Returns:
        Shapes ``(N, K)`` and ``(N, K, K)``, float64 on the CPU; K is 1 for outputs ``(N,)``.

    Raises:
        BayespareError: If the network cannot be differentiated one example at a time.
    """
    device = next(model.parameters()).device
    means = {n: p.detach() for n, p in model.named_parameters() if n in posterior.std}
    stds = {n: posterior.std[n].to(mean) for n, mean in means.items()}

    def outputs(values: dict[str, Tensor], example: Tensor) -> Tensor:
        found: Tensor = functional_call(model, values, (example.unsqueeze(0),))
        return found.reshape(-1)

    with torch.no_grad():
        width = outputs(means, x[0].to(device)).numel()
    entries = width * sum(mean.numel() for mean in means.values())
    found, spreads = [], []
    for rows in torch.split(x, max(1, WORKING // max(1, entries))):
        rows = rows.to(device)
        try:
            slopes = vmap(jacrev(outputs), (None, 0))(means, rows)
            values = vmap(outputs, (None, 0))(means, rows)
        except RuntimeError as error:
            raise BayespareError(
                f"the network cannot be linearised ({str(error).splitlines()[0]}); use "
                "predictive='draws'"
            ) from error
        spread = torch.zeros(len(rows), width, width, dtype=torch.float64, device=device)
        for name, slope in slopes.items():
            if name in posterior.correlated:
                scaled = posterior.correlated[name].whitened(slope)
            else:
                scaled = (slope * stds[name]).flatten(2)
            spread += (scaled @ scaled.mT).double()
        found.append(values.double().cpu())
        spreads.append(spread.cpu())
    return torch.cat(found).detach(), torch.cat(spreads).detach()


def probit_logits(mean: Tensor, covariance: Tensor) -> Tensor:
    """Logits whose softmax is nearly the mean softmax of Gaussian logits.

    Args:
        mean: Shape ``(N, K)``.
        covariance: Shape ``(N, K, K)``; its diagonal is used.
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return mean / (1 + math.pi / 8 * variance).sqrt()


def draws(mean: Tensor, covariance: Tensor, samples: int, generator: Generator) -> list[Tensor]:
    """Gaussian outputs, ``samples`` times, shape ``(N, K)`` each."""
    values, basis = torch.linalg.eigh(covariance)
    root = basis * values.clamp_min(0).sqrt().unsqueeze(-2)
    noise = torch.randn(samples, *mean.shape, 1, generator=generator, dtype=mean.dtype)
    return [mean + (root @ one).squeeze(-1) for one in noise]
