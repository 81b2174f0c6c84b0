"""How well a selection finds the truth, where that is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bayespare.errors import BayespareError


@dataclass(frozen=True)
class Recovery:
    """A selection against the truth.

    Attributes:
        auroc: Probability that a true one ranks above a null one, ties counting half.
        r_precision: Share of true ones among the highest scores, as many as there are true ones.
        precision: Share of true ones among the selected; 1 where nothing is selected.
        recall: Share of selected ones among the true.
        f1: Harmonic mean of both.
        accuracy: Share of members, true or null, that are told rightly.
    """

    auroc: float
    r_precision: float
    precision: float
    recall: float
    f1: float
    accuracy: float


def recovery(truth: Tensor, scores: Tensor, chosen: Tensor) -> Recovery:
    """Compare scores and a selection with the truth.

    Args:
        truth: Boolean, shape ``(J,)``.
        scores: Higher is more relevant (log-odds, not probabilities: these tie), shape ``(J,)``.
        chosen: Boolean, shape ``(J,)``.

    Raises:
        BayespareError: If all members are true, or none.
    """
    true, null = scores[truth].double(), scores[~truth].double()
    if not len(true) or not len(null):
        raise BayespareError("recovery: needs true members and null ones")
    ahead = (true[:, None] > null).double() + 0.5 * (true[:, None] == null).double()
    found = float((chosen & truth).sum())
    precision = found / float(chosen.sum()) if bool(chosen.any()) else 1.0
    recall = found / len(true)
    top = scores.argsort(descending=True, stable=True)[: len(true)]
    return Recovery(
        auroc=float(ahead.mean()),
        r_precision=float(truth[top].double().mean()),
        precision=precision,
        recall=recall,
        f1=2 * found / (float(chosen.sum()) + len(true)),
        accuracy=float((chosen == truth).double().mean()),
    )
