"""Single weights change places while what is left is trained.

A mask is found on a network that still has to be trained, and training changes which weights are
worth having. With gradient g and curvature h of the loss, removing a weight w costs ``h w^2 / 2``
and bringing one back gains ``g^2 / (2 h)``: both are read off Adam's moments, whose second one
stands for the curvature.

Source: RigL (Evci et al. 2020, arXiv 1911.11134), which compares ``|w|`` and ``|g|`` instead, and
layer by layer; here it is the whole network at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayespare.training.loop import cosine

LAST = 0.6
"""Share of the training after which masks rest: a weight that is new has to be trained."""


@torch.no_grad()
def swap(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    share: float,
    done: float,
) -> dict[str, Tensor]:
    """Put the most promising of the weights that are gone in the place of the cheapest there are.

    Args:
        model: In training, what is gone is zero; changed in place.
        masks: Which weights are there, by parameter name; not changed.
        optimizer: Adam, after a step at least.
        share: Of the weights that are there, how many are exchanged at the start of the training.
        done: Share of the training that lies behind.

    Returns:
        The new masks, of as many weights; the same ones when nothing changes.
    """
    # A weight that no output depends on is not trained: it stays as it is.
    resting = {
        n: mask for n, mask in masks.items() if model.get_parameter(n) not in optimizer.state
    }
    masks = {name: mask for name, mask in masks.items() if name not in resting}
    if not masks or done > LAST:
        return resting | masks
    there, gone = _concatenated(masks), ~_concatenated(masks)
    count = min(int(share * cosine(done) * int(there.sum())), int(gone.sum()))
    if count == 0:
        return resting | masks
    weights = {name: model.get_parameter(name) for name in masks}
    moments = {name: optimizer.state[weight] for name, weight in weights.items()}
    slope = _concatenated({name: state["exp_avg"] for name, state in moments.items()}).double()
    bend = _concatenated({n: s["exp_avg_sq"] for n, s in moments.items()}).double() + 1e-24
    cost = (bend * _concatenated(weights).double().square()).masked_fill(gone, torch.inf)
    gain = (slope.square() / bend).masked_fill(there, -torch.inf)
    there[cost.topk(count, largest=False).indices] = False
    there[gain.topk(count).indices] = True
    lines = torch.split(there, [mask.numel() for mask in masks.values()])
    found = {n: line.view(masks[n].shape) for n, line in zip(masks, lines, strict=True)}
    for name, weight in weights.items():
        weight.mul_(found[name])
    return resting | found


def _concatenated(named: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in named.values()])
