"""Networks by name: those of the papers, and anybody's own by import path."""

from bayespare.nets import lenet, mixer, mlp, resnet, vit  # noqa: F401  (each registers its own)
from bayespare.nets.registry import known, register
from bayespare.nets.spec import build

__all__ = ["build", "known", "register"]
