"""The whole state of a network being fitted: one object that can be saved, restored and copied."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayespare.bayes.likelihood import Likelihood
from bayespare.data import Batches, Dataset
from bayespare.errors import BayespareError
from bayespare.structure.closure import fold_constants
from bayespare.structure.plan import Verdict
from bayespare.structure.slicing import named_tensors
from bayespare.training import ranks
from bayespare.training.criterion import Checked, Foretold
from bayespare.training.grown import grown
from bayespare.training.loop import validate
from bayespare.training.method import Method


@dataclass(frozen=True)
class Sample:
    """Some of the training data.

    Attributes:
        batches: Of them, always the same.
        examples: How many there are in all.
        weight: How often each of them counts, on average.
    """

    batches: Batches
    examples: int
    weight: float = 1.0

    @classmethod
    def of(cls, data: Dataset, most: int) -> Self:
        """Evenly spaced rows of training data, ``most`` at most."""
        rows = torch.arange(0, len(data), -(-len(data) // most))
        part = data.subset(rows)
        weight = 1.0 if part.weight is None else float(part.weight.mean())
        return cls(Batches(part, len(rows), shuffle=False), len(data), weight)


@dataclass(eq=False)
class Fit:
    """A network, the method that fits it, and everything that moves with them.

    Attributes:
        network: The live network; it shrinks.
        method: Holds the posterior.
        likelihood: Loss and scores.
        optimizer: Over the network, the posterior and the likelihood.
        generator: Source of batch orders and noise.
        odds: Group name to the last log-odds of every unit the network ever had, nats.
        epoch: Epochs done.
        batch: Examples per step, for the optimiser's rates.
        rate: Factor of all of these rates.
        warnings: What a user has to know of the decision.
        diagnostics: What else the method knew before it, JSON-ready.
    """

    network: nn.Module
    method: Method
    likelihood: Likelihood
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    odds: dict[str, Tensor]
    epoch: int = 0
    batch: int = 256
    rate: float = 1.0
    warnings: list[str] = field(default_factory=list)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        network: nn.Module,
        method: Method,
        likelihood: Likelihood,
        generator: torch.Generator,
        batch: int,
        rate: float = 1.0,
    ) -> Self:
        """Begin with a network a method has just been attached to."""
        return cls(
            network=network,
            method=method,
            likelihood=likelihood,
            optimizer=_adam(network, method, likelihood, batch, rate),
            generator=generator,
            odds={g.name: torch.full((g.size,), torch.inf) for g in method.plan.groups},
            batch=batch,
            rate=rate,
        )

    # ------------------------------------------------------------- shrinking
    def update(self, sample: Sample | None = None) -> Checked | None:
        """Let the method cut what has settled.

        Args:
            sample: Training data to check on what the method foretells.

        Returns:
            What was foretold of it and came true; None where nothing was, or without a sample.
        """
        self._note(self.method.log_odds())
        return self._checked(lambda: self.method.update(self.optimizer), sample)

    def _checked(self, remove: Callable[[], Any], sample: Sample | None) -> Checked | None:
        """Remove, and look at the loss before and after it."""
        method = self.method
        if sample is None or not method.foretells:
            remove()
            return None
        method.foretold = None
        before = self._loss(sample)
        remove()
        foretold: Foretold | None = method.foretold
        return None if foretold is None else Checked(foretold, self._loss(sample) - before)

    def _loss(self, sample: Sample) -> float:
        """Of all training data, by the sample, at the means of all that is there; nats."""
        self.method.looking = True
        mean = validate(self.network, self.likelihood, sample.batches).nll
        self.method.looking = False
        # Validation has weights of mean one, what is minimised has not.
        return mean * sample.examples * sample.weight

    def polish(self, data: Dataset, most: int = 2048) -> None:
        """Let the method improve its log-odds before the decision.

        Args:
            data: Training data.
            most: Rows for which the likelihood is computed; it is scaled to all.
        """
        sample = Sample.of(data, most)
        ((x, y, *weight),) = sample.batches

        @torch.no_grad()
        def log_likelihood() -> Tensor:
            losses = self.likelihood.nll(self.network(x).float(), y)
            losses = losses * weight[0] if weight else losses
            return -losses.mean() * sample.examples

        training = self.network.training
        self.network.eval()
        self.method.polish(log_likelihood)
        self.network.train(training)

    def decide(self, sample: Sample | None = None) -> Checked | None:
        """Let the method cut what its log-odds speak against; optimisation starts afresh.

        Args:
            sample: As of :meth:`update`.

        Returns:
            As :meth:`update`.
        """
        self._note(self.method.log_odds())
        self.warnings += self.method.warnings()
        self.diagnostics = self.method.diagnostics()
        checked = self._checked(lambda: self.method.decide(self.optimizer), sample)
        self.restart()
        return checked

    def remove(self, keep: Mapping[str, Tensor]) -> None:
        """Cut units chosen elsewhere (constant inputs, a budget)."""
        self.method.remove(keep, self.optimizer)

    def fold(self, keep: Mapping[str, Tensor], template: nn.Module, x: Tensor) -> None:
        """Cut features that never vary; what they add to their readers goes into the biases.

        Where that is not exact they stay, and the method judges them.

        Args:
            keep: Which units vary, of groups that have some that do not.
            template: The network as the user gave it; nothing of it has been cut yet.
            x: Some of the inputs.
        """
        whole, plan = grown(template, self.method), self.method.whole
        deaf = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in plan.groups}
        for name, line in keep.items():
            # One of a group is left in any case, which must not count twice.
            deaf[name] = ~line if bool(line.any()) else torch.arange(len(line)) > 0
        gone, with_biases = fold_constants(whole, plan, deaf, {}, named_tensors(whole), (x.cpu(),))
        if with_biases is not plan:
            return  # A reader has no bias to take it.
        self.method.take(dict(whole.named_parameters(remove_duplicate=False)))
        self.remove({name: ~gone[name] for name in keep if bool(gone[name].any())})

    def verdict(self, stay: Mapping[str, Tensor] | None = None) -> Verdict:
        """Which units are there, or would be if it were decided now.

        Args:
            stay: Which units of the network as it is now stay; default: what would be decided.
        """
        keep = {name: line.clone() for name, line in self.method.keep.items()}
        for name, stays in (self._decision() if stay is None else stay).items():
            keep[name][keep[name].nonzero().squeeze(1)[~stays]] = False
        return Verdict(self.method.whole, keep)

    def _decision(self) -> dict[str, Tensor]:
        """Which units of the network as it is now would stay if it were decided."""
        odds = self.method.log_odds()
        wanted = {name: values > 0 for name, values in odds.items()}
        return ranks.agreed(self.method.plan.surviving(wanted, odds))

    def parameters(self, stay: Mapping[str, Tensor] | None = None) -> int:
        """Parameters of the network if it were decided now, or if these units stay."""
        return self.method.remaining(self.network, self._decision() if stay is None else stay)

    def _note(self, odds: Mapping[str, Tensor]) -> None:
        for name, values in odds.items():
            self.odds[name][self.method.keep[name]] = values.float()

    def restart(self) -> None:
        """Forget what the optimiser knows, which is of another network."""
        self.optimizer = _adam(self.network, self.method, self.likelihood, self.batch, self.rate)

    # --------------------------------------------------------------- copying
    def copy(self) -> Fit:
        """An independent copy; it draws from the same generator."""
        self.optimizer.zero_grad(set_to_none=True)
        # Generators cannot be copied, and there is only one stream of noise in a run.
        shared = {id(self.generator): self.generator}
        return copy.deepcopy(self, shared)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything as flat tensors and JSON-ready values."""
        tensors: dict[str, Tensor] = {}
        parts: dict[str, Mapping[str, Tensor]] = {
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "likelihood": self.likelihood.state_dict(),
            "keep": self.method.keep,
            "odds": self.odds,
        }
        for part, values in parts.items():
            for name, value in values.items():
                tensors[f"{part}/{name}"] = value.detach().cpu().contiguous()
        for name, value in moments(self.optimizer).items():
            tensors[f"optimizer/{name}"] = value.cpu()
        meta = {
            "epoch": self.epoch,
            "tempering": self.method.tempering,
            "progress": self.method.progress,
            "price": self.method.price,
            "decided": self.method.decided,
            "warnings": self.warnings,
            "diagnostics": self.diagnostics,
        }
        return tensors, meta

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Bring a freshly started fit to a saved state, cutting it to shape first.

        Raises:
            BayespareError: If a tensor is missing or has another shape.
        """
        try:
            self._restore(tensors, meta)
        except (KeyError, RuntimeError, ValueError, IndexError, BayespareError) as error:
            reason = " ".join(str(error).split())
            raise BayespareError(f"the checkpoint does not fit this run: {reason}") from error

    def _restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value
        self.remove(dict(parts["keep"]))
        if meta["decided"]:
            self.method.settle(self.optimizer)
            self.restart()
        # In the order of the plan, whatever the file's.
        self.odds = {name: parts["odds"][name].clone() for name in self.odds}
        self.network.load_state_dict(parts.get("network", {}))
        self.method.load_state_dict(parts.get("method", {}))
        self.likelihood.load_state_dict(parts.get("likelihood", {}))
        restore_moments(self.optimizer, parts.get("optimizer", {}))
        self.epoch = int(meta["epoch"])
        if self.epoch < 0:
            raise ValueError(f"{self.epoch} epochs are done")
        self.warnings = [str(text) for text in meta["warnings"]]
        self.diagnostics = dict(meta.get("diagnostics", {}))
        self.method.tempering = float(meta["tempering"])
        self.method.progress = float(meta["progress"])
        self.method.price = float(meta["price"])


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an Adam as flat tensors, by the place of the parameter."""
    return {
        f"{index}/{key}": torch.as_tensor(value)
        for index, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Undo :func:`moments` in an optimiser over the same parameters."""
    for index, parameter in enumerate(_parameters(optimizer)):
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = saved.get(f"{index}/{key}")
            if value is None:
                continue
            # Moments lie in memory as the parameter does: a fused step goes by their place there.
            state[key] = (
                value.to(parameter.device)
                if key == "step"
                else torch.empty_like(parameter).copy_(value)
            )
        if state:
            optimizer.state[parameter] = state


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _adam(
    network: nn.Module, method: Method, likelihood: Likelihood, batch: int, rate: float
) -> torch.optim.Optimizer:
    groups = method.parameter_groups(network, batch)
    noise = [p for p in likelihood.parameters() if p.requires_grad]
    if noise:
        groups.append({"params": noise, "lr": 1e-2, "base_lr": 1e-2})
    for group in groups:
        group["lr"], group["base_lr"] = group["lr"] * rate, group["base_lr"] * rate
    return torch.optim.Adam([g for g in groups if g["params"]], fused=True)
