"""The table of operators that a trace understands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import Value

Rule: TypeAlias = Callable[[Flow, Call], Value | list[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the named operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
