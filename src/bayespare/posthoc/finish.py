"""The last training: a size as it came out of the rounds, cut and trained to its end."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from bayespare.posthoc.kept import Kept
from bayespare.posthoc.lost import Standing
from bayespare.posthoc.priors import WeightPriors
from bayespare.posthoc.problem import Problem
from bayespare.posthoc.rounds import Row, tune
from bayespare.posthoc.sizes import Size
from bayespare.structure import Verdict, close, compact, count, mask
from bayespare.structure.compare import difference
from bayespare.training.loop import Scores, placed


@dataclass(eq=False)
class Finished:
    """A size trained to its end.

    Attributes:
        size: As it came out of the rounds.
        model: Compact, on the CPU.
        verdict: Which units it keeps, dead paths closed.
        gap: Largest relative difference to the masked network, before the last training.
        before: Validation before the last training.
        standing: Validation after it.
        parameters: What sizes are compared by: of the model, or those that are not zero.
        macs: Multiply-accumulates of one example.
    """

    size: Size
    model: nn.Module
    verdict: Verdict
    gap: float
    before: Scores
    standing: Standing
    parameters: int
    macs: int

    @property
    def scores(self) -> Scores:
        """Validation after the last training, of every example."""
        return self.standing.scores


@final
class Finisher:
    """Trains sizes to their end.

    Args:
        problem: After :meth:`Problem.aim`.
        kept: Where finished sizes are kept, and taken from when the run goes on.
        note: Called with a row of history for each size.
    """

    def __init__(self, problem: Problem, kept: Kept, note: Callable[[Row], None]) -> None:
        self.problem, self.options = problem, problem.options
        self.kept, self.note = kept, note
        self._done: list[str] = []

    def finish(self, size: Size) -> Finished:
        """Close dead paths, cut, and train what is left."""
        problem = self.problem
        if self.options.unit == "weight":
            # Shapes change once, at the end: the masks belong to the original ones.
            before = self._trained(size.name, size.model, size.masks)
        network = copy.deepcopy(size.model).cpu().eval()
        keep = size.keep or problem.plan.all_units
        closed, verdict = close(network, Verdict(problem.plan, keep), problem.example)
        small = compact(closed, verdict, example=problem.example)
        gap = difference(mask(closed, verdict), small, problem.example)
        if self.options.unit == "unit":
            small = placed(small, problem.device)
            before = self._trained(size.name, small, {})
        small = small.cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        counts = count(small, problem.example[:1])
        standing = problem.standing(placed(copy.deepcopy(small), problem.device))
        sized = counts.nonzeros if self.options.unit == "weight" else counts.parameters
        return Finished(size, small, verdict, gap, before, standing, sized, counts.macs)

    def _trained(self, name: str, network: nn.Module, masks: dict[str, Tensor]) -> Scores:
        """Train a size to its end, in place, unless it is better without; its scores before that.

        Of few rows, which are fitted already, more training makes a network too sure.
        """
        before = self.problem.validate(network)
        self._done.append(name)
        step = self.kept.take(f"finish-{name}")
        if step is not None:
            state = network.state_dict()
            network.load_state_dict({key: step.tensors[key] for key in state})
            return before
        began, was = time.perf_counter(), copy.deepcopy(network.state_dict())
        self.train_to_end(network, masks)
        after = self.problem.validate(network)
        # Of a loss that is no number, too.
        better = after.loss <= before.loss
        if not better:
            network.load_state_dict(was)
        self.note(
            {
                "phase": "finish",
                "epoch": len(self._done),
                "size": name,
                "valid_score": after.mean,
                "valid_nll": after.nll,
                "taken": better,
                "seconds": time.perf_counter() - began,
            }
        )
        self.kept.put(f"finish-{name}", network.state_dict())
        return before

    def train_to_end(self, network: nn.Module, masks: dict[str, Tensor]) -> None:
        """To the maximum a posteriori, under the priors evidence gives the weights it has."""
        options, problem = self.options, self.problem
        if options.finetune == 0:
            return
        generator = torch.Generator(problem.device).manual_seed(options.seed)
        priors = WeightPriors(network, problem.bends(network), len(problem.train))
        tune(
            network,
            masks,
            *problem.soft,
            options.finetune,
            options,
            generator,
            priors=priors,
            swapped=options.swapped,
        )
