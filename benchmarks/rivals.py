"""Pruners of torch-pruning, cut a little at a time down to a size."""

from collections.abc import Callable, Sequence
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

STEPS = 400
"""In which the ratio of a pruner rises to all."""

KINDS = {
    "group-norm": (
        tp.pruner.GroupNormPruner,
        lambda: tp.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
    ),
    "bn-scale": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance),
    "magnitude": (tp.pruner.BasePruner, lambda: tp.importance.GroupMagnitudeImportance(p=2)),
    "taylor": (tp.pruner.BasePruner, tp.importance.GroupTaylorImportance),
}


def pruner(kind: str, model: nn.Module, example: Tensor, **options: Any) -> Any:
    """A pruner over all layers but the last, its ratio rising to all in :data:`STEPS`."""
    maker, importance = KINDS[kind]
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    common = {"global_pruning": True, "iterative_steps": STEPS, "pruning_ratio": 1.0}
    return maker(model, example, importance(), ignored_layers=[last], **common, **options)


def cut(pruner: Any, small_enough: Callable[[], bool]) -> bool:
    """Let the ratio rise until the network is small enough; whether it ever was."""
    for _ in range(STEPS):
        if small_enough():
            return True
        pruner.step()
    return small_enough()


def cut_to(
    model: nn.Module, kind: str, batches: Sequence[tuple[Tensor, Tensor]], parameters: float
) -> None:
    """Cut to so many parameters, in place; gradients are those of the batches' mean loss."""
    model.eval()
    model.zero_grad()
    for x, y in batches:
        loss = functional.cross_entropy(model(x), y) / len(batches)
        loss.backward()  # type: ignore[no-untyped-call]
    rising = pruner(kind, model, batches[0][0][:1], max_pruning_ratio=0.98)
    if not cut(rising, lambda: sum(p.numel() for p in model.parameters()) <= parameters):
        raise SystemExit(f"{kind}: finds no network of {parameters:.0f} parameters")
    model.zero_grad()
