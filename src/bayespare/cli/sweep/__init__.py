"""``sweep``: every method, seed and setting of a grid, shared by any number of processes."""

from bayespare.cli.sweep.verb import sweep

__all__ = ["sweep"]
