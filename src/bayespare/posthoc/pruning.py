"""``bayespare.prune``: remove a given share by a ranking, the way pruning is usually done."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from bayespare.bayes import scores
from bayespare.errors import UnsupportedStructureError
from bayespare.posthoc.criteria import unit_scores, weight_scores
from bayespare.posthoc.lost import Standing
from bayespare.posthoc.removal import masks_of
from bayespare.posthoc.rounds import REFIT_BATCHES, Row, Size, sampled, silenced, tune
from bayespare.posthoc.run import Data, Finished, Run
from bayespare.posthoc.settings import PruneOptions
from bayespare.result import Result
from bayespare.structure import Verdict


def prune(
    model: nn.Module,
    train: Data,
    *,
    valid: Data | None = None,
    test: Data | None = None,
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
        train: A :class:`~bayespare.data.Dataset`, or batches of (x, y), as it was trained on.
        valid: Validation data; a tenth of ``train`` is held out when it is not given.
        test: Test data, read once at the end; without it the figures are those of ``valid``.
        report: Called with a row of history after every removal.
        config: What else to note in ``config.json``.
        **options: As :class:`PruneOptions`; ``sparsity`` has to be given.

    Returns:
        As :func:`bayespare.sparsify`, the frontier one network for each share. Of several the
        smallest that is on validation data as good as the network given is chosen.

    Raises:
        BayespareError: On bad input, or an untrained network.
        UnsupportedStructureError: If there is nothing to rank.
    """
    run = Pruning(model, train, valid, test, PruneOptions.of(**options), report)
    return run.result(dict(config or {}))


@final
class Pruning(Run):
    """Removal by rank, every share from the network as given."""

    method = "prune"
    options: PruneOptions

    def finished(self, network: nn.Module, given: Standing) -> list[Finished]:
        """See :class:`Run`."""
        self._first: scores.Scores | None = None
        return [self.finish(self._pruned(network, share)) for share in self.options.shares]

    def _pruned(self, network: nn.Module, share: float) -> Size:
        """Remove a share in rounds of equal factors, training in between."""
        options = self.options
        generator = torch.Generator(self.device).manual_seed(options.seed)
        batches = sampled(self.train, options.samples, generator)
        unlabelled = [x for x, _ in batches[:REFIT_BATCHES]]
        keep = {g.name: torch.ones(g.size, dtype=torch.bool) for g in self.plan.groups}
        size = Size("dense", network, {}, keep, 0.0, 0.0)
        for number in range(1, options.rounds + 1):
            began = time.perf_counter()
            given = self._first
            if given is None or number > 1:
                given = weight_scores(
                    options.criterion,
                    size.model,
                    self.likelihood,
                    batches,
                    len(self.train),
                    generator,
                    prior=options.prior,
                )
            self._first = given if number == 1 else self._first
            size = self._without(size, given, 1 - (1 - share) ** (number / options.rounds))
            size.name = f"s{100 * share:g}"
            reduced = silenced(size.model, size.masks, unlabelled, survivors=options.survivors)
            if number < options.rounds:
                rate = options.rate_between
                tune(
                    reduced, size.masks, *self.soft, options.between, options, generator, rate=rate
                )
            size.model = reduced
            found = self.validate(reduced)
            self.note(
                {
                    "phase": "prune",
                    "epoch": number,
                    "sparsity": share,
                    "nonzeros": size.nonzeros,
                    "valid_score": found.mean,
                    "valid_nll": found.nll,
                    "seconds": time.perf_counter() - began,
                }
            )
        return size

    def _without(self, size: Size, given: Mapping[str, Tensor], share: float) -> Size:
        """The same network with the masks of a larger share."""
        gone = -torch.inf
        if self.options.unit == "weight":
            left = {
                name: score.masked_fill(~size.masks[name], gone) if name in size.masks else score
                for name, score in given.items()
            }
            masks = scores.masks(left, share, scope=self.options.ranked)
            return Size(size.name, copy.deepcopy(size.model), masks, {}, 0.0, 0.0)
        sums = unit_scores(self.plan, given)
        if not sums:
            raise UnsupportedStructureError(
                "prune: the network has no hidden units that could be ranked; use unit=weight"
            )
        sums = {name: score.masked_fill(~size.keep[name], gone) for name, score in sums.items()}
        keep = size.keep | scores.masks(sums, share, scope=self.options.ranked)
        keep = self.plan.surviving(keep, {**sums})
        masks = masks_of(size.model, Verdict(self.plan, keep))
        return Size(size.name, size.model, masks, keep, 0.0, 0.0)
