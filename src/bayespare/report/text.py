"""Numbers as people read them, and the dense -> compact table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bayespare.report.run_view import Metrics, Scores, checked

MISSING = "–"  # noqa: RUF001 (an en dash is what a table leaves where nothing was measured)


@dataclass(frozen=True)
class Row:
    """One measure of both models, formatted.

    Attributes:
        label: Name and unit of the measure.
        dense: Value of the dense model.
        compact: Value of the compact model.
        change: What became of it: a difference of scores, a ratio of costs.
        notes: Interval of either value, or empty strings.
    """

    label: str
    dense: str
    compact: str
    change: str
    notes: tuple[str, str] = ("", "")


def summary_table(metrics: Mapping[str, Any]) -> str:
    """Lay out the contents of ``metrics.json`` as a dense -> compact table in plain text.

    Raises:
        BayespareError: If a value is not of the type the file promises.
    """
    rows = comparison(checked(Metrics, metrics, "metrics"))
    cells = [("", "dense", "compact", "change")]
    for row in rows:
        values = [
            f"{v} {n}".strip() for v, n in zip((row.dense, row.compact), row.notes, strict=True)
        ]
        cells.append((row.label, values[0], values[1], row.change))
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    lines = [
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:<{widths[3]}}".rstrip()
        for a, b, c, d in cells
    ]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def comparison(metrics: Metrics) -> list[Row]:
    """Return the rows of the dense -> compact table; what neither model has is left out."""
    dense, compact = metrics.dense, metrics.compact
    smaller, faster = _ratio("smaller", "larger"), _ratio("faster", "slower")
    notes = (_interval(dense), _interval(compact))
    rows = [
        _row("accuracy", dense.accuracy, compact.accuracy, percent, _points, notes),
        _row("RMSE", dense.rmse, compact.rmse, quantity, _difference_of_quantities),
        _row("NLL, nats", dense.nll, compact.nll, number, _difference),
        _row("ECE", dense.ece, compact.ece, number, _difference),
        _row("ECE by chance alone", dense.ece_chance, compact.ece_chance, number, _difference),
        _row("ECE, equal mass", dense.ece_mass, compact.ece_mass, number, _difference),
        _row("Brier", dense.brier, compact.brier, number, _difference),
        *(
            _row(f"inside the {level} % interval", one, other, percent, _points)
            for level, one, other in _pairs(dense.coverage, compact.coverage)
        ),
        _row("parameters", dense.parameters, compact.parameters, count, smaller),
        _row("non-zeros", dense.nonzeros, compact.nonzeros, count, smaller),
        _row("stored size", dense.bytes, compact.bytes, size, smaller),
        _row("MACs", dense.macs, compact.macs, count, smaller),
        *(
            _row(f"latency, batch {batch}", one, other, milliseconds, faster)
            for batch, one, other in _pairs(dense.latency_ms, compact.latency_ms)
        ),
        _row("peak memory", dense.peak_memory_bytes, compact.peak_memory_bytes, size, smaller),
    ]
    return [row for row in rows if row is not None]


def number(value: float | None) -> str:
    """A score with four significant digits, at most four decimals below one."""
    if value is None or not math.isfinite(value):
        return MISSING
    decimals = 4 if abs(value) < 10 else max(0, 3 - math.floor(math.log10(abs(value))))
    return _minus(f"{value:,.{decimals}f}")


def quantity(value: float | None) -> str:
    """A value in the units of the target, which may be of any size: four significant digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    plain = value == 0 or 1e-2 <= abs(value) < 1e6
    return number(value) if plain else _minus(f"{value:.4g}")


def percent(value: float | None, decimals: int = 2) -> str:
    """A share as a percentage."""
    if value is None or not math.isfinite(value):
        return MISSING
    return _minus(f"{100 * value:.{decimals}f} %")


def count(value: float | None) -> str:
    """A number of things: exact below ten million, then in millions or billions."""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, step in (("G", 1e9), ("M", 1e6)):
        if abs(value) >= 10 * step:
            return f"{value / step:,.1f} {unit}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes, in decimal units."""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= step:
            return f"{value / step:.2f} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float | None) -> str:
    """Milliseconds with three significant digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    decimals = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:,.{decimals}f} ms"


def duration(value: float | None) -> str:
    """Seconds, as minutes or hours when there are many."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def times(value: float) -> str:
    """A ratio with three significant digits at most: ``1.08×``, ``38.1×``, ``212×``."""  # noqa: RUF002
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}×"  # noqa: RUF001


def _row(
    label: str,
    dense: float | None,
    compact: float | None,
    show: Callable[[float | None], str],
    change: Callable[[float, float], str],
    notes: tuple[str, str] = ("", ""),
) -> Row | None:
    if dense is None or compact is None:
        known = dense is not None or compact is not None
        return Row(label, show(dense), show(compact), "", notes) if known else None
    comparable = math.isfinite(dense) and math.isfinite(compact)
    said = change(dense, compact) if comparable else ""
    return Row(label, show(dense), show(compact), said, notes)


def _pairs(
    dense: Mapping[str, float], compact: Mapping[str, float]
) -> Iterator[tuple[str, float | None, float | None]]:
    """Values of both models under each key that either has."""
    for key in {**dense, **compact}:
        yield key, dense.get(key), compact.get(key)


def _interval(scores: Scores) -> str:
    if scores.accuracy_interval is None:
        return ""
    low, high = scores.accuracy_interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _points(dense: float, compact: float) -> str:
    return _minus(f"{100 * (compact - dense):+.2f} points")


def _difference(dense: float, compact: float) -> str:
    return _minus(f"{compact - dense:+.4f}")


def _difference_of_quantities(dense: float, compact: float) -> str:
    change = compact - dense
    return _minus(f"{'-' if change < 0 else '+'}{quantity(abs(change))}")


def _ratio(better: str, worse: str) -> Callable[[float, float], str]:
    """Say how many times smaller a cost became."""

    def said(dense: float, compact: float) -> str:
        if dense <= 0 or compact <= 0:
            return ""
        ratio = dense / compact
        if 0.995 < ratio < 1.005:
            return "the same"
        return f"{times(ratio)} {better}" if ratio > 1 else f"{times(1 / ratio)} {worse}"

    return said


def _minus(text: str) -> str:
    """A real minus sign; a hyphen reads as a dash in a table. Zero has no sign."""
    if not any(digit in text for digit in "123456789"):
        return text.lstrip("+-")
    return text.replace("-", "−")  # noqa: RUF001
