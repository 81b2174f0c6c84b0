"""From a fitted candidate to an ordinary network, with its posterior."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.structure import Verdict, compact, mask
from bayespare.structure.compare import difference
from bayespare.training.fit import Fit


@dataclass(frozen=True, eq=False)
class Finished:
    """A compact network.

    Attributes:
        model: Stock layers only, of the smaller size.
        posterior: Spread of its parameters.
        verdict: Which units of the original network it keeps.
        masked_difference: Largest difference to the masked network of the original size,
            relative to the largest output, on random inputs.
    """

    model: nn.Module
    posterior: GaussianPosterior
    verdict: Verdict
    masked_difference: float


def finish(template: nn.Module, fit: Fit, example: Tensor) -> Finished:
    """Turn a decided fit into a compact network, proven equal to the masked one.

    Args:
        template: The network as the user gave it; its sizes are the original ones.
        fit: A fit of it, after the decision.
        example: A batch the network accepts.

    Raises:
        UnsupportedStructureError: If compact and masked network differ.
    """
    whole, keep = fit.method.whole, fit.method.keep
    verdict = Verdict(whole, keep)
    grown = copy.deepcopy(template).cpu()
    lines = whole.lines(keep)
    targets = dict(grown.named_parameters()) | dict(grown.named_buffers())
    means = {name: tensor.detach().cpu() for name, tensor in fit.method.means().items()}
    with torch.no_grad():
        for name, target in targets.items():
            index = [
                lines[name, dim].nonzero().squeeze(1)
                if (name, dim) in lines
                else torch.arange(target.shape[dim])
                for dim in range(target.dim())
            ]
            if target.dim():
                target[torch.meshgrid(*index, indexing="ij")] = means[name]
            else:
                target.copy_(means[name])
    grown.eval()
    small = compact(grown, verdict, example=example)
    gap = difference(mask(grown, verdict), small, example)
    names = {name for name, _ in small.named_parameters()}
    std = {
        _name_in(names, name): value.detach().cpu().clone()
        for name, value in fit.method.standard_deviations().items()
    }
    return Finished(small, GaussianPosterior(std).checked(small), verdict, gap)


def _name_in(names: set[str], name: str) -> str:
    """The name a parameter has in the compact network: behind a ``Select``, one level deeper."""
    if name in names:
        return name
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.1.{leaf}"
