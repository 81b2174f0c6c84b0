"""What the ways to make a trained network smaller can be told."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

from bayespare.bayes.curvature.passes import Structure
from bayespare.bayes.marginal import PriorKind
from bayespare.bayes.posterior import Predictive
from bayespare.bayes.scores import Scope
from bayespare.checks import check_flag, check_positive, check_whole
from bayespare.errors import BayespareError, did_you_mean
from bayespare.training.budget import Budget

Unit = Literal["unit", "weight"]
Criterion = Literal["opd", "magnitude", "l2", "snip", "grasp", "taylor", "random"]

WEIGHTS_OF_LOSS = (1.0, 3.0, 10.0)
"""Factors of the realised rise of the loss against the evidence gained; validation chooses."""

HALVINGS = 2
"""Sizes inside a round that are tried where the round itself is too much."""


@dataclass(frozen=True)
class PosthocOptions(ABC):
    """What every way to make a trained network smaller can be told.

    Attributes:
        unit: What is removed: ``unit`` (units, channels, heads, positions and input features, the
            model gets physically smaller) or ``weight`` (single weights become zero).
        survivors: Refit what survives by least squares after every removal.
        finetune: Epochs of training each finished size gets at the end.
        samples: Training examples the curvature, the gradients and the costs are measured on.
        lr: Learning rate of the last training; between removals see :attr:`rate_between`.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        predictive: How the Laplace posterior predicts: see
            :class:`bayespare.bayes.posterior.GaussianPosterior`.
        force: Go on even if the network seems untrained.
        max_memory_gb: What the curvature may take beside the activations; more is refused before
            anything is done. None: as much as there is.
    """

    verb: ClassVar[str] = "reduce"
    unit: Unit = "unit"
    survivors: bool = True
    finetune: int = 15
    samples: int = 10_000
    lr: float = 5e-3
    seed: int = 0
    device: str = "auto"
    predictive: Predictive = "draws"
    force: bool = False
    max_memory_gb: float | None = None

    def __post_init__(self) -> None:
        _check_word(self.verb, "unit", self.unit, Unit)
        _check_word(self.verb, "predictive", self.predictive, Predictive)
        self._check_least(finetune=0, samples=1)
        check_whole("seed", self.seed)
        check_positive("lr", self.lr)
        check_flag("survivors", self.survivors)
        check_flag("force", self.force)
        if self.max_memory_gb not in (None, math.inf):
            check_positive("max_memory_gb", self.max_memory_gb)

    @property
    def structure(self) -> Structure:
        """Of the curvature that is measured."""
        return "diag"

    @property
    def rate_between(self) -> float:
        """Learning rate of the training between removals, at its start.

        What goes next is judged by the weights as they are: a high rate drowns their costs in
        noise. Those of single weights differ least; units lose more in a round, and need a higher
        one to get it back.
        """
        return {"unit": 0.6, "weight": 0.18}[self.unit] * self.lr

    @property
    def swapped(self) -> float:
        """Share of the single weights that change places when the last training starts."""
        return 0.0

    @property
    @abstractmethod
    def steps(self) -> int:
        """Removals and finished sizes there are at most, or about: what progress counts."""

    def _check_least(self, **least: int) -> None:
        for name, value in least.items():
            check_whole(name, getattr(self, name), value)

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Build options from keyword arguments.

        Raises:
            BayespareError: On an unknown one.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known)
                raise BayespareError(f"{cls.verb}: unknown option {name!r}{hint}")
        return cls(**options)


@dataclass(frozen=True)
class ReduceOptions(PosthocOptions):
    """Everything :func:`bayespare.reduce` can be told besides model and data.

    Attributes:
        between: Epochs of training after each round.
        rounds: At most so many rounds of removal.
        share: At most this share of the weights that are there goes in a round, with their units
            or by themselves.
        max_params: Budget of physical parameters, ``unit=unit`` only.
        max_macs: Budget of multiply-accumulates for one example, ``unit=unit`` only.
        sparsity: Least share of the parameters to be removed (``unit``) or zero (``weight``).
    """

    between: int = 2
    rounds: int = 16
    share: float = 0.3
    max_params: int | None = None
    max_macs: int | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(between=0, rounds=1)
        check_positive("share", self.share, below=1)
        if self.unit == "weight" and (self.max_params or self.max_macs):
            raise BayespareError(
                "unit=weight leaves shapes as they are, so max_params= and max_macs= cannot be "
                "met; give sparsity=, or unit=unit"
            )
        self.budget  # noqa: B018 (refuses bad limits)

    @property
    def structure(self) -> Structure:
        """See :class:`PosthocOptions`: units are judged together with what depends on them."""
        return "kfac" if self.unit == "unit" else "diag"

    @property
    def swapped(self) -> float:
        """See :class:`PosthocOptions`; a ranking that was asked for is left as it is."""
        return {"unit": 0.0, "weight": 0.2}[self.unit]

    @property
    def steps(self) -> int:
        """See :class:`PosthocOptions`: a search among the rounds, and inside one."""
        return self.rounds + 1 + (self.rounds - 1).bit_length() + 2 * HALVINGS

    @property
    def budget(self) -> Budget:
        """The limits on what the network may cost."""
        return Budget(self.max_params, self.max_macs, None, self.sparsity)


@dataclass(frozen=True)
class PruneOptions(PosthocOptions):
    """Everything :func:`bayespare.prune` can be told besides model and data.

    Attributes:
        criterion: What is ranked by: ``opd``, ``magnitude``, ``l2``, ``snip``, ``grasp``,
            ``taylor`` or ``random``; the lowest go.
        sparsity: Share of the weights and biases, or of the units of each group, that goes;
            several make a frontier, each from the network as given.
        scope: Rank in the whole network (``global``) or in each layer or group (``layer``); None:
            ``global`` for weights, ``layer`` for units.
        prior: Who shares a prior precision, of ``opd``; they are set by the evidence.
        rounds: Removals on the way to the share, scored anew each time.
        between: Epochs of training after each of them but the last.
    """

    verb: ClassVar[str] = "prune"
    criterion: Criterion = "opd"
    sparsity: float | Sequence[float] = ()
    scope: Scope | None = None
    prior: PriorKind = "layer"
    rounds: int = 1
    between: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_word(self.verb, "criterion", self.criterion, Criterion)
        _check_word(self.verb, "prior", self.prior, PriorKind)
        if self.prior != "layer" and self.criterion != "opd":
            raise BayespareError(
                f"prior={self.prior}: only criterion=opd has a prior, criterion={self.criterion} "
                "has none; leave it out"
            )
        if self.scope is not None:
            _check_word(self.verb, "scope", self.scope, Scope)
        self._check_least(between=0, rounds=1)
        given: Any = self.sparsity
        several = isinstance(given, Iterable) and not isinstance(given, str)
        for share in given if several else [given]:
            check_positive("sparsity", share, below=1)
        if not self.shares:
            raise BayespareError("prune: sparsity= is missing: the share that goes, such as 0.9")

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares that were asked for, rising."""
        given = self.sparsity
        return tuple(sorted(set(given))) if isinstance(given, Iterable) else (given,)

    @property
    def steps(self) -> int:
        """See :class:`PosthocOptions`."""
        return len(self.shares) * (self.rounds + 1)

    @property
    def ranked(self) -> Scope:
        """Where it is ranked."""
        return self.scope or ("global" if self.unit == "weight" else "layer")


def _check_word(verb: str, name: str, word: str, literal: Any) -> None:
    if word not in get_args(literal):
        hint = did_you_mean(str(word), get_args(literal))
        raise BayespareError(f"{name}={word!r}: not a {name} of {verb}{hint}")
