"""``bayespare.prune``: remove a given share by a ranking, the way pruning is usually done."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from bayespare.bayes import scores
from bayespare.errors import UnsupportedStructureError
from bayespare.posthoc.criteria import unit_scores, weight_scores
from bayespare.posthoc.finish import Finished
from bayespare.posthoc.lost import Standing
from bayespare.posthoc.problem import Data
from bayespare.posthoc.removal import masks_of
from bayespare.posthoc.rounds import REFIT_BATCHES, Row, sampled, silenced, tune
from bayespare.posthoc.run import Run
from bayespare.posthoc.settings import PruneOptions
from bayespare.posthoc.sizes import Size
from bayespare.result import Result
from bayespare.structure import Verdict


def prune(
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
    """Remove a share of the weights or units of a trained network, the lowest scores first.

    For who compares, or knows the share. All criteria (OPD of the Laplace posterior, magnitude, L2,
    SNIP, GraSP, Taylor, random) get the same refit of survivors, the same training with the masks
    in force towards labels and the whole network, and the same measurements as
    :func:`bayespare.reduce`, which asks for no share.

    Args:
        model: Any trained network; it is not changed.
        train: As it was trained on; forms as in :func:`bayespare.sparsify`.
        valid: Validation data that the model was not trained on. When it is not given a tenth of
            ``train`` is held out, and a warning says what that means.
        test: Test data, read once at the end; without it the figures are those of ``valid``.
        folder: Where removals and finished sizes are kept; a run that was stopped there goes on.
        report: Called with a row of history after every removal and every finished size.
        config: What else to note in ``config.json``.
        **options: As :class:`PruneOptions`; ``sparsity`` has to be given.

    Returns:
        As :func:`bayespare.sparsify`, the frontier one network for each share. Of several the
        smallest that is on validation data as good as the network given is chosen.

    Raises:
        BayespareError: On bad input, or an untrained network.
        UnsupportedStructureError: If there is nothing to rank.
    """
    run = Pruning(model, train, valid, test, PruneOptions.of(**options), folder, report)
    return run.result(dict(config or {}))


@final
class Pruning(Run):
    """Removal by rank, every share from the network as given."""

    options: PruneOptions

    def finished(self, network: nn.Module, given: Standing) -> list[Finished]:
        """See :class:`Run`."""
        # Drawn here, so that no share depends on which others are asked for.
        generator = self._generator()
        self._batches = sampled(self.problem.train, self.options.samples, generator)
        self._scores = functools.cache(lambda: self._ranked(network, generator))
        return [self.finisher.finish(self._pruned(network, share)) for share in self.options.shares]

    def _generator(self) -> Generator:
        return Generator(self.problem.device).manual_seed(self.options.seed)

    def _ranked(self, network: nn.Module, generator: Generator) -> scores.Scores:
        """What the weights of a network are ranked by."""
        return weight_scores(
            self.options.criterion,
            network,
            self.problem.likelihood,
            self._batches,
            len(self.problem.train),
            generator,
            prior=self.options.prior,
        )

    def _pruned(self, network: nn.Module, share: float) -> Size:
        """Remove a share in rounds of equal factors, training in between."""
        options, problem, generator = self.options, self.problem, self._generator()
        size = Size(f"s{100 * share:g}", network, {}, problem.plan.all_units)
        for number in range(1, options.rounds + 1):
            step = self.kept.take(f"{size.name}-round{number:02d}")
            if step is not None:
                size = Size.restored(size.name, network, step.tensors)
                generator.set_state(step.tensors["generator"])
                continue
            began = time.perf_counter()
            given = self._scores() if number == 1 else self._ranked(size.model, generator)
            size = self._without(size, given, 1 - (1 - share) ** (number / options.rounds))
            unlabelled = [x for x, *_ in self._batches[:REFIT_BATCHES]]
            reduced = silenced(size.model, size.masks, unlabelled, survivors=options.survivors)
            if number < options.rounds:
                given_to = (reduced, size.masks, *problem.soft, options.between, options)
                tune(*given_to, generator, rate=options.rate_between)
            size.model = reduced
            found = problem.validate(reduced)
            self.note(
                {
                    "phase": "prune",
                    "epoch": options.shares.index(share) * options.rounds + number,
                    "sparsity": share,
                    "nonzeros": size.nonzeros,
                    "valid_score": found.mean,
                    "valid_nll": found.nll,
                    "seconds": time.perf_counter() - began,
                }
            )
            state = {"generator": generator.get_state()}
            self.kept.put(f"{size.name}-round{number:02d}", size.tensors() | state)
        return size

    def _without(self, size: Size, given: Mapping[str, Tensor], share: float) -> Size:
        """The same network with the masks of a larger share."""
        gone, plan = -torch.inf, self.problem.plan
        if self.options.unit == "weight":
            left = {
                name: score.masked_fill(~size.masks[name], gone) if name in size.masks else score
                for name, score in given.items()
            }
            masks = scores.masks(left, share, scope=self.options.ranked)
            return Size(size.name, size.model, masks, {})
        sums = unit_scores(plan, given)
        if not sums:
            raise UnsupportedStructureError(
                "prune: the network has no hidden units that could be ranked; use unit=weight"
            )
        sums = {name: score.masked_fill(~size.keep[name], gone) for name, score in sums.items()}
        keep = size.keep | scores.masks(sums, share, scope=self.options.ranked)
        keep = plan.surviving(keep, {**sums})
        masks = masks_of(size.model, Verdict(plan, keep))
        return Size(size.name, size.model, masks, keep)
