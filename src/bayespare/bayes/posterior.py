"""A mean-field Gaussian posterior around the parameters a model already has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor, nn

from bayespare.errors import BayespareError, did_you_mean


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """Independent Gaussians: the means are the model's parameters, the spread is kept here.

    Attributes:
        std: Parameter name to its posterior standard deviation, the shape of the parameter.
            Parameters that are not named are known exactly (a point mass).
    """

    std: Mapping[str, Tensor]

    def checked(self, model: nn.Module) -> Self:
        """Return this posterior if it fits the model.

        Raises:
            BayespareError: If a name is no parameter of the model, a shape differs, or a standard
                deviation is negative or not finite.
        """
        parameters = dict(model.named_parameters())
        for name, std in self.std.items():
            if name not in parameters:
                hint = did_you_mean(name, parameters)
                raise BayespareError(f"posterior: the model has no parameter {name!r}{hint}")
            shape = tuple(parameters[name].shape)
            if tuple(std.shape) != shape:
                raise BayespareError(
                    f"posterior of {name!r}: the standard deviation has shape "
                    f"{tuple(std.shape)}, the parameter {shape}; was it made for another model?"
                )
            if not bool((torch.isfinite(std) & (std >= 0)).all()):
                raise BayespareError(
                    f"posterior of {name!r}: a standard deviation is negative or not finite"
                )
        return self

    def draw(self, model: nn.Module, generator: Generator | None = None) -> dict[str, Tensor]:
        """Draw the uncertain parameters once, for ``torch.func.functional_call``.

        The noise is drawn in the order of the model's parameters on the generator's device, so a
        posterior read back from a file, or a model moved to another device, gives the same draw.

        Args:
            model: The model whose parameters are the means.
            generator: Source of the noise; without one, torch's global generator.

        Returns:
            Parameter name to ``mean + std * noise``, on the parameter's device and in its dtype.
        """
        source = torch.device("cpu") if generator is None else generator.device
        drawn = {}
        for name, mean in model.named_parameters():
            std = self.std.get(name)
            if std is None:
                continue
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=source)
            drawn[name] = mean.detach() + std.to(mean) * noise.to(mean.device)
        return drawn
