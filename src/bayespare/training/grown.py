"""Between the shapes that a network has in training and those it started with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from bayespare.training.method import Method

Lines: TypeAlias = Mapping[tuple[str, int], Tensor]


@torch.no_grad()
def grown(template: nn.Module, method: Method) -> nn.Module:
    """A copy of the network as the user gave it, with the posterior means of all that is left.

    What was removed keeps the values of ``template``; mask it.

    Args:
        template: Of the original shapes.
        method: Attached to a copy of it, after the decision.

    Returns:
        On the CPU, in evaluation mode.
    """
    whole = copy.deepcopy(template).cpu().eval()
    # A tied weight has several names, and the means have it under all of them.
    tensors: dict[str, Tensor] = dict(whole.named_parameters(remove_duplicate=False))
    tensors |= dict(whole.named_buffers(remove_duplicate=False))
    lines = method.whole.lines(method.keep)
    for name, value in method.means().items():
        put(tensors[name], name, value.detach().cpu(), lines)
    return whole


@torch.no_grad()
def put(target: Tensor, name: str, value: Tensor, lines: Lines) -> None:
    """Write what is left of a tensor to where it was in the whole one.

    Args:
        target: The whole tensor, changed in place.
        name: Its name.
        value: What is left of it.
        lines: Which indices are left, as of :meth:`~bayespare.structure.plan.Plan.lines`.
    """
    target[_places(target, name, lines)] = value


def taken(whole: Tensor, name: str, lines: Lines) -> Tensor:
    """What is left of a whole tensor; undoes :func:`put`."""
    return whole[_places(whole, name, lines)]


def _places(whole: Tensor, name: str, lines: Lines) -> tuple[Tensor, ...]:
    """Index of the entries that are left."""
    index = [
        lines[name, dim].nonzero().squeeze(1)
        if (name, dim) in lines
        else torch.arange(whole.shape[dim])
        for dim in range(whole.dim())
    ]
    return torch.meshgrid(*index, indexing="ij") if index else ()
