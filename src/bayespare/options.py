"""What a run can be told, and what it works out from the size of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from bayespare.errors import BayespareError, did_you_mean
from bayespare.training.loop import Precision
from bayespare.training.schedule import Schedule


@dataclass(frozen=True)
class Options:
    """Everything a run can be told; the defaults are what we recommend.

    Attributes:
        method: Name of a registered method.
        settings: Of the method, as keyword arguments.
        epochs: Epochs a dense network would get; None: from the size of the data.
        batch: Examples per step; None: from the size of the data.
        tempering: ``auto``, or a fixed weight of the KL.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``float32`` or ``bf16``.
        max_params: Budget of physical parameters; None: the posterior alone decides.
        baseline: Train a dense network for comparison, when the given one is not trained.
        samples: Posterior draws for predictions.
    """

    method: str = "ss-ghs"
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    batch: int | None = None
    tempering: float | Literal["auto"] = "auto"
    seed: int = 0
    device: str = "auto"
    precision: Precision = "float32"
    max_params: int | None = None
    baseline: bool = True
    samples: int = 32

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            hint = did_you_mean(str(self.precision), get_args(Precision))
            raise BayespareError(f"precision={self.precision!r}: not a precision{hint}")
        if self.tempering != "auto" and not (
            isinstance(self.tempering, float | int) and self.tempering >= 0
        ):
            raise BayespareError(
                f"tempering={self.tempering!r}: must be 'auto' or a number, 0 or more"
            )
        if self.samples < 1:
            raise BayespareError(f"samples={self.samples}: must be 1 or more")
        if self.max_params is not None and self.max_params < 1:
            raise BayespareError(f"max_params={self.max_params}: must be 1 or more")

    @property
    def published(self) -> bool:
        """Whether the method runs as its authors ran it: 1,200 epochs of batches of 1,024."""
        return self.settings.get("settings") == "faithful"

    def batch_for(self, examples: int) -> int:
        """The batch size: given, or at least 40 steps an epoch, between 16 and 256."""
        if self.batch is not None:
            if not 1 <= self.batch <= examples:
                raise BayespareError(
                    f"batch={self.batch}: must be between 1 and the {examples} training rows"
                )
            return self.batch
        if self.published:
            return min(1024, examples)
        size = 1 << int(math.log2(max(16, examples / 40)))
        return min(256, size, examples)

    def epochs_for(self, examples: int) -> int:
        """The epochs: given, or 60 and as many more as small data need for 8,000 steps."""
        if self.epochs is not None:
            if self.epochs < 1:
                raise BayespareError(f"epochs={self.epochs}: must be 1 or more")
            return self.epochs
        if self.published:
            return 1200
        return max(60, math.ceil(8000 / max(1, examples // self.batch_for(examples))))

    def schedule(self, examples: int) -> Schedule:
        """How the epochs are spent."""
        epochs = self.epochs_for(examples)
        if self.published:
            tempering = 1.0 if self.tempering == "auto" else self.tempering
            return Schedule.published(epochs, tempering)
        return Schedule.of(epochs, examples, self.tempering)

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Build options from keyword arguments.

        Raises:
            BayespareError: On an unknown one.
        """
        for name in options:
            if name not in cls.__dataclass_fields__:
                hint = did_you_mean(name, cls.__dataclass_fields__)
                raise BayespareError(f"unknown option {name!r}{hint}")
        return cls(**options)
