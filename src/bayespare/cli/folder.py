"""Where a run goes: the name of its folder, and that nobody's files are overwritten."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from bayespare.errors import BayespareError
from bayespare.load import check_finished, refuse_links
from bayespare.training.checkpoint import PART, Checkpoint, clear_parts

EXPORTS = ("model.onnx", "model.pt2")
FILES = (
    *EXPORTS,
    "config.json",
    "metrics.json",
    "plan.json",
    "structure.json",
    "frontier.json",
    "verdict.json",
    "model.safetensors",
    "posterior.safetensors",
    "history.jsonl",
    "report.html",
    "README.md",
    "log.txt",
)
FOLDERS = ("checkpoint", "frontier")
REPLACED = ".replaced"
"""Folder in that of a run, with the run it takes the place of, until it has come to its end."""


class BusyError(BayespareError):
    """Another process is working in the folder of a run."""


def default_name(*parts: str) -> str:
    """``digits-mlp-400-400-ss-ghs``: letters, digits, dots and hyphens."""
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts)
    return "-".join(word for word in words if word)[:120] or "run"


def check_free(folder: Path, *, exist_ok: bool) -> None:
    """Make sure that a run may be written to a folder; nothing is changed.

    Raises:
        BayespareError: If something is there that would be lost.
    """
    if folder.exists() and not folder.is_dir():
        raise BayespareError(f"{folder}: is a file; choose another name=")
    if not folder.is_dir() or all(entry.suffix == PART for entry in folder.iterdir()):
        return
    if not exist_ok:
        raise BayespareError(
            f"{folder}: exists and is not empty; choose another name=, replace the run with "
            f"exist_ok=true, or go on with resume={folder} if it was stopped"
        )
    if not is_run(folder):
        raise BayespareError(
            f"{folder}: holds files but no run, so nothing is replaced; choose another name="
        )


def claim(project: Path, name: str | None, default: str) -> Path:
    """Make the folder of a run and empty it of an earlier run's files.

    Args:
        project: The folder it is made in.
        name: Its name; then :func:`check_free` has been asked.
        default: Its name otherwise, to which a number is added when it is taken.

    Raises:
        BayespareError: If the folder cannot be made.
    """
    try:
        if name is not None:
            folder = project / name
            folder.mkdir(parents=True, exist_ok=True)
            with alone_in(folder):
                _set_aside(folder)
                _clear(folder)
            return folder
        project.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = project / (default if number == 1 else f"{default}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            break
        return folder
    except OSError as error:
        raise BayespareError(f"{error.filename}: cannot be made ({error.strerror})") from error


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (folder / "config.json").is_file()


def unfinished(folder: Path) -> bool:
    """Whether the run in a folder has not come to its end."""
    return not (folder / "metrics.json").is_file() or Checkpoint(folder / "checkpoint").exists()


def tidy(folder: Path) -> None:
    """Remove what a kill left in the folder of a run: temporary files, an ended run's checkpoint.

    Raises:
        BusyError: If another process works there.
    """
    with alone_in(folder):
        clear_parts(folder)
        if not unfinished(folder):
            Checkpoint(folder / "checkpoint").remove()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from working in the folder of a run meanwhile.

    The lock is on the folder itself and goes with the process, however it ends. Where folders
    cannot be locked (Windows, some network file systems) there is none.

    Raises:
        BusyError: If another process works there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"{folder}: another process is working there") from None
        yield
    finally:
        os.close(handle)


def existing_run(run: str | None, verb: str) -> Path:
    """The folder of a run that a verb was given.

    Raises:
        BayespareError: If it was not given, or holds no run.
    """
    if run is None:
        raise BayespareError(f"{verb}: say which run, as in: bayespare {verb} runs/NAME")
    folder = Path(run)
    if not folder.is_dir():
        raise BayespareError(f"{run}: there is no such folder")
    if not is_run(folder):
        if (folder / "checkpoint").is_dir():
            check_finished(folder)
        raise BayespareError(f"{run}: holds no run (no config.json); give a folder fit wrote")
    refuse_links(folder)
    return folder


def _set_aside(folder: Path) -> None:
    """Keep a finished run in :data:`REPLACED`; one that is kept there is replaced by no other."""
    if not is_run(folder) or unfinished(folder):
        return
    aside = folder / REPLACED
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in (*FILES, "frontier"):
        if (folder / name).exists():
            (folder / name).rename(aside / name)


def drop_replaced(folder: Path) -> None:
    """Remove the run that another, now finished, has taken the place of."""
    shutil.rmtree(folder / REPLACED, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove the files of an earlier run, and no others."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    clear_parts(folder)
