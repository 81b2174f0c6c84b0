"""What a verb tells its user: text or one JSON object on standard output, a log in the folder."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from bayespare.report.markup import visible
from bayespare.training.progress import log as progress_log

log = logging.getLogger("bayespare.cli")


class Output:
    """Text for people, or one JSON object for programs.

    Args:
        as_json: Print the object alone.

    Attributes:
        quiet: Print nothing: another process does.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json, self.quiet = as_json, False
        self.log_file: Path | None = None

    @classmethod
    def silent(cls) -> Self:
        """One that tells nobody anything; the log files are written all the same."""
        output = cls(as_json=True)
        output.quiet = True
        return output

    def say(self, text: str = "") -> None:
        """Print text (unless JSON is asked for) and note it in the log."""
        if not (self.as_json or self.quiet):
            print(visible(text), flush=True)
        for line in text.splitlines():
            log.info("%s", line)

    def result(self, value: Mapping[str, Any]) -> None:
        """Print the object, if JSON is asked for."""
        if self.as_json and not self.quiet:
            print(json.dumps(value, indent=1), flush=True)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what the user should know in its message."""


def _every_few_seconds(seconds: float = 3.0) -> Callable[[logging.LogRecord], bool]:
    """A filter for epochs that lets one through now and then; the log file has them all."""
    last = -seconds

    def passes(record: logging.LogRecord) -> bool:
        nonlocal last
        if record.name != progress_log.name or time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return passes


class _Log(logging.FileHandler):
    """A log on a full disk ends there; what cannot be done without is said by its own error."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Pass over a line that cannot be written."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def logging_to(path: Path, output: Output, *, epochs: bool) -> Iterator[None]:
    """Write everything to a log file, and epochs to standard error when asked.

    Args:
        path: The file; lines are added to it.
        output: Remembers the file, for the message of an internal error.
        epochs: Whether epochs go to standard error too, where no bar can be drawn.
    """
    file = _Log(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [file]
    if epochs:
        lines = logging.StreamHandler(sys.stderr)
        lines.addFilter(_every_few_seconds())
        handlers.append(lines)
    logger = logging.getLogger("bayespare")
    level, logger_passes_on = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    output.log_file = path
    try:
        yield
    except BaseException as error:
        # The log keeps what standard error is spared.
        log.info("stopped by %s", type(error).__name__, exc_info=error)
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            with suppress(OSError):
                handler.close()
        logger.setLevel(level)
        logger.propagate = logger_passes_on
