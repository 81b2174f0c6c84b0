"""What the evidence formulas refuse, and how the refusal is worded."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from bayespare.errors import BayespareError

Number = Tensor | float

_IMPROPER = (
    "so that removing any weight would gain infinite evidence; use a proper prior (a weight decay "
    "above zero)"
)


def as_floating(value: Number, like: Tensor | None = None) -> Tensor:
    """Return a floating-point tensor of at least single precision.

    Args:
        value: Tensor or number; half precisions become float32, numbers float64 unless ``like``
            says what they stand beside.
        like: Gives the device and dtype of a number.
    """
    if not isinstance(value, Tensor):
        if like is not None:
            return torch.as_tensor(value, dtype=like.dtype, device=like.device)
        value = torch.as_tensor(value, dtype=torch.float64)
    if value.dtype in (torch.float32, torch.float64):
        return value
    return value.to(torch.float32 if value.is_floating_point() else torch.get_default_dtype())


def wide(value: Number, like: Tensor | None = None) -> Tensor:
    """Return the value in float64, on the device of ``like``."""
    device = like.device if like is not None else None
    return torch.as_tensor(value, dtype=torch.float64, device=device)


def _refuse(wrong: Tensor, values: Tensor, name: str, what: str, remedy: str) -> NoReturn:
    first = tuple(int(i) for i in wrong.nonzero()[0])
    place = f"{int(wrong.sum())} of {wrong.numel()} entries, first {first}: " if first else ""
    raise BayespareError(f"{name}: {what} ({place}{float(values[first]):g}); {remedy}")


def _within(values: Tensor, above: float, or_equal: bool = False) -> bool:
    """Whether all entries are finite and above a bound, in one pass; NaN is not."""
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values.detach())
    return bool(((low >= above) if or_equal else (low > above)) & (high < math.inf))


def check_finite(values: Tensor, name: str, what: str) -> None:
    """Raise if an entry is NaN or infinite, naming the first one."""
    if not _within(values, -math.inf):
        _refuse(
            ~torch.isfinite(values),
            values,
            name,
            f"{what} is not finite",
            "look for the step at which training diverged, and lower the learning rate",
        )


def check_std(std: Tensor, name: str) -> None:
    """Raise if a posterior standard deviation is not finite and positive."""
    if not _within(std, 0.0):
        check_finite(std, name, "the posterior standard deviation")
        _refuse(
            std <= 0,
            std,
            name,
            "the posterior standard deviation is not positive",
            "a weight that is known exactly has no evidence ratio; leave it out, or fit its spread",
        )


def check_prior_std(prior_std: Tensor, name: str) -> None:
    """Raise if a prior standard deviation is not finite and positive."""
    if _within(prior_std, 0.0):
        return
    if bool(torch.isposinf(prior_std).any()):
        raise BayespareError(f"{name}: the prior standard deviation is infinite, {_IMPROPER}")
    _refuse(
        ~(prior_std > 0),
        prior_std,
        name,
        "the prior standard deviation is not positive",
        "give the one that the posterior was fitted with",
    )


def check_prior_precision(precision: Tensor, name: str) -> None:
    """Raise if a prior precision is not finite and positive."""
    if _within(precision, 0.0):
        return
    if bool((precision == 0).any()):
        raise BayespareError(f"{name}: the prior precision is zero, {_IMPROPER}")
    _refuse(
        ~((precision > 0) & torch.isfinite(precision)),
        precision,
        name,
        "the prior precision is not positive and finite",
        "give the one that the posterior was fitted with",
    )


def check_reduced_std(reduced_std: Tensor, name: str) -> None:
    """Raise if the standard deviation of a reduced prior is negative or not finite."""
    if not _within(reduced_std, 0.0, or_equal=True):
        _refuse(
            ~((reduced_std >= 0) & torch.isfinite(reduced_std)),
            reduced_std,
            name,
            "the reduced prior's standard deviation is negative or not finite",
            "use 0 for a spike",
        )


def check_curvature(curvature: Tensor, name: str) -> None:
    """Raise if a curvature (GGN or Fisher diagonal, eigenvalue) is negative or not finite."""
    if not _within(curvature, 0.0, or_equal=True):
        check_finite(curvature, name, "the curvature")
        _refuse(
            curvature < 0,
            curvature,
            name,
            "the curvature is negative",
            "use a generalised Gauss-Newton or Fisher curvature, which never is",
        )


def cholesky(matrix: Tensor, name: str, what: str) -> Tensor:
    """Return the lower Cholesky factor.

    Raises:
        BayespareError: If the matrix is not finite, symmetric and positive definite.
    """
    check_finite(matrix, name, what)
    if matrix.shape[-1] != matrix.shape[-2]:
        raise BayespareError(f"{name}: {what} has shape {tuple(matrix.shape)}, not square")
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if not torch.allclose(matrix, matrix.mT, rtol=0.0, atol=1e-6 * scale):
        raise BayespareError(f"{name}: {what} is not symmetric")
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info != 0).any()):
        raise BayespareError(
            f"{name}: {what} is not positive definite (negative or zero curvature in some "
            "direction); use a Gauss-Newton or Fisher curvature and a prior precision above zero"
        )
    return factor


def log_determinant(factor: Tensor) -> Tensor:
    """Log determinant of a matrix from its lower Cholesky factor (last two dimensions)."""
    logs: Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 2 * logs


def half_squared_norm(factor: Tensor, vector: Tensor) -> Tensor:
    """``1/2 v' S^-1 v`` for vectors (..., n), from the lower Cholesky factor of S (..., n, n)."""
    solved: Tensor = torch.linalg.solve_triangular(factor, vector.unsqueeze(-1), upper=False)
    return 0.5 * solved.squeeze(-1).square().sum(-1)


def rows_of(subset: Tensor | list[int], size: int, name: str) -> tuple[Tensor, Tensor]:
    """Split ``range(size)`` into the subset and the rest.

    Args:
        subset: Boolean mask of shape ``(size,)``, or distinct indices.
        size: How many there are.
        name: For the error.

    Returns:
        Indices of the subset (in the order given) and of the rest (ascending).

    Raises:
        BayespareError: If the subset is empty, repeats an index or leaves the range.
    """
    chosen = torch.as_tensor(subset)
    if chosen.dtype == torch.bool:
        if chosen.shape != (size,):
            raise BayespareError(f"{name}: mask of shape {tuple(chosen.shape)} over {size} entries")
        chosen = chosen.nonzero().squeeze(-1)
    chosen = chosen.reshape(-1).long()
    inside = chosen.numel() > 0 and int(chosen.min()) >= 0 and int(chosen.max()) < size
    rest = torch.ones(size, dtype=torch.bool, device=chosen.device)
    if inside:
        rest[chosen] = False
    if not inside or int(rest.sum()) != size - chosen.numel():
        raise BayespareError(
            f"{name}: the entries to remove must be distinct indices in [0, {size}), at least one"
        )
    return chosen, rest.nonzero().squeeze(-1)


def check_temperature(temperature: float) -> None:
    """Raise if a temperature is not finite and positive."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise BayespareError(f"temperature={temperature} must be positive (1 is untempered)")
