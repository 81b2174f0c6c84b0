"""``bayespare.reduce``: make a trained network smaller without training it anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from torch import nn

from bayespare.posthoc.finish import Finished
from bayespare.posthoc.lost import Standing, as_good
from bayespare.posthoc.problem import Data
from bayespare.posthoc.rounds import Rounds, Row
from bayespare.posthoc.run import Run
from bayespare.posthoc.settings import HALVINGS, ReduceOptions
from bayespare.posthoc.sizes import Size, find_last, up_to_summit
from bayespare.result import Result
from bayespare.structure import Verdict, compact, count
from bayespare.training.budget import Cost
from bayespare.training.criterion import rounds as checked_rounds
from bayespare.training.criterion import warning

NEARLY = 1.1
"""Factor of the loss of the network given, up to which the last training has brought a size back.

Of LeNet and MLPs with two hidden layers on Fashion-MNIST, six runs: 1.05 to 1.2.
"""


def reduce(
    model: nn.Module,
    train: Data,
    *,
    valid: Data | None = None,
    test: Data | None = None,
    folder: str | Path | None = None,
    report: Callable[[Row], None] | None = None,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Result:
    """Remove what the evidence is against from a trained network; no ratio is asked for.

    In rounds: curvature of the loss by a Monte Carlo pass, prior precisions per layer by evidence,
    removal of the cheapest units (or weights) that evidence is against, least-squares refit of
    what survives to what the network computed before, and a short training towards labels and the
    whole network. The sizes of highest measured evidence are trained to their end, under priors
    that evidence gives their weights, and parts of the round that is too much are tried; the
    smallest is chosen that is on validation data as good as the network given, or nearly.

    Args:
        model: Any trained network; it is not changed.
        train: As it was trained on; forms as in :func:`bayespare.sparsify`.
        valid: Validation data that the model was not trained on. When it is not given a tenth of
            ``train`` is held out, and a warning says what that means.
        test: Test data, read once at the end; without it the figures are those of ``valid``.
        folder: Where rounds and finished sizes are kept; a run that was stopped there goes on.
        report: Called with a row of history after every round and every finished size.
        config: What else to note in ``config.json``.
        **options: As :class:`ReduceOptions`.

    Returns:
        As :func:`bayespare.sparsify`; ``metrics["criterion"]`` says how far the predicted rise of
        the loss was from the realised one, round by round.

    Raises:
        BayespareError: On bad input, an untrained network, or a budget that is not met.
        UnsupportedStructureError: If nothing can be removed from the network.
    """
    run = Reduction(model, train, valid, test, ReduceOptions.of(**options), folder, report)
    return run.result(dict(config or {}))


@final
class Reduction(Run):
    """Rounds stopped by measured evidence, then a search among their sizes and inside one."""

    options: ReduceOptions

    def __init__(
        self,
        model: nn.Module,
        train: Data,
        valid: Data | None,
        test: Data | None,
        options: ReduceOptions,
        folder: str | Path | None = None,
        report: Callable[[Row], None] | None = None,
    ) -> None:
        super().__init__(model, train, valid, test, options, folder, report)
        model, one = self.problem.model, self.problem.example[:1]
        self.budget = options.budget.of(count(model, one).parameters)
        if options.unit == "unit":
            options.budget.check(model, self.problem.plan, one)

    def finished(self, network: nn.Module, given: Standing) -> list[Finished]:
        """See :class:`Run`."""
        problem = self.problem
        rounds = Rounds(
            network,
            problem.plan if self.options.unit == "unit" else None,
            problem.train,
            problem.valid,
            problem.likelihood,
            self.options,
            self._met,
            self.note,
            problem.soft,
            self.kept,
        )
        sizes = rounds.run()
        path = [size for size in up_to_summit(sizes[1:] or sizes) if self._met(size)]
        path = path or [size for size in sizes[-1:] if self._met(size)]
        if not path:
            costs = [self._cost(size) for size in sizes]
            raise self.options.budget.refusal(costs, more="rounds")
        finished = self._search(path, given)
        finished += self._inside(rounds, path[-1], finished, given)
        if not (self.budget or any(as_good(done.standing, given) for done in finished)):
            finished.append(self.finisher.finish(sizes[0]))
            self.problem.warnings.append(self._kept_whole(given))
        return finished

    def _kept_whole(self, given: Standing) -> str:
        """Why nothing was removed: for the most part removals, but training may diverge."""
        scores, untrained = given.scores, self.problem.knows_nothing
        first = next((row for row in self.history.rows if row["phase"] == "reduce"), None)
        if (
            first is not None
            and self.options.between
            and untrained(first["valid_score"], first["valid_nll"])
            and not untrained(scores.mean, scores.nll)
        ):
            return (
                "after the training that followed the first removal the network knew no more than "
                f"a constant: lr={self.options.lr:g} is too high for it; it is kept whole"
            )
        return (
            "every removal costs validation data more than a user would want to lose: the "
            "network is kept whole; give more data, or a budget to have it smaller all the same"
        )

    def _search(self, path: list[Size], given: Standing) -> list[Finished]:
        """Train sizes to their end until the smallest is found that is as good as the one given."""
        finished: list[Finished] = []

        def good(place: int) -> bool:
            finished.append(self.finisher.finish(path[place]))
            return as_good(finished[-1].standing, given)

        find_last(len(path), self._likely(path, given), good)
        return finished

    def _likely(self, path: list[Size], given: Standing) -> int:
        """Place of the last size that its round left nearly as good: the last training does more.

        A guess costs one validation of each size, a size trained to its end minutes.
        """
        losses = [self.problem.validate(size.model).loss for size in path]
        return max((i for i, x in enumerate(losses) if x <= NEARLY * given.scores.loss), default=0)

    def _inside(
        self, rounds: Rounds, last: Size, finished: list[Finished], given: Standing
    ) -> list[Finished]:
        """Train sizes between the smallest that is as good as the one given and the next.

        A round takes so much that a user would notice what is left of it.
        """
        good = [done.size for done in finished if as_good(done.standing, given)]
        whole = [] if self.budget else rounds.sizes[:1]
        best = max(good or whole, key=lambda size: size.round, default=last)
        found: list[Finished] = []
        for halving in range(1, HALVINGS + 1):
            size = None if best is last else rounds.between(best, 0.5**halving)
            if size is None:
                break
            found.append(self.finisher.finish(size))
            if as_good(found[-1].standing, given):
                best = size
        return found

    def _met(self, size: Size) -> bool:
        return not self.budget or self.budget.met(self._cost(size))

    def _cost(self, size: Size) -> Cost:
        """What a budget compares; of weights, how many are not zero."""
        if self.options.unit == "weight":
            return Cost(size.nonzeros)
        problem = self.problem
        small = compact(problem.model, Verdict(problem.plan, size.keep))
        counts = count(small, problem.example[:1])
        return Cost(counts.parameters, counts.macs)

    def findings(self) -> dict[str, Any]:
        """See :class:`Run`: predicted and realised rise of the training loss, by round."""
        criterion = checked_rounds(self.history.rows)
        self.problem.warnings += warning(criterion, "the sizes were chosen by what came true")
        return {"criterion": criterion}
