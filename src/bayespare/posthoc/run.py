"""From a trained network to smaller ones, and the choice among them, whoever says what goes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from bayespare.posthoc.finish import Finished, Finisher
from bayespare.posthoc.kept import Kept
from bayespare.posthoc.lost import Standing, as_good
from bayespare.posthoc.outcome import as_result, run_config
from bayespare.posthoc.problem import Data, Problem
from bayespare.posthoc.rounds import Row
from bayespare.posthoc.settings import PosthocOptions
from bayespare.result import Result
from bayespare.training.candidates import FEW_ROWS, choose
from bayespare.training.checkpoint import digest
from bayespare.training.history import History
from bayespare.training.loop import own_global_stream, placed
from bayespare.version import __version__


class Run(ABC):
    """One run of ``reduce`` or ``prune``; subclasses say which sizes there are.

    Args:
        model: Trained; it is not changed.
        train: As it was trained on.
        valid: That it was not trained on, or None.
        test: Read once at the end, or None.
        options: Of the verb.
        folder: Where steps that are done are kept; a run that was stopped there goes on.
        report: Called with a row of history after every step.

    Raises:
        BayespareError: On bad input, or if the folder holds another run.
        UnsupportedStructureError: If the network cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Data,
        valid: Data | None,
        test: Data | None,
        options: PosthocOptions,
        folder: str | Path | None = None,
        report: Callable[[Row], None] | None = None,
    ) -> None:
        self.options, self.outer = options, report
        self.problem = Problem(model, train, valid, test, options)
        folder = None if folder is None else Path(folder)
        self.kept = Kept(
            folder, self.problem.device, {} if folder is None else _identity(self.problem)
        )
        path = None if folder is None else folder / "history.jsonl"
        self.history = History(path, resume=self.kept.resuming)
        self.finisher = Finisher(self.problem, self.kept, self.note)

    def result(self, config: dict[str, Any]) -> Result:
        """Run all steps."""
        with own_global_stream(self.options.seed, self.problem.device):
            network = placed(copy.deepcopy(self.problem.model), self.problem.device)
            given = self.problem.aim(network)
            finished = self.finished(network, given)
            chosen = self._chosen(finished, given)
            return as_result(
                self.problem, finished, chosen, given, self.history.rows, self.findings(), config
            )

    @abstractmethod
    def finished(self, network: nn.Module, given: Standing) -> list[Finished]:
        """Make smaller networks and train them to their end.

        Args:
            network: As given, on the device.
            given: Where it stands on validation data.
        """

    def findings(self) -> dict[str, Any]:
        """What else to note in ``metrics.json``; called once, it may add warnings."""
        return {}

    def note(self, row: Row) -> None:
        """Keep a row of history and pass it on."""
        self.history.add(row)
        if self.outer is not None:
            self.outer(row)

    def _chosen(self, finished: list[Finished], given: Standing) -> Finished:
        """The smallest as good as the network given: that is what a user compares with."""
        good = [done for done in finished if as_good(done.standing, given)]
        if not good or len(given.scores.score) < FEW_ROWS:
            return choose(good or finished)
        return min(good, key=lambda done: done.parameters)


def _identity(problem: Problem) -> dict[str, Any]:
    """What has to be the same when the run goes on; where it runs does not."""
    same = ("method", "task", "inputs", "outputs")
    told = {key: value for key, value in asdict(problem.options).items() if key != "device"}
    config = run_config(problem)
    parts = (problem.train, problem.valid)
    data = [t for part in parts for t in (part.x, part.y, part.weight) if t is not None]
    return {
        "version": __version__,
        **{key: config[key] for key in same},
        **told,
        "data": digest(data),
        "network weights": digest(problem.model.state_dict().values()),
    }
