"""Evidence of units under a factorised posterior: one block each, never the sum of both.

For a hidden unit the models "no outgoing weights", "no incoming weights" and "neither" are the
same model, and under the exact posterior their delta-F are equal. A factorised posterior gives
the sum for the third: adding the blocks counts the evidence twice. How much the two blocks
disagree is a free diagnostic of the factorisation.

Source: card section 2.8 (and 9.1 for the sum within a block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayespare.errors import BayespareError

Block = Literal["outgoing", "incoming"]


def block_delta_f(delta_f: Tensor, dim: int) -> Tensor:
    """Change of log evidence when all weights of a slice are removed, independent posteriors.

    Args:
        delta_f: Change of log evidence per weight, any shape with at least one dimension.
        dim: The dimension along which the units lie; 0 gives rows (incoming blocks), 1 columns
            (outgoing blocks, of the layer that reads them).

    Returns:
        Nats, float64, shape ``(size of dim,)``.
    """
    others = [other for other in range(delta_f.dim()) if other != dim % delta_f.dim()]
    return delta_f.sum(others, dtype=torch.float64) if others else delta_f.double()


def unit_delta_f(incoming: Tensor, outgoing: Tensor, block: Block = "outgoing") -> Tensor:
    """Change of log evidence when hidden units are removed: that of one of their blocks.

    Args:
        incoming: delta-F of what computes each unit (its row, bias included), shape ``(units,)``.
        outgoing: delta-F of what reads each unit, same shape.
        block: Which of the two counts.

    Returns:
        Nats, shape ``(units,)``.

    Raises:
        BayespareError: If the shapes differ or the block is unknown.
    """
    _check(incoming, outgoing)
    if block not in ("outgoing", "incoming"):
        raise BayespareError(f"no block {block!r} (known: outgoing, incoming)")
    return outgoing if block == "outgoing" else incoming


@dataclass(frozen=True, eq=False)
class BlockDisagreement:
    """How far the two blocks of the same units are from telling the same evidence.

    Attributes:
        difference: ``incoming - outgoing`` per unit, nats; zero under an exact posterior.
        mean: Mean absolute difference, nats.
        opposite: Share of the units whose blocks disagree about removal.
    """

    difference: Tensor
    mean: float
    opposite: float


def block_disagreement(incoming: Tensor, outgoing: Tensor) -> BlockDisagreement:
    """Compare the delta-F of the incoming and the outgoing blocks of the same units.

    Raises:
        BayespareError: If the shapes differ or there is no unit.
    """
    _check(incoming, outgoing)
    if incoming.numel() == 0:
        raise BayespareError("blocks of no units cannot be compared")
    difference = incoming.double() - outgoing.double()
    opposite = ((incoming > 0) != (outgoing > 0)).double().mean()
    return BlockDisagreement(difference, float(difference.abs().mean()), float(opposite))


def _check(incoming: Tensor, outgoing: Tensor) -> None:
    if incoming.shape != outgoing.shape:
        raise BayespareError(
            f"incoming blocks of {tuple(incoming.shape)} units, outgoing of "
            f"{tuple(outgoing.shape)}; give one value per unit for both"
        )
