"""Predictions of a network that is linear in its parameters around their means.

The curvature of a Laplace posterior is that of the linearised network, so it is the linearised
network whose draws agree with it: ``f(x) + J(x) (theta - mean)`` is Gaussian with covariance
``J V J'``, V that of the posterior. Source: Immer, Korzepa and Bauer 2021 (arXiv 2008.08400); the
probit form is MacKay's (1992).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, jacrev, vmap

from bayespare.bayes.curvature import wired
from bayespare.bayes.curvature.parts import Dense
from bayespare.bayes.curvature.running import few
from bayespare.bayes.curvature.tape import Listener, Site, Tape
from bayespare.bayes.curvature.views import like_memory
from bayespare.bayes.posterior import GaussianPosterior
from bayespare.errors import BayespareError

WORKING = 2**24
"""Entries of the Jacobians that are held at once."""


def output_moments(
    model: nn.Module, x: Tensor, posterior: GaussianPosterior, *, variance: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the outputs of the linearised network.

    Args:
        model: In eval mode; its parameters are the means.
        x: Inputs, shape ``(N, ...)``, on any device.
        posterior: Of the model.
        variance: Keep the diagonal of the covariances alone; of many outputs it is what fits.

    Returns:
        Shapes ``(N, K)`` and ``(N, K, K)``, or twice ``(N, K)``, float64 on the CPU; K is 1 for
        outputs ``(N,)``.

    Raises:
        BayespareError: If the network cannot be differentiated one example at a time.
    """
    device = next(model.parameters()).device
    means = {n: p.detach() for n, p in model.named_parameters() if n in posterior.std}
    stds = {n: posterior.std[n].to(mean) for n, mean in means.items()}
    plain = _plain_layers(model, x[:1].to(device), posterior)
    rest = {name: mean for name, mean in means.items() if name not in plain}

    def outputs(values: dict[str, Tensor], example: Tensor) -> Tensor:
        found: Tensor = functional_call(model, means | values, (example.unsqueeze(0),))
        return found.reshape(-1)

    with torch.no_grad():
        width = outputs(means, x[0].to(device)).numel()
    entries = width * (sum(mean.numel() for mean in rest.values()) + sum(plain.values()))
    found, spreads = [], []
    for rows in torch.split(x, max(1, WORKING // max(1, entries))):
        rows = rows.to(device)
        try:
            slopes = vmap(jacrev(outputs), (None, 0))(rest, rows) if rest else {}
            values = vmap(outputs, (None, 0))(rest, rows)
        except RuntimeError as error:
            raise BayespareError(
                f"the network cannot be linearised ({str(error).splitlines()[0]}); use "
                "predictive='draws'"
            ) from error
        spread = torch.zeros(len(rows), width, width, dtype=torch.float64, device=device)
        if plain:
            spread += _layer_spread(model, rows, {name: stds[name] for name in plain})
        for name, slope in slopes.items():
            if name in posterior.correlated:
                scaled = posterior.correlated[name].whitened(slope)
            else:
                scaled = (slope * stds[name]).flatten(2)
            spread += (scaled @ scaled.mT).double()
        found.append(values.double().cpu())
        # A copy, so that the rest of the covariance is free.
        spreads.append((spread.diagonal(dim1=-2, dim2=-1).clone() if variance else spread).cpu())
    return torch.cat(found).detach(), torch.cat(spreads).detach()


def _plain_layers(model: nn.Module, x: Tensor, posterior: GaussianPosterior) -> dict[str, int]:
    """Independent weights and biases of layers that see an example once, with the layer's width."""
    try:
        wiring = wired(model, x)
    except (BayespareError, RuntimeError):  # a use that cannot be followed
        return {}
    found, examples = {}, few(x)[1]
    for name, (part, *more) in wiring.parts.items():
        if not more and isinstance(part, Dense) and part.inputs.shape[:-1] == (examples,):
            found[name] = part.view.size[0]
    found |= {bias: found[weight] for bias, weight in wiring.twins.items() if weight in found}
    independent = posterior.std.keys() - posterior.correlated.keys()
    return {name: width for name, width in found.items() if name in independent}


class _Kept(Listener):
    """Keeps the sites of a running model and their outputs."""

    def __init__(self) -> None:
        self.found: list[tuple[Site, Tensor]] = []

    def visit(self, site: Site, output: Tensor) -> Tensor:
        self.found.append((site, output))
        return output.clone()  # what follows may write in place


def _layer_spread(model: nn.Module, rows: Tensor, stds: Mapping[str, Tensor]) -> Tensor:
    """Covariance of the outputs by the weights of plain layers alone, shape ``(N, K, K)``.

    A slope is the product of a cotangent ``g`` and an input: the squares of the inputs meet the
    variances once for all outputs, ``sum_o g_ko g_lo (S^2 x^2 + s_b^2)_o``.
    """
    parameters = {name: p for name, p in model.named_parameters() if name in stds}
    kept = _Kept()
    with torch.enable_grad():
        with Tape(parameters, kept, examples=len(rows)):
            values = model(rows).reshape(len(rows), -1)
        ends = [output for _, output in kept.found]
        cotangents = [
            torch.autograd.grad(column.sum(), ends, retain_graph=True, materialize_grads=True)
            for column in values.unbind(1)
        ]
    width = values.shape[1]
    total = torch.zeros(len(rows), width, width, dtype=torch.float64, device=rows.device)
    with torch.no_grad():
        for (site, _), given in zip(kept.found, zip(*cotangents, strict=True), strict=True):
            slope = torch.stack(given, 1)
            variance = torch.zeros_like(slope[:, 0])
            for part in site.parts:
                name = part.view.name
                shown = part.view.within(like_memory(stds[name], parameters[name])).square()
                variance += part.inputs.square() @ shown.t() if isinstance(part, Dense) else shown
            total += ((slope * variance.unsqueeze(1)) @ slope.mT).double()
    return total


def probit_logits(mean: Tensor, variance: Tensor) -> Tensor:
    """Logits whose softmax is nearly the mean softmax of Gaussian logits, shapes ``(N, K)``."""
    return mean / (1 + math.pi / 8 * variance).sqrt()


def draws(mean: Tensor, covariance: Tensor, samples: int, generator: Generator) -> list[Tensor]:
    """Gaussian outputs, ``samples`` times, shape ``(N, K)`` each."""
    values, basis = torch.linalg.eigh(covariance)
    root = basis * values.clamp_min(0).sqrt().unsqueeze(-2)
    shape, source = (samples, *mean.shape, 1), generator.device
    noise = torch.randn(shape, generator=generator, dtype=mean.dtype, device=source)
    return [mean + (root @ one).squeeze(-1) for one in noise.to(mean)]
