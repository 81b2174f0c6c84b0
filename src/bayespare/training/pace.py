"""How long an epoch takes here, and what fits into a given time."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn

from bayespare.data import Dataset
from bayespare.errors import BayespareError
from bayespare.training.baseline import DenseTraining
from bayespare.training.fit import Fit
from bayespare.training.loop import own_global_stream, placed, run_epoch
from bayespare.training.schedule import Schedule, Settings

STEPS = 20
WARM_UP = 4

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_in(value: float | str) -> float:
    """Seconds in ``90``, ``90s``, ``10m``, ``2h`` or ``1.5h``.

    Raises:
        BayespareError: If it is none of these, or not above zero.
    """
    found = re.fullmatch(r"\s*([0-9._e+]+)\s*([smh]?)\s*", str(value).lower())
    try:
        seconds = float(found[1]) * _UNITS[found[2]] if found else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BayespareError(f"time={value}: must be a time above 0, such as 90, 90s, 10m or 2h")
    return seconds


def spoken(seconds: float) -> str:
    """A time as it is given: ``45s``, ``10m``, ``1.5h``; rounded up, so that it is enough."""
    if seconds < 120:
        return f"{math.ceil(seconds)}s"
    if seconds < 7200:
        return f"{math.ceil(seconds / 60)}m"
    return f"{math.ceil(seconds / 360) / 10:g}h"


@dataclass(frozen=True)
class Pace:
    """Seconds an epoch takes on this machine, while the network has its original size.

    Attributes:
        dense: Of ordinary training.
        noisy: Of training with the method attached.
    """

    dense: float
    noisy: float

    def seconds(self, schedule: Schedule, dense_epochs: int) -> float:
        """About how long a run takes, and the dense reference after it.

        An epoch of cooling took 0.25 to 0.3 of one of exploring at the original size (digits,
        MNIST and Fashion-MNIST, batches of twice the size): the network is small then. A quarter is
        added for validation and for a machine that gets busier, and 20 ms an epoch for the
        checkpoint.
        """
        cooling = 0.7 / schedule.cool_batch * schedule.cool * schedule.candidates
        training = self.dense * (schedule.warm + dense_epochs)
        training += self.noisy * (schedule.explore + cooling) * schedule.passes
        return 1.25 * training + 0.02 * schedule.total


def measure_pace(
    model: nn.Module,
    data: Dataset,
    settings: Settings,
    attach: Callable[[nn.Module, torch.Generator], Fit],
) -> Pace:
    """Time some twenty steps of each kind, and take their medians.

    Nothing is left of the steps: the model is copied, the random streams are as before.

    Args:
        model: The dense network; not changed.
        data: Training data.
        settings: Batch, device and precision.
        attach: Attaches a fresh method to a network and returns the fit.
    """
    device = settings.device
    steps = max(1, len(data) // settings.batch)
    few = data.subset(torch.arange(min(steps, STEPS + WARM_UP) * settings.batch)).to(device)
    generator = torch.Generator(device).manual_seed(0)
    with own_global_stream(0, device):
        fit = attach(placed(copy.deepcopy(model), device), generator)
        network = placed(copy.deepcopy(model), device)
        plain = DenseTraining(
            network, fit.likelihood, few, epochs=1, settings=settings, generator=generator
        )
        noisy = partial(
            run_epoch, fit.network, fit.likelihood, fit.optimizer, plain.batches, method=fit.method
        )
        dense = partial(run_epoch, network, fit.likelihood, plain.optimizer, plain.batches)
        times = [
            _median_step(partial(epoch, precision=settings.precision), len(plain.batches), device)
            for epoch in (dense, noisy)
        ]
    return Pace(*(steps * seconds for seconds in times))


def _median_step(epoch: Callable[..., Any], steps: int, device: torch.device) -> float:
    """Seconds of a step, the first few left out: they allocate."""
    moments: list[float] = []

    def note(step: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())

    for _ in range(math.ceil((STEPS + WARM_UP) / steps)):
        epoch(after_step=note)
    return median([end - start for start, end in pairwise(moments)][WARM_UP - 1 :])
