"""The tables of operators, and of modules followed as a whole, that a trace understands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from bayespare.structure.flow import Call, Flow
from bayespare.structure.labels import Value

Rule: TypeAlias = Callable[[Flow, Call], Value | list[Value]]
RULES: dict[str, Rule] = {}

ModuleRule: TypeAlias = Callable[[Flow, Call, nn.Module, Tensor], Value]
MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the named operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def module_rule(*types: type[nn.Module]) -> Callable[[ModuleRule], ModuleRule]:
    """Register the rule of modules of exactly these types, whose operators are not looked at.

    The rule is called when the module returns: with a call that holds its tensor arguments under
    their numbers and the type's name, the module, and its first argument.
    """

    def register(function: ModuleRule) -> ModuleRule:
        MODULE_RULES.update(dict.fromkeys(types, function))
        return function

    return register
