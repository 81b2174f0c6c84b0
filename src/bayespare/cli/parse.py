"""From the words on the command line, and a file of keys, to typed keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bayespare.cli.keys import Keys
from bayespare.errors import BayespareError, did_you_mean

FLAGS = ("--json", "--help", "--traceback", "--version")

MEANT = {
    **dict.fromkeys(("out", "output", "output_dir", "out_dir", "dir", "folder"), "name"),
    **dict.fromkeys(("dataset", "file", "csv", "train"), "data"),
    **dict.fromkeys(("model", "network", "architecture", "arch"), "net"),
    **dict.fromkeys(("label", "labels", "y", "column"), "target"),
    **dict.fromkeys(("ratio", "amount", "prune"), "sparsity"),
    **dict.fromkeys(("gpu", "cuda"), "device"),
    "learning_rate": "lr",
    "overwrite": "exist_ok",
}
"""What other tools call our keys."""

Kind = TypeVar("Kind", bound=Keys)


@dataclass(frozen=True)
class Words:
    """A command line, taken apart.

    Attributes:
        verb: The first word, if there is one.
        rest: The words after it.
        flags: What begins with two dashes.
    """

    verb: str | None
    rest: tuple[str, ...]
    flags: frozenset[str]


@dataclass(frozen=True)
class Given:
    """A value somebody wrote, and where: ``my.yaml line 3: `` or nothing."""

    value: Any
    where: str = ""


def take_apart(arguments: Sequence[str]) -> Words:
    """Separate the verb, its words and the flags.

    Raises:
        BayespareError: On a flag that does not exist.
    """
    flags, words = set(), []
    for argument in arguments:
        if not argument.startswith("-") or "=" in argument.lstrip("-"):
            words.append(argument.lstrip("-") if argument.startswith("--") else argument)
        elif argument in ("-h", *FLAGS):
            flags.add("--help" if argument == "-h" else argument)
        else:
            raise BayespareError(
                f"unknown flag {argument}{did_you_mean(argument, FLAGS)}; "
                "keys are written without dashes, as in epochs=30"
            )
    return Words(words[0] if words else None, tuple(words[1:]), frozenset(flags))


def read_keys(kind: type[Kind], words: Sequence[str], verb: str) -> Kind:
    """Read ``key=value`` words; a bare word is the run folder where the verb has one.

    Raises:
        BayespareError: On an unknown or repeated key, or a value that is not allowed.
    """
    typed: dict[str, Given] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if "run" not in kind.model_fields or "run" in typed:
                raise BayespareError(f"{verb}: {word!r} is not of the form key=value")
            key, value = "run", word
        _refuse_unknown(kind, key, f"{verb}: ")
        if key in typed:
            raise BayespareError(f"{verb}: {key}= is given twice")
        if not value:
            raise BayespareError(f"{verb}: {key}= has no value")
        typed[key] = Given(value, f"{verb}: ")
    if "cfg" in kind.model_fields and "cfg" in typed:
        typed = {**read_file(kind, Path(str(typed["cfg"].value))), **typed}
    return make_keys(kind, typed)


def make_keys(kind: type[Kind], given: Mapping[str, Given]) -> Kind:
    """Check values against the types of their keys.

    Raises:
        BayespareError: On the first value that is not allowed; it says where it was given.
    """
    try:
        return kind(**{key: one.value for key, one in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        _refuse_unknown(kind, key, given[key].where)
        message = first["msg"].removeprefix("Value error, ")
        raise BayespareError(
            f"{given[key].where}{key}={given[key].value}: {message[:1].lower()}{message[1:]}"
        ) from None


def read_file(kind: type[Keys], path: Path) -> dict[str, Given]:
    """Read a file of ``key: value`` lines; ``#`` begins a comment, no value means the default.

    Raises:
        BayespareError: If it cannot be read, a line has another form, or a key is unknown or
            repeated; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise BayespareError(f"cfg={path}: cannot be read ({why})") from error
    given: dict[str, Given] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}: "
        text = _without_comment(line)
        if not text:
            continue
        key, colon, value = (part.strip() for part in text.partition(":"))
        if not colon:
            raise BayespareError(f"{where}{text!r} is not of the form key: value")
        _refuse_unknown(kind, key, where)
        if key in given:
            raise BayespareError(f"{where}{key} is given twice")
        if key == "cfg":
            raise BayespareError(f"{where}cfg cannot name another file")
        if value:
            given[key] = Given(_unquoted(value), where)
    return given


def _refuse_unknown(kind: type[Keys], key: str, where: str) -> None:
    if key not in kind.model_fields:
        meant = MEANT.get(key, key)
        word = meant if meant in kind.model_fields else key
        hint = did_you_mean(word, kind.model_fields) if kind.model_fields else " (it takes none)"
        raise BayespareError(f"{where}unknown key {key!r}{hint}")


def _without_comment(line: str) -> str:
    if line.lstrip().startswith("#"):
        return ""
    return line.partition(" #")[0].strip()


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
