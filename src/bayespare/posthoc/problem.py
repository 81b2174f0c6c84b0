"""A trained network and its data: checked, and where it stands on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from bayespare.bayes.curvature import Estimate, curvature, estimate
from bayespare.bayes.curvature.passes import Structure
from bayespare.bayes.likelihood import Gaussian, Likelihood, likelihood_for
from bayespare.data import Batches, Dataset, from_loader, hold_out
from bayespare.errors import BayespareError, NoCurvatureError
from bayespare.given import (
    check_weights,
    checked_model,
    checked_outputs,
    data_warnings,
    precision_warnings,
)
from bayespare.lookups import check_lookups, with_ids
from bayespare.posthoc.lost import Standing, tempered_losses
from bayespare.posthoc.rounds import sampled
from bayespare.posthoc.settings import PosthocOptions
from bayespare.structure import Plan, trace
from bayespare.structure.positions import with_positions
from bayespare.training.loop import Scores, pick_device, validate
from bayespare.training.teacher import Teacher

Data = Dataset | Iterable[Any]

SEEN = (
    "no valid= was given: a tenth of train was held out, which the network given has probably been "
    "trained on; it looks better there than it is, and less is removed than could be; give valid= "
    "(and test=) that it has never seen"
)


def as_given(data: Data, like: Dataset | None = None) -> Dataset:
    """The data with targets in the units the network was trained on: a loader's own.

    Args:
        data: As the user gave them.
        like: The training data, where these are others of the same kind: theirs are the units.
    """
    if isinstance(data, Dataset):
        return data
    found = from_loader(data, like=like)
    if found.task == "classification" or like is not None:
        return found
    mean, std = found.target_scale
    return replace(found, y=found.y * std + mean, target_scale=(0.0, 1.0))


def follow(
    model: nn.Module, example: Tensor, structure: Structure
) -> tuple[Estimate, tuple[str, ...]]:
    """What curvature takes, once parameters it cannot follow, as an LSTM's, are frozen in place.

    Args:
        model: The network.
        example: Inputs of one batch.
        structure: ``diag`` or ``kfac``.

    Returns:
        The bytes, and the names of what was frozen.

    Raises:
        UnsupportedStructureError: If it cannot be found of what is left.
        BayespareError: If nothing is left.
    """
    frozen: list[str] = []
    while True:
        try:
            return estimate(model, example, structure=structure), tuple(frozen)
        except NoCurvatureError as error:
            frozen += error.names
            for name in error.names:
                model.get_parameter(name).requires_grad_(False)


def _alone(names: Sequence[str]) -> list[str]:
    """A warning of parameters that nothing is known of, or none."""
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        "curvature cannot follow what a recurrent layer or an operation of the network's own does; "
        f"kept as given, neither trained nor with a posterior: {names[0]}{more}"
    ]


@final
class Problem:
    """What is to be made smaller, and what it is judged by.

    Args:
        model: Trained; it is not changed.
        train: As it was trained on.
        valid: That it was not trained on; None: a tenth of ``train``, with a warning.
        test: Read once at the end; None: ``valid`` in its place.
        options: Device, seed, samples.

    Attributes:
        model: A copy, on the CPU, in evaluation mode.
        plan: What can be removed from it.
        train: On the device, like ``valid`` and ``test``.
        has_test: Whether ``test`` was given.
        example: A few inputs, on the CPU.
        outputs: Of the network.
        likelihood: Of the task; :meth:`aim` sets its noise.
        soft: Likelihood and data of all later training; from :meth:`aim`.
        unfollowed: Parameters that stay as they are, for want of curvature.
        warnings: For the user.

    Raises:
        BayespareError: On bad input.
        UnsupportedStructureError: If the network cannot be traced.
    """

    soft: tuple[Likelihood, Dataset]

    def __init__(
        self,
        model: nn.Module,
        train: Data,
        valid: Data | None,
        test: Data | None,
        options: PosthocOptions,
    ) -> None:
        self.options, self.device = options, pick_device(options.device)
        self.model = checked_model(model).eval()
        self.warnings = precision_warnings(model)
        whole = with_ids(self.model, as_given(train))
        if valid is None:
            self.warnings.append(SEEN)
            whole, held = hold_out(whole, seed=options.seed)
        else:
            held = with_ids(self.model, as_given(valid, whole))
        self.train, self.valid = whole.to(self.device), held.to(self.device)
        read = None if test is None else with_ids(self.model, as_given(test, whole))
        self.test = self.valid if read is None else read.to(self.device)
        self.has_test = test is not None
        self.example = whole.x[:4].cpu()
        check_weights(self.train, "train")
        check_weights(self.valid, "valid")
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        check_lookups(self.model, {name: part.x for name, part in parts.items()})
        self.outputs = checked_outputs(self.model, whole, self.example)
        told = self.test if self.has_test else None
        self.warnings += data_warnings(self.model, whole, self.example, self.valid, told)
        self.likelihood = likelihood_for(whole.task).to(self.device)
        self._check_finite()
        self.plan: Plan = with_positions(
            trace(self.model, self.example, inputs=whole.feature_groups)
        )
        needs, self.unfollowed = follow(self.model, self.example, options.structure)
        needs.check(options.max_memory_gb)
        self.warnings += _alone(self.unfollowed)

    # ---------------------------------------------------------------- checks
    def _check_finite(self) -> None:
        """Refuse a network with a parameter that is not finite."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise BayespareError(
                    f"{self.options.verb}: {name} holds values that are not finite; was the "
                    "training stable?"
                )

    def _check_trained(self, scores: Scores) -> None:
        """Refuse a network that knows no more than the best constant."""
        name, reached, constant = self._beside_constant(scores.mean, scores.nll)
        if not math.isfinite(reached):
            raise BayespareError(
                f"{self.options.verb}: the network's {name} on validation data is {reached}"
            )
        if self.knows_nothing(scores.mean, scores.nll) and not self.options.force:
            raise BayespareError(
                f"{self.options.verb}: the network seems untrained: its {name} on validation data "
                f"is {reached:.4g}, that of a constant {constant:.4g}; train it first, use "
                "sparsify, or give force=true"
            )

    def _beside_constant(self, score: float, nll: float) -> tuple[str, float, float]:
        """What a network is compared with the best constant by, its value, the constant's."""
        if self.train.task == "regression":
            return "squared error", -score, float(self.valid.y.float().var(correction=0))
        share = torch.bincount(self.valid.y).double() / len(self.valid)
        return "NLL", nll, float(-(share * share.clamp_min(1e-12).log()).sum())

    def knows_nothing(self, score: float, nll: float) -> bool:
        """Whether a network knows no more than the best constant.

        Args:
            score: Its mean score on validation data.
            nll: Its mean negative log likelihood there, nats.
        """
        _, reached, constant = self._beside_constant(score, nll)
        return not reached <= 0.9 * constant

    # ------------------------------------------------------------------- aim
    def aim(self, network: nn.Module) -> Standing:
        """Refuse an untrained network; set the noise, and what all later training aims at.

        Args:
            network: As given, on the device.

        Returns:
            Where it stands on validation data.

        Raises:
            BayespareError: If it knows no more than the best constant.
        """
        given = self.standing(network)
        scores = given.scores
        self._check_trained(scores)
        if isinstance(self.likelihood, Gaussian):
            # The data weigh as much as the noise lets them: what the network leaves unexplained.
            with torch.no_grad():
                self.likelihood.log_noise.fill_(0.5 * math.log(max(-scores.mean, 1e-30)))
        self.soft = self._targets(network, scores)
        return given

    def _targets(self, network: nn.Module, scores: Scores) -> tuple[Likelihood, Dataset]:
        """What all later training aims at: the labels, and what the whole network says."""
        if self.train.task != "classification":
            return self.likelihood, self.train
        return Teacher.of(network, self.train, self.valid, scores).lesson(self.train, 0.5)

    # -------------------------------------------------------------- measured
    def validate(self, network: nn.Module) -> Scores:
        """Scores on validation data."""
        return validate(network, self.likelihood, Batches(self.valid, 1024, shuffle=False))

    def standing(self, network: nn.Module) -> Standing:
        """Where a network stands on validation data."""
        scores, held = self.validate(network), self.valid
        if held.task == "regression":
            return Standing(scores, scores.losses)
        losses = tempered_losses(_outputs(network, held), held.y)
        if held.weight is not None:
            losses = losses * (held.weight / held.weight.mean()).double().cpu()
        return Standing(scores, losses)

    def bends(self, network: nn.Module) -> dict[str, Tensor]:
        """Diagonal curvature of the loss of all training data, nats, by parameter name."""
        generator = torch.Generator(self.device).manual_seed(self.options.seed)
        some = sampled(self.train, self.options.samples, generator)
        found = curvature(network, self.likelihood, some, generator=generator)
        scale = len(self.train) / found.examples
        return {name: bend * scale for name, bend in found.diagonal.items()}

    def noise(self, scores: Scores) -> float | None:
        """Standard deviation of what is left unexplained; None of classes."""
        return math.sqrt(-scores.mean) if self.train.task == "regression" else None


@torch.no_grad()
def _outputs(network: nn.Module, rows: Dataset) -> Tensor:
    """What a network in evaluation mode says of every row, shape ``(N, ...)``."""
    slices = Batches(rows, 1024, shuffle=False)
    return torch.cat([network(x).float() for x, *_ in slices])
