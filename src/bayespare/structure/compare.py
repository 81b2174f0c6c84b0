"""Proof by running: two models say the same, or the layer that differs is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from bayespare.errors import BayespareError, UnsupportedStructureError
from bayespare.structure.operators import plain_attention, preserved
from bayespare.structure.stack import ModuleStack, evaluating

TOLERANCE = 1e-5


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Every tensor in what a model returned: alone or in tuples, lists, dicts, dataclasses."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for value in vars(leaf).values():
                yield from tensors_in(value)


def probe_like(examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Random normal inputs of the examples' shapes; integer inputs are used as they are.

    The same on every call, and the global random generators are not touched.
    """
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x
        for x in examples
    )


def assert_same(
    model: nn.Module,
    candidate: nn.Module,
    overrides: Mapping[str, Tensor],
    probe: tuple[Tensor, ...],
    tolerance: float = TOLERANCE,
) -> None:
    """Raise unless the candidate says what the model says with some tensors replaced.

    A difference that is only rounding in the models' own precision is settled in float64.

    Args:
        model: The reference; not changed.
        candidate: The model to prove; not changed.
        overrides: Tensor name to what takes its place in the reference.
        probe: Arguments both are called with.
        tolerance: Largest difference allowed, relative to the largest output.

    Raises:
        UnsupportedStructureError: If the outputs differ by more; the message names the first layer
            that differs.
    """
    error = _difference(model, candidate, overrides, probe)
    if error <= tolerance:
        return
    if error < float("inf"):
        wide = {name: tensor.double() for name, tensor in overrides.items()}
        precise = tuple(x.double() if x.is_floating_point() else x for x in probe)
        # A model that insists on its own precision is judged by the first measurement.
        with suppress(BayespareError):
            error = _difference(
                deepcopy(model).double(), deepcopy(candidate).double(), wide, precise
            )
    if not error <= tolerance:
        layer = _first_different(model, candidate, overrides, probe)
        raise UnsupportedStructureError(
            f"{layer}: the compact model differs from the masked one by {error:.1e} (relative)"
        )


def difference(
    model: nn.Module, candidate: nn.Module, example: Tensor | tuple[Tensor, ...]
) -> float:
    """Largest difference of two models' outputs on random inputs like ``example``, relative."""
    examples = example if isinstance(example, tuple) else (example,)
    return _difference(model, candidate, {}, probe_like(examples))


def outputs(model: nn.Module, probe: tuple[Tensor, ...]) -> list[Tensor]:
    """Every tensor that a model returns, in evaluation mode.

    Raises:
        UnsupportedStructureError: If it does not run.
    """
    return list(tensors_in(_run(model, {}, probe)))


def _difference(
    model: nn.Module,
    candidate: nn.Module,
    overrides: Mapping[str, Tensor],
    probe: tuple[Tensor, ...],
) -> float:
    """Largest difference of any output, relative to the largest value of that output."""
    expected = list(tensors_in(_run(model, overrides, probe)))
    got = list(tensors_in(_run(candidate, {}, probe)))
    if [x.shape for x in expected] != [x.shape for x in got]:
        return float("inf")
    return max((_relative(x, y) for x, y in zip(expected, got, strict=True)), default=0.0)


def _relative(expected: Tensor, got: Tensor) -> float:
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else float("inf")
    equal = (expected == got) | (expected.isnan() & got.isnan())
    gap = torch.where(equal, 0, expected - got).abs().max()
    finite = expected[expected.isfinite()].abs()
    scale = finite.max() if finite.numel() else torch.ones(())
    return float(gap / scale.clamp_min(torch.finfo(expected.dtype).tiny))


def _first_different(
    model: nn.Module,
    candidate: nn.Module,
    overrides: Mapping[str, Tensor],
    probe: tuple[Tensor, ...],
) -> str:
    """Name of the first layer whose output is not a part of what the reference's layer returns."""
    seen: list[tuple[str, Tensor]] = []
    _run(model, overrides, probe, seen)
    expected = dict(seen)
    seen = []
    _run(candidate, {}, probe, seen)
    for name, got in seen:
        if name in expected and not _is_part(expected[name], got):
            return f"layer {name}" if name else "the model itself"
    return "the model itself"


def _is_part(expected: Tensor, got: Tensor) -> bool:
    """Whether ``got`` is ``expected`` without some indices of one dimension."""
    if expected.ndim != got.ndim:
        return False
    axes = [axis for axis in range(got.ndim) if got.shape[axis] != expected.shape[axis]]
    if not axes:
        return _relative(expected, got) <= 10 * TOLERANCE
    if len(axes) > 1:
        return False
    left = iter(expected.movedim(axes[0], 0))
    right = got.movedim(axes[0], 0)
    return all(any(_relative(row, wanted) <= 10 * TOLERANCE for row in left) for wanted in right)


def _run(
    model: nn.Module,
    overrides: Mapping[str, Tensor],
    probe: tuple[Tensor, ...],
    seen: list[tuple[str, Tensor]] | None = None,
) -> Any:
    """Run a model in evaluation mode; note the output of every module in ``seen`` if given."""
    stack = ModuleStack(model)
    handles = []
    if seen is not None:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(_note(name, seen)))
    try:
        with torch.no_grad(), evaluating(model), preserved(model), plain_attention(), stack.watch():
            return functional_call(model, dict(overrides), probe)
    except Exception as error:
        raise UnsupportedStructureError(
            f"{stack.place}: does not run without the removed units "
            f"({' '.join(str(error).split())}); sizes in a forward must come from x.shape "
            "or an attribute of the module"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _note(name: str, seen: list[tuple[str, Tensor]]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((name, output.clone()))

    return hook
