"""Models that cannot be traced as they are given: wrapped, compiled, scripted."""

from __future__ import annotations

import torch
from torch import nn

from bayespare.errors import BayespareError

_WRAPPERS = (
    (nn.parallel.DistributedDataParallel, "model.module"),
    (nn.DataParallel, "model.module"),
    (torch.jit.ScriptModule, "the Python module it was made from"),
)


def refuse_wrapped(model: nn.Module) -> None:
    """Raise if a model, or a part of it, is inside a wrapper that hides it.

    Raises:
        BayespareError: With the wrapper's name and what to give instead.
    """
    for name, module in model.named_modules():
        where = f"layer {name}" if name else "the model"
        inside = next((what for kind, what in _WRAPPERS if isinstance(module, kind)), None)
        if hasattr(module, "_orig_mod"):  # what torch.compile returns
            inside = "model._orig_mod"
        if inside is not None:
            raise BayespareError(
                f"{where} is wrapped in {type(module).__name__}: give {inside} instead, and wrap "
                "the smaller model afterwards"
            )
