"""The entry point: finds the verb, runs it, and turns every failure into one line."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from bayespare import __version__
from bayespare.cli.help import of_verb, overview
from bayespare.cli.output import Interrupted, Output
from bayespare.cli.parse import Words, read_keys, take_apart
from bayespare.cli.verbs import VERBS
from bayespare.errors import BayespareError, did_you_mean
from bayespare.report.markup import visible
from bayespare.training import ranks

FAILED, BAD_INPUT, STOPPED = 1, 2, 130


def console() -> None:
    """What the command ``bayespare`` runs; told to terminate, it stops as after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: The words after the program's name.

    Returns:
        0 if all went well, 2 for bad input, 130 after Ctrl-C, 1 for an error of the program's own.
    """
    output = Output(as_json="--json" in arguments)
    try:
        with ranks.joined():
            output.quiet = not ranks.first()
            _run(take_apart(arguments), output)
    except (BayespareError, OSError, torch.OutOfMemoryError, MemoryError) as error:
        return _failed(_line(error), BAD_INPUT, arguments)
    except KeyboardInterrupt as stop:
        said = str(stop) if isinstance(stop, Interrupted) else "stopped"
        return _failed(said, STOPPED, arguments)
    except Exception as error:
        where = _record(output)
        line = f"internal error: {_line(error)} (details: {where})"
        return _failed(line, FAILED, arguments)
    return 0


def _run(words: Words, output: Output) -> None:
    if "--version" in words.flags:
        output.say(__version__)
        output.result({"version": __version__})
        return
    if words.verb is None or words.verb == "help":
        _help(words.rest[0] if words.rest else None, output)
        if words.verb is None and "--help" not in words.flags:
            raise BayespareError(f"say what to do: {', '.join(VERBS)} (bayespare --help)")
        return
    if words.verb not in VERBS:
        raise BayespareError(f"unknown verb {words.verb!r}{did_you_mean(words.verb, VERBS)}")
    if "--help" in words.flags:
        _help(words.verb, output)
        return
    if ranks.world() > 1 and words.verb != "fit":
        raise BayespareError(f"{words.verb}: runs in one process; torchrun is for fit")
    verb = VERBS[words.verb]
    output.result(verb.run(read_keys(verb.keys, words.rest, words.verb), output))


def _help(name: str | None, output: Output) -> None:
    if name is not None and name not in VERBS:
        raise BayespareError(f"unknown verb {name!r}{did_you_mean(name, VERBS)}")
    kinds = {word: verb.keys for word, verb in VERBS.items()}
    output.say(overview(kinds) if name is None else of_verb(name, kinds[name]))
    fields = {} if name is None else kinds[name].model_fields
    keys = {key: field.description for key, field in fields.items()}
    output.result({"verbs": list(VERBS)} if name is None else {"verb": name, "keys": keys})


def _failed(line: str, code: int, arguments: Sequence[str]) -> int:
    """Say on standard error what went wrong."""
    if isinstance(sys.exception(), BrokenPipeError):
        # Whoever read our output has gone; Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if "--traceback" in arguments:
        traceback.print_exc()
    print(f"bayespare: {visible(line)}", file=sys.stderr)
    return code


def _line(error: BaseException) -> str:
    """An exception as one line."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory; use a smaller batch=, or another device="
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if isinstance(error, BayespareError) else f"{type(error).__name__}: {text}"


def _record(output: Output) -> Path:
    """Write the traceback to the run's log, which has it already, or to a file of its own."""
    if output.log_file is not None:
        return output.log_file
    handle, name = tempfile.mkstemp(prefix="bayespare-", suffix=".log", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return Path(name)
