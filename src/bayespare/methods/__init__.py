"""One file a method; each has a config, ``attach``, ``penalty``, ``update``, ``log_odds``."""

from bayespare.methods import spike_slab  # noqa: F401  (registers its methods)
from bayespare.methods.base import Config, Method, build, register, registered

__all__ = ["Config", "Method", "build", "register", "registered"]
