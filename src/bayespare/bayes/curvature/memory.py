"""What curvature will take, in bytes, before anything of it is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bayespare.bayes.curvature.parts import WORKING, Convolution, Dense, Lookup, Part
from bayespare.bayes.curvature.wiring import Wiring
from bayespare.bayes.sharded import is_sharded, own_entries
from bayespare.errors import BayespareError
from bayespare.machine import machine_memory

DECOMPOSED = 16
"""Bytes for each entry of a Kronecker factor: itself and its eigenvectors in double precision."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a curvature pass and what follows it allocate beside the activations.

    Attributes:
        blocks: The blocks themselves.
        working: Buffers for per-example gradients, and for the unfolded inputs of convolutions.
        decomposed: What the Laplace approximation makes of Kronecker factors: double-precision
            copies and their eigenvectors.
        largest: Name of the parameter with the largest block.
        largest_bytes: And its size.
    """

    blocks: int
    working: int
    decomposed: int
    largest: str
    largest_bytes: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.blocks + self.working + self.decomposed

    def __str__(self) -> str:
        return f"{_said(self.total)} (of which {self.largest!r} {_said(self.largest_bytes)})"

    def check(self, max_memory_gb: float | None) -> None:
        """Raise if it is more than the limit.

        Args:
            max_memory_gb: The limit; None: what the machine has.

        Raises:
            BayespareError: With the largest block and what to do.
        """
        most = machine_memory() if max_memory_gb is None else max_memory_gb * 1e9
        if most is None or self.total <= most:
            return
        limit = f"this machine has {_said(most)}"
        if max_memory_gb is not None:
            limit = f"the limit is max_memory_gb={max_memory_gb:g}"
        raise BayespareError(
            f"curvature needs {self}, {limit}: "
            "use structure='diag' (spam: curvature=diag, reduce: unit=weight), freeze that "
            "parameter, or raise the limit"
        )


def _said(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def estimated(parameters: Mapping[str, Tensor], wiring: Wiring, kfac: bool) -> Estimate:
    """Estimate the bytes of a pass over a model that is wired like this."""
    sizes = {}
    working = decomposed = 0
    for name, parameter in parameters.items():
        parts = wiring.parts.get(name, [])
        entries = own_entries(parameter)
        if kfac and wiring.kronecker(name) and wiring.kronecker(wiring.twins.get(name, "")):
            entries = 0
        elif kfac and wiring.kronecker(name):
            entries = sum(map(factor_entries, parts[:1] if name in wiring.shared else parts))
            decomposed += DECOMPOSED * entries
            unfolded = max((p.entries for p in parts if isinstance(p, Convolution)), default=0)
            working = max(working, unfolded, min(WORKING, unfolded * 4096))
        else:
            buffers = 2 if name in wiring.shared else 1
            needs = max((part.entries for part in parts), default=0)
            # A term of the sum, before the ranks share it.
            needs += parameter.numel() if is_sharded(parameter) else 0
            working = max(working, buffers * max(needs, min(WORKING, needs * 4096)))
        sizes[name] = entries * parameter.element_size()
    widest = max(parameter.element_size() for parameter in parameters.values())
    largest = max(sizes, key=lambda name: sizes[name])
    return Estimate(sum(sizes.values()), working * widest, decomposed, largest, sizes[largest])


def factor_entries(part: Part) -> int:
    """Entries of the Kronecker factors of one use."""
    size = part.view.size
    if isinstance(part, Dense):
        return size[0] ** 2 + size[1] ** 2
    if isinstance(part, Lookup):
        return size[0] + size[1] ** 2
    if isinstance(part, Convolution):
        groups = part.window.groups
        return groups * ((size[0] // groups) ** 2 + math.prod(size[1:]) ** 2)
    groups = getattr(part, "groups", 1)
    return int(groups * (size[0] // groups) ** 2)
