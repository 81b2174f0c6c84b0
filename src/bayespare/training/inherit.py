"""What a smaller candidate takes over from the next larger one, which is finished."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayespare.data import Batches, Dataset
from bayespare.structure import Verdict, mask
from bayespare.structure.survivors import update_survivors
from bayespare.training.fit import Fit
from bayespare.training.grown import grown, taken

ROWS = 4096
"""Training examples that survivors are refitted on, at most; convolutions need fewer."""


def inherited(larger: Fit, smaller: Fit, template: nn.Module, data: Dataset | None) -> Fit:
    """What the larger one has learnt, in the units that both have, with what survives refitted.

    Cutting a finished network would lose most of what it knows: on what is left, each layer is
    refitted to what it computed before (:func:`~bayespare.structure.survivors.update_survivors`).

    Args:
        larger: Finished.
        smaller: Decided; its log-odds stay.
        template: The network of the original shapes.
        data: Training data to refit on; None: no refit.

    Returns:
        A fit that starts to train; ``smaller`` itself if the two share no network, or if it has
        lost single weights that the larger one has.
    """
    both = {name: line & smaller.method.keep[name] for name, line in larger.method.keep.items()}
    if any(not bool(line.any()) for line in both.values()):
        return smaller
    fit = larger.copy()
    fit.remove({name: line[larger.method.keep[name]] for name, line in both.items()})
    # Units they share; what is still more are single weights.
    if fit.parameters() > smaller.parameters():
        return smaller
    if data is not None:
        _refit(fit, mask(grown(template, larger.method), _verdict(larger)), data)
    # Of what only the smaller one has, the larger one says why it went.
    fit.odds = {
        name: torch.where(smaller.method.keep[name] & ~line, larger.odds[name], smaller.odds[name])
        for name, line in both.items()
    }
    fit.warnings, fit.diagnostics = smaller.warnings, smaller.diagnostics
    fit.epoch = smaller.epoch
    fit.restart()
    return fit


def _refit(fit: Fit, before: nn.Module, data: Dataset) -> None:
    """Refit, in place, what survives of a network to what it computed before."""
    method = fit.method
    step = -(-len(data) // ROWS)
    rows = data.subset(torch.arange(0, len(data), step, device=data.x.device))
    inputs = [x for x, *_ in Batches(rows, min(256, len(rows)), shuffle=False)]
    after = update_survivors(before.to(data.x.device), _verdict(fit), inputs).model
    lines = method.whole.lines(method.keep)
    named: dict[str, Tensor] = dict(after.named_parameters(remove_duplicate=False))
    method.take({name: taken(tensor.cpu(), name, lines) for name, tensor in named.items()})


def _verdict(fit: Fit) -> Verdict:
    return Verdict(fit.method.whole, fit.method.keep)
