"""Help, and the file of keys that ``config`` prints."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping

from bayespare.cli.keys import FitKeys, Keys

FLAGS = """flags of every verb:
  --json       print one JSON object, and nothing else, on standard output
  --help       show the keys of a verb
  --traceback  show where in the code an error came from
  --version    print the version"""

WIDTH = 100


def overview(verbs: Mapping[str, type[Keys]]) -> str:
    """All verbs, one line each."""
    lines = [
        "usage: bayespare VERB key=value ...",
        "",
        "Give it a network and data; get back a smaller ordinary network that knows how sure it "
        "is.",
        "",
        *(f"  {name:<8} {summary(kind)}" for name, kind in verbs.items()),
        "",
        FLAGS,
        "",
        "start with:  bayespare fit data=digits",
        "keys:        bayespare VERB --help",
    ]
    return "\n".join(lines)


def of_verb(name: str, kind: type[Keys]) -> str:
    """The keys of a verb with their defaults and meanings."""
    bare = " [RUN]" if "run" in kind.model_fields else ""
    lines = [f"usage: bayespare {name}{bare}{' key=value ...' if kind.model_fields else ''}"]
    lines += ["", summary(kind), ""]
    shown = {key: _default(kind, key) for key in kind.model_fields}
    width = max((len(f"{key}={value}") for key, value in shown.items()), default=0)
    for key, value in shown.items():
        meaning = kind.model_fields[key].description or ""
        first, *more = textwrap.wrap(meaning, WIDTH - width - 4)
        lines.append(f"  {f'{key}={value}':<{width}}  {first}")
        lines += [f"  {'':<{width}}  {line}" for line in more]
    return "\n".join([*lines, "", FLAGS])


def config_text() -> str:
    """All keys of ``fit`` as ``key: value`` lines, each with its meaning."""
    lines = ["# Keys of `bayespare fit`; one without a value is left to Bayespare.", ""]
    for key, field in FitKeys.model_fields.items():
        if key in ("cfg", "resume"):
            continue
        lines += [f"# {field.description}", f"{key}: {_default(FitKeys, key)}".rstrip()]
    return "\n".join(lines)


def summary(kind: type[Keys]) -> str:
    """The meaning of a verb, in a line."""
    return (inspect.getdoc(kind) or "").splitlines()[0]


def _default(kind: type[Keys], key: str) -> str:
    value = kind.default_of(key)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
