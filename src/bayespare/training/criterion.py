"""What evidence foretold of a removal, beside what came true.

The change of log evidence of a removal is an Occam gain, which is in closed form, minus a rise of
the training loss, which is extrapolated from the posterior. So the rise is what can be wrong, and
it is measured at the removal: the loss on the same examples before and after it, no noise drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OFF = 10.0
"""Factor between predicted and realised rise of the loss above which a round counts as wrong."""

NOTHING = 1.0
"""Nats below which a rise is none: evidence that small says nothing."""


@dataclass(frozen=True)
class Foretold:
    """What a method expects of a removal.

    Attributes:
        delta_f: Change of log evidence, nats; positive is a gain.
        rise: Of the training loss, summed over the data, nats.
    """

    delta_f: float = 0.0
    rise: float = 0.0

    def __add__(self, other: Foretold) -> Foretold:
        return Foretold(self.delta_f + other.delta_f, self.rise + other.rise)


@dataclass(frozen=True)
class Checked:
    """A removal that was foretold, and what came true.

    Attributes:
        foretold: By the method.
        realised: Rise of the training loss, summed over the data, nats.
    """

    foretold: Foretold = Foretold()
    realised: float = 0.0

    def __add__(self, other: Checked) -> Checked:
        return Checked(self.foretold + other.foretold, self.realised + other.realised)

    def row(self) -> dict[str, float]:
        """Its part of a row of history."""
        return {
            "predicted_delta_f": self.foretold.delta_f,
            "predicted_rise": self.foretold.rise,
            "realised_rise": self.realised,
        }


def rounds(history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Predicted and realised rise of the loss, nats, of every row of history that has them."""
    return [
        {
            "round": row["epoch"],
            "predicted": row["predicted_rise"],
            "realised": row["realised_rise"],
        }
        for row in history
        if "predicted_rise" in row
    ]


def off(predicted: float, realised: float) -> bool:
    """Whether a rise was foretold wrongly by a factor of :data:`OFF`, or did not come at all."""
    return max(predicted, realised) > OFF * max(0.0, min(predicted, realised))


def warning(checked: Sequence[Mapping[str, float]], consequence: str) -> list[str]:
    """A warning if most of what a run was about, in nats, was foretold wrongly, or none.

    Each round is judged by itself, for the errors of several could cancel; rises below
    :data:`NOTHING` are not judged.

    Args:
        checked: As :func:`rounds` gives them.
        consequence: What that means for the result, to end the sentence with.
    """
    judged = [row for row in checked if _nats(row) >= NOTHING]
    wrong = [row for row in judged if off(row["predicted"], row["realised"])]
    if sum(map(_nats, wrong)) <= 0.5 * sum(map(_nats, judged)):
        return []
    predicted, realised = (sum(row[key] for row in wrong) for key in ("predicted", "realised"))
    return [
        f"in {len(wrong)} of {len(checked)} rounds the evidence was off by more than a factor of "
        f"{OFF:g} in how much its removals raise the loss: it predicted {predicted:.3g} nats there "
        f"in all, {realised:.3g} came true; {consequence}"
    ]


def _nats(row: Mapping[str, float]) -> float:
    """What a round was about: the larger of its two rises."""
    return max(abs(row["predicted"]), abs(row["realised"]))
