"""Networks by name: the MLPs and LeNets of the papers, and anybody's own by import path."""

from bayespare.nets import lenet, mlp  # noqa: F401  (each registers its networks)
from bayespare.nets.registry import known, register
from bayespare.nets.spec import build

__all__ = ["build", "known", "register"]
