"""What a post-hoc reduction can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bayespare.errors import BayespareError, did_you_mean
from bayespare.training.budget import Budget

Unit = Literal["unit", "weight"]

WEIGHTS_OF_LOSS = (1.0, 3.0, 10.0)
"""Factors of the realised rise of the loss against the evidence gained; validation chooses."""


@dataclass(frozen=True)
class ReduceOptions:
    """Everything :func:`bayespare.reduce` can be told besides model and data.

    Attributes:
        unit: What is removed: ``unit`` (units, channels, heads, positions and input features, the
            model gets physically smaller) or ``weight`` (single weights become zero).
        survivors: Refit what survives by least squares after every removal.
        finetune: Epochs of training each finished size gets at the end.
        between: Epochs of training after each round.
        rounds: At most so many rounds of removal.
        samples: Training examples the curvature and the costs are measured on.
        share: At most this share of the survivors goes in a round; None: 0.15 of units, 0.3 of
            weights.
        lr: Learning rate of all training.
        max_params: Budget of physical parameters, ``unit=unit`` only.
        max_macs: Budget of multiply-accumulates for one example, ``unit=unit`` only.
        sparsity: Least share of the parameters to be removed (``unit``) or zero (``weight``).
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        force: Reduce a network even if it seems untrained.
    """

    unit: Unit = "unit"
    survivors: bool = True
    finetune: int = 15
    between: int = 1
    rounds: int = 16
    samples: int = 10_000
    share: float | None = None
    lr: float = 3e-3
    max_params: int | None = None
    max_macs: int | None = None
    sparsity: float | None = None
    seed: int = 0
    device: str = "auto"
    force: bool = False

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            hint = did_you_mean(str(self.unit), get_args(Unit))
            raise BayespareError(f"unit={self.unit!r}: not a unit of reduce{hint}")
        for name, least in (
            ("finetune", 0),
            ("between", 0),
            ("rounds", 1),
            ("samples", 1),
        ):
            if getattr(self, name) < least:
                raise BayespareError(f"{name}={getattr(self, name)}: must be {least} or more")
        if self.share is not None and not 0 < self.share < 1:
            raise BayespareError(f"share={self.share}: must be a number between 0 and 1")
        if not 0 < self.lr < math.inf:
            raise BayespareError(f"lr={self.lr}: must be a number above 0")
        if self.unit == "weight" and (self.max_params or self.max_macs):
            raise BayespareError(
                "unit=weight leaves shapes as they are, so max_params= and max_macs= cannot be "
                "met; give sparsity=, or unit=unit"
            )
        self.budget  # noqa: B018 (refuses bad limits)

    @property
    def most(self) -> float:
        """Share of the survivors that goes in a round at most."""
        return self.share or {"unit": 0.15, "weight": 0.3}[self.unit]

    @property
    def budget(self) -> Budget:
        """The limits on what the network may cost."""
        return Budget(self.max_params, self.max_macs, None, self.sparsity)

    @classmethod
    def of(cls, **options: Any) -> ReduceOptions:
        """Build options from keyword arguments.

        Raises:
            BayespareError: On an unknown one.
        """
        for name in options:
            if name not in cls.__dataclass_fields__:
                hint = did_you_mean(name, cls.__dataclass_fields__)
                raise BayespareError(f"reduce: unknown option {name!r}{hint}")
        return cls(**options)
