"""Parameters and strided views of them: a transpose, a chunk or a slice is still the parameter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class View:
    """Which entries of a parameter a tensor shows, and in what order.

    Attributes:
        name: Name of the parameter.
        numel: Entries of the whole parameter.
        size: Shape of the view; 1 along dimensions that were only expanded.
        stride: Step in the parameter's memory for each dimension of the view.
        offset: First entry of the view in the parameter's memory.
        whole: Whether the view is the parameter itself.
    """

    name: str
    numel: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    whole: bool

    @classmethod
    def of(cls, name: str, parameter: Tensor, shown: Tensor) -> View:
        """Describe ``shown``, which is ``parameter`` or a view of it."""
        size = tuple(
            1 if step == 0 else count
            for count, step in zip(shown.shape, shown.stride(), strict=True)
        )
        offset = int(shown.storage_offset()) - int(parameter.storage_offset())
        return cls(name, parameter.numel(), size, shown.stride(), offset, shown is parameter)

    def turns(self, parameter: Tensor) -> bool:
        """Whether it shows the parameter's last dimension first; its memory may lie either way."""
        steps = parameter.stride()
        return (self.stride[0] < self.stride[-1]) != (steps[0] < steps[-1])

    def within(self, flat: Tensor) -> Tensor:
        """The view's entries in a buffer laid out like the parameter's memory.

        Args:
            flat: Contiguous, shape ``(numel,)`` or ``(rows, numel)``.

        Returns:
            A view of ``flat``, shape ``size`` or ``(rows, *size)``.
        """
        if flat.ndim == 1:
            return flat.as_strided(self.size, self.stride, self.offset)
        return flat.as_strided((len(flat), *self.size), (flat.stride(0), *self.stride), self.offset)


def like_memory(values: Tensor, parameter: Tensor) -> Tensor:
    """Values of a parameter's entries in the order of its memory, shape ``(numel,)``."""
    flat = values.new_empty(values.numel())
    flat.as_strided(parameter.shape, parameter.stride()).copy_(values)
    return flat


def like_parameter(flat: Tensor, parameter: Tensor) -> Tensor:
    """Give a buffer laid out like the parameter's memory the parameter's shape, contiguous."""
    return flat.as_strided(parameter.shape, parameter.stride()).contiguous()
