"""What the settings of the variational optimiser may be."""

from __future__ import annotations

import math
from typing import Any

import torch

from bayespare.errors import BayespareError

Group = dict[str, Any]


def check_group(group: Group) -> None:
    """Raise if a setting of a parameter group is out of range, naming it."""
    beta1, beta2 = group["betas"]
    ranges = {
        "lr": group["lr"] >= 0 and math.isfinite(group["lr"]),
        "ess": 0 < group["ess"] < math.inf,
        "weight_decay": 0 < group["weight_decay"] < math.inf,
        "hess_init": 0 < group["hess_init"] < math.inf,
        "clip_radius": group["clip_radius"] > 0,
        "betas": 0 <= beta1 < 1 and 0 <= beta2 < 1,
    }
    reasons = {
        "ess": "it is the number of training examples",
        "weight_decay": "without a proper prior every removal would gain infinite evidence",
        "hess_init": "the posterior starts with this curvature",
    }
    for key, good in ranges.items():
        if not good:
            reason = f" ({reasons[key]})" if key in reasons else ""
            raise BayespareError(f"VariationalAdam: {key}={group[key]} is out of range{reason}")
    for p in group["params"]:
        if p.dtype not in (torch.float32, torch.float64):
            raise BayespareError(
                f"VariationalAdam: a parameter of shape {tuple(p.shape)} is {p.dtype}; keep "
                "parameters in float32 and run the forward pass under autocast"
            )
