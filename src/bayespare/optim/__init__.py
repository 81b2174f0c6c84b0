"""Optimisers that train a posterior."""

from bayespare.optim.variational import VariationalAdam

__all__ = ["VariationalAdam"]
