"""How units pass through operators: one small rule for each family of ATen operators.

A rule takes one call and says what its outputs carry. An operator without a rule keeps every
unit that meets it (:meth:`Flow.refuse`), so that a gap here costs removals, never exactness.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bayespare.structure.rules import (
    attention,
    channelwise,
    convolution,
    moves,
    norms,
    pieces,
    products,
    recurrent,
)
from bayespare.structure.rules.elementwise import pointwise
from bayespare.structure.rules.registry import MODULE_RULES, RULES, ModuleRule, Rule

__all__ = [
    "attention",
    "channelwise",
    "convolution",
    "module_rule_for",
    "moves",
    "norms",
    "pieces",
    "products",
    "recurrent",
    "rule_for",
]


def module_rule_for(module: nn.Module) -> ModuleRule | None:
    """The rule of a module that is followed as a whole; None when its operators are followed."""
    return MODULE_RULES.get(type(module))


def rule_for(operator: Any) -> Rule | None:
    """The rule of an ATen operator; every pointwise one has the same. None when there is none."""
    rule = RULES.get(operator.overloadpacket.__name__)
    if rule is None and torch.Tag.pointwise in operator.tags:
        return pointwise
    return rule
