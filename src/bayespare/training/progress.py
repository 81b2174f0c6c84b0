"""Progress with time left on a terminal, lines in a log file otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger("bayespare")


class ProgressBar:
    """A bar over all epochs of a run, with the time left from the measured epochs.

    The time left is a guess from the mean epoch so far: the phases cost differently.

    Args:
        total: Number of epochs.
        show: Draw the bar; off for logs and ``--json``.
        unit: What is counted.
    """

    def __init__(self, total: int, *, show: bool, unit: str = "epochs") -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self._task = self._progress.add_task("starting", total=total)
        self._started = time.monotonic()
        self._done, self._total = 0, total

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Advance by one epoch and log its row."""
        self._done += 1
        spent = time.monotonic() - self._started
        left = max(0.0, spent / self._done * (self._total - self._done))
        text = " ".join(f"{key}={_short(value)}" for key, value in row.items())
        log.info("%d/%d, about %.0f s left: %s", self._done, self._total, left, text)
        self._progress.update(self._task, advance=1, description=str(row.get("phase", "")))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
