"""How figures are written: the forms of numbers and tables that all sections share."""

import statistics
from collections.abc import Callable, Sequence


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Mean and standard deviation."""
    if len(values) == 1:
        return form(values[0])
    return f"{form(statistics.mean(values))} ± {form(statistics.stdev(values))}"


def percent(value: float) -> str:
    """A share, in per cent."""
    return f"{100 * value:.2f}"


def three(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def whole(value: float) -> str:
    """A number without decimals."""
    return f"{value:,.0f}"


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.1f}x"


def ratio(value: float) -> str:
    """A ratio near one."""
    return f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
