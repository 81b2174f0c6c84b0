"""From values to pixels, and the round numbers that an axis names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

LARGEST = 1e30  # of a value that a scale makes room for


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` onto pixels from ``start`` to ``end``.

    Attributes:
        low: The value at ``start``.
        high: The value at ``end``, above ``low``.
        start: Pixel of the low value.
        end: Pixel of the high value; smaller than ``start`` on a vertical axis.
        shape: What is spaced evenly: the value, its ``log``, or its square root (``sqrt``).
    """

    low: float
    high: float
    start: float
    end: float
    shape: str = "linear"

    def __call__(self, value: float) -> float:
        """Pixel of a value; values outside the scale are drawn at its edge."""
        bend = _BENDS[self.shape]
        value = min(max(value, self.low), self.high)
        share = (bend(value) - bend(self.low)) / (bend(self.high) - bend(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values inside the scale, ``most`` of them or fewer."""
        if self.shape == "log":
            return _log_ticks(self.low, self.high, most)
        if self.shape == "sqrt":
            return _sqrt_ticks(self.high, most)
        step = nice_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


_BENDS: dict[str, Callable[[float], float]] = {
    "linear": lambda value: value,
    "log": math.log,
    "sqrt": math.sqrt,
}


def around(
    values: Iterable[float], start: float, end: float, *, log: bool = False, margin: float = 0.06
) -> Scale:
    """Return a scale that holds the finite values, with some room at both ends.

    A log scale needs positive values; without any, the scale is linear from 0 to 1. Values too
    extreme to compute with are drawn at the edge.
    """
    smallest = 1 / LARGEST if log else -LARGEST
    held = [v for v in values if smallest <= v <= LARGEST]
    if not held:
        return Scale(0.0, 1.0, start, end)
    low, high = min(held), max(held)
    if log:
        room = (high / low) ** margin if high > low else 1.5
        return Scale(low / room, high * room, start, end, "log")
    room = (high - low) * margin if high > low else abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end)


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least ``least``."""
    if not (least > 0 and math.isfinite(least)):
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))


def tick_label(value: float) -> str:
    """A tick in few characters: ``0.25``, ``1.5k``, ``20M``, ``1e+30``."""
    if abs(value) >= 1e13:
        return f"{value:.4g}".replace("-", "\u2212")
    for unit, step in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= step:
            return f"{value / step:.4g}{unit}".replace("-", "\u2212")
    return f"{value:.4g}".replace("-", "\u2212")


def percent_label(share: float) -> str:
    """A tick of a share, as many decimals as it has: ``98 %``, ``98.65 %``."""
    return f"{tick_label(100 * share)} %"


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten and, where they are few, multiples of them by 2 and 5 (or by 1 to 9)."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        made = [m * 10.0**p for p in powers for m in multiples if low <= m * 10.0**p <= high]
        if len(made) > most and found:
            break
        found = made
    return found[:: max(1, math.ceil(len(found) / most))] or [low, high]


def _sqrt_ticks(high: float, most: int) -> list[float]:
    """Zero and round whole numbers that are spread evenly after the square root."""
    ticks = [0.0]
    for i in range(1, most):
        value = high * (i / (most - 1)) ** 2
        step = nice_step(value / 2)
        rounded = math.floor(value / step) * step
        if rounded >= 1 and rounded >= 2 * ticks[-1]:
            ticks.append(float(int(rounded)))
    return ticks
