"""One file a method; each has a config, ``attach``, ``penalty``, ``update``, ``log_odds``."""

from bayespare.methods import bmr, flat, node_pip, spam, spike_slab, tiered  # noqa: F401  (register themselves)
from bayespare.methods.registry import (
    authors_run,
    build,
    find,
    most_batch,
    offering,
    register,
    registered,
)
from bayespare.training.method import Config, Method

__all__ = [
    "Config",
    "Method",
    "authors_run",
    "build",
    "find",
    "most_batch",
    "offering",
    "register",
    "registered",
]
