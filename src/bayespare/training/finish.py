"""From a fitted candidate to an ordinary network, with its posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayespare.bayes.posterior import GaussianPosterior
from bayespare.structure import Verdict, close, compact, mask, slice_slots
from bayespare.structure.compare import difference
from bayespare.structure.slicing import effective_keeps, slots_by_tensor
from bayespare.training.grown import grown, put
from bayespare.training.method import Method


@dataclass(frozen=True, eq=False)
class Finished:
    """A compact network.

    Attributes:
        model: Stock layers only, of the smaller size.
        posterior: Spread of its parameters.
        verdict: Which units of the original network it keeps, dead paths closed.
        masked_difference: Largest difference to the masked network of the original size,
            relative to the largest output, on random inputs.
    """

    model: nn.Module
    posterior: GaussianPosterior
    verdict: Verdict
    masked_difference: float


def finish(template: nn.Module, method: Method, example: Tensor | tuple[Tensor, ...]) -> Finished:
    """Turn what a method has decided into a compact network, proven equal to the masked one.

    Args:
        template: The network as the user gave it; its sizes are the original ones.
        method: Attached to a copy of it, after the decision.
        example: A batch the network accepts.

    Raises:
        UnsupportedStructureError: If compact and masked network differ.
    """
    whole = grown(template, method)
    lines = method.whole.lines(method.keep)
    spread = method.standard_deviations()
    # A tied weight has several names.
    tensors = dict(whole.named_parameters(remove_duplicate=False))
    std = {name: torch.zeros_like(tensors[name]) for name in spread}
    for name, value in spread.items():
        put(std[name], name, value.detach().cpu(), lines)
    whole, verdict = close(whole, Verdict(method.whole, method.keep), example)
    small = compact(whole, verdict, example=example)
    gap = difference(mask(whole, verdict), small, example)
    names = {name for name, _ in small.named_parameters()}
    keeps, slots = effective_keeps(verdict), slots_by_tensor(verdict.plan)
    cut = {
        _name_in(names, name): slice_slots(
            value.detach(),
            [slot for _, slot in slots.get(name, [])],
            [keeps[group.name] for group, _ in slots.get(name, [])],
        ).clone()
        for name, value in std.items()
    }
    return Finished(small, GaussianPosterior(cut).checked(small), verdict, gap)


def _name_in(names: set[str], name: str) -> str:
    """The name a parameter has in the compact network: behind a ``Select``, one level deeper."""
    if name in names:
        return name
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.1.{leaf}"
